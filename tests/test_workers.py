"""Blocks computed by an executor's workers have the bits of one process, whatever happens to the workers."""

import functools
import itertools
import multiprocessing
import os
import sys
import threading
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyrovae as pv
from pyrovae.evaluation import Evaluation
from pyrovae.evidence import workers

COLUMNS = ("estimate", "mcse", "bias", "ess", "pareto_k", "tail_error", "cost", "kind", "verdict")
X = (torch.rand(40, 6, generator=torch.Generator().manual_seed(0)) < 0.3).float()
FEW = {"num_samples": 64, "tile": (7, 32), "check": False, "compile": False}


class Here(Executor):
    """Computes at once, in the caller; ``fates`` are put in the place of the first answers, None for none."""

    def __init__(self, *fates, workers=2):
        self.num_workers, self.fates, self.futures, self.setups = workers, list(fates), [], 0

    def submit(self, work, call, caller, compute, *task):
        future = Future()
        self.futures.append(future)
        self.setups += len(task) == 3 and task[1] is not None
        fate = self.fates.pop(0) if self.fates else None
        if fate == "wait":
            return future
        future.set_running_or_notify_cancel()
        if fate is None:
            future.set_result(work(call, caller, compute, *task))
        else:
            future.set_exception(fate)
        return future


def assert_same(a, b):
    for name in (*COLUMNS, "answered_by"):
        assert getattr(a, name).tobytes() == getattr(b, name).tobytes(), name
    assert a.reasons == b.reasons


def vae(latent_dim=2):
    torch.manual_seed(0)
    return pv.VAE.mlp(6, latent_dim, hidden_dims=(4,))


def of_functions(more=None):
    """A pair of local functions, whose guide is cut off so that ``unreached`` has rows to find."""

    def model(x):
        if more is not None:
            more(x)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z[..., None].expand(*z.shape, 6), 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            centre = pyro.param("a", torch.tensor(0.3)) * x.mean(dim=-1)
            pyro.sample("z", dist.Uniform(centre - 1, centre + 1))

    return pv.LatentVariableModel(model, guide)


@pytest.fixture(scope="module")
def pool():
    """Two spawned workers, and the caller in one thread, as a user is told to."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def in_order(monkeypatch):
    """The task that was sent first is done first."""
    monkeypatch.setattr(workers, "wait", lambda running, return_when: ({next(iter(running))}, None))


@pytest.fixture
def reversed_order(monkeypatch):
    """The task that was sent last is done first."""
    monkeypatch.setattr(workers, "wait", lambda running, return_when: ({list(running)[-1]}, None))


METHODS = {
    "importance": FEW,
    "jackknife": FEW,
    "annealed": FEW | {"num_samples": 4, "num_temperatures": 4, "tile": (20, 4)},
    "refined": {"num_samples": 100, "tile": (20, 100), "num_starts": 2, "check": False},
    "quadrature": {"tile": (20, 4096), "tolerance": 0.1, "check": False},
    "auto": {"target_mcse": 0.2, "max_cost": 2000, "check": False},
}


@pytest.mark.usefixtures("reversed_order")
@pytest.mark.parametrize("method", METHODS)
def test_other_workers_in_another_order_give_the_same_bits(method, monkeypatch):
    """In tasks of one block and of several."""
    if method == "auto":
        monkeypatch.setattr(sys.modules["pyrovae.evidence.auto"], "_ROWS_AT_ONCE", 40)
    pair = vae(1 if method == "quadrature" else 2)
    whole = pv.log_evidence(pair, X, method=method, **METHODS[method])
    here = Here()
    assert_same(whole, pv.log_evidence(pair, X, method=method, executor=here, **METHODS[method]))
    assert len(here.futures) > 1


def test_a_pair_of_local_functions_goes_to_spawned_workers(pool):
    """Under the caller's default dtype, which is not theirs."""
    torch.set_default_dtype(torch.float64)
    try:
        pair, x = of_functions(), X.double()
        whole = pv.log_evidence(pair, x, **FEW)
        spread = pv.log_evidence(pair, x, executor=pool, **FEW)
    finally:
        torch.set_default_dtype(torch.float32)
    assert_same(whole, spread)
    assert "density 0" in whole.reasons[0]


@contextmanager
def other_settings():
    """Other settings than a new process has; at the end they are as before."""
    before, precision = workers._switches(), torch.get_float32_matmul_precision()
    workers._switch(
        {
            "threads": before["threads"] + 1,
            "dtype": torch.float64,
            "deterministic": True,
            "warn_only": True,
            "onednn": False,
        }
    )
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        workers._switch(before)
        torch.set_float32_matmul_precision(precision)


