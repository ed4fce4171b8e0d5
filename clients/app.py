"""The Flower ClientApp. Thin: it hands messages over to the node's warm worker, where one listens (clients.warm).

Flower starts a process for every message on a real node. What computes (clients.node, torch) is imported in it only
where there is no worker.
"""

import os
import sys
from pathlib import Path

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from clients import warm
from clients.activity import noted
from clients.frames import BadFrame
from fedcl import wire

app = ClientApp()


def _answer(message: Message, context: Context) -> Message:
    """Return the reply to a message, of the worker where there is one, else of this process."""
    with noted(message.metadata.message_type, message.content) as done:
        content = _handed_over(message, context)
        if content is None:
            from clients import node  # torch and all that computes

            content = node.answer(message.metadata.message_type, message.content, context.node_config, context.state)
        if message.metadata.message_type == "query.hello":
            done["names"] = wire.introduced(content)
    return Message(content, reply_to=message)


def _handed_over(message: Message, context: Context) -> RecordDict | None:
    """Return the answer of the worker at FEDCL_WORKER; None: there is none, or the records are in Flower's context."""
    path = os.environ.get("FEDCL_WORKER")
    folder = context.node_config.get("state") or os.environ.get("FEDCL_STATE")
    if not path or not folder:
        return None
    settings = {**context.node_config, "state": os.path.abspath(str(folder))}
    try:
        return warm.hand_over(Path(path), message.metadata.message_type, message.content, settings)
    except (ConnectionError, FileNotFoundError, BadFrame) as error:
        why = f"fedcl: no answer of the worker at {path} ({error}): this process does the work itself"
        print(why, file=sys.stderr, flush=True)
        return None


@app.query("hello")
def hello(message: Message, context: Context) -> Message:
    """Say which clients this node hosts, by their names or by their numbers."""
    return _answer(message, context)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the clients that the message lists; one reply covers them all."""
    return _answer(message, context)


@app.query("consolidate")
def consolidate(message: Message, context: Context) -> Message:
    """Measure statistics of a task's data for the clients that the message lists."""
    return _answer(message, context)


@app.query("score")
def score(message: Message, context: Context) -> Message:
    """Measure how hard their training data is for the clients that the message lists."""
    return _answer(message, context)


@app.query("stock")
def stock(message: Message, context: Context) -> Message:
    """Say how much data the clients that the message lists have now."""
    return _answer(message, context)


@app.query("trace")
def trace(message: Message, context: Context) -> Message:
    """Measure how training would go for the clients that the message lists; nothing of it is kept."""
    return _answer(message, context)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate the clients that the message lists on their own test items."""
    return _answer(message, context)
