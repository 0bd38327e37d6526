"""Fits as each tool has them: the steps of ``pv.fit`` an epoch at a time, and whole fits until a validation ELBO."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from harness import optional
from peers import LARGE, LEARNING_RATE, SMALL, Nets, PyroTraining
from pyro.infer import ELBO, TraceMeanField_ELBO
from torch import Tensor

import pyrovae as pv
import pyrovae.training.loop
from pyrovae.progress import Progress

numpyro, pythae = optional("peers_jax"), optional("peers_pythae")


class Fitting:
    """The steps of ``pv.fit``, an epoch at a time, without its evaluation of the ELBO after every epoch.

    ``fit`` itself makes its loop, which is kept instead of run, and then taken up again for each epoch.
    """

    def __init__(self, vae: pv.VAE, rows: Tensor, batch_size: int, **options: Any) -> None:
        made: list[Any] = []
        with mock.patch.object(pyrovae.training.loop.Loop, "run", lambda loop, *_: made.append(loop)):
            pv.fit(vae, rows, epochs=1, batch_size=batch_size, lr=LEARNING_RATE, **options)
        self._loop = made[0]
        self._loop._evaluate = lambda *_: {"elbo": math.nan}
        self._epochs = 0

    def epoch(self) -> float:
        self._epochs += 1
        self._loop._plan = dataclasses.replace(self._loop._plan, epochs=self._epochs)
        self._loop._finished = False
        with Progress("fit", 1, "steps", False) as bar:
            self._loop.run(bar)
        return float(self._loop.history.records[-1]["loss"])


@dataclass(frozen=True)
class Task:
    """Rows to fit to and to validate on; the target is what Pyro reaches after ``epochs``.

    A fit may take twice as many, which is what it is told.
    """

    title: str
    nets: Nets
    batch_size: int
    epochs: int
    rounds: int

    def data(self) -> tuple[Tensor, Tensor]:
        split = pv.datasets.digits() if self.nets.data_dim == 64 else pv.datasets.binarized_mnist()
        return split.train, split.validation


TASKS = (Task("digits", SMALL, 64, epochs=60, rounds=3), Task("MNIST", LARGE, 128, epochs=20, rounds=3))
Done = Callable[[float], bool]


def fit_by_pyrovae(
    task: Task, rows: Tensor, validation: Tensor, seed: int, done: Done, loss: ELBO | None = None
) -> None:
    """The public way, stopped as by Ctrl-C after the epoch that reaches the target."""
    end_epoch = pyrovae.training.loop.Loop._end_epoch

    def stopping(loop: Any, *arguments: Any) -> None:
        end_epoch(loop, *arguments)
        if done(loop.history.records[-1]["validation_elbo"]):
            raise KeyboardInterrupt

    with mock.patch.object(pyrovae.training.loop.Loop, "_end_epoch", stopping):
        pv.fit(
            task.nets.vae(),
            rows,
            epochs=2 * task.epochs,
            batch_size=task.batch_size,
            lr=LEARNING_RATE,
            seed=seed,
            validation=validation,
            loss=loss,
        )


def fit_by_pyro(task: Task, rows: Tensor, validation: Tensor, seed: int, done: Done) -> None:
    torch.manual_seed(seed)
    _until(PyroTraining(task.nets.vae(), rows, task.batch_size), task, validation, done)


def fit_by_numpyro(task: Task, rows: Tensor, validation: Tensor, seed: int, done: Done) -> None:
    assert numpyro is not None
    _until(numpyro.NumPyroTraining(task.nets.vae(), rows, task.batch_size, 2 * seed), task, validation, done)


def fit_by_pythae(task: Task, rows: Tensor, validation: Tensor, seed: int, done: Done) -> None:
    assert pythae is not None
    pythae.train_until(task.nets.vae(), rows, validation, task.batch_size, 2 * task.epochs, seed, done)


def _until(training: Any, task: Task, validation: Tensor, done: Done) -> None:
    """Epoch after epoch, each followed by the ELBO of the validation rows, one draw a row."""
    for _ in range(2 * task.epochs):
        training.epoch()
        if done(training.elbo(validation)):
            break


TOOLS: dict[str, Callable[[Task, Tensor, Tensor, int, Done], None]] = {
    "pyrovae": fit_by_pyrovae,
    "pyrovae, exact KL": functools.partial(fit_by_pyrovae, loss=TraceMeanField_ELBO()),
    "Pyro SVI": fit_by_pyro,
    "pythae": fit_by_pythae,
    "NumPyro": fit_by_numpyro,
}


def compile_once(machine: str) -> float:
    """Seconds of the first graph that is compiled on a machine, in a process of its own.

    What inductor finds out and keeps, of the processor's instructions and of torch's headers, is in the folder then.
    """
    tempfile.tempdir = os.environ["TORCHINDUCTOR_CACHE_DIR"] = machine
    started = time.perf_counter()
    torch.compile(torch.exp, options={"cpp_wrapper": True})(torch.zeros(100))
    return time.perf_counter() - started


def curve(
    tool: str, task: Task, seed: int, target: float, epochs: int, machine: str | None = None
) -> tuple[float, list[float]]:
    """Seconds of a fit, and its validation ELBO epoch by epoch until the target or so many epochs.

    In a process of its own. The clock starts when the rows are there and everything is imported; inductor has no
    compiled graphs from before, and knows of the machine what ``compile_once`` left, or nothing.
    """
    found: list[float] = []

    def done(elbo: float) -> bool:
        found.append(elbo)
        return elbo >= target or len(found) >= epochs

    rows, validation = task.data()
    with tempfile.TemporaryDirectory() as folder:
        if machine is not None:
            shutil.copytree(machine, folder, dirs_exist_ok=True)
        tempfile.tempdir = machine or folder  # under which inductor keeps the headers that it has compiled
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        started = time.perf_counter()
        TOOLS[tool](task, rows, validation, seed, done)
        return time.perf_counter() - started, found
