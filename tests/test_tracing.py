"""Traced steps are ``training.step``: on the same noise the same losses, parameters, buffers and moments."""

import functools
import logging
import math
import random
import subprocess
import sys
import textwrap
import warnings
from dataclasses import dataclass

import families
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pairs import PAIRS
from pyro.infer import RenyiELBO, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from torch import nn
from torch._dynamo.utils import counters
from torch.optim import SGD, Adam, AdamW, RMSprop

import pyrovae as pv
from pyrovae import encoders, likelihoods, noise, priors, tracing
from pyrovae.training import State, step

LATENT, COLUMNS, ROWS = 2, 3, 23

#: Every family, with options in turn.
LIKELIHOODS = {
    name: every[-1 - number % len(every) % 3]  # by the decoder, by column or shared
    for number, (name, every) in enumerate(families.LIKELIHOODS.items())
}
PRIORS = {name: lambda encoder, cls=cls: cls(LATENT) for name, cls in families.PRIORS.items()} | {
    "gaussian_mixture": lambda encoder: priors.GaussianMixture(LATENT, num_components=3),
    "vamp_prior": lambda encoder: priors.VampPrior(encoder, torch.rand(4, COLUMNS)),
    "flow": lambda encoder: priors.Flow(LATENT, num_transforms=1, hidden_dims=(8,)),
}


@dataclass
class Case:
    """A pair with its rows."""

    pair: pv.LatentVariableModel
    data: dict[str, torch.Tensor]


def vae(
    likelihood="bernoulli",
    prior="gaussian",
    encoder="diagonal_normal",
    dtype=torch.float64,
    columns=COLUMNS,
    **options,
):
    torch.manual_seed(0)
    family, given = likelihoods.REGISTRY[likelihood], LIKELIHOODS[likelihood]
    outputs = family.outputs_per_dimension(**given) * columns
    decoder = family(pv.MLP(LATENT, (5,), outputs, **options), **given)
    network = pv.MLP(columns, (6,), encoders.REGISTRY[encoder].outputs(LATENT), **options)
    q = encoders.REGISTRY[encoder](network)
    pair = pv.VAE(PRIORS[prior](q), decoder, q).to(dtype)
    with torch.no_grad():
        x = decoder.eval()(torch.randn(ROWS, LATENT, dtype=dtype)).sample()
    decoder.train()
    return Case(pair, {"x": x})


def functional(name):
    case = PAIRS[name]()
    pv.pair.inspect(case.pair, {"x": case.x}, 0)  # which fills the pair's parameter store
    return Case(case.pair, {"x": case.x})


def traced_steps(pair, optimizer, objective, data, sizes, annealed=False, **options):
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state = State(pair, optimizer, objective, len(data["x"]), None)
    graphs = {
        size: tracing.trace_gradients(pair, state.loss, data, size, state.num_rows, parameters, annealed)
        for size in {*sizes}
    }
    options = {"compiled": False, "inside": tracing.updates_inside(optimizer)} | options
    return tracing.TracedSteps(graphs, optimizer, data, sizes, annealed=annealed, **options)


#: A graph is traced for each size, and tracing is what takes time: other tests have a shorter last minibatch.
ONE_SIZE = (4, 4)


