"""The names of a node's own clients (`fedcl.names`), and the numbers with which a federation's server comes for them.

The server gives each name a number, once; every order brings both. The node remembers them for each federation, beside
the sittings, so that nobody's records or data are taken for another client's.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from clients.versions import Place, remembered
from fedcl import names
from fedcl.errors import ConfigError
from fedcl.orders import Order

NUMBERED = ("clients", "partition-id")  # node-config that gives a node's clients numbers


def own(settings: Mapping[str, Any], place: Place) -> list[str]:
    """Return the names of this node's clients, none where node-config gives them numbers.

    Args:
        settings: Flower's node-config; `node` is its name by its key, `wards` those of its clients, by comma.

    Raises:
        ConfigError: the node-config cannot be.
    """
    if any(name in settings for name in NUMBERED):
        if "wards" in settings or "node" in settings:
            raise ConfigError("node-config: a node's clients have numbers (clients) or names (node, wards), not both")
        return []
    node = str(settings.get("node") or "") or names.of_secret(place.secret())
    found = names.named(node, names.checked([ward for ward in str(settings.get("wards") or "").split(",") if ward]))
    wrong = names.problem(found)
    if wrong:
        raise ConfigError(f"node-config: {wrong}")
    return found


def problem(order: Order, mine: Sequence[str], known: Mapping[str, int]) -> str | None:
    """Return why an order's clients are not this node's under these names, in a sentence; None: they are.

    Args:
        mine: the names of the node's clients, none where they have numbers.
        known: the number of each name, as this federation has come with it before.
    """
    listed, before = _pairs(order), {number: name for name, number in known.items()}
    if len({name for _, name in listed if name}) != sum(map(bool, order.names)):
        return f"names = {[name[:100] for _, name in listed[:10]]}: must be each once"
    for number, name in listed:
        if name and name not in mine:
            return f"client {number} comes as {name[:100]!r}: not of this node, which has {_shown(mine)}"
        if mine and not name:
            return f"client {number} comes without a name: this node has {_shown(mine)}"
        if known.get(name, number) != number:
            return f"client {number} comes as {name!r}, which was client {known[name]} of {order.federation!r} before"
        if before.get(number, name) != name:
            what = f"as {name!r}" if name else "without a name"
            return f"client {number} comes {what}, but was {before[number]!r} of {order.federation!r} before"
    return None


def _pairs(order: Order) -> list[tuple[int, str]]:
    return list(zip(order.clients.tolist(), order.names or [""] * len(order.clients), strict=True))


def _shown(mine: Sequence[str]) -> str:
    return ", ".join(mine[:10]) + ", ..." * (len(mine) > 10) or "numbers alone"


def remember(order: Order, place: Place) -> None:
    """Keep the names of an order's clients with their numbers, for good, if any is new."""
    kept = place.numbers()
    known = kept.get(order.federation, {})
    seen = {**known, **{name: number for number, name in _pairs(order) if name}}
    if seen != known:
        place.keep_numbers(remembered(kept, order.federation, seen))


def wards(order: Order) -> dict[int, str]:
    """Return the ward of each client of an order that this node has found to be its own, by number.

    "" stands for the one client of a node that has no wards, and for clients that are known by their numbers.
    """
    return {number: names.ward_of(name) for number, name in _pairs(order)}
