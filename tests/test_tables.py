"""Tables: log P of mixed rows as one mass, frames to codes and back, what is refused by name, and saved tables."""

import datetime as dt
import itertools
import math
import re
import warnings
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow
import pytest
import torch
from pyro.infer import Trace_ELBO
from scipy import stats
from torch import nn

import pyrovae as pv
from pyrovae import baselines, distributions, supports
from pyrovae.likelihoods.base import of_observed
from pyrovae.likelihoods.mixed import Mixed
from pyrovae.networks import Features
from pyrovae.registry import rebuild
from pyrovae.tables import Table, doubts

RNG = np.random.default_rng(0)
N = 60
GRADES = pd.CategoricalDtype(["low", "mid", "high"], ordered=True)


def frame(n=N):
    """A column of every sort, in different dtypes."""
    return pd.DataFrame(
        {
            "real": RNG.normal(5, 2, n).astype("float32"),
            "dose": RNG.lognormal(0, 1, n),
            "visits": RNG.negative_binomial(2, 0.3, n),
            "calls": pd.array(RNG.negative_binomial(2, 0.3, n), dtype="Int64"),
            "year": RNG.integers(1990, 2020, n),
            "height": np.round(RNG.normal(1.7, 0.1, n), 2),
            "flag": RNG.random(n) < 0.5,
            "known": pd.array(RNG.random(n) < 0.5, dtype="boolean"),
            "coded": RNG.integers(1, 3, n),
            "job": RNG.choice(["cook", "nurse", "smith"], n),
            "town": pd.array(RNG.choice(["A", "B", "C"], n), dtype="string"),
            "kind": pd.Series(RNG.choice(["x", "y", "z"], n), dtype=object),
            "group": pd.Categorical(RNG.choice(["r", "s", "t"], n), categories=["t", "s", "r", "never"]),
            "grade": pd.Series(RNG.choice(GRADES.categories, n)).astype(GRADES),
        }
    )


FAMILIES = {
    "real": "gaussian",
    "dose": "log_normal",
    "visits": "negative_binomial",
    "calls": "negative_binomial",
    "year": "rounded_gaussian",
    "height": "rounded_gaussian",
    "flag": "bernoulli",
    "known": "bernoulli",
    "coded": "bernoulli",
    "job": "categorical",
    "town": "categorical",
    "kind": "categorical",
    "group": "categorical",
    "grade": "ordinal",
}
GIVEN = {"real": "gaussian", "dose": "log_normal", "height": "gaussian", "visits": "negative_binomial"}
FRAME = frame()


def holed(df, share=0.2):
    """The frame with missing cells; integers become floats, booleans objects, as in pandas."""
    return df.mask(RNG.random(df.shape) < share)


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    given = {**GIVEN, "calls": "negative_binomial"}
    return pv.VAE.for_table(
        FRAME, 1, families=given, resolution={"height": 0.01}, hidden_dims=(8,), activation="tanh"
    )


# --- frames to codes, and back


def test_families_of_every_sort_of_column(vae):
    summary = vae.table.summary().set_index("column")
    assert {n: f for n, f in summary["family"].items() if FAMILIES[n] != f} == {}
    assert summary.loc["grade", "levels"] == "low, mid, high"
    assert summary.loc["group", "levels"] == "t, s, r"  # those of the training rows alone
    assert summary.loc["coded", "levels"] == "1, 2"


def test_decoding_inverts_encoding_in_every_dtype(vae):
    table = vae.table
    codes = table.encode(FRAME)
    pd.testing.assert_frame_equal(table.decode(codes, FRAME.index), FRAME[table.names])
    shuffled = FRAME.sample(frac=1, random_state=0)[FRAME.columns[::-1]]
    pd.testing.assert_frame_equal(table.decode(table.encode(shuffled), shuffled.index), shuffled[table.names])
    np.testing.assert_array_equal(table.encode(shuffled), codes[shuffled.index])


def test_missing_cells_of_every_kind_are_nan_and_come_back(vae):
    df = holed(FRAME)
    codes = vae.table.encode(df)
    np.testing.assert_array_equal(np.isnan(codes), df.isna())
    back = vae.table.decode(codes, df.index)
    for name in df:
        assert back[name].isna().equals(df[name].isna()), name
        assert list(back[name].dropna()) == list(df[name].dropna()), name
    odd = pd.DataFrame({name: pd.Series([None] * 3, dtype=object) for name in FRAME})
    odd["job"] = [None, np.nan, pd.NA]
    assert np.isnan(vae.table.encode(odd)).all()
    assert pv.log_evidence(vae, odd, num_samples=2).estimate.tolist() == [0.0] * 3


def test_numbers_beyond_a_dtype_are_kept_in_a_wider_one():
    table = Table.of(pd.DataFrame({"n": np.array([0, 1, 1, 5, 90], dtype="int8")}))
    assert table.decode([[300.2]])["n"].tolist() == [300]
    assert table.decode([[3.0]])["n"].dtype == "int8"


def test_resolution_gives_back_the_decimals_that_came():
    df = pd.DataFrame({"x": [0.1, 0.3, 0.7, 1.1]})
    table = Table.of(df, resolution={"x": 0.1})
    assert table.decode(table.encode(df))["x"].tolist() == [0.1, 0.3, 0.7, 1.1]


def sparse(share, numbers):
    """A column of which a share is exactly 0, with some numbers in the other rows."""
    return np.where(np.arange(len(numbers)) < share * len(numbers), 0.0, numbers)


AMOUNTS = np.random.default_rng(2).lognormal(0.0, 1.5, 1000)
SCORES = np.random.default_rng(3).normal(7.0, 2.5, 1000).round().clip(0, 15)


@pytest.mark.parametrize(
    ("column", "family", "resolution"),
    [
        (sparse(0.7, AMOUNTS.round(2)), "zero_inflated_negative_binomial", 0.01),
        (sparse(0.7, AMOUNTS.round(2)).astype("float32"), "zero_inflated_negative_binomial", 0.01),
        (sparse(0.7, (AMOUNTS - 1).round(1)), "rounded_gaussian", 0.1),
        (sparse(0.7, AMOUNTS), "gaussian", None),  # a density, as the amounts are not decimal
        (np.log(AMOUNTS).clip(0, 1), "gaussian", None),  # shares, of which many are 0 or 1
        # P(x | z) of a continuous Bernoulli cannot narrow, so it is not suggested where it fits best without z.
        (np.linspace(0, 1, 1000), "gaussian", None),
        (np.linspace(0, 1, 1002)[1:-1], "beta", None),
        (stats.expon.ppf(np.arange(1, 1001) / 1001, scale=0.05), "gamma", None),
        # Nor can that of a Poisson, in which a variance equal to the mean leaves nothing for z.
        (stats.nbinom.ppf(np.arange(1, 1001) / 1001, 20, 20 / 20.8), "censored_gaussian", 1.0),
        (stats.nbinom.ppf(np.arange(1, 1001) / 1001, 1, 0.3), "negative_binomial", None),
        (AMOUNTS.round(2), "log_normal", None),
        (SCORES, "censored_gaussian", 1.0),
        (SCORES - 1, "rounded_gaussian", 1.0),
        (AMOUNTS.round(), "negative_binomial", None),
        (AMOUNTS.round() + 1, "rounded_log_normal", 1.0),
        (sparse(0.7, 1e7 * AMOUNTS.round(1) + 0.01), "censored_gaussian", 0.01),  # too many steps to count
    ],
)
def test_columns_get_a_family_that_can_represent_them(column, family, resolution):
    (found,) = Table.of(pd.DataFrame({"x": column})).columns
    assert (found.family, found.resolution) == (family, resolution)


@pytest.mark.parametrize(
    ("column", "step"),
    [
        (np.tile([0.0, 0.5, 1.0, 2.5], 30), 0.5),
        (np.tile([0.25, 0.5, 1.0, 2.0], 30), 0.25),
        (np.tile([0.125, 0.5, 1.0, 2.0], 30).astype("float32"), 0.125),
        (np.tile([0.05, 0.15, 1.0, 2.0], 30), 0.01),
        (np.tile([0.0625, 0.5, 1.0, 2.0], 30), 0.0001),
        (np.tile([0.1, 0.4, 1.0, 2.0], 30), 0.1),
        (np.tile([0.01, 0.04, 1.0, 2.0], 30), 0.01),
        # Of numbers recorded to 0.1, one in five is a multiple of ½: so are nine by chance with probability 5e-7.
        (np.r_[np.zeros(50), np.arange(9) + 0.5], 0.5),
        (np.r_[np.zeros(50), np.arange(8) + 0.5], 0.1),
        # A later whole number may lie between coarser steps.
        (np.arange(1, 300) * 500, 1.0),
    ],
)
def test_the_step_of_a_column_is_the_largest_usual_one_that_is_no_chance(column, step):
    (found,) = Table.of(pd.DataFrame({"x": column})).columns
    assert found.resolution == step
    table = Table.of(pd.DataFrame({"x": column}))
    decoded = table.decode(table.encode(pd.DataFrame({"x": column})))["x"]
    np.testing.assert_array_equal(decoded, column)


def test_a_later_number_between_two_steps_is_refused():
    baths = pd.DataFrame({"baths": np.tile([0.5, 1.0, 2.5, 3.0], 30)})
    table = Table.of(baths)
    with pytest.raises(
        ValueError, match=r"x\['baths'\]: expected whole multiples of the resolution 0.5, .* 2.3 in"
    ):
        table.encode(baths.replace(2.5, 2.3))
    assert table.encode(baths + 1000)[:4, 0].tolist() == [2001.0, 2002.0, 2005.0, 2006.0]
    assert Table.of(baths, resolution={"baths": 0.1}).columns[0].resolution == 0.1


@pytest.mark.parametrize("pair", [(0.0, 0.5), (0.1, 0.2), (1.5, 2.5), (-0.7, 1e-9), (1.0, 2.0)])
@pytest.mark.parametrize("kind", ["float64", "float32", "Float64", "Decimal"])
def test_two_numbers_are_two_levels(pair, kind):
    """Before, only two whole numbers were: others were a Gaussian of steps, which imputed numbers that no cell held."""
    codes = np.tile([0, 1, 1], 20)
    plain = pd.Series(np.array(pair)[codes])
    column = plain.map(lambda v: Decimal(str(v))) if kind == "Decimal" else plain.astype(kind)
    table = Table.of(column.to_frame("x"))
    assert (table.columns[0].family, table.columns[0].why) == ("bernoulli", "2 levels")
    for held in (column, plain, plain.astype("float32")):
        np.testing.assert_array_equal(table.encode(held.to_frame("x"))[:, 0], codes)
    np.testing.assert_array_equal(
        table.decode(table.encode(column.to_frame("x")))["x"].astype(float), column.astype(float)
    )
    with pytest.raises(ValueError, match=r"x\['x'\]: expected levels of the training rows"):
        table.encode(plain.replace(pair[0], pair[0] + 0.01).to_frame("x"))


def test_columns_that_are_almost_zero_are_fitted_as_masses_or_left_out():
    """A density of such a column would grow without bound, so the fit refused it."""
    rare = sparse(0.995, AMOUNTS)
    df = pd.DataFrame({"decimal": rare.round(2), "real": rare, "score": SCORES})
    with pytest.warns(UserWarning, match=r"'real' \(almost constant: 0 in 99.5% of the rows"):
        vae = pv.VAE.for_table(df, 1, hidden_dims=())
    pv.fit(vae, df[["decimal", "score"]], epochs=1, compile=False)
    drawn = vae.sample(2000, seed=0)
    steps = drawn["decimal"] * 100
    assert ((steps >= 0) & ((steps - steps.round()).abs() < 1e-6)).all()
    assert (drawn["score"] >= 0).all()


def test_means_stay_in_the_range_of_the_training_rows_for_any_z():
    """Without bounds, exp(output) and its scale grew without limit where z is far from the training rows'."""
    df = pd.DataFrame(
        {
            "cost": sparse(0.7, AMOUNTS.round(2)),
            "count": AMOUNTS.round(),
            "score": SCORES,
            "debt": (AMOUNTS - 3).round(),
            "real": RNG.normal(size=1000),
            "gamma": RNG.gamma(3.0, 2.0, 1000),
        }
    )
    torch.manual_seed(0)
    vae = pv.VAE.for_table(df, 1, families={"gamma": "gamma"}, hidden_dims=())
    codes = vae.table.encode(df)
    with torch.no_grad():
        fn = vae.likelihood(torch.tensor([[-500.0], [500.0]], dtype=torch.float64)).base_dist
    low, high = codes.min(axis=0), codes.max(axis=0)
    spread = np.where(np.isin(vae.table.names, ["score", "debt"]), high - low, 0.0)
    mean = fn.mean.numpy()
    assert (mean >= low - 1e-9).all()
    assert (mean <= high * (1 + 1e-9) + spread).all()  # a censored mean is above its location
    scales = [inner.scale for inner in fn.fns if hasattr(inner, "scale")]
    assert max(float(scale.max()) for scale in scales) <= (high - low).max() * (1 + 1e-9)


