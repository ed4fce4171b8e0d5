"""Statistics of clients' data of a task under the server's weights: nothing is trained and no record changes."""

import traceback

import numpy as np
import torch

from clients.answers import task_answer
from clients.site import Site
from clients.work import Store
from fedcl.orders import ClientError, ConsolidateOrder, ConsolidateReply


def consolidate(site: Site, order: ConsolidateOrder, store: Store) -> ConsolidateReply:
    """Carry out a consolidation order, client by client; who fails is named and left out of the sum."""
    total = np.zeros(site.layout(order.statistics).size)
    weights = torch.from_numpy(order.weights.copy()).to(site.device)
    answered, counts, errors = [], [], []
    for row, client in enumerate(order.clients.tolist()):
        try:
            case = site.case(order, row, weights)
            total += task_answer(order.statistics, case).double().cpu().numpy()
            answered.append(client)
            counts.append(len(case.items))
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            errors.append(ClientError(client=client, error=what, traceback=traceback.format_exc()))
    return ConsolidateReply(
        round=order.round, cohort=order.cohort, clients=np.array(answered, np.int64),
        table={"n": np.array(counts, np.int64)}, errors=errors, total=total,
    )  # fmt: skip
