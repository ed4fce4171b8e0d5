"""The report's figures: what they count, what they say where they cannot be drawn, how they stand alone on paper."""

import json
import re
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import yaml

from fedcl.cli import main
from fedcl.errors import ConfigError, FederationError
from fedcl.log import Log, collect
from fedcl.report import bars, cells, figures, gap, groups, history, overview, page, paper, style, svg, write_report
from fedcl.report.figures import Room
from fedcl.report.runs import read_run
from fedcl.statistics import spread
from fedcl.sweeps.folder import write_plan
from tests.reports import evaluation, events, long_run, record, resolved


def run_of(folder: Path, *overrides: str, labels: dict[str, str] | None = None, **start: Any) -> Any:
    """Return a run of two tasks with a resolved configuration."""
    plain = resolved(*overrides)
    record(folder, events(seed=plain["seed"], **start))
    (folder / "config.yaml").write_text(yaml.safe_dump(plain, sort_keys=False))
    return read_run(folder, labels)


# The stability gap.


def test_the_gap_is_the_largest_drop_after_a_switch_and_what_comes_back() -> None:
    """T0 ends in round 2 with .875, falls to .5 in round 3 and is back at .625 in round 4."""
    found = gap.largest(collect(events()))
    assert found is not None
    assert (found.task, found.switch, found.at) == (0, 2, 3)
    assert (found.drop, found.recovered) == (0.375, 0.125)
    assert (found.rounds, found.old) == ([0, 1, 2, 3, 4], [0])


def test_a_task_that_does_not_fall_leaves_no_gap(tmp_path: Path) -> None:
    stream = [
        {**event, "accuracy": [1.0, 0.5]} if event["event"] in ("evaluation", "task_end") else event
        for event in events()
    ]
    assert gap.largest(collect(stream)) is None
    assert gap.largest(Log()) is None
    figure = figures.stability(read_run(record(tmp_path, stream)), Room())
    assert (figure.drawing, figure.absent) == (None, "no task that had ended fell after a task switch")


# Who had what, and when.


def visited(rounds: int, visits: dict[int, dict[int, int]]) -> Log:
    """Return the log of a run in which clients were asked: client -> round -> task."""
    stream = [
        {
            "event": "round",
            "round": round,
            "clients": [client for client, mine in visits.items() if round in mine],
            "tasks": [mine[round] for mine in visits.values() if round in mine],
        }
        for round in range(1, rounds + 1)
    ]
    return collect(stream)


def test_visits_become_stretches_of_one_task() -> None:
    log = visited(6, {3: {1: 0, 2: 0, 3: 1, 6: 1}, 8: {1: 0}})
    asked = history.visits(log)
    assert asked == {3: {1: 0, 2: 0, 3: 1, 6: 1}, 8: {1: 0}}
    assert history.stretches(asked[3], 6, 200) == [(0, 2, 0), (2, 3, 1), (5, 6, 1)]
    # Three columns of two rounds: the last visit of a column stands for it.
    assert history.stretches(asked[3], 6, 3) == [(0, 2, 0), (2, 6, 1)]


def test_a_chart_has_room_for_those_asked_most_often() -> None:
    log = visited(3, {5: {1: 0}, 2: {1: 0, 2: 0}, 9: {1: 0, 2: 0, 3: 0}, 7: {3: 0}})
    assert history.shown(log, 3) == [2, 5, 9]
    assert history.shown(log, 9) == [2, 5, 7, 9]


def test_stretches_are_drawn_where_their_rounds_are() -> None:
    """Rows of 20 units below 30; rounds 0 to 8 lie between 62 and 404, whole units apart."""
    root = cells.timeline({"a": [(0, 4, 0)], "b": [(4, 8, 1)]}, 2, 8, "chart")
    ways = [path.attrib["d"] for path in root.iter("path")][2:]  # behind those of the legend
    assert ways == ["M62 40h171", "M233 60h171"]


