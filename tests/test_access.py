"""The gate before a SuperLink and a SuperNode: who passes, who does not, and what it takes to know the secret."""

import asyncio
import base64
import os
import socket
import stat
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from fedcl.errors import FederationError
from fedcl.real import access, gate, superlink
from fedcl.real.access import LARGEST, LARGEST_UNKNOWN, Gate, superlink_rules, supernode_rules
from fedcl.real.secret import is_secret_there, make_secret, read_secret, show_secret
from tests.routes import (
    HERE,
    OUTSIDE,
    SECRET,
    answer,
    flower,
    scope,
    shown,
    superlink_routes,
    supernode_routes,
    verdicts,
)

AUTH, OPEN = superlink_rules(SECRET, lambda key: key == b"hospital"), superlink_rules(SECRET, None)
NODE = supernode_rules(SECRET)
NODE_ROUTE, CONTROL_ROUTE = "/v1/fleet/pull-messages", "/v1/control/start-run"
# Routes of Flower that nobody may call. One that stands neither here nor in fedcl/real/access.py is new: it is refused,
# and the tests ask that somebody decides.
NOBODYS = {
    *access._under(
        "control", "accept-invitation", "add-app", "add-node-to-federation", "archive-federation",
        "begin-connector-oauth", "complete-connector-oauth", "configure-simulation-federation", "create-federation",
        "create-invitation", "disconnect-connector", "get-auth-tokens", "get-login-details", "get-run-series",
        "list-app-associations", "list-apps", "list-automations", "list-connectors", "list-federations",
        "list-invitations", "list-run-series", "list-run-series-events", "pull-artifacts", "refresh-auth-tokens",
        "reject-invitation", "remove-account-from-federation", "remove-app", "remove-node-from-federation",
        "revoke-invitation", "set-federation-icon", "show-federation", "start-automation", "stop-automation",
        "stream-run-events", "update-run-series-description",
    ),
    *access._under(
        "runtime", "create-task", "get-compacted-contexts", "get-connector", "get-run-series-events",
        "pull-task-message", "push-task-events", "push-task-message", "put-compacted-context", "record-task-usage",
        "responses", "start-automation",
    ),
    "/docs", "/docs/oauth2-redirect", "/health", "/openapi.json",
}  # fmt: skip
OWN = access.CONTROL_ROUTES | access.RUNTIME_ROUTES


@pytest.mark.parametrize("rules", [AUTH, OPEN], ids=["auth", "no auth"])
def test_every_route_of_the_installed_superlink_is_refused_unless_it_is_on_a_list(rules: access.Rules) -> None:
    """From outside, from this machine, from outside with the secret, from this machine with it."""
    routes = superlink_routes()
    unknown = {path for _, path in routes} - OWN - access.NODE_ROUTES - access.SELF_REGISTRATION - NOBODYS
    assert not unknown, f"this version of Flower has new routes, which are refused: {sorted(unknown)}"
    for method, path in routes:
        expected = (404, 404, 404, 404)
        if method == "POST" and path in rules.everyone:
            expected = (200, 200, 200, 200)
        if method == "POST" and path in OWN:
            expected = (404, 404, 404, 200)
        assert verdicts(rules, (method, path)) == expected, (method, path)
    assert rules.everyone == access.NODE_ROUTES | (set() if rules.registered else access.SELF_REGISTRATION)
    assert rules.everyone | OWN <= {path for method, path in routes if method == "POST"}


def test_nobody_outside_calls_a_node_and_its_own_processes_show_the_secret() -> None:
    routes = supernode_routes()
    assert {path for _, path in routes} <= access.RUNTIME_ROUTES | NOBODYS
    for method, path in routes:
        allowed = method == "POST" and path in access.RUNTIME_ROUTES
        assert verdicts(NODE, (method, path)) == (404, 404, 404, 200 if allowed else 404), (method, path)


@pytest.mark.parametrize(
    "path",
    [
        "/redoc", "/", "", "/v1/fleet/", "/v1/fleet", "/v1/fleet/pull-messages/", "//v1/fleet/pull-messages",
        "/v1/fleet/../control/start-run", "/V1/FLEET/pull-messages", "/v1/fleet/pull-messages\x00", "/v1/fleet/new",
        "/v1/control/new", "/v1/runtime/new", "/v2/control/start-run",
    ],
)  # fmt: skip
def test_only_an_exact_path_passes_even_with_the_secret(path: str) -> None:
    assert answer(AUTH, scope("POST", path, client=HERE, headers=[shown()])) == (404, b"")


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "OPTIONS", "post"])
def test_only_a_post_passes(method: str) -> None:
    for path in (NODE_ROUTE, CONTROL_ROUTE):
        assert answer(AUTH, scope(method, path, client=HERE, headers=[shown()]))[0] == 404


