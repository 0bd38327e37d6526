"""log P(x) of rows whose latents cannot be moved: sums over all z, and draws of which half come from the prior."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from pyrovae import diagnostics
from pyrovae.evaluation import Evaluation, Terms
from pyrovae.evidence.draws import Draws, Keep
from pyrovae.evidence.posterior import tiles_of, total, undisturbed
from pyrovae.evidence.result import Columns, resolution
from pyrovae.noise import Stream
from pyrovae.pair import DiscreteValues, Latents, LogJoint, all_values
from pyrovae.row_noise import interval_of

_OF_PRIOR = 0.2  # share of the prior among the draws of a value
# A value matters if it has this share of the sum. With fewer draws of it, k-hat is unknown: 100 draws have 20 in the tail.
_MATTERS, _FEWEST_OF_VALUE = 0.01, 100
_ROUNDED = 1e3  # times the resolution: the masses of all values may sum to 1 up to so much
_APART, _FEWEST_FOUND, _NEGLIGIBLE = 3.0, 20.0, 4.0  # nats, draws, nats: see _Sums.doubtful


def against_both(drawn: Terms, log_q: Tensor, of_guide: float, of_prior: float) -> Tensor:
    """Return log weights of draws from the guide or the prior against the mixture of both, (samples, rows)."""
    mixed = torch.logaddexp(log_q + math.log(of_guide), drawn.prior + math.log(of_prior))
    log_joint = drawn.likelihood + drawn.prior
    # A draw that rounding put onto a bound of its support has an infinite density and weighs nothing.
    lost = (mixed == math.inf) | (log_joint == math.inf)
    return torch.where(lost, -math.inf, log_joint - mixed)


def sum_over_latents(evaluation: Evaluation, keep: Keep | None = None, most: int = 1024) -> Columns | None:
    """Return log Σ_z P(x_n, z) over all values of discrete latents; None if they are more than ``most`` or lack mass.

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
            held, parts, masses = [], [], []
            for z in every:
                joint = model.log_joint(batch, z)
                parts.append(total(joint))
                masses.append(joint.prior)
                # Every value is drawn once.
                one = torch.zeros_like(joint.prior)
                held += [] if keep is None else [(z, Terms(joint.likelihood, joint.prior, one))]
            terms = torch.cat(parts)
            mass = torch.logsumexp(torch.cat(masses), dim=0)
        if bool((mass.abs() > _ROUNDED * torch.finfo(evaluation.dtype).eps).any()):
            return None
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
        strata = tiles_of(shares, width)
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
    """What draws for each value of the discrete latents say of P(c | x) and of the weights.

    Attributes:
        names: of the discrete latents.
        log_share: log of the share of each combination of values among the draws of an answer, (values, rows).
        of_prior: the share of the draws of each value whose other latents are drawn from the prior.
        variance: of a weight of the answer relative to its squared mean, (rows,).
        fewest: draws of an answer with 100 draws for each value that matters, (rows,).
        doubtful: whether a value may have mass that neither guide nor prior finds, (rows,).
    """

    names: tuple[str, ...]
    log_share: Tensor
    of_prior: float
    variance: Tensor
    fewest: Tensor
    doubtful: Tensor

    @classmethod
    def even(cls, values: DiscreteValues, rows: Tensor) -> Shares:
        """Return equal shares of values and of guide and prior, for rows of a tensor, (rows, ...)."""
        log_share = rows.new_full((len(values), len(rows)), -math.log(len(values)), dtype=torch.float64)
        nothing = torch.full_like(log_share[0], math.nan)
        return cls(values.names, log_share, 0.5, nothing, nothing, nothing.isinf())

    @classmethod
    def cat(cls, blocks: Sequence[Shares]) -> Shares:
        names, log_share, of_prior, *parts = zip(*blocks, strict=True)
        return cls(names[0], torch.cat(log_share, dim=1), of_prior[0], *map(torch.cat, parts))

    def of_rows(self, rows: Tensor | slice) -> Shares:
        return self._replace(
            log_share=self.log_share[:, rows],
            variance=self.variance[rows],
            fewest=self.fewest[rows],
            doubtful=self.doubtful[rows],
        )


