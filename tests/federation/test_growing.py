"""Two hospitals with growing folders, one of them with two wards; a file comes, one goes, one is damaged."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.federation.machines import machines, until

pytestmark = pytest.mark.machines
SCENARIO = {
    "name": "wards",
    "stream": {
        "dataset": {"name": "local", "classes": ["0", "1", "2"], "shape": [6]},
        "clients": 3,
        "tasks": 4,
        "schedule": {"kind": "arrival", "rounds": 6},
    },
    "model": {"name": "mlp", "width": 8},
    "client": {"method": "er", "memory": {"size": 12}, "optimizer": {"lr": 0.2}, "epochs": 3},
    "server": {"min_clients": 3},
    "evaluate": {"every": 2},
}


def write(path: Path, seed: int, n: int) -> None:
    """Write n items of three classes."""
    rng, y = np.random.default_rng(seed), np.arange(n) % 3
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".tmp")  # whoever looks meanwhile sees no half file
    with open(part, "wb") as file:
        np.savez(file, x=(rng.normal(size=(n, 6)) + 3 * np.eye(6)[y]).astype(np.float32), y=y)
    part.rename(path)


def test_folders_of_two_hospitals_grow_while_a_federation_runs(tmp_path: Path) -> None:
    """Ward b gets a new file after round 1, and loses its first one once it is at the task of the second."""
    (tmp_path / "wards.yaml").write_text(yaml.safe_dump(SCENARIO))
    for number, folder in enumerate(("one", "two/a", "two/b")):
        write(tmp_path / "data" / folder / "first.npz", number, 30)
    (tmp_path / "data/one/broken.npz").write_bytes(b"PK\3\4 cut off")
    with machines(tmp_path) as found:
        found.serve("wards.yaml")
        found.join(name="one", extra=["--data", "data/one", "--audit", "one.audit", "--allow", "delta,accuracy"])
        found.join(name="two", extra=["--data", "data/two", "--client", "a", "--client", "b"])
        found.round_done(1)
        write(tmp_path / "data/two/b/second.npz", 7, 24)
        names = {event["name"].partition("/")[2]: event["client"] for event in found.events("joined")}
        assert sorted(names) == ["", "a", "b"]
        until("ward b at its second task", lambda: any(1 in event["tasks"] for event in found.events("round")))
        (tmp_path / "data/two/b/first.npz").unlink()
        results = found.finished()
        tasks = [dict(zip(event["clients"], event["tasks"], strict=True)) for event in found.events("round")]
        assert [each[names["a"]] for each in tasks] == [0] * 6
        of_b = [each[names["b"]] for each in tasks]
        assert of_b == sorted(of_b)
        assert (of_b[0], of_b[-1]) == (0, 1)
        (held,) = (tmp_path / "two/records" / f"client-{names['b']:06d}").glob("arrivals-*.json")
        assert [(each[0], each[4]) for each in json.loads(held.read_text())["arrivals"]] == [
            ("first.npz", 0), ("second.npz", 1)
        ]  # fmt: skip
        assert found.events("client_error") == []
        assert "1 fault in its folder: broken.npz" in found.said("one")
        stock = found.events("stock")[0]
        assert dict(zip(stock["clients"], stock["faults"], strict=True))[names[""]] == 1
        audit = [json.loads(line)["statistic"] for line in (tmp_path / "one.audit").read_text().splitlines()]
        assert set(audit) == {"stock", "delta", "accuracy"}
        assert results["status"] == "finished"
        assert results["metrics"]["acc"] > 0.8
