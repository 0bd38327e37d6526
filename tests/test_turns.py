"""Calls from several threads take turns; inference mode and autocast change nothing."""

import copy
import functools
import inspect
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import pyrovae as pv
from pyrovae import baselines, demo, evidence, turns
from pyrovae.baselines.base import REGISTRY

TIMEOUT = 60  # seconds after which a thread counts as deadlocked


def model(x):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


@pytest.fixture(scope="module")
def world():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return pv.VAE.mlp(3, 1, "gaussian", hidden_dims=(4,)), torch.randn(6, 3)


def jobs(vae, fresh):
    """Every way to a number that runs Pyro or draws from torch's generator, as a function of rows."""
    few = {"num_samples": 20, "compile": False}
    return {
        "importance": lambda x: pv.log_evidence(vae, x, check=False, **few).estimate,
        "jackknife": lambda x: pv.log_evidence(vae, x, method="jackknife", check=False, **few).estimate,
        "annealed": lambda x: evidence.annealed(vae, x, num_temperatures=4, check=False, **few).estimate,
        "refined": lambda x: evidence.refined(vae, x, num_samples=100, check=False).estimate,
        "quadrature": lambda x: evidence.quadrature(vae, x[:2], check=False).estimate,
        "auto": lambda x: evidence.auto(vae, x[:2], check=False).estimate,
        "sandwich": lambda x: evidence.sandwich(vae, x, num_rows=2, num_samples=2, num_temperatures=4).lower,
        "gaps": lambda x: evidence.gaps(vae, x[:2], num_samples=100, check=False)["inference"].to_numpy(),
        "convergence": lambda x: evidence.convergence(vae, x, (5, 10), check=False)["elbo"].to_numpy(),
        "log_weights": lambda x: pv.log_weights(vae, x, **few).numpy(),
        "elbo": lambda x: pv.elbo(vae, x, **few).estimate,
        "diagnose": lambda x: np.array(pv.diagnose(vae, x).inference_gap),
        "sample": lambda x: vae.sample(3).numpy(),
        "reconstruct": lambda x: vae.reconstruct(x).numpy(),
        "fit": lambda x: pv.fit(fresh(), x, epochs=2, compile=False).frame["elbo"].to_numpy(),
        "compare": lambda x: pv.compare(
            {"a": vae, "b": baselines.PPCA(1).fit(x)}, x, training_rows=True, check=False
        )["elpd"].to_numpy(),
        "baseline": lambda x: baselines.PPCA(1).fit(x).sample(3).numpy(),
        "mcmc": lambda x: (
            baselines.PyroMCMC(model, num_samples=100, warmup_steps=5, num_chains=1)
            .fit(x[:, 0])
            .log_evidence(x[:, 0])
            .estimate
        ),
    }


NAMES = list(jobs(None, None))


@pytest.fixture(scope="module")
def alone(world):
    """What each gives by itself, by its name."""
    vae, x = world
    found = jobs(vae, lambda: copy.deepcopy(vae))

    @functools.cache
    def one(name):
        with torch.random.fork_rng(devices=[]):
            return found[name](x)

    return one


def test_several_threads_get_what_one_gets(world, alone):
    """Every call, in four threads: the same bits, no refusals, no deadlock; global state as before."""
    vae, x = world
    found = jobs(vae, lambda: copy.deepcopy(vae))
    state = torch.random.get_rng_state()
    with ThreadPoolExecutor(4) as pool:
        # At first the two that meet most often: an evaluation of many short tiles and a fit.
        asked = [*["importance", "fit"] * 4, *NAMES]
        waiting = [(name, pool.submit(found[name], x)) for name in asked]
        answers = [(name, answer.result(TIMEOUT)) for name, answer in waiting]
    assert [name for name, answer in answers if not np.array_equal(answer, alone(name))] == []
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.get_default_dtype() == torch.float32
    assert len(pyro.get_param_store()) == 0


def test_one_pair_in_several_threads_is_never_seen_half_trained(world):
    """An evaluation beside a fit of the same pair has the number from before the fit, or the one from after it."""
    vae, x = copy.deepcopy(world[0]), world[1]
    before = pv.elbo(vae, x, compile=False).mean
    with ThreadPoolExecutor(4) as pool:
        fit = pool.submit(pv.fit, vae, x, epochs=20, batch_size=2, compile=False)
        seen = [pool.submit(lambda: pv.elbo(vae, x, compile=False).mean) for _ in range(12)]
        fit.result(TIMEOUT)
        values = {answer.result(TIMEOUT) for answer in seen}
    assert values <= {before, pv.elbo(vae, x, compile=False).mean}


