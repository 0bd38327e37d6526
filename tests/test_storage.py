"""Files: round trips, what is refused, and that the earlier file outlives every failure."""

import contextlib
import errno
import hashlib
import json
import os
import pickle
import random
import resource
import signal
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors import torch as safetensors

from pyrovae import storage

DTYPES = sorted(storage._DTYPES, key=str)


def small(path, value=1.0):
    """A small file of every kind of content."""
    arrays = {"loc": torch.full((3,), value), "scale": torch.tensor(2.0), "mask": torch.tensor([True, False])}
    storage.write(path, arrays, {"history": [1.0, float("nan")], "name": "digits"})
    return path.read_bytes()


def identical(one, other):
    """Equal bit for bit, NaN too."""
    return (
        one.dtype == other.dtype
        and one.shape == other.shape
        and one.contiguous().flatten().view(torch.uint8).equal(other.contiguous().flatten().view(torch.uint8))
    )


# ---------------------------------------------------------------------------------------------------------
# Round trips


@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 3), (4, 5)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_and_shape(tmp_path, dtype, shape):
    array = torch.randint(0, 2, shape) if dtype == torch.bool else 3 * torch.rand(shape)
    storage.write(tmp_path / "file", {"array": array.to(dtype)}, {})
    arrays, meta = storage.read(tmp_path / "file")
    assert arrays.keys() == {"array"}
    assert identical(arrays["array"], array.to(dtype))
    assert meta == {}


def test_every_bit_of_a_float(tmp_path):
    """NaN with a payload, −0, subnormals and infinities."""
    bits = torch.tensor([0x7FC12345, 0x7F812345, -0x80000000, 1, 0x7F800000], dtype=torch.int32)
    storage.write(tmp_path / "file", {"odd": bits.view(torch.float32)}, {})
    assert torch.equal(storage.read(tmp_path / "file")[0]["odd"].view(torch.int32), bits)


def test_views_are_stored_as_what_they_show(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    arrays = {
        "transposed": base.T,
        "column": base[:, 1],
        "strided": base[::2, ::3],
        "expanded": torch.tensor(3.0).expand(4, 2),
        "negated": torch.tensor([1 + 2j]).conj().imag,
        "learned": torch.nn.Parameter(base.clone()),
    }
    storage.write(tmp_path / "file", arrays, {})
    again = storage.read(tmp_path / "file")[0]
    assert all(
        torch.equal(again[name], array) and not again[name].requires_grad for name, array in arrays.items()
    )
    again["transposed"][0, 0] = 100.0  # memory of its own
    assert again["column"][0] == 1.0
    assert base[0, 0] == 0.0


def test_shared_tensors_are_stored_once_and_one_again(tmp_path):
    weight = torch.randn(1000)
    storage.write(
        tmp_path / "shared", {"a": weight, "b": weight, "c": weight.clone(), "d": weight.detach()}, {}
    )
    arrays, _ = storage.read(tmp_path / "shared")
    assert arrays["a"] is arrays["b"] is arrays["d"]
    assert arrays["c"] is not arrays["a"]
    assert (tmp_path / "shared").stat().st_size < 2 * 4000 + 1000
    assert arrays.keys() == {"a", "b", "c", "d"}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@settings(max_examples=30, deadline=None)
@given(meta=st.dictionaries(st.text(), JSON, max_size=4))
def test_json_comes_back(tmp_path_factory, meta):
    path = tmp_path_factory.getbasetemp() / "json"
    storage.write(path, {}, meta)
    assert repr(storage.read(path)[1]) == repr(meta)  # repr: NaN is not equal to itself


def test_any_reader_of_safetensors_opens_it(tmp_path):
    small(tmp_path / "file")
    with safe_open(tmp_path / "file", framework="pt") as file:
        assert set(file.keys()) == {"loc", "scale", "mask"}
        assert json.loads(file.metadata()["pyrovae"])["version"] == storage.VERSION


def test_the_same_content_is_the_same_file(tmp_path):
    assert small(tmp_path / "one") == small(tmp_path / "two")
    assert small(tmp_path / "three", value=2.0) != small(tmp_path / "one")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.integers() | st.text(max_size=3) | st.tuples(st.integers()), inner, max_size=3)
    ),
    max_leaves=10,
)


