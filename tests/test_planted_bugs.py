"""Every planted mistake is caught by a test made for something else; see planted_bugs.py."""

import subprocess
import sys
from pathlib import Path

from planted_bugs import BUGS


def test_every_planted_bug_is_caught():
    script = Path(__file__).with_name("planted_bugs.py")
    run = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    print(run.stdout, run.stderr)
    assert run.returncode == 0
    assert run.stdout.count(" caught\n") == len(BUGS) >= 12
