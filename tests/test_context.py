"""What goes with the rows: offsets and other keywords, and numbers that are no likelihoods because of them."""

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from rates import SEED, Z
from scipy import stats

import pyrovae as pv
from pyrovae import likelihoods
from pyrovae.rows import as_batch

COUNTS = ["poisson", "negative_binomial", "zero_inflated_negative_binomial"]


def counts(num_rows=40, columns=3, seed=SEED):
    """Counts of rows that were looked at for different times; and the logarithms of these times."""
    generator = np.random.default_rng(seed)
    exposure = generator.uniform(0.1, 10, num_rows)
    rate = exposure[:, None] * generator.gamma(1.0, 1.0, (num_rows, columns))
    return {"x": generator.poisson(rate).astype(np.float32), "offset": np.log(exposure)}


@pytest.mark.parametrize("name", COUNTS)
def test_an_offset_multiplies_the_means(name):
    torch.manual_seed(0)
    family = likelihoods.REGISTRY[name]
    kinds = family.outputs_per_dimension()
    network = pv.MLP(2, (4,), kinds * 3)
    plain, exposed = family(network), family(network, offset=True)
    z = torch.randn(5, 4, 2)  # (samples, rows, latent_dim)
    offset = torch.tensor([0.0, 1.0, -2.0, 3.0])
    expected = plain(z).mean * offset.exp()[:, None]
    torch.testing.assert_close(exposed(z, offset=offset).mean, expected, rtol=1e-4, atol=1e-5)
    zero = exposed(z, offset=torch.zeros(4))
    assert torch.equal(zero.log_prob(torch.ones(4, 3)), plain(z).log_prob(torch.ones(4, 3)))


@pytest.mark.statistical
@pytest.mark.parametrize("method", ["importance", "refined", "auto"])
def test_log_evidence_of_poisson_rows_with_offsets_against_a_grid(method):
    torch.manual_seed(0)
    vae = pv.VAE.mlp(3, 1, "poisson", hidden_dims=(4,), offset=True, standardize=True).double()
    data = counts()
    vae.encoder.standardize.learn(torch.from_numpy(data["x"]))
    with torch.no_grad():  # an encoder that sees little of x is near the prior, and wide enough
        vae.encoder.network.layers[0].weight.mul_(1e-3)
    rows = {name: value[:10] for name, value in data.items()}
    ev = pv.log_evidence(vae, rows, method=method, seed=SEED, check=False)
    assert list(ev.given) == ["offset"]
    assert "given offset" in ev.summary()
    assert ev.measure == ("mass",) * 3
    z = np.linspace(-9, 9, 4001)
    with torch.no_grad():
        log_rate = vae.likelihood.network(torch.tensor(z)[:, None]).numpy()  # (grid, columns)
    for n in range(10):
        log_pmf = stats.poisson.logpmf(rows["x"][n], np.exp(log_rate + rows["offset"][n])).sum(-1)
        truth = np.log(np.exp(log_pmf + stats.norm.logpdf(z)).sum() * (z[1] - z[0]))
        assert abs(ev.estimate[n] - truth) <= Z * ev.mcse[n] - ev.bias[n] + 1e-6


def test_training_starts_at_the_rates_per_exposure():
    data = counts(2000)
    for name in COUNTS:
        family = likelihoods.REGISTRY[name]
        likelihood = family(pv.MLP(1, (), family.outputs_per_dimension() * 3), offset=True)
        with torch.no_grad():
            likelihood.network.layers[-1].weight.zero_()
        likelihood.start_from(data)
        mean = likelihood(torch.zeros(1, 1), offset=torch.zeros(1)).mean[0]
        rate = (data["x"] / np.exp(data["offset"])[:, None]).mean(0)
        np.testing.assert_allclose(mean.detach(), rate, rtol=0.06)
        with pytest.raises(ValueError, match="expected an offset for every row"):
            likelihood.start_from(data["x"])


def test_samples_and_reconstructions_take_the_offset():
    vae = pv.VAE.mlp(3, 1, "poisson", hidden_dims=(4,), offset=True)
    many = vae.sample(2000, seed=SEED, offset=torch.full((2000,), 5.0)).mean()
    assert many > 20 * vae.sample(2000, seed=SEED, offset=torch.zeros(2000)).mean()
    assert vae.reconstruct(counts()).shape == (40, 3)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (
            counts()["x"],
            "x: expected an offset for every row, because this Poisson has offset=True, got none",
        ),
        ({"offset": np.ones(3)}, "x: expected a dict with the rows under \"x\", got one with 'offset'"),
        ({**counts(), "offset": np.ones(7)}, "offset: expected as many rows as x has, 40, got 7"),
        ({**counts(), "offset": np.full(40, np.nan)}, "offset: expected finite numbers, got 40 that are NaN"),
        ({"x": counts()["x"], "depth": np.ones(40)}, "x: expected names beside 'x' that the model takes"),
        ({**counts(), 3: np.ones(40)}, "x: expected names that model and guide can take, got 3"),
        ({**counts(), "offset": torch.tensor(1)}, "offset: expected an entry for every row"),
    ],
)
def test_refused(x, message):
    vae = pv.VAE.mlp(3, 1, "poisson", hidden_dims=(4,), offset=True)
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    for call in (pv.fit, pv.log_evidence, pv.elbo):
        with pytest.raises(ValueError, match=message):
            call(vae, x)
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())