@pytest.mark.filterwarnings("ignore:.* is an exact affine function")
def test_bounded_families_stay_in_the_range_of_the_training_rows_too():
    """They had no bounds: shares from 0.944 to 0.99 had means of 0.7."""
    share = stats.beta.ppf(np.arange(1, 301) / 301, 5, 1)
    df = pd.DataFrame(
        {
            "beta": 0.94 + 0.05 * share,
            "narrow": 0.95 + 1e-4 * share,
            "continuous": 0.2 + 0.5 * share,
            "of 40": np.round(20 + 15 * share),
            "pixel": np.round(90 + 100 * share),
            "rate": np.round(9000 + 50 * share),
            "inflated": np.round(10 + 90 * share),
        }
    )
    families = {
        "narrow": "beta",
        "continuous": "continuous_bernoulli",
        "of 40": ("binomial", {"total_count": 40}),
        "pixel": ("discretized_logistic", {"levels": 256, "scale": 0.5}),
        "rate": "poisson",
        "inflated": "zero_inflated_negative_binomial",
    }
    torch.manual_seed(0)
    vae = pv.VAE.for_table(df, 1, families=families, hidden_dims=())
    assert vae.table.columns[0].family == "beta"
    last = vae.likelihood.network.layers[-1]
    with torch.no_grad():
        last.weight[-1], last.bias[-1] = 0.0, -1e3  # no zeros beyond those of the negative binomial
        mean = vae.likelihood(torch.tensor([[-1e6], [1e6]], dtype=torch.float64)).mean.numpy()
    codes = vae.table.encode(df)
    expected = np.stack([codes.min(axis=0), codes.max(axis=0)])
    np.testing.assert_allclose(np.sort(mean, axis=0), expected, rtol=1e-8)


def test_zeros_and_the_ends_of_intervals_are_no_bounds():
    """The location of a discretized logistic may lie beyond its outermost levels, and log 0 is no output."""
    df = pd.DataFrame(
        {"level": [0.0, 3.0, 7.0, 3.0], "share": [0.0, 0.5, 1.0, 0.2], "k": [0.0, 1.0, 5.0, 2.0]}
    )
    families = {
        "level": ("discretized_logistic", {"levels": 8}),
        "share": "continuous_bernoulli",
        "k": "poisson",
    }
    table = Table.of(df, families=families)
    assert [column.bounds for column in table.columns] == [(None, None), (None, None), (None, np.log(5.0))]


def test_outputs_of_narrow_columns_have_a_unit_as_small():
    """In units of the logit, nearly all outputs of a new decoder lay beyond the bounds, where their gradient is 0."""
    share = 0.95 + 1e-4 * stats.beta.ppf(np.arange(1, 301) / 301, 5, 1)
    df = pd.DataFrame({"share": share, "wide": np.linspace(0.01, 0.99, 300)})
    torch.manual_seed(0)
    vae = pv.VAE.for_table(df, 2, families={"share": "beta", "wide": "beta"})
    likelihood = vae.likelihood
    likelihood.start_from(torch.tensor(vae.table.encode(df)))
    z = torch.randn(500, 2, dtype=torch.float64)
    low, high = (np.log(end / (1 - end)) for end in (share.min(), share.max()))
    with torch.no_grad():
        outputs, mean = likelihood.network(z)[:, :2], likelihood(z).mean
    inside = outputs[:, 0].abs() < 0.5
    assert inside.double().mean() > 0.5
    logit = (low + high) / 2 + (high - low) * outputs[:, 0]
    torch.testing.assert_close(mean[inside, 0], logit[inside].sigmoid(), rtol=1e-9, atol=0)
    torch.testing.assert_close(mean[:, 1], outputs[:, 1].sigmoid().clamp(0.01, 0.99), rtol=1e-9, atol=0)
    last = likelihood.network.layers[-1]
    last.weight.data.zero_()
    np.testing.assert_allclose(likelihood(z).mean.detach()[0], df.mean(), rtol=1e-9)


def test_reasons_count_observed_rows_where_cells_are_missing():
    """Of five rows, one lacks its cell; in complete rows the word is "row"."""
    columns = {
        "one": [1.0] * 4,
        "a": ["u"] * 4,
        "id": list("uvwx"),
        "numbered": range(21),
        "stuck": [0.0] * 900 + [1 / 3, 2 / 3, math.pi],
    }
    for missing, row in (([], "row"), ([None], "observed row")):
        reasons = {}
        for name, cells in columns.items():
            frame = pd.DataFrame({name: [*cells, *missing]})
            with pytest.raises(ValueError, match="a column that varies") as caught:
                Table.of(frame)
            reasons[name] = (
                str(caught.value).partition(": ")[2].partition(f"{name!r}: ")[2].partition(". Pass")[0]
            )
        assert reasons == {
            "one": f"constant: 1 in every {row}",
            "a": f"constant: 'u' in every {row}",
            "id": f"like an id: 4 {row}s, and all values differ",
            "numbered": f"like an id: 21 {row}s with consecutive numbers",
            "stuck": f"almost constant: 0 in 99.7% of the {row}s, others not decimal",
        }
        constant = pv.likelihoods.suggest(np.array([[1.0]] * 4 + [[np.nan]] * len(missing)))
        assert constant["why"].tolist() == [f"does not vary: 1 in every {row}"]


def test_what_is_left_out_is_named():
    df = FRAME[["real", "job"]].assign(id=[f"p{i}" for i in range(N)], row=range(N), same=3, note="a")
    with pytest.warns(UserWarning, match=r"'id' \(like an id.*'row' .*consecutive.*'same' \(constant: 3"):
        vae = pv.VAE.for_table(df, 1, families={"note": None}, hidden_dims=())
    assert vae.table.names == ["real", "job"]
    codes = vae.table.encode(df)
    np.testing.assert_array_equal(vae.table.encode(df[["job", "real"]]), codes)  # they may be there or not
    assert vae.table.decode(codes).columns.tolist() == ["real", "job"]


# --- what is refused, by name


def changed(**columns):
    return FRAME.assign(**columns)


REFUSED = {
    "missing": (FRAME.drop(columns="dose"), "none named 'dose'"),
    "more": (FRAME.assign(extra=1.0), "'extra', which the training rows did not have"),
    "renamed": (FRAME.rename(columns={"dose": "Dose"}), "none named 'dose'; 'Dose', which"),
    "level": (changed(job=["nurse"] * 7 + ["pilot"] * (N - 7)), r"x\['job'\].*first 'pilot' in row 7"),
    "category": (
        changed(group=pd.Categorical(["never"] * N, categories=FRAME["group"].cat.categories)),
        r"x\['group'\].*first 'never' in row 0",
    ),
    "ordered": (changed(grade=["low"] * (N - 1) + ["best"]), rf"x\['grade'\].*first 'best' in row {N - 1}"),
    "strings for numbers": (
        changed(real=[1.0, 2.0, "n/a"] + [3.0] * (N - 3)),
        r"x\['real'\]: expected numbers.*first 'n/a' in row 2",
    ),
    "numbers for booleans": (changed(flag=[1] * N), r"x\['flag'\]: expected booleans.*first 1 in row 0"),
    "dates for numbers": (changed(year=pd.Timestamp("2020-01-01")), r"x\['year'\]: expected numbers.*dates"),
    "step": (
        changed(height=[1.7] * 4 + [1.705] * (N - 4)),
        r"x\['height'\]: expected whole multiples.*row 4",
    ),
    "infinite": (changed(real=[1.0] * 5 + [np.inf] * (N - 5)), r"x\['real'\].*infinite, first inf in row 5"),
    "negative count": (changed(visits=[-1] * N), "values on the support of NegativeBinomial"),
    "twice": (pd.concat([FRAME, FRAME[["real"]]], axis=1), "'real' more than once"),
    "width": (torch.zeros(3, 2), r"codes of shape \(rows, 14\), got shape \(3, 2\)"),
    "no rows": (FRAME[:0], "at least one row"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_rows_unlike_the_training_rows_are_refused_by_name(name, vae):
    rows, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        pv.elbo(vae, rows, num_samples=2)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.inf, r"x\['size'\]: .*first inf in row 2\."),
        (-1.0, r"x: expected .* support of Gamma.*first -1 at row 2, column 'size'\."),
    ],
)
def test_cells_are_named_by_labels_where_columns_are_left_out(value, message):
    """The frame's columns are constant, 2 and size, of which the first is left out."""
    draws = np.random.default_rng(0)
    df = pd.DataFrame({"constant": 1.0, 2: draws.normal(size=50), "size": draws.gamma(2.0, size=50)})
    vae = pv.VAE.for_table(df, 1, families={"constant": None, "size": "gamma"}, hidden_dims=(4,))
    far = df.copy()
    far.loc[3, 2] = 1e10
    assert "entry is 1e+10, in row 3, column 2;" in vae.fix_of_rows(torch.tensor(vae.table.encode(far)))
    df.loc[2, "size"] = value
    with pytest.raises(ValueError, match=message):
        pv.elbo(vae, df, num_samples=2)


def test_an_infinite_cell_of_a_frame_is_named_by_its_column():
    vae = pv.VAE.mlp(2, latent_dim=1)
    with pytest.raises(ValueError, match=r"first -inf at row 1, column 'b'\."):
        pv.elbo(vae, pd.DataFrame({"a": [0.0, 1.0], "b": [1.0, -np.inf]}), num_samples=2)


DAYS = pd.Series(pd.date_range("2020-01-01", periods=4))
REFUSED_FIRST = {
    "dates": ({"day": DAYS}, {}, r"df\['day'\].*days as a number.*families=\{'day': None\}"),
    "mixed": ({"a": ["x", 1, 2, 3]}, {}, r"df\['a'\].*mixed.*first 'x'"),
    "empty": ({"a": [None] * 4}, {}, r"df\['a'\].*an observed cell"),
    "infinite": ({"a": [1.0, np.inf, 2.5, 3.0]}, {}, r"df\['a'\].*first inf in row 1"),
    "intervals": (
        {"a": pd.cut([1, 2, 3, 4], 2)},
        {},
        r"df\['a'\].*levels that are strings.*rename_categories\(str\)",
    ),
    "unknown family": ({"a": [1.5, 2, 3, 4]}, {"families": {"a": "normal"}}, "families.*gaussian"),
    "unknown column": ({"a": [1.5, 2, 3, 4]}, {"families": {"b": "gaussian"}}, "names of columns.*'b'"),
    "option": ({"a": [1.5, 2, 3, 4]}, {"families": {"a": ("gaussian", {"sd": 1})}}, "sd"),
    "gaussian strings": (
        {"a": list("xyxx")},
        {"families": {"a": "gaussian"}},
        r"families\['a'\].*'gaussian'",
    ),
    "ordinal strings": ({"a": list("xyzx")}, {"families": {"a": "ordinal"}}, "ordered=True"),
    "three for two": ({"a": list("xyzx")}, {"families": {"a": "bernoulli"}}, "3 levels"),
    "gamma of 0": ({"a": [0.0, 2.5, 3, 4]}, {"families": {"a": "gamma"}}, r"df\['a'\].*first 0 in row 0"),
    "step": ({"a": [1.0, 2.5, 3, 4]}, {"resolution": {"a": 1}}, r"df\['a'\].*first 2.5 in row 1"),
    "step of strings": ({"a": list("xyxx")}, {"resolution": {"a": 1}}, r"resolution\['a'\]"),
    "negative step": ({"a": [1.0, 2.0, 3, 4]}, {"resolution": {"a": -1}}, "resolution.*-1"),
    "nothing": ({"a": [1.0] * 4}, {}, "a column that varies"),
    "beyond 2^53": ({"a": [1, 2, 2**53 + 1, -(2**60)]}, {}, r"df\['a'\].*got 2 others, first in row 2"),
    "beyond float64": ({"a": [1.5, 10**400, None, 2.5]}, {}, r"df\['a'\].*got 1 others, first in row 1"),
    "a date as label": (
        {pd.Timestamp("2020"): [1.5, 2, 3, 4]},
        {},
        r"df\.columns: expected labels .*, got Timestamp.*str\(name\)",
    ),
    "a label within labels": ({("a", None): [1.5, 2, 3, 4]}, {}, r"df\.columns: .*, got \('a', nan\)"),
    "no label": (
        {np.nan: [1.5, 2, 3, 4], "a": [1.5, 2, 3, 4]},
        {},
        r"df\.columns: expected labels .*, got nan",
    ),
    "no dict": ({"a": [1.5, 2, 3, 4]}, {"families": ["gaussian"]}, "a dict by the names"),
}


