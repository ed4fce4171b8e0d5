"""Scenario files: what is refused and how it is said, what survives a round trip, what the hash covers."""

import string
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal
from unittest.mock import patch

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcl.config import Scenario, as_dict, build, config_hash, load, overlay, read, scenario_names
from fedcl.errors import ConfigError, nearest
from fedcl.leaves import leaf
from fedcl.settings import OutOfRange, Settings, setting


def refusal(*overrides: str, scenario: Any = "split-digits") -> str:
    with pytest.raises(ConfigError) as caught:
        load(scenario, overrides)
    return str(caught.value)


def dotted_keys(plain: dict[str, Any], prefix: str = "") -> list[str]:
    keys = []
    for name, value in plain.items():
        keys.append(prefix + name)
        if isinstance(value, dict):
            keys += dotted_keys(value, f"{prefix}{name}.")
    return keys


def test_the_shipped_scenario_is_the_documented_one():
    scenario = load("split-digits")
    assert (scenario.stream.tasks, scenario.stream.clients, scenario.stream.schedule.rounds_per_task) == (5, 5, 30)
    assert (scenario.client.epochs, scenario.client.batch, scenario.client.memory.size) == (3, 16, 24)
    assert (scenario.model.width, scenario.server.clients_per_round, scenario.evaluate.every) == (100, None, 5)
    assert scenario.stream.partition.alpha == 0.5


def test_every_key_has_a_default():
    assert load({}) == load({"name": "unnamed", "seed": 0})


@pytest.mark.parametrize("name", scenario_names())
def test_shipped_scenarios_load_and_name_themselves(name):
    assert load(name).name == name


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("clinet.epochs=2", ("'clinet'", "did you mean 'client'")),
        ("client.epoch=2", ("'client.epoch'", "did you mean 'epochs'")),
        ("client.memory.sizes=2", ("'client.memory.sizes'", "did you mean 'size'")),
        ("batch_size=32", ("'batch_size' (= 32)", "did you mean 'client.batch'")),
        ("client.batch_size=32", ("'client.batch_size' (= 32)", "did you mean 'client.batch'")),
        ("num_clients=9", ("'num_clients'", "did you mean 'stream.clients'")),
        ("learning_rate=.1", ("'learning_rate'", "did you mean 'client.optimizer.lr'")),
        ("stream.alpha=.5", ("'stream.alpha' (= 0.5)", "did you mean 'stream.partition.alpha'")),
        ("memory=200", ("'memory' (= 200)", "did you mean 'client.memory.size'")),
        ("client.memory=200", ("client.memory = 200", "did you mean 'client.memory.size'")),
        ("client.optimizer=0.1", ("client.optimizer = 0.1", "did you mean 'client.optimizer.lr'")),
        ("stream.dataset=fmnist", ("'fmnist'", "did you mean 'fashion-mnist'")),
        ("stream.dataset=FashionMNIST", ("'FashionMNIST'", "did you mean 'fashion-mnist'")),
        ("model=ResNet", ("'ResNet'", "did you mean 'resnet18'")),
        ("client.lr=2", ("'client.lr'", "client.optimizer.lr")),
        ("lr=2", ("'lr'", "client.optimizer.lr")),
        ("client.method=derr", ("derr", "did you mean 'der'")),
        ("client.method.alpah=1", ("'client.method.alpah'", "did you mean 'alpha'")),
        ("stream.dataset=digit", ("stream.dataset", "'digit'", "did you mean 'digits'")),
        ("stream.kind=classes", ("stream.kind", "classes", "class-incremental")),
        ("group=jiont", ("group", "'jiont'", "did you mean 'joint'")),
        ("model=no.such.package:Thing", ("model", "no.such.package:Thing")),
        ("model=os.path:join", ("model", "os.path:join")),
    ],
)
def test_unknown_names_are_told_with_the_nearest(override, expected):
    said = refusal(override)
    assert "\n" not in said
    for part in expected:
        assert part in said


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("client.epochs=many", "client.epochs", "many"),
        ("client.epochs=1.5", "client.epochs", "1.5"),
        ("client.epochs=[1]", "client.epochs", "[1]"),
        ("client.epochs=null", "client.epochs", "None"),
        ("client.epochs=true", "client.epochs", "True"),
        ("client=3", "client", "3"),
        ("stream.shuffle_classes=perhaps", "stream.shuffle_classes", "perhaps"),
        ("client.optimizer.lr=fast", "client.optimizer.lr", "fast"),
        ("engine.workers=some", "engine.workers", "some"),
        ("client.memory.policy=3", "client.memory.policy", "3"),
        ("model.personal=head", "model.personal", "head"),
    ],
)
def test_wrong_types_name_key_and_value(override, key, value):
    said = refusal(override)
    assert "\n" not in said
    assert key in said
    assert value in said


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("client.epochs=0", "client.epochs = 0: must be at least 1"),
        ("client.memory.size=-1", "client.memory.size = -1: must be at least 0"),
        ("client.optimizer.lr=.nan", "client.optimizer.lr = nan: must be finite"),
        ("client.optimizer.lr=.inf", "client.optimizer.lr = inf: must be finite"),
        ("client.clip=0", "client.clip = 0.0: must be above 0"),
        ("engine.gpus_per_worker=-1", "engine.gpus_per_worker = -1.0: must be at least 0"),
        ("seed=-1", "seed = -1: must be at least 0"),
        ("stream.clients=0", "stream.clients = 0: must be at least 1"),
        ("server.clients_per_round=6", "server.clients_per_round = 6: must be at most stream.clients = 5"),
        ("server.min_clients=6", "server.min_clients = 6: must be at most the 5 clients asked in a round"),
        (
            "client.memory.size=0",
            "client.memory.size = 0: method 'derpp' replays from a memory; set client.memory.size above 0",
        ),
        ("engine={stack: 9, cohort: 8}", "engine.stack = 9: must be at most engine.cohort = 8"),
    ],
)
def test_impossible_values_are_told_in_one_sentence(override, expected):
    assert refusal(override) == expected


