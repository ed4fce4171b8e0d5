"""A cohort's order carried out: records -> this visit's data -> training -> answer -> records.

A pure function of the order and the records it names, so a lost or failed cohort is repeated anywhere in the same form.
"""

import traceback
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clients import admission, records, visits
from clients.admission import Admitted
from clients.answers import Trained, answer_rows
from clients.memories import Ints, Records
from clients.site import Site
from clients.trainer import Block, Capture, Result, Stepwise
from fedcl.orders import ClientError, TrainOrder, TrainReply


class Store(Protocol):
    """Where clients' records lie between visits."""

    def load(self, clients: Ints, packs: list[str], rows: Ints, fresh: Records) -> Records:
        """Return the newest records, a fresh one for a client never visited."""

    def save(self, name: str, clients: Ints, records: Records) -> str:
        """Keep new records under a name and return their checksum."""


@dataclass(frozen=True, kw_only=True)
class Worked:
    """The answers of those clients whose answer can be taken."""

    total: Tensor  # (A,)
    clients: Ints
    records: Records
    table: dict[str, NDArray[Any]]
    errors: list[ClientError]


def train(site: Site, order: TrainOrder, store: Store) -> TrainReply:
    """Carry out a training order and save the new records of the clients that answered."""
    old = store.load(order.clients, order.packs, order.rows, records.fresh(site.record))
    worked = _persistent(site, order, old)
    name = f"r{order.round:06d}-c{order.cohort:05d}.pack" if len(worked.clients) else ""
    checksum = store.save(name, worked.clients, worked.records) if name else ""
    return TrainReply(
        round=order.round, cohort=order.cohort, clients=worked.clients, table=worked.table, errors=worked.errors,
        total=worked.total.cpu().numpy(), pack=name, checksum=checksum,
    )  # fmt: skip


def _persistent(site: Site, order: TrainOrder, old: Records) -> Worked:
    """Train the cohort; if it fails twice, find who fails alone and train the others in the same form without them."""
    for _ in range(2):
        try:
            return work(site, order, old.copy())
        except Exception:
            reason = traceback.format_exc()
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
    if not culprits:
        raise RuntimeError(f"a cohort fails although each of its clients trains alone:\n{reason}")
    rest = np.array([row for row in range(len(order.clients)) if row not in culprits], np.int64)
    worked = work(site, pick(order, rest), old[rest].copy())
    return replace(worked, errors=[*culprits.values(), *worked.errors])


