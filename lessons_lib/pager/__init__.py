"""The pager: incidents from a seed strike a real training run, and a policy is scored by what is left (lesson 21)."""

from .incidents import KINDS, Incident, incident_at
from .job import Job, Policy
from .page import page, undisturbed
from .rehearse import rehearse
from .score import Event, Score
from .torchrun import page_torchrun
from .young import band, best_interval, goodput

__all__ = [
    "KINDS",
    "Event",
    "Incident",
    "Job",
    "Policy",
    "Score",
    "band",
    "best_interval",
    "goodput",
    "incident_at",
    "page",
    "page_torchrun",
    "rehearse",
    "undisturbed",
]
