"""What a prediction starts from: the shapes of a model, the devices and wires of a cluster, and the parallel plan."""

from dataclasses import dataclass, field
from math import inf
from numbers import Real

from ..errors import check_sizes, check_whole
from ..memory import RECIPES, num_parameters
from ..schedules import Links

RECOMPUTE = ("none", "selective", "full")


@dataclass(frozen=True)
class Model:
    """The shapes of a decoder-only transformer.

    Args:
        num_layers, width, heads, vocabulary, context: L, h, a, V and s.
        hidden: the width f of the hidden layer; 4 h if not given. gated: whether it has a gate, and so 3 matrices.
        kv_heads: heads of keys and values; a if not given.
        num_experts, active: hidden layers to choose from (0: one, and no choice), and how many see each token.
        fused: whether attention keeps no matrix of scores.
        dropout: whether there is dropout, whose masks have one byte per number.
        itemsize: bytes of a number that is kept for the backward pass.
        recipe: the bytes per parameter, a key of `lessons_lib.memory.RECIPES`.
    """

    num_layers: int
    width: int
    heads: int
    vocabulary: int
    context: int
    hidden: int | None = None
    gated: bool = False
    kv_heads: int | None = None
    num_experts: int = 0
    active: int = 2
    fused: bool = False
    dropout: bool = True
    itemsize: int = 2
    recipe: str = "mixed adam, float32 gradients"

    def __post_init__(self):
        names = ("num_layers", "width", "heads", "vocabulary", "context", "itemsize", "active")
        check_sizes(**{name: getattr(self, name) for name in names})
        check_whole("num_experts", self.num_experts, 0)
        for name, value in (("hidden", 4 * self.width), ("kv_heads", self.heads)):
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
            check_whole(name, getattr(self, name), 1)
        if self.width % self.heads:
            raise ValueError(f"heads={self.heads}: a divisor of width={self.width} is needed")
        if self.heads % self.kv_heads:
            raise ValueError(f"kv_heads={self.kv_heads}: a divisor of heads={self.heads} is needed")
        if self.num_experts and self.active > self.num_experts:
            raise ValueError(f"active={self.active}: at most num_experts={self.num_experts} are possible")
        if self.recipe not in RECIPES:
            raise ValueError(f"recipe={self.recipe!r}: one of {', '.join(map(repr, RECIPES))} is needed")

    @property
    def kv_width(self):
        return self.width * self.kv_heads // self.heads

    @property
    def attention_weights(self):
        """Numbers in the four matrices of attention of one block: 4 h² where all heads have keys of their own."""
        h, kv = self.width, self.kv_width
        return num_parameters([("linear", h, out, False) for out in (h, kv, kv, h)])

    @property
    def expert_weights(self):
        """Numbers in one hidden layer: 8 h² where f = 4 h."""
        return (2 + self.gated) * self.width * self.hidden

    @property
    def weights(self):
        """All matrices and the table of tokens, which the output shares. Biases and norms are left out."""
        block = self.attention_weights + max(1, self.num_experts) * self.expert_weights
        return self.num_layers * block + self.vocabulary * self.width


@dataclass(frozen=True)
class Cluster:
    """Devices and the wires between them.

    Args:
        num_devices: how many there are.
        flops: operations per second that a large matrix product reaches.
        memory_bytes, memory_Bps: of each device; bytes per second read plus written.
        links: `Links`, best made by `Links.two_level(devices per node, inside, between)`.
        half_flops: a matrix product of so many operations reaches half of `flops`: F of them take
            (F + half_flops) / flops.
        watts: of each device at work, with its share of the machine.
        price: of an hour of each device.
    """

    num_devices: int
    flops: float
    memory_bytes: float
    memory_Bps: float
    links: Links = field(default_factory=Links)
    half_flops: float = 0.0
    watts: float = 0.0
    price: float = 0.0

    def __post_init__(self):
        check_sizes(num_devices=self.num_devices)
        for name in ("flops", "memory_bytes", "memory_Bps", "half_flops", "watts", "price"):
            value, least = getattr(self, name), int(name in ("flops", "memory_bytes", "memory_Bps"))
            if not isinstance(value, Real) or isinstance(value, bool) or not least <= value <= inf:
                raise ValueError(f"{name}={value!r}: a number of at least {least} is needed")
        if not isinstance(self.links, Links):
            raise TypeError(f"links is a {type(self.links).__name__}: a Links is needed")


@dataclass(frozen=True)
class Plan:
    """How a step is divided. tp is the innermost axis of the devices, then cp, dp and pp; ep divides dp.

    Args:
        batch: sequences per step, of all devices.
        micro_batch: sequences per micro-batch of one replica.
        dp, tp, pp, cp, ep: sizes of the axes: data, tensor, pipeline, context and expert parallel.
        v: stages per rank; more than 1 means interleaved 1F1B.
        zero: what dp divides: 1 the optimiser's state, 2 gradients too, 3 parameters too.
        recompute: "none"; "selective", the scores of attention; or "full", which keeps the inputs of the blocks.
        sequence: whether tp divides norms and dropouts along the sequence.
        overlap: whether the messages of dp, cp and pp travel while devices compute.
    """

    batch: int
    micro_batch: int = 1
    dp: int = 1
    tp: int = 1
    pp: int = 1
    cp: int = 1
    ep: int = 1
    v: int = 1
    zero: int = 0
    recompute: str = "none"
    sequence: bool = False
    overlap: bool = False

    def __post_init__(self):
        check_sizes(
            **{name: getattr(self, name) for name in ("batch", "micro_batch", "dp", "tp", "pp", "cp", "ep", "v")}
        )
        if self.zero not in (0, 1, 2, 3):
            raise ValueError(f"zero={self.zero!r}: 0, 1, 2 or 3 is needed")
        if self.recompute not in RECOMPUTE:
            raise ValueError(f"recompute={self.recompute!r}: one of {', '.join(map(repr, RECOMPUTE))} is needed")
        if self.batch % (self.dp * self.micro_batch):
            raise ValueError(
                f"batch={self.batch}: a multiple of dp · micro_batch = {self.dp * self.micro_batch} is needed"
            )
        if self.v > 1 and self.pp == 1:
            raise ValueError(f"v={self.v}: 1 is needed without a pipeline")
        if self.dp % self.ep:
            raise ValueError(f"ep={self.ep}: a divisor of dp={self.dp} is needed")

    @property
    def num_micro_batches(self):
        return self.batch // (self.dp * self.micro_batch)

    @property
    def num_devices(self):
        return self.dp * self.tp * self.pp * self.cp


def check_types(**values):
    """Refuse what is no Model, Cluster or Plan, whichever its name says: a `TypeError`."""
    for name, value in values.items():
        kind = {"model": Model, "cluster": Cluster, "plan": Plan}[name]
        if not isinstance(value, kind):
            raise TypeError(f"{name} is a {type(value).__name__}: a {kind.__name__} is needed")


def check_fits(model, plan):
    """Refuse a plan that cuts what cannot be cut: a `ValueError`."""
    for what, value, parts, divisor in (
        ("heads", model.heads, "tp", plan.tp),
        ("hidden", model.hidden, "tp", plan.tp),
        ("context", model.context, "cp", plan.cp),
        ("num_experts", model.num_experts, "ep", plan.ep),
    ):
        if value % divisor or (what == "num_experts" and divisor > max(1, value)):
            raise ValueError(f"{parts}={divisor}: a divisor of {what}={value} is needed")
    if plan.pp * plan.v > model.num_layers:
        raise ValueError(f"pp={plan.pp}, v={plan.v}: at most num_layers={model.num_layers} stages are possible")
