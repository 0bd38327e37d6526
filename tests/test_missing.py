"""Missing cells in the baselines: log P(x_obs) by enumeration and quadrature, fits as maxima, draws, and what is refused."""

import inspect
import itertools
import math
from decimal import Decimal

import families
import numpy as np
import pandas as pd
import pyarrow
import pytest
import torch
from oracles import two_blocks
from rates import CHECKS, SEED, Z
from scipy import stats
from scipy.sparse import csr_array
from torch.distributions import (
    MultivariateNormal,
    NegativeBinomial,
    Normal,
    Poisson,
    constraints,
)

import pyrovae as pv
from pyrovae import baselines, identity
from pyrovae.baselines.base import REGISTRY, ClosedForm, Conjugate, Incomplete
from pyrovae.rows import read

NAN = math.nan
GENERATOR = torch.Generator().manual_seed(2)
N = 300


def normal(*shape):
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


def clusters(n):
    """Which of two clusters each row is in, shape (n, 1)."""
    return (torch.rand(n, 1, generator=GENERATOR) < 0.4).double()


def reals(n=N):
    shift = torch.tensor([3.0, -2.0, 0.0, 2.0], dtype=torch.float64)
    mix = torch.tensor(
        [[1.0, 0.5, 0, 0], [0, 1, 0.5, 0], [0, 0, 1, -0.5], [0, 0, 0, 0.7]], dtype=torch.float64
    )
    return (1 + normal(n, 4) @ mix + clusters(n) * shift).float().double()


def counts(n=N):
    return torch.poisson(1.0 + 2.0 * clusters(n) * torch.ones(4), generator=GENERATOR).clamp(max=5).double()


def binary(n=N):
    return (torch.rand(n, 4, generator=GENERATOR) < 0.2 + 0.6 * clusters(n)).double()


ROWS = {constraints.real: reals(), constraints.nonnegative_integer: counts(), constraints.boolean: binary()}
HOLES = torch.rand(N, 4, generator=GENERATOR) < 0.3
HOLES[:2] = torch.tensor([[True], [False]])  # a row without a cell, and a complete one
EVERY = {name: cls for name, cls in REGISTRY.items() if issubclass(cls, Incomplete)}
#: Every pattern of 4 columns, (16, 4), True where a cell is missing.
PATTERNS = torch.tensor(list(itertools.product([False, True], repeat=4)))


def build(cls):
    few = {"num_starts": 1} if "num_starts" in inspect.signature(cls).parameters else {}
    return cls(**families.required(cls), **few)


def holed(cls, rows=None):
    return (ROWS[cls.support] if rows is None else rows).masked_fill(HOLES, NAN)


@pytest.fixture(scope="module")
def fitted():
    """Every baseline, fitted to rows of which 30 % of the cells are missing."""
    return {name: build(cls).fit(holed(cls)) for name, cls in EVERY.items()}


def values(baseline, x, column):
    """Sets of all values of a column and the width of each: shifts of a fine grid where it is real, as in test_baselines.py."""
    if baseline.support is constraints.real:
        grid = torch.linspace(-25, 25, 2501, dtype=torch.float64)
        return [grid, grid + 0.02 / 3, grid + 0.04 / 3], 0.02
    if baseline.family == "Categorical":
        return [torch.arange(float(x[:, column].max()) + 1).double()], 1.0
    return [torch.arange(2.0 if baseline.support is constraints.boolean else 120.0).double()], 1.0


def score(baseline, x):
    return torch.from_numpy(baseline.log_evidence(x).estimate)


# --- log P(x_obs)


@pytest.mark.parametrize("name", EVERY)
def test_every_pattern_is_the_sum_over_its_first_missing_cell(name, fitted):
    """P(x_obs) = Σ P(x_obs, x_d) over the values of one missing cell, from complete rows to rows without a cell."""
    baseline, x = fitted[name], ROWS[EVERY[name].support]
    for row, pattern in enumerate(PATTERNS[1:], start=5):
        column = int(pattern.int().argmax())
        grids, width = values(baseline, x, column)
        totals = []
        for grid in grids:
            filled = x[row].masked_fill(pattern, NAN).repeat(len(grid), 1)
            filled[:, column] = grid
            totals.append(float((score(baseline, filled) + math.log(width)).logsumexp(dim=0)))
        found = float(score(baseline, x[row : row + 1].masked_fill(pattern, NAN)))
        assert found == pytest.approx(np.mean(totals), abs=1e-8 + max(totals) - min(totals))
    assert float(score(baseline, torch.full((1, 4), NAN))) == 0.0


