"""What the whole test session shares: hypothesis without deadlines, one thread a process, one Ray for all, groups."""

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
# Nodes of tests have next to no data; what they withhold by default is for tests of that.
os.environ["FEDCL_MIN_COUNT"] = "0"

settings.register_profile("fedcl", deadline=None)  # first calls import and compile
settings.load_profile("fedcl")


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep together, where pytest-xdist runs several processes, the tests on Ray and those with one fixture of a file.

    So there is one Ray, and what a file prepares for several tests is prepared once. All others run anywhere.
    """
    for item in items:
        if group := together(item):
            item.add_marker(pytest.mark.xdist_group(group))


def together(item: pytest.Item) -> str:
    """Return the group of a test, empty if it may run anywhere."""
    if not isinstance(item, pytest.Function):
        return ""
    if "ray_cluster" in item.fixturenames:
        return "ray"
    scopes = {each[-1].scope for each in item._fixtureinfo.name2fixturedefs.values()}
    return item.path.stem if "module" in scopes else ""


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """Start Ray with two CPUs, once; runs with `engine.kind=ray` use it and leave it up."""
    import ray

    # With a pytest that is too new for it, pytest-xdist shares out what belongs together, without a word.
    assert "PYTEST_XDIST_WORKER" not in os.environ or "@ray " in os.environ["PYTEST_CURRENT_TEST"]
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()
