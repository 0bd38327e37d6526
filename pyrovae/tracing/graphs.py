"""A function of tensors as a graph of tensor operations that has everything it reads as input."""

from __future__ import annotations

import math
import pickle
import random
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import numpy as np
import pyro.util
import torch
from torch import Tensor, fx
from torch.distributions import Distribution, constraints
from torch.overrides import TorchFunctionMode

from pyrovae.torch_private import Moved, private
from pyrovae.tracing.drawing import Draw, Operation, Untraceable, lift_noise

aten = torch.ops.aten


@dataclass(frozen=True)
class Graph:
    """A traced function.

    Attributes:
        module: called with the function's inputs, ``tensors``, and noise.
        tensors: other tensors that the function reads: parameters, buffers, constants.
        changed: those of ``tensors`` that the function changes.
        draws: its noise, in the order of drawing.
    """

    module: fx.GraphModule
    tensors: list[Tensor]
    changed: list[Tensor]
    draws: list[Draw]


def trace(function: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor]) -> Graph:
    """Return the operations of ``function(*inputs)``, recorded in one run.

    If Pyro would reject the parameters of a distribution, the first result is NaN.

    Raises:
        Untraceable: noise depends on tensors, sizes depend on values, or Python reads a tensor's value.
    """

    def watched(*given: Tensor) -> Sequence[Tensor]:
        with NothingRead() as mode:
            first, *others = function(*given)
            if mode.valid:
                first = torch.where(torch.stack(mode.valid).all(), first, math.nan)
            return [first, *others]

    module = _recorded(watched, inputs)
    tensors = _lift_tensors(module)
    _refuse_sizes_by_value(module)
    return Graph(module, tensors, _changed(module, tensors), lift_noise(module))


def _recorded(function: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor]) -> fx.GraphModule:
    """Return the operations as torch records them."""
    try:
        make_fx, tracing = private("make_fx"), private("tracing")
        # Without a mode in the context, make_fx makes one for every value: a third of the time.
        context = private("TracingContext")(private("FakeTensorMode")(allow_fallback_kernels=True))
    except Moved as reason:
        raise Untraceable(str(reason)) from reason
    with tracing(context):
        return make_fx(function)(*inputs)


def agree(came: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float) -> bool:
    """Return whether numbers are equal up to rounding."""
    return len(came) == len(expected) and all(
        torch.allclose(a, b, rtol=tolerance, atol=tolerance * _size(b), equal_nan=True)
        for a, b in zip(came, expected, strict=True)
    )


def _size(tensor: Tensor) -> float:
    """Return the largest absolute value among the finite numbers."""
    return float(tensor.nan_to_num(0.0, 0.0, 0.0).abs().max())


# The graph computes whether parameters are valid. Rows were checked before, and losses are checked afterwards.
_ANSWERS = {
    Distribution.__init__.__code__: True,
    Distribution._validate_sample.__code__: True,
    pyro.util.warn_if_nan.__code__: False,
    pyro.util.warn_if_inf.__code__: False,
}
_READS = {
    getattr(torch.Tensor, name)
    for name in ("__bool__", "__float__", "__int__", "__index__", "__array__", "numpy", "tolist")
}


class NothingRead(TorchFunctionMode):
    """Forbids turning a tensor into a Python number, because the first call's number would stay in the graph.

    Attributes:
        valid: for each distribution's parameter, a tensor that says whether it is on its support.
    """

    def __init__(self) -> None:
        super().__init__()
        self.valid: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.item:  # Pyro turns losses into numbers this way, only to add them up
            return args[0].detach()
        if getattr(func, "__name__", "") == "_is_all_true":  # inductor has no kernel for this
            return args[0].all()
        if func in _READS or func is torch.Tensor.register_hook:
            frame = _caller()
            if frame.f_globals.get("__name__") == "torch.distributions.constraints":
                return True
            if func in _READS and frame.f_code is Distribution.__init__.__code__:
                # NaN or infinite parameters show in the loss, so "is real" need not be recorded.
                if not _is_real(frame.f_locals["constraint"]):
                    self.valid.append(args[0])
                return True
            if frame.f_code in _ANSWERS:
                return _ANSWERS[frame.f_code] if func in _READS else None
            if func in _READS:
                raise Untraceable(_reads(frame, frame.f_lineno))
        return func(*args, **(kwargs or {}))


def _is_real(constraint: Any) -> bool:
    return constraint is constraints.real or getattr(constraint, "base_constraint", None) is constraints.real


def _caller() -> FrameType:
    """Return the frame that called the function a mode sees, without torch's own wrappers."""
    frame: Any = sys._getframe(2)
    while frame.f_globals.get("__name__") in ("torch.overrides", "torch._tensor"):
        frame = frame.f_back
    return frame


