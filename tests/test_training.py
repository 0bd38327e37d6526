"""fit(): it reaches known optima, counts rows and KL right, repeats itself, and loses nothing."""

import array
import collections
import contextlib
import copy
import dataclasses
import datetime
import decimal
import fractions
import functools
import inspect
import itertools
import logging
import math
import random
import re
import sys
import types
import weakref

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from oracles import LinearGaussian
from pairs import Averaging
from pyro.infer import (
    SVI,
    JitTrace_ELBO,
    RenyiELBO,
    ReweightedWakeSleep,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)
from torch.nn.utils import parametrizations, parametrize
from torch.optim.optimizer import register_optimizer_step_post_hook

import pyrovae as pv
from pyrovae import baselines, identity, noise, tracing, training
from pyrovae import pair as pair_room
from pyrovae.python_values import PythonValues, values_of_call
from pyrovae.rows import Source
from pyrovae.training import loop, traced
from pyrovae.training.arguments import runs_code_of_others
from pyrovae.training.plan import Plan
from pyrovae.training.ranks import Ranks
from pyrovae.training.rows import Rows
from pyrovae.training.step import State


def small_vae(seed=0, **options):
    torch.manual_seed(seed)
    return pv.VAE.mlp(6, latent_dim=2, hidden_dims=(8,), **options)


def binary_rows(num_rows=50, seed=1):
    return (torch.rand(num_rows, 6, generator=torch.Generator().manual_seed(seed)) < 0.4).float()


def parameters(pair):
    return [p.detach().clone() for p in pair.parameters()]


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_linear_vae_reaches_probabilistic_pca():
    """The ELBO of a linear VAE has PPCA's maximum of the likelihood as its optimum (Lucas et al. 2019)."""
    x = LinearGaussian.random(2, 6, dtype=torch.float32).sample(500)
    torch.manual_seed(0)
    vae = pv.VAE.mlp(6, latent_dim=2, likelihood="gaussian", hidden_dims=(), scale="shared")
    cosine = functools.partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=200)
    pv.fit(vae, x, epochs=200, batch_size=50, lr=2e-2, loss=TraceMeanField_ELBO(), scheduler=cosine)
    exact = baselines.PPCA(2).fit(x).log_evidence(x).mean
    ev = pv.log_evidence(vae, x, num_samples=500, check=False)
    assert exact - 0.02 < ev.mean < exact + 0.005
    assert ev.counts()["unchecked"] > 490


def test_loss_is_pyros_own_and_counts_every_row_once():
    """On the whole data set, the loss is SVI's; on a minibatch it is N/B times the minibatch's."""
    vae, x = small_vae(), binary_rows()

    def of(objective, batch, num_rows, kl_weight=1.0):
        torch.manual_seed(3)
        with torch.no_grad():
            return float(pair_room.loss(vae, objective, {"x": batch}, num_rows, kl_weight))

    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.0}), Trace_ELBO())
    torch.manual_seed(3)
    expected = svi.evaluate_loss(x)
    assert of(Trace_ELBO(), x, 50) == pytest.approx(expected, rel=1e-6)
    assert of(Trace_ELBO(), x[:10], 50) == pytest.approx(5 * of(Trace_ELBO(), x[:10], 10), rel=1e-6)


@pytest.mark.parametrize("objective", [Trace_ELBO, TraceMeanField_ELBO])
def test_kl_weight_scales_latents_and_nothing_else(objective):
    vae, x = small_vae(), binary_rows()
    losses = []
    for weight in (1.0, 0.5, 1e-9):
        torch.manual_seed(3)
        losses.append(pair_room.loss(vae, objective(), {"x": x}, 50, weight).item())
    whole, half, reconstruction = losses
    assert whole - reconstruction > 0  # the KL term
    assert half == pytest.approx((whole + reconstruction) / 2, rel=1e-5)
    torch.manual_seed(3)
    z = vae.encoder(x).rsample().detach()
    assert reconstruction == pytest.approx(-vae.likelihood(z).log_prob(x).sum().item(), rel=1e-5)


@pytest.mark.parametrize(
    "objective",
    [
        Trace_ELBO(num_particles=2),
        TraceMeanField_ELBO(),
        TraceGraph_ELBO(),
        TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False),
    ],
)
def test_every_sum_objective_trains(objective):
    vae, x = small_vae(), binary_rows()
    history = pv.fit(vae, x, epochs=20, batch_size=16, lr=1e-2, loss=objective)
    assert history.frame["elbo"].iloc[-1] > history.frame["elbo"].iloc[0] + 0.05


def test_history_is_in_nats_a_row():
    vae, x = small_vae(), binary_rows()
    frame = pv.fit(vae, x, epochs=2, batch_size=16, lr=1e-9, validation=x[:5]).frame
    first = frame.iloc[0]
    assert list(frame["epoch"]) == [1, 2]
    assert 0 < -first["elbo"] < 10  # six binary columns: 4.2 nats a row where nothing is known
    assert first["elbo"] == pytest.approx(first["reconstruction"] - first["rate"], abs=1e-6)
    assert first["loss"] == pytest.approx(-first["elbo"], abs=1e-5)
    bound = pv.elbo(vae, x[:5], num_samples=1, seed=0)
    assert frame["validation_elbo"].iloc[-1] == pytest.approx(bound.mean, abs=1e-5)
    assert {"validation_rate", "validation_reconstruction", "kl_weight", "lr", "seconds"} <= {*frame}


def enumerated():
    """A pair whose latent is one of three, which TraceEnum_ELBO sums over."""
    torch.manual_seed(0)
    logits, means = torch.nn.Linear(6, 3).double(), torch.nn.Linear(3, 6).double()

    def model(x):
        pyro.module("means", means)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)))
            at = means(torch.nn.functional.one_hot(z, 3).double())
            pyro.sample("x", dist.Bernoulli(logits=at).to_event(1), obs=x)

    def guide(x):
        pyro.module("logits", logits)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(logits=logits(x)), infer={"enumerate": "parallel"})

    return pv.LatentVariableModel(model, guide), means, logits


@pytest.mark.parametrize("weight", [1.0, 0.3])
@pytest.mark.parametrize(
    ("objective", "particles", "exact_rate"),
    [
        (Trace_ELBO(), 1, False),
        (Trace_ELBO(num_particles=3), 3, False),
        (TraceMeanField_ELBO(num_particles=2), 2, True),
        (TraceGraph_ELBO(), 1, False),
        (TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False), 1, False),
    ],
)
def test_a_step_tells_rate_and_reconstruction_apart(objective, particles, exact_rate, weight):
    """Of 16 rows that stand for 50: as the distributions themselves say at the draws that the step's seed makes."""
    vae, x, seed = small_vae().double(), binary_rows(16).double(), 4
    rate = reconstruction = 0.0
    with noise.seeded(seed), torch.no_grad():
        for _ in range(particles):
            q, p = vae.encoder(x), vae.prior()
            z = q.rsample()
            reconstruction += float(vae.likelihood(z).log_prob(x).mean()) / particles
            exact = (
                torch.distributions.kl_divergence(q.base_dist, p.base_dist).sum(-1) if exact_rate else None
            )
            rate += float((q.log_prob(z) - p.log_prob(z) if exact is None else exact).mean()) / particles
    state = State(vae, torch.optim.SGD(vae.parameters(), lr=0.1), objective, 50, None)
    total, found = training.step(state, {"x": x}, seed, weight)
    assert found == pytest.approx(reconstruction, rel=1e-12)
    assert (total + found) / weight == pytest.approx(rate, rel=1e-10)


@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_a_step_that_sums_over_a_latent_tells_rate_and_reconstruction_apart(weight):
    pair, means, logits = enumerated()
    x = binary_rows(16).double()
    with torch.no_grad():
        q = logits(x).log_softmax(-1)
        each = (
            dist.Bernoulli(logits=means(torch.eye(3, dtype=torch.float64))).to_event(1).log_prob(x[:, None])
        )
        reconstruction = float((q.exp() * each).sum(-1).mean())
        prior = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64).log()
        rate = float((q.exp() * (q - prior)).sum(-1).mean())
    parameters = [*means.parameters(), *logits.parameters()]
    state = State(pair, torch.optim.SGD(parameters, lr=0.1), TraceEnum_ELBO(max_plate_nesting=1), 50, None)
    total, found = training.step(state, {"x": x}, 0, weight)
    assert found == pytest.approx(reconstruction, rel=1e-12)
    assert total == pytest.approx(weight * rate - reconstruction, rel=1e-12)


@pytest.mark.parametrize("compile", [False, True])
def test_masked_cells_with_any_fill_value_count_for_nothing(compile):
    """A cell of 1e30 has a log-probability of −∞ in float32; masked, it is 0, and so is its part of the gradient."""
    x, kept = binary_rows(), torch.rand(50, 6, generator=torch.Generator().manual_seed(3)) < 0.7
    net = torch.nn.Linear(1, 6)

    def model(x, kept):
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            with pyro.plate("columns", 6, dim=-2), pyro.poutine.mask(mask=kept.T):
                pyro.sample("x", dist.Normal(net(z).T, 1.0), obs=x.T)

    def guide(x, kept):
        with pyro.plate("data", len(x)):
            loc = torch.where(kept, x, 0.0).sum(1, keepdim=True) * pyro.param("w", torch.tensor(0.1))
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    frames = []
    for fill in (0.5, 1e30):
        torch.manual_seed(0)
        net = torch.nn.Linear(1, 6)
        rows = {"x": torch.where(kept, x, fill), "kept": kept}
        pair = pv.LatentVariableModel(model, guide)
        frames.append(pv.fit(pair, rows, epochs=9, batch_size=50, compile=compile, seed=0).frame)
    for column in ("loss", "elbo", "rate", "reconstruction"):
        assert np.isfinite(frames[1][column]).all()
        np.testing.assert_allclose(frames[0][column], frames[1][column], rtol=1e-5)


class Doubled(Trace_ELBO):
    """A user's objective of which nothing is known."""

    def differentiable_loss(self, *args, **kwargs):
        return 2 * super().differentiable_loss(*args, **kwargs)


def test_the_parts_of_a_users_own_objective_are_evaluated():
    vae, x = small_vae(), binary_rows()
    frame = pv.fit(vae, x, epochs=1, batch_size=16, lr=1e-3, loss=Doubled()).frame
    assert frame["elbo"][0] == pytest.approx(pv.elbo(vae, x, num_samples=1, seed=0).mean, abs=1e-5)
    assert frame["loss"][0] > -1.5 * frame["elbo"][0]


@pytest.mark.parametrize("kl_warmup", [0, 2])
def test_an_epoch_is_the_mean_of_its_steps(kl_warmup, monkeypatch):
    """By rows, of which the last batch has fewer."""
    taken, own = [], loop.step
    monkeypatch.setattr(
        loop, "step", lambda *a: taken.append((len(a[1]["x"]), a[3], own(*a))) or taken[-1][2]
    )
    frame = pv.fit(
        small_vae(), binary_rows(), epochs=3, batch_size=16, lr=1e-2, kl_warmup=kl_warmup, compile=False
    ).frame
    sizes, weights, losses = (np.array(each) for each in zip(*taken, strict=True))
    assert sizes.tolist() == [16, 16, 16, 2] * 3
    for epoch, line in frame.iterrows():
        part = slice(4 * epoch, 4 * epoch + 4)
        total, reconstruction = losses[part].T
        for name, each in {
            "loss": total,
            "reconstruction": reconstruction,
            "rate": (total + reconstruction) / weights[part],
        }.items():
            assert line[name] == pytest.approx(np.average(each, weights=sizes[part]), rel=1e-12)
        assert line["elbo"] == pytest.approx(line["reconstruction"] - line["rate"], rel=1e-12)


def test_training_rows_are_evaluated_for_objectives_without_two_parts():
    """The draws of RenyiELBO are weighted inside a logarithm, so its loss is no rate minus a reconstruction."""
    vae, x = small_vae(), binary_rows()
    frame = pv.fit(vae, x, epochs=2, batch_size=50, lr=1e-2, loss=RenyiELBO(num_particles=3)).frame
    bound = pv.elbo(vae, x, num_samples=1, seed=0)
    assert frame["elbo"].iloc[-1] == pytest.approx(bound.mean, abs=1e-5)
    assert frame["rate"].iloc[-1] == pytest.approx(float(bound.rate.mean()), abs=1e-5)


def test_callbacks_are_called_after_every_epoch(tmp_path):
    vae, x, calls = small_vae(), binary_rows(), []

    def callback(record, pair):
        calls.append((dict(record), pair, parameters(pair), torch.random.get_rng_state()))
        record["elbo"] = 0.0  # changes nothing in the history
        torch.rand(7)

    history = pv.fit(vae, x, epochs=3, batch_size=16, validation=x[:9], callbacks=[callback])
    assert [record for record, *_ in calls] == history.records
    assert all(pair is vae for _, pair, *_ in calls)
    assert same(calls[-1][2], parameters(vae))
    assert not same(calls[0][2], calls[1][2])
    alone = small_vae()
    pv.fit(alone, x, epochs=3, batch_size=16, validation=x[:9])
    assert same(parameters(alone), parameters(vae))


def test_a_callback_stops_the_fit(tmp_path):
    vae, calls = small_vae(), []
    options = {
        "epochs": 9,
        "batch_size": 16,
        "callbacks": [lambda record, pair: calls.append(record["epoch"]) or record["epoch"] == 4],
        "checkpoint": tmp_path,
    }
    history = pv.fit(vae, binary_rows(), **options)
    assert (history.stopped, len(history), calls) == ("callback", 4, [1, 2, 3, 4])
    four = small_vae()
    pv.fit(four, binary_rows(), epochs=4, batch_size=16)
    assert same(parameters(vae), parameters(four))
    again = small_vae()  # a finished fit, which calls nobody
    assert pv.fit(again, binary_rows(), **options).stopped == "callback"
    assert len(calls) == 4
    assert same(parameters(again), parameters(vae))


def test_a_callback_may_evaluate_and_fit():
    x, found = binary_rows(), []

    def callback(record, pair):
        found.append(pv.log_evidence(pair, x[:5], num_samples=20, check=False).mean)
        pv.fit(small_vae(), x, epochs=1)

    vae, alone = small_vae(), small_vae()
    pv.fit(vae, x, epochs=2, callbacks=(callback,))
    pv.fit(alone, x, epochs=2)
    assert len(found) == 2
    assert same(parameters(alone), parameters(vae))


