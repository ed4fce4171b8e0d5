"""The Flower ClientApp: decode, work, encode. A node hosts clients, a message lists clients."""

from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message
from flwr.clientapp import ClientApp

from clients import site, work
from clients.consolidation import consolidate as consolidate_clients
from clients.evaluation import evaluate as evaluate_clients
from clients.memories import Ints, Records
from fedcl import wire
from fedcl.orders import ConsolidateOrder, EvaluateOrder, Order, TrainOrder
from fedcl.state import PackStore

app = ClientApp()


class ContextStore:
    """Records kept in the node's Flower context, where no folder is shared with the server."""

    def __init__(self, context: Context) -> None:
        self._state = context.state

    def load(self, clients: Ints, packs: list[str], rows: Ints, fresh: Records) -> Records:
        """Return the records that this node holds, fresh ones for clients that it has not seen."""
        found = np.repeat(fresh, len(clients))
        for row, client in enumerate(clients.tolist()):
            if f"record-{client}" in self._state.array_records:
                held = self._state.array_records[f"record-{client}"]["record"]
                found[row] = np.frombuffer(held.data, fresh.dtype)[0]
        return found

    def save(self, name: str, clients: Ints, records: Records) -> str:
        """Replace the records of the clients."""
        for row, client in enumerate(clients.tolist()):
            held = Array(dtype="uint8", shape=(records.dtype.itemsize,), stype=wire.RAW, data=records[row].tobytes())
            self._state[f"record-{client}"] = ArrayRecord({"record": held})
        return ""


def _store(context: Context, order: Order) -> work.Store:
    return PackStore(Path(order.folder)) if order.folder else ContextStore(context)


@app.query("hello")
def hello(message: Message, context: Context) -> Message:
    """Say which clients this node hosts: every num-partitions-th from partition-id on."""
    clients = site.site(wire.text(message.content, "config")).scenario.stream.clients
    first, stride = (int(context.node_config[name]) for name in ("partition-id", "num-partitions"))
    return Message(wire.hello(np.arange(first, clients, stride)), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the clients that the message lists; one reply covers them all."""
    order: TrainOrder = wire.decode(message.content)
    here = site.site(wire.text(message.content, "config"))
    return Message(wire.encode(work.train(here, order, _store(context, order))), reply_to=message)


@app.query("consolidate")
def consolidate(message: Message, context: Context) -> Message:
    """Measure statistics of a task's data for the clients that the message lists."""
    order: ConsolidateOrder = wire.decode(message.content)
    here = site.site(wire.text(message.content, "config"))
    return Message(wire.encode(consolidate_clients(here, order, _store(context, order))), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate the clients that the message lists on their own test items."""
    order: EvaluateOrder = wire.decode(message.content)
    here = site.site(wire.text(message.content, "config"))
    return Message(wire.encode(evaluate_clients(here, order, _store(context, order))), reply_to=message)
