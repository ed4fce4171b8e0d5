"""What a process that trains sets up before it computes: threads, allocator, torch's globals; and the reasons.

A worker is a process of ours (`settle`). A run in the process of its caller borrows it (`settled`): what the caller has
set in torch and NumPy neither changes the run's numbers nor is changed by it.

One thread: results must not depend on the machine's cores, and more workers use more cores than more threads do.

Allocator: glibc gives blocks above 128 kB back to the system when they are freed, and takes new pages, zeroed, for the
next ones. The tensors of a step are such blocks: without these settings a process spends up to half of its time in the
kernel, on pages that it had a millisecond ago. Same numbers, other addresses.
"""

import ctypes
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import cache, partial
from typing import Any

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


def settle() -> None:
    """Set this process up for good: one thread, and the allocator."""
    import torch

    torch.set_num_threads(1)
    _keep_memory()


@cache
def _keep_memory() -> None:
    """Set the allocator up once; does nothing where it is not glibc's, or somebody has set it up already."""
    if sys.platform != "linux" or any(name in os.environ for name in ALLOCATOR):
        return
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for name, number in _MALLOPT.items():
            mallopt(ctypes.c_int(number), ctypes.c_int(int(ALLOCATOR[name])))


@contextmanager
def settled() -> Iterator[None]:
    """Compute as a process of ours would, whatever the caller has set in torch and NumPy, and put that back.

    Threads, default dtype and device, gradients and inference mode, autocast, deterministic algorithms, anomaly mode,
    precision of products, flushing of the smallest numbers; NumPy's answer to overflow and the like.
    """
    import numpy as np
    import torch

    _keep_memory()
    strict, warn = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    with ExitStack() as stack:
        put_back = partial(_put_back, stack)
        put_back(torch.set_num_threads, torch.get_num_threads(), 1)
        put_back(torch.set_default_dtype, torch.get_default_dtype(), torch.float32)
        put_back(torch.set_flush_denormal, sys.float_info.min / 2 == 0, False)  # torch has no question for it
        if strict:
            stack.callback(torch.use_deterministic_algorithms, strict, warn_only=warn)
            torch.use_deterministic_algorithms(False)
        with suppress(RuntimeError):  # the caller has set it in two ways, of which torch cannot tell the outcome
            put_back(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision(), "highest")
        if torch.get_default_device() != (cpu := torch.device("cpu")):  # such a block slows every call down
            stack.enter_context(cpu)
        for context in (
            torch.inference_mode(False), torch.enable_grad(), torch.autograd.set_detect_anomaly(False),
            torch.autocast("cpu", enabled=False), np.errstate(all="warn", under="ignore"),
        ):  # fmt: skip
            stack.enter_context(context)
        yield


def _put_back(stack: ExitStack, change: Callable[[Any], Any], before: Any, wanted: Any) -> None:
    """Change a global to what is wanted, and to what it was before when the stack is left."""
    if before != wanted:
        stack.callback(change, before)
        change(wanted)
