"""The embedding under a classifier: which parameters it has, its fingerprint, and random features on top of it.

Sums of features add up only under one and the same embedding. So every such sum carries the embedding's fingerprint,
in words that add up too: n samples bring n times each word, and a sum that mixes embeddings has no right words.
"""

from functools import lru_cache

import torch
from torch import Tensor

from fedcl import keys
from fedcl.answers import Tensors
from fedcl.digest import digest
from fedcl.keys import Purpose

HEAD = "head."
WORDS, BITS = 2, 24  # n * word is exact in float64 up to n = 2^29 samples


def body(weights: Tensors) -> Tensors:
    """Return the parameters that make the features: all but the head's."""
    return {name: each for name, each in weights.items() if not name.startswith(HEAD)}


def fingerprint(weights: Tensors) -> Tensor:
    """Return the leading 48 bits of the body's sha256, as (2,) whole numbers in float64."""
    bits = int(digest(body(weights))[: WORDS * BITS // 4], 16)
    return torch.tensor([(bits >> BITS * word) % 2**BITS for word in range(WORDS)], dtype=torch.float64)


@lru_cache(maxsize=2)
def projection(seed: int, features: int, width: int) -> Tensor:
    """Return the random matrix R (features, width) in float64, entries N(0, 1), the same wherever it is drawn."""
    draws = keys.generator(seed, Purpose.FEATURES, features, width)
    return torch.from_numpy(draws.standard_normal((features, width)))


def random_features(features: Tensor, seed: int, width: int) -> Tensor:
    """Return relu(f R) (b, width) of features f (b, d) in float64; width 0: f itself."""
    features = features.double()
    if not width:
        return features
    return (features @ projection(seed, features.shape[1], width).to(features.device)).relu()
