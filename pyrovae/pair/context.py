"""Context that was computed from the rows it goes with, so that log P(x | context) is no log-likelihood of x.

Found are, for every column of the context by itself, whatever its dtype and shape:

* a column of x, or the whole row; the one-hot argmax, or a column of it;
* a row's sum, mean, maximum, minimum, argmax, argmin, number of non-zero entries, L1 norm and L2 norm;
* affine images of these, of their log, log1p, square root, square and reciprocal, and the log, square root or
  reciprocal of an affine image;
* the same of a statistic with guards: clamped from below or above, or with a small number added before the log;
* whole numbers, or numbers in half precision, that a column, a statistic, or its log, log1p, square root, square or
  reciprocal was rounded or cast to, where at least five differ;
* with more rows than columns, linear functions of x or of log(1 + x), such as the total of some columns, and the log or
  square root of one.

Everything else stays context: where all rows differ, everything is a function of x. A context counts as computed
only where it agrees with the function on every row that is looked at, up to rounding, and where chance would
agree so well less than once in 10 000 times. So a few rows can't accuse labels, and up to three show totals alone.
A context that equals a statistic for other reasons, such as a class label that is the argmax of every row, can't be told apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.distributions import InDouble
from pyrovae.pair.running import Batch, Sites

# The most often that context from elsewhere may be called computed, all functions of all its columns together.
_FALSE_ALARMS = 1e-4
# How many rows are compared with statistics and columns. Linear functions take some more than there are columns,
# as long as these rows hold no more numbers than this.
_ROWS, _NUMBERS = 512, 2**20
# Rows beyond the number of columns, from which on linear functions are looked for; and how many of them serve.
_SPARE, _MOST_SPARE = 20, 32
_ROUNDING = 2.0**-23  # of a float32: what most totals were computed in
_LOOSEST = 1e-2  # standard deviations of the context, which no rounding error may exceed
_MOST_REACH = 1e3  # between the largest and the smallest number that a context is the logarithm of
_FEWEST_LEVELS = 5  # of numbers that a statistic was cast to
_NARROW = (torch.float16, torch.bfloat16)
_MOST_POWER = 80  # of e, below what a float32 holds
_STATISTICS = 9
# How often a column is compared with a function: six images and five more inverse images; all rows, or without those of
# its least value, of its largest, or of both, or with a number added. Statistics have half of all false alarms.
_TRIES = 11 * 5 * 2

#: The name of a row's total where the model is conditional on it, and no context holds it.
OWN_TOTAL = "the row's own total"

_WRAPPERS = (dist.Independent, dist.MaskedDistribution, dist.ExpandedDistribution, InDouble)


class Judged(NamedTuple):
    """What was computed from the scored columns: names that make the number a pseudo-likelihood, and proper totals.

    Attributes:
        computed: context that tells the model what it is to predict.
        own_totals: totals that the likelihood is conditional on, as a multinomial is: log P(x | total) is
            a log-likelihood of the rows with that total. By name, or ``OWN_TOTAL``.
    """

    computed: tuple[str, ...]
    own_totals: tuple[str, ...]


def judge(
    batch: Batch, probe: Batch, sites: Sites, columns: dict[str, tuple[int, ...]], measure: Sequence[str]
) -> Judged:
    """Tell what context was computed from the columns that sites score, and whether it is a total they are given.

    Args:
        batch: all rows, under "x", and what goes with them.
        probe: the few of them that the sites hold.
        sites: the model's sites on the probe.
        columns: the columns of x flattened that each site's values are.
        measure: of every column, as in ``Structure``.

    A likelihood is conditional on its total if it is a Multinomial or DirichletMultinomial, whose log-probability
    always uses the total of the value, or if its ``total_count`` is the total of its value on every row of
    the probe. A Binomial that alone is scored is given its ``total_count`` where the context equals that. More can't be told:
    other likelihoods may be normalised given a total, and are called pseudo-likelihoods all the same.
    """
    known = "transformed" not in measure  # else sites hold something made of x, and no columns
    scored = sorted({column for held in columns.values() for column in held}) if known else []
    blocks = [
        block
        for name, held in columns.items()
        for block in (_given_total(sites[name]["fn"], sites[name]["value"], held) if known else ())
    ]
    if len(batch) == 1 and not blocks:
        return Judged((), ())
    masked = any(measure[column] == "unscored" for column in scored)
    sample = _Sample(batch, scored or list(range(len(measure))), masked)
    totals = sample.totals(blocks)
    computed, own = [], []
    left = torch.ones(len(totals.values), dtype=torch.bool)
    for name, value in sample.context.items():
        excused, given = sample.images_of(totals, value)
        left &= ~given
        if bool(excused.any()):
            own.append(name)
        if len(scored) == 1 and _is_its_count(sites, columns, probe[name]):
            continue
        if sample.is_computed(value[~excused]):
            computed.append(name)
    if bool((left & totals.varies()).any()):
        own.append(OWN_TOTAL)
    return Judged(tuple(computed), tuple(own))


def computed_from_rows(batch: Batch) -> list[str]:
    """The names of what goes with the rows and was computed from them, by any function that the module names.

    log P(x | c) with c = c(x) is no log-likelihood: over all x it does not sum to 1.
    """
    sample = _Sample(batch, list(range(batch["x"][0].numel())), masked=False)
    return [name for name, value in sample.context.items() if sample.is_computed(value)]


# ---------------------------------------------------------------------------------------------------------
# Functions of rows


@dataclass(frozen=True)
class _Functions:
    """Functions of some rows, and how far a float32 may be from each: both of shape (functions, rows), float64."""

    values: Tensor
    rounding: Tensor

    def varies(self) -> Tensor:
        """Which of them are not constant."""
        return (self.values != self.values[:, :1]).any(dim=1)

    def of(self, chosen: Tensor | slice | list[int]) -> _Functions:
        """Some of them."""
        return _Functions(self.values[chosen], self.rounding[chosen])

    def and_(self, others: _Functions) -> _Functions:
        """These, then others."""
        return _Functions(
            torch.cat([self.values, others.values]), torch.cat([self.rounding, others.rounding])
        )

    def images(self) -> Iterator[_Functions]:
        """Themselves, and as many logarithms, log1p's, roots, squares and reciprocals; constant where a value has none."""
        v, r = self.values, self.rounding
        low = v.amin(dim=1, keepdim=True)
        yield self
        # A logarithm of ones, and a root of zeros, are constant: no image of anything.
        positive = v.where(low > 0, 1.0)
        log = positive.log()
        yield _Functions(log, self._rounded(lambda: r / positive + _ROUNDING * log.abs()))
        not_negative = v.where(low >= 0, 0.0)
        yield _Functions(not_negative.log1p(), self._rounded(lambda: r / (1 + not_negative)))
        root = not_negative.sqrt()
        # √(v + r) − √v, for v = 0 too
        yield _Functions(root, self._rounded(lambda: (not_negative + r).sqrt() - root))
        yield _Functions(v**2, self._rounded(lambda: 2 * v.abs() * r))
        yield _Functions(1 / positive, self._rounded(lambda: r / positive**2))

    def inverse_images(self) -> Iterator[_Functions]:
        """Themselves, and what they are a logarithm (base e, 10 and 2), a square root or a reciprocal of.

        Constant where they are such of nothing.
        """
        v, r = self.values, self.rounding
        size, low = v.abs().amax(dim=1, keepdim=True), v.amin(dim=1, keepdim=True)
        reach = v.amax(dim=1, keepdim=True) - low
        yield self
        for factor in map(math.log, (math.e, 10.0, 2.0)):
            # Beyond these the largest value would be all that counts.
            held = (size * factor < _MOST_POWER) & (reach * factor < math.log(_MOST_REACH))
            power = (factor * v).where(held, 0.0).exp()
            # A logarithm's own rounding error, and that of its argument.
            yield _Functions(power, self._rounded(lambda: factor * power * (r + _ROUNDING)))  # noqa: B023
        square = v.where(low >= 0, 0.0) ** 2
        yield _Functions(square, self._rounded(lambda: 2 * v.abs() * r))
        one_sign = (low > 0) | (v.amax(dim=1, keepdim=True) < 0)
        divisor = v.where(one_sign & (size < _MOST_REACH * v.abs().amin(dim=1, keepdim=True)), 1.0)
        yield _Functions(1 / divisor, self._rounded(lambda: r / divisor**2))

    def _rounded(self, error: Callable[[], Tensor]) -> Tensor:
        """The rounding error of an image, where that of the values is known."""
        return error() if self.rounding.numel() else self.rounding


