"""One file for one saved thing: tensors and JSON, whole or refused, replaced at one stroke.

A saved thing is a single safetensors file. Its header carries the JSON and a sha256 of every other byte of
the file, header included, because safetensors itself has no checksum. A single file rather than a folder with
a manifest: one rename replaces it, so that there is no moment at which half of it is new; no member can be
exchanged for another's, because one digest covers them all; and no name in it leads to another file. Other
programs can still open it as safetensors. Nothing is unpickled, so that reading runs no code from the file.

This room knows arrays and JSON, and nothing of models.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors
from torch import Tensor

from pyrovae import checks

#: Of the files that are written. A reader takes its own and every earlier one.
VERSION = 1

_KEY = "pyrovae"  # of the JSON among the metadata of the safetensors file
_NO_DIGEST = "0" * 64  # stands in for the sha256 while it is computed
_LONGEST_HEADER = 100_000_000  # bytes; safetensors reads no longer one
_TEMPORARY = ".pyrovae-"


# ---------------------------------------------------------------------------------------------------------
# Writing


def write(path: str | os.PathLike[str], arrays: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write tensors and JSON to a file, atomically: whatever happens, ``path`` is the earlier file or the new one.

    Written beside ``path``, flushed to the disk, renamed over it, and the folder flushed: a process that is
    killed, a disk that is full and a machine that goes down leave the earlier file as it was.

    Args:
        path: the file; its folder exists. A link is followed.
        arrays: tensors of any shape and device, by name. Names of one and the same memory are stored once.
        meta: dicts with string keys, lists, strings, numbers (NaN and ±inf too), booleans and None.

    Raises:
        OSError: the folder is missing, read-only or full; the mend is in the message, nothing is left behind.
        TypeError: meta that JSON would change, or a tensor that safetensors can't hold; nothing is written.
    """
    content = _encode(arrays, meta)
    target = Path(os.path.realpath(path))
    try:
        if target.exists():
            _require_file(target)  # a rename would replace a device or a pipe
        replace(target, content)
    except OSError as error:
        raise _trouble(error, target, f"a file to write {len(content)} bytes to") from error


def _require_file(path: Path) -> None:
    """Raise where there is something else than a file."""
    if not path.is_file():
        raise IsADirectoryError(errno.EISDIR, "no file, but a folder, device or pipe")


