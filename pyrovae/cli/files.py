"""Tables in files: rows in chunks from CSV, TSV, Parquet and .npz, and frames into CSV, TSV and Parquet, atomically."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import os
import re
import shutil
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd
from pandas.api.types import infer_dtype

from pyrovae import frames, storage
from pyrovae.cli import cells
from pyrovae.cli.main import show
from pyrovae.refusals import Refused, RefusedType, bad_value, first_line, shown
from pyrovae.rows import joined
from pyrovae.tables import Table

_TEXT = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
_INPUTS, _OUTPUTS = (*_TEXT, ".parquet", ".npz"), (*_TEXT, ".parquet")
_SEPARATORS = ",;\t"


class Rows:
    """The rows of a file. The whole file is read through once, so that a malformed one is refused before any work.

    Cells of text are read as the columns of the model's table. "01" is a label where the training rows had labels, and a
    number where they had numbers. Without a table, the cells of each chunk decide.

    Args:
        path: a file, or "-" for CSV from standard input.
        index: the column that labels the rows; it is no part of a row.
        table: of the model; None before there is one.
        dates, kept: as ``cells.with_dates`` takes them, if there is no table.
        dropped: columns that are not modelled, if there is no table.

    Raises:
        ValueError, OSError: the file cannot be read; no rows; lines of other lengths; names that are missing or repeated.
    """

    def __init__(
        self,
        path: str,
        index: str | None = None,
        table: Table | None = None,
        dates: Collection[tuple[str, str]] = (),
        kept: Collection[str] = (),
        dropped: Collection[str] = (),
    ) -> None:
        self.path, self._index, self._table = path, index, table
        self._dates, self._kept, self._dropped = dates, kept, dropped
        self._suffix = ".csv" if path == "-" else _suffix(path, "DATA", _INPUTS)
        self._content = sys.stdin.buffer.read() if path == "-" else None
        self._separator = "\t"
        #: How many rows there are.
        self.count = sum(len(frame) for _, frame in self._raw(1 << 16))
        if not self.count:
            raise self._refused(
                "at least one row below the names of the columns", "none", "Pass a file with rows."
            )

    def chunks(self, size: int) -> Iterator[tuple[int, pd.DataFrame]]:
        """Yield frames of at most ``size`` rows, each with the number of its first row.

        Rows without labels are numbered from 0, by an index named "row", or "row_1" if a column is named so.
        """
        for start, frame in self._raw(size):
            text, comma = self._suffix in _TEXT, self._separator == ";"
            yield (
                start,
                cells.typed(
                    frame,
                    self._table,
                    self._dates,
                    self._kept,
                    self._dropped,
                    text=text,
                    decimal_comma=comma,
                    start=start,
                ),
            )

    def whole(self) -> pd.DataFrame:
        """Return all rows."""
        parts = [frame for _, frame in self.chunks(self.count)]
        return parts[0] if len(parts) == 1 else joined(parts, self.path)  # Parquet has groups of rows

    @property
    def digest(self) -> str:
        """The sha256 of the file."""
        return digest(self.path) if self._content is None else hashlib.sha256(self._content).hexdigest()

    # -----------------------------------------------------------------------------------------------------
    # Rows as they stand in the file

    def _raw(self, size: int) -> Iterator[tuple[int, pd.DataFrame]]:
        read = {".parquet": self._parquet, ".npz": self._arrays}.get(self._suffix, self._text)
        start = 0
        with self._readable():
            for frame in read(size):
                self._check_labels(frame)
                yield start, self._labelled(frame, start)
                start += len(frame)

    @contextmanager
    def _readable(self) -> Iterator[None]:
        """Turn the errors of readers into refusals that name the file."""
        try:
            with storage.named(self.path, "a file to read"):
                yield
        except (Refused, RefusedType):
            raise
        except UnicodeDecodeError as error:
            came = f"the byte {error.object[error.start]:#x} ({error.reason})"
            raise self._refused("text in UTF-8", came, "Save the file as UTF-8.") from None
        except gzip.BadGzipFile:
            fix = "Compress it, or leave .gz out of its name."
            raise self._refused("a file that gzip compressed", "another file", fix) from None
        # pyarrow raises TypeError if pandas' types in the file's metadata are not those of its columns.
        except (csv.Error, EOFError, zlib.error, zipfile.BadZipFile, ValueError, TypeError) as error:
            came = first_line(error)
            raise self._refused(
                f"a whole {self._suffix} file", came, "Check or write the file again."
            ) from None

    def _refused(self, expected: str, came: str, fix: str) -> Refused:
        return bad_value(str(self.path), expected, came, fix)

    @contextmanager
    def _binary(self) -> Iterator[BinaryIO]:
        if self._content is not None:
            yield io.BytesIO(self._content)
            return
        with open(self.path, "rb") as file:
            yield file

    def _text(self, size: int) -> Iterator[pd.DataFrame]:
        with ExitStack() as held:
            file: Any = held.enter_context(self._binary())
            if self._suffix.endswith(".gz"):
                file = held.enter_context(gzip.open(file))
            text = held.enter_context(io.TextIOWrapper(file, "utf-8-sig", newline=""))
            skipped, first = 0, text.readline()
            while first and not first.strip("\r\n"):
                skipped, first = skipped + 1, text.readline()
            if told := re.fullmatch(r'"?sep=(.)"?', first.rstrip("\r\n")):  # as Excel writes it
                self._separator, skipped, first = told[1], skipped + 1, text.readline()
            elif self._suffix.startswith(".csv"):
                self._separator = max(
                    _SEPARATORS, key=lambda mark: len(next(csv.reader([first], delimiter=mark), []))
                )
            # Spaces after separators are part of cells, unless the names of the columns have them, too.
            names = next(csv.reader([first], delimiter=self._separator), [])
            spaced = len(names) > 1 and all(name.startswith(" ") for name in names[1:])
            lines = csv.reader(
                _after(first, text), delimiter=self._separator, skipinitialspace=spaced, strict=True
            )
            names = next(lines, [])
            self._check_names(names)
            width, held_rows = len(names), list[list[str]]()
            for row in lines:
                row = row or [""] * (width == 1)  # an empty line is a missing cell of the only column
                if len(row) == width:
                    held_rows.append(row)
                elif row:
                    came = f"{len(row)} in line {skipped + lines.line_num}"
                    fix = "Quote cells that hold the separator, or complete the line."
                    raise self._refused(f"{width} cells in every line, as in the first", came, fix)
                if len(held_rows) == size:
                    yield pd.DataFrame(held_rows, columns=names, dtype=object)
                    held_rows = []
            if held_rows:
                yield pd.DataFrame(held_rows, columns=names, dtype=object)

    def _check_names(self, names: list[str]) -> None:
        if not names:
            raise self._refused(
                "names of columns in the first line", "an empty file", "Pass a file with rows."
            )
        if all(re.fullmatch(r"[-+]?[.\d][-+.\deE]*", name) for name in names):
            came = f"numbers, {names[0]!r} first"
            raise self._refused("names of columns in the first line", came, "Add a line with names.")

    def _check_labels(self, frame: pd.DataFrame) -> None:
        for labels, what in ((frame.columns, "name a column"), (frame.index, "label a row")):
            if labels.nlevels > 1:
                came = f"{labels.nlevels} levels, {list(labels.names)}"
                raise self._refused(f"one {what}", came, "Join the levels into one.")
        twice = frame.columns[frame.columns.duplicated()]
        if len(twice):
            came = f"{twice[0]!r} more than once"
            raise self._refused("one column of each name", came, "Rename the columns.")

    def _parquet(self, size: int) -> Iterator[pd.DataFrame]:
        parquet = _pyarrow("reads")
        with self._binary() as file:
            rows = parquet.ParquetFile(file)
            labels, start = _numbers_of_rows(rows), 0
            for group in range(rows.num_row_groups):
                # One after the other, because pyarrow reads ahead in all groups that it is asked for.
                for batch in rows.iter_batches(size, row_groups=[group]):
                    frame = frames.as_pandas(batch)
                    yield (
                        frame
                        if labels is None
                        else frame.set_axis(labels[start : start + len(frame)], axis=0)
                    )
                    start += len(frame)

    def _arrays(self, size: int) -> Iterator[pd.DataFrame]:
        with self._binary() as file:
            arrays = dict(np.lib.npyio.NpzFile(file, allow_pickle=False))
        if len(arrays) == 1 and (only := next(iter(arrays.values()))).ndim == 2:
            arrays = {f"x{number}": column for number, column in enumerate(only.T)}
        shapes = {array.shape for array in arrays.values()}
        if len(shapes) != 1 or len(shapes.pop()) != 1:
            came = ", ".join(f"{name} of shape {array.shape}" for name, array in arrays.items()) or "none"
            raise self._refused(
                "one array of shape (rows, columns), or one of shape (rows,) a column", came, "Save it so."
            )
        frame = pd.DataFrame(arrays)
        for start in range(0, len(frame), size):
            yield frame[start : start + size]

    def _labelled(self, frame: pd.DataFrame, start: int) -> pd.DataFrame:
        if self._index is not None:
            if self._index not in frame.columns:
                came, fix = f"{self._index!r}, not among {list(frame.columns)}", "Name one."
                if frame.shape[1] == 1 and self._suffix in _TEXT:
                    fix += " Cells are separated by commas, semicolons or tabs; a first line sep=| names another separator."
                raise bad_value("--index", f"a column of {self.path}", came, fix)
            return frame.set_index(self._index)
        if frame.columns[:1].tolist() == [""]:
            return frame.set_index("").rename_axis(None)
        if isinstance(frame.index, pd.RangeIndex):
            numbers = pd.RangeIndex(start, start + len(frame), name=unused("row", frame.columns))
            return frame.set_axis(numbers, axis=0)
        return frame  # the index of a frame in Parquet


def unused(name: str, taken: Collection[Any]) -> str:
    """Return a name, with _1, _2, … behind it if it is taken.

    Example:
        >>> unused("row", ["row", "row_1"])
        'row_2'
    """
    names = (name, *(f"{name}_{number}" for number in range(1, len(taken) + 1)))
    return next(each for each in names if each not in taken)


def digest(path: str | os.PathLike[str]) -> str:
    """Return the sha256 of a file."""
    with storage.named(path, "a file to read"), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _after(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _suffix(path: str, argument: str, known: tuple[str, ...]) -> str:
    """Return the ending of a file's name that tells its format."""
    found = next((suffix for suffix in known if path.lower().endswith(suffix)), None)
    if found is None:
        raise bad_value(
            argument, f"a name that ends in {', '.join(known)}", shown(path), "Rename or convert the file."
        )
    return found


