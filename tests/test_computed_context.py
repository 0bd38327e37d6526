"""Context that was computed from the scored columns is called so, whatever it is and comes in; other context is not."""

import dataclasses
import itertools
import math
from typing import ClassVar

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from rates import SEED
from sklearn.datasets import load_digits

import pyrovae as pv
from pyrovae.pair.context import computed_from_rows
from pyrovae.pair.globals import BayesianModel


def generator(seed=SEED):
    return torch.Generator().manual_seed(seed)


def counts(num_rows=60, columns=5, seed=SEED):
    g = generator(seed)
    rates = 6 * torch.rand(num_rows, columns, generator=g) * (2 * torch.rand(num_rows, 1, generator=g)).exp()
    return torch.poisson(rates, generator=g)


ROWS = {
    "counts": counts(),
    "many counts": counts(60, 30),
    "real": torch.randn(60, 5, generator=generator()),
    "far from zero": 1000 + torch.randn(60, 5, generator=generator()),
    "images": torch.rand(60, 1, 4, 4, generator=generator()),
    "one column": torch.randn(60, generator=generator()).exp(),
    "binary": (torch.rand(60, 9, generator=generator()) < 0.4).float(),
}
STATISTICS = {
    "a column": lambda x: x[:, -1],
    "sum": lambda x: x.sum(1),
    "mean": lambda x: x.mean(1),
    "some columns' sum": lambda x: x[:, : (x.shape[1] + 1) // 2].sum(1),
    "max": lambda x: x.amax(1),
    "min": lambda x: x.amin(1),
    "argmax": lambda x: x.argmax(1).to(x.dtype),
    "argmin": lambda x: x.argmin(1).to(x.dtype),
    "non-zero": lambda x: (x != 0).sum(1).to(x.dtype),
    "L1": lambda x: x.abs().sum(1),
    "L2": lambda x: x.norm(dim=1),
}
IMAGES = {
    "itself": lambda f: f,
    "affine": lambda f: 3 - 0.7 * f,
    "/ 1e4": lambda f: f / 1e4,
    "/ median": lambda f: f / f.median(),
    "standardised": lambda f: (f - f.mean()) / f.std(),
    "log": torch.log,
    "log1p": torch.log1p,
    "sqrt": torch.sqrt,
    "log of the share": lambda f: torch.log(f / f.median()),
    "log1p of a part": lambda f: torch.log1p(f / 1e4),
    "log2": torch.log2,
}
FORMS = {
    "(N,)": lambda c: c,
    "(N, 1)": lambda c: c[:, None],
    "(N, 1, 1)": lambda c: c[:, None, None],
    "beside another": lambda c: torch.stack([torch.randn(len(c), generator=generator(1)), c], 1),
    "float64": lambda c: c.double(),
    "float16, cast": lambda c: torch.from_numpy(c.numpy().astype(np.float16).astype(np.float32)),
    **{
        name: (lambda c, dtype=dtype: c.to(dtype))
        for name, dtype in {
            "int8": torch.int8,
            "int16": torch.int16,
            "int32": torch.int32,
            "int64": torch.int64,
            "uint8": torch.uint8,
            "bool": torch.bool,
        }.items()
    },
}


def told_apart(function, by_chance=1e-4 / 2000):
    """Whether chance would hardly order the values of a statistic so: with two odd rows of 60 it does."""
    _, sizes = function.unique(return_counts=True)
    return float(torch.lgamma(sizes + 1.0).sum()) - math.lgamma(len(function) + 1) < math.log(by_chance)


@pytest.mark.parametrize("rows", ROWS)
def test_no_function_of_the_rows_passes_silently(rows):
    x = ROWS[rows]
    flat = x.reshape(len(x), -1)
    given = {}
    for (statistic, s), (image, i) in itertools.product(STATISTICS.items(), IMAGES.items()):
        c = i(s(flat))
        if not bool(c.isfinite().all()) or not told_apart(c):
            continue
        for name, form in FORMS.items():
            found = form(c)
            if not found.dtype.is_floating_point and not torch.equal(found.to(c.dtype), c):
                continue  # a cast that loses something: below
            if image not in ("itself", "log") and name not in ("(N,)", "float16, cast"):
                continue  # forms are tried on two images, and images in two forms
            if "float16" in name and (rows == "far from zero" or statistic == "some columns' sum"):
                continue  # most of what varies is lost
            given[statistic, image, name] = found
    assert not given.keys() - set(computed_from_rows({"x": x, **given}))
    assert len(given) > 100


@pytest.mark.parametrize("rows", ["counts", "many counts", "images"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32, torch.int64])
def test_casts_that_round_or_overflow_are_seen_where_five_values_are_left(rows, dtype):
    x = 40 * ROWS[rows]
    flat = x.reshape(len(x), -1)
    for statistic in ("a column", "sum", "mean", "max", "L1", "L2"):
        for image in ("itself", "sqrt", "log"):
            c = IMAGES[image](STATISTICS[statistic](flat))
            given = c.nan_to_num(neginf=0).long().to(dtype)
            if bool(c.isfinite().all()) and len(given.unique()) >= 5:
                assert computed_from_rows({"x": x, "c": given}), (statistic, image)


@pytest.mark.parametrize("rows", ROWS)
def test_copies_and_one_hot_codes_are_seen(rows):
    x = ROWS[rows]
    flat = x.reshape(len(x), -1)
    code = torch.nn.functional.one_hot(flat.argmax(1), flat.shape[1])
    found = [x, x.double(), flat, flat[:, :2], 2 * flat - 1]
    if flat.shape[1] > 1:
        found += [code, code.float(), code.bool(), code.numpy()]
    given = {str(number): torch.as_tensor(each) for number, each in enumerate(found)}
    assert computed_from_rows({"x": x, **given}) == list(given)


GUARDED = {
    "counts, some rows zero": torch.poisson(
        4 * torch.rand(200, 1, generator=generator()).expand(200, 6), generator=generator()
    ),
    "one row of zeros": torch.cat([torch.zeros(1, 5), 1 + counts()]),
    "amounts": torch.randn(200, 4, generator=generator()).clamp(min=0),
    "amounts of many sizes": (3 * torch.randn(200, 4, generator=generator())).exp()
    * (torch.rand(200, 1, generator=generator()) > 0.1),
}
GUARDS = {
    **{
        f"log(f + {e:g})": (lambda f, e=e: (f + e).log())
        for e in (1e-12, 1e-8, 1e-6, 1e-4, 1e-3, 1e-2, 0.1, 0.5)
    },
    "clamped to 1": lambda f: f.clamp(min=1),
    "log of this": lambda f: f.clamp(min=1).log(),
    "clamped below": lambda f: f.clamp(min=float(f.quantile(0.3))),
    "clamped above": lambda f: f.clamp(max=float(f.quantile(0.7))),
    "clamped at both ends": lambda f: f.clamp(float(f.quantile(0.1)), float(f.quantile(0.9))),
    "standardised": lambda f: IMAGES["standardised"]((f + 1e-8).log()),
    "minus log2": lambda f: -(f + 1e-8).log2(),
    "reciprocal": lambda f: 1 / f.clamp(min=1),
    "square": lambda f: 3 - 2 * f**2,
}


@pytest.mark.parametrize("rows", GUARDED)
def test_guards_against_zero_hide_no_function(rows):
    x, given = GUARDED[rows], {}
    for (statistic, s), (guard, image) in itertools.product(STATISTICS.items(), GUARDS.items()):
        c = image(s(x))
        # Of the rows with one value, the guard's, nothing is known: the others have to tell.
        kept = c[(c != c.amin()) & (c != c.amax())]
        if statistic != "some columns' sum" and len(kept.unique()) > 4 and told_apart(kept, 1e-4 / 1e5):
            given[statistic, guard] = c
    assert len(given) > 60
    for name, c in given.items():
        assert computed_from_rows({"x": x, "c": c}), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bool])
