"""What a good input is, and the wording of every refusal.

Every refusal has the same parts: the argument, what was expected, what came (with its count and first
position where there is one), and how to fix it.
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
    """The one wording of a refusal: argument, expected, what came, mend."""
    return f"{argument}: expected {expected}, got {came}. {mend}"


class Refused(ValueError):
    """A value that can't serve; its message says why and what to do."""


def bad_value(argument: str, expected: str, came: str, mend: str) -> Refused:
    """The error to raise for a value that can't serve."""
    return Refused(refusal(argument, expected, came, mend))


def bad_type(argument: str, expected: str, came: str, mend: str) -> TypeError:
    """The error to raise for a thing of the wrong kind."""
    return TypeError(refusal(argument, expected, came, mend))


def shown(value: Any) -> str:
    """A value of any kind in a message: its repr, cut short, and its type."""
    text = " ".join(repr(value).split())
    return f"{text if len(text) <= 60 else text[:57] + '…'} ({type(value).__name__})"


#: The dtypes of numbers that log P(x) is computed in: sums over columns of 16-bit ones are wrong by nats.
FLOATS = (torch.float32, torch.float64)

# The most that counts and widths may be, and seeds: torch and numpy count in 64 bits and overflow with words of
# their own, and what has more rows or columns than this fits no memory.
_MOST_COUNT, _MOST_SEED = 2**31 - 1, 2**64 - 1


def integer(argument: str, value: Any, minimum: int = 1) -> int:
    """``value`` as an int of at least ``minimum``; raises ``TypeError`` or ``ValueError``.

    Python's and numpy's integers are taken; not bools, floats of a whole value, nor tensors and arrays of one
    number, which hide where a number came from: ``.item()`` says it.
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
    """``value`` if it is True or False; raises ``TypeError``."""
    if not isinstance(value, (bool, np.bool_)):
        raise bad_type(argument, "True or False", shown(value), "Pass a bool.")
    return bool(value)


def number(argument: str, value: Any, expected: str = "a finite number") -> float:
    """``value`` as a finite float; raises ``TypeError`` or ``ValueError``. Taken are numbers as in ``integer``."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise bad_type(argument, expected, shown(value), "Pass a float.")
    try:
        found = float(value)
    except OverflowError:  # a Python int beyond every float
        found = math.inf
    if not math.isfinite(found):
        raise bad_value(argument, expected, shown(value), "Pass one that is neither NaN nor infinite.")
    return found


def positive(argument: str, value: Any, or_zero: bool = False) -> float:
    """``value`` as a finite positive float, or 0 where that will do; raises ``TypeError`` or ``ValueError``."""
    sign = "≥ 0" if or_zero else "> 0"
    found = number(argument, value, f"a finite number {sign}")
    if found < 0 or (found == 0 and not or_zero):
        raise bad_value(argument, f"a finite number {sign}", shown(value), "Pass a positive float.")
    return found


def per_column(argument: str, value: Any, check: Callable[[str, Any], float]) -> None:
    """Refuse what is neither a number nor a sequence of numbers, one a column, each of which ``check`` takes."""
    if isinstance(value, np.ndarray | Tensor) and value.ndim == 1:
        value = value.tolist()
    each = value if isinstance(value, Sequence) and not isinstance(value, str | bytes) else [value]
    if not len(each):
        raise bad_value(argument, "a number, or one a column", "none", "Pass a single number.")
    for entry in each:
        check(argument, entry)


