"""A fit that is stopped and goes on is the fit that was never stopped, bit for bit; and its folder is its own."""

import errno
import functools
import os
import shutil
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pairs import Averaging
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR

import pyrovae as pv
from pyrovae import checkpoints, encoders, identity, likelihoods, priors, storage
from pyrovae.training import loop, traced

X = (torch.rand(90, 6, generator=torch.Generator().manual_seed(0)) < 0.4).float()
TRAIN, VALIDATION = X[:60], X[60:]


def vae(**options):
    torch.manual_seed(0)
    return pv.VAE.mlp(6, 2, hidden_dims=(4,), **options)


def regularised():
    torch.manual_seed(0)
    return pv.VAE(
        priors.GaussianMixture(2, 3),
        likelihoods.Bernoulli(pv.MLP(2, (4,), 6, normalization="batch", dropout=0.3)),
        encoders.FullRankNormal(pv.MLP(6, (4,), 5, dropout=0.3)),
    )


def functional():
    network = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 6))

    def model(x):
        scale = pyro.param("scale", torch.ones(2), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), scale).to_event(1))
            logits = pyro.module("decoder", network)(z.reshape(-1, 2)).reshape(*z.shape[:-1], 6)
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(x):
        weight = pyro.param("weight", lambda: torch.full((6, 2), 0.1))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x @ weight, 0.5).to_event(1))

    torch.manual_seed(0)
    for layer in network:
        layer.reset_parameters()
    return pv.LatentVariableModel(model, guide)


def averaging():
    pair = Averaging()
    return pv.LatentVariableModel(pair.model, pair.guide)


CASES = {
    "Adam": (vae, {}),
    "float64": (lambda: vae().double(), {}),
    "SGD with momentum, a schedule of steps": (
        vae,
        {
            "optimizer": functools.partial(torch.optim.SGD, momentum=0.9),
            "scheduler": functools.partial(StepLR, step_size=2, gamma=0.5),
        },
    ),
    "a schedule on plateaus, clipping, several particles": (
        vae,
        {
            "scheduler": functools.partial(ReduceLROnPlateau, patience=0),
            "clip_norm": 0.1,
            "num_particles": 2,
        },
    ),
    "dropout, batch normalisation, a learned prior": (regularised, {}),
    "early stopping after a warm-up": (
        vae,
        {"validation": VALIDATION, "patience": 1, "kl_warmup": 2, "lr": 0.3},
    ),
    "steps that are skipped": (
        functools.partial(vae, likelihood="gaussian"),
        {"on_nonfinite": "skip", "epochs": 3, "batch_size": 8},
    ),
    "standardised": (functools.partial(vae, likelihood="gaussian", standardize=True), {}),
    "plain functions": (functional, {}),
    "in chunks": (vae, {}),
    "moments of another dtype": (
        lambda: vae().double(),
        {"optimizer": torch.optim.NAdam, "lr": 0.1},
    ),
    "averages of an objective": (averaging, {"loss": pyro.infer.TraceGraph_ELBO()}),
    "a last row by itself": (functional, {}),
}


# Tracing takes long. These cases differ in what a traced step carries from one minibatch to the next.
INSIDE = (
    "Adam",
    "SGD with momentum, a schedule of steps",
    "dropout, batch normalisation, a learned prior",
    "early stopping after a warm-up",
    "steps that are skipped",
    "a last row by itself",
)


def fit(case, folder=None, **options):
    make, more = CASES[case]
    pair = make()
    # 60 rows by 16 are traced twice, for the last minibatch too: the others do with one graph
    batch_size = 16 if case in ("Adam", "in chunks", "a last row by itself") else 15
    arguments = {"epochs": 5, "batch_size": batch_size, "lr": 1e-2, **more, **options}
    checkpoint = None if folder is None else pv.Checkpoint(folder, seconds=0)
    rows = TRAIN.double() if pair.dtype == torch.float64 else TRAIN
    if case == "steps that are skipped":
        rows = rows.clone()
        rows[7] = 1e30
    if case == "a last row by itself":
        rows = rows[:49]
    if case == "in chunks":
        rows = rows.split((32, 28))
    return pair, pv.fit(pair, rows, checkpoint=checkpoint, **arguments)


class Stopped(Exception):
    """A process that ends between two steps."""


def stop_at(monkeypatch, steps):
    """Let training end with an exception before steps, or calls of several, of these numbers, counted over all attempts."""
    taken = 0

    def advance(*args):
        nonlocal taken
        taken += 1
        if taken in steps:
            raise Stopped
        return take(*args)

    take = loop.Loop._advance
    monkeypatch.setattr(loop.Loop, "_advance", advance)


def assert_same(one, two):
    (pair, history), (other, history_of_other) = one, two
    tensors, others = pv.saving.tensors_of(pair), pv.saving.tensors_of(other)
    assert tensors.keys() == others.keys()
    assert all(torch.equal(tensor, others[name]) for name, tensor in tensors.items())
    records, more = (
        [{name: value for name, value in record.items() if name != "seconds"} for record in h.records]
        for h in (history, history_of_other)
    )
    assert repr(records) == repr(more)  # NaN is NaN
    assert (history.stopped, history.best_epoch) == (history_of_other.stopped, history_of_other.best_epoch)


