"""`fedcl explain`, and the settings of `fedcl show` with what each is for."""

import textwrap
from typing import Annotated, Any

import typer

from fedcl import completion
from fedcl.errors import ConfigError

OK = 0


def explain(
    key: Annotated[
        str | None,
        typer.Argument(
            metavar="[KEY]",
            help="A setting, a block or a part: client.batch, client, er; default: all.",
            autocompletion=completion.keys,
        ),
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="All settings as a page: docs/settings.md.")] = False,
) -> int:
    """Explain a setting: its type, default, meaning, and an example.

    Examples:
      fedcl explain client.memory.size
      fedcl explain client             (every setting of the block)
      fedcl explain er                 (what can be chosen under this name)
    """
    from fedcl import manual

    if markdown and key:
        raise ConfigError("--markdown writes the page of every setting: leave out KEY")
    typer.echo(manual.page().rstrip() if markdown else manual.explained(key))
    return OK


def commented(plain: dict[str, Any], width: int = 100) -> str:
    """Return a resolved scenario as YAML, each setting with what it is for: behind it, above it where that is too long.

    What comes out is a scenario file: comments are comments.
    """
    from fedcl import manual

    return "\n".join(_lines(plain, manual.meanings(plain), "", width))


def _lines(block: dict[str, Any], meanings: dict[str, str], path: str, width: int) -> list[str]:
    from fedcl.overrides import as_text

    lines, margin = [], "  " * path.count(".")
    for name, value in block.items():
        meaning = meanings.get(path + name, "")
        nested = isinstance(value, dict) and bool(value)
        line = f"{margin}{as_text(name)}:" + ("" if nested else f" {as_text(value)}")
        told = f"{line}  # {meaning}" if meaning else line
        if len(told) > width and meaning:
            lines += textwrap.wrap(meaning, width, initial_indent=f"{margin}# ", subsequent_indent=f"{margin}# ")
            told = line
        lines.append(told)
        if nested:
            lines += _lines(value, meanings, f"{path}{name}.", width)
    return lines
