"""What a stranger asks: `explain`, `list`, `help`, the page of every setting, and a scenario with comments."""

import json
import shlex
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import click
import pytest
import typer
import yaml

from fedcl import manual, registry
from fedcl.catalogue import TOPICS, catalogue
from fedcl.cli import app, main
from fedcl.cli_help import EXAMPLES, ORDER
from fedcl.config import Scenario, as_dict, build, load, overlay
from fedcl.overrides import typed
from fedcl.schema import Key, known, number_of
from fedcl.shipped import scenario_names, sweep_names

PAGE = Path(__file__).parents[1] / "docs" / "settings.md"
BUILT_IN = {name for names in registry.BUILT_IN.values() for name in names}
KEYS = [each for each in known(Scenario) if not each.part or each.part in BUILT_IN]
Printed = Callable[..., str]


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Printed:
    """Return what a command prints on a terminal of 80 columns; it must end well."""
    monkeypatch.setenv("COLUMNS", "80")

    def run(*words: str) -> str:
        code = main(words)
        out, err = capsys.readouterr()
        assert (code, err) == (0, ""), err
        return out

    return run


def test_the_page_of_every_setting_is_what_the_command_prints() -> None:
    assert PAGE.read_text(encoding="utf-8") == manual.page(), f"write it again: {manual.COMMAND}"


def test_every_setting_says_what_it_is_for() -> None:
    assert len({each.key for each in KEYS}) > 140
    assert [(each.part, each.key) for each in KEYS if not each.meaning] == []


@pytest.mark.parametrize("each", KEYS, ids=lambda each: f"{each.part}:{each.key}")
def test_the_example_of_a_setting_can_be_typed_and_changes_it(each: Key) -> None:
    """With the part that brings it; a scenario that needs more than the one setting may still refuse the whole."""
    if each.part == "explicit" or len(each.choices) == 1:
        return  # the one must have its clients' entries, the other can be nothing else
    plain, before = with_part(each.part, each.key.rpartition(".")[0] if each.part else "")
    after = build(Scenario, overlay(Scenario, plain, typed(each.example)))
    assert before != as_dict(after), each.example


