"""A round's training: orders out, answers in; each is checked where it stands alone, then added in cohort order."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedcl import registry
from fedcl.answers import Answer, Layout, borrowed
from fedcl.config import ServerConfig
from fedcl.errors import FederationError
from fedcl.orders import Array, ClientError, TrainOrder, TrainReply
from fedcl.plan import Cohort
from fedcl.timing import doing
from server import withheld
from server.acceptance import Known, counts_problem, notes_problem, sum_problem, update_problem
from server.exchange import Size, withheld_visits
from server.federation import Federation, round_to
from server.state import State

SLOW, MOMENT = 2.0, 0.1  # a cohort is slow at so many times its predicted seconds, and so many seconds more


@dataclass(kw_only=True)
class Round:
    """What has come in so far."""

    total: Tensor
    clients: list[int] = field(default_factory=list)
    tasks: list[int] = field(default_factory=list)
    columns: dict[str, list[Array]] = field(default_factory=dict)
    errors: list[ClientError] = field(default_factory=list)
    cohorts: list[tuple[int, int, float]] = field(default_factory=list)  # number, steps, seconds


def train(
    federation: Federation, state: State, round: int, cohorts: Sequence[Cohort], riding: NDArray[np.bool_]
) -> tuple[Answer | None, State]:
    """Train the round's cohorts.

    Args:
        riding: (tasks,) tasks whose statistics ride on the answers.

    Returns:
        The sum of the accepted answers (None: nobody was asked), and the state with their visits and records counted.

    Raises:
        FederationError: fewer clients answered than `server.min_clients`.
    """
    began = time.monotonic()
    dtype = next(iter(state.weights.values())).dtype
    method = federation.scenario.server.method
    statistics = [*method.answers, *(method.task_answers if riding.any() else ())]
    layout = federation.answer(statistics)
    done = Round(total=torch.zeros(layout.size, dtype=dtype))
    lacking: list[int] = []
    index, shared = state.index, _shared(federation, state, riding)
    orders = [
        TrainOrder(
            round=round, cohort=cohort.number, clients=cohort.clients, tasks=cohort.tasks, clocks=cohort.clocks,
            **federation.records(state, cohort.clients), weights=np.zeros(0, np.float32), shared=shared,
            statistics=statistics, leaving=riding[cohort.tasks].astype(np.int64),
        )
        for cohort in cohorts
    ]  # fmt: skip
    client = federation.scenario.client
    known = Known.of_visits(federation.stream, cohorts, epochs=client.epochs, batch=client.batch)
    problem, size = partial(reply_problem, federation.scenario.server, layout, dtype, known), Size(layout.size)
    for order, reply in federation.ask("train", orders, state, TrainReply, problem, size, done.errors.append):
        withheld.tell(federation, round, reply)
        lacking += withheld_visits(reply)
        if not len(reply.clients):
            continue
        with doing("reduce"):
            add(done, order, reply)
            _note(federation, round, reply.notes)
            if federation.packs and reply.pack:
                index = index.place(reply.pack, reply.checksum, reply.clients)
    down = federation.parameters.size * dtype.itemsize + sum(each.nbytes for each in shared.values())
    _write(federation, round, cohorts, done, time.monotonic() - began, down)
    _enough(federation, round, sum(len(cohort.clients) for cohort in cohorts) - len(lacking), len(done.clients))
    visits, accepted = state.visits.copy(), state.accepted.copy()
    visits[[*done.clients, *lacking]] += 1  # time goes on for a client whose visit must not be told of
    if not federation.packs:
        accepted[done.clients] = round
    total = Answer(layout, done.total) if done.clients else None
    return total, replace(state, visits=visits, accepted=accepted, index=index)


def _shared(federation: Federation, state: State, riding: NDArray[np.bool_]) -> dict[str, Array]:
    """Return what goes to every client beside the weights."""
    method = federation.scenario.server.method
    sent = {**method.shared(state.method), **(method.task_shared(state.method) if riding.any() else {})}
    return {name: each.numpy() for name, each in sent.items()}


def reply_problem(
    server: ServerConfig, layout: Layout, dtype: torch.dtype, known: Known, reply: TrainReply
) -> str | None:
    """Return why a reply cannot be added up, None if it can."""
    counted = ("n", "steps", "evicted", *(("capped",) if "capped" in reply.table else ()))
    wrong = counts_problem(reply.clients, reply.table, counted)
    wrong = wrong or notes_problem(reply.notes)
    wrong = wrong or known.problem(reply.clients, reply.table)
    wrong = wrong or sum_problem(layout, reply.total, str(dtype).removeprefix("torch."))
    if wrong or not len(reply.clients):
        return wrong
    return update_problem(server, Answer(layout, borrowed(reply.total)), reply.table)


def add(done: Round, order: TrainOrder, reply: TrainReply) -> None:
    """Add what can be taken to what has come in so far."""
    done.total += borrowed(reply.total)
    task = dict(zip(order.clients.tolist(), order.tasks.tolist(), strict=True))
    done.cohorts.append((reply.cohort, int(reply.table["steps"].sum()), reply.seconds))
    done.clients += reply.clients.tolist()
    done.tasks += [task[client] for client in reply.clients.tolist()]
    for name, column in reply.table.items():
        done.columns.setdefault(name, []).append(column)


def _note(federation: Federation, round: int, notes: Sequence[str]) -> None:
    """Write what clients note into the journal, each note once."""
    for note in notes:
        if note not in federation.noted:
            federation.noted.add(note)
            federation.report(round, {"event": "note", "text": note})


def _write(
    federation: Federation, round: int, cohorts: Sequence[Cohort], done: Round, seconds: float, down: int
) -> None:
    """Write the round's events; `down`: bytes that each client was sent."""
    columns = {name: np.concatenate(parts) for name, parts in done.columns.items()}
    n, asked = columns.get("n", np.zeros(0)), sum(len(cohort.clients) for cohort in cohorts)
    width = done.total.element_size()
    loss = {
        name[len("loss/") :]: round_to(float(np.average(column, weights=n)))
        for name, column in columns.items()
        if name.startswith("loss/") and len(column) == len(n) and np.isfinite(column).all()
    }
    for error in done.errors:
        federation.client_error(round, error)
    capped = int(columns.get("capped", np.zeros(1, np.int64)).sum())
    if capped:
        _note(federation, round, [_steep(federation)])
    federation.journal.write({
        "event": "round", "round": round, "seconds": round_to(seconds), "clients": done.clients, "tasks": done.tasks,
        "updates": len(done.clients), "steps": int(columns.get("steps", n).sum()), "loss": loss,
        "bytes_up": len(done.clients) * len(done.total) * width,
        "bytes_down": asked * down,
        "failed": len(done.errors), "evicted": int(columns.get("evicted", n).sum()),
        "stragglers": stragglers(done.cohorts), **({"capped": capped} if capped else {}),
    })  # fmt: skip


