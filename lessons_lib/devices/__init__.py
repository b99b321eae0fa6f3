"""The devices of this machine: probe what is there, measure what it does, dispatch work to the fastest."""

from .dispatch import Work, dispatch, predict
from .measure import Measurement, measure
from .probe import Device, cgroup_limits, probe, usable_cores
from .report import machine_line, report

__all__ = [
    "Device",
    "Measurement",
    "Work",
    "cgroup_limits",
    "dispatch",
    "machine_line",
    "measure",
    "predict",
    "probe",
    "report",
    "usable_cores",
]
