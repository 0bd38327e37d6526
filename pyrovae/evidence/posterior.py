"""The unnormalised posterior of a block of rows over real vectors u, and the proposals that u is drawn from."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Self

import pyro
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from pyrovae import noise
from pyrovae.evaluation import Evaluation
from pyrovae.pair import Coordinates, Latents, LogJoint
from pyrovae.refusals import Refused, bad_value
from pyrovae.row_noise import RowNoise, interval_of
from pyrovae.tracing import Call


class Posterior:
    """log P(x_n, u) for the rows n of a block; u has shape (samples, rows, dim).

    Densities of u include log |det ∂z/∂u|, here as a part of the prior. Every run of the model adds to ``cost``,
    the decoder evaluations spent on each row: one for a log joint, three with its gradient.

    Use it within ``undisturbed``.
    """

    def __init__(self, evaluation: Evaluation, rows: slice = slice(None)) -> None:
        self._model = evaluation.model
        self._batch = evaluation.part(rows)
        self._coordinates = Coordinates(self._model, self._batch)
        self._width = evaluation.tile[1]
        self.numbers = evaluation.numbers[rows]
        self.num_rows = len(self._batch["x"])
        self.dim, self.dtype = self._coordinates.dim, self._coordinates.dtype
        self.device = self._batch["x"].device
        self.cost = 2  # to find the coordinates
        # A graph would hold the masks of one block's rows as constants, so rows with absent latents run uncompiled.
        self._runner = None if self._coordinates.lacks else evaluation.runner
        self._alike = evaluation.rows_alike(self.num_rows)
        self._numbers = 0

    def only(self, rows: Tensor) -> Posterior:
        """Return the posterior of some of the rows, each as often as it is named; it runs uncompiled."""
        other = copy.copy(self)
        other._batch = {name: value[rows] for name, value in self._batch.items()}
        other._coordinates = Coordinates(self._model, other._batch)
        other.numbers, other.num_rows = self.numbers[rows], len(rows)
        other._width = max(1, self._width * self.num_rows // max(self.num_rows, len(rows)))
        other._runner, other.cost = None, 0
        return other

    def expect(self, cost: int) -> None:
        """Announce how many decoder evaluations per row ``score``, ``ends`` and ``weigh`` will spend.

        They run as graphs if this amount, over all blocks, repays tracing them. Before this call they do not.
        """
        self._numbers = noise.numbers(self._model.structure.widest, self._alike, cost)

    def draw_encoder(self, num_samples: int, noise: RowNoise) -> Tensor:
        """Return draws u ~ Q(u | x_n)."""
        return self.flatten(self._model.propose(self._batch, num_samples, noise)[0], noise)

    def draw_prior(self, num_samples: int, noise: RowNoise) -> tuple[Tensor, LogJoint]:
        """Return draws u ~ P(u), with log P(u) and log P(x_n | u) as in ``log_joint``."""
        self.cost += num_samples
        latents, joint = self._model.draw_prior(self._batch, num_samples, noise)
        u = self.flatten(latents, noise)
        return u, LogJoint(joint.prior + self.log_det(u), joint.likelihood)

    def log_det(self, u: Tensor) -> Tensor:
        """Return log |det ∂z/∂u|, shape (samples, rows), float64."""
        return self._coordinates.unflatten(u)[1]

    def flatten(self, latents: Latents, noise: RowNoise) -> Tensor:
        """Return latents of the pair as u; entries that a row lacks are drawn."""
        return self._coordinates.flatten(latents, noise)

    def unflatten(self, u: Tensor) -> Latents:
        """Return u as latents of the pair."""
        return self._coordinates.unflatten(u)[0]

    def beyond(self, u: Tensor) -> Tensor:
        """Return whether z of u rounds onto a bound of its support, where its density is cut off, (samples, rows)."""
        return self._coordinates.beyond(u)

    def log_joint(self, u: Tensor) -> LogJoint:
        """Return log P(u) and log P(x_n | u), each of shape (samples, rows), float64."""
        self.cost += len(u)
        latents, log_det = self._coordinates.unflatten(u)
        joint = self._model.log_joint(self._batch, latents)
        return LogJoint(joint.prior + log_det, joint.likelihood)

    def log_encoder(self, u: Tensor) -> Tensor:
        """Return log Q(u | x_n), shape (samples, rows), float64."""
        latents, log_det = self._coordinates.unflatten(u)
        return self._model.log_proposal(self._batch, latents) + log_det

    def score(self, u: Tensor, of_likelihood: bool = False) -> tuple[Tensor, Tensor]:
        """Return log P(x_n, u), (samples, rows), and its gradient, (samples, rows, dim), zero if not finite.

        With ``of_likelihood`` the gradient is that of log P(x_n | u).
        """
        self.cost += 3 * len(u)

        def function(v: Tensor, *columns: Tensor) -> Sequence[Tensor]:
            posterior = self._of(columns)

            def both(w: Tensor) -> tuple[Tensor, Tensor]:
                joint = posterior.log_joint(w)
                value = total(joint)
                return value.detach(), joint.likelihood if of_likelihood else value

            values, grads = gradients(both, v)
            return values[0], grads[1]

        width = min(self._width, len(u))
        name = ("score", of_likelihood)
        parts = [self._run(name, function, part, width) for part in u.split(width)]
        values, grads = (torch.cat(each) for each in zip(*parts, strict=True))
        return values, torch.nan_to_num(grads, nan=0.0, posinf=0.0, neginf=0.0)

    def ends(self, start: Proposal, u: Tensor, width: int) -> Sequence[Tensor]:
        """Return log q(u) of a proposal and log P(x_n, u), (samples, rows) each, and their gradients, (samples, rows, dim).

        ``width`` is the number of samples of most calls.
        """
        self.cost += 3 * len(u)

        def function(v: Tensor, *tensors: Tensor) -> Sequence[Tensor]:
            posterior, begin = self._with(start, tensors)

            def both(w: Tensor) -> tuple[Tensor, ...]:
                joint = posterior.log_joint(w)
                return begin.log_density(w, joint.prior), total(joint)

            values, grads = gradients(both, v)
            return *values, *grads

        return self._run(("ends", start.kind), function, u, width, start.tensors)

    def weigh(self, proposal: Proposal, u: Tensor, width: int) -> Sequence[Tensor]:
        """Return log P(x_n | u), log P(u) and log q(u) of a proposal, (samples, rows) each."""
        self.cost += len(u)

        def function(v: Tensor, *tensors: Tensor) -> Sequence[Tensor]:
            posterior, drawn_from = self._with(proposal, tensors)
            joint = posterior.log_joint(v)
            return joint.likelihood, joint.prior, drawn_from.log_density(v, joint.prior)

        return self._run(("weigh", proposal.kind), function, u, width, proposal.tensors)

    def _of(self, columns: Sequence[Tensor]) -> Posterior:
        """Return the posterior of other rows, equally many."""
        other = copy.copy(self)
        other._batch = dict(zip(self._batch, columns, strict=True))
        return other

    def _with(self, proposal: Proposal, tensors: Sequence[Tensor]) -> tuple[Posterior, Proposal]:
        """Return the posterior and a proposal of other rows, from their columns and the proposal's tensors."""
        posterior = self._of(tensors[: len(self._batch)])
        return posterior, proposal.of(posterior, iter(tensors[len(self._batch) :]))

    def _run(
        self,
        name: Hashable,
        function: Callable[..., Sequence[Tensor]],
        u: Tensor,
        width: int,
        tensors: Sequence[Tensor] = (),
    ) -> Sequence[Tensor]:
        """Return a function's value at u, this block's columns and further tensors, computed as a graph if that pays."""
        inputs = [u, *self._batch.values(), *tensors]
        if self._runner is None or not self._numbers or len(u) != width:
            return function(*inputs)
        call = Call(
            (name, *self._batch),
            function,
            inputs,
            self._numbers,
            required=self.num_rows == self._runner.main[0],
            again=self._coordinates,  # bounds that are tensors belong to this block
        )
        return self._runner.run(call)


