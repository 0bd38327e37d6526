"""scikit-learn's own checks of every estimator, and what they leave out: exact answers, missing cells, pickles, searches."""

import copy
import importlib
import pickle
import pickletools
import re
from decimal import Decimal

import joblib
import numpy as np
import pandas as pd
import pyarrow
import pytest
import torch
from scipy import sparse
from scipy.stats import multivariate_normal
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder
from sklearn.utils.estimator_checks import parametrize_with_checks

import pyrovae as pv
from pyrovae import noise
from pyrovae.refusals import Refused, RefusedType
from pyrovae.sklearn import BaselineDensity, VAEDensity, VAEImputer, VAEOutlier, VAETransformer

SMALL = {"latent_dim": 1, "hidden_dims": (2,), "epochs": 1, "random_state": 0}
FAST = {"method": "importance", "num_samples": 10}
LINEAR = {"latent_dim": 2, "hidden_dims": (), "epochs": 30, "batch_size": 50, "lr": 0.05, "random_state": 0}
NAMES = ["a", "b", "c", "d"]


@parametrize_with_checks(
    [
        VAEDensity(**SMALL, **FAST),
        VAEOutlier(**SMALL, **FAST),
        VAETransformer(**SMALL),
        VAEImputer(**SMALL),
        BaselineDensity(),
    ]
)
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


def rows_of(num_rows, seed):
    """Four columns of sizes 0.1 to 100 with two factors, far from 0."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(num_rows, 2)) @ generator.normal(size=(2, 4))
    return (x + 0.5 * generator.normal(size=(num_rows, 4))) * [0.1, 1.0, 10.0, 100.0] + [5.0, 0.0, 0.0, 300.0]


X = rows_of(100, 0)
HOLED = np.where(np.random.default_rng(1).random(X.shape) < 0.2, np.nan, X)


def test_masked_entries_are_missing_cells():
    masked = np.ma.MaskedArray(np.nan_to_num(HOLED, nan=1e6), mask=np.isnan(HOLED))
    density = BaselineDensity("independent_gaussian")
    expected = density.fit(HOLED).score_samples(HOLED)
    for rows in (masked, list(masked)):
        np.testing.assert_array_equal(density.fit(rows).score_samples(rows), expected)
    with pytest.raises(TypeError, match=r"^X: expected an array without masked entries"):
        BaselineDensity("kernel_density").fit(masked)


@pytest.fixture(scope="module")
def density():
    return VAEDensity(**LINEAR).fit(X)


@pytest.fixture(scope="module")
def imputer():
    return VAEImputer(**LINEAR, num_imputations=400, num_samples=1000).fit(HOLED)


def normal_of(vae):
    """Mean and covariance of x under a VAE with a linear decoder, from its decoder's answers alone."""
    at = torch.cat([torch.zeros(1, 2), torch.eye(2)]).double()
    fn = vae.likelihood(at)
    mean, scale = fn.mean.detach().numpy(), fn.variance[0].detach().numpy()
    loadings = mean[1:] - mean[0]
    return mean[0], loadings.T @ loadings + np.diag(scale)


def test_scores_are_the_exact_density_in_the_units_of_x(density):
    mean, covariance = normal_of(density.model_)
    exact = multivariate_normal(mean, covariance).logpdf(X)
    np.testing.assert_allclose(density.score_samples(X), exact, rtol=1e-9)
    assert density.score(X) == pytest.approx(exact.mean(), rel=1e-9)
    assert (density.evidence_.verdict == "trust").all()
    assert len(density.history_) == 30


@pytest.mark.parametrize("frame", [False, True])
def test_early_stopping_is_a_fit_with_held_out_rows(frame):
    """The same weights as by ``fit``, which stops when rows that it does not see get no more probable."""
    x = pd.DataFrame(HOLED, columns=NAMES) if frame else HOLED
    options = {**LINEAR, "lr": 0.5, "epochs": 40}
    found = VAEDensity(**options, early_stopping=True, validation_fraction=0.2, n_iter_no_change=2).fit(x)
    history = found.history_.frame
    assert len(history) == 2 + found.history_.best_epoch < 40
    assert history["validation_elbo"].idxmax() == found.history_.best_epoch - 1
    assert found.model_.fitted.rows == 80
    with noise.seeded(noise.derive(found.seed_, noise.Stream.DATA)):
        order = torch.randperm(100).numpy()
    scaling = found.model_.encoder.standardize
    np.testing.assert_allclose(scaling.loc, np.nanmean(HOLED[order[20:]], axis=0), rtol=1e-12)
    held_out = pv.elbo(found.model_, HOLED[order[:20]], num_samples=400).estimate.mean()
    assert held_out == pytest.approx(history["validation_elbo"].max(), abs=1.0)
    assert len(VAEDensity(**options, n_iter_no_change=2).fit(x).history_) == 40


