"""Latents that some rows lack: every method gives log P(x) of what is there, wherever the mask is written.

Every comparison with an exact value allows ``rates.Z`` standard errors and the first-order bias, and 1e-3 nats for
float32: a bias of 0.1 in any row is sure to be seen, since no tolerance exceeds it.
"""

import math
from dataclasses import replace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from rates import SEED, Z

import pyrovae as pv
from pyrovae.pair import inspect

ROWS = 8
METHODS = {
    "importance": {"num_samples": 4000},
    "jackknife": {"num_samples": 2000},
    "annealed": {"num_samples": 64, "num_temperatures": 60},
    "refined": {"num_samples": 2000, "num_starts": 2},
    "auto": {"target_mcse": 0.02},
    "quadrature": {},
}
LENGTHS = torch.tensor([0, 1, 2, 1, 2, 0, 2, 1])
HELD = torch.arange(2) < LENGTHS[:, None]  # (rows, entries)


def normal(value):
    """log N(value; 0, 2), of x = z + noise."""
    return dist.Normal(0.0, 2**0.5).log_prob(value).double()


def steps():
    """A loop over steps of a sequence, each masked by the rows' lengths."""

    def model(x, held):
        with pyro.plate("data", len(x)):
            for t in range(2):
                with poutine.mask(mask=held[:, t]):
                    z = pyro.sample(f"z{t}", dist.Normal(torch.zeros(len(x)), 1.0))
                    pyro.sample(f"x{t}", dist.Normal(z, 1.0), obs=x[:, t])

    def guide(x, held):
        with pyro.plate("data", len(x)):
            for t in range(2):
                with poutine.mask(mask=held[:, t]):
                    pyro.sample(f"z{t}", dist.Normal(x[:, t] / 2, 0.8))

    return model, guide, lambda x: torch.where(HELD, normal(x), 0.0).sum(1)


def entries():
    """Single entries of one latent vector, by ``.mask`` below ``.to_event``."""

    def model(x, held):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).mask(held).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).mask(held).to_event(1), obs=x)

    def guide(x, held):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.8).mask(held).to_event(1))

    return model, guide, lambda x: torch.where(HELD, normal(x), 0.0).sum(1)


def events():
    """A whole latent vector, by ``.mask`` above ``.to_event``; one column stays."""

    def model(x, held):
        has = held.all(1)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1).mask(has))
            u = pyro.sample("u", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1).mask(has), obs=x[:, :2])
            pyro.sample("y", dist.Normal(u, 1.0), obs=x[:, 2])

    def guide(x, held):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, :2] / 2, 0.8).to_event(1).mask(held.all(1)))
            pyro.sample("u", dist.Normal(x[:, 2] / 2, 0.8))

    def exact(x):
        return torch.where(HELD.all(1), normal(x[:, :2]).sum(1), 0.0) + normal(x[:, 2])

    return model, guide, exact


def plates():
    """Rows and columns as plates, masked cell by cell."""

    def model(x, held):
        with pyro.plate("data", len(x), dim=-2), pyro.plate("columns", 2, dim=-1), poutine.mask(mask=held):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x, held):
        with pyro.plate("data", len(x), dim=-2), pyro.plate("columns", 2, dim=-1), poutine.mask(mask=held):
            pyro.sample("z", dist.Normal(x / 2, 0.8))

    return model, guide, lambda x: torch.where(HELD, normal(x), 0.0).sum(1)


def positive():
    """Positive latents: Gamma and Exponential, conjugate; P(x) = 2 / (1 + x)³."""

    def model(x, held):
        with pyro.plate("data", len(x)), poutine.mask(mask=held[:, 0]):
            z = pyro.sample("z", dist.Gamma(torch.full((len(x),), 2.0), 1.0))
            pyro.sample("x", dist.Exponential(z), obs=x.abs()[:, 0])

    def guide(x, held):
        with pyro.plate("data", len(x)), poutine.mask(mask=held[:, 0]):
            pyro.sample("z", dist.Gamma(torch.full((len(x),), 2.5), 0.8 + x.abs()[:, 0]))

    def exact(x):
        return torch.where(HELD[:, 0], math.log(2) - 3 * torch.log1p(x.double().abs()[:, 0]), 0.0)

    return model, guide, exact


