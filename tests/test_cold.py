"""Cold fields of clients' records: written only when they change, read as if they lay in one record."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from clients.site import SELDOM
from fedcl import api, cold
from fedcl.packs import BrokenState, Ints, Records, dtype_of, header_of, write_pack
from fedcl.state import Index, PackStore, records_digest
from fedcl.testing import hashes, killed_run_resumes
from tests.federations import Clients, tiny

RECORD = np.dtype(
    [("visits", "<i8"), ("ewc.theta", "<f4", (40,)), ("logits", "<f4", (3,)), ("ewc.fisher", "<f8", (7,))]
)
SELDOM_FIELDS = ("ewc.theta", "ewc.fisher")
FRESH = np.zeros(1, RECORD)


def ids(*numbers: int) -> Ints:
    return np.array(numbers, np.int64)


def visited(store: PackStore, index: Index, clients: Ints, round: int, leaving: list[bool]) -> Index:
    """Let clients be visited: visits counts up, and who leaves a task gets other cold fields."""
    old = store.load(clients, *index.locate(clients), FRESH)
    new = old.copy()
    new["visits"] += 1
    new["logits"] = round
    for row in np.flatnonzero(leaving):
        new["ewc.theta"][row], new["ewc.fisher"][row] = 100 * round + clients[row], round
    name = f"r{round:06d}-c00000.pack"
    return index.place(name, store.save(name, clients, new, old, SELDOM_FIELDS), clients)


def records(index: Index, folder: Path) -> Records:
    clients = index.visited()
    return PackStore(folder).load(clients, *index.locate(clients), FRESH)


def test_only_what_has_changed_is_written_again(tmp_path: Path) -> None:
    """Three clients, of whom one leaves a task in round 1 and another in round 2; round 3 writes nothing cold."""
    index = Index.empty(4)
    for round, leaving in enumerate([[False] * 3, [True, False, False], [False, False, True], [False] * 3]):
        index = visited(PackStore(tmp_path), index, ids(2, 0, 3), round, leaving)
    found = records(index, tmp_path)  # clients 0, 2, 3
    assert found["visits"].tolist() == [4, 4, 4]
    assert found["logits"].tolist() == [[3.0] * 3] * 3
    assert found["ewc.theta"][:, 0].tolist() == [0, 102, 203]
    assert found["ewc.fisher"][:, -1].tolist() == [0, 1, 2]
    assert sorted(path.name for path in tmp_path.glob("*.cold")) == ["r000001-c00000.cold", "r000002-c00000.cold"]
    assert list(header_of(tmp_path / "r000001-c00000.cold").clients) == [2]
    assert list(header_of(tmp_path / "r000002-c00000.cold").clients) == [3]
    assert dtype_of(tmp_path / "r000003-c00000.pack").itemsize == 8 + 12 + 8  # visits, logits, pointer
    assert cold.layout(tmp_path / "r000003-c00000.pack")[0].itemsize == RECORD.itemsize
    assert PackStore(tmp_path).files(index)[-2:] == ["r000001-c00000.cold", "r000002-c00000.cold"]


rounds = st.lists(
    st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=1, max_size=6, unique_by=lambda each: each[0]),
    min_size=1,
    max_size=10,
)


@examples(max_examples=40, deadline=None)
@given(rounds=rounds, keep=st.integers(1, 3), threshold=st.sampled_from([0.0, 0.3, 0.6, 1.1]))
def test_split_records_are_those_of_whole_ones_and_nothing_needed_is_collected(
    tmp_path_factory: pytest.TempPathFactory, rounds: list[list[tuple[int, bool]]], keep: int, threshold: float
) -> None:
    split, plain = (PackStore(tmp_path_factory.mktemp(name)) for name in ("split", "plain"))
    index, expected = Index.empty(10), Index.empty(10)
    kept: list[tuple[Index, Index]] = []
    for round, members in enumerate(rounds, 1):
        clients, leaving = ids(*(client for client, _ in members)), [leaves for _, leaves in members]
        index = visited(PackStore(split.folder), index, clients, round, leaving)  # as a worker, anew
        new = PackStore(split.folder).load(clients, *index.locate(clients), FRESH)
        name = f"r{round:06d}-c00000.pack"
        expected = expected.place(name, plain.save(name, clients, new), clients)
        index = split.compact(index, f"r{round:06d}-live.pack", threshold)
        kept = [*kept, (index, expected)][-keep:]
        split.collect(each for each, _ in kept)
        for mine, whole in kept:
            PackStore(split.folder).check(mine)
            assert records(mine, split.folder).tobytes() == records(whole, plain.folder).tobytes()
            assert records_digest(split, mine) == records_digest(plain, whole)
    assert {path.name for path in split.folder.iterdir()} == {name for each, _ in kept for name in split.files(each)}


def test_a_byte_is_a_change_and_no_number_is_none(tmp_path: Path) -> None:
    """0.0 that becomes -0.0 is written, NaN that stays is not."""
    index = Index.empty(2)
    for round, value in enumerate([0.0, -0.0, np.nan, np.nan], 1):
        store = PackStore(tmp_path)
        old = store.load(ids(0), *index.locate(ids(0)), FRESH)
        new = old.copy()
        new["ewc.theta"][0, 0] = value
        name = f"r{round:06d}-c00000.pack"
        index = index.place(name, store.save(name, ids(0), new, old, SELDOM_FIELDS), ids(0))
    assert np.isnan(records(index, tmp_path)["ewc.theta"][0, 0])
    assert sorted(path.name for path in tmp_path.glob("*.cold")) == ["r000002-c00000.cold", "r000003-c00000.cold"]


def test_a_record_from_before_the_split_keeps_what_it_has(tmp_path: Path) -> None:
    """A pack that holds everything is read, and its cold fields are written apart at the next visit."""
    whole = np.zeros(2, RECORD)
    whole["ewc.theta"][1] = 5
    index = Index.empty(2).place("old.pack", write_pack(tmp_path / "old.pack", whole, ids(0, 1)), ids(0, 1))
    index = visited(PackStore(tmp_path), index, ids(0, 1), 7, [False, False])
    assert records(index, tmp_path)["ewc.theta"][:, 0].tolist() == [0, 5]
    assert list(header_of(tmp_path / "r000007-c00000.cold").clients) == [1]


def test_a_damaged_or_missing_cold_file_is_named(tmp_path: Path) -> None:
    index = visited(PackStore(tmp_path), Index.empty(2), ids(0, 1), 1, [True, True])
    file = tmp_path / "r000001-c00000.cold"
    sound = file.read_bytes()
    file.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    for look in (lambda: PackStore(tmp_path).check(index), lambda: records(index, tmp_path)):
        with pytest.raises(BrokenState, match=r"c00000\.cold: row 1 \(client 1\) does not match its checksum"):
            look()
    other = np.zeros(2, np.dtype([(name, RECORD[name]) for name in SELDOM_FIELDS]))
    write_pack(file, other, ids(0, 1))
    with pytest.raises(BrokenState, match="not the pack that was committed"):
        PackStore(tmp_path).check(index)
    file.unlink()
    with pytest.raises(BrokenState, match=r"c00000\.cold is missing"):
        records(index, tmp_path)


@pytest.mark.parametrize("name", ["../r1.cold", "/etc/r1.cold", "r1.pack"])
def test_a_pointer_that_leads_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    fields = [["ewc.fisher", "<f8", [7]]]
    lean = np.zeros(1, np.dtype([("visits", "<i8"), (cold.POINTER, "<i4", (2,))]))
    write_pack(tmp_path / "a.pack", lean, ids(0), {"fields": fields, "files": {name: "ab"}})
    with pytest.raises(BrokenState, match="is no name of a cold file"):
        cold.read(tmp_path / "a.pack", ids(0), np.dtype([("visits", "<i8"), ("ewc.fisher", "<f8", (7,))]), ids(0))


LARGE = ("client.method=ewc", "model={name: mlp, width: 60}")


def test_what_a_task_leaves_behind_is_cold_where_it_is_large() -> None:
    site = Clients.of(tiny(*LARGE)).site
    assert site.seldom == ("ewc.theta", "ewc.fisher")
    assert sum(site.record[name].itemsize for name in site.seldom) > SELDOM
    assert Clients.of(tiny("client.method=ewc", "model={name: mlp, width: 2}")).site.seldom == ()
    assert Clients.of(tiny("client.method=finetune")).site.seldom == ()


def test_a_run_with_cold_fields_gives_the_records_of_one_without_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = api.run(tiny(*LARGE), out=tmp_path / "split")
    assert list((tmp_path / "split" / "state").glob("*.cold"))
    monkeypatch.setattr("clients.site.SELDOM", 10**9)
    assert hashes(api.run(tiny(*LARGE, "name=again"), out=tmp_path / "whole")) == hashes(split)
    assert not list((tmp_path / "whole" / "state").glob("*.cold"))


@pytest.mark.slow
def test_a_killed_run_with_cold_fields_resumes(tmp_path: Path) -> None:
    killed_run_resumes(tiny(*LARGE), tmp_path)
    index = json.loads((tmp_path / "killed" / "results.json").read_text())
    assert index["status"] == "finished"
