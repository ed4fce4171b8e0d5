"""The doctor, with planted troubles: each is found, and told with what to do."""

import gzip
import importlib.metadata
from collections.abc import Callable, Iterator
from email.message import Message
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedcl import doctor, machine
from fedcl.cli import main
from fedcl.doctor import GIB, Finding, examine
from fedcl.machine import Gpu

H100 = Gpu(name="NVIDIA H100 80GB HBM3", driver="580.95.05")


def found(check: Callable[..., Iterator[Finding]], *arguments: Any) -> list[tuple[str, str, str]]:
    return [(each.level, each.what, each.remedy) for each in check(*arguments)]


def planted(monkeypatch: pytest.MonkeyPatch, *requirements: str, extras: tuple[str, ...] = ()) -> None:
    """Let fedcl ask for other packages."""
    whole = Message()
    for extra in extras:
        whole["Provides-Extra"] = extra
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: list(requirements))
    monkeypatch.setattr(doctor.metadata, "metadata", lambda name: whole)


# Packages.


def test_ray_and_flower_are_held_against_what_fedcl_supports(monkeypatch: pytest.MonkeyPatch) -> None:
    planted(monkeypatch, "flwr>=1.41,<1.43", "ray>=2.55", "numpy<1", "surely-not-there>=2")
    versions = {name: importlib.metadata.version(name) for name in ("flwr", "ray", "numpy")}
    install = "pip install fedcl-flower"
    assert found(doctor._packages) == [
        ("ok", f"flwr {versions['flwr']} (supported: <1.43,>=1.41)", ""),
        ("ok", f"ray {versions['ray']} (supported: >=2.55)", ""),
        ("broken", f"numpy {versions['numpy']} is outside <1", install),
        ("broken", "surely-not-there is not installed, >=2 is needed", install),
    ]
    monkeypatch.setattr(doctor, "installed", lambda name: "1.40.0")
    assert found(doctor._packages)[0] == ("broken", "flwr 1.40.0 is outside <1.43,>=1.41", install)


def test_extras_are_there_or_told_with_their_command(monkeypatch: pytest.MonkeyPatch) -> None:
    planted(
        monkeypatch, "numpy>=2", "torch>=2; extra == 'there'", "scipy<1; extra == 'old'",
        "absent>=2,<3; extra == 'gone'", "two>=1; extra == 'gone'", "absent; extra == 'test'",
        extras=("there", "old", "gone", "test"),
    )  # fmt: skip
    torch_, scipy = importlib.metadata.version("torch"), importlib.metadata.version("scipy")
    assert found(doctor._packages)[1:] == [
        ("ok", f"extra there: torch {torch_}", ""),
        ("warn", f"extra old: scipy {scipy} is outside what it supports", "pip install 'fedcl-flower[old]'"),
        ("ok", "extra gone is not installed (pip install 'fedcl-flower[gone]')", ""),
    ]


def test_fedcl_itself_may_not_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor.metadata, "requires", nobody)
    assert found(doctor._packages) == [("warn", "fedcl is not installed, it runs from its source folder", "make setup")]


# torch and CUDA.


