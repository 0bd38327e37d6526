"""Supports of distributions, and log densities that are −∞ off the support.

For a value off the support, Pyro raises an error or, with its checks off, returns an arbitrary number. An importance
weight needs probability zero there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
from pyro.distributions.util import scale_and_mask, sum_rightmost
from torch import Tensor
from torch.distributions import Distribution
from torch.distributions.constraints import Constraint

from pyrovae.distributions import ByColumn, EachColumn, InDouble

# torch calls their support real, but their density is periodic: one turn is the whole support.
_CIRCULAR = (dist.VonMises, dist.SineBivariateVonMises, dist.SineSkewed)

# Supports of single numbers that can be checked by their bounds.
_INTERVALS = (
    constraints.interval,
    constraints.half_open_interval,
    constraints.greater_than,
    constraints.greater_than_eq,
    constraints.less_than,
    constraints.integer_interval,
    type(constraints.nonnegative_integer),
    type(constraints.boolean),
)


def parts(fn: Distribution) -> Iterator[Distribution]:
    """Yield a distribution and every distribution that it contains."""
    yield fn
    for value in vars(fn).values():
        if isinstance(value, Distribution):
            yield from parts(value)


def log_prob(fn: Distribution, value: Tensor, checked: bool = False) -> Tensor:
    """Return the log density of ``value`` in nats, in the shape of ``fn.log_prob``; −∞ off the support.

    Components of a mixture and the base of a transformed distribution are treated alike, each by its own support.
    Only supports of single numbers are checked; others, such as matrices, use the distribution's own formula.
    ``checked`` means that values are known to lie within bounds that are the same for all of them.
    """
    if isinstance(fn, dist.Independent):
        return sum_rightmost(log_prob(fn.base_dist, value, checked), fn.reinterpreted_batch_ndims)
    if isinstance(fn, MaskedDistribution) and not isinstance(fn._mask, bool):
        return scale_and_mask(log_prob(fn.base_dist, value, checked), mask=fn._mask)
    if isinstance(fn, ByColumn):
        return fn.each(lambda each, part: log_prob(each, part, checked), value)
    if isinstance(fn, dist.MixtureSameFamily) and not _everywhere(fn):
        each = log_prob(fn._component_distribution, value.unsqueeze(-1 - fn._event_ndims))
        return torch.logsumexp(each + torch.log_softmax(fn._mixture_distribution.logits, dim=-1), dim=-1)
    for part in parts(fn):  # fn was made for one call, so the switch affects no other code
        part._validate_args = False
    inside = _inside(fn, value, checked)
    if inside is not None and isinstance(fn, dist.Categorical):  # it uses values as indices
        value = value.clamp(0, fn._num_events - 1)
    found = fn.log_prob(value)
    if not checked and "probs" in vars(getattr(fn, "_categorical", fn)):
        never = _never(fn, value)
        inside = inside if never is None else ~never if inside is None else inside & ~never
    return found if inside is None else torch.where(inside, found, -math.inf)


def _never(fn: Distribution, value: Tensor) -> Tensor | None:
    """Return whether a value has probability zero, in the shape of its log probability; None if unknown.

    torch replaces probability zero by its dtype's resolution, 1e-7, in log_prob, though it never draws the value.
    """
    if isinstance(fn, dist.Categorical):
        index, probs = torch.broadcast_tensors(value.long()[..., None], fn.probs)
        return probs.gather(-1, index[..., :1])[..., 0] == 0
    if isinstance(fn, dist.OneHotCategorical):
        return (fn.probs * value).sum(-1) == 0
    if isinstance(fn, dist.Bernoulli):
        return torch.where(value == 1, fn.probs, 1 - fn.probs) == 0
    return None


def support(fn: Distribution) -> Constraint | None:
    """Return a distribution's support without its event dims; None if it has none.

    That of a mixture is its components' if they share bounds that are numbers.
    """
    inner = innermost(fn)
    if isinstance(inner, dist.MixtureSameFamily):
        shared = support(inner._component_distribution)
        if shared is not None and not any(isinstance(bound, Tensor) for bound in vars(shared).values()):
            return shared
    try:
        found = fn.support
    except NotImplementedError:
        return None
    found = _single(found)
    if found is constraints.real and isinstance(inner, dist.TransformedDistribution):
        found = _moved(inner) or found
    return circle(fn) or found


def _single(found: Constraint | None) -> Constraint | None:
    """Return a support without its event dims."""
    while isinstance(found, constraints.independent):
        found = found.base_constraint
    return found


def _moved(fn: Any) -> Constraint | None:
    """Return the interval that a transformed distribution's last affine transforms move and scale; None if there is none.

    torch calls the support real, whatever these transforms start from.
    """
    before = list(_steps(fn.transforms))
    affine: list[Any] = []
    while before and isinstance(before[-1], dist.transforms.AffineTransform):
        affine.insert(0, before.pop())
    begins = ends(_single(before[-1].codomain) if before else support(fn.base_dist))
    if not affine or begins is None:
        return None
    low, high = (torch.as_tensor(end, dtype=torch.float64) for end in begins)
    for each in affine:
        one, other = (each.loc + each.scale * end for end in (low, high))
        low, high = torch.minimum(one, other), torch.maximum(one, other)
    if any(bool(end.isnan().any() or end.isinf().any() != end.isinf().all()) for end in (low, high)):
        return None  # scales of both signs, or zero
    unbounded = [bool(end.isinf().all()) for end in (low, high)]
    moved: list[Any] = [float(end) if end.numel() == 1 else end for end in (low, high)]
    if all(unbounded):
        return None
    if any(unbounded):
        return constraints.less_than(moved[1]) if unbounded[0] else constraints.greater_than(moved[0])
    return constraints.interval(*moved)


def _steps(transforms: Iterable[Any]) -> Iterator[Any]:
    """Yield transforms, those inside a composition one by one."""
    for each in transforms:
        if isinstance(each, dist.transforms.ComposeTransform):
            yield from _steps(each.parts)
        else:
            yield each


def circle(fn: Distribution) -> Constraint | None:
    """Return one turn for a distribution over angles, None for others."""
    return constraints.interval(-math.pi, math.pi) if isinstance(innermost(fn), _CIRCULAR) else None


def _inside(fn: Distribution, value: Tensor, checked: bool) -> Tensor | None:
    """Return whether a value lies in the support, in the shape of its log density; None if every value does."""
    if isinstance(fn, MaskedDistribution | ExpandedDistribution):
        return _inside(fn.base_dist, value, checked)
    if isinstance(fn, dist.Independent):
        inside = _inside(fn.base_dist, value, checked)
        return None if inside is None else _all(inside, fn.reinterpreted_batch_ndims)
    if isinstance(fn, dist.TransformedDistribution) and not _everywhere(fn):
        at, within, dims = value, None, len(fn.event_shape)
        for transform in reversed(list(_steps(fn.transforms))):
            reached = _single(transform.codomain)
            if isinstance(reached, _INTERVALS):
                here = _all(reached.check(at), dims)
                within = here if within is None else within & here
            at = transform.inv(at)
        # Values were checked against the transformed support, which moves that differ by row do not leave fixed.
        alike = all(is_fixed(each) for each in _steps(fn.transforms))
        inside = _inside(fn.base_dist, at, checked and alike)
        inside = None if inside is None else _all(inside, dims - len(fn.base_dist.event_shape))
        return inside if within is None else within if inside is None else within & inside
    found = support(fn)
    if not isinstance(found, _INTERVALS) or (checked and is_fixed(found)):
        return None
    return _all(found.check(value), len(fn.event_shape))


def _all(inside: Tensor, dims: int) -> Tensor:
    """Return whether all of the last dims are inside."""
    return inside if dims <= 0 else inside.flatten(-dims).all(-1)


def innermost(fn: Distribution) -> Distribution:
    """Return the distribution inside wrappers of shapes, masks and precision."""
    while isinstance(fn, dist.Independent | MaskedDistribution | ExpandedDistribution | InDouble):
        fn = fn.base_dist
    return fn


def _everywhere(fn: Distribution) -> bool:
    """Return whether a distribution is known to have density at all real values, or wherever its transforms go."""
    fn = innermost(fn)
    if isinstance(fn, dist.MixtureSameFamily):
        return _everywhere(fn._component_distribution)
    if isinstance(fn, dist.TransformedDistribution):
        return _everywhere(fn.base_dist) and all(map(_onto_reals, fn.transforms))
    return _is_real(support(fn))


def _is_real(found: Constraint | None) -> bool:
    found = _single(found)
    return found is constraints.real or found is constraints.real_vector


def _onto_reals(transform: Any) -> bool:
    """Return whether a transform maps the real numbers onto all real numbers."""
    return _is_real(transform.domain) and _is_real(transform.codomain)


def same_reach(proposal: Distribution, target: Distribution) -> bool:
    """Return whether a proposal is known, by supports alone, to have density wherever a target has it.

    It is known if both have the same fixed bounds. A discrete proposal may give a value probability zero for any
    support. So may a mixture or a transformed distribution whose parts are bounded.
    """
    inner = innermost(proposal)
    if isinstance(inner, dist.MixtureSameFamily) and not _everywhere(inner):
        return False
    if isinstance(inner, dist.TransformedDistribution) and not _everywhere(inner):
        # Known only if the last transform alone has bounds and is defined on all real numbers.
        *before, last = inner.transforms
        reals = _everywhere(inner.base_dist) and all(map(_onto_reals, before)) and _is_real(last.domain)
        if not reals or isinstance(last, dist.transforms.ComposeTransform):
            return False
    proposed = bounds(support(proposal))
    return proposed is not None and proposed == bounds(support(target))


def bounds(found: Constraint | None) -> tuple[float, float] | None:
    """Return the fixed bounds of a continuous support of single numbers or of a simplex's entries; None for others."""
    if found is None or found.is_discrete:
        return None
    if found is constraints.real or found is constraints.real_vector:
        return -math.inf, math.inf
    if found is constraints.simplex:
        return 0.0, 1.0
    both = ends(found)
    if both is None or not is_fixed(found):
        return None
    return tuple(float(b.flatten()[0] if isinstance(b, Tensor) else b) for b in both)  # type: ignore[return-value]


