"""Federated Reconnaissance: Omniglot's files, base classes before missions, and the three evaluations of a mission."""

import lzma
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fedcl import api, config
from fedcl.api import load
from fedcl.errors import ConfigError
from fedcl.streams import build_stream
from fedcl.streams.omniglot import Omniglot, read_pictures, shrunk
from fedcl.streams.schedule import Synchronous
from tests.federations import journal, run, tiny

BESIDE = Path(__file__).parents[2] / "shared" / "data"
MISSIONS = (
    "stream.dataset={name: synthetic, classes: 8, features: 5, separation: 2, samples: 320, test_samples: 160}",
    "stream.tasks=4", "stream.base_classes=2", "stream.clients=2", "stream.partition={kind: shards, per_client: 1}",
    "stream.schedule.rounds_per_task=1", "client.method=frozen", "server.method={name: prototypes, missions: true}",
)  # fmt: skip


def omniglot(folder: Path, part: str, pictures: NDArray[np.bool_], names: list[str]) -> Path:
    """Write pictures (n, 105, 105) in the packed form."""
    padded = np.concatenate([pictures, np.zeros((len(pictures), 105, 7), np.bool_)], axis=2)
    bits = lzma.compress(np.packbits(padded, axis=2).tobytes())
    packed = {"bits_xz": bits, "names_xz": lzma.compress("\n".join(names).encode())}
    path = folder / f"omniglot_{part}.npz"
    np.savez(path, n=len(pictures), **{name: np.frombuffer(each, np.uint8) for name, each in packed.items()})
    return path


def drawn(characters: int, alphabet: str) -> tuple[NDArray[np.bool_], list[str]]:
    """Return twenty drawings of each of some characters."""
    pictures = np.random.default_rng(characters).random((20 * characters, 105, 105)) < 0.3
    names = [f"{alphabet}/character{c:02d}/{c:04d}_{drawer:02d}" for c in range(characters) for drawer in range(1, 21)]
    return pictures, names


# The files


def test_pictures_come_out_as_they_went_in(tmp_path: Path) -> None:
    pictures, names = drawn(3, "Tifinagh")
    found, characters = read_pictures(omniglot(tmp_path, "background", pictures, names))
    assert (found == pictures).all()
    assert characters == [name.rsplit("/", 1)[0] for name in names]


def test_a_small_picture_has_the_share_of_ink_on_each_pixels_area() -> None:
    pictures = np.random.default_rng(0).random((2, 105, 105)) < 0.5
    thirds = pictures.reshape(2, 35, 3, 35, 3).mean((2, 4))  # 105 = 3 * 35: whole pixels
    assert (shrunk(pictures, 35) == np.rint(255 * thirds.astype(np.float32))).all()
    half = np.zeros((1, 105, 105), np.bool_)
    half[:, :, :2] = True  # 28 pixels: the first is 3.75 wide, so 2 / 3.75 of it is ink
    assert shrunk(half, 28)[0, :, 0].tolist() == [round(255 * 2 / 3.75)] * 28
    assert shrunk(half, 28)[0, :, 1:].max() == 0
    assert (shrunk(np.ones((1, 105, 105), np.bool_), 28) == 255).all()


def test_background_comes_before_the_field_and_five_drawings_are_for_testing(tmp_path: Path) -> None:
    folder = tmp_path / "omniglot"
    folder.mkdir()
    omniglot(folder, "background", *drawn(3, "Old"))
    omniglot(folder, "evaluation", *drawn(4, "New"))
    data = Omniglot(size=7).load(str(tmp_path))
    assert data.classes == 7
    assert np.bincount(data.y).tolist() == [15] * 7
    assert np.bincount(data.test_y).tolist() == [5] * 7
    some, again = (Omniglot(size=7, field=2).load(str(tmp_path)) for _ in range(2))
    assert some.classes == 5
    assert (some.x == again.x).all()
    field = Omniglot(size=7, part="evaluation").load(str(tmp_path))
    assert (field.x == data.x[data.y >= 3]).all()
    with pytest.raises(ConfigError, match=r"stream\.dataset\.field = 5: the evaluation set has 4 characters"):
        Omniglot(field=5).load(str(tmp_path))


def test_a_damaged_file_is_told_in_one_sentence(tmp_path: Path) -> None:
    folder = tmp_path / "omniglot"
    folder.mkdir()
    with pytest.raises(ConfigError, match=r"omniglot_background\.npz: cannot be read as packed Omniglot"):
        Omniglot().load(str(tmp_path))
    path = omniglot(folder, "background", *drawn(2, "Old"))
    content = dict(np.load(path))
    for change in (
        {"n": 10**9},
        {"n": 39},
        {"n": 41},
        {"bits_xz": content["bits_xz"][:-9]},
        {"names_xz": np.zeros(4, "u1")},
    ):
        np.savez(path, **{**content, **change})
        with pytest.raises(ConfigError, match="cannot be read as packed Omniglot"):
            read_pictures(path)
    np.savez(path, **{**content, "n": np.array([{}], object)})
    with pytest.raises(ConfigError, match="cannot be read as packed Omniglot"):  # nothing is unpickled
        read_pictures(path)


