"""Comparisons: first do both come to the same weights, then pair after pair, fedcl and the other in turn.

A figure is a ratio of two processes that ran one after the other; a machine that slows down slows both.
"""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from fedcl.bench import workloads
from fedcl.bench.launch import launch
from fedcl.bench.machine import machine
from fedcl.bench.spec import Spec
from fedcl.bench.work import Work, work_of
from fedcl.bench.workloads import AGAINST, ALONE, PLAIN, POPULATION, WARM
from fedcl.distribution import install, installed
from fedcl.engine.choice import workers
from fedcl.errors import ConfigError, FederationError, nearest

# Rounds after which weights must agree: enough to see both select, shuffle and add up; training makes rounding grow.
CHECKED = 2
TOLERANCE = 1e-4
Told = dict[str, Any]
Listener = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One comparison."""

    workload: str
    clients: int
    registered: int
    rounds: int
    against: str
    overrides: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """The case in a few words."""
        of = f" of {self.registered}" if self.registered != self.clients else ""
        return f"{self.workload}, {self.clients}{of} clients a round, against {self.against}"

    @property
    def same_steps(self) -> bool:
        """Whether both do the same; a method and fedcl without it do not."""
        return self.workload not in PLAIN


def cases(
    names: Sequence[str], clients: Sequence[int], against: Sequence[str], rounds: int | None, overrides: Iterable[str]
) -> list[Case]:
    """Return the comparisons that are asked for.

    Args:
        names: workloads; none: all that have every one of `against`.
        against: whom to compare with; none: all that a workload has and that are installed.

    Raises:
        ConfigError: a name is unknown, a pair is impossible, a package is missing, or a number is too small.
    """
    for name in against:
        _checked(name)
    names = [workloads.checked(name) for name in names] or [
        name for name, known in AGAINST.items() if set(against) <= set(known) and name not in ALONE
    ]
    if not names:
        raise ConfigError(f"--against {','.join(against)}: no workload has all of them; {_possible()}")
    if rounds is not None and rounds <= WARM:
        raise ConfigError(f"--rounds {rounds}: must be more than the {WARM} warm ones at the beginning")
    if min(clients, default=0) < 2:
        raise ConfigError(f"--clients {','.join(map(str, clients))}: must be numbers of at least 2")
    found = []
    for name in names:
        for asked, registered in [POPULATION] if name == "registered" else [(n, n) for n in clients]:
            case = Case(
                workload=name, clients=asked, registered=registered, against="", overrides=tuple(overrides),
                rounds=rounds or workloads.rounds_of(name, asked),
            )  # fmt: skip
            found += [replace(case, against=_fitting(name, other)) for other in against or rivals(name)]
    return found


def rivals(workload: str) -> list[str]:
    """Return whom a workload can be compared with on this machine."""
    return [name for name in AGAINST[workload] if name != "pfl" or installed("pfl")]


def _checked(name: str) -> None:
    known = dict.fromkeys(each for every in AGAINST.values() for each in every)
    if name not in known:
        raise ConfigError(f"--against {name!r}: unknown{nearest(name, known)}")
    if name == "pfl" and installed("pfl") is None:
        raise ConfigError(f"--against pfl: the package is not installed; {install('bench')}")


def _possible() -> str:
    return "; ".join(f"{name}: {', '.join(known)}" for name, known in AGAINST.items())


def _fitting(workload: str, against: str) -> str:
    if against not in AGAINST[workload]:
        raise ConfigError(f"--workload {workload} --against {against}: not compared; {_possible()}")
    _checked(against)
    return against


def bench(asked: Sequence[Case], *, pairs: int, note: Listener, done: Callable[[dict[str, Any]], None]) -> None:
    """Make the comparisons; `done` is told what has been found after each, all of it.

    Raises:
        ConfigError: pairs is less than 1.
        FederationError: a process has failed, or two do not come to the same weights.
    """
    if pairs < 1:
        raise ConfigError(f"--pairs {pairs}: must be at least 1")
    found: dict[str, Any] = {"machine": machine(), "results": []}
    for case in asked:
        found["results"].append(compare(case, pairs, note))
        done(found)


def compare(case: Case, pairs: int, note: Listener) -> dict[str, Any]:
    """Return the figures of one comparison.

    Raises:
        FederationError: a process has failed, or both do not come to the same weights.
    """
    with TemporaryDirectory(prefix="fedcl-bench-", ignore_cleanup_errors=True) as folder:
        difference = None
        if case.same_steps:
            note(f"{case.title}: do both do the same?")
            short = replace(case, rounds=CHECKED)
            difference = agreement(case, *_pair(short, _prepared(short, Path(folder)), Path(folder) / "check"))
        work, told = _prepared(case, Path(folder)), []
        for pair in range(pairs):
            note(f"{case.title}: pair {pair + 1} of {pairs}")
            told.append(_pair(case, work, Path(folder) / f"pair{pair}"))
    return result(case, work, told) | {"max_weight_difference": difference}


def _prepared(case: Case, folder: Path) -> Work:
    """Return the work of a case and write it where its processes find it."""
    work = work_of(workloads.scenario(case.workload, case.clients, case.registered, case.rounds, case.overrides))
    work.save(folder / "work.npz")
    return work


def _pair(case: Case, work: Work, folder: Path) -> tuple[Told, Told]:
    """Run fedcl, then the other; each must have aggregated every update of every round."""
    told = []
    scenario = workloads.scenario(case.workload, case.clients, case.registered, case.rounds, case.overrides)
    for name in ("fedcl", case.against):
        spec = Spec(
            workload=case.workload, clients=case.clients, registered=case.registered, rounds=case.rounds,
            workers=workers(scenario)[0], folder=str(folder / name), work=str(folder.parent / "work.npz"),
            overrides=list(case.overrides),
        )  # fmt: skip
        told.append(launch(name, spec))
        if told[-1]["updates"] != work.updates:
            raise FederationError(
                f"{case.title}: {name} aggregated {sum(told[-1]['updates'])} client updates of {sum(work.updates)}"
            )
    return told[0], told[1]


def agreement(case: Case, ours: Told, theirs: Told) -> float:
    """Return the largest difference of a final weight.

    Raises:
        FederationError: it is more than rounding.
    """
    with np.load(ours["weights"]) as one, np.load(theirs["weights"]) as other:
        difference = max(float(np.abs(one[name] - other[name]).max()) for name in one.files)
    if not difference <= TOLERANCE:
        raise FederationError(
            f"{case.title}: final weights differ by {difference:.2g} after {CHECKED} rounds, more than {TOLERANCE}, "
            "so one of them does something else and nothing is timed"
        )
    return difference


def result(case: Case, work: Work, told: Sequence[tuple[Told, Told]]) -> dict[str, Any]:
    """Return the figures of some pairs: per pair the ratio of what both get done in a second, warm rounds left out.

    A method that replays is measured by the samples that go through its model, replayed ones among them; one that
    measures something at the end of tasks by the rounds between, what the others take stands beside it.
    """
    ordinary, ending = workloads.counted(case.workload, case.rounds)
    updates, samples = (sum(amounts[number] for number in ordinary) for amounts in (work.updates, work.samples))
    fresh = sum(visit.n for number in ordinary for visit in work.rounds[number])  # whoever is plain replays nothing
    amounts = {"updates": (updates, updates), "samples": (samples, fresh)}
    unit = "samples" if case.workload == "derpp" else "updates"
    seconds = [tuple(sum(each["seconds"][number] for number in ordinary) for each in pair) for pair in told]
    ratios = [theirs / ours * amounts[unit][0] / amounts[unit][1] for ours, theirs in seconds]

    def both(figures: Callable[[int], list[float]]) -> dict[str, Any]:
        return {"fedcl": spread(figures(0)), "other": spread(figures(1))}

    def rates(amount: tuple[int, int]) -> dict[str, Any]:
        return both(lambda who: [amount[who] / pair[who] for pair in seconds])

    return {
        "workload": case.workload, "clients": case.clients, "registered": case.registered, "rounds": case.rounds,
        "against": case.against, "pairs": len(told), "unit": unit, "ratio": spread(ratios),
        **{f"{name}_per_second": rates(amount) for name, amount in amounts.items()},
        "start_seconds": both(lambda who: [pair[who]["start_seconds"] for pair in told]),
        "first_round_seconds": both(lambda who: [pair[who]["first_round_seconds"] for pair in told]),
        "task_end_seconds": both(
            lambda who: [statistics.median(pair[who]["seconds"][number] for number in ending) for pair in told]
        )
        if ending
        else None,
        "memory": {name: memory([pair[who]["memory"] for pair in told]) for who, name in enumerate(("fedcl", "other"))},
    }  # fmt: skip


def spread(figures: Sequence[float]) -> dict[str, float]:
    """Return the smallest, the median and the largest."""
    return {"min": min(figures), "median": statistics.median(figures), "max": max(figures)}


def memory(told: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Return the largest peaks, in bytes: of the process itself, of one below it, and of all together."""
    return {
        "process": max(each["process"] for each in told),
        "below": max((max(each["below"], default=0) for each in told), default=0),
        "together": max(each["process"] + sum(each["below"]) for each in told),
    }
