"""Identity of rows: fingerprints of data sets, hashes of rows, and which rows a model was fitted to."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import product

import numpy as np
import torch
from torch import Tensor

from pyrovae import rounding
from pyrovae.rounding import blocks
from pyrovae.sparse import SparseRows


@dataclass(frozen=True, eq=False)
class Fingerprint:
    """Identifies the rows that a number was computed on: equal for equal flattened rows, whatever their dtype.

    Rows in float64 also equal their own copy in float32, unless that cast is a loss (see ``rounding.cast``). No other
    rows that differ are equal, even if they agree in float32. Rows of two tables are equal if their values are, whatever the
    codes. Other rows equal those of a table if they are its codes or its values. So two tables of different values can both
    equal the same other rows.

    Attributes:
        sha256: of the rows' exact values.
        rounded: sha256 of the rows in float32; the same as ``sha256`` if float32 holds the rows.
        lossy: whether a cast to float32 loses more than rounding.
        floors: sha256 of the rows rounded down, which dequantisations of the same whole numbers share.
        binary: whether every entry is 0 or 1.
        totals: the sum of every row, shape (rows,). ``unlike`` uses it to explain how rows differ.
        columns: entries in a row.
        missing: how many cells are missing. Hashes include which cells these are.
        mask: sha256 of which cells are missing; empty if none is.
        given: columns that a number is conditional on, by number; empty for log P of all columns.
        names: of the columns; empty if they have none, or several have one name.
        by_name: of the same rows with columns in the order of their names; None if they are in it, or have no names.
        values: of the values that a table's codes stand for; None without a table.
    """

    sha256: str
    rounded: str
    lossy: bool
    floors: str
    binary: bool
    totals: np.ndarray = field(repr=False)
    columns: int
    missing: int = 0
    mask: str = ""
    given: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    by_name: Fingerprint | None = field(default=None, repr=False)
    values: Fingerprint | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.totals)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Fingerprint):
            return NotImplemented
        return self.given == other.given and any(one._holds(two) for one, two in self._readings(other))

    def __hash__(self) -> int:
        return hash((len(self), self.columns, self.mask))  # equal rows may have other codes

    def _readings(self, other: Fingerprint) -> list[tuple[Fingerprint, Fingerprint]]:
        """Return what to compare: the values of two tables; else the rows, as codes and as values of a table."""
        if self.values is not None and other.values is not None:
            return [(self.values, other.values)]
        readings = ([each, each.values] for each in (self, other))
        return [(one, two) for one, two in product(*readings) if one is not None and two is not None]

    def _holds(self, other: Fingerprint) -> bool:
        """Return whether other rows hold the same numbers."""
        if self.sha256 == other.sha256:
            return True
        one_in_float32 = self.sha256 == self.rounded or other.sha256 == other.rounded
        return self.rounded == other.rounded and one_in_float32 and not (self.lossy or other.lossy)

    def same_by_name(self, other: Fingerprint) -> bool:
        """Return whether both are of the same rows, whose columns have the same names, in whatever order."""
        if not self.names or sorted(self.names) != sorted(other.names):
            return False
        given, others = ({each.names[column] for column in each.given} for each in (self, other))
        return given == others and any(one._sorted._holds(two._sorted) for one, two in self._readings(other))

    @property
    def _sorted(self) -> Fingerprint:
        return self if self.by_name is None else self.by_name

    def unlike(self, other: Fingerprint) -> str:
        """Return, in words, how other rows differ from these, as far as the two fingerprints show it."""
        if (len(self), self.columns) != (len(other), other.columns):
            return f"{len(other)} rows of {other.columns} columns against {len(self)} of {self.columns}"
        named = bool(self.names and other.names)
        given, others = ([each.names[d] if named else d for d in each.given] for each in (self, other))
        if sorted(map(str, given)) != sorted(map(str, others)):
            return f"log P given the columns {others} against {given}"
        if self.values is not None and other.values is not None:
            return self.values.unlike(other.values)
        if self.missing != other.missing:
            return f"{other.missing} missing cells against {self.missing}"
        if self.mask != other.mask:
            return f"{other.missing} missing cells in other places"
        if self.rounded == other.rounded:
            return "numbers that agree in float32 alone"
        if self.floors == other.floors:
            return "the same whole numbers, dequantised by other noise"
        scale = float(np.abs(self.totals).max())
        if np.ptp(self.totals) and np.allclose(self.totals, other.totals, rtol=0, atol=1e-12 * scale):
            return "what look like the same rows with columns in another order"
        if np.array_equal(np.sort(self.totals), np.sort(other.totals)):
            return "rows of the same totals, in another order"
        alike = float(np.corrcoef(self.totals, other.totals)[0, 1]) if len(self) > 2 else 0.0
        if self.binary and other.binary and alike > 0.5:
            return "another binarization of what look like the same images: fixed against random, or two random ones"
        if alike > 1 - 1e-6:
            factor, shift = np.polyfit(self.totals, other.totals, 1)
            if abs(factor - 1) < 1e-6:
                return (
                    f"what look like the same rows with a constant added, {shift:.4g} in all columns together"
                )
            return f"what look like the same rows in other units, a factor of {factor:.4g}"
        return f"other numbers in {len(other)} rows"


#: Of a number that belongs to no rows, as far as is known.
NO_ROWS = Fingerprint("", "", False, "", False, np.zeros(0), 0)


def fingerprint(
    x: Tensor, observed: Tensor | None = None, names: tuple[str, ...] | None = None
) -> Fingerprint:
    """Return the fingerprint of rows before any cast, shape (rows, ...), of any dtype.

    ``observed`` says which cells are there, a boolean tensor of the same shape; missing cells are 0 in ``x``. ``names`` are
    those of the columns of rows of shape (rows, columns).
    """
    found = _fingerprint(x, observed)
    if not names or x.dim() != 2 or len(set(names)) < x.shape[1] or isinstance(x, SparseRows):
        return found
    order = sorted(range(len(names)), key=names.__getitem__)
    by_name = None
    if order != list(range(len(names))):
        moved = _fingerprint(x, observed, order)
        by_name = replace(moved, totals=np.zeros(0))
    return replace(found, names=names, by_name=by_name)


def _fingerprint(x: Tensor, observed: Tensor | None, order: list[int] | None = None) -> Fingerprint:
    """Return the fingerprint of rows whose columns have no names, or of these columns in another order."""
    if order is not None and observed is not None:
        observed = observed[:, order]
    columns = x.numel() // len(x)
    exact, rounded, floors = (hashlib.sha256(repr((len(x), columns)).encode()) for _ in range(3))
    mask = b"" if observed is None else np.packbits(observed.cpu().numpy()).tobytes()
    for each in (exact, rounded, floors):
        each.update(mask)
    totals, binary, held = [], True, True
    watch = None if rounding.holds(x.dtype, torch.float32) else rounding.Watch(torch.float32)
    for _, block in blocks(x):
        flat = block.detach().cpu().reshape(len(block), -1)
        flat = flat if order is None else flat[:, order]
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
        sha256,
        rounded.hexdigest(),
        lossy,
        floors.hexdigest(),
        binary,
        np.concatenate(totals),
        columns,
        0 if observed is None else int((~observed).sum()),
        hashlib.sha256(mask).hexdigest() if mask else "",
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


def row_hashes(x: Tensor, observed: Tensor | None = None) -> np.ndarray:
    """Return two 64-bit hashes of every row, shape (rows, 2): of its exact values, and of its values in float32.

    Equal rows have equal hashes, whatever their dtype. The two hashes are the same if float32 holds the row. With
    ``observed`` (see ``fingerprint``), rows are equal if the same cells are missing; complete rows keep their hashes.
    """
    masks: dict[int, bytes] = {}
    if observed is not None:
        present = observed.reshape(len(x), -1).cpu().numpy()
        masks = {
            int(row): np.packbits(present[row]).tobytes() for row in np.flatnonzero(~present.all(axis=1))
        }

    def of(row: np.ndarray, number: int) -> int:
        found = hashlib.blake2b(row.data, digest_size=8)
        found.update(masks.get(number, b""))
        return int.from_bytes(found.digest(), "little")

    found = np.empty((len(x), 2), dtype=np.uint64)
    for start, block in blocks(x.detach()):
        flat = block.cpu().reshape(len(block), -1)
        narrow = flat.float().contiguous().numpy() + np.float32(0)
        rows_here = found[start : start + len(block)]
        rows_here[:, 1] = rows_here[:, 0] = [of(row, start + i) for i, row in enumerate(narrow)]
        if not rounding.holds(x.dtype, torch.float32):
            wide = flat.double().contiguous().numpy() + 0.0
            odd = np.flatnonzero((wide != narrow).any(axis=1))
            rows_here[odd, 0] = [of(wide[i], start + int(i)) for i in odd]
    return found


def united(first: np.ndarray, more: np.ndarray) -> np.ndarray:
    """Return the ``row_hashes`` in ``first``, then those of ``more`` that ``first`` lacks."""
    known = np.isin(more[:, 0], first[:, 0]) & np.isin(more[:, 1], first[:, 1])
    return np.concatenate([first, more[~known]])


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