@pytest.mark.parametrize("shape", [(400, 40, 0.02), (300, 60, 0.01)])
def test_a_rare_flag_is_no_linear_function_of_sparse_counts(shape, dtype):
    """Some rows alone have some column: on these, any values fit."""
    rows, columns, rate = shape
    for seed in range(6):
        g = generator(seed)
        x = torch.poisson(torch.full((rows, columns), rate), generator=g)
        flag = (torch.rand(rows, generator=g) < 0.01).to(dtype)
        assert computed_from_rows({"x": x, "flag": flag}) == []
        assert computed_from_rows({"x": x, "c": x[:, : columns // 2].sum(1)}) == ["c"]


def test_no_pixel_follows_from_the_others():
    x = torch.tensor(load_digits().data)
    for pixel in (1, 8, 16, 23, 31, 48, 56):
        rest = [column for column in range(64) if column != pixel]
        assert computed_from_rows({"x": x[:, rest], "c": x[:, pixel]}) == []


def honest(x, seed):
    """What may go with rows and is not computed from them."""
    g, n = generator(seed), len(x)
    flat = x.reshape(n, -1)
    label = torch.randint(10, (n,), generator=g)
    exposure = 10 * torch.rand(n, generator=g)
    return {
        "row numbers": torch.arange(n),
        "positions": torch.linspace(0, 1, n),
        "days": torch.arange(n) // 7,
        "times": exposure.cumsum(0),
        "offsets": torch.randn(n, generator=g),
        "exposure": exposure,
        "its logarithm": exposure.log(),
        "logarithms of counts": (torch.poisson(torch.ones(n), generator=g) + 1e-8).log(),
        "censored": torch.randn(n, generator=g).clamp(-0.5, 0.5),
        "amounts": torch.randn(n, generator=g).clamp(min=0),
        "prices": (100 * exposure).round() / 100,
        "in half precision": exposure.half().float(),
        "two batches": torch.randint(2, (n,), generator=g),
        "four batches": torch.randint(4, (n, 1), generator=g),
        "labels": label,
        "labels as tenths": label / 10,
        "one-hot labels": torch.nn.functional.one_hot(label, 10),
        "ages": torch.randint(18, 90, (n,), generator=g),
        "a constant": torch.full((n,), 3.0),
        "zeros": torch.zeros(n, 2, dtype=torch.int64),
        "one odd row": torch.arange(n) == n // 2,
        "masked rows": torch.rand(n, generator=g) < 0.5,
        "masked entries": torch.rand(flat.shape, generator=g) < 0.8,
        "covariates": torch.randn(n, 5, generator=g),
        "nearly a column": flat[:, 0] + 0.01 * torch.randn(n, generator=g),
        "nearly the total": flat.sum(1) * (1 + 1e-3 * torch.randn(n, generator=g)),
        "a correlated class": (flat.sum(1) + torch.randn(n, generator=g) > flat.sum(1).median()).long(),
    }


def rows_of(kind, num_rows, columns, g):
    shape = num_rows, columns
    if kind == "counts":
        return torch.poisson(
            9 * torch.rand(shape, generator=g) * (2 * torch.rand(num_rows, 1, generator=g)).exp(), g
        )
    if kind == "few counts":
        return torch.poisson(0.7 * torch.rand(shape, generator=g), generator=g)
    if kind == "binary":
        return (torch.rand(shape, generator=g) < 0.4).float()
    if kind == "one-hot":
        return torch.nn.functional.one_hot(torch.randint(columns, (num_rows,), generator=g), columns).float()
    return torch.full(shape, 2.0) if kind == "constant" else torch.randn(shape, generator=g)


@pytest.mark.parametrize("num_rows", [4, 6, 12, 60, 300])
@pytest.mark.parametrize("rows", ["counts", "few counts", "real", "binary", "one-hot", "constant"])
def test_other_context_is_not_accused(rows, num_rows):
    for columns in (1, 3, 20):
        x = rows_of(rows, num_rows, columns, generator(1000 * num_rows))
        assert computed_from_rows({"x": x, **honest(x, columns)}) == []


def test_an_exposure_of_ten_million_is_not_its_total():
    """Counts follow it to 3e-4: more than rounding does."""
    g = generator()
    exposure = 1e7 * (0.1 + torch.rand(300, generator=g))
    x = torch.poisson(exposure[:, None] * torch.tensor([0.5, 0.3, 0.2]), generator=g)
    assert computed_from_rows({"x": x, "exposure": exposure, "offset": exposure.log()}) == []
    assert computed_from_rows({"x": x, "total": x.sum(1)}) == ["total"]


def test_a_few_of_many_rows_are_looked_at_and_all_on_which_context_moves():
    x = torch.randn(20_000, 3, generator=generator())
    c = torch.zeros(20_000)
    c[:50] = x[:50, 0].abs().clamp(min=0.1)
    assert computed_from_rows(
        {"x": x.abs().clamp(min=0.1) * (torch.arange(20_000) < 50)[:, None], "c": c}
    ) == ["c"]
    assert computed_from_rows({"x": x, "c": torch.arange(20_000) < 50, "d": torch.arange(20_000)}) == []


# ---------------------------------------------------------------------------------------------------------
# In a model


def pair_of(likelihood, **more):
    """A pair whose likelihood of x is a function of z, shape (rows, 1), and of the context."""

    def model(x, **given):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            fn, held = likelihood(x, z, **given)
            pyro.sample("x", fn, obs=held)

    def guide(x, **given):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x), 1), 1.0).to_event(1))

    return pv.LatentVariableModel(model, guide, **more)


