"""The Ray grid: persistent actors, about two calls a worker and round, each with several cohorts.

Cohorts are dealt out to calls longest first, by what they are predicted to cost, and a worker has its next call waiting
before it has finished one: between two calls that are sent one after another it would idle for as long as a small
cohort takes. Weights go once a round through the object store.

A cohort is a pure function of its order, so cohorts of a worker that died go back into the queue and Ray starts the
worker anew; replies carry their cohort's number, so that neither the number of workers nor the order of completion has
a part in the result. Flower's mods do not run on this path.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from flwr.app import Error, Message

from fedcl import timing, wire
from fedcl.engine import cluster, flower
from fedcl.engine.grid import LocalGrid
from fedcl.engine.worker import EMPTY, Worker
from fedcl.errors import ConfigError
from fedcl.fingerprint import fingerprint
from fedcl.orders import Order, TrainOrder
from fedcl.streams import Stream

CALLS_PER_WORKER = 2
SLOTS = 2  # calls that a worker has: one in work, one waiting
PAUSE = 0.1  # seconds before a worker that is still down is asked again
LOOK = 0.2  # seconds between two looks at which workers have started
PATIENCE = 20.0  # seconds after which somebody is told that some have not
DEATHS = 3  # a cohort that takes this many workers with it is given up


@dataclass(frozen=True, kw_only=True)
class Call:
    """Some cohorts that go to a worker together."""

    weights: Any  # reference into the object store
    messages: tuple[Message, ...]
    orders: tuple[Order, ...]


def fitting(asked: int, fixed: bool, gpus: float, everywhere: bool) -> int:
    """Return how many workers to start: those that are asked for, if Ray has room for them.

    Args:
        asked: how many there should be.
        fixed: whether the user has said so; else a machine has fewer where Ray has less room.
        gpus: of each, beside a core.
        everywhere: on a cluster: as many as it has room for, unless the user has said how many.

    Raises:
        ConfigError: there is no room for so many. Ray would wait for it without a word.
    """
    there = cluster.nodes()
    most = cluster.room(there, 1, gpus)
    if (asked if fixed else 1) > most:
        each = f"1 core and {gpus:g} GPUs" if gpus else "1 core"
        way = f"set engine.workers to at most {most}" if most else "engine.kind=inline needs none"
        raise ConfigError(
            f"engine.workers = {asked}: there is room for {most} of {each} (Ray has {cluster.largest(there)}); {way}"
        )
    return asked if fixed else most if everywhere else min(asked, most)


def dealt(costs: Sequence[float], parts: int) -> list[list[int]]:
    """Deal numbered costs out to at most `parts` parts, longest first, each to the part that is least so far.

    (Graham, SIAM J. Appl. Math. 17, 1969: at most 4/3 of the shortest possible longest part.)

    Returns:
        The numbers in each part, ascending; the longest part first.
    """
    sums, chosen = [0.0] * min(parts, len(costs)), [list[int]() for _ in range(min(parts, len(costs)))]
    for number in sorted(range(len(costs)), key=lambda each: -costs[each]):
        part = sums.index(min(sums))
        sums[part] += costs[number]
        chosen[part].append(number)
    return [sorted(chosen[part]) for part in sorted(range(len(sums)), key=lambda each: -sums[each])]


class RayGrid(LocalGrid):
    """One node whose clients are trained by Ray actors."""

    def __init__(self, config: str, stream: Stream, *, workers: int, gpus: float) -> None:
        """Ask Ray, which is up, for its workers.

        Args:
            workers: how many; `fitting` says how many there is room for.
            gpus: of each.
        """
        super().__init__()
        import ray

        self._ray, self._plan = ray, stream
        self._stream = ray.put(stream)
        actor = ray.remote(Worker).options(
            num_cpus=1, num_gpus=gpus, max_restarts=-1, max_task_retries=0,
            runtime_env=cluster.worker_environment(),
        )  # fmt: skip
        self._workers = [actor.remote(config) for _ in range(workers)]
        self._idle, self._queue = deque(self._workers * SLOTS), deque[Call]()
        self._running: dict[Any, tuple[Any, Call | None]] = {}  # no call: a worker that is being started anew
        self._ready: list[Message] = []
        self._deaths: Counter[str] = Counter()

    def begin(self, check: Callable[[], None], wait: Callable[[int], None]) -> None:
        """Wait until all workers have started: cores that others hold have to come free first.

        Args:
            check: raises if a stop was asked for.
            wait: is told, once, after a while, how many have started.
        """
        late, told = [worker.ready.remote() for worker in self._workers], time.monotonic() + PATIENCE
        while late:
            check()
            done, late = self._ray.wait(late, num_returns=len(late), timeout=LOOK)
            self._ray.get(done)
            if late and time.monotonic() > told:
                wait(len(self._workers) - len(late))
                told = float("inf")
        for worker in self._workers:  # while this process readies the server; what fails shows in the first order
            worker.warm.remote([self._stream])

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Put the messages of a round into the queue, several cohorts a call, and set idle workers to work."""
        shared: dict[int, tuple[Any, list[tuple[Message, Order]]]] = {}
        ids = []
        for message in messages:
            ids.append(flower.number(message))
            if message.metadata.message_type == "query.hello":
                own = fingerprint(wire.text(message.content, "config"))
                self._ready.append(
                    Message(wire.hello(np.arange(len(self._plan.timeline.order)), own), reply_to=message)
                )
                continue
            order: Order = wire.decode(message.content)
            weights = id(order.weights if isinstance(message.content, wire.Plain) else message.content["weights"])
            if weights not in shared:
                shared[weights] = (self._ray.put(order.weights), [])
            shared[weights][1].append((message, replace(order, weights=EMPTY)))
        for reference, pairs in shared.values():
            costs = [self._cost(order) for _, order in pairs]
            for part in dealt(costs, CALLS_PER_WORKER * len(self._workers)):
                chosen = [pairs[i] for i in part]
                self._queue.append(
                    Call(weights=reference, messages=tuple(m for m, _ in chosen), orders=tuple(o for _, o in chosen))
                )
        self._dispatch()
        return ids

    def _cost(self, order: Order) -> float:
        """Return how long an order takes, in items: those that its clients train on, else one a client."""
        if not isinstance(order, TrainOrder):
            return len(order.clients)
        return float(self._plan.sizes(order.clients, order.tasks, order.clocks).sum())

    def _dispatch(self) -> None:
        while self._idle and self._queue:
            worker, call = self._idle.popleft(), self._queue.popleft()
            self._running[worker.carry_out.remote([self._stream], call.weights, call.orders)] = (worker, call)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return replies that are there; waits up to a second for the first."""
        if not self._ready and self._running:
            done, _ = self._ray.wait(list(self._running), num_returns=1, timeout=1.0)
            for reference in done:
                self._collect(reference)
            self._dispatch()
        wanted = set(message_ids)
        replies = [reply for reply in self._ready if reply.metadata.reply_to_message_id in wanted]
        self._ready = []
        return replies

    def _collect(self, reference: Any) -> None:
        worker, call = self._running[reference]
        try:
            done = self._ray.get(reference)
        except self._ray.exceptions.RayActorError as error:
            self._buried(worker, error)
            return
        del self._running[reference]
        self._idle.extend([worker] * (1 if call else SLOTS))
        if not call:
            return
        replies, marks = done
        timing.add(marks)
        for message, reply in zip(call.messages, replies, strict=True):
            if isinstance(reply, str):
                self._give_up((message,), reply)
            else:
                self._ready.append(Message(wire.Plain(reply), reply_to=message))

    def _buried(self, worker: Any, error: Exception) -> None:
        """Queue anew what a dead worker had to do; only the call that it was at is held against its cohorts."""
        calls = [(reference, call) for reference, (mine, call) in self._running.items() if mine is worker]
        held = False
        for reference, call in calls:  # in the order in which it was given them, which is that of its work
            finished = self._ray.wait([reference], timeout=0)[0] and not self._failed(reference)
            if finished:
                self._collect(reference)
                continue
            del self._running[reference]
            if not call:
                time.sleep(PAUSE)
            elif held:
                self._queue.appendleft(call)
            else:
                held = True
                self._repeat(call, error)
        # A call to a worker that is still down fails at once, and would be held against its cohorts: it is asked first.
        self._idle = deque(each for each in self._idle if each is not worker)
        self._running[worker.ready.remote()] = (worker, None)

    def _failed(self, reference: Any) -> bool:
        try:
            self._ray.get(reference)
        except self._ray.exceptions.RayActorError:
            return True
        return False

    def _repeat(self, call: Call, error: Exception) -> None:
        """Queue the cohorts of a worker that died again, one a call, in the same form."""
        for message, order in zip(call.messages, call.orders, strict=True):
            message_id = message.metadata.message_id
            self._deaths[message_id] += 1
            if self._deaths[message_id] >= DEATHS:
                self._give_up((message,), f"{DEATHS} workers died on this cohort: {error}")
            else:
                self._queue.appendleft(Call(weights=call.weights, messages=(message,), orders=(order,)))

    def _give_up(self, messages: Iterable[Message], reason: str) -> None:
        self._ready += [Message(Error(code=2, reason=reason), reply_to=message) for message in messages]

    def close(self) -> None:
        """Stop the workers; Ray itself stays up for whoever started it."""
        for worker in self._workers:
            self._ray.kill(worker)
        self._workers = []