@pytest.mark.parametrize(
    ("case", "steps"),
    [(case, "eager") for case in CASES]
    + [(case, "inside") for case in INSIDE]
    + [("dropout, batch normalisation, a learned prior", "traced")],
)
def test_stopped_and_resumed_it_is_the_same_fit(case, steps, tmp_path, monkeypatch, request):
    """Stopped inside an epoch, right before one, and twice in a row; however steps are taken.

    Each stop inspects the pair and traces its steps again, which takes longest: all but Adam stop once.
    """
    thorough = case == "Adam"
    how = {"compile": {"eager": False, "traced": "auto", "inside": True}[steps]}
    monkeypatch.setattr(traced, "_TRACING_PAYS", 0)
    if steps == "inside":
        request.getfixturevalue("inside")
    whole = fit(case, **how)
    assert whole[1].steps == ("compiled" if steps == "inside" else steps)
    with monkeypatch.context() as patch:
        stops = {"eager": [{9}, {3, 4, 9, 15}], "traced": [{2}], "inside": [{2}, {2, 5}]}[steps][-thorough]
        stop_at(patch, stops)
        for _ in stops:
            with pytest.raises(Stopped):
                fit(case, tmp_path, **how)
        parts = fit(case, tmp_path, **how)
    assert_same(whole, parts)
    if not thorough:
        return
    # and a finished fit is taken as it is
    with monkeypatch.context() as patch:
        stop_at(patch, {1})
        assert_same(whole, fit(case, tmp_path, **how))


@pytest.mark.parametrize("steps", ["eager", "traced", "inside"])
@pytest.mark.parametrize(
    "optimizer", [torch.optim.Adam, functools.partial(torch.optim.Adam, fused=True)], ids=["default", "fused"]
)
def test_a_resumed_fit_pairs_moments_with_parameters_of_any_layout(
    optimizer, steps, tmp_path, monkeypatch, request
):
    """Files keep numbers in the order of their indices, whatever their order in memory was."""
    monkeypatch.setattr(traced, "_TRACING_PAYS", 0)
    if steps == "inside":
        request.getfixturevalue("inside")

    def fit(**options):
        pair = vae()
        for parameter in pair.parameters():
            if parameter.dim() == 2:
                parameter.data = parameter.data.mT.contiguous().mT
        how = {"eager": False, "traced": "auto", "inside": True}[steps]
        options |= {"epochs": 4, "batch_size": 15, "lr": 0.05, "compile": how, "optimizer": optimizer}
        return pair, pv.fit(pair, TRAIN, **options)

    whole = fit()
    with monkeypatch.context() as patch:
        stop_at(patch, {3})
        with pytest.raises(Stopped):
            fit(checkpoint=pv.Checkpoint(tmp_path, seconds=0))
    assert_same(whole, fit(checkpoint=pv.Checkpoint(tmp_path, seconds=0)))


def test_another_initialisation_does_not_matter_to_a_resumed_fit(tmp_path, monkeypatch):
    whole = fit("Adam")
    with monkeypatch.context() as patch:
        stop_at(patch, {7})
        with pytest.raises(Stopped):
            fit("Adam", tmp_path)
    torch.manual_seed(99)
    other = pv.VAE.mlp(6, 2, hidden_dims=(4,))
    history = pv.fit(other, TRAIN, epochs=5, batch_size=16, lr=1e-2, checkpoint=pv.Checkpoint(tmp_path))
    assert_same(whole, (other, history))


def freeze(record, pair):
    if record["epoch"] == 2:
        pair.encoder.requires_grad_(False)
        pair.encoder.eval()  # without dropout
    if record["epoch"] == 4:
        pair.prior.requires_grad_(False)
        pair.encoder.train()


def adapted(pair):
    """Return everything that ``freeze`` changes."""
    return [p.requires_grad for p in pair.parameters()], [m.training for m in pair.modules()]


@pytest.mark.parametrize("compile", [False, "auto"])
def test_what_a_callback_froze_stays_frozen_in_a_resumed_fit(compile, tmp_path, monkeypatch):
    """The fit is stopped after two epochs of four steps, within the next, within the last, and not at all."""
    monkeypatch.setattr(traced, "_TRACING_PAYS", 0)
    options = {"callbacks": [freeze], "compile": compile}
    case = "dropout, batch normalisation, a learned prior"
    whole = fit(case, **options)
    assert (whole[1].steps == "eager") == (compile is False)
    with monkeypatch.context() as patch:
        stops = (
            {9, 11, 19} if compile is False else {3, 5, 13}
        )  # a traced call takes the four steps of an epoch
        stop_at(patch, stops)
        for _ in stops:
            with pytest.raises(Stopped):
                fit(case, tmp_path, **options)
    for _ in range(2):  # the second call finds a finished fit
        parts = fit(case, tmp_path, **options)
        assert_same(whole, parts)
        assert parts[1].steps == whole[1].steps
        assert adapted(parts[0]) == adapted(whole[0])


