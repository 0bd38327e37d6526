"""Finds context that was computed from its rows, for which log P(x | context) is no log-likelihood of x.

Each column of the context is compared by itself, whatever its dtype and shape, with:

* a column of x, or the whole row; the one-hot argmax, or a column of it;
* a row's sum, mean, maximum, minimum, argmax, argmin, number of non-zero entries, L1 norm and L2 norm;
* affine images of these, of their log, log1p, square root, square and reciprocal, and the log, square root or
  reciprocal of an affine image;
* the same of a guarded statistic: clamped from below or above, or with a small number added before the log;
* a column, a statistic, or its log, log1p, square root, square or reciprocal, rounded or cast to whole numbers or
  half precision, if at least five values differ;
* with more rows than columns, linear functions of x or of log(1 + x), such as the total of some columns, and the log or
  square root of one.

Everything else stays context; if all rows differ, any context is some function of x. A context counts as computed
only if it agrees with the function up to rounding on every row of the sample. Such agreement must also occur by chance
less than once in 10 000 times. Labels on few rows are therefore never called computed, and up to three rows
can only reveal totals. A context that equals a statistic for other reasons cannot be told apart, such as a class label
that is the argmax of every row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any, NamedTuple, TypeVar

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae import supports
from pyrovae.pair.running import Batch, Scored, Sites, flat, take

# The largest probability that unrelated context is called computed, over all functions of all its columns.
_FALSE_ALARMS = 1e-4
# Number of rows that are compared with statistics and columns. Linear functions use some more rows than
# there are columns, if these rows hold at most this many numbers.
_ROWS, _NUMBERS = 512, 2**20
# Rows beyond the number of columns that linear functions need, and how many of them are used.
_SPARE, _MOST_SPARE = 20, 32
_ROUNDING = 2.0**-23  # of a float32, in which most totals were computed
_LOOSEST = 1e-2  # standard deviations of the context, the largest rounding error allowed
_MOST_REACH = 1e3  # largest ratio of the numbers that a context is the logarithm of
_FEWEST_LEVELS = 5  # of numbers that a statistic was cast to
_NARROW = (torch.float16, torch.bfloat16)
_MOST_POWER = 80  # of e, within the range of a float32
_STATISTICS = 9
# How often a column is compared with a function: six images and five more inverse images, for five choices of rows or
# guards. These are all rows, rows without those of its least value, of its largest or of both, and a number added.
# Statistics get half of the allowed false alarms.
_TRIES = 11 * 5 * 2

#: The name of a row's total if the model is conditional on it and no context holds it.
OWN_TOTAL = "the row's own total"


S = TypeVar("S", bound=Scored)


def judged(scored: S, batch: Batch, probe: Batch, sites: Sites) -> S:
    """Return ``scored`` with its own totals, and as a pseudo-likelihood if context was computed from the scored columns.

    Args:
        scored: the columns that sites hold.
        batch: all rows, under "x", and the values aligned with them.
        probe: the few of them that the sites hold.
        sites: the model's sites on the probe.

    A Multinomial or DirichletMultinomial is conditional on its total, because its log-probability always uses the
    total of the value. Another likelihood is so if its ``total_count`` is the total of its value on every row of
    the probe. If a Binomial alone is scored, context equal to its ``total_count`` is accepted as given. Other
    likelihoods that are normalised given a total cannot be recognised, and are called pseudo-likelihoods. The
    number log P(x | total) is a log-likelihood of the rows with that total, by name or ``OWN_TOTAL``.
    """
    measure = scored.measure
    # Sites that hold functions of x instead of its columns have no known columns.
    held = {} if "transformed" in measure else scored.columns
    columns = sorted({column for some in held.values() for column in some})
    blocks = [
        block
        for name, some in held.items()
        for block in _given_total(sites[name]["fn"], sites[name]["value"], some)
    ]
    if not batch.keys() - {"x", "observed"} and not blocks:
        return scored
    masked = "observed" in batch or any("unscored" in measure[column] for column in columns)
    chosen = columns or list(range(len(measure)))
    sample = _Sample(batch, chosen, masked)
    # A function of the whole row shows on complete rows, and one of the observed cells on all.
    samples = [sample]
    if "observed" in batch:
        complete = batch["observed"].flatten(1).all(dim=1).nonzero()[:, 0]
        if len(complete):
            samples.append(_Sample(take(batch, complete), chosen, masked))
    totals = sample.totals(blocks)
    own = []
    left = torch.ones(len(totals.values), dtype=torch.bool)
    for name, value in sample.context.items():
        excused, given = sample.images_of(totals, value)
        left &= ~given
        if bool(excused.any()):
            own.append(name)
        if len(columns) == 1 and _is_its_count(sites, held, probe[name]):
            continue
        if any(each.is_computed(each.context[name][~excused]) for each in samples):
            measure = ("pseudo-likelihood",) * len(measure)
    if bool((left & totals.varies()).any()):
        own.append(OWN_TOTAL)
    return replace(scored, measure=measure, own_totals=tuple(own))


def computed_from_rows(batch: Batch) -> list[str]:
    """Return the names of values beside the rows that were computed from them, by any function listed in the module.

    log P(x | c) with c = c(x) is no log-likelihood, because its sum over all x is not 1.
    """
    sample = _Sample(batch, list(range(batch["x"][0].numel())), masked=False)
    return [name for name, value in sample.context.items() if sample.is_computed(value)]


# ---------------------------------------------------------------------------------------------------------
# Functions of rows


@dataclass(frozen=True)
class _Functions:
    """Functions of some rows and bounds on their float32 rounding error, both of shape (functions, rows), float64."""

    values: Tensor
    rounding: Tensor

    def varies(self) -> Tensor:
        """Return which of them are not constant."""
        return (self.values != self.values[:, :1]).any(dim=1)

    def of(self, chosen: Tensor | slice | list[int]) -> _Functions:
        """Return some of them."""
        return _Functions(self.values[chosen], self.rounding[chosen])

    def and_(self, others: _Functions) -> _Functions:
        """Return these followed by others."""
        return _Functions(
            torch.cat([self.values, others.values]), torch.cat([self.rounding, others.rounding])
        )

    def images(self) -> Iterator[_Functions]:
        """Yield themselves, then logarithms, log1p's, roots, squares and reciprocals; constant if undefined."""
        v, r = self.values, self.rounding
        low = v.amin(dim=1, keepdim=True)
        yield self
        # The logarithm of ones and the root of zeros are constant and so match nothing.
        positive = v.where(low > 0, 1.0)
        log = positive.log()
        yield _Functions(log, self._rounded(lambda: r / positive + _ROUNDING * log.abs()))
        not_negative = v.where(low >= 0, 0.0)
        yield _Functions(not_negative.log1p(), self._rounded(lambda: r / (1 + not_negative)))
        root = not_negative.sqrt()
        # √(v + r) − √v is finite also for v = 0.
        yield _Functions(root, self._rounded(lambda: (not_negative + r).sqrt() - root))
        yield _Functions(v**2, self._rounded(lambda: 2 * v.abs() * r))
        yield _Functions(1 / positive, self._rounded(lambda: r / positive**2))

    def inverse_images(self) -> Iterator[_Functions]:
        """Yield themselves, then the arguments of which they are a logarithm (base e, 10, 2), a root or a reciprocal.

        They are constant if there is no such argument.
        """
        v, r = self.values, self.rounding
        size, low = v.abs().amax(dim=1, keepdim=True), v.amin(dim=1, keepdim=True)
        reach = v.amax(dim=1, keepdim=True) - low
        yield self
        for factor in map(math.log, (math.e, 10.0, 2.0)):
            # Beyond these limits only the largest value would count.
            held = (size * factor < _MOST_POWER) & (reach * factor < math.log(_MOST_REACH))
            power = (factor * v).where(held, 0.0).exp()
            # Rounding errors of the logarithm and of its argument.
            yield _Functions(power, self._rounded(lambda: factor * power * (r + _ROUNDING)))  # noqa: B023
        square = v.where(low >= 0, 0.0) ** 2
        yield _Functions(square, self._rounded(lambda: 2 * v.abs() * r))
        one_sign = (low > 0) | (v.amax(dim=1, keepdim=True) < 0)
        divisor = v.where(one_sign & (size < _MOST_REACH * v.abs().amin(dim=1, keepdim=True)), 1.0)
        yield _Functions(1 / divisor, self._rounded(lambda: r / divisor**2))

    def _rounded(self, error: Callable[[], Tensor]) -> Tensor:
        """Return the rounding error of an image if that of the values is known."""
        return error() if self.rounding.numel() else self.rounding


