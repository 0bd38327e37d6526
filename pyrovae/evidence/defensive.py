"""log P(x) of rows whose latents cannot be moved: sums over all z, and draws of which half come from the prior."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from pyrovae import diagnostics
from pyrovae.evaluation import Evaluation, Terms
from pyrovae.evidence.draws import Draws, Keep
from pyrovae.evidence.posterior import total, undisturbed
from pyrovae.evidence.result import Columns
from pyrovae.noise import Stream
from pyrovae.pair import DiscreteValues, Latents, LogJoint, all_values


def against_both(drawn: Terms, log_q: Tensor, of_guide: float, of_prior: float) -> Tensor:
    """Return log weights of draws from the guide or the prior against the mixture of both, (samples, rows)."""
    mixed = torch.logaddexp(log_q + math.log(of_guide), drawn.prior + math.log(of_prior))
    log_joint = drawn.likelihood + drawn.prior
    # A draw that rounding put onto a bound of its support has an infinite density and weighs nothing.
    lost = (mixed == math.inf) | (log_joint == math.inf)
    return torch.where(lost, -math.inf, log_joint - mixed)


def sum_over_latents(evaluation: Evaluation, keep: Keep | None = None, most: int = 1024) -> Columns | None:
    """Return log Σ_z P(x_n, z) over all values of discrete latents, or None if they are more than ``most``.

    ``keep`` gets the values of every block as draws with the weights P(x_n, z).
    """
    model, found = evaluation.model, []
    for rows in evaluation.blocks():
        batch = evaluation.part(rows)
        with undisturbed(evaluation, Stream.TILE, rows=rows) as drawn:
            at, _ = model.propose(batch, 1, drawn)
            every = all_values(model, batch, at, evaluation.tile[1], most)
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


class Shares(NamedTuple):
    """What draws for each value of the discrete latents say of P(c | x) and of the spread of weights.

    Attributes:
        names: of the discrete latents.
        log_share: log of the share of each combination of values among the draws of an answer, (values, rows).
        variance: of a weight of the answer relative to its squared mean, (rows,).
    """

    names: tuple[str, ...]
    log_share: Tensor
    variance: Tensor

    @classmethod
    def even(cls, values: DiscreteValues, rows: Tensor) -> Shares:
        """Return equal shares of values, for rows of a tensor, (rows, ...)."""
        log_share = rows.new_full((len(values), len(rows)), -math.log(len(values)), dtype=torch.float64)
        return cls(values.names, log_share, torch.full_like(log_share[0], math.nan))

    def of_rows(self, rows: Tensor | slice) -> Shares:
        return Shares(self.names, self.log_share[:, rows], self.variance[rows])


def shares_of_values(evaluation: Evaluation) -> Shares | None:
    """Return what equally many draws for each value say, to be used by ``weigh_values`` with other noise.

    Half of the shares follow the estimated P(c | x), and half are equal for all C combinations of values.

    Returns:
        None if there are not both kinds of latents, or fewer than eight draws for each combination.
    """
    found = []
    for rows in evaluation.blocks():
        batch = evaluation.part(rows)
        values = _values(evaluation, rows, evaluation.num_samples // 8)
        if values is None:
            return None
        sums = _Sums(len(values), batch["x"])
        for numbers, _, log_weights, _ in _by_value(
            evaluation, rows, values, Shares.even(values, batch["x"])
        ):
            sums.add(numbers, log_weights)
        first, second = sums.first, sums.second
        level = first.logsumexp(dim=0)
        share = torch.where(level.isneginf(), 0.0, first - level).softmax(dim=0)
        share = (share + 1 / len(values)) / 2
        # With w the weights of n draws of equal shares 1/C, E[w²] of shares s is Σ_c mean[w²; c] / (C s_c).
        square = (
            (second - share.log()).logsumexp(dim=0) - math.log(len(values)) + math.log(evaluation.num_samples)
        )
        variance = torch.where(level.isneginf(), 0.0, (square - 2 * level).exp() - 1)
        found.append(Shares(values.names, share.log(), variance))
    names, *parts = zip(*found, strict=True)
    return Shares(names[0], *(torch.cat(part, dim=-1) for part in parts))


def weigh_values(evaluation: Evaluation, shares: Shares, keep: Keep | None = None) -> Columns:
    """Return the importance sampling estimate with a share of the draws for every value of the discrete latents.

    Let c be the discrete latents and z the others. The proposal is q(c, z) = s(c) Q(z | c, x), with shares s for each row.
    c is drawn systematically: each value gets its share of the draws up to one. However small Q(c | x) is, no value is
    left out (a defensive mixture, Hesterberg 1995). ``keep`` gets every block's draws with their weights.
    """
    count, blocks = evaluation.num_samples, []
    for rows in evaluation.blocks():
        batch, own = evaluation.part(rows), shares.of_rows(rows)
        values = _values(evaluation, rows, len(own.log_share))
        if values is None:
            raise RuntimeError("shares of values that are not listed")
        num_rows, device = len(batch["x"]), batch["x"].device
        weights = diagnostics.Accumulator(count, num_rows, -(-count // evaluation.tile[1]), device)
        lost, held = torch.zeros(num_rows, dtype=torch.float64, device=device), []
        sums = _Sums(len(values), batch["x"])
        for index, (numbers, z, log_weights, at_bound) in enumerate(_by_value(evaluation, rows, values, own)):
            weights.add(index, log_weights)
            sums.add(numbers, log_weights)
            lost += at_bound.sum(dim=0)
            held += [] if keep is None else [(z, log_weights)]
        if keep is not None:
            keep(Draws.cat(evaluation, rows, held))
        mcse = sums.mcse()
        columns = Columns.of_weights(weights, evaluation.dtype, count, lost / count)
        columns = replace(columns, mcse=mcse, bias=-0.5 * mcse**2)
        exact = evaluation.exact_draw(rows)
        if exact is not None:
            with undisturbed(evaluation, Stream.EXACT, rows=rows):
                _, joint, log_q = evaluation.model.weigh_rest(batch, 1, exact, values.names)
            log_share = own.log_share.gather(0, values.numbers(exact))
            columns = columns.beside(_log_weight(joint, log_q + log_share)[0], count, weights)
        blocks.append(columns)
    return Columns.cat(blocks)


class _Sums:
    """Sums of weights and of squared weights for each value of the discrete latents, (values, rows), and their numbers."""

    def __init__(self, number: int, rows: Tensor) -> None:
        self.first = rows.new_full((number, len(rows)), -math.inf, dtype=torch.float64)
        self.second, self.counts = self.first.clone(), torch.zeros_like(self.first)

    def add(self, numbers: Tensor, log_weights: Tensor) -> None:
        """Add draws with their numbers of values, (samples, rows)."""
        for number in range(len(self.first)):
            here = numbers == number
            own = torch.where(here, log_weights, -math.inf)
            self.first[number] = torch.logaddexp(self.first[number], own.logsumexp(dim=0))
            self.second[number] = torch.logaddexp(self.second[number], (2 * own).logsumexp(dim=0))
            self.counts[number] += here.sum(dim=0)

    def mcse(self) -> Tensor:
        """Return the standard error of the log mean weight, (rows,), from the variance within values.

        Systematic draws of a value are its share of all up to one, which adds at most a quarter of its squared mean.
        """
        level = self.first.logsumexp(dim=0)
        first, second = (self.first - level).exp(), (self.second - 2 * level).exp()
        mean = first / self.counts.clamp(min=1)
        within = (second - first * mean).clamp(min=0) * self.counts / (self.counts - 1).clamp(min=1)
        found = (within + mean**2 / 4).sum(dim=0).sqrt()
        return torch.where(level.isneginf(), math.inf, found)


def _values(evaluation: Evaluation, rows: slice, most: int) -> DiscreteValues | None:
    """Return the values of the discrete latents of a block of rows, at most ``most``."""
    model, batch = evaluation.model, evaluation.part(rows)
    with undisturbed(evaluation, Stream.TILE, rows=rows) as drawn:
        at, _ = model.propose(batch, 1, drawn)
        return DiscreteValues.of(model, batch, at, most)


def _by_value(
    evaluation: Evaluation, rows: slice, values: DiscreteValues, shares: Shares
) -> Iterator[tuple[Tensor, Latents, Tensor, Tensor]]:
    """Yield the draws of a block in parts: numbers of values, z, log weights and whether it is at a bound, (samples, rows)."""
    model, batch, count = evaluation.model, evaluation.part(rows), evaluation.num_samples
    ends = shares.log_share.exp().cumsum(dim=0).T.contiguous()  # (rows, values)
    start = evaluation.noise(Stream.TILE, 1, rows=rows).uniform(1, dtype=torch.float64)
    for done in range(0, count, evaluation.tile[1]):
        draws = min(evaluation.tile[1], count - done)
        at = (
            start + torch.arange(done, done + draws, device=ends.device)[:, None]
        ) / count  # (samples, rows)
        numbers = torch.searchsorted(ends, (at.T * ends[:, -1:]).contiguous(), right=True).T
        numbers = numbers.clamp(max=len(values) - 1)
        with undisturbed(evaluation, Stream.TILE, 2, rows=rows, first=done) as drawn:
            z, joint, log_q = model.weigh_rest(batch, draws, values.held(numbers), values.names, drawn)
        log_q = log_q + shares.log_share.gather(0, numbers)
        yield numbers, z, _log_weight(joint, log_q), log_q == math.inf


def _log_weight(joint: LogJoint, log_q: Tensor) -> Tensor:
    """Return log weights, (samples, rows), −∞ at a draw on a bound."""
    return torch.where(log_q == math.inf, -math.inf, total(joint) - log_q)
