"""What a wire costs: latency and bandwidth, the same for all pairs of ranks or faster inside groups."""

from dataclasses import dataclass
from math import inf
from numbers import Real

from ..errors import check_whole


@dataclass(frozen=True)
class Links:
    """The α–β model: a message of M bytes arrives after latency_s + M / bandwidth_Bps (lesson 00).

    Args:
        latency_s: α, seconds per message.
        bandwidth_Bps: β, bytes per second out of each rank, and as many into each rank.
        reduce_Bps: at how many bytes per second a rank adds what has come to its own data.
        group_size: how many ranks form a group. Two ranks of one group use `inside`, where it is given.
        inside: the `Links` inside a group.

    Raises:
        ValueError: the latency is negative, or a bandwidth is not positive.
    """

    latency_s: float = 0.0
    bandwidth_Bps: float = inf
    reduce_Bps: float = inf
    group_size: int = 1
    inside: "Links | None" = None

    def __post_init__(self):
        if not isinstance(self.latency_s, Real) or not 0 <= self.latency_s < inf:
            raise ValueError(f"latency_s={self.latency_s!r}: 0 or more seconds are needed")
        for name in ("bandwidth_Bps", "reduce_Bps"):
            if not isinstance(getattr(self, name), Real) or not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)!r}: more than 0 bytes a second are needed")
        check_whole("group_size", self.group_size, 1)

    @classmethod
    def two_level(cls, group_size, fast, slow):
        """Make links that are fast inside groups of neighbouring ranks and slow between them.

        Args:
            group_size: how many ranks form a group; rank r is in group r // group_size.
            fast, slow: the `Links` inside groups, and between groups.
        """
        for name, links in (("fast", fast), ("slow", slow)):
            if not isinstance(links, cls):
                raise TypeError(f"{name} is a {type(links).__name__}: a Links is needed")
        return cls(slow.latency_s, slow.bandwidth_Bps, slow.reduce_Bps, group_size, fast)

    def between(self, src, dst):
        """Return (latency_s, bandwidth_Bps) from rank `src` to rank `dst`."""
        if self.inside is not None and src // self.group_size == dst // self.group_size:
            return self.inside.latency_s, self.inside.bandwidth_Bps
        return self.latency_s, self.bandwidth_Bps
