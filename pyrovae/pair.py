"""What a Pyro model and guide can be asked, row by row: propose z, and the log joint of rows and z.

The only room that touches ``pyro.poutine``. Above it everything is tensors:

* ``propose`` draws z for every row from the guide, with log Q(z | x);
* ``log_joint`` gives log P(z) and log P(x | z) of rows and any z;
* ``loss`` is a Pyro ELBO's loss of a minibatch, for training.

``inspect`` comes first. It runs the pair on a handful of rows, finds the plate over rows, and refuses a
pair for which a log P(x_n) of one row would not mean what it says.

Latents are a dict from site name to value, in the layout Pyro itself gives them under an outermost
plate of particles: (samples, plates..., event...).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.distributions.util import scale_and_mask
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyrovae import checks, noise
from pyrovae.model import LatentVariableModel

Batch = dict[str, Tensor]
Latents = dict[str, Tensor]
Site = dict[str, Any]
Sites = dict[str, Site]

_PARTICLES = "pyrovae_particles"
_PROBE_ROWS = 4


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
        measure: for every column of x flattened: "mass", "density", "transformed" (a density, but of
            something else than x itself) or "unscored".
        supports: where the columns must lie; see ``check_supports``.
    """

    latents: tuple[str, ...]
    observed: tuple[str, ...]
    data_dim: dict[str, int]
    nesting: int
    batch_dims: dict[str, int]
    event_dims: dict[str, int]
    measure: tuple[str, ...]
    supports: tuple[Support, ...]
    vectorised: dict[str, bool]


# ---------------------------------------------------------------------------------------------------------
# The questions


def propose(
    pair: LatentVariableModel, structure: Structure, batch: Batch, num_samples: int
) -> tuple[Latents, Tensor]:
    """Draw z ~ Q(z | x) for every row; returns z and log Q(z | x), shape (samples, rows), in nats."""
    shape = (num_samples, len(batch["x"]))
    if structure.vectorised["guide"]:
        with _particles(structure, num_samples):
            sites = _run(pair, "guide", batch)
        latents = {name: sites[name]["value"] for name in structure.latents}
        return latents, _sum_sites(sites, structure.latents, structure, lead=1).expand(shape)
    sites = _run(pair, "guide", _repeat(batch, num_samples))
    latents = {name: sites[name]["value"] for name in structure.latents}
    log_q = _by_row(sites, structure.latents, structure, num_samples * len(batch["x"]))
    return _unfold(structure, latents, num_samples), log_q.reshape(shape)


def log_joint(pair: LatentVariableModel, structure: Structure, batch: Batch, latents: Latents) -> LogJoint:
    """log P(z) and log P(x | z) of rows and given latents, each of shape (samples, rows), in nats."""
    num_samples = len(latents[structure.latents[0]])
    shape = (num_samples, len(batch["x"]))
    if structure.vectorised["model"]:
        with _particles(structure, num_samples):
            sites = _run(pair, "model", batch, latents)
        prior, likelihood = (
            _sum_sites(sites, names, structure, lead=1).expand(shape)
            for names in (structure.latents, structure.observed)
        )
        return LogJoint(prior, likelihood)
    sites = _run(pair, "model", _repeat(batch, num_samples), _fold(structure, latents))
    prior, likelihood = (
        _by_row(sites, names, structure, num_samples * len(batch["x"])).reshape(shape)
        for names in (structure.latents, structure.observed)
    )
    return LogJoint(prior, likelihood)


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
        def run(*args: Any, **kwargs: Any) -> Any:
            with ExitStack() as handlers:
                if scale != 1:
                    handlers.enter_context(poutine.scale(scale=scale))
                if kl_weight != 1:
                    handlers.enter_context(_ScaleLatents(kl_weight))
                if not differentiable:
                    # These objectives run backward() only where the trace shows a parameter statement.
                    pyro.module("pair", pair)
                return function(*args, **kwargs)

        return run

    differentiable = hasattr(objective, "differentiable_loss")
    compute = objective.differentiable_loss if differentiable else objective.loss_and_grads
    with pair.own_parameters():
        args, kwargs = _arguments(batch)
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


def _arguments(batch: Batch) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Rows go first and by position, whatever the user's function calls them; the rest by name."""
    return (batch["x"],), {name: value for name, value in batch.items() if name != "x"}


