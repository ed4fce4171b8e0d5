"""What the inline grid and the Ray grid share: one node that hosts all clients, messages in, replies out."""

import time
from abc import abstractmethod
from collections.abc import Iterable

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedcl.engine import flower


class LocalGrid(Grid):
    """A Flower Grid over this machine or its cluster."""

    local = True  # messages stay in this process: they need not be encoded
    _run: flower.Run

    def __init__(self) -> None:
        flower.identify()

    def set_run(self, run: flower.Run) -> None:
        """Keep the run's description."""
        self._run = run

    @property
    def run(self) -> flower.Run:
        """The run's description, as it was set."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Return a message (Flower keeps this for old code)."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return the one node."""
        return [flower.NODE]

    @abstractmethod
    def close(self) -> None:
        """Let go of everything that the grid holds."""

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Push messages and return their replies; without those that did not come within `timeout` seconds."""
        waiting = dict.fromkeys(self.push_messages(messages))  # in order
        end = time.monotonic() + (timeout if timeout is not None else float("inf"))
        replies: list[Message] = []
        while waiting and time.monotonic() < end:
            fresh = list(self.pull_messages(waiting))
            for reply in fresh:
                del waiting[reply.metadata.reply_to_message_id]
            replies += fresh
        return replies
