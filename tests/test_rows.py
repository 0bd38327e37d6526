"""Rows keep their values, their names and their order: what a cast may change, and what a frame knows."""

import inspect
import itertools
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import scipy.sparse
import torch
from rates import close
from scipy import stats

import pyrovae as pv
from pyrovae import baselines, evidence, identity, rounding
from pyrovae.rows import as_tensor, joined

RNG = np.random.default_rng(0)
NORMAL = RNG.normal(size=(200, 2))
SQRT2 = 2**0.5


def at(centre):
    """Rows of sd √2 around a number."""
    return centre + SQRT2 * NORMAL[:, :1]


def pair_at(centre, dtype=torch.float32, learns=True):
    """x ~ N(z + centre, 1), z ~ N(0, 1), with the exact posterior as guide."""

    def model(x):
        one = pyro.param("one", torch.ones((), dtype=dtype)) if learns else 1.0
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1, dtype=x.dtype), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z + centre * one, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((x - centre) / 2, 0.5**0.5).to_event(1))

    return pv.LatentVariableModel(model, guide)


# ---------------------------------------------------------------------------------------------------------
# Rounding

KINDS = {
    "array": lambda x: x,
    "frame": lambda x: pd.DataFrame(x, columns=["seconds"]),
    "dict": lambda x: {"x": x},
    "long double": lambda x: x.astype(np.longdouble),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("centre", [1e6, -1e8, 1.7e9])
def test_a_cast_that_moves_rows_is_refused_everywhere(kind, centre):
    x, pair = KINDS[kind](at(centre)), pair_at(centre)
    calls = [
        lambda: pv.log_weights(pair, x, num_samples=2),
        lambda: pv.elbo(pair, x, num_samples=2),
        lambda: evidence.importance(pair, x, num_samples=2, check=False),
        lambda: pv.log_evidence(pair, x, method="auto", check=False),
        lambda: pv.fit(pair, x, epochs=1),
        lambda: pv.fit(pv.VAE.mlp(1, 1, "gaussian", hidden_dims=(2,)), x, epochs=1),
        lambda: pv.fit(pv.VAE.mlp(1, 1, "gaussian", hidden_dims=(2,)), NORMAL[:, :1], validation=x, epochs=1),
        lambda: pv.compare({"pair": pair}, x, num_samples=2, method="importance", check=False),
        lambda: pv.diagnose(pair, x, num_samples=100),
    ]
    for call in calls:
        with pytest.raises(
            ValueError, match=r"(x|validation): .*float32 holds.* got \d+ that it changes"
        ) as refused:
            call()
        column = "'seconds'" if kind == "frame" else "0"
        assert f"at row 0, column {column}" in str(refused.value)
        assert "model.double()" in str(refused.value)
        assert "standardize=True" in str(refused.value)
    assert not pair.stored


@pytest.mark.parametrize("learns", [True, False])
@pytest.mark.parametrize("centre", [0.0, 1e7, 1.7e9])
def test_a_pair_that_computes_in_float64_is_right(centre, learns):
    """Its dtype is known only after it has run, or never."""
    x = at(centre)
    exact = stats.norm(centre, SQRT2).logpdf(x[:, 0])
    ev = pv.log_evidence(pair_at(centre, torch.float64, learns), x, num_samples=20, check=False)
    tolerance = 1e-5 if centre == 0 else 1e-6
    np.testing.assert_allclose(ev.estimate, exact, atol=tolerance)


def test_a_cast_of_what_goes_with_the_rows_is_refused():
    def model(x, seconds=None):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + (seconds - 1.7e9), 1.0), obs=x)

    def guide(x, seconds=None):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 1.0))

    pair = pv.LatentVariableModel(model, guide)
    x = {"x": NORMAL[:, 0].astype(np.float32), "seconds": 1.7e9 + NORMAL[:, 1]}
    for seconds in (x["seconds"], pd.Series(x["seconds"])):
        with pytest.raises(ValueError, match=r"^seconds: .*float32 holds.*row 0"):
            pv.log_weights(pair, x | {"seconds": seconds}, num_samples=2)
    pv.log_weights(pair, x | {"seconds": torch.full((200,), 1.7e9)}, num_samples=2)


WHOLE = [
    (np.array([[1], [2**24 + 1]]), torch.float32, 2**24 + 1),
    (np.array([[1], [2**24 + 1]], dtype=np.uint32), torch.float32, 2**24 + 1),
    (np.array([[1.0], [2**24 + 1]]), torch.float32, 2**24 + 1),
    (torch.tensor([[1], [2**24 + 1]]), torch.float32, 2**24 + 1),
    (pd.DataFrame({"id": [1, 2**24 + 1]}), torch.float32, 2**24 + 1),
    (np.array([[1], [2**53 + 1]]), torch.float64, 2**53 + 1),
    (torch.tensor([[1], [2**53 + 1]]), torch.float64, 2**53 + 1),
    (np.array([[1], [2**63 - 1]]), torch.float64, 2**63 - 1),
    (pd.DataFrame({"id": [1, 2**53 + 1], "b": [0.5, 1.5]}), torch.float64, 2**53 + 1),
    (pd.DataFrame({"id": pd.array([None, 2**53 + 1], "Int64"), "b": [0.5, 1.5]}), torch.float64, 2**53 + 1),
]


@pytest.mark.parametrize(("x", "dtype", "value"), WHOLE, ids=lambda v: str(getattr(v, "dtype", v)))
def test_whole_numbers_that_change_are_refused(x, dtype, value):
    with pytest.raises(
        ValueError, match=rf"whole numbers that {dtype} holds, got 1 that it changes, first {value}"
    ):
        as_tensor(x, dtype=dtype)
    if dtype == torch.float64:
        with pytest.raises(ValueError, match="whole numbers"):
            baselines.IndependentGaussian().fit(x)


def accepted():
    g = np.random.default_rng(1)
    x = g.normal(size=(300, 3))
    spiky = np.where(g.random((300, 1)) < 0.8, 0.1, x[:, :1])
    return {
        "normal": x,
        "grey levels": np.round(255 * g.random((300, 3)) * (x > 0.5)) / 255,
        "log-normal": np.exp(10 * x),
        "inverse": 1 / x,
        "an outlier": np.concatenate([x, [[1e12 + 0.5, 0, 0]]]),
        "far but wide": 1000.0 + x,
        "kelvin": 310.15 + 0.5 * x,
        "constant": np.full((300, 3), 0.1),
        "mostly one value": spiky,
        "rounding noise": (x > 0) * 0.3 + 1e-16 * x,
        "one row": x[:1] * 1000,
        "two rows": x[:2],
        "years": np.round(2000 + 10 * x),
        "whole": np.arange(2**24 - 300, 2**24)[:, None],
        "even whole": np.array([[2**24 + 2], [2**30]]),
        "bytes": (x > 0).astype(np.uint8),
        "uint16": np.full((3, 2), 2**16 - 1, np.uint16),
        "bool": x > 0,
        "half": x.astype(np.float16),
        "single": x.astype(np.float32) + 1e7,
        "long double": x.astype(np.longdouble),
        "mixed frame": pd.DataFrame({"a": x[:, 0], "b": [1] * 300, "c": x[:, 1].astype(np.float32)}),
        "tiny": 1e-30 * x,
        "huge": 1e30 * x,
    }