def _sample_sites(traced: Any, batch: Batch) -> Sites:
    """Run a traced callable and return its sample statements, without subsampling and deterministic ones."""
    args, kwargs = _arguments(batch)
    trace = traced.get_trace(*args, **kwargs)
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample"
        and not site_is_subsample(site)
        and not site["infer"].get("_deterministic")
    }


def _run(pair: LatentVariableModel, part: str, batch: Batch, latents: Latents | None = None) -> Sites:
    """Run one part of the pair, with latents held at given values where there are any."""
    function = getattr(pair, part)
    if latents is not None:
        function = poutine.condition(function, data=latents)
    with pair.own_parameters():
        return _sample_sites(poutine.trace(function), batch)


def _log_prob(site: Site) -> Tensor:
    """A site's log-probability, masks applied; its scale is 1, as ``inspect`` saw to."""
    return scale_and_mask(site["fn"].log_prob(site["value"]), mask=site["mask"])


def _by_row(sites: Sites, names: tuple[str, ...], structure: Structure, num_rows: int) -> Tensor:
    """The sites' log-probabilities of a plain call, summed over all but the rows: (rows,), float64."""
    return _sum_sites(sites, names, structure, lead=0).expand(num_rows)


def _sum_sites(sites: Sites, names: tuple[str, ...], structure: Structure, lead: int) -> Tensor:
    """Sum log-probabilities over sites and over every dim but the ``lead`` leftmost and the rows."""
    total = None
    for name in names:
        log_prob = _log_prob(sites[name])
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


def _particles(structure: Structure, num_samples: int) -> AbstractContextManager[Any]:
    """The plate of particles, left of every plate of the pair."""
    return pyro.plate(_PARTICLES, num_samples, dim=-1 - structure.nesting)


def _repeat(batch: Batch, num_samples: int) -> Batch:
    """Every row ``num_samples`` times: (samples · rows, ...), the samples outermost."""
    return {name: value.repeat(num_samples, *[1] * (value.dim() - 1)) for name, value in batch.items()}


def _fold(structure: Structure, latents: Latents) -> Latents:
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


# ---------------------------------------------------------------------------------------------------------
# Inspection


def inspect(pair: LatentVariableModel, batch: Batch, seed: int = 0) -> Structure:
    """Find out what the pair is made of, and refuse it where a row's log P(x) would not mean what it says.

    Runs the pair on up to four of the rows, in ``eval()`` mode and without gradients; the first call
    fills the parameter store of a pair written in plain functions, from ``seed``.

    Raises:
        ValueError: naming what was found, for every sentence of the contract: no plate over the rows or
            several, a site outside it, a latent missing from the guide or known to it alone, a guide
            that is a point, observations that do not answer to x, subsampling or scaled sites, randomness
            outside sample sites, rows that feel their neighbours, values off the likelihood's support.
    """
    num_rows = min(len(batch["x"]), _PROBE_ROWS)
    chosen = _distinct_rows(batch["x"], num_rows)
    # The same rows backwards, without the first: other neighbours, other places, another batch size.
    order = list(range(len(chosen) - 1, 0, -1))
    probe = {name: value[chosen] for name, value in batch.items()}
    fewer = {name: value[order] for name, value in probe.items()}
    with pair.evaluating(), noise.seeded(noise.derive(seed, noise.Stream.INSPECT), batch["x"].device):
        sites = _first_runs(pair, probe)
        latents, observed = _check_sites(sites["model"], sites["guide"])
        again = _first_runs(pair, fewer)
        _check_modules(pair, probe, {name: sites["guide"][name]["value"] for name in latents})
        data_dim = _data_dims(pair, sites, again, len(chosen))
        measure, supports = _measure(sites["model"], observed, data_dim, probe["x"])
        if len(set(chosen)) > 1 and not {"mass", "density"} & set(measure):
            _check_varies(sites["model"], observed, data_dim)
        structure = Structure(
            latents=latents,
            observed=observed,
            data_dim=data_dim,
            nesting=max(-frame.dim for part in sites.values() for _, frame in _plates(part)),
            batch_dims={name: len(sites["model"][name]["fn"].batch_shape) for name in latents},
            event_dims={name: sites["model"][name]["fn"].event_dim for name in latents},
            measure=measure,
            supports=supports,
            vectorised={"model": True, "guide": True},
        )
        check_supports(structure, batch["x"])
        _check_log_prob_dims(sites, structure)
        _check_rows_stand_alone(pair, structure, sites, probe, fewer, order)
        return replace(structure, vectorised=_check_vectorised(pair, structure, probe))


