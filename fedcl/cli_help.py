"""How commands tell what they do: whole texts, no escapes, what arguments are, examples; and `fedcl help`."""

import inspect
from typing import Annotated, Any, get_args

import click
import typer
from typer.core import TyperCommand, TyperGroup

from fedcl.errors import ConfigError, nearest

OK = 0
ORDER = (
    *("run", "show", "list", "explain", "sweep", "report", "watch", "predict"),
    *("check", "server", "client", "certs", "doctor", "bench", "help"),
)
# What each command is typed like. Each line of it is a command that can be typed as it stands, or # and what it does.
EXAMPLES: dict[str, tuple[str, ...]] = {
    "run": (
        "fedcl run split-digits",
        "fedcl run split-digits client.method=er client.memory.size=50 seed=1",
        "fedcl run split-digits group=joint        # an oracle beside it",
        "fedcl run --resume runs/split-digits/20260101-120000-1a2b3c4d",
    ),
    "show": ("fedcl show split-digits", "fedcl show split-digits --plan", "fedcl show split-digits > mine.yaml"),
    "list": ("fedcl list", "fedcl list clients", "fedcl list er", "fedcl list groups"),
    "explain": ("fedcl explain client.memory.size", "fedcl explain client", "fedcl explain er"),
    "predict": ("fedcl predict RUN pictures/", "fedcl predict RUN new.csv > predicted.csv"),
    "check": ("fedcl check focal_replay:FocalReplay",),
    "certs": ("fedcl certs certs --host fed.example.org --nodes clinic-a clinic-b",),
    "client": (
        "fedcl client --server 127.0.0.1:8000 --state site-a",
        "fedcl client --server fed.example.org:8000 --state site --tls ca.crt --key clinic-a.key --data /data/scans",
    ),
    "bench": ("fedcl bench --workload mlp --clients 100", "fedcl bench --tune split-digits"),
    "sweep": ("fedcl sweep demo", "fedcl sweep demo --dry-run", "fedcl sweep demo client.epochs=2 --out runs/twice"),
    "watch": ("fedcl watch runs/sweeps/demo", "fedcl watch runs/mine --once"),
    "report": (
        "fedcl report runs                         # all runs below it, one page",
        "fedcl report runs/finetune runs/er --out both.html",
        "fedcl report runs/sweeps/demo --figures figures",
    ),
    "help": ("fedcl help run",),
}


def _sentence(command: click.Command) -> str:
    """Return the first sentence of a command's help, whole."""
    paragraph = " ".join((command.help or "").strip().split("\n\n")[0].split())
    return paragraph.split(". ")[0].rstrip(".")


def _argument_help(command: click.Command, name: str) -> str:
    """Return the help of an argument as its function declares it (click 8.5 overwrites what typer gives to it)."""
    parameter = inspect.signature(command.callback).parameters.get(name) if command.callback else None
    declared = get_args(parameter.annotation)[1:] if parameter else ()
    return next((each.help for each in declared if getattr(each, "help", None)), "")


class _Whole(click.Command):
    """Help whose texts are whole."""

    def get_short_help_str(self, limit: int = 45) -> str:
        """Return the first sentence; the list of commands wraps it."""
        return _sentence(self)

    def get_help(self, ctx: click.Context) -> str:
        """Return the help: typer escapes brackets for another printer."""
        return super().get_help(ctx).replace("\\[", "[")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write what arguments, options and commands are."""
        rows: dict[str, list[tuple[str, str]]] = {"argument": [], "option": []}
        for each in self.get_params(ctx):
            if record := each.get_help_record(ctx):
                told = "" if getattr(each, "help", None) else _argument_help(self, str(each.name))
                rows[each.param_type_name].append((record[0], f"{told}  {record[1]}".strip()))
        for kind, found in rows.items():
            if found:
                with formatter.section(f"{kind.capitalize()}s"):
                    formatter.write_dl(found)
        if isinstance(self, click.Group):
            self.format_commands(ctx, formatter)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples, each line as it stands."""
        if examples := EXAMPLES.get(self.name or ""):
            formatter.write("\nExamples:\n" + "".join(f"  {each}\n" for each in examples))


class Command(_Whole, TyperCommand):
    """A command with whole help."""


class Group(_Whole, TyperGroup):
    """A group of commands with whole help."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands, first those that are needed first."""
        return sorted(super().list_commands(ctx), key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))


def dressed(app: typer.Typer) -> None:
    """Let every command of an app that names no class of its own tell its help so."""
    for each in app.registered_commands:
        each.cls = each.cls if each.cls and issubclass(each.cls, _Whole) else Command


def help_on(
    context: typer.Context,
    command: Annotated[list[str] | None, typer.Argument(metavar="[COMMAND]", help="A command; default: all.")] = None,
) -> int:
    """Print the help of a command."""
    above: Any = context.find_root()
    for name in command or ():
        known = getattr(above.command, "commands", {})
        if name not in known:
            raise ConfigError(f"{name!r} is no command{nearest(name, known)}")
        above = click.Context(known[name], info_name=name, parent=above)
    typer.echo(above.command.get_help(above))
    return OK
