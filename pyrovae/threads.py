"""How many of torch's threads a computation uses, and torch's setting of it, for a block.

The threads of one operation wait for each other at its end. If another program runs on one of their cores, all wait until
the operating system runs the last thread: some 4 to 30 ms for each operation, where the operation itself may take 0.05.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

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

    ``torch.set_num_threads`` sets the calling thread, and the default of threads that have not used torch yet. Another
    thread restores that default at once, so that only the calling thread changes.
    """
    before = torch.get_num_threads()
    if number >= before:
        yield
        return
    torch.set_num_threads(number)
    try:
        other = threading.Thread(target=torch.set_num_threads, args=(before,))
        other.start()
        other.join()
        yield
    finally:
        torch.set_num_threads(before)
