"""A folder of one's own data: read as it was written, in one order; whatever cannot be taken is named and left out."""

import io
import json
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from fedcl import api
from fedcl.console import Progress
from fedcl.errors import ConfigError
from fedcl.streams.folder import Expected, Folder, Found, notes, read_folder
from fedcl.streams.labels import MISSING, tidy
from fedcl.streams.manifest import tasks_of
from tests.federations import tiny

X = np.array([[1, 2], [3, 4], [5, 6]], np.float32)
Y = np.array([7, 10, 7])
CSV = "a,b,label\n1,2,7\n3,4,10\n5,6,7\n"


def pillow() -> Any:
    return pytest.importorskip("PIL.Image", reason="Pillow is not installed: pip install 'fedcl-flower[images]'")


def arrow() -> Any:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install 'fedcl-flower[parquet]' (170 MB)")
    return pytest.importorskip("pyarrow.parquet")


def written(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def npz(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def picture(pixels: Any, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    pillow().fromarray(np.asarray(pixels, np.uint8)).save(file, kind, **options)
    return file.getvalue()


def parquet(**columns: Any) -> bytes:
    file = io.BytesIO()
    writer = arrow()
    writer.write_table(pytest.importorskip("pyarrow").table(columns), file)
    return file.getvalue()


def faults(found: Found) -> dict[str, str]:
    """Return the reason of each fault by path; each path has one."""
    named = {each.path: each.reason for each in found.faults}
    assert len(named) == len(found.faults)
    return named


def labels(found: Found) -> list[str]:
    return [found.classes[number] for number in found.y]


# Read as written


@pytest.mark.parametrize("kind", ["npz", "csv", "parquet"])
def test_arrays_and_tables_come_back_as_they_were_written(tmp_path: Path, kind: str) -> None:
    content: dict[str, Callable[[], bytes | str]] = {
        "npz": lambda: npz(x=X, y=Y),
        "csv": lambda: CSV,
        "parquet": lambda: parquet(a=X[:, 0], label=Y, b=X[:, 1].astype(int)),
    }
    written(tmp_path / f"table.{kind}", content[kind]())
    found = read_folder(tmp_path)
    assert found.x.dtype == np.float32
    assert found.x.tolist() == X.tolist()
    assert found.classes == ("7", "10")  # as numbers, not as text
    assert (found.y.dtype, found.y.tolist()) == (np.int64, [0, 1, 0])
    assert (found.file.tolist(), found.row.tolist(), found.files) == ([0, 0, 0], [0, 1, 2], (f"table.{kind}",))
    assert found.expected.shape == (2,)
    assert found.expected.columns == (None if kind == "npz" else ("a", "b"))
    assert not found.faults


@pytest.mark.parametrize("ending", ["png", "bmp", "gif", "webp"])
def test_pictures_without_loss_come_back_to_the_pixel(tmp_path: Path, ending: str) -> None:
    # Few colours, so that a GIF's palette holds them all.
    pixels = np.arange(4 * 5 * 3).reshape(4, 5, 3) * 4
    content = picture(pixels, ending.upper(), **({"lossless": True} if ending == "webp" else {}))
    written(tmp_path / "cat" / f"one.{ending}", content)
    found = read_folder(tmp_path)
    assert (found.x.dtype, found.x.shape) == (np.uint8, (1, 4, 5, 3))
    assert found.x[0].tolist() == pixels.tolist()
    assert (labels(found), found.files) == (["cat"], (f"cat/one.{ending}",))


@pytest.mark.parametrize("ending", ["jpg", "jpeg", "JPG"])
def test_a_flat_grey_jpeg_comes_back_to_the_pixel(tmp_path: Path, ending: str) -> None:
    written(tmp_path / "cat" / f"one.{ending}", picture(np.full((8, 8), 128), "JPEG"))
    assert read_folder(tmp_path).x.tolist() == [[[128] * 8] * 8]


def test_black_and_white_pictures_are_grey_ones(tmp_path: Path) -> None:
    file = io.BytesIO()
    pillow().fromarray(np.array([[0, 255], [255, 0]], np.uint8)).convert("1").save(file, "PNG")
    written(tmp_path / "cat" / "one.png", file.getvalue())
    assert read_folder(tmp_path).x.tolist() == [[[0, 255], [255, 0]]]


def test_pictures_are_brought_to_one_size(tmp_path: Path) -> None:
    for side, name in ((4, "a"), (6, "b")):
        written(tmp_path / "cat" / f"{name}.png", picture(np.full((side, side + 1), 10 * side)))
    found = read_folder(tmp_path, Expected(size=2))
    assert found.x.tolist() == [[[40, 40], [40, 40]], [[60, 60], [60, 60]]]
    assert faults(read_folder(tmp_path)) == {"cat/b.png": "has inputs of shape (6, 7) where (4, 5) is expected"}


@given(
    values=st.lists(st.tuples(*[st.floats(width=32, allow_nan=False, allow_infinity=False)] * 3), min_size=1),
    names=st.data(),
)
def test_any_numbers_and_labels_survive_csv(tmp_path_factory: Any, values: list[Any], names: Any) -> None:
    import csv

    text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=9)
    text = text.map(tidy).filter(lambda each: each not in MISSING and not any(map(str.isdigit, each)))
    chosen = names.draw(st.lists(text, min_size=len(values), max_size=len(values)))
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(
            [["a", "label", "b", "c"], *([x, n, *r] for (x, *r), n in zip(values, chosen, strict=True))]
        )
    found = read_folder(path.parent)
    assert found.x.tolist() == [list(row) for row in values]
    assert labels(found) == chosen
    assert not found.faults


@pytest.mark.parametrize("dtype", ["int8", "uint16", "int64", "float16", "float64", ">f4", "bool", "uint8"])
def test_bytes_stay_and_other_numbers_become_float32(tmp_path: Path, dtype: str) -> None:
    x = np.asfortranarray(X > 2) if dtype == "bool" else np.asfortranarray(X).astype(dtype)
    written(tmp_path / "a.npz", npz(x=x, y=np.array(["u", "v", "u"])))
    found = read_folder(tmp_path)
    assert found.x.dtype == (np.uint8 if dtype == "uint8" else np.float32)
    assert found.x.tolist() == x.astype(float).tolist()
    assert labels(found) == ["u", "v", "u"]


def test_columns_are_matched_by_name(tmp_path: Path) -> None:
    """Another order of columns is no fault, other columns are."""
    written(tmp_path / "1.csv", "\ufefflabel,a,b\r\nu,1,2\r\n\r\n")  # as spreadsheets write it
    written(tmp_path / "2.csv", "b,label,a\n4,v,3\n")
    written(tmp_path / "3.csv", "a,label\n1,u\n")
    written(tmp_path / "4.csv", "a,b,c,label\n1,2,3,u\n")
    found = read_folder(tmp_path)
    assert found.x.tolist() == [[1, 2], [3, 4]]
    assert labels(found) == ["u", "v"]
    assert faults(found) == {
        "3.csv": "lacks the column 'b'; all tables must have the same",
        "4.csv": "has a strange column 'c'; all tables must have the same",
    }


def test_a_next_reading_expects_what_the_first_has_found(tmp_path: Path) -> None:
    written(tmp_path / "1.csv", "label,a,b\nu,1,2\nv,3,4\n")
    first = read_folder(tmp_path)
    (tmp_path / "1.csv").unlink()
    written(tmp_path / "0.csv", "b,a,label\n1,2,v\n")
    written(tmp_path / "2.csv", "a,b,label\n1,2,uu\n3,4,u\n")
    second = read_folder(tmp_path, first.expected)
    assert second.x.tolist() == [[2, 1], [3, 4]]
    assert second.y.tolist() == [1, 0]
    assert second.row.tolist() == [0, 1]
    assert faults(second) == {
        "2.csv": "1 of 2 rows left out, the first is row 0: it has the unknown label 'uu'; did you mean 'u'?"
    }


# One order


TREE = ["b.npz", "a/x.npz", "a.npz", "task-2/c.npz", "task-10/c.npz", "B.npz", "a/b/y.npz", "é.npz"]


@given(order=st.permutations(TREE))
def test_the_order_in_which_files_arrive_does_not_count(tmp_path_factory: Any, order: list[str]) -> None:
    folder = tmp_path_factory.mktemp("tree")
    for name in order:
        written(folder / name, npz(x=np.full((1, 1), TREE.index(name), np.uint8), y=np.array([name])))
    found = read_folder(folder)
    there = ["B.npz", "a/b/y.npz", "a/x.npz", "a.npz", "b.npz", "task-10/c.npz", "task-2/c.npz", "é.npz"]
    assert list(found.files) == there == labels(found)
    assert found.x[:, 0].tolist() == [TREE.index(name) for name in there]
    tasks, _ = tasks_of(folder, found)
    assert [(task.name, task.items.tolist()) for task in tasks] == [("task-2", [6]), ("task-10", [5])]


# Faults


def raw_npz(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in members.items():
            packed.writestr(f"{name}.npy", content)
    return file.getvalue()


def header(shape: str, descr: str = "<f4") -> bytes:
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}}}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) + 1) + text + b"\n"


