"""Whatever stands in a scenario file: a run, or one clear sentence. And the scenarios that are shipped."""

import math
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedcl import api
from fedcl.cli import main
from fedcl.config import Plain, as_dict, load, scenario_names
from fedcl.errors import ConfigError
from tests.federations import tiny

Values = st.SearchStrategy[Any]


def one_of(*values: Any) -> Values:
    return st.sampled_from(values)


def some(**strategies: Values) -> Values:
    """Draw some of the keys."""
    return st.fixed_dictionaries({}, optional=strategies)


def named(chooser: str, **parts: dict[str, Values]) -> Values:
    """Draw a part by its name alone, or with some of its settings."""
    blocks = [
        st.just(name) | some(**own).map(lambda own, name=name: {chooser: name, **own}) for name, own in parts.items()
    ]
    return st.one_of(blocks)


def rate(most: float) -> Values:
    return st.floats(0, most, allow_subnormal=False)


ENTRY = some(start=st.integers(0, 2), tasks=st.lists(st.integers(0, 3), max_size=3), rounds=st.lists(st.integers(1, 2)))
TIMES = {"clock": one_of("rounds", "participations"), "online": st.booleans(), "rounds": one_of(1, 2)}
MODEL = {"dtype": one_of("float32", "float64"), "personal": one_of([], ["head"], ["*"], ["body"], ["tail"])}
MEMORY = {
    "size": st.integers(0, 6), "admit": one_of("first_seen", "every_pass"), "alpha": rate(3),
    "draw": one_of("uniform", "class-balanced", "power-law", "exponential"),
}  # fmt: skip
PACED = {
    "pacing": one_of("linear", "quad", "sqrt", "step", "exp", "log"), "b": rate(1), "min_pool": st.integers(1, 9),
}  # fmt: skip
SAMPLED = {**PACED, "score": one_of("G", "L", "LG", "E"), "over": one_of("visit", "task")}
BASES = {"epsilon": st.floats(0.01, 1), "epsilon_step": rate(0.1), "heads": one_of("shared", "per-task")}
DEEP = {"depth": one_of(1, 2), "dropout": one_of([], [0.5], [0.1, 0.5])}
SUMS = {"base_rounds": one_of(0, 1, None)}
LOCAL = {"lr": rate(1), "weight_decay": rate(0.1), "keep": st.booleans()}
SIZES = {
    "classes": st.integers(2, 6), "features": st.integers(1, 5), "samples": st.integers(1, 60),
    "test_samples": st.integers(1, 20), "separation": rate(5), "seed": st.integers(0, 9),
}  # fmt: skip
# What a block may hold. Sizes are small so that whatever runs, runs in a moment.
STREAM = some(
    kind=one_of("class-incremental", "task-incremental", "domain-incremental"), tasks=st.integers(1, 4),
    shuffle_classes=st.booleans(), base_classes=st.integers(0, 3), clients=st.integers(1, 6), joint=st.booleans(),
    dataset=some(**SIZES).map(lambda own: {"name": "synthetic", **own}),
    partition=named("kind", iid={}, dirichlet={"alpha": rate(9), "min_samples": st.integers(0, 3)},
                    shards={"per_client": st.integers(1, 3)}),
    schedule=named("kind", synchronous={**TIMES, "rounds_per_task": one_of(1, 2), "first_rounds": one_of(None, 1)},
                   own={**TIMES, "spread": rate(0.9), "start": st.integers(0, 2), "order": one_of("same", "random")},
                   explicit={**TIMES, "clients": st.lists(ENTRY, max_size=4)}),
)  # fmt: skip
CLIENT = some(
    method=named("name", finetune={}, er={}, der={"alpha": rate(1)}, derpp={"beta": rate(1)}, fedprox={"mu": rate(1)},
                 agem={}, gpm=BASES, ewc={"gamma": rate(1)}, si={"c": rate(1)}, lwf={"alpha": rate(3)}, fedewc={},
                 fedlwf={}, scaffold={}, frozen={}, prototypical={"shots": st.integers(1, 3)}),
    memory=named("policy", reservoir=MEMORY, **{"class-balanced": MEMORY}),
    optimizer=named("name", sgd={**LOCAL, "momentum": rate(0.9)}, adam={**LOCAL, "beta1": rate(0.9)}),
    curriculum=named("order", vanilla={}, curr=SAMPLED, anti=SAMPLED, rand=SAMPLED, cyclical={"alpha": rate(0.9)},
                     episodes={"ways": st.integers(2, 3), "examples": one_of(2, 3)}),
    epochs=one_of(1, 2), batch=st.integers(1, 9), replay_batch=st.none() | st.integers(1, 9),
    clip=st.none() | rate(9),
)  # fmt: skip
SERVER = some(
    method=named("name", fedavg={}, **{"single-task": {}}, fedewc={"gamma": rate(1)}, fedlwf={}, scaffold={},
                 analytic=SUMS,
                 prototypes={**SUMS, "missions": st.booleans()},
                 fot={**BASES, "statistic": one_of("sketch", "gram"), "energy": one_of("reference", "squared"),
                      "project_bias": st.booleans(), "consolidate_every": one_of(0, 1)}),
    selection=named("name", uniform={}, curriculum={**PACED, "order": one_of("curr", "anti", "rand"),
                                                    "score_clients": one_of(None, 1)}),
    weights=one_of("samples", "uniform"),
    optimizer=named("name", sgd={"lr": rate(2)}, fedavgm={"momentum": rate(0.9)}, fedadam={"tau": rate(1)}),
    clients_per_round=st.none() | st.integers(1, 6), min_clients=st.integers(1, 3),
    max_update_norm=st.none() | rate(9),
)  # fmt: skip
SCENARIO = some(
    name=one_of("a", "b-c"), seed=st.integers(0, 99), stream=STREAM, client=CLIENT, server=SERVER,
    model=named("name", linear=MODEL, mlp={**MODEL, "width": st.integers(1, 5), **DEEP}, cnn={}),
    engine=some(cohort=st.integers(1, 4), stack=st.just("auto") | st.integers(1, 4)),
    evaluate=some(every=st.integers(0, 3), clients=st.none() | st.integers(0, 4), samples=one_of(None, 1, 9),
                  trace=one_of(0, 1, 3)),
    checkpoint=some(rounds=one_of(1, 2), seconds=rate(1), keep=one_of(1, 2)),
)  # fmt: skip
# Values that fit next to nothing.
ODD = (
    *(None, True, -1, 0, 10**30, -(10**30), 1e30, 1e300, math.nan, math.inf, -math.inf),
    *("", "x", "é\n", [], [1], {}, {"x": 1}, {1: 2}),
)