@pytest.mark.parametrize("ends", [None, OSError, KeyboardInterrupt])
@pytest.mark.parametrize("what", ["a file of no rows", "a file of other rows", "a fit to other rows"])
def test_a_fit_remembers_its_rows_whatever_a_callback_does_to_the_pair(what, ends, tmp_path):
    x, other, before = binary_rows(), binary_rows(seed=2), binary_rows(20, seed=3)
    saved, vae, found = small_vae(), small_vae(), []
    if what == "a file of other rows":
        pv.fit(saved, other, epochs=1)
    saved.save(tmp_path / "saved.pv")
    pv.fit(vae, before, epochs=1)

    def change(record, pair):
        if record["epoch"] == 2:
            if what == "a fit to other rows":
                pv.fit(pair, other, epochs=1)
            else:
                pv.load(tmp_path / "saved.pv", into=pair)
            if ends is not None:
                raise ends

    def look(record, pair):
        found.append((pair.fitted.rows, len(pair.fitted.history["records"])))

    with pytest.raises(OSError) if ends is OSError else contextlib.nullcontext():
        pv.fit(vae, x, epochs=4, callbacks=[change, look])
    epochs = 4 if ends is None else 2
    assert found == [(50, 1), (50, 2), (50, 3), (50, 4)][: 4 if ends is None else 1]
    assert (vae.fitted.rows, len(vae.fitted.history["records"])) == (50, epochs)
    assert vae.fitted.history["stopped"] == ("interrupted" if ends is KeyboardInterrupt else "epochs")
    rows = torch.cat([before, x] if what == "a file of no rows" else [before, x, other])
    assert {tuple(h) for h in vae.seen} == {tuple(h) for h in identity.row_hashes(rows)}


def test_what_a_callback_raises_comes_through_with_the_parameters_kept():
    vae, four = small_vae(), small_vae()

    def callback(record, pair):
        if record["epoch"] == 4:
            raise OSError("no space left")

    with pytest.raises(OSError, match=r"^no space left$"):
        pv.fit(vae, binary_rows(), epochs=9, batch_size=16, callbacks=[callback])
    pv.fit(four, binary_rows(), epochs=4, batch_size=16)
    assert same(parameters(vae), parameters(four))


@pytest.mark.parametrize("callbacks", [None, print, [print, 3], "print", {print}])
def test_callbacks_that_are_not_a_list_of_functions_are_refused(callbacks):
    with pytest.raises(TypeError, match=r"^callbacks: expected a list of functions"):
        pv.fit(small_vae(), binary_rows(), epochs=1, callbacks=callbacks)


def test_a_callback_that_returns_a_number_is_refused():
    with pytest.raises(TypeError, match=r"^what a callback returns: expected True or False"):
        pv.fit(small_vae(), binary_rows(), epochs=1, callbacks=[lambda record, pair: record["elbo"]])


def _unfreeze(pair):
    pair.likelihood.requires_grad_(True)


def _replace(pair):
    pair.encoder.network = copy.deepcopy(pair.encoder.network)


@pytest.mark.parametrize(
    ("change", "first"), [(_unfreeze, "likelihood."), (_replace, "encoder.network.")], ids=["unfreeze", "new"]
)
def test_a_callback_cannot_add_parameters_to_a_fit(change, first):
    """A second fit trains them. In the last epoch, or when the fit stops, the change is one for the next fit."""
    vae, x = small_vae(), binary_rows()
    vae.likelihood.requires_grad_(False)

    def fit(pair, epochs, stops):
        def callback(record, pair):
            if record["epoch"] == 2:
                change(pair)
                return stops

        pv.fit(pair, x, epochs=epochs, callbacks=[callback])

    fit(copy.deepcopy(vae), epochs=5, stops=True)
    fit(copy.deepcopy(vae), epochs=2, stops=False)
    with pytest.raises(
        ValueError,
        match=rf"^callbacks: expected .*, got \d+ that fit does not train, first '{first}.*fit again\.$",
    ):
        fit(vae, epochs=5, stops=False)
    before = {name: value.detach().clone() for name, value in vae.named_parameters() if first in name}
    pv.fit(vae, x, epochs=1)
    assert all(not torch.equal(value, vae.get_parameter(name)) for name, value in before.items())


def _clip_data(pair):
    for parameter in pair.parameters():
        parameter.data = parameter.data.clamp(-0.3, 0.3)


def _clip_in_place(pair):
    for parameter in pair.parameters():
        parameter.data.clamp_(-0.3, 0.3)


def _from_one_vector(pair):
    vector = torch.nn.utils.parameters_to_vector(pair.parameters()).clone()
    torch.nn.utils.vector_to_parameters(vector, pair.parameters())


def _turned(pair):
    """The same numbers in another order in memory."""
    for parameter in pair.parameters():
        parameter.data = parameter.data.mT.contiguous().mT if parameter.dim() == 2 else parameter.data.clone()


def _new_buffers(pair):
    norm = pair.encoder.network.layers[1]
    norm.running_mean, norm.running_var = norm.running_mean.clone(), norm.running_var.clone()


def _nothing(pair):
    pass


@pytest.mark.parametrize("compile", [False, "auto"])
@pytest.mark.parametrize(
    ("change", "as_by"),
    [
        (_clip_data, _clip_in_place),
        (_from_one_vector, _nothing),
        (_turned, _nothing),
        (_new_buffers, _nothing),
    ],
    ids=["clip", "vector", "turned", "buffers"],
)
def test_steps_go_on_from_values_that_a_callback_assigned(change, as_by, compile, monkeypatch):
    """A graph of steps has to see parameters and buffers that were given other memory."""
    monkeypatch.setattr(traced, "_TRACING_PAYS", 0)

    def fit(changed):
        vae = small_vae()
        layers = list(vae.encoder.network.layers)
        vae.encoder.network.layers = torch.nn.Sequential(layers[0], torch.nn.BatchNorm1d(8), *layers[1:])

        def callback(record, pair):
            if record["epoch"] in (2, 5):
                changed(pair)

        options = {"callbacks": [callback], "compile": compile, "lr": 0.01}
        history = pv.fit(vae, binary_rows(), epochs=8, batch_size=16, **options)
        assert history.steps == ("eager" if compile is False else "traced")
        return vae, history

    (vae, history), (expected, past) = fit(change), fit(as_by)
    torch.testing.assert_close(parameters(vae), parameters(expected), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(history.frame["elbo"], past.frame["elbo"], rtol=1e-4)
    buffers = zip(vae.buffers(), expected.buffers(), strict=True)
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in buffers)


def test_a_callback_cannot_change_shapes():
    def callback(record, pair):
        weight = pair.encoder.network.layers[0].weight
        weight.data = weight.data[:3]
        return record["epoch"] == 2

    vae = small_vae()
    with pytest.raises(
        ValueError,
        match=r"^callbacks: expected .* keep their shape .*\(8, 6\).*, got \(3, 6\).*fit again",
    ):
        pv.fit(vae, binary_rows(), epochs=3, callbacks=[callback])


def _remove_parametrisation(pair):
    parametrize.remove_parametrizations(pair.encoder.network.layers[0], "weight")


def _narrow_network(pair):
    pair.encoder.network.layers[0] = torch.nn.Linear(6, 3)


def _add_buffer(pair):
    pair.encoder.network.register_buffer("more", torch.zeros(2))


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(
    ("change", "came"),
    [
        (
            _remove_parametrisation,
            r"3 removed, first 'encoder\.network\.layers\.0\.param.*; 1 added, first 'enc.*\.weight'",
        ),
        (_narrow_network, r"3 removed, .*; 1 added, .*\.weight'; 1 reshaped, first 'enc.*\.bias'"),
        (_add_buffer, r"1 added, first 'encoder\.network\.more'"),
    ],
)
def test_a_callback_cannot_change_names(change, came, last, tmp_path):
    """Best weights are restored by name, after the last epoch, too."""

    def callback(record, pair):
        if record["epoch"] == 3:
            change(pair)

    vae = small_vae()
    parametrizations.spectral_norm(vae.encoder.network.layers[0])
    if change is _narrow_network and not last:
        came = r"\d+ that fit does not train, first 'encoder"
    with pytest.raises(ValueError, match=rf"^callbacks: expected .*, got {came}.*fit again\.$"):
        pv.fit(
            vae,
            binary_rows(),
            epochs=3 if last else 5,
            callbacks=[callback],
            patience=9,
            validation=binary_rows()[:9],
            checkpoint=tmp_path / "run",
        )
    assert not (tmp_path / "run" / "best.safetensors").exists()


def test_a_callback_may_freeze_parameters():
    vae, x, found = small_vae(), binary_rows(), []

    def callback(record, pair):
        pair.likelihood.requires_grad_(record["epoch"] == 4)
        found.append(parameters(pair.likelihood))

    pv.fit(vae, x, epochs=6, callbacks=[callback])
    assert same(found[0], found[3])
    assert not same(found[3], found[4])
    assert same(found[4], parameters(vae.likelihood))


def test_same_seed_same_fit_whatever_ran_before():
    x = binary_rows()
    fits = []
    for before in (1, 77):
        vae = small_vae()
        torch.randn(before)
        state = torch.random.get_rng_state()
        pv.fit(vae, x, epochs=3, batch_size=16, seed=5)
        assert torch.equal(torch.random.get_rng_state(), state)
        fits.append(parameters(vae))
    other = small_vae()
    pv.fit(other, x, epochs=3, batch_size=16, seed=6)
    assert same(*fits)
    assert not same(fits[0], parameters(other))


def test_two_vaes_train_interleaved_as_if_alone():
    x = binary_rows()
    alone = small_vae(1)
    pv.fit(alone, x, epochs=2)
    first, second = small_vae(0), small_vae(1)
    pv.fit(first, x, epochs=1)
    pv.fit(second, x, epochs=2)
    assert same(parameters(alone), parameters(second))
    assert len(pyro.get_param_store()) == 0


@pytest.mark.parametrize(
    "optimizer",
    [
        torch.optim.Adam,
        torch.optim.SGD,
        torch.optim.RMSprop,
        functools.partial(torch.optim.AdamW, weight_decay=0.1),
        lambda params, lr: torch.optim.Adam(
            [{"params": params[:2]}, {"params": params[2:], "lr": lr / 10}], lr=lr
        ),
    ],
)
def test_any_torch_optimizer(optimizer):
    vae, x = small_vae(), binary_rows()
    before = parameters(vae)
    pv.fit(vae, x, epochs=2, optimizer=optimizer)
    assert not same(before, parameters(vae))


#: Weights of 5 columns and 2 latents, by how their numbers lie in memory.
LAYOUTS = {
    "contiguous": lambda draw: draw(5, 2),
    "transposed": lambda draw: draw(2, 5).T,
    "first columns": lambda draw: draw(5, 4)[:, :2],
    "every other row": lambda draw: draw(10, 2)[::2],
    "every other column, transposed": lambda draw: draw(4, 10).T[::2, 1::2],
}


