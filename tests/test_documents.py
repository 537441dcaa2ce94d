"""What the documents point to is there."""

import re
from pathlib import Path

import pytest
from documents import DOCUMENTS, README, ROOT

LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")

NAMED = re.compile(r"`((?:tests|loadtest|deploy|gateway|grafana)/[\w./-]+)")


def anchors(text: str) -> set[str]:
    """Of the headings of a document, as they are made by those who show it: without repeats."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(path: Path) -> None:
    text = path.read_text("utf-8")
    broken = []
    for target, anchor in LINK.findall(text):
        aim = path.parent / target if target else path
        known = aim.suffix != ".md" or not anchor or anchor in anchors(aim.read_text("utf-8"))
        if not (aim.exists() and known):
            broken.append(f"{target}#{anchor}")
    assert broken == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_that_is_named_is_there(path: Path) -> None:
    named = NAMED.findall(path.read_text("utf-8"))
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_readme_names_what_keeps_its_promises() -> None:
    assert len(NAMED.findall(README)) > 30


def test_the_metrics_that_the_readme_asks_are_all_there() -> None:
    known = set(re.findall(r"`gateway_(\w+)`", (ROOT / "grafana/METRICS.md").read_text("utf-8")))
    table = README.partition("all with `gateway_` in front |")[2].partition("\n\n")[0]
    asked = re.findall(r"`(\w+)`", table)
    assert len(asked) > 30
    assert set(asked) <= known
