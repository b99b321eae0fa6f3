"""Exercises of lesson 28: replay a run whose failures are known, learn from what was measured, and plan a run."""

from lessons_lib.capstone import can_run, draw, estimate, runnable
from lessons_lib.cost import Plan
from lessons_lib.exercises.core import Exercise, Outcome, edit

# --- replay: how long a run takes whose deaths are known --------------------------------------------------------------


def replay(num_steps, step_s, save_every, save_s, restart_s, deaths):
    """Return the seconds that a run takes whose failures are known.

    num_steps: how many steps have to be done, at least 0. step_s: seconds of each.
    save_every: after each `save_every`-th step that is done there is a checkpoint, which takes `save_s` seconds, but
        none at the end of the run. 0: there is none at all.
    deaths: a list of attempts at which a rank dies, whole numbers in any order. The first step that is begun is attempt
        0; whenever a step is begun, also one that is done again, that is the next attempt. A step whose attempt is in
        the list is not done and takes no time; restart_s seconds later all go on from the last checkpoint, or from the
        beginning if there is none.
    """
    done, kept, attempt, time_s = 0, 0, 0, 0.0
    while done < num_steps:
        if attempt in deaths:
            done, time_s = kept, time_s + restart_s
        else:
            done, time_s = done + 1, time_s + step_s
            if save_every and done % save_every == 0 and done < num_steps:
                kept, time_s = done, time_s + save_s
        attempt += 1
    return time_s


def _no_step_is_done_again(num_steps, step_s, save_every, save_s, restart_s, deaths):
    """You add the restarts, but the steps since the last checkpoint have to be done again, too."""
    saves = (num_steps - 1) // save_every if save_every and num_steps else 0
    return float(num_steps * step_s + saves * save_s + restart_s * len([each for each in deaths if each < num_steps]))


def _by_step(num_steps, step_s, save_every, save_s, restart_s, deaths):
    """You read `deaths` as numbers of steps, each of which fails once. They number what is begun: a step that is done
    again is a new attempt."""
    done, kept, time_s, left = 0, 0, 0.0, set(deaths)
    while done < num_steps:
        if done in left:
            left.remove(done)
            done, time_s = kept, time_s + restart_s
        else:
            done, time_s = done + 1, time_s + step_s
            if save_every and done % save_every == 0 and done < num_steps:
                kept, time_s = done, time_s + save_s
    return time_s


replay = Exercise(
    replay,
    [
        (6, 0.5, 2, 0.25, 1.0, []),
        (6, 0.5, 2, 0.25, 1.0, [3]),
        (6, 0.5, 0, 0.25, 1.0, [3]),
        (6, 0.5, 2, 0.25, 1.0, [3, 4, 5]),
        (6, 0.5, 2, 0.25, 1.0, [2]),  # just after a checkpoint: nothing is lost
        (6, 0.5, 2, 0.25, 1.0, [0]),
        (7, 0.5, 3, 0.25, 1.0, [9, 5]),
        (7, 0.5, 1, 0.25, 2.0, [1, 3, 5]),
        (5, 0.25, 5, 0.5, 1.0, [4]),  # the only checkpoint would be at the end
        (5, 0.25, 10, 0.5, 1.0, [4]),
        (0, 0.5, 2, 0.25, 1.0, [0]),
        (4, 0.0, 2, 0.25, 1.0, [1]),
        (6, 0.5, 3, 0.0, 0.0, [4, 100]),
        (12, 0.125, 4, 0.5, 3.0, [7, 11, 12, 20]),
        (1, 0.5, 1, 0.25, 1.0, [0, 1, 2]),
    ],
    [
        _no_step_is_done_again,
        _by_step,
        edit(
            "done, time_s = kept, time_s + restart_s",
            "time_s = time_s + restart_s",
            "After a death all go on from the last checkpoint: what was done since is lost.",
        ),
        edit(
            "done, time_s = kept, time_s + restart_s",
            "done, time_s = 0, time_s + restart_s",
            "There may be a checkpoint: go on from there, not from the beginning.",
        ),
        edit(
            " and done < num_steps:",
            ":",
            "At the end of the run there is no checkpoint: nobody would go on from it.",
        ),
        edit(
            "done, time_s = kept, time_s + restart_s",
            "done, time_s = kept, time_s + restart_s + step_s",
            "A step whose attempt dies takes no time; restart_s alone passes.",
        ),
    ],
    [
        "Keep four numbers: steps done, steps kept, attempts, seconds. Every round of the loop is one attempt.",
        "A death sets the steps done back to those kept. Where nothing was kept yet, that is 0.",
    ],
)