class Laid(torch.nn.Module):
    """A pair in float64, whose traced gradients have other strides than its parameters."""

    def __init__(self, layout, layout_of_slopes=None):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        draw = functools.partial(torch.randn, generator=generator, dtype=torch.float64)
        self.weight = torch.nn.Parameter(LAYOUTS[layout](draw))
        self.slopes = torch.nn.Parameter(LAYOUTS[layout_of_slopes or layout](draw) * 0.1)
        self.shift = torch.nn.Parameter(draw(3))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
            loc = torch.einsum("...k,dk->...d", z, self.weight) + self.shift.sum()
            pyro.sample("x", dist.Normal(loc, 0.5).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            loc = torch.einsum("...d,dk->...k", x, self.slopes)
            pyro.sample("z", dist.Normal(loc, 0.5).to_event(1))

    def fitted(self, **options):
        """The parameters after a fit, and how its steps ran."""
        x = torch.randn(40, 5, generator=torch.Generator().manual_seed(1)).double()
        pair = pv.LatentVariableModel(self.model, self.guide)
        history = pv.fit(pair, x, **({"epochs": 8, "batch_size": 10, "lr": 0.01} | options))
        return parameters(self), history.steps


@pytest.mark.parametrize("steps", ["eager", "traced", "compiled"])
@pytest.mark.parametrize("layout", [*LAYOUTS, "transposed, SGD"])
def test_steps_do_not_depend_on_the_order_of_numbers_in_memory(layout, steps, monkeypatch, request):
    """torch's fused updates pair numbers by their order in memory: parameters, gradients and moments."""
    layout, of_sgd, _ = layout.partition(", SGD")
    optimizer = functools.partial(torch.optim.SGD, momentum=0.9) if of_sgd else torch.optim.Adam
    expected, _ = Laid(layout).fitted(compile=False, optimizer=functools.partial(optimizer, fused=False))
    monkeypatch.setattr(traced, "_TRACING_PAYS", 0)
    if steps == "compiled":
        request.getfixturevalue("inside")
    compile = {"eager": False, "traced": "auto", "compiled": True}[steps]
    found, how = Laid(layout).fitted(compile=compile, optimizer=optimizer)
    assert how == steps
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("kind", [random, np.random], ids=["random", "numpy.random"])
def test_random_numbers_of_python_are_drawn_at_every_step(kind, monkeypatch):
    """A part of the model is left out in one of ten steps. A trace would hold the choice of its first call."""
    monkeypatch.setattr(traced, "_TRACING_PAYS", 0)

    class Skipping(Laid):
        def model(self, x):
            if self.training and kind.random() < 0.1:
                with pyro.plate("data", len(x)):
                    z = pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
                    pyro.sample("x", dist.Normal(z @ self.weight.T, 0.5).to_event(1), obs=x)
            else:
                super().model(x)

    def fitted(compile):
        kind.seed(0)
        found, steps = Skipping("contiguous").fitted(compile=compile)
        return found, steps, kind.random()

    (expected, _, number), (found, steps, same_number) = fitted(False), fitted("auto")
    assert steps.startswith(f"eager: it, or another thread, draws random numbers from {kind.__name__}, ")
    assert same(found, expected)
    assert number == same_number


@pytest.mark.parametrize(
    ("batch_size", "reason"),
    [(50, "the optimizer's first step is eager"), (10, "it ended before a step of a traced call")],
)
def test_a_fit_whose_steps_were_all_eager_says_so(batch_size, reason, inside, tmp_path):
    """A compiled call takes an epoch's five steps; the first epoch makes the optimizer's moments."""
    options = {"batch_size": batch_size, "compile": True, "checkpoint": tmp_path}
    steps = pv.fit(small_vae(), binary_rows(), epochs=1, **options).steps
    assert steps.startswith(f"eager: {reason}")
    assert pv.fit(small_vae(), binary_rows(), epochs=1, **options).steps == steps  # which is finished
    assert pv.fit(small_vae(), binary_rows(), epochs=2, **options | {"checkpoint": None}).steps == "compiled"


def test_a_fit_whose_optimizer_changes_says_that_its_steps_were_eager(inside):
    def change(record, pair):
        optimizers[0].param_groups[0]["weight_decay"] += 0.1

    optimizers = []

    def adam(parameters, lr, **options):
        optimizers.append(torch.optim.Adam(parameters, lr=lr))
        return optimizers[0]

    history = pv.fit(
        small_vae(), binary_rows(), epochs=3, batch_size=10, compile=True, optimizer=adam, callbacks=[change]
    )
    assert history.steps == "eager: options of the optimizer have changed since the trace"


@pytest.mark.slow
def test_compiled_steps_do_not_depend_on_the_order_of_numbers_in_memory():
    """Calls of one step, which compile in a quarter of the time of four."""
    layouts, unfused = ("transposed", "first columns"), functools.partial(torch.optim.Adam, fused=False)
    expected, _ = Laid(*layouts).fitted(compile=False, optimizer=unfused, batch_size=40)
    found, how = Laid(*layouts).fitted(compile=True, batch_size=40)
    assert how == "compiled"
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


def test_a_fused_update_changes_the_parameters_alone():
    """The columns beside a parameter, in the same memory, stay as they were."""
    pair = Laid("contiguous")
    whole = torch.ones(5, 4, dtype=torch.float64)
    pair.weight = torch.nn.Parameter(whole[:, :2])
    pair.fitted(epochs=1, compile=False)
    assert bool((whole[:, :2] != 1).all())
    assert bool((whole[:, 2:] == 1).all())
    with pytest.raises(
        ValueError, match=r"^optimizer: expected fused=False.*strides \(4, 1\)\. Leave fused out"
    ):
        pair.fitted(optimizer=functools.partial(torch.optim.Adam, fused=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_parameters_of_sixteen_bits_take_the_steps_of_torchs_plain_sgd(dtype):
    """torch's fused SGD leaves 16 or more of them as they are. A step of 1 against a gradient of −1 or 0 is exact."""

    class Half(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.loc = torch.nn.Parameter(torch.zeros(()))
            self.shift = torch.nn.Parameter(torch.zeros(16, dtype=dtype))

        def model(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(self.shift.sum().to(x.dtype), 1.0), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(self.loc.expand(len(x)), 1.0))

    def fitted(**options):
        held = Half()
        pair = pv.LatentVariableModel(held.model, held.guide)
        optimizer = functools.partial(torch.optim.SGD, **options)
        pv.fit(pair, torch.ones(4), epochs=1, batch_size=4, lr=1.0, optimizer=optimizer, compile=False)
        return held.shift.tolist()

    assert fitted() == [1.0] * 16
    with pytest.raises(ValueError, match=rf"^optimizer: expected fused=False.* got fused=True and .*{dtype}"):
        fitted(fused=True)


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.SGD, torch.optim.RMSprop])
@pytest.mark.parametrize("compile", [False, True])
def test_parameters_that_share_memory_with_themselves_are_refused(compile, optimizer):
    pair = Laid("contiguous")
    pair.weight = torch.nn.Parameter(torch.ones(1, 2, dtype=torch.float64).expand(5, 2))
    with pytest.raises(
        ValueError, match=r"^pair: expected .* of their own, got .*strides \(0, 1\).* Clone it"
    ):
        pair.fitted(compile=compile, optimizer=optimizer)


def test_a_parameter_that_gets_another_layout_within_a_step_is_updated_right():
    """A model that assigns its weights, as to keep them orthonormal, may assign transposed ones."""

    class Assigned(Laid):
        def model(self, x):
            weight = self.weight.data
            self.weight.data = weight.mT.contiguous().mT if weight.is_contiguous() else weight.contiguous()
            super().model(x)

    unfused = functools.partial(torch.optim.Adam, fused=False)
    expected, _ = Laid("contiguous").fitted(compile=False, optimizer=unfused)
    found, _ = Assigned("contiguous").fitted(compile=False)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


class Halving(torch.optim.SGD):
    """Halves its learning rate after every step."""

    def step(self, closure=None):
        super().step(closure)
        self.param_groups[0]["lr"] /= 2


def halving(parameters, lr):
    """The same by a scheduler of torch that a hook steps."""
    optimizer = torch.optim.SGD(parameters, lr=lr)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    optimizer.register_step_post_hook(lambda *_: schedule.step())
    return optimizer


@pytest.mark.parametrize("optimizer", [Halving, halving])
@pytest.mark.parametrize("how", ["eager", "traced", "compiled"])
def test_a_learning_rate_may_change_within_an_epoch(optimizer, how, monkeypatch, request):
    """Every gradient is −1, so that a location far below the rows moves by 1 + 1/2 + … + 1/128 in eight steps."""

    class Far(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.loc = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))

        def model(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
                pyro.sample("x", dist.Laplace(self.loc, 1.0), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))

    monkeypatch.setattr(traced, "_TRACING_PAYS", 0)
    if how == "compiled":
        request.getfixturevalue("inside")
    held = Far()
    history = pv.fit(
        pv.LatentVariableModel(held.model, held.guide),
        torch.full((16,), 64.0, dtype=torch.float64),
        epochs=2,
        batch_size=4,
        lr=1.0,
        optimizer=optimizer,
        compile={"eager": False, "traced": "auto", "compiled": True}[how],
    )
    assert history.steps == how
    assert list(history.frame["lr"]) == [1.0, 1 / 16]
    assert held.loc.item() == 2 - 1 / 128


def test_scheduler_moves_the_learning_rate():
    step = functools.partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.1)
    history = pv.fit(small_vae(), binary_rows(), epochs=3, lr=1e-2, scheduler=step)
    np.testing.assert_allclose(history.frame["lr"], [1e-2, 1e-3, 1e-4])
    plateau = functools.partial(
        torch.optim.lr_scheduler.ReduceLROnPlateau, patience=0, factor=0.5, threshold=1e9
    )
    history = pv.fit(small_vae(), binary_rows(), epochs=4, lr=1e-2, scheduler=plateau)
    assert history.frame["lr"].iloc[-1] < 1e-2


def test_clipping_bounds_the_step():
    """Plain SGD with lr 1 moves by the gradient's norm: never more than clip_norm."""
    vae, x = small_vae(), binary_rows()
    before = torch.cat([p.flatten() for p in parameters(vae)])
    pv.fit(vae, x, epochs=1, batch_size=50, lr=1.0, optimizer=torch.optim.SGD, clip_norm=1e-3)
    moved = torch.cat([p.flatten() for p in parameters(vae)]) - before
    assert float(moved.norm()) == pytest.approx(1e-3, rel=1e-3)


def test_learning_rate_means_the_same_for_any_number_of_rows():
    """The gradient is in nats a row: the same rows twice over give the same step."""
    moves = []
    for rows in (binary_rows(), binary_rows().repeat(2, 1)):
        vae = pv.VAE(pv.priors.StandardNormal(2), small_vae().likelihood, small_vae().encoder)
        before = parameters(vae)
        pv.fit(
            vae,
            rows,
            epochs=1,
            batch_size=200,
            lr=1e-3,
            optimizer=torch.optim.SGD,
            loss=TraceMeanField_ELBO(num_particles=50),
        )
        moves.append(torch.cat([(a - b).flatten() for a, b in zip(parameters(vae), before, strict=True)]))
    assert float((moves[0] - moves[1]).norm()) < 0.1 * float(moves[0].norm())


def test_warm_up_rises_to_one():
    frame = pv.fit(small_vae(), binary_rows(), epochs=5, batch_size=16, kl_warmup=4).frame
    np.testing.assert_allclose(frame["kl_weight"], [0.25, 0.5, 0.75, 1.0, 1.0])


@pytest.mark.parametrize(("batch_size", "first"), [(16, 3), (50, 0)])
def test_the_loss_of_the_columns_holds_after_the_warm_up_or_with_one_step_an_epoch(batch_size, first):
    frame = pv.fit(small_vae(), binary_rows(), epochs=6, batch_size=batch_size, kl_warmup=3).frame
    apart = (frame["loss"] - (frame["kl_weight"] * frame["rate"] - frame["reconstruction"])).abs()
    assert apart[first:].max() < 1e-5
    assert (apart.max() > 1e-3) == (batch_size == 16)  # in the warm-up, of several steps


def test_early_stopping_waits_for_the_warm_up_and_restores_the_best():
    x = binary_rows(40)
    history = pv.fit(
        small_vae(),
        x,
        epochs=400,
        batch_size=10,
        lr=5e-2,
        kl_warmup=10,
        validation=binary_rows(40, seed=2),
        patience=3,
    )
    assert history.stopped == "patience"
    assert history.best_epoch >= 10
    assert len(history) == history.best_epoch + 3
    vae = small_vae()
    again = pv.fit(
        vae,
        x,
        epochs=400,
        batch_size=10,
        lr=5e-2,
        kl_warmup=10,
        validation=binary_rows(40, seed=2),
        patience=3,
    )
    best = again.frame["validation_elbo"].iloc[again.best_epoch - 1]
    assert best == again.frame["validation_elbo"].iloc[9:].max()
    assert pv.elbo(vae, binary_rows(40, seed=2), num_samples=1).mean == pytest.approx(best, abs=1e-6)


def test_ctrl_c_keeps_what_was_learned():
    vae, x = small_vae(), binary_rows()
    calls = 0

    def interrupting(optimizer):
        class Stop(torch.optim.lr_scheduler.ConstantLR):
            def step(self, *args, **kwargs):
                nonlocal calls
                calls += 1
                if calls == 4:
                    raise KeyboardInterrupt
                super().step(*args, **kwargs)

        return Stop(optimizer, factor=1.0)

    before = parameters(vae)
    history = pv.fit(vae, x, epochs=50, scheduler=interrupting)
    assert history.stopped == "interrupted"
    assert len(history.frame) == 3
    assert not same(before, parameters(vae))


def test_a_step_that_is_not_finite_leaves_the_parameters():
    vae, x = small_vae(likelihood="gaussian"), torch.randn(40, 6)
    x[7] = 1e30
    before = parameters(vae)
    with pytest.raises(
        FloatingPointError, match=r"x: expected a finite loss and gradient, got .* epoch 1, step 1, rows"
    ):
        pv.fit(vae, x, epochs=1, batch_size=40)
    assert same(before, parameters(vae))


def test_evaluation_never_steps():
    vae, x = small_vae(), binary_rows()
    pv.fit(vae, x, epochs=1)
    before = parameters(vae)
    pv.log_evidence(vae, x, num_samples=10, check=False)
    pv.elbo(vae, x)
    vae.sample(3)
    vae.reconstruct(x)
    assert same(before, parameters(vae))
    assert all(p.grad is None for p in vae.parameters())
    assert vae.training


def test_dropout_is_on_in_training_and_off_in_evaluation():
    network = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 6))
    vae = pv.VAE(pv.priors.StandardNormal(2), pv.likelihoods.Bernoulli(network), small_vae().encoder)
    seen = []
    network[1].register_forward_hook(lambda module, *_: seen.append(module.training))
    pv.fit(vae, binary_rows(), epochs=1)
    assert set(seen) == {True}
    seen.clear()
    pv.log_evidence(vae, binary_rows(), num_samples=5, check=False)
    assert set(seen) == {False}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"loss": RenyiELBO()}, ValueError, "loss: expected a sum over rows, because minibatches"),
        ({"loss": RenyiELBO(), "batch_size": 50, "kl_warmup": 1}, ValueError, "because a KL weight scale"),
        ({"loss": JitTrace_ELBO()}, ValueError, "loss: expected an objective that reads its scale"),
        ({"loss": Trace_ELBO}, TypeError, "loss: expected a pyro.infer.ELBO"),
        ({"loss": Trace_ELBO(), "num_particles": 3}, ValueError, r"Trace_ELBO\(num_particles=3\)"),
        ({"kl_warmup": 3, "epochs": 3}, ValueError, "kl_warmup: expected fewer epochs than the fit has"),
        ({"patience": 3}, ValueError, "validation: expected held-out rows"),
        ({"epochs": 0}, ValueError, "epochs: expected a whole number ≥ 1, got 0"),
        ({"batch_size": 2.0}, TypeError, "batch_size: expected a whole number"),
        ({"lr": -1.0}, ValueError, "lr: expected a finite number > 0"),
        ({"clip_norm": 0.0}, ValueError, "clip_norm: expected a finite number > 0"),
        ({"optimizer": torch.optim.LBFGS}, TypeError, "optimizer: expected an optimizer that takes a step"),
        ({"optimizer": torch.optim.SparseAdam}, TypeError, "optimizer: .*got SparseAdam, which takes sparse"),
        (
            {"optimizer": pyro.optim.Adam({"lr": 1e-3})},
            TypeError,
            "optimizer: expected a torch optimizer's class",
        ),
        ({"validation": torch.full((3, 6), math.inf)}, ValueError, "validation: expected finite numbers"),
        ({"validation": torch.full((3, 6), 0.5)}, ValueError, "ContinuousBernoulli"),
        ({"validation": torch.ones(3, 7)}, ValueError, r"validation: expected rows of width 6"),
        ({"validation": torch.ones(3)}, ValueError, "validation: expected"),
        (
            {"optimizer": functools.partial(torch.optim.SGD, lr=0.5)},
            ValueError,
            "optimizer: expected lr to be passed once",
        ),
        ({"optimizer": lambda p: torch.optim.Adam(p)}, TypeError, "optimizer: expected a callable of"),
        ({"scheduler": "cosine"}, TypeError, "scheduler: expected a callable"),
        ({"scheduler": lambda optimizer: None}, TypeError, "scheduler: expected a callable"),
        ({"loss": ReweightedWakeSleep()}, ValueError, "loss: expected Trace_ELBO"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_touched(options, error, message):
    vae, x = small_vae(), binary_rows()
    before = parameters(vae)
    with pytest.raises(error, match=message):
        pv.fit(vae, x, **{"epochs": 5, "batch_size": 16, **options})
    assert same(before, parameters(vae))


@pytest.mark.parametrize("scale", ["per_dimension", "decoder"])
def test_constant_columns_are_refused_under_a_learned_scale(scale):
    x = torch.randn(200, 6)
    x[:, 2] = 1.5
    x[:199, 4] = 0.0
    vae = small_vae(likelihood="gaussian", scale=scale)
    with pytest.raises(
        ValueError, match=r"x: expected columns that vary.*2 column\(s\).*first column 2 \(value 1.5\)"
    ):
        pv.fit(vae, x, epochs=1)
    pv.fit(small_vae(likelihood="gaussian", scale="shared"), x, epochs=1)


def test_a_vanishing_scale_is_an_error():
    x = LinearGaussian.random(2, 6, dtype=torch.float32).sample(50)
    vae = small_vae(likelihood="gaussian", scale="shared")

    class RunOff(torch.optim.lr_scheduler.ConstantLR):
        def step(self, *args, **kwargs):
            super().step(*args, **kwargs)
            with torch.no_grad():
                vae.likelihood.log_scale.fill_(-20.0)

    with pytest.raises(
        ValueError, match=r"x: expected a density that stays bounded, got a learned scale of .* in column 0"
    ):
        pv.fit(vae, x, epochs=3, lr=1e-9, scheduler=functools.partial(RunOff, factor=1.0))


def test_columns_of_very_different_size_are_no_vanishing_scale():
    """The scale starts at 1, a millionth of the first column's spread, and is the others' own."""
    x = torch.randn(50, 6) * torch.tensor([1e6, 1.0, 1.0, 1.0, 1.0, 1.0])
    vae = small_vae(likelihood="gaussian", scale="shared")
    with torch.no_grad():
        for parameter in vae.encoder.network.layers[-1].parameters():
            parameter.zero_()
    pv.fit(vae, x, epochs=1, lr=1e-12)


def test_shared_scale_refuses_rows_that_are_all_the_same():
    with pytest.raises(ValueError, match="x: expected columns that vary"):
        pv.fit(small_vae(likelihood="gaussian", scale="shared"), torch.ones(50, 6), epochs=1)


def guides_of_a_module():
    """Ways to hand over a module's method that hide the module."""
    vae = small_vae()
    return {
        "partial": (vae, functools.partial(vae.guide), True),
        "lambda": (vae, lambda x: vae.encoder and vae.guide(x), True),
    }


@pytest.mark.parametrize("name", ["partial", "lambda"])
def test_a_wrapped_guide_still_trains(name):
    vae, guide, _ = guides_of_a_module()[name]
    before = parameters(vae)
    pv.fit(pv.LatentVariableModel(vae.model, guide), binary_rows(), epochs=1)
    assert not any(torch.equal(a, b) for a, b in zip(before, parameters(vae), strict=True))


@pytest.mark.parametrize(
    "loss",
    [
        Trace_ELBO(),
        TraceMeanField_ELBO(),
        TraceGraph_ELBO(),
        RenyiELBO(num_particles=2),
        RenyiELBO(num_particles=2, vectorize_particles=True),
    ],
    ids=["Trace", "TraceMeanField", "TraceGraph", "Renyi", "Renyi vectorised"],
)
def test_parameters_out_of_sight_are_refused(loss):
    decoder = [torch.nn.Linear(1, 6)]

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Bernoulli(logits=decoder[0](z[..., None])).to_event(1), obs=x)

    def guide(x):
        loc = pyro.param("loc", torch.zeros(()))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0))

    with pytest.raises(
        ValueError, match=r"pair: expected parameters that belong to the pair.*shape \(6, 1\)|\(6,\)"
    ):
        pv.fit(pv.LatentVariableModel(model, guide), binary_rows(), epochs=1, loss=loss)
    assert decoder[0].weight.grad is None
    decoder[0].requires_grad_(False)
    pv.fit(pv.LatentVariableModel(model, guide), binary_rows(), epochs=1, loss=loss)


