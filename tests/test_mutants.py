"""The checks of all exercises reject wrong answers: mutants of the references, a sample or with --all-mutants all.

`python tests/mutants.py` does the same by hand, for chosen exercises, and shows what it found as a table.
"""

import inspect
import random
import textwrap

import pytest
import torch
from mutants import Trial, answer, equivalents, exercises, run, table
from mutation.mutant import Mutant, mutants_of

from lessons_lib.devices import usable_cores
from lessons_lib.exercises import Exercise

TASKS = exercises()
# Two cores check so many in a minute. What ranks have to be launched for takes a hundred times as long.
SAMPLE, SAMPLE_OF_RANKS = 6, 2
# Mutants of these are known to survive. A name goes when its check has been made stricter.
OPEN = []
HANG = "sum(iter(int, 1))"  # one endless call in C: nothing in the same process can end it


class Counter:
    def count(self, items):
        return len(HANG) * 0 + len(items)


@pytest.fixture(scope="module")
def mutants():
    return {label: mutants_of(task.reference, task.source()) for label, task in TASKS.items()}


@pytest.fixture(scope="module")
def trials(mutants, request):
    """What the checks say to the mutants: a list of trials."""
    chosen = mutants
    if not request.config.getoption("--all-mutants"):
        chosen = {label: sample(label, found) for label, found in mutants.items()}
    return list(run(chosen, jobs=usable_cores()))


def sample(label, mutants):
    size = SAMPLE_OF_RANKS if "comm" in inspect.signature(TASKS[label].reference).parameters else SAMPLE
    return random.Random(label).sample(mutants, min(size, len(mutants)))


@pytest.mark.parametrize("label", TASKS)
def test_a_check_rejects_every_mutant_that_computes_something_else(label, trials, request):
    if label in OPEN and not request.config.getoption("--all-mutants"):
        request.applymarker(pytest.mark.xfail(reason="mutants are known to survive"))
    rows = table([trial for trial in trials if trial.exercise == label])
    assert not any(trial.fault for trial in trials if trial.exercise == label), "\n".join(rows)


def test_what_is_known_to_be_open_is_an_exercise():
    assert not set(OPEN) - TASKS.keys()


def test_what_is_listed_as_equivalent_is_a_mutant_and_says_why(mutants):
    diffs = {label: {mutant.diff for mutant in found} for label, found in mutants.items()}
    listed = equivalents()
    assert listed.keys() <= mutants.keys()
    gone = {label: found.keys() - diffs[label] for label, found in listed.items() if found.keys() - diffs[label]}
    assert not gone, f"no such mutant any more: {gone}"
    assert all(reason for found in listed.values() for reason in found.values())


def test_at_most_one_mutant_in_ten_is_listed_as_equivalent(mutants):
    assert 10 * sum(map(len, equivalents().values())) <= sum(map(len, mutants.values()))


def diffs(function):
    """Of every mutant of a function: the line with the edit in braces."""
    return [mutant.diff for mutant in mutants_of(function, textwrap.dedent(inspect.getsource(function)))]


def test_constants_comparisons_operators_and_conditions_are_changed():
    def clamp(x, low=0):
        """x, but at least `low`."""
        if x < low:
            return low
        return x + 0.5 * True

    assert diffs(clamp) == [
        "def clamp(x, low={0 → 1}):",
        "def clamp(x, low={0 → -1}):",
        "{if x < low: … → pass}",
        "if {x < low → True}:",
        "if x {< → <=} low:",
        "if x {< → >=} low:",
        "{return low → pass}",
        "return{ low → }",
        "{return x + 0.5 * True → pass}",
        "return x {+ → -} 0.5 * True",
        "return x + {0.5 → 1.5} * True",
        "return x + { → -}0.5 * True",
        "return x + 0.5 * {True → False}",
    ]


def test_loops_calls_and_results_are_changed():
    def spread(comm, xs):
        for i in range(1, len(xs)):
            comm.send(xs[i], dst=i)
        for x in list(xs):
            comm.recv(x, src=0)
        return min(xs), sum(xs)

    assert diffs(spread) == [
        "{for i in range(1, len(xs)): … → pass}",
        "for i in range({1, len(xs) → len(xs), 1}):",
        "for i in range(1{ →  + 1}, len(xs)):",
        "for i in range(1, len(xs){ →  - 1}):",
        "for i in range(1, len(xs){ →  + 1}):",
        "for i in range({1 → 0}, len(xs)):",
        "{comm.send(xs[i], dst=i) → pass}",
        "comm.send(xs[i]{, dst=i → })",
        "comm.send(xs[i], dst={i → 0})",
        "{for x in list(xs): … → pass}",
        "for x in list({xs) → list(xs))[:-1]}:",
        "for x in {list(xs) → xs}:",
        "{comm.recv(x, src=0) → pass}",
        "comm.recv(x{, src=0 → })",
        "comm.recv(x, src={0 → 1})",
        "comm.recv(x, src={0 → -1})",
        "comm.recv(x, src={0 → i})",
        "{return min(xs), sum(xs) → pass}",
        "return min(xs){, sum(xs) → }",
        "return {min(xs), sum(xs → (sum(xs), min(xs)})",
        "return {min → max}(xs), sum(xs)",
        "return min(xs), {sum → max}(xs)",
    ]


