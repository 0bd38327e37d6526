"""Coordinates maps z of a row to one real vector u: each latent in its unconstrained space, concatenated."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Size, Tensor
from torch.distributions import Transform, TransformedDistribution, biject_to, constraints
from torch.distributions.constraints import Constraint
from torch.distributions.transforms import identity_transform

from pyrovae import supports
from pyrovae.pair import masks
from pyrovae.pair.row_model import RowModel
from pyrovae.pair.running import Batch, Latents, Site, Sites, run
from pyrovae.refusals import Refused, bad_value
from pyrovae.row_noise import RowNoise

#: Bounds of an interval, in the shape of a latent if rows or entries have their own.
Ends = tuple[float | Tensor, float | Tensor]
# Where z has lost its digits, the u that it leads back to differs by more than this.
_ROUNDED = 0.1
# Size of a step from a value in a support, relative to the values, that shows whether it is a surface.
_NEAR = 1e-3


@dataclass(frozen=True)
class _Place:
    """The place of a latent in u: its entries, and their shape without samples and rows."""

    entries: slice
    rest: Size
    rows: int  # the axis of the rows in (samples, plates..., event...)
    transform: Transform
    bounds: Ends | None  # of its support, if it is an interval
    inside: tuple[Tensor, Tensor] | None  # the numbers next to them: u reaches farther than z can
    dtype: torch.dtype
    absent: Tensor | None  # entries that a row lacks because masks leave them out, (rows, rest...)
    within: Constraint | None  # where the density is not zero, if u reaches farther


class Coordinates:
    """The map between the latents of a batch and real vectors u, shape (samples, rows, ``dim``).

    Each latent goes through torch's ``biject_to`` of its support: a positive one by its logarithm, a simplex by
    stick-breaking, and so on. Densities of u include log |det ∂z/∂u|.

    An entry that model and guide mask for a row is no part of that row's posterior. Its u is standard normal in
    every density instead, which integrates to one and leaves log P(x) unchanged.

    If not ``whole``, u lacks discrete latents, which are ``held``. A latent whose support depends on others or has no
    bijection is in u as z itself, with a density of zero off the support.

    Raises:
        ValueError: a latent is discrete, or has a support that depends on other latents or has no bijection. If not
            ``whole``: no latent is continuous, or z lies on a surface.
    """

    def __init__(self, model: RowModel, batch: Batch, whole: bool = True) -> None:
        structure = model.structure
        if not structure.fixed_masks:
            raise bad_value(
                "model",
                "masks of latents that depend on the rows only (this method moves z)",
                "masks that change with z",
                f"{_FIX} Or mask by the rows' own lengths.",
            )
        drawn, again = (run(model.pair, "model", batch) for _ in range(2))
        self._places: dict[str, _Place] = {}
        #: The latents that u lacks.
        self.held: tuple[str, ...] = ()
        start = 0
        for name in structure.latents:
            value, within = drawn[name]["value"], None
            try:
                support = _support(name, drawn, again)
                transform = _to_support(name, support)
            except Refused:
                found = supports.support(drawn[name]["fn"])
                if not whole and found is not None and found.is_discrete:
                    self.held = (*self.held, name)
                    continue
                fixed = _same(found, supports.support(again[name]["fn"]))
                if whole or not _fills(found, value, fixed):
                    raise
                support, transform, within = constraints.real, identity_transform, found if fixed else None
            # The layout of one sample is (plates..., event...), padded on the left.
            batch_dims = value.dim() - structure.event_dims[name]
            value = value.reshape((1,) * (structure.nesting - batch_dims) + value.shape)
            axis = structure.nesting + structure.data_dim[name]
            rest = transform.inv(value).movedim(axis, 0).shape[1:]
            entries = slice(start, start + rest.numel())
            bounds, inside = _bounds(support, value)
            self._places[name] = _Place(
                entries,
                rest,
                axis + 1,
                transform,
                bounds,
                inside,
                value.dtype,
                _absent(drawn[name], structure.nesting, axis, rest, transform.domain.event_dim),
                within,
            )
            start = entries.stop
        if not self._places:
            raise bad_value("model", _EXPECTED, "discrete latents alone", _FIX)
        self.dim = start
        #: The dtype of the latents, the widest if they differ.
        self.dtype = max((place.dtype for place in self._places.values()), key=lambda d: torch.finfo(d).bits)

    @property
    def lacks(self) -> bool:
        """Whether any row lacks an entry."""
        return any(place.absent is not None for place in self._places.values())

    def flatten(self, latents: Latents, noise: RowNoise) -> Tensor:
        """Return latents as u, shape (samples, rows, dim); absent entries are drawn. NaN if z is off its support."""
        parts = []
        for name, place in self._places.items():
            part = place.transform.inv(_inside(place, latents[name])).movedim(place.rows, 1)
            if place.bounds is not None:
                low, high = place.bounds
                off = (latents[name] < low) | (latents[name] > high)
                part = torch.where(off.movedim(place.rows, 1), math.nan, part)
            own = noise.branch()  # for every latent, whether or not a row of these lacks an entry
            if place.absent is not None:
                drawn = own.normal(len(part), *part.shape[2:], dtype=part.dtype)
                part = torch.where(place.absent, drawn, part)
            parts.append(part.reshape(*part.shape[:2], -1).to(self.dtype))
        return torch.cat(parts, dim=-1)

    def beyond(self, u: Tensor) -> Tensor:
        """Return whether z of u rounds onto a bound of its support, shape (samples, rows).

        The density is cut off there: it is that of the number next to the bound. Such a z does not lead back to u, or it is
        the one that ``flatten`` moves all draws beyond to.
        """
        found = torch.zeros(u.shape[:2], dtype=torch.bool, device=u.device)
        for place in self._places.values():
            part = self._part(u, place)
            z = _inside(place, place.transform(part))
            lost = [~((place.transform.inv(z) - part).abs() <= _ROUNDED)]
            lost += [] if place.bounds is None else [supports.at_edge(z, place.bounds)]
            for each in lost:
                found |= each.movedim(place.rows, 1).reshape(*u.shape[:2], -1).any(dim=-1)
        return found

    @staticmethod
    def _part(u: Tensor, place: _Place) -> Tensor:
        """Return a latent's entries of u in its layout, (samples, plates..., event...)."""
        part = u[..., place.entries].to(place.dtype)
        return part.reshape(*u.shape[:2], *place.rest).movedim(1, place.rows)

    def unflatten(self, u: Tensor) -> tuple[Latents, Tensor]:
        """Return latents and log |det ∂z/∂u|, (samples, rows), float64, from u, (samples, rows, dim).

        Absent entries add their standard normal density to log |det ∂z/∂u|.
        """
        latents, log_det = {}, torch.zeros(u.shape[:2], dtype=torch.float64, device=u.device)
        for name, place in self._places.items():
            part = self._part(u, place)
            latents[name] = _inside(place, place.transform(part))
            log_det = log_det + _log_det(place, part, latents[name])
            if place.within is not None:
                inside = place.within.check(latents[name]).movedim(place.rows, 1)
                log_det = log_det.masked_fill(~inside.reshape(*u.shape[:2], -1).all(-1), -math.inf)
        return latents, log_det


