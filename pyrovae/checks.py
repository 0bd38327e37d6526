"""Checks of user input. They raise every error with the same wording.

Each message names the argument, the expected value, the value that came and how to fix it. If several entries
are bad, it gives their count and the position of the first.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import constraints

from pyrovae import chunks, frames, rounding

if TYPE_CHECKING:
    from torch.distributions.constraints import Constraint


def refusal(argument: str, expected: str, came: str, mend: str) -> str:
    """Return the text of an error message: argument, expected value, value that came, fix."""
    return f"{argument}: expected {expected}, got {came}. {mend}"


class Refused(ValueError):
    """Raised for a value that cannot be used; its message says why and how to fix it."""


def bad_value(argument: str, expected: str, came: str, mend: str) -> Refused:
    """Return the ``ValueError`` to raise for a value that cannot be used."""
    return Refused(refusal(argument, expected, came, mend))


def bad_type(argument: str, expected: str, came: str, mend: str) -> TypeError:
    """Return the ``TypeError`` to raise for an object of the wrong type."""
    return TypeError(refusal(argument, expected, came, mend))


def shown(value: Any) -> str:
    """Return a value as it appears in a message: its repr, cut to at most 60 characters, and its type."""
    text = " ".join(repr(value).split())
    return f"{text if len(text) <= 60 else text[:57] + '…'} ({type(value).__name__})"


#: The dtypes that log P(x) is computed in. In 16-bit dtypes, sums over columns have errors of nats.
FLOATS = (torch.float32, torch.float64)

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
            str(error).splitlines()[0].removesuffix(", but found invalid values:"),
            (fix and fix()) or "Look for rows far from the rest; in training lower lr or set clip_norm.",
        ) from error


def sizes(x: Tensor) -> tuple[float, float]:
    """Return the root mean squares of the smallest and largest columns, without columns of zeros; else (1.0, 1.0)."""
    size = x.detach().double().reshape(len(x), -1).square().mean(dim=0).sqrt()
    size = size[size > 0]
    return (float(size.min()), float(size.max())) if len(size) else (1.0, 1.0)


def largest(x: Tensor) -> tuple[int, int, float]:
    """Return the row, column and value of the entry with the largest absolute value, in flattened rows."""
    rows = x.detach().reshape(len(x), -1)
    place = int(rows.abs().argmax())
    row, column = divmod(place, rows.shape[1])
    return row, column, float(rows[row, column])


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
    name: str, function: Callable[..., Any], given: Mapping[str, Any], taken: tuple[str, ...]
) -> None:
    """Raise ``TypeError`` if ``function`` lacks a given option, or if a required option is missing.

    The options of ``function`` are its parameters except those named in ``taken``.
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
            raise bad_type(option, f"{name} with a value for it", "none", f"Pass {option}=….")


def module(argument: str, value: Any) -> torch.nn.Module:
    """Return ``value`` if it is a torch module; raise ``TypeError`` otherwise."""
    if not isinstance(value, torch.nn.Module):
        raise bad_type(argument, "a torch module", shown(value), "Pass a network such as pyrovae.MLP.")
    return value


def rows(
    x: Any, *, dtype: torch.dtype | None, device: torch.device | None = None, argument: str = "x"
) -> Tensor:
    """Return ``x`` as a float tensor with rows on dim 0, every entry finite, on ``device``.

    Arrays, frames and whole-number tensors are cast to ``dtype``. A float tensor must have that dtype already. If
    ``dtype`` is None, a float tensor keeps its dtype and everything else gets torch's default dtype. An array of that
    dtype is not copied, even if it is read-only, so a ``numpy.memmap`` stays on the disk. An array of another dtype is
    cast as a whole, in memory.

    Raises:
        TypeError: strings, objects, complex numbers, lists, a float tensor of another dtype.
        ValueError: no rows, no columns, NaN or ±inf (with count and first position); a cast that loses more than
            rounding (see ``rounding.cast``).
    """
    return _rows(x, dtype, device, argument)[0]


def in_double(x: Any) -> Any:
    """Return ``x`` with its float tensors in float64, for code that computes in float64; chunks are joined."""
    x = _whole(x, "x")
    if isinstance(x, Mapping):
        return {name: in_double(value) for name, value in x.items()}
    return x.double() if isinstance(x, Tensor) and x.dtype in FLOATS else x


