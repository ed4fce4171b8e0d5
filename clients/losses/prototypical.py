"""Prototypical loss (Snell, Swersky, Zemel, NeurIPS 2017, arXiv:1703.05175), eq. 1 and 2.

Of each class in a batch, the first `shots` items are its support S_c and the others are queries:

    P_c = mean_{x in S_c} f(x),     loss = mean over queries of -log softmax_c(-||f(x) - P_c||^2)[y]

Items come shuffled, so who is support is random. A class with `shots` items or fewer has no query; a batch without
queries has loss 0. The head plays no part.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from clients.losses import Anchors, Batch, Draw, Forward


def split(labels: Tensor, real: Tensor, shots: int) -> tuple[Tensor, Tensor]:
    """Return which items (b,) of a batch are support and which are queries.

    Args:
        labels: (b,) classes.
        real: (b,) bool, False on padding.
        shots: support items of a class.
    """
    same = (labels[:, None] == labels) & real
    before = (same & torch.ones_like(same).tril(-1)).sum(1)  # items of the class that come earlier in the batch
    return real & (before < shots), real & (before >= shots)


@dataclass(frozen=True, kw_only=True)
class Prototypical:
    """Cross-entropy of the queries under the class means of the support."""

    shots: int
    draws: tuple[Draw, ...] = ()

    def __call__(self, model: Forward, batch: Batch, anchors: Anchors) -> Tensor:
        """Return the mean loss of the queries, ()."""
        features, labels = model.features(batch.now.x), batch.now.y
        # Distances do not change with what all features have in common, but their rounding does: a common offset of
        # 1,000 would leave nothing of them. The mean of the real items is a constant here, as it drops out.
        features = features - (batch.now.weight @ features).detach()
        support, query = split(labels, batch.now.weight > 0, self.shots)
        mates = (support & (labels[:, None] == labels)).to(features.dtype)  # (b, b) row i: the support of i's class
        prototypes = (mates / mates.sum(1, keepdim=True).clamp(min=1)) @ features
        # One column a class: the first item of each stands for it.
        first = support & (mates.tril(-1).sum(1) == 0)
        squares = prototypes.square().sum(1) - 2 * features @ prototypes.T + features.square().sum(1, keepdim=True)
        logits = (-squares).masked_fill(~first, -torch.inf)
        # A query's own column is the first support item of its class.
        own = (first & (labels[:, None] == labels)).to(features.dtype)
        right = (own * squares).sum(1)
        losses = right + torch.logsumexp(torch.where(query[:, None], logits, logits.new_zeros(())), 1)
        count = query.sum().clamp(min=1)
        return torch.where(query, losses, losses.new_zeros(())).sum() / count