def test_der_without_a_memory_is_refused_and_finetune_is_not():
    assert "method 'der'" in refusal("client.method=der", "client.memory.size=0")
    assert load("split-digits", ["client.method=finetune", "client.memory.size=0"]).client.memory.size == 0


@pytest.mark.parametrize("text", ["client.epochs", "=3", "client..epochs=3", "a: b", "x={", "x=[1", "x=${y}"])
def test_malformed_overrides_are_one_sentence(text):
    said = refusal(text)
    assert "\n" not in said


@pytest.mark.parametrize(
    "text", ["[1, 2]", "0", "a: [", "just words", "1: 2", "client: [1]", "a: !!python/name:os.system"]
)
def test_malformed_files_are_one_sentence(tmp_path, text):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    assert "\n" not in refusal(scenario=str(path))


def test_a_file_that_is_not_text_or_not_there_is_one_sentence(tmp_path):
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x80" * 20)
    assert "binary.yaml" in refusal(scenario=str(tmp_path / "binary.yaml"))
    assert "did you mean 'split-digits'" in refusal(scenario="split-digit")
    assert "neither shipped nor a file" in refusal(scenario="x" * 5000)


def test_a_whole_number_is_a_fraction_too():
    assert load("split-digits", ["engine.gpus_per_worker=1"]).engine.gpus_per_worker == 1.0
    assert load("split-digits", ["client.clip=2"]).client.clip == 2.0


def test_overrides_lie_on_the_file_and_the_last_one_wins():
    scenario = load("split-digits", ["client.epochs=1", "client.optimizer.lr=0.5", "client.epochs=2"])
    assert (scenario.client.epochs, scenario.client.optimizer.lr, scenario.client.batch) == (2, 0.5, 16)


