"""What stands behind a part: the tests and measurements that `verified.yaml` names; a test checks that they are there.

oracle  a closed form, a computation by hand or an equivalence, asserted by the test that is named
figure  measured by us in a setting of our own: "method | setting run", a row of REPRODUCIBILITY.md
paper   the same for the setting of the paper itself
"""

from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Literal

import yaml

Kind = Literal["oracle", "figure", "paper"]


@dataclass(frozen=True)
class Evidence:
    """One thing that speaks for a part: of what kind, and where it stands."""

    kind: Kind
    where: str


@cache
def known() -> dict[str, dict[str, tuple[Evidence, ...]]]:
    """Return the evidence by topic (of `fedcl list`) and name; a name without any is not verified."""
    plain = yaml.safe_load(resources.files("fedcl").joinpath("verified.yaml").read_text(encoding="utf-8"))
    return {
        topic: {
            name: tuple(Evidence(kind, where) for kind, places in kinds.items() for where in places)
            for name, kinds in names.items()
        }
        for topic, names in plain.items()
    }


def evidence(topic: str, name: str) -> tuple[Evidence, ...] | None:
    """Return what stands behind a name: nothing if it is not verified, None if no evidence is kept under the topic."""
    return known()[topic].get(name, ()) if topic in known() else None
