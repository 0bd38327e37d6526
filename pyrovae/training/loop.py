"""The training loop over minibatches and epochs, whose state can be saved and restored between any two steps."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from pyrovae import arguments, identity, noise, saving, threads, tracing
from pyrovae.checkpoints import FROZEN, NAMES, Run, check_answers, machine
from pyrovae.evaluation import Evaluation
from pyrovae.log_weights import ELBOEstimate, elbo_of
from pyrovae.model import FitRecord, LatentVariableModel
from pyrovae.pair import Batch
from pyrovae.precision import products
from pyrovae.progress import Progress
from pyrovae.python_values import values_of_call
from pyrovae.refusals import Refused, bad_value
from pyrovae.tracing import StepLoss
from pyrovae.training import nonfinite
from pyrovae.training.answers import FitAnswers
from pyrovae.training.arguments import runs_code_of_others
from pyrovae.training.history import History
from pyrovae.training.plan import Plan, Scheduler
from pyrovae.training.ranks import RankFailed, Ranks, alone
from pyrovae.training.rows import Rows
from pyrovae.training.scales import Scales
from pyrovae.training.sharded import ParallelStep, ParallelSteps
from pyrovae.training.step import State, step
from pyrovae.training.traced import Traced, not_shared, refused

#: Called after every epoch with its record and the pair; True stops the fit.
Callback = Callable[[dict[str, float], LatentVariableModel], bool | None]

# The fit stops after so many skipped steps in a row, or an epoch's number of steps if that is larger.
_MOST_SKIPPED = 10
_NOT_KEPT = (
    "A checkpoint keeps numbers and strings in attributes of modules and of the loss. It keeps no other state of Python, "
    "such as a counter in a dict, and no tensors that are not parameters or buffers."
)
# A trace is compared with Pyro after every so many steps, and earlier after halves of it.
_COMPARED = 4000


@dataclass
class _Epoch:
    """What the epoch in progress has gathered so far; losses are sums over its minibatches, in nats a row."""

    number: int = 0  # of the next minibatch
    lr: float = math.nan  # of the first step, for the first group of parameters
    loss: float = 0.0
    rate: float = 0.0
    reconstruction: float = 0.0
    seconds: float = 0.0
    skipped: int = 0  # steps that were not finite
    skipped_rows: int = 0  # rows in them


class Loop:
    """A fit in progress.

    Everything random follows from (seed, epoch, step). The epoch and the number of the next minibatch therefore
    identify every point of a fit.
    """

    def __init__(
        self,
        plan: Plan,
        state: State,
        rows: Rows,
        training: Evaluation | None,
        held_out: Evaluation | None,
        schedule: Scheduler | None,
        scales: Scales,
        traced: Traced | ParallelSteps | None,
        answers: FitAnswers,
        callbacks: Sequence[Callback],
        number_of_threads: int,
        ranks: Ranks,
    ) -> None:
        self._plan, self._state, self.rows = plan, state, rows
        #: Of all training rows; only for objectives that do not consist of a rate and a reconstruction.
        self._training = training
        self._held_out = held_out
        self._schedule, self._scales = schedule, scales
        self._traced = traced
        self._answers = answers
        self._callbacks = callbacks
        self._threads = number_of_threads
        self._ranks = ranks
        # These run user code between epochs.
        self._others = runs_code_of_others(schedule) or len(rows.lengths) > 1 or bool(callbacks)
        self.history = History()
        self.steps_an_epoch = rows.steps(plan.batch_size)
        self._epoch = 0
        self._so_far = _Epoch()
        self._in_graphs = 0  # steps taken by traced calls
        self._skipped_last = 0  # non-finite steps in a row, up to now
        self._best: _Best | None = None
        self._finished = False
        self._began = saving.values_of(state.pair, state.objective)
        self._moved: set[tuple[str, str]] = set()  # places and names of attributes that have changed since
        #: What the fit leaves on the pair, once it is known.
        self.record: FitRecord | None = None
        # Hashes of the rows of models that callbacks loaded into the pair, and of fits that they ran on it.
        self._of_callbacks = np.zeros((0, 2), dtype=np.uint64)

    def pins(self) -> dict[str, Any]:
        """Return what a resumed fit has to match, apart from the numbers that the pair computes."""
        state, size = self._state, self._plan.batch_size
        names = {name: list(of) for name, of in self.rows.names.items()}
        return {FROZEN: saving.frozen(state.pair), NAMES: names} | {
            **self._plan.pins(state.objective, state.optimizer, self._schedule),
            "x": self.rows.digests,
            "validation": None if self._held_out is None else identity.digests(self._held_out.batch),
            "last batch": self.rows.sizes(size)[-1],
            "steps": self.history.way,
            "evaluations": [evaluation.compiles for evaluation in self._evaluations],
            "parameters": {
                name: [list(tensor.shape), str(tensor.dtype)]
                for name, tensor in saving.tensors_of(state.pair).items()
            },
            "ranks": self._ranks.size,
        }

    def check_ranks_match(self) -> None:
        """Check that all ranks have the same rows, arguments and parameters, and that they can share steps.

        Raises:
            ValueError: they do not or cannot.
        """
        if not isinstance(self._traced, ParallelSteps):
            return
        tensors = saving.tensors_of(self._state.pair).items()
        alike: dict[str, Any] = {
            f"parameter {name.removeprefix('pair:')}": identity.digest(tensor[None])
            for name, tensor in tensors
        }
        self._ranks.check_alike(
            {name: value for name, value in machine().items() if name != "threads"},
            "Use the same versions and settings of pyrovae and torch, and processors of one kind, on all ranks.",
        )
        self._ranks.check_alike(
            self.pins() | alike | {"number of callbacks": len(self._callbacks)},
            "Call fit with the same rows and arguments on all ranks, and build the pair from the same seed: "
            "torch.manual_seed. Call it before init_process_group if every process fits a model of its own.",
        )
        try:
            self._traced.compare()
        except tracing.Untraceable as why:
            raise not_shared(why, self._ranks) from why

    def seen(self) -> np.ndarray:
        """Return the hashes of the rows that parameters depend on, as ``identity.row_hashes`` returns them."""
        hashes = [self.rows.hashes, self._of_callbacks]
        if (
            self._plan.patience is not None
            and self._held_out is not None
            and self._held_out.source is not None
        ):
            source = self._held_out.source  # these rows choose the epoch
            hashes.append(identity.row_hashes(source.exact, source.observed))
        return np.concatenate(hashes)

    @property
    def _evaluations(self) -> list[Evaluation]:
        """Return the evaluations that are repeated after every epoch."""
        return [e for e in (self._training, self._held_out) if e is not None]

    @property
    def steps(self) -> int:
        """Return the number of steps of the whole fit, if nothing stops it early."""
        return self._plan.epochs * self.steps_an_epoch

    @property
    def steps_taken(self) -> int:
        """Return the number of steps since the beginning."""
        return self._epoch * self.steps_an_epoch + self._so_far.number

    def run(self, bar: Progress, run: Run | None = None) -> None:
        """Train to the end, or until ``run`` is asked to stop. Writes the folder of ``run`` whenever it is due."""
        if self._finished:
            return
        try:
            while self._epoch < self._plan.epochs and self.history.stopped == "epochs":
                self._run_epoch(bar, run)
        except KeyboardInterrupt:
            if self._ranks.size > 1:
                raise  # this rank no longer makes the calls of the others
            self.history.stopped = "interrupted"
        except RankFailed:
            if run is not None:
                self._write(run)
            raise
        finally:
            self._state.pair.zero_grad(set_to_none=True)
            self._keep_record()
        if not self._in_graphs and isinstance(self._traced, Traced):
            self.history.steps = f"eager: {self._traced.reason or 'it ended before a step of a traced call'}"
        if self._best is not None:
            self._best.restore(self._state.pair)
            self.history.best_epoch = self._best.epoch
        self._ranks.broadcast_parameters(saving.tensors_of(self._state.pair))
        self._finished = self.history.stopped != "interrupted"
        if run is not None and self._finished:
            self._write(run)

    def _run_epoch(self, bar: Progress, run: Run | None) -> None:
        """Take the rest of an epoch's steps and end it, unless ``run`` is asked to stop."""
        started = time.monotonic() - self._so_far.seconds
        if math.isnan(self._so_far.lr):
            self._so_far.lr = float(self._state.optimizer.param_groups[0]["lr"])
        minibatches = self.rows.minibatches(self._plan.batch_size, self._plan.seed, self._epoch)
        with products(self._plan.precision), threads.using(self._threads):
            while self._so_far.number < self.steps_an_epoch:
                self._so_far.seconds = time.monotonic() - started
                with self._ranks.reporting_errors(step=True):
                    if run is not None and (run.due or self._ranks.stopping):
                        self._write(run)
                    if self._ranks.stopping:
                        self.history.stopped = "interrupted"
                        return
                    self._advance(minibatches, bar)
        self._end_epoch(started)

    def _kl_weight(self, taken: int) -> float:
        """Return the weight of the latent sites in the step after ``taken`` steps."""
        warmup = self._plan.kl_warmup * self.steps_an_epoch
        return min(1.0, (taken + 1) / warmup) if warmup else 1.0

    def _advance(self, minibatches: list[tuple[int, Tensor]], bar: Progress) -> None:
        """Take the steps of a traced call if one begins here, else one step."""
        self.rows.load(minibatches[self._so_far.number][0])
        call = self._call()
        if call is None:
            return self._take(*minibatches[self._so_far.number], bar)
        steps, count = call
        mine = minibatches[self._so_far.number : self._so_far.number + count]
        ahead = range(self.steps_taken, self.steps_taken + count)
        seeds = [noise.derive(self._plan.seed, noise.Stream.STEP, taken) for taken in ahead]
        try:
            losses = steps.run(torch.cat([rows for _, rows in mine]), seeds, [*map(self._kl_weight, ahead)])
        except tracing.NotFinite as error:
            losses = error.losses
        self._in_graphs += len(losses)
        for (_, rows), loss in zip(mine, losses, strict=False):
            self._count(rows, loss, bar)
        # Repeat the failed step eagerly, to find the cause, and then the steps after it.
        for chunk, rows in mine[len(losses) :]:
            self._take(chunk, rows, bar)

    def _call(self) -> tuple[tracing.TracedSteps | ParallelStep, int] | None:
        """Return the traced call that begins here and how many steps it takes, or None for an eager step.

        All steps are eager once the trace no longer holds or could not be compiled.
        """
        if self._traced is None:
            return None
        try:
            if not self._so_far.number and self._looks_again:
                # At the tracing's precision, because rounded products could differ by more than the tolerance.
                with products("highest"):
                    self._traced.graph.check()
            return self._traced.at(self._so_far.number)
        except tracing.Untraceable as why:
            if isinstance(why.__cause__, ValueError) and nonfinite.is_nonfinite(why.__cause__):
                return self._traced.at(self._so_far.number)  # the step itself names the cause
            why = tracing.Untraceable(f"in epoch {self._epoch + 1}, {why}")
            if isinstance(self._traced, ParallelSteps):
                raise not_shared(why, self._ranks) from why
            if self._plan.compile is True:
                raise refused(why) from why
            self._traced, self.history.steps = None, f"eager: {why}"
            return None

    @property
    def _looks_again(self) -> bool:
        """Return whether this epoch begins with a comparison of the trace with Pyro. Tracing did so before epoch 0."""
        if not self._epoch or self._others:
            return self._epoch > 0
        before, now = (_comparisons(epoch * self.steps_an_epoch) for epoch in (self._epoch - 1, self._epoch))
        return now > before

    def _take(self, chunk: int, rows: Tensor, bar: Progress) -> None:
        """Take one step on one minibatch, given by rows of a chunk."""
        minibatch = {name: value[rows] for name, value in self.rows.data.items()}
        seed = noise.derive(self._plan.seed, noise.Stream.STEP, self.steps_taken)
        try:
            loss = step(self._state, minibatch, seed, self._kl_weight(self.steps_taken))
        except (FloatingPointError, ValueError) as error:
            if not nonfinite.is_nonfinite(error):
                raise
            self._skip(error, minibatch, rows + self.rows.start(chunk), seed)
            self._so_far.number += 1
            bar.advance(note=f"epoch {self._epoch + 1}/{self._plan.epochs}, skipped: not finite")
        else:
            self._count(rows, loss, bar)

    def _count(self, rows: Tensor, loss: StepLoss, bar: Progress) -> None:
        """Record a step that has been taken."""
        share, so_far = len(rows) / self._state.num_rows, self._so_far
        so_far.loss += loss.total * share
        # The loss is kl_weight · rate − reconstruction.
        so_far.rate += (loss.total + loss.reconstruction) / self._kl_weight(self.steps_taken) * share
        so_far.reconstruction += loss.reconstruction * share
        so_far.number += 1
        self._skipped_last = 0
        bar.advance(note=f"epoch {self._epoch + 1}/{self._plan.epochs}, loss {loss.total:.2f}")

    def _skip(self, error: Exception, minibatch: Batch, rows: Tensor, seed: int) -> None:
        """Count a step that was not finite, or raise ``FloatingPointError``."""
        self._skipped_last += 1
        hopeless = self._skipped_last >= max(_MOST_SKIPPED, self.steps_an_epoch)
        if self._plan.on_nonfinite == "raise" or hopeless:
            place = f"epoch {self._epoch + 1}, step {self._so_far.number + 1}"
            place += "".join(f", rank {rank}" for rank in self._ranks.not_finite)
            if self._plan.on_nonfinite == "skip":
                place += f", the last of {self._skipped_last} such steps in a row"
            with noise.seeded(seed, rows.device):
                minibatch = self._state.presented(minibatch)
            raise FloatingPointError(
                nonfinite.message(error, place, self._answers.model, minibatch, rows, seed)
            ) from error
        self._so_far.skipped += 1
        self._so_far.skipped_rows += len(rows)

    def _end_epoch(self, started: float) -> None:
        """Record the epoch, step the scheduler, call the callbacks, and decide whether to stop."""
        record = self._record(started)
        self.history.records.append(record)
        self._epoch, self._so_far = self._epoch + 1, _Epoch()
        self._scales.check()
        score = record.get("validation_elbo", record["elbo"])
        if isinstance(self._schedule, ReduceLROnPlateau):
            self._schedule.step(-score)
        elif self._schedule is not None:
            with warnings.catch_warnings():
                # torch's schedulers do not see optimizer steps inside a graph.
                warnings.filterwarnings("ignore", r"Detected call of `lr_scheduler\.step\(\)` before")
                self._schedule.step()
        if self._plan.patience is not None and self._epoch >= self._plan.kl_warmup:
            if self._best is None or score > self._best.score or math.isnan(self._best.score):
                self._best = _Best.of(self._state.pair, self._epoch, score)
            elif self._epoch - self._best.epoch >= self._plan.patience:
                self.history.stopped = "patience"
        stop = False
        with self._ranks.reporting_errors():
            if self._ranks.rank == 0:
                memory, tensors = _Memory.of(self._state), saving.tensors_of(self._state.pair)
                shapes = {name: tensor.shape for name, tensor in tensors.items()}
                for callback in self._callbacks:
                    with alone():  # a fit of a callback's own
                        stop |= _asked_to_stop(callback, dict(record), self._state.pair)
                    self._keep_record()
                ends = stop or self._epoch == self._plan.epochs or self.history.stopped != "epochs"
                if self._callbacks and not ends:
                    _check_all_are_trained(self._state)
                    memory.keep()
                if self._callbacks and (not ends or self._best is not None):  # whose weights are restored
                    _check_names(self._state.pair, shapes)
            if self._callbacks:
                stop, hashes = self._ranks.exchange((stop, self._of_callbacks))[0]
                self._add_seen(hashes)
        if self._callbacks:
            self._ranks.broadcast_parameters(saving.tensors_of(self._state.pair))
        if stop:
            self.history.stopped = "callback"

    def _keep_record(self) -> None:
        """Put the fit's record back on the pair, with the rows of what a callback has loaded into it or fitted it to."""
        pair = self._state.pair
        if self.record is not None and pair.fitted is not self.record:
            came, pair.fitted = pair.fitted, self.record
            if came is not None:
                self._add_seen(came.seen)

    def _add_seen(self, hashes: np.ndarray) -> None:
        """Count rows, given by their hashes, among those that parameters depend on."""
        if self.record is not None and len(hashes):
            before = len(self.record.seen)
            self.record.seen = identity.united(self.record.seen, hashes)
            self._of_callbacks = np.concatenate([self._of_callbacks, self.record.seen[before:]])

    def _record(self, started: float) -> dict[str, float]:
        """Return the epoch's line of the history."""
        so_far = self._so_far
        taken = 1 - so_far.skipped_rows / self._state.num_rows  # of the epoch's rows
        loss, kl, reconstruction = (
            total / taken if taken else math.nan
            for total in (so_far.loss, so_far.rate, so_far.reconstruction)
        )
        record = {"epoch": self._epoch + 1, "loss": loss}
        if self._training is None:
            record |= {"elbo": reconstruction - kl, "rate": kl, "reconstruction": reconstruction}
        for evaluation in self._evaluations:
            record |= self._evaluate(evaluation)
        return record | {
            "kl_weight": self._kl_weight(self.steps_taken - 1),
            "lr": so_far.lr,
            "skipped": so_far.skipped,
            "seconds": time.monotonic() - started,
        }

    def _evaluate(self, evaluation: Evaluation) -> dict[str, float]:
        """Return the ELBO and its two parts for the record; NaN if they are not finite and such steps are skipped."""
        prefix = "" if evaluation.argument == "x" else f"{evaluation.argument}_"
        if evaluation.runner is not None:
            evaluation.runner.renew(
                self._traced is None or self._looks_again
            )  # calls of eager steps may differ
        each = self._ranks.size == 1 or evaluation.keyed_by == "tile"  # such noise depends on the other rows
        if not each:
            part = self._ranks.part(len(evaluation))
            rows = torch.arange(part.start, part.stop, device=evaluation.numbers.device)
            evaluation = evaluation.of_rows(rows, evaluation.seed, evaluation.num_samples)
        bound = None
        with self._ranks.reporting_errors():
            try:
                bound = elbo_of(evaluation)
            except Refused:
                if self._plan.on_nonfinite == "raise":
                    raise
            found = self._ranks.exchange(bound)[: 1 if each else None]
        bounds = [bound for bound in found if bound is not None]
        values = [math.nan] * 3
        if len(bounds) == len(found):
            bound = ELBOEstimate.cat(bounds)
            values = [bound.mean, float(bound.rate.mean()), float(bound.reconstruction.mean())]
        names = ("elbo", "rate", "reconstruction")
        return {f"{prefix}{name}": value for name, value in zip(names, values, strict=True)}

    def _write(self, run: Run) -> None:
        run.save(self.snapshot())
        if self._best is not None and run.new_best(self._best.epoch):
            with self._best.in_place(self._state.pair):
                saving.save(self._state.pair, run.folder / "best.safetensors")

    def snapshot(self) -> dict[str, Any]:
        """Return everything that the rest of the fit depends on, for ``restore`` in another process."""
        return {
            "tensors": saving.tensors_of(self._state.pair),
            "settings": saving.settings_of(self._state.pair),
            "answers": self._answers.now(),
            "values": self._changed(),
            "averages": dict(self._state.averages),
            "optimizer": self._state.optimizer.state_dict(),
            "scheduler": None if self._schedule is None else self._schedule.state_dict(),
            "epoch": self._epoch,
            "so far": vars(self._so_far),
            "skipped last": self._skipped_last,
            "in graphs": self._in_graphs,
            "history": vars(self.history),
            "best": None if self._best is None else vars(self._best),
            "scales": self._scales.start,
            "rows of callbacks": self._of_callbacks,
            "threads": {"steps": self._threads} | {e.argument: e.threads for e in self._evaluations},
            "finished": self._finished,
            "ranks": self._ranks.size,
        }

    def _changed(self) -> dict[str, dict[str, Any]]:
        """Return the plain attributes of modules and objective that have changed since the fit began.

        Others may be chosen anew before the fit is resumed, such as the folder of a log.
        """
        now = saving.values_of(self._state.pair, self._state.objective)
        for place, attributes in now.items():
            before = self._began.get(place, {})
            self._moved.update(
                (place, n) for n, v in attributes.items() if n not in before or repr(v) != repr(before[n])
            )
        found: dict[str, dict[str, Any]] = {}
        for place, name in sorted(self._moved):
            if name in now.get(place, {}):
                value = now[place][name]
                # An array keeps the type of a number of numpy's.
                found.setdefault(place, {})[name] = (
                    np.array(value) if isinstance(value, np.generic) else value
                )
        return found

    def restore(self, snapshot: dict[str, Any], folder: Path) -> None:
        """Continue from the ``snapshot`` that was found in a folder.

        Raises:
            ValueError: pair or loss compute other numbers than those that wrote it, or callbacks froze parameters on
                another number of ranks. The pair is then as before.
        """
        pair, how = self._state.pair, self.history.steps
        before, settings = _copies(pair), saving.settings_of(pair)
        same = snapshot.get("ranks", 1) == self._ranks.size
        kept = snapshot.get("settings", settings)  # a version that kept none could not resume after freezing
        if not same and kept["frozen"] != settings["frozen"]:
            raise bad_value(
                "checkpoint",
                "a fit whose callbacks froze no parameters, to resume on another number of ranks",
                f"one with {len(kept['frozen'])} frozen in {folder}",
                f"Use as many as before: {snapshot.get('ranks', 1)}.",
            )
        objective = self._state.objective
        values = values_of_call(pair, objective)
        _copy(saving.tensors_of(pair), snapshot["tensors"])
        saving.set_settings(pair, kept)
        saving.set_values(pair, objective, snapshot.get("values", {}))
        try:
            check_answers(folder, snapshot["answers"], self._answers.now(), _NOT_KEPT)
        except BaseException:
            _copy(saving.tensors_of(pair), before)
            saving.set_settings(pair, settings)
            values.restore()
            raise
        for place, attributes in snapshot.get("values", {}).items():
            self._moved.update((place, name) for name in attributes)
        _load_state(self._state.optimizer, snapshot["optimizer"])
        self._state.averages = dict(snapshot.get("averages", {}))
        tracing.lay_out(self._state.optimizer)  # files keep no strides
        if self._schedule is not None:
            self._schedule.load_state_dict(snapshot["scheduler"])
        self._epoch, self._so_far = snapshot["epoch"], _Epoch(**snapshot["so far"])
        self._skipped_last = snapshot["skipped last"]
        self._in_graphs = snapshot.get("in graphs", 1)  # a version that kept no number may have taken some
        vars(self.history).update(snapshot["history"])
        if not same:
            self.history.steps = how
        elif self.history.way == "eager":  # the trace was given up before
            self._traced = None
        self._best = None if snapshot["best"] is None else _Best(**snapshot["best"])
        self._scales.start = snapshot["scales"]
        self._of_callbacks = snapshot.get("rows of callbacks", self._of_callbacks)
        # A version that kept no numbers computed everything with all threads.
        numbers, every = snapshot.get("threads", {}), torch.get_num_threads()
        if same:
            self._threads = numbers.get("steps", every)
            self._training, self._held_out = (
                None if e is None else replace(e, threads=numbers.get(e.argument, every))
                for e in (self._training, self._held_out)
            )
        self._finished = snapshot["finished"]


