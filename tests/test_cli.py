"""``pyrovae demo`` as a user sees it, in two epochs, on few rows and without the checks, which CI's demo makes."""

import pandas as pd
import pytest
from typer.testing import CliRunner

from pyrovae import VAE, datasets, log_evidence
from pyrovae import demo as computations
from pyrovae.cli import app

ROWS = 4  # of the 400 that are held out; all of them are scored four times where the README's line is run


def unchecked(model, x, **options):
    """``log_evidence`` without the check, of which closed forms have none."""
    return log_evidence(model, x, **options, **{"check": False} if isinstance(model, VAE) else {})


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "out"
    digits = datasets.digits

    def few(*arguments):
        split = digits(*arguments)
        return split._replace(test=split.test[:ROWS])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "digits", few)
        patch.setattr(computations, "log_evidence", unchecked)
        return CliRunner().invoke(app, ["demo", "--out", str(folder), "--epochs", "2"]), folder


def test_it_prints_two_tables_that_fit_a_terminal(demo):
    result, _ = demo
    assert result.exit_code == 0, result.output
    for text in (
        "P(x) a mass",
        "P(x) a density",
        "narrow Q, importance",
        "narrow Q, auto",
        "independent pixels",
        "PPCA(",
        "exact",
    ):
        assert text in result.stdout
    table = [line for line in result.stdout.splitlines() if line[:1] in "┏┃┡│└"]
    assert max(map(len, table)) <= 80


def test_it_says_how_to_read_k_hat_and_where_the_files_are(demo):
    result, folder = demo
    assert "k-hat is the tail index" in result.stdout
    assert "If your VAE loses" in result.stdout
    assert str(folder / "demo.png") in result.stdout.replace("\n", "")


def test_progress_is_plain_lines_where_there_is_no_terminal(demo):
    result, _ = demo
    assert "steps/s" in result.stderr
    assert "s left" in result.stderr
    assert "\x1b" not in result.stderr


def test_it_writes_a_figure_and_tables(demo):
    _, folder = demo
    assert (folder / "demo.png").stat().st_size > 10_000
    for part in ("discrete", "continuous"):
        assert len(pd.read_csv(folder / f"{part}_comparison.csv")) == 4
        assert len(pd.read_csv(folder / f"{part}_history.csv")) == 2
        rows = pd.read_csv(folder / f"{part}_rows.csv")
        assert len(rows) == 4 * ROWS
        assert rows["verdict"].isin(["trust", "unchecked", "more samples", "another method"]).all()


def test_a_file_in_the_way_is_refused_before_anything_runs(tmp_path):
    (tmp_path / "taken").write_text("")
    result = CliRunner().invoke(app, ["demo", "--out", str(tmp_path / "taken")])
    assert result.exit_code == 2
    assert "expected a folder" in result.stderr
    result = CliRunner().invoke(app, ["demo", "--epochs", "0"])
    assert result.exit_code == 2
