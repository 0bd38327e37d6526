"""Calls from several threads take turns: one lock around what Pyro and torch keep once a process.

Pyro has one stack of handlers, one parameter store in use and one switch for its checks; torch has one default
generator, one default dtype and one precision of products. A public function borrows them, and a pair's training
mode, for as long as it runs.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import ParamSpec, TypeVar

import torch

from pyrovae import checks

P = ParamSpec("P")
R = TypeVar("R")

_lock = threading.RLock()


def takes_turns(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator of public functions: one thread at a time, outside ``torch.inference_mode`` and ``torch.autocast``.

    Inference mode has no gradients, which half of the estimators need. Autocast would round the products of every
    network to 8 bits. A function may call others like it.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with _lock, _plain_torch():
            return function(*args, **kwargs)

    return call


@contextmanager
def _plain_torch() -> Iterator[None]:
    """Run a block outside inference mode and autocast; refuses other tensors of the user's that were made inside."""
    with ExitStack() as modes:
        if torch.is_inference_mode_enabled():
            modes.enter_context(torch.inference_mode(False))
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                modes.enter_context(torch.autocast(device, enabled=False))
        try:
            yield
        except RuntimeError as error:
            if "nference tensor" not in str(error):
                raise
            raise checks.bad_value(
                "model",
                "tensors that were made outside torch.inference_mode()",
                f"one made inside: {str(error).partition('. ')[0]}",
                "Make the tensors of the model outside, or clone them there.",
            ) from error


def _after_fork() -> None:
    """A child has the lock as its parent held it, but not the thread that would release it."""
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):  # there is none on Windows, which has no fork
    os.register_at_fork(after_in_child=_after_fork)
