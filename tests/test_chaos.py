"""The end of a round, whatever happens in it: kills at any line, power cuts at any step, damaged files, a full disk."""

import os
import random
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from fedcl import api, rundir
from fedcl.config import Scenario
from fedcl.digest import digest
from fedcl.engine import flower
from fedcl.engine.choice import resolve
from fedcl.errors import FederationError
from fedcl.journal import Journal
from fedcl.orders import Order
from fedcl.results import HASHES
from fedcl.state import PackStore, records_digest
from server import checkpoint
from server.federation import Federation
from server.state import State, state_digest
from tests.disk import Recorder, Step, cuts, restored
from tests.draws import seeded
from tests.federations import journal, tiny
from tests.killing import Killer, Watched
from tests.nodes import Nodes, fine
from tests.test_versions import newest, sit

CLIENTS, ROUNDS = 4, 6
METHODS = {
    "derpp": (
        "client.method=derpp", "client.optimizer={name: sgd, lr: 0.05, momentum: 0.5, keep: true}",
        "server.optimizer={name: fedavgm, lr: 0.5, momentum: 0.5}",
    ),
    "scaffold": ("client.method=scaffold", "server.method=scaffold", "server.weights=uniform"),
}  # fmt: skip


def federation(method: str) -> Scenario:
    """Six rounds over two tasks, three of four clients a round, a checkpoint every round, three of them kept."""
    few = ("stream.schedule.rounds_per_task=3", "server.clients_per_round=3", "server.min_clients=3")
    scenario, _ = resolve(tiny(*METHODS[method], *few, "checkpoint={seconds: 0, keep: 3}"))
    return scenario


@dataclass(frozen=True)
class Ended:
    """All that a run leaves behind that may not depend on how it went."""

    hashes: tuple[str, ...]
    events: list[Any]
    records: tuple[bytes, ...]  # of each client, where the nodes keep them

    @staticmethod
    def of(folder: Path, grid: Nodes, scenario: Scenario, packs: bool) -> "Ended":
        results, records = api.load(folder).results, []
        if not packs:
            accepted = newest(folder, scenario).accepted.tolist()
            records = [grid.place(client).read(client, round) for client, round in enumerate(accepted) if round]
        return Ended(tuple(results[name] for name in HASHES), journal(folder), tuple(records))


# Kills


def sitting(folder: Path, grid: Nodes, killer: Killer, scenario: Scenario, packs: bool) -> str:
    """Go on with a run until it ends or is killed."""
    token = rundir.LISTENERS.set((killer.told,))
    try:
        return sit(folder, grid, scenario, packs=packs)
    finally:
        rundir.LISTENERS.reset(token)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # who is killed leaves files open
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("packs", [True, False], ids=["packs", "nodes"])
def test_killed_at_any_line_between_replies_and_commit_it_ends_like_one_left_alone(
    packs: bool, method: str, tmp_path: Path
) -> None:
    """Fifty kills at random lines of the server, its journal and its packs, each time resumed: the same end to the bit.

    Half of them at the n-th line that runs, half at one of all lines that do, however rarely. Runs are killed again and
    again until they end; then another begins. Some rounds are repeated and some are not: there are kills before and
    after the checkpoint has its name.
    """
    flower.identify()
    scenario, draws, killer, kills = federation(method), seeded(), Killer(), int(os.environ.get("FEDCL_KILLS", "50"))
    grid = Watched(killer, 2, tmp_path / "nodes")
    assert sitting(tmp_path / "straight", grid, killer, scenario, packs) == "finished"
    straight, runs, deaths = Ended.of(tmp_path / "straight", grid, scenario, packs), 0, 0
    assert len(straight.records) == (0 if packs else CLIENTS)
    assert killer.most > 200
    assert len(killer.seen) > 100
    while deaths < kills:
        runs, ended = runs + 1, ""
        folder, grid = tmp_path / f"run-{runs}", Watched(killer, 2, tmp_path / f"nodes-{runs}")
        while ended != "finished":
            aims = [draws.randint(1, killer.most), draws.choice(sorted(killer.seen))]
            killer.aim(draws.choice(aims) if deaths < kills else 0)
            ended = sitting(folder, grid, killer, scenario, packs)
            deaths += ended == "died"
        assert Ended.of(folder, grid, scenario, packs) == straight
    print(runs, killer.most, len(killer.seen), Counter(killer.places).most_common(5))
    assert len(killer.places) == kills
    assert len(set(killer.places)) > kills // 3


# Power cuts


@dataclass
class Told:
    """What a run was at each commit, and when each was done."""

    federation: Any = None
    states: dict[int, tuple[str, ...]] | None = None  # round -> hashes
    done: list[tuple[int, int]] | None = None  # steps by then, round

    def rounds(self, steps: int) -> set[int]:
        """Return the rounds to which a cut after so many steps may lead back: the last committed, or the next."""
        last = max((round for by, round in self.done or () if by <= steps), default=0)
        return {last, last + 1}


