"""One client or a stack of them: the same pure losses, lifted.

`losses = lift.losses(total, ...)`, `grads = autograd.grad(losses.sum(), parameters)`. For K > 1 the lift is `vmap` over
stacked leaf parameters; for K = 1 it is the identity on a module whose parameters are views of the flat buffer (no
vmap, no functional_call: three to five times slower there).
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import _pytree

from clients.losses import Anchors, Batch, Forward
from fedcl.answers import Layout, Tensors

# total(model, batch, anchors) -> (loss, (terms by name, logits of the current batch))
Total = Callable[[Forward, Batch, Anchors], tuple[Tensor, tuple[Tensors, Tensor]]]
Outcome = tuple[Tensor, tuple[Tensors, Tensor]]


class Lift(Protocol):
    """How losses and transforms of one client run over the first k clients of a flat buffer (K, P)."""

    recordable: bool  # whether its steps may be recorded (`clients.programs`)

    def parameters(self, weights: Tensor) -> Tensors:
        """Return the parameters whose numbers are weights (k, P), as leaves that gradients are taken of."""

    def losses(self, total: Total, parameters: Tensors, batch: Batch, anchors: Anchors) -> Outcome:
        """Return losses (k,), terms by name (k,) and logits (k, b, classes)."""

    def stacked(self, tensors: Tensors) -> Tensors:
        """Return gradients as (k, *shape)."""

    def transform(self, call: Callable[..., Tensors], gradients: Tensors, references: dict[str, Tensors]) -> Tensors:
        """Apply a transform of one client's gradients to all k."""


class Embedding(nn.Module):
    """The model without its head."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """Return features (b, f) of inputs (b, *shape)."""
        features: Tensor = self.inner.features(x)  # type: ignore[operator]
        return features


class Alone:
    """K = 1: the module itself, its parameters being views of the buffer."""

    recordable: bool = False  # its parameters are those of the module, which autograd knows by name

    def __init__(self, module: nn.Module, layout: Layout, buffer: Tensor) -> None:
        self._module, self._embedding = module, Embedding(module)
        self._parameters: Tensors = dict(module.named_parameters())
        for name, view in layout.views(buffer[0]).items():
            self._parameters[name].data = view

    def parameters(self, weights: Tensor) -> Tensors:
        """Return the module's own parameters."""
        return self._parameters

    def losses(self, total: Total, parameters: Tensors, batch: Batch, anchors: Anchors) -> Outcome:
        """Call the loss on the one client, without lifting it."""
        single, own = _pytree.tree_map(lambda each: each[0], (batch, anchors.own))
        loss, (terms, logits) = total(
            Forward(self._module, parameters, single.noise, embed=self._embedding),
            single,
            Anchors(anchors.shared, own),
        )
        return loss[None], ({name: term[None] for name, term in terms.items()}, logits[None])

    def stacked(self, tensors: Tensors) -> Tensors:
        """Put the client axis in front."""
        return {name: each[None] for name, each in tensors.items()}

    def transform(self, call: Callable[..., Tensors], gradients: Tensors, references: dict[str, Tensors]) -> Tensors:
        """Take the client axis away, transform, put it back."""
        single: Any = _pytree.tree_map(lambda each: each[0], (gradients, references))
        return self.stacked(call(*single))


class Stacked:
    """K > 1: stacked leaf parameters under vmap."""

    recordable: bool = True

    def __init__(self, module: nn.Module, layout: Layout) -> None:
        self._module, self._layout = module, layout
        self._embedding = Embedding(module)

    def parameters(self, weights: Tensor) -> Tensors:
        """Return leaves (k, *shape) that share memory with the weights."""
        return {name: view.detach().requires_grad_() for name, view in self._layout.views(weights).items()}

    def losses(self, total: Total, parameters: Tensors, batch: Batch, anchors: Anchors) -> Outcome:
        """Call the loss under vmap."""

        def single(own_parameters: Tensors, own_batch: Batch, own: dict[str, Tensors]) -> Outcome:

            def call(x: Tensor) -> Tensor:
                logits: Tensor = functional_call(self._module, own_parameters, (x,))
                return logits

            def embed(x: Tensor) -> Tensor:
                inner = {f"inner.{name}": each for name, each in own_parameters.items()}
                features: Tensor = functional_call(self._embedding, inner, (x,))
                return features

            model = Forward(call, own_parameters, own_batch.noise, embed)
            return total(model, own_batch, Anchors(anchors.shared, own))

        lifted: Outcome = torch.vmap(single, randomness="error")(parameters, batch, anchors.own)
        return lifted

    def stacked(self, tensors: Tensors) -> Tensors:
        """Return them as they are."""
        return tensors

    def transform(self, call: Callable[..., Tensors], gradients: Tensors, references: dict[str, Tensors]) -> Tensors:
        """Apply the transform under vmap."""
        lifted: Tensors = torch.vmap(call)(gradients, references)
        return lifted


def lift(module: nn.Module, layout: Layout, buffer: Tensor) -> Lift:
    """Return the lift for a buffer (K, P): the identity for K = 1, vmap above."""
    return Alone(module, layout, buffer) if len(buffer) == 1 else Stacked(module, layout)
