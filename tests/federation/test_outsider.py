"""An outsider with the server's address and ca.crt gets nothing; a registered node gets what it needs, and no more."""

import json
import os
import ssl
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from fedcl import certs
from fedcl.errors import FederationError
from fedcl.real import access
from fedcl.real.nodes import read_link
from fedcl.real.secret import read_secret
from tests.federation.machines import SCENARIO, Machines, fedcl, machines, until
from tests.routes import superlink_routes

pytestmark = [pytest.mark.machines, pytest.mark.xdist_group("outsider")]
SMALL = [*SCENARIO, "stream.tasks=1", "stream.clients=2", "server.min_clients=2"]
FOREIGN = """\
[project]
name = "evil"
version = "1.0.0"
dependencies = []
[tool.flwr.app]
publisher = "somebody"
[tool.flwr.app.components]
serverapp = "evil:app"
clientapp = "evil:client"
[tool.flwr.app.config]
"""
CODE = """\
from pathlib import Path
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
Path({mark!r}).touch()
app = ServerApp()
client = ClientApp()
@app.main()
def main(grid, context): pass
"""


class Outsider:
    """Somebody with Flower's own command line, the server's address and, over TLS, its CA's certificate."""

    def __init__(self, found: Machines, tls: Path | None) -> None:
        self.folder, self.tls = found.folder / "outsider", tls
        self.mark = self.folder / "ran"  # made by the foreign app as soon as its code is loaded
        (self.folder / "evil").mkdir(parents=True)
        (self.folder / "evil" / "pyproject.toml").write_text(FOREIGN)
        (self.folder / "evil" / "evil.py").write_text(CODE.format(mark=str(self.mark)))
        secured = f'root-certificates = "{tls / "ca.crt"}"' if tls else "insecure = true"
        at = f'[superlink.it]\naddress = "{found.host}:{found.port}"\n{secured}\n'
        (self.folder / "config.toml").write_text(f'[superlink]\ndefault = "it"\n{at}')
        self.base = f"http{'s' if tls else ''}://{found.host}:{found.port}"

    def flwr(self, *arguments: str, command: str = "") -> subprocess.CompletedProcess[str]:
        """Run Flower's command line as it is installed."""
        line = [command or str(Path(sys.executable).parent / "flwr"), *arguments]
        own = {**os.environ, "FLWR_HOME": str(self.folder), "FLWR_DISABLE_UPDATE_CHECK": "1", "COLUMNS": "200"}
        return subprocess.run(
            line, env=own, cwd=self.folder, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL
        )

    @contextmanager
    def http(self) -> Iterator[httpx.Client]:
        """Yield a client that verifies nothing."""
        unverified = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        unverified.check_hostname, unverified.verify_mode = False, ssl.CERT_NONE
        with httpx.Client(base_url=self.base, verify=unverified, timeout=60) as client:
            yield client

    def node(self, key: Path) -> Any:
        """Return Flower's own client of the Fleet routes, which signs with a key."""
        from flwr.supernode.fleet_http_client import FleetHttpClient
        from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

        private: Any = certs.load_node_key(key.read_bytes())
        signer = NodeAuthHttpInterceptor(private, private.public_key())
        ca = (self.tls / "ca.crt").read_bytes() if self.tls else None
        return FleetHttpClient.from_server_address(self.base.rpartition("/")[2], not self.tls, ca, [signer])


def flowers_commands_get_nothing(outsider: Outsider, run: str) -> None:
    """Each command of Flower's that the server answered before there was a gate."""
    key = outsider.folder / "key.pub"
    key.write_bytes((outsider.folder.parent / "certs" / "nodes" / "stranger.pub").read_bytes())
    for command in (
        ["ls"], ["supernode", "register", str(key)], ["supernode", "list"], ["supernode", "unregister", "1"],
        ["stop", run], ["log", run, "--show"], ["run", "evil"], ["federation", "list"],
    ):  # fmt: skip
        done = outsider.flwr(*command)
        said = done.stdout + done.stderr
        assert done.returncode != 0, (command, said)
        assert "404" in said, (command, said)
        assert run not in said.replace(" ".join(command), "") or command[0] in ("stop", "log"), (command, said)


def raw_http_gets_nothing(outsider: Outsider, auth: bool) -> None:
    """Every route of the installed Flower, and a few that it has not, with what an outsider can think of."""
    from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE

    answers: Counter[tuple[str, int]] = Counter()
    wrong = {"x-fedcl-secret": "5" * 64, "x-forwarded-for": "127.0.0.1", "authorization": f"Bearer {'5' * 64}"}
    asked = {"content-type": PROTOBUF_MEDIA_TYPE, "accept": PROTOBUF_MEDIA_TYPE}
    nodes = access.NODE_ROUTES if auth else access.NODE_ROUTES | access.SELF_REGISTRATION
    with outsider.http() as client:
        for method, path in [*superlink_routes(), ("GET", "/redoc"), ("GET", "/"), ("POST", "/v1/fleet/new")]:
            for headers in (asked, {**asked, **wrong}):
                got = client.request(method, path, headers=headers, content=b"" if method == "POST" else None)
                answers[(f"{method} {path}", got.status_code)] += 1
                if method == "POST" and path in nodes:
                    assert got.status_code == 401, (path, got.status_code, got.text)  # unsigned, says Flower
                    assert got.json() == {"detail": "Invalid SuperNode authentication"}
                else:
                    assert (got.status_code, got.content) == (404, b""), (method, path, got.status_code, got.text)
        large = client.post("/v1/fleet/push-object", content=bytes(access.LARGEST + 1), headers=asked)
        assert large.status_code == 413
    for (route, status), _ in sorted(answers.items()):
        print(f"{status}  {route}")