def pick(order: TrainOrder, rows: Ints) -> TrainOrder:
    """Return the order for some of its clients."""
    return replace(
        order, clients=order.clients[rows], tasks=order.tasks[rows], clocks=order.clocks[rows], rows=order.rows[rows],
        packs=[order.packs[row] for row in rows],
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Laid:
    """A cohort's visit laid out before training."""

    samples: Ints  # (k,)
    counts: Ints  # (k,) steps
    now: Stepwise
    draws: dict[str, Stepwise]
    admitted: Admitted


def lay(site: Site, order: TrainOrder, old: Records) -> Laid:
    """Lay a visit out; bring the memories and cursors in `old` up to date, but for the logits."""
    client, seed, labels = site.scenario.client, site.scenario.seed, site.stream.dataset.y
    local = visits.local_data(site.stream, order)
    walked = visits.walk(local, seed, order, epochs=client.epochs, batch=client.batch)
    steps = visits.batches(local, walked, batch=client.batch)
    draws = _draws(site, order, old, steps.items.shape[1])  # from the memory as it was before this visit
    admitted = admission.none_admitted(len(old))
    if site.memory:
        admitted = admission.admit(site.memory, old, labels, local, walked, order, seed)
    admission.move_cursor(old, local, order.tasks)
    columns = [torch.from_numpy(each).to(site.device) for each in (steps.items, steps.tasks, labels[steps.items])]
    weight = torch.from_numpy(steps.weight).to(site.dtype).to(site.device)
    now = Stepwise(items=columns[0], tasks=columns[1], labels=columns[2], weight=weight)
    return Laid(samples=local.lengths, counts=steps.count, now=now, draws=draws, admitted=admitted)


def _draws(site: Site, order: TrainOrder, old: Records, steps: int) -> dict[str, Stepwise]:
    """Look up what every replay draw of every step shows."""
    client = site.scenario.client
    if not site.memory:
        return {}
    filled, size = old["count"].copy(), client.replay_batch or client.batch
    slots = visits.replays(site.scenario.seed, order, client.method.draws, (steps, size), filled)
    remembered = {name: torch.from_numpy(old[name].astype(np.int64)) for name in ("items", "tasks", "labels")}
    rows = torch.arange(len(old))[:, None, None]
    weight = torch.from_numpy((filled > 0) / size).to(site.dtype)[:, None, None].expand(-1, steps, size)
    found = {}
    for draw in client.method.draws:
        drawn = torch.from_numpy(slots[draw.name])
        columns = {name: column[rows, drawn].to(site.device) for name, column in remembered.items()}
        logits = torch.from_numpy(old["logits"].copy()).to(site.device) if draw.logits else None
        found[draw.name] = Stepwise(
            **columns, weight=weight.to(site.device), slots=drawn.to(site.device), logits=logits
        )
    return found


def work(site: Site, order: TrainOrder, old: Records) -> Worked:
    """Train the clients of an order, stack by stack, and add their answers up.

    Args:
        old: (k,) their records; changed in place into the new ones.
    """
    total = torch.zeros(site.answer.size, dtype=site.dtype, device=site.device)
    if not len(order.clients):
        return Worked(total=total, clients=order.clients, records=old, table={}, errors=[])
    laid, stack = lay(site, order, old), site.stack
    tables, fine = [], np.ones(len(old), np.bool_)
    for begin in range(0, len(old), stack):
        rows = slice(begin, min(begin + stack, len(old)))
        answers, table = _train_block(site, order, old, laid, rows)
        finite = torch.isfinite(answers).all(dim=1)
        total += answers[finite].sum(dim=0)
        fine[rows] = finite.numpy(force=True)
        tables.append(table)
    old["visits"] += 1
    return Worked(
        total=total,
        clients=order.clients[fine],
        records=old[fine],
        errors=[_diverged(int(client)) for client in order.clients[~fine]],
        table={name: np.concatenate([table[name] for table in tables])[fine] for name in tables[0]},
    )


def _diverged(client: int) -> ClientError:
    error = "the update holds numbers that are not finite: the client has diverged (try a smaller lr, or client.clip)"
    return ClientError(client=client, error=error, traceback="")


def _train_block(
    site: Site, order: TrainOrder, old: Records, laid: Laid, rows: slice
) -> tuple[Tensor, dict[str, NDArray[Any]]]:
    """Train the clients in `rows` together; write their records; return their answers (k, A) and the table."""
    own, client = old[rows], site.scenario.client
    weights = torch.from_numpy(order.weights.copy()).to(site.device)
    block = Block(
        counts=laid.counts[rows].tolist(),
        start=_start(site, weights, own),
        shared=weights,
        now=laid.now.rows(rows),
        draws={name: draw.rows(rows) for name, draw in laid.draws.items()},
        capture=_capture(site, laid, rows),
        buffers=_buffers(site, own),
        steps_before=torch.from_numpy(_kept(own, "optimizer.steps", np.float64)).to(site.device),
    )
    result = site.trainer.train(block)
    samples = torch.from_numpy(laid.samples[rows]).to(site.dtype).to(site.device)
    trained = Trained(
        before=weights,
        after=result.after,
        shared=site.shared,
        weights=samples if site.scenario.server.weights == "samples" else torch.ones_like(samples),
        max_norm=site.scenario.server.max_update_norm,
    )
    _write(site, own, laid, rows, result)
    norms = ((result.after - weights) * site.shared).norm(dim=1)
    table = {
        "n": laid.samples[rows], "steps": laid.counts[rows], "evicted": laid.admitted.evicted[rows],
        "norm": norms.numpy(force=True).astype(np.float64),
        **{f"loss/{name}": loss.numpy(force=True).astype(np.float64) for name, loss in result.losses.items()},
    }  # fmt: skip
    return answer_rows(site.scenario.server.method.answers, trained), table


def _kept(own: Records, name: str, kind: type) -> NDArray[Any]:
    """Return a field of the records, zeros where they do not have it."""
    return own[name].astype(kind) if name in (own.dtype.names or ()) else np.zeros(len(own), kind)


def _start(site: Site, weights: Tensor, own: Records) -> Tensor:
    """Return (k, P): the global model, with a client's personal parameters once it has some."""
    start = weights.expand(len(own), -1).clone()
    if "personal" in (own.dtype.names or ()):
        visited = torch.from_numpy(own["visits"] > 0).to(site.device)[:, None]
        personal = torch.from_numpy(own["personal"].copy()).to(site.device)
        start[:, site.personal] = torch.where(visited, personal, start[:, site.personal])
    return start


def _buffers(site: Site, own: Records) -> dict[str, Tensor]:
    """Return the optimiser's buffers (k, P): kept ones, else zeros."""
    empty = torch.zeros(len(own), site.parameters.size, dtype=site.dtype, device=site.device)
    names = site.scenario.client.optimizer.buffers
    if not site.scenario.client.optimizer.keep:
        return dict.fromkeys(names, empty)
    return {name: torch.from_numpy(own[f"optimizer.{name}"].copy()).to(site.device) for name in names}


def _capture(site: Site, laid: Laid, rows: slice) -> Capture | None:
    """Return whose logits of the block are to be remembered, None where the records have none."""
    if "logits" not in (site.record.names or ()):
        return None
    mine = (laid.admitted.rows >= rows.start) & (laid.admitted.rows < rows.stop)
    first = np.searchsorted(laid.admitted.steps[mine], np.arange(int(laid.counts[rows].max()) + 1))
    return Capture(
        rows=torch.from_numpy(laid.admitted.rows[mine] - rows.start).to(site.device),
        columns=torch.from_numpy(laid.admitted.columns[mine]).to(site.device),
        first=first.tolist(),
    )


def _write(site: Site, own: Records, laid: Laid, rows: slice, result: Result) -> None:
    """Write what training has made into the records."""
    names = own.dtype.names or ()
    if "logits" in names:
        mine = (laid.admitted.rows >= rows.start) & (laid.admitted.rows < rows.stop)
        places = (laid.admitted.rows[mine] - rows.start, laid.admitted.slots[mine])
        own["logits"][places] = result.logits.numpy(force=True)
    if "personal" in names:
        own["personal"] = result.after[:, site.personal].numpy(force=True)
    if site.scenario.client.optimizer.keep:
        own["optimizer.steps"] += laid.counts[rows]
        for name, buffer in result.buffers.items():
            own[f"optimizer.{name}"] = buffer.numpy(force=True)
