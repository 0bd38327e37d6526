"""Rows as users pass them, as a batch: a dict of checked tensors with the rows under "x"."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pyrovae import chunks, frames, rounding
from pyrovae.arrays import FLOATS, as_numpy, cast, from_array, from_tensor
from pyrovae.entries import finite
from pyrovae.refusals import bad_type, bad_value, column_of, place, shown
from pyrovae.sparse import dense

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Source:
    """The rows of a batch as they came.

    Attributes:
        exact: the rows in their own dtype, before any cast; missing cells are 0.
        names: the column names of each frame, by its name in the batch. They include the names that a model was
            fitted to. Columns 0, 1, … have no names; they are under ``numbered(name)``.
        index: of the rows, if they are a frame or a series; else None.
        observed: whether each cell is there, a boolean tensor of the shape of ``exact``; None if no cell is missing.
    """

    exact: Tensor
    names: Mapping[str, tuple[str, ...]]
    index: Any
    observed: Tensor | None = None


def as_tensor(
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
    return _as_tensor(x, dtype, device, argument)[0]


def as_batch(
    x: Any, *, dtype: torch.dtype | None, device: torch.device | None = None, argument: str = "x"
) -> dict[str, Tensor]:
    """Return a dict of checked tensors from rows, or from a dict of rows under "x" and of values aligned with them.

    ``as_tensor`` checks ``x["x"]`` and the other values. Other values that are whole numbers or booleans keep their type,
    because they may be labels or masks.

    Raises:
        TypeError, ValueError: as ``as_tensor``; a dict without "x", or with another number of rows under a name.
    """
    return read(x, dtype=dtype, device=device, argument=argument)[0]


def read(
    x: Any,
    *,
    dtype: torch.dtype | None,
    device: torch.device | None = None,
    argument: str = "x",
    names: Mapping[str, tuple[str, ...]] | None = None,
    double: str = "never",
    spread: Tensor | None = None,
    missing: bool = False,
) -> tuple[dict[str, Tensor], Source]:
    """Return ``as_batch`` and the ``Source`` of its rows.

    Frames and series beside the rows are reordered to the index of the rows. If the rows have no index, everything is
    matched by position. A swap of two columns with one name cannot be detected.

    Args:
        names: the column names that the model was fitted to, by name in the batch, or None before a fit. A frame must have
            the same; if there are none, its columns must not be 0, 1, … in another order. If the fitted columns were
            numbered, those of a frame must not be other numbers.
        double: whether rows may be in float64: "never", if a cast to ``dtype`` is "lossy", or "always".
        spread: the columns' standard deviations, if they are known from other rows.
        missing: whether rows may have missing cells: NaN in float arrays and tensors; None, NaN and NA in frames; or
            cells where a value "observed" beside the rows, of their shape, is False. If any is missing, the batch has a
            boolean tensor "observed" of the shape of the rows, and the rows are 0 there. Rows without missing cells
            give the same batch as with ``missing=False``, without "observed".

    Raises:
        TypeError, ValueError: as ``as_batch``. Columns have other names than ``names`` or another order. An index
            does not match the index of the rows. A mask has another shape than the rows.
    """
    x = joined(x, argument)
    if missing and isinstance(x, Mapping) and "observed" in x:
        rows_of = _the_rows(x, argument)
        mask = x["observed"]
        _require_names_of(rows_of, mask, (names or {}).get("x"))
        x = {n: value for n, value in x.items() if n != "observed"} | {"x": without(rows_of, mask)}
    found = dict(names or {})
    rows_of = _the_rows(x, argument)
    _same_names(argument, rows_of, "x", found, fitted=names is not None)
    tensor, exact, observed = _as_tensor(rows_of, dtype, device, argument, double, spread, missing)
    source, batch = Source(exact, found, frames.index(rows_of), observed), {"x": tensor}
    if observed is not None:
        batch["observed"] = observed.to(tensor.device)
    if not isinstance(x, Mapping):
        return batch, source
    for name, value in x.items():
        if name == "x":
            continue
        if not isinstance(name, str) or not name.isidentifier():
            raise bad_value(argument, "names that model and guide can take", repr(name), "Rename it.")
        if hasattr(value, "columns"):
            _same_names(name, value, name, found, fitted=names is not None)
        batch[name] = _aligned(name, align(name, value, source.index), dtype, device or tensor.device)
        if len(batch[name]) != len(tensor):
            raise bad_value(
                name,
                f"as many rows as x has, {len(tensor)}",
                f"{len(batch[name])}",
                "Pass one entry for every row.",
            )
    return batch, source


def in_double(x: Any) -> Any:
    """Return ``x`` with its float tensors in float64, for code that computes in float64; chunks are joined."""
    x = joined(x, "x")
    if isinstance(x, Mapping):
        return {name: in_double(value) for name, value in x.items()}
    return x.double() if isinstance(x, Tensor) and x.dtype in FLOATS else x


def read_in_double(
    x: Any, names: Mapping[str, tuple[str, ...]] | None = None, missing: bool = False
) -> tuple[dict[str, Tensor], Source]:
    """Return ``read`` of ``x`` in float64, whatever the dtype of its tensors."""
    return read(in_double(x), dtype=torch.float64, names=names, missing=missing)


def _as_tensor(
    x: Any,
    dtype: torch.dtype | None,
    device: torch.device | None,
    argument: str,
    double: str = "never",
    spread: Tensor | None = None,
    missing: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return ``as_tensor``, the same rows before the cast, and which cells are observed; None if all are.

    ``double``, ``spread`` and ``missing`` are those of ``read``.
    """
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
    if torch.get_default_device().type == "meta":
        raise bad_value(
            argument,
            "to be read while torch's default device has numbers",
            "the default device 'meta'",
            "Call this outside of torch.device('meta'), or after torch.set_default_device('cpu').",
        )
    observed = None
    if isinstance(x, Tensor):
        if missing and x.dtype in FLOATS and x.layout == torch.strided and x.device.type != "meta":
            x, observed, spread = _without_missing(x, spread)
        tensor = exact = from_tensor(x, dtype, device, argument, double, spread)
        if not x.is_floating_point() and x.dim():
            exact = x
    else:
        exact = from_array(frames.numbers(x) if missing else x, argument)
        if missing:
            exact, observed, spread = _without_missing(exact, spread)
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
    finite(argument, tensor, missing, None if isinstance(x, Tensor) else frames.names(x))
    if observed is not None:
        tensor, exact = (rows * observed.to(rows.device) for rows in (tensor, exact))
    return tensor, exact, observed


