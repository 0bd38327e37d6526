"""run_nuts() runs NUTS chains on a Bayesian model, on its traced log joint if possible, and returns their draws."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from pyro.infer import NUTS
from torch import Tensor

from pyrovae import noise
from pyrovae.baselines.mcmc import native
from pyrovae.pair.globals import PRIOR_DRAWS, BayesianModel, not_one_density
from pyrovae.progress import Progress
from pyrovae.refusals import bad_value
from pyrovae.tracing import TracedDensity, Untraceable

LogJoint = Callable[[Tensor], Tensor]

#: Number of tries of a chain for a start, uniform on (−2, 2) in unconstrained space as in Stan.
_STARTS = 100


def run_nuts(
    joint: BayesianModel,
    *,
    num_chains: int,
    warmup_steps: int,
    num_samples: int,
    seed: int,
    progress: bool,
    **options: Any,
) -> tuple[Tensor, int]:
    """Run the chains one after the other; return draws of u, (chains, draws, dim), and the number of divergences.

    nutpie runs them if it is installed, the log joint can be traced, and warm-up has at least 20 steps; otherwise
    Pyro's NUTS does.

    Args:
        joint: the model.
        num_chains: number of chains.
        warmup_steps: steps per chain that adapt step size and mass.
        num_samples: draws per chain.
        seed: of starts and steps.
        progress: whether to show it.
        options: ``target_accept_prob``, ``full_mass`` and ``max_tree_depth``, as Pyro's ``NUTS`` has them.

    Raises:
        ValueError: no start has finite density; or the log joint changes by Python's own if.
    """
    draws, divergences = [], 0
    steps = num_chains * (warmup_steps + num_samples)
    with Progress("NUTS", steps, "steps", progress) as bar, joint.own_settings():
        density = traced(joint)
        nutpie = native.nutpie() if warmup_steps >= native.FEWEST_STEPS else None
        log_joint = joint.log_joint if density is None else with_gradient(density)
        if density is not None and density.pays(steps * native.CALLS_A_STEP):
            with suppress(Untraceable):  # the graph then runs as it is
                density.compile()
        searched: list[Tensor] = []  # by the first chain that finds no start near zero, for all chains
        for chain in range(num_chains):
            key = noise.derive(seed, noise.Stream.STEP, chain)
            with noise.seeded(key):
                start = _start(log_joint, joint)
                if start is None:
                    searched = searched or _search(log_joint, joint, num_chains)
                    start = searched[chain % len(searched)]
                run: dict[str, Any] = {
                    "warmup_steps": warmup_steps,
                    "num_samples": num_samples,
                    "bar": bar,
                } | options
                if density is None or nutpie is None:
                    kept, diverged = _by_pyro(log_joint, start, **run)
                else:
                    kept, diverged = native.run_chain(nutpie, density, start, seed=key, **run)
            draws.append(kept)
            divergences += diverged
            _check_traced(log_joint, joint, kept[-1])
    return torch.stack(draws), divergences


def _by_pyro(
    log_joint: LogJoint, start: Tensor, *, warmup_steps: int, num_samples: int, bar: Progress, **options: Any
) -> tuple[Tensor, int]:
    """Return the draws of a chain by Pyro's NUTS, shape (draws, dim), and the number of divergences."""
    kernel = NUTS(potential_fn=lambda place: -log_joint(place["u"]), **options)
    kernel.initial_params = place = {"u": start}
    kernel.setup(warmup_steps)
    kept = []
    for step in range(warmup_steps + num_samples):
        place = kernel.sample(place)
        if step >= warmup_steps:
            kept.append(place["u"].detach().clone())
        bar.advance()
    return torch.stack(kept), len(set(kernel.diagnostics()["divergences"]))


def traced(joint: BayesianModel) -> TracedDensity | None:
    """Return the log joint as a graph, or None if the model cannot be traced, because it reads values back."""
    try:
        return TracedDensity(joint.log_joint, joint.dim)
    except Untraceable:
        return None


def with_gradient(density: TracedDensity) -> LogJoint:
    """Return a density as a function that autograd can differentiate once."""
    return lambda u: _WithGradient.apply(u, density)


class _WithGradient(torch.autograd.Function):
    """A number whose gradient was computed together with it."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, density: TracedDensity) -> Tensor:
        value, gradient = density(u)
        ctx.save_for_backward(gradient)
        return value

    @staticmethod
    def backward(ctx: Any, *above: Any) -> Any:
        return above[0] * ctx.saved_tensors[0], None


def _check_traced(log_joint: LogJoint, joint: BayesianModel, u: Tensor) -> None:
    """Raise ``ValueError`` if the traced log joint differs from the model's at u, shape (dim,)."""
    if not torch.allclose(log_joint(u), joint.log_joint(u), rtol=1e-6, atol=1e-6):
        raise not_one_density(
            "a log joint that differs from the traced one at other latents, by Python's own if or numpy"
        )


def _start(log_joint: LogJoint, joint: BayesianModel) -> Tensor | None:
    """Return a random start of finite density and gradient near zero, shape (dim,); None if none was found."""
    tries = (torch.rand(joint.dim, dtype=torch.float64) * 4 - 2 for _ in range(_STARTS))
    return next((u for u in tries if _is_finite(log_joint, u)), None)


def _is_finite(log_joint: LogJoint, u: Tensor) -> bool:
    """Return whether density and gradient are finite at u."""
    at = u.clone().requires_grad_()
    density = log_joint(at)
    (gradient,) = torch.autograd.grad(density, at, allow_unused=True)
    return gradient is not None and bool(torch.isfinite(density)) and bool(torch.isfinite(gradient).all())


def _search(log_joint: LogJoint, joint: BayesianModel, number: int) -> list[Tensor]:
    """Return up to ``number`` starts, from many draws of the prior; raise ``ValueError`` if there are none.

    The model's first run, which may have been searched for, comes last, where there are too few.
    """
    found: list[Tensor] = []
    for _ in range(0, PRIOR_DRAWS, _STARTS):
        u = torch.stack([joint.from_prior() for _ in range(_STARTS)])
        possible = torch.isfinite(joint.log_joints(u))
        found += [vector for vector in u[possible] if _is_finite(log_joint, vector)]
        if len(found) >= number:
            return found[:number]
    found += [joint.first] if _is_finite(log_joint, joint.first) else []
    if not found:
        raise bad_value(
            "model",
            "a density that is finite somewhere in (−2, 2) of its unconstrained space, or at a draw from the prior",
            f"none at {PRIOR_DRAWS + _STARTS} starts",
            "Check the scales of the priors, and that the likelihood can score x.",
        )
    return found
