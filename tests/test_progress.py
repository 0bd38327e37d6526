"""A bar in a terminal, plain lines elsewhere, nothing where it isn't wanted."""

import io
import sys

import numpy as np
import pytest
import torch
from test_outliers import MEANS, clusters, exact_clusters

import pyrovae as pv
from pyrovae import outlying, progress
from pyrovae.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def count(monkeypatch, stream, show=True):
    monkeypatch.setattr(sys, "stderr", stream)
    with Progress("fit", 3, "steps", show) as bar:
        for step in range(3):
            bar.advance(note=f"loss {step}")
    return stream.getvalue()


def test_plain_lines_where_there_is_no_terminal(monkeypatch):
    output = count(monkeypatch, io.StringIO())
    assert output.startswith("fit: 3/3, ")
    assert output.endswith("steps/s, 0 s left, loss 2\n")
    assert output.count("\n") == 1


def test_a_line_every_so_often(monkeypatch):
    monkeypatch.setattr(progress.Progress, "_SECONDS_BETWEEN_LINES", 0.0)
    assert count(monkeypatch, io.StringIO()).count("\n") == 4


def test_a_bar_in_a_terminal(monkeypatch):
    output = count(monkeypatch, Terminal())
    assert "fit" in output
    assert "3/3" in output
    assert "steps/s" in output
    assert "loss 2" in output


def test_nothing_where_it_is_not_wanted(monkeypatch):
    assert count(monkeypatch, Terminal(), show=False) == ""


def test_time_left_follows_from_steps_after_the_first(monkeypatch):
    """The first step compiles for a minute, or comes from an earlier run; the other nine take a second each."""
    now = {"time": 0.0}
    monkeypatch.setattr(progress.time, "monotonic", lambda: now["time"])
    monkeypatch.setattr(progress.Progress, "_SECONDS_BETWEEN_LINES", 0.5)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with Progress("fit", 10, "steps") as bar:
        now["time"] = 60.0
        bar.advance()
        for _ in range(3):
            now["time"] += 1.0
            bar.advance()
        now["time"] += 0.5
        bar.advance(0.5)
    lines = sys.stderr.getvalue().splitlines()
    assert lines[0] == "fit: 1/10, 0.0167 steps/s"
    assert lines[3] == "fit: 4/10, 1 steps/s, 6 s left"
    assert lines[-1] == "fit: 4/10, 1 steps/s, 6 s left"


def test_nothing_if_nothing_was_counted(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with Progress("fit", 3, "steps"):
        pass
    assert stream.getvalue() == ""


def test_auto_counts_the_work_on_rows_before_their_answers(monkeypatch, capsys):
    monkeypatch.setattr(progress.Progress, "_SECONDS_BETWEEN_LINES", 0.0)
    vae = pv.VAE.mlp(5, latent_dim=2, hidden_dims=(8,))
    x = (torch.rand(20, 5) < 0.5).float()
    pv.log_evidence(vae, x, method="auto", check=False, progress=True)
    counts = [int(line.split()[2].partition("/")[0]) for line in capsys.readouterr().err.splitlines()]
    assert counts == sorted(counts)
    assert counts[-1] == 20
    assert len(set(counts)) > 2
    assert 0 < counts[0] < 20


@pytest.mark.parametrize("progress", [False, True])
@pytest.mark.parametrize(
    ("name", "model", "last"),
    [
        ("embed", "VAE", "embed: 12/12, "),
        ("impute", "VAE", "log P(x): 12/12, "),
        ("outliers", "VAE", "log P(x): 12/12, "),
        ("outliers", "sums over z", "log P(x): 12/12, "),
        ("outliers", "baseline", "outliers: 2/2, "),
    ],
)
def test_rows_are_counted_to_the_last(name, model, last, progress, capsys):
    x = MEANS[torch.arange(12) % 2] + torch.randn(12, 2, generator=torch.Generator().manual_seed(0))
    if model == "baseline":
        made = pv.baselines.PPCA(1).fit(x)
    elif model == "VAE":
        made = pv.VAE.mlp(2, 1, "gaussian", hidden_dims=(), missing=True)
    else:
        made = pv.LatentVariableModel(clusters, exact_clusters)
    if name == "impute":
        x[:, 0] = torch.nan
    options = {"method": "importance"} if model == "VAE" and name != "embed" else {}
    getattr(pv, name)(made, x, num_samples=100, check=False, progress=progress, **options)
    lines = capsys.readouterr().err.splitlines()
    assert bool(lines) == progress
    assert all(line.startswith((last, "cells again: ")) for line in lines)


def test_cells_scored_again_are_counted(monkeypatch, capsys):
    monkeypatch.setattr(outlying, "verdicts", lambda k, _: np.full(k.shape, "another method"))
    vae = pv.VAE.mlp(3, 1, "gaussian", hidden_dims=(), missing=True)
    x = torch.zeros(8, 3)
    pv.outliers(vae, x, method="importance", num_samples=100, check=False, progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == ["log P(x): 8/8", "cells again: 24/24"]
