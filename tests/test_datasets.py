"""Data sets hold what is pinned, wherever they come from; nothing is fetched but from this test's own server."""

import functools
import gzip
import hashlib
import http.server
import re
import threading

import numpy as np
import pooch
import pytest
import torch
from rates import SEED, close
from sklearn.datasets import load_digits

from pyrovae import datasets
from pyrovae.datasets import sources, splits


def at_hand(load, **options):
    """A data set where its files are here; the test is skipped where they are not."""
    try:
        return load(download=False, **options)
    except FileNotFoundError as missing:
        pytest.skip(str(missing))


def together(split):
    return torch.cat(tuple(split))


# What needs no files ---------------------------------------------------------------------------------------


def test_kinds_of_digits_are_the_same_rows():
    levels, binary, continuous = (datasets.digits(kind) for kind in ("levels", "binary", "continuous"))
    for part in range(3):
        assert torch.equal((levels[part] >= 8).float(), binary[part])
        assert torch.equal(continuous[part].floor(), levels[part])
    assert [len(part) for part in levels] == [1197, 200, 400]
    own = load_digits().data
    found = together(levels).double().numpy()
    assert np.array_equal(found[np.lexsort(found.T)], own[np.lexsort(own.T)])


def test_seed_of_digits_moves_the_split():
    assert torch.equal(datasets.digits(seed=1).test, datasets.digits(seed=1).test)
    assert not torch.equal(datasets.digits(seed=1).test, datasets.digits().test)
    with pytest.raises(ValueError, match="'binary', 'levels', 'continuous', got 'grey'"):
        datasets.digits("grey")


@pytest.mark.statistical
def test_dequantised_is_uniform_and_stays_below_the_next_level():
    """In float32, 255 + u rounds up to 256 once in 131 072 draws."""
    levels = torch.full((2_000_000,), 255.0)
    u = (splits.dequantised(levels, splits.generator_of(SEED)) - levels).double()
    assert u.min() >= 0
    assert u.max() < 1
    assert close(u.mean(), 1 / 2, (1 / 12 / len(u)) ** 0.5)
    assert close(u.square().mean(), 1 / 3, (4 / 45 / len(u)) ** 0.5)


