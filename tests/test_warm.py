"""The warm worker: real processes, the same bits with and without it, and whatever happens to it costs time only."""

import os
import re
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message, RecordDict

from clients import frames, warm
from clients.app import app
from fedcl import wire
from fedcl.config import Scenario
from fedcl.engine import flower
from fedcl.errors import ConfigError
from fedcl.fingerprint import fingerprint
from fedcl.orders import EvaluateOrder, TrainOrder
from fedcl.world import as_text
from tests.federations import Clients, tiny
from tests.nodes import SECRET
from tests.test_frames import LIES

SCENARIO = tiny("client.method=derpp")
LONG = tiny("client.method=derpp", "client.epochs=100")  # long enough for something to happen meanwhile
PATIENCE = 120.0  # seconds, on a busy machine
ITSELF = "this process does the work itself"


def until(there: Any) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + PATIENCE
    while not there():
        assert time.monotonic() < end
        time.sleep(0.005)


class Worker:
    """A worker's process, with its log."""

    def __init__(self, path: Path, *more: str) -> None:
        self.path, self.log = path, path.with_suffix(".log")
        command = [sys.executable, "-m", "clients.warm", "--socket", str(path), *more]
        with open(self.log, "wb") as out:
            self.process = subprocess.Popen(command, stderr=out)

    @property
    def lines(self) -> list[str]:
        """What it has said, without its name."""
        return [line.partition(": ")[2] for line in self.log.read_text().splitlines()]

    def said(self, text: str) -> list[str]:
        """Return the lines with a text, once there is one."""
        until(lambda: any(text in line for line in self.lines) or self.process.poll() is not None)
        return [line for line in self.lines if text in line]

    def end(self, number: int = signal.SIGTERM) -> int:
        """End it."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)


@contextmanager
def worker(path: Path) -> Iterator[Worker]:
    """A worker that listens."""
    it = Worker(path)
    try:
        assert it.said("listening"), it.log.read_text()
        yield it
    finally:
        if it.process.poll() is None:
            it.end(signal.SIGKILL)


@pytest.fixture(scope="module")
def sockets() -> Iterator[Path]:
    """A folder of this user alone with a short path."""
    with tempfile.TemporaryDirectory(prefix="fedcl-") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def one(sockets: Path) -> Iterator[Worker]:
    """One worker for all tests that leave it alive."""
    with worker(sockets / "one") as it:
        yield it


def node(folder: Path) -> Any:
    """Return the context of a node with a folder for its clients' records."""
    folder.mkdir()
    (folder / "secret").write_bytes(SECRET)
    return flower.context({}, {"partition-id": 1, "num-partitions": 2, "state": str(folder)})


def message(kind: str, scenario: Scenario = SCENARIO, round: int = 1, **columns: Any) -> Message:
    """Return a message to clients 1 and 3."""
    text = as_text(scenario)
    content = wire.config_of(text)
    if kind != "query.hello":
        pair = np.array([1, 3])
        order = {"train": TrainOrder, "evaluate": EvaluateOrder}[kind](
            round=round, cohort=0, clients=pair, packs=["", ""], rows=np.zeros(2, np.int64), folder="",
            weights=Clients.of(scenario).initial, accepted=np.full(2, round - 1), oldest=np.zeros(2, np.int64),
            fingerprint=fingerprint(text),
            **({"tasks": np.zeros(2, np.int64), "clocks": np.full(2, round - 1)} if kind == "train" else {}),
        )  # fmt: skip
        content = wire.encode(replace(order, **columns), config=text)
    flower.identify()
    asked = Message(content, 1, kind)
    flower.number(asked)
    return asked


