"""What a check sees beside the value: arguments, memory of earlier calls, settings, kinds of numbers, costs."""

import copy
import os
import random
import sys
import textwrap
import warnings
from fractions import Fraction

import numpy as np
import pytest
import torch

from lessons_lib.exercises import Exercise, Outcome, on_ranks
from lessons_lib.exercises.compare import difference, not_whole


def total(x):
    """The sum of a tensor."""
    return x.sum().item()


def cell(source):
    """The last function of a source, as a notebook cell would define it."""
    names = {"torch": torch, "os": os, "sys": sys, "warnings": warnings, "random": random}
    exec(compile(textwrap.dedent(source), "<cell>", "exec"), names)
    return list(names.values())[-1]


def task(**changes):
    cases = [(torch.tensor([1.0, 2.0, 6.0]),), (torch.arange(1.0, 12.0),)]
    return Exercise(**{"reference": total, "cases": cases} | changes)


def scaled(model, parts, factor):
    """The sum of the parts, times the first weight of the model, times the factor."""
    return sum(part.sum().item() for part in parts["all"]) * model[0].weight[0, 0].item() * factor


MODEL = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout())
SCALED = [(MODEL, {"all": [torch.ones(2), np.ones(3)]}, 2)]


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ("parts['all'][0].add_(1)", "parts"),
        ("parts['all'][1] += 1", "parts"),
        ("parts['all'].append(3)", "parts"),
        ("parts['more'] = 1", "parts"),
        ("parts['all'][0].requires_grad_()", "parts"),
        ("model.eval()", "model"),
        ("model.cached = 3", "model"),
        ("model[0].weight.requires_grad_(False)", "model"),
        ("model[0].weight.grad = torch.ones(2, 2)", "model"),
        ("model[0].weight = torch.nn.Parameter(torch.ones(2, 2))", "model"),
    ],
)
def test_a_changed_argument_is_named_though_the_value_is_right(change, name):
    task, names = Exercise(scaled, SCALED), {"scaled": scaled, "torch": torch}
    lines = "def f(model, parts, factor):", "result = scaled(model, parts, factor)", change, "return result"
    exec("\n    ".join(lines), names)
    assert f"changed its argument `{name}`: it must stay as it is" in task.check(names["f"]).message
    assert task.check(scaled).state == "correct"


def test_what_may_end_in_any_state_is_scratch():
    def spoil(x):
        result = x.sum().item()
        x.zero_()
        return result

    assert task(scratch=("x",)).check(spoil).state == "correct"
    assert task().check(spoil).state == "not yet"
    assert task().cases[0][0].tolist() == [1.0, 2.0, 6.0]


def clip(gradients, limit):
    """Clip each gradient to the limit, in place; return how many there are."""
    for gradient in gradients:
        gradient.clamp_(-limit, limit)
    return len(gradients)


CLIP = [([torch.tensor([1.0, 5.0]), torch.tensor([-7.0])], 2.0)]


def test_in_place_the_very_tensors_that_were_given_must_end_as_with_the_reference():
    def other_tensors(gradients, limit):
        for k, gradient in enumerate(gradients):
            gradients[k] = gradient.clamp(-limit, limit)
        return len(gradients)

    def half(gradients, limit):
        gradients[0].clamp_(-limit, limit)
        return len(gradients)

    def by_data(gradients, limit):
        for gradient in gradients:
            gradient.data = gradient.data.clamp(-limit, limit)
        return len(gradients)

    task = Exercise(clip, CLIP)
    assert task.check(clip).state == task.check(by_data).state == "correct"
    found = task.check(other_tensors).message
    assert "argument `gradients` afterwards, the tensors given, item 0, index 1: expected 2, got 5" in found
    assert "argument `gradients` afterwards" in task.check(half).message
    assert "argument `gradients` afterwards" in task.check(lambda gradients, limit: 2).message


