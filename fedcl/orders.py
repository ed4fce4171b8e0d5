"""What the server asks of clients and what comes back, as plain data: no Flower, no Ray, no torch.

An order lists the clients of one cohort; its reply covers them all: one sum, one table with a row a client.
"""

from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Array = NDArray[Any]

# Of which tasks a client is measured after its own update, where a method wants that: columns of a reply's table.
OWN_PARTS = ("base", "earlier", "mission")
VISIT = "visit"  # a figure: an update or a score, of a client that does not answer otherwise
FIGURE = rf"{VISIT}|class [0-9]{{1,9}}|task [0-9]{{1,9}}|accuracy on ({'|'.join(OWN_PARTS)})"  # what may be withheld


def empty() -> Ints:
    """Return no numbers, where one a client is not needed."""
    return np.zeros(0, np.int64)


@dataclass(frozen=True, kw_only=True)
class Order:
    """Which clients, with which weights, and where their newest records lie."""

    round: int
    cohort: int
    clients: Ints
    packs: list[str]  # pack of each client's newest record, "" = never visited (or kept by the node itself)
    rows: Ints
    folder: str  # folder of the packs; "" = the node keeps the records itself
    weights: Array  # (P,) flat
    # Where the node keeps them, one number a client: the last round in which the server accepted a training answer of
    # it, 0 = never, and the same in the oldest state that the server may fall back to. Empty where a folder is shared.
    accepted: Ints = field(default_factory=empty)
    oldest: Ints = field(default_factory=empty)
    # Who asks: a node works only for a server that has the same fingerprint (`fedcl.fingerprint`), and not for one that
    # has died: `sitting` counts the starts of the server of this federation's run, 0 where a folder is shared.
    federation: str = ""
    fingerprint: str = ""
    sitting: int = 0
    # By which name each client was introduced (`fedcl.names`), "" = by its number; empty: all of them were.
    names: list[str] = field(default_factory=list)


Asked = TypeVar("Asked", bound=Order)
COLUMNS = ("clients", "rows", "accepted", "oldest", "tasks", "clocks", "leaving")  # of an order: one entry a client


def pick(order: Asked, rows: Ints) -> Asked:
    """Return the order for some of its clients."""
    columns = {name: getattr(order, name) for name in COLUMNS if len(getattr(order, name, ()))}
    packs, names = ([column[row] for row in rows] if column else [] for column in (order.packs, order.names))
    return replace(order, packs=packs, names=names, **{name: column[rows] for name, column in columns.items()})


@dataclass(frozen=True, kw_only=True)
class TrainOrder(Order):
    """Train on each client's data of a task at its own clock."""

    tasks: Ints  # global task id; -1 = all tasks at once (the joint oracle)
    clocks: Ints
    shared: dict[str, Array] = field(default_factory=dict)
    statistics: list[str] = field(default_factory=lambda: ["delta"])  # what to answer
    # 1: the statistics of the client's task are wanted too, 0: zeros in their place; empty: nobody's are
    leaving: Ints = field(default_factory=empty)


@dataclass(frozen=True, kw_only=True)
class TraceOrder(TrainOrder):
    """Train as the same TrainOrder would, measure on the way, and keep nothing."""


@dataclass(frozen=True, kw_only=True)
class ConsolidateOrder(Order):
    """Measure statistics of each client's data of a task under the given weights; nothing is trained."""

    tasks: Ints
    shared: dict[str, Array] = field(default_factory=dict)
    statistics: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class EvaluateOrder(Order):
    """Measure accuracy on each client's own test items of every task."""

    classifier: dict[str, Array] = field(default_factory=dict)  # how to predict; empty: by the model's logits


@dataclass(frozen=True, kw_only=True)
class ScoreOrder(Order):
    """Measure the loss of the given weights on what each client would train on next; nothing is trained."""

    tasks: Ints  # as in a TrainOrder
    clocks: Ints


@dataclass(frozen=True, kw_only=True)
class StockOrder(Order):
    """Say how much data each client has now; no weights are sent, nothing is computed with the data."""

    tasks: Ints  # where the server believes each client to be


# Why a client has no part in a reply: its code failed, its training diverged, the server refused its answer, it was not
# there in time, or its node withheld the answer.
FAILED, DIVERGED, REFUSED, ABSENT, WITHHELD = "failed", "diverged", "refused", "absent", "withheld"
KINDS_OF_ERROR = (FAILED, DIVERGED, REFUSED, ABSENT, WITHHELD)


@dataclass(frozen=True, kw_only=True)
class ClientError:
    """A client that raised or whose answer was refused."""

    client: int
    error: str
    traceback: str
    kind: str = FAILED  # one of KINDS_OF_ERROR


@dataclass(frozen=True, kw_only=True)
class Withheld:
    """Figures of a client that answered which rest on too few samples to leave its node (`fedcl.withholding`)."""

    client: int
    least: int  # samples that a figure must rest on there
    figures: list[str]  # "class 3", "task 1"


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What one cohort answers."""

    round: int
    cohort: int
    clients: Ints  # those that the answer covers, in order
    table: dict[str, Array]  # one entry a client: n, steps, norm, evicted, loss/NAME
    errors: list[ClientError] = field(default_factory=list)
    withheld: list[Withheld] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class TrainReply(Reply):
    """The sum of the cohort's answers and where its new records were written."""

    total: Array  # (A,) flat
    pack: str = ""
    checksum: str = ""
    notes: list[str] = field(default_factory=list)  # what whoever runs the federation should know, a sentence each
    seconds: float = 0.0  # that the cohort took, as a local grid measures it; 0: nobody did, as on real nodes

    def timed(self, seconds: float) -> "TrainReply":
        """Return the same with the time that it took."""
        return replace(self, seconds=seconds)


@dataclass(frozen=True, kw_only=True)
class ConsolidateReply(Reply):
    """The sum of the cohort's statistics."""

    total: Array  # (A,) flat, float64


@dataclass(frozen=True, kw_only=True)
class EvaluateReply(Reply):
    """Counts on the clients' own test items."""

    correct: Ints  # (clients, tasks)
    items: Ints  # (clients, tasks)


@dataclass(frozen=True, kw_only=True)
class ScoreReply(Reply):
    """How hard each client's training data is for the given weights."""

    losses: Array  # (clients,) sum of the cross-entropies
    counts: Ints  # (clients,) training items


@dataclass(frozen=True, kw_only=True)
class TraceReply(Reply):
    """Counts on the clients' own test items on the way through a visit, one client's points behind another's."""

    points: Ints  # (clients,) measurements of each client, p
    items: Ints  # (clients, tasks) test items of the tasks that the client has met, 0 for the others
    steps: Ints  # (sum of p,) steps of the visit done by then
    right: Ints  # (sum of p, tasks) right predictions


@dataclass(frozen=True, kw_only=True)
class StockReply(Reply):
    """What each client would train on now."""

    items: Ints  # (clients, tasks) training items; in an online stream those that no visit has shown yet
