"""Ray, started on this machine or reached as a cluster; the nodes of a cluster, and how much fits on them.

A cluster is reached at HOST:PORT of its head, or as `auto`: the one that RAY_ADDRESS names, else the one that runs on
this machine. Either way this machine has to be a node of it.
"""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fedcl.errors import FederationError
from fedcl.interrupt import Stopped
from fedcl.process import environment, inherited

ALIVE = "/ray.rpc.NodeInfoGcsService/CheckAlive"  # asked of the head; refused where a token is missing
KNOCK = 5.0  # seconds in which a cluster answers, or there is none
PATIENCE = 300.0  # seconds in which the nodes of a cluster come
LOOK = 0.2  # seconds between two looks at which nodes are there
_begun_with: dict[str, dict[str, str]] = {}  # by the address of a Ray: the variables that it was started with here


def _knock(address: str, key: str) -> None:
    """Find out in seconds that no Ray is at HOST:PORT, where Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK).close()
    except (OSError, ValueError) as error:
        raise FederationError(f"{key} = {address!r}: no Ray cluster answers there ({error})") from error
    if os.environ.get("RAY_USE_TLS", "0") != "0":
        return
    import grpc

    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=KNOCK)
            channel.unary_unary(ALIVE)(b"", timeout=KNOCK)
        except grpc.FutureTimeoutError as error:
            raise FederationError(f"{key} = {address!r}: what answers there is no Ray cluster") from error
        except grpc.RpcError as error:  # anything else is for Ray itself to say
            if error.code() is grpc.StatusCode.UNAUTHENTICATED and os.environ.get("RAY_AUTH_MODE") != "token":
                way = "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN unless ~/.ray/auth_token holds it"
                raise FederationError(f"{key} = {address!r}: this Ray cluster asks for its token; {way}") from error


def start_ray(address: str | None, key: str = "engine.address") -> None:
    """Connect to a Ray cluster, or start one on this machine; does nothing where Ray is already up.

    Args:
        address: of a cluster; None: this machine.
        key: what the user has set it by.

    Raises:
        FederationError: no cluster answers there, or this machine cannot be part of it; or Ray does not start here.
        Stopped: SIGTERM came meanwhile.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    if ray.is_initialized():
        return
    if there := os.environ.get("RAY_ADDRESS") if address == "auto" else address:
        _knock(there, key)
    handler, variables = signal.getsignal(signal.SIGTERM), {} if address else environment()
    try:
        with inherited(variables):
            ray.init(  # "local": without it Ray joins whatever cluster was started on this machine last
                address=address or "local",
                include_dashboard=None if address else False,
                log_to_driver=True,
                logging_level="ERROR",
            )
        _begun_with[ray.get_runtime_context().gcs_address] = variables
    except SystemExit as error:  # Ray's own answer to a SIGTERM while it starts
        raise Stopped from error
    except Exception as error:  # Ray says so when a process of its own is late
        why = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        if not address:
            way = "try again if the machine is busy" + (
                "" if key.startswith("--") else ", or run with engine.kind=inline"
            )
            raise FederationError(f"Ray does not start on this machine ({why}); {way}") from error
        way = "this machine has to be a node of it, with the same Ray, Python and token"
        raise FederationError(f"{key} = {address!r}: no Ray cluster can be joined there ({why}); {way}") from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray puts one of its own there, which exits at once


def worker_environment() -> dict[str, Any]:
    """Return what a call or an actor is to have as `runtime_env`, beside what Ray's processes have inherited.

    A process with variables of its own is started when it is asked for, which takes more than a second; those that Ray
    keeps ready for its first calls have none.
    """
    import ray

    there = _begun_with.get(ray.get_runtime_context().gcs_address, {})
    lacking = {name: value for name, value in environment().items() if there.get(name) != value}
    return {"env_vars": lacking} if lacking else {}


@dataclass(frozen=True, kw_only=True)
class Node:
    """A machine of the cluster, or what Ray takes for one."""

    key: str  # Ray's id
    host: str
    cpus: float
    gpus: float

    @property
    def name(self) -> str:
        """The node in words."""
        return f"{self.host} ({self.key[:8]})"


def nodes() -> list[Node]:
    """Return the nodes that are alive, in the order of their names."""
    import ray

    found = [
        Node(
            key=each["NodeID"], host=each["NodeManagerHostname"],
            cpus=each["Resources"].get("CPU", 0.0), gpus=each["Resources"].get("GPU", 0.0),
        )
        for each in ray.nodes()
        if each["Alive"]
    ]  # fmt: skip
    return sorted(found, key=lambda each: each.name)


def room(there: Sequence[Node], cpus: float, gpus: float) -> int:
    """Return how many calls of that size fit at the same time: each lies on one node, a fraction on one GPU."""
    return sum(min(_times(each.cpus, cpus), _on_gpus(each.gpus, gpus)) for each in there)


def _times(there: float, size: float) -> int:
    return int(there / size + 1e-9)


def _on_gpus(there: float, size: float) -> int:
    if not size:
        return sys.maxsize
    return int(there) * _times(1, size) if size < 1 else _times(there, size)


def largest(there: Sequence[Node]) -> str:
    """Say what the nodes have, for a sentence about what does not fit."""
    cpus, gpus = (max((getattr(each, name) for each in there), default=0.0) for name in ("cpus", "gpus"))
    return f"{len(there)} nodes, of at most {cpus:g} cores and {gpus:g} GPUs"


def gather(number: int, check: Callable[[], None], patience: float = PATIENCE) -> None:
    """Wait until the cluster has so many nodes.

    Args:
        check: raises if a stop was asked for.

    Raises:
        FederationError: it has fewer after `patience` seconds.
    """
    end = time.monotonic() + patience
    while len(there := nodes()) < number:
        check()
        if time.monotonic() > end:
            names = ", ".join(each.name for each in there)
            raise FederationError(f"--nodes {number}: {len(there)} are there after {patience:.0f} s: {names}")
        time.sleep(LOOK)
