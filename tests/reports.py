"""Made-up run directories, of which a report's figures are known by hand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from fedcl import config
from fedcl.results import summarise

Event = dict[str, Any]
# After rounds 0..4: two tasks of two rounds.
ACCURACY = [[0.125, 0.0], [0.5, 0.0625], [0.875, 0.0625], [0.5, 0.5], [0.625, 0.9375]]


def events(rounds: int = 4, **start: Any) -> list[Event]:
    stream: list[Event] = [
        {
            **{"event": "start", "name": "two-tasks", "seed": 3, "config_hash": "c0ffee", "clients": 2, "tasks": 2},
            **{"command": "fedcl run two-tasks seed=3", "rounds": 4, "joint": False, "personal": False, "stack": 1},
            **{"evaluation_every": 1, "device": "cpu", "cohort": 32, "versions": {"fedcl": "0.1.0"}},
            **start,
        }
    ]
    stream += [evaluation(0)]
    for round in range(1, rounds + 1):
        task = (round - 1) // 2
        stream += [
            {
                **{"event": "round", "round": round, "seconds": 0.5, "clients": [0, 1], "tasks": [task, task]},
                **{"updates": 2, "steps": 8, "loss": {"ce": 2.0 / round, "dark": 0.25}, "bytes_up": 4000},
                **{"bytes_down": 6000, "failed": 0, "evicted": 0},
            },
            evaluation(round),
        ]
        if round % 2 == 0:
            own = [ACCURACY[round], [ACCURACY[round][0] / 2, ACCURACY[round][1] / 2]]
            stream += [{"event": "task_end", "round": round, "tasks": [task], "accuracy": ACCURACY[round]}]
            end = {"event": "client_task_end", "round": round, "clients": [0, 1], "tasks": [task, task]}
            stream += [{**end, "accuracy": own}]
    if rounds == 4:
        stream += [{"event": "end", "round": 4, "status": "finished", "weights_sha256": "ab", "state_sha256": "cd"}]
    return stream


def evaluation(round: int) -> Event:
    started = [round >= 1, round >= 3]
    return {
        **{"event": "evaluation", "round": round, "accuracy": ACCURACY[round], "loss": 1.0, "started": started},
        **{"seconds": 0.1},
    }


def record(folder: Path, stream: list[Event], results: bool = True) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in stream))
    (folder / "config.yaml").write_text("name: two-tasks\nseed: 3\n")
    if results:
        (folder / "results.json").write_text(json.dumps(summarise({}, stream), allow_nan=False))
    return folder


def resolved(*overrides: str) -> dict[str, Any]:
    """Return the resolved configuration of split-digits on a little made-up data."""
    data = "stream.dataset={name: synthetic, classes: 4, features: 4, samples: 200, test_samples: 40}"
    return config.as_dict(config.load("split-digits", [data, "stream.clients=2", "stream.tasks=2", *overrides]))


def long_run(folder: Path, seed: int, *overrides: str, tasks: int = 20, rounds: int = 400, asked: int = 10) -> Path:
    """Write a run of many tasks, rounds and clients, of whom some are asked in a round."""
    rng, clients = np.random.default_rng(seed), 100
    start = events()[0] | {"clients": clients, "tasks": tasks, "rounds": rounds, "seed": seed, "name": "long"}
    stream, accuracy = [start], np.zeros(tasks)
    for round in range(1, rounds + 1):
        task = (round - 1) * tasks // rounds
        chosen = rng.choice(clients, asked, replace=False).tolist()
        accuracy = np.clip(accuracy + rng.normal(0, 0.02, tasks), 0, 1)
        accuracy[task] = 1 - (1 - accuracy[task]) / 2
        stream.append(
            {
                **{"event": "round", "round": round, "seconds": 0.5, "clients": chosen, "tasks": [task] * asked},
                **{
                    "updates": asked,
                    "steps": 8,
                    "loss": {name: float(rng.random()) for name in ("ce", "replay", "dark")},
                },
                **{"bytes_up": 4000, "bytes_down": 6000, "failed": 0, "evicted": 0},
            }
        )
        started = [each <= task for each in range(tasks)]
        stream.append({**evaluation(1), "round": round, "accuracy": accuracy.tolist(), "started": started})
        if round % (rounds // tasks) == 0:
            stream.append({"event": "task_end", "round": round, "tasks": [task], "accuracy": accuracy.tolist()})
            own = {"event": "client_task_end", "round": round, "clients": list(range(clients))}
            rows = np.clip(accuracy + rng.normal(0, 0.05, (clients, tasks)), 0, 1).tolist()
            stream.append({**own, "tasks": [task] * clients, "accuracy": rows})
    error = {"event": "client_error", "round": 1, "client": 1, "traceback": "File app.py\n" * 300}
    stream += [{**error, "error": f"ValueError: {kind}"} for kind in range(30)]
    stream.append({"event": "end", "round": rounds, "status": "finished", "weights_sha256": "ab", "state_sha256": "cd"})
    record(folder, stream)
    classes = f"stream.dataset={{name: synthetic, classes: {tasks}, features: 4, samples: 4000, test_samples: 400}}"
    plain = resolved(classes, f"stream.tasks={tasks}", f"stream.clients={clients}", f"seed={seed}", *overrides)
    (folder / "config.yaml").write_text(yaml.safe_dump(plain, sort_keys=False))
    (folder / "error.log").write_text("a line of the log\n" * 5000)
    return folder
