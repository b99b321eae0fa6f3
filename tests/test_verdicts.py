"""What the lessons put on trial: all 81 claims, each in one lesson with its source; and the reader of the trials."""

import json

import pytest
from rerun import ROOT

from lessons_lib.verdicts import Trial, read_trials, run_again

NOTEBOOKS = ROOT / "notebooks"
LESSONS = {  # the claims that a lesson owns
    "00": [16, 42],
    "01": [3, 27, 28, 29, 34, 35, 68, 69, 70, 72, 73],
    "02": [1, 4, 36, 37, 38, 39, 40, 41, 43, 67],
    "03": [2, 30, 31, 32, 33, 52, 80],
    "04": [7, 65],
    "05": [22, 26],
    "06b": [23],
    "07": [6, 8, 10, 13, 14, 45, 63],
    "08": [75],
    "09": [25],
    "12": [19, 46, 55, 56, 61, 66],
    "16": [5, 20, 57, 58, 59, 62],
    "18": [21],
    "19": [60],
    "22": [15, 24, 78],
    "24": [76],
    "25": [12, 77],
    "27": [9, 11, 17, 18, 44, 47, 48, 49, 50, 51, 53, 54, 64, 71, 74, 79, 81],
}
# The articles that make a claim: S0 makes those from 1 to 18, and so on; some are made by several.
FIRST = {"S0": 1, "S1": 19, "S2": 27, "S3": 55, "S4": 67}
MORE = {7: {"S4"}, 16: {"S2", "S4"}, 81: {"S3"}}


@pytest.fixture(scope="module")
def trials():
    return read_trials(NOTEBOOKS)


def lesson_of(trial):
    return trial.lesson.partition("-")[0]


def articles_of(number):
    return {max((first, name) for name, first in FIRST.items() if first <= number)[1]} | MORE.get(number, set())


def test_the_list_has_all_81_claims_once():
    assert sorted(n for numbers in LESSONS.values() for n in numbers) == list(range(1, 82))


def test_every_claim_is_on_trial_in_its_lesson_and_nowhere_else(trials):
    there = {path.name.partition("-")[0] for path in NOTEBOOKS.glob("*.ipynb")}
    found = sorted((lesson_of(trial), trial.number) for trial in trials if trial.number)
    assert found == sorted((lesson, n) for lesson, numbers in LESSONS.items() for n in numbers)
    assert set(LESSONS) <= there


def test_every_verdict_on_a_claim_names_its_articles_and_sections(trials):
    for trial in trials:
        if trial.number:
            assert set(trial.articles) == articles_of(trial.number), trial
            assert all("§" in place for place in trial.source.replace(", S", "; S").split("; ")), trial


def test_every_statement_beside_the_claims_has_a_source_too(trials):
    by_lesson = {}
    for trial in trials:
        if trial.number is None and not trial.source:
            by_lesson.setdefault(lesson_of(trial), []).append(trial.title)
    assert by_lesson.pop("16") == ["a table of torch", "two formulas for one bubble"]
    for lesson, titles in by_lesson.items():  # of others than the articles: the sources of the lesson list them
        text = "".join(path.read_text(encoding="utf-8") for path in NOTEBOOKS.glob(f"{lesson}-*.ipynb"))
        sources = text[text.index("## Sources") :]
        assert all(f"*{title[0].upper()}{title[1:]}*:" in sources for title in titles), titles


def test_every_verdict_says_why(trials):
    assert all(len(trial.evidence) >= 10 and "\n" not in trial.evidence for trial in trials)


def notebook(folder, *cells, name="01-x.ipynb"):
    """Write a notebook: text is Markdown, a pair is code and what it printed."""
    made = [
        {"cell_type": "markdown", "source": cell}
        if isinstance(cell, str)
        else {"cell_type": "code", "source": cell[0], "outputs": [{"text": cell[1]}] if cell[1] else []}
        for cell in cells
    ]
    (folder / name).write_text(json.dumps({"cells": made}), encoding="utf-8")


TITLED = "[S0, *A title with S9 §9.9*](00-start-here.ipynb#The-five-articles)"


def test_a_trial_is_read_with_all_its_parts(tmp_path):
    text = f"## On trial\n\n### Claim 7: it *moves*\n\nSource {TITLED} §4.3 and S4 §3.2 say so; S2 (§9) does not."
    notebook(
        tmp_path, text, ("x = 1", ""), "*Verdict:* **half right.** It does\nnot.\n\nMore.\n\n## Next", ("y = 1", "")
    )
    source = "S0 §4.3, S4 §3.2, S2 §9"
    heading = "Claim 7: it *moves*"
    (trial,) = read_trials(tmp_path)
    assert trial == Trial(7, "it *moves*", heading, "01-x.ipynb", source, "half right", "It does not.", (1,))
    assert trial.articles == ("S0", "S4", "S2")
    assert trial.link == "01-x.ipynb#Claim-7:-it-moves"


def test_a_reason_is_whole_sentences_of_a_line(tmp_path):
    evidence = "As Li et al. 2016 say, 0.5 is a half. So it is. " + 9 * "And so on, and so on, and so on. "
    notebook(tmp_path, f"### Claim 7: a\n\nS0 §1.\n\n*Verdict:* **wrong.** {evidence}")
    reason = read_trials(tmp_path)[0].reason
    assert evidence.startswith(reason + " ") and reason.endswith(".") and 120 < len(reason) <= 150
    long = f"{99 * 'on and '}on."
    notebook(tmp_path, f"### Claim 7: a\n\nS0 §1.\n\n*Verdict:* **wrong.** {long} And so on.")
    assert read_trials(tmp_path)[0].reason == long


