"""Converts draws, predictions and log P(x) to ArviZ, as input of ``az.summary``, ``az.loo`` and ``az.compare``.

It works with arviz 0.23 and 1.x; the last section holds their differences.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Hashable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrovae import arguments, identity, noise
from pyrovae.chain_diagnostics import load_arviz
from pyrovae.diagnostics import k_threshold
from pyrovae.evaluation import Evaluation
from pyrovae.evidence import LogEvidence
from pyrovae.evidence.draws import Draws, resample
from pyrovae.evidence.run import Run
from pyrovae.evidence.sampled import answers, of_empty_rows, prepare
from pyrovae.model import LatentVariableModel
from pyrovae.noise import Stream
from pyrovae.pair import Batch, Latents, RowModel, lacking
from pyrovae.refusals import bad_type, bad_value, shown
from pyrovae.rows import joined, read_in_double, restored
from pyrovae.turns import takes_turns

# 4 GiB of float64. A larger number of draws × rows × columns is a mistake or should be requested in parts.
_MOST_NUMBERS = 1 << 29

__all__ = ["stacking_weights", "to_arviz", "to_elpd"]

#: A variable of a group: its dims and its values.
Variable = tuple[tuple[str, ...], np.ndarray]
Group = dict[str, Variable]


@takes_turns
def to_arviz(
    model: Any,
    x: Any,
    *,
    num_draws: int = 200,
    num_samples: int = 1000,
    predictive: bool = True,
    method: str = "importance",
    seed: int = 0,
    tile: tuple[int, int] | None = None,
    check: bool = True,
) -> Any:
    """Return draws of z and replicated rows beside the observed ones, as an ``InferenceData`` (a ``DataTree`` in 1.x).

    For a pair, draws of z from P(z | x_n) are importance-resampled for every row. First z_k ~ q(z), k = 1 … ``num_samples``,
    by a method's proposal q. Then ``num_draws`` of them are chosen with replacement and probabilities
    ∝ P(x_n, z_k) / q(z_k) (Rubin 1987). The groups:

    * ``posterior``: every latent, dims (chain, draw, row, …), NaN in entries that its mask leaves out;
    * ``prior``: as many draws of P(z), with the same dims and NaN;
    * ``posterior_predictive``, ``prior_predictive``: ``x``, new rows from P(x | z) of those draws;
    * ``log_likelihood_given_z``: log P(x_n | z) of the posterior draws, dims (chain, draw, row), in nats.
      It is not named ``log_likelihood``, because ``az.loo`` of it does not estimate log P(x). Every row has
      its own z, and without the row, there are no data about this z;
    * ``observed_data``: ``x``, NaN in missing cells;
    * ``constant_data``: the importance-weighted ``log_evidence`` of every row, with its ``mcse``, ``ess``,
      ``pareto_k`` and ``verdict``, and the values that ``x`` holds beside the rows. The verdicts are those of
      ``log_evidence``. The draws of a row can be trusted only if its verdict is "trust".

    For an MCMC baseline, which has ``posterior`` and ``log_likelihood(x)``, the groups are ``posterior`` by site with its
    chains and values of ``pyro.deterministic``; ``log_likelihood`` of ``x``, dims (chain, draw, row); and
    ``observed_data``. ``az.loo`` leaves out rows that the posterior was fitted to, so ``x`` must be those rows.

    Args:
        model: a ``VAE``, a ``LatentVariableModel``, or a fitted MCMC baseline.
        x: rows on dim 0, or a dict of them, as in ``log_weights``. A DataFrame's index and columns become
            the coordinates of ``row`` and ``column``.
        num_draws: draws to keep for every row.
        num_samples: draws of every row to choose them from.
        predictive: False leaves out the replicated rows.
        method: as in ``impute``, but "importance" by default. "auto" and "refined" need at least 100 ``num_samples``.
        check: try the method on rows simulated from the model, as ``log_evidence`` does. It takes seconds. With False, no row is
            "trust".
        seed: the same seed gives the same numbers; with the same tile, too, the same bits.
        tile: (rows, samples) computed at once; None chooses it from the shapes.

    All options apply to pairs only; the draws of a baseline already exist. The result holds
    2 · draws × rows × (columns + latent dims) numbers.

    Raises:
        TypeError: ``model`` is of another kind.
        ValueError: see ``log_weights``; also if the result would exceed 2²⁹ numbers, or if rows of the model
            cannot be replicated.

    Example:
        >>> import torch, pyrovae as pv
        >>> data = to_arviz(pv.VAE.mlp(6, latent_dim=2), torch.ones(4, 6), num_draws=50, num_samples=100)
        >>> dict(data.posterior["z"].sizes)
        {'chain': 1, 'draw': 50, 'row': 4, 'z_dim_0': 2}
    """
    x = joined(x, "x")
    rows = x["x"] if isinstance(x, Mapping) and "x" in x else x
    if isinstance(model, LatentVariableModel):
        arguments.integer("num_draws", num_draws)
        arguments.boolean("predictive", predictive)
        run = prepare(model, x, method, num_samples, seed, check, tile=tile, least=1)
        groups, attrs = _of_pair(run, method, num_draws, predictive)
        observed = restored(run.whole.batch["x"], run.whole.batch.get("observed"))
    elif hasattr(model, "posterior") and hasattr(model, "log_likelihood"):
        groups, attrs, observed = _of_chains(model, x)
    else:
        raise bad_type(
            "model",
            "a VAE, a LatentVariableModel or an MCMC baseline with posterior and log_likelihood",
            f"a {type(model).__name__}",
            "Fit an MCMC baseline first. An exact baseline has no draws; convert.to_elpd(model.log_evidence(x)) "
            "makes it comparable.",
        )
    groups["observed_data"] = {"x": (_dims_of_rows(observed), _numpy(observed))}
    return _container(groups, _coords(rows, observed), {"inference_library": "pyrovae", **attrs})


@takes_turns
def to_elpd(evidence: LogEvidence) -> Any:
    """Return log P(x_n) of held-out rows as the ``ELPDData`` that ``az.compare`` and ``az.plot_khat`` take.

    elpd = Σ_n log P(x_n) in nats, for all rows together as in arviz, with standard error
    sqrt(N · var_n log P(x_n)) over rows. The rows were held out, so nothing is left out or refitted, and no
    effective number of parameters is estimated (``p`` is NaN). ``warning`` is True if a row's verdict is not
    "trust". k-hat is that of the importance weights over z.

    In arviz 1.x, ``kind`` is "held_out", or None since 1.3; ``az.compare`` mixes neither with results of
    ``az.loo``. arviz 0.x accepts only the kind ``loo``. There the entries are named ``elpd_loo`` and ``loo_i``,
    and ``quantity`` describes them.

    ``az.compare`` does not check rows, units or kinds of number; ``pyrovae.compare`` raises an error if numbers
    cannot be compared. The default weights of ``az.compare`` exponentiate log P(x_n). Below −700 nats per row,
    pass ``method="BB-pseudo-BMA"``.

    Args:
        evidence: the result of ``log_evidence`` for a pair or a baseline.

    Raises:
        TypeError: ``evidence`` is no ``LogEvidence``.
        ValueError: ``evidence`` is that of a training set, which is one number and has no scores of rows.

    Example:
        >>> import torch, pyrovae as pv
        >>> ev = pv.log_evidence(pv.VAE.mlp(6, latent_dim=2), torch.ones(4, 6), num_samples=100)
        >>> elpd = to_elpd(ev)
        >>> elpd.n_data_points
        4
    """
    if not isinstance(evidence, LogEvidence):
        raise bad_type(
            "evidence",
            "a LogEvidence",
            f"a {type(evidence).__name__}",
            "Pass what pyrovae.log_evidence(model, x) returns.",
        )
    if evidence.target != "predictive":
        raise bad_value(
            "evidence",
            "predictive scores of held-out rows",
            f"the {evidence.target} of a training set",
            "Score held-out rows: model.log_evidence(x_test).",
        )
    return _elpd_data(evidence)


@takes_turns
def stacking_weights(scores: Mapping[str, LogEvidence]) -> dict[str, float]:
    """Return the weights, by name, of the mixture Σ_m w_m P_m(x) that maximises the score of the rows, by ``az.compare``.

    Maximises Σ_n log Σ_m w_m P_m(x_n) over weights that sum to 1. Yao, Vehtari, Simpson and Gelman (2018).

    Args:
        scores: name → predictive scores, all of the same rows.
    """
    if not isinstance(scores, Mapping) or not scores:
        raise bad_type(
            "scores", "a dict from names to LogEvidences", shown(scores), 'Pass {"VAE": evidence}.'
        )
    for name, score in scores.items():
        if not isinstance(score, LogEvidence):
            raise bad_type(
                "scores",
                "LogEvidences",
                f"{name!r}, a {type(score).__name__}",
                "Pass what pyrovae.log_evidence(model, x) returns.",
            )
    if len(scores) == 1:
        return dict.fromkeys(scores, 1.0)
    # A constant of each row cancels in the maximum; without it exp(log P(x_n)) would be 0 below −745.
    best = np.max([score.estimate for score in scores.values()], axis=0)
    elpds = {name: to_elpd(replace(score, estimate=score.estimate - best)) for name, score in scores.items()}
    return _stacking_weights(elpds)


# ---------------------------------------------------------------------------------------------------------
# Pairs


def _of_pair(
    run: Run, method: str, num_draws: int, predictive: bool
) -> tuple[dict[str, Group], dict[str, Any]]:
    whole, batch = run.whole, run.whole.batch
    _refuse_too_many(whole, num_draws, predictive)
    if predictive:
        some = slice(0, 4)
        row_noise = whole.noise(Stream.CONVERT, rows=some)
        with whole.pair.evaluating(), noise.seeded(row_noise.seed, batch["x"].device):
            whole.model.check_replicable(whole.part(some))
    groups: dict[str, Group] = {}

    def keep(draws: Draws) -> None:
        numbers = draws.evaluation.numbers[draws.rows].cpu().numpy()
        for group, variables in _of_block(draws, num_draws, predictive).items():
            for name, (dims, values) in variables.items():
                if name not in groups.setdefault(group, {}):
                    # Allocated at once, because joining blocks would take twice the memory.
                    shape = (1, num_draws, len(whole), *values.shape[3:])
                    groups[group][name] = (dims, np.empty(shape, values.dtype))
                groups[group][name][1][:, :, numbers] = values

    constants: Group = {
        name: (_dims_of_rows(value, name), _numpy(value)) for name, value in batch.items() if name != "x"
    }
    every = torch.arange(len(whole), device=whole.numbers.device)
    for _, rows, evidence in answers(run, method, every, keep):
        found = {
            "log_evidence": evidence.estimate,
            **{name: getattr(evidence, name) for name in ("mcse", "ess", "pareto_k", "verdict")},
        }
        for name, values in found.items():
            dtype = "<U14" if name == "verdict" else values.dtype
            kept = constants.setdefault(name, (("row",), np.empty(len(whole), dtype)))[1]
            kept[rows.cpu().numpy()] = values
    # After the others: the first row stands for rows with cells if there are none.
    for draws in of_empty_rows(whole):
        keep(draws)
    groups["constant_data"] = constants
    attrs = {
        "sampling": f"{num_draws} draws a row, resampled by {method!r} with {whole.num_samples} samples",
        "seed": whole.seed,
        "tile": f"{whole.tile[0]} rows x {whole.tile[1]} samples",
    }
    return groups, attrs


def _of_block(draws: Draws, num_draws: int, predictive: bool) -> dict[str, Group]:
    """Return the groups of a block of rows, from its weighted draws."""
    evaluation, rows = draws.evaluation, draws.rows
    model, batch = evaluation.model, evaluation.part(rows)
    row_noise = evaluation.noise(Stream.CONVERT, rows=rows)
    with model.pair.evaluating(), noise.seeded(row_noise.seed, batch["x"].device):
        chosen = resample(draws.log_weights, num_draws, row_noise)  # (draws, rows)
        kept = draws.chosen(chosen)
        prior, _ = model.draw_prior(batch, num_draws, row_noise)
        groups: dict[str, Group] = {}
        lacks = lacking(model, batch, {name: z[:1] for name, z in kept.items()})
        for key, (group, latents) in enumerate((("posterior", kept), ("prior", prior)), start=1):
            groups[group] = {name: _variable(model, name, z, lacks[name]) for name, z in latents.items()}
            if predictive:
                replicated = _replicate(evaluation, rows, batch, latents, key)
                groups[f"{group}_predictive"] = {
                    "x": (("chain", "draw", *_dims_of_rows(batch["x"])), _numpy(replicated)[None])
                }
    given_z = draws.terms.likelihood.gather(0, chosen)
    groups["log_likelihood_given_z"] = {"x": (("chain", "draw", "row"), _numpy(given_z)[None])}
    return groups


def _replicate(evaluation: Evaluation, rows: slice, batch: Batch, latents: Latents, key: int) -> Tensor:
    """Return new rows x ~ P(x | z), shape (samples, rows, *row), made tile by tile of samples."""
    (count,) = {len(value) for value in latents.values()}
    made = []
    for start in range(0, count, evaluation.tile[1]):
        part = {name: value[start : start + evaluation.tile[1]] for name, value in latents.items()}
        row_noise = evaluation.noise(Stream.CONVERT, key, rows=rows, first=start)
        made.append(evaluation.model.replicate(batch, part, row_noise))
    return torch.cat(made)


def _refuse_too_many(evaluation: Evaluation, num_draws: int, predictive: bool) -> None:
    """Raise ``ValueError`` before anything is computed if the result would be too large."""
    batch = evaluation.part(slice(1))
    seed = noise.derive(evaluation.seed, Stream.CONVERT)
    with evaluation.pair.evaluating(), noise.seeded(seed, batch["x"].device):
        latents, _ = evaluation.model.draw_prior(batch, 1)
    columns = batch["x"].numel() if predictive else 0
    width = columns + sum(value.numel() for value in latents.values())
    count = 2 * num_draws * len(evaluation) * width
    if count > _MOST_NUMBERS:
        raise bad_value(
            "num_draws",
            f"at most {_MOST_NUMBERS} numbers, 2 · draws × rows × (columns + latent dims)",
            f"{count} = 2 · {num_draws} × {len(evaluation)} × {width}",
            "Pass fewer draws or rows, or predictive=False.",
        )


def _variable(model: RowModel, name: str, value: Tensor, lacks: Tensor | None) -> Variable:
    """Return a latent in dims (chain, draw, row, …): inner plates, unless of size 1, then the event.

    It is NaN in the entries that ``lacks`` names, as in ``pair.Given``; labels then become float64.
    """
    value, structure = model.rows_second(name, value), model.structure
    if lacks is not None:
        value = value if value.is_floating_point() else value.double()
        value = value.masked_fill(lacks.view(value.shape[1:]), math.nan)
    plates = [size for size in value.shape[2 : 1 + structure.nesting] if size > 1]
    value = value.reshape(*value.shape[:2], *plates, *value.shape[1 + structure.nesting :])
    inner = (f"{name}_dim_{i}" for i in range(value.dim() - 2))
    return ("chain", "draw", "row", *inner), _numpy(value)[None]


# ---------------------------------------------------------------------------------------------------------
# Chains


def _of_chains(model: Any, x: Any) -> tuple[dict[str, Group], dict[str, Any], Tensor]:
    """Return groups of a model with ``posterior``, site → (chains, draws, …), and ``log_likelihood(x)``, (chains, draws, rows)."""
    names = getattr(model, "names", None)
    batch, source = read_in_double(x, names)
    observed, fitted = batch["x"], getattr(model, "seen", None)
    if fitted is not None and not np.array_equal(fitted, identity.row_hashes(source.exact)):
        raise bad_value(
            "x",
            "the rows that the baseline was fitted to: az.loo leaves each of them out in turn",
            f"{len(observed)} rows, not all of them the same in the same order",
            "Pass the rows given to fit; score new ones by model.log_evidence(x) and convert.to_elpd.",
        )
    log_likelihood = model.log_likelihood(x)
    posterior: Group = {}
    computed = model.deterministic() if hasattr(model, "deterministic") else {}
    for name, value in {**model.posterior, **computed}.items():
        dims = ("chain", "draw", *(f"{name}_dim_{i}" for i in range(value.dim() - 2)))
        posterior[name] = (dims, _numpy(value))
    groups: dict[str, Group] = {
        "posterior": posterior,
        "log_likelihood": {"x": (("chain", "draw", "row"), _numpy(log_likelihood))},
    }
    return groups, {"sampling": type(model).__name__}, observed


# ---------------------------------------------------------------------------------------------------------
# Names


def _numpy(value: Tensor) -> np.ndarray:
    return value.detach().cpu().numpy()


def _dims_of_rows(x: Tensor, name: str = "x") -> tuple[str, ...]:
    """Return ("row", "column") for a table, ("row", "x_dim_0", …) for rows of another shape."""
    if x.dim() == 2 and name == "x":
        return ("row", "column")
    return ("row", *(f"{name}_dim_{i}" for i in range(x.dim() - 1)))


def _coords(x: Any, observed: Tensor) -> dict[str, np.ndarray]:
    """Return a DataFrame's own names for rows and columns, and numbers for other input."""
    coords: dict[str, np.ndarray] = {"row": np.arange(len(observed))}
    index = getattr(x, "index", None)
    if hasattr(x, "to_numpy") and index is not None and index.nlevels == 1 and index.is_unique:
        coords["row"] = _labels(index)
    if observed.dim() == 2:
        coords["column"] = _labels(x.columns) if hasattr(x, "columns") else np.arange(observed.shape[1])
    return coords