def check_supports(structure: Structure, x: Tensor, argument: str = "x") -> None:
    """Refuse rows with values off the likelihood's support, naming the first and what would fit."""
    rows = _columns(x)
    for support in structure.supports:
        checks.on_support(argument, rows, *support)


def _distinct_rows(x: Tensor, num_rows: int) -> list[int]:
    """Indices of up to ``num_rows`` rows that differ, so that an exchange of two of them shows; at least two."""
    chosen: list[int] = []
    for index in range(min(len(x), 64)):
        if all(not torch.equal(x[index], x[other]) for other in chosen):
            chosen.append(index)
        if len(chosen) == num_rows:
            return chosen if len(chosen) > 1 else chosen * 2
    return (chosen * num_rows)[: max(2, num_rows)] if len(chosen) == 1 else chosen


def _check_modules(pair: LatentVariableModel, batch: Batch, latents: Latents) -> None:
    """A module given to pyro.module has to hold what the pair's store holds under its name.

    ``pyro.module`` leaves another module object as it is: it would keep its own weights, unseen and untrained.
    """
    owned = {id(p) for p in pair.owners_parameters()}
    args, kwargs = _arguments(batch)
    for part in ("guide", "model"):
        function = poutine.condition(getattr(pair, part), data=latents)
        with pair.own_parameters():
            nodes = poutine.trace(function, param_only=True).get_trace(*args, **kwargs).nodes
        for name, site in nodes.items():
            given = site["args"][1] if site["type"] == "param" and len(site["args"]) > 1 else None
            if (
                isinstance(given, torch.nn.Parameter)
                and site["value"] is not given
                and id(given) not in owned
            ):
                raise checks.bad_value(
                    part,
                    "modules that hold the parameters which the pair has under their names",
                    f"{name!r} from another module object",
                    "Load the weights into that module, or call pyro.module(..., update_module_params=True).",
                )


def _check_varies(model: Sites, observed: tuple[str, ...], data_dim: dict[str, int]) -> None:
    """Where no column of x is observed as it is, something made of x has to be: it varies with the rows."""
    held = [name for name in observed if _holds_data(model[name])]
    for name in held:
        site = model[name]
        axis = site["value"].dim() - site["fn"].event_dim + data_dim[name]
        values = site["value"].movedim(axis, 0)
        if not bool((values == values[:1]).all()):
            return
    raise _no_answer(held[0])


def _first_runs(pair: LatentVariableModel, batch: Batch) -> dict[str, Sites]:
    """Run the guide, and the model on what it drew, as training does."""
    guide = _first_run(pair, "guide", batch)
    return {"guide": guide, "model": _first_run(pair, "model", batch, guide)}


def _first_run(pair: LatentVariableModel, part: str, batch: Batch, drawn: Sites | None = None) -> Sites:
    """Run a part as it stands, and say so clearly if it can't be called on these rows."""
    function = getattr(pair, part)
    if drawn is not None:
        trace = poutine.Trace()
        for name, site in drawn.items():
            if not site["is_observed"]:
                trace.add_node(name, **site)
        function = poutine.replay(function, trace=trace)
    with pair.own_parameters():
        try:
            with _RefuseSubsampling(part):
                sites = _sample_sites(poutine.trace(function), batch)
        except checks.Refused:
            raise
        except (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError) as error:
            raise checks.bad_value(
                "x",
                f"rows that the {part} can be called on, any number of them",
                f"{type(error).__name__} from it on {len(batch['x'])} rows of shape "
                f"{tuple(batch['x'].shape[1:])}: {error}",
                f"Pass rows of the shape the {part} is written for, and use len(x) where it needs their number.",
            ) from error
    for name, site in sites.items():
        _check_scale(part, name, site)
        if part == "model" and site["is_observed"]:
            _check_shape(name, site, len(batch["x"]))
    return sites


