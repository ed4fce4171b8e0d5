"""How a Ray cluster is named."""


def problem(address: str | None) -> str:
    """Return why an address cannot be that of a cluster; "" if it can, or if there is none."""
    if not address or address == "auto":
        return ""
    if "://" in address:
        return "must be HOST:PORT or 'auto', on a node of the cluster; Ray's clients from outside are not supported"
    host, _, port = address.rpartition(":")
    known = host and port.isdecimal() and 0 < int(port) < 65536
    return "" if known else "must be HOST:PORT of the cluster's head, or 'auto'"
