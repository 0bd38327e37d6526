"""Functions of a pair that evaluations compute, as graphs: traced once for each tile shape, compiled if that pays."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Hashable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyrovae import noise
from pyrovae.model import LatentVariableModel
from pyrovae.pair import RowModel
from pyrovae.precision import products
from pyrovae.refusals import bad_value
from pyrovae.row_noise import RowNoise
from pyrovae.tracing.compiling import compile_graph, why_not_compiled
from pyrovae.tracing.drawing import Noise, Untraceable
from pyrovae.tracing.graphs import Graph, only_torch_draws, trace, untraceable
from pyrovae.tracing.rewriting import rewrite

_KEPT = 8  # graphs for each pair
# Tracing takes up to a second and saves 5 ns a number of the widest layer. Compiling takes some 10 s and saves 2 to 5 ns
# more (benchmarks/speed.py evaluate). The rule uses shapes and no clock, because compiling changes the last digits.
_TRACING_PAYS = 1 << 28
_COMPILING_PAYS = 1 << 31
_DIFFERS = "with other rows and noise it does not compute what the trace computes"

Function = Callable[..., Sequence[Tensor]]


def tile_terms(model: RowModel, names: Sequence[str], num_samples: int) -> Function:
    """Return log P(x | z), log P(z) and log Q(z | x) of z ~ Q(z | x), (samples, rows) each.

    They are a function of columns and of the two tensors of a ``RowNoise``.
    """

    def terms(*inputs: Tensor) -> Sequence[Tensor]:
        *columns, keys, first = inputs
        batch = dict(zip(names, columns, strict=True))
        _, joint, log_q = model.weigh(batch, num_samples, RowNoise.of(keys, first))
        return joint.likelihood, joint.prior, log_q

    return terms


# The last graphs of every pair, apart from the pair, so that copies and files of the pair have none.
_GRAPHS: weakref.WeakKeyDictionary[LatentVariableModel, dict[Hashable, _Traced]] = weakref.WeakKeyDictionary()


def _kept(pair: LatentVariableModel, key: Hashable, make: Callable[[], _Traced]) -> _Traced:
    """Return the pair's graph under a key, or the one that ``make`` makes; forget the one unused for longest."""
    graphs = _GRAPHS.setdefault(pair, {})
    graph = graphs.pop(key, None) or make()
    while len(graphs) >= _KEPT:
        del graphs[next(iter(graphs))]
    graphs[key] = graph
    return graph


@dataclass(frozen=True)
class Call:
    """A function of a pair, with its inputs.

    Attributes:
        name: of the function. It identifies everything that the function depends on, apart from the pair and its inputs.
        function: a function of tensors. Its noise, if any, is drawn from ``seed``.
        inputs: tensors; the first has rows on dim 0.
        numbers: how many numbers it computes in the widest layer, over all calls with inputs of these shapes.
        required: whether ``compile=True`` compiles it even if that does not pay.
        seed: of noise that is not keyed by rows; None if there is none.
        again: if this differs from the last call's, the graph is compared with the function again.
    """

    name: Hashable
    function: Function
    inputs: Sequence[Tensor]
    numbers: int
    required: bool = False
    seed: int | None = None
    again: object = None

    def by_pyro(self, pair: LatentVariableModel) -> Sequence[Tensor]:
        """Return what the function returns, computed without a graph."""
        drawing = nullcontext() if self.seed is None else noise.seeded(self.seed, self.inputs[0].device)
        with pair.evaluating(), drawing:
            return self.function(*self.inputs)


