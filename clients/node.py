"""What a node does with a message: decode, work, encode. A node hosts clients, a message lists clients.

Functions of the message's content, the node's configuration and its place of records alone, so that Flower's ClientApp
(clients.app) and the warm worker (clients.warm) call the same. Imports all that computes: the ClientApp does so last.
"""

import json
import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from clients import activity, audit, incoming, names, site, versions, ward, work
from clients.consolidation import consolidate
from clients.evaluation import evaluate
from clients.policy import Policy, of_environment
from clients.scoring import score
from clients.trace import trace
from fedcl import foreign, wire
from fedcl.config import config_hash
from fedcl.errors import ConfigError, FederationError
from fedcl.fingerprint import fingerprint
from fedcl.orders import (
    ConsolidateOrder,
    EvaluateOrder,
    Ints,
    Order,
    Reply,
    ScoreOrder,
    StockOrder,
    TraceOrder,
    TrainOrder,
    Withheld,
    empty,
)
from fedcl.state import PackStore
from fedcl.streams.folder import SHOWN
from fedcl.trust import own_text, trusting
from fedcl.world import scenario_of

Asked = TypeVar("Asked", bound=Order)
CarryOut = Callable[[site.Site, Asked, work.Store], Reply]
Settings = Mapping[str, Any]  # Flower's node-config
# Flower's message type -> the kind of order that belongs to it, and who carries it out.
ORDERS: dict[str, tuple[type[Order], CarryOut[Any]]] = {
    "train": (TrainOrder, work.train),
    "evaluate": (EvaluateOrder, evaluate),
    "query.consolidate": (ConsolidateOrder, consolidate),
    "query.score": (ScoreOrder, score),
    "query.trace": (TraceOrder, trace),
    "query.stock": (StockOrder, ward.stock),
}
# Node-config of the node of a simulation: its orders may name a folder of records. No server can set it.
SHARES_FOLDER = "shares-folder"
REFUSALS = (FederationError, ConfigError, versions.OldSitting, versions.LostRecords)


class InContext:
    """The state of a node's Flower context as the place of its clients' records, where it has no folder for them."""

    def __init__(self, state: RecordDict) -> None:
        self._state = state

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

    def sittings(self) -> dict[str, int]:
        """Return the sittings that are remembered."""
        held = self._state.config_records.get("sittings")
        return json.loads(str(held["json"])) if held else {}

    def remember(self, sittings: dict[str, int]) -> None:
        """Keep the sittings."""
        self._state["sittings"] = ConfigRecord({"json": json.dumps(sittings)})

    def ledger(self, client: int, federation: str) -> bytes:
        """Return a federation's ledger of a client."""
        return self._text(f"{client}-{versions.ledger_name(federation)}").encode()

    def keep_ledger(self, client: int, federation: str, data: bytes) -> None:
        """Keep it."""
        self._state[f"{client}-{versions.ledger_name(federation)}"] = ConfigRecord({"text": data.decode()})

    def told(self, client: int, text: str) -> bool:
        """Keep what is wrong in a client's folder and return whether that is news."""
        before = self._text(f"faults-{client}")
        self._state[f"faults-{client}"] = ConfigRecord({"text": text})
        return text != before

    def _text(self, name: str) -> str:
        held = self._state.config_records.get(name)
        return str(held["text"]) if held else ""

    def numbers(self) -> dict[str, dict[str, int]]:
        """Return the numbers of names that are remembered."""
        held = self._state.config_records.get("names")
        return json.loads(str(held["json"])) if held else {}

    def keep_numbers(self, numbers: dict[str, dict[str, int]]) -> None:
        """Keep the numbers of names."""
        self._state["names"] = ConfigRecord({"json": json.dumps(numbers)})


def place(settings: Settings, state: RecordDict) -> versions.Place:
    """Return where this node keeps its clients' records: node-config `state`, FEDCL_STATE, else Flower's context."""
    folder = settings.get("state") or os.environ.get("FEDCL_STATE")
    return versions.Folder(Path(str(folder))) if folder else InContext(state)


def answer(kind: str, content: RecordDict, settings: Settings, state: RecordDict) -> RecordDict:
    """Return the content of the answer to a message.

    Args:
        kind: Flower's message type, such as `train` or `query.hello`.
        settings: Flower's node-config.
        state: of Flower's context; changed only where the node has no folder for its records.

    Raises:
        BadMessage: the content is not what belongs to the kind, or not what this node carries out.
        Refused: the node's policy is against it.
        Unwritten: its audit cannot be written.
    """
    policy, said = of_environment(), dict[str, Any]()
    try:
        if kind == "query.hello":
            return _hello(content, settings, policy, place(settings, state))
        if kind not in ORDERS:
            raise wire.BadMessage(f"a message of type {kind!r}: known are query.hello, {', '.join(ORDERS)}")
        return _answer(content, *ORDERS[kind], settings, state, policy, said)
    except REFUSALS as error:
        if policy.audit and not isinstance(error, audit.Unwritten):
            audit.write(policy.audit, [{**said, "refused": str(error)}])
        raise


@contextmanager
def _scenario(content: RecordDict, settings: Settings, policy: Policy) -> Iterator[str]:
    """Let the block work with the text of a message's scenario, and import for it what this node's operator trusts.

    In a simulation the scenario is this user's own, and is taken as it is.

    Raises:
        ConfigError: it holds what a node does not take (`fedcl.trust`).
    """
    text = wire.text(content, "config")
    if settings.get(SHARES_FOLDER):
        yield text
        return
    with trusting(policy.trust):
        yield own_text(text)


