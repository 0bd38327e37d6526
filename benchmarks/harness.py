"""Time callables side by side: alternating, in one process, every repetition kept.

Two runs on a shared machine are not comparable, two neighbours within a run are. So the peers take turns
(A B C A B C …) after a warm-up, and a ratio is taken round by round, then its median. With ``--wait``, a run
in which other processes took more than a tenth of the cores is done again: two threads that wait for each
other on a busy machine can take ten times as long, and which peer it hits is chance.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import multiprocessing
import os
import platform
import statistics
import sys
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy
import pyro
import torch


def seconds(call: Callable[[], object]) -> float:
    """Return how long a call takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def read(path: Path) -> dict[str, Any]:
    """Return the results that a file holds."""
    return json.loads(path.read_text(encoding="utf-8"))


def write(path: Path, found: dict[str, Any]) -> None:
    """Replace a file of results, all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".tmp")
    new.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    os.replace(new, path)


@dataclass(frozen=True)
class Peer:
    """One way to do the job.

    Attributes:
        name: what the table calls it.
        run: does the job once and returns its answer, one number on which the peers should agree, where there
            is one; None of a peer that is not installed.
        units: how many units of work (steps, rows × samples) a run is.
    """

    name: str
    run: Callable[[], float | Clocked | None] | None
    units: int


@dataclass(frozen=True)
class Clocked:
    """What a run returns that has taken its own time, because not all it did is to be counted."""

    answer: float
    seconds: float


@dataclass(frozen=True)
class Timing:
    """What was measured of one peer.

    Attributes:
        name: the peer's.
        units: the peer's.
        seconds: wall time of every run, in the order of the rounds.
        median: of ``seconds`` by unit, in the table's own unit of time.
        others: share of the cores that other processes took, of every run.
        ratio: median, smallest and largest over the rounds of its time a unit to the reference's.
        answer: of the last run, where it has one.
    """

    name: str
    units: int
    seconds: list[float]
    others: list[float]
    median: float
    ratio: tuple[float, float, float]
    answer: float | None


@dataclass(frozen=True)
class Table:
    """Timings of peers that did the same job.

    Attributes:
        title: what the job is.
        unit: what a figure is, such as "ms a step".
        reference: name of the peer that ratios are taken to.
        answer: what the peers' answers are.
        timings: one a peer.
        missing: names of peers that are not installed.
    """

    title: str
    unit: str
    reference: str
    answer: str
    timings: list[Timing]
    missing: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """At most 80 columns wide for names of up to 30 characters."""
        lines = [
            f"{self.title}; {len(self.timings[0].seconds)} rounds",
            "",
            f"| {'':30} | {self.unit:>14} | ratio (lowest-highest) |",
            f"|{'-' * 32}|{'-' * 15}:|{'-' * 23}:|",
        ]
        for timing in self.timings:
            middle, low, high = timing.ratio
            ratio = f"{middle:.2f} ({low:.2f}-{high:.2f})"
            lines.append(f"| {timing.name:30} | {timing.median:14.4g} | {ratio:>22} |")
        lines += [f"| {name:30} | {'not installed':>14} | {'':22} |" for name in self.missing]
        answers = ", ".join(f"{t.answer:.2f}" for t in self.timings if t.answer is not None)
        others = max(max(timing.others) for timing in self.timings)
        lines += [
            "",
            textwrap.fill(f"{self.answer}: {answers}", 80),
            f"other processes: at most {others:.0%} of the cores",
        ]
        return "\n".join(lines)

    def median(self, name: str) -> float:
        """The median of the peer called ``name``."""
        return self._of(name).median

    def times(self, name: str, as_long_as: str) -> float | None:
        """Median over the rounds of one peer's time a unit to another's; None where one is not installed."""
        if {name, as_long_as} & set(self.missing):
            return None
        one, other = self._of(name), self._of(as_long_as)
        rounds = zip(one.seconds, other.seconds, strict=True)
        return statistics.median(a / b for a, b in rounds) * other.units / one.units

    def _of(self, name: str) -> Timing:
        return next(timing for timing in self.timings if timing.name == name)


@dataclass(frozen=True)
class Aim:
    """One line of what has to be shown.

    Attributes:
        measure: what is measured.
        value: what came out; None where it could not be measured.
        relation: "≤" or "≥".
        target: what ``value`` has to be at most or at least, if anything.
        unit: of both.
    """

    measure: str
    value: float | None
    relation: str = "≤"
    target: float | None = 1.0
    unit: str = "×"

    @property
    def met(self) -> bool | None:
        """None where nothing was measured."""
        if self.value is None or self.target is None:
            return None
        return self.value <= self.target if self.relation == "≤" else self.value >= self.target

    def __str__(self) -> str:
        value = "not measured" if self.value is None else f"{self.value:.3g} {self.unit}"
        met = {None: "", True: "yes", False: "NO"}[self.met]
        target = "" if self.target is None else f"{self.relation} {self.target:.3g} {self.unit}"
        return f"| {self.measure:44} | {value:>12} | {target:>10} | {met:3} |"


def aims_table(aims: Sequence[Aim]) -> str:
    """Every aim, 80 columns wide for measures of up to 44 characters."""
    head = f"| {'':44} | {'measured':>12} | {'target':>10} | met |"
    return "\n".join([head, f"|{'-' * 46}|{'-' * 13}:|{'-' * 11}:|-----|", *map(str, aims)])


#: Units of time a second, by the first word of a table's unit.
_A_SECOND = {"s": 1.0, "ms": 1e3, "µs": 1e6}


@dataclass(frozen=True)
class Options:
    """The options that every script has: see ``arguments``."""

    rounds: int
    wait: float
    json: Path | None

    @classmethod
    def of(cls, parsed: argparse.Namespace) -> Options:
        return cls(parsed.rounds, parsed.wait, parsed.json)


def compare(
    title: str,
    peers: Sequence[Peer],
    *,
    options: Options,
    reference: str,
    unit: str,
    answer: str,
    warm_up: bool = True,
) -> Table:
    """Run every peer once to warm up, then ``options.rounds`` times in turn; see ``Table`` for the rest."""
    _settle_allocator()
    missing = [peer.name for peer in peers if peer.run is None]
    peers = [peer for peer in peers if peer.run is not None]
    for peer in peers if warm_up else []:
        _timed(peer)
    seconds: dict[str, list[float]] = {peer.name: [] for peer in peers}
    others: dict[str, list[float]] = {peer.name: [] for peer in peers}
    answers: dict[str, float | None] = {}
    deadline = time.monotonic() + options.wait
    for _ in range(options.rounds):
        for peer in peers:
            taken, share, answers[peer.name] = _timed(peer)
            while share > _DISTURBED and time.monotonic() < deadline:
                _wait_for_quiet(deadline)
                taken, share, answers[peer.name] = _timed(peer)
            seconds[peer.name].append(taken)
            others[peer.name].append(share)
    a_unit = {peer.name: [s / peer.units for s in seconds[peer.name]] for peer in peers}
    timings = []
    for peer in peers:
        ratios = [own / other for own, other in zip(a_unit[peer.name], a_unit[reference], strict=True)]
        timings.append(
            Timing(
                name=peer.name,
                units=peer.units,
                seconds=[round(s, 6) for s in seconds[peer.name]],
                others=[round(share, 3) for share in others[peer.name]],
                median=statistics.median(a_unit[peer.name]) * _A_SECOND[unit.split()[0]],
                ratio=(statistics.median(ratios), min(ratios), max(ratios)),
                answer=answers[peer.name],
            )
        )
    return Table(title, unit, reference, answer, timings, missing)


def quickest(candidates: Mapping[Any, Callable[[], Any]]) -> Any:
    """The key of the candidate whose second run was the quickest; the first warms it up."""
    seconds = {}
    for name, run in candidates.items():
        run()
        started = time.perf_counter()
        run()
        seconds[name] = time.perf_counter() - started
    return min(seconds, key=seconds.__getitem__)


@functools.cache
def optional(module: str) -> ModuleType | None:
    """A module, or None where it needs something that is not installed, which is said."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        print(f"{module}: {error}", file=sys.stderr)
        return None


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function of a module returns in a process of its own, which nothing has warmed up."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def _settle_allocator() -> None:
    """Free one block of just under 32 MB.

    glibc keeps what a process frees, up to twice the largest block it has freed so far (32 MB at most), and
    hands the rest back, to be faulted in again at the next allocation: 1 to 2 µs a page. So a
    peer's time would depend on what ran before it; now it is the same for all and for every order.
    """
    block = torch.empty(33_000_000, dtype=torch.uint8)  # no page of it is touched
    del block


