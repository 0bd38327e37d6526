"""SparseRows: the rows of a sparse matrix as a tensor whose parts become dense when they are used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor


class SparseRows(Tensor):
    """Rows of numbers that are mostly 0, shape (rows, columns), in the memory of a scipy.sparse CSR array.

    Indexing rows, ``x[some]``, returns an ordinary dense tensor. Casts and moves to a device keep rows sparse, and so does
    ``chosen``. Every other operation makes all rows dense first: its result is right, but takes the memory of dense rows.
    Operations in place raise ``TypeError``. Code for many rows therefore goes through them in tiles, minibatches or ``rounding.blocks``.

    Attributes:
        matrix: the CSR array, in the dtype in which it came. Its entries are cast when they are used.
    """

    matrix: Any

    @staticmethod
    def __new__(cls, matrix: Any, dtype: torch.dtype | None = None, device: Any = "cpu") -> SparseRows:
        dtype = torch.from_numpy(matrix.data[:0]).dtype if dtype is None else dtype
        made: SparseRows = Tensor._make_wrapper_subclass(cls, matrix.shape, dtype=dtype, device=device)
        made.matrix = matrix
        return made

    def dense(self, rows: Any = slice(None)) -> Tensor:
        """Return some rows as an ordinary tensor; ``rows`` is an index of dim 0, or a tuple of slices and tensors."""
        if isinstance(rows, int | np.integer):
            return self.dense([rows])[0]
        place = tuple(map(_as_numpy, rows)) if isinstance(rows, tuple) else _as_numpy(rows)
        part = self.matrix[place]
        found = torch.from_numpy(part.toarray() if hasattr(part, "toarray") else np.asarray(part))
        return found.to(device=self.device, dtype=self.dtype)

    def chosen(self, rows: Tensor) -> SparseRows:
        """Return some rows, sparse."""
        return SparseRows(self.matrix[rows.cpu().numpy()], self.dtype, self.device)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return SparseRows, (self.matrix, self.dtype, self.device)

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _ABOUT:
            return super().__torch_function__(func, types, args, kwargs)
        if args and isinstance(rows := args[0], SparseRows):
            name = getattr(func, "__name__", "")
            if func is Tensor.__setitem__ or (name.endswith("_") and not name.endswith("__")):
                raise TypeError(f"{name}: sparse rows cannot be changed in place. Call it on rows.dense().")
            if func in _NEW or func in _CASTS:
                found = func(torch.empty(0, dtype=rows.dtype, device=rows.device), *args[1:], **kwargs)
                return found if func in _NEW else SparseRows(rows.matrix, found.dtype, found.device)
            place = args[1] if func is Tensor.__getitem__ else ()
            if not isinstance(place, tuple) or (place and all(isinstance(p, slice | Tensor) for p in place)):
                return rows.dense(place)
            if func is Tensor.sum and len(args) == 1 and not kwargs:
                return torch.from_numpy(rows.matrix.data).double().sum().to(rows.dtype)
            if func in (Tensor.sum, Tensor.mean) and len(args) == 1 and kwargs == {"dim": 0}:
                # SciPy's own sum adds float32 in float32.
                held = rows.matrix
                sums = torch.from_numpy(np.bincount(held.indices, held.data, held.shape[1]))
                sums = sums if func is Tensor.sum else sums / len(rows)
                return sums.to(device=rows.device, dtype=rows.dtype)
            # Rows are flat already.
            if (func is Tensor.flatten and args[1:] == (1,)) or (
                func is Tensor.reshape and args[1:] == (len(rows), -1)
            ):
                return rows
        return func(*_dense_parts(args), **{name: _dense_parts(value) for name, value in kwargs.items()})

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        """Serve operations below torch's Python functions, such as those of a compiled graph."""
        return func(*_dense_parts(args), **(kwargs or {}))


#: Questions about the tensor and not its entries.
_ABOUT = {
    *(
        getattr(Tensor, name).__get__
        for name in (
            "shape",
            "dtype",
            "device",
            "layout",
            "ndim",
            "is_quantized",
            "is_nested",
            "requires_grad",
        )
    ),
    *(Tensor.dim, Tensor.size, Tensor.numel, Tensor.__len__),
    *(Tensor.is_floating_point, Tensor.is_complex, Tensor.is_inference),
}
_NEW = {Tensor.new_empty, Tensor.new_zeros, Tensor.new_ones, Tensor.new_full}
_CASTS = {Tensor.to, Tensor.double, Tensor.float, Tensor.cpu, Tensor.detach}


def dense(rows: Any) -> Any:
    """Return ``SparseRows`` as an ordinary tensor, anything else unchanged."""
    return rows.dense() if isinstance(rows, SparseRows) else rows


def _as_numpy(index: Any) -> Any:
    return (
        index.cpu().numpy().copy() if isinstance(index, Tensor) else index
    )  # a copy, which scipy may write to


def _dense_parts(value: Any) -> Any:
    return type(value)(map(_dense_parts, value)) if type(value) in (list, tuple) else dense(value)


def chosen(rows: Tensor, some: Tensor) -> Tensor:
    """Return some of the rows; sparse ones stay sparse."""
    return rows.chosen(some) if isinstance(rows, SparseRows) else rows[some]
