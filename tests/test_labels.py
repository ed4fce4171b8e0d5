"""Labels are the same in every kind of file, and the index that pandas writes beside a table is no input."""

import io
import json
import unicodedata
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedcl.errors import ConfigError
from fedcl.streams.folder import Expected, Found, notes, read_folder
from fedcl.streams.formats import _pandas_index
from fedcl.streams.labels import BadLabel, class_name, in_order, label_of, tidy
from fedcl.streams.local import Local

FORMS = ("{0}", "{0}.0", "{0}.", "{0:.18e}", "+{0}", "0{0}", " {0} ", "{0}e0", "{0}.000E+00")


def arrow() -> Any:
    return pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install pyarrow (170 MB)")


def table(labels: list[Any], kind: str) -> bytes:
    """Return a file with a row for each label; inputs are the rows' numbers."""
    file = io.BytesIO()
    if kind == "npz":
        np.savez(file, x=np.arange(len(labels), dtype=np.float32)[:, None], y=np.array(labels))
    elif kind == "csv":
        file.write("".join(["a,label\n", *(f"{row},{label}\n" for row, label in enumerate(labels))]).encode())
    else:
        pytest.importorskip("pyarrow.parquet").write_table(
            arrow().table({"a": np.arange(len(labels), dtype=float), "label": labels}), file
        )
    return file.getvalue()


def read(folder: Path, **files: bytes) -> Found:
    for name, content in files.items():
        stem, _, ending = name.rpartition("_")
        (folder / f"{stem}.{ending}").write_bytes(content)
    return read_folder(folder)


@given(st.integers(0, 10**15), st.sampled_from(FORMS))
def test_a_number_is_one_class_however_it_is_written(number: int, form: str) -> None:
    text = form.format(number)
    assert label_of(text) == label_of(number) == label_of(float(number)) == label_of(Decimal(number)) == str(number)
    assert label_of(f"-{text.strip().removeprefix('+')}") == str(-number)


@given(st.lists(st.integers(-(10**18), 10**18), unique=True), st.lists(st.sampled_from("abcxyz"), unique=True))
def test_numbers_come_in_their_order_and_before_text(numbers: list[int], text: list[str]) -> None:
    assert in_order([*text, *map(str, numbers)]) == (*map(str, sorted(numbers)), *sorted(text))


@given(st.text(max_size=20))
def test_a_class_has_one_name_and_keeps_it(text: str) -> None:
    try:
        name = class_name(text)
    except BadLabel:
        assert float(text) % 1  # a fraction is the only text that names no class
        return
    assert class_name(name) == name == tidy(name)
    assert class_name(unicodedata.normalize("NFD", text)) == name


@pytest.mark.parametrize("value", ["", "  ", "nan", "NaN", "NA", "N/A", "<NA>", "null", "None", None, float("nan")])
def test_what_tables_write_for_a_missing_label_is_none(value: Any) -> None:
    assert label_of(value) is None


@pytest.mark.parametrize("value", [2.5, "2.5", "1e-3", float("inf"), 1e300, b"7", Decimal("0.1"), "u" * 201])
def test_fractions_and_what_is_neither_number_nor_text_are_refused(value: Any) -> None:
    with pytest.raises(BadLabel, match="must be whole numbers, or text of up to 200 characters"):
        label_of(value)


@pytest.mark.parametrize("text", ["1_000", "0x10", "1e400", "9" * 40, "v2.5", "no", "True", "12:30", "inf"])
def test_text_that_is_no_number_of_a_label_stays_as_it_was_written(text: str) -> None:
    assert label_of(text) == text


@pytest.mark.parametrize("kind", ["csv", "npz", "parquet"])
def test_files_of_every_kind_agree_on_their_classes(tmp_path: Path, kind: str) -> None:
    """Twelve classes written as "3", as 3.0 and as text with an accent in two forms are twelve, and in number order."""
    numbers = [str(each) for each in range(11)]
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    found = read(
        tmp_path,
        a_csv=table([*numbers, composed], "csv"),
        **{f"b_{kind}": table([*(f"{each}.0" for each in numbers), decomposed], kind)},
        c_npz=table([float(each) for each in range(11)], "npz"),
    )
    assert not found.faults
    assert found.classes == (*numbers, composed)
    assert found.y.tolist() == [*range(12), *range(12), *range(11)]


@pytest.mark.parametrize("kind", ["csv", "npz", "parquet"])
def test_text_nan_is_no_class(tmp_path: Path, kind: str) -> None:
    found = read(tmp_path, **{f"a_{kind}": table(["cat", "nan", "dog", ""], kind)})
    assert (found.classes, found.row.tolist()) == (("cat", "dog"), [0, 2])
    assert [each.reason for each in found.faults] == ["2 of 4 rows left out, the first is row 1: it has no label"]