def other_users_of_the_machine_get_nothing(state: Path) -> None:
    """The secret is this user's alone, and so are the folders around it."""
    assert (state / "flwr" / "secret").stat().st_mode & 0o777 == 0o600
    assert state.stat().st_mode & 0o777 == 0o700
    if os.geteuid() == 0:  # nobody else can be played otherwise
        os.seteuid(65534)
        try:
            with pytest.raises(FederationError, match="cannot be read"):
                read_secret(state / "flwr")
        finally:
            os.seteuid(0)


def the_operator_commands_and_runs_no_foreign_app(outsider: Outsider, state: Path, run: str) -> None:
    """Flower's command line with the secret: it sees the run, and even so no other app is taken."""
    command = str(state / "flwr" / "commands" / "flwr")
    assert run in outsider.flwr("ls", "--format", "json", command=command).stdout
    done = outsider.flwr("run", str(outsider.folder / "evil"), "fedcl", command=command)
    said = " ".join((done.stdout + done.stderr).split())
    assert done.returncode != 0
    assert "somebody submits an app" in said
    assert "is not fedcl" in said


def keys_open_what_nodes_need_alone(outsider: Outsider, keys: Path, auth: bool) -> None:
    """A key that is not registered is not let in (with --auth); a registered one commands nothing."""
    from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest, RegisterNodeFleetRequest
    from flwr.proto.node_pb2 import Node
    from flwr.supercore.primitives.asymmetric import public_key_to_bytes

    for name, known in (("stranger", False), ("a", True)):
        private: Any = certs.load_node_key((keys / f"{name}.key").read_bytes())
        public = public_key_to_bytes(private.public_key())
        with outsider.node(keys / f"{name}.key") as client:
            if auth:
                with pytest.raises(httpx.HTTPStatusError, match="404"):
                    client.RegisterNode(RegisterNodeFleetRequest(public_key=public))
            if auth and not known:
                with pytest.raises(httpx.HTTPStatusError, match=r"40[0-9]|412"):
                    client.ActivateNode(ActivateNodeRequest(public_key=public, heartbeat_interval=30.0))
                with pytest.raises(httpx.HTTPStatusError, match="401"):
                    client.PullMessages(PullMessagesRequest(node=Node(node_id=1)))
            for path in sorted(access.CONTROL_ROUTES | access.RUNTIME_ROUTES):
                with pytest.raises(httpx.HTTPStatusError, match="404"):
                    client._unary_unary(
                        path=path, rpc_method="any", request=PullMessagesRequest(), response_type=PullMessagesRequest
                    )


def a_nodes_own_port_opens_nothing(found: Machines) -> None:
    """What another user of a hospital's machine reaches on 127.0.0.1."""
    until("the nodes", lambda: all((found.folder / f"node-{name}" / "flwr" / "secret").exists() for name in "ab"))
    process = found.processes("flower-supernode")[0]
    line = Path(f"/proc/{process}/cmdline").read_text().split("\0")
    port = line[line.index("--port") + 1]
    for path in ("/docs", "/openapi.json", "/health"):
        assert httpx.get(f"http://127.0.0.1:{port}{path}").status_code == 404
    for path in sorted(access.RUNTIME_ROUTES):
        assert httpx.post(f"http://127.0.0.1:{port}{path}").status_code == 404


@pytest.mark.parametrize("tls", [True, False], ids=["tls with keys", "plain"])
def test_an_outsider_gets_nothing_and_the_nodes_finish_their_federation(tmp_path: Path, tls: bool) -> None:
    subprocess.run(fedcl("certs", "certs", "--nodes", "a", "b", "stranger"), cwd=tmp_path, check=True)
    own, state = tmp_path / "certs", tmp_path / "server"
    if tls:
        keys = [str(own / "nodes" / f"{name}.pub") for name in "ab"]
        subprocess.run(fedcl("server", "nodes", "add", *keys, "--state", "server"), cwd=tmp_path, check=True)
    with machines(tmp_path) as found:
        found.serve(*SMALL, *(["--tls", str(own), "--auth"] if tls else []))
        until("the ServerApp", lambda: found.run.exists() and found.processes("flwr-serverapp"))
        until("it waits for nodes", lambda: found.run.exists() and found.server_app)
        outsider, link = Outsider(found, own if tls else None), read_link(state)
        runs = json.loads(outsider.flwr("ls", "--format", "json", command=str(link.commands / "flwr")).stdout)
        run = str(runs["runs"][0]["run-id"])
        flowers_commands_get_nothing(outsider, run)
        raw_http_gets_nothing(outsider, auth=tls)
        other_users_of_the_machine_get_nothing(state)
        keys_open_what_nodes_need_alone(outsider, own / "nodes", auth=tls)
        the_operator_commands_and_runs_no_foreign_app(outsider, state, run)
        assert len(found.processes("flwr-serverapp")) == 1  # fedcl's own
        for name in "ab":
            key = ["--tls", str(own / "ca.crt"), "--key", str(own / "nodes" / f"{name}.key")] if tls else []
            found.join(name=f"node-{name}", extra=key)
        a_nodes_own_port_opens_nothing(found)
        results = found.finished()
        assert results["status"] == "finished"
        assert [sorted(event["clients"]) for event in found.events("round")] == [[0, 1]] * 2
        assert found.events("client_error") == []
        assert not outsider.mark.exists()
        node = read_secret(tmp_path / "node-a" / "flwr")
        assert len(node) == 64
        assert node != read_secret(tmp_path / "node-b" / "flwr")
