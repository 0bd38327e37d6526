"""Tiles run as graphs are those that Pyro runs: the same noise, the same terms, the same refusals."""

import copy
import gc
import itertools
import math
import random
import weakref

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from test_tracing import (
    COLUMNS,
    LIKELIHOODS,
    PRIORS,
    TRACEABLE,
    Case,
    counts_with_offsets,
    functional,
    pair_of,
    vae,
)
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

import pyrovae as pv
from pyrovae import encoders, noise, tracing
from pyrovae.evaluation import Evaluation
from pyrovae.tracing import evaluation as evaluating
from pyrovae.tracing.rewriting import rewrite


@pytest.fixture
def always_traced(monkeypatch):
    """Every tile is traced, however few there are."""
    monkeypatch.setattr(evaluating, "_TRACING_PAYS", 0)


@pytest.fixture
def always_compiled(monkeypatch):
    """Every tile counts as compiled, though its graph runs operation by operation."""
    monkeypatch.setattr(evaluating, "_COMPILING_PAYS", 0)
    monkeypatch.setattr(evaluating, "compile_graph", lambda module, example: module)


@pytest.fixture
def made(monkeypatch):
    """The graphs that are made, in order."""
    found, init = [], evaluating._Traced.__init__

    def noted(self, *args):
        found.append(self)
        init(self, *args)

    monkeypatch.setattr(evaluating._Traced, "__init__", noted)
    return found


def both(case, num_samples=5, tile=(23, 5), compile="auto"):
    """All terms of all tiles, by Pyro and by graphs; and the evaluation by graphs."""
    prepared = [
        Evaluation.prepare(case.pair, case.data, num_samples, 0, tile, compile=how)
        for how in (False, compile)
    ]
    return *([e.terms(t) for block in e.tiles() for t in block] for e in prepared), prepared[1]


def same(case, tolerance=0.0, **options):
    """The terms agree; and graphs were what ran."""
    expected, came, evaluation = both(case, **options)
    for a, b in zip(expected, came, strict=True):
        for name in ("likelihood", "prior", "proposal"):
            torch.testing.assert_close(getattr(b, name), getattr(a, name), rtol=tolerance, atol=tolerance)
    assert evaluation.runner.reason is None
    assert any(graph is not None for graph in evaluation.runner._ready.values())


# ---------------------------------------------------------------------------------------------------------
# Traced


@pytest.mark.usefixtures("always_traced")
class TestTraced:
    """Not compiled, a graph does what Pyro does, bit by bit."""

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("likelihood", LIKELIHOODS)
    def test_likelihoods(self, likelihood, dtype):
        same(vae(likelihood, dtype=dtype))

    @pytest.mark.parametrize(
        ("prior", "encoder"),
        [
            *((prior, "diagonal_normal") for prior in PRIORS),
            *(("vamp_prior", encoder) for encoder in encoders.REGISTRY),
        ],
    )
    def test_priors_and_encoders(self, prior, encoder):
        same(vae(prior=prior, encoder=encoder))

    def test_layers_that_behave_otherwise_in_training(self):
        case = vae(normalization="batch", dropout=0.3)
        same(case)
        assert case.pair.training

    @pytest.mark.parametrize("name", TRACEABLE)
    def test_pairs_as_people_write_them(self, name):
        same(functional(name))

    def test_what_goes_with_the_rows(self):
        same(counts_with_offsets())

    @pytest.mark.parametrize("tile", [(7, 3), (1, 2)])
    def test_tiles_of_several_shapes(self, tile):
        same(vae(), tile=tile)

    def test_the_generator_is_left_alone(self):
        case, before = vae(), torch.random.get_rng_state()
        both(case)
        assert torch.equal(torch.random.get_rng_state(), before)

    @pytest.mark.parametrize(
        ("observe", "reason"),
        [
            (lambda self, z, x: z if bool((x == x).all()) else -z, "reads a tensor's value"),
            (lambda self, z, x: 0 * z[x > 0].sum() + z, "the size of a tensor depends on values"),
            (lambda self, z, x: z + 0 * self.count.add_(1.0), "changes a tensor while it is evaluated"),
        ],
    )
    def test_what_cannot_be_traced_is_run_by_pyro(self, observe, reason):
        torch.manual_seed(0)
        case = pair_of(observe)()
        evaluation = Evaluation.prepare(case.pair, case.data, 5, 0, (7, 3), compile="auto")
        block = next(evaluation.tiles())[0]
        with_graph = evaluation.terms(block).log_weights
        assert reason in evaluation.runner.reason
        assert len(evaluation.runner.reason.splitlines()) == 1
        eager = Evaluation.prepare(case.pair, case.data, 5, 0, (7, 3)).terms(block).log_weights
        assert torch.equal(with_graph, eager)
        evidence = pv.log_evidence(case.pair, case.data, num_samples=5, check=False)
        assert evidence.uncompiled == evaluation.runner.reason
        assert f"not compiled, or not all of it: {evidence.uncompiled}" in evidence.summary()

    def test_discrete_latents_are_traced(self):
        case = functional("mixture")
        expected, came, evaluation = both(case)
        assert evaluation.runner.reason is None
        assert all(torch.equal(a.log_weights, b.log_weights) for a, b in zip(expected, came, strict=True))

    def test_a_part_that_is_called_with_repeated_rows(self):
        """A model that can't be called for many samples at once is traced as it is called."""

        def model(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z.reshape(len(x)), 1.0), obs=x)

        def guide(x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(x / 2, 0.9))

        case = Case(pv.LatentVariableModel(model, guide), {"x": torch.randn(9)})
        assert not pv.pair.inspect(case.pair, case.data, 0).structure.vectorised["model"]
        same(case)


