"""Who is chosen for a round, and which tasks begin and end with it."""

from dataclasses import replace

import numpy as np

from fedcl import plan
from fedcl.orders import Ints
from server.federation import Federation
from server.state import State
from server.steps import new_weights


def begin_tasks(federation: Federation, state: State, round: int) -> State:
    """Tell the method of global tasks that the first client meets in this round."""
    timeline = federation.stream.timeline
    now = timeline.tasks(timeline.positions(timeline.clocks(round, state.visits)))
    begun = state.begun.copy()
    begun[now[now >= 0]] = True
    new = np.flatnonzero(begun & ~state.begun).tolist()
    if not new:
        return state
    server = federation.scenario.server
    method, weights = server.method.begin_task(state.method, state.weights, new)
    weights = new_weights(server, weights, state.weights, "begin_task")
    if server.method.afresh:
        selection = server.selection.begin(federation.scenario.stream.clients)
        state = replace(state, optimizer=server.optimizer.begin(weights), selection=selection)
    return replace(state, method=method, weights=weights, begun=begun)


def select(federation: Federation, state: State, round: int, there: Ints) -> tuple[Ints, State]:
    """Return the clients of a round, of those that are there, and the state in which the selection remembers it."""
    server = federation.scenario.server
    chosen, memory = server.selection.choose(
        state.selection, there, server.clients_per_round or len(there), seed=federation.scenario.seed, round=round,
        rounds=federation.stream.timeline.rounds,
    )  # fmt: skip
    return chosen, replace(state, selection=memory)


def ended(federation: Federation, before: State, after: State, round: int) -> tuple[list[int], tuple[Ints, Ints]]:
    """Return the global tasks that nobody will meet again, and the clients that left a task with that task."""
    leavers = plan.leavers(federation.stream, round, before.visits, after.visits)
    return over(federation, after, round) if len(leavers[0]) else [], leavers


def over(federation: Federation, state: State, round: int) -> list[int]:
    """Return the global tasks that nobody will meet again after a round, of those that have not ended before."""
    found = plan.completed(federation.stream, round, state.visits) & state.begun & ~state.ended
    return np.flatnonzero(found).tolist()
