"""The report page: the numbers it shows, what it escapes, what it refuses."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fedcl.errors import ConfigError
from fedcl.report import bars, cells, lines, svg, text, write_report
from tests.reports import evaluation, events, record

EVIL = "<script>alert(1)</script>\"'&"
VOID = {"meta", "link", "br", "hr", "img", "input"}


class Page(HTMLParser):
    """Collects tags and visible text, and checks that every element is closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.links: list[str] = []
        self.words = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("href", "src", "action", "data", "srcset")]
        assert not [name for name, _ in attrs if name.startswith("on")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.words += " " + data

    @property
    def plain(self) -> str:
        return " ".join(self.words.split())


def written(tmp_path: Path, *runs: Path) -> Page:
    write_report(list(runs), tmp_path / "pages" / "report.html")
    return Page((tmp_path / "pages" / "report.html").read_text())


def test_one_run_shows_its_numbers(tmp_path: Path) -> None:
    page = written(tmp_path, record(tmp_path / "run", events()))
    # ACC (.625 + .9375) / 2; forgetting .875 - .625; PM the same, negative; A-AUC mean of .5, .875, .5, .78125.
    for words in ("ACC 78.1%", "Forgetting 25.0 pp", f"{text.MINUS}25.0 pp", "two-tasks", "finished", "seed 3"):
        assert words in page.plain
    assert re.search(r"A-AUC any-time[^%]* 66\.4%", page.plain)
    for cell in ("87.5", "6.2", "62.5", "93.8"):  # the accuracy matrix
        assert re.search(rf"(?<![\d.]){re.escape(cell)} ", page.plain), cell
    for words in ("16 kB 2 kB an update", "24 kB 3 kB an update", "8 32 steps", "2 s 4 updates a second"):
        assert words in page.plain
    assert "accuracy 58.6% 19.5 pp 39.1% 39.1%" in page.plain
    assert "Intransigence absent: needs the accuracies of a run with joint training" in page.plain
    assert "fedcl run two-tasks seed=3" in page.plain
    assert f"fedcl run {tmp_path / 'run' / 'config.yaml'}" in page.plain
    assert "No client failed." in page.plain
    assert page.tags.count("svg") == 4 + 4  # its own; stability gap, who was asked when, and what its accuracy has cost
    assert "not known: there is no config.yaml that says what the stream is" in page.plain


def test_nothing_is_loaded_from_anywhere(tmp_path: Path) -> None:
    runs = [record(tmp_path / name, events()) for name in "ab"]
    page = written(tmp_path, *runs)
    assert all(link.startswith(("#", "data:,")) for link in page.links)
    html = (tmp_path / "pages" / "report.html").read_text()
    assert not {"iframe", "object", "img", "embed"} & set(page.tags)
    assert page.tags.count("script") == page.tags.count("style") == 1
    assert "url(" not in html
    assert "@import" not in html
    assert "prefers-color-scheme: dark" in html


def test_only_the_pages_own_script_and_style_may_act(tmp_path: Path) -> None:
    """What the policy names are the digests of what stands there, and no attribute brings a style or a handler."""
    written(tmp_path, *(record(tmp_path / name, events()) for name in "ab"))
    html = (tmp_path / "pages" / "report.html").read_text()
    policy = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html)[0]
    found = dict(each.split(" ", 1) for each in policy.split("; "))
    assert found.pop("default-src") == "&#39;none&#39;"
    assert found.pop("img-src") == "data:"
    for tag in ("script", "style"):
        source = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)[0]
        digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        assert found.pop(f"{tag}-src") == f"&#39;sha256-{digest}&#39;"
    assert found == {}
    assert " style=" not in html


def test_several_runs_are_compared(tmp_path: Path) -> None:
    runs = [record(tmp_path / "a", events()), record(tmp_path / "b", events(name="other"))]
    page = written(tmp_path, *runs)
    assert "2 runs" in page.plain
    assert {"#run-1", "#run-2"} <= set(page.links)
    # All of each but the class mix; of both over rounds, bytes and time, and two figures over seeds.
    assert page.tags.count("svg") == 2 * 6 + 3 + 2
    assert "do not compare" not in page.plain
    runs[1] = record(tmp_path / "b", events(evaluation_every=2))
    assert "do not compare their A-AUC, min-ACC, WC-ACC, WF-10, WP-10" in written(tmp_path, *runs).plain


