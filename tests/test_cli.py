"""Commands as a user sees them. The demo runs in two epochs, on few rows and without the checks, which CI's demo makes."""

import functools
import io
import re
import runpy
import shlex
import signal
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

import pyrovae as pv
from pyrovae import VAE, baselines, datasets, log_evidence
from pyrovae import demo as computations
from pyrovae.cli import app, files, models, rows
from pyrovae.cli.training_rows import TrainingRows

ROWS = 4  # of the 400 that are held out; all of them are scored four times where the README's line is run


def unchecked(model, x, **options):
    """``log_evidence`` without the check, of which closed forms have none, and ``auto`` at a low cost."""
    if isinstance(model, VAE):
        options |= {"check": False} | ({"max_cost": 2000} if options.get("method") == "auto" else {})
    return log_evidence(model, x, **options)


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


@pytest.mark.slow
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
    assert "--out: expected a folder" in result.stderr
    result = CliRunner().invoke(app, ["demo", "--epochs", "0"])
    assert result.exit_code == 2


# ---------------------------------------------------------------------------------------------------------
# Files and models


def run(*arguments, code=0, **options):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], **options)
    assert result.exit_code == code, (result.output, result.exception)
    assert isinstance(result.exception, SystemExit | None)
    return result


def table_of(text, **options):
    return pd.read_csv(io.StringIO(text), **options)


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """A folder with people.csv, which has holes, strings, dates and counts, and people.pv, fitted to it."""
    folder, rng = tmp_path_factory.mktemp("people"), np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "id": [f"p{number}" for number in range(80)],
            "seen": pd.date_range("2020-01-01", periods=80, freq="5D").strftime("%Y-%m-%d"),
            "job": rng.choice(["cook", "nurse"], 80),
            "visits": rng.poisson(3.0, 80),
            "dose": rng.standard_normal(80).round(3),
        }
    )
    holes = rng.random(frame.shape) < 0.1
    holes[:, 0] = False
    frame.astype(object).mask(holes).to_csv(folder / "people.csv", index=False)
    pd.DataFrame(rng.standard_normal((40, 2)), columns=["a", "b"]).to_csv(folder / "numbers.csv", index=False)
    options = ["--index", "id", "--date", "seen=days", "--latent-dim", 1, "--epochs", 2, "--hidden-dims", 16]
    options += ["--validation", 0.2]
    result = run("fit", folder / "people.csv", "-o", folder / "people.pv", *options)
    assert result.stdout.split()[:5] == ["column", "family", "levels", "resolution", "why"]
    assert "rounded_gaussian" in result.stdout
    assert "History(2 epochs" in result.stderr
    return folder


def test_a_fit_by_command_is_the_fit_by_python(people):
    vae = pv.load(people / "people.pv")
    assert vae.table.names == ["job", "visits", "dose", "seen.days"]
    assert vae.fitted.rows == 64
    assert "fitted to 64 rows: History(2 epochs" in run("info", people / "people.pv").stdout


def test_a_model_of_one_row_says_row(tmp_path):
    rows = torch.tensor([[1.0, 0.0]])
    vae = pv.VAE.mlp(2, 1, hidden_dims=(2,))
    pv.fit(vae, rows, epochs=1)
    vae.save(tmp_path / "one.pv")
    assert "fitted to 1 row: History(" in run("info", tmp_path / "one.pv").stdout
    assert " nats a row over 1 row (" in str(log_evidence(vae, rows, num_samples=100, check=False))