def unseen(monkeypatch: pytest.MonkeyPatch, build: str | None, gpu: Gpu) -> tuple[str, str, str]:
    """Return the finding where torch sees no GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", build)
    monkeypatch.setattr(torch, "__version__", "2.13.0")
    monkeypatch.setattr(machine, "gpus", lambda: [gpu])
    (finding,) = found(doctor._compute)
    return finding


def test_a_build_of_torch_without_cuda_beside_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    level, what, remedy = unseen(monkeypatch, None, H100)
    assert (level, what) == ("warn", "torch 2.13.0 is a build without CUDA, but NVIDIA H100 80GB HBM3 is here")
    assert remedy == "make setup TORCH='torch --index-url https://download.pytorch.org/whl/cu130' in a new environment"
    assert "cu126" in unseen(monkeypatch, None, Gpu("NVIDIA L4", "550.54.14"))[2]
    assert unseen(monkeypatch, None, Gpu("Tesla K20", "390.1"))[2] == "update the NVIDIA driver"


def test_a_driver_that_is_too_old_for_the_build(monkeypatch: pytest.MonkeyPatch) -> None:
    level, what, remedy = unseen(monkeypatch, "13.0", Gpu("NVIDIA L4", "550.54.14"))
    assert (level, what) == (
        "warn", "torch 2.13.0 is built for CUDA 13.0, which needs driver 580; 550.54.14 is here",
    )  # fmt: skip
    assert remedy.startswith("update the driver, or make setup TORCH='torch --index-url ")
    assert "whl/cu126" in remedy


def test_a_gpu_that_is_hidden_or_not_seen_for_another_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert unseen(monkeypatch, "13.0", H100)[1] == "CUDA_VISIBLE_DEVICES='' hides NVIDIA H100 80GB HBM3"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    level, what, remedy = unseen(monkeypatch, "13.0", H100)
    assert (level, what) == ("warn", "torch 2.13.0 sees no GPU although nvidia-smi shows NVIDIA H100 80GB HBM3")
    assert "says why" in remedy


def test_no_gpu_and_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(machine, "gpus", lambda: None)
    assert found(doctor._compute) == [("ok", f"torch {torch.__version__}, no GPU: the clients compute on the CPU", "")]

    def broken() -> None:
        raise OSError("couldn't communicate with the NVIDIA driver")

    monkeypatch.setattr(machine, "gpus", broken)
    (finding,) = found(doctor._compute)
    assert finding[:2] == ("warn", "nvidia-smi is here but finds no GPU: couldn't communicate with the NVIDIA driver")


def test_gpus_that_torch_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that the build has kernels for, one that it has none for."""
    monkeypatch.setattr(torch, "__version__", "2.13.0")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    cards = [("NVIDIA H100", (9, 0)), ("Tesla P100", (6, 0))]
    facts = {
        "is_available": lambda: True, "device_count": lambda: 2, "get_device_name": lambda i: cards[i][0],
        "get_device_capability": lambda i: cards[i][1], "get_arch_list": lambda: ["sm_75", "sm_90", "compute_120"],
    }  # fmt: skip
    for name, fact in facts.items():
        monkeypatch.setattr(torch.cuda, name, fact)
    assert found(doctor._compute) == [
        ("ok", "torch 2.13.0, CUDA 13.0: NVIDIA H100", ""),
        (
            "warn", "torch 2.13.0 has no kernels for Tesla P100 (sm_60)",
            "engine.device=cpu, or another build: https://download.pytorch.org/whl",
        ),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("capability", "built_for", "runs"),
    [
        ((9, 0), ["sm_80", "sm_90"], True),
        ((8, 6), ["sm_80"], True),
        ((8, 0), ["sm_86"], False),
        ((9, 0), ["sm_80"], False),
        ((9, 0), ["compute_80"], True),
        ((9, 0), ["sm_90a"], True),
        ((12, 0), ["sm_100", "sm_120"], True),
        ((7, 0), [], False),
    ],
)
def test_binaries_run_on_their_generation_and_intermediate_code_on_later_ones(
    capability: tuple[int, int], built_for: list[str], runs: bool
) -> None:
    assert doctor._has_kernels(capability, built_for) is runs


