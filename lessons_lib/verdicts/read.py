"""The verdicts of all lessons, read from the cells of their notebooks."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

VERDICTS = ("right", "half right", "misleading", "outdated", "wrong", "open")
_LINE = 150
_SAFE = "?/:@!$&'()*+,;="  # what stays as it is in the link to a heading
_HEADING = re.compile(r"### (?:Claims? (\d+(?:(?:, | and )\d+)*)|Beside the claims): (.+)")
_VERDICT = re.compile(rf"\*Verdict(?: on (\d+))?:\* \*\*({'|'.join(VERDICTS)})\.\*\* (?=\S)")
_TITLED = re.compile(r"\[(S\d), [^\]]*\]\([^)]*\)")  # the first mention of an article in a lesson
_PLACE = re.compile(r"\bS(\d)\b|§(\d+(?:\.\d+)*)|\((?:claims? )?(\d+)\)")
_CITED = re.compile(r"\b(S\d),? \(?(§\d+(?:\.\d+)*(?:(?:, | and )§\d+(?:\.\d+)*)*)")


@dataclass(frozen=True)
class Trial:
    """A statement that a lesson puts on trial.

    Attributes:
        number: the number of the claim; None for a statement beside the claims.
        title: what is said: the heading without the numbers, or, of claims that share one, the words before "(14)".
        heading: all of the heading, without its marks.
        lesson: the file name of the notebook.
        source: the articles with their sections, "S0 §5.1, S2 §5.1"; "" where no article is named.
        verdict: one of `VERDICTS`.
        evidence: what the verdict says, in Markdown, in one line.
        cells: the indices of the code cells of the trial among the cells of the notebook.
    """

    number: int | None
    title: str
    heading: str
    lesson: str
    source: str
    verdict: str
    evidence: str
    cells: tuple[int, ...] = ()

    @property
    def reason(self):
        """The first sentence of the evidence, with those after it that fit into a line of `_LINE` letters."""
        first, *more = re.split(r"(?<=[.!?]) (?=[A-Z*`(])", self.evidence)
        for sentence in more:
            if len(first) + len(sentence) >= _LINE:
                break
            first += f" {sentence}"
        return first

    @property
    def link(self):
        """The notebook and the heading in it, as a link leads there from a notebook beside it."""
        words = re.sub(r"[*`$\\]", "", self.heading).split()
        return f"{self.lesson}#{quote('-'.join(words), safe=_SAFE)}"

    @property
    def articles(self):
        """The articles that the statement is taken from, as ("S0", "S2")."""
        return tuple(dict.fromkeys(re.findall(r"S\d", self.source)))


def read_trials(folder):
    """Read what the notebooks in a folder put on trial.

    Args:
        folder: the folder with the notebooks, whatever lessons it holds.

    Returns:
        A list of `Trial`s, in the order of the lessons and of their cells.

    Raises:
        FileNotFoundError: there is no notebook in `folder`.
        ValueError: a trial has no verdict, more than one, or one that is none of `VERDICTS`.
    """
    paths = sorted(Path(folder).glob("*.ipynb"))
    if not paths:
        raise FileNotFoundError(f"folder={str(folder)!r}: a folder with notebooks is needed")
    return [trial for path in paths for trial in _of_lesson(path)]


def _of_lesson(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [trial for text, code in _sections(cells) for trial in _trials(path.name, text, code)]


def _sections(cells):
    """(prose from one heading to the next, the indices of the code cells within), one after the other."""
    sections = [["", []]]
    for index, cell in enumerate(cells):
        if cell["cell_type"] == "code":
            sections[-1][1].append(index)
            continue
        before, *headed = re.split(r"^(?=#+ )", "".join(cell["source"]), flags=re.MULTILINE)
        sections[-1][0] += f"\n\n{before}"
        sections += [[text, []] for text in headed]
    return sections


def _trials(lesson, text, code):
    heading = text.partition("\n")[0]
    head, verdicts = _HEADING.fullmatch(heading), list(_VERDICT.finditer(text))
    numbers = re.findall(r"\d+", head[1] or "") if head else []
    said = [verdict[1] for verdict in verdicts]
    expected = numbers if len(numbers) > 1 else [None] * bool(head)
    if said != expected or len(verdicts) != len(re.findall(r"\*Verdict", text)):
        needed = "one verdict for each claim, in their order" if head else "no verdict outside a trial"
        raise ValueError(f"{lesson}, {heading!r}: {needed} is needed, each of {', '.join(VERDICTS)}")
    return [
        Trial(
            number=int(number) if (number := verdict[1] or "".join(numbers)) else None,
            title=_title(head[2], text, verdict[1]),
            heading=heading.removeprefix("### "),
            lesson=lesson,
            source=_source(text, verdicts, k),
            verdict=verdict[2],
            evidence=_evidence(text, verdict),
            cells=tuple(code),
        )
        for k, verdict in enumerate(verdicts)
    ]


def _title(common, text, number):
    """The title of a trial; of claims that share it, what stands between the last number or sentence and "(14)"."""
    intro = " ".join(_TITLED.sub(r"\1", text.partition("\n")[2]).split())
    before, *marked = re.split(rf"\((?:claims? )?{number}\)", intro, maxsplit=1)
    if not number or not marked:
        return common
    words = re.split(r"\((?:claims? )?\d+\)[,;.]? |(?<=[.!?]) (?=[A-Z])", before)[-1].strip()
    return re.sub(r"^(?:Source )?(?:and )?(?:(?:S\d|[Ii]ts) )?(?:§[\d.]+ (?:and )?)*", "", words)


def _evidence(text, verdict):
    """The rest of the paragraph, up to the next verdict."""
    return " ".join(re.split(r"\n\n|\*Verdict", text[verdict.end() :])[0].split())


def _source(text, verdicts, k):
    """Where the k-th statement stands: what is cited before its number in brackets, or before its verdict."""
    intro = _TITLED.sub(r"\1", text[: verdicts[0].start()])
    marked = _before_numbers(intro)
    if verdicts[k][1] in marked:
        return marked[verdicts[k][1]]
    between = text[verdicts[k - 1].end() : verdicts[k].start()] if k else ""
    cited = _CITED.findall(_TITLED.sub(r"\1", between)) or _CITED.findall(intro)
    return ", ".join(f"{article} {places.replace(' and ', ', ')}" for article, places in dict.fromkeys(cited))


def _before_numbers(intro):
    """{number: source} for prose such as "S0 §4.1.2 has a plus (claim 1); S2 §4.1 leaves it out (36)"."""
    found, article, places, done = {}, "", [], False
    for named, place, number in _PLACE.findall(intro):
        if number:
            found[number], done = f"{article} {', '.join(places)}".strip(), True
            continue
        if named or done:  # a number ends the list of its sections; without a new one the next number has the same
            places, done = [], False
        if named:
            article = f"S{named}"
        else:
            places.append(f"§{place}")
    return found
