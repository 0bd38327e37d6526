"""log P(x) of columns in extreme units: right to rounding, or refused by name.

A column divided by c has log P higher by log c for each of its cells. Units are powers of two here, so that rows in other
units have the same digits, and a fit takes the same steps.
"""

import inspect

import numpy as np
import pandas as pd
import pytest
import torch
from torch.distributions import constraints

import pyrovae as pv
from pyrovae import baselines, evidence, likelihoods
from pyrovae.baselines.base import REGISTRY, ClosedForm
from pyrovae.likelihoods.real import LocationScale
from pyrovae.sklearn import BaselineDensity, VAEDensity

#: Powers of two near 1e-100 and 1e150; columns in one of them stand beside columns in its inverse.
UNITS = [2.0**power for power in (-332, 498)]
CLOSED = [cls for cls in REGISTRY.values() if issubclass(cls, ClosedForm) and cls.support is constraints.real]
REAL = [name for name, cls in likelihoods.REGISTRY.items() if issubclass(cls, LocationScale)]
#: A value for each constructor argument that has no default.
ARGUMENTS = {"latent_dim": 1, "num_components": 2}
GENERATOR = torch.Generator().manual_seed(0)
Z = torch.randn(40, 1, generator=GENERATOR, dtype=torch.float64)
ROWS = Z * torch.tensor([1.0, -2.0, 0.5]) + torch.randn(40, 3, generator=GENERATOR, dtype=torch.float64) + 1.0
HOLED = ROWS.masked_fill(torch.rand(40, 3, generator=GENERATOR) < 0.1, torch.nan)


def columns_in(unit):
    return torch.tensor([unit, 1 / unit, 1.0], dtype=torch.float64)


def in_units(cls, unit):
    """A new baseline and the unit of each column that leave its model the same, up to the units."""
    needed = [
        name for name, p in inspect.signature(cls).parameters.items() if p.default is inspect.Parameter.empty
    ]
    options = {name: ARGUMENTS[name] for name in needed}
    units = columns_in(unit)
    if cls is baselines.PPCA:  # its noise is the same in all columns
        units = torch.full_like(units, unit)
    if cls is baselines.BayesianLinearRegression:  # it scores the last column
        units, options = torch.tensor([1.0, 1.0, unit], dtype=torch.float64), {"beta": unit**2}
    if cls is baselines.NormalInverseGamma:
        options = {"beta": (units**2).tolist()}
    return cls(**options), units


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("cls", CLOSED)
def test_exact_log_p_in_extreme_units(cls, unit):
    for x in [ROWS, HOLED] if cls.takes_missing else [ROWS]:
        plain, other = in_units(cls, 1.0)[0], in_units(cls, unit)
        expected = plain.fit(x).log_evidence(x).estimate
        found = other[0].fit(x * other[1]).log_evidence(x * other[1]).estimate
        moved = (other[1].log() * ~x.isnan()).sum(dim=1).numpy()
        np.testing.assert_allclose(found + moved, expected, rtol=0, atol=1e-9)


@pytest.fixture(scope="module")
def fitted():
    """Return fitted VAEs by family, dtype and unit, made when they are first asked for."""
    made = {}

    def get(family, dtype, unit):
        if (family, dtype, unit) not in made:
            x = (ROWS.exp() if family == "log_normal" else ROWS) * columns_in(unit)
            torch.manual_seed(0)
            vae = pv.VAE.mlp(3, 1, family, (), scale="per_dimension", standardize=True).to(dtype)
            pv.fit(vae, x.to(dtype), epochs=5, lr=0.1, batch_size=20, compile=False)  # scales shrink
            made[family, dtype, unit] = vae, x[:4].to(dtype)
        return made[family, dtype, unit]

    return get


@pytest.mark.parametrize(
    ("dtype", "units"),
    [(torch.float64, (2.0**498,)), (torch.float32, (2.0**50,))],
    ids=["float64", "float32"],
)
@pytest.mark.parametrize("family", REAL)
def test_vaes_of_real_columns_in_extreme_units(fitted, family, dtype, units):
    def score(unit):
        vae, x = fitted(family, dtype, unit)
        return pv.log_evidence(vae, x, num_samples=20, check=False, compile=False).estimate

    atol = 1e-9 if dtype is torch.float64 else 1e-3
    for unit in units:
        np.testing.assert_allclose(score(unit), score(1.0), rtol=0, atol=atol)


@pytest.mark.parametrize("method", evidence.METHODS)
def test_every_method_in_extreme_units(fitted, method):
    few = {"num_samples": 100} if method in ("importance", "jackknife", "refined", "annealed") else {}
    few |= {"num_temperatures": 4} if method == "annealed" else {}
    few |= {} if method == "exact" else {"check": False}

    def score(unit):
        vae, x = fitted("gaussian", torch.float64, unit)
        return pv.log_evidence(vae, x, method=method, **few).estimate

    np.testing.assert_allclose(score(2.0**498), score(1.0), rtol=0, atol=1e-7)


def test_families_and_tables_in_extreme_units():
    """Floats above 2^53 are whole, and yet no counts. The networks of a table are in float32."""
    z = Z.numpy()[:, 0]
    columns = {"real": z + 3, "positive": np.exp(z), "word": np.where(z > 0, "up", "down")}

    def found(unit):
        df = pd.DataFrame(columns).assign(real=columns["real"] * unit, positive=columns["positive"] / unit)
        torch.manual_seed(0)
        vae = pv.VAE.for_table(df, 1, hidden_dims=(4,))
        pv.fit(vae, df, epochs=1, compile=False)
        score = pv.log_evidence(vae, df, num_samples=20, check=False, compile=False).estimate
        return [column.family for column in vae.table.columns], score

    families, expected = found(1.0)
    assert families == ["gaussian", "log_normal", "bernoulli"]
    for unit in (2.0**100, 2.0**-100):
        again, score = found(unit)
        assert again == families
        np.testing.assert_allclose(score, expected, rtol=0, atol=1e-5)
    for unit in UNITS:
        names = pv.likelihoods.suggest((columns["real"] * unit)[:, None])["family"]
        assert names.iloc[0] == "gaussian"


