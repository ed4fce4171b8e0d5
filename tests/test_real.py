"""The parts of `fedcl server` and `fedcl client`, one by one; tests/federation has them together."""

import base64
import hashlib
import importlib
import io
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk
from flwr.common.config import parse_config_args

from fedcl import lock, names
from fedcl.certfolder import update_folder
from fedcl.cli import main
from fedcl.errors import ConfigError, FederationError
from fedcl.journal import write_json
from fedcl.real import bundle, gate
from fedcl.real.flower import Link, environment, node_command, read_answer
from fedcl.real.joining import activity_line, meaning, name_by
from fedcl.real.nodes import Member, Nodes, link_of, read_link, write_link
from fedcl.real.processes import Child


def zipped(**files: str) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(zipfile.ZipInfo(name.replace("__", "/")), text, zipfile.ZIP_DEFLATED)  # without the time
    return held.getvalue()


@pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")  # Flower's
def test_a_node_takes_the_bundle_of_its_own_fedcl_as_flower_packs_it(tmp_path: Path) -> None:
    app = bundle.write(tmp_path)
    assert bundle.problem(build_fab_from_disk(app)) is None
    (app / "clients.py").write_text("print('anything')")
    assert "it brings the file 'clients.py'" in str(bundle.problem(build_fab_from_disk(app)))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"no zip at all", "cannot be read"),
        (bytes(bundle.MOST + 1), "more than 65,536"),
        (zipped(), "its pyproject.toml differs"),
        (zipped(**{"pyproject.toml": bundle.TEXT.replace("clients.app", "evil.app")}), "its pyproject.toml differs"),
        (zipped(**{"pyproject.toml": bundle.TEXT, "clients__app.py": ""}), "it brings the file 'clients/app.py'"),
        (zipped(**{"pyproject.toml": "#" * 10_000_000}), "its pyproject.toml differs"),
        (zipped(**{"pyproject.toml": bundle.TEXT})[:-9], "cannot be read"),
    ],
    ids=["no zip", "too long", "empty", "another app", "with code", "too much when unpacked", "torn"],
)
def test_a_node_refuses_any_other_bundle(content: bytes, why: str) -> None:
    assert why in str(bundle.problem(content))
    with pytest.raises(gate.Refused, match="is not fedcl"):
        gate.checked(content, skip_prompt=True)


