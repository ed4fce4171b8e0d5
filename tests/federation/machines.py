"""A federation of real processes: `fedcl server`, `fedcl client`, and what Flower starts for them."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clients.site import site
from clients.versions import Folder, opened
from fedcl import api, config, lock
from fedcl.journal import read_events
from fedcl.real.flower import free_port
from fedcl.world import as_text

PATIENCE = 420.0  # seconds that anything may take
# Three clients, two tasks of two rounds, each round a checkpoint, one client after another: the bits of one process.
SCENARIO = (
    "split-digits", "stream.tasks=2", "stream.clients=3", "stream.schedule.rounds_per_task=2", "client.epochs=1",
    "server.clients_per_round=null", "server.min_clients=3", "engine.stack=1", "engine.device=cpu",
)  # fmt: skip


def until(what: str, done: Callable[[], Any], patience: float = PATIENCE) -> Any:
    """Wait until something is the case and return it."""
    end = time.monotonic() + patience
    while True:
        found = done()
        if found:
            return found
        assert time.monotonic() < end, f"{what} did not come to pass within {patience:.0f} s"
        time.sleep(0.1)


def fedcl(*arguments: str, prefix: Sequence[str] = ()) -> list[str]:
    """Return a command line of fedcl's."""
    return [*prefix, sys.executable, "-m", "fedcl", *arguments]


@dataclass
class Machines:
    """A server and its nodes in a folder, started and killed at will."""

    folder: Path
    host: str = "127.0.0.1"
    port: int = field(default_factory=free_port)
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def run(self) -> Path:
        """The run directory."""
        return self.folder / "server" / "run"

    @property
    def _environment(self) -> dict[str, str]:
        """One thread a process, and by what its descendants are known."""
        return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "FEDCL_MACHINES": str(self.folder)}

    def start(self, name: str, *arguments: str, prefix: Sequence[str] = ()) -> None:
        """Start a command in the background; its words go to NAME.log."""
        with open(self.folder / f"{name}.log", "ab") as out:
            self.running[name] = subprocess.Popen(
                fedcl(*arguments, prefix=prefix), cwd=self.folder, env=self._environment, stdin=subprocess.DEVNULL,
                stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def serve(self, *arguments: str) -> None:
        """Start the server."""
        at = ["--host", self.host, "--port", str(self.port)]
        self.start("server", "server", *arguments, "--state", "server", *at)

    def join(self, *clients: int | str, name: str = "", extra: Sequence[str] = (), prefix: Sequence[str] = ()) -> str:
        """Start a node with these clients, numbers or names of wards, and return its name; none: it has one client."""
        name = name or f"node-{clients[0]}"
        hosted = [part for client in clients for part in ("--client", str(client))]
        at = ["--server", f"{self.host}:{self.port}", "--state", name]
        at += [] if "--min-count" in extra else ["--min-count", "0"]  # to the bit what one process comes to
        self.start(name, "client", *at, *hosted, *extra, prefix=prefix)
        return name

    def said(self, name: str) -> str:
        """Return what a command has said."""
        path = self.folder / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Return the events of a kind."""
        return [event for event in read_events(self.run) if event["event"] == kind]

    def round_done(self, round: int) -> None:
        """Wait until a round is committed."""
        until(f"round {round}", lambda: any(e["round"] >= round for e in self.events("checkpoint")) or self._check())

    def _check(self) -> None:
        """Fail at once, with its words, if the server has ended."""
        assert self.running["server"].poll() is None, self.said("server")

    def finished(self) -> dict[str, Any]:
        """Wait until the server has ended and return its results."""
        until("the end", lambda: self.running["server"].poll() is not None)
        assert self.running["server"].returncode == 0, self.said("server") + self.log("server")
        results: dict[str, Any] = json.loads((self.run / "results.json").read_text())
        return results

    def log(self, name: str) -> str:
        """Return the end of the logs of the processes that a command supervises."""
        found = sorted((self.folder / name / "log").glob("*.log"))
        return "\n".join(f"== {path}\n{path.read_text(errors='replace')[-3000:]}" for path in found)

    @property
    def server_app(self) -> int:
        """Process of the ServerApp."""
        return int(until("the ServerApp", lambda: lock.holder(self.run) if self.run.exists() else None))

    def processes(self, *words: str) -> list[int]:
        """Return the processes whose command line has all these words and that belong to this federation."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                own = f"FEDCL_MACHINES={self.folder}\0".encode() in (folder / "environ").read_bytes()
            except OSError:
                continue
            if own and all(word in line for word in words):
                found.append(int(folder.name))
        return sorted(found)

    def kill(self, *words: str) -> int:
        """Kill what has these words in its command line, as the kernel would; return how many there were."""
        found = self.processes(*words)
        for each in found:
            try:
                os.kill(each, signal.SIGKILL)
            except ProcessLookupError:
                continue
        return len(found)

    def stop(self, name: str) -> int:
        """Ask a command to stop and return its exit code."""
        process = self.running[name]
        process.send_signal(signal.SIGTERM)
        return process.wait(60)

    def end(self) -> None:
        """Kill whatever is left."""
        for process in self.running.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self.running.values():
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def visits(found: Machines, node: str, client: int, round: int) -> int:
    """Return how often a client has trained, by the record that its node keeps of a round."""
    scenario = api.load(found.run).config
    place = Folder(found.folder / node / "records")
    dtype, scenario_hash = site(as_text(scenario)).record, config.config_hash(scenario)
    return int(opened(place.read(client, round), dtype, client, round, scenario_hash)["visits"][0])


@contextmanager
def machines(folder: Path, host: str = "127.0.0.1") -> Iterator[Machines]:
    """Yield machines that are all gone afterwards."""
    found = Machines(folder, host)
    try:
        yield found
    finally:
        found.end()
