"""Records on real nodes: whatever is lost, refused, late or repeated, a client goes on from what its server knows."""

import json
import os
import random
import stat
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from clients.app import app as client_app
from clients.memories import Records
from clients.node import InContext, place
from clients.site import site
from clients.versions import (
    BadVersion,
    Folder,
    LostRecords,
    OldSitting,
    Place,
    Versions,
    carry_out,
    check_sitting,
    opened,
    outdated,
    sealed,
)
from clients.work import Store
from fedcl import api, config, rundir, wire
from fedcl.config import Scenario, config_hash
from fedcl.engine import flower
from fedcl.engine.choice import resolve
from fedcl.errors import FederationError
from fedcl.fingerprint import fingerprint
from fedcl.orders import EvaluateOrder, Order, TraceOrder, TrainOrder, TrainReply, pick
from fedcl.world import as_text
from server import checkpoint
from server.app import app as server_app
from server.state import State, restored
from tests.federations import Clients, journal, tiny
from tests.nodes import SECRET, Death, Fate, Nodes, fine

RECORD = np.dtype([("visits", "<i8"), ("story", "<u8")])  # the story tells of all rounds that it has in it
FRESH = np.zeros(1, RECORD)


def order(round: int, accepted: Any, oldest: Any = None, clients: Any = None) -> TrainOrder:
    """Return a training order to clients 0, 1, ... that names these rounds."""
    accepted = np.atleast_1d(np.array(accepted, np.int64))
    k = np.arange(len(accepted)) if clients is None else np.array(clients)
    return TrainOrder(
        round=round, cohort=0, clients=k, packs=[""] * len(k), rows=np.zeros_like(k), folder="", weights=np.zeros(1),
        tasks=np.zeros_like(k), clocks=np.zeros_like(k), accepted=accepted,
        oldest=np.zeros_like(accepted) if oldest is None else np.atleast_1d(np.array(oldest, np.int64)),
    )  # fmt: skip


def in_context() -> InContext:
    return InContext(RecordDict())


# The rule.


@pytest.mark.parametrize(
    ("there", "named", "gone"),
    [
        ([], (5, 3, 2), []),
        ([1, 2, 3], (4, 3, 2), [1]),
        ([1, 2, 3], (4, 3, 3), [1, 2]),
        ([1, 3, 4, 5], (6, 3, 1), [4, 5]),  # 4 and 5 were refused
        ([1, 3, 5, 6], (5, 3, 3), [1]),  # 5 is overwritten, 6 may be newer than this order
        ([1, 2], (4, 0, 0), [1, 2]),  # of another run
        ([1, 2], (7, 5, 5), [1]),  # 5 is lost: nothing that could still help goes
    ],
)
def test_what_is_outdated(there: list[int], named: tuple[int, int, int], gone: list[int]) -> None:
    assert outdated(there, *named) == gone
    assert outdated(reversed(there), *named) == gone


def story(record: Any, round: int) -> Records:
    """Return the record after a visit: the same after the same visits in the same rounds only."""
    visits, story = np.atleast_1d(record)[0].item()
    return np.array([(visits + 1, hash((story, round)) % 2**64)], RECORD)


@dataclass
class Server:
    """A server in a few lines: what it has accepted and which of its states it may fall back to; one client."""

    keep: int
    round: int = 0
    accepted: tuple[int, ...] = ()  # rounds, in order
    kept: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)  # (round, accepted)
    sitting: int = 1

    @property
    def order(self) -> TrainOrder:
        """The order of the next round."""
        last = [0, *self.accepted][-1]
        oldest = [0, *self.kept[0][1]][-1] if self.kept else 0
        return replace(order(self.round + 1, last, oldest), federation="run", sitting=self.sitting)

    @property
    def expected(self) -> Records:
        """What the client has to go on from."""
        record: Records = FRESH
        for round in self.accepted:
            record = story(record, round)
        return record

    def close(self, accepted: bool, commit: bool) -> None:
        """End the round."""
        self.round += 1
        self.accepted += (self.round,) * accepted
        if commit:
            self.kept = [*self.kept, (self.round, self.accepted)][-self.keep :]

    def fall_back(self, n: int) -> None:
        """Go on from the n-th newest of the kept states (0: only what was not committed is lost), or the beginning."""
        self.kept = self.kept[: max(len(self.kept) - n, 0)]
        self.round, self.accepted = self.kept[-1] if self.kept else (0, ())
        self.sitting += 1