ACCEPTED = accepted()


@pytest.mark.parametrize("name", ACCEPTED)
def test_ordinary_rows_are_accepted_and_cast_as_ever(name):
    x = ACCEPTED[name]
    found = as_tensor(x, dtype=torch.float32)
    raw = x.to_numpy(dtype=np.float64) if hasattr(x, "to_numpy") else x
    np.testing.assert_array_equal(found.numpy(), raw.astype(np.float32))


def test_what_outliers_and_clusters_hide_in_a_standard_deviation_is_refused():
    x = at(1e7)
    outlier = x.copy()
    outlier[7] = 1e12
    clusters = np.concatenate([at(1e8), at(2e8)])
    for rows in (outlier, clusters):
        assert rounding.TOLERANCE * rows.std() > 1
        with pytest.raises(ValueError, match="that it changes"):
            as_tensor(rows, dtype=torch.float32)


def test_a_few_rows_alike_are_judged_by_the_rows_that_were_fitted():
    x = 3e5 + 1e5 * NORMAL
    vae = pv.VAE.mlp(2, 1, "gaussian", hidden_dims=(3,), standardize=True)
    pv.fit(vae, x, epochs=1, compile=False)
    alike = x[:1] + np.array([[0.0], [0.01], [0.02]])
    for rows in (x[:1], alike):
        assert len(pv.log_evidence(vae, rows, num_samples=5, check=False)) == len(rows)
        with pytest.raises(ValueError, match="that it changes"):
            as_tensor(rows, dtype=torch.float32)


def test_rows_are_read_once(monkeypatch):
    """A file of float64 rows is gone through once by the cast."""
    x = torch.from_numpy(NORMAL)
    read = []
    blocks = rounding.blocks
    monkeypatch.setattr(rounding, "blocks", lambda rows: read.append(len(rows)) or blocks(rows))
    rounding.cast(x, torch.float32)
    assert read == [200]


# ---------------------------------------------------------------------------------------------------------
# standardize=True scales before it casts


@pytest.fixture(scope="module", params=["gaussian", "student_t"])
def standardized(request):
    """One VAE fitted around 0 and the same around others, by the centre."""
    models = {}
    for centre in (0.0, 1e7, 1.7e9):
        torch.manual_seed(0)
        vae = pv.VAE.mlp(1, 1, request.param, hidden_dims=(3,), scale="shared", standardize=True)
        pv.fit(vae, at(centre), epochs=2, compile=False)
        models[centre] = vae
    return models


@pytest.mark.parametrize(
    ("centre", "method"),
    [(1.7e9, "importance"), (1.7e9, "jackknife"), (1.7e9, "refined"), (1e7, "quadrature"), (1e7, "auto")],
)
def test_a_shift_of_x_changes_no_density(standardized, centre, method):
    """The rounding of 1.7e9 + x in float64 is 2e-7, and log P moves by as much."""
    options = {} if method in ("quadrature", "auto") else {"num_samples": 100}
    found, expected = (
        pv.log_evidence(standardized[c], at(c)[:8], method=method, check=False, **options).estimate
        for c in (centre, 0.0)
    )
    np.testing.assert_allclose(found, expected, atol=2e-3)
    assert standardized[centre].dtype == torch.float32


@pytest.mark.parametrize("centre", [0.0, 1e7, 1.7e9])
def test_a_standardizing_linear_model_is_exact_far_from_zero(centre):
    x = at(centre)
    vae = pv.VAE.mlp(1, 1, "gaussian", hidden_dims=(), scale=0.6, standardize=True)
    pv.fit(vae, x, epochs=1, compile=False)
    weight, bias = (p.double().item() for p in vae.likelihood.network.parameters())
    loc, scale = x.mean(), x.std()
    exact = stats.norm(loc + scale * bias, scale * (weight**2 + 0.36) ** 0.5).logpdf(x[:, 0])
    for rows in (x, pd.DataFrame(x), torch.tensor(x) if centre else torch.tensor(x).float()):
        np.testing.assert_allclose(pv.log_evidence(vae, rows, method="exact").estimate, exact, atol=1e-5)
    one = pv.log_evidence(vae, x[:1], method="exact").estimate  # a single row has no spread of its own
    np.testing.assert_allclose(one, exact[:1], atol=1e-5)


@pytest.mark.statistical
def test_standardized_rows_are_simulated_and_scored_in_their_own_units(standardized):
    near = standardized[0.0].sample(400, seed=1).double()
    for centre, vae in standardized.items():
        drawn = vae.sample(400, seed=2)
        assert drawn.dtype == (torch.float64 if centre else torch.float32)
        here = drawn.double() - centre
        assert close(float(here.mean() - near.mean()), 0.0, float((here.var() + near.var()).sqrt()) / 20)
        assert 0.2 < float(here.std() / near.std()) < 5
        assert pv.log_evidence(vae, drawn, num_samples=5, check=False).mean < 0
        assert vae.reconstruct(at(centre)).dtype == drawn.dtype
        assert evidence.sandwich(vae, at(centre), num_rows=3, num_temperatures=5).x.dtype == drawn.dtype


def test_standardized_models_keep_their_float64_in_files_and_casts(standardized, tmp_path):
    vae, x = standardized[1.7e9], at(1.7e9)

    def like():
        name = {"Gaussian": "gaussian", "StudentT": "student_t"}[type(vae.likelihood).__name__]
        return pv.VAE.mlp(1, 1, name, hidden_dims=(3,), scale="shared", standardize=True)

    expected = pv.log_evidence(vae, x, num_samples=5, check=False).estimate
    vae.save(tmp_path / "vae")
    by_state = like()
    by_state.load_state_dict(vae.state_dict())
    by_state.fitted = vae.fitted
    for again in (
        pv.load(tmp_path / "vae"),
        pv.load(tmp_path / "vae", into=like()),
        by_state,
        by_state.float(),
    ):
        assert np.array_equal(pv.log_evidence(again, x, num_samples=5, check=False).estimate, expected)


def test_log_normal_rows_of_a_narrow_range_are_scored_in_float64():
    x = 1e7 * np.exp(1e-6 * NORMAL[:, :1])
    torch.manual_seed(0)
    vae = pv.VAE.mlp(1, 1, "log_normal", hidden_dims=(3,), standardize=True)
    pv.fit(vae, x, epochs=1, compile=False)
    double = pv.VAE.mlp(1, 1, "log_normal", hidden_dims=(3,), standardize=True).double()
    double.load_state_dict(vae.state_dict())
    found, exact = (pv.log_evidence(v, x, method="quadrature", check=False).estimate for v in (vae, double))
    np.testing.assert_allclose(found, exact, atol=2e-3)


