"""Orders and replies <-> Flower's RecordDict: the only file that knows the encoding.

Arrays travel raw (dtype, shape, bytes; no .npy header, no pickle). What comes in is checked before it is used: dtype
from a short list, byte count equal to what dtype and shape say, lists as long as the clients they describe.
"""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from numpy.typing import NDArray

from fedcl import foreign, names, orders
from fedcl.errors import FederationError
from fedcl.orders import (
    ClientError,
    ConsolidateOrder,
    ConsolidateReply,
    EvaluateOrder,
    EvaluateReply,
    Ints,
    Order,
    Reply,
    ScoreOrder,
    ScoreReply,
    StockOrder,
    StockReply,
    TraceOrder,
    TraceReply,
    TrainOrder,
    TrainReply,
    Withheld,
)

R = TypeVar("R", ArrayRecord, ConfigRecord)
RAW = "fedcl.raw"
DIMENSIONS, MOST = 8, 1 << 40  # of an array, and of each of its dimensions: beside a 0, bytes do not bound the others
HELLO = 1 << 17  # letters of a hello: there is room for as many names as a node may have
DTYPES = ("float32", "float64", "int64", "int32", "bool")
ORDERS = (TrainOrder, ConsolidateOrder, EvaluateOrder, ScoreOrder, TraceOrder, StockOrder)
REPLIES = (TrainReply, ConsolidateReply, EvaluateReply, ScoreReply, TraceReply, StockReply)
LISTED = {"errors": ClientError, "withheld": Withheld}  # fields of a reply that list entries about single clients
FIGURE = re.compile(orders.FIGURE, re.ASCII)
KINDS: dict[str, type] = {each.__name__: each for each in (*ORDERS, *REPLIES)}


class BadMessage(FederationError):
    """A message that is not what it should be."""


class Plain(RecordDict):
    """An order or a reply that stays in this process, as it is: what a local grid carries needs no envelope.

    Nothing that comes from elsewhere is ever one of these.
    """

    def __init__(self, message: Order | Reply, **extra: str) -> None:
        super().__init__()
        self.message, self.extra = message, extra


def pack(arrays: Mapping[str, NDArray[Any]]) -> ArrayRecord:
    """Return named arrays as an ArrayRecord of raw bytes."""
    raw = {
        name: Array(dtype=str(each.dtype), shape=each.shape, stype=RAW, data=np.ascontiguousarray(each).tobytes())
        for name, each in arrays.items()
    }
    return ArrayRecord(raw)


def _array(name: str, array: Array) -> NDArray[Any]:
    if array.stype != RAW or array.dtype not in DTYPES:
        raise BadMessage(f"array {name!r} has encoding {array.stype!r} and dtype {array.dtype!r}: not known here")
    dtype = np.dtype(array.dtype)
    if any(n < 0 for n in array.shape) or math.prod(array.shape) * dtype.itemsize != len(array.data):
        raise BadMessage(f"array {name!r} claims shape {tuple(array.shape)} but brings {len(array.data)} bytes")
    if len(array.shape) > DIMENSIONS or any(n > MOST for n in array.shape):
        raise BadMessage(f"array {name!r} claims shape {tuple(array.shape)[:4]}: no array here has such a shape")
    return np.frombuffer(array.data, dtype).reshape(array.shape)


def unpack(record: ArrayRecord) -> dict[str, NDArray[Any]]:
    """Return the arrays of `pack`, read-only.

    Raises:
        BadMessage: an array's dtype, encoding or size is not what it should be.
    """
    return {name: _array(name, array) for name, array in record.items()}


def _of(record: RecordDict, kind: type[R]) -> dict[str, R]:
    """Return a message's records of one kind; Flower's own properties make a dict that checks every entry anew."""
    return {name: held for name, held in record.items() if isinstance(held, kind)}


def _config(facts: dict[str, Any]) -> ConfigRecord:
    return ConfigRecord({"json": json.dumps(facts)})


def _facts(record: RecordDict) -> dict[str, Any]:
    try:
        facts = json.loads(str(_of(record, ConfigRecord)["facts"]["json"]))
    except (KeyError, ValueError, RecursionError) as error:
        raise BadMessage("a message without readable facts") from error
    if not isinstance(facts, dict):
        raise BadMessage("a message whose facts are not a table")
    return facts


