"""A stack of clients trained together: visits laid out, parameters and buffers gathered, records written back."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clients import admission, anchors, visits
from clients.admission import Admitted
from clients.answers import STATISTICS, Trained, answer_rows, task_answer
from clients.curricula import Visit, scores
from clients.holdings import leaving
from clients.memories import Ints, Memory, Records, rehearsal
from clients.site import Site
from clients.trainer import Block, Capture, Result, Stepwise
from clients.visits import Local, Walk
from fedcl import keys
from fedcl.keys import Purpose
from fedcl.orders import TrainOrder
from fedcl.timing import doing


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
    seed, labels = site.scenario.seed, site.stream.dataset.y
    anchors.forget(site, order, old)
    anchors.leave(site, order, old)
    local = visits.local_data(site.stream, order)
    walked = _walk(site, order, old, local)
    steps = visits.batches(local, walked, width=site.width)
    draws = _draws(site, order, old, steps.items.shape[1])  # from the memory as it was before this visit
    admitted = admission.none_admitted(len(old))
    if site.memory:
        admitted = admission.admit(site.memory, old, labels, local, walked, order, seed)
    admission.move_cursor(old, local, walked, order.tasks)
    now = site.stepwise(steps, anchors.taught(site, order, old, local))
    return Laid(samples=local.lengths, counts=steps.count, now=now, draws=draws, admitted=admitted)


def _walk(site: Site, order: TrainOrder, old: Records, local: Local) -> Walk:
    """Settle which item each client sees when, as the curriculum wants it."""
    client, seed = site.scenario.client, site.scenario.seed
    before, length = site.stream.timeline.slots(order.clients, order.clocks)
    visit = Visit(
        inside=local.inside,
        labels=site.stream.dataset.y[local.items],
        losses=scores.losses(site, order, old, local) if site.curriculum.needs else None,
        steps=(local.lengths // client.batch + 1) * client.epochs,
        number=before,
        visits=length,
        keys=keys.key(seed, Purpose.CURRICULUM, order.clients, order.round),
    )

    def shuffle(number: int) -> keys.Bits:
        return keys.key(seed, Purpose.SHUFFLE, order.clients, order.round, number)

    return visits.walk(local, shuffle, site.curriculum.pools(visit), epochs=client.epochs, batch=client.batch)


def _draws(site: Site, order: TrainOrder, old: Records, steps: int) -> dict[str, Stepwise]:
    """Look up what every replay draw of every step shows."""
    client = site.scenario.client
    if not site.memory:
        return {}
    # By default as many as the stream's batch, where that asks for more than there is: as the memory or that batch has.
    size = client.replay_batch or min(client.batch, max(site.memory.size, site.width))
    filled = old["count"].copy()
    chances = _chances(site, site.memory, order, old)
    slots = visits.replays(site.scenario.seed, order, client.method.draws, (steps, size), filled, chances)
    some = filled > 0 if chances is None else chances.any(axis=1)
    remembered = {name: torch.from_numpy(old[name].astype(np.int64)) for name in ("items", "tasks", "labels")}
    rows = torch.arange(len(old))[:, None, None]
    weight = torch.from_numpy(some / size).to(site.dtype)[:, None, None].expand(-1, steps, size)
    found = {}
    for draw in client.method.draws:
        drawn = torch.from_numpy(slots[draw.name])
        columns = {name: column[rows, drawn].to(site.device) for name, column in remembered.items()}
        logits = torch.from_numpy(old["logits"].copy()).to(site.device) if draw.logits else None
        found[draw.name] = Stepwise(
            **columns, weight=weight.to(site.device), slots=drawn.to(site.device), logits=logits
        )
    return found


def _chances(site: Site, memory: Memory, order: TrainOrder, old: Records) -> NDArray[np.float64] | None:
    """Return the chance (k, m) of each memory slot in a replay draw; None: all slots in use alike."""
    filled = np.arange(memory.size) < old["count"][:, None]
    if memory.draw == "uniform":
        return None
    if memory.draw == "class-balanced":
        alike = np.ones((len(old), site.stream.dataset.classes))
        return rehearsal.shared_out(alike, old["labels"], filled)
    timeline = site.stream.timeline
    phases, begin = timeline.order[order.clients], timeline.begin[order.clients]
    position = (begin[:, 1:] <= order.clocks[:, None]).sum(axis=1)
    own = keys.key(site.scenario.seed, Purpose.REHEARSAL, order.clients, position)
    weights = rehearsal.phase_weights(memory.draw, memory.alpha, position, phases.shape[1], own)
    return rehearsal.shared_out(weights, rehearsal.first_positions(phases, old["tasks"]), filled)


def train_block(
    site: Site, order: TrainOrder, old: Records, laid: Laid, rows: slice
) -> tuple[Tensor, dict[str, NDArray[Any]]]:
    """Train the clients in `rows` together; write their records; return their answers (k, A) and the table."""
    own = old[rows]
    weights = torch.from_numpy(order.weights.copy()).to(site.device)
    kept, sent = anchors.own(site, own), anchors.shared(site, order)
    capped = anchors.bounded(site, kept, sent)
    block = Block(
        counts=laid.counts[rows].tolist(),
        start=_start(site, weights, own),
        shared=weights,
        now=laid.now.rows(rows),
        draws={name: draw.rows(rows) for name, draw in laid.draws.items()},
        capture=_capture(site, laid, rows),
        noise=site.noise(order.clients[rows], order.round, int(laid.counts[rows].max())),
        buffers=_buffers(site, own),
        steps_before=torch.from_numpy(_kept(own, "optimizer.steps", np.float64)).to(site.device),
        own=kept,
        anchors=sent,
    )
    with doing("training"):
        result = site.trainer.train(block)
    with doing("statistics"):
        answers, table = _answers(site, order, own, laid, rows, block, result)
    if capped is not None:
        table["capped"] = np.broadcast_to(capped.numpy(), len(own)).copy()
    return answers, table


def _answers(
    site: Site, order: TrainOrder, own: Records, laid: Laid, rows: slice, block: Block, result: Result
) -> tuple[Tensor, dict[str, NDArray[Any]]]:
    """Write the records and return the answers of trained clients."""
    weights = block.shared
    steps = torch.from_numpy(laid.counts[rows]).to(site.dtype).to(site.device)
    samples = torch.from_numpy(laid.samples[rows]).to(site.dtype).to(site.device)
    update = result.after - weights
    if site.trainer.personal:
        update *= site.shared
    trained = Trained(
        update=update,
        weights=samples if site.scenario.server.weights == "samples" else torch.ones_like(samples),
        max_norm=site.scenario.server.max_update_norm if site.scenario.server.norm_bound == "clip" else None,
        added=anchors.visited(site, order, own, result.after - block.start, steps) if site.visitors else {},
    )
    _write(site, own, laid, rows, result)
    anchors.walked(site, own, block.start, result)
    table = {
        "n": laid.samples[rows], "steps": laid.counts[rows], "evicted": laid.admitted.evicted[rows],
        "norm": update.norm(dim=1).numpy(force=True).astype(np.float64),
        **{f"loss/{name}": loss.numpy(force=True).astype(np.float64) for name, loss in result.losses.items()},
    }  # fmt: skip
    training = [name for name in order.statistics if name in STATISTICS]
    answers = [answer_rows(training, trained), *_task_answers(site, order, rows, result.after)]
    return torch.cat(answers, dim=1) if len(answers) > 1 else answers[0], table


def _task_answers(site: Site, order: TrainOrder, rows: slice, after: Tensor) -> list[Tensor]:
    """Return the statistics of the task's data (k, A) under each client's own model; zeros for who is not leaving."""
    names = [name for name in order.statistics if name not in STATISTICS]
    if not names:
        return []
    answers = torch.zeros(len(after), site.layout(names).size, dtype=site.dtype, device=site.device)
    for row in np.flatnonzero(order.leaving[rows]).tolist():
        case = site.case(order, rows.start + row, after[row])
        case, _ = leaving(site, case, int(order.tasks[rows.start + row]), names)
        if len(case.items):
            answers[row] = task_answer(names, case)
    return [answers]


def _kept(own: Records, name: str, kind: type) -> NDArray[Any]:
    """Return a field of the records, zeros where they do not have it."""
    return own[name].astype(kind) if name in (own.dtype.names or ()) else np.zeros(len(own), kind)


def _start(site: Site, weights: Tensor, own: Records) -> Tensor:
    """Return (k, P): the global model, with a client's personal parameters once it has some."""
    start = weights.expand(len(own), -1)  # training copies it
    if "personal" in (own.dtype.names or ()):
        start = start.clone()
        visited = torch.from_numpy(own["visits"] > 0).to(site.device)[:, None]
        personal = torch.from_numpy(own["personal"].copy()).to(site.device)
        start[:, site.personal] = torch.where(visited, personal, start[:, site.personal])
    return start


def _buffers(site: Site, own: Records) -> dict[str, Tensor]:
    """Return the optimiser's buffers (k, P): kept ones, else zeros."""
    empty = torch.zeros(1, dtype=site.dtype, device=site.device).expand(len(own), site.parameters.size)
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
    if "local" in names:
        own["local"] = result.after.numpy(force=True)
    if "personal" in names:
        own["personal"] = result.after[:, site.personal].numpy(force=True)
    if site.scenario.client.optimizer.keep:
        own["optimizer.steps"] += laid.counts[rows]
        for name, buffer in result.buffers.items():
            own[f"optimizer.{name}"] = buffer.numpy(force=True)
