"""Combinations of parts: axes generated over the registry, and few combinations that have every pair of choices.

A part that is registered joins by itself with its default settings; `SETTINGS` has those of whom the defaults do not
fit a federation of a few items.
"""

import itertools
import random
from dataclasses import fields
from typing import Any, get_args

from fedcl import config, registry
from fedcl.config import Scenario, StreamConfig
from fedcl.errors import ConfigError
from fedcl.groups import groups
from tests.federations import TINY

Overrides = dict[str, Any]  # by dotted key
Combination = dict[str, str]  # axis -> choice
Axes = dict[str, dict[str, Overrides]]  # axis -> choice -> overrides, the plain choice first
Pair = tuple[tuple[str, str], ...]  # as many (axis, choice) as are to meet, in order

METHODS = ("client method", "server method")  # what each of them can be depends on the other more than on all else
TRIES = 24
STREAMS = [{"start": 0, "tasks": [0, 1], "rounds": [1, 1]}, {"start": 1, "tasks": [1, 0], "rounds": [1, 1]}]
SETTINGS: dict[tuple[str, str], Overrides] = {
    ("schedules", "synchronous"): {"rounds_per_task": 1},
    ("schedules", "own"): {"rounds_per_task": 1, "start": 1},
    ("schedules", "explicit"): {"clients": STREAMS * 2},
    ("curricula", "episodes"): {"ways": 2, "examples": 4},
    ("client_methods", "prototypical"): {"shots": 2},
    ("optimizers", "adam"): {"keep": True},
    ("selections", "curriculum"): {"b": 1.0},
}
# Four clients with 12 items a task, two tasks of one round: every client changes its task once.
FIXED: Overrides = {
    "client.batch": 8, "client.epochs": 2, "client.memory.size": 6, "engine.cohort": 4, "checkpoint.seconds": 1000,
}  # fmt: skip


def _parts(kind: str, key: str) -> dict[str, Overrides]:
    """Return the override that chooses each part of a kind."""
    chooser = registry.chooser(kind)
    return {name: {key: {chooser: name, **SETTINGS.get((kind, name), {})}} for name in registry.names(kind)}


def _curricula() -> dict[str, Overrides]:
    """Return every curriculum with everything that its `score` can be."""
    found: dict[str, Overrides] = {}
    for name, choice in _parts("curricula", "client.curriculum").items():
        score = [each for each in fields(registry.find("curricula", name)) if each.name == "score"]
        scores = get_args(score[0].type) if score else ()
        found |= {f"{name} {each}": {**choice, "client.curriculum.score": each} for each in scores} or {name: choice}
    return found


def axes() -> Axes:
    """Return what can be chosen."""
    return {
        "client method": _parts("client_methods", "client.method"),
        "server method": _parts("server_methods", "server.method"),
        "curriculum": _curricula(),
        "oracle": {"none": {}, **{name: {"group": name} for name in groups("", {})}},
        "personal": {"nothing": {}, "head": {"model.personal": ["head"]}},
        "trace": {"none": {}, "3 steps": {"evaluate.trace": 3}},
        "schedule": _parts("schedules", "stream.schedule"),
        "time": {
            "rounds": {},
            "online": {"stream.schedule.online": True},
            "participations": {"stream.schedule.clock": "participations"},
        },
        "kind": {each: {"stream.kind": each} for each in get_args(StreamConfig.__annotations__["kind"])},
        "memory": _parts("memories", "client.memory"),
        "optimizer": _parts("optimizers", "client.optimizer"),
        "server optimizer": _parts("server_optimizers", "server.optimizer"),
        "selection": _parts("selections", "server.selection"),
        "weights": {each: {"server.weights": each} for each in ("uniform", "samples")},  # all methods take the first
        "stack": {"1": {"engine.stack": 1}, "4": {"engine.stack": 4}},
    }


def read(choices: Axes, combination: Combination) -> Scenario | str:
    """Return the scenario of a combination, or the sentence by which it is refused."""
    chosen = {key: value for axis in choices for key, value in choices[axis][combination[axis]].items()}
    try:
        return config.load(TINY, {**chosen, **FIXED})
    except ConfigError as error:
        return str(error)


def _drawn(choices: Axes, draws: random.Random, wild: int, fixed: Combination, partners: set[Pair]) -> Combination:
    """Draw a combination that has the fixed choices: so many axes at random and the others plain."""
    found = {axis: next(iter(each)) for axis, each in choices.items()}
    for axis in draws.sample(list(choices), wild):
        found[axis] = draws.choice(list(choices[axis]))
    found |= fixed
    known = [(axis, fixed[axis]) for axis in METHODS if axis in fixed] or [(METHODS[0], found[METHODS[0]])]
    if fitting := [dict(pair) for pair in sorted(partners) if set(known) <= set(pair)]:
        found |= draws.choice(fitting)
    return found


def covering(choices: Axes, strength: int, seed: int = 0) -> tuple[list[Combination], dict[Pair, str]]:
    """Return combinations that can be read and have every choice (1), or pair of choices (2), that any such one has.

    Returns:
        The combinations, and for pairs that none of `TRIES` has the sentence by which one with it was refused.
    """
    draws = random.Random(seed)
    partners = _readable(choices, METHODS)
    single = [(axis, choice) for axis, each in choices.items() for choice in each]
    wanted = [tuple(sorted(pair)) for pair in itertools.combinations(single, strength) if len(dict(pair)) == strength]
    covered, found, refused = set[Pair](), list[Combination](), dict[Pair, str]()
    for pair in wanted:
        if pair in covered:
            continue
        new, reason = list[Combination](), ""
        for number in range(TRIES):  # from wild to tame: what is refused at last is refused for the pair alone
            wild = len(choices) * (TRIES - number - 1) // (TRIES - 1)
            combination = _drawn(choices, draws, wild, dict(pair), partners)
            answer = read(choices, combination)
            if isinstance(answer, str):
                reason = answer
                continue
            new.append(combination)
            if len(new) == 3:
                break
        if new:
            found.append(max(new, key=lambda each: len(_pairs(each, strength) - covered)))
            covered |= _pairs(found[-1], strength)
        else:
            refused[pair] = reason
    return found, refused


def _readable(choices: Axes, two: tuple[str, str]) -> set[Pair]:
    """Return the pairs of choices of two axes that can be read where all else is plain."""
    plain = {axis: next(iter(each)) for axis, each in choices.items()}
    pairs = [tuple(zip(two, each, strict=True)) for each in itertools.product(*(choices[axis] for axis in two))]
    return {pair for pair in pairs if not isinstance(read(choices, {**plain, **dict(pair)}), str)}


def _pairs(combination: Combination, strength: int) -> set[Pair]:
    return set(itertools.combinations(sorted(combination.items()), strength))