@pytest.mark.parametrize(
    "headers",
    [
        [], [shown("")], [shown(SECRET[:-1])], [shown(SECRET + "5")], [shown("6" * 64)], [shown(), shown()],
        [shown("6" * 64), shown()], [(b"authorization", SECRET.encode())], [(b"x-fedcl-secret", b"\xff" * 64)],
    ],
    ids=["none", "empty", "shorter", "longer", "another", "twice", "two", "elsewhere", "no text"],
)  # fmt: skip
def test_this_machine_is_not_enough(headers: list[tuple[bytes, bytes]]) -> None:
    assert answer(AUTH, scope("POST", CONTROL_ROUTE, client=HERE, headers=headers)) == (404, b"")


def test_a_gate_without_a_secret_lets_nobody_in() -> None:
    assert answer(superlink_rules("", None), scope("POST", CONTROL_ROUTE, client=HERE, headers=[shown("")]))[0] == 404


@pytest.mark.parametrize("name", [b"x-forwarded-for", b"forwarded", b"x-real-ip", b"x-forwarded-host", b"host"])
def test_no_header_makes_an_outsider_local(name: bytes) -> None:
    headers = [shown(), (name, b"127.0.0.1"), (name, b"for=127.0.0.1;host=127.0.0.1")]
    assert answer(AUTH, scope("POST", CONTROL_ROUTE, headers=headers))[0] == 404


@pytest.mark.parametrize(
    ("client", "server", "local"),
    [
        (("127.0.0.1", 1), ("127.0.0.1", 2), True),
        (("127.8.8.8", 1), ("127.0.0.1", 2), True),
        (("::1", 1), ("::1", 2), True),
        (("::ffff:127.0.0.1", 1), ("::ffff:127.0.0.1", 2), True),
        (("198.18.0.1", 1), ("198.18.0.1", 2), True),  # a machine that calls itself by its own address
        (("198.18.0.2", 1), ("198.18.0.1", 2), False),
        (("::ffff:198.18.0.2", 1), ("::ffff:198.18.0.1", 2), False),
        (("0.0.0.0", 1), ("198.18.0.1", 2), False),
        (("localhost", 1), ("127.0.0.1", 2), False),
        (None, ("127.0.0.1", 2), False),
        (("127.0.0.1", 1), None, False),
    ],
)
def test_local_is_who_connects_from_this_machine(client: Any, server: Any, local: bool) -> None:
    request = {**scope("POST", CONTROL_ROUTE, headers=[shown()]), "client": client, "server": server}
    assert access.is_local(request) is local
    assert answer(AUTH, request)[0] == (200 if local else 404)


def test_a_refusal_has_no_body_and_ends_the_connection_and_flower_never_sees_the_secret() -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})

    headers = [shown(), (b"content-type", b"application/x-protobuf")]
    assert answer(AUTH, scope("POST", CONTROL_ROUTE, client=HERE, headers=headers), app=app)[0] == 200
    assert seen[0]["headers"] == headers[1:]
    assert answer(AUTH, scope("POST", CONTROL_ROUTE, client=OUTSIDE), app=app) == (404, b"")
    assert len(seen) == 1
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError("a refusal needs no body")

    asyncio.run(Gate(app, AUTH)(scope("GET", "/docs"), receive, send))
    assert (b"connection", b"close") in sent[0]["headers"]
    asyncio.run(Gate(app, AUTH)({**scope("GET", NODE_ROUTE, headers=[shown()]), "type": "websocket"}, receive, send))
    assert sent[-1] == {"type": "websocket.close", "code": 1008}


def _key(name: bytes) -> tuple[bytes, bytes]:
    return (b"flwr-public-key", base64.b64encode(name))


