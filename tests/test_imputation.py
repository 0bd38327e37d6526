"""Imputed cells follow P(x_mis | x_obs), as closed forms have it; rows keep their type; verdicts; log P(x_d | z) by column."""

import math

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import scipy.sparse
import torch
from pyro import poutine
from rates import SEED, Z
from test_likelihoods import LIKELIHOODS
from test_missing_pairs import (
    NAN,
    BetaBernoulli,
    GammaPoisson,
    Guide,
    Mixture,
    holed,
)

import pyrovae as pv
from pyrovae import baselines, frames, imputation, likelihoods
from pyrovae.evaluation import Evaluation
from pyrovae.evidence import sampled
from pyrovae.evidence.exact import linear_gaussian
from pyrovae.evidence.posterior import undisturbed
from pyrovae.noise import Stream
from pyrovae.row_noise import RowNoise

#: Two cells, one cell and all cells missing.
HOLES = torch.tensor([[0, 0, 1, 1], [1, 0, 1, 1], [0, 0, 0, 0]]).bool()
COPIES = 400


def copies(row, count=COPIES):
    """Rows of every pattern in HOLES, ``count`` of each, one pattern after the other."""
    return holed(row.expand(3, 4), HOLES).repeat_interleave(count, dim=0)


def agree(draws, first, second):
    """Moments of x_0 and x_1 in draws (draws, rows, columns) against E and E[x xᵀ], at Z standard errors over rows."""
    x, y = draws[..., 0], draws[..., 1]
    expected = [first[0], first[1], second[0, 0], second[1, 1], second[0, 1]]
    for each, value in zip((x, y, x * x, y * y, x * y), expected, strict=True):
        by_row = each.mean(axis=0)
        assert abs(by_row.mean() - value) <= Z * by_row.std() / math.sqrt(len(by_row)) + 1e-9


def moments(form, x, observed):
    """E and E[x xᵀ] of the first two cells of a new row given x_obs."""
    posterior = form.posterior((x * observed)[None], observed[None])
    if form is Mixture:
        shares, means = posterior.probs[0], form.means[:, :2]
        second = torch.einsum("k,ki,kj->ij", shares, means, means) + torch.eye(2)
        return shares @ means, second
    mean, variance = float(posterior.mean[0]), float(posterior.variance[0])
    within = mean if form is GammaPoisson else mean - mean**2 - variance  # E Var(x_d | z)
    return torch.full((2,), mean), torch.full((2, 2), mean**2 + variance) + within * torch.eye(2)


@pytest.mark.statistical
@pytest.mark.parametrize("form", [GammaPoisson, BetaBernoulli, Mixture])
def test_imputations_have_the_moments_of_the_closed_form(form):
    """400 rows of each pattern, 10 imputations each; the last pattern has no observed cell and is drawn from P(x)."""
    pair = pv.LatentVariableModel(form.model, Guide(form))
    x = copies(form.x[0])
    found = pv.impute(pair, x, 10, method="importance", num_samples=100, seed=SEED, check=False)
    draws = torch.stack(found.completed).numpy()
    for number, observed in enumerate(HOLES):
        here = draws[:, number * COPIES : (number + 1) * COPIES]
        kept = here[..., observed.numpy()]
        assert (kept == form.x[0][observed].numpy()).all()
        first, second = moments(form, form.x[0], observed)
        if observed[0]:
            value = float(form.x[0, 0])
            second = torch.tensor([[value**2, value * first[1]], [value * first[1], second[1, 1]]])
            first = torch.tensor([value, first[1]])
        agree(here, first, second)
    if form is not Mixture:
        assert (draws == draws.round()).all()
        assert draws.min() >= 0


@pytest.fixture(scope="module")
def linear():
    torch.manual_seed(3)
    vae = pv.VAE.mlp(4, 2, "gaussian", (), scale="per_dimension", encoder="full_rank_normal", missing=True)
    return vae.double(), vae.sample(16, seed=1)


