"""A Ray cluster of several nodes on this machine, started by `ray start`; nothing of it outlives its block."""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fedcl import api
from fedcl.journal import read_events
from fedcl.sweeps import runs, spec
from fedcl.testing import changed

ROOT = Path(__file__).parent.parent
HASHES = ("weights_sha256", "state_sha256", "clients_sha256", "metrics")
BIN = Path(sys.executable).parent
TABLE = Path("/proc")
UP = b"will now block forever"  # what `ray start --block` says of a node that is there


def environment(scratch: Path) -> dict[str, str]:
    """Return the environment of everything that belongs to a cluster; `scratch` marks it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    return {**kept, **own, "PATH": path, "PYTHONPATH": str(ROOT), "RAY_TMPDIR": str(scratch)}


def fedcl(*words: str, env: dict[str, str], cwd: Path, code: Sequence[str] = ("-m", "fedcl")) -> subprocess.Popen[str]:
    """Start the command line, or other code that takes its words."""
    command = [sys.executable, *code, *words]
    return subprocess.Popen(command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen[str], seconds: float = 200) -> tuple[int, str]:
    """Wait for a command; return exit code and stderr."""
    try:
        _, said = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, said


def finished(process: subprocess.Popen[str], seconds: float = 400) -> None:
    """Wait for a command that succeeds."""
    code, said = ended(process, seconds)
    assert code == 0, said


def marked(scratch: Path) -> list[int]:
    """Return the processes that have a cluster's mark in their environment."""
    found, mark = [], os.fsencode(scratch)
    for entry in TABLE.iterdir():
        with suppress(OSError):
            if entry.name.isdecimal() and mark in (entry / "environ").read_bytes():
                found.append(int(entry.name))
    return found


def descendants(pid: int) -> list[int]:
    """Return the processes below one, the nearest first."""
    parents: dict[int, list[int]] = {}
    for entry in TABLE.iterdir():
        with suppress(OSError):
            if entry.name.isdecimal():
                parents.setdefault(int((entry / "stat").read_text().rpartition(")")[2].split()[1]), []).append(
                    int(entry.name)
                )
    below = parents.get(pid, [])
    return [*below, *(each for child in below for each in descendants(child))]


def kill(pids: Sequence[int]) -> None:
    """End processes at once."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


class Cluster:
    """Nodes that are processes of this machine."""

    def __init__(self, scratch: Path) -> None:
        import ray

        with socket.socket() as free:
            free.bind(("", 0))
            self.port = int(free.getsockname()[1])
        self.address = f"{ray.util.get_node_ip_address()}:{self.port}"
        self.scratch, self.env = scratch, environment(scratch)
        self.nodes: list[subprocess.Popen[bytes]] = []

    def add(self, *, cpus: int = 1, before: Sequence[str] = ()) -> None:
        """Start one more node, the head first; `before` is put before its command."""
        words = ["--address", self.address] if self.nodes else ["--head", f"--port={self.port}"]
        common = ["--block", f"--num-cpus={cpus}", "--num-gpus=0", "--object-store-memory=80000000"]
        dashboard = [] if self.nodes else ["--include-dashboard=false"]
        path, end = self.scratch / f"node{len(self.nodes)}.log", time.monotonic() + 240
        started = self._started(path, [*before, str(BIN / "ray"), "start", *words, *common, *dashboard])
        while UP not in path.read_bytes():
            assert time.monotonic() < end, path.read_text()
            if started.poll() is not None:  # Ray gives up on a node that is not there in 30 s: a busy machine
                started = self._started(path, started.args)
            time.sleep(0.2)
        self.nodes.append(started)

    def _started(self, path: Path, command: Any) -> subprocess.Popen[bytes]:
        with open(path, "wb") as log:
            return subprocess.Popen(command, env=self.env, stdout=log, stderr=log)

    def lose(self, number: int) -> None:
        """Kill a node with everything that runs on it."""
        pid = self.nodes[number].pid
        kill([pid, *descendants(pid)])
        self.nodes[number].wait()


@contextmanager
def cluster(nodes: int = 2) -> Iterator[Cluster]:
    """Start a cluster of nodes with a core each; when the block ends, all of its processes are gone."""
    # Not under tmp_path: a socket's path has room for about a hundred bytes.
    scratch = Path(tempfile.mkdtemp(prefix="ray-"))
    made = Cluster(scratch)
    try:
        for _ in range(nodes):
            made.add()
        yield made
    finally:
        while left := marked(scratch):
            kill(left)
            time.sleep(0.1)
        for each in made.nodes:
            each.wait()
        shutil.rmtree(scratch, ignore_errors=True)


# What runs on one, and what has come of it.


def written(folder: Path, *, rounds: int = 3, **changes: Any) -> Path:
    """Write a sweep of two methods and two seeds."""
    data = {"name": "synthetic", "classes": 4, "features": 4, "samples": 200, "test_samples": 40}
    settings: dict[str, Any] = {
        "stream.dataset": data, "stream.clients": 3, "stream.tasks": 2, "stream.schedule.rounds_per_task": rounds,
        "model": {"name": "mlp", "width": 6}, "checkpoint": {"rounds": 5, "seconds": 0},
    }  # fmt: skip
    grid = {"client.method": ["finetune", "er"]}
    plain = {"scenario": "split-digits", "set": settings, "grid": grid, "seeds": 2, **changes}
    path = folder / "tiny.yaml"
    path.write_text(json.dumps(plain))  # JSON is YAML
    return path


def results(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return {name: found[name] for name in HASHES}


def same_as_alone(sweep: Path, out: Path, tmp_path: Path) -> None:
    """Check that every run of a sweep has the hashes of the same run in this process."""
    for key, run in runs.planned(spec.read(str(sweep))).items():
        alone = tmp_path / "alone" / key
        if not alone.exists():
            api.run(changed(run.scenario, kind="inline"), out=alone)
        assert results(out / "runs" / key) == results(alone), key


def happened(out: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_events(out) if event["event"] == kind]


def wait_for_checkpoints(process: subprocess.Popen[str], folder: Path, pattern: str = "", number: int = 1) -> None:
    """Wait until so many runs below a folder have a checkpoint, or the process has ended."""
    while process.poll() is None and len({each.parent for each in folder.glob(f"{pattern}checkpoints/r*")}) < number:
        time.sleep(0.02)
