"""Does it hold when things go wrong? Killed runs, damaged files, neighbours in a process, more rows than memory.

python benchmarks/reliability.py --json benchmarks/results/reliability.json

A line says how often something was tried, how often it broke, and where there is one, how often the same breaks in
a control that lacks the precaution. ``kill -9`` ends processes, not power: what reaches the disk when a machine goes
down rests on the order of writing, which has a line of its own. Needs Linux and the packages of the tests.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import functools
import json
import multiprocessing
import os
import random
import secrets
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO
from xml.etree import ElementTree

import harness
import numpy as np
import torch

import pyrovae as pv
from pyrovae import encoders, likelihoods, priors, saving, storage
from pyrovae.training import loop

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))


@dataclass(frozen=True)
class Line:
    """What was tried.

    Attributes:
        claim: what should hold.
        tried: how often it was put to the test, in ``units``.
        broken: how often it did not hold.
        control: the same without the precaution, in words; "" where there is none.
        figures: what else was seen.
    """

    claim: str
    tried: int
    units: str
    broken: int
    control: str = ""
    figures: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """At most 80 columns wide."""
        lines = [_columns(self.claim, f"{self.tried} {self.units}", str(self.broken))]
        lines += [f"  control: {self.control}"] if self.control else []
        lines += [f"  {name}: {value}" for name, value in self.figures.items()]
        return "\n".join(lines)


def _columns(claim: str, tried: str, broken: str) -> str:
    return f"{claim:54}{tried:>18}{broken:>8}"


# ---------------------------------------------------------------------------------------------------------
# kill -9


def train(folder: Path | None, result: Path) -> None:
    """A short fit with everything that a resumed one has to take up again; its answer, to the last bit, in a file."""
    rows = (torch.rand(160, 20, generator=torch.Generator().manual_seed(0)) < 0.4).float()
    torch.manual_seed(0)
    vae = pv.VAE(
        priors.StandardNormal(4),
        likelihoods.Bernoulli(pv.MLP(4, (256,), 20, normalization="batch", dropout=0.3)),
        encoders.DiagonalNormal(pv.MLP(20, (256,), 8, dropout=0.3)),
    )
    history = pv.fit(
        vae,
        rows[:128],
        epochs=8,
        batch_size=16,
        lr=0.01,
        scheduler=functools.partial(torch.optim.lr_scheduler.StepLR, step_size=2, gamma=0.5),
        kl_warmup=2,
        validation=rows[128:],
        patience=2,
        checkpoint=None if folder is None else pv.Checkpoint(folder, seconds=0),
    )
    answer = {
        "tensors": saving.tensors_of(vae),
        "records": [{k: v for k, v in record.items() if k != "seconds"} for record in history.records],
        "end": (history.stopped, history.best_epoch),
    }
    arrays: dict[str, torch.Tensor] = {}
    storage.write(result, arrays, {"answer": storage.pack(answer, arrays, "answer")})


@contextmanager
def in_place(path: Path, expected: str) -> Iterator[BinaryIO]:
    """The control: over the earlier file, flushed, but neither beside it nor renamed."""
    with open(path, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def forked(work: Callable[[], None], delay: float | None = None) -> bool:
    """Run ``work`` in a child of this process; after ``delay`` seconds, ``kill -9``. Whether it was killed."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if delay is not None:
        ended = os.pidfd_open(child)
        select.select([ended], [], [], delay)
        os.close(ended)
        os.kill(child, signal.SIGKILL)  # a child that has ended is a zombie until it is waited for
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return True
    if status:
        raise RuntimeError(f"the child ended by itself with status {status}")
    return False


def preload(result: Path) -> float:
    """Import here what a fit imports while it runs, so that children start with it; seconds that a fit then takes."""
    listed = result.with_name("modules")

    def work() -> None:
        before = set(sys.modules)
        train(None, result)
        listed.write_text("\n".join(name for name in sys.modules if name not in before))

    forked(work)
    for name in listed.read_text().split():
        with contextlib.suppress(ImportError):  # a name that a library made up for itself
            __import__(name)
    started = time.monotonic()
    forked(lambda: train(result.with_name("timed"), result))
    return time.monotonic() - started


def unreadable(folder: Path) -> int:
    """Files of a checkpoint that ``storage.read`` refuses."""
    broken = 0
    for path in folder.glob("*.safetensors"):
        try:
            storage.read(path)
        except ValueError:
            broken += 1
    return broken


