"""compare(): paired, in order, and only what can be compared."""

import dataclasses
import itertools
import math

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import scipy.sparse
import torch
from rates import SEED
from scipy import stats

import pyrovae as pv
from pyrovae import baselines, evidence, identity
from pyrovae.comparison import predictive
from pyrovae.tables import Table

TRAIN = (torch.rand(200, 5, generator=torch.Generator().manual_seed(0)) < 0.1).float()
X = (torch.rand(40, 5, generator=torch.Generator().manual_seed(1)) < 0.1).float()


def bernoulli_vae():
    torch.manual_seed(0)
    return pv.VAE.mlp(5, latent_dim=2, hidden_dims=(4,))


def independent():
    return baselines.IndependentBernoulli().fit(TRAIN)


def test_differences_are_paired_and_best_comes_first():
    models = {"VAE": bernoulli_vae(), "independent": independent()}
    table = pv.compare(models, X, num_samples=200, seed=3, method="importance", check=False)
    first, second = (
        pv.log_evidence(models["VAE"], X, num_samples=200, seed=3, check=False),
        independent().log_evidence(X),
    )
    assert list(table.index) == ["independent", "VAE"]
    difference = first.estimate - second.estimate
    line = table.loc["VAE"]
    assert line["elpd"] == pytest.approx(first.mean)
    assert line["se"] == pytest.approx(first.estimate.std(ddof=1) / 40**0.5)
    assert line["elpd_diff"] == pytest.approx(difference.mean())
    assert line["dse"] == pytest.approx(difference.std(ddof=1) / 40**0.5)
    assert line["dse"] < line["se"] + table.loc["independent", "se"]
    assert line["mcse"] == pytest.approx(first.mean_mcse)
    tail = (first.tail_error**2).sum() ** 0.5 / 40
    assert line["mcse_diff"] == pytest.approx(math.hypot(first.mean_mcse, tail, first.mean_bias))
    assert line["bias"] == pytest.approx(first.mean_bias)
    assert (line["kind"], line["parameters"]) == ("lower bound", "plug-in")
    assert line[["trust", "more samples", "another method", "unchecked"]].sum() == 40
    assert (line["check"], table.loc["independent", "check"]) == ("unchecked", "exempt")
    best = table.loc["independent"]
    assert (best["elpd_diff"], best["dse"], best["mcse"], best["kind"]) == (0, 0, 0, "exact")
    assert table.attrs["unit"] == "nats a row"
    assert table.attrs["measure"] == "mass"


def test_results_computed_before_are_taken_as_they_are():
    ev = pv.log_evidence(bernoulli_vae(), X, num_samples=50, check=False)
    table = pv.compare(
        {"now": bernoulli_vae(), "before": ev}, X, num_samples=50, method="importance", check=False
    )
    np.testing.assert_array_equal(table.loc["now", "elpd"], table.loc["before", "elpd"])
    assert len(pv.compare({"before": ev})) == 1


def refused(message, models, x=None):
    with pytest.raises((ValueError, TypeError), match=message):
        pv.compare(models, x, num_samples=5, method="importance", check=False)


def test_a_mass_never_meets_a_density():
    gaussian = pv.VAE.mlp(5, latent_dim=2, likelihood="gaussian")
    refused(
        r"models: expected all masses or all densities.*in column 0.*different units",
        {"b": bernoulli_vae(), "g": gaussian},
        X,
    )
    refused(
        "models: expected all masses or all densities", {"i": independent(), "p": baselines.PPCA(2).fit(X)}, X
    )


def test_what_cannot_be_compared_is_refused_before_the_work(monkeypatch):
    """A draw of each pair tells; "auto" may take hours."""

    methods = []
    monkeypatch.setattr(
        "pyrovae.comparison.predictive.log_evidence",
        lambda *args, method, **options: (
            methods.append(method) or pv.log_evidence(*args, method=method, **options)
        ),
    )
    gaussian = pv.VAE.mlp(5, latent_dim=2, likelihood="gaussian")
    with pytest.raises(ValueError, match="models: expected all masses or all densities"):
        pv.compare({"b": bernoulli_vae(), "g": gaussian}, X)
    assert methods == ["importance", "importance"]


@pytest.mark.parametrize("other", [X[:10], 1 - X, X.flip(0)])
def test_only_the_same_rows_in_the_same_units(other):
    first, second = (pv.log_evidence(bernoulli_vae(), x, num_samples=5, check=False) for x in (X, other))
    refused("models: expected all scored on the same rows in the same units", {"a": first, "b": second})


def test_a_transformed_column_has_other_units():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z[..., None], 1.0).to_event(1), obs=x / 255)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    x = torch.randn(12, 3)
    pair = pv.LatentVariableModel(model, guide)
    refused(
        r"in x's own units, got 'scaled', in which 3 column\(s\) are transformed",
        {"scaled": pair, "p": baselines.PPCA(1).fit(x)},
        x,
    )


def test_evidence_of_a_training_set_is_no_predictive_score():
    ev = dataclasses.replace(independent().log_evidence(X), target="evidence")
    refused("predictive scores of held-out rows, got 'a', the evidence of a training set", {"a": ev})