def test_real_omniglot() -> None:
    """964 and 659 characters, twenty drawings each, ink on 5 to 15 % of the area."""
    root = os.environ.get("FEDCL_DATA") or (str(BESIDE) if BESIDE.is_dir() else None)
    if root is None or not (Path(root) / "omniglot").is_dir():
        pytest.skip("no real data: set FEDCL_DATA to a folder with omniglot")
    data = Omniglot().load(root)
    assert data.classes == 964 + 659
    assert set(np.bincount(data.y)) == {15}
    assert set(np.bincount(data.test_y)) == {5}
    assert 0.05 < data.x.mean() / 255 < 0.15


# Base classes and missions


def test_base_classes_come_first_and_the_others_are_split() -> None:
    scenario = tiny(*MISSIONS)
    assert [task.classes for task in build_stream(scenario).tasks] == [(0, 1), (2, 3), (4, 5), (6, 7)]
    mixed = build_stream(tiny(*MISSIONS, "stream.shuffle_classes=true"))
    assert mixed.tasks[0].classes == (0, 1)
    assert sorted(c for task in mixed.tasks[1:] for c in task.classes) == [2, 3, 4, 5, 6, 7]
    for tasks in (1, 8):
        with pytest.raises(ConfigError, match=r"stream\.base_classes = 2: leaves 6 of 8 classes"):
            build_stream(tiny(*MISSIONS, f"stream.tasks={tasks}"))


def test_the_first_task_may_last_longer() -> None:
    timeline = Synchronous(rounds_per_task=2, first_rounds=5).timeline(3, 4, 3, 0)
    assert timeline.begin.tolist() == [[0, 5, 7, 9, 11]] * 3
    assert timeline.rounds == 11


def test_clients_are_measured_after_their_own_update_and_before_it_is_merged(tmp_path: Path) -> None:
    """By hand: means of everybody's items of earlier tasks and one's own of this one, on one's own test items."""
    scenario = tiny(*MISSIONS)
    results = run(scenario, tmp_path)
    stream, module = build_stream(scenario), load(tmp_path).model()
    events = [event for event in journal(tmp_path) if event["event"] == "local"]
    assert [event["round"] for event in events] == [1, 2, 3, 4]
    seen: dict[str, list[float]] = {"base": [], "earlier": [], "mission": []}

    def embedded(x: NDArray[np.float32]) -> torch.Tensor:
        with torch.no_grad():
            return module.features(torch.from_numpy(x)).double()

    for task, event in enumerate(events):
        assert event["clients"] == [0, 1]
        assert event["tasks"] == [task, task]
        for row, client in enumerate((0, 1)):
            known = [stream.train.cell(who, each) for each in range(task) for who in (0, 1)]
            items = np.concatenate([*known, stream.train.cell(client, task)])
            features, labels = embedded(stream.dataset.x[items]), stream.dataset.y[items]
            means = torch.full((8, features.shape[1]), torch.inf, dtype=torch.float64)
            for label in np.unique(labels).tolist():
                means[label] = features[torch.from_numpy(labels == label)].mean(0)
            for part, tasks in {"base": [0], "earlier": range(1, task), "mission": [task]}.items():
                cells = [stream.test.cell(client, each) for each in tasks]
                told = event["accuracy"][part][row]
                if not cells:
                    assert told is None
                    continue
                own = np.concatenate(cells)
                distances = (embedded(stream.dataset.test_x[own])[:, None] - means).square().sum(2)
                right = (distances.argmin(1).numpy() == stream.dataset.test_y[own]).mean()
                assert told == pytest.approx(right)
                seen[part].append(right)
    assert results["clients"]["local"] == pytest.approx({part: np.mean(each) for part, each in seen.items()})


def test_nobody_is_measured_without_being_asked(tmp_path: Path) -> None:
    results = run(tiny(*MISSIONS, "server.method.missions=false"), tmp_path)
    assert "local" not in results["clients"]
    assert all(event["event"] != "local" for event in journal(tmp_path))


@pytest.mark.slow
def test_a_small_reconnaissance_runs_as_shipped(tmp_path: Path) -> None:
    """Written Omniglot-like files, the shipped scenario with fewer characters: three evaluations a mission."""
    folder = tmp_path / "omniglot"
    folder.mkdir()
    omniglot(folder, "background", *drawn(12, "Old"))
    omniglot(folder, "evaluation", *drawn(10, "New"))
    scenario = config.load(
        "reconnaissance-omniglot",
        [f"data.root={tmp_path}", "stream.dataset.field=10", "stream.base_classes=12", "stream.tasks=3",
         "stream.schedule.first_rounds=2", "server.method.base_rounds=2", "model.width=4", "engine.kind=inline"],
    )  # fmt: skip
    outcome = api.run(scenario, out=tmp_path / "run")
    assert outcome.code == 0, outcome.error
    assert np.array(outcome.results["accuracy_matrix"]).shape == (3, 3)
    assert set(outcome.results["clients"]["local"]) == {"base", "earlier", "mission"}