# ---------------------------------------------------------------------------------------------------------
# What a graph follows, and when it is made anew


@pytest.mark.usefixtures("always_traced")
class TestKept:
    """A graph serves later calls, and always the pair as it is now."""

    def test_with_the_pair(self, made):
        case = vae()
        first = pv.log_weights(case.pair, case.data, 5, tile=(7, 3))
        count = len(made)
        assert count == 4  # whole tiles, the last rows, the last samples, and both
        assert torch.equal(pv.log_weights(case.pair, case.data, 5, tile=(7, 3)), first)
        assert len(made) == count
        copied = copy.deepcopy(case.pair)
        assert torch.equal(pv.log_weights(copied, case.data, 5, tile=(7, 3)), first)
        assert len(made) == 2 * count

    def test_values_are_followed(self, made):
        case = vae(normalization="batch")
        same(case)
        with torch.no_grad():
            for parameter in case.pair.parameters():
                parameter.mul_(1.5)
            next(iter(case.pair.buffers())).add_(0.5)
        same(case)
        for parameter in case.pair.parameters():
            parameter.data = parameter.data * 0.5
        same(case)
        assert len(made) == 1

    def test_another_dtype_or_module(self, made):
        case = vae()
        same(case)
        case.pair.float()
        same(Case(case.pair, {"x": case.data["x"].float()}))
        case.pair.double()
        case.pair.likelihood.network.layers[-1] = nn.Linear(5, COLUMNS, dtype=torch.float64)
        same(case)
        assert len(made) == 3

    def test_what_python_alone_knows(self, made):
        """A global that has changed since is seen by the first tile, which is run both ways."""
        case = pair_of(lambda self, z, x: z + FACTOR["value"])()
        same(case)
        FACTOR["value"] = 2.0
        same(case)
        assert len(made) == 2

    def test_what_changes_at_every_call(self, monkeypatch):
        case = pair_of(lambda self, z, x: z + next(NUMBERS))()
        evaluation = Evaluation.prepare(case.pair, case.data, 5, 0, (7, 3), compile="auto")
        monkeypatch.setitem(globals(), "NUMBERS", itertools.count())
        evaluation.terms(next(evaluation.tiles())[0])
        assert "does not compute what the trace computes" in evaluation.runner.reason

    @pytest.mark.parametrize("draw", [random.random, np.random.rand], ids=["random", "numpy.random"])
    def test_what_draws_outside_torch(self, draw):
        """A number that makes no difference in the calls that are compared may make one in others."""
        case = pair_of(lambda self, z, x: z if draw() < 2 else -z)()
        evaluation = Evaluation.prepare(case.pair, case.data, 5, 0, (7, 3), compile="auto")
        evaluation.terms(next(evaluation.tiles())[0])
        assert "draws random numbers from" in evaluation.runner.reason

    def test_no_more_than_a_few(self):
        pair = vae().pair
        for number in range(20):
            evaluating._kept(pair, number, lambda number=number: [number])
        graphs = evaluating._GRAPHS[pair]
        assert list(graphs.values()) == [[n] for n in range(12, 20)]
        assert evaluating._kept(pair, 12, lambda: None) == [12]
        assert list(graphs)[-1] == 12

    def test_they_go_with_the_pair(self):
        case = vae()
        pair, data = case.pair, case.data
        pv.log_weights(pair, data, 5, compile=True)
        assert evaluating._GRAPHS[pair]
        known = weakref.ref(pair)
        del case, pair
        gc.collect()
        assert known() is None

    def test_a_file_and_a_copy_have_none(self, tmp_path):
        case = vae()
        pv.log_weights(case.pair, case.data, 5)
        case.pair.save(tmp_path / "vae")
        assert case.pair in evaluating._GRAPHS
        for again in (pv.load(tmp_path / "vae"), copy.deepcopy(case.pair)):
            assert again not in evaluating._GRAPHS
            assert torch.equal(pv.log_weights(again, case.data, 5), pv.log_weights(case.pair, case.data, 5))