def _statistics(x: Tensor) -> _Functions:
    """Of rows, shape (rows, columns): what the module names, but for copies; the sum first."""
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
    """Some of the rows, with their context: every column of it by itself."""

    def __init__(self, batch: Batch, scored: list[int], masked: bool) -> None:
        x = batch["x"].flatten(1) if batch["x"].dim() > 1 else batch["x"][:, None]
        given = {name: value.reshape(len(x), -1) for name, value in batch.items() if name != "x"}
        rows = _chosen(x, given)
        whole = x[rows].double().cpu()
        #: Scored columns: of all chosen rows, and of those that are compared with statistics.
        self._all = whole if len(scored) == x.shape[1] else whole[:, scored]
        self.x, self._whole = self._all[:_ROWS], whole[:_ROWS]
        #: What goes with the rows, by name.
        self.context = {name: _Columns.of(value[rows].cpu()) for name, value in given.items()}
        self._masked = masked
        self._functions: _Functions | None = None

    def totals(self, blocks: list[list[int]]) -> _Functions:
        """The total of each of some blocks of columns."""
        values = [self._whole[:, block].sum(dim=1) for block in blocks]
        rounding = [16 * _ROUNDING * self._whole[:, block].abs().sum(dim=1) for block in blocks]
        nothing = self._whole.new_zeros(0, len(self._whole))
        return (
            _Functions(torch.stack(values), torch.stack(rounding)) if blocks else _Functions(nothing, nothing)
        )

    def images_of(self, totals: _Functions, columns: _Columns) -> tuple[Tensor, Tensor]:
        """Which columns of context are images of totals, however likely by chance; and which totals have one.

        On up to three rows a straight line fits anything: there they have to be equal.
        """
        excused = torch.zeros(len(columns), dtype=torch.bool)
        given = torch.zeros(len(totals.values), dtype=torch.bool)
        for match in chain(_matches(columns, totals), _guarded(columns, totals)):
            if len(self.x) < 4 and match.fitted:
                continue
            excused[match.column] = given[match.function] = True
        return excused, given

    def is_computed(self, columns: _Columns) -> bool:
        """Whether any of the columns follows from the rows, by more than chance."""
        if len(self.x) < 4:
            return self._few(columns)
        width = self.x.shape[1]
        copied = columns[:width]
        if torch.equal(copied.values, self.x.T) and float(copied.chance(0.0, 0).sum()) < math.log(
            _FALSE_ALARMS
        ):
            return True  # columns that alone say little say it together
        columns = columns[columns.varies()]
        if not len(columns):
            return False
        functions = self._of_rows()
        tries = _TRIES * len(columns) * torch.tensor([_STATISTICS, len(functions.values)])
        allowed = (_FALSE_ALARMS / tries).log()
        # Guarded functions of many columns are looked for among statistics alone.
        guarded = functions.of(slice(self._num_statistics)) if len(columns) > _STATISTICS else functions
        columns = columns[columns.chance(1e-9, 0) < allowed[0]]
        for match in chain(_matches(columns, functions), _guarded(columns, guarded)):
            chance = match.agreeing.chance(match.tolerance, match.fitted)
            # Statistics come first, and have half of all false alarms to themselves.
            if float(chance) < allowed[int(match.function >= self._num_statistics)]:
                return True
        return self._cast(columns, functions, float(allowed[0])) or self._linear(columns)

    def _few(self, columns: _Columns) -> bool:
        """On up to three rows: whether a column is their total, its logarithm or its square root, in every row.

        Any three points are nearly on a line. Whole numbers have to be large enough not to agree by chance.
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
        """Statistics that vary, then columns, then columns of the one-hot argmax."""
        if self._functions is None:
            statistics = _statistics(self.x)
            kept = statistics.varies()
            if self._masked:
                # Entries that a mask leaves out are often filled with zeros. What depends on their number alone is
                # the length or the mask of a row.
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
        """Whether a column is a statistic or a column of x, cast to whole numbers or to half precision."""
        if len(columns) > _STATISTICS:  # a cast of one of many columns is looked for among statistics alone
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
        """Whether a column, or what it is the logarithm or root of, is a linear function of x or of log(1 + x)."""
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
            # How large the terms of a sum may be, whose sum has a spread of one.
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
    """Which rows to look at, in random order; first some on which context moves that is constant on the others."""
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
    """Which functions, shape (functions, rows), are the same wherever the key is."""
    place = key.unique(return_inverse=True)[1].expand_as(values)
    start = torch.zeros(len(values), int(place.max()) + 1, dtype=values.dtype)
    low = start.scatter_reduce(1, place, values, "amin", include_self=False)
    high = start.scatter_reduce(1, place, values, "amax", include_self=False)
    return (low == high).all(dim=1)


def _normal_vectors(features: Tensor) -> Tensor:
    """Orthonormal vectors at right angles to features, shape (rows, columns): (rows, up to 32)."""
    rows, width = features.shape
    reflectors, factors = torch.geqrf(features / features.norm(dim=0).clamp(min=1e-300))
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(rows, min(rows - width, _MOST_SPARE), generator=generator, dtype=features.dtype)
    for _ in range(2):  # once is not at right angles to rounding
        turned = torch.ormqr(reflectors, factors, left, transpose=True)
        turned[:width] = 0
        left = torch.linalg.qr(torch.ormqr(reflectors, factors, turned))[0]
    return left


def _spanned(features: Tensor, values: Tensor, tolerance: Tensor, allowed: float) -> bool:
    """Whether any values, shape (columns, rows), are linear in features on every row, by more than chance.

    Some rows, as many as there are features, determine a linear function. Of all orders that the values on the other
    rows may have, one agrees with it. So rows that alone have some feature, on which any values fit, say nothing.
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
    """Minus log of the number of orders of values that come so often."""
    return float(torch.lgamma(counts + 1.0).sum()) - math.lgamma(int(counts.sum()) + 1)


