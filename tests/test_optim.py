"""The optimisers against torch's own, at every step, in float64."""

import copy
import inspect
import math
import pickle
import subprocess
import sys
from functools import cache
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


def as_tensors(keywords, shape, dtype):
    """The hyperparameters that torch takes as tensors, made tensors."""
    made = {name: torch.full(shape, keywords[name], dtype=dtype) for name in ("lr",) if name in keywords}
    if "betas" in keywords:
        made["betas"] = tuple(torch.full(shape, beta, dtype=dtype) for beta in keywords["betas"])
    return {**keywords, **made}


def for_torch(keywords):
    """The same hyperparameters as numbers where the installed torch does not step with tensors of one element."""
    if torch_steps_with_tensors():
        return keywords
    numbers = {"lr": float(keywords["lr"])}
    if "betas" in keywords:
        numbers["betas"] = tuple(map(float, keywords["betas"]))
    return {**keywords, **numbers}


@cache
def torch_steps_with_tensors():
    return outcome(torch.optim.SGD, lambda kind, p: kind([p], lr=torch.ones(1))) is None


@pytest.mark.parametrize("shape, dtype", [((), torch.float32), ((1,), torch.float64)])
@pytest.mark.parametrize("kind, keywords", COMBINATIONS, ids=lambda v: v.__name__ if isinstance(v, type) else str(v))
def test_equals_torch_also_with_tensors_as_hyperparameters(kind, keywords, shape, dtype):
    twins, keywords = Twins(), as_tensors({"lr": 0.01, **keywords}, shape, dtype)
    given = copy.deepcopy(keywords)
    theirs = PEERS[kind](twins.theirs, **for_torch(keywords))
    exact = torch_steps_with_tensors() or dtype == torch.float64  # 1 - beta is rounded in the tensor's dtype
    assert run_both(twins, kind(twins.ours, **keywords), theirs, num_steps=50) <= (1e-12 if exact else 1e-6)
    assert str(given) == str(keywords), "the caller's tensors are as they were"


def test_any_hyperparameter_may_be_a_tensor_of_one_number():
    for kind, names in {optim.SGD: ("momentum", "weight_decay"), optim.RMSProp: ("alpha", "eps", "momentum")}.items():
        twins = Twins()
        plain = {"lr": 0.01, **dict.fromkeys(names, 0.5)}
        ours = kind(twins.ours, **{name: torch.tensor([value], dtype=torch.float64) for name, value in plain.items()})
        assert run_both(twins, ours, PEERS[kind](twins.theirs, **plain), num_steps=50) <= 1e-12
    theta = nn.Parameter(torch.ones(2))
    theta.grad = torch.ones(2)
    optim.SGD(
        [theta], lr=torch.tensor(0.5, requires_grad=True), weight_decay=torch.tensor(1.0, requires_grad=True)
    ).step()
    assert theta.tolist() == [0.0, 0.0] and not theta.grad.requires_grad


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
def test_no_way_of_copying_adds_options_to_the_groups(kind):
    ours = kind([nn.Parameter(torch.ones(2))])
    names, loaded = set(ours.param_groups[0]), kind([nn.Parameter(torch.ones(2))])
    loaded.load_state_dict(ours.state_dict())
    for twin in (ours, loaded, copy.deepcopy(loaded), pickle.loads(pickle.dumps(loaded))):
        assert set(twin.param_groups[0]) == names and set(twin.defaults) == names - {"params"}
        twin.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
        assert set(twin.param_groups[1]) == names


def test_a_state_of_another_optimiser_is_refused_before_anything_changes():
    (theta,) = parameters = [nn.Parameter(torch.ones(2))]
    sgd = torch.optim.SGD(parameters, lr=7.0, momentum=0.9)
    ours = optim.Adam(parameters)
    with pytest.raises(ValueError, match="state without betas: a state of Adam is needed"):
        ours.load_state_dict(sgd.state_dict())
    with pytest.raises(ValueError, match="Adam: decoupled_weight_decay=True: False is needed"):
        ours.load_state_dict(torch.optim.AdamW(parameters).state_dict() | decoupled(parameters))
    wrong = ours.state_dict()
    wrong["param_groups"][0]["lr"] = -1.0
    with pytest.raises(ValueError, match=r"Adam: lr=-1\.0"):
        ours.load_state_dict(wrong)
    assert ours.param_groups[0]["lr"] == 1e-3 and not ours.state[theta]


