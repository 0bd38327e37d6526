"""Draws sample sites with noise that belongs to the rows, instead of torch's one generator for a whole tensor."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import MaskedDistribution
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyrovae import supports
from pyrovae.pair import masks
from pyrovae.pair.running import Latents, Site, Sites, lacks_method
from pyrovae.refusals import bad_value
from pyrovae.row_noise import RowNoise, interval_of
from pyrovae.torch_private import Moved, private

aten = torch.ops.aten


class DrawsByRow(Messenger):
    """Draws every latent sample site inside from a ``RowNoise``. Enter it before the plate of particles.

    Args:
        noise: of the rows.
        num_samples: S, draws of every row.
        row_axis: returns for each site the axis of the rows from the right among its batch dims, negative.
        folded: whether the axis holds S · N rows, the samples outermost; else the samples are the first batch dim.
    """

    def __init__(
        self, noise: RowNoise, num_samples: int, row_axis: Callable[[str], int | None], folded: bool
    ) -> None:
        super().__init__()
        self._noise, self._num_samples, self._row_axis, self._folded = noise, num_samples, row_axis, folded
        #: Operations that drew from torch's own generator, in which a row's numbers depend on other rows.
        self.missed: list[str] = []

    def _pyro_sample(self, msg: Any) -> None:
        if msg["done"] or msg["is_observed"] or msg["value"] is not None or site_is_subsample(msg):
            return
        dim = self._row_axis(msg["name"])
        if dim is None:  # no site of the row model, such as a deterministic one
            return
        # Each site has a branch, so that a sampler of a user's own may draw as often as the block needs.
        source = source_of(self._noise.branch(), self._num_samples, msg["fn"], dim, self._folded)
        msg["value"] = _draw(msg, source, self.missed)
        msg["done"] = True


class DrawsLeftOut(Messenger):
    """Holds latents at given values, but draws the entries that masks leave out, which have no posterior of their own.

    Each is drawn given the latents before it. Enter it outside the model's own handlers.

    Args:
        latents: values in the plain layout of samples · rows.
        source: returns the noise in the layout of a site, by its name and distribution; None for torch's own generator.
        missed: gets the operations that draw from torch's own generator, in which a row's numbers depend on other rows.
    """

    def __init__(
        self, latents: Latents, source: Callable[[str, Any], Source | None], missed: list[str]
    ) -> None:
        super().__init__()
        self._latents, self._source, self._missed = latents, source, missed
        #: The names of the latents of which entries were drawn.
        self.drawn: list[str] = []

    def _pyro_sample(self, msg: Any) -> None:
        name = msg["name"]
        if name not in self._latents:
            return
        # Asked for every latent, so that its noise does not depend on which rows lack entries of latents before it.
        value, source = self._latents[name], self._source(name, msg["fn"])
        counted = masks.entries({**msg, "value": value})
        if counted is not None and not bool(counted.all()):
            drawn = _draw(msg, source, self._missed)
            self.drawn.append(name)
            value = torch.where(counted, value, drawn.to(value.dtype))
        msg.update(value=value, is_observed=True)


def _draw(msg: Any, source: Source | None, missed: list[str]) -> Tensor:
    """Draw a site from its distribution with the noise of a source; ``missed`` gets what draws from torch's generator."""
    with replaced(source, missed):
        try:
            drawn: Tensor = msg["fn"](*msg["args"], **msg["kwargs"])
        except NotImplementedError as error:
            raise lacks_method(msg, error) from error
    return drawn


def widened(site: Site) -> Any:
    """Return the distribution of an observed site in the shape of its value: a likelihood may broadcast over columns.

    Its log-probability is a sum over the columns, so they are independent, each with the distribution that is stated once.

    Raises:
        ValueError: the distribution has one shape alone.
    """
    fn, shape = site["fn"], tuple(site["value"].shape)
    own = tuple(fn.shape())
    if own == shape or len(own) > len(shape) or any(a not in (1, b) for a, b in _paired(own, shape)):
        return fn
    try:
        return _expanded(fn, shape)
    except NotImplementedError as error:
        inner, dims = supports.innermost(fn), fn.event_dim
        event, values = tuple(fn.event_shape), shape[len(shape) - dims :]
        raise bad_value(
            f"site {site['name']!r}",
            "a distribution with .expand(…) to the shape of its values, to draw rows from",
            f"a {type(inner).__name__} of event shape {event} for values of event shape {values}"
            if event != values
            else f"a {type(inner).__name__} of shape {own}, which can't be expanded, for values of shape {shape}",
            "Write .expand(…) before .to_event(…), or parameters with a number for each column.",
        ) from error


