"""What a process that trains sets up before it computes: threads and allocator. One place, with the reasons.

One thread: results must not depend on the machine's cores, and more workers use more cores than more threads do.

Allocator: glibc gives blocks above 128 kB back to the system when they are freed, and takes new pages, zeroed, for the
next ones. The tensors of a step are such blocks: without these settings a process spends up to half of its time in the
kernel, on pages that it had a millisecond ago. Same numbers, other addresses.
"""

import ctypes
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
LARGEST = 32 * 2**20  # bytes: the largest threshold that glibc takes
TOP = 64 * 2**20  # bytes taken from the system at once, and free bytes at the top before any are given back
# As variables of the environment, for processes that are yet to start; the names are glibc's.
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(LARGEST),
    "MALLOC_TRIM_THRESHOLD_": str(4 * TOP),
    "MALLOC_TOP_PAD_": str(TOP),
}
PASSED_ON = ("FEDCL_RECORD", "FEDCL_PROFILE")  # variables that a worker is to see as its driver does
_MALLOPT = {"MALLOC_TRIM_THRESHOLD_": -1, "MALLOC_TOP_PAD_": -2, "MALLOC_MMAP_THRESHOLD_": -3}


def environment() -> dict[str, str]:
    """Return the variables of a worker's environment."""
    return {**ONE_THREAD, **ALLOCATOR, **{name: os.environ[name] for name in PASSED_ON if name in os.environ}}


@contextmanager
def inherited(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables of this process for those that it starts in the block, and put back what they were."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@cache
def settle() -> None:
    """Set this process up; does nothing the second time, and nothing to the allocator where it is not glibc's."""
    import torch

    torch.set_num_threads(1)
    if sys.platform != "linux" or any(name in os.environ for name in ALLOCATOR):
        return
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for name, number in _MALLOPT.items():
            mallopt(ctypes.c_int(number), ctypes.c_int(int(ALLOCATOR[name])))