@contextmanager
def parameters_hold(argument: str = "x", fix: Callable[[], str] | None = None) -> Iterator[None]:
    """Run a block in which networks see ``argument``; where a distribution refuses their outputs, that is refused.

    ``fix`` says what to do, such as ``LatentVariableModel.fix_of_scales``.
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
    """The root mean square of the smallest and of the largest column of rows; columns of zeros do not count."""
    size = x.detach().double().reshape(len(x), -1).square().mean(dim=0).sqrt()
    size = size[size > 0]
    return (float(size.min()), float(size.max())) if len(size) else (1.0, 1.0)


def largest(x: Tensor) -> tuple[int, int, float]:
    """The row, column and value of the entry of largest size."""
    rows = x.detach().reshape(len(x), -1)
    place = int(rows.abs().argmax())
    row, column = divmod(place, rows.shape[1])
    return row, column, float(rows[row, column])


def choice(argument: str, value: Any, options: tuple[str, ...]) -> str:
    """``value`` if it is one of ``options``; raises ``TypeError`` or ``ValueError`` naming them all."""
    if not isinstance(value, str) or value not in options:
        error = bad_value if isinstance(value, str) else bad_type
        listed = ", ".join(repr(option) for option in options)
        raise error(argument, f"one of {listed}", shown(value), "Pass one of these names.")
    return str(value)


def compile(value: Any) -> None:
    """Raises ``TypeError`` or ``ValueError`` where the argument of that name is neither a bool nor "auto"."""
    if not isinstance(value, bool) and not (isinstance(value, str) and value == "auto"):
        error = bad_value if isinstance(value, str) else bad_type
        raise error("compile", "True, False or 'auto'", shown(value), "Pass one of these.")


def path(argument: str, value: Any) -> Path:
    """``value`` as a path; raises ``TypeError`` or ``ValueError``. Whether anything is there is another question."""
    if not isinstance(value, str | os.PathLike):
        raise bad_type(argument, "a path", shown(value), 'Pass a string such as "runs/a", or a Path.')
    text = os.fspath(value)
    if not isinstance(text, str) or not text or "\0" in text:
        raise bad_value(argument, "the name of a file or folder", shown(value), 'Pass one such as "runs/a".')
    return Path(text)


def tile(value: Any) -> tuple[int, int]:
    """``value`` as (rows, samples), both whole numbers ≥ 1; raises ``TypeError`` or ``ValueError``."""
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise bad_type("tile", "a pair (rows, samples)", shown(value), "Pass two whole numbers.")
    return integer("tile", value[0]), integer("tile", value[1])


def options(
    name: str, function: Callable[..., Any], given: Mapping[str, Any], taken: tuple[str, ...]
) -> None:
    """Refuse options that ``function`` does not have, and the lack of one it needs; ``taken`` are not options."""
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
    """``value`` if it is a torch module; raises ``TypeError``."""
    if not isinstance(value, torch.nn.Module):
        raise bad_type(argument, "a torch module", shown(value), "Pass a network such as pyrovae.MLP.")
    return value


def rows(
    x: Any, *, dtype: torch.dtype | None, device: torch.device | None = None, argument: str = "x"
) -> Tensor:
    """``x`` as a float tensor with rows on dim 0, every entry finite, on ``device``.

    Arrays, frames and whole-number tensors are cast to ``dtype``; a float tensor has to have it already.
    ``dtype=None`` takes a float tensor's own dtype, and torch's default for everything else. An array of that dtype is not copied, a read-only one neither: a
    ``numpy.memmap`` stays on the disk. One of another dtype is cast whole, and then is in memory.

    Raises:
        TypeError: strings, objects, complex numbers, lists, a float tensor of another dtype.
        ValueError: no rows, no columns, NaN or ±inf (with count and first position); a cast that loses more than
            rounding (see ``rounding.cast``).
    """
    return _rows(x, dtype, device, argument)[0]


def in_double(x: Any) -> Any:
    """``x`` with its float tensors in float64, for code that computes in float64; chunks are joined."""
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
    """``rows``, and the same rows before they were cast; ``double`` and ``spread`` as in ``read``."""
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
    """``x`` in ``dtype``; refused where that loses more than rounding, or left in float64 where ``double`` says so."""
    if double == "always":
        dtype = torch.float64
    tensor, loss = rounding.cast(x, dtype, spread)
    if loss is not None and double == "lossy":
        tensor, loss = rounding.cast(x, torch.float64)
    if loss is None or math.isinf(loss.cast):  # what overflows is refused as infinite
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
        exact: in the dtype that they came in, before any cast.
        names: of the columns of each frame in the batch, or that a model was fitted to, by its name in the batch.
        index: of the rows, where they are a frame or a series; else None.
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
    """``batch``, and what else is known of the rows.

    Frames and series beside the rows are brought into the order of the index that the rows have; where the rows have
    none, everything stands by position. Columns that share one name can't be told apart.

    Args:
        names: of the columns, by name in the batch, that the model was fitted to: a frame has to have the same.
        double: whether rows may stay in float64: "never"; where a cast to ``dtype`` is "lossy"; or "always".
        spread: the columns' standard deviations, where they are known from other rows.

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
    """Chunks joined, anything else as it is."""
    try:
        return chunks.joined(x) if chunks.several(x) else x
    except chunks.Unreadable as reason:
        raise unreadable(argument, reason) from None


def unreadable(argument: str, reason: chunks.Unreadable) -> Exception:
    """The refusal of chunks that are no rows."""
    if isinstance(reason, chunks.NoRows):
        return bad_type(f"{argument}{reason.place}", reason.expected, reason.came, reason.fix)
    return bad_value(f"{argument}{reason.place}", reason.expected, reason.came, reason.fix)


