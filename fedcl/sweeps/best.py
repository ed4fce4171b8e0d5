"""The best settings of a search as groups of overrides: DIR/best.yaml, in the form of the one that fedcl ships."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from fedcl import config, groups
from fedcl.journal import replace_file
from fedcl.overrides import typed
from fedcl.plain import Plain
from fedcl.sweeps.advice import Told
from fedcl.sweeps.axes import AXIS, Labels
from fedcl.sweeps.space import Search, Study
from fedcl.sweeps.spec import Sweep
from fedcl.yamltext import write_yaml

BEST = "best.yaml"
PARTS = ("model",)  # blocks that are chosen by name, and so belong together


def group_name(labels: Labels) -> str:
    """Return the name of a combination's group: best-METHOD."""
    return "-".join(["best", *(label for axis, label in labels.items() if axis != AXIS)])


def blocks(scenario: str, fixed: Sequence[str], texts: Sequence[str]) -> Plain:
    """Return what override texts set, as blocks of a scenario: every part that they touch, whole.

    So a group does not depend on what the scenario has there, nor on defaults.

    Args:
        fixed: overrides that lie below these, and are not told.
    """
    plain = config.read(scenario)
    name, own = str(plain.get("name")), plain.get("groups") or {}
    changes = [typed(text) for text in texts]
    asked = [group for change in changes for group in groups.chosen(name, own, change.pop("group", []))]
    whole = config.as_dict(config.load(scenario, [*fixed, *texts]))
    found: Plain = {}
    for change in (*asked, *changes):
        for block, inner in change.items():
            parts = inner if isinstance(inner, Mapping) and block not in PARTS else None
            found[block] = (
                {**found.get(block, {}), **{each: whole[block][each] for each in parts}} if parts else whole[block]
            )
    return found


def write_best(out: Path, sweep: Sweep, search: Search, found: Sequence[tuple[Study, Told | None]]) -> None:
    """Write the best settings of every study that has any, by scenario and combination."""
    replace_file(out / BEST, [as_text(sweep, search, found).encode()], sync=False)


def as_text(sweep: Sweep, search: Search, found: Sequence[tuple[Study, Told | None]]) -> str:
    """Return the file."""
    budget = f"{search.trials} trials each, judged by {search.metric} over seeds {', '.join(map(str, search.seeds))}"
    lines = [
        f"# The best settings that the search {sweep.name} has found: {budget}.",
        *(f"# All of its runs have {text}" for text in found[0][0].fixed),
        "# Compare them on other seeds than these, by which they were chosen.",
        f"# fedcl run SCENARIO group={BEST}:NAME takes one; in a sweep's grid: {{group: {BEST}:NAME}}.",
    ]
    by_scenario: dict[str, list[str]] = {}
    for study, best in found:
        mine = by_scenario.setdefault(str(config.read(study.labels[AXIS]).get("name", study.labels[AXIS])), [])
        if best is not None:
            settings = blocks(study.labels[AXIS], study.fixed, [*study.chosen, *study.settings(best.values)])
            text = write_yaml(settings, default_flow_style=None, width=110)
            mine.append(f"  {group_name(study.labels)}:  # {search.metric} {best.value:.3f}, trial {best.number}")
            mine += [f"    {line}" for line in text.splitlines()]
    for scenario, block in by_scenario.items():
        lines += [f"{scenario}:", *block] if block else []
    return "\n".join([*lines, ""])
