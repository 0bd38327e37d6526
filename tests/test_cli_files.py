"""Rows of files: what is read is what was written, malformed files are named, and outputs are whole or not there."""

import gzip
import io
import resource
import signal
import sys

import numpy as np
import pandas as pd
import pytest

from pyrovae.cli import cells, files
from pyrovae.refusals import Refused
from pyrovae.tables import Table

FRAME = pd.DataFrame(
    {"name": ["ann", None, "joe"], "count": pd.array([1, 2, None], "Int64"), "size": [0.5, -1.25, 3.0]}
)


def assert_same(frame, expected):
    """The same cells under the same names, whatever types of strings pandas has."""
    assert list(frame) == list(expected)
    for name in frame:
        pairs = zip(frame[name].tolist(), expected[name].tolist(), strict=True)
        assert all((pd.isna(a) and pd.isna(b)) or a == b for a, b in pairs), name


def written(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def whole(path, **options):
    return files.Rows(str(path), **options).whole()


@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv", "rows.csv.gz", "rows.tsv.gz", "rows.parquet"])
def test_rows_are_read_as_they_were_written(tmp_path, name):
    with files.writing(str(tmp_path / name), labels=False) as put:
        put(FRAME[:2])
        put(FRAME[2:])
    rows = files.Rows(str(tmp_path / name))
    assert rows.count == 3
    assert_same(rows.whole(), FRAME)
    starts, parts = zip(*rows.chunks(2), strict=True)
    assert starts == (0, 2)
    assert pd.concat(parts).index.tolist() == [0, 1, 2]
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    "text",
    [
        "a,b\n1,x y\n2.5,\n",
        "\ufeffa,b\r\n1,x y\r\n2.5,NA\r\n",
        "a;b\n1,0;x y\n2,5;\n",
        'a\tb\n1\t"x y"\n2.5\tnull\n',
        '"a", "b"\n1, "x y"\n\n2.5, nan',
        "\r\nsep=|\r\na|b\r\n1|x y\r\n 2.5 |\r\n",
    ],
    ids=["plain", "with a BOM", "semicolons", "tabs", "spaces and an empty line", "a named separator"],
)
def test_text_of_many_kinds_is_the_same_rows(tmp_path, monkeypatch, text):
    expected = pd.DataFrame({"a": [1.0, 2.5], "b": ["x y", None]})
    assert_same(whole(written(tmp_path / "rows.csv", text)), expected)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert whole("-").equals(whole(tmp_path / "rows.csv"))


def test_groups_of_rows_in_parquet_are_one_table(tmp_path):
    FRAME.to_parquet(tmp_path / "rows.parquet", row_group_size=2)
    assert_same(whole(tmp_path / "rows.parquet"), FRAME)
    assert whole(tmp_path / "rows.parquet").index.tolist() == [0, 1, 2]


def test_labels_of_rows_in_parquet_are_kept(tmp_path):
    """A range that does not count from 0 labels the rows, as other labels do, in whatever groups and chunks."""
    for labels in (range(5, 8), range(0, 6, 2), range(3)):
        frame = FRAME.set_axis(pd.RangeIndex.from_range(labels), axis=0)
        frame.to_parquet(tmp_path / "rows.parquet", row_group_size=2)
        for size in (1, 2, 9):
            frames = [frame for _, frame in files.Rows(str(tmp_path / "rows.parquet")).chunks(size)]
            assert pd.concat(frames).index.tolist() == list(labels)
        with files.writing(str(tmp_path / "out.csv"), labels=False) as put:
            put(whole(tmp_path / "rows.parquet"))
        first = "name" if labels == range(3) else ""
        assert (tmp_path / "out.csv").read_text().startswith(f"{first},")


def test_labels_and_names_of_several_levels_and_repeated_names_are_refused(tmp_path):
    parquet = tmp_path / "rows.parquet"
    FRAME.set_index(["name", "count"]).to_parquet(parquet)
    with pytest.raises(Refused, match=r"one label a row, got 2 levels, \['name', 'count'\]"):
        whole(parquet)
    FRAME.set_axis(pd.MultiIndex.from_product([["a"], ["x", "y", "z"]]), axis=1).to_parquet(parquet)
    with pytest.raises(Refused, match="one name a column, got 2 levels"):
        whole(parquet)
    pyarrow = pytest.importorskip("pyarrow")
    pyarrow.parquet.write_table(pyarrow.table([[1], [2]], names=["a", "a"]), parquet)
    with pytest.raises(Refused, match="one column of each name, got 'a' more than once"):
        whole(parquet)


