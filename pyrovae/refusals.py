"""The wording of errors. Every error for user input has the same four parts.

Each message names the argument, the expected value, the value that came and how to fix it. If several entries
are bad, it gives their count and the position of the first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch


def refusal(argument: str, expected: str, came: str, fix: str) -> str:
    """Return the text of an error message: argument, expected value, value that came, fix."""
    return f"{argument}: expected {expected}, got {came}. {fix}"


class Refused(ValueError):
    """Raised for a value that cannot be used; its message says why and how to fix it."""

    argument = ""  # the name that the message begins with


class RefusedType(TypeError):
    """Raised for an object of the wrong type; its message says why and how to fix it."""

    argument = ""


def bad_value(argument: str, expected: str, came: str, fix: str) -> Refused:
    """Return the ``ValueError`` to raise for a value that cannot be used."""
    error = Refused(refusal(argument, expected, came, fix))
    error.argument = argument
    return error


def bad_type(argument: str, expected: str, came: str, fix: str) -> RefusedType:
    """Return the ``TypeError`` to raise for an object of the wrong type."""
    error = RefusedType(refusal(argument, expected, came, fix))
    error.argument = argument
    return error


def shown(value: Any) -> str:
    """Return a value as it appears in a message: its repr, cut to at most 60 characters, and its type."""
    text = " ".join(repr(value).split())
    return f"{text if len(text) <= 60 else text[:57] + '…'} ({type(value).__name__})"


def column_of(number: int, names: Sequence[Any] | None = None) -> str:
    """Return a column in words: "column 5", or "column 'age'" if columns have names."""
    return f"column {names[number]!r}" if names else f"column {number}"


def place(position: list[int], names: Sequence[Any] | None = None) -> str:
    """Return the position of an entry in words, such as "row 3, column 5"; ``names`` are those of columns."""
    if len(position) == 1:
        return f"row {position[0]}"
    if len(position) == 2:
        return f"row {position[0]}, {column_of(position[1], names)}"
    return f"row {position[0]}, position {tuple(position[1:])}"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type if it has none; without the values that torch appends."""
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return line.removesuffix(", but found invalid values:")


def failure(error: Exception) -> str:
    """Return why the user's model failed, in a line without the advice; raise the error again if memory ran out."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        raise error
    if isinstance(error, Refused):
        return str(error).rpartition(". ")[0] or str(error)
    return f"{type(error).__name__}: {first_line(error)}"


@contextmanager
def parameters_hold(argument: str = "x", fix: Callable[[], str] | None = None) -> Iterator[None]:
    """Run a block in which networks see ``argument``; raise ``ValueError`` if their outputs are invalid parameters.

    The distribution's own error is replaced by one that names ``argument``. ``fix`` returns the advice in the message,
    such as ``LatentVariableModel.fix_of_scales`` does.
    """
    try:
        yield
    except ValueError as error:
        if isinstance(error, Refused) or "satisfy the constraint" not in str(error):
            raise
        raise bad_value(
            argument,
            "rows of a size that the networks can take",
            first_line(error),
            (fix and fix()) or "Look for rows far from the rest; in training lower lr or set clip_norm.",
        ) from error
