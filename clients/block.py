"""A stack of clients trained together: visits laid out, parameters and buffers gathered, records written back."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clients import admission, visits
from clients.admission import Admitted
from clients.answers import Trained, answer_rows
from clients.memories import Ints, Records
from clients.site import Site
from clients.trainer import Block, Capture, Result, Stepwise
from fedcl.orders import TrainOrder


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


def train_block(
    site: Site, order: TrainOrder, old: Records, laid: Laid, rows: slice
) -> tuple[Tensor, dict[str, NDArray[Any]]]:
    """Train the clients in `rows` together; write their records; return their answers (k, A) and the table."""
    own = old[rows]
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