def _numbers_of_rows(parquet: Any) -> pd.Index | None:
    """Return the labels of rows that a Parquet file describes as a range; None if they are not, or are 0, 1, …

    pyarrow restores such a range only if all rows are read at once.
    """
    described = (parquet.schema_arrow.pandas_metadata or {}).get("index_columns") or [""]
    if not isinstance(described[0], dict) or described[0].get("kind") != "range":
        return None
    kept = range(*(described[0][name] for name in ("start", "stop", "step")))
    if len(kept) != parquet.metadata.num_rows or kept == range(len(kept)):
        return None
    return pd.Index(np.asarray(kept), name=described[0]["name"])


def _pyarrow(does: str) -> Any:
    try:
        from pyarrow import parquet
    except ImportError:
        fix = "Install it by pip install 'pyrovae[parquet]', or use CSV."
        raise bad_value("pyarrow", f"the package, which {does} Parquet", "no such package", fix) from None
    return parquet


# ---------------------------------------------------------------------------------------------------------
# Writing


def require_apart(out: str | os.PathLike[str], *inputs: str | os.PathLike[str] | None) -> None:
    """Raise ``ValueError`` if a file to write is one of the files to read, under whatever name."""
    for path in inputs:
        if path is not None and os.path.exists(path) and os.path.exists(out) and os.path.samefile(path, out):
            fix = "Write to another file."
            raise bad_value("--out", "a file that is not read", f"{str(out)!r}, which is {str(path)!r}", fix)