def align(argument: str, value: Any, index: Any) -> Any:
    """A frame or series in the order of an index, where there is one; raises ``ValueError`` where they don't match."""
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
    """The rows in a mapping, or ``x`` itself."""
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
    """Refuse a frame whose columns have other names than ``known`` has under ``name``; note them where it has none."""
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
    """Rows, or a dict of rows under "x" and of what is aligned with them, as a dict of checked tensors.

    ``x["x"]`` is checked by ``rows``; so is everything beside it, but for whole numbers and booleans,
    which keep their type: they may be labels or masks.

    Raises:
        TypeError, ValueError: as ``rows``; a dict without "x", or with another number of rows under a name.
    """
    return read(x, dtype=dtype, device=device, argument=argument)[0]


def _aligned(name: str, value: Any, dtype: torch.dtype | None, device: torch.device) -> Tensor:
    """What goes with the rows: whole numbers and booleans as they are, everything else as ``rows``."""
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
    if x.is_inference():  # what is made in inference mode can't be part of a gradient; its copy can
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
    """A numpy array of numbers from an array, a frame or a series; everything else is refused."""
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
            x = np.ascontiguousarray(x)  # products of frames' columns round otherwise than those of rows
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
    if x.dtype.itemsize > 8:  # long doubles, which torch has not
        x = _from_long_double(x, argument)
    if x.dtype.kind == "u" and x.dtype.itemsize > 1:  # of which torch has no arithmetic
        if x.dtype.itemsize == 8 and x.size and x.max() >= 2**63:
            raise bad_value(
                argument, "whole numbers below 2^63", f"up to {x.max()}", "Subtract a constant first."
            )
        x = x.astype(np.int32 if x.dtype.itemsize == 2 else np.int64)
    # torch takes neither negative strides nor foreign byte orders.
    if not x.dtype.isnative or any(stride < 0 for stride in x.strides):
        x = x.astype(x.dtype.newbyteorder("="))
    return x if x.flags.writeable else np.asarray(_ReadOnly(x))


def _described(x: Any) -> tuple[str, str]:
    """What something that holds no rows is, in words, and how to make rows of it."""
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
    """``_described`` of a list or tuple, by what is in it."""
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
    """What an array is that holds no real numbers, in words, and how to make numbers of it."""
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
    """Refuse whole numbers in a frame that float64, in which its columns meet, does not hold."""
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
    """Long doubles in float64; refused where that loses more than rounding."""
    found = x.astype(np.float64)
    if not np.isfinite(x).all() or not x.size:
        return found
    # What is left of a long double is the deviation that float64 can't hold beside the column's own.
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
    """The memory of a read-only array, for numpy to look at as if it could be written to.

    torch knows no read-only memory and warns of it. Nothing in this package writes into rows, and inspection
    refuses a pair that does.
    """

    def __init__(self, array: np.ndarray) -> None:
        self.array = array  # which keeps the memory
        address, _ = array.__array_interface__["data"]
        self.__array_interface__ = array.__array_interface__ | {"data": (address, False)}


#: Numbers in a block of rows: few enough that what is computed from them takes no memory to speak of.
_BLOCK = 2**20


