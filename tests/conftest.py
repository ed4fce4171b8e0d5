"""What the whole test session shares: hypothesis without deadlines, one thread a process, one Ray for all."""

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

# Before any worker starts: the bits must not depend on the machine, and two processes must not fight for cores.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
torch.set_num_threads(1)

settings.register_profile("fedcl", deadline=None)  # first calls import and compile
settings.load_profile("fedcl")


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """Start Ray with two CPUs, once; runs with `engine.kind=ray` use it and leave it up."""
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()