def test_what_is_in_place_is_done_out_of_place_and_the_other_way_round():
    def step(w, g):
        with torch.no_grad():
            w = w - g.clone()
            w += g.abs()  # no word of this
            w.mul_(g)
        return not (w is None and g is None)

    assert diffs(step) == [
        "{with torch.no_grad(): … → pass}",
        "with {torch.no_grad → nullcontext}():",
        "with torch.{no_grad → enable_grad}():",
        "{w = w - g.clone() → pass}",
        "w {= w - → -=} g.clone()",
        "w = w {- → +} g.clone()",
        "w = w - g{.clone() → }",
        "{w += g.abs() → pass}",
        "w {+= → -=} g.abs()",
        "w {+= → = w +} g.abs()",
        "w += g.{abs → abs_}()",
        "{w.mul_(g) → pass}",
        "w.{mul_ → mul}(g)",
        "{return not (w is None and g is None) → pass}",
        "return {not (w is None and g is None) → w is None and g is None}",
        "return not (w is { → not }None and g is None)",
        "return not (w is None {and → or} g is None)",
        "return not ({w is None and  → }g is None)",
        "return not (w is None{ and g is None → })",
        "return not (w is None and g is { → not }None)",
    ]


def test_a_mutant_has_the_globals_and_the_closure_of_the_reference_and_a_source():
    size = 3

    def double():
        return [size, textwrap.dedent("  x")] * 2

    mutants = mutants_of(double, textwrap.dedent(inspect.getsource(double)))
    (thrice,) = (mutant for mutant in mutants if mutant.diff.endswith("* {2 → 3}"))
    function = thrice.build(double)
    assert function() == [3, "x"] * 3
    assert function.__name__ == "double" and inspect.getsource(function) == thrice.source


def test_a_class_has_mutants_in_the_names_of_its_module():
    mutants = mutants_of(Counter, inspect.getsource(Counter))
    assert [mutant.diff for mutant in mutants] == [
        "return len(HANG) {* → /} 0 + len(items)",
        "return len(HANG) * 0 {+ → -} len(items)",
        "return len(HANG) * {0 → 1} + len(items)",
        "return len(HANG) * {0 → -1} + len(items)",
    ]
    assert mutants[2].build(Counter)().count([1, 2]) == len(HANG) + 2


def test_a_mutant_with_the_bytecode_of_another_is_made_once_and_a_stub_never():
    def power(x):
        for _ in range(2):
            x = x + x
            x = x + x
        return x

    def same(x):
        return x

    found = diffs(power)
    assert [diff for diff in found if "x {+ → -} x" in diff] == ["x = x {+ → -} x", "x = x {+ → -} x (number 2)"]
    assert len(set(found)) == len(found) and "{return x → pass}" in found
    assert "return{ x → }" not in found, "it is compiled to the same as `pass`"
    assert diffs(same) == []


def test_a_check_that_cannot_see_a_mutant_is_found_out():
    def add(a, b):
        """a + b."""
        return a + b

    task = Exercise(add, cases=[(3, 0), (4, 0)])
    found = [Trial("lesson.add", m, answer(task, m.build(add)), "") for m in mutants_of(add, task.source())]
    assert table(found) == [
        "exercise                                      mutants  rejected  equivalent  survived   score",
        "lesson.add                                          1         0           0         1     0 %",
        "all                                                 1         0           0         1     0 %",
        "",
        "lesson.add, line 3: return a {+ → -} b  [survived]",
    ]
    task = Exercise(add, cases=[(3, 0), (4, 1)])
    assert answer(task, found[0].mutant.build(add)) == "not yet"


def test_an_equivalent_that_is_rejected_is_a_fault():
    mutant = Mutant("f", 1, "", "")
    assert Trial("lesson.f", mutant, "not yet", "it is the same").fault == "listed as equivalent, but not yet"
    assert not Trial("lesson.f", mutant, "correct", "it is the same").fault


def test_whatever_a_mutant_does_the_others_are_checked():
    bodies = {
        "wrong": "return z",
        "crash": "__import__('os')._exit(1)",
        "memory": "x = [z.new_empty(1 << 27) for _ in range(1000)]",
        "poison": "type(z).exp = lambda z: 1 / 0",
        "right": "return z.logsumexp(dim)",
    }
    assert answers_to(bodies) == {
        "wrong": "not yet",
        "crash": "crashed",
        "memory": "not yet",
        "poison": "not yet",
        "right": "correct",
    }
    assert answers_to({"hang": HANG}, hung_s=10) == {"hang": "hung"}


def answers_to(bodies, **limits):
    """{name: what became of it} of functions of which the bodies are given."""
    label, source = "losses.log_sum_exp", "def log_sum_exp(z, dim):\n    {}\n"
    mutants = [Mutant("log_sum_exp", 1, name, source.format(body)) for name, body in bodies.items()]
    return {trial.mutant.diff: trial.answer for trial in run({label: mutants}, jobs=2, **limits)}
