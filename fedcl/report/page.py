"""The page: everything that is read of runs and sweeps, filled into the templates; every text is escaped there."""

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedcl.errors import ConfigError
from fedcl.report import figures, overview, style, text
from fedcl.report.figures import Figure, Room
from fedcl.report.groups import Group, grouped
from fedcl.report.runs import Run, read_run
from fedcl.report.svg import written
from fedcl.sweeps import tables
from fedcl.sweeps.folder import below, is_sweep, read_plan, run_folders

FOLDER = Path(__file__).parent
OPEN = 3  # runs up to which all of them are unfolded


@dataclass(frozen=True)
class Material:
    """What a report is about."""

    runs: list[Run]
    sweeps: list[Path]

    @property
    def title(self) -> str:
        """What it is called."""
        return self.runs[0].name if len(self.runs) == 1 else f"{len(self.runs)} runs"


def read(directories: Sequence[Path]) -> Material:
    """Read run directories and sweeps.

    Raises:
        ConfigError: one holds no run, or is damaged.
    """
    runs: list[Run] = []
    directories = list(dict.fromkeys(found for directory in directories for found in below(directory)))
    sweeps = [directory for directory in directories if is_sweep(directory)]
    for directory in directories:
        folders = run_folders(directory)
        points = read_plan(directory)["points"] if directory in sweeps else []
        labels = {str(point["key"]): dict(point["labels"]) for point in points}
        runs += [read_run(folder, labels.get(folder.name)) for folder in folders]
    return Material(runs, sweeps)


def comparisons(groups: Sequence[Group], room: Room) -> list[Figure]:
    """Return the figures that compare runs, or that show what a single run has cost."""
    found = figures.against(groups, room)
    several = sum(len(group.runs) for group in groups) > 1
    return [*found, *figures.over_seeds(groups)] if several else found[1:]


def every_figure(material: Material) -> list[tuple[str, Figure]]:
    """Return all figures in full detail, by the names of their files."""
    groups, seen = grouped(material.runs), dict[str, int]()
    found = [(f"all-{figure.key}", figure) for figure in comparisons(groups, Room())]
    for number, run in enumerate(material.runs, 1):
        found += [(f"run-{number:02d}-{figure.key}", figure) for figure in figures.of_run(run, number, Room(), seen)]
    return found


def _sweep_tables(material: Material) -> list[tuple[str, overview.Table, list[str]]]:
    """Return the tables of the sweeps.

    Raises:
        ConfigError: results of one of its runs are damaged.
    """
    found = []
    for folder in material.sweeps:
        try:
            found.append(overview.sweep_table(tables.collect(folder)))
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ConfigError(f"{str(folder)!r}: results of one of its runs are damaged ({error!r})") from error
    return found


def _digest(source: str) -> str:
    """Return what a content security policy calls a script or style sheet."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"


def page(material: Material) -> str:
    """Return the page as HTML."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # Charts come from an element tree, whose writer escapes every text: the only markup of runs that is let through.
    environment.filters["chart"] = lambda drawing: Markup(written(drawing))
    looks = f"\n{style.sheet()}\n{(FOLDER / 'page.css').read_text()}"
    script = f"\n{(FOLDER / 'page.js').read_text()}"
    runs, groups, seen = material.runs, grouped(material.runs), dict[str, int]()
    room, lines = Room.of(len(runs)), overview.lines(groups)
    return environment.get_template("page.html.j2").render(
        title=material.title,
        runs=runs,
        lines=lines,
        table=overview.runs_table(lines),
        figures=[figures.of_run(run, number, room, seen) for number, run in enumerate(runs, 1)],
        comparisons=comparisons(groups, room),
        settings=overview.settings(groups),
        groups=groups,
        sweeps=_sweep_tables(material),
        notes=overview.notes(runs),
        statuses=sorted({run.status for run in runs}),
        room=room,
        unfolded=len(runs) <= OPEN,
        text=text,
        style=Markup(looks),
        script=Markup(script),
        policy=f"default-src 'none'; script-src {_digest(script)}; style-src {_digest(looks)}; img-src data:",
    )
