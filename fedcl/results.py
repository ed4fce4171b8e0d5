"""results.json: every figure of a run from its events alone, finished or not. An absent figure is null with its reason.

Accuracies are fractions in [0, 1]. Global figures follow the global model on each task's central test items; rows of
`accuracy_matrix` are the ends of tasks in order of (round, task), columns the tasks in the same order (`task_order`).
Tasks that end in the same round share one model: figures count that moment once, and none of them is older.
A client's own figures are measured on its own test items at its own task ends, with the weights it would use.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedcl import metrics
from fedcl.journal import SCHEMA as SCHEMA
from fedcl.log import Event, Log, accuracies, collect, table
from fedcl.metrics import Matrix
from fedcl.orders import DIVERGED, FAILED, KINDS_OF_ERROR

WINDOW = 10  # evaluation points in the window of wf10 and wp10
FEW_CLIENTS = 100  # up to here every client's own matrix is kept
JOINT = "joint training has no task ends"
PERSONAL = "parameters are personal: see clients"
HASHES = ("weights_sha256", "state_sha256", "clients_sha256")
UNKNOWN = "not every task's accuracy is known: a task has no test items, or the last round was not evaluated"
END_FIGURES = (
    *("aia", "forgetting", "bwt", "fwt", "plasticity", "first_minus_last"),
    *("intransigence", "pm", "min_acc", "wc_acc"),
)
TRACE_FIGURES = ("min_acc", "wc_acc", "wf", "wp")
FIGURES = ("acc", *END_FIGURES, "a_auc", "wf10", "wp10")
# Figures that compare two ends of tasks: with one (or all in one round) there is nothing to compare.
COMPARING = ("forgetting", "bwt", "first_minus_last", "pm", "min_acc")


def _end_figures(log: Log) -> dict[str, float]:
    """Figures of the accuracy matrix, and of the evaluations since each task was learnt."""
    a, learnt = log.ends.moments
    points, series = log.series
    tasks = log.ends.tasks
    since = np.searchsorted(points, np.unique(log.ends.rounds)[learnt])
    return {
        "acc": metrics.acc(a),
        "aia": metrics.aia(a, learnt),
        "forgetting": metrics.forgetting(a, learnt),
        "bwt": metrics.bwt(a, learnt),
        "fwt": _forward_transfer(log),
        "plasticity": metrics.plasticity(a, learnt),
        "first_minus_last": metrics.first_minus_last(a, learnt),
        "pm": metrics.pm(a, learnt),
        "min_acc": metrics.min_acc(series[: since.max() + 1, tasks], since),
        "wc_acc": metrics.wc_acc(series[: since.max() + 1, tasks], since),
    }


def _untouched(log: Log) -> dict[int, int]:
    """Return the last evaluation before anybody trained on a task, its place in the series, by task.

    Tasks that began before a trained model was evaluated are left out, as the first one is: of what came over to them
    nothing is known. In their own time clients are at many tasks when one of them ends, so its end tells nothing here.
    """
    points, first = log.series[0], min(log.began.values(), default=0)
    last = {task: int(np.searchsorted(points, round)) - 1 for task, round in sorted(log.began.items())}
    return {task: place for task, place in last.items() if place >= 0 and points[place] >= first}


def _forward_transfer(log: Log) -> float:
    """Return what the model could do on tasks before anybody trained on them, above what the fresh one could."""
    points, series = log.series
    untouched = _untouched(log)
    if points[0] != 0 or not untouched:
        return math.nan
    tasks = list(untouched)
    return metrics.fwt(series[list(untouched.values()), tasks], series[0, tasks])


def _no_transfer(log: Log) -> str:
    """Say why forward transfer is unknown."""
    if 0 not in log.series[0]:
        return "needs an evaluation of the fresh model (round 0)"
    if _untouched(log):
        return UNKNOWN
    return "needs a task that nobody trained on before a trained model was evaluated (evaluate.every)"


def _spaced(log: Log) -> tuple[list[int], Matrix, NDArray[np.bool_]]:
    """Return the evenly spaced evaluations: rounds, accuracies (points, tasks), which tasks had begun by then."""
    points, series = log.series
    every = log.start.get("evaluation_every") or 0
    even = [i for i, round in enumerate(points) if every and round and round % every == 0 and round in log.evaluations]
    seen = table([log.evaluations[points[i]]["started"] for i in even]).astype(bool)
    return [points[i] for i in even], series[even], seen


def any_time(log: Log) -> dict[int, float]:
    """Return the any-time accuracy up to each evaluation, by round; the last one is the run's `a_auc`.

    Evaluations before the first task do not count, and tasks without test items are left out, with which a run has no
    `a_auc`: what has been measured is enough to compare runs by.
    """
    points, series, seen = _spaced(log)
    known = [row[begun & ~np.isnan(row)] for row, begun in zip(series, seen, strict=True)]
    now = {point: float(np.mean(row)) for point, row in zip(points, known, strict=True) if len(row)}
    sums = np.cumsum(list(now.values()))
    return dict(zip(now, (sums / np.arange(1, len(now) + 1)).tolist(), strict=True))


def _series_figures(log: Log) -> dict[str, float]:
    """Figures of the evaluations alone; `a_auc` takes only those that are evenly spaced."""
    _, series = log.series
    tasks = sorted(log.trained)
    return {
        "a_auc": metrics.a_auc(*_spaced(log)[1:]),
        "wf10": metrics.wf(series[:, tasks], WINDOW),
        "wp10": metrics.wp(series[:, tasks], WINDOW),
    }


def _final_accuracy(log: Log) -> float:
    """Return the mean accuracy of the last round's model on the tasks of the stream."""
    points, series = log.series
    if not points or points[-1] != log.last_round:
        return math.nan
    return metrics.acc(series[:, sorted(log.trained)] if log.trained else series)


