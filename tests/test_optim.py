"""The optimisers against torch's own, at every step, in float64."""

import copy
import subprocess
import sys
from itertools import product

import pytest
import torch
from torch import nn

from lessons_lib import optim

NUM_STEPS = 200
PEERS = {
    optim.SGD: torch.optim.SGD,
    optim.RMSProp: torch.optim.RMSprop,
    optim.Adam: torch.optim.Adam,
    optim.AdamW: torch.optim.AdamW,
}


def options(**choices):
    return [dict(zip(choices, values, strict=True)) for values in product(*choices.values())]


COMBINATIONS = [
    *[
        (optim.SGD, keywords)
        for keywords in options(
            lr=[0.05],
            momentum=[0.0, 0.9],
            dampening=[0.0, 0.3],
            weight_decay=[0.0, 0.01],
            nesterov=[False, True],
            maximize=[False, True],
        )
        if not keywords["nesterov"] or (keywords["momentum"] > 0 and keywords["dampening"] == 0)
    ],
    *[
        (optim.RMSProp, keywords)
        for keywords in options(
            lr=[0.01],
            alpha=[0.9],
            eps=[1e-6],
            weight_decay=[0.0, 0.01],
            momentum=[0.0, 0.9],
            centered=[False, True],
            maximize=[False, True],
        )
    ],
    *[
        (kind, keywords)
        for kind in (optim.Adam, optim.AdamW)
        for keywords in options(
            lr=[0.01],
            betas=[(0.9, 0.999), (0.0, 0.5)],
            weight_decay=[0.0, 0.1],
            amsgrad=[False, True],
            maximize=[False, True],
        )
    ],
    *[(kind, {}) for kind in PEERS],
]


class Twins:
    """The same parameters twice, with gradients that depend on them (a quartic with noise), minus `sign`."""

    def __init__(self, dtype=torch.float64, seed=0):
        self.random = torch.Generator().manual_seed(seed)
        start = [torch.randn(shape, generator=self.random, dtype=dtype) for shape in [(4, 3), ()]]
        self.ours = [nn.Parameter(t.clone()) for t in start]
        self.theirs = [nn.Parameter(t.clone()) for t in start]

    def set_gradients(self):
        for p, q in zip(self.ours, self.theirs, strict=True):
            noise = torch.randn(p.shape, generator=self.random, dtype=p.dtype)
            for parameter in (p, q):
                parameter.grad = (parameter.detach() ** 3).clamp_(-10, 10).add_(noise)

    @torch.no_grad()
    def worst_difference(self):
        pairs = zip(self.ours, self.theirs, strict=True)
        return max(((p - q).abs().max() / q.abs().max()).item() for p, q in pairs)


def run_both(twins, ours, theirs, num_steps=NUM_STEPS):
    worst = 0.0
    for _ in range(num_steps):
        twins.set_gradients()
        ours.step()
        theirs.step()
        worst = max(worst, twins.worst_difference())
    assert all(p.isfinite().all() for p in twins.ours)
    return worst


@pytest.mark.parametrize("kind, keywords", COMBINATIONS, ids=lambda v: v.__name__ if isinstance(v, type) else str(v))
def test_equals_torch_at_every_step(kind, keywords):
    twins = Twins()
    worst = run_both(twins, kind(twins.ours, **keywords), PEERS[kind](twins.theirs, **keywords))
    assert worst <= 1e-12


@pytest.mark.parametrize("kind", PEERS)
def test_parameter_groups(kind):
    twins = Twins()

    def groups(p):
        return [{"params": p[:1], "lr": 0.02}, {"params": p[1:], "weight_decay": 0.1}]

    ours, theirs = kind(groups(twins.ours), lr=0.005), PEERS[kind](groups(twins.theirs), lr=0.005)
    assert run_both(twins, ours, theirs) <= 1e-12
    ours.add_param_group({"params": [nn.Parameter(torch.ones(2))], "lr": 0.5})
    assert [group["lr"] for group in ours.param_groups] == [0.02, 0.005, 0.5]


STATEFUL = [
    (optim.SGD, {"lr": 0.01, "momentum": 0.9}),
    (optim.SGD, {"lr": 0.01}),
    (optim.RMSProp, {"momentum": 0.9, "centered": True}),
    (optim.Adam, {"amsgrad": True}),
    (optim.AdamW, {}),
]


@pytest.mark.parametrize("kind, keywords", STATEFUL)
def test_state_goes_both_ways_between_torch_and_here(kind, keywords):
    twins = Twins()
    peer = PEERS[kind]
    ours, theirs = kind(twins.ours, **keywords), peer(twins.theirs, **keywords)
    run_both(twins, ours, theirs, num_steps=10)
    assert ours.state_dict()["state"].keys() == theirs.state_dict()["state"].keys()
    for key, state in theirs.state_dict()["state"].items():
        assert ours.state_dict()["state"][key].keys() == state.keys()

    ours_resumed = kind(twins.ours, lr=0.5)
    ours_resumed.load_state_dict(copy.deepcopy(theirs.state_dict()))
    theirs_resumed = peer(twins.theirs, lr=0.5)
    theirs_resumed.load_state_dict(copy.deepcopy(ours.state_dict()))
    assert run_both(twins, ours_resumed, theirs_resumed) <= 1e-12


@pytest.mark.parametrize("kind", PEERS)
def test_survives_a_copy_and_torch_save(kind, tmp_path):
    twins = Twins()
    ours, theirs = kind(twins.ours), PEERS[kind](twins.theirs)
    run_both(twins, ours, theirs, num_steps=3)
    torch.save(ours.state_dict(), tmp_path / "state.pt")
    resumed = kind(twins.ours)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert run_both(twins, resumed, theirs, num_steps=3) <= 1e-12
    assert copy.deepcopy(resumed).param_groups[0]["lr"] == ours.param_groups[0]["lr"]


