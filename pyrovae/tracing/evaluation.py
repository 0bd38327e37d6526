"""What evaluations ask of a pair, as graphs: traced once for each shape of tiles, and compiled where that pays."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pyrovae import checks, noise
from pyrovae.model import LatentVariableModel
from pyrovae.pair import RowModel
from pyrovae.precision import products
from pyrovae.row_noise import RowNoise
from pyrovae.tracing.compiling import compile_graph, why_not_compiled
from pyrovae.tracing.drawing import Noise, Untraceable
from pyrovae.tracing.graphs import Graph, trace, untraceable
from pyrovae.tracing.rewriting import rewrite

_KEPT = 8  # graphs of a pair
# Tracing takes up to a second and saves 5 ns a number of the widest layer; compiling takes some 10 and saves 2 to 5 more
# (benchmarks/speed.py evaluate). The rule reads shapes and no clock: a compiled graph shows in the last digits.
_TRACING_PAYS = 1 << 28
_COMPILING_PAYS = 1 << 31


Function = Callable[..., Sequence[Tensor]]


def tile_terms(model: RowModel, names: Sequence[str], num_samples: int) -> Function:
    """log P(x | z), log P(z) and log Q(z | x) of draws z ~ Q(z | x), (samples, rows) each.

    They are a function of columns and of the two tensors of a ``RowNoise``.
    """

    def terms(*inputs: Tensor) -> Sequence[Tensor]:
        *columns, keys, first = inputs
        batch = dict(zip(names, columns, strict=True))
        _, joint, log_q = model.weigh(batch, num_samples, RowNoise.of(keys, first))
        return joint.likelihood, joint.prior, log_q

    return terms


class Graphs(dict[Hashable, "_Traced"]):
    """The last graphs of a pair. A copy of the pair has its own, and files have none."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Graphs:
        return Graphs()

    def __reduce__(self) -> tuple[type[Graphs], tuple[()]]:
        return Graphs, ()

    def keep(self, key: Hashable, make: Callable[[], _Traced]) -> _Traced:
        """What was kept under a key, or what ``make`` makes."""
        graph = self.pop(key, None) or make()
        while len(self) >= _KEPT:
            del self[next(iter(self))]
        self[key] = graph
        return graph


@dataclass(frozen=True)
class Call:
    """A function of a pair, to be computed.

    Attributes:
        name: of the function; it stands for everything that it depends on beside the pair and its inputs.
        function: of tensors, whose noise, where it has any, is drawn from ``seed``.
        inputs: tensors with rows on dim 0 of the first.
        numbers: how many it computes in the widest layer, over all calls with such inputs.
        required: whether to compile, however few they are, where the evaluation is asked to.
        seed: of the noise that is not keyed by rows; None where there is none.
        again: where it is another than before, the graph is tried out anew.
    """

    name: Hashable
    function: Function
    inputs: Sequence[Tensor]
    numbers: int
    required: bool = False
    seed: int | None = None
    again: object = None

    def by_pyro(self, pair: LatentVariableModel) -> Sequence[Tensor]:
        """What the function returns, computed as it stands."""
        drawing = nullcontext() if self.seed is None else noise.seeded(self.seed, self.inputs[0].device)
        with pair.evaluating(), drawing:
            return self.function(*self.inputs)


