"""suggest() on columns whose family is known."""

import numpy as np
import pandas as pd
import pytest
import torch

import pyrovae as pv
from pyrovae import likelihoods

ROWS = 4000


def first(column):
    frame = likelihoods.suggest(column[:, None])
    return frame["family"].iloc[0]


@pytest.mark.parametrize(
    ("family", "draw"),
    [
        ("bernoulli", lambda r: r.random(ROWS) < 0.3),
        ("poisson", lambda r: r.poisson(4.0, ROWS)),
        ("negative_binomial", lambda r: r.negative_binomial(2, 0.1, ROWS)),
        (
            "zero_inflated_negative_binomial",
            lambda r: r.negative_binomial(9, 0.2, ROWS) * (r.random(ROWS) < 0.6),
        ),
        ("gaussian", lambda r: r.normal(3.0, 2.0, ROWS)),
        ("student_t", lambda r: r.standard_t(3, ROWS)),
        ("log_normal", lambda r: r.lognormal(0.0, 1.0, ROWS)),
        ("beta", lambda r: r.beta(2.0, 3.0, ROWS)),
        ("continuous_bernoulli", lambda r: np.clip(r.normal(0.5, 0.4, ROWS), 0, 1)),
        (None, lambda r: np.ones(ROWS)),
    ],
)
def test_the_family_it_was_drawn_from_comes_first(family, draw):
    assert first(np.asarray(draw(np.random.default_rng(0)), dtype=np.float64)) == family


def test_levels_are_offered_with_their_options():
    column = torch.arange(400.0)[:, None] % 17
    frame = likelihoods.suggest(column).set_index("family")
    assert frame.loc["binomial", "options"] == {"total_count": 16}
    assert frame.loc["ordinal", "options"] == {"num_levels": 17}
    assert frame.loc["categorical", "options"] == {"num_categories": 17}
    assert frame.loc["discretized_logistic", "options"] == {"levels": 17}


def test_every_suggestion_can_be_built_and_scores_its_column():
    generator = np.random.default_rng(1)
    table = pd.DataFrame(
        {
            "switch": (generator.random(60) < 0.5).astype(float),
            "count": generator.poisson(3.0, 60).astype(float),
            "share": generator.beta(2.0, 2.0, 60),
            "size": generator.lognormal(0.0, 1.0, 60),
            "level": generator.normal(size=60),
        }
    )
    frame = likelihoods.suggest(table)
    assert set(frame["column"]) == set(table.columns)
    assert frame["why"].str.len().min() > 5
    for line in frame.itertuples():
        vae = pv.VAE.mlp(1, 1, line.family, hidden_dims=(4,), **line.options)
        x = table[[line.column]]
        vae.likelihood.start_from(x)
        assert np.isfinite(pv.log_evidence(vae, x, num_samples=30).estimate).all()


def test_bad_tables_are_refused():
    with pytest.raises(ValueError, match="row 1, column 0"):
        likelihoods.suggest(torch.tensor([[1.0], [torch.nan]]))
    with pytest.raises(TypeError, match="x: expected"):
        likelihoods.suggest("table")
