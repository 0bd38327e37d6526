"""Rows as people hand them over: what is taken, and what is refused with all its parts."""

import numpy as np
import pandas as pd
import pytest
import torch

from pyrovae import checks


def rows(x, dtype=torch.float32):
    return checks.rows(x, dtype=dtype)


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
        (NULLABLE, ValueError, ["first nan at row 2, column 0"]),
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
        (torch.zeros(2, 3, device="meta"), ValueError, ["a tensor on cpu", "one on meta", "Move it"]),
    ],
    ids=str,
)
def test_what_is_no_row_of_numbers_is_refused_with_all_parts(x, error, parts):
    with pytest.raises(error) as refusal:
        checks.rows(x, dtype=torch.float32, device=torch.device("cpu"), argument="rows")
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


def test_fingerprints_are_equal_for_equal_rows_alone():
    x = torch.randn(5, 4)
    assert checks.fingerprint(x) == checks.fingerprint(x.double()) == checks.fingerprint(x.reshape(5, 2, 2))
    others = [x.flip(0), x * 2, x[:4], x.T.contiguous(), x.reshape(4, 5)]
    assert len({checks.fingerprint(y) for y in (x, *others)}) == 6
