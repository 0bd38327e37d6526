"""Rows as people hand them over: what is taken, and what is refused with all its parts."""

import itertools
import weakref

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from test_likelihoods import COLUMNS, OFF, every_likelihood, likelihood

import pyrovae as pv
from pyrovae import identity, rounding
from pyrovae.entries import on_support
from pyrovae.evaluation import Evaluation
from pyrovae.networks import Standardize
from pyrovae.pair.context import computed_from_rows
from pyrovae.rounding import blocks
from pyrovae.rows import as_batch, as_tensor
from pyrovae.training import scales


def rows(x, dtype=torch.float32):
    return as_tensor(x, dtype=dtype)


@pytest.mark.parametrize(
    "x",
    [
        np.eye(3),
        np.eye(3, dtype=np.int8),
        np.eye(3, dtype=bool),
        np.eye(3, dtype=np.longdouble),
        np.eye(3, dtype=">f8"),
        np.eye(3)[::-1][::-1],
        np.ma.MaskedArray(np.eye(3)),
        torch.eye(3),
        torch.eye(3).long(),
        pd.DataFrame(np.eye(3)),
        pd.DataFrame(np.eye(3)).astype({0: bool}),
        pd.DataFrame(np.eye(3)).astype("Float64"),
        pd.DataFrame(np.eye(3)).astype({0: "Int64"}),
    ],
    ids=lambda x: f"{type(x).__name__} {getattr(x, 'dtype', '')}",
)
def test_numbers_are_taken_as_they_are(x):
    assert torch.equal(rows(x), torch.eye(3))


def test_a_read_only_array_is_taken_without_a_warning():
    x = np.eye(3)
    x.flags.writeable = False
    assert torch.equal(rows(x), torch.eye(3))
    assert torch.equal(rows(x[:, ::-1]), torch.eye(3).flip(1))


@pytest.fixture
def mapped(tmp_path):
    """Rows in a file, (50, 3), float32, as numpy maps it."""
    np.random.default_rng(0).standard_normal((50, 3), np.float32).tofile(tmp_path / "rows")
    return np.memmap(tmp_path / "rows", np.float32, mode="r", shape=(50, 3))


def test_a_mapped_array_is_not_copied(mapped):
    address = mapped.__array_interface__["data"][0]
    assert rows(mapped).data_ptr() == rows(mapped, dtype=None).data_ptr() == address
    assert rows(mapped[7:, 1:]).data_ptr() == address + 4 * (7 * 3 + 1)
    assert as_batch({"x": mapped, "c": mapped[:, 0]}, dtype=torch.float32)["c"].data_ptr() == address
    vae = pv.VAE.mlp(3, 1, "gaussian", hidden_dims=(4,))
    assert Evaluation.prepare(vae, mapped, 2, 0).batch["x"].data_ptr() == address
    assert rows(mapped, dtype=torch.float64).data_ptr() != address  # of another dtype it is, whole


def test_a_read_only_array_lives_as_long_as_its_rows():
    x = np.ones((4, 2), np.float32)
    x.flags.writeable = False
    alive, tensor = weakref.ref(x), rows(x)
    del x
    assert alive() is not None
    del tensor
    assert alive() is None


def test_mapped_rows_give_the_same_fit_and_evidence(mapped):
    found = []
    for x in (mapped, torch.from_numpy(np.array(mapped))):
        torch.manual_seed(0)
        vae = pv.VAE.mlp(3, 1, "gaussian", hidden_dims=(4,), standardize=True)
        history = pv.fit(vae, x, epochs=2, batch_size=20)
        ev = pv.log_evidence(vae, x, num_samples=20, check=False)
        found.append((ev.estimate.tobytes(), ev.seen, [record["elbo"] for record in history.records]))
    assert found[0] == found[1]


