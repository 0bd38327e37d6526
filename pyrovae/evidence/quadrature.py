"""quadrature() integrates P(x, z) over up to three latent dimensions by the trapezoidal rule."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrovae import arguments
from pyrovae.evaluation import Evaluation
from pyrovae.evidence.gaussians import fit_gaussians
from pyrovae.evidence.posterior import Gaussian, Posterior, at_exact_draw, total, undisturbed
from pyrovae.evidence.refined import all_starts
from pyrovae.evidence.result import Columns, LogEvidence
from pyrovae.evidence.run import BlockFunction, Folder, Run
from pyrovae.evidence.workers import Workers
from pyrovae.model import LatentVariableModel
from pyrovae.noise import Stream
from pyrovae.refusals import bad_value
from pyrovae.row_noise import RowNoise
from pyrovae.turns import takes_turns

MOST_DIMENSIONS = 3

_RADIUS = 7.0  # standard deviations; a Gaussian in three dimensions has 1e-10 of its mass beyond
_FIRST_ORDER = 8
_POINTS_AT_ONCE = 128  # of a row, unless a tile is given
_MOST_POINTS = 1 << 18  # of one grid
_STARTS, _FIT_STEPS = 6, 8
_PRIOR_DRAWS = 200
# Factor and log weight of the piece as wide as the prior. The factor is above 1 for tails heavier than a
# Gaussian's. The weight is small, so that this coarse grid gets no share of a narrow mode, which it would miss.
_BROAD, _BROAD_LOG_WEIGHT = 1.2, math.log(1e-4)
# By number of dimensions: how many times finer its grid is, because it alone covers modes that no fit has found.
_BROAD_FINER = {1: 8, 2: 3, 3: 2}
# Assumed mass beyond the grid, in units of the mass in its outermost standard deviation. For a Gaussian, the
# true factor is almost zero. For a density with the tails of Student's t with two degrees of freedom, it is
# three.
_BEYOND = 3.0


@takes_turns
def quadrature(
    pair: LatentVariableModel,
    x: Any,
    tolerance: float = 1e-3,
    seed: int = 0,
    tile: tuple[int, int] | None = None,
    progress: bool = False,
    checkpoint: Folder = None,
    noise: str = "index",
    check: bool = True,
    executor: Workers = None,
) -> LogEvidence:
    """Return log P(x_n) = log ∫ P(x_n, u) du over up to three latent dimensions, by the trapezoidal rule.

    A partition of unity cuts a row's integrand into pieces P(x, u) q_c(u) / Σ q(u). Each Gaussian fitted from
    the encoder's mean and from modes found without the encoder makes one piece. A Gaussian as wide as the
    prior makes another. Each piece is summed over a grid in the standard deviations of its q_c. On this grid
    the rule converges exponentially if the integrand is smooth (Trefethen and Weideman 2014). The order, the
    points per dimension, is doubled until the estimated error is within ``tolerance``.

    Args:
        pair: a ``VAE`` or any ``LatentVariableModel`` with one to three continuous latent dimensions.
        x: rows on dim 0; tensor, numpy array or DataFrame.
        tolerance: the error, in nats, at which a row is done.
        seed: of the search for modes; the grids themselves are not random.
        tile, progress, checkpoint, noise, check, executor: as in ``importance``; a tile is (rows, points).
            There is no ``compile``, because the shapes of the grids depend on the rows.

    Returns:
        A ``LogEvidence`` whose rows are estimates. ``mcse`` holds the error, the sum of four terms. The first is
        2 (d + d'/4), with d the change by the last doubling and d' the change by the one before. The second is
        the share of the integral in cells beside P(x, z) = 0. The third is three times the share in the grid's
        outermost standard deviation. The fourth is rounding. The verdict is "another method" if the error stays
        above the tolerance at 2^18 points.

    Raises:
        TypeError, ValueError: an option, the rows or the pair cannot be used; see ``pyrovae.pair.inspect``. There
            are more than three latent dimensions, or a latent is discrete.

    Example:
        >>> import torch
        >>> from pyrovae import VAE
        >>> quadrature(VAE.mlp(6, latent_dim=1, hidden_dims=(8,)), torch.ones(4, 6)).verdict[0].item()
        'trust'
    """
    arguments.positive("tolerance", tolerance)
    run = Run.prepare(quadrature, locals(), num_samples=_POINTS_AT_ONCE, compile=False)
    check_dimensions(run.evaluation)
    columns = run.columns(partial(grid_block, tolerance=tolerance))
    within = (columns.mcse <= tolerance).cpu().numpy()
    return run.answer(columns, "estimate", verdict=np.where(within, "trust", "another method"))


def check_dimensions(evaluation: Evaluation) -> None:
    """Raise ``ValueError`` if a pair has more latent dimensions than a grid can cover."""
    with undisturbed(evaluation, Stream.PILOT):
        dim = Posterior(evaluation, slice(0, 1)).dim
    if dim > MOST_DIMENSIONS:
        raise bad_value(
            "method",
            f"one to {MOST_DIMENSIONS} latent dimensions for quadrature",
            str(dim),
            "Use method='auto' of log_evidence.",
        )


def grid_block(
    evaluation: Evaluation,
    tolerance: float,
    fits: list[Gaussian] | None = None,
    most_cost: Tensor | None = None,
) -> BlockFunction:
    """Return the function of a block that integrates its rows, with their errors in ``mcse``.

    ``most_cost``, (rows,), bounds a row's decoder evaluations. If ``fits`` is None, Gaussians are fitted for the block.
    """

    def sum_up(number: int, rows: slice) -> Columns:
        with undisturbed(evaluation, Stream.PILOT, rows=rows) as drawn:
            posterior = Posterior(evaluation, rows)
            if fits is None:
                starts, _ = all_starts(posterior, _STARTS, drawn)
                here, _, spent = fit_gaussians(posterior, starts, _FIT_STEPS, "full_rank", drawn)
            else:
                spent = torch.zeros(posterior.num_rows, dtype=torch.float64, device=posterior.device)
                here = [fit[rows] for fit in fits]
            components, active = _pieces(posterior, here, drawn)
            grids = _Grids(evaluation, rows, components, active)
            estimate, error = grids.until(
                tolerance, None if most_cost is None else most_cost[rows] - posterior.cost
            )
        columns = Columns.without_draws(estimate, error, grids.cost + posterior.cost + spent)
        mass = at_exact_draw(evaluation, posterior, rows, lambda u, _: grids.cell(posterior, u))
        return columns.beside(mass, 1)

    return sum_up


def _pieces(posterior: Posterior, fits: list[Gaussian], noise: RowNoise) -> tuple[list[Gaussian], Tensor]:
    """Return the Gaussians of a partition of unity, and which of them a row needs, (pieces, rows)."""
    active = torch.ones(len(fits) + 1, posterior.num_rows, dtype=torch.bool, device=posterior.device)
    for j, fit in enumerate(fits):
        for earlier, other in enumerate(fits[:j]):
            # Two fits found the same mode if each lies near the other in the standard deviations of either.
            apart = (fit.loc - other.loc)[..., None]
            near = [
                torch.linalg.solve_triangular(tril, apart, upper=False).norm(dim=(1, 2)) < 0.5
                for tril in (fit.tril, other.tril)
            ]
            active[j] &= ~(near[0] & near[1] & active[earlier])
    prior = posterior.draw_prior(_PRIOR_DRAWS, noise)[0].double()
    centred = (prior - prior.mean(dim=0)).movedim(0, 1)  # (rows, draws, dim)
    broad = torch.linalg.cholesky(centred.mT @ centred / (len(prior) - 1))
    return [*fits, Gaussian(prior.mean(dim=0), _BROAD * broad, posterior.dtype)], active


def first_price(dim: int, num_fits: int) -> int:
    """Return the decoder evaluations up to and including the first doubling, given the fits."""
    cpu, price = torch.device("cpu"), _PRIOR_DRAWS + 2
    for order in (_FIRST_ORDER, 2 * _FIRST_ORDER):
        price += num_fits * (len(_ball(dim, order, cpu)) + 2)
        price += len(_ball(dim, order * _BROAD_FINER[dim], cpu)) + 2
    return price


class _Grids:
    """Sums over the pieces' grids for the rows of a block."""

    def __init__(
        self, evaluation: Evaluation, rows: slice, components: list[Gaussian], active: Tensor
    ) -> None:
        self._evaluation, self._first = evaluation, rows.start
        self._components, self._active = components, active
        self._dim = components[0].loc.shape[-1]
        self.cost = torch.zeros(active.shape[1], dtype=torch.float64, device=active.device)
        #: Points per dimension of each row's last grids.
        self.orders = torch.zeros(active.shape[1], dtype=torch.long, device=active.device)

    def until(self, tolerance: float, most_cost: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return log of the integral and its error, each (rows,); double the order up to the tolerance or a limit."""
        waiting = torch.arange(self._active.shape[1], device=self._active.device)
        order = _FIRST_ORDER
        self.orders[:] = order
        estimate, rim, jump = self._sum(waiting, order)
        moved = torch.full_like(estimate, math.inf)
        error, stuck = moved.clone(), torch.zeros_like(moved, dtype=torch.bool)
        while (2 * order) ** self._dim <= _MOST_POINTS:
            order *= 2
            points = torch.tensor(
                [len(_ball(self._dim, n, waiting.device)) + 2.0 for n in self._orders(order)],
                dtype=torch.float64,
                device=waiting.device,
            )
            price = points @ self._active[:, waiting].double()
            further = (error[waiting] > tolerance) & ~stuck[waiting]
            if most_cost is not None:
                further &= self.cost[waiting] + price <= most_cost[waiting]
            waiting = waiting[further]
            if not len(waiting):
                break
            self.orders[waiting] = order
            finer, rim[waiting], jump[waiting] = self._sum(waiting, order)
            last, moved[waiting] = moved[waiting], (finer - estimate[waiting]).abs()
            # A second-order rule changes a quarter as much at the next doubling, so agreement by chance does not
            # count. The factor 2 is for ReLU decoders, at whose kinks the rule converges irregularly.
            doubling = 2 * (moved[waiting] + last / 4)
            rounding = torch.finfo(self._components[0].dtype).eps * finer.abs()
            known = torch.isfinite(finer)
            outside = _BEYOND * rim[waiting]  # finer grids do not change it
            stuck[waiting] = (outside > tolerance) & (doubling < outside)
            error[waiting] = torch.where(known, doubling + jump[waiting] + outside + rounding, math.inf)
            estimate[waiting] = finer
        return estimate, error

    def cell(self, posterior: Posterior, u: Tensor) -> Tensor:
        """Return log of the integrand at u, (1, rows, dim), times the volume of its cell; +∞ if no grid covers u; (rows,).

        The pieces' grids cover u if those within reach hold half of the partition of unity there. The cell is that of the
        piece among them with the largest share.
        """
        joint = posterior.log_joint(u)
        shares = torch.stack([c.log_density(u, joint.prior)[0] for c in self._components])
        shares[-1] += _BROAD_LOG_WEIGHT
        shares = shares.masked_fill(~self._active, -math.inf).softmax(dim=0)
        distance = torch.stack(
            [
                torch.linalg.solve_triangular(c.tril, (u[0].double() - c.loc)[..., None], upper=False)
                for c in self._components
            ]
        ).norm(dim=(-2, -1))
        shares = torch.where(distance <= _RADIUS, shares, 0.0)
        largest, piece = shares.max(dim=0)
        tril = torch.stack([c.tril for c in self._components]).diagonal(dim1=-2, dim2=-1).log().sum(-1)
        finer = torch.full_like(tril[0], math.log(_BROAD_FINER[self._dim]))
        finer = torch.where(piece == len(self._components) - 1, finer, 0.0)
        spacing = self._dim * (math.log(2 * _RADIUS) - self.orders.double().log() - finer)
        cell = total(joint)[0] + largest.log() + tril.gather(0, piece[None])[0] + spacing
        return torch.where(shares.sum(dim=0) > 0.5, cell, math.inf)

    def _orders(self, order: int) -> list[int]:
        """Return the points per dimension of every piece's grid."""
        return [order] * (len(self._components) - 1) + [order * _BROAD_FINER[self._dim]]

    def _sum(self, waiting: Tensor, order: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return log Σ over all pieces of some rows, on grids of ``order`` points per dimension, and two shares of it.

        The shares are those of the outermost standard deviation and of cells beside one where P(x, z) = 0. Each
        result has shape (rows,).
        """
        sums = torch.full((3, len(waiting)), -math.inf, dtype=torch.float64, device=self._active.device)
        for j, (component, points) in enumerate(zip(self._components, self._orders(order), strict=True)):
            nodes = _ball(self._dim, points, self._active.device)  # (points, dim)
            outside = nodes.norm(dim=-1) > _RADIUS - 1
            turned = nodes @ _turn(self._dim, nodes.device)
            spacing = self._dim * math.log(2 * _RADIUS / points)
            chosen = self._active[j, waiting].nonzero()[:, 0]
            if not len(chosen):
                continue
            rows = waiting[chosen]
            posterior = Posterior(self._evaluation.of_rows(self._first + rows, 0, 1))
            here = [c[rows] for c in self._components]
            volume = component.tril[rows].diagonal(dim1=-2, dim2=-1).log().sum(-1) + spacing
            width = self._evaluation.tile[1]
            before: tuple[Tensor, Tensor, Tensor] | None = None  # the last point of the previous tile
            tiles = zip(*(each.split(width) for each in (nodes, turned, outside)), strict=True)
            for part, at, rim in tiles:
                u = here[j].loc + (here[j].tril @ at[:, None, :, None])[..., 0]  # (points, rows, dim)
                u = u.to(posterior.dtype)
                joint = posterior.log_joint(u)
                densities = torch.stack([c.log_density(u, joint.prior) for c in here])
                densities[-1] += _BROAD_LOG_WEIGHT
                densities = densities.masked_fill(~self._active[:, rows][:, None], -math.inf)
                terms = total(joint) + densities[j] - torch.logsumexp(densities, dim=0) + volume
                terms = torch.where(torch.isnan(terms), -math.inf, terms)
                cut_off = torch.where(posterior.beyond(u), terms, -math.inf)
                line = (part, torch.isneginf(total(joint)), terms)
                if before is not None:
                    points_, zeros, values = (torch.cat(each) for each in zip(before, line, strict=True))
                    line = points_, zeros, values
                before = (line[0][-1:], line[1][-1:], line[2][-1:])
                for index, selected in enumerate((terms, terms[rim], _beside_a_jump(*line))):
                    if len(selected):
                        piece = torch.logsumexp(selected, dim=0)
                        sums[index, chosen] = torch.logaddexp(sums[index, chosen], piece)
                # The mass beyond the last number of a support is like that beyond the grid.
                sums[1, chosen] = torch.logaddexp(sums[1, chosen], torch.logsumexp(cut_off, dim=0))
            self.cost[rows] += posterior.cost
        rim, jump = torch.exp(sums[1:] - sums[0]).nan_to_num(nan=math.inf)
        return sums[0], rim, jump


def _beside_a_jump(nodes: Tensor, zero: Tensor, terms: Tensor) -> Tensor:
    """Return the terms of points next to one with P(x, z) = 0 on the last axis, else −∞.

    The rule's error across such a jump is a share of them.
    """
    same = (nodes[1:, :-1] == nodes[:-1, :-1]).all(dim=1)[:, None]
    return torch.where(same & (zero[1:] != zero[:-1]), torch.maximum(terms[1:], terms[:-1]), -math.inf)


def _turn(dim: int, device: torch.device) -> Tensor:
    """Return a fixed rotation, (dim, dim), so that boundaries parallel to an axis do not run along a grid line."""
    generator = torch.Generator().manual_seed(0)
    return torch.linalg.qr(torch.randn(dim, dim, dtype=torch.float64, generator=generator)).Q.to(device)


def _ball(dim: int, order: int, device: torch.device) -> Tensor:
    """Return the points in the ball, (points, dim), of a grid of ``order`` points per dimension on [−7, 7]."""
    axis = (torch.arange(order, dtype=torch.float64, device=device) + 0.5) * (2 * _RADIUS / order) - _RADIUS
    nodes = torch.cartesian_prod(*[axis] * dim).view(-1, dim)
    return nodes[nodes.norm(dim=-1) <= _RADIUS]
