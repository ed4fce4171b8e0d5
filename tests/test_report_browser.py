"""The report in a real Chromium, on real runs of the demo sweep: sorts, filters, never complains.

The whole sweep is for the night; without it, two of its methods are run with a round a task.

FEDCL_SCREENSHOTS=DIR keeps the pictures; they lie in pytest's folder otherwise. No browser is downloaded.
"""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fedcl import api
from fedcl.report import write_report
from fedcl.sweeps import runs, spec
from fedcl.sweeps.folder import write_plan
from tests.reports import events, record

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium binary on this machine")
SCHEMES, WIDTHS = ("light", "dark"), (400, 1600)
EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


@dataclass(frozen=True)
class Page:
    """A report, and of how many runs it tells."""

    path: Path
    runs: int


@pytest.fixture(scope="module", params=["small", pytest.param("whole", marks=pytest.mark.nightly)])
def report(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Page:
    """The report of the demo sweep: whole, or two methods with three seeds each, one round a task."""
    small, out = request.param == "small", tmp_path_factory.mktemp("sweep")
    shorter = ["stream.schedule.rounds_per_task=1", "evaluate.every=1"] if small else []
    asked = spec.read("demo", ["engine.kind=inline", *shorter])
    points = []
    for key, run in runs.planned(asked).items():
        if small and run.points[0].labels["method"] not in ("er", "derpp"):
            continue
        assert api.run(run.scenario, out=run.folder(out)).code == 0
        point = run.points[0]
        points.append({"key": key, "labels": dict(point.labels), "seed": point.seed, "overrides": point.overrides})
    write_plan(out, asked.name, "fedcl sweep demo", points)
    write_report([out], out / "report.html")
    return Page(out / "report.html", len(points))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield found
        found.close()


class Watched:
    """A page, and everything it complained of or asked the network for."""

    def __init__(self, browser: Any, path: Path, scheme: str = "light", width: int = 1600, **context: Any) -> None:
        self.context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce", **context
        )
        self.page, self.complaints, self.requests = self.context.new_page(), list[str](), list[str]()
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())

    def __enter__(self) -> Any:
        return self.page

    def __exit__(self, *error: object) -> None:
        self.context.close()
        if error[0] is None:
            assert self.complaints == []
            assert [url for url in self.requests if not url.startswith(("file:", "data:"))] == []