def _check_shape(name: str, site: Site, num_rows: int) -> None:
    """An observed value has to fill its site: a narrower one would be broadcast, and counted many times."""
    fn, value = site["fn"], site["value"]
    expected = (*fn.batch_shape, *fn.event_shape)
    # Plates over rows are left to _check_answers.
    frames = [frame for frame in site["cond_indep_stack"] if frame.vectorized]
    over_rows = {frame.dim - fn.event_dim for frame in frames if frame.size == num_rows}
    dims = set(range(-min(len(expected), value.dim()), 0)) - over_rows
    if any(value.shape[dim] != expected[dim] != 1 for dim in dims):
        raise checks.bad_value(
            "x",
            f"rows that fill the observed site {name!r}, shape {tuple(expected)} for {num_rows} rows",
            f"shape {tuple(value.shape)}",
            "Pass rows of the width that the model is written for.",
        )


class _RefuseSubsampling(poutine.messenger.Messenger):
    """Refuses a plate that draws some of its rows by itself, before its sites fail on the wrong number."""

    def __init__(self, part: str) -> None:
        super().__init__()
        self.part = part

    def _pyro_post_sample(self, msg: Any) -> None:
        if site_is_subsample(msg) and len(msg["value"]) != msg["fn"].size:
            raise checks.bad_value(
                self.part,
                "plates that hold the rows they are given",
                f"plate {msg['name']!r}, which subsamples {len(msg['value'])} of {msg['fn'].size}",
                f'Declare pyro.plate("{msg["name"]}", len(x)); fit draws minibatches and scales them by N/B.',
            )


def _check_scale(part: str, name: str, site: Site) -> None:
    scale = site["scale"]
    if not (bool((scale == 1).all()) if isinstance(scale, Tensor) else scale == 1):
        raise checks.bad_value(
            part,
            "sample sites of scale 1: a scaled log-probability inside a log-mean-exp is no bound",
            f"scale {scale} at site {name!r}",
            "Remove poutine.scale from the pair; for KL annealing use fit(..., kl_warmup=…).",
        )


def _check_sites(model: Sites, guide: Sites) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names of latent and observed sites, once model and guide agree about them."""
    latents = tuple(name for name, site in model.items() if not site["is_observed"])
    observed = tuple(name for name, site in model.items() if site["is_observed"])
    if not latents:
        raise checks.bad_value(
            "model", "a latent sample site", "none", "Sample z inside the plate over rows."
        )
    if not any(_holds_data(model[name]) for name in observed):
        raise checks.bad_value("model", "a site observed with x", "none", 'Write pyro.sample("x", …, obs=x).')
    for name, site in guide.items():
        if site["is_observed"]:
            raise checks.bad_value(
                "guide",
                "latent sites only",
                f"the observed site {name!r}",
                "Leave observations to the model.",
            )
        base = site["fn"]
        while hasattr(base, "base_dist"):
            base = base.base_dist
        if isinstance(base, dist.Delta):
            raise checks.bad_value(
                "guide",
                "a distribution at every latent",
                f"a Delta at site {name!r}, a point without a density",
                "Sample it from a distribution with a scale.",
            )
    for part, missing in (("guide", set(latents) - guide.keys()), ("model", guide.keys() - set(latents))):
        if missing:
            raise checks.bad_value(
                part,
                "the same latent sites in model and guide",
                f"none for {sorted(missing)}",
                "Sample every latent in both, under one name; marginalise in the model what the guide leaves out.",
            )
    return latents, observed


def _holds_data(site: Site) -> bool:
    """Whether an observed site holds observations; pyro.factor's do not."""
    return not isinstance(site["fn"], dist.Unit)


def _plates(sites: Sites) -> Iterator[tuple[str, Any]]:
    """(site name, frame) for every vectorised plate around every site."""
    for name, site in sites.items():
        for frame in site["cond_indep_stack"]:
            if frame.vectorized:
                yield name, frame