class Differentiating(RenyiELBO):
    """Calls torch's function instead of the tensor's method, and then reads gradients."""

    def __init__(self, weight):
        super().__init__(num_particles=2)
        self.weight = weight

    def loss_and_grads(self, model, guide, *args, **kwargs):
        loss = Trace_ELBO().differentiable_loss(model, guide, *args, **kwargs)
        torch.autograd.backward(loss)
        assert self.weight.grad.norm() > 0
        return loss.item()


class Reading(RenyiELBO):
    """Reads gradients that Pyro computed."""

    def __init__(self, weight):
        super().__init__(num_particles=2)
        self.weight = weight

    def loss_and_grads(self, *args, **kwargs):
        loss = super().loss_and_grads(*args, **kwargs)
        assert self.weight.grad.norm() > 0
        return loss


@pytest.mark.parametrize("kind", [Differentiating, Reading])
@pytest.mark.parametrize("owned", [False, True])
def test_gradients_of_the_search_for_leaves_are_taken_back(kind, owned):
    """They are there for the objective; those from before are as they were."""
    decoder = torch.nn.Linear(2, 6)

    class Held(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.held = torch.nn.Linear(6, 2), decoder if owned else [decoder]

        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(self.encoder(x), 0.5).to_event(1))

    held, objective = Held(), kind(decoder.weight)
    pair = pv.LatentVariableModel(held.model, held.guide)
    grad = decoder.weight.grad = torch.ones(6, 2)
    if owned:
        pair_room.check_every_leaf(pair, objective, {"x": binary_rows(4)}, 0)
    else:
        with pytest.raises(ValueError, match="pair: expected parameters that belong to the pair"):
            pair_room.check_every_leaf(pair, objective, {"x": binary_rows(4)}, 0)
    assert decoder.weight.grad is grad
    assert bool((grad == 1).all())
    assert decoder.bias.grad is None
    assert held.encoder.weight.grad is None
    if owned:
        pv.fit(pair, binary_rows(), epochs=1, loss=objective)


@pytest.mark.parametrize(("num_rows", "of_guide"), [(50, False), (50, True), (51, False), (51, True)])
def test_averages_by_row_are_refused_for_batches_of_several_sizes(num_rows, of_guide):
    """Pyro would raise in the step whose batch is the first of another size."""
    held = Averaging(of_guide)
    pair, x = pv.LatentVariableModel(held.model, held.guide), binary_rows(num_rows)
    before = parameters(pair)
    expected = contextlib.nullcontext()
    if of_guide and num_rows == 51:
        expected = pytest.raises(
            ValueError, match=r"batch_size: expected one that gives.*got batches of 25, 26 rows"
        )
    with expected:
        pv.fit(pair, x, epochs=2, batch_size=25, loss=TraceGraph_ELBO(), compile=False)
    assert same(before, parameters(pair)) == (of_guide and num_rows == 51)


@pytest.mark.parametrize("kind", [True, False])
def test_a_network_and_an_average_may_be_one_baseline(kind):
    """Pyro stores the average as a parameter that the baseline's own loss reaches. The first loss is Pyro's own."""

    class Held(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.decoder, self.encoder = torch.nn.Linear(3, 6), torch.nn.Linear(6, 3)
            self.baseline = torch.nn.Sequential(torch.nn.Linear(6, 1), torch.nn.Flatten(0))

        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Bernoulli(torch.full((3,), 0.4)).to_event(1))
                pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

        def guide(self, x):
            network = {"nn_baseline": self.baseline, "nn_baseline_input": x}
            infer = {"baseline": network | {"use_decaying_avg_baseline": kind}}
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Bernoulli(logits=self.encoder(x)).to_event(1), infer=infer)

    torch.manual_seed(0)
    held, x = Held(), binary_rows(48)
    pair, rows = pv.LatentVariableModel(held.model, held.guide), rows_of(x).minibatches(48, 0, 0)[0][1]
    with noise.seeded(noise.derive(0, noise.Stream.STEP, 0)):
        expected = TraceGraph_ELBO().loss(held.model, held.guide, x[rows]) / 48
    pyro.clear_param_store()
    before = parameters(held.baseline)
    history = pv.fit(pair, x, epochs=3, batch_size=48, loss=TraceGraph_ELBO(), compile=False)
    assert history.frame["loss"][0] == pytest.approx(expected, rel=1e-6)
    assert not any(torch.equal(a, b) for a, b in zip(before, parameters(held.baseline), strict=True))


def test_what_torch_and_pyro_refuse_late_is_refused_in_words():
    class Discrete(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.decoder, self.encoder = torch.nn.Linear(3, 6), torch.nn.Linear(6, 3)
            self.labels = torch.nn.Embedding(4, 3, sparse=True)

        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Bernoulli(torch.full((3,), 0.4)).to_event(1))
                pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

        def guide(self, x):
            logits = self.encoder(x) + self.labels(x.sum(-1).long().clamp(max=3))
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Bernoulli(logits=logits).to_event(1))

    held = Discrete()
    pair = pv.LatentVariableModel(held.model, held.guide)
    with pytest.raises(ValueError, match=r"pair: expected embeddings with dense gradients.*sparse=False"):
        pv.fit(pair, binary_rows(), epochs=1)
    held.labels.requires_grad_(False)
    with pytest.raises(ValueError, match=r"loss: .*got TraceMeanField_ELBO\. Pass Trace_ELBO"):
        pv.fit(pair, binary_rows(), epochs=1, loss=TraceMeanField_ELBO())
    assert len(pv.fit(pair, binary_rows(), epochs=1)) == 1
    held.encoder = torch.nn.LazyLinear(3)
    for call in (pv.fit, pv.elbo):
        with pytest.raises(ValueError, match=r"encoder\.weight of a lazy module that has not run yet"):
            call(pair, binary_rows())


class OwnRenyi(RenyiELBO):
    """Of a user, whose Python values checks leave as they were."""


@pytest.mark.parametrize("kind", [RenyiELBO, OwnRenyi, TraceMeanField_ELBO, TraceGraph_ELBO, TraceEnum_ELBO])
def test_plates_are_counted_before_the_noise_of_the_first_step(kind):
    """A loss object that has counted them before gives the same numbers."""
    loss = kind(num_particles=3, vectorize_particles=True, strict_enumeration_warning=False)
    frames = []
    for _ in range(2):
        vae = small_vae()
        frames.append(pv.fit(vae, binary_rows(), epochs=2, batch_size=50, loss=loss, compile=False).frame)
    assert frames[0]["loss"].equals(frames[1]["loss"])
    assert loss.max_plate_nesting == 2  # the rows, and the particles left of them


def test_renyi_needs_one_plate():
    """With z and x in two plates its logarithm is taken of the wrong sum (PITFALLS 3)."""

    def model(x):
        loc = pyro.param("loc", torch.zeros(()))
        with pyro.plate("z_rows", len(x)):
            z = pyro.sample("z", dist.Normal(loc, 1.0))
        with pyro.plate("x_rows", len(x)):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("z_rows", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 1.0))

    x = torch.randn(20)
    pv.fit(pv.LatentVariableModel(model, guide), x, epochs=1)
    with pytest.raises(ValueError, match="loss: expected one plate over the rows"):
        pv.fit(pv.LatentVariableModel(model, guide), x, epochs=1, loss=RenyiELBO())


def test_a_pair_in_eval_mode_is_trained_in_train_mode_and_put_back():
    network = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 6))
    vae = pv.VAE(pv.priors.StandardNormal(2), pv.likelihoods.Bernoulli(network), small_vae().encoder).eval()
    seen = []
    network[1].register_forward_hook(lambda module, *_: seen.append(module.training))
    with torch.no_grad():
        pv.fit(vae, binary_rows(), epochs=1)
    assert True in seen
    assert not any(module.training for module in vae.modules())


def test_an_optimizer_of_some_parameters_leaves_the_rest():
    vae = small_vae()
    decoder = parameters(vae.likelihood)
    pv.fit(
        vae,
        binary_rows(),
        epochs=2,
        optimizer=lambda params, lr: torch.optim.Adam(vae.encoder.parameters(), lr=lr),
    )
    assert same(decoder, parameters(vae.likelihood))
    assert all(p.grad is None for p in vae.parameters())


def test_interrupted_in_the_first_epoch_the_frame_has_its_columns():
    assert {"epoch", "elbo", "rate", "reconstruction"} <= {*pv.History().frame}


def test_an_error_of_the_pairs_own_keeps_its_words():
    class Fussy(torch.nn.Module):
        def forward(self, z):
            if self.training:
                raise ValueError("no Mondays")
            return torch.zeros(*z.shape[:-1], 6) + 0 * z.sum(-1, keepdim=True)

    vae = pv.VAE(pv.priors.StandardNormal(2), pv.likelihoods.Bernoulli(Fussy()), small_vae().encoder)
    with pytest.raises(ValueError, match="no Mondays"):
        pv.fit(vae, binary_rows(), epochs=1)


def test_nothing_to_fit_is_refused():
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 1.0))

    with pytest.raises(ValueError, match="pair: expected parameters to fit, got none"):
        pv.fit(pv.LatentVariableModel(model, guide), torch.randn(5), epochs=1)


# ---------------------------------------------------------------------------------------------------------
# A loss or gradient that is not finite


def normalised():
    """A VAE with batch normalisation, whose running moments a step changes before its loss is known."""
    torch.manual_seed(0)
    return pv.VAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.Gaussian(pv.MLP(2, (4,), 6)),
        pv.encoders.DiagonalNormal(pv.MLP(6, (4,), 4, normalization="batch")),
    )


def rows_with_an_extreme(row=7):
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    x[row, 2] = 1e30
    return x


def test_what_is_not_finite_is_named_with_its_row_and_everything_stays_as_before():
    vae, x = normalised(), rows_with_an_extreme()
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    with pytest.raises(FloatingPointError) as raised:
        pv.fit(vae, x, epochs=1, batch_size=40)
    assert re.fullmatch(
        r"x: expected a finite loss and gradient, got .+ at epoch 1, step 1, rows [\d, ]+, …; likely cause: "
        r".+ in 1 of these rows, first row 7, whose largest entry is 1e\+30\. The parameters are as before .+",
        str(raised.value),
        re.S,
    )
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())


def test_a_parameter_that_was_nan_before_is_the_cause():
    vae, x = small_vae(), binary_rows()
    weight = vae.likelihood.network.layers[0].weight
    poisoned = iter(range(2))

    class Poisoned(torch.optim.SGD):
        """Its second step leaves a NaN, as an optimizer's own overflow does."""

        def step(self, closure=None):
            super().step(closure)
            if next(poisoned, 2) == 1:
                with torch.no_grad():
                    weight[0, 0] = math.nan

    with pytest.raises(FloatingPointError) as raised:
        pv.fit(vae, x, epochs=2, batch_size=10, optimizer=Poisoned)
    assert "epoch 1, step 3" in str(raised.value)
    assert "likely cause: parameter likelihood.network.layers.0.weight had 1 NaN or infinite entries" in str(
        raised.value
    )


def test_a_skipped_step_is_as_if_it_had_not_been(monkeypatch):
    """Counted; parameters, moments and buffers untouched; order and noise of the other steps unchanged."""
    x, seen = rows_with_an_extreme(), []
    monkeypatch.setattr(
        loop, "step", lambda state, batch, seed, *rest: take(state, batch, seed, *rest, seen=seen)
    )

    def take(state, batch, seed, *rest, seen, drop=False):
        extreme = bool((batch["x"] > 1e20).any())
        seen.append((seed, batch["x"].sum().item()))
        if drop and extreme:
            raise FloatingPointError("left out before anything runs")
        return whole(state, batch, seed, *rest)

    whole = training.step
    vae = normalised()
    history = pv.fit(vae, x, epochs=3, batch_size=8, on_nonfinite="skip")
    order, seen = seen, []
    monkeypatch.setattr(
        loop, "step", lambda state, batch, seed, *rest: take(state, batch, seed, *rest, seen=seen, drop=True)
    )
    left_out = normalised()
    same_history = pv.fit(left_out, x, epochs=3, batch_size=8, on_nonfinite="skip")
    assert seen == order
    assert len(seen) == 15
    assert history.frame["skipped"].tolist() == [1, 1, 1]
    assert history.frame["loss"].tolist() == same_history.frame["loss"].tolist()
    assert all(
        torch.equal(a, b)
        for a, b in zip(vae.state_dict().values(), left_out.state_dict().values(), strict=True)
    )
    assert repr(history).endswith("3 steps skipped)")