@pytest.mark.statistical
def test_fitted_posteriors_impute_a_linear_vae(linear):
    """Mean and covariance of x_0, x_1 given the rest, by Gaussian conditioning; the encoder is untrained."""
    vae, rows = linear
    x = holed(rows[:1].expand(300, 4), HOLES[:1])
    found = pv.impute(vae, x, 10, method="refined", num_samples=300, seed=SEED, check=False)
    known = linear_gaussian(vae, rows)
    covariance = known.loadings @ known.loadings.T + (known.scale**2).diag()
    onto = torch.linalg.solve(covariance[2:, 2:], covariance[2:, :2]).T
    mean = known.loc[:2] + onto @ (rows[0, 2:] - known.loc[2:])
    spread = covariance[:2, :2] - onto @ covariance[2:, :2]
    agree(torch.stack(found.completed).numpy(), mean, spread + torch.outer(mean, mean))


@pytest.mark.statistical
def test_cells_that_a_pair_holds_in_a_latent_are_read_from_it():
    """z ~ N(0, 1), a ~ N(z, 1) always missing, b ~ N(a, s²): a | b ~ N(2 b / (2 + s²), 2 s² / (2 + s²))."""
    s = 0.5

    def model(x, observed):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x)), 1.0))
            a = pyro.sample("a", dist.Normal(z, 1.0), obs=x[:, 0], obs_mask=observed[:, 0])
            pyro.sample("b", dist.Normal(a, s).mask(observed[:, 1]), obs=x[:, 1])

    def guide(x, observed):
        with pyro.plate("data", len(x)):
            with poutine.mask(mask=~observed[:, 0]):
                a = pyro.sample("a_unobserved", dist.Normal(x[:, 1], 0.6))
            pyro.sample("z", dist.Normal(a / 2, 0.8))

    x = torch.tensor([[NAN, 1.5]], dtype=torch.float64).expand(COPIES, 2)
    found = pv.impute(
        pv.LatentVariableModel(model, guide),
        x,
        10,
        method="importance",
        num_samples=400,
        seed=SEED,
        check=False,
    )
    mean, variance = 3.0 / (2 + s**2), 2 * s**2 / (2 + s**2)
    second = torch.tensor([[mean**2 + variance, 1.5 * mean], [1.5 * mean, 1.5**2]])
    agree(torch.stack(found.completed).numpy(), [mean, 1.5], second)


def test_a_pair_that_reads_a_missing_cell_elsewhere_is_refused():
    """c ~ N(2 b + z, 1/2) given the b of x, which holds no number where it is missing: the means were off by 20."""

    def model(x, observed):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x)), 1.0))
            pyro.sample("a", dist.Normal(z, 0.5).mask(observed[:, 0]), obs=x[:, 0])
            b = pyro.sample("b", dist.Normal(10 + z, 0.5).mask(observed[:, 1]), obs=x[:, 1])
            pyro.sample("c", dist.Normal(2 * b + z, 0.5).mask(observed[:, 2]), obs=x[:, 2])

    def guide(x, observed):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.8 * x[:, 0], 0.2**0.5))

    x = torch.tensor([[0.5, NAN, NAN]], dtype=torch.float64).expand(5, 3)
    with pytest.raises(ValueError, match="site 'c', which reads missing cells of x"):
        pv.impute(pv.LatentVariableModel(model, guide), x, 2, check=False)


# --- latents that masks leave out

CENTRES = torch.tensor([3.0, -2.0, 1.0])


def by_cell(latents):
    """A model or guide with latents for every cell, which a mask leaves out in missing cells; ``latents`` makes the sites."""

    def part(x, observed):
        cells = poutine.mask(mask=observed.movedim(-1, -2))
        with pyro.plate("data", len(x), dim=-1), pyro.plate("cells", 3, dim=-2), cells:
            latents(x.movedim(-1, -2))

    return part


def chained(x):
    z = pyro.sample("z", dist.Normal(CENTRES[:, None], 1.0))
    y = pyro.sample("y", dist.Normal(z, 0.5))
    pyro.sample("x", dist.Normal(y, 0.5), obs=x)


def chained_guide(x):
    y = pyro.sample("y", dist.Normal(0.8 * x + 0.2 * CENTRES[:, None], 0.5))
    pyro.sample("z", dist.Normal(0.8 * y + 0.2 * CENTRES[:, None], 0.5))


def switched(x):
    c = pyro.sample("c", dist.Bernoulli(torch.tensor(0.25)))
    pyro.sample("x", dist.Normal(CENTRES[:, None] + 4.0 * c, 0.5), obs=x)


def switched_guide(x):
    pyro.sample("c", dist.Bernoulli(logits=0.5 + 0.5 * (x - CENTRES[:, None])))