def test_arguments_are_watched_inside_an_outcome_and_on_ranks():
    def doubled(comm, mine):
        """Twice `mine`."""
        return mine * 2

    def in_place(comm, mine):
        return mine.mul_(2)

    def on_a_rank(comm, fn, n):
        return fn(comm, torch.ones(n))

    inside = Exercise(doubled, [(2,)], outcome=lambda fn, n: fn(None, torch.ones(n)))
    ranks = Exercise(doubled, [(2,)], outcome=lambda fn, n: on_ranks(on_a_rank, fn, n, world_size=2))
    for each in (inside, ranks):
        assert each.check(copy.copy(doubled)).state == "correct"
        assert "changed its argument `mine`: it must stay as it is" in each.check(in_place).message


def test_what_is_kept_between_calls_and_changes_the_result_is_found():
    grows = cell("def f(x, seen=[]):\n    seen.append(1)\n    return x.sum().item() + (len(seen) > 2)")
    first_only = cell("""
        kept = []
        def f(x):
            kept.append(x.sum().item())
            return kept[-1] if len(kept) < 3 else kept[0]
        """)
    for answer in (grows, first_only):
        assert "called once more after other calls: expected" in task().check(answer).message
    harmless = cell("seen = []\ndef f(x):\n    seen.append(1)\n    return x.sum().item()")
    assert task().check(harmless).state == "correct"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("torch.set_default_dtype(torch.float64)", "left torch's default dtype at torch.float64"),
        ("torch.set_default_device('meta')", "left torch's default device at meta"),
        ("torch.set_grad_enabled(False)", "left torch.is_grad_enabled() at False"),
        ("torch.set_num_threads(torch.get_num_threads() + 1)", "left torch's number of threads at"),
        ("torch.use_deterministic_algorithms(True)", "left torch's deterministic algorithms at True"),
        ("sys.setrecursionlimit(5000)", "left the recursion limit at 5000"),
        ("os.chdir('/')", "left the working directory at /"),
        ("os.environ['A_NEW_ONE'] = '1'", "left os.environ changed"),
        ("sys.path.append('nowhere')", "left sys.path changed"),
    ],
)
def test_settings_left_changed_are_named_and_put_back(change, words):
    def settings():
        of_torch = torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled()
        of_torch += torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
        return of_torch, sys.getrecursionlimit(), os.getcwd(), dict(os.environ), list(sys.path)

    before = settings()
    verdict = task().check(cell(f"def f(x):\n    result = x.sum().item()\n    {change}\n    return result"))
    assert (verdict.state, words in verdict.message) == ("not yet", True), verdict
    assert settings() == before


def test_filters_of_warnings_and_random_numbers_are_put_back_without_a_word():
    before = list(warnings.filters), torch.get_rng_state(), random.getstate()
    quiet = cell("""
        def f(x):
            warnings.filterwarnings("ignore")
            torch.manual_seed(3)
            random.random()
            return x.sum().item()
        """)
    assert task().check(quiet).state == "correct"
    assert (warnings.filters, random.getstate()) == (before[0], before[2])
    assert torch.equal(torch.get_rng_state(), before[1])


def test_the_folder_that_torch_names_for_what_it_compiles_is_put_back_without_a_word():
    before = dict(os.environ)
    answer = cell("def f(x):\n    os.environ['TORCHINDUCTOR_CACHE_DIR'] = 'elsewhere'\n    return x.sum().item()")
    assert task().check(answer).state == "correct"
    assert dict(os.environ) == before


def learn(w):
    """The gradient of w · w."""
    w = w.clone().requires_grad_()
    (w * w).sum().backward()
    return w.grad, torch.ones(2)


def test_settings_that_the_kernel_changed_before_do_not_matter():
    makes = Exercise(learn, lambda: [(torch.ones(3),), (torch.tensor([0.5]),)])
    dtype = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        with torch.no_grad(), torch.device("meta"):
            assert makes.check(learn).state == "correct"
        assert torch.get_default_dtype() == torch.float64 and makes.cases[0][0].dtype == torch.float32
    finally:
        torch.set_default_dtype(dtype)


