"""Run a job on real ranks, let things go wrong, and score what its policy made of it (lesson 21)."""

import tempfile
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from ..errors import CollectiveMismatch, RankFailed
from ..launch import launch
from .diary import read_diaries
from .job import Job
from .score import Score
from .work import work

TIMEOUT_S = 6.0  # a rank that is stopped is found after half of it


def page(job, world_size=4, folder=None, timeout_s=TIMEOUT_S):
    """Train on `world_size` real processes while incidents strike; a `Score`.

    Args:
        job: a `Job`.
        world_size: how many ranks.
        folder: for checkpoints, beats and diaries, which are left there; by default one that is removed.
        timeout_s: as for `launch`.

    Raises:
        TypeError: `job` is something else.
    """
    if not isinstance(job, Job):
        raise TypeError(f"job is a {type(job).__name__}: a Job is needed")
    with in_folder(folder) as place:
        expected = undisturbed(job)
        elastic = {"elastic": True, "spares": job.policy.spares, "timeout_s": timeout_s}
        try:
            results = launch(partial(work, job=job, folder=str(place)), world_size=world_size, **elastic)
            found, refused = [weights for weights in results if weights is not None], ""
        except (CollectiveMismatch, RankFailed) as error:
            found, refused = [], str(error).splitlines()[0]
        return score(job, place, all(weights == expected for weights in found), refused)


def undisturbed(job, world_size=1):
    """The weights of the run in which nothing goes wrong."""
    with in_folder(None) as place:
        quiet = replace(job, mean_between=float("inf"), pace_s=0.0)
        return launch(partial(work, job=quiet, folder=str(place)), world_size=world_size)[0]


def score(job, folder, is_right, refused=""):
    """The `Score` of what lies in `folder`."""
    events = read_diaries(folder)
    counted = {what: {event.clock for event in events if event.what == what} for what in ("save", "recover")}
    begun = max((event.clock for event in events), default=0)
    num_saves, num_back = (len(counted[what]) for what in ("save", "recover"))
    return Score(job.num_steps, begun, num_saves, num_back, is_right and not refused, refused, events)


@contextmanager
def in_folder(folder):
    """`folder`, made if it is not there; None: one that is removed at the end."""
    if folder is not None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        yield Path(folder)
    else:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
            yield Path(name)