def _unfinished(log: Log) -> str | None:
    if log.complete:
        return None
    return f"the run has not finished: {log.status} after round {log.last_round} of {log.start.get('rounds', '?')}"


def _global_figures(log: Log) -> tuple[dict[str, float], dict[str, str]]:
    """Return the figures that could be computed (NaN: could not after all) and the reasons of the others."""
    blanket = (PERSONAL if log.start.get("personal") else None) or _unfinished(log)
    if blanket:
        return {}, dict.fromkeys(FIGURES, blanket)
    if log.start.get("joint"):
        return {"acc": _final_accuracy(log)}, dict.fromkeys(FIGURES[1:], JOINT)
    left = sorted(log.trained - set(log.ends.tasks))
    series = _series_figures(log) if log.series[0] else {}
    if not left and log.ends.tasks:
        return series | _end_figures(log), {}
    reason = f"not every client has finished its task {', '.join(map(str, left))}" if left else "no task was trained"
    return series | {"acc": _final_accuracy(log)}, dict.fromkeys(END_FIGURES, reason)


def _reason(name: str, log: Log) -> str:
    """Say why a figure stayed unknown although the run finished and all its tasks ended."""
    points, _ = log.series
    reasons = {
        "intransigence": "needs the accuracies of a run with joint training",
        "a_auc": UNKNOWN if _spaced(log)[2].any() else "needs evaluations between task ends (evaluate.every)",
        "fwt": _no_transfer(log),
        "wf10": "needs at least two evaluations" if len(points) < 2 else UNKNOWN,
        "wp10": "needs at least two evaluations" if len(points) < 2 else UNKNOWN,
    }
    if name in COMPARING and len(set(log.ends.rounds)) < 2:
        return "needs tasks that end in at least two different rounds"
    return reasons.get(name, UNKNOWN)


def client_figures(log: Log) -> dict[str, dict[int, float]]:
    """Return for "acc" and "forgetting" each client's own figure, clients where it is unknown left out.

    A client's tasks without a test item of its own are left out; its figures are those at its own last task end.
    """
    figures: dict[str, dict[int, float]] = {"acc": {}, "forgetting": {}}
    for client, ends in log.clients.items():
        a, learnt = ends.known().moments
        figures["acc"][client] = metrics.acc(a)
        figures["forgetting"][client] = metrics.forgetting(a, learnt)
    return {name: {c: v for c, v in values.items() if not math.isnan(v)} for name, values in figures.items()}


