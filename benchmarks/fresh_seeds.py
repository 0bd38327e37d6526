"""Do the statistical tests hold on seeds nobody has looked at?

Runs every check of tests/statistical.py on fresh seeds, drawn from the operating system, and counts the
failures. At a family-wise false-alarm rate of 1e-6 there should be none.

    python benchmarks/fresh_seeds.py --seeds 200 --json benchmarks/results/fresh_seeds.json
"""

from __future__ import annotations

import argparse
import json
import secrets
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))


def run(seed: int) -> dict[str, dict[str, object]]:
    """Every check on one seed: what it measured, and the message where it failed."""
    import torch
    from statistical import CHECKS

    torch.set_num_threads(1)
    results: dict[str, dict[str, object]] = {}
    for name, check in CHECKS.items():
        try:
            results[name] = dict(check(seed))
        except AssertionError as error:
            results[name] = {"failed": str(error) or "assertion"}
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    seeds = [secrets.randbits(31) for _ in range(arguments.seeds)]
    started = time.monotonic()
    with ProcessPoolExecutor(arguments.workers) as pool:
        results = dict(zip(seeds, pool.map(run, seeds), strict=True))
    checks = list(next(iter(results.values())))
    print(f"{'check':<24}{'seeds':>8}{'failures':>10}   mean of what was measured")
    for check in checks:
        measured = [result[check] for result in results.values()]
        passed = [values for values in measured if "failed" not in values]
        means = {key: sum(v[key] for v in passed) / len(passed) for key in passed[0]} if passed else {}
        shown = ", ".join(f"{key} {value:.4g}" for key, value in means.items())
        print(f"{check:<24}{len(measured):>8}{len(measured) - len(passed):>10}   {shown}")
    print(f"{time.monotonic() - started:.0f} s with {arguments.workers} workers")
    if arguments.json:
        arguments.json.parent.mkdir(exist_ok=True)
        arguments.json.write_text(
            json.dumps({str(seed): result for seed, result in results.items()}, indent=1)
        )
    sys.exit(any("failed" in values for result in results.values() for values in result.values()))


if __name__ == "__main__":
    main()
