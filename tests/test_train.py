"""`fit` and `accuracy` beside a loop in plain torch: the same numbers, or a refusal in words."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.optim.lr_scheduler import StepLR
from torch.optim.swa_utils import AveragedModel

from lessons_lib import launch, losses, optim
from lessons_lib.data import RankSampler
from lessons_lib.parallel import DataParallel
from lessons_lib.train import accuracy, fit

N, FEATURES, CLASSES = 26, 6, 3


def data(dtype=torch.float64, target=torch.int64):
    random = torch.Generator().manual_seed(1)
    x = torch.randn(N, FEATURES, generator=random, dtype=torch.float64).to(dtype)
    return x, torch.randint(CLASSES, (N,), generator=random).to(target)


def values(dtype=torch.float64):
    return data(dtype)[0], torch.linspace(-1, 1, N, dtype=dtype).reshape(N, 1)


def net(*layers, outputs=CLASSES, dtype=torch.float64):
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(FEATURES, 8), *layers, nn.Tanh(), nn.Linear(8, outputs)).to(dtype)


def plain_torch(model, optimizer, loss_fn, pair, batch_size, epochs, seed=0):
    """The loop that everybody writes, over the same batches; the loss of each step."""
    seen, sampler = [], RankSampler(len(pair[0]), 0, 1, batch_size, seed=seed)
    model.train()
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        for indices in sampler:
            x, y = (tensor[indices] for tensor in pair)

            def closure(x=x, y=y):
                optimizer.zero_grad()
                loss = loss_fn(model(x), y)
                loss.backward()
                return loss

            seen.append(optimizer.step(closure).item())
    return seen


class Recurrent(nn.Module):
    """Gives a tuple, as torch's recurrent layers do."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.lstm = nn.LSTM(FEATURES, CLASSES, batch_first=True).double()

    def forward(self, x):
        return self.lstm(x.unsqueeze(1))


