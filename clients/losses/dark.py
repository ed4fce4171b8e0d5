"""Dark Experience Replay (Buzzega et al., NeurIPS 2020, arXiv:2004.07211): alpha * mean over logits of (h(x') - z')^2.

z' are the logits of the step at which the sample entered the memory. The gap is taken on all logits, masked or not.
"""

from dataclasses import dataclass

from torch import Tensor

from clients.losses import Anchors, Batch, Draw, Forward


@dataclass(frozen=True, kw_only=True)
class Dark:
    """Keep the logits of remembered samples where they were."""

    alpha: float = 0.1
    draws = (Draw(name="dark", logits=True),)

    def __call__(self, model: Forward, batch: Batch, anchors: Anchors) -> Tensor:
        """Return alpha times the mean squared gap to the remembered logits; 0 while the memory is empty."""
        old = batch.draws["dark"]
        gap = (model(old.x) - old.logits).square().mean(1)
        return self.alpha * (gap * old.weight).sum()
