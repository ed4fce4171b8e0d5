"""What `fedcl list` says of a part: its paper, its needs, and evidence that is really there."""

import ast
import itertools
import re
from functools import cache
from pathlib import Path

import pytest

from fedcl import registry
from fedcl.catalogue import KINDS, about, catalogue
from fedcl.citations import IDENTIFIER, cited, identifiers, paper, uncited
from fedcl.evidence import known
from fedcl.needs import DATA, needs, scenario_needs

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "REPRODUCIBILITY.md"
TOPICS = ["server", "clients", "curricula", "memories", "selections", "server-optimizers", "scenarios"]
# What stands for the absence of an idea, and so has no paper.
WITHOUT_PAPER = {
    "server": {"single-task"},
    "clients": {"finetune", "frozen"},
    "curricula": {"vanilla"},
    "selections": {"uniform"},
    "server-optimizers": {"sgd"},
}
EVIDENCE = [(topic, name, each) for topic, names in known().items() for name, found in names.items() for each in found]


# Papers


def test_a_citation_is_the_bracket_that_ends_with_an_identifier() -> None:
    text = "ER (a memory)\n(Chaudhry et al., 2019, arXiv:1902.10486; Vitter, doi:10.1145/3147.3165): CE (eq. 1)."
    assert cited(text) == "Chaudhry et al., 2019, arXiv:1902.10486; Vitter, doi:10.1145/3147.3165"
    assert identifiers(text) == ["arXiv:1902.10486", "doi:10.1145/3147.3165"]
    assert uncited("DER (Buzzega, arXiv:2004.07211): CE + MSE (b).") == "DER: CE + MSE (b)."
    assert cited("as in arXiv:1902.10486 (see there), or (arXiv:1902.10486, eq. 3)") == ""


@pytest.mark.parametrize("topic", TOPICS)
def test_papers_have_one_form(topic: str) -> None:
    """Each ends with an arXiv id, a doi or a page of PMLR; a part's names authors and year before it."""
    for entry in catalogue(topic):
        for each in entry.paper.split("; ") if entry.paper else []:
            assert re.fullmatch(IDENTIFIER if topic == "scenarios" else rf"[^;]+ \d{{4}}, {IDENTIFIER}", each), entry


@pytest.mark.parametrize("topic", TOPICS[:-1])
def test_who_is_verified_has_a_paper_or_is_known_to_have_none(topic: str) -> None:
    found = {entry.name: bool(entry.paper) for entry in catalogue(topic) if entry.verified}
    assert {name for name, there in found.items() if not there} == WITHOUT_PAPER.get(topic, set())


def test_papers_of_class_and_module() -> None:
    """Of the class where it cites one, else of the head of its module; the line above leaves it out."""
    derpp = registry.find("client_methods", "derpp")
    assert paper(derpp) == "Buzzega et al., NeurIPS 2020, arXiv:2004.07211"
    assert about(derpp).startswith("DER++: DER + beta")
    assert paper(registry.find("server_methods", "fot")) == "Bakman et al., ICLR 2024, arXiv:2309.01289"
    ewc = "Kirkpatrick et al., PNAS 2017, arXiv:1612.00796; Schwarz et al., ICML 2018, arXiv:1805.06370"
    assert paper(registry.find("client_methods", "ewc")) == ewc


# Needs


@pytest.mark.parametrize(
    ("kind", "name", "expected"),
    [
        ("client_methods", "finetune", ()),
        ("client_methods", "derpp", ("a replay memory",)),
        ("client_methods", "agem", ("a replay memory",)),
        ("client_methods", "ewc", ()),
        ("client_methods", "fedewc", ("server.method=fedewc",)),
        ("server_methods", "fedavg", ()),
        ("server_methods", "fedlwf", ("client.method=fedlwf", "a model without personal parts")),
        ("client_methods", "scaffold", ("server.method=scaffold",)),
        ("server_methods", "scaffold", ("client.method=scaffold",)),
        ("server_methods", "analytic", ("a frozen embedding",)),
        ("curricula", "curr", ("a scoring pass before each visit", "pooled data for score=E")),
        ("curricula", "rand", ()),
        ("datasets", "mnist", (DATA,)),
        ("datasets", "digits", ()),
        ("memories", "reservoir", ()),
    ],
)
def test_needs_are_read_from_the_part(kind: str, name: str, expected: tuple[str, ...]) -> None:
    assert needs(kind, registry.find(kind, name)) == expected


