"""Checkpoint folders: the last state of a run, and the values that a resumed run has to match.

A run that ends early, by a signal, a power cut or ``kill -9``, leaves ``last.safetensors`` as last written. The
same call on the same folder resumes from there. The folder pins everything that the rest of the run depends on, so
that a resumed run equals an uninterrupted one bit for bit. Model, guide and loss are pinned by the numbers that
they compute, their ``Answers``, not by their code.
"""

from __future__ import annotations

import os
import platform
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import torch
from torch import Tensor

from pyrovae import arguments, storage
from pyrovae.refusals import Refused, bad_value

T = TypeVar("T")

#: Pins of a fit that earlier versions lack: the parameters that were frozen when it began, and the names of columns.
FROZEN = "the list of frozen parameters"
NAMES = "the list of column names"

#: Numbers that models and losses compute on a few rows, by name: float64, and the tolerance for equality relative to
#: 1 + their size.
Answers = Mapping[str, tuple[Tensor, float]]

_LAST = "last.safetensors"
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Runs on different numbers of ranks agree up to rounding, not bit for bit, so these may differ, too.
_BY_RANKS = {"ranks", "threads", "steps", "evaluations"}
_FORMAT = 6  # of the folders; formats 1 to 3 evaluated training rows after every epoch, 4 had no tail_error, 5 no missed
_ANEW = "Remove the file to begin anew, or choose another folder."
_PART = "Remove that file, so that the part is computed again, or choose another folder."
_SHOWN = 60  # characters of a value in a message
_LOOSEST = 100  # units in the last place by which processors may round differently


@dataclass(frozen=True)
class Checkpoint:
    """The folder of a long run's state, and how often the run writes it.

    Args:
        folder: for this run alone; created if missing.
        seconds: between two writes; 0 writes after every step. The state is also written when the run finishes, and
            when Ctrl-C or SIGTERM stops it. After ``kill -9``, an error or a second Ctrl-C, the last write remains.
    """

    folder: str | os.PathLike[str]
    seconds: float = 60.0

    def __post_init__(self) -> None:
        arguments.path("checkpoint", self.folder)
        arguments.positive("seconds", self.seconds, or_zero=True)

    @classmethod
    def of(cls, value: Any) -> Checkpoint | None:
        """Return a ``Checkpoint`` from a ``Checkpoint``, a folder or None; None stays None."""
        return value if value is None or isinstance(value, Checkpoint) else cls(value)


@dataclass
class StopRequest:
    """Which signal has asked a run to stop, if any."""

    by: int | None = None


class Run:
    """A locked folder and the state found in it.

    Attributes:
        folder: its path.
        state: the value last passed to ``save``, by this process or an earlier one; None in a new folder.
    """

    def __init__(self, checkpoint: Checkpoint, pins: Mapping[str, Any]) -> None:
        self.folder = Path(checkpoint.folder)
        self._path = self.folder / _LAST
        self._seconds = checkpoint.seconds
        self._pins = dict(pins) | machine()
        self._written = time.monotonic()
        self._best = 0
        self.state: Any = None
        if self._path.exists():
            self.state = _read(self._path, self._pins, "state", _ANEW)[0]

    @property
    def due(self) -> bool:
        """Return whether it is time to write."""
        return time.monotonic() - self._written >= self._seconds

    def save(self, state: Any) -> None:
        """Replace the state in the folder atomically. Takes the values that ``storage.pack`` takes."""
        _write(self._path, self._pins, "state", state)
        self._written = time.monotonic()

    def new_best(self, epoch: int) -> bool:
        """Return whether the best epoch has changed since the last call."""
        new, self._best = epoch != self._best, epoch
        return new


def _read(path: Path, pins: Mapping[str, Any], name: str, fix: str) -> tuple[Any, dict[str, Any]]:
    """Return the value of a name in a file, and what else it says; raise ``ValueError`` if the file has other pins."""
    arrays, meta = storage.read(path, "checkpoint", fix)
    _check_pins(path.parent, storage.unpack(meta["pins"], arrays), pins)
    return storage.unpack(meta[name], arrays), meta


def _write(path: Path, pins: Mapping[str, Any], name: str, value: Any, **more: int) -> None:
    arrays: dict[str, Tensor] = {}
    meta = {"pins": storage.pack(pins, arrays, "pins"), name: storage.pack(value, arrays, name), **more}
    storage.write(path, arrays, meta)


