"""A round's training: orders out, answers in; each is checked where it stands alone, then added in cohort order.

A sum is formed while others train, but nothing counts before all tables are in: only they tell which update is too long
(`server.norms`). A cohort with such a client is asked once more without it, as it would train if the client had failed.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedcl import registry
from fedcl.answers import Answer, Layout, borrowed
from fedcl.config import ServerConfig
from fedcl.errors import FederationError
from fedcl.orders import REFUSED, Array, ClientError, TrainOrder, TrainReply, pick
from fedcl.plan import Cohort
from fedcl.timing import doing
from server import norms, withheld
from server.acceptance import Known, counts_problem, notes_problem, sum_problem, update_problem
from server.exchange import Size, withheld_visits
from server.federation import Federation, round_to
from server.soundness import check_answers, tell_divergence
from server.state import State
from server.tally import Came, Tally
from server.waiting import Sums

SLOW, MOMENT = 2.0, 0.1  # a cohort is slow at so many times its predicted seconds, and so many seconds more
Problem = Callable[[TrainReply], str | None]


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
        Unsound: the weights that the clients were sent are no good any more.
    """
    began = time.monotonic()
    dtype = next(iter(state.weights.values())).dtype
    method = federation.scenario.server.method
    statistics = [*method.answers, *(method.task_answers if riding.any() else ())]
    layout = federation.answer(statistics)
    shared = _shared(federation, state, riding)
    orders = [_order(federation, state, round, cohort, riding, statistics, shared) for cohort in cohorts]
    client = federation.scenario.client
    known = Known.of_visits(federation.stream, cohorts, epochs=client.epochs, batch=client.batch)
    problem = partial(reply_problem, federation.scenario.server, layout, dtype, known)
    with closing(Sums(federation.folder)) as sums:
        done = Tally(total=torch.zeros(layout.size, dtype=dtype), sums=sums)
        ask = partial(_ask, federation, state, Size(layout.size), done)
        for order, reply in ask(orders, problem):
            with doing("reduce"):
                done.add(order, reply)
                _note(federation, round, reply.notes)
        if norms.has_updates(layout) and done.came:
            _leave_out(federation, state, round, done, ask, problem)
    down = federation.parameters.size * dtype.itemsize + sum(each.nbytes for each in shared.values())
    _write(federation, round, cohorts, done, time.monotonic() - began, down)
    asked = sum(len(cohort.clients) for cohort in cohorts)
    columns = done.columns
    tell_divergence(federation, round, asked, columns, done.errors)
    check_answers(state, asked, columns, done.errors)
    _enough(federation, round, asked - len(done.lacking), len(done.clients))
    return (Answer(layout, done.total) if done.came else None), _accepted(federation, state, round, done)


def _order(
    federation: Federation, state: State, round: int, cohort: Cohort, riding: NDArray[np.bool_],
    statistics: Sequence[str], shared: dict[str, Array],
) -> TrainOrder:  # fmt: skip
    """Return the order of a cohort."""
    return TrainOrder(
        round=round, cohort=cohort.number, clients=cohort.clients, tasks=cohort.tasks, clocks=cohort.clocks,
        **federation.records(state, cohort.clients), weights=np.zeros(0, np.float32), shared=shared,
        statistics=list(statistics), leaving=riding[cohort.tasks].astype(np.int64),
    )  # fmt: skip


def _ask(
    federation: Federation, state: State, size: Size, done: Tally, orders: Sequence[TrainOrder], problem: Problem
) -> Iterator[Came]:
    """Send orders and yield the answers of somebody, each with its order."""
    for order, reply in federation.ask("train", orders, state, TrainReply, problem, size, done.errors.append):
        withheld.tell(federation, order.round, reply)
        done.lacking += withheld_visits(reply)
        if len(reply.clients):
            yield order, reply


