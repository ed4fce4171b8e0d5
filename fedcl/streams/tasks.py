"""Tasks: what changes over time. Classes (class- and task-incremental) or inputs (domain-incremental, permuted).

The three scenarios of van de Ven and Tolias (arXiv:1904.07734).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedcl import keys
from fedcl.config import StreamConfig
from fedcl.errors import ConfigError
from fedcl.keys import Purpose
from fedcl.streams.dataset import Ints

DOMAIN = "domain-incremental"
# What the draws of Purpose.TASKS are for.
CLASS_ORDER, INPUT_ORDER = 0, 1


@dataclass(frozen=True)
class Task:
    """One task of the federation."""

    id: int
    classes: tuple[int, ...]  # ascending


def split_classes(order: Ints, tasks: int) -> tuple[Task, ...]:
    """Cut the classes, in this order, into `tasks` groups whose sizes differ by at most one (larger ones first)."""
    groups = np.array_split(order, tasks)
    return tuple(Task(number, tuple(sorted(group.tolist()))) for number, group in enumerate(groups))


def make_tasks(config: StreamConfig, classes: int, seed: int) -> tuple[Task, ...]:
    """Return the tasks of a stream; domain-incremental ones have all classes each.

    Raises:
        ConfigError: more tasks than classes to split.
    """
    order, base = np.arange(classes), config.base_classes
    if config.kind == DOMAIN:
        return every_class(config, classes)
    if base:
        return _after_base(config, order, seed)
    if config.tasks > classes:
        raise ConfigError(
            f"stream.tasks = {config.tasks}: {config.kind} splits the {classes} classes of the data set, "
            f"so at most {classes}; or set stream.kind = {DOMAIN}"
        )
    if config.shuffle_classes:
        order = keys.generator(seed, Purpose.TASKS, CLASS_ORDER).permutation(classes)
    return split_classes(order, config.tasks)


def every_class(config: StreamConfig, classes: int) -> tuple[Task, ...]:
    """Return tasks that may have any class each."""
    return tuple(Task(number, tuple(range(classes))) for number in range(config.tasks))


def _after_base(config: StreamConfig, order: Ints, seed: int) -> tuple[Task, ...]:
    """Return the first task with the first `base_classes` classes, and the tasks that the others are split into."""
    base, later = order[: config.base_classes], order[config.base_classes :]
    if not 1 <= config.tasks - 1 <= len(later):
        raise ConfigError(
            f"stream.base_classes = {config.base_classes}: leaves {len(later)} of {len(order)} classes for the other "
            f"{config.tasks - 1} tasks (stream.tasks = {config.tasks}), which need at least one each"
        )
    if config.shuffle_classes:
        later = keys.generator(seed, Purpose.TASKS, CLASS_ORDER).permutation(later)
    tasks = split_classes(later, config.tasks - 1)
    return (Task(0, tuple(base.tolist())), *(Task(each.id + 1, each.classes) for each in tasks))


def input_permutations(config: StreamConfig, d: int, seed: int) -> Ints | None:
    """Return (tasks, d): how each task orders the flattened input, task 0 as it is; None if tasks keep the inputs."""
    if config.kind != DOMAIN:
        return None
    key = keys.key(seed, Purpose.TASKS, INPUT_ORDER, np.arange(config.tasks))
    drawn = keys.permutations(key, np.full(config.tasks, d), d)
    drawn[0] = np.arange(d)
    return drawn


def class_masks(config: StreamConfig, tasks: tuple[Task, ...], classes: int) -> NDArray[np.bool_]:
    """Return (tasks, classes): True where a class can be predicted; a task's own ones if the task is known."""
    masks = np.full((len(tasks), classes), config.kind != "task-incremental")
    for task in tasks:
        masks[task.id, list(task.classes)] = True
    return masks
