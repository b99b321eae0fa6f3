"""`python -m lessons_lib.pager`: many runs on the pager, by their seeds. Under torchrun: a rank of one of them."""

import argparse
import json
import os
import sys
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

from ..launch import connect
from .job import Job, Policy
from .page import page
from .torchrun import JOB, WEIGHTS, page_torchrun
from .work import work


def main(arguments=None):
    """Print a line for each run, and how many were right; return 1 if weights were wrong in silence."""
    parser = argparse.ArgumentParser(prog="python -m lessons_lib.pager", description=main.__doc__)
    parser.add_argument("--runs", type=int, default=20, help="how many seeds, from --first on")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--ranks", type=int, default=4, help="how many processes")
    parser.add_argument("--steps", type=int, default=60, help="how many steps have to be done")
    parser.add_argument("--pace", type=float, default=0.005, help="seconds that an emulated device takes for a step")
    parser.add_argument("--copy-every", type=int, default=0, help="steps between copies in a neighbour's memory")
    parser.add_argument("--torchrun", action="store_true", help="under torchrun, which starts all ranks again")
    options = parser.parse_args(arguments)
    policy, ends = Policy(copy_every=options.copy_every), Counter()
    run = page_torchrun if options.torchrun else partial(page, world_size=options.ranks)
    for seed in range(options.first, options.first + options.runs):
        job = Job(policy, seed, options.steps, pace_s=options.pace)
        score = run(job)
        ends["refused" if score.refused else "right" if score.is_right else "wrong"] += 1
        struck = Counter(event.what for event in score.incidents)
        print(f"seed {seed}: {score}; {', '.join(f'{n} {kind}' for kind, n in struck.items()) or 'quiet'}", flush=True)
    print(", ".join(f"{ends[end]} {end}" for end in ("right", "refused", "wrong")))
    return 1 if ends["wrong"] else 0


def rank(folder):
    """What a process that torchrun has started does."""
    told = json.loads((folder / JOB).read_text(encoding="utf-8"))
    job = Job(**{**told, "policy": Policy(**told["policy"]), "kinds": tuple(told["kinds"])})
    with connect(timeout_s=20.0) as comm:
        weights = work(comm, replace(job, is_elastic=False), folder)
        if comm.rank == 0:
            (folder / WEIGHTS).write_text(json.dumps(weights), encoding="utf-8")


if __name__ == "__main__":
    if "TORCHELASTIC_RUN_ID" in os.environ:
        rank(Path(sys.argv[1]))
    else:
        sys.exit(main())
