"""Prototype averaging (Federated Reconnaissance, arXiv:2109.00150): one mean feature a class, exact and order-free.

    P_c = sum_k sum_{x in c} f(x) / sum_k n_kc,     predict argmin_c ||f(x) - P_c||^2

over all clients and all tasks. Clients send the sums and counts of a task once, when they leave it, never a running
mean with a new count (as published: 30 samples at 0, then 30 at 1, would give .25 instead of .5). The embedding f is
random or given (`base_rounds: 0`: NMC, SimpleCIL), trained by the federation first, or never frozen (`server.methods.
frozen`). Training it episodically, as in the paper, is not part of this.
"""

from dataclasses import dataclass
from typing import ClassVar

from fedcl.answers import Tensors
from server.methods.frozen import Frozen, seen


@dataclass(frozen=True, kw_only=True)
class Prototypes(Frozen):
    """Nearest class mean of the features of a frozen embedding (Federated Reconnaissance, arXiv:2109.00150)."""

    statistic: ClassVar[str] = "class_sums"

    def made(self, state: Tensors) -> Tensors:
        """Return the class means."""
        return {"prototypes": state["sum"] / state["count"].clamp(min=1)[:, None], "seen": seen(state)}