def total(joint: LogJoint) -> Tensor:
    """Return log P(x_n, u)."""
    return joint.prior + joint.likelihood


def gradients(
    function: Callable[[Tensor], tuple[Tensor, ...]], u: Tensor
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return values of several functions of u, each (samples, rows), and their gradients, each (samples, rows, dim).

    Rows and samples are independent, so the gradient of the sum holds the gradient of each. A density that does
    not depend on u, such as a uniform one, has no graph; its gradient is zero.
    """

    def gradient(value: Tensor, u: Tensor) -> Tensor:
        found = None
        if value.requires_grad:
            (found,) = torch.autograd.grad(value.sum(), u, retain_graph=True, allow_unused=True)
        return torch.zeros_like(u) if found is None else found

    with torch.enable_grad():
        u = u.detach().requires_grad_()
        values = function(u)
        grads = [gradient(value, u) for value in values]
    return tuple(value.detach() for value in values), tuple(grads)


@contextmanager
def undisturbed(
    evaluation: Evaluation,
    stream: noise.Stream,
    *keys: int,
    rows: slice = slice(None),
    first: int = 0,
) -> Iterator[RowNoise]:
    """Run a block in ``eval()`` mode, with noise for its rows and without the checks of distributions.

    Methods that move z reach points where a density is zero or overflows. Such a move must be rejected without
    an error; the user's rows were checked before.
    """
    drawn = evaluation.noise(stream, *keys, rows=rows, first=first)
    seeded = noise.seeded(drawn.seed, evaluation.batch["x"].device)
    with evaluation.pair.evaluating(), seeded, pyro.validation_enabled(False):
        yield drawn


def dimensions(evaluation: Evaluation) -> int:
    """Return the number of entries of u, or zero if latents cannot be moved."""
    try:
        with undisturbed(evaluation, noise.Stream.PILOT):
            return Posterior(evaluation, slice(0, 1)).dim
    except Refused:
        return 0


def at_exact_draw(
    evaluation: Evaluation, posterior: Posterior, rows: slice, weigh: Callable[[Tensor, RowNoise], Tensor]
) -> Tensor | None:
    """Return what ``weigh`` returns at the u, (1, rows, dim), that rows were simulated with; None for rows of the user."""
    latents = evaluation.exact_draw(rows)
    if latents is None:
        return None
    with undisturbed(evaluation, noise.Stream.EXACT, rows=rows) as drawn:
        return weigh(posterior.flatten(latents, drawn), drawn)


class Proposal(ABC):
    """A distribution of u for the rows of a posterior, to draw from."""

    @abstractmethod
    def draw(self, num_samples: int, noise: RowNoise) -> Tensor:
        """Return draws u, shape (samples, rows, dim)."""

    @abstractmethod
    def log_density(self, u: Tensor, log_prior: Tensor) -> Tensor:
        """Return its log density at u, (samples, rows), float64, given the prior's log density there."""

    @property
    def kind(self) -> Hashable:
        """A key that tells proposals apart, beside their tensors."""
        return type(self).__name__

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors that define it, with rows on dim 0."""
        return []

    @abstractmethod
    def of(self, posterior: Posterior, tensors: Iterator[Tensor]) -> Proposal:
        """Return a proposal of the same kind for other rows, made of the next of the tensors."""


class Encoder(Proposal):
    """The guide, Q(u | x_n)."""

    def __init__(self, posterior: Posterior) -> None:
        self._posterior = posterior

    def draw(self, num_samples: int, noise: RowNoise) -> Tensor:
        return self._posterior.draw_encoder(num_samples, noise)

    def log_density(self, u: Tensor, log_prior: Tensor) -> Tensor:
        return self._posterior.log_encoder(u)

    def of(self, posterior: Posterior, tensors: Iterator[Tensor]) -> Encoder:
        return Encoder(posterior)


class Prior(Proposal):
    """The prior, P(u), which depends neither on the encoder nor on the row."""

    def __init__(self, posterior: Posterior) -> None:
        self._posterior = posterior

    def draw(self, num_samples: int, noise: RowNoise) -> Tensor:
        return self._posterior.draw_prior(num_samples, noise)[0]

    def log_density(self, u: Tensor, log_prior: Tensor) -> Tensor:
        return log_prior

    def of(self, posterior: Posterior, tensors: Iterator[Tensor]) -> Prior:
        return Prior(posterior)


class Fit(Proposal):
    """A proposal fitted to every row, made of tensors alone."""

    @abstractmethod
    def made(self, tensors: Iterator[Tensor]) -> Self:
        """Return a proposal of the same kind from other tensors."""

    @abstractmethod
    def widened(self, factor: float) -> Self:
        """Return it with its scales multiplied by ``factor``."""

    @property
    @abstractmethod
    def spread(self) -> Tensor:
        """The standard deviations, (rows, dim)."""

    def of(self, posterior: Posterior, tensors: Iterator[Tensor]) -> Self:
        return self.made(tensors)

    def __getitem__(self, rows: Tensor | slice) -> Self:
        return self.made(tensor[rows] for tensor in self.tensors)

    def joined(self, parts: Sequence[Fit]) -> Self:
        """Return the proposal of the rows of several parts, of the same kind as this."""
        return self.made(torch.cat(each) for each in zip(*(part.tensors for part in parts), strict=True))

    def where(self, rows: Tensor, other: Fit) -> Self:
        """Return this proposal for some rows, and another of the same kind for the rest."""
        pairs = zip(self.tensors, other.tensors, strict=True)
        return self.made(torch.where(rows.view(-1, *[1] * (a.dim() - 1)), a, b) for a, b in pairs)


class Gaussian(Fit):
    """N(loc, tril trilᵀ) for every row: loc of shape (rows, dim), tril (rows, dim, dim), float64."""

    def __init__(self, loc: Tensor, tril: Tensor, dtype: torch.dtype) -> None:
        self.loc, self.tril, self.dtype = loc, tril, dtype
        self._distribution = MultivariateNormal(loc, scale_tril=tril, validate_args=False)

    def draw(self, num_samples: int, noise: RowNoise) -> Tensor:
        standard = noise.normal(num_samples, self.loc.shape[-1], dtype=self.loc.dtype)
        return (self.loc + (self.tril @ standard[..., None])[..., 0]).to(self.dtype)

    def log_density(self, u: Tensor, log_prior: Tensor) -> Tensor:
        return self._distribution.log_prob(u.double())

    @property
    def tensors(self) -> list[Tensor]:
        return [self.loc, self.tril]

    def made(self, tensors: Iterator[Tensor]) -> Gaussian:
        return Gaussian(next(tensors), next(tensors), self.dtype)

    def widened(self, factor: float) -> Gaussian:
        return Gaussian(self.loc, factor * self.tril, self.dtype)

    @property
    def spread(self) -> Tensor:
        return self.tril.norm(dim=-1)


class Mixture(Proposal):
    """Σ_c α_c q_c, where ``counts[c]`` draws come from component c and α_c is their share.

    Stratified draws are taken from the ``components`` themselves. Every draw is weighted against the whole
    mixture, so its weight is small wherever any component has density. See Veach and Guibas (1995) for this
    balance heuristic, and Hesterberg (1995) for defensive mixtures.
    """

    def __init__(self, components: Sequence[Proposal], counts: Sequence[int]) -> None:
        self.components, self.counts = list(components), list(counts)

    def draw(self, num_samples: int, noise: RowNoise) -> Tensor:
        """Return draws, each from a component chosen at random, independently for every row."""
        each = torch.stack([component.draw(num_samples, noise) for component in self.components])
        ends = torch.tensor(self.counts, dtype=torch.float64, device=each.device).cumsum(0)
        label = interval_of(noise.uniform(num_samples, dtype=torch.float64), ends)
        return each.gather(0, label[None, ..., None].expand(1, *each.shape[1:]))[0]

    def log_density(self, u: Tensor, log_prior: Tensor) -> Tensor:
        terms = [
            math.log(count / sum(self.counts)) + component.log_density(u, log_prior)
            for count, component in zip(self.counts, self.components, strict=True)
        ]
        return torch.logsumexp(torch.stack(terms), dim=0)

    @property
    def kind(self) -> Hashable:
        return *self.counts, *(component.kind for component in self.components)

    @property
    def tensors(self) -> list[Tensor]:
        return [tensor for component in self.components for tensor in component.tensors]

    def of(self, posterior: Posterior, tensors: Iterator[Tensor]) -> Mixture:
        return Mixture([component.of(posterior, tensors) for component in self.components], self.counts)


def tiles_of(counts: Sequence[int], width: int) -> list[tuple[int, int, int]]:
    """Return tiles of one stratum each: its number, draws done before, draws."""
    return [(i, done, min(width, n - done)) for i, n in enumerate(counts) for done in range(0, n, width)]


def split(num_samples: int, shares: Sequence[float]) -> list[int]:
    """Return numbers of draws by shares; each is at least two, to estimate its error, and the first takes the rest.

    Raises:
        ValueError: there are too few draws for that many strata.
    """
    counts = [max(2, int(share * num_samples)) for share in shares]
    counts[0] = num_samples - sum(counts[1:])
    if counts[0] < 2:
        raise bad_value(
            "num_samples",
            f"at least two draws for each of {len(shares)} strata",
            str(num_samples),
            "Pass more num_samples, or fewer num_starts.",
        )
    return counts
