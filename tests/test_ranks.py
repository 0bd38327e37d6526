"""A fit on several ranks of torch.distributed is the fit of one process, and a rank that fails is named."""

import functools
import itertools
import os
import pickle
import re
import signal
from datetime import timedelta
from importlib import import_module

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.distributed
from pyro.infer import RenyiELBO, Trace_ELBO
from torch.optim.lr_scheduler import ReduceLROnPlateau

import pyrovae as pv
from pyrovae import encoders, likelihoods, priors
from pyrovae.tracing import NoiseOfRows, Untraceable
from pyrovae.tracing.drawing import Draw, Noise
from pyrovae.training import loop, ranks, sharded

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="a system without fork"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]

X = (torch.rand(53, 6, generator=torch.Generator().manual_seed(0)) < 0.4).double()
TRAIN, VALIDATION = X[:42], X[42:]


class Dropping(torch.nn.Sequential):
    """A decoder whose noise has a row and a column for each row and hidden unit."""

    def __init__(self, *more):
        super().__init__(torch.nn.Linear(2, 4), *more, torch.nn.Dropout(0.3), torch.nn.Linear(4, 6))


def vae(*layers):
    torch.manual_seed(0)
    encoder = encoders.DiagonalNormal(torch.nn.Linear(6, 4))
    return pv.VAE(priors.StandardNormal(2), likelihoods.Bernoulli(Dropping(*layers)), encoder).double()


def with_gamma():
    """A pair whose noise cannot be drawn before z's distribution is known."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Gamma(1.0, 1.0))
            pyro.sample("x", dist.Poisson(z[:, None].expand(-1, 6)).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Gamma(pyro.param("a", torch.ones(()).double()).exp().expand(len(x)), 1.0))

    return pv.LatentVariableModel(model, guide)


def normal(start=0.0, sd=1.0):
    """A pair of few operations, whose loss overflows at a row of 1e160."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()).double(), 1.0))
            pyro.sample("x", dist.Normal(z[:, None].expand(-1, 6), sd).to_event(1), obs=x)

    def guide(x):
        centre = pyro.param("centre", torch.tensor(start).double())
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(centre.expand(len(x)), 1.0))

    return pv.LatentVariableModel(model, guide)


class Squared(Trace_ELBO):
    """No sum over rows."""

    def differentiable_loss(self, model, guide, *args, **kwargs):
        return super().differentiable_loss(model, guide, *args, **kwargs) ** 2

    def loss_and_grads(self, model, guide, *args, **kwargs):
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        loss.backward()
        return loss.item()


def fitted(pair, x=TRAIN, **options):
    """The parameters after a fit and its records, without seconds."""
    history = pv.fit(pair, x, **options)
    for record in history.records:
        del record["seconds"]
    tensors = {name: tensor.detach().clone() for name, tensor in pair.named_parameters()}
    return tensors, history.records, history.stopped, history.best_epoch


def shrink(record, pair):
    with torch.no_grad():
        next(pair.parameters()).mul_(0.99)


def assert_same(found, expected):
    """Up to 1e-12, relative."""
    for name, tensor in expected[0].items():
        assert float((found[0][name] - tensor).norm()) <= 1e-12 * float(tensor.norm()), name
    assert [list(record) for record in found[1]] == [list(record) for record in expected[1]]
    for record, other in zip(found[1], expected[1], strict=True):
        assert list(record.values()) == pytest.approx(list(other.values()), rel=1e-12, nan_ok=True)
    assert found[2:] == expected[2:]


def on_ranks(size, function, folder):
    """What a function of the rank returns on each, in a forked child; an error is returned as text, a death as None."""
    import_module("torch._dynamo")  # which tracing needs: once for all ranks
    import_module("torch.fx.experimental.proxy_tensor")
    children = []
    for rank in range(size):
        child = os.fork()
        if not child:
            try:
                torch.set_num_threads(1)
                torch.distributed.init_process_group(
                    "gloo",
                    init_method=f"file://{folder}/store-{size}",
                    rank=rank,
                    world_size=size,
                    timeout=timedelta(seconds=60),
                )
                try:
                    found = function(rank)
                except Exception as error:
                    found = f"{type(error).__name__}: {error}"
                (folder / f"{size}-{rank}").write_bytes(pickle.dumps(found))
            finally:
                os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    paths = [folder / f"{size}-{rank}" for rank in range(size)]
    return [pickle.loads(path.read_bytes()) if path.exists() else None for path in paths]


