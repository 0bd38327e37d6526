"""Runs a pair: its sample sites, their log-probabilities by row, layouts of latents, and the loss for training.

Latents are a dict from site name to value, in the layout that Pyro gives them under an outermost plate of particles:
(samples, plates..., event...).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.distributions.util import scale_and_mask
from pyro.infer import TraceEnum_ELBO
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyrovae import noise, supports
from pyrovae.model import LatentVariableModel
from pyrovae.refusals import Refused, bad_value

Batch = dict[str, Tensor]
Latents = dict[str, Tensor]
Site = dict[str, Any]
Sites = dict[str, Site]

_DECLARED = "pyrovae_declared"  # the name of a parameter statement without a parameter
AVERAGES = "__baseline_avg_downstream_cost_"  # begins the names under which TraceGraph_ELBO stores averages
_PARTICLES = "pyrovae_particles"


class Support(NamedTuple):
    """The support that columns of x must lie on, and the family that has it."""

    columns: list[int]
    constraint: constraints.Constraint
    family: str


@dataclass(frozen=True, kw_only=True)
class Scored:
    """The columns of x that observed sites hold, and what a row's log-probability measures.

    Attributes:
        data_dim: for each site with a term for every row, the plate dim over rows, negative.
        columns: for each site that holds data, the columns of the flattened x that its values are, in order.
        measure: for every column of the flattened x: "mass" or "density"; "unscored" if it is masked or not observed;
            "unscored in part" if it is masked in some rows or at some z. All are "transformed" if sites do not hold
            columns of x, each once. All are "pseudo-likelihood" if the rows are scored given values that were computed
            from them.
        supports: the supports of the columns; see ``check_supports``.
        own_totals: the names of values beside the rows that are totals of the row. The likelihood is
            conditional on them, as a multinomial is; see ``context.judged``.
        added: the names of sites that add a term to the log-probability and are no draws, as pyro.factor's.
    """

    data_dim: dict[str, int]
    columns: dict[str, tuple[int, ...]]
    measure: tuple[str, ...]
    supports: tuple[Support, ...]
    own_totals: tuple[str, ...] = ()
    added: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Structure(Scored):
    """The results of ``inspect`` on a pair. Every latent and observed site has a ``data_dim``.

    Attributes:
        latents: the names of the latent sites.
        observed: the names of the observed sites.
        nesting: the number of dims of plates; the particles lie left of them.
        batch_dims, event_dims: for each latent, the number of dims of each kind that its value has in a call
            without particles.
        vectorised: for each part, whether one call can take many samples. A part that cannot is called with the
            rows repeated.
        plates: the names of the plates over rows; one, unless sites are in plates of different names.
        widest: numbers in the widest tensor of one row: x, a latent, an observed site, or a layer.
        work: multiply-adds of matrix products and convolutions of one row in guide and model, or the number of
            parameters if that is larger.
        edges: for each part, the latents with bounds, onto which draws may be rounded. The model's are those whose bounds
            are not known to be the guide's.
        fixed_masks: whether masks of latents depend on the rows only, and not on z.
        reaches: whether the guide is known to have density wherever the prior has it, by their supports.
    """

    latents: tuple[str, ...]
    observed: tuple[str, ...]
    nesting: int
    plates: frozenset[str]
    widest: int
    work: int
    batch_dims: dict[str, int]
    event_dims: dict[str, int]
    vectorised: dict[str, bool]
    edges: dict[str, tuple[str, ...]]
    fixed_masks: bool
    reaches: bool

    def names(self, part: str) -> tuple[str, ...]:
        """Return the names of the sites of the guide or the model."""
        return self.latents if part == "guide" else self.latents + self.observed


def take(batch: Batch, rows: Tensor | slice | list[int]) -> Batch:
    """Return some of the rows, with what goes with them."""
    return {name: value[rows] for name, value in batch.items()}


def values_of(sites: Sites, names: Iterable[str]) -> Latents:
    """Return the values of some sites by name."""
    return {name: sites[name]["value"] for name in names}


def flat(x: Tensor) -> Tensor:
    """Return rows flattened: (rows, columns)."""
    return x.flatten(1) if x.dim() > 1 else x[:, None]


def row_axis(site: Site, dim: int) -> int:
    """Return the axis of a site's value that the rows lie on; ``dim`` is the plate dim over rows, negative."""
    return site["value"].dim() - site["fn"].event_dim + dim