def simplex():
    """A simplex, whose bijection has one entry less: x is the second of three categories with probability 2/6."""

    def model(x, held):
        with pyro.plate("data", len(x)), poutine.mask(mask=held[:, 0]):
            z = pyro.sample("z", dist.Dirichlet(torch.tensor([1.0, 2.0, 3.0]).expand(len(x), 3)))
            pyro.sample("x", dist.Categorical(z), obs=(x[:, 0] > 0).long())

    def guide(x, held):
        with pyro.plate("data", len(x)), poutine.mask(mask=held[:, 0]):
            pyro.sample("z", dist.Dirichlet(torch.tensor([1.2, 2.2, 3.0]).expand(len(x), 3)))

    def exact(x):
        return torch.where(HELD[:, 0], torch.where(x[:, 0] > 0, 2 / 6, 1 / 6).log().double(), 0.0)

    return model, guide, exact


PLACES = {f.__name__: f for f in (steps, entries, events, plates, positive, simplex)}


def rows(place):
    return torch.randn(ROWS, 3 if place == "events" else 2, generator=torch.Generator().manual_seed(SEED))


#: Grids of three dimensions, and of a simplex, take a minute.
BOTH = [(p, m) for p in PLACES for m in METHODS if m != "quadrature" or p not in ("events", "simplex")]


@pytest.mark.statistical
@pytest.mark.parametrize(("place", "method"), BOTH)
def test_every_method_gives_what_the_rows_have(place, method):
    model, guide, exact = PLACES[place]()
    x = rows(place)
    pair = pv.LatentVariableModel(model, guide)
    options = METHODS[method] if method == "quadrature" else {**METHODS[method], "compile": False}
    ev = pv.log_evidence(pair, {"x": x, "held": HELD}, method=method, seed=SEED, check=False, **options)
    tolerance = Z * ev.mcse + np.abs(ev.bias) + 1e-3
    assert tolerance.max() < 0.6
    assert np.median(tolerance) < 0.2
    np.testing.assert_array_less(np.abs(ev.estimate - exact(x).numpy()), tolerance)
    assert abs(ev.mean - float(exact(x).mean())) < Z * ev.mean_mcse + abs(ev.mean_bias) + 1e-3


def test_a_diagnosis_counts_no_masked_entries():
    model, guide, _ = entries()
    x = rows("entries")
    pair = pv.LatentVariableModel(model, guide)
    found = pv.diagnose(pair, {"x": x, "held": HELD}, num_samples=200, seed=SEED)
    half = 0.5 * (0.8**2 + (x.double() / 2) ** 2 - 1 - 2 * math.log(0.8))
    rate = torch.where(HELD, half, 0.0).mean(0)
    np.testing.assert_allclose(found.dimensions["rate"], rate.numpy(), atol=1e-5)
    mean = [(x[HELD[:, d], d] / 2).double().var() for d in range(2)]
    np.testing.assert_allclose(found.dimensions["variance_of_mean"], mean, atol=1e-5)


def labels():
    """Labels, whole numbers that cannot be NaN."""

    def model(x, held):
        with pyro.plate("data", len(x)), poutine.mask(mask=held[:, 0]):
            k = pyro.sample("k", dist.Categorical(torch.ones(len(x), 3) / 3))
            pyro.sample("x", dist.Normal(k.to(x.dtype), 1.0), obs=x[:, 0])

    def guide(x, held):
        with pyro.plate("data", len(x)), poutine.mask(mask=held[:, 0]):
            pyro.sample("k", dist.Categorical(torch.ones(len(x), 3) / 3))

    return model, guide, None


#: Which rows, or which entries of them, have each latent.
HAVE = {
    steps: {"z0": HELD[:, 0], "z1": HELD[:, 1]},
    entries: {"z": HELD},
    events: {"z": HELD.all(1, keepdim=True).expand(ROWS, 2), "u": torch.ones(ROWS).bool()},
    plates: {"z": HELD},
    simplex: {"z": HELD[:, :1].expand(ROWS, 3)},
    labels: {"k": HELD[:, 0]},
}


@pytest.mark.parametrize("place", HAVE)
def test_draws_for_arviz_are_nan_where_a_row_lacks_the_latent(place):
    pair = pv.LatentVariableModel(*place()[:2])
    x = {"x": rows(place.__name__), "held": HELD}
    data = pv.convert.to_arviz(pair, x, num_draws=5, num_samples=20, predictive=False, tile=(3, 20))
    for group in ("posterior", "prior"):
        for name, have in HAVE[place].items():
            values = data[group][name].values[0]
            np.testing.assert_array_equal(np.isnan(values), np.broadcast_to(~have.numpy(), values.shape))


