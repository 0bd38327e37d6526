"""What a column of log weights says about log P(x): tensors in, tensors out, no model in sight.

Every function takes log weights of shape (samples, rows) and returns one float64 number a row, in nats
where it has a unit. ``Accumulator`` is the same arithmetic fed tile by tile, so that no (samples, rows)
matrix has to exist; the functions are an accumulator that was fed once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

# Below this many draws the tail has fewer than five of them, and a fit of its shape says nothing.
FEWEST_DRAWS_FOR_K = 25


def log_mean_exp(log_weights: Tensor) -> Tensor:
    """log (1/S) Σ_s exp(log_weights[s, n]), shape (rows,), in nats."""
    return Accumulator.of(log_weights).log_mean_exp()


def ess(log_weights: Tensor) -> Tensor:
    """Effective sample size (Σ w)² / Σ w², shape (rows,), between 1 and S; 0 where every weight is zero.

    Kong (1992).
    """
    return Accumulator.of(log_weights).ess()


def smoothed_log_mean_exp(log_weights: Tensor) -> Tensor:
    """``log_mean_exp`` with the largest weights Pareto smoothed, shape (rows,), in nats.

    The tail's weights give way to the expected order statistics of the generalised Pareto distribution
    fitted to them, none above the largest one seen. Where no tail can be fitted, the plain log-mean-exp.
    Not a lower bound. Vehtari, Simpson, Gelman, Yao and Gabry (2024).
    """
    return Accumulator.of(log_weights).smoothed()


def mcse(log_weights: Tensor) -> Tensor:
    """Monte-Carlo standard error of ``log_mean_exp``, shape (rows,), in nats.

    By the delta method sd(log ŵ) ≈ CV/√S = sqrt(1/ESS − 1/S). NaN for one draw, which says nothing
    about its own error.
    """
    return Accumulator.of(log_weights).mcse()


def bias(log_weights: Tensor) -> Tensor:
    """First-order bias of ``log_mean_exp``, −CV²/(2S), shape (rows,), in nats; never positive.

    Jensen's inequality pulls the log of a mean below the log of its expectation; to first order by half
    the squared relative error (Nowozin 2018).
    """
    return Accumulator.of(log_weights).bias()


def pareto_k(log_weights: Tensor, resolution: float | Tensor = 0.0) -> Tensor:
    """Shape k-hat of a generalised Pareto tail fitted to each row's largest weights, shape (rows,).

    Below 0.5 the weights have a variance, above 0.7 the estimate converges too slowly to be of use
    (Vehtari, Simpson, Gelman, Yao and Gabry 2024). NaN for fewer than 25 draws; −inf where the
    largest weights are all the same within ``resolution``, because the weights are constant or take few
    values. Where fewer than five weights stand above the cut-off: NaN if others tie with it, +inf if the
    others are zero.
    """
    return Accumulator.of(log_weights).pareto_k(resolution)


def k_threshold(num_samples: int) -> float:
    """The k-hat up to which S draws can be believed: min(1 − 1/log10 S, 0.7).

    Vehtari et al. (2024), equation 13; S is ``num_samples``.
    """
    return min(1 - 1 / math.log10(num_samples), 0.7) if num_samples > 1 else -math.inf


def tail_length(num_samples: int) -> int:
    """How many of the largest weights the Pareto tail is fitted to: ceil(min(S/5, 3√S))."""
    return math.ceil(min(num_samples / 5, 3 * math.sqrt(num_samples)))


class Accumulator:
    """Running sums of weights over sample tiles, in float64, and the top of each row's weights.

    ``num_samples`` in all will be fed for ``num_rows`` rows, in at most ``num_tiles`` tiles. The sums of
    each tile are kept and added up in the order of the tiles' indices at the end: the answer has the same
    bits whichever tile came first. Memory is (tiles + tail) × rows, taken once: small pieces kept from
    every tile would end up between the large ones that are freed, and hold on to their memory.

    ``strata``, where given, has for every tile the stratum that its samples are drawn from: the error is
    then the one within strata. Draws of one mixture, so many from each component, are such strata.
    """

    def __init__(
        self,
        num_samples: int,
        num_rows: int,
        num_tiles: int,
        device: torch.device | None = None,
        strata: Sequence[int] | None = None,
    ) -> None:
        self.num_samples = num_samples
        self._stratified = strata is not None
        self._strata = torch.tensor(strata or [0] * num_tiles, device=device)
        self._counts = torch.zeros(num_tiles, dtype=torch.float64, device=device)
        # for every tile: an offset, and Σ w, Σ w² of the weights divided by its exponential
        self._tiles = torch.zeros(num_tiles, 3, num_rows, dtype=torch.float64, device=device)
        # One more than the tail: the cut-off is the largest weight outside it.
        length = min(num_samples, tail_length(num_samples) + 1)
        self._top = torch.full((length, num_rows), -math.inf, dtype=torch.float64, device=device)
        self._waiting: list[Tensor] = []  # log weights that may be among the largest

    @classmethod
    def of(cls, log_weights: Tensor) -> Accumulator:
        """An accumulator fed all of ``log_weights``, shape (samples, rows), at once."""
        if log_weights.dim() != 2 or log_weights.numel() == 0:
            raise ValueError(
                f"log_weights: expected shape (samples, rows), neither empty, got {tuple(log_weights.shape)}. "
                "Put samples on dim 0 and rows on dim 1."
            )
        accumulator = cls(len(log_weights), log_weights.shape[1], 1, log_weights.device)
        accumulator.add(0, log_weights)
        return accumulator

    def add(self, tile: int, log_weights: Tensor) -> None:
        """Feed tile number ``tile``: log weights of shape (some samples, rows)."""
        lw = log_weights.to(torch.float64)
        peak = lw.max(dim=0).values
        # Where a row has no weight above zero, the offset must not be −inf: −inf − −inf is NaN.
        offset = torch.where(torch.isneginf(peak), 0.0, peak)
        w = torch.exp(lw - offset)
        self._tiles[tile] = torch.stack([offset, w.sum(dim=0), (w * w).sum(dim=0)])
        self._counts[tile] = len(lw)
        self._waiting.append(lw)
        # A search costs as much as it goes through, the largest so far among that: one a tile would not be linear.
        if sum(map(len, self._waiting)) >= 2 * len(self._top):
            self._largest()

    def _largest(self) -> Tensor:
        """The logs of the largest weights so far, one more than the tail has, the largest first, (length, rows)."""
        if self._waiting:
            pool = torch.cat([self._top, *self._waiting])
            self._top = pool.topk(len(self._top), dim=0, sorted=True).values
            self._waiting.clear()
        return self._top

    def _by_tile(self) -> tuple[Tensor, Tensor, Tensor]:
        """An offset, (rows,), and Σ w, Σ w² of every tile's weights divided by its exponential, (tiles, rows)."""
        offsets, first, second = self._tiles.unbind(dim=1)
        # A tile of zero weights has offset 0 and sums 0; it must not raise the common offset.
        empty = first == 0
        offset = torch.where(empty, -math.inf, offsets).max(dim=0).values
        offset = torch.where(torch.isneginf(offset), 0.0, offset)
        shrink = torch.where(empty, 0.0, torch.exp(offsets - offset))
        return offset, shrink * first, shrink**2 * second

    def _sums(self) -> tuple[Tensor, Tensor, Tensor]:
        """An offset and Σ w, Σ w² of the weights divided by its exponential, each of shape (rows,)."""
        offset, first, second = self._by_tile()
        return offset, first.sum(dim=0), second.sum(dim=0)

    def log_mean_exp(self) -> Tensor:
        """See :func:`log_mean_exp`."""
        offset, first, _ = self._sums()
        return offset + first.log() - math.log(self.num_samples)

    def ess(self) -> Tensor:
        """See :func:`ess`."""
        _, first, second = self._sums()
        return torch.where(first > 0, first**2 / second, 0.0)

    def mcse(self) -> Tensor:
        """See :func:`mcse`; with strata, from the variances within them."""
        _, first, second = self._by_tile()
        total = first.sum(dim=0)
        variance = torch.zeros_like(total)  # of Σ w
        for stratum in self._strata.unique().tolist():
            tiles = self._strata == stratum
            count = float(self._counts[tiles].sum())
            if count == 1:  # says nothing about its own error
                return torch.full_like(total, math.nan)
            within = (second[tiles].sum(dim=0) - first[tiles].sum(dim=0) ** 2 / count).clamp(min=0)
            # Strata may be small; all draws together never are, and keep to sqrt(1/ESS − 1/S).
            variance += within * count / (count - 1) if self._stratified else within
        # A row of zero weights has log 0 ± ∞, as where a single one is above zero among ever more.
        return torch.where(total > 0, variance.sqrt() / total, math.inf)

    def bias(self) -> Tensor:
        """See :func:`bias`."""
        return -(self.mcse() ** 2) / 2

    def pareto_k(self, resolution: float | Tensor = 0.0) -> Tensor:
        """See :func:`pareto_k`."""
        largest = self._largest()
        peak = largest[0]
        if self.num_samples < FEWEST_DRAWS_FOR_K:
            return torch.full_like(peak, math.nan)
        top, cutoff, lengths = self._tail()
        # Fewer than five weights above the cut-off: where others tie with it, the weights take few values,
        # as with a discrete latent, and more draws tell; where all others are zero, they have collapsed.
        tied = (top == cutoff).sum(dim=0) > 1
        shape = torch.where(tied, math.nan, math.inf).to(torch.float64)
        for rows, excess in self._excesses(top, cutoff, lengths):
            shape[rows] = _fit_pareto(excess)[0]
        k = shape.to(peak.device)
        # The largest weights are all one: nothing lies beyond them, as with constant weights.
        k = torch.where(peak - largest[-1] <= resolution, -math.inf, k)
        return torch.where(torch.isfinite(peak), k, math.nan)  # no weight above zero: nothing to fit

    def smoothed(self) -> Tensor:
        """See :func:`smoothed_log_mean_exp`."""
        offset, first, _ = self._sums()
        if self.num_samples < FEWEST_DRAWS_FOR_K:
            return self.log_mean_exp()
        peak = self._largest()[0]
        total = (first * torch.exp(offset - peak)).cpu()  # in units of the largest weight
        for rows, excess in self._excesses(*self._tail()):
            k, scale = _fit_pareto(excess)
            probability = ((torch.arange(len(excess), dtype=torch.float64) + 0.5) / len(excess))[:, None]
            # the quantile function of the excess, σ (−1 + (1 − p)^−k) / k
            quantile = scale * torch.expm1(-k * torch.log1p(-probability)) / k
            # The cut-off is in both sums; none may exceed the largest excess seen.
            difference = (torch.minimum(quantile, excess[-1]) - excess).sum(dim=0)
            total[rows] += torch.where(torch.isfinite(difference), difference, 0.0)
        smoothed = peak + total.to(peak.device).log() - math.log(self.num_samples)
        return torch.where(torch.isfinite(peak), smoothed, self.log_mean_exp())

    def _tail(self) -> tuple[Tensor, Tensor, Tensor]:
        """The largest weights' logs, the largest (zero) first; the cut-off; how many lie above it, (rows,)."""
        top = self._largest()
        top = (top - top[0]).cpu()
        cutoff = top[-1].clamp(min=math.log(torch.finfo(torch.float64).tiny))
        return top, cutoff, (top > cutoff).sum(dim=0)  # ties with the cut-off are not in the tail

    @staticmethod
    def _excesses(top: Tensor, cutoff: Tensor, lengths: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows with tails of one length, five or more, and by how much their weights exceed the cut-off."""
        for length in lengths.unique().tolist():
            if length > 4:
                rows = lengths == length
                yield rows, (torch.exp(top[:length, rows]) - torch.exp(cutoff[rows])).flip(0)


def _fit_pareto(excess: Tensor) -> tuple[Tensor, Tensor]:
    """Shape and scale of a generalised Pareto distribution fitted to ``excess``, shape (n, rows) → (rows,).

    ``excess`` is sorted upwards on dim 0 and positive. The quasi-Bayesian estimate of Zhang and Stephens
    (2009), with the weak prior of Vehtari et al. (2024) that pulls k towards 0.5 with the weight of ten
    draws. Vectorised over the rows, which the implementation in arviz loops over.
    """
    n = len(excess)
    grid_size = 30 + int(math.sqrt(n))
    grid = torch.arange(1, grid_size + 1, dtype=torch.float64, device=excess.device)
    quartile = excess[int(n / 4 + 0.5) - 1]
    # theta: (grid, rows), the profile parameter −k/σ on a grid around what the quartile suggests
    theta = (1 - torch.sqrt(grid_size / (grid - 0.5)))[:, None] / (3 * quartile) + 1 / excess[-1]
    k = torch.stack([torch.log1p(-t * excess).mean(dim=0) for t in theta])
    log_likelihood = n * (torch.log(-theta / k) - k - 1)
    weight = torch.softmax(log_likelihood, dim=0)
    weight = torch.where(weight >= 10 * torch.finfo(torch.float64).eps, weight, 0.0)
    posterior_theta = (weight * theta).sum(dim=0) / weight.sum(dim=0)
    k = torch.log1p(-posterior_theta * excess).mean(dim=0)
    return (n * k + 10 * 0.5) / (n + 10), -k / posterior_theta
