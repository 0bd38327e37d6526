"""Running a pair for many samples at once: the two questions, and the loss for training.

Latents are a dict from site name to value, in the layout Pyro itself gives them under an outermost
plate of particles: (samples, plates..., event...).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import MaskedDistribution
from pyro.distributions.util import scale_and_mask
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyrovae import checks, supports
from pyrovae.model import LatentVariableModel

Batch = dict[str, Tensor]
Latents = dict[str, Tensor]
Site = dict[str, Any]
Sites = dict[str, Site]

_PARTICLES = "pyrovae_particles"
# Values of discrete latents that are looked at: of a count, of one unit at a time, of all together.
_MOST_COUNTS, _MOST_CHANGES, _MOST_COMBINATIONS = 64, 1024, 1024


class LogJoint(NamedTuple):
    """log P(z) and log P(x | z), each of shape (samples, rows), float64, in nats."""

    prior: Tensor
    likelihood: Tensor


class Support(NamedTuple):
    """Where columns of x must lie, and by which family."""

    columns: list[int]
    constraint: constraints.Constraint
    family: str


@dataclass(frozen=True)
class Structure:
    """What ``inspect`` found out about a pair.

    Attributes:
        latents: the names of the latent sites.
        observed: the names of the observed sites.
        data_dim: for each latent and observed site, the plate dim over rows, negative.
        nesting: the number of dims that plates take; the particles lie left of them.
        batch_dims, event_dims: for each latent, how many dims of each kind its value has when the pair
            is called plainly, without particles.
        vectorised: for each part, whether it can be called once for many samples. One that can't is
            called with the rows repeated.
        plates: the names of the plates over rows; one, unless sites stand in plates of different names.
        widest: numbers in the widest tensor of one row: x, a latent, an observed site, or a layer.
        columns: for each site that holds data, the columns of x flattened that its values are, in order.
        measure: for every column of x flattened: "mass", "density" or "unscored" (masked, or not
            observed); "transformed" throughout where something else enters than x's columns, each once;
            "pseudo-likelihood" throughout where what the rows are scored with was computed from them.
        supports: where the columns must lie; see ``check_supports``.
        edges: for each latent with fixed bounds in model or guide, those bounds: a draw may be rounded onto one.
        fixed_masks: whether masks of latents follow from the rows alone, and not from z.
        reaches: whether the guide is known to have density wherever the prior has it, by their supports.
        own_totals: the names of what goes with the rows and is a total of theirs that the likelihood is
            conditional on, as a multinomial is: see ``context.judge``.
    """

    latents: tuple[str, ...]
    observed: tuple[str, ...]
    data_dim: dict[str, int]
    nesting: int
    plates: frozenset[str]
    widest: int
    batch_dims: dict[str, int]
    event_dims: dict[str, int]
    columns: dict[str, tuple[int, ...]]
    measure: tuple[str, ...]
    supports: tuple[Support, ...]
    vectorised: dict[str, bool]
    edges: dict[str, tuple[tuple[float, float], ...]]
    fixed_masks: bool
    reaches: bool
    own_totals: tuple[str, ...] = ()


# ---------------------------------------------------------------------------------------------------------
# The questions


def propose(
    pair: LatentVariableModel, structure: Structure, batch: Batch, num_samples: int
) -> tuple[Latents, Tensor]:
    """Draw z ~ Q(z | x) for every row; returns z and log Q(z | x), shape (samples, rows), in nats."""
    sites = _ask(pair, "guide", structure, batch, num_samples)
    latents = _values("guide", structure, sites, num_samples)
    return latents, _terms("guide", structure, sites, structure.latents, (num_samples, len(batch["x"])))


def of_rows(structure: Structure, latents: Latents, rows: Tensor) -> Latents:
    """Latents of some rows, by their numbers, in the plain layout."""
    found = {}
    for name, value in latents.items():
        axis = value.dim() - structure.event_dims[name] + structure.data_dim[name]
        found[name] = value.index_select(axis, rows)
    return found


def weigh(
    pair: LatentVariableModel, structure: Structure, batch: Batch, num_samples: int
) -> tuple[Latents, LogJoint, Tensor]:
    """Draw z ~ Q(z | x) for every row; returns z, its log joint and log Q(z | x), (samples, rows), in nats.

    log Q is +∞ at a draw that rounding put onto a bound of its support, or onto the number next to it: its density is
    not what it was. Such a draw weighs nothing.
    """
    latents, log_q = propose(pair, structure, batch, num_samples)
    joint = log_joint(pair, structure, batch, latents)
    if structure.edges:
        log_q = torch.where(_at_edge(structure, latents), math.inf, log_q)
    return latents, joint, log_q


def draw_prior(
    pair: LatentVariableModel, structure: Structure, batch: Batch, num_samples: int
) -> tuple[Latents, LogJoint]:
    """Draw z ~ P(z) for every row; returns z, log P(z) and log P(x | z), (samples, rows), in nats."""
    sites = _ask(pair, "model", structure, batch, num_samples)
    shape = (num_samples, len(batch["x"]))
    return _values("model", structure, sites, num_samples), _joint(structure, sites, shape)


def other_values(
    pair: LatentVariableModel, structure: Structure, batch: Batch, at: Latents, at_once: int
) -> Iterator[Latents]:
    """Draws ``at``, of one sample, with discrete latents at other values: one unit at a time, and where all take few
    values, all combinations. As ``propose`` lays them out, at most ``at_once`` samples in one."""
    units, _ = _discrete_units(pair, structure, batch, at)
    changes = [[(unit, value)] for unit, (_, _, values) in enumerate(units) for value in range(len(values))]
    if len(units) > 1 and math.prod(len(values) for _, _, values in units) <= _MOST_COMBINATIONS:
        changes = _combinations(units)
    return _changed(structure, at, units, changes[:_MOST_CHANGES], at_once)


def all_values(
    pair: LatentVariableModel, structure: Structure, batch: Batch, at: Latents, at_once: int
) -> Iterator[Latents] | None:
    """Every value of the latents together, each once, laid out as in ``other_values``; None where they are not discrete
    with few values."""
    units, complete = _discrete_units(pair, structure, batch, at)
    if not complete or math.prod(len(values) for _, _, values in units) > _MOST_COMBINATIONS:
        return None
    return _changed(structure, at, units, _combinations(units), at_once)


#: A unit of a discrete latent: the site, its place among the site's units, and its values, (values, entries).
_Unit = tuple[str, int, Tensor]


def _discrete_units(
    pair: LatentVariableModel, structure: Structure, batch: Batch, at: Latents
) -> tuple[list[_Unit], bool]:
    """The units of discrete latents, and whether they are all there is, each with every value it can take."""
    sites = run(pair, "model", batch)
    units: list[_Unit] = []
    complete = True
    for name in structure.latents:
        fn = sites[name]["fn"]
        while isinstance(fn, dist.Independent | MaskedDistribution):
            complete &= isinstance(fn, dist.Independent)
            fn = fn.base_dist
        values, every = _values_of(fn, at[name])
        complete &= every and sites[name]["mask"] is None
        if values is not None:
            width = at[name].movedim(1 + structure.nesting + structure.data_dim[name], 1)[0, 0].numel()
            size = values[0].numel()
            units += [(name, place, values.reshape(len(values), size)) for place in range(width // size)]
    return units, complete


def _combinations(units: list[_Unit]) -> list[list[tuple[int, int]]]:
    return [list(enumerate(each)) for each in product(*(range(len(values)) for _, _, values in units))]


def _changed(
    structure: Structure,
    at: Latents,
    units: list[_Unit],
    changes: list[list[tuple[int, int]]],
    at_once: int,
) -> Iterator[Latents]:
    """``at`` with some units at some of their values, a sample for each change: (unit, value) pairs by their numbers."""
    for start in range(0, len(changes), at_once):
        some = changes[start : start + at_once]
        latents = {name: value.repeat(len(some), *[1] * (value.dim() - 1)) for name, value in at.items()}
        for name, value in latents.items():
            axis = 1 + structure.nesting + structure.data_dim[name]
            moved = value.movedim(axis, 1)
            entries = moved.reshape(*moved.shape[:2], -1).clone()
            for sample, change in enumerate(some):
                for unit, chosen in change:
                    site, place, values = units[unit]
                    if site == name:
                        size = values.shape[1]
                        entries[sample, :, place * size : (place + 1) * size] = values[chosen].to(value.dtype)
            latents[name] = entries.reshape(moved.shape).movedim(1, axis)
        yield latents


def _values_of(fn: Any, at: Tensor) -> tuple[Tensor | None, bool]:
    """Values of one unit of a discrete distribution, (values, event...), of counts those around draws; and whether
    they are all."""
    found = supports.support(fn)
    if found is None or not found.is_discrete:
        return None, False
    try:
        values = fn.enumerate_support(expand=False)
        values = values.reshape(len(values), *values.shape[values.dim() - len(fn.event_shape) :])
        # Of others, such as a binomial, the values may depend on other latents.
        every = isinstance(fn, dist.Bernoulli | dist.Categorical | dist.OneHotCategorical)
        return values[:_MOST_CHANGES], every and len(values) <= _MOST_CHANGES
    except NotImplementedError:  # counts without a bound, or with bounds that vary
        if fn.event_shape:
            return None, False
        count = min(_MOST_COUNTS, 2 * int(at.max()) + 4)
        return torch.arange(count, device=at.device, dtype=at.dtype), False


def log_proposal(pair: LatentVariableModel, structure: Structure, batch: Batch, latents: Latents) -> Tensor:
    """log Q(z | x) of rows and given latents, shape (samples, rows), in nats."""
    shape = (len(latents[structure.latents[0]]), len(batch["x"]))
    sites = _ask(pair, "guide", structure, batch, shape[0], latents)
    return _terms("guide", structure, sites, structure.latents, shape)


def simulate(pair: LatentVariableModel, structure: Structure, batch: Batch) -> tuple[Latents, Batch]:
    """Rows from the model itself, as many and as shaped as those of ``batch``: z ~ P(z), x ~ P(x | z).

    Raises:
        ValueError: columns of x that no site samples one by one, or a model that reads x elsewhere than
            at its observed sites: what it would make of simulated rows can't be known in one pass.
    """
    expected = "every column of x sampled by an observed site, and read nowhere else, to simulate rows"
    mend = "Use a method that takes the rows as they are: 'refined' or 'annealed'."
    if set(structure.measure) - {"mass", "density"}:
        kinds = sorted(set(structure.measure) - {"mass", "density"})
        raise checks.bad_value("model", expected, f"columns that are {', '.join(kinds)}", mend)
    with pair.own_parameters():
        sites = sample_sites(poutine.trace(poutine.uncondition(pair.model)), batch)
    flat = batch["x"].flatten(1).clone() if batch["x"].dim() > 1 else batch["x"][:, None].clone()
    for name, columns in structure.columns.items():
        value = sites[name]["value"]
        axis = value.dim() - sites[name]["fn"].event_dim + structure.data_dim[name]
        flat[:, list(columns)] = value.movedim(axis, 0).reshape(len(flat), -1).to(flat.dtype)
    simulated = {**batch, "x": flat.view(batch["x"].shape)}
    plain = {name: sites[name]["value"] for name in structure.latents}
    again = run(pair, "model", simulated, plain)
    for name in structure.observed:
        if not torch.equal(again[name]["value"], sites[name]["value"]) or not torch.allclose(
            _log_prob(again[name]), _log_prob(sites[name]), rtol=1e-4, atol=1e-4
        ):
            raise checks.bad_value("model", expected, f"site {name!r}, which follows x otherwise", mend)
    return _unfold(structure, plain, 1), simulated


def log_joint(pair: LatentVariableModel, structure: Structure, batch: Batch, latents: Latents) -> LogJoint:
    """log P(z) and log P(x | z) of rows and given latents, each of shape (samples, rows), in nats."""
    shape = (len(latents[structure.latents[0]]), len(batch["x"]))
    sites = _ask(pair, "model", structure, batch, shape[0], latents)
    return _joint(structure, sites, shape)


def loss(
    pair: LatentVariableModel, objective: Any, batch: Batch, num_rows: int, kl_weight: float
) -> Tensor | float:
    """A Pyro ELBO's loss of a minibatch, as an estimate for the whole data set, in nats.

    The minibatch stands for all ``num_rows`` rows: every site is scaled by N/B, latent sites by the KL
    weight besides. The result carries a graph where the objective, a ``pyro.infer.ELBO``, has a differentiable loss; otherwise
    its gradients have been added to the parameters' ``.grad``.
    """
    scale = num_rows / len(batch["x"])

    def scaled(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with ExitStack() as handlers:
                if scale != 1:
                    handlers.enter_context(poutine.scale(scale=scale))
                if kl_weight != 1:
                    handlers.enter_context(_ScaleLatents(kl_weight))
                if not differentiable:
                    # These objectives run backward() only where the trace shows a parameter statement.
                    pyro.module("pair", pair)
                return function(*args, **kwargs)

        return call

    differentiable = hasattr(objective, "differentiable_loss")
    compute = objective.differentiable_loss if differentiable else objective.loss_and_grads
    with pair.own_parameters():
        args, kwargs = arguments(batch)
        return compute(scaled(pair.model), scaled(pair.guide), *args, **kwargs)


class _ScaleLatents(poutine.messenger.Messenger):
    """Scales the log-probability of latent sites, and of nothing else: the weight of the KL term."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and not site_is_subsample(msg):
            msg["scale"] = msg["scale"] * self.weight


