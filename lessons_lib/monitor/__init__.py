"""What operators look at: who lives, how fast each rank is, and whether replicas are still alike (lesson 21)."""

from .heart import Beat, Heart, Pulse, beats, pulses, report
from .replicas import ReplicasDiffer, compare_replicas, odd_ones

__all__ = ["Beat", "Heart", "Pulse", "ReplicasDiffer", "beats", "compare_replicas", "odd_ones", "pulses", "report"]
