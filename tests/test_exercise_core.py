"""The checks that check the learner: every kind of answer gets the verdict it deserves."""

import dataclasses
import html
import os
import random
import re
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

from lessons_lib.exercises import Exercise, Outcome, all_exercises, by_rank, edit, on_ranks
from lessons_lib.exercises.compare import difference
from lessons_lib.exercises.stub import is_stub
from lessons_lib.exercises.words import show_value


def mean(values):
    """The mean of a 1-D tensor."""
    return values.sum() / len(values)


def forgot_to_divide(values):
    """Divide by the number of values."""
    return values.sum()


def first_only(values):
    """All values
    count."""
    return values[0]


MISTAKES = [forgot_to_divide, edit("len(values)", "(len(values) - 1)", "Divide by n, not by n − 1."), first_only]
CASES = [(torch.tensor([1.0, 2.0, 6.0]),), (torch.arange(1.0, 12.0),)]


def exercise(**changes):
    return Exercise(**{"reference": mean, "cases": CASES, "mistakes": MISTAKES, "hints": ["Add.", "Divide."]} | changes)


def cell(source):
    """The last function or class of a source, as a notebook cell would define it."""
    names = {}
    exec(compile(textwrap.dedent(source), "<cell>", "exec"), names)
    return list(names.values())[-1]


STUBS = [
    "def f(x): ...",
    "def f(x):\n    'A docstring.'",
    "def f(x):\n    'A docstring.'\n    ...  # your answer",
    "def f(x):\n    pass",
    "def f(x):\n    return",
    "def f(x):\n    'A docstring.'\n    return None",
    "def f(x):\n    return ...",
    "def f(x):\n    raise NotImplementedError",
    "def f(x):\n    raise NotImplementedError('write me')",
    "f = lambda x: None",
    "class F:\n    def __init__(self, lr):\n        self.lr = lr\n    def step(self, x):\n        ...",
]
WRITTEN = [
    "def f(x): return x",
    "def f(x): return 0",
    "def f(x): return True",
    "def f(x):\n    if x < 0:\n        raise NotImplementedError\n    return x",
    "def f(x):\n    raise ValueError('no')",
    "def f(x):\n    x += 1",
    "def f(x):\n    yield x",
    "f = lambda x: x + 1",
    "class F:\n    def step(self, x):\n        return x",
]


@pytest.mark.parametrize("source", STUBS)
def test_a_stub_is_not_attempted(source):
    answer = cell(source)
    assert is_stub(answer)
    assert exercise().check(answer).state == "not attempted"


@pytest.mark.parametrize("source", WRITTEN)
def test_a_written_answer_is_not_a_stub(source):
    assert not is_stub(cell(source))


@pytest.mark.parametrize("answer", [None, ..., 3.0, torch.ones(3), "mean"])
def test_what_is_no_function_is_not_attempted(answer):
    assert exercise().check(answer).state == "not attempted"


def test_a_scaffold_that_returns_dots_is_not_attempted():
    scaffold = cell("def f(values):\n    total = ...  # your answer\n    return total")
    assert exercise().check(scaffold).state == "not attempted"


@pytest.mark.parametrize("answer", [mean, torch.mean, lambda values: values.mean()])
def test_the_reference_and_other_forms_are_correct(answer):
    assert exercise().check(answer).state == "correct"


def test_the_first_difference_is_named_with_case_place_and_values():
    verdict = exercise().check(lambda values: values.sum() / 2)
    assert verdict.state == "not yet"
    assert "mean(values=tensor([1, 2, 6]))" in verdict.message
    assert "expected 3, got 4.5" in verdict.message
    assert verdict.hint == "" and ".hint()" in verdict.message


@pytest.mark.parametrize("mistake", exercise().mistakes, ids=lambda mistake: mistake.hint)
def test_a_known_mistake_gets_its_own_hint(mistake):
    assert exercise().check(mistake.fn).hint == mistake.hint


def test_a_mistake_is_a_function_with_its_hint_as_docstring_or_an_edit_of_the_reference():
    """Hints say nothing of how their text is wrapped, and an edit sees what the reference sees."""
    forgotten, short, first = exercise().mistakes
    assert (forgotten.fn, forgotten.hint) == (forgot_to_divide, "Divide by the number of values.")
    assert first.hint == "All values count."
    assert short.hint == "Divide by n, not by n − 1." and short.fn(torch.tensor([1.0, 2.0, 6.0])) == 4.5
    (both,) = exercise(mistakes=[edit(".sum()", ".prod()", " / ", " * ", "…")]).mistakes
    assert both.fn(torch.tensor([1.0, 2.0, 6.0])) == 36