#: The parts, and the mean above CENTRES and the variance of a missing cell.
LEFT_OUT = {
    "chained": (chained, chained_guide, 0.0, 1.5),
    "switched": (switched, switched_guide, 1.0, 3.25),
}


def some_left_out(name):
    """The pair, and rows of which 0.3 of the cells are missing."""
    model, guide, shift, variance = LEFT_OUT[name]
    generator = torch.Generator().manual_seed(SEED)
    x = CENTRES + shift + math.sqrt(variance) * torch.randn(300, 3, generator=generator)
    holes = torch.rand(x.shape, generator=generator) < 0.3
    return pv.LatentVariableModel(by_cell(model), by_cell(guide)), x.masked_fill(holes, NAN)


@pytest.mark.statistical
@pytest.mark.parametrize("name", LEFT_OUT)
def test_latents_that_a_mask_leaves_out_are_drawn_from_the_model(name):
    _, _, shift, variance = LEFT_OUT[name]
    pair, x = some_left_out(name)
    found = pv.impute(pair, x, 100, num_samples=1000, method="importance", check=False, seed=SEED)
    apart = found.draws - CENTRES.numpy()[found.columns]
    for each, exact in ((apart, shift), ((apart - shift) ** 2, variance)):
        by_cell = each.mean(axis=0)
        assert abs(by_cell.mean() - exact) <= Z * by_cell.std() / math.sqrt(by_cell.size)


@pytest.mark.parametrize("name", LEFT_OUT)
def test_a_rows_draws_of_latents_left_out_are_its_own(name):
    pair, x = some_left_out(name)
    x = torch.cat([x[~x.isnan().any(1)][:3], x[x.isnan().any(1)][:3]])
    options = {"num_samples": 100, "method": "importance", "check": False}
    found = pv.impute(pair, x, 4, **options)
    alone = x.clone()
    alone[[0, 3, 4], 0], alone[5] = NAN, x[5]
    again = pv.impute(pair, alone, 4, **options)
    np.testing.assert_array_equal(again.draws[:, again.rows == 5], found.draws[:, found.rows == 5])
    chunks = pv.impute(pair, list(x.split(4)), 4, **options)
    np.testing.assert_array_equal(chunks.draws, found.draws)


# --- rows and noise


def test_a_rows_draws_are_its_own():
    pair = pv.LatentVariableModel(GammaPoisson.model, Guide(GammaPoisson))
    x = copies(GammaPoisson.x[0], 3)
    options = {"method": "importance", "num_samples": 100, "check": False}
    found = pv.impute(pair, x, 3, seed=1, **options)
    assert np.array_equal(found.draws, pv.impute(pair, x, 3, seed=1, **options).draws)
    assert not np.array_equal(found.draws, pv.impute(pair, x, 3, seed=2, **options).draws)
    fewer = x.clone()
    fewer[:2], fewer[5:] = 1.0, 2.0
    some = pv.impute(pair, fewer, 3, seed=1, **options)
    np.testing.assert_array_equal(some.draws, found.draws[:, np.isin(found.rows, [2, 3, 4])])
    chunks = pv.impute(pair, list(x.split(4)), 3, seed=1, **options)
    assert torch.equal(chunks.completed[0], found.completed[0])
    more = pv.impute(pair, x, 5, seed=1, **options)
    np.testing.assert_array_equal(more.draws[:3], found.draws)


def test_rows_are_drawn_one_by_one_where_torchs_generator_is_needed():
    def model(x, observed=None):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Beta(x.new_tensor(2.0), 3.0))
            fn = dist.VonMises(z[..., None].expand(*z.shape, 3), x.new_tensor(4.0))
            pyro.sample("x", (fn if observed is None else fn.mask(observed)).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Beta(torch.full_like(x[:, 0], 2.0), 3.0))

    pair, x = (
        pv.LatentVariableModel(model, guide),
        torch.tensor([[1.0, NAN, 2.0], [NAN, -2.0, NAN], [0.0, 1.0, NAN]]),
    )
    found = pv.impute(pair, x, 4, num_samples=100, method="importance", check=False)
    assert (np.abs(found.draws) <= np.pi).all()
    assert len(np.unique(found.draws)) == found.draws.size
    x[0] = 3.0
    np.testing.assert_array_equal(
        pv.impute(pair, x, 4, num_samples=100, method="importance", check=False).draws, found.draws[:, 1:]
    )


