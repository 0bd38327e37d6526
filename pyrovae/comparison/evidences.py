"""compare_evidence(): Bayes factors between models of one training set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from pyrovae.comparison.refusals import check_comparable, check_models, check_target, in_one_order
from pyrovae.evidence import LogEvidence
from pyrovae.refusals import bad_value
from pyrovae.turns import takes_turns

if TYPE_CHECKING:
    import pandas as pd


@takes_turns
def compare_evidence(models: Mapping[str, Any]) -> pd.DataFrame:
    """Rank models by the evidence of their common training set, log P(x_1, …, x_N), in nats.

    The log Bayes factor of two models is the difference of their log evidences. It depends on priors as much as
    on likelihoods. It does not measure how well new rows are predicted; use ``compare`` for that.

    Args:
        models: name → a fitted baseline with ``marginal_likelihood``, or the ``LogEvidence`` that it returned.

    Returns:
        A frame, best first, in nats. ``mcse`` is the Monte-Carlo error of ``log_evidence``. ``log_bayes_factor`` is
        relative to the best. Its error is ``mcse_diff``, which also counts bias and tail as in ``compare``.
        ``probability`` holds if all models are equally probable a priori. Then come ``kind`` and ``verdict``. ``open``
        says whether the factor rests on a number that is not trusted.

    Raises:
        ValueError: models were fitted to different rows; scores are predictive; a mass is compared with a
            density; a model has no evidence.

    Kass and Raftery (1995).

    Example:
        >>> import torch, pyrovae as pv
        >>> from pyrovae import baselines
        >>> x = (torch.rand(60, 5, generator=torch.Generator().manual_seed(0)) < 0.3).float()
        >>> few, many = (baselines.IndependentBernoulli(a, a).fit(x) for a in (1.0, 100.0))
        >>> pv.compare_evidence({"few": few, "many": many}).index[0]
        'few'
    """
    import pandas as pd

    check_models(models)
    found: dict[str, LogEvidence] = {}
    for name, model in models.items():
        if isinstance(model, LogEvidence):
            found[name] = model
        elif hasattr(model, "marginal_likelihood"):
            found[name] = model.marginal_likelihood()
        else:
            raise bad_value(
                "models",
                "models with the evidence of their training set",
                f"{name!r}, a {type(model).__name__}",
                "Its parameters are fitted, not integrated out: compare predictive scores of held-out rows instead.",
            )
    check_target(found, "evidence")
    found = in_one_order(found)
    check_comparable(found)
    ranked = sorted(found, key=lambda name: found[name].total, reverse=True)
    best = found[ranked[0]]
    factors = np.array([found[name].total - best.total for name in ranked])
    odds = np.exp(factors)
    return pd.DataFrame(
        {
            "log_evidence": [found[name].total for name in ranked],
            "mcse": [float(found[name].mcse[0]) for name in ranked],
            "log_bayes_factor": factors,
            "mcse_diff": [0.0 if name == ranked[0] else found[name].error_beside(best) for name in ranked],
            "probability": odds / odds.sum(),
            "kind": [str(found[name].kind[0]) for name in ranked],
            "verdict": [str(found[name].verdict[0]) for name in ranked],
            "open": [
                name != ranked[0] and not {found[name].verdict[0], best.verdict[0]} <= {"trust"}
                for name in ranked
            ],
        },
        index=pd.Index(ranked, name="model"),
    )