WEIGHTS = torch.tensor([0.5, -0.3, 0.2])


def poisson(x, z, n):
    rate = n.reshape(len(x), -1)[:, -1:].to(x.dtype).clamp(min=0.5) * torch.softmax(z * WEIGHTS, -1)
    return dist.Poisson(rate).to_event(1), x


def independent(x, z, n):
    return dist.Poisson((z * WEIGHTS).exp()).to_event(1), x


class Shares(dist.TorchDistribution):
    """A multinomial with a total for every row, as users write it."""

    arg_constraints: ClassVar = {}
    support = constraints.independent(constraints.nonnegative_integer, 1)

    def __init__(self, total_count, probs):
        self.total_count, self.probs = total_count, probs
        super().__init__(probs.shape[:-1], probs.shape[-1:], validate_args=False)

    def expand(self, batch_shape, _instance=None):
        shape = torch.Size(batch_shape)
        return Shares(self.total_count.expand(shape), self.probs.expand(shape + self.event_shape))

    def log_prob(self, value):
        value, probs = torch.broadcast_tensors(value, self.probs)
        return torch.lgamma(self.total_count + 1.0) + (value * probs.log() - torch.lgamma(value + 1)).sum(-1)


def multinomial(x, z, n):
    return dist.Multinomial(100, logits=z * WEIGHTS, validate_args=False), x