def _inside(place: _Place, z: Tensor) -> Tensor:
    """Return z with values rounded onto a bound moved to the number next to it, where the density is finite."""
    return z if place.inside is None else z.clamp(*place.inside)


def _bounds(support: Constraint, value: Tensor) -> tuple[Ends | None, tuple[Tensor, Tensor] | None]:
    """Return the bounds of a latent's support and the numbers next to them inside; None if it has none."""
    if support is constraints.simplex:
        tiny = torch.finfo(value.dtype).tiny
        return None, (value.new_tensor(tiny), value.new_tensor(math.inf))
    bounds = supports.ends(support)
    return bounds, None if bounds is None else supports.inner_bounds(bounds, value.dtype, value.device)


def _absent(site: Site, nesting: int, axis: int, rest: Size, event_dims: int) -> Tensor | None:
    """Return which entries of u the rows lack, (rows, rest...); None if they lack none.

    ``event_dims`` are those of the bijection. All entries of such an event share one mask.
    """
    first = masks.entries(site)
    if first is None or bool(first.all()):
        return None
    absent = ~first
    if event_dims:
        absent = absent.flatten(-event_dims).all(-1)[(..., *(None,) * event_dims)]
    batch_dims = site["value"].dim() - site["fn"].event_dim
    absent = absent.reshape((1,) * (nesting - batch_dims) + absent.shape).movedim(axis, 0)
    return absent.expand(absent.shape[0], *rest)


