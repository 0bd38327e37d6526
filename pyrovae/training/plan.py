"""Plan: the arguments of ``fit`` that decide its steps, and what a checkpoint pins of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import torch
from pyro.infer import ELBO
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from pyrovae import arguments
from pyrovae.refusals import bad_value
from pyrovae.training.answers import described, described_optimizer

Optimizer = Callable[..., torch.optim.Optimizer]
Scheduler = LRScheduler | ReduceLROnPlateau
#: The default of ``epochs`` is as many as make _STEPS steps, within these two. With more than 500, intervals of two hundred rows
#: become too narrow.
_STEPS, _FEWEST_EPOCHS, MOST_EPOCHS = 5000, 50, 500
#: Epochs for one of warm-up by default.
_WARM = 10
#: A checkpoint stores what is made of these, not the arguments.
_MAKERS = ("loss", "optimizer", "scheduler", "num_particles")


class Defaults(NamedTuple):
    """Whether the plan gets the default number of epochs, and the default warm-up of tables, once the rows are known."""

    epochs: bool
    warmup: bool


@dataclass(frozen=True)
class Plan:
    """The arguments of ``fit`` that decide its steps; ``fit`` describes them.

    Numbers and choices are checked here, the rest in ``prepare`` and ``fit``.

    Raises:
        TypeError, ValueError: an argument is wrong.
    """

    epochs: int
    batch_size: int
    lr: float
    seed: int
    loss: ELBO | None
    optimizer: Optimizer
    scheduler: Callable[[torch.optim.Optimizer], Scheduler] | None
    num_particles: int
    kl_warmup: int
    patience: int | None
    clip_norm: float | None
    on_nonfinite: str
    compile: str | bool
    precision: str
    binarize: bool

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "num_particles"):
            arguments.integer(name, getattr(self, name))
        for name in ("seed", "kl_warmup"):
            arguments.integer(name, getattr(self, name), minimum=0)
        arguments.positive("lr", self.lr)
        if self.clip_norm is not None:
            arguments.positive("clip_norm", self.clip_norm)
        if self.patience is not None:
            arguments.integer("patience", self.patience)
        if self.kl_warmup >= self.epochs:
            raise bad_value(
                "kl_warmup",
                f"fewer epochs than the fit has ({self.epochs}), so that the last epochs train on the bound itself",
                str(self.kl_warmup),
                "Shorten the warm-up or train longer.",
            )
        arguments.choice("on_nonfinite", self.on_nonfinite, ("raise", "skip"))
        arguments.compile(self.compile)
        arguments.boolean("binarize", self.binarize)

    def with_default_epochs(self, steps_an_epoch: int) -> Plan:
        """Return the plan with the default number of epochs for so many steps in each."""
        enough = min(math.ceil(_STEPS / steps_an_epoch), MOST_EPOCHS)
        return replace(self, epochs=max(_FEWEST_EPOCHS, enough))

    def with_default_warmup(self) -> Plan:
        """Return the plan with the default warm-up of tables."""
        return replace(self, kl_warmup=self.epochs // _WARM)

    def pins(
        self, objective: ELBO, optimizer: torch.optim.Optimizer, schedule: Scheduler | None
    ) -> dict[str, Any]:
        """Return what a resumed fit has to match; objective, optimizer and schedule are those made from the plan."""
        return {
            **{f.name: getattr(self, f.name) for f in fields(self) if f.name not in _MAKERS},
            "lr": float(self.lr),
            "loss": described(objective, self.epochs),
            "optimizer": described_optimizer(optimizer),
            "scheduler": None if schedule is None else described(schedule, self.epochs),
        }
