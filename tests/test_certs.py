"""Certificates and keys of a federation over TLS: verified by the libraries that will read them."""

import argparse
import contextlib
import errno
import hashlib
import ipaddress
import os
import re
import shutil
import socket
import ssl
import stat
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError
from hypothesis import given
from hypothesis import strategies as st

from fedcl import certs
from fedcl.certfolder import next_step, update_folder
from fedcl.cli import main
from fedcl.errors import ConfigError

NOW = datetime(2030, 1, 1, tzinfo=UTC)
HOSTS = ["fed.example.org", "10.0.0.5", "2001:db8::1"]
NAMES = ["hospital-a", "hospital-b"]


def held(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file under a folder, by its relative path."""
    return {str(each.relative_to(folder)): each.read_bytes() for each in folder.rglob("*") if each.is_file()}


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def states(folder: Path, files) -> dict[str, str]:
    return {str(file.path.relative_to(folder)): file.state for file in files}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder as a first run leaves it. Tests that change it work on a copy."""
    folder = tmp_path_factory.mktemp("certs") / "deep" / "fed"
    update_folder(folder, hosts=HOSTS, nodes=NAMES, now=NOW)
    return folder


@pytest.fixture
def copy(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "fed"))


# What is in a certificate.


def subject(host: str) -> x509.DNSName | x509.IPAddress:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


@pytest.mark.parametrize("host", [*HOSTS, "localhost", "127.0.0.1"])
def test_the_chain_verifies_for_every_host(made, host):
    """RFC 5280 path validation of `cryptography`; its answer is the chain, server first."""
    ca, server = certificate(made / "ca.crt"), certificate(made / "server.crt")
    policy = PolicyBuilder().store(Store([ca])).time(NOW)
    assert policy.build_server_verifier(subject(host)).verify(server, []) == [server, ca]


@pytest.mark.parametrize(("host", "days"), [("other.example.org", 0), ("10.0.0.6", 0), (HOSTS[0], 366), (HOSTS[0], -1)])
def test_the_chain_fails_for_another_host_and_outside_its_time(made, host, days):
    policy = PolicyBuilder().store(Store([certificate(made / "ca.crt")])).time(NOW + timedelta(days=days))
    with pytest.raises(VerificationError):
        policy.build_server_verifier(subject(host)).verify(certificate(made / "server.crt"), [])


def test_names_are_names_and_addresses_are_addresses(made):
    names = certificate(made / "server.crt").extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["fed.example.org", "localhost"]
    assert names.get_values_for_type(x509.IPAddress) == [
        ipaddress.ip_address(each) for each in ("10.0.0.5", "2001:db8::1", "127.0.0.1")
    ]


def allowed(usage: x509.KeyUsage) -> set[str]:
    every = ["digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"]
    return {each for each in [*every, "key_cert_sign", "crl_sign"] if getattr(usage, each)}


def test_the_ca_signs_certificates_and_the_server_none(made):
    ca, server = certificate(made / "ca.crt").extensions, certificate(made / "server.crt").extensions
    flags = [each.get_extension_for_class(x509.BasicConstraints) for each in (ca, server)]
    assert [(each.critical, each.value.ca, each.value.path_length) for each in flags] == [
        (True, True, 0),
        (True, False, None),
    ]
    assert allowed(ca.get_extension_for_class(x509.KeyUsage).value) == {"key_cert_sign", "crl_sign"}
    assert allowed(server.get_extension_for_class(x509.KeyUsage).value) == {"digital_signature"}
    assert list(server.get_extension_for_class(x509.ExtendedKeyUsage).value) == [ExtendedKeyUsageOID.SERVER_AUTH]
    own = ca.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    assert server.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier == own


def test_lifetimes_are_as_asked_and_never_beyond_the_ca():
    key, ca_key = certs.new_key(), certs.new_key()
    ca = certs.make_ca(ca_key, start=NOW, days=100)
    assert (ca.not_valid_before_utc, ca.not_valid_after_utc) == (NOW - certs.SKEW, NOW + timedelta(days=100))
    for days, expected in ((30, 30), (365, 100)):
        server = certs.make_server(ca, ca_key, key, ["localhost"], start=NOW, days=days)
        assert server.not_valid_after_utc == NOW + timedelta(days=expected)
        assert server.public_key() == key.public_key()
    other = certs.make_ca(certs.new_key(), start=NOW)
    assert other.subject != ca.subject == certs.make_ca(ca_key, start=NOW + timedelta(days=1)).subject


