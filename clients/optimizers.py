"""Local optimisers over stacked parameters: each step returns what to add, so that transforms can still bend it.

Tensors have the client in front (k, *shape). Buffers are changed in place; only the k clients still training are
passed, so momentum and bias correction of a client that has finished never move.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from fedcl.answers import Tensors
from fedcl.settings import Settings, setting


@dataclass(frozen=True, kw_only=True)
class Optimizer(Settings):
    """What every local optimiser has."""

    lr: float = setting(0.01, "learning rate", low=0)
    weight_decay: float = setting(0.0, "L2 penalty added to the gradient", low=0)
    keep: bool = setting(False, "keep the buffers from visit to visit (client state); false: fresh each visit")

    @property
    def buffers(self) -> tuple[str, ...]:
        """Names of the buffers that it needs, each as large as the parameters."""
        return ()

    @property
    def steepest(self) -> float:
        """Curvature of the loss above which its steps must overshoot more and more; inf: its steps are bounded."""
        return math.inf

    def step(self, gradients: Tensors, parameters: Tensors, buffers: Mapping[str, Tensors], count: Tensor) -> Tensors:
        """Return what to add to the parameters.

        Args:
            gradients, parameters: by name, (k, *shape).
            buffers: buffer name -> tensors like the parameters, changed in place.
            count: (k,) number of this step for each client, from 1.
        """
        raise NotImplementedError

    def decayed(self, gradients: Tensors, parameters: Tensors) -> Tensors:
        """Return gradients + weight_decay * parameters."""
        if self.weight_decay == 0:
            return gradients
        return {name: g + self.weight_decay * parameters[name] for name, g in gradients.items()}


@dataclass(frozen=True, kw_only=True)
class SGD(Optimizer):
    """Stochastic gradient descent: m <- momentum * m + g; w <- w - lr * m (torch.optim.SGD without dampening)."""

    momentum: float = setting(0.0, "momentum", low=0, below=1)

    @property
    def buffers(self) -> tuple[str, ...]:
        """The momentum, if any."""
        return ("momentum",) if self.momentum else ()

    @property
    def steepest(self) -> float:
        """2 (1 + momentum) / lr (Polyak, 1964)."""
        return 2 * (1 + self.momentum) / self.lr if self.lr else math.inf

    def step(self, gradients: Tensors, parameters: Tensors, buffers: Mapping[str, Tensors], count: Tensor) -> Tensors:
        """Return -lr * m."""
        gradients = self.decayed(gradients, parameters)
        if self.momentum:
            gradients = {n: buffers["momentum"][n].mul_(self.momentum).add_(g) for n, g in gradients.items()}
        return {name: g * -self.lr for name, g in gradients.items()}


def _each(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *(1,) * (like.dim() - 1)).to(like.dtype)


@dataclass(frozen=True, kw_only=True)
class Adam(Optimizer):
    """Adam with bias correction (Kingma, Ba, ICLR 2015, arXiv:1412.6980), as torch.optim.Adam."""

    beta1: float = setting(0.9, "decay of the first moment", low=0, below=1)
    beta2: float = setting(0.999, "decay of the second moment", low=0, below=1)
    eps: float = setting(1e-8, "added to the root of the second moment", above=0)

    @property
    def buffers(self) -> tuple[str, ...]:
        """First and second moment."""
        return ("first", "second")

    def step(self, gradients: Tensors, parameters: Tensors, buffers: Mapping[str, Tensors], count: Tensor) -> Tensors:
        """Return -lr * m_hat / (sqrt(v_hat) + eps)."""
        step = {}
        for name, g in self.decayed(gradients, parameters).items():
            first = buffers["first"][name].mul_(self.beta1).add_(g, alpha=1 - self.beta1)
            second = buffers["second"][name].mul_(self.beta2).addcmul_(g, g, value=1 - self.beta2)
            root = (second / _each(1 - self.beta2**count, g)).sqrt_().add_(self.eps)
            step[name] = first / _each(1 - self.beta1**count, g) / root * -self.lr
        return step