def train(
    build,
    traced,
    *,
    objective=Trace_ELBO,
    optimizer=Adam,
    sizes=(4, 4, 3),
    calls=2,
    annealed=False,
    **options,
):
    """Some steps, traced or not, on noise, learning rates and KL weights that move; returns losses, case, optimizer."""
    case, objective = build(), objective()
    optimizer = optimizer([p for p in case.pair.parameters() if p.requires_grad], lr=1e-2)
    state = State(case.pair, optimizer, objective, len(case.data["x"]), options.get("clip_norm"))
    generator = torch.Generator().manual_seed(1)

    def eager(rows, seed, lr, weight):
        optimizer.param_groups[0]["lr"] = lr
        return step(state, {name: column[rows] for name, column in case.data.items()}, seed, weight)

    losses = [eager(torch.arange(sizes[0]), 99, 1e-2, 1.0)]
    if traced:
        steps = traced_steps(case.pair, optimizer, objective, case.data, sizes, annealed=annealed, **options)
    for call in range(calls):
        rows = torch.randint(0, len(case.data["x"]), (sum(sizes),), generator=generator)
        seeds = [100 * call + number for number in range(len(sizes))]
        weights = [(number + 1) / len(sizes) if annealed else 1.0 for number in range(len(sizes))]
        lr = 1e-2 / (call + 1)
        if traced:
            optimizer.param_groups[0]["lr"] = lr
            losses += steps.run(rows, seeds, weights)
        else:
            losses += map(eager, rows.split(sizes), seeds, [lr] * len(sizes), weights)
    return losses, case, optimizer


def everything(case, optimizer):
    """All numbers that training leaves behind, by their names."""
    yield from ((name, value.detach()) for name, value in case.pair.state_dict().items())
    for number, moments in optimizer.state_dict()["state"].items():
        yield from (
            (f"{number} {name}", torch.as_tensor(value))
            for name, value in moments.items()
            if value is not None
        )


