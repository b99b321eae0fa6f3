"""The lessons as one course: every link leads somewhere, each lesson leads to the next, and all speak alike."""

import json
import re
from itertools import pairwise
from urllib.parse import unquote

import pytest
from path_line import ROOT, lessons
from topics import anchor

from lessons_lib.verdicts import read_trials

COURSE = lessons()
PAGES = [*sorted((ROOT / "notebooks").glob("*.*")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
LINK = re.compile(r"\]\((?!https?:)([^)\s#]*)(?:#([^)\s]*(?:\([^)\s]*\)[^)\s]*)*))?\)")
AMERICAN = r"\b(?:color|behavior|neighbor|center|gray|labeled|modeled|optimizer|normaliz|initializ|learned)\w*"

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
every_lesson = pytest.mark.parametrize("lesson", COURSE, ids=lambda lesson: lesson.file)


def cells_of(path):
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def prose(path):
    """The Markdown of a notebook or of a page, as one text."""
    if path.suffix != ".ipynb":
        return path.read_text(encoding="utf-8")
    return "\n\n".join("".join(cell["source"]) for cell in cells_of(path) if cell["cell_type"] == "markdown")


def without_code(text):
    return re.sub(r"```.*?```|`[^`\n]+`|<!--.*?-->", "", text, flags=re.DOTALL)


def without_titles(text):
    """Prose without the titles of texts, which keep their own spelling."""
    return re.sub(r"(?<!\*)\*[^*\n]{12,}(?:\n[^*\n]+)?\*(?!\*)|^#+ Sources.*", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(path):
    """All that a link may name in a file: headings, and the cells of a notebook."""
    text = re.sub(r"```.*?```", "", prose(path), flags=re.DOTALL)
    headings = {anchor(heading) for heading in re.findall(r"^#+ (.+)", text, re.MULTILINE)}
    return headings | ({f"cell-id={cell['id']}" for cell in cells_of(path)} if path.suffix == ".ipynb" else set())


@every_page
def test_its_links_lead_to_a_file_and_to_a_place_in_it(page):
    links = LINK.findall(without_code(prose(page)) if page.name != "topics.md" else prose(page))
    assert links or page.name == "CONTRIBUTING.md"
    for file, place in links:
        target = page.parent / file if file else page
        assert target.exists(), file
        assert not place or unquote(place) in anchors(target), f"{file}#{place}"


def test_a_link_that_leads_nowhere_would_be_seen():
    start = ROOT / "notebooks/00-start-here.ipynb"
    assert LINK.findall("[a](b.ipynb#c) [d](#e) [f](https://g.h) [i](j(k).md) [l](m.md#n(o)p)")[:2] == [
        ("b.ipynb", "c"),
        ("", "e"),
    ]
    assert "The-five-articles" in anchors(start) and "The-six-articles" not in anchors(start)


@every_lesson
def test_it_names_lessons_that_are_there(lesson):
    numbers = {each.title.partition(" ")[0] for each in COURSE}
    text = prose(ROOT / "notebooks" / lesson.file)
    assert set(re.findall(r"\b[Ll]essons? (\d\db?)\b", text)) <= numbers
    titles = {each.file: each.title.partition(" ")[0] for each in COURSE}
    for number, file in re.findall(r"\[(?:[Ll]esson )?(\d\db?)[^\]]*\]\(([\w-]+\.ipynb)\)", text):
        assert titles[file] == number
    linked = set(re.findall(r"\]\((\d\db?)-[\w-]+\.ipynb", text)) | {titles[lesson.file]}
    unlinked = set(re.findall(r"\b[Ll]esson (\d\db?)\b", text)) - linked
    assert not unlinked


def test_trials_have_links_that_a_browser_leaves_as_they_are():
    assert not [trial.heading for trial in read_trials(ROOT / "notebooks") if "%" in trial.link]


def test_each_lesson_ends_by_leading_to_the_next():
    for lesson, following in pairwise(COURSE):
        last = "".join(cells_of(ROOT / "notebooks" / lesson.file)[-1]["source"]).rstrip()
        sentence = last.rpartition("\n\n")[2].replace("\n", " ")
        leads = re.fullmatch(rf"Next: \[\w+ [^\]]+\]\({following.file}\), \w.+\.", sentence)
        assert leads, lesson.file


@every_lesson
def test_it_has_the_sections_that_a_lesson_has(lesson):
    text = prose(ROOT / "notebooks" / lesson.file)
    headings = re.findall(r"^## (.+)", text, re.MULTILINE)
    for part in ("In practice", "What to keep in mind", "Sources"):
        assert any(heading.startswith(part) for heading in headings), part
    points = text.partition("## What to keep in mind\n")[2].partition("\n## ")[0]
    assert len(re.findall(r"^(?:-|\d\.) ", points, re.MULTILINE)) == 5


@every_page
def test_it_speaks_as_all_others_do(page):
    text = without_titles(without_code(prose(page)))
    assert not re.findall(r"[a-zA-Z)]!(?![=\w\[])", re.sub(r"\$[^$]+\$", "", text)), "no exclamation marks"
    if page.name != "CONTRIBUTING.md":
        assert not re.findall(rf"\bsimply\b|\bpercents?\b|{AMERICAN}", text)
        assert not re.findall(r"still to come|later in this course|h[eo]ld (?:it|them|both) against", text)
