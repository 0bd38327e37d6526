"""An optimizer's update as tensor operations on the optimizer's own moments."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyrovae.torch_private import Moved, private
from pyrovae.tracing.drawing import Untraceable


class Update:
    """The update of one parameter group.

    Attributes:
        places: the parameters with a gradient, each with its moments.
        width: how many input numbers a step needs.
    """

    width: int

    def __init__(
        self, optimizer: torch.optim.Optimizer, group: dict[str, Any], moving: Sequence[nn.Parameter]
    ) -> None:
        self.group = group
        names = self.names(group)
        self.places: list[tuple[nn.Parameter, list[Tensor]]] = []
        known = {id(p) for p in moving}
        for parameter in group["params"]:
            if id(parameter) in known:
                state = optimizer.state[parameter]
                if any(state.get(name) is None for name in names):
                    raise Untraceable("an optimizer that has not taken its first step")
                self.places.append((parameter, [state[name] for name in names]))

    @staticmethod
    def names(group: dict[str, Any]) -> tuple[str, ...]:
        """Return the optimizer's names for the moments of a parameter of the group, including its step counter."""
        raise NotImplementedError

    @property
    def moments(self) -> Iterator[Tensor]:
        """Yield the moments of all parameters."""
        for _, moments in self.places:
            yield from moments

    def numbers(self, ahead: int) -> list[float]:
        """Return the input numbers of the update for the step that is ``ahead`` steps ahead."""
        raise NotImplementedError

    def apply(self, gradient: Tensor, now: list[Tensor], numbers: list[Tensor]) -> list[Tensor]:
        """Return a parameter and its moments after the step."""
        raise NotImplementedError


class Adam(Update):
    """Adam and AdamW, as torch computes them. Kingma and Ba (2015); Loshchilov and Hutter (2019)."""

    width = 3

    def __init__(
        self, optimizer: torch.optim.Optimizer, group: dict[str, Any], moving: Sequence[nn.Parameter]
    ) -> None:
        super().__init__(optimizer, group, moving)
        if len({float(moments[0]) for _, moments in self.places}) > 1:
            raise Untraceable("an optimizer that has taken more steps with some parameters than with others")
        self.decoupled = group.get("decoupled_weight_decay", isinstance(optimizer, torch.optim.AdamW))

    @staticmethod
    def names(group: dict[str, Any]) -> tuple[str, ...]:
        return ("step", "exp_avg", "exp_avg_sq", *(("max_exp_avg_sq",) if group["amsgrad"] else ()))

    def numbers(self, ahead: int) -> list[float]:
        step = (float(self.places[0][1][0]) if self.places else 0.0) + ahead
        lr, (beta1, beta2) = float(self.group["lr"]), self.group["betas"]
        decay = 1 - lr * self.group["weight_decay"]
        return [lr / (1 - beta1**step), math.sqrt(1 - beta2**step), decay]

    def apply(self, gradient: Tensor, now: list[Tensor], numbers: list[Tensor]) -> list[Tensor]:
        parameter, step, mean, square, *largest = now
        step_size, correction, decay = numbers
        beta1, beta2 = self.group["betas"]
        gradient = -gradient if self.group["maximize"] else gradient
        if self.group["weight_decay"]:
            if self.decoupled:
                parameter = parameter * decay
            else:
                gradient = gradient + self.group["weight_decay"] * parameter
        mean = torch.lerp(mean, gradient, 1 - beta1)
        square = square * beta2 + (1 - beta2) * gradient * gradient
        largest = [torch.maximum(old, square) for old in largest]
        root = (largest[0] if largest else square).sqrt() / correction + self.group["eps"]
        return [parameter - step_size * (mean / root), step + 1, mean, square, *largest]


class SGD(Update):
    """Stochastic gradient descent, with momentum or without, as torch computes it."""

    width = 1

    @staticmethod
    def names(group: dict[str, Any]) -> tuple[str, ...]:
        return ("momentum_buffer",) if group["momentum"] else ()

    def numbers(self, ahead: int) -> list[float]:
        return [float(self.group["lr"])]

    def apply(self, gradient: Tensor, now: list[Tensor], numbers: list[Tensor]) -> list[Tensor]:
        parameter, *moments = now
        group = self.group
        gradient = -gradient if group["maximize"] else gradient
        if group["weight_decay"]:
            gradient = gradient + group["weight_decay"] * parameter
        if moments:
            moments = [group["momentum"] * moments[0] + (1 - group["dampening"]) * gradient]
            gradient = gradient + group["momentum"] * moments[0] if group["nesterov"] else moments[0]
        return [parameter - numbers[0] * gradient, *moments]