@settings(max_examples=100, deadline=None)
@given(value=VALUES)
def test_packed_values_come_back(value):
    arrays = {}
    packed = json.loads(json.dumps(storage.pack(value, arrays, "value")))
    assert repr(storage.unpack(packed, arrays)) == repr(value)
    assert arrays == {}


def test_packed_arrays_come_back(tmp_path):
    value = {
        "state": {0: {"step": torch.tensor(3), "moment": torch.randn(2, 3)}},
        "seen": np.array([2**63 + 1, 5], dtype=np.uint64),
        "frame": pd.DataFrame({"a": [1.0, 2.0]}),
        "backwards": np.arange(3)[::-1],
        "swapped": np.arange(3, dtype=">f8"),
        "dtype": torch.bfloat16,
        "number": np.float32(0.5),
    }
    arrays = {}
    storage.write(tmp_path / "file", arrays, {"value": storage.pack(value, arrays, "value")})
    arrays, meta = storage.read(tmp_path / "file")
    again = storage.unpack(meta["value"], arrays)
    assert torch.equal(again["state"][0]["moment"], value["state"][0]["moment"])
    assert again["state"][0]["step"].dtype == torch.int64
    assert again["seen"].dtype == np.uint64
    assert again["seen"].tolist() == [2**63 + 1, 5]
    assert again["frame"].tolist() == [[1.0], [2.0]]
    assert again["backwards"].tolist() == [2, 1, 0]
    assert again["swapped"].tolist() == [0.0, 1.0, 2.0]
    assert again["dtype"] is torch.bfloat16
    assert again["number"] == 0.5


# ---------------------------------------------------------------------------------------------------------
# What is refused before anything is written


@pytest.mark.parametrize(
    ("arrays", "meta", "message"),
    [
        ({}, {"a": (1, 2)}, r"meta\['a'\]: expected a dict, list, string.*got a tuple"),
        ({}, {"a": [{1: 2}]}, r"meta\['a'\]\[0\]: expected keys that are strings, got 1"),
        ({}, {"a": np.float64(1)}, "got a float64"),
        ({}, {"a": {1, 2}}, "got a set"),
        ({"z": torch.zeros(2, dtype=torch.complex64)}, {}, "z: expected a dense tensor"),
        ({"z": torch.zeros(2, 2).to_sparse()}, {}, "z: expected a dense tensor"),
        ({"__metadata__": torch.zeros(2)}, {}, "a name that safetensors does not reserve"),
    ],
)
def test_what_would_not_come_back_is_not_written(tmp_path, arrays, meta, message):
    with pytest.raises(TypeError, match=message):
        storage.write(tmp_path / "file", arrays, meta)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [lambda: 0, object(), np.array(["a"]), {"a": [1, print]}, {1, 2}, 1j, b"a"])
def test_code_is_not_packed(value):
    with pytest.raises(
        TypeError, match=r"value.*expected a number, string, list, tuple, dict, tensor or array"
    ):
        storage.pack(value, {}, "value")


@pytest.mark.parametrize(
    "packed",
    [{"tensor": "nowhere"}, {"dtype": "int"}, {"class": "os"}, {}, {"tuple": 3}, {"dict": [[[], 1]]}],
)
def test_what_was_not_packed_is_refused(packed):
    with pytest.raises(ValueError, match="expected values as pyrovae saves them"):
        storage.unpack(packed, {})


def test_a_header_that_could_not_be_read_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "_LONGEST_HEADER", 10_000)
    storage.write(tmp_path / "file", {}, {"a": "b" * 9_000})
    with pytest.raises(ValueError, match="meta: expected JSON that fits into the header"):
        storage.write(tmp_path / "file", {}, {"a": "b" * 10_000})
    assert storage.read(tmp_path / "file")[1] == {"a": "b" * 9_000}


