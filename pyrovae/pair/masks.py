"""Finds which entries of a latent a row has, from masks of sample sites, and checks that latents have densities."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import MaskedDistribution
from torch import Tensor
from torch.distributions import Distribution

from pyrovae import supports
from pyrovae.pair.running import Batch, Scored, Site, Sites, flat, row_axis
from pyrovae.refusals import Refused, bad_value

_PLACES = (
    "Single cells of an event are masked before .to_event, .mask(cells).to_event(n), and whole rows after it."
)


def of(site: Site) -> list[tuple[Any, int]]:
    """Return the masks that may leave out some of a site's log-probability, each with the number of event dims it lacks."""
    fn, found = site["fn"], [(site["mask"], site["fn"].event_dim)]
    while hasattr(fn, "base_dist"):
        found.append((getattr(fn, "_mask", None), fn.event_dim))
        fn = fn.base_dist
    return [(mask, event_dims) for mask, event_dims in found if mask is not None and mask is not True]


def check_shape(part: str, site: Site) -> None:
    """Raise ``ValueError`` if a mask around a site has another shape than its batch, which it would enlarge.

    An entry that is repeated would count several times.
    """
    mask, batch = site["mask"], tuple(site["fn"].batch_shape)
    if not isinstance(mask, Tensor):
        return
    aligned = zip(reversed(mask.shape), reversed(batch), strict=False)
    if mask.dim() <= len(batch) and all(size in (1, expected) for size, expected in aligned):
        return
    raise bad_value(
        part,
        f"a mask that broadcasts to the batch shape {batch} of site {site['name']!r}",
        f"a mask of shape {tuple(mask.shape)}",
        f"Pass a mask of shape {batch} here, with len(x) for the number of rows. {_PLACES}",
    )


@contextmanager
def refused_on_distributions(part: str) -> Iterator[None]:
    """Raise ``ValueError`` in a block for a mask that does not fit its distribution, or that weighs terms.

    Pyro takes every number but 0 for True, and keeps no numbers.
    """
    made = MaskedDistribution.__init__

    def checked(self: MaskedDistribution, base_dist: Distribution, mask: Any) -> None:
        if isinstance(mask, Tensor):
            family, batch = type(base_dist).__name__, tuple(base_dist.batch_shape)
            odd = mask[(mask != 0) & (mask != 1)]
            if len(odd):
                raise bad_value(
                    part,
                    f"a mask of True and False, or of 1 and 0, on a {family}",
                    f"{float(odd[0]):g} in it",
                    "Write .mask(m.bool()). A mask leaves terms out or in; it does not weigh them.",
                )
            if any(1 != a != b != 1 for a, b in zip(reversed(mask.shape), reversed(batch), strict=False)):
                came = f"a mask of shape {tuple(mask.shape)}"
                raise bad_value(
                    part,
                    f"a mask that broadcasts with the batch shape {batch} of its {family}",
                    came,
                    _PLACES,
                )
        made(self, base_dist, mask)

    MaskedDistribution.__init__ = checked  # type: ignore[method-assign]
    try:
        yield
    finally:
        MaskedDistribution.__init__ = made  # type: ignore[method-assign]


def unmasked(fn: Distribution) -> Distribution:
    """Return a distribution without the masks around it."""
    while isinstance(fn, MaskedDistribution):
        fn = fn.base_dist
    return fn


def entries(site: Site) -> Tensor | None:
    """Return which entries of a site's value its log-probability counts, in the value's shape; None without a mask.

    A mask on a distribution below ``.to_event`` leaves out single entries of the event, one above it whole events.
    """
    found = _joined(site)
    return None if found is None else found.expand(site["value"].shape)


def _joined(site: Site) -> Tensor | None:
    """Return the masks of a site as one, which broadcasts with the site's log-probabilities of single entries."""
    found = None
    for mask, event_dims in of(site):
        mask = torch.as_tensor(mask, device=site["value"].device).bool()[(...,) + (None,) * event_dims]
        found = mask if found is None else found & mask
    return found


def only_missing(site: Site, dim: int, columns: Sequence[int], batch: Batch, others: bool = False) -> bool:
    """Return whether a site's masks leave out just the missing cells of the columns of x that it holds, or these and ``others``.

    ``dim`` is the plate dim over rows, negative; ``batch`` holds the rows of the site.
    """
    counted = entries(site) if "observed" in batch else None
    if counted is None:
        return False
    rows = _rows_of(counted, row_axis(site, dim))
    expected = flat(batch["observed"])[:, list(columns)]
    return rows.shape == expected.shape and torch.equal(rows, expected & rows if others else expected)


