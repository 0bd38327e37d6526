"""How does a fit scale with the number of processes?

    python benchmarks/ranks.py --json benchmarks/results/ranks.json

Compiled steps of two ranks with one thread each, of one process with one thread, and of one process with all
threads. The first epoch is not counted.
"""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import harness
import torch
import torch.distributed
from harness import Aim, Clocked, Options, Peer, compare
from peers import LARGE, SMALL, Nets, binary_rows

import pyrovae as pv

# Widths, rows a batch, steps an epoch, epochs that are timed.
SIZES = ((SMALL, 64, 28, 6), (LARGE, 128, 10, 3), (LARGE, 1024, 5, 2))
ONE, RANKS, ALL = "one process, one thread", "two ranks", "one process, all threads"


def fit(
    nets: Nets, rows: int, batch: int, epochs: int, threads: int, rank: int = 0, store: str = ""
) -> Clocked:
    """The last loss, and the seconds of all epochs but the first."""
    torch.set_num_threads(threads)
    if store:
        torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    records = pv.fit(
        nets.vae(), binary_rows(rows, nets.data_dim), epochs=1 + epochs, batch_size=batch, compile=True
    ).records
    if store:
        torch.distributed.destroy_process_group()
    return Clocked(records[-1]["loss"], sum(record["seconds"] for record in records[1:]))


def started(
    nets: Nets, rows: int, batch: int, epochs: int, threads: int, ranks: int
) -> Callable[[], Clocked]:
    """A peer's run, in processes of its own."""

    def run() -> Clocked:
        with (
            tempfile.TemporaryDirectory() as folder,
            ProcessPoolExecutor(ranks, mp_context=multiprocessing.get_context("spawn")) as pool,
        ):
            store = f"{folder}/store" if ranks > 1 else ""
            calls = [(nets, rows, batch, epochs, threads, rank, store) for rank in range(ranks)]
            futures = [pool.submit(fit, *call) for call in calls]
            first, *_ = [future.result() for future in futures]
            return first

    return run


def main() -> None:
    options = Options.of(harness.arguments(__doc__, rounds=3).parse_args())
    tables, aims = [], []
    for nets, batch, steps, epochs in SIZES:
        ways = {ONE: (1, 1), RANKS: (1, 2), ALL: (torch.get_num_threads(), 1)}
        table = compare(
            f"a compiled step, {nets.title}, batches of {batch}",
            [
                Peer(name, started(nets, batch * steps, batch, epochs, *way), steps * epochs)
                for name, way in ways.items()
            ],
            options=options,
            reference=ONE,
            unit="ms a step",
            answer="loss, nats a row",
            warm_up=False,
        )
        print(table, end="\n\n", flush=True)
        tables.append(table)
        place = f"{nets.title}, {batch} rows"
        aims += [
            Aim(f"{place}: two ranks of one thread's time", table.times(RANKS, ONE), target=None),
            Aim(f"{place}: two ranks of all threads' time", table.times(RANKS, ALL), target=None),
        ]
    harness.report_aims(tables, aims, options.json)


if __name__ == "__main__":
    main()
