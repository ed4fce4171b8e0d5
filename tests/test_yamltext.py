"""YAML says what it seems to say: words are words, numbers are numbers, and what could be either is refused."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcl import config, groups
from fedcl.errors import ConfigError
from fedcl.leaves import leaf
from fedcl.overrides import as_text, typed
from fedcl.plain import parse
from fedcl.streams.manifest import read_manifest
from fedcl.sweeps import spec
from fedcl.yamltext import MOST_NODES, WrittenFloat, WrittenInt, read_yaml, unwritten, write_yaml

WORDS = ["no", "yes", "on", "off", "y", "N", "NO", "2024_01_15", "2024-01-15", "1_000", "0x1F", "0b11", "0o17", "1:75",
         "=", "10.0.0.1:80", "1e", "e3", "inf", "nan", "12:30:x", "--1", "1.2.3"]  # fmt: skip
NUMBERS = {"7": 7, "-7": -7, "+7": 7, "1.50": 1.5, "1e3": 1000.0, "1E-3": 0.001, ".5": 0.5, "1.": 1.0, "-0": 0,
           "1.5e3": 1500.0, ".inf": float("inf"), "-.INF": float("-inf")}  # fmt: skip
DOUBTFUL = ["007", "0123", "08", "-012", "0_7", "00.5", "12:30", "1:30:59", "-1:30", "190:20:30.15"]
OTHERS = {"null": None, "~": None, "": None, "true": True, "True": True, "FALSE": False}


@dataclass(frozen=True, kw_only=True)
class Fields:
    """A text, texts, a number of each kind, and a number or a word."""

    text: str = ""
    maybe: str | None = None
    texts: list[str] = field(default_factory=list)
    whole: int = 0
    real: float = 0.0
    either: float | str = 0.0


@pytest.mark.parametrize("word", WORDS)
def test_a_word_is_text_as_typed(word: str) -> None:
    assert read_yaml(f"[{word}, {{{word}: {word}}}]" if ":" not in word else f"- {word}\n- {word}: {word}") == [
        word,
        {word: word},
    ]
    assert typed(f"x={word}") == {"x": word}
    assert leaf(Fields, "texts", read_yaml(f"- {word}"), "here") == [word]


@pytest.mark.parametrize("word", NUMBERS)
def test_a_number_is_a_number_and_text_as_typed_where_text_is_meant(word: str) -> None:
    value = read_yaml(word)
    assert (value, type(unwritten(value))) == (NUMBERS[word], type(NUMBERS[word]))
    assert leaf(Fields, "text", value, "here") == leaf(Fields, "maybe", value, "here") == word
    assert leaf(Fields, "texts", [value, "a"], "here") == [word, "a"]
    assert repr(leaf(Fields, "real", value, "here")) == repr(float(NUMBERS[word]))
    assert repr(leaf(Fields, "either", value, "here")) == repr(float(NUMBERS[word]))
    assert read_yaml(write_yaml([value])) == [value]
    assert leaf(Fields, "text", typed(f"x={as_text(value)}")["x"], "here") == word
    assert json.loads(json.dumps([unwritten(value)])) == [value]


@pytest.mark.parametrize("word", DOUBTFUL)
def test_an_octal_or_sexagesimal_number_is_refused_with_the_remedy(word: str, tmp_path: Path) -> None:
    kind = "a sexagesimal number" if ":" in word else "an octal number"
    said = re.escape(f"{word} could be {kind} or text: quote it, '{word}'")
    with pytest.raises(ConfigError, match=said):
        typed(f"name={word}")
    with pytest.raises(ConfigError, match=said):
        parse(f"stream:\n  dataset: {{classes: [a, {word}]}}\n", "a.yaml")
    (tmp_path / "tasks.yaml").write_text(f"- name: {word}\n  files: [a]\n")
    with pytest.raises(ConfigError, match=said):
        read_manifest(tmp_path / "tasks.yaml")
    assert read_yaml(f"['{word}', \"{word}\"]") == [word, word]


@pytest.mark.parametrize("word", OTHERS)
def test_null_and_truths_are_what_they_are(word: str) -> None:
    assert read_yaml(f"v: {word}") == {"v": OTHERS[word]}


def test_a_truth_is_no_text() -> None:
    with pytest.raises(ConfigError, match=r"name = True: is no text; put it into quotes"):
        config.load("split-digits", ["name=true"])
    assert config.load("split-digits", ["name='true'"]).name == "true"


@pytest.mark.parametrize("word", ["yes", "on", "true"])
def test_a_switch_still_takes_the_words_that_switches_take(word: str) -> None:
    assert config.load("split-digits", [f"stream.shuffle_classes={word}"]).stream.shuffle_classes is True


def test_classes_are_called_what_the_scenario_says(tmp_path: Path) -> None:
    """In a file, in a group of overrides, as an override, and after config.yaml has been written and read again."""
    block = "stream:\n  dataset: {name: local, shape: [2], classes: [no, yes, 2024_01_15, 1e3, '007', 1.50]}\n"
    (tmp_path / "a.yaml").write_text(f"name: 1e3\n{block}  schedule: arrival\n")
    expected = ["no", "yes", "2024_01_15", "1e3", "007", "1.50"]
    scenario = config.load(str(tmp_path / "a.yaml"))
    assert (scenario.stream.dataset.classes, scenario.name) == (expected, "1e3")
    again = config.load(parse(write_yaml(config.as_dict(scenario)), "config.yaml"))
    assert again == scenario
    text = "stream.dataset={name: local, shape: [2], classes: [no, yes, 2024_01_15, 1e3, '007', 1.50]}"
    assert config.load("split-digits", [text, "stream.schedule=arrival"]).stream.dataset.classes == expected
    (tmp_path / "g.yaml").write_text(f"split-digits:\n  mine:\n    {block}".replace("\n  dataset", "\n      dataset"))
    (over,) = groups.chosen("split-digits", {}, f"{tmp_path}/g.yaml:mine")
    plain = config.overlay(config.Scenario, {"stream": {"schedule": "arrival"}}, over)
    assert config.load(plain).stream.dataset.classes == expected


def test_a_sweep_s_axis_hands_on_what_was_typed(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(
        "name: s\nscenarios: [split-digits]\nseeds: [0]\ngrid:\n  name: [no, 1e3, 2024_01_15]\n"
        "  client.optimizer.lr: [1e-2, 0.10]\n"
    )
    sweep = spec.read(str(tmp_path / "s.yaml"))
    points = [config.load(point.scenario, point.overrides) for point in sweep.points]
    assert {(each.name, each.client.optimizer.lr) for each in points} == {
        (name, lr) for name in ("no", "1e3", "2024_01_15") for lr in (0.01, 0.1)
    }


@settings(max_examples=300)
@given(st.text(max_size=12) | st.from_regex(r"[-+0-9eE_.:xo~]{1,8}", fullmatch=True))
def test_any_text_is_written_so_that_both_readings_give_it_back(text: str) -> None:
    written = write_yaml({"a": [text, {text: text}]})
    assert read_yaml(written) == yaml.safe_load(written) == {"a": [text, {text: text}]}
    assert typed(f"x={as_text(text)}") == {"x": text}


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
))  # fmt: skip
def test_any_plain_value_comes_back_with_its_type(value: Any) -> None:
    for text in (write_yaml({"v": value}), write_yaml({"v": value}, default_flow_style=True, width=10**9)):
        again = read_yaml(text)["v"]
        assert repr(unwritten(again)) == repr(value)


@settings(max_examples=200)
@given(st.text(st.sampled_from("0123456789.:_eE+-xonyt~ "), max_size=6))
def test_a_word_means_the_same_as_in_yaml_1_1_or_is_text_as_typed_or_refused(word: str) -> None:
    said = parsed(word)
    old = yaml.safe_load(f"v: '{word}'")["v"] if said == word.strip() else said
    assert said in ("refused", word.strip(), old) or isinstance(said, int | float | list | dict | None)
    if isinstance(said, int | float) and not isinstance(said, bool):
        assert said == float(word)


def parsed(word: str) -> Any:
    try:
        return read_yaml(f"v: {word}")["v"]
    except yaml.YAMLError:
        return "refused"


# What is no plain value


@pytest.mark.parametrize(
    "text",
    ["a: !!timestamp 2020-01-01", "a: !!omap [b: 1]", "a: !!set {b}", "a: !!binary aaaa", "a: !!python/name:os.system",
     "a: !x 1", "a: !!bool maybe", "a: 1\na: 2", "a: &b [*b]", "a: [", "? [1]\n: 2"],
)  # fmt: skip
def test_tags_duplicates_and_circles_are_one_sentence(text: str) -> None:
    with pytest.raises(ConfigError) as told:
        parse(text, "a.yaml")
    assert len(str(told.value).splitlines()) == 1


@pytest.mark.parametrize("text", ["[" * 900 + "]" * 900, "{a: " * 900 + "}" * 900], ids=["lists", "blocks"])
def test_deep_nesting_is_one_sentence(text: str) -> None:
    for refused in (lambda: parse(f"a: {text}", "a.yaml"), lambda: typed(f"a={text}")):
        with pytest.raises(ConfigError) as told:
            refused()
        assert len(str(told.value)) < 500


def test_aliases_of_aliases_are_counted() -> None:
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    with pytest.raises(ConfigError, match=f"more than {MOST_NODES:,} values"):
        parse("\n".join(lines), "a.yaml")
    assert parse("a: &a {x: 1}\nb: {<<: *a, y: 2}", "a.yaml") == {"a": {"x": 1}, "b": {"x": 1, "y": 2}}


def test_other_settings_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDCL_TEST_NAME", "here")
    assert parse("a: ${b}\nb: 3\nc: ${oc.env:FEDCL_TEST_NAME}", "a.yaml") == {"a": 3, "b": 3, "c": "here"}
    assert typed("a=${oc.env:FEDCL_TEST_NAME}") == {"a": "here"}


def test_numbers_know_how_they_were_written() -> None:
    whole, real = read_yaml("[+3, 1e3]")
    assert (type(whole), whole.text, type(real), real.text) == (WrittenInt, "+3", WrittenFloat, "1e3")
