"""The path lines of the lessons, and the table in the README, are what tests/path_line.py writes."""

import json
import re

import pytest
from path_line import ROOT, first_cell, lessons, minutes, path_line, with_path_line, with_table

from lessons_lib import __main__

COURSE = lessons()


@pytest.mark.parametrize("lesson", COURSE, ids=lambda lesson: lesson.file)
def test_the_path_line_of_a_lesson_is_the_generated_one(lesson):
    path = ROOT / "notebooks" / lesson.file
    assert path.read_text(encoding="utf-8") == with_path_line(path, COURSE), "run python tests/path_line.py"


def test_the_table_of_lessons_is_the_generated_one():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme == with_table(readme, COURSE), "run python tests/path_line.py"
    for lesson in COURSE:
        assert f"| [{lesson.title}](notebooks/{lesson.file}) | {lesson.question} | {lesson.minutes} |" in readme


def test_the_command_line_lists_the_same_lessons():
    listed = __main__.lessons(ROOT / "notebooks")
    assert [(f"{each.name}.ipynb", each.question, each.minutes, each.part) for each in listed] == [
        (lesson.file, lesson.question, lesson.minutes, lesson.part) for lesson in COURSE
    ]


def test_the_minutes_of_a_lesson_are_those_of_reading_and_of_exercises():
    texts = [
        first_cell(json.loads((ROOT / "notebooks" / lesson.file).read_text(encoding="utf-8"))) for lesson in COURSE
    ]
    parted = [
        re.search(r"\*Time:\* (\d+) minutes: (\d+) to read and run, (\d+) for the \w+ exercises", t) for t in texts
    ]
    found = [tuple(map(int, each.groups())) for each in parted if each]
    assert len(found) >= len(COURSE) - 2 and all(total == read + solve for total, read, solve in found)


def notebook(folder, name, head):
    cells = [{"cell_type": "markdown", "source": head.splitlines(keepends=True)}, {"source": ["1 + 1"]}]
    (folder / name).write_text(json.dumps({"cells": cells}), encoding="utf-8")


def test_a_new_lesson_appears_by_itself_in_its_part(tmp_path):
    heads = {
        "00-start.ipynb": "# 00 · Start\n\n**Why?**\n\n*Time:* 40 minutes.\n\n*Your path:* an old one",
        "06-sequences.ipynb": "# 06 · Sequences\n\n**How?**\n\n*Time:* 80 minutes: 50 to read.",
        "06b-attention.ipynb": "# 06b · Attention\n\n**Where?**\n\nProse. *Time:* 95 minutes.",
        "07-device.ipynb": "# 07 · Device\n\n**Which?**\n\n*Time:* 60 minutes.",
        "13-server.ipynb": "# 13 · Server\n\n**What if?**\n\n*Time:* 5 minutes.",
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
        "# 00 · Start\n\n**Why?**\n\n*Time:* 40 minutes.\n\n*Your path, 5 hours in all:*\n\n"
        "- **00 Start**, 40 minutes\n"
        "- [Part 1 · The mathematics of descent](06-sequences.ipynb), 2 lessons, 175 minutes\n"
        "- [Part 2 · One device](07-device.ipynb), 1 lesson, 60 minutes\n"
        "- [Part 4 · Split everything](13-server.ipynb), 1 lesson, 5 minutes"
    )
    head = "| | question | minutes |\n|---|---|--:|\n"
    table = with_table(head + "| old | row | 1 |\n\nEach takes 1 to 2 minutes, all together 3 hours", course)
    assert "| **Part 2 · One device** | | **60** |\n| [07 Device](notebooks/07-device.ipynb) | Which? | 60 |\n" in table
    assert table.endswith("| What if? | 5 |\n\nEach takes 5 to 95 minutes, all together 5 hours") and "old" not in table
    assert minutes(course) == 280
