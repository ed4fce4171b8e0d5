"""Do the statistics keep what they promise? Sweeps that are simulated, so that the truth is known.

python -m fedcl.sweeps.simulated             # 1,000 sweeps a line: false alarms, power, coverage; five minutes
python -m fedcl.sweeps.simulated 4000        # coverage to within .007

A figure over seeds is normal, or skewed: an accuracy near 1, whose distance from it is gamma of shape 2.
"""

import math
import sys
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedcl.statistics import LEVEL, Paired, bootstrap, paired, student

SWEEPS = 1000
SEEDS = (3, 5, 10, 15, 20, 30, 50)
MEAN, STD = 0.8, 0.02  # of a figure over seeds
NOISE = 0.01  # standard deviation of the difference of two methods on one seed
SHIFTS = (1.0, 2.0)  # planted differences, in these standard deviations

Values = NDArray[np.float64]


def normal(n: int, sweeps: int, rng: np.random.Generator) -> tuple[Values, float]:
    """Return figures (sweeps, n) and their true mean."""
    return rng.normal(MEAN, STD, (sweeps, n)), MEAN


def skewed(n: int, sweeps: int, rng: np.random.Generator) -> tuple[Values, float]:
    """Return figures (sweeps, n) and their true mean."""
    return 1 - rng.gamma(2.0, STD, (sweeps, n)), 1 - 2 * STD


def comparisons(n: int, shift: float, sweeps: int = SWEEPS) -> list[Paired]:
    """Return comparisons of two methods on n common seeds, one a sweep; their difference is `shift` deviations."""
    rng = np.random.default_rng(n)
    found = []
    for _ in range(sweeps):
        common, noise = rng.normal(MEAN, STD, n), rng.normal(0, NOISE / math.sqrt(2), (2, n))
        one, other = common + noise[0] + NOISE * shift, common + noise[1]
        found.append(paired(dict(enumerate(one.tolist())), dict(enumerate(other.tolist()))))
    return found


def alarms(n: int, shift: float, sweeps: int = SWEEPS) -> float:
    """Return the share of sweeps that find a difference: the rate of false alarms, or with a shift the power."""
    return float(np.mean([each.significant for each in comparisons(n, shift, sweeps)]))


def coverage(figures: Values, mean: float) -> tuple[float, float]:
    """Return how often the 95 % intervals of figures (sweeps, n) hold the mean: Student's t, BCa."""
    held = [[low <= mean <= high for low, high in (student(each), bootstrap(each))] for each in figures]
    t, bca = np.mean(held, axis=0).tolist()
    return t, bca


def error(share: float, sweeps: int) -> float:
    """Return twice the standard error of a share."""
    return 2 * math.sqrt(share * (1 - share) / sweeps)


def line(n: int, sweeps: int) -> str:
    """Return what is found with n seeds."""
    rng = np.random.default_rng(n)
    power = "".join(f"{alarms(n, shift, sweeps):7.2f}" for shift in SHIFTS)
    plain, skew = (coverage(*drawn(n, sweeps, rng)) for drawn in (normal, skewed))
    return f"{n:5} {alarms(n, 0.0, sweeps):12.3f} {power}" + "".join(f"{each:11.3f}" for each in (*plain, *skew))


def main(arguments: Sequence[str]) -> None:
    """Print what is found with each number of seeds."""
    sweeps = int(arguments[0]) if arguments else SWEEPS
    print(f"{sweeps} sweeps a line; two standard errors of a coverage of {LEVEL}: {error(LEVEL, sweeps):.3f}")
    power = "".join(f"{f'+{shift:.0f}':>7}" for shift in SHIFTS)
    print(f"{'':18}{'power':>15}{'coverage':>16}{'of skewed figures':>25}")
    print(f"seeds false alarms {power}" + "".join(f"{each:>11}" for each in ("t", "BCa") * 2))
    for n in SEEDS:
        print(line(n, sweeps), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