GOOD = npz(x=X, y=Y)
BAD = {
    "empty.npz": (b"", "is empty"),
    "cut.npz": (GOOD[: len(GOOD) // 2], "cannot be read as .npz (File is not a zip file)"),
    "turned.npz": (GOOD.replace(b"NUMPY", b"numpy").replace(GOOD[60:90], GOOD[60:90][::-1]), "cannot be read as .npz"),
    "text.npz": ("a,b\n", "cannot be read as .npz (File is not a zip file)"),
    "shape.npz": (npz(x=np.ones((3, 3)), y=Y), "has inputs of shape (3,) where (2,) is expected"),
    "type.npz": (npz(x=np.ones((3, 2), np.uint8), y=Y), "has inputs of type uint8 where float32 is expected"),
    "nan.npz": (
        npz(x=np.full((3, 2), np.nan), y=Y),
        "3 of 3 rows left out, the first is row 0: it has NaN or infinity",
    ),
    "large.npz": (npz(x=[[1, 2], [1e39, 1]], y=Y[:2]), "1 of 2 rows left out, the first is row 1: it has NaN"),
    "unlabelled.npz": (npz(x=X, y=[7, np.nan, 7]), "1 of 3 rows left out, the first is row 1: it has no label"),
    "unknown.npz": (npz(x=X, y=[7, 8, 9]), "2 of 3 rows left out, the first is row 1: it has the unknown label '8'"),
    "half.npz": (npz(x=X, y=[7, 7.5, 7]), "has the label '7.5'; labels must be whole numbers, or text"),
    "lacks.npz": (npz(x=X, z=Y), "has no array 'y'"),
    "lengths.npz": (npz(x=X, y=Y[:2]), "has x of shape (3, 2) and y of shape (2,); must be (n, ...) and (n,)"),
    "flat.npz": (npz(x=X[:, 0], y=Y), "has x of shape (3,) and y of shape (3,); must be (n, ...) and (n,)"),
    "none.npz": (npz(x=X[:0], y=Y[:0]), "holds no item"),
    "complex.npz": (npz(x=X * 1j, y=Y), "its array 'x' holds complex64; must be numbers"),
    "pickle.npz": (npz(x=X, y=np.array(["7", 10, None], object)), "its array 'y' holds object; must be numbers or"),
    "pickles.npz": (npz(x=np.array([{}], object), y=Y), "its array 'x' holds object; must be numbers"),
    "bomb.npz": (npz(x=np.zeros((1, 3_000_000), np.uint8), y=[7]), "its array 'x' unpacks to 3,000,128 bytes, more"),
    "boasts.npz": (
        raw_npz(x=header("(10**12, 2)".replace("10**12", "1" + "0" * 12)), y=b""),
        "its array 'x' announces",
    ),
    "endless.npz": (raw_npz(x=header("(1, 2)") + bytes(99), y=b""), "its array 'x' goes on behind what it announces"),
    "nothing.npz": (raw_npz(x=header("(1, 2)") + bytes(8), y=header(f"({10**12},)", "<U0")), "its array 'y' announces"),
    "long.npz": (npz(x=X, y=np.array(["u" * 201] * 3)), "its array 'y' holds <U201; must be numbers or short text"),
    "heavy.npz": (os.urandom(1_000_001), "has 1,000,001 bytes, more than max_bytes = 1,000,000"),
    "cut.csv": ("a,b,label\n1,2,7\n3,", "has 2 cells in row 1, but 3 columns"),
    "quote.csv": ('a,b,label\n1,2,"7\n3,4,7\n', "cannot be read as .csv (unexpected end of data)"),
    "text.csv": ("a,b,label\n1,x,7\n", "has 'x' in row 0, where a number must be"),
    "gap.csv": ("a,b,label\n1,,7\n1,2,7\n", "1 of 2 rows left out, the first is row 0: it has NaN or infinity"),
    "infinite.csv": ("a,b,label\n1,-inf,7\n", "has NaN or infinity"),
    "unlabelled.csv": ("a,b,label\n1,2,\n", "has no label"),
    "unknown.csv": ("a,b,label\n1,2,77\n", "has the unknown label '77'; did you mean '7'?"),
    "misspelt.csv": ("a,b,lable\n1,2,7\n", "has no column 'label'; did you mean 'lable'?"),
    "lonely.csv": ("label\n7\n", "has 0 columns of inputs beside the label's; must be 1 to"),
    "twice.csv": ("a,a,label\n1,2,7\n", "has 2 columns 'a'"),
    "short.csv": ("a,b,label\n", "holds no item"),
    "long.csv": (f"a,b,label\n1,2,{'u' * 201}\n", "has the label 'uuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuu'; labels"),
    "bytes.csv": (b"a,b,label\n1,2,\xff\n", "cannot be read as .csv ('utf-8' codec can't decode byte 0xff"),
    "notes.txt": ("hello", "is of a kind that is not read; must be .png, .jpg"),
    "data": ("hello", "is of a kind that is not read"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_named_and_the_good_ones_are_taken(tmp_path: Path, name: str) -> None:
    content, reason = BAD[name]
    written(tmp_path / "!first.npz", GOOD)
    written(tmp_path / name, content)
    written(tmp_path / "~last.csv", CSV)
    found = read_folder(tmp_path, Expected(classes=("10", "7"), max_bytes=1_000_000))
    assert list(faults(found)) == [name]
    assert faults(found)[name].startswith(reason)
    good = found.file[np.isin(found.file, [place for place, path in enumerate(found.files) if path != name])]
    assert len(good) == 6
    assert np.isfinite(found.x).all()
    assert set(found.y.tolist()) == {0, 1}


@pytest.mark.parametrize("size", range(0, len(GOOD), 7))
def test_npz_cut_anywhere_gives_a_fault(tmp_path: Path, size: int) -> None:
    written(tmp_path / "a.npz", GOOD[:size])
    found = read_folder(tmp_path)
    assert (len(found.y), len(found.faults)) == (0, 1)


@given(place=st.integers(0, len(GOOD) - 1), value=st.integers(0, 255))
def test_npz_with_any_byte_changed_is_as_written_or_a_fault(tmp_path_factory: Any, place: int, value: int) -> None:
    damaged = bytearray(GOOD)
    damaged[place] = value
    path = written(tmp_path_factory.mktemp("damaged") / "a.npz", bytes(damaged))
    found = read_folder(path.parent)
    if not found.faults:
        assert found.x.tolist() == X.tolist()
        assert labels(found) == ["7", "10", "7"]


def test_a_line_without_end_is_not_read_to_its_end(tmp_path: Path) -> None:
    written(tmp_path / "a.csv", "a,label\n" + "1" * ((1 << 24) + 2))
    assert faults(read_folder(tmp_path)) == {"a.csv": "has a line of more than 16,777,216 characters"}


def animated() -> bytes:
    file, image = io.BytesIO(), pillow()
    frames = [image.fromarray(np.full((4, 4), value, np.uint8)) for value in (0, 200)]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    return file.getvalue()


PICTURES: dict[str, tuple[Callable[[], bytes], str]] = {
    "cut": (lambda: picture(np.random.default_rng(0).integers(0, 256, (4, 4)))[:60], "cannot be read as a picture"),
    "text": (lambda: b"no picture", "is no picture that can be read (PNG, JPEG, BMP, GIF, WEBP), or damaged"),
    "tiff": (lambda: picture(np.ones((4, 4)), "TIFF"), "is no picture that can be read"),
    "empty": (lambda: b"", "is empty"),
    "shape": (lambda: picture(np.ones((5, 4))), "has inputs of shape (5, 4) where (4, 4) is expected"),
    "colour": (lambda: picture(np.ones((4, 4, 3))), "has inputs of shape (4, 4, 3) where (4, 4) is expected"),
    "alpha": (lambda: picture(np.ones((4, 4, 4))), "is RGBA; save it as 8 bit grey or RGB"),
    "clear": (lambda: picture(np.ones((4, 4)), transparency=1), "is transparent; save it as 8 bit grey or RGB"),
    "frames": (animated, "has 2 frames; save each as a picture"),
    "large": (lambda: picture(np.ones((1200, 1200))), "unpacks to 1,440,000 bytes, more than max_bytes = 1,000,000"),
}


@pytest.mark.parametrize("name", PICTURES)
def test_a_bad_picture_is_named(tmp_path: Path, name: str) -> None:
    make, reason = PICTURES[name]
    written(tmp_path / "cat" / "!.png", picture(np.full((4, 4), 9)))
    written(tmp_path / "cat" / f"{name}.png", make())
    written(tmp_path / "cat" / "~.png", picture(np.full((4, 4), 8)))
    found = read_folder(tmp_path, Expected(max_bytes=1_000_000))
    assert found.x[:, 0, 0].tolist() == [9, 8]
    assert list(faults(found)) == [f"cat/{name}.png"]
    assert faults(found)[f"cat/{name}.png"].startswith(reason)


def test_more_pixels_than_pillow_believes_are_a_fault(tmp_path: Path) -> None:
    pillow()
    bitmap = b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, 20000, 20000, 1, 8, *[0] * 6)
    written(tmp_path / "cat" / "a.bmp", bitmap)
    [(path, reason)] = faults(read_folder(tmp_path)).items()
    assert path == "cat/a.bmp"
    assert "decompression bomb" in reason


def test_pictures_lie_in_class_folders(tmp_path: Path) -> None:
    for name in ("a.png", "cat/a.png", "cat/b/a.png", "task-1/a.png", "task-1/dog/a.png", "test/dog/a.png"):
        written(tmp_path / name, picture(np.ones((2, 2))))
    found = read_folder(tmp_path)
    assert found.files == ("cat/a.png", "task-1/dog/a.png", "test/dog/a.png")
    assert labels(found) == ["cat", "dog", "dog"]
    reason = "is a picture outside of class folders; must be CLASS/NAME or task-001/CLASS/NAME"
    assert faults(found) == dict.fromkeys(("a.png", "cat/b/a.png", "task-1/a.png"), reason)


@pytest.mark.parametrize(
    ("name", "module", "reason"),
    [
        ("cat/a.png", "PIL.Image", "needs pillow: pip install 'fedcl-flower[images]'"),
        ("a.parquet", "pyarrow.parquet", "needs pyarrow: pip install 'fedcl-flower[parquet]'"),
    ],
)
def test_without_the_extra_its_files_name_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, module: str, reason: str
) -> None:
    monkeypatch.setitem(__import__("sys").modules, module, None)
    written(tmp_path / name, b"some bytes")
    assert faults(read_folder(tmp_path)) == {name: reason}


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"a": [1.0, None], "label": ["u", "v"]}, "1 of 2 rows left out, the first is row 1: it has NaN or infinity"),
        ({"a": [1, 2], "label": ["u", None]}, "1 of 2 rows left out, the first is row 1: it has no label"),
        ({"a": ["x", "y"], "label": ["u", "v"]}, "has string in column 'a', where numbers must be"),
        ({"a": [1, 2], "lable": ["u", "v"]}, "has no column 'label'; did you mean 'lable'?"),
        ({"a": [1, 2], "label": [1.5, 2.5]}, "has the label '1.5'; labels must be whole numbers, or text"),
        ({"a": np.zeros(600_000), "label": np.zeros(600_000)}, "unpacks to 9,600,000 bytes, more than max_bytes"),
        ({"a": np.zeros(0), "label": np.zeros(0)}, "holds no item"),
    ],
)
def test_a_bad_parquet_table_is_named(tmp_path: Path, columns: dict[str, Any], reason: str) -> None:
    written(tmp_path / "a.parquet", parquet(**columns))
    found = read_folder(tmp_path, Expected(max_bytes=5_000_000))
    assert list(faults(found)) == ["a.parquet"]
    assert faults(found)["a.parquet"].startswith(reason)