@pytest.mark.parametrize(
    ("rules", "headers", "most"),
    [
        (OPEN, [], LARGEST),
        (AUTH, [_key(b"hospital")], LARGEST),
        (AUTH, [], LARGEST_UNKNOWN),
        (AUTH, [_key(b"anybody")], LARGEST_UNKNOWN),
        (AUTH, [(b"flwr-public-key", b"no base64")], LARGEST_UNKNOWN),
        (AUTH, [_key(b"hospital"), _key(b"anybody")], LARGEST_UNKNOWN),
    ],
    ids=["no auth", "registered", "no key", "unknown key", "no base64", "two keys"],
)
def test_a_body_from_outside_is_bounded_before_it_is_read_and_while_it_is(
    rules: access.Rules, headers: list[tuple[bytes, bytes]], most: int
) -> None:
    piece = bytes(LARGEST_UNKNOWN // 2)
    fits, more = [piece] * (most // len(piece)), [piece] * (most // len(piece) + 1)
    assert answer(rules, scope("POST", NODE_ROUTE, headers=headers), fits) == (200, str(most).encode())
    assert answer(rules, scope("POST", NODE_ROUTE, headers=headers), more) == (413, b"")  # in pieces, undeclared
    declared = (b"content-length", str(most + 1).encode())
    assert answer(rules, scope("POST", NODE_ROUTE, headers=[*headers, declared])) == (413, b"")
    lied = (b"content-length", b"1")  # a server that lets more through than was declared is not believed either
    assert answer(rules, scope("POST", NODE_ROUTE, headers=[*headers, lied]), more) == (413, b"")


def test_a_request_that_falls_silent_is_given_up_and_a_long_answer_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "SILENCE", 0.05)
    sent: list[Any] = []

    async def silent() -> Any:
        await asyncio.sleep(10)

    async def send(message: Any) -> None:
        sent.append(message)

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        assert (await receive())["body"] == b"all"
        await asyncio.sleep(0.2)
        await send({"type": "http.response.start", "status": 200, "headers": []})

    asyncio.run(Gate(flower, AUTH)(scope("POST", NODE_ROUTE), silent, send))
    assert sent[0]["status"] == 413
    assert answer(AUTH, scope("POST", NODE_ROUTE), [b"all"], app=slow)[0] == 200


def test_a_secret_is_new_each_time_and_for_this_user_alone(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("mine")
    (tmp_path / "secret").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FederationError, match="cannot be read"):
        read_secret(tmp_path)
    before = os.umask(0)
    try:
        first = make_secret(tmp_path)
    finally:
        os.umask(before)
    assert (tmp_path / "elsewhere").read_text() == "mine"
    assert stat.S_IMODE((tmp_path / "secret").lstat().st_mode) == 0o600
    assert stat.S_ISREG((tmp_path / "secret").lstat().st_mode)
    assert read_secret(tmp_path) == first
    assert len(first) == 64
    assert make_secret(tmp_path) != first
    assert is_secret_there(tmp_path)
    for mode in (0o640, 0o604, 0o620):
        (tmp_path / "secret").chmod(mode)
        with pytest.raises(FederationError, match="is not this user's alone"):
            read_secret(tmp_path)
    (tmp_path / "secret").unlink()
    os.mkfifo(tmp_path / "secret", 0o600)
    with pytest.raises(FederationError, match="is not this user's alone"):
        read_secret(tmp_path)  # and does not wait for a writer
    assert not is_secret_there(tmp_path)


def test_flowers_clients_show_the_secret_of_the_moment_they_are_made(tmp_path: Path) -> None:
    from flwr.supercore.protobuf.client import ProtobufClient

    class Client(ProtobufClient):
        """A client of its own, so that no other is changed."""

    show_secret(Client, tmp_path)
    with pytest.raises(FederationError, match="does the server run"):
        Client("http://127.0.0.1:1")
    secret = make_secret(tmp_path)
    request = httpx.Request("POST", "http://127.0.0.1:1")
    context = SimpleNamespace(request=request)
    for client in (Client("http://127.0.0.1:1"), Client.from_server_address("127.0.0.1:1", True, None, ())):
        client._interceptors[-1].intercept(context, lambda each: each)  # type: ignore[arg-type]
        assert request.headers["x-fedcl-secret"] == secret
        client.close()
    assert ProtobufClient("http://127.0.0.1:1")._interceptors == ()


@pytest.fixture
def pristine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put back whatever a guard changes in Flower and in uvicorn."""
    import uvicorn

    monkeypatch.setattr(uvicorn.Server, "serve", uvicorn.Server.serve)
    for module, name in (
        ("flwr.superlink.servicer.control.control_handlers", "start_run"),
        ("flwr.superlink.servicer.fleet.fleet_handlers", "push_messages"),
        ("flwr.superlink.runtime.run_serverapp", "install_from_fab"),
        ("flwr.superlink.runtime.run_serverapp", "run_"),
    ):
        monkeypatch.setattr(import_module(module), name, getattr(import_module(module), name))
    for name in superlink.OTHER_PORTS:
        monkeypatch.setenv(name, "1")


@pytest.mark.usefixtures("pristine")
def test_a_guarded_server_makes_its_secret_when_it_holds_the_port_and_listens_nowhere_else(tmp_path: Path) -> None:
    """A whole uvicorn, which serves what Flower serves it: here an app that answers who has asked."""
    import uvicorn

    gate.guard_server(tmp_path)
    assert not any(name in os.environ for name in superlink.OTHER_PORTS)
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    seen: list[Any] = []

    class App:
        state = SimpleNamespace(enable_supernode_auth=False)

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] != "http":
                raise RuntimeError("no lifespan")
            seen.append(scope["client"][0])
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body"})

    server = uvicorn.Server(uvicorn.Config(App(), host="127.0.0.1", port=port, log_level="critical"))

    async def talk() -> None:
        serving = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        secret = {"x-fedcl-secret": read_secret(tmp_path)}
        with pytest.raises(FederationError, match=f"127.0.0.1:{port} cannot be listened at"):
            superlink.listen("127.0.0.1", port)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            for headers, status in (({}, 404), (secret, 200), ({**secret, "x-forwarded-for": "198.18.0.9"}, 200)):
                got = await client.post(CONTROL_ROUTE, headers=headers)
                assert got.status_code == status
                assert "server" not in got.headers
            assert (await client.get("/docs", headers=secret)).status_code == 404
        server.should_exit = True
        await serving

    asyncio.run(talk())
    assert seen == ["127.0.0.1", "127.0.0.1"]  # what a header says is not believed


@pytest.mark.usefixtures("pristine")
@pytest.mark.parametrize(
    ("module", "name", "why"),
    [
        ("flwr.superlink.servicer.control.control_handlers", "start_run", "start_run is not where it was"),
        ("flwr.superlink.servicer.fleet.fleet_handlers", "push_messages", "push_messages is not where it was"),
        ("flwr.superlink.runtime.run_serverapp", "install_from_fab", "install_from_fab is not where it was"),
        ("flwr.superlink.runtime.run_serverapp", "run_", "run_ is not where it was"),
        ("flwr.superlink.cli.flower_superlink", "uvicorn", "by something else than uvicorn"),
        ("uvicorn.Server", "serve", "serve is not where it was"),
    ],
)
def test_a_flower_that_is_built_otherwise_is_not_started(
    module: str, name: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import uvicorn

    owner = uvicorn.Server if module == "uvicorn.Server" else import_module(module)
    monkeypatch.delattr(owner, name)
    with pytest.raises(FederationError, match=why):
        gate.guard_server(tmp_path)
    assert not is_secret_there(tmp_path)


@pytest.mark.usefixtures("pristine")
def test_a_server_that_flower_starts_in_another_way_serves_nothing(tmp_path: Path) -> None:
    import uvicorn

    gate.guard_server(tmp_path)
    for config in (
        uvicorn.Config("tests.routes:flower", port=1),  # by a name, as several workers need it
        uvicorn.Config(SimpleNamespace(state=None), port=1, workers=2),  # type: ignore[arg-type]
    ):
        with pytest.raises(FederationError, match="starts its HTTP server in another way"):
            asyncio.run(uvicorn.Server(config).serve())
    assert not is_secret_there(tmp_path)


def test_no_app_but_fedcls_own_is_taken_and_no_answer_but_a_nodes_own() -> None:
    from flwr.proto.control_pb2 import StartRunRequest
    from flwr.proto.fab_pb2 import Fab
    from flwr.proto.fleet_pb2 import PushMessagesRequest
    from flwr.proto.message_pb2 import Message, Metadata
    from flwr.proto.node_pb2 import Node
    from flwr.supercore.error import FlowerError

    from fedcl.real import bundle
    from tests.test_real import zipped

    own = Fab(hash_str="x", content=zipped(**{"pyproject.toml": bundle.TEXT}))
    start = superlink.only_own_app(lambda request, account: account)
    assert start(StartRunRequest(fab=own), "me") == "me"
    for fab, spec in ((Fab(content=b"PK"), ""), (Fab(hash_str="stored"), ""), (own, "@somebody/app"), (Fab(), "")):
        with pytest.raises(FlowerError, match="somebody submits an app"):
            start(StartRunRequest(fab=fab, app_spec=spec), "me")

    push = superlink.only_own_answers(lambda request, state: state)

    def answers(*nodes: int) -> PushMessagesRequest:
        messages = [Message(metadata=Metadata(src_node_id=node)) for node in nodes]
        return PushMessagesRequest(node=Node(node_id=7), messages_list=messages)

    assert push(answers(7), state="s") == "s"
    for wrong in (answers(8), answers(7, 8), answers()):
        with pytest.raises(FlowerError, match="node 7 answers for another node"):
            push(wrong, state="s")