FACTOR = {"value": 0.5}
NUMBERS = itertools.repeat(0)


# ---------------------------------------------------------------------------------------------------------
# Which tiles are compiled


def numbers_of(evaluation):
    return {
        (t.rows.stop - t.rows.start, t.num_samples): evaluation._numbers_ahead(
            t.rows.stop - t.rows.start, t.num_samples
        )
        for block in evaluation.tiles()
        for t in block
    }


@pytest.mark.parametrize(("num_rows", "num_samples"), [(23, 5), (21, 6), (3, 2), (7, 3), (8, 2)])
def test_numbers_ahead_are_all_of_them(num_rows, num_samples):
    case = vae()
    evaluation = Evaluation.prepare(case.pair, case.data["x"][:num_rows], num_samples, 0, (7, 3))
    assert sum(numbers_of(evaluation).values()) == noise.numbers(COLUMNS, num_rows, num_samples)


def test_auto_compiles_the_shapes_that_it_pays_for(monkeypatch, always_compiled, made):
    case = vae()
    evaluation = Evaluation.prepare(case.pair, case.data, 5, 0, (7, 3))
    ahead = numbers_of(evaluation)
    monkeypatch.setattr(evaluating, "_COMPILING_PAYS", ahead[7, 2])
    monkeypatch.setattr(evaluating, "_TRACING_PAYS", ahead[2, 3])
    _, _, evaluation = both(case, tile=(7, 3))
    compiled = [key[-1] for key in evaluation.runner._ready]
    assert compiled == [True, True, False]  # (7, 3), (7, 2), (2, 3); the last, (2, 2), is Pyro's
    assert len(made) == 3


def test_true_compiles_the_first_tile_at_least(always_compiled, monkeypatch, made):
    monkeypatch.setattr(evaluating, "_COMPILING_PAYS", 10**9)
    case = vae()
    _, _, evaluation = both(case, tile=(7, 3), compile=True)
    assert [key[-1] for key in evaluation.runner._ready] == [True]
    _, _, evaluation = both(case, compile="auto")
    assert not evaluation.runner._ready
    assert len(made) == 1


def test_false_and_small_ones_are_pyros(made):
    case = vae()
    for compile in (False, "auto"):
        pv.log_weights(case.pair, case.data, 5, compile=compile)
        pv.elbo(case.pair, case.data, 5, compile=compile)
        pv.log_evidence(case.pair, case.data, num_samples=5, compile=compile, check=False)
    assert not made


@pytest.mark.parametrize("compile", ["always", 1, None])
def test_other_modes_are_refused(compile):
    with pytest.raises((TypeError, ValueError), match="compile: expected"):
        pv.log_weights(vae().pair, vae().data, 5, compile=compile)


def test_true_names_what_cannot_be_traced():
    case = pair_of(lambda self, z, x: z if bool((x == x).all()) else -z)()
    with pytest.raises(
        ValueError, match=r"compile: expected a pair that can be traced.*reads a tensor's value"
    ):
        pv.log_evidence(case.pair, case.data, num_samples=5, compile=True, check=False)


def test_without_a_compiler(monkeypatch, made):
    monkeypatch.setattr(evaluating, "why_not_compiled", lambda device: "there is no C++ compiler")
    case = vae()
    with pytest.raises(ValueError, match=r"compile: .*there is no C"):
        pv.log_weights(case.pair, case.data, 5, compile=True)
    assert not made
    monkeypatch.setattr(evaluating, "_TRACING_PAYS", 0)
    monkeypatch.setattr(evaluating, "_COMPILING_PAYS", 0)
    expected, came, evaluation = both(case)  # traced, without compiling
    assert all(torch.equal(a.log_weights, b.log_weights) for a, b in zip(expected, came, strict=True))
    assert [graph.compiled for graph in made] == [False]
    assert evaluation.runner.reason == "there is no C++ compiler"


