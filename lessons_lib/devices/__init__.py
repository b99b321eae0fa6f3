"""The devices of this machine: probe what is there, measure what it does, dispatch work to the fastest."""

from lessons_lib.devices.probe import Device, cgroup_limits, probe, usable_cores

__all__ = ["Device", "cgroup_limits", "probe", "usable_cores"]