def test_the_loss_of_an_epoch_is_the_mean_of_the_steps_taken():
    vae, x = normalised(), rows_with_an_extreme()
    losses = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "step", lambda *arguments: losses.append(training.step(*arguments)) or losses[-1])
        history = pv.fit(vae, x, epochs=1, batch_size=8, on_nonfinite="skip")
    assert len(losses) == 4
    assert history.frame["loss"][0] == pytest.approx(sum(loss.total for loss in losses) / 4, rel=1e-12)


def test_nothing_skipped_is_the_fit_it_was():
    vae, other, x = small_vae(), small_vae(), binary_rows()
    history = pv.fit(vae, x, epochs=2)
    again = pv.fit(other, x, epochs=2, on_nonfinite="skip")
    assert same(parameters(vae), parameters(other))
    assert history.frame["skipped"].tolist() == [0, 0]
    assert history.frame["loss"].tolist() == again.frame["loss"].tolist()


def test_a_fit_that_can_only_skip_stops():
    x = rows_with_an_extreme()
    x[6:, 0] = 1e30  # in every minibatch, and not in the first rows, which are tried before anything
    with pytest.raises(FloatingPointError, match="epoch 2, step 5, the last of 10 such steps in a row"):
        pv.fit(normalised(), x, epochs=50, batch_size=8, on_nonfinite="skip")


@pytest.mark.filterwarnings("ignore:Encountered NaN")  # Pyro says so, too
@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
def test_skipping_under_python_o_is_the_same(likelihood):
    """Without torch's validation the loss itself comes out NaN."""
    x = rows_with_an_extreme() if likelihood == "gaussian" else binary_rows(40)
    fits = []
    for validate in (True, False):
        vae = small_vae(likelihood=likelihood)
        with pyro.validation_enabled(validate):
            fits.append((pv.fit(vae, x, epochs=2, batch_size=8, on_nonfinite="skip"), parameters(vae)))
    assert same(fits[0][1], fits[1][1])
    assert fits[0][0].frame["skipped"].tolist() == fits[1][0].frame["skipped"].tolist()


# ---------------------------------------------------------------------------------------------------------
# How steps are taken

X = binary_rows(90)


def long_and_short():
    """A pair, rows, and two numbers of epochs: so few steps that nothing is traced, and so many that it is."""
    torch.manual_seed(0)
    return pv.VAE.mlp(6, 2, hidden_dims=(4,)), X[:80], (1, 13)


def plan_of(**options):
    """A plan with the defaults of ``fit`` but for some arguments."""
    taken = {name: p.default for name, p in inspect.signature(pv.fit).parameters.items() if name in FIELDS}
    return Plan(**taken | {"kl_warmup": 0} | options)


FIELDS = {field.name for field in dataclasses.fields(Plan)}


def rows_of(x):
    return Rows([{"x": x}], lambda batch, _: (batch, Source(x, {}, None)), digests=False)


def test_how_steps_are_taken_follows_from_the_arguments():
    pair, x, (few, many) = long_and_short()
    assert pv.fit(pair, x, epochs=few, batch_size=1).steps == "eager"
    assert pv.fit(pair, x, epochs=many, batch_size=1).steps == "traced"
    state = State(pair, torch.optim.Adam(pair.parameters()), Trace_ELBO(), 8, None)
    rows = rows_of(x[:8])
    ways = {
        epochs: traced.choose(plan_of(epochs=epochs, batch_size=1), state, rows, Ranks())[1]
        for epochs in (125, 12_500)
    }
    assert ways == {125: "traced", 12_500: "compiled"}
    assert traced.choose(plan_of(compile=False, epochs=12_500), state, rows, Ranks())[1] == "eager"


@pytest.mark.parametrize(
    ("compile", "epochs", "taken"),
    [
        ("auto", 150, ["eager", "eager", "eager"]),
        ("auto", 550, ["traced", "traced", "eager"]),  # two batches of three rows each epoch, one of two
        ("auto", 1_100, ["traced", "traced", "traced"]),
        (True, 150, ["compiled", "compiled", "eager"]),
        (True, 1_100, ["compiled", "compiled", "traced"]),
        ("auto", 14_000, ["compiled", "compiled", "traced"]),
        ("auto", 30_000, ["compiled", "compiled", "compiled"]),
    ],
)
def test_each_size_of_batches_is_traced_and_compiled_where_that_pays(compile, epochs, taken, as_if_compiled):
    pair = pv.VAE.mlp(6, 2, hidden_dims=(4,))
    adagrad = torch.optim.Adagrad(pair.parameters())  # outside the graph, so that every call is one step
    state = State(pair, adagrad, Trace_ELBO(), 8, None)
    steps, _ = traced.choose(
        plan_of(compile=compile, epochs=epochs, batch_size=3), state, rows_of(X[:8]), Ranks()
    )
    ways = {None: "eager"}
    found = []
    for number in range(3):
        before = len(as_if_compiled)
        call, _ = (steps and steps.at(number)) or (None, 1)
        found.append(ways.setdefault(call, "compiled" if len(as_if_compiled) > before else "traced"))
    assert found == taken


def test_a_compiled_fit_is_the_eager_one_but_for_rounding():
    """With all that a fit can have: warm-up, clipping, a schedule, early stopping, a smaller last batch."""
    options = {
        "epochs": 6,
        "batch_size": 35,  # a call of two steps
        "kl_warmup": 2,
        "clip_norm": 0.5,
        "lr": 1e-2,
        "validation": X[60:].double(),
        "patience": 2,
        "scheduler": functools.partial(torch.optim.lr_scheduler.StepLR, step_size=2),
    }
    fits = {}
    for how in (False, True):
        torch.manual_seed(0)
        pair = pv.VAE.mlp(6, 2, hidden_dims=()).double()
        fits[how] = (pair, pv.fit(pair, X[:60].double(), compile=how, **options))
    (eager, one), (compiled, two) = fits.values()
    assert (one.steps, two.steps) == ("eager", "compiled")
    frames = [history.frame.drop(columns="seconds") for history in (one, two)]
    assert np.allclose(*frames, rtol=1e-9)
    for a, b in zip(eager.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def test_what_cannot_be_traced_runs_eagerly_and_says_why():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1).to_event(1))
            logits = pyro.param("w", torch.ones(6)) * z.sum(-1, keepdim=True)
            if float(logits.detach().abs().max()) > 1e6:
                logits = logits.clamp(-1e6, 1e6)
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, :2], 1).to_event(1))

    pair = pv.LatentVariableModel(model, guide)
    assert re.match(
        r"eager: model \(.*\) reads a tensor's value", pv.fit(pair, X[:80], epochs=13, batch_size=1).steps
    )
    before = parameters(pair)
    with pytest.raises(
        ValueError, match=r"compile: expected steps that can be traced and compiled, got model .* reads"
    ):
        pv.fit(pair, X[:8], epochs=1, compile=True)
    assert same(before, parameters(pair))


@pytest.mark.parametrize(
    ("optimizer", "scheduler", "steps"),
    [
        (
            torch.optim.Adam,
            functools.partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=9),
            "compiled",
        ),
        (
            functools.partial(torch.optim.SGD, momentum=0.9),
            functools.partial(torch.optim.lr_scheduler.CyclicLR, base_lr=1e-3, max_lr=0.1, step_size_up=2),
            "compiled",
        ),
    ],
)
def test_a_scheduler_may_move_the_momentum(optimizer, scheduler, steps, inside):
    options = {"epochs": 5, "batch_size": 16, "optimizer": optimizer, "scheduler": scheduler}
    fits = [(small_vae().double(), how) for how in (False, "auto")]
    histories = [pv.fit(vae, X.double(), compile=how, **options) for vae, how in fits]
    assert [history.steps for history in histories] == ["eager", steps]
    np.testing.assert_allclose(histories[0].frame["loss"], histories[1].frame["loss"], rtol=1e-10)
    for a, b in zip(*(parameters(vae) for vae, _ in fits), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


class _Unlike(torch.optim.lr_scheduler.ConstantLR):
    """After an epoch the optimizer is another one: it decays weights, or starts anew."""

    change: object = None

    def step(self, epoch=None):
        super().step(epoch)
        if self.last_epoch == 2:
            type(self).change(self.optimizer)


def _decay(optimizer):
    optimizer.param_groups[0]["weight_decay"] = 0.3


def _forget(optimizer):
    optimizer.state.clear()


KNOWN_TO_PYTHON = {"temperature": 1.0}


class Tempered(torch.nn.Module):
    """Logits over a temperature that no module and no tensor holds; in training perhaps without it."""

    def __init__(self, in_training):
        super().__init__()
        self.layer = torch.nn.Linear(2, 6, dtype=torch.float64)
        self.in_training = in_training

    def forward(self, z):
        tempered = self.in_training or not self.training
        return self.layer(z) / (KNOWN_TO_PYTHON["temperature"] if tempered else 1.0)


def cooling(epoch):
    KNOWN_TO_PYTHON["temperature"] = 0.8 ** max(0, epoch - 2)
    return 1.0


class Cooling(torch.optim.lr_scheduler.ReduceLROnPlateau):
    def step(self, metrics, epoch=None):
        super().step(metrics)
        cooling(self.last_epoch)


SCHEDULERS = torch.optim.lr_scheduler
OF_OTHERS = [
    functools.partial(SCHEDULERS.LambdaLR, lr_lambda=cooling),
    functools.partial(SCHEDULERS.MultiplicativeLR, lr_lambda=cooling),
    functools.partial(
        SCHEDULERS.CyclicLR,
        base_lr=1e-3,
        max_lr=1e-2,
        cycle_momentum=False,
        scale_fn=cooling,
        scale_mode="iterations",
    ),
    lambda o: SCHEDULERS.SequentialLR(
        o, [SCHEDULERS.ConstantLR(o), SCHEDULERS.LambdaLR(o, cooling)], milestones=[1]
    ),
    Cooling,
]
OF_TORCH = [
    functools.partial(SCHEDULERS.StepLR, step_size=2),
    functools.partial(SCHEDULERS.CosineAnnealingLR, T_max=5),
    functools.partial(SCHEDULERS.CyclicLR, base_lr=1e-3, max_lr=1e-2, cycle_momentum=False),
    lambda o: SCHEDULERS.SequentialLR(o, [SCHEDULERS.ConstantLR(o), SCHEDULERS.StepLR(o, 3)], milestones=[1]),
    SCHEDULERS.ReduceLROnPlateau,
]


def tempered(how, scheduler=OF_OTHERS[0], in_training=True, **options):
    """A fit of five epochs, in which the scheduler may lower the temperature from the third on."""
    torch.manual_seed(0)
    KNOWN_TO_PYTHON["temperature"] = 1.0
    encoder = pv.encoders.DiagonalNormal(torch.nn.Linear(6, 4, dtype=torch.float64))
    pair = pv.VAE(
        pv.priors.StandardNormal(2), pv.likelihoods.Bernoulli(Tempered(in_training)), encoder
    ).double()
    try:
        history = pv.fit(
            pair, X.double(), epochs=5, batch_size=16, compile=how, scheduler=scheduler, **options
        )
        return pair, history
    finally:
        KNOWN_TO_PYTHON["temperature"] = 1.0


@functools.cache
def tempered_eagerly(scheduler):
    return tempered(False, scheduler)


@pytest.mark.parametrize("scheduler", OF_OTHERS)
@pytest.mark.parametrize("evaluations", [10**9, 0])
def test_what_schedulers_change_in_python_is_seen(scheduler, evaluations, monkeypatch):
    """Steps and evaluations that were traced are given up where code of others changed what a trace can't know."""
    monkeypatch.setattr(traced, "_TRACING_PAYS", 0)
    monkeypatch.setattr(tracing.evaluation, "_TRACING_PAYS", evaluations)
    (eager, one), (other, two) = tempered_eagerly(scheduler), tempered("auto", scheduler)
    assert re.match(
        r"eager: in epoch \d, with other rows and noise it does not compute what the trace computes",
        two.steps,
    )
    for column in ("loss", "elbo", "rate"):
        np.testing.assert_allclose(one.frame[column], two.frame[column], rtol=1e-10)
    for a, b in zip(parameters(eager), parameters(other), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def test_what_schedulers_change_in_evaluations_alone_is_seen(monkeypatch):
    monkeypatch.setattr(traced, "_TRACING_PAYS", 0)
    monkeypatch.setattr(tracing.evaluation, "_TRACING_PAYS", 0)
    held_out = X[:20].double()
    (_, one), (_, two) = (tempered(how, in_training=False, validation=held_out) for how in (False, "auto"))
    assert two.steps == "traced"
    np.testing.assert_allclose(one.frame["validation_elbo"], two.frame["validation_elbo"], rtol=1e-10)


def test_compiled_steps_are_refused_where_schedulers_change_what_python_knows(inside):
    with pytest.raises(
        ValueError, match=r"compile: expected steps that can be traced.*got in epoch 4, with other"
    ):
        tempered(True)


@pytest.mark.parametrize(
    ("scheduler", "others"), [(s, True) for s in OF_OTHERS] + [(s, False) for s in OF_TORCH]
)
def test_schedulers_that_run_code_of_others_are_known(scheduler, others):
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(2))])
    assert runs_code_of_others(scheduler(optimizer)) == others
    KNOWN_TO_PYTHON["temperature"] = 1.0