def test_a_worker_computes_under_the_caller_s_settings_and_keeps_its_own():
    own = workers._settings()
    with other_settings():
        settings = workers._settings()
    assert workers._settings() == own
    assert not {"threads", "dtype", "deterministic", "warn_only", "onednn", "precision"} & {
        name for name in own if own[name] == settings[name]
    }
    with workers._as_caller(settings):
        assert workers._settings() == settings
    assert workers._settings() == own


def test_spawned_workers_take_deterministic_algorithms_and_onednn_from_the_caller(pool):
    with other_settings():
        torch.set_num_threads(1)
        torch.set_default_dtype(torch.float32)
        whole = pv.log_evidence(vae(), X, **FEW)
        spread = pv.log_evidence(vae(), X, executor=pool, **FEW)
    assert_same(whole, spread)


def test_chunks_of_rows_are_spread():
    whole = pv.log_evidence(vae(), X, **FEW)
    assert_same(whole, pv.log_evidence(vae(), [X[:11], X[11:]], executor=Here(), **FEW))


def test_the_check_is_made_by_the_caller():
    """With a check, workers get no more tasks."""
    counts = []
    for check in (False, True):
        here = Here()
        found = pv.log_evidence(vae(), X, executor=here, **FEW | {"check": check, "num_samples": 200})
        counts.append(len(here.futures))
    assert counts[0] == counts[1]
    assert found.check.simulated >= 64


def test_compare_passes_the_executor_on():
    here = Here()
    options = FEW | {"method": "importance", "executor": here}
    pv.compare({"a": vae(), "b": pv.baselines.IndependentBernoulli().fit(X[:30])}, X[30:], **options)
    assert here.futures


@pytest.mark.parametrize("offset", [1, 5, 10])
def test_bits_do_not_depend_on_where_in_memory_rows_begin(offset):
    moved = torch.zeros(X.numel() + offset)[offset:].view(X.shape).copy_(X)
    assert_same(pv.log_evidence(vae(), X, **FEW), pv.log_evidence(vae(), moved, **FEW))


def test_tiles_begin_where_torch_allocates():
    """On some processors, a product rounds by where its factors begin."""
    assert Evaluation.prepare(vae(), X, 64, 0, (7, 32)).part(slice(3, 10))["x"].storage_offset() == 0


def test_a_task_is_traced_as_the_whole_would_be():
    """``compile="auto"`` decides by the amount of work of all rows, because compiling changes the last digits."""
    whole = Evaluation.prepare(vae(), X, 64, 0, (7, 32))
    task = replace(whole, batch=whole.part(slice(14, 28)), out_of=40)
    assert [task.rows_alike(n) for n in (7, 5, 3)] == [whole.rows_alike(n) for n in (7, 5, 3)] == [35, 5, 0]


def test_graphs_and_the_reason_for_none_come_from_the_workers(monkeypatch):
    def reads(x):
        if x.sum() < -1:
            raise ValueError

    monkeypatch.setattr(pv.tracing.evaluation, "_TRACING_PAYS", 0)
    options = FEW | {"compile": "auto"}
    assert_same(pv.log_evidence(vae(), X, **options), pv.log_evidence(vae(), X, executor=Here(), **options))
    spread = pv.log_evidence(of_functions(reads), X, executor=Here(), **options)
    assert "reads a tensor's value" in spread.uncompiled


# ---------------------------------------------------------------------------------------------------------
# Tasks that are no blocks of rows: the fits of swap


FAMILIES = {
    "families": ["bernoulli", "poisson", "gaussian"],
    "hidden_dims": (4,),
    "epochs": 2,
    "compile": False,
}


def swapped(monkeypatch, executor):
    options = {"num_samples": 20, "check": False, "tile": (7, 20), "compile": False}
    scored = functools.partial(pv.log_evidence, **options)
    monkeypatch.setattr("pyrovae.comparison.swapping.log_evidence", scored)
    return pv.swap(X, 1, **FAMILIES, method="importance", executor=executor)


def assert_same_families(one, other):
    assert list(one.models) == list(other.models)
    for name, vae in one.models.items():
        again = other.models[name]
        assert vae.fitted.fingerprint == again.fitted.fingerprint
        assert all(torch.equal(a, b) for a, b in zip(vae.parameters(), again.parameters(), strict=True))
    for table in ("masses", "densities"):
        a, b = (getattr(found, table).drop(columns="seconds") for found in (one, other))
        assert a.equals(b)