def test_checkpoints_know_how_tiles_were_run(tmp_path, always_compiled):
    case = vae()
    ways = [
        pv.log_evidence(
            case.pair, case.data, num_samples=5, compile=compile, checkpoint=tmp_path / "a", check=False
        )
        for compile in ("auto", "auto")
    ]
    assert (ways[0].estimate == ways[1].estimate).all()
    with pytest.raises(ValueError, match="compile"):
        pv.log_evidence(
            case.pair, case.data, num_samples=5, compile=False, checkpoint=tmp_path / "a", check=False
        )


@pytest.mark.usefixtures("always_compiled")
@pytest.mark.parametrize("method", ["importance", "jackknife", "auto"])
def test_estimators_run_graphs(method, made):
    case = vae("gaussian")
    options = {} if method == "auto" else {"num_samples": 30}
    by_graph, by_pyro = (
        pv.log_evidence(case.pair, case.data, method=method, compile=compile, check=False, **options)
        for compile in ("auto", False)
    )
    assert made
    assert by_graph.uncompiled is None
    assert by_graph.estimate == pytest.approx(by_pyro.estimate, rel=1e-9)


@pytest.mark.usefixtures("always_compiled")
def test_weights_that_are_not_numbers_are_refused():
    """The first tile is Pyro's as well; a later one is the graph's alone."""
    case = pair_of(lambda self, z, x: z + torch.where(x > 9, math.nan, 0.0))()
    evaluation = Evaluation.prepare(case.pair, case.data, 4, 0, (8, 4), compile="auto")
    evaluation.batch["x"][[9, 12]] = 10.0
    with pytest.raises(ValueError, match=r"log weights below.*, got 8 that.*log P\(x \| z\), first at row 9"):
        [evaluation.terms(tile) for block in evaluation.tiles() for tile in block]
    with pytest.raises(ValueError, match="row 9, where they fail"):  # seen before by one draw of every row
        pv.log_weights(case.pair, evaluation.batch, 4)


# ---------------------------------------------------------------------------------------------------------
# Rewriting


