"""What is trained in a comparison: small clients of handwritten digits, 40 to 60 items each."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedcl import config, keys
from fedcl.config import Scenario
from fedcl.errors import ConfigError, nearest
from fedcl.keys import Purpose
from fedcl.settings import setting
from fedcl.streams.dataset import Dataset, DatasetSettings, Ints
from fedcl.streams.datasets import Digits
from fedcl.streams.partition import NOBODY, Partition

HERE = __name__  # parts are named by it, as a user's own are
MANY = 3  # draws of Purpose.DATA beside those of the built-in data sets
LOW, HIGH = 40, 60  # items of a client
WARM = 2  # rounds at the beginning that no figure counts
TASKS = 4  # of the workloads of several tasks
# (clients a round, registered) where registration itself is what is measured
POPULATION = (100, 10_000)
# Small, so that equal arithmetic gives equal weights: at 0.1 a unit that rounding switches on moves one by 1e-3.
CNN_LR = 0.01
MILLION = 13_330  # hidden units that make an mlp of 64 inputs and 10 classes one of a million parameters
RIVALS = ("flower", "pfl", "loop", "loop2", "limit")
# With what each can be compared: rivals take the very same steps; methods are compared with fedcl without them.
AGAINST: dict[str, tuple[str, ...]] = {
    "mlp": RIVALS, "cnn": RIVALS, "derpp": ("finetune",), "fot": ("fedavg",), "registered": ("flower",),
    "sums": ("flower",),
}  # fmt: skip
ALONE = ("registered", "sums")  # only when they are asked for
PLAIN = {"derpp": "client.method=finetune", "fot": "server.method=fedavg"}  # what turns a method into its comparator


@dataclass(frozen=True, kw_only=True)
class ManyDigits(DatasetSettings):
    """Scikit-learn's digits, drawn with replacement so often that many clients have enough, enlarged if wanted."""

    samples: int = setting(6000, "training items", low=1, high=10**9)
    side: int = setting(8, "pixels of a side; more than 8 repeat pixels", low=8, high=1024)
    seed: int = setting(0, "seed of the draws, apart from the seed of the run", low=0, high=2**62)

    def load(self, root: str | None) -> Dataset:
        """Draw the items from the training digits; the test digits stay as they are."""
        few, pixel = Digits().load(root), np.arange(self.side) * 8 // self.side
        drawn = keys.generator(self.seed, Purpose.DATA, MANY).integers(0, len(few.y), self.samples)
        x, test_x = (each[:, pixel][:, :, pixel] for each in (few.x, few.test_x))
        return Dataset(
            x=x[drawn], y=few.y[drawn], test_x=test_x, test_y=few.test_y, classes=few.classes, scale=few.scale
        )


@dataclass(frozen=True, kw_only=True)
class Between(Partition):
    """Everyone a random sample of between `low` and `high` items, all sizes alike; the rest is nobody's."""

    low: int = setting(LOW, "fewest items of a client", low=1, high=10**9)
    high: int = setting(HIGH, "most items of a client", low=1, high=10**9)

    def assign(self, labels: Ints, clients: int, rng: np.random.Generator) -> Ints:
        """Draw the sizes, then who has what.

        Raises:
            ConfigError: there are too few items.
        """
        sizes = rng.integers(self.low, max(self.low, self.high) + 1, clients)
        if sizes.sum() > len(labels):
            raise ConfigError(
                f"stream.partition.high = {self.high}: {clients} clients want {sizes.sum()} items, there are "
                f"{len(labels)}"
            )
        owner = np.full(len(labels), NOBODY)
        owner[: sizes.sum()] = np.repeat(np.arange(clients), sizes)
        return rng.permutation(owner)


def checked(workload: str) -> str:
    """Return the name of a workload.

    Raises:
        ConfigError: there is none of that name.
    """
    if workload not in AGAINST:
        raise ConfigError(f"--workload {workload!r}: unknown{nearest(workload, AGAINST)}")
    return workload


def rounds_of(workload: str, clients: int) -> int:
    """Return how many rounds one measurement takes where its user names none: seconds of work, warm ones included."""
    updates = 1_500 if workload == "cnn" else 10_000
    return WARM + min(60, max(3 if workload == "cnn" else 10, updates // clients))


def counted(workload: str, rounds: int) -> tuple[list[int], list[int]]:
    """Return which rounds (from 0) count, and of a method that measures something at the end of tasks which end one."""
    after = list(range(WARM, rounds))
    if workload != "fot":
        return after, []
    length = -(-rounds // TASKS)
    ending = [number for number in after if (number + 1) % length == 0 or number == rounds - 1]
    return [number for number in after if number not in ending] or after, ending


def scenario(workload: str, clients: int, registered: int, rounds: int, overrides: Iterable[str] = ()) -> Scenario:
    """Return the federation of a workload: one epoch a visit, batches of 16, SGD without momentum, no evaluation.

    Args:
        clients: asked in a round.
        registered: clients that there are.
        overrides: `key=value` texts on top; everybody who is compared has them.
    """
    wide, tasks = checked(workload) == "cnn", TASKS if workload in PLAIN else 1
    lr, width = CNN_LR if wide else 0.1, MILLION if workload == "sums" else 64
    client: dict[str, Any] = {"optimizer": {"name": "sgd", "lr": lr}, "epochs": 1, "batch": 16}
    server: dict[str, Any] = {"clients_per_round": clients}
    if workload == "derpp":
        client |= {"method": "derpp", "memory": {"policy": "reservoir", "size": 100}}
    if workload == "fot":
        server |= {"method": {"name": "fot", "epsilon": 0.95}}
    plain = {
        "name": f"bench-{workload}",
        "stream": {
            "dataset": {"name": f"{HERE}:ManyDigits", "samples": HIGH * registered, "side": 28 if wide else 8},
            "kind": "class-incremental" if tasks == 1 else "domain-incremental",
            "tasks": tasks,
            "clients": registered,
            "partition": {"kind": f"{HERE}:Between"},
            "schedule": {"kind": "synchronous", "rounds_per_task": -(-rounds // tasks), "rounds": rounds},
        },
        "model": {"name": "cnn", "width": 8} if wide else {"name": "mlp", "width": width},
        "client": client,
        "server": server,
        "engine": {"device": "cpu"},  # all that the others are given
        "evaluate": {"every": 0, "clients": 0},
    }
    return config.load(plain, overrides)
