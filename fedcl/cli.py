"""The command line. Each command imports what it needs, so that `fedcl --help` stays fast."""

import json
import os
import shlex
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click
import typer

from fedcl import __version__
from fedcl.errors import ConfigError, FederationError

if TYPE_CHECKING:
    from fedcl import config
    from fedcl.api import Outcome
    from fedcl.catalogue import Entry, Option

OK, FAILED, USAGE, INTERRUPTED, STOPPED = 0, 1, 2, 130, 75
RUNS = Path("runs")

app = typer.Typer(
    name="fedcl",
    help="Federated continual learning: many clients, each with its own stream of tasks and its own replay memory.",
    no_args_is_help=True,
    rich_markup_mode=None,
    suggest_commands=False,  # click does
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fedcl {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def _complete_scenario(incomplete: str) -> list[str]:
    from fedcl.config import scenario_names

    return [name for name in scenario_names() if name.startswith(incomplete)]


def _complete_topic(incomplete: str) -> list[str]:
    from fedcl.catalogue import TOPICS

    return [topic for topic in TOPICS if topic.startswith(incomplete)]


_SCENARIO = typer.Argument(help="A name (fedcl list scenarios) or a YAML file.", autocompletion=_complete_scenario)
Scenario = Annotated[str, _SCENARIO]
OptionalScenario = Annotated[str | None, _SCENARIO]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings to change: client.optimizer.lr=0.05")
]
Directory = Annotated[Path, typer.Argument(metavar="DIR", help="A run directory.")]


def _finish(outcome: "Outcome", quiet: bool) -> int:
    """Print the table of figures and where the run lies; return the exit code."""
    from rich.console import Console

    from fedcl.console import table

    if not quiet:
        Console(highlight=False).print(table(outcome.results))
    if outcome.error:
        _complain(outcome.error)
    if outcome.code == STOPPED:
        _complain(f"stopped; fedcl run --resume {shlex.quote(str(outcome.directory))} goes on")
    typer.echo(str(outcome.directory))
    return outcome.code


def _asked(
    scenario: str | None, overrides: list[str], out: Path | None, resume: Path | None
) -> "config.Scenario | Path":
    """Return the scenario to run, or the run directory to go on with. Read before torch and Flower are imported."""
    if resume and (scenario or out):
        raise ConfigError("--resume goes on with the run as it was configured: leave out SCENARIO, settings and --out")
    if resume:
        return resume
    if not scenario:
        raise ConfigError("name a SCENARIO (fedcl list scenarios shows them) or --resume DIR")
    from fedcl.config import load

    return load(scenario, overrides)


def _note(scenario: "config.Scenario") -> None:
    """Tell what is allowed but will hardly do what its user wants."""
    for note in scenario.client.curriculum.notes(scenario.client.epochs):
        _complain(f"note: {note}")


@app.command("run")
def _run(
    context: typer.Context,
    scenario: OptionalScenario = None,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Exactly this run directory.")] = None,
    resume: Annotated[Path | None, typer.Option(metavar="DIR", help="Go on with a stopped run.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the run directory and errors only.")] = False,
) -> int:
    """Run a federation. Exit 0: finished; 2: bad configuration; 1: failed; 75: stopped, resumable."""
    target = _asked(scenario, overrides or [], out, resume)
    if not (quiet or isinstance(target, Path)):
        _note(target)
    from fedcl import api
    from fedcl.console import Progress

    with Progress(quiet=quiet) as progress:
        if isinstance(target, Path):
            progress.catch_up(api.load(target).events)
            outcome = api.resume(target, command=context.obj, listeners=[progress])
        else:
            outcome = api.run(target, out=out, command=context.obj, listeners=[progress])
    return _finish(outcome, quiet)


@app.command("show")
def _show(
    scenario: Scenario,
    overrides: Overrides = None,
    plan: Annotated[bool, typer.Option("--plan", help="Draw who is at which task when.")] = False,
) -> int:
    """Print a scenario with every setting resolved, or its plan."""
    from fedcl.config import as_dict, load

    chosen = load(scenario, overrides or ())
    _note(chosen)
    if plan:
        from fedcl.chart import plan_chart

        typer.echo(plan_chart(chosen, shutil.get_terminal_size().columns))
    else:
        import yaml

        typer.echo(yaml.safe_dump(as_dict(chosen), sort_keys=False, allow_unicode=True).rstrip())
    return OK


def _describe(option: "Option") -> str:
    default = "" if option.type == "group" else f" = {json.dumps(option.default, default=str)}"
    return f"    {option.name}{default}" + (f"  {option.help}" if option.help else "")


def _entry_lines(entry: "Entry") -> Iterable[str]:
    yield f"  {entry.name}" + (f": {entry.about}" if entry.about else "")
    yield from map(_describe, entry.settings)


def _list_all() -> dict[str, list[str]]:
    from fedcl.catalogue import TOPICS, catalogue

    return {topic: [entry.name for entry in catalogue(topic)] for topic in TOPICS}


@app.command("list")
def _list(
    topic: Annotated[
        str | None, typer.Argument(help="What to list; default: all names.", autocompletion=_complete_topic)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> int:
    """List what can be chosen: scenarios, datasets, server, clients, memories, models, metrics ..."""
    from dataclasses import asdict

    from fedcl.catalogue import catalogue

    entries = catalogue(topic) if topic else []
    if as_json:
        typer.echo(json.dumps([asdict(entry) for entry in entries] if topic else _list_all(), indent=2, default=str))
    elif topic:
        typer.echo("\n".join(line for entry in entries for line in _entry_lines(entry)))
    else:
        typer.echo("\n".join(f"{name}: {', '.join(found)}" for name, found in _list_all().items()))
    return OK


@app.command("doctor")
def _doctor() -> int:
    """Examine this machine: versions, cores, GPU, disk, data. Exit 1 if something is broken."""
    from fedcl.doctor import examine

    broken = False
    for finding in examine(Path.cwd() / RUNS):
        typer.echo(f"{finding.level:6} {finding.what}" + (f"; {finding.remedy}" if finding.remedy else ""))
        broken |= finding.level == "broken"
    return FAILED if broken else OK


@app.command("report")
def _report(
    directories: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Run directories.")],
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Where to write; default: report.html.")] = None,
) -> int:
    """Write one HTML page about one or several runs (default: DIR/report.html; of several: ./report.html)."""
    from fedcl.report import write_report

    for directory in directories:
        _check_run(directory)
    out = out or (directories[0] if len(directories) == 1 else Path()) / "report.html"
    write_report(directories, out)
    typer.echo(str(out))
    return OK


def _check_run(directory: Path) -> None:
    if not (directory / "events.jsonl").is_file():
        raise ConfigError(f"{str(directory)!r} is no run directory: it has no events.jsonl")


@app.command("predict")
def _predict(
    directory: Directory,
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help=".npy, .npz (array x) or .csv")],
    task: Annotated[int | None, typer.Option(help="The task that the inputs come from, if it is known.")] = None,
) -> int:
    """Print file, row, class and probability for inputs in the data set's own units (digits: 0 to 16)."""
    import csv

    from fedcl import api
    from fedcl.predict import fit, known_task, predict, read_inputs

    _check_run(directory)
    run = api.load(directory)
    stream, model, classifier = run.stream(), run.model(), run.classifier()
    task = known_task(task, stream)
    inputs = {path: fit(read_inputs(path), stream.dataset.x.shape[1:], str(path)) for path in files}
    lines = csv.writer(sys.stdout, lineterminator="\n")
    lines.writerow(("file", "row", "class", "probability"))
    for path, x in inputs.items():
        for found in predict(model, stream, x, task, classifier):
            lines.writerow((path, found.row, found.label, f"{found.probability:.4f}"))
    return OK


@app.command("check")
def _check(
    reference: Annotated[str, typer.Argument(metavar="PACKAGE:NAME", help="A part of one's own.")],
) -> int:
    """Run the conformance tests on a method, memory, dataset or model of one's own. Exit 1 if one fails."""
    from fedcl.testing import check_reference

    failed = False
    for result in check_reference(reference):
        typer.echo(
            f"{'failed' if result.problem else 'passed'} {result.name}" + f": {result.problem}" * bool(result.problem)
        )
        failed |= bool(result.problem)
    return FAILED if failed else OK


def _complain(message: object) -> None:
    print(f"fedcl: {message}", file=sys.stderr)


def _usage(error: click.ClickException) -> str:
    """Say what was wrong with the arguments in one sentence."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "fedcl"
    return f"{error.format_message().rstrip('.')} (see {command} --help)"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; a user's mistake is one sentence on stderr, never a traceback."""
    try:
        typed = sys.argv[1:] if arguments is None else list(arguments)
        code: Any = app(typed, prog_name="fedcl", standalone_mode=False, obj=shlex.join(["fedcl", *typed]))
        sys.stdout.flush()
        return int(code or OK)
    except ConfigError as error:
        _complain(error)
        return USAGE
    except FederationError as error:
        _complain(error)
        return FAILED
    except click.exceptions.NoArgsIsHelpError as error:
        typer.echo(error.format_message())
        return USAGE
    except click.ClickException as error:
        _complain(_usage(error))
        return USAGE
    except (click.Abort, KeyboardInterrupt):
        _complain("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # The reader left (fedcl list | head): nothing to say, and nothing more may be flushed into the pipe at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
