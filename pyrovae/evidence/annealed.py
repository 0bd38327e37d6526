"""Annealed importance sampling: from the encoder to the posterior in many small steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyrovae import checks
from pyrovae.diagnostics import Accumulator
from pyrovae.evidence.blocks import Folder, each_block, parts_of
from pyrovae.evidence.posterior import Encoder, Posterior, Prior, Proposal, undisturbed
from pyrovae.evidence.reach import unreached
from pyrovae.evidence.result import CUT_OFF, Columns, LogEvidence, judge, verdicts
from pyrovae.log_weights import Evaluation, Terms
from pyrovae.model import LatentVariableModel
from pyrovae.noise import Stream
from pyrovae.progress import Progress
from pyrovae.row_noise import RowNoise
from pyrovae.turns import takes_turns

STARTS = ("encoder", "prior")

# Momentum kept from one move to the next: at one leapfrog step a move, a walk without it would diffuse.
_PERSISTENCE = 0.8
_ACCEPTANCE = 0.85
_PILOT_CHAINS = 8
_WARM_UP = 10
_SPREAD_DRAWS = 128


@takes_turns
def annealed(
    pair: LatentVariableModel,
    x: Any,
    num_samples: int = 64,
    num_temperatures: int = 300,
    seed: int = 0,
    start: str = "encoder",
    tile: tuple[int, int] | None = None,
    progress: bool = False,
    checkpoint: Folder = None,
    compile: str | bool = "auto",
    noise: str = "index",
) -> LogEvidence:
    """log P(x_n) ≈ log (1/K) Σ_k Π_t f_t(u_{k,t−1}) / f_{t−1}(u_{k,t−1}), f_t = Q^(1−β_t) P(x_n, u)^β_t.

    Annealed importance sampling (Neal 2001). K chains a row start at draws of the encoder and move towards
    the posterior while β goes from 0 to 1, by a leapfrog step of Hamiltonian dynamics at every
    temperature, accepted or rejected, with persistent momentum (Horowitz 1991). A pilot run tunes a step
    size for every row and temperature; then they are frozen, so that the result stays a lower bound in
    expectation. Constrained latents move in their unconstrained space.

    Pyro's HMC adapts and accepts one chain for all rows together; so the moves are the package's own,
    every row and chain with its own acceptance.

    Args:
        pair: a ``VAE`` or any ``LatentVariableModel`` with continuous latents.
        x: rows on dim 0; tensor, numpy array or DataFrame.
        num_samples: chains a row, K.
        num_temperatures: steps from β = 0 to β = 1; a chain costs three decoder evaluations for each.
        seed: the same seed gives the same numbers; the same tile, too, the same bits.
        start: "encoder", or "prior" where the guide is not to be relied on.
        tile: (rows, chains) computed at once; chosen from the shapes where None.
        progress: show a bar, or plain lines where there is no terminal.
        checkpoint: a folder of this evaluation's own that keeps finished blocks of rows: the same call goes on
            after the last of them.
        compile: whether what a move computes is traced and compiled: True, False, or "auto", by the work ahead; see
            ``log_weights``. Every kind of move is compiled by itself.
        noise: what the noise of a row follows from beside ``seed``: its "index" in x, or its "content", so that a row
            has the same number in any order and selection of rows.

    Returns:
        A ``LogEvidence`` whose rows are lower bounds.

    Raises:
        TypeError, ValueError: see ``pyrovae.checks`` and ``pyrovae.pair.inspect``; a discrete latent.

    Neal (2001); Wu, Burda, Salakhutdinov and Grosse (2017) on decoders.

    Example:
        >>> import torch
        >>> from pyrovae import VAE
        >>> x = torch.ones(4, 6)
        >>> annealed(VAE.mlp(6, latent_dim=2), x, num_samples=4, num_temperatures=10).estimate.shape
        (4,)
    """
    checks.choice("start", start, STARTS)
    checks.integer("num_temperatures", num_temperatures, minimum=2)
    checks.boolean("progress", progress)
    evaluation = Evaluation.prepare(pair, x, num_samples, seed, tile, compile=compile, noise=noise)
    parts = parts_of(
        checkpoint, evaluation, method="annealed", num_temperatures=num_temperatures, start=start
    )

    def anneal(number: int, rows: slice) -> Columns:
        with undisturbed(evaluation, Stream.PILOT, rows=rows) as drawn:
            posterior = Posterior(evaluation, rows)
            posterior.expect(3 * num_temperatures * num_samples)
            begin = Encoder(posterior) if start == "encoder" else Prior(posterior)
            path = Path(posterior, begin, drawn, chains=min(evaluation.tile[1], num_samples))
            moves = path.tune(num_temperatures, drawn)
        return weigh_chains(evaluation, path, moves, rows)

    with Progress("log P(x)", len(evaluation), "rows", progress) as bar:
        columns = each_block(evaluation, anneal, bar, parts)
    verdict, reasons = judge(
        verdicts(columns.pareto_k.cpu().numpy(), num_samples),
        columns,
        {CUT_OFF: unreached(evaluation).rows} if start == "encoder" else {},
    )
    return LogEvidence.of(
        columns,
        evaluation,
        method="annealed",
        kind="lower bound",
        verdict=verdict,
        reasons=reasons,
        num_samples=num_samples,
    )


def weigh_chains(evaluation: Evaluation, path: Path, moves: Moves, rows: slice) -> Columns:
    """The log-mean-exp of the chains' weights of a block of rows, on fresh noise."""
    weights = accumulate(evaluation, path.posterior, rows, 0, partial(path.forward, moves))
    return Columns.of_weights(weights, path.posterior.dtype, path.posterior.cost)