@dataclass
class World:
    """The server, its client's node, and orders that are still on their way."""

    server: Server
    place: Place
    late: list[TrainOrder] = field(default_factory=list)
    out_of_time: set[int] = field(default_factory=set)  # rounds whose orders were carried out after their time
    ahead: set[int] = field(default_factory=set)  # versions that were there when the server fell back

    def visit(self, asked: TrainOrder) -> Records:
        """Carry an order out; return the record that it went on from."""
        seen = []

        def work(asked: TrainOrder, store: Store) -> TrainReply:
            seen.append(store.load(asked.clients, asked.packs, asked.rows, FRESH))
            store.save("", asked.clients, story(seen[0][0], asked.round))
            zero = np.zeros(0)
            return TrainReply(round=asked.round, cohort=0, clients=asked.clients, table={}, total=zero)

        assert not carry_out(asked, self.place, "scenario", work).errors
        return seen[0]

    def step(self, what: str, n: int) -> None:
        """Let one thing happen."""
        if what == "fall back":
            self.server.fall_back(n)
            self.ahead, self.out_of_time = set(self.place.rounds(0)), set()
        elif what == "arrives" and self.late:
            self.arrives(self.late[n % len(self.late)])
        elif what == "late":
            self.late.append(self.server.order)
            self.server.close(False, commit=True)
        elif what in ("accepted", "uncommitted", "refused", "lost"):
            asked = self.server.order
            if what != "lost":
                self.late += [asked] * n  # a message that comes twice
                assert self.visit(asked) == self.server.expected
                self.check(asked)
            self.server.close(what in ("accepted", "uncommitted"), commit=what != "uncommitted")

    def arrives(self, late: TrainOrder) -> None:
        """Let an order arrive out of its time, perhaps one of a server that has died."""
        there, dead = sorted(self.place.rounds(0)), late.sitting < self.server.sitting
        try:
            self.visit(late)
            self.out_of_time.add(late.round)
            assert late.sitting == self.place.sittings()["run"]
        except OldSitting:
            assert dead
            assert sorted(self.place.rounds(0)) == there
        except LostRecords:  # it names a version that no state of the server names any more
            assert dead or self.server.order.oldest[0] > 0

    def check(self, asked: TrainOrder) -> None:
        """Whatever some state of the server names is there, and hardly anything else."""
        there, oldest = set(self.place.rounds(0)), int(asked.oldest[0])
        needed = {each for each in self.server.accepted if each >= oldest}
        for _, accepted in self.server.kept:
            assert set(accepted[-1:]) <= needed
        assert needed <= there
        assert {each for each in there if each < asked.round} <= needed | self.out_of_time
        assert {each for each in there if each > asked.round} <= self.ahead | self.out_of_time


STEPS = ["accepted"] * 4 + ["uncommitted", "refused", "lost", "late", "arrives", "fall back"]


@given(st.integers(1, 3), st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 2)), max_size=40))
@settings(max_examples=300)
def test_a_client_goes_on_from_what_its_server_knows(keep: int, steps: list[tuple[str, int]]) -> None:
    """Rounds accepted, refused, lost, late, repeated, committed or not, and falls back to any kept state, in any order.

    Orders that are late, or come twice, arrive at any time, also when the server that sent them has died.

    Before every visit the record is the one that the server's accepted rounds make. After it there are the versions
    accepted since the oldest kept state, the order's own, and what is left of a fall back or of orders out of time.
    """
    world = World(Server(keep), in_context())
    for what, n in steps:
        world.step(what, n)
    assert world.visit(world.server.order) == world.server.expected


