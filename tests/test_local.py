"""Clients' own folders: the weights of a simulation on the same items; what grows, vanishes, or cannot be read."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clients.arrivals import Arrival, BadLedger, dumped, loaded
from clients.node import place
from clients.site import site
from clients.versions import Folder, opened
from fedcl import api, config, rundir
from fedcl.config import Plain, Scenario, config_hash
from fedcl.engine import flower
from fedcl.errors import ConfigError, FederationError
from fedcl.journal import read_events
from fedcl.streams import build_stream
from fedcl.streams.schedule import Arrival as Arriving
from fedcl.world import as_text
from server.app import app as server_app
from tests.federations import run, tiny
from tests.nodes import Fate, Nodes, fine

CLASSES = ["0", "1", "2", "3"]
LOCAL: Plain = {"name": "local", "classes": CLASSES, "shape": [5]}
ARRIVAL: Plain = {"kind": "arrival", "rounds": 6}


def local(*overrides: str, **stream: Any) -> Scenario:
    """Return `tiny` with data of the clients' own."""
    return config.check(config.build(Scenario, _with_local(config.as_dict(tiny(*overrides)), stream)))


def _with_local(plain: Plain, stream: Plain) -> Plain:
    plain["stream"] |= {"dataset": LOCAL, **stream}
    return plain


def federation(scenario: Scenario, folder: Path, data: Path, fate: Fate = fine, nodes: Nodes | None = None) -> Plain:
    """Run a scenario on four nodes, each with a client and its folder; return the results."""
    nodes = nodes or Nodes(scenario.stream.clients, fate, folder / "nodes", data)
    rundir.create(scenario, folder / "run")
    server_app(nodes, flower.context({"directory": str(folder / "run")}, {}))
    return api.load(folder / "run").results


def events(folder: Path, kind: str) -> list[Plain]:
    return [event for event in read_events(folder / "run") if event["event"] == kind]


def federation_of(folder: Path) -> str:
    """Return the name of the federation that a folder's run was."""
    return str(json.loads((folder / "run/sittings").read_text())["federation"])


def write(path: Path, x: Any, y: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, x=np.asarray(x, np.float32), y=np.asarray(y))


def items(seed: int, n: int, classes: int = 4) -> tuple[Any, Any]:
    """Return n Gaussian vectors around the centres of their classes."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % classes
    return rng.normal(size=(n, 5)) + 3 * np.eye(5)[y], y


def folders(data: Path, clients: int = 4, tasks: int = 2) -> None:
    """Write each client's tasks as folders, and test items of each."""
    for client in range(clients):
        for task in range(tasks):
            write(data / f"{client}/task-{task:03d}/a.npz", *items(10 * client + task, 12))
            write(data / f"{client}/test/task-{task:03d}/a.npz", *items(1000 + 10 * client + task, 8))


@pytest.mark.parametrize(
    "method",
    [("client.method=finetune",), ("client.method=er",), ("client.method=derpp", "client.memory.admit=every_pass"),
     ("client.method=er", "client.memory.policy=class-balanced", "client.memory.size=5", "client.optimizer.keep=true"),
     ("client.method=lwf", "client.optimizer.momentum=0.9"), ("server.method=prototypes", "client.method=frozen")],
    ids=lambda method: " ".join(method),
)  # fmt: skip
def test_the_same_items_in_folders_and_in_simulation_come_to_the_same_weights(
    tmp_path: Path, method: tuple[str, ...]
) -> None:
    """Every cell of the simulation is written into a file of its client: the draws are the same, and so is the sum."""
    scenario = tiny("client.epochs=2", "engine.cohort=1", *method)
    stream = build_stream(scenario)
    for client in range(4):
        for task in range(2):
            for name, cells, x, y in (
                ("", stream.train, stream.dataset.x, stream.dataset.y),
                ("test/", stream.test, stream.dataset.test_x, stream.dataset.test_y),
            ):
                cell = cells.cell(client, task)
                write(tmp_path / f"data/{client}/{name}task-{task:03d}/a.npz", x[cell], y[cell])
    alone = run(scenario, tmp_path / "alone")
    own = federation(local("client.epochs=2", "engine.cohort=1", *method), tmp_path, tmp_path / "data")
    assert own["weights_sha256"] == alone["weights_sha256"]
    assert own["clients"]["acc"] == alone["clients"]["acc"]
    assert own["accuracy_matrix"] == alone["accuracy_matrix"]  # the clients' test items are all there are


