"""How fast is pyrovae, against Pyro, torch by hand, NumPyro, pythae and the bare matrix product?

    PYROVAE_DATA=… python benchmarks/speed.py --json benchmarks/results/speed.json
    python benchmarks/speed.py step evaluate --rounds 5

step: a training step, data ready, an epoch at a time. evaluate: log P(x) by 5000 draws a row. wall: seconds of a
whole fit to a given validation ELBO, compiling included, each in a fresh process; "exact KL" is
``TraceMeanField_ELBO``, as pythae has it; "first compile" is on a machine where nothing has been compiled before, and
inductor tries out the machine and its compiler. growth: time and memory of log P(x)
in rows and draws, each in a fresh process. settle: seconds to an error of 0.05 nats a row. import: before anything
is computed. Peers start from the same weights, and a table shows the answers on which they should agree.
A peer that is not installed (``requirements.txt``) is listed so. What each part has to show stands in its last table:
measured, target, met or not.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import harness
import numpy as np
import torch
from harness import Aim, Clocked, Options, Peer, Table, apart, compare, optional, quickest
from peers import (
    LARGE,
    LEARNING_RATE,
    ROWS_A_PRODUCT,
    SMALL,
    HandTraining,
    Nets,
    PyroTraining,
    bare_products,
    bare_steps,
    binary_rows,
    evidence_by_hand,
    evidence_by_pyro,
    evidence_in_passes,
    mlp_vae,
)
from peers_fit import TASKS, TOOLS, Fitting, Task, compile_once, curve
from torch import Tensor

import pyrovae as pv
import pyrovae.training.loop

numpyro, pythae = optional("peers_jax"), optional("peers_pythae")

Run = Callable[[], float]


@dataclass(frozen=True)
class Part:
    """What a part of the run found; notes are figures that belong to no peer."""

    tables: list[Table]
    aims: list[Aim]
    notes: dict[str, float | str] = field(default_factory=dict)


# ---------------------------------------------------------------------------------------------- a training step


def step(options: Options, quick: bool) -> Part:
    """A step of Adam on a minibatch, gathered by index from all rows; ratios are to pyrovae's compiled step.

    An epoch takes a second or two, which one slow moment of the machine spoils: three times as many rounds.
    """
    options = dataclasses.replace(options, rounds=3 * options.rounds)
    tables, aims = [], []
    notes: dict[str, float | str] = {}
    targets = {
        SMALL: (10.0, 1.0, {"torch by hand, compiled": 0.5}),
        LARGE: (3.0, 1.0, {"torch by hand, eager": 0.7, "torch by hand, compiled": 0.7}),
    }
    for nets, (by_pyro, by_numpyro, by_hand) in targets.items():
        batch_size = 64 if nets is SMALL else 128
        batches, epochs = (8, 1) if quick else (64, 20 if nets is SMALL else 3)
        rows = binary_rows(batches * batch_size, nets.data_dim)
        given = rows, batch_size
        trainings: dict[str, Any] = {
            "pyrovae, compiled": Fitting(nets.vae(), *given, compile=True),
            "pyrovae, compiled, medium": Fitting(nets.vae(), *given, compile=True, precision="medium")
            if torch.ops.mkldnn._is_mkldnn_bf16_supported()
            else None,
            "pyrovae, eager": Fitting(nets.vae(), *given, compile=False),
            "Pyro SVI": PyroTraining(nets.vae(), *given),
            "Pyro SVI, validation off": PyroTraining(nets.vae(), *given, validation=False),
            "torch by hand, eager": HandTraining(nets.vae(), *given, compiled=False),
            "torch by hand, compiled": HandTraining(nets.vae(), *given, compiled=True),
            "NumPyro, epoch in fori_loop": numpyro and numpyro.NumPyroTraining(nets.vae(), *given),
        }
        bare = bare_steps(nets, batch_size, epochs * batches)
        quickest_bare = quickest(bare)
        notes[f"best bare products of a step, {nets.title}"] = quickest_bare
        runs = {name: training and _several(training.epoch, epochs) for name, training in trainings.items()}
        runs["bare products"] = bare[quickest_bare]
        table = compare(
            f"a training step, {nets.title}, batch {batch_size}",
            [Peer(name, run, epochs * batches) for name, run in runs.items()],
            options=options,
            reference="pyrovae, compiled",
            unit="ms a step",
            answer="loss of the last epoch, nats a row",
        )
        own = "pyrovae, compiled"
        tables.append(table)
        aims += [
            Aim(f"step {nets.title}: faster than Pyro SVI", table.times("Pyro SVI", own), "≥", by_pyro),
            Aim("… of NumPyro's time", table.times(own, "NumPyro, epoch in fori_loop"), "≤", by_numpyro),
            *(Aim(f"… of {name}'s time", table.times(own, name), "≤", t) for name, t in by_hand.items()),
        ]
    aims.append(Aim("… medium faster than highest", table.times(own, f"{own}, medium"), "≥", 1.3))
    return Part(tables, aims, notes)


def _several(epoch: Run, epochs: int) -> Run:
    return lambda: [epoch() for _ in range(epochs)][-1]


# ----------------------------------------------------------------------------------------- log P(x) of every row

DECODERS = (Nets("50-200-200-784", 784, (200, 200), 50), Nets("8-64-64", 64, (64,), 8))


def evaluate(options: Options, quick: bool) -> Part:
    """Microseconds a (row, sample); ratios are to pyrovae. Some peers are given the same rows several times.

    Each peer has the chunk that is quickest for it; pythae and scvi-tools their default besides.
    """
    tables = []
    notes: dict[str, float | str] = {}
    for nets in DECODERS:
        samples = 500 if quick else 5000
        x = binary_rows(2 if quick else 20 if nets is DECODERS[0] else 100, nets.data_dim)
        more = 2 if quick else 20
        vae = nets.vae()
        chunks = [samples // 10, samples // 5, samples // 2, samples]
        passes = quickest({n: evidence_in_passes(vae, x, 500, n) for n in (1, 5, 25, 100)})
        chunk = numpyro and quickest({n: numpyro.evidence_by_numpyro(vae, x[:8], samples, n) for n in chunks})
        bare = quickest(candidates := bare_products(nets.decoder))
        started = time.perf_counter()
        by_pyrovae(vae, x.repeat(more, 1), samples, compile=True)()
        notes[f"seconds of the first compiled call, {nets.title}"] = time.perf_counter() - started
        runs: dict[str, tuple[Callable[[], float | None] | None, int]] = {
            "pyrovae, compiled": (by_pyrovae(vae, x.repeat(more, 1), samples, compile=True), more),
            "pyrovae, by Pyro": (by_pyrovae(vae, x, samples, compile=False), 1),
            "naive Pyro": (
                evidence_by_pyro(vae, x, samples, max(1, (1 << 24) // (samples * nets.data_dim))),
                1,
            ),
            "torch by hand, in chunks": (evidence_by_hand(vae, x.repeat(4, 1), samples), 4),
            "as scvi-tools, 1 draw a pass": (evidence_in_passes(vae, x.repeat(6, 1), samples, 1), 6),
            "as scvi-tools, best pass": (evidence_in_passes(vae, x, samples, passes), 1),
            "pythae get_nll, 100": (pythae and pythae.evidence_by_pythae(vae, x, samples, 100), 1),
            "pythae get_nll, 500": (pythae and pythae.evidence_by_pythae(vae, x, samples, 500), 1),
            "NumPyro, jitted, in chunks": (
                numpyro and numpyro.evidence_by_numpyro(vae, x.repeat(4, 1), samples, chunk),
                4,
            ),
        }
        table = compare(
            f"log P(x), {nets.title}, K = {samples}",
            [
                *(Peer(name, run, len(x) * times * samples) for name, (run, times) in runs.items()),
                Peer("bare products", candidates[bare], ROWS_A_PRODUCT),
            ],
            options=options,
            reference="pyrovae, compiled",
            unit="µs a draw",
            answer="log P(x), nats a row",
        )
        tables.append(table)
        flops = 2 * sum(width * following for width, following in nets.decoder)
        notes |= {
            f"best bare product, {nets.title}": f"{bare[0]}, {bare[1]} rows, "
            f"{flops / table.median('bare products') / 1e3:.0f} GFLOP/s",
            f"best draws a pass as scvi-tools, {nets.title}": passes,
            f"best draws a chunk of NumPyro, {nets.title}": chunk if chunk else "not installed",
        }
    table, own = tables[0], "pyrovae, compiled"
    aims = [
        Aim("log P(x): faster than naive Pyro", table.times("naive Pyro", own), "≥", 15),
        Aim("… than pythae get_nll, 100", table.times("pythae get_nll, 100", own), "≥", 6),
        Aim("… than pythae get_nll, 500", table.times("pythae get_nll, 500", own), "≥", 6),
        Aim(
            "… than scvi-tools' way, its default pass",
            table.times("as scvi-tools, 1 draw a pass", own),
            "≥",
            6,
        ),
        Aim("… than scvi-tools' way, its best pass", table.times("as scvi-tools, best pass", own), "≥", 6),
        Aim("… of NumPyro's time", table.times(own, "NumPyro, jitted, in chunks"), "≤", 0.6),
        Aim("… share of the bare product's rate", table.times("bare products", own), "≥", 0.7),
    ]
    return Part(tables, aims, notes)


def by_pyrovae(vae: pv.VAE, x: Tensor, samples: int, compile: bool) -> Run:
    return lambda: pv.log_evidence(vae, x, num_samples=samples, compile=compile, check=False).mean


# --------------------------------------------------------------------------------- a whole fit, from start to end


def wall(options: Options, quick: bool) -> Part:
    """Seconds to a validation ELBO that Pyro reaches after a fixed number of epochs, chosen before the others run."""
    tables, aims = [], []
    notes: dict[str, float | str] = {}
    missing = {name for name, module in (("pythae", pythae), ("NumPyro", numpyro)) if module is None}
    with tempfile.TemporaryDirectory() as machine:
        notes["seconds of the first graph that is compiled on a machine"] = apart(compile_once, machine)
        for task in TASKS[:1] if quick else TASKS:
            task = dataclasses.replace(task, epochs=2) if quick else task
            target = apart(curve, "Pyro SVI", task, 0, math.inf, task.epochs)[1][-1]
            runs = {tool: None if tool in missing else fits(tool, task, target, machine) for tool in TOOLS}
            runs["pyrovae, first compile"] = fits("pyrovae", task, target, None)
            table = compare(
                f"a fit to a validation ELBO of {target:.2f}, {task.title}, {task.nets.title}",
                [Peer(tool, run, 1) for tool, run in runs.items()],
                options=dataclasses.replace(options, rounds=min(options.rounds, task.rounds)),
                reference="pyrovae",
                unit="s a fit",
                answer="epochs",
                warm_up=False,
            )
            tables.append(table)
            notes[f"target, {task.title}: Pyro's validation ELBO after {task.epochs} epochs"] = target
            ours = [tool for tool in runs if tool.startswith("pyrovae")]
            aims += [
                Aim(
                    f"fit {task.title}{own.removeprefix('pyrovae')}: of {tool}'s time",
                    table.times(own, tool),
                    "≤",
                    1.0,
                )
                for own in ours
                for tool in runs
                if tool not in ours
            ]
    return Part(tables, aims, notes)


def fits(tool: str, task: Task, target: float, machine: str | None) -> Callable[[], Clocked]:
    """A tool's fits, each with another seed; NaN epochs where the target was not reached."""
    seeds = itertools.count(1)

    def run() -> Clocked:
        seconds, elbos = apart(curve, tool, task, next(seeds), target, 2 * task.epochs, machine)
        return Clocked(len(elbos) if elbos[-1] >= target else math.nan, seconds)

    return run


