"""Steps on several ranks: each rank differentiates its rows of a minibatch, and all update alike by the sum."""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from pyrovae import tracing
from pyrovae.precision import products
from pyrovae.tracing import StepLoss
from pyrovae.training.ranks import Ranks
from pyrovae.training.rows import Rows
from pyrovae.training.step import State


class ParallelSteps:
    """The steps of a fit on several ranks, in the place of ``Traced``.

    Args:
        state: the state that the steps change.
        rows: all rows; a rank uses its part of every minibatch.
        batch_size: rows of a minibatch of all ranks.
        compiled: the sizes of minibatches whose gradients are compiled.
        annealed: whether the KL weight changes.
        ranks: of the fit.

    Raises:
        Untraceable: the steps cannot be traced, or noise or loss do not consist of rows.
    """

    def __init__(
        self,
        state: State,
        rows: Rows,
        batch_size: int,
        compiled: Collection[int],
        annealed: bool,
        ranks: Ranks,
    ) -> None:
        self._sizes = rows.sizes(batch_size)
        self._steps = {
            size: ParallelStep(state, rows, size, size in compiled, annealed, ranks)
            for size in sorted(set(self._sizes))
        }
        #: Of the smallest size.
        self.graph = next(iter(self._steps.values())).graph
        if len({tuple(map(id, step.graph.moving)) for step in self._steps.values()}) > 1:
            raise tracing.Untraceable("which parameters have a gradient depends on the number of rows")

    def at(self, number: int) -> tuple[ParallelStep, int]:
        """Return what takes a step of the epoch, and that it is one step."""
        return self._steps[self._sizes[number]], 1

    def compare(self) -> None:
        """Raise ``Untraceable`` unless the parts of a minibatch add up to the whole. All ranks call it together."""
        for step in self._steps.values():
            step.compare()


class ParallelStep:
    """A step on a minibatch of ``size`` rows, of which this rank differentiates its part."""

    def __init__(
        self, state: State, rows: Rows, size: int, compiled: bool, annealed: bool, ranks: Ranks
    ) -> None:
        self._state, self._ranks, self._size, self._annealed = state, ranks, size, annealed
        self._part = ranks.part(size)
        mine = self._part.stop - self._part.start
        self._traced = functools.partial(
            tracing.TracedSteps, optimizer=state.optimizer, data=rows.data, annealed=annealed, inside=False
        )

        def traced(count: int) -> tracing.Gradients:
            return state.traced(rows.shown(size), count, annealed)

        #: Of the whole minibatch.
        self.graph = traced(size)
        if self.graph.changed:
            raise tracing.Untraceable("a step changes buffers, as that of BatchNorm does")
        moving, self._device = self.graph.moving, rows.data["x"].device
        self._num_shown = len(rows.shown(size)["x"])
        self._lengths = [parameter.numel() for parameter in moving]
        self._dtype = functools.reduce(torch.promote_types, (p.dtype for p in moving), rows.data["x"].dtype)
        ranks.zeros = torch.zeros(2 + sum(self._lengths), dtype=self._dtype, device=self._device)
        self._mine = None
        if mine:
            graph = traced(mine)
            if [*map(id, graph.moving)] != [*map(id, moving)]:
                raise tracing.Untraceable("which parameters have a gradient depends on the number of rows")
            noise = tracing.NoiseOfRows(self.graph.draws, graph.draws, self._part, size, self._device)
            self._mine = self._traced({mine: graph}, sizes=(mine,), compiled=compiled, noise=noise)

    def compare(self) -> None:
        """Raise ``Untraceable`` unless the ranks' parts of some rows add up to all of them, for the same noise.

        The rows are the first, in groups of the minibatch's size, that have a finite loss and gradient.
        """
        whole = self._traced({self._size: self.graph}, sizes=(self._size,), compiled=False)
        rows = torch.arange(self._num_shown, device=self._device)
        for part in rows.split(self._size):
            if len(part) == self._size and self._adds_up(whole, part):
                return

    def _adds_up(self, whole: tracing.TracedSteps, rows: Tensor) -> bool:
        """Return whether rows have a finite loss and gradient; raise ``Untraceable`` unless their parts add up to it."""
        weight = 0.5 if self._annealed else 1.0
        with products("highest"), self._ranks.reporting_errors(step=True):
            expected = self._vector(*whole.differentiate(rows, [1], [weight]))
            total = self._ranks.sum(self._values(rows, 1, weight))
        # A unit whose input rounds to the other side of a kink moves gradients by more than rounding.
        tolerance = torch.finfo(total.dtype).eps ** (1 / 3)
        (loss, others), (loss_now, now) = ((v[:2], v[2:]) for v in (expected, total))
        alike = torch.allclose(loss_now, loss, rtol=tolerance**2, atol=tolerance**2) and bool(
            (now - others).norm() <= tolerance * others.norm()
        )
        finite = bool(expected.isfinite().all())
        found = self._ranks.exchange((finite, alike, float(loss[0])))
        if not all(each for each, *_ in found):
            return False
        if not all(each for _, each, _ in found):
            losses = [each for *_, each in found]
            if not all(math.isclose(each, losses[0], rel_tol=tolerance**2) for each in losses):
                raise tracing.Untraceable(
                    f"different losses of the same rows, {min(losses):.9g} to {max(losses):.9g}, so the ranks built "
                    "different models"
                )
            raise tracing.Untraceable(
                "losses of the ranks' rows do not add up to the loss of all, so rows depend on others"
            )
        return True

    def run(self, rows: Tensor, seeds: Sequence[int], kl_weights: Sequence[float]) -> list[StepLoss]:
        """Take the step and return its loss; see ``TracedSteps.run``.

        Raises:
            NotFinite: loss or gradient are not finite, on any rank.
            RankFailed: another rank fails.
        """
        values = self._values(rows, seeds[0], kl_weights[0])
        total = self._ranks.sum(values)
        loss = StepLoss(*total[:2].tolist())
        gradients = [
            part.view_as(parameter).to(parameter.dtype)
            for part, parameter in zip(total[2:].split(self._lengths), self.graph.moving, strict=True)
        ]
        norm = torch.nn.utils.get_total_norm(gradients)
        if not (math.isfinite(loss.total) and math.isfinite(norm)):
            fine = self._ranks.exchange(bool(values.isfinite().all()))
            self._ranks.not_finite = [rank for rank, each in enumerate(fine) if not each]
            raise tracing.NotFinite("loss or gradient are not finite", [])
        for parameter, gradient in zip(self.graph.moving, gradients, strict=True):
            parameter.grad = gradient
        if self._state.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self.graph.moving, self._state.clip_norm, norm)
        tracing.take_step(self._state.optimizer)
        return [loss]

    def _values(self, rows: Tensor, seed: int, weight: float) -> Tensor:
        """Return this rank's share of the loss, its reconstruction and the gradients, as one vector."""
        if self._mine is None:
            return self._ranks.zeros
        mine = rows[self._part]
        return self._vector(*self._mine.differentiate(mine, [seed], [weight])) * (len(mine) / self._size)

    def _vector(self, reports: Tensor, gradients: Sequence[Tensor]) -> Tensor:
        return torch.cat([reports[0, :2], *(gradient.flatten() for gradient in gradients)]).to(self._dtype)