def trace_figures(log: Log) -> dict[str, dict[int, float]]:
    """Return the figures of stability inside local training, each client's own, clients where one is unknown left out.

    A client's measurements make one series, visit behind visit; a task is learnt at the last one of the client's first
    stretch of visits to it. Tasks without a test item of the client's own are left out.
    """
    own: dict[int, list[Event]] = {}
    for (_, client), event in sorted(log.traces.items()):
        own.setdefault(client, []).append(event)
    figures: dict[str, dict[int, float]] = {name: {} for name in TRACE_FIGURES}
    for client, events in own.items():
        for name, value in _trace_of(events).items():
            figures[name][client] = value
    return {name: {c: v for c, v in values.items() if not math.isnan(v)} for name, values in figures.items()}


def _trace_of(events: Sequence[Event]) -> dict[str, float]:
    """Return one client's figures of its traces in order."""
    series = table([accuracies(point) for event in events for point in event["accuracy"]])
    tasks, ends = [event["task"] for event in events], np.cumsum([len(event["accuracy"]) for event in events]) - 1
    learnt: dict[int, int] = {}
    for task, after, end in zip(tasks, [*tasks[1:], None], ends.tolist(), strict=True):
        if task != after and not math.isnan(series[end, task]):
            learnt.setdefault(task, end)
    columns, at = series[:, list(learnt)], np.array(list(learnt.values()), np.int64)
    known = [column[~np.isnan(column)][:, None] for column in columns.T]
    return {
        "min_acc": metrics.min_acc(columns, at),
        "wc_acc": metrics.wc_acc(columns, at),
        "wf": float(np.mean([metrics.wf(each, WINDOW) for each in known])) if known else math.nan,
        "wp": float(np.mean([metrics.wp(each, WINDOW) for each in known])) if known else math.nan,
    }


def _traces(log: Log, every: int, absent: dict[str, str]) -> dict[str, Any]:
    """Return the means over the watched clients; add reasons to `absent`."""
    found: dict[str, Any] = {
        "every_steps": every,
        "window": WINDOW,
        "clients": len({client for _, client in log.traces}),
    }
    for name, values in trace_figures(log).items():
        found[name] = sum(values.values()) / len(values) if values else None
        if not values:
            unmet = "no client was traced that has test items" if name != "min_acc" else "no traced client left a task"
            absent[f"clients.trace.{name}"] = JOINT if log.start.get("joint") else unmet
    return found


def _plain(values: NDArray[Any]) -> list[Any]:
    """Return an array as nested lists with None for NaN, as JSON has no NaN."""
    return [_plain(each) for each in values] if values.ndim > 1 else [_number(float(v)) for v in values]


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _clients(log: Log, trace: int, absent: dict[str, str]) -> dict[str, Any]:
    """Return the spread of the clients' own figures and, of few clients, their matrices; add reasons to `absent`."""
    result: dict[str, Any] = {}
    for name, values in client_figures(log).items():
        reason = (JOINT if log.start.get("joint") else None) or _unfinished(log)
        if reason is None and not values:
            reason = f"no client finished {'a task' if name == 'acc' else 'two tasks'} of which it has test items"
        spread = metrics.fairness(np.array(list(values.values())), higher_is_better=name == "acc")
        result[name] = None if reason else asdict(spread)
        if reason:
            absent[f"clients.{name}"] = reason
    if log.locals:
        result["local"] = _after_own_updates(log)
    if trace:
        result["trace"] = _traces(log, trace, absent)
    if log.start.get("clients", 0) <= FEW_CLIENTS:
        own = {str(client): {"tasks": ends.tasks, "ended": ends.ended} for client, ends in log.clients.items()}
        result["matrices"] = {c: {**own[c], "matrix": _plain(log.clients[int(c)].matrix)} for c in own}
    return result


def _after_own_updates(log: Log) -> dict[str, float | None]:
    """Return the mean accuracy of clients after their own updates on base, earlier and new classes."""
    found: dict[str, list[float]] = {}
    for event in log.locals.values():
        for part, values in event["accuracy"].items():
            found.setdefault(part, []).extend(value for value in values if value is not None)
    return {part: sum(values) / len(values) if values else None for part, values in found.items()}


