"""The report: one self-contained HTML page of one or several runs; no script, no network, every text escaped."""

from collections.abc import Sequence
from pathlib import Path

from fedcl.report import svg, text
from fedcl.report.runs import Run, read_run

# Figures that depend on how often one evaluates: unlike `evaluation_every` are not compared.
FREQUENT = ("A-AUC", "min-ACC", "WC-ACC", "WF-10", "WP-10")


def _comparisons(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Return titles and charts in which every run with a global accuracy is a line, named by its number."""
    known = [(i, run) for i, run in enumerate(runs) if run.mean_line]
    if len(known) < 2:
        return []
    over_rounds = [svg.Line(str(i + 1), run.mean_line, i) for i, run in known]
    over_bytes = [svg.Line(str(i + 1), run.cost_line, i) for i, run in known]
    what = "mean accuracy on the tasks begun so far, every run"
    return [
        ("Accuracy over rounds", svg.line_chart(over_rounds, what)),
        ("Accuracy over bytes sent", svg.line_chart(over_bytes, f"{what}, over bytes", x_name="MB up and down")),
    ]


def _lacks_control(runs: Sequence[Run]) -> bool:
    """Return whether a curriculum is shown without its control: what pacing gains reads like a gain of order then."""
    orders = {order for run in runs for order in run.log.start.get("orders", ())}
    return bool(orders & {"curr", "anti"}) and "rand" not in orders


def page(runs: Sequence[Run]) -> str:
    """Return the page of these runs as HTML."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    folder = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=folder, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    # Charts come from an element tree, whose writer has escaped every text: the only markup that is let through.
    environment.filters["chart"] = Markup
    every = {str(run.results.get("evaluation_every")) for run in runs}
    return environment.get_template("page.html.j2").render(
        runs=runs,
        title=runs[0].name if len(runs) == 1 else f"{len(runs)} runs",
        comparisons=_comparisons(runs),
        lacks_control=_lacks_control(runs),
        unlike=FREQUENT if len(every) > 1 else (),
        text=text,
    )


def write_report(directories: Sequence[Path], out: Path) -> None:
    """Write one page about runs.

    Args:
        directories: run directories (events.jsonl; config.yaml, results.json and error.log where there are).
        out: the HTML file; its folder is made.

    Raises:
        ConfigError: a directory holds no run, or its events are damaged.
    """
    html = page([read_run(Path(each)) for each in directories])
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(html, encoding="utf-8", errors="replace")  # JSON may carry half a surrogate pair