def test_the_class_mix_counts_every_item_once() -> None:
    stream = history.stream_of(resolved("stream.clients=3"))
    found = history.mix(stream, [0, 1, 2])
    counts = np.array(found.counts)
    assert found.heads == [("T0", 2), ("T1", 2)]
    assert counts.sum(axis=0).tolist() == np.bincount(stream.dataset.y).tolist()
    assert counts.reshape(3, 2, 2).sum(axis=2).tolist() == stream.train.count.tolist()
    assert found.most == counts.max()


def test_permuted_tasks_of_many_classes_have_a_column_each() -> None:
    plain = resolved("stream.kind=domain-incremental", "stream.tasks=40")
    found = history.mix(history.stream_of(plain), [1])
    assert (len(found.heads), found.by_class) == (40, False)
    assert len(set(found.counts[0])) == 1


def test_a_configuration_brings_no_code_into_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "evil_data.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    plain = resolved()
    plain["stream"]["dataset"] = {"name": "evil_data:Data"}
    with pytest.raises(ConfigError, match="'evil_data:Data': a report imports nothing"):
        history.stream_of(plain)
    plain["stream"] |= {"dataset": {"name": "digits"}, "schedule": {"kind": [{"name": "evil_data:Data"}]}}
    with pytest.raises(ConfigError):
        history.stream_of(plain)
    assert "evil_data" not in sys.modules


def test_data_that_is_not_there_costs_the_class_mix_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEDCL_DATA", raising=False)
    run = run_of(tmp_path / "run")
    plain = run.settings | {"stream": run.settings["stream"] | {"dataset": {"name": "mnist"}}}
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(plain))
    write_report([tmp_path / "run"], tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text()
    assert re.search(r"not known: [^<]*mnist[^<]*FEDCL_DATA", html)
    assert html.count("<svg") == 8


def test_one_stream_is_shown_once(tmp_path: Path) -> None:
    seen: dict[str, int] = {}
    one, other, third = (
        run_of(tmp_path / name, *changes)
        for name, changes in {"a": [], "b": ["client.method=er"], "c": ["seed=1"]}.items()
    )
    assert figures.mix(one, Room(), seen, 1).drawing is not None
    assert figures.mix(other, Room(), seen, 2).absent == "the same as in run 1"
    assert figures.mix(third, Room(), seen, 3).drawing is not None


# Groups.


@pytest.fixture
def sweep(tmp_path: Path) -> tuple[Path, list[Any]]:
    """Two methods, three seeds: a sweep's folder and its runs."""
    folder, runs, points = tmp_path / "sweep", [], []
    for seed in range(3):
        for method in ("finetune", "er"):
            labels = {"scenario": "split-digits", "method": method}
            key = f"{method}{seed}"
            overrides = [f"client.method={method}", f"seed={seed}"]
            run = run_of(folder / "runs" / key, *overrides, labels=labels)
            value = {"finetune": 0.75, "er": 0.25}[method] + seed / 64
            results = run.results | {"metrics": run.results["metrics"] | {"forgetting": value}}
            (folder / "runs" / key / "results.json").write_text(json.dumps(results))
            runs.append(read_run(folder / "runs" / key, labels))
            points.append({"key": key, "labels": labels, "seed": seed, "overrides": overrides})
    write_plan(folder, "two-methods", "fedcl sweep two-methods", points)
    return folder, runs


def test_runs_that_differ_in_the_seed_only_are_one_group(sweep: tuple[Path, list[Any]]) -> None:
    found = groups.grouped(sweep[1])
    assert [(group.name, group.numbers, group.seeds) for group in found] == [
        ("finetune", [1, 3, 5], ["0", "1", "2"]),
        ("er", [2, 4, 6], ["0", "1", "2"]),
    ]
    assert found[1].values("forgetting") == {"0": 0.25, "1": 0.265625, "2": 0.28125}
    assert found[1].spread("forgetting") == spread([0.25, 0.265625, 0.28125])
    table = overview.settings(found)
    assert table.heads == ["client.method.name"]
    assert [[each.text for each in row] for row in table.rows] == [["finetune"], ["er"]]


def test_where_and_how_fast_a_run_was_is_no_difference(tmp_path: Path) -> None:
    runs = [
        run_of(tmp_path / "a", "engine.kind=inline"),
        run_of(tmp_path / "b", "engine.kind=ray", "engine.workers=2", "seed=1", "name=other"),
        run_of(tmp_path / "c", "client.batch=8", "client.epochs=2"),
    ]
    found = groups.grouped(runs)
    assert [group.numbers for group in found] == [[1, 2], [3]]
    assert [group.name for group in found] == ["epochs 3", "epochs 2"]


def test_groups_are_named_by_the_part_that_differs_not_by_its_settings(tmp_path: Path) -> None:
    runs = [run_of(tmp_path / name, f"server.method={name}") for name in ("fedavg", "fot")]
    assert [group.name for group in groups.grouped(runs)] == ["fedavg", "fot"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            ["client.method=finetune", "client.method=er client.memory.size=50", "client.method=er", "group=joint"],
            ["finetune", "er, size 50", "er, size 24", "joint"],
        ),
        (["client.method=er", "group=local-only", "group=single-task"], ["er", "local-only", "single-task"]),
        (
            ["client.optimizer.lr=0.1", "client.optimizer.lr=0.2", "client.optimizer.lr=0.4"],
            ["lr 0.1", "lr 0.2", "lr 0.4"],
        ),
        (
            [
                f"client.method={m} client.epochs={e} client.batch={b}"
                for m in ("er", "der")
                for e, b in ((1, 8), (2, 4))
            ],
            ["er, epochs 1", "er, epochs 2", "der, epochs 1", "der, epochs 2"],
        ),
    ],
)
def test_runs_are_named_by_what_differs(tmp_path: Path, changes: list[str], expected: list[str]) -> None:
    runs = [run_of(tmp_path / str(i), *each.split()) for i, each in enumerate(changes)]
    assert [group.name for group in groups.grouped(runs)] == expected


