"""The noise of traced steps: found in a graph, turned into inputs, and drawn as Pyro would draw it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

aten = torch.ops.aten
#: The class of torch's operations in a graph.
Operation = type(aten.normal_.default)


class Untraceable(Exception):
    """The reason, in one line, why a pair, an objective or an optimizer cannot be traced."""


# Operations that fill a tensor with noise whose distribution does not depend on tensors.
_FILLS = {
    aten.normal_.default,
    aten.uniform_.default,
    aten.bernoulli_.float,
    aten.exponential_.default,
    aten.cauchy_.default,
    aten.log_normal_.default,
    aten.geometric_.default,
}
# Operations that create such a tensor, and the fill that each equals.
_MADE = {
    aten.randn.default: aten.normal_.default,
    aten.randn_like.default: aten.normal_.default,
    aten.rand.default: aten.uniform_.default,
    aten.rand_like.default: aten.uniform_.default,
}


@dataclass(frozen=True)
class Draw:
    """One fill of a tensor with noise: ``fill(tensor, *arguments)``."""

    fill: Any
    arguments: tuple[Any, ...]
    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype


def lift_noise(module: fx.GraphModule) -> list[Draw]:
    """Turn the graph's noise into further inputs and return how each is drawn, in order."""
    graph, draws = module.graph, []
    last = [node for node in graph.nodes if node.op == "placeholder"][-1]
    for node in list(graph.nodes):
        if not _is_random(node):
            continue
        if node.target not in _FILLS and node.target not in _MADE:
            if node.all_input_nodes and "like" not in str(node.target):
                raise Untraceable(f"noise that depends on other tensors, by torch's {node.target}")
            raise Untraceable(
                f"noise that a trace cannot draw again, by torch's {node.target}; torch.randn and torch.rand can be"
            )
        fill = _MADE.get(node.target, node.target)
        meta = node.meta["tensor_meta"]
        arguments = tuple(node.args[1:]) if node.target in _FILLS else ()
        draws.append(Draw(fill, arguments, meta.shape, meta.stride, meta.dtype))
        with graph.inserting_after(last):
            last = graph.placeholder(f"noise_{len(draws)}")
        with graph.inserting_before(node):
            if node.target in _FILLS:
                drawn = graph.call_function(aten.copy_.default, (node.args[0], last))
            else:
                drawn = graph.call_function(aten.clone.default, (last,))
        node.replace_all_uses_with(drawn)
        graph.erase_node(node)
    module.recompile()
    return draws


def _is_random(node: fx.Node) -> bool:
    """Return whether a node draws noise. torch also tags attention so, which draws none if its dropout is 0."""
    if not isinstance(node.target, Operation) or torch.Tag.nondeterministic_seeded not in node.target.tags:
        return False
    for place, argument in enumerate(node.target._schema.arguments):
        if argument.name == "dropout_p":
            given = node.args[place] if place < len(node.args) else node.kwargs.get("dropout_p")
            return bool((argument.default_value if given is None else given) != 0)
    return True


class Noise:
    """The noise of a call's steps, with the values that ``noise.seeded`` would give to Pyro."""

    def __init__(self, steps: list[list[Draw]], device: torch.device) -> None:
        self._steps, self._generator = steps, torch.Generator(device)
        self._places: list[list[tuple[int, int]]] = []  # for each draw of each step: flat tensor and start
        dtypes, ends = [], []
        for draws in steps:
            places = []
            for draw in draws:
                if draw.dtype not in dtypes:
                    dtypes.append(draw.dtype)
                    ends.append(0)
                flat = dtypes.index(draw.dtype)
                places.append((flat, ends[flat]))
                ends[flat] += draw.shape.numel()
            self._places.append(places)
        #: All noise, one flat tensor for each dtype.
        self.flat = [torch.zeros(n, dtype=t, device=device) for t, n in zip(dtypes, ends, strict=True)]
        #: The same, for each draw of each step.
        self.targets = [self.views(self.flat, step) for step in range(len(steps))]

    def views(self, flat: Sequence[Any], step: int) -> list[Any]:
        """Return the draws of a step as parts of all noise, which are tensors or proxies."""
        views = []
        for draw, (number, start) in zip(self._steps[step], self._places[step], strict=True):
            part = flat[number][start : start + draw.shape.numel()]
            contiguous = torch.empty(draw.shape, device="meta").stride() == draw.stride
            views.append(part.view(draw.shape) if contiguous else part.as_strided(draw.shape, draw.stride))
        return views

    def draw(self, seeds: Sequence[int]) -> None:
        """Draw the noise of every step from its seed."""
        for draws, targets, seed in zip(self._steps, self.targets, seeds, strict=True):
            self._generator.manual_seed(seed)
            for draw, target in zip(draws, targets, strict=True):
                draw.fill(target, *draw.arguments, generator=self._generator)


class NoiseOfRows(Noise):
    """The noise of some rows of a step, with the values that one process draws for all rows of it.

    torch's generators cannot start in the middle, so all rows' noise is drawn.

    Args:
        whole: the draws of the step.
        part: the draws of the same step on the ``rows`` only.
        rows: some rows of the step.
        num_rows: of the step.
        device: of the noise.

    Raises:
        Untraceable: a draw consists of neither rows nor numbers that all rows share.
    """

    def __init__(
        self, whole: list[Draw], part: list[Draw], rows: slice, num_rows: int, device: torch.device
    ) -> None:
        super().__init__([part], device)
        self._whole, self._rows = Noise([whole], device), rows
        sizes = num_rows, rows.stop - rows.start
        if [(d.fill, d.arguments, d.dtype) for d in whole] != [(d.fill, d.arguments, d.dtype) for d in part]:
            raise Untraceable("the noise of fewer rows is drawn otherwise")
        #: The dimension of each draw that has the rows; None if all rows share the draw.
        self._dims = [_dim_of_rows(a.shape, b.shape, sizes) for a, b in zip(whole, part, strict=True)]

    def draw(self, seeds: Sequence[int]) -> None:
        """Draw the noise of the step from its seed."""
        self._whole.draw(seeds)
        for target, drawn, dim in zip(self.targets[0], self._whole.targets[0], self._dims, strict=True):
            target.copy_(drawn if dim is None else drawn.movedim(dim, 0)[self._rows].movedim(0, dim))


def _dim_of_rows(whole: torch.Size, part: torch.Size, sizes: tuple[int, int]) -> int | None:
    """Return the only dimension in which two shapes differ, by the numbers of rows; None if they are equal."""
    found = [dim for dim, each in enumerate(zip(whole, part, strict=False)) if each[0] != each[1]]
    if len(whole) != len(part) or len(found) > 1 or any((whole[d], part[d]) != sizes for d in found):
        raise Untraceable(f"noise of shape {tuple(whole)} for {sizes[0]} rows, {tuple(part)} for {sizes[1]}")
    return found[0] if found else None
