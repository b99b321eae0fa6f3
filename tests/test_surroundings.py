"""What a rank finds around it: source lines, random numbers of its own, and the launcher's settings as they are now."""

import functools
import os
import random
import sys

import cloudpickle
import nbclient
import nbformat
import numpy as np
import pytest
import torch

from lessons_lib import RankFailed, launch

cloudpickle.register_pickle_by_value(sys.modules[__name__])
TRANSPORTS = ("shared_memory", "torch")


def run_cells(*sources):
    """What the last of these notebook cells prints."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    nbclient.NotebookClient(notebook, kernel_name="python3", timeout=120).execute()
    return "".join(output["text"] for output in notebook.cells[-1].outputs if output.get("name") == "stdout")


# --- source lines -----------------------------------------------------------------------------------------------------

CELL = """
from lessons_lib import RankFailed, launch

def helper(x):
    return 1 / x          # a plain function

class Model:
    def run(self, comm):
        return [helper(x) for x in [comm.rank]]

def nested(comm):
    def inner():
        raise KeyError("nested")
    inner()

def again(comm):
    launch(lambda inner: helper(inner.rank), world_size=1)

def show(fn):
    try:
        launch(fn, world_size=2)
    except RankFailed as error:
        print(error)
"""


@pytest.mark.parametrize(
    ("call", "lines"),
    [
        ("show(lambda comm: helper(comm.rank))", ['"Cell In[2]", line 1, in <lambda>', "show(lambda comm: helper"]),
        ("show(Model().run)", ["line 8, in run", "return 1 / x          # a plain function"]),
        ("show(nested)", ['"Cell In[1]", line 12, in inner', 'raise KeyError("nested")']),
        ("show(again)", ["launch(lambda inner: helper(inner.rank), world_size=1)", "line 4, in helper"]),
    ],
)
def test_a_traceback_shows_the_lines_of_the_cell(call, lines):
    shown = run_cells(CELL, call)
    assert all(line in shown for line in lines), shown


def test_a_function_that_a_rank_returns_shows_its_lines_too():
    shown = run_cells(
        "import traceback\nfrom lessons_lib import launch\ndef make(comm):\n    return lambda x: 1 / x",
        "try:\n    launch(make, world_size=1)[0](0)\nexcept ZeroDivisionError:\n    print(traceback.format_exc())",
    )
    assert "return lambda x: 1 / x" in shown


def test_a_rank_does_not_change_the_classes_of_the_notebook():
    shown = run_cells(
        """
from lessons_lib import launch

class Counter:
    total = 0

def count(comm):
    Counter.total += 1 + comm.rank
    Counter.extra = "of a rank"
    return Counter(), Counter.total
""",
        """
results = launch(count, world_size=3)
print([total for _, total in results], Counter.total, hasattr(Counter, "extra"))
print(all(type(counter) is Counter for counter, _ in results))
""",
    )
    assert shown == "[1, 2, 3] 0 False\nTrue\n"


def test_a_class_that_a_rank_makes_comes_back_whole():
    def make(comm):
        class Own:
            value = comm.rank

        return Own()

    assert [result.value for result in launch(make, world_size=2)] == [0, 1]


# --- random numbers ---------------------------------------------------------------------------------------------------

DRAWS = {
    "torch": (torch.manual_seed, lambda comm: torch.rand(1).item()),
    "numpy": (np.random.seed, lambda comm: np.random.rand()),
    "python": (random.seed, lambda comm: random.random()),
}


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("kind", DRAWS)
def test_every_rank_and_every_launch_draws_its_own_numbers_and_a_seed_brings_them_back(kind, transport):
    seed, draw = DRAWS[kind]
    seed(7)
    first, second = (launch(draw, world_size=3, transport=transport) for _ in range(2))
    assert len({*first, *second}) == 6
    seed(7)
    assert [launch(draw, world_size=3, transport=transport) for _ in range(2)] == [first, second]
    seed(8)
    assert not set(launch(draw, world_size=3, transport=transport)) & {*first, *second}


def test_four_ranks_estimate_pi_four_times():
    def inside(comm):
        return (torch.rand(20_000, 2).square().sum(1) < 1).double().mean().item() * 4

    torch.manual_seed(0)
    estimates = launch(inside, world_size=4)
    assert len(set(estimates)) == 4
    assert sum(estimates) / 4 == pytest.approx(np.pi, abs=0.05)


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_settings_are_those_of_the_launcher_now(monkeypatch, tmp_path, transport):
    launch(lambda comm: None, world_size=1)  # the server that ranks come from runs by now
    (tmp_path / "only_here.py").write_text("answer = 42\n")
    monkeypatch.setenv("ADDED_LATER", "yes")
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)

    def look(comm):
        import only_here

        return os.environ.get("ADDED_LATER"), "HOME" in os.environ, os.getcwd(), torch.ones(1).dtype, only_here.answer

    try:
        assert launch(look, world_size=2, transport=transport) == [("yes", False, str(tmp_path), torch.float64, 42)] * 2
    finally:
        torch.set_default_dtype(before)


def test_a_deleted_working_directory_is_named(monkeypatch, tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(FileNotFoundError, match="the working directory has been deleted"):
        launch(lambda comm: comm.rank, world_size=2)


# --- options of launch, and parameters of the same name ---------------------------------------------------------------


def traced(comm, trace=False, links=None, world_size=0):
    return trace, links, world_size


def test_an_option_that_the_function_would_not_get_is_refused():
    with pytest.raises(TypeError, match=r"trace=True is an option of launch, and .*functools.partial\(fn, trace=...\)"):
        launch(functools.partial(traced, world_size=3), world_size=1, trace=True)
    with pytest.raises(TypeError, match="world_size=2 is an option of launch"):
        launch(traced, world_size=2)
    assert launch(functools.partial(traced, trace=True, world_size=3), world_size=1) == [(True, None, 3)]
    assert launch(traced, True, "links", 5, world_size=1, trace=True) == [(True, "links", 5)]


def test_an_error_names_the_rank_and_its_line():
    with pytest.raises(RankFailed, match="ZeroDivisionError") as caught:
        launch(lambda comm: 1 / comm.rank, world_size=2)
    assert "launch(lambda comm: 1 / comm.rank, world_size=2)" in caught.value.details
