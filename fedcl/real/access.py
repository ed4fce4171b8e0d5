"""Who may call which route of a SuperLink or a SuperNode: what stands before Flower's own HTTP app.

Flower serves three interfaces at one port: Fleet for nodes, Control for its command line, Runtime for the processes
that it starts. It asks for a signature on Fleet alone; whoever reaches the port may use the other two. So every request
is looked at here first. Both lists are closed: a route that a later version adds is refused until it stands here.

- `everyone`: what nodes call from outside. Flower itself then asks for the node's signature.
- `own`: what this machine's own processes call. They come from this machine and show the secret (`fedcl.real.secret`).
  A reverse proxy makes outsiders look local and other users of this machine are local, so one without the other is not
  enough. What a header says about where a request comes from is never read.

A refusal is the same for all and says nothing: 404 without a body. Nothing of Flower's is imported here.
"""

import asyncio
import base64
import binascii
import hmac
import ipaddress
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

SECRET_HEADER = b"x-fedcl-secret"
KEY_HEADER = b"flwr-public-key"  # of a node, in base64
# Bytes of a request from outside. Flower cuts arrays into pieces of 5 MB; everything else of a node's is small.
LARGEST = 32 << 20
LARGEST_UNKNOWN = 1 << 16  # of one whose key is not registered, where nodes prove who they are
SILENCE = 60.0  # seconds without a byte after which a request from outside is given up


def _under(prefix: str, *names: str) -> frozenset[str]:
    return frozenset(f"/v1/{prefix}/{name}" for name in names)


NODE_ROUTES = _under(
    "fleet", "activate-node", "deactivate-node", "send-node-heartbeat", "pull-messages", "push-messages", "get-run",
    "get-fab", "push-object", "pull-object", "confirm-message-received",
)  # fmt: skip
# How a node without a key of its own comes and goes. With --auth only `fedcl server nodes` registers one.
SELF_REGISTRATION = _under("fleet", "register-node", "unregister-node")
# What fedcl's supervisor and the server's operator do. Automations, apps of Flower's hub, accounts ... are out.
CONTROL_ROUTES = _under(
    "control", "start-run", "stop-run", "list-runs", "stream-logs", "list-nodes", "register-node", "unregister-node"
)
# What an executor and the process of an app do. Tasks of agents, models and connectors are out.
RUNTIME_ROUTES = _under(
    "runtime", "acquire-task", "send-task-heartbeat", "pull-task-input", "push-task-output", "push-object",
    "pull-object", "confirm-message-received", "push-logs", "push-messages", "pull-messages", "get-nodes",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Who may do what. Paths are exact, the method is POST."""

    secret: str
    own: frozenset[str]
    everyone: frozenset[str] = field(default_factory=frozenset)
    # Whether a public key is a registered node's; None: nodes do not prove who they are.
    registered: Callable[[bytes], bool] | None = None


def superlink_rules(secret: str, registered: Callable[[bytes], bool] | None) -> Rules:
    """Return the rules of a server."""
    everyone = NODE_ROUTES if registered else NODE_ROUTES | SELF_REGISTRATION
    return Rules(secret=secret, own=CONTROL_ROUTES | RUNTIME_ROUTES, everyone=everyone, registered=registered)


def supernode_rules(secret: str) -> Rules:
    """Return the rules of a node: nobody outside calls it."""
    return Rules(secret=secret, own=RUNTIME_ROUTES)


def is_local(scope: Scope) -> bool:
    """Return whether the other end of a connection is this machine: a loopback address, or the connection's own."""
    try:
        peer = ipaddress.ip_address(scope["client"][0])
        here = ipaddress.ip_address(scope["server"][0])
    except (KeyError, TypeError, ValueError):
        return False
    inner = getattr(peer, "ipv4_mapped", None) or peer
    return bool(inner.is_loopback) or peer == here


def is_allowed(rules: Rules, scope: Scope) -> bool:
    """Return whether a request may go on to Flower."""
    if scope["type"] != "http" or scope["method"] != "POST" or scope.get("root_path"):
        return False
    path = scope["path"]
    return path in rules.everyone or (path in rules.own and is_local(scope) and _knows(rules.secret, scope))


def _knows(secret: str, scope: Scope) -> bool:
    """Return whether a request shows the secret, in a time that does not depend on how much of it is right."""
    shown = _header(scope, SECRET_HEADER)
    return bool(secret) and shown is not None and hmac.compare_digest(shown, secret.encode())


def _header(scope: Scope, name: bytes) -> bytes | None:
    """Return the value of a header, None if it is missing or stands there twice."""
    found = [value for key, value in scope["headers"] if key.lower() == name]
    return found[0] if len(found) == 1 else None


@dataclass(frozen=True)
class Gate:
    """An ASGI app that passes on to another what the rules allow, and refuses the rest."""

    app: App
    rules: Rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or pass on the server's start and end."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        elif not is_allowed(self.rules, scope):
            await _refuse(send, 404)
        elif scope["path"] in self.rules.own:
            # Whatever Flower writes into its log, the secret is not among it.
            left = [pair for pair in scope["headers"] if pair[0].lower() != SECRET_HEADER]
            await self.app({**scope, "headers": left}, receive, send)
        else:
            await self._pass_bounded(scope, receive, send)

    async def _pass_bounded(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on a request from outside: no more bytes than it may have, and no longer waiting for them."""
        most = await self._largest(scope)
        if (declared_bytes(scope) or 0) > most:
            await _refuse(send, 413)
            return
        read, complete, cut = 0, False, False

        async def bounded() -> Message:
            nonlocal read, complete, cut
            if complete:
                return await receive()  # waits for the other end to hang up, as long as the answer takes
            try:
                message = await asyncio.wait_for(receive(), SILENCE)
            except TimeoutError:
                cut = True
                return {"type": "http.disconnect"}
            read += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            cut = read > most
            return {"type": "http.disconnect"} if cut else message

        async def answer(message: Message) -> None:
            if not cut:
                await send(message)

        await self.app(scope, bounded, answer)
        if cut:
            await _refuse(send, 413)

    async def _largest(self, scope: Scope) -> int:
        """Return how many bytes a request may have: few, unless its key is a registered node's."""
        known = self.rules.registered
        size = declared_bytes(scope)
        if known is None:
            return LARGEST
        if size is not None and size <= LARGEST_UNKNOWN:
            return LARGEST_UNKNOWN
        try:
            key = base64.b64decode(_header(scope, KEY_HEADER) or b"", validate=True)
        except binascii.Error:
            return LARGEST_UNKNOWN
        is_known: bool = await asyncio.to_thread(known, key)
        return LARGEST if is_known else LARGEST_UNKNOWN


def declared_bytes(scope: Scope) -> int | None:
    """Return how long a request says that its body is, None if it does not say so."""
    said = _header(scope, b"content-length")
    return int(said) if said and said.isdigit() and len(said) < 20 else None


async def _refuse(send: Send, status: int) -> None:
    headers = [(b"content-length", b"0"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b""})