def dirichlet(x, z, n):
    return dist.DirichletMultinomial(
        (z * WEIGHTS).exp(), total_count=n.reshape(-1).to(x.dtype), validate_args=False
    ), x


def shares(x, z, n):
    return Shares(n.reshape(-1).to(x.dtype), torch.softmax(z * WEIGHTS, -1)), x


def binomial(x, z, n):
    count = n.reshape(-1, 1).to(x.dtype).expand(len(x), 1)
    return dist.Binomial(count, logits=z).to_event(1), x[:, :1]


def three(num_rows=40):
    return counts(num_rows, 3) + 1


@pytest.mark.parametrize("form", ["float", "int64", "numpy", "column", "series", "beside"])
def test_a_poisson_given_the_row_s_total_is_a_pseudo_likelihood(form):
    x = three()
    total = x.sum(1)
    n = {
        "float": total,
        "int64": total.long(),
        "numpy": total.long().numpy(),
        "column": total[:, None],
        "series": pd.Series(total.numpy()).astype("int32"),
        "beside": torch.stack([torch.randn(40, generator=generator()), total], 1),
    }[form]
    n = n.to_numpy() if form == "series" else n
    ev = pv.log_evidence(pair_of(poisson), {"x": x, "n": n}, num_samples=20, check=False)
    assert set(ev.measure) == {"pseudo-likelihood"}
    assert ev.own_totals == ()