@pytest.mark.parametrize("name", REFUSED_FIRST)
def test_training_rows_that_cannot_be_used_are_refused_by_name(name):
    columns, options, message = REFUSED_FIRST[name]
    with pytest.raises((ValueError, TypeError), match=message):
        pv.VAE.for_table(pd.DataFrame(columns), 1, **options)


def of_arrow(values, kind):
    return pd.arrays.ArrowExtensionArray(pyarrow.array(values, kind))


DAY = dt.datetime(1970, 1, 3)
MOMENTS = [DAY, DAY + dt.timedelta(hours=6), None, DAY + dt.timedelta(days=40)]
DATES = [None if each is None else each.date() for each in MOMENTS]
TIMES = [dt.time(0, 0, 2), dt.time(1, 1, 1), None, dt.time(23, 0, 0)]
DURATIONS = [None if each is None else each - dt.datetime(1970, 1, 1) for each in MOMENTS]
IN_DAYS, WHOLE_DAYS, IN_SECONDS = [2, 2.25, np.nan, 42], [2, 2, np.nan, 42], [2, 3661, np.nan, 82800]


@pytest.mark.parametrize(
    ("values", "numbers"),
    [
        (pd.to_datetime(pd.Series(MOMENTS)), IN_DAYS),
        (pd.to_datetime(pd.Series(MOMENTS)).dt.tz_localize("UTC").dt.tz_convert("Asia/Tokyo"), IN_DAYS),
        (pd.Series(MOMENTS, dtype=object), IN_DAYS),
        (pd.Series(DATES, dtype=object), WHOLE_DAYS),
        (of_arrow(MOMENTS, pyarrow.timestamp("us")), IN_DAYS),
        (of_arrow(MOMENTS, pyarrow.timestamp("us", "UTC")), IN_DAYS),
        (of_arrow(DATES, pyarrow.date32()), WHOLE_DAYS),
        (of_arrow(DATES, pyarrow.date64()), WHOLE_DAYS),
        (pd.PeriodIndex(MOMENTS, freq="D"), WHOLE_DAYS),
        (pd.Series(pd.PeriodIndex(MOMENTS, freq="D")).astype(object), WHOLE_DAYS),
        (pd.PeriodIndex(["1970-02", "1971-01", None, "1970-01"], freq="M"), [31, 365, np.nan, 0]),
        (pd.to_timedelta(pd.Series(DURATIONS)), IN_DAYS),
        (pd.Series(DURATIONS, dtype=object), IN_DAYS),
        (of_arrow(DURATIONS, pyarrow.duration("us")), IN_DAYS),
        (pd.Series(TIMES, dtype=object), IN_SECONDS),
        (of_arrow(TIMES, pyarrow.time32("s")), IN_SECONDS),
        (of_arrow(TIMES, pyarrow.time64("us")), IN_SECONDS),
    ],
)
def test_the_advised_numbers_of_dates_are_right(values, numbers):
    """The advice is code, which is run here."""
    df = pd.DataFrame({"t": values, "x": [1.5, 2.5, 3.5, 5.0]})
    with pytest.raises(ValueError, match=r"df\['t'\]: .* as a number") as caught:
        Table.of(df)
    message = str(caught.value)
    code = message.partition(" as a number, ")[2].partition("; ")[0]
    df["t"] = eval(code, {"df": df, "pandas": pd})
    np.testing.assert_array_equal(df["t"].to_numpy(dtype=np.float64, na_value=np.nan), numbers)
    assert Table.of(df).names == ["t", "x"]
    if "a part, such as " in message:
        df["t"] = values
        part = message.partition("a part, such as ")[2].partition("; ")[0]
        assert set(pd.Series(eval(part, {"df": df, "pandas": pd})).dropna()) <= {1, 2}


MARCH_5 = 18326  # days from 1970-01-01 to 2020-03-05
OF_TEXT = {  # cells, days, months and a note
    "days first": (["05.03.2020", "21.03.2020"], [0, 16], [3, 3], ""),
    "months first": (["03/05/2020", "3/21/2020 "], [0, 16], [3, 3], ""),
    "either": (["05.03.2020", "06.03.2020"], [0, 1], [3, 3], r"whether the day or the month is.*%m\.%d\.%Y"),
    "either, short": (["05-03-20", "06-03-20"], [0, 1], [3, 3], "the day or the month or the year is"),
    "short": (["3/5/20", "3/21/20"], [0, 16], [3, 3], "years as 1969 to 2068"),
    "noon": (["3/5/2020 12:00 PM", "3/21/2020 6:00 AM"], [0.5, 16.25], [3, 3], ""),
    "others": (
        ["2020-03-05"] * 11 + ["0000-00-00", "n/a"],
        [0] * 11,
        [3] * 11,
        "cells missing, 6 in all: '0000-00-00', 'n/a'",
    ),
    "times": (["2020-03-05", "2020-03-05T12:00:00"], [0, 0.5], [3, 3], ""),
    "zones": (
        ["2020-03-01T00:00:00+02:00", "2020-03-05 12:00:00.5Z"],
        [-4 - 2 / 24, 0.5 + 0.5 / 86400],
        [3, 3],
        "",
    ),
    "of hours": (["2020-03-05T12:00:00+02", "2020-03-05T12:00:00Z"], [10 / 24, 0.5], [3, 3], ""),
    "one zone": (["2020-03-05", "2020-03-05T12:00:00Z"], [0, 0.5], [3, 3], "without a zone count as UTC"),
    "UTC": (["2020-03-05 12:00:00 UTC"], [0.5], [3], ""),
    "months": (["2020-03", "2020-04"], [-4, 27], [3, 4], ""),
    "versions": (["1.2.3", "1.2.10"], None, None, ""),
    "numbers of parts": (["1-22-33", "2-33-44"], None, None, ""),
    "social security": (["123-45-6789", "223-45-6789"], None, None, ""),
    "seasons": (["2008-09", "2018-19", "2019-20"], None, None, ""),
}


@pytest.mark.parametrize("case", OF_TEXT)
@pytest.mark.parametrize("dtype", ["object", "string", "category"])
def test_the_advised_numbers_of_text_are_right_or_there_is_no_advice(case, dtype):
    """The advice is code, which is run here. Categories are labels."""
    cells, days, months, note = OF_TEXT[case]
    df = pd.DataFrame({"c": pd.Series([*cells * 3, None], dtype=dtype)})
    found = doubts.of("c", df["c"]) or ""
    assert ("Choose a meaning" in found) == (days is not None and dtype != "category")
    if "Choose a meaning" not in found:
        return
    assert ("The code" in found or "count as" in found) == bool(note)
    assert re.search(note, found)
    code, _, part = (
        found.partition(" as a number, ")[2].partition(". Pass")[0].partition("; a part, such as ")
    )
    got = eval(code, {"df": df, "pandas": pd}).to_numpy(dtype=np.float64, na_value=np.nan)
    np.testing.assert_allclose(got[: len(days)] - MARCH_5, days, atol=1e-9)
    assert np.isnan(got).sum() == 1 + 3 * (len(cells) - len(days))
    assert eval(part, {"df": df, "pandas": pd}).tolist()[: len(months)] == months


ZONED = pd.Series(pd.date_range("2024-01-01", periods=6, freq="MS", tz="Europe/Berlin"))


@pytest.mark.parametrize(
    "values", [ZONED, ZONED.astype(object), ZONED.astype("timestamp[us, Europe/Berlin][pyarrow]")]
)
def test_the_advised_month_is_that_of_the_local_time(values):
    df = pd.DataFrame({"t": values, "x": np.arange(6.0) ** 2})
    with pytest.raises(ValueError, match="a part, such as") as caught:
        Table.of(df)
    part = str(caught.value).partition("a part, such as ")[2].partition("; or leave")[0]
    assert eval(part, {"df": df, "pandas": pd}).tolist() == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("values", "word"), [(pd.to_timedelta([1, 2], "h"), "durations"), (pd.to_datetime([1, 2]), "dates")]
)
def test_durations_are_no_dates(values, word):
    with pytest.raises(ValueError, match=f"got {word} of dtype"):
        Table.of(pd.DataFrame({"t": values}))


def test_a_row_of_a_frame_is_a_row_as_the_error_says():
    df = pd.DataFrame(
        {"n": [1.5, 2.5, 4.0, 4.0], "s": ["a", "b", "b", None], "b": [True, False, False, True]}
    )
    table = Table.of(df)
    for read in (table.encode, table.read):
        with pytest.raises((ValueError, TypeError), match=r"Pass x\.to_frame\(\)\.T of a row"):
            read(df.iloc[1])
    x = df.iloc[1]
    np.testing.assert_array_equal(table.encode(x.to_frame().T), table.encode(df[1:2]))


def test_an_array_is_no_table():
    with pytest.raises(TypeError, match="df: expected a pandas DataFrame"):
        pv.VAE.for_table(np.zeros((3, 2)), 1)


# --- log P of a row


def small():
    """Three binary columns, one of three levels and one rounded to 0.5, and a VAE whose decoder matters."""
    df = pd.DataFrame(
        {
            **{name: RNG.random(N) < 0.4 for name in "abc"},
            "level": RNG.choice(["p", "q", "r"], N),
            "real": np.round(2 * RNG.normal(1, 1, N)) / 2,
        }
    )
    torch.manual_seed(1)
    vae = pv.VAE.for_table(
        df, 1, families={"real": "gaussian"}, resolution={"real": 0.5}, hidden_dims=(6,), activation="tanh"
    )
    for p in vae.likelihood.parameters():
        p.data += 0.5 * torch.randn_like(p)
    return df, vae


def test_mass_of_a_mixed_table_is_one():
    """Σ over every row of ∫ P(x | z) P(z) dz = 1, by the package's quadrature and by one on a grid of z."""
    df, vae = small()
    reals = np.arange(-60, 61) / 2
    rows = itertools.product([False, True], [False, True], [False, True], ["p", "q", "r"], reals)
    every = pd.DataFrame(rows, columns=df.columns)
    z = torch.linspace(-9, 9, 601, dtype=torch.float64)
    codes = torch.from_numpy(vae.table.encode(every))
    with torch.no_grad():
        given = vae.likelihood(z[:, None, None]).log_prob(codes)  # (z, rows)
    prior = torch.distributions.Normal(0.0, 1.0).log_prob(z) + np.log(18 / 600)
    by_grid = (given + prior[:, None]).logsumexp(dim=0)
    assert float(by_grid.exp().sum()) == pytest.approx(1.0, abs=1e-9)
    some = every.iloc[::97]
    found = pv.log_evidence(vae, some, method="quadrature", tolerance=1e-5, check=False)
    np.testing.assert_allclose(found.estimate, by_grid[::97], atol=1e-6)
    assert set(found.measure) == {"mass"}


def test_missing_cells_are_summed_out():
    """P(x_obs | z) is the sum over the values of the missing cells, at fixed z."""
    df, vae = small()
    reals = np.arange(-60, 61) / 2
    every = pd.DataFrame(
        [(True, b, False, level, r) for b in (False, True) for level in "pqr" for r in reals],
        columns=df.columns,
    )
    z = torch.tensor([[0.7]], dtype=torch.float64)
    every = torch.from_numpy(vae.table.encode(every))
    x = every[:1].clone()
    observed = torch.tensor([[True, False, True, False, False]])
    with torch.no_grad():
        fn, filled = of_observed(vae.likelihood(z), x, observed)
        whole = vae.likelihood(z).log_prob(every).logsumexp(dim=0)
    assert float(fn.log_prob(filled)) == pytest.approx(float(whole), abs=1e-10)
    assert fn.base_dist.log_prob(filled)[0, [1, 3, 4]].tolist() == [0.0, 0.0, 0.0]


def test_rows_score_the_same_beside_others(vae):
    codes = torch.from_numpy(vae.table.encode(FRAME))
    z = torch.randn(N, 1, dtype=torch.float64)
    with torch.no_grad():
        together = vae.likelihood(z).log_prob(codes)
        for row in range(0, N, 7):
            alone = vae.likelihood(z[row : row + 1]).log_prob(codes[row : row + 1])
            torch.testing.assert_close(alone, together[row : row + 1], rtol=0, atol=1e-10)
    every = pv.elbo(vae, FRAME, num_samples=4, noise="content").estimate
    few = pv.elbo(vae, FRAME[5:9], num_samples=4, noise="content").estimate
    np.testing.assert_allclose(few, every[5:9], rtol=0, atol=1e-10)