def test_a_memory_holds_on_to_samples_whose_files_have_gone(tmp_path: Path) -> None:
    """The files of the first task vanish with its end: the weights are those of a run in which they stayed."""
    scenario = local("client.method=derpp")
    weights = []
    for name, vanish in (("stay", False), ("go", True)):
        data = tmp_path / name / "data"
        folders(data)

        def after(order: Any, data: Path = data, vanish: bool = vanish) -> str:
            if vanish and order.round == 3:
                for path in data.glob("*/task-000/a.npz"):
                    path.unlink()
            return "ok"

        weights.append(federation(scenario, tmp_path / name, data, after)["weights_sha256"])
    assert not list((tmp_path / "go/data").glob("*/task-000/a.npz"))
    assert weights[0] == weights[1]


def test_a_record_holds_the_samples_and_their_numbers(tmp_path: Path) -> None:
    """Each remembered sample is the row of a file that the client's ledger gives its number."""
    scenario = local("client.method=er")
    folders(tmp_path / "data")
    federation(scenario, tmp_path, tmp_path / "data")
    kept, scenario_hash = Folder(tmp_path / "nodes/1"), config_hash(scenario)
    record = opened(kept.read(1, 4), site(as_text(scenario)).record, 1, 4, scenario_hash)[0]
    ledger = loaded(kept.ledger(1, federation_of(tmp_path)), scenario_hash)
    own = [f"{folder}task-{task:03d}/a.npz" for folder in ("", "test/") for task in (0, 1)]
    assert [(each.path, each.number, each.task) for each in ledger] == list(
        zip(own, (0, 12, 24, 32), (0, 1) * 2, strict=True)
    )
    assert record["count"] == 5
    assert record["cursor"].tolist() == [12, 24, 0]
    for number, task, label, x in zip(*(record[name] for name in ("items", "tasks", "labels", "x")), strict=True):
        with np.load(tmp_path / f"data/1/task-{task:03d}/a.npz") as held:
            row = number - 12 * task
            assert np.array_equal(x, held["x"][row])
            assert label == held["y"][row]


@pytest.mark.parametrize("fates", [("lost", "ok"), ("deaf", "ok"), ("refused", "twice")])
def test_answers_that_are_lost_count_once_with_a_growing_folder_too(tmp_path: Path, fates: tuple[str, str]) -> None:
    """Three of four clients in a round: who is left out goes on from what the server accepted, with its memory."""
    weights = []
    for name in ("a", "b"):
        data = tmp_path / name / "data"
        folders(data)

        def fate(order: Any) -> str:
            return fates[order.round % 2] if 2 in order.clients and type(order).__name__ == "TrainOrder" else "ok"

        found = federation(local("client.method=er"), tmp_path / name, data, fate)
        parts = [sorted(event["clients"]) for event in events(tmp_path / name, "round")]
        assert [0, 1, 3] in parts
        weights.append(found["weights_sha256"])
    assert weights[0] == weights[1]


# What has arrived since the last visit is the next task.


def grow(data: Path, when: dict[int, Callable[[Path], None]]) -> Fate:
    """Return a fate that changes the folders before the stock of a round is told."""

    def fate(order: Any) -> str:
        if type(order).__name__ == "StockOrder" and order.round in when:
            when.pop(order.round)(data)
        return "ok"

    return fate


def next_file(folder: Path) -> Path:
    """Return a name that no file has yet."""
    return folder / f"b{len(list(folder.iterdir()))}.npz"