def fingerprint(state: State, packs: PackStore) -> tuple[str, ...]:
    return digest(state.weights), state_digest(state), records_digest(packs, state.index)


def recorded(folder: Path, scenario: Scenario, recorder: Recorder, patch: pytest.MonkeyPatch) -> Told:
    """Run a scenario with its records in packs, from a directory that is on the disk, and note all it does there."""
    told, commit = Told(states={}, done=[]), Federation.commit

    def noted(self: Federation, state: State, *, now: bool = False) -> State:
        after = commit(self, state, now=now)
        if self.packs and told.states is not None and told.done is not None and state.round not in told.states:
            told.federation, told.states[state.round] = self, fingerprint(after, self.packs)
            told.done.append((len(recorder.steps), state.round))
        return after

    rundir.create(scenario, folder)
    with patch.context() as inside:
        inside.setattr(Federation, "commit", noted)
        recorder.install(inside)
        assert sit(folder, Nodes(1), scenario, packs=True) == "finished"
    return told


def recovered(told: Told, folder: Path) -> tuple[int, tuple[str, ...]]:
    """Return the round with which a run directory goes on, and its hashes."""
    packs = PackStore(folder / "state")
    with Journal(folder) as events:
        again = replace(told.federation, journal=events, packs=packs, kept=[], synced=set())
        state = again.restore()
        rounds = [each["round"] for each in events.events() if each["event"] == "round"]
        assert rounds == list(range(1, (state.round if state else 0) + 1))
    return (state.round, fingerprint(state, packs)) if state else (0, ())


def test_a_power_cut_at_any_step_leaves_the_last_committed_round_or_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every prefix of what a run does to its disk, with none, all and some of what was not forced there.

    Recovery finds a whole round with all its records, refuses no checkpoint, and a run that has returned from a commit
    never falls back behind it. Some of the disks are run to their end.
    """
    flower.identify()
    scenario, recorder, draws = federation("scaffold"), Recorder(tmp_path / "run"), seeded()
    told = recorded(tmp_path / "run", scenario, recorder, monkeypatch)
    ends, found = draws.sample(range(len(recorder.steps)), 3), Counter[int]()
    config = (tmp_path / "run" / "config.yaml").read_bytes()
    for number, (n, files, folders) in enumerate(cuts(recorder.steps, tmp_path / "run", draws, 2)):
        folder = tmp_path / f"cut-{number}"
        restored(files, folders, tmp_path / "run", folder)
        round, hashes = recovered(told, folder)
        assert round in told.rounds(n), f"after {n} steps: {recorder.steps[n - 1]}"
        assert hashes == (told.states or {}).get(round, ())
        assert not list(folder.rglob("*.broken"))
        assert not (folder / "error.log").exists()
        found[round] += 1
        if n in ends and number % 4 == 3:
            (folder / "config.yaml").write_bytes(config)
            assert sit(folder, Nodes(1), scenario, packs=True) == "finished"
            assert api.load(folder).results["weights_sha256"] == api.load(tmp_path / "run").results["weights_sha256"]
            assert journal(folder) == journal(tmp_path / "run")
    print(len(recorder.steps), found)
    assert set(found) == set(range(ROUNDS + 1))


@pytest.mark.parametrize("forgotten", ["r000003.safetensors", "checkpoints", "state", "r000003-c00000.pack"])
def test_what_is_not_forced_onto_the_disk_is_missed(
    forgotten: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same disks without the fsyncs of one file or folder: some cut is found that loses a committed round."""
    flower.identify()
    scenario, recorder = federation("derpp"), Recorder(tmp_path / "run")
    told = recorded(tmp_path / "run", scenario, recorder, monkeypatch)

    def heeded(step: Step) -> bool:
        return step.what != "sync" or forgotten not in Path(step.path).name

    steps = [step if heeded(step) else replace(step, what="nothing") for step in recorder.steps]
    survived = []
    for number, (n, files, folders) in enumerate(cuts(steps, tmp_path / "run", random.Random(0), 0)):
        folder = tmp_path / f"cut-{number}"
        restored(files, folders, tmp_path / "run", folder)
        survived.append(survives(told, folder, n))
    assert 0 < survived.count(False) < len(survived)


def survives(told: Told, folder: Path, steps: int) -> bool:
    """Return whether a run directory goes on with a round that it may go on with."""
    with suppress(FederationError):
        return recovered(told, folder)[0] in told.rounds(steps)
    return False


# Damaged checkpoints


def flipped(data: bytes, draws: random.Random) -> bytes:
    place = draws.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << draws.randrange(8)]) + data[place + 1 :]


def truncated(data: bytes, draws: random.Random) -> bytes:
    return data[: draws.randrange(len(data))]


def emptied(data: bytes, draws: random.Random) -> bytes:
    return b""


