"""The folder that `fedcl certs` makes and keeps up to date.

ca.crt, ca.key: a CA of the federation's own. ca.crt goes to whoever connects; ca.key signs, and is best kept offline.
server.crt, server.key: the SuperLink's certificate, signed by the CA, for the hosts at which it is reached.
nodes/NAME.key, nodes/NAME.pub: a SuperNode's key pair. What is found is examined before anything is written.
"""

import os
import secrets
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from fedcl import certs, files, writing
from fedcl.errors import ConfigError
from fedcl.journal import sync_path

if TYPE_CHECKING:
    from cryptography import x509

    from fedcl.certs import Key

T = TypeVar("T")

RENEWAL = timedelta(days=30)
BACK = "bring it back from a copy"


@dataclass(frozen=True, kw_only=True)
class File:
    """One file of the folder: what was done about it, until when it is valid, and its bytes if it is to be written."""

    path: Path
    state: Literal["made", "renewed", "kept", "not here"]
    until: datetime | None = None
    note: str = ""
    data: bytes | None = field(default=None, repr=False)
    secret: bool = False


def _read(path: Path, load: Callable[[bytes], T], what: str, remedy: str = BACK) -> T | None:
    """Return what a file holds, None if it is not there."""
    from cryptography.exceptions import UnsupportedAlgorithm

    if not os.path.lexists(path):
        return None
    data = files.named(path, "certs:", files.KEY)
    try:
        return load(data)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:  # TypeError: it asks for a passphrase
        reason = str(error).split("\n")[0].rstrip(".")
        raise ConfigError(f"{path} is no {what} that can be read ({reason}): {remedy}") from error


def _anew(what: str) -> str:
    return f"move {what} away to have a new pair"


def _kept_secret(path: Path, note: str = "") -> File:
    """Tell of a private key that stays as it is; also that others may read it, which nothing here brought about."""
    if path.stat().st_mode & 0o077:
        note = f"others may read it: chmod 600 {shlex.quote(str(path))}"
    return File(path=path, state="kept", note=note, secret=True)


def _check_ca(path: Path, ca: "x509.Certificate", key: "Key | None", now: datetime) -> None:
    from cryptography import x509

    if not certs.signed_by(ca, ca):
        raise ConfigError(f"{path} is damaged, or not signed by itself as a CA is: {BACK}")
    if key and ca.public_key() != key.public_key():
        raise ConfigError(f"{path.with_suffix('.key')} does not fit {path}: bring back the key that made it")
    flags = [each.value for each in ca.extensions if isinstance(each.value, x509.BasicConstraints)]
    if not any(each.ca for each in flags):
        raise ConfigError(f"{path} is the certificate of a server, not of a CA: bring back the CA's own")
    if ca.not_valid_after_utc <= now:
        raise ConfigError(
            f"{path} ended on {ca.not_valid_after_utc:%Y-%m-%d}: move ca.crt, ca.key and server.crt away to have new "
            "ones; every node then needs the new ca.crt"
        )


def _authority(folder: Path, now: datetime) -> tuple["x509.Certificate", "Key | None", list[File]]:
    """Return the CA, its key unless that is kept elsewhere, and what is to be told of both."""
    path, key_path = folder / "ca.crt", folder / "ca.key"
    ca = _read(path, certs.load_certificate, "certificate")
    key = _read(key_path, certs.load_key, "private key")
    if ca:
        _check_ca(path, ca, key, now)
        there = File(path=path, state="kept", until=ca.not_valid_after_utc)
        away = File(path=key_path, state="not here", note="needed only to renew server.crt", secret=True)
        return ca, key, [_kept_secret(key_path) if key else away, there]
    # A key alone is what a run leaves that was killed after its first file.
    of_key = _kept_secret(key_path) if key else None
    key = key or certs.new_key()
    ca = certs.make_ca(key, start=now)
    made = File(path=path, state="made", until=ca.not_valid_after_utc, data=certs.pem_certificate(ca))
    of_key = of_key or File(path=key_path, state="made", note="keep it offline", data=certs.pem_key(key), secret=True)
    return ca, key, [of_key, made]


