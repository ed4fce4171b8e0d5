"""Calls of their own, several at once, as Ray tasks with a share of cores and GPUs, on this machine or on a cluster."""

import time
from dataclasses import dataclass
from typing import Any

from fedcl.engine import cluster
from fedcl.engine.worker import found
from fedcl.errors import ConfigError, FederationError

DEATHS = 2  # a call whose process dies is made again so often; what it has left on disk it finds there
CANCELLED = "cancelled"  # what a call comes to that was asked to end
GRACE = 20.0  # seconds in which calls that are asked to end may do so
PATIENCE = 60.0  # seconds for which calls wait for a node that is large enough, where those that there were have died


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A call that has ended."""

    key: str
    result: Any  # what it has returned; an Exception if it failed; CANCELLED
    node: str = ""  # Ray's id of the node that it was on; "": it has not returned


def call(reference: str, arguments: tuple[Any, ...]) -> tuple[str, Any]:
    """Call what an import string names; return where and what it returned. What Ray's processes run."""
    import ray

    return ray.get_runtime_context().get_node_id(), found(reference)(*arguments)


class Pool:
    """A queue of calls; none of them knows of the others."""

    def __init__(self, *, cpus: float, gpus: float, at_once: int | None) -> None:
        """Look at how many calls Ray, which is up, has room for.

        Args:
            cpus, gpus: that Ray keeps for each call.
            at_once: calls at the same time at most.

        Raises:
            ConfigError: no node is large enough for a call.
        """
        import ray

        self._ray = ray
        self._task = ray.remote(call).options(
            num_cpus=cpus, num_gpus=gpus, max_retries=DEATHS, retry_exceptions=False,
            runtime_env=cluster.worker_environment(),
        )  # fmt: skip
        self._size, self._at_once = (cpus, gpus), at_once
        self._waiting: list[tuple[str, str, tuple[Any, ...]]] = []
        self._running: dict[Any, str] = {}
        self._roomy = time.monotonic()  # when there was room last
        self.most = 0  # calls at the same time
        self._measure()
        if not self.most:
            raise ConfigError(self._too_large())

    def _measure(self) -> None:
        """Look at how many calls Ray has room for now: more would only wait there, where nobody sees it.

        Raises:
            FederationError: for a while no node was large enough for a call.
        """
        room = cluster.room(cluster.nodes(), *self._size)
        self.most = min(room, self._at_once or room)
        now = time.monotonic()
        if self.most:
            self._roomy = now
        elif now - self._roomy > PATIENCE:
            raise FederationError(f"{self._too_large()}; the same command goes on when there is one")

    def _too_large(self) -> str:
        cpus, gpus = self._size
        asked = f"limits.cpus = {cpus:g}" + (f", limits.gpus = {gpus:g}" if gpus else "")
        return f"{asked}: no node is large enough for a run (Ray has {cluster.largest(cluster.nodes())})"

    @property
    def running(self) -> list[str]:
        """Keys of the calls that are in work."""
        return list(self._running.values())

    def submit(self, key: str, reference: str, *arguments: Any) -> None:
        """Queue a call."""
        self._waiting.append((key, reference, arguments))
        self._fill()

    def _fill(self) -> None:
        while self._waiting and len(self._running) < self.most:
            key, reference, arguments = self._waiting.pop(0)
            self._running[self._task.remote(reference, arguments)] = key

    def wait(self, seconds: float) -> list[Ended]:
        """Wait until a call has ended, at most so long; return those that have.

        Raises:
            FederationError: for a while no node was large enough for a call.
        """
        found = self._collected(seconds)
        self._measure()
        self._fill()
        return found

    def _collected(self, seconds: float) -> list[Ended]:
        if not self._running:
            time.sleep(seconds)  # no node is large enough at the moment
            return []
        ended, _ = self._ray.wait(list(self._running), num_returns=1, timeout=seconds)
        return [self._ended(self._running.pop(each), each) for each in ended]

    def _ended(self, key: str, reference: Any) -> Ended:
        try:
            node, result = self._ray.get(reference)
        except self._ray.exceptions.TaskCancelledError:
            return Ended(key=key, result=CANCELLED)
        except self._ray.exceptions.RayError as error:
            return Ended(key=key, result=error)
        return Ended(key=key, result=result, node=node)

    @property
    def busy(self) -> bool:
        """Whether a call is in work or waits."""
        return bool(self._running or self._waiting)

    def stop(self) -> list[Ended]:
        """Ask what is in work to end, wait for it, forget the rest; return what has ended."""
        self._waiting.clear()
        for each in self._running:
            self._ray.cancel(each, force=False)  # an interrupt, which a run takes as a request to stop
        end, found = time.monotonic() + GRACE, list[Ended]()
        while self._running and time.monotonic() < end:
            found += self._collected(0.5)
        return found
