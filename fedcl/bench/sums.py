"""What a server does with updates that come from real clients, one each: unpack, check, add up. Nobody trains.

Both are given the same replies, made before the clock runs: a million numbers a client. There are `VERSIONS` updates
for each number of samples, so that a thousand replies fit into memory, and not into a cache.
"""

from functools import partial
from pathlib import Path

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg

from fedcl import wire
from fedcl.answers import Answer, Layout, answer_layout
from fedcl.bench import crew
from fedcl.bench.spec import Spec, Told, Watch
from fedcl.bench.work import Work
from fedcl.engine.flower import NODE, identify
from fedcl.errors import FederationError
from fedcl.orders import TrainOrder, TrainReply
from server.acceptance import Known
from server.exchange import Size, taken
from server.tally import Tally
from server.training import reply_problem
from server.waiting import Sums

VERSIONS = 8
ROUND = 1  # of all replies: they are added up again and again


def updates(flat: crew.Flat) -> list[crew.Flat]:
    """Return some updates of weights (P,)."""
    rng = np.random.default_rng(0)
    return [0.01 * rng.standard_normal(len(flat), np.float32) for _ in range(VERSIONS)]


def run(spec: Spec, watch: Watch) -> Told:
    """Add them up as fedcl's server does.

    Raises:
        FederationError: a reply is refused.
    """
    identify()
    work, server = spec.loaded(), spec.scenario.server
    flat, parameters = crew.flat(work.weights), Layout(tuple((name, each.shape) for name, each in work.weights.items()))
    layout = answer_layout(["delta"], parameters)
    nobody = Known(clients=np.zeros(0, np.int64), columns={})
    problem = partial(reply_problem, server, layout, torch.float32, nobody)
    replies = _replies(work, flat)
    watch.begin()
    for _ in work.rounds:
        done = Tally(total=torch.zeros(layout.size), sums=Sums(Path.cwd()))
        for order, message in replies:
            reply, errors = taken(message, order, TrainReply, problem, Size(layout.size))
            if reply is None:
                raise FederationError(errors[0].error)
            done.add(order, reply)
        done.sums.close()
        answer = Answer(layout, done.total)
        mean = flat + (parameters.flatten(answer.under("delta")) / answer["weight"]).numpy()
        watch.mark()
    return Told(updates=work.updates, weights=crew.named(mean, work.weights))


def _replies(work: Work, flat: crew.Flat) -> list[tuple[TrainOrder, Message]]:
    """Return an order to each client of the first round, and what its node answers."""
    moves, found = updates(flat), []
    length = [np.array([np.linalg.norm(move.astype(np.float64))]) for move in moves]
    totals: dict[tuple[int, int], ArrayRecord] = {}
    for number, visit in enumerate(work.rounds[0]):
        who, version = np.array([visit.client]), number % VERSIONS
        order = TrainOrder(
            round=ROUND, cohort=number, clients=who, tasks=np.zeros(1, np.int64), clocks=np.zeros(1, np.int64),
            packs=[""], rows=np.zeros(1, np.int64), folder="", weights=np.zeros(0, np.float32),
        )  # fmt: skip
        counts = {"n": visit.n, "steps": len(visit.steps), "evicted": 0}
        reply = TrainReply(
            round=ROUND, cohort=number, clients=who, errors=[], total=np.zeros(0, np.float32),
            table={**{name: np.array([each]) for name, each in counts.items()}, "norm": length[version]},
        )  # fmt: skip
        record = wire.encode(reply)
        if (version, visit.n) not in totals:  # a sum weighted by samples, and the samples
            total = np.append(visit.n * moves[version], np.float32(visit.n))
            totals[version, visit.n] = wire.pack({"total": total})
        record["arrays"] = ArrayRecord({**record.array_records["arrays"], **totals[version, visit.n]})
        found.append((order, Message(record, NODE, MessageType.TRAIN)))
    return found


def run_flower(spec: Spec, watch: Watch) -> Told:
    """Add them up as Flower's FedAvg does, whose clients answer with whole models.

    Raises:
        FederationError: there is no mean.
    """
    identify()
    work, strategy = spec.loaded(), FedAvg()
    replies = _models(work, crew.flat(work.weights))
    watch.begin()
    for _ in work.rounds:
        arrays, _ = strategy.aggregate_train(ROUND, replies)
        watch.mark()
    if arrays is None:
        raise FederationError("flower: no mean")
    weights = {name: np.asarray(each) for name, each in arrays.to_torch_state_dict().items()}
    return Told(updates=work.updates, weights=weights)


def _models(work: Work, flat: crew.Flat) -> list[Message]:
    """Return what Flower's clients of the first round answer, as many different records as fedcl is given."""
    moves, found = updates(flat), []
    models: dict[tuple[int, int], ArrayRecord] = {}
    for number, visit in enumerate(work.rounds[0]):
        version = number % VERSIONS
        if (version, visit.n) not in models:
            model = crew.named(flat + moves[version], work.weights)
            models[version, visit.n] = ArrayRecord({name: torch.from_numpy(each) for name, each in model.items()})
        content: dict[str, ArrayRecord | MetricRecord | ConfigRecord] = {
            "arrays": models[version, visit.n],
            "metrics": MetricRecord({"num-examples": visit.n}),
        }
        found.append(Message(RecordDict(content), NODE, MessageType.TRAIN))
    return found
