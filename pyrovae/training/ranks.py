"""The ranks of a fit: the processes that ``torch.distributed`` connects, each with a part of every minibatch."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from pyrovae.checkpoints import StopRequest, unlike
from pyrovae.refusals import bad_value

T = TypeVar("T")

_ALONE: ContextVar[bool] = ContextVar("alone", default=False)

_RESUMES = "With a checkpoint, the same call resumes."

# Seconds in which a rank answers the others after an error of torch.distributed.
_ANSWER = 10.0
# Seconds in which the ranks, which have all called fit, connect for that.
_CONNECTED = 60.0


@contextmanager
def alone() -> Iterator[None]:
    """Run a block whose fits are those of this process alone, though other ranks do not call them."""
    token = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(token)


class RankFailed(RuntimeError):
    """Another rank failed, died or hangs. The parameters are as before the step."""


class Ranks:
    """Communication between the ranks of a fit. One process communicates nothing.

    All ranks make the same calls in the same order. A rank that fails joins the next call of the others to tell them.

    Attributes:
        size: how many ranks there are.
        rank: the number of this one.
        asked: whether a signal has asked this rank to stop.
        not_finite: the ranks with the values of the last step that was not finite.
        zeros: a vector as ``sum`` takes, with which a rank that fails takes part.

    Raises:
        RankFailed: a rank has ended, or does not call this for the timeout of the default group.
    """

    def __init__(self) -> None:
        known = dist.is_available() and dist.is_initialized() and not _ALONE.get()
        several = known and dist.get_world_size() > 1
        self.size, self.rank = (dist.get_world_size(), dist.get_rank()) if several else (1, 0)
        self.asked = StopRequest()
        self._one_asked = False
        self.not_finite: list[int] = []
        self._summed, self.zeros = False, torch.zeros(0)
        self._reported: Exception | None = None
        # After an error the default group is unusable; this group finds the rank that failed.
        self._error_group: dist.ProcessGroup | None = None
        if several:
            self.exchange(None)  # new_group itself would wait for an absent rank for half an hour
            timeout = timedelta(seconds=_CONNECTED)
            self._error_group = self._call(lambda: dist.new_group(backend="gloo", timeout=timeout))

    def close(self) -> None:
        if self._error_group is not None:
            dist.destroy_process_group(self._error_group)

    @property
    def stopping(self) -> bool:
        """Whether a rank has been asked to stop; all ranks learn of it in the same step."""
        return self.asked.by is not None if self.size == 1 else self._one_asked

    def part(self, size: int) -> slice:
        """Return which of ``size`` rows belong to this rank; their numbers differ by at most 1 between ranks."""
        return slice(self.rank * size // self.size, (self.rank + 1) * size // self.size)

    def exchange(self, value: T, error: str | None = None) -> list[T]:
        """Return the values of all ranks, in order; ``error`` says why this one fails.

        Raises:
            RankFailed: another rank fails.
        """
        if self.size == 1:
            return [value]
        told: list[Any] = [None] * self.size
        self._call(lambda: dist.all_gather_object(told, (error, value)))
        failed = [f"rank {rank}: {text}" for rank, (text, _) in enumerate(told) if text is not None]
        if failed and error is None:
            raise RankFailed(
                f"fit: expected all {self.size} ranks to go on, got {'; '.join(failed).rstrip('.')}. "
                f"Correct that error, then start all ranks again. {_RESUMES}"
            )
        return [each for _, each in told]

    def broadcast(self, value: T) -> T:
        """Return the value of rank 0."""
        held = [value]
        if self.size > 1:
            self._call(lambda: dist.broadcast_object_list(held, src=0))
        return held[0]

    def broadcast_parameters(self, tensors: Mapping[str, Tensor]) -> None:
        """Give tensors the bits of rank 0, from which processors of other types or callbacks may deviate."""
        for tensor in tensors.values() if self.size > 1 else ():
            first = tensor.detach().contiguous()
            self._call(functools.partial(dist.broadcast, first, src=0))
            tensor.detach().copy_(first)

    def sum(self, values: Tensor | None) -> Tensor:
        """Return the sum of a vector over the ranks; None takes part for a rank that fails.

        Raises:
            RankFailed: another rank fails.
        """
        failed = values is None
        values = self.zeros if values is None else values
        flags = values.new_tensor([float(failed), float(self.asked.by is not None)])
        total = torch.cat([values, flags])
        self._call(lambda: dist.all_reduce(total))
        self._summed = True
        failures, asked = total[-2:].tolist()
        self._one_asked = self._one_asked or asked > 0
        if failures and not failed:
            self.exchange(None)
        return total[:-2]

    @contextmanager
    def reporting_errors(self, step: bool = False) -> Iterator[None]:
        """Run a block that ends with ``exchange``, or a ``step``, which ends with ``sum``; tell other ranks of its errors."""
        self._summed = False
        try:
            yield
        except RankFailed:
            raise
        except Exception as error:
            if self.size > 1 and error is not self._reported and not (step and self._summed):
                self._reported = error
                if step:
                    self.sum(None)
                self.exchange(None, f"{type(error).__name__}: {error}")
            raise

    def check_alike(self, values: Mapping[str, Any], fix: str) -> None:
        """Raise ``ValueError`` if the ranks have different values; the message names the first, and the rank.

        Args:
            values: of this rank, by name.
            fix: how to make them the same, as sentences.
        """
        told = self.exchange(dict(values))
        for rank, those in enumerate(told):
            for name in {**told[0], **those}:
                if told[0].get(name) != those.get(name):
                    here, first = unlike(those.get(name), told[0].get(name))
                    raise bad_value(
                        name,
                        "the same on all ranks of torch.distributed",
                        f"{here} on rank {rank}, {first} on rank 0",
                        fix,
                    )

    def _call(self, collective: Callable[[], T]) -> T:
        try:
            return collective()
        except RuntimeError as error:
            raise RankFailed(
                f"fit: expected all {self.size} ranks to go on, got {self._failed_ranks()}. "
                f"Look at the output of that rank, then start all ranks again. {_RESUMES}"
            ) from error

    def _failed_ranks(self) -> str:
        """Return which ranks have ended or, if none has, do not answer."""
        if self._error_group is None:
            return "a rank that has ended or has not called fit"
        calls: dict[int, Any] = {}
        ended, silent = list[int](), list[int]()
        deadline = time.monotonic() + _ANSWER
        for rank in {*range(self.size)} - {self.rank}:
            try:
                dist.isend(torch.zeros(1), rank, self._error_group)
                calls[rank] = dist.irecv(torch.zeros(1), rank, self._error_group)
            except RuntimeError:
                ended.append(rank)
        for rank, call in calls.items():
            try:
                call.wait(timedelta(seconds=max(0.1, deadline - time.monotonic())))
            except RuntimeError:
                (silent if time.monotonic() >= deadline else ended).append(rank)
        ranks = [f"rank {rank}" for rank in sorted(ended or silent)]
        if not ranks:
            return "an error"
        several = len(ranks) > 1  # ranks that noticed earlier may have ended, too
        what = (
            ("have ended" if several else "has ended")
            if ended
            else "do not answer"
            if several
            else "does not answer"
        )
        return f"{' and '.join(ranks)}, which {what}"
