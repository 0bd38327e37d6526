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
        assert np.isfinite(pv.log_evidence(vae, x, num_samples=30, check=False).estimate).all()


def test_bad_tables_are_refused():
    with pytest.raises(ValueError, match="row 1, column 0"):
        likelihoods.suggest(torch.tensor([[1.0], [torch.inf]]))
    with pytest.raises(TypeError, match="x: expected"):
        likelihoods.suggest("table")


GRADES = [0.05, 0.1, 0.2, 0.4, 0.25]


@pytest.mark.parametrize(
    ("best", "draw"),
    [
        ({"ordinal", "categorical"}, lambda r: 1 + (r.random(ROWS) < 0.4)),  # coded 1 and 2
        ({"ordinal", "categorical"}, lambda r: 3 * (r.random(ROWS) < 0.4)),
        ({"ordinal", "categorical"}, lambda r: 1 + r.choice(5, ROWS, p=GRADES)),
        ({"ordinal", "categorical"}, lambda r: r.choice(5, ROWS, p=GRADES[::-1])),
        ({"binomial"}, lambda r: r.binomial(10, 0.4, ROWS)),
        ({"gamma"}, lambda r: r.gamma(3.0, 2.0, ROWS)),
        ({"laplace"}, lambda r: r.laplace(1.0, 2.0, ROWS)),
        ({"gaussian"}, lambda r: 1e6 + r.normal(size=ROWS)),
    ],
)
def test_the_best_fit_comes_first(best, draw):
    for seed in range(5):
        assert first(np.asarray(draw(np.random.default_rng(seed)), dtype=np.float64)) in best


@pytest.mark.parametrize("share", [0.1, 0.4, 0.8])
def test_columns_full_of_exact_zeros_are_no_student_s_t(share):
    generator = np.random.default_rng(0)
    column = generator.gamma(2.0, 1.5, 1000) * (generator.random(1000) > share)
    frame = likelihoods.suggest(column[:, None])
    assert frame["family"].tolist() == ["gaussian"]
    assert "are exactly 0" in frame["why"].iloc[0]


def test_two_values_are_told_to_be_zeros_and_ones():
    frame = likelihoods.suggest(torch.tensor([[1.0], [2.0], [2.0]] * 30))
    assert "two values, 1 and 2; for bernoulli, recode them as 0 and 1" in frame["why"].iloc[0]


@pytest.mark.parametrize("size", [1e-30, 1e-3, 1e30])
def test_units_do_not_matter(size):
    column = np.random.default_rng(0).normal(size=300)
    assert first(size * column) == first(column) == "gaussian"


def test_student_s_t_is_fitted_as_scipy_does():
    from scipy import stats

    from pyrovae.likelihoods.suggestion import _student_t

    column = stats.t.rvs(3, 1.0, 2.0, size=500, random_state=0)
    best = stats.t.logpdf(column, *stats.t.fit(column, fix_df=3)).sum()
    assert _student_t(column) >= best - 0.1


def test_missing_cells_are_left_out():
    frame = pd.DataFrame(
        {"count": [0.0, None, 2.0, 1.0] * 20, "empty": [np.nan] * 80, "real": [0.5, None, 1.5, 3.0] * 20}
    )
    found = likelihoods.suggest(frame)
    whole = likelihoods.suggest(frame[["count", "real"]].dropna())
    pd.testing.assert_frame_equal(found[found["column"] != "empty"].reset_index(drop=True), whole)
    (empty,) = found[found["column"] == "empty"].itertuples()
    assert pd.isna(empty.family)
    assert empty.why == "no observed cell"


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor, pd.Series])
def test_one_column_may_have_one_dimension(kind):
    column = np.random.default_rng(0).normal(size=50)
    found, expected = (pv.likelihoods.suggest(x) for x in (kind(column), column[:, None]))
    pd.testing.assert_frame_equal(found, expected)
    named = pv.likelihoods.suggest(pd.Series(column, name="a"))
    pd.testing.assert_frame_equal(named, pv.likelihoods.suggest(pd.DataFrame({"a": column})))
