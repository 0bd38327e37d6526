"""run_nuts() runs NUTS chains on a Bayesian model, on its traced log joint if possible, and returns their draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro.infer import NUTS
from torch import Tensor

from pyrovae import noise
from pyrovae.pair.globals import BayesianModel, not_one_density
from pyrovae.progress import Progress
from pyrovae.refusals import bad_value
from pyrovae.torch_private import private

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
    with Progress("NUTS", total, "steps", progress) as bar, joint.own_settings():
        log_joint = traced(joint)
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
            _check_traced(log_joint, joint, draws[-1][-1])
            divergences += len(set(kernel.diagnostics()["divergences"]))
    return torch.stack(draws), divergences


def traced(joint: BayesianModel) -> LogJoint:
    """Return ``joint.log_joint`` traced to torch operations, with its gradient computed alongside.

    It is two to three times as fast as calling Pyro at every step. It is ``log_joint`` itself if the model
    cannot be traced, because it reads values back, or if the two differ at random u.
    """

    def both(u: Tensor) -> Any:
        return torch.func.grad_and_value(joint.log_joint)(u)

    generator = torch.Generator().manual_seed(0)
    points = torch.randn(5, joint.dim, generator=generator, dtype=torch.float64)
    try:
        graph = private("make_fx")(both)(points[0])
    except Exception:  # a model may fail in any way under the tracer; it is then called instead
        return joint.log_joint
    graph.graph.eliminate_dead_code()
    graph.recompile()

    def log_joint(u: Tensor) -> Tensor:
        return _WithGradient.apply(u, graph)

    for u in points:
        if not torch.allclose(log_joint(u), joint.log_joint(u), rtol=1e-9, atol=1e-9, equal_nan=True):
            return joint.log_joint
    return log_joint


class _WithGradient(torch.autograd.Function):
    """A number whose gradient was computed together with it."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, both: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
        gradient, value = both(u)
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
