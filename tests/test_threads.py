"""Small computations use few threads, and torch's setting is left as it was."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

import pyrovae as pv
from pyrovae import threads
from pyrovae.checkpoints import Checkpoint
from pyrovae.evaluation import Evaluation
from pyrovae.training import prepare

X = (torch.arange(240).reshape(40, 6) % 7 < 3).float()


class Noted(nn.Module):
    """A linear layer that notes how many threads torch has at each call in training or evaluation mode."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        self.seen: list[tuple[bool, int]] = []

    def forward(self, x):
        self.seen.append((self.training, torch.get_num_threads()))
        return self.linear(x)


def noted() -> tuple[pv.VAE, list[tuple[bool, int]]]:
    torch.manual_seed(0)
    network = Noted(2, 6)
    vae = pv.VAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.Bernoulli(network),
        pv.encoders.DiagonalNormal(nn.Linear(6, 4)),
    )
    return vae, network.seen


@pytest.fixture(autouse=True)
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    assert torch.get_num_threads() == 3
    torch.set_num_threads(before)


def in_a_new_thread(call):
    with ThreadPoolExecutor(1) as new:
        return new.submit(call).result()


def test_only_the_calling_thread_changes_and_only_for_the_block():
    inside = []

    def fail():
        with threads.using(1):
            inside.extend([torch.get_num_threads(), in_a_new_thread(torch.get_num_threads)])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert inside == [1, 3]
    assert torch.get_num_threads() == in_a_new_thread(torch.get_num_threads) == 3
    with threads.using(4):
        assert torch.get_num_threads() == 3


def test_the_default_of_new_threads_is_kept_if_the_caller_has_another():
    """Also if another thread sets it during the block."""
    in_a_new_thread(lambda: torch.set_num_threads(2))
    with threads.using(1):
        assert in_a_new_thread(torch.get_num_threads) == 2
        in_a_new_thread(lambda: torch.set_num_threads(4))
    assert torch.get_num_threads() == 3
    assert in_a_new_thread(torch.get_num_threads) == 4


@pytest.mark.parametrize(
    ("work", "number"), [(0, 1), (1e6, 1), (2**24 - 1, 1), (2**24, 2), (3 * 2**23, 3), (2**30, 3)]
)
def test_number_grows_with_the_work(work, number):
    """Three threads at most."""
    assert threads.fitting(work) == number


def test_work_of_convolutions_counts_every_place():
    vae = pv.VAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.Bernoulli(nn.Linear(2, 64)),
        pv.encoders.DiagonalNormal(
            nn.Sequential(nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 5, 3), nn.Flatten(), nn.Linear(180, 4))
        ),
    )
    rows = (torch.rand(9, 64, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    assert Evaluation.prepare(vae, rows, 1, 0).structure.work == 5 * 36 * 9 + 180 * 4 + 2 * 64


def test_steps_of_a_small_fit_use_one_thread_and_callbacks_all():
    vae, seen = noted()
    pv.fit(vae, X, epochs=1, batch_size=10, compile=False)  # warm: inspection and checks have run
    seen.clear()
    callbacks = []
    pv.fit(
        vae,
        X,
        epochs=3,
        batch_size=10,
        compile=False,
        callbacks=[lambda *_: callbacks.append(torch.get_num_threads())],
    )
    assert [number for training, number in seen if training].count(1) == 3 * 4
    assert callbacks == [3, 3, 3]


def test_evaluations_of_few_rows_use_one_thread():
    vae, seen = noted()
    pv.elbo(vae, X, num_samples=2)
    assert seen[-1] == (False, 1)
    pv.log_weights(vae, X, num_samples=2)
    assert seen[-1] == (False, 1)
    seen.clear()
    pv.log_evidence(vae, X, num_samples=20, check=False)
    assert (False, 1) in seen


@pytest.mark.parametrize(("kept", "expected"), [(2, 2), (None, 3)])
def test_a_resumed_fit_uses_the_number_of_its_checkpoint_or_all(kept, expected, tmp_path, monkeypatch):
    """A checkpoint without numbers is from a version that used all threads."""

    def stop(record, pair):
        raise RuntimeError

    arguments = {"epochs": 2, "batch_size": 10, "compile": False, "validation": X[:9]}
    folder = Checkpoint(tmp_path, seconds=0)
    with monkeypatch.context() as patch:
        patch.setattr(prepare.threads, "fitting", lambda work: kept or 1)
        if kept is None:
            snapshot = pv.training.loop.Loop.snapshot
            patch.setattr(
                pv.training.loop.Loop,
                "snapshot",
                lambda self: {k: v for k, v in snapshot(self).items() if k != "threads"},
            )
        with pytest.raises(RuntimeError):
            pv.fit(noted()[0], X, **arguments, checkpoint=folder, callbacks=[stop])
    vae, seen = noted()
    pv.fit(vae, X, **arguments, checkpoint=folder)
    assert {(True, expected), (False, expected)} < {*seen, ()}
    assert {number for _, number in seen} == {expected}  # never the one that the rule would choose


def test_a_resumed_evaluation_uses_the_number_of_its_checkpoint(tmp_path, monkeypatch):
    arguments = {"num_samples": 20, "tile": (20, 20), "check": False, "checkpoint": tmp_path}
    with monkeypatch.context() as patch:
        patch.setattr(threads, "fitting", lambda work: 2)
        pv.log_evidence(noted()[0], X, **arguments)
    (tmp_path / "part-1.safetensors").unlink()
    vae, seen = noted()
    pv.log_evidence(vae, X, **arguments)
    assert {number for _, number in seen} == {2}