class Outside(Update):
    """An optimizer that steps outside the graph."""

    width = 0

    def __init__(
        self, optimizer: torch.optim.Optimizer, group: dict[str, Any], moving: Sequence[nn.Parameter]
    ) -> None:
        self.places = []

    def numbers(self, ahead: int) -> list[float]:
        return []


UPDATES: dict[type, type[Update]] = {
    torch.optim.Adam: Adam,
    torch.optim.AdamW: Adam,
    torch.optim.SGD: SGD,
}


def updates_inside(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether an optimizer's update can be part of the graph: torch's own Adam, AdamW and SGD can.

    It cannot if its step runs other code as well, or if a scheduler changes the momentum, which is a constant in the graph.
    """
    moved = any("max_momentum" in group for group in optimizer.param_groups)
    return type(optimizer) in UPDATES and steps_alone(optimizer) and not moved


def steps_alone(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether a step of an optimizer of torch runs no code but torch's: no hooks and no other ``step``."""
    hooks = [optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks]
    try:
        hooks += [private("global_pre_hooks"), private("global_post_hooks")]
    except Moved:  # nothing is known of hooks on all optimizers
        return False
    if any(hooks):
        return False
    # torch's schedulers and profilers wrap the method, too; each leaves what it wraps as __wrapped__.
    step: Any = optimizer.step
    while step is not None:
        step = getattr(step, "__func__", step)
        module = getattr(step, "__globals__", {}).get("__name__", "")
        if not module.startswith("torch.optim."):
            return False
        step = getattr(step, "__wrapped__", None)
    return True


def moments(optimizer: torch.optim.Optimizer, moving: Sequence[nn.Parameter]) -> list[Tensor] | None:
    """Return the moments that updates inside a graph continue from; None before the optimizer's first step."""
    known = {id(p) for p in moving}
    found = [
        optimizer.state.get(parameter, {}).get(name)
        for group in optimizer.param_groups
        for name in UPDATES[type(optimizer)].names(group)
        for parameter in group["params"]
        if id(parameter) in known
    ]
    return None if any(moment is None for moment in found) else found


def is_dense(tensor: Tensor) -> bool:
    """Return whether a tensor's numbers fill the memory between its first and last one, each at a place of its own.

    A transposed tensor does; a slice of columns and an expanded tensor do not.
    """
    return torch.empty_like(tensor, device="meta").stride() == tensor.stride()


def lay_out(optimizer: torch.optim.Optimizer) -> None:
    """Give gradients and moments the strides of their parameters, if these are dense.

    torch's fused updates pair numbers by their order in memory, so other strides would pair each with a wrong one.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            strides = parameter.stride()
            gradient = parameter.grad
            if gradient is not None and gradient.stride() != strides:
                parameter.grad = _as_laid_out(gradient, parameter)
            state = optimizer.state.get(parameter, {})
            for name, moment in state.items():
                if (
                    isinstance(moment, Tensor)
                    and moment.shape == parameter.shape
                    and moment.stride() != strides
                ):
                    state[name] = _as_laid_out(moment, parameter)


def _as_laid_out(tensor: Tensor, like: Tensor) -> Tensor:
    """Return a tensor's numbers in the memory layout of another."""
    laid_out = torch.empty_like(like, dtype=tensor.dtype, requires_grad=False)
    return tensor if tensor.stride() == laid_out.stride() else laid_out.copy_(tensor.detach())


def take_step(optimizer: torch.optim.Optimizer) -> None:
    """Let the optimizer step by the gradients."""
    lay_out(optimizer)
    optimizer.step()


def options(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Return the options of every parameter group that are constants in a graph: all but the learning rate."""
    return [
        {name: group[name] for name in optimizer.defaults if name != "lr"} for group in optimizer.param_groups
    ]
