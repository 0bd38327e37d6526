"""Baselines against scikit-learn, scipy and closed forms; and what they refuse."""

import numpy as np
import pytest
import torch
from oracles import LinearGaussian
from scipy.special import betaln
from sklearn.decomposition import PCA

import pyrovae as pv
from pyrovae import baselines
from pyrovae.baselines.base import Baseline

EVERY = {"PPCA": lambda: baselines.PPCA(2), "IndependentBernoulli": baselines.IndependentBernoulli}
ROWS = {"PPCA": torch.randn(30, 6), "IndependentBernoulli": (torch.rand(30, 6) < 0.4).double()}


def test_every_baseline_is_in_the_contract_tests():
    assert EVERY.keys() == set(baselines.__all__)


@pytest.mark.parametrize("name", EVERY)
def test_contract(name):
    baseline, x = EVERY[name](), ROWS[name]
    with pytest.raises(ValueError, match=f"{name}: expected a fitted baseline"):
        baseline.log_evidence(x)
    assert baseline.fit(x) is baseline
    ev = baseline.log_evidence(x)
    assert (ev.kind == "exact").all()
    assert (ev.verdict == "trust").all()
    assert (ev.mcse == 0).all()
    assert ev.mean_interval == (ev.mean, ev.mean)
    assert "exact" in ev.summary()
    samples = baseline.sample(4, seed=1)
    assert samples.shape == (4, 6)
    assert torch.equal(samples, baseline.sample(4, seed=1))
    assert name in baseline.summary()
    assert isinstance(baseline, Baseline)
    with pytest.raises(ValueError, match="x: expected rows of width 6, as in fit, got width 5"):
        baseline.log_evidence(x[:, :5])
    with pytest.raises(ValueError, match="x: expected finite numbers"):
        baseline.fit(x.index_fill(1, torch.tensor([2]), float("nan")))


def test_ppca_formula_is_scikit_learns_at_its_own_parameters():
    """scikit-learn divides by N − 1; there, formula and library agree to 1e-8."""
    x = LinearGaussian.random(3, 8).sample(60)
    pca = PCA(3).fit(x.numpy())
    ppca = baselines.PPCA(3)
    ppca._width = 8
    ppca.loc = torch.from_numpy(pca.mean_)
    ppca.noise_variance = float(pca.noise_variance_)
    ppca.loadings = torch.from_numpy(
        pca.components_.T * np.sqrt(pca.explained_variance_ - pca.noise_variance_)
    )
    np.testing.assert_allclose(ppca.log_evidence(x).estimate, pca.score_samples(x.numpy()), rtol=0, atol=1e-8)


def test_ppca_is_the_maximum_of_the_likelihood():
    """Closed form of the maximum, 1/N: −N/2 (D log 2π + Σ log λ + (D − L) log σ² + D)."""
    x = LinearGaussian.random(3, 8).sample(60)
    ppca = baselines.PPCA(3).fit(x)
    eigenvalues = torch.linalg.eigvalsh(torch.cov(x.T, correction=0)).flip(0)
    kept, residual = eigenvalues[:3], eigenvalues[3:].mean()
    expected = -0.5 * (8 * np.log(2 * np.pi) + kept.log().sum() + 5 * residual.log() + 8)
    assert ppca.log_evidence(x).mean == pytest.approx(float(expected), abs=1e-10)
    at_sklearns = x.shape[0] / (x.shape[0] - 1)
    worse = baselines.PPCA(3).fit(x)
    worse.loadings, worse.noise_variance = (
        worse.loadings * at_sklearns**0.5,
        worse.noise_variance * at_sklearns,
    )
    assert worse.log_evidence(x).mean < ppca.log_evidence(x).mean


def test_ppca_with_fewer_rows_than_columns_is_the_maximum_too():
    """The eigenvalues that scikit-learn does not return are zero, and are discarded ones all the same."""
    x = torch.randn(20, 60, dtype=torch.float64)
    ppca = baselines.PPCA(3).fit(x)
    eigenvalues = torch.linalg.eigvalsh(torch.cov(x.T, correction=0)).flip(0)
    assert ppca.noise_variance == pytest.approx(float(eigenvalues[3:].mean()), rel=1e-9)


def test_ppca_density_is_the_oracles():
    oracle = LinearGaussian.random(3, 8)
    ppca = baselines.PPCA(3)
    ppca._width, ppca.loc, ppca.loadings, ppca.noise_variance = (
        8,
        oracle.loc,
        oracle.loadings,
        oracle.sigma**2,
    )
    x = oracle.sample(20)
    np.testing.assert_allclose(ppca.log_evidence(x).estimate, oracle.log_prob(x), rtol=0, atol=1e-10)


def test_ppca_samples_have_its_covariance():
    """6.1 standard errors of a variance at 40 000 rows are 4.3 % of it."""
    x = LinearGaussian.random(2, 4).sample(200)
    ppca = baselines.PPCA(2).fit(x)
    covariance = ppca.loadings @ ppca.loadings.T + ppca.noise_variance * torch.eye(4, dtype=torch.float64)
    scale = covariance.diagonal().sqrt()
    error = (torch.cov(ppca.sample(40_000).T) - covariance) / torch.outer(scale, scale)
    assert float(error.abs().max()) < 6.1 * (2 / 40_000) ** 0.5


@pytest.mark.parametrize(
    ("x", "latent_dim", "message"),
    [
        (torch.randn(30, 4), 4, "latent_dim: expected fewer than the 4 columns"),
        (torch.randn(3, 8), 3, "latent_dim: expected fewer than the 8 columns and the 3 rows"),
        (torch.randn(30, 1).expand(30, 5), 2, "x: expected rows that fill more than 2 dimensions"),
    ],
)
def test_ppca_refuses_what_has_no_density(x, latent_dim, message):
    with pytest.raises(ValueError, match=message):
        baselines.PPCA(latent_dim).fit(x)


@pytest.mark.parametrize(("a", "b"), [(1.0, 1.0), (0.5, 2.0)])
def test_independent_bernoulli_is_the_ratio_of_evidences(a, b):
    """P(x | training) = P(training and x) / P(training), each a product of Beta functions."""
    train, new = ROWS["IndependentBernoulli"], (torch.rand(5, 6) < 0.5).double()
    scores = baselines.IndependentBernoulli(a, b).fit(train).log_evidence(new).estimate

    def evidence(rows):
        ones = rows.sum(0).numpy()
        return (betaln(a + ones, b + len(rows) - ones) - betaln(a, b)).sum()

    expected = [evidence(torch.cat([train, row[None]])) - evidence(train) for row in new]
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-10)


def test_independent_bernoulli_refuses_grey():
    grey = torch.zeros(3, 4)
    grey[1, 2] = 0.5
    with pytest.raises(
        ValueError, match=r"support of Bernoulli.*1 off it, first 0.5 at row 1, column 2.*ContinuousBernoulli"
    ):
        baselines.IndependentBernoulli().fit(grey)
    with pytest.raises(ValueError, match="a: expected a finite number > 0"):
        baselines.IndependentBernoulli(a=0.0)


def test_float32_rows_have_the_vaes_fingerprint():
    x = torch.randn(9, 6)
    vae = pv.VAE.mlp(6, 2, likelihood="gaussian")
    assert (
        baselines.PPCA(2).fit(x).log_evidence(x).fingerprint
        == pv.log_evidence(vae, x, num_samples=2).fingerprint
    )