def _paired(own: Sequence[int], shape: Sequence[int]) -> zip[tuple[int, int]]:
    """Return pairs of sizes of the last dims, as broadcasting pairs them."""
    return zip(reversed(own), reversed(shape), strict=False)


def _expanded(fn: Any, shape: tuple[int, ...]) -> Any:
    """Return a distribution expanded to a shape that includes its event dims; raise ``NotImplementedError`` if it can't be."""
    batch, event = shape[: len(shape) - fn.event_dim], shape[len(shape) - fn.event_dim :]
    if event == tuple(fn.event_shape):
        return fn.expand(torch.Size(batch))
    if isinstance(fn, MaskedDistribution):
        return MaskedDistribution(_expanded(fn.base_dist, shape), fn._mask)
    if isinstance(fn, dist.Independent):
        return dist.Independent(_expanded(fn.base_dist, shape), fn.reinterpreted_batch_ndims)
    raise NotImplementedError


def source_of(noise: RowNoise, num_samples: int, fn: Any, row_axis: int, folded: bool) -> Source | None:
    """Return noise in the layout of a distribution; None if its batch dims are not those of the samples and rows."""
    shape, rows = tuple(getattr(fn, "batch_shape", ())), len(noise)
    axis = len(shape) + row_axis
    if axis < (0 if folded else 1):
        return None
    here = shape[axis] == num_samples * rows if folded else (shape[0], shape[axis]) == (num_samples, rows)
    return Source(noise, num_samples, shape, axis, folded) if here else None