def test_measure_is_by_column_and_units_are_those_of_the_frame(vae):
    found = pv.log_evidence(vae, FRAME, num_samples=2)
    densities = [name for name, kind in zip(FRAME.columns, found.measure, strict=True) if kind == "density"]
    assert densities == ["real", "dose"]
    torch.manual_seed(0)
    df = FRAME[["real", "job"]]
    one, other = (
        pv.VAE.for_table(rows, 1, families={"real": "gaussian"}, hidden_dims=(4,))
        for rows in (df, df.assign(real=1000 * df["real"]))
    )
    state = {k: v for k, v in one.state_dict().items() if not k.endswith((".loc", ".scale"))}
    other.load_state_dict(state, strict=False)
    apart = (
        pv.elbo(one, df, num_samples=2).estimate
        - pv.elbo(other, df.assign(real=1000 * df["real"]), num_samples=2).estimate
    )
    np.testing.assert_allclose(apart, np.log(1000), atol=1e-4)  # float32 rounds 1000 x


# --- rounded numbers


@pytest.mark.parametrize(
    ("loc", "scale", "value"),
    [
        *((0.3, 2.0, k) for k in (-3, 0, 1, 5)),
        *((0.0, 1.0, k) for k in (-30, 8, 30)),  # the tails
        *((0.0, s, k) for s in (4200.0, 1e7) for k in (0, 12600, -40000)),  # narrow intervals
        (0.2, 1e-3, 0),
        (0.2, 1e-3, 3),
    ],
)
def test_mass_of_an_interval_is_exact(loc, scale, value):
    """Beside 50 digits of mpmath."""
    mpmath = pytest.importorskip("mpmath")
    fn = distributions.RoundedNormal(*torch.tensor([loc, scale], dtype=torch.float64))
    found = fn.log_prob(torch.tensor(value, dtype=torch.float64))
    with mpmath.workdps(60):
        s, m = mpmath.mpf(scale), mpmath.mpf(loc)
        low, high = ((mpmath.mpf(value) + h - m) / s / mpmath.sqrt(2) for h in (-0.5, 0.5))
        low, high = (-high, -low) if low > 0 else (low, high)
        exact = mpmath.log((mpmath.erfc(-high) - mpmath.erfc(-low)) / 2)
    if exact > -5e5:  # 3 at a scale of 1e-3 lies 2800 scales out
        assert float(found) == pytest.approx(float(exact), rel=1e-10, abs=1e-10)


def test_rounded_log_normal_is_scipys():
    fn = distributions.RoundedNormal(
        torch.tensor(1.0, dtype=torch.float64), torch.tensor(0.6, dtype=torch.float64), log=True
    )
    k = np.arange(400)
    exact = stats.lognorm(0.6, scale=np.e)
    mass = exact.cdf(k + 0.5) - exact.cdf(np.maximum(k - 0.5, 0))
    found = fn.log_prob(torch.from_numpy(k).double()).exp()
    np.testing.assert_allclose(found, mass, atol=1e-13)
    assert float(found.sum()) == pytest.approx(1.0, abs=1e-9)


def test_censored_normal_is_scipys():
    loc, scale = torch.tensor([[-0.7, 0.2, 30.0], [1.5, 4.0, 2.0]], dtype=torch.float64)
    fn = distributions.RoundedNormal(loc, scale, censored=True)
    k = torch.arange(100.0, dtype=torch.float64)[:, None]
    found, exact = fn.log_prob(k).exp().numpy(), stats.norm(loc, scale)
    lower = np.where(k > 0, k - 0.5, -np.inf)
    np.testing.assert_allclose(found, exact.cdf(k + 0.5) - exact.cdf(lower), atol=1e-13)
    x = np.linspace(0, 80, 80_001)[:, None]
    np.testing.assert_allclose(fn.mean, np.trapezoid(exact.sf(x), x, axis=0), atol=1e-5)
    assert fn.median.tolist() == [0.0, 0.0, 30.0]
    torch.manual_seed(0)
    drawn = fn.expand((20_000, 3)).sample()
    assert bool(fn.support.check(drawn).all())
    p = found[0]
    assert (np.abs((drawn == 0).numpy().mean(axis=0) - p) <= 5.5 * (p * (1 - p) / 20_000) ** 0.5).all()


@pytest.mark.parametrize(("log", "censored"), [(False, False), (True, False), (False, True)])
def test_gradients_of_rounded_numbers_are_finite_and_right(log, censored):
    loc = torch.tensor([0.0, 1.0, -3.0, 2.0], dtype=torch.float64, requires_grad=True)
    log_scale = torch.tensor([0.0, 9.0, -2.0, -7.0], dtype=torch.float64, requires_grad=True)
    value = torch.tensor([0.0, 7.0, 12.0, 4.0], dtype=torch.float64)

    def log_prob(loc, log_scale):
        return distributions.RoundedNormal(loc, log_scale.exp(), log, censored).log_prob(value)

    assert torch.isfinite(log_prob(loc, log_scale)).all()
    assert torch.autograd.gradcheck(log_prob, (loc, log_scale), eps=1e-7, atol=1e-3, rtol=1e-4)


def test_rounded_normal_draws_what_it_scores():
    torch.manual_seed(0)
    fn = distributions.RoundedNormal(torch.tensor([0.3, 1.0]), torch.tensor([1.5, 0.7]))
    drawn = fn.sample((20_000,))
    for k in (-1.0, 0.0, 2.0):
        p = fn.log_prob(torch.full((2,), k)).exp()
        assert (((drawn == k).float().mean(dim=0) - p).abs() < 5.5 * (p * (1 - p) / 20_000).sqrt()).all()
    assert fn.median.tolist() == [0.0, 1.0]


def test_a_drawn_zero_has_no_sign():
    """Rounded, −0.3 is −0.0, which is written otherwise than 0.0."""
    torch.manual_seed(0)
    loc = torch.zeros(200)
    for fn in (
        distributions.RoundedNormal(loc, loc + 0.5),
        distributions.RoundedNormal(loc, loc + 0.5, censored=True),
        distributions.DiscretizedLogistic(loc, loc + 0.5, 4),
    ):
        drawn = fn.sample()
        assert (drawn == 0).any()
        assert not drawn.signbit()[drawn == 0].any()
    frame = pd.DataFrame({"steps": [0.0, 0.5, 1.0, 1.5] * 5, "visits": [0.0, 1.0, 2.0, 4.0] * 5})
    table = Table.of(frame, {"visits": "poisson"}, {"steps": 0.5})
    assert not np.signbit(table.decode([[-0.3, -0.3]])).any(axis=None)
    assert not np.signbit(table.decode([[-0.0, -0.0]])).any(axis=None)


# --- parts


GROUPS = [
    {"family": "poisson", "options": {}, "columns": [2]},
    {
        "family": "gaussian",
        "options": {"scale": "decoder"},
        "columns": [3, 0],
        "loc": [1.0, 5.0],
        "scale": [2.0, 0.1],
    },
    {"family": "categorical", "options": {"num_categories": 3}, "columns": [1]},
]


def mixed():
    torch.manual_seed(0)
    return Mixed(pv.MLP(2, (), Mixed.width(GROUPS)), GROUPS).double()


def test_mixed_is_the_product_of_its_groups():
    family = mixed()
    z = torch.randn(5, 3, 2, dtype=torch.float64)
    fn = family(z)
    x = fn.sample()
    outputs = family.network(z.reshape(-1, 2)).view(5, 3, -1)
    counts, loc, log_scale, logits = outputs.split([1, 2, 2, 3], dim=-1)
    unit, middle = torch.tensor([2.0, 0.1]), torch.tensor([1.0, 5.0])
    each = torch.stack(
        [
            torch.distributions.Normal(middle + unit * loc, unit * log_scale.exp()).log_prob(x[..., [3, 0]])[
                ..., 1
            ],
            torch.distributions.Categorical(logits=logits).log_prob(x[..., 1]),
            torch.distributions.Poisson(counts.exp()).log_prob(x[..., [2]])[..., 0],
            torch.distributions.Normal(middle + unit * loc, unit * log_scale.exp()).log_prob(x[..., [3, 0]])[
                ..., 0
            ],
        ],
        dim=-1,
    )
    torch.testing.assert_close(fn.base_dist.log_prob(x), each)
    torch.testing.assert_close(fn.log_prob(x), each.sum(-1))
    torch.testing.assert_close(supports.log_prob(fn, x), each.sum(-1))
    torch.testing.assert_close(fn.expand((4, 5, 3)).log_prob(x), each.sum(-1).expand(4, 5, 3))
    assert fn.mean.shape == x.shape
    off = x.clone()
    off[..., 2] = -1.0
    assert (supports.log_prob(fn, off) == -torch.inf).all()
    assert not fn.base_dist.support.check(off)[..., 2].any()


def test_mixed_starts_from_the_marginals_of_observed_cells():
    family = mixed()
    family.network.layers[-1].weight.data.zero_()
    x = torch.stack(
        [torch.randn(400) * 0.1 + 5, torch.randint(3, (400,)), torch.randint(9, (400,)), torch.randn(400)], 1
    )
    x = x.double().masked_fill(torch.rand(400, 4) < 0.3, torch.nan)
    family.start_from(x)
    mean = family(torch.zeros(1, 2, dtype=torch.float64)).mean[0]
    torch.testing.assert_close(mean, x.nanmean(dim=0), rtol=0.02, atol=0.02)


def test_mixed_is_rebuilt_and_refuses_other_widths_and_columns():
    family = mixed()
    again = rebuild(family)
    again.load_state_dict(family.state_dict())
    z = torch.randn(3, 2, dtype=torch.float64)
    torch.testing.assert_close(again.double()(z).mean, family(z).mean)
    with pytest.raises(ValueError, match="network: expected 8 outputs for these groups, got 7"):
        Mixed(pv.MLP(2, (), 7), GROUPS)
    with pytest.raises(ValueError, match="every column from 0 on in exactly one group"):
        Mixed(nn.Identity(), GROUPS[:2])


def test_features_are_standardised_logarithms_levels_and_the_mask():
    features = Features(["log", 2, "log1p"], loc=[0.0, 0.0, 1.0], scale=[2.0, 1.0, 0.5])
    x = torch.tensor([[np.e**3, 1.0, 0.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0, 0.0, 1.0]])
    expected = [[1.5, -2.0, 0.0, 1.0, 1.0, 1.0, 1.0], [0.0, -2.0, 0.0, 0.0, 0.0, 0.0, 1.0]]
    torch.testing.assert_close(features(x), torch.tensor(expected))
    with pytest.raises(ValueError, match="rows of width 6"):
        features(x[:, :4])


# --- every function that takes rows


def test_every_function_takes_the_frame(vae, tmp_path):
    df = holed(FRAME)
    history = pv.fit(vae, df, epochs=2, validation=FRAME)
    assert len(history.frame) == 2
    found = pv.log_evidence(vae, df[:6], method="refined", num_samples=100, check=False)
    assert np.isfinite(found.estimate).all()
    table = pv.compare({"a": vae, "b": vae}, df[:6], method="importance", num_samples=100, training_rows=True)
    assert table["elpd_diff"].abs().max() == 0
    drawn = vae.sample(4, seed=1)
    assert drawn.dtypes.equals(FRAME.dtypes)
    means = vae.reconstruct(df)
    assert means.index.equals(df.index)
    assert means.dtypes.equals(FRAME.dtypes)
    assert means["job"].isin(["cook", "nurse", "smith"]).all()

    vae.save(tmp_path / "vae")
    again = pv.load(tmp_path / "vae")
    assert again.table == vae.table
    pd.testing.assert_frame_equal(again.sample(4, seed=1), drawn)
    scores = (pv.elbo(each, df, num_samples=3, seed=2).estimate for each in (vae, again))
    np.testing.assert_array_equal(*scores)
    with pytest.raises(ValueError, match=r"job.*first 'pilot'"):
        pv.elbo(again, df.assign(job="pilot"))
    again.table = None
    with pytest.raises(ValueError, match="the saved model's table"):
        pv.load(tmp_path / "vae", into=again)


def test_diagnosis_names_the_column_that_drowns_the_others():
    """With means w z and a guide that draws z from the loud column, ∂ log P(x_d | z)/∂z has the root mean square w/σ."""
    df = pd.DataFrame({name: RNG.normal(size=200) for name in ("loud", "soft", "mute")})
    vae = pv.VAE.for_table(df, 1, families=dict.fromkeys(df, "gaussian"), hidden_dims=())
    family, decoder = vae.likelihood.parts[0], vae.likelihood.network.layers[-1]
    features, encoder = vae.encoder.network[0], vae.encoder.network[1].layers[-1]
    with torch.no_grad():
        decoder.weight[:, 0] = torch.tensor([1.0, 0.5, 0.0])
        family.log_scale[:] = torch.tensor([0.05, 0.5, 1.0]).log()
        encoder.weight.zero_()
        encoder.weight[0, 0] = 1.0
        encoder.bias[:] = torch.tensor([0.0, np.log(0.05)])
        decoder.bias.zero_()
    torch.testing.assert_close(features.loc, family.standardize.loc)
    found = pv.diagnose(vae, vae.sample(1000), num_samples=100)
    gradient = found.columns["gradient"]
    assert gradient["loud"] == pytest.approx(20.0, rel=0.1)
    assert gradient["soft"] == pytest.approx(1.0, rel=0.1)
    assert gradient["mute"] == 0.0
    assert found.columns["share"].sum() == pytest.approx(1.0)
    assert "Column 'loud' has 100% of the squared gradients" in " ".join(str(found).split())