def test_a_pair_that_writes_into_its_rows_is_refused(mapped):
    """What is mapped to be read can't be written to: it would end the process."""

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.mean(1), 1.0))

    def model(x):
        x = x.clamp_(-1, 1)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z[:, None], 1.0).to_event(1), obs=x)

    before = np.array(mapped)
    for x in (mapped, torch.from_numpy(before)):
        with pytest.raises(ValueError, match=r"^model: .*x changed in place.*x = x\.clone\(\)"):
            pv.log_weights(pv.LatentVariableModel(model, guide), x, num_samples=2)
    np.testing.assert_array_equal(before, mapped)


def test_without_a_dtype_a_tensor_keeps_its_own():
    assert rows(torch.eye(2, dtype=torch.float64), dtype=None).dtype == torch.float64
    assert rows(np.eye(2), dtype=None).dtype == torch.get_default_dtype()


NAN = np.eye(3)
NAN[1, 2] = np.nan
INFINITE = torch.eye(3)
INFINITE[2, 0] = -torch.inf
NULLABLE = pd.DataFrame({"a": [1, 2, 3], "b": [1.0, 2.0, 3.0]}).astype({"a": "Int64"})
NULLABLE.loc[2, "a"] = pd.NA


@pytest.mark.parametrize(
    ("x", "error", "parts"),
    [
        (
            NAN,
            ValueError,
            ["finite numbers", "1 that are NaN or infinite, first nan at row 1, column 2", "impute"],
        ),
        (INFINITE, ValueError, ["first -inf at row 2, column 0"]),
        (np.array([[1e39]]), ValueError, ["first inf at row 0, column 0"]),
        (NULLABLE, ValueError, ["first nan at row 2, column 'a'"]),
        (np.zeros((0, 3)), ValueError, ["at least one row", "shape (0, 3)"]),
        (np.zeros((3, 0)), ValueError, ["at least one row and one column"]),
        (np.array(3.0), ValueError, ["rows on dim 0"]),
        (np.eye(2) * 1j, TypeError, ["real numbers", "complex128"]),
        (torch.eye(2) * 1j, TypeError, ["real numbers", "complex64"]),
        (np.array([["a"]]), TypeError, ["real numbers", "<U1"]),
        (np.array([[None]]), TypeError, ["object"]),
        ([[1.0]], TypeError, ["a tensor, a numpy array or a DataFrame", "a list", "numpy.asarray"]),
        ("rows.csv", TypeError, ["a str"]),
        (None, TypeError, ["a NoneType"]),
        (
            pd.DataFrame({"a": [1.0], "b": ["x"]}),
            TypeError,
            ["columns of numbers", "1 other column(s), first 'b'"],
        ),
        (pd.DataFrame({"a": pd.to_datetime(["2026-01-01"])}), TypeError, ["first 'a' (datetime64"]),
        (pd.DataFrame({"a": pd.Categorical(["u"])}), TypeError, ["first 'a' (category)"]),
        (np.ma.masked_equal(np.eye(3), 1.0), TypeError, ["without masked entries", "3 that are masked"]),
        (torch.eye(3).to_sparse(), TypeError, ["a dense tensor", "to_dense()"]),
        (torch.eye(3).double(), TypeError, ["torch.float32", "torch.float64", "Cast one of the two"]),
        (torch.zeros(2, 3, device="meta"), TypeError, ["a tensor with its numbers in it", "a meta one"]),
    ],
    ids=str,
)
def test_what_is_no_row_of_numbers_is_refused_with_all_parts(x, error, parts):
    with pytest.raises(error) as refusal:
        as_tensor(x, dtype=torch.float32, device=torch.device("cpu"), argument="rows")
    message = str(refusal.value)
    assert message.startswith("rows: expected ")
    assert ", got " in message
    assert message.endswith(".")
    for part in parts:
        assert part in message


def test_images_name_the_position():
    x = torch.zeros(4, 1, 2, 2)
    x[3, 0, 1, 0] = torch.nan
    with pytest.raises(ValueError, match=r"first nan at row 3, position \(0, 1, 0\)"):
        rows(x)


def test_many_rows_whose_sum_overflows_are_finite():
    assert len(rows(torch.full((10, 1), 3e38))) == 10


# ---------------------------------------------------------------------------------------------------------
# Block by block, as if at once


