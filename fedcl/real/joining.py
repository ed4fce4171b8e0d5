"""A node of a federation on real machines: a SuperNode that is started again for as long as it takes.

A SuperNode ends when the server refuses it, and the server refuses a node that was killed until it has noticed (Flower:
up to a minute), in the same words as a node that it does not know. So nothing but a stop ends this supervisor. What
the node keeps lies in its folder: the clients' records and its secret (`records`), Flower's own files (`flwr`), logs.
"""

import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedcl import certs, files, foreign, kept
from fedcl.errors import ConfigError
from fedcl.interrupt import LOOK, StopRequest
from fedcl.journal import clear
from fedcl.names import Hosted
from fedcl.real import gate
from fedcl.real.flower import environment, free_port, node_command
from fedcl.real.processes import Child
from fedcl.real.tail import Tail

FIRST, LONGEST = 5.0, 60.0  # seconds before the first and between later attempts
STEADY = 90.0  # seconds after which a node that ends was up, and waits as if for the first time
ACTIVITY = "activity.jsonl"  # what the ClientApp has done, one line a message
CONNECTED, ALONE = "SuperNode ID:", "Connection attempt failed"  # what a SuperNode says
# What it says when it ends -> what it means.
REASONS = {
    r"code: 2004|Failed to activate": "refused: its key is not registered there, or its last connection has not "
    "expired yet (up to a minute)",
    r"certificate has expired|CERT_HAS_EXPIRED": "refused: the server's certificate has expired (the server's operator "
    "renews it: fedcl certs DIR), or this machine's clock is wrong",
    r"certificate is not yet valid|CERT_NOT_YET_VALID": "refused: the server's certificate is not valid yet: this "
    "machine's clock is behind, or the server's was ahead",
    r"[Hh]ostname mismatch|IP address mismatch|is not valid for": "refused: the server's certificate is for other "
    "hosts than the one in --server (the server's operator adds it: fedcl certs DIR --host NAME)",
    r"CERTIFICATE_VERIFY_FAILED|certificate verify failed": "refused: the server's certificate is not signed by --tls",
    r"WRONG_VERSION_NUMBER|record layer failure|SSL": "no TLS is spoken there, or another version of it (--tls)",
    r"ConnectError|Connection refused|ConnectTimeout|timed out": "the server is not reached",
}