def _outdated(found: "x509.Certificate", hosts: Sequence[str], ca: "x509.Certificate", now: datetime) -> str:
    """Return why a server certificate must be renewed, "" if it need not."""
    known, end = certs.hosts_of(found), found.not_valid_after_utc
    if set(known) != set(hosts):
        return f"it was for {', '.join(known) or 'no host'}"
    if end - now < RENEWAL and end < ca.not_valid_after_utc:
        return f"it {'ended' if end <= now else 'was to end'} on {end:%Y-%m-%d}"
    return ""


def _check_server(path: Path, found: "x509.Certificate", key: "Key | None", ca: "x509.Certificate") -> None:
    if not certs.signed_by(found, ca):
        raise ConfigError(f"{path} is damaged, or not signed by ca.crt: {BACK}, or move it away to have a new one")
    if key is None:
        raise ConfigError(f"{path} is there without server.key: bring the key back, or {_anew('server.crt')}")
    if found.public_key() != key.public_key():
        raise ConfigError(f"{path.with_suffix('.key')} does not fit {path}: {BACK}, or {_anew('both')}")


def _server(
    folder: Path, hosts: Sequence[str], ca: "x509.Certificate", ca_key: "Key | None", now: datetime, days: int
) -> list[File]:
    """Return what becomes of server.key and server.crt; without `hosts` it stays with those it has."""
    path, key_path = folder / "server.crt", folder / "server.key"
    remedy = f"{BACK}, or {_anew('server.crt and server.key')}"
    found = _read(path, certs.load_certificate, "certificate", remedy)
    key = _read(key_path, certs.load_key, "private key", remedy)
    if found:
        _check_server(path, found, key, ca)
    wanted = hosts or (certs.hosts_of(found) if found else []) or certs.LOOPBACK
    reason = _outdated(found, wanted, ca, now) if found else ""
    if found and not reason:
        there = File(path=path, state="kept", until=found.not_valid_after_utc, note=f"for {', '.join(wanted)}")
        return [_kept_secret(key_path), there]
    if ca_key is None:
        asked = f"renewed ({reason})" if found else "made"
        raise ConfigError(f"{path} must be {asked}, which {folder / 'ca.key'} signs: bring that file back for this run")
    of_key = _kept_secret(key_path) if key else None
    key = key or certs.new_key()
    server = certs.make_server(ca, ca_key, key, wanted, start=now, days=days)
    told = f"for {', '.join(wanted)}" + (f"; {reason}" if reason else "")
    made = File(
        path=path,
        state="renewed" if found else "made",
        until=server.not_valid_after_utc,
        note=told,
        data=certs.pem_certificate(server),
    )
    return [of_key or File(path=key_path, state="made", data=certs.pem_key(key), secret=True), made]


def _node(folder: Path, name: str, asked: bool) -> list[File]:
    """Return what becomes of a node's pair: a key that is here, or was taken to its node, is never made again."""
    path, public_path = folder / "nodes" / f"{name}.key", folder / "nodes" / f"{name}.pub"
    remedy = f"{BACK}, or {_anew(f'{path.name} and {public_path.name}')}"
    key = _read(path, certs.load_node_key, "private key", remedy)
    public = _read(public_path, certs.load_node_public, "public key", remedy)
    if key and public and key.public_key() != public:
        raise ConfigError(f"{path} does not fit {public_path}: {BACK}, or {_anew('both')}")
    note = "was there: never overwritten" if asked else ""
    if public:
        gone = File(path=path, state="not here", note="with its node; never made again", secret=True)
        return [_kept_secret(path, note) if key else gone, File(path=public_path, state="kept", note=note)]
    of_key = _kept_secret(path, note) if key else None
    private, written = certs.make_node(key or certs.new_key(), name)
    of_key = of_key or File(path=path, state="made", note="for this node only", data=private, secret=True)
    return [of_key, File(path=public_path, state="made", data=written)]


