"""Calls of their own, several at once, as Ray tasks with a share of cores and GPUs, on this machine or on a cluster."""

import time
from typing import Any

from fedcl.engine.ray_grid import start_ray
from fedcl.engine.worker import found
from fedcl.process import environment

DEATHS = 2  # a call whose process dies is made again so often; what it has left on disk it finds there
CANCELLED = "cancelled"  # what a call comes to that was asked to end
GRACE = 20.0  # seconds in which calls that are asked to end may do so


def call(reference: str, arguments: tuple[Any, ...]) -> Any:
    """Call what an import string names; what Ray's processes run."""
    return found(reference)(*arguments)


class Pool:
    """A queue of calls; none of them knows of the others."""

    def __init__(self, *, cpus: float, gpus: float, at_once: int | None, address: str | None) -> None:
        """Connect to Ray or start it.

        Args:
            cpus, gpus: that Ray keeps for each call.
            at_once: calls at the same time at most.
            address: of a Ray cluster; None: this machine.
        """
        start_ray(address)
        import ray

        self._ray = ray
        self._task = ray.remote(call).options(
            num_cpus=cpus, num_gpus=gpus, max_retries=DEATHS, retry_exceptions=False,
            runtime_env={"env_vars": environment()},
        )  # fmt: skip
        self._waiting: list[tuple[str, str, tuple[Any, ...]]] = []
        self._running: dict[Any, str] = {}
        self.most = at_once or self._room(cpus, gpus)  # calls at the same time

    def _room(self, cpus: float, gpus: float) -> int:
        """Return how many calls Ray has room for: more would only wait there, where nobody sees it."""
        there = self._ray.cluster_resources()
        room = [there.get("CPU", 0) / cpus, *([there.get("GPU", 0) / gpus] if gpus else [])]
        return max(1, int(min(room) + 1e-9))

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

    def wait(self, seconds: float) -> list[tuple[str, Any]]:
        """Wait until a call has ended, at most so long; return (key, result): an Exception if it failed; CANCELLED."""
        ended, _ = self._ray.wait(list(self._running), num_returns=1, timeout=seconds) if self._running else ([], [])
        found = [(self._running.pop(each), self._result(each)) for each in ended]
        self._fill()
        return found

    def _result(self, reference: Any) -> Any:
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.TaskCancelledError:
            return CANCELLED
        except self._ray.exceptions.RayError as error:
            return error

    @property
    def busy(self) -> bool:
        """Whether a call is in work or waits."""
        return bool(self._running or self._waiting)

    def stop(self) -> list[tuple[str, Any]]:
        """Ask what is in work to end, wait for it, forget the rest; return what has ended as `wait` does."""
        self._waiting.clear()
        for each in self._running:
            self._ray.cancel(each, force=False)  # an interrupt, which a run takes as a request to stop
        end, found = time.monotonic() + GRACE, list[tuple[str, Any]]()
        while self._running and time.monotonic() < end:
            found += self.wait(0.5)
        return found