def ends(found: Constraint | None) -> tuple[float | Tensor, float | Tensor] | None:
    """Return the bounds of a continuous support of single numbers, ±∞ where it has none; None for other supports.

    They are tensors in the shape of the distribution where rows or columns have their own.
    """
    if found is None or found.is_discrete or not isinstance(found, _INTERVALS):
        return None
    return getattr(found, "lower_bound", -math.inf), getattr(found, "upper_bound", math.inf)


def reach(fn: Distribution) -> tuple[float | Tensor, float | Tensor] | None:
    """Return the bounds of a continuous distribution over single numbers, or of a simplex's entries; None for others."""
    found = support(fn)
    return (0.0, 1.0) if found is constraints.simplex else ends(found)


def some_value(found: Constraint | None) -> Any:
    """Return a number in a support of single numbers, off the bounds of a continuous one; 0 if it has no bounds.

    If the support differs by column, return a number for each, shape (columns,).
    """
    if isinstance(found, EachColumn):
        each = {column: some_value(support) for columns, support in found.parts for column in columns}
        return torch.tensor([float(each[column]) for column in range(len(each))])
    low, high = getattr(found, "lower_bound", None), getattr(found, "upper_bound", None)
    if low is None:
        return 0.0 if high is None else high - 1
    if found is None or found.is_discrete:
        return low
    return low + 1 if high is None else (low + high) / 2


