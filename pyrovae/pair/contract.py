"""Checks of the contract with a Pyro pair: each raises an error that says what breaks it and how to fix it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import TraceGraph_ELBO
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pyrovae import noise, supports
from pyrovae.model import LatentVariableModel
from pyrovae.pair import masks
from pyrovae.pair.behaviour import left_as_found
from pyrovae.pair.row_model import RowModel
from pyrovae.pair.running import (
    AVERAGES,
    Batch,
    Latents,
    Site,
    Sites,
    Structure,
    arguments,
    by_row,
    by_rows,
    loss,
    of_rows,
    part_for,
    particles,
    row_axis,
    run,
    sample_sites,
    sum_sites,
    take,
    values_of,
)
from pyrovae.refusals import Refused, bad_value


def check_scale(part: str, name: str, site: Site) -> None:
    """Raise ``ValueError`` unless a site has scale 1: a scaled term inside a log-mean-exp gives no bound."""
    scale = site["scale"]
    if not (bool((scale == 1).all()) if isinstance(scale, Tensor) else scale == 1):
        raise bad_value(
            part,
            "sample sites of scale 1: a scaled log-probability inside a log-mean-exp is no bound",
            f"{_shown(scale)} at site {name!r}",
            "Remove poutine.scale from the pair; for KL annealing use fit(..., kl_warmup=…).",
        )


def _shown(scale: Tensor | float) -> str:
    """Return a scale for a message: the number, or how many of several are not 1."""
    if not isinstance(scale, Tensor) or scale.numel() == 1:
        return f"scale {scale}"
    odd = scale[scale != 1]
    return f"{len(odd)} scales other than 1, first {float(odd[0]):g},"


def first_run(function: Callable[..., Any], part: str, batch: Batch) -> Sites:
    """Run a part and return its sites.

    Raises:
        ValueError: it subsamples, scales sites, is masked from outside, or changes its rows in place.
    """
    before = {name: value._version for name, value in batch.items()}
    with _RefuseHandlers(part), masks.refused_on_distributions(part):
        sites = sample_sites(function, batch)
    for name, value in batch.items():
        if value._version != before[name]:  # the numbers are the user's own, or in a read-only file
            raise bad_value(
                part,
                "a callable that leaves its rows as they are",
                f"{name} changed in place",
                f"Work on a copy: {name} = {name}.clone().",
            )
    for name, site in sites.items():
        check_scale(part, name, site)
    return sites


class _RefuseHandlers(poutine.messenger.Messenger):
    """Raises an error for a mask around the call of the package, which log P(x) would lack, and for a plate that subsamples.

    It does so before the sites of such a plate fail on the wrong number of rows. Masks inside the call have to fit their sites.
    """

    def __init__(self, part: str) -> None:
        super().__init__()
        self.part = part
        self.own: dict[str, Any] = {}

    def _pyro_sample(self, msg: Any) -> None:
        self.own[msg["name"]] = msg["mask"]
        if not site_is_subsample(msg):
            masks.check_shape(self.part, msg)

    def _pyro_post_sample(self, msg: Any) -> None:
        if site_is_subsample(msg):
            return _check_whole(self.part, msg)
        own, now = self.own.get(msg["name"]), msg["mask"]
        if now is not own and not _mask_nothing_more(now, own):
            raise bad_value(
                self.part,
                "a call outside poutine.mask, which takes masked terms out of log P(x)",
                f"a mask {'of a tensor' if isinstance(now, Tensor) else now} around it at site {msg['name']!r}",
                "Call this outside of poutine.mask; masks that belong to the pair go into model and guide.",
            )


def _mask_nothing_more(now: Any, own: Any) -> bool:
    """Return whether a mask leaves all terms in that a site's own mask leaves in; None is no mask."""
    now, own = (torch.as_tensor(True if mask is None else mask) for mask in (now, own))
    return bool((now | ~own).all())


