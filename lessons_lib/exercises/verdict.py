"""What a check says: in a notebook, and as text."""

import html
import re
from dataclasses import dataclass

_MARKS = {"not attempted": ("○", "#56B4E9"), "not yet": ("✗", "#D55E00"), "correct": ("✓", "#009E73")}


@dataclass(frozen=True)
class Verdict:
    """What a check says.

    Attributes:
        name: the name of the exercise.
        state: "not attempted", "not yet" or "correct".
        message: where the answer differs first, or what it costs.
        hint: a hint made for this mistake, or "".
    """

    name: str
    state: str
    message: str
    hint: str = ""

    def __repr__(self):
        text = f"{_MARKS[self.state][0]} {self.name}: {self.state}. {self.message}"
        return f"{text}\nHint: {self.hint}" if self.hint else text

    def _repr_html_(self):
        mark, colour = _MARKS[self.state]
        rows = [f"<b>{mark} {html.escape(self.name)}: {self.state}.</b> {_html(self.message)}"]
        if self.hint:
            rows.append(f"<b>Hint:</b> {_html(self.hint)}")
        style = f"border-left: 4px solid {colour}; padding: 0.4em 0.8em"
        return f'<div style="{style}">' + "<br>\n".join(rows) + "</div>"


class Hint(str):
    """A line of text that a notebook shows without quotes."""

    __repr__ = str.__str__


def _html(text):
    """`text` as HTML, with what stands between backticks as code."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", html.escape(text)).replace("\n", "<br>")
