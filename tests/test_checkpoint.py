"""Checkpoints: round trip, every damage detected, falling back, and a writer killed at any moment."""

import multiprocessing
import os
import random
import signal
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from fedcl.packs import BrokenState
from fedcl.state import Index, PackStore
from server.checkpoint import Snapshot, kept, newest, path_of, prune, read, save

RECORD = np.dtype([("round", "<i8"), ("client", "<i8"), ("logits", "<f4", (40,))])
CLIENTS, COHORTS, SIZE = 24, 2, 4


def snapshot(round: int, value: float = 1.0) -> Snapshot:
    return Snapshot(round, {"w": torch.full((2, 3), value), "n": torch.tensor(round)}, {"position": round, "a": [0.1]})


def usable(_: Snapshot) -> None:
    """Accept every snapshot."""


def same(a: Snapshot, b: Snapshot) -> bool:
    return (
        (a.round, a.facts, a.tensors.keys()) == (b.round, b.facts, b.tensors.keys())
        and all(torch.equal(a.tensors[name], b.tensors[name]) for name in a.tensors)
        and all(a.tensors[name].dtype == b.tensors[name].dtype for name in a.tensors)
    )


torch_dtypes = st.sampled_from([torch.float32, torch.float64, torch.int64, torch.int32, torch.bool, torch.bfloat16])
tensors = st.builds(
    lambda shape, dtype: (torch.arange(int(np.prod(shape))).reshape(shape) % 7).to(dtype),
    st.lists(st.integers(0, 3), max_size=3),
    torch_dtypes,
)
facts = st.dictionaries(
    st.text(), st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)
names = st.text(st.characters(blacklist_categories=["Cs"]), min_size=1).filter(lambda name: name != "__metadata__")


@examples(max_examples=50, deadline=None)
@given(round=st.integers(0, 10**7), named=st.dictionaries(names, tensors, max_size=4), facts=facts)
def test_a_checkpoint_gives_back_what_was_saved(
    tmp_path_factory: pytest.TempPathFactory,
    round: int,
    named: dict[str, torch.Tensor],
    facts: dict[str, Any],
) -> None:
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    saved = Snapshot(round, named, facts)
    size = save(folder, saved)
    assert size == path_of(folder, round).stat().st_size
    found = newest(folder, usable)
    assert found is not None
    assert same(found, saved)


def test_views_of_one_flat_vector_are_saved_as_they_look(tmp_path: Path) -> None:
    flat = torch.arange(12.0, requires_grad=True)
    views = {"a": flat[:6].view(2, 3), "b": flat[6:].view(2, 3).T, "all": flat}
    save(tmp_path, Snapshot(3, views, {}))
    found = read(path_of(tmp_path, 3)).tensors
    assert found["b"].tolist() == [[6, 9], [7, 10], [8, 11]]
    assert torch.equal(found["all"], flat.detach())
    assert not found["all"].requires_grad