def encode(message: Order | Reply, weights: ArrayRecord | None = None, **extra: str) -> RecordDict:
    """Return an order or a reply as a RecordDict.

    Args:
        weights: the order's weights already packed, so that all orders of a round share one record.
        extra: texts that travel beside it (the configuration).
    """
    facts: dict[str, Any] = {"kind": type(message).__name__, **extra}
    arrays: dict[str, NDArray[Any]] = {}
    tables: dict[str, ArrayRecord] = {}
    for each in fields(message):
        value = getattr(message, each.name)
        if each.name == "weights" and weights is not None:
            tables["weights"] = weights
        elif isinstance(value, np.ndarray):
            arrays[each.name] = value
        elif isinstance(value, dict):
            tables[each.name] = pack(value)
        elif each.name in LISTED:
            facts[each.name] = [vars(entry) for entry in value]
        else:
            facts[each.name] = value
    return RecordDict({"arrays": pack(arrays), "facts": _config(facts), **tables})


def answering(asked: RecordDict, reply: Reply) -> RecordDict:
    """Return a reply in the form in which its order came."""
    return Plain(reply) if isinstance(asked, Plain) else encode(reply)


def decode(record: RecordDict) -> Any:
    """Return the order or reply of a RecordDict.

    Raises:
        BadMessage: a field is missing, has another type, or does not fit the others.
    """
    if isinstance(record, Plain):
        return record.message
    facts = _facts(record)
    cls = KINDS.get(str(facts.get("kind")))
    if cls is None:
        raise BadMessage(f"a message of unknown kind {facts.get('kind')!r}")
    found: dict[str, Any] = {name: unpack(each) for name, each in _of(record, ArrayRecord).items()}
    found = {**facts, **found, **found.pop("arrays", {})}
    if "weights" in found and isinstance(found["weights"], dict):
        found["weights"] = found["weights"].get("weights")
    for name, entry in LISTED.items():
        if name in found:
            found[name] = _entries(name, entry, found[name])
    try:
        message = cls(**{each.name: found[each.name] for each in fields(cls) if each.name in found})
    except TypeError as error:
        raise BadMessage(f"a {cls.__name__} that lacks a field: {error}") from error
    _check(message)
    return message


def _entries(name: str, entry: type, listed: Any) -> list[Any]:
    """Return the entries about single clients that facts list."""
    try:
        entries = [entry(**{key: _plain(value) for key, value in each.items()}) for each in listed]
    except (TypeError, AttributeError) as error:
        raise BadMessage(f"a list of {name} that is none: {error}") from error
    for each in entries:
        if not all(SOUND_ENTRY[one.type](getattr(each, one.name)) for one in fields(entry)):
            raise BadMessage(f"an entry of {name!r} that is not what it should be")
        if getattr(each, "kind", orders.FAILED) not in orders.KINDS_OF_ERROR:
            raise BadMessage(f"a client error of a kind that is none of {', '.join(orders.KINDS_OF_ERROR)}")
    return entries


def _plain(value: Any) -> Any:
    """Return a value of an entry, a text as it may be printed; one that must be a line is cut to one later."""
    return foreign.plain(value) if isinstance(value, str) else value


def _are_figures(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) and FIGURE.fullmatch(each) for each in value)


def size(record: RecordDict) -> tuple[int, int]:
    """Return the bytes of a message's arrays and of its facts, without reading either."""
    arrays = sum(len(each.data) for held in _of(record, ArrayRecord).values() for each in held.values())
    return arrays, sum(len(str(value)) for held in _of(record, ConfigRecord).values() for value in held.values())


def text(record: RecordDict, name: str) -> str:
    """Return a text that travels beside an order."""
    value = record.extra.get(name) if isinstance(record, Plain) else _facts(record).get(name)
    if not isinstance(value, str):
        raise BadMessage(f"a message without {name!r}")
    return value


