"""Nodes on networks of their own, one of which is cut."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.federation.machines import SCENARIO, machines, visits

pytestmark = [pytest.mark.machines, pytest.mark.xdist_group("network-together")]  # as long as test_faults
# Of the addresses for benchmarks (RFC 2544), which nobody else uses; two runs on one machine have two networks.
NETWORK = f"198.{18 + os.getpid() % 2}.{os.getpid() // 2 % 256}"
HOST = f"{NETWORK}.1"


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


def hosts() -> list[str]:
    return [f"fedcl-{os.getpid()}-{client}" for client in range(3)]


def links() -> list[str]:
    return [f"fc{os.getpid() % 100000}v{client}" for client in range(3)]


@pytest.fixture
def network() -> Iterator[list[str]]:
    """Yield three network namespaces, whose machines reach the server's bridge and nothing else."""
    if not shutil.which("ip"):
        pytest.skip("network namespaces need the command ip (Debian: iproute2)")
    bridge = f"fc{os.getpid() % 100000}b"
    try:
        ip("link", "add", bridge, "type", "bridge")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"network namespaces cannot be made here: {error.stderr.strip()}")
    try:
        ip("addr", "add", f"{HOST}/24", "dev", bridge)
        ip("link", "set", bridge, "up")
        for client, (name, link) in enumerate(zip(hosts(), links(), strict=True)):
            ip("netns", "add", name)
            ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("link", "set", link, "master", bridge, "up")
            ip("-n", name, "addr", "add", f"{NETWORK}.{10 + client}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield hosts()
    finally:
        for name in hosts():
            subprocess.run(["ip", "netns", "del", name], capture_output=True)
        subprocess.run(["ip", "link", "del", bridge], capture_output=True)


def test_a_node_whose_network_is_cut_for_two_rounds_misses_them_and_comes_back(
    tmp_path: Path, network: list[str]
) -> None:
    """The others go on; what the cut node has trained and could not send counts for nothing."""
    rounds = ("stream.tasks=4", "server.min_clients=2", "server.deadline=25")
    with machines(tmp_path, HOST) as found:
        found.serve(*SCENARIO, *rounds)
        for client, name in enumerate(network):
            found.join(client, prefix=["ip", "netns", "exec", name])
        found.round_done(1)
        ip("link", "set", links()[2], "down")
        found.round_done(4)
        ip("link", "set", links()[2], "up")
        results = found.finished()
        parts = [sorted(event["clients"]) for event in found.events("round")]
        assert [event["round"] for event in found.events("round")] == list(range(1, 9))
        assert all({0, 1} <= set(part) for part in parts)
        assert [0, 1] in parts
        assert results["status"] == "finished"
        for client in range(3):
            mine = [round for round, part in enumerate(parts, start=1) if client in part]
            assert visits(found, f"node-{client}", client, mine[-1]) == len(mine)