def by_rows(site: Site, dim: int) -> Tensor:
    """Return a site's value as (rows, entries); ``dim`` is the plate dim over rows, negative."""
    rows = site["value"].movedim(row_axis(site, dim), 0)
    return rows.reshape(len(rows), -1)


def with_columns(x: Tensor, sites: Sites, scored: Scored) -> Tensor:
    """Return x with the columns that sites hold replaced by the sites' values."""
    found = flat(x).clone()
    for name, columns in scored.columns.items():
        found[:, list(columns)] = by_rows(sites[name], scored.data_dim[name]).to(found.dtype)
    return found.view(x.shape)


def of_rows(structure: Structure, latents: Latents, rows: Tensor) -> Latents:
    """Return latents of some rows, by their numbers, in the plain layout."""
    found = {}
    for name, value in latents.items():
        axis = value.dim() - structure.event_dims[name] + structure.data_dim[name]
        found[name] = value.index_select(axis, rows)
    return found


def loss(
    pair: LatentVariableModel,
    objective: Any,
    batch: Batch,
    num_rows: int,
    kl_weight: float,
    observed_weight: Tensor | float = 1.0,
    averages: dict[str, Tensor] | None = None,
) -> Tensor | float:
    """Return a Pyro ELBO's loss of a minibatch, as an estimate for the whole data set, in nats.

    The minibatch stands for all ``num_rows`` rows: every site is scaled by N/B. Latent sites are also scaled by the KL
    weight, and observed sites by their weight. If the objective is a sum over sites, the loss is

        kl_weight · rate − observed_weight · reconstruction,

    and its derivative by ``observed_weight`` is minus the reconstruction. The result has a graph if the objective, a
    ``pyro.infer.ELBO``, has a differentiable loss. Otherwise its gradients have been added to the parameters' ``.grad``.
    ``averages`` are the objective's decaying averages of earlier steps, by name; the call replaces them.
    """
    scale = num_rows / len(batch["x"])

    def scaled(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with ExitStack() as handlers:
                if scale != 1:
                    handlers.enter_context(poutine.scale(scale=scale))
                if isinstance(observed_weight, Tensor) or kl_weight != 1:
                    handlers.enter_context(_Weigh(kl_weight, observed_weight))
                if not differentiable:
                    # These objectives run backward() only if the trace holds a parameter statement.
                    with _Declares():
                        pyro.param(_DECLARED)
                return function(*args, **kwargs)

        return call

    differentiable = hasattr(objective, "differentiable_loss")
    compute = objective.differentiable_loss if differentiable else objective.loss_and_grads
    with pair.own_parameters():
        args, kwargs = arguments(batch)
        parts = (scaled(part_for(pair, part, batch)) for part in ("model", "guide"))
        with _averages_apart({} if averages is None else averages):
            return compute(*parts, *args, **kwargs)


class _Declares(poutine.messenger.Messenger):
    """Answers a parameter statement with a number, so that the store gets no parameter of its name."""

    def _pyro_param(self, msg: Any) -> None:
        msg["value"] = torch.zeros(())


@contextmanager
def _averages_apart(averages: dict[str, Tensor]) -> Iterator[None]:
    """Run a block in which the parameter store has an objective's averages, and then take them out of it.

    ``TraceGraph_ELBO`` keeps them there under names of its own, but they are no parameters of the pair.
    """
    store = pyro.get_param_store()
    known = set(store)
    for name in averages.keys() - known:
        store[name] = averages[name]
    try:
        yield
    finally:
        averages.clear()
        for name in [n for n in store if n.startswith(AVERAGES) and n not in known]:
            averages[name] = store[name].detach()
            del store[name]


def guess_nesting(pair: LatentVariableModel, objective: Any, batch: Batch, seed: int) -> None:
    """Let an objective that counts the pair's plates do so now, on two rows, in ``eval()`` mode.

    Pyro's objectives otherwise count them inside the first loss, by a run that takes random numbers from it.
    """
    guesses = objective.vectorize_particles or isinstance(objective, TraceEnum_ELBO)
    if not guesses or objective.max_plate_nesting != math.inf:
        return
    rows = take(batch, slice(2))
    args, kwargs = arguments(rows)
    with pair.evaluating(), pair.own_parameters(), noise.seeded(seed, rows["x"].device):
        objective._guess_max_plate_nesting(
            part_for(pair, "model", rows), part_for(pair, "guide", rows), args, kwargs
        )


class _Weigh(poutine.messenger.Messenger):
    """Multiplies the log-probabilities of latent sites and of observed sites by a weight each."""

    def __init__(self, latent: float, observed: Tensor | float) -> None:
        super().__init__()
        self.latent, self.observed = latent, observed

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_subsample(msg):
            return
        weight = self.observed if msg["is_observed"] else self.latent
        if isinstance(weight, Tensor) and isinstance(msg["mask"], Tensor):
            # A masked cell may have a log-probability of −∞, whose product with its gradient, 0, is NaN.
            value = msg["value"]
            weight = weight.to(value.dtype if value.is_floating_point() else torch.get_default_dtype())
            weight = weight.expand(msg["fn"].batch_shape)
            if weight.requires_grad:
                weight.register_hook(torch.nan_to_num)
        msg["scale"] = msg["scale"] * weight


class Reparameterised(poutine.messenger.Messenger):
    """Marks latents that ``poutine.reparam`` computes from other sites: Pyro makes them observed, but does not tell.

    ``ReparamMessenger`` first passes the latent itself to every handler that answers ``get_init_messengers``. A site
    that is observed when it is first seen is the user's, and is never marked.

    Attributes:
        now: the sample statement that is run at the moment, if any.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now: Any = None

    def _pyro_post_sample(self, msg: Any) -> None:
        self.now = None

    def _pyro_get_init_messengers(self, msg: Any) -> None:
        msg["value"] = [*(msg["value"] or ()), self]

    def _pyro_sample(self, msg: Any) -> None:
        self.now = msg
        if not msg["is_observed"]:
            msg["infer"]["_pyrovae_latent"] = True
        elif msg["infer"].get("_pyrovae_latent") and isinstance(supports.innermost(msg["fn"]), dist.Delta):
            msg["infer"]["_pyrovae_computed"] = True
            if getattr(msg["fn"], "_mask", None) is False:
                msg["infer"]["_deterministic"] = True


# ---------------------------------------------------------------------------------------------------------
# Running the pair


def arguments(batch: Batch) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Return the rows as the positional argument and all other values by name."""
    return (batch["x"],), {name: value for name, value in batch.items() if name != "x"}


def part_for(pair: LatentVariableModel, part: str, batch: Batch) -> Callable[..., Any]:
    """Return a part of the pair as a function of the batch's rows and of all values beside them."""
    return pair.part(part) if "observed" in batch else getattr(pair, part)


def sample_sites(function: Callable[..., Any], batch: Batch, latents: Latents | None = None) -> Sites:
    """Run a callable, with latents held at given values if any, and return its sample statements.

    Subsampling and deterministic statements are left out, and so are latents that ``poutine.reparam`` computes.

    Raises:
        ValueError: a distribution cannot be drawn from, because it lacks a method.
    """
    if latents is not None:
        function = poutine.condition(function, data=latents)
    return {
        name: site
        for name, site in _statements(function, batch).items()
        if not site["infer"].get("_deterministic")
    }


def deterministic_sites(function: Callable[..., Any], batch: Batch) -> Latents:
    """Run a callable and return the values of its deterministic statements, and of latents that ``poutine.reparam`` computes."""
    return {
        name: site["value"]
        for name, site in _statements(function, batch).items()
        if site["infer"].get("_deterministic")
    }


def _statements(function: Callable[..., Any], batch: Batch) -> Sites:
    """Run a callable and return its sample statements but those of subsampling."""
    args, kwargs = arguments(batch)
    handler = Reparameterised()
    try:
        trace: Any = poutine.trace(handler(function)).get_trace(*args, **kwargs)
    except NotImplementedError as error:
        if handler.now is None:  # not from a sample statement
            raise
        raise lacks_method(handler.now, error) from error
    except Refused as error:  # Pyro raises it again with a page of shapes
        raise (error.__cause__ if isinstance(error.__cause__, Refused) else error) from None
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site_is_subsample(site)
    }