def test_a_parquet_table_cut_off_is_named(tmp_path: Path) -> None:
    whole = parquet(a=[1, 2], label=["u", "v"])
    written(tmp_path / "a.parquet", whole[: len(whole) // 2])
    assert faults(read_folder(tmp_path))["a.parquet"].startswith("cannot be read as .parquet")


# Links, folders, names


def test_links_are_followed_to_files_inside_the_folder_only(tmp_path: Path) -> None:
    folder = tmp_path / "own"
    outside = written(tmp_path / "own-not" / "secret.csv", CSV)
    written(folder / ".store" / "kept.csv", CSV)
    (folder / "in.csv").symlink_to(folder / ".store" / "kept.csv")
    (folder / "out.csv").symlink_to(outside)
    (folder / "up.csv").symlink_to("../own-not/secret.csv")
    (folder / "dead.csv").symlink_to("nowhere.csv")
    (folder / "round.csv").symlink_to("round.csv")
    (folder / "loop").symlink_to(folder, target_is_directory=True)
    (folder / "away").symlink_to(outside.parent, target_is_directory=True)
    found = read_folder(folder)
    assert found.files == ("in.csv",)
    assert faults(found) == {
        "away": "is a link out of the folder",
        "dead.csv": "is a link to nothing (No such file or directory)",
        "loop": "is a link to a folder; only links to files are followed",
        "out.csv": "is a link out of the folder",
        "round.csv": "is a link to nothing (Too many levels of symbolic links)",
        "up.csv": "is a link out of the folder",
    }


def test_a_folder_may_itself_be_reached_by_a_link(tmp_path: Path) -> None:
    written(tmp_path / "real" / "a.csv", CSV)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert read_folder(tmp_path / "link").files == ("a.csv",)


def test_what_is_no_plain_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "x.npz").mkdir()
    written(tmp_path / "x.npz" / "a.csv", CSV)
    written(tmp_path / Path(*"abcdefghijklmnopqr") / "a.csv", CSV)
    assert faults(read_folder(tmp_path)) == {
        "/".join("abcdefghijklmnopq"): "lies more than 16 folders deep",
        "pipe.csv": "is no plain file",
        "x.npz": "is a folder, though it is named like a file",
    }


def test_hidden_and_unfinished_files_are_left_alone(tmp_path: Path) -> None:
    for name in (".a.csv", "b.csv.tmp", "c.csv.part", ".git/d.csv", "cat.tmp/e.csv", "f.csv"):
        written(tmp_path / name, CSV)
    found = read_folder(tmp_path)
    assert (found.files, found.faults) == (("f.csv",), ())


def test_names_of_files_cannot_write_on_the_terminal(tmp_path: Path) -> None:
    written(tmp_path / "a\x1b[2J\n.txt", "")
    written(tmp_path / os.fsdecode(b"b\xff.txt"), "")
    written(tmp_path / "c.csv", "a,label\n\x1b[2J,u\n")
    found = read_folder(tmp_path)
    assert [each.path for each in found.faults] == ["a\\x1b[2J\\n.txt", "b\\udcff.txt", "c.csv"]
    assert all(str(each).isprintable() and str(each).encode() for each in found.faults)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads files of any mode")
def test_what_may_not_be_read_is_named(tmp_path: Path) -> None:
    written(tmp_path / "a.csv", CSV).chmod(0)
    written(tmp_path / "b" / "a.csv", CSV)
    (tmp_path / "b").chmod(0)
    try:
        found = faults(read_folder(tmp_path))
    finally:
        (tmp_path / "b").chmod(0o700)
    assert found == {
        "a.csv": "cannot be read (Permission denied)",
        "b/": "cannot be listed (Permission denied)",
    }


def test_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere' is no folder that can be read \(No such file or directory\)"):
        read_folder(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"is no folder that can be read \(Not a directory\)"):
        read_folder(written(tmp_path / "a.csv", CSV))


def test_an_empty_folder_has_nothing_and_no_fault(tmp_path: Path) -> None:
    found = read_folder(tmp_path, Expected(shape=(2,), dtype="uint8"))
    assert (found.x.shape, found.x.dtype, len(found.y), found.faults) == ((0, 2), np.uint8, 0, ())
    assert tasks_of(tmp_path, found) == ((), ())


# Tasks


def grown(tmp_path: Path, *names: str) -> Found:
    for name in names:
        written(tmp_path / name, "a,label\n1,u\n2,v\n")
    return read_folder(tmp_path)


def laid_out(tmp_path: Path, found: Found) -> tuple[dict[str, list[int]], list[str]]:
    tasks, odd = tasks_of(tmp_path, found)
    return {task.name: task.items.tolist() for task in tasks}, list(map(str, odd))


def test_folders_of_tasks_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    found = grown(tmp_path, "task-10/a.csv", "task-9/a.csv", "task-09/a.csv", "test/a.csv", "stray.csv")
    assert found.files == ("stray.csv", "task-09/a.csv", "task-10/a.csv", "task-9/a.csv", "test/a.csv")
    expected = {"task-09": [2, 3, 6, 7], "task-10": [4, 5]}
    assert laid_out(tmp_path, found) == (expected, ["stray.csv: belongs to no task"])


def test_without_any_sign_everything_is_one_task(tmp_path: Path) -> None:
    assert laid_out(tmp_path, grown(tmp_path, "a.csv", "test/b.csv")) == ({"all": [0, 1]}, [])


def test_a_manifest_says_which_files_are_which_task(tmp_path: Path) -> None:
    found = grown(tmp_path, "2023/a.csv", "2023/b.csv", "2024.csv", "left.csv", "test/a.csv")
    plain = [{"name": "new", "files": ["2024*", "*/b.csv"]}, {"name": "old", "files": ["2023/*", "2022/*"]}]
    written(tmp_path / "tasks.yaml", json.dumps(plain))
    assert not read_folder(tmp_path).faults
    assert laid_out(tmp_path, found) == (
        {"new": [2, 3, 4, 5], "old": [0, 1]},
        [
            "2023/b.csv: belongs to task 'new' and to 'old'; the first keeps it",
            "tasks.yaml: task 'old': '2022/*' matches no file that could be read",
            "left.csv: belongs to no task",
        ],
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "must be a list of tasks, each with name and files"),
        ("a: [", "is no YAML"),
        ("[" * 5000, "is no YAML"),
        ("- {name: 12:30, files: [a]}", "is no YAML"),
        ("- a", "task 1 has str; must have exactly name and files"),
        ("- {name: a, since: 2023-01-01}", r"task 1 has \['name', 'since'\]; must have exactly name and files"),
        ("- {name: 1, files: [a]}", "task 1 must have a name that is text; put quotes around a number"),
        ("[{name: a, files: [b]}, {name: a, files: [c]}]", "task 2 has the name 'a' of one before it"),
        ("- {name: a, files: b}", "task 1 must have files: a list of patterns"),
        ("- {name: a, files: [1]}", "task 1 must have files: a list of patterns"),
        ("#" * (1 << 20) + "\n", "has 1,048,577 bytes, more than the 1,048,576 that are read"),
    ],
)
def test_a_manifest_that_cannot_be_followed_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    found = grown(tmp_path, "a.csv")
    written(tmp_path / "tasks.yaml", text)
    with pytest.raises(ConfigError, match=f"tasks.yaml: {reason}"):
        tasks_of(tmp_path, found)


