"""How often does a method trust a wrong log P(x), and does the check on simulated rows refuse it?

    python benchmarks/traps.py --rows 100 --check-seeds 2 --methods auto importance refined --out traps.json
    python benchmarks/traps.py --part 1/2 --out first.json; python benchmarks/traps.py --part 2/2 --out second.json
    python benchmarks/traps.py --show first.json second.json
    python benchmarks/traps.py --verify

Every setting of ``trap_models.SETTINGS`` is a Pyro pair whose log P(x) is known. For every method and seed, the script
evaluates the rows and checks the method on the model. A row of the table joins the seeds:

    trust   share of rows that the drawn weights alone call "trust"
    kept    the same after the check
    > 0.5   kept rows that are off by more than 0.5 nats
    > 0.1   kept rows that are off by more than 0.1 nats and 4 standard errors
    lost    mean posterior mass that the answers of rows trusted before the check leave out, from the known log P(x);
            the expected share of missed rows
    near    share of rows within 0.05 nats of the truth
    of them share of these that are kept
    check   per seed: + passed, - failed, ? undecided, and missed/trusted simulated rows of all seeds
    s       seconds of a seed, evaluation and check

Results are written after every setting. A run with the same options continues after those in the file. The file does
not tell versions of pyrovae apart: use a new one for each.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import harness
import numpy as np
import torch
from trap_models import HELD_BACK, SETTINGS, Setting, verify

import pyrovae as pv
from pyrovae.refusals import Refused

METHODS: dict[str, dict[str, Any]] = {
    "importance": {"num_samples": 5000},
    "refined": {},
    "annealed": {},
    "auto": {},
}
SHARE_MISSED = 0.1  # from this share of missed rows on, a method must be refused
MOST_WRONG, MOST_WRONG_IN_ONE = 0.001, 0.01
NEAR_TRUSTED, SETTINGS_TRUSTED = 0.9, 30


def measure(setting: Setting, method: str, seed: int, rows: int, compiled: bool) -> dict[str, Any]:
    """Evaluate the rows, check the method, and count."""
    options = METHODS[method] | {"compile": "auto" if compiled else False}
    pair, x, truth = setting.build(0, rows)
    try:
        started = time.perf_counter()
        evidence = getattr(pv.evidence, method)(pair, x, seed=seed, check=False, **options)
        evaluated = time.perf_counter()
        check = pv.evidence.check(pair, x, method, seed=seed, **options)
        checked = time.perf_counter()
    except Refused as error:
        return {"refused": str(error)}
    except Exception as error:  # a crash is a result, too
        return {"crashed": f"{type(error).__name__}: {error}"}
    off = evidence.estimate - truth
    off = np.where(np.isnan(off), np.inf, off)
    exact = evidence.verdict == "trust"  # rows that need no check
    before = exact | (evidence.verdict == "unchecked")
    after = before if check.passed else exact
    half, near = np.abs(off) > 0.5, np.abs(off) <= 0.05
    tenth = (np.abs(off) > 0.1) & ~(np.abs(off) <= 4 * evidence.mcse)
    left_out = -np.expm1(np.minimum(off, 0.0))
    finite = np.abs(off[np.isfinite(off)])
    return {
        "rows": len(off),
        "before": int(before.sum()),
        "after": int(after.sum()),
        "half_before": int((before & half).sum()),
        "half_after": int((after & half).sum()),
        "tenth_before": int((before & tenth).sum()),
        "tenth_after": int((after & tenth).sum()),
        "left_out": float(left_out[before].sum()),
        "near": int(near.sum()),
        "near_before": int((before & near).sum()),
        "near_after": int((after & near).sum()),
        "mean_error": float(off[np.isfinite(off)].mean()) if len(finite) else None,
        "worst_after": float(np.abs(off[after]).max()) if after.any() else 0.0,
        "wrong_rows": [int(row) for row in (after & half).nonzero()[0][:10]],
        "answered_by": dict(Counter(map(str, evidence.answered_by))),
        "cost": float(evidence.cost.mean()),
        "passed": check.passed,
        "missed": check.missed,
        "heaviest": check.heaviest,
        "check_trusted": check.trusted,
        "simulated": check.simulated,
        "beyond": check.beyond,
        "seconds": round(evaluated - started, 2),
        "check_seconds": round(checked - evaluated, 2),
    }


# ---------------------------------------------------------------------------------------------------------------------
# The results of a setting and a method, joined over seeds


def total(results: Sequence[dict[str, Any]], key: str) -> float:
    return sum(result[key] for result in results)


def share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f}%"


def line(results: Sequence[dict[str, Any]]) -> str:
    """A row of the table, without its name."""
    for word in ("crashed", "refused"):
        told = next((result[word] for result in results if word in result), None)
        if told is not None:
            return f"{word}: {told.splitlines()[0][:70]}"
    rows, before, after, near = (total(results, key) for key in ("rows", "before", "after", "near"))
    marks = "".join({True: "+", False: "-", None: "?"}[result["passed"]] for result in results)
    counts = f"{total(results, 'missed')}/{total(results, 'check_trusted')}"
    seconds = (total(results, "seconds") + total(results, "check_seconds")) / len(results)
    return (
        f"{percent(before / rows):>5} {percent(after / rows):>5} {total(results, 'half_after'):5d} "
        f"{total(results, 'tenth_after'):5d} {percent(share(total(results, 'left_out'), before)):>5} "
        f"{percent(near / rows):>5} {percent(share(total(results, 'near_after'), near)):>7} "
        f"{marks:>5} {counts:>8} {seconds:5.0f}"
    )


HEAD = (
    f"{'setting':27} {'method':10} {'trust':>5} {'kept':>5} {'> 0.5':>5} {'> 0.1':>5} {'lost':>5} {'near':>5} "
    f"{'of them':>7} {'check':>5} {'missed':>8} {'s':>5}"
)


def criterion(method: str, by_setting: dict[str, list[dict[str, Any]]]) -> list[tuple[str, bool, list[str]]]:
    """Return every sentence of the criterion for a method, whether it holds, and the settings that it fails in."""
    usable = {
        name: results for name, results in by_setting.items() if not any("refused" in r for r in results)
    }
    crashed = [name for name, results in usable.items() if any("crashed" in r for r in results)]
    done = {name: results for name, results in usable.items() if name not in crashed}

    missing = {
        name: results
        for name, results in done.items()
        if (share(total(results, "left_out"), total(results, "before")) or 0.0) >= SHARE_MISSED
    }
    believed = [f"{name} ({total(r, 'after')} kept)" for name, r in missing.items() if total(r, "after")]

    wrong = {name: (total(results, "half_after"), total(results, "after")) for name, results in done.items()}
    off, kept = sum(o for o, _ in wrong.values()), sum(k for _, k in wrong.values())
    shares = {name: o / k for name, (o, k) in wrong.items() if k}
    mean = float(np.mean(list(shares.values()))) if shares else 0.0
    worst = [f"{name} ({100 * s:.1f} %)" for name, s in shares.items() if s > MOST_WRONG_IN_ONE]
    contributing = [f"{name} ({o} of {k})" for name, (o, k) in wrong.items() if o]

    kept_share = {
        name: share(total(results, "near_after"), total(results, "near")) for name, results in done.items()
    }
    good = [name for name, s in kept_share.items() if s is not None and s >= NEAR_TRUSTED]
    short = [
        f"{name} ({percent(s)} of {total(done[name], 'near')})"
        for name, s in kept_share.items()
        if name not in good
    ]
    return [
        (f"{method}: no crash ({len(crashed)})", not crashed, crashed),
        (
            f"{method}: refused in all seeds where 10 % or more of trusted rows are missed "
            f"({len(missing) - len(believed)} of {len(missing)} settings)",
            not believed,
            believed,
        ),
        (
            f"{method}: at most 1 in 1000 trusted rows off by more than 0.5 nats ({off} of {kept} rows = "
            f"{off / kept if kept else 0:.2%}; mean over settings {mean:.2%})",
            off <= MOST_WRONG * kept and mean <= MOST_WRONG,
            contributing,
        ),
        (f"{method}: no setting above 1 %", not worst, worst),
        (
            f"{method}: ≥ 90 % of rows within 0.05 nats of the truth are trusted in ≥ {SETTINGS_TRUSTED} settings "
            f"({len(good)} of {len(done)})",
            len(good) >= SETTINGS_TRUSTED,
            short,
        ),
    ]


def show(results: dict[str, dict[str, Any]], held_back: bool) -> None:
    """Print the table and what becomes of the criterion; settings that are held back apart."""
    kinds = {setting.name: setting.kind for setting in SETTINGS}
    order = {setting.name: place for place, setting in enumerate(SETTINGS)}
    joined: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for key, result in sorted(
        results.items(), key=lambda item: order.get(item[0].rsplit("|", 2)[0], len(order))
    ):
        name, method, _ = key.rsplit("|", 2)
        if name in kinds:
            joined[name][method].append(result)
    for apart in (False, True) if held_back else (False,):
        names = [name for name in joined if (kinds[name] in HELD_BACK) == apart]
        if not names:
            continue
        print(f"\n{'held back' if apart else 'settings'}: {len(names)}\n\n{HEAD}")
        for name in names:
            for method in (method for method in METHODS if method in joined[name]):
                print(f"{name:27} {method:10} {line(joined[name][method])}")
        for method in METHODS:
            found = {name: joined[name][method] for name in names if method in joined[name]}
            if not found:
                continue
            print()
            for sentence, met, failing in criterion(method, found):
                print(f"{'yes' if met else 'NO ':3} {sentence}")
                if failing:
                    print(f"      {'; '.join(failing)}")


# ---------------------------------------------------------------------------------------------------------------------
# Running


def in_turn(settings: Iterable[Setting]) -> list[Setting]:
    """One setting of each kind, then a second one of each, so that a run that ends early has seen every kind."""
    seen: Counter[str] = Counter()
    places = []
    for setting in settings:
        places.append((seen[setting.kind], setting))
        seen[setting.kind] += 1
    return [setting for _, setting in sorted(places, key=lambda place: place[0])]


def run(arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Measure what the file does not have yet."""
    options = {"rows": arguments.rows, "compile": arguments.compile, "methods": METHODS}
    found: dict[str, Any] = harness.environment() | {"options": options, "results": {}}
    if arguments.out and arguments.out.exists():
        found = harness.read(arguments.out)
        if found["options"] != options:
            raise SystemExit(f"{arguments.out} is of other options, {found['options']}. Name another file.")
    chosen = [
        setting
        for setting in SETTINGS
        if arguments.only in f"{setting.kind}: {setting.name}"
        and (arguments.held_back or not setting.held_back)
    ]
    part, parts = map(int, arguments.part.split("/"))
    if not 1 <= part <= parts:
        raise SystemExit(f"--part is {arguments.part}; it has to be from 1/{parts} to {parts}/{parts}")
    print(HEAD, flush=True)
    for setting in in_turn(chosen)[part - 1 :: parts]:
        for method in arguments.methods:
            keys = [f"{setting.name}|{method}|{seed}" for seed in range(arguments.check_seeds)]
            new = [key for key in keys if key not in found["results"]]
            for key in new:
                seed = int(key.rpartition("|")[2])
                found["results"][key] = measure(setting, method, seed, arguments.rows, arguments.compile)
            if new:
                if arguments.out:
                    harness.write(arguments.out, found)
                print(
                    f"{setting.name:27} {method:10} {line([found['results'][key] for key in keys])}",
                    flush=True,
                )
    return found["results"]


