"""fit(): model and guide together, by Pyro's stochastic variational inference."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from pyro.infer import ELBO
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from pyrovae import checks, noise, rounding, saving
from pyrovae.checkpoints import Checkpoint, running
from pyrovae.log_weights import Evaluation, Names, inspect_rows, read_rows
from pyrovae.model import LatentVariableModel
from pyrovae.networks import standardizing
from pyrovae.pair import Batch, check_every_leaf, check_supports
from pyrovae.precision import check_precision
from pyrovae.progress import Progress
from pyrovae.training.arguments import (
    check_objective_fits,
    check_schedule,
    make_objective,
    make_optimizer,
    make_scheduler,
)
from pyrovae.training.history import History
from pyrovae.training.identity import Identity, described, described_optimizer
from pyrovae.training.loop import Loop, Plan
from pyrovae.training.rows import Chunks, Rows
from pyrovae.training.scales import Scales, check_columns_vary
from pyrovae.training.step import State, binarized, check_one_row
from pyrovae.training.traced import choose
from pyrovae.turns import takes_turns

# One draw a row is enough for an epoch's curve: over the rows it averages out.
_EPOCH_SAMPLES = 1
# So many of the training rows, where there are more: an epoch of evaluations costs a third of one of training.
_EPOCH_ROWS = 10_000


@takes_turns
def fit(
    pair: LatentVariableModel,
    x: Any,
    *,
    epochs: int = 50,
    batch_size: int = 128,
    lr: float = 1e-3,
    seed: int = 0,
    loss: ELBO | None = None,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
    scheduler: Callable[[torch.optim.Optimizer], LRScheduler | ReduceLROnPlateau] | None = None,
    num_particles: int = 1,
    kl_warmup: int = 0,
    validation: Any = None,
    patience: int | None = None,
    clip_norm: float | None = None,
    progress: bool = False,
    checkpoint: str | os.PathLike[str] | Checkpoint | None = None,
    on_nonfinite: str = "raise",
    compile: str | bool = "auto",
    precision: str = "highest",
    binarize: bool = False,
) -> History:
    """Fit model and guide together by stochastic variational inference.

    Minimises Pyro's ``loss`` over minibatches, each scaled by N/B so that it estimates the whole data
    set's without bias. Optimised and reported in nats a row (the data set's loss over N), so that
    ``lr`` and ``clip_norm`` mean the same whatever the number of rows.

    Args:
        pair: a ``VAE`` or any ``LatentVariableModel``; changed in place.
        x: training rows on dim 0; tensor, numpy array or DataFrame. Or a dict with the rows under "x" and
            what is aligned with them under other names, which model and guide are called with as keywords:
            ``{"x": counts, "offset": log_exposure}``. The same goes for every function that takes x. Rows that
            memory does not hold come in a ``numpy.memmap`` of the pair's dtype; or in chunks, as an iterable of arrays or dicts that can be
            gone through again, such as a list or a ``DataLoader``. Rows are then shuffled within a chunk, and chunks
            are scaled alike whatever their sizes; what is learned or checked before training, as by
            ``standardize``, and the history's ``elbo`` go by the first chunk. Chunks that differ from pass to pass,
            as a shuffling DataLoader's do, make a fit that its seed does not decide, and that can't be resumed. They must
            not wait for another thread that calls pyrovae: calls from several threads take turns.
            The names of a DataFrame's columns are remembered, and every later frame has to have them in this order;
            integers are no names. Frames and series beside the rows are brought into the order of their index.
        epochs: passes over the rows.
        batch_size: rows a step; the last batch of a pass may be smaller and is scaled by its own N/B. A last batch of
            a single row is joined to the one before it.
        lr: the optimizer's learning rate.
        seed: of the order of rows and of the steps' noise; the same seed gives the same fit.
        loss: a Pyro ELBO; ``Trace_ELBO(num_particles)`` where None.
        optimizer: a torch optimizer's class, or a ``functools.partial`` of it with more options.
        scheduler: called with the optimizer, returns a torch scheduler, stepped once an epoch
            (``ReduceLROnPlateau`` on the negative validation ELBO, or the training one).
        num_particles: draws a row and step.
        kl_warmup: epochs over which the weight of the latent sites rises linearly to 1.
        validation: rows evaluated after every epoch.
        patience: epochs without a better validation ELBO after which to stop, not counted before the
            warm-up is over; the best weights are then restored.
        clip_norm: bound on the norm of the gradient, in nats a row.
        progress: show a bar, or plain lines where there is no terminal.
        checkpoint: a folder of this fit's own, or a ``Checkpoint`` with a folder and how often to write. The
            state is written there every minute, atomically, and at the end. The same call on the same folder
            goes on where the last one stopped, however it did, to the same bits that one call would have
            reached; on a folder that holds a finished fit it returns at once with its result. With ``patience``,
            ``best.safetensors`` there is the best model so far, for ``pyrovae.load``.
        on_nonfinite: what to do where a loss or gradient is NaN or infinite: "raise"; or "skip", which leaves
            the step out, with parameters, buffers and moments as before it, and counts it in the History. Rows
            and noise of the other steps stay the same. Ten such steps one after another, or an epoch's where
            that is more, stop the fit all the same.
        compile: how steps are taken. Pyro runs guide and model anew at each (False); or they are run once, under
            torch's tracer, and what they compute with its gradients and the optimizer's update is compiled
            (True), which takes some 10 seconds, the first time on a machine 30, and needs a C++ compiler. "auto"
            compiles long fits, traces shorter ones without compiling, and leaves the shortest, and what can't be
            traced, to Pyro; it goes by the other arguments and ``History.steps`` says what it did. An epoch's last
            batch, where it is smaller, is compiled or traced only where that pays by itself. A model has to do the
            same at every call, but for its noise: what Python alone knows and changes between calls is not seen by
            a trace.
        precision: "highest" multiplies float32 matrices in float32; "medium" rounds the factors of every product of
            a step to bfloat16's 8 bits, which some processors do several times as fast. Evaluations, the
            history's among them, are always in full precision.
        binarize: whether x holds probabilities, such as grey levels over 255, of which every step draws zeros and
            ones anew (Salakhutdinov and Murray 2008). The history's ELBO is that of one draw, the same after every
            epoch; validation rows are taken as they are. That draw is in memory, as large as x or its first chunk. A score of such rows compares with no fixed binarization's. The grey rows
            are remembered as fitted; zeros and ones that you draw from them count as kept back.

    Returns:
        The ``History``. Ctrl-C ends the fit early, keeps what was learned and returns it, too. With a
        checkpoint, Ctrl-C and SIGTERM wait for the step and write the state first.

    Raises:
        TypeError, ValueError: bad arguments, rows or pair; before anything is touched.
        OSError: a checkpoint folder that can't be written, or that another process holds; what was written
            there before stays good.
        FloatingPointError: a loss or gradient that is not finite, naming epoch, step, rows and the likely cause;
            the parameters are as before that step.

    Kingma and Welling (2014); Bowman et al. (2016) for the warm-up.

    Example:
        >>> import torch, pyrovae as pv
        >>> vae = pv.VAE.mlp(6, latent_dim=2, hidden_dims=(8,))
        >>> history = pv.fit(vae, torch.ones(20, 6), epochs=3)
        >>> len(history.frame)
        3
    """
    folder = Checkpoint.of(checkpoint)
    checks.integer("epochs", epochs)
    checks.integer("batch_size", batch_size)
    checks.integer("num_particles", num_particles)
    checks.integer("seed", seed, minimum=0)
    lr = checks.positive("lr", lr)
    if clip_norm is not None:
        checks.positive("clip_norm", clip_norm)
    check_schedule(epochs, checks.integer("kl_warmup", kl_warmup, minimum=0), patience, validation)
    checks.boolean("progress", progress)
    checks.choice("on_nonfinite", on_nonfinite, ("raise", "skip"))
    checks.compile(compile)
    checks.boolean("binarize", binarize)

    def checked(chunk: Any, argument: str, names: Names | None = None) -> tuple[Batch, checks.Source]:
        """Rows as they were given, checked; and as they came."""
        batch, source = read_rows(pair, chunk, argument, names)
        if binarize:
            checks.within(argument, batch["x"], 0, 1, "Divide grey levels by the highest: x / 255.")
        return batch, source

    def presented(batch: Batch) -> Batch:
        """Rows as model and guide see them, with a draw of zeros and ones that is always the same."""
        if not binarize:
            return batch
        with noise.seeded(noise.derive(seed, noise.Stream.DATA), batch["x"].device):
            return batch | {"x": binarized(batch["x"])}

    chunks = Chunks(x)
    first_name = "x[0]" if chunks.several else "x"
    first, source = checked(chunks.first(), first_name)
    names = source.names
    check_precision(precision, pair.dtype or first["x"].dtype, first["x"].device)
    batch = presented(first)
    with ExitStack() as held:  # the checkpoint's folder, to the end
        with standardizing(pair.modules(), batch["x"]), pair.nothing_declared_on_error():
            known = pair.dtype
            found, model = inspect_rows(
                pair, (batch, source), lambda: checked(chunks.first(), first_name), seed, first_name
            )
            if pair.dtype != known:  # a functional pair's is known only now
                first, source = found
                batch = presented(first)

            def supported(chunk: Any, argument: str) -> tuple[Batch, checks.Source]:
                batch, source = checked(chunk, argument, names)
                check_supports(model.structure, presented(batch)["x"], argument)
                return batch, source

            kept = folder is not None
            rows = (
                Rows(chunks, supported, kept)
                if chunks.several
                else Rows([first], lambda batch, _: (batch, source), kept)
            )
            rows.load(0)
            minibatches, annealed = rows.steps(batch_size) > 1, kl_warmup > 0
            objective = make_objective(loss, num_particles, minibatches=minibatches, annealed=annealed)
            check_objective_fits(objective, model.structure)
            check_columns_vary(pair, batch["x"])
            scales = Scales(pair, batch["x"], seed)
            evaluated = functools.partial(
                Evaluation.prepare,
                pair,
                num_samples=_EPOCH_SAMPLES,
                seed=seed,
                model=model,
                compile="auto" if compile else False,
                times=epochs,
                names=names,
            )
            training, held_out = evaluated(batch), None
            if len(training) > _EPOCH_ROWS:
                draw = torch.Generator().manual_seed(noise.derive(seed, noise.Stream.EPOCH))
                some = torch.randperm(len(training), generator=draw)[:_EPOCH_ROWS].sort().values
                training = training.of_rows(some.to(batch["x"].device), seed, _EPOCH_SAMPLES)
            if validation is not None:
                held_out = evaluated(validation, argument="validation")
                if held_out.batch["x"].shape[1:] != batch["x"].shape[1:]:
                    raise checks.bad_value(
                        "validation",
                        f"rows of shape {tuple(batch['x'].shape[1:])}, as in x",
                        f"shape {tuple(held_out.batch['x'].shape[1:])}",
                        "Pass the same columns.",
                    )
            parameters = [p for p in pair.parameters() if p.requires_grad]
            optimiser = make_optimizer(optimizer, parameters, lr)
            state = State(pair, optimiser, objective, len(rows), clip_norm, binarize)
            schedule = make_scheduler(scheduler, optimiser)
            check_every_leaf(pair, objective, batch, seed)
            if 1 in rows.sizes(batch_size):
                check_one_row(state, model, batch, batch_size, seed)
            traced, how = choose(compile, epochs, state, rows, batch_size, annealed)
            plan = Plan(epochs, batch_size, seed, kl_warmup, patience, on_nonfinite, precision, compile)
            identity = Identity.of(state, model, batch, first, batch_size, seed)
            loop = Loop(plan, state, rows, training, held_out, schedule, scales, traced, identity)
            loop.history.steps = how
            run = None
            if folder is not None:
                pins = {
                    **{f.name: getattr(plan, f.name) for f in fields(plan)},
                    **{"lr": lr, "clip_norm": clip_norm, "x": rows.digests},
                    "binarize": binarize,
                    "validation": None if held_out is None else checks.digests(held_out.batch),
                    "steps": loop.history.way,
                    "evaluations": training.compiles,
                    "loss": described(objective, epochs),
                    "optimizer": described_optimizer(optimiser),
                    "scheduler": None if schedule is None else described(schedule, epochs),
                    "parameters": {
                        name: [list(tensor.shape), str(tensor.dtype)]
                        for name, tensor in saving.tensors_of(pair).items()
                    },
                }
                if rows.sizes(batch_size)[-1] == batch_size + 1:
                    pins["last batch"] = batch_size + 1  # earlier versions took a last row by itself
                run = held.enter_context(running(folder, pins))
                if run.state is not None:
                    loop.restore(run)
        seen = [rows.hashes]
        if (
            held_out is not None and held_out.source is not None and patience is not None
        ):  # they choose the epoch
            seen.append(checks.row_hashes(held_out.source.exact))
        _remember(pair, rows, np.concatenate(seen), source, loop.history)
        with Progress("fit", epochs * loop.steps_an_epoch, "steps", progress) as bar:
            bar.advance(loop.steps_taken)
            loop.run(bar, run)
    return loop.history


def _remember(
    pair: LatentVariableModel, rows: Rows, seen: np.ndarray, source: checks.Source, history: History
) -> None:
    """Leave on the pair which rows it has been fitted to, and the history of the last fit, as it grows."""
    before = pair.seen
    if before is not None:
        new = ~(np.isin(seen[:, 0], before[:, 0]) & np.isin(seen[:, 1], before[:, 1]))
        seen = np.concatenate([before, seen[new]])
    pair.fitted = {
        "fingerprint": hashlib.sha256(rows.hashes.tobytes()).hexdigest(),
        "rows": len(rows),
        "seen": seen,
        "names": dict(source.names),
        "spread": rounding.spread(source.exact).cpu(),
        "history": vars(history),
    }