# The data set


def clusters(n: int, seed: int = 0) -> str:
    """Return n items of each of four classes as csv: Gaussian clusters in five dimensions."""
    y = np.arange(4 * n) % 4
    x = np.random.default_rng(seed).normal(size=(4 * n, 5)) + 4 * np.eye(4, 5)[y]
    lines = [",".join([*map(str, row), f"class {label}"]) for row, label in zip(x.tolist(), y.tolist(), strict=True)]
    return "\n".join(["a,b,c,d,e,label", *lines]) + "\n"


def test_a_share_of_every_class_is_held_out(tmp_path: Path) -> None:
    written(tmp_path / "own" / "task-1" / "a.csv", clusters(10))
    written(tmp_path / "own" / "task-2" / "a.csv", clusters(10, seed=1))
    data = Folder(path="own", test=0.25).load(str(tmp_path))
    assert np.bincount(data.test_y).tolist() == [5] * 4
    assert np.bincount(data.y).tolist() == [15] * 4
    assert (data.classes, data.scale, data.notes) == (4, 1.0, ())
    everything = read_folder(tmp_path / "own").x
    assert sorted([*data.x.tolist(), *data.test_x.tolist()]) == sorted(everything.tolist())


def test_a_folder_of_test_items_is_what_is_tested_on(tmp_path: Path) -> None:
    written(tmp_path / "0.npz", npz(x=np.full((2, 3), 255, np.uint8), y=[3, 4]))
    written(tmp_path / "test" / "0.npz", npz(x=np.zeros((1, 3), np.uint8), y=[4]))
    data = Folder(path=str(tmp_path)).load(None)
    assert (data.y.tolist(), data.test_y.tolist(), data.classes) == ([0, 1], [1], 2)
    assert (data.x * data.scale).tolist() == [[1, 1, 1]] * 2


