"""The README and the pages under docs/ are true: their Python runs here, the README's two lines in .ci/run, links exist."""

import re
import shutil
import sys
import types
from pathlib import Path

import pytest
from test_architecture import ORDER
from test_workers import Here

from pyrovae import datasets

ROWS = 30  # of the 400 that are held out; examples/digits.py evaluates all of them
ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
pytestmark = pytest.mark.usefixtures("few_checked")
PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]

#: What the code of each page prints that shows it did its job; None where a page has no code.
EXPECTED = {
    "README.md": "rows by verdict",
    "docs/baselines.md": "biased coin",
    "docs/cluster.md": "same bits: True",
    "docs/command-line.md": None,  # its commands run in tests/test_cli.py
    "docs/figures.md": "figures written",
    "docs/likelihoods.md": "negative_binomial(offset=True)",
    "docs/limits.md": None,
    "docs/methods.md": "pareto_smoothed",
    "docs/missing.md": "missing cells in",
    "docs/reading-a-number.md": "rows settled to 0.05 nats",
    "docs/scikit-learn.md": "outliers",
    "docs/speed.md": "eager",
    "docs/tables.md": "rounded_gaussian",
    "docs/training.md": "validation_elbo",
    "docs/your-own-model.md": "ContinuousBernoulli",
}


class Recorder:
    """Stands for a library that pages show and the tests do without; it keeps every call."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        return lambda *args, **kwargs: self.calls.append(name) or self

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass


@pytest.fixture
def trackers(monkeypatch):
    """TensorBoard and MLflow, whose modules record what is called."""
    mlflow, writer = Recorder(), Recorder()
    board = types.ModuleType("torch.utils.tensorboard")
    board.SummaryWriter = lambda folder: writer
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", board)
    return writer.calls, mlflow.calls


def without_code(text):
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def test_every_page_is_listed():
    assert set(PAGES) == EXPECTED.keys()


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page, expected in EXPECTED.items() if expected is not None])
def test_python_blocks_run_from_top_to_bottom(page, capsys, tmp_path, monkeypatch, trackers, few_epochs):
    """In a namespace and a folder of their own: no page needs another."""
    monkeypatch.chdir(tmp_path)
    # Workers would take seconds to start; tests/test_workers.py has some.
    monkeypatch.setattr("joblib.externals.loky.get_reusable_executor", lambda _: Here())
    digits = datasets.digits

    def few(*arguments):
        split = digits(*arguments)
        return split._replace(test=split.test[:ROWS])

    monkeypatch.setattr(datasets, "digits", few)
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)
    namespace = {}
    for block in blocks:
        exec(compile(block, page, "exec"), namespace)
    assert EXPECTED[page] in capsys.readouterr().out
    if page == "docs/training.md":
        assert trackers[0].count("add_scalar") == 4 * 5
        assert trackers[1].count("log_metrics") == 5
    if page == "README.md":
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


def anchors(text):
    """Of headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", without_code(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(
    "page", [*PAGES, "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "benchmarks/README.md"]
)
def test_relative_links_exist(page):
    text = without_code((ROOT / page).read_text())
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", text):
        name, _, anchor = target.partition("#")
        path = (ROOT / page).parent / name if name else ROOT / page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path.read_text()), target


def test_contributing_maps_the_modules():
    section = (ROOT / "CONTRIBUTING.md").read_text().partition("## Modules")[2]
    assert [line.split()[0] for line in section.split("```")[1].strip().splitlines()] == ORDER


def test_constraints_name_what_is_declared():
    declared = set(re.findall(r'^    "([a-z-]+)>=', (ROOT / "pyproject.toml").read_text(), re.MULTILINE))
    pinned = set(re.findall(r"^([a-z-]+)==", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    assert declared
    assert declared <= pinned
    assert shutil.which("bash") is None or (ROOT / ".ci" / "run").stat().st_mode & 0o100
