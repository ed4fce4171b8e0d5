"""A cohort's order carried out: records -> this visit's data -> training -> answer -> records.

A pure function of the order and the records it names, so a lost or failed cohort is repeated anywhere in the same form.
"""

import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clients import records
from clients.block import lay, train_block
from clients.memories import Ints, Records
from clients.site import Site
from fedcl.models.behaviour import operator_of
from fedcl.orders import DIVERGED, REFUSED, ClientError, Order, TrainOrder, TrainReply, pick
from fedcl.timing import doing

Asked = TypeVar("Asked", bound=Order)


class Store(Protocol):
    """Where clients' records lie between visits."""

    def load(self, clients: Ints, packs: list[str], rows: Ints, fresh: Records) -> Records:
        """Return the newest records that count, a fresh one for a client never visited."""

    def save(
        self, name: str, clients: Ints, records: Records, old: Records | None = None, seldom: Sequence[str] = ()
    ) -> str:
        """Keep new records under a name and return their checksum.

        Args:
            old: what they were when they were loaded.
            seldom: fields that need not be written again where they are the same.
        """


@dataclass(frozen=True, kw_only=True)
class Worked:
    """The answers of those clients whose answer can be taken."""

    total: Tensor  # (A,)
    clients: Ints
    records: Records
    table: dict[str, NDArray[Any]]
    errors: list[ClientError]
    notes: list[str] = field(default_factory=list)  # what whoever runs the federation should know, a sentence each


def train(site: Site, order: TrainOrder, store: Store) -> TrainReply:
    """Carry out a training order and save the new records of the clients that answered."""
    with doing("state in"):
        old = store.load(order.clients, order.packs, order.rows, records.fresh(site.record))
    worked = _persistent(site, order, old)
    name = f"r{order.round:06d}-c{order.cohort:05d}.pack" if len(worked.clients) else ""
    with doing("state out"):
        before = old[np.isin(order.clients, worked.clients)] if site.seldom else None
        checksum = store.save(name, worked.clients, worked.records, before, site.seldom) if name else ""
    return TrainReply(
        round=order.round, cohort=order.cohort, clients=worked.clients, table=worked.table, errors=worked.errors,
        total=worked.total.cpu().numpy(), pack=name, checksum=checksum, notes=worked.notes,
    )  # fmt: skip


def _persistent(site: Site, order: TrainOrder, old: Records) -> Worked:
    """Train the cohort; if it fails twice, find who fails alone and train the others in the same form without them.

    If these fail together although each of them trains alone, they are trained one by one.
    """
    found = _tried(site, order, old, 2)
    if isinstance(found, Worked):
        return found
    culprits = {}
    for row in range(len(order.clients)):
        try:
            work(site, pick(order, np.array([row])), old[[row]].copy())
        except Exception as error:
            culprits[row] = ClientError(
                client=int(order.clients[row]),
                error=f"{type(error).__name__}: {error}",
                traceback=traceback.format_exc(),
            )
    rest = np.array([row for row in range(len(order.clients)) if row not in culprits], np.int64)
    order, old = pick(order, rest), old[rest]
    if culprits:
        found = _tried(site, order, old, 1)
    if not isinstance(found, Worked):
        found = _apart(site, order, old, found)
    return replace(found, errors=[*culprits.values(), *found.errors])


def _tried(site: Site, order: TrainOrder, old: Records, times: int) -> Worked | Exception:
    """Return what the cohort comes to, or why it has failed every time."""
    for _ in range(times):
        try:
            return work(site, order, old.copy())
        except Exception as error:
            failure = error
    return failure


def _apart(site: Site, order: TrainOrder, old: Records, failure: Exception) -> Worked:
    """Train clients one by one that fail only as a stack, and say so.

    Where no two of them can be stacked, this process makes no stack any more. So it is anywhere: which clients are
    trained one by one depends on their orders and not on who carried out what before.
    """
    stack, operator = site.stack, operator_of(failure)
    if stack == 1:
        raise RuntimeError("a cohort fails although each of its clients trains alone") from failure
    worked = work(site, order, old.copy(), stack=1)
    if isinstance(_tried(site, pick(order, np.arange(2)), old[:2], 1), Exception):
        site.apart.append(operator)
    note = f"engine.stack = {stack}: clients are trained one by one where a stack of them fails: in {operator}"
    return replace(worked, notes=[note])


def work(site: Site, order: TrainOrder, old: Records, stack: int | None = None) -> Worked:
    """Train the clients of an order, stack by stack, and add their answers up.

    Args:
        old: (k,) their records; changed in place into the new ones.
        stack: clients trained together; default: as the site does it.
    """
    stack = stack or site.stack
    total = torch.zeros(site.layout(order.statistics).size, dtype=site.dtype, device=site.device)
    if not len(order.clients):
        return Worked(total=total, clients=order.clients, records=old, table={}, errors=[])
    with doing("data"):
        laid = lay(site, order, old)
    tables, errors, fine = [], list[ClientError](), np.ones(len(old), np.bool_)
    for begin in range(0, len(old), stack):
        rows = slice(begin, min(begin + stack, len(old)))
        answers, table = train_block(site, order, old, laid, rows)
        added, short = answers.sum(dim=0), ~_too_long(site, table["norm"])
        if not (short.all() and torch.isfinite(added.sum())):  # a sum is not finite where an addend is not
            finite = torch.isfinite(answers).all(dim=1).numpy(force=True)
            errors += [_diverged(int(client)) for client in order.clients[rows][~finite]]
            errors += [_refused(site, int(client)) for client in order.clients[rows][finite & ~short]]
            fine[rows] = finite & short
            added = answers[torch.from_numpy(fine[rows]).to(answers.device)].sum(dim=0)
        total += added
        tables.append(table)
    old["visits"] += 1
    return Worked(
        total=total,
        clients=order.clients[fine],
        records=old[fine],
        errors=errors,
        table={name: np.concatenate([table[name] for table in tables])[fine] for name in tables[0]},
    )


def _too_long(site: Site, norms: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which updates are to be refused for their norms (k,)."""
    server = site.scenario.server
    limit = np.inf if server.max_update_norm is None or server.norm_bound == "clip" else server.max_update_norm
    long: NDArray[np.bool_] = norms > limit
    return long


def _refused(site: Site, client: int) -> ClientError:
    error = f"the update is longer than server.max_update_norm = {site.scenario.server.max_update_norm:g}: refused"
    return ClientError(client=client, error=error, traceback="", kind=REFUSED)


def _diverged(client: int) -> ClientError:
    error = "the update holds numbers that are not finite: the client has diverged (try a smaller lr, or client.clip)"
    return ClientError(client=client, error=error, traceback="", kind=DIVERGED)