# ---------------------------------------------------------------------------------------------------------
# What is refused when it is read


def refused(path, message="path: expected a file that pyrovae saved, whole and unchanged"):
    with pytest.raises(ValueError, match=message):
        storage.read(path)


def test_every_flipped_bit_is_refused(tmp_path):
    """PITFALLS 22: safetensors itself reads 1966 of 2000 flipped files silently."""
    path = tmp_path / "file"
    content = small(path)
    silent = 0
    for bit in random.Random(0).sample(range(8 * len(content)), 2000):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(ValueError, match=r"^path: expected a file"):
            storage.read(path)
        with contextlib.suppress(Exception):
            safetensors.load_file(path)
            silent += 1
    assert silent > 100  # the flips are such as nobody else sees


def test_every_truncation_and_extension_is_refused(tmp_path):
    path = tmp_path / "file"
    content = small(path)
    for length in range(len(content)):
        path.write_bytes(content[:length])
        refused(path)
    for more in (b"\0", content):
        path.write_bytes(content + more)
        refused(path)
    path.write_bytes(content)
    storage.read(path)


def test_swapped_members_are_refused(tmp_path):
    """Two tensors of one shape exchanged; one file's header with another's tensors; names exchanged."""
    path = tmp_path / "file"
    storage.write(path, {"first": torch.zeros(4), "second": torch.ones(4)}, {})
    content = path.read_bytes()
    path.write_bytes(content[:-32] + content[-16:] + content[-32:-16])
    refused(path)
    path.write_bytes(content.replace(b"first", b"FIRST"))
    refused(path)
    storage.write(tmp_path / "other", {"first": torch.zeros(4), "second": torch.full((4,), 2.0)}, {})
    path.write_bytes(content[:-32] + (tmp_path / "other").read_bytes()[-32:])
    refused(path)