def test_a_pair_that_is_frozen_before_the_call_is_not_that_of_the_folder(tmp_path):
    def callback(record, pair):
        freeze(record, pair)
        if record["epoch"] == 3:
            raise Stopped

    pair = regularised()
    options = {"epochs": 5, "batch_size": 15, "checkpoint": pv.Checkpoint(tmp_path, seconds=0)}
    with pytest.raises(Stopped):
        pv.fit(pair, TRAIN, callbacks=[callback], **options)
    frozen = [p.requires_grad for p in pair.parameters()]
    with pytest.raises(
        ValueError,
        match=r"another: the list of frozen parameters is \['pair:encoder.*…, was \[\], and 1 more \(optimizer\)\. Freeze",
    ):
        pv.fit(pair, TRAIN, **options)
    assert [p.requires_grad for p in pair.parameters()] == frozen
    pair.requires_grad_(True)
    history = pv.fit(pair, TRAIN, callbacks=[freeze], **options)
    assert_same(
        (pair, history), fit("dropout, batch normalisation, a learned prior", lr=1e-3, callbacks=[freeze])
    )


def test_a_refused_resume_leaves_frozen_parameters_as_they_were(tmp_path):
    fit("Adam", tmp_path, callbacks=[freeze])
    other = vae(activation="tanh")
    before = adapted(other)
    with pytest.raises(ValueError, match="another: the guide's log Q"):
        pv.fit(other, TRAIN, epochs=5, batch_size=16, lr=1e-2, checkpoint=tmp_path)
    assert adapted(other) == before


def test_a_fit_with_frozen_parameters_is_resumed_on_as_many_ranks_only(tmp_path):
    """Ranks cannot share steps with frozen parameters."""
    fit("Adam", tmp_path, callbacks=[freeze])
    path = tmp_path / "last.safetensors"
    arrays, meta = storage.read(path)
    held = {name: storage.unpack(meta[name], arrays) | {"ranks": 2} for name in ("pins", "state")}
    arrays = {}
    storage.write(path, arrays, {name: storage.pack(value, arrays, name) for name, value in held.items()})
    with pytest.raises(ValueError, match=r"got one with \d+ frozen in .*\. Use as many as before: 2\."):
        fit("Adam", tmp_path)


def test_errors_show_the_first_difference_of_long_values(tmp_path):
    assert checkpoints.unlike(4, 3) == ("4", "3")
    numbers, more = list(range(100)), [*range(50), -1, *range(51, 100)]
    now, before = checkpoints.unlike(numbers, more)
    assert len(now) == len(before) == 60
    assert ("49, 50, 51" in now, "49, -1, 51" in before) == (True, True)
    assert (now[:2], now[-1]) == ("…4", "…")
    assert checkpoints.unlike("a" * 58, "a" * 57) == (repr("a" * 58), repr("a" * 57))
    ends = checkpoints.unlike("a" * 99 + "b", "a" * 99)
    assert [text[-4:] for text in ends] == ["aab'", "aaa'"]
    fit("Adam", tmp_path)
    with pytest.raises(
        ValueError, match=r"optimizer is .*'weight_decay': 0\.1, .*, was .*'weight_decay': 0, .*\. Repeat"
    ):
        fit("Adam", tmp_path, optimizer=functools.partial(torch.optim.Adam, weight_decay=0.1))


def test_a_resumed_fit_remembers_the_rows_of_callbacks_before_it_stopped(tmp_path):
    other = 1 - TRAIN

    def callback(record, pair):
        if record["epoch"] == 2:
            pv.fit(pair, other, epochs=1)
        if record["epoch"] == 3:
            raise Stopped

    with pytest.raises(Stopped):
        fit("Adam", tmp_path, callbacks=[callback])
    pair, history = fit("Adam", tmp_path)
    assert len(history) == len(pair.fitted.history["records"]) == 5
    hashes = identity.row_hashes(torch.cat([TRAIN, other]))
    assert {tuple(h) for h in pair.seen} == {tuple(h) for h in hashes}


OTHER = {
    "lr": {"lr": 0.5},
    "epochs": {"epochs": 6},
    "batch_size": {"batch_size": 8},
    "seed": {"seed": 1},
    "clip_norm": {"clip_norm": 1.0},
    "validation": {"validation": VALIDATION},
    "optimizer": {"optimizer": torch.optim.AdamW},
    "scheduler": {"scheduler": functools.partial(StepLR, step_size=1)},
    "loss": {"num_particles": 3},
    "steps": {"compile": True},
}


@pytest.mark.parametrize("name", OTHER)
def test_a_different_run_in_the_same_folder_is_refused_saying_what_differs(name, tmp_path):
    fit("Adam", tmp_path)
    before = (tmp_path / "last.safetensors").read_bytes()
    with pytest.raises(ValueError, match=rf"checkpoint: expected the run in .* got another: .*\b{name}\b"):
        fit("Adam", tmp_path, **OTHER[name])
    assert (tmp_path / "last.safetensors").read_bytes() == before


def test_other_rows_another_model_and_another_number_of_threads_are_refused(tmp_path):
    fit("Adam", tmp_path)
    arguments = {"epochs": 5, "batch_size": 16, "lr": 1e-2, "checkpoint": tmp_path}
    with pytest.raises(ValueError, match="another: x is"):
        pv.fit(vae(), 1 - TRAIN, **arguments)
    with pytest.raises(ValueError, match="another: the guide's log Q"):
        pv.fit(vae(activation="tanh"), TRAIN, **arguments)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        with pytest.raises(ValueError, match=f"another: threads is {threads + 1}, was {threads}"):
            pv.fit(vae(), TRAIN, **arguments)
    finally:
        torch.set_num_threads(threads)


