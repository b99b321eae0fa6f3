"""Write the path line of every lesson, and the table of lessons in the README, from the notebooks themselves.

python tests/path_line.py

A lesson shows the lessons of its own part, and leads to the parts before and after; lesson 00 shows all parts. Minutes
are those that the first cells say. A new notebook appears by itself, and places in notebooks/topics.md are led anew.
"""

import json
import pathlib
import re
from dataclasses import dataclass

import topics

ROOT = pathlib.Path(__file__).resolve().parent.parent
# The number of the first lesson of each part, and the name of the part. Lesson 00 stands before them.
PARTS = {
    0: "",
    1: "Part 1 · The mathematics of descent",
    7: "Part 2 · One device",
    10: "Part 3 · Many processes",
    13: "Part 4 · Split everything",
    19: "Part 5 · A cluster that lives",
    24: "Part 6 · After training",
}
PATH_LINE = re.compile(r"\n\n\*Your path.*", re.DOTALL)
TABLE = re.compile(r"(?<=\| \| question \| minutes \|\n\|---\|---\|--:\|\n)(?:\|.*\n)+")
SPAN = re.compile(r"Each takes \d+ to \d+ minutes, all together \d+ hours")


@dataclass(frozen=True)
class Lesson:
    """What the first cell of a notebook says about it: the title "02 Losses", the question, and the minutes."""

    file: str
    title: str
    question: str
    minutes: int

    @property
    def part(self):
        """The name of the part that the lesson belongs to."""
        number = int(re.match(r"\d+", self.file).group())
        return PARTS[max(first for first in PARTS if first <= number)]


def lessons(folder=ROOT / "notebooks"):
    """All lessons in `folder`, in the order of their numbers."""
    return [_described(path) for path in sorted(folder.glob("*.ipynb"))]


def _described(path):
    head = first_cell(json.loads(path.read_text(encoding="utf-8")))
    number, title = re.match(r"# (\w+) · (.+)", head).groups()
    question = re.search(r"^\*\*(.+\?)\*\*$", head, re.MULTILINE).group(1)
    return Lesson(path.name, f"{number} {title}", question, int(re.search(r"\*Time:\* (\d+) minutes", head).group(1)))


def first_cell(notebook):
    """The source of the first cell of a notebook, as one text."""
    return "".join(notebook["cells"][0]["source"])


def path_line(file, course):
    """The path line of the lesson in `file`, in Markdown; `course` is a list of all `Lesson`s."""
    by_part = parts(course)
    names = list(by_part)
    own = next(lesson.part for lesson in course if lesson.file == file)
    if not own:
        return _all_parts(by_part)
    steps = [f"**{each.title}**" if each.file == file else _link(each.title, each) for each in by_part[own]]
    line = f"*Your path, {own}:*\n" + " →\n".join(steps)
    at = names.index(own)
    beside = {"Before": names[max(at - 1, 0) : at], "After": names[at + 1 : at + 2]}
    leads = [f"*{word}:* {_to_part(by_part[name])}." for word, found in beside.items() for name in found]
    return line + "\n\n" * bool(leads) + " ".join(leads)


def parts(course):
    """{name of a part: its lessons}, in order; lesson 00 has a part without a name."""
    found = {}
    for lesson in course:
        found.setdefault(lesson.part, []).append(lesson)
    return found


def minutes(course):
    """The minutes of all lessons in a list together."""
    return sum(lesson.minutes for lesson in course)


def hours(course):
    """The same in whole hours."""
    return round(minutes(course) / 60)


def _all_parts(by_part):
    """What lesson 00 has for a path: all parts, with their lessons and minutes."""
    [start], *others = by_part.values()
    steps = [f"- **{start.title}**, {start.minutes} minutes"]
    for part in others:
        steps.append(f"- {_to_part(part)}, {len(part)} lesson{'s' * (len(part) > 1)}, {minutes(part)} minutes")
    everything = [lesson for part in by_part.values() for lesson in part]
    return f"*Your path, {hours(everything)} hours in all:*\n\n" + "\n".join(steps)


def _to_part(part):
    """A link to the first lesson of a part, under the name of the part where it has one."""
    return _link(part[0].part or part[0].title, part[0])


def _link(text, lesson):
    return f"[{text}]({lesson.file})"


def with_path_line(path, course):
    """The text of the notebook at `path`, with the path line that it should have."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    head = PATH_LINE.sub("", first_cell(notebook)).rstrip() + "\n\n" + path_line(path.name, course)
    notebook["cells"][0]["source"] = head.splitlines(keepends=True)
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def with_table(readme, course):
    """The text of the README, with the table of lessons that it should have."""
    rows = []
    for name, part in parts(course).items():
        if name:
            rows.append(f"| **{name}** | | **{minutes(part)}** |\n")
        for lesson in part:
            rows.append(f"| [{lesson.title}](notebooks/{lesson.file}) | {lesson.question} | {lesson.minutes} |\n")
    times = sorted(lesson.minutes for lesson in course)
    span = f"Each takes {times[0]} to {times[-1]} minutes, all together {hours(course)} hours"
    return SPAN.sub(span, TABLE.sub("".join(rows), readme))


def main():
    """Write all path lines, the table and the places of topics."""
    course, readme = lessons(), ROOT / "README.md"
    for lesson in course:
        path = ROOT / "notebooks" / lesson.file
        path.write_text(with_path_line(path, course), encoding="utf-8", newline="\n")
    readme.write_text(with_table(readme.read_text(encoding="utf-8"), course), encoding="utf-8", newline="\n")
    topics.main()


if __name__ == "__main__":
    main()
