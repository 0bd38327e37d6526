"""A table of data files with their addresses and digests, and ``contents``, which reads one.

``contents`` looks for a file below the folder that ``PYROVAE_DATA`` names, then in pyrovae's folder of the
operating system's cache. It downloads the file to the cache if neither has it. The two places may store the same
array in different formats. The digest is therefore of the array, not of the file.
"""

from __future__ import annotations

import gzip
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pyrovae.refusals import Refused, bad_value, refusal


class Source(NamedTuple):
    """One array.

    Attributes:
        local: the file below ``PYROVAE_DATA``.
        url: the file as published.
        read: takes the path of either file and returns the array, uint8.
        sha256: of the array in either file: of its shape as Python prints it, and its bytes row by row.
    """

    local: str
    url: str
    read: Callable[[Path], np.ndarray]
    sha256: str


def contents(name: str, download: bool) -> np.ndarray:
    """Return the array of that name, uint8, after checking its digest.

    Raises:
        FileNotFoundError: the file is missing and, with ``download``, cannot be downloaded.
        ValueError: the file has other contents. A downloaded file is then deleted.
    """
    source = SOURCES[name]
    folder = os.environ.get("PYROVAE_DATA")
    local = Path(folder) / source.local if folder else None
    if local is not None and local.is_file():
        return _checked(name, local, f"Delete it, and call again to download {source.url} instead.")
    missing = "none" if local is None else f"nothing at {local}"
    published = _published(source, missing, download)
    try:
        return _checked(
            name,
            published,
            f"The file was deleted: call again, or set PYROVAE_DATA to a folder with {source.local}.",
        )
    except Refused:
        published.unlink()
        raise


def sha256(array: np.ndarray) -> str:
    """Return the sha256 of an array's shape, as Python prints it, and its bytes, row by row."""
    digest = hashlib.sha256(str(array.shape).encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _checked(name: str, path: Path, mend: str) -> np.ndarray:
    """Return the array in a file; raises ``ValueError`` if its digest differs from the pinned one."""
    source = SOURCES[name]
    try:
        array = source.read(path)
    except Exception as error:  # every format's library has its own error for a broken file
        raise bad_value(name, "a file that can be read", f"{path} ({type(error).__name__})", mend) from error
    if (found := sha256(array)) != source.sha256:
        raise bad_value(name, f"contents with sha256 {source.sha256[:12]}…", f"{found[:12]}… in {path}", mend)
    return array


def _published(source: Source, missing: str, download: bool) -> Path:
    """Return the published file's path in the cache, after downloading it if needed."""
    import pooch

    address, _, file = source.url.rpartition("/")
    cache = pooch.create(path=pooch.os_cache("pyrovae"), base_url=f"{address}/", registry={file: None})
    path = Path(cache.path) / file
    if path.is_file():
        return path
    if not download:
        came, cause = missing, None
    else:
        try:
            return Path(cache.fetch(file))
        except OSError as error:  # includes errors of requests: no network, no such address
            if (answer := getattr(error, "response", None)) is not None:
                answer.close()
            came, cause = f"{missing}, and {type(error).__name__} on download from {source.url}", error
    raise FileNotFoundError(
        refusal(
            "PYROVAE_DATA",
            f"a folder with {source.local}",
            came,
            f"Set it to such a folder, or put {source.url} into {path.parent}.",
        )
    ) from cause


def _idx(path: Path) -> np.ndarray:
    """Read MNIST's own format, (rows, entries of a row): the number of dims, their sizes, the bytes."""
    whole = np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8)
    head = 4 + 4 * int(whole[3])
    return whole[head:].reshape(int.from_bytes(whole[4:8].tobytes(), "big"), -1)


def _bits(part: str) -> Callable[[Path], np.ndarray]:
    """Return a reader of zeros and ones, (rows, 784), from an archive of packed bits or text with a line a row."""

    def read(path: Path) -> np.ndarray:
        if path.suffix == ".npz":
            return np.unpackbits(_member(path, part), axis=1)
        text = np.fromfile(path, np.uint8)
        return (text[(text == ord("0")) | (text == ord("1"))] - np.uint8(ord("0"))).reshape(-1, 784)

    return read