def components(baseline):
    """Weights, means and covariances of a baseline that is a Gaussian or a mixture of them."""
    if isinstance(baseline, baselines.GaussianMixture):
        return baseline.weights, baseline.loc, baseline.covariances
    if isinstance(baseline, baselines.FullGaussian):
        covariance = baseline.covariance
    else:
        noise = torch.as_tensor(baseline.noise_variance, dtype=torch.float64).expand(4)
        covariance = baseline.loadings @ baseline.loadings.T + noise.diag()
    return torch.ones(1), baseline.loc[None], covariance[None]


GAUSSIANS = ("full_gaussian", "gaussian_mixture", "ppca", "factor_analysis")


@pytest.mark.parametrize("name", GAUSSIANS)
def test_gaussians_are_scipys_marginals(name, fitted):
    weights, loc, covariances = (each.numpy() for each in components(fitted[name]))
    x = ROWS[constraints.real][7].repeat(16, 1).masked_fill(PATTERNS, NAN)
    for row, found in zip(x.numpy()[:-1], score(fitted[name], x), strict=False):
        o = ~np.isnan(row)
        parts = [
            w * stats.multivariate_normal(m[o], c[np.ix_(o, o)]).pdf(row[o])
            for w, m, c in zip(weights, loc, covariances, strict=True)
        ]
        assert float(found) == pytest.approx(math.log(sum(parts)), abs=1e-8)


@pytest.mark.parametrize("name", EVERY)
def test_a_row_scores_the_same_alone_in_another_order_and_beside_complete_rows(name, fitted):
    x = holed(EVERY[name])
    together = score(fitted[name], x)
    order = torch.randperm(N, generator=GENERATOR)
    torch.testing.assert_close(score(fitted[name], x[order]), together[order], rtol=0, atol=1e-10)
    complete = x[~HOLES.any(dim=1)]
    assert len(complete) > 20
    torch.testing.assert_close(score(fitted[name], complete), together[~HOLES.any(dim=1)], rtol=0, atol=1e-10)
    for row in range(8):
        torch.testing.assert_close(
            score(fitted[name], x[row : row + 1]), together[row : row + 1], rtol=0, atol=1e-10
        )


@pytest.mark.parametrize("name", [name for name, cls in EVERY.items() if issubclass(cls, Conjugate)])
def test_evidence_of_rows_with_missing_cells_is_the_chain_of_predictives(name):
    """Also with a row without a cell, which has probability 1."""
    cls, x = EVERY[name], holed(EVERY[name])[:25]
    x[2] = ROWS[cls.support].amax(dim=0)  # every category

    def fit(rows):
        if name == "dirichlet_categorical":
            return cls(0.7, [6] * 4).fit(rows)
        return cls().fit(rows)

    order = [2, 1, 0, *range(3, 25)]
    chain = fit(x[order[:1]]).marginal_likelihood().total
    chain += sum(fit(x[order[:n]]).log_evidence(x[order[n : n + 1]]).total for n in range(1, 25))
    assert fit(x).marginal_likelihood().total == pytest.approx(chain, abs=1e-9)
    cells = int((~HOLES[:25]).sum()) + int(HOLES[2].sum())
    whole = fit(x).marginal_likelihood()
    assert whole.bits_per_dim == pytest.approx(-whole.total / cells / math.log(2))


# --- fits are maxima of the likelihood of the observed cells


def by_pattern(x):
    """Each pattern's rows and observed columns."""
    observed = ~x.isnan()
    for pattern in observed.unique(dim=0):
        if pattern.any():
            yield x[(observed == pattern).all(dim=1)][:, pattern], pattern


def gaussian_likelihood(x, weights, loc, covariances):
    """Σ_n log Σ_k π_k N(x_n,o; μ_k,o, Σ_k,oo), pattern by pattern."""
    total = 0.0
    for rows, o in by_pattern(x):
        normal = MultivariateNormal(loc[:, o], covariances[:, o][:, :, o])
        total = total + (weights.log() + normal.log_prob(rows[:, None])).logsumexp(dim=1).sum()
    return total


def cells(x, distribution):
    """Σ log P of observed cells of independent columns."""
    return torch.where(x.isnan(), 0.0, distribution.log_prob(x.nan_to_num())).sum()


def class_likelihood(x, logits, tables, pseudo_count=1.0):
    """Σ_n log Σ_c π_c Π_d θ_cd[x_nd] over observed cells, and the pseudo-counts' term."""
    joint = logits.log_softmax(0)
    for d, table in enumerate(tables):
        log_p = table.log_softmax(1)[:, x[:, d].nan_to_num().long()].T
        joint = joint + torch.where(x[:, d : d + 1].isnan(), 0.0, log_p)
    prior = pseudo_count * sum(table.log_softmax(1).sum() for table in tables)
    return joint.logsumexp(dim=1).sum() + prior


