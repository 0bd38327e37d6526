"""Files of tensors and JSON that are written atomically and checked by a digest when read.

A saved object is a single safetensors file. Its header holds the JSON and a sha256 of all other bytes of the file,
because safetensors has no checksum. A single file is safer than a folder with a manifest. One rename replaces it, so
it is never half new. One digest covers all its parts, and no name in it refers to another file. Other programs can
open it as safetensors. Nothing is unpickled, so reading runs no code from the file.

This module knows arrays and JSON, but not models.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors
from torch import Tensor

from pyrovae import identity
from pyrovae.refusals import Refused, bad_type, bad_value, refusal

#: Format version of written files. A reader accepts this version and all earlier ones.
VERSION = 1

_KEY = "pyrovae"  # the key of the JSON in the metadata of the safetensors file
_NO_DIGEST = "0" * 64  # placeholder for the sha256 while it is computed
_LONGEST_HEADER = 100_000_000  # bytes; the limit of safetensors
_TEMPORARY = ".pyrovae-"


# ---------------------------------------------------------------------------------------------------------
# Writing


def write(path: str | os.PathLike[str], arrays: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write tensors and JSON to a file atomically: ``path`` holds either the earlier file or the new one.

    The bytes go to a file beside ``path``, which is flushed to the disk and renamed; then the folder is flushed. If
    the process is killed, the disk is full or the machine stops, the earlier file is unchanged.

    Args:
        path: the file; its folder has to exist. A link is followed.
        arrays: tensors of any shape and device, by name. Tensors of the same memory and shape are stored once.
        meta: dicts with string keys, lists, strings, numbers (NaN and ±inf too), booleans and None.

    Raises:
        OSError: the folder is missing, read-only or full. The message says how to fix it; no file is left behind.
        TypeError: JSON would change meta, or safetensors cannot hold a tensor. Nothing is written.
    """
    content = _encode(arrays, meta)
    expected = f"a file to write {len(content)} bytes to"
    with replacing(path, expected) as file, named(path, expected):
        file.write(content)


def require_file(path: Path) -> None:
    """Raise ``OSError`` if the path exists and is something other than a file."""
    if path.exists() and not path.is_file():
        raise IsADirectoryError(errno.EISDIR, "no file, but a folder, device or pipe")


@contextmanager
def replacing(path: str | os.PathLike[str], expected: str = "a file to write to") -> Iterator[BinaryIO]:
    """Yield a new file beside ``path``, which replaces it when the block ends, atomically as by ``write``.

    If the block raises, ``path`` is unchanged and no file is left behind.

    Raises:
        OSError: as ``write``; ``expected`` says in its message what the path should be.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with replacing(f"{folder}/rows") as file:
        ...         _ = file.write(b"one")
        ...     Path(folder, "rows").read_bytes()
        b'one'
    """
    target = Path(os.path.realpath(path))
    with ExitStack() as held:
        with named(target, expected):
            require_file(target)  # a rename would replace a device or a pipe
            folder = _open_folder(target.parent)
            if folder is not None:
                held.callback(os.close, folder)
            temporary, descriptor = _new_file_beside(target)
            file = open(descriptor, "wb")  # noqa: SIM115  # closed below, in any case
        try:
            yield file
            with named(target, expected):
                file.flush()
                os.fsync(file.fileno())
                if (
                    os.name == "nt"
                ):  # which renames no open file; elsewhere, its lock is held until it is renamed
                    file.close()
                os.replace(temporary, target)
                file.close()
        except BaseException:
            with suppress(OSError):  # of a full disk, once more
                file.close()
            temporary.unlink(missing_ok=True)
            raise
        if folder is not None:
            with named(target, expected):
                os.fsync(folder)  # writes the rename itself to the disk


def _new_file_beside(target: Path) -> tuple[Path, int]:
    """Return a new file in the folder of ``target``, and a descriptor that locks it against ``_remove_leftovers``."""
    # O_EXCL never overwrites an existing file. With 0o666, the user's umask decides who may read it.
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    while True:
        path = target.with_name(f"{_TEMPORARY}{secrets.token_hex(8)}.tmp")
        descriptor = os.open(path, flags, 0o666)
        with suppress(OSError):  # a disk without locks
            _flock(descriptor, wait=True)
        if path.exists():  # not removed between the two calls
            return path, descriptor
        os.close(descriptor)


