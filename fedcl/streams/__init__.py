"""Streams: a data set, cut into tasks, shared out among clients, laid out in time. Everything is index arrays."""

from fedcl.streams.dataset import Dataset, DatasetSettings
from fedcl.streams.partition import Cells, Partition
from fedcl.streams.schedule import Schedule, Timeline
from fedcl.streams.stream import Stream, build_stream, empty_cells
from fedcl.streams.tasks import Task

__all__ = [
    "Cells",
    "Dataset",
    "DatasetSettings",
    "Partition",
    "Schedule",
    "Stream",
    "Task",
    "Timeline",
    "build_stream",
    "empty_cells",
]