def test_a_folder_stands_for_all_runs_below_it(tmp_path: Path) -> None:
    """At any depth, in the order of their paths; a folder that is a run is that run, one without any is refused."""
    for where in ("er/1", "er/2", "deep/er/below"):
        run_of(tmp_path / "runs" / where)
    (tmp_path / "empty").mkdir()
    found = page.read([tmp_path / "runs", tmp_path / "runs" / "er" / "1"]).runs
    assert [run.directory.relative_to(tmp_path).as_posix() for run in found] == [
        "runs/deep/er/below", "runs/er/1", "runs/er/2",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="holds no run"):
        page.read([tmp_path / "empty"])


def test_a_groups_line_is_the_mean_in_a_band(tmp_path: Path) -> None:
    """Seed 1 has 0.25 less at every evaluation, and sends twice as much."""
    first = run_of(tmp_path / "a")
    stream = [
        {**event, "accuracy": [value - 0.25 for value in event["accuracy"]]}
        if event["event"] == "evaluation" and event["round"]
        else event
        for event in events(seed=1)
    ]
    stream = [{**e, "bytes_up": 14_000} if e["event"] == "round" else e for e in stream]
    record(tmp_path / "b", stream)
    (tmp_path / "b" / "config.yaml").write_text(yaml.safe_dump(resolved("seed=1")))
    (group,) = groups.grouped([first, read_run(tmp_path / "b")])
    line = group.line()
    assert line is not None
    assert line.low is not None
    # Mean accuracy on the tasks begun: .5, .875, .5, .78125; task_end events are no evaluations.
    assert line.points == [(1, 0.375), (2, 0.75), (3, 0.375), (4, 0.65625)]
    assert line.low == [(1, 0.25), (2, 0.625), (3, 0.25), (4, 0.53125)]
    assert line.high == [(1, 0.5), (2, 0.875), (3, 0.5), (4, 0.78125)]
    by_bytes = group.line("megabytes")
    assert by_bytes is not None
    assert [x for x, _ in by_bytes.points] == pytest.approx([0.015, 0.03, 0.045, 0.06])  # 10 and 20 kB a round