def count(n):
    """Count to n: [whole number, a real half, whether n is even]."""
    return {"count": n, "half": n / 2, "even": n % 2 == 0}


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"count": 3.0}, "key 'count': expected 3, got 3.0 (float): a whole number is needed"),
        ({"count": Fraction(3)}, "got Fraction(3, 1) (Fraction): a whole number is needed"),
        ({"count": np.int32(3)}, ""),
        ({"count": torch.tensor(3)}, ""),
        ({"count": np.array(3)}, ""),
        ({"half": np.float32(1.5)}, ""),
        ({"half": torch.tensor(1.5)}, ""),
        ({"half": np.array(1.5)}, ""),
        ({"half": Fraction(3, 2)}, ""),
        ({"half": 10**400}, "key 'half': expected 1.5, got 1000"),
        ({"half": 10**5000}, "key 'half': expected 1.5, got an int"),
        ({"even": 0}, "key 'even': expected False (bool), got 0 (int)"),
        ({"even": np.bool_(False)}, ""),
        ({"count": True}, "key 'count': expected 3 (int), got True (bool)"),
    ],
)
def test_numbers_by_what_is_asked_for(other, words):
    message = Exercise(count, [(3,)]).check(lambda n: {"count": n, "half": n / 2, "even": False} | other).message
    assert (words or "It agrees with the reference") in message


def test_a_real_is_any_real_where_the_reference_gives_one():
    reals = [1, 1.0, np.float64(1), np.int8(1), torch.tensor(1), torch.tensor(1.0), np.array(1.0), Fraction(1)]
    for real in reals:
        assert difference([1.0, {"a": 1.0}], (real, {"a": real})) is None
    assert difference(1.0, True) is not None and difference("1", 1) is not None


def test_whole_numbers_can_be_asked_for_inside_an_outcome():
    assert not_whole([(0, np.int64(3)), {"a": torch.tensor(2)}]) == ""
    assert not_whole([(0, 2.0)]) == "2.0 (float): a whole number is needed"
    assert not_whole([(0, False)]) == "False (bool): a whole number is needed"
    assert "None" in not_whole(None)


def send(n):
    """Send n messages."""
    return [1] * n


def test_a_cost_far_below_the_best_is_not_praised():
    def measure(fn, n):
        return Outcome("sent", {"messages": len(fn(n))})

    def with_messages(n, **changes):
        return Exercise(send, [(12,)], outcome=measure, **changes).check(lambda _: [1] * n)

    assert [with_messages(n).state for n in (7, 8, 12, 13)] == ["not yet", "correct", "correct", "not yet"]
    found = with_messages(7).message
    assert "right values with messages: 7, where 12 is the least that is known to do" in found
    assert "something is done where it is not counted" in found
    assert with_messages(7, may_be_cheaper=True).state == "correct"


def test_a_fault_that_an_outcome_names_is_the_verdict():
    def measure(fn, n):
        return Outcome(0, faults=["breaks a rule: round 2 has rank 3 in two pairs"] if len(fn(n)) > n else [])

    verdict = Exercise(send, [(12,)], outcome=measure).check(lambda n: [1] * 13)
    assert verdict.message.startswith("`send(n=12)` breaks a rule: round 2 has rank 3 in two pairs.")


def test_large_tensors_of_a_case_are_named_by_their_size():
    verdict = Exercise(total, [(torch.ones(6, 2),)]).check(lambda x: 0.0)
    assert verdict.message.startswith("`total(x)`: expected 12, got 0. (x: a tensor of 6 rows and 2 columns.)")
    assert "(x: a tensor of 11 numbers.)" in Exercise(total, [(torch.ones(11),)]).check(lambda x: 0.0).message