# -------------------------------------------------------------------------------------------- growth in N and K


def grow(rows: int, samples: int) -> tuple[float, float]:
    """Seconds of log P(x), and by how many MB the process grew at its largest; in a process of its own.

    Without compiling, which pays from some size on: a step in time, and in memory once for all.
    """
    vae, x = SMALL.vae(), binary_rows(rows, SMALL.data_dim)
    pv.log_evidence(vae, x[:100], num_samples=100, compile=False, check=False)
    Path("/proc/self/clear_refs").write_text("5")  # the largest so far is as large as it is now
    before, started = _memory("VmRSS"), time.perf_counter()
    pv.log_evidence(vae, x, num_samples=samples, compile=False, check=False)
    return time.perf_counter() - started, _memory("VmHWM") - before


def _memory(name: str) -> float:
    """MB of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024


def growth(options: Options, quick: bool) -> Part:
    """Rows and draws from 10² to 10⁵, the other at 100. glibc keeps up to 32 MB of what is freed: below is flat."""
    tables, aims = [], []
    sizes = [10**power for power in range(2, 4 if quick else 6)]
    for letter in "NK":
        names = [f"{letter} = {size}" for size in sizes]
        table = compare(
            f"log P(x), {SMALL.title}, the other one 100",
            [
                Peer(name, grown(*((size, 100) if letter == "N" else (100, size))), 100 * size)
                for name, size in zip(names, sizes, strict=True)
            ],
            options=dataclasses.replace(options, rounds=min(options.rounds, 3)),
            reference=names[0],
            unit="µs a draw",
            answer="MB beyond those before",
            warm_up=False,
        )
        tables.append(table)
        seconds = [table.median(name) * size for name, size in zip(names, sizes, strict=True)]
        memory = [timing.answer or 0.0 for timing in table.timings]
        aims += [
            Aim(
                f"growth in {letter}: log time, slope, last decade",
                slope(sizes[-2:], seconds[-2:]),
                "≤",
                1.05,
                "",
            ),
            Aim("… memory at its end beyond that at 1000", memory[-1] - memory[1], "≤", 32, "MB"),
        ]
    return Part(tables, aims)


def grown(rows: int, samples: int) -> Callable[[], Clocked]:
    def run() -> Clocked:
        seconds, memory = apart(grow, rows, samples)
        return Clocked(memory, seconds)

    return run


def slope(sizes: list[int], seconds: list[float]) -> float:
    """Of the line through the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