def is_fixed(found: Any) -> bool:
    """Return whether a support's bounds, or a transform's numbers, are the same for all rows and columns.

    They are numbers, or one number expanded.
    """
    return all(
        all(stride == 0 for stride, size in zip(bound.stride(), bound.shape, strict=True) if size > 1)
        for bound in _numbers_of(found).values()
        if isinstance(bound, Tensor)
    )


def _numbers_of(found: Any) -> dict[str, Any]:
    """Return the attributes of a support or a transform, with those of the support inside it, as of a mixture's components."""
    own = {} if found is None else dict(vars(found))
    inner = own.pop("base_constraint", None)
    if inner is None:
        return own
    return own | {f"base {name}": value for name, value in _numbers_of(inner).items()}


def has_number_bounds(fn: Distribution) -> bool:
    """Return whether a distribution's bounds are known to be numbers, which no latent can move."""
    inner = innermost(fn)
    if isinstance(inner, ByColumn):
        return all(map(has_number_bounds, inner.fns))
    for part in parts(inner):
        if isinstance(part, dist.TransformedDistribution) and not _everywhere(part):
            return False
        try:
            bounds = _numbers_of(part.support)
        except NotImplementedError:
            continue
        if any(isinstance(bound, Tensor) for bound in bounds.values()):
            return False
    return True


