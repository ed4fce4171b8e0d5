"""The report: one self-contained HTML page of one or several runs; no network, every text escaped."""

from collections.abc import Sequence
from pathlib import Path


def write_report(directories: Sequence[Path], out: Path, figures: Path | None = None) -> list[Path]:
    """Write one page about runs.

    Args:
        directories: run directories (events.jsonl; config.yaml, results.json and error.log where there are) or sweeps.
        out: the HTML file; its folder is made.
        figures: a folder for every figure besides: SVG, and PDF where the extra `figures` is installed.

    Returns:
        The figures' files.

    Raises:
        ConfigError: a directory holds no run, or its events are damaged.
    """
    from fedcl.report import page, paper

    material = page.read([Path(each) for each in directories])
    html = page.page(material)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(html, encoding="utf-8", errors="replace")  # JSON may carry half a surrogate pair
    return paper.write(page.every_figure(material), figures) if figures else []