def test_samples_have_the_moments_of_the_model(density):
    drawn = density.sample(4000, random_state=0)
    mean, covariance = normal_of(density.model_)
    error = np.sqrt(np.diag(covariance) / 4000)
    assert (np.abs(drawn.mean(axis=0) - mean) < 5 * error).all()
    assert np.array_equal(drawn, density.sample(4000, random_state=np.random.RandomState(0)))


@pytest.mark.parametrize("method", ["importance", "auto"])
def test_a_row_has_one_score_whatever_is_beside_it(method):
    vae = VAEDensity(**{**LINEAR, "hidden_dims": (3,), "epochs": 1}, method=method).fit(X)
    few = X[:10]
    found = vae.score_samples(few)
    np.testing.assert_allclose(vae.score_samples(few[[7]]), found[[7]], rtol=1e-12)
    np.testing.assert_allclose(vae.score_samples(np.repeat(few[::-1], 3, 0))[::3], found[::-1], rtol=1e-12)


def test_equal_rows_of_a_big_matrix_have_equal_scores_in_either_precision():
    vae = VAEDensity(**SMALL, **FAST).fit(X)
    big = np.tile(X.astype(np.float32), (200, 1))
    found = vae.score_samples(big).reshape(200, 100)
    np.testing.assert_allclose(
        found, np.tile(vae.score_samples(big[:100].astype(float)), (200, 1)), rtol=1e-9
    )


def test_the_same_random_state_gives_the_same_bits_and_refits_start_anew():
    vae = VAEDensity(**SMALL)
    first = vae.fit(X[:50]).score_samples(X)
    vae.fit(X + 1.0)
    assert not hasattr(vae, "evidence_")
    assert np.array_equal(vae.fit(X[:50]).score_samples(X), first)
    assert not np.array_equal(vae.set_params(random_state=1).fit(X[:50]).score_samples(X), first)
    assert vae.n_features_in_ == 4


def test_missing_cells_are_integrated_out(density):
    mean, covariance = normal_of(density.model_)
    row = X[:1].copy()
    row[0, [1, 2]] = np.nan
    seen = np.ix_([0, 3], [0, 3])
    exact = multivariate_normal(mean[[0, 3]], covariance[seen]).logpdf(row[0, [0, 3]])
    assert density.score_samples(row)[0] == pytest.approx(exact, rel=1e-9)


def test_imputations_are_the_exact_conditional_means(imputer):
    mean, covariance = normal_of(imputer.model_)
    found = imputer.transform(HOLED)
    assert np.array_equal(found[~np.isnan(HOLED)], HOLED[~np.isnan(HOLED)])
    for row in np.flatnonzero(np.isnan(HOLED).any(axis=1))[:8]:
        lost = np.isnan(HOLED[row])
        gain = covariance[np.ix_(lost, ~lost)] @ np.linalg.inv(covariance[np.ix_(~lost, ~lost)])
        exact = mean[lost] + gain @ (HOLED[row, ~lost] - mean[~lost])
        spread = np.diag(covariance[np.ix_(lost, lost)] - gain @ covariance[np.ix_(~lost, lost)])
        # at least a fifth of the draws of z count
        assert (np.abs(found[row, lost] - exact) < 5 * np.sqrt(spread * (1 / 400 + 5 / 1000))).all()


def test_imputations_do_not_depend_on_the_rows_beside(imputer):
    holed = HOLED[:10]
    found = imputer.transform(holed)
    np.testing.assert_allclose(imputer.transform(holed[::-1])[::-1], found, rtol=1e-9)
    place = int(np.isnan(holed).any(axis=1).argmax())
    np.testing.assert_allclose(imputer.transform(holed[[place]])[0], found[place], rtol=1e-9)


def test_rows_without_holes_come_back_as_they_are_and_draws_differ_by_random_state(imputer):
    assert np.array_equal(imputer.transform(X), X)
    one, two = (VAEImputer(**{**SMALL, "random_state": s}, sample_posterior=True) for s in (0, 1))
    drawn = one.fit(HOLED).transform(HOLED)
    assert np.array_equal(one.transform(HOLED), drawn)
    assert not np.array_equal(two.fit(HOLED).transform(HOLED), drawn)