def full(raw):
    factor = raw.tril(-1) + raw.diagonal(dim1=-2, dim2=-1).exp().diag_embed()
    return factor @ factor.mT


def raw_of(covariance):
    factor = torch.linalg.cholesky(covariance)
    return factor.tril(-1) + factor.diagonal(dim1=-2, dim2=-1).log().diag_embed()


#: A fit's free parameters, and the likelihood of the observed cells at them.
LIKELIHOODS = {
    "independent_gaussian": (lambda b: [b.loc, b.scale.log()], lambda x, m, s: cells(x, Normal(m, s.exp()))),
    "independent_poisson": (lambda b: [b.rate.log()], lambda x, r: cells(x, Poisson(r.exp()))),
    "independent_negative_binomial": (
        lambda b: [b.loc.log(), b.concentration.clamp(max=1e12).log()],
        lambda x, m, r: cells(x, NegativeBinomial(r.exp(), logits=m - r)),
    ),
    "full_gaussian": (
        lambda b: [b.loc, raw_of(b.covariance)],
        lambda x, m, c: gaussian_likelihood(x, torch.ones(1), m[None], full(c)[None]),
    ),
    "ppca": (
        lambda b: [b.loc, b.loadings, torch.tensor(b.noise_variance, dtype=torch.float64).log()],
        lambda x, m, w, s: gaussian_likelihood(
            x, torch.ones(1), m[None], (w @ w.T + s.exp() * torch.eye(len(m)))[None]
        ),
    ),
    "factor_analysis": (
        lambda b: [b.loc, b.loadings, b.noise_variance.log()],
        lambda x, m, w, s: gaussian_likelihood(x, torch.ones(1), m[None], (w @ w.T + s.exp().diag())[None]),
    ),
    "full": (
        lambda b: [b.weights.log(), b.loc, raw_of(b.covariances)],
        lambda x, p, m, c: gaussian_likelihood(x, p.softmax(0), m, full(c)),
    ),
    "tied": (
        lambda b: [b.weights.log(), b.loc, raw_of(b.covariances[:1])],
        lambda x, p, m, c: gaussian_likelihood(x, p.softmax(0), m, full(c).expand(len(p), -1, -1)),
    ),
    "diag": (
        lambda b: [b.weights.log(), b.loc, b.covariances.diagonal(dim1=1, dim2=2).log()],
        lambda x, p, m, c: gaussian_likelihood(x, p.softmax(0), m, c.exp().diag_embed()),
    ),
    "spherical": (
        lambda b: [b.weights.log(), b.loc, b.covariances[:, :1, 0].log()],
        lambda x, p, m, c: gaussian_likelihood(
            x, p.softmax(0), m, c.exp().expand(-1, m.shape[1]).diag_embed()
        ),
    ),
    "latent_class": (
        lambda b: [b.weights.log(), *(p.log() for p in b.probabilities)],
        lambda x, p, *tables: class_likelihood(x, p, tables),
    ),
    "bernoulli_mixture": (
        lambda b: [b.weights.log(), torch.stack([1 - b.probabilities, b.probabilities], dim=2).log()],
        lambda x, p, table: class_likelihood(x, p, list(table.unbind(dim=1))),
    ),
}
KINDS = ("full", "tied", "diag", "spherical")


def of(kind, **options):
    """A baseline by a key of LIKELIHOODS."""
    return baselines.GaussianMixture(2, kind, **options) if kind in KINDS else build(EVERY[kind])


def test_every_fit_by_maximum_likelihood_is_covered():
    learned = {name for name, cls in EVERY.items() if not issubclass(cls, Conjugate)}
    assert learned == {*LIKELIHOODS, "gaussian_mixture"} - {*KINDS}


@pytest.mark.parametrize("kind", LIKELIHOODS)
def test_a_fit_is_a_maximum_that_its_steps_climb_to(kind):
    """The gradient of the likelihood of the observed cells, by an independent formula, is 0 to 1e-4 nats a row."""
    baseline = of(kind)
    x = holed(type(baseline))
    if kind == "independent_negative_binomial":
        x = (x**2).masked_fill(HOLES, NAN)  # variance above the mean
    baseline.fit(x)
    assert baseline.converged
    parameters, likelihood = LIKELIHOODS[kind]
    free = [p.clone().requires_grad_() for p in parameters(baseline)]
    gradients = torch.autograd.grad(likelihood(x, *free) / N, free)
    assert max(float(g.abs().max()) for g in gradients) < 1e-4
    if kind.startswith("independent"):
        assert baseline.history == ()
        return
    assert len(baseline.history) > 3
    assert (np.diff(baseline.history) > -1e-12).all()
    worse = likelihood(x, *[p + 1e-2 * torch.randn_like(p) for p in parameters(baseline)])
    assert float(worse) < float(likelihood(x, *parameters(baseline)))


