"""The node's own list of what has left it: one line of JSON for each array of each reply, and for every refusal.

A line is on the disk before the reply leaves. What the reply's sum holds is listed statistic by statistic; its table of
counts, norms and losses column by column; errors with their texts' length. The clients' numbers and the round, which
the server has sent itself, are named, not counted.
"""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from clients.policy import statistics
from clients.site import Site
from fedcl import writing
from fedcl.errors import FederationError
from fedcl.journal import sync_path
from fedcl.orders import Array, ConsolidateReply, Order, Reply, TrainReply

Line = dict[str, Any]


class Unwritten(FederationError):
    """The audit cannot be written, so nothing may leave."""


def of_reply(site: Site, order: Order, reply: Reply) -> Iterator[Line]:
    """Yield a line for each array that a reply holds, and one for its errors."""
    clients = reply.clients.tolist()
    for statistic, part, array in _arrays(site, order, reply):
        yield {
            "clients": clients, "statistic": statistic, "part": part, "shape": list(array.shape),
            "dtype": str(array.dtype), "bytes": array.nbytes,
        }  # fmt: skip
    if reply.errors:
        size = sum(len(each.error.encode()) + len(each.traceback.encode()) for each in reply.errors)
        failed = [each.client for each in reply.errors]
        yield {"clients": failed, "statistic": "errors", "part": "errors", "shape": [len(failed)], "dtype": "text",
               "bytes": size}  # fmt: skip


def _arrays(site: Site, order: Order, reply: Reply) -> Iterator[tuple[str, str, Array]]:
    """Yield the statistic, the part of the reply and the values of each array."""
    first, *_ = statistics(order)
    if isinstance(reply, TrainReply | ConsolidateReply):
        names = statistics(order)
        ends = np.cumsum([site.layout([name]).size for name in names])
        for name, part in zip(names, np.split(reply.total, ends[:-1]), strict=True):
            yield name, "total", part
    else:
        for each in fields(reply):
            value = getattr(reply, each.name)
            if isinstance(value, np.ndarray) and each.name != "clients":
                yield first, each.name, value
    for column, values in reply.table.items():
        of_accuracy = column.startswith(("correct/", "items/"))
        yield "accuracy" if of_accuracy else first, f"table/{column}", values


def write(path: Path, lines: Sequence[Line]) -> None:
    """Append lines, with the time, and force them onto the disk.

    The file is created for this user alone. A torn last line of a process that was killed is ended first.

    Raises:
        Unwritten: it cannot be done.
    """
    now = datetime.now(UTC).isoformat(timespec="microseconds")
    text = "".join(json.dumps({"time": now, **line}) + "\n" for line in lines).encode()
    try:
        fresh = not path.exists()
        with writing.appending(path, writing.OWN) as file:
            opened = file.fileno()
            if file.tell() and os.pread(opened, 1, file.tell() - 1) != b"\n":
                text = b"\n" + text
            file.write(text)
            file.flush()
            os.fsync(opened)
        if fresh:
            sync_path(path.parent)
    except OSError as error:
        raise Unwritten(f"FEDCL_AUDIT = {str(path)!r} cannot be written ({error}): nothing leaves this node") from error
