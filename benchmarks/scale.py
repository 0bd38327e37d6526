"""Rows scored by several processes: how much faster, how much memory, and whether dead workers change a bit.

    python benchmarks/scale.py workers --json benchmarks/results/scale.json
    nice -n 19 python benchmarks/scale.py kills --json benchmarks/results/scale.json
    nice -n 19 python benchmarks/scale.py ranks --json benchmarks/results/scale.json

``workers`` scores 100 000 rows of 784 binary columns by importance sampling, K = 100, in one process, by one worker and by
two. Every process has one thread. ``kills`` scores 1000 rows of 64 columns, K = 200, again and again by two workers. Meanwhile
a thread sends SIGKILL to one of them, chosen at random, at random times, until 100 have died. A call that ends with an error
is repeated with its checkpoint, as the error says. Every result is compared with that of one process, bit by bit.
``ranks`` fits a VAE on two ranks of ``torch.distributed``, with a checkpoint every half second. SIGKILL ends one of them, chosen
at random, at random times, and both are started again. The other rank has to end by itself with an error. Parameters and
History of every finished fit are compared with those of an undisturbed one, bit by bit.
"""

from __future__ import annotations

import argparse
import faulthandler
import hashlib
import multiprocessing
import os
import random
import resource
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import harness
import torch
import torch.distributed

import pyrovae as pv

_COLUMNS = ("estimate", "mcse", "bias", "ess", "pareto_k", "tail_error", "cost", "kind", "verdict")


def data(rows: int, columns: int) -> tuple[pv.VAE, torch.Tensor]:
    """Return a VAE that is not fitted, and binary rows."""
    torch.manual_seed(0)
    vae = pv.VAE.mlp(columns, 16, hidden_dims=(200, 200) if columns > 100 else (64,))
    x = torch.empty(rows, columns)
    for part in x.split(10_000):
        part.copy_(torch.rand(len(part), columns) < 0.3)
    return vae, x


def same(one: pv.LogEvidence, other: pv.LogEvidence) -> bool:
    """Return whether two results have the same bits in every column."""
    return all(getattr(one, name).tobytes() == getattr(other, name).tobytes() for name in _COLUMNS)


# ---------------------------------------------------------------------------------------------------------
# Workers


def memory(seconds: float = 0.0) -> tuple[int, float]:
    """Return the process and its largest resident memory so far, in MB."""
    time.sleep(seconds)
    return os.getpid(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def workers(options: argparse.Namespace) -> dict[str, Any]:
    """Time the same scores in one process and by one worker and two."""
    vae, x = data(options.rows or 100_000, 784)
    given: dict[str, Any] = {"num_samples": 100, "check": False}
    before, started = os.getloadavg()[0], time.perf_counter()
    whole = pv.log_evidence(vae, x, **given)
    lines = [{"workers": 0, "seconds": time.perf_counter() - started, "same_bits": True}]
    for count in (1, 2):
        with ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn")) as pool:
            idle = most_memory(pool, count)
            started = time.perf_counter()
            found = pv.log_evidence(vae, x, executor=pool, **given)
            seconds = time.perf_counter() - started
            line = {"workers": count, "seconds": seconds, "same_bits": same(whole, found)}
            lines.append(line | {"mb_idle": idle, "mb_a_worker": most_memory(pool, count)})
    print(f"{len(x)} rows of {x.shape[1]} columns, K = 100; load before: {before:.1f}\n")
    print("| workers | rows a second | times one worker | MB a worker, idle | and at most | same bits |")
    print("|---:|---:|---:|---:|---:|---|")
    for line in lines:
        times = lines[1]["seconds"] / line["seconds"]
        held = [f"{line[name]:.0f}" if name in line else "" for name in ("mb_idle", "mb_a_worker")]
        bits = "yes" if line["same_bits"] else "NO"
        print(
            f"| {line['workers'] or 'none'} | {len(x) / line['seconds']:.0f} | {times:.2f} | {' | '.join(held)} | {bits} |"
        )
    return {"rows": len(x), "load_before": before, "lines": lines}


def most_memory(pool: ProcessPoolExecutor, count: int) -> float:
    """Return the largest resident memory among the workers, in MB; starts those that are not there."""
    found = dict[int, float]()
    while len(found) < count:  # a worker that sleeps leaves the next call to another
        found |= dict(pool.map(memory, [0.5] * count))
    return max(found.values())


# ---------------------------------------------------------------------------------------------------------
# Kills


class Killer(threading.Thread):
    """Kills workers at random times, ``mean`` seconds apart on average, while ``scoring`` is set."""

    def __init__(self, count: int, mean: float) -> None:
        super().__init__(daemon=True)
        self.left, self.scoring, self._mean = count, threading.Event(), mean
        self._random = random.Random(0)

    def run(self) -> None:
        while self.left:
            time.sleep(self._random.expovariate(1 / self._mean))
            self.scoring.wait()
            found = [each.pid for each in multiprocessing.active_children() if each.pid is not None]
            if found:
                os.kill(self._random.choice(found), signal.SIGKILL)
                self.left -= 1


def kills(options: argparse.Namespace) -> dict[str, Any]:
    """Score rows while workers are killed; count the calls that had to be repeated and the results that differ."""
    vae, x = data(options.rows or 1000, 64)
    given: dict[str, Any] = {"num_samples": 200, "tile": (20, 200), "check": False}
    started = time.perf_counter()
    whole = pv.log_evidence(vae, x, **given)
    alone, started = time.perf_counter() - started, time.perf_counter()
    # A server that has imported pyrovae makes new workers at once.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pyrovae"])
    pools = list[ProcessPoolExecutor]()

    def pool() -> ProcessPoolExecutor:
        pools.append(ProcessPoolExecutor(2, mp_context=context))
        return pools[-1]

    killer, results, repeated = Killer(options.kills, options.mean), list[bool](), 0
    killer.start()
    while killer.left:
        with tempfile.TemporaryDirectory() as folder:
            found = None
            while found is None:
                killer.scoring.set()
                try:
                    found = pv.log_evidence(vae, x, executor=pool, checkpoint=folder, **given)
                except BrokenExecutor:
                    repeated += 1
                finally:
                    killer.scoring.clear()
            results.append(same(whole, found))
        print(f"{len(results)} results, {killer.left} kills left", flush=True)
    for each in pools:
        each.shutdown()
    counts = {
        "rows": len(x),
        "seconds_alone": round(alone, 1),
        "seconds": round(time.perf_counter() - started, 1),
        "seconds_between_kills": options.mean,
        "kills": options.kills,
        "pools": len(pools),
        "calls_repeated_with_their_checkpoint": repeated,
        "results": len(results),
        "results_with_the_same_bits": sum(results),
    }
    show(counts)
    return counts


def show(counts: dict[str, Any]) -> None:
    """Print counts as a table."""
    print("\n| | |\n|---|---:|")
    for name, value in counts.items():
        print(f"| {name.replace('_', ' ')} | {value} |")


# ---------------------------------------------------------------------------------------------------------
# Ranks

_EPOCHS, _PATIENCE = 40, 60.0  # seconds in which a rank notices that another has died


def fit_on_rank(rank: int, store: str, checkpoint: str | None, result: Path) -> None:
    """Fit on one of two ranks. The first one writes parameters and History; a refusal is written, too."""
    faulthandler.dump_traceback_later(2 * _PATIENCE, exit=True)  # where a rank hangs
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=timedelta(seconds=_PATIENCE)
    )
    vae, x = data(2000, 64)
    folder = None if checkpoint is None else pv.Checkpoint(checkpoint, seconds=0.5)
    try:
        history = pv.fit(vae, x, epochs=_EPOCHS, batch_size=50, compile=False, checkpoint=folder)
    except RuntimeError as error:
        result.with_suffix(f".{rank}").write_text(str(error))
        os._exit(3)
    if rank == 0:
        columns = history.frame.drop(columns="seconds").to_numpy().tobytes()
        digest = hashlib.sha256(columns)
        for parameter in vae.parameters():
            digest.update(parameter.detach().numpy().tobytes())
        result.write_text(digest.hexdigest())
    torch.distributed.destroy_process_group()


