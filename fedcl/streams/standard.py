"""Inputs on one scale: mean 0, deviation 1 by channel or column, from training data only; and whether that is due."""

from dataclasses import replace

import numpy as np

from fedcl.streams.dataset import Array, Dataset, Floats, Standard, channels

CHUNK = 4096  # inputs that are held in float64 at once
LARGE = 10.0  # root mean square of what a model sees, from which on usual learning rates may diverge
LOOKED_AT = 10_000  # inputs that are looked at for it


def _by_channel(x: Array) -> Floats:
    """Return inputs (n, *shape) as float64 numbers (m, c) by channel or column."""
    return x.reshape(-1, channels(x.shape[1:])).astype(np.float64)


def standard_of(x: Array) -> Standard:
    """Return mean and deviation of training inputs (n, *shape), n > 0; a deviation of 0 becomes 1."""
    parts, numbers = range(0, len(x), CHUNK), x.size // channels(x.shape[1:])
    mean = sum(_by_channel(x[begin : begin + CHUNK]).sum(0) for begin in parts) / numbers
    square = sum(np.square(_by_channel(x[begin : begin + CHUNK]) - mean).sum(0) for begin in parts) / numbers
    deviation = np.sqrt(square)
    return Standard(mean=mean, deviation=np.where(deviation > 0, deviation, 1.0), n=len(x))


def with_warning(dataset: Dataset, remedy: str) -> Dataset:
    """Return a data set with a note where the model would see numbers that are far from 1.

    Args:
        remedy: what to do about it, the end of a sentence.
    """
    x = dataset.x[:: -(-len(dataset.x) // LOOKED_AT) or 1]
    if not len(x) or x.ndim < 2 or dataset.standard or x.dtype == np.uint8:
        return dataset
    size = np.sqrt(np.square(_by_channel(x) * dataset.scale + dataset.shift).mean(0))
    largest = int(size.argmax())
    if not size[largest] > LARGE:
        return dataset
    where = f"column {dataset.columns[largest]!r} has" if dataset.columns else "they have"
    note = f"the inputs are not scaled ({where} root mean square {size[largest]:.3g}): training may diverge; {remedy}"
    return replace(dataset, notes=(*dataset.notes, note))