def test_what_has_arrived_since_a_visit_is_the_next_task(tmp_path: Path) -> None:
    """Client 0 gets a file before rounds 3 and 5, client 1 before round 4; 2 and 3 have what they had."""
    data = tmp_path / "data"
    for client in range(4):
        write(data / f"{client}/a.npz", *items(client, 30))

    def add(client: int) -> Callable[[Path], None]:
        return lambda data: write(next_file(data / str(client)), *items(7 * client + 1, 20))

    fate = grow(data, {3: add(0), 4: add(1), 5: add(0)})
    results = federation(local(schedule=ARRIVAL, tasks=5), tmp_path, data, fate)
    by_client = [
        [dict(zip(event["clients"], event["tasks"], strict=True))[client] for event in events(tmp_path, "round")]
        for client in range(4)
    ]
    assert by_client == [[0, 0, 1, 1, 2, 2], [0, 0, 0, 1, 1, 1], [0] * 6, [0] * 6]
    left = [(e["round"], e["clients"], e["tasks"]) for e in events(tmp_path, "client_task_end")]
    assert left == [(2, [0], [0]), (3, [1], [0]), (4, [0], [1]), (6, [0, 1, 2, 3], [2, 1, 0, 0])]
    stocks = events(tmp_path, "stock")
    assert [event["round"] for event in stocks] == [1, 3, 4, 5]
    first = {client: sum(held.values()) for client, held in zip(stocks[0]["clients"], stocks[0]["items"], strict=True)}
    assert all(15 <= n <= 30 for n in first.values())  # about a fifth of 30 is held out
    assert stocks[-1]["items"][0].keys() == {"0", "1", "2"}
    assert results["metrics"]["acc"] == pytest.approx(0.886, abs=0.01)  # pooled over the clients' own test items
    ledger = json.loads(Folder(tmp_path / "nodes/0").ledger(0, federation_of(tmp_path)))
    assert [(each[0], each[3], each[4]) for each in ledger["arrivals"]] == [
        ("a.npz", 0, 0), ("b1.npz", 30, 1), ("b2.npz", 50, 2)
    ]  # fmt: skip


def test_online_a_client_sits_out_until_something_new_has_arrived(tmp_path: Path) -> None:
    """Each item is shown once: client 0 trains in rounds 1, 3 and 4, when its table has grown by 10 and 20 rows."""
    data = tmp_path / "data"
    scenario = local(
        schedule={**ARRIVAL, "online": True, "rounds": 4}, tasks=3,
        dataset={**LOCAL, "columns": list("abcde"), "test": 1e-9},
    )  # fmt: skip

    def table(n: int, client: int = 0) -> None:
        x, y = items(client, 100)
        rows = [",".join([*(f"{value:.6f}" for value in x[row]), str(y[row])]) for row in range(n)]
        (data / f"{client}").mkdir(parents=True, exist_ok=True)
        (data / f"{client}/a.csv").write_text("\n".join(["a,b,c,d,e,label", *rows]) + "\n")

    def more(n: int, client: int = 0) -> Callable[[Path], None]:
        return lambda data: table(n, client)

    table(40)
    fate = grow(data, {2: more(50, client=1), 3: more(50), 4: more(70)})
    federation(scenario, tmp_path, data, fate)
    assert [event["clients"] for event in events(tmp_path, "round")] == [[0], [1], [0], [0]]
    assert [event["steps"] for event in events(tmp_path, "round")] == [8, 10, 2, 4]  # of 40, 50, 10 and 20 rows
    assert [event["tasks"] for event in events(tmp_path, "round")] == [[0], [0], [1], [2]]


def test_a_server_waits_for_data_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from server import presence

    monkeypatch.setattr(presence, "AGAIN", 0.01)
    data, asked = tmp_path / "data", []
    for client in range(4):
        (data / str(client)).mkdir(parents=True)

    def fate(order: Any) -> str:
        asked.append(order)
        if len(asked) == 20:
            write(data / "2/a.npz", *items(2, 30))
        return "ok"

    federation(local(schedule={**ARRIVAL, "rounds": 1}), tmp_path, data, fate)
    assert events(tmp_path, "waiting") == [{"event": "waiting", "round": 1, "needed": 1, "here": 0, "for": "data"}]
    assert [event["clients"] for event in events(tmp_path, "round")] == [[2]]