def test_an_offset_that_nothing_takes_is_refused():
    vae = pv.VAE.mlp(3, 1, "poisson", hidden_dims=(4,))
    with pytest.raises(ValueError, match="offset: expected none: this Poisson takes no offset"):
        pv.log_evidence(vae, counts(), check=False)


TOTALS = {
    "log": torch.log,
    "log1p": torch.log1p,
    "log10 of the share": lambda total: torch.log10(total / total.median()),
    "itself": lambda total: 0.01 * total,
    "square root": torch.sqrt,
}


@pytest.mark.parametrize("form", TOTALS)
@pytest.mark.parametrize("num_rows", [40, 6])
def test_an_offset_computed_from_the_scored_columns_makes_a_pseudo_likelihood(form, num_rows):
    """A library size taken from the scored row sums to 16, not 1 (PITFALLS)."""
    x = torch.from_numpy(counts(num_rows)["x"]) + 1
    vae = pv.VAE.mlp(3, 1, "poisson", hidden_dims=(4,), offset=True)
    ev = pv.log_evidence(vae, {"x": x, "offset": TOTALS[form](x.sum(1))}, num_samples=20, check=False)
    assert set(ev.measure) == {"pseudo-likelihood"}
    assert "pseudo-likelihood" in ev.summary()
    with pytest.raises(ValueError, match=r"are pseudo-likelihood.*computed from"):
        pv.compare({"a": ev})


COLUMNS = {
    "a column": lambda x: x[:, 1],
    "some columns' total": lambda x: x[:, :2].sum(1).log(),
    "mean of logarithms": lambda x: x.log1p().mean(1),
}


@pytest.mark.parametrize("form", COLUMNS)
def test_so_does_a_function_of_the_columns(form):
    x = torch.from_numpy(counts()["x"]) + 1
    vae = pv.VAE.mlp(3, 1, "poisson", hidden_dims=(4,), offset=True)
    ev = pv.log_evidence(vae, {"x": x, "offset": COLUMNS[form](x)}, num_samples=20, check=False)
    assert set(ev.measure) == {"pseudo-likelihood"}


@pytest.mark.parametrize(
    "batch",
    [
        {"x": torch.zeros(1, 3), "offset": torch.zeros(1)},
        {"x": (torch.rand(5, 784) < 0.5).float(), "label": torch.tensor([0, 1, 1, 0, 1])},
        {"x": (torch.rand(8, 9) < 0.5).float(), "mask": torch.arange(8) % 2 == 0},
        {"x": torch.rand(60, 3), "depth": torch.rand(60)},
    ],
)
def test_few_rows_labels_and_masks_accuse_nobody(batch):
    assert not pv.pair.context.computed_from_rows(batch)


@pytest.mark.parametrize(
    "offset", [np.zeros(40), counts()["offset"], np.random.default_rng(0).normal(size=40)]
)
def test_an_offset_from_elsewhere_does_not(offset):
    vae = pv.VAE.mlp(3, 1, "poisson", hidden_dims=(4,), offset=True)
    ev = pv.log_evidence(vae, {"x": counts()["x"], "offset": offset}, num_samples=20, check=False)
    assert set(ev.measure) == {"mass"}


def test_a_pair_of_one_s_own_takes_keywords_labels_and_masks():
    """Whole numbers and booleans keep their type; model and guide are called alike, as in Pyro."""
    table = torch.nn.Parameter(torch.tensor([-2.0, 2.0]))
    seen = set()

    def model(x, label, mask):
        seen.add((label.dtype, mask.dtype))
        pyro.param("table", table)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(table[label], 1.0))
            with pyro.poutine.mask(mask=mask):
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x, label, mask):
        with pyro.plate("data", len(x)):
            loc = torch.where(mask, (table[label] + x) / 2, table[label])
            pyro.sample("z", dist.Normal(loc, torch.where(mask, 0.5**0.5, 1.0)))

    x, label = torch.randn(30), torch.arange(30) % 2
    mask = torch.arange(30) % 3 > 0
    pair = pv.LatentVariableModel(model, guide)
    ev = pv.log_evidence(pair, {"x": x, "label": label.numpy(), "mask": mask}, num_samples=10, check=False)
    assert seen == {(torch.int64, torch.bool)}
    truth = dist.Normal(table[label], 2**0.5).log_prob(x) * mask  # a row that is hidden adds nothing
    np.testing.assert_allclose(ev.estimate, truth.detach(), atol=1e-5)
    assert list(ev.given) == ["label", "mask"]


def _shifted(x, t):
    weight = pyro.param("weight", torch.ones(2))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal((z + t)[..., None] * weight, 1.0).to_event(1), obs=x)


def _of_shifted(x, t):
    with pyro.plate("rows", len(x)):
        pyro.sample("z", dist.Normal((x.sum(1) - 2 * t) / 3, 0.6))