def test_an_order_of_a_dead_server_is_refused_once_the_new_one_has_gone_on() -> None:
    """Round 3 of sitting 1 arrives after sitting 2 fell back to round 1 and went on: refused, and no version changes.

    Without the sitting it would drop version 2 and overwrite version 3, which the new server has accepted.
    """
    world = World(Server(2), in_context())
    world.step("accepted", 0)
    world.step("refused", 0)
    dead = world.server.order
    assert (dead.round, dead.accepted.tolist(), dead.sitting) == (3, [1], 1)
    world.step("fall back", 1)
    for _ in range(3):
        world.step("accepted", 0)
    versions = {number: world.place.read(0, number) for number in world.place.rounds(0)}
    with pytest.raises(OldSitting, match=r"sitting = 1 of 'run', but 2 has been seen here"):
        world.visit(dead)
    assert {number: world.place.read(0, number) for number in world.place.rounds(0)} == versions
    assert {2, 3} <= set(versions)  # what the order of the dead server would have dropped and overwritten
    assert world.visit(world.server.order) == world.server.expected


def test_sittings_are_remembered_for_each_federation(tmp_path: Path) -> None:
    """In the folder's file and over a restart of the node; another run may begin at 1; the 64 seen last are kept."""
    asked = order(1, [0])
    for name, sitting in (("a", 3), ("b", 1), ("a", 3), ("b", 2)):
        check_sitting(replace(asked, federation=name, sitting=sitting), Folder(tmp_path))
    assert json.loads((tmp_path / "sittings.json").read_text()) == {"a": 3, "b": 2}
    with pytest.raises(OldSitting):
        check_sitting(replace(asked, federation="a", sitting=2), Folder(tmp_path))
    for number in range(64):
        check_sitting(replace(asked, federation=str(number), sitting=1), Folder(tmp_path))
    assert list(Folder(tmp_path).sittings()) == [str(number) for number in range(64)]
    (tmp_path / "sittings.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"sittings\.json is damaged"):
        check_sitting(asked, Folder(tmp_path))


def test_versions_stay_few(tmp_path: Path) -> None:
    """Two kept states, 30 rounds accepted and committed one by one: the version of each, and the one being made."""
    world = World(Server(2), Folder(tmp_path))
    for number in range(1, 31):
        world.step("accepted", 0)
        assert sorted(world.place.rounds(0)) == list(range(max(number - 2, 1), number + 1))
    assert sorted(path.name for path in (tmp_path / "client-000000").iterdir()) == [
        f"r{number:06d}.state" for number in (28, 29, 30)
    ]


# Files.

SEALED = sealed(story(FRESH[0], 5), 3, 5, "scenario")


def test_a_version_is_a_line_of_json_and_the_records_bytes() -> None:
    line, payload = SEALED.split(b"\n", 1)
    assert sorted(json.loads(line)) == ["client", "dtype", "format", "round", "scenario", "sha256"]
    assert payload == story(FRESH[0], 5).tobytes()
    assert opened(SEALED, RECORD, 3, 5, "scenario") == story(FRESH[0], 5)


def test_every_prefix_and_every_flipped_bit_is_refused() -> None:
    """Nothing but the very bytes is a version."""
    flipped = [bytearray(SEALED) for _ in range(8 * len(SEALED))]
    for bit, each in enumerate(flipped):
        each[bit // 8] ^= 1 << bit % 8
    for data in [*(SEALED[:n] for n in range(len(SEALED))), *map(bytes, flipped), SEALED + b"\0", b"[" * 100_000]:
        with pytest.raises(BadVersion):
            opened(data, RECORD, 3, 5, "scenario")


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ((RECORD, 4, 5, "scenario"), "is that of client 3 and round 5"),
        ((RECORD, 3, 6, "scenario"), "is that of client 3 and round 5"),
        ((RECORD, 3, 5, "other"), "was written for another scenario"),
        ((np.dtype([("visits", "<i8"), ("other", "<u8")]), 3, 5, "scenario"), "was written for another scenario"),
        ((np.dtype([("visits", "<i8")]), 3, 5, "scenario"), "was written for another scenario"),
    ],
)
def test_a_version_of_something_else_is_refused(named: Any, said: str) -> None:
    with pytest.raises(BadVersion, match=said):
        opened(SEALED, *named)


