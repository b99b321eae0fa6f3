"""The memory calculator against torch's own modules (on the meta device), published figures, and real bytes."""

import pytest
import torch
from torch import nn

from lessons_lib import memory


def modules(layers):
    """torch's modules for a description, without memory."""
    kinds = {
        "linear": lambda m, n, bias=True: nn.Linear(m, n, bias),
        "conv": lambda m, n, k, bias=True: nn.Conv2d(m, n, k, bias=bias),
        "norm": nn.LayerNorm,
        "embedding": nn.Embedding,
    }
    with torch.device("meta"):
        return nn.ModuleList(kinds[kind](*sizes) for kind, *sizes in layers)


def size(module):
    return sum(p.numel() for p in module.parameters())


ALEXNET = [("conv", 3, 64, 11), ("conv", 64, 192, 5), ("conv", 192, 384, 3), ("conv", 384, 256, 3)]
ALEXNET += [("conv", 256, 256, 3), ("linear", 9216, 4096), ("linear", 4096, 4096), ("linear", 4096, 1000)]
PUBLISHED = {  # torchvision's and the released checkpoints' parameters, to the last one
    "AlexNet": (ALEXNET, 61_100_840),
    "ResNet-50": (memory.resnet(), 25_557_032),
    "ResNet-101": (memory.resnet((3, 4, 23, 3)), 44_549_160),
    "ResNet-152": (memory.resnet((3, 8, 36, 3)), 60_192_808),
    "BERT-base": (memory.transformer(12, 768, 30522, 512, segments=2), 109_482_240),
    "BERT-large": (memory.transformer(24, 1024, 30522, 512, segments=2), 335_141_888),
    "GPT-2": (memory.transformer(12, 768, 50257, 1024), 124_439_808),
    "GPT-2 XL": (memory.transformer(48, 1600, 50257, 1024), 1_557_611_200),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_counts(name):
    layers, count = PUBLISHED[name]
    assert memory.num_parameters(layers) == count == size(modules(layers))


def test_gpt_3_is_published_as_175_billion():
    assert memory.num_parameters(memory.transformer(96, 12288, 50257, 2048)) == pytest.approx(175e9, rel=0.005)


def test_a_transformer_has_the_parameters_of_torchs_encoder():
    with torch.device("meta"):
        block = nn.TransformerEncoderLayer(64, 4, 256)
        encoder = nn.TransformerEncoder(block, 3, norm=nn.LayerNorm(64), enable_nested_tensor=False)
    assert memory.num_parameters(memory.transformer(3, 64, 0, 0)) == size(encoder)


def test_a_list_without_biases():
    layers = [("conv", 3, 8, 5, False), ("linear", 8, 4, False)]
    assert memory.num_parameters(layers) == size(modules(layers)) == 600 + 32
    assert memory.num_parameters([]) == 0


@pytest.mark.parametrize(
    "layer", [("pool", 2), ("linear", 3.5, 2), ("norm", -1), ("linear", "3", 2), ("linear", 3), ("norm", 2, 2)]
)
def test_what_is_no_layer(layer):
    with pytest.raises(ValueError, match="a layer is one of linear, conv, norm, embedding"):
        memory.num_parameters([layer])


def test_model_states_of_the_zero_paper():
    assert memory.training_bytes(7.5e9) == {
        "parameters": 15e9,
        "gradients": 15e9,
        "master weights": 30e9,
        "first moments": 30e9,
        "second moments": 30e9,
    }
    assert sum(memory.training_bytes(1.5e9).values()) == 24e9
    assert sum(memory.training_bytes(1, "float32 sgd").values()) == 8
    with pytest.raises(ValueError, match="recipe='adam': one of 'float32 sgd'"):
        memory.training_bytes(1, "adam")


@pytest.mark.parametrize("recipe, dtype", [("float32 adam", torch.float32), ("float32 sgd", torch.float32)])
def test_recipes_are_what_torch_allocates(recipe, dtype):
    layer = nn.Linear(30, 20)
    kind = torch.optim.Adam if recipe.endswith("adam") else torch.optim.SGD
    optimizer = kind(layer.parameters(), lr=0.1)
    layer(torch.ones(2, 30)).sum().backward()
    optimizer.step()
    tensors = [*layer.parameters(), *(p.grad for p in layer.parameters())]
    tensors += [t for state in optimizer.state.values() for t in state.values() if torch.is_tensor(t) and t.numel() > 1]
    assert sum(memory.training_bytes(620, recipe).values()) == sum(t.nbytes for t in tensors)


@pytest.mark.parametrize("shape, saved", [((96, 12288, 96, 2048), 0.70), ((105, 20480, 128, 2048), 0.65)])
def test_published_savings_of_recomputing_attention(shape, saved):
    everything, without_scores = (memory.activation_bytes(*shape, recompute=what) for what in ("nothing", "attention"))
    assert 1 - without_scores / everything == pytest.approx(saved, abs=0.005)


def test_activation_bytes():
    assert memory.activation_bytes(1, 64, 4, 32, batch=2) == 32 * 2 * 64 * (34 + 10)
    assert memory.activation_bytes(3, 64, 4, 32, recompute="all") == 3 * 2 * 32 * 64
    with pytest.raises(ValueError, match="recompute='everything': one of 'nothing'"):
        memory.activation_bytes(1, 64, 4, 32, recompute="everything")


def test_a_meter_counts_storages_once_and_until_they_are_freed():
    x = torch.zeros(1000)
    with memory.Meter(x, x[:10]) as meter:
        assert meter.now == 4000
        y = x + 1
        view = y[:5].add_(1)
        assert meter.now == 8000
        del y
        assert meter.now == 8000  # the view keeps all of it
        del view
        assert meter.now == 4000
        z = (x + 1) + 1
    assert meter.peak == 12_000 and meter.curve[-2:] == [8000, 12_000] and meter.now == 8000
    del z
    assert meter.now == 4000


def test_a_meter_sees_what_autograd_keeps_and_frees():
    x = torch.ones(100, requires_grad=True)
    with memory.Meter(x) as meter:
        loss = x.exp().sum()
        assert meter.now == 400 + 400 + 4
        loss.backward()
        assert meter.now == 400 + 4 + 400  # exp(x) is gone, x.grad has come
