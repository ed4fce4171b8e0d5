"""A dense net with normalised features, so that no class wins by the length of its features alone."""

import math
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.functional import normalize

from fedcl.models import Classifier, ModelSettings
from fedcl.settings import setting


class OnSphere(nn.Module):
    """Features of length 10: 10 * f / ||f||."""

    def forward(self, features: Tensor) -> Tensor:
        """Return features (b, f) of length 10."""
        return 10 * normalize(features, dim=1)


@dataclass(frozen=True, kw_only=True)
class Cosine(ModelSettings):
    """One hidden layer, features on a sphere."""

    width: int = setting(64, "hidden units", low=1)

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """Return the net for inputs of `shape`."""
        body = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), self.width), nn.ReLU(), OnSphere())
        return Classifier(body, self.width, classes)
