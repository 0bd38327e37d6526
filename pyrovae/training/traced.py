"""How a fit takes its steps: Pyro anew at each, or traced once, or traced and compiled; and which of an epoch in one call."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import accumulate

from pyrovae import checks, tracing
from pyrovae.precision import products
from pyrovae.training.rows import Rows
from pyrovae.training.step import State

# What tracing and compiling save, measured on two cores (benchmarks/speed.py): a traced step is without Pyro's
# messages; a compiled one runs fused besides, which saves the more the more numbers it touches. Tracing takes a third
# of a second, compiling some 8, the first time on a machine 30, and both are for batches of one size: the last one
# of an epoch has to pay by itself. These rules read the arguments and no clock: which way steps are taken shows in
# their last digits, and the same call gives the same bits.
_TRACING_PAYS = 1_000  # steps
_COMPILING_SAVES = (0.8e-3, 0.7e-9)  # seconds a step, and as many more for each number it moves
_COMPILING_PAYS = 20.0  # seconds
# Above so many parameters a step takes milliseconds, beside which a call costs nothing; one step compiles sooner.
_STEPS_TOGETHER = 200_000

Sizes = tuple[int, ...]  # of the batches of the steps in a call


def choose(
    compile: str | bool, epochs: int, state: State, rows: Rows, batch_size: int, annealed: bool
) -> tuple[Traced | None, str]:
    """The traced calls of a fit, where they pay or are asked for; and how most steps are taken, in words.

    Raises:
        ValueError: ``compile=True`` and a pair, an objective or a machine that it can't be done with.
    """
    if compile is False:
        return None, "eager"
    several = tracing.updates_inside(state.optimizer) and state.moved <= _STEPS_TOGETHER
    epoch = [call for length in rows.lengths for call in tracing.calls(length, batch_size, several)]
    compiled = _worth_compiling(compile, Counter(epoch), epochs, state.moved)
    reason = tracing.why_not_compiled(rows.data["x"].device) if compiled else None
    if reason is not None:
        if compile is True:
            raise refused(tracing.Untraceable(reason))
        compiled = set()
    # Steps of a call that is not compiled are no quicker together.
    epoch = [part for call in epoch for part in ([call] if call in compiled else [(size,) for size in call])]
    ways = {
        call: call in compiled
        for call, count in Counter(epoch).items()
        if call in compiled or epochs * count >= _TRACING_PAYS
    }
    because = "" if reason is None else f": {reason}"
    if not ways:
        return None, f"eager{because}"
    try:
        traced = Traced(state, rows, epoch, ways, annealed)
    except tracing.Untraceable as why:
        if compile is True:
            raise refused(why) from why
        return None, f"eager: {why}"
    return traced, "compiled" if compiled else f"traced{because}"


def _worth_compiling(compile: str | bool, epoch: Counter[Sizes], epochs: int, moved: int) -> set[Sizes]:
    """Which calls save the seconds that compiling them takes; where it is asked for, the one that saves most as well."""
    each, by_number = _COMPILING_SAVES
    saved = {call: epochs * count * len(call) * (each + by_number * moved) for call, count in epoch.items()}
    worth = {call for call in saved if saved[call] >= _COMPILING_PAYS}
    return worth | {max(saved, key=saved.__getitem__)} if compile is True else worth


def refused(why: tracing.Untraceable) -> checks.Refused:
    """What to raise where steps have to be compiled and can't be."""
    return checks.bad_value(
        "compile",
        "steps that can be traced and compiled",
        str(why),
        'Pass compile="auto", which takes them eagerly then.',
    )


class Traced:
    """The traced calls of a fit, each made when it is first needed.

    Args:
        state: whose steps they are.
        rows: that they go over.
        epoch: the calls of an epoch, one after the other.
        ways: whether a call is compiled, for those that are traced; the steps of others are eager's.
        annealed: whether the KL weight moves.

    Raises:
        Untraceable: what can't be traced.
    """

    def __init__(
        self, state: State, rows: Rows, epoch: Sequence[Sizes], ways: Mapping[Sizes, bool], annealed: bool
    ) -> None:
        self._state, self._data, self._annealed, self._ways = state, rows.data, annealed, ways
        # Torch's own fused update is quicker than one operation by operation.
        self._inside = any(ways.values()) and tracing.updates_inside(state.optimizer)
        self._options = tracing.options(state.optimizer)
        starts = accumulate(map(len, epoch), initial=0)
        #: Of the traced call that begins with a step of the epoch.
        self._sizes = {start: sizes for start, sizes in zip(starts, epoch, strict=False) if sizes in ways}
        # What a first chunk leaves of the memory of longer ones holds no rows.
        shown = {name: column[: rows.lengths[0]] for name, column in self._data.items()}
        self._graphs = {
            size: tracing.trace_gradients(
                state.pair,
                state.loss,
                shown if size <= rows.lengths[0] else self._data,
                size,
                state.num_rows,
                state.parameters,
                annealed,
            )
            for size in sorted({size for sizes in ways for size in sizes})
        }
        self._calls: dict[Sizes, tracing.TracedSteps] = {}
        self._ready = False
        self._held: list[int] = []

    def at(self, number: int) -> tuple[tracing.TracedSteps, int] | None:
        """The call that begins with a step of the epoch, and how many it takes; None where that step is eager's."""
        # Schedulers change optimizers between epochs, nobody within one.
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

    def check(self) -> None:
        """Raises ``Untraceable`` where model and guide do other things by now than they did when they were traced."""
        # As when they were traced: rounded, the two may differ by more than is asked.
        with products("highest"):
            next(iter(self._graphs.values())).check()

    def _look(self) -> bool:
        """Whether updates inside a graph are what the optimizer would do now; its first step makes their moments."""
        optimizer, moving = self._state.optimizer, next(iter(self._graphs.values())).moving
        moments = tracing.moments(optimizer, moving)
        held = [id(moment) for moment in moments or ()]
        if held != self._held:  # others have taken their place, and calls would go on with those
            self._calls.clear()
            self._held = held
        return moments is not None and tracing.options(optimizer) == self._options
