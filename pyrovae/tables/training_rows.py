"""The columns of training rows: family, levels, location and scale of each, or the reason why it is left out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pyrovae import arguments
from pyrovae.entries import elementwise
from pyrovae.likelihoods import REGISTRY, suggest
from pyrovae.likelihoods.base import Likelihood
from pyrovae.likelihoods.mixed import family_of, part_of
from pyrovae.refusals import bad_type, shown
from pyrovae.rounding import WHOLE
from pyrovae.tables.columns import (
    WORDS,
    Column,
    between_steps,
    numbers_of,
    refused,
    some,
    sort_of,
    steps_of,
    unwrapped,
)
from pyrovae.tables.dates import numbers_of_dates

if TYPE_CHECKING:
    import pandas as pd

# A column of other than whole numbers is constant if its values differ by less than this share of the largest one.
_SAME = 1e-12
# A column of whole numbers is numbered like an id if at least so many rows hold consecutive numbers, each once.
_FEWEST_IDS = 20
# Numbers and their range fit in float32, in which networks see them, with a margin.
_LARGEST = 1e35
# A density gives one value no mass, so real numbers of which more than this share are equal get masses.
_REPEATED = 0.1
_OFTEN = 5  # cells with one number; in a few rows, fewer are equal by chance
# A mass is at most 1, so its scale may depend on z. A density's could shrink without bound where rows repeat, and a
# log-normal's mean grows with the exponential of its scale.
_SPREADS = {"rounded_gaussian": "decoder", "censored_gaussian": "decoder"}
# A column is left out if one value fills more than this share of it and it gets a density, which would grow without bound.
_STUCK = 0.99
# The mean of these families determines their spread, so P(x | z) stays as wide as it is however much z tells. They are not
# suggested for a table. Counts that look like a Poisson get the mass of an interval.
_NO_SCALE = ("continuous_bernoulli",)
# Steps are found among numbers up to so many of them; beyond, rounding takes any number for whole.
_LARGEST_STEP = 2.0**40
# A mass is refused if numbers of this size are rounded to more than this share of their standard deviation. Its location
# is rounded as they are, which changes log P by up to about as many nats.
_ROUNDED = 1e-3
# Decimals that are all multiples of one of these have it as their step, if chance makes them so with less than this
# probability. Chance means that decimals are recorded to a power of ten and their last digits are uniform.
_FRACTIONS, _BY_CHANCE = (1 / 2, 1 / 4, 1 / 8), 1e-6
# Sorts of columns whose numbers need a meaning first.
_NO_NUMBERS = ("date", "time", "duration")
# A column is an affine function of others if they leave less than this share of its variance, as in ``FullGaussian``.
_SINGULAR = 1e-10
# So many different numbers may be answers on a scale, such as 1 … 10. More may have a bound at both ends, if each end holds more
# than this share of the rows.
_SHORT, _AT_BOUND = 10, 0.05
_FAR = 1e3  # typical distances from the median, beyond which a number says nothing of the others
_FEWEST_PAIRS = 10  # rows in which both of two columns are observed, to call one a multiple of the other
# Among columns with missing cells, so many rows are compared. A function is found if some column correlates at least so
# much with what other columns leave.
_MOST_COMPARED, _NEAREST = 2000, 0.1
# Larger whole numbers are not counted one by one.
_MOST_COUNTED = 2**24


def column_of(name: Any, values: pd.Series, given: Any, resolution: float | None) -> Column | str:
    """Return a column of the training rows, or the reason why it is left out; raise if it cannot be used."""
    at, sort = np.flatnonzero(values.notna()), sort_of(values)
    out = f"families={{{name!r}: None}}"
    if not len(at):
        raise refused("df", name, "an observed cell", "none", f"Drop the column, or leave it out by {out}.")
    if sort not in WORDS or sort in _NO_NUMBERS:
        fix = f"Convert the column to one of these, or leave it out by {out}."
        if sort in _NO_NUMBERS and (numbers := numbers_of_dates(name, values)) is not None:
            fix = f"Choose a meaning: {numbers}; or leave it out by {out}."
        came = f"{WORDS.get(sort, sort)} of dtype {values.dtype}, first {unwrapped(values.iloc[at[0]])!r}"
        raise refused("df", name, "numbers, booleans, strings or categories", came, fix)
    family, options = given if isinstance(given, tuple) and len(given) == 2 else (given, {})
    if not isinstance(options, dict):
        raise bad_type(
            f"families[{name!r}]", "a dict of options after the name", shown(options), 'Pass {"scale": 1.0}.'
        )
    if family != "":
        arguments.choice(f"families[{name!r}]", family, tuple(REGISTRY))
        set_here = ("network", "standardize", "offset", "num_categories", "num_levels")
        example, argument = f'("{family}", {{{{"{{}}": …}}}})', f"families[{name!r}]"
        arguments.options(family, REGISTRY[family], options, set_here, example, argument)
    # Arrow's decimals are read as float64.
    dtype = "double[pyarrow]" if str(values.dtype).startswith("decimal") else str(values.dtype)
    column = Column(name, sort, dtype, family, options, "given")
    if hasattr(values, "cat"):
        categories, ordered = tuple(values.cat.categories), bool(values.cat.ordered)
        column = replace(column, dtype="category", categories=categories, ordered=ordered)
    if resolution is not None:
        resolution = arguments.positive(f"resolution[{name!r}]", resolution)
        if sort != "number" or family not in ("", "gaussian", "log_normal"):
            came = f"{family or WORDS[sort]}"
            expected = "a column of numbers, gaussian or log_normal"
            raise refused("resolution", name, expected, came, "Leave the resolution out.")
    row = "row" if len(at) == len(values) else "observed row"
    if sort == "number" and not (family and _takes(family) == "levels"):
        column = replace(column, resolution=resolution)
        return _numbers(column, numbers_of("df", name, values.iloc[at], at), at, row)
    return _levels(column, list(values.iloc[at].astype(object)), row)


def determined(columns: Sequence[Column], codes: np.ndarray) -> dict[int, list[int]]:
    """Return the columns that are exact affine functions of others, and which these are, by number.

    Only columns with a density of learned spread count, because it can grow without bound. They are functions of masses of
    numbers or of two levels, and of such densities before them. All are compared on the rows in which all are observed; if
    these are too few, the others are found one by one.
    """
    targets = [i for i, column in enumerate(columns) if can_narrow(column)]
    order = [i for i, c in enumerate(columns) if _is_mass_of_numbers(c)] + targets
    if not targets or len(order) < 2:
        return {}
    values = np.stack([_near(columns[number], codes[:, number]) for number in order], axis=1)
    values -= np.nanmean(values, axis=0)
    values /= np.where((spread := np.nanstd(values, axis=0)) > 0, spread, 1.0)
    is_target = np.isin(order, targets)
    rows = values[~np.isnan(values).any(axis=1)]
    if len(rows) <= max(len(order), _FEWEST_PAIRS):
        found = _one_by_one(values, is_target)
    else:
        found = _together(rows, is_target)
    found = {place: others for place, others in found.items() if _is_affine(values[:, [*others, place]])}
    return {order[place]: sorted(order[other] for other in others) for place, others in found.items()}


def _together(rows: np.ndarray, is_target: np.ndarray) -> dict[int, list[int]]:
    """Return candidates for ``determined`` from complete rows: columns that columns before them leave no variance."""
    varied = np.flatnonzero(rows.std(axis=0) > 0)
    standard = (rows[:, varied] - rows[:, varied].mean(axis=0)) / rows[:, varied].std(axis=0)
    correlation, free, found = standard.T @ standard / len(rows), list[int](), dict[int, list[int]]()
    if len(varied) < 2 or np.linalg.eigvalsh(correlation)[0] >= _SINGULAR:
        return {}
    for place, number in enumerate(varied):
        slopes = np.linalg.solve(correlation[np.ix_(free, free)], correlation[free, place])
        if 1 - slopes @ correlation[free, place] >= _SINGULAR:
            free.append(place)
        elif is_target[number]:
            pairs = zip(free, slopes, strict=True)
            found[int(number)] = [int(varied[other]) for other, slope in pairs if abs(slope) > 1e-4]
    return found


def _one_by_one(values: np.ndarray, is_target: np.ndarray) -> dict[int, list[int]]:
    """Return the same from rows with missing cells: the column nearest to what those before it leave is added, in turn.

    So only the columns of the function must be observed in the same rows (orthogonal matching pursuit, Pati et al. 1993).
    """
    found = dict[int, list[int]]()
    most = min(_MOST_COMPARED, max(400, 100 * _MOST_COMPARED // len(is_target)))
    for place in map(int, np.flatnonzero(is_target)):
        free = [i for i in range(place) if i not in found]
        at = np.flatnonzero(~np.isnan(values[:, place]))
        held = values[at[:: -(-len(at) // most)]]
        left, others, last = held[:, place], list[int](), held[:, place].var()
        there, others_held = 1.0 - np.isnan(held[:, free]), np.nan_to_num(held[:, free])
        squares = others_held**2
        while last > 0 and len(others) < len(free):
            rows, known = 1.0 - np.isnan(left), np.nan_to_num(left)
            size = np.sqrt((known**2 @ there) * (rows @ squares))
            near = np.abs(known @ others_held) / np.where(size > 0, size, np.inf)
            near[(rows @ there <= max(_FEWEST_PAIRS, 3 * len(others))) | np.isin(free, others)] = 0
            if near.max() < _NEAREST:
                break
            others.append(free[near.argmax()])
            left = _left(held[:, [*others, place]])
            if np.nanvar(left) < _SINGULAR * last:
                found[place] = others
                break
    return found


def _left(values: np.ndarray) -> np.ndarray:
    """Return what the other columns leave of the last one, by least squares; NaN in rows with a missing cell."""
    left, rows = np.full(len(values), np.nan), ~np.isnan(values).any(axis=1)
    known = np.column_stack([values[rows, :-1], np.ones(rows.sum())])
    left[rows] = values[rows, -1] - known @ np.linalg.lstsq(known, values[rows, -1])[0]
    return left


def _is_affine(values: np.ndarray) -> bool:
    """Return whether the last column is an affine function of the others in all rows in which all of these are observed."""
    left = _left(values)
    rows = ~np.isnan(left)
    return bool(rows.sum() > values.shape[1] and np.var(left[rows]) < _SINGULAR * np.var(values[rows, -1]))


def _is_mass_of_numbers(column: Column) -> bool:
    """Return whether a column has masses, of numbers or of two levels. A function of masses alone is one of few numbers."""
    if column.levels is not None:
        return len(column.levels) == 2 or column.sort == "number"
    likelihood = _likelihood(column.family, column.options)
    return likelihood is not None and _support(likelihood, column.options).is_discrete


def _near(column: Column, codes: np.ndarray) -> np.ndarray:
    """Return the numbers of a column, NaN where they are so far out that they alone would decide a correlation."""
    values = codes.copy()
    if column.levels is not None and column.sort == "number":
        there = ~np.isnan(codes)
        values[there] = np.array(column.levels, dtype=np.float64)[codes[there].astype(int)]
    usual = _usual(values)
    return np.where(np.abs(values - np.nanmedian(values)) <= _FAR * usual, values, math.nan)


def _usual(values: np.ndarray) -> float:
    """Return the median distance from the median, of the numbers that differ from it."""
    deviations = np.abs(values - np.nanmedian(values))
    return float(np.median(deviations[deviations > 0]))


def repeated(column: Column, codes: np.ndarray) -> tuple[float, float] | None:
    """Return the most frequent number of a column with a density that can narrow on it, and its share; None if it is rare."""
    if not can_narrow(column):
        return None
    value, times, share = _most_frequent(codes[~np.isnan(codes)])
    return (value, share) if times >= _OFTEN and share > _REPEATED else None


def _most_frequent(held: np.ndarray) -> tuple[float, int, float]:
    """Return the most frequent number, how often it comes, and its share."""
    values, times = np.unique(held, return_counts=True)
    return float(values[times.argmax()]), int(times.max()), float(times.max() / len(held))


def in_masses(column: Column, codes: np.ndarray) -> str:
    """Return, in words, how to give a column of numbers a step: its own, or after rounding to two or three digits."""
    held = codes[~np.isnan(codes)]
    name, step = column.name, 1.0 if _whole(held) else _decimal_step(held, column.dtype)
    if step is not None:
        return f"give a resolution: resolution={{{name!r}: {step:g}}}"
    digits = 2 - math.floor(math.log10(_usual(np.unique(held))))
    rounding = f"df[{name!r}] = df[{name!r}].round({digits})"
    return f"round it and give a resolution: {rounding} and resolution={{{name!r}: {10.0**-digits:g}}}"


def can_narrow(column: Column) -> bool:
    """Return whether a column has a density whose spread is learned."""
    spread = getattr(family_of(column.family), "spread_name", "")
    likelihood = _likelihood(column.family, column.options)
    if likelihood is None or not isinstance(column.options.get(spread), str):
        return False
    return not _support(likelihood, column.options).is_discrete


def _takes(family: str) -> str:
    return family_of(family).takes


def _levels(column: Column, held: list[Any], row: str) -> Column | str:
    """Return a column of levels, or the reason why it is left out, which calls a row with a cell ``row``."""
    family, ordered, distinct = column.family, column.ordered, set(held)
    known = sorted(distinct) if column.categories is None else column.categories
    levels = [level for level in known if level in distinct]
    if len(levels) == 1:
        return f"constant: {levels[0]!r} in every {row}"
    if len(levels) == len(held) and column.sort == "label" and not ordered and not family:
        return f"like an id: {len(levels)} {row}s, and all values differ"
    plain = [unwrapped(level) for level in levels]
    odd = [level for level in plain if type(level) not in (str, int, float, bool)]
    if odd:
        expected = "levels that are strings, numbers or booleans"
        of_categories = "cat.rename_categories(str)", 'map(str, na_action="ignore")'
        fix = f"Pass df[{column.name!r}].{of_categories[column.categories is None]} in its place."
        raise refused("df", column.name, expected, shown(odd[0]), fix)
    if not family:
        family = "bernoulli" if len(levels) == 2 else "ordinal" if ordered else "categorical"
        column = replace(column, why=f"{len(levels)} levels" + (", ordered" if ordered else ""))
    unordered = column.sort == "label" and not ordered
    if (
        _takes(family) != "levels"
        or (family == "bernoulli" and len(levels) > 2)
        or (family == "ordinal" and unordered)
    ):
        raise refused(
            "families",
            column.name,
            "'categorical', 'bernoulli' for two levels, or 'ordinal' for numbers and ordered categories",
            f"{family!r} for {len(levels)} levels, {some(tuple(plain))}",
            "Name one of these. df[column].astype(pandas.CategoricalDtype(levels, ordered=True)) orders levels.",
        )
    counted = {"categorical": "num_categories", "ordinal": "num_levels"}.get(family)
    return replace(
        column,
        family=family,
        options={counted: len(levels)} if counted else {},
        levels=tuple(plain),
        feature=len(levels) if family == "categorical" else "identity",
        **_unit("feature_", np.array([levels.index(value) for value in held], dtype=np.float64)),
    )


def _numbers(column: Column, held: np.ndarray, at: np.ndarray, row: str) -> Column | str:
    """Return a column of numbers, or the reason why it is left out, which calls a row with a cell ``row``.

    ``at`` are the rows of the observed cells.
    """
    name, family, resolution = column.name, column.family, column.resolution
    if (size := np.abs(held).max()) > _LARGEST:
        came, fix = f"{size:.2g}", "Divide the column by a power of ten."
        raise refused("df", name, f"numbers up to {_LARGEST:g}", came, fix)
    if 0 < np.ptp(held) < 1 / _LARGEST:
        came, fix = f"a range of {np.ptp(held):.2g}", "Divide the column by a power of ten."
        raise refused("df", name, f"numbers with a range from {1 / _LARGEST:g} on", came, fix)
    if np.ptp(held) <= _rounding(held):
        return f"constant: {held[0]:g} in every {row}"
    if resolution is None and not family:
        values, whole = np.unique(held), _whole(held)
        if whole and len(values) == len(held) >= _FEWEST_IDS and np.ptp(held) == len(held) - 1:
            return f"like an id: {len(held)} {row}s with consecutive numbers"
        if len(values) == 2 and (whole or len(held) > 2):
            return _levels(column, list(held), row)
        suggested, resolution, why = _suggested(held, column.dtype, row)
        if suggested is None:
            return why
        family, column = suggested, replace(column, why=why + _hint(held))
    codes = held
    if resolution is not None:
        codes = steps_of("df", name, held, resolution, at, column.dtype)
        if np.ptp(codes) == 0:
            came, fix = f"{resolution:g}, in which all are {codes[0]:g}", "Give a finer one."
            raise refused("resolution", name, "a step in which the numbers differ", came, fix)
        if (rounded := np.spacing(np.abs(codes).max()) / codes.std()) > _ROUNDED:
            came = f"{np.abs(held).max():g}, where float64 is rounded to {rounded:.2g} of their standard deviation"
            fix = f"Subtract a constant near {held.mean():.17g} from the column."
            raise refused("df", name, "numbers that differ by more than their rounding", came, fix)
        if not family:
            log = codes.min() > 0 and _log_fits_better(codes)
            family = "log_normal" if log else "censored_gaussian" if codes.min() == 0 else "gaussian"
            column = replace(column, why=f"recorded to {resolution:g}") if column.why == "given" else column
        family = {"gaussian": "rounded_gaussian", "log_normal": "rounded_log_normal"}.get(family, family)
    if column.why == "given" and resolution is None:
        _require_support(column, codes, at)
    takes = _takes(family)
    least = {"counts": 0.0, "bounded": 0.0, "positive": np.nextafter(0, 1)}.get(takes, -np.inf)
    if codes.min() < least:
        few = f"{int((codes < least).sum())} others, first {held[codes < least][0]:g} in row {at[codes < least][0]}"
        raise refused("df", name, f"numbers that {family!r} can score", few, 'Use "gaussian" for it.')
    spread = getattr(family_of(family), "spread_name", None)
    feature = {"counts": "log1p", "positive": "log"}.get(takes, "identity")
    feature = "identity" if family == "censored_gaussian" else feature
    seen_by = np.log(codes) if feature == "log" else np.log1p(codes) if feature == "log1p" else codes
    bounds, unit = _of_decoder(family, column.options, codes, resolution)
    return replace(
        column,
        family=family,
        bounds=bounds,
        options={spread: _SPREADS.get(family, "per_dimension"), **column.options}
        if spread
        else column.options,
        resolution=resolution,
        feature=feature,
        **unit,
        **_unit("feature_", seen_by),
    )


def _of_decoder(
    family: str, options: dict[str, Any], codes: np.ndarray, resolution: float | None
) -> tuple[tuple[float | None, float | None], dict[str, Any]]:
    """Return the bounds of the decoder's first output, and the unit of it and them."""
    standardizes = family_of(family).standardizes
    if not standardizes:
        return _of_outputs(family, options, float(codes.min()), float(codes.max()))
    own = np.log(codes.clip(min=0.5) if resolution else codes) if standardizes == "log x" else codes
    unit = _unit("", own)
    low, high = ((end - unit["loc"]) / unit["scale"] for end in (own.min(), own.max()))
    return (float(low), float(high)), unit