def test_frames_arrays_and_tensors_keep_their_type(linear):
    vae, _ = linear
    values = torch.tensor(
        [[1.0, NAN, 0.5, 2.0], [0.1, 0.2, 0.3, 1.0], [NAN, NAN, NAN, NAN]], dtype=torch.float64
    )
    options = {"num_samples": 100, "check": False, "method": "importance"}
    found = pv.impute(vae, values, 2, **options)
    assert all(isinstance(each, torch.Tensor) and each.dtype == values.dtype for each in found.completed)
    seen = ~values.isnan()
    assert torch.equal(found.completed[0][seen], values[seen])
    assert not found.completed[1].isnan().any()
    array = pv.impute(vae, values.numpy().astype(np.float32), 2, **options).completed[0]
    assert (array.dtype, type(array)) == (np.float32, np.ndarray)
    masked = pv.impute(vae, {"x": values.nan_to_num(7.0), "observed": seen}, 2, **options)
    np.testing.assert_array_equal(masked.draws, found.draws)
    frame = pd.DataFrame(values.numpy(), index=["r", "s", "t"], columns=list("abcd"))
    frame["a"] = frame["a"].astype("float32")
    frame["b"] = [None, 0.2, None]
    frame["b"] = frame["b"].astype(object)
    frame["d"] = frame["d"].astype("Int64")
    before = frame.copy()
    made = pv.impute(vae, frame, 2, **options)
    completed = made.completed[0]
    pd.testing.assert_frame_equal(frame, before)
    assert completed.index.tolist() == ["r", "s", "t"]
    assert completed.dtypes.astype(str).tolist() == ["float32", "float64", "float64", "Float64"]
    pd.testing.assert_series_equal(completed.loc["s"].astype(float), frame.loc["s"].astype(float))
    assert made.to_frame()["row"].tolist() == ["r", "t", "t", "t", "t"]
    assert made.to_frame()["column"].tolist() == ["b", *"abcd"]
    complete = pv.impute(vae, values[1:2], 2, **options)
    assert torch.equal(complete.completed[0], values[1:2])
    assert len(complete.to_frame()) == 0


KINDS_OF_ROWS = {
    "array": lambda x: x,
    "tensor": torch.from_numpy,
    "frame": pd.DataFrame,
    "masked": lambda x: np.ma.array(np.nan_to_num(x), mask=np.isnan(x)),
    "dict": lambda x: {"x": x},
    "sparse": lambda x: scipy.sparse.csr_array(np.nan_to_num(x)),
    "complete": lambda x: np.nan_to_num(x),
}


@pytest.mark.parametrize("kind", KINDS_OF_ROWS)
@pytest.mark.parametrize("model", ["VAE", "PPCA", "table"])
def test_later_changes_of_the_rows_change_no_imputation(linear, kind, model):
    values = np.array(
        [[1.0, NAN, 0.5, 2.0], [0.1, 0.2, 0.3, 1.0], [2.0, 3.0, NAN, 1.0], [1.0, 1.5, 2.0, 3.0]]
    )
    options = {"num_samples": 100, "check": False, "method": "importance"}
    if model == "VAE":
        fitted = linear[0]
    elif model == "PPCA":
        fitted = baselines.PPCA(1).fit(values)
    else:
        families = dict.fromkeys(range(4), "gaussian")
        fitted = pv.VAE.for_table(pd.DataFrame(values), 1, hidden_dims=(2,), families=families)
    x = KINDS_OF_ROWS[kind](values.copy())
    found = pv.impute(fitted, x, 2, **options)
    before, point = found.completed, found.point("median")
    rows = x["x"] if kind == "dict" else x
    for each in (rows, *found.completed, found.point("median")):
        part = each.data if kind == "sparse" or np.ma.isMaskedArray(each) else each
        part[:] = 9.0
    for now, then in zip((*found.completed, found.point("median")), (*before, point), strict=True):
        now, then = (each.toarray() if kind == "sparse" else np.asarray(each) for each in (now, then))
        np.testing.assert_array_equal(now, then)
        seen = ~np.isnan(values) if kind not in ("sparse", "complete") else slice(None)
        np.testing.assert_array_equal(now[seen], np.nan_to_num(values)[seen])


