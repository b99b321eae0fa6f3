"""The same run under torchrun, whose agent starts all ranks again when one fails (lesson 21)."""

import json
import subprocess
import sys
from dataclasses import asdict, replace

from .job import Job, Policy
from .page import in_folder, score, undisturbed

JOB, WEIGHTS = "job.json", "weights.json"
MAX_RESTARTS = 20


def page_torchrun(job, world_size=4, folder=None):
    """As `page`, with ranks that torchrun starts; a `Score`.

    The policy's `spares` have no meaning here, its `copy_every` no use: all ranks start again, from the disk. One that
    is stopped is waited for until the others give up, and ended by the agent after 30 s more.

    Args:
        job: a `Job`, whose policy is a `Policy` itself.
        world_size: how many ranks.
        folder: as for `page`.

    Raises:
        TypeError: `job` is something else, or its policy is of a subclass, which no file can tell to other processes.
    """
    if not isinstance(job, Job):
        raise TypeError(f"job is a {type(job).__name__}: a Job is needed")
    if type(job.policy) is not Policy:
        raise TypeError(f"policy is a {type(job.policy).__name__}: under torchrun a Policy itself is needed")
    with in_folder(folder) as place:
        expected = undisturbed(job)
        (place / JOB).write_text(json.dumps(asdict(replace(job, is_elastic=False))), encoding="utf-8")
        ranks = ["--standalone", f"--nproc-per-node={world_size}", f"--max-restarts={MAX_RESTARTS}"]
        command = [sys.executable, "-m", "torch.distributed.run", *ranks, "-m", "lessons_lib.pager", str(place)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            return score(job, place, False, refused=f"torchrun ended with {done.returncode}: {done.stderr[-2000:]}")
        return score(job, place, json.loads((place / WEIGHTS).read_text(encoding="utf-8")) == expected)