def differ(one: Distribution, other: Distribution) -> bool:
    """Return whether two runs of a site gave its support other bounds."""
    first, second = map(_numbers_of, map(support, (one, other)))
    return any(
        not torch.equal(*map(torch.as_tensor, (bound, second.get(name, math.nan))))
        for name, bound in first.items()
        if isinstance(bound, Tensor | float | int)
    )


def inner_bounds(
    outer: tuple[float | Tensor, float | Tensor], dtype: torch.dtype, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """Return the numbers of a dtype next to bounds, on the inside; next to zero, the smallest normal number."""
    low, high = torch.broadcast_tensors(
        *(torch.as_tensor(bound, dtype=dtype, device=device) for bound in outer)
    )
    above = torch.where(low == 0, torch.finfo(dtype).tiny, torch.nextafter(low, high))
    return above, torch.nextafter(high, low)


def at_edge(z: Tensor, outer: tuple[float | Tensor, float | Tensor], transformed: bool = True) -> Tensor:
    """Return which numbers lie on a bound of their support, or so near it that rounding may have put them there.

    In float32, torch's logistic function ends at 1 − 2^−23. Numbers that were ``transformed`` like this from real numbers
    onto the support are as coarse near another upper bound.
    """
    above, below = inner_bounds(outer, z.dtype, z.device)
    low, high = (torch.as_tensor(bound, dtype=z.dtype, device=z.device) for bound in outer)
    width = torch.where((high - low).isinf(), 0.0, high - low)
    if transformed:
        below = torch.minimum(below, high - 2 * torch.finfo(z.dtype).eps * width)
        # The smallest number, scaled as the support is, up to the rounding of its logarithm.
        above = torch.where(low == 0, 1.001 * above * width.clamp(min=1), above)
    return ((z >= low) & (z <= above)) | ((z >= below) & (z <= high))


def at_simplex_edge(p: Tensor) -> Tensor:
    """Return which entries of simplex points, on the last axis, have lost digits of their own or of later entries.

    torch uses stick-breaking: an entry takes a share z of what earlier entries leave, and later ones get 1 − z. This has no
    digits left as z nears 1. An entry near 1 whose earlier entries take little has lost nothing, because they keep their
    digits.
    """
    left = p.flip(-1).cumsum(-1).flip(-1)  # by an entry and those after it
    after = torch.cat([left[..., 1:], torch.full_like(left[..., :1], math.inf)], dim=-1)
    return at_edge(p, (0.0, math.inf)) | (after <= 2 * torch.finfo(p.dtype).eps * left)