class Payload:
    """Pickled, it makes a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def foreign(path, kind):
    marker = path.with_name("executed")
    match kind:
        case "pickle":
            path.write_bytes(pickle.dumps(Payload(marker)))
        case "torch.save":
            torch.save(Payload(marker), path)
        case "old torch.save":
            torch.save(Payload(marker), path, _use_new_zipfile_serialization=False)
        case "safetensors":
            safetensors.save_file({"loc": torch.zeros(3)}, path)
        case "other metadata":
            safetensors.save_file({"loc": torch.zeros(3)}, path, {"pyrovae": "hello"})
        case "no metadata":
            path.write_bytes((2).to_bytes(8, "little") + b"{}")
        case "deep":
            path.write_bytes((200_000).to_bytes(8, "little") + b"[" * 200_000)
        case "text":
            path.write_text("name,value\n" * 100)
        case "zeros":
            path.write_bytes(bytes(1000))
        case "empty":
            path.touch()


@pytest.mark.parametrize(
    "kind",
    [
        *("pickle", "torch.save", "old torch.save", "safetensors", "other metadata"),
        *("no metadata", "deep", "text", "zeros", "empty"),
    ],
)
def test_foreign_files_are_refused_and_nothing_is_run(tmp_path, kind):
    path = tmp_path / "file"
    foreign(path, kind)
    refused(path)
    assert not (tmp_path / "executed").exists()


def test_the_payload_would_run(tmp_path):
    """That the test above can fail."""
    foreign(tmp_path / "file", "torch.save")
    torch.load(tmp_path / "file", weights_only=False)
    assert (tmp_path / "executed").exists()


def forged(path, **changes):
    """A file with a right sha256 whose header says something else."""
    about = {"version": storage.VERSION, "sha256": "0" * 64, "aliases": {}, "meta": {}} | changes
    content = safetensors.save({"loc": torch.zeros(3)}, {"pyrovae": json.dumps(about)})
    digest = hashlib.sha256(content).hexdigest().encode()
    path.write_bytes(content.replace(b"0" * 64, digest, 1))


def test_newer_versions_are_refused_naming_both(tmp_path):
    forged(tmp_path / "now")
    storage.read(tmp_path / "now")
    forged(tmp_path / "newer", version=storage.VERSION + 1)
    refused(
        tmp_path / "newer",
        f"format version {storage.VERSION} or earlier, got version {storage.VERSION + 1} in .*update pyrovae",
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"aliases": {"a": "nowhere"}},
        {"aliases": {"a": ["loc"]}},
        {"aliases": [1]},
        {"meta": [1]},
        {"version": "1"},
        {"version": None},
        {"sha256": ""},
        {"sha256": 3},
    ],
)
def test_forged_headers_are_refused(tmp_path, changes):
    forged(tmp_path / "file", **changes)
    refused(tmp_path / "file")


def test_names_lead_nowhere_else(tmp_path):
    """A path for a name is a name."""
    (tmp_path / "folder").mkdir()
    names = ["../escape", "/tmp/escape", "a/b", "..", "", "ü\n\\"]
    storage.write(tmp_path / "folder" / "file", {name: torch.ones(1) for name in names}, {"../../up": "/etc"})
    assert set(storage.read(tmp_path / "folder" / "file")[0]) == set(names)
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "file"]


def test_no_file_folders_and_pipes(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"path: expected a file to read, got No such file.*Check the path\.$"
    ):
        storage.read(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(IsADirectoryError, match=r"expected a file to read.*Pass the name of a file"):
            storage.read(path)
        with pytest.raises(
            IsADirectoryError, match=r"expected a file to write .* bytes to.*Pass the name of a file"
        ):
            storage.write(path, {}, {})
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    with pytest.raises(FileNotFoundError, match="its folder has to exist"):
        storage.write(tmp_path / "missing" / "file", {}, {})
    small(tmp_path / "file")
    with pytest.raises(NotADirectoryError, match="one of its folders is a file"):
        storage.write(tmp_path / "file" / "file", {}, {})


# ---------------------------------------------------------------------------------------------------------
# Atomic


def test_the_order_of_writing(tmp_path, monkeypatch):
    """Whole content to a file beside, flushed; renamed; the folder flushed (PITFALLS 20)."""
    path, done = tmp_path / "file", []
    content = small(path)
    fsync, replace = os.fsync, os.replace

    def watched_fsync(descriptor):
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            assert status.st_ino == tmp_path.stat().st_ino
            done.append("flush folder")
        else:
            assert status.st_size == len(content)
            assert path.read_bytes() == content
            done.append("flush file")
        fsync(descriptor)

    def watched_replace(source, target):
        assert Path(source).parent == Path(target).parent == tmp_path
        assert Path(target) == path
        done.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", watched_replace)
    small(path, value=5.0)
    assert done == ["flush file", "rename", "flush folder"]
    assert list(tmp_path.iterdir()) == [path]
    assert storage.read(path)[0]["loc"].tolist() == [5.0] * 3


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "The disk is full: make room"),
        (errno.EDQUOT, "The quota is used up"),
        (errno.EROFS, "The disk is read-only: choose another folder"),
        (errno.EACCES, "There is no permission"),
        (errno.EIO, "Try again, or choose another folder"),
    ],
)
@pytest.mark.parametrize("call", ["open", "fsync", "replace"])
def test_a_failure_leaves_the_earlier_file(tmp_path, monkeypatch, call, number, message):
    path = tmp_path / "file"
    content = small(path)
    real, calls = getattr(os, call), []

    def failing(*arguments, **options):
        calls.append(arguments)
        if call == "open" and os.fspath(arguments[0]) == os.fspath(tmp_path):
            return real(*arguments, **options)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, failing)
    with pytest.raises(OSError, match=rf"expected a file to write \d+ bytes to.*{message}") as error:
        small(path, value=5.0)
    monkeypatch.undo()
    assert error.value.errno == number
    assert calls
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_cut_short_by_the_system_leaves_the_earlier_one(tmp_path):
    """A real write that stops half-way: the process may write no file longer than this."""
    path = tmp_path / "file"
    content = small(path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            storage.write(path, {"loc": torch.zeros(10_000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder(tmp_path):
    content = small(tmp_path / "file")
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(PermissionError, match="There is no permission"):
            small(tmp_path / "file", value=5.0)
        assert (tmp_path / "file").read_bytes() == content
    finally:
        tmp_path.chmod(0o700)


def test_an_interruption_leaves_the_earlier_file(tmp_path, monkeypatch):
    content = small(tmp_path / "file")

    def interrupted(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        small(tmp_path / "file", value=5.0)
    assert (tmp_path / "file").read_bytes() == content
    assert len(list(tmp_path.iterdir())) == 1


def test_links_are_followed_and_the_umask_decides(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder" / "file")
    before = os.umask(0o027)
    try:
        small(tmp_path / "link")
    finally:
        os.umask(before)
    assert (tmp_path / "link").is_symlink()
    assert stat.S_IMODE((tmp_path / "folder" / "file").stat().st_mode) == 0o640


WORKER = """
import os, sys, torch
from pyrovae import storage
with storage.lock(sys.argv[1]):
    print("ready", flush=True)
    for number in range(10**9):
        storage.write(sys.argv[1] + "/file", {"loc": torch.full((20_000,), float(number))}, {"number": number})