def test_types_of_whole_numbers_stay_if_the_draws_are_whole():
    pair = pv.LatentVariableModel(BetaBernoulli.model, Guide(BetaBernoulli))
    frame = pd.DataFrame({"a": [1, None, 0], "b": [True, False, None], "c": [1, 0, 1], "d": [0.0, NAN, 1.0]})
    frame = frame.astype({"a": "Int64", "b": "boolean"})
    found = pv.impute(
        pair, frame.astype({"b": "Int64"}), 2, num_samples=100, method="importance", check=False
    )
    assert found.completed[0].dtypes.astype(str).tolist() == ["Int64", "Int64", "int64", "float64"]
    rows = torch.tensor([[1, 0, 1, 0]])
    mask = torch.tensor([[True, True, False, True]])
    for x in (rows, rows.numpy()):
        made = pv.impute(
            pair, {"x": x, "observed": mask}, 2, num_samples=100, method="importance", check=False
        )
        assert made.completed[0].dtype == x.dtype


# --- points and verdicts


def by_hand(draws, measure="mass"):
    draws = np.asarray(draws, dtype=float)
    cells = np.arange(draws.shape[1])
    return pv.Imputation(
        draws, cells, 0 * cells, np.full(len(cells), "trust"), np.full(len(cells), 300.0),
        np.full(len(cells), "refined"), (), (measure,), None, None, torch.full((len(cells), 1), NAN),
        torch.zeros(len(cells), 1).bool(),
    )  # fmt: skip


def test_the_median_of_an_even_number_of_draws_is_in_the_middle():
    """The lower of the two in the middle was 0.06 standard deviations too low with 20 draws."""
    draws = np.random.default_rng(0).normal(size=(20, 4000))
    found = by_hand(draws, "density").median
    np.testing.assert_allclose(found, np.median(draws, axis=0), rtol=1e-12)
    assert abs(found.mean()) < Z * found.std() / math.sqrt(len(found))
    counts = by_hand(
        [[1, 1, 0], [2, 2, 5], [3, 3, 6], [9, 3, 6]]
    ).median  # masses: a draw, the nearer to the mean
    assert counts.tolist() == [3, 2, 5]


def test_points_and_intervals_are_those_of_the_draws():
    found = by_hand([[3, 0], [1, 2], [1, 5], [3, 2], [9, 2]])
    assert found.mean.tolist() == [3.4, 2.2]
    assert found.median.tolist() == [3, 2]
    assert found.mode.tolist() == [1, 2]
    assert found.point("mode").tolist() == [[1], [2]]
    low, high = by_hand(np.arange(1, 20)[:, None]).interval(0.9)
    assert (low[0], high[0]) == (1, 19)
    assert by_hand([[1], [2], [3], [4]]).median.tolist() == [2]
    density = by_hand([[0.5], [0.7]], "density")
    assert np.isnan(density.mode).all()
    with pytest.raises(ValueError, match="kind: expected a point that every missing cell has, got 'mode'"):
        density.point("mode")
    with pytest.raises(ValueError, match="coverage: expected a number between 0 and 1"):
        density.interval(1.5)


@pytest.mark.statistical
@pytest.mark.parametrize(
    ("shift", "scale", "passes"), [(0, 1, True), (1, 1, False), (0, 0.5, False), (0, 2, False)]
)
def test_ranks_show_draws_that_are_shifted_or_too_narrow(shift, scale, passes):
    """Draws of 200 rows with dependent cells, one of them a count; false alarms in 1 of 1000, as the check has it."""
    generator = np.random.default_rng(SEED)
    centre = generator.normal(size=(200, 1))
    truth = centre + generator.normal(size=(200, 3))
    draws = centre + shift + scale * generator.normal(size=(20, 200, 3))
    holes = generator.random((200, 3)) < 0.5
    holes[:, 0] |= ~holes.any(axis=1)
    holes[:, 2] = False
    both = [np.where([True, False, True], each, np.floor(each)) for each in (draws, truth)]
    smallest, tests = imputation.uniform_ranks(*both, holes, generator)
    assert tests == 8
    assert (smallest * tests < 1e-3) != passes