def shares_of_values(evaluation: Evaluation) -> Shares | None:
    """Return what equally many draws for each value say, to be used by ``weigh_values`` with other noise.

    For each value, half of the draws come from the guide and half from the prior. Half of the shares follow the estimated
    P(c | x), and half are equal for all C combinations of values.

    Returns:
        None if there are not both kinds of latents, or fewer than 16 draws for each combination.
    """
    found = []
    for rows in evaluation.blocks():
        batch = evaluation.part(rows)
        values = _values(evaluation, rows, evaluation.num_samples // 16)
        if values is None:
            return None
        even = Shares.even(values, batch["x"])
        sums, squares = _Sums(len(values), batch["x"]), _Sums(len(values), batch["x"])
        for drawn in _by_value(evaluation, rows, values, even):
            log_weights = drawn.log_weights(even.of_prior)
            sums.add(drawn, log_weights)
            # The square of an answer's weight, under its own proposal, but for the shares of values.
            squares.add(drawn, log_weights + drawn.log_weights(_OF_PRIOR))
        level = sums.log_mass.logsumexp(dim=0)
        share = torch.where(level.isneginf(), 0.0, sums.log_mass - level).softmax(dim=0)
        mixed = (share + 1 / len(values)) / 2
        square = (squares.log_mass - mixed.log()).logsumexp(dim=0)
        variance = torch.where(level.isneginf(), 0.0, (square - 2 * level).exp() - 1).clamp(min=0)
        least = torch.where(share > _MATTERS, mixed, 1.0).amin(dim=0)
        part = Shares(
            values.names,
            mixed.log(),
            _OF_PRIOR,
            variance,
            _FEWEST_OF_VALUE / least,
            sums.doubtful(level),
        )
        found.append(part)
    return Shares.cat(found)


def weigh_values(evaluation: Evaluation, shares: Shares, keep: Keep | None = None) -> Columns:
    """Return the importance sampling estimate with a share of the draws for every value of the discrete latents.

    Let c be the discrete latents and z the others. The proposal is q(c, z) = s(c) [(1 − ε) Q(z | c, x) + ε R(z | c)], with
    shares s for each row. R is the product of the prior's densities of z with c held, and ε is 0.2. In the draws from Q and
    in those from R, c is drawn systematically: each value gets its share of them up to one. However small Q(c | x) is, no
    value is left out (a defensive mixture, Hesterberg 1995). ``keep`` gets every block's draws with their weights.

    k-hat is the smaller of two: that of all draws, and the largest of the k-hats of the values that matter. Weights that
    spread about another scale for each value have no common tail, and values that are rarely hit have none of their own.
    A value matters if its share of the sum, two errors added, is above 1 %. It needs 100 draws for a k-hat.

    A row is ``missed`` if a value may have mass that neither Q nor R finds, see ``_Sums.doubtful``.
    """
    count, blocks = evaluation.num_samples, []
    for rows in evaluation.blocks():
        batch, own = evaluation.part(rows), shares.of_rows(rows)
        values = _values(evaluation, rows, len(own.log_share))
        if values is None:
            raise RuntimeError("shares of values that are not listed")
        num_rows, device = len(batch["x"]), batch["x"].device
        tiles = _tiles(evaluation, own)
        weights = diagnostics.Accumulator(count, num_rows, len(tiles), device)
        each = [diagnostics.Accumulator(count, num_rows, len(tiles), device) for _ in range(len(values))]
        lost, held = torch.zeros(num_rows, dtype=torch.float64, device=device), []
        sums = _Sums(len(values), batch["x"])
        of_prior = sum(draws for part, _, draws in tiles if part) / count
        for index, drawn in enumerate(_by_value(evaluation, rows, values, own)):
            terms = drawn.terms(of_prior)
            terms = replace(terms, proposal=terms.proposal + own.log_share.gather(0, drawn.numbers))
            log_weights = terms.log_weights
            weights.add(index, log_weights)
            for number, part in enumerate(each):
                part.add(index, log_weights, drawn.numbers == number)
            sums.add(drawn, log_weights)
            lost += (drawn.log_q == math.inf).sum(dim=0)
            held += [] if keep is None else [(drawn.latents, terms)]
        if keep is not None:
            keep(Draws.cat(evaluation, rows, held))
        columns = Columns.of_weights(weights, evaluation.dtype, count, lost / count)
        columns = replace(columns, **sums.errors(weights, each, evaluation.dtype))
        exact = evaluation.exact_draw(rows)
        if exact is not None:
            numbers = values.numbers(exact)
            with undisturbed(evaluation, Stream.EXACT, rows=rows):
                there = _Drawn(0, numbers, *evaluation.model.weigh_rest(batch, 1, exact, values.names))
            log_weights = there.log_weights(of_prior) - own.log_share.gather(0, numbers)
            columns = columns.beside(log_weights[0], count, weights)
        blocks.append(columns.also_missed(sums.doubtful(columns.estimate)))
    return Columns.cat(blocks)


class _Drawn(NamedTuple):
    """Draws of a tile, each of shape (samples, rows) but the latents: numbers of values, log P and log densities of z given c.

    ``part`` is 0 for draws of the guide and 1 for draws of the prior.
    """

    part: int
    numbers: Tensor
    latents: Latents
    joint: LogJoint
    log_q: Tensor
    log_r: Tensor

    @property
    def unknown(self) -> Tensor:
        """Which are draws of the prior without a density."""
        log_joint = total(self.joint)
        return log_joint.isnan() if self.part else torch.zeros_like(log_joint, dtype=torch.bool)

    def terms(self, of_prior: float) -> Terms:
        """Return the terms of z given c against the mixture of guide and prior, which give a draw on a bound no weight.

        Nor a draw of the prior without a density: the prior of z may be no distribution at an impossible c.
        """
        parts = (self.log_q, 1 - of_prior), (self.log_r, of_prior)
        mixed = torch.stack([log_density + math.log(share) for log_density, share in parts if share])
        terms = Terms(self.joint.likelihood, self.joint.prior, mixed.logsumexp(dim=0))
        return terms.without((total(self.joint) == math.inf) | self.unknown)

    def log_weights(self, of_prior: float) -> Tensor:
        """Return the log weights of ``terms``."""
        return self.terms(of_prior).log_weights


class _Sums:
    """Sums over the draws of each value of the discrete latents, from the guide and from the prior, (2, values, rows).

    ``first`` and ``second`` are logs of sums of weights and of their squares, and ``counts`` are numbers of draws. ``alone``
    are the two sums for draws of each kind under its own density, for the prior's only where it is above the guide's.
    """

    def __init__(self, number: int, rows: Tensor) -> None:
        self.first = rows.new_full((2, number, len(rows)), -math.inf, dtype=torch.float64)
        self.second, self.counts = self.first.clone(), torch.zeros_like(self.first)
        self.alone = self.first.clone(), self.first.clone()
        self.unknown = torch.zeros_like(self.first[0])

    def add(self, drawn: _Drawn, log_weights: Tensor) -> None:
        """Add draws with their log weights, (samples, rows)."""
        alone = drawn.log_weights(float(drawn.part))
        if drawn.part:
            alone = torch.where(drawn.log_r > drawn.log_q, alone, -math.inf)
        for number in range(self.first.shape[1]):
            place, here = (drawn.part, number), drawn.numbers == number
            self.unknown[number] += (here & drawn.unknown).sum(dim=0)
            for log_w, sums in ((log_weights, (self.first, self.second)), (alone, self.alone)):
                own = torch.where(here, log_w, -math.inf)
                for power, kept in enumerate(sums, 1):
                    kept[place] = torch.logaddexp(kept[place], (power * own).logsumexp(dim=0))
            self.counts[place] += here.sum(dim=0)

    @property
    def log_mass(self) -> Tensor:
        """log of the mean weight of each value, (values, rows)."""
        return self.first.logsumexp(dim=0) - self.counts.sum(dim=0).log()

    def doubtful(self, level: Tensor) -> Tensor:
        """Return rows in which a value may have mass that neither guide nor prior finds, (rows,).

        That is so if three conditions hold for a value. First, the prior's draws where the guide has less density than the
        prior find more mass than all draws of the guide. The difference is more than three errors and 3 nats. Second, fewer
        than 20 effective draws found this mass, so that there may be much more. Third, it is at most 4 nats below log P(x),
        the ``level``. A value of which the guide's draws find as much mass is also doubtful if the prior's draws have no
        density.
        """
        first, second = self.alone
        log_mass = first - self.counts.log()
        effective = torch.where(first.isneginf(), 0.0, (2 * first - second).exp())
        error = (1 / effective - 1 / self.counts).clamp(min=0).sqrt().nan_to_num(0.0, posinf=1.0)
        more = log_mass[1] - log_mass[0] > (3 * torch.hypot(error[0], error[1])).clamp(min=_APART)
        few, matters = effective[1] < _FEWEST_FOUND, log_mass[1] > level - _NEGLIGIBLE
        unknown = (self.unknown > 0) & (log_mass[0] > level - _NEGLIGIBLE)
        return (more & few & matters | unknown).any(dim=0)

    def errors(
        self, together: diagnostics.Accumulator, each: Sequence[diagnostics.Accumulator], dtype: torch.dtype
    ) -> dict[str, Tensor]:
        """Return error, bias, k-hat and tail error of the log mean weight, (rows,), from all draws and those of each value.

        Systematic draws of a value are its share of all up to one, which adds at most a quarter of its squared mean.
        """
        rounding = resolution(dtype, together.log_mean_exp())
        level = self.first.logsumexp(dim=(0, 1))
        first, second = (self.first - level).exp(), (self.second - 2 * level).exp()
        mean = first / self.counts.clamp(min=1)
        within = (second - first * mean).clamp(min=0) * self.counts / (self.counts - 1).clamp(min=1)
        variance = within + mean**2 / 4
        mcse = torch.where(level.isneginf(), math.inf, variance.sum(dim=(0, 1)).sqrt())
        of_value = first.sum(dim=0)
        matters = of_value + 2 * variance.sum(dim=0).sqrt() > _MATTERS
        tails = torch.where(
            matters, of_value * torch.stack([part.tail_error(rounding) for part in each]), 0.0
        )
        known = self.counts.sum(dim=0) >= _FEWEST_OF_VALUE
        k = torch.where(known, torch.stack([part.pareto_k(rounding) for part in each]), math.nan)
        largest = torch.where(matters, k, -math.inf).amax(dim=0)  # NaN if one is
        return {
            "mcse": mcse,
            "bias": -0.5 * mcse**2,
            "tail_error": torch.fmin(together.tail_error(rounding), tails.square().sum(dim=0).sqrt()),
            "pareto_k": torch.fmin(together.pareto_k(rounding), largest),
        }


def _values(evaluation: Evaluation, rows: slice, most: int) -> DiscreteValues | None:
    """Return the values of the discrete latents of a block of rows, at most ``most``."""
    model, batch = evaluation.model, evaluation.part(rows)
    with undisturbed(evaluation, Stream.TILE, rows=rows) as drawn:
        at, _ = model.propose(batch, 1, drawn)
        return DiscreteValues.of(model, batch, at, most)


def _tiles(evaluation: Evaluation, shares: Shares) -> list[tuple[int, int, int]]:
    """Return the tiles of the draws: 0 for the guide and 1 for the prior, draws done before, draws."""
    of_prior = round(shares.of_prior * evaluation.num_samples)
    return tiles_of((evaluation.num_samples - of_prior, of_prior), evaluation.tile[1])


def _by_value(
    evaluation: Evaluation, rows: slice, values: DiscreteValues, shares: Shares
) -> Iterator[_Drawn]:
    """Yield the draws of a block in parts."""
    model, batch = evaluation.model, evaluation.part(rows)
    ends = shares.log_share.exp().cumsum(dim=0).T  # (rows, values)
    starts = evaluation.noise(Stream.TILE, 1, rows=rows).uniform(2, dtype=torch.float64)
    tiles = _tiles(evaluation, shares)
    for part, done, draws in tiles:
        number = sum(each for other, _, each in tiles if other == part)
        at = starts[part] + torch.arange(done, done + draws, device=ends.device)[:, None]  # (samples, rows)
        numbers = interval_of(at.T / number, ends).T
        with undisturbed(evaluation, Stream.TILE, 2 + part, rows=rows, first=done) as drawn:
            found = model.weigh_rest(
                batch, draws, values.held(numbers), values.names, drawn, ("guide", "model")[part]
            )
        yield _Drawn(part, numbers, *found)
