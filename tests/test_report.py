"""The report page: the numbers it shows, what it escapes, and that a real browser has no complaint."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from fedcl.errors import ConfigError
from fedcl.report import svg, text, write_report
from fedcl.results import summarise

Event = dict[str, Any]
# After rounds 0..4: two tasks of two rounds.
ACCURACY = [[0.125, 0.0], [0.5, 0.0625], [0.875, 0.0625], [0.5, 0.5], [0.625, 0.9375]]
EVIL = "<script>alert(1)</script>\"'&"
VOID = {"meta", "link", "br", "hr", "img", "input"}


def events(rounds: int = 4, **start: Any) -> list[Event]:
    stream: list[Event] = [
        {
            **{"event": "start", "name": "two-tasks", "seed": 3, "config_hash": "c0ffee", "clients": 2, "tasks": 2},
            **{"command": "fedcl run two-tasks seed=3", "rounds": 4, "joint": False, "personal": False, "stack": 1},
            **{"evaluation_every": 1, "device": "cpu", "cohort": 32, "versions": {"fedcl": "0.1.0"}},
            **start,
        }
    ]
    stream += [evaluation(0)]
    for round in range(1, rounds + 1):
        task = (round - 1) // 2
        stream += [
            {
                **{"event": "round", "round": round, "seconds": 0.5, "clients": [0, 1], "tasks": [task, task]},
                **{"updates": 2, "steps": 8, "loss": {"ce": 2.0 / round, "dark": 0.25}, "bytes_up": 4000},
                **{"bytes_down": 6000, "failed": 0, "evicted": 0},
            },
            evaluation(round),
        ]
        if round % 2 == 0:
            own = [ACCURACY[round], [ACCURACY[round][0] / 2, ACCURACY[round][1] / 2]]
            stream += [{"event": "task_end", "round": round, "tasks": [task], "accuracy": ACCURACY[round]}]
            end = {"event": "client_task_end", "round": round, "clients": [0, 1], "tasks": [task, task]}
            stream += [{**end, "accuracy": own}]
    if rounds == 4:
        stream += [{"event": "end", "round": 4, "status": "finished", "weights_sha256": "ab", "state_sha256": "cd"}]
    return stream


def evaluation(round: int) -> Event:
    started = [round >= 1, round >= 3]
    return {
        **{"event": "evaluation", "round": round, "accuracy": ACCURACY[round], "loss": 1.0, "started": started},
        **{"seconds": 0.1},
    }


def record(folder: Path, stream: list[Event], results: bool = True) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in stream))
    (folder / "config.yaml").write_text("name: two-tasks\nseed: 3\n")
    if results:
        (folder / "results.json").write_text(json.dumps(summarise({}, stream), allow_nan=False))
    return folder


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
        if "style" not in self.open:
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
    assert page.tags.count("svg") == 4


def test_nothing_is_loaded_from_anywhere(tmp_path: Path) -> None:
    runs = [record(tmp_path / name, events()) for name in "ab"]
    page = written(tmp_path, *runs)
    assert all(link.startswith(("#", "data:,")) for link in page.links)
    html = (tmp_path / "pages" / "report.html").read_text()
    assert not {"script", "iframe", "object", "img", "embed", "form"} & set(page.tags)
    assert "url(" not in html
    assert "@import" not in html
    assert "default-src 'none'" in html
    assert "prefers-color-scheme: dark" in html


def test_several_runs_are_compared(tmp_path: Path) -> None:
    runs = [record(tmp_path / "a", events()), record(tmp_path / "b", events(name="other"))]
    page = written(tmp_path, *runs)
    assert "2 runs" in page.plain
    assert {"#run-1", "#run-2"} <= set(page.links)
    assert page.tags.count("svg") == 2 * 4 + 2
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
    assert "script" not in page.tags
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


def test_lines_stand_where_their_values_are() -> None:
    line = svg.Line("a", [(0.0, 0.0), (5.0, 1.0), (7.0, None), (10.0, 0.5)])
    frame = svg.Frame(right=10, top=1.0)
    path = re.findall(r"[ML][\d. ]+", svg.line_chart([line], "chart"))
    assert path == [
        f"M{frame.left:.1f} {frame.above + frame.height:.1f}",
        f"L{frame.left + frame.width / 2:.1f} {frame.above:.1f}",
        f"M{frame.left + frame.width:.1f} {frame.above + frame.height / 2:.1f}",
    ]


def test_long_names_of_lines_have_room_or_are_cut() -> None:
    drawn = [svg.line_chart([svg.Line(name, [(0.0, 1.0), (1.0, 0.5)])], "chart") for name in ("T0", "replay", "x" * 30)]
    ends = [float(re.findall(r'class="name c0" x="([\d.]+)"', each)[0]) for each in drawn]
    assert [svg.WIDTH - end >= 8 * letters for end, letters in zip(ends, (2, 6, 14), strict=True)] == [True] * 3
    assert f">{'x' * 13}…</text>" in drawn[2]
    assert f"<title>{'x' * 30}</title>" in drawn[2]


def test_large_charts_stay_small() -> None:
    lines = [svg.Line(f"T{i}", [(float(r), 0.5) for r in range(20_000)]) for i in range(20)]
    assert len(svg.line_chart(lines, "long")) < 20 * 601 * 14
    big = svg.heat_map([[0.5] * 60] * 60, range(60), range(60), "big")
    assert big.count("<rect") == 3600
    assert "<title" not in big
    many = svg.ranking({str(i): i / 10_000 for i in range(10_000)}, 0.5, "clients")
    assert len(many) < 30_000
    assert "10,000 clients" in many


def test_ticks_and_labels() -> None:
    assert svg.ticks(1.0) == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert svg.ticks(150, 5) == [0, 50, 100, 150]
    assert svg.ticks(0) == [0.0, 1.0]
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


def chromium(page: Path, profile: Path) -> tuple[str, str]:
    """Return the page's tree after loading, and everything that chromium logged."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no chromium binary on this machine")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    flags += ["--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"]
    flags += ["--enable-logging=stderr", f"--user-data-dir={profile}", "--dump-dom", page.as_uri()]
    done = subprocess.run([found, *flags], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout, done.stderr


def test_a_real_browser_renders_it_without_complaint(tmp_path: Path) -> None:
    record(tmp_path / "run", events(name=EVIL))
    write_report([tmp_path / "run"], tmp_path / "report.html")
    tree, log = chromium(tmp_path / "report.html", tmp_path / "profile")
    assert "<title>&lt;script&gt;alert(1)&lt;/script&gt;\"'&amp; · fedcl</title>" in tree
    assert tree.count("<svg") == 4
    assert "CONSOLE" not in log


def test_a_curriculum_without_its_control_is_told(tmp_path: Path) -> None:
    """Easiest first beside vanilla: a sentence. With a random order of the same pacing beside them: none."""
    sentence = "No run here has the order rand"
    runs = [record(tmp_path / order, events(orders=[order, "uniform"])) for order in ("curr", "vanilla", "rand")]
    assert sentence in written(tmp_path, *runs[:2]).plain
    assert sentence not in written(tmp_path, *runs).plain
    assert sentence not in written(tmp_path, *(runs[1], runs[1])).plain
    asked = [record(tmp_path / "asked", events(orders=["vanilla", "anti"])), runs[1]]
    assert sentence in written(tmp_path, *asked).plain
