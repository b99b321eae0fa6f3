"""`python -m lessons_lib.capstone`: plans by search and plans without it, run and scored, seed by seed."""

import argparse
import json
from statistics import mean

from .draw import draw
from .estimate import estimate
from .plans import NAIVE, searched
from .run import run
from .score import score


def main(arguments=None):
    """Run each seed's plans on real ranks, print a line for each, and the mean points of each way to plan."""
    parser = argparse.ArgumentParser(prog="python -m lessons_lib.capstone", description=main.__doc__)
    parser.add_argument("--seeds", type=int, default=10, help="how many, from --first on")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--save", metavar="FILE", help="write the rows as JSON")
    options = parser.parse_args(arguments)
    rows = []
    for seed in range(options.first, options.first + options.seeds):
        for row in scored(seed):
            print(f"seed {seed}  {row['way']:13} {row['plan']:34} {row['says']}", flush=True)
            rows.append(row)
    for way in dict.fromkeys(row["way"] for row in rows):
        print(f"{way}: {mean(row['points'] for row in rows if row['way'] == way):.0f} points on average")
    if options.save:
        with open(options.save, "w", encoding="utf-8") as file:
            json.dump(rows, file, indent=1)


def scored(seed, num_searched=3):
    """The rows of a seed: the cheapest plans by `searched`, and `NAIVE` ones, beside the first that was not refused."""
    setup = draw(seed)
    found = {f"search {number}": each for number, each in enumerate(searched(setup, num_searched), 1)}
    best = None
    for way, (plan, save_every) in (found | {name: plan(setup) for name, plan in NAIVE.items()}).items():
        said, outcome = estimate(setup, plan, save_every), run(setup, plan, save_every)
        best = outcome if best is None or best.refused else best
        result = score(setup, said, outcome, best)
        brief = f"dp {plan.dp} tp {plan.tp} pp {plan.pp} micro {plan.micro_batch}, saves {save_every}"
        late = outcome.run_s > setup.deadline_s
        says = f"refused: {outcome.refused}" if outcome.refused else f"{result}{', LATE' * late}"
        parts = {"prediction": result.prediction, "goodput": result.goodput, "cost": result.cost}
        measured = {"device_s": outcome.device_s, "run_s": outcome.run_s, "deadline_s": setup.deadline_s}
        measured |= {"ratios": result.ratios, "refused": bool(outcome.refused), "late": late}
        yield {"seed": seed, "way": way, "plan": brief, "says": says, "points": result.points, **parts, **measured}


if __name__ == "__main__":
    main()