def test_every_text_from_the_files_is_harmless(tmp_path: Path) -> None:
    evil = events(name=EVIL, command=EVIL, config_hash=EVIL, device=EVIL, seed=EVIL, versions={EVIL: EVIL})
    for event in evil:
        if event["event"] == "round":
            event["loss"] = {EVIL: 1.0}
    evil += [{"event": "client_error", "round": 1, "client": EVIL, "error": EVIL, "traceback": EVIL}]
    folder = record(tmp_path / "<b>run", evil)
    (folder / "config.yaml").write_text(EVIL)
    (folder / "error.log").write_text(EVIL)
    results = json.loads((folder / "results.json").read_text())
    results |= {"status": EVIL, "weights_sha256": EVIL, "clients": EVIL, "cost": {"seconds": EVIL}}
    results["absent"] |= dict.fromkeys(("acc", "clients.acc", "state_sha256"), EVIL)
    (folder / "results.json").write_text(json.dumps(results))
    page = written(tmp_path, folder, folder)
    assert page.tags.count("script") == 1
    assert "<b>run" in page.plain
    assert page.plain.count(EVIL) > 20


def test_half_a_surrogate_pair_does_not_stop_the_page(tmp_path: Path) -> None:
    assert "broken ?" in written(tmp_path, record(tmp_path / "run", events(name="broken \ud800"))).plain


def test_absent_figures_of_joint_personal_and_killed_runs_say_why(tmp_path: Path) -> None:
    joint = [event for event in events(joint=True) if "task_end" not in event["event"]]
    assert "absent: joint training has no task ends" in written(tmp_path, record(tmp_path / "j", joint)).plain
    personal = [{**e, "accuracy": None} if e["event"] in ("evaluation", "task_end") else e for e in events()]
    personal[0]["personal"] = True
    page = written(tmp_path, record(tmp_path / "p", personal))
    assert "absent: parameters are personal: see clients" in page.plain
    assert "Clients, mean 58.6%" in page.plain
    page = written(tmp_path, record(tmp_path / "k", events(rounds=3), results=False))
    assert "absent: the run has not finished: running after round 3 of 4" in page.plain
    assert "ACC – Forgetting –" in page.plain


@pytest.mark.parametrize("length", range(len(events())))
def test_every_prefix_of_a_run_has_a_page(tmp_path: Path, length: int) -> None:
    page = written(tmp_path, record(tmp_path / "run", events()[:length], results=False))
    assert "running" in page.plain


def test_errors_are_grouped_with_their_traceback(tmp_path: Path) -> None:
    error = {"event": "client_error", "error": "ValueError: loss is not finite", "traceback": "File app.py, line 9"}
    stream = [*events()[:-1], *({**error, "round": 2, "client": c} for c in (5, 1, 5)), events()[-1]]
    page = written(tmp_path, record(tmp_path / "run", stream))
    assert "3× ValueError: loss is not finite first in round 2; clients 1, 5 File app.py, line 9" in page.plain


def test_a_folder_that_is_no_run_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no run: it has no events\.jsonl"):
        write_report([tmp_path], tmp_path / "out.html")
    folder = record(tmp_path / "run", events())
    (folder / "events.jsonl").write_text('{"event":"start"}\n{torn}\n{"event":"end"}\n')
    with pytest.raises(ConfigError, match="is damaged"):
        write_report([folder], tmp_path / "out.html")
    record(folder, [*events(), {**evaluation(1), "round": "first"}], results=False)
    with pytest.raises(ConfigError, match="is damaged"):
        write_report([folder], tmp_path / "out.html")


def test_a_torn_results_file_is_computed_again(tmp_path: Path) -> None:
    folder = record(tmp_path / "run", events())
    (folder / "results.json").write_text('{"schema": 1, "met')
    assert "ACC 78.1%" in written(tmp_path, folder).plain


def test_the_same_runs_give_the_same_page(tmp_path: Path) -> None:
    folder = record(tmp_path / "run", events())
    write_report([folder], tmp_path / "1.html")
    write_report([folder], tmp_path / "2.html")
    assert (tmp_path / "1.html").read_bytes() == (tmp_path / "2.html").read_bytes()


def drawn(*all_lines: lines.Line) -> str:
    return svg.written(lines.line_chart(all_lines, "chart"))