def test_an_empty_line_of_one_column_is_a_missing_cell(tmp_path):
    frame = whole(written(tmp_path / "rows.csv", "\na\n1.5\n\n2.5\n"))
    assert frame["a"].isna().tolist() == [False, True, False]
    assert whole(written(tmp_path / "two.csv", "a,b\n1.5,1\n\n2.5,2\n"))["a"].tolist() == [1.5, 2.5]


def test_labels_of_rows_are_no_part_of_them(tmp_path):
    unnamed = whole(written(tmp_path / "a.csv", ",x\nr1,1\nr2,2\n"))
    named = whole(written(tmp_path / "b.csv", "x,id\n1,r1\n2,r2\n"), index="id")
    assert unnamed.index.tolist() == named.index.tolist() == ["r1", "r2"]
    assert list(unnamed) == list(named) == ["x"]
    words = whole(written(tmp_path / "c.csv", "x,id\n1,NA\n,None\n2.5,NA\n"), index="id")
    assert words.index.tolist() == ["NA", "None", "NA"]
    assert words["x"].isna().tolist() == [False, True, False]
    with pytest.raises(Refused, match=r"a column of .*'no'"):
        whole(tmp_path / "b.csv", index="no")


def test_arrays_are_columns(tmp_path):
    matrix = np.arange(6.0).reshape(3, 2)
    np.savez(tmp_path / "one.npz", x=matrix)
    np.savez(tmp_path / "many.npz", x0=matrix[:, 0], x1=matrix[:, 1])
    assert whole(tmp_path / "one.npz").equals(whole(tmp_path / "many.npz"))
    np.savez(tmp_path / "odd.npz", x=matrix, y=matrix[0])
    with pytest.raises(Refused, match=r"one array of shape \(rows, columns\)"):
        whole(tmp_path / "odd.npz")


def test_chunks_are_read_by_the_models_table(tmp_path):
    """The first rows of each column, seen alone, would be of another type."""
    text = "code,count,flag,odd\n" + "01,3,,5\n" * 2 + "A2,,true,x\n01,1,false,7\n"
    path = written(tmp_path / "rows.csv", text)
    table = Table.of(whole(path))
    assert [(c.sort, c.dtype) for c in table.columns][1:3] == [("number", "Int64"), ("bool", "boolean")]
    codes = table.encode(whole(path))
    assert whole(path, table=table)["count"].dtype == "Int64"
    parts = [table.encode(frame) for _, frame in files.Rows(path, table=table).chunks(2)]
    assert np.array_equal(np.concatenate(parts), codes, equal_nan=True)
    bad = written(tmp_path / "bad.csv", "code,count,flag,odd\n01,3,,5\n01,many,,5\n")
    with pytest.raises(Refused, match=r"count.*first 'many' in row 1"):
        table.encode(whole(bad, table=table))


def test_dates_become_numbers_of_the_same_name(tmp_path, caplog):
    path = written(tmp_path / "rows.csv", "seen,x\n1970-01-02,1\n2020-02-29T12:00:00Z,2\n,3\n")
    frame = whole(path)
    assert cells.dates(frame) == ["seen"]
    taken = cells.with_dates(frame, [("seen", "days"), ("seen", "month")], ())
    assert list(taken) == ["x", "seen.days", "seen.month"]
    assert taken["seen.days"].tolist()[:2] == [1.0, 18321.5]
    assert taken["seen.month"].tolist()[:2] == [1.0, 2.0]
    later = whole(path, table=Table.of(taken, {"x": "gaussian"}))
    assert later[list(taken)].equals(taken.astype(later[list(taken)].dtypes))
    with pytest.raises(Refused, match=r"--date seen: expected no column seen\.days in the file"):
        cells.with_dates(frame.assign(**{"seen.days": 1}), [("seen", "days")], ())
    with pytest.raises(Refused, match=r"ISO 8601.*first '31/12/2020' in row 0"):
        cells.with_dates(pd.DataFrame({"seen": ["31/12/2020"]}), [("seen", "days")], ())
    frame = pd.DataFrame({"a": ["2020-12-31"], "b": ["31/12/2020"], "c": [pd.Timestamp(0)], "d": ["1.5-2"]})
    assert cells.dates(frame) == ["a", "c"]
    (message,) = caplog.messages
    assert "b has labels, first '31/12/2020'. Write dates in ISO 8601" in message