@pytest.mark.parametrize("keep", [False, True])
def test_columns_that_are_all_missing(keep):
    frame = pd.DataFrame(HOLED, columns=NAMES).assign(b=np.nan, d=X[:, 3])
    imputer = VAEImputer(**SMALL, add_indicator=True, keep_empty_features=keep).set_output(transform="pandas")
    found = imputer.fit_transform(frame)
    kept = NAMES if keep else ["a", "c", "d"]
    assert found.columns.tolist() == [*kept, *(f"missingindicator_{name}" for name in "abc")]
    assert not found.isna().any().any()
    assert not keep or (found["b"] == 0).all()
    assert np.array_equal(found["missingindicator_a"] == 1, frame["a"].isna())
    with pytest.raises(ValueError, match="an observed cell"):
        imputer.fit(frame * np.nan)


def test_codes_are_the_encoders_means_and_decode_to_means_of_x():
    frame = pd.DataFrame(X, columns=NAMES)
    transformer = VAETransformer(**{**LINEAR, "epochs": 2}).set_output(transform="pandas")
    codes = transformer.fit_transform(frame)
    assert codes.columns.tolist() == ["vaetransformer0", "vaetransformer1"]
    assert transformer.feature_names_in_.tolist() == NAMES
    tensor = torch.from_numpy(X)
    assert np.array_equal(codes, transformer.model_.encoder(tensor).mean.detach().numpy())
    mean, _ = normal_of(transformer.model_)
    np.testing.assert_allclose(transformer.inverse_transform(np.zeros((1, 2)))[0], mean, rtol=1e-12)
    decoded = transformer.model_.likelihood(torch.eye(2).double())
    loadings, precision = decoded.mean.detach().numpy() - mean, 1 / decoded.variance[0].detach().numpy()
    inverse = np.linalg.inv(np.eye(2) + loadings * precision @ loadings.T)
    exact = (X[:5] - mean) * precision @ loadings.T @ inverse
    found = transformer.set_params(method="refined").transform(frame[:5]).to_numpy()
    assert (np.abs(found - exact) < 5 * np.sqrt(np.diag(inverse) / 500)).all()  # of 1000 draws, half count
    with pytest.raises(ValueError, match="2 columns"):
        transformer.inverse_transform(X)
    for wrong in (transformer.transform, lambda rows: pv.embed(transformer.model_, rows)):
        with pytest.raises(ValueError, match="order"):
            wrong(frame[NAMES[::-1]])


def test_outliers_are_the_least_probable_rows():
    odd = np.vstack([X, X[:5] + np.array([0.0, 30.0, 0.0, 0.0])])
    detector = VAEOutlier(**LINEAR, contamination=0.2)
    labels = detector.fit_predict(odd)
    assert (labels == -1).sum() == 21
    assert (labels[-5:] == -1).all()
    assert np.array_equal(labels, detector.predict(odd))
    assert np.array_equal(detector.evidence_.estimate - detector.offset_, detector.decision_function(odd))
    for share in (0.0, 0.6, "auto"):
        with pytest.raises((ValueError, TypeError), match=r"contamination: expected a share in \(0, 0\.5\]"):
            VAEOutlier(**SMALL, contamination=share).fit(X)


def test_errors_name_the_class_and_its_parameter(imputer):
    with pytest.raises(TypeError, match=r"^VAEDensity\.fit\(\) got .*sample_weight"):
        VAEDensity(**SMALL).fit(X, sample_weight=np.ones(len(X)))
    with pytest.raises(ValueError, match=r"^strategy: .* a density\. Pass strategy='median'"):
        clone(imputer).set_params(strategy="mode").fit(HOLED).transform(HOLED)


@pytest.mark.parametrize("copied", [lambda e: pickle.loads(pickle.dumps(e)), copy.deepcopy])
def test_copies_of_fitted_estimators_score_the_same_bits(density, imputer, copied):
    density.score_samples(HOLED)
    again = copied(density)
    assert np.array_equal(again.evidence_.estimate, density.evidence_.estimate)
    assert np.array_equal(again.score_samples(HOLED), density.score_samples(HOLED))
    assert again.history_.records == density.history_.records
    few = HOLED[:5]
    assert np.array_equal(copied(imputer).transform(few), imputer.transform(few))


