"""SCAFFOLD on the client (Karimireddy et al., ICML 2020, arXiv:1910.06378), option II.

With the server's control variate c and the client's own c_k, at every local step, and after K steps from w to w_k:

    w_k <- w_k - lr (g - c_k + c)        c_k <- c_k - c + (w - w_k) / (K lr)

What c_k grows by is answered beside the update. Both say the mean of plain gradients, so lr is plain SGD's and nothing
else may bend a step. Personal parameters are not controlled: theirs stay 0. A record grows by c_k, which may be made of
an answer that the server did not take: then the record counts for nothing either, and the client goes on from the one
before.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from clients.answers import CONTROL
from clients.losses import Keeper, Kept, Term, Visited
from fedcl.answers import Tensors

OWN, SERVERS = CONTROL, "scaffold.control"


def corrected(gradient: Tensors, own: Tensors, servers: Tensors) -> Tensors:
    """Return g - c_k + c, by parameter."""
    return {name: g - own[name] + servers[name] for name, g in gradient.items()}


def growth(moved: Tensor, steps: Tensor, lr: float, servers: Tensor) -> Tensor:
    """Return what c_k grows by, -c + (w - w_k) / (K lr), (k, P).

    Args:
        moved: (k, P) w_k - w.
        steps: (k,) K, those of each client itself.
        servers: (P,) c.
    """
    return -moved / (lr * steps[:, None]) - servers


@dataclass(frozen=True, kw_only=True)
class Scaffold(Keeper):
    """Take the client's own drift out of its gradient and put everybody's in its place."""

    on: str = "gradient"
    level: str = "client"
    references: Mapping[str, Term] = field(default_factory=dict)
    keeps = (Kept(name=OWN),)
    of = "visits"
    reads = (SERVERS,)
    answers = ("control",)

    def __call__(self, gradients: Tensors, references: Mapping[str, Tensors]) -> Tensors:
        """Return the corrected gradient."""
        return corrected(gradients, references[OWN], references[SERVERS])

    def visited(self, visit: Visited) -> Tensors:
        """Return what c_k grows by."""
        return {OWN: growth(visit.moved, visit.steps, visit.lr, visit.sent[SERVERS])}
