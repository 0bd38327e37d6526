"""compare(): who explains held-out rows better, by how much, and whether that is more than the error; swap()."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pyrovae import checks, noise
from pyrovae.evidence import VERDICTS, LogEvidence, log_evidence
from pyrovae.likelihoods import Likelihood
from pyrovae.model import VAE
from pyrovae.networks import standardizing
from pyrovae.pair import Batch, check_supports, inspect
from pyrovae.training import fit

if TYPE_CHECKING:
    import pandas as pd


def compare(
    models: Mapping[str, Any],
    x: Any = None,
    *,
    method: str = "importance",
    num_samples: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> pd.DataFrame:
    """Score the same held-out rows under every model and rank them by log P(x), in nats a row.

    Args:
        models: name → a ``VAE``, a ``LatentVariableModel``, a fitted baseline, or a ``LogEvidence``
            computed before.
        x: held-out rows on dim 0; may be left out where every model is a ``LogEvidence``.
        method, seed, progress: of ``log_evidence``, for the pairs among the models; "auto" where verdicts
            of "importance" say "another method".
        num_samples: draws a row; the method's own default where None, of "importance" 1000.

    Returns:
        A frame, best first, indexed by name: ``elpd``, the mean log P(x_n), an estimate of the expected
        log predictive density of a new row; ``se``, its standard error over rows; ``elpd_diff`` to the
        best, and ``dse``, the standard error of that paired difference; ``mcse`` and ``bias``, the
        Monte-Carlo error and first-order bias of ``elpd``, apart from both; ``mcse_diff``, the
        Monte-Carlo error of ``elpd_diff``, as if the two were independent; ``kind``; ``parameters`` (plug-in or posterior-averaged);
        the rows by verdict; ``seconds``, NaN for what was computed before. All in nats a row.

    Raises:
        ValueError: a mass against a density, column by column; different rows; a number that is no
            predictive score of x in its own units.

    Example:
        >>> import torch, pyrovae as pv
        >>> from pyrovae import baselines
        >>> x = (torch.rand(60, 5, generator=torch.Generator().manual_seed(0)) < 0.3).float()
        >>> independent = baselines.IndependentBernoulli().fit(x[:40])
        >>> table = pv.compare({"VAE": pv.VAE.mlp(5, latent_dim=1), "independent": independent}, x[40:])
        >>> table.index[0]
        'independent'
    """
    if not isinstance(models, Mapping) or not models:
        raise checks.bad_type(
            "models",
            "a dict from names to models",
            f"a {type(models).__name__}" if models else "none",
            'Pass {"VAE": vae, "PPCA": ppca}.',
        )
    scores: dict[str, LogEvidence] = {}
    seconds: dict[str, float] = {}
    for name, model in models.items():
        started = time.perf_counter()
        if isinstance(model, LogEvidence):
            scores[name] = model
            started = float("nan")
        else:
            if isinstance(model, type):
                raise checks.bad_type(
                    "models",
                    "fitted models",
                    f"the class {model.__name__} as {name!r}",
                    "Fit an instance first.",
                )
            if x is None:
                raise checks.bad_value(
                    "x", f"rows to score {name!r} on", "None", "Pass held-out rows as the second argument."
                )
            options: dict[str, Any] = {"method": method}
            if method != "exact":  # which has no noise, and nothing to wait for
                options |= {"seed": seed, "progress": progress}
            if num_samples is not None or method == "importance":
                options["num_samples"] = 1000 if num_samples is None else num_samples
            scores[name] = log_evidence(model, x, **({} if hasattr(model, "log_evidence") else options))
        seconds[name] = time.perf_counter() - started
    _check_comparable(scores)
    return _table(scores, seconds)


_MENDS = {
    "transformed": "Observe x itself; put a scaling into the likelihood, or transform x before and pass that.",
    "unscored": "Score every column under every model, or pass only the columns that all of them score.",
    "pseudo-likelihood": "An offset computed from the scored columns tells the model what it is to predict: "
    "measure it apart, or let the model find it.",
}


def _check_comparable(scores: Mapping[str, LogEvidence]) -> None:
    """Refuse to put numbers side by side that measure different things."""
    (first, reference), *others = scores.items()
    for name, score in scores.items():
        odd = [column for column, kind in enumerate(score.measure) if kind not in ("mass", "density")]
        if odd:
            raise checks.bad_value(
                "models",
                "a log P of every column of x, in x's own units",
                f"{name!r}, in which {len(odd)} column(s) are {score.measure[odd[0]]}, first column {odd[0]}",
                _MENDS[score.measure[odd[0]]],
            )
        if score.target != "predictive":
            raise checks.bad_value(
                "models",
                "predictive scores of held-out rows",
                f"{name!r}, the {score.target} of a training set",
                "Compare evidences of one training set with each other only.",
            )
    for name, score in others:
        if score.fingerprint != reference.fingerprint:
            raise checks.bad_value(
                "models",
                f"all scored on the same rows in the same units, as {first!r} was",
                f"{name!r} on others ({len(score)} rows against {len(reference)})",
                "Score them on one x.",
            )
        if score.measure != reference.measure:
            column = next(
                i
                for i, pair in enumerate(zip(score.measure, reference.measure, strict=True))
                if pair[0] != pair[1]
            )
            raise checks.bad_value(
                "models",
                "all masses or all densities, column by column",
                f"a {reference.measure[column]} under {first!r} and a {score.measure[column]} under {name!r} "
                f"in column {column}",
                "A probability and a density have different units and no common scale: compare each with its "
                "own kind, in two tables, or give both the same kind of likelihood.",
            )


def _table(scores: Mapping[str, LogEvidence], seconds: Mapping[str, float]) -> pd.DataFrame:
    import pandas as pd

    ranked = sorted(scores, key=lambda name: scores[name].mean, reverse=True)
    best = scores[ranked[0]]
    lines = []
    for name in ranked:
        score = scores[name]
        difference = score.estimate - best.estimate
        same = score is best
        lines.append(
            {
                "elpd": score.mean,
                "se": _standard_error(score.estimate),
                "elpd_diff": float(difference.mean()),
                "dse": 0.0 if same else _standard_error(difference),
                "mcse": score.mean_mcse,
                "bias": score.mean_bias,
                "mcse_diff": 0.0 if same else float(np.hypot(score.mean_mcse, best.mean_mcse)),
                "kind": ", ".join(sorted(set(score.kind.tolist()))),
                "parameters": score.parameters,
                **score.counts(),
                "seconds": seconds[name],
            }
        )
    table = pd.DataFrame(lines, index=pd.Index(ranked, name="model"))
    measure = sorted(set(best.measure))
    table.attrs.update(unit="nats a row", rows=len(best), measure=", ".join(measure), verdicts=list(VERDICTS))
    return table


def _standard_error(values: np.ndarray) -> float:
    """Standard error of the mean over rows; NaN for a single row, which has none."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")


