"""Draws of a test: fresh ones by hand, the same each time in CI, and any of them again by its seed."""

import os
import random
import secrets


def seeded() -> random.Random:
    """Return draws whose seed is printed; where CI is set, the same each time, as hypothesis does it."""
    fresh = 0 if os.environ.get("CI") else secrets.randbits(32)
    seed = int(os.environ.get("FEDCL_TEST_SEED", fresh))
    print(f"FEDCL_TEST_SEED={seed}")
    return random.Random(seed)
