"""How hard the training data of clients is for the global model: the sum of their cross-entropies, apart for each.

The items are those of the visit that the client would make now. A model with personal parameters is the client's own
once it has some. A server method's classifier has no part in it: the loss is that of the logits, as in training.
"""

import traceback

import numpy as np

from clients import anchors, records
from clients.curricula.scores import cross_entropies
from clients.evaluation import weights_of
from clients.memories import Records
from clients.site import Site
from clients.work import Store
from fedcl.orders import ClientError, ScoreOrder, ScoreReply


def score(site: Site, order: ScoreOrder, store: Store) -> ScoreReply:
    """Carry out a scoring order, client by client; who fails is named and has no score."""
    old = (
        store.load(order.clients, order.packs, order.rows, records.fresh(site.record)) if site.personal.any() else None
    )
    if old is not None:
        anchors.forget(site, order, old)
    starts, stops = site.stream.spans(order.clients, order.tasks, order.clocks)
    answered, losses, counts, errors = [], [], [], []
    for row, client in enumerate(order.clients.tolist()):
        try:
            items, tasks = site.stream.items(client, int(order.tasks[row]), int(starts[row]), int(stops[row]))
            own: Records | None = None if old is None else old[[row]]
            found = cross_entropies(site, weights_of(site, order, own), items, tasks)
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            errors.append(ClientError(client=client, error=what, traceback=traceback.format_exc()))
        else:
            answered.append(client)
            losses.append(float(found.sum()))
            counts.append(len(items))
    return ScoreReply(
        round=order.round, cohort=order.cohort, clients=np.array(answered, np.int64), table={}, errors=errors,
        losses=np.array(losses, np.float64), counts=np.array(counts, np.int64),
    )  # fmt: skip
