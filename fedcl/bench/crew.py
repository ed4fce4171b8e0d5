"""A round in one process or shared out among several: weights out, one weighted sum of updates back from each.

The least that a simulation can do: no journal, no records, no failures; what is left is the training.
"""

import importlib
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedcl.bench.spec import Spec, Told, Watch
from fedcl.bench.work import Work

Flat = NDArray[np.float32]
# round (from 0), weights (P,) -> sum (P,) over a share's clients of n (their weights - weights)
Share = Callable[[int, Flat], Flat]
STOP = b""


def flat(weights: dict[str, Any]) -> Flat:
    """Return the parameters one behind another (P,)."""
    return np.concatenate([np.asarray(each, np.float32).ravel() for each in weights.values()])


def named(vector: Flat, like: dict[str, Any]) -> dict[str, Any]:
    """Return views of a flat vector by the names and shapes of `like`."""
    ends = np.cumsum([each.size for each in like.values()])[:-1]
    parts = zip(like.items(), np.split(vector, ends), strict=True)
    return {name: part.reshape(each.shape) for (name, each), part in parts}


def made(reference: str, spec: Spec, part: int, parts: int) -> Share:
    """Return one share's training, made by the function that `reference` names."""
    module, _, name = reference.partition(":")
    share: Share = getattr(importlib.import_module(module), name)(spec, part, parts)
    return share


def _serve(line: Connection, reference: str, spec: Spec, part: int, parts: int) -> None:
    """Train a share of each round in a process of its own."""
    torch.set_num_threads(1)
    share, number = made(reference, spec, part, parts), 0
    line.send_bytes(b"ready")
    while (message := line.recv_bytes()) != STOP:
        line.send_bytes(share(number, np.frombuffer(message, np.float32).copy()).tobytes())
        number += 1


def run_alone(reference: str, spec: Spec, watch: Watch) -> Told:
    """Train all rounds in this process."""
    share = made(reference, spec, 0, 1)
    return _rounds(spec.loaded(), watch, share)


def run_shared(reference: str, spec: Spec, watch: Watch) -> Told:
    """Train all rounds in `spec.workers` processes."""
    context, work, crew = get_context("spawn"), spec.loaded(), []
    for part in range(spec.workers):
        here, there = context.Pipe()
        process = context.Process(target=_serve, args=(there, reference, spec, part, spec.workers), daemon=True)
        process.start()
        crew.append((process, here))
    for _, line in crew:
        line.recv_bytes()

    def everyone(number: int, weights: Flat) -> Flat:
        for _, line in crew:
            line.send_bytes(weights.tobytes())
        total: Flat = np.sum([np.frombuffer(line.recv_bytes(), np.float32) for _, line in crew], axis=0)
        return total

    told = _rounds(work, watch, everyone)
    for process, line in crew:
        line.send_bytes(STOP)
        process.join()
    return told


def _rounds(work: Work, watch: Watch, train: Share) -> Told:
    weights = flat(work.weights)
    watch.begin()
    for number, visits in enumerate(work.rounds):
        weights = weights + train(number, weights) / np.float32(sum(visit.n for visit in visits))
        watch.mark()
    return Told(updates=work.updates, weights=named(weights, work.weights))