def test_chunks_and_masks_beside_the_rows_are_those_of_the_frame(vae):
    whole = pv.elbo(vae, FRAME, num_samples=2).estimate
    np.testing.assert_array_equal(pv.elbo(vae, [FRAME[:20], FRAME[20:]], num_samples=2).estimate, whole)
    mask = RNG.random(FRAME.shape) < 0.7
    beside = pv.elbo(vae, {"x": FRAME, "observed": mask}, num_samples=2).estimate
    np.testing.assert_array_equal(beside, pv.elbo(vae, FRAME.where(mask), num_samples=2).estimate)
    codes = vae.table.encode(FRAME)
    np.testing.assert_array_equal(pv.elbo(vae, codes, num_samples=2).estimate, whole)


def test_a_mask_in_a_frame_beside_codes_is_matched_by_name(vae):
    """Before, it was taken by position."""
    codes = vae.table.encode(FRAME)
    mask = pd.DataFrame(np.random.default_rng(0).random(codes.shape) < 0.7, columns=vae.table.names)
    expected = pv.elbo(vae, {"x": codes, "observed": mask.to_numpy()}, num_samples=2).estimate
    numbers = mask.set_axis(range(codes.shape[1]), axis=1)
    for observed in (mask, mask[mask.columns[::-1]], mask[::-1].assign(more=True)[::-1], numbers):
        found = pv.elbo(vae, {"x": codes, "observed": observed}, num_samples=2).estimate
        np.testing.assert_array_equal(found, expected)
    for observed in (mask.iloc[:, 1:], numbers.set_axis(numbers.columns[::-1], axis=1)):
        with pytest.raises(ValueError, match=r"observed: expected the columns .*, got none named"):
            pv.elbo(vae, {"x": codes, "observed": observed}, num_samples=2)


@pytest.mark.filterwarnings("ignore:.* has 1.5 in 99% of its cells")
def test_repeated_values_and_copied_columns_are_refused_in_training():
    """A learned scale would shrink to 0 there."""
    df = FRAME[["real", "job"]].assign(real=[1.5] * (N - 0))
    df.loc[0, "real"] = 2.5
    df = pd.concat([df] * 2)
    df.iloc[N, 0] = 1.5
    vae = pv.VAE.for_table(df, 1, families={"real": "gaussian"}, hidden_dims=())
    with pytest.raises(ValueError, match="one value in over 99 % of the rows, first column 'real'"):
        pv.fit(vae, df, epochs=1)


def test_dependence_between_a_label_and_a_number_is_learned():
    """Means of samples given the label, beside those of the rows: each within 0.5, where they lie 3 apart."""
    torch.manual_seed(0)
    n = 400
    label = RNG.choice(["a", "b", "c"], n)
    number = pd.Series(label).map({"a": -3.0, "b": 0.0, "c": 3.0}).to_numpy() + 0.5 * RNG.normal(size=n)
    df = pd.DataFrame({"label": label, "number": number})
    vae = pv.VAE.for_table(df, 1, families={"number": "gaussian"}, hidden_dims=(24,), activation="tanh")
    pv.fit(vae, df, epochs=150, lr=2e-2, batch_size=n)
    found, held = (each.groupby("label")["number"].mean() for each in (vae.sample(3000), df))
    assert (found - held).abs().max() < 0.5


def test_imputed_rows_have_the_frames_own_types_and_cells(vae):
    """Every column keeps its type and its observed cells; a missing cell gets a value of the training rows' kind."""
    rows = vae.table.decode(vae.table.encode(frame(8)))
    holed = rows.astype(object).mask(np.random.default_rng(1).random(rows.shape) < 0.3)
    holed = pd.DataFrame({c: rows[c].where(holed[c].notna()) for c in rows})
    holed.index = pd.Index(list("abcdefgh"), name="id")
    found = pv.impute(vae, holed, 5, num_samples=100, check=False)
    for completed in (*found.completed, found.point("median")):
        assert completed.index.equals(holed.index)
        assert completed.dtypes.equals(holed.dtypes)
        assert not completed.isna().any().any()
        kept = holed.notna()
        for column in holed:
            assert completed[column][kept[column]].tolist() == holed[column][kept[column]].tolist()
        assert not np.isnan(vae.table.encode(completed)).any()  # values that the table knows
    lines = found.to_frame()
    assert set(lines["mode"][lines["column"] == "job"]) <= {"cook", "nurse", "smith"}


def test_a_category_that_lacks_the_drawn_level_becomes_that_of_the_training_rows():
    train = pd.DataFrame({"c": pd.Categorical(["r", "s"] * 10), "n": np.arange(20) % 7 + 0.5})
    vae = pv.VAE.for_table(train, 1, hidden_dims=(2,))
    x = pd.DataFrame({"c": pd.Categorical(["r", None], categories=["r"]), "n": [0.5, 1.5]})
    drawn = [completed["c"] for completed in pv.impute(vae, x, 20, num_samples=100, check=False).completed]
    assert {column[1] for column in drawn} == {"r", "s"}
    assert all(column.dtype == train["c"].dtype for column in drawn if column[1] == "s")


def test_a_mask_beside_a_tables_frame_has_its_columns_by_name(vae):
    rows = vae.table.decode(vae.table.encode(frame(4)))
    observed = rows.notna()
    observed.loc[2, "job"] = False
    right = pv.elbo(vae, rows.where(observed), num_samples=5).estimate
    for mask in (observed, observed[observed.columns[::-1]]):
        assert np.array_equal(pv.elbo(vae, {"x": rows, "observed": mask}, num_samples=5).estimate, right)
    with pytest.raises(ValueError, match=r"observed: expected the columns .* got none named 'job'"):
        pv.elbo(vae, {"x": rows, "observed": observed.drop(columns="job")}, num_samples=5)


@pytest.mark.parametrize("strange", ["pilot", np.inf, 2**60 + 1, None])
def test_a_mask_hides_whatever_a_cell_holds(vae, strange):
    mask = RNG.random(FRAME.shape) < 0.7
    rows = FRAME.astype(object).where(mask, strange)
    found = pv.elbo(vae, {"x": rows, "observed": mask}, num_samples=2).estimate
    np.testing.assert_array_equal(found, pv.elbo(vae, FRAME.where(mask), num_samples=2).estimate)


def trained():
    """A small table in which one column is left out, and rows with their columns in another order."""
    rng = np.random.default_rng(3)
    n = 60
    frame = pd.DataFrame(
        {
            "same": np.ones(n),
            "age": np.round(rng.normal(40, 10, n)),
            "dose": rng.lognormal(0, 0.3, n),
            "visits": rng.poisson(3.0, n),
            "job": rng.choice(["cook", "nurse"], n),
        }
    )
    with pytest.warns(UserWarning, match="left out"):
        vae = pv.VAE.for_table(frame, 1, resolution={"age": 1}, hidden_dims=(3,))
    return vae, frame, frame[["job", "visits", "same", "dose", "age"]]


def test_columns_in_another_order_and_columns_left_out_change_nothing():
    """Neither scores, nor names of odd columns, nor what is given, nor masks in arrays, nor imputations."""
    vae, frame, turned = trained()
    frame.loc[5, "age"], turned.loc[5, "age"] = 150.0, 150.0
    few = {"num_samples": 100, "check": False}
    found, again = (pv.outliers(vae, rows, **few) for rows in (frame, turned))
    assert found["oddest"][5] == "age"
    pd.testing.assert_frame_equal(found, again)
    given = [pv.log_evidence(vae, rows, given=["job", "age"], **few) for rows in (frame, turned)]
    assert np.array_equal(given[0].estimate, given[1].estimate)
    assert given[0].fingerprint == given[1].fingerprint
    assert (given[0].observed == 2).all()  # dose and visits
    other = pv.log_evidence(vae, turned, given=["dose", "visits"], **few)
    with pytest.raises(ValueError, match="given"):
        pv.compare({"a": given[0], "b": other})
    with pytest.raises(ValueError, match="given"):
        pv.log_evidence(vae, frame, given=["same"], **few)
    observed = np.random.default_rng(0).random(frame.shape) < 0.7
    moved = observed[:, [frame.columns.get_loc(name) for name in turned.columns]]
    imputed = [
        pv.impute(vae, {"x": rows, "observed": mask}, 3, **few)
        for rows, mask in ((frame, observed), (turned, moved))
    ]
    assert np.array_equal(imputed[0].draws, imputed[1].draws)
    with pytest.raises(ValueError, match="observed: expected the shape of the frame"):
        pv.elbo(vae, {"x": frame, "observed": observed[:, 1:]})


def test_means_are_not_rounded_and_in_the_units_of_the_frame():
    vae, frame, _ = trained()
    frame = frame.astype({"visits": "Int64"})
    frame.loc[:20, ["age", "visits"]] = None
    found = pv.impute(vae, frame, 7, num_samples=100, check=False)
    lines = found.to_frame()
    ages = lines[lines["column"] == "age"]
    assert (ages["mean"].astype(float) - found.mean[found.columns == 0] < 1e-12).all()
    assert (ages["mean"] < ages["high"].max() + 1).all()
    means = found.point("mean")
    np.testing.assert_allclose(means["visits"][:21].astype(float), found.mean[found.columns == 2], rtol=1e-12)
    assert found.point("median")["visits"].dtype == "Int64"


def test_a_column_that_is_all_missing_is_imputed_in_the_type_of_the_training_rows():
    vae, frame, _ = trained()
    drawn = pv.impute(vae, frame.assign(job=np.nan), 2, num_samples=100, check=False).completed
    assert {dtype for completed in drawn for dtype in [completed["job"].dtype]} == {frame["job"].dtype}
    assert set(drawn[0]["job"]) <= {"cook", "nurse"}


def test_steps_are_whole_up_to_the_rounding_of_the_numbers():
    rng = np.random.default_rng(0)
    cents = np.round(rng.uniform(1e8, 2e8, 50), 2)
    tenths = np.round(rng.normal(60, 9, 50), 1).astype("float32")
    table = Table.of(
        pd.DataFrame({"cents": cents, "tenths": tenths}), resolution={"cents": 0.01, "tenths": 0.1}
    )
    codes = table.encode(pd.DataFrame({"cents": cents, "tenths": tenths}))
    np.testing.assert_array_equal(codes, np.stack([np.round(cents * 100), np.round(tenths * 10.0)], axis=1))
    with pytest.raises(
        ValueError, match=r"resolution\['r'\]: expected a step in which the numbers differ, got 1e\+07"
    ):
        Table.of(pd.DataFrame({"r": rng.normal(size=30)}), resolution={"r": 1e7})


def test_zeros_and_ones_are_no_booleans_in_a_category():
    table = Table.of(pd.DataFrame({"flag": pd.Categorical([True, False, False]), "n": [1.5, 2.5, 3.5]}))
    with pytest.raises(ValueError, match="levels of the training rows, False, True, got 3 cells with others"):
        table.encode(pd.DataFrame({"flag": pd.Categorical([1, 0, 0]), "n": [1.5, 2.5, 3.5]}))


def test_whole_numbers_beyond_counting_are_intervals():
    held = np.random.default_rng(0).integers(0, 2**40, 50)
    table = Table.of(pd.DataFrame({"hash": held}))
    assert table.columns[0].family.startswith("rounded")
    with pytest.raises(ValueError, match=r"x\['hash'\].*2\^53, got 1 others, first in row 3"):
        table.encode(pd.DataFrame({"hash": [1, 2, 3, 2**53 + 1]}))


@pytest.mark.parametrize("offset", [0, 10**9, 3 * 10**13])
def test_whole_numbers_far_from_zero_are_no_constants(offset):
    held = np.random.default_rng(0).integers(-9, 9, 50)
    vae = pv.VAE.for_table(pd.DataFrame({"a": offset + held}), 1, hidden_dims=())
    (column,) = vae.table.columns
    assert vae.encoder.network[0].loc.item() == column.feature_loc
    assert column.family == "rounded_gaussian"
    assert column.loc - offset == pytest.approx(held.mean(), abs=1e-3)
    assert column.scale == pytest.approx(held.std(), rel=1e-6)


def test_floats_beyond_2_to_the_53_are_no_counts():
    held = np.random.default_rng(0).uniform(1, 2, 50) * 2.0**53
    assert Table.of(pd.DataFrame({"a": held})).columns[0].resolution is None