class Runner:
    """Computes functions of a pair for one evaluation, by graphs where that pays.

    A graph is kept with the pair, for later evaluations with tensors of the same shapes. Parameters and buffers
    are its inputs, so that it follows their values; where others have taken their place, or modules have changed,
    it is made anew. What Python alone knows can't be seen so: the first time that an evaluation uses a graph, the
    function is therefore run both ways.

    Args:
        model: the model and guide, and what inspection found.
        compile: True or "auto".
        main: (rows, samples) of the evaluation's largest tiles: those that are compiled even where it does not pay,
            where ``compile`` is True.
    """

    def __init__(self, model: RowModel, compile: str | bool, main: tuple[int, int]) -> None:
        self.compile, self.main = compile, main
        self._model, self._pair = model, model.pair
        self._ready: dict[Hashable, _Traced | None] = {}
        self._tried: dict[Hashable, object] = {}
        self._made: set[Hashable] = set()
        self._seen = _surroundings(model)
        #: Why a graph that would have paid was not traced or not compiled; None where none was missed.
        self.reason: str | None = None

    def run(self, call: Call) -> Sequence[Tensor]:
        """What a function returns; from a compiled graph up to rounding, from one that is not compiled bit by bit.

        Raises:
            ValueError: required to be compiled, and impossible.
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
                    raise checks.bad_value(
                        "compile",
                        "a pair that can be traced, and compiled on this machine",
                        self.reason,
                        'Pass compile="auto", which does without then.',
                    ) from why
                self._ready[key] = None
            self._tried[key] = call.again
        graph = self._ready[key]
        return call.by_pyro(self._pair) if graph is None else graph(call)

    def renew(self, others: bool = False) -> None:
        """Try graphs anew that were seen to be right, where the pair has got other tensors or modules since.

        Also where code of ``others`` has run, which may have changed what Python alone knows.
        """
        now = _surroundings(self._model)
        if others or now != self._seen:
            self._ready.clear()
            self._seen = now

    def _prepared(self, key: tuple[Hashable, ...], call: Call, compiled: bool, required: bool) -> _Traced:
        """The graph, once it was seen to do what the function does."""
        unable = why_not_compiled(call.inputs[0].device) if compiled else None
        if unable is not None:
            if required:
                raise Untraceable(unable)
            self.reason, compiled = unable, False
        graphs = vars(self._pair).get("graphs")
        if not isinstance(graphs, Graphs):
            graphs = vars(self._pair)["graphs"] = Graphs()
        key = (*key, compiled, _surroundings(self._model))

        def make() -> _Traced:
            self._made.add(key)
            return _Traced(self._pair, call, compiled)

        expected = call.by_pyro(self._pair)
        while True:
            graph = graphs.keep(key, make)
            if _alike(
                graph(call), expected, (self._pair.dtype or call.inputs[0].dtype) if compiled else None
            ):
                return graph
            del graphs[key]
            if key in self._made:
                raise Untraceable("with other rows and noise it does other things than the trace says")
            # It is of an earlier call, when Python knew other things.


class _Traced:
    """A function of tensors as a graph, for tensors of one shape."""

    def __init__(self, pair: LatentVariableModel, call: Call, compiled: bool) -> None:
        self.compiled = compiled
        device = call.inputs[0].device
        # Traced with other rows, where there are others, than those it is tried with afterwards.
        with untraceable(), pair.evaluating(), noise.seeded(0, device):
            self._graph: Graph = trace(call.function, [tensor.roll(1, 0) for tensor in call.inputs])
        if self._graph.changed:
            raise Untraceable("it changes a tensor while it is evaluated")
        if self._graph.draws and call.seed is None:
            raise Untraceable("it draws noise where latents are given")
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
    """Whether numbers are the same; where they are rounded in a dtype, 99 % of them up to that.

    At the kink of a layer two roundings may fall on either side; what a trace does not know moves all numbers.
    """
    tolerance, share = (0.0, 1.0) if rounded is None else (math.sqrt(torch.finfo(rounded).eps), 0.99)
    return all(
        float(torch.isclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True).double().mean()) >= share
        for a, b in zip(came, expected, strict=True)
    )


def _like(tensor: Tensor) -> tuple[Hashable, ...]:
    return tensor.dtype, tensor.device, tuple(tensor.shape), tensor.stride()


def _surroundings(model: RowModel) -> Hashable:
    """What a graph of the pair depends on beside its inputs: which tensors it reads, and what is done with them."""
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