class Learned(nn.Module):
    """A loss with a parameter of its own."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, prediction, target):
        return losses.cross_entropy(prediction * self.scale, target)


class Seeded(nn.Dropout):
    """Dropout that draws the same for one step after the other, in two runs."""

    def forward(self, x):
        return functional.dropout(x, 0.5, self.training) if self.training else x


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def flat_cross_entropy(prediction, target):
    return functional.cross_entropy(prediction, target.long())


def frozen(model):
    model[0].requires_grad_(False)
    return model


def resting(model):
    model[1].eval()
    return model


CROSS = losses.cross_entropy
F64 = {"model": net, "optimizer": sgd, "loss_fn": CROSS, "pair": data}
RIGHT = {
    "as the lessons do": {},
    "torch's loss": {"loss_fn": functional.cross_entropy},
    "a loss module": {"loss_fn": nn.CrossEntropyLoss()},
    "class weights": {"loss_fn": nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]).double())},
    "label smoothing": {"loss_fn": nn.CrossEntropyLoss(label_smoothing=0.1)},
    "int32 classes": {"pair": lambda: data(target=torch.int32), "theirs": flat_cross_entropy},
    "uint8 classes": {"pair": lambda: data(target=torch.uint8), "theirs": flat_cross_entropy},
    "probabilities": {"pair": lambda: (data()[0], functional.one_hot(data()[1], CLASSES).double())},
    "float32": {"model": lambda: net(dtype=torch.float32), "pair": lambda: data(torch.float32)},
    "bfloat16": {"model": lambda: net(dtype=torch.bfloat16), "pair": lambda: data(torch.bfloat16)},
    "float16": {"model": lambda: net(dtype=torch.float16), "pair": lambda: data(torch.float16)},
    "regression": {"model": lambda: net(outputs=1), "pair": values, "loss_fn": losses.mse},
    "regression, torch's loss": {"model": lambda: net(outputs=1), "pair": values, "loss_fn": nn.MSELoss()},
    "half the sum": {"model": lambda: net(outputs=1), "pair": values, "loss_fn": losses.half_sum_mse, "lr": 0.01},
    "huber": {"model": lambda: net(outputs=1), "pair": values, "loss_fn": nn.HuberLoss()},
    "two classes, one logit": {
        "model": lambda: net(outputs=1),
        "pair": lambda: (data()[0], (values()[1] > 0).double()),
        "loss_fn": losses.bce_with_logits,
    },
    "a batch for all": {"batch_size": N},
    "a batch larger than the data": {"batch_size": 1000},
    "one sample a batch": {"batch_size": 1},
    "batches of equal size": {"batch_size": 13},
    "no epoch": {"epochs": 0},
    "one epoch": {"epochs": 1},
    "another seed": {"seed": 7},
    "columns apart in memory": {"pair": lambda: (data()[0].T.contiguous().T, data()[1])},
    "every second sample": {"pair": lambda: tuple(part[::2] for part in data())},
    "one sample shown many times": {"pair": lambda: (data()[0][:1].expand(N, -1), data()[1])},
    "data that asks for gradients": {"pair": lambda: (data()[0].requires_grad_(), data()[1])},
    "a list instead of a tuple": {"pair": lambda: list(data())},
    "Adam": {"optimizer": lambda model: torch.optim.Adam(model.parameters(), lr=0.01)},
    "AdamW, fused": {"optimizer": lambda model: torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)},
    "Rprop": {"optimizer": lambda model: torch.optim.Rprop(model.parameters())},
    "our SGD": {"optimizer": lambda model: optim.SGD(model.parameters(), lr=0.1)},
    "our Adam": {"optimizer": lambda model: optim.Adam(model.parameters(), lr=torch.tensor(0.01))},
    "LBFGS": {"optimizer": lambda model: torch.optim.LBFGS(model.parameters(), lr=0.1)},
    "LBFGS, strong Wolfe": {
        "optimizer": lambda model: torch.optim.LBFGS(model.parameters(), line_search_fn="strong_wolfe"),
        "batch_size": N,
    },
    "LBFGS under a schedule": {
        "optimizer": lambda model: StepLR(torch.optim.LBFGS(model.parameters(), lr=0.1), 2).optimizer
    },
    "some parameters alone": {"optimizer": lambda model: torch.optim.SGD(model[0].parameters(), lr=0.1)},
    "groups": {"optimizer": lambda model: torch.optim.SGD([{"params": p} for p in model.parameters()], lr=0.1)},
    "frozen layers": {"model": lambda: frozen(net())},
    "batch norm": {"model": lambda: net(nn.BatchNorm1d(8)), "batch_size": 13},
    "layer norm": {"model": lambda: net(nn.LayerNorm(8))},
    "dropout": {"model": lambda: net(Seeded(0.5))},
    "weight norm": {"model": lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(net()[0]), net()[1:])},
    "a lazy layer": {"model": lambda: nn.Sequential(net(), nn.LazyLinear(CLASSES, dtype=torch.float64))},
    "a model in evaluation mode": {"model": lambda: net(nn.BatchNorm1d(8)).eval(), "batch_size": 13},
    "a tuple that the loss takes apart": {
        "model": Recurrent,
        "loss_fn": lambda out, y: functional.cross_entropy(out[0][:, -1], y),
    },
    "images": {
        "model": lambda: nn.Sequential(
            nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 4, 2), nn.Flatten(), net()[-1]
        ).double(),
    },
    "embeddings": {
        "model": lambda: nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(4 * FEATURES, CLASSES)).double(),
        "pair": lambda: ((data()[0].abs() * 3).long().clamp(max=8), data()[1]),
    },
    "an average of models": {"model": lambda: AveragedModel(net())},
    "clipping in a hook": {"model": lambda: clipped(net())},
    "a second loss": {"loss_fn": lambda out, y: functional.cross_entropy(out, y) + 1e-3 * out.square().mean()},
    "a loss of shape (1,)": {"loss_fn": lambda out, y: functional.cross_entropy(out, y).reshape(1)},
}


def clipped(model):
    for parameter in model.parameters():
        parameter.register_hook(lambda gradient: gradient.clamp(-0.01, 0.01))
    return model


@pytest.mark.parametrize("scenario", RIGHT.values(), ids=RIGHT)
def test_what_people_train_gets_the_numbers_of_plain_torch(scenario):
    chosen = {**F64, "batch_size": 8, "epochs": 2, "seed": 0, **scenario}
    loop = {name: chosen[name] for name in ("batch_size", "epochs", "seed")}
    results = []
    for theirs in (False, True):
        model, pair = chosen["model"](), chosen["pair"]()
        if any(isinstance(module, nn.modules.lazy.LazyModuleMixin) for module in model.modules()):
            model(pair[0])  # such a model has no parameters before
        optimizer = chosen["optimizer"](model)
        torch.manual_seed(3)  # for dropout
        if theirs:
            seen = plain_torch(model, optimizer, chosen.get("theirs", chosen["loss_fn"]), pair, **loop)
        else:
            seen = fit(model, optimizer, chosen["loss_fn"], pair, progress=False, **loop).losses
        results.append((model.state_dict(), seen))
    (ours, our_losses), (state, their_losses) = results
    assert our_losses == pytest.approx(their_losses, rel=1e-12)
    for name, value in state.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-12, atol=1e-14)


def train(**changes):
    model = changes.pop("model", None) or net()
    arguments = {"model": model, "optimizer": sgd(model) if isinstance(model, nn.Module) else None, "loss_fn": CROSS}
    return fit(**{**arguments, "data": data(), "batch_size": 8, "progress": False, **changes})


X, Y = data()
LOADER = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y))
WRONG = {
    "a class for a model": ({"model": nn.Linear}, TypeError, "model is a type: a torch.nn.Module"),
    "parameters for an optimizer": ({"optimizer": net().parameters()}, TypeError, "optimizer is a generator"),
    "the optimizer's class": ({"optimizer": torch.optim.SGD}, TypeError, "optimizer is a type"),
    "another model's optimizer": ({"optimizer": sgd(net())}, ValueError, "of other parameters: one of the model's"),
    "a loss by name": ({"loss_fn": "mse"}, TypeError, "loss_fn is a str: a function"),
    "a loader": ({"data": LOADER}, TypeError, r"data is a DataLoader: \(x, y\), two tensors, is needed"),
    "a generator": ({"data": (row for row in X)}, TypeError, "data is a generator"),
    "samples alone": ({"data": X}, TypeError, "data is a Tensor"),
    "arrays": ({"data": (X.numpy(), Y.numpy())}, TypeError, r"data is a \['ndarray', 'ndarray'\]"),
    "lists": ({"data": (X.tolist(), Y.tolist())}, TypeError, r"data is a \['list', 'list'\]"),
    "three tensors": ({"data": (X, Y, Y)}, TypeError, "two tensors"),
    "numbers": ({"data": (1, 2)}, TypeError, r"data is a \['int', 'int'\]"),
    "None": ({"data": None}, TypeError, "data is a NoneType"),
    "of other lengths": ({"data": (X, Y[1:])}, ValueError, r"shapes \[\(26, 6\), \(25,\)\]: as many targets"),
    "no sample": ({"data": (X[:0], Y[:0])}, ValueError, "at least one, are needed"),
    "scalars": ({"data": (X[0, 0], Y[0])}, ValueError, "at least one, are needed"),
    "an empty validation": ({"validation": (X[:0], Y[:0])}, ValueError, "validation of shapes"),
    "validation without targets": ({"validation": X}, TypeError, "validation is a Tensor"),
    "validation with numbers": ({"validation": values()}, ValueError, r"y of torch\.float64: class numbers"),
    "validation as a column": ({"validation": (X, Y[:, None])}, ValueError, r"shape \(26, 1, classes\)"),
    "half an epoch": ({"epochs": 0.5}, ValueError, r"epochs=0\.5: a whole number"),
    "a batch of none": ({"batch_size": 0}, ValueError, "batch_size=0: a whole number"),
    "a seed in words": ({"seed": "a"}, ValueError, "seed='a': a whole number"),
    "no function": ({"on_step": 3}, TypeError, "on_step is a int: a function"),
    "a loss that is a number": ({"loss_fn": lambda out, y: CROSS(out, y).item()}, TypeError, "loss_fn's result is a f"),
    "a loss that is nothing": ({"loss_fn": lambda out, y: None}, TypeError, "loss_fn's result is a NoneType"),
    "a loss per sample": (
        {"loss_fn": lambda out, y: CROSS(out, y, "none")},
        ValueError,
        r"loss_fn's result is of shape \(8,\): one number",
    ),
    "a loss that was detached": (
        {"loss_fn": lambda out, y: CROSS(out, y).detach()},
        ValueError,
        r"loss_fn's result is of shape \(\) without a gradient",
    ),
    "a tuple for our loss": ({"model": Recurrent()}, TypeError, "logits is a tuple: a torch.Tensor is needed"),
    "a column for a vector": (
        {"model": net(outputs=1), "loss_fn": losses.mse, "data": (X, values()[1][:, 0])},
        ValueError,
        "same shape",
    ),
    "a class too many": ({"model": net(outputs=2)}, ValueError, "target"),
}


@pytest.mark.parametrize(("changes", "error", "says"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_right_is_refused_in_words(changes, error, says):
    with pytest.raises(error, match=says):
        train(**changes)


def modes(model):
    return [module.training for module in model.modules()]


@pytest.mark.parametrize("choose", [lambda m: m, lambda m: m.eval(), resting], ids=["train", "eval", "one rests"])
def test_modes_are_left_as_they_were(choose):
    model = choose(net(nn.BatchNorm1d(8)))
    before = modes(model)
    train(model=model, validation=data(), epochs=2)
    accuracy(model, *data())
    assert modes(model) == before
    with pytest.raises(ZeroDivisionError):
        train(model=model, on_step=lambda step, loss: 1 / 0)
    with pytest.raises(RuntimeError):
        accuracy(model, torch.ones(2, FEATURES + 1).double(), torch.zeros(2).long())
    assert modes(model) == before


def test_a_batch_norm_that_rests_in_a_model_that_trains_goes_on_resting():
    model = resting(net(nn.BatchNorm1d(8)))
    train(model=model)
    assert model[1].num_batches_tracked == 0
    model = net(nn.BatchNorm1d(8)).eval()
    train(model=model)
    assert model[1].num_batches_tracked == 4


def test_accuracy_is_measured_in_evaluation_mode():
    model = net(nn.Dropout(0.999))
    expected = (copy.deepcopy(model).eval()(X).argmax(1) == Y).double().mean().item()
    assert accuracy(model, X, Y) == expected == accuracy(model, X, Y.int())
    tokens = nn.Sequential(nn.Embedding(5, 4))
    ids = torch.tensor([[0, 1, 2], [3, 4, 0]])
    assert accuracy(tokens, ids, tokens(ids).argmax(-1)) == 1


@pytest.mark.parametrize(
    ("model", "pair", "error", "says"),
    [
        ("net", (X, Y), TypeError, "model is a str"),
        (net(), (X, Y.tolist()), TypeError, r"\(x, y\) is a \['Tensor', 'list'\]"),
        (net(), (X, Y[1:]), ValueError, "as many targets as samples"),
        (net(), (X[:0], Y[:0]), ValueError, "at least one"),
        (net(), (X, Y.double()), ValueError, "class numbers"),
        (net(), (X, Y[:, None]), ValueError, r"model\(x\) is \(26, 3\): a tensor of shape \(26, 1, classes\)"),
        (net(outputs=1), (X, Y), ValueError, "with at least two classes"),
        (nn.Sequential(net(), nn.Flatten(0)), (X, Y), ValueError, r"model\(x\) is \(78,\)"),
        (Recurrent(), (X, Y), ValueError, r"model\(x\) is tuple"),
    ],
)
def test_an_accuracy_that_would_be_wrong_is_refused(model, pair, error, says):
    with pytest.raises(error, match=says):
        accuracy(model, *pair)


def test_a_loss_that_is_nan_is_reported_as_nan():
    history = train(loss_fn=lambda out, y: CROSS(out, y) * math.nan)
    assert all(math.isnan(loss) for loss in history.losses + history.epoch_losses)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_no_bar_stays_after_an_interrupt(error, capsys):
    def stop(step, loss):
        if step == 1:
            raise error

    with pytest.raises(error):
        train(progress=True, on_step=stop)
    assert capsys.readouterr().err.endswith("\r"), "the line was cleared"


def lbfgs(comm=None, **options):
    model = net()
    model = DataParallel(model, comm) if comm else model
    history = fit(
        model,
        torch.optim.LBFGS(model.parameters(), **options),
        CROSS,
        data(),
        batch_size=13,
        epochs=1,
        validation=data(),
        progress=False,
    )
    return history, [parameter.detach() for parameter in model.parameters()], modes(model)


@pytest.mark.parametrize("options", [{"lr": 0.1}, {"line_search_fn": "strong_wolfe", "max_iter": 5}], ids=str)
@pytest.mark.parametrize("world_size", [2, 3])
def test_lbfgs_takes_the_same_steps_on_many_ranks(world_size, options):
    alone, right, _ = lbfgs(**options)
    for history, parameters, training in launch(lbfgs, world_size=world_size, **options):
        assert history.losses == pytest.approx(alone.losses, rel=1e-8)
        assert len(history.accuracies) == 1 and all(training)
        for found, expected in zip(parameters, right, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)  # LBFGS makes rounding grow