@pytest.mark.parametrize(
    ("mistake", "kind", "message"),
    [
        (lambda values: values, TypeError, "a function whose docstring is its hint is needed"),
        ("Divide.", TypeError, "mistakes has 'Divide.'"),
        (edit("mean of a", "sum of a", "…"), ValueError, "once is needed, not 0 times"),  # it is in the docstring alone
        (edit("values", "", "…"), ValueError, "old='values': code that stands in mean once is needed, not 3 times"),
    ],
)
def test_bad_mistakes_are_refused(mistake, kind, message):
    with pytest.raises(kind, match=message):
        _ = exercise(mistakes=[mistake]).mistakes


def test_an_edit_is_pairs_and_a_hint():
    with pytest.raises(TypeError, match="edit got 2 texts"):
        edit("old", "new")


def test_a_known_mistake_written_another_way_gets_the_same_hint():
    verdict = exercise().check(lambda values: torch.tensor([float(v) for v in values]).sum())
    assert verdict.hint == "Divide by the number of values."


def test_a_mistake_must_fit_in_every_case_to_give_its_hint():
    def first_then_something_else(values):
        return values[0] if len(values) == 3 else values[0] * 7

    verdict = exercise().check(first_then_something_else)
    assert (verdict.state, verdict.hint) == ("not yet", "")


def test_an_answer_that_raises_is_a_verdict_with_its_line():
    answer = cell("def f(values):\n    n = 0\n    return values.sum().item() / n")
    verdict = exercise().check(answer)
    assert verdict.state == "not yet"
    assert "raised ZeroDivisionError: float division by zero (line 3" in verdict.message


def test_an_answer_with_the_wrong_arguments_is_a_verdict():
    assert "TypeError" in exercise().check(lambda: 3).message


@pytest.mark.parametrize("bad", [SystemExit, RecursionError, AssertionError, StopIteration])
def test_every_exception_is_a_verdict(bad):
    def answer(values):
        raise bad("enough")

    assert f"raised {bad.__name__}: enough" in exercise().check(answer).message


def test_an_interrupt_of_the_learner_goes_through():
    def answer(values):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        exercise().check(answer)


@pytest.mark.parametrize(
    "body",
    [
        "while True:\n        pass",
        "while True:\n        try:\n            pass\n        except Exception:\n            pass",
    ],
)
def test_an_endless_loop_is_a_verdict(body):
    verdict = exercise(time_limit_s=0.2).check(cell(f"def f(values):\n    {body}"))
    assert "TimeoutError: no result within 0.2 s" in verdict.message


def test_a_missing_return_is_noticed():
    def answer(values):
        values.mean()

    assert "expected a tensor of shape (), got None (is a `return` missing?)" in exercise().check(answer).message


def test_random_numbers_are_the_same_for_both_and_put_back():
    def draw(n):
        return torch.randn(n), random.random(), np.random.rand(n)

    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    assert Exercise(draw, [(3,)]).check(lambda n: draw(n)).state == "correct"
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (random.getstate(), np.random.get_state()[1].tolist())


def test_a_reference_that_fails_on_this_machine_is_not_blamed_on_the_answer():
    def broken(x):
        raise OSError("no memory")

    with pytest.raises(RuntimeError, match="reference of broken"):
        Exercise(broken, [(1,)]).check(lambda x: x)


def test_refusing_bad_input_can_be_asked_for():
    def root(x):
        """The root of a number from 0; a ValueError for any other."""
        if x < 0:
            raise ValueError("x must not be negative")
        return x**0.5

    def other(x):
        if x < 0:
            raise ValueError("negative")
        return x**0.5

    task = Exercise(root, [(4,), (-4,)])
    assert task.check(other).state == "correct"
    assert "expected a ValueError" in task.check(lambda x: abs(x) ** 0.5).message


def send_twice(n):
    """Half as many will do."""
    return [1] * 2 * n


def budgeted(**changes):
    def once(n):
        return [1] * n

    def measure(fn, n):
        messages = fn(n)
        return Outcome(sum(messages) > 0, cost={"messages": len(messages)})

    return Exercise(once, [(4,), (2000,)], [send_twice], outcome=measure, **changes)