def test_of_more_methods_than_colours_the_highest_are_named(tmp_path: Path) -> None:
    runs = []
    for i in range(10):
        folder = tmp_path / str(i)
        run_of(folder, f"client.batch={i + 1}")
        last = {**evaluation(4), "accuracy": [i / 10, i / 10]}
        stream = [last if e["event"] == "evaluation" and e["round"] == 4 else e for e in events()]
        (folder / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in stream))
        runs.append(read_run(folder))
    found = groups.grouped(runs)
    assert [group.key for group in found] == ["", "", *(f"c{i}" for i in range(8))]
    drawing = svg.written(figures.against(found, Room())[0].drawing)
    assert drawing.count('class="line rest"') == 2
    assert "batch 1<" in drawing  # as a title, not as a name beside the chart
    assert [f">batch {i}</text>" in drawing for i in (1, 2, 3, 10)] == [False, False, True, True]


# Intervals.


def test_intervals_are_drawn_where_they_are() -> None:
    """Seeds .1, .2, .3: a mean of 20 and Student's interval of -4.84 to 44.84, on an axis from -10 to 50."""
    values = [0.1, 0.2, 0.3]
    root = bars.intervals([bars.Estimate("er", values, spread(values))], "chart", True, "pp")
    texts = [
        float(each.text or "") for each in root.iter("text") if each.attrib["class"] == "axis" and each.text != "pp"
    ]
    assert texts == [-10, 0, 10, 20, 30, 40, 50]
    left = 14.0 + svg.LETTER * 2

    def x(value: float) -> float:
        return left + (svg.WIDTH - left - 76) * (value + 10) / 60

    whisker = next(each for each in root.iter("line") if "whisker" in each.attrib["class"])
    assert [float(whisker.attrib[name]) for name in ("x1", "x2")] == pytest.approx([x(-4.841), x(44.841)], abs=0.05)
    dot = next(each for each in root.iter("circle") if "dot" in each.attrib["class"])
    assert float(dot.attrib["cx"]) == pytest.approx(x(20), abs=0.05)
    assert sum(each.attrib["class"] == "seed c0" for each in root.iter("circle")) == 3


def test_too_few_seeds_have_no_interval_and_say_so(sweep: tuple[Path, list[Any]]) -> None:
    few = figures.over_seeds(groups.grouped(sweep[1][:4]))[1]
    assert "no interval: 2 seeds, 3 are the fewest" in few.caption
    assert "whisker" not in svg.written(few.drawing)
    enough = figures.over_seeds(groups.grouped(sweep[1]))[1]
    assert enough.caption == "a ring a seed, a dot the mean; line: 95 % interval (Student's t)"
    assert svg.written(enough.drawing).count('"whisker c') == 2 * 3


# The page of a sweep.


