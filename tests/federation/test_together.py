"""Real machines in good weather: the same weights as in one process, over TLS, with strangers at the door."""

import subprocess
from pathlib import Path

import pytest

from fedcl import api, config
from tests.federation.machines import SCENARIO, fedcl, machines, until

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
    """TLS and keys. At the door: a key that nobody registered, a node that trusts another CA, one without TLS."""
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
            found.join(0, name=name, extra=["--tls", str(ca), "--key", str(key)])
        found.join(0, name="plain")
        for client, name in enumerate("abc"):
            key = own / "nodes" / f"{name}.key"
            found.join(client, extra=["--tls", str(own / "ca.crt"), "--key", str(key)])
        results = found.finished()
        assert results["weights_sha256"] == alone
        assert found.events("client_error") == []
        assert [event["clients"] for event in found.events("round")] == [[0, 1, 2]] * 4 or all(
            sorted(event["clients"]) == [0, 1, 2] for event in found.events("round")
        )
        assert "its key is not registered" in found.said("unknown")
        assert "not signed by --tls" in found.said("distrustful")
        assert "is not reached, or speaks otherwise (TLS or plain text)" in found.said("plain")
        for name in ("unknown", "distrustful", "plain"):
            assert "train" not in found.said(name)
            assert not list((tmp_path / name / "records").iterdir())
