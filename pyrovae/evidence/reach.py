"""Whether a row's posterior reaches beyond the guide: z that the guide never draws, though P(x, z) is above zero."""

from __future__ import annotations

import torch
from torch import Tensor

from pyrovae import checks
from pyrovae.evidence.posterior import Posterior, total, undisturbed
from pyrovae.log_weights import Evaluation
from pyrovae.noise import Stream, tile_shape
from pyrovae.pair import draw_prior, log_joint, log_proposal, other_values, propose

_DRAWS, _MORE = 8, 128  # of the prior for every row, and where other rows were found to be cut off
_STRETCHES = (1.5, 3.0)  # how far draws of the guide are moved from their centre: a bounded guide lies within
# Moved draws count where log P(x, z) is not this far below the draws', in nats, and so far for each dimension.
_NEGLIGIBLE, _BY_DIMENSION = 10.0, 2.0


def unreached(evaluation: Evaluation) -> Tensor:
    """Whether z were found with P(x_n, z) > 0 and Q(z | x_n) = 0, shape (rows,).

    A method that draws from the guide alone then misses a part of log P(x_n): still a lower bound, but no number to
    trust. Looked at are draws of the prior, other values of discrete latents, and draws of the guide moved away from
    their centre, to where P(x_n, z) is not negligible. Supports alone do not decide: where P(x, z) = 0 the guide
    may be zero, too. Nothing is run where the guide is known to have density wherever the prior has it.
    """
    found = torch.zeros(len(evaluation), dtype=torch.bool, device=evaluation.batch["x"].device)
    if evaluation.structure.reaches:
        return found
    # as tall as most draws allow
    height, _ = tile_shape(evaluation.structure.widest, _MORE)
    starts = range(0, len(evaluation), height)
    blocks = [(number, slice(start, min(start + height, len(found)))) for number, start in enumerate(starts)]
    for number, rows in blocks:
        found[rows] = _seen(evaluation, number, rows, _DRAWS)
    if bool(found.any()):
        for number, rows in blocks:
            if not bool(found[rows].all()):
                found[rows] |= _seen(evaluation, number, rows, _MORE)
    return found


def reach_cost(evaluation: Evaluation) -> int:
    """Decoder evaluations of ``unreached`` for a row, where no other row is cut off."""
    return 0 if evaluation.structure.reaches else (2 + len(_STRETCHES)) * _DRAWS


def _seen(evaluation: Evaluation, number: int, rows: slice, num_draws: int) -> Tensor:
    """``unreached`` of a block, as far as so many draws show it."""
    pair, structure = evaluation.pair, evaluation.structure
    batch = {name: value[rows] for name, value in evaluation.batch.items()}
    with undisturbed(evaluation, Stream.REACH, number, num_draws):
        prior, joint = draw_prior(pair, structure, batch, num_draws)
        found = _cut_off(log_proposal(pair, structure, batch, prior), total(joint))
        at, _ = propose(pair, structure, batch, 1)
        reached = total(log_joint(pair, structure, batch, at))[0]
        for latents in other_values(pair, structure, batch, at, _MORE):
            values = total(log_joint(pair, structure, batch, latents))
            values = torch.where(values > reached - _NEGLIGIBLE, values, -torch.inf)
            found |= _cut_off(log_proposal(pair, structure, batch, latents), values)
        try:
            posterior = Posterior(evaluation, rows)
        except checks.Refused:  # discrete latents, or a space that can't be moved in
            return found
        u = posterior.flatten(propose(pair, structure, batch, num_draws)[0])
        u = torch.where(u.isnan(), u.nanmean(dim=0), u)
        centre, level = u.mean(dim=0), total(posterior.log_joint(u)).median(dim=0).values
        least = level - _NEGLIGIBLE - _BY_DIMENSION * posterior.dim
        for stretch in _STRETCHES:
            moved = centre + stretch * (u - centre)
            log_q = posterior.log_encoder(moved)
            if bool(torch.isneginf(log_q).any()):
                values = total(posterior.log_joint(moved))
                found |= _cut_off(log_q, torch.where(values > least, values, -torch.inf))
    return found


def _cut_off(log_q: Tensor, log_joint: Tensor) -> Tensor:
    """Whether a row has a z of which the guide has none and the model some, (rows,)."""
    return (torch.isneginf(log_q) & (log_joint > -torch.inf)).any(dim=0)