def _log_det(place: _Place, u: Tensor, z: Tensor) -> Tensor:
    terms = place.transform.log_abs_det_jacobian(u, z).movedim(place.rows, 1).double()
    if place.absent is not None:
        normal = -0.5 * (u.movedim(place.rows, 1).double() ** 2 + math.log(2 * math.pi))
        normal = torch.where(place.absent, normal, 0.0).reshape(*terms.shape[:2], -1).sum(-1)
        dims = place.absent.dim() + 1 - terms.dim()  # dims of events with one Jacobian
        lacking = place.absent.flatten(-dims).all(-1) if dims > 0 else place.absent
        return torch.where(lacking, 0.0, terms).reshape(*terms.shape[:2], -1).sum(-1) + normal
    return terms.reshape(*terms.shape[:2], -1).sum(-1)


_EXPECTED = "latents in a fixed, continuous space (this method moves them)"
_FIX = (
    "Use method='auto' of log_evidence, embed or impute, which weighs draws of such a model where they are."
)


def _support(name: str, drawn: Sites, again: Sites) -> Constraint:
    """Return a latent's support; raise ``ValueError`` if it is discrete or unknown, or if two draws give different ones."""
    support, second = (supports.support(sites[name]["fn"]) for sites in (drawn, again))
    if support is None:
        raise bad_value("model", _EXPECTED, f"latent {name!r}, without a declared support", _FIX)
    if support.is_discrete:
        raise bad_value("model", _EXPECTED, f"the discrete latent {name!r}", _FIX)
    if _same(support, second):
        return support
    inner = supports.innermost(drawn[name]["fn"])
    if isinstance(inner, TransformedDistribution) and inner.support is constraints.real:
        return constraints.real  # its bounds are moved by other latents
    raise bad_value("model", _EXPECTED, f"latent {name!r}, whose support depends on other latents", _FIX)


def _to_support(name: str, support: Constraint) -> Transform:
    """Return the bijection onto a latent's support."""
    try:
        return biject_to(support)
    except NotImplementedError as error:
        came = f"latent {name!r} on {_shown(support)}, which has no bijection"
        raise bad_value("model", _EXPECTED, came, _FIX) from error


def _fills(support: Constraint | None, value: Tensor, fixed: bool) -> bool:
    """Return whether a continuous support is known to hold all numbers near a value of it."""
    if support is None or support.is_discrete or not fixed:
        return supports.ends(support) is not None  # bounds that other latents move
    moved = value + _NEAR * value.abs().mean() * torch.randn_like(value)
    return float(support.check(moved).double().mean()) > 0.5


def _same(a: Any, b: Any) -> bool:
    """Return whether two constraints, or two of their bounds, are the same."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    if hasattr(a, "__dict__"):
        return type(a) is type(b) and all(_same(value, vars(b)[key]) for key, value in vars(a).items())
    return bool(a == b)


def _shown(support: Constraint) -> str:
    """Return a support in a line, without the numbers of bounds that are tensors."""
    bounded = any(isinstance(bound, Tensor) for bound in vars(support).values())
    text = "" if bounded else str(support)
    return text if 0 < len(text) < 80 and "\n" not in text else type(support).__name__.strip("_")