def accumulate(
    evaluation: Evaluation,
    posterior: Posterior,
    rows: slice,
    key: int,
    run: Callable[[int, RowNoise], Tensor],
) -> Accumulator:
    """All chains of a block of rows, as many at once as a tile holds; ``key`` makes their noise their own."""
    width = evaluation.tile[1]
    chunks = list(range(0, evaluation.num_samples, width))
    weights = Accumulator(evaluation.num_samples, posterior.num_rows, len(chunks), posterior.device)
    for index, done in enumerate(chunks):
        with undisturbed(evaluation, Stream.TILE, key, rows=rows, first=done) as drawn:
            weights.add(index, run(min(width, evaluation.num_samples - done), drawn))
    return weights


class Moves(NamedTuple):
    """A frozen schedule: β_0 = 0 to β_T = 1, and a step size for every β between and row, (T − 1, rows)."""

    betas: list[float]
    step_sizes: Tensor


class _State(NamedTuple):
    """Where chains are, (chains, rows, dim), and what is known there of both ends of the path."""

    u: Tensor
    log_start: Tensor
    log_target: Tensor
    start_gradient: Tensor
    target_gradient: Tensor

    def at(self, beta: float) -> tuple[Tensor, Tensor]:
        """log f and its gradient, f = start^(1−β) target^β."""
        value = (1 - beta) * self.log_start + beta * self.log_target
        return value, (1 - beta) * self.start_gradient + beta * self.target_gradient

    def where(self, accepted: Tensor, other: _State) -> _State:
        """This state for accepted chains, the other one for the rest."""
        pairs = zip(self, other, strict=True)
        return _State(
            *(torch.where(accepted if a.dim() == 2 else accepted[..., None], a, b) for a, b in pairs)
        )


