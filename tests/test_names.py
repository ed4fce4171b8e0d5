"""Clients by name: who has which number, for good, on the server's disk; and what a node takes for its own."""

import json
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from clients import names as own_names
from clients.node import InContext
from clients.versions import Folder
from fedcl import api, names, wire
from fedcl.engine import flower
from fedcl.errors import ConfigError, FederationError
from fedcl.fingerprint import fingerprint
from fedcl.names import hosted, named, node_of, of_key, of_secret, ward_of
from fedcl.orders import Order, TrainOrder
from fedcl.real.nodes import Member
from fedcl.report import write_report
from fedcl.world import as_text
from server import federation
from server.names import Table, with_lowest
from server.roster import Roll
from tests.federations import run, tiny
from tests.nodes import SECRET, Nodes
from tests.test_fingerprint import Strange
from tests.test_policy import SCENARIO, _identity, ask, files, order
from tests.test_versions import newest, sit, visits

__all__ = ["_identity"]  # a fixture: no policy of the environment

A, B, C, D = (letter * 16 for letter in "abcd")
TEXT = as_text(tiny())

# Names.


def test_a_name_is_of_the_key_or_of_the_secret_and_tells_neither() -> None:
    assert of_key(b"abc") == "ba7816bf8f01cfea"  # SHA-256's own test vector, its beginning
    assert of_secret(SECRET) != of_key(SECRET)
    assert of_secret(SECRET) == of_key(b"fedcl node name\0" + SECRET)
    assert names.NODE.fullmatch(of_secret(SECRET))
    assert named(A, []) == [A]
    assert named(A, ["x", "y"]) == [f"{A}/x", f"{A}/y"]
    assert (node_of(f"{A}/x"), ward_of(f"{A}/x"), ward_of(A)) == (A, "x", "")


def test_what_a_command_line_asks_for() -> None:
    """Digits are numbers, other words wards, nothing is one client with the node's own name."""
    assert hosted([]).settings(A) == {"node": A, "wards": ""}
    assert hosted([]).settings("") == {"wards": ""}
    assert hosted(["3", "0", "3"]).settings(A) == {"clients": "0,3"}
    assert hosted(["b", "a1", "1.a_B-c"]).settings("") == {"wards": "b,a1,1.a_B-c"}
    assert [str(hosted(each)) for each in ([], ["2"], ["a", "b"])] == ["one client", "client 2", "clients a, b"]
    for words, why in (
        (["0", "a"], "give all of a node's clients numbers, or all of them names"),
        (["-1"], "must be a number, or up to 64 letters"),
        (["1" * 10], "must be a number"),
        ([""], "must be a number"),
        (["ward a"], "must be a number"),
        (["w" * 65], "must be a number"),
        (["é"], "must be a number"),
        (["a", "b", "a"], "--client 'a' stands there twice"),
        ([f"w{n}" for n in range(1025)], "1025 names, more than 1024"),
    ):
        with pytest.raises(ConfigError, match=why):
            hosted(words)


def hello(told: Any, numbers: Any = ()) -> RecordDict:
    content = wire.hello(np.array(numbers, np.int64), fingerprint(TEXT))
    content["facts"] = wire._config({**wire._facts(content), "names": told})
    return content


