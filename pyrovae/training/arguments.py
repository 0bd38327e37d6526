"""Checks of ``fit``'s arguments: objectives that are still bounds after scaling, optimizers, schedules."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from pyro.infer import (
    ELBO,
    JitTrace_ELBO,
    JitTraceEnum_ELBO,
    JitTraceGraph_ELBO,
    JitTraceMeanField_ELBO,
    RenyiELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    TraceTailAdaptive_ELBO,
)
from pyro.optim import PyroOptim
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, MultiplicativeLR, ReduceLROnPlateau

from pyrovae.arrays import FLOATS
from pyrovae.pair import Structure
from pyrovae.refusals import bad_type, bad_value
from pyrovae.tracing import is_dense

# These objectives are sums over rows and sites. Scaling a minibatch by N/B then gives an unbiased estimate
# for the whole data set, and a KL weight below one gives the annealed bound.
_SUMS = (Trace_ELBO, TraceMeanField_ELBO, TraceGraph_ELBO, TraceEnum_ELBO)
# These trace the first call with torch.jit, which freezes N/B of the smaller last batch and the KL weight.
_FROZEN = (JitTrace_ELBO, JitTraceMeanField_ELBO, JitTraceGraph_ELBO, JitTraceEnum_ELBO)

# These can update in one fused operation, but do so only if asked and if no other of these options is set.
_FUSED = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)
_FUSED_OR = {"fused", "foreach", "differentiable", "capturable"}


def make_objective(loss: ELBO | None, num_particles: int, minibatches: bool, annealed: bool) -> ELBO:
    """Return the loss to minimise; raises ``ValueError`` if it would be no bound after scaling."""
    if loss is None:
        return Trace_ELBO(num_particles=num_particles)
    if not isinstance(loss, ELBO):
        raise bad_type(
            "loss",
            "a pyro.infer.ELBO",
            repr(loss),
            "Pass an instance, such as pyro.infer.TraceMeanField_ELBO().",
        )
    name = type(loss).__name__
    if num_particles != 1:
        raise bad_value(
            "num_particles",
            "1 if loss is given",
            str(num_particles),
            f"Pass it to the loss: {name}(num_particles={num_particles}).",
        )
    if isinstance(loss, _FROZEN):
        raise bad_value(
            "loss",
            "an objective that reads its scale at every step",
            f"{name}, which freezes N/B and the KL weight of its first call",
            f"Pass {name.removeprefix('Jit')}.",
        )
    if isinstance(loss, _SUMS) and not isinstance(loss, TraceTailAdaptive_ELBO):
        return loss
    if not isinstance(loss, RenyiELBO):
        raise bad_value(
            "loss",
            "Trace_ELBO, TraceMeanField_ELBO, TraceGraph_ELBO or TraceEnum_ELBO, or RenyiELBO on all rows at once",
            f"{name}, which is no bound on log P(x) in nats once it is scaled",
            "Pass one of those.",
        )
    for wanted, what, fix in (
        (minibatches, "minibatches or ranks (N/B)", "batch_size=len(x) in one process"),
        (annealed, "a KL weight", "kl_warmup=0"),
    ):
        if wanted:
            raise bad_value(
                "loss",
                f"a sum over rows, because {what} scale its terms",
                f"{name}, which puts the scale inside a logarithm and then is no bound",
                f"Use Trace_ELBO or TraceMeanField_ELBO, or fit with {fix}.",
            )
    return loss


def is_sum_over_sites(objective: ELBO) -> bool:
    """Return whether an objective is known to be rate minus reconstruction, which a step can tell apart.

    A subclass of the user's own may change the sum.
    """
    return type(objective) in _SUMS


def check_objective_fits(objective: ELBO, structure: Structure) -> None:
    """Raise ``ValueError`` if the objective does not fit the pair's plates or its ability to be vectorised."""
    name = type(objective).__name__
    if isinstance(objective, RenyiELBO) and len(structure.plates) > 1:
        raise bad_value(
            "loss",
            f"one plate over the rows, because {name} takes a logarithm in every plate",
            f"{len(structure.plates)}: {sorted(structure.plates)}",
            "Put z and x into one plate, or use Trace_ELBO.",
        )
    vectorised = objective.vectorize_particles and objective.num_particles > 1
    refusing = [part for part, able in structure.vectorised.items() if not able]
    if vectorised and refusing:
        raise bad_value(
            "loss",
            "vectorize_particles=False, because the pair cannot be called with additional left dims",
            f"vectorize_particles=True and a {refusing[0]} that cannot",
            f"Pass {name}(num_particles={objective.num_particles}).",
        )


def _check_parameters(parameters: list[nn.Parameter]) -> None:
    """Raise ``ValueError`` if there are no parameters, or two entries of one share memory."""
    if not parameters:
        raise bad_value(
            "pair",
            "parameters to fit",
            "none",
            "Declare them with pyro.param or pyro.module, or write the pair as modules.",
        )
    overlapping = [
        p for p in parameters if any(n > 1 and step == 0 for n, step in zip(p.shape, p.stride(), strict=True))
    ]
    if overlapping:
        raise bad_value(
            "pair",
            "parameters whose numbers have memory of their own",
            f"one of shape {tuple(overlapping[0].shape)} and strides {overlapping[0].stride()}, as expand makes",
            "Clone it: nn.Parameter(tensor.expand(…).clone()).",
        )