def _faces(path: Path) -> np.ndarray:
    """Read Frey faces, (1965, 560), from an archive or from Roweis's Matlab file, which has one face a column."""
    if path.suffix == ".npz":
        return _member(path, "x")
    from scipy.io import loadmat

    return loadmat(path)["ff"].T


def _member(path: Path, name: str) -> np.ndarray:
    """Read one array of an archive. The file is closed even if it is broken."""
    with path.open("rb") as file, np.load(file) as archive:
        return archive[name]


def _text(path: Path) -> np.ndarray:
    """Read the characters of a compressed text, (characters,)."""
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8)


_MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist/"
_LAROCHELLE = "http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/binarized_mnist_"
_ROWEIS = "https://cs.nyu.edu/~roweis/data/"
_TIAN = "https://raw.githubusercontent.com/LuyiTian/sc_mixology/19667e111aac52abbfcaa6fff07da2fd05984709/data/csv/"
_PACKED = "static_mnist/binarized_mnist_packed.npz"

SOURCES = {
    "mnist train": Source(
        "mnist/train-images-idx3-ubyte.gz",
        f"{_MNIST}train-images-idx3-ubyte.gz",
        _idx,
        "6c53f9b4d4e45bb44201b9425bcf8bbc7866c806c2f11f6d7f6786fd60ce060c",
    ),
    "mnist test": Source(
        "mnist/t10k-images-idx3-ubyte.gz",
        f"{_MNIST}t10k-images-idx3-ubyte.gz",
        _idx,
        "b4b20a078d39c6340da240ebe3fbf16ef225d5dbbaaca00495c01abe15d27927",
    ),
    "mnist train labels": Source(
        "mnist/train-labels-idx1-ubyte.gz",
        f"{_MNIST}train-labels-idx1-ubyte.gz",
        _idx,
        "def7334f6552c5096ae57e304e7bdb0d75f3c97a2a5a60a13478905efc53b39e",
    ),
    "mnist test labels": Source(
        "mnist/t10k-labels-idx1-ubyte.gz",
        f"{_MNIST}t10k-labels-idx1-ubyte.gz",
        _idx,
        "a81f9f7588c3ddff773f9a6a878366abd1c2c2e4865003d768580c089276aa41",
    ),
    "binarized_mnist train": Source(
        _PACKED,
        f"{_LAROCHELLE}train.amat",
        _bits("train"),
        "fe91f2517ebcd79556fbb547b3d7e9ca1209dfbbb660279be090c7f66351e619",
    ),
    "binarized_mnist valid": Source(
        _PACKED,
        f"{_LAROCHELLE}valid.amat",
        _bits("valid"),
        "7bc473abc7517f33c74f5def3865d95dc40cc2ff1726232ab72d5817cf4e7e97",
    ),
    "binarized_mnist test": Source(
        _PACKED,
        f"{_LAROCHELLE}test.amat",
        _bits("test"),
        "522d8dbe4d48fa7b2e9b252cbaa6ae7c009c0d6df2d642120ddac5363f716eb8",
    ),
    "frey_faces": Source(
        "freyfaces/freyfaces.npz",
        f"{_ROWEIS}frey_rawface.mat",
        _faces,
        "8178c1c212bbcc9002609b7f0ddd053202d07987e004d2c30769e179fa85247b",
    ),
    "cell_counts counts": Source(
        "scrna/sc_celseq2.count.csv.gz",
        f"{_TIAN}sc_celseq2.count.csv.gz",
        _text,
        "32348cad43ccd6ac7138525f7ac0b5bab614f89af83e9f3f97b9f866ccd21919",
    ),
    "cell_counts cells": Source(
        "scrna/sc_celseq2.metadata.csv.gz",
        f"{_TIAN}sc_celseq2.metadata.csv.gz",
        _text,
        "4595c46e215ec0c2ce895c4854ad544b243c1bc588a1fb47cfd1d47a0a8a0b4e",
    ),
}