class Path:
    """The geometric path from a proposal to the posterior of a block of rows, and the moves along it; ``chains`` of them at a time."""

    def __init__(
        self,
        posterior: Posterior,
        start: Proposal,
        noise: RowNoise,
        scale: Tensor | None = None,
        chains: int = 0,
    ) -> None:
        self.posterior, self._start, self._chains = posterior, start, chains
        # Each coordinate in units of the start's spread: a mass matrix, diagonal, for every row.
        spread = self._begin(_SPREAD_DRAWS, noise)[0].std(dim=0) if scale is None else scale
        self._scale = spread.clamp(min=1e-6)

    def _begin(self, num_chains: int, noise: RowNoise) -> tuple[Tensor, Tensor]:
        """Draws of the start, (chains, rows, dim), and which of them lie off the prior's support: those stand at 0."""
        u = self._start.draw(num_chains, noise)
        off = u.isnan().any(dim=-1)
        return torch.where(off[..., None], 0.0, u), off

    def tune(self, num_temperatures: int, noise: RowNoise) -> Moves:
        """A pilot run over a quarter of the temperatures, which finds the step sizes; its noise is its own."""
        betas = _ladder(max(10, num_temperatures // 4))
        u, _ = self._begin(_PILOT_CHAINS, noise)
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

    def forward(self, moves: Moves, num_chains: int, noise: RowNoise) -> Tensor:
        """Log weights of chains from the start to the posterior, (chains, rows): E[exp] = P(x_n)."""
        u, off = self._begin(num_chains, noise)
        return torch.where(off, -math.inf, self._sweep(u, moves, +1, noise))

    def backward(self, moves: Moves, u: Tensor, noise: RowNoise) -> Tensor:
        """Log weights of chains from exact posterior draws u back to the start: E[exp(−weight)] = 1/P(x_n)."""
        return self._sweep(u, moves, -1, noise)

    def _sweep(self, u: Tensor, moves: Moves, direction: int, noise: RowNoise) -> Tensor:
        """Σ_t log f_t − log f_{t−1} along the path, or along the path turned round."""
        betas, sizes = (
            moves.betas[::direction],
            moves.step_sizes.flip(0) if direction < 0 else moves.step_sizes,
        )
        state, momentum = self._state(u), _normal_like(u, noise)
        log_weights = torch.zeros_like(state.log_start)
        for index, (beta, following) in enumerate(pairwise(betas)):
            log_weights = log_weights + (following - beta) * (state.log_target - state.log_start)
            if index < len(sizes):
                state, momentum, _ = self._move(state, momentum, following, sizes[index], noise)
        log_weights = direction * log_weights
        zero = torch.zeros_like(log_weights)
        return Terms(log_weights, zero, zero).checked(self.posterior.numbers).log_weights

    def _move(
        self, state: _State, momentum: Tensor, beta: float, size: Tensor, noise: RowNoise
    ) -> tuple[_State, Tensor, Tensor]:
        """One leapfrog step at β, accepted or rejected by chain and row, then part of the momentum anew.

        Turned round in time it is itself with the momentum reversed; a chain that begins with fresh
        momentum at the posterior therefore runs the reverse of what a chain from the start runs.
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
        # A rejected move turns round: only so is the momentum's part of it reversible.
        momentum = torch.where(accepted[..., None], new_momentum, -momentum)
        fresh = _normal_like(momentum, noise)
        momentum = _PERSISTENCE * momentum + math.sqrt(1 - _PERSISTENCE**2) * fresh
        return proposed.where(accepted, state), momentum, acceptance.mean(dim=0)

    def _state(self, u: Tensor) -> _State:
        return _State(u, *self.posterior.ends(self._start, u, self._chains))


def _normal_like(u: Tensor, noise: RowNoise) -> Tensor:
    return noise.normal(*u.shape[::2], dtype=u.dtype)


def path_cost(num_chains: int, num_temperatures: int) -> int:
    """Decoder evaluations of a path from a mixture: the pilot, and the chains."""
    pilot = _PILOT_CHAINS * (3 * (max(10, num_temperatures // 4) + _WARM_UP) + 1)
    return pilot + num_chains * (3 * num_temperatures + 1) + 4


def _ladder(num_temperatures: int) -> list[float]:
    """β from 0 to 1 in equal steps."""
    return [t / num_temperatures for t in range(num_temperatures + 1)]