@dataclass
class Kills:
    """Counts of killed and finished runs.

    Attributes:
        all: kills.
        training: those of them that came after the attempt had written a checkpoint.
        writing: those that left a half-written file beside the checkpoint.
        broken: those that left an unreadable checkpoint.
        finished: runs that came to their end.
        killed_runs: those of them that had been killed at least once.
        different: those of them whose answer is not the uninterrupted run's, bit for bit, or that left litter.
    """

    all: int = 0
    training: int = 0
    writing: int = 0
    broken: int = 0
    finished: int = 0
    killed_runs: int = 0
    different: int = 0


def kill(
    base: Path, whole: bytes, seconds: float, count: int, random_times: random.Random, atomic: bool
) -> Kills:
    """Kill and resume runs until ``count`` kills fell into training; ``seconds`` is what a whole run takes.

    An attempt lives for half of that at most: where the next one begins, the last had come to, so that kills are
    spread over all of the run.
    """
    kills, folder, result, before = Kills(), base / "run", base / "answer", 0

    def work() -> None:
        if not atomic:
            storage.replacing = in_place
        train(folder, result)

    while kills.training < count:
        last = folder / "last.safetensors"
        start = last.stat().st_mtime_ns if last.exists() else 0
        if forked(work, random_times.uniform(0.0, 0.5 * seconds)):
            kills.all += 1
            before += 1
            kills.training += last.exists() and last.stat().st_mtime_ns != start
            kills.writing += any(folder.glob(".pyrovae-*.tmp"))
            broken = unreadable(folder)
            kills.broken += broken > 0
            if not broken:
                continue
        else:
            names = {path.name for path in folder.iterdir()}
            same = result.read_bytes() == whole
            kills.finished += 1
            kills.killed_runs += before > 0
            kills.different += not same or names != {".lock", "last.safetensors", "best.safetensors"}
        for path in [*folder.iterdir(), result]:
            path.unlink(missing_ok=True)
        before = 0
    return kills