def test_scenarios_need_the_files_of_their_dataset() -> None:
    assert scenario_needs({"stream": {"dataset": {"name": "mnist", "limit": 3}}}) == (DATA,)
    assert scenario_needs({"stream": {"dataset": "fashion-mnist"}}) == (DATA,)
    assert scenario_needs({"stream": {"dataset": "digits"}}) == scenario_needs({}) == ()


# Evidence


@pytest.mark.parametrize("topic", TOPICS)
def test_everything_is_verified_or_said_not_to_be(topic: str) -> None:
    """Evidence is kept under the topic, and of nothing that is not there."""
    names = [entry.name for entry in catalogue(topic)]
    assert all(entry.verified is not None for entry in catalogue(topic))
    assert set(known()[topic]) <= set(names)
    assert all(known()[topic].values())


def test_no_evidence_is_kept_of_other_things() -> None:
    assert set(known()) == set(TOPICS)
    for topic in set(KINDS) - set(TOPICS):
        assert {entry.verified for entry in catalogue(topic)} == {None}


@cache
def functions_of(file: str) -> set[str]:
    """Return the names of a file's functions, without importing it."""
    return {each.name for each in ast.parse((ROOT / file).read_text()).body if isinstance(each, ast.FunctionDef)}


def test_every_oracle_is_a_test_that_is_there() -> None:
    missing = []
    for topic, name, each in EVIDENCE:
        file, _, test = each.where.partition("::")
        if each.kind == "oracle" and test not in functions_of(file):
            missing.append(f"{topic} {name}: {each.where}")
    assert missing == []


def rows() -> list[dict[str, str]]:
    """Return the rows of the table of figures by column."""
    lines = TABLE.read_text(encoding="utf-8").splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("| method |"))
    table = itertools.takewhile(lambda line: line.startswith("|"), lines[first:])
    columns, _, *found = ([cell.strip() for cell in line[1:-1].split("|")] for line in table)
    return [dict(zip(columns, cells, strict=True)) for cells in found]


needs_table = pytest.mark.skipif(not TABLE.is_file(), reason="REPRODUCIBILITY.md is not in an installed package")


@needs_table
def test_every_figure_is_a_row_that_is_there() -> None:
    """A figure or a paper names method and setting run of exactly one row, which has been measured."""
    found = [f"{row['method']} | {row['setting run']}" for row in rows()]
    wrong = [
        f"{topic} {name}: {each.where}"
        for topic, name, each in EVIDENCE
        if each.kind != "oracle" and found.count(each.where) != 1
    ]
    assert wrong == []
    assert {each.kind for *_, each in EVIDENCE} <= {"oracle", "figure", "paper"}


@needs_table
def test_every_row_says_what_was_run() -> None:
    """The paper's setting, a shipped scenario, seeds, command and date."""
    shipped = {entry.name for entry in catalogue("scenarios")}
    assert len(rows()) >= 27
    for row in rows():
        assert row["paper's setting"], row
        assert row["setting run"].split(",")[0] in shipped
        assert re.fullmatch(r"\d+(–\d+)?", row["seeds"]), row
        assert row["command (`SEEDS`)"].startswith(("`fedcl run ", "`... ")), row
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", row["date"]), row


def test_no_curriculum_stands_in_the_table_without_its_control() -> None:
    """Much of a curriculum's gain is pacing: wherever curr or anti were run, rand was run too, and vanilla."""
    if not TABLE.is_file():
        pytest.skip("REPRODUCIBILITY.md is not part of an installed package")
    rows = [[cell.strip() for cell in line.split("|")[1:]] for line in TABLE.read_text().splitlines()]
    ordered = [row for row in rows if len(row) > 3 and "curriculum: " in row[0]]
    run = {setting: {row[0].partition("curriculum: ")[2].split()[0] for row in ordered if row[2] == setting}
           for setting in {row[2] for row in ordered}}  # fmt: skip
    assert len(run) >= 2
    for setting, orders in run.items():
        assert orders >= {"curr", "anti", "rand", "vanilla"}, setting