# ---------------------------------------------------------------------------------------------------------
# Running the pair


def arguments(batch: Batch) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Rows go first and by position, whatever the user's function calls them; the rest by name."""
    return (batch["x"],), {name: value for name, value in batch.items() if name != "x"}


def sample_sites(traced: Any, batch: Batch) -> Sites:
    """Run a traced callable and return its sample statements, without subsampling and deterministic ones."""
    args, kwargs = arguments(batch)
    trace = traced.get_trace(*args, **kwargs)
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample"
        and not site_is_subsample(site)
        and not site["infer"].get("_deterministic")
    }


def run(pair: LatentVariableModel, part: str, batch: Batch, latents: Latents | None = None) -> Sites:
    """Run one part of the pair, with latents held at given values where there are any."""
    function = getattr(pair, part)
    if latents is not None:
        function = poutine.condition(function, data=latents)
    with pair.own_parameters():
        return sample_sites(poutine.trace(function), batch)


def _ask(
    pair: LatentVariableModel,
    part: str,
    structure: Structure,
    batch: Batch,
    num_samples: int,
    latents: Latents | None = None,
) -> Sites:
    """Run one part for many samples: under a plate of particles, or with the rows repeated where it must be."""
    if structure.vectorised[part]:
        with particles(structure, num_samples):
            return run(pair, part, batch, latents)
    folded = None if latents is None else fold(structure, latents)
    return run(pair, part, _repeat(batch, num_samples), folded)


