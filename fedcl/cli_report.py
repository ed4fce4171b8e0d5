"""`fedcl report`."""

from pathlib import Path
from typing import Annotated

import typer

OK = 0


def report(
    directories: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="Run directories, sweeps, or folders with such below them.")
    ],
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Where to write; default: report.html.")] = None,
    figures: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Every figure besides: SVG, and PDF with the extra figures.")
    ] = None,
) -> int:
    """Write one HTML page about runs, or all of a sweep (default: DIR/report.html; of several DIR: ./report.html)."""
    from fedcl.distribution import install
    from fedcl.report import paper, write_report

    out = out or (directories[0] if len(directories) == 1 else Path()) / "report.html"
    write_report(directories, out, figures)
    typer.echo(str(out))
    if figures:
        typer.echo(str(figures))
        if not paper.writes_pdf():
            typer.echo(f"fedcl: note: SVG alone; for PDF besides: {install('figures')}", err=True)
    return OK