def _check_whole(part: str, plate: Any) -> None:
    """Raise ``ValueError`` for a plate that subsamples its rows."""
    size, chosen = plate["fn"].size, len(plate["value"])
    asked = chosen if plate["fn"].subsample_size is None else plate["fn"].subsample_size
    if chosen != size or asked != size:
        raise bad_value(
            part,
            "plates that hold the rows they are given",
            f"plate {plate['name']!r}, which subsamples {asked} of {size}",
            f'Declare pyro.plate("{plate["name"]}", len(x)); fit draws minibatches and scales them by N/B.',
        )


def check_shape(name: str, site: Site, num_rows: int) -> None:
    """Raise ``ValueError`` if an observed value is smaller than its site, because it would be broadcast and counted often."""
    fn, value = site["fn"], site["value"]
    expected = (*fn.batch_shape, *fn.event_shape)
    # _check_answers covers plates over rows.
    frames = [frame for frame in site["cond_indep_stack"] if frame.vectorized]
    over_rows = {frame.dim - fn.event_dim for frame in frames if frame.size == num_rows}
    dims = set(range(-min(len(expected), value.dim()), 0)) - over_rows
    if any(value.shape[dim] != expected[dim] != 1 for dim in dims):
        raise unfilled(name, site, num_rows)


def unfilled(name: str, site: Site, num_rows: int) -> Refused:
    """Return the error for rows whose shape is not that of the site that observes them."""
    fn, value = site["fn"], site["value"]
    flat = fn.event_dim == 1 and value.dim() > 1 and value[0].numel() == fn.event_shape[0]
    fix = "Pass rows of the shape that the model is written for, on dim 0."
    if flat:
        fix = "Pass x.reshape(len(x), -1)."
    elif value.dim() == 1 and (*fn.batch_shape, *fn.event_shape)[1:] == (1,):
        fix = "Pass x[:, None], or x.to_frame() of a series."
    needed, came = (*fn.batch_shape, *fn.event_shape), tuple(value.shape)
    words = f"shape {needed} for {num_rows} rows", f"shape {came}"
    if (
        needed[:1] == came[:1] == (num_rows,) and needed[1:] != came[1:]
    ):  # few rows of x, whose number says nothing
        words = f"each of shape {needed[1:]}", f"rows of shape {came[1:]}"
    return bad_value("x", f"rows that fill the observed site {name!r}, {words[0]}", words[1], fix)


def check_sites(model: Sites, guide: Sites) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of latent and observed sites; raise ``ValueError`` if model and guide do not match."""
    latents, observed = latent_and_observed(model, "Sample z inside the plate over rows.")
    for name, site in guide.items():
        if site["is_observed"]:
            raise bad_value(
                "guide",
                "latent sites only",
                f"the observed site {name!r}",
                "Leave observations to the model.",
            )
    for part, missing in (("guide", set(latents) - guide.keys()), ("model", guide.keys() - set(latents))):
        if missing:
            raise bad_value(
                part,
                "the same latent sites in model and guide",
                f"no site {', '.join(map(repr, sorted(missing)))} in the {part}, though the other part has it",
                "Sample every latent in both, under one name; or marginalise in the model what the guide leaves out.",
            )
    return latents, observed


def latent_and_observed(model: Sites, fix: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of latent and observed sites; raise ``ValueError`` without either, ``fix`` for latents."""
    latents = tuple(name for name, site in model.items() if not site["is_observed"])
    observed = tuple(name for name, site in model.items() if site["is_observed"])
    if not latents:
        raise bad_value("model", "a latent sample site", "none", fix)
    if not any(holds_data(model[name]) for name in observed):
        raise bad_value("model", "a site observed with x", "none", 'Write pyro.sample("x", …, obs=x).')
    return latents, observed


