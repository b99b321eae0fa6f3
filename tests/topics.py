"""Lead every place in notebooks/topics.md to its heading and its cell, from the words that the cell contains.

python tests/topics.py (python tests/path_line.py does it too)

A place is [11, a heading](link) [`words`](link): lesson 11, and its one code cell with these words. A new place needs
no more than [11, ]() [`words`]().
"""

import json
import pathlib
import re
from urllib.parse import quote

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGE = ROOT / "notebooks/topics.md"
PLACE = re.compile(r"\[(\w+), [^\]]*\]\([^ ]*\) \[`([^`]+)`\]\([^ ]*\)")
SAFE = "?/:@!$&'*+,;="  # what stays as it is in the link to a heading; a parenthesis would end the link


def anchor(heading):
    """What leads to a heading in JupyterLab and on a page made by nbconvert: its text, with dashes for spaces."""
    return "-".join(re.sub(r"[*`$\\]", "", heading).split())


def places(row):
    """The (lesson, words) of all places in a line of the page."""
    return PLACE.findall(row)


def notebook_of(lesson):
    """The path of the notebook with this number."""
    return next((ROOT / "notebooks").glob(f"{lesson}-*.ipynb"))


def cells_with(lesson, words):
    """All code cells of a lesson that contain `words`, no stubs of exercises: (heading above, its cell, the cell)."""
    heading, headed, found = "", None, []
    for cell in json.loads(notebook_of(lesson).read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if headings := re.findall(r"^#+ (.+)", source, re.MULTILINE) if cell["cell_type"] == "markdown" else []:
            heading, headed = headings[-1], cell
        elif cell["cell_type"] == "code" and words in source and "exercise" not in cell["metadata"].get("tags", []):
            found.append((heading, headed, cell))
    return found


def place(lesson, words):
    """A place as it should stand on the page."""
    found = cells_with(lesson, words)
    if len(found) != 1:
        raise ValueError(f"{words!r} stands in {len(found)} code cells of lesson {lesson}: exactly one is needed")
    (heading, headed, cell), name = found[0], notebook_of(lesson).name
    title, to_heading = re.sub(r"^\d+ · ", "", heading), anchor(heading)
    if quote(to_heading, safe=SAFE) != to_heading:  # a browser encodes it, and JupyterLab does not decode it
        to_heading = f"cell-id={headed['id']}"
    return f"[{lesson}, {title}]({name}#{to_heading}) [`{words}`]({name}#cell-id={cell['id']})"


def with_places(page):
    """The text of the page, with all places as they should stand there."""
    return PLACE.sub(lambda found: place(*found.groups()), page)


def main():
    """Write all places."""
    PAGE.write_text(with_places(PAGE.read_text(encoding="utf-8")), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