def beside(path: str | os.PathLike[str]) -> Any:
    """Return a temporary file without a name in the folder of ``path``, which closing removes.

    Raises:
        OSError: ``path`` is something other than a file, or no file can be made in its folder.
    """
    with storage.named(path, "a file to write to"):
        storage.require_file(Path(path))
        return tempfile.TemporaryFile(dir=os.path.dirname(os.path.realpath(path)))


@contextmanager
def writing(path: str, labels: bool = True) -> Iterator[Callable[[pd.DataFrame], None]]:
    """Yield a function that writes frames, one below the other, to a file or to standard output ("-").

    The file is replaced when the block ends, atomically. Until then the rows are in a temporary file without a name, which
    the system removes however the process ends, or in memory for Parquet. Without ``labels``, numbers of rows are left out.

    Raises:
        ValueError, OSError: no known ending; a frame with other columns than the first; a folder, a full disk or no permission. ``path`` is unchanged.
    """
    if path == "-":
        yield _of_equal_columns(_text_writer(partial(show, end=""), ",", labels))
        return
    suffix, expected = _suffix(path, "--out", _OUTPUTS), "a file to write to"
    parquet = list[pd.DataFrame]()
    with ExitStack() as held:
        if suffix == ".parquet":
            _pyarrow("writes")
        spool = held.enter_context(beside(path))
        file: Any = spool
        if suffix.endswith(".gz"):  # without a name and a time, so that equal rows are equal bytes
            file = gzip.GzipFile("", "wb", fileobj=spool, mtime=0)
        write = _text_writer(
            lambda text: file.write(text.encode()), "\t" if ".tsv" in suffix else ",", labels
        )

        def put(frame: pd.DataFrame) -> None:
            with storage.named(path, expected):
                parquet.append(_of_one_type(frame)) if suffix == ".parquet" else write(frame)

        yield _of_equal_columns(put)
        with storage.named(path, expected):
            if parquet:
                spool.write(pd.concat(parquet).to_parquet(index=_shown(parquet[0], labels)))
            if file is not spool:
                file.close()
            spool.seek(0)
        with storage.replacing(path, expected) as target, storage.named(path, expected):
            shutil.copyfileobj(spool, target)