def _rows(
    x: Any,
    dtype: torch.dtype | None,
    device: torch.device | None,
    argument: str,
    double: str = "never",
    spread: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return ``rows``, and the same rows before the cast; ``double`` and ``spread`` are those of ``read``."""
    if (
        not (isinstance(x, Tensor) and x.is_floating_point())
        and (dtype or torch.get_default_dtype()) not in FLOATS
    ):
        raise bad_type(
            argument,
            "a dtype of float32 or float64 to cast it to",
            f"torch's default, {torch.get_default_dtype()}",
            "Call torch.set_default_dtype(torch.float32).",
        )
    if isinstance(x, Tensor):
        tensor = exact = _from_tensor(x, dtype, device, argument, double, spread)
        if not x.is_floating_point() and x.dim():
            exact = x
    else:
        exact = torch.from_numpy(_array(x, argument))
        tensor = cast(exact, dtype or torch.get_default_dtype(), argument, frames.names(x), double, spread)
        if device is not None:
            tensor = tensor.to(device)
    if tensor.dim() == 0:
        raise bad_value(
            argument, "rows on dim 0", "a single number", "Pass an array of shape (rows, columns)."
        )
    if tensor.numel() == 0:
        raise bad_value(
            argument, "at least one row and one column", f"shape {tuple(tensor.shape)}", "Pass some rows."
        )
    finite(argument, tensor)
    return tensor, exact


def cast(
    x: Tensor,
    dtype: torch.dtype,
    argument: str,
    names: Sequence[str] | None = None,
    double: str = "never",
    spread: Tensor | None = None,
) -> Tensor:
    """Return ``x`` in ``dtype``, or in float64 if ``double`` asks for it.

    Raises:
        ValueError: the cast loses more than rounding (see ``rounding.cast``).
    """
    if double == "always":
        dtype = torch.float64
    tensor, loss = rounding.cast(x, dtype, spread)
    if loss is not None and double == "lossy":
        tensor, loss = rounding.cast(x, torch.float64)
    if loss is None or math.isinf(loss.cast):  # ``finite`` rejects an overflow as infinite
        return tensor
    column = ""
    if names is not None and len(loss.position) == 2:
        column = f" ({names[loss.position[1]]!r})"
    if loss.spread is None:
        expected = f"whole numbers that {tensor.dtype} holds"
        against = ""
    else:
        expected = (
            f"numbers that {tensor.dtype} holds to {rounding.TOLERANCE:g} of a column's standard deviation"
        )
        against = (
            f", where the column's is {loss.spread:.3g}" if loss.spread else ", in a column of one value"
        )
    mend = "Subtract a constant from the column first."
    if tensor.dtype != torch.float64:
        mend = (
            "Use the model in float64: model.double(). For real x, VAE.mlp(..., standardize=True) subtracts the mean "
            "before it rounds. Or subtract a constant from the column first."
        )
    raise bad_value(
        argument,
        expected,
        f"{loss.count} that it changes, first {loss.value!r} to {loss.cast!r} at {_place(loss.position)}{column}{against}",
        mend,
    )


@dataclass(frozen=True)
class Source:
    """The rows of a batch as they came.

    Attributes:
        exact: the rows in their own dtype, before any cast.
        names: the column names of each frame, by its name in the batch. They include the names that a model was
            fitted to.
        index: of the rows, if they are a frame or a series; else None.
    """

    exact: Tensor
    names: Mapping[str, tuple[str, ...]]
    index: Any


def read(
    x: Any,
    *,
    dtype: torch.dtype | None,
    device: torch.device | None = None,
    argument: str = "x",
    names: Mapping[str, tuple[str, ...]] | None = None,
    double: str = "never",
    spread: Tensor | None = None,
) -> tuple[dict[str, Tensor], Source]:
    """Return ``batch`` and the ``Source`` of its rows.

    Frames and series beside the rows are reordered to the index of the rows. If the rows have no index, everything is
    matched by position. A swap of two columns with one name cannot be detected.

    Args:
        names: the column names that the model was fitted to, by name in the batch. A frame must have the same.
        double: whether rows may be in float64: "never", if a cast to ``dtype`` is "lossy", or "always".
        spread: the columns' standard deviations, if they are known from other rows.

    Raises:
        TypeError, ValueError: as ``batch``; columns of other names or in another order than ``names``; an index
            that does not match the index of the rows.
    """
    x = _whole(x, argument)
    found = dict(names or {})
    rows_of = _the_rows(x, argument)
    _same_names(argument, rows_of, "x", found)
    tensor, exact = _rows(rows_of, dtype, device, argument, double, spread)
    source, batch = Source(exact, found, frames.index(rows_of)), {"x": tensor}
    if not isinstance(x, Mapping):
        return batch, source
    for name, value in x.items():
        if name == "x":
            continue
        if not isinstance(name, str) or not name.isidentifier():
            raise bad_value(argument, "names that model and guide can take", repr(name), "Rename it.")
        if hasattr(value, "columns"):
            _same_names(name, value, name, found)
        batch[name] = _aligned(name, align(name, value, source.index), dtype, device or tensor.device)
        if len(batch[name]) != len(tensor):
            raise bad_value(
                name,
                f"as many rows as x has, {len(tensor)}",
                f"{len(batch[name])}",
                "Pass one entry for every row.",
            )
    return batch, source


def _whole(x: Any, argument: str) -> Any:
    """Return chunks joined into one; anything else unchanged."""
    try:
        return chunks.joined(x) if chunks.several(x) else x
    except chunks.Unreadable as reason:
        raise unreadable(argument, reason) from None


def unreadable(argument: str, reason: chunks.Unreadable) -> Exception:
    """Return the error to raise for chunks that cannot be read as rows."""
    if isinstance(reason, chunks.NoRows):
        return bad_type(f"{argument}{reason.place}", reason.expected, reason.came, reason.fix)
    return bad_value(f"{argument}{reason.place}", reason.expected, reason.came, reason.fix)


def align(argument: str, value: Any, index: Any) -> Any:
    """Return a frame or series in the order of ``index``, if both have one; raise ``ValueError`` if they do not match."""
    try:
        return frames.aligned(value, index)
    except frames.Misaligned as reason:
        raise bad_value(
            argument,
            "the index of x, in any order",
            str(reason),
            f"Pass {argument}.loc[x.index], or {argument}.to_numpy() where the rows are in the order of x.",
        ) from None


def _the_rows(x: Any, argument: str) -> Any:
    """Return the rows in a mapping, or ``x`` itself; raise ``ValueError`` if a mapping has no "x"."""
    if not isinstance(x, Mapping):
        return x
    if "x" not in x:
        raise bad_value(
            argument,
            'a dict with the rows under "x"',
            f"one with {', '.join(map(repr, x)) or 'nothing'}",
            'Pass {"x": rows, "offset": …}.',
        )
    return x["x"]


def _same_names(argument: str, value: Any, name: str, known: dict[str, tuple[str, ...]]) -> None:
    """Raise ``ValueError`` if a frame's column names differ from ``known[name]``; if that is missing, set it."""
    came = frames.names(value)
    if came is None:
        return
    expected = known.setdefault(name, came)
    if came != expected:
        raise bad_value(
            argument,
            "the columns that were fitted, by name and in order",
            frames.difference(came, expected),
            f"Select them in that order; where the names alone differ, pass {argument}.to_numpy().",
        )


def batch(
    x: Any, *, dtype: torch.dtype | None, device: torch.device | None = None, argument: str = "x"
) -> dict[str, Tensor]:
    """Return a dict of checked tensors from rows, or from a dict of rows under "x" and of values aligned with them.

    ``rows`` checks ``x["x"]`` and the other values. Other values that are whole numbers or booleans keep their type,
    because they may be labels or masks.

    Raises:
        TypeError, ValueError: as ``rows``; a dict without "x", or with another number of rows under a name.
    """
    return read(x, dtype=dtype, device=device, argument=argument)[0]


def _aligned(name: str, value: Any, dtype: torch.dtype | None, device: torch.device) -> Tensor:
    """Return a value aligned with the rows: whole numbers and booleans keep their type, the rest goes to ``rows``."""
    value = frames.whole(value)
    if isinstance(value, np.ndarray) and value.dtype.kind in "biu":
        value = torch.from_numpy(_array(value, name)).to(device)
    if isinstance(value, Tensor) and not value.is_floating_point() and not value.is_complex():
        if value.dim() == 0:
            raise bad_value(name, "an entry for every row", "a single number", "Pass an array.")
        return (value.clone() if value.is_inference() else value).to(device)
    return rows(value, dtype=dtype, device=device, argument=name)


def _from_tensor(
    x: Tensor,
    dtype: torch.dtype | None,
    device: torch.device | None,
    argument: str,
    double: str = "never",
    spread: Tensor | None = None,
) -> Tensor:
    if x.is_complex():
        raise bad_type(argument, "real numbers", f"a {x.dtype} tensor", "Pass x.real or x.abs().")
    if x.layout != torch.strided:
        raise bad_type(argument, "a dense tensor", f"a {x.layout} one", f"Pass {argument}.to_dense().")
    if x.is_quantized or x.is_nested or x.device.type == "meta":
        kind = "quantized" if x.is_quantized else "nested" if x.is_nested else "meta"
        raise bad_type(
            argument, "a tensor with its numbers in it", f"a {kind} one", "Pass a plain tensor or array."
        )
    if x.is_inference():  # an inference tensor cannot be part of a gradient; its copy can
        x = x.clone()
    if not x.is_floating_point():
        return cast(x, dtype or torch.get_default_dtype(), argument, None, double, spread).to(
            device or x.device
        )
    if x.dtype not in FLOATS:
        raise bad_type(
            argument, "a float32 or float64 tensor", f"a {x.dtype} one", f"Cast it: {argument}.float()."
        )
    x = x.detach()
    if dtype is not None and x.dtype != dtype:
        lossy = x.dim() > 0 and rounding.cast(x, dtype, spread)[1] is not None
        if double == "always" or (double == "lossy" and lossy):
            return x.to(device or x.device, torch.float64)
        raise bad_type(
            argument,
            f"a {dtype} tensor, the dtype of the model's parameters",
            f"a {x.dtype} tensor",
            f"Use the model in the rows' dtype: model.to({x.dtype})."
            if lossy
            else f"Cast one of the two: {argument}.to({dtype}), or model.to({x.dtype}).",
        )
    return x.to(device or x.device, torch.float64 if double == "always" else x.dtype)


def _array(x: Any, argument: str) -> np.ndarray:
    """Return an array, a frame or a series as a numpy array of numbers that torch can read.

    Raises:
        TypeError: any other object; masked entries; entries that are not real numbers.
        ValueError: whole numbers that are too large; long doubles that float64 cannot hold.
    """
    if hasattr(x, "to_numpy"):  # DataFrame and Series, without importing pandas
        dtypes = getattr(x, "dtypes", None)
        if dtypes is not None and hasattr(dtypes, "items"):
            odd = [
                f"{name!r} ({kind})"
                for name, kind in dtypes.items()
                if getattr(kind, "kind", "O") not in "biuf"
            ]
            if odd:
                raise bad_type(
                    argument,
                    "columns of numbers",
                    f"{len(odd)} other column(s), first {odd[0]}",
                    "Encode them as numbers or drop them.",
                )
            _held(x, argument)
            x = x.to_numpy(dtype=np.float64, na_value=np.nan)  # nullable columns, too
            x = np.ascontiguousarray(x)  # products of column-major arrays round differently
        else:
            x = x.to_numpy()
    if isinstance(x, np.ma.MaskedArray) and np.ma.is_masked(x):
        raise bad_type(
            argument,
            "an array without masked entries",
            f"{int(np.ma.count_masked(x))} that are masked",
            "Fill them, x.filled(value), or drop their rows.",
        )
    if not isinstance(x, np.ndarray):
        came, fix = _described(x)
        raise bad_type(argument, "a tensor, a numpy array or a DataFrame", came, fix)
    if x.dtype.kind not in "biuf":
        raise bad_type(argument, "real numbers", *_odd_array(x))
    if x.dtype.itemsize > 8:  # torch has no long doubles
        x = _from_long_double(x, argument)
    if x.dtype.kind == "u" and x.dtype.itemsize > 1:  # torch has no arithmetic for these
        if x.dtype.itemsize == 8 and x.size and x.max() >= 2**63:
            raise bad_value(
                argument, "whole numbers below 2^63", f"up to {x.max()}", "Subtract a constant first."
            )
        x = x.astype(np.int32 if x.dtype.itemsize == 2 else np.int64)
    # torch supports neither negative strides nor foreign byte orders.
    if not x.dtype.isnative or any(stride < 0 for stride in x.strides):
        x = x.astype(x.dtype.newbyteorder("="))
    return x if x.flags.writeable else np.asarray(_ReadOnly(x))


def _described(x: Any) -> tuple[str, str]:
    """Return, in words, what an object without rows is and how to get rows from it."""
    name, bases = type(x).__name__, {base.__name__ for base in type(x).__mro__}
    came = f"a {name}"
    if x is None:
        return came, "Pass rows."
    if isinstance(x, str | bytes | os.PathLike) or hasattr(x, "read"):
        return came, "Read the file first: pandas.read_csv(…), numpy.load(…) or torch.load(…)."
    if isinstance(x, torch.nn.Module):
        return came, "Pass the model first, then the rows."
    if isinstance(x, bool | int | float):
        return "a single number", "Pass an array of shape (rows, columns)."
    if "DataLoader" in bases:
        return came, "Pass the rows themselves, such as torch.cat(batches)."
    if "TensorDataset" in bases:
        return came, "Pass its rows: x.tensors[0]."
    if "IterableDataset" in bases:
        return came, "Pass its rows: torch.stack(list(x)). Of (row, label) pairs take the rows alone."
    if "Dataset" in bases and hasattr(x, "__getitem__") and not hasattr(x, "__array__"):
        return (
            came,
            "Pass its rows: torch.stack([x[i] for i in range(len(x))]). Of (row, label) pairs take x[i][0].",
        )
    if isinstance(x, list | tuple):
        return _listed(x)
    for method in ("toarray", "to_pandas", "compute"):  # scipy.sparse; pyarrow; dask
        if hasattr(x, method):
            return came, f"Pass x.{method}()."
    if hasattr(x, "__array__") or isinstance(x, memoryview):
        return came, "Pass numpy.asarray(x)."
    if hasattr(x, "__next__"):
        return (
            came,
            "Pass an array of all that it yields: torch.cat(list(x)) of chunks, torch.stack(list(x)) of rows.",
        )
    return came, "Pass its numbers as an array of shape (rows, columns)."


def _listed(x: Sequence[Any]) -> tuple[str, str]:
    """Return the ``_described`` texts of a list or tuple, according to its entries."""
    came = f"a {type(x).__name__}"
    if not x:
        return f"an empty {type(x).__name__}", "Pass some rows."
    first = x[0]
    if not isinstance(first, Tensor | np.ndarray):
        return came, "Pass numpy.asarray(x), of rows of one length."
    package, join = ("torch", "cat") if isinstance(first, Tensor) else ("numpy", "concatenate")
    came = f"{came} of {len(x)} {'tensors' if package == 'torch' else 'arrays'}"
    if len({len(part) if getattr(part, "ndim", 0) else None for part in x}) == 1 and len(x) == 2:
        return came, "Of a pair (rows, labels) pass x[0]. Join chunks of rows: " + f"{package}.{join}(x)."
    return came, f"Join chunks of rows, {package}.{join}(x), or rows, {package}.stack(x)."


def _odd_array(x: np.ndarray) -> tuple[str, str]:
    """Return, in words, what an array without real numbers is and how to get numbers from it."""
    came = f"an array of dtype {x.dtype}"
    if x.dtype.kind == "c":
        return came, "Pass x.real or numpy.abs(x)."
    if x.dtype.names is not None:
        return came, "Pass numpy.lib.recfunctions.structured_to_unstructured(x)."
    if x.dtype.kind in "mM":
        return came, "Count times from a date near the data: (x - x.min()) / numpy.timedelta64(1, 's')."
    if x.dtype.kind in "US":
        return came, "Encode strings as numbers; numbers that are written as strings by x.astype(float)."
    if x.dtype == object and x.ndim == 0:
        inside, fix = _described(x.item())
        return f"an array around {inside}", fix.replace("x.", "x.item().").replace("(x)", "(x.item())")
    parts = [entry for entry in x.flat[:1] if isinstance(entry, Sequence | np.ndarray | Tensor)]
    if parts and not isinstance(parts[0], str | bytes):
        return (
            f"{came}, whose entries are {type(parts[0]).__name__}s",
            "Pass rows of one length: numpy.stack(x).",
        )
    return came, "Pass numbers: x.astype(float)."


def _held(frame: Any, argument: str) -> None:
    """Raise ``ValueError`` for whole numbers in a frame that float64, the common dtype of its columns, cannot hold."""
    for place, (name, kind) in enumerate(frame.dtypes.items()):
        if getattr(kind, "kind", "") in "iu" and getattr(kind, "itemsize", 0) > 4:
            column = frame.iloc[:, place]
            column = column.dropna() if column.hasnans else column
            if len(column) and max(abs(int(column.min())), abs(int(column.max()))) > 2**53:
                cast(
                    torch.from_numpy(_array(column, f"{argument}[{name!r}]")),
                    torch.float64,
                    f"{argument}[{name!r}]",
                )


def _from_long_double(x: np.ndarray, argument: str) -> np.ndarray:
    """Return long doubles in float64; raise ``ValueError`` if that loses more than rounding."""
    found = x.astype(np.float64)
    if not np.isfinite(x).all() or not x.size:
        return found
    # ``moved`` is a column's largest rounding error, ``spread`` its standard deviation.
    moved = np.abs(x - found).reshape(len(x), -1).astype(np.float64).max(axis=0)
    spread = (x - x.mean(axis=0)).reshape(len(x), -1).astype(np.float64).std(axis=0)
    bad = np.flatnonzero(moved > rounding.TOLERANCE * np.where(spread > 0, spread, 1.0))
    if len(bad):
        raise bad_value(
            argument,
            "numbers that float64 holds",
            f"long doubles that it rounds by {moved[bad[0]]:.3g} in {len(bad)} column(s), first column {bad[0]}",
            "Subtract a constant from the column first.",
        )
    return found


class _ReadOnly:
    """Presents the memory of a read-only array to numpy as writable.

    torch does not support read-only memory and warns about it. Nothing in this package writes into rows, and
    inspection raises an error for a pair that does.
    """

    def __init__(self, array: np.ndarray) -> None:
        self.array = array  # keeps the memory alive
        address, _ = array.__array_interface__["data"]
        self.__array_interface__ = array.__array_interface__ | {"data": (address, False)}


#: Entries in a block of rows: 8 MiB in float64.
_BLOCK = 2**20


def blocks(rows: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Return an iterator over blocks of rows, each with its first row number; mapped rows are never in memory whole."""
    height = max(1, _BLOCK * len(rows) // max(1, rows.numel()))
    return ((start, rows[start : start + height]) for start in range(0, len(rows), height))


def finite(argument: str, x: Tensor) -> None:
    """Raise ``ValueError`` for NaN and ±inf, with their count and the first position."""
    # A finite sum needs finite entries and no second array. Otherwise entries are checked: the sum may have overflowed.
    if torch.isfinite(x.sum()):
        return
    count, position = _found(x, lambda block: ~torch.isfinite(block))
    if not count:
        return
    value = float(x[tuple(position)])
    raise bad_value(
        argument,
        "finite numbers",
        f"{count} that are NaN or infinite, first {value} at {_place(position)}",
        "Drop those rows or impute them first.",
    )


def elementwise(support: Any) -> Constraint | None:
    """Return a support as a constraint on single numbers with numbers as bounds, for ``on_support``; else None.

    The result is None if the support constrains several numbers at once. It is also None if the bounds vary by row, as
    with a total count, or by column. Only the distribution's own check covers these.
    """
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    fixed = copy.copy(support)
    for name, bound in vars(support).items():
        if isinstance(bound, Tensor):
            if not bool((bound == bound.flatten()[0]).all()):
                return None
            setattr(fixed, name, bound.flatten()[0].item())
    return fixed if fixed.event_dim == 0 else None


def on_support(
    argument: str, rows: Tensor, columns: list[int], support: Constraint, family: str, fix: str
) -> None:
    """Raise ``ValueError`` for values off an elementwise ``support`` in ``columns`` of ``rows``, shape (rows, columns).

    The message names the family, the number of values, the first row and column, and the fix.
    """
    held = columns if len(columns) < rows.shape[1] else slice(None)
    count, position = _found(rows, lambda block: ~support.check(block[:, held]))
    if not count:
        return
    row, column = position[0], columns[position[1]]
    raise bad_value(
        argument,
        f"values on the support of {family} ({support})",
        f"{count} off it, first {float(rows[row, column]):g} at {_place([row, column])}",
        fix,
    )


def within(argument: str, rows: Tensor, low: float, high: float, mend: str) -> None:
    """Raise ``ValueError`` for values outside [low, high], with their count and first position; rows have any shape."""
    count, position = _found(rows, lambda block: (block < low) | (block > high))
    if count:
        raise bad_value(
            argument,
            f"values from {low:g} to {high:g}",
            f"{count} outside, first {float(rows[tuple(position)]):g} at {_place(position)}",
            mend,
        )


def varying_columns(argument: str, x: Tensor, every: bool) -> None:
    """Raise ``ValueError`` if one value fills over 99 % of the rows of any column, or of all if not ``every``.

    On such a column, a scale that is learned for each column would shrink towards 0. The density, and with it
    log P(x), would grow to +∞. A scale that all columns share does so only if every column is like that.
    """
    value_of, share = _commonest(x)
    stuck = torch.nonzero(share > 0.99).flatten()
    if len(stuck) == len(share) or (every and len(stuck)):
        column = int(stuck[0])
        value = float(value_of[column])
        raise bad_value(
            argument,
            "columns that vary, because this likelihood learns a scale for each",
            f"{len(stuck)} column(s) with one value in over 99 % of the rows, first column {column} (value {value:g})",
            'Drop those columns, dequantise whole numbers, or use scale="shared" or a fixed scale without standardize.',
        )


def _commonest(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return, for every column, the value that fills more than half of its rows, and its share of them.

    If no value fills more than half, the result is some value and its share. The algorithm is a majority vote block by
    block (Boyer and Moore 1991). A value that fills more than half of a block is the block's median. It gets as many
    votes as it has rows more than all other values together. This runs on the CPU, because a GPU's medians are not
    deterministic.
    """
    candidate = x[0].flatten().cpu()
    lead, count = (torch.zeros_like(candidate, dtype=torch.int64) for _ in range(2))
    for _, block in blocks(x):
        values = block.cpu().reshape(len(block), -1)
        median = values.median(dim=0).values
        more = (2 * (values == median).sum(dim=0) - len(values)).clamp(min=0)
        lead = torch.where(median == candidate, lead + more, lead - more)
        candidate = torch.where(lead < 0, median, candidate)
        lead = lead.abs()
    for _, block in blocks(x):
        count += (block.cpu().reshape(len(block), -1) == candidate).sum(dim=0)
    return candidate, count.double() / len(x)


@dataclass(frozen=True, eq=False)
class Fingerprint:
    """Identifies the rows that a number was computed on: equal for equal flattened rows, whatever their dtype.

    Rows in float64 also equal their own copy in float32, unless that cast is a loss (see ``rounding.cast``). No other
    rows that differ are equal, even if they agree in float32.

    Attributes:
        sha256: of the rows' exact values.
        rounded: sha256 of the rows in float32; the same as ``sha256`` if float32 holds the rows.
        lossy: whether a cast to float32 loses more than rounding.
        floors: sha256 of the rows rounded down, which dequantisations of the same whole numbers share.
        binary: whether every entry is 0 or 1.
        totals: the sum of every row, shape (rows,). ``unlike`` uses it to explain how rows differ.
        columns: entries in a row.
    """

    sha256: str
    rounded: str
    lossy: bool
    floors: str
    binary: bool
    totals: np.ndarray = field(repr=False)
    columns: int

    def __len__(self) -> int:
        return len(self.totals)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Fingerprint):
            return NotImplemented
        if self.sha256 == other.sha256:
            return True
        one_in_float32 = self.sha256 == self.rounded or other.sha256 == other.rounded
        return self.rounded == other.rounded and one_in_float32 and not (self.lossy or other.lossy)

    def __hash__(self) -> int:
        return hash(self.rounded)

    def unlike(self, other: Fingerprint) -> str:
        """Return, in words, how other rows differ from these, as far as the two fingerprints show it."""
        if (len(self), self.columns) != (len(other), other.columns):
            return f"{len(other)} rows of {other.columns} columns against {len(self)} of {self.columns}"
        if self.rounded == other.rounded:
            return "numbers that agree in float32 alone"
        if self.floors == other.floors:
            return "the same whole numbers, dequantised by other noise"
        if np.array_equal(np.sort(self.totals), np.sort(other.totals)):
            return "rows of the same totals, in another order"
        alike = float(np.corrcoef(self.totals, other.totals)[0, 1]) if len(self) > 2 else 0.0
        if self.binary and other.binary and alike > 0.5:
            return "another binarization of what look like the same images: fixed against random, or two random ones"
        if alike > 1 - 1e-6:
            factor = np.polyfit(self.totals, other.totals, 1)[0]
            return f"what look like the same rows in other units, a factor of {factor:.4g}"
        return f"other numbers in {len(other)} rows"


def fingerprint(x: Tensor) -> Fingerprint:
    """Return the fingerprint of rows before any cast, shape (rows, ...), of any dtype."""
    columns = x.numel() // len(x)
    exact, rounded, floors = (hashlib.sha256(repr((len(x), columns)).encode()) for _ in range(3))
    totals, binary, held = [], True, True
    watch = None if rounding.holds(x.dtype, torch.float32) else rounding.Watch(torch.float32)
    for _, block in blocks(x):
        flat = block.detach().cpu().reshape(len(block), -1)
        # + 0 turns −0.0 into 0.0: the two are equal but differ in their bytes
        narrow = flat.float().contiguous().numpy() + np.float32(0)
        rounded.update(narrow.data)
        values: np.ndarray = narrow
        if watch is not None:
            watch.add(flat, torch.from_numpy(narrow))
            values = flat.double().contiguous().numpy() + 0.0
            exact.update(values.data)
            held = held and np.array_equal(values, narrow)
        floors.update(np.floor(narrow).data)
        totals.append(values.sum(axis=1, dtype=np.float64))
        binary = binary and bool(((values == 0) | (values == 1)).all())
    lossy = watch is not None and not held and watch.loss(x.detach().cpu()) is not None
    sha256 = rounded.hexdigest() if held else exact.hexdigest()
    return Fingerprint(
        sha256, rounded.hexdigest(), lossy, floors.hexdigest(), binary, np.concatenate(totals), columns
    )


def digest(x: Tensor) -> str:
    """Return the sha256 of a tensor's dtype, shape and bits; resuming requires identical tensors."""
    found = hashlib.sha256(f"{x.dtype} {tuple(x.shape)}".encode())
    for _, block in blocks(x.detach()):
        found.update(block.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def digests(batch: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the ``digest`` of the rows and of every other value in the batch, by name."""
    return {name: digest(value) for name, value in batch.items()}


def row_hashes(x: Tensor) -> np.ndarray:
    """Return two 64-bit hashes of every row, shape (rows, 2): of its exact values, and of its values in float32.

    Equal rows have equal hashes, whatever their dtype. The two hashes are the same if float32 holds the row.
    """

    def of(row: np.ndarray) -> int:
        return int.from_bytes(hashlib.blake2b(row.data, digest_size=8).digest(), "little")

    found = np.empty((len(x), 2), dtype=np.uint64)
    for start, block in blocks(x.detach()):
        flat = block.cpu().reshape(len(block), -1)
        narrow = flat.float().contiguous().numpy() + np.float32(0)
        rows_here = found[start : start + len(block)]
        rows_here[:, 1] = rows_here[:, 0] = [of(row) for row in narrow]
        if not rounding.holds(x.dtype, torch.float32):
            wide = flat.double().contiguous().numpy() + 0.0
            odd = np.flatnonzero((wide != narrow).any(axis=1))
            rows_here[odd, 0] = [of(row) for row in wide[odd]]
    return found


@dataclass(frozen=True, eq=False)
class Seen:
    """Which rows are likely among those that a model was fitted to.

    Rows with few distinct values repeat by chance, so a held-out row may equal a fitted one. A share d of rows matches
    by chance. From M matches among N rows, ``number`` estimates (M − d N) / (1 − d) fitted rows.

    Attributes:
        matches: whether each row equals a fitted one, shape (rows,).
        chance: d.
    """

    matches: np.ndarray
    chance: float = 0.0

    def of(self, rows: np.ndarray) -> Seen:
        """Return the ``Seen`` of some of the rows."""
        return Seen(self.matches[rows], self.chance)

    @property
    def number(self) -> int:
        """The estimated number of rows among the fitted ones, at least 0."""
        found, expected = float(self.matches.sum()), self.chance * len(self.matches)
        return max(0, round((found - expected) / (1 - self.chance)))

    @property
    def by_chance(self) -> float:
        """An upper bound on the probability of this many matches among held-out rows (Chernoff 1952)."""
        share = float(self.matches.mean())
        if share <= self.chance:
            return 1.0
        if not self.chance:
            return 0.0
        rest = (1 - share) * math.log((1 - share) / (1 - self.chance)) if share < 1 else 0.0
        return math.exp(-len(self.matches) * (share * math.log(share / self.chance) + rest))


def seen(hashes: np.ndarray, fitted: np.ndarray) -> Seen:
    """Return which rows are likely among those that a model was fitted to, from the ``row_hashes`` of both.

    The hash with the larger estimate is used, because rows may be fitted in one dtype and come in another.
    """
    return max((_seen(hashes[:, i], fitted[:, i]) for i in range(2)), key=lambda found: found.number)


def _seen(hashes: np.ndarray, fitted: np.ndarray) -> Seen:
    """Return which rows are likely among the fitted ones, from one hash of each.

    The share d of rows that match by chance is estimated as the share of fitted rows that have a duplicate. If
    d > 0.5, matches carry no information and none is reported. There is one exception: every row matches, and
    the duplicates are copies of a set of many different rows, as after oversampling.
    """
    different, place, count = np.unique(fitted, return_inverse=True, return_counts=True)
    chance = float((count[place] > 1).mean())
    nearest = different[np.searchsorted(different, hashes).clip(max=len(different) - 1)]
    matches = nearest == hashes
    if chance <= 0.5:
        return Seen(matches, chance)
    # If independent rows all have duplicates, they take far fewer different values than this.
    copies = len(different) > 0.1 * len(fitted) and len(np.unique(count)) <= 2 and count.min() > 1
    return Seen(matches if copies and matches.all() else np.zeros_like(matches))


def _found(rows: Tensor, bad: Callable[[Tensor], Tensor]) -> tuple[int, list[int]]:
    """Return how many entries of rows are bad, and the index of the first; checked block by block."""
    count, first = 0, []
    for start, block in blocks(rows):
        entries = bad(block)
        if not bool(entries.any()):
            continue
        if not count:
            index = int(entries.flatten().int().argmax())
            row, *place = (int(i) for i in np.unravel_index(index, tuple(entries.shape)))
            first = [start + row, *place]
        count += int(entries.sum())
    return count, first


def _place(position: list[int]) -> str:
    if len(position) == 1:
        return f"row {position[0]}"
    if len(position) == 2:
        return f"row {position[0]}, column {position[1]}"
    return f"row {position[0]}, position {tuple(position[1:])}"