@pytest.mark.parametrize("kind", LIKELIHOODS)
def test_on_complete_rows_the_fit_reaches_todays(kind):
    x = ROWS[type(of(kind)).support]
    plain, by_mask = of(kind).fit(x), of(kind).fit(x)
    by_mask._fit(x, torch.ones_like(x, dtype=torch.bool))
    assert bool(by_mask.history) != kind.startswith("independent")  # it took the path for missing cells
    assert by_mask.log_evidence(x).mean == pytest.approx(plain.log_evidence(x).mean, abs=1e-8)


@pytest.mark.parametrize("name", EVERY)
def test_a_row_without_a_cell_leaves_the_fit_unchanged(name):
    cls = EVERY[name]
    x = ROWS[cls.support][2:60]
    empty = torch.full((3, 4), NAN, dtype=torch.float64)
    one, other = build(cls).fit(x), build(cls).fit(torch.cat([empty, x]))
    assert torch.equal(score(one, x), score(other, x))
    for each in (one, other):
        assert each.history == one.history
    if issubclass(cls, Conjugate):
        assert other.marginal_likelihood().total == one.marginal_likelihood().total


@pytest.mark.statistical
@pytest.mark.parametrize("kind", [kind for kind in LIKELIHOODS if kind != "independent_negative_binomial"])
def test_fits_to_half_of_the_cells_are_consistent(kind):
    """2 (ℓ(fit) − ℓ(truth)) is χ² with as many degrees as parameters: at the suite's rate, between 0 and a quantile.

    Half of the cells are missing completely at random. A mean that is off by 6 to 8 standard errors is seen.
    """
    baseline, n = of(kind), 3000
    truth = type(baseline).__new__(type(baseline))
    vars(truth).update(vars(of(kind).fit(ROWS[baseline.support])))
    x = truth.sample(n, seed=SEED)
    generator = torch.Generator().manual_seed(SEED)
    x = x.masked_fill(torch.rand(n, 4, generator=generator) < 0.5, NAN)
    baseline.fit(x)
    parameters, likelihood = LIKELIHOODS[kind]
    gain = float(likelihood(x, *parameters(baseline)) - likelihood(x, *parameters(truth)))
    # Pseudo-counts and local maxima among equal clusters leave the mixtures' degrees at most num_parameters.
    assert -1e-6 <= 2 * gain <= stats.chi2.isf(1e-6 / CHECKS, baseline.num_parameters)


@pytest.mark.statistical
@pytest.mark.parametrize("name", [name for name, cls in EVERY.items() if issubclass(cls, Conjugate)])
def test_predictives_of_half_of_the_cells_are_consistent(name):
    """Each column's fit uses its own observed cells: the same as a fit to these cells alone, of any column."""
    cls, x = EVERY[name], holed(EVERY[name])
    baseline = build(cls).fit(x)
    for column in range(4):
        there = ~HOLES[:, column]
        alone = build(cls).fit(x[there, column : column + 1])
        row = torch.full((1, 4), NAN, dtype=torch.float64)
        row[0, column] = x[there, column][0]
        assert float(score(baseline, row)) == pytest.approx(
            float(score(alone, row[:, column : column + 1])), abs=1e-10
        )


# --- draws


@pytest.mark.statistical
@pytest.mark.parametrize("name", EVERY)
def test_draws_have_the_moments_of_the_exact_conditional(name, fitted):
    """E of x_a, x_b, their squares and product given the rest, by a sum over both missing cells, at Z standard errors."""
    baseline, n = fitted[name], 20_000
    row = ROWS[EVERY[name].support][9:10].clone()
    if baseline.support is constraints.real:
        axes = [torch.linspace(-12, 14, 521, dtype=torch.float64)] * 2
    else:
        axes = [values(baseline, ROWS[EVERY[name].support], column)[0][0] for column in (1, 3)]
    pairs = torch.cartesian_prod(*axes)
    filled = row.repeat(len(pairs), 1)
    filled[:, [1, 3]] = pairs
    p = score(baseline, filled).softmax(dim=0)

    def moments(x):
        a, b = x.T
        return torch.stack([a, b, a**2, b**2, a * b], dim=1)

    x = torch.cat([row, row])
    x[0, [1, 3]] = NAN
    drawn = baseline.draw_missing(x, n, seed=SEED)
    assert drawn.shape == (n, 2, 4)
    assert torch.equal(drawn[:, 1], row.expand(n, -1))
    assert torch.equal(drawn[:, 0, [0, 2]], row[:, [0, 2]].expand(n, -1))
    found = moments(drawn[:, 0, [1, 3]])
    error = found.mean(dim=0) - p @ moments(pairs)
    assert (error.abs() <= Z * found.std(dim=0) / math.sqrt(n)).all()