def test_a_budget_that_is_exceeded_is_named():
    verdict = budgeted().check(lambda n: [1] * (n + 1))
    assert "`once(n=4)` gives the right values, but messages: 5, where 4 is enough" in verdict.message
    assert budgeted().check(lambda n: send_twice(n)).hint == "Half as many will do."


def test_slack_widens_the_budget_and_a_better_answer_is_correct():
    assert budgeted(slack=1.5).check(lambda n: [1] * (n + 1)).state == "correct"
    assert "messages: 1 (best known 2,000)" in budgeted(may_be_cheaper=True).check(lambda n: [1]).message


def hand_over(comm, fn, numel):
    return fn(comm, torch.full((numel,), float(comm.rank)))


def pass_to_all(comm, mine):
    if comm.rank == 0:
        for rank in range(1, comm.world_size):
            comm.send(mine, dst=rank)
    else:
        comm.recv(mine, src=0)
    return mine


def test_an_answer_on_ranks_has_a_value_for_each_and_the_costs_of_the_ledgers():
    costs = ["messages sent by a rank", "messages received by a rank", "bytes sent by all ranks"]
    outcome = on_ranks(hand_over, pass_to_all, 6, world_size=3, costs=costs)
    assert difference(by_rank([torch.zeros(6)] * 3), outcome.value) is None
    assert outcome.cost == dict(zip(costs, [2, 1, 48], strict=True))
    assert on_ranks(hand_over, pass_to_all, 6, world_size=3).cost["bytes received by a rank"] == 24


def counted(comm, seen, turn):
    seen.append(turn)
    if comm.rank == 0:
        comm.send(torch.zeros(3), dst=1)
    else:
        comm.recv(torch.zeros(3), src=0)
    return list(seen)


def test_on_ranks_calls_a_function_several_times_in_one_process():
    outcome = on_ranks(counted, [], world_size=2, costs=["bytes sent by all ranks"], num_calls=2)
    assert outcome.value == by_rank([[[0], [0, 1]]] * 2)
    assert outcome.cost == {"bytes sent by all ranks in 2 calls": 24}


def test_own_comparison_and_a_value_it_was_not_made_for():
    task = exercise(compare=lambda expected, got: None if got.shape == () else f"shape {tuple(got.shape)}")
    assert task.check(lambda values: values[0]).state == "correct"
    assert "shape (3,)" in task.check(lambda values: values).message
    assert "cannot be compared" in task.check(lambda values: "text").message


def test_hints_come_in_order_then_point_to_the_solution():
    task = exercise()
    said = [repr(task.hint()) for _ in range(4)]
    assert said[:2] == ["Hint 1 of 2: Add.", "Hint 2 of 2: Divide."]
    assert "No more hints" in said[2] and ".solution()" in said[2]
    assert said[3] == said[0]


def test_the_solution_is_the_source_of_the_reference(capsys):
    task = exercise()
    task.solution()
    assert capsys.readouterr().out == task.source()
    assert cell("import torch\n" + task.source())(torch.ones(3)) == 1
    assert task.source().startswith('def mean(values):\n    """The mean')


def test_verdicts_say_the_same_in_text_and_html():
    verdicts = [exercise().check(answer) for answer in (None, mean, forgot_to_divide, lambda v: f"<b>{v.mean()}")]
    for verdict in verdicts:
        plain = html.unescape(re.sub(r"<[^>]*>", "", verdict._repr_html_()))
        assert plain.split() == repr(verdict).replace("`", "").split()


def test_verdicts_hold_nothing_that_changes_from_run_to_run():
    machine = f"{object()} in /tmp/ipykernel_{os.getpid()}/1.py"

    def raising(values):
        raise RuntimeError(machine)

    for answer in (raising, lambda values: object(), lambda values: [object()]):
        text = repr(exercise().check(answer))
        assert "0x" not in text and "ipykernel" not in text


def test_a_check_under_a_profiler_ends():
    script = """
        import cProfile
        from lessons_lib.exercises import momentum_to_adam as exercise

        with cProfile.Profile():
            print(exercise.momentum_step.check(exercise.momentum_step.reference).state)
        """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60)
    assert done.stdout == "correct\n", done.stderr


def test_what_reference_and_mistakes_print_stays_hidden(capsys):
    def chatty(values):
        print("reference")
        return values.mean()

    def also_chatty(values):
        """Be quiet."""
        print("mistake")
        return values.sum()

    Exercise(chatty, CASES, [also_chatty]).check(lambda values: print("learner"))
    assert set(capsys.readouterr().out.split()) == {"learner"}


