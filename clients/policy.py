"""What a node lets out, and whose code it lets in: its operator's rules, which no order of a server can change.

    FEDCL_ALLOW       statistics that may leave, separated by commas; unset: all, empty: none
    FEDCL_MIN_COUNT   samples that a figure must rest on (`fedcl.withholding`), 5 if unset; and a visit, to be answered
    FEDCL_AUDIT       the file that lists what has left (clients.audit)
    FEDCL_TRUST       packages that a scenario may name parts of, separated by commas (fedcl.trust)

Besides the statistics of `fedcl.answers.LAYOUTS` there are `accuracy`, `score` and `trace`: what an evaluation, a
scoring and a tracing order ask for. All is settled before any work, from the order and the node's own data.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from clients.holdings import visits
from clients.site import Site
from clients.work import Asked
from fedcl.answers import LAYOUTS
from fedcl.errors import ConfigError, FederationError, nearest
from fedcl.orders import (
    VISIT,
    ConsolidateOrder,
    EvaluateOrder,
    Order,
    Reply,
    ScoreOrder,
    StockOrder,
    StockReply,
    TraceOrder,
    TrainOrder,
    Withheld,
    pick,
)
from fedcl.trust import packages
from fedcl.withholding import LEAST

Answered = TypeVar("Answered", bound=Reply)
MEASURED: dict[type[Order], str] = {EvaluateOrder: "accuracy", ScoreOrder: "score", TraceOrder: "trace"}
KNOWN = (*LAYOUTS, *MEASURED.values())
STOCK = "stock"  # how many items a client has for which task; always let out, for numbers above FEDCL_MIN_COUNT


class Refused(FederationError):
    """What an order asks for must not leave this node."""


@dataclass(frozen=True, kw_only=True)
class Policy:
    """A node's rules; the defaults let everything out."""

    allow: frozenset[str] | None = None  # None: every statistic
    min_count: int = LEAST
    audit: Path | None = None
    trust: tuple[str, ...] = ()  # beside fedcl itself and installed entry points

    def admitted(self, site: Site, order: Asked) -> tuple[Asked, list[Withheld]]:
        """Return the order for those of its clients whose visit shows enough samples, and what is withheld of others.

        An update, or a score, rests on the visit as a whole. Other figures are withheld one by one where they are made.
        What a visit shows is known before the work, so who has too little is left out before it: nothing of it is
        computed, and the sum of the others is formed as it would be without it. (To train client by client and look at
        each reply would come to the same, with other roundings of the sum.)
        """
        if not isinstance(order, TrainOrder | ScoreOrder) or isinstance(order, TraceOrder):
            return order, []
        shown = visits(site, order)
        out = (shown > 0) & (shown < self.min_count)
        lacking = order.clients[out].tolist()
        told = [Withheld(client=client, least=self.min_count, figures=[VISIT]) for client in lacking]
        return (pick(order, np.flatnonzero(~out)) if told else order), told

    def check(self, site: Site, order: Order) -> None:
        """Look at what an order asks for, before anything is done.

        Raises:
            Refused: a statistic is not allowed.
        """
        if self.allow is None or isinstance(order, StockOrder):  # who is not told how much there is can ask for nothing
            return
        for name in statistics(order, missions=getattr(site.scenario.server.method, "missions", False)):
            if name not in self.allow:
                allowed = ", ".join(sorted(self.allow)) or "nothing"
                raise Refused(f"statistic {name!r} must not leave this node: FEDCL_ALLOW allows {allowed}")

    def hidden(self, reply: Answered) -> Answered:
        """Return the reply in which a stock of too few items is none."""
        if not isinstance(reply, StockReply):
            return reply
        return replace(reply, items=np.where(reply.items < self.min_count, 0, reply.items))


def statistics(order: Order, *, missions: bool = False) -> list[str]:
    """Return the statistics that an order leads to.

    Args:
        missions: clients say with a consolidation how well they do (`server.method.missions`).
    """
    if type(order) in MEASURED:
        return [MEASURED[type(order)]]
    if isinstance(order, StockOrder):
        return [STOCK]
    if isinstance(order, ConsolidateOrder):
        return [*order.statistics, *(("accuracy",) if missions else ())]
    return list(order.statistics) if isinstance(order, TrainOrder) else []


def of_environment(environment: Mapping[str, str] = os.environ) -> Policy:
    """Return the policy that stands in the environment.

    Raises:
        ConfigError: a name or number in it cannot be.
    """
    allow, least, audit = (environment.get(f"FEDCL_{name}") for name in ("ALLOW", "MIN_COUNT", "AUDIT"))
    names = None if allow is None else frozenset(_listed(allow))
    for name in sorted(names or ()):
        if name not in KNOWN:
            raise ConfigError(f"FEDCL_ALLOW = {allow!r}: unknown statistic {name!r}{nearest(name, KNOWN)}")
    if least and not (least.isascii() and least.isdigit()):
        raise ConfigError(f"FEDCL_MIN_COUNT = {least!r}: must be a whole number of samples, 0 or more")
    trust = packages(_listed(environment.get("FEDCL_TRUST", "")), "FEDCL_TRUST")
    count = int(least) if least else LEAST
    return Policy(allow=names, min_count=count, audit=Path(audit) if audit else None, trust=trust)


def _listed(text: str) -> list[str]:
    """Return what a text lists, separated by commas."""
    return [each.strip() for each in text.split(",") if each.strip()]