def test_an_interrupted_fit_writes_nothing_and_goes_on(people, tmp_path, monkeypatch):
    options = ["--drop", "id", "--drop", "seen", "--hidden-dims", "", "--latent-dim", 1, "--epochs", 3]
    command = ["fit", people / "people.csv", *options, "-o"]
    run(*command, tmp_path / "whole.pv")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # programs in the background ignore it
    with monkeypatch.context() as patch:

        def stop(record, pair):
            signal.raise_signal(signal.SIGINT)

        patch.setattr(pv.training, "fit", functools.partial(pv.fit, callbacks=[stop]))
        assert "With --checkpoint" in run(*command, tmp_path / "no.pv", code=130).stderr
        command += [tmp_path / "resumed.pv", "--checkpoint", tmp_path / "kept"]
        assert "Run the same command to resume" in run(*command, code=130).stderr
    signal.signal(signal.SIGINT, before)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept", "whole.pv"]
    assert "resumed after 1 steps, 1 whole epochs" in run(*command).stderr
    whole, resumed = (pv.load(tmp_path / name).state_dict() for name in ("whole.pv", "resumed.pv"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_scores_are_those_of_the_library(people, monkeypatch):
    monkeypatch.setattr(rows, "_AT_ONCE", 30)
    options = ["--method", "importance", "--num-samples", 50, "--no-check", "--index", "id"]
    result = run("score", people / "people.pv", people / "people.csv", *options)
    found = table_of(result.stdout, index_col="id", dtype=str)
    assert found.index.tolist() == [f"p{number}" for number in range(80)]
    assert set(found["verdict"]) <= set(pv.evidence.VERDICTS)
    assert result.stderr.count("log P(x) = ") == 3
    assert sum(map(int, re.findall(r"not held out: (\d+)", result.stderr))) == 64
    frame = pd.read_csv(people / "people.csv")
    frame["seen.days"] = (pd.to_datetime(frame["seen"]) - pd.Timestamp(0)).dt.days
    frame = frame.drop(columns=["id", "seen"])
    for start in (0, 30, 60):
        part = log_evidence(
            pv.load(people / "people.pv"),
            frame[start : start + 30].reset_index(drop=True),
            num_samples=50,
            check=False,
            noise="content",
        )
        assert part.estimate.tolist() == [float(cell) for cell in found["estimate"][start : start + 30]]


def test_interrupted_scores_resume_to_the_same_bytes(people, monkeypatch, tmp_path):
    monkeypatch.setattr(rows, "_AT_ONCE", 30)
    counted_checks(monkeypatch)
    options = ["--method", "importance", "--num-samples", 100, "--index", "id", "-o"]
    run("score", people / "people.pv", people / "people.csv", *options, tmp_path / "whole.csv")
    options = ["--checkpoint", tmp_path / "kept", *options, tmp_path / "resumed.csv"]
    calls, scored = [], rows._scored

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return scored(*arguments)

    monkeypatch.setattr(rows, "_scored", interrupted)
    run("score", people / "people.pv", people / "people.csv", *options, code=130)
    assert not (tmp_path / "resumed.csv").exists()
    run("score", people / "people.pv", people / "people.csv", *options)
    assert len(calls) == 2 + 2
    assert (tmp_path / "resumed.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    other = run("score", people / "people.pv", people / "people.csv", "--seed", 1, *options, code=2)
    assert "--checkpoint: expected the run in" in other.stderr
    options[options.index("id")] = "job"
    assert "options" in run("score", people / "people.pv", people / "people.csv", *options, code=2).stderr


def counted_checks(monkeypatch):
    """Let every check pass, and return the list of the checks made."""
    made = []

    def passes(template, estimator, *_):
        made.append(estimator.__name__)
        return pv.evidence.Check(estimator.__name__, 64, 0, 0, 64, True, None, np.full(64, -1.0), 0, 0)

    monkeypatch.setattr(sys.modules["pyrovae.evidence.check"], "_try", passes)
    return made


def test_a_model_is_checked_once_a_file(people, monkeypatch):
    monkeypatch.setattr(rows, "_AT_ONCE", 30)
    made = counted_checks(monkeypatch)
    places = [people / "people.pv", people / "people.csv", "--index", "id", "--method", "importance"]
    found = table_of(run("score", *places, "--num-samples", 500).stdout)
    assert made == ["importance"]
    assert (found["verdict"][60:] == "trust").any()
    codes = table_of(run("embed", *places, "--num-samples", 500).stdout)
    assert made == ["importance"] * 2
    assert (codes["verdict"][60:] == "trust").any()


def test_chunks_with_and_without_holes_have_the_same_columns(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "_AT_ONCE", 4)
    frame = pd.DataFrame(np.random.default_rng(0).standard_normal((12, 2)).round(2), columns=["a", "b"])
    fitted = baselines.FullGaussian().fit(frame)
    fitted.save(tmp_path / "g.pv")
    frame.iloc[5, 0] = None
    frame.to_csv(tmp_path / "rows.csv", index=False)
    for name, read in (("s.csv", pd.read_csv), ("s.parquet", pd.read_parquet)):
        run("score", tmp_path / "g.pv", tmp_path / "rows.csv", "-o", tmp_path / name)
        found = read(tmp_path / name)
        assert found["observed"].tolist() == frame.notna().sum(axis=1).tolist()
        assert np.allclose(found["estimate"], fitted.log_evidence(frame).estimate, rtol=1e-5)


@pytest.mark.parametrize("command", ["fit", "compare", "score", "impute", "embed", "outliers", "report"])
def test_inputs_are_not_overwritten(people, tmp_path, command):
    data, model, link = tmp_path / "rows.csv", tmp_path / "m.pv", tmp_path / "link.csv"
    data.write_bytes((people / "people.csv").read_bytes())
    model.write_bytes((people / "people.pv").read_bytes())
    link.symlink_to(data)
    places = [data, link, model] if "{model}" in COMMANDS[command] else [data, link]
    for out in places:
        assert "a file that is not read" in refused(command, code=2, data=data, model=model, out=out)
    assert data.read_bytes() == (people / "people.csv").read_bytes()
    assert model.read_bytes() == (people / "people.pv").read_bytes()


def test_scores_of_draws_in_a_file_are_those_of_the_draws(people, tmp_path):
    model = pv.load(people / "people.pv")
    run("sample", people / "people.pv", 6, "-o", tmp_path / "drawn.csv")
    options = ["--method", "importance", "--num-samples", 20, "--no-check"]
    found = table_of(run("score", people / "people.pv", tmp_path / "drawn.csv", *options).stdout, dtype=str)
    drawn = model.sample(6, seed=0)
    expected = log_evidence(model, drawn, num_samples=20, check=False, noise="content").estimate
    assert [float(cell) for cell in found["estimate"]] == expected.tolist()


def test_missing_cells_are_completed(people):
    common = [
        "--index",
        "id",
        "--no-check",
        "--num-samples",
        100,
        "--num-imputations",
        2,
        "--method",
        "importance",
    ]
    command = ["impute", people / "people.pv", people / "people.csv", *common]
    given = pd.read_csv(people / "people.csv", index_col="id").drop(columns="seen")
    result = run(*command)
    assert re.search(r"^log P\(x\): (\d+)/\1, ", result.stderr, re.M)
    full = table_of(result.stdout, index_col="id")
    assert full.notna().all(axis=None)
    there = given.notna()
    assert (full[given.columns].where(there) == given).to_numpy()[there].all()
    assert len(table_of(run(*command, "--kind", "draws").stdout)) == 2 * 80
    cells = table_of(run(*command, "--kind", "cells").stdout)
    assert list(cells)[:2] == ["id", "column"]
    assert (
        len(cells)
        == full.size
        - given.size
        + given.isna().sum().sum()
        - 80
        + pd.read_csv(people / "people.csv")["seen"].isna().sum()
    )


def test_odd_rows_codes_and_draws(people):
    common = [people / "people.csv", "--index", "id", "--no-check", "--num-samples", 100, "--method"]
    result = run("outliers", people / "people.pv", *common, "importance", "--top", 3)
    assert "log P(x): 80/80, " in result.stderr
    odd = table_of(result.stdout)
    assert odd["score"].is_monotonic_decreasing
    assert len(odd) == 3
    result = run("embed", people / "people.pv", *common, "encoder")
    assert "embed: 80/80, " in result.stderr
    codes = table_of(result.stdout, index_col="id")
    assert list(codes) == ["z_0", "z_0_sd"]
    assert len(codes) == 80
    drawn = table_of(run("sample", people / "people.pv", 5).stdout)
    assert list(drawn) == ["job", "visits", "dose", "seen.days"]
    assert drawn["visits"].dtype.kind == "i"


def test_models_without_a_table_and_standard_input(tmp_path):
    x = torch.randn(30, 2, generator=torch.Generator().manual_seed(0)) @ torch.tensor(
        [[1.0, 0.5], [0.0, 1.0]]
    )
    frame = pd.DataFrame(x.numpy(), columns=["a", "b"])
    fitted = baselines.FullGaussian().fit(frame)
    fitted.save(tmp_path / "g.pv")
    found = run("score", tmp_path / "g.pv", "-", input=frame.to_csv(index=False)).stdout
    assert np.allclose(
        table_of(found, index_col="row")["estimate"], fitted.log_evidence(frame).estimate, rtol=1e-5
    )
    assert list(table_of(run("sample", tmp_path / "g.pv", 3).stdout)) == ["a", "b"]
    assert "FullGaussian" in run("info", tmp_path / "g.pv").stdout


def test_a_check_is_the_librarys(people, monkeypatch):
    called = {}
    monkeypatch.setattr(pv.evidence, "check", lambda pair, x, **options: called.update(options, rows=len(x)))
    run("check", people / "people.pv", people / "people.csv", "--index", "id", "--num-rows", 8)
    assert called == {"method": "auto", "num_rows": 8, "seed": 0, "rows": 80}


def test_models_are_compared_on_rows_that_none_has_seen(tmp_path):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.standard_normal((150, 3)) @ rng.standard_normal((3, 3)), columns=["a", "b", "c"])
    frame.to_csv(tmp_path / "real.csv", index=False)
    options = ["--latent-dim", 2, "--epochs", 2, "--no-check"]
    result = run("compare", tmp_path / "real.csv", "--models", "vae:1,ppca,mixture:2", *options)
    assert {line.split()[0] for line in result.stdout.splitlines()} >= {"vae:1", "ppca", "mixture:2"}
    assert "over 30 rows" in result.stdout
    run("compare", tmp_path / "real.csv", "--models", "ppca", "-o", tmp_path / "table.csv")
    assert pd.read_csv(tmp_path / "table.csv", index_col=0)["seen"].tolist() == [0]
    printed = run("compare", tmp_path / "real.csv", "--models", "ppca", "-o", "-").stdout
    assert printed.splitlines()[0] == (tmp_path / "table.csv").read_text().splitlines()[0]
    counts = tmp_path / "counts.csv"
    frame.assign(a=rng.poisson(3.0, 150)).to_csv(counts, index=False)
    refused = run("compare", counts, "--models", "vae,ppca", "--epochs", 9999, code=2)
    assert "--models: expected all masses or all densities" in refused.stderr


def test_a_category_that_training_rows_lack_is_refused_before_the_vaes_are_fitted(tmp_path):
    path = tmp_path / "counts.csv"
    frame = pd.DataFrame({"id": np.arange(60), "big age": np.arange(60) * 7 % 41})
    frame.to_csv(path, index=False)
    _, held_out = TrainingRows(str(path), "id", None, None, None, None, "4", 0).split("--test", 0.2)
    frame.loc[int(held_out.index[0]), "big age"] = 99
    frame.to_csv(path, index=False)
    result = run("compare", path, "--index", "id", "--models", "vae:1,latent_class:2", "--epochs", 99, code=2)
    said = result.stderr.splitlines()[-1]
    assert said.startswith(
        "Error: --models latent_class:2: expected categories 0 … 40 in column 'big age', got 1"
    )
    assert said.endswith("Leave the model out, or the column by --drop.")


def test_commands_of_the_page_run(people, tmp_path, monkeypatch):
    """From top to bottom, in one folder, with less work."""
    for module, name, less in (
        ("training", "fit", {"epochs": 1}),
        ("evidence", "log_evidence", {"method": "importance", "num_samples": 50, "check": False}),
        ("imputation", "impute", {"num_samples": 100, "method": "importance", "check": False}),
        ("outlying", "outliers", {"num_samples": 100, "method": "importance", "check": False}),
        ("comparison", "compare", {"method": "importance", "num_samples": 20, "check": False}),
        ("evidence", "check", {"num_rows": 8, "num_samples": 100}),
    ):
        function = getattr(getattr(pv, module), name)
        monkeypatch.setattr(getattr(pv, module), name, lessened(function, less))
    page = []
    monkeypatch.setattr(models, "write_report", lambda *places, **options: page.append((*places, options)))
    frame = pd.read_csv(people / "people.csv").rename(columns={"seen": "joined"})
    frame.to_csv(tmp_path / "people.csv", index=False)
    rng = np.random.default_rng(0)
    labs = pd.DataFrame(rng.standard_normal((60, 4)), columns=list("abcd"))
    labs.to_csv(tmp_path / "labs.csv", index=False)
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parent.parent / "docs" / "command-line.md").read_text()
    blocks = re.findall(r"^```bash\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    lines = "".join(blocks).splitlines()
    for line in lines:
        program, *arguments = shlex.split(line)
        assert program == "pyrovae"
        run(*arguments)
    ((model, shown, path, options),) = page
    assert (model.table.names[0], len(shown), path.name) == ("job", 80, "report.html")
    assert options["color"].tolist() == shown["job"].tolist()
    commands = {each.name or each.callback.__name__ for each in app.registered_commands}
    assert {shlex.split(line)[1] for line in lines} | {"demo"} == commands
    assert {path.name for path in tmp_path.iterdir()} >= {
        "scores.csv",
        "full.csv",
        "codes.csv",
        "simulated.csv",
    }


def lessened(function, less):
    @functools.wraps(function)
    def call(*arguments, **options):
        return function(*arguments, **options | less)

    return call


def test_levels_of_held_out_rows_are_in_the_training_rows(tmp_path):
    """Every level but one stands in a single row, so none of them can be held out."""
    levels = [f"l{number}" for number in range(15)] + ["often"] * 15
    pd.DataFrame({"level": levels, "x": np.arange(30) ** 1.5}).to_csv(tmp_path / "rows.csv", index=False)
    run("fit", tmp_path / "rows.csv", "-o", tmp_path / "m.pv", "--validation", 0.5, "--epochs", 1)
    assert set(pv.load(tmp_path / "m.pv").table.columns[0].levels) == set(levels)
    none = run("fit", tmp_path / "rows.csv", "-o", tmp_path / "m.pv", "--validation", 0.001, code=2)
    assert "--validation: expected rows to hold out, got a share of 0.001 of 30" in none.stderr


# ---------------------------------------------------------------------------------------------------------
# Refusals

COMMANDS = {
    "fit": ["fit", "{data}", "-o", "{out}"],
    "compare": ["compare", "{data}", "-o", "{out}"],
    "score": ["score", "{model}", "{data}", "-o", "{out}"],
    "impute": ["impute", "{model}", "{data}", "-o", "{out}"],
    "outliers": ["outliers", "{model}", "{data}", "-o", "{out}"],
    "embed": ["embed", "{model}", "{data}", "-o", "{out}"],
    "check": ["check", "{model}", "{data}"],
    "report": ["report", "{model}", "{data}", "-o", "{out}"],
    "info": ["info", "{model}"],
    "sample": ["sample", "{model}", "3", "-o", "{out}"],
}


def refused(command, code=1, **places):
    """A message of one paragraph and an exit code, and no file."""
    result = run(*(part.format(**places) for part in COMMANDS[command]), code=code)
    assert result.stderr.startswith("Error: "), result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
    return result.stderr


@pytest.mark.parametrize("command", [name for name, parts in COMMANDS.items() if "{data}" in parts])
def test_malformed_rows_are_refused(people, tmp_path, command):
    text = (people / "people.csv").read_text()
    malformed = {
        "an empty file": "",
        "cells in every line": text + "1,2\n",
    }
    if command not in ("fit", "compare"):
        frame = table_of(text).drop(columns="id")
        malformed |= {
            "none named 'dose'": frame.drop(columns="dose").to_csv(index=False),
            "'more'": frame.assign(more=1).to_csv(index=False),
            "first 'much'": frame.assign(dose="much").to_csv(index=False),
            "levels of the training rows": frame.assign(job="smith").to_csv(index=False),
        }
    else:
        malformed |= {"Choose what they mean: --date seen=days": text}
    places = {"model": people / "people.pv", "out": tmp_path / "out.csv"}
    for message, content in malformed.items():
        (tmp_path / "rows.csv").write_text(content)
        assert message in refused(command, data=tmp_path / "rows.csv", **places)
    assert "No such file" in refused(command, data=tmp_path / "no.csv", **places)
    (tmp_path / "folder.csv").mkdir()
    assert "Is a directory" in refused(command, data=tmp_path / "folder.csv", **places)
    assert {path.name for path in tmp_path.iterdir()} == {"rows.csv", "folder.csv"}


@pytest.mark.parametrize("command", [name for name, parts in COMMANDS.items() if "{model}" in parts])
def test_malformed_models_are_refused(people, tmp_path, command):
    (tmp_path / "cut.pv").write_bytes((people / "people.pv").read_bytes()[:-1])
    for name, message in {"cut.pv": "sha256", "no.pv": "No such file", "": "folder"}.items():
        places = {"data": people / "people.csv", "out": tmp_path / "out.csv"}
        assert message in refused(command, model=tmp_path / name, **places)
    assert [path.name for path in tmp_path.iterdir()] == ["cut.pv"]


@pytest.mark.parametrize("command", [name for name, parts in COMMANDS.items() if "{out}" in parts])
def test_outputs_that_cannot_be_written_are_refused_before_any_work(people, tmp_path, monkeypatch, command):
    def work(*_, **__):
        raise AssertionError

    for module, name in (("training", "fit"), ("evidence", "log_evidence"), ("imputation", "impute")):
        monkeypatch.setattr(f"pyrovae.{module}.{name}", work)
    places = {"data": people / "people.csv", "model": people / "people.pv"}
    (tmp_path / "folder.csv").mkdir()
    assert "folder, device or pipe" in refused(command, out=tmp_path / "folder.csv", **places)
    assert "No such file" in refused(command, out=tmp_path / "no" / "such.csv", **places)


USAGE = {
    "Missing argument": "fit {data}",
    "--family: expected COLUMN=VALUE, got 'dose'": "fit {data} -o {out} --family dose",
    "--family: expected one of": "fit {data} -o {out} --family zz=gaussian --drop seen",
    "--family dose: expected one of": "fit {data} -o {out} --family dose=zz --drop seen",
    "Choose a family without options, or fit in Python by VAE.for_table.": "fit {data} -o {out} --family dose=binomial --drop seen",
    "--drop: expected one of": "fit {data} -o {out} --drop zz --drop seen",
    "--resolution: expected a number, got 'some'": "fit {data} -o {out} --resolution dose=some",
    "--date: expected a column": "fit {data} -o {out} --date zz=days",
    "--lr: expected": "fit {data} -o {out} --lr -1 --drop seen",
    "--out: expected a name that ends in": "sample {model} 2 -o rows.xlsx",
    "--index: expected a column": "score {model} {data} --index zz",
    "--kind: expected one of": "impute {model} {data} --kind zz",
    "--method: expected one of": "embed {model} {data} --index id --method zz",
    "Usage: root sample": "sample {model} 0",
    "--models: expected a whole number": "compare {data} --models full_gaussian:2.5 --drop seen",
    "--models ppca:99: expected fewer than the 2 columns": "compare {numbers} --models ppca:99",
    "--models mixture:500: expected at least as many rows": "compare {numbers} --models mixture:500",
    "--models: expected full_gaussian without a number": "compare {data} --models full_gaussian:2 --drop seen",
}


@pytest.mark.parametrize("message", USAGE)
def test_usage_is_exit_code_two_and_names_the_option(people, tmp_path, message):
    places = {"data": people / "people.csv", "model": people / "people.pv", "out": tmp_path / "m.pv"}
    places["numbers"] = people / "numbers.csv"
    arguments = [part.format(**places) for part in USAGE[message].split()]
    if message.startswith("Missing"):
        arguments = arguments[:1]
    assert message in run(*arguments, code=2).stderr.replace("\n", " ")
    assert list(tmp_path.iterdir()) == []


def test_dropped_columns_are_not_warned_of_in_any_command(tmp_path):
    """Columns of US dates, of thousands and of a word among numbers; rows with them are scored and completed."""
    lines = [f'0{1 + i % 9}/11/2020,"1,{100 + i}",{"?" if i % 20 == 0 else i},{i % 7}.{i}' for i in range(60)]
    (tmp_path / "rows.csv").write_text("\n".join(["day,usd,q,y", *lines]))
    options = [
        "--drop",
        "day",
        "--drop",
        "usd",
        "--drop",
        "q",
        "--epochs",
        1,
        "--latent-dim",
        1,
        "--hidden-dims",
        4,
    ]
    fitted = run("-q", "fit", tmp_path / "rows.csv", "-o", tmp_path / "a.pv", *options)
    assert fitted.stderr == ""
    draws = ["--num-samples", 100, "--no-check"]
    for command, *more in (["score", "--method", "importance"], ["impute"], ["outliers"], ["embed"]):
        assert run("-q", command, tmp_path / "a.pv", tmp_path / "rows.csv", *more, *draws).stderr == ""


X = {"x": np.arange(30) ** 1.5}
SPOKEN = {
    "big numbers": (
        {**X, "big": 2**60 + np.arange(30)},
        [],
        "column 'big': expected whole numbers between -2^53 and 2^53, got 30 others, first in row 0. Subtract a constant first, "
        "or leave the column out of training by --drop big.",
    ),
    "infinite": (
        {**X, "my y": [0.5, np.inf, *np.arange(28) / 3]},
        [],
        "column 'my y': expected finite numbers, or empty cells, got 1 that are infinite, first inf in row 1. Empty these cells "
        "if they are missing, or drop those rows.",
    ),
    "no cell": (
        {**X, "my y": [None] * 30},
        [],
        "column 'my y': expected an observed cell, got none. Leave it out by --drop 'my y'.",
    ),
    "large": (
        {"x": X["x"] * 1e40},
        [],
        "column 'x': expected numbers up to 1e+35, got 1.6e+42. Divide the column by a power of ten.",
    ),
    "constant": (
        {"x": [1] * 30, "y": [2, None] * 15},
        [],
        "DATA: expected a column that varies, got 'x': constant: 1 in every row; 'y': constant: 2 in every observed row. Pass "
        "other columns.",
    ),
    "off the support": (
        {"x": X["x"] - 1},
        ["--family", "x=gamma"],
        "column 'x': expected numbers that 'gamma' can score, got 2 others, first -1 in row 0. Gamma takes positive numbers; use "
        '"gaussian" if zeros or negatives occur.',
    ),
    "levels": (
        {**X, "my y": ["a", "b", "c"] * 10},
        ["--family", "my y=bernoulli"],
        "--family 'my y': expected 'categorical', 'bernoulli' for two levels, or 'ordinal' for numbers and ordered categories, "
        "got 'bernoulli' for 3 levels, 'a', 'b', 'c'. Name one of these.",
    ),
    "resolution": (
        {**X, "y": ["a", "b", "c"] * 10},
        ["--resolution", "y=2"],
        "--resolution y: expected a column of numbers, gaussian or log_normal, got strings or categories. Leave the resolution "
        "out.",
    ),
    "durations": (
        {**X, "d": pd.to_timedelta(np.arange(30), "D")},
        [],
        "column 'd': expected numbers, booleans, strings or categories, got durations of dtype timedelta64[ns], first Timedelta('0 "
        "days 00:00:00'). Write it as a number, or leave it out by --drop d.",
    ),
    "another separator": (
        {"id|x": ["a|1", "b|2"]},
        ["--index", "id"],
        "--index: expected a column of {data}, got 'id', not among ['id|x']. Name one. Cells are separated by commas, semicolons "
        "or tabs; a first line sep=| names another separator.",
    ),
    "no file": (
        None,
        [],
        "path: expected a file to read, got No such file or directory, {data}. Check the path.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SPOKEN)
def test_refusals_of_a_fit_are_in_the_words_of_the_command(tmp_path, name):
    columns, options, message = SPOKEN[name]
    data = tmp_path / ("rows.parquet" if name == "durations" else "rows.csv")
    if columns is not None:
        frame = pd.DataFrame(columns)
        frame.to_parquet(data) if name == "durations" else frame.to_csv(data, index=False)
    code = 2 if message.startswith("--") else 1
    found = run("-q", "fit", data, "-o", tmp_path / "a.pv", *options, code=code)
    assert found.stderr.replace("64[us]", "64[ns]") == f"Error: {message.format(data=data)}\n"


def test_dropped_columns_are_left_out_by_drop(tmp_path):
    frame = pd.DataFrame({**X, "my y": ["a", "b"] * 15})
    frame.to_csv(tmp_path / "rows.csv", index=False)
    options = ["--drop", "my y", "--epochs", 1, "--latent-dim", 1, "--hidden-dims", 4]
    found = run("-q", "fit", tmp_path / "rows.csv", "-o", tmp_path / "a.pv", *options)
    for text in (found.stdout, run("info", tmp_path / "a.pv").stdout):
        assert "left out by --drop" in text
        assert "left out by families" not in text


def test_a_cell_off_the_support_is_named_with_its_column():
    frame = pd.DataFrame({"size": [0.5, 1.25, 3.0, -1.0], "visits": [1, 0, 2, 5]})
    vae = VAE.for_table(frame, 1, families={"visits": "poisson"}, hidden_dims=(4,))
    odd = frame.assign(visits=[1, 0, 2, -5])
    calls = [functools.partial(call, vae, odd) for call in (pv.embed, log_evidence, pv.fit)]
    for call in (*calls, functools.partial(baselines.IndependentPoisson().fit, odd.assign(size=1))):
        with pytest.raises(ValueError, match=r"1 off it, first -5 at row 3, column 'visits'\."):
            call()


def test_the_package_runs_as_a_module(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["pyrovae", "--version"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("pyrovae", run_name="__main__")
    assert ended.value.code == 0
    assert capsys.readouterr().out.strip() == pv.__version__


def test_messages_are_quiet_on_request(people):
    assert run("--version").stdout.strip() == pv.__version__
    command = ["sample", people / "people.pv", 2]
    assert run("--quiet", *command).stderr == ""
    score = ["score", people / "people.pv", people / "people.csv", "--index", "id", "--method", "importance"]
    assert run("-q", *score, "--num-samples", 20, "--no-check").stderr == ""


def test_tables_that_files_cannot_hold_are_refused_or_written_as_text(tmp_path):
    mixed = pd.DataFrame({"value": [1.5, "cook", None]}, pd.Index([0, 1, 2], name="row"))
    with files.writing(str(tmp_path / "cells.parquet")) as put:
        put(mixed)
    assert pd.read_parquet(tmp_path / "cells.parquet")["value"].dropna().tolist() == ["1.5", "cook"]
    labelled = mixed.rename_axis("value")
    with (
        pytest.raises(
            ValueError,
            match=r"labels of rows: expected another name than .*got 'value', the name of a column",
        ),
        files.writing(str(tmp_path / "cells.csv")) as put,
    ):
        put(labelled)


@pytest.mark.parametrize("labelled", [False, True])
def test_numbers_of_rows_get_a_name_that_no_column_has(tmp_path, labelled):
    """A file with a column "row" or "imputation" was refused for its --index, which was not given."""
    data, model, out = tmp_path / "rows.csv", tmp_path / "g.pv", tmp_path / "out.csv"
    frame = pd.DataFrame(np.random.default_rng(0).standard_normal((12, 3)).round(2))
    frame.columns = ["row", "row_1", "imputation"]
    baselines.FullGaussian().fit(frame).save(model)
    frame.iloc[5, 0] = None
    frame.to_csv(data, index=labelled)  # labels without a name in the first column

    def header(command, *options):
        run(command, model, data, *options, "-o", out)
        return out.read_text().split("\n", 1)[0].split(",")

    assert header("impute") == [""] * labelled + list(frame)
    done = pd.read_csv(out, index_col=0 if labelled else None)
    pd.testing.assert_frame_equal(done.drop(5), frame.drop(5))
    assert done.notna().all(axis=None)
    draws = header("impute", "--kind", "draws", "--num-imputations", 2)
    assert draws == ["imputation_1", "row_2", *frame]
    assert pd.read_csv(out)["row_2"].tolist() == [*range(12)] * 2
    assert header("impute", "--kind", "cells")[0] == "row_2"
    assert header("score")[0] == header("outliers")[0] == header("outliers", "--cells")[0] == "row_2"


def test_compare_gives_no_density_of_codes(tmp_path):
    """Prices become numbers of cents, and labels numbers, for the VAE. A Gaussian of these is none of the data."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"price": np.where(rng.random(60) < 0.4, 0, rng.gamma(2, 9, 60)).round(2)})
    frame["w"] = rng.normal(size=60)
    frame.to_csv(tmp_path / "a.csv", index=False)
    refused = run("compare", tmp_path / "a.csv", "--models", "full_gaussian", code=2)
    assert "got 'price', counted in steps of 0.01" in refused.stderr
    frame.assign(price=rng.choice(list("abc"), 60)).to_csv(tmp_path / "b.csv", index=False)
    refused = run("compare", tmp_path / "b.csv", "--models", "full_gaussian", code=2)
    assert "got 'price', a column of labels" in refused.stderr
    options = ("--family", "price=gaussian", "--models", "full_gaussian", "-o", "-")
    assert "full_gaussian" in run("compare", tmp_path / "a.csv", *options).stdout


@pytest.mark.parametrize("levels", [[1, 2, 3], [True, False], ["1", "2", "x"]])
def test_categories_of_numbers_survive_parquet(tmp_path, levels):
    pytest.importorskip("pyarrow")
    rng = np.random.default_rng(0)
    train = pd.DataFrame(
        {"c": pd.Categorical(rng.choice(np.array(levels, dtype=object), 40)), "w": rng.normal(size=40)}
    )
    vae = pv.VAE.for_table(train, 1, hidden_dims=(2,))
    vae.save(tmp_path / "m.pv")
    run("sample", tmp_path / "m.pv", 12, "-o", tmp_path / "s.parquet")
    scores = run("score", tmp_path / "m.pv", tmp_path / "s.parquet", "--method", "importance", "--no-check")
    assert len(table_of(scores.stdout)) == 12


def test_doubts_about_cells_are_told_in_the_words_of_the_commands(tmp_path, caplog):
    rng = np.random.default_rng(0)
    rows = {"age": rng.choice([20, 31, 42, -999], 80), "job": rng.choice(["cook", "?"], 80)}
    rows |= {"kg": [f"{number % 7}.5 kg" for number in range(80)], "x": rng.normal(size=80)}
    rows["kg"][:2] = ["155 lb"] * 2
    rows |= {"rain mm": rng.lognormal(size=80) * (np.arange(80) % 2)}
    pd.DataFrame(rows).assign(y=lambda frame: 2 * frame["x"]).to_csv(tmp_path / "rows.csv", index=False)
    done = run("fit", tmp_path / "rows.csv", "--out", tmp_path / "m.pv", "--epochs", "1")
    text = " ".join(f"{done.output} {caplog.text}".split())
    assert "column 'age' has -999 in" in text
    assert (
        "20 to 42. If such cells are missing, empty them. To keep them, name a family or a resolution" in text
    )
    assert "column 'job' has '?' among its labels. If such cells are missing, empty them." in text
    assert (
        "with a unit, first '2.5 kg'. Others, in 2 rows: '155 lb'. Write the numbers alone, to make them numbers."
        in text
    )
    assert "column 'y' is an exact affine function of 'x'." in text
    assert "Leave it out by --drop y, or round it and pass --resolution y=0.01." in text
    assert "column 'rain mm' has 0 in 50% of its cells" in text
    assert (
        "--drop 'rain mm', or round it and pass --resolution 'rain mm'=0.001; or make two columns, one"
        in text
    )
    assert "df[" not in text
