"""ER-ACE (Caccia et al., ICLR 2022, arXiv:2104.05025): the current batch competes among its own classes only.

L = CE(h(x) restricted to the classes in the batch, y) + CE(h(x'), y')
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from clients.losses import Anchors, Batch, Forward, Term
from clients.losses.cross_entropy import Replay
from clients.methods import ClientMethod


@dataclass(frozen=True, kw_only=True)
class Asymmetric:
    """Cross-entropy over the classes of the current batch."""

    draws = ()

    def __call__(self, model: Forward, batch: Batch, anchors: Anchors) -> Tensor:
        """Return the loss of the current batch, other classes masked out."""
        logits = model(batch.now.x) + batch.now.mask
        rows = one_hot(batch.now.y, logits.shape[1]) * (batch.now.weight > 0)[:, None]
        absent = rows.sum(0) == 0
        masked = torch.where(absent, torch.full_like(logits, -1e9), logits)
        return (cross_entropy(masked, batch.now.y, reduction="none") * batch.now.weight).sum()


@dataclass(frozen=True, kw_only=True)
class ERACE(ClientMethod):
    """Experience replay with asymmetric cross-entropy."""

    def terms(self) -> dict[str, Term]:
        """Return the asymmetric term and replay."""
        return {"ace": Asymmetric(), "replay": Replay()}