def cut(path: Path) -> None:
    os.truncate(path, 40)


def emptied(path: Path) -> None:
    os.truncate(path, 0)


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "said"),
    [(cut, "is damaged: its first line"), (emptied, "is damaged: its first line"), (flipped, "do not match their"),
     (Path.unlink, "is not here"), (lambda path: path.unlink() or path.mkdir(), "cannot be read")],
)  # fmt: skip
def test_a_damaged_file_is_told_in_one_sentence_and_nothing_is_dropped(
    damage: Callable[[Path], None], said: str, tmp_path: Path
) -> None:
    """The sentence names client, round and what is there; the other clients of the order go on."""
    place = Folder(tmp_path)
    for client in (0, 1):
        for number in (1, 2, 3, 4):
            place.write(client, number, sealed(story(FRESH[0], number), client, number, "s"))
    damage(tmp_path / "client-000000" / "r000003.state")
    asked = order(5, [3, 3], [2, 2])
    there = sorted(place.rounds(0))
    with pytest.raises(LostRecords, match=said) as refused:
        Versions(asked, place, "s").load(asked.clients, asked.packs, asked.rows, FRESH)
    (sentence,) = refused.value.why.values()
    assert sentence.startswith("client 0: its record of round 3, which the server names, ")
    assert f"rounds here: {', '.join(map(str, there))}; kept in {tmp_path}" in sentence
    assert "\n" not in sentence
    assert (sorted(place.rounds(0)), sorted(place.rounds(1))) == (there, [1, 2, 3, 4])

    def work(asked: TrainOrder, store: Store) -> TrainReply:
        store.save("", asked.clients, store.load(asked.clients, asked.packs, asked.rows, FRESH))
        return TrainReply(round=5, cohort=0, clients=asked.clients, table={}, total=np.zeros(0))

    reply = carry_out(asked, place, "s", work)
    assert reply.clients.tolist() == [1]
    assert [(each.client, each.error) for each in reply.errors] == [(0, sentence)]
    assert (sorted(place.rounds(0)), sorted(place.rounds(1))) == (there, [2, 3, 5])


def test_a_temporary_is_no_version_and_goes_with_the_next(tmp_path: Path) -> None:
    """What a killed writer left behind is never read, whole as it may be."""
    place = Folder(tmp_path)
    place.write(3, 4, sealed(FRESH, 3, 4, "s"))
    left = tmp_path / "client-000003" / ".r000005.state.77-abcd.tmp"
    left.write_bytes(SEALED)
    (tmp_path / "client-000003" / "r000006.state.old").write_bytes(SEALED)
    assert place.rounds(3) == [4]
    place.write(3, 5, SEALED)
    assert sorted(place.rounds(3)) == [4, 5]
    assert not left.exists()