class Runner:
    """Computes functions of a pair for one evaluation, by graphs if that pays.

    A graph is kept with the pair for later evaluations with tensors of the same shapes. Parameters and buffers are
    its inputs, so it uses their present values. If tensors are replaced or modules change, a new graph is traced.
    Changed Python values cannot be detected this way. Each evaluation therefore runs the function both ways when
    it first uses a graph, and compares.

    Args:
        model: the model and guide, and what inspection found.
        compile: True or "auto".
        main: (rows, samples) of the evaluation's largest tiles. With ``compile`` True, these are compiled even if
            that does not pay.
    """

    def __init__(self, model: RowModel, compile: str | bool, main: tuple[int, int]) -> None:
        self.compile, self.main = compile, main
        self._model, self._pair = model, model.pair
        self._ready: dict[Hashable, _Traced | None] = {}
        self._tried: dict[Hashable, object] = {}
        self._made: set[Hashable] = set()
        self._outdated: set[Hashable] = set()  # calls whose graphs Python values have outdated before
        self._seen = _surroundings(model)
        #: Why a graph that would have paid was not traced or compiled; None if all were.
        self.reason: str | None = None

    def run(self, call: Call) -> Sequence[Tensor]:
        """Return what a function returns: up to rounding if its graph is compiled, else bit for bit.

        Raises:
            ValueError: compiling is required and impossible.
        """
        required = call.required and self.compile is True
        compiled = required or call.numbers >= _COMPILING_PAYS
        if not compiled and call.numbers < _TRACING_PAYS:
            return call.by_pyro(self._pair)
        call = replace(call, inputs=[tensor.contiguous() for tensor in call.inputs])
        key = (call.name, *map(_like, call.inputs), torch.get_num_threads(), compiled)
        if key not in self._ready or (self._ready[key] is not None and self._tried[key] is not call.again):
            try:
                self._ready[key] = self._prepared(key, call, compiled, required)
            except Untraceable as why:
                self.reason = str(why)
                if required:
                    raise bad_value(
                        "compile",
                        "a pair that can be traced, and compiled on this machine",
                        self.reason,
                        'Pass compile="auto", which then evaluates without compiling.',
                    ) from why
                self._ready[key] = None
            self._tried[key] = call.again
        graph = self._ready[key]
        return call.by_pyro(self._pair) if graph is None else graph(call)

    def renew(self, others: bool = False) -> None:
        """Compare graphs with their functions again if the pair's tensors or modules have been replaced.

        Also if ``others`` says that user code has run, which may have changed Python values. A call whose graph they have
        outdated once is computed by Pyro from then on, because another graph may be outdated as soon.
        """
        now = _surroundings(self._model)
        if others or now != self._seen:
            self._ready.clear()
            self._seen = now

    def _prepared(self, key: tuple[Hashable, ...], call: Call, compiled: bool, required: bool) -> _Traced:
        """Return the graph, after checking that it computes what the function computes."""
        if key in self._outdated:
            raise Untraceable(_DIFFERS)
        unable = why_not_compiled(call.inputs[0].device) if compiled else None
        if unable is not None:
            if required:
                raise Untraceable(unable)
            self.reason, compiled = unable, False
        without, key = key, (*key, compiled, _surroundings(self._model))

        def make() -> _Traced:
            self._made.add(key)
            return _Traced(self._pair, call, compiled)

        with only_torch_draws():
            expected = call.by_pyro(self._pair)
        while True:
            graph = _kept(self._pair, key, make)
            if _alike(
                graph(call), expected, (self._pair.coarsest or call.inputs[0].dtype) if compiled else None
            ):
                return graph
            del _GRAPHS[self._pair][key]
            if key in self._made:
                self._outdated.add(without)
                raise Untraceable(_DIFFERS)
            # The graph is of an earlier call, before Python values changed.


class _Traced:
    """A function of tensors as a graph, for tensors of fixed shapes."""

    def __init__(self, pair: LatentVariableModel, call: Call, compiled: bool) -> None:
        self.compiled = compiled
        device = call.inputs[0].device
        # Traced on rolled rows, so that the comparison afterwards uses other rows, if there are several.
        with untraceable(), pair.evaluating(), noise.seeded(0, device):
            self._graph: Graph = trace(call.function, [tensor.roll(1, 0) for tensor in call.inputs])
        if self._graph.changed:
            raise Untraceable("it changes a tensor while it is evaluated")
        if self._graph.draws and call.seed is None:
            raise Untraceable("it draws noise although latents are given")
        self._noise = Noise([self._graph.draws], device)
        self._drawn = self._noise.views(self._noise.flat, 0)
        self._call: Function = self._graph.module
        if compiled:
            rewrite(self._graph.module)
            with products("highest"):
                self._call = compile_graph(self._graph.module, self._everything(call))

    def __call__(self, call: Call) -> Sequence[Tensor]:
        if call.seed is not None:
            self._noise.draw([call.seed])
        with torch.no_grad(), products("highest"):
            return self._call(*self._everything(call))

    def _everything(self, call: Call) -> list[Tensor]:
        return [*call.inputs, *(tensor.detach() for tensor in self._graph.tensors), *self._drawn]


def _alike(came: Sequence[Tensor], expected: Sequence[Tensor], rounded: torch.dtype | None) -> bool:
    """Return whether numbers are equal; with a dtype, whether 99 % are equal up to its rounding.

    At the kink of a layer, rounding may choose either side. A value missing from a trace moves all numbers.
    """
    tolerance, share = (0.0, 1.0) if rounded is None else (math.sqrt(torch.finfo(rounded).eps), 0.99)
    return all(
        float(torch.isclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True).double().mean()) >= share
        for a, b in zip(came, expected, strict=True)
    )


def _like(tensor: Tensor) -> tuple[Hashable, ...]:
    return tensor.dtype, tensor.device, tuple(tensor.shape), tensor.stride()


def _surroundings(model: RowModel) -> Hashable:
    """Return what a graph depends on apart from its inputs: the tensors it reads, and structure and modules of the pair."""
    pair, structure = model.pair, model.structure
    tensors = [
        (id(tensor), *_like(tensor))
        for module in pair.every_module()
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False))
    ]
    structured = (
        structure.latents,
        structure.observed,
        structure.nesting,
        *(tuple(sorted(d.items())) for d in (structure.data_dim, structure.batch_dims, structure.vectorised)),
    )
    return tuple(tensors), structured, tuple(pair.described())
