"""IDX files: read as they are written, refused in one sentence where they are not what they say."""

import gzip
import math
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedcl.config import DataConfig, Scenario, StreamConfig
from fedcl.errors import ConfigError
from fedcl.streams import build_stream
from fedcl.streams.idx import IDX, MNIST, FashionMNIST, balanced, read_idx
from fedcl.streams.partition import IID
from fedcl.streams.schedule import Synchronous

BESIDE = Path(__file__).resolve().parents[2] / "shared" / "data"


def real_data() -> str:
    root = os.environ.get("FEDCL_DATA") or (str(BESIDE) if BESIDE.is_dir() else None)
    if root is None:
        pytest.skip("no real data: set FEDCL_DATA to a folder with mnist and fashion_mnist")
    return root


def packed(array: np.ndarray, sizes: tuple[int, ...] | None = None) -> bytes:
    sizes = sizes or array.shape
    return struct.pack(f">4B{len(sizes)}I", 0, 0, 8, len(sizes), *sizes) + array.astype(np.uint8).tobytes()


IMAGES = np.arange(5 * 2 * 3).reshape(5, 2, 3)
LABELS = np.array([0, 1, 2, 1, 0])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(packed(IMAGES)))
    (folder / "train-labels-idx1-ubyte").write_bytes(packed(LABELS))
    (folder / "t10k-images-idx3-ubyte").write_bytes(packed(IMAGES[:2]))
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(packed(LABELS[:2])))
    return tmp_path


def test_plain_and_packed_files_are_read_as_written(root: Path):
    data = IDX(folder="tiny").load(str(root))
    assert data.x.tolist() == IMAGES.tolist()
    assert data.y.tolist() == LABELS.tolist()
    assert data.test_x.tolist() == IMAGES[:2].tolist()
    assert data.test_y.tolist() == [0, 1]
    assert (data.classes, data.scale, data.shift) == (3, 1 / 255, 0.0)
    assert data.x.dtype == np.uint8
    assert data.y.dtype == np.int64


@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 5)),
    seed=st.integers(0, 99),
    zipped=st.booleans(),
)
def test_any_images_survive_the_round_trip(tmp_path_factory, shape, seed, zipped):
    images = np.random.default_rng(seed).integers(0, 256, shape)
    path = tmp_path_factory.mktemp("idx") / ("images.gz" if zipped else "images")
    path.write_bytes(gzip.compress(packed(images)) if zipped else packed(images))
    assert read_idx(path, 3).tolist() == images.tolist()


GOOD = packed(IMAGES)
ZIPPED = gzip.compress(GOOD, mtime=0)
DAMAGED = {
    "magic": (b"\x00\x00\x0d\x03" + GOOD[4:], "begins with 00000d03 instead of 00000803"),
    "labels for images": (packed(LABELS), "begins with 00000801 instead of 00000803"),
    "empty": (b"", "ends after 0 of 4 bytes"),
    "short header": (GOOD[:9], "ends after 5 of 12 bytes"),
    "short": (GOOD[:-1], r"announces sizes \(5, 2, 3\), which a file of its length cannot hold|ends after 29 of 30"),
    "long": (GOOD + b"\x00", "goes on behind the 30 bytes"),
    "no items": (packed(np.zeros((0, 2, 3))), r"announces sizes \(0, 2, 3\)"),
    "huge": (packed(IMAGES, (2**32 - 1, 2**32 - 1, 2**32 - 1)), "which a file of its length cannot hold"),
}
DAMAGED_PACKED = {
    "truncated": (ZIPPED[:-12], "fetch the file again"),
    "checksum": (ZIPPED[:-8] + b"\x00\x00\x00\x00" + ZIPPED[-4:], "CRC check failed"),
    "not packed": (GOOD, "Not a gzipped file"),
    "deflate": (ZIPPED[:12] + b"\xff\xff\xff" + ZIPPED[15:], "fetch the file again"),
    "huge": (gzip.compress(packed(IMAGES, (60_000, 28, 28))), "which a file of its length cannot hold"),
    "announces more": (gzip.compress(packed(IMAGES, (500, 2, 3))), "ends after 30 of 3,000 bytes"),
}