# A real handshake, with the very settings of Flower's client: TLS 1.2 or later, host name checked.


def handshake(folder: Path, trusted: Path, host: str) -> str:
    """Return the protocol of a TLS connection over loopback; raises what the client's side raises."""
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(folder / "server.crt", folder / "server.key")
    asking = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    asking.verify_flags |= ssl.VERIFY_X509_STRICT  # the default from Python 3.13 on
    asking.load_verify_locations(cadata=trusted.read_text("ascii"))

    def serve(listening: socket.socket) -> None:
        with (
            listening.accept()[0] as plain,
            contextlib.suppress(ssl.SSLError),  # the client tells why it has hung up
            serving.wrap_socket(plain, server_side=True) as secure,
        ):
            secure.recv(1)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve, args=(listening,))
        thread.start()
        try:
            with (
                socket.create_connection(listening.getsockname(), timeout=20) as plain,
                asking.wrap_socket(plain, server_hostname=host) as secure,
            ):
                secure.send(b"x")
                return secure.version() or ""
        finally:
            thread.join(20)
            assert not thread.is_alive()


@pytest.fixture(scope="module")
def present(tmp_path_factory) -> Path:
    """A folder made at the present time, which OpenSSL goes by."""
    folder = tmp_path_factory.mktemp("present")
    update_folder(folder, hosts=HOSTS)
    return folder


@pytest.mark.parametrize("host", ["fed.example.org", "10.0.0.5", "2001:db8::1", "localhost", "127.0.0.1"])
def test_a_client_that_trusts_the_ca_connects(present, host):
    assert handshake(present, present / "ca.crt", host) == "TLSv1.3"


def test_a_client_that_trusts_another_ca_does_not(present, tmp_path):
    update_folder(tmp_path / "other")
    with pytest.raises(ssl.SSLCertVerificationError, match="unable to get local issuer"):
        handshake(present, tmp_path / "other" / "ca.crt", "fed.example.org")


def test_a_client_that_asks_for_another_host_does_not(present):
    with pytest.raises(ssl.SSLCertVerificationError, match=r"not valid for 'fed\.example\.com'"):
        handshake(present, present / "ca.crt", "fed.example.com")


# Node keys, read by Flower itself.


def test_flower_reads_both_keys_of_a_node(made):
    """The SuperNode reads the private key, `flwr supernode register` the public one; a signature goes between."""
    from flwr.cli.supernode.register import try_load_public_key
    from flwr.supercore.primitives import asymmetric
    from flwr.supernode.cli.flower_supernode import _try_setup_client_authentication

    keys = {}
    for name in NAMES:
        path = made / "nodes" / f"{name}.key"
        asked = argparse.Namespace(auth_supernode_private_key=str(path), auth_supernode_public_key=None)
        found = _try_setup_client_authentication(asked)
        assert found is not None
        registered = try_load_public_key(path.with_suffix(".pub"))
        assert registered == asymmetric.public_key_to_bytes(found[1])
        keys[name] = asymmetric.sign_message(found[0], b"hello"), asymmetric.bytes_to_public_key(registered)
    (signature, own), (_, others) = keys.values()
    assert asymmetric.verify_signature(own, b"hello", signature)
    assert not asymmetric.verify_signature(others, b"hello", signature)
    assert own.curve.name == "secp384r1"


def test_a_public_key_carries_its_nodes_name(made):
    kind, _, name = (made / "nodes" / "hospital-a.pub").read_text().split()
    assert (kind, name) == ("ecdsa-sha2-nistp384", "hospital-a")


def test_private_keys_are_their_owners_alone(made):
    modes = {str(each.relative_to(made)): each.stat().st_mode & 0o777 for each in made.rglob("*")}
    secret = {"ca.key", "server.key", *(f"nodes/{name}.key" for name in NAMES)}
    assert {name for name, mode in modes.items() if mode == 0o600} >= secret
    assert {name for name in modes if name.endswith(".key")} == secret
    assert made.stat().st_mode & 0o777 == modes["nodes"] == 0o700


