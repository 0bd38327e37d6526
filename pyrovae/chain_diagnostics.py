"""R-hat and effective sample sizes of chains, by arviz 0.23 or 1.x, and the problems that they show.

This is the only module that imports arviz, and only when one of its functions is called.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from pyro.ops.stats import effective_sample_size
from torch import Tensor

if TYPE_CHECKING:
    import pandas as pd

# Thresholds for chains by Vehtari et al. (2021).
_R_HAT = 1.01
_EFFECTIVE = 400


class Checks(NamedTuple):
    """The largest R-hat and smallest effective sample size of all coordinates, and the failed checks, in words."""

    r_hat: float
    ess: float
    problems: tuple[str, ...]


def check(draws: Tensor, sites: Sequence[str], divergences: int) -> Checks:
    """Return the checks of draws, shape (chains, draws, dim); ``sites`` names the latent of each coordinate."""
    coordinates = draws.movedim(2, 0).numpy()
    if len(draws) == 1:  # arviz has no R-hat of one chain, so compare its halves
        half = draws.shape[1] // 2
        pairs = [np.concatenate([c[:, :half], c[:, -half:]]) for c in coordinates]
    else:
        pairs = list(coordinates)
    r_hats = np.array([chain_rhat(pair) for pair in pairs])
    effective = np.array([min(chain_ess(c, "bulk"), chain_ess(c, "tail")) for c in coordinates])
    # A chain that does not move has no R-hat; count it as infinite.
    r_hats, effective = np.nan_to_num(r_hats, nan=np.inf), np.nan_to_num(effective, nan=0.0)
    problems = []
    if r_hats.max() > _R_HAT:
        problems.append(
            f"R-hat {r_hats.max():.3f}, above {_R_HAT}, at {sites[r_hats.argmax()]!r}: the chains "
            "disagree. Run them longer. If that does not help, the posterior has several modes or is not identified."
        )
    if effective.min() < _EFFECTIVE:
        problems.append(
            f"an effective sample size of {effective.min():.0f}, below {_EFFECTIVE}, at "
            f"{sites[effective.argmin()]!r}: draw more samples."
        )
    distinct = distinct_ess(draws)
    if distinct < min(_EFFECTIVE, effective.min()):
        problems.append(
            f"draws that repeat earlier ones, with an effective sample size of {distinct:.0f}, below {_EFFECTIVE}: they were "
            "resampled or rounded. Draw more samples before resampling, and save all digits."
        )
    if divergences:
        problems.append(
            f"{divergences} of {coordinates[0].size} steps diverged: the posterior has regions of high curvature "
            "that the steps miss. Raise target_accept_prob, or write the model non-centred."
        )
    return Checks(float(r_hats.max()), min(float(effective.min()), distinct), tuple(problems))


def frame_of(latents: Mapping[str, Tensor], labels: Sequence[str]) -> pd.DataFrame:
    """Return arviz's summary of every entry of latents, each of shape (chains, draws, ...).

    R-hat and effective sample sizes are NaN for a constant entry.
    """
    import pandas as pd

    values = torch.cat([value.reshape(*value.shape[:2], -1) for value in latents.values()], dim=2).double()
    lines = []
    for series in values.movedim(2, 0).numpy():
        moves = np.ptp(series) > 0
        lines.append(
            {
                "mean": series.mean(),
                "sd": series.std(ddof=1),
                "mcse_mean": chain_mcse(series) if moves else 0.0,
                "ess_bulk": chain_ess(series, "bulk") if moves else math.nan,
                "ess_tail": chain_ess(series, "tail") if moves else math.nan,
                "r_hat": chain_rhat(series) if moves else math.nan,
            }
        )
    return pd.DataFrame(lines, index=pd.Index(labels, name="parameter"))


def series_ess(series: Tensor) -> float:
    """Return the effective sample size for the mean of a series, shape (chains, draws); all draws if it is constant."""
    found = chain_ess(series.numpy(), "mean")
    return found if math.isfinite(found) else float(series.numel())


def row_ess(series: Tensor) -> Tensor:
    """Return the effective sample size for the mean of each row's series, shape (chains, draws, rows) → (rows,).

    It is Pyro's, which handles many rows at once, on half chains as in arviz.
    """
    half = series.shape[1] // 2
    halves = torch.cat([series[:, :half], series[:, series.shape[1] - half :]])
    total = series.shape[0] * series.shape[1]
    ess = effective_sample_size(halves)
    # More than the number of draws is chance, so it is capped there; a constant series has all of them.
    return ess.nan_to_num(nan=float(total)).clamp(1.0, float(total))


def distinct_ess(draws: Tensor) -> float:
    """Return n² / Σ c² of draws, shape (chains, draws, dim), if some of them recur; inf if none does (Kish 1965).

    c is how often each distinct draw occurs, and n = Σ c. A chain that stays where it is counts once: its autocorrelation
    shows that. Draws that come again later were resampled with replacement, which autocorrelation does not show.
    """
    moved = torch.ones(draws.shape[:2], dtype=torch.bool)
    moved[:, 1:] = (draws[:, 1:] != draws[:, :-1]).any(dim=2)
    visits = np.ascontiguousarray(draws[moved].numpy())
    whole = visits.view(np.dtype((np.void, visits.itemsize * visits.shape[1])))
    counts = np.unique(whole, return_counts=True)[1].astype(float)
    return math.inf if (counts == 1).all() else float(counts.sum() ** 2 / (counts**2).sum())


def load_arviz() -> tuple[Any, bool]:
    """Return arviz, and whether it is 1.x, whose container is xarray's ``DataTree``."""
    with warnings.catch_warnings():
        # 0.x announces 1.x on import.
        warnings.simplefilter("ignore", FutureWarning)
        import arviz
    return arviz, int(arviz.__version__.split(".")[0]) >= 1


def chain_ess(series: np.ndarray, method: str) -> float:
    """Return the effective sample size of a series, shape (chains, draws), for its "mean", "bulk" or "tail"."""
    # 1.x has no default for the quantiles of the tail if the input is an array.
    options = {"prob": (0.05, 0.95)} if method == "tail" else {}
    return float(load_arviz()[0].ess(series, method=method, **options))


def chain_rhat(series: np.ndarray) -> float:
    """Return the rank-normalised split R-hat of a series, shape (chains, draws); NaN of one that does not move."""
    with np.errstate(invalid="ignore"):
        return float(load_arviz()[0].rhat(series))


def chain_mcse(series: np.ndarray) -> float:
    """Return the Monte-Carlo standard error of the mean of a series, shape (chains, draws)."""
    return float(load_arviz()[0].mcse(series, method="mean"))
