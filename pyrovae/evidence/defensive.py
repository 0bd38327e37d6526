"""log P(x) of rows whose latents cannot be moved: sums over all z, and draws of which half come from the prior."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyrovae import diagnostics
from pyrovae.evaluation import Evaluation, Terms
from pyrovae.evidence.draws import Draws, Keep
from pyrovae.evidence.posterior import total, undisturbed
from pyrovae.evidence.result import Columns
from pyrovae.noise import Stream
from pyrovae.pair import all_values


def against_both(drawn: Terms, log_q: Tensor, of_guide: float, of_prior: float) -> Tensor:
    """Return log weights of draws from the guide or the prior against the mixture of both, (samples, rows)."""
    mixed = torch.logaddexp(log_q + math.log(of_guide), drawn.prior + math.log(of_prior))
    log_joint = drawn.likelihood + drawn.prior
    # A draw that rounding put onto a bound of its support has an infinite density and weighs nothing.
    lost = (mixed == math.inf) | (log_joint == math.inf)
    return torch.where(lost, -math.inf, log_joint - mixed)


def sum_over_latents(evaluation: Evaluation, keep: Keep | None = None) -> Columns | None:
    """Return log Σ_z P(x_n, z) over all values of discrete latents, or None if they are too many.

    ``keep`` gets the values of every block as draws with the weights P(x_n, z).
    """
    model, found = evaluation.model, []
    for rows in evaluation.blocks():
        batch = evaluation.part(rows)
        with undisturbed(evaluation, Stream.TILE, rows=rows) as drawn:
            at, _ = model.propose(batch, 1, drawn)
            every = all_values(model, batch, at, evaluation.tile[1])
            if every is None:
                return None
            held = []
            parts = []
            for z in every:
                parts.append(total(model.log_joint(batch, z)))
                held += [] if keep is None else [(z, parts[-1])]
            terms = torch.cat(parts)
        if keep is not None:
            keep(Draws.cat(evaluation, rows, held))
        estimate = torch.logsumexp(terms, dim=0)
        zero = torch.zeros_like(estimate)
        columns = Columns.without_draws(estimate, zero, zero + len(terms))
        # A sum over all z leaves none out.
        found.append(columns.beside(None if evaluation.simulated is None else zero - math.inf, 1))
    return Columns.cat(found)


def weigh_both(evaluation: Evaluation) -> Columns:
    """Return the importance sampling estimate with half of the draws from the guide and half from the prior."""
    model, count = evaluation.model, evaluation.num_samples
    shares = (count - count // 2, count // 2)
    blocks = []
    for rows in evaluation.blocks():
        batch = evaluation.part(rows)
        num_rows, width = len(batch["x"]), evaluation.tile[1]
        strata = [
            (i, done, min(width, n - done)) for i, n in enumerate(shares) for done in range(0, n, width)
        ]
        weights = diagnostics.Accumulator(
            count, num_rows, len(strata), batch["x"].device, [stratum for stratum, _, _ in strata]
        )
        for index, (stratum, done, draws) in enumerate(strata):
            with undisturbed(evaluation, Stream.TILE, stratum, rows=rows, first=done) as drawn:
                if stratum == 0:
                    _, joint, log_q = model.weigh(batch, draws, drawn)
                else:
                    z, joint = model.draw_prior(batch, draws, drawn)
                    log_q = model.log_proposal(batch, z)
            terms = Terms(joint.likelihood, joint.prior, log_q)
            log_weights = against_both(terms, log_q, shares[0] / count, shares[1] / count)
            weights.add(index, log_weights)
        columns = Columns.of_weights(weights, evaluation.dtype, count)
        exact = evaluation.exact_draw(rows)
        if exact is not None:
            with undisturbed(evaluation, Stream.EXACT, rows=rows):
                joint, log_q = model.log_joint(batch, exact), model.log_proposal(batch, exact)
            terms = Terms(joint.likelihood, joint.prior, log_q)
            weight = against_both(terms, log_q, shares[0] / count, shares[1] / count)[0]
            columns = columns.beside(weight, count, weights)
        blocks.append(columns)
    return Columns.cat(blocks)