@pytest.mark.statistical
def test_binarize_draws_each_level_at_its_rate():
    levels = torch.arange(256.0).expand(4000, 256)
    x = datasets.binarize(levels, seed=SEED)
    assert set(x.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(x, datasets.binarize(levels.numpy(), seed=SEED))
    assert not torch.equal(x, datasets.binarize(levels, seed=SEED + 1))
    for level in (0, 1, 30, 128, 254, 255):
        rate = level / 255
        assert close(x[:, level].mean(), rate, (rate * (1 - rate) / 4000) ** 0.5)


def test_binarize_refuses_other_levels():
    with pytest.raises(ValueError, match="levels: expected values from 0 to 16, got 2 outside, first 17"):
        datasets.binarize(np.array([[17, -1, 16, 0]]), highest=16)


def test_what_is_pinned_is_shape_and_bytes_whatever_the_layout():
    array = np.arange(6, dtype=np.uint8).reshape(2, 3)
    expected = hashlib.sha256(b"(2, 3)" + bytes(range(6))).hexdigest()
    assert sources.sha256(array) == sources.sha256(np.asfortranarray(array)) == expected
    assert sources.sha256(array.reshape(3, 2)) != expected


def test_the_table_of_sources():
    files = [source.url.rpartition("/")[2] for source in sources.SOURCES.values()]
    assert len(set(files)) == len(files)  # one cache holds them all
    assert all(re.fullmatch("[0-9a-f]{64}", source.sha256) for source in sources.SOURCES.values())


# What is published, from a server of the test's own --------------------------------------------------------


class World:
    """A server, a folder for PYROVAE_DATA, a cache, and small arrays pinned in the place of the real ones."""

    def __init__(self, folder, monkeypatch):
        self.monkeypatch, self.asked, self.published = monkeypatch, [], {}
        self.local, self.cache = folder / "local", folder / "cache"
        self.local.mkdir()
        world = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                world.asked.append(self.path[1:])
                body = world.published.get(self.path[1:])
                self.send_response(200 if body is not None else 404)
                self.send_header("Content-Length", str(len(body or b"")))
                self.end_headers()
                self.wfile.write(body or b"")

            def log_message(self, *arguments):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()
        self.pinned = {}
        monkeypatch.setattr(sources, "SOURCES", self.pinned)
        monkeypatch.setattr(pooch, "os_cache", lambda project: self.cache / project)
        monkeypatch.setenv("PYROVAE_DATA", str(self.local))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    def pin(self, name, array, real=sources.SOURCES):
        source = real[name]
        file = source.url.rpartition("/")[2]
        self.pinned[name] = source._replace(url=f"{self.address}/{file}", sha256=sources.sha256(array))
        return file

    def close(self):
        if self.thread.is_alive():
            self.server.shutdown()
            self.thread.join()
        self.server.server_close()


@pytest.fixture
def world(tmp_path, monkeypatch):
    world = World(tmp_path, monkeypatch)
    yield world
    world.close()


def idx(array):
    head = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return gzip.compress(head + array.tobytes())


def amat(array):
    return "\n".join(" ".join(map(str, row)) for row in array).encode() + b"\n"


def matlab(array, folder):
    from scipy.io import savemat

    savemat(folder / "ff.mat", {"ff": array.T})
    return (folder / "ff.mat").read_bytes()


@pytest.fixture
def random():
    return np.random.default_rng(SEED)


@pytest.fixture
def faces(world, random, tmp_path):
    """Frey faces as they are published, in Matlab's format."""
    levels = random.integers(256, size=(1965, 560), dtype=np.uint8)
    world.published[world.pin("frey_faces", levels)] = matlab(levels, tmp_path)
    return levels


def test_mnist_as_published(world, random):
    images = {part: random.integers(256, size=(n, 28, 28), dtype=np.uint8) for part, n in PARTS}
    labels = {part: random.integers(10, size=n, dtype=np.uint8) for part, n in PARTS}
    for part, _ in PARTS:
        file = world.pin(f"mnist {part}", images[part].reshape(-1, 784))
        world.published[file] = idx(images[part])
        file = world.pin(f"mnist {part} labels", labels[part][:, None])
        world.published[file] = idx(labels[part])
    x = datasets.mnist()
    assert len(world.asked) == 4
    assert np.array_equal(x.train.numpy(), images["train"].reshape(6, 784))
    assert np.array_equal(x.test.numpy(), images["test"].reshape(2, 784))
    assert np.array_equal(x.train_labels.numpy(), labels["train"])
    assert np.array_equal(x.test_labels.numpy(), labels["test"])
    assert x.train.dtype == x.test.dtype == torch.float32
    assert x.train_labels.dtype == torch.int64


PARTS = (("train", 6), ("test", 2))


def test_binarized_mnist_published_and_packed_are_the_same(world, random):
    arrays = {part: random.integers(2, size=(20, 784), dtype=np.uint8) for part in ("train", "valid", "test")}
    for part, array in arrays.items():
        world.published[world.pin(f"binarized_mnist {part}", array)] = amat(array)
    published = datasets.binarized_mnist()
    order = torch.randperm(20, generator=splits.generator_of(0)).numpy()
    assert np.array_equal(published.train.numpy(), arrays["train"])
    assert np.array_equal(published.validation.numpy(), arrays["valid"])
    assert np.array_equal(published.test.numpy(), arrays["test"][order])

    asked = len(world.asked)
    file = world.local / "static_mnist" / "binarized_mnist_packed.npz"
    file.parent.mkdir()
    np.savez_compressed(file, **{part: np.packbits(array, axis=1) for part, array in arrays.items()})
    packed = datasets.binarized_mnist()
    assert len(world.asked) == asked == 3
    assert all(torch.equal(one, other) for one, other in zip(packed, published, strict=True))


def test_frey_faces_published_and_local_are_the_same(world, faces):
    published = datasets.frey_faces()
    assert [tuple(part.shape) for part in published] == [(1565, 560), (200, 560), (200, 560)]
    rows = together(published).numpy()
    assert np.array_equal(rows[np.lexsort(rows.T)], faces[np.lexsort(faces.T)])
    continuous = datasets.frey_faces("continuous")
    assert torch.equal(together(continuous).floor(), together(published))
    assert not torch.equal(datasets.frey_faces(seed=1).test, published.test)

    file = world.local / "freyfaces" / "freyfaces.npz"
    file.parent.mkdir()
    np.savez_compressed(file, x=faces)
    assert torch.equal(datasets.frey_faces().test, published.test)
    assert world.asked == ["frey_rawface.mat"]  # downloaded once, for all of these


@pytest.fixture
def plate(world, random):
    """Counts of 30 genes and 2 spike-ins in 274 cells of three lines, and the cells in another order."""
    genes = [f"ENSG{gene:011d}" for gene in range(30)] + ["ERCC-00002", "ERCC-00130"]
    cells = [f"A{cell}" for cell in range(274)]
    rate = random.gamma(1.0, 5.0, size=(32, 1)) * random.lognormal(size=(32, 274))
    counts = random.poisson(rate * ([[1.0]] * 30 + [[500.0]] * 2))
    lines = random.choice(["H1975", "H2228", "HCC827"], size=274)
    quoted = [",".join(f'"{cell}"' for cell in cells)]  # as R writes it: no name for the names' own column
    quoted += [f'"{gene}",' + ",".join(map(str, row)) for gene, row in zip(genes, counts, strict=True)]
    wells = ['"unaligned","cell_line_demuxlet"']
    wells += [f'"{cells[i]}",{i},"{lines[i]}"' for i in random.permutation(274)]
    for part, text in (("counts", quoted), ("cells", wells)):
        text = ("\n".join(text) + "\n").encode()
        world.published[world.pin(f"cell_counts {part}", np.frombuffer(text, np.uint8))] = gzip.compress(text)
    return genes, counts, lines


def test_cell_counts(plate):
    genes, counts, lines = plate
    data = datasets.cell_counts(num_genes=7)
    assert [tuple(part.shape) for part in data.counts] == [(174, 7), (50, 7), (50, 7)]
    assert [tuple(part.shape) for part in data.others] == [(174,), (50,), (50,)]

    # Which cell a row is, by its counts of the chosen genes and of all others: no two agree.
    columns = [genes.index(gene) for gene in data.genes]
    rest = [gene for gene in range(30) if gene not in columns]
    own = [(*counts[columns, cell], counts[rest, cell].sum()) for cell in range(274)]
    rows = torch.cat([together(data.counts), together(data.others)[:, None]], dim=1)
    cells = [own.index(tuple(row)) for row in rows.long().tolist()]
    assert len(set(own)) == 274
    assert sorted(cells) == list(range(274))
    assert [data.cell_lines[label] for label in together(data.labels)] == lines[cells].tolist()

    # The columns: of the training cells alone, the highest variance first, and no spike-ins.
    variance = np.log1p(counts[:30, cells[:174]]).var(axis=1)
    assert columns == np.argsort(-variance)[:7].tolist()
    everywhere = np.log1p(counts[:30]).var(axis=1)
    assert columns != np.argsort(-everywhere)[:7].tolist()


def test_cell_counts_leaves_genes_for_the_offset(plate):
    assert datasets.cell_counts(num_genes=29).counts.test.shape == (50, 29)
    with pytest.raises(ValueError, match=r"num_genes: expected fewer than all 30 genes, got 30\."):
        datasets.cell_counts(num_genes=30)


# What goes wrong ------------------------------------------------------------------------------------------


def test_without_download_nothing_is_asked(world, faces):
    with pytest.raises(
        FileNotFoundError, match=r"PYROVAE_DATA: expected a folder with freyfaces/freyfaces.npz"
    ):
        datasets.frey_faces(download=False)
    assert world.asked == []
    datasets.frey_faces()
    datasets.frey_faces(download=False)  # it is in the cache now


@pytest.mark.parametrize("how", ["no such file", "no server"])
def test_not_to_be_had_is_one_sentence(world, faces, how):
    world.published.clear()
    if how == "no server":
        world.close()
    world.monkeypatch.delenv("PYROVAE_DATA")
    with pytest.raises(FileNotFoundError) as caught:
        datasets.frey_faces()
    url, cache = f"{world.address}/frey_rawface.mat", world.cache / "pyrovae"
    error = {"no such file": "HTTPError", "no server": "ConnectionError"}[how]
    assert str(caught.value) == (
        "PYROVAE_DATA: expected a folder with freyfaces/freyfaces.npz, got none, and "
        f"{error} on download from {url}. Set it to such a folder, or put {url} into {cache}."
    )
    assert caught.value.__cause__ is not None


def test_other_contents_are_refused_and_fetched_again(world, faces, random, tmp_path):
    ((file, right),) = world.published.items()
    world.published[file] = matlab(255 - faces, tmp_path)
    expected = sources.SOURCES["frey_faces"].sha256[:12]
    with pytest.raises(
        ValueError, match=f"frey_faces: expected contents with sha256 {expected}…, got .*{file}"
    ):
        datasets.frey_faces()
    world.published[file] = b"<html>Log in to the network of your hotel</html>"
    with pytest.raises(ValueError, match="expected a file that can be read"):
        datasets.frey_faces()
    world.published[file] = right
    datasets.frey_faces()
    assert len(world.asked) == 3


@pytest.mark.parametrize("broken", [True, False])
def test_other_contents_below_the_folder_are_refused_and_kept(world, faces, broken):
    file = world.local / "freyfaces" / "freyfaces.npz"
    file.parent.mkdir()
    np.savez_compressed(file, x=faces[::-1])
    if broken:
        file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"freyfaces\.npz.*Delete it, and call again to download http"):
        datasets.frey_faces()
    assert file.is_file()
    assert world.asked == []