def test_a_fit_that_fails_leaves_standardize_as_it_was():
    vae = pv.VAE.mlp(1, 1, "gaussian", hidden_dims=(3,), standardize=True)
    with pytest.raises(ValueError, match="validation"):
        pv.fit(vae, at(1e7), validation=NORMAL, epochs=1)
    scaling = vae.encoder.standardize
    assert (scaling.loc.dtype, scaling.loc.item(), scaling.scale.item()) == (torch.float32, 0.0, 1.0)


def test_swap_and_suggest_take_rows_far_from_zero():
    near, far = (
        pv.swap(
            at(c), 1, ["gaussian"], epochs=1, hidden_dims=(3,), method="quadrature", compile=False
        ).densities
        for c in (0.0, 1e7)
    )
    np.testing.assert_allclose(near["elpd"], far["elpd"], atol=2e-3)
    assert pv.likelihoods.suggest(at(1e7))["family"][0] == "gaussian"


# ---------------------------------------------------------------------------------------------------------
# Two hashes a row


def test_rows_that_agree_in_float32_alone_do_not_pair():
    exact = NORMAL.astype(np.float32).astype(np.float64)
    x, other = exact * (1 + 1e-10), exact * (1 - 1e-10)
    assert np.array_equal(x.astype(np.float32), other.astype(np.float32))
    ppca = baselines.PPCA(1).fit(RNG.normal(size=(50, 2)))
    scores = {name: pv.log_evidence(ppca, rows) for name, rows in (("a", x), ("b", other))}
    with pytest.raises(ValueError, match="numbers that agree in float32 alone"):
        pv.compare(scores)


def test_the_same_rows_pair_whatever_dtype_they_come_in():
    x = NORMAL
    vae = pv.VAE.mlp(2, 1, "gaussian", hidden_dims=(3,))
    ppca = baselines.PPCA(1).fit(RNG.normal(size=(50, 2)))
    pv.compare({"VAE": vae, "PPCA": ppca}, x, num_samples=5, method="importance", check=False)
    kinds = (x, pd.DataFrame(x), torch.tensor(x).float(), x.astype(np.float32))
    for rows in kinds:  # in float32, or as they are
        pv.compare(
            {
                "VAE": pv.log_evidence(vae, rows, num_samples=5, check=False),
                "PPCA": pv.log_evidence(ppca, x),
            }
        )
    whole = np.round(10 * x).astype(np.int64)
    prints = {
        identity.fingerprint(torch.as_tensor(rows)).sha256
        for rows in (whole, whole.astype(np.int8), whole.astype(np.float32), whole.astype(np.float64))
    }
    assert len(prints) == 1


def test_a_float32_copy_that_lost_something_does_not_pair():
    x = at(1e7)
    ppca = baselines.IndependentGaussian().fit(at(1e7)[:100] + 1)
    with pytest.raises(ValueError, match="numbers that agree in float32 alone"):
        pv.compare(
            {
                "a": pv.log_evidence(ppca, x),
                "b": pv.log_evidence(ppca, x.astype(np.float32)),
            }
        )


@pytest.mark.parametrize("fitted", [np.float32, np.float64])
@pytest.mark.parametrize("scored", [np.float32, np.float64])
def test_training_rows_are_known_in_either_dtype(fitted, scored):
    vae, ppca = pv.VAE.mlp(2, 1, "gaussian", hidden_dims=(3,)), baselines.PPCA(1).fit(NORMAL.astype(fitted))
    pv.fit(vae, NORMAL.astype(fitted), epochs=1, compile=False)
    for model in (vae, ppca):
        with pytest.raises(ValueError, match="200 of 200"):
            pv.compare(
                {"model": model},
                NORMAL.astype(scored),
                **({"num_samples": 5, "method": "importance"} if model is vae else {}),
            )
        assert pv.compare({"model": model}, RNG.normal(size=(50, 2)).astype(scored), check=False)[
            "seen"
        ].tolist() == [0]


@pytest.mark.parametrize("method", sorted(evidence.METHODS))
def test_every_estimator_knows_the_rows_that_were_fitted(method):
    hidden = () if method in ("exact", "auto") else (3,)
    vae = pv.VAE.mlp(2, 1, "gaussian", hidden_dims=hidden)
    pv.fit(vae, NORMAL, epochs=1, compile=False)
    estimate = evidence.METHODS[method]
    few = {} if method in ("exact", "auto", "quadrature") else {"num_samples": 100}
    if method == "annealed":
        few = {"num_samples": 2, "num_temperatures": 3}
    if "check" in inspect.signature(estimate).parameters:
        few["check"] = False
    assert estimate(vae, NORMAL[:30], **few).seen == 30
    assert estimate(vae, RNG.normal(size=(30, 2)), **few).seen == 0
    with pytest.raises(ValueError, match="30 of 30"):
        pv.compare({"VAE": estimate(vae, NORMAL[:30], **few)})


def test_baselines_and_diagnoses_know_the_rows_that_were_fitted():
    for baseline in (baselines.PPCA(1), baselines.KernelDensity(), baselines.NormalInverseGamma()):
        assert baseline.fit(NORMAL).log_evidence(NORMAL[:30]).seen == 30
    vae = pv.VAE.mlp(2, 1, "gaussian", hidden_dims=(3,))
    pv.fit(vae, NORMAL, epochs=1, compile=False)
    assert pv.diagnose(vae, NORMAL[:30], num_samples=100).log_evidence.seen == 30


# ---------------------------------------------------------------------------------------------------------
# Names and the index

NAMES = ["age", "height", "weight"]
FRAME = pd.DataFrame(np.random.default_rng(2).normal(size=(60, 3)), columns=NAMES)
TRAIN, TEST = FRAME[:40], FRAME[40:]