@pytest.mark.parametrize("kind", PEERS)
def test_tensor_lr_under_a_scheduler(kind):
    twins = Twins()
    ours = kind(twins.ours, lr=torch.tensor(0.01, dtype=torch.float64))
    theirs = PEERS[kind](twins.theirs, lr=torch.tensor(0.01, dtype=torch.float64))
    schedulers = [torch.optim.lr_scheduler.ExponentialLR(o, 0.9) for o in (ours, theirs)]
    for _ in range(20):
        assert run_both(twins, ours, theirs, num_steps=1) <= 1e-12
        for scheduler in schedulers:
            scheduler.step()
    assert ours.param_groups[0]["lr"].item() == pytest.approx(0.01 * 0.9**20)


@pytest.mark.parametrize("kind", PEERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_is_bitwise_torch(kind, dtype):
    twins = Twins(dtype)
    assert run_both(twins, kind(twins.ours), PEERS[kind](twins.theirs), num_steps=50) == 0


@pytest.mark.parametrize("kind", PEERS)
def test_closure_skipped_parameters_and_untouched_gradients(kind):
    used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = kind([used, unused], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = (used**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 2
    assert (used < 1).all() and (unused == 1).all()
    assert unused not in optimizer.state
    assert torch.equal(used.grad, torch.full((2,), 2.0))
    assert optimizer.step() is None
    seen = []
    optimizer.register_step_post_hook(lambda *arguments: seen.append(arguments[0]))
    optimizer.step()
    assert seen == [optimizer]


def test_without_bias_correction_the_first_step_is_3_16_times_too_long():
    moves = {}
    for corrected in (True, False):
        theta = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        theta.grad = torch.ones_like(theta)
        optim.Adam([theta], lr=1.0, eps=0.0, bias_correction=corrected).step()
        moves[corrected] = -theta.item()
    assert moves[True] == pytest.approx(1)
    assert moves[False] == pytest.approx(0.1 / 0.001**0.5)


def test_uncorrected_adam_without_momentum_is_rmsprop():
    twins = Twins()
    ours = optim.Adam(twins.ours, betas=(0.0, 0.9), bias_correction=False)
    assert run_both(twins, ours, torch.optim.RMSprop(twins.theirs, lr=1e-3, alpha=0.9)) <= 1e-9


def test_loading_torch_state_keeps_our_own_option():
    twins = Twins()
    ours = optim.Adam(twins.ours, bias_correction=False)
    ours.load_state_dict(torch.optim.Adam(twins.theirs).state_dict())
    assert ours.param_groups[0]["bias_correction"] is False


@pytest.mark.parametrize(
    "kind, keywords, error, words",
    [
        (optim.SGD, {"lr": -0.1}, ValueError, "SGD: lr .* not -0.1"),
        (optim.SGD, {"lr": float("nan")}, ValueError, "lr"),
        (optim.SGD, {"lr": "fast"}, TypeError, "lr must be a number, not 'fast'"),
        (optim.SGD, {"lr": torch.ones(2)}, TypeError, "0-dim tensor"),
        (optim.SGD, {"momentum": -1}, ValueError, "momentum"),
        (optim.SGD, {"nesterov": True}, ValueError, "nesterov=True needs momentum above 0"),
        (optim.SGD, {"nesterov": True, "momentum": 0.9, "dampening": 0.1}, ValueError, "dampening=0.1"),
        (optim.RMSProp, {"alpha": 1}, ValueError, "alpha must be at least 0 and below 1, not 1"),
        (optim.RMSProp, {"eps": -1e-8}, ValueError, "eps"),
        (optim.Adam, {"betas": 0.9}, ValueError, "betas must be two numbers"),
        (optim.Adam, {"betas": (0.9, 1.0)}, ValueError, "beta2 must be at least 0 and below 1, not 1.0"),
        (optim.Adam, {"lr": [0.1]}, TypeError, "lr"),
        (optim.AdamW, {"weight_decay": -0.1}, ValueError, "AdamW: weight_decay"),
    ],
)
def test_bad_arguments_are_named(kind, keywords, error, words):
    with pytest.raises(error, match=words):
        kind([nn.Parameter(torch.ones(1))], **keywords)
    with pytest.raises(error, match=words):
        kind([{"params": [nn.Parameter(torch.ones(1))], **keywords}])


@pytest.mark.parametrize("kind", PEERS)
def test_sparse_and_complex_gradients_are_refused(kind):
    sparse = nn.Parameter(torch.ones(3))
    sparse.grad = torch.ones(3).to_sparse()
    with pytest.raises(TypeError, match=f"{kind.__name__} takes dense, real gradients.*sparse_coo"):
        kind([sparse]).step()
    z = nn.Parameter(torch.ones(3, dtype=torch.complex64))
    z.grad = torch.ones_like(z)
    with pytest.raises(TypeError, match="complex64"):
        kind([z]).step()


def test_training_does_not_import_the_compiler():
    code = """
import importlib.util, sys
spec = importlib.util.find_spec("lessons_lib")  # the package without what its __init__ imports
sys.modules["lessons_lib"] = importlib.util.module_from_spec(spec)
import torch
from lessons_lib.optim import Adam
p = torch.nn.Parameter(torch.ones(2))
optimizer = Adam([p])
optimizer.zero_grad()
(p**2).sum().backward()
optimizer.step()
optimizer.load_state_dict(optimizer.state_dict())
assert "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