def same(build, tolerance=1e-12, **options):
    """Train twice, traced and not; the losses and all that is left behind agree."""
    expected, came = train(build, False, **options), train(build, True, **options)
    np.testing.assert_allclose(came[0], expected[0], rtol=tolerance, atol=tolerance)
    for (name, a), (again, b) in zip(everything(*expected[1:]), everything(*came[1:]), strict=True):
        assert name == again
        torch.testing.assert_close(
            b, a, rtol=100 * tolerance, atol=10 * tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_every_registered_family_is_traced():
    assert LIKELIHOODS.keys() == likelihoods.REGISTRY.keys()
    assert PRIORS.keys() == priors.REGISTRY.keys()


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_likelihoods(likelihood):
    same(lambda: vae(likelihood), sizes=ONE_SIZE, calls=7)


@pytest.mark.parametrize(
    ("prior", "encoder"),
    [
        *((prior, "diagonal_normal") for prior in PRIORS),
        *(("vamp_prior", encoder) for encoder in encoders.REGISTRY),
    ],
)
def test_priors_and_encoders(prior, encoder):
    same(lambda: vae(prior=prior, encoder=encoder), sizes=ONE_SIZE, calls=7)


@pytest.mark.parametrize(
    "objective",
    [
        TraceMeanField_ELBO,
        TraceGraph_ELBO,
        functools.partial(Trace_ELBO, num_particles=3),
        functools.partial(Trace_ELBO, num_particles=3, vectorize_particles=True),
        functools.partial(RenyiELBO, num_particles=2),
        functools.partial(RenyiELBO, num_particles=2, vectorize_particles=True),
    ],
    ids=lambda objective: getattr(objective, "__name__", str(objective)[-60:]),
)
def test_objectives(objective):
    same(vae, objective=objective, calls=7)


@pytest.mark.parametrize(
    "optimizer",
    [
        AdamW,
        functools.partial(Adam, weight_decay=0.1, betas=(0.8, 0.9), eps=1e-3),
        functools.partial(Adam, amsgrad=True, maximize=True),
        SGD,
        functools.partial(SGD, momentum=0.9, nesterov=True, weight_decay=0.1),
        functools.partial(SGD, momentum=0.9, dampening=0.2, maximize=True),
    ],
)
def test_optimizers(optimizer):
    same(vae, optimizer=optimizer, clip_norm=0.5)


def test_any_other_optimizer_takes_its_steps_outside():
    assert not tracing.updates_inside(RMSprop([torch.zeros(1)]))
    same(vae, optimizer=RMSprop, sizes=(4,), calls=20, clip_norm=0.5)


@pytest.mark.parametrize("likelihood", ["bernoulli", "poisson"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_over_a_hundred_steps(likelihood, dtype, tolerance):
    same(lambda: vae(likelihood, "gaussian_mixture", dtype=dtype), tolerance, sizes=(5, 5, 5, 2), calls=25)


def test_the_kl_weight_is_an_input():
    same(vae, annealed=True, calls=7)
    same(vae, annealed=True, calls=7, objective=TraceMeanField_ELBO)


def test_dropout_and_batch_normalisation():
    same(lambda: vae(dropout=0.3), calls=7)
    # A bias before a batch normalisation has no gradient but rounding, which Adam would blow up to a step.
    same(lambda: vae(normalization="batch", dropout=0.3), calls=7, optimizer=SGD)


def counts_with_offsets():
    torch.manual_seed(0)
    counts = pv.VAE(
        priors.StandardNormal(LATENT),
        likelihoods.Poisson(pv.MLP(LATENT, (5,), COLUMNS), offset=True),
        encoders.DiagonalNormal(pv.MLP(COLUMNS, (6,), 2 * LATENT)),
    ).double()
    x = torch.poisson(torch.full((ROWS, COLUMNS), 2.0)).double()
    return Case(counts, {"x": x, "offset": torch.randn(ROWS).double()})


def test_what_goes_with_the_rows():
    same(counts_with_offsets)


# Pairs as people write them, of tests/pairs.py, that can be traced.
TRACEABLE = (
    "pyro_param",
    "pyro_module_statements",
    "pyro_modules",
    "bound_methods",
    "hierarchical",
    "independent_sites",
    "column_slices",
    "convolutional",
    "indexed_hierarchy",
    "double_precision",
)


@pytest.mark.parametrize("name", TRACEABLE)
def test_pairs_as_people_write_them(name):
    same(lambda: functional(name), 1e-12 if name == "double_precision" else 1e-5)


def test_masked_cells_and_scaled_sites():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([0.8, -0.5, 0.3]))
            self.frozen = nn.Parameter(torch.tensor(0.9), requires_grad=False)

        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                fn = dist.Normal(z[..., None] * self.weight, self.frozen, validate_args=True)
                pyro.sample("x", fn.mask(x > -1).to_event(1), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(x @ self.weight / 2, 0.9))

    def build():
        module = Masked().double()
        return Case(pv.LatentVariableModel(module.model, module.guide), {"x": torch.randn(ROWS, 3).double()})

    torch.manual_seed(0)
    x = build().data["x"]
    same(lambda: Case(build().pair, {"x": x}), annealed=True)


class Attending(nn.Module):
    """An encoder that attends to the columns of a row."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(1, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.out = nn.Linear(8, 2 * LATENT)

    def forward(self, x):
        return self.out(self.layer(self.embed(x[..., None])).mean(dim=-2))


def attending():
    case = vae()
    torch.manual_seed(0)
    encoder = encoders.DiagonalNormal(Attending()).double()
    return Case(pv.VAE(case.pair.prior, case.pair.likelihood, encoder), case.data)


def test_attention_without_dropout():
    """The bias of the keys has gradient zero but for rounding, which Adam would divide by its own size."""
    same(attending, calls=7, optimizer=SGD)


# ---------------------------------------------------------------------------------------------------------
# What can't be traced


def pair_of(observe, guide=None):
    """A pair with one weight whose model's observed location is ``observe(z, x)``."""

    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.tensor(0.5))
            self.register_buffer("count", torch.zeros(()))

        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(observe(self, z, x), 1.0), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", (guide or (lambda self, x: dist.Normal(self.weight * x, 0.9)))(self, x))

    module = Pair()
    return lambda: Case(pv.LatentVariableModel(module.model, module.guide), {"x": torch.randn(ROWS)})


COUNTED = {"calls": 0.0}
GLOBAL = np.random


def counting(self, z, x):
    COUNTED["calls"] += 1.0
    return z + COUNTED["calls"]


@pytest.mark.parametrize(
    ("observe", "reason"),
    [
        (lambda self, z, x: z if x.sum() > 0 else -z, "reads a tensor's value"),
        (lambda self, z, x: z if x.sum().item() > 0 else -z, "reads a tensor's value"),
        (lambda self, z, x: z * math.tanh(x.sum()), "reads a tensor's value"),
        (lambda self, z, x: z * float(x.numpy().mean()), "reads a tensor's value"),
        (lambda self, z, x: z * sum(x.tolist()), "reads a tensor's value"),
        (lambda self, z, x: z[x > 0].sum() + z, "the size of a tensor depends on values"),
        (counting, "Python values change from call to call, such as 'calls' of a dict"),
        (lambda self, z, x: z if random.random() < 2 else -z, "draws random numbers from random, which"),
        (lambda self, z, x: z if GLOBAL.rand() < 2 else -z, r"draws random numbers from numpy\.random, "),
        (lambda self, z, x: z * torch.poisson(z.detach().exp()), "depends on other tensors"),
        (lambda self, z, x: z + torch.normal(0.0, 0.1, z.shape), "noise that a trace cannot draw again"),
        (lambda self, z, x: z + torch.randint(0, 2, z.shape), "noise that a trace cannot draw again"),
        (lambda self, z, x: z + 0 * torch.randperm(len(x)), "noise that a trace cannot draw again"),
    ],
)
def test_what_cannot_be_traced_is_named_in_a_line(observe, reason):
    build = pair_of(observe)
    with pytest.raises(tracing.Untraceable, match=reason) as refused:
        train(build, True)
    assert len(str(refused.value).splitlines()) == 1


def test_anomaly_mode_is_named():
    """Its check of gradients reads values, which would be blamed on code that the user never wrote."""
    ignored = warnings.catch_warnings(action="ignore")  # torch's, with the code of the operation it failed in
    with (
        ignored,
        torch.autograd.set_detect_anomaly(True),
        pytest.raises(tracing.Untraceable, match=r"^anomaly mode of"),
    ):
        train(vae, True)
    with torch.autograd.set_detect_anomaly(True, check_nan=False):
        same(vae, sizes=ONE_SIZE)


def test_latents_that_are_not_reparameterised():
    with pytest.raises(tracing.Untraceable, match=r"aten.multinomial"):
        train(lambda: functional("mixture"), True)
    with pytest.raises(tracing.Untraceable, match=r"aten._standard_gamma"):
        train(lambda: functional("counts"), True)


def test_enumeration():
    enumerating = functools.partial(TraceEnum_ELBO, max_plate_nesting=1, strict_enumeration_warning=False)
    with pytest.raises(tracing.Untraceable, match="reads a tensor's value"):
        train(vae, True, objective=enumerating)


def test_an_optimizer_without_moments():
    case = vae()
    with pytest.raises(tracing.Untraceable, match="first step"):
        traced_steps(case.pair, Adam(case.pair.parameters()), Trace_ELBO(), case.data, (4,))


# ---------------------------------------------------------------------------------------------------------
# Promises


def test_tracing_leaves_everything_as_it_was():
    case = vae(normalization="batch", dropout=0.3)
    case.pair.eval()
    optimizer = SGD(case.pair.parameters(), momentum=0.0)
    before = {name: value.clone() for name, value in everything(case, optimizer)}
    generator, settings = torch.random.get_rng_state(), pyro.settings.get()
    validates = torch.distributions.Distribution._validate_args
    traced_steps(case.pair, optimizer, Trace_ELBO(), case.data, (4, 3))
    assert all(torch.equal(before[name], value) for name, value in everything(case, optimizer))
    assert torch.equal(torch.random.get_rng_state(), generator)
    assert pyro.settings.get() == settings
    assert torch.distributions.Distribution._validate_args == validates
    assert len(pyro.get_param_store()) == 0
    assert not case.pair.training
    assert all(p.grad is None for p in case.pair.parameters())


@pytest.mark.parametrize("bad", [0, 1, 2])
@pytest.mark.parametrize("optimizer", [Adam, functools.partial(SGD, momentum=0.9)])
def test_what_is_not_finite_leaves_everything_as_before_its_step(bad, optimizer):
    """Rows that overflow in one of three steps: the steps before it have been taken, it and those after it not."""

    def run(sizes, rows):
        case = vae("gaussian", normalization="batch")
        case.data["x"][0] = 1e200
        optim = optimizer(case.pair.parameters(), lr=1e-2)
        state = State(case.pair, optim, Trace_ELBO(), ROWS, None)
        step(state, {"x": case.data["x"][5:9]}, 9, 1.0)
        steps = traced_steps(case.pair, optim, Trace_ELBO(), case.data, sizes)
        return case, optim, functools.partial(steps.run, rows, range(len(sizes)), [1.0] * len(sizes))

    rows = torch.arange(1, 13)
    spoiled = rows.clone()
    spoiled[4 * bad + 1] = 0
    case, optim, call = run((4, 4, 4), spoiled)
    with pytest.raises(tracing.NotFinite, match=r"loss is (inf|nan)") as broken:
        call()
    assert len(broken.value.losses) == bad
    came = dict(everything(case, optim))
    case, optim, call = run((4,) * bad or (4,), rows[: 4 * bad or 4])
    if bad:
        call()
    for name, value in everything(case, optim):
        torch.testing.assert_close(came[name], value, rtol=1e-12, atol=1e-14)


def test_the_noise_is_the_steps_own():
    """Drawn as ``noise.seeded`` would: bit for bit, whatever the generator was used for before."""
    steps = traced_steps(*_ready(vae(dropout=0.3)), (4, 3))
    steps._noise.draw([5, 6])
    first = [flat.clone() for flat in steps._noise.flat]
    torch.randn(9)
    steps._noise.draw([5, 6])
    assert all(map(torch.equal, first, steps._noise.flat))
    size, hidden = 3, 6
    with noise.seeded(6):
        kept = torch.empty(size, hidden, dtype=torch.float64).bernoulli_(0.7)
        normal = torch.empty(size, LATENT, dtype=torch.float64).normal_()
    views = steps._noise.views(steps._noise.flat, 1)
    assert torch.equal(views[0], kept)
    assert torch.equal(views[1], normal)


def _ready(case):
    """A case whose optimizer has its moments."""
    optimizer, objective = Adam(case.pair.parameters()), Trace_ELBO()
    step(State(case.pair, optimizer, objective, ROWS, None), {"x": case.data["x"][:4]}, 9, 1.0)
    return case.pair, optimizer, objective, case.data


def test_parameters_with_unequal_numbers_of_steps_are_refused():
    pair, optimizer, objective, data = _ready(vae())
    next(iter(optimizer.state.values()))["step"] += 1
    with pytest.raises(tracing.Untraceable, match="more steps with some parameters than with others"):
        traced_steps(pair, optimizer, objective, data, (4,))


# ---------------------------------------------------------------------------------------------------------
# Compiled


@pytest.mark.parametrize(
    ("build", "options"),
    [
        (
            # Wide enough for masses that share logarithms; see tracing/rewriting.py.
            lambda: vae("bernoulli", dtype=torch.float32, columns=130),
            {"clip_norm": 0.5, "annealed": True},
        ),
        (
            lambda: vae("poisson", "gaussian_mixture", dropout=0.2, normalization="batch"),
            {"objective": TraceMeanField_ELBO, "optimizer": SGD},
        ),
    ],
    ids=["bernoulli", "poisson"],
)
def test_compiled(build, options):
    options = {"sizes": (4,), "calls": 10} | options
    same(build, 1e-5 if options.get("annealed") else 1e-12, compiled=True, **options)


def test_compiled_fits_repeat_themselves():
    """Bit for bit; the second is compiled from the cache on disk."""
    build, options = (
        lambda: vae("bernoulli", dtype=torch.float32, columns=130),
        {"clip_norm": 0.5, "annealed": True},
    )
    loaded = counters["aot_autograd"]["autograd_cache_hit"]
    with torch._functorch.config.patch(strict_autograd_cache=True):  # an error if torch cannot cache a graph
        first, again = (train(build, True, compiled=True, sizes=(4,), **options) for _ in range(2))
    assert counters["aot_autograd"]["autograd_cache_hit"] > loaded
    assert first[0] == again[0]
    for (_, a), (_, b) in zip(everything(*first[1:]), everything(*again[1:]), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("several", [True, False])
@pytest.mark.parametrize("num_rows", range(1, 60))
def test_calls_cover_an_epoch(num_rows, several):
    sizes = tracing.calls(num_rows, 5, several)
    flat = [size for call in sizes for size in call]
    expected = [len(rows) for rows in torch.arange(num_rows).split(5)]
    if len(expected) > 1 and expected[-1] == 1:  # a single row is joined to the batch before
        expected[-2:] = [6]
    assert flat == expected
    assert len({*sizes}) <= 2
    assert all(len(call) == 1 for call in sizes) or several


def test_without_a_compiler():
    """A long fit is traced, and says why it is not compiled; one that has to be compiled is refused."""
    code = """
    import torch, pyrovae as pv
    from pyrovae.training import traced
    traced._COMPILING_PAYS = traced._TRACING_PAYS = 0
    x = torch.bernoulli(torch.ones(9, 3) / 2)
    try:
        pv.fit(pv.VAE.mlp(3, 1, hidden_dims=()), x, compile=True)
    except ValueError as reason:
        print(reason)
    print(pv.fit(pv.VAE.mlp(3, 1, hidden_dims=()), x, epochs=1).steps)
    """
    environment = {"PATH": "", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, env=environment
    )
    refused, steps = result.stdout.splitlines() or [result.stderr, ""]
    assert refused.startswith(
        "compile: expected steps that can be traced and compiled, got there is no C++ compiler"
    )
    assert steps == "traced: there is no C++ compiler"


def test_the_compiler_is_quiet_about_its_own_work(monkeypatch, capfd):
    """Warnings and log lines of torch's compiler, on kernels that it lacks, are nothing that a user could mend."""

    def inductor(module, *_, **__):
        warnings.warn("of its own code", stacklevel=1)
        logging.getLogger("torch._inductor.ir").warning("is missing a c-shim implementation")
        return module

    monkeypatch.setattr(torch._inductor, "compile", inductor)
    graph = torch.fx.symbolic_trace(lambda a: (a + 1,))
    logger = logging.getLogger("torch._inductor")
    before = logger.level
    assert torch.equal(
        tracing.compiling.compile_graph(graph, [torch.zeros(2)])(torch.zeros(2))[0], torch.ones(2)
    )
    assert capfd.readouterr().err == ""
    assert logger.level == before


def test_instructions_that_the_compiler_lacks_are_tested_after_all(monkeypatch):
    """Kernels are first built with the processor's instructions untested; if that fails, as torch builds them."""
    tried = []

    def inductor(module, *_, options):
        tried.append(options)
        if len(tried) == 1:
            raise torch._inductor.exc.CppCompileError(["c++"], "unrecognized option -mamx-tile")
        return module

    monkeypatch.setattr(torch._inductor, "compile", inductor)
    graph = torch.fx.symbolic_trace(lambda a: (a + 1,))
    compiled = tracing.compiling.compile_graph(graph, [torch.zeros(2)])
    assert torch.equal(compiled(torch.zeros(2))[0], torch.ones(2))
    assert [each.get("cpp.vec_isa_ok") for each in tried] == [True, None]