@pytest.mark.parametrize("k", [1e6, 1e10, 1e13, 4e15])
@pytest.mark.parametrize("log", [False, True])
def test_masses_of_large_numbers_keep_their_digits(k, log):
    """Against the midpoint rule, exact to (1/k)²: the interval is narrow."""
    loc, scale = (np.log(k) - 0.3, 0.7) if log else (0.9 * k, 0.2 * k)
    u = np.log(k) if log else k
    exact = stats.norm.logpdf(u, loc, scale) - (np.log(k) if log else 0.0)
    fn = distributions.RoundedNormal(*(torch.tensor(v, dtype=torch.float64) for v in (loc, scale)), log=log)
    assert float(fn.log_prob(torch.tensor(k, dtype=torch.float64))) == pytest.approx(exact, abs=1e-6)


@pytest.mark.parametrize("offset", [1e10, 1e12])
def test_a_mass_far_from_zero_is_that_near_zero(offset):
    steps = np.random.default_rng(0).normal(0.0, 2.0, 4000).round()
    near, far = (pv.VAE.for_table(pd.DataFrame({"a": steps + by}), 1) for by in (1000.0, offset))
    assert far.table.columns[0].family == near.table.columns[0].family == "rounded_gaussian"
    far.load_state_dict(
        {**far.state_dict(), **{k: v for k, v in near.state_dict().items() if "network" in k}}
    )
    z = torch.zeros(1, 1, dtype=torch.float64)
    masses = [
        vae.likelihood(z).log_prob(torch.as_tensor(steps[:50, None] + by))
        for vae, by in ((near, 1000.0), (far, offset))
    ]
    np.testing.assert_allclose(masses[1].detach(), masses[0].detach(), atol=1e-3)


@pytest.mark.parametrize("offset", [2.0**45, 2.0**52])
def test_masses_that_rounding_changes_are_refused(offset):
    frame = pd.DataFrame({"a": offset + np.random.default_rng(0).poisson(3.0, 300)})
    with pytest.raises(
        ValueError, match=r"df\['a'\]: expected numbers that differ by more than their rounding"
    ):
        pv.VAE.for_table(frame, 1)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float[pyarrow]", "halffloat[pyarrow]", "Float32"])
def test_steps_are_found_in_numbers_of_any_precision(dtype):
    pytest.importorskip("pyarrow")
    column = pd.Series(np.tile([0.1, 0.2, 0.3, 1.7], 10)).astype("float32").astype(dtype)
    df = pd.DataFrame({"a": column, "b": np.arange(40) % 7 + 0.25})
    table = Table.of(df, resolution={"a": 0.1})
    assert table.encode(df)[:4, 0].tolist() == [1.0, 2.0, 3.0, 17.0]


def test_sparse_columns_of_pandas_are_as_dense_ones():
    dense = pd.DataFrame({"n": [0, 0, 3, 1, 0, 2] * 6, "b": [True, False, False] * 12})
    thin = dense.astype({"n": pd.SparseDtype("int64", 0), "b": pd.SparseDtype("bool", False)})
    table = Table.of(thin)
    assert np.array_equal(table.encode(thin), Table.of(dense).encode(dense))
    assert table.decode(table.encode(thin))["n"].tolist() == dense["n"].tolist()


def test_one_far_cell_overflows_no_network(vae):
    """Grams for kilograms: the encoder sees at most 100 standard deviations."""
    far = FRAME[:4].assign(real=np.float32([5.0, 5e4, -5e6, 5e8]))
    found = pv.elbo(vae, far, num_samples=2)
    assert np.isfinite(found.estimate).all()


def test_columns_that_vary_little_beside_their_size_are_no_constants():
    df = pd.DataFrame({"t": 1.7e9 + RNG.random(50), "x": RNG.normal(size=50)})
    assert Table.of(df).names == ["t", "x"]


def test_cells_of_labels_have_a_mode_alone(vae):
    rows = vae.table.decode(vae.table.encode(frame(4))).assign(job=None)
    lines = pv.impute(vae, rows, 5, num_samples=100, check=False).to_frame()
    lines = lines[lines["column"] == "job"]
    assert lines[["mean", "median", "low", "high"]].isna().all().all()
    assert set(lines["mode"]) <= {"cook", "nurse", "smith"}


# --- types of completed frames, and whole numbers beyond 2^53


def completed(column, held, observed=None, **options):
    """A training column and its table's VAE, and the hidden cells of ``held`` completed in five imputations."""
    train = pd.DataFrame({"c": column, "other": RNG.normal(size=len(column))})
    vae = pv.VAE.for_table(train, 1, hidden_dims=(3,), **options)
    df = pd.DataFrame({"c": held, "other": RNG.normal(size=len(held))})
    mask = np.ones((len(df), 2), dtype=bool)
    mask[:3, 0] = False
    x = {"x": df, "observed": mask} if observed is None else df
    found = pv.impute(vae, x, 5, num_samples=100, check=False)
    return found, [each["c"] for each in found.completed]


WHOLE_HOLED = pd.Series([None] * 3 + [50, 51, 52], dtype="Int64")


@pytest.mark.parametrize(
    ("held", "dtype"),
    [
        (np.full(6, 50, dtype="int64"), "float64"),
        (np.full(6, 50, dtype="int8"), "float64"),
        (WHOLE_HOLED, "Float64"),
        (WHOLE_HOLED.astype("int64[pyarrow]"), "double[pyarrow]"),
        (pd.Series([50.0] * 6, dtype="float32"), "float32"),
    ],
    ids=["int64", "int8", "Int64", "Arrow", "float32"],
)
def test_fractions_are_not_cut_off_in_a_column_of_whole_numbers(held, dtype):
    """The training rows had fractions, so that imputed cells have some, too."""
    found, columns = completed(
        RNG.normal(50, 10, 80), held, held if hasattr(held, "isna") and held.isna().any() else None
    )
    for draw, column in zip(found.draws, columns, strict=True):
        assert column.dtype == dtype
        np.testing.assert_allclose(column.to_numpy(dtype=np.float64)[:3], draw, rtol=1e-6)
        assert (column[3:] == held[3:]).all()


@pytest.mark.parametrize(
    ("levels", "dtype"),
    [([0.5, 1.5, 2.5], "int64"), ([1, 2, 300], "int8"), ([1, 2, 300], "Int8"), ([-1, 1, 2], "uint8")],
)
def test_levels_that_a_type_lacks_are_imputed_in_that_of_the_training_rows(levels, dtype):
    held = pd.Series([0] * 6, dtype=dtype)
    held[:3] = 1
    held[3:] = 1
    train = np.resize(levels, 60)
    df = pd.DataFrame({"c": held, "other": 0.0})
    vae = pv.VAE.for_table(
        pd.DataFrame({"c": train, "other": RNG.normal(size=60)}),
        1,
        families={"c": "ordinal"},
        hidden_dims=(3,),
    )
    mask = np.repeat([[False, True]], 6, axis=0)
    found = pv.impute(vae, {"x": df, "observed": mask}, 20, num_samples=100, check=False)
    values = {value for each in found.completed for value in each["c"]}
    assert values <= set(levels)
    assert len(values) > 1


@pytest.mark.parametrize(
    "held",
    [
        pd.Series([pd.NaT] * 6),
        pd.Series([None] * 6, dtype="boolean"),
        pd.Series([None] * 6, dtype="string"),
        pd.Series([None] * 6, dtype="category"),
        pd.Series([None] * 6, dtype="Int64"),
        pd.Series([False] * 6),
    ],
    ids=["dates", "boolean", "string", "category", "Int64", "hidden booleans"],
)
@pytest.mark.parametrize("column", ["numbers", "labels", "booleans"])
def test_a_column_without_a_cell_is_imputed_whatever_its_type(held, column):
    train = {
        "numbers": RNG.normal(50, 10, 60),
        "labels": RNG.choice(["a", "b", "c"], 60),
        "booleans": RNG.random(60) < 0.5,
    }[column]
    vae = pv.VAE.for_table(pd.DataFrame({"c": train, "other": RNG.normal(size=60)}), 1, hidden_dims=(3,))
    df = pd.DataFrame({"c": held, "other": 0.0})
    mask = np.repeat([[False, True]], 6, axis=0)
    found = pv.impute(vae, {"x": df, "observed": mask}, 5, num_samples=100, check=False)
    back = np.concatenate([vae.table.encode(each)[:, 0] for each in found.completed])
    np.testing.assert_allclose(back, found.draws.ravel(), rtol=1e-12)


@pytest.mark.parametrize("dtype", ["int64", "uint64", "Int64", "object", "category"])
def test_long_labels_come_back(dtype):
    """Account numbers beyond 2^53 are labels; float64 would make two of the three one."""
    accounts = [2**53 + 1, 2**53 + 3, 2**53 + 5]
    df = pd.DataFrame({"account": pd.Series(accounts * 20).astype(dtype), "y": RNG.normal(size=60)})
    table = Table.of(df, families={"account": "categorical"})
    codes = table.encode(df)
    pd.testing.assert_frame_equal(table.decode(codes), df)
    codes[0, 0] = np.nan
    back = table.decode(codes)["account"]
    assert back.isna().tolist() == [True] + [False] * 59
    assert [int(value) for value in back[1:]] == (accounts * 20)[1:]


def test_float16_is_no_bound():
    df = pd.DataFrame({"x": RNG.lognormal(6, 2, 100).clip(0, 6e4).astype("float16")})
    table = Table.of(df)
    assert table.decode([[1e5], [2.5]])["x"].tolist() == [1e5, 2.5]
    assert table.decode([[2.5]])["x"].dtype == "float16"


@pytest.mark.parametrize(
    "values",
    [
        [Decimal(2**53 + 1 + i) for i in range(60)],
        np.array([2**53 + 1 + i for i in range(60)], dtype=object).astype(np.longdouble),
        [2**53 + 1 + i for i in range(60)],
        pd.Series([2**53 + 1 + i for i in range(60)]).astype("Int64"),
    ],
    ids=["decimals", "long doubles", "integers", "nullable"],
)
def test_long_numbers_of_any_type_are_refused(values):
    with pytest.raises(ValueError, match=r"df\['a'\]: expected whole numbers between -2\^53 and 2\^53, got "):
        Table.of(pd.DataFrame({"a": values}))


def test_decimals_are_completed_with_numbers_that_the_model_takes():
    cents = [Decimal(int(value)) / 100 for value in RNG.integers(100, 9000, 60)]
    for kind in (object, pd.ArrowDtype(pyarrow.decimal128(10, 2))):
        df = pd.DataFrame({"c": pd.Series(cents, dtype=kind), "y": RNG.normal(size=60)})
        vae = pv.VAE.for_table(df, 1, hidden_dims=(3,))
        mask = np.ones(df.shape, dtype=bool)
        mask[:3, 0] = False
        found = pv.impute(vae, {"x": df, "observed": mask}, 2, num_samples=100, check=False)
        completed = next(iter(found.completed))
        assert list(completed["c"])[3:] == [float(value) for value in cents[3:]]
        back = vae.table.encode(completed)[:, 0]
        np.testing.assert_allclose(back, [*found.draws[0], *vae.table.encode(df)[3:, 0]], rtol=1e-12)
        vae.sample(2)


@pytest.mark.parametrize("values", [["x", "y", None, "z"], [3, 1, None, 2]])
def test_dictionaries_of_arrow_are_categories(values):
    cells = pyarrow.array(values * 15).dictionary_encode()
    df = pd.DataFrame(
        {"k": pd.arrays.ArrowExtensionArray(cells), "y": RNG.normal(size=60)}, index=range(60, 0, -1)
    )
    twin = df.assign(k=pd.Categorical(values * 15, categories=[v for v in values if v is not None]))
    table = Table.of(df)
    assert table == Table.of(twin)
    np.testing.assert_array_equal(table.encode(df), table.encode(twin))
    np.testing.assert_array_equal(table.encode(pd.concat([df[:20], df[20:]])), table.encode(twin))
    missing = df[table.names].isna().to_numpy()
    back = table.filled(df, missing, np.zeros(missing.sum()))
    assert list(back["k"]) == [values[0] if value is None else value for value in values * 15]


def test_the_first_level_of_several_names_no_column():
    df = pd.DataFrame(RNG.normal(size=(40, 3)))
    df.columns = pd.MultiIndex.from_tuples([("a", "x"), ("a", "y"), ("b", "x")])
    vae = pv.VAE.for_table(df, 1, families={("a", "y"): None}, hidden_dims=(3,))
    assert vae.sample(2).columns.equals(df.columns[[0, 2]])
    for name in ("a", ("a",)):
        with pytest.raises(ValueError, match="families: expected names of columns"):
            pv.VAE.for_table(df, 1, families={name: None})