# The real ones, where they are at hand ---------------------------------------------------------------------


def test_real_mnist():
    x = at_hand(datasets.mnist)
    assert x.train.shape == (60000, 784)
    assert x.test.shape == (10000, 784)
    # Digits of each class, as published; and they lie in the middle of a 28 × 28 picture.
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert x.train_labels.bincount().tolist() == counts
    picture = x.train.mean(dim=0).reshape(28, 28)
    assert picture[10:18, 10:18].mean() > 100
    assert picture[:2].mean() < 1


@pytest.mark.statistical
def test_real_binarized_mnist():
    """Larochelle drew each pixel of the 70 000 pictures at its grey level, and put the rows in his own order."""
    x = at_hand(datasets.binarized_mnist)
    assert [tuple(part.shape) for part in x] == [(50000, 784), (10000, 784), (10000, 784)]
    whole = together(x)
    assert torch.equal(whole, whole.square())
    # The first test rows stand for all of them: sorted by digit, they would be zeros, with an empty middle.
    middle = x.test.reshape(-1, 28, 28)[:, 14, 14].double()
    assert close(middle[:900].mean(), middle.mean(), middle.std() / 30)
    levels = at_hand(datasets.mnist)
    rates = torch.cat([levels.train, levels.test]) / 255
    ones, expected = (pixels.mean(dim=0, dtype=torch.float64) for pixels in (whole, rates))
    variance = expected.sum() - rates.square_().mean(dim=0, dtype=torch.float64).sum()
    assert close(ones.sum(), expected.sum(), (variance / 70000).sqrt())
    assert torch.corrcoef(torch.stack([ones, expected]))[0, 1] > 0.9999


def test_real_frey_faces():
    x = at_hand(functools.partial(datasets.frey_faces, "levels"))
    rows = together(x)
    assert rows.shape == (1965, 560)
    assert len(rows.unique(dim=0)) == 1965
    # Pictures of 28 × 20: neighbours below each other are far more alike than pixels 19 apart.
    below = (rows[:, 20:] - rows[:, :-20]).abs().mean()
    assert below < 0.5 * (rows - rows.flip(1)).abs().mean()


def test_real_cell_counts():
    data = at_hand(datasets.cell_counts)
    assert [tuple(part.shape) for part in data.counts] == [(174, 500), (50, 500), (50, 500)]
    assert data.cell_lines == ("H1975", "H2228", "HCC827")
    assert together(data.labels).bincount().tolist() == [112, 81, 81]
    assert together(data.others).min() > 1000
    # The chosen genes know the lines: a cell's nearest neighbour among the training cells is of its line.
    train, test = ((c / t[:, None]).log1p() for c, t in zip(data.counts[::2], data.others[::2], strict=True))
    nearest = data.labels.train[torch.cdist(test, train).argmin(dim=1)]
    assert (nearest == data.labels.test).double().mean() > 0.8
