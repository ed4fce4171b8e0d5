"""Federated averaging (McMahan et al., AISTATS 2017, arXiv:1602.05629):  w <- w + sum_k n_k (w_k - w) / sum_k n_k.

With `server.weights: uniform` every n_k is 1.
"""

from dataclasses import dataclass

from fedcl.answers import Answer, Tensors
from server.methods import ServerMethod


def average(total: Answer) -> Tensors:
    """Return the weighted mean update, by parameter name."""
    return {name: delta / total["weight"] for name, delta in total.under("delta").items()}


@dataclass(frozen=True, kw_only=True)
class FedAvg(ServerMethod):
    """The weighted mean of the clients' updates."""

    def end_round(self, state: Tensors, weights: Tensors, total: Answer) -> tuple[Tensors, Tensors]:
        """Return the mean update as the step."""
        return state, average(total)