def decoupled(parameters):
    """The groups of a torch.optim.AdamW state, with the name that newer torch gives their weight decay."""
    groups = torch.optim.AdamW(parameters).state_dict()["param_groups"]
    return {"param_groups": [group | {"decoupled_weight_decay": True} for group in groups]}


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
        (optim.SGD, {"lr": -0.1}, ValueError, r"SGD: lr=-0\.1: a number of at least 0, and finite, is needed"),
        (optim.SGD, {"lr": float("nan")}, ValueError, "lr=nan"),
        (optim.SGD, {"lr": float("inf")}, ValueError, "lr=inf"),
        (optim.SGD, {"lr": "fast"}, TypeError, "lr='fast': a number"),
        (optim.SGD, {"lr": torch.ones(2)}, ValueError, r"lr=tensor\(\[1., 1.\]\): a number"),
        (optim.SGD, {"lr": torch.tensor(-1.0)}, ValueError, r"lr=tensor\(-1.\): a number"),
        (optim.SGD, {"momentum": -1}, ValueError, "momentum=-1"),
        (optim.SGD, {"nesterov": True}, ValueError, "with nesterov=True a momentum above 0 and .* are needed"),
        (optim.SGD, {"nesterov": True, "momentum": 0.9, "dampening": 0.1}, ValueError, "dampening=0.1"),
        (optim.RMSProp, {"alpha": 1}, ValueError, "alpha=1: a number of at least 0 and below 1 is needed"),
        (optim.RMSProp, {"eps": -1e-8}, ValueError, "eps=-1e-08"),
        (optim.Adam, {"betas": 0.9}, TypeError, r"betas=0\.9: two numbers in \[0, 1\), .* are needed"),
        (optim.Adam, {"betas": "ab"}, TypeError, "betas='ab': two numbers"),
        (optim.Adam, {"betas": (0.9,)}, ValueError, r"betas=\(0\.9,\): two numbers"),
        (optim.Adam, {"betas": (0.9, torch.tensor(0.9))}, ValueError, "or two tensors of one, are needed"),
        (optim.Adam, {"betas": (0.9, 1.0)}, ValueError, r"beta2=1\.0: a number of at least 0 and below 1 is needed"),
        (optim.Adam, {"betas": (0.9, None)}, TypeError, "beta2=None: a number"),
        (optim.Adam, {"lr": [0.1]}, TypeError, "lr="),
        (optim.AdamW, {"weight_decay": -0.1}, ValueError, "AdamW: weight_decay"),
    ],
)
def test_bad_arguments_are_named(kind, keywords, error, words):
    with pytest.raises(error, match=words):
        kind([nn.Parameter(torch.ones(1))], **keywords)
    with pytest.raises(error, match=words):
        kind([{"params": [nn.Parameter(torch.ones(1))], **keywords}])


NAN, INF = math.nan, math.inf
STRANGE = [
    *(-1, -1e-9, NAN, "fast", None, [0.1], 1j, torch.tensor(0.1), torch.tensor([0.1]), torch.ones(2)),
    *(torch.tensor(-1.0), torch.tensor(NAN), 0, 1, 0.5, True),
]
STRANGE_BETAS = [
    *(0.9, None, "ab", (0.9, 1.0), (1.0, 0.9), (-0.1, 0.9), [0.9, 0.99], ("a", 0.9), (NAN, 0.9), (None, 0.9)),
    *((0.9, torch.tensor(0.99)), (torch.tensor(1.0), torch.tensor(0.9)), torch.tensor([0.9, 0.99])),
]


