"""Everything in the README runs: its Python here, its two lines in .ci/run, its links exist."""

import re
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def test_the_python_blocks_run_from_top_to_bottom(capsys):
    namespace = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), namespace)
    output = capsys.readouterr().out
    assert "rows by verdict" in output
    assert "ContinuousBernoulli" in output
    assert namespace["table"].index[0] == "VAE"


@pytest.mark.parametrize(
    ("marker", "command"), [("demo", ".venv/bin/pyrovae demo"), ("test", ".venv/bin/pytest -q -n 2")]
)
def test_each_line_is_complete_in_itself(marker, command):
    """.ci/run takes these very lines out of the README and runs them."""
    (line,) = re.findall(rf"<!-- line: {marker} -->\n```bash\n(.*)\n```", README)
    assert line.startswith("python3 -m venv .venv && .venv/bin/pip install -q -c constraints.txt ")
    assert line.endswith(command)
    assert "line: $1" in (ROOT / ".ci" / "run").read_text()


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_constraints_name_what_is_declared():
    declared = set(re.findall(r'^    "([a-z-]+)>=', (ROOT / "pyproject.toml").read_text(), re.MULTILINE))
    pinned = set(re.findall(r"^([a-z-]+)==", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    assert declared
    assert declared <= pinned
    assert shutil.which("bash") is None or (ROOT / ".ci" / "run").stat().st_mode & 0o100
