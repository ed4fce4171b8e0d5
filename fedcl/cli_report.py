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
        Path | None, typer.Option(metavar="DIR", help="Every figure besides, as SVG and PDF for papers.")
    ] = None,
) -> int:
    """Write one HTML page about runs, or all of a sweep (default: DIR/report.html; of several DIR: ./report.html)."""
    from fedcl.report import write_report

    out = out or (directories[0] if len(directories) == 1 else Path()) / "report.html"
    write_report(directories, out, figures)
    typer.echo(str(out))
    if figures:
        typer.echo(str(figures))
    return OK