def _without_missing(rows: Tensor, spread: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return rows whose missing cells have a value, which cells are observed, and ``spread``.

    This is the one place where missing cells are recognised. Each gets the first observed value of its column. A cast
    of the rows then loses no more than a cast of the observed cells. The spread returned is the standard deviations of
    the observed cells.
    """
    if not rows.is_floating_point() or not rows.dim() or not rows.numel() or bool(torch.isfinite(rows.sum())):
        return rows, None, spread
    rows = dense(rows)
    observed = ~rows.isnan()
    if bool(observed.all()):
        return rows, None, spread
    first = rows.take_along_dim(observed.int().argmax(dim=0, keepdim=True), dim=0).nan_to_num(0.0, 0.0, 0.0)
    filled = torch.where(observed, rows, first)
    if spread is None:
        spread = rounding.spread(filled, observed.reshape(len(rows), -1).sum(dim=0).clamp(min=1))
    return filled, observed, spread


def spread_of(source: Source) -> Tensor:
    """Return the standard deviation of every column's observed cells, shape (columns,), float64."""
    if source.observed is None:
        return rounding.spread(source.exact)
    spread = _without_missing(restored(source.exact, source.observed), None)[2]
    if spread is None:
        raise RuntimeError("rows with a mask have a missing cell")
    return spread


def as_passed(x: Any, argument: str = "x") -> tuple[dict[str, Any], Any]:
    """Return what came beside the rows, by name, and the rows as they came; chunks are joined."""
    x = joined(x, argument)
    beside = {name: value for name, value in x.items() if name != "x"} if isinstance(x, Mapping) else {}
    return beside, _the_rows(x, argument)


def copied(rows: Any) -> Any:
    """Return a copy of checked rows of any kind, which later changes of the user's object leave as it is."""
    return rows.clone() if isinstance(rows, Tensor) else rows.copy()


def filled(rows: Any, observed: Tensor | None, values: np.ndarray) -> Any:
    """Return rows of any kind with ``values``, (missing cells,), in the missing cells, by row and then by column.

    A frame keeps its index, its columns and their types. A type that cannot hold the values is replaced by a wider one.
    Whole numbers or booleans become float64 if the values are not of their type. Without missing cells the rows are
    returned as they are.
    """
    if observed is None:
        return rows
    missing = ~observed.cpu().numpy()
    if hasattr(rows, "isetitem"):
        return frames.filled(rows, missing, values)
    whole = bool((values == np.rint(values)).all())
    if isinstance(rows, Tensor):
        wide = rows if rows.is_floating_point() or whole else rows.double()
        into = torch.from_numpy(values).to(wide)
        if not torch.equal(into.double(), torch.from_numpy(values)) and (
            whole or not bool(into.isfinite().all())
        ):
            wide = rows.double() if rows.is_floating_point() else rows.long()
            into = torch.from_numpy(values).to(wide)
        return wide.masked_scatter(torch.from_numpy(missing).to(rows.device), into)
    held = rows.toarray() if hasattr(rows, "toarray") else np.asarray(frames.numbers(rows))
    kept = held.dtype.kind == "f" or (whole and held.dtype.kind != "O")
    kind = held.dtype if kept else np.dtype(np.float64)
    found = held.astype(frames.wider(kind, values))  # a copy
    found[missing] = values
    return found


def column_numbers(
    argument: str, chosen: Any, names: tuple[str, ...] | None, num_columns: int, labels: Any = ()
) -> list[int]:
    """Return the numbers of columns that are named, or numbered from 0 in the flattened rows.

    A string is a name; a whole number is a position. ``labels`` are a frame's own labels of its columns. If whole numbers
    are among these labels, a number could mean a label or a position. It is refused if it is not the label of the column at
    that position. The label as a string is its name.

    Raises:
        TypeError: no list of names or whole numbers.
        ValueError: none; a column that is unknown, named twice or ambiguous; a name of several columns.
    """
    if isinstance(chosen, str | bytes) or not hasattr(chosen, "__iter__"):
        raise bad_type(argument, "a list of columns", shown(chosen), "Pass [name] or [number].")
    found: list[int] = []
    known = f"of {', '.join(map(repr, names))}" if names else f"numbers from 0 to {num_columns - 1}"
    for column in chosen:
        if isinstance(column, str) and names and column in names:
            at = names.index(column)
            if (count := names.count(column)) > 1:
                came = f"{column!r}, the name of {count} columns"
                raise bad_value(argument, "names that one column has", came, "Pass the column's position.")
        elif (
            isinstance(column, int | np.integer)
            and not isinstance(column, bool)
            and 0 <= column < num_columns
        ):
            at = int(column)
        else:
            raise bad_value(
                argument,
                f"columns {known}",
                shown(column),
                "Pass names of a frame's columns as strings, or positions from 0.",
            )
        numbered = [
            i for i, label in enumerate(labels) if not isinstance(label, str | bytes) and label == column
        ]
        if numbered not in ([], [at]):
            raise bad_value(
                argument,
                "unambiguous numbers of columns",
                f"{column!r}, the position of column {labels[at]!r} and the label of the column at position {numbered[0]}",
                "Name the column by its label as a string"
                + (f", {names[at]!r} or {names[numbered[0]]!r}." if names else "."),
            )
        if at in found:
            raise bad_value(argument, "each column once", f"{column!r} twice", "Name it once.")
        found.append(at)
    if not found:
        raise bad_value(argument, "at least one column", "none", "Name a column, or leave the argument out.")
    return found


def _mask_of(rows: Any, observed: Any) -> Tensor:
    """Return a mask as a tensor; raise an error unless it is boolean and of the shape of the rows."""
    mask, shape = observed, tuple(getattr(rows, "shape", ()))
    expected = f"booleans of the shape of the rows, {shape}: True where a cell is observed"
    if not isinstance(observed, Tensor):
        held = frames.whole(observed)
        objects = frames.objects(held)
        if objects is not None:
            odd = [at for at, entry in np.ndenumerate(objects) if not isinstance(entry, bool | np.bool_)]
            if odd:
                came = f"{shown(objects[odd[0]])} at {place(list(odd[0]))}"
                raise bad_value("observed", expected, came, "Pass True or False for every cell.")
            held = objects.astype(bool)
        mask = torch.from_numpy(as_numpy(held, "observed"))
    if mask.dtype != torch.bool or tuple(mask.shape) != shape:
        raise bad_value(
            "observed",
            expected,
            f"{mask.dtype} of shape {tuple(mask.shape)}",
            "Pass the mask in that shape, or leave it out and pass NaN in missing cells.",
        )
    return mask


def complete(x: Any, model: str) -> Any:
    """Return a mapping without the mask beside its rows; raise ``ValueError`` if that hides a cell. Other x stay as they are."""
    if not isinstance(x, Mapping) or x.get("observed") is None:
        return x
    rows = _the_rows(x, "x")
    holes = (~_mask_of(rows, align("observed", x["observed"], frames.index(rows)))).nonzero()
    if len(holes):
        raise bad_value(
            "observed",
            f"no hidden cells, because {model} takes complete rows",
            f"{len(holes)}, first at {place(holes[0].tolist())}",
            "Fill them in, drop these rows, or use a model that takes missing cells, such as PPCA.",
        )
    return {name: value for name, value in x.items() if name != "observed"}


def hidden(frame: Any, observed: Any) -> Any:
    """Return a frame without the cells where a mask is False; raise an error unless the mask has the frame's shape and index."""
    mask = _mask_of(frame, align("observed", observed, frames.index(frame)))
    if bool(mask.all()):
        return frame
    held = frames.dense(frame) if hasattr(frame, "columns") else frame
    return frames.nullable(held).where(mask.cpu().numpy())


def without(rows: Any, observed: Any) -> Any:
    """Return rows with NaN where a mask is False; raise an error unless the mask is boolean and of their shape."""
    if hasattr(rows, "to_numpy"):
        found = hidden(rows, observed)
        return rows if found is rows else frames.numbers(found)
    mask = _mask_of(rows, observed)
    if bool(mask.all()):
        return rows
    if isinstance(rows, Tensor) and rows.is_floating_point():
        return restored(rows, mask)
    if isinstance(rows, Tensor) and rows.dtype in (torch.uint16, torch.uint32, torch.uint64):
        rows = rows.cpu().numpy()  # torch has no arithmetic for these
    if hasattr(rows, "toarray"):
        rows = rows.toarray()
    if isinstance(rows, np.ndarray) and not isinstance(rows, np.ma.MaskedArray):
        rows = rows.copy()
        rows[~mask.cpu().numpy()] = 0
    held = dense(rows if isinstance(rows, Tensor) else from_array(frames.numbers(rows), "x"))
    mask = mask.to(held.device)
    if not held.is_floating_point():
        held = cast(held.masked_fill(~mask, 0), torch.float64, "x")
    return restored(held, mask).cpu().numpy()


def row_labels(argument: str, labels: Any, index: Any, num_rows: int) -> pd.Series:
    """Return a label or a number for each row, in the order of the rows' index; refuse another number.

    A pandas category keeps its levels and their order.
    """
    import pandas as pd

    found = align(argument, labels, index)
    dtype = getattr(found, "dtype", None)
    held = found if isinstance(dtype, pd.CategoricalDtype) else np.asarray(found)
    if held.shape != (num_rows,):
        came = f"shape {held.shape}"
        raise bad_value(argument, f"one for each of the {num_rows} rows", came, "Pass one column.")
    return pd.Series(held).reset_index(drop=True)


def restored(rows: Tensor, observed: Tensor | None) -> Tensor:
    """Return rows with NaN in missing cells, for checks and statistics that leave NaN out; unchanged if none is missing."""
    return rows if observed is None else rows.masked_fill(~observed.to(rows.device), torch.nan)


def completed(rows: Tensor, observed: Tensor | None) -> Tensor:
    """Return rows whose missing cells hold the observed cells of their column in turn, for statistics of columns.

    Raises:
        ValueError: a column has no observed cell.
    """
    if observed is None:
        return rows
    check_columns_observed(observed.any(dim=0), len(rows))
    found = rows.clone()
    for column in (~observed.all(dim=0)).nonzero().tolist():
        at = (slice(None), *column)
        held, there = found[at], observed[at]
        held[~there] = held[there][torch.arange(int((~there).sum()), device=held.device) % int(there.sum())]
    return found


def check_columns_observed(seen: Tensor, num_rows: int, names: tuple[str, ...] | None = None) -> None:
    """Raise ``ValueError`` for columns without an observed cell; ``seen`` tells which have one, shape (columns,)."""
    empty = torch.nonzero(~seen.flatten()).flatten()
    if len(empty):
        column = int(empty[0])
        raise bad_value(
            "x",
            "an observed cell in every column",
            f"{len(empty)} column(s) without any in {num_rows} rows, first {column_of(column, names)}",
            "Drop those columns, or fit on rows that have them.",
        )


def joined(x: Any, argument: str) -> Any:
    """Return chunks joined into one, and other rows as ``chunks.plain``."""
    try:
        return chunks.joined(x) if chunks.several(x) else chunks.plain(x)
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
            'Pass {"x": rows, "offset": …}; of a dict of columns, pandas.DataFrame(x).',
        )
    return x["x"]


