"""The mean of gradients, and their norm, over the axes of a mesh."""

import pytest
import torch

from lessons_lib import RankFailed, launch
from lessons_lib.comm import Mesh
from lessons_lib.parallel import average_gradients, clip_grad_norm_, lies_on

TIGHT = {"rtol": 1e-12, "atol": 1e-12}


def parameter(size, value=None):
    made = torch.zeros(size, dtype=torch.float64, requires_grad=True)
    made.grad = None if value is None else torch.full((size,), float(value), dtype=torch.float64)
    return made


def averaged(comm):
    """Gradients on a mesh of 2 x 2: everywhere, split over ep, on one rank alone, on none, frozen."""
    mesh = Mesh(comm, dp=2, ep=2)
    whole, part = parameter(3, comm.rank), parameter(2, 10 * comm.rank)
    lies_on(part, mesh["ep"])
    alone, none, frozen = parameter(1, 4 if comm.rank == 2 else None), parameter(2), parameter(2).requires_grad_(False)
    average_gradients([whole, part, alone, none, frozen, whole], mesh, ("dp", "ep"))
    return [tensor.grad for tensor in (whole, part, alone, none, frozen)]


@pytest.mark.parametrize("transport", ["shared_memory", "torch"])
def test_gradients_are_means_over_all_ranks_but_sums_over_the_axis_that_splits_them(transport):
    for rank, (whole, part, alone, none, frozen) in enumerate(launch(averaged, world_size=4, transport=transport)):
        assert whole.tolist() == [1.5] * 3
        assert part.tolist() == [(10 * (rank % 2) + 10 * (rank % 2 + 2)) / 4] * 2  # ranks 0 and 2, or 1 and 3
        assert alone.tolist() == [1.0]
        assert none is None and frozen is None


def averaged_again(comm):
    """What is said to a second mean over dp; gradients after a mean over ep, and after another backward pass."""
    mesh = Mesh(comm, dp=2, ep=2)
    part = parameter(1, comm.rank)
    lies_on(part, mesh["ep"])
    average_gradients([part], mesh, "dp")
    try:
        average_gradients([part], mesh, ("ep", "dp"))
    except RuntimeError as error:
        said = str(error)
    average_gradients([part], mesh, "ep")
    once = part.grad.item()
    (part * comm.rank).sum().backward()
    average_gradients([part], mesh, "dp")
    return said, once, part.grad.item()


def test_a_mean_is_taken_once_over_each_axis():
    for rank, (said, once, after_more) in enumerate(launch(averaged_again, world_size=4)):
        mean = (rank % 2 + rank % 2 + 2) / 4
        assert "mean over 'dp' already" in said
        assert once == mean and after_more == mean + (rank % 2 + rank % 2 + 2) / 2


def averaged_and_clipped(comm):
    mesh, part = Mesh(comm, dp=2), parameter(1, 3)
    average_gradients([part], mesh, "dp")
    clip_grad_norm_([part], 0.5, mesh)
    with pytest.raises(RuntimeError, match="mean over 'dp' already"):
        average_gradients([part], mesh, "dp")


def test_a_mean_is_still_one_when_it_has_been_clipped():
    launch(averaged_and_clipped, world_size=2)


def norms(comm):
    """Norms of a gradient of which 0 to 6 lie in pieces along tp, 7 twice, and 1, 1, 1 on the last stage alone."""
    mesh = Mesh(comm, pp=2, tp=3)
    pieces = torch.arange(7, dtype=torch.float64).tensor_split(3)
    part, whole, last = parameter(0), parameter(1, 7), parameter(3, 1)
    part.data = pieces[mesh.coordinates["tp"]].clone()
    part.grad = part.data.clone()
    lies_on(part, mesh["tp"])
    lies_on(last, mesh["pp"])
    held = [part, whole, parameter(2)] + ([last] if mesh.coordinates["pp"] else [])
    before = [clip_grad_norm_(held, float("inf"), mesh, p).item() for p in (1.0, 2.0, 3.0, float("inf"))]
    clip_grad_norm_([*held, whole], 0.5, comm)
    return before, part.grad


@pytest.mark.parametrize("transport", ["shared_memory", "torch"])
def test_the_norm_counts_each_number_once(transport):
    one = parameter(11)
    one.grad = torch.tensor([*range(8), 1, 1, 1], dtype=torch.float64)
    expected = [torch.nn.utils.clip_grad_norm_([one], float("inf"), p).item() for p in (1.0, 2.0, 3.0, float("inf"))]
    torch.nn.utils.clip_grad_norm_([one], 0.5)
    for before, part in launch(norms, world_size=6, transport=transport):
        assert before == pytest.approx(expected, rel=1e-12)
        torch.testing.assert_close(part, one.grad[:7].tensor_split(3)[_place(part, one)], **TIGHT)


def _place(part, one):
    """Which third of the whole gradient a rank has."""
    return [piece.tolist() for piece in one.grad[:7].tensor_split(3)].index(pytest.approx(part.tolist()))


def not_finite(comm, error_if_nonfinite):
    one = parameter(2, float("nan") if comm.rank == 1 else 1)
    return clip_grad_norm_(one, 1.0, comm, error_if_nonfinite=error_if_nonfinite).item()


def test_a_norm_that_is_not_finite_is_told_or_raises_on_every_rank():
    assert all(norm != norm for norm in launch(not_finite, False, world_size=2))
    with pytest.raises(RankFailed, match="cannot be clipped"):
        launch(not_finite, True, world_size=2)


def refused(comm, call):
    try:
        call(comm)
    except (ValueError, TypeError) as error:
        return str(error)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda comm: clip_grad_norm_([parameter(1, 1)], -1.0, comm), "max_norm=-1.0"),
        (lambda comm: clip_grad_norm_([parameter(1, 1)], float("nan"), comm), "max_norm=nan"),
        (lambda comm: clip_grad_norm_([parameter(1, 1)], 1.0, comm, 0), "norm_type=0"),
        (lambda comm: lies_on(parameter(1), comm, 3), "copies=3"),
        (lambda comm: lies_on(parameter(1), comm, 0), "copies=0"),
        (lambda comm: average_gradients([parameter(1, 1)], Mesh(comm, dp=2), ("dp", "tp")), "axis='tp'"),
    ],
)
def test_bad_arguments_are_named_on_every_rank(call, said):
    assert all(said in error for error in launch(refused, call, world_size=2))
