"""The inline grid: the ClientApp in this process, one message after another. No start-up, no other process."""

import importlib
import time
import traceback
from collections.abc import Iterable

from flwr.app import Error, Message

from fedcl import wire
from fedcl.engine import flower
from fedcl.engine.grid import LocalGrid
from fedcl.orders import TrainReply

CLIENT_APP = "clients.app:app"


class InlineGrid(LocalGrid):
    """Runs the ClientApp when a reply is asked for, so that replies can be added up one at a time."""

    def __init__(self) -> None:
        super().__init__()
        module, _, name = CLIENT_APP.partition(":")
        self._app = getattr(importlib.import_module(module), name)
        self._context = flower.context({}, {"partition-id": 0, "num-partitions": 1, "shares-folder": True})
        self._queue: dict[str, Message] = {}

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue messages."""
        fresh = {flower.number(message): message for message in messages}
        self._queue |= fresh
        return list(fresh)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Carry out the first of the messages that is still queued and return its reply."""
        for message_id in message_ids:
            if message_id in self._queue:
                return [self._carry_out(self._queue.pop(message_id))]
        return []

    def _carry_out(self, message: Message) -> Message:
        began = time.perf_counter()
        try:
            answer: Message = self._app(message, self._context)
            if isinstance(answer.content, wire.Plain) and isinstance(answer.content.message, TrainReply):
                answer.content.message = answer.content.message.timed(time.perf_counter() - began)
            return answer
        except Exception:  # a failed client is data: the server logs it with its name
            return Message(Error(code=2, reason=traceback.format_exc()), reply_to=message)

    def close(self) -> None:
        """Forget what is queued."""
        self._queue.clear()
