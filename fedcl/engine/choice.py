"""What "auto" stands for: deterministic rules, settled before the configuration is hashed.

A run never times itself into another result.
"""

import math
from dataclasses import replace
from typing import Literal

from torch import nn

import fedcl.models
from fedcl.config import Scenario
from fedcl.errors import ConfigError
from fedcl.machine import cores
from fedcl.models.work import multiplications
from fedcl.streams import Stream
from fedcl.world import as_text, world

# Multiplications of a client's step and parameters up to which a stack pays on a CPU; measured: docs/performance.md.
STACKED_WORK, STACKED_PARAMETERS = 36_000_000, 1_100_000
STACK = 64  # clients: the work around a step is small by then
# The same of all clients in a stack: bounds what a step keeps in memory, and what it moves through the caches.
WORK, PARAMETERS = 256_000_000, 4_000_000
COHORTS, COHORTS_ALONE = 10, 32  # that a round is cut into: stacked clients are small, others are worth a worker each
LEAST = 8  # clients of a stack, where a round has work for many workers: most of what stacking gains
MOST_STACKS = 16  # of a cohort: what is lost with a worker
# Clients of a round that are trained in this process, where nobody says otherwise: small ones in stacks, and others.
INLINE, INLINE_ALONE = 128, 8
SMALL = 1_000_000  # multiplications of a sample of every client of a round


def device(scenario: Scenario) -> Literal["cpu", "cuda"]:
    """Return "cuda" or "cpu".

    Raises:
        ConfigError: a GPU is asked for and there is none.
    """
    import torch

    asked, there = scenario.engine.device, torch.cuda.is_available()
    if asked == "cuda" and not there:
        raise ConfigError("engine.device = 'cuda': torch finds no GPU on this machine; use 'cpu' or 'auto'")
    return "cuda" if there and asked != "cpu" else "cpu"


def stack(scenario: Scenario, stream: Stream, device: str) -> int:
    """Return how many clients are trained with stacked parameters, by the work of a step and the device.

    Stacks of nearly equal size: no round has a short last one. A round with work for many workers has no fewer stacks
    than cohorts are wanted, as long as they are not too small, so that no worker waits for the one with the last stack.
    """
    engine, asked = scenario.engine, _asked(scenario)
    if isinstance(engine.stack, int):
        return engine.stack
    module, work = _model(scenario, stream)
    parameters, most = sum(each.numel() for each in module.parameters()), STACK
    if device == "cpu":
        step = max(1, work * scenario.client.batch)  # a model of other layers counts none
        if step > STACKED_WORK or parameters > STACKED_PARAMETERS:
            return 1
        most = min(STACK, WORK // step, PARAMETERS // parameters)
        if asked * work > SMALL:
            most = min(most, max(LEAST, math.ceil(asked / COHORTS)))
    most = min(asked, most, engine.cohort if isinstance(engine.cohort, int) else asked)
    return math.ceil(asked / math.ceil(asked / most))


def _model(scenario: Scenario, stream: Stream) -> tuple[nn.Module, int]:
    """Return the model, and the multiplications of a sample."""
    data = stream.dataset
    shape = tuple(data.x.shape[1:])
    module = fedcl.models.make(scenario.model, shape, data.classes, scenario.seed)
    return module, multiplications(module, shape)


def cohort(scenario: Scenario, stack: int) -> int:
    """Return how many clients a cohort has: whole stacks, and enough cohorts that many workers have work."""
    if isinstance(scenario.engine.cohort, int):
        return scenario.engine.cohort
    asked = _asked(scenario)
    if stack == 1:
        return math.ceil(asked / COHORTS_ALONE)
    return stack * min(MOST_STACKS, math.ceil(asked / COHORTS / stack))


def _asked(scenario: Scenario) -> int:
    """Return how many clients a round asks."""
    return scenario.server.clients_per_round or scenario.stream.clients


def resolve(scenario: Scenario) -> tuple[Scenario, Stream]:
    """Replace every "auto" that has a part in the arithmetic by its value; return the stream that was built for it."""
    _, stream = world(as_text(scenario))
    chosen = device(scenario)
    together = stack(scenario, stream, chosen)
    engine = replace(scenario.engine, device=chosen, stack=together, cohort=cohort(scenario, together))
    scenario = replace(scenario, engine=engine)
    return scenario, stream


def workers(scenario: Scenario) -> tuple[int, float]:
    """Return how many Ray workers to start and the GPUs of each."""
    engine = scenario.engine
    share = engine.gpus_per_worker if isinstance(engine.gpus_per_worker, float | int) else None
    if engine.device != "cuda":
        return engine.workers if isinstance(engine.workers, int) else cores(), float(share or 0)
    import torch

    gpus = max(1, torch.cuda.device_count())
    number = engine.workers if isinstance(engine.workers, int) else int(gpus / share) if share else gpus
    return number, float(share if share is not None else min(1.0, gpus / number))


def kind(scenario: Scenario) -> str:
    """Return "ray" or "inline": Ray where a round has work for more than one worker, or a cluster is named."""
    engine = scenario.engine
    if engine.kind != "auto":
        return engine.kind
    asked = _asked(scenario)
    if engine.address:
        return "ray"
    if workers(scenario)[0] == 1 or asked <= INLINE_ALONE:
        return "inline"
    if engine.stack == 1 or asked > INLINE:
        return "ray"
    _, work = _model(scenario, world(as_text(scenario))[1])
    return "inline" if asked * work <= SMALL else "ray"