@pytest.mark.parametrize("change", [_decay, _forget])
def test_a_scheduler_may_change_the_optimizer_after_an_epoch(change, inside):
    scheduler = type("Changing", (_Unlike,), {"change": staticmethod(change)})
    options = {"epochs": 5, "batch_size": 16, "scheduler": functools.partial(scheduler, factor=1.0)}
    fits = [(small_vae().double(), how) for how in (False, True)]
    histories = [pv.fit(vae, X.double(), compile=how, **options) for vae, how in fits]
    assert [history.steps for history in histories] == ["eager", "compiled"]
    np.testing.assert_allclose(histories[0].frame["loss"], histories[1].frame["loss"], rtol=1e-10)
    for a, b in zip(*(parameters(vae) for vae, _ in fits), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def test_what_the_compiler_does_not_take_runs_eagerly_and_says_why(monkeypatch):
    def broken(*arguments, **options):
        raise tracing.Untraceable("can't be compiled: for a reason")

    monkeypatch.setattr(tracing.steps, "compile_graph", broken)
    monkeypatch.setattr(traced, "_COMPILING_PAYS", 0)
    fits = [(small_vae(), how) for how in (False, "auto")]
    histories = [pv.fit(vae, X, epochs=2, compile=how) for vae, how in fits]
    assert [history.steps for history in histories] == [
        "eager",
        "eager: in epoch 2, can't be compiled: for a reason",
    ]
    with pytest.raises(
        ValueError, match="compile: expected steps that can be traced and compiled, got in epoch 2, can't be"
    ):
        pv.fit(small_vae(), X, epochs=2, compile=True)
    assert same(*(parameters(vae) for vae, _ in fits))


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("how", [False, True])
def test_parameters_that_a_callback_makes_nan_are_named(likelihood, how, inside):
    """A comparison of the trace with Pyro meets them first; it can't tell whether the trace holds."""

    def callback(record, pair):
        next(pair.likelihood.parameters()).data[0] = math.nan

    torch.manual_seed(0)
    pair = pv.VAE.mlp(6, 2, hidden_dims=(4,), likelihood=likelihood)
    with pytest.raises(FloatingPointError, match=r"at epoch 2, step 1.*parameter likelihood\S+ had \d+ NaN"):
        pv.fit(pair, X, epochs=4, compile=how, callbacks=[callback])


def test_traced_steps_that_are_not_finite_are_named_and_skipped(monkeypatch):
    monkeypatch.setattr(traced, "_TRACING_PAYS", 0)
    torch.manual_seed(0)
    x = torch.randn(40, 3)
    x[7] = 1e30
    skipped = {}
    for how in (False, "auto"):
        torch.manual_seed(0)
        pair = pv.VAE.mlp(3, 1, hidden_dims=(4,), likelihood="gaussian")
        with pytest.raises(FloatingPointError, match=r"at epoch 1, step \d+, rows 7"):
            pv.fit(pair, x, epochs=2, batch_size=1, compile=how)
        history = pv.fit(pair, x, epochs=2, batch_size=1, compile=how, on_nonfinite="skip")
        skipped[history.steps] = list(history.frame["skipped"])
    assert skipped == {"eager": [1] * 2, "traced": [1] * 2}


def test_medium_precision_is_for_steps_alone(monkeypatch):
    """Products of steps are rounded to bfloat16, where the processor has them; those of evaluations never are."""
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    seen = {True: set(), False: set()}

    class Watched(torch.nn.Linear):
        def forward(self, x):
            seen[torch.is_grad_enabled()].add(torch.get_float32_matmul_precision())
            return super().forward(x)

    torch.manual_seed(0)
    pair = pv.VAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.Bernoulli(Watched(2, 6)),
        pv.encoders.DiagonalNormal(Watched(6, 4)),
    )
    pv.fit(pair, X[:20], epochs=2, precision="medium", compile=False)
    assert "medium" in seen[True]
    torch.set_float32_matmul_precision("medium")
    try:
        pv.log_evidence(pair, X[:4], num_samples=10, check=False)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert seen[False] == {"highest"}
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    with pytest.raises(ValueError, match="precision: expected 'highest' on a processor without"):
        pv.fit(pair, X[:20], precision="medium")
    with pytest.raises(ValueError, match="precision: expected 'highest' for a pair that is not in float32"):
        pv.fit(pair.double(), X[:20].double(), precision="medium")


def test_rows_to_binarize_are_probabilities():
    with pytest.raises(
        ValueError, match="x: expected values from 0 to 1, got 8 outside, first 255 at row 0, column 1"
    ):
        pv.fit(small_vae(), torch.tensor([[0.0, 255.0, 1, 1, 1, 1]] * 8), binarize=True)


@pytest.mark.parametrize("compile", [False, True])
def test_binarized_steps_draw_pixels_before_latents(compile):
    """What a step of a binarized fit is: the step on the zeros and ones that its seed draws first."""
    grey, seed = torch.rand(5, 6, dtype=torch.float64), 4

    def state(binarize):
        pair = small_vae().double()
        return State(pair, torch.optim.SGD(pair.parameters(), lr=0.1), Trace_ELBO(), 5, None, binarize)

    with noise.seeded(seed):
        drawn = (torch.rand_like(grey) < grey).double()
        latent_seed = torch.random.get_rng_state()
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    if compile:
        one = state(True)
        steps = traced.Traced(one, rows_of(grey), [(5,)], {(5,): False}, False).at(0)[0]
        value = steps.run(torch.arange(5), [seed], [1.0])[0].total
    else:
        value = training.step(state(True), {"x": grey}, seed, 1.0).total
    plain = state(False)
    with torch.random.fork_rng():
        torch.random.set_rng_state(latent_seed)
        expected = float(plain.loss({"x": drawn}, 1.0).detach()) / 5
    assert value == pytest.approx(expected, rel=1e-12)


# ---------------------------------------------------------------------------------------------------------
# Rows in chunks


def chunked(x, *lengths, **options):
    vae = small_vae().to(x.dtype)
    return vae, pv.fit(vae, x.split(lengths), batch_size=16, lr=1e-2, **{"epochs": 3} | options)


def test_one_chunk_is_the_array():
    vae = small_vae()
    whole = pv.fit(vae, X, batch_size=16, lr=1e-2, epochs=3)
    one, history = chunked(X, 90)
    assert same(parameters(vae), parameters(one))
    assert history.frame["elbo"].tolist() == whole.frame["elbo"].tolist()


def test_chunks_are_taken_in_turn_and_all_rows_count_alike():
    """Each chunk's rows once an epoch, in an order of the epoch's own; steps are those on the array, N apart."""
    seen = []

    def model(x):
        if torch.is_grad_enabled():
            seen.append(x[:, 0].long().tolist())
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1).to_event(1))
            pyro.sample("x", dist.Normal(z * pyro.param("w", torch.ones(2)), 1).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, :1] * 0.0 + pyro.param("m", torch.zeros(1)), 1).to_event(1))

    rows = torch.arange(50.0)[:, None].repeat(1, 2)
    pv.fit(
        pv.LatentVariableModel(model, guide), rows.split((20, 25, 5)), batch_size=10, epochs=2, compile=False
    )
    first, second = seen[-12:-6], seen[-6:]  # before them, the checks of the pair
    for epoch in (first, second):
        assert sorted(epoch[0] + epoch[1]) == list(range(20))
        assert sorted(epoch[2] + epoch[3] + epoch[4]) == list(range(20, 45))
        assert sorted(epoch[5]) == list(range(45, 50))
    assert first[0] != second[0]


def test_chunks_without_rows_are_left_out():
    """As evaluations and baselines do. Before, they were an error."""
    whole, expected = chunked(X, 40, 50)
    for parts in (chunked(X, 0, 40, 0, 50, 0), chunked(X, 40, 50, 0)):
        assert same(parameters(whole), parameters(parts[0]))
        assert parts[1].frame["elbo"].tolist() == expected.frame["elbo"].tolist()
    with pytest.raises(ValueError, match="x: expected at least one chunk of rows, got none"):
        pv.fit(small_vae(), [{"x": X[:0]}], epochs=1)


def test_chunks_traced_are_chunks_eager(monkeypatch):
    monkeypatch.setattr(traced, "_TRACING_PAYS", 0)
    (eager, one), (other, two) = (chunked(X.double(), 40, 35, 15, compile=how) for how in (False, "auto"))
    assert (one.steps, two.steps) == ("eager", "traced")
    np.testing.assert_allclose(one.frame["loss"], two.frame["loss"], rtol=1e-10)
    for a, b in zip(parameters(eager), parameters(other), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def test_a_data_loader_is_chunks():
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X), batch_size=30)
    vae = small_vae()
    pv.fit(vae, loader, batch_size=16, lr=1e-2, epochs=3)
    assert same(parameters(vae), parameters(chunked(X, 30, 30, 30)[0]))
    assert vae.fitted.rows == 90
    assert vae.fitted.seen.tolist() == identity.row_hashes(X).tolist()


class Shrinking:
    """Chunks of which the last is missing from the second pass on."""

    def __init__(self):
        self.passes = 0

    def __iter__(self):
        self.passes += 1
        return iter([X[:40], X[40:]][: 2 if self.passes < 4 else 1])


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (
            (rows for rows in [X]),
            "x: expected chunks that can be iterated again, got a generator",
        ),
        ([X[:40], X[40:, None]], r"x: expected chunks that differ only in their rows: .*\(6,\).* in chunk 1"),
        ([X[:40], X[40:, :3]], r"x\[1\]: expected rows of width 6, got rows of width 3"),
        ([X[:40], 2 * X[40:]], r"x\[1\]: expected values on the support of Bernoulli"),
        ([X[:40], X[40:] / 0], r"x\[1\]: expected .*finite"),
        (torch.utils.data.DataLoader([]), "x: expected at least one chunk of rows, got none"),
        (Shrinking(), r"x: expected 50 rows in chunk 1, as in the first pass, got 0"),
    ],
)
def test_chunks_that_are_none(x, message):
    with pytest.raises(ValueError, match=message):
        pv.fit(small_vae(), x)


# ---------------------------------------------------------------------------------------------------------
# What a trace can't see


ADVICE = (
    ", which a trace would fix if the loss reads it; a module's buffer, changed in place, keeps the trace"
)
OBJECTS = ", by Python objects that a trace would fix"


class Decoder(torch.nn.Module):
    """Logits, with something that each call does beside them."""

    def __init__(self, what):
        super().__init__()
        self.what, self.calls, self.last, self.lasts, self.size = what, 0, None, (), None
        self.held, self.list = (
            ({"object": types.SimpleNamespace(calls=0), "function": lambda: 0}.get(what)),
            [],
        )
        self.mean = torch.zeros((), dtype=torch.float64)
        self.layer = torch.nn.Linear(2, 6, dtype=torch.float64)
        self.register_buffer("seen", torch.zeros((), dtype=torch.float64))
        self.register_buffer("order", torch.arange(5, -1, -1))

    def forward(self, z):
        logits = self.layer(z)
        if self.what == "counts":
            self.calls += self.training
            logits = logits * max(0.5, 1 - 1e-4 * self.calls)
        if self.what == "counts in a buffer":
            self.seen += self.training
            logits = logits * (1 - 1e-4 * self.seen).clamp(min=0.5)
        if self.what == "replaces a buffer":
            self.seen = 0.9 * self.seen + 0.1 * z.detach().mean()
        if self.what == "moves a parameter":
            self.layer.weight.data = torch.nn.functional.normalize(self.layer.weight.data, dim=1)
            logits = self.layer(z)
        if self.what == "replaces a tensor" and self.training:
            self.mean = 0.9 * self.mean + 0.1 * z.detach().mean()
            logits = logits + self.mean
        if self.training and self.what in ("tensor from None", "tensor for eval()"):
            now = z.detach().mean()
            self.held = now if self.held is None else 0.9 * self.held + 0.1 * now
        if self.held is not None and self.what == (
            "tensor from None" if self.training else "tensor for eval()"
        ):
            logits = logits - self.held
        if self.what == "list" and self.training:
            self.list.append(z.detach().mean())
            logits = logits * (1 + 0.01 * len(self.list))
        if self.what == "object" and self.training:
            self.held = types.SimpleNamespace(calls=self.held.calls + 1)
            logits = logits * (1 + 0.01 * self.held.calls)
        if self.what == "function" and self.training:
            calls = self.held() + 1
            self.held = lambda: calls
            logits = logits * (1 + 0.01 * calls)
        if self.what == "keeps its input":
            self.last, self.lasts, self.size = z.detach(), (z.detach(), len(z)), z.shape
        return logits[..., self.order] if self.what == "indexes with a buffer" else logits


def zero_gradient(parameter):
    parameter.grad.zero_()


