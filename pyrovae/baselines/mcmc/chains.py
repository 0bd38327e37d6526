"""run_nuts() runs NUTS chains on a Bayesian model and returns their draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro.infer import NUTS
from torch import Tensor

from pyrovae import noise
from pyrovae.pair.globals import BayesianModel
from pyrovae.progress import Progress
from pyrovae.refusals import bad_value

LogJoint = Callable[[Tensor], Tensor]

#: Number of tries for a start, uniform on (−2, 2) in unconstrained space as in Stan.
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

    ``options`` are those of Pyro's ``NUTS``.

    Raises:
        ValueError: no start has finite density; or the log joint changes by Python's own if.
    """
    draws, divergences = [], 0
    total = num_chains * (warmup_steps + num_samples)
    with Progress("NUTS", total, "steps", progress) as bar, joint.undisturbed():
        log_joint = joint.traced()
        for chain in range(num_chains):
            with noise.seeded(noise.derive(seed, noise.Stream.STEP, chain)):
                kernel = NUTS(potential_fn=lambda place: -log_joint(place["u"]), **options)
                kernel.initial_params = place = {"u": _start(log_joint, joint.dim)}
                kernel.setup(warmup_steps)
                kept = []
                for step in range(warmup_steps + num_samples):
                    place = kernel.sample(place)
                    if step >= warmup_steps:
                        kept.append(place["u"].detach().clone())
                    bar.advance()
            draws.append(torch.stack(kept))
            joint.check_traced(log_joint, draws[-1][-1:])
            divergences += len(set(kernel.diagnostics()["divergences"]))
    return torch.stack(draws), divergences


def _start(log_joint: LogJoint, dim: int) -> Tensor:
    """Return a start of finite density and gradient, shape (dim,)."""
    for _ in range(_STARTS):
        u = (torch.rand(dim, dtype=torch.float64) * 4 - 2).requires_grad_()
        density = log_joint(u)
        (gradient,) = torch.autograd.grad(density, u, allow_unused=True)
        if gradient is not None and bool(torch.isfinite(density)) and bool(torch.isfinite(gradient).all()):
            return u.detach()
    raise bad_value(
        "model",
        "a density that is finite somewhere in (−2, 2) of its unconstrained space",
        f"none at {_STARTS} starts",
        "Check the scales of the priors, and that the likelihood can score x.",
    )
