"""A run drawn for a notebook or a file: the report's charts on a page of their own, without script or network."""

from dataclasses import dataclass
from html import escape
from importlib import resources
from pathlib import Path

from fedcl.errors import FederationError
from fedcl.report import figures, style
from fedcl.report.runs import read_run
from fedcl.report.svg import written

HEIGHT = 400  # pixels of the frame in a notebook: both charts side by side
STYLE = "body { padding: 12px; } .charts { margin: 0; }"  # on a page that has nothing else


@dataclass(frozen=True)
class Figure:
    """Charts as a whole HTML page."""

    page: str

    def _repr_html_(self) -> str:
        """Return the page in a frame, so that its style and the notebook's leave each other alone."""
        return (
            f'<iframe title="fedcl" srcdoc="{escape(self.page)}" '
            f'style="width: 100%; height: {HEIGHT}px; border: 0; resize: vertical"></iframe>'
        )

    def save(self, path: Path | str) -> Path:
        """Write the page to an HTML file, in a folder that is made if need be; return its path."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.page, encoding="utf-8")
        return path


def figure(directory: Path) -> Figure:
    """Return the accuracy matrix and the accuracy over rounds of a run directory.

    Raises:
        FederationError: there is nothing to draw.
    """
    run = read_run(directory)
    charts = [figures.matrix(run, figures.Room()), figures.accuracy(run, figures.Room())]
    drawn = [
        f"<figure><figcaption><h3>{each.title}</h3></figcaption>{written(each.drawing)}</figure>"
        for each in charts
        if each.drawing is not None
    ]
    if not drawn:
        reason = run.absent("accuracy_matrix") or "the global model was evaluated less than twice"
        raise FederationError(f"there is nothing to draw of {str(directory)!r}: {reason}")
    looks = style.sheet() + resources.files("fedcl.report").joinpath("page.css").read_text(encoding="utf-8")
    head = f'<meta charset="utf-8"><title>{escape(run.name)}</title><style>{looks}{STYLE}</style>'
    body = f'<div class="charts">{"".join(drawn)}</div>'
    return Figure(f'<!doctype html><html lang="en"><head>{head}</head><body>{body}</body></html>')