@pytest.fixture(scope="module")
def fitted():
    """Models by their name, all fitted to the same frame."""
    torch.manual_seed(0)
    vae = pv.VAE.mlp(3, 1, "gaussian", hidden_dims=(3,), standardize=True)
    pv.fit(vae, TRAIN, epochs=1, compile=False)

    def regression(x):
        loc = pyro.sample("loc", dist.Normal(torch.zeros(3, dtype=x.dtype), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    mcmc = baselines.PyroMCMC(regression, num_samples=100, warmup_steps=20, num_chains=1).fit(TRAIN)
    return {"VAE": vae, "PPCA": baselines.PPCA(1).fit(TRAIN), "MCMC": mcmc}


OTHERS = {
    "another order": (TEST[["weight", "age", "height"]], "'weight' instead of 'age' in column 0"),
    "another name": (TEST.rename(columns={"height": "size"}), "'size' instead of 'height' in column 1"),
    "one more": (TEST.assign(income=1.0), "4 columns instead of 3, first 'income' more"),
    "one less": (TEST[["age", "height"]], "2 columns instead of 3, 'weight' missing"),
    "twice": (TEST[["age", "height", "height"]], "'height' instead of 'weight' in column 2"),
    "levels": (
        TEST.set_axis(pd.MultiIndex.from_tuples([("a", n) for n in NAMES]), axis=1),
        "\"('a', 'age')\" instead of 'age' in column 0",
    ),
}


class OnePass:
    """Chunks of rows that differ in every pass, as from a shuffling DataLoader: a second pass raises an error."""

    def __init__(self, rows):
        self.rows, self.passes = rows, 0

    def __iter__(self):
        self.passes += 1
        if self.passes > 1:
            raise AssertionError("a second pass over the rows")
        return iter([self.rows[:7], self.rows[7:]])


def numbers_of(found):
    """The numbers of a result, for comparisons."""
    if isinstance(found, pd.DataFrame):
        return found.drop(columns="seconds", errors="ignore").to_numpy()
    if isinstance(found, pv.Imputation):
        return np.stack([np.asarray(rows) for rows in found.completed])
    for name in ("estimate", "lower", "log_odds"):
        if hasattr(found, name):
            return getattr(found, name)
    return np.asarray(found)


def undeclared(x, observed=None):
    """x ~ N(z, 1), z ~ N(0, 1), of a dtype that is known only after a run."""
    one = pyro.param("one", torch.ones((), dtype=torch.float64))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(3, dtype=x.dtype), one).to_event(1))
        fn = dist.Normal(z, one)
        pyro.sample("x", (fn if observed is None else fn.mask(observed)).to_event(1), obs=x)


def undeclared_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2, 0.5**0.5).to_event(1))


FEW = {"num_samples": 100, "check": False}
ONE_PASS = {
    "log_evidence": lambda m, x: pv.log_evidence(m["VAE"], x, **FEW),
    "log_evidence given": lambda m, x: pv.log_evidence(m["VAE"], x, given=[1], **FEW),
    "log_evidence of a table given": lambda m, x: pv.log_evidence(m["table"], x, given=[1], **FEW),
    "log_evidence of a baseline given": lambda m, x: pv.log_evidence(m["PPCA"], x, given=[1]),
    "log_evidence of a baseline": lambda m, x: m["PPCA"].log_evidence(x),
    "log_evidence of chains": lambda m, x: m["MCMC"].log_evidence(x),
    "log_evidence without a dtype": lambda m, x: pv.log_evidence(m["undeclared"](), x, **FEW),
    "auto": lambda m, x: pv.log_evidence(m["VAE"], x, method="auto", check=False),
    "exact": lambda m, x: evidence.exact(m["linear"], x),
    "check": lambda m, x: evidence.check(m["VAE"], x, "importance", num_rows=8, num_samples=100),
    "gaps": lambda m, x: evidence.gaps(m["VAE"], x, num_samples=100, check=False),
    "convergence": lambda m, x: evidence.convergence(m["VAE"], x, (10, 100), check=False),
    "sandwich": lambda m, x: evidence.sandwich(m["linear"], x, 5, num_temperatures=5, rows="real"),
    "from_draws": lambda m, x: evidence.from_draws(
        lambda z: -(z**2).sum(-1) / 2, torch.randn(1, 200, 2, generator=torch.Generator().manual_seed(0)), x=x
    ),
    "log_weights": lambda m, x: pv.log_weights(m["undeclared"](), x),
    "elbo": lambda m, x: pv.elbo(m["undeclared"](), x),
    "diagnose": lambda m, x: pv.diagnose(m["VAE"], x, 100).dimensions,
    "embed": lambda m, x: pv.embed(m["VAE"], x, **FEW),
    "embed by the encoder": lambda m, x: pv.embed(m["undeclared"](), x, method="encoder"),
    "embed of a baseline": lambda m, x: pv.embed(m["PPCA"], x),
    "impute": lambda m, x: pv.impute(m["VAE"], x, 2, **FEW),
    "impute of a table": lambda m, x: pv.impute(m["table"], x, 2, **FEW),
    "impute of a baseline": lambda m, x: pv.impute(m["PPCA"], x, 2),
    "draw_missing": lambda m, x: m["PPCA"].draw_missing(x),
    "outliers": lambda m, x: pv.outliers(m["VAE"], x, cells=True, **FEW)[["log_p", "below"]],
    "outliers of a baseline": lambda m, x: pv.outliers(m["PPCA"], x)[["score", "log_p"]],
    "compare": lambda m, x: pv.compare({"a": m["VAE"], "b": m["PPCA"]}, x, method="importance", **FEW)[
        ["elpd", "dse"]
    ],
    "swap": lambda m, x: pv.swap(
        x, 1, ["gaussian"], epochs=1, hidden_dims=(2,), method="importance"
    ).densities[["elpd"]],
    "to_arviz": lambda m, x: pv.convert.to_arviz(m["VAE"], x, num_draws=2, num_samples=100).posterior["z"],
    "suggest": lambda m, x: pv.likelihoods.suggest(x)[["column", "family"]],
    "reconstruct": lambda m, x: m["VAE"].reconstruct(x).detach(),
    "start_from": lambda m, x: start(m["linear"], x),
    "fit of a baseline": lambda m, x: baselines.PPCA(1).fit(x).log_evidence(TEST.to_numpy()),
    "fit of chains": lambda m, x: (
        baselines.BayesianPCA(1, num_samples=100, warmup_steps=5, num_chains=1, max_tree_depth=1)
        .fit(x)
        .log_evidence(TEST.to_numpy())
    ),
    "validation": lambda m, x: validated(x),
    "column_distances": lambda m, x: pv.plots.column_distances(x, TRAIN.to_numpy()),
    "predictive": lambda m, x: titles(pv.plots.predictive(x, TRAIN.to_numpy())),
    "predictive, simulated": lambda m, x: titles(pv.plots.predictive(TRAIN.to_numpy(), x)),
}


def start(vae, x):
    vae.likelihood.start_from(x)
    return pv.elbo(vae, TEST.to_numpy(), num_samples=5)


def validated(x):
    torch.manual_seed(0)
    vae = pv.VAE.mlp(3, 1, "gaussian", (2,), standardize=True)
    return pv.fit(vae, TRAIN.to_numpy(), validation=x, epochs=1, compile=False).frame


def titles(axes):
    return [panel.get_title() for panel in axes]


@pytest.fixture(scope="module")
def models(fitted):
    torch.manual_seed(0)
    linear = pv.VAE.mlp(3, 1, "gaussian", hidden_dims=())
    table = pv.VAE.for_table(TRAIN, 1, hidden_dims=(2,))
    return {
        **fitted,
        "linear": linear,
        "table": table,
        "undeclared": lambda: pv.LatentVariableModel(undeclared, undeclared_guide),
    }


@pytest.mark.parametrize("name", ONE_PASS)
def test_chunks_are_read_in_one_pass(models, name):
    """A second pass of a shuffling DataLoader would have other rows."""
    rows = TEST.to_numpy().copy()
    if any(word in name for word in ("impute", "draw_missing")):
        rows[::3, 0], rows[1::3, 2] = np.nan, np.nan
    expected, found = (numbers_of(ONE_PASS[name](models, x)) for x in (rows, OnePass(rows)))
    np.testing.assert_array_equal(found, expected)