def fit_until(
    killed_after: Callable[[], float] | None, checkpoint: str | None
) -> tuple[str | None, bool, bool]:
    """Start two ranks, and kill one of them after a random time unless they end before.

    Returns:
        The digest of a finished fit, or None; whether a rank was killed; whether the other one then named the dead one.
    """
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result"
        ranks = [
            context.Process(target=fit_on_rank, args=(rank, f"{folder}/store", checkpoint, result))
            for rank in range(2)
        ]
        for each in ranks:
            each.start()
        chosen = random.randrange(2)
        ranks[chosen].join(None if killed_after is None else killed_after())
        killed = ranks[chosen].is_alive()
        if killed:
            ranks[chosen].kill()
        for each in ranks:
            each.join()
        told = result.with_suffix(f".{1 - chosen}")
        named = told.exists() and f"rank {chosen}" in told.read_text()
        return (result.read_text() if result.exists() else None), killed, named


def ranks(options: argparse.Namespace) -> dict[str, Any]:
    """Fit on two ranks of which one is killed at random times; compare every finished fit with an undisturbed one."""
    random.seed(0)
    started = time.perf_counter()
    expected, _, _ = fit_until(None, None)
    alone, started = time.perf_counter() - started, time.perf_counter()
    killed, named, results = 0, 0, list[bool]()
    while killed < options.kills:
        with tempfile.TemporaryDirectory() as checkpoint:
            found = None
            while found is None:
                found, dead, told = fit_until(lambda: random.expovariate(1 / options.mean), checkpoint)
                killed, named = killed + dead, named + told
            results.append(found == expected)
        print(f"{len(results)} fits, {killed} kills", flush=True)
    counts = {
        "seconds_alone": round(alone, 1),
        "seconds": round(time.perf_counter() - started, 1),
        "seconds_to_a_kill": options.mean,
        "kills": killed,
        "kills_that_the_other_rank_named": named,
        "fits": len(results),
        "fits_with_the_same_bits": sum(results),
    }
    show(counts)
    return counts


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "workers": workers,
    "kills": kills,
    "ranks": ranks,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--rows", type=int, help="instead of those above")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--mean", type=float, default=4.0, help="seconds between two kills, on average")
    parser.add_argument("--json", type=Path, help="file whose entry of this part is replaced")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = PARTS[options.part](options) | {"environment": harness.environment()}
    if options.json is not None:
        held = harness.read(options.json) if options.json.exists() else {}
        harness.write(options.json, held | {options.part: found})


if __name__ == "__main__":
    main()