def test_a_row_is_trusted_if_log_p_its_draws_and_its_ranks_are_good(monkeypatch):
    pair = pv.LatentVariableModel(BetaBernoulli.model, Guide(BetaBernoulli))
    x = holed(BetaBernoulli.x)
    options = {"num_samples": 210, "method": "importance"}
    found = pv.impute(pair, x, 20, **options)
    assert set(found.verdict) == {"trust"}
    assert not found.reasons
    assert "rows with missing cells by verdict: trust 15" in str(found)
    few = pv.impute(pair, x, 30, **options)
    assert few.verdict.tolist() == ["trust", *["more samples"] * 14, "trust"]
    assert few.reasons == (
        "importance: 14 rows have fewer than 300 effective draws of z, ten for each imputation: pass more num_samples",
    )
    assert pv.impute(pair, x, 20, check=False, **options).verdict[1:-1].tolist() == ["unchecked"] * 14
    monkeypatch.setattr(imputation, "uniform_ranks", lambda *_: (1e-9, 8))
    failed = pv.impute(pair, x, 20, **options)
    assert failed.verdict[1:-1].tolist() == ["another method"] * 14
    assert (
        "are not uniform on 200 rows simulated from the model: p = 8e-09, corrected for 8 tests"
        in failed.reasons[0]
    )
    monkeypatch.setattr(sampled, "simulated", lambda *_: 1 / 0)
    unknown = pv.impute(pair, x, 20, **options)
    assert unknown.verdict[1:-1].tolist() == ["unchecked"] * 14
    assert "rows cannot be simulated from the model: ZeroDivisionError" in unknown.reasons[0]


def test_auto_fits_posteriors_where_the_encoder_has_too_few_draws(linear):
    vae, rows = linear
    x = holed(rows[:6], HOLES.repeat(2, 1))
    found = pv.impute(vae, x, 20, num_samples=300, check=False)
    alone = pv.impute(vae, x, 20, num_samples=300, check=False, method="importance")
    poor = (alone.verdict != "unchecked") & (alone.verdict != "trust")
    assert poor.any()
    assert (found.answered_by[poor] == "refined").all()
    assert (found.ess[poor] > alone.ess[poor]).all()
    same = np.isin(found.rows, np.flatnonzero(~poor))
    np.testing.assert_array_equal(found.draws[:, same], alone.draws[:, same])


def test_baselines_impute_exactly(linear):
    _, rows = linear
    x = holed(rows.repeat(2, 1)[:20], torch.rand(20, 4, generator=torch.Generator().manual_seed(1)) < 0.7)
    full = baselines.PPCA(1).fit(x)
    found = pv.impute(full, x, 3, seed=4)
    assert torch.equal(torch.stack(found.completed), full.draw_missing(x, 3, seed=4))
    assert set(found.verdict) == {"trust"}
    frame = pv.impute(full, pd.DataFrame(x.numpy()), 3, seed=4).completed[2]
    assert np.array_equal(frame.to_numpy(), found.completed[2].numpy())
    seen = ~x.isnan()
    masked = pv.impute(full, {"x": x.nan_to_num(5.0), "observed": seen}, 3, seed=4)
    np.testing.assert_array_equal(masked.draws, found.draws)
    with pytest.raises(
        TypeError, match=r"model: expected a VAE.*or a baseline that takes missing cells, got a KernelDensity"
    ):
        pv.impute(baselines.KernelDensity().fit(rows), x)


# --- log P(x_d | z) by column


@pytest.mark.parametrize("form", [GammaPoisson, Mixture])
@pytest.mark.parametrize("plainly", [False, True])
def test_columns_add_up_to_the_likelihood(form, plainly):
    evaluation = Evaluation.prepare(pv.LatentVariableModel(form.model, Guide(form)), holed(form.x), 5, 0)
    model = evaluation.model.plainly() if plainly else evaluation.model
    with undisturbed(evaluation, Stream.TILE):
        latents, joint, _ = model.weigh(evaluation.batch, 5, RowNoise(0, torch.arange(16)))
        columns = model.log_columns(evaluation.batch, latents)
    assert columns.shape == (5, 16, 4)
    assert (columns[:, ~evaluation.batch["observed"]] == 0).all()
    torch.testing.assert_close(columns.sum(-1), joint.likelihood)