def test_a_report_reads_chunks_in_one_pass(models, tmp_path):
    x, train = (OnePass(rows.to_numpy()) for rows in (TEST, TRAIN))
    pv.report(models["VAE"], x, tmp_path / "page.html", train=train, method="importance", num_rows=9)
    assert (x.passes, train.passes) == (1, 1)


@pytest.mark.parametrize("case", OTHERS)
def test_other_names_are_refused_by_everything_that_takes_rows(fitted, case):
    other, words = OTHERS[case]
    vae, calls = fitted["VAE"], []
    for model in fitted.values():
        calls += [
            lambda m=model: pv.log_evidence(m, other),
            lambda m=model: pv.log_evidence(m, {"x": other}),
        ]
        if case != "another order":  # compare matches columns by name
            calls += [lambda m=model: pv.compare({"m": m}, other, check=False)]
    calls += [
        lambda: pv.log_weights(vae, other),
        lambda: pv.elbo(vae, other),
        lambda: vae.reconstruct(other),
        lambda: pv.diagnose(vae, other),
        lambda: evidence.sandwich(vae, other),
        lambda: evidence.gaps(vae, other),
        lambda: evidence.convergence(vae, other),
        lambda: pv.fit(vae, other, epochs=1),
        lambda: pv.convert.to_arviz(vae, other),
        lambda: fitted["MCMC"].log_likelihood(other),
        lambda: pv.swap(TRAIN, 1, ["gaussian"], x_test=other, epochs=1),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="by name and in order, got ") as refused:
            call()
        assert words in str(refused.value)
    with pytest.raises(ValueError, match=r"^validation: .*by name"):
        pv.fit(pv.VAE.mlp(3, 1, "gaussian"), TRAIN, validation=other, epochs=1)
    with pytest.raises(ValueError, match=r"^x\[1\]: .*by name"):
        pv.fit(pv.VAE.mlp(3, 1, "gaussian"), [TRAIN, other], epochs=1)


def test_arrays_and_frames_without_names_are_taken_as_they_lie(fitted):
    """As in scikit-learn, only a fit to names asks for names, and only of what has names."""
    for model in fitted.values():
        expected = pv.log_evidence(model, TEST).estimate
        for rows in (TEST.to_numpy(), TEST.set_axis(range(3), axis=1)):
            np.testing.assert_array_equal(pv.log_evidence(model, rows).estimate, expected)
    unnamed = baselines.PPCA(1).fit(TRAIN.to_numpy())
    unnamed.log_evidence(TEST)
    unnamed.log_evidence(TEST[["weight", "age", "height"]])
    assert unnamed.fit(TRAIN[["weight", "age", "height"]]).names == {"x": ("weight", "age", "height")}


@pytest.mark.parametrize("columns", [list(np.array(["b", "a"])), ["b", np.str_("a")], [0, np.str_("a")]])
def test_names_that_are_strings_of_numpy_are_names(columns):
    """scikit-learn's feature names are, once they are in a list."""
    frame = pd.DataFrame(NORMAL, columns=columns)
    model = baselines.IndependentGaussian().fit(frame)
    assert model.names == {"x": tuple(map(str, columns))}
    assert all(type(name) is str for name in model.names["x"])
    with pytest.raises(ValueError, match="expected the columns that were fitted"):
        model.log_evidence(frame[columns[::-1]])


@pytest.mark.parametrize("columns", [[0, 1], [2019, 2020], [1, 0], [2.5, 1.5]])
def test_numbers_are_names_unless_they_count_the_columns(columns):
    """A frame with its columns in another order is refused by a model, and arranged by compare and imputations."""
    frame = pd.DataFrame(NORMAL * [1.0, 100.0], columns=columns)
    turned = frame[columns[::-1]]
    assert pv.frames.names(frame) == (None if columns == [0, 1] else tuple(map(str, columns)))
    assert pv.frames.names(frame[columns[0]]) is None  # as a vector beside the rows
    model = baselines.IndependentGaussian().fit(frame)
    for rows in (turned, {"x": frame, "observed": turned.notna()}):
        with pytest.raises(ValueError, match=r"in order.*, got "):
            model.log_evidence(rows)
    whole = model.log_evidence(frame).estimate
    np.testing.assert_array_equal(model.log_evidence(frame.to_numpy()).estimate, whole)
    found = pv.compare(
        {"a": model, "b": baselines.IndependentGaussian().fit(turned)}, frame, training_rows=True
    )
    np.testing.assert_allclose(found["elpd"], whole.mean(), rtol=1e-12)
    holed = frame.mask(frame.index.to_numpy()[:, None] == [0, 1])
    cells = pv.impute(model, holed, num_imputations=2).to_frame()
    assert cells["column"].tolist() == columns


def test_names_of_what_goes_with_the_rows_are_remembered():
    def model(x, covariates):
        weight = pyro.param("weight", torch.tensor([1.0, -1.0]))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + covariates @ weight, 1.0), obs=x)

    def guide(x, covariates):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 1.0))

    pair = pv.LatentVariableModel(model, guide)
    x, covariates = TRAIN["age"], TRAIN[["height", "weight"]]
    pv.fit(pair, {"x": x, "covariates": covariates}, epochs=1, compile=False)
    assert pair.names == {"x": ("age",), "covariates": ("height", "weight")}
    pv.log_weights(pair, {"x": x, "covariates": covariates}, num_samples=2)
    with pytest.raises(ValueError, match=r"^covariates: .*'weight' instead of 'height' in column 0"):
        pv.log_weights(pair, {"x": x, "covariates": TRAIN[["weight", "height"]]}, num_samples=2)
    with pytest.raises(ValueError, match=r"^x: .*'height' instead of 'age' in column 0"):
        pv.log_weights(pair, {"x": TRAIN["height"], "covariates": covariates}, num_samples=2)


def test_names_are_saved_and_loaded(fitted, tmp_path):
    for name, model in fitted.items():
        model.save(tmp_path / name)
        again = pv.load(tmp_path / name, into=model if name == "MCMC" else None)
        assert again.names == {"x": tuple(NAMES)}
        with pytest.raises(ValueError, match="by name"):
            pv.log_evidence(again, OTHERS["another order"][0])
    found = pv.swap(TRAIN, 1, ["gaussian"], epochs=1, hidden_dims=(3,), method="importance")
    assert found.models["gaussian"].names == {"x": tuple(NAMES)}


INDEXES = {
    "slice": TEST,
    "shuffled": TEST.sample(frac=1, random_state=1),
    "strings": TEST.set_index(pd.Index([f"row {i}" for i in range(20)], name="id")),
    "repeated": TEST.set_axis([7] * 20),
    "levels": TEST.set_axis(pd.MultiIndex.from_product([list("ab"), range(10)])),
}


