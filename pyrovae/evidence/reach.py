"""Whether a row's posterior reaches beyond the guide: z that the guide never draws, though P(x, z) is above zero."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyrovae import checks
from pyrovae.evidence.posterior import Posterior, total, undisturbed
from pyrovae.log_weights import Evaluation
from pyrovae.noise import Stream, tile_shape
from pyrovae.pair import LogJoint, other_values

_DRAWS = 64  # of the prior, and of the guide, for every row
_AT_ONCE = 128  # values of discrete latents
_STRETCHES = (1.5, 3.0)  # how far draws of the guide are moved from their centre: a bounded guide lies within
# Moved draws count where log P(x, z) is not this far below the draws', in nats, and so far for each dimension.
_NEGLIGIBLE, _BY_DIMENSION = 10.0, 2.0


class Unreached(NamedTuple):
    """What is known of z that the guide never draws, each of shape (rows,).

    rows: whether there are any; log_joint: the largest log P(x_n, z) among those seen, and log_prior: log P(z) there,
    both −∞ where there are none.
    """

    rows: Tensor
    log_joint: Tensor
    log_prior: Tensor

    def either(self, other: Unreached) -> Unreached:
        """What is known by one or the other."""
        larger = self.log_joint >= other.log_joint
        return Unreached(
            self.rows | other.rows,
            torch.where(larger, self.log_joint, other.log_joint),
            torch.where(larger, self.log_prior, other.log_prior),
        )


def unreached(evaluation: Evaluation) -> Unreached:
    """Which z were found with P(x_n, z) > 0 and Q(z | x_n) = 0.

    A method that draws from the guide alone then misses a part of log P(x_n): still a lower bound, but no number to
    trust. Looked at are draws of the prior, other values of discrete latents, and draws of the guide moved away from
    their centre, to where P(x_n, z) is not negligible. Supports alone do not decide: where P(x, z) = 0 the guide
    may be zero, too. Nothing is run where the guide is known to have density wherever the prior has it.
    """
    if evaluation.structure.reaches:
        return _nothing(len(evaluation), evaluation.batch["x"].device)
    height, _ = tile_shape(evaluation.structure.widest, _AT_ONCE)
    starts = range(0, len(evaluation), height)
    seen = [_seen(evaluation, slice(start, min(start + height, len(evaluation)))) for start in starts]
    return Unreached(*map(torch.cat, zip(*seen, strict=True)))


def _nothing(num_rows: int, device: torch.device) -> Unreached:
    none = torch.full((num_rows,), -torch.inf, dtype=torch.float64, device=device)
    return Unreached(torch.zeros(num_rows, dtype=torch.bool, device=device), none, none)


def reach_cost(evaluation: Evaluation) -> int:
    """Decoder evaluations of ``unreached`` for a row."""
    return 0 if evaluation.structure.reaches else (2 + len(_STRETCHES)) * _DRAWS


def _seen(evaluation: Evaluation, rows: slice) -> Unreached:
    """``unreached`` of a block."""
    model = evaluation.model
    batch = {name: value[rows] for name, value in evaluation.batch.items()}
    with undisturbed(evaluation, Stream.REACH, rows=rows) as noise:
        prior, joint = model.draw_prior(batch, _DRAWS, noise)
        found = _cut_off(model.log_proposal(batch, prior), joint)
        at, _ = model.propose(batch, 1, noise)
        reached = total(model.log_joint(batch, at))[0]
        for latents in other_values(model, batch, at, _AT_ONCE):
            joint = model.log_joint(batch, latents)
            found = found.either(_cut_off(model.log_proposal(batch, latents), joint, reached - _NEGLIGIBLE))
        try:
            posterior = Posterior(evaluation, rows)
        except checks.Refused:  # discrete latents, or a space that can't be moved in
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
    """Where the guide has no density and the model has, above ``least``, of shape (rows,)."""
    values = torch.where(torch.isneginf(log_q) & (total(joint) > least), total(joint), -torch.inf)
    best, place = values.max(dim=0)
    log_prior = joint.prior.expand_as(values).gather(0, place[None])[0]
    rows = best > -torch.inf
    return Unreached(rows, best, torch.where(rows, log_prior, -torch.inf))
