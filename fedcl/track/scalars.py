"""What trackers are told: the scalars of an event, the figures of results.json."""

from collections.abc import Mapping
from typing import Any

from fedcl.log import own_accuracy, seen_accuracy
from fedcl.plain import leaves

Event = Mapping[str, Any]
BYTES = ("bytes_up", "bytes_down")


def scalars(event: Event) -> dict[str, float]:
    """Return what an event says in numbers, by name; they belong to the event's round."""
    kind = event["event"]
    if kind == "round":
        return _round(event)
    if kind == "evaluation":
        named = {f"accuracy/task_{task}": value for task, value in enumerate(event["accuracy"] or ())}
        found = {"accuracy/mean": seen_accuracy(event), **named, "evaluation/loss": event["loss"]}
    elif kind == "client_task_end":
        found = {"accuracy/clients_at_task_end": own_accuracy(event)}
    elif kind in ("consolidation", "scores"):
        found = {f"{kind}/{name}": event.get(name) for name in BYTES}
    else:
        return {}
    return {name: float(value) for name, value in found.items() if value is not None}


def _round(event: Event) -> dict[str, float]:
    found = {f"loss/{name}": value for name, value in event["loss"].items()}
    if event["loss"]:
        found["total_loss"] = sum(event["loss"].values())
    if event["seconds"] > 0:
        found["updates_per_second"] = event["updates"] / event["seconds"]
    counted = {name: event[name] for name in ("seconds", "updates", "failed", *BYTES)}
    return {name: float(value) for name, value in (found | counted).items()}


def figures(results: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures of results.json that are known, by dotted key."""
    parts = {key: results.get(key) or {} for key in ("metrics", "cost")}
    parts["clients"] = {key: value for key, value in (results.get("clients") or {}).items() if key != "matrices"}
    found = dict(leaves(parts))
    return {key: float(value) for key, value in found.items() if isinstance(value, int | float)}