@pytest.mark.parametrize("cell", ["now", "today", "1.2.3", "2007.11", "200711", "11/2007", "-5"])
def test_only_iso_dates_and_years_are_dates(tmp_path, cell):
    path = written(tmp_path / "rows.csv", f"seen,x\n2007,1\n2008,2\n{cell},3\n")
    with pytest.raises(Refused, match=rf"ISO 8601.*first '{cell}' in row 2"):
        whole(path, dates=[("seen", "days")])


def test_dates_of_a_column_of_numbers_are_the_same_with_a_model(tmp_path):
    path = written(tmp_path / "rows.csv", "seen,x\n2007,1.5\n,2\n20080229,3\n1970,4\n")
    taken = whole(path, dates=[("seen", "days"), ("seen", "year")])
    assert taken["seen.days"].dropna().tolist() == [13514.0, 13938.0, 0.0]
    assert taken["seen.year"].dropna().tolist() == [2007.0, 2008.0, 1970.0]
    later = pd.concat(frame for _, frame in files.Rows(path, table=Table.of(taken)).chunks(1))
    assert later[list(taken)].astype(float).equals(taken.astype(float))
    pd.DataFrame({"seen": [2007.0, None], "x": [1.5, 2.0]}).to_parquet(tmp_path / "rows.parquet")
    parquet = whole(tmp_path / "rows.parquet", dates=[("seen", "days")])
    assert parquet["seen.days"].dropna().tolist() == [13514.0]


LEVELS = {
    "words": ["none", "NA", " ", " a", "a", "nan"],
    "numbers": [1, 2, 10],
    "booleans": [True, False],
    "strings of digits": ["01", "1"],
}


@pytest.mark.parametrize("kind", LEVELS)
def test_levels_of_a_model_are_read_as_they_are(tmp_path, kind):
    """A cell that looks missing is a level if the model has it; other such cells are missing."""
    levels = LEVELS[kind]
    cells = np.array([*levels, *levels], dtype=object)
    frame = pd.DataFrame({"size": np.arange(len(cells)) ** 1.5, "level": pd.Categorical(cells, levels)})
    table = Table.of(frame)
    drawn = table.decode(table.encode(frame))
    with files.writing(str(tmp_path / "rows.csv"), labels=False) as put:
        put(drawn)
    assert np.array_equal(table.encode(whole(tmp_path / "rows.csv", table=table)), table.encode(frame))
    holes = whole(written(tmp_path / "holes.csv", "size,level\n1,NULL\n1,n/a\n"), table=table)
    assert np.isnan(table.encode(holes)[:, 1]).all()
    other = whole(written(tmp_path / "other.csv", f"size,level\n1,{levels[0]}\n1,other\n"), table=table)
    with pytest.raises(Refused, match="1 cells with others, first 'other' in row 1"):
        table.encode(other)


def test_separators_of_thousands_are_named(tmp_path, caplog):
    dots = written(tmp_path / "dots.csv", "a;b\n900;1,5\n1.234;2,5\n12.345.678;3,5\n")
    with pytest.raises(Refused, match=r"column 'a': .*'1\.234' in row 1.*Write 1234, or 1,234"):
        whole(dots)
    assert whole(written(tmp_path / "real.csv", "a;b\n0.123;1\n1.234;2\n2.345;3\n"))["a"].sum() == 3.702
    assert not caplog.messages
    assert whole(written(tmp_path / "commas.tsv", "a\tb\n1,234\t1\n5,678\t2\n"))["a"][0] == "1,234"
    (message,) = caplog.messages
    assert "a has labels: '1,234' in row 0" in message
    with pytest.raises(Refused, match=r"'1\.234,50' in row 1, .* Write 1234,50\.$"):
        whole(written(tmp_path / "both.csv", "a;b\n900,5;1\n1.234,50;2\n2.345;3\n"))


