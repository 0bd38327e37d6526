"""Rows in sparse matrices, frames of other libraries and chunks give the numbers of the same dense rows, part by part."""

import pickle
import sys
from collections import namedtuple

import numpy as np
import pandas as pd
import pyarrow
import pytest
import scipy.sparse
import torch
from rates import SEED
from torch.utils.data import DataLoader

import pyrovae as pv
from pyrovae import baselines, entries, identity, noise, rounding
from pyrovae.comparison import swapping
from pyrovae.pair import inspection, on_data
from pyrovae.refusals import Refused
from pyrovae.rows import read
from pyrovae.sparse import SparseRows

ROWS, COLUMNS = 600, 5
DENSE = np.random.default_rng(SEED).poisson(0.4, (ROWS, COLUMNS))
DENSE[0] = 1
CSR = scipy.sparse.csr_array(DENSE)
#: Baselines whose fit needs dense rows, and their arguments.
DENSE_FITS = {
    baselines.PPCA: (1,),
    baselines.FactorAnalysis: (1,),
    baselines.LatentClass: (2,),
}
Part = namedtuple("Part", ["x", "offset"])


@pytest.fixture
def by_parts(monkeypatch):
    """No call may make half of the rows dense at once."""
    monkeypatch.setattr(noise, "_ELEMENTS_PER_TILE", 1 << 13)
    monkeypatch.setattr(rounding, "_BLOCK", 1000)
    behaviour = sys.modules["pyrovae.pair.behaviour"]
    for module in (behaviour, inspection, on_data):
        monkeypatch.setattr(module, "_MOST_ROWS", 200)
    monkeypatch.setattr(behaviour, "_POOL_NUMBERS", 1000)
    whole = SparseRows.dense

    def dense(self, rows=slice(None)):
        found = whole(self, rows)
        assert found.numel() <= ROWS * COLUMNS // 2
        return found

    monkeypatch.setattr(SparseRows, "dense", dense)


def vae(likelihood="poisson", **options):
    torch.manual_seed(SEED)
    return pv.VAE.mlp(COLUMNS, 1, likelihood, hidden_dims=(4,), **options)


def fitted(x, **options):
    """Parameters and validation ELBOs after two epochs."""
    made = vae()
    history = pv.fit(made, x, epochs=2, batch_size=64, validation=x, **options)
    return [*made.parameters(), torch.tensor(history.frame["validation_elbo"])]


def same(one, other):
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_part_of_sparse_rows_is_dense_and_operations_give_what_dense_rows_give():
    rows, dense = SparseRows(CSR), torch.from_numpy(DENSE)
    some = torch.tensor([3, 3, 0])
    for index in (
        slice(2, 9, 2),
        4,
        -1,
        some,
        dense[:, 0] > 0,
        [1, 2],
        (slice(2, 4), slice(1, 3)),
        (some, some % 5),
        (some[:, None], some),
        (some, 1),
    ):
        assert type(rows[index]) is torch.Tensor
        assert torch.equal(rows[index], dense[index])
    assert (rows.shape, rows.dtype, len(rows), rows.numel()) == (
        dense.shape,
        dense.dtype,
        ROWS,
        dense.numel(),
    )
    for part in (rows.double(), rows.to(torch.float64), rows.chosen(some), pickle.loads(pickle.dumps(rows))):
        assert type(part) is SparseRows
        assert torch.equal(part[:3], dense[some if len(part) == 3 else slice(3)].to(part.dtype))
    assert torch.equal(rows + 1, dense + 1)
    assert torch.equal(torch.cat([dense, rows]), torch.cat([dense, dense]))
    assert torch.equal(torch.ops.aten.neg(rows), -dense)
    assert rows.sum() == dense.sum()
    assert rows.new_zeros(2).shape == (2,)


@pytest.mark.parametrize(
    "kind", ["csr_matrix", "csc_array", "coo_array", "lil_matrix", "bsr_array", "dok_array"]
)
def test_every_kind_of_matrix_holds_its_rows(kind):
    x = getattr(scipy.sparse, kind)(DENSE)
    batch, source = read(x, dtype=torch.float32)
    assert batch["x"][:2].dtype == torch.float32
    assert torch.equal(batch["x"][:], torch.from_numpy(DENSE).float())
    assert identity.fingerprint(source.exact) == identity.fingerprint(torch.from_numpy(DENSE))
    np.testing.assert_array_equal(
        identity.row_hashes(source.exact), identity.row_hashes(torch.from_numpy(DENSE))
    )