def _statistics(x: Tensor) -> _Functions:
    """Return the statistics of rows, shape (rows, columns), that the module lists, except copies; the sum is first."""
    total, size = x.sum(dim=1), x.abs().sum(dim=1)
    norm, most, least = x.norm(dim=1), x.amax(dim=1), x.amin(dim=1)
    places = [x.argmax(dim=1).double(), x.argmin(dim=1).double(), (x != 0).sum(dim=1).double()]
    exact = [torch.zeros_like(total)] * 3
    mean, mean_size = total / x.shape[1], size / x.shape[1]
    sums = _ROUNDING * torch.stack(
        [16 * size, 16 * mean_size, most.abs(), least.abs(), 16 * size, 16 * norm, *exact]
    )
    return _Functions(torch.stack([total, mean, most, least, size, norm, *places]), sums)


class _Sample:
    """Some of the rows with their context; each context column is compared by itself."""

    def __init__(self, batch: Batch, scored: list[int], masked: bool) -> None:
        x = flat(batch["x"])
        # Which cells are missing is context by its name.
        given = {n: value.reshape(len(x), -1) for n, value in batch.items() if n not in ("x", "observed")}
        rows = _chosen(x, given)
        whole = x[rows].double().cpu()
        #: Scored columns: of all chosen rows, and of those that are compared with statistics.
        self._all = whole if len(scored) == x.shape[1] else whole[:, scored]
        self.x, self._whole = self._all[:_ROWS], whole[:_ROWS]
        #: Values beside the rows, by name.
        self.context = {name: _Columns.of(value[rows].cpu()) for name, value in given.items()}
        self._masked = masked
        self._functions: _Functions | None = None

    def totals(self, blocks: list[list[int]]) -> _Functions:
        """Return the total of each of some blocks of columns."""
        values = [self._whole[:, block].sum(dim=1) for block in blocks]
        rounding = [16 * _ROUNDING * self._whole[:, block].abs().sum(dim=1) for block in blocks]
        nothing = self._whole.new_zeros(0, len(self._whole))
        return (
            _Functions(torch.stack(values), torch.stack(rounding)) if blocks else _Functions(nothing, nothing)
        )

    def images_of(self, totals: _Functions, columns: _Columns) -> tuple[Tensor, Tensor]:
        """Return which columns of context are images of totals, however likely by chance, and which totals have one.

        On up to three rows they must be equal to a total, because a straight line fits anything.
        """
        excused = torch.zeros(len(columns), dtype=torch.bool)
        given = torch.zeros(len(totals.values), dtype=torch.bool)
        for match in chain(_matches(columns, totals), _guarded(columns, totals)):
            if len(self.x) < 4 and match.fitted:
                continue
            excused[match.column] = given[match.function] = True
        return excused, given

    def is_computed(self, columns: _Columns) -> bool:
        """Return whether any of the columns follows from the rows, with more agreement than chance gives."""
        if len(self.x) < 4:
            return self._few(columns)
        width = self.x.shape[1]
        copied = columns[:width]
        if torch.equal(copied.values, self.x.T) and float(copied.chance(0.0, 0).sum()) < math.log(
            _FALSE_ALARMS
        ):
            return True  # each of these columns alone might agree by chance, but not all together
        columns = columns[columns.varies()]
        if not len(columns):
            return False
        functions = self._of_rows()
        tries = _TRIES * len(columns) * torch.tensor([_STATISTICS, len(functions.values)])
        allowed = (_FALSE_ALARMS / tries).log()
        # With many columns, guarded functions are searched for among statistics only.
        guarded = functions.of(slice(self._num_statistics)) if len(columns) > _STATISTICS else functions
        columns = columns[columns.chance(1e-9, 0) < allowed[0]]
        for match in chain(_matches(columns, functions), _guarded(columns, guarded)):
            chance = match.agreeing.chance(match.tolerance, match.fitted)
            # Statistics come first, and half of all false alarms are reserved for them.
            if float(chance) < allowed[int(match.function >= self._num_statistics)]:
                return True
        return self._cast(columns, functions, float(allowed[0])) or self._linear(columns)

    def _few(self, columns: _Columns) -> bool:
        """Return whether a column of up to three rows is their total, its logarithm or its square root in every row.

        Any three points are nearly on a line. Whole numbers must be large enough not to agree by chance.
        """
        total = self.x.sum(dim=1)
        functions = [total]
        if bool((total > 0).all()) and bool((self.x >= 0).all()):
            functions += [total.log(), total.log1p(), total.sqrt()]
        unlikely = not columns.whole or bool(total.abs().log1p().sum() > math.log(1e3))
        return unlikely and any(
            bool((value != 0).all()) and torch.allclose(value, function, rtol=1e-5, atol=1e-5)
            for value in columns.values
            for function in functions
        )

    def _of_rows(self) -> _Functions:
        """Return the statistics that vary, then columns, then columns of the one-hot argmax."""
        if self._functions is None:
            statistics = _statistics(self.x)
            kept = statistics.varies()
            if self._masked:
                # Entries that a mask leaves out are often filled with zeros. A statistic that depends only on
                # their number is the length or the mask of a row.
                kept &= ~_follow(statistics.values, (self.x != 0).sum(dim=1))
            self._sums = bool(kept[0])
            self._num_statistics = int(kept.sum())
            one_hot = torch.nn.functional.one_hot(self.x.argmax(dim=1), self.x.shape[1]).double().T
            others = _Functions(self.x.T, _ROUNDING * self.x.T.abs()).and_(
                _Functions(one_hot, torch.zeros_like(one_hot))
            )
            self._functions = statistics.of(kept).and_(others.of(others.varies()))
        return self._functions

    def _cast(self, columns: _Columns, functions: _Functions, allowed: float) -> bool:
        """Return whether a column is a statistic or a column of x, cast to whole numbers or to half precision."""
        if len(columns) > _STATISTICS:  # with many columns, casts are searched for among statistics only
            functions = functions.of(list(range(self._num_statistics)))
        for image in functions.images():
            if columns.whole:
                casts = [
                    values.long().to(columns.dtype).double()
                    for values in (image.values, image.values.round())
                ]
            else:
                casts = [image.values.to(narrow).double() for narrow in _NARROW]
            for cast in casts:
                likely = (columns.values[:, None, :16] == cast[None, :, :16]).all(dim=2).nonzero().tolist()
                for number, function in likely:
                    column = columns[number : number + 1]
                    if torch.equal(column.values[0], cast[function]) and column.levels >= _FEWEST_LEVELS:
                        width = column.values.amax() - column.values.amin()
                        share = float(2 * column.functions.rounding.amax() / width)
                        if float(column.chance(share, 0)) < allowed:
                            return True
        return False

    def _linear(self, columns: _Columns) -> bool:
        """Return whether a column, or the argument of its log or root, is a linear function of x or of log(1 + x)."""
        width = self.x.shape[1]
        rows = min(len(self._all), width + 1 + _MOST_SPARE)
        if rows < width + _SPARE or not len(columns) or (self._masked and not self._sums):
            return False
        x = self._all
        features = [x]
        if bool((x >= 0).all()):
            features.append(x.log1p())
        for feature in features:
            feature = feature[:, (feature != feature[:1]).any(dim=0)]
            if not feature.shape[1]:
                continue
            # Size of the terms of a sum whose spread is one.
            far = float((feature.norm(dim=0) / feature.std(dim=0)).median()) * math.sqrt(width / len(feature))
            with_one = torch.cat([torch.ones(len(feature), 1, dtype=feature.dtype), feature], dim=1)
            normal = _normal_vectors(with_one[:rows])
            for target in columns.all_rows.inverse_images():
                values = target.values[:, :rows]
                spread = values.std(dim=1)
                size = values.abs().amax(dim=1) + far * spread
                tolerance = 4 * (target.rounding[:, :rows].amax(dim=1) + 8 * _ROUNDING * size)
                tolerance = torch.minimum(tolerance, _LOOSEST * spread)
                apart = (values @ normal).abs().amax(dim=1)
                chance = normal.shape[1] * (2 * tolerance / spread).clamp(max=1).log()
                allowed = math.log(_FALSE_ALARMS / (12 * len(columns)))
                likely = (apart <= tolerance) & (spread > 0) & (chance < allowed)
                if bool(likely.any()) and _spanned(
                    with_one, target.values[likely], tolerance[likely], allowed
                ):
                    return True
        return False