@pytest.mark.parametrize(
    ("name", "text", "cell"),
    [
        ("english.csv", 'a\n2.5\n"1,234.50"\n900\n"12,345"\n', "1,234.50"),
        ("english between semicolons.csv", "a;b\n2,5;1\n1,234.50;2\n", "1,234.50"),
        ("percent.csv", "a,b\n12%,1\n3.5 %,2\n", "12%"),
        ("currency.csv", "a;b\n€2,50;1\n3 €;2\n", "€2,50"),
        ("german.csv", "a;b\n2,5;1\n900,1;1\n1.234,50;2\n", "1.234,50"),
        ("decimals.tsv", "a\tb\n1\t1\n1,5\t1\n-0,25\t2\n", "1,5"),
        ("spaces.csv", "a,b\n900.5,1\n1 234.5,2\n", "1 234.5"),
    ],
)
def test_numbers_written_otherwise_are_labels_with_a_warning(tmp_path, caplog, name, text, cell):
    assert cell in whole(written(tmp_path / name, text))["a"].tolist()
    (message,) = caplog.messages
    assert f"a has labels: {cell!r} in row" in message
    assert f"decimals after a {'comma' if ';' in text else 'point'}" in message


def test_columns_of_any_name_and_numbers_of_any_size_are_read(tmp_path):
    """Integers that 64 bits cannot hold stay numbers, and no name is an argument of pandas."""
    frame = whole(written(tmp_path / "rows.csv", "self,x,empty\n1,1.5,\n2,2.5,\n4,3.5,\n"))
    assert frame["self"].tolist() == [1, 2, 4]
    assert frame["empty"].isna().all()
    table = Table.of(frame[["self", "x"]])
    for cell in ("1e300", "9223372036854775808", "-1e19"):
        later = whole(written(tmp_path / "later.csv", f"self,x\n1,1.5\n{cell},2.5\n"), table=table)
        assert later["self"].tolist() == [1.0, float(cell)]


def test_an_odd_cell_among_numbers_is_named(tmp_path, caplog):
    """Where nine in ten cells are numbers, the column becomes labels with a warning."""
    numbers = [str(number) for number in range(9)]
    whole(written(tmp_path / "rows.csv", "\n".join(["a", *numbers, "?"])))
    (message,) = caplog.messages
    assert "1 of 10 cells are no numbers, first '?' in row 9" in message
    whole(written(tmp_path / "rows.csv", "\n".join(["a", *numbers, "?", "-"])))
    assert len(caplog.messages) == 1


def test_columns_that_are_not_modelled_bring_no_warning_and_no_refusal(tmp_path, caplog):
    """Dropped columns at the fit, and columns that the model does not hold later."""
    text = (
        "marked;odd;seen;thousands;x\n"
        + "1,234.5;1;01/02/2020;1.234;1,5\n" * 19
        + "3;?;03/02/2020;5.678;2,5\n"
    )
    path, others = written(tmp_path / "rows.csv", text), ["marked", "odd", "seen", "thousands"]
    with pytest.raises(Refused, match="column 'thousands'"):
        whole(path, dropped=others[:3])
    frame = whole(path, dropped=others)
    assert cells.dates(frame, others) == []
    table = Table.of(frame, dict.fromkeys(others))
    assert table.encode(whole(path, table=table)).tolist() == [[0.0]] * 19 + [[1.0]]
    assert not caplog.messages
    whole(path, dropped=["thousands"])
    assert [message.split()[0] for message in caplog.messages] == ["marked", "odd"]
    assert cells.dates(frame, ["marked"]) == []
    assert caplog.messages[2].startswith("seen has labels")


def test_a_date_that_the_table_leaves_out_may_stand_in_later_files(tmp_path):
    path = written(tmp_path / "rows.csv", "seen,x\n2020-01-01,1.5\n2020-01-01,2.5\n2020-01-01,4\n")
    table = Table.of(whole(path, dates=[("seen", "days")]))
    assert list(table.left_out) == ["seen.days"]
    assert table.encode(whole(path, table=table)).tolist() == [[1.5], [2.5], [4.0]]