def _values(part: str, structure: Structure, sites: Sites, num_samples: int) -> Latents:
    """The latents of sites that ``_ask`` brought, in the layout (samples, plates..., event...)."""
    latents = {name: sites[name]["value"] for name in structure.latents}
    return latents if structure.vectorised[part] else _unfold(structure, latents, num_samples)


def _terms(
    part: str, structure: Structure, sites: Sites, names: tuple[str, ...], shape: tuple[int, int]
) -> Tensor:
    """Log-probabilities of sites that ``_ask`` brought, summed to (samples, rows), float64."""
    if structure.vectorised[part]:
        return sum_sites(sites, names, structure, lead=1).expand(shape)
    return by_row(sites, names, structure, shape[0] * shape[1]).reshape(shape)


def _joint(structure: Structure, sites: Sites, shape: tuple[int, int]) -> LogJoint:
    return LogJoint(
        _terms("model", structure, sites, structure.latents, shape),
        _terms("model", structure, sites, structure.observed, shape),
    )


def _log_prob(site: Site, checked: bool = False) -> Tensor:
    """A site's log-probability, masks applied, −∞ off its support; its scale is 1, ``inspect`` refuses others.

    ``checked`` says that the value was held against fixed bounds before, as observed values are.
    """
    found = supports.log_prob(site["fn"], site["value"], checked)
    return scale_and_mask(found, mask=site["mask"])