def test_a_killed_server_goes_on_where_data_had_brought_the_clients(tmp_path: Path) -> None:
    """The server dies in the middle of round 4: the positions are those of its checkpoint, and it ends alike."""
    from tests.nodes import Death

    scenario, weights = local("client.method=er", schedule=ARRIVAL, tasks=5), []
    for name in ("straight", "killed"):
        data, died = tmp_path / name / "data", list[int]()
        for client in range(4):
            write(data / f"{client}/a.npz", *items(client, 30))
        growth = grow(data, {3: lambda data: write(data / "0/b.npz", *items(50, 20)),
                             5: lambda data: write(data / "1/b.npz", *items(51, 20))})  # fmt: skip

        def fate(order: Any, growth: Fate = growth, died: list[int] = died, name: str = name) -> str:
            growth(order)
            if name == "killed" and type(order).__name__ == "TrainOrder" and order.round == 4 and not died:
                died.append(4)
                return "dies"
            return "ok"

        nodes = Nodes(4, fate, tmp_path / name / "nodes", data)
        try:
            federation(scenario, tmp_path / name, data, nodes=nodes)
        except Death:
            nodes.restart()
            server_app(nodes, flower.context({"directory": str(tmp_path / name / "run")}, {}))
        results = api.load(tmp_path / name / "run").results
        assert results["status"] == "finished"
        weights.append((results["weights_sha256"], results["state_sha256"], results["accuracy_matrix"]))
    assert weights[0] == weights[1]


def test_what_cannot_be_read_is_named_counted_and_left_out(tmp_path: Path) -> None:
    """A damaged file, another shape, rows with NaN, an unknown label, a link out of the folder, a task too far."""
    data = tmp_path / "data"
    folders(data)
    x, y = items(5, 10)
    own = data / "1/task-000"
    (own / "cut.npz").write_bytes((own / "a.npz").read_bytes()[:100])
    write(own / "wide.npz", np.zeros((3, 7)), [0, 1, 2])
    write(own / "nan.npz", np.where(np.arange(10)[:, None] == 3, np.nan, x), y)
    write(own / "label.npz", x, np.where(y == 3, 9, y))
    (own / "link.npz").symlink_to(data / "0/task-000/a.npz")
    write(data / "1/task-017/a.npz", x, y)
    write(data / "1/loose.npz", x, y)
    results = federation(local(), tmp_path, data)
    assert results["status"] == "finished"
    said = (tmp_path / "nodes/1/client-000001/faults.txt").read_text()
    for words in (
        "loose.npz: belongs to no task", "task-000/cut.npz: ", "task-000/label.npz: 2 of 10 rows left out",
        "the unknown label '9'", "task-000/link.npz: is a link out of the folder",
        "task-000/nan.npz: 1 of 10 rows left out, the first is row 3: it has NaN",
        "task-000/wide.npz: has inputs of shape (7,) where (5,) is expected",
        "task-017/a.npz: is of task 17; the last is 1 (stream.tasks)",
    ):  # fmt: skip
        assert words in said
    assert said.count("\n") == 7
    stock = events(tmp_path, "stock")[0]
    assert dict(zip(stock["clients"], stock["faults"], strict=True)) == {0: 0, 1: 7, 2: 0, 3: 0}
    assert stock["items"][1]["0"] == 12 + 9 + 8  # a.npz, and the good rows of nan.npz and label.npz
    assert not list(tmp_path.glob("run/**/*faults*"))


def test_a_client_without_a_folder_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    data = tmp_path / "data"
    folders(data, clients=3)
    results = federation(local(), tmp_path, data)
    assert all(event["clients"] == [0, 1, 2] for event in events(tmp_path, "round"))
    errors = events(tmp_path, "client_error")
    assert {each["client"] for each in errors} == {3}
    assert {each["error"].removeprefix("NoData: ") for each in errors} == {
        "client 3: its folder cannot be used; its node says why"
    }
    assert "is no folder that can be read" in (tmp_path / "nodes/3/client-000003/faults.txt").read_text()
    assert results["status"] == "finished"