"""


def test_killed_writers_leave_a_readable_file_and_their_lock(tmp_path):
    """A second process on the folder is refused while the first lives, and not when it has been killed."""
    for _ in range(2):
        worker = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", textwrap.dedent(WORKER), str(tmp_path)],
            stdout=subprocess.PIPE,
        )
        try:
            assert worker.stdout.readline() == b"ready\n"
            with (
                pytest.raises(
                    BlockingIOError, match=f"no other process writes to, got .*held by process {worker.pid}"
                ),
                storage.lock(tmp_path),
            ):
                pass
            while not (tmp_path / "file").exists():
                pass
            for _ in range(20):
                arrays, meta = storage.read(tmp_path / "file")
                assert (arrays["loc"] == meta["number"]).all()
        finally:
            worker.send_signal(signal.SIGKILL)
            worker.wait()
            worker.stdout.close()
        arrays, meta = storage.read(tmp_path / "file")
        assert (arrays["loc"] == meta["number"]).all()
    (tmp_path / ".pyrovae-0.tmp").write_text("half")
    with storage.lock(tmp_path):
        assert {path.name for path in tmp_path.iterdir()} == {"file", ".lock"}


def test_a_lock_leaves_files_that_are_being_written(tmp_path):
    """Parts of evaluations are written without the folder's lock."""
    with storage.replacing(tmp_path / "part") as file:
        file.write(b"half")
        file.flush()
        with storage.lock(tmp_path):
            pass
        file.write(b", whole")
    assert (tmp_path / "part").read_bytes() == b"half, whole"
    assert {path.name for path in tmp_path.iterdir()} == {"part", ".lock"}


def test_a_new_file_that_was_taken_for_a_leftover_is_made_again(tmp_path, monkeypatch):
    lock, waits = storage._flock, []

    def at_once(descriptor, wait=False):
        if wait and not waits:
            storage._remove_leftovers(tmp_path)
        waits.append(wait)
        return lock(descriptor, wait)

    monkeypatch.setattr(storage, "_flock", at_once)
    (tmp_path / "file").write_bytes(b"before")
    with storage.replacing(tmp_path / "file") as file:
        file.write(b"after")
    assert (tmp_path / "file").read_bytes() == b"after"


def test_one_holder_at_a_time_and_any_number_in_turn(tmp_path):
    folder = tmp_path / "new" / "folder"
    for _ in range(2):
        with storage.lock(folder):
            with (
                pytest.raises(BlockingIOError, match=f"held by process {os.getpid()}.*a separate folder"),
                storage.lock(folder),
            ):
                pass
            small(folder / "file")
    with pytest.raises(ZeroDivisionError), storage.lock(folder):
        1 / 0  # noqa: B018
    with storage.lock(folder):
        pass
    with pytest.raises(FileExistsError, match="expected a folder to write to"), storage.lock(folder / "file"):
        pass
