"""How a fit takes its steps: Pyro anew at each, or traced once, or traced and compiled; and which of an epoch in one call."""

from __future__ import annotations

from itertools import accumulate

from pyrovae import checks, tracing
from pyrovae.training.rows import Rows
from pyrovae.training.step import State

# What tracing and compiling save, measured on two cores (benchmarks/speed.py): a traced step is without Pyro's
# messages; a compiled one runs fused besides, which saves the more the more numbers it touches. Tracing takes half
# a second, compiling some 10, the first time on a machine 30. These rules read the arguments and no clock: which
# way steps are taken shows in their last digits, and the same call gives the same bits.
_TRACING_PAYS = 1_000  # steps
_COMPILING_SAVES = (0.8e-3, 0.7e-9)  # seconds a step, and as many more for each number it moves
_COMPILING_PAYS = 20.0  # seconds
# Above so many parameters a step takes milliseconds, beside which a call costs nothing; one step compiles sooner.
_STEPS_TOGETHER = 200_000


def choose(
    compile: str | bool, epochs: int, state: State, rows: Rows, batch_size: int, annealed: bool
) -> tuple[Traced | None, str]:
    """The traced calls of a fit, where they pay or are asked for; and how steps are taken, in words.

    Raises:
        ValueError: ``compile=True`` and a pair, an objective or a machine that it can't be done with.
    """
    if compile is False:
        return None, "eager"
    steps = epochs * rows.steps(batch_size)
    each, by_parameter = _COMPILING_SAVES
    compiled = compile is True or steps * (each + by_parameter * state.moved) >= _COMPILING_PAYS
    if not compiled and steps < _TRACING_PAYS:
        return None, "eager"
    try:
        reason = tracing.why_not_compiled(rows.data["x"].device) if compiled else None
        if compile is True and reason is not None:
            raise tracing.Untraceable(reason)
        traced = Traced(state, rows, batch_size, annealed, compiled and reason is None)
    except tracing.Untraceable as why:
        if compile is True:
            raise refused(why) from why
        return None, f"eager: {why}"
    return traced, "compiled" if traced.compiled else f"traced: {reason}" if reason else "traced"


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
        batch_size: rows of a step.
        annealed: whether the KL weight moves.
        compiled: whether the graphs are compiled.

    Raises:
        Untraceable: what can't be traced.
    """

    def __init__(self, state: State, rows: Rows, batch_size: int, annealed: bool, compiled: bool) -> None:
        self.compiled = compiled
        self._state, self._data, self._annealed = state, rows.data, annealed
        # Torch's own fused update is quicker than one operation by operation.
        self._inside = compiled and tracing.updates_inside(state.optimizer)
        self._options = tracing.options(state.optimizer)
        several = self._inside and state.moved <= _STEPS_TOGETHER
        sizes = [call for length in rows.lengths for call in tracing.calls(length, batch_size, several)]
        starts = accumulate(map(len, sizes), initial=0)
        #: Of the call that begins with a step of the epoch.
        self._sizes = dict(zip(starts, sizes, strict=False))
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
            for size in sorted({size for call in sizes for size in call})
        }
        self._calls: dict[tuple[int, ...], tracing.TracedSteps] = {}
        self._ready = False
        self._held: list[int] = []

    def at(self, number: int) -> tuple[tracing.TracedSteps, int] | None:
        """The call that begins with a step of the epoch, and how many it takes; None where that step is eager's."""
        sizes = self._sizes.get(number)
        if sizes is None:
            return None
        if number == 0 or not self._ready:  # schedulers change optimizers between epochs, nobody within one
            self._ready = self._look()
        if not self._ready:
            return None
        if sizes not in self._calls:
            self._calls[sizes] = tracing.TracedSteps(
                self._graphs,
                self._state.optimizer,
                self._data,
                sizes,
                clip_norm=self._state.clip_norm,
                annealed=self._annealed,
                inside=self._inside,
                compiled=self.compiled,
            )
        return self._calls[sizes], len(sizes)

    def _look(self) -> bool:
        """Whether updates inside a graph are what the optimizer would do now; its first step makes their moments."""
        if not self._inside:
            return True
        optimizer, moving = self._state.optimizer, next(iter(self._graphs.values())).moving
        moments = tracing.moments(optimizer, moving)
        held = [id(moment) for moment in moments or ()]
        if held != self._held:  # others have taken their place, and calls would go on with those
            self._calls.clear()
            self._held = held
        return moments is not None and tracing.options(optimizer) == self._options