def test_the_modes_do_not_hang_on_the_umask(tmp_path):
    mask = os.umask(0)
    try:
        update_folder(tmp_path / "fed", nodes=["a"])
    finally:
        os.umask(mask)
    modes = {each.suffix: each.stat().st_mode & 0o777 for each in (tmp_path / "fed").rglob("*.*")}
    assert modes == {".key": 0o600, ".crt": 0o644, ".pub": 0o644}


def test_a_key_that_others_may_read_is_told(copy):
    (copy / "nodes" / "hospital-a.key").chmod(0o644)
    notes = {file.path.name: file.note for file in update_folder(copy, now=NOW)}
    assert notes["hospital-a.key"].startswith("others may read it: chmod 600 ")
    assert notes["hospital-b.key"] == ""


# A folder that is there already.


def test_a_second_run_changes_nothing(copy):
    before = held(copy)
    for changes in ({}, {"hosts": HOSTS}, {"nodes": NAMES}, {"days": 20}):
        files = update_folder(copy, now=NOW + timedelta(days=334), **changes)
        assert set(states(copy, files).values()) == {"kept"}
        assert held(copy) == before
    assert sorted(states(copy, files)) == sorted(before)
    assert next_step(copy, files) == "nothing before 2030-12-02: from then on this command renews server.crt"


def test_a_node_is_added_and_nothing_else_changes(copy):
    before = held(copy)
    files = update_folder(copy, nodes=["hospital-a", "ward.3"], now=NOW)
    after = held(copy)
    assert {name: data for name, data in after.items() if name in before} == before
    assert set(after) - set(before) == {"nodes/ward.3.key", "nodes/ward.3.pub"}
    assert {name for name, state in states(copy, files).items() if state == "made"} == set(after) - set(before)
    assert next_step(copy, files) == f"fedcl server nodes add {copy / 'nodes' / 'ward.3.pub'} --state DIR"
    notes = {file.path.name: file.note for file in files}
    assert notes["hospital-a.key"] == "was there: never overwritten"


@pytest.mark.parametrize(
    ("hosts", "days", "why"),
    [
        (["new.example.org"], 0, "; it was for fed.example.org, localhost, 10.0.0.5, 2001:db8::1, 127.0.0.1"),
        ([], 336, "; it was to end on 2031-01-01"),
        (HOSTS, 400, "; it ended on 2031-01-01"),
    ],
)
def test_the_servers_certificate_is_renewed_for_other_hosts_or_when_it_ends(copy, hosts, days, why):
    before, later = held(copy), NOW + timedelta(days=days)
    files = update_folder(copy, hosts=hosts, now=later, days=90)
    assert {name for name, state in states(copy, files).items() if state != "kept"} == {"server.crt"}
    assert {name for name, data in held(copy).items() if data != before[name]} == {"server.crt"}
    [told] = [file for file in files if file.state == "renewed"]
    assert told.note.endswith(why)
    server, ca = certificate(copy / "server.crt"), certificate(copy / "ca.crt")
    assert server.not_valid_after_utc == told.until == later + timedelta(days=90)
    host = subject((hosts or HOSTS)[0])
    assert PolicyBuilder().store(Store([ca])).time(later).build_server_verifier(host).verify(server, [])
    assert server.public_key() == certificate_key(before["server.key"])
    assert next_step(copy, files).startswith("start the SuperLink anew")


def certificate_key(pem: bytes) -> ec.EllipticCurvePublicKey:
    return certs.load_key(pem).public_key()


def test_a_certificate_that_ends_with_the_ca_is_not_renewed_for_nothing(tmp_path):
    update_folder(tmp_path, days=certs.CA_DAYS, now=NOW)
    before, later = held(tmp_path), NOW + timedelta(days=certs.CA_DAYS - 3)
    files = update_folder(tmp_path, now=later)
    assert held(tmp_path) == before
    assert next_step(tmp_path, files) == "nothing before 2039-12-30, when the CA ends"
    with pytest.raises(ConfigError, match=r"ca\.crt ended on 2039-12-30: move ca\.crt, ca\.key and server\.crt away"):
        update_folder(tmp_path, now=NOW + timedelta(days=certs.CA_DAYS))