def replace(target: Path, content: bytes | bytearray) -> None:
    """Write beside the target, flush, rename over it, flush the folder, which has to exist."""
    temporary = target.with_name(f"{_TEMPORARY}{secrets.token_hex(8)}.tmp")
    folder = _open_folder(target.parent)
    try:
        # O_EXCL: what lies there is never overwritten. 0o666: the user's umask decides who may read it.
        descriptor = os.open(
            temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666
        )
        try:
            with open(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        if folder is not None:
            os.fsync(folder)  # the rename itself reaches the disk
    finally:
        if folder is not None:
            os.close(folder)


def _open_folder(folder: Path) -> int | None:
    """A descriptor of a folder, to flush it by; None on Windows, where a folder can't be opened."""
    return None if os.name == "nt" else os.open(folder, os.O_RDONLY)


def _encode(arrays: Mapping[str, Tensor], meta: Mapping[str, Any]) -> bytearray:
    """The file's bytes."""
    _check_json(dict(meta), "meta")
    aliases: dict[str, str] = {}
    stored: dict[str, Tensor] = {}
    seen: dict[tuple[Any, ...], str] = {}
    for name, tensor in arrays.items():
        if name == "__metadata__" or tensor.dtype not in _DTYPES or tensor.layout != torch.strided:
            raise checks.bad_type(
                name,
                "a dense tensor of real numbers or booleans, under a name that safetensors leaves free",
                f"{tensor.dtype}, {tensor.layout}",
                "Convert or rename it.",
            )
        memory = (tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        if tensor.numel() and memory in seen:
            aliases[name] = seen[memory]
            continue
        seen[memory] = name
        # A copy: safetensors takes neither views nor memory that two tensors share.
        stored[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    about = {"version": VERSION, "sha256": _NO_DIGEST, "aliases": aliases, "meta": dict(meta)}
    content = bytearray(safetensors.save(stored, {_KEY: json.dumps(about)}))
    header = content[8 : 8 + int.from_bytes(content[:8], "little")]
    if len(header) > _LONGEST_HEADER:
        raise checks.bad_value(
            "meta",
            f"JSON that fits the header of a file, {_LONGEST_HEADER} bytes",
            f"{len(header)}",
            "Put long lists of numbers into arrays.",
        )
    # The first there is: the keys of ``about`` keep their order, and so do metadata and tensors.
    place = 8 + header.index(_NO_DIGEST.encode())
    content[place : place + len(_NO_DIGEST)] = _digest(content, place).encode()
    return content


def _digest(content: bytes | bytearray, place: int) -> str:
    """The sha256 of a file with zeros in place of its own digest."""
    view, digest = memoryview(content), hashlib.sha256()
    for part in (view[:place], _NO_DIGEST.encode(), view[place + len(_NO_DIGEST) :]):
        digest.update(part)
    return digest.hexdigest()


def _check_json(value: Any, where: str) -> None:
    """Refuse what JSON would change on the way: keys that are no strings, tuples, everything unknown."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise checks.bad_type(where, "keys that are strings", repr(key), "Convert them: str(key).")
            _check_json(inner, f"{where}[{key!r}]")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            _check_json(inner, f"{where}[{index}]")
    elif value is not None and type(value) not in (bool, int, float, str):
        raise checks.bad_type(
            where,
            "a dict, list, string, number, boolean or None",
            f"a {type(value).__name__}",
            "pack() takes more.",
        )


# ---------------------------------------------------------------------------------------------------------
# Reading


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors, on the CPU, and the JSON that ``write`` was given. Names stored once are one tensor again.

    Raises:
        FileNotFoundError, OSError: no such file, or one that can't be read.
        ValueError: a file that ``write`` did not write, of a newer version, cut short, or with any bit changed.
    """
    path = Path(path)
    try:
        if path.exists():
            _require_file(path)  # opening a pipe would wait for ever
        with open(path, "rb") as file:
            # The header first: what is not ours is not read to its end.
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if len(start) < 8 or length > min(_LONGEST_HEADER, os.fstat(file.fileno()).st_size - 8):
                raise _refused(path, "another kind of file, or one cut short")
            header = file.read(length)
            about = _about(path, header)
            content = start + header + file.read()
    except OSError as error:
        raise _trouble(error, path, "a file to read") from error
    if _digest(content, 8 + header.index(about["sha256"].encode())) != about["sha256"]:
        raise _refused(path, "one whose sha256 is not the one it was written with: changed, or cut short")
    try:
        arrays: dict[str, Tensor] = safetensors.load(content)
        arrays |= {name: arrays[other] for name, other in about["aliases"].items()}
    except (SafetensorError, KeyError, TypeError) as error:
        raise _refused(path, f"one with tensors that can't be read ({error})") from error
    return arrays, about["meta"]


def _about(path: Path, header: bytes) -> dict[str, Any]:
    """What the header says about the file, before anything in it is believed."""
    try:
        about = json.loads(json.loads(header)["__metadata__"][_KEY])
        version, digest = about["version"], about["sha256"]
        aliases, meta = about["aliases"], about["meta"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise _refused(path, "another kind of file, or one that is damaged") from None
    if type(version) is int and version > VERSION:
        raise checks.bad_value(
            "path",
            f"a file of format version {VERSION} or earlier",
            f"version {version} in {path}",
            "It was written by a later pyrovae, or is damaged: update pyrovae to read it.",
        )
    known = isinstance(digest, str) and isinstance(aliases, dict) and isinstance(meta, dict)
    if type(version) is not int or not known or header.count(str(digest).encode()) != 1:
        raise _refused(path, "another kind of file, or one that is damaged")
    return dict(about)


def _refused(path: Path, came: str) -> checks.Refused:
    return checks.bad_value(
        "path",
        "a file that pyrovae saved, whole and unchanged",
        f"{came}: {path}",
        "Nothing was loaded. Take another copy of the file, or save it again.",
    )


#: By error number: what happened. Everything else is said in the system's own words.
_MENDS = {
    "ENOSPC": "The disk is full: make room, then try again.",
    "EDQUOT": "The quota is used up: make room, then try again.",
    "EROFS": "The disk is read-only: choose another folder.",
    "EACCES": "There is no permission: choose another folder, or change its permissions.",
    "EPERM": "There is no permission: choose another folder, or change its permissions.",
    "ENOENT": "Check the path; a folder has to exist before something is saved into it.",
    "ENOTDIR": "Check the path: one of its folders is a file.",
    "EISDIR": "Pass the name of a file.",
}


def _trouble(error: OSError, path: Path, expected: str) -> OSError:
    """The same kind of error, in the one wording of a refusal."""
    mend = _MENDS.get(errno.errorcode.get(error.errno or 0, ""), "Try again, or choose another folder.")
    return type(error)(
        error.errno, checks.refusal("path", expected, f"{error.strerror or error}, {path}", mend)
    )


# ---------------------------------------------------------------------------------------------------------
# One process at a time


@contextmanager
def lock(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Hold a folder against every other process, and remove what a killed one left half-written in it.

    The lock is the operating system's, on a file ``.lock`` in the folder: it goes with the process that holds
    it, however that ends. Where the system has no such locks (Windows) nothing is held.

    Args:
        folder: made where it is missing.

    Raises:
        OSError: another process, or another block of this one, holds the folder; or it can't be made.
    """
    place = Path(folder)
    try:
        place.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(place / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise _trouble(error, place, "a folder to write to") from error
    try:
        _hold(descriptor, place)
        for leftover in place.glob(f"{_TEMPORARY}*.tmp"):
            leftover.unlink(missing_ok=True)
        yield
    finally:
        os.close(descriptor)


def _hold(descriptor: int, folder: Path) -> None:
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
        raise BlockingIOError(
            error.errno,
            checks.refusal(
                "folder",
                "one that no other process writes to",
                f"{folder}, held by process {holder}",
                "Wait until that ends, or use a folder of its own for each run.",
            ),
        ) from None
    except OSError as error:
        raise _trouble(error, folder, "a folder that can be locked") from error
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
    """A nested value as JSON, its tensors and arrays put into ``arrays`` under names that begin with ``where``.

    Takes None, booleans, numbers, strings, lists, tuples, dicts with any of these as keys, tensors, numpy
    arrays, DataFrames (as arrays), torch's dtypes and ``checks.Fingerprint``; ``unpack`` gives the same back.

    Raises:
        TypeError: anything else, naming its place.

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
    if isinstance(value, checks.Fingerprint):
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
    raise checks.bad_type(
        where,
        "a number, string, list, tuple, dict, tensor or array, which can be saved",
        f"a {type(value).__name__}",
        "Leave it out, or keep it as one of these.",
    )


def unpack(packed: Any, arrays: Mapping[str, Tensor]) -> Any:
    """The value that ``pack`` was given.

    Raises:
        ValueError: nothing that ``pack`` returned.
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
                return checks.Fingerprint(**unpack(content, arrays))
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


def _unknown(packed: Any) -> checks.Refused:
    return checks.bad_value(
        "path", "values as pyrovae saves them", repr(packed)[:80], "Save the file again with this version."
    )