@pytest.mark.parametrize("case", INDEXES)
def test_results_carry_the_index(fitted, case):
    rows = INDEXES[case]
    for model in fitted.values():
        few = {"num_samples": 5, "check": False} if model is fitted["VAE"] else {}
        ev = pv.log_evidence(model, rows, **few)
        assert ev.to_frame().index.equals(rows.index)
        assert ev.to_frame().index.names == rows.index.names
        np.testing.assert_array_equal(
            ev.to_frame()["estimate"], pv.log_evidence(model, rows.to_numpy(), **few).estimate
        )
    linear = pv.VAE.mlp(3, 1, "gaussian", hidden_dims=())
    for method in ("exact", "auto"):
        assert pv.log_evidence(linear, rows, method=method).index.equals(rows.index)
    bounds = evidence.sandwich(linear, rows, num_rows=5, num_temperatures=5, rows="real")
    assert bounds.to_frame().index.equals(rows.index[:5])


def test_frames_of_other_methods_carry_the_index(fitted):
    rows = INDEXES["shuffled"][:3]
    assert evidence.gaps(fitted["VAE"], rows, num_samples=100).index.equals(rows.index)
    for method in ("quadrature", "jackknife"):
        assert (
            pv.log_evidence(fitted["VAE"], rows, method=method, check=False)
            .to_frame()
            .index.equals(rows.index)
        )


def test_rows_without_an_index_are_numbered():
    frame = pv.log_evidence(baselines.PPCA(1).fit(NORMAL), NORMAL).to_frame()
    assert frame.index.equals(pd.RangeIndex(200))
    assert frame.index.name == "row"


# An offset of counts: exact scores in the order of the index.
COUNTS = pd.DataFrame(RNG.poisson(3.0, (30, 2)).astype(float), index=[f"r{i}" for i in range(30)])
OFFSET = pd.Series(RNG.normal(size=30), index=COUNTS.index)


@pytest.fixture(scope="module")
def counting():
    torch.manual_seed(0)
    return pv.VAE.mlp(2, 1, "poisson", hidden_dims=(3,), offset=True)


@pytest.mark.parametrize("kind", ["series", "frame"])
def test_what_goes_with_the_rows_is_brought_into_their_order(counting, kind):
    offset = OFFSET if kind == "series" else OFFSET.to_frame("log exposure")

    def scores(x, given):
        return pv.log_evidence(counting, {"x": x, "offset": given}, num_samples=5, check=False).estimate

    order = np.random.default_rng(3).permutation(30)
    for rows in (np.arange(30), order):
        x, here = COUNTS.iloc[rows], OFFSET.iloc[rows].to_numpy()
        expected = scores(x.to_numpy(), here)
        for given in (offset, offset.iloc[order], offset[::-1], here):
            np.testing.assert_array_equal(scores(x, given), expected)
        # by position, where the rows have no index
        np.testing.assert_array_equal(scores(x.to_numpy(), offset.iloc[rows]), expected)
    x, plain = COUNTS.reset_index(drop=True), offset.reset_index(drop=True)
    np.testing.assert_array_equal(scores(x, plain.iloc[order]), scores(COUNTS, offset))


@pytest.mark.parametrize(
    ("offset", "words"),
    [
        (OFFSET.reset_index(drop=True), "without 30 of the labels, first 'r0'"),
        (OFFSET.rename({"r3": "r99"}), "without 1 of the labels, first 'r3'"),
        (pd.concat([OFFSET, OFFSET.rename("{}x".format)]), "with 30 more labels"),
        (OFFSET[::-1].rename({"r3": "r4"}), "labels repeat"),
    ],
    ids=["positions", "another label", "more rows", "repeated"],
)
def test_an_index_that_does_not_match_is_refused(counting, offset, words):
    for call in (pv.log_weights, pv.elbo, pv.log_evidence, lambda m, x: pv.fit(m, x, epochs=1)):
        with pytest.raises(ValueError, match=r"^offset: expected the index of x") as refused:
            call(counting, {"x": COUNTS, "offset": offset})
        assert words in str(refused.value)


def test_labels_of_a_comparison_are_aligned():
    vae, ppca = pv.VAE.mlp(3, 1, "gaussian", hidden_dims=(3,)), baselines.PPCA(1).fit(TRAIN)
    labels = pd.Series(np.where(TEST["age"] > 0, "old", "young"), index=TEST.index, name="group")
    models = {"VAE": vae, "PPCA": ppca}
    expected = pv.compare(models, TEST, by=labels.to_numpy(), num_samples=5, method="importance", check=False)
    found = pv.compare(
        models,
        TEST,
        by=labels.sample(frac=1, random_state=5),
        num_samples=5,
        method="importance",
        check=False,
    )
    for label in ("old", "young"):
        for name in models:
            assert found.loc[(label, name), "elpd"] == expected.loc[(label, name), "elpd"]
    with pytest.raises(ValueError, match=r"^by: expected the index of x"):
        pv.compare(
            models, TEST, by=labels.reset_index(drop=True), num_samples=5, method="importance", check=False
        )


def test_arrow_dates_are_refused_by_name():
    pyarrow = pytest.importorskip("pyarrow")
    cells = pd.Series([1, 2], dtype=pd.ArrowDtype(pyarrow.date32()))
    with pytest.raises(TypeError, match=r"columns of numbers, got 1 other column\(s\), first 'a' \(date32"):
        baselines.FullGaussian().fit(pd.DataFrame({"a": cells, "b": [0.0, 1.0]}))


LONG = 2**53 + 1  # float64 rounds it


@pytest.mark.parametrize(
    ("whole", "floats", "place"),
    [
        (torch.tensor([[LONG]]), torch.tensor([[0.5]]), ""),
        (np.array([[LONG]]), np.array([[0.5]]), ""),
        (scipy.sparse.csr_matrix([[-LONG]]), scipy.sparse.csr_matrix([[0.5]]), ""),
        (pd.DataFrame({"a": [1], "b": [-LONG]}), pd.DataFrame({"a": [2], "b": [0.5]}), r"\['b'\]"),
    ],
    ids=["tensors", "arrays", "sparse", "frames"],
)
def test_chunks_round_no_whole_number(whole, floats, place):
    """Where other chunks have floats, long whole numbers are refused. Shorter ones become float64."""
    with pytest.raises(ValueError, match=rf"x\[1\]{place}: expected whole numbers between -2\^53 and 2\^53"):
        joined([floats, whole], "x")
    twice = joined([whole, whole], "x")
    assert int((twice.toarray() if hasattr(twice, "toarray") else np.asarray(twice))[1, -1]) in (LONG, -LONG)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("kind", ["int64", "uint64", "Int64", "float64", "Float64", "int64[pyarrow]", object])
@pytest.mark.parametrize("flag", ["bool", "boolean", "bool[pyarrow]", object])
def test_chunks_of_booleans_beside_numbers_are_zeros_and_ones(flag, kind, first):
    numbers = pd.DataFrame({"a": pd.Series([7, 3], dtype=kind), "b": ["x", None]})
    flags = pd.DataFrame({"a": pd.Series([True, False], dtype=flag), "b": [None, "y"]})
    found = joined([flags, numbers] if first else [numbers, flags], "x")["a"]
    assert [(type(value), value) for value in found.tolist()] in (
        [(number, value) for value in ([1, 0, 7, 3] if first else [7, 3, 1, 0])] for number in (int, float)
    )
    assert flags["a"].tolist() == [True, False]


