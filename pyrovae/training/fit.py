"""fit(): trains model and guide together by Pyro's stochastic variational inference."""

from __future__ import annotations

import hashlib
import logging
import os
import signal
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import torch
from pyro.infer import ELBO
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from pyrovae import arguments, identity
from pyrovae.checkpoints import Checkpoint, running, signals
from pyrovae.model import VAE, FitRecord, LatentVariableModel
from pyrovae.networks import standardizing
from pyrovae.precision import check_precision
from pyrovae.progress import Progress
from pyrovae.rows import restored, spread_of
from pyrovae.training.history import History
from pyrovae.training.loop import Callback, Loop
from pyrovae.training.plan import MOST_EPOCHS, Defaults, Plan
from pyrovae.training.prepare import check_callbacks, prepare
from pyrovae.training.ranks import Ranks
from pyrovae.training.rows import Reader
from pyrovae.turns import takes_turns

_log = logging.getLogger(__name__)


@takes_turns
def fit(
    pair: LatentVariableModel,
    x: Any,
    *,
    epochs: int | None = None,
    batch_size: int = 128,
    lr: float = 1e-3,
    seed: int = 0,
    loss: ELBO | None = None,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
    scheduler: Callable[[torch.optim.Optimizer], LRScheduler | ReduceLROnPlateau] | None = None,
    num_particles: int = 1,
    kl_warmup: int | None = None,
    validation: Any = None,
    patience: int | None = None,
    clip_norm: float | None = None,
    progress: bool = False,
    checkpoint: str | os.PathLike[str] | Checkpoint | None = None,
    on_nonfinite: str = "raise",
    compile: str | bool = "auto",
    precision: str = "highest",
    binarize: bool = False,
    callbacks: Sequence[Callback] = (),
) -> History:
    """Fit model and guide together by stochastic variational inference.

    Minimises Pyro's ``loss`` over minibatches. Each minibatch is scaled by N/B, so that it estimates the loss of
    the whole data set without bias. Loss and gradient are divided by N and thus in nats a row. So ``lr`` and
    ``clip_norm`` mean the same for any number of rows.

    With missing cells, the loss bounds log P of the observed cells, and so does every number of the History. The loss
    ignores why cells are missing. This is right if the probability that a cell is missing depends on observed cells only
    (Rubin 1976).

    Args:
        pair: a ``VAE`` or any ``LatentVariableModel``; changed in place.
        x: training rows on dim 0, one of:

            - a tensor, numpy array or DataFrame.
            - a dict with the rows under "x" and values aligned with them under other names, such as
              ``{"x": counts, "offset": log_exposure}``. Model and guide get these as keywords.
            - a ``numpy.memmap`` of the pair's dtype, for rows that do not fit into memory.
            - chunks: an iterable of arrays or dicts that can be iterated again, such as a list or a ``DataLoader``.

            NaN in float arrays, and None and NA in frames, are missing cells. A ``VAE`` takes them if its likelihood has
            independent columns given z; so does a model that takes ``observed``, see ``LatentVariableModel``. Every
            column needs an observed cell.

            Every function that takes x accepts arrays, frames and dicts. ``fit`` shuffles rows within a chunk and
            scales chunks of all sizes alike. It checks the values of every chunk before training, but
            inspects the pair and learns ``standardize`` on the first chunk only.
            If chunks differ between passes, as from a shuffling DataLoader, the seed does not determine the fit and the
            fit cannot be resumed. Chunks must not wait for another thread that calls pyrovae, because calls from
            several threads take turns. ``fit`` remembers the column names of a DataFrame, except 0, 1, … in order. Every
            later frame needs these columns in the same order. Frames and series in a dict are aligned by index.
        epochs: passes over the rows. None means as many as make 5000 steps, at least 50 and at most 500: 50 are too few for
            few rows.
        batch_size: rows a step. A smaller last batch of a pass is scaled by its own N/B. A last batch of a single row
            is joined to the batch before it.
        lr: the optimizer's learning rate.
        seed: of the order of rows and of the steps' noise; the same seed gives the same fit.
        loss: a Pyro ELBO; None means ``Trace_ELBO(num_particles)``.
        optimizer: a torch optimizer's class, or a ``functools.partial`` of it with more options.
        scheduler: a callable that takes the optimizer and returns a torch scheduler. ``fit`` steps it once an epoch;
            a ``ReduceLROnPlateau`` gets the negative validation ELBO or, without validation rows, the training one.
        num_particles: draws a row and step.
        kl_warmup: epochs over which the weight of the latent sites rises linearly to 1. None means a tenth of the epochs for
            a VAE of a table, if ``loss`` is None, and otherwise 0. Without it, such a decoder may ignore z.
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
              Takes 20 to 30 seconds the first time on a machine, 3 or less later, and needs a C++ compiler.
            - "auto": compiles long fits, only traces shorter ones, and leaves the shortest and untraceable ones to Pyro.
              The choice depends on the other arguments only; ``History.steps`` reports it.

            A smaller last batch of an epoch is compiled or traced only if that saves time by itself. A traced model
            has to do the same at every call, apart from its noise: Python values are baked into the trace as constants.
        precision: "highest" multiplies float32 matrices in float32. "medium" rounds the factors of every matrix
            product of a step to bfloat16's 8 bits, which is several times as fast on some processors. Evaluations,
            including those of validation rows, always use full precision.
        binarize: True if x holds probabilities, such as grey levels over 255. Every step then draws zeros and ones from
            them (Salakhutdinov and Murray 2008). Validation rows are not binarized. Scores under random binarization
            are not comparable with those under a fixed one. ``fit`` remembers the grey rows as fitted, so zeros and
            ones that you draw from them count as held-out.
        callbacks: functions that ``fit`` calls after every epoch with that epoch's record, a dict with the columns of
            ``History.frame``, and the pair. A callback that returns True stops the fit; otherwise it returns None or
            False. It may freeze parameters, unless ``compile=True`` or several ranks share the fit. To unfreeze some, or to
            replace a network, stop the fit and call ``fit`` again. With a checkpoint, a fit that is killed right after a
            call may repeat the call when it resumes. docs/training.md shows TensorBoard and MLflow.

    ``torch.distributed`` may be initialised with several ranks, as under ``torchrun``. They then share the rows of
    every minibatch and take the steps of one process, up to rounding. All ranks must pass the same rows and arguments
    and a pair with the same parameters. Rank 0 alone writes the checkpoint, calls ``callbacks`` and shows ``progress``.
    Steps are traced even without ``compile``. docs/training.md has a script.

    Returns:
        The ``History``. Ctrl-C ends the fit early, keeps the parameters learned so far and returns the History, too.
        With a checkpoint, Ctrl-C and SIGTERM wait for the step and write the state first. On several ranks, a second
        Ctrl-C raises ``KeyboardInterrupt``.

    Raises:
        TypeError, ValueError: arguments, rows or pair are wrong, or ranks differ; raised before any parameter changes.
        RuntimeError: another rank raises an error, dies, or hangs for the timeout of its group; the message names it if it
            has called ``fit``.
        ValueError: during training, a chunk changes between passes, a learned scale shrinks to zero, or rows have no
            finite ELBO. A callback gives the pair parameters that are not trained. With ``compile=True``, the trace no
            longer holds.
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
    with ExitStack() as held:  # holds the checkpoint's folder until the end
        ranks = held.enter_context(closing(Ranks()))
        with ranks.reporting_errors():
            folder = Checkpoint.of(checkpoint)
            ranks.check_alike(
                {"checkpoint": folder is not None}, "Pass it on all ranks. Rank 0 alone uses the folder."
            )
            plan = Plan(
                epochs=MOST_EPOCHS if epochs is None else epochs,
                batch_size=batch_size,
                lr=lr,
                seed=seed,
                loss=loss,
                optimizer=optimizer,
                scheduler=scheduler,
                num_particles=num_particles,
                kl_warmup=0 if kl_warmup is None else kl_warmup,
                patience=patience,
                clip_norm=clip_norm,
                on_nonfinite=on_nonfinite,
                compile=compile,
                precision=precision,
                binarize=binarize,
            )
            arguments.boolean("progress", progress)
            called = check_callbacks(callbacks)
            reader = Reader(pair, x, seed, binarize)
            check_precision(precision, pair.dtype or reader.first["x"].dtype, reader.first["x"].device)
            shown = reader.presented(reader.first)
            known = restored(shown["x"], shown.get("observed"))
            names = reader.source.names.get("x")
            with standardizing(pair.modules(), known, names), pair.nothing_declared_on_error():
                digests = folder is not None
                warmup = kl_warmup is None and loss is None and _is_table(pair)
                loop = prepare(
                    pair, reader, plan, Defaults(epochs is None, warmup), validation, called, ranks, digests
                )
                loop.check_ranks_match()
                if folder is not None:
                    ranks.asked = held.enter_context(signals())
                elif ranks.size > 1:
                    ranks.asked = held.enter_context(signals([signal.SIGINT]))
                run = None
                if folder is not None and ranks.rank == 0:
                    run = held.enter_context(running(folder, loop.pins()))
                ranks.exchange(None)
                state = ranks.broadcast(None if run is None else run.state)
                if folder is not None and state is not None:
                    loop.restore(state, Path(folder.folder))
                    epochs = loop.steps_taken // loop.steps_an_epoch
                    _log.info(
                        "%s: resumed after %d steps, %d whole epochs", folder.folder, loop.steps_taken, epochs
                    )
                ranks.exchange(None)
            pair.fitted = loop.record = _record(pair, reader, loop)
        with Progress("fit", loop.steps, "steps", progress and ranks.rank == 0) as bar:
            bar.advance(loop.steps_taken)
            loop.run(bar, run)
    return loop.history


def _is_table(pair: LatentVariableModel) -> bool:
    return isinstance(pair, VAE) and pair.table is not None


def _record(pair: LatentVariableModel, reader: Reader, loop: Loop) -> FitRecord:
    """Return which rows the pair has been fitted to, and the history of this fit, which is still growing."""
    return FitRecord(
        fingerprint=hashlib.sha256(loop.rows.hashes.tobytes()).hexdigest(),
        rows=len(loop.rows),
        seen=loop.seen() if pair.seen is None else identity.united(pair.seen, loop.seen()),
        names=dict(reader.source.names),
        spread=spread_of(reader.source).cpu(),
        history=vars(loop.history),
    )