def test_naming_another_part_drops_the_settings_of_the_old_one():
    assert load("split-digits", ["model=linear"]).model != load("split-digits").model
    kept = load("split-digits", ["client.memory.size=7"])
    assert (kept.client.memory.size, type(kept.client.memory).__name__) == (7, "Reservoir")
    replaced = load("split-digits", ["stream.partition=shards"])
    assert replaced.stream.partition.per_client == 2
    both = load("split-digits", ["stream.partition=shards", "stream.partition.per_client=3"])
    assert both.stream.partition.per_client == 3


def test_overlay_keeps_what_is_not_named():
    base = {"client": {"method": "derpp", "epochs": 3}, "model": {"name": "mlp", "width": 100}}
    over = {"client": {"method": {"name": "derpp", "alpha": 0.3}}, "model": "cnn"}
    assert overlay(Scenario, base, over) == {
        "client": {"method": {"name": "derpp", "alpha": 0.3}, "epochs": 3},
        "model": {"name": "cnn"},
    }
    assert base["model"] == {"name": "mlp", "width": 100}


def test_groups_come_before_overrides():
    joint = load("split-digits", ["group=joint"])
    assert (joint.stream.joint, type(joint.client.method).__name__) == (True, "Finetune")
    assert type(load("split-digits", ["client.method=er", "group=joint"]).client.method).__name__ == "ER"
    assert load("split-digits", ["group=[joint, local-only]"]).model.personal == ["*"]


def test_a_scenario_brings_its_own_groups():
    plain = {"client": {"epochs": 4}, "groups": {"small": {"client": {"epochs": 1}}}}
    assert load(plain).client.epochs == 4
    assert load(plain, ["group=small"]).client.epochs == 1


@pytest.mark.parametrize("name", scenario_names())
@pytest.mark.parametrize("groups", ["[]", "joint", "local-only", "single-task"])
def test_a_resolved_configuration_gives_the_same_scenario(name, groups):
    scenario = load(name, [f"group={groups}"])
    again = load(yaml.safe_load(yaml.safe_dump(as_dict(scenario))))
    assert again == scenario
    assert config_hash(again) == config_hash(scenario)
    assert build(Scenario, as_dict(scenario)) == scenario


@pytest.mark.parametrize(
    "override",
    ["engine.kind=inline", "engine.workers=7", "engine.address=auto", "engine.gpus_per_worker=0.5", "data.root=x"],
)
def test_the_hash_ignores_where_a_run_happens(override):
    assert config_hash(load("split-digits", [override])) == config_hash(load("split-digits"))


@pytest.mark.parametrize(
    "override",
    ["seed=1", "engine.cohort=16", "engine.stack=1", "client.optimizer.lr=0.2", "client.method=er", "name=x"],
)
def test_the_hash_covers_what_results_depend_on(override):
    assert config_hash(load("split-digits", [override])) != config_hash(load("split-digits"))


def test_a_setting_out_of_range_carries_its_name():
    from dataclasses import dataclass

    @dataclass(frozen=True, kw_only=True)
    class Share(Settings):
        share: float = setting(0.5, "a share", above=0, high=1)

    assert Share(share=1).share == 1
    for value, reason in ((0, "must be above 0"), (1.5, "must be at most 1"), (float("nan"), "must be finite")):
        with pytest.raises(OutOfRange) as caught:
            Share(share=value)
        assert (caught.value.name, caught.value.reason) == ("share", reason)


def test_all_mistakes_are_told_at_once():
    said = refusal("bach=3", "client.epoch=2", "client.batch=x", "model=foo", "server.weights=size")
    assert [line.split(" (")[0].split(":")[0] for line in said.splitlines()] == [
        "unknown key 'bach'",
        "model.name = 'foo'",
        "unknown key 'client.epoch'",
        "client.batch = 'x'",
        "server.weights = 'size'",
    ]