def lacks_method(site: Site, error: NotImplementedError) -> Refused:
    """Return the error for a sample statement whose distribution lacks a method that it needs."""
    inner: BaseException = error
    while inner.__cause__ is not None:  # Pyro adds the shapes of the sites
        inner = inner.__cause__
    place = inner.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    method = "sample" if place is None else place.tb_frame.f_code.co_name
    if method == "rsample":  # torch calls it if there is no other sample()
        method = "sample"
    name, fn = site["name"], supports.innermost(site["fn"])
    fix = f"Write its {method}(). Only method='importance' of log_evidence needs no draws from the prior."
    if isinstance(fn, dist.ImproperUniform):
        fix = "Give it a proper prior, such as a wide Normal."
    return bad_value(
        f"site {name!r}",
        "a distribution that draws samples",
        f"{type(fn).__name__}, which raises NotImplementedError in {method}()",
        fix,
    )


def run(pair: LatentVariableModel, part: str, batch: Batch, latents: Latents | None = None) -> Sites:
    """Run one part of the pair, with latents held at given values if any are given."""
    with pair.own_parameters():
        return sample_sites(part_for(pair, part, batch), batch, latents)


def log_prob(site: Site, checked: bool = False) -> Tensor:
    """Return a site's log-probability, masks applied, −∞ off its support; its scale is 1, as ``inspect`` requires.

    ``checked`` tells that the value was checked against fixed bounds before, as observed values are.
    """
    found = supports.log_prob(site["fn"], site["value"], checked)
    return scale_and_mask(found, mask=site["mask"])


