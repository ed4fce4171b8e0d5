"""How long an update may be beside the others of its round: one finite answer must not end a federation.

The limit comes from all tables of the round, so it is the same whatever the order in which they came in, and never
from an earlier round: honest updates are many hundred times longer at the start of a task than at the end of the one
before. What cannot be caught in this way (an update as long as the others, in a wrong direction) is not looked for.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fedcl.answers import Answer, Layout, Tensors
from fedcl.config import ServerConfig
from fedcl.orders import Array, Ints

Floats = NDArray[np.float64]

FEW = 3  # fewer norms have no median that one of them does not decide
NAMED = 3  # clients with the longest updates of a round that its event names
TINY = 1e-9  # norm of an update, below which float32 squares are lost


def effective(server: ServerConfig, norms: Array) -> Floats:
    """Return the norms (k,) with which updates enter the sum: those that clients say, scaled down where they clip."""
    norms = norms.astype(np.float64)
    if server.max_update_norm is None or server.norm_bound != "clip":
        return norms
    return np.minimum(norms, server.max_update_norm)


@dataclass(frozen=True)
class Limit:
    """The largest norm that an update of a round may have, and where it comes from."""

    norm: float
    words: str

    @staticmethod
    def of(server: ServerConfig, norms: Floats, weights: Tensors) -> "Limit":
        """Return the limit for a round in which clients say these norms (k,), under the weights that they were sent."""
        ratio = server.max_norm_ratio
        if ratio is None:
            return Limit(np.inf, "")
        median = float(np.median(norms)) if len(norms) >= FEW else 0.0
        if 0 < median < np.inf:
            what = f"times {median:.3g}, the median of the round's {len(norms)} updates"
            return Limit(ratio * median, f"more than server.max_norm_ratio = {ratio:g} {what}")
        length = float(torch.stack([torch.linalg.vector_norm(w, dtype=torch.float64) for w in weights.values()]).norm())
        what = f"times (1 + {length:.3g}), the norm of the weights, where there is no median of {FEW} updates"
        return Limit(ratio * (1 + length), f"more than server.max_norm_ratio = {ratio:g} {what}")

    def exceeded(self, norms: Floats) -> Array:
        """Return which norms (k,) are too large; a norm that float32 cannot say always is."""
        return (norms > self.norm) | ~np.isfinite(norms)


def length(answer: Answer) -> float:
    """Return the norm of the sum of weighted updates in an answer."""
    where = [slices[0] for name, slices in answer.layout.slices.items() if name.startswith("delta/")]
    return float(torch.linalg.vector_norm(answer.flat[where[0].start : where[-1].stop], dtype=torch.float64))


def has_updates(layout: Layout) -> bool:
    """Return whether answers of a layout hold updates of the weights."""
    return "weight" in dict(layout.shapes)


def longest(clients: Ints, norms: Floats) -> dict[str, object]:
    """Return what a round's event tells of the norms of the updates that count."""
    first = np.argsort(-norms, kind="stable")[:NAMED]
    pairs = [[int(clients[at]), float(f"{norms[at]:.6g}")] for at in first]
    return {"median": float(f"{np.median(norms):.6g}"), "longest": pairs} if len(norms) else {}