# ---------------------------------------------------------------------------------------------------------
# Columns of context, and what they agree with


@dataclass(frozen=True)
class _Columns:
    """Columns of context on some rows.

    Attributes:
        functions: the columns on the rows that are compared, with the error of the precision that they have.
        all_rows: the same on all that were chosen.
        dtype: as they came.
        levels: how many different values each has.
        order: log of the share of all orders of its values that equal the one it has.
        spacing: one over the number of values that a column has place for, where all lie on a grid; else 0.
    """

    functions: _Functions
    all_rows: _Functions
    dtype: torch.dtype
    levels: Tensor
    order: Tensor
    spacing: Tensor

    @classmethod
    def of(cls, value: Tensor) -> _Columns:
        """Columns of a tensor of shape (rows, columns)."""
        values = value.double().T.contiguous()
        if (
            len(values) > 1
            and bool(((values == 0) | (values == 1)).all())
            and bool((values.sum(dim=0) == 1).all())
        ):
            # Of a one-hot code the label, too: each column alone says little.
            values = torch.cat([values, values.argmax(dim=0)[None].double()])
        rounding = 4 * _ROUNDING * values.abs()
        if value.is_floating_point():  # numbers of half precision may come in a wider dtype
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
            # Logarithms of few whole numbers, with or without a small number added, agree as often as these.
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
        """Shape (columns, rows), float64."""
        return self.functions.values

    @property
    def whole(self) -> bool:
        """Whether they came as whole numbers or booleans."""
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
        """Which of them are not constant."""
        return self.levels > 1

    def chance(self, tolerance: float, fitted: int) -> Tensor:
        """log of a bound on how often each agrees with a function by chance, within a share of its range.

        Its different values have to lie where the function's do, but for as many as were ``fitted``, and they
        have to come in the function's order.
        """
        each = self.spacing.clamp(min=max(tolerance, 1e-12), max=1)
        values = torch.lgamma(self.levels + 1) + (self.levels - fitted).clamp(min=0) * each.log()
        return self.order + values.clamp(max=0)