def test_columns_of_several_levels_are_named_in_diagnoses_and_plots():
    """Before, their names were an error of pandas."""
    flat = pd.DataFrame(RNG.normal(size=(60, 3)), columns=["ax", "ay", "bx"])
    flat.iloc[:9, 1] = np.nan
    labels = pd.MultiIndex.from_tuples([("a", "x"), ("a", "y"), ("b", "x")])
    found = []
    for columns in (flat.columns, labels):
        df = flat.set_axis(columns, axis=1)
        torch.manual_seed(0)
        vae = pv.VAE.for_table(df, 1, hidden_dims=(3,))
        pv.fit(vae, df, epochs=1)
        distances = pv.plots.column_distances(df, vae.sample(20))
        found.append((pv.diagnose(vae, df, num_samples=100).columns, distances))
    for plain, several in zip(*found, strict=True):
        assert list(several.index) == list(labels)
        assert several.index.name == "column"
        pd.testing.assert_frame_equal(plain, several.set_axis(plain.index))


@pytest.mark.parametrize("other", [3, 2.25, np.int64(4), Decimal("sNaN"), None])
def test_decimals_may_be_mixed_with_other_numbers(other):
    """Before, the column was an error in tables and not in baselines; and a signalling NaN was one in both."""
    held = [Decimal("1.50"), other, Decimal("2.75"), Decimal("0.25"), Decimal("5.5")] * 12
    column = pd.Series(held, dtype=object)
    missing = [value is None or (isinstance(value, Decimal) and value.is_nan()) for value in held]
    plain = pd.Series([np.nan if gone else float(v) for v, gone in zip(held, missing, strict=True)])
    real = RNG.normal(size=60)
    df, floats = (pd.DataFrame({"c": each, "real": real}) for each in (column, plain))
    tables = [Table.of(each) for each in (df, floats)]
    assert tables[0].columns[0].resolution == tables[1].columns[0].resolution == 0.25
    for frame in (df, [df[:20], df[20:]]):
        for table in tables:
            np.testing.assert_array_equal(np.asarray(table.read(frame)), table.encode(floats))
    found, expected = (baselines.FullGaussian().fit(x).log_evidence(x).estimate for x in (df, floats))
    np.testing.assert_array_equal(found, expected)


def test_decimals_of_two_levels_are_completed_with_numbers_of_one_type():
    df = pd.DataFrame({"c": pd.Series([Decimal("1.5"), 2] * 30, dtype=object), "real": RNG.normal(size=60)})
    table = Table.of(df)
    holed = df.assign(c=df["c"].where(np.arange(60) > 5))
    found = table.filled(holed, holed[["c", "real"]].isna().to_numpy(), np.ones(6))
    assert found["c"].dtype == np.float64
    assert found["c"].tolist() == [2.0] * 6 + [1.5, 2.0] * 27


def test_the_advice_for_intervals_keeps_their_order():
    df = pd.DataFrame({"real": RNG.normal(size=60)})
    df["c"] = pd.cut(df["real"], 4)
    df.loc[3, "c"] = None
    with pytest.raises(ValueError, match=r"Pass df\['c'\]\.cat\.rename_categories\(str\)") as refusal:
        Table.of(df)
    fix = re.search(r"Pass (.*) in its place", str(refusal.value))[1]
    (column, _) = Table.of(df[["c", "real"]].assign(c=eval(fix, {"df": df, "str": str}))).columns
    assert (column.family, column.levels) == ("ordinal", tuple(map(str, df["c"].cat.categories)))


def test_given_takes_the_labels_of_numbered_columns_as_strings():
    df = pd.DataFrame(RNG.normal(size=(60, 3)))
    options = {"num_samples": 50, "check": False}
    for labels in ([0, 1, 2], [1, 2, 3], [0.0, 1.0, 2.0]):
        rows = df.set_axis(labels, axis=1)
        torch.manual_seed(0)
        vae = pv.VAE.for_table(rows, 1, hidden_dims=(3,))
        found = pv.log_evidence(vae, rows, given=[str(labels[1]) if labels[0] else "1"], **options)
        expected = pv.log_evidence(vae, rows.to_numpy(), given=[1], **options)
        np.testing.assert_array_equal(found.estimate, expected.estimate)