@dataclass(frozen=True)
class _Best:
    """A copy of the weights of the best epoch so far."""

    epoch: int
    score: float
    tensors: dict[str, Tensor]

    @classmethod
    def of(cls, pair: LatentVariableModel, epoch: int, score: float) -> _Best:
        return cls(epoch, score, _copies(pair))

    def restore(self, pair: LatentVariableModel) -> None:
        # A callback that ran the pair may have declared further parameters of plain functions.
        now = saving.tensors_of(pair)
        _copy({name: tensor for name, tensor in now.items() if name in self.tensors}, self.tensors)

    @contextmanager
    def in_place(self, pair: LatentVariableModel) -> Iterator[None]:
        """Run a block while the pair has these weights."""
        now = _copies(pair)
        self.restore(pair)
        try:
            yield
        finally:
            _copy(saving.tensors_of(pair), now)


@dataclass(frozen=True)
class _Memory:
    """Where parameters and buffers lie, which graphs of steps read and change.

    Attributes:
        buffers: each with the dict that holds it and its name there.
        places: every parameter and buffer, with another tensor of the same memory.
    """

    buffers: list[tuple[dict[str, Tensor | None], str, Tensor]]
    places: list[tuple[Tensor, Tensor]]

    @classmethod
    def of(cls, state: State) -> _Memory:
        buffers = [(held, name, b) for held, name in state.buffers if (b := held[name]) is not None]
        tensors = [*{*state.parameters, *state.pair.parameters()}, *(b for *_, b in buffers)]
        return cls(buffers, [(tensor, tensor.detach()) for tensor in tensors])

    def keep(self) -> None:
        """Move values that lie elsewhere now, as after ``p.data = …``, back into this memory.

        Raises:
            ValueError: their shape or dtype is another.
        """
        for held, name, buffer in self.buffers:
            if (new := held[name]) is not None and new is not buffer:
                buffer.data, held[name] = new, buffer
        for tensor, here in self.places:
            if (tensor.shape, tensor.dtype) != (here.shape, here.dtype):
                raise bad_value(
                    "callbacks",
                    f"parameters and buffers that keep their shape and dtype, such as {tuple(here.shape)}, {here.dtype}",
                    f"{tuple(tensor.shape)}, {tensor.dtype}",
                    "To change them, return True, change the pair, and call fit again.",
                )
            if (tensor.data_ptr(), tensor.stride()) != (here.data_ptr(), here.stride()):
                tensor.data = here.copy_(tensor.detach().clone())