def blocks(rows: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Rows a block at a time, each block with the number of its first row: what is mapped is never in memory whole."""
    height = max(1, _BLOCK * len(rows) // max(1, rows.numel()))
    return ((start, rows[start : start + height]) for start in range(0, len(rows), height))


def finite(argument: str, x: Tensor) -> None:
    """Refuse NaN and ±inf, naming how many and the first row and column."""
    # The sum is finite only if every entry is, and takes no second array; only its failure looks closer.
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
    """A support as a constraint on single numbers, its bounds numbers too, for ``on_support``.

    None where there is no such: it is one on several numbers at once, or its bounds vary, by row (a total count) or by
    column. That is left to the distribution's own check.
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
    """Refuse values off ``support`` in some columns of ``rows``, shape (rows, columns); the support is elementwise.

    Names the family, how many values, the first row and column, and the fix.
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
    """Refuse values outside [low, high], with count and first position; rows are of any shape."""
    count, position = _found(rows, lambda block: (block < low) | (block > high))
    if count:
        raise bad_value(
            argument,
            f"values from {low:g} to {high:g}",
            f"{count} outside, first {float(rows[tuple(position)]):g} at {_place(position)}",
            mend,
        )


def varying_columns(argument: str, x: Tensor, every: bool) -> None:
    """Refuse columns in which one value fills more than 99 % of the rows: any, or if not ``every``, all at once.

    A scale that is learned for each column would shrink towards zero on such a column and take the
    density, and with it log P(x), to +∞; one that the columns share, where they are all so.
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
    """For every column, the value that fills more than half of its rows, and its share; elsewhere some value and its.

    A vote (Boyer and Moore 1991), block by block: what fills more than half of a block is its median, and counts
    there by as many rows as it has more than all others together. On the CPU: a GPU's medians are not deterministic.
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
    """Which rows a number is of: equal for equal rows, flattened, whatever dtype they came in.

    Rows in float64 also equal their own copy in float32, unless rounding them loses what ``rounding.cast`` calls a
    loss. Two sets of rows in float64 that differ are never equal, even where they agree in float32.

    Attributes:
        sha256: of the rows' exact values.
        rounded: of the rows in float32; the same as ``sha256`` where float32 holds them.
        lossy: whether float32 loses more of them than rounding.
        floors: of the rows rounded down: what different dequantisations of the same whole numbers share.
        binary: whether every entry is 0 or 1.
        totals: the sum of every row, shape (rows,), by which rows that differ may be told to be akin.
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
        """In words, how other rows differ from these, as far as the two fingerprints tell."""
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
    """The fingerprint of rows as they came, shape (rows, ...), of any dtype."""
    columns = x.numel() // len(x)
    exact, rounded, floors = (hashlib.sha256(repr((len(x), columns)).encode()) for _ in range(3))
    totals, binary, held = [], True, True
    watch = None if rounding.holds(x.dtype, torch.float32) else rounding.Watch(torch.float32)
    for _, block in blocks(x):
        flat = block.detach().cpu().reshape(len(block), -1)
        # + 0: of two zeros that are equal the bytes differ by their sign
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
    """sha256 of a tensor's dtype, shape and every bit: for resuming, where close is not the same."""
    found = hashlib.sha256(f"{x.dtype} {tuple(x.shape)}".encode())
    for _, block in blocks(x.detach()):
        found.update(block.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def digests(batch: Mapping[str, Tensor]) -> dict[str, str]:
    """Of the rows and of everything beside them."""
    return {name: digest(value) for name, value in batch.items()}


def row_hashes(x: Tensor) -> np.ndarray:
    """Two 64-bit hashes of every row, shape (rows, 2): of its exact values, and of them in float32.

    Equal rows have equal hashes, whatever dtype they came in; of a row that float32 holds the two are the same.
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

    Rows of few values repeat by chance, and a row that was kept back may equal one that was not. M matches of N rows
    speak for (M − d N) / (1 − d) that were fitted, where a share d matches by chance.

    Attributes:
        matches: whether each row equals a fitted one, shape (rows,).
        chance: d.
    """

    matches: np.ndarray
    chance: float = 0.0

    def of(self, rows: np.ndarray) -> Seen:
        """Of some of the rows."""
        return Seen(self.matches[rows], self.chance)

    @property
    def number(self) -> int:
        """How many rows are likely among the fitted ones."""
        found, expected = float(self.matches.sum()), self.chance * len(self.matches)
        return max(0, round((found - expected) / (1 - self.chance)))

    @property
    def by_chance(self) -> float:
        """A bound on the probability of so many matches among rows that were kept back (Chernoff 1952)."""
        share = float(self.matches.mean())
        if share <= self.chance:
            return 1.0
        if not self.chance:
            return 0.0
        rest = (1 - share) * math.log((1 - share) / (1 - self.chance)) if share < 1 else 0.0
        return math.exp(-len(self.matches) * (share * math.log(share / self.chance) + rest))


def seen(hashes: np.ndarray, fitted: np.ndarray) -> Seen:
    """Which rows are likely among those that a model was fitted to, by the ``row_hashes`` of both.

    Either hash counts: rows may have been fitted in one dtype and come in another.
    """
    return max((_seen(hashes[:, i], fitted[:, i]) for i in range(2)), key=lambda found: found.number)


def _seen(hashes: np.ndarray, fitted: np.ndarray) -> Seen:
    """Which rows are likely among fitted ones, by one hash of each.

    How often rows match by chance is seen among the fitted rows themselves: a share d of them has a double. Where d is
    above one half, matches say nothing; unless every row matches and the doubles are copies of a set of many
    different rows, as after oversampling.
    """
    different, place, count = np.unique(fitted, return_inverse=True, return_counts=True)
    chance = float((count[place] > 1).mean())
    nearest = different[np.searchsorted(different, hashes).clip(max=len(different) - 1)]
    matches = nearest == hashes
    if chance <= 0.5:
        return Seen(matches, chance)
    # Independent rows of which every one has a double take far fewer different values than this.
    copies = len(different) > 0.1 * len(fitted) and len(np.unique(count)) <= 2 and count.min() > 1
    return Seen(matches if copies and matches.all() else np.zeros_like(matches))


def _found(rows: Tensor, bad: Callable[[Tensor], Tensor]) -> tuple[int, list[int]]:
    """How many entries of rows are bad, and the index of the first; looked at block by block."""
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