def test_with_and_without_it_the_bits_are_the_same(
    one: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Hello, two rounds of training and an evaluation: answers and records; the worker builds its site once."""
    visits = [message("query.hello"), message("train"), message("train", round=2), message("evaluate", round=3)]
    alone = [app(each, here).content for here in [node(tmp_path / "alone")] for each in visits]
    monkeypatch.setenv("FEDCL_WORKER", str(one.path))
    handed = [app(each, here).content for here in [node(tmp_path / "warm")] for each in visits]
    assert handed == alone
    assert wire.decode(handed[2]).clients.tolist() == [1, 3]
    kept = [{path.name: path.read_bytes() for path in sorted((tmp_path / name).rglob("*.state"))} for name in
            ("alone", "warm")]  # fmt: skip
    assert kept[0] == kept[1]
    assert len(kept[0]) == 2
    assert ITSELF not in capfd.readouterr().err
    one.said("evaluate in")
    done = [line for line in one.lines if re.match(r"(query\.hello|train|evaluate) in \d", line)]
    assert [line.split()[0] for line in done] == ["query.hello", "train", "train", "evaluate"]
    assert [line.rpartition(" ")[2] for line in done] == ["0", "1", "1", "1"]
    assert one.log.read_text().startswith(f"fedcl worker {one.process.pid}: ")


def test_what_fails_there_fails_here_with_the_same_words(
    one: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A record that is not there: the traceback ends in the sentence that the ClientApp alone would raise."""
    asked = message("train", round=2)
    with pytest.raises(ValueError, match="its record of round 1, which the server names, is not here") as alone:
        app(asked, node(tmp_path / "alone"))
    monkeypatch.setenv("FEDCL_WORKER", str(one.path))
    with pytest.raises(warm.Failed, match="Traceback") as handed:
        app(asked, node(tmp_path / "warm"))
    there = str(alone.value).replace(str(tmp_path / "alone"), str(tmp_path / "warm"))
    assert str(handed.value).strip().endswith(f"LostRecords: {there}")
    assert ITSELF not in capfd.readouterr().err


def test_nobody_else_can_reach_it(one: Worker) -> None:
    assert stat.S_IMODE(one.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(one.path.with_name("one.lock").stat().st_mode) == 0o600
    assert stat.S_IMODE(one.path.parent.stat().st_mode) == 0o700


def test_a_folder_of_its_own_is_made_and_one_of_others_is_refused(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="fedcl-") as short:
        own = Path(short) / "own" / "socket"
        with warm.listening(own):
            assert stat.S_IMODE(own.parent.stat().st_mode) == 0o700
        assert not own.exists()
        own.parent.chmod(0o750)
        with pytest.raises(ConfigError, match=r"mode 750\) must be this user's alone"), warm.listening(own):
            pass
    with pytest.raises(ConfigError, match="a socket's path at most 107"), warm.listening(tmp_path / ("x" * 107)):
        pass


def test_a_file_that_is_no_socket_stays(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="fedcl-") as short:
        path = Path(short) / "notes"
        path.write_text("mine")
        with pytest.raises(ConfigError, match="in use"), warm.listening(path):
            pass
        assert path.read_text() == "mine"


def test_a_second_one_at_the_same_place_is_an_error(one: Worker) -> None:
    command = [sys.executable, "-m", "clients.warm", "--socket", str(one.path)]
    second = subprocess.run(command, capture_output=True, text=True)
    assert second.returncode == 2
    assert second.stderr.endswith(f": --socket={one.path}: a worker listens there already\n")
    assert second.stderr.count("\n") == 1
    assert one.path.is_socket()


@pytest.mark.parametrize("lie", [*LIES, "nothing", "half a frame", "no kind"])
def test_it_outlives_whoever_lies_to_it(lie: str, one: Worker) -> None:
    """What was refused is said; the next message is answered."""
    data = LIES[lie][0] if lie in LIES else b""
    if lie == "half a frame":
        data = b"".join(frames.encode({}, RecordDict({"a": wire.pack({"x": np.arange(9)})})))[:-1]
    if lie == "no kind":
        data = b"".join(frames.encode({"settings": {"state": "/nowhere"}}, RecordDict()))
    before = len(one.lines)
    with socket.socket(socket.AF_UNIX) as liar:
        liar.connect(str(one.path))
        with suppress(ConnectionError):  # it may have heard enough before all is said
            liar.sendall(data)
            liar.shutdown(socket.SHUT_WR)
        until(lambda: len(one.lines) > before)
    said = "a message lost: ConnectionResetError" if lie in ("nothing", "half a frame") else "refused: "
    assert one.lines[before].startswith(said)
    assert one.process.poll() is None


def test_another_user_is_refused(one: Worker) -> None:
    """Even where the permissions would let one in."""
    if os.getuid() != 0 or not hasattr(socket, "SO_PEERCRED"):
        pytest.skip("needs to be root, to become somebody else, and a system that tells who connects")
    one.path.parent.chmod(0o755)
    one.path.chmod(0o666)
    with socket.socket(socket.AF_UNIX) as other:
        try:
            os.seteuid(65534)
            other.connect(str(one.path))
        finally:
            os.seteuid(0)
            one.path.chmod(0o600)
            one.path.parent.chmod(0o700)
        assert other.recv(1) == b""
    assert one.said("user 65534 is at the other end of the worker's socket, not user 0")


def test_who_hands_over_never_imports_torch(one: Worker, tmp_path: Path) -> None:
    """A process of its own, as Flower starts one."""
    program = """
import os, sys
from flwr.app import Message
from clients.app import app
from fedcl import wire
from fedcl.engine import flower
flower.identify()
asked = Message(wire.config_of(sys.stdin.read()), 1, "query.hello")
flower.number(asked)
answer = app(asked, flower.context({}, {"partition-id": 1, "num-partitions": 2}))
print(wire.hosted(answer.content).tolist(), [name for name in ("torch", "sklearn", "ray") if name in sys.modules])
"""
    environment = {**os.environ, "FEDCL_WORKER": str(one.path), "FEDCL_STATE": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program], input=as_text(SCENARIO), env=environment, capture_output=True, text=True
    )
    assert done.stdout.strip() == "[1, 3] []", done.stderr


def test_records_in_flowers_context_are_not_handed_over(
    sockets: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nor is there a word about it."""
    monkeypatch.setenv("FEDCL_WORKER", str(sockets / "nobody"))
    context = flower.context({}, {"partition-id": 1, "num-partitions": 2})
    assert wire.decode(app(message("train"), context).content).clients.tolist() == [1, 3]
    assert sorted(context.state.array_records) == ["record-1-r1", "record-3-r1"]
    assert ITSELF not in capfd.readouterr().err


@pytest.mark.parametrize("left", ["nothing", "a dead worker's socket"])
def test_without_a_worker_the_client_app_works_itself(
    left: str, sockets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    path = sockets / f"gone-{left[0]}"
    if left != "nothing":
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
    monkeypatch.setenv("FEDCL_WORKER", str(path))
    assert wire.decode(app(message("train"), node(tmp_path / "node")).content).clients.tolist() == [1, 3]
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"fedcl: no answer of the worker at {path} (")
    assert line.endswith(ITSELF)


@contextmanager
def under_way(it: Worker, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Future[Any]]:
    """A message that the worker is in the middle of: the node's secret is made just before training."""
    monkeypatch.setenv("FEDCL_WORKER", str(it.path))
    context = flower.context({}, {"partition-id": 1, "num-partitions": 2, "state": str(folder)})
    asked = message("train", LONG)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(lambda: app(asked, context).content)
        until((folder / "secret").exists)
        yield answer


@pytest.mark.slow
def test_killed_or_asked_to_end_in_the_middle_of_a_message(
    sockets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Killed: the ClientApp does the work itself. The next worker takes the dead one's place; asked to end, it ends
    after its message. The answers are the same to the bit."""
    path = sockets / "two"
    with worker(path) as it, under_way(it, tmp_path / "killed", monkeypatch) as answer:
        assert it.end(signal.SIGKILL) == -signal.SIGKILL
        first = answer.result(PATIENCE)
    assert ITSELF in capfd.readouterr().err
    assert path.is_socket()
    with worker(path) as it, under_way(it, tmp_path / "ended", monkeypatch) as answer:
        assert it.end() == 0
        assert answer.result(PATIENCE) == first
    assert ITSELF not in capfd.readouterr().err
    assert it.lines[-1] == "asked to end"
    assert not path.exists()


def test_it_ends_with_the_process_that_started_it(sockets: Path) -> None:
    """A shell that is killed."""
    line = f'"{sys.executable}" -m clients.warm --socket "{sockets / "orphan"}" --parent-pid $$ & echo $!; wait'
    with subprocess.Popen(["sh", "-c", line], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as shell:
        assert shell.stdout is not None
        pid = int(shell.stdout.readline())
        until((sockets / "orphan").exists)
        os.kill(pid, 0)  # it is there
        shell.kill()
        _, said = shell.communicate(timeout=PATIENCE)  # the worker has the same stderr: it ends when both have ended
    assert f"process {shell.pid}, which started this one, is gone" in said
