"""A table whose columns can be sorted by a click, and which is a plain table where no script runs."""

import html
import re

_CELL = "text-align:left;vertical-align:top;white-space:normal;padding:0.3em 0.7em"
_HEAD = f"{_CELL};position:sticky;top:0;background:var(--jp-layout-color0, white)"  # stays while the rows scroll
_INLINE = [  # of Markdown, after escaping: code, bold, italics, links
    (r"`([^`]+)`", r"<code>\1</code>"),
    (r"\*\*([^*]+)\*\*", r"<b>\1</b>"),
    (r"\*([^*]+)\*", r"<i>\1</i>"),
    (r"\[([^\]]+)\]\(((?:[^()\s]|\([^()\s]*\))+)\)", r'<a href="\2">\1</a>'),
]
# The buttons are made by the script, so that a page on which none runs shows none. Cells are compared as numbers where
# both begin with one, else as text; empty cells come last.
_SCRIPT = """
(function () {
  const table = document.currentScript.previousElementSibling.querySelector("table");
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  const text = (row, column) => row.cells[column].textContent.trim();
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.textContent = head.textContent;
    button.title = "sort by this column";
    button.style.cssText = "font:inherit;font-weight:bold;cursor:pointer";
    head.replaceChildren(button);
    button.onclick = () => {
      const up = head.getAttribute("aria-sort") !== "ascending" ? 1 : -1;
      heads.forEach((each) => each.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up > 0 ? "ascending" : "descending");
      const order = (a, b) => {
        const [x, y] = [text(a, column), text(b, column)];
        if (!x || !y) return (x ? 0 : 1) - (y ? 0 : 1);
        const [m, n] = [parseFloat(x), parseFloat(y)];
        return up * (m - n || x.localeCompare(y, undefined, { numeric: true }));
      };
      body.append(...[...body.rows].sort(order));
    };
  });
})();
"""


class Table:
    """A table that displays itself; its headings sort it where scripts run.

    Args:
        rows: a list of {heading: cell}, all with the same headings in the same order. A cell is shown as text, in which
            `code`, **bold**, *italics* and [links](to) of Markdown are understood; None is empty.
        title: the caption, and the text where no HTML is shown; nothing belongs in it that differs between machines.

    Raises:
        TypeError, ValueError: `rows` is empty, or a row has other headings than the first.
    """

    def __init__(self, rows, title):
        if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
            raise TypeError(f"rows={rows!r}: a list of dicts {{heading: cell}} that is not empty is needed")
        for number, row in enumerate(rows):
            if list(row) != list(rows[0]):
                raise ValueError(f"rows[{number}] has the headings {list(row)}: those of rows[0], {list(rows[0])}")
        self.rows, self.title = rows, title

    def html(self):
        """Return the table as HTML, with the script that sorts it."""
        heads = "".join(f'<th scope="col" style="{_HEAD}">{_inline(name)}</th>' for name in self.rows[0])
        lines = ["".join(f'<td style="{_CELL}">{_inline(cell)}</td>' for cell in row.values()) for row in self.rows]
        body = "\n".join(f"<tr>{line}</tr>" for line in lines)
        caption = f'<caption style="text-align:left">{_inline(self.title)}</caption>'
        return (
            f'<div style="max-height:32em;overflow:auto" tabindex="0"><table>{caption}\n'
            f"<thead><tr>{heads}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div><script>{_SCRIPT}</script>"
        )

    def _repr_mimebundle_(self, include=None, exclude=None):
        return {"text/plain": repr(self), "text/html": self.html()}

    def __repr__(self):
        return f"<Table: {self.title}>"


table = Table  # how lessons spell it: `show.table(rows, title)`


def _inline(cell):
    """A cell as HTML."""
    text = "" if cell is None else html.escape(str(cell), quote=True)
    for pattern, shown in _INLINE:
        text = re.sub(pattern, shown, text)
    return text
