"""How much longer does a fit take beside two busy processes, with the threads that fit its work and with all?

    python benchmarks/threads.py --json benchmarks/results/threads.json

Compiled steps of 64-64-8 (batch 64) and 784-400-50 (batch 128), alone and beside two processes that compute all the
time. "all threads" is what torch does by itself: its threads wait for each other at the end of every operation. The
first epoch, which compiles, is not counted. A step beside others has to take at most 2.5 times as long as alone.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from unittest import mock

import harness
import torch
from harness import Aim, Clocked, Options, Peer, compare
from peers import LARGE, SMALL, Nets, binary_rows

import pyrovae as pv
from pyrovae import threads

# Widths, rows a batch, steps an epoch, epochs that are timed.
SIZES = ((SMALL, 64, 28, 6), (LARGE, 128, 10, 3))
BUSY = 2


@contextlib.contextmanager
def busy(number: int) -> Iterator[None]:
    """Run a block beside processes that compute all the time."""
    started = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def fit(nets: Nets, rows: int, batch: int, epochs: int, beside: int, every: bool) -> Callable[[], Clocked]:
    def run() -> Clocked:
        x, vae = binary_rows(rows, nets.data_dim), nets.vae()
        fitting = mock.patch.object(threads, "fitting", return_value=torch.get_num_threads())
        with busy(beside), fitting if every else contextlib.nullcontext():
            records = pv.fit(vae, x, epochs=1 + epochs, batch_size=batch, compile=True).records
        return Clocked(records[-1]["loss"], sum(record["seconds"] for record in records[1:]))

    return run


def main() -> None:
    options = Options.of(harness.arguments(__doc__, rounds=5).parse_args())
    tables, aims = [], []
    for nets, batch, steps, epochs in SIZES:
        peers = [
            Peer(f"{how}, {place}", fit(nets, batch * steps, batch, epochs, beside, every), steps * epochs)
            for how, every in (("fitting", False), ("all threads", True))
            for place, beside in (("alone", 0), ("beside two", BUSY))
        ]
        table = compare(
            f"a compiled step, {nets.title}",
            peers,
            options=options,
            reference="fitting, alone",
            unit="ms a step",
            answer="loss, nats a row",
            warm_up=False,
        )
        print(table, end="\n\n", flush=True)
        tables.append(table)
        aims += [
            Aim(
                f"{nets.title}: beside two busy processes",
                table.times("fitting, beside two", "fitting, alone"),
                "≤",
                2.5,
            ),
            Aim(
                "… with all threads",
                table.times("all threads, beside two", "all threads, alone"),
                target=None,
            ),
            Aim(
                "… fitting of all threads' time, alone",
                table.times("fitting, alone", "all threads, alone"),
                target=None,
            ),
        ]
    harness.report_aims(tables, aims, options.json)


if __name__ == "__main__":
    main()