@pytest.mark.parametrize("name", EVERY)
def test_draws_are_rows_on_the_support_and_repeat_with_the_seed(name, fitted):
    baseline, x = fitted[name], holed(EVERY[name])
    drawn = baseline.draw_missing(x, 2, seed=3)
    assert drawn.dtype == torch.float64
    assert EVERY[name].support.check(drawn).all()
    assert torch.equal(drawn[:, ~HOLES], x[~HOLES].expand(2, -1))
    assert not torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn, baseline.draw_missing(x, 2, seed=3))
    assert not torch.equal(drawn, baseline.draw_missing(x, 2, seed=4))
    complete = ROWS[EVERY[name].support]
    assert torch.equal(baseline.draw_missing(complete, 2), complete.expand(2, -1, -1))
    # Not of the rows beside it, up to rounding: all rows have a missing cell or none, so that numbers stay.
    fewer = torch.cat([complete[:5], x[5:7]])
    torch.testing.assert_close(baseline.draw_missing(fewer, 2, seed=3)[:, 5:], drawn[:, 5:7])
    with pytest.raises(ValueError, match="num_draws: expected a whole number ≥ 1"):
        baseline.draw_missing(x, 0)
    with pytest.raises(ValueError, match="expected a fitted baseline"):
        build(EVERY[name]).draw_missing(x)


# --- what rows may be


def frame(x):
    return pd.DataFrame(x.numpy(), columns=list("abcd"))


def with_none(x):
    return frame(x).astype(object).where(~frame(x).isna(), None)


DTYPES = {
    "float32": lambda x: x.float(),
    "array": lambda x: x.numpy(),
    "float32 array": lambda x: x.float().numpy(),
    "read-only": lambda x: np.frombuffer(x.numpy().tobytes()).reshape(x.shape),
    "frame": frame,
    "None": with_none,
    "NA": lambda x: frame(x).convert_dtypes(),
    "a mapping": lambda x: {"x": x, "observed": None},
    "chunks": lambda x: [x[:100], x[100:]],
}


@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("name", EVERY)
def test_rows_of_any_kind_give_the_same_numbers(name, kind, fitted):
    x = holed(EVERY[name])
    expected, rows = fitted[name].log_evidence(x), DTYPES[kind](x)
    found = build(EVERY[name]).fit(rows).log_evidence(rows)
    np.testing.assert_array_equal(found.estimate, expected.estimate)
    assert found.fingerprint == expected.fingerprint
    assert found.seen == expected.seen
    np.testing.assert_array_equal(found.observed, (~HOLES).sum(dim=1))


@pytest.mark.parametrize("name", EVERY)
def test_a_fit_is_saved_and_loaded(name, fitted, tmp_path):
    fitted[name].save(tmp_path / "model")
    x = holed(EVERY[name])
    loaded = pv.load(tmp_path / "model")
    assert torch.equal(score(loaded, x), score(fitted[name], x))
    assert torch.equal(loaded.draw_missing(x), fitted[name].draw_missing(x))
    if issubclass(EVERY[name], Conjugate):
        assert loaded.marginal_likelihood().total == fitted[name].marginal_likelihood().total


def test_the_batch_holds_the_mask_only_if_a_cell_is_missing():
    x = ROWS[constraints.real]
    batch, source = read(holed(baselines.PPCA), dtype=torch.float64, missing=True)
    assert torch.equal(batch["observed"], ~HOLES)
    assert torch.equal(batch["x"], x.masked_fill(HOLES, 0.0))
    assert torch.equal(source.exact, batch["x"])
    assert torch.equal(source.observed, ~HOLES)
    batch, source = read(x, dtype=torch.float64, missing=True)
    assert list(batch) == ["x"]
    assert source.observed is None
    for rows in (x, holed(baselines.PPCA)):
        again, source = read({"x": rows, "observed": ~HOLES}, dtype=torch.float64, missing=True)
        assert list(again) == ["x", "observed"]
        assert torch.equal(again["x"], x.masked_fill(HOLES, 0.0))
        assert torch.equal(source.observed, ~HOLES)