def by_row(sites: Sites, names: tuple[str, ...], structure: Structure, num_rows: int) -> Tensor:
    """Return the sites' log-probabilities of a plain call, summed over all dims but the rows: (rows,), float64."""
    return sum_sites(sites, names, structure, lead=0).expand(num_rows)


def sum_sites(sites: Sites, names: tuple[str, ...], structure: Structure, lead: int) -> Tensor:
    """Return log-probabilities summed over sites and over every dim but the ``lead`` leftmost and the rows."""
    total = None
    for name in names:
        term = _pad(log_prob(sites[name], checked=name in structure.observed), lead + structure.nesting)
        keep = {*range(lead), term.dim() + structure.data_dim[name]}
        others = [dim for dim in range(term.dim()) if dim not in keep]
        # float64 from here on, because a sum of float32 log-probabilities loses 1e-4 nats near −500.
        term = term.sum(others, dtype=torch.float64) if others else term.double()
        total = term if total is None else total + term
    if total is None:
        raise RuntimeError("no sites to sum")  # inspect requires latent and observed sites
    return total


def _pad(tensor: Tensor, dims: int) -> Tensor:
    """Return ``tensor`` with dims of size 1 added on the left, up to ``dims`` in all."""
    return tensor.reshape((1,) * (dims - tensor.dim()) + tensor.shape)


def particles(structure: Structure, num_samples: int) -> AbstractContextManager[Any]:
    """Return the plate of particles, left of every plate of the pair."""
    return pyro.plate(_PARTICLES, num_samples, dim=-1 - structure.nesting)


def repeat(batch: Batch, num_samples: int) -> Batch:
    """Return every row ``num_samples`` times: (samples · rows, ...), the samples outermost."""
    return {name: value.repeat(num_samples, *[1] * (value.dim() - 1)) for name, value in batch.items()}


def fold(structure: Structure, latents: Latents) -> Latents:
    """Return (samples, plates..., event...) in the plain layout of samples · rows rows."""
    folded = {}
    for name, value in latents.items():
        axis = structure.nesting + structure.data_dim[name]  # of the rows, without the samples
        value = value.movedim(0, axis).flatten(axis, axis + 1)
        plain = structure.batch_dims[name] + structure.event_dims[name]
        folded[name] = value.reshape(value.shape[value.dim() - plain :])
    return folded


def unfold(structure: Structure, latents: Latents, num_samples: int) -> Latents:
    """Return the plain layout of samples · rows rows as (samples, plates..., event...)."""
    unfolded = {}
    for name, value in latents.items():
        axis = structure.nesting + structure.data_dim[name]
        value = _pad(value, structure.nesting + structure.event_dims[name])
        unfolded[name] = value.unflatten(axis, (num_samples, -1)).movedim(axis, 0)
    return unfolded
