"""A node goes on to the next federation: of each client's folder, every federation has a ledger of its own."""

from pathlib import Path

from clients.versions import Folder
from tests.nodes import Nodes, fine
from tests.test_local import ARRIVAL, events, federation, folders, local


def test_nodes_go_on_to_the_next_federation_as_if_it_were_their_first(tmp_path: Path) -> None:
    """Another scenario, then the first one again, on the same folders: the weights of fresh nodes each time."""
    folders(tmp_path / "data")
    first, second = local("client.method=er"), local("client.method=derpp", schedule=ARRIVAL, tasks=3)
    nodes = Nodes(4, fine, tmp_path / "nodes", tmp_path / "data")
    for number, scenario in enumerate((first, second, first)):
        own = federation(scenario, tmp_path / str(number), tmp_path / "data", nodes=nodes)
        alone = federation(scenario, tmp_path / f"alone-{number}", tmp_path / "data")
        assert own["weights_sha256"] == alone["weights_sha256"]
        assert events(tmp_path / str(number), "client_error") == []
    ledgers = sorted((tmp_path / "nodes/0/client-000000").glob("arrivals-*.json"))
    assert len(ledgers) == 3


def test_ledgers_are_kept_of_a_bounded_number_of_federations_whatever_they_are_called(tmp_path: Path) -> None:
    kept = Folder(tmp_path)
    for number in range(70):
        kept.keep_ledger(1, f"../../{number}/\ud800", str(number).encode())
    assert len(list((tmp_path / "client-000001").iterdir())) == 64
    assert list(tmp_path.rglob("*")) == [tmp_path / "client-000001", *(tmp_path / "client-000001").iterdir()]
    assert kept.ledger(1, "../../69/\ud800") == b"69"
    assert kept.ledger(1, "../../0/\ud800") == b""