def test_a_full_disk_says_so_and_the_earlier_checkpoint_stays_good(tmp_path, monkeypatch):
    whole, flush, written = fit("Adam"), os.fsync, 0

    def full(descriptor):
        nonlocal written
        written += 1
        if written > 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="The disk is full: make room"):
            fit("Adam", tmp_path)
    arrays, _ = storage.read(tmp_path / "last.safetensors")
    assert arrays
    assert not list(tmp_path.glob("*.tmp"))
    assert_same(whole, fit("Adam", tmp_path))


def test_a_damaged_checkpoint_is_refused_before_anything_is_touched(tmp_path):
    fit("Adam", tmp_path)
    path = tmp_path / "last.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    pair = vae()
    before = [p.clone() for p in pair.parameters()]
    with pytest.raises(ValueError, match=r"checkpoint: .*sha256.*Remove the file to begin anew"):
        pv.fit(pair, TRAIN, epochs=5, batch_size=16, lr=1e-2, checkpoint=tmp_path)
    assert all(torch.equal(p, q) for p, q in zip(pair.parameters(), before, strict=True))


def test_one_run_at_a_time_in_a_folder(tmp_path):
    with (
        storage.lock(tmp_path),
        pytest.raises(OSError, match="folder: expected a folder that no other process"),
    ):
        fit("Adam", tmp_path)


def test_the_best_model_so_far_is_there_to_be_loaded(tmp_path):
    case = "early stopping after a warm-up"
    pair, history = fit(case, tmp_path)
    best = pv.load(tmp_path / "best.safetensors")
    assert history.stopped == "patience"
    assert history.best_epoch < len(history)
    assert all(torch.equal(p, q) for p, q in zip(best.parameters(), pair.parameters(), strict=True))


@pytest.mark.parametrize(
    ("checkpoint", "message"), [(3, "checkpoint: expected a"), ((), "checkpoint: expected a")]
)
def test_checkpoints_that_are_none(checkpoint, message):
    with pytest.raises(TypeError, match=message):
        pv.fit(vae(), TRAIN, checkpoint=checkpoint)
    with pytest.raises(ValueError, match="seconds"):
        pv.Checkpoint("a", seconds=-1)


SCRIPT = """
import os, signal, sys, torch, pyrovae as pv
from pyrovae.training import loop
for number in (signal.SIGTERM, signal.SIGINT):  # a process for each, and torch imported once
    pid = os.fork()
    if pid == 0:
        break
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
else:
    sys.exit()
take, taken = loop.step, 0
def step(*args):
    global taken
    taken += 1
    if taken == 7:
        os.kill(os.getpid(), number)
    return take(*args)
loop.step = step
torch.manual_seed(0)
x = (torch.rand(90, 6, generator=torch.Generator().manual_seed(0)) < 0.4).float()
vae = pv.VAE.mlp(6, 2, hidden_dims=(4,))
history = pv.fit(vae, x[:60], epochs=5, batch_size=16, lr=1e-2, checkpoint=f"{sys.argv[1]}/{number.name}")
print(history.stopped, flush=True)
"""


@pytest.mark.slow
def test_a_signal_writes_a_last_checkpoint(tmp_path):
    """At step 7 of 20, long before the minute is over. SIGTERM then ends the process, Ctrl-C ends the fit."""
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    assert run.stdout.split() == [str(-signal.SIGTERM), "interrupted", "0"], run.stderr
    whole = fit("Adam")
    for name in ("SIGTERM", "SIGINT"):
        arrays, meta = storage.read(tmp_path / name / "last.safetensors")
        state = storage.unpack(meta["state"], arrays)
        assert (state["epoch"], state["so far"]["number"]) == (1, 3)
        assert_same(whole, fit("Adam", tmp_path / name))


LONG = {name: {"num_samples": 30} for name in pv.evidence.METHODS if name != "exact"} | {
    "annealed": {"num_samples": 4, "num_temperatures": 5},
    "refined": {"num_samples": 100, "num_starts": 2, "num_steps": 2},
    "quadrature": {"tolerance": 0.1},
    "auto": {"target_mcse": 0.2},
}


def narrow():
    torch.manual_seed(0)
    return pv.VAE.mlp(6, 1, hidden_dims=(4,))


@pytest.mark.parametrize("method", LONG)
def test_an_evaluation_that_is_stopped_goes_on_with_the_blocks_it_has_not(method, tmp_path, monkeypatch):
    """Blocks of 20 rows; stopped while the third file is written: the first two blocks are not computed again."""
    arguments = {"method": method, "tile": (20, 64), "seed": 3, **LONG[method]}
    if method == "auto":
        monkeypatch.setattr(sys.modules["pyrovae.evidence.auto"], "_ROWS_AT_ONCE", 20)
    whole = pv.log_evidence(narrow(), X, check=False, **arguments)
    written, computed, write = 0, [], storage.write
    keep = pv.checkpoints.Parts.keep

    def stop(path, *rest):
        nonlocal written
        written += 1
        if written == 4:  # the evaluation's own file, and three blocks
            raise Stopped
        write(path, *rest)

    def counting(self, number, compute):
        def once():
            computed.append(number)
            return compute()

        return keep(self, number, once)

    monkeypatch.setattr(pv.checkpoints.Parts, "keep", counting)
    monkeypatch.setattr(storage, "write", stop)
    with pytest.raises(Stopped):
        pv.log_evidence(narrow(), X, checkpoint=tmp_path, check=False, **arguments)
    again = pv.log_evidence(narrow(), X, checkpoint=tmp_path, check=False, **arguments)
    assert computed == [0, 1, 2, 2, 3, 4]
    for name in ("estimate", "mcse", "bias", "ess", "pareto_k", "cost", "verdict", "answered_by"):
        assert getattr(again, name).tobytes() == getattr(whole, name).tobytes(), name