def _of_equal_columns(put: Callable[[pd.DataFrame], None]) -> Callable[[pd.DataFrame], None]:
    """Return ``put`` for frames which all have the columns of the first, each of another name than the rows' labels."""
    first = list[list[Any]]()

    def checked(frame: pd.DataFrame) -> None:
        first.append(list(frame.columns))
        names = list(frame.index.names)
        if twice := [name for name in names if name in frame.columns or names.count(name) > 1]:
            raise bad_value(
                "labels of rows",
                "another name than what is written beside them",
                f"{twice[0]!r}, the name of a column of this table",
                "Rename them in the file, or leave out --index if you passed it.",
            )
        if first[-1] != first[0]:
            raise bad_value(
                "frame", f"the columns {first[0]}", f"{first[-1]}", "Write tables to files of their own."
            )
        put(frame)

    return checked


def _of_one_type(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a frame with text in columns of numbers beside labels, which Parquet cannot hold."""
    mixed = [name for name, held in frame.items() if infer_dtype(held, skipna=True).startswith("mixed")]
    return frame.assign(**{str(name): frame[name].map(str, na_action="ignore") for name in mixed})


def _shown(frame: pd.DataFrame, labels: bool) -> bool:
    return labels or not isinstance(frame.index, pd.RangeIndex)


def _text_writer(write: Callable[[str], Any], separator: str, labels: bool) -> Callable[[pd.DataFrame], None]:
    """Return a function that writes frames as text, the first with the names of the columns."""
    written = list[bool]()

    def put(frame: pd.DataFrame) -> None:
        shown = _shown(frame, labels)
        write(frame.to_csv(sep=separator, index=shown, header=not written, lineterminator="\n"))
        written.append(True)

    return put
