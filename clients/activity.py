"""What a node has done, one line of JSON a message, for its supervisor to tell: appended to the file FEDCL_ACTIVITY."""

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from flwr.app import RecordDict

from fedcl import wire, writing


@contextmanager
def noted(kind: str, content: RecordDict) -> Iterator[dict[str, Any]]:
    """Note a message of a kind and how long the block took, or why it failed; what the block adds is noted too."""
    added = dict[str, Any]()
    if not os.environ.get("FEDCL_ACTIVITY"):
        yield added
        return
    began, error = time.monotonic(), ""
    try:
        yield added
    except Exception as raised:
        error = (str(raised).strip().splitlines() or [type(raised).__name__])[-1]
        raise
    finally:
        tell({**_about(content), **added, "kind": kind, "seconds": round(time.monotonic() - began, 3), "error": error})


def tell(done: Mapping[str, Any]) -> None:
    """Append a line, where somebody reads it."""
    path = os.environ.get("FEDCL_ACTIVITY")
    if path:
        with writing.appending(path, writing.OWN) as file:
            file.write(json.dumps(done).encode() + b"\n")


def _about(content: RecordDict) -> dict[str, Any]:
    """Return round and clients of an order that nobody has checked yet, as far as they can be read."""
    try:
        facts = json.loads(str(content.config_records["facts"]["json"]))
        clients = wire.unpack(content.array_records["arrays"])["clients"].tolist()
        return {"round": int(facts["round"]), "clients": clients}
    except (wire.BadMessage, KeyError, ValueError, TypeError, AttributeError):
        return {"round": 0, "clients": []}
