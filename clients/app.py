"""The Flower ClientApp: decode, work, encode. A node hosts clients, a message lists clients."""

import os
import re
import secrets
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message
from flwr.clientapp import ClientApp

from clients import site, versions, work
from clients.consolidation import consolidate as consolidate_clients
from clients.evaluation import evaluate as evaluate_clients
from clients.scoring import score as score_clients
from clients.trace import trace as trace_clients
from fedcl import wire
from fedcl.config import config_hash
from fedcl.orders import ConsolidateOrder, EvaluateOrder, Order, Reply, ScoreOrder, TraceOrder, TrainOrder
from fedcl.state import PackStore

app = ClientApp()
Asked = TypeVar("Asked", bound=Order)


class InContext:
    """The node's Flower context as the place of its clients' records, where it has no folder for them."""

    def __init__(self, context: Context) -> None:
        self._state = context.state

    def __str__(self) -> str:
        """Return how long it lasts."""
        return "Flower's context, which ends with its SuperNode or the run (node-config state=FOLDER outlives both)"

    def rounds(self, client: int) -> list[int]:
        """Return the rounds of which a client has a record."""
        matches = [re.fullmatch(rf"record-{client}-r(\d+)", name) for name in self._state.array_records]
        return [int(match[1]) for match in matches if match]

    def read(self, client: int, round: int) -> bytes:
        """Return a record's bytes."""
        return self._state.array_records[f"record-{client}-r{round}"]["record"].data

    def write(self, client: int, round: int, data: bytes) -> None:
        """Keep a record's bytes."""
        held = Array(dtype="uint8", shape=(len(data),), stype=wire.RAW, data=data)
        self._state[f"record-{client}-r{round}"] = ArrayRecord({"record": held})

    def drop(self, client: int, round: int) -> None:
        """Forget a record."""
        del self._state[f"record-{client}-r{round}"]

    def secret(self) -> bytes:
        """Return the secret, made when it is asked for first."""
        if "secret" not in self._state.config_records:
            self._state["secret"] = ConfigRecord({"bytes": secrets.token_bytes(versions.SECRET)})
        return bytes(self._state.config_records["secret"]["bytes"])  # type: ignore[arg-type]


def _place(context: Context) -> versions.Place:
    """Return where this node keeps its clients' records: node-config `state`, FEDCL_STATE, else Flower's context."""
    folder = context.node_config.get("state") or os.environ.get("FEDCL_STATE")
    return versions.Folder(Path(str(folder))) if folder else InContext(context)


def _secret(context: Context) -> bytes:
    """Return the secret that this node has made for itself; it stays where the node keeps its records."""
    return _place(context).secret()


def _answer(
    message: Message, context: Context, kind: type[Asked], carry_out: Callable[[site.Site, Asked, work.Store], Reply]
) -> Message:
    """Carry out an order of a kind, on records in the server's folder (simulation) or with the node itself."""
    order, text = wire.decode(message.content), wire.text(message.content, "config")
    if type(order) is not kind:
        raise wire.BadMessage(f"a {type(order).__name__} came where a {kind.__name__} belongs")
    if order.folder:
        reply = carry_out(site.site(text), order, PackStore(Path(order.folder)))
    else:
        here = site.site(text, _secret(context))
        reply = versions.carry_out(order, _place(context), config_hash(here.scenario), partial(carry_out, here))
    return Message(wire.encode(reply), reply_to=message)


@app.query("hello")
def hello(message: Message, context: Context) -> Message:
    """Say which clients this node hosts: every num-partitions-th from partition-id on."""
    clients = site.site(wire.text(message.content, "config")).scenario.stream.clients
    first, stride = (int(context.node_config[name]) for name in ("partition-id", "num-partitions"))
    return Message(wire.hello(np.arange(first, clients, stride)), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the clients that the message lists; one reply covers them all."""
    return _answer(message, context, TrainOrder, work.train)


@app.query("consolidate")
def consolidate(message: Message, context: Context) -> Message:
    """Measure statistics of a task's data for the clients that the message lists."""
    return _answer(message, context, ConsolidateOrder, consolidate_clients)


@app.query("score")
def score(message: Message, context: Context) -> Message:
    """Measure how hard their training data is for the clients that the message lists."""
    return _answer(message, context, ScoreOrder, score_clients)


@app.query("trace")
def trace(message: Message, context: Context) -> Message:
    """Measure how training would go for the clients that the message lists; nothing of it is kept."""
    return _answer(message, context, TraceOrder, trace_clients)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate the clients that the message lists on their own test items."""
    return _answer(message, context, EvaluateOrder, evaluate_clients)