@dataclass(frozen=True)
class Swapped:
    """One VAE a family, fitted to the same rows and scored on the same others.

    Attributes:
        models: the fitted VAEs by the family's name with its options.
        masses: ``compare`` of those whose P(x) is a mass, with ``bits_per_dim`` beside; None where none is.
        densities: the same for densities. The two have different units and no common scale.
        x_test: the rows they are scored on.
    """

    models: dict[str, VAE]
    masses: pd.DataFrame | None
    densities: pd.DataFrame | None
    x_test: Tensor

    def __str__(self) -> str:
        columns = ["elpd", "se", "elpd_diff", "dse", "mcse", "bits_per_dim", "kind"]
        parts = [
            f"{title}, nats a row over {len(self.x_test)} rows\n{table[columns].round(3).to_string()}"
            for title, table in (("masses", self.masses), ("densities", self.densities))
            if table is not None
        ]
        return "\n\n".join(parts)


def swap(
    x: Any,
    latent_dim: int,
    families: Sequence[str | tuple[str, Mapping[str, Any]]],
    *,
    x_test: Any = None,
    hidden_dims: Sequence[int] = (64, 64),
    epochs: int = 100,
    lr: float = 1e-3,
    batch_size: int = 128,
    method: str = "auto",
    seed: int = 0,
    progress: bool = False,
) -> Swapped:
    """Swap the likelihood: fit one VAE a family to the same rows, and compare their held-out log P(x).

    All have the same networks but for the number of outputs, ``standardize=True``, and start from the columns'
    marginals.

    Args:
        x: rows on dim 0; tensor, numpy array or DataFrame; with offsets a dict, as in ``fit``, of which
            families without ``offset=True`` get the rows alone.
        latent_dim: entries of z.
        families: names in ``likelihoods.REGISTRY``, or pairs of a name and its options, such as
            ``("binomial", {"total_count": 16})``; ``likelihoods.suggest(x)`` names candidates.
        x_test: rows to score on; where None a fifth of ``x``, drawn by ``seed``, is kept back.
        hidden_dims, epochs, lr, batch_size: of every VAE and its fit.
        method: of ``log_evidence``.
        seed: of weights, the split, and all noise.
        progress: show bars.

    Raises:
        TypeError, ValueError: an unknown family or option; rows off a family's support, before any is fitted.

    Example:
        >>> import torch
        >>> x = torch.poisson(torch.full((60, 3), 4.0), generator=torch.Generator().manual_seed(0))
        >>> found = swap(x, 1, ["poisson", "negative_binomial"], epochs=2, hidden_dims=(4,))
        >>> found.densities is None, len(found.masses)
        (True, 2)
    """
    batch = {name: _single(value) for name, value in checks.batch(x, dtype=None).items()}
    if x_test is None:
        with noise.seeded(noise.derive(seed, noise.Stream.DATA)):
            order = torch.randperm(len(batch["x"]))
        held_out = max(1, len(order) // 5)
        test = {name: value[order[:held_out]] for name, value in batch.items()}
        batch = {name: value[order[held_out:]] for name, value in batch.items()}
    else:
        test = {
            name: _single(value)
            for name, value in checks.batch(x_test, dtype=None, argument="x_test").items()
        }
    if isinstance(families, str) or not len(families):
        raise checks.bad_type(
            "families", "a list of families", repr(families), 'Pass ["gaussian", "laplace"].'
        )
    columns = batch["x"][0].numel()
    models: dict[str, VAE] = {}
    kinds: dict[str, str] = {}
    for family in families:
        name, options = (family, {}) if isinstance(family, str) else family
        with noise.seeded(noise.derive(seed, noise.Stream.WEIGHTS)):
            vae = VAE.mlp(columns, latent_dim, name, hidden_dims, standardize=True, **options)
        with standardizing(vae.modules(), batch["x"]):
            structure = inspect(vae, _taken(vae, batch), seed)
        check_supports(structure, test["x"], "x_test" if x_test is not None else "x")
        label = ", ".join(f"{key}={value}" for key, value in options.items())
        label = f"{name}({label})" if label else name
        models[label], kinds[label] = vae, structure.measure[0]
    for vae in models.values():
        rows = _taken(vae, batch)
        if isinstance(vae.likelihood, Likelihood):
            vae.likelihood.start_from(rows)
        fit(vae, rows, epochs=epochs, lr=lr, batch_size=batch_size, seed=seed, progress=progress)
    tables: dict[str, pd.DataFrame | None] = {}
    for kind in dict.fromkeys(kinds.values()):
        scores = {
            name: log_evidence(vae, _taken(vae, test), method=method, seed=seed, progress=progress)
            for name, vae in models.items()
            if kinds[name] == kind
        }
        table = compare(scores)
        table.insert(1, "bits_per_dim", [scores[name].bits_per_dim for name in table.index])
        tables[kind] = table
    return Swapped(models, tables.get("mass"), tables.get("density"), test["x"])


def _single(values: Tensor) -> Tensor:
    """float32, which the VAEs have; labels and masks as they are."""
    return values.float() if values.is_floating_point() else values


def _taken(vae: VAE, batch: Batch) -> Batch:
    """The rows, and the offset where the VAE's likelihood takes one."""
    offset = bool(getattr(vae.likelihood, "offset", False))
    return {name: value for name, value in batch.items() if name == "x" or offset}