def _of_outputs(
    family: str, options: dict[str, Any], low: float, high: float
) -> tuple[tuple[float | None, float | None], dict[str, Any]]:
    """Return the same of a family that does not standardise, for numbers from ``low`` to ``high``.

    Numbers that are nearly the same on the scale of the output get a unit as small as their range. In a larger one, most
    outputs of a new decoder would lie beyond the bounds, where their gradient is 0.
    """
    likelihood = _likelihood(family, options)
    found = [None if likelihood is None else likelihood.link(end) for end in (low, high)]
    first, last = (end if end is not None and math.isfinite(end) else None for end in found)
    if first is not None and last is not None and 0 < last - first < 1:
        return (-0.5, 0.5), {"loc": (first + last) / 2, "scale": last - first}
    return (first, last), {"loc": 0.0, "scale": 1.0}


def _require_support(column: Column, held: np.ndarray, at: np.ndarray) -> None:
    """Raise ``ValueError`` for numbers that a family, with its options, gives no density or an infinite one."""
    likelihood = _likelihood(column.family, column.options)
    if likelihood is None:
        return
    support = _support(likelihood, column.options)
    rows, fits = torch.tensor(held), np.ones(len(held), dtype=bool)
    for each in (support, likelihood.inside):
        fits &= True if each is None else each.check(rows).numpy()
    odd = np.flatnonzero(~fits)
    if len(odd):
        expected = f"numbers that {column.family!r} can score"
        if column.options:
            expected += f" with {', '.join(f'{key}={value!r}' for key, value in column.options.items())}"
        came = f"{len(odd)} others, first {held[odd[0]]:g} in row {at[odd[0]]}"
        raise refused("df", column.name, expected, came, likelihood.off_support)