def test_an_exception_lets_the_next_thread_go_on(world):
    vae, x = world
    with ThreadPoolExecutor(2) as pool:
        refused = pool.submit(pv.log_evidence, vae, x[:, :2])
        with pytest.raises(ValueError, match="rows of width 3"):
            refused.result(TIMEOUT)
        assert pool.submit(pv.elbo, vae, x).result(TIMEOUT).estimate.shape == (6,)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a system without fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_child_that_is_forked_in_another_s_turn_is_not_locked_out(world):
    held, done = threading.Event(), threading.Event()

    def hold():
        with turns._lock:
            held.set()
            done.wait(TIMEOUT)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(TIMEOUT)
    child = os.fork()
    if child == 0:
        os._exit(0 if turns._lock.acquire(timeout=5) else 1)
    _, status = os.waitpid(child, 0)
    done.set()
    thread.join()
    assert os.waitstatus_to_exitcode(status) == 0


def public():
    """(name, function) of every public function that computes, and of the methods of pairs and baselines."""
    for room in (pv, evidence, demo):
        names = getattr(room, "__all__", ["discrete", "continuous"])
        for name in sorted(names):
            if inspect.isfunction(getattr(room, name)):
                yield f"{room.__name__}.{name}", getattr(room, name)
    for cls in [pv.VAE, *REGISTRY.values()]:
        for name in (
            "mlp",
            "sample",
            "reconstruct",
            "fit",
            "log_evidence",
            "marginal_likelihood",
            "log_likelihood",
        ):
            if hasattr(cls, name):
                method = inspect.getattr_static(cls, name)
                yield f"{cls.__name__}.{name}", getattr(method, "__func__", method)


@pytest.mark.parametrize(("name", "function"), [pytest.param(n, f, id=n) for n, f in public()])
def test_every_public_function_takes_turns(name, function):
    assert function.__code__.co_filename == turns.__file__


# ---------------------------------------------------------------------------------------------------------
# Inference mode and autocast


@pytest.mark.parametrize("name", NAMES)
def test_inference_mode_and_autocast_change_nothing(name, world, alone):
    """Called inside both, on rows made inside: the same bits."""
    vae, x = world
    fresh = copy.deepcopy(vae)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        made = x.clone()
        assert made.is_inference()
        found = jobs(vae, lambda: fresh)[name](made)
    assert np.array_equal(found, alone(name))


@pytest.mark.parametrize("name", ["fit", "importance", "elbo", "reconstruct", "diagnose", "mcmc"])
def test_a_default_device_without_numbers_is_refused(name, world):
    vae, x = world
    with (
        torch.device("meta"),
        pytest.raises(ValueError, match=r"^x: expected .* got the default device 'meta'\. Call this outside"),
    ):
        jobs(vae, lambda: copy.deepcopy(vae))[name](x)


def test_context_that_was_made_in_inference_mode_is_the_same_context():
    torch.manual_seed(0)
    vae = pv.VAE.mlp(3, 1, "poisson", hidden_dims=(4,), offset=True)
    x, offset = torch.ones(8, 3), torch.linspace(0, 1, 8)
    with torch.inference_mode():
        made = {"x": x.clone(), "offset": offset.clone()}
    first, second = (copy.deepcopy(vae) for _ in range(2))
    assert np.array_equal(pv.elbo(vae, made).estimate, pv.elbo(vae, {"x": x, "offset": offset}).estimate)
    one, two = (
        pv.fit(pair, rows, epochs=1) for pair, rows in ((first, made), (second, {"x": x, "offset": offset}))
    )
    assert one.frame["elbo"].equals(two.frame["elbo"])


def test_a_model_can_be_built_and_loaded_in_inference_mode(tmp_path):
    x = torch.zeros(4, 3)
    with torch.inference_mode():
        vae = pv.VAE.mlp(3, 1, "gaussian", hidden_dims=(4,))
        vae.save(tmp_path / "vae.safetensors")
        loaded = pv.load(tmp_path / "vae.safetensors")
    pv.fit(vae, x + torch.randn(4, 3), epochs=1)
    pv.fit(loaded, x + torch.randn(4, 3), epochs=1)


@pytest.mark.parametrize("call", [pv.log_evidence, pv.elbo, pv.fit, pv.diagnose], ids=lambda f: f.__name__)
def test_parameters_that_were_made_in_inference_mode_are_refused(call, world):
    with torch.inference_mode():
        vae = copy.deepcopy(world[0])
    with pytest.raises(
        ValueError, match=r"^pair: expected parameters that were made outside .*inference_mode"
    ):
        call(vae, world[1])


@pytest.mark.parametrize("method", ["annealed", "quadrature"])
def test_a_constant_that_was_made_in_inference_mode_is_right_or_refused(method):
    with torch.inference_mode():
        scale = torch.ones(())

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(scale * z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.7))

    x, pair = torch.linspace(-1, 1, 3), pv.LatentVariableModel(model, guide)
    exact = dist.Normal(0.0, 2**0.5).log_prob(x).mean()
    assert abs(pv.log_evidence(pair, x, check=False).mean - float(exact)) < 0.1
    with pytest.raises(ValueError, match="tensors that were made outside"):
        pv.log_evidence(pair, x, method=method, check=False)