def test_gpus_are_what_nvidia_smi_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in on the path, as there is no GPU here: its lines, its failure, and where it is not there."""
    tool = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.gpus() is None
    tool.write_text("#!/bin/sh\necho 'NVIDIA H100, 80 GB, 580.95.05'\necho 'NVIDIA L4, 580.95.05'\n")
    tool.chmod(0o755)
    assert machine.gpus() == [Gpu("NVIDIA H100, 80 GB", "580.95.05"), Gpu("NVIDIA L4", "580.95.05")]
    tool.write_text('#!/bin/sh\necho "NVIDIA-SMI has failed because it couldn\'t communicate"\nexit 9\n')
    with pytest.raises(OSError, match=r"^NVIDIA-SMI has failed because it couldn't communicate$"):
        machine.gpus()


# Cores, threads, memory.


@pytest.fixture
def cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A control group of one's own, with 64 cores to be seen."""
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    monkeypatch.setattr(machine, "affinity", lambda: 64)
    for name in doctor.THREADS:
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_a_quota_is_what_the_container_may_use(cgroup: Path) -> None:
    assert (machine.quota(), machine.cores()) == (None, 64)
    (cgroup / "cpu").mkdir()
    for name, value in (("quota", "150000"), ("period", "100000")):
        (cgroup / "cpu" / f"cpu.cfs_{name}_us").write_text(f"{value}\n")
    assert (machine.quota(), machine.cores()) == (1.5, 2)
    (cgroup / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    assert (machine.quota(), machine.cores()) == (None, 64)
    (cgroup / "cpu.max").write_text("400000 100000\n")
    assert (machine.quota(), machine.cores()) == (4.0, 4)
    (cgroup / "cpu.max").write_text("max 100000\n")
    assert (machine.quota(), machine.cores()) == (None, 64)
    (cgroup / "cpu.max").write_text("10000 100000\n")
    assert machine.cores() == 1


def test_workers_are_as_many_as_the_quota_is_worth(cgroup: Path) -> None:
    """The doctor says what "auto" does."""
    from fedcl.config import load
    from fedcl.engine.choice import workers

    (cgroup / "cpu.max").write_text("200000 100000\n")
    told = "2 cores (64 are visible, the container's quota is worth 2.0)"
    assert found(doctor._threads) == [("ok", f"{told}: engine.workers=auto starts 2 workers of one thread", "")]
    assert workers(load("split-digits", ["engine.device=cpu"])) == (2, 0.0)


@pytest.mark.parametrize(
    ("value", "level", "said"),
    [
        ("1", "ok", "OMP_NUM_THREADS=1"),
        ("65", "warn", "64 cores but OMP_NUM_THREADS=65"),
        ("many", "warn", "OMP_NUM_THREADS=many is no number of threads"),
        ("0", "warn", "OMP_NUM_THREADS=0 is no number of threads"),
    ],
)
def test_thread_settings_are_held_against_the_cores(
    value: str, level: str, said: str, cgroup: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    cores, threads = found(doctor._threads)
    assert cores[1] == "64 cores: engine.workers=auto starts 64 workers of one thread"
    assert threads[:2] == (level, said)
    assert ("unset OMP_NUM_THREADS" in threads[2]) is (level == "warn")


def test_memory_that_is_too_little_for_the_workers(cgroup: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (cgroup / "meminfo").write_text(f"MemTotal: 99 kB\nMemAvailable: {40 * GIB // 1024} kB\n")
    monkeypatch.setattr(machine, "MEMINFO", cgroup / "meminfo")
    assert found(doctor._memory) == [("ok", "memory: 40.0 GiB free", "")]
    (cgroup / "memory.max").write_text(f"{4 * GIB}\n")
    (cgroup / "memory.current").write_text(f"{GIB}\n")
    ((level, what, remedy),) = found(doctor._memory)
    assert (level, what) == ("warn", "memory: 3.0 GiB free, little for 64 workers")
    assert remedy.startswith("engine.workers=6, or free some")
    (cgroup / "memory.max").write_text("max\n")
    (cgroup / "meminfo").unlink()
    assert found(doctor._memory) == []


# Disks.


def test_disks_that_are_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each by its own folder: that of the runs, the shared memory, and Ray's."""
    runs, ray = tmp_path / "runs" / "deep", tmp_path / "ray"
    monkeypatch.setenv("RAY_TMPDIR", str(ray))
    free = {tmp_path: GIB, Path("/dev/shm"): 64 * 2**20}
    monkeypatch.setattr(machine, "free_disk", lambda folder: (free[folder], 100 * GIB))
    findings = found(doctor._disk, runs)
    assert findings[0] == (
        "warn", f"disk: 1.0 GiB free at {tmp_path}", "free some space: checkpoints and client states grow",
    )  # fmt: skip
    assert ("warn", "shared memory: 0.1 GiB free at /dev/shm") in [each[:2] for each in findings] or not Path(
        "/dev/shm"
    ).is_dir()
    assert findings[-1] == (
        "warn", f"the disk of Ray's folder {ray} is 99% full: Ray keeps nothing more there",
        "free some space, or set RAY_TMPDIR to a folder on another disk",
    )  # fmt: skip
    free = dict.fromkeys(free, 50 * GIB)
    assert [each[0] for each in found(doctor._disk, runs)] == ["ok"] * (1 + Path("/dev/shm").is_dir())


def test_the_disk_is_measured(tmp_path: Path) -> None:
    free, whole = machine.free_disk(tmp_path)
    assert 0 < free < whole


def test_a_folder_that_cannot_be_written_to(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refused(dir: Path) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refused)
    assert found(doctor._writable, tmp_path) == [
        (
            "broken",
            f"cannot write to {tmp_path}: Read-only file system",
            "choose another folder: fedcl run ... --out DIR",
        )
    ]


# Data.


def test_data_that_is_there_missing_or_in_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDCL_DATA", str(tmp_path))
    nothing = found(doctor._data)
    assert [each[0] for each in nothing] == ["ok"] * 3
    assert nothing[1][1] == "data fashion-mnist: not there (scenarios curriculum-fmnist need it)"
    assert nothing[2][1] == "data omniglot: not there (scenarios reconnaissance-omniglot need it)"
    names = [f"{split}-{part}-ubyte" for split in ("train", "t10k") for part in ("images-idx3", "labels-idx1")]
    (tmp_path / "mnist").mkdir()
    for name in names[:3]:
        (tmp_path / "mnist" / name).touch()
    level, what, remedy = found(doctor._data)[0]
    assert (level, what) == ("warn", f"data mnist: mnist/t10k-labels-idx1-ubyte missing at {tmp_path}")
    assert "permuted-mnist-fot" in remedy
    with gzip.open(tmp_path / "mnist" / f"{names[3]}.gz", "wb") as file:
        file.write(b"")
    assert found(doctor._data)[0] == ("ok", f"data mnist: {tmp_path / 'mnist'}", "")


def test_data_of_which_nobody_has_said_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEDCL_DATA", raising=False)
    ((level, what, _),) = found(doctor._data)
    assert level == "ok"
    assert what.startswith("FEDCL_DATA not set: all scenarios but curriculum-fmnist, permuted-mnist, ")
    monkeypatch.setenv("FEDCL_DATA", str(tmp_path / "gone"))
    assert found(doctor._data) == [
        (
            "warn", f"FEDCL_DATA={tmp_path / 'gone'} is no folder",
            "set it to the folder that holds fashion_mnist/, mnist/, omniglot/",
        )
    ]  # fmt: skip


# The whole examination.


def test_this_machine_is_well(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines} <= {"ok", "warn"}
    for part in (
        "Python 3.",
        "flwr ",
        "ray ",
        "torch ",
        ": engine.workers=auto starts ",
        "extra images",
        "scenarios shipped",
    ):
        assert any(part in line for line in lines), part


def test_what_is_broken_is_said_with_the_remedy_and_exit_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    planted(monkeypatch, "numpy<1")
    assert main(["doctor"]) == 1
    assert f"broken numpy {np.__version__} is outside <1; pip install" in capsys.readouterr().out


def test_every_finding_that_is_not_ok_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planted(monkeypatch, "numpy<1")
    monkeypatch.setenv("OMP_NUM_THREADS", "100000")
    monkeypatch.setenv("FEDCL_DATA", str(tmp_path / "gone"))
    monkeypatch.setattr(machine, "free_disk", lambda folder: (1, 100))
    findings = list(examine(tmp_path))
    assert sum(each.level != "ok" for each in findings) >= 5
    assert all(bool(each.remedy) == (each.level != "ok") for each in findings)