def test_the_cas_key_may_be_kept_elsewhere(copy):
    """Nodes are added without it; only a renewal asks for it."""
    key = (copy / "ca.key").read_bytes()
    (copy / "ca.key").unlink()
    assert states(copy, update_folder(copy, nodes=["c"], now=NOW))["ca.key"] == "not here"
    before = held(copy)
    with pytest.raises(ConfigError, match=r"server\.crt must be renewed .*ca\.key signs: bring that file back"):
        update_folder(copy, hosts=["new.example.org"], nodes=["d"], now=NOW)
    assert held(copy) == before
    (copy / "ca.key").write_bytes(key)
    assert states(copy, update_folder(copy, hosts=["new.example.org"], now=NOW))["server.crt"] == "renewed"


def test_a_nodes_key_that_went_to_its_node_is_not_made_again(copy):
    (copy / "nodes" / "hospital-a.key").unlink()
    before = held(copy)
    files = update_folder(copy, nodes=NAMES, now=NOW)
    assert states(copy, files)["nodes/hospital-a.key"] == "not here"
    assert held(copy) == before


def test_what_a_killed_run_left_is_completed(made, copy):
    """Keys are written before what is derived from them, so a run may have stopped after any of its files."""
    (copy / "ca.crt").unlink()
    (copy / "server.crt").unlink()
    (copy / "nodes" / "hospital-a.pub").unlink()
    (copy / "nodes" / ".hospital-b.key.0123.tmp").write_bytes(b"torn")
    files = update_folder(copy, hosts=HOSTS, now=NOW)
    fresh = {name for name, state in states(copy, files).items() if state == "made"}
    assert fresh == {"ca.crt", "server.crt", "nodes/hospital-a.pub"}
    assert (copy / "nodes/hospital-a.pub").read_bytes() == (made / "nodes/hospital-a.pub").read_bytes()
    old, new = certificate(made / "ca.crt"), certificate(copy / "ca.crt")
    assert (old.subject, old.public_key()) == (new.subject, new.public_key())
    # So whoever trusts the old CA certificate goes on connecting.
    policy = PolicyBuilder().store(Store([old])).time(NOW)
    assert policy.build_server_verifier(subject(HOSTS[0])).verify(certificate(copy / "server.crt"), [])


def test_a_ca_of_ones_own_signs_too(tmp_path):
    """RSA, and a key identifier of its own making, which the server's certificate has to repeat."""
    key = rsa.generate_private_key(65537, 2048)
    start = datetime.now(UTC)
    usual = certs.make_ca(key, start=start)
    builder = x509.CertificateBuilder().subject_name(usual.subject).issuer_name(usual.issuer).serial_number(1)
    builder = builder.public_key(key.public_key()).not_valid_before(start).not_valid_after(usual.not_valid_after_utc)
    for each in usual.extensions:
        own = isinstance(each.value, x509.SubjectKeyIdentifier)
        builder = builder.add_extension(x509.SubjectKeyIdentifier(b"ours") if own else each.value, each.critical)
    (tmp_path / "ca.crt").write_bytes(certs.pem_certificate(builder.sign(key, hashes.SHA256())))
    (tmp_path / "ca.key").write_bytes(certs.pem_key(key))
    before = held(tmp_path)
    update_folder(tmp_path, hosts=HOSTS)
    assert {name: held(tmp_path)[name] for name in before} == before
    assert handshake(tmp_path, tmp_path / "ca.crt", "10.0.0.5") == "TLSv1.3"