def test_entries_that_are_stored_twice_are_summed_and_the_matrix_stays_as_it_was():
    x = scipy.sparse.csr_matrix(([1, 2, 5], [0, 0, 1], [0, 2, 3]), shape=(2, 2))
    assert read(x, dtype=torch.float32)[0]["x"][:].tolist() == [[3, 0], [0, 5]]
    assert x.nnz == 3


def test_fits_and_scores_are_those_of_dense_rows_without_making_them_dense(by_parts):
    same(fitted(CSR, compile=False), fitted(DENSE, compile=False))
    pair = vae(standardize=True)
    pv.fit(pair, CSR, epochs=1)
    for score in (
        lambda x: pv.log_evidence(pair, x, num_samples=20, check=False).estimate,
        lambda x: pv.elbo(pair, x, num_samples=4, noise="content").estimate,
        lambda x: pv.embed(pair, x).to_numpy(),
    ):
        np.testing.assert_array_equal(score(CSR), score(DENSE))


def test_graphs_of_several_steps_take_minibatches_of_sparse_rows(inside, as_if_compiled):
    same(*(fitted(x[:80], compile=True)[:-1] for x in (CSR, DENSE)))
    assert as_if_compiled


def test_suggestions_baselines_and_odd_cells_are_those_of_dense_rows():
    assert pv.likelihoods.suggest(CSR).equals(pv.likelihoods.suggest(DENSE))
    model = baselines.IndependentPoisson()
    expected = model.fit(DENSE).log_evidence(DENSE).estimate
    np.testing.assert_array_equal(model.fit(CSR).log_evidence(CSR).estimate, expected)
    assert pv.outliers(model, CSR).equals(pv.outliers(model, DENSE))
    batch = read(CSR, dtype=None)[0]
    held = swapping._held_out(batch, 0)
    assert [type(part["x"]) for part in held] == [SparseRows] * 2
    assert swapping._taken(vae(), held[1], {})["x"].shape == (ROWS // 5, COLUMNS)


def test_independent_families_fit_and_score_in_parts(by_parts):
    for cls, x in ((baselines.IndependentPoisson, DENSE), (baselines.IndependentBernoulli, DENSE > 0)):
        sparse, whole = cls().fit(scipy.sparse.csr_array(x)), cls().fit(x)
        expected = whole.log_evidence(x)
        found = sparse.log_evidence(scipy.sparse.csr_array(x))
        np.testing.assert_array_equal(found.estimate, expected.estimate)
        assert (found.fingerprint, found.seen) == (expected.fingerprint, expected.seen)
        assert vars(sparse).keys() == vars(whole).keys()


def test_a_baseline_of_dense_rows_scores_sparse_rows_in_parts(request):
    fits = {cls: cls(*args).fit(DENSE) for cls, args in DENSE_FITS.items()}
    expected = {cls: fitted.log_evidence(DENSE).estimate for cls, fitted in fits.items()}
    request.getfixturevalue("by_parts")
    for cls, fitted in fits.items():
        found = fitted.log_evidence(CSR).estimate
        np.testing.assert_allclose(found, expected[cls], rtol=0, atol=1e-11)


def test_sparse_rows_that_would_fill_the_memory_are_refused_with_their_size(by_parts, monkeypatch):
    monkeypatch.setattr(entries, "_MOST_DENSE", 12_000)  # 300 rows in float64
    calls = {cls.__name__: cls(*args).fit for cls, args in DENSE_FITS.items()}
    calls["start_from"] = vae().likelihood.start_from
    model = baselines.IndependentPoisson().fit(CSR)
    calls["IndependentPoisson"] = model.draw_missing
    for reader, call in calls.items():
        with pytest.raises(
            ValueError, match=rf"at most 1.2e-05 GB .* {reader}.* got 600 rows .* at most 300 rows"
        ):
            call(CSR)

    def stop(pair, x, seed, progress):
        raise InterruptedError(x["x"].shape[0])

    monkeypatch.setattr(swapping, "fit", stop)
    with pytest.raises(InterruptedError, match="480"):
        pv.swap(CSR, 1, ["poisson"], hidden_dims=(4,))


def test_missing_cells_of_a_sparse_matrix():
    x = DENSE.astype(float)
    x[1, :2] = np.nan
    pair = vae(missing=True)
    expected = pv.elbo(pair, x).estimate
    np.testing.assert_array_equal(pv.elbo(pair, scipy.sparse.csr_array(x)).estimate, expected)
    np.testing.assert_array_equal(pv.elbo(pair, {"x": CSR, "observed": ~np.isnan(x)}).estimate, expected)
    completed = pv.impute(
        pair, scipy.sparse.csr_array(x), num_imputations=2, num_samples=100, check=False
    ).completed
    np.testing.assert_array_equal(completed[0][2:], DENSE[2:])


def test_bad_sparse_matrices_are_refused_by_name():
    with pytest.raises(TypeError, match="x: expected real numbers, got an array of dtype complex128"):
        pv.elbo(vae(), CSR.astype(complex))
    with pytest.raises(Refused, match="1 off it, first -1 at row 0, column 0"):
        pv.elbo(vae(), CSR - scipy.sparse.csr_array(([2], ([0], [0])), shape=DENSE.shape))
    with pytest.raises(Refused, match="1 that are infinite, first inf at row 0, column 0"):
        pv.elbo(vae(), scipy.sparse.csr_array(([np.inf], ([0], [0])), shape=DENSE.shape))
    with pytest.raises(TypeError, match=r"Pass x.toarray\(\)"):
        pv.elbo(vae(), scipy.sparse.coo_array(DENSE[0]))


def test_frames_of_other_libraries_are_their_pandas_frames():
    frame = pd.DataFrame(DENSE, columns=list("abcde"))
    table = pyarrow.Table.from_pandas(frame)
    expected = pv.embed(vae(), frame)
    for x in (table, {"x": table}, [table.slice(0, 7), table.slice(7)]):
        np.testing.assert_array_equal(pv.embed(vae(), x), expected)
    assert pv.likelihoods.suggest(table).equals(pv.likelihoods.suggest(frame))
    fitted_to = baselines.IndependentPoisson().fit(table)
    with pytest.raises(Refused, match="'b' instead of 'a' in column 0"):
        fitted_to.log_evidence(table.select(["b", "c", "d", "e"]))


def test_chunks_of_matrices_and_of_tuples_with_names_give_the_numbers_of_the_whole():
    pair = vae("negative_binomial", offset=True)
    offset = np.linspace(-1, 1, ROWS).astype(np.float32)
    whole = {"x": CSR, "offset": offset}
    parts = [Part(CSR[:25], offset[:25]), Part(CSR[25:], offset[25:])]
    rows = torch.from_numpy(DENSE).float()
    loader = DataLoader(
        [Part(*each) for each in zip(rows, torch.from_numpy(offset), strict=True)], batch_size=100
    )
    for score in (
        lambda x: pv.elbo(pair, x, num_samples=10).estimate,
        lambda x: pv.log_evidence(pair, x, num_samples=100, check=False).estimate,
        lambda x: pv.embed(pair, x).to_numpy(),
    ):
        expected = score(whole)
        for x in (Part(CSR, offset), parts, loader):
            np.testing.assert_array_equal(score(x), expected)
    pv.fit(pair, parts, epochs=1, validation=loader)
    with pytest.raises(TypeError, match="name the parts: let the dataset return namedtuples with a field x"):
        pv.embed(pair, [tuple(part) for part in parts])


@pytest.mark.parametrize("kind", ["float32", "int16"])
def test_columns_are_summed_in_float64(kind):
    x = scipy.sparse.csr_array(np.full((3000, 2), 30001, dtype=kind))  # sums beyond 2^24
    rows = SparseRows(x, torch.float64)
    assert rows.sum(dim=0).tolist() == [3000 * 30001.0] * 2
    assert rows.mean(dim=0).tolist() == [30001.0] * 2
    assert float(rows.sum()) == 6000 * 30001.0


@pytest.mark.parametrize("offset", [False, True])
def test_swap_starts_from_sparse_rows(offset, monkeypatch):
    monkeypatch.setattr(swapping, "fit", lambda *args, **options: None)
    starts = []
    for x in (CSR, DENSE):
        batch = read({"x": x, "offset": np.linspace(-1, 1, ROWS)}, dtype=torch.float64)[0]
        pair = vae(offset=offset).double()
        starts.append(swapping._fitted(pair, swapping._taken(pair, batch, {}), {}).parameters())
    same(*starts)


def test_sparse_rows_refuse_writes():
    rows = SparseRows(scipy.sparse.csr_array(np.eye(3)))
    for change in (lambda: rows.__setitem__(0, 7.0), lambda: rows.mul_(2), lambda: rows.add_(1)):
        with pytest.raises(TypeError, match="cannot be changed in place"):
            change()
    assert float(rows.sum()) == 3