def test_labels_that_savetxt_has_written_are_the_numbers(tmp_path: Path) -> None:
    rows = np.column_stack([np.arange(12.0), np.arange(12)])
    np.savetxt(tmp_path / "a.csv", rows, delimiter=",", header="a,label", comments="")
    found = read_folder(tmp_path)
    assert found.classes == tuple(map(str, range(12)))
    assert found.x[:, 0].tolist() == found.y.tolist() == list(range(12))


def test_class_folders_follow_the_same_rule(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed: pip install pillow")
    for name in ("01", "1", "2", "10", "nan", "cafe\u0301"):
        (tmp_path / name).mkdir()
        image.fromarray(np.zeros((2, 2), np.uint8)).save(tmp_path / name / "a.png")
    found = read_folder(tmp_path)
    assert found.classes == ("1", "2", "10", "caf\u00e9", "nan")  # a folder is there: it cannot be missing
    assert sorted(found.y.tolist()) == [0, 0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        (["3", "3.0"], "'3' stands there 2 times; numbers are one class however they are written"),
        (["a", "nan"], "'nan' is what tables write where a label is missing"),
        (["a", "2.5"], "the label '2.5'; labels must be whole numbers"),
    ],
)
def test_classes_that_a_scenario_names_follow_it_too(classes: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=r"stream\.dataset\.classes: .*" + said.replace(".", r"\.")):
        Local(classes=classes, shape=[2]).load(None)
    expected = Local(classes=["03", "cafe\u0301"], shape=[1], columns=["e\u0301"]).expected
    assert (expected.classes, expected.columns) == (("3", "caf\u00e9"), ("\u00e9",))


# The index that pandas writes


@pytest.mark.parametrize(
    ("heading", "row", "index"),
    [
        (",a,b,label", "0,1,2,7", ("",)),
        (",,a,b,label", "x,0,1,2,7", ("", "")),  # two levels, one of text
        ("Unnamed: 0,a,b,label", "0,1,2,7", ("Unnamed: 0",)),
        (",Unnamed: 0.1,Unnamed: 0,a,label,b", "0,0,0,1,7,2", ("", "Unnamed: 0.1", "Unnamed: 0")),
        ("a,__index_level_0__,b,label", "1,9,2,7", ("__index_level_0__",)),
    ],
)
def test_an_index_in_a_csv_file_is_no_input_and_named(
    tmp_path: Path, heading: str, row: str, index: tuple[str, ...]
) -> None:
    found = read(tmp_path, a_csv=f"{heading}\n{row}\n".encode())
    assert (found.x.tolist(), found.expected.columns, found.faults) == ([[1, 2]], ("a", "b"), ())
    assert found.index == tuple(dict.fromkeys(index))
    (note,) = notes(found)
    assert note.startswith("data folder: left out of the inputs as the index that pandas writes: ")
    assert repr(index[-1]) in note


def test_a_column_without_a_name_elsewhere_is_an_input(tmp_path: Path) -> None:
    found = read(tmp_path, a_csv=b"a,,label\n1,2,7\n")
    assert (found.x.tolist(), found.expected.columns, found.index) == ([[1, 2]], ("a", ""), ())


def test_a_column_that_is_asked_for_by_name_stays(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("Unnamed: 0,a,label\n5,1,7\n")
    found = read_folder(tmp_path, Expected(columns=("a", "Unnamed: 0")))
    assert (found.x.tolist(), found.index) == ([[1, 5]], ())


def test_one_table_with_an_index_and_one_without_fit_each_other(tmp_path: Path) -> None:
    found = read(tmp_path, a_csv=b",a,label\n0,1,7\n", b_csv=b"a,label\n2,7\n")
    assert (found.x.tolist(), found.faults) == ([[1], [2]], ())


@pytest.mark.parametrize(
    ("metadata", "index"),
    [
        ({b"pandas": json.dumps({"index_columns": ["id", "__index_level_1__"]}).encode()}, ("id", "__index_level_1__")),
        ({b"pandas": json.dumps({"index_columns": [{"kind": "range", "name": None}]}).encode()}, ()),
        ({b"pandas": b"[" * 100_000}, ()),
        ({b"pandas": b'{"index_columns": 3}'}, ()),
        ({b"pandas": b"\xff"}, ()),
        ({b"pandas": b"[]"}, ()),
        ({}, ()),
    ],
)
def test_the_index_is_read_from_pandas_own_words(metadata: dict[bytes, bytes], index: tuple[str, ...]) -> None:
    assert _pandas_index(metadata) == index


@pytest.mark.parametrize("named", [False, True])
def test_an_index_in_a_parquet_table_is_no_input(tmp_path: Path, named: bool) -> None:
    name = "id" if named else "__index_level_0__"
    rows = arrow().table({"a": [1.0], "label": ["7"], name: [5]})
    if named:
        rows = rows.replace_schema_metadata({"pandas": json.dumps({"index_columns": [name]})})
    pytest.importorskip("pyarrow.parquet").write_table(rows, tmp_path / "a.parquet")
    found = read_folder(tmp_path)
    assert (found.x.tolist(), found.expected.columns, found.index) == ([[1]], ("a",), (name,))
