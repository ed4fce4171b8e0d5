"""Predictions go by names: columns of tables and classes are those of the training, whatever order a file has."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fedcl
from fedcl import api
from fedcl.cli import main
from fedcl.errors import ConfigError
from fedcl.inputs import INPUTS, describe, described, read_inputs
from fedcl.predict import predict, read_given
from fedcl.streams.dataset import Dataset, Standard
from tests.federations import tiny

COLUMNS = ("age", "dose", "weight")
COMMON = ("client.epochs=3", "model={name: linear}", "client.optimizer.lr=0.5")


def rows(n: int) -> np.ndarray:
    """Return inputs (n, 3) whose class is which column is the largest."""
    x = np.random.default_rng(0).random((n, 3))
    x[np.arange(n), np.arange(n) % 3] += 2
    return x.round(3)


def table(x: np.ndarray, columns: tuple[str, ...], **extra: Any) -> str:
    """Return a CSV file with the inputs' columns in an order, behind others."""
    file = io.StringIO()
    lines = csv.writer(file, lineterminator="\n")
    lines.writerow([*extra, *columns])
    for number, row in enumerate(x.tolist()):
        given = dict(zip(COLUMNS, row, strict=True))
        lines.writerow([*(values[number] for values in extra.values()), *(given[name] for name in columns)])
    return file.getvalue()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> fedcl.Result:
    """Return a run on a table whose folder has gone since."""
    folder = tmp_path_factory.mktemp("predict")
    names = ["low", "caf\u00e9", "high"]
    (folder / "data").mkdir()
    labels = [names[number % 3] for number in range(300)]
    (folder / "data" / "a.csv").write_text(table(rows(300), COLUMNS, label=labels))
    dataset = {"name": "folder", "path": str(folder / "data")}
    result = api.run(tiny(*COMMON), out=folder / "run", **{"stream.dataset": dataset, "stream.tasks": 1})
    (folder / "data" / "a.csv").unlink()
    return api.load(result.directory)


