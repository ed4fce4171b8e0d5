"""`fedcl list`."""

import json
from typing import Annotated

import typer

from fedcl import completion

OK = 0


def listed(
    topic: Annotated[
        str | None,
        typer.Argument(
            metavar="[TOPIC]",
            help="A topic, or a name: clients, er; default: all names.",
            autocompletion=completion.topics,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> int:
    """List what can be chosen: scenarios, sweeps, groups, streams, datasets, methods, memories, models, metrics.

    Of each: what it is, its paper, what it needs, and what verifies it: an oracle (a closed form, a computation by hand
    or an equivalence in a test), a figure (measured in a setting of our own), the paper (measured in its own setting).
    --json says where each stands.
    """  # fmt: skip
    from dataclasses import asdict

    from fedcl import manual
    from fedcl.catalogue import TOPICS, catalogue, named

    if topic is None:
        names = {each: [entry.name for entry in catalogue(each)] for each in TOPICS}
        plain = (f"{each}: {', '.join(dict.fromkeys(found))}" for each, found in names.items())
        typer.echo(json.dumps(names, indent=2) if as_json else "\n".join(plain))
    elif topic in TOPICS:
        entries = catalogue(topic)
        lines = [line for entry in entries for line in manual.entry_lines(entry)]
        typer.echo(json.dumps([*map(asdict, entries)], indent=2, default=str) if as_json else "\n".join(lines))
    else:
        found = named(topic)
        plain_entries = [{"topic": where, **asdict(entry)} for where, entry in found]
        typer.echo(json.dumps(plain_entries, indent=2, default=str) if as_json else manual.told(found))
    return OK
