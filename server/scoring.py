"""Mean losses of clients under the global model, in an exchange of their own before a round, if the selection asks.

Who does not answer, or whose answer is refused, is named in the journal and keeps the score that it had.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from fedcl.orders import Ints, ScoreOrder, ScoreReply
from fedcl.plan import Cohort
from server import withheld
from server.acceptance import Known
from server.exchange import Size
from server.federation import Federation
from server.state import State


def score(federation: Federation, state: State, round: int, there: Ints) -> State:
    """Return the state in which the selection knows the losses that it wants, of clients that are there."""
    server = federation.scenario.server
    wanted = server.selection.wants(
        state.selection, there, server.clients_per_round or len(there), seed=federation.scenario.seed, round=round
    )
    if not len(wanted):
        return state
    clients, losses = [np.zeros(0, np.int64)], [np.zeros(0)]
    cohorts = federation.plan(state, round, wanted)
    orders = _orders(federation, state, round, cohorts)
    problem = partial(_problem, Known.of_visits(federation.stream, cohorts))
    for _, reply in federation.ask("query.score", orders, state, ScoreReply, problem, Size(each=2)):
        withheld.tell(federation, round, reply)
        clients.append(reply.clients)
        losses.append(reply.losses / reply.counts)
    known = np.concatenate(clients)
    down = federation.parameters.size * next(iter(state.weights.values())).element_size()
    federation.journal.write({
        "event": "scores", "round": round, "clients": len(known), "bytes_up": 16 * len(known),  # two numbers each
        "bytes_down": len(wanted) * down,
    })  # fmt: skip
    return replace(state, selection=server.selection.scored(state.selection, known, np.concatenate(losses)))


def _orders(federation: Federation, state: State, round: int, cohorts: Sequence[Cohort]) -> list[ScoreOrder]:
    """Return one order a cohort: what each client would train on if it were asked now."""
    orders = []
    for cohort in cohorts:
        orders.append(ScoreOrder(
            round=round, cohort=cohort.number, clients=cohort.clients, tasks=cohort.tasks, clocks=cohort.clocks,
            **federation.records(state, cohort.clients), weights=np.zeros(0, np.float32),
        ))  # fmt: skip
    return orders


def _problem(known: Known, reply: ScoreReply) -> str | None:
    """Return why scores cannot be; a loss that is no number can: the model may have diverged."""
    wrong = (reply.counts < 1).any() or (reply.losses < 0).any()
    if reply.losses.dtype != np.float64:
        return f"losses in {reply.losses.dtype}, not in float64"
    if wrong:
        return "a client without items, or with a loss below 0"
    return known.problem(reply.clients, {"n": reply.counts})