@pytest.mark.parametrize(
    ("cells", "first"),
    [
        (["12%", "3%"], "12%"),
        (["17", "1,234", "2,345"], "1,234"),
        ([" 7 ", "8"], " 7 "),
        (["1", "1e3"], "1e3"),
        (["1", "2.5"], "2.5"),
        (["1.5"] * 19 + ["x"], "1.5"),
        (["1.5"] * 2 + ["x"], None),
        (["1", "2"], None),  # labels, perhaps made of whole numbers on purpose
        (["01", "0.5"], None),
        (["a", "b"], None),
    ],
)
@pytest.mark.parametrize("kind", ["object", "string"])
def test_text_that_looks_like_numbers_is_named(cells, first, kind):
    column = pd.Series([*cells * 20, None], dtype=kind)
    df = pd.DataFrame({"c": column, "real": np.arange(len(column)) ** 1.5})
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        pv.VAE.for_table(df, 1, hidden_dims=())
    texts = [str(each.message) for each in found]
    if first is None:
        assert texts == []
    else:
        assert [re.split(r"\. (?:The code|Write)", text)[0] for text in texts] == [
            f"df['c'] has labels that look like numbers, first {first!r}"
        ]
        assert found[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pv.VAE.for_table(df, 1, families={"c": "categorical"}, hidden_dims=())
        pv.VAE.for_table(df, 1, families={"c": None}, hidden_dims=())
        pv.VAE.for_table(df.astype({"c": "category"}), 1, hidden_dims=())


@pytest.mark.parametrize(
    ("options", "weights"),
    [
        ({}, [0.5, 1.0]),  # of the first two of 20 epochs
        ({"kl_warmup": 0}, [1.0, 1.0]),
        ({"kl_warmup": 4}, [0.25, 0.5]),
        ({"loss": Trace_ELBO()}, [1.0, 1.0]),
    ],
    ids=["default", "none", "given", "a loss"],
)
def test_tables_have_a_warm_up_by_default(options, weights):
    frame = pd.DataFrame({"a": [0.5, 1.25, -0.75, 2.0] * 4, "b": ["u", "v", "v", "u"] * 4})
    vae = pv.VAE.for_table(frame, 1, hidden_dims=(4,))
    assert pv.fit(vae, frame, epochs=20, **options).frame["kl_weight"].tolist()[:2] == weights


@pytest.mark.parametrize(
    ("family", "values", "message"),
    [
        ("beta", [0.5, 0.25, 3.0], "'beta' can score, got 1 others, first 3 in row 3"),
        ("beta", [0.5, 0.25, 0.0], "'beta' can score, got 1 others, first 0 in row 3"),
        ("continuous_bernoulli", [0.0, 1.0, 1.5], "first 1.5 in row 3"),
        (
            ("beta", {"concentration": "per_dimension"}),
            [0.5, 0.25, 1.0],
            "with concentration='per_dimension', got 1 others, first 1 in row 3",
        ),
        (("binomial", {"total_count": 5}), [1, 8, 5], "with total_count=5, got 1 others, first 8 in row 2"),
        ("poisson", [1.5, 2.0, 3.0], "'poisson' can score, got 1 others, first 1.5 in row 0"),
        ("gamma", [1.5, -2.0, 3.0], "'gamma' can score, got 1 others, first -2 in row 2"),
        (("discretized_logistic", {"levels": 4}), [1, 4, 3], "first 4 in row 2"),
    ],
)
def test_numbers_off_the_support_of_a_family_are_refused_before_the_fit(family, values, message):
    df = pd.DataFrame({"c": [values[0], None, *values[1:]], "real": RNG.normal(size=4)})
    with pytest.raises(ValueError, match=r"df\['c'\]: expected numbers that .*" + re.escape(message)):
        pv.VAE.for_table(df, 1, families={"c": family})


def test_booleans_are_no_levels_of_whole_numbers():
    """True == 1, but a category of booleans has other levels than one of 0 and 1. The reverse was refused before."""
    numbers, booleans = (
        pd.DataFrame({"c": pd.Categorical(levels * 20), "real": np.arange(40) ** 1.5})
        for levels in ([0, 1], [False, True])
    )
    for known, other in ((numbers, booleans), (booleans, numbers)):
        with pytest.raises(ValueError, match=r"x\['c'\]: expected levels .* got 40 cells with others"):
            Table.of(known).encode(other)


def test_given_numbers_the_columns_that_came():
    """Numbers are positions in the frame, whatever the table's order is and whatever it leaves out."""
    df = pd.DataFrame({"k": [f"id {i}" for i in range(60)], **{name: RNG.normal(size=60) for name in "abc"}})
    vae = pv.VAE.for_table(df, 1, families={"k": None}, hidden_dims=(3,))

    def mean(rows, given):
        return pv.log_evidence(vae, rows, given=given, num_samples=50, check=False).mean

    by_name = {name: mean(df, [name]) for name in "abc"}
    assert len(set(by_name.values())) == 3
    assert [mean(df, [number]) for number in (1, 2, 3)] == list(by_name.values())
    assert [mean(df[["c", "b", "a"]], [number]) for number in (2, 1, 0)] == list(by_name.values())
    with pytest.raises(
        ValueError, match=r"given: expected columns of the model, .*, got 'k', which is left out"
    ):
        mean(df, [0])


@pytest.mark.parametrize(
    "family", [("binomial", {"total_count": 10**6}), "beta", "continuous_bernoulli"], ids=str
)
def test_columns_of_extreme_means_start_within_their_bounds(family):
    """Means of 1e-5, of which the largest is below the 1e-3 that families start from: outputs beyond have no gradient."""
    counts = np.random.default_rng(0).integers(5, 40, 200)
    df = pd.DataFrame({"share": counts if isinstance(family, tuple) else counts * 1e-6})
    torch.manual_seed(0)
    vae = pv.VAE.for_table(df, latent_dim=1, families={"share": family})
    pv.fit(vae, df, epochs=1, lr=1e-6)
    mean = vae.likelihood(torch.zeros(1, 1, dtype=vae.dtype)).mean
    assert abs(float(mean.detach()) / df["share"].mean() - 1) < 0.5
    slopes = torch.autograd.grad(mean.sum(), list(vae.likelihood.parameters()), allow_unused=True)
    assert any(slope is not None and bool((slope != 0).any()) for slope in slopes)


# --- columns that are functions of others


def test_columns_that_are_affine_functions_of_others_are_named():
    """Only those whose density can grow without bound, as exact functions with a learned spread."""
    rng = np.random.default_rng(0)
    df = pd.DataFrame(rng.normal(size=(200, 3)), columns=list("xyz"))
    df = df.assign(cm=2.54 * df.x + 1, sum=df.y - 3 * df.z + df.x, near=df.x + 1e-4 * rng.normal(size=200))
    df = df.assign(steps=df.x.round(1), twice=2 * df.x.round(1), fixed=-df.x)
    options = {
        "families": {"fixed": ("gaussian", {"scale": 1.0})},
        "resolution": {"steps": 0.1, "twice": 0.2},
    }
    with pytest.warns(UserWarning, match="affine") as caught:
        vae = pv.VAE.for_table(df, 1, hidden_dims=(2,), **options)
    assert [re.split(r"\. Its", str(each.message))[0] for each in caught] == [
        "df['cm'] is an exact affine function of 'x'",
        "df['sum'] is an exact affine function of 'x', 'y', 'z'",
    ]
    why = vae.table.summary().set_index("column").why
    assert why.index[why.str.contains("affine")].tolist() == ["cm", "sum"]
    holed = df[["x", "y", "z", "cm"]].mask(rng.random((200, 4)) < 0.6)
    few = holed[holed.isna().any(axis=1)]  # no row is complete
    with pytest.warns(UserWarning, match=r"df\['cm'\] is an exact affine function of 'x'"):
        pv.VAE.for_table(few, 1, hidden_dims=(2,))


def _functions(df, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        why = Table.of(df, **options).summary().set_index("column")["why"]
    return {name: text.rpartition("affine function of ")[2] for name, text in why.items() if "affine" in text}


@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_functions_of_masses_are_named_too(missing):
    rng, n = np.random.default_rng(0), 300
    lb, member, score = rng.normal(165, 30, n).round(), rng.random(n) < 0.5, rng.choice([1, 2, 5], n)
    df = pd.DataFrame(
        {"kg": 0.45359237 * lb, "lb": lb, "member": member, "score": score, "x": rng.normal(size=n)}
    )
    df = df.assign(fee=df.x + 2.5 * member, mean=score / 3 + df.x, lb2=2 * lb, job=rng.choice(list("abc"), n))
    found = _functions(df.mask(rng.random(df.shape) < missing), families={"score": "ordinal"})
    assert found == {"kg": "'lb'", "fee": "'member', 'x'", "mean": "'score', 'x'"}


def test_sums_of_many_columns_are_named():
    """Each of the 60 correlates with the sum by 0.13 alone."""
    df = pd.DataFrame(np.random.default_rng(0).normal(size=(100, 60))).add_prefix("x")
    assert list(_functions(df.assign(total=df.sum(axis=1)))) == ["total"]


@pytest.mark.parametrize("missing", ["in all columns", "in one"])
def test_functions_are_found_among_columns_with_missing_cells(missing):
    rng = np.random.default_rng(0)
    df = pd.DataFrame(rng.normal(size=(400, 12))).add_prefix("x")
    hidden = rng.random((400, 12)) < (0.4 if missing == "in all columns" else [0.0] * 11 + [0.98])
    total = df["x0"] + df["x1"]
    assert _functions(df.assign(total=total).mask(np.c_[hidden, hidden[:, 3]])) == {"total": "'x0', 'x1'"}
    assert not _functions(df.assign(total=total + 1e-3 * df["x11"] ** 2).mask(np.c_[hidden, hidden[:, 3]]))


def test_a_repeated_number_in_a_density_is_doubted_with_code_that_mends_it():
    rng = np.random.default_rng(0)
    rain = rng.lognormal(size=100) * (np.arange(100) % 2)
    df = pd.DataFrame(
        {
            "rain": rain,
            "one": rain.round(1),
            "grade": rng.integers(1, 6, 100) * 1.0,
            "x": rng.normal(size=100),
        }
    )
    df.loc[:9, "rain"] = None
    named = {"grade": "gaussian", "one": ("gaussian", {"scale": 1.0})}
    with pytest.warns(UserWarning, match="grow without bound") as caught:
        pv.VAE.for_table(df, 1, hidden_dims=(2,), families=named)
    rain_says, grade_says = (str(each.message) for each in caught)
    assert rain_says.startswith("df['rain'] has 0 in 50% of its cells")
    assert "or give a resolution: resolution={'grade': 1}; or make two" in grade_says
    both = re.search(r"resolution: (.*) and (resolution=.*?); or make two columns: (.*); (.*)\.$", rain_says)
    held: dict = {"df": df.copy()}
    for line in both.groups()[:2]:
        exec(line, held)
    assert Table.of(held["df"], resolution=held["resolution"]).columns[0].family == "censored_gaussian"
    held = {"df": df[["rain"]].copy()}
    for line in both.groups()[2:]:
        exec(line, held)
    families = {column.name: column.family for column in Table.of(held["df"]).columns}
    assert families == {"rain": "log_normal", "rain is 0": "bernoulli"}
    assert held["df"]["rain is 0"].isna().sum() == 10


@pytest.mark.parametrize(("far", "times"), [(-999999.0, 22), (1e7, 22), (1e8, 1)])
@pytest.mark.parametrize("complete", [True, False])
def test_numbers_far_out_in_the_same_rows_make_no_function(far, times, complete):
    """The share of variance that independent columns leave is below 1e-10, because these numbers have nearly all of it."""
    df = pd.DataFrame(np.random.default_rng(0).normal(size=(200, 2)), columns=["a", "b"])
    df.iloc[:times] = far
    if not complete:
        df.loc[100:, "c"] = df.loc[:150, "d"] = 1.0
        df.loc[100:, "c"] += np.arange(100) % 7
        df.loc[:150, "d"] += np.arange(151) % 5
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        table = Table.of(df)
    assert not table.summary()["why"].str.contains("affine").any()


# --- doubts about the training rows


DOUBTS = {
    "dates": (
        ["2024-01-01", "2024-01-02", "2024-03-01"],
        "has labels that look like dates, first '2024-01-01'",
    ),
    "times": (
        ["2024-01-01 07:00:00", "2024-01-02 08:00:00"],
        r"dates.*pandas\.to_datetime\(df\['c'\], format=\"ISO8601\", utc=True\)",
    ),
    "days first": (["1.2.2024", "13.2.2024"], "dates"),
    "unit": (
        [f"{n}.5 kg" for n in range(9)] + ["?"],
        r"to_numeric\(df\['c'\]\.str\.removesuffix\(' kg'\), errors",
    ),
    "kg, a space": (
        [f"{n}.5 kg " for n in range(9)] * 3,
        r"first '0\.5 kg'\. Pass pandas\.to_numeric\(df\['c'\]\.str\.strip\(\)\.str\.removesuffix\(' kg'\), errors",
    ),
    "kg, lb": (
        [f"{n}.5 kg" for n in range(9)] * 3 + ["155 lb", "?"],
        r"The code makes these cells missing, 2 in all: '155 lb', '\?'\. Pass pandas\.to_numeric",
    ),
    "below a limit": (
        ["0.7", "3.5"] * 10 + ["<0.5"],
        "The code makes these cells missing, 1 in all: '<0.5'. Write",
    ),
    "whole, below": (
        ["7", "12"] * 9 + ["<5", "?"],
        "The second code makes these cells missing, 1 in all: '<5'. If",
    ),
    "clean numbers": (
        ["5.1", "3.5"],
        r"first '5\.1'\. Write pandas\.to_numeric\(df\['c'\], errors=\"coerce\"\)",
    ),
    "numbers, n/a": (
        ["5.1", "3.5", "n/a"],
        r"first '5\.1'\. The code makes these cells missing, 6 in all: 'n/a'\. Write pandas\.to_numeric",
    ),
    "words, n/a": (
        ["yes", "no", "n/a"],
        r"'n/a' among its labels.*df\['c'\]\.mask\(df\['c'\]\.isin\(\['n/a'\]\)\)",
    ),
    "whole, ?": (["7", "9", "12", "?"], r"isin\(\['\?'\]\)\), or pandas\.to_numeric"),
    "category, NA": (pd.Categorical(["a", "b", "NA"]), "'NA' among its labels"),
    "once": ([f"name {n}" for n in range(15)] + ["x"] * 9, "has 15 labels that occur once, in 24 rows"),
    "-999": (
        [20, 33, 47, 21, -999] * 5,
        r"has -999 in 5 rows, far from all other numbers, 20 to 47.*isin\(\[-999\]\)",
    ),
    "98, 99": ([1, 2, 3, 2, 1, 98, 99] * 5, r"has 98, 99 in 10 rows.*1 to 3.*isin\(\[98, 99\]\)"),
    "both ends": ([0.5, 0.7, 0.6, 0.4, 0.1, -9.0, 99.0] * 5, r"has -9, 99 in 10 rows.*0\.1 to 0\.7"),
    "one hides the other": ([20, 33, 47, 21, -999, 99] * 5, "has -999, 99 in 10 rows"),
    "most cells": ([-999.0] * 3 + [0.5, 0.7], "has -999 in 18 rows, far from all other numbers, 0.5 to 0.7"),
    "four codes": ([8, 20, 32, 96, 97, 98, 99] * 5, "has 96, 97, 98, 99 in 20 rows"),
    "twice a digit": ([8, 20, 32, -77, -88, -99] * 5, "has -99, -88, -77 in 15 rows"),
    "thrice a digit": ([1.5, 20, 32, 666, 777, 888, 999] * 5, "has 666, 777, 888, 999 in 20 rows"),
    "nines": ([0.5, 20, 40, -99.9] * 5, r"has -99\.9 in 5 rows"),
    "nines of float32": (np.float32([0.5, 20, 40, -99.9] * 5), r"has -99\.9 in 5 rows.*isin\(\[-99\.90"),
    "decimals": (
        [Decimal("20.1"), Decimal("21"), Decimal("19"), Decimal("999.9")] * 5,
        r"pass pandas\.to_numeric\(df\['c'\]\)\.mask\(pandas\.to_numeric\(df\['c'\]\)\.isin\(\[999\.9\]\)\)",
    ),
    "prices": ([9.99, 19.99, 29.9, 99.99] * 5, None),
    "most are far": ([1, 2, 500, 500, 500] * 5, None),
    "ages of few": ([18, 19, 20, 77, 78] * 5, None),
    "far": ([20, 33, 47, 21, 30, 500] * 5, "has 500 in 5 rows"),
    "answers and 9": ([1, 2, 3, 4, 9] * 5, None),
    "small counts": ([0, 1, 2, 7] * 5, None),
    "ranks": ([f"{n}th" for n in range(7)] * 5, None),
    "flats": ([f"{n}B" for n in range(120, 126)] * 5, None),
    "whole, kg": ([f"{n}kg" for n in range(70, 80)] * 3, "numbers with a unit, first '70kg'"),
    "pain": (["none", "some", "much"] * 5, None),
    "signs": (["+", "-"] * 9, None),
    "grades": (["9th", "10th", "college", "doctor", "none"] * 9, None),
    "scale": ([1, 2, 3, 4, 5, 9] * 5, None),
    "zeros": ([0, 0, 1000, 1001, 1002, 1001] * 5, None),
    "one outlier": ([20, 33, 47, 21] * 5 + [-999], None),
    "two groups": ([1, 2, 101, 102] * 5, None),
}


@pytest.mark.parametrize("rows", [2, 3, 6])
def test_names_that_are_booleans_select_columns(rows):
    """Such as of a pivot table."""
    df = pd.DataFrame(np.arange(2.0 * rows).reshape(rows, 2) ** 2, columns=[False, True])
    table, mask = (
        Table.of(df),
        pd.DataFrame(np.arange(2 * rows).reshape(rows, 2) % 3 > 0, columns=[False, True]),
    )
    np.testing.assert_array_equal(table.values(torch.tensor(table.encode(df.iloc[:, ::-1])), None), df)
    found = table.arranged({"x": df, "observed": mask})
    np.testing.assert_array_equal(found["x"], df)
    np.testing.assert_array_equal(found["observed"], mask)


@pytest.mark.parametrize("case", DOUBTS)
def test_cells_that_may_stand_for_something_else_are_named(case):
    cells, message = DOUBTS[case]
    cells = cells if isinstance(cells, pd.Categorical) or len(cells) > 19 else [*cells] * 6
    df = pd.DataFrame({"c": cells, "real": np.arange(len(cells)) ** 1.5})
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        Table.of(df).warn_of_doubts(df)
        of_numbers = df["c"].dtype.kind in "if" or isinstance(cells[0], Decimal)
        family = "gaussian" if of_numbers else "categorical"
        Table.of(df, {"c": family}).warn_of_doubts(df)
        Table.of(df, {"c": None}).warn_of_doubts(df)
    assert len(found) == (message is not None)
    assert message is None or re.search(message, str(found[0].message))


def test_advice_on_doubtful_cells_is_code_that_settles_them():
    df = pd.DataFrame(
        {"n": ["5.1", "3.5", "?"] * 9, "w": ["yes", "no", "?"] * 9, "k": ["1.5 kg", "n/a", "7 kg"] * 9}
    )
    df = df.assign(age=[20, 33, -999] * 9, when=["2024-01-01", "2024-03-01", "2025-01-01"] * 9)
    df["n"] = pd.to_numeric(df["n"], errors="coerce")
    df["w"] = df["w"].mask(df["w"].isin(["?"]))
    df["k"] = pd.to_numeric(df["k"].str.removesuffix(" kg"), errors="coerce")
    df["age"] = df["age"].mask(df["age"].isin([-999]))
    days = pd.to_datetime(df["when"], utc=True) - pd.Timestamp("1970-01-01", tz="UTC")
    df["when"] = days / pd.Timedelta("1D")
    assert df.isna().sum().tolist() == [9, 9, 9, 9, 0]
    Table.of(df).warn_of_doubts(df)  # warnings are errors here


def test_reasons_name_a_family_for_answers_and_for_bounds():
    rng = np.random.default_rng(0)
    cut = np.clip(50 + 45 * rng.normal(size=200), 0, 100)
    df = pd.DataFrame({"answer": rng.integers(1, 6, 200), "whole": cut.round(), "share": cut / 100})
    df = df.assign(
        age=rng.integers(18, 66, 200), amount=cut.clip(max=99.9).round(1) * rng.uniform(1, 2, 200).round(1)
    )
    why = Table.of(df).summary().set_index("column").why
    low, high = (cut.round() == 0).mean(), (cut.round() == 100).mean()
    assert why["answer"].endswith("1 … 5: choose ordinal if these are answers on a scale")
    bounds = f"{low:.0%} are exactly 0 and {high:.0%} exactly 100: discretized_logistic, for steps from 0 on, bounds both ends"
    assert why["whole"].endswith(bounds)
    assert why["share"].endswith("exactly 1: discretized_logistic, for steps from 0 on, bounds both ends")
    assert not why[["age", "amount"]].str.contains("ordinal|discretized").any()
    torch.manual_seed(0)
    bounded = {"whole": ("discretized_logistic", {"levels": 101})}
    drawn = pv.VAE.for_table(df[["whole"]], 1, hidden_dims=(), families=bounded).sample(500)["whole"]
    assert (drawn.min(), drawn.max()) == (0, 100)