# --------------------------------------------------------------------------- seconds to an error of 0.05 nats a row


def settle(options: Options, quick: bool) -> Part:
    """auto against one fixed K, on a VAE fitted to binarized MNIST; the truth by long annealing.

    K is the smallest that suffices, of 25 · 2^j, as far as that is affordable: at most ``most``. Where that is not
    enough, its error says so, and the share of its time is more than the share at an equal error.
    """
    from evidence import MOST_DRAWS, draws_needed

    data = pv.datasets.binarized_mnist()
    vae = mlp_vae(784, (200, 200), 20)
    pv.fit(vae, data.train, epochs=1 if quick else 30, batch_size=128, lr=LEARNING_RATE)
    x = data.test[: 4 if quick else 100]
    temperatures = 100 if quick else 2000
    annealed = pv.log_evidence(vae, x, method="annealed", num_temperatures=temperatures, seed=1, check=False)
    truth = annealed.estimate
    most = 4 * MOST_DRAWS
    needed = np.minimum(draws_needed(vae, x, truth, seed=2), most)
    hard = needed > 5000
    groups = {"all rows": np.full(len(x), True), "hard rows": hard, "other rows": ~hard}
    runs: dict[str, Run] = {}
    pairs: dict[str, tuple[str, str]] = {}
    for group, rows in groups.items():
        same = next((other for other in pairs if (groups[other] == rows).all()), None)
        if same is not None:
            pairs[group] = pairs[same]
        elif rows.any():
            part, draws = (x[torch.from_numpy(rows)], truth[rows]), int(needed[rows].max())
            pairs[group] = f"auto, {group}", f"K = {draws}, {group}"
            runs[pairs[group][0]] = _rms(vae, *part, method="auto", target_mcse=0.05)
            runs[pairs[group][1]] = _rms(vae, *part, num_samples=draws)
    table = compare(
        f"to an error of 0.05, MNIST, 784-200-200-20, {len(x)} rows, {hard.sum()} hard",
        [Peer(name, run, 1) for name, run in runs.items()],
        options=dataclasses.replace(options, rounds=min(options.rounds, 3)),
        reference=pairs["all rows"][0],
        unit="s a run",
        answer="root mean square error, nats",
    )
    shares = dict.fromkeys(groups) | {
        group: table.times(auto, fixed) for group, (auto, fixed) in pairs.items()
    }
    aims = [
        Aim("auto of fixed K's time, K > 5000 needed", shares["hard rows"], "≤", 0.1),
        Aim("… other rows", shares["other rows"], "≤", 1.0),
        Aim("… all rows, at one K", shares["all rows"], "≤", 1.0),
    ]
    notes: dict[str, float | str] = {
        "hard rows: more than 5000 draws needed": int(hard.sum()),
        f"rows that need more than {MOST_DRAWS}": int((needed > MOST_DRAWS).sum()),
        "largest standard error of the truth": float(annealed.mcse.max()),
    }
    return Part([table], aims, notes)