def _comparisons(steps: int) -> int:
    """Return how often a fit of so many steps compares its trace with Pyro, if no code of others runs between them.

    A comparison costs as much as some 40 small steps.
    """
    return steps // _COMPARED + sum(steps >= _COMPARED >> halved for halved in range(1, 5))


def _load_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load an optimizer's ``state_dict()``, each tensor in its own dtype: torch casts them to those of the parameters."""
    optimizer.load_state_dict(state)
    for group, saved in zip(optimizer.param_groups, state["param_groups"], strict=True):
        for parameter, number in zip(group["params"], saved["params"], strict=True):
            for name, value in state["state"].get(number, {}).items():
                now = optimizer.state[parameter][name]
                if isinstance(value, Tensor) and now.dtype != value.dtype:
                    optimizer.state[parameter][name] = value.to(now.device).clone()


def _copies(pair: LatentVariableModel) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in saving.tensors_of(pair).items()}


def _copy(into: dict[str, Tensor], tensors: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, tensor in into.items():
            tensor.copy_(tensors[name])


def _asked_to_stop(callback: Callback, record: dict[str, float], pair: LatentVariableModel) -> bool:
    """Call a callback and return whether it stops the fit; raise ``TypeError`` unless it returns None or a bool."""
    answer = callback(record, pair)
    return answer is not None and arguments.boolean("what a callback returns", answer)


def _check_names(pair: LatentVariableModel, before: dict[str, torch.Size]) -> None:
    """Raise ``ValueError`` if parameters or buffers of a pair have other names or shapes than before its callbacks.

    A callback that runs the pair may declare further parameters of plain functions.
    """
    now = {name: tensor.shape for name, tensor in saving.tensors_of(pair).items()}
    found = {
        "removed": [name for name in before if name not in now],
        "added": [name for name in now if name not in before and not name.startswith("store:")],
        "reshaped": [name for name, shape in now.items() if before.get(name, shape) != shape],
    }
    came = [
        f"{len(names)} {what}, first {names[0].removeprefix('pair:')!r}"
        for what, names in found.items()
        if names
    ]
    if came:
        raise bad_value(
            "callbacks",
            "callbacks that leave the names and shapes of parameters and buffers as they are",
            "; ".join(came),
            "To replace or remove a part of a network, such as a parametrisation, change the pair after fit, and call fit again.",
        )


def _check_all_are_trained(state: State) -> None:
    """Raise ``ValueError`` if the pair has parameters with gradients that the optimizer does not update."""
    trained = {id(p) for p in state.parameters}
    new = [n for n, p in state.pair.named_parameters() if p.requires_grad and id(p) not in trained]
    if new:
        raise bad_value(
            "callbacks",
            "callbacks that leave the parameters to train as they were when fit began, or freeze some",
            f"{len(new)} that fit does not train, first {new[0]!r}",
            "To unfreeze parameters or replace a network, return True, change the pair, and call fit again.",
        )