@pytest.mark.parametrize(("content", "reason"), DAMAGED.values(), ids=DAMAGED)
def test_damaged_plain_files(tmp_path: Path, content: bytes, reason: str):
    path = tmp_path / "images"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=reason) as caught:
        read_idx(path, 3)
    assert str(caught.value).startswith(f"{path}: ")
    assert "set data.root or FEDCL_DATA" in str(caught.value)


@pytest.mark.parametrize(("content", "reason"), DAMAGED_PACKED.values(), ids=DAMAGED_PACKED)
def test_damaged_packed_files(tmp_path: Path, content: bytes, reason: str):
    path = tmp_path / "images.gz"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=reason):
        read_idx(path, 3)


@given(cut=st.integers(0, len(ZIPPED) - 1))
def test_every_truncation_of_a_packed_file_is_noticed(tmp_path_factory, cut: int):
    path = tmp_path_factory.mktemp("cut") / "images.gz"
    path.write_bytes(ZIPPED[:cut])
    with pytest.raises(ConfigError, match="fetch the file again"):
        read_idx(path, 3)


def test_a_missing_file_or_root_is_named(root: Path):
    (root / "tiny" / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(ConfigError, match=r"t10k-labels-idx1-ubyte: neither it nor its \.gz .* FEDCL_DATA"):
        IDX(folder="tiny").load(str(root))
    with pytest.raises(
        ConfigError, match=r"data\.root = None: folder 'mnist' lies below it; set data\.root or FEDCL_DATA"
    ):
        MNIST().load(None)


def test_labels_must_fit_the_images(root: Path):
    (root / "tiny" / "train-labels-idx1-ubyte").write_bytes(packed(LABELS[:4]))
    with pytest.raises(ConfigError, match="train-labels-idx1-ubyte: 4 labels for 5 images"):
        IDX(folder="tiny").load(str(root))


def test_test_labels_outside_the_training_classes_are_refused(root: Path):
    (root / "tiny" / "t10k-labels-idx1-ubyte").write_bytes(packed(np.array([0, 9])))
    with pytest.raises(ConfigError, match="test labels reach from 0 to 9"):
        IDX(folder="tiny").load(str(root))


@given(counts=st.lists(st.integers(0, 20), min_size=1, max_size=6), limit=st.integers(1, 60), seed=st.integers(0, 99))
def test_a_limit_balances_classes_as_far_as_they_go(counts, limit, seed):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    chosen = balanced(labels, limit)
    assert len(chosen) == min(limit, len(labels))
    assert (np.diff(chosen) > 0).all()
    taken = np.bincount(labels[chosen], minlength=len(counts))
    left = np.array(counts) > taken
    assert not left.any() or taken[left].min() >= taken.max() - 1
    assert set(balanced(labels, max(1, limit // 2)).tolist()) <= set(chosen.tolist())


def test_the_environment_names_the_root(root: Path, monkeypatch: pytest.MonkeyPatch):
    dataset = IDX(folder="tiny", limit=3)
    stream = StreamConfig(dataset=dataset, partition=IID(), schedule=Synchronous(), tasks=3, clients=1)
    monkeypatch.setenv("FEDCL_DATA", str(root))
    assert np.sort(build_stream(Scenario(stream=stream)).dataset.y).tolist() == [0, 1, 2]
    monkeypatch.delenv("FEDCL_DATA")
    with pytest.raises(ConfigError, match=r"set data\.root or FEDCL_DATA"):
        build_stream(Scenario(stream=stream))
    assert len(build_stream(Scenario(stream=stream, data=DataConfig(root=str(root)))).dataset.y) == 3


@pytest.mark.parametrize(("settings", "mean"), [(MNIST(limit=1000), 0.1307), (FashionMNIST(limit=1000), 0.2860)])
def test_real_files(settings: IDX, mean: float):
    data = settings.load(real_data())
    assert data.x.shape == (1000, 28, 28)
    assert data.test_x.shape == (10_000, 28, 28)
    assert np.bincount(data.y).tolist() == [100] * 10
    assert math.isclose(data.x.mean() * data.scale, mean, abs_tol=0.01)  # the published mean of all pixels