@pytest.mark.parametrize("name", likelihoods.REGISTRY)
def test_every_family_imputes_on_its_support_and_scores_its_columns(name):
    torch.manual_seed(0)
    vae = pv.VAE.mlp(4, 1, name, (4,), missing=True, **next(o for n, o in LIKELIHOODS if n == name))
    x = vae.sample(16, seed=1)
    x = holed(x.clamp(1e-3, 1 - 1e-3) if name == "beta" else x)
    found = pv.impute(vae, x, 2, method="importance", num_samples=100, check=False)
    support = vae.likelihood(torch.zeros(1, 1)).support.base_constraint
    assert support.check(found.completed[1].to(x)).all()
    fewer = x.clone()
    fewer[:9] = x[0]
    again = pv.impute(vae, fewer, 2, method="importance", num_samples=100, check=False)
    np.testing.assert_array_equal(again.draws, found.draws[:, found.rows >= 9])
    evaluation = Evaluation.prepare(vae, x, 3, 0)
    with undisturbed(evaluation, Stream.TILE):
        latents, joint, _ = evaluation.model.weigh(evaluation.batch, 3, RowNoise(0, torch.arange(16)))
        columns = evaluation.model.log_columns(evaluation.batch, latents)
    torch.testing.assert_close(columns.sum(-1), joint.likelihood, rtol=1e-4, atol=1e-4)


def test_columns_of_a_joint_site_are_refused():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x)), 1.0))
            pyro.sample(
                "pixels", dist.MultivariateNormal(z[..., None].expand(*z.shape, 2), torch.eye(2)), obs=x
            )

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.mean(-1), 1.0))

    with pytest.raises(
        ValueError, match="got site 'pixels', a MultivariateNormal, which scores columns jointly"
    ):
        pv.outliers(pv.LatentVariableModel(model, guide), torch.randn(5, 2), check=False)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "Int8"])
@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor, pd.DataFrame])
def test_draws_beyond_a_narrow_type_are_held_by_a_wider_one(kind, dtype):
    """Poisson counts around 120, in types that end at 127, or at 255 with a mean of 250."""
    if dtype == "Int8" and kind is not pd.DataFrame:
        pytest.skip("a type of pandas")
    most = 250 if dtype == "uint8" else 120
    counts = np.full((40, 1), most)
    x = kind(counts.astype(dtype)) if dtype != "Int8" else pd.DataFrame(counts).astype("Int8")
    observed = np.arange(40)[:, None] >= 20
    found = pv.impute(baselines.IndependentPoisson().fit(counts), {"x": x, "observed": observed}, 30)
    assert found.draws.max() > (255 if dtype == "uint8" else 127)
    completed = np.stack([np.asarray(each, dtype=np.float64) for each in found.completed])
    np.testing.assert_array_equal(completed[:, :20, 0], found.draws)
    assert (completed[:, 20:] == most).all()


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64", "uint8", "Int64", "int64[pyarrow]"])
def test_a_type_that_holds_the_draws_stays(dtype):
    counts = np.full((40, 1), 40)
    x = pd.DataFrame(counts).astype(dtype)
    observed = np.arange(40)[:, None] >= 20
    found = pv.impute(baselines.IndependentPoisson().fit(counts), {"x": x, "observed": observed}, 5)
    assert found.draws.max() < 100
    assert all(each.dtypes[0] == x.dtypes[0] for each in found.completed)
    if not isinstance(x.dtypes[0], np.dtype):
        return
    found = pv.impute(
        baselines.IndependentPoisson().fit(counts), {"x": x.to_numpy(), "observed": observed}, 5
    )
    assert all(each.dtype == x.dtypes[0] for each in found.completed)


@pytest.mark.parametrize("most", [3000, 40_000_000])
@pytest.mark.parametrize("kind", [np.asarray, pd.DataFrame])
def test_counts_are_not_rounded_by_a_narrow_float(kind, most):
    """float16 has no odd numbers above 2048, and float32 none above 2^24."""
    counts = np.full((40, 1), most)
    x = kind(counts.astype("float16" if most < 2**15 else "float32"))
    observed = np.arange(40)[:, None] >= 20
    found = pv.impute(baselines.IndependentPoisson().fit(counts), {"x": x, "observed": observed}, 30)
    assert (found.draws % 2).any()
    completed = np.stack([np.asarray(each, dtype=np.float64) for each in found.completed])
    np.testing.assert_array_equal(completed[:, :20, 0], found.draws)