@pytest.mark.parametrize("likelihood", [multinomial, dirichlet, shares])
@pytest.mark.parametrize("form", ["float", "int64", "column"])
def test_a_multinomial_given_its_own_total_is_conditional_on_it(likelihood, form):
    x = three()
    n = {"float": x.sum(1), "int64": x.sum(1).long(), "column": x.sum(1)[:, None]}[form]
    ev = pv.log_evidence(pair_of(likelihood), {"x": x, "n": n}, num_samples=20, check=False)
    assert set(ev.measure) == {"mass"}
    assert ev.own_totals == ("n",)
    assert "conditional on n, a total of x" in ev.summary()


@pytest.mark.parametrize("likelihood", [multinomial, dirichlet, shares])
def test_its_number_sums_to_one_over_the_rows_with_that_total(likelihood):
    rows = [(a, b, 4 - a - b) for a in range(5) for b in range(5 - a)]
    x = torch.tensor(rows, dtype=torch.float32)
    ev = pv.log_evidence(
        pair_of(likelihood), {"x": x, "n": x.sum(1)}, num_samples=5, tile=(1, 5), check=False
    )
    sums = np.exp(pv.log_weights(pair_of(likelihood), {"x": x, "n": x.sum(1)}, num_samples=1).numpy())
    assert set(ev.measure) == {"mass"}
    # Each row has its own z: at z = 0, all of them at once, by the likelihood itself.
    fn, _ = likelihood(x, torch.zeros(len(x), 1), n=x.sum(1))
    assert float(fn.log_prob(x).exp().sum()) == pytest.approx(1, abs=1e-5)
    assert np.isfinite(sums).all()


@pytest.mark.parametrize("guard", ["clamped to 1", "log of this", "log(f + 1e-08)"])
def test_a_multinomial_given_its_own_total_may_guard_it(guard):
    x = torch.poisson(2 * torch.rand(60, 3, generator=generator()), generator=generator())

    def likelihood(x, z, n):
        return dist.Multinomial(100, logits=z * WEIGHTS + n[:, None] / 50, validate_args=False), x

    ev = pv.log_evidence(
        pair_of(likelihood), {"x": x, "n": GUARDS[guard](x.sum(1))}, num_samples=20, check=False
    )
    assert (set(ev.measure), ev.own_totals) == ({"mass"}, ("n",))


def test_other_statistics_make_a_pseudo_likelihood_of_a_multinomial_too():
    x = three()
    n = torch.stack([x.amax(1), x.sum(1)], 1)

    def biased(x, z, n):
        return dist.Multinomial(100, logits=z * WEIGHTS + n[:, :1] / 10, validate_args=False), x

    ev = pv.log_evidence(pair_of(biased), {"x": x, "n": n}, num_samples=20, check=False)
    assert set(ev.measure) == {"pseudo-likelihood"}


def test_a_multinomial_that_takes_its_total_from_x_says_so():
    def likelihood(x, z):
        return dist.Multinomial(100, logits=z * WEIGHTS, validate_args=False), x

    ev = pv.log_evidence(pair_of(likelihood), three(), num_samples=20, check=False)
    assert ev.own_totals == ("the row's own total",)
    same = torch.tensor([[1.0, 2, 3], [3, 2, 1], [6, 0, 0], [2, 2, 2]])
    assert pv.log_evidence(pair_of(likelihood), same, num_samples=20, check=False).own_totals == ()


def test_a_binomial_given_its_trials_is_a_mass():
    trials = three()[:, 0] + 5
    x = torch.binomial(trials, torch.full((40,), 0.7), generator=generator())[:, None]
    for rows, n in ((x, trials), (trials[:, None], trials)):  # in the second each is a success
        ev = pv.log_evidence(pair_of(binomial), {"x": rows, "n": n}, num_samples=20, check=False)
        assert set(ev.measure) == {"mass"}
    both = torch.cat([x, trials[:, None] - x], 1)  # failures are not scored: their total is no function of x
    ev = pv.log_evidence(pair_of(binomial), {"x": both, "n": trials.long()}, num_samples=20, check=False)
    assert ev.measure == ("mass", "unscored")