def test_lines_stand_where_their_values_are() -> None:
    line = lines.Line("a", [(0.0, 0.0), (5.0, 1.0), (7.0, None), (10.0, 0.5)])
    frame = svg.Frame(right=10, top=1.0)
    path = re.findall(r"[ML][\d. ]+", drawn(line))
    assert path == [
        f"M{frame.left:.1f} {frame.above + frame.height:.1f}",
        f"L{frame.left + frame.width / 2:.1f} {frame.above:.1f}",
        f"M{frame.left + frame.width:.1f} {frame.above + frame.height / 2:.1f}",
    ]


def test_long_names_of_lines_have_room_or_are_cut() -> None:
    charts = [drawn(lines.Line(name, [(0.0, 1.0), (1.0, 0.5)])) for name in ("T0", "replay", "x" * 30)]
    ends = [float(re.findall(r'class="name c0" x="([\d.]+)"', each)[0]) for each in charts]
    assert [svg.WIDTH - end >= 8 * letters for end, letters in zip(ends, (2, 6, 14), strict=True)] == [True] * 3
    assert f">{'x' * 13}…</text>" in charts[2]
    assert f"<title>{'x' * 30}</title>" in charts[2]


def test_large_charts_stay_small() -> None:
    many = [lines.Line(f"T{i}", [(float(r), 0.5) for r in range(20_000)]) for i in range(20)]
    assert len(drawn(*many)) < 14 * 1.1 * lines.MOST_POINTS + 20 * 200
    board = [[(i + j) % 2 / 1.0 for j in range(60)] for i in range(60)]
    big = svg.written(cells.heat_map(board, range(60), range(60), "big"))
    assert big.count("M") == 3600
    assert len(big) < 3600 * 20
    plain = svg.written(cells.heat_map([[0.5] * 60] * 60, range(60), range(60), "plain"))
    assert plain.count("M88 ") == 60  # equal neighbours are drawn as one
    clients = svg.written(bars.ranking({str(i): i / 10_000 for i in range(10_000)}, 0.5, "clients"))
    assert len(clients) < 30_000
    assert "10,000 clients" in clients


def test_ticks_and_labels() -> None:
    assert svg.ticks(1.0) == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert svg.ticks(150, 5) == [0, 50, 100, 150]
    assert svg.ticks(0) == [0.0, 1.0]
    assert svg.ticks(98.6, 4, 58.3) == [40, 60, 80, 100]
    assert svg.ticks(12, 3, -3) == [-5, 0, 5, 10, 15]
    assert svg.apart([50, 50, 50], 13, 0, 100) == [50, 63, 76]
    assert svg.apart([99, 98, 5], 13, 0, 100) == [100, 87, 5]


def test_numbers_as_people_read_them() -> None:
    assert [text.percent(v) for v in (0.61549, -0.1, None, True, float("inf"), "x")] == [
        *("61.5%", "−10.0%", "–", "–", "–", "–"),
    ]
    assert [text.points(v) for v in (0.125, -0.125, -0.0, -0.0001)] == ["12.5 pp", "−12.5 pp", "0.0 pp", "0.0 pp"]
    assert [text.count(v) for v in (12_345, 55.5178, 2_345.6, 0, None)] == ["12,345", "55.5", "2,346", "0", "–"]
    assert [text.size(v) for v in (0, 999, 1000, 23_200_000, 5e15)] == ["0 B", "999 B", "1 kB", "23.2 MB", "5e+03 TB"]
    assert [text.duration(v) for v in (0.25, 59.96, 200, 7500)] == ["0.25 s", "1 min 0 s", "3 min 20 s", "2 h 5 min"]
    assert text.some([1, 2, 3], limit=2) == "1, 2 and 1 more"


def test_a_curriculum_without_its_control_is_told(tmp_path: Path) -> None:
    """Easiest first beside vanilla: a sentence. With a random order of the same pacing beside them: none."""
    sentence = "No run here has the order rand"
    runs = [record(tmp_path / order, events(orders=[order, "uniform"])) for order in ("curr", "vanilla", "rand")]
    assert sentence in written(tmp_path, *runs[:2]).plain
    assert sentence not in written(tmp_path, *runs).plain
    assert sentence not in written(tmp_path, *(runs[1], runs[1])).plain
    asked = [record(tmp_path / "asked", events(orders=["vanilla", "anti"])), runs[1]]
    assert sentence in written(tmp_path, *asked).plain
