"""Progress with rate and time left: a bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any


class Progress:
    """Counts steps of a known total and shows the count, the rate and the time left.

    Args:
        description: what is running.
        total: how many steps there are.
        unit: the name of a step.
        show: False shows nothing.

    A context manager; ``advance`` counts. If standard error is a terminal, it shows a bar (rich). If it is a file or a
    pipe, it prints a line at most every ten seconds, and one at the end. If nothing was counted, it leaves nothing.

    The time left follows from the steps after the first ones that were counted. Those may include work that is done once,
    such as compiling, or come from an earlier run.
    """

    _SECONDS_BETWEEN_LINES = 10.0

    def __init__(self, description: str, total: int, unit: str, show: bool = True) -> None:
        self.description, self.total, self.unit, self.show = description, total, unit, show
        self.done = 0.0
        self._note = ""
        self._bar: Any = None
        self._started = self._last_line = time.monotonic()
        self._first: tuple[float, float] | None = None

    def __enter__(self) -> Progress:
        self._started = self._last_line = time.monotonic()
        if self.show and sys.stderr.isatty():
            from rich import progress
            from rich.console import Console

            self._bar = progress.Progress(
                progress.TextColumn("{task.description}"),
                progress.BarColumn(),
                progress.MofNCompleteColumn(),
                progress.TextColumn("{task.fields[rate]}"),
                progress.TimeRemainingColumn(),
                progress.TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
            )
            self._bar.start()
            self._task = self._bar.add_task(self.description, total=self.total, rate="", note="")
        return self

    def advance(self, steps: float = 1, note: str = "") -> None:
        """Count ``steps`` more, or parts of steps, and show ``note`` next to the rate until the next note."""
        self.done += steps
        self._first = self._first or (time.monotonic(), self.done)
        self._note = note or self._note
        if self._bar is not None:
            self._bar.update(self._task, advance=steps, rate=self._rate(), note=self._note)
        elif self.show and time.monotonic() - self._last_line > self._SECONDS_BETWEEN_LINES:
            self._line()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.update(self._task, visible=self.done > 0)
            self._bar.stop()
        elif self.show and self.done:
            self._line()

    def _seconds_a_step(self) -> float:
        """Return the time of a step after the first ones that were counted; of all steps if there are no others."""
        now = time.monotonic()
        since, before = self._first or (now, 0.0)
        if self.done == before:
            since, before = self._started, 0.0
        return max(now - since, 1e-9) / (self.done - before) if self.done else float("inf")

    def _rate(self) -> str:
        return f"{1 / self._seconds_a_step():.3g} {self.unit}/s"

    def _line(self) -> None:
        self._last_line = time.monotonic()
        parts = [f"{self.description}: {int(self.done + 1e-6)}/{self.total}", self._rate()]
        known = self._first is not None and self.done > self._first[1]
        if known or self.done >= self.total:
            parts.append(f"{self._seconds_a_step() * (self.total - self.done):.0f} s left")
        print(", ".join([*parts, self._note] if self._note else parts), file=sys.stderr)