@pytest.mark.parametrize(
    ("path", "root", "files", "reason"),
    [
        ("own", False, {}, r"stream.dataset.path = 'own': it lies below data.root; set data.root or FEDCL_DATA, or an"),
        ("owl", True, {}, r"owl' is no folder that can be read \(No such file"),
        ("own", True, {}, "stream.dataset.path = 'own': no item can be read; it is empty"),
        ("own", True, {"a.csv": ""}, "no item can be read; the first fault of 1: a.csv: is empty"),
        ("own", True, {"a.csv": CSV[:16]}, "test = 0.2 of every class rounds to no item"),
        ("own", True, {"a.csv": CSV, "test/b.csv": ""}, "folder test/ has no good item; the first fault: test/b.csv"),
        ("own", True, {"test/a.csv": CSV}, "its training split is empty"),
    ],
)
def test_a_folder_that_gives_no_data_set_is_refused(
    tmp_path: Path, path: str, root: bool, files: dict[str, str], reason: str
) -> None:
    (tmp_path / "own").mkdir()
    for name, content in files.items():
        written(tmp_path / "own" / name, content)
    with pytest.raises(ConfigError, match=reason):
        Folder(path=path).load(str(tmp_path) if root else None)


def test_notes_count_the_faults_and_name_five(tmp_path: Path) -> None:
    for number in range(7):
        written(tmp_path / f"{number}.txt", "")
    written(tmp_path / "a.csv", CSV)
    lines = list(notes(read_folder(tmp_path)))
    assert lines[0] == "data folder: 7 faults, the first 5 of them here; taken: 3 items of 1 file"
    assert [line.split(":")[0] for line in lines[1:]] == ["0.txt", "1.txt", "2.txt", "3.txt", "4.txt"]


def test_a_run_learns_from_a_folder_and_tells_what_it_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "own"
    written(folder / "good.csv", clusters(40))
    written(folder / "bad[red].csv", "")
    said, errors = (Console(file=io.StringIO(), width=200, highlight=False) for _ in range(2))
    scenario = tiny(f"stream.dataset={{name: folder, path: '{folder}'}}", "client.epochs=2")
    outcome = api.run(scenario, out=tmp_path / "run", listeners=[Progress(said, errors)])
    assert outcome.code == 0, outcome.error
    start = api.load(tmp_path / "run").events[0]
    assert start["notes"] == [
        "data folder: 1 fault; taken: 160 items of 1 file",
        "bad[red].csv: is empty",
    ]
    assert isinstance(errors.file, io.StringIO)
    assert errors.file.getvalue().splitlines()[:2] == [f"note: {note}" for note in start["notes"]]
    assert outcome.results["metrics"]["plasticity"] > 0.8