def test_an_evaluation_s_folder_is_its_own(tmp_path):
    arguments = {"num_samples": 10, "checkpoint": tmp_path}
    pv.log_evidence(vae(), X, check=False, **arguments)
    for name, pair, x, more in (
        ("seed", vae(), X, {"seed": 1}),
        ("num_samples", vae(), X, {"num_samples": 11}),
        ("method", vae(), X, {"method": "jackknife"}),
        ("x", vae(), 1 - X, {}),
        ("parameters", regularised(), X, {}),
    ):
        with pytest.raises(
            ValueError, match=rf"checkpoint: expected the run in .* got another: .*\b{name}\b"
        ):
            pv.log_evidence(pair, x, **(arguments | more), check=False)
    with pytest.raises(TypeError, match="checkpoint: expected a"):
        pv.log_evidence(vae(), X, checkpoint=3, check=False)


def test_a_part_under_another_number_is_refused(tmp_path):
    """Blocks of rows have parts of one shape, so a copied part would score the rows of another block."""
    arguments = {"num_samples": 10, "tile": (10, 10), "check": False, "checkpoint": tmp_path}
    whole = pv.log_evidence(vae(), X, **arguments)
    part = tmp_path / "part-1.safetensors"
    content = part.read_bytes()
    shutil.copy(tmp_path / "part-0.safetensors", part)
    with pytest.raises(
        ValueError,
        match=r"checkpoint: expected part 1 of .*part-1\.safetensors, got part 0, .*Remove that file",
    ):
        pv.log_evidence(vae(), X, **arguments)
    part.unlink()
    assert pv.log_evidence(vae(), X, **arguments).estimate.tobytes() == whole.estimate.tobytes()
    assert part.read_bytes() == content


def test_the_same_weights_in_another_model_are_another_evaluation(tmp_path):
    """Scale, activation, code: what no parameter says."""
    torch.manual_seed(0)
    one = pv.VAE.mlp(6, 1, "gaussian", hidden_dims=(4,), scale=0.1)
    for name, other in (
        ("scale", pv.VAE.mlp(6, 1, "gaussian", hidden_dims=(4,), scale=1.0)),
        ("tanh", pv.VAE.mlp(6, 1, "gaussian", hidden_dims=(4,), scale=0.1, activation="tanh")),
    ):
        other.load_state_dict(one.state_dict())
        pv.log_evidence(one, X, num_samples=10, checkpoint=tmp_path / name, check=False)
        with pytest.raises(ValueError, match="got another: the "):
            pv.log_evidence(other, X, num_samples=10, checkpoint=tmp_path / name, check=False)

    def pair(width):
        def model(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z, width), obs=x)

        def guide(x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(x / 2, 1.0))

        return pv.LatentVariableModel(model, guide)

    rows = torch.randn(5)
    pv.log_evidence(pair(1.0), rows, num_samples=10, checkpoint=tmp_path / "plain", check=False)
    with pytest.raises(ValueError, match="got another: the "):
        pv.log_evidence(pair(2.0), rows, num_samples=10, checkpoint=tmp_path / "plain", check=False)


# ---------------------------------------------------------------------------------------------------------
# Models are known by what they compute


SCALE = 1.0
ROWS = torch.linspace(-2, 2, 40)[:, None]


def observed(x, s, weight=None):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z if weight is None else z * weight, s).to_event(1), obs=x)


def encoded(x):
    loc = pyro.param("loc", torch.zeros(1))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc + x / 2, 1.0).to_event(1))


class Holder:
    """A callable whose attribute is the scale."""

    def __init__(self, s):
        self.s = s

    def __call__(self, x):
        observed(x, self.s)


class Module(torch.nn.Module):
    """A module whose plain attribute is the scale, of a kind that is no number."""

    def __init__(self, s):
        super().__init__()
        self.options = {"s": s}

    def forward(self, x):
        observed(x, self.options["s"])


class Noisy(torch.nn.Module):
    """A module that is the same in eval() mode, whatever s is."""

    def __init__(self, s):
        super().__init__()
        self.s = (s,)

    def forward(self, x):
        observed(x, 1.0 + (torch.rand(()) * self.s[0] if self.training else 0.0))


def of_default(s):
    def model(x, *, s=s):
        observed(x, s)

    return model


def of_function(s):
    def scale():
        return s

    return lambda x: observed(x, scale())


def of_global(s):
    globals()["SCALE"] = s
    return lambda x: observed(x, SCALE)


def of_tensor(s):
    kernel = torch.full((1,), s)
    return lambda x: observed(x, 1.0, kernel)


def of_partial_of_object(s):
    return functools.partial(Holder(1.0).__class__.__call__, Holder(s))


