"""Real machines in good weather: the same weights as in one process, over TLS, with strangers at the door."""

import json
import subprocess
from pathlib import Path

import pytest

from fedcl import api, config, rundir
from fedcl.engine import flower
from fedcl.engine.choice import resolve
from fedcl.names import node_of, of_secret, ward_of
from fedcl.real.joining import name_by
from server.app import main as server_app
from tests.federation.machines import SCENARIO, fedcl, machines, until, visits
from tests.nodes import Nodes

pytestmark = [pytest.mark.machines, pytest.mark.xdist_group("network-together")]  # as long as test_faults


@pytest.fixture
def alone(tmp_path: Path) -> str:
    """Return the weights' hash of the same scenario in one process."""
    scenario = config.load(SCENARIO[0], [*SCENARIO[1:], "engine.kind=inline"])
    outcome = api.run(scenario, out=tmp_path / "alone")
    assert outcome.code == 0
    return str(outcome.results["weights_sha256"])


def certs(folder: Path, name: str, *nodes: str) -> Path:
    """Make certificates and keys."""
    subprocess.run(fedcl("certs", name, "--nodes", *nodes), cwd=folder, check=True, capture_output=True)
    return folder / name


def test_three_nodes_come_to_the_weights_of_one_process_and_strangers_do_not_matter(tmp_path: Path, alone: str) -> None:
    """TLS and keys, by which the nodes have their names; the numbers are the server's.

    At the door: a key that nobody registered, a node that trusts another CA, one without TLS.
    """
    own = certs(tmp_path, "certs", "a", "b", "c", "stranger")
    other = certs(tmp_path, "other", "d")
    keys = [str(own / "nodes" / f"{name}.pub") for name in "abc"]
    subprocess.run(fedcl("server", "nodes", "add", *keys, "--state", "server"), cwd=tmp_path, check=True)
    with machines(tmp_path) as found:
        found.serve(*SCENARIO, "--tls", str(own), "--auth")
        until("the SuperLink", lambda: "SuperLink at" in found.said("server"))
        for name, key, ca in (
            ("unknown", own / "nodes" / "stranger.key", own / "ca.crt"),
            ("distrustful", own / "nodes" / "a.key", other / "ca.crt"),
        ):
            found.join(name=name, extra=["--tls", str(ca), "--key", str(key)])
        found.join(name="plain")
        for name in "abc":
            key = own / "nodes" / f"{name}.key"
            found.join(name=f"node-{name}", extra=["--tls", str(own / "ca.crt"), "--key", str(key)])
        results = found.finished()
        assert results["weights_sha256"] == alone
        assert found.events("client_error") == []
        assert [sorted(event["clients"]) for event in found.events("round")] == [[0, 1, 2]] * 4
        by_key = {name: name_by(own / "nodes" / f"{name}.key") for name in "abc"}
        table = json.loads((found.run / "clients.json").read_text())["names"]
        assert sorted(table.values()) == [0, 1, 2]
        joined = {(event["node"], event["name"], event["client"]) for event in found.events("joined")}
        assert joined == {(name, key, table[key]) for name, key in by_key.items()}
        for name, key in by_key.items():
            known = json.loads((tmp_path / f"node-{name}" / "records" / "names.json").read_text())
            assert list(known.values()) == [{key: table[key]}]
            assert f"this node's clients are {key}" in found.said(f"node-{name}")
        assert "its key is not registered" in found.said("unknown")
        assert "not signed by --tls" in found.said("distrustful")
        assert "is not reached, or speaks otherwise (TLS or plain text)" in found.said("plain")
        for name in ("unknown", "distrustful", "plain"):
            assert "train" not in found.said(name)
            assert not list((tmp_path / name / "records").iterdir())


def together(folder: Path, *nodes: list[int]) -> str:
    """Return the weights' hash of the scenario in one process, with these clients on a node each.

    What a node's clients answer is added up there first, so the last bits depend on who lives together.
    """
    flower.identify()
    scenario = config.load(SCENARIO[0], [*SCENARIO[1:], "engine.kind=inline"])
    grid, run = Nodes(len(nodes)), rundir.create(resolve(scenario)[0], folder / "run")
    for context, clients in zip(grid.contexts, nodes, strict=True):
        context.node_config["clients"] = ",".join(map(str, clients))
    server_app(grid, flower.context({"directory": str(run)}, {}))
    return str(api.load(run).results["weights_sha256"])


def test_a_hospital_with_two_wards_comes_back_under_its_numbers(tmp_path: Path) -> None:
    """One node with two named clients and one with its own, no keys; the first is killed, the server stopped once."""
    with machines(tmp_path) as found:
        found.serve(*SCENARIO)
        until("the SuperLink", lambda: "SuperLink at" in found.said("server"))
        found.join("ward-a", "ward-b", name="hospital")
        found.join(name="practice")
        found.round_done(1)
        found.running["hospital"].kill()
        found.running["hospital"].wait()
        assert found.stop("server") == 75
        table = (found.run / "clients.json").read_bytes()
        until("the SuperNode's death", lambda: not found.processes("flower-supernode", "ward-a"))
        found.serve("--resume")
        found.join("ward-b", "ward-a", name="hospital")  # in another order
        results = found.finished()
        assert (found.run / "clients.json").read_bytes() == table
        rounds = {event["round"]: sorted(event["clients"]) for event in found.events("round")}
        assert rounds == {round: [0, 1, 2] for round in range(1, 5)}
        given = json.loads(table)["names"]
        hospital = sorted(number for name, number in given.items() if ward_of(name))
        assert results["weights_sha256"] == together(tmp_path / "alike", hospital, [3 - sum(hospital)])
        assert {ward_of(name) for name in given} == {"", "ward-a", "ward-b"}
        own = of_secret((tmp_path / "hospital" / "records" / "secret").read_bytes())
        assert {node_of(name) for name in given if ward_of(name)} == {own}
        assert {event["name"]: event["client"] for event in found.events("joined")} == given
        for name, number in given.items():
            assert visits(found, "hospital" if ward_of(name) else "practice", number, 4) == 4
