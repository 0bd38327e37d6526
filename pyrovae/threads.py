"""How many of torch's threads a computation uses, and torch's setting of it, for a block.

The threads of one operation wait for each other at its end. If another program runs on one of their cores, all wait until
the operating system runs the last thread. The wait is some 4 to 30 ms for each operation, which itself may take 0.05.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

T = TypeVar("T")

# Measured by benchmarks/threads.py. An additional thread pays from this many multiply-adds of a forward pass on.
_EACH = 1 << 23


def fitting(work: float) -> int:
    """Return the number of threads for a computation, at most ``torch.get_num_threads()``.

    It depends on neither a clock nor the machine's load, because the number of threads can change bits.

    Args:
        work: multiply-adds of a forward pass.

    Example:
        >>> fitting(64 * 10_000)  # 64 rows, 10 000 weights
        1
    """
    return max(1, min(torch.get_num_threads(), int(work) // _EACH))


@contextmanager
def using(number: int) -> Iterator[None]:
    """Run a block in which this thread's operations use at most ``number`` of torch's threads.

    ``torch.set_num_threads`` sets the calling thread, and the default of threads that have not used torch yet. A new
    thread restores that default at once, so that only the calling thread changes.
    """
    before = torch.get_num_threads()
    if number >= before:
        yield
        return
    _set(number)
    try:
        yield
    finally:
        _set(before)


def _set(number: int) -> None:
    """Set the number of threads of the calling thread alone."""
    default = _in_a_new_thread(torch.get_num_threads)
    torch.set_num_threads(number)
    _in_a_new_thread(lambda: torch.set_num_threads(default))


def _in_a_new_thread(call: Callable[[], T]) -> T:
    with ThreadPoolExecutor(1) as new:
        return new.submit(call).result()
