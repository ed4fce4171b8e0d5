"""Nodes for tests: a grid in this process whose nodes keep their clients' records themselves, as real ones do."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Context, Error, Message

from clients.app import app
from clients.node import place
from clients.versions import Place
from fedcl import wire
from fedcl.engine import flower
from fedcl.engine.grid import LocalGrid
from fedcl.orders import Order, TrainReply

SECRET = bytes(range(32))  # the same for all, so that one process builds its site once
Fate = Callable[[Order], str]  # ok, lost (never arrives), deaf (its answer is lost), refused, late, twice, dies


class Death(BaseException):
    """The server's process is gone in the middle of a round: nothing of what it does at its end is done."""


def fine(order: Order) -> str:
    """Let everything arrive."""
    return "ok"


class Nodes(LocalGrid):
    """Nodes that share the clients in turn; what happens to a message, and to its answer, is decided by its order."""

    def __init__(self, nodes: int, fate: Fate = fine, state: Path | None = None, data: Path | None = None) -> None:
        super().__init__()
        self.fate = fate
        self.contexts = [self._context(node, nodes, state, data) for node in range(nodes)]
        self._queue: dict[str, Message] = {}
        self._late: list[Message] = []

    def _context(self, node: int, nodes: int, state: Path | None, data: Path | None) -> Context:
        settings: dict[str, Any] = {"partition-id": node, "num-partitions": nodes, "shares-folder": True}
        settings |= {"data": str(data)} if data else {}
        if state:
            own = state / str(node)
            own.mkdir(parents=True)
            (own / "secret").write_bytes(SECRET)
            settings["state"] = str(own)
        context = flower.context({}, settings)
        context.state["secret"] = ConfigRecord({"bytes": SECRET})
        return context

    def name(self, node: int, key: str, *wards: str) -> None:
        """Let a node (1, 2 ...) name its clients itself, by its key's name."""
        told = self.contexts[node - 1].node_config
        for each in ("partition-id", "num-partitions"):
            told.pop(each, None)
        told |= {"node": key, "wards": ",".join(wards)}

    def place(self, client: int) -> Place:
        """Return where a client's node keeps its records."""
        context = self.contexts[client % len(self.contexts)]
        return place(context.node_config, context.state)

    def get_node_ids(self) -> Iterable[int]:
        return range(1, len(self.contexts) + 1)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        fresh = {flower.number(message): message for message in messages}
        self._queue |= fresh
        return list(fresh)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        for message_id in message_ids:
            if message_id in self._queue:
                return [self._reply(self._queue.pop(message_id))]
        return []

    def _reply(self, message: Message) -> Message:
        if message.metadata.message_type == "query.hello":
            return self._carry_out(message)
        fate = self.fate(wire.decode(message.content))
        if fate == "dies":
            raise Death
        if fate in ("lost", "late"):
            self._late += [message] * (fate == "late")
            return Message(Error(code=3, reason="no answer"), reply_to=message)
        answers = [self._carry_out(message) for _ in range(1 + (fate == "twice"))]
        while self._late:  # orders that were believed lost arrive after one that was sent after them
            self._carry_out(self._late.pop())
        if fate == "deaf":
            return Message(Error(code=3, reason="no answer"), reply_to=message)
        if fate == "refused":
            return Message(_spoilt(answers[-1]), reply_to=message)
        return answers[-1]

    def _carry_out(self, message: Message) -> Message:
        try:
            return app(message, self.contexts[message.metadata.dst_node_id - 1])
        except Exception as error:
            reason = f"Traceback\n{type(error).__name__}: {error}"
            return Message(Error(code=2, reason=reason), reply_to=message)

    def restart(self) -> None:
        """Forget what is under way but for orders that are late: the server is another one."""
        self._queue = {}

    def close(self) -> None:
        self._queue.clear()


def _spoilt(answer: Message) -> Any:
    """Return a training answer whose sum is no number; any other answer as it is."""
    reply = wire.decode(answer.content)
    if not isinstance(reply, TrainReply):
        return answer.content
    vars(reply)["total"] = np.full_like(reply.total, np.nan)
    return wire.encode(reply)