def test_a_sweeps_page_has_its_table_on_top(sweep: tuple[Path, list[Any]], tmp_path: Path) -> None:
    write_report([sweep[0]], tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text()
    assert html.index("Sweep two-methods: acc") < html.index('id="runs"')
    assert html.count("data-run=") == 6
    assert html.count("<details class=") == 6
    assert "two-tasks · er" in html
    (sweep[0] / "runs" / "er0" / "results.json").write_text('{"schema": 1, "status": "finished"}')
    with pytest.raises(FederationError, match=r"er0/results\.json is damaged"):
        write_report([sweep[0]], tmp_path / "report.html")


def test_unlike_versions_are_told(tmp_path: Path) -> None:
    runs = [run_of(tmp_path / v, f"seed={v[-1]}", versions={"torch": v}) for v in ("2.13.0", "2.13.1")]
    assert overview.unlike_versions(runs) == ["torch (2.13.0, 2.13.1)"]
    assert overview.unlike_versions(runs[:1] * 2) == []


@pytest.mark.slow
def test_fifty_long_runs_stay_below_two_megabytes(tmp_path: Path) -> None:
    """10 tasks, 200 rounds, 100 clients of whom 10 are asked, 30 kinds of errors; ten settings, five seeds."""
    runs = [
        long_run(tmp_path / f"{batch}-{seed}", seed, f"client.batch={batch}", tasks=10, rounds=200)
        for batch in range(4, 14)
        for seed in range(5)
    ]
    write_report(runs, tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size < 2_000_000


# On paper.


def test_a_figure_on_paper_needs_no_style_sheet(sweep: tuple[Path, list[Any]]) -> None:
    material = page.read([sweep[0]])
    allowed = {*style.LIGHT.values(), "none", "#ffffff"}
    for name, figure in page.every_figure(material):
        if figure.drawing is None:
            assert figure.absent, name
            continue
        root = ET.fromstring(paper.as_svg(figure.drawing))
        for each in root.iter():
            assert not {"class", "style"} & set(each.attrib), name
            colours = {each.attrib.get("fill", "none"), each.attrib.get("stroke", "none")}
            assert colours <= allowed, (name, colours)
            if each.tag.endswith("}text"):
                assert each.attrib["font-family"] == paper.FONTS
                assert float(each.attrib["font-size"]) > 0
        assert root[0].tag.endswith("}title")
        assert root[1].attrib["fill"] == "#ffffff"
        assert b"var(" not in paper.as_svg(figure.drawing)


def test_a_pdf_has_one_page_and_its_fonts(tmp_path: Path) -> None:
    pytest.importorskip("svglib", reason="svglib (extra figures) is not installed")
    drawing = figures.accuracy(run_of(tmp_path / "run"), Room()).drawing
    assert drawing is not None
    content = paper.as_pdf(drawing)
    assert content.startswith(b"%PDF-")
    assert len(re.findall(rb"/Type /Page\b(?!s)", content)) == 1
    assert re.findall(rb"/FontFile2", content)
    assert b"BitstreamVeraSans" in content
    wide, high = (float(each) for each in re.findall(rb"/MediaBox \[ 0 0 ([\d.]+) ([\d.]+) \]", content)[0])
    _, _, width, height = (float(each) for each in drawing.attrib["viewBox"].split())
    assert wide == pytest.approx(paper.CENTIMETRES / 2.54 * 72, rel=1e-3)
    assert high / wide == pytest.approx(height / width, rel=1e-3)


def test_the_command_writes_every_figure_twice(
    sweep: tuple[Path, list[Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("svglib", reason="svglib (extra figures) is not installed")
    out, folder = tmp_path / "out.html", tmp_path / "figures"
    assert main(["report", str(sweep[0]), "--out", str(out), "--figures", str(folder)]) == 0
    assert capsys.readouterr().out == f"{out}\n{folder}\n"
    names = sorted(path.stem for path in folder.glob("*.svg"))
    assert names == sorted(path.stem for path in folder.glob("*.pdf"))
    shared = ["all-acc", "all-bytes", "all-forgetting", "all-rounds", "all-time"]
    # Three seeds are three streams: shown once each, in the first run of a seed.
    own = ["accuracy", "clients", "gap", "loss", "matrix", "presence"]
    first = [*own[:5], "mix", "presence"]
    each = [f"run-{i:02d}-{key}" for i in range(1, 7) for key in (first if i % 2 else own)]
    assert names == [*shared, *each]


def test_without_svglib_there_is_svg_and_a_note_how_to_get_pdf(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_of(tmp_path / "run")
    monkeypatch.setitem(sys.modules, "svglib", None)
    assert main(["report", str(tmp_path / "run"), "--figures", str(tmp_path / "figures")]) == 0
    assert "pip install 'fedcl-flower[figures]'" in capsys.readouterr().err
    written = list((tmp_path / "figures").iterdir())
    assert written
    assert {path.suffix for path in written} == {".svg"}


def test_what_no_xml_may_hold_is_left_out_on_paper(tmp_path: Path) -> None:
    pytest.importorskip("svglib", reason="svglib (extra figures) is not installed")
    stream = [
        {**event, "loss": {"c\x00e\x1b <b>&\ud800": 1.0}} if event["event"] == "round" else event for event in events()
    ]
    drawing = figures.loss(read_run(record(tmp_path, stream)), Room()).drawing
    assert drawing is not None
    assert "ce <b>&?" in [each.text for each in ET.fromstring(paper.as_svg(drawing)).iter()]
    assert paper.as_pdf(drawing).startswith(b"%PDF-")


def test_the_ramp_goes_from_end_to_end() -> None:
    assert [style.ramp(part) for part in (0, 0.5, 1)] == ["#3b6fd4", "#2aa198", "#d9932b"]