@pytest.mark.parametrize("fill", [0.0, 7.0])
def test_a_sparse_column_is_completed_and_stays_as_it_was(fill):
    """Without an entry equal to the fill value, pandas' dense copy of a sparse column shares its memory."""
    rows = np.random.default_rng(4).normal(5.0, 1.0, (30, 2))
    entries = np.where(np.arange(30) < 3, np.nan, rows[:, 0])
    x = pd.DataFrame({"a": pd.arrays.SparseArray(entries, fill_value=fill), "b": rows[:, 1]})
    found = pv.impute(baselines.IndependentGaussian().fit(rows), x, 20)
    completed = np.stack([each["a"].to_numpy(dtype=np.float64) for each in found.completed])
    np.testing.assert_array_equal(completed[:, :3], found.draws)
    np.testing.assert_array_equal(completed[:, 3:], np.tile(rows[3:, 0], (20, 1)))
    np.testing.assert_array_equal(np.isnan(x["a"].to_numpy()), np.arange(30) < 3)


@pytest.mark.parametrize(
    ("dtype", "value", "wide"),
    [
        ("Int64", 1e19, "Float64"),
        ("UInt64", 1e19, "UInt64"),
        ("int8", 300.0, "int16"),
        ("UInt8", -3.0, "Int16"),
    ],
)
def test_filled_cells_hold_their_values(dtype, value, wide):
    x = pd.DataFrame({"a": pd.Series([1, 2], dtype=dtype)})
    found = frames.filled(x, np.array([[True], [False]]), np.array([value]))
    assert found["a"].dtype == wide
    assert [float(each) for each in found["a"]] == [value, 2.0]


@pytest.mark.parametrize(
    ("held", "value", "filled", "dtype"),
    [
        ([None, True, False], 0.25, [0.25, 1.0, 0.0], np.float64),
        ([None, True, False], 1.0, [True, True, False], object),
        ([None, 2, 5], 3.0, [3.0, 2.0, 5.0], np.float64),
        ([None, 2, 5], 0.5, [0.5, 2.0, 5.0], np.float64),
        ([pd.NA, 2.5, 1], 3.0, [3.0, 2.5, 1.0], np.float64),
    ],
)
def test_filled_objects_have_one_type(held, value, filled, dtype):
    x = pd.DataFrame({"a": pd.Series(held, dtype=object)})
    found = frames.filled(x, np.array([[True], [False], [False]]), np.array([value]))["a"]
    assert found.dtype == dtype
    assert list(map(repr, found.tolist())) == list(map(repr, filled))


@pytest.mark.parametrize(
    "labels",
    [
        [2019, 2020, 2022],
        [2.0, 0.0, 1.0],
        [1, "1", 0],
        [("a", 1), "b", ("a", 2)],
        list(pd.date_range("2020", periods=3)),
        pd.MultiIndex.from_product([["a"], [1, 2, 3]]),
        None,
    ],
)
def test_columns_have_the_frames_own_labels(labels):
    rows = np.random.default_rng(7).normal(size=(60, 3))
    x = pd.DataFrame(np.where(np.arange(180).reshape(60, 3) % 7, rows, np.nan), columns=labels)
    x.iloc[-1] = np.nan
    fitted = baselines.FullGaussian().fit(x)
    found, own = pv.impute(fitted, x, 2), list(x.columns)
    assert found.to_frame()["column"].tolist() == [own[column] for column in found.columns]
    cells = pv.outliers(fitted, x, cells=True).reset_index(names="row")
    assert cells["column"].tolist() == [own[column] for column in np.nonzero(x.notna().to_numpy())[1]]
    odd = pv.outliers(fitted, x)["oddest"]
    assert pd.isna(odd.iloc[-1])
    assert odd.tolist()[:-1] == cells["column"][cells.groupby("row")["below"].idxmax()].tolist()


def test_columns_of_a_table_have_its_own_labels():
    x = pd.DataFrame({2020: [1.5, 2.5, None, 3.0] * 15, "id": range(60), 2019: [None, *"aba"] * 15})
    with pytest.warns(UserWarning, match="'id'"):
        vae = pv.VAE.for_table(x, 1, hidden_dims=(3,))
    found = pv.impute(vae, x, 2, method="importance", num_samples=100, check=False).to_frame()
    assert sorted(zip(found["row"], found["column"], strict=True)) == sorted(
        [(row, 2019) for row in range(0, 60, 4)] + [(row, 2020) for row in range(2, 60, 4)]
    )
    assert set(pv.outliers(vae, x, num_samples=100, check=False)["oddest"]) <= {2019, 2020}