@pytest.mark.parametrize("kind", ["f8", "f4", "i8", "u1", "?"])
def test_masked_entries_are_missing_cells(kind):
    """Masked entries are NaN in fits, scores, conditionals, draws and imputations, with the numbers of NaN."""
    plain = (ROWS[constraints.real] > 1 if kind == "?" else ROWS[constraints.real].abs()).numpy().astype(kind)
    x = np.ma.MaskedArray(plain, mask=HOLES.numpy())
    y = np.where(HOLES.numpy(), np.nan, plain.astype(float))
    one, other = (baselines.IndependentGaussian().fit(rows) for rows in (x, y))
    assert torch.equal(one.scale, other.scale)
    for given in (None, [1]):
        found, expected = (pv.log_evidence(one, rows, given=given) for rows in (x, y))
        np.testing.assert_array_equal(found.estimate, expected.estimate)
        assert found.fingerprint == expected.fingerprint
    found = [pv.impute(one, rows, num_imputations=2) for rows in (x, y)]
    np.testing.assert_array_equal(found[0].draws, found[1].draws)
    assert isinstance(found[0].completed[0], np.ndarray)
    assert not np.ma.isMaskedArray(found[0].completed[0])
    np.testing.assert_allclose(found[0].completed[0], found[1].completed[0], rtol=1e-6)  # of the type of x
    assert pv.outliers(one, x).equals(pv.outliers(one, y))
    vae = pv.VAE.mlp(4, 1, "gaussian", (4,)).double()
    pv.fit(vae, x, epochs=1, compile=False)
    found, expected, chunks = (pv.elbo(vae, rows, num_samples=4).estimate for rows in (x, y, [x[:9], x[9:]]))
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(chunks, expected)


def test_masked_entries_are_refused_where_nan_is():
    whole = np.ma.MaskedArray(np.full((3, 2), 2**60), mask=np.eye(3, 2, dtype=bool))
    with pytest.raises(TypeError, match="without masked entries, got 2 that are masked"):
        baselines.IndependentGaussian().fit(whole)  # float64 cannot hold them
    with pytest.raises(TypeError, match="without masked entries, got 2 that are masked"):
        baselines.KernelDensity().fit(whole / 2.0)
    with pytest.raises(TypeError, match="without masked entries, got 2 that are masked"):
        baselines.KernelDensity().fit([whole[:1] / 2.0, whole[1:] / 2.0])


def test_a_cast_is_judged_by_the_observed_cells():
    """Zeros in missing cells would widen a column far from 0, and hide what the cast loses."""
    x = (1e9 + normal(50, 1)).masked_fill(torch.rand(50, 1, generator=GENERATOR) < 0.5, NAN).numpy()
    with pytest.raises(
        ValueError, match=r"numbers that torch\.float32 holds to 0\.0001 of a column's standard deviation"
    ):
        read(x, dtype=torch.float32, missing=True)
    batch, _ = read(x - 1e9, dtype=torch.float32, missing=True)
    assert torch.equal(batch["observed"], torch.from_numpy(~np.isnan(x)))


# --- identity, comparison


def test_fingerprints_and_hashes_tell_masks_apart_and_complete_rows_keep_theirs():
    x, observed = ROWS[constraints.real], ~HOLES
    filled = x * observed
    plain, masked = identity.fingerprint(filled), identity.fingerprint(filled, observed)
    assert plain != masked
    assert masked == identity.fingerprint(filled.float().double(), observed)
    assert (masked.missing, plain.missing, plain.mask) == (int(HOLES.sum()), 0, "")
    other = observed.clone()
    other[1, 0] = False
    assert "missing cells against" in masked.unlike(identity.fingerprint(filled * other, other))
    moved = observed.roll(1, dims=0)
    assert "missing cells in other places" in masked.unlike(identity.fingerprint(filled * moved, moved))
    hashes, masked_hashes = identity.row_hashes(filled), identity.row_hashes(filled, observed)
    np.testing.assert_array_equal((hashes == masked_hashes).all(axis=1), observed.all(dim=1))


def test_compare_ranks_models_on_one_mask_and_refuses_others():
    x = holed(baselines.PPCA)
    models = {"full": baselines.FullGaussian().fit(x[:200]), "ppca": baselines.PPCA(1).fit(x[:200])}
    table = pv.compare(models, x[200:])
    assert table.index[0] == "full"
    assert set(table["seen"]) == {0}
    scores = {name: model.log_evidence(x[200:]) for name, model in models.items()}
    refilled = x[200:].clone()
    refilled[5] = torch.where(refilled[5].isnan(), 1.0, NAN)
    with pytest.raises(ValueError, match=r"models: expected all scored on the same rows .* missing cells"):
        pv.compare({**scores, "ppca": models["ppca"].log_evidence(refilled)})
    with pytest.raises(ValueError, match=r"rows that the models were not fitted to, got 19. of 200"):
        pv.compare(models, x[:200])
    by = pv.compare(models, x[200:], by=np.arange(100) % 2)
    assert len(by) == 4