def holds_data(site: Site) -> bool:
    """Return whether an observed site holds observations; those of pyro.factor and of poutine.reparam do not."""
    return not (isinstance(site["fn"], dist.Unit) or site["infer"].get("_pyrovae_computed"))


def adds_nothing(site: Site) -> bool:
    """Return whether poutine.reparam made a site whose log-probability is 0: its transform keeps volumes."""
    if not site["infer"].get("_pyrovae_computed"):
        return False
    inner: Any = supports.innermost(site["fn"])
    return bool((inner.log_density == 0).all())


def check_modules(pair: LatentVariableModel, batch: Batch, latents: Latents) -> None:
    """Raise ``ValueError`` if a module passed to pyro.module lacks the parameters that the store has under its name.

    ``pyro.module`` does not change such a module object. It would keep its own weights, which are never trained.
    """
    owned = {id(p) for p in pair.owners_parameters()}
    args, kwargs = arguments(batch)
    for part in ("guide", "model"):
        function = poutine.condition(part_for(pair, part, batch), data=latents)
        with pair.own_parameters():
            nodes = poutine.trace(function, param_only=True).get_trace(*args, **kwargs).nodes
        for name, site in nodes.items():
            given = site["args"][1] if site["type"] == "param" and len(site["args"]) > 1 else None
            if (
                isinstance(given, torch.nn.Parameter)
                and site["value"] is not given
                and id(given) not in owned
            ):
                raise bad_value(
                    part,
                    "modules that hold the parameters which the pair has under their names",
                    f"{name!r} from another module object",
                    "Load the weights into that module, or call pyro.module(..., update_module_params=True).",
                )


def check_varies(model: Sites, observed: tuple[str, ...], data_dim: dict[str, int]) -> None:
    """Raise ``ValueError`` if no observed value varies with the rows, for models that observe functions of x."""
    held = [name for name in observed if holds_data(model[name])]
    for name in held:
        values = by_rows(model[name], data_dim[name])
        if not bool((values == values[:1]).all()):
            return
    raise no_answer(held[0])


def no_answer(name: str) -> Refused:
    """Return the error for an observed site that holds other values than the rows."""
    return bad_value(
        "model",
        f"observed site {name!r} to hold the rows it is called with",
        "values that do not change with x",
        "Observe the argument, obs=x, not data from outside the function.",
    )


def check_log_prob_dims(sites: dict[str, Sites], structure: Structure) -> None:
    """Raise ``ValueError`` if a batch dim of a site belongs to no plate around it."""
    for part, found in sites.items():
        for name, site in found.items():
            dims = site["fn"].batch_shape
            plates = {frame.dim for frame in site["cond_indep_stack"] if frame.vectorized}
            loose = any(size != 1 and dim - len(dims) not in plates for dim, size in enumerate(dims))
            if loose or len(dims) > structure.nesting:
                raise bad_value(
                    part,
                    f"site {name!r} with batch dims inside plates only",
                    f"batch shape {tuple(dims)} under plates of {len(plates)} dim(s)",
                    "Declare the rest of the dims as the event: .to_event(n)."
                    + " Or give its mask no dims beyond the plates." * bool(masks.of(site)),
                )


