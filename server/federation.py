"""One run of a federation: what the round loop reads, whom it asks, and where it writes down what happened."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fedcl import config, models, plan, rundir, wire
from fedcl.answers import Layout, Tensors, answer_layout
from fedcl.config import Scenario
from fedcl.digest import digest
from fedcl.interrupt import StopRequest
from fedcl.journal import Journal
from fedcl.orders import ClientError, Ints
from fedcl.plan import Cohort
from fedcl.state import BrokenState, Index, PackStore, records_digest
from fedcl.streams import Stream
from fedcl.world import as_text, world
from server import checkpoint
from server.exchange import Roster, call_the_roll
from server.judge import Judge
from server.methods import ServerMethod
from server.state import State, restored, snapshot, state_digest


@dataclass(kw_only=True)
class Federation:
    """The run's surroundings. What results depend on stands in `State`; nothing here does but the scenario."""

    scenario: Scenario
    text: str  # the resolved configuration, as it travels with every order
    stream: Stream
    grid: Grid
    journal: Journal
    packs: PackStore | None  # None: the nodes keep the clients' records themselves
    judge: Judge
    roster: Roster
    stop: StopRequest
    parameters: Layout
    committed: tuple[int, float] = (0, 0.0)  # round and time of the last checkpoint
    synced: set[str] = field(default_factory=set)  # packs that it has forced onto the disk
    kept: list[Index] = field(default_factory=list)  # of the kept checkpoints: their packs stay
    began: float = field(default_factory=time.monotonic)

    @staticmethod
    def join(grid: Grid, context: Context, stop: StopRequest) -> Federation:
        """Find out from the Flower context what to run, and from the grid who is there."""
        scenario, folder = rundir.asked(context.run_config)
        text = as_text(scenario)
        scenario, stream = world(text)
        judge = Judge.of(scenario, stream)
        state = context.run_config.get("state")
        return Federation(
            scenario=scenario,
            text=text,
            stream=stream,
            grid=grid,
            journal=Journal(folder, rundir.LISTENERS.get()),
            packs=PackStore(Path(str(state))) if state else None,
            judge=judge,
            roster=call_the_roll(grid, text, scenario.stream.clients, stop),
            stop=stop,
            parameters=judge.layout,
        )

    def __enter__(self) -> Federation:
        """Return the federation itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Close the journal."""
        self.journal.close()

    @property
    def folder(self) -> Path:
        """The run directory."""
        return self.journal.folder

    @property
    def personal(self) -> bool:
        """Whether some parameters never leave the clients, so that there is no global model to measure."""
        return bool(self.scenario.model.personal)

    # The beginning and the end of a run.

    def restore(self) -> State | None:
        """Return the state of the newest whole checkpoint and forget what the journal says of later rounds."""
        whole = checkpoint.newest(self.folder / "checkpoints", self._usable, self.journal.error)
        state = restored(whole, config.config_hash(self.scenario)) if whole else None
        self.journal.truncate(state.offset if state else 0)
        self.committed = (state.round if state else -1, time.monotonic())
        self.began = time.monotonic() - (state.seconds if state else 0.0)
        self.kept = [*self._older(), state.index] if state else []
        return state

    def _older(self) -> list[Index]:
        """Return the indices of the kept checkpoints before the newest; a damaged one is of no use to anybody."""
        indices = []
        for path in checkpoint.kept(self.folder / "checkpoints")[:-1]:
            with suppress(BrokenState):
                indices.append(restored(checkpoint.read(path), config.config_hash(self.scenario)).index)
        return indices

    def _usable(self, found: checkpoint.Snapshot) -> None:
        index = restored(found, config.config_hash(self.scenario)).index
        if self.packs:
            self.packs.check(index)

    def first_state(self) -> State:
        """Return the state before the first round."""
        server, tasks, clients = self.scenario.server, len(self.stream.tasks), self.scenario.stream.clients
        weights = models.given(self.scenario.model, self.judge.initial)
        return State(
            round=0,
            weights=weights,
            method=server.method.begin(weights),
            optimizer=server.optimizer.begin(weights),
            visits=np.zeros(clients, np.int64),
            pending=np.zeros((clients, tasks), np.bool_),
            counted=np.zeros((clients, tasks), np.bool_),
            begun=np.zeros(tasks, np.bool_),
            ended=np.zeros(tasks, np.bool_),
            index=Index.empty(clients),
            offset=0,
            seconds=0.0,
        )

    def commit(self, state: State, *, now: bool = False) -> State:
        """Write a checkpoint when one is due: the rename that ends it commits the round and every client's record."""
        settings, (round, moment) = self.scenario.checkpoint, self.committed
        due = state.round - round >= settings.rounds and time.monotonic() - moment >= settings.seconds
        if state.round == round or not (due or now):
            return state
        began, folder = time.monotonic(), self.folder / "checkpoints"
        index = self.packs.compact(state.index, f"r{state.round:06d}-live.pack") if self.packs else state.index
        state = replace(state, index=index)
        self.journal.sync()
        packs = [self.packs.path(name) for name in index.packs if name not in self.synced] if self.packs else []
        size = checkpoint.save(folder, snapshot(state, config.config_hash(self.scenario)), packs)
        checkpoint.prune(folder, settings.keep)
        self.kept = [*self.kept, index][-settings.keep :]
        if self.packs:
            self.packs.collect(self.kept)
        self.committed, self.synced = (state.round, time.monotonic()), set(index.packs)
        seconds = round_to(time.monotonic() - began)
        self.journal.write({"event": "checkpoint", "round": state.round, "seconds": seconds, "bytes": size})
        return state

    def end(self, state: State, status: str) -> None:
        """Write the run's last event, results.json and the model."""
        clients, absent = None, "the nodes keep their clients' records"
        if self.packs:
            clients, absent = records_digest(self.packs, state.index), ""
        event = {
            "event": "end", "round": state.round, "status": status, "seconds": round_to(time.monotonic() - self.began),
            "weights_sha256": digest(state.weights), "state_sha256": state_digest(state),
            "clients_sha256": clients, "clients_sha256_absent": absent or None,
        }  # fmt: skip
        self.journal.write(event)
        rundir.finish(self.folder, state.weights, self.classifier(state), config.as_dict(self.scenario))

    def seconds_so_far(self) -> float:
        """Return the seconds spent on this run, in all sittings."""
        return round_to(time.monotonic() - self.began)

    def client_error(self, round: int, error: ClientError) -> None:
        """Write a client's failure into the journal and, with its traceback, into error.log."""
        self.journal.write({"event": "client_error", "round": round, **vars(error)})
        self.journal.error(f"round {round}, client {error.client}: {error.error}\n{error.traceback}")

    def report(self, round: int, event: Mapping[str, Any]) -> None:
        """Write what a method has to tell, if anything, into the journal."""
        if event:
            self.journal.write({"round": round, **event})

    # One round.

    def answer(self, statistics: Sequence[str]) -> Layout:
        """Return names and shapes of an answer with these statistics."""
        return answer_layout(statistics, self.parameters, self.scenario.server.method)

    def cohorts(self, clients: Ints) -> list[Ints]:
        """Cut clients into parts of one node each, at most a cohort long; returns positions in `clients`."""
        nodes, size = self.roster.nodes[clients], self.scenario.engine.cohort
        each_node = [np.flatnonzero(nodes == node) for node in np.unique(nodes)]
        return [own[begin : begin + size] for own in each_node for begin in range(0, len(own), size)]

    def classifier(self, state: State) -> Tensors:
        """Return what predicts instead of the logits of the global model, if the method has something."""
        method: ServerMethod = self.scenario.server.method
        return method.classifier(state.method, state.weights)

    def riding(self, state: State, round: int, cohorts: Sequence[Cohort]) -> NDArray[np.bool_]:
        """Return the tasks (tasks,) whose statistics are to ride on this round's answers."""
        method, tasks = self.scenario.server.method, len(self.stream.tasks)
        if not method.task_answers or method.participants != "round" or self.scenario.stream.joint or not cohorts:
            return np.zeros(tasks, np.bool_)
        if method.every:
            return np.full(tasks, round % method.every == 0)
        visits = state.visits.copy()
        visits[np.concatenate([cohort.clients for cohort in cohorts])] += 1
        return plan.completed(self.stream, round, visits) & state.begun & ~state.ended

    def pack_weights(self, state: State) -> ArrayRecord:
        """Return the weights as the one record that all messages of an exchange share."""
        return wire.pack({"weights": self.parameters.flatten(state.weights).numpy()})

    def records(self, state: State, clients: Ints) -> tuple[list[str], Ints, str]:
        """Return pack and row of each client's newest record, and the folder; nothing where the nodes keep them."""
        if not self.packs:
            return [""] * len(clients), np.zeros(len(clients), np.int64), ""
        return *state.index.locate(clients), str(self.packs.folder)

    def begin_tasks(self, state: State, round: int) -> State:
        """Tell the method of global tasks that the first client meets in this round."""
        timeline = self.stream.timeline
        now = timeline.tasks(timeline.positions(timeline.clocks(round, state.visits)))
        begun = state.begun.copy()
        begun[np.unique(now[now >= 0])] = True
        new = np.flatnonzero(begun & ~state.begun).tolist()
        if not new:
            return state
        method, weights = self.scenario.server.method.begin_task(state.method, state.weights, new)
        return replace(state, method=method, weights=weights, begun=begun)

    def plan(self, state: State, round: int) -> list[Cohort]:
        """Select clients for a round and cut them into cohorts."""
        server, client, seed = self.scenario.server, self.scenario.client, self.scenario.seed
        joint = self.scenario.stream.joint
        there = plan.available(self.stream, round, state.visits, joint=joint)
        there = there[self.roster.reachable[there]]
        chosen = server.selection.select(there, server.clients_per_round or len(there), seed=seed, round=round)
        return plan.plan_round(
            self.stream, round, state.visits, chosen, self.roster.nodes, cohort=self.scenario.engine.cohort,
            epochs=client.epochs, batch=client.batch, joint=joint,
        )  # fmt: skip

    def ended(self, before: State, after: State, round: int) -> tuple[list[int], tuple[Ints, Ints]]:
        """Return the global tasks that nobody will meet again, and the clients that left a task with that task."""
        leavers = plan.leavers(self.stream, round, before.visits, after.visits)
        if not len(leavers[0]):
            return [], leavers
        over = plan.completed(self.stream, round, after.visits) & after.begun & ~after.ended
        return np.flatnonzero(over).tolist(), leavers


def round_to(seconds: float) -> float:
    """Return seconds to the microsecond, as the journal writes them."""
    return round(seconds, 6)
