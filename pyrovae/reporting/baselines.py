"""Two fitted baselines of a report, which suit the kind of the data."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch

from pyrovae import noise
from pyrovae.baselines import (
    PPCA,
    Baseline,
    BernoulliMixture,
    IndependentBernoulli,
    IndependentGaussian,
    IndependentNegativeBinomial,
    IndependentPoisson,
    LatentClass,
)
from pyrovae.evaluation import Evaluation
from pyrovae.evidence import LogEvidence, log_evidence
from pyrovae.evidence.result import about
from pyrovae.likelihoods.base import of_observed
from pyrovae.model import VAE
from pyrovae.networks import MLP
from pyrovae.noise import Stream
from pyrovae.refusals import Refused, bad_value
from pyrovae.reporting.contents import Contents
from pyrovae.rows import as_passed, restored
from pyrovae.training import fit
from pyrovae.training.ranks import alone

# Epochs of the linear decoder, components of mixtures, most levels of a label.
_EPOCHS, _COMPONENTS, MOST_LEVELS = 50, 5, 20


def baselines(report: Contents, train: Any, x: Any) -> Iterator[tuple[str, LogEvidence | Refused]]:
    """Yield two fitted baselines' log P of rows, by name, or why there is none: quick ones for the kind of the data."""
    model = report.model
    if isinstance(model, VAE) and model.table is not None:
        yield "independent columns", independent_columns(model, train, x)
        linear = _linear(model, train, report.seed)
        with alone():  # a report may be made by one rank
            fit(linear, train, epochs=_EPOCHS, lr=1e-2, seed=report.seed)
        yield "linear decoder", log_evidence(linear, x, method="auto", seed=report.seed)
        return
    measures, values = set(report.evidence.measure), report.evaluation.batch["x"]
    values = values[restored(values, report.evaluation.batch.get("observed")).isfinite()]
    whole, most = bool((values == values.round()).all()), float(values.max())
    latent_dim, levels = max(1, min(_COMPONENTS, len(report.names) - 1)), int(most) + 1
    fitted: dict[str, Baseline] = {
        "independent Poissons": IndependentPoisson(),
        "negative binomials": IndependentNegativeBinomial(),
    }
    if measures == {"density"}:
        fitted = {"independent Gaussians": IndependentGaussian(), f"PPCA({latent_dim})": PPCA(latent_dim)}
    elif measures != {"mass"} or not whole or float(values.min()) < 0:
        expected = "all densities, all masses of whole numbers from 0 on, or a table"
        raise bad_value("x", expected, "other columns", "Pass baselines of your own to compare.")
    elif most <= 1:
        mixture = f"{_COMPONENTS} Bernoulli classes"
        fitted = {"independent Bernoullis": IndependentBernoulli(), mixture: BernoulliMixture(_COMPONENTS)}
    elif most <= MOST_LEVELS:
        classes = f"{_COMPONENTS} latent classes"
        fitted = {"independent labels": LatentClass(1, levels), classes: LatentClass(_COMPONENTS, levels)}
    for name, baseline in fitted.items():
        try:
            found: LogEvidence | Refused = log_evidence(baseline.fit(train), x)
        except Refused as reason:  # such as columns with too few cells for it
            found = reason
        yield name, found


def _linear(model: VAE, train: Any, seed: int) -> VAE:
    """Return a copy of a table's VAE with a linear decoder that starts at the marginals of ``train``, not fitted."""
    found: Any = copy.deepcopy(model)
    found.fitted = None
    with noise.seeded(noise.derive(seed, Stream.WEIGHTS)):
        network = MLP(found.prior.latent_dim, (), sum(found.likelihood.widths))
    found.likelihood.network = network.to(model.device, model.dtype)
    found.likelihood.start_from(found.table.encode(as_passed(train)[1]))
    return found


def independent_columns(model: VAE, train: Any, x: Any) -> LogEvidence:
    """Return log P of rows under independent columns of a table's families, each with the marginal of ``train``."""
    flat: Any = _linear(model, train, 0)
    evaluation = Evaluation.prepare(flat, x, 1, 0)
    rows = evaluation.batch["x"]
    observed = evaluation.batch.get("observed", torch.ones_like(rows, dtype=torch.bool))
    with flat.evaluating():
        # A linear decoder returns its bias at z = 0.
        fn, rows = of_observed(
            flat.likelihood(rows.new_zeros(len(rows), flat.prior.latent_dim)), rows, observed
        )
        estimate = fn.log_prob(rows).double().cpu().numpy()
    measure, known = evaluation.structure.measure, about(evaluation.source, flat)
    return LogEvidence.exact(estimate, measure=measure, method="independent columns", **known)