class Source:
    """Noise in the layout of a site: (batch dims..., rest...)."""

    def __init__(
        self, noise: RowNoise, num_samples: int, batch_shape: tuple[int, ...], axis: int, folded: bool
    ) -> None:
        self._noise, self._num_samples = noise, num_samples
        self._batch_shape, self._axis, self._folded = batch_shape, axis, folded

    def fits(self, shape: Sequence[int], matrix: bool = False) -> bool:
        """Return whether a tensor starts with the batch dims of the site, unchanged or flattened to one.

        In a ``matrix``, the first dim may also hold event dims, after the batch dims.
        """
        count, entries = len(self._batch_shape), math.prod(self._batch_shape)
        if tuple(shape[:count]) == self._batch_shape:
            return True
        flat = matrix and len(shape) == 2 and entries > 0 and shape[0] % entries == 0
        return len(shape) > 0 and (shape[0] == entries or flat)

    def uniform(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return self._laid_out(self._noise.uniform, shape, dtype)

    def normal(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return self._laid_out(self._noise.normal, shape, dtype)

    def gamma(self, shape: Tensor) -> Tensor:
        """Return gamma variables of rate 1 for the given shape parameters, in the layout of the site."""
        rows_second = self._rows_second(shape)
        # On a branch, because the number of its rounds depends on all rows.
        return self._back(self._noise.branch().gamma(rows_second)).reshape(shape.shape)

    def _laid_out(self, draw: Callable[..., Tensor], shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        count = len(self._batch_shape)
        if tuple(shape[:count]) == self._batch_shape:
            rest = shape[count:]
        else:
            rest = (shape[0] // math.prod(self._batch_shape), *shape[1:])
        others = [size for i, size in enumerate(self._batch_shape) if i != self._axis and (self._folded or i)]
        return self._back(draw(self._num_samples, *others, *rest, dtype=dtype)).reshape(*shape)

    def _back(self, drawn: Tensor) -> Tensor:
        """Return (samples, rows, others..., rest...) in the layout of the site."""
        return drawn.flatten(0, 1).movedim(0, self._axis) if self._folded else drawn.movedim(1, self._axis)

    def _rows_second(self, value: Tensor) -> Tensor:
        value = value.reshape(*self._batch_shape, -1)
        if self._folded:
            return value.movedim(self._axis, 0).unflatten(0, (self._num_samples, -1))
        return value.movedim(self._axis, 1)


def replaced(source: Source | None, missed: list[str]) -> AbstractContextManager[Any]:
    """Replace torch's random operations in a block by a site's own noise; ``missed`` gets those that it cannot replace."""
    try:
        return _mode()(source, missed)
    except Moved as reason:
        missed.append(str(reason))
        return nullcontext()


@cache
def _mode() -> Any:
    """Return the class of the mode. It is made at its first use, because torch does not document its base."""

    class Replaced(private("TorchDispatchMode")):  # type: ignore[misc]
        def __init__(self, source: Source | None, missed: list[str]) -> None:
            super().__init__()
            self._source, self._missed = source, missed

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if torch.Tag.nondeterministic_seeded not in func.tags:
                return func(*args, **kwargs)
            draw = _DRAWS.get(func)
            if func is aten.multinomial.default and args[1] > 1 and not (len(args) > 2 and args[2]):
                draw = None  # without replacement
            if draw is None or self._source is None or not _is_drawn(func, self._source, args, kwargs):
                self._missed.append(str(func))
                return func(*args, **kwargs)
            kwargs.pop("generator", None)
            return draw(self._source, *args, **kwargs)

    return Replaced


def _is_drawn(func: Any, source: Source, args: Any, kwargs: Any) -> bool:
    """Return whether a source has noise for what an operation of ``_DRAWS`` returns: its layout, and real numbers."""
    tensors = [value for value in args if isinstance(value, Tensor)]
    default = tensors[0].dtype if tensors else torch.get_default_dtype()
    shape = torch.broadcast_shapes(*(each.shape for each in tensors)) if tensors else args[0]
    # multinomial takes matrices alone, so torch's categorical distribution flattens all dims but that of the categories
    fits = source.fits(shape, matrix=func is aten.multinomial.default)
    return fits and (kwargs.get("dtype") or default).is_floating_point


def _normal(source: Source, out: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    return out.copy_(source.normal(out.shape, out.dtype) * std + mean)


def _uniform(source: Source, out: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    return out.copy_(source.uniform(out.shape, out.dtype) * (high - low) + low)


def _exponential(source: Source, out: Tensor, rate: float = 1.0) -> Tensor:
    return out.copy_(-source.uniform(out.shape, out.dtype).log() / rate)


def _cauchy(source: Source, out: Tensor, median: float = 0.0, sigma: float = 1.0) -> Tensor:
    return out.copy_(median + sigma * torch.tan(math.pi * (source.uniform(out.shape, out.dtype) - 0.5)))


def _log_normal(source: Source, out: Tensor, mean: float = 1.0, std: float = 2.0) -> Tensor:
    return out.copy_((source.normal(out.shape, out.dtype) * std + mean).exp())


def _normals(source: Source, mean: Tensor, std: Tensor | float = 1.0) -> Tensor:
    each = torch.broadcast_tensors(mean, std) if isinstance(std, Tensor) else [mean]  # a number for each
    return (mean + std * source.normal(each[0].shape, mean.dtype)).to(mean.dtype)


def _bernoulli(source: Source, probs: Tensor) -> Tensor:
    # In float64: probabilities below the resolution of float32 are drawn, too.
    return (source.uniform(probs.shape, torch.float64) < probs).to(probs.dtype)


def _multinomial(source: Source, weights: Tensor, num_draws: int, replacement: bool = False) -> Tensor:
    """Return categories, chosen by a uniform number's place among the cumulated weights."""
    shares = source.uniform((*weights.shape[:-1], num_draws), torch.float64)
    return interval_of(shares, weights.double().cumsum(-1))


def _poisson(source: Source, rate: Tensor) -> Tensor:
    """Return the smallest counts k with P(X ≤ k) ≥ u; u is a uniform number for each count.

    The search starts at the quantile of a normal distribution, corrected for skewness (Cornish and Fisher 1938), and goes on by
    one at a time. From a rate of 10⁵ on, that quantile has errors below 0.03, and is the answer.
    """
    wide = rate.double()
    u = source.uniform(rate.shape, torch.float64)
    z = math.sqrt(2) * torch.erfinv(2 * u - 1)
    count = (wide + wide.sqrt() * z + (z**2 - 1) / 6).round().clamp(min=0)
    count = torch.where(wide < 1, 0.0, count) + 0.0  # −0.0 becomes 0.0
    searched = wide < 1e5
    below = torch.special.gammaincc(count + 1, wide)  # P(X ≤ count)
    mass = (torch.xlogy(count, wide) - wide - torch.lgamma(count + 1)).exp()
    while bool((too_far := searched & (count > 0) & (below - mass >= u)).any()):
        below = torch.where(too_far, below - mass, below)
        mass = torch.where(too_far, mass * count / wide, mass)
        count = torch.where(too_far, count - 1, count)
    # Where P(X > count) is 0 in floats, rounding may keep the sum below u.
    while bool((short := searched & (below < u) & (mass > 0)).any()):
        count = torch.where(short, count + 1, count)
        mass = torch.where(short, mass * wide / count, mass)
        below = torch.where(short, below + mass, below)
    return torch.where(torch.isfinite(wide) & (wide >= 0), count, math.nan).to(rate.dtype)


def _binomial(source: Source, count: Tensor, prob: Tensor) -> Tensor:
    """Return the smallest k with P(X ≤ k) ≥ u; u is a uniform number for each count."""
    from scipy.stats import binom

    count, prob = torch.broadcast_tensors(count, prob)
    # A tracer must see that values are read, because NumPy's quantiles would be constants of its graph.
    if bool((count < 0).any()):
        raise ValueError("a binomial distribution has a negative number of trials")
    u = source.uniform(prob.shape, torch.float64)
    wide = (each.detach().cpu().double().numpy() for each in (u, count, prob))
    return torch.as_tensor(binom.ppf(*wide)).to(prob)


def _dirichlet(source: Source, concentration: Tensor) -> Tensor:
    # In float64, as torch does: in float32, all parts may underflow where concentrations are small.
    parts, limits = source.gamma(concentration.double()), torch.finfo(concentration.dtype)
    shares = (parts / parts.sum(-1, keepdim=True)).to(concentration.dtype)
    return shares.clamp(
        limits.tiny, 1 - limits.eps / 2
    )  # never on the bounds themselves, as torch's own draws


def _made(draw: Callable[[Source, Sequence[int], torch.dtype], Tensor]) -> Callable[..., Tensor]:
    """Return a draw for operations that make a tensor from a shape or like another tensor."""

    def make(source: Source, like: Any, **options: Any) -> Tensor:
        default = like.dtype if isinstance(like, Tensor) else torch.get_default_dtype()
        return draw(source, like.shape if isinstance(like, Tensor) else like, options.get("dtype") or default)

    return make


_DRAWS: dict[Any, Callable[..., Tensor]] = {
    aten.normal_.default: _normal,
    aten.uniform_.default: _uniform,
    aten.exponential_.default: _exponential,
    aten.cauchy_.default: _cauchy,
    aten.log_normal_.default: _log_normal,
    aten.normal.Tensor_Tensor: _normals,
    aten.normal.Tensor_float: _normals,
    aten.bernoulli.default: _bernoulli,
    aten.binomial.default: _binomial,
    aten.multinomial.default: _multinomial,
    aten._standard_gamma.default: Source.gamma,
    aten.poisson.default: _poisson,
    aten._sample_dirichlet.default: _dirichlet,
    aten.rand.default: _made(Source.uniform),
    aten.rand_like.default: _made(Source.uniform),
    aten.randn.default: _made(Source.normal),
    aten.randn_like.default: _made(Source.normal),
}


def check_all_drawn(added: tuple[str, ...], fix: str = "") -> None:
    """Raise ``ValueError`` if sites add terms that are no draws; ``fix`` is further advice in the message."""
    if added:
        raise bad_value(
            "model",
            "sample sites alone, to simulate rows",
            f"site {added[0]!r}, a term that pyro.factor or a log_density adds, which is no draw",
            f"Write the term as the distribution of a sample site. {fix}".rstrip(),
        )


def check_samplers(part: str, sites: Sites, latents: tuple[str, ...]) -> None:
    """Raise ``ValueError`` for drawn latents of a part whose draws are known not to have the density of ``log_prob``.

    torch 2.13 draws the rows of an ``LKJCholesky`` of three or more dimensions with squared lengths ~ Beta(i − 1/2, …). Its
    density has Beta(i/2, …) (Lewandowski, Kurowicka and Joe 2009). Every estimate with such draws is wrong.
    """
    for name in latents:
        fn: Any
        for fn in supports.parts(sites[name]["fn"]):
            lengths = getattr(fn, "_beta", None) if isinstance(fn, torch.distributions.LKJCholesky) else None
            if lengths is None or fn.dim < 3:
                continue
            drawn = lengths.concentration1[..., 1:]
            if not torch.allclose(drawn, torch.arange(1, fn.dim).to(drawn) / 2):
                raise bad_value(
                    part,
                    "latents whose draws have the density of their log_prob",
                    f"{name!r}, an LKJCholesky of {fn.dim} dimensions, whose draws in torch {torch.__version__} do not",
                    "Use two dimensions, or a normal distribution through torch's CorrCholeskyTransform.",
                )