def outcome(kind, make):
    """What `make` raises for an optimiser of this kind, or None when it makes one that can step."""
    try:
        optimizer = make(kind, nn.Parameter(torch.ones(2)))
        for theta in optimizer.param_groups[0]["params"]:
            theta.grad = torch.ones_like(theta)
        optimizer.step()
    except (ValueError, TypeError, KeyError) as error:
        return type(error)
    except (RuntimeError, IndexError, OverflowError, AttributeError):
        return ValueError  # torch stumbles over these; ours are said in words


def stumbles(name, value):
    return name != "lr" and isinstance(value, torch.Tensor) and value.dim() == 1  # torch takes a 0-dim one there


@pytest.mark.parametrize("kind", PEERS)
def test_hyperparameters_are_refused_as_by_torch_or_more_strictly(kind):
    for name in ("lr", "momentum", "weight_decay", "eps", "betas"):
        if name not in inspect.signature(PEERS[kind]).parameters:
            continue
        for value in STRANGE_BETAS if name == "betas" else STRANGE:
            ours, theirs = (outcome(k, lambda k, p: k([p], **{name: value})) for k in (kind, PEERS[kind]))  # noqa: B023
            if name == "lr" and isinstance(value, torch.Tensor) and not torch_steps_with_tensors():
                continue
            if not stumbles(name, value) and not (theirs is None and "nan" in str(value)):
                assert ours == theirs, (name, value)


PARAMETERS = {
    "none": lambda kind, p: kind([]),
    "a tensor": lambda kind, p: kind(p),
    "None": lambda kind, p: kind(None),
    "a number": lambda kind, p: kind(3),
    "a string": lambda kind, p: kind("abc"),
    "numbers": lambda kind, p: kind([1]),
    "no leaf": lambda kind, p: kind([p * 2]),
    "the same twice": lambda kind, p: kind([{"params": [p]}, {"params": [p]}]),
    "a set": lambda kind, p: kind({p}),
    "a dict": lambda kind, p: kind({"a": p}),
    "a module": lambda kind, p: kind(nn.Linear(1, 1)),
    "one in a group": lambda kind, p: kind([{"params": p}]),
    "a set in a group": lambda kind, p: kind([{"params": {p}}]),
    "a group without": lambda kind, p: kind([{"lr": 0.1}]),
    "an empty group": lambda kind, p: kind([{"params": []}]),
    "a generator": lambda kind, p: kind(p for p in [p]),
    "named": lambda kind, p: kind([("a", p)]),
    "named and not": lambda kind, p: kind([("a", p), nn.Parameter(torch.ones(1))]),
    "without gradient": lambda kind, p: kind([torch.ones(2)]),
    "an unknown keyword": lambda kind, p: kind([p], speed=1),
    "an unknown entry": lambda kind, p: kind([{"params": [p], "speed": 1}]),
    "added twice": lambda kind, p: added(kind([p]), {"params": [p]}),
    "added without": lambda kind, p: added(kind([p]), {"lr": 0.1}),
    "added numbers": lambda kind, p: added(kind([p]), {"params": [1]}),
    "added as a list": lambda kind, p: added(kind([p]), [p]),
    "a state of two": lambda kind, p: loaded(kind([p]), kind([p, nn.Parameter(torch.ones(1))]).state_dict()),
    "an empty state": lambda kind, p: loaded(kind([p]), {}),
    "nesterov for all": lambda kind, p: kind([p], nesterov=True),
}


def added(optimizer, group):
    optimizer.add_param_group(group)
    return optimizer


def loaded(optimizer, state):
    optimizer.load_state_dict(state)
    return optimizer


@pytest.mark.parametrize("make", PARAMETERS.values(), ids=PARAMETERS)
@pytest.mark.parametrize("kind", PEERS)
def test_parameters_are_refused_as_by_torch(kind, make):
    assert outcome(kind, make) == outcome(PEERS[kind], make)


@pytest.mark.parametrize("kind", PEERS)
def test_sparse_and_complex_gradients_are_refused(kind):
    sparse = nn.Parameter(torch.ones(3))
    sparse.grad = torch.ones(3).to_sparse()
    with pytest.raises(TypeError, match=f"{kind.__name__}: the gradient .*sparse_coo.*a dense and real one"):
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
