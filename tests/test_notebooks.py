"""The lessons as files, and the lessons as a learner leaves them who has solved every exercise.

nbval runs each notebook as it is shipped and compares its outputs (`--nbval` in pyproject.toml).
"""

import getpass
import json
import re
import socket
import statistics
import sys
from itertools import takewhile

import nbformat
import pytest
from nbconvert import HTMLExporter
from rerun import (
    GUESS,
    PREDICTION,
    ROOT,
    WIDGET_VIEW,
    answers,
    execute,
    execute_backwards,
    fill,
    kernel,
    move_sliders,
    printed,
)

from lessons_lib.exercises import all_exercises
from lessons_lib.verdicts import VERDICTS, read_trials

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
FOLDERS = r"(?<![\w.])/(?:work|root|home|Users|tmp)/[\w.]|\\(?:Users|home)\\"
MACHINE = re.compile(FOLDERS + r"|ipykernel_\d+|\b0x[0-9a-f]{8,}\b")
MAX_BYTES = 1.2e9

FOLDED = {"outputs_hidden": True}
ARTICLES = "00-start-here.ipynb#The-five-articles"

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path):
    return nbformat.read(path, as_version=nbformat.NO_CONVERT)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tags(cell):
    return cell.metadata.get("tags", [])


def text_of(output):
    """All that an output shows, the bytes of pictures left out."""
    shown = {kind: value for kind, value in output.get("data", {}).items() if not kind.startswith("image/p")}
    text = json.dumps([shown, output.get("text", "")], ensure_ascii=False)
    return re.sub(r"(?<=base64,)[\w+/=]+", "", text)


def prose(path):
    """All markdown cells of a notebook as one text."""
    return "\n\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")


def shown_by_checks(notebook):
    """What each cell with a check shows, as plain text."""
    cells = [cell for cell in code_cells(notebook) if ".check(" in cell.source]
    return ["".join(o.get("data", {}).get("text/plain", "") for o in cell.outputs) for cell in cells]


@every_notebook
def test_format(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}
    assert notebook.metadata.kernelspec.name == "python3"
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    assert path.stat().st_size < 1_000_000


@every_notebook
def test_every_cell_was_run_once_in_order(path):
    counts = [cell.execution_count for cell in code_cells(read(path))]
    assert counts == list(range(1, len(counts) + 1))


@every_notebook
def test_pictures_are_stored_with_their_alternative_text(path):
    """A bare image/png has none, and JupyterLab shows the alternative text of HTML images alone."""
    for cell in code_cells(read(path)):
        for output in cell.outputs:
            assert "image/png" not in output.get("data", {}), cell.source
            for image in re.findall(r"<img [^>]*", "".join(output.get("data", {}).get("text/html", ""))):
                assert re.match(r'<img alt="[^"]{10,}"', image), (cell.source, image[:100])


@every_notebook
def test_outputs_hold_nothing_of_the_machine_that_made_them(path):
    names = {name for name in (socket.gethostname(), getpass.getuser()) if name not in ("root", "runner", "localhost")}
    own = re.compile("|".join([MACHINE.pattern, re.escape(str(ROOT)), *(rf"\b{re.escape(n)}\b" for n in names)]))
    for cell in code_cells(read(path)):
        assert set(cell.metadata) <= {"tags", "jupyter"}, "no timestamps, no widget states: run tests/rerun.py"
        for output in cell.outputs:
            assert output.output_type != "error", output.get("evalue")
            assert WIDGET_VIEW not in output.get("data", {}), "run tests/rerun.py"
            assert not (found := own.search(text_of(output))), f"{found.group()!r} below {cell.source!r}"


@every_notebook
def test_a_prediction_asks_for_a_guess_and_is_answered_before_the_next_heading(path):
    cells = read(path).cells
    told = answers(read(path))
    asked = [name for cell in cells for name in GUESS.findall(cell.source)]
    assert len(set(asked)) == len(asked), "another guess has another name"
    for i, cell in enumerate(cells):
        if guesses := re.findall(r"^(guess\w*) = ", cell.source, re.MULTILINE):
            assert PREDICTION in cells[i - 1].source
            assert guesses == GUESS.findall(cell.source), "guess = …  # your guess: what, in which unit"
            later = "".join(later.source for later in cells[i + 1 :] if later.cell_type == "code")
            assert all(re.search(rf"\b{name}\b", later) for name in guesses), "the result is shown beside the guess"
        if PREDICTION in cell.source:
            section = takewhile(lambda later: not starts_another(later), cells[i + 1 :])
            assert any(later.id in told for later in section), cell.source


def starts_another(cell):
    """Whether a prediction or a section begins in this cell."""
    return cell.cell_type == "markdown" and (PREDICTION in cell.source or re.search("^#", cell.source, re.MULTILINE))