MALFORMED = {
    "empty": ("rows.csv", b"", "an empty file"),
    "no rows": ("rows.csv", b"a,b\n", "at least one row"),
    "a long line": ("rows.csv", b"a,b\n1,2\n1,2,3\n", "3 in line 3"),
    "blank lines before a short one": ("rows.csv", b"\n\na,b\n1\n", "1 in line 4"),
    "a short line": ("rows.csv", b"a,b\n1,2\n1\n", "1 in line 3"),
    "an open quote": ("rows.csv", b'a,b\n1,"2\n', "unexpected end of data"),
    "names twice": ("rows.csv", b"a,a\n1,2\n", "'a' more than once"),
    "no names": ("rows.csv", b"1.5,2\n1,2\n", "numbers, '1.5' first"),
    "Latin-1": ("rows.csv", "a,b\nJosé,2\n".encode("latin-1"), "0xe9"),
    "a cut gzip": ("rows.csv.gz", gzip.compress(b"a,b\n1,2\n" * 99)[:-9], "ended before"),
    "no gzip": ("rows.csv.gz", b"a,b\n1,2\n", "a file that gzip compressed, got another file"),
    "no archive": ("rows.npz", b"a,b\n1,2\n", "rows.npz"),
    "no Parquet": ("rows.parquet", b"a,b\n1,2\n", "rows.parquet"),
    "another ending": ("rows.xlsx", b"a,b\n1,2\n", "a name that ends in .csv"),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_malformed_files_are_refused_when_they_are_opened(tmp_path, kind):
    name, content, message = MALFORMED[kind]
    with pytest.raises((Refused, OSError), match=message) as caught:
        files.Rows(written(tmp_path / name, content))
    assert str(caught.value).count(": expected ") == 1
    assert "\n" not in str(caught.value)


def test_parquet_whose_metadata_name_other_types_is_refused_by_name(tmp_path):
    """pandas' metadata say Int64, and the column holds decimals."""
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet")
    described = pyarrow.Table.from_pandas(pd.DataFrame({"a": pd.array([1, 2, None], dtype="Int64")}))
    decimals = pyarrow.array([1, 2, None], pyarrow.decimal128(10, 2))
    held = pyarrow.table({"a": decimals}).replace_schema_metadata(described.schema.metadata)
    pyarrow.parquet.write_table(held, tmp_path / "rows.parquet")
    with pytest.raises(Refused, match=r"rows\.parquet: expected a whole \.parquet file, got .*decimal"):
        files.Rows(str(tmp_path / "rows.parquet"))


def test_parquet_without_its_package_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(Refused, match=r"pip install 'pyrovae\[parquet\]'"):
        files.Rows(written(tmp_path / "rows.parquet", "x"))
    with pytest.raises(Refused, match="pyarrow"):
        write(tmp_path / "out.parquet", FRAME)


def write(path, *frames):
    with files.writing(str(path)) as put:
        for frame in frames:
            put(frame)


@pytest.mark.parametrize("name", ["rows.csv", "rows.csv.gz", "rows.parquet"])
def test_a_full_disk_or_an_error_leaves_the_earlier_file(tmp_path, name):
    """The limit on the size of files stands for a full disk: no write beyond it succeeds."""
    path = tmp_path / name
    path.write_text("earlier")
    frame = pd.DataFrame({"x": np.random.default_rng(0).random(9000)})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(OSError, match="a file to write to"):
            write(path, frame, frame)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    with pytest.raises((AttributeError, TypeError)):
        write(path, frame, 1)
    assert path.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["rows.csv", "rows.parquet"])
def test_tables_of_other_columns_are_refused(tmp_path, name):
    with pytest.raises(Refused, match=r"the columns \['name', 'count', 'size'\]"):
        write(tmp_path / name, FRAME, FRAME.assign(more=1))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["device.csv", "no/such.csv", "folder.csv"])
def test_places_that_are_no_file_are_refused(tmp_path, place):
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "device.csv").symlink_to("/dev/full")
    with pytest.raises(OSError, match="a file to write to"):
        write(tmp_path / place, FRAME)
