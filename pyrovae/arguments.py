"""Checks of arguments: numbers, choices, paths and options. Each raises an error for a bad value; most return the checked one."""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrovae.refusals import bad_type, bad_value, shown

# Upper limits of counts and widths, and of seeds. Beyond 64 bits, torch and numpy raise overflow errors of their own.
# No memory holds more rows or columns than the first limit.
_MOST_COUNT, _MOST_SEED = 2**31 - 1, 2**64 - 1


def integer(argument: str, value: Any, minimum: int = 1) -> int:
    """Return ``value`` as an int of at least ``minimum``; raise ``TypeError`` or ``ValueError`` otherwise.

    Integers of Python and numpy are accepted. Bools and floats are not, even if a float is whole. Tensors and arrays
    of one number are not accepted either: the caller has to convert them with ``.item()``.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise bad_type(argument, f"a whole number ≥ {minimum}", shown(value), "Pass an int.")
    if value < minimum:
        raise bad_value(argument, f"a whole number ≥ {minimum}", str(value), f"Pass at least {minimum}.")
    most = _MOST_COUNT if minimum else _MOST_SEED
    if value > most:
        raise bad_value(
            argument, f"a whole number ≥ {minimum} and ≤ {most}", shown(value), "Pass a smaller one."
        )
    return int(value)


def boolean(argument: str, value: Any) -> bool:
    """Return ``value`` as a bool if it is True or False; raise ``TypeError`` otherwise."""
    if not isinstance(value, (bool, np.bool_)):
        raise bad_type(argument, "True or False", shown(value), "Pass a bool.")
    return bool(value)


def number(argument: str, value: Any, expected: str = "a finite number") -> float:
    """Return ``value`` as a finite float; raise ``TypeError`` or ``ValueError`` otherwise.

    Integers and floats of Python and numpy are accepted. As in ``integer``, bools, tensors and arrays are not.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise bad_type(argument, expected, shown(value), "Pass a float.")
    try:
        found = float(value)
    except OverflowError:  # a Python int that is too large for a float
        found = math.inf
    if not math.isfinite(found):
        raise bad_value(argument, expected, shown(value), "Pass one that is neither NaN nor infinite.")
    return found


def positive(argument: str, value: Any, or_zero: bool = False) -> float:
    """Return ``value`` as a finite float > 0, or ≥ 0 if ``or_zero``; raise ``TypeError`` or ``ValueError`` otherwise."""
    sign = "≥ 0" if or_zero else "> 0"
    found = number(argument, value, f"a finite number {sign}")
    if found < 0 or (found == 0 and not or_zero):
        raise bad_value(argument, f"a finite number {sign}", shown(value), "Pass a positive float.")
    return found


def per_column(argument: str, value: Any, check: Callable[[str, Any], float]) -> None:
    """Raise an error unless ``value`` is a number or a sequence of numbers, one for each column.

    ``check`` is called with the argument and each number, and raises ``TypeError`` or ``ValueError`` for a bad one.
    """
    if isinstance(value, np.ndarray | Tensor) and value.ndim == 1:
        value = value.tolist()
    each = value if isinstance(value, Sequence) and not isinstance(value, str | bytes) else [value]
    if not len(each):
        raise bad_value(argument, "a number, or one a column", "none", "Pass a single number.")
    for entry in each:
        check(argument, entry)


def choice(argument: str, value: Any, options: tuple[str, ...]) -> str:
    """Return ``value`` if it is one of ``options``; raise ``TypeError`` or ``ValueError`` that lists them otherwise."""
    if not isinstance(value, str) or value not in options:
        error = bad_value if isinstance(value, str) else bad_type
        listed = ", ".join(repr(option) for option in options)
        raise error(argument, f"one of {listed}", shown(value), "Pass one of these names.")
    return str(value)


def compile(value: Any) -> None:
    """Raise ``TypeError`` or ``ValueError`` if the argument ``compile`` is neither a bool nor "auto"."""
    if not isinstance(value, bool) and not (isinstance(value, str) and value == "auto"):
        error = bad_value if isinstance(value, str) else bad_type
        raise error("compile", "True, False or 'auto'", shown(value), "Pass one of these.")


def path(argument: str, value: Any) -> Path:
    """Return ``value`` as a path, which need not exist; raise ``TypeError`` or ``ValueError`` if it is none."""
    if not isinstance(value, str | os.PathLike):
        raise bad_type(argument, "a path", shown(value), 'Pass a string such as "runs/a", or a Path.')
    text = os.fspath(value)
    if not isinstance(text, str) or not text or "\0" in text:
        raise bad_value(argument, "the name of a file or folder", shown(value), 'Pass one such as "runs/a".')
    return Path(text)


def tile(value: Any) -> tuple[int, int]:
    """Return ``value`` as (rows, samples), two ints ≥ 1; raise ``TypeError`` or ``ValueError`` otherwise."""
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise bad_type("tile", "a pair (rows, samples)", shown(value), "Pass two whole numbers.")
    return integer("tile", value[0]), integer("tile", value[1])


def options(
    name: str,
    function: Callable[..., Any],
    given: Mapping[str, Any],
    taken: tuple[str, ...],
    example: str = "{}=…",
    argument: str | None = None,
) -> None:
    """Raise ``TypeError`` if ``function`` lacks a given option, or if a required option is missing.

    The options of ``function`` are its parameters except those named in ``taken``. ``example`` shows how to pass one, with
    its name for {}. ``argument`` is the argument that lacks a required one; None names the option itself.
    """
    parameters = inspect.signature(function).parameters
    known = [option for option in parameters if option not in taken]
    for option in given:
        if option not in known:
            raise bad_type(
                option,
                f"an option of {name}: {', '.join(known) or 'none'}",
                f"{option}={given[option]!r}",
                "Pass one of these, or leave it out.",
            )
    for option in known:
        if option not in given and parameters[option].default is inspect.Parameter.empty:
            expected = f"{name} with a value for {'it' if argument is None else option}"
            raise bad_type(argument or option, expected, "none", f"Pass {example.format(option)}.")


def module(argument: str, value: Any) -> torch.nn.Module:
    """Return ``value`` if it is a torch module; raise ``TypeError`` otherwise."""
    if not isinstance(value, torch.nn.Module):
        raise bad_type(argument, "a torch module", shown(value), "Pass a network such as pyrovae.MLP.")
    return value


def image_shape(argument: str, shape: Any) -> tuple[int, int]:
    """Return the height and the width of images; raise for anything but two whole numbers."""
    if not isinstance(shape, tuple | list) or len(shape) != 2:
        raise bad_type(argument, "(height, width)", shown(shape), "Pass two whole numbers.")
    height, width = (integer(argument, side) for side in shape)
    return height, width