def test_every_flipped_bit_of_a_checkpoint_is_detected(tmp_path: Path) -> None:
    save(tmp_path, snapshot(7))
    path, rng = path_of(tmp_path, 7), np.random.default_rng(0)
    whole = path.read_bytes()
    for position in range(len(whole)):
        data = bytearray(whole)
        data[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
        with pytest.raises(BrokenState, match=r"r000007\.safetensors"):
            read(path)
    path.write_bytes(whole)
    assert same(read(path), snapshot(7))


def test_truncated_empty_longer_and_renamed_checkpoints_are_refused(tmp_path: Path) -> None:
    save(tmp_path, snapshot(7))
    path = path_of(tmp_path, 7)
    whole = path.read_bytes()
    for data in [*(whole[:n] for n in range(0, len(whole), 3)), whole + b"\0"]:
        path.write_bytes(data)
        with pytest.raises(BrokenState, match=r"r000007\.safetensors"):
            read(path)
    path_of(tmp_path, 8).write_bytes(whole)
    with pytest.raises(BrokenState, match="holds the checkpoint of round 7"):
        read(path_of(tmp_path, 8))


def test_a_damaged_checkpoint_is_put_aside_and_the_one_before_is_used(tmp_path: Path) -> None:
    for round in (8, 9, 10):
        save(tmp_path, snapshot(round))
    path_of(tmp_path, 10).write_bytes(path_of(tmp_path, 10).read_bytes()[:-1])
    warned: list[str] = []

    def packs_of_nine_are_lost(found: Snapshot) -> None:
        if found.round == 9:
            raise BrokenState("r000009-c00000.pack is missing")

    found = newest(tmp_path, packs_of_nine_are_lost, warned.append)
    assert found is not None
    assert same(found, snapshot(8))
    assert kept(tmp_path) == [path_of(tmp_path, 8)]
    assert sorted(path.name for path in tmp_path.glob("*.broken")) == [
        "r000009.safetensors.broken",
        "r000010.safetensors.broken",
    ]
    assert ["r000010.safetensors refused" in warned[0], "r000009-c00000.pack is missing" in warned[1]] == [True, True]
    save(tmp_path, snapshot(9, value=2.0))  # the redone round takes its place
    again = newest(tmp_path, usable, warned.append)
    assert again is not None
    assert same(again, snapshot(9, value=2.0))
    assert len(warned) == 2


def test_without_a_checkpoint_there_is_none(tmp_path: Path) -> None:
    assert newest(tmp_path / "absent", usable) is None
    assert kept(tmp_path / "absent") == []
    save(tmp_path, snapshot(1))
    path_of(tmp_path, 1).write_bytes(b"")
    with pytest.warns(UserWarning, match="refused and kept as r000001"):
        assert newest(tmp_path, usable) is None


def test_a_mistake_that_is_no_damage_leaves_the_checkpoint_in_place(tmp_path: Path) -> None:
    save(tmp_path, snapshot(1))

    def other_scenario(_: Snapshot) -> None:
        raise KeyError("config_hash")

    with pytest.raises(KeyError):
        newest(tmp_path, other_scenario)
    assert kept(tmp_path) == [path_of(tmp_path, 1)]


def test_prune_keeps_the_newest_by_number_and_clears_temporaries(tmp_path: Path) -> None:
    for round in (999_999, 2, 1_000_000, 10):
        save(tmp_path, snapshot(round))
    (tmp_path / ".r000011.safetensors.5-ab.tmp").write_bytes(b"half")
    (tmp_path / "r000012.safetensors.broken").write_bytes(b"aside")
    assert [path.name for path in kept(tmp_path)] == [
        f"r{n}.safetensors" for n in ("000002", "000010", "999999", "1000000")
    ]
    assert len(prune(tmp_path, 2)) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "r000012.safetensors.broken",
        "r1000000.safetensors",
        "r999999.safetensors",
    ]
    with pytest.raises(ValueError, match="keep = 0"):
        prune(tmp_path, 0)


def test_nothing_is_committed_that_points_to_a_missing_pack_or_cannot_be_said_in_json(tmp_path: Path) -> None:
    save(tmp_path, snapshot(1))
    with pytest.raises(BrokenState, match=r"gone\.pack is missing"):
        save(tmp_path, snapshot(2), [tmp_path / "gone.pack"])
    with pytest.raises(ValueError, match="loss = nan"):
        save(tmp_path, Snapshot(2, {}, {"loss": float("nan")}))
    assert list(tmp_path.iterdir()) == [path_of(tmp_path, 1)]


# --- a run in small: what the server does in a round, so that it can be killed