def _remove_leftovers(folder: Path) -> None:
    """Remove files that killed processes left half-written; those that live processes are writing are locked."""
    for path in folder.glob(f"{_TEMPORARY}*.tmp"):
        with suppress(OSError):  # such as one that is renamed now
            if os.name == "nt":  # which removes no file that is open
                path.unlink()
                continue
            descriptor = os.open(path, os.O_RDWR)
            try:
                if _flock(descriptor):
                    path.unlink()
            finally:
                os.close(descriptor)


def _flock(descriptor: int, wait: bool = False) -> bool:
    """Lock an open file; return False if another descriptor holds it. Systems without such locks (Windows) lock nothing."""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def _open_folder(folder: Path) -> int | None:
    """Return a descriptor of a folder, to flush it; None on Windows, which cannot open folders."""
    return None if os.name == "nt" else os.open(folder, os.O_RDONLY)


def _encode(arrays: Mapping[str, Tensor], meta: Mapping[str, Any]) -> bytearray:
    """Return the file's bytes."""
    _check_json(dict(meta), "meta")
    aliases: dict[str, str] = {}
    stored: dict[str, Tensor] = {}
    seen: dict[tuple[Any, ...], str] = {}
    for name, tensor in arrays.items():
        if name == "__metadata__" or tensor.dtype not in _DTYPES or tensor.layout != torch.strided:
            raise bad_type(
                name,
                "a dense tensor of real numbers or booleans, under a name that safetensors does not reserve",
                f"{tensor.dtype}, {tensor.layout}",
                "Convert or rename it.",
            )
        memory = (tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        if tensor.numel() and memory in seen:
            aliases[name] = seen[memory]
            continue
        seen[memory] = name
        # A copy, because safetensors rejects views and memory that two tensors share.
        stored[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    about = {"version": VERSION, "sha256": _NO_DIGEST, "aliases": aliases, "meta": dict(meta)}
    content = bytearray(safetensors.save(stored, {_KEY: json.dumps(about)}))
    header = content[8 : 8 + int.from_bytes(content[:8], "little")]
    if len(header) > _LONGEST_HEADER:
        raise bad_value(
            "meta",
            f"JSON that fits into the header of a file, {_LONGEST_HEADER} bytes",
            f"{len(header)}",
            "Put long lists of numbers into arrays.",
        )
    # The first match is the digest's: ``about`` comes before the tensors, and its keys keep their order.
    place = 8 + header.index(_NO_DIGEST.encode())
    content[place : place + len(_NO_DIGEST)] = _digest(content, place).encode()
    return content


def _digest(content: bytes | bytearray, place: int) -> str:
    """Return the sha256 of a file with zeros in place of its own digest."""
    view, digest = memoryview(content), hashlib.sha256()
    for part in (view[:place], _NO_DIGEST.encode(), view[place + len(_NO_DIGEST) :]):
        digest.update(part)
    return digest.hexdigest()


def _check_json(value: Any, where: str) -> None:
    """Raise ``TypeError`` for values that JSON would change: non-string keys, tuples, unknown types."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise bad_type(where, "keys that are strings", repr(key), "Convert them: str(key).")
            _check_json(inner, f"{where}[{key!r}]")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            _check_json(inner, f"{where}[{index}]")
    elif value is not None and type(value) not in (bool, int, float, str):
        raise bad_type(
            where,
            "a dict, list, string, number, boolean or None",
            f"a {type(value).__name__}",
            "Pack it with storage.pack, which takes more types.",
        )


# ---------------------------------------------------------------------------------------------------------
# Reading


def read(
    path: str | os.PathLike[str],
    argument: str = "path",
    fix: str = "Take another copy of the file, or save it again.",
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors, on the CPU, and the JSON passed to ``write``. Tensors stored once are one tensor again.

    ``argument`` and ``fix`` are for the message about a file that is not as it was written.

    Raises:
        FileNotFoundError, OSError: the file does not exist or cannot be read.
        ValueError: ``write`` did not write the file; it is of a newer version, cut short, or has a changed bit.
    """
    path = Path(path)
    with named(path, "a file to read"):
        require_file(path)  # opening a pipe would block
        with open(path, "rb") as file:
            # Check the header first, so that other files are not read in full.
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if len(start) < 8 or length > min(_LONGEST_HEADER, os.fstat(file.fileno()).st_size - 8):
                raise _refused(argument, fix, path, "another kind of file, or one cut short")
            header = file.read(length)
            about = _about(path, header, argument, fix)
            content = start + header + file.read()
    if _digest(content, 8 + header.index(about["sha256"].encode())) != about["sha256"]:
        raise _refused(
            argument, fix, path, "one whose sha256 is not the one it was written with: changed, or cut short"
        )
    try:
        arrays: dict[str, Tensor] = safetensors.load(content)
        arrays |= {name: arrays[other] for name, other in about["aliases"].items()}
    except (SafetensorError, KeyError, TypeError) as error:
        raise _refused(argument, fix, path, f"one with tensors that cannot be read ({error})") from error
    return arrays, about["meta"]


def _about(path: Path, header: bytes, argument: str, fix: str) -> dict[str, Any]:
    """Return the header's JSON after checking its structure."""
    try:
        about = json.loads(json.loads(header)["__metadata__"][_KEY])
        version, digest = about["version"], about["sha256"]
        aliases, meta = about["aliases"], about["meta"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise _refused(argument, fix, path, "another kind of file, or one that is damaged") from None
    if type(version) is int and version > VERSION:
        raise bad_value(
            "path",
            f"a file of format version {VERSION} or earlier",
            f"version {version} in {path}",
            "It was written by a later pyrovae, or is damaged: update pyrovae to read it.",
        )
    known = isinstance(digest, str) and isinstance(aliases, dict) and isinstance(meta, dict)
    if type(version) is not int or not known or header.count(str(digest).encode()) != 1:
        raise _refused(argument, fix, path, "another kind of file, or one that is damaged")
    return dict(about)


def _refused(argument: str, fix: str, path: Path, came: str) -> Refused:
    expected = "a file that pyrovae saved, whole and unchanged"
    return bad_value(argument, expected, f"{came}: {path}", f"Nothing was loaded. {fix}")


_NO_FILE = "Check the path."
_NO_FOLDER = "Check the path; its folder has to exist before something is saved into it."
#: How to fix an error, by its error number. For others, the message has the system's text only.
_FIXES = {
    "ENOSPC": "The disk is full: make room, then try again.",
    "EDQUOT": "The quota is used up: make room, then try again.",
    "EROFS": "The disk is read-only: choose another folder.",
    "EACCES": "There is no permission: choose another folder, or change its permissions.",
    "EPERM": "There is no permission: choose another folder, or change its permissions.",
    "ENOTDIR": "Check the path: one of its folders is a file.",
    "EISDIR": "Pass the name of a file.",
}


@contextmanager
def named(path: str | os.PathLike[str], expected: str) -> Iterator[None]:
    """Give an ``OSError`` of the block the four parts of an error message: ``path`` was not what was ``expected``."""
    try:
        yield
    except OSError as error:
        code = errno.errorcode.get(error.errno or 0, "")
        fix = _FIXES.get(code, "Try again, or choose another folder.")
        if code == "ENOENT":
            fix = _NO_FILE if expected.endswith("to read") else _NO_FOLDER
        came = f"{error.strerror or error}, {os.fspath(path)}"
        raise type(error)(error.errno, refusal("path", expected, came, fix)) from error


# ---------------------------------------------------------------------------------------------------------
# One process at a time


@contextmanager
def lock(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Lock a folder against other processes, and remove files that a killed process left half-written in it.

    The operating system holds the lock, on a file ``.lock`` in the folder, and releases it whenever the process
    ends. Systems without such locks (Windows) lock nothing.

    Args:
        folder: created if missing.

    Raises:
        OSError: another process, or another block of this one, holds the folder; or it cannot be created.
    """
    place = Path(folder)
    with named(place, "a folder to write to"):
        place.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(place / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _hold(descriptor, place)
        _remove_leftovers(place)
        yield
    finally:
        os.close(descriptor)


def _hold(descriptor: int, folder: Path) -> None:
    if os.name == "nt":
        return
    with named(folder, "a folder that can be locked"):
        free = _flock(descriptor)
    if not free:
        holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
        raise BlockingIOError(
            errno.EWOULDBLOCK,
            refusal(
                "folder",
                "a folder that no other process writes to",
                f"{folder}, held by process {holder}",
                "Wait until that process ends, or use a separate folder for each run.",
            ),
        )
    os.truncate(descriptor, 0)
    os.pwrite(descriptor, str(os.getpid()).encode(), 0)


# ---------------------------------------------------------------------------------------------------------
# Nested values as JSON and arrays

_DTYPES = {
    getattr(torch, name)
    for name in (
        *("bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"),
        *("float16", "bfloat16", "float32", "float64"),
    )
}


def pack(value: Any, arrays: dict[str, Tensor], where: str) -> Any:
    """Return a nested value as JSON. Its tensors and arrays go into ``arrays``, under names that begin with ``where``.

    Takes None, booleans, numbers, strings, lists, tuples, dicts with any of these as keys, tensors, numpy
    arrays, DataFrames (as arrays), torch's dtypes and ``identity.Fingerprint``. ``unpack`` inverts it.

    Raises:
        TypeError: any other type; the message names its place.

    Example:
        >>> arrays = {}
        >>> packed = pack({"loc": torch.zeros(2), 3: (1.5, None)}, arrays, "state")
        >>> packed
        {'dict': [['loc', {'tensor': "state['loc']"}], [3, {'tuple': [1.5, None]}]]}
        >>> unpack(packed, arrays)
        {'loc': tensor([0., 0.]), 3: (1.5, None)}
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, list | tuple):
        inner = [pack(item, arrays, f"{where}[{index}]") for index, item in enumerate(value)]
        return inner if isinstance(value, list) else {"tuple": inner}
    if isinstance(value, dict):
        return {
            "dict": [
                [pack(key, arrays, where), pack(item, arrays, f"{where}[{key!r}]")]
                for key, item in value.items()
            ]
        }
    if isinstance(value, identity.Fingerprint):
        return {"fingerprint": pack(vars(value), arrays, where)}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, Tensor):
        arrays[where] = value.detach()
        return {"tensor": where}
    array = value.to_numpy() if hasattr(value, "to_numpy") else value
    if isinstance(array, np.ndarray) and array.dtype.kind in "biuf" and array.dtype.itemsize <= 8:
        native = np.array(array, dtype=array.dtype.newbyteorder("="), order="C")
        arrays[where] = torch.from_numpy(native)
        return {"array": where}
    raise bad_type(
        where,
        "a number, string, list, tuple, dict, tensor or array",
        f"a {type(value).__name__}",
        "Leave it out, or convert it to one of these.",
    )


def unpack(packed: Any, arrays: Mapping[str, Tensor]) -> Any:
    """Return the value that was passed to ``pack``.

    Raises:
        ValueError: ``pack`` did not return this.
    """
    if isinstance(packed, list):
        return [unpack(item, arrays) for item in packed]
    if not isinstance(packed, dict):
        return packed
    try:
        ((kind, content),) = packed.items()
        match kind:
            case "tuple":
                return tuple(unpack(item, arrays) for item in content)
            case "dict":
                return {unpack(key, arrays): unpack(item, arrays) for key, item in content}
            case "fingerprint":
                return identity.Fingerprint(**unpack(content, arrays))
            case "tensor":
                return arrays[content]
            case "array":
                return arrays[content].numpy()
            case "dtype":
                (dtype,) = (dtype for dtype in _DTYPES if str(dtype) == f"torch.{content}")
                return dtype
    except (ValueError, KeyError, TypeError) as error:
        raise _unknown(packed) from error
    raise _unknown(packed)


def _unknown(packed: Any) -> Refused:
    return bad_value(
        "path", "values as pyrovae saves them", repr(packed)[:80], "Save the file again with this version."
    )