def test_claims_of_one_heading_are_told_apart(tmp_path):
    intro = f"{TITLED} §4.1 adds (claim 1), S2 §3.1 and §3.2 leave out (2) and turn (3) things. Its §5 ends (10)."
    first = "*Verdict on 1:* **wrong.** So. *Verdict on 2:* **right.** Yes.\n\n*Verdict on 3:* **open.** Who knows."
    notebook(
        tmp_path, f"### Claims 1, 2, 3 and 10: four\n\n{intro}\n\n{first}", ("x", ""), "*Verdict on 10:* **wrong.** No."
    )
    found = [(t.number, t.source, t.title, t.verdict, t.evidence) for t in read_trials(tmp_path)]
    assert found == [
        (1, "S0 §4.1", "adds", "wrong", "So."),
        (2, "S2 §3.1, §3.2", "leave out", "right", "Yes."),
        (3, "S2 §3.1, §3.2", "turn", "open", "Who knows."),
        (10, "S2 §5", "ends", "wrong", "No."),
    ]


def test_a_claim_without_its_number_in_the_text_has_what_is_cited_before_its_verdict(tmp_path):
    text = "### Claims 4 and 5: two\n\nS1 §2 says.\n\n*Verdict on 4:* **wrong.** No.\n\nS3 §3 adds."
    notebook(tmp_path, text, "*Verdict on 5:* **open.** So.")
    assert [trial.source for trial in read_trials(tmp_path)] == ["S1 §2", "S3 §3"]


def test_lessons_come_in_their_order_and_by_themselves(tmp_path):
    for name, number in (("06b-y.ipynb", 2), ("06-x.ipynb", 1), ("10-z.ipynb", 3)):
        notebook(tmp_path, f"### Claim {number}: a\n\nS1 §2.\n\n*Verdict:* **wrong.** No.", name=name)
    notebook(tmp_path, "### Beside the claims: b\n\n*Verdict:* **open.** No.", name="30-w.ipynb")
    assert [trial.number for trial in read_trials(tmp_path)] == [1, 2, 3, None]


@pytest.mark.parametrize(
    "text",
    [
        "### Claim 7: a\n\nNo verdict.",
        "### Claim 7: a\n\n*Verdict:* **maybe.** Who knows.",
        "### Claim 7: a\n\n*Verdict:* **wrong.** No.\n\n*Verdict:* **right.** Yes.",
        "### Claims 7 and 8: a\n\n*Verdict on 8:* **wrong.** No.\n\n*Verdict on 7:* **wrong.** No.",
        "### Claims 7 and 8: a\n\n*Verdict on 7:* **wrong.** No.",
        "## Something else\n\n*Verdict:* **wrong.** No.",
        "### Claim 7: a\n\n*Verdict:* **wrong.** No.\n\n**Verdict**: right",
    ],
)
def test_a_trial_that_is_not_whole_is_refused(tmp_path, text):
    notebook(tmp_path, text)
    with pytest.raises(ValueError, match=r"^01-x\.ipynb, '##.* is needed, each of right, half right"):
        read_trials(tmp_path)


def test_a_folder_without_notebooks_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="a folder with notebooks is needed"):
        read_trials(tmp_path)


def trial_of(*cells):
    return Trial(1, "a", "Claim 1: a", "01-x.ipynb", "S0 §1", "wrong", "Because it is.", cells)


def test_a_trial_runs_with_the_earlier_cells_that_it_needs_and_no_others(tmp_path):
    notebook(
        tmp_path,
        ("import math as m", ""),
        ("def f(x, y=1):\n    total = x + m.floor(2.5)\n    return [total * k for k in range(3)]", ""),
        ("raise RuntimeError('not needed')", ""),
        ("a = 1\nb, (c, *d) = 2, (3, 4)", ""),
        ("a = a + 1", ""),
        ("print(f(a), d)", "[0, 4, 8] [4]\n"),
        ("a = 7", ""),
    )
    again = run_again(tmp_path, trial_of(5))
    assert again.cells == (0, 1, 3, 4, 5)
    assert again.same and again.now == again.then == "[0, 4, 8] [4]\n"


def test_a_trial_that_prints_something_else_or_nothing_has_not_held(tmp_path):
    notebook(tmp_path, ("print(1 + 1)", "3\n"), ("x = 1", ""))
    assert not run_again(tmp_path, trial_of(0)).same
    assert not run_again(tmp_path, trial_of(1)).same


def test_what_a_lesson_changes_in_torch_stays_in_its_trial(tmp_path):
    import torch

    notebook(
        tmp_path,
        ("import torch", ""),
        ("torch.set_default_dtype(torch.float64)", ""),
        ("print(torch.ones(1).dtype)", ""),
    )
    before, dtype = torch.get_rng_state(), torch.get_default_dtype()
    assert run_again(tmp_path, trial_of(1, 2)).now == "torch.float64\n"
    assert torch.get_default_dtype() == dtype and torch.get_rng_state().equal(before)


def test_a_failing_cell_raises_and_a_trial_without_cells_is_refused(tmp_path):
    notebook(tmp_path, ("1 / 0", ""))
    with pytest.raises(ZeroDivisionError):
        run_again(tmp_path, trial_of(0))
    with pytest.raises(ValueError, match="trial='a': a trial with cells is needed"):
        run_again(tmp_path, trial_of())


@pytest.mark.parametrize("number", [16, 42, 37, 46, 24])
def test_verdicts_of_lessons_hold_when_they_are_run_again(trials, number):
    trial = next(trial for trial in trials if trial.number == number)
    again = run_again(NOTEBOOKS, trial)
    assert again.same, f"{again.now}\ninstead of\n{again.then}"