@pytest.mark.parametrize("room", range(6))
def test_a_disk_that_fills_up_leaves_whole_files_and_the_next_run_completes_them(tmp_path, monkeypatch, room):
    """Room for so many files: the others are not there, not even in part, and the keys that are there stay."""
    moved = iter(range(room))

    def full(opened: int) -> None:
        if not stat.S_ISDIR(os.fstat(opened).st_mode) and next(moved, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")

    folder = tmp_path / "fed"
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(ConfigError, match="No space left on device"):
            update_folder(folder, nodes=["a"], now=NOW)
    before = held(folder)
    assert set(before) == set(["ca.key", "ca.crt", "server.key", "server.crt", "nodes/a.key"][:room])
    files = update_folder(folder, nodes=["a"], now=NOW)
    assert {name: held(folder)[name] for name in before} == before
    assert [file.state for file in files] == ["kept"] * room + ["made"] * (6 - room)


# What is refused: one sentence, and the folder stays as it was.


def spoil(path: Path, at: float) -> None:
    """Change one sign in the middle of a PEM file's base64."""
    lines = path.read_text().splitlines()
    body = "".join(lines[1:-1])
    place = int(at * len(body))
    body = body[:place] + ("A" if body[place] != "A" else "B") + body[place + 1 :]
    path.write_text("\n".join([lines[0], *(body[i : i + 64] for i in range(0, len(body), 64)), lines[-1], ""]))


@pytest.mark.parametrize("name", ["ca.crt", "server.crt"])
@pytest.mark.parametrize("at", [0.0, 0.1, 0.3, 0.5, 0.7, 0.9])
def test_a_damaged_certificate_is_refused(copy, name, at):
    spoil(copy / name, at)
    before = held(copy)
    with pytest.raises(ConfigError, match=rf"{name} is (no certificate|damaged)") as refusal:
        update_folder(copy, hosts=["new.example.org"], nodes=["new"], now=NOW)
    assert "\n" not in str(refusal.value)
    assert held(copy) == before


def foreign(folder: Path, name: str) -> bytes:
    """Return a well-formed file of another federation, or a public key in the place of another node's."""
    if name.endswith(".pub"):
        return certs.make_node(certs.new_key(), "x")[1]
    update_folder(folder, hosts=HOSTS, nodes=NAMES, now=NOW)
    return (folder / name).read_bytes()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ca.key", r"ca\.key does not fit .*ca\.crt: bring back the key that made it"),
        ("ca.crt", r"ca\.key does not fit"),
        ("server.key", r"server\.key does not fit .*server\.crt"),
        ("server.crt", r"server\.crt is damaged, or not signed by ca\.crt"),
        ("nodes/hospital-a.key", r"hospital-a\.key does not fit .*hospital-a\.pub"),
        ("nodes/hospital-a.pub", r"hospital-a\.key does not fit .*hospital-a\.pub"),
    ],
)
def test_what_does_not_belong_together_is_refused(copy, tmp_path, name, expected):
    (copy / name).write_bytes(foreign(tmp_path / "other", name))
    before = held(copy)
    with pytest.raises(ConfigError, match=expected):
        update_folder(copy, hosts=["new.example.org"], nodes=["new"], now=NOW)
    assert held(copy) == before


@pytest.mark.parametrize("name", ["ca.key", "ca.crt", "server.key", "server.crt", "nodes/hospital-a.key"])
@pytest.mark.parametrize("data", [b"", b"-----BEGIN CERTIFICATE-----\n", b"\xff\x00 no text at all"])
def test_a_file_that_is_something_else_is_refused(copy, name, data):
    (copy / name).write_bytes(data)
    before = held(copy)
    with pytest.raises(ConfigError, match=rf"{name} is no (certificate|private key) that can be read"):
        update_folder(copy, nodes=["new"], now=NOW)
    assert held(copy) == before


def test_keys_that_cannot_be_used_are_refused(copy):
    key = certs.load_key((copy / "ca.key").read_bytes())
    sealed = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    other = ed25519.Ed25519PrivateKey.generate()
    (copy / "ca.key").write_bytes(sealed)
    with pytest.raises(ConfigError, match=r"ca\.key is no private key that can be read \(.*encrypted"):
        update_folder(copy, now=NOW)
    (copy / "ca.key").write_bytes(certs.pem_key(other))
    with pytest.raises(ConfigError, match="is neither EC nor RSA"):
        update_folder(copy, now=NOW)


def test_a_servers_certificate_is_no_ca_and_needs_its_key(copy):
    (copy / "server.key").unlink()
    with pytest.raises(ConfigError, match=r"server\.crt is there without server\.key"):
        update_folder(copy, now=NOW)
    (copy / "ca.crt").write_bytes((copy / "server.crt").read_bytes())
    with pytest.raises(ConfigError, match=r"ca\.crt is damaged, or not signed by itself"):
        update_folder(copy, now=NOW)


HOSTILE = ["", ".", "..", "../x", "a/b", "/etc/x", "a\\b", "-x", ".x", "klinik ä", "ä", "a b", "a\n", "a\0", "a" * 65]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_node_names_are_refused(tmp_path, name):
    with pytest.raises(ConfigError, match="letters, digits, - _") as refusal:
        update_folder(tmp_path / "fed", nodes=["good", name])
    assert "\n" not in str(refusal.value)
    assert list(tmp_path.iterdir()) == []


