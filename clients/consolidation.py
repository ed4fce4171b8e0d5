"""Statistics of clients' data of a task under the server's weights: nothing is trained and no record changes.

A method may have every client measured at this moment: with what the server knew before it asked and the client's own
statistics on top, on the client's own test items (Federated Reconnaissance's evaluation of a client after its mission).
"""

import traceback

import numpy as np
import torch

from clients.answers import task_answer
from clients.answers.case import Case
from clients.holdings import leaving, named
from clients.site import Site
from clients.work import Store
from fedcl.answers import Answer
from fedcl.classifiers import predictor
from fedcl.orders import ClientError, ConsolidateOrder, ConsolidateReply
from fedcl.source import measure


def consolidate(site: Site, order: ConsolidateOrder, store: Store) -> ConsolidateReply:
    """Carry out a consolidation order, client by client; who fails is named and left out of the sum."""
    total = np.zeros(site.layout(order.statistics).size)
    weights = torch.from_numpy(order.weights.copy()).to(site.device)
    answered, columns, errors = [], [], []
    figures, waited = dict[int, list[str]](), list[int]()
    for row, client in enumerate(order.clients.tolist()):
        try:
            case, withheld = leaving(site, site.case(order, row, weights), int(order.tasks[row]), order.statistics)
            answer = (
                task_answer(order.statistics, case) if len(case.items) else torch.zeros(len(total), dtype=torch.float64)
            )
            own, few = _after_own_update(site, case, order, row, answer.to(site.device))
            columns.append({"n": len(case.items), **own})
            total += answer.double().cpu().numpy()
            answered.append(client)
            figures[client] = [*withheld, *few]
            waited += [client] * bool((case.tasks != int(order.tasks[row])).any())
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            errors.append(ClientError(client=client, error=what, traceback=traceback.format_exc()))
    return ConsolidateReply(
        round=order.round, cohort=order.cohort, clients=np.array(answered, np.int64),
        table={name: np.array([each[name] for each in columns], np.int64) for name in (columns or [{}])[0]},
        errors=errors, total=total, withheld=named(site, figures, waited),
    )  # fmt: skip


def _after_own_update(
    site: Site, case: Case, order: ConsolidateOrder, row: int, answer: torch.Tensor
) -> tuple[dict[str, int], list[str]]:
    """Return right predictions and items on the client's own test items, if the method has it measured.

    `base`: its first task, `mission`: the one it has just left, `earlier`: those between in its own stream. Of a part
    with too few items nothing is told but its name, which is returned too.
    """
    classifier = case.method.on_client(case.shared, Answer(site.layout(order.statistics), answer))
    if not classifier:
        return {}, []
    predict, found, withheld = predictor(case.module, classifier), {}, []
    own = site.stream.timeline.order[case.client].tolist()
    task = int(order.tasks[row])
    parts = {"base": own[:1], "earlier": own[1 : own.index(task)], "mission": [task]}
    for name, tasks in parts.items():
        cells = [site.stream.test.cell(case.client, each) for each in tasks] or [np.zeros(0, np.int64)]
        shown = np.repeat(np.array(tasks, np.int64), [len(cell) for cell in cells][: len(tasks)])
        right, _ = measure(predict, site.test, np.concatenate(cells), shown)
        few = 0 < len(right) < site.least
        found[f"correct/{name}"], found[f"items/{name}"] = (0, 0) if few else (int(right.sum()), len(right))
        withheld += [f"accuracy on {name}"] * few
    return found, withheld