@pytest.mark.parametrize(
    ("what", "steps"),
    [
        ("counts", f"eager: Python values change from call to call, such as 'calls' of a Decoder{ADVICE}"),
        ("counts in a buffer", "traced"),
        ("replaces a buffer", "eager: buffer seen is replaced at every call instead of changed in place"),
        (
            "moves a parameter",
            "eager: parameter weight is replaced at every call instead of changed in place",
        ),
        (
            "replaces a tensor",
            "eager: 'mean' of a Decoder is replaced at every call instead of changed in place",
        ),
        ("tensor from None", f"eager: a call changes what the next one computes{OBJECTS}"),
        ("list", f"eager: a call changes what the next one computes{OBJECTS}"),
        ("object", f"eager: a call changes what the next one computes{OBJECTS}"),
        ("function", f"eager: a call changes what the next one computes{OBJECTS}"),
        ("tensor for eval()", f"eager: a call changes what eval() mode computes{OBJECTS}"),
        ("keeps its input", "traced"),
        ("hooks on gradients", "eager: hooks on the gradients of parameters"),
        ("indexes with a buffer", "traced"),
        ("nothing", "traced"),
    ],
)
def test_what_a_trace_would_not_see_runs_eagerly(what, steps, monkeypatch):
    monkeypatch.setattr(traced, "_TRACING_PAYS", 0)
    fits = {}
    for how in (False, "auto"):
        torch.manual_seed(0)
        decoder = Decoder(what)
        encoder = pv.encoders.DiagonalNormal(torch.nn.Linear(6, 4, dtype=torch.float64))
        pair = pv.VAE(pv.priors.StandardNormal(2), pv.likelihoods.Bernoulli(decoder), encoder).double()
        if what == "hooks on gradients":
            decoder.layer.bias.register_post_accumulate_grad_hook(zero_gradient)
        fits[how] = pair, pv.fit(pair, X.double(), epochs=3, compile=how)
    history = fits["auto"][1]
    assert history.steps == steps
    found = [
        (*pair.state_dict().values(), pair.eval().likelihood.network(torch.ones(2, 2).double()))
        for pair, _ in fits.values()
    ]
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    ("what", "steps"),
    [
        (
            "momentum",
            "eager: in epoch 3, with other rows and noise it does not compute what the trace computes",
        ),
        ("hook", "eager: in epoch 3, hooks on the gradients of parameters"),
        ("nothing", "traced"),
    ],
)
def test_what_callbacks_change_for_later_steps_is_seen(what, steps, monkeypatch):
    """Losses and gradients of a step do not show the momentum of its BatchNorm, nor what a hook makes of its gradients."""
    monkeypatch.setattr(traced, "_TRACING_PAYS", 0)
    fits = []
    for how in (False, "auto"):
        torch.manual_seed(0)
        norm = torch.nn.BatchNorm1d(8)
        decoder = torch.nn.Sequential(torch.nn.Linear(2, 8), norm, torch.nn.Linear(8, 6))
        encoder = pv.encoders.DiagonalNormal(torch.nn.Linear(6, 4))
        pair = pv.VAE(pv.priors.StandardNormal(2), pv.likelihoods.Bernoulli(decoder), encoder).double()

        def callback(record, _, norm=norm):
            if record["epoch"] == 2 and what == "momentum":
                norm.momentum = 0.9
            if record["epoch"] == 2 and what == "hook":
                norm.weight.register_post_accumulate_grad_hook(zero_gradient)

        history = pv.fit(pair, X.double(), epochs=4, compile=how, callbacks=[callback])
        fits.append(pair)
    assert history.steps == steps
    for a, b in zip(*(pair.state_dict().values() for pair in fits), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


class Weighted(Trace_ELBO):
    """Weighs its loss by a running mean in a tensor attribute, which the first call takes from the class."""

    mean = torch.zeros((), dtype=torch.float64)

    def differentiable_loss(self, *args, **kwargs):
        loss = super().differentiable_loss(*args, **kwargs)
        self.mean = 0.9 * self.mean + 0.1 * loss.detach()
        return loss * (1 + 0.5 * torch.tanh(self.mean / 300))


@pytest.mark.parametrize("how", [False, "auto"])
def test_what_an_objective_keeps_in_tensors_begins_with_the_first_step(how, monkeypatch):
    """As in plain Pyro. The search for leaves, a trace and its comparison run the objective before."""
    monkeypatch.setattr(traced, "_TRACING_PAYS", 0)
    loss, steps = Weighted(), Weighted()
    vae, rows = small_vae().double(), X.double()
    state = State(small_vae().double(), torch.optim.Adam([torch.zeros(1)]), steps, len(rows), None)
    with noise.seeded(noise.derive(0, noise.Stream.STEP, 0)):
        state.loss({"x": rows[rows_of(rows).minibatches(len(rows), 0, 0)[0][1]]}, 1.0)
    history = pv.fit(vae, rows, epochs=1, batch_size=len(rows), loss=loss, compile=how)
    assert history.steps.startswith("eager")
    assert float(loss.mean) == pytest.approx(float(steps.mean), rel=1e-12)


STEPS, LOG = {"global": 0}, logging.getLogger(__name__)
READ = STATIC = OF_CLASS = CALLED = 0


class Staged(Trace_ELBO):
    """Half the loss for ten calls, and then the whole."""

    calls = 0

    def differentiable_loss(self, *args, **kwargs):
        self.calls += 1
        return (0.5 if self.calls <= 10 else 1.0) * super().differentiable_loss(*args, **kwargs)


def in_its_attribute():
    in_its_attribute.steps += 1
    return in_its_attribute.steps


in_its_attribute.steps = 0


class Property:
    """Counts how often it is read, in a global number that no other function names."""

    @property
    def steps(self):
        global READ
        READ += 1
        return READ

    @staticmethod
    def static():
        global STATIC
        STATIC += 1
        return STATIC

    @classmethod
    def of_class(cls):
        global OF_CLASS
        OF_CLASS += 1
        return OF_CLASS

    def __call__(self):
        global CALLED
        CALLED += 1
        return CALLED


class Counting(torch.nn.Module):
    """A VAE's logits, halved for ten steps, which it counts in one of several places."""

    in_class, first = 0, 1

    def __init__(self, place):
        super().__init__()
        self.layer = torch.nn.Linear(2, 6, dtype=torch.float64)
        in_closure, in_dict, in_list, in_object = 0, {"steps": 0}, [0], types.SimpleNamespace(steps=0)
        self.unseen, self.in_dict, self.in_object = itertools.count(self.first), {"deep": in_dict}, in_object

        def in_a_closure():
            nonlocal in_closure
            in_closure += 1
            return in_closure

        def in_a_list():
            in_list[0] += 1
            return in_list[0]

        self.count = {"closure": in_a_closure, "list": in_a_list}.get(place, getattr(self, f"_{place}", None))

    def _class(self):
        Counting.in_class += 1
        return Counting.in_class

    def _global(self):
        STEPS["global"] += 1
        return STEPS["global"]

    def _dict(self):
        self.in_dict["deep"]["steps"] += 1
        return self.in_dict["deep"]["steps"]

    def _object(self):
        self.in_object.steps += 1
        return self.in_object.steps

    def _iterator(self):
        return next(self.unseen)

    def forward(self, z):
        if self.training:
            LOG.debug("%d rows", len(z))  # keeps in a dict whether it is enabled
        started = self.count is None or not self.training or self.count() > 10
        return self.layer(z) * (1.0 if started else 0.5)


def counted(place, how):
    """A fit of 24 steps, six an epoch, in which something counts them."""
    torch.manual_seed(0)
    Counting.in_class = STEPS["global"] = 0
    encoder = pv.encoders.DiagonalNormal(torch.nn.Linear(6, 4, dtype=torch.float64))
    likelihood = pv.likelihoods.Bernoulli(Counting(place))
    pair = pv.VAE(pv.priors.StandardNormal(2), likelihood, encoder).double()
    loss = Staged() if place == "objective" else Trace_ELBO()
    history = pv.fit(pair, X.double(), epochs=4, batch_size=16, loss=loss, compile=how)
    return pair, history.steps, loss


@pytest.mark.parametrize(
    ("place", "named"),
    [
        ("objective", "'calls' of a Staged"),
        ("closure", "a variable of a closure"),
        ("list", "0 of a list"),
        ("class", "'in_class' of a Counting"),
        ("global", "'global' of a dict"),
        ("dict", "'steps' of a dict"),
        ("object", "'steps' of a SimpleNamespace"),
    ],
)
def test_counters_of_steps_are_found_wherever_python_keeps_them(place, named, monkeypatch):
    """A trace would hold the count of its first call, and thus half the loss for good."""
    monkeypatch.setattr(traced, "_TRACING_PAYS", 0)
    (one, _, first), (two, steps, second) = counted(place, False), counted(place, "auto")
    assert steps == f"eager: Python values change from call to call, such as {named}{ADVICE}"
    assert same(parameters(one), parameters(two))
    assert first.__dict__ == second.__dict__
    assert getattr(first, "calls", 24) == 24


@dataclasses.dataclass(slots=True)
class Slots:
    steps: int = 0


@dataclasses.dataclass(frozen=True)
class Frozen:
    steps: int = 0


Tuple = collections.namedtuple("Tuple", "steps")


@pytest.mark.parametrize(
    ("before", "call"),
    [
        (Slots(), lambda o: setattr(o.state, "steps", o.state.steps + 1)),
        (np.zeros(2), lambda o: o.state.__setitem__(1, 1)),
        (np.zeros(()), lambda o: o.state.__iadd__(1)),
        (bytearray(2), lambda o: o.state.__setitem__(1, 1)),
        (array.array("l", [0]), lambda o: o.state.__setitem__(0, 1)),
        ({1}, lambda o: o.state.add(2)),
        ((0, [1]), lambda o: setattr(o, "state", (1, [1]))),
        (np.zeros(2), lambda o: setattr(o, "state", o.state + 1)),
        ({"steps": 0}, lambda o: setattr(o, "state", {"steps": 1})),
        (Tuple(0), lambda o: setattr(o, "state", o.state._replace(steps=1))),
        (Frozen(), lambda o: setattr(o, "state", dataclasses.replace(o.state, steps=1))),
        (decimal.Decimal(0), lambda o: setattr(o, "state", o.state + 1)),
        (fractions.Fraction(0), lambda o: setattr(o, "state", o.state + 1)),
        (datetime.timedelta(0), lambda o: setattr(o, "state", o.state + datetime.timedelta(1))),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_that_objects_keep_are_found_and_restored(before, call):
    """In place or replaced, and back at their places with their contents; the same contents elsewhere are no change."""
    other = torch.zeros(2)
    held = types.SimpleNamespace(state=before, other=other)
    first, values = copy.deepcopy(before), PythonValues([held])
    held.other, held.state = torch.zeros(2), copy.deepcopy(before)
    assert values.changed() is None
    values.restore()
    call(held)
    assert values.changed() is not None
    values.restore()
    assert held.state is before
    assert held.other is other
    assert np.array_equal(before, first) if isinstance(before, np.ndarray) else before == first


class Listed(list):
    """A list that takes attributes."""


@pytest.mark.parametrize(
    "make",
    [Listed, lambda: torch.zeros(1), lambda: dist.Normal(0.0, 1.0), Trace_ELBO],
    ids=["list", "tensor", "distribution", "objective"],
)
def test_attributes_of_containers_tensors_and_objects_of_libraries_are_found(make):
    held = make()
    held.steps = 0
    values = PythonValues([{"held": held}])
    held.steps = 1
    assert values.changed() == "'steps' of a dict"
    values.restore()
    assert held.steps == 0


def test_a_module_that_a_call_adds_is_found_and_removed():
    modules = torch.nn.ModuleList([torch.nn.Identity()])
    values = PythonValues([modules])
    modules.append(torch.nn.Identity())
    assert values.changed() == "module 1"
    values.restore()
    assert len(modules) == 1


@pytest.mark.parametrize("size", [1000, 1001])
def test_a_tensor_of_any_size_that_moves_is_found_and_put_back(size):
    held = types.SimpleNamespace(state=torch.zeros(size))
    values = PythonValues([held])
    held.state.data = held.state + 1
    assert values.replaced([held.state]) == "'state' of a SimpleNamespace"
    values.restore()
    assert torch.equal(held.state, torch.zeros(size))


@pytest.mark.parametrize(
    ("generator", "draw"),
    [
        (torch.Generator(), lambda g: float(torch.rand((), generator=g))),
        (np.random.default_rng(0), lambda g: g.random()),
        (np.random.RandomState(0), lambda g: g.rand()),
        (random.Random(0), lambda g: g.random()),
    ],
    ids=lambda value: type(value).__name__,
)
def test_states_of_random_generators_are_found_and_restored(generator, draw):
    values, others = PythonValues([{"held": generator}]), [torch.Generator().get_state() for _ in range(20)]
    assert values.changed() is None, others  # which keep their memory, so that states lie elsewhere
    first = draw(generator)
    assert values.changed() == f"the state of a {type(generator).__name__}"
    values.restore()
    assert draw(generator) == first


class Watched(torch.nn.Linear):
    """A layer that calls a function, where ``where`` tells."""

    def __init__(self, where, function):
        super().__init__(1, 1)
        if where == "forward":
            self.register_forward_hook(lambda *_: function())
        if where == "forward_pre":
            self.register_forward_pre_hook(lambda *_: function())
        if where == "full_backward":
            self.register_full_backward_hook(lambda *_: function())
        if where == "tensor":
            self.weight.register_hook(lambda _: function())
        if where == "child in a list":
            self.children_ = [torch.nn.Sequential(torch.nn.Identity(), torch.nn.Identity())]
            self.children_[0][1].register_forward_hook(lambda *_: function())
        if where == "cache":
            self.function = functools.lru_cache(function)
        if where == "submodule":
            self.function = counts_in_a_submodule
        if where == "module in an attribute":
            self.module = sys.modules["counts.deep"]

    def forward(self, x):
        if hasattr(self, "children_"):
            x = self.children_[0](x)
        if hasattr(self, "function"):
            getattr(self.function, "cache_clear", int)()
            self.function()
        if hasattr(self, "module"):
            self.module.STEP += 1
        return super().forward(x)


def counts_in_a_submodule():
    counts.deep.STEP += 1  # noqa: F821  # a module that the test makes


@pytest.mark.parametrize(
    "where",
    [
        "forward",
        "forward_pre",
        "full_backward",
        "tensor",
        "all modules",
        "child in a list",
        "cache",
        "submodule",
        "module in an attribute",
    ],
)
def test_counters_of_hooks_and_modules_are_found(where, monkeypatch):
    for name in ("counts", "counts.deep"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["counts"].deep, sys.modules["counts.deep"].STEP = sys.modules["counts.deep"], 0
    monkeypatch.setitem(globals(), "counts", sys.modules["counts"])
    steps = {"steps": 0}

    def function():
        steps["steps"] += 1

    layer = Watched(where, function)
    handles = []
    if where == "all modules":
        handles.append(torch.nn.modules.module.register_module_forward_hook(lambda *_: function()))
    try:
        values = values_of_call(pv.LatentVariableModel(layer.forward, layer.forward))
        assert values.changed() is None
        layer(torch.ones(2, 1, requires_grad=True)).sum().backward()
        found = values.changed()
        name = "STEP" if where in ("submodule", "module in an attribute") else "steps"
        assert found.startswith(f"'{name}' of ")
        values.restore()
        assert values.changed() is None
        assert steps == {"steps": 0}
    finally:
        for handle in handles:
            handle.remove()


def in_a_default(state={"steps": 0}):  # noqa: B006
    state["steps"] += 1


def in_a_keyword(*, state={"steps": 0}):  # noqa: B006
    state["steps"] += 1


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (in_its_attribute, "'steps' of function in_its_attribute"),
        (in_a_default, "'steps' of a dict"),
        (in_a_keyword, "'steps' of a dict"),
        (lambda: Property().steps, f"'READ' of module {__name__}"),
        (lambda: Property.static(), f"'STATIC' of module {__name__}"),
        (lambda: Property.of_class(), f"'OF_CLASS' of module {__name__}"),
        (Property(), f"'CALLED' of module {__name__}"),
    ],
    ids=["attribute", "default", "keyword default", "property", "static", "class method", "__call__"],
)
def test_numbers_that_functions_and_descriptors_keep_are_found_and_restored(call, named):
    before = PythonValues([lambda: call()])
    call()
    assert before.changed() == named
    before.restore()
    assert before.changed() is None


@pytest.mark.parametrize(
    "value",
    [
        math.nan,
        np.float32("nan"),
        complex("nan"),
        np.complex64("nan"),
        np.datetime64("NaT"),
        np.timedelta64("NaT"),
    ],
    ids=repr,
)
def test_nan_of_any_type_has_not_changed(value):
    state = {"value": value}
    before = PythonValues([state])
    assert before.changed() is None
    state["value"] = type(value)(1) if "NaT" not in str(value) else type(value)(1, "s")
    assert before.changed() == "'value' of a dict"


class Failing(collections.OrderedDict):
    """A dict whose methods count their calls, and fail."""

    def _fail(self, *_):
        self.calls.append(1)
        raise RuntimeError("a missing mandatory value")

    __getitem__ = __setitem__ = __delitem__ = __iter__ = __len__ = keys = items = values = _fail
    __contains__ = get = pop = update = __eq__ = _fail
    __hash__ = None
    calls = ()


class Unfilled(collections.abc.MutableMapping):
    """A mapping with a value that can't be read."""

    def __init__(self, **entries):
        self.entries = entries

    def __getitem__(self, key):
        raise KeyError(key)

    __delitem__ = __getitem__

    def __setitem__(self, key, value):
        self.entries[key] = value

    def __iter__(self):
        return iter(self.entries)

    def __len__(self):
        return len(self.entries)


class Unconnected:
    """Slots without a dict, and an error for any other attribute."""

    __slots__ = ()

    def __getattr__(self, name):
        raise RuntimeError("not connected")


def test_no_code_of_containers_is_called_and_no_error_of_theirs_ends_a_fit():
    vae, failing = small_vae(), Failing()
    failing.calls = []
    collections.OrderedDict.__setitem__(failing, "steps", 0)
    reference = weakref.proxy(torch.nn.Linear(1, 1))  # to an object that is gone
    vae.held = [
        failing,
        Unfilled(steps=0, path="???"),
        Unconnected(),
        reference,
        types.MappingProxyType({"a": [0]}),
    ]
    before = PythonValues([vae])
    for entries in (failing, vae.held[1].entries):
        assert before.changed() is None
        dict.__setitem__(entries, "steps", 1)
        assert before.changed().startswith("'steps' of a")
        before.restore()
    vae.held[4]["a"][0] = 1
    assert before.changed() == "0 of a list"
    pv.fit(vae, X, epochs=1, compile=False)
    assert not failing.calls


def test_counters_out_of_sight_are_found_by_later_comparisons(monkeypatch):
    """Every comparison counts, too."""
    monkeypatch.setattr(traced, "_TRACING_PAYS", 0)
    LOG.manager._clear_cache()
    assert counted("iterator", "auto")[1] == "traced"
    monkeypatch.setattr(loop, "_COMPARED", 6)
    monkeypatch.setattr(Counting, "first", 5)  # traces of both sizes count to 10
    steps = counted("iterator", "auto")[1]
    assert steps.startswith("eager: in epoch 2, with other rows and noise it does not compute")


class Growing(torch.nn.Module):
    """Logits that grow with the number of training steps, counted in a dict."""

    def __init__(self):
        super().__init__()
        self.layer, self.state = torch.nn.Linear(2, 6, dtype=torch.float64), {"steps": 0}

    def forward(self, z):
        self.state["steps"] += self.training
        return self.layer(z) * (2 - 0.9 ** self.state["steps"])


def test_evaluations_between_eager_steps_see_what_these_count(monkeypatch):
    """A graph of the evaluation would hold the count of its first epoch. One is made, and none after it was wrong."""
    monkeypatch.setattr(traced, "_TRACING_PAYS", 0)
    monkeypatch.setattr(tracing.evaluation, "_TRACING_PAYS", 0)
    kind, made = tracing.evaluation._Traced, []
    monkeypatch.setattr(tracing.evaluation, "_Traced", lambda *a: made.append(1) or kind(*a))
    frames = []
    for how in (False, "auto"):
        torch.manual_seed(0)
        encoder = pv.encoders.DiagonalNormal(torch.nn.Linear(6, 4, dtype=torch.float64))
        pair = pv.VAE(pv.priors.StandardNormal(2), pv.likelihoods.Bernoulli(Growing()), encoder).double()
        history = pv.fit(pair, X.double(), epochs=6, batch_size=16, validation=X[:20].double(), compile=how)
        frames.append(history.frame)
    assert history.steps.startswith("eager: Python values change")
    np.testing.assert_allclose(frames[0]["validation_elbo"], frames[1]["validation_elbo"], rtol=1e-10)
    assert len(made) == 1


@pytest.mark.parametrize("steps_an_epoch", [1, 25, 470, 5000])
def test_comparisons_take_a_hundredth_of_many_steps(steps_an_epoch):
    """Some 40 small steps each, and the first after 250 steps."""
    for epochs in (1, 2, 10, 100):
        steps = epochs * steps_an_epoch
        assert (loop._comparisons(steps) > 0) == (steps >= 250)
        assert loop._comparisons(steps) <= steps // 4000 + 4


def test_hooks_of_an_optimizer_are_called(inside):
    def factory(parameters, lr):
        optimizer = torch.optim.Adam(parameters, lr=lr)

        def clamp(*_):
            with torch.no_grad():
                torch._foreach_clamp_min_(parameters, -0.1)
                torch._foreach_clamp_max_(parameters, 0.1)

        optimizer.register_step_post_hook(clamp)
        return optimizer

    vae = small_vae()
    assert pv.fit(vae, X, epochs=2, optimizer=factory, compile=True).steps == "compiled"
    assert max(float(p.abs().max()) for p in parameters(vae)) <= 0.1 + 1e-8


def wrapped(optimizer, clamp):
    plain = optimizer.step

    @functools.wraps(plain)
    def step(*args, **kwargs):
        plain(*args, **kwargs)
        clamp()

    optimizer.step = step


def hooked_everywhere(optimizer, clamp):
    HANDLES.append(register_optimizer_step_post_hook(lambda *_: clamp()))


def of_another_class(optimizer, clamp):
    wrapped(optimizer, clamp)
    optimizer.step = functools.partial(optimizer.step)


HANDLES = []


@pytest.mark.parametrize("after", [wrapped, hooked_everywhere, of_another_class])
@pytest.mark.parametrize("at", ["the beginning", "the end of an epoch"])
def test_what_a_step_of_the_optimizer_runs_beside_the_update_is_run(after, at, inside):
    def clamp():
        for parameter in made[0].param_groups[0]["params"]:
            parameter.data.clamp_(-0.1, 0.1)

    def factory(parameters, lr):
        made.append(torch.optim.Adam(parameters, lr=lr))
        if at == "the beginning":
            after(made[0], clamp)
        return made[0]

    def callback(record, pair):
        if at == "the end of an epoch" and record["epoch"] == 2:
            after(made[0], clamp)

    made = []
    vae = small_vae()
    try:
        history = pv.fit(
            vae, X, epochs=4, batch_size=16, optimizer=factory, compile=True, callbacks=[callback]
        )
    finally:
        while HANDLES:
            HANDLES.pop().remove()
    assert history.steps == "compiled"
    assert max(float(p.abs().max()) for p in parameters(vae)) <= 0.1 + 1e-8


@pytest.mark.parametrize("scheduler", [None, *OF_OTHERS, *OF_TORCH])
@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
def test_steps_that_schedulers_of_torch_watch_are_torchs_own(kind, scheduler):
    optimizer = kind([torch.nn.Parameter(torch.zeros(2))], lr=1e-3)
    made = scheduler and scheduler(optimizer)
    assert tracing.updates_inside(optimizer)
    wrapped(optimizer, int)
    assert not tracing.updates_inside(optimizer), made
    KNOWN_TO_PYTHON["temperature"] = 1.0


def test_groups_of_parameters_have_options_of_their_own(inside):
    def factory(parameters, lr):
        half = len(parameters) // 2
        return torch.optim.AdamW(
            [{"params": parameters[:half], "weight_decay": 0.5}, {"params": parameters[half:]}], lr=lr
        )

    fits = [small_vae().double() for _ in range(2)]
    for vae, how in zip(fits, (False, True), strict=True):
        pv.fit(vae, X.double(), epochs=4, batch_size=16, lr=1e-2, optimizer=factory, compile=how)
    for a, b in zip(*map(parameters, fits), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("how", [False, True])
def test_parameters_that_leave_their_support_are_named_before_the_step(how, inside):
    """A concentration below zero, where the gamma function is finite: the loss alone would not tell."""

    class Raw(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.raw = torch.nn.Parameter(torch.tensor([0.3, 0.3]))

        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(1), 1).to_event(1))
                pyro.sample("x", dist.Gamma(self.raw + 0 * z, torch.ones(2)).to_event(1), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(x[:, :1] * 0, 1).to_event(1))

    parts = Raw()
    pair = pv.LatentVariableModel(parts.model, parts.guide)
    x = torch.full((20, 2), 1e-3) * (1 + torch.rand(20, 2))
    with pytest.raises(FloatingPointError, match=r"parameter concentration .* at epoch \d+, step"):
        pv.fit(pair, x, epochs=30, batch_size=5, lr=1.0, optimizer=torch.optim.SGD, compile=how)
    assert bool((parts.raw < 0).any())


@pytest.mark.parametrize(
    ("rows", "whole", "chunks"),
    [(50, 500 * 2, 500 * 2), (480, 334 * 15, 313 * 16), (12_800, 50 * 400, 50 * 400)],
)
def test_few_rows_get_more_epochs_by_default(monkeypatch, rows, whole, chunks):
    asked = []
    monkeypatch.setattr(loop.Loop, "run", lambda self, bar, run: asked.append(self.steps))
    x, options = binary_rows(rows), {"batch_size": 32, "compile": False}
    pv.fit(small_vae(), x, **options)
    pv.fit(small_vae(), list(x.split(rows // 2)), kl_warmup=49, **options)
    pv.fit(small_vae(), x, epochs=3, **options)
    assert asked == [whole, chunks, 3 * -(-rows // 32)]
    epochs = whole // -(-rows // 32)
    with pytest.raises(ValueError, match=rf"fewer epochs than the fit has \({epochs}\)"):
        pv.fit(small_vae(), x, kl_warmup=epochs, **options)


def test_renyi_bounds_take_no_chunks():
    with pytest.raises(ValueError, match="loss: expected a sum over rows"):
        pv.fit(small_vae(), [X[:50], X[50:]], batch_size=90, loss=RenyiELBO(alpha=0.5, num_particles=2))


def test_a_resumable_fit_takes_chunks_that_stay_the_same(tmp_path):
    class Shuffling:
        def __iter__(self):
            return iter(X[torch.randperm(90)].split(45))

    with pytest.raises(ValueError, match="x: expected chunks that are the same in every pass"):
        pv.fit(small_vae(), Shuffling(), epochs=2, checkpoint=tmp_path)


# ---------------------------------------------------------------------------------------------------------
# A last batch of one row


def normalised_vae():
    """BatchNorm in encoder and decoder: a batch of one row has no spread to divide by."""
    torch.manual_seed(0)
    return pv.VAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.Bernoulli(pv.MLP(2, (4,), 6, normalization="batch")),
        pv.encoders.DiagonalNormal(pv.MLP(6, (4,), 4, normalization="batch")),
    )


@pytest.mark.parametrize("how", ["traced", "inside"])
@pytest.mark.parametrize("lengths", [(9,), (17, 8, 25)])
def test_a_last_row_by_itself_is_joined_to_the_batch_before(lengths, how, monkeypatch, request):
    """Any N = k·B + 1, in arrays and chunks, whatever way steps are taken: the ways agree up to rounding."""
    if how == "traced":
        monkeypatch.setattr(traced, "_TRACING_PAYS", 0)
    if how == "inside":
        request.getfixturevalue("inside")
    x = binary_rows(sum(lengths)).double()
    batches = [part.tolist() for part in torch.arange(len(x)).split(lengths)]
    rows = x if len(lengths) == 1 else torch.utils.data.DataLoader(x, batch_sampler=batches)
    options = {"batch_size": 8, "epochs": 2, "lr": 1e-2}
    eager = normalised_vae().double()
    expected = pv.fit(eager, rows, compile=False, **options)
    vae = normalised_vae().double()
    history = pv.fit(vae, rows, compile=True if how == "inside" else "auto", **options)
    assert history.steps == ("compiled" if how == "inside" else how)
    assert np.allclose(history.frame["loss"], expected.frame["loss"], rtol=1e-9)
    assert all(
        torch.allclose(a, b, atol=1e-9) for a, b in zip(vae.parameters(), eager.parameters(), strict=True)
    )


class Exact(torch.nn.Module):
    """z ~ N(0, 1), x ~ N(z, 1), and the exact posterior: one draw's ELBO is log N(x; 0, 2), without noise."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(0.5, dtype=torch.float64))
        self.sizes = []

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=x.dtype), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x):
        if self.training:
            self.sizes.append(len(x))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.weight * x, 0.5**0.5))


@pytest.mark.parametrize(
    ("lengths", "batch_size", "sizes"),
    [
        ((9,), 4, [4, 5]),
        ((5,), 4, [5]),
        ((9,), 8, [9]),
        ((10,), 4, [4, 4, 2]),
        ((3,), 1, [1, 1, 1]),
        ((1,), 4, [1]),
        ((9, 1, 8), 4, [4, 5, 1, 4, 4]),
    ],
)
def test_the_joined_batch_counts_by_its_own_size(lengths, batch_size, sizes):
    """An epoch's loss is −mean log P(x), exactly: every row counts once, each batch with its own N/B."""
    parts = Exact()
    pair = pv.LatentVariableModel(parts.model, parts.guide)
    x = torch.randn(sum(lengths), dtype=torch.float64)
    batches = [part.tolist() for part in torch.arange(len(x)).split(lengths)]
    rows = x if len(lengths) == 1 else torch.utils.data.DataLoader(x, batch_sampler=batches)
    history = pv.fit(pair, rows, batch_size=batch_size, epochs=1, lr=1e-15, compile=False)
    assert parts.sizes == sizes
    exact = dist.Normal(0.0, 2**0.5).log_prob(x).mean()
    assert history.frame["loss"][0] == pytest.approx(-float(exact), abs=1e-6)


@pytest.mark.parametrize(
    ("rows", "batch_size", "argument"),
    [
        (lambda: binary_rows(1), 8, "x"),
        (lambda: binary_rows(5), 1, "batch_size"),
        (lambda: [binary_rows(9), binary_rows(1)], 8, "x"),
    ],
)
def test_batches_of_one_row_are_refused_before_batch_normalisation_fails(rows, batch_size, argument):
    vae = normalised_vae()
    tensors = [*vae.parameters(), *vae.buffers()]
    before = [tensor.detach().clone() for tensor in tensors]
    with pytest.raises(ValueError, match=f"^{argument}: expected two rows or more in every batch"):
        pv.fit(vae, rows(), batch_size=batch_size)
    assert same(before, tensors)
    assert vae.fitted is None


def test_batches_of_one_row_are_taken_where_batch_normalisation_takes_them():
    """One that is frozen, and one over the pixels of a single image."""
    vae = normalised_vae()
    for module in vae.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.eval()
    pv.fit(vae, binary_rows(3), batch_size=1, epochs=1)
    images = torch.nn.Sequential(
        torch.nn.Unflatten(1, (1, 2, 3)), torch.nn.BatchNorm2d(1), torch.nn.Flatten(), torch.nn.Linear(6, 4)
    )
    vae = pv.VAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.Bernoulli(torch.nn.Linear(2, 6)),
        pv.encoders.DiagonalNormal(images),
    )
    pv.fit(vae, binary_rows(3), batch_size=1, epochs=1)
