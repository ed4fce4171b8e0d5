"""What Flower's commands are told, and what they answer: a SuperLink, a SuperNode, a run, the registered nodes."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedcl import foreign, writing
from fedcl.errors import FederationError
from fedcl.names import WARDS
from fedcl.real import gate
from fedcl.real.secret import forget_secret, is_secret_there

CONNECTION = "fedcl"
# Seconds between two questions of an executor whether there is work, unless the environment says otherwise.
POLL = {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1"}
# Nothing is looked up, reported or installed at run time.
OFFLINE = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
COMMAND_SECONDS = 60.0


def environment(home: Path, *first: Path) -> dict[str, str]:
    """Return the environment of Flower's processes: its files in `home`, its commands from this installation.

    Args:
        first: folders that stand before them in PATH.
    """
    installed = Path(sys.executable).parent
    path = os.pathsep.join([*map(str, first), str(installed), os.environ.get("PATH", os.defpath)])
    # One thread a process: the bits must not depend on the machine's cores.
    return {"OMP_NUM_THREADS": "1", **POLL, **os.environ, **OFFLINE, "FLWR_HOME": str(home), "PATH": path}


def free_port() -> int:
    """Return a port of this machine that nobody listens at now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@dataclass(frozen=True, kw_only=True)
class Link:
    """A SuperLink: where it listens and how one connects to it."""

    host: str
    port: int
    database: Path
    home: Path  # Flower's own files
    tls: Path | None = None  # folder of `fedcl certs`; None: plain text
    auth: bool = False  # nodes prove who they are

    @property
    def reached(self) -> str:
        """The address at which this machine reaches it."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    @property
    def commands(self) -> Path:
        """Folder of Flower's commands as they run here: `flwr` for the operator, the others for the SuperLink."""
        return self.home / "commands"

    @property
    def environment(self) -> dict[str, str]:
        """Environment of the SuperLink and of the commands that talk to it."""
        return environment(self.home, self.commands)

    def start_command(self) -> list[str]:
        """Return what starts the SuperLink."""
        secured = ["--insecure"]
        if self.tls:
            files = (("ca-certfile", "ca.crt"), ("certfile", "server.crt"), ("keyfile", "server.key"))
            secured = [part for name, file in files for part in (f"--ssl-{name}", str(self.tls / file))]
        own = ["--host", self.host, "--port", str(self.port), "--database", str(self.database)]
        auth = ["--enable-supernode-auth"] if self.auth else []
        start = gate.command_line(gate.SERVER, "flower-superlink")
        return [*start, *own, *secured, *auth, "--disable-runtime-dependency-installation"]

    def write_connection(self) -> None:
        """Write how Flower's command line reaches the SuperLink, and the commands themselves."""
        secured = f'root-certificates = "{self.tls / "ca.crt"}"' if self.tls else "insecure = true"
        self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        gate.write_commands(self.commands, gate.SERVER, self.home)
        lines = ["[superlink]", f'default = "{CONNECTION}"', "", f"[superlink.{CONNECTION}]"]
        lines += [f'address = "{self.reached}"', secured, ""]
        writing.write(self.home / "config.toml", "\n".join(lines))

    def forget_secret(self) -> None:
        """Take away the secret of a SuperLink that is gone."""
        forget_secret(self.home)

    def is_up(self) -> bool:
        """Return whether the SuperLink that was started after `forget_secret` holds its port, behind its gate."""
        return is_secret_there(self.home)

    def listens(self) -> bool:
        """Return whether somebody takes connections there."""
        host, _, port = self.reached.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=1.0).close()
        except OSError:
            return False
        return True

    def submit(self, app: Path, directory: Path, nodes: Path | None = None, wards: int = WARDS) -> str:
        """Start a run of the app on a run directory and return Flower's id of it.

        Args:
            nodes: the server's folder, which tells who may take part (`fedcl.real.nodes`); None: whoever comes.
            wards: how many clients one node may have at most.

        Raises:
            FederationError: the SuperLink did not take it.
        """
        told = f"directory={json.dumps(str(directory))} wards={wards}"
        told += f" nodes={json.dumps(str(nodes))}" if nodes else ""
        answer = self._asked("run", str(app), CONNECTION, "-c", told)
        return str(answer["run-id"])

    def nodes(self) -> list[Mapping[str, Any]]:
        """Return the registered nodes as Flower lists them."""
        found: list[Mapping[str, Any]] = self._asked("supernode", "list", CONNECTION, "--verbose")["nodes"]
        return found

    def register(self, public_key: Path) -> str:
        """Let a node in and return Flower's id of it."""
        answer = self._asked("supernode", "register", str(public_key), CONNECTION, "--name", public_key.stem)
        return str(answer["node-id"])

    def unregister(self, node: str) -> None:
        """Let a node in no more."""
        self._asked("supernode", "unregister", node, CONNECTION)

    def _asked(self, *arguments: str) -> Mapping[str, Any]:
        done = subprocess.run(
            [*gate.command_line(gate.SERVER, "flwr"), *arguments, "--format", "json"], env=self.environment,
            capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        return read_answer(" ".join(arguments[:2]), done.stdout, done.stderr)


def read_answer(what: str, out: str, errors: str) -> Mapping[str, Any]:
    """Return what a command of Flower's answered as JSON.

    Raises:
        FederationError: it failed, or answered something else.
    """
    try:
        answer = json.loads(out)
    except ValueError as error:
        said = foreign.line(errors or out) or "nothing"
        raise FederationError(f"flwr {what} failed: {said[:300]}") from error
    if not isinstance(answer, dict) or not answer.get("success"):
        reason = answer.get("error-message", answer) if isinstance(answer, dict) else answer
        raise FederationError(f"flwr {what} failed: {foreign.line(str(reason))[:300]}")
    return answer


def node_command(
    server: str, *, port: int, settings: Mapping[str, str], tls: Path | None = None, key: Path | None = None
) -> list[str]:
    """Return what starts a SuperNode.

    Args:
        server: host:port of the SuperLink.
        port: where its own processes reach it, on this machine.
        settings: node-config: which clients it hosts (`fedcl.names.Hosted`).
        tls: certificate of the CA that signed the server's; None: plain text.
        key: private key by which the node proves who it is.
    """
    secured = ["--root-certificates", str(tls)] if tls else ["--insecure"]
    proven = ["--auth-supernode-private-key", str(key)] if key else []
    told = " ".join(f'{name}="{value}"' for name, value in settings.items())
    own = ["--superlink", server, "--port", str(port), "--node-config", told]
    return [*gate.command_line(gate.NODE, "flower-supernode"), *own, *secured, *proven]
