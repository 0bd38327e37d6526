"""annealed() estimates log P(x) by annealed importance sampling from the encoder to the posterior."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyrovae import arguments
from pyrovae.diagnostics import Accumulator
from pyrovae.evaluation import Evaluation, Terms
from pyrovae.evidence.posterior import (
    Encoder,
    Mixture,
    Posterior,
    Prior,
    Proposal,
    at_exact_draw,
    undisturbed,
)
from pyrovae.evidence.result import CUT_OFF, Columns, LogEvidence, lost_at_bounds
from pyrovae.evidence.run import BlockFunction, Folder, Run
from pyrovae.evidence.workers import Workers
from pyrovae.model import LatentVariableModel
from pyrovae.noise import Stream
from pyrovae.row_noise import RowNoise
from pyrovae.turns import takes_turns

STARTS = ("both", "encoder", "prior")

# Momentum kept from one move to the next; with one leapfrog step per move and no persistence, chains would diffuse.
_PERSISTENCE = 0.8
_ACCEPTANCE = 0.85
_PILOT_CHAINS = 8
_WARM_UP = 10
_SPREAD_DRAWS = 128


@takes_turns
def annealed(
    pair: LatentVariableModel,
    x: Any,
    num_samples: int = 128,
    num_temperatures: int = 300,
    seed: int = 0,
    start: str = "both",
    tile: tuple[int, int] | None = None,
    progress: bool = False,
    checkpoint: Folder = None,
    compile: str | bool = "auto",
    noise: str = "index",
    check: bool = True,
    executor: Workers = None,
) -> LogEvidence:
    """Return log P(x_n) ≈ log (1/K) Σ_k Π_t f_t(u_{k,t−1}) / f_{t−1}(u_{k,t−1}), f_t = Q^(1−β_t) P(x_n, u)^β_t.

    This is annealed importance sampling (Neal 2001). Half of the K chains per row start at draws of the encoder, half
    at draws of the prior. So Q above is the mixture of both. The chains move towards the posterior while β goes from
    0 to 1. At every temperature, a chain makes one leapfrog step of Hamiltonian dynamics with persistent momentum
    (Horowitz 1991), and accepts or rejects it. A pilot run tunes a step size for every row and temperature. The step
    sizes are then frozen, so that the result is a lower bound in expectation. Constrained latents move in their
    unconstrained space.

    Pyro's HMC adapts and accepts one chain for all rows together. pyrovae therefore has its own moves, which
    accept every row and chain separately.

    Args:
        pair: a ``VAE`` or any ``LatentVariableModel`` with continuous latents.
        x: rows on dim 0; tensor, numpy array or DataFrame.
        num_samples: K, chains per row.
        num_temperatures: steps from β = 0 to β = 1; a chain spends three decoder evaluations on each.
        start: "both", "encoder" or "prior". Chains from the encoder alone never reach modes that it does not know.
        seed, tile, progress, checkpoint, compile, noise, check, executor: as in ``importance``; a tile is (rows,
            chains). Each kind of move is compiled separately.

    Returns:
        A ``LogEvidence`` whose rows are lower bounds.

    Raises:
        TypeError, ValueError: an option, the rows or the pair cannot be used; see ``pyrovae.pair.inspect``; also if
            a latent is discrete.

    Neal (2001); Wu, Burda, Salakhutdinov and Grosse (2017) for decoders.

    Example:
        >>> import torch
        >>> from pyrovae import VAE
        >>> x = torch.ones(4, 6)
        >>> annealed(VAE.mlp(6, latent_dim=2), x, num_samples=4, num_temperatures=10).estimate.shape
        (4,)
    """
    arguments.choice("start", start, STARTS)
    arguments.integer("num_temperatures", num_temperatures, minimum=2)
    run = Run.prepare(annealed, locals())
    columns = run.columns(partial(annealed_block, num_temperatures=num_temperatures, start=start))
    return run.answer(columns, "lower bound", {CUT_OFF: run.unreached()} if start == "encoder" else {})


def annealed_block(evaluation: Evaluation, num_temperatures: int, start: str) -> BlockFunction:
    """Return the function of a block that anneals its rows' chains."""
    num_samples = evaluation.num_samples

    def anneal(number: int, rows: slice) -> Columns:
        with undisturbed(evaluation, Stream.PILOT, rows=rows) as drawn:
            posterior = Posterior(evaluation, rows)
            posterior.expect(3 * num_temperatures * num_samples)
            begin = proposal_of(posterior, start, num_samples)
            path = Path(posterior, begin, drawn, chains=min(evaluation.tile[1], num_samples))
            moves = path.tune(num_temperatures, drawn)
        return weigh_chains(evaluation, path, moves, rows)

    return anneal


