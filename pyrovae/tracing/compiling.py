"""Compilation of graphs by torch's inductor."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx

from pyrovae.torch_private import Moved, private
from pyrovae.tracing.graphs import untraceable


def compile_graph(
    module: fx.GraphModule, example: list[Tensor], *, cpp_wrapper: bool = True
) -> Callable[..., Sequence[Tensor]]:
    """Return a graph compiled by inductor, for tensors like the examples.

    Args:
        module: the graph.
        example: its inputs.
        cpp_wrapper: whether C++ calls the kernels, which is quicker if there are many; Python calls one or two.

    Raises:
        Untraceable: the graph cannot be compiled, or not on this machine.
    """
    for node in module.graph.nodes:
        node.meta.clear()
    with untraceable("can't be compiled: "), _quiet(), torch.no_grad():
        inductor, prop = private("inductor"), private("FakeTensorProp")
        mode = private("FakeTensorMode")(shape_env=private("ShapeEnv")())
        fakes: list[Any] = [mode.from_tensor(tensor, static_shapes=True) for tensor in example]
        with private("tracing")(private("TracingContext")(mode)):
            prop(module, mode).propagate_dont_convert_inputs(*fakes)
            for node in module.graph.nodes:
                # As Dynamo marks tensors. Otherwise torch retraces graphs with methods instead of loading them from disk.
                node.meta["example_value"] = node.meta.get("val")
            options: dict[str, Any] = {"cpp_wrapper": cpp_wrapper}
            failed, tested = private("CppCompileError"), private("vector_instructions")
            try:
                # torch would compile and load a program for each kind of vector instructions first: 7 of 20 seconds.
                return inductor(module, fakes, options=options | {"cpp.vec_isa_ok": True})
            except failed:  # as by an old compiler, which does not know the instructions of a new processor
                tested.cache_clear()
                return inductor(module, fakes, options=options)


@contextmanager
def _quiet() -> Iterator[None]:
    """Run a block without the compiler's warnings about its own code and about missing kernels."""
    logger = logging.getLogger("torch._inductor")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def why_not_compiled(device: torch.device) -> str | None:
    """Return why graphs are not compiled for a device on this machine, or None if they are."""
    if device.type != "cpu":
        return f"compiled steps have been tested on the CPU only, not on {device.type}"
    try:
        find, missing = private("get_cpp_compiler"), private("InvalidCxxCompiler")
    except Moved as reason:
        return str(reason)
    try:
        find()
    except missing:
        return "there is no C++ compiler"
    return None
