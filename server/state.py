"""What the server carries from round to round, and how a checkpoint holds it: named tensors and plain facts."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedcl.answers import Tensors, prefixed, under
from fedcl.digest import digest
from fedcl.errors import FederationError
from fedcl.orders import Ints, empty
from fedcl.state import Index
from server.checkpoint import Snapshot
from server.optimizers import State as Moments

PAIRS = ("pending", "counted")  # tables of clients and tasks


@dataclass(frozen=True, kw_only=True)
class State:
    """Everything that the rounds to come depend on, after `round`."""

    round: int
    weights: Tensors
    method: Tensors
    optimizer: Moments
    selection: Tensors = field(default_factory=dict)  # what the choice of clients remembers
    visits: Ints  # (clients,) answers accepted from each client
    # (clients,) last round of which an answer was accepted, 0 = none; empty where a folder is shared with the clients
    accepted: Ints = field(default_factory=empty)
    # (clients, tasks + 1) own clock at which each task has begun, where data decides that (an open timeline); or empty
    begin: Ints = field(default_factory=empty)
    pending: NDArray[np.bool_]  # (clients, tasks) statistics that are still to be asked for
    counted: NDArray[np.bool_]  # (clients, tasks) statistics that have come in
    begun: NDArray[np.bool_]  # (tasks,) some client has met the task
    ended: NDArray[np.bool_]  # (tasks,) everyone who has the task has finished it
    index: Index  # where each client's newest record lies
    offset: int  # bytes of the journal up to this round
    seconds: float  # spent on the rounds so far, in all sittings


def _counters(state: State) -> dict[str, NDArray[Any]]:
    """Return what is counted beside the method's state; (client, task) tables as the pairs (n, 2) that are true."""
    pairs = {name: np.argwhere(getattr(state, name)) for name in PAIRS}
    rounds = {name: getattr(state, name) for name in ("accepted", "begin") if len(getattr(state, name))}
    return {"visits": state.visits, "begun": state.begun, "ended": state.ended, **rounds, **pairs}


def server_tensors(state: State) -> Tensors:
    """Return what the method, the server optimiser and the selection remember, by name."""
    moments = {f"{kind}/{name}": each for kind, tensors in state.optimizer.items() for name, each in tensors.items()}
    parts = {"method": state.method, "optimizer": moments, "selection": state.selection}
    return {name: each for part, tensors in parts.items() for name, each in prefixed(part, tensors).items()}


def state_digest(state: State) -> str:
    """Return the sha256 of everything the server remembers beside the weights and the clients' records."""
    counters = {name: torch.from_numpy(each) for name, each in _counters(state).items()}
    return digest({**server_tensors(state), **counters})


def snapshot(state: State, config_hash: str) -> Snapshot:
    """Return the checkpoint of a state."""
    tensors = {name: torch.as_tensor(each) for name, each in _counters(state).items()} | state.index.tensors()
    tensors = prefixed("server", tensors)
    facts = {"offset": state.offset, "seconds": state.seconds, "index": state.index.facts(), "config_hash": config_hash}
    return Snapshot(state.round, {**prefixed("weights", state.weights), **server_tensors(state), **tensors}, facts)


def restored(snapshot: Snapshot, config_hash: str) -> State:
    """Return the state of a checkpoint.

    Raises:
        FederationError: the checkpoint is of another configuration.
    """
    facts: dict[str, Any] = snapshot.facts
    if facts["config_hash"] != config_hash:
        raise FederationError("the checkpoint belongs to another configuration than config.yaml beside it")
    server = under("server", snapshot.tensors)
    found = [name for name in ("visits", "begun", "ended", "accepted", "begin") if name in server]
    counters: dict[str, Any] = {name: server[name].numpy() for name in found}
    tables: dict[str, Any] = {name: np.zeros((len(server["visits"]), len(server["begun"])), np.bool_) for name in PAIRS}
    for name, table in tables.items():
        table[tuple(server[name].numpy().T)] = True
    moments: Moments = {}
    for name, each in under("optimizer", snapshot.tensors).items():
        kind, _, rest = name.partition("/")
        moments.setdefault(kind, {})[rest] = each
    return State(
        round=snapshot.round,
        weights=under("weights", snapshot.tensors),
        method=under("method", snapshot.tensors),
        optimizer=moments,
        selection=under("selection", snapshot.tensors),
        **counters,
        **tables,
        index=Index.restore(server, facts["index"]),
        offset=facts["offset"],
        seconds=facts["seconds"],
    )


def begun_anew(state: State, anew: Mapping[int, int], first: Ints) -> State:
    """Return the state in which freed numbers are those of clients that nobody has met yet.

    Args:
        anew: number -> the last round of whom it was before; a later state knows of it already.
        first: (clients, tasks + 1) the clocks of an open timeline before the first round; or empty.
    """
    own = [number for number, round in anew.items() if state.round <= round]
    if not own:
        return state
    tables = {name: getattr(state, name).copy() for name in ("visits", *PAIRS)}
    tables |= {name: getattr(state, name).copy() for name in ("accepted", "begin") if len(getattr(state, name))}
    for name, table in tables.items():
        table[own] = first[own] if name == "begin" else 0
    return replace(state, **tables)