def off_the_guide(s):
    """Another scale at z that the guide, here the prior's, seldom draws."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, torch.where(z < -1.5, s, 1.0)).to_event(1), obs=x)

    return model


def slightly(s):
    return functools.partial(observed, s=1.0 + s / 1000)


#: How a model may hold a number that no parameter and no code of its own shows.
HELD = {
    "partial": lambda s: functools.partial(observed, s=s),
    "default": of_default,
    "function of a closure": of_function,
    "global": of_global,
    "attribute of an object": Holder,
    "partial of an object": of_partial_of_object,
    "attribute of a module": Module,
    "tensor of a closure": of_tensor,
    "off the guide": off_the_guide,
    "small": slightly,
}


def pair_of(how, s):
    return pv.LatentVariableModel(({"in training": Noisy} | HELD)[how](s), encoded)


def short_fit(pair, folder, **options):
    return pv.fit(
        pair, ROWS, checkpoint=folder, **({"epochs": 2, "batch_size": 20, "compile": False} | options)
    )


def assert_unchanged(pair, folder, act):
    """A refused call leaves the file, the generator, and the pair's weights, store, mode and history as they were."""
    files = {path: path.read_bytes() for path in folder.glob("*.safetensors")}
    before, state, fitted = dict(pair.stored), torch.random.get_rng_state(), pair.fitted
    values = {name: value.clone() for name, value in before.items()}
    with pytest.raises(
        ValueError, match=r"checkpoint: expected the run in .* got another: the .* was .* differ"
    ):
        act()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert pair.stored.keys() == before.keys()
    assert all(torch.equal(pair.stored[name], value) for name, value in values.items())
    assert (pair.training, pair.fitted) == (True, fitted)
    assert {path: path.read_bytes() for path in folder.glob("*.safetensors")} == files


@pytest.mark.parametrize("how", HELD)
def test_an_evaluation_goes_on_with_the_same_model_only(how, tmp_path):
    arguments = {"method": "importance", "num_samples": 20, "seed": 1}
    whole = pv.log_evidence(pair_of(how, 2.0), ROWS, **arguments, checkpoint=tmp_path, check=False)
    again = pv.log_evidence(pair_of(how, 2.0), ROWS, **arguments, checkpoint=tmp_path, check=False)
    assert again.estimate.tobytes() == whole.estimate.tobytes()
    other = pair_of(how, 3.0)
    pv.elbo(other, ROWS, num_samples=1)
    assert_unchanged(
        other, tmp_path, lambda: pv.log_evidence(other, ROWS, **arguments, checkpoint=tmp_path, check=False)
    )


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("how", [*HELD, "in training"])
def test_a_fit_is_resumed_with_the_same_model_only(how, trained, tmp_path):
    short_fit(pair_of(how, 2.0), tmp_path)
    assert len(short_fit(pair_of(how, 2.0), tmp_path)) == 2
    other = pair_of(how, 3.0)
    if trained:
        pv.fit(other, ROWS, epochs=1, compile=False)
    assert_unchanged(other, tmp_path, lambda: short_fit(other, tmp_path))


class Weighted(pyro.infer.Trace_ELBO):
    """An objective with an argument of its own."""

    def __init__(self, weight):
        super().__init__()
        self._weight = weight

    def differentiable_loss(self, model, guide, *args, **kwargs):
        return self._weight * super().differentiable_loss(model, guide, *args, **kwargs)


class Detached(pyro.infer.Trace_ELBO):
    """An objective of the same value with another gradient."""

    def __init__(self, weight):
        super().__init__()
        self._weight = weight

    def differentiable_loss(self, model, guide, *args, **kwargs):
        total = super().differentiable_loss(model, guide, *args, **kwargs)
        return total * self._weight - (total * (self._weight - 1)).detach()


def schedule(decay):
    return functools.partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=lambda epoch: decay**epoch)


def in_sequence(step):
    schedules = torch.optim.lr_scheduler
    return lambda o: schedules.SequentialLR(o, [schedules.ConstantLR(o), StepLR(o, step)], milestones=[1])


def in_groups(share):
    return lambda parameters, lr: torch.optim.SGD([{"params": parameters, "lr": lr * share}], lr=lr)


@pytest.mark.parametrize(
    ("argument", "make"),
    [
        ("loss", lambda v: pyro.infer.RenyiELBO(alpha=v / 4, num_particles=2)),
        ("loss", Weighted),
        ("gradient", Detached),
        ("scheduler", schedule),
        ("scheduler", in_sequence),
        ("scheduler", lambda v: functools.partial(torch.optim.lr_scheduler.MultiStepLR, milestones=[v])),
        ("optimizer", in_groups),
        ("optimizer", lambda v: functools.partial(torch.optim.Adam, betas=(0.9, 1 - 10.0**-v))),
    ],
)
def test_a_fit_is_resumed_with_the_same_arguments_only(argument, make, tmp_path):
    name = {"gradient": "loss"}.get(argument, argument)
    options = {"batch_size": len(ROWS)}
    short_fit(pair_of("partial", 2.0), tmp_path, **options, **{name: make(2)})
    assert len(short_fit(pair_of("partial", 2.0), tmp_path, **options, **{name: make(2)})) == 2
    with pytest.raises(ValueError, match=rf"checkpoint: .* got another: .*\b{argument}\b"):
        short_fit(pair_of("partial", 2.0), tmp_path, **options, **{name: make(3)})