def test_a_version_is_on_the_disk_when_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its bytes before it has its name, then the name, and so for every folder that is new."""
    synced = []
    monkeypatch.setattr(os, "fsync", lambda opened: synced.append((os.fstat(opened).st_ino, sorted(own.glob("r*")))))
    own = tmp_path / "state" / "client-000003"
    Folder(tmp_path / "state").write(3, 5, SEALED)
    file = own / "r000005.state"
    folders = [(path.stat().st_ino, []) for path in (tmp_path, tmp_path / "state")]
    assert synced == [*folders, (file.stat().st_ino, []), (own.stat().st_ino, [file])]


def test_an_order_that_names_no_round_is_not_carried_out() -> None:
    """A server that knows nothing of accepted rounds would start every client afresh."""
    asked = replace(order(3, [1]), accepted=np.zeros(0, np.int64), oldest=np.zeros(0, np.int64))
    with pytest.raises(ValueError, match="must say which round"):
        Versions(asked, in_context(), "s")


def test_some_clients_of_an_order() -> None:
    """Every column is cut alike; one that is empty stays so; the kind stays."""
    asked = order(4, [3, 1, 2], [2, 0, 1])
    some = pick(asked, np.array([2, 0]))
    assert (some.clients.tolist(), some.accepted.tolist(), some.oldest.tolist()) == ([2, 0], [2, 3], [1, 2])
    assert (len(some.packs), len(some.tasks), len(some.leaving), some.names) == (2, 2, 0, [])
    assert pick(replace(asked, names=["x", "", "y"]), np.array([2, 0])).names == ["y", "x"]
    plain = {
        name: getattr(asked, name) for name in ("round", "cohort", "clients", "packs", "rows", "folder", "weights")
    }
    assert type(pick(EvaluateOrder(**plain), np.array([1]))) is EvaluateOrder


# The secret.


def secret_of(node_config: dict[str, Any]) -> bytes:
    return place(node_config, RecordDict()).secret()


@pytest.mark.parametrize("by", ["node-config", "environment"])
def test_a_nodes_secret_outlives_it_in_its_folder(by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """32 bytes, made once, for this user's eyes only; another folder has another one."""
    if by == "environment":
        monkeypatch.setenv("FEDCL_STATE", str(tmp_path / "a"))
    here = {} if by == "environment" else {"state": str(tmp_path / "a")}
    secret = secret_of(here)
    assert len(secret) == 32
    assert secret_of(here) == secret == (tmp_path / "a" / "secret").read_bytes()
    assert stat.S_IMODE((tmp_path / "a" / "secret").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o700
    assert secret_of({"state": str(tmp_path / "b")}) != secret
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["secret"]


def test_a_damaged_secret_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(SECRET[:31])
    with pytest.raises(ValueError, match="holds 31 bytes, not the 32"):
        secret_of({"state": str(tmp_path)})
    assert (tmp_path / "secret").read_bytes() == SECRET[:31]


# The ClientApp.

PERSONAL = tiny("client.method=derpp", "model.personal=[head]", "model.dtype=float64")
ALL = {"partition-id": 0, "num-partitions": 1}  # node-config of a node that hosts all clients


def ask(asked: Order, at: Context, scenario: Scenario = PERSONAL) -> Any:
    """Return the ClientApp's reply to an order."""
    kind = {EvaluateOrder: "evaluate", TraceOrder: "query.trace"}.get(type(asked), "train")
    asked = replace(asked, fingerprint=fingerprint(as_text(scenario)))
    message = Message(wire.encode(asked, config=as_text(scenario)), 1, kind)
    flower.number(message)
    return wire.decode(client_app(message, at).content)


@pytest.mark.parametrize("kept_in", ["folder", "context"])
def test_the_client_app_goes_on_from_the_round_that_it_is_told(kept_in: str, tmp_path: Path) -> None:
    """Round 1, a refused round 2, round 3: the sums are those of clients that never met round 2, to the bit."""
    flower.identify()
    at = flower.context({}, {**ALL, **({"state": str(tmp_path)} if kept_in == "folder" else {})})
    own, kept = Clients.of(PERSONAL), {0: dict[int, Records]()}
    for number, accepted in ((1, 0), (2, 1), (3, 1), (3, 1), (4, 3)):
        own.held = dict(kept[accepted])
        expected = own.visit(own.initial, [0, 1], round=number)
        kept[number] = own.held
        reply = ask(replace(order(number, [accepted] * 2), weights=own.initial), at)
        assert reply.errors == []
        assert reply.total.tobytes() == expected.total.tobytes()
    assert kept[2][0].tobytes() != kept[3][0].tobytes()


def test_the_client_app_names_who_has_no_record_and_carries_out_the_rest(tmp_path: Path) -> None:
    """Training, tracing and evaluation with personal parameters; an evaluation that needs no record asks for none."""
    flower.identify()
    scenario = config.load(config.as_dict(PERSONAL), ["evaluate.trace=1"])
    at, weights = flower.context({}, {**ALL, "state": str(tmp_path)}), Clients.of(scenario).initial
    assert ask(replace(order(1, [0, 0]), weights=weights), at, scenario).clients.tolist() == [0, 1]
    asked = replace(order(2, [7, 1]), weights=weights)
    plain = {name: getattr(asked, name) for name in vars(asked) if name not in ("tasks", "clocks", "shared",
                                                                                "statistics", "leaving")}  # fmt: skip
    for each in (EvaluateOrder(**plain), TraceOrder(**vars(asked)), asked):
        reply = ask(each, at, scenario)
        assert reply.clients.tolist() == [1]
        assert [error.client for error in reply.errors] == [0]
        assert "of round 7, which the server names, is not here (rounds here: 1; " in reply.errors[0].error
    shared = tiny("client.method=derpp")
    all_there = ask(EvaluateOrder(**{**plain, "weights": Clients.of(shared).initial}), at, shared)
    assert (all_there.clients.tolist(), all_there.errors) == ([0, 1], [])
    with pytest.raises(LostRecords, match=r"client 0: .* is not here .*; client 1: .* is not here"):
        ask(replace(asked, accepted=np.array([7, 8])), at, scenario)


def test_a_record_of_another_scenario_is_refused(tmp_path: Path) -> None:
    """The same fields, another seed: a folder that two runs share is not mixed up in silence."""
    flower.identify()
    at, weights = flower.context({}, {**ALL, "state": str(tmp_path)}), Clients.of(PERSONAL).initial
    ask(replace(order(1, [0]), weights=weights), at)
    other = config.load(config.as_dict(PERSONAL), ["seed=1"])
    with pytest.raises(LostRecords, match="was written for another scenario"):
        ask(replace(order(2, [1]), weights=weights), at, other)
    moved = config.load(config.as_dict(PERSONAL), ["engine.kind=ray"])  # where it runs is no part of it
    assert ask(replace(order(2, [1]), weights=weights), at, moved).errors == []


def test_an_order_of_another_kind_than_its_message_is_refused() -> None:
    flower.identify()
    message = Message(wire.encode(order(1, [0]), config=as_text(PERSONAL)), 1, "evaluate")
    with pytest.raises(wire.BadMessage, match="a TrainOrder came where a EvaluateOrder belongs"):
        client_app(message, flower.context({}, {}))


# Whole runs.

SCENARIO, _ = resolve(
    tiny(
        "stream.schedule.rounds_per_task=5",
        "client.method=derpp",
        "client.optimizer={name: sgd, lr: 0.05, momentum: 0.5, keep: true}",
        "server.optimizer={name: fedavgm, lr: 0.5, momentum: 0.5}",
        "checkpoint.keep=3",
        "evaluate.every=4",
    )
)
STRICT = config.load(config.as_dict(SCENARIO), ["server.min_clients=4"])
ROUNDS, CLIENTS = 10, 4


def sit(folder: Path, grid: Nodes, scenario: Scenario, packs: bool = False) -> str:
    """Begin a run or go on with it until it ends, one way or another; return its status."""
    if not (folder / "config.yaml").exists():
        rundir.create(scenario, folder)
    grid.restart()
    asked = {"directory": str(folder), **({"state": str(folder / "state")} if packs else {})}
    try:
        server_app(grid, flower.context(asked, {}))
    except Death:
        return "died"
    except FederationError:
        return "failed"
    return "finished"


def newest(folder: Path, scenario: Scenario) -> State:
    """Return the state of a run's newest checkpoint."""
    found = checkpoint.read(checkpoint.kept(folder / "checkpoints")[-1])
    return restored(found, config_hash(scenario))


def visits(grid: Nodes, state: State, scenario: Scenario) -> list[int]:
    """Return the visits in the records that the server's state names."""
    dtype, counted = site(as_text(scenario), SECRET).record, []
    for client, accepted in enumerate(state.accepted.tolist()):
        data = grid.place(client).read(client, accepted)
        counted.append(int(opened(data, dtype, client, accepted, config_hash(scenario))["visits"][0]))
    return counted


def stormy(draws: random.Random, calm: float, fates: list[str]) -> Fate:
    """Return a fate that lets a share of the messages arrive."""
    return lambda order: "ok" if draws.random() < calm else draws.choice(fates)


def spoil_newest(folder: Path) -> None:
    """Cut the newest checkpoint short, so that the server has to fall back."""
    path = checkpoint.kept(folder / "checkpoints")[-1]
    os.truncate(path, path.stat().st_size // 2)


def weathered(folder: Path, grid: Nodes, scenario: Scenario, draws: random.Random) -> int:
    """Let a run end, however often it dies, fails or loses its newest checkpoint; return the sittings."""
    for sitting in range(1, 200):
        if sit(folder, grid, scenario) == "finished":
            return sitting
        if len(checkpoint.kept(folder / "checkpoints")) > 1 and draws.random() < 0.3:
            spoil_newest(folder)
    raise AssertionError("it does not come to an end")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run directory of a run whose records lie in the run directory, as in simulation."""
    flower.identify()
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    assert sit(folder, Nodes(CLIENTS), STRICT, packs=True) == "finished"
    return folder


def assert_same_end(folder: Path, other: Path) -> None:
    results, expected = api.load(folder).results, api.load(other).results
    for name in ("weights_sha256", "metrics", "accuracy_matrix"):
        assert results[name] == expected[name]


@pytest.mark.parametrize("seed", [1, 2, *(pytest.param(seed, marks=pytest.mark.nightly) for seed in range(3, 12))])
@pytest.mark.parametrize("kept_in", ["folder", "context"])
def test_a_run_in_bad_weather_ends_like_one_left_alone(
    seed: int, kept_in: str, undisturbed: Path, tmp_path: Path
) -> None:
    """Everyone has to answer: a round with a lost, refused or late answer fails and is repeated by the next sitting."""
    draws = random.Random(seed)
    fate = stormy(draws, 0.88, ["lost", "deaf", "refused", "late", "twice", "dies"])
    grid = Nodes(CLIENTS, fate, tmp_path / "nodes" if kept_in == "folder" else None)
    assert weathered(tmp_path / "run", grid, STRICT, draws) > 1
    assert_same_end(tmp_path / "run", undisturbed)
    state = newest(tmp_path / "run", STRICT)
    assert state.round == ROUNDS
    assert state.visits.tolist() == visits(grid, state, STRICT) == [ROUNDS] * CLIENTS
    assert state.accepted.tolist() == [ROUNDS] * CLIENTS


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.nightly) for seed in range(1, 8))])
def test_a_run_that_goes_on_without_some_answers_counts_each_once(seed: int, tmp_path: Path) -> None:
    """Who does not answer is left out: the weights are those of a simulation in which just the same answers came."""
    draws = random.Random(seed)
    fate = stormy(draws, 0.75, ["lost", "deaf", "refused", "late", "twice", "lost", "deaf", "refused", "dies"])
    grid = Nodes(CLIENTS, fate, tmp_path / "nodes")
    weathered(tmp_path / "run", grid, SCENARIO, draws)
    rounds = {each["round"]: each["clients"] for each in journal(tmp_path / "run") if each["event"] == "round"}
    assert any(0 < len(clients) < CLIENTS for clients in rounds.values())

    def as_it_went(order: Order) -> str:
        came = not isinstance(order, TrainOrder) or int(order.clients[0]) in rounds[order.round]
        return "ok" if came else "lost"

    assert sit(tmp_path / "again", Nodes(CLIENTS, as_it_went), SCENARIO, packs=True) == "finished"
    results, expected = (api.load(tmp_path / name).results for name in ("run", "again"))
    assert results["weights_sha256"] == expected["weights_sha256"]
    state, again = newest(tmp_path / "run", SCENARIO), newest(tmp_path / "again", SCENARIO)
    assert state.visits.tolist() == again.visits.tolist() == visits(grid, state, SCENARIO)
    last = [max(number for number, clients in rounds.items() if client in clients) for client in range(CLIENTS)]
    assert state.accepted.tolist() == last


def test_where_nodes_keep_the_records_every_round_is_committed(tmp_path: Path) -> None:
    """`checkpoint.seconds` does not apply there; a node holds the versions of the kept states and no more."""
    flower.identify()
    grid = Nodes(CLIENTS)
    assert SCENARIO.checkpoint.seconds > 0
    assert sit(tmp_path / "run", grid, SCENARIO) == "finished"
    events = api.load(tmp_path / "run").events
    assert [each["round"] for each in events if each["event"] == "checkpoint"] == list(range(1, ROUNDS + 1))
    for client in range(CLIENTS):
        assert sorted(grid.place(client).rounds(client)) == [ROUNDS - 3, ROUNDS - 2, ROUNDS - 1, ROUNDS]


def test_a_node_that_lost_its_records_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    """A SuperNode without a folder that was restarted: its client fails in every round, with a sentence."""
    flower.identify()
    grid = Nodes(CLIENTS)

    def restarted(order: Order) -> str:
        if order.round == 4:
            for number in grid.place(2).rounds(2):
                grid.place(2).drop(2, number)
        return "ok"

    grid.fate = restarted
    assert sit(tmp_path / "run", grid, SCENARIO) == "finished"
    errors = [each for each in journal(tmp_path / "run") if each["event"] == "client_error"]
    assert [(each["round"], each["client"]) for each in errors] == [(number, 2) for number in range(4, ROUNDS + 1)]
    assert "client 2: its record of round 3, which the server names, is not here" in errors[0]["error"]
    state = newest(tmp_path / "run", SCENARIO)
    assert state.visits.tolist() == [ROUNDS, ROUNDS, 3, ROUNDS]
    assert state.accepted.tolist() == [ROUNDS, ROUNDS, 3, ROUNDS]


def test_one_of_two_clients_of_a_node_without_its_record(tmp_path: Path) -> None:
    """Two nodes with two clients each, personal heads: the other client of the node trains and is evaluated."""
    flower.identify()
    scenario = config.load(config.as_dict(SCENARIO), ["model.personal=[head]"])
    grid = Nodes(2)

    def forgetful(order: Order) -> str:
        if order.round == 4:
            for number in grid.place(2).rounds(2):
                grid.place(2).drop(2, number)
        return "ok"

    grid.fate = forgetful
    assert sit(tmp_path / "run", grid, scenario) == "finished"
    events = journal(tmp_path / "run")
    trained = {each["round"]: sorted(each["clients"]) for each in events if each["event"] == "round"}
    assert trained == {number: [0, 1, 3] if number > 3 else [0, 1, 2, 3] for number in range(1, ROUNDS + 1)}
    evaluated = [sorted(each["clients"]) for each in events if each["event"] == "client_task_end"]
    assert evaluated == [[0, 1, 3]] * 2
    errors = [each for each in events if each["event"] == "client_error"]
    assert {(each["round"], each["client"]) for each in errors} == {(number, 2) for number in range(4, ROUNDS + 1)}
    assert len(errors) == ROUNDS - 3 + 2  # and once more where it is evaluated


@pytest.mark.parametrize("packs", [True, False])
def test_a_run_does_not_go_on_where_its_records_are_not(packs: bool, tmp_path: Path) -> None:
    """Begun with packs, resumed on nodes, or the other way round: refused instead of started afresh."""
    flower.identify()
    fate = {"now": fine}
    grid = Nodes(CLIENTS, lambda order: fate["now"](order))
    fate["now"] = lambda order: "dies" if order.round == 3 else "ok"
    scenario = config.load(config.as_dict(SCENARIO), ["checkpoint.seconds=0"])
    assert sit(tmp_path / "run", grid, scenario, packs=packs) == "died"
    fate["now"] = fine
    asked = {"directory": str(tmp_path / "run"), **({} if packs else {"state": str(tmp_path / "run" / "state")})}
    with pytest.raises(FederationError, match="in the run directory" if packs else "with the nodes"):
        server_app(grid, flower.context(asked, {}))
    assert sit(tmp_path / "run", grid, scenario, packs=packs) == "finished"
