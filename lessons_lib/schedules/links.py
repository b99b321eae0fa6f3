"""What a wire costs: latency and bandwidth, the same for all pairs of ranks or faster inside groups."""

from dataclasses import dataclass
from math import inf
from numbers import Real

from ..errors import check_whole


@dataclass(frozen=True)
class Links:
    """The α–β model: a message of M bytes arrives after latency_s + M / bandwidth_Bps (lesson 00).

    Args:
        latency_s: α, seconds a message.
        bandwidth_Bps: β, bytes a second out of a rank and into a rank.
        reduce_Bps: bytes a second at which a rank adds a message to its own data.
        group_size: ranks a group; pairs of the same group use `inside` where it is given.
        inside: the `Links` inside a group.

    Raises:
        ValueError: a negative latency, or a bandwidth that is not positive.
    """

    latency_s: float = 0.0
    bandwidth_Bps: float = inf
    reduce_Bps: float = inf
    group_size: int = 1
    inside: "Links | None" = None

    def __post_init__(self):
        if not isinstance(self.latency_s, Real) or not 0 <= self.latency_s < inf:
            raise ValueError(f"latency_s={self.latency_s!r}: 0 or more seconds are accepted")
        for name in ("bandwidth_Bps", "reduce_Bps"):
            if not isinstance(getattr(self, name), Real) or not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)!r}: more than 0 bytes a second are needed")
        check_whole("group_size", self.group_size, 1)

    @classmethod
    def two_level(cls, group_size, fast, slow):
        """Links `fast` between ranks of the same group (rank // group_size), `slow` between groups."""
        for name, links in (("fast", fast), ("slow", slow)):
            if not isinstance(links, cls):
                raise TypeError(f"{name} is a {type(links).__name__}: a Links is needed")
        return cls(slow.latency_s, slow.bandwidth_Bps, slow.reduce_Bps, group_size, fast)

    def between(self, src, dst):
        """(latency_s, bandwidth_Bps) from rank `src` to rank `dst`."""
        if self.inside is not None and src // self.group_size == dst // self.group_size:
            return self.inside.latency_s, self.inside.bandwidth_Bps
        return self.latency_s, self.bandwidth_Bps