MANY = 3000
RARE = np.isin(np.arange(MANY), [17, 1999])
# Each value of these that two rows alone have lies between others.
BESIDE = {
    "label": np.where(RARE, 7, np.arange(MANY) % 3 * 5),
    "small label": np.where(RARE, 7, np.arange(MANY) % 3 * 5).astype(np.int8),
    "real label": np.where(RARE, 0.5, np.arange(MANY) % 2),
    "mask": RARE,
    "series": pd.Series(np.where(RARE, 7, np.arange(MANY) % 3 * 5)),
    "two columns": np.stack([np.arange(MANY), np.where(RARE, 2, np.arange(MANY) % 2 * 3)], axis=1),
    "identifiers": np.where(RARE, 3000, np.arange(MANY) // 10),
}


def of_rare(rare, shift):
    """A pair that differs by ``shift`` where the last column beside the rows is ``rare``."""
    layer = torch.nn.Linear(2, 1)
    with torch.no_grad():
        layer.weight.fill_(0.5)
        layer.bias.zero_()

    def model(x, beside):
        off = shift * (beside.reshape(len(x), -1)[:, -1:] == rare)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z + off.expand(len(x), 2), 1.0).to_event(1), obs=x)

    def guide(x, beside):
        encode = pyro.module("layer", layer)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(encode(x), 1.0).to_event(1))

    return pv.LatentVariableModel(model, guide)


@pytest.mark.parametrize("name", BESIDE)
def test_a_model_that_differs_at_a_rare_value_is_another(name, tmp_path):
    value = BESIDE[name]
    rows = {"x": torch.randn(MANY, 2, generator=torch.Generator().manual_seed(0)), "beside": value}
    rare = np.asarray(value).reshape(MANY, -1)[17, -1].item()
    arguments = {"num_samples": 2, "compile": False, "checkpoint": tmp_path}
    pv.log_evidence(of_rare(rare, 0.0), rows, check=False, **arguments)
    pv.log_evidence(of_rare(rare, 0.0), rows, check=False, **arguments)
    with pytest.raises(ValueError, match=r"got another: the model's log P\(x \| z\)"):
        pv.log_evidence(of_rare(rare, 9.0), rows, check=False, **arguments)


def test_a_fit_of_a_model_that_differs_at_a_rare_label_is_another(tmp_path):
    rows = {"x": torch.randn(MANY, 2, generator=torch.Generator().manual_seed(0)), "beside": BESIDE["label"]}
    arguments = {"epochs": 1, "batch_size": 1000, "compile": False, "checkpoint": tmp_path}
    pv.fit(of_rare(7, 0.0), rows, **arguments)
    assert len(pv.fit(of_rare(7, 0.0), rows, **arguments)) == 1
    with pytest.raises(ValueError, match=r"got another: the model's log P\(x \| z\)"):
        pv.fit(of_rare(7, 9.0), rows, **arguments)


def of_momentum(layer, momentum):
    torch.manual_seed(0)
    encoder = torch.nn.Sequential(layer(2, momentum=momentum), torch.nn.Linear(2, 1))

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.expand(*z.shape[:-1], 2), 1.0).to_event(1), obs=x)

    def guide(x):
        encode = pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(encode(x), 1.0).to_event(1))

    return pv.LatentVariableModel(model, guide)


class Running(torch.nn.Module):
    """Moves a mean in training, and uses it in ``eval()`` alone."""

    def __init__(self, width, momentum):
        super().__init__()
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(width, dtype=torch.float64))

    def forward(self, x):
        if self.training:
            self.mean.lerp_(x.detach().double().mean(0), self.momentum)
            return x - x.mean(0)
        return x - self.mean.to(x.dtype)


@pytest.mark.parametrize("layer", [torch.nn.BatchNorm1d, Running])
def test_a_fit_with_another_momentum_of_buffers_is_another(layer, tmp_path):
    """No loss, gradient or term shows it before the next step."""
    rows = 1 + torch.randn(70, 2, generator=torch.Generator().manual_seed(0))
    short_fit_of = functools.partial(pv.fit, epochs=2, batch_size=20, compile=False, checkpoint=tmp_path)
    short_fit_of(of_momentum(layer, 0.1), rows)
    assert len(short_fit_of(of_momentum(layer, 0.1), rows)) == 2
    with pytest.raises(ValueError, match="got another: what a step makes of the buffers"):
        short_fit_of(of_momentum(layer, 0.9), rows)


def test_folders_of_an_earlier_format_are_refused_by_name(tmp_path, monkeypatch):
    machine = pv.checkpoints.machine
    with monkeypatch.context() as patch:
        patch.setattr(
            pv.checkpoints, "machine", lambda: {k: v for k, v in machine().items() if k != "format"}
        )
        patch.setattr(pv.checkpoints, "_check_pins", lambda *_: None)
        short_fit(pair_of("partial", 2.0), tmp_path)
    with pytest.raises(
        ValueError, match=r"checkpoint: expected a folder of format 6, .* of format 1\. Finish"
    ):
        short_fit(pair_of("partial", 2.0), tmp_path)


