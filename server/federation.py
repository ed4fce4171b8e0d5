"""One run of a federation: what the round loop reads, whom it asks, and where it writes down what happened."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fedcl import config, foreign, models, plan, rundir
from fedcl.answers import Layout, Tensors, answer_layout
from fedcl.config import Scenario
from fedcl.digest import digest
from fedcl.errors import FederationError
from fedcl.fingerprint import fingerprint
from fedcl.interrupt import StopRequest
from fedcl.journal import Journal
from fedcl.memory import peaks
from fedcl.names import WARDS
from fedcl.orders import ClientError, Ints, Order, Reply, empty
from fedcl.packs import BrokenState
from fedcl.plan import Cohort
from fedcl.source import sample
from fedcl.state import Index, PackStore, records_digest
from fedcl.streams import Stream
from fedcl.timing import doing
from fedcl.track import Tracking, follow
from fedcl.world import as_text, world
from server import checkpoint
from server.exchange import Size, exchange, post, taken
from server.judge import Judge
from server.methods import ServerMethod
from server.roster import Roll, Roster, Who, nobody, roll_of
from server.sittings import sit
from server.state import State, begun_anew, restored, snapshot, state_digest

PATIENCE = 60.0  # seconds that a federation waits for all its clients before its first round

Asked = TypeVar("Asked", bound=Order)
Answered = TypeVar("Answered", bound=Reply)


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What the clients' records have to hold on to for a checkpoint to stay of use."""

    index: Index  # its packs stay
    accepted: Ints  # (clients,) where the nodes keep the records: these rounds stay

    @staticmethod
    def of(state: State) -> Kept:
        """Return what the checkpoint of a state needs."""
        return Kept(index=state.index, accepted=state.accepted)


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
    roll: Roll
    roster: Roster  # as it was when the round began
    sender: Mapping[str, Any]  # fields of every order that say who asks
    stop: StopRequest
    parameters: Layout
    tracking: Tracking
    committed: tuple[int, float] = (0, 0.0)  # round and time of the last checkpoint
    synced: set[str] = field(default_factory=set)  # packs that it has forced onto the disk
    overdue: dict[str, Order] = field(default_factory=dict)  # messages whose answers did not come in time
    lacking: set[tuple[int, str]] = field(default_factory=set)  # figures of clients that the journal says are withheld
    stock: dict[str, Any] = field(default_factory=dict)  # what the journal says that clients have
    noted: set[str] = field(default_factory=set)  # notes of clients that the journal has
    kept: list[Kept] = field(default_factory=list)  # of the checkpoints that it may fall back to, oldest first
    suspects: dict[int, list[int]] = field(default_factory=dict)  # round -> clients whose answers do not count there
    began: float = field(default_factory=time.monotonic)

    @staticmethod
    def join(
        grid: Grid, scenario: Scenario, folder: Path, state: str | None, stop: StopRequest, member: Who | None = None,
        wards: int = WARDS,
    ) -> Federation:  # fmt: skip
        """Make ready to run a scenario in a run directory.

        Args:
            state: folder of the clients' records; None: the nodes keep them.
            member: tells who has an id of Flower's; None: anybody may take part.
        """
        text = as_text(scenario)
        scenario, stream = world(text)
        judge = Judge.of(scenario, stream)
        name, sitting = (scenario.name, 0) if state else sit(folder, scenario.name)
        journal, clients = Journal(folder, rundir.LISTENERS.get()), scenario.stream.clients
        return Federation(
            scenario=scenario,
            text=text,
            stream=stream,
            grid=grid,
            journal=journal,
            packs=PackStore(Path(state)) if state else None,
            judge=judge,
            roll=roll_of(grid, text, clients, None if state else journal, member, wards),
            roster=nobody(clients),
            sender={"federation": name, "fingerprint": fingerprint(text), "sitting": sitting},
            stop=stop,
            parameters=judge.layout,
            tracking=follow(journal, scenario),
        )

    def __enter__(self) -> Federation:
        """Return the federation itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """End the trackers and close the journal."""
        try:
            self.tracking.close()
        finally:
            self.journal.close()

    @property
    def folder(self) -> Path:
        """The run directory."""
        return self.journal.folder

    @property
    def personal(self) -> bool:
        """Whether some parameters never leave the clients, so that there is no global model to measure."""
        return bool(self.scenario.model.personal)

    def gather(self) -> None:
        """Wait a while until all clients have a node."""
        self.roster = self.roll.meet(np.arange(len(self.roster.nodes)), 0, self.stop, PATIENCE)

    def restore(self, *, forget: bool = True) -> State | None:
        """Return the state of the newest whole checkpoint.

        Args:
            forget: what the journal says of later rounds.

        Raises:
            FederationError: the clients' records lay elsewhere when it was written.
        """
        whole = checkpoint.newest(self.folder / "checkpoints", self._usable, self.journal.error)
        state = self._restored(whole) if whole else None
        if state and len(state.accepted) != len(self.first_accepted()):
            where = "with the nodes" if self.packs else "in the run directory"
            raise FederationError(f"the clients' records of this run lie {where}: go on with it the way it was begun")
        if forget:
            self._mend(state.offset if state else 0)
        self.committed = (state.round if state else -1, time.monotonic())
        self.began = time.monotonic() - (state.seconds if state else 0.0)
        self.kept = [*self._older(), Kept.of(state)] if state else []
        return state

    def _restored(self, found: checkpoint.Snapshot) -> State:
        """Return a checkpoint's state, in which numbers that the operator has freed since are nobody's."""
        state, timeline = restored(found, config.config_hash(self.scenario)), self.stream.timeline
        return begun_anew(state, self.roll.table.held.anew, timeline.begin if timeline.open else empty())

    def _mend(self, offset: int) -> None:
        """Let the journal end at a byte; where some of it cannot be read, go on: the checkpoint has what counts."""
        lost = self.journal.mend(offset)
        self.journal.truncate(offset)
        if lost:
            self.journal.error(f"{lost} lines of {self.journal.path} could not be read; what they held is in .broken")
            self.journal.write({"event": "mended", "lines": lost})
            if next(self.journal.events())["event"] != "start":
                self.journal.write(rundir.start_event(self.scenario, self.stream))

    def _older(self) -> list[Kept]:
        """Return what the kept checkpoints before the newest need; a damaged one is of no use to anybody."""
        older = []
        for path in checkpoint.kept(self.folder / "checkpoints")[:-1]:
            with suppress(BrokenState):
                older.append(Kept.of(self._restored(checkpoint.read(path))))
        return older

    def _usable(self, found: checkpoint.Snapshot) -> None:
        index = restored(found, config.config_hash(self.scenario)).index
        if self.packs:
            self.packs.check(index)

    def first_state(self) -> State:
        """Return the state before the first round."""
        server, tasks, clients = self.scenario.server, len(self.stream.tasks), self.scenario.stream.clients
        weights = models.given(self.scenario.model, self.judge.initial, self.judge.fixed)
        self.scenario.client.method.check(self.parameters)
        return State(
            round=0,
            weights=weights,
            method=server.method.enrolled(server.method.begin(weights), clients),
            optimizer=server.optimizer.begin(weights),
            selection=server.selection.begin(clients),
            visits=np.zeros(clients, np.int64),
            accepted=self.first_accepted(),
            pending=np.zeros((clients, tasks), np.bool_),
            counted=np.zeros((clients, tasks), np.bool_),
            begun=np.zeros(tasks, np.bool_),
            ended=np.zeros(tasks, np.bool_),
            begin=self.stream.timeline.begin if self.stream.timeline.open else empty(),
            index=Index.empty(clients),
            offset=0,
            seconds=0.0,
        )

    def first_accepted(self) -> Ints:
        """Return the last accepted round of each client before the first one; nothing where a folder is shared."""
        return empty() if self.packs else np.zeros(self.scenario.stream.clients, np.int64)

    def commit(self, state: State, *, now: bool = False) -> State:
        """Write a checkpoint when one is due: the rename that ends it commits the round and every client's record.

        Every round is due where the nodes keep the records: only then is an answer accepted for good.
        """
        settings, (round, moment) = self.scenario.checkpoint, self.committed
        due = state.round - round >= settings.rounds and time.monotonic() - moment >= settings.seconds
        due = due or not self.packs
        if state.round == round or not (due or now):
            return state
        with doing("checkpoint"):
            return self._committed(state)

    def _committed(self, state: State) -> State:
        settings, began, folder = self.scenario.checkpoint, time.monotonic(), self.folder / "checkpoints"
        index = self.packs.compact(state.index, f"r{state.round:06d}-live.pack") if self.packs else state.index
        state = replace(state, index=index)
        self.journal.sync()
        files = self.packs.files(index) if self.packs else []
        packs = [self.packs.folder / name for name in files if name not in self.synced] if self.packs else []
        size = checkpoint.save(folder, snapshot(state, config.config_hash(self.scenario)), packs)
        keep = max(settings.keep, 2)  # whether anybody can train from the newest one the next round shows
        checkpoint.prune(folder, keep)
        self.kept = [*self.kept, Kept.of(state)][-keep:]
        if self.packs:
            self.packs.collect(each.index for each in self.kept)
        self.committed, self.synced = (state.round, time.monotonic()), set(files)
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
            "memory": peaks(),
        }  # fmt: skip
        self.journal.write(event)
        plain = config.as_dict(self.scenario)
        rundir.finish(self.folder, state.weights, self.classifier(state), self.stream.dataset, plain)

    def seconds_so_far(self) -> float:
        """Return the seconds spent on this run, in all sittings."""
        return round_to(time.monotonic() - self.began)

    def client_error(self, round: int, error: ClientError) -> None:
        """Write a client's failure into the journal and, with its traceback, into error.log."""
        self.journal.write({"event": "client_error", "round": round, **vars(error), "error": foreign.line(error.error)})
        self.journal.error(f"round {round}, client {error.client}: {foreign.line(error.error)}", error.traceback)

    def report(self, round: int, event: Mapping[str, Any]) -> None:
        """Write what a method has to tell, if anything, into the journal."""
        if event:
            self.journal.write({"round": round, **event})

    def answer(self, statistics: Sequence[str]) -> Layout:
        """Return names and shapes of an answer with these statistics."""
        return answer_layout(statistics, self.parameters, self.scenario.server.method)

    def cohorts(self, clients: Ints) -> list[Ints]:
        """Cut clients into parts of one node each, at most a cohort long; returns positions in `clients`."""
        nodes, size = self.roster.nodes[clients], self.scenario.engine.clients
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

    def ask(
        self,
        kind: str,
        orders: Sequence[Asked],
        state: State,
        answer: type[Answered],
        problem: Callable[[Answered], str | None],
        size: Size,
        failed: Callable[[ClientError], None] | None = None,
        *,
        weights: bool = True,
    ) -> Iterator[tuple[Asked, Answered]]:
        """Send orders, each to the node of its clients, and yield those whose reply can be taken, in their order.

        Args:
            kind: of the messages, `query.score`.
            answer, problem: what a reply must be, and why it cannot be taken although it is that (`exchange.taken`).
            size: of a reply; a larger one is not read.
            failed: is told of each client that has no part in a reply; default: the journal is.
            weights: whether the global model is sent along.
        """
        roster = self.roster
        addressed = [(order, roster.ids[roster.nodes[order.clients[0]]]) for order in orders]
        flat = (lambda: self.parameters.flatten(state.weights).numpy()) if weights else None
        with doing("broadcast"):
            messages = post(self.grid, kind, addressed, flat, self.text)
        missing: dict[str, int] = {}
        replies = exchange(self.grid, messages, self.scenario.server.deadline, self.stop, missing)
        for order, message in zip(orders, replies, strict=True):
            with doing("reduce"):
                reply, errors = taken(message, order, answer, problem, size)
            for error in errors:
                failed(error) if failed else self.client_error(order.round, error)
            if reply is not None:
                yield order, reply
        self.overdue |= {message_id: orders[place] for message_id, place in missing.items()}

    def refuse_late(self) -> None:
        """Write down which answers have come after their deadline; they count for nothing."""
        for message in self.grid.pull_messages(list(self.overdue)) if self.overdue else ():
            order = self.overdue.pop(message.metadata.reply_to_message_id)
            if not message.has_error():
                self.journal.write({"event": "late", "round": order.round, "clients": order.clients.tolist()})

    @cached_property
    def watched(self) -> Ints:
        """The clients that are measured on their own test items: a keyed fixed sample, ascending."""
        everyone = np.arange(self.scenario.stream.clients)
        return sample(everyone, self.scenario.evaluate.clients, self.scenario.seed)

    def records(self, state: State, clients: Ints) -> dict[str, Any]:
        """Return the fields of an order that say who asks, and which record of each client is meant.

        Where the nodes keep the records these are rounds. A round counts as accepted in the state that follows it,
        before the checkpoint of that state is written; if the server falls back meanwhile, it asks for an older one.
        So what the oldest of the kept checkpoints would ask for goes along: nodes forget only what is older.
        """
        if self.packs:
            packs, rows = state.index.locate(clients)
            return {**self.sender, "packs": packs, "rows": rows, "folder": str(self.packs.folder)}
        named = {**self.sender, "names": self.roll.table.names(clients)}
        nowhere = {**named, "packs": [""] * len(clients), "rows": np.zeros(len(clients), np.int64), "folder": ""}
        oldest: Ints = np.min([each.accepted for each in self.kept] or [self.first_accepted()], axis=0)
        return {**nowhere, "accepted": state.accepted[clients], "oldest": oldest[clients]}

    def plan(self, state: State, round: int, chosen: Ints) -> list[Cohort]:
        """Cut the clients of a round into cohorts."""
        client = self.scenario.client
        return plan.plan_round(
            self.stream, round, state.visits, chosen, self.roster.nodes, cohort=self.scenario.engine.clients,
            epochs=client.epochs, batch=client.batch, joint=self.scenario.stream.joint,
        )  # fmt: skip


def round_to(seconds: float) -> float:
    """Return seconds to the microsecond, as the journal writes them."""
    return round(seconds, 6)
