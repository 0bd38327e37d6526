"""z of a row as one real vector u: every latent through its unconstrained space, one after the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Size, Tensor
from torch.distributions import Transform, biject_to, constraints

from pyrovae import checks
from pyrovae.model import LatentVariableModel
from pyrovae.pair.running import Batch, Latents, Sites, Structure, run


@dataclass(frozen=True)
class _Place:
    """Where a latent lies in u: its entries, and how they are laid out without the samples and the rows."""

    entries: slice
    rest: Size
    rows: int  # the axis of the rows in (samples, plates..., event...)
    transform: Transform
    least: float | None  # what a positive latent is kept above: its logarithm reaches farther than it does
    dtype: torch.dtype


class Coordinates:
    """The map between the latents of a batch and real vectors u, shape (samples, rows, ``dim``).

    Each latent goes through torch's ``biject_to`` of its support: a positive one by its logarithm, a
    simplex by stick-breaking, and so on. Densities of u carry log |det ∂z/∂u|.

    Raises:
        ValueError: a discrete latent, a support that depends on other latents, or one without a bijection.
    """

    def __init__(self, pair: LatentVariableModel, structure: Structure, batch: Batch) -> None:
        drawn, again = (run(pair, "model", batch) for _ in range(2))
        self.structure = structure
        self._places: dict[str, _Place] = {}
        start = 0
        for name in structure.latents:
            transform = _to_support(name, drawn, again)
            value = drawn[name]["value"]
            # the layout of one sample: (plates..., event...), padded on the left
            batch_dims = value.dim() - structure.event_dims[name]
            value = value.reshape((1,) * (structure.nesting - batch_dims) + value.shape)
            axis = structure.nesting + structure.data_dim[name]
            rest = transform.inv(value).movedim(axis, 0).shape[1:]
            entries = slice(start, start + rest.numel())
            support = drawn[name]["fn"].support
            while isinstance(support, constraints.independent):
                support = support.base_constraint
            least = torch.finfo(value.dtype).tiny if support is constraints.positive else None
            self._places[name] = _Place(entries, rest, axis + 1, transform, least, value.dtype)
            start = entries.stop
        self.dim = start
        #: that of the latents; the widest where they differ
        self.dtype = max((place.dtype for place in self._places.values()), key=lambda d: torch.finfo(d).bits)

    def flatten(self, latents: Latents) -> Tensor:
        """Latents → u, shape (samples, rows, dim)."""
        parts = []
        for name, place in self._places.items():
            part = place.transform.inv(_inside(place, latents[name])).movedim(place.rows, 1)
            parts.append(part.reshape(*part.shape[:2], -1).to(self.dtype))
        return torch.cat(parts, dim=-1)

    def unflatten(self, u: Tensor) -> tuple[Latents, Tensor]:
        """u, (samples, rows, dim) → latents and log |det ∂z/∂u|, (samples, rows), float64."""
        latents, log_det = {}, torch.zeros(u.shape[:2], dtype=torch.float64, device=u.device)
        for name, place in self._places.items():
            part = u[..., place.entries].to(place.dtype)
            part = part.reshape(*u.shape[:2], *place.rest).movedim(1, place.rows)
            latents[name] = _inside(place, place.transform(part))
            log_det = log_det + _log_det(place, part, latents[name])
        return latents, log_det


def _inside(place: _Place, z: Tensor) -> Tensor:
    """A positive latent that underflowed to zero, at the smallest number: its density there is less than it was."""
    return z if place.least is None else z.clamp(min=place.least)


def _log_det(place: _Place, u: Tensor, z: Tensor) -> Tensor:
    terms = place.transform.log_abs_det_jacobian(u, z).movedim(place.rows, 1)
    return terms.double().reshape(*terms.shape[:2], -1).sum(-1)


def _to_support(name: str, drawn: Sites, again: Sites) -> Transform:
    """The bijection onto a latent's support, which two draws of all latents have to agree about."""
    support = drawn[name]["fn"].support
    expected = "latents in a fixed, continuous space (this method moves them)"
    mend = "Use method='importance', which only weighs what the guide draws."
    if support.is_discrete:
        raise checks.bad_value("model", expected, f"the discrete latent {name!r}", mend)
    if not _same(support, again[name]["fn"].support):
        raise checks.bad_value(
            "model", expected, f"latent {name!r}, whose support depends on other latents", mend
        )
    try:
        return biject_to(support)
    except NotImplementedError as error:
        raise checks.bad_value(
            "model", expected, f"latent {name!r} on {support}, which has no bijection", mend
        ) from error


def _same(a: Any, b: Any) -> bool:
    """Whether two constraints, or two of their bounds, are the same."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    if hasattr(a, "__dict__"):
        return type(a) is type(b) and all(_same(value, vars(b)[key]) for key, value in vars(a).items())
    return bool(a == b)
