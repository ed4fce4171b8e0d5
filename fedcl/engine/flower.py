"""What a Grid of one's own touches of Flower's private parts; tests/test_flower.py fails first when Flower changes."""

import logging
import os
from typing import Any
from uuid import uuid4

from flwr.app import Context, Message, RecordDict
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

__all__ = ["NODE", "Run", "context", "identify", "number"]

NODE = 1  # both grids are one node


def identify() -> None:
    """Give this process the identity without which Flower makes no messages; keep Flower quiet and offline."""
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
    logging.getLogger("flwr").setLevel(logging.WARNING)
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, NODE, 1


def number(message: Message) -> str:
    """Give a message its id, by which its reply names it, and return it."""
    message_id = str(uuid4())
    message.metadata.__dict__["_message_id"] = message_id
    return message_id


def context(run_config: dict[str, Any], node_config: dict[str, Any]) -> Context:
    """Return a Flower context of this process."""
    return Context(run_id=1, node_id=NODE, node_config=node_config, state=RecordDict(), run_config=run_config)
