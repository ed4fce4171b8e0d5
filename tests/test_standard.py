"""Inputs are standardised from training data only, by channel or column, and data that is not scaled is told."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedcl import api, config
from fedcl.inputs import read_inputs
from fedcl.predict import predict
from fedcl.source import source
from fedcl.streams import Dataset, build_stream
from fedcl.streams.dataset import Standard
from fedcl.streams.folder import Folder
from fedcl.streams.standard import standard_of
from tests.federations import tiny

SHAPES = [(3,), (4, 4), (2, 2, 3)]


def folder(path: Path, n: int = 60) -> Path:
    """Write a table of pendigits' kind: two columns from 0 to 100, one with a large offset, one constant."""
    path.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    rows = [f"{rng.integers(101)},{1e6 + number % 7},5,{number % 3}" for number in range(n)]
    (path / "a.csv").write_text("\n".join(["near,far,same,label", *rows, ""]))
    return path


def scenario(path: Path, **settings: Any) -> config.Scenario:
    dataset = {"name": "folder", "path": str(path), **settings}
    return config.load(config.as_dict(tiny("stream.tasks=1")), {"stream.dataset": dataset})


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
@pytest.mark.parametrize("shape", SHAPES)
def test_mean_and_deviation_are_those_of_numpy(shape: tuple[int, ...], dtype: str) -> None:
    x = (np.random.default_rng(1).random((9000, *shape)) * 200).astype(dtype)
    axes = (0, 1, 2) if len(shape) == 2 else tuple(range(len(shape)))
    found = standard_of(x)
    assert found.n == 9000
    assert found.mean == pytest.approx(np.atleast_1d(x.mean(axes, np.float64)), rel=1e-12)
    assert found.deviation == pytest.approx(np.atleast_1d(x.std(axes, np.float64)), rel=1e-12)


@given(st.sampled_from(SHAPES), st.booleans(), st.booleans())
def test_the_model_sees_them_standardised_before_a_task_permutes_them(
    shape: tuple[int, ...], permuted: bool, ready: bool
) -> None:
    rng = np.random.default_rng(2)
    x = rng.integers(0, 256, (6, *shape)).astype(np.uint8)
    y = np.arange(6) % 3
    norm = standard_of(x)
    data = Dataset(x=x, y=y, test_x=x, test_y=y, classes=3, scale=1 / 255, standard=norm)
    kind = "domain-incremental" if permuted else "class-incremental"
    stream = build_stream(tiny(f"stream.kind={kind}", "stream.clients=1"), data)
    given = source(stream, "train", torch.float64, torch.device("cpu"))
    seen = (given.ready() if ready else given).inputs(torch.arange(6), torch.ones(6, dtype=torch.int64))
    expected = ((x - norm.mean) / norm.deviation).reshape(6, -1)
    if stream.permutations is not None:
        expected = expected[:, stream.permutations[1]]
    assert seen.reshape(6, -1).numpy() == pytest.approx(expected, rel=1e-12)


def test_a_folder_is_standardised_from_its_training_items_alone(tmp_path: Path) -> None:
    data = Folder(path=str(folder(tmp_path)), standardize=True).load(None)
    assert data.standard is not None
    assert (data.standard.n, len(data.test_x)) == (48, 12)
    assert data.standard.mean == pytest.approx(data.x.mean(0, np.float64), rel=1e-12)
    assert data.standard.deviation[:2] == pytest.approx(data.x.std(0, np.float64)[:2], rel=1e-9)
    assert data.standard.deviation[2] == 1  # it never changes: the model sees 0
    few = Folder(path=str(tmp_path), standardize=True, limit=6).load(None)
    assert np.bincount(few.y).tolist() == [2, 2, 2]
    assert len(few.test_x) == 12
    assert few.standard is not None
    assert few.standard.mean.tolist() == data.standard.mean.tolist()  # of all training items, as of IDX data


def test_a_run_keeps_it_and_predicts_by_it_without_the_data(tmp_path: Path) -> None:
    run = api.run(scenario(folder(tmp_path / "data"), standardize=True), out=tmp_path / "run")
    stream = run.stream()
    kept = read_inputs(run.directory)
    assert kept is not None
    assert isinstance(kept.standard, Standard)
    assert stream.dataset.standard is not None
    assert kept.standard.mean.tolist() == stream.dataset.standard.mean.tolist()
    assert not run.events[0]["notes"]
    x = stream.dataset.test_x[:5]
    assert list(predict(run.model(), run.outline, x)) == list(predict(run.model(), stream, x))
    assert run.metrics["acc"] is not None


def test_data_that_is_not_scaled_is_told_once_with_the_remedy(tmp_path: Path) -> None:
    path = folder(tmp_path)
    (note,) = build_stream(scenario(path)).dataset.notes
    assert note == (
        "the inputs are not scaled (column 'far' has root mean square 1e+06): training may diverge; "
        "set stream.dataset.standardize=true"
    )
    assert not build_stream(scenario(path, standardize=True)).dataset.notes


@pytest.mark.parametrize(("size", "told"), [(9.9, 0), (10.1, 1)])
def test_only_large_numbers_are_told(size: float, told: int) -> None:
    x, y = np.full((40, 5), size, np.float32), np.arange(40) % 4
    data = Dataset(x=x, y=y, test_x=x, test_y=y, classes=4)
    assert len(build_stream(tiny(), data).dataset.notes) == told