def _labels(index: Any) -> np.ndarray:
    """Return numbers and dates unchanged and all else as strings, which every file format can store."""
    values = index.to_numpy()
    return values if values.dtype.kind in "iufM" else np.array([_label(value) for value in values])


def _label(value: Hashable) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


# ---------------------------------------------------------------------------------------------------------
# Differences between arviz 0.x and 1.x


def _stacking_weights(elpds: dict[str, Any]) -> dict[str, float]:
    arviz, modern = load_arviz()
    # 1.x rounds weights to two digits by default.
    options = {"round_to": "none"} if modern else {}
    with warnings.catch_warnings():
        # 0.x uses pandas 3 in ways that warn; 1.x warns of selection among many models.
        warnings.simplefilter("ignore")
        weights = arviz.compare(elpds, method="stacking", **options)["weight"]
    return {name: float(weights[name]) for name in elpds}


def _container(groups: Mapping[str, Group], coords: Mapping[str, np.ndarray], attrs: dict[str, Any]) -> Any:
    """Return groups as an ``InferenceData`` or a ``DataTree``; 0.x's from_dict would accept only its own groups."""
    import xarray

    arviz, modern = load_arviz()
    datasets = {}
    for group, variables in groups.items():
        used = {dim: size for dims, v in variables.values() for dim, size in zip(dims, v.shape, strict=True)}
        here = {dim: coords.get(dim, np.arange(size)) for dim, size in used.items()}
        datasets[group] = xarray.Dataset(variables, coords=here, attrs=attrs)
    if modern:
        return xarray.DataTree.from_dict(datasets)
    return arviz.InferenceData(None, False, **datasets)


