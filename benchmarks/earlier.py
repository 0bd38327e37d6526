"""Is this version as fast as an earlier commit, in a training step, a draw of log P(x) and a whole fit?

    PYROVAE_DATA=… python benchmarks/earlier.py d34650b --json benchmarks/results/earlier.json

The commit is checked out into a folder of its own. The two versions take turns. Every run is a process of its own,
which imports its version, compiles once without being timed (but for the fit that says so), and then times the job.
A step is timed without the evaluation after an epoch. A whole fit is ``pv.fit`` as a user calls it, on the 50 000
training rows of binarized MNIST. d34650b is the last commit before noise was keyed by rows.
"""

from __future__ import annotations

import inspect
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import harness
from harness import Aim, Clocked, Options, Peer, Table, compare

HERE = Path(__file__).resolve().parents[1]
SIZES = ("SMALL", "LARGE")
EPOCHS = 3


def clocked(run: Callable[[], float], repeats: int = 9) -> Clocked:
    """Median seconds of a few runs, and what the last returned.

    The earlier version has a harness of its own, so this is not the one of today.
    """
    taken = []
    for _ in range(repeats):
        started = time.perf_counter()
        answer = run()
        taken.append(time.perf_counter() - started)
    return Clocked(answer, statistics.median(taken))


def step(size: str) -> Clocked:
    """An epoch of 64 compiled steps, the median of nine."""
    import peers
    from peers_fit import Fitting

    nets, batch = getattr(peers, size), {"SMALL": 64, "LARGE": 128}[size]
    fitting = Fitting(nets.vae(), peers.binary_rows(64 * batch, nets.data_dim), batch, compile=True)
    fitting.epoch()
    return clocked(fitting.epoch)


def draw(size: str) -> Clocked:
    """log P(x) of 500 rows by 1000 draws each on the compiled graph, the median of nine."""
    import peers

    import pyrovae as pv

    nets = getattr(peers, size)
    vae, x = nets.vae(), peers.binary_rows(500, nets.data_dim)
    unchecked = {"check": False} if "check" in inspect.signature(pv.log_evidence).parameters else {}

    def run() -> float:
        return float(pv.log_evidence(vae, x, num_samples=1000, compile=True, **unchecked).mean)

    run()
    return clocked(run)


def fit(size: str, compiled: bool) -> Clocked:
    """A whole fit to MNIST (64 columns of it where the networks are small), compiled before or not."""
    import peers

    import pyrovae as pv

    nets, batch = getattr(peers, size), {"SMALL": 64, "LARGE": 128}[size]
    rows = pv.datasets.binarized_mnist().train
    rows = rows[:, 300 : 300 + nets.data_dim].contiguous() if nets.data_dim < rows.shape[1] else rows

    def run() -> float:
        return pv.fit(nets.vae(), rows, epochs=EPOCHS, batch_size=batch, compile=True).records[-1]["elbo"]

    if compiled:
        run()
    return clocked(run, 1)


#: Title of a table, the job with its arguments, the unit of time and how many there are in a job.
JOBS: dict[str, tuple[Callable[..., Clocked], tuple[object, ...], str, int]] = {
    **{f"a step, {size.lower()}": (step, (size,), "ms a step", 64) for size in SIZES},
    **{f"a draw, {size.lower()}": (draw, (size,), "µs a draw", 500 * 1000) for size in SIZES},
    **{
        f"{EPOCHS} epochs, {size.lower()}, {'compiled before' if compiled else 'with compiling'}": (
            fit,
            (size, compiled),
            "s a fit",
            1,
        )
        for size in SIZES
        for compiled in (True, False)
    },
}


def on(version: Path, title: str) -> Callable[[], Clocked]:
    """The job by one version, in a process of its own: its package and its benchmarks are imported."""
    code = (
        f"import json, runpy; job, given, *_ = runpy.run_path({str(Path(__file__).resolve())!r})['JOBS'][{title!r}]; "
        "found = job(*given); print(json.dumps([found.answer, found.seconds]))"
    )

    def run() -> Clocked:
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=version / "benchmarks",
            env=os.environ | {"PYTHONPATH": str(version)},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        return Clocked(*json.loads(done.stdout.splitlines()[-1]))

    return run


def aims(title: str, table: Table) -> list[Aim]:
    """A step and a draw within 5 %; a whole fit of the large networks at least 1.2 times as fast."""
    if "epochs" not in title:
        return [Aim(f"{title}: of the earlier time", table.times("this version", "earlier"), "≤", 1.05)]
    target = 1.2 if "large" in title else None
    return [Aim(f"{title}: faster", table.times("earlier", "this version"), "≥", target)]


def main() -> None:
    parser = harness.arguments(__doc__, rounds=5)
    parser.add_argument("commit", help="the earlier version")
    parser.add_argument("--jobs", nargs="*", default=list(JOBS), choices=list(JOBS), help="default: all")
    parsed = parser.parse_args()
    tables, found = [], []
    with tempfile.TemporaryDirectory() as folder:
        earlier = Path(folder) / "earlier"
        git = ["git", "-C", str(HERE), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(earlier), parsed.commit], check=True)
        try:
            for title in parsed.jobs:
                unit, units = JOBS[title][2:]
                table = compare(
                    title,
                    [
                        Peer(name, on(tree, title), units)
                        for name, tree in (("earlier", earlier), ("this version", HERE))
                    ],
                    options=Options.of(parsed),
                    reference="this version",
                    unit=unit,
                    answer="loss, mean log P(x) or ELBO, nats a row",
                    warm_up=False,
                )
                print(table, end="\n\n", flush=True)
                tables.append(table)
                found += aims(title, table)
        finally:
            subprocess.run([*git, "remove", "--force", str(earlier)], check=True)
    harness.report_aims(tables, found, parsed.json)


if __name__ == "__main__":
    main()