def test_few_samples_are_not_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FEDCL_MIN_COUNT: a stock below it is none, so that the client is not asked; the audit lists what was told."""
    monkeypatch.setenv("FEDCL_MIN_COUNT", "10")
    monkeypatch.setenv("FEDCL_AUDIT", str(tmp_path / "audit"))
    monkeypatch.setenv("FEDCL_ALLOW", "delta,accuracy")
    data = tmp_path / "data"
    folders(data)
    write(data / "2/task-000/a.npz", *items(1, 9))
    write(data / "2/test/task-000/a.npz", *items(1, 12))
    federation(local("evaluate.every=0"), tmp_path, data)
    assert events(tmp_path, "stock")[0]["items"] == [{"0": 12, "1": 12}] * 2 + [{"1": 12}, {"0": 12, "1": 12}]
    assert [event["clients"] for event in events(tmp_path, "round")] == [[0, 1, 3]] * 2 + [[0, 1, 2, 3]] * 2
    lines = [json.loads(line) for line in (tmp_path / "audit").read_text().splitlines()]
    told = {(line["part"], *line["shape"]) for line in lines if line.get("statistic") == "stock"}
    assert told == {("items", 1, 2), ("table/faults", 1)}


# The pieces.


def test_an_open_timeline_moves_whom_newer_data_has_reached() -> None:
    """At least two visits to a task, the next task with items, and on at once where there is nothing left to do."""
    line = Arriving(rounds=9, least=2).timeline(3, 4, 3, 0)
    visits, items = np.array([2, 1, 5]), np.array([[3, 0, 4, 0], [3, 5, 0, 0], [0, 0, 0, 2]])
    moved, left, tasks = line.moved(visits, items, 2)
    assert moved.begin.tolist() == [[0, 2, 2, 9, 9], [0, 9, 9, 9, 9], [0, 5, 5, 5, 9]]
    assert (left.tolist(), tasks.tolist()) == ([0, 2], [0, 0])
    assert moved.tasks(moved.positions(moved.clocks(4, visits))).tolist() == [2, 0, 3]
    assert moved.positions(moved.clocks(10, visits)).tolist() == [4, 4, 4]  # the run is over


def test_a_ledger_is_checked() -> None:
    ledger = (Arrival("a.npz", 0, 3, 0, 1), Arrival("a.npz", 3, 2, 3, -1))
    assert loaded(dumped(ledger, "s"), "s") == ledger
    assert loaded(b"", "s") == ()
    with pytest.raises(BadLedger, match="another scenario"):
        loaded(dumped(ledger, "s"), "t")
    for spoilt in (b"{", b"[]", dumped(ledger, "s").replace(b"3", b"-3"), dumped(ledger, "s").replace(b"0", b'"0"')):
        with pytest.raises(BadLedger, match="damaged"):
            loaded(spoilt, "s")


@pytest.mark.parametrize(
    ("overrides", "stream", "words"),
    [
        ((), {"kind": "domain-incremental"}, "stream.kind = 'domain-incremental': must be 'class-incremental'"),
        ((), {"joint": True}, "stream.joint = True"),
        ((), {"schedule": {"kind": "synchronous", "clock": "participations"}}, "stream.schedule.clock"),
        (("client.curriculum=curr",), {}, "client.curriculum = 'curr': must be 'vanilla'"),
        (("server.method=fot",), {"schedule": ARRIVAL}, "set server.method.consolidate_every"),
    ],
)
def test_what_needs_to_know_the_data_is_refused(overrides: tuple[str, ...], stream: Plain, words: str) -> None:
    with pytest.raises(ConfigError, match=words.replace(".", r"\.")):
        local(*overrides, **stream)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"classes": []}, "classes = []: must name the classes"),
        ({"classes": ["a", "b", "a"]}, "classes: 'a' stands there 2 times"),
        ({"shape": []}, "shape = []: must be the shape of an input"),
        ({"shape": [0]}, "must be the shape"),
        ({"columns": ["a"]}, "columns: 1 names, but shape = [5]"),
    ],
)
def test_a_scenario_must_say_what_an_item_is(change: Plain, words: str) -> None:
    with pytest.raises(ConfigError) as raised:
        build_stream(local(dataset={**LOCAL, **change}))
    assert words in str(raised.value)


def test_arrival_needs_data_that_arrives() -> None:
    with pytest.raises(ConfigError, match="data set 'synthetic' is all there at the start; set dataset = local"):
        config.load(config.as_dict(tiny()) | {"stream": config.as_dict(tiny())["stream"] | {"schedule": ARRIVAL}})


def test_a_simulation_has_no_folders_of_its_clients(tmp_path: Path) -> None:
    with pytest.raises((ConfigError, FederationError), match="fedcl server"):
        api.run(local(), out=tmp_path / "run")


def test_the_place_in_flowers_context_keeps_a_ledger_too() -> None:
    kept = place({}, flower.context({}, {}).state)
    assert kept.ledger(3, "one") == b""
    kept.keep_ledger(3, "one", b"[]")
    assert (kept.ledger(3, "one"), kept.ledger(3, "two")) == (b"[]", b"")
    assert [kept.told(3, "a"), kept.told(3, "a"), kept.told(3, "")] == [True, False, True]