@dataclasses.dataclass
class Point:
    x: float
    label: str = ""


T = torch.tensor
SAME = [
    (1.0, 1),
    (0.5, T(0.5)),
    (1.0, np.float32(1.0)),
    (float("nan"), float("nan")),
    (float("inf"), float("inf")),
    (1.0, 1.0 + 1e-9),
    ([1, 2], (1, 2)),
    ([0, 1, 2], range(3)),
    ({"a": T([1.0, float("nan")])}, {"a": T([1.0, float("nan")])}),
    (np.array([1.0, 2.0]), np.array([1.0, 2.0 + 1e-9])),
    (Point(1.0), Point(1.0)),
    ({1, 2}, {2, 1}),
    (None, None),
    (T([True, False]), T([True, False])),
    (T([]), T([])),
]
DIFFERENT = [
    (1, 2, "", "expected 1, got 2"),
    (1.0, float("nan"), "", "expected 1, got nan"),
    (float("inf"), 1.0, "", "expected inf, got 1"),
    (2.0, 1.99, "", "expected 2, got 1.99"),
    (2, 2.0, "", "expected 2, got 2.0 (float): a whole number is needed"),
    (T([1.0, 2.0]), T([1.0, 3.0]), "index 1", "expected 2, got 3"),
    (T([[1, 2], [3, 4]]), T([[1, 2], [3, 5]]), "index (1, 1)", "expected 4, got 5"),
    (T([1.0]), T([1.0, 2.0]), "", "expected shape (1,), got shape (2,)"),
    (T([1.0]), T([1.0]).double(), "", "expected dtype torch.float32, got dtype torch.float64"),
    (T([1.0]), [1.0], "", "expected a tensor of shape (1,), got a list"),
    (np.ones(2), np.zeros(2), "index 0", "expected 1, got 0"),
    (np.ones(2), np.ones(3), "", "expected shape (2,), got shape (3,)"),
    (np.ones(2), 1.0, "", "expected an array of shape (2,), got 1 (float)"),
    ([1, 2], [1], "", "expected 2 items, got 1 item"),
    ([1, [2, T([3.0])]], [1, [2, T([4.0])]], "item 1, item 1, index 0", "expected 3, got 4"),
    ({"w": 1, "b": 2}, {"w": 1}, "", "key 'b' is missing"),
    ({"w": 1}, {"w": 1, "b": 2}, "", "key 'b' is too much"),
    (by_rank([1, 2]), by_rank([1, 3]), "rank 1", "expected 2, got 3"),
    (Point(1.0), Point(2.0), ".x", "expected 1, got 2"),
    (Point(1.0), 1.0, "", "expected a Point, got 1 (float)"),
    ({1, 2}, {2, 3}, "", "expected {1, 2}, got {2, 3}"),
    ("ring", "tree", "", "expected 'ring', got 'tree'"),
    (True, "yes", "", "expected True (bool), got 'yes' (str)"),
    (3, None, "", "expected 3 (int), got None"),
]


@pytest.mark.parametrize(("expected", "got"), SAME)
def test_values_that_agree(expected, got):
    assert difference(expected, got) is None


@pytest.mark.parametrize(("expected", "got", "path", "words"), DIFFERENT)
def test_the_first_difference_of_two_values(expected, got, path, words):
    assert difference(expected, got) == (path, words)


def test_values_are_shown_short():
    assert show_value(torch.zeros(100, 3)) == "tensor of shape (100, 3)"
    assert show_value(np.zeros(100)) == "array of shape (100,)"
    assert len(show_value("x" * 1000)) == 100
    assert show_value([0.1 + 0.2, (1,)]) == "[0.3, (1,)]"
    assert show_value(mean) == "mean"


def test_bad_exercises_are_refused():
    with pytest.raises(TypeError, match="reference=3: a function or a class is needed"):
        Exercise(3, CASES)
    for cases in ([], [3], [(1,), [2]]):
        with pytest.raises(TypeError, match="cases of mean"):
            exercise(cases=cases).check(mean)


def test_cases_may_be_made_when_first_needed():
    assert exercise(cases=lambda: CASES).check(mean).state == "correct"


def test_all_exercises_are_found():
    for name, found in all_exercises().items():
        assert found and name not in ("core", "compare", "running")