def test_numbers_given_a_total_and_not_never_rank_together():
    x = three()
    data = {"x": x, "n": x.sum(1).long()}
    given, other = (
        pv.log_evidence(pair_of(likelihood), data, num_samples=20, check=False)
        for likelihood in (multinomial, shares)
    )
    without = pv.log_evidence(pv.baselines.IndependentPoisson().fit(x), x)
    assert set(pv.compare({"a": given, "b": other}).index) == {"a", "b"}
    for models in ({"a": given, "b": without}, {"b": without, "a": given}):
        with pytest.raises(
            ValueError, match=r"expected all log P.x., or all .*got 'a', which is conditional on n"
        ):
            pv.compare(models, training_rows=True)


def test_padded_rows_may_bring_their_lengths_and_masks():
    """Entries that a mask leaves out are zeros: how many are left is no function of what is scored."""
    g = generator()
    length = torch.randint(1, 7, (40,), generator=g)
    held = torch.arange(6) < length[:, None]
    x = torch.where(held, torch.randn(40, 6, generator=g), torch.zeros(()))

    def likelihood(x, z, length, held):
        return dist.Normal(z, 1.0).expand(x.shape).mask(held).to_event(1), x

    ev = pv.log_evidence(
        pair_of(likelihood), {"x": x, "length": length, "held": held}, num_samples=20, check=False
    )
    assert "pseudo-likelihood" not in ev.measure
    total = x.sum(1)

    def told(x, z, total, held):
        return dist.Normal(z + total[:, None], 1.0).mask(held).to_event(1), x

    ev = pv.log_evidence(pair_of(told), {"x": x, "total": total, "held": held}, num_samples=20, check=False)
    assert set(ev.measure) == {"pseudo-likelihood"}


def test_context_that_is_a_column_no_site_scores_is_a_covariate():
    x = torch.randn(40, 2, generator=generator())

    def regression(x, z, covariate):
        return dist.Normal(z + covariate[:, None], 1.0).to_event(1), x[:, 1:]

    ev = pv.log_evidence(pair_of(regression), {"x": x, "covariate": x[:, 0]}, num_samples=20, check=False)
    assert ev.measure == ("unscored", "density")
    ev = pv.log_evidence(pair_of(regression), {"x": x, "covariate": x[:, 1]}, num_samples=20, check=False)
    assert set(ev.measure) == {"pseudo-likelihood"}


@pytest.mark.parametrize(("n", "kind"), [("own", "pseudo-likelihood"), ("other", "mass")])
def test_bayesian_models_are_held_to_the_same(n, kind):
    x = three(12)
    given = x.sum(1).long() if n == "own" else torch.arange(12) + 5

    def model(x, n):
        logits = pyro.sample("logits", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Poisson(n[:, None] * torch.softmax(logits, -1)).to_event(1), obs=x)

    batch = {"x": x.double(), "n": given}
    assert set(BayesianModel(model, batch).measure) == {kind}


def test_a_bayesian_multinomial_is_conditional_on_its_total():
    x = three(12).double()

    def model(x, n):
        logits = pyro.sample("logits", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Multinomial(200, logits=logits, validate_args=False), obs=x)

    found = BayesianModel(model, {"x": x, "n": x.sum(1).long()})
    assert (set(found.measure), found.own_totals) == ({"mass"}, ("n",))

    given = {"x": x, "n": x.sum(1).long()}
    mcmc = pv.baselines.PyroMCMC(model, num_samples=100, warmup_steps=50, num_chains=1).fit(given)
    scored = mcmc.log_evidence(given)
    assert scored.own_totals == mcmc.marginal_likelihood().own_totals == ("n",)
    other = dataclasses.replace(scored, own_totals=())
    with pytest.raises(ValueError, match="which is conditional on n"):
        pv.compare({"multinomial": scored, "other": other}, x, training_rows=True, check=False)
