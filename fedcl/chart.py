"""Charts as text: who is at which task in which round (`fedcl show --plan`), bars and curves (`fedcl watch`)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from fedcl.config import Scenario
    from fedcl.streams import Timeline

SYMBOLS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
NOTHING = "."
MARGIN = len("client 0000000  ")
MAX_CLIENTS = 40
TICK = 10  # columns between two numbers of the ruler
LEVELS = "▁▂▃▄▅▆▇█"
FULL, EMPTY = "█", "·"


def bar(share: float, width: int = 24) -> str:
    """Return a bar that is filled to a share in [0, 1]."""
    filled = round(min(max(share, 0.0), 1.0) * width)
    return FULL * filled + EMPTY * (width - filled)


def curve(values: Sequence[float], width: int = 48, low: float | None = None, high: float | None = None) -> str:
    """Return values as a line of small bars, the means of neighbours where there are more than `width`.

    Args:
        low, high: what the lowest and the highest bar stand for; default: the least and the greatest of them.
    """
    means = [float(part.mean()) for part in np.array_split(np.array(values, np.float64), width) if part.size]
    if not means:
        return ""
    bottom, top = min(means) if low is None else low, max(means) if high is None else high
    steps = [(value - bottom) / (top - bottom) if top > bottom else 0.5 for value in means]
    return "".join(LEVELS[min(len(LEVELS) - 1, int(min(max(step, 0.0), 1.0) * len(LEVELS)))] for step in steps)


def tasks_at(timeline: "Timeline", round: int, share: float) -> list[int]:
    """Return each client's task (-1: none) in a round, had each been asked in its `share` of the rounds before."""
    visits = np.floor(np.maximum(round - 1 - timeline.start, 0) * share).astype(np.int64)
    return [int(task) for task in timeline.tasks(timeline.positions(timeline.clocks(round, visits)))]


def _symbol(task: int) -> str:
    return NOTHING if task < 0 else SYMBOLS[task % len(SYMBOLS)]


def _ruler(columns: list[int]) -> str:
    return "round".ljust(MARGIN) + "".join(str(columns[at]).ljust(TICK) for at in range(0, len(columns), TICK)).rstrip()


def _notes(scenario: "Scenario", timeline: "Timeline", step: int) -> list[str]:
    """Say how to read the chart."""
    notes = [f"one column = {step} round{'s' * (step > 1)}, a symbol = the client's task, {NOTHING} = none"]
    if timeline.open:
        notes.append("tasks begin when a client's data arrives: only the first is known before")
    elif timeline.clock == "participations":
        notes.append("clients move on by their own visits: shown as if each were asked equally often")
    if scenario.stream.joint:
        notes.append("joint: whatever the task, a visit trains on the client's data of all its tasks")
    if scenario.stream.tasks > len(SYMBOLS):
        notes.append(f"symbols repeat after {len(SYMBOLS)} tasks")
    if scenario.stream.clients > MAX_CLIENTS:
        notes.append(f"the first {MAX_CLIENTS} of {scenario.stream.clients:,} clients")
    return notes


def plan_chart(scenario: "Scenario", width: int = 80) -> str:
    """Draw clients (rows) against rounds (columns), at most `width` characters wide.

    Raises:
        ConfigError: the schedule does not fit clients or tasks.
    """
    stream, per_round = scenario.stream, scenario.server.clients_per_round or scenario.stream.clients
    timeline: Timeline = stream.schedule.timeline(stream.clients, stream.tasks, per_round, scenario.seed)
    step = -(-timeline.rounds // max(width - MARGIN, TICK))
    columns = list(range(1, timeline.rounds + 1, step))
    grid = [tasks_at(timeline, round, per_round / stream.clients) for round in columns]
    head = f"{scenario.name}: {stream.clients:,} clients, {stream.tasks} tasks, {timeline.rounds} rounds"
    rows = [
        f"client {client}".ljust(MARGIN) + "".join(_symbol(column[client]) for column in grid)
        for client in range(min(stream.clients, MAX_CLIENTS))
    ]
    return "\n".join(
        [f"{head}, {per_round:,} asked a round", *_notes(scenario, timeline, step), "", _ruler(columns), *rows]
    )