@given(st.text(max_size=12))
def test_a_node_name_that_passes_is_a_plain_file_name(name):
    try:
        assert certs.checked_name(name) == Path(f"{name}.key").name.removesuffix(".key")
    except ConfigError as refusal:
        near = re.findall("'([^']+)' would do$", str(refusal))
        assert [certs.checked_name(each) for each in near] == near
        return
    assert name.isascii()


NO_HOST = ["", "https://fed.example.org", "fed.example.org:9092", "[::1]", "-a.org", "a..b", "ä.org", "\u212a.org"]
NO_HOST += ["10.0.0.256", "a b", "*", "a" * 64, "a_b.org", "fed.example.org.", "a.org\n"]


@pytest.mark.parametrize("host", [*NO_HOST, "0.0.0.0", "::", "fe80::1%eth0"])
def test_what_is_no_host_is_refused(tmp_path, host):
    with pytest.raises(ConfigError, match="host "):
        update_folder(tmp_path / "fed", hosts=[host])
    assert list(tmp_path.iterdir()) == []


def test_hosts_are_brought_into_their_usual_form():
    hosts = {
        "Fed.Example.ORG": "fed.example.org",
        "2001:DB8:0::1": "2001:db8::1",
        "a-1.b": "a-1.b",
        "3com.org": "3com.org",
    }
    assert {host: certs.checked_host(host) for host in hosts} == hosts


@pytest.mark.parametrize("days", [0, -1, certs.CA_DAYS + 1])
def test_impossible_lifetimes_are_refused(tmp_path, days):
    with pytest.raises(ConfigError, match=f"days = {days}: must be from 1 to 3650"):
        update_folder(tmp_path / "fed", days=days)


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be read or written"):
        update_folder(tmp_path / "file")


# The command.


def test_the_command_line_of_the_documentation(tmp_path, capsys):
    words = ["--host", "fed.example.org", "--host", "10.0.0.5", "--nodes", *NAMES, "--days", "365"]
    assert main(["certs", str(tmp_path / "fed"), *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    table = {line.split()[0]: line for line in lines[:-1]}
    names = [f"nodes/{name}.{kind}" for name in NAMES for kind in ("key", "pub")]
    assert list(table) == ["ca.key", "ca.crt", "server.key", "server.crt", *names]
    end = certificate(tmp_path / "fed" / "server.crt").not_valid_after_utc
    assert f"made  until {end:%Y-%m-%d}  for fed.example.org, 10.0.0.5, localhost, 127.0.0.1" in table["server.crt"]
    assert lines[-1].startswith("next: fedcl server SCENARIO --state DIR --host 0.0.0.0 --tls ")
    assert main(["certs", str(tmp_path / "fed"), "--nodes", "c", "d", "--days=90", "--nodes=e"]) == 0
    assert sum(" made" in line for line in capsys.readouterr().out.splitlines()) == 6


def test_a_mistake_is_one_sentence_and_exit_2(tmp_path, capsys):
    folder = tmp_path / "fed"
    update_folder(folder)
    spoil(folder / "ca.crt", 0.5)
    before = hashlib.sha256(repr(sorted(held(folder).items())).encode()).hexdigest()
    for arguments in (
        ["certs", str(folder)],
        ["certs", str(folder), "--nodes", "../x"],
        ["certs", "--nodes", "a", "b"],
    ):
        assert main(arguments) == 2
        said = capsys.readouterr()
        assert (said.out, said.err.count("\n")) == ("", 1)
    assert hashlib.sha256(repr(sorted(held(folder).items())).encode()).hexdigest() == before


def test_neither_a_program_nor_a_heavy_library_is_needed(tmp_path):
    """With an empty PATH, and without torch, numpy, Ray or Flower being imported."""
    heavy = "{'torch', 'flwr', 'ray', 'numpy', 'omegaconf'} & set(sys.modules)"
    code = f"import sys; from fedcl.cli import main; assert main(['certs', 'fed']) == 0; assert not {heavy}, {heavy}"
    environment = {"PATH": "", "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "fed" / "server.crt").is_file()
