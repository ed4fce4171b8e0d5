"""Flower's own simulation: run_simulation on Ray, FedAvg weighted by examples, one message a client.

A node is one client. Who is asked in a round is what our selection says, so that the weights agree; the actors are as
many as our workers. The rest is what Flower's tutorials write, but that an actor keeps its model between messages.
"""

import logging
import time
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from torch import nn
from torch.nn.functional import cross_entropy

from fedcl.bench.spec import Spec, Told, Watch
from fedcl.bench.work import Round, Visit, Work
from fedcl.errors import FederationError
from fedcl.memory import peaks

app = ClientApp()


@lru_cache(maxsize=1)
def _known(path: str) -> tuple[Spec, Work, nn.Module]:
    """Return what an actor keeps between messages."""
    torch.set_num_threads(1)
    logging.getLogger("flwr").setLevel(logging.ERROR)
    spec = Spec.read(Path(path))
    work = spec.loaded()
    return spec, work, work.model(spec.scenario)


def _number(value: object) -> int:
    assert isinstance(value, int)
    return value


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train one client."""
    config = message.content.config_records["config"]
    spec, work, model = _known(str(config["spec"]))
    visit: Visit = work.rounds[_number(config["server-round"]) - 1][_number(config["place"])]
    model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=spec.scenario.client.optimizer.lr)
    for step in map(torch.from_numpy, visit.steps):
        optimizer.zero_grad()
        cross_entropy(model(work.inputs[step]), work.labels[step]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    content = RecordDict({
        "arrays": ArrayRecord(model.state_dict()),
        "metrics": MetricRecord({"num-examples": visit.n}),
    })  # fmt: skip
    return Message(content=content, reply_to=message)


class Chosen(FedAvg):
    """FedAvg that asks the clients that it is told to, and does not go on without all of them."""

    def __init__(self, rounds: tuple[Round, ...], path: str, watch: Watch) -> None:
        super().__init__(fraction_evaluate=0.0)
        self.rounds, self.path, self.watch = rounds, path, watch
        self.updates: list[int] = []
        self.nodes: list[int] = []

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return one message for each client of the round."""
        if server_round == 1:
            self.nodes = sorted(grid.get_node_ids())
            self.watch.begin()
        return [
            Message(
                RecordDict({
                    self.arrayrecord_key: arrays,
                    self.configrecord_key: ConfigRecord({
                        **config, "server-round": server_round, "place": place, "spec": self.path,
                    }),
                }),
                self.nodes[visit.client],
                MessageType.TRAIN,
            )
            for place, visit in enumerate(self.rounds[server_round - 1])
        ]  # fmt: skip

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Aggregate as FedAvg does.

        Raises:
            FederationError: a client has not answered, or with an error: Flower would go on without a word.
        """
        replies, asked = list(replies), len(self.rounds[server_round - 1])
        good = [reply for reply in replies if not reply.has_error()]
        if len(good) != asked:
            why = next((reply.error.reason for reply in replies if reply.has_error()), "no answer")
            raise FederationError(f"flower: round {server_round} has {len(good)} of {asked} answers ({why})")
        result = super().aggregate_train(server_round, replies)
        self.watch.mark()
        self.updates.append(len(good))
        return result


def run(spec: Spec, watch: Watch) -> Told:
    """Run all rounds.

    Raises:
        FederationError: a client's answer is missing.
    """
    from flwr.simulation import run_simulation

    logging.getLogger("flwr").setLevel(logging.ERROR)
    path = Path(spec.folder) / "flower.json"
    spec.write(path)
    work, server = spec.loaded(), ServerApp()
    strategy, ended = Chosen(work.rounds, str(path), watch), list[Told | FederationError]()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        while len(list(grid.get_node_ids())) < spec.registered:
            time.sleep(0.05)
        try:
            ended.append(_trained(strategy, grid, work))
        except FederationError as error:  # Flower would only log it
            ended.append(error)

    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
    backend = {
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        "init_args": {"num_cpus": spec.workers, **quiet},
    }
    run_simulation(server, app, num_supernodes=spec.registered, backend_config=backend)  # type: ignore[arg-type]
    told = ended[0] if ended else FederationError("flower: the simulation has ended without a result")
    if isinstance(told, FederationError):
        raise told
    return told


def _trained(strategy: Chosen, grid: Grid, work: Work) -> Told:
    """Train all rounds; memory is read while the actors are still up."""
    first = ArrayRecord({name: torch.from_numpy(each) for name, each in work.weights.items()})
    arrays = strategy.start(grid, first, num_rounds=len(work.rounds)).arrays
    weights = {name: np.asarray(each) for name, each in arrays.to_torch_state_dict().items()}
    return Told(updates=strategy.updates, weights=weights, memory=peaks())
