"""fit(): trains model and guide together by Pyro's stochastic variational inference."""

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

from pyrovae import arguments, identity, noise, rounding, saving
from pyrovae.checkpoints import Checkpoint, running
from pyrovae.entries import within
from pyrovae.evaluation import Evaluation, Names, inspect_rows, read_rows
from pyrovae.model import LatentVariableModel
from pyrovae.networks import standardizing
from pyrovae.pair import Batch, check_every_leaf, check_supports
from pyrovae.precision import check_precision
from pyrovae.progress import Progress
from pyrovae.refusals import bad_value
from pyrovae.rows import Source
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

# One draw a row suffices for an epoch's curve, because errors average out over rows.
_EPOCH_SAMPLES = 1
# Evaluate at most this many training rows an epoch: evaluating all would cost a third of the training time.
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

    Minimises Pyro's ``loss`` over minibatches. Each minibatch is scaled by N/B, so that it estimates the loss of
    the whole data set without bias. Loss and gradient are divided by N and thus in nats a row, so that ``lr``
    and ``clip_norm`` mean the same for any number of rows.

    Args:
        pair: a ``VAE`` or any ``LatentVariableModel``; changed in place.
        x: training rows on dim 0, one of:

            - a tensor, numpy array or DataFrame.
            - a dict with the rows under "x" and values aligned with them under other names, such as
              ``{"x": counts, "offset": log_exposure}``. Model and guide get these as keywords.
            - a ``numpy.memmap`` of the pair's dtype, for rows that do not fit into memory.
            - chunks: an iterable of arrays or dicts that can be iterated again, such as a list or a ``DataLoader``.

            Every function that takes x accepts arrays, frames and dicts. ``fit`` shuffles rows within a chunk and
            scales chunks of all sizes alike. It checks the values of every chunk before training, but
            inspects the pair, learns ``standardize`` and computes the history's ``elbo`` on the first chunk only.
            If chunks differ between passes, as from a shuffling DataLoader, the seed does not determine the fit and the
            fit cannot be resumed. Chunks must not wait for another thread that calls pyrovae, because calls from
            several threads take turns. ``fit`` remembers the column names of a DataFrame, except integers. Every
            later frame needs these columns in the same order. Frames and series in a dict are aligned by index.
        epochs: passes over the rows.
        batch_size: rows a step. A smaller last batch of a pass is scaled by its own N/B. A last batch of a single row
            is joined to the batch before it.
        lr: the optimizer's learning rate.
        seed: of the order of rows and of the steps' noise; the same seed gives the same fit.
        loss: a Pyro ELBO; None means ``Trace_ELBO(num_particles)``.
        optimizer: a torch optimizer's class, or a ``functools.partial`` of it with more options.
        scheduler: a callable that takes the optimizer and returns a torch scheduler. ``fit`` steps it once an epoch;
            a ``ReduceLROnPlateau`` gets the negative validation ELBO or, without validation rows, the training one.
        num_particles: draws a row and step.
        kl_warmup: epochs over which the weight of the latent sites rises linearly to 1.
        validation: rows to evaluate after every epoch.
        patience: stop after so many epochs without a better validation ELBO and restore the best weights. Epochs
            before the end of the warm-up do not count.
        clip_norm: bound on the norm of the gradient, in nats a row.
        progress: show a progress bar, or plain lines if there is no terminal.
        checkpoint: a folder for this fit alone, or a ``Checkpoint`` with a folder and an interval. ``fit`` writes its
            state there atomically, every minute and at the end. The same call on the same folder resumes an
            interrupted fit and reaches the same bits as one uninterrupted call. If the folder holds a finished fit, the
            call returns its result at once. With ``patience``, ``best.safetensors`` in the folder is the best model
            so far; read it with ``pyrovae.load``.
        on_nonfinite: what to do if a loss or gradient is NaN or infinite. "raise" stops the fit. "skip" undoes the step,
            including buffers and the optimizer's moments, and counts it in the History. The rows and noise of the
            other steps stay the same. The fit still stops after ten such steps in a row, or after an epoch's number
            of steps if that is larger.
        compile: how steps run.

            - False: Pyro runs guide and model at each step.
            - True: torch traces guide and model once and compiles them with their gradients and the optimizer's update.
              Takes some 10 seconds, 30 the first time on a machine, and needs a C++ compiler.
            - "auto": compiles long fits, only traces shorter ones, and leaves the shortest and untraceable ones to Pyro.
              The choice depends on the other arguments only; ``History.steps`` reports it.

            A smaller last batch of an epoch is compiled or traced only if that saves time by itself. A traced model
            has to do the same at every call, apart from its noise: Python values are baked into the trace as constants.
        precision: "highest" multiplies float32 matrices in float32. "medium" rounds the factors of every matrix
            product of a step to bfloat16's 8 bits, which is several times as fast on some processors. Evaluations,
            including the history's, always use full precision.
        binarize: True if x holds probabilities, such as grey levels over 255. Every step then draws zeros and ones from
            them (Salakhutdinov and Murray 2008). The history's ELBO uses one draw, the same after every epoch. That
            draw takes as much memory as x or its first chunk. Validation rows are not binarized. Scores under
            random binarization are not comparable with those under a fixed one. ``fit`` remembers the grey rows as
            fitted, so zeros and ones that you draw from them count as held-out.

    Returns:
        The ``History``. Ctrl-C ends the fit early, keeps the parameters learned so far and returns the History, too.
        With a checkpoint, Ctrl-C and SIGTERM wait for the step and write the state first.

    Raises:
        TypeError, ValueError: arguments, rows or pair are wrong; raised before any parameter changes.
        ValueError: during training, a chunk changes between passes, a learned scale shrinks to zero, rows have no
            finite ELBO, or, with ``compile=True``, the trace no longer holds.
        OSError: the checkpoint folder cannot be written, or another process holds it. Earlier checkpoints stay valid.
        FloatingPointError: a loss or gradient is not finite. The message names epoch, step, rows and the likely cause.
            The parameters are as before that step.

    Kingma and Welling (2014); Bowman et al. (2016) for the warm-up.

    Example:
        >>> import torch, pyrovae as pv
        >>> vae = pv.VAE.mlp(6, latent_dim=2, hidden_dims=(8,))
        >>> history = pv.fit(vae, torch.ones(20, 6), epochs=3)
        >>> len(history.frame)
        3
    """
    folder = Checkpoint.of(checkpoint)
    arguments.integer("epochs", epochs)
    arguments.integer("batch_size", batch_size)
    arguments.integer("num_particles", num_particles)
    arguments.integer("seed", seed, minimum=0)
    lr = arguments.positive("lr", lr)
    if clip_norm is not None:
        arguments.positive("clip_norm", clip_norm)
    check_schedule(epochs, arguments.integer("kl_warmup", kl_warmup, minimum=0), patience, validation)
    arguments.boolean("progress", progress)
    arguments.choice("on_nonfinite", on_nonfinite, ("raise", "skip"))
    arguments.compile(compile)
    arguments.boolean("binarize", binarize)

    def checked(chunk: Any, argument: str, names: Names | None = None) -> tuple[Batch, Source]:
        """Return the checked rows as a batch, and the rows as they were passed."""
        batch, source = read_rows(pair, chunk, argument, names)
        if binarize:
            within(argument, batch["x"], 0, 1, "Divide grey levels by the highest: x / 255.")
        return batch, source

    def presented(batch: Batch) -> Batch:
        """Return the rows as model and guide get them. With ``binarize``, the draw is always the same."""
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
    with ExitStack() as held:  # holds the checkpoint's folder until the end
        with standardizing(pair.modules(), batch["x"]), pair.nothing_declared_on_error():
            known = pair.dtype
            found, model = inspect_rows(
                pair, (batch, source), lambda: checked(chunks.first(), first_name), seed, first_name
            )
            if pair.dtype != known:  # a functional pair's dtype is known only now
                first, source = found
                batch = presented(first)

            def supported(chunk: Any, argument: str) -> tuple[Batch, Source]:
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
                    raise bad_value(
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
            answers = Identity.of(state, model, batch, first, batch_size, seed)
            loop = Loop(plan, state, rows, training, held_out, schedule, scales, traced, answers)
            loop.history.steps = how
            run = None
            if folder is not None:
                pins = {
                    **{f.name: getattr(plan, f.name) for f in fields(plan)},
                    **{"lr": lr, "clip_norm": clip_norm, "x": rows.digests},
                    "binarize": binarize,
                    "validation": None if held_out is None else identity.digests(held_out.batch),
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
                    pins["last batch"] = batch_size + 1  # earlier versions did not join a single last row
                run = held.enter_context(running(folder, pins))
                if run.state is not None:
                    loop.restore(run)
        seen = [rows.hashes]
        if (
            held_out is not None and held_out.source is not None and patience is not None
        ):  # these rows choose the epoch
            seen.append(identity.row_hashes(held_out.source.exact))
        _remember(pair, rows, np.concatenate(seen), source, loop.history)
        with Progress("fit", epochs * loop.steps_an_epoch, "steps", progress) as bar:
            bar.advance(loop.steps_taken)
            loop.run(bar, run)
    return loop.history


def _remember(
    pair: LatentVariableModel, rows: Rows, seen: np.ndarray, source: Source, history: History
) -> None:
    """Store on the pair which rows it has been fitted to, and the history of this fit, which is still growing."""
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
