"""Other people's texts: none moves the cursor, colours a terminal, or makes a line that could be one of ours."""

import json
import ssl
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from socket import socketpair
from typing import Any

import pytest
from flwr.app import Error, Message
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from fedcl import certs, cli_real, foreign, wire
from fedcl.console import Progress
from fedcl.engine import flower
from fedcl.errors import FederationError
from fedcl.journal import FAILED, Journal, failure
from fedcl.orders import ClientError, TrainReply, empty
from fedcl.real.flower import read_answer
from fedcl.real.joining import activity_line, faults_line, meaning
from fedcl.real.serving import _last_line
from server.exchange import silence
from tests.federations import tiny
from tests.nodes import Nodes
from tests.test_versions import sit

EVIL = (
    f"\x1b[2J\x1b[31mgone\x9b5A\x07\r\n12:00:00  connected\n{FAILED}all is lost\x85forged\u2028forged\u202egnp.exe\x00"
)
CONTROLS = [chr(each) for each in [*range(9), *range(11, 32), *range(127, 160), 0x2028, 0x2029, 0x202E, 0x2066]]


def bad(text: str) -> list[str]:
    """Return what of a text must not reach a terminal or a log."""
    return [each for each in CONTROLS if each in text]


@given(st.text())
def test_texts_of_all_kinds(text: str) -> None:
    """What is printable stays in its order; one line is one line; every line of several is marked."""
    assert bad(foreign.plain(text)) == []
    assert foreign.plain(foreign.plain(text)) == foreign.plain(text)
    assert len(foreign.line(text + EVIL).splitlines()) == 1
    quoted = foreign.quoted(text)
    assert all(line.startswith(foreign.MARK) for line in quoted.splitlines())
    assert bool(quoted) == bool(text.strip())
    kept = [each for each in text if each.isprintable() and each != " "]
    assert [each for each in foreign.line(text) if each.isprintable() and each != " "] == kept


def test_a_traceback_keeps_its_lines() -> None:
    assert foreign.quoted("Traceback:\n\tin f\nValueError: é\n") == "  | Traceback:\n  | \tin f\n  | ValueError: é"


def told(listener: Callable[[Console, Console], Any]) -> str:
    """Return what a listener of events prints of a client's error."""
    out = StringIO()
    console = Console(file=out, width=500, color_system=None)
    listener(console, console)({"event": "client_error", "round": 1, "client": 0, "error": EVIL, "traceback": EVIL})
    return out.getvalue()


def answered(content: Any) -> Message:
    """Return a message that failed, or brought a content, on another machine."""
    flower.identify()
    asked = Message(wire.config_of(""), 1, "train")
    flower.number(asked)
    return Message(Error(code=2, reason=content), reply_to=asked)


def failed() -> str:
    with pytest.raises(FederationError) as caught:
        read_answer("run", "", EVIL)
    with pytest.raises(FederationError) as again:
        read_answer("run", json.dumps({"success": False, "error-message": EVIL}), "")
    return f"{caught.value}{again.value}"


# What other machines and other people have written, as it is told here: one line each.
LINES: dict[str, Callable[[], str]] = {
    "why a node failed": lambda: silence(answered(EVIL))[0],
    "what the node has done": lambda: activity_line({"kind": "train", "error": EVIL}),
    "file names in a client's folder": lambda: faults_line(0, 1, [EVIL]),
    "a SuperNode's last words": lambda: meaning(EVIL),
    "a SuperLink's last words": lambda: _last_line(EVIL),
    "what flwr answers": failed,
}


@pytest.mark.parametrize("place", LINES)
def test_one_line_of_others_is_one_line_here(place: str) -> None:
    text = LINES[place]()
    assert bad(text) == []
    assert len(text.splitlines()) == 1
    assert "forged" in text or "gnp.exe" in text


def test_a_clients_error_on_a_terminal_is_marked() -> None:
    """The first line is ours; of the others each begins with the mark."""
    text = told(Progress)
    assert bad(text) == []
    first, *rest = text.splitlines()
    assert first.startswith("client 0 failed in round 1: ")
    assert rest
    assert all(line.startswith(foreign.MARK) for line in rest)


