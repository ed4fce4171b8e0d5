"""The figures as a table."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

BOTH = ("fedcl", "other")


def table(results: Sequence[Mapping[str, Any]]) -> Table:
    """Return one row a comparison, "fedcl : other" in a cell; memory: the main process + the largest below it."""
    made = Table(caption="ratio: median (smallest to largest) of the pairs; fedcl : other; derpp counts samples")
    for name in ("workload", "clients", "against"):
        made.add_column(name)
    for name in ("ratio", "updates/s", "first round, s", "MB a process", "weights"):
        made.add_column(name, justify="right")
    for each in results:
        made.add_row(*_row(each))
    return made


def _row(each: Mapping[str, Any]) -> list[str]:
    of = f"/{each['registered']}" if each["registered"] != each["clients"] else ""
    rates, difference = each[f"{each['unit']}_per_second"], each["max_weight_difference"]
    ratio, first, memory = each["ratio"], each["first_round_seconds"], each["memory"]
    return [
        each["workload"], f"{each['clients']}{of}", each["against"],
        f"{ratio['median']:.2f} ({ratio['min']:.2f}-{ratio['max']:.2f})",
        ":".join(f"{rates[who]['median']:.0f}" for who in BOTH),
        ":".join(f"{first[who]['median']:.1f}" for who in BOTH),
        ":".join("+".join(f"{memory[who][whose] / 1e6:.0f}" for whose in ("process", "below")) for who in BOTH),
        "" if difference is None else f"{difference:.0e}",
    ]  # fmt: skip
