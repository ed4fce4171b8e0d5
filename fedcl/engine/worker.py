"""The process behind a Ray actor: one site, kept warm; orders in, replies out."""

import importlib
import os
import time
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fedcl import timing
from fedcl.orders import Array, Order, Reply, TrainReply

CARRIES_OUT = {
    "TrainOrder": "clients.work:train",
    "ConsolidateOrder": "clients.consolidation:consolidate",
    "EvaluateOrder": "clients.evaluation:evaluate",
    "ScoreOrder": "clients.scoring:score",
    "TraceOrder": "clients.trace:trace",
}
EMPTY = np.zeros(0, np.float32)


def found(reference: str) -> Any:
    """Return what an import string names."""
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)


class Worker:
    """Carries out orders on the data that all workers of a machine share through the object store."""

    def __init__(self, config: str) -> None:
        self._config = config
        self._site: Any = None

    def ready(self) -> int:
        """Return the process id: the worker has started."""
        return os.getpid()

    def warm(self, stream: Sequence[Any]) -> None:
        """Import what trains and build the site, if that is still to be done.

        Args:
            stream: one reference to the stream, fetched once in the life of this process.
        """
        if self._site is None:
            self._site = found("clients.site:make_site")(self._config, found("ray:get")(stream[0]))
            for reference in CARRIES_OUT.values():
                found(reference)

    def carry_out(
        self, stream: Sequence[Any], weights: Array, orders: Sequence[Order]
    ) -> tuple[list[Reply | str], list[timing.Mark]]:
        """Carry out the orders of one call, which share the weights; an order that fails gives its traceback.

        Args:
            stream: as for `warm`.
        """
        self.warm(stream)
        return [self._carry_out(replace(order, weights=weights)) for order in orders], timing.taken()

    def _carry_out(self, order: Order) -> Reply | str:
        try:
            began, store = time.perf_counter(), found("fedcl.state:PackStore")(Path(order.folder))
            reply: Reply = found(CARRIES_OUT[type(order).__name__])(self._site, order, store)
            return reply.timed(time.perf_counter() - began) if isinstance(reply, TrainReply) else reply
        except Exception:  # a failed cohort is data: the server logs it with the names of its clients
            return traceback.format_exc()
