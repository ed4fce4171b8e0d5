"""Messages out, replies in, in the order of the cohorts, one at a time, so that sums are formed while others train."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from flwr.app import Message
from flwr.serverapp import Grid

from fedcl import foreign, wire
from fedcl.interrupt import StopRequest
from fedcl.orders import ABSENT, FAILED, REFUSED, VISIT, Array, ClientError, Order, Reply
from fedcl.timing import doing

R = TypeVar("R", bound=Reply)
COLUMNS, LONGEST = 64, 100  # of a reply's table: columns, and letters of their names
SENTENCE = 2000  # letters of an error's first line
FACTS = 1 << 16  # letters that a reply may say about each client, tracebacks among them
AWAY = (3, 4, 5)  # Flower's error codes of a message, an answer or a node that is not there any more
POLL = 0.1  # seconds between looks at a grid that does not wait by itself


def exchange(
    grid: Grid, messages: Sequence[Message], deadline: float, stop: StopRequest, missing: dict[str, int] | None = None
) -> Iterator[Message | None]:
    """Send messages and yield their replies in the order of the messages; None for one that did not come in time.

    Args:
        deadline: seconds that all replies together may take.
        missing: gets id and place of each message whose reply did not come in time; it may come later.
    """
    with doing("broadcast"):
        ids = list(grid.push_messages(messages))  # None: Flower could not send it
    place = {message_id: number for number, message_id in enumerate(ids) if message_id is not None}
    end, here, following = time.monotonic() + deadline, dict[int, Message](), 0
    while following < len(ids):
        stop.check()
        if following in here or ids[following] is None:
            yield here.pop(following, None)
            following += 1
            continue
        waiting = [message_id for message_id, number in place.items() if number >= following and number not in here]
        with doing("waiting"):
            fresh = list(grid.pull_messages(waiting))
        here |= {place[reply.metadata.reply_to_message_id]: reply for reply in fresh}
        if not fresh and time.monotonic() > end:
            if missing is not None:
                missing[ids[following]] = following
            yield None
            following += 1
        elif not fresh:
            time.sleep(POLL)


def silence(message: Message | None) -> tuple[str, str, str]:
    """Return why a message brings no reply (did not come, or is an error), its traceback, if any, and of which kind."""
    if message is None:
        return "no answer within server.deadline", "", ABSENT
    reason = foreign.plain((message.error.reason or "")[-FACTS:])
    said = foreign.line((reason.strip().splitlines() or ["no reason given"])[-1])[:SENTENCE]
    return said, reason, ABSENT if message.error.code in AWAY else FAILED


def post(
    grid: Grid, kind: str, orders: Sequence[tuple[Order, int]], weights: Callable[[], Array] | None, config: str
) -> list[Message]:
    """Return orders as messages of a kind, each to a node by Flower's id; all share the weights.

    Args:
        weights: makes (P,), called once; None: none are sent along.
    """
    if getattr(grid, "local", False):  # nothing leaves this process but by Ray's own means
        flat = weights() if weights else None
        given = [(order if flat is None else replace(order, weights=flat), node) for order, node in orders]
        return [Message(wire.Plain(order, config=config), node, kind) for order, node in given]
    packed = wire.pack({"weights": weights()}) if weights else None
    return [Message(wire.encode(order, packed, config=config), node, kind) for order, node in orders]


@dataclass(frozen=True)
class Size:
    """How many numbers the arrays of a reply hold at most, beside its table."""

    whole: int = 0
    each: int = 0  # client

    def problem(self, message: Message, clients: int) -> str | None:
        """Return why a reply for so many clients is too large to be read, None if it is not."""
        arrays, facts = wire.size(message.content)
        most = 8 * (self.whole + clients * (self.each + COLUMNS))
        if arrays > most:
            return f"it brings {arrays:,} bytes of numbers, where {most:,} are the most"
        if facts > (clients + 1) * FACTS:
            return f"it brings {facts:,} letters beside its numbers, where {(clients + 1) * FACTS:,} are the most"
        return None


def taken(
    message: Message | None, order: Order, kind: type[R], problem: Callable[[R], str | None], size: Size
) -> tuple[R | None, list[ClientError]]:
    """Return the reply to an order if it can be taken, and an error for each client that has no part in it.

    Args:
        message: None: it did not come in time.
        kind: what the reply must be.
        problem: why it cannot be taken although it is of that kind and fits the order; None: it can.
        size: what is larger is not read.
    """
    refused, traceback, what = "", "", REFUSED
    if message is None or message.has_error():
        refused, traceback, what = silence(message)
    else:
        try:
            refused = size.problem(message, len(order.clients)) or ""
            if not refused:
                reply = wire.decode(message.content)
                refused = _misfit(reply, order, kind) or problem(reply) or ""
            if not refused:
                return reply, reply.errors
        except wire.BadMessage as error:
            refused = str(error)
        refused = f"answer refused: {refused}"
    named = order.clients.tolist()
    return None, [ClientError(client=each, error=refused, traceback=traceback, kind=what) for each in named]


def withheld_visits(reply: Reply) -> list[int]:
    """Return the clients that do not answer because their visit would rest on too few samples."""
    return [each.client for each in reply.withheld if each.figures == [VISIT]]


def _misfit(reply: Any, order: Order, kind: type[Reply]) -> str | None:
    """Return why a reply is none to this order, None if it is one; it may leave clients out."""
    if not isinstance(reply, kind) or (reply.round, reply.cohort) != (order.round, order.cohort):
        return f"it is not the answer of cohort {order.cohort} in round {order.round}"
    others = not np.array_equal(reply.clients, order.clients)
    if others and not (
        np.isin(reply.clients, order.clients).all() and len(np.unique(reply.clients)) == len(reply.clients)
    ):
        return "it covers clients that were not asked, or one twice"
    failed = [each.client for each in reply.errors]
    if len(set(failed)) != len(failed) or not set(failed) <= set(order.clients.tolist()) - set(reply.clients.tolist()):
        return "it names errors of clients that were not asked or have answered, or of one twice"
    lacking = [each.client for each in reply.withheld if each.figures != [VISIT]]
    silent = withheld_visits(reply)
    if len({*lacking, *silent}) != len(reply.withheld) or not set(lacking) <= set(reply.clients.tolist()):
        return "it withholds figures of clients that have not answered, or of one twice"
    if not set(silent) <= set(order.clients.tolist()) - {*reply.clients.tolist(), *failed}:
        return "it withholds visits of clients that were not asked or have answered"
    if len(reply.table) > COLUMNS or any(len(name) > LONGEST for name in reply.table):
        return f"its table has more than {COLUMNS} columns, or one with a name of more than {LONGEST} letters"
    if any(column.dtype.kind not in "if" for column in reply.table.values()):
        return "its table holds something else than numbers"
    return None