def _cost(log: Log) -> dict[str, Any]:
    def total(name: str, events: Iterable[Event]) -> Any:
        return sum(event.get(name, 0) for event in events)

    rounds = log.rounds.values()
    updates, seconds = total("updates", rounds), float(total("seconds", rounds))
    return {
        "rounds": len(rounds),
        "client_updates": updates,
        "steps": total("steps", rounds),
        "bytes_up": total("bytes_up", [*rounds, *log.consolidations.values(), *log.scores.values()]),
        "bytes_down": total("bytes_down", [*rounds, *log.scores.values()]),
        "seconds": seconds,
        "updates_per_second": updates / seconds if seconds > 0 else None,
        "evaluation_seconds": float(total("seconds", log.evaluations.values())),
        "checkpoint_seconds": float(total("seconds", log.checkpoints.values())),
        "failed": total("failed", rounds),
        "evicted": total("evicted", rounds),
        "memory": log.end.get("memory"),  # peaks in bytes: {"process", "below": [largest first]}
    }


def _updates(log: Log) -> dict[str, int]:
    """Return how many updates were asked for, how many count, and how many were lost, by the kind of their loss."""
    rounds = log.rounds.values()
    lost = {kind: sum(event.get("lost", {}).get(kind, 0) for event in rounds) for kind in KINDS_OF_ERROR}
    accepted = sum(event.get("updates", 0) for event in rounds)
    return {"asked": accepted + sum(lost.values()), "accepted": accepted, **lost}


def lossy(results: Mapping[str, Any]) -> bool:
    """Return whether a run has lost updates that its user should not do without: by errors, or because they diverged.

    What was refused, withheld or did not come is as it should be, and counted.
    """
    updates = results.get("updates") or {}
    return results.get("status") == "diverged" or any(updates.get(kind) for kind in (FAILED, DIVERGED))


def _hashes(log: Log, absent: dict[str, str]) -> dict[str, str | None]:
    for name in HASHES:
        if log.end.get(name) is None:
            absent[name] = log.end.get(f"{name}_absent") or _unfinished(log) or "not recorded"
    return {name: log.end.get(name) for name in HASHES}


def summarise(config: dict[str, Any], events: Iterable[Event]) -> dict[str, Any]:
    """Compute results.json (schema 1) from a run's resolved configuration and its events, however far it came.

    Args:
        config: the resolved configuration; names the run where there is no start event yet.
        events: the events in the order in which they were written.

    Returns:
        JSON-able values only: an unknown number is None, with its reason in "absent" under the figure's name.
    """
    log = collect(events)
    figures, absent = _global_figures(log)
    for name in FIGURES:
        if name not in absent and math.isnan(figures.get(name, math.nan)):
            absent[name] = _reason(name, log)
    if log.damaged:
        absent["events"] = f"{log.damaged} lines of the journal were damaged: what they said is left out"
    matrix_absent = PERSONAL if log.start.get("personal") else JOINT if log.start.get("joint") else None
    if matrix_absent:
        absent["accuracy_matrix"] = matrix_absent
    return {
        "schema": SCHEMA,
        "status": log.status,
        "complete": log.complete,
        "name": log.start.get("name", config.get("name")),
        "seed": log.start.get("seed", config.get("seed")),
        "command": log.start.get("command"),
        "config_hash": log.start.get("config_hash"),
        "metrics": {name: None if name in absent else figures[name] for name in FIGURES},
        "accuracy_matrix": None if matrix_absent else _plain(log.ends.matrix),
        "task_order": log.ends.tasks,
        "task_end_rounds": log.ends.rounds,
        "clients": _clients(log, config.get("evaluate", {}).get("trace", 0), absent),
        "evaluation_every": log.start.get("evaluation_every"),
        "updates": _updates(log),
        "cost": _cost(log),
        **_hashes(log, absent),
        **{name: log.start.get(name) for name in ("device", "stack", "cohort", "versions")},
        "absent": absent,
    }
