"""Every planted mistake is caught by a test made for something else; see planted_bugs.py."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from planted_bugs import BUGS
from planting import Bug, NotPlanted, planted

SOURCE = """
class Square:
    def area(self):
        return self.side * self.side

    def volume(self):
        return self.side ** 3


def area(square):
    return square.area()
"""


@pytest.mark.slow
def test_every_planted_bug_is_caught():
    script = Path(__file__).with_name("planted_bugs.py")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # a process of several threads is not safe to fork
    run = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=False, env=environment
    )
    print(run.stdout, run.stderr)
    assert run.returncode == 0
    assert run.stdout.count(" caught\n") == len(BUGS) >= 12


@pytest.mark.parametrize("pattern", ["self.side * ", re.compile(r"self\.side \*(?!\*) ")])
def test_a_bug_changes_its_function_alone(pattern):
    bug = Bug("shapes.py", "Square.area", pattern, "2 * ", "")
    assert planted(SOURCE, bug) == SOURCE.replace("return self.side * self.side", "return 2 * self.side")


@pytest.mark.parametrize(
    ("function", "pattern", "message"),
    [
        ("Square.area", "self.side", "Square.area in shapes.py matches 'self.side' 2 times; expected once"),
        ("Square.volume", "** 2", r"Square.volume in shapes.py matches '** 2' 0 times; expected once"),
        ("Cube.area", "side", "shapes.py has 0 functions 'Cube.area'; expected one"),
    ],
)
def test_a_bug_that_is_no_longer_there_is_named(function, pattern, message):
    with pytest.raises(NotPlanted, match=re.escape(message)):
        planted(SOURCE, Bug("shapes.py", function, pattern, "", ""))
