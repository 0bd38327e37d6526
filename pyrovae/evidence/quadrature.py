"""log P(x) of up to three latent dimensions by the trapezoidal rule, on grids around a row's modes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrovae import checks
from pyrovae.evidence.gaussians import fit_gaussians
from pyrovae.evidence.posterior import Gaussian, Posterior, undisturbed
from pyrovae.evidence.refined import all_starts
from pyrovae.evidence.result import Columns, LogEvidence
from pyrovae.log_weights import Evaluation
from pyrovae.model import LatentVariableModel
from pyrovae.noise import Stream
from pyrovae.progress import Progress

MOST_DIMENSIONS = 3

_RADIUS = 7.0  # standard deviations: what lies beyond is 1e-10 of a Gaussian in three dimensions
_FIRST_ORDER = 8
_MOST_POINTS = 1 << 18  # of one grid
_STARTS, _FIT_STEPS = 4, 8
_PRIOR_DRAWS = 1000


def quadrature(
    pair: LatentVariableModel,
    x: Any,
    tolerance: float = 1e-3,
    seed: int = 0,
    tile: tuple[int, int] | None = None,
    progress: bool = False,
) -> LogEvidence:
    """log P(x_n) = log ∫ P(x_n, u) du over up to three latent dimensions, by the trapezoidal rule.

    A row's integrand is cut by a partition of unity into pieces, P(x, u) q_c(u) / Σ q(u), one for each
    Gaussian that was fitted from the encoder's place and from modes found without it, and one as wide as
    the prior. Each is summed over a grid in the standard deviations of its q_c, on which the rule converges
    exponentially where the integrand is smooth (Trefethen and Weideman 2014). The order, points a
    dimension, is doubled until the answer stays; how much the last doubling moved it is the error stated.

    Args:
        pair: a ``VAE`` or any ``LatentVariableModel`` with one to three continuous latent dimensions.
        x: rows on dim 0; tensor, numpy array or DataFrame.
        tolerance: the error, in nats, at which a row is done.
        seed: of the search for modes; the grids themselves are not random.
        tile: (rows, points) computed at once; chosen from the shapes where None.
        progress: show a bar, or plain lines where there is no terminal.

    Returns:
        A ``LogEvidence`` whose rows are estimates. ``mcse`` holds the error by doubling the order, or a
        quarter of what the doubling before moved where that is more; the verdict is "another method" where
        it stays above the tolerance at 2^18 points.

    Raises:
        TypeError, ValueError: see ``pyrovae.checks`` and ``pyrovae.pair.inspect``; more than three latent
            dimensions, a discrete latent.

    Example:
        >>> import torch
        >>> from pyrovae import VAE
        >>> quadrature(VAE.mlp(6, latent_dim=2), torch.ones(4, 6)).verdict[0].item()
        'trust'
    """
    checks.positive("tolerance", tolerance)
    evaluation = Evaluation.prepare(pair, x, 128, seed, tile)
    check_dimensions(evaluation)
    with Progress("log P(x)", len(evaluation), "rows", progress) as bar:
        columns = integrate(evaluation, tolerance, bar)
    settled = (columns.mcse <= tolerance).cpu().numpy()
    return LogEvidence.of(
        columns,
        evaluation,
        method="quadrature",
        kind="estimate",
        verdict=np.where(settled, "trust", "another method"),
    )


def check_dimensions(evaluation: Evaluation) -> None:
    """Refuse a pair with more latent dimensions than a grid can fill."""
    with undisturbed(evaluation, Stream.PILOT):
        dim = Posterior(evaluation, slice(0, 1)).dim
    if dim > MOST_DIMENSIONS:
        raise checks.bad_value(
            "method",
            f"one to {MOST_DIMENSIONS} latent dimensions for quadrature",
            str(dim),
            "Use method='auto'.",
        )


def integrate(
    evaluation: Evaluation, tolerance: float, bar: Progress, most_cost: float = math.inf
) -> Columns:
    """Every row's integral: ``mcse`` is its error by doubling the order, as far as ``most_cost`` allows."""
    blocks = []
    for number, rows in enumerate(evaluation.blocks()):
        with undisturbed(evaluation, Stream.PILOT, number):
            posterior = Posterior(evaluation, rows)
            components, active = _pieces(posterior)
            grids = _Grids(evaluation, rows, components, active)
            estimate, error = grids.until(tolerance, most_cost - posterior.cost)
        unknown = torch.full_like(estimate, math.nan)
        cost = grids.cost + posterior.cost
        blocks.append(Columns(estimate, error, torch.zeros_like(estimate), unknown, unknown, cost))
        bar.advance(posterior.num_rows)
    return Columns.cat(blocks)