# --- corrected: what a measurement teaches ----------------------------------------------------------------------------


def corrected(runs, said_s, num_messages):
    """Return the seconds that a step will take, corrected by what earlier runs have shown.

    runs: a list with a tuple (said_s, num_messages, got_s) for each of them: what was said of a step, how many messages
        a rank sends in it, and what it took. At least one of them has messages.
    said_s, num_messages: of the step to come.
    Suppose that every message takes a time c that the prediction leaves out, so that got_s = said_s + c · num_messages.
        Of all c from 0 on take that for which the sum of the squared errors of the runs is smallest.
    """
    missed = sum(number * (got_s - said) for said, number, got_s in runs)
    per_message_s = max(0.0, missed / sum(number * number for _, number, _ in runs))
    return said_s + num_messages * per_message_s


def _mean_ratio(runs, said_s, num_messages):
    """You stretch the prediction by the mean ratio. What is missing grows with the messages, not with the step."""
    return said_s * sum(got_s / said for said, _, got_s in runs) / len(runs)


def _mean_of_each(runs, said_s, num_messages):
    """You take the mean over the runs of the time per message. Squared errors give more weight to a run with many
    messages: c = Σ n (got − said) / Σ n²."""
    each = [(got_s - said) / number for said, number, got_s in runs if number]
    return said_s + num_messages * max(0.0, sum(each) / len(each))


def _sums(runs, said_s, num_messages):
    """You divide the sum of what was missed by the sum of all messages. The least squares are elsewhere:
    c = Σ n (got − said) / Σ n²."""
    missed = sum(got_s - said for said, _, got_s in runs)
    return said_s + num_messages * max(0.0, missed / sum(number for _, number, _ in runs))


corrected = Exercise(
    corrected,
    [
        ([(0.5, 100, 0.6)], 0.25, 50),
        ([(0.5, 100, 0.6), (0.25, 10, 0.3)], 0.25, 200),
        ([(0.5, 100, 0.4)], 0.25, 50),  # c would be below 0
        ([(0.5, 100, 0.5)], 0.25, 50),
        ([(1.0, 0, 1.5), (0.5, 20, 0.75)], 0.5, 8),  # a run without messages says nothing of c
        ([(0.5, 100, 0.7), (0.5, 200, 0.4)], 1.0, 100),
        ([(0.5, 100, 0.4), (0.5, 200, 0.7), (0.25, 50, 0.5)], 1.0, 1),
        ([(0.5, 3, 0.875)], 0.0, 3),
        ([(0.5, 3, 0.875)], 2.0, 0),
        ([(2.0, 1, 2.5), (2.0, 1, 3.5)], 1.0, 2),
        ([(0.1, 10, 0.3), (0.1, 10, 0.1), (0.4, 60, 0.9)], 0.2, 30),
    ],
    [
        _mean_ratio,
        _mean_of_each,
        _sums,
        edit(
            "max(0.0, missed / sum(number * number for _, number, _ in runs))",
            "missed / sum(number * number for _, number, _ in runs)",
            "No message takes less than no time: where the fit is below 0, c is 0.",
        ),
        edit(
            "return said_s + num_messages * per_message_s",
            "return said_s + per_message_s",
            "c is the time of one message: the step to come sends num_messages of them.",
        ),
        edit("(got_s - said)", "got_s", "Fit what was missed, got − said, not all that was measured."),
    ],
    [
        "The sum of (got − said − c · n)² is smallest where its derivative by c is 0.",
        "That gives c = Σ n (got − said) / Σ n², the slope of a line through the origin.",
    ],
    rtol=1e-9,
)