@pytest.mark.parametrize("columns", [3, 127, 128, 130, 784])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bernoulli_masses_are_summed_with_fewer_logarithms(columns, dtype):
    torch.manual_seed(0)
    logits = (40 * torch.randn(6, columns)).to(dtype)
    logits[0] = 1e-3
    logits[1] = 3e4
    x = torch.bernoulli(torch.full((6, columns), 0.5)).to(dtype)
    x[1] = 1.0

    def masses(logits, x):
        return [(-binary_cross_entropy_with_logits(logits, x, reduction="none")).reshape(6, -1).sum(-1)]

    graph = tracing.graphs.trace(masses, [logits, x])
    rewrite(graph.module)
    operations = [node.target for node in graph.module.graph.nodes]
    assert torch.ops.aten.binary_cross_entropy_with_logits.default not in operations
    eps = torch.finfo(dtype).eps
    (expected,), (came,) = masses(logits.double(), x.double()), graph.module(logits, x)
    assert came.dtype == dtype
    torch.testing.assert_close(came.double(), expected, rtol=8 * eps, atol=8 * eps)
    logits[2, columns // 2] = math.nan
    assert torch.isnan(graph.module(logits, x)[0]).tolist() == [False, False, True, False, False, False]


def test_masses_that_are_used_otherwise_stay():
    def masked(logits, x):
        each = -binary_cross_entropy_with_logits(logits, x, reduction="none")
        return torch.where(x > 0, each, 0.0).sum(-1), each.sum(0)

    logits, x = torch.randn(5, 64), torch.ones(5, 64)
    graph = tracing.graphs.trace(masked, [logits, x])
    rewrite(graph.module)
    assert all(map(torch.equal, graph.module(logits, x), masked(logits, x)))


def test_biases_are_added_afterwards():
    def layer(bias, x, weight):
        return torch.addmm(bias, x, weight), torch.addmm(bias, x, weight, beta=0.5)

    inputs = [torch.randn(3), torch.randn(4, 5), torch.randn(5, 3)]
    graph = tracing.graphs.trace(layer, inputs)
    rewrite(graph.module)
    operations = [node.target for node in graph.module.graph.nodes]
    assert operations.count(torch.ops.aten.addmm.default) == 1
    assert operations.count(torch.ops.aten.mm.default) == 1
    for a, b in zip(graph.module(*inputs), layer(*inputs), strict=True):
        torch.testing.assert_close(a, b)


# ---------------------------------------------------------------------------------------------------------
# Compiled


@pytest.mark.parametrize(
    ("build", "tolerance"),
    [
        (lambda: vae("bernoulli", "gaussian_mixture", dtype=torch.float32), 1e-5),
        (lambda: vae("gaussian", encoder="full_rank_normal", normalization="batch"), 1e-12),
        (lambda: vae("negative_binomial"), 1e-12),
    ],
    ids=["bernoulli", "gaussian", "negative_binomial"],
)
def test_compiled(build, tolerance):
    same(build(), tolerance, tile=(23, 5), compile=True)


def test_compiled_wide_rows_twice():
    torch.manual_seed(0)
    pair = pv.VAE.mlp(130, latent_dim=2, hidden_dims=(8,))
    case = Case(pair, {"x": torch.bernoulli(torch.full((6, 130), 0.5))})
    same(case, 1e-5, tile=(6, 5), compile=True)
    first, again = (pv.log_weights(pair, case.data, 5, tile=(6, 5), compile=True) for _ in range(2))
    assert torch.equal(first, again)


# ---------------------------------------------------------------------------------------------------------
# Methods that move z


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("annealed", {"num_samples": 5, "num_temperatures": 12}),
        ("annealed", {"num_samples": 5, "num_temperatures": 12, "start": "prior"}),
        ("refined", {"num_samples": 100, "num_steps": 2}),
        ("auto", {"target_mcse": 0.05, "max_cost": 1_000}),
    ],
)
class TestMoves:
    """The same walks, whether a gradient is Pyro's or a graph's."""

    @pytest.mark.parametrize("case", [lambda: vae("gaussian"), lambda: functional("double_precision")])
    def test_traced(self, method, options, case, made, always_traced):
        case = case()
        case.data["x"] = case.data["x"][:6]
        by_graph, by_pyro = (
            pv.log_evidence(
                case.pair, case.data, method=method, tile=(7, 5), compile=compile, check=False, **options
            )
            for compile in ("auto", False)
        )
        assert made
        assert (by_graph.estimate == by_pyro.estimate).all()
        assert (by_graph.cost == by_pyro.cost).all()

    def test_made_once_for_all_blocks(self, method, options, made, always_compiled):
        if method == "auto":
            pytest.skip("its shapes follow from what its pilots find")
        case = vae("gaussian", encoder="full_rank_normal")
        by_graph, by_pyro = (
            pv.log_evidence(
                case.pair,
                case.data["x"][:21],
                method=method,
                tile=(7, 5),
                compile=compile,
                check=False,
                **options,
            )
            for compile in ("auto", False)
        )
        assert by_graph.estimate == pytest.approx(by_pyro.estimate, abs=1e-6)
        assert 1 <= len(made) <= (1 if method == "annealed" else 2)


def test_moves_that_cannot_be_compiled_are_named():
    case = pair_of(lambda self, z, x: z if bool((x == x).all()) else -z)()
    for method in ("annealed", "refined"):
        with pytest.raises(ValueError, match=r"compile: expected a pair.*reads a tensor's value"):
            pv.log_evidence(case.pair, case.data, method=method, num_samples=100, compile=True, check=False)


def test_compiled_moves():
    case = vae("bernoulli", dtype=torch.float32)
    by_graph, by_pyro = (
        pv.log_evidence(
            case.pair,
            case.data,
            method="annealed",
            num_samples=4,
            num_temperatures=10,
            compile=compile,
            check=False,
        )
        for compile in (True, False)
    )
    assert by_graph.estimate == pytest.approx(by_pyro.estimate, abs=1e-3)


@pytest.mark.usefixtures("always_traced")
def test_binomial_draws_are_no_constants_of_a_graph():
    """One row, so that no other row's draws show it: a graph of the first tile would repeat its counts."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Binomial(9, torch.full_like(x, 0.5)))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Binomial(9, torch.full_like(x, 0.4)))

    pair, x = pv.LatentVariableModel(model, guide), torch.tensor([4.0])
    tiles = []
    for how in (False, "auto"):
        evaluation = Evaluation.prepare(pair, x, 40, 0, (1, 10), compile=how)
        tiles.append([evaluation.terms(t).prior for block in evaluation.tiles() for t in block])
    for a, b in zip(*tiles, strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(tiles[1][0], tiles[1][1])