def _at_edge(structure: Structure, latents: Latents) -> Tensor:
    """Whether a latent lies on a bound of its support or on the number next to it, (samples, rows)."""
    found = []
    for name, ranges in structure.edges.items():
        z = latents[name].movedim(1 + structure.nesting + structure.data_dim[name], 1)
        z = z.reshape(*z.shape[:2], -1)
        for low, high in ranges:
            above, below = supports.inner_bounds((low, high), z.dtype)
            found.append((((z >= low) & (z <= above)) | ((z >= below) & (z <= high))).any(-1))
    return torch.stack(found).any(0)


def by_row(sites: Sites, names: tuple[str, ...], structure: Structure, num_rows: int) -> Tensor:
    """The sites' log-probabilities of a plain call, summed over all but the rows: (rows,), float64."""
    return sum_sites(sites, names, structure, lead=0).expand(num_rows)


def sum_sites(sites: Sites, names: tuple[str, ...], structure: Structure, lead: int) -> Tensor:
    """Sum log-probabilities over sites and over every dim but the ``lead`` leftmost and the rows."""
    total = None
    for name in names:
        log_prob = _log_prob(sites[name], checked=name in structure.observed)
        log_prob = _pad(log_prob, lead + structure.nesting)
        keep = {*range(lead), log_prob.dim() + structure.data_dim[name]}
        others = [dim for dim in range(log_prob.dim()) if dim not in keep]
        # float64 from here on: a sum of float32 log-probabilities loses 1e-4 nats near −500.
        log_prob = log_prob.sum(others, dtype=torch.float64) if others else log_prob.double()
        total = log_prob if total is None else total + log_prob
    if total is None:
        raise RuntimeError("no sites to sum")  # inspect refuses a pair without latents or observed sites
    return total