# --- plan_run: the cheapest run that is expected to do ----------------------------------------------------------------


def plan_run(setup):
    """Return (plan, save_every): of all runs that are expected to fit and to meet the deadline the cheapest.

    setup: a `Setup` such as `draw(seed)` gives.
    plan: one of the list `runnable(setup)`. save_every: steps from one checkpoint to the next, a whole number from 1 to
        setup.num_steps - 1, or 0 for none.
    `estimate(setup, plan, save_every)` says what to expect. Its memory_bytes may be at most setup.cluster.memory_bytes,
        and its run_s at most setup.deadline_s. A run costs plan.num_devices times its run_s. One per cent more than the
        least cost is accepted; in every set-up of the check some plan will do.
    """
    best, least = None, float("inf")
    for plan in runnable(setup):
        for save_every in range(setup.num_steps):
            said = estimate(setup, plan, save_every)
            cost = plan.num_devices * said.run_s
            fits = said.memory_bytes <= setup.cluster.memory_bytes
            if fits and said.run_s <= setup.deadline_s and cost < least:
                best, least = (plan, save_every), cost
    return best


def _expected(fn, seed):
    """What is expected of the plan that `fn` makes for the set-up of a seed."""
    setup = draw(seed)
    answer = fn(setup)
    if not isinstance(answer, tuple) or len(answer) != 2 or not isinstance(answer[0], Plan):
        return Outcome({"a tuple (plan, save_every)": False}, faults=["does not return a plan and a number of steps"])
    plan, save_every = answer
    if plan.batch != setup.batch or not can_run(plan) or plan not in runnable(setup):
        return Outcome({"a tuple (plan, save_every)": True}, faults=["returns a plan that is not in runnable(setup)"])
    if type(save_every) is not int or not 0 <= save_every < setup.num_steps:
        faults = [f"returns save_every={save_every!r}: a whole number from 0 to {setup.num_steps - 1} is needed"]
        return Outcome({"a tuple (plan, save_every)": True}, faults=faults)
    said = estimate(setup, plan, save_every)
    value = {
        "a tuple (plan, save_every)": True,
        "fits the memory": said.memory_bytes <= setup.cluster.memory_bytes,
        "meets the deadline": said.run_s <= setup.deadline_s,
    }
    return Outcome(value, {"device-seconds": plan.num_devices * said.run_s})


plan_run = Exercise(
    plan_run,
    [(seed,) for seed in (2, 9, 26, 40, 97, 113, 144, 197)],
    [
        edit(
            "cost = plan.num_devices * said.run_s",
            "cost = said.run_s",
            "That is the fastest run. The cheapest one has the fewest device-seconds: devices times seconds.",
        ),
        edit(
            "if fits and said.run_s",
            "if said.run_s",
            "A plan that needs more memory than a device has cannot run, however cheap it is.",
        ),
        edit(
            "if fits and said.run_s <= setup.deadline_s and cost < least:",
            "if fits and cost < least:",
            "The cheapest plan of all may take too long: look at the deadline, too.",
        ),
        edit(
            "for save_every in range(setup.num_steps):",
            "for save_every in range(1):",
            "Without checkpoints a death costs all steps before it. Try every interval.",
        ),
        edit(
            "for save_every in range(setup.num_steps):",
            "for save_every in range(1, 2):",
            "A checkpoint after every step costs its time in every step. Try every interval.",
        ),
    ],
    [
        "There are some dozens of plans and some dozens of intervals: try all of them.",
        "Throw out what does not fit or is late, and of the rest keep the least plan.num_devices * said.run_s.",
    ],
    outcome=_expected,
    slack=1.01,
)
