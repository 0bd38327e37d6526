"""A bar in a terminal, plain lines elsewhere, nothing where it isn't wanted."""

import io
import sys

from pyrovae import progress
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