def _elpd_data(evidence: LogEvidence) -> Any:
    """Return a ``LogEvidence`` as a Series with named entries (0.x), or an object with fields (1.x)."""
    import xarray

    arviz, modern = load_arviz()
    kinds = ", ".join(sorted(set(evidence.kind.tolist())))
    quantity = f"log P(x_n) of held-out rows, {evidence.parameters}, by {evidence.method}: {kinds}"
    common = {
        "se": float(np.sqrt(len(evidence) * evidence.estimate.var())),
        "n_samples": evidence.num_samples,
        "n_data_points": len(evidence),
        "scale": "log",
        "warning": bool((evidence.verdict != "trust").any()),
        "good_k": k_threshold(evidence.num_samples) if evidence.num_samples > 1 else 0.7,
    }
    row = {"row": np.arange(len(evidence))}
    pointwise = xarray.DataArray(evidence.estimate, row, "row", name="elpd_i", attrs={"quantity": quantity})
    pareto_k = xarray.DataArray(evidence.pareto_k, row, "row", name="pareto_k")
    if modern:
        # Since 1.3, kinds belong to arviz's own classes, and the base class has None.
        kind = {"kind": "held_out"} if "kind" in arviz.ELPDData.__dataclass_fields__ else {}
        return arviz.ELPDData(
            elpd=evidence.total,
            p=float("nan"),
            elpd_i=pointwise,
            pareto_k=pareto_k,
            **common,
            **kind,
        )
    entries = {
        # In this order, because arviz prints the first three.
        "elpd_loo": evidence.total,
        "se": common.pop("se"),
        "p_loo": float("nan"),
        **common,
        "loo_i": pointwise.rename("loo_i"),
        "pareto_k": pareto_k.rename("pareto_shape"),
        "quantity": quantity,
    }
    return arviz.stats.ELPDData(list(entries.values()), index=list(entries))
