"""A sweep as papers print it: metrics side by side, mean ± standard deviation in %, the best in bold."""

from collections.abc import Sequence
from pathlib import Path

from fedcl.errors import ConfigError
from fedcl.sweeps.axes import AXIS
from fedcl.sweeps.space import LOWER
from fedcl.sweeps.tables import Found, Row, collect, escaped

METRICS = {"acc": "ACC", "aia": "AIA", "forgetting": "Forgetting"}


def paper_table(out: Path) -> str:
    """Return the tabular (package booktabs) of a sweep's folder; a metric that its runs do not have is left out."""
    found = []
    for metric in METRICS:
        try:
            found.append(collect(out, metric))
        except ConfigError:
            continue
    heads = [*(escaped(name) for name in _axes(found)), *(f"{METRICS[each.metric]} {_arrow(each)}" for each in found)]
    body, before = [], ""
    for place, row in enumerate(found[0].rows if found else ()):
        if before and row.labels[AXIS] != before:
            body.append(r"\midrule")
        before = row.labels[AXIS]
        names = [escaped(row.labels.get(axis, "")) for axis in _axes(found)]
        body.append(" & ".join([*names, *(_cell(each, each.rows[place]) for each in found)]) + r" \\")
    columns = "l" * len(_axes(found)) + "c" * len(found)
    return "\n".join([
        "% mean over seeds, standard deviation behind it, in percent; the best mean of a scenario in bold",
        rf"\begin{{tabular}}{{{columns}}}", r"\toprule", " & ".join(heads) + r" \\", r"\midrule", *body,
        r"\bottomrule", r"\end{tabular}", "",
    ])  # fmt: skip


def _axes(found: Sequence[Found]) -> list[str]:
    return list(dict.fromkeys(name for each in found for row in each.rows for name in row.labels))


def _arrow(found: Found) -> str:
    return r"$\downarrow$" if found.metric in LOWER else r"$\uparrow$"


def _cell(found: Found, row: Row) -> str:
    if not row.spread:
        return "--"
    rivals = [each.spread.mean for each in found.rows if each.spread and each.labels[AXIS] == row.labels[AXIS]]
    best = min(rivals) if found.metric in LOWER else max(rivals)
    mean = f"{100 * row.spread.mean:.1f}"
    shown = rf"\textbf{{{mean}}}" if row.spread.mean == best and len(rivals) > 1 else mean
    return shown if row.spread.std is None else rf"{shown} $\pm$ {100 * row.spread.std:.1f}"