def _rms(vae: pv.VAE, x: Tensor, truth: np.ndarray, **options: Any) -> Run:
    def run() -> float:
        estimate = pv.log_evidence(vae, x, **options, check=False).estimate
        return float(np.sqrt(((estimate - truth) ** 2).mean()))

    return run


# ------------------------------------------------------------------------------------------------------ the start


def start(options: Options, quick: bool) -> Part:
    """Whole processes that import and end; and the first step of an eager fit in a warm process.

    What pyrovae adds to a process is less than by how much one differs from the next: three times as many rounds.
    """
    options = dataclasses.replace(options, rounds=3 * options.rounds)

    def imported(name: str) -> Run:
        command = [sys.executable, "-c", f"import {name}, sys; print(len(sys.modules))"]
        return lambda: float(subprocess.run(command, check=True, capture_output=True).stdout)

    imports = compare(
        "a process that imports and ends",
        [Peer(f"import {name}", imported(name), 1) for name in ("pyro", "pyrovae")],
        options=options,
        reference="import pyro",
        unit="s a process",
        answer="modules loaded",
    )
    by_pyro, by_pyrovae = (timing.seconds for timing in imports.timings)
    beyond = statistics.median(b - a for a, b in zip(by_pyro, by_pyrovae, strict=True))
    rows = binary_rows(128, LARGE.data_dim)
    first = compare(
        f"an eager fit of one step, {LARGE.title}, batch 128, warm process",
        [
            Peer("first step", lambda: first_step(rows), 1),
            Peer("everything", lambda: fit_once(rows, LARGE.vae()), 1),
        ],
        options=options,
        reference="first step",
        unit="ms a fit",
        answer="loss, nats a row",
    )
    aims = [
        Aim("import beyond that of pyro", beyond, "≤", 0.3, "s"),
        Aim("first step of an eager fit", first.median("first step"), "≤", 50, "ms"),
    ]
    return Part([imports, first], aims)