def _steep(federation: Federation) -> str:
    client = federation.scenario.client
    return (
        f"client.method = {registry.name_of('client_methods', client.method)!r}: some of its penalties are so steep "
        f"that steps with client.optimizer.lr = {client.optimizer.lr:g} must diverge; they are held to 1 / lr there "
        "(of how many parameters, events round say: capped); a smaller lr or weight of the penalty leaves them be"
    )


def stragglers(cohorts: Sequence[tuple[int, int, float]]) -> list[dict[str, Any]]:
    """Return which cohorts took far longer than their steps explain: more than SLOW times what the median one needs.

    Args:
        cohorts: number, steps and seconds of each; fewer than four say nothing.
    """
    paces = [seconds / steps for _, steps, seconds in cohorts if steps]
    if len(paces) < 4:
        return []
    pace = float(np.median(paces))
    return [
        {"cohort": number, "seconds": round_to(seconds), "expected": round_to(steps * pace)}
        for number, steps, seconds in cohorts
        if seconds > SLOW * steps * pace + MOMENT
    ]


def _enough(federation: Federation, round: int, asked: int, answered: int) -> None:
    needed = min(federation.scenario.server.min_clients, asked)
    if answered < needed:
        raise FederationError(
            f"round {round}: {answered} of {asked} clients answered, server.min_clients = {needed} are needed; "
            f"fedcl run --resume {federation.folder} goes on from the last complete round"
        )