def _lift_tensors(module: fx.GraphModule) -> list[Tensor]:
    """Turn other tensors that the graph reads into further inputs, and return these tensors, each once."""
    graph = module.graph
    graph.set_codegen(fx.graph.CodeGen())
    for node in graph.nodes:  # only the legit operation declares that it changes running statistics
        if node.target is aten.native_batch_norm.default and node.args[3] is not None and node.args[5]:
            node.target = aten._native_batch_norm_legit.default
    graph.eliminate_dead_code()
    last = [node for node in graph.nodes if node.op == "placeholder"][-1]
    inputs: dict[int, fx.Node] = {}
    tensors: list[Tensor] = []
    for node in list(graph.nodes):
        if node.op == "get_attr":
            tensor = getattr(module, node.target)
            if id(tensor) not in inputs:
                with graph.inserting_after(last):
                    last = inputs[id(tensor)] = graph.placeholder(f"tensor_{len(tensors)}")
                last.meta = {"tensor_meta": tensor} | node.meta
                tensors.append(tensor)
            node.replace_all_uses_with(inputs[id(tensor)])
            graph.erase_node(node)
    module.recompile()
    return tensors


def _refuse_sizes_by_value(module: fx.GraphModule) -> None:
    """Raise ``Untraceable`` if a result's size depends on values, such as the rows that a mask selects."""
    for node in module.graph.nodes:
        if isinstance(node.target, Operation) and torch.Tag.dynamic_output_shape in node.target.tags:
            # Indexing has this tag because of masks only.
            indices = (
                [i for i in node.args[1] if i is not None] if node.target is aten.index.Tensor else [None]
            )
            if any(i is None or i.meta["tensor_meta"].dtype == torch.bool for i in indices):
                raise Untraceable(f"the size of a tensor depends on values, by torch's {node.target}")


def _changed(module: fx.GraphModule, tensors: list[Tensor]) -> list[Tensor]:
    """Return the lifted tensors that an operation of the graph changes in place."""
    inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
    tensor_of = dict(zip(inputs[len(inputs) - len(tensors) :], tensors, strict=True))
    changed = {}
    for node in module.graph.nodes:
        for argument, value in _arguments(node):
            if argument.alias_info is not None and argument.alias_info.is_write:
                while value not in tensor_of and _is_view(value):
                    value = value.args[0]
                if value in tensor_of:
                    changed[id(tensor_of[value])] = tensor_of[value]
    return list(changed.values())


def _arguments(node: fx.Node) -> Iterator[tuple[Any, Any]]:
    """Yield the declared arguments of an operation with the values passed, positional ones first."""
    if isinstance(node.target, Operation):
        declared = node.target._schema.arguments
        yield from zip(declared, node.args, strict=False)
        yield from (
            (argument, node.kwargs[argument.name]) for argument in declared if argument.name in node.kwargs
        )


def _is_view(value: Any) -> bool:
    """Return whether a value shares memory with the first argument of the operation that made it."""
    return isinstance(value, fx.Node) and any(
        a.alias_info is not None for a, v in list(_arguments(value))[:1]
    )


@contextmanager
def only_torch_draws() -> Iterator[None]:
    """Run a block that may draw random numbers from torch only, and restore the generators of Python and NumPy.

    They belong to the process: another thread that draws from them meanwhile counts as the block.

    Raises:
        Untraceable: it drew from one of these. The number would be a constant of the graph.
    """

    def of_numpy() -> Any:
        return np.random.get_state(legacy=False)  # noqa: NPY002  # the generator that user code may draw from

    python, numpy, moved = random.getstate(), of_numpy(), []
    try:
        yield
    finally:
        if random.getstate() != python:
            moved.append("random")
            random.setstate(python)
        if pickle.dumps(of_numpy()) != pickle.dumps(numpy):
            moved.append("numpy.random")
            np.random.set_state(numpy)  # noqa: NPY002
    if moved:
        raise Untraceable(
            f"it, or another thread, draws random numbers from {moved[0]}, which would be constants; draw them from torch"
        )


@contextmanager
def untraceable(what: str = "") -> Iterator[None]:
    """Convert any error of a block into ``Untraceable``, with ``what`` before its reason."""
    try:
        yield
    except Untraceable:
        raise
    except Exception as error:
        raise Untraceable(f"{what}{_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """Return the reason in one line: the error's class and first line, or the code that reads a tensor's value."""
    text = str(error).strip().splitlines()
    if text and "_local_scalar_dense" in text[0]:  # inside torch's own code, which modes do not see
        if torch.is_anomaly_enabled() and torch.is_anomaly_check_nan_enabled():
            return "anomaly mode of torch.autograd reads every gradient"
        for frame, line in reversed([*traceback.walk_tb(error.__traceback__)]):
            if not frame.f_globals.get("__name__", "").startswith(("torch", "pyro.", "pyrovae.")):
                return _reads(frame, line)
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def _reads(frame: FrameType, line: int) -> str:
    return f"{frame.f_code.co_name} ({frame.f_code.co_filename}, line {line}) reads a tensor's value"