def fit_once(rows: Tensor, vae: pv.VAE) -> float:
    return pv.fit(vae, rows, epochs=1, batch_size=len(rows), compile=False).records[-1]["loss"]


def first_step(rows: Tensor) -> Clocked:
    """From the beginning of fit's first step, all checks behind it, to its end."""
    seconds = []
    step = pyrovae.training.loop.step

    def clocked(*arguments: Any) -> float:
        started = time.perf_counter()
        try:
            return step(*arguments)
        finally:
            seconds.append(time.perf_counter() - started)

    with mock.patch.object(pyrovae.training.loop, "step", clocked):
        loss = fit_once(rows, LARGE.vae())
    return Clocked(loss, seconds[0])


PARTS = {
    "step": step,
    "evaluate": evaluate,
    "wall": wall,
    "growth": growth,
    "settle": settle,
    "import": start,
}
GPU = Aim("the same on a GPU", None, target=None)


def main() -> None:
    parser = harness.arguments(__doc__, rounds=9)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=[], help="default: all")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does everything run?")
    parsed = parser.parse_args()
    options = Options.of(parsed)
    found = harness.environment() | {
        name: version for module in (numpyro, pythae) if module for name, version in module.VERSIONS.items()
    }
    print("; ".join(f"{name} {value}" for name, value in found.items() if name != "command"))
    aims = []
    for name in parsed.parts or PARTS:
        print(f"\n## {name}\n", flush=True)
        part = PARTS[name](options, parsed.quick)
        print(*part.tables, harness.aims_table(part.aims), sep="\n\n")
        for what, value in part.notes.items():
            print(f"{what}: {value if isinstance(value, str | int) else f'{value:.4g}'}")
        aims += part.aims
        judged = [dataclasses.asdict(aim) | {"met": aim.met} for aim in part.aims]
        found[name] = dataclasses.asdict(part) | {"aims": judged}
        if options.json is not None:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print("\n## all\n", harness.aims_table([*aims, GPU]), sep="\n")


if __name__ == "__main__":
    main()
