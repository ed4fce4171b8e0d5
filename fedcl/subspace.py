"""Bases of layer inputs: what a step must leave alone so that old outputs stay (GPM, arXiv:2103.09762).

A basis U (d, k) has orthonormal columns; d counts a layer's inputs, or channels * kernel height * kernel width. FOT
grows bases on the server from sums over clients, GPM on each client from its own data: one arithmetic for both.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from numpy.typing import NDArray
from torch import Tensor

from fedcl.answers import Layout
from fedcl.errors import ConfigError, nearest
from fedcl.settings import OutOfRange, Settings, setting

HEAD = "head."
LARGE = 1024  # rows and columns of a sketch from which on a few leading directions are looked for first
FEW, MORE = 200, 10  # how many, and how many more make the search exact enough


@dataclass(frozen=True, kw_only=True)
class Protection(Settings):
    """Which layers' inputs are protected, and which share of their energy."""

    epsilon: float = setting(0.95, "share of a layer's input energy that is protected", above=0, high=1)
    epsilons: dict[str, float] = setting({}, "the same by layer: name prefix -> share, {head: 0.99}")
    epsilon_step: float = setting(0.0, "added to these shares at every growth of the bases", low=0, below=1)
    heads: Literal["shared", "per-task"] = setting("shared", "a head shared by all tasks is protected too")

    def __post_init__(self) -> None:
        """Check the shares of single layers too.

        Raises:
            OutOfRange: a share is not in (0, 1].
        """
        super().__post_init__()
        for prefix, share in self.epsilons.items():
            if not 0 < share <= 1:
                raise OutOfRange("epsilons", {prefix: share}, "must be above 0 and at most 1")

    def protected(self, parameters: Layout) -> list[str]:
        """Return the weights whose layers' inputs are measured and whose steps are projected."""
        weights = [name for name, shape in parameters.shapes if name.endswith(".weight") and len(shape) >= 2]
        return [name for name in weights if self.heads == "shared" or not name.startswith(HEAD)]

    def inputs(self, parameters: Layout) -> dict[str, int]:
        """Return the inputs d of every protected layer, by the name of its weight."""
        shapes = dict(parameters.shapes)
        return {name: math.prod(shapes[name][1:]) for name in self.protected(parameters)}

    def share(self, name: str, growths: int) -> float:
        """Return the share of a layer's energy that is protected after so many growths (the longest prefix counts)."""
        own = max((prefix for prefix in self.epsilons if name.startswith(prefix)), key=len, default=None)
        return min(1.0, (self.epsilon if own is None else self.epsilons[own]) + self.epsilon_step * growths)

    def check_layers(self, parameters: Layout, key: str) -> None:
        """Check that every prefix in `epsilons` is one of a protected layer.

        Args:
            key: where these settings stand, `server.method`.

        Raises:
            ConfigError: it is not.
        """
        names = self.protected(parameters)
        for prefix in self.epsilons:
            if not any(name.startswith(prefix) for name in names):
                raise ConfigError(f"{key}.epsilons: no protected weight begins with {prefix!r}{nearest(prefix, names)}")


def project_out(delta: Tensor, basis: Tensor) -> Tensor:
    """Remove from delta (out, *in) the part of its rows in span(basis (d, k)), d = prod(in)."""
    flat = delta.flatten(1)
    return (flat - (flat @ basis) @ basis.T).view_as(delta)


def in_use(padded: NDArray[Any]) -> Tensor:
    """Return the first columns (k, d, r) of padded bases (k, d, d), copied: those of the largest, up to a power of two.

    So few numbers r are ever met that steps of their shapes can be recorded (`clients.programs`).
    """
    rank = int(padded.any(axis=(0, 1)).sum())  # columns behind a basis are zeros
    wide = min(1 << max(3, (rank - 1).bit_length()), padded.shape[-1]) if rank else 0
    return torch.from_numpy(padded[..., :wide].copy())


def leading(values: Tensor, vectors: Tensor, wanted: float, *, at_least: int) -> Tensor:
    """Return the fewest leading directions (d, k) that hold more than `wanted` of the energy.

    Args:
        values: (r,) energies of the directions, descending, none negative; one that holds nothing is never returned.
        vectors: (d, r).
        wanted: share of the energy; at or below 0 nothing is needed.
        at_least: smallest k, where there is any energy.
    """
    some = int((values > 0).sum())
    if not some:
        return vectors[:, :0]
    held = torch.cumsum(values, 0) / values.sum()
    needed = int((held <= wanted).sum()) + 1 if wanted > 0 else 0
    return vectors[:, : min(max(needed, at_least), some)]


