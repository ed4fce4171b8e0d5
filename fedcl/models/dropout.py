"""Dropout (Srivastava et al., JMLR 15, 2014) whose mask is a hash: the same alone, in a stack, on any machine.

A forward pass inside `dropping(key)` drops, any other one (evaluation, statistics, teachers) does not. A mask depends
on the key, the layer and the position alone: splitmix64 as in `fedcl.keys`, in torch, so that the key may be one of a
stack under vmap and the mask is made where the model computes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn

from fedcl import keys
from fedcl.errors import ConfigError

NOTHING = torch.zeros(0, dtype=torch.int64)  # no key: nothing is dropped
REFERENCE = 1_000_000  # position of a key's sequence that no forward pass of a loss reaches
LEVELS = 2**16  # a share is rounded to so many; each 64-bit hash gives four draws

_key: ContextVar[Tensor] = ContextVar("key", default=NOTHING)
_GOLDEN, _A, _B = (int(each.astype("int64")) for each in (keys.GOLDEN, keys.MIX_A, keys.MIX_B))


def stir(key: Tensor, number: Tensor | int) -> Tensor:
    """Return the draw at position `number` of a key's sequence, int64: what `keys.at` returns, bit for bit."""
    z = key + _GOLDEN * (torch.as_tensor(number, device=key.device) + 1)
    z = (z ^ ((z >> 30) & (2**34 - 1))) * _A
    z = (z ^ ((z >> 27) & (2**37 - 1))) * _B
    return z ^ ((z >> 31) & (2**33 - 1))


@contextmanager
def dropping(key: Tensor) -> Iterator[None]:
    """Let dropout layers drop within the block, by masks of this key () int64; an empty one: none."""
    before = _key.set(key)
    try:
        yield
    finally:
        _key.reset(before)


class Dropout(nn.Module):
    """Set a share of the numbers to 0 and scale the others up, so that their mean stays."""

    def __init__(self, share: float) -> None:
        """Drop this share, in [0, 1), rounded to 1 / 65536."""
        super().__init__()
        self.dropped = round(share * LEVELS)
        self.number = 0  # of the layer among the model's dropout layers: `fedcl.models.make` counts them

    def forward(self, x: Tensor) -> Tensor:
        """Return x (b, *shape) with its mask, or as it is outside `dropping`."""
        key = _key.get()
        if not key.numel() or not self.dropped:
            return x
        n = x.numel()
        draws = stir(stir(key, self.number), torch.arange((n + 3) // 4, device=x.device)).view(torch.int16)[:n]
        kept = draws >= self.dropped - LEVELS // 2
        return x * (kept.to(x.dtype) * (LEVELS / (LEVELS - self.dropped))).view(x.shape)

    def extra_repr(self) -> str:
        """Return the share, for `print(model)`."""
        return f"{self.dropped / LEVELS:g}"


def ours(module: nn.Module, name: str) -> None:
    """Put `Dropout` in the place of every `nn.Dropout` of a model, share for share.

    Args:
        name: of the model, as an error says it.

    Raises:
        ConfigError: it has dropout of another kind, or drops everything.
    """
    for inside in list(module.modules()):
        for place, each in inside.named_children():
            if type(each) is nn.Dropout and each.p < 1:
                setattr(inside, place, Dropout(each.p))
            elif isinstance(each, nn.modules.dropout._DropoutNd):
                raise ConfigError(
                    f"{name}: has {each}, whose draws cannot be repeated; use nn.Dropout with a share below 1, "
                    "which is replaced by fedcl.models.dropout.Dropout"
                )
