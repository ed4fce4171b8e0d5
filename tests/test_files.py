"""Whatever a user names is opened in one way: a plain file, without waiting, within a bound; else one sentence."""

import gzip
import os
import re
import signal
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import numpy as np
import pytest

from fedcl import config, files, models
from fedcl.cli import main
from fedcl.errors import ConfigError
from fedcl.models.dense import MLP
from fedcl.predict import read_given
from fedcl.streams.datasets import Digits
from fedcl.streams.idx import read_idx
from fedcl.streams.manifest import read_manifest
from fedcl.streams.omniglot import read_pictures

Place = Callable[[Path], object]


def _typed(*words: str) -> Place:
    """Return what types a command line with the path in place of "*", and raises what it says if it ends with 2."""

    def place(path: Path) -> None:
        (path.parent / "ca.crt").touch()
        code = main([word.replace("*", str(path)) for word in words])
        raise ConfigError(f"exit {code}")

    return place


def _certs(path: Path) -> None:
    path.rename(path.with_name("ca.crt")) if os.path.lexists(path) else None
    raise ConfigError(f"exit {main(['certs', str(path.parent)])}")


NODE = ("client", "--server", "a:1", "--state", "state")
PLACES: dict[str, Place] = {
    "scenario": _typed("show", "*"),
    "group": _typed("show", "split-digits", "group=*:g"),
    "sweep": _typed("sweep", "*", "--dry-run"),
    "options of a server": _typed("server", "--state", "state", "--config", "*"),
    "options of a node": _typed(*NODE, "--config", "*"),
    "a node's certificate": _typed(*NODE, "--tls", "*"),
    "a node's key": _typed(*NODE, "--tls", "ca.crt", "--key", "*"),
    "public key": _typed("server", "nodes", "add", "*", "--state", "state"),
    "certificate of a folder": _certs,
    "weights": lambda path: models.given(MLP(weights=str(path)), {"head.weight": None}),  # type: ignore[dict-item]
    "inputs": lambda path: read_given([path], config.load("split-digits"), Digits().load(None)),
    "IDX": lambda path: read_idx(path, 1),
    "Omniglot": read_pictures,
    "tasks": read_manifest,
}
KINDS: dict[str, tuple[Callable[[Path], object], str]] = {
    "pipe": (os.mkfifo, "is a pipe"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "is a device"),
    "folder": (Path.mkdir, "is a folder"),
    "broken link": (lambda path: path.symlink_to("nowhere"), "link to nothing"),
    "missing": (lambda path: None, ""),
    "too large": (lambda path: (path.touch(), os.truncate(path, files.ARRAYS + 1)), "more than the"),
    "unreadable": (lambda path: path.touch(0), "Permission denied"),
}
# What such a file means there.
OTHERWISE = {
    ("tasks", "device"): "is a link",  # none is followed
    ("tasks", "broken link"): "is a link",
    ("inputs", "folder"): "it holds no file to read",
}
HERE = [(place, kind) for place in PLACES for kind in KINDS if (place, kind) != ("certificate of a folder", "missing")]


def _waited(number: int, frame: FrameType | None) -> None:
    raise TimeoutError("it waits")


@pytest.fixture(autouse=True)
def _soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Who waits is interrupted."""
    monkeypatch.chdir(tmp_path)
    before = signal.signal(signal.SIGALRM, _waited)
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize(("place", "kind"), HERE)
def test_what_is_no_plain_file_within_a_bound_is_refused_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str, kind: str
) -> None:
    if kind == "unreadable" and os.geteuid() == 0:
        pytest.skip("root reads files of any mode")
    make, expected = KINDS[kind]
    path = tmp_path / "it.yaml"
    make(path)
    with pytest.raises(ConfigError) as refused:
        PLACES[place](path)
    said = str(refused.value)
    if said.startswith("exit"):
        assert said == "exit 2"
        said = capsys.readouterr().err
        assert re.fullmatch(r"fedcl: [^\n]+\n", said)
    assert OTHERWISE.get((place, kind), expected) in said


@pytest.mark.parametrize("size", [files.KEY, files.KEY + 1])
def test_a_file_is_read_up_to_its_bound_and_not_beyond(tmp_path: Path, size: int) -> None:
    (tmp_path / "a").write_bytes(bytes(size))
    if size == files.KEY:
        assert files.named("a", "--key", files.KEY) == bytes(size)
    else:
        with pytest.raises(ConfigError, match=r"--key 'a': has 1,048,577 bytes, more than the 1,048,576 that are read"):
            files.named("a", "--key", files.KEY)


def test_a_packed_file_that_unpacks_to_gigabytes_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("n.npy", b"")
        file.filelist[0].file_size = 3 << 30  # zipfile reads no further than is announced
    with pytest.raises(ConfigError, match="unpacks to 3,221,225,472 bytes, more than the 1,073,741,824"):
        read_pictures(path)


def test_an_idx_file_that_announces_gigabytes_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "bomb-idx3-ubyte.gz"
    head = bytes((0, 0, 8, 3)) + np.array([3 << 10, 1 << 10, 1 << 10], ">u4").tobytes()
    path.write_bytes(gzip.compress(head))
    os.truncate(path, 4 << 20)  # so long that it could hold them
    with pytest.raises(ConfigError, match=r"unpacks to 3,221,225,472 bytes, more than the 1,073,741,824"):
        read_idx(path, 3)


def test_text_that_is_no_utf8_is_named_with_the_byte(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"name: \xff\n")
    with pytest.raises(ConfigError, match=r"scenario 'a\.yaml': is no text in UTF-8 \(byte 6\)"):
        files.text("a.yaml", "scenario")