def _write(file: File, data: bytes) -> None:
    """Write a file whole or not at all; a private key is never readable to others, not even while it is written."""
    temporary = file.path.with_name(f".{file.path.name}.{secrets.token_hex(4)}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    mode = writing.OWN if file.secret else 0o644
    try:
        with open(writing.descriptor(temporary, flags, mode), "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file.path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_path(file.path.parent)


def _names_there(folder: Path) -> set[str]:
    found = (folder / "nodes").glob("[!.]*.*")
    return {each.stem for each in found if each.suffix in (".key", ".pub")}


def _planned(folder: Path, hosts: Iterable[str], nodes: Iterable[str], days: int, now: datetime) -> list[File]:
    if not 1 <= days <= certs.CA_DAYS:
        raise ConfigError(
            f"days = {days}: must be from 1 to {certs.CA_DAYS}, which is a CA's lifetime; default {certs.SERVER_DAYS}"
        )
    asked = [certs.checked_host(host) for host in hosts]
    wanted = list(dict.fromkeys([*asked, *certs.LOOPBACK])) if asked else []
    names = {certs.checked_name(name) for name in nodes}
    ca, ca_key, files = _authority(folder, now)
    files += _server(folder, wanted, ca, ca_key, now, days)
    for name in sorted(names | _names_there(folder)):
        files += _node(folder, name, name in names)
    return files


def update_folder(
    folder: Path,
    *,
    hosts: Iterable[str] = (),
    nodes: Iterable[str] = (),
    days: int = certs.SERVER_DAYS,
    now: datetime | None = None,
) -> list[File]:
    """Make what a federation over TLS needs, or bring it up to date; nothing is written where something is wrong.

    The CA, the server's key and the nodes' keys stay as they are. The server's certificate is renewed if it is for
    other hosts, or ends within 30 days. A run that was killed is completed by the next.

    Args:
        folder: where it lies; made if need be, readable to its owner alone.
        hosts: names and addresses at which the SuperLink is reached, certs.LOOPBACK beside them; none: those that its
            certificate has, certs.LOOPBACK at first.
        nodes: names of SuperNodes that get a key pair unless they have one.
        days: how long a new server certificate is valid; at most as long as the CA's.
        now: the time, aware of its zone; default: the clock.

    Raises:
        ConfigError: a name, host or number of days is impossible, what is there is damaged or does not belong
            together, `ca.key` is needed and not there, or the folder cannot be read or written.
    """
    now = (now or datetime.now(UTC)).replace(microsecond=0)
    try:
        files = _planned(folder, hosts, nodes, days, now)
        for file in files:
            if file.data is not None:
                file.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                _write(file, file.data)
    except OSError as error:
        raise ConfigError(f"{str(folder)!r} cannot be read or written ({error})") from error
    return files


def next_step(folder: Path, files: Iterable[File]) -> str:
    """Return the one thing to do after `update_folder`."""
    state = {file.path.relative_to(folder).as_posix(): file for file in files}
    server = state["server.crt"]
    if server.state == "made":
        return f"fedcl server SCENARIO --state DIR --host 0.0.0.0 --tls {shlex.quote(str(folder))} --auth"
    if server.state == "renewed":
        return "start the SuperLink anew, so that it shows the new server.crt (the nodes need nothing new)"
    made = [str(file.path) for file in state.values() if file.state == "made" and file.path.suffix == ".pub"]
    if made:
        return f"fedcl server nodes add {' '.join(map(shlex.quote, made))} --state DIR"
    ends = {name: until for name, file in state.items() if (until := file.until)}
    if ends["server.crt"] >= ends["ca.crt"]:
        return f"nothing before {ends['ca.crt']:%Y-%m-%d}, when the CA ends"
    return f"nothing before {ends['server.crt'] - RENEWAL:%Y-%m-%d}: from then on this command renews server.crt"
