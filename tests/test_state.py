"""Digests, packs, the index of newest records, and the store that ties them together."""

import hashlib
import json
import os
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from fedcl.digest import digest
from fedcl.packs import PREAMBLE, BrokenState, Ints, Records, packed, read_rows, verify, write_pack
from fedcl.state import STALE, Index, PackStore, records_digest, safe

RECORD = np.dtype([("visits", "<i8"), ("items", "<i4", (5,)), ("logits", "<f4", (5, 3)), ("full", "?")])


def ids(*numbers: int) -> Ints:
    return np.array(numbers, np.int64)


def random_records(n: int, seed: int = 0, dtype: np.dtype[np.void] = RECORD) -> Records:
    rng = np.random.default_rng(seed)
    records: Records = np.zeros(n, dtype)
    for name in dtype.names or ():
        records[name] = rng.integers(0, 100, records[name].shape)
    return records


def numbered(clients: Ints, round: int) -> Records:
    """Return records that say whose they are and of which round."""
    records: Records = np.zeros(len(clients), RECORD)
    records["visits"] = round
    records["items"] = clients[:, None] + np.arange(5)
    return records


# --- digest


def test_digest_is_the_sha256_of_names_dtypes_shapes_and_bytes() -> None:
    by_hand = hashlib.sha256()
    by_hand.update(b'["a", "int16", [2]]\n' + struct.pack("<2h", 1, 258))
    by_hand.update(b'["b", "float32", []]\n' + struct.pack("<f", 0.5))
    assert digest({"b": np.array(0.5, np.float32), "a": np.array([1, 258], np.int16)}) == by_hand.hexdigest()
    assert digest({}) == hashlib.sha256().hexdigest()


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "int32", "uint8", "bool", "float16", "complex64"])
@pytest.mark.parametrize("shape", [(), (0, 3), (3, 4), (2, 1, 5)])
def test_digest_is_the_same_for_torch_and_numpy(dtype: str, shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    expected = digest({"w": array})
    assert digest({"w": torch.tensor(array, requires_grad=dtype.startswith("float"))}) == expected
    assert digest({"w": np.array(array, order="F")}) == expected
    assert digest({"w": array.astype(array.dtype.newbyteorder(">"))}) == expected
    assert digest({"w": torch.tensor(array.T.copy()).permute(list(range(len(shape)))[::-1])}) == expected


def test_digest_tells_names_dtypes_shapes_signs_and_values_apart() -> None:
    zeros = np.zeros((2, 3), np.float32)
    others: list[dict[str, Any]] = [
        {"v": zeros},
        {"w": zeros.astype(np.int32)},
        {"w": zeros.T},
        {"w": -zeros},
        {"w": zeros + np.float32(1e-45)},
        {"w": torch.zeros(2, 3, dtype=torch.bfloat16)},
        {"w": torch.ones(2, 3, dtype=torch.bfloat16)},
    ]
    assert len({digest({"w": zeros}), *(digest(other) for other in others)}) == 8


def test_digest_refuses_what_has_no_plain_bytes() -> None:
    with pytest.raises(TypeError, match="cannot hash 'w'"):
        digest({"w": np.array([{}], object)})
    with pytest.raises(TypeError, match="not plain numbers"):
        digest({"w": np.zeros(2, RECORD)})


# --- packs

kinds = st.sampled_from(["<f4", "<f8", "<i8", "<i4", "|u1", "|b1", ">i4", "<U3"])
shapes = st.lists(st.integers(0, 3), max_size=2).map(tuple)
dtypes = st.lists(st.tuples(kinds, shapes), max_size=4).flatmap(
    lambda parts: st.booleans().map(
        lambda aligned: np.dtype([(f"f{i}", kind, shape) for i, (kind, shape) in enumerate(parts)], align=aligned)
    )
)


@examples(max_examples=60, deadline=None)
@given(dtype=dtypes, n=st.integers(0, 6), data=st.data())
def test_a_pack_gives_back_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, dtype: np.dtype[np.void], n: int, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "round-trip.pack"
    records, clients = random_records(n, 3, dtype), np.arange(n, dtype=np.int64)[::-1] + 7
    checksum = write_pack(path, records, clients)
    verify(path, checksum)
    rows = np.array(data.draw(st.lists(st.integers(0, n - 1), max_size=8) if n else st.just([])), np.int64)
    found = read_rows(path, rows, dtype, clients[rows])
    assert found.dtype == dtype
    for name in dtype.names or ():
        np.testing.assert_array_equal(found[name], records[name][rows])


def test_a_pack_reads_the_same_whatever_padding_and_byte_order_wrote_it(tmp_path: Path) -> None:
    plain = np.dtype([("a", "<i2"), ("b", "<f8", (2,))])
    padded = np.dtype([("a", ">i2"), ("b", ">f8", (2,))], align=True)
    assert padded.itemsize > plain.itemsize == packed(padded).itemsize == 18
    records = random_records(3, 1, plain)
    sums = [
        write_pack(tmp_path / name, records.astype(kind), ids(0, 1, 2)) for name, kind in [("a", plain), ("b", padded)]
    ]
    assert sums[0] == sums[1]
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (
        len((tmp_path / "a").read_bytes())
        == PREAMBLE.size + PREAMBLE.unpack((tmp_path / "a").read_bytes()[:48])[1] + 54
    )


def test_read_rows_reads_only_the_rows_asked_for(tmp_path: Path) -> None:
    path, records = tmp_path / "a.pack", random_records(4)
    checksum = write_pack(path, records, ids(4, 5, 6, 7))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1  # in row 3
    path.write_bytes(data)
    np.testing.assert_array_equal(read_rows(path, ids(2, 0, 1), RECORD), records[[2, 0, 1]])
    with pytest.raises(BrokenState, match=r"a\.pack: row 3 \(client 7\)"):
        read_rows(path, ids(0, 3), RECORD)
    with pytest.raises(BrokenState, match="row 3"):
        verify(path, checksum)


def test_every_flipped_bit_of_a_pack_is_detected(tmp_path: Path) -> None:
    path, rng = tmp_path / "a.pack", np.random.default_rng(0)
    checksum = write_pack(path, random_records(3), ids(0, 1, 2))
    whole = path.read_bytes()
    for position in range(len(whole)):
        data = bytearray(whole)
        data[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
        with pytest.raises(BrokenState, match=r"a\.pack"):
            verify(path, checksum)
        with pytest.raises(BrokenState, match=r"a\.pack"):
            read_rows(path, ids(0, 1, 2), RECORD)


def test_every_truncation_of_a_pack_is_detected_and_so_is_a_longer_one(tmp_path: Path) -> None:
    path = tmp_path / "a.pack"
    checksum = write_pack(path, random_records(2), ids(0, 1))
    whole = path.read_bytes()
    for data in [*(whole[:n] for n in range(len(whole))), whole + b"\0"]:
        path.write_bytes(data)
        with pytest.raises(BrokenState, match=r"a\.pack"):
            verify(path, checksum)
        with pytest.raises(BrokenState, match=r"a\.pack"):
            read_rows(path, ids(0), RECORD)


@pytest.mark.parametrize(
    "facts",
    [
        [],
        {"fields": []},
        {"fields": [], "size": -4, "clients": [0], "crc32": [0]},
        {"fields": [], "size": 0, "clients": [0, 1], "crc32": [0]},
        {"fields": [], "size": 0, "clients": ["0"], "crc32": [0]},
        {"fields": [], "size": 2**62, "clients": [0], "crc32": [0]},
        {"fields": [], "size": 0, "clients": [], "crc32": [], "more": 1},
        {"fields": [["a", "O", []]], "size": 0, "clients": [], "crc32": []},
    ],
)
def test_a_header_that_only_claims_to_be_one_is_refused(tmp_path: Path, facts: object) -> None:
    header = json.dumps(facts).encode()
    preamble = PREAMBLE.pack(b"fedclpk1", len(header), hashlib.sha256(header).digest())
    (tmp_path / "a.pack").write_bytes(preamble + header)
    with pytest.raises(BrokenState, match=r"a\.pack"):
        read_rows(tmp_path / "a.pack", ids(), RECORD)


def test_wrong_rows_clients_and_fields_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pack"
    checksum = write_pack(path, random_records(2), ids(8, 9))
    for row in (-1, 2):
        with pytest.raises(BrokenState, match=f"has no row {row}"):
            read_rows(path, ids(0, row), RECORD)
    with pytest.raises(BrokenState, match="does not hold the records of clients"):
        read_rows(path, ids(0, 1), RECORD, ids(9, 8))
    with pytest.raises(BrokenState, match="other fields"):
        read_rows(path, ids(0), np.dtype([("visits", "<i8")]))
    with pytest.raises(BrokenState, match="missing"):
        verify(tmp_path / "b.pack", checksum)
    write_pack(path, random_records(2, seed=1), ids(8, 9))
    with pytest.raises(BrokenState, match="not the pack that was committed"):
        verify(path, checksum)


def test_records_are_plain_numbers(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="field 'a'"):
        write_pack(tmp_path / "a.pack", np.zeros(1, [("a", object)]), ids(0))
    with pytest.raises(TypeError, match="field 'a'"):
        packed(np.dtype([("a", RECORD)]))
    with pytest.raises(TypeError, match="needs named fields"):
        packed(np.dtype("f4"))
    with pytest.raises(ValueError, match="2 clients"):
        write_pack(tmp_path / "a.pack", random_records(3), ids(0, 1))
    assert list(tmp_path.iterdir()) == []


# --- index


@pytest.mark.parametrize(
    "name", ["a/b.pack", "../a.pack", ".a.pack", "a.pack\n", "", "a", "/a.pack", "a\0.pack", "é.pack"]
)
def test_pack_names_that_could_leave_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BrokenState, match="pack name"):
        safe(name)
    with pytest.raises(BrokenState, match="pack name"):
        PackStore(tmp_path).save(name, ids(0), random_records(1))
    with pytest.raises(BrokenState, match="pack name"):
        Index.empty(1).place(name, "", ids(0))


def test_the_index_points_to_the_newest_record_and_rounds_can_be_undone() -> None:
    first = Index.empty(5).place("a.pack", "A", ids(3, 1))
    second = first.place("b.pack", "B", ids(1, 4))
    names, rows = first.locate(ids(0, 1, 3, 4))
    assert (names, rows.tolist()) == (["", "a.pack", "a.pack", ""], [0, 1, 0, 0])
    names, rows = second.locate(ids(4, 3, 1, 0))
    assert (names, rows.tolist(), rows.dtype.name) == (["b.pack", "a.pack", "b.pack", ""], [1, 0, 0, 0], "int64")
    assert second.live().tolist() == [1, 2]
    assert second.visited().tolist() == [1, 3, 4]
    third = second.place("c.pack", "C", ids(3)).trimmed()
    assert (third.packs, third.checksums, third.sizes) == (["b.pack", "c.pack"], ["B", "C"], [2, 1])
    assert third.pack.tolist() == [-1, 0, -1, 1, 0]
    assert first.pack.tolist() == [-1, 0, -1, 0, -1]


def test_a_pack_is_placed_once_and_holds_known_clients() -> None:
    index = Index.empty(3).place("a.pack", "A", ids(0))
    with pytest.raises(BrokenState, match="placed already"):
        index.place("a.pack", "A", ids(1))
    for client in (-1, 3):
        with pytest.raises(BrokenState, match="none of the 3"):
            index.place("b.pack", "B", ids(0, client))


def test_the_index_survives_a_checkpoint() -> None:
    index = Index.empty(4).place("a.pack", "A", ids(3, 1)).place("b.pack", "B", ids(1))
    back = Index.restore({**index.tensors(), "w": torch.ones(2)}, json.loads(json.dumps({**index.facts(), "x": 1})))
    assert (back.packs, back.checksums, back.sizes) == (index.packs, index.checksums, index.sizes)
    np.testing.assert_array_equal(back.pack, index.pack)
    np.testing.assert_array_equal(back.row, index.row)
    broken = [
        (index.tensors(), {**index.facts(), "packs": ["a.pack"]}),
        (index.tensors(), {name: values[:1] for name, values in index.facts().items()}),
        (index.tensors(), {**index.facts(), "packs": ["a.pack", "../b.pack"]}),
        ({**index.tensors(), "index.row": torch.zeros(3, dtype=torch.int32)}, index.facts()),
        ({**index.tensors(), "index.pack": torch.zeros(4)}, index.facts()),
        ({}, index.facts()),
        (index.tensors(), {}),
    ]
    for tensors, facts in broken:
        with pytest.raises(BrokenState):
            Index.restore(tensors, facts)


# --- store


def test_load_reads_from_many_packs_and_gives_fresh_records_to_the_new(tmp_path: Path) -> None:
    store, index = PackStore(tmp_path / "packs"), Index.empty(8)
    for round, clients in enumerate([ids(5, 1, 3), ids(3, 0)]):
        name = f"r{round}.pack"
        index = index.place(name, store.save(name, clients, numbered(clients, round)), clients)
    wanted, fresh = ids(3, 7, 1, 0, 5, 6), np.zeros(1, RECORD)
    fresh["visits"] = -9
    found = store.load(wanted, *index.locate(wanted), fresh)
    assert found["visits"].tolist() == [1, -9, 0, 1, 0, -9]
    assert found["items"][:, 0].tolist() == [3, 0, 1, 0, 5, 0]
    own = numbered(wanted, -2)
    assert store.load(wanted, [None] * 6, ids(*[0] * 6), own).tobytes() == own.tobytes()
    assert store.load(wanted, [None] * 6, ids(*[0] * 6), fresh[0])["visits"].tolist() == [-9] * 6
    found["visits"] = 4  # free to be changed
    with pytest.raises(BrokenState, match="does not hold"):
        store.load(ids(1), ["r0.pack"], ids(0), fresh)


def test_records_without_fields_and_empty_cohorts_are_kept_too(tmp_path: Path) -> None:
    store, nothing = PackStore(tmp_path), np.zeros(2, np.dtype([]))
    index = Index.empty(3).place("a.pack", store.save("a.pack", ids(2, 0), nothing), ids(2, 0))
    index = index.place("b.pack", store.save("b.pack", ids(), nothing[:0]), ids())
    store.check(index)
    assert len(store.load(ids(0, 1, 2), *index.locate(ids(0, 1, 2)), nothing[:1])) == 3
    assert len(store.load(ids(), [], ids(), nothing[:1])) == 0


rounds = st.lists(st.lists(st.integers(0, 19), min_size=1, max_size=8, unique=True), min_size=1, max_size=12)


@examples(max_examples=40, deadline=None)
@given(rounds=rounds, keep=st.integers(1, 3), threshold=st.sampled_from([0.0, 0.3, 0.6, 1.1]))
def test_collection_and_compaction_lose_nothing_that_a_kept_index_needs(
    tmp_path_factory: pytest.TempPathFactory, rounds: list[list[int]], keep: int, threshold: float
) -> None:
    store, index = PackStore(tmp_path_factory.mktemp("packs")), Index.empty(20)
    kept: list[tuple[Index, dict[int, int]]] = []
    newest: dict[int, int] = {}
    for round, members in enumerate(rounds):
        clients, name = ids(*members), f"r{round:06d}-c0000.pack"
        index = index.place(name, store.save(name, clients, numbered(clients, round)), clients)
        newest = newest | dict.fromkeys(members, round)
        before = records_digest(store, index)
        index = store.compact(index, f"r{round:06d}-compact.pack", threshold)
        assert records_digest(store, index) == before
        assert (index.live() >= threshold * np.array(index.sizes)).all() or threshold > 1
        kept = [*kept, (index, newest)][-keep:]
        store.collect(each for each, _ in kept)
        for each, expected in kept:
            store.check(each)
            visited = each.visited()
            found = store.load(visited, *each.locate(visited), np.zeros((), RECORD))
            assert dict(zip(visited.tolist(), found["visits"].tolist(), strict=True)) == expected
            np.testing.assert_array_equal(found["items"][:, 0], visited)
    on_disk = {path.name for path in store.folder.iterdir()}
    assert on_disk == {name for each, _ in kept for name in each.packs}


def test_compaction_copies_exactly_the_live_rows_of_sparse_packs(tmp_path: Path) -> None:
    store, index = PackStore(tmp_path), Index.empty(10)
    for name, clients in [("a.pack", np.arange(10)), ("b.pack", np.arange(8)), ("c.pack", np.arange(4))]:
        index = index.place(name, store.save(name, clients, numbered(clients, ord(name[0]))), clients)
    compact = store.compact(index, "d.pack", 0.3)  # live: a 2 of 10, b 4 of 8, c 4 of 4
    assert (compact.packs, compact.sizes) == (["b.pack", "c.pack", "d.pack"], [8, 4, 2])
    assert compact.locate(ids(8, 9))[0] == ["d.pack", "d.pack"]
    assert store.collect([compact]) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.pack", "c.pack", "d.pack"]
    assert store.compact(compact, "e.pack", 0.3).packs == compact.packs
    store.check(compact)
    with pytest.raises(BrokenState, match="placed already"):
        store.compact(compact, "c.pack", 0.9)
    store.check(compact)


def test_collection_deletes_stale_temporaries_and_leaves_fresh_ones(tmp_path: Path) -> None:
    store = PackStore(tmp_path)
    index = Index.empty(1).place("a.pack", store.save("a.pack", ids(0), random_records(1)), ids(0))
    for name in (".b.pack.1-ab.tmp", ".c.pack.1-ab.tmp", "notes.txt"):
        (tmp_path / name).write_bytes(b"half")
    past = time.time() - STALE - 60
    os.utime(tmp_path / ".b.pack.1-ab.tmp", (past, past))
    assert store.collect([index]) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [".c.pack.1-ab.tmp", "a.pack", "notes.txt"]
    assert store.collect([]) == 1
    assert PackStore(tmp_path / "absent").collect([]) == 0


def test_the_digest_of_records_depends_on_who_and_what_but_not_on_where(tmp_path: Path) -> None:
    store, clients = PackStore(tmp_path), np.arange(6)
    together = Index.empty(9).place("a.pack", store.save("a.pack", clients, numbered(clients, 1)), clients)
    apart = Index.empty(9)
    for part in (ids(4, 0), ids(5, 3, 1), ids(2)):
        name = f"p{part[0]}.pack"
        apart = apart.place(name, store.save(name, part, numbered(part, 1)), part)
    assert records_digest(store, Index.empty(9)) == hashlib.sha256().hexdigest()
    expected = records_digest(store, together)
    assert records_digest(store, apart) == expected
    columns = {f"record/{name}": numbered(clients, 1)[name] for name in RECORD.names or ()}
    assert expected == hashlib.sha256(digest({"clients": clients, **columns}).encode()).hexdigest()
    moved = Index.empty(9).place("b.pack", store.save("b.pack", clients + 1, numbered(clients, 1)), clients + 1)
    assert records_digest(store, moved) != expected
    other = together.place("c.pack", store.save("c.pack", ids(3), numbered(ids(3), 2)), ids(3))
    assert records_digest(store, other) != expected
