"""One norm of the gradient, wherever its numbers lie: that of `torch.nn.utils.clip_grad_norm_` in one process."""

import math

import pytest
import torch
from torch import nn

from lessons_lib import Mesh, launch
from lessons_lib.parallel import clip_grad_norm_, lies_on


def whole(dtype=torch.float64):
    """Three parameters of one process and their gradients, and one without."""
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.zeros(8, 3, dtype=dtype)) for _ in range(3)] + [nn.Parameter(torch.zeros(2))]
    for parameter in parameters[:3]:
        parameter.grad = torch.randn(8, 3, dtype=dtype)
    return parameters


def on_this_rank(mesh, dtype=torch.float64):
    """The first of them on every rank, the second cut along one axis, the third along both."""
    first, second, third, unused = whole(dtype)
    rows = mesh["a", "b"].rank
    cuts = {"second": second.grad.chunk(2)[mesh["a"].rank], "third": third.grad.chunk(4)[rows]}
    held = [first]
    for name, gradient in cuts.items():
        piece = nn.Parameter(torch.zeros_like(gradient))
        piece.grad = gradient.clone()
        lies_on(piece, mesh["a"])
        if name == "third":
            lies_on(piece, mesh["b"])
        held.append(piece)
    return [*held, unused, first]  # named twice, counted once


def clipped_as_in_one_process(comm):
    mesh = Mesh(comm, a=2, b=2)
    rows = mesh["a", "b"].rank
    for norm_type in (1.0, 2.0, 3.5, math.inf):
        for max_norm in (0.0, 0.3, 1e3, math.inf):
            theirs, held = whole(), on_this_rank(mesh)
            expected = nn.utils.clip_grad_norm_(theirs, max_norm, norm_type)
            before = comm.ledger.calls.get("all_reduce", 0), comm.ledger.bytes_sent
            norm = clip_grad_norm_(held, max_norm, mesh, norm_type)
            assert comm.ledger.calls["all_reduce"] == before[0] + 1
            assert comm.ledger.bytes_sent - before[1] <= 8 * 2 * comm.world_size
            torch.testing.assert_close(norm, expected, rtol=1e-12, atol=0)
            parts = theirs[0].grad, theirs[1].grad.chunk(2)[mesh["a"].rank], theirs[2].grad.chunk(4)[rows]
            for piece, part in zip(held, parts, strict=False):
                torch.testing.assert_close(piece.grad, part, rtol=1e-12, atol=1e-15)
            assert held[3].grad is None
    low = on_this_rank(mesh, torch.bfloat16)
    expected = math.sqrt(sum(p.grad.double().square().sum() for p in whole(torch.bfloat16)[:3]))
    assert clip_grad_norm_(low, 0.5, comm).item() == pytest.approx(expected, rel=1e-12)
    assert low[0].grad.dtype == torch.bfloat16
    assert clip_grad_norm_(low[3], 1.0, comm).item() == clip_grad_norm_([], 1.0, comm).item() == 0.0


def what_cannot_be(comm):
    mesh = Mesh(comm, a=2, b=2)
    with pytest.raises(ValueError, match="max_norm=-1: a number of at least 0"):
        clip_grad_norm_(whole(), -1, comm)
    with pytest.raises(ValueError, match="max_norm=nan"):
        clip_grad_norm_(whole(), math.nan, comm)
    with pytest.raises(ValueError, match="norm_type=0: a number above 0"):
        clip_grad_norm_(whole(), 1, comm, norm_type=0)
    with pytest.raises(ValueError, match="copies=3: at most 2"):
        lies_on(nn.Parameter(torch.zeros(1)), mesh["a"], copies=3)
    with pytest.raises(ValueError, match="world_size=2: a multiple of 4 is needed"):
        clip_grad_norm_(on_this_rank(mesh), 1.0, mesh["a"])
    held = on_this_rank(mesh)
    if comm.rank == 3:
        held[2].grad[0] = math.inf
    with pytest.raises(RuntimeError, match="the norm of the gradient is inf"):  # on every rank
        clip_grad_norm_(held, 1.0, comm, error_if_nonfinite=True)
    assert clip_grad_norm_(held, math.inf, comm).item() == math.inf
    assert all(not gradient.isnan().any() for gradient in (held[0].grad, held[1].grad))  # measured, not clipped


def both(comm):
    clipped_as_in_one_process(comm)
    what_cannot_be(comm)


@pytest.mark.parametrize("transport", ["shared_memory", "torch"])
def test_it_is_the_norm_of_one_process(transport):
    launch(both, world_size=4, transport=transport)