@pytest.mark.parametrize("damage", [flipped, truncated, emptied])
@pytest.mark.parametrize("packs", [True, False], ids=["packs", "nodes"])
def test_two_damaged_checkpoints_of_three_are_put_aside(
    packs: bool, damage: Callable[[bytes, random.Random], bytes], tmp_path: Path
) -> None:
    """The server falls back two rounds, its clients with it, and the run ends like one left alone; so without any."""
    flower.identify()
    scenario, draws = federation("scaffold"), seeded()
    ends = []
    for name, spoilt in (("straight", 0), ("two", 2), ("all", 3)):
        grid, folder = Nodes(CLIENTS, state=tmp_path / f"nodes of {name}"), tmp_path / name
        grid.fate = dies_in(5) if spoilt else fine
        assert sit(folder, grid, scenario, packs=packs) == ("died" if spoilt else "finished")
        for path in checkpoint.kept(folder / "checkpoints")[3 - spoilt :] if spoilt else []:
            path.write_bytes(damage(path.read_bytes(), draws))
        grid.fate = fine
        assert sit(folder, grid, scenario, packs=packs) == "finished"
        assert len(list((folder / "checkpoints").glob("*.broken"))) == spoilt
        ends.append(Ended.of(folder, grid, scenario, packs))
    assert ends[1:] == ends[:1] * 2


def dies_in(round: int) -> Callable[[Order], str]:
    return lambda order: "dies" if order.round == round else "ok"


# A full disk


@pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("freed", [False, True], ids=["stays full", "full once"])
def test_a_full_disk_is_told_in_one_sentence_and_the_run_goes_on_from_there(
    freed: bool, every: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No space for one step of round 3, whichever: the run fails with a sentence; resumed, it ends like one left alone.

    Where it is a client's record for which there is no space, the sentence is that too few clients answered.
    """
    flower.identify()
    scenario = federation("scaffold")
    recorder = Recorder(tmp_path / "run-0")
    told = recorded(tmp_path / "run-0", scenario, recorder, monkeypatch)
    (first, _), (last, _) = (told.done or [])[1:3]
    straight = Ended.of(tmp_path / "run-0", Nodes(1), scenario, packs=True)
    needing = [n for n in range(first, last) if takes_space(recorder.steps[n])]
    assert len(needing) >= 10
    for n in needing[::every]:
        folder, noting = tmp_path / f"run-{n}", Recorder(tmp_path / f"run-{n}")
        rundir.create(scenario, folder)

        def full(step: Step, n: int = n, recorder: Recorder = noting) -> bool:
            count = len(recorder.steps)
            return takes_space(step) and (count >= n if not freed else count == n and recorder.once())

        noting.full = full
        with monkeypatch.context() as inside:
            noting.install(inside)
            with pytest.raises(
                FederationError, match=r"(No space left on device|clients answered).* goes on from the last"
            ) as failed:
                run_once(folder, scenario)
        assert "\n" not in str(failed.value)
        assert sit(folder, Nodes(1), scenario, packs=True) == "finished"
        assert Ended.of(folder, Nodes(1), scenario, packs=True) == straight


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Yield what makes a disk of so many bytes, or gives it that size if it is there."""
    disk = tmp_path / "disk"

    def sized(size: int) -> Path:
        again = "remount," if disk.exists() else ""
        disk.mkdir(exist_ok=True)
        made = ["mount", "-t", "tmpfs", "-o", f"{again}size={size}", "tmpfs", str(disk)]
        done = subprocess.run(made, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"a small tmpfs cannot be mounted here: {done.stderr.strip()}")
        return disk

    yield sized
    subprocess.run(["umount", str(disk)], capture_output=True)


@pytest.mark.skipif(not shutil.which("mount"), reason="a small tmpfs needs the command mount")
@pytest.mark.parametrize("share", [0.5, 0.7, 0.9])
def test_a_small_disk_fills_up_and_is_made_larger(
    share: float, small_disk: Callable[[int], Path], tmp_path: Path
) -> None:
    """A real disk with room for a share of the run: it fails with a sentence, and goes on once there is more room."""
    scenario = federation("derpp")
    flower.identify()
    rundir.create(scenario, tmp_path / "run")
    run_once(tmp_path / "run", scenario)
    straight = Ended.of(tmp_path / "run", Nodes(1), scenario, packs=True)
    pages = sum(-(-path.stat().st_size // 4096) for path in (tmp_path / "run").rglob("*") if path.is_file())
    folder = small_disk(4096 * int(share * pages)) / "run"
    rundir.create(scenario, folder)
    with pytest.raises(FederationError, match=r"(No space left on device|clients answered).* goes on from the last"):
        run_once(folder, scenario)
    small_disk(1 << 26)
    assert sit(folder, Nodes(1), scenario, packs=True) == "finished"
    assert Ended.of(folder, Nodes(1), scenario, packs=True) == straight


def takes_space(step: Step) -> bool:
    return step.what in ("create", "write", "sync")


def run_once(folder: Path, scenario: Scenario) -> None:
    """Run a federation on nodes in this process; whatever it raises is raised."""
    from server.app import app

    app(Nodes(1), flower.context({"directory": str(folder), "state": str(folder / "state")}, {}))