def test_images_and_their_flattened_rows_are_the_same_rows():
    train, x = (rows[:, :4].reshape(-1, 1, 2, 2) for rows in (TRAIN, X))
    decoder = torch.nn.Sequential(torch.nn.Linear(1, 4), torch.nn.Unflatten(1, (1, 2, 2)))
    encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    vae = pv.VAE(
        pv.priors.StandardNormal(1), pv.likelihoods.Bernoulli(decoder), pv.encoders.DiagonalNormal(encoder)
    )
    assert (
        len(pv.compare({"images": vae, "flat": baselines.IndependentBernoulli().fit(train)}, x, check=False))
        == 2
    )


def test_models_and_rows_are_needed():
    refused("models: expected a dict", [bernoulli_vae()], X)
    refused("models: expected a dict", {}, X)
    refused("models: expected fitted models, got the class PPCA", {"a": baselines.PPCA}, X)
    refused("x: expected rows to score 'VAE' on, got None", {"VAE": bernoulli_vae()})


def test_swap_fits_a_family_each_and_keeps_masses_from_densities(unchecked):
    generator = torch.Generator().manual_seed(0)
    x = torch.poisson(torch.rand(150, 3, generator=generator) * 6, generator=generator)
    families = ["poisson", "negative_binomial", ("gaussian", {"scale": "shared"})]
    found = pv.swap(x, 1, families, epochs=3, hidden_dims=(8,))
    assert set(found.models) == {"poisson", "negative_binomial", "gaussian(scale=shared)"}
    assert set(found.masses.index) == {"poisson", "negative_binomial"}
    assert list(found.densities.index) == ["gaussian(scale=shared)"]
    expected = -found.masses["elpd"] / (3 * np.log(2))
    np.testing.assert_allclose(found.masses["bits_per_dim"], expected)
    assert len(found.x_test) == 30
    again = pv.swap(x, 1, families[:1], epochs=3, hidden_dims=(8,))
    assert again.masses.loc["poisson", "elpd"] == found.masses.loc["poisson", "elpd"]
    assert "nats a row over 30 rows" in str(found)


def test_swap_prefers_the_family_the_rows_come_from(unchecked):
    """Overdispersed counts, a fifth of them missing: the negative binomial beats Poisson by many standard errors."""
    generator = np.random.default_rng(0)
    x = generator.negative_binomial(1.0, 0.1, (900, 4)).astype(float)
    x[generator.random(x.shape) < 0.2] = np.nan
    found = pv.swap(x, 1, ["poisson", "negative_binomial"], epochs=15, lr=1e-2, hidden_dims=(16,))
    table = found.masses
    assert table.index[0] == "negative_binomial"
    assert table.loc["poisson", "elpd_diff"] < -6 * table.loc["poisson", "dse"]


def test_swap_refuses_rows_off_a_support_before_anything_is_fitted():
    with pytest.raises(ValueError, match="support of Poisson"):
        pv.swap(torch.randn(40, 2), 1, ["gaussian", "poisson"], epochs=10**9)
    with pytest.raises(TypeError, match="families: expected"):
        pv.swap(torch.randn(40, 2), 1, "gaussian")


@pytest.mark.parametrize(("patience", "count"), [(None, 20), (2, 40)])
def test_swap_refuses_rows_it_would_fit_before_anything_is_fitted(patience, count):
    """Twenty test rows are in x, and with patience 20 others in validation."""
    x, other = gaussian_rows(60, 0), gaussian_rows(40, 1)
    test = torch.cat([x[:20], other[:20], gaussian_rows(10, 2)]) if patience else x[:20]
    options = {"epochs": 10**9, "validation": other, "patience": patience}
    message = (
        f"x_test: expected rows that the models are not fitted to, got {count} of {len(test)} that are in x"
    )
    with pytest.raises(ValueError, match=f"{message}.*Without x_test, swap holds out a fifth of x"):
        pv.swap(x.numpy(), 1, ["gaussian"], x_test=test, **options)


def gaussian_rows(num_rows, seed):
    return torch.randn(num_rows, 3, generator=torch.Generator().manual_seed(seed)) * 2 + 1


def test_stacking_weights_are_those_of_the_best_mixture():
    """Two models of which each explains half of the rows; against a fine grid over the one free weight."""
    train, test = gaussian_rows(300, 0), gaussian_rows(100, 1)
    left = baselines.FullGaussian().fit(train[train[:, 0] < 1])
    right = baselines.FullGaussian().fit(train[train[:, 0] >= 1])
    poor = baselines.FullGaussian().fit(train - 50)
    models = {"left": left, "right": right, "poor": poor}
    table = pv.compare(models, test, check=False)
    scores = np.stack([models[name].log_evidence(test).estimate for name in ("left", "right")])
    grid = np.linspace(0, 1, 10_001)[1:-1, None]
    best = grid[np.logaddexp(np.log(grid) + scores[0], np.log1p(-grid) + scores[1]).sum(1).argmax(), 0]
    assert table.loc["left", "weight"] == pytest.approx(best, abs=2e-3)
    assert table.loc["poor", "weight"] == pytest.approx(0, abs=1e-6)
    assert table["weight"].sum() == pytest.approx(1)


def test_by_splits_by_a_column_of_labels():
    x = gaussian_rows(60, 1)
    models = {
        "two": baselines.PPCA(2).fit(gaussian_rows(50, 0)),
        "one": baselines.PPCA(1).fit(gaussian_rows(50, 0)),
    }
    labels = np.where(x[:, 0] > 1, "high", "low")
    table = pv.compare(models, x, by=labels, check=False)
    assert table.index.names == ["by", "model"]
    for label in ("high", "low"):
        alone = pv.compare(models, x[labels == label], check=False)
        np.testing.assert_allclose(table.loc[label]["elpd"], alone["elpd"])
        np.testing.assert_allclose(table.loc[label]["dse"], alone["dse"])
    with pytest.raises(ValueError, match="by: expected a label for each of the 60 rows"):
        pv.compare(models, x, by=labels[:3], check=False)


