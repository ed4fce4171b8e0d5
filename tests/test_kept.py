"""Files of our own, damaged: every command that reads them says so in one sentence, and a run goes on where it can."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedcl import api, kept
from fedcl.cli import main
from fedcl.errors import ConfigError, FederationError
from fedcl.journal import clear, finished, read_events
from fedcl.real.nodes import link_of as link
from fedcl.real.nodes import read_link, write_link
from tests.federations import tiny

Reader = Callable[[Path], int | None]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of run, a run that is half-way, a server's state, a sweep's folder with that run."""
    root = tmp_path_factory.mktemp("made")
    scenario = tiny("server.method=prototypes")
    api.run(scenario, out=root / "run")
    (root / "state").mkdir()
    write_link(root / "state", link(root / "state", host="127.0.0.1", port=8000, tls=None, auth=False))
    point = {"key": "0123456789ab", "labels": {"scenario": "tiny"}, "seed": 0, "overrides": ["seed=0"]}
    (root / "sweep" / "runs").mkdir(parents=True)
    plan = {"schema": 1, "name": "s", "command": "", "points": [point]}
    (root / "sweep" / "sweep.json").write_text(json.dumps(plan))
    shutil.copytree(root / "run", root / "sweep" / "runs" / "0123456789ab")
    (root / "sweep" / "events.jsonl").write_text(
        '{"event": "sweep", "name": "s", "runs": 1, "todo": 1, "command": ""}\n'
        '{"event": "run_start", "key": "0123456789ab", "title": "t"}\n'
        '{"event": "run_end", "key": "0123456789ab", "title": "t", "status": "done", "seconds": 1.0, "error": null}\n'
    )
    np.save(root / "x.npy", np.zeros((2, *api.load(root / "run").outline.dataset.x.shape[1:]), np.float32))
    return root


def _predict(root: Path) -> int:
    return main(["predict", str(root / "run"), str(root / "x.npy")])


def _loaded(root: Path) -> None:
    found = api.load(root / "run")
    _ = found.results, found.clients, found.metrics, found.status  # type: ignore[union-attr]


READERS: dict[str, tuple[Reader, tuple[str, ...]]] = {
    "predict": (_predict, ("run/model.safetensors", "run/classifier.safetensors", "run/config.yaml")),
    "load": (_loaded, ("run/events.jsonl", "run/config.yaml")),
    "resume": (lambda root: main(["run", "--resume", str(root / "run"), "-q"]), ("run/config.yaml",)),
    "watch": (lambda root: main(["watch", "--once", str(root / "run")]), ("run/events.jsonl", "run/results.json")),
    "watch a sweep": (
        lambda root: main(["watch", "--once", str(root / "sweep")]), ("sweep/events.jsonl", "sweep/sweep.json"),
    ),
    "report": (lambda root: main(["report", str(root / "run"), "--out", str(root / "r.html")]), ("run/events.jsonl",)),
    "report of a sweep": (
        lambda root: main(["report", str(root / "sweep"), "--out", str(root / "r.html")]), ("sweep/sweep.json",),
    ),
    "load a sweep": (
        lambda root: api.load(root / "sweep").table and None,  # type: ignore[union-attr]
        ("sweep/sweep.json", "sweep/runs/0123456789ab/results.json"),
    ),
    "server": (lambda root: read_link(root / "state") and None, ("state/server.json",)),
}  # fmt: skip


def _flipped(path: Path, part: float) -> None:
    data = bytearray(path.read_bytes())
    data[int(part * (len(data) - 1))] ^= 1 << (len(data) % 7)
    path.write_bytes(data)


def _other_version(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"schema": 1', b'"schema": 2'))


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 3]),
    **{f"flipped at {part}": lambda path, part=part: _flipped(path, part) for part in (0.0, 0.02, 0.11, 0.5, 0.93)},
    "another type": lambda path: path.write_bytes(b'[1, "a"]\n'),
    "other values": lambda path: path.write_bytes(b'{"schema": 1, "event": "start", "points": [1], "status": 3}\n'),
    "empty": lambda path: path.write_bytes(b""),
    "no text": lambda path: path.write_bytes(bytes(range(256))),
    "deep": lambda path: path.write_bytes(b"[" * 100_000 + b"\n"),
    "other version": _other_version,
    "folder": _folder,
    "pipe": lambda path: (path.unlink(), os.mkfifo(path)),
}
ALL = [(reader, file, damage) for reader, (_, files) in READERS.items() for file in files for damage in DAMAGES]


@pytest.mark.parametrize(("reader", "file", "damage"), ALL)
def test_a_damaged_file_of_ours_is_never_a_traceback(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], reader: str, file: str, damage: str
) -> None:
    root = tmp_path / "it"
    shutil.copytree(made, root)
    DAMAGES[damage](root / file)
    try:
        code = READERS[reader][0](root)
    except (ConfigError, FederationError) as error:
        code, said = 1, "".join(f"fedcl: {line}\n" for line in str(error).splitlines())
    else:
        said = capsys.readouterr().err
    if code in (1, 2) and said:  # watch: the run has died, it says, and so it looks
        last = said.splitlines()[-1]
        assert last.startswith("fedcl: ")
        assert "Traceback" not in said
        assert Path(file).name in last or file == "run/config.yaml"  # which may be sound, but of another run
        assert len(last) < 1000


def test_results_that_somebody_has_made_up_finish_no_run(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "run", tmp_path / "run")
    assert finished(tmp_path / "run")
    written = (tmp_path / "run" / "events.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "run" / "events.jsonl").write_bytes(b"".join(written[:-1]))
    assert not finished(tmp_path / "run")
    again = api.resume(tmp_path / "run")
    assert again.status == "finished"
    assert again.results["weights_sha256"] == api.load(made / "run").results["weights_sha256"]  # type: ignore[union-attr]


@pytest.mark.parametrize("damage", [name for name in DAMAGES if name not in ("folder", "pipe", "other version")])
def test_a_damaged_journal_does_not_stop_a_run_whose_checkpoint_is_whole(
    made: Path, tmp_path: Path, damage: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(made / "run", run)
    (run / "results.json").unlink()
    DAMAGES[damage](run / "events.jsonl")
    before = api.load(made / "run").results  # type: ignore[union-attr]
    again = api.resume(run)
    assert again.results["weights_sha256"] == before["weights_sha256"]
    kinds = [event["event"] for event in read_events(run)]
    if "damaged" in kinds:
        assert "mended" in kinds
        assert "damaged" in again.results["absent"]["events"]
        assert (run / "events.jsonl.broken").exists()
        assert "could not be read" in (run / "error.log").read_text()


def test_what_a_killed_writer_has_left_is_cleared_and_nothing_else(tmp_path: Path) -> None:
    for name in (".config.yaml.123-0123abcd.tmp", ".own.tmp", "a.tmp", ".x.1-2.tmp"):
        (tmp_path / name).touch()
    clear(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".own.tmp", ".x.1-2.tmp", "a.tmp"]


def test_a_folder_that_cannot_be_written_is_one_sentence(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(made / "run", tmp_path / "run")
    (tmp_path / "run" / "results.json").unlink()
    (tmp_path / "run" / "lock").unlink()
    (tmp_path / "run" / "lock").mkdir()  # as a folder that is read only; root may write everywhere
    assert main(["run", "--resume", str(tmp_path / "run"), "-q"]) == 2
    assert "cannot be written (Is a directory)" in capsys.readouterr().err


def test_tensors_that_are_none_are_one_kind_of_error() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        with pytest.raises(ValueError, match=r"\w"):
            kept.tensors(rng.bytes(int(rng.integers(0, 100))))