def _data_dims(
    pair: LatentVariableModel, sites: dict[str, Sites], again: dict[str, Sites], num_rows: int
) -> dict[str, int]:
    """For each site, the dim of the plate over rows: the one whose size follows the number of rows."""
    found: dict[str, int] = {}
    named = {frame.name for part in sites.values() for _, frame in _plates(part)}
    if pair.plate is not None and pair.plate not in named:
        raise checks.bad_value(
            "plate", f"one of the pair's plates, {sorted(named)}", repr(pair.plate), "Name one of these."
        )
    for part in ("guide", "model"):
        sizes_again = {(name, frame.name): frame.size for name, frame in _plates(again[part])}
        for name, site in sites[part].items():
            frames = {frame.name: frame for other, frame in _plates({name: site})}
            fitting = {
                plate: frame.dim
                for plate, frame in frames.items()
                if frame.size == num_rows and sizes_again.get((name, plate)) == num_rows - 1
            }
            if pair.plate in fitting:
                fitting = {pair.plate: fitting[pair.plate]}
            if not fitting:
                raise checks.bad_value(
                    part,
                    f"site {name!r} inside a plate of size len(x)",
                    f"it inside {[f'{plate} ({frame.size})' for plate, frame in frames.items()] or 'no plate'} "
                    f"for {num_rows} rows",
                    'Put it under "with pyro.plate("data", len(x)):"; what is joint over rows or shared by '
                    "them has no log P(x) of a row, and a shared quantity belongs into a parameter.",
                )
            if len(fitting) > 1:
                raise checks.bad_value(
                    "plate",
                    f"one plate of size len(x) around site {name!r} of the {part}",
                    f"{len(fitting)}: {sorted(fitting)}",
                    f"Say which one holds the rows: LatentVariableModel(model, guide, plate={sorted(fitting)[0]!r}).",
                )
            (dim,) = fitting.values()
            if found.setdefault(name, dim) != dim:
                raise checks.bad_value(
                    part,
                    f"the plate over rows at dim {found[name]} of site {name!r}, as in the guide",
                    f"dim {dim}",
                    "Give the plate the same dim in model and guide.",
                )
    return found


def _measure(
    model: Sites, observed: tuple[str, ...], data_dim: dict[str, int], probe: Tensor
) -> tuple[tuple[str, ...], tuple[Support, ...]]:
    """What each column of x contributes, and where it must lie, read from the observed sites' supports."""
    columns = _columns(probe)
    supports = []
    free: dict[bytes, list[int]] = {}
    for index, column in enumerate(columns.T.contiguous().cpu().numpy()):
        free.setdefault(column.tobytes(), []).append(index)
    measure = ["unscored"] * columns.shape[1]
    transformed = False
    for name in observed:
        site = model[name]
        if not _holds_data(site):
            continue
        fn, value = site["fn"], site["value"]
        axis = value.dim() - fn.event_dim + data_dim[name]
        if axis < 0 or value.shape[axis] != len(probe):
            raise _no_answer(name)
        values = value.movedim(axis, 0).reshape(len(probe), -1)
        matched = []
        for column in values.T.to(columns.dtype).contiguous().cpu().numpy():
            indices = free.get(column.tobytes())
            if indices:
                matched.append(indices.pop(0))
            else:
                transformed = True
        support = fn.support
        while isinstance(support, constraints.independent):
            support = support.base_constraint
        for index in matched:
            measure[index] = "mass" if support.is_discrete else "density"
        # A bound that varies by row (a per-row total count) is left to the distribution's own check.
        fixed = all(not isinstance(bound, Tensor) or bound.numel() == 1 for bound in vars(support).values())
        if matched and fixed and support.event_dim == 0:
            supports.append(Support(sorted(matched), support, _family(fn)))
    if transformed:
        measure = ["transformed" if kind == "unscored" else kind for kind in measure]
    return tuple(measure), tuple(supports)


def _columns(x: Tensor) -> Tensor:
    """Rows flattened: (rows, columns)."""
    return x.flatten(1) if x.dim() > 1 else x[:, None]


def _family(fn: dist.TorchDistribution) -> str:
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return type(fn).__name__


def _no_answer(name: str) -> checks.Refused:
    return checks.bad_value(
        "model",
        f"observed site {name!r} to hold the rows it is called with",
        "values that do not follow x",
        "Observe the argument, obs=x, not data from outside the function.",
    )


def _check_log_prob_dims(sites: dict[str, Sites], structure: Structure) -> None:
    for part, found in sites.items():
        for name, site in found.items():
            dims = site["fn"].batch_shape
            if len(dims) > structure.nesting:
                raise checks.bad_value(
                    part,
                    f"site {name!r} with batch dims inside plates only",
                    f"batch shape {tuple(dims)} under plates of {structure.nesting} dim(s)",
                    "Declare the rest of the dims as the event: .to_event(n).",
                )