@pytest.mark.usefixtures("reversed_order")
def test_families_fitted_by_workers_in_another_order_have_the_same_bits(monkeypatch):
    """One worker dies while it fits."""
    here = Here(None, BrokenProcessPool("a worker died"))
    assert_same_families(swapped(monkeypatch, None), swapped(monkeypatch, here))
    assert len(here.futures) > len(FAMILIES["families"]) + 1  # scores, too


def test_families_are_fitted_by_spawned_workers(pool, monkeypatch):
    assert_same_families(swapped(monkeypatch, None), swapped(monkeypatch, pool))


def test_a_fit_that_fails_raises_its_error_and_dead_workers_theirs(monkeypatch):
    def fails(record, pair):
        raise KeyError("a callback")

    with pytest.raises(KeyError, match="a callback"):
        pv.swap(X, 1, **FAMILIES, callbacks=[fails], executor=Here())
    died = [BrokenProcessPool("a worker died")] * 99
    with pytest.raises(BrokenExecutor, match=r"5 tries .* while task \d of 3 and others"):
        swapped(monkeypatch, Here(*died))
    with pytest.raises(ValueError, match="executor: expected a pair that can be sent"):
        pv.swap(X, 1, **FAMILIES, callbacks=[threading.Lock().acquire], executor=Here())


# ---------------------------------------------------------------------------------------------------------
# Checkpoints, deaths and interrupts


@pytest.mark.usefixtures("in_order")
def test_a_checkpoint_goes_on_with_and_without_an_executor(tmp_path):
    """Stopped by Ctrl-C after some blocks: those are kept, waiting tasks are cancelled, and the rest is computed once."""
    options = FEW | {"checkpoint": tmp_path}
    stopped = Here(None, None, None, None, None, KeyboardInterrupt(), "wait", workers=1)
    with pytest.raises(KeyboardInterrupt):
        pv.log_evidence(vae(), X, executor=stopped, **options)
    kept = sorted(path.name for path in tmp_path.glob("part-*"))
    assert 0 < len(kept) < 6
    assert all(future.done() for future in stopped.futures)
    again = Here()
    assert_same(pv.log_evidence(vae(), X, executor=again, **options), pv.log_evidence(vae(), X, **FEW))
    assert_same(pv.log_evidence(vae(), X, **options), pv.log_evidence(vae(), X, **FEW))


@pytest.mark.usefixtures("in_order")
def test_a_task_is_tried_again_until_a_limit(tmp_path):
    died = [BrokenProcessPool("a worker died")] * (workers._TRIES - 1)
    assert_same(pv.log_evidence(vae(), X, **FEW), pv.log_evidence(vae(), X, executor=Here(*died), **FEW))
    with pytest.raises(
        BrokenExecutor, match=r"executor: expected .* 5 tries .* rows 0 to 6 of x .* Pass checkpoint"
    ):
        pv.log_evidence(vae(), X, executor=Here(*died * 9, workers=1), **FEW)
    with pytest.raises(BrokenExecutor, match="Finished blocks are in the checkpoint's folder: repeat"):
        pv.log_evidence(vae(), X, executor=Here(*died * 9), checkpoint=tmp_path, **FEW)


@pytest.mark.usefixtures("in_order")
def test_a_worker_that_forgot_the_pair_gets_it_again(monkeypatch):
    """The pair is sent when a worker does not have it, and not with every task."""
    here, options = Here(workers=1), FEW | {"tile": (4, 32)}
    whole = pv.log_evidence(vae().double(), X.double(), **options)
    assert_same(whole, pv.log_evidence(vae().double(), X.double(), executor=here, **options))
    assert here.setups <= 2 < len(here.futures) - 2
    work = workers.work

    def forgetful(*task):
        workers._known.clear()
        return work(*task)

    monkeypatch.setattr(workers, "work", forgetful)
    assert_same(whole, pv.log_evidence(vae().double(), X.double(), executor=Here(), **options))


def test_few_tasks_are_in_flight(monkeypatch):
    """Twice as many as there are workers, whatever the number of blocks."""
    found = []

    def counting(running, return_when):
        found.append(len(running))
        return {next(iter(running))}, set()

    monkeypatch.setattr(workers, "wait", counting)
    pv.log_evidence(vae(), X, executor=Here(), **FEW | {"tile": (1, 64)})
    assert max(found) == 4


def test_an_error_of_the_model_is_that_without_an_executor(pool):
    """Same type and message; the note names the rows."""
    marked = X.clone()
    marked[23, 0] = 3.0

    def fails(x):
        if len(x) == 7 and (x == 3.0).any():
            raise KeyError("a marked row")

    for executor in (None, pool):
        with pytest.raises(KeyError, match="a marked row") as caught:
            pv.log_evidence(of_functions(fails), marked, executor=executor, **FEW)
    assert caught.value.__notes__[0].startswith("Raised for rows ")