def _support(likelihood: Likelihood, options: dict[str, Any]) -> Any:
    outputs = likelihood.outputs_per_dimension(**options)
    return elementwise(likelihood.distribution(torch.zeros(1, outputs, dtype=torch.float64)).support)


def _likelihood(family: str, options: dict[str, Any]) -> Likelihood | None:
    """Return the family of one column; None if options are missing or wrong, which are refused later."""
    try:
        return part_of({"family": family, "options": options, "columns": [0]})
    except (TypeError, ValueError):
        return None


def _whole(held: np.ndarray) -> bool:
    """Return whether numbers are whole; larger floats are, whatever they measure."""
    return bool((held == np.round(held)).all() and np.abs(held).max() < WHOLE)


def _rounding(values: np.ndarray) -> float:
    """Return the difference up to which numbers of this size are taken for equal."""
    return 0.0 if _whole(values) else _SAME * float(np.abs(values).max())


def _suggested(held: np.ndarray, dtype: str, row: str) -> tuple[str | None, float | None, str]:
    """Return the family of a column of numbers, a resolution if it needs one, and the reason.

    "" is a rounded family. None leaves the column out.
    """
    value, times, share = _most_frequent(held)
    if _whole(held):
        step, why = 1.0, "whole"
    elif times == 1 or share <= _REPEATED:
        return _best(held, None)
    elif (found := _decimal_step(held, dtype)) is not None:
        step, why = found, f"{share:.0%} are exactly {value:g}, recorded to {found:g}"
    elif share > _STUCK:
        return None, None, f"almost constant: {value:g} in {share:.1%} of the {row}s, others not decimal"
    else:
        return _best(held, None)
    steps = held / step
    mean, spread, mass = steps.mean(), steps.std(), f"the mass of an interval of {step:g}"
    if steps.max() > _MOST_COUNTED:
        return "", step, f"{why}, up to {held.max():.2g}: {mass}"
    if steps.min() < 0:
        return "", step, f"{why}, down to negative numbers: {mass}"
    # Counts vary at least as much as their mean, even given z. That is too much for ages, grades and scores, whose standard
    # deviation is below their mean. Counts that vary more have zeros among them.
    if spread**2 < max(mean, mean**2):
        return "", step, f"{why}, standard deviation {spread / mean:.2g} times the mean: {mass}"
    if steps.min() > 0:
        return "", step, f"{why}, from {held.min():g} on: {mass}"
    family, _, why_counts = _best(np.round(steps), "counts")
    # A Poisson's variance is its mean. If z tells anything of a column that looks so, P(x | z) is narrower than a Poisson.
    if family == "poisson":
        return "", step, f"{why}, variance {spread**2 / mean:.2g} times the mean: {mass}"
    return family, None if why == "whole" else step, why_counts if why == "whole" else f"{why}: {why_counts}"


