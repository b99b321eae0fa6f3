"""Where a run on many ranks parts from one process: every exhibit is named, and right runs are not accused."""

import sys

import cloudpickle
import pytest
import torch
from left_behind import nothing_is_left_behind  # noqa: F401
from torch import nn

from lessons_lib import RankFailed, check_run, launch
from lessons_lib.museum import EXHIBITS, table
from lessons_lib.museum.exhibit import loss_of, share, start, steps
from lessons_lib.parallel import DataParallel, FullySharded, PipelineParallel, parallelize
from lessons_lib.schedules import one_f_one_b

cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.mark.parametrize("name", EXHIBITS)
def test_an_exhibit_is_named_by_step_tensor_ranks_and_kind(name):
    exhibit, found = EXHIBITS[name], EXHIBITS[name].compare()
    assert not found and (found.first.step, found.first.tensor) == (exhibit.step, exhibit.tensor), found
    assert found.first.ranks == exhibit.ranks and found.first.kind.startswith(exhibit.kind), found
    assert f"step {exhibit.step}, {exhibit.tensor}, " in str(found)


@pytest.mark.parametrize("name", EXHIBITS)
def test_a_mended_exhibit_is_equal_to_one_process(name):
    found = EXHIBITS[name].compare(mended=True)
    assert found and found.num_steps > 1, found


def test_the_table_says_what_is_wrong_and_what_was_found():
    exhibit = EXHIBITS["one_flipped_bit"]
    ((name, told, found),) = table([exhibit])
    assert (name, told) == ("one_flipped_bit", "one flipped bit")
    assert found.startswith("step 3, weight/0.weight, rank 2 of 4: ranks differ")


def losses(comm, run):
    """The loss of the whole data after each step, of the weights that the run has recorded."""
    _, x, y = start()
    found = []

    def record(step, module=None, **tensors):
        if module is not None:
            found.append(loss_of(module, x, y).item())
        elif "evaluated" in tensors:
            found.append(float(tensors["evaluated"]))
        elif "table" in tensors:
            found.append((x @ tensors["table"] @ tensors["table"].T - x).square().mean().item())

    run(comm, record)
    return found


@pytest.mark.parametrize("name", EXHIBITS)
def test_an_exhibit_passes_the_naive_test(name):
    found = launch(losses, EXHIBITS[name].run, world_size=4)[0]
    assert found[-1] < found[0], "on rank 0, whose log people read, the loss falls, and nothing raises"


def wrapped(comm, record, wrap):
    torch.manual_seed(comm.rank)
    net = wrap(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1)).double(), comm)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    is_split = not isinstance(net, (DataParallel, FullySharded))
    for step, x, y in steps(*start()[1:]):
        optimizer.zero_grad()
        own = (x, y) if is_split else (share(x, comm), share(y, comm))
        loss_of(net, *own).backward()
        record(step, net)
        optimizer.step()


def piped(comm, record):
    torch.manual_seed(comm.rank)
    layers = [nn.Sequential(nn.Linear(6, 8), nn.Tanh()).double(), nn.Linear(8, 1).double()]
    layers = [nn.Sequential(*layers)] if comm.world_size == 1 else layers
    net = PipelineParallel(layers, comm, one_f_one_b(comm.world_size, 4))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for step, x, y in steps(*start()[1:]):
        optimizer.zero_grad()
        record(step, loss=net.step(x, y, nn.functional.mse_loss))
        optimizer.step()


WRAPS = {
    "DataParallel": DataParallel,
    "FullySharded": FullySharded,
    "tensor": lambda net, comm: parallelize(net, comm, {"0": "column", "2": "row"}),
}


@pytest.mark.parametrize("name", WRAPS)
@pytest.mark.parametrize("world_size", [2, 3])
def test_a_right_run_is_not_accused(name, world_size):
    found = check_run(lambda comm, record: wrapped(comm, record, WRAPS[name]), world_size)
    assert found and str(found) == f"equal on {world_size} ranks and on one, in all of 8 steps", found


def test_a_pipeline_is_not_accused():
    assert check_run(piped, 2)


def test_what_is_recorded_on_some_ranks_alone_or_in_another_shape_is_named():
    def alone(comm, record):
        if comm.rank < 2:
            record(0, a=torch.ones(3))

    def shaped(comm, record):
        record(0, a=torch.ones(3))
        record(1, a=torch.ones(2 + comm.world_size))

    def broken(comm, record):
        record(0, a=torch.tensor([1.0, float("nan") if comm.world_size > 1 else 1.0]))

    assert check_run(alone).first.ranks == (2, 3) and check_run(alone).first.kind == "not recorded"
    assert check_run(shaped).first.kind == "another shape, (6,) for (3,)"
    assert check_run(broken).first.kind == "nan"


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="train recorded nothing"):
        check_run(lambda comm, record: None)
    with pytest.raises(RankFailed, match="record was given a int"):
        check_run(lambda comm, record: record(0, 5))
    with pytest.raises(RankFailed, match="step=-1: a whole number of at least 0"):
        check_run(lambda comm, record: record(-1, a=1.0))
    with pytest.raises(ValueError, match="world_size=0: a whole number of at least 1"):
        check_run(lambda comm, record: None, 0)