def scored(site: Site, dim: int, columns: Sequence[int]) -> Tensor | None:
    """Return which cells of x a site's masks leave in, (rows, held columns); None without a mask.

    None are, if one entry of the value counts at several places of the mask. ``dim`` is the plate dim over rows, negative;
    ``columns`` are those of x that the site holds.
    """
    joined, shape = _joined(site), site["value"].shape
    if joined is None:
        return None
    broadcast = torch.broadcast_shapes(joined.shape, shape) != shape
    counted = joined.new_zeros(shape) if broadcast else joined.expand(shape)
    rows = _rows_of(counted, row_axis(site, dim))
    if rows.shape[1] != len(columns):  # some entries are no columns of x
        return None
    return rows


def observed_cells(batch: Batch, columns: Sequence[int]) -> Tensor:
    """Return which cells of some columns of x are there, (rows, columns)."""
    if "observed" in batch:
        return flat(batch["observed"])[:, list(columns)]
    return torch.ones(len(batch["x"]), len(columns), dtype=torch.bool, device=batch["x"].device)


class LeftOut:
    """Counts for every column of x in how many runs of rows a mask left the column out, or did not."""

    def __init__(self, scored: Scored) -> None:
        self._scored = scored
        self._hidden = torch.zeros(len(scored.measure), dtype=torch.bool)
        self._shown = torch.zeros(len(scored.measure), dtype=torch.bool)

    def add(self, sites: Sites, batch: Batch) -> None:
        """Take the observed sites of a run of the model on a batch."""
        for name, columns in self._scored.columns.items():
            cells, here = scored(sites[name], self._scored.data_dim[name], columns), list(columns)
            if cells is None:
                self._shown[here] = True
                continue
            observed = observed_cells(batch, columns)  # a missing cell is neither shown nor hidden by a mask
            self._hidden[here] |= (~cells & observed).any(0).cpu()
            self._shown[here] |= (cells & observed).any(0).cpu()

    def holds(self, columns: Sequence[int]) -> bool:
        """Return whether each of some columns was left out at least once."""
        return bool(self._hidden[list(columns)].all())

    def measure(self) -> tuple[str, ...]:
        """Return the measure of every column: "unscored" if it was left out always, "unscored in part" if sometimes."""
        return tuple(
            kind
            if kind not in ("mass", "density") or not out
            else "unscored in part"
            if shown
            else "unscored"
            for kind, out, shown in zip(self._scored.measure, self._hidden, self._shown, strict=True)
        )


def same(a: Tensor | None, b: Tensor | None) -> bool:
    """Return whether two results of ``entries`` count the same entries."""
    if a is None:
        return b is None or bool(b.all())
    return bool(a.all()) if b is None else torch.equal(a, b)


def check_density(part: str, name: str, fn: Distribution) -> None:
    """Raise ``ValueError`` if a latent has no density: improper, a point, or masked inside the distribution."""
    for inner in supports.parts(supports.innermost(fn)):
        if isinstance(inner, MaskedDistribution):
            came, fix = "a mask inside it", "Put .mask on the outermost distribution, or use poutine.mask."
        elif isinstance(inner, dist.ImproperUniform):
            came, fix = "an ImproperUniform", "Give it a proper prior, such as a wide Normal."
        elif isinstance(inner, dist.Delta) and not bool((inner.log_density == 0).all()):
            came = "a Delta with a log_density, which has no density at other z"
            fix = "Write the density as one distribution, such as a TransformedDistribution."
        elif isinstance(inner, dist.Delta):
            came, fix = "a Delta: a point has no density", "Sample it from a distribution with a scale."
        elif isinstance(inner, dist.Empirical):
            came, fix = "an Empirical: points have no density", "Use a continuous distribution."
        elif isinstance(inner, dist.Unit):
            came, fix = "a Unit, which has no value", "Use pyro.factor in the model only."
        else:
            continue
        raise bad_value(part, f"a density at latent {name!r}", came, fix)