def test_pickles_hold_no_torch_and_joblib_takes_them(density, tmp_path):
    density.score_samples(X)
    words = {arg for _, arg, _ in pickletools.genops(pickle.dumps(density)) if isinstance(arg, str)}
    assert not {word for word in words if word.split(".")[0] in ("torch", "pyro")}
    assert "pyrovae.sklearn" in words
    joblib.dump(density, tmp_path / "density")
    assert np.array_equal(joblib.load(tmp_path / "density").score_samples(X), density.score_samples(X))


def test_searches_over_dimensions_and_families_take_pipelines_threads_and_frames():
    frame = pd.DataFrame(np.abs(X) + 0.1, columns=NAMES).assign(count=1 + np.arange(100) % 7)
    grid = {"vaedensity__latent_dim": [1, 2], "vaedensity__likelihood": ["gaussian", "log_normal"]}
    steps = make_pipeline("passthrough", VAEDensity(**SMALL, **FAST))
    with joblib.parallel_backend("threading"):
        search = GridSearchCV(steps, grid, cv=2, n_jobs=2).fit(frame)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert search.best_estimator_.score(frame) == search.score(frame)
    assert clone(search.best_estimator_).get_params()["vaedensity__hidden_dims"] == (2,)


def test_codes_and_imputations_feed_other_steps():
    frame = pd.DataFrame(HOLED, columns=NAMES).assign(sort=["one", "two"] * 50)
    frame["c"] = frame["c"].convert_dtypes()
    each = ColumnTransformer([("x", VAETransformer(**SMALL), NAMES), ("s", OneHotEncoder(), ["sort"])])
    target = X[:, 0]
    for steps in (each, make_pipeline(each, VAEImputer(**SMALL))):
        assert np.isfinite(
            cross_val_score(make_pipeline(steps, LinearRegression()), frame, target, cv=2)
        ).all()
    assert each.fit(frame).get_feature_names_out()[0] == "x__vaetransformer0"


def test_baselines_score_exactly_and_compare_with_a_vae(density):
    full = BaselineDensity().fit(X)
    exact = multivariate_normal(X.mean(axis=0), np.cov(X.T, bias=True)).logpdf(X)
    np.testing.assert_allclose(full.score_samples(X), exact, rtol=1e-9)
    assert full.sample(3, random_state=0).shape == (3, 4)
    table = pv.compare({"VAE": density, "full": full}, rows_of(50, 5))
    assert set(table.index) == {"VAE", "full"}
    assert BaselineDensity("kernel_density").__sklearn_tags__().input_tags.allow_nan is False
    assert BaselineDensity("independent_poisson").__sklearn_tags__().input_tags.positive_only is True


def test_counts_and_zeros_and_ones_have_their_families():
    counts = np.random.default_rng(0).poisson(3.0, (60, 3))
    for family, x in (("negative_binomial", counts), ("bernoulli", counts > 3), ("poisson", counts)):
        vae = VAEDensity(**{**SMALL, "likelihood": family}, **FAST).fit(pd.DataFrame(x))
        assert (vae.score_samples(x) < 0).all()
        assert set(vae.sample(50, random_state=0).ravel() % 1) == {0.0}
        assert vae.__sklearn_tags__().input_tags.positive_only
    holed = np.where(np.random.default_rng(1).random((60, 3)) < 0.2, np.nan, counts > 3)
    mode = VAEImputer(**{**SMALL, "likelihood": "bernoulli"}, strategy="mode").fit_transform(holed)
    assert set(mode.ravel()) == {0.0, 1.0}


@pytest.mark.parametrize(
    ("parameters", "x", "message"),
    [
        ({}, sparse.csr_array(X), "[Ss]parse"),
        ({}, np.array([["a", "b"]] * 5), "could not convert string"),
        ({}, X[:1], "minimum of 2"),
        ({}, np.column_stack([X, np.ones(100)]), "columns that vary"),
        ({}, np.column_stack([X, np.full(100, np.nan)]), "an observed cell of every column"),
        ({"likelihood": "poisson"}, X, "counts 0, 1, 2"),
        ({"likelihood": "normal"}, X, "likelihood: expected one of"),
        ({"likelihood_options": {"sd": 1.0}}, X, "an option of gaussian"),
        ({"latent_dim": 0}, X, "latent_dim"),
        ({"epochs": 0}, X, "epochs"),
        ({"random_state": "x"}, X, "seed"),
    ],
)
def test_what_cannot_be_fitted_is_an_error_that_says_why(parameters, x, message):
    with pytest.raises((TypeError, ValueError), match=message):
        VAEDensity(**{**SMALL, **parameters}).fit(x)