def proposal_of(posterior: Posterior, start: str, num_chains: int) -> Proposal:
    """Return the proposal that chains start from."""
    if start == "prior":
        return Prior(posterior)
    encoder = Encoder(posterior)
    return (
        encoder if start == "encoder" or num_chains == 1 else half_from_prior(posterior, encoder, num_chains)
    )


def half_from_prior(posterior: Posterior, proposal: Proposal, num_chains: int) -> Mixture:
    """Return a mixture of a proposal and the prior, with half of the chains each.

    The prior reaches modes that the proposal does not know. A chain weighs at most twice what it would from either.
    """
    return Mixture([proposal, Prior(posterior)], [num_chains - num_chains // 2, num_chains // 2])


def weigh_chains(evaluation: Evaluation, path: Path, moves: Moves, rows: slice) -> Columns:
    """Return the log-mean-exp of the weights of a block's chains, run on fresh noise."""
    weights, at_bounds = accumulate(
        evaluation, path.posterior, rows, 0, partial(path.forward, moves), path.strata
    )
    lost = lost_at_bounds(at_bounds, weights)
    columns = Columns.of_weights(weights, path.posterior.dtype, path.posterior.cost, lost)
    # A chain that runs back from an exact draw is the reverse of a chain whose weight is this one.
    weight = at_exact_draw(
        evaluation,
        path.posterior,
        rows,
        lambda u, drawn: path.backward(moves, u, drawn, checked=False)[0][0],
    )
    return columns.beside(weight, evaluation.num_samples, weights)


def accumulate(
    evaluation: Evaluation,
    posterior: Posterior,
    rows: slice,
    key: int,
    run: Callable[[list[int], RowNoise], Ran],
    strata: Sequence[int] = (),
) -> tuple[Accumulator, Tensor]:
    """Return the weights of all chains of a block of rows, and the log of the sum of those at a bound, (rows,).

    ``key`` separates their noise from others'. Chains run tile by tile. ``run`` gets the numbers of a tile's chains from
    each of the ``strata``. It returns their log weights in that order, and which chains start or end at a bound.
    """
    width, count = evaluation.tile[1], evaluation.num_samples
    strata = list(strata) or [count]
    tiles = [_parts(strata, first, min(first + width, count)) for first in range(0, count, width)]
    pieces = [stratum for parts in tiles for stratum, part in enumerate(parts) if part]
    weights = Accumulator(
        count, posterior.num_rows, len(pieces), posterior.device, pieces if len(strata) > 1 else None
    )
    done = 0
    at_bounds = torch.full((posterior.num_rows,), -math.inf, dtype=torch.float64, device=posterior.device)
    for index, parts in enumerate(tiles):
        with undisturbed(evaluation, Stream.TILE, key, rows=rows, first=index * width) as drawn:
            found, rounded = run(parts, drawn)
        at_bounds = torch.logaddexp(at_bounds, torch.where(rounded, found, -math.inf).logsumexp(dim=0))
        for piece in found.split([part for part in parts if part]):
            weights.add(done, piece)
            done += 1
    return weights, at_bounds


def _parts(strata: Sequence[int], first: int, last: int) -> list[int]:
    """Return how many of the chains from ``first`` to ``last`` are of each stratum, if strata follow each other."""
    ends = list(itertools.accumulate(strata))
    return [max(0, min(last, end) - max(first, end - size)) for size, end in zip(strata, ends, strict=True)]


#: Log weights of chains and whether each starts or ends where z rounds onto a bound, (chains, rows).
Ran = tuple[Tensor, Tensor]


class Moves(NamedTuple):
    """A frozen schedule: β_0 = 0 to β_T = 1, and step sizes for each β in between and each row, (T − 1, rows)."""

    betas: list[float]
    step_sizes: Tensor


class _State(NamedTuple):
    """Positions of chains, (chains, rows, dim), and log density and gradient there at both ends of the path."""

    u: Tensor
    log_start: Tensor
    log_target: Tensor
    start_gradient: Tensor
    target_gradient: Tensor

    def at(self, beta: float) -> tuple[Tensor, Tensor]:
        """Return log f and its gradient, f = start^(1−β) target^β."""
        value = (1 - beta) * self.log_start + beta * self.log_target
        return value, (1 - beta) * self.start_gradient + beta * self.target_gradient

    def where(self, accepted: Tensor, other: _State) -> _State:
        """Return this state for accepted chains and the other one for the rest."""
        pairs = zip(self, other, strict=True)
        return _State(
            *(torch.where(accepted if a.dim() == 2 else accepted[..., None], a, b) for a, b in pairs)
        )


class Path:
    """The geometric path from a proposal to the posterior of a block of rows, and its moves.

    ``chains`` is the number of chains that move at a time.
    """

    def __init__(
        self,
        posterior: Posterior,
        start: Proposal,
        noise: RowNoise,
        scale: Tensor | None = None,
        chains: int = 0,
    ) -> None:
        self.posterior, self._start, self._chains = posterior, start, chains
        self._components = start.components if isinstance(start, Mixture) else [start]
        # Scaling each coordinate by the spread of the widest component is a diagonal mass matrix for every row.
        if scale is None:
            drawn = (_on_support(each.draw(_SPREAD_DRAWS, noise))[0] for each in self._components)
            scale = torch.stack([u.std(dim=0) for u in drawn]).amax(dim=0)
        self._scale = scale.clamp(min=1e-6)

    @property
    def strata(self) -> list[int]:
        """The numbers of chains from each component of a start that is a mixture; else empty."""
        return self._start.counts if isinstance(self._start, Mixture) else []

    def _begin(self, parts: list[int], noise: RowNoise) -> Tensor:
        """Return draws of the start, (chains, rows, dim): from a mixture, so many from each component.

        Every component draws for all chains, so that a chain's noise does not depend on the tile that it is in.
        """
        drawn = [component.draw(sum(parts), noise).split(parts) for component in self._components]
        return torch.cat([pieces[index] for index, pieces in enumerate(drawn)])

    def tune(self, num_temperatures: int, noise: RowNoise) -> Moves:
        """Return step sizes found by a pilot run over a quarter of the temperatures, on noise of its own."""
        betas = _ladder(max(10, num_temperatures // 4))
        u, _ = _on_support(self._start.draw(_PILOT_CHAINS, noise))
        size = torch.full(
            (self.posterior.num_rows,), self.posterior.dim**-0.25, dtype=torch.float64, device=u.device
        )
        found = []
        state, momentum = self._state(u), _normal_like(u, noise)
        for beta in [betas[1]] * _WARM_UP + betas[1:-1]:
            state, momentum, acceptance = self._move(state, momentum, beta, size, noise)
            size = size * torch.exp(0.2 * (acceptance - _ACCEPTANCE))
            found.append(size)
        # (rows, 1, pilot's temperatures) → (temperatures − 1, rows)
        pilot = torch.stack(found[_WARM_UP:], dim=-1)[:, None]
        sizes = torch.nn.functional.interpolate(pilot, num_temperatures - 1, mode="linear")[:, 0].T
        return Moves(_ladder(num_temperatures), sizes)

    def forward(self, moves: Moves, parts: list[int], noise: RowNoise) -> Ran:
        """Return log weights of chains from the start to the posterior, (chains, rows): E[exp] = P(x_n).

        ``parts`` has the number of chains from each component of the start. The second tensor tells which chains start or end
        where z rounds onto a bound.
        """
        u, off = _on_support(self._begin(parts, noise))
        log_weights, rounded = self._sweep(u, moves, +1, noise)
        return torch.where(off, -math.inf, log_weights), rounded

    def backward(self, moves: Moves, u: Tensor, noise: RowNoise, checked: bool = True) -> Ran:
        """Return log weights of chains from exact posterior draws u to the start: E[exp(−weight)] = 1/P(x_n).

        The second tensor is as in ``forward``. Without ``checked``, a weight may be NaN or +∞, as from a u off the start's support.
        """
        return self._sweep(u, moves, -1, noise, checked)

    def _sweep(self, u: Tensor, moves: Moves, direction: int, noise: RowNoise, checked: bool = True) -> Ran:
        """Return Σ_t log f_t − log f_{t−1} along the path, or along the reversed path if ``direction`` is −1."""
        betas, sizes = (
            moves.betas[::direction],
            moves.step_sizes.flip(0) if direction < 0 else moves.step_sizes,
        )
        state, momentum = self._state(u), _normal_like(u, noise)
        log_weights = torch.zeros_like(state.log_start)
        for index, (beta, following) in enumerate(itertools.pairwise(betas)):
            log_weights = log_weights + (following - beta) * (state.log_target - state.log_start)
            if index < len(sizes):
                state, momentum, _ = self._move(state, momentum, following, sizes[index], noise)
        log_weights = direction * log_weights
        rounded = self.posterior.beyond(u) | self.posterior.beyond(state.u)
        if not checked:
            return log_weights, rounded
        zero = torch.zeros_like(log_weights)
        return Terms(log_weights, zero, zero).checked(self.posterior.numbers).log_weights, rounded

    def _move(
        self, state: _State, momentum: Tensor, beta: float, size: Tensor, noise: RowNoise
    ) -> tuple[_State, Tensor, Tensor]:
        """Make one leapfrog step at β, accept or reject it by chain and row, then renew part of the momentum.

        The move equals its time reversal up to the sign of the momentum. A chain that begins at the posterior
        with fresh momentum therefore runs the reverse of a chain from the start.
        """
        step = (size[:, None] * self._scale).to(state.u.dtype)  # (rows, dim)
        value, gradient = state.at(beta)
        half = momentum + 0.5 * step * gradient
        proposed = self._state(state.u + step * half)
        new_value, new_gradient = proposed.at(beta)
        new_momentum = half + 0.5 * step * new_gradient
        energy = value - 0.5 * (momentum.double() ** 2).sum(-1)
        new_energy = new_value - 0.5 * (new_momentum.double() ** 2).sum(-1)
        acceptance = torch.exp(new_energy - energy).clamp(max=1).nan_to_num(nan=0.0)
        accepted = noise.uniform(len(acceptance), dtype=acceptance.dtype) < acceptance
        # A rejected move reverses the momentum, else the move would not be reversible.
        momentum = torch.where(accepted[..., None], new_momentum, -momentum)
        fresh = _normal_like(momentum, noise)
        momentum = _PERSISTENCE * momentum + math.sqrt(1 - _PERSISTENCE**2) * fresh
        return proposed.where(accepted, state), momentum, acceptance.mean(dim=0)

    def _state(self, u: Tensor) -> _State:
        return _State(u, *self.posterior.ends(self._start, u, self._chains))


def _on_support(u: Tensor) -> tuple[Tensor, Tensor]:
    """Return draws, and which of them lie off the prior's support; those are set to 0."""
    off = u.isnan().any(dim=-1)
    return torch.where(off[..., None], 0.0, u), off


def _normal_like(u: Tensor, noise: RowNoise) -> Tensor:
    return noise.normal(*u.shape[::2], dtype=u.dtype)


def path_cost(num_chains: int, num_temperatures: int) -> int:
    """Return the decoder evaluations of a path from a mixture: those of the pilot and of the chains."""
    pilot = _PILOT_CHAINS * (3 * (max(10, num_temperatures // 4) + _WARM_UP) + 1)
    return pilot + num_chains * (3 * num_temperatures + 1) + 4


def _ladder(num_temperatures: int) -> list[float]:
    """Return β from 0 to 1 in equal steps."""
    return [t / num_temperatures for t in range(num_temperatures + 1)]