def check_latents(model: Sites, guide: Sites, latents: tuple[str, ...]) -> None:
    """Raise ``ValueError`` if latents have no density in model or guide, or differ between them in kind or shape."""
    for name in latents:
        sides = {"model": model[name], "guide": guide[name]}
        for part, site in sides.items():
            check_density(part, name, site["fn"])
        kinds = [
            "discrete" if found is not None and found.is_discrete else "continuous"
            for found in (supports.support(site["fn"]) for site in sides.values())
        ]
        if kinds[0] != kinds[1]:
            raise bad_value(
                "guide",
                f"a {kinds[0]} distribution at latent {name!r}, as in the model",
                f"a {kinds[1]} one",
                "A probability and a density have no common scale: use distributions of one kind.",
            )
        shapes = [tuple(site["fn"].shape()) for site in sides.values()]
        events = [site["fn"].event_dim for site in sides.values()]
        if shapes[0] != shapes[1] or events[0] != events[1]:
            raise bad_value(
                "guide",
                f"latent {name!r} of shape {shapes[0]} with {events[0]} event dims, as in the model",
                f"shape {shapes[1]} with {events[1]}",
                "Give both distributions the same shape; .expand and .to_event(n) set it.",
            )


def check_masks(
    model: Sites, guide: Sites, latents: tuple[str, ...], data_dim: dict[str, int], first: int
) -> None:
    """Raise ``ValueError`` if model and guide mask latents differently; ``first`` is the number of the first row.

    A weight that counts P(z) or Q(z | x) without the other is no importance weight.
    """
    for name in latents:
        both = [entries(part[name]) for part in (model, guide)]
        if same(*both):
            continue
        shape = model[name]["value"].shape
        ours, theirs = (
            torch.ones(shape, dtype=torch.bool) if m is None else m.cpu().expand(shape) for m in both
        )
        rows = any_by_row(ours != theirs, row_axis(model[name], data_dim[name])).nonzero()[:, 0]
        where = "model" if bool((theirs & ~ours).any()) else "guide"
        other = "guide" if where == "model" else "model"
        fix = f"Mask it in the {other}, too: with poutine.mask(mask=…): around the sample statement."
        if name.endswith("_unobserved"):
            fix = (
                f"The model masks {name!r} according to obs_mask: write with poutine.mask(mask=~obs_mask): around "
                "its sample statement in the guide."
            )
        raise bad_value(
            where,
            f"latent {name!r} masked in model and guide alike",
            f"a mask in the {where} alone in {len(rows)} rows or more, first row {first + int(rows[0])}",
            fix,
        )


def any_by_row(found: Tensor, axis: int) -> Tensor:
    """Return whether any entry of a row is true, (rows,); rows lie on ``axis``."""
    return _rows_of(found, axis).any(1)


def _rows_of(found: Tensor, axis: int) -> Tensor:
    """Return (rows, entries); rows lie on ``axis``."""
    rows = found.movedim(axis, 0)
    return rows.reshape(len(rows), -1)


def check_observed(
    model: Sites, observed: tuple[str, ...], data_dim: dict[str, int], first: int, argument: str
) -> None:
    """Raise ``ValueError`` for values ``off_support``; ``first`` is the number of the first row."""
    for name in observed:
        off = off_support(model[name]) if model[name]["fn"]._validate_args else None
        if off is not None:
            rows = any_by_row(off, len(model[name]["fn"].batch_shape) + data_dim[name])
            came = f"{int(rows.sum())} rows or more with others, first row {first + int(rows.int().argmax())}"
            raise cannot_score(model[name], argument, came)


def off_support(site: Site) -> Tensor | None:
    """Return which observed values are off a support that is equal for all rows; None if no value that counts is.

    Bounds that vary by row or with z are part of the likelihood: a row beyond them has probability zero.
    """
    if isinstance(site["fn"], dist.Unit):
        return None
    found = supports.support(site["fn"])
    if found is None or not supports.is_fixed(found):
        return None
    off = ~found.check(site["value"])
    counted = entries(site) if bool(off.any()) else None
    if counted is not None:  # masked entries are not scored
        dims = counted.dim() - off.dim()
        off = off & (counted.flatten(-dims).any(-1) if dims > 0 else counted)
    return off if bool(off.any()) else None


def cannot_score(site: Site, argument: str, came: str) -> Refused:
    """Return the error for observed values off a site's support."""
    return bad_value(
        argument,
        f"values that site {site['name']!r} can score, on {site['fn'].support}",
        came,
        "Choose a likelihood whose support holds these values.",
    )