def test_a_fit_resumes_with_the_same_column_names_only(tmp_path):
    """Folders of earlier versions hold no names."""

    def named(*names):
        vae = pv.VAE.mlp(2, 1, likelihood="gaussian", hidden_dims=(4,)).double()
        pv.fit(vae, pd.DataFrame(rows, columns=names), epochs=2, checkpoint=tmp_path)
        return vae.names

    rows = torch.randn(20, 2).double().numpy()
    torch.manual_seed(0)
    assert named("height", "weight") == {"x": ("height", "weight")}
    message = r"another: the list of column names is \{'x': \['weight', 'height'\]\}, was \{'x': \['height', 'weight'\]\}"
    with pytest.raises(ValueError, match=message):
        named("weight", "height")
    pins = {pv.checkpoints.NAMES: {"x": ["height"]}, "ranks": 1, "format": 5}
    pv.checkpoints._check_pins(tmp_path, {"format": 5}, pins)


def test_what_checkpoints_ask_changes_nothing_in_a_fit(tmp_path):
    """Attributes that count calls in training, and buffers that others take the place of."""

    class Counting(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.calls = 0
            self.register_buffer("mean", torch.zeros(1))

        def forward(self, x):
            if self.training:
                self.calls += 1
                self.mean = 0.9 * self.mean + 0.1 * x.mean()
            observed(x, 1.0 + 0.01 * self.calls, 1.0 + self.mean)

    fits = []
    for folder in (None, pv.Checkpoint(tmp_path, seconds=0)):
        pair = pv.LatentVariableModel(Counting(), encoded)
        fits.append((pair, short_fit(pair, folder)))
    assert_same(*fits)
    assert fits[0][0].model.calls == fits[1][0].model.calls


class Staged(torch.nn.Module):
    """A noise scale that is fixed for ten steps and then learned; it counts the steps and remembers when it began to."""

    def __init__(self, folder="first"):
        super().__init__()
        torch.manual_seed(0)
        self.decoder, self.encoder = torch.nn.Linear(2, 6), torch.nn.Linear(6, 2)
        self.log_scale = torch.nn.Parameter(torch.zeros(()))
        self.steps, self.began, self.folder = 0, None, folder
        self.small, self.warmth = np.int8(0), 1.0

    def model(self, x):
        self.steps += self.training
        if self.training:
            self.small += 1
            self.warmth = max(0.5, np.exp(-0.01 * self.steps))  # a float64 of numpy's
        if self.steps > 10 and self.began is None:
            self.began = self.steps
        scale = float(self.warmth) if self.began is None else self.log_scale.exp()
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), scale).to_event(1), obs=x)

    def guide(self, x, scale=0.5):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x), scale).to_event(1))


class StagedLoss(pyro.infer.Trace_ELBO):
    """Half the loss for eight steps."""

    steps = 0

    def differentiable_loss(self, *args, **kwargs):
        self.steps += 1
        return super().differentiable_loss(*args, **kwargs) * (0.5 if self.steps <= 8 else 1.0)


def staged(folder=None, where="first", **options):
    held, loss = Staged(where), StagedLoss()
    pair = pv.LatentVariableModel(held.model, held.guide)
    checkpoint = None if folder is None else pv.Checkpoint(folder, seconds=0)
    history = pv.fit(
        pair, TRAIN, epochs=5, batch_size=15, lr=0.05, loss=loss, checkpoint=checkpoint, **options
    )
    return (pair, history), held, loss


def test_a_resumed_fit_counts_on(tmp_path, monkeypatch):
    """In attributes of modules and of the loss. Attributes that the fit has not changed are those of the call."""
    whole, held, loss = staged()
    with monkeypatch.context() as patch:
        stop_at(patch, {7, 9, 17})
        for _ in range(3):
            with pytest.raises(Stopped):
                staged(tmp_path)
    parts, again, of_parts = staged(tmp_path, "second")
    assert_same(whole, parts)
    assert (again.steps, again.began, of_parts.steps) == (held.steps, held.began, loss.steps) == (20, 11, 20)
    assert again.folder == "second"
    for now, expected in ((again.small, np.int8(20)), (again.warmth, np.exp(-0.2))):
        assert now == expected
        assert type(now) is type(expected)


def test_a_refused_resume_leaves_counters_as_they_were(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, {9})
        with pytest.raises(Stopped):
            staged(tmp_path)
    held, loss = Staged(), StagedLoss()
    pair = pv.LatentVariableModel(held.model, functools.partial(held.guide, scale=0.6))
    with pytest.raises(ValueError, match="keeps no other state of Python, such as a counter in a dict"):
        pv.fit(pair, TRAIN, epochs=5, batch_size=15, lr=0.05, loss=loss, checkpoint=tmp_path)
    assert (held.steps, held.began, loss.steps) == (0, None, 0)


def test_checkpoints_without_attributes_and_averages_are_resumed(tmp_path, monkeypatch):
    """Those of earlier versions have neither."""

    def earlier(self):
        return {name: value for name, value in snapshot(self).items() if name not in ("values", "averages")}

    snapshot = loop.Loop.snapshot
    with monkeypatch.context() as patch:
        patch.setattr(loop.Loop, "snapshot", earlier)
        stop_at(patch, {9})
        with pytest.raises(Stopped):
            fit("Adam", tmp_path, compile=False)
    assert_same(fit("Adam", compile=False), fit("Adam", tmp_path, compile=False))
