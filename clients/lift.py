"""One client or a stack of them: the same pure losses, lifted.

`losses = lift.losses(total, ...)`, `grads = autograd.grad(losses.sum(), parameters)`. For K > 1 the lift is `vmap` over
stacked leaf parameters; for K = 1, also the last of a stack, it is the identity on a module whose parameters are views
of the flat buffer (no vmap, no functional_call: three to five times slower there).
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import _pytree

from clients.losses import Anchors, Batch, Forward
from fedcl.answers import Layout, Tensors
from fedcl.models import trained

# total(model, batch, anchors) -> (loss, (terms by name, logits of the current batch))
Total = Callable[[Forward, Batch, Anchors], tuple[Tensor, tuple[Tensors, Tensor]]]
Outcome = tuple[Tensor, tuple[Tensors, Tensor]]


class Lift(Protocol):
    """How losses and transforms of one client run over the first k clients of a flat buffer (K, P)."""

    @property
    def pure(self) -> "Lift":
        """The same without anything that changes behind a function's back: its steps can be recorded."""

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

    def __init__(self, module: nn.Module, layout: Layout, buffer: Tensor) -> None:
        self._module, self._layout, self._embedding = module, layout, Embedding(module)
        self._parameters: Tensors = dict(trained(module))
        for name, view in layout.views(buffer[0]).items():
            self._parameters[name].data = view

    @property
    def pure(self) -> Lift:
        """One client whose parameters are not those of the module."""
        return Apart(self._module, self._layout)

    def parameters(self, weights: Tensor) -> Tensors:
        """Return the module's own parameters."""
        return self._parameters

    def losses(self, total: Total, parameters: Tensors, batch: Batch, anchors: Anchors) -> Outcome:
        """Call the loss on the one client, without lifting it."""
        single, own = _pytree.tree_map(lambda each: each[0], (batch, anchors.own))
        model = self._model(parameters, single.noise)
        loss, (terms, logits) = total(model, single, Anchors(anchors.shared, own))
        return loss[None], ({name: term[None] for name, term in terms.items()}, logits[None])

    def _model(self, parameters: Tensors, noise: Tensor) -> Forward:
        return Forward(self._module, parameters, noise, embed=self._embedding)

    def stacked(self, tensors: Tensors) -> Tensors:
        """Put the client axis in front."""
        return {name: each[None] for name, each in tensors.items()}

    def transform(self, call: Callable[..., Tensors], gradients: Tensors, references: dict[str, Tensors]) -> Tensors:
        """Take the client axis away, transform, put it back."""
        single: Any = _pytree.tree_map(lambda each: each[0], (gradients, references))
        return self.stacked(call(*single))


class Apart(Alone):
    """K = 1 with parameters handed to the module at each call: slower, and a function of its arguments alone."""

    def __init__(self, module: nn.Module, layout: Layout) -> None:
        self._module, self._layout, self._embedding = module, layout, Embedding(module)

    def parameters(self, weights: Tensor) -> Tensors:
        """Return leaves (*shape) that share memory with the weights (1, P)."""
        return {name: view.detach().requires_grad_() for name, view in self._layout.views(weights[0]).items()}

    def _model(self, parameters: Tensors, noise: Tensor) -> Forward:
        return called_with(self._module, self._embedding, parameters, noise)


def called_with(module: nn.Module, embedding: nn.Module, parameters: Tensors, noise: Tensor) -> Forward:
    """Return a module as it is with other parameters."""

    def call(x: Tensor) -> Tensor:
        logits: Tensor = functional_call(module, parameters, (x,))
        return logits

    def embed(x: Tensor) -> Tensor:
        inner = {f"inner.{name}": each for name, each in parameters.items()}
        features: Tensor = functional_call(embedding, inner, (x,))
        return features

    return Forward(call, parameters, noise, embed)


class Stacked:
    """K > 1: stacked leaf parameters under vmap."""

    def __init__(self, module: nn.Module, layout: Layout) -> None:
        self._module, self._layout = module, layout
        self._embedding = Embedding(module)

    @property
    def pure(self) -> Lift:
        """Itself."""
        return self

    def parameters(self, weights: Tensor) -> Tensors:
        """Return leaves (k, *shape) that share memory with the weights."""
        return {name: view.detach().requires_grad_() for name, view in self._layout.views(weights).items()}

    def losses(self, total: Total, parameters: Tensors, batch: Batch, anchors: Anchors) -> Outcome:
        """Call the loss under vmap."""

        def single(own_parameters: Tensors, own_batch: Batch, own: dict[str, Tensors]) -> Outcome:
            model = called_with(self._module, self._embedding, own_parameters, own_batch.noise)
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