def _same_names(
    argument: str, value: Any, name: str, known: dict[str, tuple[str, ...]], fitted: bool
) -> None:
    """Raise ``ValueError`` if a frame's column names differ from ``known[name]``; if that is missing, set it.

    Columns 0, 1, … have no names, and may be those of any names but numbers. A frame of such columns, in ``known`` under
    ``numbered(name)``, may be of any columns but other numbers.
    """
    came, expected, labels = frames.names(value), known.get(name), frames.labels(value)
    if labels is None and came is None:
        return
    numbers = tuple(map(str, range(len(labels or ()))))
    if came is None and expected is None:
        known[numbered(name)] = numbers
        return
    if came is None and expected is not None and frames.are_numbers(expected):
        came = numbers
    elif expected is None and fitted and came is not None and sorted(came) == sorted(numbers):
        expected = numbers
    elif expected is None and numbered(name) in known and frames.are_numbers(came):
        expected = known[numbered(name)]
    if came is None:
        return
    if expected is None:
        known[name] = came
    elif came != expected:
        raise bad_value(
            argument,
            "the columns that were fitted, by name and in order",
            frames.difference(came, expected),
            f"Select them in that order; where the names alone differ, pass {argument}.to_numpy().",
        )


def _require_names_of(rows: Any, mask: Any, fitted: tuple[str, ...] | None) -> None:
    """Raise ``ValueError`` if the columns of a mask, a frame, may be others than those of the rows, or in another order.

    Columns 0, 1, … of a mask may be those of any names but numbers. Rows without names have the ``fitted`` ones, if known.
    """
    came = frames.labels(mask)
    if came is None:
        return
    numbers = tuple(map(str, range(len(came))))
    own = frames.names(rows) if hasattr(rows, "columns") else None
    expected = own or fitted or numbers
    if came == expected or (came == numbers and not frames.are_numbers(expected)):
        return
    if own:
        named = "the columns of x, by name and in order"
    elif fitted:
        named = "the columns that were fitted, by name and in order, because x has no names"
    else:
        named = "columns 0, 1, … in order, because those of x have no names"
    fix = "Select the columns in that order; where the names alone differ, pass observed.to_numpy()."
    raise bad_value("observed", named, frames.difference(came, expected), fix)