def verified(only: str) -> None:
    """Compare every log P(x) with importance sampling from a distribution close to the posterior."""
    for setting in SETTINGS:
        if only in f"{setting.kind}: {setting.name}":
            error, ratio = verify(setting)
            if not ratio < 5:
                raise SystemExit(f"{setting.name}: off by {error:.1e} nats, {ratio:.1f} standard errors")
            print(f"{setting.name:27} within {error:.1e} nats, {ratio:.1f} standard errors", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=200, help="rows of a setting (default 200)")
    parser.add_argument(
        "--check-seeds", type=int, default=5, help="evaluations and checks of each (default 5)"
    )
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--only", default="", help="settings with this in 'kind: name'")
    parser.add_argument(
        "--held-back", action="store_true", help="also the kinds " + ", ".join(sorted(HELD_BACK))
    )
    parser.add_argument("--part", default="1/1", help="2/3: the second of three parts of the settings")
    parser.add_argument("--compile", action="store_true", help="let the methods compile the pair")
    parser.add_argument("--out", type=Path, help="a JSON file to continue and to write")
    parser.add_argument(
        "--show", type=Path, nargs="+", help="print the table of these files, and run nothing"
    )
    parser.add_argument("--verify", action="store_true", help="test log P(x) itself, and run nothing else")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.verify:
        verified(arguments.only)
        return
    if arguments.show:
        results = {
            key: result for path in arguments.show for key, result in harness.read(path)["results"].items()
        }
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            results = run(arguments)
    show(results, arguments.held_back)


if __name__ == "__main__":
    main()