def _who(round: int, cohort: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    return (np.arange(SIZE) * 5 + round * 7 + cohort * 3 * SIZE) % CLIENTS


def _round(store: PackStore, index: Index, round: int) -> tuple[Index, list[Path]]:
    """Let two cohorts of a round write their records."""
    packs = []
    for cohort in range(COHORTS):
        clients, name = _who(round, cohort), f"r{round:06d}-c{cohort:05d}.pack"
        records = np.zeros(SIZE, RECORD)
        records["round"], records["client"] = round, clients
        index = index.place(name, store.save(name, clients, records), clients)
        packs.append(store.path(name))
    return index, packs


def _restored(folder: Path, warned: list[str]) -> tuple[int, Index]:
    store = PackStore(folder / "packs")

    def whole(found: Snapshot) -> None:
        store.check(Index.restore(found.tensors, found.facts))

    found = newest(folder / "checkpoints", whole, warned.append)
    return (found.round, Index.restore(found.tensors, found.facts)) if found else (0, Index.empty(CLIENTS))


def run_forever(folder: Path) -> None:
    """Resume, then run rounds with checkpoint, pruning, compaction and collection until killed."""
    warned: list[str] = []
    round, index = _restored(folder, warned)
    store = PackStore(folder / "packs")
    older = [read(path) for path in kept(folder / "checkpoints")]
    indices = [Index.restore(each.tensors, each.facts) for each in older]
    while not warned:
        round += 1
        before = set(index.packs)
        index, packs = _round(store, index, round)
        index = store.compact(index, f"r{round:06d}-compact.pack", 0.6)
        packs = [store.path(name) for name in index.packs if name not in before]
        save(folder / "checkpoints", Snapshot(round, index.tensors(), index.facts()), packs)
        prune(folder / "checkpoints", 2)
        indices = [*indices, index][-2:]
        store.collect(indices)


def expected_rounds(last: int) -> dict[int, int]:
    """Return the round of each client's newest record after round `last`."""
    return {int(client): r for r in range(1, last + 1) for cohort in range(COHORTS) for client in _who(r, cohort)}


def test_a_writer_killed_at_any_moment_leaves_a_whole_newest_checkpoint(tmp_path: Path) -> None:
    context, rng = multiprocessing.get_context("forkserver"), random.Random(0)
    context.set_forkserver_preload(["server.checkpoint", "fedcl.state"])
    store, warned, reached = PackStore(tmp_path / "packs"), list[str](), [0]
    for _ in range(8):
        child = context.Process(target=run_forever, args=(tmp_path,))
        child.start()
        assert child.pid is not None
        deadline = time.monotonic() + 30
        while not path_of(tmp_path / "checkpoints", reached[-1] + 2).exists() and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.03))
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        last, index = _restored(tmp_path, warned)
        visited = index.visited()
        found = store.load(visited, *index.locate(visited), np.zeros((), RECORD))
        assert found["client"].tolist() == visited.tolist()
        assert dict(zip(visited.tolist(), found["round"].tolist(), strict=True)) == expected_rounds(last)
        for path in kept(tmp_path / "checkpoints"):  # the one to fall back to is whole as well
            store.check(Index.restore(read(path).tensors, read(path).facts))
        reached.append(last)
    assert warned == []
    assert all(before < after for before, after in pairwise(reached))
    assert len(list(store.folder.glob("*.pack"))) < 3 * CLIENTS


def test_collection_never_deletes_what_a_kept_checkpoint_needs(tmp_path: Path) -> None:
    """Falling back by one checkpoint and redoing the rounds gives the same packs and records."""
    store, index, indices = PackStore(tmp_path / "packs"), Index.empty(CLIENTS), list[Index]()
    for round in range(1, 30):
        index, packs = _round(store, index, round)
        index = index.trimmed()
        save(tmp_path / "checkpoints", Snapshot(round, index.tensors(), index.facts()), packs)
        prune(tmp_path / "checkpoints", 2)
        indices = [*indices, index][-2:]
        store.collect(indices)
    expected = {path.name: path.read_bytes() for path in store.folder.iterdir()}
    victim = store.path(index.packs[-1])
    victim.write_bytes(victim.read_bytes()[:-1])
    warned: list[str] = []
    last, index = _restored(tmp_path, warned)
    assert (last, len(warned)) == (28, 1)
    assert victim.name in warned[0]
    _round(store, index, 29)
    assert {path.name: path.read_bytes() for path in store.folder.iterdir()} == expected
