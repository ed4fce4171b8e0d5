"""A run in the process of its caller: what the caller has set in torch and NumPy changes nothing, and stays set."""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fedcl
from fedcl import api
from fedcl.process import settle, settled
from tests.federations import tiny

RUN = ("client.method=er", "client.memory={size: 20}")


@contextmanager
def changed(change: Callable[[Any], Any], value: Any, before: Any) -> Iterator[None]:
    change(value)
    try:
        yield
    finally:
        change(before)


CALLERS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "four threads": lambda: changed(torch.set_num_threads, 4, torch.get_num_threads()),
    "float64": lambda: changed(torch.set_default_dtype, torch.float64, torch.float32),
    "bfloat16": lambda: changed(torch.set_default_dtype, torch.bfloat16, torch.float32),
    "default device": lambda: changed(torch.set_default_device, "meta", None),
    "device block": lambda: torch.device("meta"),
    "inference mode": torch.inference_mode,
    "no gradients": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "deterministic": lambda: changed(torch.use_deterministic_algorithms, True, False),
    "fast products": lambda: changed(torch.set_float32_matmul_precision, "medium", "highest"),
    "no small numbers": lambda: changed(torch.set_flush_denormal, True, False),
    "numpy raises": lambda: np.errstate(all="raise"),
}


def standing() -> dict[str, Any]:
    """Return what the globals of this process are."""
    return {
        "threads": torch.get_num_threads(), "dtype": torch.get_default_dtype(), "device": torch.zeros(1).device,
        "inference": torch.is_inference_mode_enabled(), "gradients": torch.is_grad_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"), "deterministic": torch.are_deterministic_algorithms_enabled(),
        "products": torch.get_float32_matmul_precision(), "flushed": sys.float_info.min / 2 == 0,
        "numpy": np.geterr(), "draw": torch.default_generator.get_state().tolist(),
    }  # fmt: skip


def weights(folder: Path) -> str:
    result = api.run(tiny(*RUN), out=folder)
    return str(result.events[-1]["weights_sha256"])


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the weights of a run whose caller has set nothing."""
    return weights(tmp_path_factory.mktemp("plain") / "run")


@pytest.mark.parametrize("caller", CALLERS)
def test_what_its_caller_has_set_changes_no_weights_and_stays_set(plain: str, tmp_path: Path, caller: str) -> None:
    with CALLERS[caller]():
        before = standing()
        assert weights(tmp_path / "run") == plain
        assert standing() == before
    assert standing() != before


def test_all_of_it_at_once(plain: str, tmp_path: Path) -> None:
    with ExitStack() as stack:
        for caller in CALLERS.values():
            stack.enter_context(caller())
        before = standing()
        assert weights(tmp_path / "run") == plain
        assert standing() == before


def test_a_worker_s_setting_inside_a_run_does_not_outlive_it() -> None:
    with changed(torch.set_num_threads, 3, torch.get_num_threads()):
        with settled():
            settle()
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 3


@pytest.mark.parametrize("call", ["run", "resume", "sweep"])
def test_a_call_that_fails_puts_everything_back_too(tmp_path: Path, call: str) -> None:
    wrong = {"run": "no-such-scenario", "resume": tmp_path / "nothing", "sweep": "no-such-sweep"}[call]
    with changed(torch.set_num_threads, 3, torch.get_num_threads()), torch.inference_mode():
        before = standing()
        with pytest.raises(fedcl.ConfigError):
            getattr(fedcl, call)(wrong)
        assert standing() == before


def test_the_trained_model_is_the_same_whatever_its_caller_has_set(tmp_path: Path) -> None:
    result = api.run(tiny(*RUN), out=tmp_path / "run")
    plain = result.model().state_dict()
    with (
        changed(torch.set_default_device, "meta", None),
        changed(torch.set_default_dtype, torch.float64, torch.float32),
    ):
        other = api.load(result.directory).model().state_dict()  # type: ignore[union-attr]
    assert all(torch.equal(plain[name], other[name]) and plain[name].dtype == other[name].dtype for name in plain)