@cache
def with_part(part: str, block: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the default scenario with a part in a block, as what is typed and as what it comes to."""
    plain: dict[str, Any] = {}
    if part:
        kind = next(other.kind for other in KEYS if other.key == block)
        plain = overlay(Scenario, plain, typed(f"{block}={{{registry.chooser(kind)}: {part}}}"))
    return plain, as_dict(build(Scenario, plain))


def test_a_setting_is_explained_in_a_few_lines(printed: Printed) -> None:
    assert printed("explain", "client.batch").splitlines() == [
        "client.batch",
        "  meaning  samples a step; more than a client has: all of them",
        "  type     whole number, 1 to 1,000,000",
        "  default  16",
        "  example  client.batch=32",
    ]
    assert printed("explain", "client.batch=8") == printed("explain", "client.batch")


@pytest.mark.parametrize("word", ["client.method", "client.method.alpha", "engine", "server", "er", "split-digits"])
def test_parts_blocks_and_names_are_explained_within_eighty_columns(printed: Printed, word: str) -> None:
    said = printed("explain", word)
    assert word.rpartition(".")[2] in said
    assert max(map(len, said.splitlines())) <= (100 if "." not in word and word not in manual.blocks() else 80)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("batch_size", "'batch_size' is no setting; did you mean 'client.batch'?"),
        ("stream.alpha", "'stream.alpha' is no setting; did you mean 'stream.partition.alpha'?"),
        ("clint", "'clint' is no setting; did you mean 'client'?"),
        ("fedprx", "'fedprx' is no setting, and nothing to list under 'fedprx'; did you mean 'fedprox'?"),
    ],
)
def test_what_is_unknown_is_told_with_the_nearest(capsys: pytest.CaptureFixture[str], word: str, said: str) -> None:
    assert main(["explain", word]) == 2
    assert capsys.readouterr().err.strip() == f"fedcl: {said}"


@pytest.mark.parametrize("scenario", scenario_names())
def test_a_shown_scenario_is_commented_and_the_same_scenario(printed: Printed, scenario: str) -> None:
    said = printed("show", scenario)
    assert yaml.safe_load(said) == as_dict(load(scenario))
    assert "  batch: " in said
    assert "  # samples a step" in said
    assert max(map(len, said.splitlines())) <= 120


def test_a_lone_number_for_a_part_is_its_own_number() -> None:
    assert number_of(Scenario, "client.memory", 200) == "client.memory.size"
    assert number_of(Scenario, "client.memory", True) == ""
    assert number_of(Scenario, "client.batch", 3) == ""


def test_streams_groups_and_sweeps_are_listed(printed: Printed) -> None:
    assert "  domain-incremental: the classes stay, the inputs change" in printed("list", "streams")
    groups = printed("list", "groups")
    assert "  joint: any scenario: upper bound: every visit trains" in groups
    assert "  best-er: split-digits, the best settings that a search has found" in groups
    assert {entry["name"] for entry in json.loads(printed("list", "sweeps", "--json"))} == set(sweep_names())


def test_the_kinds_of_streams_are_those_of_the_setting() -> None:
    choices = next(each.choices for each in KEYS if each.key == "stream.kind")
    assert [entry.name for entry in catalogue("streams")] == choices


@pytest.mark.parametrize("name", ["er", "sgd", "split-digits", "demo", "joint", "task-incremental", "acc"])
def test_a_name_is_listed_wherever_it_stands(printed: Printed, name: str) -> None:
    found = json.loads(printed("list", name, "--json"))
    assert found
    assert {entry["name"] for entry in found} == {name}
    assert {entry["topic"] for entry in found} <= set(TOPICS)
    lines = printed("list", name).splitlines()
    assert [line for line in lines if line.startswith(f"  {name}: ")]


def commands() -> dict[str, click.Command]:
    group = typer.main.get_command(app)
    assert isinstance(group, click.Group)
    return group.commands


@pytest.mark.parametrize("name", [*sorted(commands()), "server nodes", "server nodes add"])
def test_help_is_whole(printed: Printed, name: str) -> None:
    """No escapes, nothing cut short, within 80 columns; `fedcl help NAME` is what `fedcl NAME --help` is."""
    said = printed("help", *name.split())
    assert "\\" not in said
    assert "..." not in said.replace("]...", "").replace("FILE...", "").replace("DIR...", "").replace(
        "NAME...", ""
    ).replace("NAME,...", "").replace("N,...", "").replace("ARGS...", "").replace(".pub...", "")
    rows = said.partition("\nExamples:")[0].splitlines()
    assert max(map(len, rows)) <= 80
    if name != "server":
        assert printed(*name.split(), "--help") == said
    if arguments := said.partition("Arguments:\n")[2].partition("\n\n")[0]:
        assert all(len(line.split("  ")) > 1 for line in arguments.splitlines()), arguments


def test_the_list_of_commands_is_whole_and_in_order(printed: Printed) -> None:
    said = printed("help")
    assert said == printed("--help")
    assert "..." not in said.partition("Commands:")[2]
    assert set(ORDER) == set(commands())


@pytest.mark.parametrize("line", [line for lines in EXAMPLES.values() for line in lines])
def test_examples_are_commands_that_parse(line: str) -> None:
    words = shlex.split(line, comments=True)
    assert words[0] == "fedcl"
    command = commands()[words[1]]
    if isinstance(command, click.Group):
        return
    with command.make_context(words[1], words[2:], resilient_parsing=True) as context:
        assert context.params


def test_help_on_what_is_no_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["help", "reprot"]) == 2
    assert capsys.readouterr().err == "fedcl: 'reprot' is no command; did you mean 'report'?\n"