@every_notebook
def test_answers_to_predictions_are_folded(path):
    notebook = read(path)
    hidden = {cell.id: cell.metadata.jupyter for cell in code_cells(notebook) if "jupyter" in cell.metadata}
    assert hidden == dict.fromkeys(answers(notebook), FOLDED), "run tests/rerun.py"
    for cell in code_cells(notebook):
        first = printed(cell).partition("\n")[0]  # JupyterLab shows it of a folded output
        assert cell.id not in hidden or first.endswith(":") or first.startswith("<Picture: "), first


def test_a_page_for_a_site_folds_what_a_notebook_folds():
    exporter = HTMLExporter(extra_template_basedirs=[str(ROOT / ".github")], template_name="page")
    notebook = read(NOTEBOOKS[0])
    page, _ = exporter.from_notebook_node(notebook)
    assert page.count("<details>") == page.count("</details>") == len(answers(notebook)) > 0


@every_notebook
def test_cells_are_short(path):
    lengths = [len(cell.source.splitlines()) for cell in code_cells(read(path))]
    assert max(lengths) <= 20 and min(lengths) > 0
    assert statistics.median(lengths) <= 8


@every_notebook
def test_most_outputs_are_compared(path):
    printing = [cell for cell in code_cells(read(path)) if cell.outputs]
    ignored = [cell for cell in printing if "nbval-ignore-output" in tags(cell)]
    assert len(ignored) <= len(printing) / 3
    assert not any("nbval-skip" in tags(cell) or "NBVAL_" in cell.source for cell in code_cells(read(path)))


@every_notebook
def test_prose_is_short_and_says_what_to_expect(path):
    assert len(prose(path).split()) <= 2500
    first = read(path).cells[0].source
    assert read(path).cells[0].cell_type == "markdown" and first.startswith("# ")
    assert "?" in first and "minutes" in first, "the first cell has the title, the question and the minutes"


@every_notebook
def test_exercises_are_stubs_each_with_its_check(path):
    cells = code_cells(read(path))
    stubs = [i for i, cell in enumerate(cells) if "exercise" in tags(cell)]
    assert len(stubs) >= 2
    for i in stubs:
        name = re.search(r"^(?:def|class) (\w+)", cells[i].source, re.MULTILINE).group(1)
        assert ".check(" not in cells[i].source
        assert re.search(r"exercise\.(\w+)\.check\(\1\)", cells[i + 1].source).group(1) == name
    said = shown_by_checks(read(path))
    assert len(said) == len(stubs) and all(": not attempted." in text for text in said)


@every_notebook
def test_a_lesson_says_what_claims_are_and_names_an_article_by_its_title_first(path):
    titles = dict(re.findall(r"^- \*\*(S\d)\*\*, \*(.+)\*$", prose(NOTEBOOKS[0]), re.MULTILINE))
    assert list(titles) == ["S0", "S1", "S2", "S3", "S4"]
    text = prose(path)
    explained = text.find("A *claim* is a statement of one of ")
    assert not (named := re.search(r"\b[Cc]laims? \d", text)) or 0 <= explained < named.start()
    if path != NOTEBOOKS[0]:
        assert explained < 0 or text.count(f"[the five articles]({ARTICLES})", explained) == 1
        for name, title in titles.items():
            first = re.search(rf"\[{name},|\b{name} §|Source {name}\b", text)
            assert not first or text.startswith(f"[{name}, *{title}*]({ARTICLES})", first.start())


def test_every_claim_that_a_lesson_names_has_one_verdict():
    given = [str(trial.number) for trial in read_trials(ROOT / "notebooks") if trial.number]
    assert len(set(given)) == len(given) > 40
    assert set(re.findall(r"\b[Cc]laims? (\d+)", "".join(map(prose, NOTEBOOKS)))) <= set(given)


def test_lesson_00_defines_the_verdicts():
    assert re.findall(r"^- \*\*([a-z ]+)\*\*: ", prose(NOTEBOOKS[0]), re.MULTILINE) == list(VERDICTS)


@every_notebook
def test_solved_and_then_any_cell_again(path, record_property):
    """With the references in the stubs' place every check says correct, in the memory of a small machine.

    After that each cell as it is shipped, from the last to the first, still does what it did: no name has got another
    meaning since. The axes of a picture stay still while its sliders move.
    """
    notebook = read(path)
    names = fill(notebook)
    with kernel(notebook, path.parent) as client:
        measured = execute(client)
        said = shown_by_checks(notebook)
        moved = move_sliders(client)
        other = execute_backwards(client, read(path))
    record_property("took", f"{path.stem}, solved: {measured}")
    assert len(said) == len(names) and all(": correct." in text for text in said), said
    assert not moved, moved
    assert not other, "\n\n".join(other)
    if sys.platform == "linux":
        assert measured.peak_bytes <= MAX_BYTES


def test_every_exercise_is_asked_in_its_lesson():
    modules = {path.stem.split("-", 1)[1].replace("-", "_") for path in NOTEBOOKS}
    assert set(all_exercises()) <= modules
    for path in NOTEBOOKS:
        module = path.stem.split("-", 1)[1].replace("-", "_")
        assert set(fill(read(path))) == set(all_exercises()[module])