MALFORMED: dict[str, tuple[Any, Any, str]] = {
    "a text": ("abc", (), "not a list of texts"),
    "numbers among them": ([A, 3], (), "not a list of texts"),
    "a table": ({A: 1}, (), "not a list of texts"),
    "nothing at all": (None, (), "not a list of texts"),
    "an empty one": ([""], (), "the name '': must be 16 hexadecimal digits"),
    "a short one": ([A[1:]], (), "must be 16 hexadecimal digits"),
    "capitals": ([A.upper()], (), "must be 16 hexadecimal digits"),
    "a line more": ([A + "\n"], (), "must be 16 hexadecimal digits"),
    "an endless one": ([f"{A}/{'w' * 65}"], (), "and a ward behind a slash"),
    "a path": ([f"{A}/../../etc"], (), "and a ward behind a slash"),
    "a number as a ward": ([f"{A}/7"], (), "and a ward behind a slash"),
    "a slash alone": ([f"{A}/"], (), "and a ward behind a slash"),
    "one twice": ([f"{A}/x", f"{A}/x"], (), "2 names: must be at most 1024, each once"),
    "too many": ([f"{A}/w{n}" for n in range(1025)], (), "1025 names: must be at most 1024"),
    "of two nodes": ([f"{A}/x", f"{B}/x"], (), "must be those of the wards of one node"),
    "a node beside its ward": ([A, f"{A}/x"], (), "must be those of the wards of one node"),
    "an endless text": ([A + "a" * (1 << 17)], (), "letters, more than"),
    "numbers beside them": ([A], (0,), "names and numbers of clients"),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_a_malformed_hello_is_refused(what: str) -> None:
    told, numbers, why = MALFORMED[what]
    with pytest.raises(wire.BadMessage, match=why):
        wire.introduced(hello(told, numbers))


def test_a_node_with_a_malformed_hello_is_left_out_and_has_no_number(tmp_path: Path) -> None:
    """Told once; the other nodes are taken in, and the table knows nothing of it."""
    told: list[str] = []
    found = roll(Strange(3, {2: hello([f"{A}/../x"])}), tmp_path, told)
    assert [found.look().nodes.tolist() for _ in range(2)] == [[0, -1, 1, 0]] * 2
    (why,) = told
    assert "is left out: a hello with the name" in why
    assert table(tmp_path) == {"names": {}, "numbers": [0, 2, 3]}


def test_a_sound_hello_is_read() -> None:
    assert wire.introduced(hello([f"{A}/x", f"{A}/y"])) == [f"{A}/x", f"{A}/y"]
    assert wire.introduced(hello([], [0, 1])) == []


# Numbers: the server.


class Hall(Nodes):
    """Named nodes, each with a context of its own; those in `inside` are there, in the order in which they answer."""

    def __init__(self, folder: Path | None, *told: tuple[str, tuple[str, ...]], inside: Iterable[int] = ()) -> None:
        super().__init__(len(told), state=folder)
        for number, (key, wards) in enumerate(told, start=1):
            if key:
                self.name(number, key, *wards)
        self.inside = list(inside) or list(range(1, len(told) + 1))

    def get_node_ids(self) -> Iterable[int]:
        return self.inside

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        waiting = [each for each in message_ids if each in self._queue]
        rank = {node: place for place, node in enumerate(self.inside)}
        first = sorted(waiting, key=lambda each: rank.get(self._queue[each].metadata.dst_node_id, 0))
        return super().pull_messages(first)


def roll(grid: Nodes, folder: Path | None, told: list[str], **more: Any) -> Roll:
    flower.identify()
    return Roll(grid=grid, config=TEXT, clients=4, refused=told.append, table=Table.of(folder, 4), **more)


def table(folder: Path) -> Any:
    return json.loads((folder / "clients.json").read_text())


def test_names_have_the_lowest_numbers_that_are_free_and_keep_them(tmp_path: Path) -> None:
    """Node 2 has number 1 of its own; a fifth client finds none. After a restart the order of arrival is no matter."""
    told: list[str] = []
    grid = Hall(None, (A, ("y", "x")), ("", ()), (B, ()), (C, ()), inside=[1, 2, 3])
    grid.contexts[1].node_config["clients"] = "1"
    found = roll(grid, tmp_path, told)
    assert found.look().nodes.tolist() == [0, 1, 0, 2]
    assert table(tmp_path) == {"names": {f"{A}/y": 0, f"{A}/x": 2, B: 3}, "numbers": [1]}
    grid.inside = [1, 2, 3, 4]
    assert [found.look().ids for _ in range(2)] == [(1, 2, 3)] * 2
    assert told == [
        f"{C} left out: stream.clients = 4, and every number has its client already (clients.json says which)"
    ]

    grid.inside = [3]  # another server, which meets node 3 first, then node 1, then node 2
    again = roll(grid, tmp_path, told)
    assert again.look().nodes.tolist() == [-1, -1, -1, 0]
    grid.inside = [3, 1]
    assert again.look().nodes.tolist() == [0, -1, 0, 1]
    grid.inside = [2, 3, 1]
    assert again.look().nodes.tolist() == [0, 1, 0, 2]
    assert table(tmp_path) == {"names": {f"{A}/y": 0, f"{A}/x": 2, B: 3}, "numbers": [1]}


def test_a_number_with_a_name_is_nobody_elses_and_a_number_without_is_kept_for_its_node(tmp_path: Path) -> None:
    told: list[str] = []
    grid = Hall(None, (A, ()), ("", ()), (B, ()), ("", ()), inside=[1, 4])
    grid.contexts[1].node_config["clients"] = "0,2"
    grid.contexts[3].node_config["clients"] = "1"
    found = roll(grid, tmp_path, told)
    assert found.look().nodes.tolist() == [0, 1, -1, -1]
    grid.inside = [1]
    found.look()
    grid.inside = [1, 2, 3]  # number 1 waits for node 4; number 0 is A's
    assert found.look().nodes.tolist() == [0, -1, 1, 2]
    whose = f"client 0 has come by the name {A!r} (clients.json)"
    assert told == [f"clients [0] of a node that knows them by number are left out: {whose}"]
    assert table(tmp_path) == {"names": {A: 0, B: 3}, "numbers": [1, 2]}


@given(st.lists(st.sampled_from("pqrstuvw"), unique=True), st.sets(st.integers(0, 9)), st.integers(0, 9))
def test_the_lowest_free_number(fresh: list[str], taken: set[int], clients: int) -> None:
    """Ascending, none twice, none of those taken, none left below; who finds none is left out."""
    found = with_lowest({"p": 9}, fresh, taken, clients)
    new = [found[name] for name in fresh if name in found and name != "p"]
    assert found["p"] == 9
    assert new == [n for n in range(clients) if n not in taken | {9}][: len(new)]
    assert len(new) == min(len(set(fresh) - {"p"}), len(set(range(clients)) - taken - {9}))


def test_no_number_is_used_before_it_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk: nobody has a number, neither here nor in what the next server reads; then the same ones."""
    grid, synced, fsync = Hall(None, (A, ()), (B, ())), list[str](), os.fsync
    found = roll(grid, tmp_path, [])

    def full(opened: int) -> None:
        raise OSError(28, "No space left on device")

    def noted(opened: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{opened}"))
        fsync(opened)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            found.look()
    assert found.table.given == {}
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(os, "fsync", noted)
    assert roll(grid, tmp_path, []).look().nodes.tolist() == [0, 1, -1, -1]
    assert [Path(each).name.startswith(".clients.json") or Path(each) == tmp_path for each in synced] == [True] * 4


@pytest.mark.parametrize(
    "text", ["", "[]", '{"names": {}}', '{"names": {"a": 4}, "numbers": []}', '{"names": {"a": 1}, "numbers": [1]}',
             '{"names": {"a": 1, "b": 1}, "numbers": []}', '{"names": {"a": "x"}, "numbers": []}'],
)  # fmt: skip
def test_a_damaged_table_is_not_begun_anew(text: str, tmp_path: Path) -> None:
    (tmp_path / "clients.json").write_text(text)
    with pytest.raises(
        FederationError, match=r"clients.json is damaged .*: nodes refuse a client under another number"
    ):
        Table.of(tmp_path, 4)
    assert (tmp_path / "clients.json").read_text() == text


def test_a_node_cannot_claim_the_name_of_another_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Node 2's key is B, but it says A, and comes before node 1; node 3 is registered a moment after it has come."""
    told: list[str] = []
    members = {1: Member(name="hospital-a", key=A), 2: Member(name="hospital-b", key=B)}
    grid = Hall(None, (A, ("x",)), (A, ("x",)), (C, ()), inside=[2, 1, 3])
    found = roll(grid, None, told, member=members.get)
    assert found.look().ids == (1,)
    assert found.table.given == {f"{A}/x": 0}
    stranger = "node 3 is left out: it is none of fedcl server nodes list"
    impostor = f"node 'hospital-b' is left out: it says that it has '{A}/x', but its key's name is {B!r}"
    assert told == [stranger, impostor]
    members[3] = Member(name="hospital-c", key=C)
    assert found.look().ids == (1,)  # it is asked again after a while
    monkeypatch.setattr("server.roster.AGAIN", 0.0)
    found._later[3] = 0.0
    assert found.look().ids == (1, 3)
    assert len(told) == 2


# Whole runs.

ALONE = tiny("engine.cohort=4")
NAMED = ((A, ("x", "y")), (B, ()), (C, ()))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the run directory of the scenario in one process."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    run(ALONE, folder)
    return folder


def told_of(folder: Path) -> list[tuple[int, str]]:
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [(event["client"], event["name"]) for event in events if event["event"] == "joined"]


@pytest.mark.parametrize("inside", [[1, 2, 3, 4], [4, 2, 1, 3], [3, 4, 2, 1]])
def test_whoever_gets_which_number_the_weights_are_those_of_one_process(
    inside: list[int], tmp_path: Path, alone: Path
) -> None:
    """One client a node, to the bit."""
    keys = (A, B, C, D)
    assert sit(tmp_path / "run", Hall(None, *((key, ()) for key in keys), inside=inside), ALONE) == "finished"
    assert api.load(tmp_path / "run").results["weights_sha256"] == api.load(alone).results["weights_sha256"]
    given = table(tmp_path / "run")["names"]
    assert given == {keys[node - 1]: number for number, node in enumerate(inside)}
    assert sorted(told_of(tmp_path / "run")) == [(number, name) for name, number in given.items()]


@pytest.mark.parametrize("inside", [[1, 2, 3], [3, 1, 2], [2, 3, 1]])
def test_where_a_node_has_two_wards_the_weights_are_those_of_one_process_but_for_rounding(
    inside: list[int], tmp_path: Path, alone: Path
) -> None:
    """Its two answers are added up there first: the same terms in another order."""
    assert sit(tmp_path / "run", Hall(None, *NAMED, inside=inside), ALONE) == "finished"
    arrival = [name for node in inside for name in named(*NAMED[node - 1])]
    assert table(tmp_path / "run")["names"] == {name: number for number, name in enumerate(arrival)}
    write_report([tmp_path / "run"], tmp_path / "report.html")  # the event is no matter to it
    found, expected = (load_file(folder / "model.safetensors") for folder in (tmp_path / "run", alone))
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dies", [1, 3])
def test_a_run_that_dies_goes_on_with_every_client_under_its_number(
    dies: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In round 1, before any checkpoint, or later; the nodes come back in another order. The bits of one sitting."""
    monkeypatch.setattr(federation, "PATIENCE", 0.1)

    def fate(asked: Order) -> str:
        return "dies" if isinstance(asked, TrainOrder) and (asked.round, asked.sitting) == (dies, 1) else "ok"

    grid = Hall(tmp_path / "nodes", *NAMED, inside=[3, 1, 2])
    grid.fate = fate
    assert sit(tmp_path / "run", grid, ALONE) == "died"
    before = table(tmp_path / "run")
    assert before == {"names": {C: 0, f"{A}/x": 1, f"{A}/y": 2, B: 3}, "numbers": []}
    grid.inside = [2, 1, 3]
    assert sit(tmp_path / "run", grid, ALONE) == "finished"
    assert sit(tmp_path / "whole", Hall(tmp_path / "others", *NAMED, inside=[3, 1, 2]), ALONE) == "finished"
    found, whole = (api.load(tmp_path / each).results for each in ("run", "whole"))
    assert found["weights_sha256"] == whole["weights_sha256"]
    assert table(tmp_path / "run") == before
    assert sorted(told_of(tmp_path / "run")) == [(0, C), (1, f"{A}/x"), (2, f"{A}/y"), (3, B)]
    where = {0: 2, 1: 0, 2: 0, 3: 1}  # client -> folder of its node
    monkeypatch.setattr(grid, "place", lambda client: Folder(tmp_path / "nodes" / str(where[client])))
    assert visits(grid, newest(tmp_path / "run", ALONE), ALONE) == [4] * 4


# A node's own.


def node(folder: Path, **told: str) -> Context:
    folder.mkdir(exist_ok=True)
    (folder / "secret").write_bytes(SECRET)
    return flower.context({}, {**told, "state": str(folder)})


def called(*told: str, clients: Any = (0, 1), **changes: Any) -> Any:
    return replace(order(clients=clients), names=list(told), **changes)


def test_a_name_outlives_a_lost_folder_by_its_key_and_a_restart_by_its_secret(tmp_path: Path) -> None:
    for made, wards, expected in (
        ({"node": A}, "", [A]),
        ({"node": A}, "x,y", [f"{A}/x", f"{A}/y"]),
        ({}, "x", [f"{of_secret(SECRET)}/x"]),
        ({}, "", [of_secret(SECRET)]),
    ):
        (tmp_path / "secret").write_bytes(SECRET)
        settings = {**made, "wards": wards, "state": str(tmp_path)}
        assert own_names.own(settings, Folder(tmp_path)) == expected
        (tmp_path / "secret").unlink()
        assert (own_names.own(settings, Folder(tmp_path)) == expected) is bool(made)
        (tmp_path / "secret").unlink(missing_ok=True)
    assert own_names.own({"clients": "0"}, Folder(tmp_path)) == []
    assert own_names.own({"partition-id": 0, "num-partitions": 1}, Folder(tmp_path)) == []
    for settings, why in (
        ({"clients": "0", "wards": "a"}, "numbers .* or names"),
        ({"node": "me"}, "the name 'me'"),
        ({"wards": "a,a"}, "stands there twice"),
        ({"wards": "a,7"}, "'7': must be"),
    ):
        with pytest.raises(ConfigError, match=why):
            own_names.own(settings, Folder(tmp_path))


@pytest.mark.parametrize("told", [{"node": A, "wards": "x,y"}, {"clients": "0,1"}])
def test_wards_of_an_order(told: dict[str, str], tmp_path: Path) -> None:
    """What a node is asked for, in whatever order, leads to its wards; numbers alone have none."""
    asked = called(f"{A}/y", f"{A}/x", clients=(3, 0)) if "node" in told else called()
    assert own_names.wards(asked) == ({3: "y", 0: "x"} if "node" in told else {0: "", 1: ""})
    assert sorted(ask(asked, node(tmp_path, **told), SCENARIO).clients.tolist()) == sorted(asked.clients.tolist())
    assert own_names.wards(called(A, clients=(2,))) == {2: ""}


NUMBERS = {"clients": "0,1"}
WRONG: dict[str, tuple[Any, dict[str, str], str]] = {
    "another node's": (called(f"{B}/x", f"{A}/y"), {}, f"client 0 comes as '{B}/x': not of this node, which has "),
    "no name": (called("", f"{A}/y"), {}, "client 0 comes without a name: this node has"),
    "no names": (called(), {}, "client 0 comes without a name: this node has"),
    "a name twice": (called(f"{A}/x", f"{A}/x"), {}, "must be each once"),
    "another number": (called(f"{A}/x", clients=(2,)), {}, f"client 2 comes as '{A}/x', which was client 0 of "),
    "another name": (called(f"{A}/z", clients=(0,)), {}, f"client 0 comes as '{A}/z', but was '{A}/x' of 'tiny-1'"),
    "exchanged": (called(f"{A}/y", f"{A}/x"), {}, f"client 0 comes as '{A}/y', which was client 1 of 'tiny-1' before"),
    "no client": (called(f"{A}/x", clients=(4,)), {}, "clients = [4]: not hosted by this node"),
    "names of numbers": (called(f"{A}/x", f"{A}/y"), NUMBERS, f"'{A}/x': not of this node, which has numbers alone"),
    "a number that had a name": (called(), NUMBERS, f"client 0 comes without a name, but was '{A}/x' of 'tiny-1'"),
    "too few": (called(f"{A}/x"), {}, "'names' has 1 entries for 2 clients"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_a_node_refuses_a_number_with_another_name_and_a_name_with_another_number(what: str, tmp_path: Path) -> None:
    """One sentence, and its folder is as before; another federation has numbers of its own."""
    asked, told, why = WRONG[what]
    at = node(tmp_path, node=A, wards="x,y,z")
    ask(called(f"{A}/x", f"{A}/y"), at, SCENARIO)
    assert json.loads((tmp_path / "names.json").read_text()) == {"tiny-1": {f"{A}/x": 0, f"{A}/y": 1}}
    before = files(tmp_path)
    with pytest.raises(wire.BadMessage) as caught:
        ask(asked, node(tmp_path, **told) if told else at, SCENARIO)
    assert why in str(caught.value)
    assert files(tmp_path) == before
    if what in ("another number", "another name", "exchanged"):
        ask(replace(asked, federation="tiny-2"), at, SCENARIO)
        kept = json.loads((tmp_path / "names.json").read_text())
        assert kept["tiny-2"] == dict(zip(asked.names, asked.clients.tolist(), strict=True))
        assert kept["tiny-1"] == {f"{A}/x": 0, f"{A}/y": 1}


def test_numbers_are_remembered_in_flowers_context_too_and_for_a_bounded_number_of_federations() -> None:
    place = InContext(RecordDict())
    for number in range(70):
        own_names.remember(called(A, clients=(number % 4,), federation=str(number)), place)
    assert list(place.numbers()) == [str(number) for number in range(6, 70)]
    assert place.numbers()["69"] == {A: 1}


def test_a_damaged_memory_of_numbers_is_told(tmp_path: Path) -> None:
    at = node(tmp_path, node=A, wards="")
    (tmp_path / "names.json").write_text('{"tiny-1": [')
    with pytest.raises(ValueError, match=r"names.json is damaged .*: put back a copy, or delete it"):
        ask(called(A, clients=(0,)), at, SCENARIO)
