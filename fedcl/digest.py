"""One hash for named arrays: weights, optimiser state and client records of two runs are compared by it."""

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

PLAIN = "biufcSU"  # numpy's kinds whose bytes are the value: numbers, truth values, fixed-length text


def _plain(value: "NDArray[Any] | torch.Tensor") -> tuple[str, NDArray[Any]]:
    """Return the dtype's name as numpy spells it, and the values as an array."""
    if isinstance(value, np.ndarray):
        return value.dtype.name, value
    tensor = value.detach().cpu()
    name = str(tensor.dtype).removeprefix("torch.")
    if name == "bfloat16":  # numpy has no such dtype: hash its 16 bits
        import torch

        return name, tensor.view(torch.int16).numpy()
    array = tensor.numpy()
    return array.dtype.name, array


def digest(named: "Mapping[str, NDArray[Any] | torch.Tensor]") -> str:
    """Hash named arrays of any shapes: the same for torch and numpy, any memory order and any byte order.

    sha256 over the sorted names, for each: name, dtype, shape, then its values as little-endian bytes in C order.
    Values are compared by their bits: -0.0 differs from 0.0.

    Returns:
        64 hexadecimal digits.

    Raises:
        TypeError: an array holds objects or records, whose bytes are not their values.
    """
    total = hashlib.sha256()
    for name in sorted(named):
        dtype, array = _plain(named[name])
        if array.dtype.kind not in PLAIN:
            raise TypeError(f"cannot hash {name!r}: dtype {array.dtype} is not plain numbers")
        total.update(json.dumps([name, dtype, array.shape]).encode() + b"\n")
        little = array.astype(array.dtype.newbyteorder("<"), order="C", copy=False)
        total.update(little.reshape(-1).view(np.uint8).data)
    return total.hexdigest()