def _is_floats(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype.kind == "f"


def _is_ints(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.ndim >= 1 and value.dtype == np.int64


def _is_table(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(each, np.ndarray) for each in value.values())


# What each type of field is checked by.
SOUND: dict[Any, Callable[[Any], bool]] = {
    int: lambda value: type(value) is int,
    float: lambda value: type(value) in (int, float) and 0 <= value < math.inf,
    str: lambda value: isinstance(value, str),
    list[str]: lambda value: isinstance(value, list) and all(isinstance(each, str) for each in value),
    list[ClientError]: lambda value: isinstance(value, list),
    list[Withheld]: lambda value: isinstance(value, list),
    dict[str, orders.Array]: _is_table,
    orders.Array: _is_floats,
    Ints: _is_ints,
}

# The same for an entry about a client.
SOUND_ENTRY: dict[Any, Callable[[Any], bool]] = {int: SOUND[int], str: SOUND[str], list[str]: _are_figures}


def _check(message: Any) -> None:
    for each in fields(message):
        if not SOUND[each.type](getattr(message, each.name)):
            raise BadMessage(f"{each.name!r} of a {type(message).__name__} is not what it should be")
    n = len(message.clients)
    for name in ("tasks", "clocks", "rows", "packs", "correct", "items", "losses", "counts", "points"):
        if hasattr(message, name) and len(getattr(message, name)) != n:
            raise BadMessage(f"{name!r} has {len(getattr(message, name))} entries for {n} clients")
    for name in ("leaving", "accepted", "oldest", "names"):
        if len(getattr(message, name, ())) not in (0, n):
            raise BadMessage(f"{name!r} has {len(getattr(message, name))} entries for {n} clients")
    for name, array in vars(message).items():
        if isinstance(array, np.ndarray) and array.ndim != 1 + (name in ("correct", "items", "right")):
            raise BadMessage(f"{name!r} has shape {array.shape} for {n} clients")
    if isinstance(message, Order):
        _check_rounds(message)
    if isinstance(message, TraceReply) and not len(message.steps) == len(message.right) == message.points.sum():
        raise BadMessage(f"'steps' and 'right' have {len(message.steps)} and {len(message.right)} entries")
    for name, column in getattr(message, "table", {}).items():
        if column.shape != (n,):
            raise BadMessage(f"column {name!r} has shape {column.shape} for {n} clients")


def _check_rounds(order: Order) -> None:
    """Check the rounds by which a node finds its clients' records."""
    if len(order.accepted) != len(order.oldest):
        raise BadMessage(f"'accepted' has {len(order.accepted)} entries, 'oldest' {len(order.oldest)}")
    if (order.oldest < 0).any() or (order.oldest > order.accepted).any():
        raise BadMessage("'oldest' must lie between 0 and 'accepted' for every client")


def hello(clients: NDArray[np.int64], fingerprint: str = "", named: Sequence[str] = ()) -> RecordDict:
    """Return the answer to `query.hello`: the clients that a node hosts, and its fingerprint (`fedcl.fingerprint`).

    Args:
        clients: their numbers, none where the node names them.
        named: their names (`fedcl.names`), none where they have numbers.
    """
    facts = {"fingerprint": fingerprint, "names": list(named)}
    return RecordDict({"arrays": pack({"clients": clients}), "facts": _config(facts)})


def hosted(record: RecordDict) -> NDArray[np.int64]:
    """Return the clients that a node says it hosts."""
    arrays = _of(record, ArrayRecord).get("arrays")
    clients = unpack(arrays).get("clients") if arrays else None
    if clients is None or clients.ndim != 1 or clients.dtype != np.int64:
        raise BadMessage("a hello without a list of clients")
    return clients


def introduced(record: RecordDict) -> list[str]:
    """Return the names of the clients that a node says it hosts, none where it tells their numbers.

    Raises:
        BadMessage: they cannot be names, or numbers come beside them.
    """
    letters = size(record)[1]
    if letters > HELLO:
        raise BadMessage(f"a hello with {letters:,} letters, more than {HELLO:,}")
    found = _facts(record).get("names", [])
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise BadMessage("a hello whose names are not a list of texts")
    wrong = names.problem(found)
    if wrong or (found and len(hosted(record))):
        raise BadMessage(f"a hello with {wrong or 'names and numbers of clients, where one of both belongs'}")
    return found


def config_of(text: str) -> RecordDict:
    """Return the content of `query.hello`: the run's configuration."""
    return RecordDict({"facts": _config({"config": text})})
