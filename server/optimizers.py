"""Server optimisers: what is done with the mean update D before it is added.

The papers average uniformly: set `server.weights: uniform` to follow them to the letter.
"""

from dataclasses import dataclass

import torch

from fedcl.answers import Tensors
from fedcl.settings import Settings, setting

State = dict[str, Tensors]


def zeros(weights: Tensors) -> Tensors:
    """Return zeros like the weights."""
    return {name: torch.zeros_like(each) for name, each in weights.items()}


@dataclass(frozen=True, kw_only=True)
class SGD(Settings):
    """w <- w + lr * D; lr 1 is plain averaging."""

    lr: float = setting(1.0, "server learning rate", above=0)

    def begin(self, weights: Tensors) -> State:
        """Return no state."""
        return {}

    def apply(self, state: State, step: Tensors) -> tuple[State, Tensors]:
        """Return lr * D."""
        return state, {name: self.lr * each for name, each in step.items()}


@dataclass(frozen=True, kw_only=True)
class FedAvgM(Settings):
    """Server momentum (Hsu et al., 2019, arXiv:1909.06335): v <- momentum * v + D; w <- w + lr * v.

    Some texts write v <- momentum * v + (1 - momentum) * D: that is this with lr * (1 - momentum).
    """

    lr: float = setting(1.0, "server learning rate", above=0)
    momentum: float = setting(0.9, "server momentum", low=0, below=1)

    def begin(self, weights: Tensors) -> State:
        """Return zero momentum."""
        return {"momentum": zeros(weights)}

    def apply(self, state: State, step: Tensors) -> tuple[State, Tensors]:
        """Return lr * v."""
        v = {name: self.momentum * state["momentum"][name] + each for name, each in step.items()}
        return {"momentum": v}, {name: self.lr * each for name, each in v.items()}


@dataclass(frozen=True, kw_only=True)
class FedAdam(Settings):
    """FedAdam (Reddi et al., ICLR 2021, arXiv:2003.00295): w <- w + lr * m / (sqrt(v) + tau).

    m, v are moving averages of D, D^2 (algorithm 2). No bias correction, v starts at tau^2, as published
    (torch.optim.Adam and Flower's FedAdam differ).
    """

    lr: float = setting(0.01, "server learning rate", above=0)
    beta1: float = setting(0.9, "decay of the first moment", low=0, below=1)
    beta2: float = setting(0.99, "decay of the second moment", low=0, below=1)
    tau: float = setting(1e-3, "degree of adaptivity", above=0, high=1e6)

    def begin(self, weights: Tensors) -> State:
        """Return m = 0 and v = tau^2."""
        return {"first": zeros(weights), "second": {n: torch.full_like(w, self.tau**2) for n, w in weights.items()}}

    def apply(self, state: State, step: Tensors) -> tuple[State, Tensors]:
        """Return lr * m / (sqrt(v) + tau)."""
        m = {n: self.beta1 * state["first"][n] + (1 - self.beta1) * d for n, d in step.items()}
        v = {n: self.beta2 * state["second"][n] + (1 - self.beta2) * d.square() for n, d in step.items()}
        return {"first": m, "second": v}, {n: self.lr * m[n] / (v[n].sqrt() + self.tau) for n in step}
