"""Tables of a sweep whose labels hold what their formats mean something by: each stays one cell of one line."""

import csv
import io

import pytest

from fedcl.statistics import spread
from fedcl.sweeps.tables import HEAD, Found, Row, as_csv, as_latex, as_markdown

NASTY = (
    "two\nlines",
    "a|b",
    "=HYPERLINK(1)",
    "+1+1",
    "@sum",
    "-x",
    "\\input{secret}",
    "<b>",
    "100 %",
    '"quoted", comma',
)


def table(label: str) -> Found:
    rows = [
        Row(labels={"scenario": "s", "method": each}, values={0: 0.5, 1: 0.7}, spread=spread([0.5, 0.7]))
        for each in ("plain", label)
    ]
    return Found(name="sweep", metric="acc", rows=rows, ranks={label: 1.0, "plain": 2.0})


@pytest.mark.parametrize("label", NASTY)
def test_a_label_stays_in_its_cell(label: str) -> None:
    found = table(label)
    head, *lines = csv.reader(io.StringIO(as_csv(found)))
    assert len(lines) == 2
    assert {len(line) for line in (head, *lines)} == {2 + len(HEAD)}
    assert lines[1][1].lstrip("'") == label
    assert (lines[1][1][0] == "'") == (label[0] in "=+-@")
    markdown = as_markdown(found).splitlines()
    rows = [line for line in markdown if line.startswith("| ")]
    assert len(rows) == 4
    assert {line.replace("\\|", "").count("|") for line in rows} == {3 + len(HEAD)}
    latex = as_latex(found).splitlines()
    inside = latex[latex.index(r"\midrule") + 1 : latex.index(r"\bottomrule")]
    assert len(inside) == 2
    assert all(line.endswith(r" \\") for line in inside)
    begin = next(number for number, line in enumerate(latex) if line.startswith(r"\begin"))
    assert all(line.startswith("% ") for line in latex[:begin])
    assert "\\input" not in "\n".join(latex[begin:])


def test_numbers_are_no_formulas() -> None:
    assert [line[1] for line in csv.reader(io.StringIO(as_csv(table("-1.5"))))][1:] == ["plain", "-1.5"]