def printed(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[list[dict[str, str]], str]:
    capsys.readouterr()
    assert main(["predict", *map(str, arguments)]) == 0
    out, err = capsys.readouterr()
    return list(csv.DictReader(out.splitlines())), err


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert main(["predict", *map(str, arguments)]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert len(err.splitlines()) == 1
    return err


def test_a_run_keeps_what_its_model_takes(trained: fedcl.Result) -> None:
    kept = json.loads((trained.directory / INPUTS).read_text())
    assert kept == {
        "version": 1, "shape": [3], "dtype": "float32", "scale": 1.0, "shift": 0.0, "standard": None,
        "columns": ["age", "dose", "weight"], "classes": ["caf\u00e9", "high", "low"],
    }  # fmt: skip


def test_classes_are_told_by_name_with_the_probabilities_of_all(
    trained: fedcl.Result, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.csv").write_text(table(rows(6), COLUMNS))
    told, err = printed(capsys, trained.directory, tmp_path / "a.csv")
    assert [row["class"] for row in told] == ["low", "caf\u00e9", "high"] * 2
    assert list(told[0]) == ["file", "row", "class", "probability", "p_caf\u00e9", "p_high", "p_low"]
    for row in told:
        chances = {name: float(row[f"p_{name}"]) for name in ("caf\u00e9", "high", "low")}
        assert sum(chances.values()) == pytest.approx(1, abs=2e-6)
        assert max(chances, key=lambda name: chances[name]) == row["class"]
        assert float(row["probability"]) == chances[row["class"]]
    assert not err


@settings(max_examples=20)
@given(st.permutations(COLUMNS), st.booleans(), st.booleans())
def test_the_order_of_columns_does_not_count(
    trained: fedcl.Result, tmp_path_factory: pytest.TempPathFactory, order: list[str], label: bool, index: bool
) -> None:
    """Nor does it that there are labels, or the index that pandas writes."""
    folder = tmp_path_factory.mktemp("order")
    extra = {**({"": range(9)} if index else {}), **({"label": ["low"] * 9} if label else {})}
    (folder / "a.csv").write_text(table(rows(9), tuple(order), **extra))
    given = read_given([folder / "a.csv"], trained.config, trained.outline.dataset)
    assert given.x.tolist() == rows(9).astype(np.float32).tolist()
    assert [note.split(":")[0] for note in given.notes] == [
        "left out of the inputs as the index that pandas writes"
    ] * index


@pytest.mark.parametrize(
    ("heading", "said"),
    [
        ("age,dose,wieght", "a.csv: lacks the column 'weight', which the model takes; did you mean 'wieght'?"),
        ("age,dose,weight,height", "a.csv: has the column 'height', which the model does not know; leave it out"),
        ("age,dose,age", "a.csv: has 2 columns 'age'"),
        ("1,2,3", "a.csv: lacks the column 'age', which the model takes"),
    ],
)
def test_other_columns_are_refused_in_one_sentence(
    trained: fedcl.Result, tmp_path: Path, capsys: pytest.CaptureFixture[str], heading: str, said: str
) -> None:
    (tmp_path / "a.csv").write_text(f"{heading}\n{','.join('1' * (heading.count(',') + 1))}\n")
    assert said in refused(capsys, trained.directory, tmp_path / "a.csv")


def test_arrays_have_no_names_and_are_taken_as_they_are(trained: fedcl.Result, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", rows(3))
    np.savez(tmp_path / "b.npz", x=rows(3), other=np.zeros(1))
    given = read_given([tmp_path / "a.npy", tmp_path / "b.npz"], trained.config, trained.outline.dataset)
    assert given.x.tolist() == [*rows(3).astype(np.float32).tolist()] * 2
    assert list(given.places()) == [(str(tmp_path / name), row) for name in ("a.npy", "b.npz") for row in range(3)]


def test_a_folder_is_read_as_training_reads_one_and_what_is_left_out_is_named(
    trained: fedcl.Result, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "task-001").mkdir()
    (tmp_path / "task-001" / "a.csv").write_text(table(rows(2), COLUMNS, label=["low", "high"]))
    (tmp_path / "b.csv").write_text("age,dose,weight\n1,2,nan\n")
    (tmp_path / "c.txt").write_text("hello")
    told, err = printed(capsys, trained.directory, tmp_path)
    assert [(row["file"], row["row"]) for row in told] == [(f"{tmp_path}/task-001/a.csv", str(n)) for n in (0, 1)]
    assert err.splitlines()[0] == f"fedcl: note: {tmp_path}: 2 files left out, the first here"
    assert "b.csv: must hold finite numbers, but row 0 has NaN" in err
    assert "c.txt: is of a kind that is not read" in err
    (tmp_path / "task-001" / "a.csv").unlink()
    assert "b.csv: must hold finite numbers" in refused(capsys, trained.directory, tmp_path)


def test_pictures_and_class_folders_are_predicted_by_the_names_of_the_folders(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed: pip install pillow")
    for folder, grey in (("night", 20), ("day", 230)):
        (tmp_path / "data" / folder).mkdir(parents=True)
        for number in range(40):
            pixels = np.random.default_rng(number).integers(grey - 20, grey + 20, (6, 6)).astype(np.uint8)
            image.fromarray(pixels).save(tmp_path / "data" / folder / f"{number:02}.png")
    dataset = {"name": "folder", "path": str(tmp_path / "data"), "size": 4}
    api.run(tiny(*COMMON), out=tmp_path / "run", **{"stream.dataset": dataset, "stream.tasks": 1, "stream.clients": 2})
    told, _ = printed(capsys, tmp_path / "run", tmp_path / "data")
    assert len(told) == 80
    assert all(Path(row["file"]).parent.name == row["class"] for row in told)
    one, _ = printed(capsys, tmp_path / "run", tmp_path / "data" / "day" / "07.png")
    assert one == [next(row for row in told if row["file"].endswith("day/07.png"))]


def test_pictures_are_no_inputs_of_a_table_s_model(
    trained: fedcl.Result, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    assert "is a picture (uint8), but the model was trained on float32" in refused(
        capsys, trained.directory, tmp_path / "a.png"
    )


def test_a_run_from_before_the_file_asks_its_data(tmp_path: Path) -> None:
    """Its probabilities are the same with and without the file."""
    run = api.run(tiny(*COMMON), out=tmp_path / "run")
    x = run.stream().dataset.test_x[:5]
    with_file = list(predict(run.model(), run.outline, x))
    (run.directory / INPUTS).unlink()
    old = api.load(run.directory)
    assert list(predict(old.model(), old.outline, x)) == with_file
    assert old.outline.dataset.class_names == run.outline.dataset.class_names


# The file


def data_sets() -> st.SearchStrategy[Dataset]:
    def made(shape: list[int], dtype: str, norm: bool, names: list[str]) -> Dataset:
        c = 1 if len(shape) == 2 else shape[-1]
        x, y = np.empty((0, *shape), dtype), np.empty(0, np.int64)
        standard = Standard(np.arange(c) / 3, np.arange(c) + 0.1, 7) if norm else None
        columns = tuple(f"c{number}" for number in range(shape[0])) if len(shape) == 1 else ()
        return Dataset(
            x=x, y=y, test_x=x, test_y=y, classes=len(names), scale=1 / 255, shift=-0.5, elsewhere=True,
            names=tuple(names), columns=columns, standard=standard,
        )  # fmt: skip

    shapes = st.lists(st.integers(1, 9), min_size=1, max_size=3)
    return st.builds(
        made, shapes, st.sampled_from(["uint8", "float32"]), st.booleans(), st.lists(st.text(), min_size=1)
    )


@given(data_sets())
def test_what_a_data_set_is_survives_being_written(dataset: Dataset) -> None:
    plain = describe(dataset)
    assert describe(described(json.loads(json.dumps(plain)))) == plain


DAMAGE = {
    "version": [2, None], "shape": [[0], ["3"], "3", None, [1 << 20, 1 << 20]], "dtype": ["object", 3, None, ["uint8"]],
    "scale": ["1", None, True], "shift": [[0.0]], "columns": [["a"], "abc", [1, 2, 3], None], "classes": [3, None, [1]],
    "standard": [{"mean": [0.0] * 3, "deviation": [0.0] * 3, "n": 3}, {"mean": [0.0] * 3}, 3, [1],
                 {"mean": [0.0], "deviation": [1.0], "n": 1}],
}  # fmt: skip


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in DAMAGE.items() for value in values])
def test_a_file_that_says_what_cannot_be_is_one_sentence(
    trained: fedcl.Result, tmp_path: Path, key: str, value: Any
) -> None:
    kept = json.loads((trained.directory / INPUTS).read_text())
    (tmp_path / INPUTS).write_text(json.dumps(kept | {key: value}))
    with pytest.raises(ConfigError, match=r"inputs\.json' "):
        read_inputs(tmp_path)


def said(folder: Path) -> str:
    """Return in a sentence what a file holds, or why it cannot be read."""
    try:
        return str(read_inputs(folder)).replace("\n", " ")
    except ConfigError as error:
        return str(error)


@given(st.integers(0, 10_000), st.integers(0, 255))
def test_a_damaged_file_is_read_or_one_sentence(
    trained: fedcl.Result, tmp_path_factory: pytest.TempPathFactory, place: int, byte: int
) -> None:
    content = bytearray((trained.directory / INPUTS).read_bytes())
    content[place % len(content)] = byte
    folder = tmp_path_factory.mktemp("damaged")
    for each in (bytes(content), bytes(content[: place % len(content)])):
        (folder / INPUTS).write_bytes(each)
        assert len(said(folder).splitlines()) == 1