def test_chunks_without_a_cell_leave_booleans_and_labels_as_they_are():
    empty = pd.DataFrame({"a": [None, None], "b": [np.nan, np.nan]})
    held = pd.DataFrame({"a": [True, False], "b": ["x", "y"]})
    found = joined([empty, held], "x")
    assert found["a"].tolist()[2:] == [True, False]
    assert found["a"].isna().tolist() == found["b"].isna().tolist() == [True, True, False, False]
    assert type(found["a"].iloc[2]) in (bool, np.bool_)


def test_chunks_of_decimals_beside_floats_are_floats():
    found = joined([pd.DataFrame({"a": [Decimal("0.1"), None]}), pd.DataFrame({"a": [0.2, 1.0]})], "x")["a"]
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, [0.1, np.nan, 0.2, 1.0])


def test_chunks_of_whole_numbers_and_of_float32_are_joined_in_float64():
    found = joined([torch.tensor([[20_000_001]]), torch.tensor([[0.5]])], "x")
    assert found.tolist() == [[20_000_001.0], [0.5]]


@pytest.mark.parametrize("labels", [[0, 1, 2], [0.0, 1.0, 2.0], list(np.arange(3.0))])
def test_numbered_columns_in_another_order_are_refused(labels):
    """pandas makes labels 0.0, 1.0, … from a pivot on a column of floats."""
    rows = pd.DataFrame(np.random.default_rng(0).normal(size=(50, 3)) * [1, 10, 100], columns=labels)
    fitted = baselines.FullGaussian().fit(rows)
    exact = fitted.log_evidence(rows.to_numpy()).estimate
    np.testing.assert_array_equal(fitted.log_evidence(rows).estimate, exact)
    moved = rows[labels[::-1]]
    with pytest.raises(ValueError, match="got '2' instead of '0' in column 0"):
        fitted.log_evidence(moved)
    with pytest.raises(ValueError, match="got '2' instead of '0' in column 0"):
        fitted.log_evidence(moved.set_axis(range(2, -1, -1), axis=1))
    mask = pd.DataFrame(np.arange(150).reshape(50, 3) > 4, columns=labels)
    with pytest.raises(ValueError, match="got '2' instead of '0' in column 0"):
        fitted.log_evidence({"x": rows, "observed": mask[labels[::-1]]})
    both = pd.DataFrame(rows.to_numpy()[:, :2], columns=[False, True])
    fitted = baselines.FullGaussian().fit(both)
    with pytest.raises(ValueError, match="got '1' instead of '0' in column 0"):
        fitted.log_evidence(both.iloc[:, ::-1])


def test_other_numbered_columns_are_refused(tmp_path):
    """Of a file without names of columns, [1, 2, 3] are other columns than [0, 1, 2], the labels of an array's frame."""
    rows = pd.DataFrame(np.random.default_rng(0).normal(size=(50, 4)) * [1, 1, 1, 30])
    first, last = (baselines.FullGaussian().fit(rows[columns]) for columns in ([0, 1, 2], [1, 2, 3]))
    array = baselines.FullGaussian().fit(rows[[0, 1, 2]].to_numpy())
    exact = array.log_evidence(rows[[0, 1, 2]].to_numpy()).estimate
    for fitted, own in ((first, [0, 1, 2]), (last, [1, 2, 3])):
        fitted.save(tmp_path / "model")
        again = pv.load(tmp_path / "model")
        for model, other in itertools.product((fitted, again), ([0, 1, 2], [1, 2, 3], [0, 2, 3])):
            if other == own:
                found = model.log_evidence(rows[other]).estimate
                np.testing.assert_array_equal(found, model.log_evidence(rows[other].to_numpy()).estimate)
                continue
            with pytest.raises(
                ValueError, match=f"by name and in order, got '{other[0]}' instead|'2' instead"
            ):
                model.log_evidence(rows[other])
            with pytest.raises(ValueError, match="by name and in order, got "):
                pv.compare({"model": model}, rows[other])
        mask = rows[own].notna()
        assert (
            fitted.log_evidence({"x": rows[own], "observed": mask}).mean
            == fitted.log_evidence(rows[own]).mean
        )
        for other in ([3, 2, 1], [0, 2, 3]):
            with pytest.raises(ValueError, match=r"observed: expected .*in order.*, got "):
                fitted.log_evidence({"x": rows[own], "observed": mask.set_axis(other, axis=1)})
    for other in ([0, 1, 2], [3, 4, 5], list("abc")):  # an array's columns may have any labels
        np.testing.assert_array_equal(
            array.log_evidence(rows[[0, 1, 2]].set_axis(other, axis=1)).estimate, exact
        )
    named = rows[[0, 1, 2]].set_axis(list("abc"), axis=1)
    np.testing.assert_array_equal(first.log_evidence(named).estimate, exact)
    vae = pv.VAE.mlp(3, 1, "gaussian", (2,))
    pv.fit(vae, [rows[[0, 1, 2]][:25], rows[[0, 1, 2]][25:]], epochs=1, compile=False)
    with pytest.raises(ValueError, match="got '1' instead of '0' in column 0"):
        pv.elbo(vae, rows[[1, 2, 3]])
    with pytest.raises(ValueError, match=r"^x_test: .*got '1' instead of '0' in column 0"):
        pv.swap(rows[[0, 1, 2]], 1, ["gaussian"], x_test=rows[[1, 2, 3]])


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16]
)
def test_chunks_of_narrow_whole_numbers_and_floats_are_joined(dtype):
    found = joined(
        [torch.arange(1, 100)[:, None].to(dtype), torch.full((1, 1), 0.5, dtype=torch.float64)], "x"
    )
    assert found.tolist() == [*[[float(i)] for i in range(1, 100)], [0.5]]


@pytest.mark.parametrize(
    "column",
    [
        pd.arrays.SparseArray([LONG, LONG + 2, LONG + 4], fill_value=0),
        pd.array([LONG, LONG + 2, LONG + 4], dtype="Int64"),
        pd.array([LONG, LONG + 2, LONG + 4], dtype="uint64"),
    ],
    ids=["sparse", "nullable", "unsigned"],
)
def test_long_whole_numbers_in_any_column_are_refused(column):
    with pytest.raises(ValueError, match=r"x\['a'\]: expected whole numbers that torch.float64 holds"):
        baselines.IndependentGaussian().fit(pd.DataFrame({"a": column}))