@pytest.fixture(params=[1, 6, 9, 2**20], ids=lambda size: f"{size} numbers a block")
def in_blocks(request, monkeypatch):
    monkeypatch.setattr(rounding, "_BLOCK", request.param)
    return request.param


def test_blocks_are_the_rows_in_their_order(in_blocks):
    for x in (torch.arange(30.0).view(10, 3), torch.arange(7.0), torch.zeros(5, 2, 2)):
        starts, found = zip(*blocks(x), strict=True)
        assert torch.equal(torch.cat(found), x)
        assert starts == tuple(itertools.accumulate((len(block) for block in found[:-1]), initial=0))
        assert all(block.numel() <= max(in_blocks, x[0].numel()) for block in found)


@pytest.mark.parametrize("shape", [(10, 3), (10,), (5, 2, 2)])
@pytest.mark.parametrize("where", [[0], [7], [29], [4, 5, 6], [11, 12, 29], range(30)])
def test_what_is_not_finite_is_counted_over_all_blocks(in_blocks, shape, where):
    flat = torch.randn(30)[: np.prod(shape)]
    where = sorted({index % len(flat) for index in where})
    flat[where] = torch.inf
    row, *place = np.unravel_index(where[0], shape)
    column = {0: "", 1: ", column {}", 2: ", position ({}, {})"}[len(place)].format(*place)
    expected = f"got {len(where)} that are NaN or infinite, first inf at row {row}{column}."
    with pytest.raises(ValueError, match="finite numbers") as refusal:
        rows(flat.view(shape))
    assert expected in str(refusal.value)


@pytest.mark.parametrize("columns", [[0, 1, 2], [2], [0, 2]])
@pytest.mark.parametrize("bad_rows", [[0], [5], [9], [1, 2, 3], range(10)])
def test_what_is_off_the_support_is_counted_over_all_blocks(in_blocks, columns, bad_rows):
    x = torch.ones(10, 3)
    on_support("x", x, columns, constraints.positive, "Gamma", "Drop them.")
    x[list(bad_rows)] = -2.5
    with pytest.raises(ValueError, match="support of Gamma") as refusal:
        on_support("x", x, columns, constraints.positive, "Gamma", "Drop them.")
    count = len(bad_rows) * len(columns)
    assert f"got {count} off it, first -2.5 at row {bad_rows[0]}, column {columns[0]}." in str(refusal.value)


def test_columns_of_nearly_one_value_are_found_over_all_blocks(in_blocks):
    """What fills more than 99 % of a column, wherever the rest of it stands; and what fills just 99 % does not."""
    generator = np.random.default_rng(0)
    others = {
        "nowhere": [],
        "at the end": [299, 298],
        "first": [0, 1],
        "apart": [3, 250],
        "too many": [0, 1, 2],
        "too many, apart": [7, 100, 299],
    }
    x = torch.from_numpy(generator.normal(size=(300, 2 + len(others))))
    for column, places in enumerate(others.values(), start=1):
        x[:, column] = 4.0
        x[places, column] = torch.from_numpy(generator.choice([-1.0, 9.0], size=len(places)))
    with pytest.raises(ValueError, match=r"got 4 column\(s\) .*first column 1 \(value 4\)"):
        scales._check_varying(x, True, "")
    scales._check_varying(x, False, "")
    scales._check_varying(x[:, [0, 5, 6, 7]], True, "")
    with pytest.raises(ValueError, match=r"got 4 column\(s\)"):
        scales._check_varying(x[:, 1:5], False, "")
    mode = x[:, 1:7].mode(dim=0).values
    value, share = scales._commonest(x[:, 1:7])
    assert torch.equal(value, mode)
    assert torch.equal(share, (x[:, 1:7] == mode).double().mean(dim=0))