def _hello(content: RecordDict, settings: Settings, policy: Policy, kept: versions.Place) -> RecordDict:
    """Say which clients this node hosts, by their names or by their numbers."""
    mine = names.own(settings, kept)
    with _scenario(content, settings, policy) as text:
        numbers = empty() if mine else _numbered(settings, scenario_of(text).stream.clients)
        return wire.hello(numbers, fingerprint(text), mine)


def _numbered(settings: Settings, clients: int) -> Ints:
    """Return a node's clients, of so many, that have numbers: as told, or every num-partitions-th from partition-id."""
    if "clients" in settings:
        told = np.array(sorted({int(each) for each in str(settings["clients"]).split(",")}), np.int64)
        return told[told < clients]
    first, stride = (int(settings[name]) for name in ("partition-id", "num-partitions"))
    return np.arange(first, clients, stride)


def _answer(
    content: RecordDict,
    kind: type[Asked],
    carry_out: CarryOut[Asked],
    settings: Settings,
    state: RecordDict,
    policy: Policy,
    said: dict[str, Any],
) -> RecordDict:
    """Carry out an order of a kind, on records in the server's folder (simulation) or with the node itself.

    Args:
        said: gets what an audit tells of the order if it is refused.
    """
    order = wire.decode(content)
    if type(order) is not kind:
        raise wire.BadMessage(f"a {type(order).__name__} came where a {kind.__name__} belongs")
    if order.folder and settings.get(SHARES_FOLDER):
        here = site.site(wire.text(content, "config"))
        return wire.answering(content, carry_out(here, order, PackStore(Path(order.folder))))
    federation, clients = order.federation[: incoming.LONGEST], order.clients.tolist()
    said |= {"federation": federation, "round": order.round, "clients": clients}
    with _scenario(content, settings, policy) as text:
        said["config_hash"] = config_hash(scenario_of(text))
        return wire.encode(_by_itself(order, text, carry_out, policy, settings, place(settings, state)))


def _by_itself(
    order: Asked, text: str, carry_out: CarryOut[Asked], policy: Policy, settings: Settings, kept: versions.Place
) -> Reply:
    """Return the reply to an order of a server that the node need not trust, once the audit lists what is in it."""
    if order.folder:
        raise wire.BadMessage(f"folder = {order.folder[:80]!r}: this node keeps its clients' records itself")
    if order.fingerprint != fingerprint(text):
        what = f"fingerprint = {order.fingerprint[:12]!r} is not this node's {fingerprint(text)[:12]!r}"
        raise wire.BadMessage(f"{what}: the server has another fedcl, or other packages, installed")
    here, left_out = site.site(text, kept.secret(), policy.min_count), list[Withheld]()
    mine, clients = names.own(settings, kept), here.scenario.stream.clients
    hosted = np.arange(clients) if mine else _numbered(settings, clients)  # a name has any number: names.problem
    wrong = incoming.problem(here, order, hosted)
    wrong = wrong or names.problem(order, mine, kept.numbers().get(order.federation, {}))
    if wrong:
        raise wire.BadMessage(wrong)
    policy.check(here, order)

    def done(asked: Asked, store: work.Store) -> Reply:
        names.remember(asked, kept)  # of a server that is known by now not to have died
        at = here
        if here.stream.dataset.elsewhere:
            store = _visit(here, asked, store, _folders(asked, settings), kept)
            at = store.site
        admitted, left_out[:] = policy.admitted(at, asked)
        return policy.hidden(carry_out(at, admitted, store))

    scenario = config_hash(here.scenario)
    reply = versions.carry_out(order, kept, scenario, done)
    reply = replace(reply, withheld=[*left_out, *reply.withheld])
    if policy.audit:
        said = {"federation": order.federation, "config_hash": scenario, "round": order.round}
        lines = [{"clients": [each.client], "withheld": each.figures} for each in reply.withheld]
        audit.write(policy.audit, [{**said, **line} for line in [*lines, *audit.of_reply(here, order, reply)]])
    return reply


def _visit(
    here: site.Site, order: Order, store: work.Store, folders: Mapping[int, Path], kept: versions.Place
) -> ward.Visit:
    """Look into the folders of an order's clients, and tell what cannot be used there for as long as it is the same."""
    try:
        visit = ward.visit(here, order, store, folders, kept)
    except ward.NoData as lost:
        for client, words in lost.words.items():
            _tell(kept, client, [words])
        raise
    for client, faults in zip(order.clients.tolist(), visit.faults, strict=True):
        _tell(kept, client, list(map(str, faults)))
    return visit


def _tell(kept: versions.Place, client: int, faults: list[str]) -> None:
    """Tell on this node what is wrong in a client's folder, if that is news."""
    if kept.told(client, "".join(f"{foreign.line(each)}\n" for each in faults)):
        activity.tell({"kind": "faults", "clients": [client], "count": len(faults), "first": faults[:SHOWN]})


def _folders(order: Order, settings: Settings) -> dict[int, Path]:
    """Return the folder of each client's own data: the node's, or one in it by its ward or, of several, its number.

    Raises:
        ConfigError: nobody has said where it is.
    """
    root = settings.get("data") or os.environ.get("FEDCL_DATA")
    if not root:
        raise ConfigError("the clients' own data: no folder is named; start the node with --data PATH (FEDCL_DATA)")
    several = "," in str(settings.get("clients", "")) or "partition-id" in settings
    wards = names.wards(order).items()
    return {client: Path(str(root)) / (ward or (str(client) if several else "")) for client, ward in wards}
