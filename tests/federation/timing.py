"""Seconds of a round on real processes: with and without the warm worker, with Flower's polls and fedcl's, two models.

    python -m tests.federation.timing [--rounds 7] [--nodes 3]
        [--models small large] [--nodes-are cold warm] [--polls flower fedcl]

All nodes are on this machine, over plain text. Printed is the median over the rounds from the second to the last but
one, from checkpoint to checkpoint as a reader of events.jsonl sees them.
"""

import argparse
import os
import statistics
import tempfile
import time
from itertools import pairwise, product
from pathlib import Path

from tests.federation.machines import machines, until

POLL = "FLWR_SUPEREXEC_TASK_POLL_INTERVAL"
FLOWERS = "1.0"  # Flower's own default
MODELS = {
    "small": ("5 thousand parameters", ("model.width=64",)),
    "large": ("12.4 million parameters (50 MB)", ("model.width=3480", "model.depth=2")),
}
NODES = {"cold": ("--cold",), "warm": ()}
POLLS = {"flower": {POLL: FLOWERS}, "fedcl": {}}


def measured(rounds: int, nodes: int, model: tuple[str, ...], extra: tuple[str, ...]) -> float:
    """Return the median seconds of a round."""
    scenario = (
        "split-digits", f"stream.clients={nodes}", "stream.tasks=1", f"stream.schedule.rounds_per_task={rounds}",
        "server.clients_per_round=null", f"server.min_clients={nodes}", "client.method=finetune", "client.epochs=1",
        "evaluate.every=0", "evaluate.clients=0", "engine.device=cpu", *model,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, machines(Path(folder)) as found:
        found.serve(*scenario)
        for client in range(nodes):
            found.join(client, extra=extra)
        found.round_done(1)
        moments = [time.monotonic()]
        for round in range(2, rounds):  # the last round measures and ends the run
            until(f"round {round}", lambda r=round: any(e["round"] >= r for e in found.events("checkpoint")))
            moments.append(time.monotonic())
        found.finished()
    return statistics.median(after - before for before, after in pairwise(moments))


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--nodes", type=int, default=3)
    for name, choices in (("--models", MODELS), ("--nodes-are", NODES), ("--polls", POLLS)):
        parser.add_argument(name, nargs="+", choices=choices, default=list(choices))
    asked = parser.parse_args()
    print("| model | nodes | polls | seconds a round |\n|---|---|---|---|")
    for model, kind, polls in product(asked.models, asked.nodes_are, asked.polls):
        os.environ |= POLLS[polls]
        name, settings = MODELS[model]
        seconds = measured(asked.rounds, asked.nodes, settings, NODES[kind])
        print(f"| {name} | {kind} | {polls} | {seconds:.1f} |", flush=True)
        os.environ.pop(POLL, None)


if __name__ == "__main__":
    main()