@pytest.mark.slow
def test_gradients_of_ranks_have_the_layout_of_their_parameters(tmp_path):
    """Transposed weights, torch's fused update, clipping and a callback, on two ranks with 5 and 6 rows and in one process."""

    def laid():
        pair = vae()
        for parameter in pair.parameters():
            if parameter.dim() == 2:
                parameter.data = parameter.data.mT.contiguous().mT
        return pair

    options = {"epochs": 2, "batch_size": 11, "lr": 0.05, "clip_norm": 0.5, "callbacks": [shrink]}
    unfused = functools.partial(torch.optim.Adam, fused=False)
    expected = fitted(laid(), TRAIN[:22], **options, optimizer=unfused, compile=False)
    for found in on_ranks(2, lambda rank: fitted(laid(), TRAIN[:22], **options), tmp_path):
        assert_same(found, expected)


@pytest.mark.slow
def test_ranks_take_the_steps_of_one_process(tmp_path):
    """Batches of 10 and a last one of 2 rows on three ranks; drawn weights, clipping, a schedule, early stopping, a callback."""
    options = {
        "epochs": 6,
        "batch_size": 10,
        "lr": 0.05,
        "validation": VALIDATION,
        "patience": 1,
        "kl_warmup": 1,
        "clip_norm": 0.5,
        "scheduler": functools.partial(ReduceLROnPlateau, patience=0),
        "callbacks": [shrink],
    }
    expected = fitted(vae(), **options)
    assert expected[2] == "patience"
    for found in on_ranks(3, lambda rank: fitted(vae(), **options), tmp_path):
        assert_same(found, expected)


def at_step(number, act):
    """Do something at the beginning of a step of this process, counted from 1."""
    take, steps = sharded.ParallelStep.run, itertools.count(1)

    def run(*arguments):
        if next(steps) == number:
            act()
        return take(*arguments)

    sharded.ParallelStep.run = run


@pytest.mark.slow
def test_a_fit_goes_on_with_other_numbers_of_ranks(tmp_path):
    """Ctrl-C in one process, then a dead rank of two, then Ctrl-C at a rank of three, then one process to the end."""
    options = {"epochs": 4, "batch_size": 15, "validation": VALIDATION, "lr": 0.01}
    kept = options | {"checkpoint": pv.Checkpoint(tmp_path / "run", seconds=1000)}

    def interrupt(record, pair):
        os.kill(os.getpid(), signal.SIGINT)

    assert fitted(normal(), **kept, callbacks=[interrupt])[2] == "interrupted"  # after 3 steps of 12

    def two(rank):
        if rank == 1:
            at_step(3, lambda: os.kill(os.getpid(), signal.SIGKILL))
        return fitted(normal(), **kept)

    alive, dead = on_ranks(2, two, tmp_path)
    assert dead is None
    assert "RankFailed: fit: expected all 2 ranks to go on, got rank 1, which has ended" in alive

    def three(rank):
        if rank == 2:
            at_step(2, lambda: os.kill(os.getpid(), signal.SIGINT))
        return fitted(normal(), **kept)

    found = on_ranks(3, three, tmp_path)
    assert [(len(each[1]), each[2]) for each in found] == [(2, "interrupted")] * 3
    assert_same(fitted(normal(), **kept), fitted(normal(), **options))


FEW = {"epochs": 2, "batch_size": 21}
HUGE = TRAIN.clone()
HUGE[7] = 1e160


def said(pair, x=TRAIN, **options):
    """What ``fitted`` returns, or its error as text."""
    try:
        return fitted(pair, x, **FEW | options)
    except (Exception, KeyboardInterrupt) as error:
        return f"{type(error).__name__}: {error}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fit", "message"),
    [
        (
            lambda rank: said(normal(), HUGE, loss=Squared()),
            "do not add up to the loss of all, so rows depend on others",
        ),
        (
            lambda rank: said(normal(sd=1.0 + rank)),
            "so the ranks built different models. Build the same model on all ranks",
        ),
    ],
    ids=["losses", "models"],
)
def test_sums_of_ranks_that_are_not_that_of_all_rows_are_named(fit, message, tmp_path):
    zero, one = on_ranks(2, fit, tmp_path)
    assert message in zero
    assert zero == one