def _check_rows_stand_alone(
    pair: LatentVariableModel,
    structure: Structure,
    sites: dict[str, Sites],
    probe: Batch,
    fewer: Batch,
    order: list[int],
) -> None:
    """Run the pair again on the same z, then with other neighbours: each row's terms must stay the same."""
    values = {name: sites["guide"][name]["value"] for name in structure.latents}
    moved = {}
    for name, value in values.items():
        axis = value.dim() - structure.event_dims[name] + structure.data_dim[name]
        moved[name] = value.index_select(axis, torch.tensor(order, device=value.device))
    names = {"guide": structure.latents, "model": structure.latents + structure.observed}
    for part in ("guide", "model"):
        first = _run(pair, part, probe, values)
        terms = _by_row(first, names[part], structure, len(probe["x"]))
        repeated = _by_row(_run(pair, part, probe, values), names[part], structure, len(probe["x"]))
        if not _agree(terms, repeated, probe["x"].dtype):
            raise checks.bad_value(
                part,
                "the same log-probability from the same rows and latents",
                f"two, {_apart(terms, repeated)} nats apart",
                "Draw randomness at sample sites only, and put networks with dropout into modules that "
                "the pair owns, or into eval() mode.",
            )
        second = _run(pair, part, fewer, moved)
        if part == "model":
            for name in structure.observed:
                _check_answers(name, first[name], second[name], structure.data_dim[name], order)
        elsewhere = _by_row(second, names[part], structure, len(order))
        if not _agree(terms[order], elsewhere, probe["x"].dtype):
            raise checks.bad_value(
                part,
                "rows whose log-probability does not depend on the rest of the batch",
                f"one that moves by {_apart(terms[order], elsewhere)} nats when its neighbours or its place change",
                "Use nothing computed over the batch (a mean over rows, BatchNorm in train mode), and no "
                "data from outside the function; constants of the data set belong into buffers.",
            )


def _check_answers(name: str, first: Site, second: Site, dim: int, order: list[int]) -> None:
    """An observed site has to hold the rows it was called with: reordered rows, reordered values."""
    if not _holds_data(first):
        return
    axis = first["value"].dim() - first["fn"].event_dim + dim
    index = torch.tensor(order, device=first["value"].device)
    if not torch.equal(first["value"].index_select(axis, index), second["value"]):
        raise _no_answer(name)


def _check_vectorised(pair: LatentVariableModel, structure: Structure, probe: Batch) -> dict[str, bool]:
    """Whether each part, called once for many samples, says what it says when called for one at a time."""
    one = {name: value[:1] for name, value in probe.items()}  # a tile may hold a single row
    each = [_vectorises(pair, structure, rows) for rows in (probe, one)]
    return {part: all(found[part] for found in each) for part in ("model", "guide")}


def _vectorises(pair: LatentVariableModel, structure: Structure, probe: Batch) -> dict[str, bool]:
    num_samples, num_rows = 2, len(probe["x"])
    plain = replace(structure, vectorised={"model": False, "guide": False})
    latents, _ = propose(pair, plain, probe, num_samples)

    def agrees(part: str) -> bool:
        names = structure.latents if part == "guide" else structure.latents + structure.observed
        # One sample at a time, in the plain layout: what the pair means.
        each = [
            _by_row(_run(pair, part, probe, _fold(structure, _pick(latents, s))), names, structure, num_rows)
            for s in range(num_samples)
        ]
        try:
            with _particles(structure, num_samples):
                if part == "guide":  # a guide has to draw with left dims, too
                    _run(pair, part, probe)
                together = _sum_sites(_run(pair, part, probe, latents), names, structure, lead=1)
            return _agree(torch.stack(each), together.expand(num_samples, num_rows), probe["x"].dtype)
        except (RuntimeError, ValueError, IndexError, TypeError, NotImplementedError, Warning):
            return False

    return {part: agrees(part) for part in ("model", "guide")}


def _pick(latents: Latents, sample: int) -> Latents:
    return {name: value[sample : sample + 1] for name, value in latents.items()}


def _agree(a: Tensor, b: Tensor, dtype: torch.dtype) -> bool:
    """Equal up to what rounding in ``dtype`` does to a sum of log-probabilities."""
    tolerance = 1e-8 if dtype == torch.float64 else 1e-4
    return bool(torch.isclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True).all())


def _apart(a: Tensor, b: Tensor) -> str:
    return f"{float((a - b).abs().max()):.3g}"