def test_bits_are_per_observed_cell_and_the_frame_counts_them():
    x = holed(baselines.PPCA)
    index = pd.Index(range(100, 100 + N))
    ev = baselines.PPCA(1).fit(x).log_evidence(frame(x).set_index(index))
    assert ev.bits_per_dim == pytest.approx(-ev.total / int((~HOLES).sum()) / math.log(2))
    table = ev.to_frame()
    assert table.index.equals(index)
    assert list(table["observed"]) == (~HOLES).sum(dim=1).tolist()
    assert "observed" not in baselines.PPCA(1).fit(x).log_evidence(ROWS[constraints.real]).to_frame()
    assert ev.measure == ("density",) * 4
    nothing = baselines.PPCA(1).fit(x).log_evidence(torch.full((2, 4), NAN))
    assert math.isnan(nothing.bits_per_dim)


# --- refusals


@pytest.mark.parametrize("name", EVERY)
def test_a_column_that_is_never_observed_is_refused_by_name(name, fitted):
    x = frame(holed(EVERY[name]))
    x["c"] = np.nan
    with pytest.raises(ValueError) as refusal:
        fitted[name].fit(x)
    assert str(refusal.value) == (
        "x: expected an observed cell in every column, got 1 column(s) without any in 300 rows, first column 'c'. "
        "Drop those columns, or fit on rows that have them."
    )
    assert torch.equal(score(fitted[name], holed(EVERY[name])), score(fitted[name], holed(EVERY[name])))
    assert torch.isfinite(score(fitted[name], x.to_numpy())).all()  # a later row may lack it


@pytest.mark.parametrize("name", EVERY)
def test_infinite_values_beside_missing_cells_are_refused(name, fitted):
    x = holed(EVERY[name])
    x[4, 1] = -math.inf
    for call in (build(EVERY[name]).fit, fitted[name].log_evidence, fitted[name].draw_missing):
        with pytest.raises(ValueError) as refusal:
            call(x)
        assert str(refusal.value) == (
            "x: expected finite numbers, or NaN in missing cells, got 1 that are infinite, first -inf at row 4, column 1. "
            "Pass NaN if these cells are missing, or drop those rows."
        )


@pytest.mark.parametrize("name", [name for name, cls in EVERY.items() if cls.support is not constraints.real])
def test_values_off_the_support_are_refused_beside_missing_cells(name, fitted):
    x = holed(EVERY[name])
    x[4, 1] = 0.5
    with pytest.raises(ValueError, match=r"support of .* 1 off it, first 0.5 at row 4, column 1"):
        fitted[name].log_evidence(x)


REFUSING = [name for name, cls in REGISTRY.items() if issubclass(cls, ClosedForm) and name not in EVERY]


@pytest.mark.parametrize("name", [*REFUSING, "bayesian_pca"])
def test_other_baselines_refuse_missing_cells_with_row_column_and_way(name):
    x = ROWS[constraints.real].clone()
    baseline = (
        REGISTRY[name](1, num_samples=60, warmup_steps=5, num_chains=2)
        if name == "bayesian_pca"
        else build(REGISTRY[name])
    )
    if name != "bayesian_pca":
        baseline.fit(x)
    x[3, 2] = NAN
    calls = [baseline.fit] if name == "bayesian_pca" else [baseline.fit, baseline.log_evidence]
    for call in calls:
        with pytest.raises(ValueError) as refusal:
            call(x)
        assert str(refusal.value) == (
            "x: expected finite numbers, got 1 that are NaN or infinite, first nan at row 3, column 2. "
            "Drop those rows or impute them first."
        )
    assert not hasattr(baseline, "draw_missing")


def test_what_no_fit_can_tell_is_refused():
    x = ROWS[constraints.real].clone()
    x[:150, 0], x[150:, 3] = NAN, NAN
    for baseline in (baselines.FullGaussian(), of("full"), of("tied")):
        with pytest.raises(
            ValueError,
            match=r"every two columns .* got 1 pair\(s\) that never are, first columns 0 and 3\. Drop",
        ):
            baseline.fit(x)
    assert of("diag").fit(x).converged
    constant = holed(baselines.PPCA)
    constant[:, 1] = torch.where(constant[:, 1].isnan(), NAN, 2.0)
    with pytest.raises(
        ValueError, match=r"columns that vary.* 1 constant column\(s\), first column 1 \(value 2\)"
    ):
        baselines.IndependentGaussian().fit(constant)
    twice = holed(baselines.PPCA)
    twice[:, 3] = twice[:, 2]
    with pytest.raises(ValueError, match="linearly independent"):
        baselines.FullGaussian().fit(twice)
    with pytest.raises(ValueError, match="2 components each have variance in every direction"):
        of("full", num_starts=1).fit(twice)
    with pytest.raises(ValueError, match="noise that 1 factors do not explain"):
        baselines.FactorAnalysis(1).fit(twice)
    plane = (normal(N, 1) @ normal(1, 4)).masked_fill(HOLES, NAN)
    with pytest.raises(ValueError, match="rows that fill more than 1 dimensions"):
        baselines.PPCA(1).fit(plane)