def _hint(held: np.ndarray) -> str:
    """Return, in words, another family to consider for answers on a scale, and for numbers with a bound at both ends."""
    values, times = np.unique(held, return_counts=True)
    low, high, ends = values[0], values[-1], times[[0, -1]] / len(held)
    if len(values) > _SHORT and ends.min() > _AT_BOUND:
        return (
            f"; {ends[0]:.0%} are exactly {low:g} and {ends[1]:.0%} exactly {high:g}: discretized_logistic, for steps from 0 on, "
            "bounds both ends"
        )
    whole = len(held) >= _FEWEST_IDS and _whole(held) and low > 0
    if whole and 2 < len(values) <= _SHORT and len(values) == high - low + 1:
        return f"; {low:g} … {high:g}: choose ordinal if these are answers on a scale"
    return ""


def _best(held: np.ndarray, takes: str | None) -> tuple[str, None, str]:
    """Return the first suggestion of ``likelihoods.suggest`` with a scale, or the first that also takes such numbers."""
    lines = suggest(held[:, None])
    lines = lines[~lines["family"].isin(_NO_SCALE)]
    if takes is not None:
        lines = lines[lines["family"].map(_takes) == takes]
    return lines["family"].iloc[0], None, lines["why"].iloc[0]


def _decimal_step(held: np.ndarray, dtype: str) -> float | None:
    """Return the largest of 0.1, 0.01, … 0.000001 of which all numbers are multiples; None if there is none.

    It is ½, ¼ or ⅛ if all are multiples of that, which must be no chance among the cells without the most frequent number.
    """

    def all_multiples(step: float) -> bool:
        steps = held / step
        return bool(np.abs(steps).max() <= _LARGEST_STEP and not between_steps(steps, dtype).any())

    digits = next(filter(all_multiples, (0.1, 0.01, 0.001, 1e-4, 1e-5, 1e-6)), None)
    if digits is None:
        return None
    others = len(held) - np.unique(held, return_counts=True)[1].max()
    usual = (step for step in _FRACTIONS if step > digits and (digits / step) ** others < _BY_CHANCE)
    return next(filter(all_multiples, usual), digits)


def _log_fits_better(codes: np.ndarray) -> bool:
    """Return whether a Gaussian fits the logarithms of positive numbers better, by a nat. Far from zero, both are alike."""
    mean = codes.mean()
    logs = np.log1p((codes - mean) / mean)  # but for log(mean): the logarithms themselves are rounded
    return bool(_fits(logs) - logs.sum() - len(codes) * math.log(mean) > _fits(codes) + 1)


def _fits(values: np.ndarray) -> float:
    """Return the largest Gaussian log-likelihood of values, up to a constant."""
    return -len(values) * math.log(max(values.std(), 1e-300))


def _unit(prefix: str, values: np.ndarray) -> dict[str, Any]:
    """Return mean and standard deviation; the latter is at least the rounding of the largest value."""
    scale = max(float(values.std()), _rounding(values))
    return {f"{prefix}loc": float(values.mean()), f"{prefix}scale": scale if scale > 0 else 1.0}