def numbered(name: str) -> str:
    """Return the key, beside names of columns, that says that a frame's columns were numbered 0, 1, …."""
    return f"{name}, numbered"


def _aligned(name: str, value: Any, dtype: torch.dtype | None, device: torch.device) -> Tensor:
    """Return a value aligned with the rows: whole numbers and booleans keep their type, the rest goes to ``as_tensor``."""
    value = frames.whole(value)
    if isinstance(value, np.ndarray) and value.dtype.kind in "biu":
        value = torch.from_numpy(as_numpy(value, name)).to(device)
    if isinstance(value, Tensor) and not value.is_floating_point() and not value.is_complex():
        if value.dim() == 0:
            raise bad_value(name, "an entry for every row", "a single number", "Pass an array.")
        return (value.clone() if value.is_inference() else value).to(device)
    return as_tensor(value, dtype=dtype, device=device, argument=name)


def leaving_cells(few: np.ndarray, observed: Tensor | None) -> np.ndarray:
    """Return the numbers of some rows, without those that the others need for two observed cells in every column.

    A column with one cell is constant. ``observed`` tells which cells of all rows are observed; None if all are.
    """
    if observed is None:
        return few
    seen = observed.reshape(len(observed), -1).cpu().numpy()
    left = seen.sum(axis=0) - seen[few].sum(axis=0)
    kept = []
    for row in few:
        if (seen[row] & (left < 2)).any():
            left = left + seen[row]
        else:
            kept.append(row)
    return np.array(kept, dtype=few.dtype)
