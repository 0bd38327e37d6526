"""Decides how a fit takes its steps, eager, traced or compiled, and which steps of an epoch share one call."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import accumulate

from pyrovae import tracing
from pyrovae.refusals import Refused, bad_value
from pyrovae.training.plan import Plan
from pyrovae.training.ranks import Ranks
from pyrovae.training.rows import Rows
from pyrovae.training.sharded import ParallelSteps
from pyrovae.training.step import State

# Savings measured on two cores (benchmarks/speed.py). A traced step skips Pyro's messages. A compiled step also runs
# fused operations; the more numbers it touches, the more that saves. Tracing takes a third of a second. Compiling takes
# some 8, the first time on a machine 30. Both serve one batch size, so an epoch's last batch has to pay separately.
# These rules use the arguments and no clock: ways differ in the last digits, and equal calls must give equal bits.
_TRACING_PAYS = 1_000  # steps
_COMPILING_SAVES = (0.8e-3, 0.7e-9)  # seconds a step, and as many more for each number it moves
_COMPILING_PAYS = 20.0  # seconds
# With more parameters, a step takes milliseconds and a call adds little; a graph of one step compiles sooner.
_STEPS_TOGETHER = 200_000

Sizes = tuple[int, ...]  # of the batches of the steps in a call


def choose(plan: Plan, state: State, rows: Rows, ranks: Ranks) -> tuple[Traced | ParallelSteps | None, str]:
    """Return a fit's traced calls, if they save time or are asked for, and how most steps run, in words.

    Steps on several ranks are always traced, because a rank's noise is found in the graph.

    Raises:
        ValueError: ``compile=True`` or several ranks, and the pair, the objective or the machine does not allow it.
    """
    compile, epochs = plan.compile, plan.epochs
    alone = ranks.size == 1
    if compile is False and alone:
        return None, "eager"
    several = alone and tracing.updates_inside(state.optimizer) and state.moved <= _STEPS_TOGETHER
    epoch = [call for length in rows.lengths for call in tracing.calls(length, plan.batch_size, several)]
    compiled = _worth_compiling(compile, Counter(epoch), epochs, state.moved)
    reason = tracing.why_not_compiled(rows.data["x"].device) if compiled else None
    if reason is not None:
        if compile is True:
            raise refused(tracing.Untraceable(reason))
        compiled = set()
    because = "" if reason is None else f": {reason}"
    if not alone:
        sizes = {size for call in compiled for size in call}
        try:
            sharded = ParallelSteps(state, rows, plan.batch_size, sizes, plan.kl_warmup > 0, ranks)
        except tracing.Untraceable as why:
            raise not_shared(why, ranks) from why
        return sharded, "compiled" if compiled else f"traced{because}"
    # Without compiling, several steps in one call are no faster.
    epoch = [part for call in epoch for part in ([call] if call in compiled else [(size,) for size in call])]
    ways = {
        call: call in compiled
        for call, count in Counter(epoch).items()
        if call in compiled or epochs * count >= _TRACING_PAYS
    }
    if not ways:
        return None, f"eager{because}"
    try:
        traced = Traced(state, rows, epoch, ways, plan.kl_warmup > 0)
    except tracing.Untraceable as why:
        if compile is True:
            raise refused(why) from why
        return None, f"eager: {why}"
    return traced, "compiled" if compiled else f"traced{because}"


def _worth_compiling(compile: str | bool, epoch: Counter[Sizes], epochs: int, moved: int) -> set[Sizes]:
    """Return the calls that save more time than compiling takes; with True, also the one that saves most."""
    if compile is False:
        return set()
    each, by_number = _COMPILING_SAVES
    saved = {call: epochs * count * len(call) * (each + by_number * moved) for call, count in epoch.items()}
    worth = {call for call in saved if saved[call] >= _COMPILING_PAYS}
    return worth | {max(saved, key=saved.__getitem__)} if compile is True else worth


def not_shared(why: tracing.Untraceable, ranks: Ranks) -> Refused:
    """Return the error for steps that ranks cannot share."""
    return bad_value(
        "pair",
        f"steps that {ranks.size} ranks of torch.distributed can share: traced, and sums over rows",
        str(why),
        "Build the same model on all ranks; if they do, fit in one process, before init_process_group.",
    )


def refused(why: tracing.Untraceable) -> Refused:
    """Return the error for steps that have to be compiled and cannot be."""
    return bad_value(
        "compile",
        "steps that can be traced and compiled",
        str(why),
        'Pass compile="auto", which then runs the steps eagerly.',
    )


class Traced:
    """The traced calls of a fit, each made when it is first needed.

    Args:
        state: the state that the steps change.
        rows: the rows that the steps use.
        epoch: the calls of an epoch, in order.
        ways: maps each traced call to whether it is compiled. The steps of other calls are eager.
        annealed: whether the KL weight changes.

    Raises:
        Untraceable: the step cannot be traced.
    """

    def __init__(
        self, state: State, rows: Rows, epoch: Sequence[Sizes], ways: Mapping[Sizes, bool], annealed: bool
    ) -> None:
        self._state, self._data, self._annealed, self._ways = state, rows.data, annealed, ways
        # Without compiling, torch's own fused update is faster than a traced one.
        self._inside = any(ways.values()) and tracing.updates_inside(state.optimizer)
        self._options = tracing.options(state.optimizer)
        starts = accumulate(map(len, epoch), initial=0)
        #: The sizes of the traced call that begins with a step of the epoch.
        self._sizes = {start: sizes for start, sizes in zip(starts, epoch, strict=False) if sizes in ways}
        self._graphs = {
            size: state.traced(rows.shown(size), size, annealed)
            for size in sorted({size for sizes in ways for size in sizes})
        }
        #: Of the smallest size.
        self.graph = next(iter(self._graphs.values()))
        self._calls: dict[Sizes, tracing.TracedSteps] = {}
        self._ready = False
        #: Why steps are eager at the moment; None if they need not be.
        self.reason: str | None = None
        self._held: list[int] = []

    def at(self, number: int) -> tuple[tracing.TracedSteps, int] | None:
        """Return the call that begins with a step of the epoch and its number of steps; None for an eager step."""
        # Schedulers change optimizers between epochs; nothing does within one.
        if self._inside and (number == 0 or not self._ready):
            self._ready = self._look()
        sizes = self._sizes.get(number)
        if sizes is None:
            return None
        compiled = self._ways[sizes]
        inside = compiled and self._inside
        if inside and not self._ready:
            return None
        if sizes not in self._calls:
            self._calls[sizes] = tracing.TracedSteps(
                self._graphs,
                self._state.optimizer,
                self._data,
                sizes,
                clip_norm=self._state.clip_norm,
                annealed=self._annealed,
                inside=inside,
                compiled=compiled,
            )
        return self._calls[sizes], len(sizes)

    def _look(self) -> bool:
        """Return whether updates inside a graph equal the optimizer's now; the first call creates the moments."""
        optimizer, moving = self._state.optimizer, self.graph.moving
        moments = tracing.moments(optimizer, moving)
        held = [id(moment) for moment in moments or ()]
        if held != self._held:  # the optimizer has new moments, and calls would use the old ones
            self._calls.clear()
            self._held = held
        if moments is None:
            self.reason = "the optimizer's first step is eager, because it makes the moments"
        elif tracing.options(optimizer) != self._options:
            self.reason = "options of the optimizer have changed since the trace"
        elif not tracing.steps_alone(optimizer):
            self.reason = "the optimizer's step has got hooks or been replaced since the trace"
        else:
            self.reason = None
        return self.reason is None