def _pad(tensor: Tensor, dims: int) -> Tensor:
    """``tensor`` with dims of size 1 put in on the left, up to ``dims`` of them in all."""
    return tensor.reshape((1,) * (dims - tensor.dim()) + tensor.shape)


def particles(structure: Structure, num_samples: int) -> AbstractContextManager[Any]:
    """The plate of particles, left of every plate of the pair."""
    return pyro.plate(_PARTICLES, num_samples, dim=-1 - structure.nesting)


def _repeat(batch: Batch, num_samples: int) -> Batch:
    """Every row ``num_samples`` times: (samples · rows, ...), the samples outermost."""
    return {name: value.repeat(num_samples, *[1] * (value.dim() - 1)) for name, value in batch.items()}


def fold(structure: Structure, latents: Latents) -> Latents:
    """(samples, plates..., event...) → the plain layout of samples · rows rows."""
    folded = {}
    for name, value in latents.items():
        axis = structure.nesting + structure.data_dim[name]  # of the rows, once the samples are gone
        value = value.movedim(0, axis).flatten(axis, axis + 1)
        plain = structure.batch_dims[name] + structure.event_dims[name]
        folded[name] = value.reshape(value.shape[value.dim() - plain :])
    return folded


def _unfold(structure: Structure, latents: Latents, num_samples: int) -> Latents:
    """The plain layout of samples · rows rows → (samples, plates..., event...)."""
    unfolded = {}
    for name, value in latents.items():
        axis = structure.nesting + structure.data_dim[name]
        value = _pad(value, structure.nesting + structure.event_dims[name])
        unfolded[name] = value.unflatten(axis, (num_samples, -1)).movedim(axis, 0)
    return unfolded
