"""Dense models: a linear classifier and a multilayer perceptron, on flattened inputs."""

import math
from dataclasses import dataclass
from itertools import pairwise

from torch import nn

from fedcl.models import Classifier, ModelSettings
from fedcl.models.dropout import Dropout
from fedcl.settings import OutOfRange, setting


def dropped(layer: nn.Module, share: float) -> nn.Module:
    """Return the layer with dropout behind it; the names of parameters are the same with and without."""
    return nn.Sequential(layer, Dropout(share)) if share else layer


@dataclass(frozen=True, kw_only=True)
class Linear(ModelSettings):
    """Multinomial logistic regression: the features are the inputs."""

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """Return d * classes + classes parameters."""
        return Classifier(nn.Flatten(), math.prod(shape), classes)


@dataclass(frozen=True, kw_only=True)
class MLP(ModelSettings):
    """Multilayer perceptron with ReLU."""

    width: int = setting(64, "units of a hidden layer", low=1, high=1_000_000)
    depth: int = setting(1, "hidden layers", low=1, high=1_000)
    dropout: list[float] = setting([], "share of units dropped in training: one for all hidden layers, or one for each")
    input_dropout: float = setting(0.0, "share of inputs dropped in training", low=0, below=1)

    def __post_init__(self) -> None:
        """Check the shares of single layers too.

        Raises:
            OutOfRange: a share is not in [0, 1), or there are neither one nor as many as hidden layers.
        """
        super().__post_init__()
        if len(self.dropout) not in (0, 1, self.depth) or not all(0 <= share < 1 for share in self.dropout):
            reason = f"must be one share, or {self.depth} (model.depth), each at least 0 and below 1"
            raise OutOfRange("dropout", self.dropout, reason)

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """Return flatten, then `depth` times linear and ReLU, then the head."""
        sizes = [math.prod(shape)] + [self.width] * self.depth
        layers: list[nn.Module] = [dropped(nn.Flatten(), self.input_dropout)]
        shares = self.dropout if len(self.dropout) == self.depth else (self.dropout or [0.0]) * self.depth
        for (inputs, outputs), share in zip(pairwise(sizes), shares, strict=True):
            layers += [nn.Linear(inputs, outputs), dropped(nn.ReLU(), share)]
        return Classifier(nn.Sequential(*layers), self.width, classes)
