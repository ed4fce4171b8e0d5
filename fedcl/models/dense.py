"""Dense models: a linear classifier and a multilayer perceptron, on flattened inputs."""

import math
from dataclasses import dataclass
from itertools import pairwise

from torch import nn

from fedcl.models import Classifier, ModelSettings
from fedcl.settings import setting


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

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """Return flatten, then `depth` times linear and ReLU, then the head."""
        sizes = [math.prod(shape)] + [self.width] * self.depth
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs, outputs in pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        return Classifier(nn.Sequential(*layers), self.width, classes)
