"""Addresses that users type: of a Ray cluster, of a server, of this machine. Each is looked at before it is used."""

import re
import socket

# A name or an IPv4 address, or an IPv6 address in brackets.
HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9.])?|\[[0-9A-Fa-f:.]{2,45}\]", re.ASCII)
EVERYWHERE = "0.0.0.0 stands for all addresses of this machine"


def problem(address: str | None) -> str:
    """Return why an address cannot be that of a cluster; "" if it can, or if there is none."""
    if not address or address == "auto":
        return ""
    if "://" in address:
        return "must be HOST:PORT or 'auto', on a node of the cluster; Ray's clients from outside are not supported"
    host, _, port = address.rpartition(":")
    known = host and port.isdecimal() and 0 < int(port) < 65536
    return "" if known else "must be HOST:PORT of the cluster's head, or 'auto'"


def server_problem(address: str, port: int) -> str:
    """Return why an address cannot be that of a server; "" if it can.

    Args:
        port: at which servers listen unless they are told otherwise, for the hint.
    """
    rest = address.partition("://")[2] or address
    host, colon, number = rest.strip("/").rpartition(":")
    if not colon:
        host, number = number, str(port)
    sound = HOST.fullmatch(host) and re.fullmatch("[0-9]{1,5}", number) and 0 < int(number) < 65536
    if sound and address == f"{host}:{number}":
        return ""
    return f"must be HOST:PORT, as {host}:{number}" if sound else f"must be HOST:PORT, as fed.example.org:{port}"


def host_problem(host: str) -> str:
    """Return why nobody can listen at a host of this machine; "" if somebody can."""
    try:
        found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        return f"no address is known by this name; {EVERYWHERE}"
    family, kind, protocol, _, address = found[0]
    try:
        with socket.socket(family, kind, protocol) as tried:
            tried.bind(address)
    except OSError as error:
        return f"is no address at which this machine can listen ({error.strerror}); {EVERYWHERE}"
    return ""