def killed(arguments: argparse.Namespace) -> Iterator[Line]:
    """``kill -9`` of fits that write a checkpoint after every step."""
    random_times = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        seconds = preload(base / "answer")
        forked(lambda: train(None, base / "whole"))
        whole = (base / "whole").read_bytes()
        kills = kill(base, whole, seconds, arguments.kills, random_times, atomic=True)
        control = kill(base, whole, seconds, max(1, arguments.kills // 4), random_times, atomic=False)
        size = len((base / "timed" / "last.safetensors").read_bytes())
    if not control.broken:
        raise RuntimeError("the control broke no file: the kills do not reach what they should")
    yield Line(
        "a checkpoint is readable after kill -9 in training",
        kills.training,
        "kills",
        kills.broken,
        f"written in place, {control.broken} of {control.training}",
        {
            "bytes a checkpoint": size,
            "kills before an attempt's first write, beside these": kills.all - kills.training,
            "kills that left a half-written file beside it": kills.writing,
        },
    )
    yield Line("a killed and resumed run ends on the same bits", kills.killed_runs, "runs", kills.different)


# ---------------------------------------------------------------------------------------------------------
# Files


@contextmanager
def counted() -> Iterator[dict[str, int]]:
    """Count what ``storage.read`` refuses and what it reads."""
    counts, read = {"refused": 0, "read": 0}, storage.read

    def watched(path: Any) -> Any:
        try:
            found = read(path)
        except ValueError:
            counts["refused"] += 1
            raise
        counts["read"] += 1
        return found

    storage.read = watched
    try:
        yield counts
    finally:
        storage.read = read


def files(arguments: argparse.Namespace) -> Iterator[Line]:
    """The tests of ``tests/test_storage.py``, counted."""
    import pytest
    import test_storage
    from safetensors import torch as safetensors

    def run(test: Callable[..., None], *more: Any) -> dict[str, int]:
        with tempfile.TemporaryDirectory() as folder, counted() as counts:
            test(Path(folder), *more)
        return counts

    with pytest.MonkeyPatch.context() as patch:
        run(test_storage.test_the_order_of_writing, patch)
    yield Line("flush the file, rename, flush the folder: in order", 1, "write", 0)

    silent, load = 0, safetensors.load_file

    def watched(*args: Any) -> Any:
        nonlocal silent
        found = load(*args)
        silent += 1
        return found

    safetensors.load_file = watched
    try:
        flips = run(test_storage.test_every_flipped_bit_is_refused)
    finally:
        safetensors.load_file = load
    yield Line(
        "a file with one bit flipped is refused",
        sum(flips.values()),
        "flips",
        flips["read"],
        f"safetensors alone reads {silent}",
    )
    cuts = run(test_storage.test_every_truncation_and_extension_is_refused)
    whole = 1  # the test reads the file itself once, to see that it is good
    yield Line(
        "a file cut at any length, or longer, is refused",
        sum(cuts.values()) - whole,
        "lengths",
        cuts["read"] - whole,
    )
    (kinds,) = (
        mark.args[1]
        for mark in test_storage.test_foreign_files_are_refused_and_nothing_is_run.pytestmark
        if mark.name == "parametrize"
    )
    foreign = {"refused": 0, "read": 0}
    for kind in kinds:
        for name, count in run(test_storage.test_foreign_files_are_refused_and_nothing_is_run, kind).items():
            foreign[name] += count
    run(test_storage.test_the_payload_would_run)
    yield Line(
        "a foreign file is refused, its payload not run",
        sum(foreign.values()),
        "files",
        foreign["read"],
        "torch.load(weights_only=False) runs it",
    )


# ---------------------------------------------------------------------------------------------------------
# Two models in one process


class Turns:
    """Hands the one right to run from thread to thread, so that only the order of the steps is shared."""

    def __init__(self, number: int) -> None:
        self._turn = threading.Condition()
        self._waiting = list(range(number))

    @contextmanager
    def take(self, me: int) -> Iterator[None]:
        """Run a block from one's first turn to its end."""
        with self._turn:
            self._turn.wait_for(lambda: self._waiting[0] == me)
        try:
            yield
        finally:
            with self._turn:
                self._waiting.remove(me)
                self._turn.notify_all()

    def next(self, me: int) -> None:
        """Let the others have theirs."""
        with self._turn:
            self._waiting.append(self._waiting.pop(0))
            self._turn.notify_all()
            self._turn.wait_for(lambda: self._waiting[0] == me)


def interleaved(fits: list[Callable[[], Any]]) -> tuple[list[Any], int]:
    """Run fits at once that take turns after every step; what they return, and how many steps there were."""
    turns, take, found, steps = Turns(len(fits)), loop.step, [None] * len(fits), 0
    numbers: dict[int, int] = {}

    def step(*args: Any) -> float:
        nonlocal steps
        steps += 1
        turns.next(numbers[threading.get_ident()])
        return take(*args)

    def run(number: int) -> None:
        numbers[threading.get_ident()] = number
        with turns.take(number):
            found[number] = fits[number]()

    loop.step = step
    try:
        threads = [threading.Thread(target=run, args=(number,)) for number in range(len(fits))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        loop.step = take
    if None in found:
        raise RuntimeError("a fit among others failed")
    return found, steps


def neighbours(arguments: argparse.Namespace) -> Iterator[Line]:
    """Fits that take turns step by step, each against itself alone."""
    from test_checkpoints import CASES, assert_same
    from test_checkpoints import fit as fit_case

    def fit(case: str, seed: int) -> tuple[pv.LatentVariableModel, pv.History]:
        pair, history = fit_case(case, seed=seed)
        return pair, copy.deepcopy(history)

    # Every case twice: the same names of parameters, and the same modules' code, with another seed.
    fits = [functools.partial(fit, case, seed) for case in CASES for seed in (0, 1)]
    alone = [one() for one in fits]
    together, steps = interleaved(fits)
    different = 0
    for one, other in zip(alone, together, strict=True):
        try:
            assert_same(one, other)
        except AssertionError:
            different += 1
    try:
        assert_same(alone[0], together[1])
    except AssertionError:
        yield Line(
            "fits that take turns step by step end as if alone",
            len(fits),
            "fits",
            different,
            figures={"steps, in turn": steps},
        )
    else:
        raise RuntimeError("fits of two seeds are called the same: the comparison sees nothing")


# ---------------------------------------------------------------------------------------------------------
# More rows than one wants to copy


def anonymous() -> int:
    """Bytes of this process's memory that no file stands behind: all but the mapped array and the libraries."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return 1024 * int(line.split()[1])
    raise OSError("no RssAnon in /proc/self/status")


@contextmanager
def peak() -> Iterator[dict[str, float]]:
    """Most anonymous memory while a block runs beyond what there was before it, in MB, and its seconds."""
    found, start, done = {"MB": 0.0}, anonymous(), threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            found["MB"] = max(found["MB"], (anonymous() - start) / 1e6)

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.monotonic()
    try:
        yield found
    finally:
        found["seconds"] = time.monotonic() - started
        done.set()
        watcher.join()


def on_mapped(kind: str, path: str, rows: int, columns: int, num_samples: int) -> dict[str, float]:
    """Fit for an epoch, or evaluate, from a file; in a process of its own, which has held no more before."""
    torch.set_num_threads(1)
    x = np.memmap(path, dtype=np.float32, mode="r", shape=(rows, columns))
    torch.manual_seed(0)
    vae = pv.VAE.mlp(columns, 2, "gaussian", hidden_dims=(32,))
    small = np.array(x[:2000])
    pv.fit(vae, small, epochs=1, batch_size=1000)  # imports, and the allocator, before anything is measured
    pv.log_evidence(vae, small, num_samples=num_samples, check=False)
    with peak() as found:
        if kind == "fit":
            pv.fit(vae, x, epochs=1, batch_size=1000)
        else:
            pv.log_evidence(vae, x, num_samples=num_samples, check=False)
    return found


def mapped(arguments: argparse.Namespace) -> Iterator[Line]:
    """Rows of a file, without a copy of the whole in memory."""
    rows, columns, num_samples, block = arguments.rows, 100, 10, 10_000
    generator = np.random.default_rng(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows"
        with open(path, "wb") as file:
            for start in range(0, rows, block):
                file.write(
                    generator.standard_normal((min(block, rows - start), columns), np.float32).tobytes()
                )
        size = path.stat().st_size / 1e6
        for kind, name in {
            "fit": "fit, one epoch",
            "log_evidence": f"log_evidence, K = {num_samples}",
        }.items():
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                seen = pool.apply(on_mapped, (kind, str(path), rows, columns, num_samples))
            yield Line(
                f"{name}: no copy of a mapped array",
                rows,
                f"× {columns} numbers",
                int(seen["MB"] >= size),
                figures={
                    "MB of the file": round(size),
                    "most MB beyond it and what there was before": round(seen["MB"]),
                    "rows a second, indicative": round(rows / seen["seconds"]),
                },
            )


# ---------------------------------------------------------------------------------------------------------
# What other programs count


def inputs(arguments: argparse.Namespace) -> Iterator[Line]:
    """``tests/test_bad_input.py``, as pytest counts it."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
        subprocess.run(
            [*command, "tests/test_bad_input.py"], cwd=ROOT, check=False, stdout=subprocess.DEVNULL
        )
        (suite,) = ElementTree.parse(report).getroot().iter("testsuite")
    count = {name: int(suite.attrib[name]) for name in ("tests", "failures", "errors", "skipped")}
    if count["tests"] == 0:
        raise RuntimeError("tests/test_bad_input.py ran no test")
    yield Line(
        "bad input is refused in words",
        count["tests"] - count["skipped"],
        "cases",
        count["failures"] + count["errors"],
    )


def fresh_seeds(arguments: argparse.Namespace) -> Iterator[Line]:
    """The last run of ``benchmarks/fresh_seeds.py``, which takes its own time."""
    results = json.loads((ROOT / "benchmarks" / "results" / "fresh_seeds.json").read_text())
    failed = sum(any("failed" in values for values in result.values()) for result in results.values())
    yield Line("statistical tests pass on fresh seeds, fresh_seeds.py", len(results), "seeds", failed)


#: In this order: the kills fork this process, which has to be before torch has computed anything in it.
PARTS: dict[str, Callable[[argparse.Namespace], Iterator[Line]]] = {
    "kills": killed,
    "files": files,
    "neighbours": neighbours,
    "mapped": mapped,
    "inputs": inputs,
    "fresh_seeds": fresh_seeds,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all if none is named"
    )
    parser.add_argument("--kills", type=int, default=1000, help="that fall into training (default 1000)")
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the mapped array (default 1e6)")
    parser.add_argument("--seed", type=int, default=secrets.randbits(31), help="of kill times and rows")
    parser.add_argument(
        "--json", type=Path, help="write every figure to this file, and keep the other parts'"
    )
    arguments = parser.parse_args()
    unknown = [part for part in arguments.parts if part not in PARTS]
    if unknown:
        parser.error(f"{unknown[0]!r} is no part: choose from {', '.join(PARTS)}")
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    if arguments.json and arguments.json.exists():
        found = json.loads(arguments.json.read_text(encoding="utf-8"))  # of the parts that are not run now
    broken = 0
    print(_columns("what should hold", "tried", "broken"))
    for part, measure in PARTS.items():
        if arguments.parts and part not in arguments.parts:
            continue
        started, lines = time.monotonic(), []
        for line in measure(arguments):
            print(line, flush=True)
            lines.append(asdict(line))
            broken += line.broken
        seconds = round(time.monotonic() - started)
        found[part] = harness.environment() | {"seed": arguments.seed, "seconds": seconds, "lines": lines}
        if arguments.json:
            arguments.json.parent.mkdir(parents=True, exist_ok=True)
            arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"\nseed {arguments.seed}")
    sys.exit(broken > 0)


if __name__ == "__main__":
    main()