def check_repeats(
    model: RowModel, sites: dict[str, Sites], probe: Batch, fewer: Batch, order: list[int]
) -> None:
    """Run the pair again on the same z; raise unless the terms stay the same and observed values follow the rows."""
    pair, structure = model.pair, model.structure
    values = values_of(sites["guide"], structure.latents)
    for part in ("guide", "model"):
        try:
            first = run(pair, part, probe, values)
            terms = by_row(first, structure.names(part), structure, len(probe["x"]))
        except torch.OutOfMemoryError:
            raise
        except (KeyError, NotImplementedError, RuntimeError) as error:
            raise bad_value(
                part,
                "distributions that score any value of their latents",
                f"{type(error).__name__} from one at a value it did not draw itself: {error}",
                "Use a flow whose inverse is known, such as affine or spline coupling.",
            ) from error
        again = [model.plain_scores(part, probe, values)]
        if part == "guide":  # also at its own draws, with the cached values of their transforms
            again.append(by_row(sites["guide"], structure.latents, structure, len(probe["x"])))
        for repeated in again:
            if not _agree(terms, repeated, pair.coarsest or probe["x"].dtype):
                raise bad_value(
                    part,
                    "the same log-probability from the same rows and latents",
                    f"two, {_apart(terms, repeated)} nats apart",
                    "Draw randomness at sample sites only, and put networks with dropout into modules that "
                    "the pair owns, or into eval() mode.",
                )
        if part == "model":
            places = torch.tensor(order, device=probe["x"].device)
            second = run(pair, part, fewer, of_rows(structure, values, places))
            for name in structure.observed:
                _check_answers(name, first[name], second[name], structure.data_dim[name], order)


def _check_answers(name: str, first: Site, second: Site, dim: int, order: list[int]) -> None:
    """Raise ``ValueError`` unless an observed site's values are reordered when the rows are."""
    if not holds_data(first):
        return
    value, axis = first["value"], row_axis(first, dim)
    if torch.equal(value.index_select(axis, torch.tensor(order, device=value.device)), second["value"]):
        return
    if torch.equal(value.narrow(axis, 0, len(order)), second["value"]):
        raise no_answer(name)
    raise bad_value(
        "model",
        f"observed site {name!r} to hold the rows it is called with",
        "values of a row that change with the other rows of the batch",
        "Observe the argument, obs=x. Standardise x beforehand, by numbers taken from the training rows.",
    )


def check_vectorised(model: RowModel, probe: Batch) -> dict[str, bool]:
    """Return for each part whether one call for many samples gives the same terms as a call per sample."""
    one = take(probe, slice(1))  # a tile may hold a single row
    each = [_vectorises(model, rows) for rows in (probe, one)]
    return {part: all(found[part] for found in each) for part in ("model", "guide")}


def _vectorises(model: RowModel, probe: Batch) -> dict[str, bool]:
    """Return ``check_vectorised`` on the given rows alone."""
    pair, structure = model.pair, model.structure
    num_samples, num_rows = 2, len(probe["x"])
    plain = model.plainly()
    latents, log_q = plain.propose(probe, num_samples)
    prior, likelihood = plain.log_joint(probe, latents)

    def agrees(part: str, expected: Tensor) -> bool:
        try:
            with particles(structure, num_samples):
                if part == "guide":  # a guide must also draw with additional left dims
                    run(pair, part, probe)
                sites = run(pair, part, probe, latents)
            together = sum_sites(sites, structure.names(part), structure, lead=1)
            return _agree(expected, together.expand(num_samples, num_rows), pair.coarsest or probe["x"].dtype)
        except Exception:  # a pair may fail in any way on unknown dims; its rows are then repeated instead
            return False

    return {"model": agrees("model", prior + likelihood), "guide": agrees("guide", log_q)}


def _agree(a: Tensor, b: Tensor, dtype: torch.dtype) -> bool:
    """Return whether two terms are equal up to the rounding of a sum of log-probabilities in ``dtype``."""
    tolerance = 1e-8 if dtype == torch.float64 else 1e-4
    return bool(torch.isclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True).all())


def _apart(a: Tensor, b: Tensor) -> str:
    return f"{float((a - b).abs().max()):.3g}"