def test_factor_analysis_finds_the_higher_of_two_maxima():
    """Each row three times, with −1, 1 and a missing cell in a further column: N(0, 1), independent of the others."""
    x, expected = two_blocks()
    more = torch.tensor([-1.0, 1.0, NAN]).double().repeat(len(x))
    x = torch.cat([x.repeat_interleave(3, dim=0), more[:, None]], dim=1)
    fitted = baselines.FactorAnalysis(1).fit(x)
    assert fitted.converged
    expected -= 2 / 3 * 0.5 * (math.log(2 * math.pi) + 1)
    assert fitted.log_evidence(x).mean == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    "baseline",
    [baselines.FullGaussian(1), of("full", max_iter=1), baselines.FactorAnalysis(1, 1), baselines.PPCA(1, 1)],
)
def test_a_fit_that_has_not_converged_says_so(baseline):
    with pytest.warns(UserWarning, match=r"has not converged in 1 steps.*Raise max_iter") as caught:
        baseline.fit(holed(type(baseline)))
    assert caught[0].filename == __file__
    assert not baseline.converged
    assert "not converged" in baseline.summary()
    baseline.max_iter = 2000
    assert baseline.fit(ROWS[constraints.real]).converged


LONG = np.array([[2**54 + 1, 0], [2**54 + 3, 1], [2**54 + 5, 0], [2**54 + 7, 1]])
HIDDEN = np.array([[True, True], [True, False], [True, True], [False, True]])


@pytest.mark.parametrize(
    "rows",
    [
        {"x": LONG, "observed": HIDDEN},
        {"x": torch.as_tensor(LONG), "observed": torch.as_tensor(HIDDEN)},
        {"x": pd.DataFrame(LONG), "observed": HIDDEN},
        {"x": pd.Series(LONG[:, 0]), "observed": HIDDEN[:, 0]},
        {"x": csr_array(LONG), "observed": HIDDEN},
        pd.DataFrame(LONG).astype(object).where(HIDDEN, None),
        pd.Series(LONG[:, 0]).astype(object).where(HIDDEN[:, 0], None),
        pd.Series(LONG[:, 0]).astype("Int64").where(HIDDEN[:, 0]),
    ],
)
def test_long_whole_numbers_are_not_rounded_beside_missing_cells(rows):
    with pytest.raises(ValueError, match=r"whole numbers that torch\.float64 holds"):
        baselines.FullGaussian().fit(rows)


DECIMALS = [object, pd.ArrowDtype(pyarrow.decimal128(38, 6))]


@pytest.mark.parametrize("kind", DECIMALS)
@pytest.mark.parametrize("name", ["full_gaussian", "kernel_density"])
def test_decimals_are_the_nearest_numbers(name, kind):
    """Arrow's own cast takes 0.1 to 0.09999999999999999."""
    tenths = np.random.default_rng(5).integers(1, 99, (40, 2))
    exact = pd.DataFrame([[Decimal(int(value)) / 10 for value in row] for row in tenths], columns=["a", "b"])
    numbers, x = pd.DataFrame(tenths / 10, columns=["a", "b"]), exact.astype(kind)
    if name == "full_gaussian":
        hole = np.random.default_rng(6).random(x.shape) < 0.2
        numbers, x = numbers.mask(hole), x.mask(hole)
    baseline = REGISTRY[name]().fit(x)
    expected = REGISTRY[name]().fit(numbers).log_evidence(numbers).estimate
    np.testing.assert_array_equal(baseline.log_evidence(x).estimate, expected)
    if name == "full_gaussian":
        (found,) = pv.impute(baseline, x, 1).completed
        assert list(found.dtypes) == [np.float64, np.float64]
        np.testing.assert_array_equal(found.to_numpy()[~hole], numbers.to_numpy()[~hole])
        series = x["a"].rename("a")
        (found,) = pv.impute(baselines.IndependentGaussian().fit(series), series, 1).completed
        np.testing.assert_array_equal(found[~hole[:, 0]], numbers["a"][~hole[:, 0]])


@pytest.mark.parametrize("kind", DECIMALS)
@pytest.mark.parametrize("name", ["full_gaussian", "kernel_density"])
def test_long_decimals_are_refused_by_name(name, kind):
    x = pd.DataFrame({"a": [0.5, 1.5, 2.5, 4.0], "b": [Decimal(2**54 + 1 + 2 * i) for i in range(4)]})
    x["b"] = x["b"].astype(kind)
    with pytest.raises(
        ValueError, match=r"x\['b'\]: expected whole numbers between -2\^53 and 2\^53, got 4 "
    ):
        REGISTRY[name]().fit(x)