def test_by_keeps_verdicts_and_noise_of_its_rows():
    vae, labels = bernoulli_vae(), np.arange(40) % 2
    table = pv.compare({"VAE": vae}, X, by=labels, num_samples=50, method="importance", check=False)
    ev = pv.log_evidence(vae, X, num_samples=50, check=False)
    expected = np.sqrt((ev.mcse[::2] ** 2).sum()) / 20
    assert table.loc[(0, "VAE"), "mcse"] == pytest.approx(expected)
    assert table.loc[(0, "VAE"), "trust"] == (ev.verdict[::2] == "trust").sum()


def test_rows_that_a_model_was_fitted_to_are_refused_unless_asked():
    train, test = gaussian_rows(60, 0), gaussian_rows(60, 1)
    vae = pv.VAE.mlp(3, 1, "gaussian", hidden_dims=(4,))
    pv.fit(vae, train, epochs=1)
    ppca = baselines.PPCA(1).fit(train)
    message = r"x: expected rows that the models were not fitted to, got 60 of 60 that"
    for models in ({"a": vae}, {"b": ppca}, {"c": pv.log_evidence(ppca, train)}):
        with pytest.raises(ValueError, match=message):
            pv.compare(models, train, num_samples=5, method="importance", check=False)
    table = pv.compare(
        {"a": vae, "b": ppca}, train, num_samples=5, training_rows=True, method="importance", check=False
    )
    assert table["seen"].tolist() == [60, 60]
    some = torch.cat([train[:20], test[:40]])  # less than half
    assert pv.compare({"a": vae, "b": ppca}, some, num_samples=5, method="importance", check=False)[
        "seen"
    ].tolist() == [20, 20]
    assert pv.compare({"a": vae, "b": ppca}, test, num_samples=5, method="importance", check=False)[
        "seen"
    ].tolist() == [0, 0]
    pv.fit(vae, test, epochs=1)
    with pytest.raises(ValueError, match="60 of 60"):
        pv.compare({"a": vae}, train, num_samples=5, method="importance", check=False)


def test_rows_that_a_model_was_fitted_to_are_refused_under_their_label():
    x = torch.randn(100, 4, generator=torch.Generator().manual_seed(0))
    models = {
        "density": baselines.KernelDensity().fit(x[:40]),
        "gaussian": baselines.IndependentGaussian().fit(
            torch.randn(60, 4, generator=torch.Generator().manual_seed(1))
        ),
    }
    labels = np.where(np.arange(100) < 40, "a", "b")
    assert pv.compare(models, x, check=False)["seen"].to_dict() == {"density": 40, "gaussian": 0}
    scored = {name: pv.log_evidence(model, x) for name, model in models.items()}
    for given in (models, scored):
        with pytest.raises(ValueError, match="got 40 of 40 under the label 'a' that 'density' was"):
            pv.compare(given, x, by=labels, check=False)
        table = pv.compare(given, x, by=labels, training_rows=True, check=False)
        assert table["seen"].to_dict() == {
            ("a", "density"): 40,
            ("a", "gaussian"): 0,
            ("b", "density"): 0,
            ("b", "gaussian"): 0,
        }
    mixed = np.arange(100) % 2  # 20 of 50 under either label
    assert pv.compare(models, x, by=mixed, check=False)["seen"].to_dict()[(1, "density")] == 20