def test_options_that_would_do_nothing_are_errors(density):
    wrong = copy.deepcopy(density)
    for parameters in ({"num_samples": 5}, {"method": "exact", "num_samples": 5}, {"method": "elbo"}):
        with pytest.raises((TypeError, ValueError), match=r"num_samples|method"):
            wrong.set_params(**{"method": "auto", "num_samples": None, **parameters}).score(X)
    with pytest.raises(TypeError, match="sample_weight"):
        VAEDensity(**SMALL).fit(X, sample_weight=np.ones(100))
    with pytest.raises(NotFittedError):
        _ = VAEDensity().history_
    for options in ({"baseline": "bayesian_linear_regression"}, {"options": {"latent_dim": 1}}):
        with pytest.raises((TypeError, ValueError), match=r"baseline|latent_dim"):
            BaselineDensity(**options).fit(X)
    with pytest.raises(TypeError, match=re.escape('Pass BaselineDensity("ppca", {"latent_dim": 2}).')):
        BaselineDensity("ppca").fit(X)


def test_the_module_is_an_attribute_of_the_package():
    assert pv.sklearn is importlib.import_module("pyrovae.sklearn")
    with pytest.raises(AttributeError, match="no attribute 'sk'"):
        _ = pv.sk


def test_scores_have_the_index_of_the_frame():
    frame = pd.DataFrame(
        np.random.default_rng(0).normal(size=(20, 2)), columns=["a", "b"], index=range(40, 60)
    )
    density = VAEDensity(latent_dim=1, hidden_dims=(4,), epochs=1, random_state=0).fit(frame)
    found = density.log_evidence(frame[::-1]).to_frame()["estimate"]
    assert found.index.equals(frame.index[::-1])
    np.testing.assert_allclose(found[frame.index], density.score_samples(frame), rtol=1e-9)