def grow(basis: Tensor, new: Tensor) -> Tensor:
    """Return an orthonormal basis (d, k + n) of [basis, new]; columns of `new` inside span(basis) add nothing."""
    new = new - basis @ (basis.T @ new)
    new = new[:, new.norm(dim=0) > 1e-3][:, : basis.shape[0] - basis.shape[1]]
    for _ in range(2):  # twice is enough (Parlett)
        new = torch.linalg.qr(new - basis @ (basis.T @ new))[0] if new.shape[1] else new
    return torch.cat([basis, new], dim=1)


def grown(basis: Tensor, values: Tensor, vectors: Tensor, *, left: float, epsilon: float, at_least: int) -> Tensor:
    """Return the basis (d, k) with the fewest more directions that make it hold `epsilon` of all energy.

    Args:
        values, vectors: energies and directions outside the basis, as `leading` takes them.
        left: share of all energy that is outside the basis.
        epsilon: share of all energy to hold.
        at_least: fewest new directions.
    """
    return grow(basis, leading(values, vectors, wanted_share(left, epsilon), at_least=at_least))


def wanted_share(left: float, epsilon: float) -> float:
    """Return the share of the energy outside a basis that must still be held, so that `epsilon` of all of it is.

    Args:
        left: share of all energy that is outside the basis.
        epsilon: share of all energy to hold.
    """
    return (left - (1 - epsilon)) / left if left > 0 else 0.0


def directions_of_gram(gram: Tensor, basis: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    """Return energies (r,), descending, and directions (d, r) of inputs A outside the basis (d, k), in float64.

    Args:
        gram: (d, d) A A^T.
        floor: energies up to here are what rounding alone can make, and count as 0.
    """
    matrix = gram.double()
    rest = matrix - basis @ (basis.T @ matrix)
    values, vectors = torch.linalg.eigh(rest - (rest @ basis) @ basis.T)
    values, vectors = values.flip(0), vectors.flip(1)
    return torch.where(values > floor, values, 0.0), vectors


def directions_of_sketch(sketch: Tensor, floor: float, wanted: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return the same from a sketch (d, m) of what is outside the basis.

    A large one costs minutes. If its `FEW` leading directions hold more than is wanted, they come alone, and with them
    the energy of all others as a last value, whose direction is 0.

    Args:
        wanted: share of the energy that `leading` will be asked for.
    """
    if wanted < 1 and min(sketch.shape) > LARGE and (found := _few_directions(sketch, floor, wanted)):
        return found
    vectors, singular, _ = torch.linalg.svd(sketch.double(), full_matrices=False)
    values = singular.square()
    return torch.where(values > floor, values, 0.0), vectors


def _few_directions(sketch: Tensor, floor: float, wanted: float) -> tuple[Tensor, Tensor] | None:
    """Look for the leading directions alone; None: more than `FEW` are needed.

    Randomised, with one power iteration (Halko, Martinsson, Tropp, SIAM Review 2011, arXiv:0909.4061, algorithms 4.4
    and 5.1). The energies are those of these directions themselves, so a share that they hold is held.
    """
    flat, drawn = sketch.float(), torch.Generator().manual_seed(0)
    noise = torch.randn(flat.shape[1], FEW + MORE, generator=drawn).to(flat.device)
    span = torch.linalg.qr(flat @ noise)[0]
    span = torch.linalg.qr(flat @ (flat.T @ span))[0]
    turn, singular, _ = torch.linalg.svd((span.T @ flat).double(), full_matrices=False)
    values, vectors = singular.square()[:FEW], (span.double() @ turn)[:, :FEW]
    whole = torch.linalg.vector_norm(flat, dtype=torch.float64).square()
    values = torch.where(values > floor, values, 0.0)
    if not values.sum() > wanted * whole:
        return None
    rest = (whole - values.sum()).clamp(min=0.0)[None]
    return torch.cat([values, rest]), torch.cat([vectors, vectors.new_zeros(len(vectors), 1)], dim=1)