def test_draws_for_arviz_of_observed_cells_are_nan():
    """``obs_mask`` makes a latent of the missing cells alone."""
    x, observed = rows("steps")[:, 0], HELD[:, 0]
    data = pv.convert.to_arviz(cells(True), {"x": x, "observed": observed}, num_draws=5, num_samples=20)
    for group in ("posterior", "prior"):
        values = data[group]["x_unobserved"].values[0]
        np.testing.assert_array_equal(np.isnan(values), np.broadcast_to(observed.numpy(), values.shape))
        assert np.isfinite(data[group]["z"]).all()
        assert np.isfinite(data[f"{group}_predictive"]["x"]).all()


# ---------------------------------------------------------------------------------------------------------
# Masks of observed sites

ALL = torch.tensor(True)
HIDES_NOTHING = {
    "one truth": (lambda x: ALL, "to_event"),
    "one truth around": (lambda x: ALL, "poutine"),
    "one truth below": (lambda x: ALL, "below"),
    "a truth a row": (lambda x: torch.ones(len(x)).bool(), "to_event"),
    "a truth a cell": (lambda x: torch.ones(len(x), 3).bool(), "below"),
    "finite": (lambda x: x.isfinite(), "below"),
}


def observed_under(mask_of, where, width=3, given=False):
    """z ~ N(0, 1), three columns x = z + noise under a mask, and the posterior of z given the first ``width`` of them."""

    def model(x, held=None):
        mask = held if given else mask_of(x)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            fn = dist.Normal(z[..., None], 1.0).expand([*z.shape, 3])
            if where == "below":
                pyro.sample("x", fn.mask(mask).to_event(1), obs=x)
            elif where == "to_event":
                pyro.sample("x", fn.to_event(1).mask(mask), obs=x)
            else:
                with poutine.mask(mask=mask):
                    pyro.sample("x", fn.to_event(1), obs=x)

    def guide(x, held=None):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, :width].sum(-1) / (width + 1), (width + 1) ** -0.5))

    return pv.LatentVariableModel(model, guide)


def log_p(x):
    """log P of rows of columns z + noise."""
    columns = x.shape[1]
    scale = torch.eye(columns, dtype=torch.float64) + 1
    return dist.MultivariateNormal(torch.zeros(columns, dtype=torch.float64), scale).log_prob(x.double())


def three(count=40):
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(SEED)) + 1


@pytest.mark.parametrize("kind", HIDES_NOTHING)
def test_a_mask_that_hides_nothing_changes_nothing(kind):
    ev = pv.log_evidence(observed_under(*HIDES_NOTHING[kind]), three(), num_samples=200)
    assert (ev.measure, ev.counts()["trust"]) == (("density",) * 3, 40)
    np.testing.assert_allclose(ev.estimate, log_p(three()), atol=1e-4)  # each draw's weight is P(x)


def test_a_mask_that_hides_a_column_names_that_one():
    ev = pv.log_evidence(observed_under(lambda x: torch.arange(3) < 2, "below", 2), three(), num_samples=200)
    assert (ev.measure, ev.counts()["unchecked"]) == (("density", "density", "unscored"), 40)
    np.testing.assert_allclose(ev.estimate, log_p(three()[:, :2]), atol=1e-4)
    assert "got column 2, which is unscored" in str(ev.check)


@pytest.mark.parametrize("missing", [0, 1])
def test_a_missing_cell_is_not_one_that_a_mask_shows(missing):
    """Column 1 is hidden always. Bits per observed cell are unknown, because the hidden column has observed cells."""

    def model(x, observed=None):
        counted = torch.tensor([True, False, True])
        counted = counted if observed is None else counted & observed
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_tensor(0.0), 1.0))
            pyro.sample("x", dist.Normal(z[..., None], torch.ones(3)).mask(counted).to_event(1), obs=x)

    def guide(x, observed=None):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0 * x[:, 0], 1.0))

    x = three(6)
    pair = pv.LatentVariableModel(model, guide)
    assert math.isfinite(pv.log_evidence(pair, x, num_samples=50, check=False).bits_per_dim)
    x[2, missing] = math.nan
    ev = pv.log_evidence(pair, x, num_samples=50, check=False)
    assert ev.measure == ("density", "unscored", "density")
    assert math.isnan(ev.bits_per_dim)