def bounded(plain: Plain) -> Plain:
    """Give a scenario the sizes that keep it small where it names none itself, on one process."""
    stream = {"dataset": {"name": "synthetic", "samples": 40, "test_samples": 10}, **plain.get("stream", {})}
    schedule = stream.get("schedule", "synchronous")
    schedule = {"kind": schedule} if isinstance(schedule, str) else schedule
    stream["schedule"] = {"rounds": 2, **schedule}
    return {**plain, "stream": stream, "engine": {"device": "cpu", **plain.get("engine", {}), "kind": "inline"}}


def sentence(text: str) -> bool:
    """Return whether it is one line a mistake, each of which says something."""
    return bool(text) and all(10 < len(line) < 500 for line in text.split("\n"))


def outcome(plain: Any) -> str:
    """Run a scenario file and say how it ended."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "scenario.yaml"
        path.write_text(yaml.safe_dump(plain, allow_unicode=True))
        try:
            ended = api.run(load(str(path)), out=Path(folder) / "run", check=False)
        except ConfigError as error:
            return "refused" if sentence(str(error)) else f"refused without a sentence: {error}"
        if ended.code == 3:  # only where training itself comes to nothing, and then it is told
            assert ended.results["status"] == "diverged"
            assert any(event["event"] == "diverging" for event in ended.events)
            return "failed"
        assert (ended.code, ended.results["status"]) == (0, "finished")
        return "ran"


def test_any_scenario_runs_or_is_refused_in_one_sentence() -> None:
    """Random blocks of valid settings: most run from end to end; contradictions between them are told in one line."""
    ends: Counter[str] = Counter()

    @given(SCENARIO)
    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    def check(plain: Plain) -> None:
        ends[outcome(bounded(plain))] += 1

    check()
    assert set(ends) <= {"ran", "refused", "failed"}
    assert ends["ran"] >= 15
    assert ends["refused"] >= 3


def paths(plain: Any, prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Return the path of every block and value."""
    found = [prefix] if prefix else []
    for key, value in plain.items() if isinstance(plain, dict) else ():
        found += paths(value, (*prefix, key))
    return found


def changed(plain: Plain, path: tuple[str, ...], value: Any) -> Plain:
    """Return the scenario with another value at a path."""
    inner = changed(plain[path[0]], path[1:], value) if len(path) > 1 else value
    return {**plain, path[0]: inner}


WHOLE = as_dict(tiny("stream.schedule.rounds=2", "client.method=derpp", "server.optimizer=fedadam"))
PLACES = [path for path in paths(WHOLE) if path not in (("engine", "kind"), ("stream", "schedule", "rounds"))]