def _spacing(levels: Tensor) -> float:
    """One over the number of steps of a grid that holds all values, sorted; 0 where no grid of size does."""
    if len(levels) < 2:
        return 1.0
    steps = (levels - levels[0]) / (1.0 if bool((levels == levels.round()).all()) else levels.diff().min())
    on_grid = bool(((steps - steps.round()).abs() < 1e-4).all()) and float(steps[-1]) < 1e4
    return 1 / (1 + float(steps[-1])) if on_grid or bool((levels == levels.round()).all()) else 0.0


class _Match(NamedTuple):
    """A column that agrees with a function, within a share of its range, after fitting some numbers; and on which rows."""

    column: int
    function: int
    tolerance: float
    fitted: int
    agreeing: _Columns


def _matches(columns: _Columns, functions: _Functions) -> Iterator[_Match]:
    """Columns that are affine images of functions, or of their images, or whose inverse images are such of functions."""
    if not len(columns) or not len(functions.values):
        return
    # Where there is much to compare, fewer rows serve to find what may agree.
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
    """Columns that match a function but on the rows with their least or largest value, as of one that was clamped.

    On these rows the function has to lie beyond all others. So it does where log(f + 1e-8) stands for the log of zero.
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
            # Other small numbers than the least of f / 1e6 change its logarithm on rows that are not zero, too.
            of_function = _Functions((f + _added(t, f))[None], error[None])
            part = columns[column : column + 1]
            yield from _more_than_fitted(part, of_function, _Match(column, function, 0.0, 1, part))


def _beyond(f: Tensor, kept: Tensor, below: Tensor, above: Tensor) -> bool:
    """Whether a function is less than on kept rows on those below, and more on those above."""
    return bool((f[below] < f[kept].amin()).all()) and bool((f[above] > f[kept].amax()).all())


def _more_than_fitted(part: _Columns, of_function: _Functions, as_found: _Match) -> Iterator[_Match]:
    """Matches of one column and one function that have more levels than any line goes through, or nearly."""
    for match in _matches(part, of_function):
        fitted = match.fitted + as_found.fitted
        if not fitted or int(part.levels) > fitted + 1:
            yield as_found._replace(tolerance=match.tolerance, fitted=fitted)


def _added(t: Tensor, f: Tensor) -> float:
    """The number e for which t is most nearly a line in log(f + e), f not negative."""
    grid = f.amax() * 10 ** torch.linspace(-16, 0, 65, dtype=f.dtype)
    near = _unit((f + grid[:, None]).log()) @ _unit(t[None])[0]
    log_e, largest = float(grid[near.abs().argmax()].log()), float(grid[-1].log())
    for _ in range(8):  # Newton's method, in log e
        shifted = f + math.exp(log_e)
        by_size = torch.stack([torch.ones_like(f), shifted.log(), math.exp(log_e) / shifted], dim=1)
        size = by_size.norm(dim=0)
        _, slope, change = (torch.linalg.lstsq(by_size / size, t).solution / size).tolist()
        # With e beyond f, the logarithm is a line.
        log_e = min(largest, log_e + max(-1.0, min(1.0, change / slope)) if slope else log_e)
    return math.exp(log_e)


def _unit(values: Tensor) -> Tensor:
    """Centred, and of length one; zero where constant."""
    centred = values - values.mean(dim=1, keepdim=True)
    length = centred.norm(dim=1, keepdim=True)
    # Constants are off their own mean by rounding.
    varies = (values != values[:, :1]).any(dim=1, keepdim=True)
    return torch.where(varies, centred / length.clamp(min=1e-300), torch.zeros_like(centred)).float()


def _agrees(target: _Functions, image: _Functions, exactly: bool) -> tuple[float, int] | None:
    """Whether a column of context is a function, as it is or up to a line, on every row but for rounding.

    Returns:
        Within what share of its range, and after fitting how many numbers; None where it is not.
    """
    (t,), (t_error,), (g,), (g_error,) = target.values, target.rounding, image.values, image.rounding
    spread, width = float(t.std()), float(t.amax() - t.amin())
    if width == 0:
        return None
    # Of half precision, rounding may be most of what varies.
    narrow = bool(t_error.amax() > 1e-4 * t.abs().amax())
    most = (0.5 if narrow else _LOOSEST) * spread
    tolerance = (t_error + g_error).clamp(max=most)
    if exactly and bool(((t - g).abs() <= tolerance).all()):
        return 2 * float(tolerance.max()) / width, 0
    centre = g.mean()
    slope = float(((t - t.mean()) * (g - centre)).sum() / ((g - centre) ** 2).sum())
    line = t.mean() + slope * (g - centre)
    # Whoever computed it rounded products and sums on the way, as large as these.
    on_the_way = 8 * _ROUNDING * (abs(slope) * (g.abs() + centre.abs()) + t.abs())
    # The line goes through rounded values: it is off by their error, too.
    rounding = t_error + t_error.mean() + abs(slope) * g_error + on_the_way
    tolerance = rounding.clamp(max=most)
    if bool(((t - line).abs() <= tolerance).all()):
        return 2 * float(tolerance.max()) / width, 2
    return None


# ---------------------------------------------------------------------------------------------------------
# Likelihoods that are conditional on a total


def _unwrapped(fn: Any) -> Any:
    """The family, without what Pyro and this package wrap around it."""
    while isinstance(fn, _WRAPPERS):
        fn = fn.base_dist
    return fn


def _given_total(fn: Any, value: Tensor, held: tuple[int, ...]) -> Iterator[list[int]]:
    """Blocks of columns of x whose total a site's log-probability is conditional on."""
    family = _unwrapped(fn)
    size = family.event_shape.numel()
    if not family.event_dim or len(held) % size:
        return
    counted = getattr(family, "total_count", None)
    conditional = isinstance(family, torch.distributions.Multinomial | dist.DirichletMultinomial)
    if not conditional and counted is not None:
        dims = tuple(range(-family.event_dim, 0))
        try:
            conditional = bool((value.sum(dims) == counted).all())
        except RuntimeError:  # a total_count of another shape is something else
            return
    if conditional:
        for start in range(0, len(held), size):
            yield list(held[start : start + size])


def _is_its_count(sites: Sites, columns: dict[str, tuple[int, ...]], context: Tensor | None) -> bool:
    """Whether context is the number of trials of the one scored column, a count of successes."""
    (name,) = (name for name, held in columns.items() if held)
    family = _unwrapped(sites[name]["fn"])
    counted = getattr(family, "total_count", None)
    if context is None or family.event_dim or not isinstance(counted, Tensor):
        return False
    counted = counted.expand(family.batch_shape).flatten()
    return counted.numel() == context.numel() and bool((counted == context.flatten()).all())
