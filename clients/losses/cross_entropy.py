"""Cross-entropy of the stream's batch, and of a replayed one (ER: Chaudhry et al., 2019, arXiv:1902.10486)."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import log_softmax

from clients.losses import Anchors, Batch, Draw, Forward, Items


def weighted(model: Forward, items: Items) -> Tensor:
    """Return sum_i weight_i * CE(model(x_i) + mask_i, y_i): the mean over the real rows."""
    picked = log_softmax(model(items.x) + items.mask, dim=1).gather(1, items.y[:, None]).squeeze(1)
    return -(picked * items.weight).sum()  # a third of the operations of `cross_entropy`, to the same bits


@dataclass(frozen=True, kw_only=True)
class CrossEntropy:
    """CE(x, y) of the stream's batch."""

    draws = ()

    def __call__(self, model: Forward, batch: Batch, anchors: Anchors) -> Tensor:
        """Return the mean cross-entropy of the current batch."""
        return weighted(model, batch.now)


@dataclass(frozen=True, kw_only=True)
class Replay:
    """beta * CE(x', y') of a batch drawn from the memory, with the label as it was seen."""

    beta: float = 1.0
    draws = (Draw(name="replay"),)

    def __call__(self, model: Forward, batch: Batch, anchors: Anchors) -> Tensor:
        """Return the weighted cross-entropy of the replayed batch; 0 while the memory is empty."""
        return self.beta * weighted(model, batch.draws["replay"])