def test_nearest_names_the_closest_word_or_all():
    assert nearest("derr", ["er", "der", "fedprox"]) == "; did you mean 'der'?"
    assert nearest("zzz", ["b", "a"]) == "; known: a, b"
    assert nearest("x", []) == ""


def test_every_setting_has_a_help_text():
    def blocks(node: Any) -> list[Any]:
        inner = [getattr(node, each.name) for each in fields(node)]
        return [node, *(deeper for value in inner if is_dataclass(value) for deeper in blocks(value))]

    for block in blocks(load("split-digits")):
        for each in fields(block):
            described = each.metadata.get("help") or is_dataclass(getattr(block, each.name))
            assert described, f"{type(block).__name__}.{each.name}"


KEYS = dotted_keys(as_dict(load("split-digits")))
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["auto", "er", "iid", "*"]),
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)


def one_sentence_or_scenario(plain: Any, overrides: tuple[str, ...] = ()) -> None:
    said = "a scenario"
    try:
        load(plain, overrides)
    except ConfigError as error:
        said = str(error)
    assert said
    assert all(said.splitlines())  # each mistake is a line


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=4))
def test_any_values_under_known_keys_give_a_scenario_or_one_sentence(chosen):
    plain: dict[str, Any] = {}
    for key, value in chosen.items():
        block = plain
        *path, last = key.split(".")
        for name in path:
            if not isinstance(block.get(name), dict):
                block[name] = {}
            block = block[name]
        block[last] = value
    one_sentence_or_scenario(plain)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.text(max_size=10), VALUES, max_size=4))
def test_any_keys_give_a_scenario_or_one_sentence(plain):
    one_sentence_or_scenario(plain)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(KEYS), st.text(string.printable, max_size=12))
def test_any_override_text_gives_a_scenario_or_one_sentence(key, value):
    one_sentence_or_scenario("split-digits", (f"{key}={value}",))


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=20))
def test_any_text_as_an_override_gives_a_scenario_or_one_sentence(text):
    one_sentence_or_scenario("split-digits", (text,))


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=60))
def test_any_text_as_a_file_gives_a_scenario_or_one_sentence(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(text, encoding="utf-8", newline="")
    one_sentence_or_scenario(str(path))


@dataclass(frozen=True, kw_only=True)
class Leaves:
    """A field of every type that settings have."""

    whole: int = 0
    real: float = 0.0
    yes: bool = False
    text: str = ""
    some: int | None = None
    mixed: float | Literal["auto"] = "auto"
    counted: int | Literal["auto"] = "auto"
    either: float | str | None = None
    choice: Literal["a", "b"] = "a"
    numbers: list[int] = field(default_factory=list)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([each.name for each in fields(Leaves)]),
    VALUES | st.sampled_from(["a", "c", "auto", "???", "${whole}", "${oc.env:HOME}", r"\${whole}", -0.0, 10**400, [1]]),
)
def test_a_value_that_is_taken_as_it_is_would_be_left_alone_by_omegaconf(name, value):
    """Value and type, or the refusal, are those of OmegaConf itself."""

    def said() -> str:
        try:
            return repr(leaf(Leaves, name, value, "here"))
        except ConfigError as error:
            return f"refused: {error}"

    with patch("fedcl.leaves._fits", lambda value, declared: False):
        expected = said()
    assert said() == expected


def test_reading_a_scenario_does_not_change_it():
    assert read("split-digits") == read("split-digits")


def test_a_part_without_a_name_is_the_default_one_with_these_settings() -> None:
    """`memory: {size: 500}` says what it seems to say; a name that is none is an error still."""
    memory = load({"client": {"memory": {"size": 500}}}).client.memory
    assert (type(memory).__name__, memory.size) == ("Reservoir", 500)
    with pytest.raises(ConfigError, match=r"client\.memory\.policy = None: must be a name; known: class-balanced"):
        load({"client": {"memory": {"policy": None, "size": 500}}})