# Share of the cores that other processes may take of a run that is kept.
_DISTURBED = 0.1


def _wait_for_quiet(deadline: float) -> None:
    """Sleep until the others have left the cores alone for two seconds, or the deadline is there."""
    while time.monotonic() < deadline and _timed(_PAUSE)[1] > _DISTURBED:
        pass


def _pause() -> float:
    time.sleep(2.0)
    return 0.0


_PAUSE = Peer("pause", _pause, 1)


def _timed(peer: Peer) -> tuple[float, float, float | None]:
    """Seconds a run took, the share of the cores that other processes took meanwhile, and its answer."""
    own, machine, started = _own_time(), _machine_time(), time.perf_counter()
    answer = None if peer.run is None else peer.run()
    taken = time.perf_counter() - started
    others = _machine_time() - machine - (_own_time() - own)
    share = max(0.0, others / (taken * (os.cpu_count() or 1)))
    if isinstance(answer, Clocked):
        return answer.seconds, share, answer.answer
    return taken, share, answer


def _own_time() -> float:
    """Seconds of all cores in which this process computed, or one that it started and that has ended."""
    return sum(os.times()[:4])


def _machine_time() -> float:
    """Seconds of all cores in which anybody computed; without /proc, only this process is known of."""
    if not _STAT.exists():
        return _own_time()
    user, nice, system, _, _, irq, softirq, steal = map(int, _STAT.read_text().split("\n")[0].split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


_STAT = Path("/proc/stat")


def arguments(description: str | None, rounds: int) -> argparse.ArgumentParser:
    """A parser with the options that every script has; ``description`` is its docstring."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rounds", type=int, default=rounds, help=f"timed runs of every peer (default {rounds})"
    )
    parser.add_argument(
        "--wait",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="for each table, how long to wait and repeat runs that other processes disturbed (default 0)",
    )
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    return parser


def environment() -> dict[str, Any]:
    """Where figures come from, as far as it bears on them."""
    return {
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *map(_local, sys.argv[1:])]),
        "date": date.today().isoformat(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pyro": pyro.__version__,
        "numpy": numpy.__version__,
    }


def report(tables: Sequence[Table], path: Path | None) -> None:
    """Print where the figures come from, and write everything to ``path`` where there is one."""
    found = environment()
    versions = ", ".join(f"{name} {found[name]}" for name in ("python", "torch", "pyro", "numpy"))
    print(f"{found['processor']}, {found['cores']} cores, {found['threads']} threads; {versions}")
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(found | {"tables": [asdict(table) for table in tables]}, indent=1)
        path.write_text(text + "\n", encoding="utf-8")


def report_aims(tables: Sequence[Table], aims: Sequence[Aim], path: Path | None) -> None:
    """Print the aims and the host's load, and ``report``; the file gets them, too."""
    print(aims_table(aims), f"load {os.getloadavg()}", sep="\n\n")
    report(tables, path)
    if path is not None:
        judged = [asdict(aim) | {"met": aim.met} for aim in aims]
        write(path, read(path) | {"aims": judged, "load": os.getloadavg()})


def _local(argument: str) -> str:
    """An argument without the folders that lie above this project."""
    option, equals, value = argument.rpartition("=")
    return f"{option}{equals}{Path(value).name if Path(value).is_absolute() else value}"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
