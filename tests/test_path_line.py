"""The path lines of the lessons, and the table in the README, are what tests/path_line.py writes."""

import json

import pytest
from path_line import ROOT, first_cell, lessons, path_line, with_path_line, with_table

COURSE = lessons()


@pytest.mark.parametrize("lesson", COURSE, ids=lambda lesson: lesson.file)
def test_the_path_line_of_a_lesson_is_the_generated_one(lesson):
    path = ROOT / "notebooks" / lesson.file
    assert path.read_text(encoding="utf-8") == with_path_line(path, COURSE), "run python tests/path_line.py"


def test_the_table_of_lessons_is_the_generated_one():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme == with_table(readme, COURSE), "run python tests/path_line.py"
    for lesson in COURSE:
        assert f"| [{lesson.title}](notebooks/{lesson.file}) | {lesson.question} |" in readme


def notebook(folder, name, head):
    cells = [{"cell_type": "markdown", "source": head.splitlines(keepends=True)}, {"source": ["1 + 1"]}]
    (folder / name).write_text(json.dumps({"cells": cells}), encoding="utf-8")


def test_a_new_lesson_appears_by_itself_in_its_part(tmp_path):
    heads = {
        "00-start.ipynb": "# 00 · Start\n\n**Why?**\n\n*Your path:* an old one",
        "06-sequences.ipynb": "# 06 · Sequences\n\n**How?**",
        "06b-attention.ipynb": "# 06b · Attention\n\n**Where?**\n\nProse.",
        "07-device.ipynb": "# 07 · Device\n\n**Which?**",
        "13-server.ipynb": "# 13 · Server\n\n**What if?**",
    }
    for name, head in heads.items():
        notebook(tmp_path, name, head)
    course = lessons(tmp_path)
    assert [lesson.question for lesson in course] == ["Why?", "How?", "Where?", "Which?", "What if?"]
    assert path_line("06b-attention.ipynb", course) == (
        "*Your path, Part 1 · The mathematics of descent:*\n"
        "[06 Sequences](06-sequences.ipynb) →\n"
        "**06b Attention**\n\n"
        "*Before:* [00 Start](00-start.ipynb). *After:* [Part 2 · One device](07-device.ipynb)."
    )
    assert path_line("13-server.ipynb", course).endswith("*Before:* [Part 2 · One device](07-device.ipynb).")
    start = first_cell(json.loads(with_path_line(tmp_path / "00-start.ipynb", course)))
    assert start == (
        "# 00 · Start\n\n**Why?**\n\n*Your path:*\n**00 Start**\n\n"
        "*After:* [Part 1 · The mathematics of descent](06-sequences.ipynb)."
    )
    table = with_table("| | question |\n|---|---|\n| old | row |\n\nText", course)
    assert "| **Part 2 · One device** | |\n| [07 Device](notebooks/07-device.ipynb) | Which? |\n" in table
    assert table.endswith("| What if? |\n\nText") and "old" not in table
