"""Every exercise of every lesson: right answers are accepted however written, wrong ones get the hint made for them.

`tests/alternatives/<lesson>.py` holds, for each exercise of the lesson, functions that are right but written another
way (`alternatives`) and further wrong answers (`wrong`): dictionaries from the exercise's name to a list.
"""

import ast
import importlib.util
import pathlib

import pytest

from lessons_lib.exercises import all_exercises

ALTERNATIVES = pathlib.Path(__file__).parent / "alternatives"
EXERCISES = {f"{m}.{name}": task for m, found in all_exercises().items() for name, task in found.items()}


def other_answers(lesson, kind):
    path = ALTERNATIVES / f"{lesson}.py"
    spec = importlib.util.spec_from_file_location(f"alternatives_{lesson}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, kind, {})


def parameters(kind):
    """(exercise, answer) for every mistake, alternative or further wrong answer, as `parametrize` takes them."""
    found = []
    for label, task in EXERCISES.items():
        lesson, name = label.split(".")
        for answer in task.mistakes if kind == "mistakes" else other_answers(lesson, kind).get(name, []):
            function = answer.fn if kind == "mistakes" else answer
            found.append(pytest.param(task, answer, id=f"{label}-{getattr(function, '__name__', 'answer')}"))
    return found


def stub_of(task):
    """The cell a learner starts from: the reference with every body cut down to its docstring and `...`."""
    tree = ast.parse(task.source())
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            doc = node.body[:1] if ast.get_docstring(node) else []
            node.body, node.decorator_list = [*doc, ast.Expr(ast.Constant(...))], []
    names = dict(task.reference.__globals__) if hasattr(task.reference, "__globals__") else {}
    exec(compile(ast.fix_missing_locations(tree), "<stub>", "exec"), names)
    return names[task.name]


every_exercise = pytest.mark.parametrize("task", EXERCISES.values(), ids=EXERCISES.keys())


@every_exercise
def test_an_exercise_is_whole(task):
    assert task.reference.__doc__, "the stub needs a docstring that says what to write"
    assert len(task.mistakes) >= 3 and len(task.hints) >= 2
    hints = [mistake.hint for mistake in task.mistakes]
    assert len(set(hints)) == len(hints) and all(hints), "every mistake has a hint of its own"


@pytest.mark.parametrize("label", EXERCISES)
def test_an_exercise_is_named_as_its_function_and_has_another_right_answer(label):
    lesson, name = label.split(".")
    assert EXERCISES[label].name == name, "the learner's function and the exercise have one name"
    assert other_answers(lesson, "alternatives").get(name), f"no alternative in {lesson}.py"


@every_exercise
def test_the_reference_is_correct(task):
    verdict = task.check(task.reference)
    assert verdict.state == "correct", verdict


@every_exercise
def test_a_stub_is_not_attempted(task):
    assert task.check(stub_of(task)).state == task.check(None).state == "not attempted"


@every_exercise
def test_nonsense_is_a_verdict(task):
    def nothing(*args, **kwargs):
        del args, kwargs

    def raising(*args, **kwargs):
        raise LookupError("nothing here")

    for answer in (nothing, raising, lambda: 1):
        assert task.check(answer).state == "not yet"


@pytest.mark.parametrize(("task", "mistake"), parameters("mistakes"))
def test_a_mistake_gets_its_own_hint(task, mistake):
    verdict = task.check(mistake.fn)
    assert (verdict.state, verdict.hint) == ("not yet", mistake.hint), verdict
    assert "NameError" not in str(verdict), "the mistake itself is mistaken"


@pytest.mark.parametrize(("task", "answer"), parameters("alternatives"))
def test_a_right_answer_written_another_way_is_correct(task, answer):
    verdict = task.check(answer)
    assert verdict.state == "correct", verdict


@pytest.mark.parametrize(("task", "answer"), parameters("wrong"))
def test_a_further_wrong_answer_is_rejected(task, answer):
    verdict = task.check(answer)
    assert verdict.state == "not yet", verdict
    assert repr(task.check(answer)) == repr(verdict), "a verdict is the same every time"