def _leave_out(
    federation: Federation, state: State, round: int, done: Tally,
    ask: Callable[[Sequence[TrainOrder], Problem], Iterator[Came]], problem: Problem,
) -> None:  # fmt: skip
    """Refuse updates that are too long, and ask what is left of their cohorts once more, now that all tables are in."""
    server, clients = federation.scenario.server, done.clients
    said = norms.effective(server, done.columns["norm"])
    limit = norms.Limit.of(server, said, state.weights)
    suspects = np.isin(clients, federation.suspects.get(round, []))
    out = limit.exceeded(said) | suspects
    if not out.any():
        return
    for client, norm, known in zip(clients[out].tolist(), said[out].tolist(), suspects[out], strict=True):
        why = "it is one of the longest, and with them the weights were not sound" if known else limit.words
        error = f"answer refused: its update has norm {norm:.3g}: {why}"
        done.errors.append(ClientError(client=client, error=error, traceback="", kind=REFUSED))
    left = {cohort: ~np.isin(reply.clients, clients[out]) for cohort, (_, reply) in done.came.items()}
    gone = [cohort for cohort, rows in left.items() if not rows.all()]
    orders = []
    for cohort in gone:
        order, reply = done.came[cohort]
        if left[cohort].any():
            orders.append(pick(order, np.flatnonzero(np.isin(order.clients, reply.clients[left[cohort]]))))

    def again(reply: TrainReply) -> str | None:
        wrong = problem(reply)
        long = not wrong and limit.exceeded(norms.effective(server, reply.table["norm"])).any()
        return f"asked again, it brings an update of a norm that is {limit.words}" if long else wrong

    came = list(ask(orders, again))
    with doing("reduce"):
        done.put_right(gone, came)


def _accepted(federation: Federation, state: State, round: int, done: Tally) -> State:
    """Return the state in which the visits and records of those whose answers count are counted."""
    visits, accepted, index = state.visits.copy(), state.accepted.copy(), state.index
    visits[[*done.clients.tolist(), *done.lacking]] += 1  # time goes on for who must not be told to have visited
    if not federation.packs:
        accepted[done.clients] = round
    for _, reply in done.came.values():
        if federation.packs and reply.pack:
            index = index.place(reply.pack, reply.checksum, reply.clients)
    return replace(state, visits=visits, accepted=accepted, index=index)


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
    wrong = wrong or known.problem(reply.clients, reply.table)
    wrong = wrong or notes_problem(reply.notes)
    wrong = wrong or sum_problem(layout, reply.total, str(dtype).removeprefix("torch."))
    if wrong or not len(reply.clients):
        return wrong
    return update_problem(server, Answer(layout, borrowed(reply.total)), reply.table)


def _note(federation: Federation, round: int, notes: Sequence[str]) -> None:
    """Write what clients note into the journal, each note once."""
    for note in notes:
        if note not in federation.noted:
            federation.noted.add(note)
            federation.report(round, {"event": "note", "text": note})


def _write(
    federation: Federation, round: int, cohorts: Sequence[Cohort], done: Tally, seconds: float, down: int
) -> None:
    """Write the round's events; `down`: bytes that each client was sent."""
    columns, clients = done.columns, done.clients.tolist()
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
    paces = [(each.cohort, int(each.table["steps"].sum()), each.seconds) for _, each in done.came.values()]
    said = norms.effective(federation.scenario.server, columns["norm"]) if "norm" in columns else np.zeros(0)
    federation.journal.write({
        "event": "round", "round": round, "seconds": round_to(seconds), "clients": clients,
        "tasks": done.tasks.tolist(), "updates": len(clients), "steps": int(columns.get("steps", n).sum()),
        "loss": loss, "norm": norms.longest(done.clients, said),
        "bytes_up": len(clients) * len(done.total) * width,
        "bytes_down": asked * down,
        "failed": len(done.errors), "lost": dict(sorted(Counter(each.kind for each in done.errors).items())),
        "evicted": int(columns.get("evicted", n).sum()),
        "stragglers": stragglers(paces), **({"capped": capped} if capped else {}),
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