def make_optimizer(
    factory: Callable[..., torch.optim.Optimizer], parameters: list[nn.Parameter], lr: float
) -> torch.optim.Optimizer:
    """Return the optimizer that ``factory`` makes; raises an error if that is not one of torch's."""
    _check_parameters(parameters)
    example = "torch.optim.Adam or functools.partial(torch.optim.Adam, eps=1e-4)"
    if isinstance(factory, functools.partial) and "lr" in factory.keywords:
        raise bad_value(
            "optimizer",
            "lr to be passed once, to fit",
            f"lr={factory.keywords['lr']} in the partial",
            "Pass fit(lr=…).",
        )
    # Pyro's optimizers are callable, too, but take parameter names and step when called.
    made: Any = None
    if callable(factory) and not isinstance(factory, PyroOptim):
        try:
            made = factory(parameters, lr=lr, **_fused(factory, parameters))
        except TypeError as error:
            raise bad_type(
                "optimizer",
                "a callable of (parameters, lr=…)",
                f"TypeError from it: {error}",
                f"Pass {example}.",
            ) from error
    if not isinstance(made, torch.optim.Optimizer):
        raise bad_type(
            "optimizer", "a torch optimizer's class or a partial of it", repr(factory), f"Pass {example}."
        )
    unfit = {
        torch.optim.LBFGS: "LBFGS, which evaluates the loss many times a step and needs the same noise each time",
        torch.optim.SparseAdam: "SparseAdam, which takes sparse gradients only",
    }
    for kind, came in unfit.items():
        if isinstance(made, kind):
            wanted = "an optimizer that takes a step from one dense gradient"
            raise bad_type("optimizer", wanted, came, f"Pass {example}.")
    _check_fused(made)
    return made


def _check_fused(made: torch.optim.Optimizer) -> None:
    """Raise ``ValueError`` if fused updates of an optimizer would not step its parameters as plain ones do."""
    fused = [p for group in made.param_groups if group.get("fused") for p in group["params"]]
    parts = [p for p in fused if not is_dense(p)]
    if parts:
        raise bad_value(
            "optimizer",
            "fused=False, because a parameter is a part of a larger tensor, and torch's fused updates change the rest",
            f"fused=True and a parameter of shape {tuple(parts[0].shape)} and strides {parts[0].stride()}",
            "Leave fused out, or clone the parameter: nn.Parameter(part.clone()).",
        )
    short = [p.dtype for p in fused if isinstance(made, torch.optim.SGD) and p.dtype not in FLOATS]
    if short:
        raise bad_value(
            "optimizer",
            "fused=False, because torch's fused SGD may leave parameters of fewer bits than float32 as they are",
            f"fused=True and a parameter in {short[0]}",
            "Leave fused out.",
        )


def _fused(factory: Callable[..., torch.optim.Optimizer], parameters: list[nn.Parameter]) -> dict[str, bool]:
    """Return the option for a fused update if torch offers it and the user chose no other option.

    torch's fused updates read memory from its first number to its last, so parameters have to be dense. On the CPU, its
    fused SGD leaves tensors of 16 or more numbers in bfloat16 and float16 as they are.
    """
    chosen = factory.keywords if isinstance(factory, functools.partial) else {}
    made = factory.func if isinstance(factory, functools.partial) else factory
    able = made in _FUSED and all(p.dtype in FLOATS and is_dense(p) for p in parameters)
    return {"fused": True} if able and not _FUSED_OR & chosen.keys() else {}


def make_scheduler(
    factory: Callable[[torch.optim.Optimizer], LRScheduler | ReduceLROnPlateau] | None,
    optimiser: torch.optim.Optimizer,
) -> LRScheduler | ReduceLROnPlateau | None:
    """Return the scheduler that ``factory`` makes, or None without a factory."""
    if factory is None:
        return None
    example = "Pass functools.partial(torch.optim.lr_scheduler.StepLR, step_size=10), say."
    try:
        made: Any = factory(optimiser) if callable(factory) else None
    except TypeError as error:
        raise bad_type(
            "scheduler", "a callable of the optimizer alone", f"TypeError from it: {error}", example
        ) from error
    if not isinstance(made, LRScheduler | ReduceLROnPlateau):
        raise bad_type(
            "scheduler",
            "a callable that takes the optimizer and returns a torch scheduler",
            repr(factory),
            example,
        )
    return made


def runs_code_of_others(schedule: LRScheduler | ReduceLROnPlateau | None) -> bool:
    """Return whether a scheduler is not torch's own or contains functions of the user."""
    parts = getattr(schedule, "_schedulers", [schedule])
    return schedule is not None and any(
        type(part).__module__ != LRScheduler.__module__
        or isinstance(part, LambdaLR | MultiplicativeLR)
        or getattr(part, "_scale_fn_custom", None) is not None
        for part in parts
    )