class _Backward(TorchFunctionMode):
    """Keeps the graphs that ``backward()`` is called on, in ``roots``; on exit every leaf has its earlier ``.grad``."""

    def __init__(self) -> None:
        super().__init__()
        self.roots: list[Any] = []
        self._grads: dict[int, tuple[Tensor, Tensor | None]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is Tensor.backward or func is torch.autograd.backward:
            called_on = args[0] if isinstance(args[0], tuple | list) else args[:1]
            roots = [root.grad_fn if isinstance(root, Tensor) else root.node for root in called_on]
            self.roots += roots
            for leaf in _leaves(roots):
                if id(leaf) not in self._grads:
                    self._grads[id(leaf)] = (leaf, leaf.grad)
                    leaf.grad = None  # a gradient in place would change the earlier one
            kwargs["retain_graph"] = True
        return func(*args, **kwargs)

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for leaf, grad in self._grads.values():
            leaf.grad = grad


class _AveragesFixed(poutine.messenger.Messenger):
    """Detaches an objective's averages of earlier steps, which it stores as parameters but does not train."""

    def _pyro_post_param(self, msg: Any) -> None:
        if msg["name"].startswith(AVERAGES):
            msg["value"] = msg["value"].detach()


def _leaves(nodes: Iterable[Any]) -> Iterator[Tensor]:
    """Yield the leaves of the graphs that begin at some nodes, each once."""
    waiting, visited = list(nodes), set()
    while waiting:
        node = waiting.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None:
            yield leaf
        waiting += [following for following, _ in node.next_functions]


def _roots(
    pair: LatentVariableModel,
    objective: Any,
    rows: Batch,
    seed: int,
    averages: dict[str, Tensor] | None = None,
) -> list[Any]:
    """Compute one loss and return where its graphs begin; pair and objective are left as found, and so are gradients."""
    with (
        left_as_found(pair, objective),
        pair.evaluating(),
        torch.enable_grad(),
        noise.seeded(seed, rows["x"].device),
        _Backward() as differentiated,
        _AveragesFixed(),
    ):
        total = loss(pair, objective, rows, len(rows["x"]), kl_weight=1.0, averages=averages)
    return [getattr(total, "grad_fn", None), *differentiated.roots]


def check_every_leaf(pair: LatentVariableModel, objective: Any, batch: Batch, seed: int) -> None:
    """Raise ``ValueError`` if a loss depends on parameters that are not among the pair's, which would never be trained.

    The check follows the graph of one loss to its leaves. If an objective calls ``backward()`` itself, the check follows
    the graphs of the tensors that it calls it on. Gradients are as before.
    """
    try:
        roots = _roots(pair, objective, take(batch, slice(2)), seed)
    except NotImplementedError as error:
        if "fully reparameterized" not in str(error):
            raise
        raise bad_value(
            "loss",
            "an objective for latents without reparameterised draws, because the guide has one",
            type(objective).__name__,
            "Pass Trace_ELBO or TraceGraph_ELBO.",
        ) from error
    known = {id(p) for p in pair.parameters()}
    for leaf in _leaves(roots):
        if id(leaf) not in known:
            raise bad_value(
                "pair",
                "parameters that belong to the pair, so that fit can train them",
                f"one of shape {tuple(leaf.shape)} inside a plain function",
                "Declare its module with pyro.module, pass the module or its bound method as model or guide, "
                "or freeze it: requires_grad_(False).",
            )


def check_averages(
    pair: LatentVariableModel, objective: Any, batch: Batch, sizes: Iterable[int], seed: int
) -> None:
    """Raise ``ValueError`` if an objective averages costs row by row over steps, and batches have several sizes."""
    several = sorted(set(sizes))
    if not isinstance(objective, TraceGraph_ELBO) or len(several) == 1:
        return
    shapes = []
    for size in (2, 3):
        averages = dict[str, Tensor]()
        _roots(pair, objective, take(batch, [0] * size), seed, averages)
        shapes.append({name: average.shape for name, average in averages.items()})
    if shapes[0] != shapes[1]:
        raise bad_value(
            "batch_size",
            "one that gives batches of one size, because the guide's use_decaying_avg_baseline keeps an average per row",
            f"batches of {', '.join(map(str, several[:3]))} rows",
            "Pass a batch_size that divides the number of rows, such as the number itself, or leave out this baseline.",
        )
