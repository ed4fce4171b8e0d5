"""The Flower ServerApp: the one round loop. Simulation, `flwr run` and real machines all call this `main`."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from numpy.typing import NDArray

from fedcl import rundir
from fedcl.answers import Answer
from fedcl.errors import Diverged
from fedcl.interrupt import Stopped, listening
from fedcl.log import collect
from fedcl.names import WARDS
from fedcl.orders import Ints
from fedcl.real.nodes import Nodes
from fedcl.streams import empty_cells
from fedcl.timing import doing
from server import trouble, turns
from server.consolidation import consolidate
from server.evaluation import evaluate, measured
from server.federation import Federation
from server.presence import present
from server.recovery import fall_back, leave_out
from server.scoring import score
from server.soundness import Unsound, check
from server.state import State
from server.steps import new_weights, updated
from server.tracing import trace
from server.training import train

ENDS = {Stopped: "stopped", Diverged: "diverged"}  # of a run that raises

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run a federation from its last checkpoint (or the start) to its end.

    Raises:
        Stopped: SIGTERM or Ctrl-C; what was done is checkpointed.
        FederationError: too few clients answered; the last complete round is checkpointed.
        Diverged: the weights are of no use any more; the last round from which clients could train is checkpointed.
    """
    scenario, folder = rundir.asked(context.run_config)
    state_folder = str(context.run_config.get("state") or "") or None
    nodes = str(context.run_config.get("nodes") or "")  # folder of the server whose supervisor has started this run
    member = Nodes(Path(nodes)).member if nodes else None
    wards = int(str(context.run_config.get("wards") or WARDS))
    with (
        listening() as stop,
        rundir.claimed(folder),
        trouble.told(folder),
        Federation.join(grid, scenario, folder, state_folder, stop, member, wards) as federation,
    ):
        federation.gather()
        state = federation.restore() or opening(federation)
        try:
            while state.round < federation.stream.timeline.rounds:
                try:
                    state = federation.commit(one_round(federation, state, state.round + 1))
                except Unsound as found:
                    state = fall_back(federation, state, found)
                    leave_out(federation, state, found)
        except Exception as error:
            status = ENDS.get(type(error), "failed")
            try:
                federation.end(federation.commit(state, now=True), status)
            except OSError:  # a disk that is full is so here too: what it denied first is told
                if not isinstance(error, OSError):
                    raise
            raise
        diverged = collect(federation.journal.events()).diverged
        federation.end(federation.commit(state, now=True), "diverged" if diverged else "finished")


def opening(federation: Federation) -> State:
    """Write down what is run, which cells of it are empty and what a fresh model can do; return the first state."""
    journal, state = federation.journal, federation.first_state()
    journal.write(rundir.start_event(federation.scenario, federation.stream, federation.judge.notes))
    empty = empty_cells(federation.stream)
    if empty:
        journal.write({"event": "skip", "cells": [list(cell) for cell in empty]})
    if not federation.personal:
        journal.write(measured(federation, state, 0))
    return replace(state, offset=journal.offset)


def one_round(federation: Federation, state: State, round: int) -> State:
    """Score, select, plan, train; aggregate, optimise, project; consolidate; evaluate."""
    nothing = np.zeros(len(state.begun), np.bool_)
    federation.refuse_late()
    with doing("selection"):
        there, before, left = present(federation, state, round)
    if len(left[0]):  # newer data has reached them since the round before: that was their last one at their task
        before = closed(federation, before, round - 1, None, nothing, turns.over(federation, before, round - 1), left)
    with doing("selection"):
        before = turns.begin_tasks(federation, before, round)
        before = score(federation, before, round, there)
        chosen, before = turns.select(federation, before, round, there)
        cohorts = federation.plan(before, round, chosen)
    trace(federation, before, round, cohorts)
    riding = federation.riding(before, round, cohorts)
    total, state = train(federation, before, round, cohorts, riding)
    if total is not None:
        with doing("update"):
            state = check(updated(federation.scenario.server, state, total), round)
    ended, leavers = turns.ended(federation, before, state, round)
    return check(closed(federation, state, round, total, riding, ended, leavers), round)


def closed(
    federation: Federation, state: State, round: int, total: Answer | None, riding: NDArray[np.bool_],
    ended: Sequence[int], leavers: tuple[Ints, Ints],
) -> State:  # fmt: skip
    """Consolidate what ends with a round, and evaluate what is due after it.

    Args:
        total: the round's answers, on which the statistics of the tasks in `riding` (tasks,) have come.
        ended, leavers: tasks that nobody will meet again; clients that leave a task, and that task.
    """
    server = federation.scenario.server
    with doing("consolidation"):
        asked, state = consolidate(federation, state, round, ended, leavers)
    over = list(ended) or np.flatnonzero(riding).tolist()
    if over or asked is not None:
        riders = total if riding.any() else None
        known = riders if server.method.participants == "round" else asked
        method, weights = server.method.end_task(state.method, state.weights, known, over)
        weights = new_weights(server, weights, state.weights, "end_task")
        state = replace(state, method=method, weights=weights)
        federation.report(round, server.method.report(method, known, over))
    with doing("evaluation"):
        return evaluate(federation, state, round, ended, leavers)
