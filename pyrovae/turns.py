"""One lock for calls from several threads, around state that Pyro and torch have once in a process.

Pyro has one stack of handlers, one active parameter store and one switch for its checks. torch has one default
generator, one default dtype and one precision of products. A public function changes these, and a pair's training
mode, while it runs.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import ParamSpec, TypeVar

import torch

from pyrovae.refusals import bad_value

P = ParamSpec("P")
R = TypeVar("R")

_lock = threading.RLock()


def takes_turns(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a public function to run in one thread at a time, outside ``torch.inference_mode`` and autocast.

    Inference mode has no gradients, which half of the estimators need. Autocast would round the products of every
    network to 8 bits. Decorated functions may call each other.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with _lock, _plain_torch():
            return function(*args, **kwargs)

    return call


@contextmanager
def _plain_torch() -> Iterator[None]:
    """Run a block outside inference mode and autocast; raises ``ValueError`` for tensors made in inference mode."""
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
            raise bad_value(
                "model",
                "tensors that were made outside torch.inference_mode()",
                f"one made inside: {str(error).partition('. ')[0]}",
                "Make the tensors of the model outside, or clone them there.",
            ) from error


def _after_fork() -> None:
    """Replace the lock in a forked child, which has no thread that could release it."""
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):  # there is none on Windows, which has no fork
    os.register_at_fork(after_in_child=_after_fork)
