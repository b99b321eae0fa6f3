"""The devices of this machine: probe what is there, measure what it does, dispatch work to the fastest."""

from .dispatch import Work, dispatch, predict
from .measure import Measurement, measure
from .probe import Device, cgroup_limits, memory_left, out_of_memory_kills, probe, usable_cores
from .report import gigabytes, machine_line, report

__all__ = [
    "Device",
    "Measurement",
    "Work",
    "cgroup_limits",
    "dispatch",
    "gigabytes",
    "machine_line",
    "measure",
    "memory_left",
    "out_of_memory_kills",
    "predict",
    "probe",
    "report",
    "usable_cores",
]