@dataclass(kw_only=True)
class Node:
    """The supervisor. `say` is told in a line what it does."""

    server: str  # host:port
    state: Path
    hosted: Hosted
    name: str  # by its key, "" without one
    tls: Path | None
    key: Path | None
    extra: Mapping[str, str]  # environment of the ClientApp: FEDCL_DATA, FEDCL_ALLOW ...
    warm: bool
    say: Callable[[str], None]
    _node: Child | None = None
    _worker: Child | None = None

    def take_part(self, stop: StopRequest) -> None:
        """Take part until somebody asks for a stop.

        Raises:
            Stopped: somebody did.
        """
        for name in ("log", "records", "flwr"):
            (self.state / name).mkdir(mode=0o700, exist_ok=True)
            clear(self.state / name)
        commands = self.state / "commands"
        gate.write_commands(commands, gate.NODE, self.state / "flwr")
        with ExitStack() as stack:
            # A socket's path has room for about a hundred bytes.
            sockets = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fedcl-")))
            stack.callback(self._end)
            own = {
                **environment(self.state / "flwr", commands), "FEDCL_STATE": str(self.state / "records"),
                "FEDCL_ACTIVITY": str(self.state / ACTIVITY), **self.extra,
            }  # fmt: skip
            if self.warm:
                own["FEDCL_WORKER"] = str(sockets / "worker")
            self._go_on(own, stop)

    def _go_on(self, own: Mapping[str, str], stop: StopRequest) -> None:
        activity, pause, began, told, again = Tail(self.state / ACTIVITY), FIRST / 2, 0.0, -LONGEST, 0.0
        while True:
            if self.warm and self._worker is None and time.monotonic() > again:
                self._worker = self._start_worker(own)
            if self._node is None:
                self._node, began = self._start_node(own), time.monotonic()
            stop.check()
            try:
                for done in activity.fresh():
                    self.say(activity_line(done))
            except kept.Damaged as error:
                self.say(str(error))
            words = self._node.fresh()
            if CONNECTED in words:
                self.say("connected")
            if ALONE in words and time.monotonic() - told > LONGEST:
                told = time.monotonic()
                self.say(f"{self.server} is not reached, or speaks otherwise (TLS or plain text); trying on")
            if self._worker and not self._worker.alive:  # the ClientApp does its work meanwhile
                self._worker.stop()
                self._worker, again = None, time.monotonic() + FIRST
            if not self._node.alive:
                pause = FIRST if time.monotonic() - began > STEADY else min(2 * pause, LONGEST)
                self.say(f"{meaning(self._node.said())}; trying again in {pause:.0f} s")
                self._node.stop()
                self._node = None
                stop.pause(pause)
            time.sleep(LOOK)

    def _start_node(self, own: Mapping[str, str]) -> Child:
        settings = self.hosted.settings(self.name)
        command = node_command(self.server, port=free_port(), settings=settings, tls=self.tls, key=self.key)
        known = f" as {self.name}" if self.name and not self.hosted.numbers else ""
        self.say(f"connecting to {self.server}{known} with {self.hosted}")
        return self._child("node", command, own)

    def _start_worker(self, own: Mapping[str, str]) -> Child:
        command = [sys.executable, "-P", "-m", "clients.warm", "--socket", own["FEDCL_WORKER"]]
        return self._child("worker", [*command, "--parent-pid", str(os.getpid())], own)

    def _child(self, name: str, command: Sequence[str], own: Mapping[str, str]) -> Child:
        return Child(name, command, own, self.state / "log" / f"{name}.log")

    def _end(self) -> None:
        for child in (self._worker, self._node):
            if child:
                child.stop()


def name_by(key: Path | None) -> str:
    """Return the name of a node by its private key, "" without one.

    Raises:
        ConfigError: the file holds no such key.
    """
    if key is None:
        return ""
    try:
        return certs.node_name(certs.load_node_key(files.named(key, "--key", files.KEY)).public_key())
    except (ValueError, TypeError) as error:
        raise ConfigError(f"--key {str(key)!r} is no private key of a node, as fedcl certs makes ({error})") from error


def activity_line(done: Mapping[str, Any]) -> str:
    """Return a line of the activity file in words; its errors repeat what a server has sent."""
    if done.get("error"):
        return foreign.line(f"{done['kind']}: {done['error']}")
    clients, named = done.get("clients", []), done.get("names", [])
    if done["kind"] == "faults":
        return faults_line(clients[0], done["count"], done["first"])
    whom = f"client{'s' * (len(clients) > 1)} {', '.join(map(str, clients))}" if clients else "hello"
    whom = f"this node's clients are {', '.join(named)}" if named else whom
    return f"{done['kind']}, round {done.get('round', 0)}: {whom}, {done['seconds']:.1f} s"


def faults_line(client: int, count: int, first: Sequence[str]) -> str:
    """Return in words what was left out of a client's folder."""
    if not count:
        return f"client {client}: nothing in its folder is left out any more"
    shown = f" (all of them: records/client-{client:06d}/faults.txt)" if count > len(first) else ""
    return f"client {client}: {count} fault{'s' * (count > 1)} in its folder: {foreign.line('; '.join(first))}{shown}"


def meaning(said: str) -> str:
    """Return what a SuperNode's last words mean."""
    for pattern, reason in REASONS.items():
        if re.search(pattern, said):
            return reason
    lines = [line for line in said.splitlines() if line.strip()]
    return f"the SuperNode ended ({foreign.line(lines[-1])[:200] if lines else 'it said nothing'})"