def pictures(tmp_path: Path) -> Path:
    folder = Path(os.environ.get("FEDCL_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def column(page: Any, head: str) -> list[str]:
    """Return the texts of a column of the table of runs, from the top."""
    heads = [each.strip() for each in page.locator("#runs thead th").all_inner_texts()]
    cells = page.locator(f"#runs tbody tr > :nth-child({heads.index(head) + 1})")
    return [each.strip() for each in cells.all_inner_texts()]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_it_fits_the_screen_and_has_the_systems_colours(
    report: Page, browser: Any, tmp_path: Path, scheme: str, width: int
) -> None:
    with Watched(browser, report.path, scheme, width) as page:
        for name in ("folded", "unfolded"):
            if name == "unfolded":
                page.locator("#fold").click()
                assert page.locator("details.run[open]").count() == report.runs
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            picture = pictures(tmp_path) / f"report-{name}-{scheme}-{width}.png"
            page.screenshot(path=picture, full_page=name == "folded")
            assert picture.stat().st_size > 10_000
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert ground == {"light": "rgb(245, 246, 248)", "dark": "rgb(14, 18, 23)"}[scheme]
        edges = "[...document.querySelectorAll('figure svg')].map(each => each.getBoundingClientRect().right)"
        assert max(page.evaluate(edges)) <= width


def test_heads_sort_by_number_and_back(report: Page, browser: Any) -> None:
    with Watched(browser, report.path) as page:
        before = column(page, "Forgetting")
        head = page.locator("#runs thead th", has_text="Forgetting")
        head.get_by_role("button").click()
        up = column(page, "Forgetting")
        assert head.get_attribute("aria-sort") == "ascending"
        assert up == sorted(before, key=lambda words: float(words.removesuffix(" pp").replace("−", "-")))
        assert up != before
        head.get_by_role("button").click()
        assert head.get_attribute("aria-sort") == "descending"
        numbers = [float(words.removesuffix(" pp").replace("−", "-")) for words in column(page, "Forgetting")]
        assert numbers == sorted(numbers, reverse=True)
        page.locator("#runs thead th", has_text="setting").get_by_role("button").click()
        assert column(page, "setting") == sorted(column(page, "setting"))
        assert page.locator("#runs [aria-sort]").count() == 1


def test_the_filter_hides_rows_and_their_runs(report: Page, browser: Any) -> None:
    with Watched(browser, report.path) as page:
        page.locator("#words").fill("ER seed 1")
        visible = page.locator("#runs tbody tr:visible")
        # Every word is a part of the row's: er is one of derpp too.
        assert visible.count() == page.locator("details.run:visible").count() == 2
        assert page.locator("#shown").inner_text() == f"2 of {report.runs} runs"
        page.locator("#words").fill("")
        page.locator("#status").select_option("finished")
        assert visible.count() == report.runs
        page.locator("#words").fill("nothing like this")
        assert (visible.count(), page.locator("#shown").inner_text()) == (0, f"0 of {report.runs} runs")


def test_the_keyboard_reaches_colours_sorting_and_runs(report: Page, browser: Any) -> None:
    with Watched(browser, report.path) as page:

        def ground() -> str:
            return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))

        def tab_to(wanted: str) -> None:
            for _ in range(60):
                page.keyboard.press("Tab")
                if page.evaluate("(wanted) => document.activeElement.matches(wanted)", wanted):
                    return
            raise AssertionError(f"the tabulator does not reach {wanted}")

        light = ground()
        tab_to("#theme")
        seen = []
        for _ in range(3):
            page.keyboard.press("Enter")
            seen.append((page.locator("#theme").inner_text(), ground()))
        assert seen == [
            *(("colours: light", light), ("colours: dark", "rgb(14, 18, 23)"), ("colours: auto", light)),
        ]
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid"
        tab_to("#words")
        tab_to("#runs thead th:nth-child(5) button")
        page.keyboard.press("Enter")
        assert page.locator("#runs thead th:nth-child(5)").get_attribute("aria-sort") == "ascending"
        tab_to("#runs tbody a")
        page.keyboard.press("Enter")
        page.wait_for_selector("details.run[open]")
        assert page.locator("details.run[open]").count() == 1
        tab_to("details.run[open] > summary")
        page.keyboard.press("Enter")
        assert page.locator("details.run[open]").count() == 0


def test_it_reads_without_script(report: Page, browser: Any) -> None:
    with Watched(browser, report.path, java_script_enabled=False) as page:
        assert page.locator("#runs tbody tr:visible").count() == report.runs
        assert page.locator("button:visible, input:visible").count() == 0
        page.locator("details.run > summary").first.click()
        assert page.locator("details.run[open] figure svg:visible").count() >= 6


def test_it_prints_light_with_every_run_unfolded(report: Page, browser: Any, tmp_path: Path) -> None:
    with Watched(browser, report.path, "dark") as page:
        page.emulate_media(media="print", color_scheme="dark")
        assert (
            page.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--ink')").strip() == "#171c24"
        )
        assert page.locator("#theme:visible, #words:visible").count() == 0
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert page.locator("details.run[open]").count() == report.runs
        page.evaluate("dispatchEvent(new Event('afterprint'))")
        assert page.locator("details.run[open]").count() == 0
        (pictures(tmp_path) / "report.pdf").write_bytes(content := page.pdf())
        assert content.startswith(b"%PDF-")


@pytest.mark.parametrize("runs", [1, 2])
def test_no_text_of_a_run_becomes_markup_or_script(browser: Any, tmp_path: Path, runs: int) -> None:
    stream = events(name=EVIL, command=EVIL, device=EVIL, versions={EVIL: EVIL})
    stream += [{"event": "client_error", "round": 1, "client": EVIL, "error": EVIL, "traceback": EVIL}]
    folders = [record(tmp_path / str(i), stream) for i in range(runs)]
    for folder in folders:
        (folder / "config.yaml").write_text(json.dumps({"name": EVIL, "stream": {EVIL: EVIL}}))
    write_report(folders, tmp_path / "report.html")
    with Watched(browser, tmp_path / "report.html") as page:
        assert page.title() == (f"{EVIL} · fedcl" if runs == 1 else "2 runs · fedcl")
        assert page.locator("script").count() == 1
        assert page.locator("img").count() == 0
        assert EVIL in page.locator("main").inner_text()