@pytest.mark.slow
def test_ranks_that_differ_or_fail_are_named(tmp_path):
    def failing(message):
        raise OSError(message)

    def both(rank):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "machine", lambda: {"torch": f"2.{rank}"})
            versions = said(normal())
        found = {
            "versions": versions,
            "rows": said(normal(), TRAIN + rank),
            "weights": said(normal(float(rank))),
            "folder": said(normal(), checkpoint=tmp_path / "a" if rank == 0 else None),
            "nested": said(
                normal(), callbacks=[lambda record, pair: pv.fit(normal(), TRAIN, epochs=1) and None]
            )[1:],
            "no rows": said(normal(), TRAIN if rank == 0 else None),
            "buffers": said(vae(torch.nn.BatchNorm1d(4))),
            "noise": said(with_gamma()),
            "power": said(normal(), loss=RenyiELBO(0.5), batch_size=42),
            "callback": said(normal(), callbacks=[lambda record, pair: failing("disk full")]),
            "NaN": said(normal(), HUGE, batch_size=42),
            "skipped": said(normal(), HUGE, on_nonfinite="skip"),
        }
        if rank == 1:
            at_step(3, lambda: failing("no memory"))
        found["step"] = said(normal())
        if rank == 1:
            at_step(1, lambda: [signal.raise_signal(signal.SIGINT) for _ in range(2)])
        return found | {"second Ctrl-C": said(normal())}

    zero, one = on_ranks(2, both, tmp_path)
    for name, message in {
        "versions": "torch: expected the same on all ranks of torch.distributed, got '2.1' on rank 1, '2.0' on rank 0. Use",
        "rows": "x: expected the same on all ranks of torch.distributed, got ",
        "weights": "parameter store:centre: expected the same on all ranks",
        "folder": "checkpoint: expected the same on all ranks of torch.distributed, got False on rank 1, True on rank 0",
        "buffers": "a step changes buffers, as that of BatchNorm does",
        "noise": "noise that depends on other tensors",
        "power": "loss: expected a sum over rows",
    }.items():
        assert message in zero[name], name
        assert zero[name] == one[name]
    assert not (tmp_path / "a").exists()
    assert_same((expected := fitted(normal(), **FEW))[:1] + zero["nested"], expected)
    assert one["no rows"].startswith("RefusedType: x")
    assert zero["no rows"].startswith(
        "RankFailed: fit: expected all 2 ranks to go on, got rank 1: RefusedType: x"
    )
    assert zero["callback"] == "OSError: disk full"
    assert "got rank 0: OSError: disk full" in one["callback"]
    assert one["step"] == "OSError: no memory"
    assert "got rank 1: OSError: no memory. Correct that error" in zero["step"]
    assert one["second Ctrl-C"] == "KeyboardInterrupt: "
    assert "got rank 1, which has ended" in zero["second Ctrl-C"]
    with pytest.raises(FloatingPointError) as error:
        fitted(normal(), HUGE, **FEW | {"batch_size": 42})
    assert zero["NaN"] == one["NaN"]
    where = re.search(", rank [01]", one["NaN"])[0]
    assert one["NaN"].replace(where, "") == f"FloatingPointError: {error.value}"
    expected = fitted(normal(), HUGE, **FEW, on_nonfinite="skip")
    assert_same(one["skipped"], expected)


def test_a_silent_or_absent_rank_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(ranks, "_ANSWER", 0.2)

    def both(rank):
        told = ranks.Ranks()
        failed = told._failed_ranks() if rank == 0 else ""
        torch.distributed.barrier()
        if rank == 0:  # the other one ends
            with pytest.raises(ranks.RankFailed, match="got a rank that has ended or has not called fit"):
                fitted(normal())
        return failed

    assert on_ranks(2, both, tmp_path)[0] == "rank 1, which does not answer"


@pytest.mark.parametrize("size", [1, 2, 3, 10])
def test_parts_of_ranks_are_all_rows(size):
    parts = []
    for rank in range(3):
        one = ranks.Ranks()
        one.size, one.rank = 3, rank
        parts += range(size)[one.part(size)]
    assert parts == [*range(size)]


def of(*shapes):
    fill = torch.ops.aten.normal_.default
    return [Draw(fill, (), torch.Size(s), torch.empty(s).stride(), torch.float64) for s in shapes]


def test_the_noise_of_some_rows_is_that_of_all_rows_there():
    device = torch.device("cpu")
    noise = NoiseOfRows(of((5, 3), (2, 5), (4,)), of((2, 3), (2, 2), (4,)), slice(2, 4), 5, device)
    whole = Noise([of((5, 3), (2, 5), (4,))], device)
    noise.draw([7])
    whole.draw([7])
    rows, columns, shared = whole.targets[0]
    assert all(map(torch.equal, noise.targets[0], (rows[2:4], columns[:, 2:4], shared)))


@pytest.mark.parametrize("shape", [(4, 3), (2, 4), (2, 3, 1)])
def test_noise_that_does_not_follow_rows_is_refused(shape):
    with pytest.raises(Untraceable, match="noise of shape"):
        NoiseOfRows(of((5, 3)), of(shape), slice(2, 4), 5, torch.device("cpu"))
