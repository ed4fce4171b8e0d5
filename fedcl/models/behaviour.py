"""What a model must do, tried out on two samples: how it is made does not matter, and no list of layers can be whole.

The rows of a batch must not know of each other: batches are padded, and what a padded row shows must reach no result.
One call must give what the call before gave. Whether two clients can be trained as a stack (`vmap`) is only looked up:
one by one is always possible.
"""

import re
import traceback

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedcl import keys
from fedcl.keys import Purpose

LONGEST = 160  # letters that are told of another package's error


def shortcoming(module: nn.Module, shape: tuple[int, ...], classes: int, seed: int) -> str | None:
    """Return why a model cannot be trained here, as the rest of a sentence; None: it can.

    Args:
        shape: of one input.
        classes: number of logits.
        seed: the run's seed, for a model that draws: the global generator is left alone.
    """
    x, other = _samples(module, shape)
    with torch.no_grad(), keys.seeded(seed, Purpose.MODEL):
        try:
            logits, beside_another, again = module(x), module(other), module(x)
        except Exception as error:
            return f"fails on inputs of shape {shape}: {_said(error)}"
    if not isinstance(logits, Tensor) or logits.shape != (2, classes):
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        return f"gives {found} for two inputs of shape {shape} instead of logits (2, {classes})"
    if not _same(logits, again):
        return "gives other outputs in every call: draws of its own cannot be repeated; use nn.Dropout for dropout"
    if not _same(logits[0], beside_another[0]):
        return (
            "gives a sample other outputs beside other samples of its batch, and batches are padded; "
            "use nn.GroupNorm or nn.LayerNorm for batch norm"
        )
    return None


def _samples(module: nn.Module, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return two batches of two inputs of zeros and ones, which are numbers as well as indices: the first is common."""
    kind = next(module.parameters()).dtype
    drawn = torch.randint(0, 2, (2, *shape), generator=torch.Generator().manual_seed(0)).to(kind)
    return drawn, torch.stack([drawn[0], 1 - drawn[1]])


def _same(one: Tensor, other: Tensor) -> bool:
    return bool(((one == other) | (one.isnan() & other.isnan())).all())


def stack_problem(module: nn.Module, shape: tuple[int, ...]) -> str | None:
    """Return what fails where two clients of a model are trained as a stack, "aten::lstm.input (...)"; None: nothing.

    Args:
        shape: of one input.
    """
    x = torch.stack(_samples(module, shape)).to(next(module.parameters()).device)
    own = {name: each.detach() for name, each in module.named_parameters() if each.requires_grad}
    stacked = {name: each.expand(2, *each.shape).clone().requires_grad_() for name, each in own.items()}

    def loss(parameters: dict[str, Tensor], inputs: Tensor) -> Tensor:
        logits: Tensor = functional_call(module, parameters, (inputs,))
        return logits.square().sum()

    try:
        losses = torch.vmap(loss, randomness="error")(stacked, x)
        torch.autograd.grad(losses.sum(), list(stacked.values()), allow_unused=True)
    except Exception as error:
        return operator_of(error)
    return None


def operator_of(error: BaseException) -> str:
    """Return the operator in which an error was raised, and in brackets what it says."""
    frames = traceback.extract_tb(error.__traceback__)
    named = re.search(r"aten::[\w.]+", str(error))
    return f"{named.group() if named else frames[-1].name if frames else 'an operator'} ({_said(error)})"


def _said(error: BaseException) -> str:
    """Return the first sentence of an error."""
    text = " ".join(str(error).split()).split(". ")[0].rstrip(".") or type(error).__name__
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