def test_an_estimator_in_extreme_units():
    def score(unit):
        x = (HOLED * columns_in(unit)).numpy()
        made = VAEDensity(latent_dim=1, hidden_dims=(), epochs=1, random_state=0, method="exact").fit(x)
        return made.score_samples(x) + (np.log(columns_in(unit).numpy()) * ~np.isnan(x)).sum(axis=1)

    for unit in UNITS:
        np.testing.assert_allclose(score(unit), score(1.0), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["gaussian", "laplace", "student_t", "log_normal", "gamma"])
def test_training_starts_from_the_marginals_in_any_unit(name):
    x = (ROWS.exp() if likelihoods.REGISTRY[name].takes == "positive" else ROWS).numpy()
    option = likelihoods.REGISTRY[name].spread_name

    def start(unit):
        torch.manual_seed(0)
        vae = pv.VAE.mlp(3, 1, name, (), **{option: "per_dimension"}).double()
        torch.nn.init.zeros_(vae.likelihood.network.layers[-1].weight)
        vae.likelihood.start_from(x * unit)
        z = torch.zeros(1, 1, dtype=torch.float64)
        return vae.likelihood(z).log_prob(torch.from_numpy(x * unit)).detach().numpy() + 3 * np.log(unit)

    for unit in (2.0**30, 2.0**-30, 2.0**332, 2.0**-332):
        np.testing.assert_allclose(start(unit), start(1.0), rtol=1e-12)


FITS = {
    **{cls.__name__: lambda x, cls=cls: in_units(cls, 1.0)[0].fit(x) for cls in CLOSED},
    "BayesianPCA": lambda x: baselines.BayesianPCA(1, num_samples=100, warmup_steps=10).fit(x),
    "VAE": lambda x: pv.fit(pv.VAE.mlp(3, 1, "gaussian", (), standardize=True).double(), x, epochs=1),
    "VAE, counts": lambda x: pv.fit(
        pv.VAE.mlp(3, 1, "gamma", (), standardize=True).double(), x.abs(), epochs=1
    ),
    "VAEDensity": lambda x: VAEDensity(latent_dim=1, epochs=1).fit(x),
    "BaselineDensity": lambda x: BaselineDensity("ppca", {"latent_dim": 1}).fit(x),
    "for_table": lambda x: pv.VAE.for_table(x, latent_dim=1),
}


@pytest.mark.parametrize("power", [160, -160, -300])
@pytest.mark.parametrize("name", FITS)
def test_units_without_squares_are_refused_by_name(name, power):
    x = pd.DataFrame(ROWS.numpy() * [1.0, 10.0**power, 1.0], columns=["a", "b", "c"])
    with pytest.raises(ValueError, match=r"'b'.*(range|value|numbers up to).*Divide"):
        FITS[name](x)


@pytest.mark.parametrize("power", [18, -18, 30, -30])
def test_float32_has_a_smaller_range(power):
    x = (ROWS * 10.0**power).float()
    with pytest.raises(ValueError, match=r"squares float32 can.*3 column\(s\) outside.*call \.double\(\)"):
        pv.fit(pv.VAE.mlp(3, 1, "gaussian", (), standardize=True), x, epochs=1)


@pytest.mark.parametrize("cls", CLOSED)
def test_a_row_too_far_to_score_is_refused(cls):
    fitted = in_units(cls, 1.0)[0].fit(ROWS)
    for far in (1e160, 1e300):
        x = ROWS[:3].clone()
        x[1, 2] = far
        with pytest.raises(ValueError, match="column 2 with a value of"):
            fitted.log_evidence(x)
    one = ROWS[:1] + 1e-200  # a single row has no range
    assert np.isfinite(fitted.log_evidence(one).estimate).all()


def test_log_p_below_the_least_float_is_refused():
    narrow = baselines.IndependentGaussian().fit(ROWS * 1e-100)
    with pytest.raises(ValueError, match=r"log P\(x\) is above -1e308, got 40 below it, first row 0"):
        narrow.log_evidence(ROWS * 1e100)


def test_a_large_offset_changes_nothing_or_is_refused():
    """float32 has no digits for a spread of 1 there; rows in float64 keep theirs under a model in float32."""
    offset = 1e9
    x = (ROWS + offset).numpy()
    for cls in (baselines.IndependentGaussian, baselines.FullGaussian):
        plain, moved = (in_units(cls, 1.0)[0] for _ in range(2))
        moved, plain = moved.fit(x).log_evidence(x).mean, plain.fit(x - offset).log_evidence(x - offset).mean
        assert moved == pytest.approx(plain, abs=1e-6)

    def score(x):
        torch.manual_seed(0)
        vae = pv.VAE.mlp(3, 1, "gaussian", (), standardize=True)
        pv.fit(vae, x, epochs=1, compile=False)
        return pv.log_evidence(vae, x, num_samples=20, check=False, compile=False).mean

    assert score(x) == pytest.approx(score(x - offset), abs=1e-3)
    with pytest.raises(ValueError, match="columns that vary"):
        score(torch.from_numpy(x).float())


def test_ppca_names_units_where_one_column_dwarfs_the_others():
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with pytest.raises(ValueError, match=r"a largest variance of .* Bring the columns to like units"):
        baselines.PPCA(1).fit(x * torch.tensor([1.0, 1e7, 1.0]))
