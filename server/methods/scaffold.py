"""SCAFFOLD (Karimireddy et al., ICML 2020, arXiv:1910.06378), with option II on the clients.

With S the clients that answered, and N all that there are:

    w <- w + mean over S of (w_k - w)        c <- c + (1 / N) sum over S of (change of c_k)

So c is the mean of all clients' c_k after every round, whoever took part. It goes to the clients with the weights. The
paper's global learning rate is that of `server.optimizer: sgd`. c is summed in float64, as it is never computed anew.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from fedcl.answers import Answer, Layout, Tensors, prefixed, under
from fedcl.forms import Forms, like
from server.methods.fedavg import FedAvg, average


@dataclass(frozen=True, kw_only=True)
class Scaffold(FedAvg):
    """FedAvg with control variates, which take the drift out of the clients' steps."""

    answers: ClassVar[tuple[str, ...]] = ("delta", "control")
    offers: ClassVar[tuple[str, ...]] = ("scaffold.control",)

    def begin(self, weights: Tensors) -> Tensors:
        """Return c = 0, in the precision of the weights and in that of its sum."""
        zeros = {name: torch.zeros_like(each) for name, each in weights.items()}
        summed = {name: each.double() for name, each in zeros.items()}
        return {**prefixed("control", zeros), **prefixed("sum", summed)}

    def enrolled(self, state: Tensors, clients: int) -> Tensors:
        """Note N."""
        return {**state, "clients": torch.tensor(clients)}

    def shared(self, state: Tensors) -> Tensors:
        """Return c."""
        return prefixed("scaffold.control", under("control", state))

    def shared_forms(self, parameters: Layout, tasks: int) -> Forms:
        """Return that c is as the parameters are."""
        return like("scaffold.control", parameters)

    def end_round(self, state: Tensors, weights: Tensors, total: Answer) -> tuple[Tensors, Tensors]:
        """Return the mean update as the step, and c after what the clients' have grown by."""
        summed = {name: each + total[f"control/{name}"] for name, each in under("sum", state).items()}
        control = {name: (each / state["clients"]).to(weights[name].dtype) for name, each in summed.items()}
        return {**state, **prefixed("control", control), **prefixed("sum", summed)}, average(total)