@pytest.mark.parametrize(
    ("names", "came"),
    [("x", "got nothing beside .*missing.*'t'"), ("xtu", "got 't', 'u' beside .*unexpected.*'u'")],
)
def test_validation_rows_have_the_same_beside_them(names, came):
    def rows(names):
        return {name: torch.randn(9, 2) if name == "x" else torch.randn(9) for name in names}

    with pytest.raises(
        ValueError, match=rf"^validation: expected rows with 't' beside them, as in x, {came}.*'t': …"
    ):
        pv.fit(pv.LatentVariableModel(_shifted, _of_shifted), rows("xt"), epochs=1, validation=rows(names))


def test_validation_rows_may_lack_what_has_a_default():
    def model(x, t=None):
        _shifted(x, torch.zeros(len(x)) if t is None else t)

    def guide(x, t=None):
        _of_shifted(x, torch.zeros(len(x)) if t is None else t)

    rows = {"x": torch.randn(9, 2), "t": torch.randn(9)}
    history = pv.fit(pv.LatentVariableModel(model, guide), rows, epochs=1, validation=torch.randn(9, 2))
    assert np.isfinite(history.frame["validation_elbo"]).all()


def test_rows_in_a_frame_with_a_series_beside_them():
    data = counts()
    vae = pv.VAE.mlp(3, 1, "poisson", hidden_dims=(4,), offset=True)
    frames = {"x": pd.DataFrame(data["x"]), "offset": pd.Series(data["offset"])}
    ev, same = (pv.log_evidence(vae, x, num_samples=20, check=False) for x in (frames, data))
    np.testing.assert_array_equal(ev.estimate, same.estimate)


LABELS = np.arange(12) % 3
WHOLE = {
    "series": (pd.Series(LABELS), np.int64),
    "small": (pd.Series(LABELS, dtype="int8"), np.int8),
    "unsigned": (pd.Series(LABELS, dtype="uint16"), np.int32),
    "nullable": (pd.Series(LABELS, dtype="Int64"), np.int64),
    "category codes": (pd.Series(LABELS.astype(str)).astype("category").cat.codes, np.int8),
    "booleans": (pd.Series(LABELS > 0), np.bool_),
    "nullable booleans": (pd.Series(LABELS > 0, dtype="boolean"), np.bool_),
    "frame": (pd.DataFrame({"a": LABELS, "b": LABELS}), np.int64),
    "nullable frame": (pd.DataFrame({"a": LABELS}, dtype="Int32"), np.int32),
    "frame of two types": (pd.DataFrame({"a": LABELS.astype("int8"), "b": LABELS > 0}), np.int8),
    "sparse": (pd.Series(pd.arrays.SparseArray(LABELS)), np.int64),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_whole_numbers_in_frames_and_series_keep_their_type(kind):
    value, dtype = WHOLE[kind]
    x = pd.DataFrame({"v": np.linspace(0, 1, 12)}, index=value.index)
    shuffled = value.sample(frac=1, random_state=0)
    for given in (value, shuffled):
        found = as_batch({"x": x, "label": given}, dtype=torch.float32)["label"].numpy()
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, value.to_numpy().astype(dtype))


@pytest.mark.parametrize("value", [pd.DataFrame({"a": LABELS, "b": LABELS / 2}), pd.Series(LABELS / 2)])
def test_real_numbers_in_frames_and_series_are_cast(value):
    found = as_batch({"x": torch.ones(12, 1), "label": value}, dtype=torch.float32)["label"]
    assert found.dtype == torch.float32


def test_missing_labels_are_refused():
    label = pd.DataFrame({"label": pd.array([*LABELS[:-1], None], dtype="Int64")})
    with pytest.raises(ValueError, match=r"label: expected finite numbers, got 1 .* at row 11"):
        as_batch({"x": torch.ones(12, 1), "label": label}, dtype=torch.float32)


@pytest.mark.statistical
def test_swap_gives_offsets_to_those_that_take_them(unchecked):
    """Rates that differ by exposure alone: who is told it needs no latent to find it."""
    generator = np.random.default_rng(SEED)
    exposure = generator.uniform(0.1, 10, 600)
    x = generator.poisson(5 * exposure[:, None], (600, 3)).astype(np.float32)
    data = {"x": x, "offset": np.log(exposure)}
    families = ["poisson", ("poisson", {"offset": True})]
    found = pv.swap(data, 1, families, epochs=8, hidden_dims=(16,))
    assert list(found.masses.index) == ["poisson(offset=True)", "poisson"]
    assert found.masses.loc["poisson", "elpd_diff"] < -Z * found.masses.loc["poisson", "dse"]


def test_the_sandwich_simulates_rows_under_their_own_offsets():
    torch.manual_seed(0)
    vae = pv.VAE.mlp(3, 1, "poisson", hidden_dims=(4,), offset=True)
    found = pv.evidence.sandwich(vae, counts(), num_rows=8, num_temperatures=20, seed=SEED)
    assert found.gap.shape == (8,)
