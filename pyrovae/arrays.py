"""Arrays, frames and tensors of numbers, as torch tensors of one dtype."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrovae import frames, rounding
from pyrovae.refusals import bad_type, bad_value, place
from pyrovae.sparse import SparseRows

#: The dtypes that log P(x) is computed in. In 16-bit dtypes, sums over columns have errors of nats.
FLOATS = (torch.float32, torch.float64)


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
        f"{loss.count} that it changes, first {loss.value!r} to {loss.cast!r} at {place(loss.position, names)}{against}",
        mend,
    )


def from_tensor(
    x: Tensor,
    dtype: torch.dtype | None,
    device: torch.device | None,
    argument: str,
    double: str = "never",
    spread: Tensor | None = None,
) -> Tensor:
    """Return a tensor of real numbers in ``dtype`` and on ``device``; ``double`` and ``spread`` are those of ``rows.read``.

    Raises:
        TypeError: complex numbers; a layout without plain numbers; a float tensor of another dtype.
        ValueError: whole numbers that ``dtype`` cannot hold.
    """
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


def from_array(x: Any, argument: str) -> Tensor:
    """Return an array, a frame or a series as a tensor of the same numbers; a scipy.sparse matrix stays sparse.

    Raises:
        TypeError, ValueError: as ``as_numpy``.
    """
    if not hasattr(x, "tocsr") or len(x.shape) != 2:
        return torch.from_numpy(as_numpy(x, argument))
    from scipy.sparse import csr_array

    found = csr_array(x)
    values = as_numpy(found.data, argument)
    return SparseRows(csr_array((values, found.indices, found.indptr), shape=found.shape))


def as_numpy(x: Any, argument: str) -> np.ndarray:
    """Return an array, a frame or a series as a numpy array of numbers that torch can read.

    Raises:
        TypeError: any other object; masked entries; entries that are not real numbers.
        ValueError: whole numbers that are too large; long doubles that float64 cannot hold.
    """
    if hasattr(x, "to_numpy"):  # DataFrame and Series, without importing pandas
        x = frames.from_decimals(x)
        dtypes = getattr(x, "dtypes", None)
        if dtypes is not None and hasattr(dtypes, "items"):
            odd = [
                f"{name!r} ({kind})"
                for name, kind in dtypes.items()
                if getattr(kind, "kind", "O") not in "biuf"
            ]
            if odd:
                _long_decimals(x, argument)
                raise bad_type(
                    argument,
                    "columns of numbers",
                    f"{len(odd)} other column(s), first {odd[0]}",
                    "Encode them as numbers or drop them, or use VAE.for_table, which takes columns of labels.",
                )
            _held(x, argument)
            x = x.to_numpy(dtype=np.float64, na_value=np.nan)  # nullable columns, too
            x = np.ascontiguousarray(x)  # products of column-major arrays round differently
        else:
            if hasattr(x, "to_frame"):
                _held(x.to_frame(), argument)
            x = x.to_numpy()
    if isinstance(x, np.ma.MaskedArray) and np.ma.is_masked(x):
        raise bad_type(
            argument,
            "an array without masked entries",
            f"{int(np.ma.count_masked(x))} that are masked",
            "Pass x.filled(numpy.nan) to a model that takes missing cells, or drop their rows.",
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
    for method in (
        "toarray",
        "collect",
        "compute",
    ):  # sparse arrays that are no matrices; lazy frames of polars; dask
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
    for number, (name, kind) in enumerate(frame.dtypes.items()):
        if getattr(kind, "kind", "") in "iu" and getattr(getattr(kind, "subtype", kind), "itemsize", 8) > 4:
            column = frame.iloc[:, number]
            column = column.dropna() if column.hasnans else column
            if len(column) and np.asarray(rounding.beyond_whole(column), dtype=bool).any():
                whole = column.to_numpy(dtype=np.uint64 if kind.kind == "u" else np.int64)
                named = f"{argument}[{name!r}]"
                cast(torch.from_numpy(as_numpy(whole, named)), torch.float64, named)


def _long_decimals(frame: Any, argument: str) -> None:
    """Raise ``ValueError`` for decimals in a frame that float64 cannot hold, which ``frames.from_decimals`` left."""
    for column, name in enumerate(frame.columns if hasattr(frame, "iloc") else ()):
        if frames.are_decimals(frame.iloc[:, column]):
            came = f"{int(np.sum(rounding.beyond_whole(frame.iloc[:, column])))} others"
            fix = "Subtract a constant first."
            raise bad_value(f"{argument}[{name!r}]", "whole numbers between -2^53 and 2^53", came, fix)


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