@given(st.data())
@settings(max_examples=120, suppress_health_check=[HealthCheck.too_slow])
def test_any_value_that_does_not_fit_is_refused_in_one_sentence(data: st.DataObject) -> None:
    """An odd value in the place of any block or setting: a run where it happens to fit, one sentence where not."""
    place = data.draw(st.sampled_from(PLACES))
    assert outcome(changed(WHOLE, place, data.draw(st.sampled_from(ODD)))) in ("ran", "refused", "failed")


@pytest.mark.nightly
@pytest.mark.parametrize("place", PLACES, ids=".".join)
def test_every_odd_value_in_every_place_is_refused_in_one_sentence(place: tuple[str, ...]) -> None:
    """The same without chance: nothing but a run or a sentence, and not every value fits."""
    ends = Counter(outcome(changed(WHOLE, place, value)) for value in ODD)
    assert set(ends) <= {"ran", "refused", "failed"}
    assert ends["refused"] >= 1


@given(st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
def test_an_unknown_key_is_named(data: st.DataObject) -> None:
    """A key that no block has, in any block: refused with its whole dotted name."""
    blocks = [path for path in [(), *PLACES] if isinstance(at(WHOLE, path), dict)]
    block = data.draw(st.sampled_from(blocks))
    key = data.draw(st.text("abcdefghijk_", min_size=1, max_size=8).map(lambda text: f"q{text}q"))
    with pytest.raises(ConfigError) as refused:
        load(changed(WHOLE, (*block, key), data.draw(st.sampled_from(ODD))))
    assert str(refused.value).startswith(f"unknown key {'.'.join((*block, key))!r}")
    assert "\n" not in str(refused.value)


def at(plain: Any, path: tuple[str, ...]) -> Any:
    return at(plain[path[0]], path[1:]) if path else plain


NAMES = one_of("stream", "client", "model", "name", "seed", "groups", "x")
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
)


@given(ANYTHING)
@settings(max_examples=100)
def test_anything_that_is_yaml_is_read_or_refused(plain: Any) -> None:
    """Random YAML that is no scenario at all: load returns one or raises ConfigError, one sentence."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "scenario.yaml"
        path.write_text(yaml.safe_dump(plain, allow_unicode=True))
        try:
            said = f"a scenario of {load(str(path)).stream.clients} clients"
        except ConfigError as error:
            said = str(error)
    assert sentence(said)


def test_settings_of_a_part_do_not_depend_on_the_overrides_before_them() -> None:
    """An override inside a part changes the scenario's own part, also after another override of the same block."""
    alone = tiny("stream.dataset.samples=50", "client.memory.size=3", "server.optimizer=fedavgm")
    after = tiny("stream.clients=4", "stream.dataset.samples=50", "client.epochs=1", "client.memory.size=3",
                 "server.min_clients=1", "server.optimizer=fedavgm")  # fmt: skip
    assert alone == after
    balanced = tiny("client.memory.policy=class-balanced", "client.epochs=2", "client.memory.size=7")
    memory = as_dict(balanced)["client"]["memory"]
    assert (memory["policy"], memory["size"]) == ("class-balanced", 7)


# The scenarios that are shipped.


@pytest.mark.parametrize("name", scenario_names())
def test_a_shipped_scenario_says_what_it_shows_and_is_shown(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Its file begins with a comment; it loads under its own name; `fedcl show` prints what gives it back."""
    text = scenario_names()[name].read_text()
    assert text.startswith("# Shows ")
    scenario = load(name)
    assert scenario.name == name
    assert main(["show", name]) == 0
    assert load(yaml.safe_load(capsys.readouterr().out)) == scenario


def test_the_scenarios_of_the_first_release_are_shipped() -> None:
    """What README and documentation name is there, with the group of overrides for a small machine."""
    assert {"split-digits", "split-digits-async", "task-digits", "permuted-mnist"} <= set(scenario_names())
    small, full = load("permuted-mnist", ["group=small"]), load("permuted-mnist")
    assert small.stream.clients < full.stream.clients


@pytest.mark.parametrize("name", ["split-digits", "split-digits-async", "task-digits"])
@pytest.mark.parametrize("group", [[], ["group=joint"], ["group=local-only"], ["group=single-task"]])
def test_shipped_scenarios_run_with_every_oracle(name: str, group: list[str], tmp_path: Path) -> None:
    """Two rounds of each, as shipped and as joint, local-only and single-task run: finished, with their figures."""
    short = ["stream.schedule.rounds=2", "client.epochs=1", "engine.kind=inline"]
    ended = api.run(load(name, [*group, *short]), out=tmp_path / "run")
    assert (ended.code, ended.results["status"]) == (0, "finished")
    assert ended.results["cost"]["rounds"] == 2
    assert ended.results["cost"]["client_updates"] >= 1
    local = group == ["group=local-only"]
    assert (ended.results["absent"].get("acc") == "parameters are personal: see clients") is local