def _chosen(x: Tensor, given: dict[str, Tensor]) -> Tensor:
    """Return indices of rows to compare, in random order, after rows in which otherwise constant context varies."""
    width = x.shape[1]
    most = max(64, min(max(_ROWS, width + 1 + _MOST_SPARE), _NUMBERS // width))
    rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:most].to(x.device)
    if len(x) <= _ROWS:
        return rows
    more = []
    for value in given.values():
        still = (value[rows[:_ROWS]] == value[rows[:1]]).all(dim=0)
        if bool(still.any()):
            moved = (value[:, still] != value[rows[:1]][:, still]).any(dim=1)
            more.append(moved.nonzero().flatten()[:64])
    return torch.cat([*more, rows])


def _follow(values: Tensor, key: Tensor) -> Tensor:
    """Return which functions, shape (functions, rows), are constant for each value of the key."""
    place = key.unique(return_inverse=True)[1].expand_as(values)
    start = torch.zeros(len(values), int(place.max()) + 1, dtype=values.dtype)
    low = start.scatter_reduce(1, place, values, "amin", include_self=False)
    high = start.scatter_reduce(1, place, values, "amax", include_self=False)
    return (low == high).all(dim=1)


def _normal_vectors(features: Tensor) -> Tensor:
    """Return orthonormal vectors orthogonal to features, shape (rows, columns): (rows, up to 32)."""
    rows, width = features.shape
    reflectors, factors = torch.geqrf(features / features.norm(dim=0).clamp(min=1e-300))
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(rows, min(rows - width, _MOST_SPARE), generator=generator, dtype=features.dtype)
    for _ in range(2):  # a single pass is not orthogonal up to rounding
        turned = torch.ormqr(reflectors, factors, left, transpose=True)
        turned[:width] = 0
        left = torch.linalg.qr(torch.ormqr(reflectors, factors, turned))[0]
    return left


def _spanned(features: Tensor, values: Tensor, tolerance: Tensor, allowed: float) -> bool:
    """Return whether any values, shape (columns, rows), are linear in features on every row, by more than chance.

    As many rows as there are features determine a linear function. One of all orders of the values on the other
    rows agrees with it. Rows that alone have some feature therefore do not count, because any value fits them.
    """
    basis = torch.linalg.qr(features / features.norm(dim=0).clamp(min=1e-300))[0]
    values, tolerance = values.T, tolerance[None]
    left = values - basis @ (basis.T @ values)
    agree = (left.abs() <= tolerance).all(dim=0)
    order = torch.linalg.lu(features)[0].argmax(dim=0)
    return any(
        _log_orders(column[order[features.shape[1] :]].unique(return_counts=True)[1]) < allowed
        for column in values.T[agree]
    )


def _log_orders(counts: Tensor) -> float:
    """Return minus the log of the number of orders of values with these counts."""
    return float(torch.lgamma(counts + 1.0).sum()) - math.lgamma(int(counts.sum()) + 1)


# ---------------------------------------------------------------------------------------------------------
# Columns of context and the functions they agree with


@dataclass(frozen=True)
class _Columns:
    """Columns of context on some rows.

    Attributes:
        functions: the columns on the rows that are compared, with the rounding error of their precision.
        all_rows: the same on all chosen rows.
        dtype: the dtype of the values as passed.
        levels: number of different values of each column.
        order: log of the share of all orders of its values that equal its own.
        spacing: one over the number of grid points in a column's range if its values lie on a grid; else 0.
    """

    functions: _Functions
    all_rows: _Functions
    dtype: torch.dtype
    levels: Tensor
    order: Tensor
    spacing: Tensor

    @classmethod
    def of(cls, value: Tensor) -> _Columns:
        """Return the columns of a tensor of shape (rows, columns)."""
        values = value.double().T.contiguous()
        if (
            len(values) > 1
            and bool(((values == 0) | (values == 1)).all())
            and bool((values.sum(dim=0) == 1).all())
        ):
            # Add the label of a one-hot code, because each of its columns alone carries little information.
            values = torch.cat([values, values.argmax(dim=0)[None].double()])
        rounding = 4 * _ROUNDING * values.abs()
        if value.is_floating_point():  # values of half precision may be stored in a wider dtype
            for narrow in _NARROW:
                info, size = torch.finfo(narrow), values.abs()
                held = (values == values.to(narrow).double()).all(dim=1)
                # Small whole numbers are exact in any precision.
                held &= ((values != values.round()) | (size > 2 / info.eps)).any(dim=1)
                rounding[held] = 4 * info.eps * size[held].clamp(min=info.tiny)
        levels, order, spacing = [], [], []
        for column in values[:, :_ROWS]:
            level, count = column.unique(return_counts=True)
            levels.append(len(level))
            order.append(_log_orders(count))
            # Logarithms of few whole numbers, also with a small number added, agree as often as the numbers do.
            powers = level.clamp(max=_MOST_POWER).exp()
            spacing.append(max(_spacing(level), _spacing(powers) if level[-1] < _MOST_POWER else 0.0))
        return cls(
            _Functions(values[:, :_ROWS], rounding[:, :_ROWS]),
            _Functions(values, rounding),
            value.dtype,
            torch.tensor(levels, dtype=torch.float64),
            torch.tensor(order, dtype=torch.float64),
            torch.tensor(spacing, dtype=torch.float64),
        )

    @property
    def values(self) -> Tensor:
        """The values, shape (columns, rows), float64."""
        return self.functions.values

    @property
    def whole(self) -> bool:
        """Whether the values were passed as whole numbers or booleans."""
        return not self.dtype.is_floating_point

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, chosen: Tensor | slice) -> _Columns:
        return _Columns(
            self.functions.of(chosen),
            self.all_rows.of(chosen),
            self.dtype,
            self.levels[chosen],
            self.order[chosen],
            self.spacing[chosen],
        )

    def varies(self) -> Tensor:
        """Return which columns are not constant."""
        return self.levels > 1

    def chance(self, tolerance: float, fitted: int) -> Tensor:
        """Return log of a bound on the probability that each column agrees with a function by chance.

        ``tolerance`` is a share of the column's range. By chance, all different values except the ``fitted`` ones
        would have to lie at the function's values, in the function's order.
        """
        each = self.spacing.clamp(min=max(tolerance, 1e-12), max=1)
        values = torch.lgamma(self.levels + 1) + (self.levels - fitted).clamp(min=0) * each.log()
        return self.order + values.clamp(max=0)