def test_rows_with_holes_get_the_mean_of_their_posterior():
    """Trained on complete rows, the encoder knows nothing of missing cells: its means would be far off."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(400, 2)) @ rng.normal(size=(2, 6)) + 0.5 * rng.normal(size=(400, 6))
    transformer = VAETransformer(latent_dim=2, hidden_dims=(), epochs=30, lr=1e-2, random_state=0).fit(X)
    holed = X[:40].copy()
    holed[:20, :4] = np.nan
    found = transformer.transform(holed)
    exact = pv.embed(transformer.model_, holed[:20], method="refined")
    sd = exact[["z_0_sd", "z_1_sd"]].to_numpy()
    assert (np.abs(found[:20] - exact[["z_0", "z_1"]].to_numpy()) < 0.5 * sd).all()
    np.testing.assert_allclose(found[20:], transformer.transform(X[20:40]), rtol=1e-9)


@pytest.mark.parametrize(
    ("estimator", "argument"),
    [
        (VAEDensity(method="foo"), "method"),
        (VAEDensity(likelihood=["gaussian"]), "likelihood"),
        (VAEDensity(likelihood_options=[1]), "likelihood_options"),
        (VAETransformer(early_stopping="yes"), "early_stopping"),
        (VAEOutlier(early_stopping=True, n_iter_no_change=0), "n_iter_no_change"),
        (VAEImputer(early_stopping=True, validation_fraction=1.0), "validation_fraction"),
        (VAEDensity(early_stopping=True, validation_fraction=0.95), "validation_fraction"),
        (VAEImputer(strategy="foo"), "strategy"),
        (VAEImputer(method="foo"), "method"),
    ],
)
def test_options_are_refused_before_a_fit(estimator, argument):
    with pytest.raises((TypeError, ValueError), match=f"^{argument}: expected"):
        estimator.set_params(epochs=10**9).fit(np.random.default_rng(0).normal(size=(20, 2)))


def test_numbered_columns_are_matched_by_their_labels():
    """scikit-learn compares labels that are strings only."""
    frame = pd.DataFrame(X[:, :3], columns=[2, 1, 0])
    estimator = BaselineDensity("full_gaussian").fit(frame)
    table = pv.compare({"estimator": estimator}, frame, training_rows=True)
    assert table["elpd"].iloc[0] == pytest.approx(estimator.score(frame))
    with pytest.raises(ValueError, match=r"fitted to, got '0' instead of '2' in column 0\. Pass the columns"):
        estimator.score(frame[[0, 1, 2]])


@pytest.mark.parametrize(("first", "second"), [("abc", "bac"), ([0, 1, 2], [1, 2, 3])])
def test_compare_refuses_arrays_for_estimators_of_columns_in_several_orders(first, second):
    frame = pd.DataFrame(X[:, :3], columns=list(first))
    turned = frame[list(second)] if first == "abc" else frame.set_axis(second, axis=1)
    models = {str(n): BaselineDensity("full_gaussian").fit(rows) for n, rows in enumerate((frame, turned))}
    with pytest.raises(
        ValueError,
        match=r"x: expected a frame, .* column '\w' is number 1 for '0' and number 0 for '1'",
    ):
        pv.compare(models, X[:, :3])


def test_missing_cells_among_objects():
    frame = pd.DataFrame(HOLED, columns=NAMES)
    objects = frame.astype(object).where(frame.notna(), pd.NA)
    estimator = BaselineDensity("full_gaussian").fit(objects)
    assert estimator.score(objects) == BaselineDensity("full_gaussian").fit(frame).score(frame)


def test_decimals_of_arrow_beside_missing_cells():
    tenths = pd.DataFrame((10 * HOLED).round() / 10, columns=NAMES)
    decimals = tenths.round(1).astype(str).map(Decimal).where(tenths.notna(), None)
    estimator = BaselineDensity("full_gaussian").fit(tenths)
    for kind in (object, pd.ArrowDtype(pyarrow.decimal128(10, 1))):
        held = decimals.astype(kind)
        assert BaselineDensity("full_gaussian").fit(held).score(held) == estimator.score(tenths)


@pytest.mark.parametrize(
    ("kind", "number"),
    [
        (np.array, 3),
        (pd.DataFrame, 3),
        (list, 3),
        (lambda x: pd.DataFrame(x, dtype="Int64"), 3),
        (lambda x: np.array(x, dtype=object), 3),
        (lambda x: np.array(x, dtype=object).astype(np.longdouble), 3),
        (lambda x: np.array([[Decimal(value) for value in row] for row in x], dtype=object), 3),
        (lambda x: pd.DataFrame({"a": [x[0][0], 0.5, x[2][0]], "b": [3, 4, 6]}, dtype=object), 2),
    ],
    ids=["array", "frame", "list", "Int64", "objects", "long doubles", "decimals", "beside a float"],
)
def test_long_whole_numbers_are_not_rounded_unseen(kind, number):
    x = kind([[2**60 + 1, 3], [2**60 + 5, 4], [2**60 + 9, 6]])
    with pytest.raises(
        ValueError, match=rf"X: expected whole numbers between -2\^53 and 2\^53, got {number} others"
    ):
        BaselineDensity("full_gaussian").fit(x)


@pytest.mark.parametrize("labels", [range(3), [0.0, 1.0, 2.0], [0, 1, 2]])
def test_an_array_has_numbered_columns_of_any_type(labels):
    """Numbered columns in another order are not those of the array that an estimator was fitted to."""
    estimator = BaselineDensity("full_gaussian").fit(X[:, :3])
    frame = pd.DataFrame(X[:, :3], columns=labels)
    assert estimator.score(frame) == estimator.score(X[:, :3])
    with pytest.raises(ValueError, match="got '2' instead of '0' in column 0"):
        estimator.score(frame[list(labels)[::-1]])


def test_advice_in_errors_is_in_the_words_of_the_estimators():
    """Each advice is tried: the estimator then takes the rows."""
    x = pd.DataFrame(X, columns=NAMES).assign(k=1.0)
    with pytest.raises(
        Refused, match=r"^X: expected columns that vary.*first column 'k'.*VarianceThreshold"
    ) as error:
        VAEDensity(**SMALL).fit(x)
    assert 'pass standardize=False and likelihood_options={"scale": "shared"}' in str(error.value)
    VAEDensity(**SMALL, standardize=False, likelihood_options={"scale": "shared"}).fit(x)
    levels = np.arange(40).reshape(20, 2) % 3
    with pytest.raises(RefusedType, match=re.escape('Pass likelihood_options={"num_levels": …}.')):
        VAEDensity(likelihood="ordinal", **SMALL).fit(levels)
    VAEDensity(likelihood="ordinal", **SMALL, likelihood_options={"num_levels": 3}).fit(levels)
    fitted = BaselineDensity("latent_class", {"num_classes": 2}).fit(levels % 2)
    with pytest.raises(Refused, match=re.escape('Pass options={"num_categories": …} if')):
        fitted.score(levels)
    BaselineDensity("latent_class", {"num_classes": 2, "num_categories": 3}).fit(levels % 2).score(levels)
