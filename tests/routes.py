"""The routes of the installed Flower, and what fedcl's gate answers on each: `python -m tests.routes` prints the table.

Answers are those of the gate alone: "passes" means that Flower is asked, who then wants a node's signature on Fleet.
"""

import asyncio
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from fedcl.real.access import LARGEST, Gate, Rules, superlink_rules, supernode_rules

SECRET = "5" * 64
OUTSIDE, HERE = ("198.18.0.9", 40000), ("127.0.0.1", 40000)
Route = tuple[str, str]  # method and path


def superlink_routes() -> list[Route]:
    """Return the routes of a SuperLink, as its own app lists them."""
    from flwr.superlink.main import create_app

    return sorted(_routes(create_app()))


def supernode_routes() -> list[Route]:
    """Return the routes of a SuperNode, as its own app lists them."""
    from flwr.supernode.main import create_app

    return sorted(_routes(create_app()))


def _routes(app: Any) -> Iterator[Route]:
    from fastapi.routing import iter_route_contexts

    for found in iter_route_contexts(app.routes):
        yield from ((method, str(found.path)) for method in found.route.methods)


def scope(method: str, path: str, *, client: Any = OUTSIDE, headers: Sequence[tuple[bytes, bytes]] = ()) -> Any:
    """Return a request as uvicorn hands it on, to a server that listens at 198.18.0.1."""
    server = ("127.0.0.1", 8000) if client == HERE else ("198.18.0.1", 8000)
    return {
        "type": "http", "method": method, "path": path, "root_path": "", "headers": list(headers), "client": client,
        "server": server,
    }  # fmt: skip


def shown(secret: str = SECRET) -> tuple[bytes, bytes]:
    """Return the header that shows a secret."""
    return (b"x-fedcl-secret", secret.encode())


async def flower(scope: Any, receive: Any, send: Any) -> None:
    """Take the place of Flower: read the request and answer 200 with its length."""
    length, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        length, more = length + len(message.get("body", b"")), message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(length).encode()})


def answer(rules: Rules, request: Any, body: Sequence[bytes] = (b"",), app: Any = flower) -> tuple[int, bytes]:
    """Return status and body that the gate answers to a request."""
    sent: list[Any] = []
    parts = [{"type": "http.request", "body": each, "more_body": True} for each in body]
    parts[-1]["more_body"] = False

    async def receive() -> Any:
        return parts.pop(0) if parts else await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(Gate(app, rules)(request, receive, send))
    return sent[0]["status"], b"".join(each.get("body", b"") for each in sent)


def verdicts(rules: Rules, route: Route) -> tuple[int, ...]:
    """Return what a route answers from outside, from this machine, from outside with the secret, and with both."""
    return tuple(
        answer(rules, scope(*route, client=client, headers=headers))[0]
        for headers in ((), (shown(),))
        for client in (OUTSIDE, HERE)
    )


def table(routes: Sequence[Route], rules: Rules) -> str:
    """Return a table in Markdown: routes with the same answers in one row."""
    rows: defaultdict[tuple[str, tuple[int, ...]], list[str]] = defaultdict(list)
    for method, path in routes:
        prefix, _, name = path.rpartition("/")
        rows[(f"{method} {prefix}/", verdicts(rules, (method, path)))].append(name)
    lines = ["| route | outside | this machine | outside, with the secret | this machine, with the secret |"]
    lines.append("|---|---|---|---|---|")
    for (prefix, found), names in rows.items():
        said = " | ".join("passes" if each == 200 else str(each) for each in found)
        lines.append(f"| {prefix} {', '.join(names)} | {said} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(f"a server with --auth (bodies of up to {LARGEST >> 20} MiB):\n")
    print(table(superlink_routes(), superlink_rules(SECRET, lambda key: True)))
    print("\na node's own port:\n")
    print(table(supernode_routes(), supernode_rules(SECRET)))
