"""unreached() finds rows whose posterior extends beyond the guide: Q(z | x) = 0 although P(x, z) > 0."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pyrovae.evaluation import Evaluation
from pyrovae.evidence.posterior import Posterior, total, undisturbed
from pyrovae.noise import Stream
from pyrovae.pair import LogJoint, other_values
from pyrovae.refusals import Refused

_DRAWS = 64  # draws of the prior, and of the guide, for every row
_AT_ONCE = 128  # values of discrete latents that are scored at once
# Factors on the distance of the guide's draws from their centre, so that they leave the range of a bounded guide.
_STRETCHES = (1.5, 3.0)
# A moved draw counts if its log P(x, z) is at most this far below that of the unmoved draws, in nats. The second
# number is added for each dimension.
_NEGLIGIBLE, _BY_DIMENSION = 10.0, 2.0


class Unreached(NamedTuple):
    """Findings on z that the guide never draws, each of shape (rows,).

    ``rows`` tells whether any such z was found. ``log_joint`` is the largest log P(x_n, z) among those found and
    ``log_prior`` is log P(z) there; both are −∞ if none was found.
    """

    rows: Tensor
    log_joint: Tensor
    log_prior: Tensor

    def either(self, other: Unreached) -> Unreached:
        """Return the findings of this and another search combined."""
        larger = self.log_joint >= other.log_joint
        return Unreached(
            self.rows | other.rows,
            torch.where(larger, self.log_joint, other.log_joint),
            torch.where(larger, self.log_prior, other.log_prior),
        )


def unreached(evaluation: Evaluation, without: tuple[str, ...] = ()) -> Unreached:
    """Search every row for z with P(x_n, z) > 0 and Q(z | x_n) = 0, and return the findings.

    With such z, a method that draws only from the guide misses a part of log P(x_n). Its number is still a lower
    bound, but cannot be trusted. The search tries draws of the prior and other values of discrete latents. It
    also moves draws of the guide away from their centre, and counts those with a non-negligible P(x_n, z). Supports
    alone do not decide, because the guide may be zero wherever P(x, z) = 0. Nothing is run if the guide is
    known to have density wherever the prior has it. Q leaves out the latents ``without``, whose values are not drawn from it.
    """
    seen = [_seen(evaluation, rows, without) for rows in reach_blocks(evaluation)]
    if not seen:
        return _nothing(len(evaluation), evaluation.batch["x"].device)
    return Unreached(*map(torch.cat, zip(*seen, strict=True)))


def reach_blocks(evaluation: Evaluation) -> list[slice]:
    """Return the blocks of rows that ``unreached`` searches; none if nothing has to be searched."""
    if evaluation.structure.reaches:
        return []
    return evaluation.blocks(_AT_ONCE)


def reach_block(evaluation: Evaluation) -> Callable[[int, slice], dict[str, Tensor]]:
    """Return the function of a block that searches its rows; its values are the findings, by name."""
    return lambda number, rows: _seen(evaluation, rows)._asdict()


def _nothing(num_rows: int, device: torch.device) -> Unreached:
    none = torch.full((num_rows,), -torch.inf, dtype=torch.float64, device=device)
    return Unreached(torch.zeros(num_rows, dtype=torch.bool, device=device), none, none)


def reach_cost(evaluation: Evaluation) -> int:
    """Return the decoder evaluations that ``unreached`` spends on a row."""
    return 0 if evaluation.structure.reaches else (2 + len(_STRETCHES)) * _DRAWS


def _seen(evaluation: Evaluation, rows: slice, without: tuple[str, ...] = ()) -> Unreached:
    """Return ``unreached`` of one block of rows."""
    model = evaluation.model
    batch = evaluation.part(rows)
    with undisturbed(evaluation, Stream.REACH, rows=rows) as noise:
        prior, joint = model.draw_prior(batch, _DRAWS, noise)
        found = _cut_off(model.log_proposal(batch, prior, without), joint)
        at, _ = model.propose(batch, 1, noise)
        reached = total(model.log_joint(batch, at))[0]
        for latents in other_values(model, batch, at, _AT_ONCE):
            joint = model.log_joint(batch, latents)
            log_q = model.log_proposal(batch, latents, without)
            found = found.either(_cut_off(log_q, joint, reached - _NEGLIGIBLE))
        try:
            posterior = Posterior(evaluation, rows)
        except Refused:  # discrete latents, or a space in which draws cannot be moved
            return found
        u = posterior.draw_encoder(_DRAWS, noise)
        u = torch.where(u.isnan(), u.nanmean(dim=0), u)
        centre, level = u.mean(dim=0), total(posterior.log_joint(u)).median(dim=0).values
        least = level - _NEGLIGIBLE - _BY_DIMENSION * posterior.dim
        for stretch in _STRETCHES:
            moved = centre + stretch * (u - centre)
            log_q = posterior.log_encoder(moved)
            if bool(torch.isneginf(log_q).any()):
                found = found.either(_cut_off(log_q, posterior.log_joint(moved), least))
    return found


def _cut_off(log_q: Tensor, joint: LogJoint, least: Tensor | float = -torch.inf) -> Unreached:
    """Return the findings on draws where the guide has no density and log P(x, z) is above ``least``, (rows,)."""
    values = torch.where(torch.isneginf(log_q) & (total(joint) > least), total(joint), -torch.inf)
    best, place = values.max(dim=0)
    log_prior = joint.prior.expand_as(values).gather(0, place[None])[0]
    rows = best > -torch.inf
    return Unreached(rows, best, torch.where(rows, log_prior, -torch.inf))