@pytest.mark.parametrize("height", [1, 2, 3, 4, 9])
def test_what_fills_more_than_half_of_a_column_is_found_in_every_order(height, monkeypatch):
    """Five of nine rows, in each of the orders that there are."""
    orders = sorted(set(itertools.permutations([2.0] * 5 + [-1.0] * 2 + [3.0] * 2)))
    x = torch.tensor(orders).T
    monkeypatch.setattr(rounding, "_BLOCK", height * len(orders))
    assert len(list(blocks(x))) == -(-9 // height)
    value, share = scales._commonest(x)
    assert torch.equal(value, torch.full((len(orders),), 2.0))
    assert torch.equal(share, torch.full((len(orders),), 5 / 9, dtype=torch.float64))


def test_a_block_in_which_no_value_has_more_than_half_counts_for_none(monkeypatch):
    few = [0.0, 1.0, 2.0, 5.0, 5.0]
    monkeypatch.setattr(rounding, "_BLOCK", 5)
    value, share = scales._commonest(torch.tensor([*[9.0] * 5, *few, *few, *[5.0] * 10])[:, None])
    assert (value.item(), share.item()) == (5.0, 14 / 25)


def test_hashes_do_not_know_of_blocks(in_blocks, monkeypatch):
    x = torch.randn(10, 3)
    found = identity.fingerprint(x), identity.digest(x), identity.row_hashes(x).tolist()
    floors, totals = found[0].floors, found[0].totals.tolist()
    monkeypatch.undo()
    again = identity.fingerprint(x), identity.digest(x), identity.row_hashes(x).tolist()
    assert found == again
    assert (floors, totals) == (again[0].floors, again[0].totals.tolist())


@pytest.mark.parametrize("log", [False, True])
def test_standardize_learns_block_by_block(in_blocks, log):
    x = (1e3 + torch.randn(50, 3, dtype=torch.float64)).abs()
    x[:, 2] = 0.1  # whose mean over rows is no exact 0.1: still a column of one value
    scaling = Standardize(3, log=log).double()
    scaling.learn(x)
    seen = x.log() if log else x
    torch.testing.assert_close(scaling.loc, seen.mean(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(scaling.scale[:2], seen[:, :2].std(0, correction=0), rtol=1e-12, atol=0)
    assert scaling.scale[2] == 1


def test_offsets_made_from_the_rows_are_seen_block_by_block(in_blocks):
    x = torch.poisson(torch.full((40, 3), 6.0)) + 1
    given = {"total": x.sum(1).sqrt(), "linear": x @ torch.tensor([1.0, 2.0, -1.0]), "own": torch.randn(40)}
    assert computed_from_rows({"x": x, **given}) == ["total", "linear"]


# ---------------------------------------------------------------------------------------------------------
# The gate in front of more


def test_a_matrix_beyond_every_memory_is_refused():
    vae = pv.VAE.mlp(1, 1, hidden_dims=())
    with pytest.raises(
        ValueError, match=r"^num_samples: .*2147483647 × 100000 numbers, 1.72e\+06 GB.*log_evidence"
    ):
        pv.log_weights(vae, torch.ones(100_000, 1), num_samples=2**31 - 1)


@every_likelihood
def test_training_starts_from_rows_on_the_support(name, options):
    family = likelihood(name, options, hidden=())
    x = family(torch.zeros(6, 2)).sample()
    family.start_from(x)
    before = {key: value.clone() for key, value in family.state_dict().items()}
    if name in ("gaussian", "laplace", "student_t"):
        return
    x[2, 1] = OFF.get(name, -1.0)
    with pytest.raises(ValueError, match=r"^x: .*support of \w+ .*got 1 off it.*row 2, column 1"):
        family.start_from(x)
    assert all(torch.equal(value, before[key]) for key, value in family.state_dict().items())
    assert x.shape == (6, COLUMNS)


def test_fingerprints_are_equal_for_equal_rows_alone():
    x = torch.randn(5, 4)
    assert (
        identity.fingerprint(x)
        == identity.fingerprint(x.double())
        == identity.fingerprint(x.reshape(5, 2, 2))
    )
    others = [x.flip(0), x * 2, x[:4], x.T.contiguous(), x.reshape(4, 5)]
    assert len({identity.fingerprint(y) for y in (x, *others)}) == 6