def test_rows_that_repeat_by_chance_are_no_training_rows_under_any_label():
    """Nearly a tenth of the rows has a double: all rows of a small label match now and then."""
    x = (torch.rand(400, 11, generator=torch.Generator().manual_seed(SEED)) < 0.5).float()
    model = baselines.IndependentBernoulli().fit(x[:200])
    assert 0.02 < identity.seen(identity.row_hashes(x[200:]), model.seen).chance < 0.3
    table = pv.compare({"a": model}, x[200:], by=np.arange(200) // 2, check=False)
    assert len(table) == 100
    with pytest.raises(ValueError, match="got 20 of 20 under the label '10'"):
        pv.compare({"a": model}, torch.cat([x[200:], x[:20]]), by=np.arange(220) // 20, check=False)


def test_matches_by_chance_have_at_most_the_probability_that_bounds_them():
    for rows, matches, chance in [(1, 1, 0.3), (5, 5, 0.2), (40, 21, 0.4), (40, 20, 0.1), (7, 3, 0.45)]:
        found = identity.Seen(np.arange(rows) < matches, chance).by_chance
        exact = stats.binom.sf(matches - 1, rows, chance)
        assert exact - 1e-12 <= found <= 10 * exact


def test_rows_that_repeat_by_chance_are_no_training_rows():
    """Of five binary columns most rows that were kept back equal some that were not."""
    assert np.isin(identity.row_hashes(X), independent().seen).mean() > 0.5
    assert pv.compare({"a": independent()}, X, check=False)["seen"].tolist() == [0]


def test_evidences_of_one_training_set_rank_among_themselves():
    few, many = (baselines.IndependentBernoulli(a, a).fit(TRAIN) for a in (1.0, 100.0))
    table = pv.compare_evidence({"many": many, "few": few})
    totals = {"few": few.marginal_likelihood().total, "many": many.marginal_likelihood().total}
    assert list(table.index) == ["few", "many"]
    assert table.loc["many", "log_bayes_factor"] == pytest.approx(totals["many"] - totals["few"])
    odds = np.exp(totals["few"] - totals["many"])
    assert table.loc["few", "probability"] == pytest.approx(odds / (1 + odds))
    for models, message in (
        ({"few": few, "rows": few.log_evidence(X)}, "got 'rows', predictive scores of rows"),
        ({"few": few, "vae": bernoulli_vae()}, "the evidence of their training set, got 'vae', a VAE"),
        (
            {"few": few, "other": baselines.IndependentBernoulli().fit(X)},
            "on others: 40 rows of 5 columns against 200",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            pv.compare_evidence(models)


OTHER = {
    "dequantised by other noise": lambda x, noise: (x.floor(), x.floor() + noise),
    "in another order": lambda x, noise: (x, x.flip(0)),
    "in other units, a factor of 0.003922": lambda x, noise: (x, x / 255),
    "another binarization": lambda x, noise: ((x > noise.mul(8)).float(), (x > noise.flip(0).mul(8)).float()),
    "60 rows of 4 columns against 60 of 6": lambda x, noise: (x, x[:, :4]),
}


@pytest.mark.parametrize("reason", OTHER)
def test_why_other_rows_are_others(reason):
    """Images of few and of many strokes: two binarizations have nearly the same totals."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(60, 6, generator=generator) + torch.linspace(0, 7, 60)[:, None]
    noise = torch.rand(60, 6, generator=generator)
    first, second = OTHER[reason](x, noise)
    scores = {}
    for name, rows in (("a", first), ("b", second)):
        vae = pv.VAE.mlp(rows.shape[1], 1, "gaussian", hidden_dims=(2,))
        scores[name] = pv.log_evidence(vae, rows, num_samples=2, check=False)
    with pytest.raises(ValueError, match=f"'b' on others: .*{reason}"):
        pv.compare(scores)


def test_it_prints_in_a_terminal_a_notebook_and_latex():
    table = pv.compare(
        {"VAE": bernoulli_vae(), "independent": independent()},
        X,
        num_samples=50,
        method="importance",
        check=False,
    )
    printed = repr(table)
    assert "mass, nats a row over 40 rows" in printed
    assert all(len(line) <= 100 for line in printed.splitlines())
    assert "≥ -" in printed
    assert "exact" in printed
    assert "<table" in table._repr_html_()
    latex = table.to_latex()
    assert r"$\pm$" in latex
    assert "≥" not in latex
    assert set(table[["elpd", "se"]].columns) == {"elpd", "se"}  # what is taken from it is a plain frame
    assert type(table[["elpd"]]) is not type(table)


def test_a_difference_is_open_unless_both_checks_passed():
    """In print; a failed check leaves a number that may be too low."""
    checks = {
        outcome: evidence.Check("auto", 64, 9, 9, 64, outcome, "why", np.zeros(64), 0, 40)
        for outcome in (True, False)
    }
    best = pv.log_evidence(independent(), X)
    worse = dataclasses.replace(best, estimate=best.estimate - 1, kind=np.full(40, "lower bound"))
    passed, failed = (dataclasses.replace(worse, check=checks[outcome]) for outcome in (True, False))
    table = pv.compare({"best": best, "passed": passed, "failed": failed}, by=np.arange(40) % 2)
    assert table["check"].tolist() == 2 * ["exempt", "passed", "failed"]
    shown = table.short()["to the best"].tolist()
    assert ["open" in cell for cell in shown] == 2 * [False, False, True]
    table = pv.compare({"best": dataclasses.replace(best, check=checks[False]), "passed": passed})
    assert "open" in table.short()["to the best"]["passed"]


@pytest.mark.parametrize(
    ("shared", "expected"),
    # Two rows each have errors (3, 4) and tails (12, 5) against (8, 6) and none, and biases −2 and −6: in units of 0.01.
    [(None, (2.5, 6.5, 5, 4)), (0.035, (3.5, 8.5, 5, 4))],
)
def test_the_error_of_a_difference_counts_tail_and_bias(shared, expected):
    """As the intervals of the two means do, and the infinite error of a tail leaves the difference open."""
    exact = pv.log_evidence(independent(), X[:2])

    def score(shift, mcse, bias, tail, shared=None):
        return dataclasses.replace(
            exact,
            estimate=exact.estimate + shift,
            mcse=np.array(mcse) / 100,
            bias=np.full(2, bias / 100),
            tail_error=np.array(tail) / 100,
            shared_mcse=shared,
        )

    best, other = score(0, (8, 6), -6, (0, 0)), score(-1, (3, 4), -2, (12, 5), shared)
    table = pv.compare({"best": best, "other": other})
    assert table.loc["other", "mcse_diff"] == pytest.approx(math.hypot(*expected) / 100)
    low, high = other.mean_interval
    upwards = 1.96 * math.hypot(*expected[:2]) / 100 + 0.02
    assert (low, high) == pytest.approx(
        (other.mean - 1.96 * expected[0] / 100, other.mean + upwards), abs=1e-4
    )
    assert not table["open"].any()
    heavy = dataclasses.replace(other, tail_error=np.array([0.1, math.inf]))
    assert pv.compare({"best": best, "other": heavy}).loc["other", "open"]


def test_the_error_of_a_bayes_factor_counts_tail_and_bias():
    one, two = (baselines.IndependentBernoulli(a, a).fit(TRAIN).marginal_likelihood() for a in (1.0, 3.0))
    best, worse = sorted((one, two), key=lambda score: -score.total)
    parts = {"mcse": np.array([0.03]), "tail_error": np.array([0.04]), "bias": np.array([-0.12])}
    table = pv.compare_evidence({"best": best, "worse": dataclasses.replace(worse, **parts)})
    assert table.loc["worse", "mcse_diff"] == pytest.approx(0.13)
    assert table.loc["best", "mcse_diff"] == 0


def test_numbers_that_were_fitted_are_counted():
    vae = bernoulli_vae()
    table = pv.compare(
        {"VAE": vae, "independent": independent()}, X, num_samples=5, method="importance", check=False
    )
    assert table.loc["VAE", "num_parameters"] == sum(p.numel() for p in vae.parameters())
    assert np.isnan(table.loc["independent", "num_parameters"])  # averaged out


@pytest.mark.parametrize(
    ("baseline", "number"),
    [
        (baselines.PPCA(2), 3 + 6 - 1 + 1),
        (baselines.FactorAnalysis(1), 3 + 3 + 3),
        (baselines.FullGaussian(), 3 + 6),
        (baselines.IndependentGaussian(), 6),
        (baselines.GaussianMixture(2, "diag"), 1 + 6 + 6),
        (baselines.GaussianMixture(2, "tied"), 1 + 6 + 6),
        (baselines.GaussianMixture(2, "spherical"), 1 + 6 + 2),
    ],
)
def test_free_numbers_of_baselines(baseline, number):
    assert baseline.fit(gaussian_rows(200, 0)).num_parameters == number


def test_free_numbers_of_masses():
    x = TRAIN[:, :3]
    assert baselines.BernoulliMixture(2).fit(x).num_parameters == 1 + 6
    assert baselines.IndependentPoisson().fit(x + 1).num_parameters == 3
    assert baselines.LatentClass(2, 2).fit(x).num_parameters == 1 + 6


def test_copies_of_training_rows_and_rows_that_stopped_the_fit_were_seen():
    train, test = gaussian_rows(60, 0), gaussian_rows(60, 1)
    twice = baselines.FullGaussian().fit(torch.cat([train, train]))
    refused("60 of 60 that 'a' was", {"a": twice}, train)
    assert pv.compare({"a": twice}, test, check=False)["seen"].tolist() == [0]
    vae = pv.VAE.mlp(3, 1, "gaussian", hidden_dims=(4,))
    pv.fit(vae, train, epochs=1, validation=test, patience=1)
    with pytest.raises(ValueError, match="60 of 60"):
        pv.compare({"a": vae}, test, num_samples=5, method="importance", check=False)


def test_given_different_offsets_is_refused_and_given_one_is_shown():
    x = torch.poisson(torch.full((30, 3), 4.0), generator=torch.Generator().manual_seed(0))
    vae = pv.VAE.mlp(3, 1, "poisson", hidden_dims=(4,), offset=True)
    offsets = torch.randn(2, 30, generator=torch.Generator().manual_seed(1))
    one, other = (pv.log_evidence(vae, {"x": x, "offset": o}, num_samples=5, check=False) for o in offsets)
    refused("given the same offset as 'a', got 'b' given another", {"a": one, "b": other})
    table = pv.compare({"a": one, "b": one})
    assert table["given"].tolist() == ["offset", "offset"]
    assert "given" in repr(table)


def test_regressions_on_the_same_covariates_compare():
    x = gaussian_rows(50, 0)
    wide, narrow = (baselines.BayesianLinearRegression(p).fit(x) for p in (0.1, 100.0))
    assert len(pv.compare_evidence({"wide": wide, "narrow": narrow})) == 2
    assert len(pv.compare({"wide": wide, "narrow": narrow}, gaussian_rows(20, 1), check=False)) == 2
    refused("are unscored", {"wide": wide, "full": baselines.FullGaussian().fit(x)}, gaussian_rows(20, 1))


def test_labels_that_are_missing_are_refused():
    labels = np.where(np.arange(40) < 3, np.nan, 1.0)
    with pytest.raises(
        ValueError, match="by: expected a label for every row, got 3 labels that are NaN, first at row 0"
    ):
        pv.compare({"a": independent()}, X, by=labels, check=False)


@pytest.mark.parametrize("labels", [np.arange(39), pd.Series(np.arange(40), index=range(1, 41))])
def test_labels_are_refused_before_the_work(labels, monkeypatch):
    made = []

    def score(pair, x, method, **options):
        made.append(method)
        return pv.log_evidence(pair, x, method=method, **options)

    monkeypatch.setattr(predictive, "log_evidence", score)
    with pytest.raises(ValueError, match=r"^by: expected "):
        pv.compare({"a": bernoulli_vae()}, pd.DataFrame(X.numpy()), by=labels, method="annealed")
    assert made == ["importance"]


def test_swap_refuses_a_pseudo_likelihood_before_anything_is_fitted():
    x = torch.poisson(torch.full((60, 3), 4.0), generator=torch.Generator().manual_seed(0)) + 1
    rows = {"x": x, "offset": x.sum(1).log()}
    with pytest.raises(ValueError, match="a pseudo-likelihood under poisson"):
        pv.swap(rows, 1, [("poisson", {"offset": True})], epochs=10**6)


def frame_of_kinds(rows=90):
    rng = np.random.default_rng(0)
    z = rng.normal(size=rows)
    found = pd.DataFrame({"real": z + rng.normal(size=rows), "other": 2 * z + rng.normal(size=rows)})
    found["count"] = rng.poisson(3.0, size=rows) * 3
    found["word"] = np.where(z > 0, "up", "down")
    return found


def test_columns_of_a_frame_are_matched_by_name():
    """Models fitted to frames in any order have the log P of a frame in their own order."""
    df = frame_of_kinds()[["real", "other", "count"]]
    turned = df[["count", "real", "other"]]
    vae = pv.VAE.mlp(3, 1, "gaussian", (4,), standardize=True)
    pv.fit(vae, turned[:60], epochs=1)
    models = {
        "one": baselines.PPCA(1).fit(df[:60]),
        "turned": baselines.PPCA(1).fit(turned[:60]),
        "full": baselines.FullGaussian().fit(turned[["other", "real", "count"]][:60]),
        "vae": vae,
    }
    table, other = (
        pv.compare(models, x, method="importance", num_samples=50, check=False)
        for x in (df[60:], {"x": turned[60:]})
    )
    pd.testing.assert_frame_equal(table.drop(columns="seconds"), other.drop(columns="seconds"))
    own = {"one": df, "turned": turned, "full": turned[["other", "real", "count"]]}
    for name, rows in own.items():
        assert table.elpd[name] == pv.log_evidence(models[name], rows[60:]).mean
    assert table.elpd["turned"] == pytest.approx(table.elpd["one"], abs=1e-9)
    with pytest.raises(ValueError, match=r"by name and in order, got 'b' instead of 'count'"):
        pv.compare(models, df[60:].rename(columns={"count": "b"}))


def test_tables_are_matched_by_name_with_masses_and_densities():
    df = frame_of_kinds()
    turned = df[["word", "other", "count", "real"]]
    torch.manual_seed(0)
    tables = {name: pv.VAE.for_table(rows[:60], 1) for name, rows in (("one", df), ("turned", turned))}
    found = pv.compare(tables, df[60:], method="importance", num_samples=50, check=False)
    for name, model in tables.items():
        own = pv.log_evidence(model, turned[60:], num_samples=50, check=False)
        assert found.elpd[name] == own.mean
    fewer = pv.VAE.for_table(df[df.word == "up"][:30], 1, families={"word": None})
    refused(
        "models: expected all scored on the same rows",
        {"one": tables["one"], "fewer": fewer},
        df[60:],
    )
    rounded = pv.VAE.for_table(turned[:60].round(1), 1, resolution={"real": 0.1, "other": 0.1})
    refused(
        "models: expected all",
        {"one": tables["one"], "rounded": rounded},
        df[60:].round(1),
    )


def test_masks_and_scores_are_matched_by_name():
    """Models fitted to columns in several orders: a mask beside the frame, and a score in either order."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.standard_normal((50, 3)) * [0.1, 1, 10], columns=list("abc"))
    first, second = (baselines.FullGaussian().fit(frame[:40][list(order)]) for order in ("abc", "cba"))
    x, mask = frame[40:], rng.random((10, 3)) < 0.8
    expected = first.log_evidence(x.where(mask)).mean
    for observed in (mask, torch.as_tensor(mask), pd.DataFrame(mask, x.index, x.columns)):
        table = pv.compare({"first": first, "second": second}, {"x": x, "observed": observed})
        np.testing.assert_allclose(table["elpd"], expected, rtol=1e-12)
    score = second.log_evidence(x[list("cba")])
    models = {"first": first, "score": score, "second": second}
    for names in itertools.permutations(models):
        assert np.ptp(pv.compare({name: models[name] for name in names}, x)["elpd"]) < 1e-12


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_scores_are_matched_in_every_order_of_the_models(order):
    """Rows without names equal the rows of a frame, whose columns are those of another frame in another order."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(60, 4)) @ rng.normal(size=(4, 4)), columns=list("badc"))
    forms = {
        "array": frame.to_numpy(),
        "badc": frame,
        "abcd": frame[list("abcd")],
        "cbda": frame[list("cbda")],
    }
    scores = {name: baselines.FullGaussian().fit(x[:40]).log_evidence(x[40:]) for name, x in forms.items()}
    mixed = ("mass", "density", "density", "mass")  # of b, a, d, c
    columns = {"array": "badc"}
    scores = {
        name: dataclasses.replace(
            score, measure=tuple(mixed["badc".index(column)] for column in columns.get(name, name))
        )
        for name, score in scores.items()
    }
    table = pv.compare({list(scores)[n]: scores[list(scores)[n]] for n in order})
    np.testing.assert_allclose(table["elpd"], scores["badc"].mean, rtol=1e-9)


def test_scores_of_columns_in_several_orders_are_matched_by_name():
    """Each computed before, on the columns in the order of its own model; and evidences of one training set."""
    rng = np.random.default_rng(0)
    z = rng.standard_normal(60)
    frame = pd.DataFrame({"b": z, "c": rng.poisson(3.0, 60), "a": z + rng.standard_normal(60)})
    frame = frame.mask(rng.random(frame.shape) < 0.1)
    x, orders = frame[40:], (["b", "c", "a"], ["a", "b", "c"], ["c", "a", "b"])
    for options in ({}, {"given": ["c"]}):
        fitted = [baselines.FullGaussian().fit(frame[:40][order]) for order in orders]
        scores = {
            str(n): pv.log_evidence(model, x[order], **options)
            for n, (model, order) in enumerate(zip(fitted, orders, strict=True))
        }
        table = pv.compare(scores)
        np.testing.assert_allclose(table["elpd"], scores["0"].mean, rtol=1e-12)
    other = pv.log_evidence(fitted[1], x[orders[1]], given=["b"])
    refused(r"'b' on others: log P given the columns \['b'\] against \['c'\]", {"a": scores["0"], "b": other})
    moved = fitted[1].log_evidence(x.rename(columns={"a": "b", "b": "a"})[orders[1]])
    whole = fitted[0].log_evidence(x[orders[0]])
    refused("'b' on others: ", {"a": whole, "b": moved})
    torch.manual_seed(0)
    options = {"method": "importance", "num_samples": 50, "check": False}
    tables = [pv.VAE.for_table(frame[:40][order], 1, hidden_dims=(2,)) for order in orders]
    scores = {str(n): pv.log_evidence(table, x, **options) for n, table in enumerate(tables)}
    assert len(set(scores["0"].measure)) == 2
    found = pv.compare(scores)
    assert all(found["elpd"][name] == score.mean for name, score in scores.items())
    families = {"a": ("gaussian", {}), "c": ("gaussian", {"scale": 1.0})}
    counts = pv.VAE.for_table(frame[:40][orders[2]], 1, hidden_dims=(2,), families=families)
    wrong = pv.log_evidence(counts, x, **options)
    refused("all masses or all densities", {"0": scores["0"], "wrong": wrong})
    complete = frame.fillna(0.0)
    evidences = {
        str(n): baselines.NormalInverseGamma().fit(complete[order]).marginal_likelihood()
        for n, order in enumerate(orders)
    }
    factors = pv.compare_evidence(evidences)["log_bayes_factor"]
    np.testing.assert_allclose(factors, 0, atol=1e-9)


def test_the_same_rows_without_names_in_another_order_of_columns_are_named():
    x = np.random.default_rng(0).normal(size=(30, 3))
    scores = [baselines.PPCA(1).fit(rows).log_evidence(rows) for rows in (x, x[:, ::-1])]
    refused("same rows with columns in another order", dict(zip("ab", scores, strict=True)))


def test_levels_and_steps_that_change_no_number_compare_with_baselines():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"flag": rng.integers(0, 2, 60), "count": rng.poisson(3.0, 60)}).astype(float)
    vae = pv.VAE.for_table(frame, 1, resolution={"count": 1})
    baseline = baselines.IndependentPoisson().fit(frame[["count", "flag"]])
    for models in ({"vae": vae, "baseline": baseline}, {"baseline": baseline, "vae": vae}):
        table = pv.compare(
            models, frame[:9], training_rows=True, method="importance", num_samples=9, check=False
        )
        assert table["elpd"].notna().all()


ARRAYS = {
    "array": lambda x: x.to_numpy(),
    "tensor": lambda x: torch.tensor(x.to_numpy()),
    "dict": lambda x: {"x": x.to_numpy()},
    "chunks": lambda x: [x.to_numpy()[:9], x.to_numpy()[9:]],
    "sparse": lambda x: scipy.sparse.csr_array(x.to_numpy()),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_rows_without_names_are_refused_by_models_of_columns_in_several_orders(kind):
    """By position, one of them would read a column as another."""
    frame = frame_of_kinds()[["real", "other", "count"]]
    turned = frame[["other", "real", "count"]]
    x = ARRAYS[kind](frame[60:])
    numbers = frame.set_axis([1, 2, 3], axis=1), frame.set_axis([0, 1, 2], axis=1)
    pairs = [
        [baselines.FullGaussian().fit(rows[:60]) for rows in rows_of]
        for rows_of in ((frame, turned), (turned, frame.to_numpy(), frame), numbers)
    ]
    vae = pv.VAE.mlp(3, 1, "gaussian", (2,))
    pv.fit(vae, turned[:60], epochs=1, compile=False)
    table = pv.VAE.for_table(turned[:60], 1, hidden_dims=(2,))
    for models in (*pairs, [vae, pairs[0][0]], [table, pairs[0][0]]):
        if kind == "sparse" and models[0] is table:
            continue  # codes of tables are dense
        with pytest.raises(ValueError, match=r"x: expected a frame, because .*rows without names; column '"):
            pv.compare({str(n): model for n, model in enumerate(models)}, x, method="importance")
    renamed = baselines.FullGaussian().fit(frame[:60].set_axis(list("abc"), axis=1))
    for models in ([pairs[0][0], renamed], [pairs[0][0], pairs[1][1]]):
        expected = pairs[0][0].log_evidence(frame[60:]).mean
        assert (
            pv.compare({str(n): model for n, model in enumerate(models)}, x)["elpd"].tolist()
            == [expected] * 2
        )


def test_tables_whose_codes_differ_are_of_the_same_rows_if_their_values_are():
    """Levels are numbered from 0; other families score the numbers themselves."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.integers(1, 6, 60), "b": rng.integers(1, 6, 60)})
    families = {"steps": None, "ordinal": "ordinal", "categorical": "categorical", "poisson": "poisson"}
    tables = {
        name: pv.VAE.for_table(frame, 1, hidden_dims=(2,), families=dict.fromkeys("ab", f) if f else None)
        for name, f in families.items()
    }
    turned = pv.VAE.for_table(frame[["b", "a"]], 1, hidden_dims=(2,), families={"a": "ordinal"})
    counts = baselines.IndependentPoisson().fit(frame)
    of_codes = baselines.IndependentPoisson().fit(tables["ordinal"].table.encode(frame))
    options = {"num_samples": 9, "check": False}
    scores = {name: pv.log_evidence(vae, frame, **options) for name, vae in tables.items()}
    scores |= {"turned": pv.log_evidence(turned, frame, **options), "counts": counts.log_evidence(frame)}
    scores["codes"] = of_codes.log_evidence(tables["ordinal"].table.encode(frame))
    for names in (list(scores), list(scores)[::-1]):
        found = pv.compare({name: scores[name] for name in names}, training_rows=True)
        assert all(found["elpd"][name] == score.mean for name, score in scores.items())
    together = {**tables, "turned": turned, "counts": counts}
    found = pv.compare(together, frame, training_rows=True, method="importance", **options)
    assert all(found["elpd"][name] == scores[name].mean for name in together)
    shifted = pv.VAE.for_table(frame - 1, 1, hidden_dims=(2,), families=dict.fromkeys("ab", "ordinal"))
    other = pv.log_evidence(shifted, frame - 1, **options)  # whose codes are the same
    for name in families:
        refused(
            "the same rows with a constant added, -2 in all", {"first": scores[name], "other": other}, None
        )


def test_levels_of_text_are_the_same_in_any_order_of_categories_and_no_others():
    words = pd.DataFrame({"a": np.random.default_rng(0).choice(["low", "mid", "high"], 60)})
    ordered = words.astype(pd.CategoricalDtype(["low", "mid", "high"], ordered=True))
    frames = words, ordered, words.replace({"low": "tiny"})
    scores = [
        pv.log_evidence(pv.VAE.for_table(each, 1, hidden_dims=(2,)), each, num_samples=9, check=False)
        for each in frames
    ]
    assert len(pv.compare({"words": scores[0], "ordered": scores[1]}, training_rows=True)) == 2
    refused("all scored on the same rows", {"words": scores[0], "others": scores[2]}, None)


@pytest.mark.parametrize("step", [0.3, 0.7, 1e-6, 1e20, 7 / 3])
@pytest.mark.parametrize("digits", [15, 17])
def test_steps_and_levels_are_the_same_rows_whatever_their_rounding(step, digits):
    """3 · 0.3 is not the float 0.9, which a file holds. Numbers that differ in 15 digits are others."""
    values = [float(f"{number * step:.{digits}g}") for number in range(1, 8)]
    frame = pd.DataFrame({"a": values * 3})
    more = pd.DataFrame({"a": [value * (1 + 4e-15) for value in values] * 3})
    steps, levels, others = (
        Table.of(rows, **options)
        for rows, options in (
            (frame, {"resolution": {"a": step}}),
            (frame, {"families": {"a": "ordinal"}}),
            (more, {"families": {"a": "ordinal"}}),
        )
    )
    one, same, other = (
        identity.fingerprint(table.values(torch.tensor(table.encode(rows)), None))
        for table, rows in ((steps, frame), (levels, frame), (others, more))
    )
    assert one == same
    assert same != other


def test_long_numbers_are_not_rounded_to_one_another():
    for levels in ([2.0**53 - 2, 2.0**53 - 1, 5.0], [0.3, 0.1 + 0.2, 5.0]):
        frame = pd.DataFrame({"a": levels * 3})
        table = Table.of(frame, {"a": "ordinal"})
        values = table.values(torch.tensor(table.encode(frame)), None)
        assert values.flatten().tolist() == levels * 3


def test_codes_are_refused_by_models_of_the_frame():
    """A table's codes are numbers of levels or steps; a baseline that was fitted to the frame takes them for its values."""
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(60, 2)).round(1), columns=["a", "b"])
    families = dict.fromkeys("ab", "gaussian")
    plain, steps = (
        pv.VAE.for_table(frame, 1, hidden_dims=(2,), families=families, resolution=resolution)
        for resolution in (None, {"a": 0.1})
    )
    baseline, of_codes = (
        baselines.FullGaussian().fit(frame),
        baselines.FullGaussian().fit(steps.table.encode(frame)),
    )
    options = {"method": "importance", "num_samples": 2, "check": False, "training_rows": True}
    with pytest.raises(
        ValueError, match="codes, which 'table' and 'baseline' read differently in column 'a'"
    ):
        pv.compare({"table": steps, "baseline": baseline}, steps.table.encode(frame), **options)
    table = pv.compare({"table": plain, "baseline": baseline}, plain.table.encode(frame), **options)
    assert table["elpd"]["baseline"] == baseline.log_evidence(frame).mean
    refused("all masses or all densities", {"table": steps, "baseline": of_codes}, steps.table.encode(frame))


def test_codes_that_tables_read_differently_are_refused():
    """Without names, a column's place and its steps cannot be compared."""
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(40, 2)).round(1), columns=["a", "b"])
    families = dict.fromkeys("ab", ("gaussian", {"scale": 1.0}))
    one, other, finer = (
        pv.VAE.for_table(rows, 1, hidden_dims=(2,), families=families, resolution=steps)
        for rows, steps in ((frame, None), (frame[["b", "a"]], None), (frame, {"a": 0.1}))
    )
    codes = one.table.encode(frame)
    for second in (other, finer):
        with pytest.raises(ValueError, match="x: expected a frame, or models of one table, got codes"):
            pv.compare({"one": one, "second": second}, codes, method="importance", num_samples=2, check=False)
