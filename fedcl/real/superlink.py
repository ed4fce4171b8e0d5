"""Flower's servers behind fedcl's gate: a SuperLink, and a SuperNode, whose port other users of its machine reach.

Both are HTTP apps that uvicorn serves. Each guard here changes Flower in this process alone and is called before
Flower's own command: from then on every server of uvicorn's passes on what `fedcl.real.access` allows and nothing else,
however Flower starts it. Where Flower is built otherwise than it was, a guard refuses, and nothing runs.
"""

import os
import socket
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from fedcl.errors import FederationError
from fedcl.real import access, bundle
from fedcl.real.access import Rules
from fedcl.real.secret import make_secret

# Variables that make a SuperLink listen at further ports, which no gate stands before.
OTHER_PORTS = ("FLWR_INTERNAL_GRPC_CONTROL_API", "FLWR_INTERNAL_GRPC_FLEET_API")
FURTHER = "nothing runs until fedcl knows this version of Flower"


def require(owner: Any, *names: str) -> None:
    """Look whether a module or class of Flower's still has what is about to be replaced.

    Raises:
        FederationError: it has not.
    """
    for name in names:
        if not callable(getattr(owner, name, None)):
            raise FederationError(f"Flower's {name} is not where it was: {FURTHER}")


def guard_superlink(home: Path) -> None:
    """Put the gate before the SuperLink of this process, and let it run no app but fedcl's.

    Raises:
        FederationError: this version of Flower is built otherwise.
    """
    for name in OTHER_PORTS:
        os.environ.pop(name, None)
    control = getattr(import_module("flwr.superlink.routers.control.router"), "control_handlers", None)
    fleet = getattr(import_module("flwr.superlink.routers.fleet.router"), "fleet_handlers", None)
    require(control, "start_run")
    require(fleet, "push_messages")
    _serve_behind_gate("flwr.superlink.cli.flower_superlink", home, _rules_of_superlink)
    vars(control)["start_run"] = only_own_app(vars(control)["start_run"])
    vars(fleet)["push_messages"] = only_own_answers(vars(fleet)["push_messages"])


def guard_supernode(home: Path) -> None:
    """Put the gate before the SuperNode of this process.

    Raises:
        FederationError: this version of Flower is built otherwise.
    """
    _serve_behind_gate("flwr.supernode.cli.flower_supernode", home, lambda secret, app: access.supernode_rules(secret))


def _rules_of_superlink(secret: str, app: Any) -> Rules:
    state = app.state

    def registered(key: bytes) -> bool:
        return state.linkstate_factory.state().get_node_id_by_public_key(key) is not None

    return access.superlink_rules(secret, registered if state.enable_supernode_auth else None)


def _serve_behind_gate(command: str, home: Path, rules: Callable[[str, Any], Rules]) -> None:
    """Let every server of uvicorn's in this process stand behind a gate.

    Args:
        command: Flower's module that starts the server: it must be uvicorn that it starts.
        home: where the secret is kept.
        rules: of a secret and of the app that is served.
    """
    import uvicorn

    if vars(import_module(command)).get("uvicorn") is not uvicorn:
        raise FederationError(f"Flower serves by something else than uvicorn: {FURTHER}")
    require(uvicorn.Server, "serve")
    serve = uvicorn.Server.serve

    async def serve_behind_gate(self: Any, sockets: Any = None) -> None:
        config = self.config
        if config.loaded or sockets or config.workers != 1 or not hasattr(config.app, "state"):
            raise FederationError(f"Flower starts its HTTP server in another way: {FURTHER}")
        held = listen(config.host, config.port)
        config.app = access.Gate(config.app, rules(make_secret(home), config.app))
        # Who asks is who has connected, whatever a header says; and nobody is told what serves here.
        config.proxy_headers, config.server_header, config.ws = False, False, "none"
        await serve(self, held)

    uvicorn.Server.serve = serve_behind_gate  # type: ignore[method-assign]


def listen(host: str, port: int) -> list[socket.socket]:
    """Return sockets that listen at an address: from now on nobody else can.

    Raises:
        FederationError: somebody does already, or this machine has no such address.
    """
    held: list[socket.socket] = []
    try:
        for family, kind, number, _, at in socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            opened = socket.socket(family, kind, number)
            held.append(opened)
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            opened.bind(at)
            opened.listen(2048)
    except OSError as error:
        for opened in held:
            opened.close()
        raise FederationError(f"{host}:{port} cannot be listened at ({error.strerror or error})") from error
    return held


def only_own_app(start_run: Callable[..., Any]) -> Callable[..., Any]:
    """Return Flower's handler of a submission, which takes no app but that of the fedcl installed here."""
    from flwr.supercore.error import ApiErrorCode, FlowerError

    def start_own_run(request: Any, *given: Any, **named: Any) -> Any:
        found = bundle.problem(request.fab.content, "somebody submits")
        if request.app_spec:
            found = "somebody submits an app by its name on Flower's hub: this server runs fedcl's own alone"
        if found:
            raise FlowerError(ApiErrorCode.NO_PERMISSIONS, found, public_details=found)
        return start_run(request, *given, **named)

    return start_own_run


def only_own_answers(push_messages: Callable[..., Any]) -> Callable[..., Any]:
    """Return Flower's handler of answers, which takes a node's own alone: Flower does not compare who signs with it."""
    from flwr.supercore.error import ApiErrorCode, FlowerError

    def push_own_messages(request: Any, *given: Any, **named: Any) -> Any:
        sender = request.node.node_id
        if not request.messages_list or any(each.metadata.src_node_id != sender for each in request.messages_list):
            raise FlowerError(ApiErrorCode.NO_PERMISSIONS, f"node {sender} answers for another node")
        return push_messages(request, *given, **named)

    return push_own_messages
