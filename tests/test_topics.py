"""Each topic of the articles is run by a cell that notebooks/topics.md names."""

import re

import pytest
from topics import PAGE, cells_with, places, with_places

TEXT = PAGE.read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (?!topic )(.+) \|$", TEXT, re.MULTILINE)
SECTIONS = re.compile(r"S\d (?:title|§\d+(?:\.\d+)*(?:–\d+(?:\.\d+)*)?)(?:, §\d+(?:\.\d+)*(?:–\d+(?:\.\d+)*)?)*")


def test_there_is_a_row_for_each_topic():
    titles = [row.partition(" | ")[0] for row in ROWS]
    assert len(titles) == len(set(titles)) == 56
    assert "They name 56 topics" in TEXT


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.partition(" | ")[0])
def test_a_row_names_cells_that_were_run(row):
    _, articles, what, where = row.split(" | ")
    assert all(SECTIONS.fullmatch(part) for part in articles.split("; ")) and what
    found = places(where)
    assert found and len(found) == where.count("`](") == where.count("<br>") + 1
    assert len(set(found)) == len(found)
    for lesson, words in found:
        assert len(words) >= 9 and words == words.strip()  # enough to be searched for
        [(heading, _, cell)] = cells_with(lesson, words)
        assert heading and cell["execution_count"] and ".check(" not in "".join(cell["source"])


def test_the_links_are_the_generated_ones():
    assert with_places(TEXT) == TEXT, "run python tests/topics.py"


def test_a_place_that_leads_nowhere_or_to_several_cells_is_refused():
    for words in ("no cell has these words", "print("):
        with pytest.raises(ValueError, match=re.escape(repr(words))):
            with_places(f"[01, ]() [`{words}`]()")
    once = with_places("[11, ]() [`two_by_two = Links.two_level`]()")
    assert once.startswith("[11, Topology: slow wires between fast groups](11-all-reduce.ipynb#Topology:-slow-")
    assert with_places(once) == once
