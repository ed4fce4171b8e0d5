"""What a scenario or a sweep may ask for is looked at before anything is laid out, and every error can be read."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from fedcl.cli import main
from fedcl.errors import LONGEST, ConfigError, FederationError
from fedcl.sweeps.spec import of_plain

OUTSIDE = ("../../x", "/abs", "..", ".", "a/b", "")
LONG = "a" * 40_000
ONE = {"scenario": "split-digits"}
SPACE = {"client.batch": [8, 16]}


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Return the one line by which a command refuses what is asked for."""
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_name_is_one_folder_below_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "odd.yaml").write_text("{}")
    said = refused(capsys, "run", "odd.yaml", f"name={name!r}")
    assert said.startswith("fedcl: name = ")
    assert list(tmp_path.iterdir()) == [tmp_path / "odd.yaml"]
    with pytest.raises(ConfigError, match=r"name = .*without slashes"):
        of_plain({**ONE, "name": name}, "sweep")


@pytest.mark.parametrize(
    ("plain", "said"),
    [
        ({"seeds": 10**8}, "seeds = 100000000: must be at most 1,000,000"),
        ({"seeds": 10**6}, "the sweep has 1000000 runs, more than limits.runs = 1000"),
        ({"grid": {f"axis{n}": list(range(39)) for n in range(5)}}, "the sweep has 270672597 runs"),
        ({"grid": {f"axis{n}": list(range(39)) for n in range(20)}}, "the sweep has countless runs"),
        ({"grid": {"seed": {"range": [0, 1e15]}}}, "grid.seed.range = .*must be at most 1,000,000 values"),
        ({"grid": {"seed": {"range": [0, 1, 1e-300]}}}, "grid.seed.range = .*must be at most 1,000,000 values"),
        ({"limits": {"runs": 10**9}}, "limits.runs = 1000000000: must be at most 1000000"),
        ({"search": {"trials": 10**9, "space": SPACE}}, "the sweep has 2000000003 runs"),
        ({"search": {"seeds": 10**9, "space": SPACE}}, "search.seeds = 1000000000: must be at most"),
    ],
)  # fmt: skip
def test_a_sweep_is_counted_before_it_is_written_out(plain: Mapping[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        of_plain({**ONE, **plain}, "sweep")


@pytest.mark.parametrize(
    "word",
    [
        f"seed={2**64}",
        f"seed={10**4000}",
        "client.batch=" + "[" * 900 + "]" * 900,
        "client.batch=" + "{a: " * 900 + "1" + "}" * 900,
        ".".join(["client"] * 5000) + "=1",
        "name=!!timestamp 2024-01-15",
        "name=!!omap [a: 1]",
        f"client.method={LONG}",
        f"{LONG}=1",
        f"client.batch={LONG}",
    ],
    ids=lambda word: word[:24],
)
def test_values_without_measure_are_one_short_line(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(refused(capsys, "show", "split-digits", word)) <= len("fedcl: ") + LONGEST


@pytest.mark.parametrize(
    "words",
    [
        ("run", LONG), ("show", LONG), ("sweep", LONG), ("list", LONG), ("explain", LONG), ("help", LONG),
        ("check", LONG), ("predict", LONG, LONG), ("report", LONG), ("watch", LONG), ("run", "--resume", LONG),
        ("client", "--server", LONG, "--state", "x"), ("server", LONG, "--state", "x"),
    ],
    ids=lambda words: words[0],
)  # fmt: skip
def test_a_word_of_40_000_letters_is_told_in_short(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) in (1, 2)
    said = capsys.readouterr().err.splitlines()
    assert said
    assert max(map(len, said)) <= len("fedcl: ") + LONGEST


@pytest.mark.parametrize("kind", [ConfigError, FederationError])
def test_an_error_keeps_its_beginning_its_end_and_its_lines(kind: type[Exception]) -> None:
    assert str(kind("short\nand clear")) == "short\nand clear"
    first, last = str(kind(f"key = {LONG}; did you mean 'b'?\nsecond")).splitlines()
    assert first.startswith("key = aaa")
    assert first.endswith("aaa; did you mean 'b'?")
    assert (len(first), last) == (LONGEST, "second")