@pytest.mark.usefixtures("in_order")
def test_an_error_of_a_worker_alone_says_so(monkeypatch):
    monkeypatch.setattr(workers, "_work", lambda *_: (_ for _ in ()).throw(MemoryError("no memory")))
    with pytest.raises(
        RuntimeError, match=r"got MemoryError: no memory for rows 0 to 6 of x, which raises nothing here"
    ):
        pv.log_evidence(vae(), X, executor=Here(workers=1), **FEW)


def test_a_killed_worker_loses_nothing(pool, tmp_path):
    """A worker exits in one block. A pool that a function returns is replaced; the pool itself is broken for good."""
    marked, marker, home = X.clone(), tmp_path / "died", os.getpid()
    marked[23, 0] = 3.0

    def dies(x):
        if len(x) == 7 and (x == 3.0).any() and os.getpid() != home and not marker.exists():
            marker.touch()
            os._exit(1)

    pools = iter([pool, Here()])
    spread = pv.log_evidence(of_functions(dies), marked, executor=lambda: next(pools), **FEW)
    assert marker.exists()
    assert_same(pv.log_evidence(of_functions(), marked, **FEW), spread)
    with pytest.raises(BrokenExecutor, match="repeat the call with a new executor"):
        pv.log_evidence(vae(), X, executor=pool, checkpoint=tmp_path / "folder", **FEW)


# ---------------------------------------------------------------------------------------------------------
# Refusals


def test_a_pair_that_cannot_be_sent_is_refused_before_anything_is_computed():
    lock, here = threading.Lock(), Here()

    def locked(x):
        with lock:
            pass

    with pytest.raises(
        ValueError, match=r"executor: expected a pair that can be sent .* got TypeError: cannot pickle"
    ):
        pv.log_evidence(of_functions(locked), X, executor=here, **FEW)
    assert not here.futures


def test_threads_and_forks_are_refused():
    with (
        ThreadPoolExecutor(1) as threads,
        pytest.raises(ValueError, match=r"executor: .* got a thread, whose calls"),
    ):
        pv.log_evidence(vae(), X, executor=threads, **FEW)
    state, text = workers.work(0, (workers._HOME, os.getpid() + 1, 0), workers._work, "", None, b"")
    assert state == "refused"
    assert "got a forked process, in which torch's threads can hang" in text


def test_workers_of_another_version_are_refused(monkeypatch):
    versions = itertools.chain(["here"], itertools.repeat("there"))
    monkeypatch.setattr(workers, "_machine", lambda: {"torch": next(versions)})
    with pytest.raises(
        ValueError, match="executor: expected workers with the caller's torch, here, got there"
    ):
        pv.log_evidence(vae(), X, executor=Here(workers=1), **FEW)


@pytest.mark.parametrize(
    ("executor", "message"),
    [
        (3, "an Executor of concurrent.futures, or a function"),
        (lambda: 3, "a function that returns an Executor, got 3"),
    ],
)
def test_what_is_no_executor_is_refused(executor, message):
    with pytest.raises(TypeError, match=f"executor: expected {message}"):
        pv.log_evidence(vae(), X, executor=executor, **FEW)


def test_more_threads_than_cores_are_warned_of(monkeypatch):
    here = Here()
    here._max_workers = 2
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    with pytest.warns(UserWarning, match="2 workers of 2 threads wait for one another on 3 cores"):
        pv.log_evidence(vae(), X, executor=here, **FEW)


class Elsewhere(Here):
    """Computes in an environment with another scale."""

    def submit(self, work, call, caller, *task):
        before, os.environ["SCALE"] = os.environ["SCALE"], "2.0"
        try:
            return super().submit(work, call, caller, *task)
        finally:
            os.environ["SCALE"] = before


def test_workers_that_compute_another_model_are_refused(monkeypatch):
    """As with values that the caller set in an imported module, which workers import anew."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(6), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, float(os.environ["SCALE"])).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.7).to_event(1))

    monkeypatch.setenv("SCALE", "0.5")
    pair = pv.LatentVariableModel(model, guide)
    assert_same(pv.log_evidence(pair, X, executor=Here(), **FEW), pv.log_evidence(pair, X, **FEW))
    with pytest.raises(ValueError, match=r"got the model's log P\(x \| z\), .* in the pool's initializer"):
        pv.log_evidence(pair, X, executor=Elsewhere(), **FEW)
