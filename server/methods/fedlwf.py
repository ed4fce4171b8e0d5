"""FedLwF: Learning without Forgetting (Li, Hoiem, TPAMI 2018, arXiv:1606.09282) with the global model as the teacher.

When a task begins, the global model of that moment goes to the clients as the teacher for `client.method: fedlwf`, with
the ids of the tasks that had begun before, whose classes it may know. The first task has none. It is sent with the
weights of every round: the nodes need not remember it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from fedcl.answers import Layout, Tensors, prefixed, under
from fedcl.forms import Form, Forms, like
from server.methods.fedavg import FedAvg


@dataclass(frozen=True, kw_only=True)
class FedLwF(FedAvg):
    """FedAvg that sends the global model from the start of the newest task as a teacher."""

    offers: ClassVar[tuple[str, ...]] = ("lwf.teacher", "lwf.known")
    shares: ClassVar[Literal["", "body", "model"]] = "model"

    def begin(self, weights: Tensors) -> Tensors:
        """Return no teacher, and no task."""
        nothing = torch.zeros(0, dtype=torch.int64)
        return {**prefixed("teacher", weights), "known": nothing, "begun": nothing}

    def begin_task(self, state: Tensors, weights: Tensors, began: Sequence[int]) -> tuple[Tensors, Tensors]:
        """Make the global model the teacher, if any task has begun before these."""
        begun = torch.cat([state["begun"], torch.tensor(sorted(began))])
        if not len(state["begun"]):
            return {**state, "begun": begun}, weights
        teacher = {name: each.clone() for name, each in weights.items()}
        return {**prefixed("teacher", teacher), "known": state["begun"], "begun": begun}, weights

    def shared(self, state: Tensors) -> Tensors:
        """Return the teacher and the tasks that it may know, once there are some."""
        if not len(state["known"]):
            return {}
        return {**prefixed("lwf.teacher", under("teacher", state)), "lwf.known": state["known"]}

    def shared_forms(self, parameters: Layout, tasks: int) -> Forms:
        """Return that the teacher is as the model is, and that it knows tasks of the stream."""
        known = Form(shape=(None,), dtype="int64", low=0, high=tasks - 1, distinct=True)
        return {**like("lwf.teacher", parameters), "lwf.known": known}
