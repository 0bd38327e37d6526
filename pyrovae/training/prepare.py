"""Builds a fit from its arguments: checks the pair and its rows, then makes the objects that the loop needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyro.infer import ELBO

from pyrovae import threads
from pyrovae.evaluation import Evaluation
from pyrovae.model import LatentVariableModel
from pyrovae.pair import (
    Batch,
    RowModel,
    check_averages,
    check_every_leaf,
    guess_nesting,
    inspect,
    left_as_found,
)
from pyrovae.refusals import Refused, bad_type, bad_value
from pyrovae.rows import restored
from pyrovae.training.answers import FitAnswers
from pyrovae.training.arguments import (
    check_objective_fits,
    is_sum_over_sites,
    make_objective,
    make_optimizer,
    make_scheduler,
)
from pyrovae.training.loop import Callback, Loop
from pyrovae.training.plan import Defaults, Plan
from pyrovae.training.ranks import Ranks
from pyrovae.training.rows import Reader
from pyrovae.training.scales import Scales, check_columns_vary
from pyrovae.training.step import State, check_dense_gradients, check_one_row
from pyrovae.training.traced import choose

# One draw a row suffices for an epoch's curve, because errors average out over rows.
_EPOCH_SAMPLES = 1


def check_callbacks(callbacks: Any) -> tuple[Callback, ...]:
    """Return callbacks as a tuple; raise ``TypeError`` if they are not a sequence of callables."""
    if not isinstance(callbacks, Sequence) or not all(callable(callback) for callback in callbacks):
        raise bad_type(
            "callbacks", "a list of functions of (record, pair)", repr(callbacks), "Pass [my_function]."
        )
    return tuple(callbacks)


def prepare(
    pair: LatentVariableModel,
    reader: Reader,
    plan: Plan,
    defaults: Defaults,
    validation: Any,
    callbacks: Sequence[Callback],
    ranks: Ranks,
    digests: bool,
) -> Loop:
    """Return a fit that is ready to run.

    Args:
        pair: model and guide.
        reader: of the rows.
        plan: the checked arguments.
        defaults: what the plan gets by default.
        validation: held-out rows, or None.
        callbacks: see ``fit``.
        ranks: of the fit.
        digests: whether to compute digests of the rows, which checkpoints need; several ranks need them anyway.

    Raises:
        TypeError, ValueError: pair, rows, loss, optimizer or scheduler cannot be used.
    """
    if plan.patience is not None and validation is None:
        raise bad_value(
            "validation",
            "held-out rows, because patience is given",
            "None",
            "Pass rows held out from x.",
        )
    model = reader.inspect()
    rows = reader.rows(model, digests or ranks.size > 1)
    rows.load(0)
    steps = rows.steps(plan.batch_size)
    plan = plan.with_default_epochs(steps) if defaults.epochs else plan
    plan = plan.with_default_warmup() if defaults.warmup else plan
    shown, minibatches = reader.presented(reader.first), steps * ranks.size > 1
    objective = make_objective(
        plan.loss, plan.num_particles, minibatches=minibatches, annealed=plan.kl_warmup > 0
    )
    check_objective_fits(objective, model.structure)
    labels = pair.labels or reader.source.names.get("x")
    check_columns_vary(pair, restored(shown["x"], shown.get("observed")), labels)
    scales = Scales(pair, shown, plan.seed, labels)
    held_out = None if validation is None else _evaluation(model, plan, validation, "validation", reader)
    training = None if is_sum_over_sites(objective) else _evaluation(model, plan, shown, "x", reader)
    if held_out is not None:
        _check_validation(held_out, shown, plan.seed)
    optimizer = make_optimizer(plan.optimizer, [p for p in pair.parameters() if p.requires_grad], plan.lr)
    state = State(pair, optimizer, objective, len(rows), plan.clip_norm, plan.binarize)
    schedule = make_scheduler(plan.scheduler, optimizer)
    _check_steps(pair, objective, shown, rows.sizes(plan.batch_size), plan.seed)
    if 1 in rows.sizes(plan.batch_size):
        check_one_row(state, model, shown, plan.batch_size, plan.seed)
    traced, how = choose(plan, state, rows, ranks)
    answers = FitAnswers.of(state, model, shown, reader.first, plan.batch_size, plan.seed)
    draws = getattr(objective, "num_particles", 1)
    loop = Loop(
        plan,
        state,
        rows,
        training,
        held_out,
        schedule,
        scales,
        traced,
        answers,
        callbacks,
        threads.fitting(model.structure.work * plan.batch_size * draws / ranks.size),
        ranks,
    )
    loop.history.steps = how
    return loop


def _check_steps(
    pair: LatentVariableModel, objective: ELBO, shown: Batch, sizes: Sequence[int], seed: int
) -> None:
    """Raise an error unless each step of an objective gets dense gradients and averages of its own from the pair."""
    check_dense_gradients(pair)
    with left_as_found(pair):
        guess_nesting(pair, objective, shown, seed)
    check_every_leaf(pair, objective, shown, seed)
    check_averages(pair, objective, shown, sizes, seed)


def _check_validation(held_out: Evaluation, shown: Batch, seed: int) -> None:
    """Raise ``ValueError`` for validation rows of another shape, or with other values beside them on which the pair fails."""
    if held_out.batch["x"].shape[1:] != shown["x"].shape[1:]:
        raise bad_value(
            "validation",
            f"rows of shape {tuple(shown['x'].shape[1:])}, as in x",
            f"shape {tuple(held_out.batch['x'].shape[1:])}",
            "Pass the same columns.",
        )
    names, wanted = (sorted(batch.keys() - {"x", "observed"}) for batch in (held_out.batch, shown))
    if names == wanted:
        return
    try:
        inspect(held_out.pair, held_out.batch, seed, "validation")
    except Refused as error:
        beside = [", ".join(map(repr, values)) or "nothing" for values in (names, wanted)]
        raise bad_value(
            "validation",
            f"rows with {beside[1]} beside them, as in x",
            f"{beside[0]} beside them, on which the pair fails: {error.__cause__ or error}",
            f"Pass {{'x': rows{''.join(f', {name!r}: …' for name in wanted)}}}.",
        ) from error


def _evaluation(model: RowModel, plan: Plan, x: Any, argument: str, reader: Reader) -> Evaluation:
    """Return the evaluation of some rows that is repeated after every epoch."""
    return Evaluation.prepare(
        model.pair,
        x,
        _EPOCH_SAMPLES,
        plan.seed,
        model=model,
        argument=argument,
        compile="auto" if plan.compile else False,
        times=plan.epochs,
        names=reader.source.names,
    )