def test_a_clients_error_from_the_wire_has_no_control_characters() -> None:
    error, nothing = ClientError(client=0, error=EVIL, traceback=EVIL), empty()
    reply = TrainReply(round=1, cohort=0, clients=nothing, table={}, total=nothing.astype("float32"), errors=[error])
    (found,) = wire.decode(wire.encode(reply)).errors
    assert bad(found.error + found.traceback) == []
    assert "gone" in found.error


def test_what_the_supervisors_say_is_one_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    cli_real._say(EVIL)
    text = capsys.readouterr().out
    assert bad(text) == []
    assert text.count("\n") == 1


def test_no_answer_forges_a_line_of_the_error_log(tmp_path: Path) -> None:
    """A node's text that says why "the run failed" is not taken for the run's own word."""
    with Journal(tmp_path) as journal:
        journal.error(f"round 1, client 0: {foreign.line(EVIL)}", EVIL)
    text = (tmp_path / "error.log").read_text()
    assert bad(text) == []
    assert failure(tmp_path) == ""
    first, *rest = text.splitlines()
    assert first.startswith("round 1, client 0: ")
    assert all(line.startswith(foreign.MARK) for line in rest)


class Evil(Nodes):
    """Node 2 answers everything with an error whose text is evil."""

    def _reply(self, message: Message) -> Message:
        hello = message.metadata.message_type == "query.hello"
        if message.metadata.dst_node_id == 2 and not hello:
            return Message(Error(code=2, reason=EVIL), reply_to=message)
        return super()._reply(message)


def test_a_whole_run_with_an_evil_node_leaves_no_control_character_anywhere(tmp_path: Path) -> None:
    assert sit(tmp_path / "run", Evil(4), tiny("engine.cohort=1")) == "finished"
    text = (tmp_path / "run/error.log").read_text()
    assert "client 1" in text
    assert bad(text) == []
    assert not [line for line in text.splitlines() if line.startswith((FAILED, "12:00", "forged"))]
    events = [json.loads(line) for line in (tmp_path / "run/events.jsonl").read_text().splitlines()]
    errors = [event for event in events if event["event"] == "client_error"]
    assert errors
    assert all(bad(event["error"] + event["traceback"]) == [] and "\n" not in event["error"] for event in errors)


# Certificates: what a SuperNode is told when a connection fails.

NOW = datetime.now(UTC).replace(microsecond=0)
CASES = {
    "expired": (-20, 10, "localhost", "has expired"),
    "not yet valid": (10, 20, "localhost", "is not valid yet"),
    "other hosts": (0, 10, "fed.example.org", "is for other hosts"),
    "another CA": (0, 10, "localhost", "is not signed by --tls"),
}


@pytest.mark.parametrize("what", CASES)
def test_each_fault_of_a_certificate_has_a_sentence_of_its_own(what: str, tmp_path: Path) -> None:
    """The words are those of a real handshake."""
    begin, days, host, meant = CASES[what]
    ca_key, key = certs.new_key(), certs.new_key()
    ca = certs.make_ca(ca_key, start=NOW - timedelta(days=100))
    server = certs.make_server(ca, ca_key, key, [host], start=NOW + timedelta(days=begin), days=days)
    other = certs.make_ca(certs.new_key(), start=NOW - timedelta(days=1))
    for name, data in (("ca", certs.pem_certificate(other if what == "another CA" else ca)),
                       ("crt", certs.pem_certificate(server)), ("key", certs.pem_key(key))):  # fmt: skip
        (tmp_path / name).write_bytes(data)
    said = handshake(tmp_path)
    assert "certificate verify failed" in said
    assert meant in meaning(f"noise\nhttpx.ConnectError: {said}\n")


def handshake(folder: Path) -> str:
    """Return why a client that trusts a CA refuses a server."""
    ours, theirs = socketpair()
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(folder / "crt", folder / "key")

    def serve() -> None:
        with pytest.raises((ssl.SSLError, OSError)):
            serving.wrap_socket(theirs, server_side=True).recv(1)
        theirs.close()

    thread = threading.Thread(target=serve)
    thread.start()
    trusting = ssl.create_default_context(cafile=str(folder / "ca"))
    try:
        with pytest.raises(ssl.SSLError) as caught:
            trusting.wrap_socket(ours, server_hostname="localhost")
    finally:
        ours.close()
        thread.join()
    return str(caught.value)