@pytest.mark.parametrize("given", [True, False])
def test_a_cell_that_a_mask_hides_in_a_late_row_is_found(given):
    x = three(300)
    x[299, 1] = 1000.0
    pair = observed_under(lambda x: x < 1000, "below", given=given)
    ev = pv.log_evidence(pair, {"x": x, "held": x < 1000}, num_samples=20)
    assert ev.measure == ("density", "unscored in part", "density")
    assert ev.counts()["trust"] == 0
    assert math.isnan(ev.bits_per_dim)


def under_z(bound):
    """As ``observed_under``, where x is scored only if z is above a bound."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            fn = dist.Normal(z[..., None], 1.0).expand([*z.shape, 3]).to_event(1)
            pyro.sample("x", fn.mask(z > bound), obs=x)

    return pv.LatentVariableModel(model, observed_under(None, "below").guide)


def test_a_mask_that_hides_cells_at_other_z_is_found():
    ev = pv.log_evidence(under_z(-0.5), three() + 6, num_samples=200)  # the guide draws z > 2
    assert (ev.measure, ev.counts()["trust"]) == (("unscored in part",) * 3, 0)


def test_no_row_is_simulated_where_a_mask_hides_cells():
    x = three() + 6
    found = inspect(under_z(-9.0), {"x": x})
    assert found.structure.measure == ("density",) * 3
    with pytest.raises(ValueError, match="got site 'x', whose mask leaves out cells at other z"):
        replace(found, pair=under_z(-0.5)).simulate({"x": x})


def test_a_mask_that_hides_nothing_hides_no_count_beside_the_rows():
    """The count of ones is no function of a mask, so a model that is given it has no log P(x)."""
    x = (torch.rand(40, 6, generator=torch.Generator().manual_seed(SEED)) < 0.5).float()

    def model(x, ones):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            logits = (z + ones - 3)[..., None].expand(*z.shape, 6)
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1).mask(ALL), obs=x)

    def guide(x, ones):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))

    ev = pv.log_evidence(pv.LatentVariableModel(model, guide), {"x": x, "ones": x.sum(1)}, num_samples=20)
    assert (set(ev.measure), ev.counts()["trust"]) == ({"pseudo-likelihood"}, 0)


# ---------------------------------------------------------------------------------------------------------
# Refusals


def one_sided(part):
    """``steps``, without the masks of one part."""
    model, guide, _ = steps()
    masked = {"model": model, "guide": guide}[part]

    def unmasked(x, held):
        masked(x, torch.ones_like(held))

    return pv.LatentVariableModel(*((unmasked, guide) if part == "model" else (model, unmasked)))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("part", ["model", "guide"])
def test_a_mask_in_one_part_alone_is_refused(part, method):
    other = "guide" if part == "model" else "model"
    with pytest.raises(
        ValueError, match=rf"^{other}: expected latent 'z0' masked .* in 2 rows or more, first row 0"
    ):
        pv.log_evidence(one_sided(part), {"x": rows("steps"), "held": HELD}, method=method, check=False)


def test_a_mask_in_one_part_alone_is_found_in_a_late_row():
    held = torch.ones(300, 2, dtype=torch.bool)
    held[299] = False
    x = torch.randn(300, 2)
    with pytest.raises(ValueError, match="in 1 rows or more, first row 299"):
        pv.elbo(one_sided("guide"), {"x": x, "held": held}, num_samples=2)


def test_a_masked_latent_that_matters_is_refused():
    def model(x, held):
        with pyro.plate("data", len(x)):
            with poutine.mask(mask=held[:, 0]):
                z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])

    def guide(x, held):
        with pyro.plate("data", len(x)), poutine.mask(mask=held[:, 0]):
            pyro.sample("z", dist.Normal(x[:, 0] / 2, 0.8))

    with pytest.raises(ValueError, match=r"^model: expected unmasked terms .* 2 rows .* first row 0"):
        pv.log_evidence(pv.LatentVariableModel(model, guide), {"x": rows("steps"), "held": HELD}, check=False)


def cells(mask_guide):
    """A missing cell by ``obs_mask``: z and the cell are latent, x = z + noise."""

    def model(x, observed):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x, obs_mask=observed)

    def guide(x, observed):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x / 2, 0.8))
            with poutine.mask(mask=~observed if mask_guide else True):
                pyro.sample("x_unobserved", dist.Normal(z, 1.2))

    return pv.LatentVariableModel(model, guide)


@pytest.mark.statistical
@pytest.mark.parametrize("method", ["importance", "annealed", "refined", "auto", "quadrature"])
def test_cells_that_obs_mask_leaves_out_cost_nothing(method):
    x, observed = rows("steps")[:, 0], HELD[:, 0]
    options = {} if method == "quadrature" else {"compile": False}
    ev = pv.log_evidence(
        cells(True), {"x": x, "observed": observed}, method=method, seed=SEED, check=False, **options
    )
    exact = torch.where(observed, normal(x), 0.0).numpy()
    np.testing.assert_array_less(np.abs(ev.estimate - exact), Z * ev.mcse + np.abs(ev.bias) + 1e-3)


def test_obs_mask_says_what_the_guide_has_to_mask():
    with pytest.raises(ValueError, match=r"'x_unobserved' .* poutine.mask\(mask=~obs_mask\)"):
        pv.log_evidence(cells(False), {"x": rows("steps")[:, 0], "observed": HELD[:, 0]}, check=False)


WHOLE = torch.linspace(-2.0, 2.0, 24).view(8, 3)  # complete rows


def masked_at(place, shape, value=True):
    """x_d ~ N(z, 1) of three columns, with a mask of one value at a place; the guide is the posterior."""

    def mask_of(x):
        sizes = {"n": len(x), "m": len(x) + 1, "k": 2 + len(x) % 2}
        return torch.full([sizes.get(size, size) for size in shape], value)

    def model(x):
        with pyro.plate("data", len(x)):
            with poutine.mask(mask=mask_of(x) if place == "latent" else True):
                z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            likelihood = dist.Normal(z[..., None], 1.0).expand([*z.shape, 3])
            if place == "cells":
                likelihood = likelihood.mask(mask_of(x))
            likelihood = likelihood.to_event(1)
            if place == "rows":
                likelihood = likelihood.mask(mask_of(x))
            with poutine.mask(mask=mask_of(x) if place == "observed" else True):
                pyro.sample("x", likelihood, obs=x, obs_mask=mask_of(x) if place == "obs_mask" else None)

    def guide(x):
        with pyro.plate("data", len(x)):
            with poutine.mask(mask=mask_of(x) if place == "latent" else True):
                pyro.sample("z", dist.Normal(x.sum(1) / 4, 0.5))
            if place == "obs_mask":
                with poutine.mask(mask=~mask_of(x)):
                    pyro.sample("x_unobserved", dist.Normal(torch.zeros_like(x), 1.0).to_event(1))

    return pv.LatentVariableModel(model, guide)


@pytest.mark.parametrize(
    ("place", "shape"),
    [
        ("latent", "n"),
        ("observed", "n"),
        ("observed", [1]),
        ("observed", []),
        ("obs_mask", "n"),
        ("rows", "n"),
        ("cells", ["n", 3]),
        ("cells", [3]),
        ("cells", ["n", 1]),
    ],
)
def test_masks_that_leave_all_in_change_nothing(place, shape):
    covariance = torch.eye(3) + 1
    exact = dist.MultivariateNormal(torch.zeros(3), covariance).log_prob(WHOLE)
    np.testing.assert_allclose(pv.elbo(masked_at(place, shape), WHOLE).estimate, exact, atol=1e-5)


@pytest.mark.parametrize("place", ["latent", "observed", "obs_mask"])
@pytest.mark.parametrize("shape", [[3, "n"], ["n", 1], [1, "n"], ["n", "n"], ["n", 3], [2, "n", 3], "m", "k"])
def test_a_mask_of_another_shape_than_its_site_is_refused(place, shape):
    """Before, a mask of shape (3, n) counted the likelihood three times, and others ended in errors of torch."""
    with pytest.raises(ValueError, match=r"site '[xz]\w*', got a mask of shape \("):
        pv.elbo(masked_at(place, shape), WHOLE)


@pytest.mark.parametrize(
    ("place", "shape", "named"),
    [
        ("cells", "n", "Normal, got a mask of shape"),
        ("rows", ["n", 3], "Independent, got a mask of shape"),
        ("rows", [3, "n"], "Or give its mask no dims beyond the plates"),
    ],
)
def test_a_mask_of_another_shape_than_its_distribution_is_refused(place, shape, named):
    with pytest.raises(ValueError, match=named):
        pv.elbo(masked_at(place, shape), WHOLE)


@pytest.mark.parametrize(("value", "said"), [(0.5, "0.5 in it"), (1.0, None), (2, "2 in it")])
def test_a_mask_weighs_no_terms(value, said):
    """Pyro takes 0.5 for True."""
    pair = masked_at("cells", ["n", 3], value)
    if said is None:
        np.testing.assert_array_equal(
            pv.elbo(pair, WHOLE).estimate, pv.elbo(masked_at("cells", [3]), WHOLE).estimate
        )
        return
    with pytest.raises(ValueError, match=said):
        pv.elbo(pair, WHOLE)


def test_a_mask_of_another_shape_or_with_numbers_in_a_late_row_is_refused():
    """Inspection tries a few rows; further rows are looked at in blocks."""
    x = torch.linspace(-1.0, 1.0, 900).view(300, 3)
    x[77] = 9.0

    def pair(mask_of, cells):
        def model(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
                likelihood = dist.Normal(z[..., None], 1.0).expand([*z.shape, 3]).mask(cells(x)).to_event(1)
                with poutine.mask(mask=mask_of(x)):
                    pyro.sample("x", likelihood, obs=x)

        def guide(x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(x.sum(1) / 4, 0.5))

        return pv.LatentVariableModel(model, guide)

    with pytest.raises(ValueError, match=r"site 'x', got a mask of shape \(3, 300\)"):
        pv.elbo(pair(lambda x: torch.full((3, len(x)) if (x > 8).any() else (1,), True), torch.ones_like), x)
    with pytest.raises(ValueError, match=r"0\.25 in it"):
        pv.elbo(pair(lambda x: True, lambda x: torch.where(x > 8, 0.25, 1.0)), x)


def test_a_dim_of_a_site_outside_its_own_plates_is_refused():
    """Before, it counted three times if another site lay in a plate at that dim: log P(x) was 3.7 nats too low."""

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            with pyro.plate("two", 2, dim=-2):
                pyro.sample("w", dist.Normal(torch.zeros(2, len(x)), 1.0))
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0).expand([3, len(x)]), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            with pyro.plate("two", 2, dim=-2):
                pyro.sample("w", dist.Normal(torch.zeros(2, len(x)), 1.0))
            pyro.sample("z", dist.Normal(x / 2, 0.7))

    with pytest.raises(ValueError, match="site 'x' with batch dims inside plates only"):
        pv.elbo(pv.LatentVariableModel(model, guide), WHOLE[:, 0])


def priors_without_density():
    n = 8
    zeros = torch.zeros(n)
    return {
        "masked by False": dist.Normal(zeros, 1.0).mask(False),
        "improper": dist.ImproperUniform(dist.constraints.real, (n,), ()),
        "a point": dist.Delta(zeros),
        "points": dist.Empirical(torch.randn(n, 5), torch.zeros(n, 5)),
        "masked inside a transform": dist.TransformedDistribution(
            dist.Normal(zeros, 1.0).mask(False), [dist.transforms.AffineTransform(0.0, 1.0)]
        ),
    }


@pytest.mark.parametrize("method", ["importance", "auto", "refined"])
@pytest.mark.parametrize("part", ["model", "guide"])
@pytest.mark.parametrize("name", priors_without_density())
def test_a_latent_without_a_density_is_refused(name, part, method):
    x = rows("steps")[:, 0]
    fn = {"model": dist.Normal(torch.zeros(8), 1.0), "guide": dist.Normal(x / 2, 0.8)}
    fn[part] = priors_without_density()[name]

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", fn["model"])
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", fn["guide"])

    with pytest.raises(ValueError, match=r"^(model|guide|x): expected"):
        pv.log_evidence(pv.LatentVariableModel(model, guide), x, method=method, check=False)


@pytest.mark.parametrize(
    ("prior", "proposal"),
    [
        (dist.Normal(torch.zeros(8), 1.0), dist.Poisson(torch.ones(8))),
        (dist.Poisson(torch.ones(8)), dist.Gamma(torch.ones(8), 1.0)),
        (dist.Normal(torch.zeros(8, 3), 1.0).to_event(1), dist.Normal(torch.zeros(8, 1), 1.0).to_event(1)),
    ],
)
def test_latents_of_two_kinds_or_shapes_are_refused(prior, proposal):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(z.reshape(len(x), -1)[:, 0], 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", proposal)

    with pytest.raises(ValueError, match=r"^(guide|x): expected"):
        pv.log_evidence(pv.LatentVariableModel(model, guide), rows("steps")[:, 0], check=False)