def _pieces(posterior: Posterior) -> tuple[list[Gaussian], Tensor]:
    """The Gaussians of a partition of unity, and which of them a row needs, (pieces, rows)."""
    fits, _ = fit_gaussians(posterior, all_starts(posterior, _STARTS), _FIT_STEPS, "full_rank")
    active = torch.ones(len(fits) + 1, posterior.num_rows, dtype=torch.bool, device=posterior.device)
    for j, fit in enumerate(fits):
        for earlier, other in enumerate(fits[:j]):
            # the same mode found twice: its place is near in standard deviations, either way
            apart = (fit.loc - other.loc)[..., None]
            near = [
                torch.linalg.solve_triangular(tril, apart, upper=False).norm(dim=(1, 2)) < 0.5
                for tril in (fit.tril, other.tril)
            ]
            active[j] &= ~(near[0] & near[1] & active[earlier])
    draws = posterior.draw_prior(_PRIOR_DRAWS).double()
    centred = (draws - draws.mean(dim=0)).movedim(0, 1)  # (rows, draws, dim)
    broad = torch.linalg.cholesky(centred.mT @ centred / (len(draws) - 1))
    return [*fits, Gaussian(draws.mean(dim=0), broad, posterior.dtype)], active


class _Grids:
    """Sums over the pieces' grids, for the rows of a block that are not done yet."""

    def __init__(
        self, evaluation: Evaluation, rows: slice, components: list[Gaussian], active: Tensor
    ) -> None:
        self._evaluation, self._first = evaluation, rows.start
        self._components, self._active = components, active
        self.cost = torch.zeros(active.shape[1], dtype=torch.float64, device=active.device)

    def until(self, tolerance: float, most_cost: float) -> tuple[Tensor, Tensor]:
        """log of the integral and its error, each of shape (rows,), once the error is small or the grid full."""
        waiting = torch.arange(self._active.shape[1], device=self._active.device)
        order, dim = _FIRST_ORDER, self._components[0].loc.shape[-1]
        estimate = self._sum(waiting, order)
        moved = torch.full_like(estimate, math.inf)
        error = moved.clone()
        while len(waiting) and (2 * order) ** dim <= _MOST_POINTS:
            order *= 2
            before = self.cost[waiting]
            finer = self._sum(waiting, order)
            last_cost = self.cost[waiting] - before
            last, moved[waiting] = moved[waiting], (finer - estimate[waiting]).abs()
            # A second-order rule moves a quarter as far at the next doubling: agreement by chance does not count.
            error[waiting] = torch.maximum(moved[waiting], last / 4)
            estimate[waiting] = finer
            # The next doubling costs 2^dim times what the last one did.
            affordable = self.cost[waiting] + 2**dim * last_cost <= most_cost
            waiting = waiting[(error[waiting] > tolerance) & affordable]
        return estimate, error

    def _sum(self, waiting: Tensor, order: int) -> Tensor:
        """log Σ over all pieces of some rows, (rows,), with grids of ``order`` points a dimension."""
        nodes = _ball(self._components[0].loc.shape[-1], order, self._active.device)  # (points, dim)
        spacing = nodes.shape[-1] * math.log(2 * _RADIUS / order)
        total = torch.full((len(waiting),), -math.inf, dtype=torch.float64, device=self._active.device)
        for j, component in enumerate(self._components):
            chosen = self._active[j, waiting].nonzero()[:, 0]
            if not len(chosen):
                continue
            rows = waiting[chosen]
            posterior = Posterior(self._evaluation.of_rows(self._first + rows, 0, 1))
            here = [c[rows] for c in self._components]
            volume = component.tril[rows].diagonal(dim1=-2, dim2=-1).log().sum(-1) + spacing
            for part in nodes.split(self._evaluation.tile[1]):
                u = here[j].loc + (here[j].tril @ part[:, None, :, None])[..., 0]  # (points, rows, dim)
                u = u.to(posterior.dtype)
                joint = posterior.log_joint(u)
                shares = torch.stack([c.log_density(u, joint.prior) for c in here])
                shares = shares.masked_fill(~self._active[:, rows][:, None], -math.inf)
                terms = joint.prior + joint.likelihood + shares[j] - torch.logsumexp(shares, dim=0)
                piece = torch.logsumexp(terms.nan_to_num(nan=-math.inf), dim=0) + volume
                total[chosen] = torch.logaddexp(total[chosen], piece)
            self.cost[rows] += len(nodes)
        return total


def _ball(dim: int, order: int, device: torch.device) -> Tensor:
    """The points of a grid of ``order`` points a dimension on [−7, 7] that lie in the ball, (points, dim)."""
    axis = (torch.arange(order, dtype=torch.float64, device=device) + 0.5) * (2 * _RADIUS / order) - _RADIUS
    nodes = torch.cartesian_prod(*[axis] * dim).view(-1, dim)
    return nodes[nodes.norm(dim=-1) <= _RADIUS]