@pytest.mark.parametrize(
    "x",
    [
        np.array([[2**64 - 1, 2], [3, 4], [6, 8]], dtype=np.uint64),
        scipy.sparse.csr_array(np.array([[2**64 - 1, 2], [3, 4], [6, 8]], dtype=np.uint64)),
        np.array([[np.longdouble("1e400"), 2], [3, 4], [6, 8]], dtype=np.longdouble),
        np.array([["a", 2], [3, 4], [6, 8]], dtype=object).astype(object),
        torch.tensor([[65535, 2], [3, 4], [6, 8]], dtype=torch.uint16),
        torch.tensor([[2**31, 2], [3, 4], [6, 8]], dtype=torch.int64).to(torch.uint64),
    ],
    ids=["uint64", "sparse", "long double", "objects", "torch.uint16", "torch.uint64"],
)
def test_a_mask_hides_whatever_an_array_holds(x):
    observed = np.array([[False, True], [True, True], [True, True]])
    fitted = baselines.FullGaussian().fit(np.random.default_rng(0).normal(5, 2, (30, 2)))
    if x.dtype == object:
        with pytest.raises(TypeError, match="real numbers"):
            fitted.log_evidence({"x": x, "observed": observed})
        return
    exact = fitted.log_evidence(np.array([[np.nan, 2.0], [3, 4], [6, 8]])).estimate
    np.testing.assert_array_equal(fitted.log_evidence({"x": x, "observed": observed}).estimate, exact)


OBJECTS = {
    "array": lambda mask: mask.astype(object),
    "frame": lambda mask: pd.DataFrame(mask.astype(object)),
    "one column": lambda mask: pd.DataFrame(mask).astype({1: object}),
    "NumPy's": lambda mask: pd.DataFrame(
        {n: [np.bool_(v) for v in mask[:, n]] for n in range(3)}, dtype=object
    ),
    "nullable": lambda mask: pd.DataFrame(mask).astype({1: "boolean", 2: object}),
}


@pytest.mark.parametrize("kind", OBJECTS)
def test_masks_of_objects_that_are_booleans_are_masks(kind):
    """pandas makes columns of objects where it joins or reindexes booleans."""
    mask = np.random.default_rng(0).random((50, 3)) < 0.8
    rows = pd.DataFrame(np.random.default_rng(1).normal(size=(50, 3)))
    table = pv.VAE.for_table(rows, 1, hidden_dims=(2,), families=dict.fromkeys(range(3), "gaussian"))
    objects = OBJECTS[kind](mask)
    for model in (baselines.FullGaussian().fit(rows), table):
        found, expected = (
            pv.log_evidence(
                model,
                {"x": rows, "observed": each},
                **({"num_samples": 5, "check": False} if model is table else {}),
            )
            for each in (objects, mask)
        )
        np.testing.assert_array_equal(found.estimate, expected.estimate)
        for odd in (1, None, "yes", np.nan):
            other = pd.DataFrame(objects).astype(object)
            other.iloc[7, 2] = odd
            for wrong in (other, other.to_numpy()):
                with pytest.raises(
                    ValueError, match=r"observed: expected booleans of the shape .* at row 7, column 2"
                ):
                    pv.log_evidence(model, {"x": rows, "observed": wrong})


@pytest.mark.parametrize("nothing", [None, np.nan, pd.NA])
def test_a_column_without_a_cell_is_one_of_missing_cells(nothing):
    fitted = baselines.FullGaussian().fit(np.random.default_rng(0).normal(5, 2, (30, 2)))
    x = pd.DataFrame({"a": pd.Series([nothing, nothing], dtype=object), "b": [1.0, 2.0]})
    exact = fitted.log_evidence(np.array([[np.nan, 1.0], [np.nan, 2.0]])).estimate
    np.testing.assert_array_equal(fitted.log_evidence(x).estimate, exact)


def test_rows_in_float64_of_a_model_without_parameters_are_simulated():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z[..., None].expand(*z.shape, 3), 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.sum(1) / 4, 0.55))

    found = pv.log_evidence(
        pv.LatentVariableModel(model, guide), torch.randn(20, 3, dtype=torch.float64), num_samples=500
    )
    assert set(found.verdict) == {"trust"}


@pytest.mark.parametrize(
    ("value", "beyond"),
    [
        (2**53, False), (-(2**53) - 1, True), (True, False), (1e300, False), (Decimal("1e400"), True),
        (Decimal(2**53 + 1), True), (Decimal(2) ** 60, False), (Decimal("NaN"), False), (Decimal("sNaN"), False),
        ("9007199254740993", True), ("snan", False), ("a", False), (None, False), (Fraction(2**54 + 1, 1), True),
        (np.longdouble(2) ** 53 + 1, True), (complex(1e30), False),
    ],
)  # fmt: skip
def test_which_objects_float64_may_not_hold(value, beyond):
    assert rounding.beyond_whole(np.array([value, 0], dtype=object)).tolist() == [beyond, False]


@pytest.mark.parametrize("values", [[0.5, 0.0, 1.0], [True, False, True]])
def test_sparse_columns_of_floats_and_booleans_lose_nothing(values):
    assert not rounding.beyond_whole(pd.Series(pd.arrays.SparseArray(values))).any()


#: Masks in frames whose columns may be those of rows without names: of a model of a, b, c, and of one without names.
MASKS = {
    "in order": (lambda mask: mask, True, False),
    "in another order": (lambda mask: mask[["b", "a", "c"]], False, False),
    "numbered": (lambda mask: mask.set_axis([0, 1, 2], axis=1), True, True),
    "numbered in another order": (lambda mask: mask.set_axis([1, 0, 2], axis=1), False, False),
    "of other names": (lambda mask: mask.set_axis(["b", "c", "d"], axis=1), False, False),
}


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("names", [["a", "b", "c"], None])
@pytest.mark.parametrize("model", ["baseline", "VAE"])
def test_masks_in_frames_beside_arrays_have_the_fitted_names(model, names, kind):
    """Before, they were taken by position, and other cells were scored."""
    rows = np.random.default_rng(0).normal(size=(40, 3)) * [1, 5, 25]
    mask = pd.DataFrame(np.random.default_rng(1).random((40, 3)) < 0.7, columns=["a", "b", "c"])
    fitted = pd.DataFrame(rows, columns=names) if names else rows
    if model == "baseline":
        found = baselines.FullGaussian().fit(fitted)
        score = lambda x: found.log_evidence(x).estimate  # noqa: E731
    else:
        found = pv.VAE.mlp(3, 1, "gaussian", hidden_dims=(2,), missing=True, standardize=True)
        pv.fit(found, fitted, epochs=1)
        score = lambda x: pv.elbo(found, x, num_samples=2).estimate  # noqa: E731
    change, with_names, without_names = MASKS[kind]
    x = {"x": rows, "observed": change(mask)}
    if with_names if names else without_names:
        expected = score({"x": rows, "observed": mask.to_numpy()})
        np.testing.assert_array_equal(score(x), expected)
    else:
        with pytest.raises(ValueError, match=r"observed: expected (the )?columns .*names, got '"):
            score(x)
    if kind == "in another order":
        with pytest.raises(ValueError, match="observed: expected columns 0, 1, … in order"):
            baselines.FullGaussian().fit(x)
