"""Memory and speed of a fit and of scores on sparse counts: 100 000 rows of 2000 columns, of which 5 % are not 0.

    python benchmarks/sparse.py --json benchmarks/results/sparse.json

The rows are a scipy.sparse CSR matrix. "memory" is the process's peak in each task beyond what it held before the first,
with the matrix and the libraries loaded; the rows alone would take 0.8 GB if they were dense in float32. Rows are counted by
second of processor time, because other processes share the machine.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Callable
from pathlib import Path

import harness
import numpy as np
import scipy.sparse
import torch

import pyrovae as pv


class Peak:
    """The highest resident memory of the process while a block runs, in bytes, read every 10 ms."""

    def __enter__(self) -> Peak:
        self.bytes, self._stop = resident(), threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.01):
            self.bytes = max(self.bytes, resident())


def resident() -> int:
    """Return the process's resident memory, in bytes (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def counts(rows: int, columns: int, density: float, seed: int = 0) -> scipy.sparse.csr_array:
    """Return counts ≥ 1 at random places, with two groups of rows that differ in half of the columns."""
    rng = np.random.default_rng(seed)
    each = rng.binomial(columns, density, rows)
    group = rng.integers(2, size=rows)
    shift = np.repeat(group * columns // 4, each)
    places = (rng.integers(columns * 3 // 4, size=each.sum()) + shift).astype(np.int32)
    values = 1 + rng.poisson(1.0, size=each.sum())
    start = np.concatenate([[0], np.cumsum(each)])
    found = scipy.sparse.csr_array((values, places, start), shape=(rows, columns))
    found.sum_duplicates()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--columns", type=int, default=2000)
    parser.add_argument("--density", type=float, default=0.05)
    parser.add_argument("--num-samples", type=int, default=10)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    x = counts(options.rows, options.columns, options.density)
    torch.manual_seed(0)
    vae = pv.VAE.mlp(options.columns, 8, "poisson", hidden_dims=(64,))
    pv.fit(vae, x[:200], epochs=1)  # loads what is loaded when it is first used
    pv.embed(vae, x[:200])
    before = resident()
    tasks: dict[str, Callable[[], object]] = {
        "fit, one epoch": lambda: pv.fit(vae, x, epochs=1, batch_size=256, lr=1e-3),
        "elbo, 1 draw": lambda: pv.elbo(vae, x, num_samples=1),
        f"log_evidence, {options.num_samples} draws": lambda: pv.log_evidence(
            vae, x, num_samples=options.num_samples
        ),
        "embed": lambda: pv.embed(vae, x),
    }
    found = {}
    for name, task in tasks.items():
        with Peak() as peak:
            started, used = time.perf_counter(), time.process_time()
            task()
            used, seconds = time.process_time() - used, time.perf_counter() - started
        found[name] = {
            "rows a CPU second": round(options.rows / used),
            "seconds": round(seconds),
            "memory, GB": round((peak.bytes - before) / 1e9, 3),
        }
        print(name, found[name], flush=True)
    if options.json:
        shape = {"rows": options.rows, "columns": options.columns, "stored": int(x.nnz)}
        harness.write(options.json, {"environment": harness.environment(), "x": shape, "tasks": found})


if __name__ == "__main__":
    main()
