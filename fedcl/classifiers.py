"""How a model predicts: by its own logits, or by what a server method has learnt about its features.

A classifier is named tensors, so that it travels and is saved like everything else; which names it has says what it is.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fedcl.answers import Tensors
from fedcl.embedding import random_features

Predict = Callable[[Tensor], Tensor]


def nearest(features: Tensor, prototypes: Tensor, seen: Tensor) -> Tensor:
    """Return -||f - P_c||^2 (b, classes) of features (b, f), -inf for classes without a prototype.

    In float64, and about the mean of the prototypes: what all of them have in common can be much larger than what sets
    them apart, and would take its digits.

    Args:
        prototypes: (classes, f) class means.
        seen: (classes,) bool.
    """
    means, there = prototypes.to(features.device, torch.float64), seen.to(features.device)
    center = (means * there[:, None]).sum(0) / there.sum().clamp(min=1)
    distances = torch.cdist(features.double() - center, means - center).square()
    return (-distances).masked_fill(~there, -torch.inf)


def ridge(features: Tensor, classifier: Tensors) -> Tensor:
    """Return phi(f) W (b, classes) in float64, -inf for classes without a column.

    Args:
        classifier: `ridge` W (d, classes), `seen` (classes,) bool, `random` (2,) int64: seed and width of phi.
    """
    seed, width = classifier["random"].tolist()
    scores = random_features(features, seed, width) @ classifier["ridge"].to(features.device)
    return scores.masked_fill(~classifier["seen"].to(scores.device), -torch.inf)


def predictor(module: nn.Module, classifier: Tensors) -> Predict:
    """Return inputs (b, *shape) -> logits (b, classes).

    Raises:
        KeyError: the classifier is of no known kind.
    """
    if not classifier:
        return module
    features: Callable[[Tensor], Tensor] = module.features  # type: ignore[assignment]
    if "prototypes" in classifier:
        return lambda x: nearest(features(x), classifier["prototypes"], classifier["seen"])
    if "ridge" in classifier:
        return lambda x: ridge(features(x), classifier)
    raise KeyError(f"a classifier of {sorted(classifier)}: known are prototypes, ridge")