def _check_pins(folder: Path, pins: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` if the folder holds another run; the message says what differs."""
    if pins.get("format") != now["format"]:
        raise bad_value(
            "checkpoint",
            f"a folder of format {now['format']}, the format of this version",
            f"{folder} of format {pins.get('format', 1)}",
            "Finish that run with the version of pyrovae that started it, or choose another folder.",
        )
    earlier = {"ranks": 1, FROZEN: now.get(FROZEN), NAMES: now.get(NAMES)}  # earlier versions lack these pins
    pins, now = earlier | dict(pins), earlier | dict(now)
    free = set() if pins["ranks"] == now["ranks"] else _BY_RANKS
    different = [name for name in {**pins, **now} if pins.get(name) != now.get(name) and name not in free]
    if different:
        name = different[0]
        came, was = unlike(now.get(name), pins.get(name))
        more = f", and {len(different) - 1} more ({', '.join(different[1:4])})" if different[1:] else ""
        raise bad_value(
            "checkpoint",
            f"the run in {folder}",
            f"another: {name} is {came}, was {was}{more}",
            "Freeze the parameters that were frozen before the original call, and no others, or choose another folder."
            if name == FROZEN
            else "Repeat the original call to resume it, or choose another folder.",
        )


def rounding(dtype: torch.dtype) -> float:
    """Return the tolerance, relative to 1 + size, for equality of numbers computed in a dtype."""
    return max(_LOOSEST * torch.finfo(dtype).eps, 1e-9)


def check_answers(folder: Path, kept: Answers, now: Answers, more: str = "") -> None:
    """Raise an error if model, guide or loss compute other numbers than those that wrote the folder.

    ``more`` ends the message.

    Raises:
        ValueError: names what differs, with the first different number.
    """
    for name, (value, tolerance) in now.items():
        before = kept[name][0] if name in kept else None
        if before is None or before.shape != value.shape:
            raise _other(folder, f"{name} is of shape {tuple(value.shape)}, was of another shape", more)
        same = torch.isclose(value, before, rtol=tolerance, atol=tolerance, equal_nan=True)
        if not bool(same.all()):
            a, b = float(value[~same][0]), float(before[~same][0])
            digits = next((d for d in range(4, 17) if f"{a:.{d}g}" != f"{b:.{d}g}"), 17)
            raise _other(
                folder,
                f"{name} is {a:.{digits}g}, was {b:.{digits}g}, for the same weights, rows and noise "
                f"({int((~same).sum())} of {same.numel()} numbers differ)",
                more,
            )


def _other(folder: Path, came: str, more: str) -> Refused:
    return bad_value(
        "checkpoint",
        f"the run in {folder}",
        f"another: {came}",
        f"Build model, guide and loss as in that run to resume it, or choose another folder. {more}".rstrip(),
    )


class Parts:
    """Finished parts of a long evaluation. Each part gets its own file when it is done.

    Args:
        folder: for this evaluation alone; created if missing.
        pins: the values that all parts depend on.
        answers: the numbers that the evaluated model computes.
        number_of_threads: how many threads a new folder's parts are computed with.

    Attributes:
        threads: how many threads this folder's parts are computed with.

    Raises:
        OSError: the folder cannot be written to.
        ValueError: the folder holds parts of another evaluation (the message says what differs), or a damaged file.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        pins: Mapping[str, Any],
        answers: Answers,
        number_of_threads: int,
    ) -> None:
        self._folder = Path(Checkpoint(folder).folder)
        self._pins = dict(pins) | machine()
        with storage.lock(self._folder):
            known = self._folder / "evaluation.safetensors"
            if known.exists():
                kept, meta = _read(known, self._pins, "value", _ANEW)
                check_answers(self._folder, kept, answers)
                # A version that kept no number used all threads.
                self.threads: int = meta.get("threads", torch.get_num_threads())
            else:
                self.threads = number_of_threads
                _write(known, self._pins, "value", dict(answers), threads=number_of_threads)

    def __contains__(self, number: int) -> bool:
        """Return whether part ``number`` is finished."""
        return self._path(number).exists()

    def keep(self, number: int, compute: Callable[[], T]) -> T:
        """Return part ``number``, read from its file or computed and written. Takes what ``storage.pack`` takes."""
        path = self._path(number)
        if path.exists():
            value, meta = _read(path, self._pins, "value", _PART)
            kept = meta.get("number", number)  # an earlier version kept no number
            if kept != number:
                raise bad_value(
                    "checkpoint",
                    f"part {number} of the evaluation in {path}",
                    f"part {kept}, under another name",
                    _PART,
                )
            return value
        value = compute()
        _write(path, self._pins, "value", value, number=number)
        return value

    def _path(self, number: int) -> Path:
        return self._folder / f"part-{number}.safetensors"


@contextmanager
def running(checkpoint: Checkpoint, pins: Mapping[str, Any]) -> Iterator[Run]:
    """Lock a run's folder for a block, which checks ``due`` between two steps and saves.

    Raises:
        OSError: the folder cannot be written to, or another process holds it.
        ValueError: the folder holds another run (the message says what differs), or a damaged file.
    """
    with storage.lock(checkpoint.folder):
        yield Run(checkpoint, pins)


@contextmanager
def signals(numbers: Sequence[int] = _SIGNALS) -> Iterator[StopRequest]:
    """Run a block in which SIGINT and SIGTERM, or one of them, only ask it to stop.

    SIGTERM ends the process as usual after the block. Python catches signals only in the main thread; in other threads
    they act at once.
    """
    asked, before = StopRequest(), {}

    def stop(number: int, frame: FrameType | None) -> None:
        if asked.by is not None and number == signal.SIGINT:
            raise KeyboardInterrupt  # a second Ctrl-C does not wait for the step
        asked.by = number

    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if asked.by == signal.SIGTERM:
        signal.raise_signal(signal.SIGTERM)


def machine() -> dict[str, Any]:
    """Return the properties of machine and libraries that change the bits of a computation."""
    return {
        "format": _FORMAT,
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "onednn": torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled,
        "processor": platform.machine(),
    }


def unlike(value: Any, other: Any) -> tuple[str, str]:
    """Return two different values as they appear in a message: at most 60 characters around their first difference."""
    texts = repr(value), repr(other)
    if max(map(len, texts)) <= _SHOWN:
        return texts
    at = next((n for n, (a, b) in enumerate(zip(*texts, strict=False)) if a != b), min(map(len, texts)))
    start = max(texts[0].rfind(" ", 0, max(at - _SHOWN // 3, 0)) + 1, at - _SHOWN // 2, 0)
    end = start + _SHOWN - 2
    first, second = (
        f"{'…' if start else ''}{text[start:end]}{'…' if len(text) > end else ''}" for text in texts
    )
    return first, second
