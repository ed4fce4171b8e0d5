"""Why a node does not carry an order out: what a server sends is checked before anything is computed with it."""

from collections import ChainMap
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from clients.losses.lwf import KNOWN
from clients.memories import Ints
from clients.site import Site
from fedcl.answers import LAYOUTS
from fedcl.errors import nearest
from fedcl.forms import Form, declared, misnamed
from fedcl.orders import Array, ConsolidateOrder, EvaluateOrder, Order, ScoreOrder, StockOrder, TraceOrder, TrainOrder
from fedcl.streams.stream import ALL_TASKS

# Numbers that a server may share beside the weights: this many times parameters and answers, and some for small models.
SHARED, SMALL = 64, 1 << 20
LONGEST = 200  # letters of a federation's name


def problem(site: Site, order: Order, hosted: Ints) -> str | None:
    """Return the first thing that is wrong with an order, in a sentence that names the key; None: nothing is.

    Args:
        hosted: the clients of this node.
    """
    return next(_problems(site, order, hosted), None)


def _problems(site: Site, order: Order, hosted: Ints) -> Iterator[str]:
    rounds = site.stream.timeline.rounds
    if not 1 <= order.round <= rounds:
        yield f"round = {order.round}: must be at least 1 and at most {rounds}"
    if order.cohort < 0 or order.sitting < 0:
        yield f"cohort = {order.cohort}, sitting = {order.sitting}: must be at least 0"
    if len(order.federation) > LONGEST:
        yield f"federation = {order.federation[:20]!r}...: must have at most {LONGEST} letters"
    if not len(order.clients) or len(np.unique(order.clients)) != len(order.clients):
        yield f"clients = {_shown(order.clients)}: must be some, each once"
    foreign = order.clients[~np.isin(order.clients, hosted)]
    if len(foreign):
        yield f"clients = {_shown(foreign)}: not hosted by this node, which has {_shown(hosted)}"
        return  # the other checks look up what clients have
    if not isinstance(order, StockOrder):
        yield from _weights(site, order.weights)
    if isinstance(order, TrainOrder | ConsolidateOrder):
        yield from _tensors(site, "shared", order.shared, _hooks(site, order))
        yield from _statistics(site, order)
    if isinstance(order, EvaluateOrder):
        yield from _tensors(site, "classifier", order.classifier, ["classifier"])
    if isinstance(order, StockOrder) and not site.stream.dataset.elsewhere:
        yield "a StockOrder: where the server has the data set it knows the stock of every client"
    if isinstance(order, TrainOrder | ConsolidateOrder | ScoreOrder | StockOrder):
        yield from _tasks(site, order)


def _shown(numbers: NDArray[np.int64]) -> str:
    return f"{numbers[:10].tolist()}"[:-1] + (", ...]" if len(numbers) > 10 else "]")


def _weights(site: Site, weights: Array) -> Iterator[str]:
    expected = str(site.dtype).removeprefix("torch.")
    if weights.shape != (site.parameters.size,) or str(weights.dtype) != expected:
        what = f"{weights.dtype} of shape {weights.shape}"
        yield f"weights: {what}, but the model has {site.parameters.size} parameters in {expected}"
    elif not np.isfinite(weights).all():
        yield "weights: hold numbers that are not finite"


def _hooks(site: Site, order: TrainOrder | ConsolidateOrder) -> list[str]:
    """Return the hooks of a server method that send something with an order."""
    if isinstance(order, ConsolidateOrder):
        return ["task_shared"]
    riding = set(order.statistics) & set(site.scenario.server.method.task_answers)
    return ["shared", "task_shared"] if riding else ["shared"]


def _tensors(site: Site, key: str, tensors: Mapping[str, Array], hooks: Sequence[str]) -> Iterator[str]:
    """Yield what is wrong with tensors that the server method's hooks are said to send."""
    method = site.scenario.server.method
    own = site.parameters.size + site.layout((*method.answers, *method.task_answers)).size
    size, most = sum(each.size for each in tensors.values()), SHARED * own + SMALL
    if size > most:
        yield f"{key}: {size:,} numbers, more than {most:,}, the most for this model and server method"
    for name, each in tensors.items():
        if each.dtype.kind == "f" and not np.isfinite(each).all():
            yield f"{key}.{name[:80]}: holds numbers that are not finite"
    for wrong in _misfits(site, tensors, hooks):
        yield f"{key}.{wrong}"


def _misfits(site: Site, tensors: Mapping[str, Array], hooks: Sequence[str]) -> Iterator[str]:
    """Yield how names, shapes, dtypes or values are not those that the server method declares, if it does."""
    method, tasks = site.scenario.server.method, len(site.stream.tasks)
    said = [hook for hook in hooks if declared(method, hook)]
    forms = [getattr(method, f"{hook}_forms")(site.parameters, tasks) for hook in said]
    if len(said) == len(hooks) and (wrong := misnamed(tensors, forms)):
        yield wrong
    # What clients look tasks up by has its form whoever sends it.
    known = {KNOWN: Form(shape=(None,), dtype="int64", low=0, high=tasks - 1)}
    model = str(site.dtype).removeprefix("torch.")
    for name, form in ChainMap(*forms, known).items():
        if name in tensors and (wrong := form.problem(tensors[name], model)):
            yield f"{name}: {wrong}"


def _statistics(site: Site, order: TrainOrder | ConsolidateOrder) -> Iterator[str]:
    method = site.scenario.server.method
    asked = (*method.answers, *method.task_answers) if isinstance(order, TrainOrder) else method.task_answers
    asked = (*asked, "delta") if isinstance(order, TraceOrder) else asked
    for name in order.statistics:
        if name not in LAYOUTS:
            yield f"statistics: unknown {name[:80]!r}{nearest(name[:80], LAYOUTS)}"
        elif name not in asked:
            yield f"statistics: {name!r} is not among what this server method asks for: {', '.join(asked) or 'nothing'}"
    if not order.statistics or len(set(order.statistics)) != len(order.statistics):
        yield f"statistics = {order.statistics}: must be some, each once"


def _tasks(site: Site, order: TrainOrder | ConsolidateOrder | ScoreOrder | StockOrder) -> Iterator[str]:
    joint = site.scenario.stream.joint and not isinstance(order, ConsolidateOrder)
    none = joint or isinstance(order, StockOrder)  # whose stream has not begun, or is over, has a stock all the same
    low, high = (ALL_TASKS if none else 0), len(site.stream.tasks) - 1
    if (order.tasks < low).any() or (order.tasks > high).any():
        yield f"tasks = {_shown(order.tasks)}: must be between {low} and {high}"
    if isinstance(order, ConsolidateOrder | StockOrder):
        return
    last = site.stream.timeline.rounds - 1
    if (order.clocks < 0).any() or (order.clocks > last).any():
        yield f"clocks = {_shown(order.clocks)}: must be between 0 and {last}"
    if isinstance(order, TrainOrder) and not np.isin(order.leaving, (0, 1)).all():
        yield f"leaving = {_shown(order.leaving)}: must be 0 or 1"