@pytest.mark.parametrize(
    ("side", "runs", "why"),
    [
        (gate.NODE, {gate.CLIENT_COMMAND, gate.EXECUTOR}, "the server asks this node to run"),
        (gate.SERVER, {gate.SERVER_COMMAND, gate.EXECUTOR, gate.COMMAND_LINE}, "somebody asks this server to run"),
    ],
)
def test_every_command_that_flower_starts_leads_to_the_gate_and_only_fedcls_app_passes(
    side: str, runs: set[str], why: str, tmp_path: Path
) -> None:
    """If Flower gets a task command that is not among those written, this fails."""
    from flwr.supercore.constant import TASK_TYPE_TO_COMMAND, TaskType

    gate.write_commands(tmp_path, side, tmp_path / "flwr's")
    assert {path.name for path in tmp_path.iterdir()} == {TASK_TYPE_TO_COMMAND[each] for each in TaskType} | runs
    for path in sorted(tmp_path.iterdir()):
        assert path.stat().st_mode & 0o777 == 0o700
        if path.name in runs:
            continue
        done = subprocess.run([path], capture_output=True, text=True, cwd=tmp_path, env=environment(tmp_path))
        assert done.returncode == 1
        assert f"refused: {why} '{path.name}'" in done.stdout
    app = gate.CLIENT_COMMAND if side == gate.NODE else gate.SERVER_COMMAND
    done = subprocess.run([tmp_path / app, "--help"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0
    assert "--runtime-api-address" in done.stdout  # Flower's own, behind the gate


def test_the_gate_stands_where_flower_installs_and_loads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from flwr.supercore.runtime import RuntimeHttpClient

    node = importlib.import_module("flwr.supernode.runtime.run_clientapp")
    server = importlib.import_module("flwr.superlink.runtime.run_serverapp")
    monkeypatch.setattr(RuntimeHttpClient, "__init__", RuntimeHttpClient.__init__)
    for runtime, name in (
        (node, "install_from_fab"), (node, "get_load_client_app_fn"), (server, "install_from_fab"), (server, "run_")
    ):  # fmt: skip
        monkeypatch.setattr(runtime, name, getattr(runtime, name))
    monkeypatch.setattr(server, "install_from_fab", lambda content, **_: content)
    monkeypatch.setattr(server, "run_", lambda **given: given)
    gate.guard_clientapp(tmp_path)
    gate.guard_serverapp(tmp_path)
    from clients.app import app
    from server.app import app as server_app

    assert node.install_from_fab is gate.checked
    assert node.get_load_client_app_fn(default_app_ref="", app_path=None, multi_app=True)("a", "1", "f") is app
    own = zipped(**{"pyproject.toml": bundle.TEXT})
    assert server.install_from_fab(own, skip_prompt=True) == own
    with pytest.raises(gate.Refused, match=r"somebody submitted an app .* that is not fedcl"):
        server.install_from_fab(zipped(**{"pyproject.toml": bundle.TEXT, "server__app.py": ""}), skip_prompt=True)
    ran = server.run_(grid="g", context="c", server_app_dir="elsewhere", server_app_attr="evil.app:app")
    assert ran == {"grid": "g", "context": "c", "server_app_dir": "", "loaded_server_app": server_app}
    monkeypatch.delattr(node, "install_from_fab")
    with pytest.raises(FederationError, match="install_from_fab is not where it was"):
        gate.guard_clientapp(tmp_path)
    with pytest.raises(FederationError, match="install_from_fab is not where it was"):
        gate.guard_node(tmp_path)


def test_a_folder_has_one_holder_and_the_lock_goes_with_it(tmp_path: Path) -> None:
    assert lock.holder(tmp_path) is None
    code = "import sys, time; from fedcl.lock import Lock; from pathlib import Path\n"
    code += f"with Lock(Path({str(tmp_path)!r})): print('held', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        assert lock.holder(tmp_path) == other.pid
        with pytest.raises(ConfigError, match=f"is in use by process {other.pid}: stop it"), lock.Lock(tmp_path):
            pass
        other.kill()
        other.wait()
    assert lock.holder(tmp_path) is None
    with lock.Lock(tmp_path):
        assert lock.holder(tmp_path) is not None


def test_a_child_writes_into_its_log_and_is_gone_with_what_it_started(tmp_path: Path) -> None:
    code = "import subprocess, sys, time; subprocess.Popen(['sleep', '77']); print('up', flush=True); time.sleep(77)"
    for _ in range(2):
        child = Child("one", [sys.executable, "-c", code], environment(tmp_path), tmp_path / "log")
        end = time.monotonic() + 30
        while child.said() != "up\n" and time.monotonic() < end:
            time.sleep(0.02)
        assert child.said() == "up\n"  # the first one's words are not its own
        assert child.alive
        child.stop()
        assert not child.alive
    group = subprocess.run(["ps", "-o", "pid=", "-g", str(child.pid)], capture_output=True, text=True).stdout.split()
    assert group == []


def test_nodes_are_added_by_their_public_keys_and_named_by_their_files(tmp_path: Path) -> None:
    update_folder(tmp_path / "certs", hosts=(), nodes=("a", "b"), days=30)
    keys = tmp_path / "certs" / "nodes"
    known = Nodes(tmp_path)
    assert known.add([keys / "a.pub", keys / "b.pub"]) == ["a", "b"]
    assert known.names == ["a", "b"]
    known.remove(["a"], None)
    assert known.names == ["b"]
    for wrong, why in (
        (keys / "b.key", "name the public key, NAME.pub"),
        (keys / "c.pub", "is not there"),
        (tmp_path / "certs" / "ca.crt", "name the public key"),
    ):
        with pytest.raises(ConfigError, match=why):
            known.add([wrong])
    (tmp_path / "b.pub").write_bytes((keys / "a.pub").read_bytes())
    with pytest.raises(ConfigError, match="node 'b' has another key already: fedcl server nodes remove b first"):
        known.add([tmp_path / "b.pub"])
    with pytest.raises(ConfigError, match="node 'bb' is not known; did you mean 'b'"):
        known.remove(["bb"], None)


def test_a_nodes_name_is_that_of_its_key_wherever_it_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From NAME.key at the site and from NAME.pub at the server, whatever comment it carries; ssh-keygen's digest."""
    update_folder(tmp_path / "certs", hosts=(), nodes=("a", "b"), days=30)
    keys = tmp_path / "certs" / "nodes"
    blob = base64.b64decode((keys / "a.pub").read_bytes().split()[1])
    own = hashlib.sha256(blob).hexdigest()[:16]
    assert name_by(keys / "a.key") == own != name_by(keys / "b.key")
    assert name_by(None) == ""
    (keys / "moved.pub").write_bytes(b" ".join([*(keys / "a.pub").read_bytes().split()[:2], b"another comment\n"]))
    known = Nodes(tmp_path)
    known.add([keys / "moved.pub", keys / "b.pub"])
    assert known.keys == {"moved": own, "b": name_by(keys / "b.key")}
    write_json(tmp_path / "nodes" / "registered.json", {"moved": "77", "gone": "78"})
    assert known.member(77) == Member(name="moved", key=own)
    assert known.member(78) is known.member(79) is None
    assert main(["server", "nodes", "list", "--state", str(tmp_path)]) == 0
    assert f"moved  {own}  registered as 77" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="is no private key of a node"):
        name_by(keys / "a.pub")


def test_a_link_is_remembered_and_reached_on_this_machine(tmp_path: Path) -> None:
    link = link_of(tmp_path, host="0.0.0.0", port=8123, tls=tmp_path / "certs", auth=True)
    assert link.reached == "127.0.0.1:8123"
    assert not link.listens()
    write_link(tmp_path, link)
    assert read_link(tmp_path) == link
    link.write_connection()
    text = (tmp_path / "flwr" / "config.toml").read_text()
    assert f'address = "127.0.0.1:8123"\nroot-certificates = "{tmp_path / "certs" / "ca.crt"}"' in text
    with pytest.raises(ConfigError, match="is no folder of a server"):
        read_link(tmp_path / "other")
    assert Link(host="::", port=1, database=tmp_path, home=tmp_path).reached == "[::1]:1"


def test_flowers_answers_are_read_or_told(tmp_path: Path) -> None:
    assert read_answer("run", '{"success": true, "run-id": "7"}', "") == {"success": True, "run-id": "7"}
    for out, errors, why in (
        ('{"success": false, "error-message": "no\\n such"}', "", "flwr run failed: no such"),
        ("", "Connection refused", "flwr run failed: Connection refused"),
        ("[]", "", r"flwr run failed: \[\]"),
    ):
        with pytest.raises(FederationError, match=why):
            read_answer("run", out, errors)
    command = node_command("h:1", port=2, settings={"clients": "0,3"}, tls=tmp_path / "ca.crt", key=tmp_path / "a.key")
    assert 'clients="0,3"' in command
    assert "--insecure" not in command
    told = names.hosted(["ward-a", "b"]).settings("0123456789abcdef")
    assert told == {"node": "0123456789abcdef", "wards": "ward-a,b"}
    command = node_command("h:1", port=2, settings=names.hosted([]).settings("0123456789abcdef"))
    assert parse_config_args([command[-2]]) == {"node": "0123456789abcdef", "wards": ""}  # as a SuperNode reads it


def test_what_a_node_says_is_a_line_a_user_understands() -> None:
    assert "its key is not registered" in meaning("...\n[code: 2004] Failed to activate SuperNode\n")
    assert "not signed by --tls" in meaning("ssl.SSLError: [SSL: CERTIFICATE_VERIFY_FAILED] self-signed")
    assert "the server is not reached" in meaning("httpx.ConnectError: [Errno 111] Connection refused")
    assert meaning("\nodd\n") == "the SuperNode ended (odd)"
    done = {"kind": "train", "round": 3, "clients": [0, 2], "seconds": 1.26}
    assert activity_line(done) == "train, round 3: clients 0, 2, 1.3 s"
    done = {"kind": "query.hello", "clients": [], "names": ["a1/w", "a1/v"], "seconds": 0.04}
    assert activity_line(done) == "query.hello, round 0: this node's clients are a1/w, a1/v, 0.0 s"
    assert activity_line({"kind": "train", "error": "refused"}) == "train: refused"


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["server", "--state", "s"], "holds no federation yet: name a SCENARIO"),
        (["server", "split-digit", "--state", "s"], "did you mean 'split-digits'"),
        (["server", "split-digits", "--state", "s", "--auth"], "--auth: nodes prove who they are over TLS only"),
        (["server", "split-digits", "--state", "s", "--tls", "nowhere"], "fedcl certs makes it"),
        (["client", "--state", "s", "--server", "nohost"], "must be HOST:PORT"),
        (["client", "--state", "s", "--server", "a:1", "--key", "k"], "over TLS only; add --tls"),
        (
            ["client", "--state", "s", "--server", "a:1", "--trust", "os;"],
            "--trust = 'os;': must be the name of a packag",
        ),
        (["client", "--state", "s", "--server", "a:1", "--data", "nowhere"], "--data 'nowhere': is not there"),
        (
            ["client", "--state", "s", "--server", "a:1", "--client", "0", "--client", "a"],
            "numbers, or all of them names",
        ),
        (
            ["client", "--state", "s", "--server", "a:1", "--client", "a/b"],
            "--client 'a/b': must be a number, or up to",
        ),
        (["client", "--state", "s", "--server", "a:1", "--client", "a", "--client", "a"], "stands there twice"),
        (["client", "--state", "s", "--server", "a:1", "--tls", "c.yaml", "--key", "c.yaml"], "is no private key of a"),
        (["client", "--config", "c.yaml"], "'sever' is no option of fedcl client; did you mean 'server'"),
        (["server", "nodes", "remove", "x", "--state", "s"], "node 'x' is not known"),
    ],
)
def test_a_mistake_is_told_in_a_sentence(
    arguments: list[str], why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text("sever: a:1\n")
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert why in said
    assert said.count("\n") == 1


def test_options_may_stand_in_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "client.yaml"
    path.write_text(f"server: nohost\nstate: {tmp_path / 's'}\nclient: [0, 2]\nmin-count: 5\n")
    assert main(["client", "--config", str(path)]) == 2
    assert "--server 'nohost': must be HOST:PORT" in capsys.readouterr().err
    path.write_text(f"scenario: split-digits\nauth: true\nstate: {tmp_path / 's'}\n")
    assert main(["server", "--config", str(path)]) == 2
    assert "--auth: nodes prove" in capsys.readouterr().err
