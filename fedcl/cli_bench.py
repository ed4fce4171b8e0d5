"""The command `fedcl bench`."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from fedcl import completion
from fedcl.distribution import install, installed
from fedcl.errors import ConfigError

WIDTH = 120  # of the table where nobody reads along


def _names(text: str | None) -> list[str]:
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def _numbers(text: str) -> list[int]:
    if not all(name.isdigit() for name in _names(text)):
        raise ConfigError(f"--clients {text!r}: must be numbers with commas between them, as 100,1000")
    return [int(name) for name in _names(text)]


def bench(
    overrides: Annotated[
        list[str] | None, completion.settings("Settings to change, for everybody: engine.kind=ray")
    ] = None,
    workload: Annotated[
        str | None,
        typer.Option(metavar="NAME,...", help="mlp, cnn, derpp, fot, registered, sums; default: the first four."),
    ] = None,
    clients: Annotated[str, typer.Option(metavar="N,...", help="Clients a round.")] = "100,1000",
    against: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...", help="flower, pfl, loop, loop2, limit (mlp, cnn); finetune (derpp); fedavg (fot)."
        ),
    ] = None,
    pairs: Annotated[int, typer.Option(help="How often both run, in turn.")] = 5,
    rounds: Annotated[int | None, typer.Option(help="Rounds of a run, the 2 warm ones included.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the figures as JSON.")] = None,
    tune: Annotated[
        str | None,
        typer.Option(
            metavar="SCENARIO",
            help="Find its fastest engine settings on this machine instead.",
            autocompletion=completion.scenarios,
        ),
    ] = None,
) -> int:
    """Measure client updates per second beside Flower's simulation, pfl, plain loops and the compute limit.

    Each runs in a process of its own on the same weights, data and batches; final weights must agree before anything is
    timed. derpp and fot are compared with fedcl without the method: what replay and projection cost.
    sums: a server that adds up updates of a million parameters, and nothing else.
    """
    from rich.console import Console

    from fedcl.bench import runner
    from fedcl.bench.table import table
    from fedcl.journal import write_json

    if tune:
        from fedcl.bench.tune import tune as tuned

        with Console(stderr=True).status("") as status:
            text = tuned(tune, overrides or (), rounds, status.update)
        typer.echo(text)
        return 0
    asked = runner.cases(_names(workload), _numbers(clients), _names(against), rounds, overrides or ())
    if not against and installed("pfl") is None:
        typer.echo(f"fedcl: note: pfl is left out, as it is not installed; {install('bench')}", err=True)
    found: dict[str, Any] = {}

    def done(so_far: dict[str, Any]) -> None:
        found.update(so_far)
        if out:
            write_json(out, so_far)

    try:
        with Console(stderr=True).status("") as status:
            runner.bench(asked, pairs=pairs, note=status.update, done=done)
    finally:  # what was measured before a failure counts
        if found:
            width = None if sys.stdout.isatty() else WIDTH
            Console(highlight=False, width=width).print(table(found["results"]))
    return 0