def _spacing(levels: Tensor) -> float:
    """Return one over the number of points of a grid that holds all sorted values; 0 if there is no such small grid."""
    if len(levels) < 2:
        return 1.0
    steps = (levels - levels[0]) / (1.0 if bool((levels == levels.round()).all()) else levels.diff().min())
    on_grid = bool(((steps - steps.round()).abs() < 1e-4).all()) and float(steps[-1]) < 1e4
    return 1 / (1 + float(steps[-1])) if on_grid or bool((levels == levels.round()).all()) else 0.0


class _Match(NamedTuple):
    """A column that agrees with a function within a share of its range after fitting some numbers, and the rows."""

    column: int
    function: int
    tolerance: float
    fitted: int
    agreeing: _Columns


def _matches(columns: _Columns, functions: _Functions) -> Iterator[_Match]:
    """Yield columns that are affine images of functions or of their images, or whose inverse images are."""
    if not len(columns) or not len(functions.values):
        return
    # With much to compare, fewer rows suffice to find candidates.
    rows = max(64, 2**30 // (len(columns) * len(functions.values) * 8))
    few = _Functions(functions.values[:, :rows], functions.rounding[:, :0])
    units = [_unit(image.values) for image in few.images()]
    wanted = _Functions(columns.values[:, :rows], columns.values[:, :0])
    for inverse, target in enumerate(wanted.inverse_images()):
        unit = _unit(target.values)
        for image in range(len(units) if inverse == 0 else 1):
            for column, function in ((unit @ units[image].T).abs() > 0.98).nonzero().tolist():
                t = next(islice(columns.functions.of([column]).inverse_images(), inverse, None))
                g = next(islice(functions.of([function]).images(), image, None))
                found = _agrees(t, g, exactly=inverse == 0)
                if found is not None:
                    yield _Match(column, function, *found, columns[column : column + 1])


def _guarded(columns: _Columns, functions: _Functions) -> Iterator[_Match]:
    """Yield columns that match a function except on rows with their least or largest value, as clamped ones do.

    On these rows the function must lie beyond its values on all others. The same holds if log(f + 1e-8) replaces
    the log of zero.
    """
    if not len(columns) or not len(functions.values):
        return
    values = columns.values
    least, most = values.amin(dim=1, keepdim=True), values.amax(dim=1, keepdim=True)
    near = 1e-5 * (most - least)
    first, last = functions.values.argmin(dim=1), functions.values.argmax(dim=1)
    at_least, at_most = values <= least + near, values >= most - near
    rising = at_least[:, first] & at_most[:, last]
    falling = at_least[:, last] & at_most[:, first]
    enough = columns.levels[:, None] > 2
    for column, function in ((rising | falling) & enough).nonzero().tolist():
        t, f, error = values[column], functions.values[function], functions.rounding[function]
        sign = 1.0 if rising[column, function] else -1.0
        if bool((sign * t[f.argsort()].diff() < -near[column]).any()):
            continue
        below, above = t == least[column], t == most[column]
        for left in (below, above, below | above):
            kept = ~left
            if bool(kept.any()) and _beyond(sign * f, kept, left & below, left & above):
                of_function = _Functions(f[None, kept], error[None, kept])
                part = _Columns.of(t[kept, None].to(columns.dtype))
                yield from _more_than_fitted(part, of_function, _Match(column, function, 0.0, 0, part))
        if bool((f >= 0).all()):
            # An added number larger than the least of f / 1e6 changes the logarithm on rows that are not zero, too.
            of_function = _Functions((f + _added(t, f))[None], error[None])
            part = columns[column : column + 1]
            yield from _more_than_fitted(part, of_function, _Match(column, function, 0.0, 1, part))


def _beyond(f: Tensor, kept: Tensor, below: Tensor, above: Tensor) -> bool:
    """Return whether a function is smaller on rows below and larger on rows above than on kept rows."""
    return bool((f[below] < f[kept].amin()).all()) and bool((f[above] > f[kept].amax()).all())


def _more_than_fitted(part: _Columns, of_function: _Functions, as_found: _Match) -> Iterator[_Match]:
    """Yield matches of one column and one function that have clearly more levels than a line can fit."""
    for match in _matches(part, of_function):
        fitted = match.fitted + as_found.fitted
        if not fitted or int(part.levels) > fitted + 1:
            yield as_found._replace(tolerance=match.tolerance, fitted=fitted)


def _added(t: Tensor, f: Tensor) -> float:
    """Return the number e for which t is closest to a line in log(f + e), for f not negative."""
    grid = f.amax() * 10 ** torch.linspace(-16, 0, 65, dtype=f.dtype)
    near = _unit((f + grid[:, None]).log()) @ _unit(t[None])[0]
    log_e, largest = float(grid[near.abs().argmax()].log()), float(grid[-1].log())
    for _ in range(8):  # Newton's method, in log e
        shifted = f + math.exp(log_e)
        by_size = torch.stack([torch.ones_like(f), shifted.log(), math.exp(log_e) / shifted], dim=1)
        size = by_size.norm(dim=0)
        _, slope, change = (torch.linalg.lstsq(by_size / size, t).solution / size).tolist()
        # With e much larger than f, the logarithm is almost a line.
        log_e = min(largest, log_e + max(-1.0, min(1.0, change / slope)) if slope else log_e)
    return math.exp(log_e)


def _unit(values: Tensor) -> Tensor:
    """Return values centred and scaled to length one; zero for constants."""
    centred = values - values.mean(dim=1, keepdim=True)
    length = centred.norm(dim=1, keepdim=True)
    # By rounding, constants may differ from their own mean.
    varies = (values != values[:, :1]).any(dim=1, keepdim=True)
    return torch.where(varies, centred / length.clamp(min=1e-300), torch.zeros_like(centred)).float()


def _agrees(target: _Functions, image: _Functions, exactly: bool) -> tuple[float, int] | None:
    """Return how a column of context agrees with a function, exactly or up to a line, on every row up to rounding.

    Returns:
        The tolerance as a share of its range and how many numbers were fitted; None if it does not agree.
    """
    (t,), (t_error,), (g,), (g_error,) = target.values, target.rounding, image.values, image.rounding
    spread, width = float(t.std()), float(t.amax() - t.amin())
    if width == 0:
        return None
    # In half precision, rounding may be most of the variation.
    narrow = bool(t_error.amax() > 1e-4 * t.abs().amax())
    most = (0.5 if narrow else _LOOSEST) * spread
    tolerance = (t_error + g_error).clamp(max=most)
    if exactly and bool(((t - g).abs() <= tolerance).all()):
        return 2 * float(tolerance.max()) / width, 0
    centre = g.mean()
    slope = float(((t - t.mean()) * (g - centre)).sum() / ((g - centre) ** 2).sum())
    line = t.mean() + slope * (g - centre)
    # Whoever computed the column rounded products and sums as large as these on the way.
    on_the_way = 8 * _ROUNDING * (abs(slope) * (g.abs() + centre.abs()) + t.abs())
    # The line is fitted to rounded values, so their error is also its error.
    rounding = t_error + t_error.mean() + abs(slope) * g_error + on_the_way
    tolerance = rounding.clamp(max=most)
    if bool(((t - line).abs() <= tolerance).all()):
        return 2 * float(tolerance.max()) / width, 2
    return None


# ---------------------------------------------------------------------------------------------------------
# Likelihoods that are conditional on a total


def _given_total(fn: Any, value: Tensor, held: tuple[int, ...]) -> Iterator[list[int]]:
    """Yield blocks of columns of x whose total a site's log-probability is conditional on."""
    family: Any = supports.innermost(fn)
    size = family.event_shape.numel()
    if not family.event_dim or len(held) % size:
        return
    counted = getattr(family, "total_count", None)
    conditional = isinstance(family, torch.distributions.Multinomial | dist.DirichletMultinomial)
    if not conditional and counted is not None:
        dims = tuple(range(-family.event_dim, 0))
        try:
            conditional = bool((value.sum(dims) == counted).all())
        except RuntimeError:  # a total_count of another shape is not the total of the value
            return
    if conditional:
        for start in range(0, len(held), size):
            yield list(held[start : start + size])


def _is_its_count(sites: Sites, columns: dict[str, tuple[int, ...]], context: Tensor | None) -> bool:
    """Return whether context is the number of trials of the only scored column, a count of successes."""
    (name,) = (name for name, held in columns.items() if held)
    family: Any = supports.innermost(sites[name]["fn"])
    counted = getattr(family, "total_count", None)
    if context is None or family.event_dim or not isinstance(counted, Tensor):
        return False
    counted = counted.expand(family.batch_shape).flatten()
    return counted.numel() == context.numel() and bool((counted == context.flatten()).all())
