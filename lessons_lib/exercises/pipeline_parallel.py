"""Exercises of lesson 16: the orders of GPipe and 1F1B, the place of W in ZB-H1, and the number of micro-batches."""

from lessons_lib.errors import InvalidProgram
from lessons_lib.exercises.core import Exercise, Outcome, edit
from lessons_lib.schedules import count, pipeline, simulate, verify

_SIZES = [(4, 8), (1, 1), (1, 3), (2, 1), (3, 2), (4, 4), (3, 7), (6, 6), (5, 2), (2, 9)]  # (stages, micro-batches)


def _judge(orders, num_stages, num_micro_batches, costs_s, rule):
    """The `Outcome` of orders: what is wrong with them, else the time of a step.

    The value of orders with a fault are these orders, so that a hint is given to no others.
    """
    if orders is None or orders is ...:
        return Outcome(orders)
    orders = [[tuple(step) for step in order] for order in orders]
    if len(orders) != num_stages:
        return Outcome(orders, faults=(f"gives {len(orders)} lists, where one for each of {num_stages} stages is due",))
    if others := {step[0] for order in orders for step in order if step} - set(costs_s):
        return Outcome(orders, faults=(f"has op {sorted(map(str, others))[0]!r}: one of {', '.join(costs_s)} is due",))
    try:
        program = pipeline(orders, range(num_stages))
        verify(program)
    except InvalidProgram as error:
        return Outcome(orders, faults=(f"is refused by `verify`: {error}",))
    fault = rule(orders, program)
    if program.num_micro_batches != num_micro_batches:
        fault = f"works on {program.num_micro_batches} micro-batches, where there are {num_micro_batches}"
    if fault:
        return Outcome(orders, faults=(fault,))
    return Outcome("right", {"time of a step": simulate(program, cost_s=costs_s).total_s})


# --- gpipe_order: all forwards, then all backwards --------------------------------------------------------------------


def gpipe_order(num_stages, num_micro_batches):
    """The order in which each stage computes by GPipe: all its forwards, and then all its backwards.

    num_stages: p ≥ 1. num_micro_batches: m ≥ 1, numbered from 0.

    Return a list of p lists. List s has a tuple (op, s, micro_batch) for each step of stage s, where op is "forward"
    or "backward". A forward takes 1 unit of time and a backward 2: the step takes 3 (m + p - 1), no more.
    """
    orders = []
    for stage in range(num_stages):
        parts = range(num_micro_batches)
        orders.append([(op, stage, part) for op in ("forward", "backward") for part in parts])
    return orders


def _forwards_come_first(orders, program):
    for stage, order in enumerate(orders):
        ops = [op for op, *_ in order]
        if ops != sorted(ops, key=("forward", "backward").index):
            return f"is no GPipe: stage {stage} does a backward before its last forward"
    return ""


def _run_gpipe(fn, num_stages, num_micro_batches):
    costs_s = {"forward": 1, "backward": 2}
    return _judge(fn(num_stages, num_micro_batches), num_stages, num_micro_batches, costs_s, _forwards_come_first)


def _every_other_stage_backwards(num_stages, num_micro_batches):
    """Every stage takes the micro-batches in the order in which the stage before it hands them on, for it can use no
    other. Here every other stage begins with the last one, and waits."""
    orders = []
    for stage in range(num_stages):
        parts = range(num_micro_batches)[:: (-1) ** stage]
        orders.append([(op, stage, part) for op in ("forward", "backward") for part in parts])
    return orders


gpipe_order = Exercise(
    gpipe_order,
    cases=_SIZES,
    outcome=_run_gpipe,
    mistakes=[
        edit(
            'for op in ("forward", "backward") for part in parts',
            'for part in parts for op in ("forward", "backward")',
            "Here a micro-batch goes forward and backward before the next one starts, so the stages still work one "
            "at a time. The outer loop of the two should go over the passes.",
        ),
        edit(
            "range(num_micro_batches)",
            "range(1, num_micro_batches + 1)",
            "Micro-batches are numbered from 0: micro-batch m is one too many, and micro-batch 0 is never done.",
        ),
        edit(
            "(op, stage, part)",
            "(op, part, stage)",
            "In a step the stage stands before the micro-batch: (op, stage, micro_batch).",
        ),
        edit(
            'for op in ("forward", "backward")',
            'for op in ("forward",)',
            'That is a pipeline for answers, not for training: each micro-batch has to come back, with op "backward".',
        ),
        edit(
            "return orders",
            "return orders[::-1]",
            "List s of the answer belongs to stage s, for backward too: which stage gets its gradient first follows "
            "from what waits for what, and nobody has to turn anything round.",
        ),
        edit(
            "range(num_micro_batches)",
            "range(num_micro_batches - 1)",
            "The last micro-batch has number m - 1, and `range(m - 1)` ends before it.",
        ),
        _every_other_stage_backwards,
    ],
    hints=[
        "What does one stage do? Write its list for m = 2 by hand, and look at what changes from stage to stage.",
        "Only the number of the stage changes: each list is m forwards and then m backwards.",
        'For each stage: `[(op, stage, part) for op in ("forward", "backward") for part in range(m)]`.',
    ],
)


# --- one_f_one_b_order: one forward, one backward by turns ------------------------------------------------------------


def one_f_one_b_order(num_stages, num_micro_batches):
    """The order in which each stage computes by 1F1B: the time of GPipe with fewer stashes.

    num_stages: p ≥ 1. num_micro_batches: m ≥ 1, numbered from 0.

    Return a list of p lists of tuples (op, stage, micro_batch), as in `gpipe_order`. A stash is there from a forward
    until its backward: stage s never has more than min(p - s, m). A forward takes 1 unit of time and a backward 2: the
    step takes no longer than GPipe's.
    """
    orders = []
    for stage in range(num_stages):
        ahead = min(num_stages - 1 - stage, num_micro_batches)
        order = [("forward", stage, part) for part in range(ahead)]
        for part in range(num_micro_batches):
            if ahead + part < num_micro_batches:
                order.append(("forward", stage, ahead + part))
            order.append(("backward", stage, part))
        orders.append(order)
    return orders


def _stashes_fit(most):
    """A rule: the most stashes of stage s are at most `most(s)`."""

    def rule(orders, program):
        for stage, kept in enumerate(count(program).most_kept):
            if kept > most(stage):
                return f"lets stage {stage} hold {kept} stashes at once, where {most(stage)} are allowed"
        return ""

    return rule


def _run_1f1b(fn, num_stages, num_micro_batches):
    rule = _stashes_fit(lambda stage: min(num_stages - stage, num_micro_batches))
    costs_s = {"forward": 1, "backward": 2}
    return _judge(fn(num_stages, num_micro_batches), num_stages, num_micro_batches, costs_s, rule)


def _gpipe_again(num_stages, num_micro_batches):
    """That is GPipe: its stashes pile up to m on every stage. A stage can let one go as soon as the gradient of its
    first micro-batch is back, and take a new micro-batch only then."""
    return gpipe_order.reference(num_stages, num_micro_batches)


def _one_at_a_time(num_stages, num_micro_batches):
    """One stash per stage, but the stages work one at a time. Stage s can do p - 1 - s forwards before its first
    gradient can be back: in that time it should not rest."""
    orders = []
    for stage in range(num_stages):
        parts = range(num_micro_batches)
        orders.append([(op, stage, part) for part in parts for op in ("forward", "backward")])
    return orders


one_f_one_b_order = Exercise(
    one_f_one_b_order,
    cases=_SIZES,
    outcome=_run_1f1b,
    mistakes=[
        _gpipe_again,
        _one_at_a_time,
        edit(
            "num_stages - 1 - stage",
            "num_stages - stage",
            "One forward too many before the turns, which begin with a forward: the stage then holds p - s + 1 "
            "stashes. The last stage needs no forward in advance.",
        ),
        edit(
            "num_stages - 1 - stage",
            "stage",
            "Turned round: the *first* stage waits longest for a gradient, so it goes ahead by p - 1 forwards, and the "
            "last stage by none.",
        ),
        edit(
            "num_stages - 1 - stage",
            "num_stages - 1",
            "All stages go ahead as far as the first. Stage s is s stages nearer to the loss, and its gradient comes "
            "back so much earlier: p - 1 - s forwards are enough.",
        ),
        edit(
            "min(num_stages - 1 - stage, num_micro_batches)",
            "num_stages - 1 - stage",
            "With fewer micro-batches than stages there are not p - 1 - s forwards to do in advance: at most m.",
        ),
        edit(
            'order.append(("backward", stage, part))',
            'order.insert(-1, ("backward", stage, part))',
            "In each turn the forward comes first: the last stage has nothing to go back from before it.",
        ),
        edit(
            'order.append(("backward", stage, part))',
            '    order.append(("backward", stage, part))',
            "When the forwards are used up, p - 1 - s backwards are left over: they still have to be done.",
        ),
    ],
    hints=[
        "How many forwards can stage s do before the gradient of micro-batch 0 can be back? For the last stage: one.",
        "Three parts: p - 1 - s forwards (at most m), then a forward and a backward by turns, then backwards alone.",
        "Loop over the backwards 0 to m - 1. Before backward k comes the forward of micro-batch `ahead + k`, if there "
        "is one.",
    ],
)


# --- place_weights: what fills the idle time --------------------------------------------------------------------------


def place_weights(orders):
    """Put the gradients of the weights into the orders of 1F1B, as ZB-H1 does.

    orders: p lists of tuples (op, stage, micro_batch) for m micro-batches, as in `one_f_one_b_order`, but with op
        "input" for the gradient of the input alone, in place of "backward". They stay as they are.

    Return p new lists: the same steps in the same order, and after each "input" somewhere ("weight", stage,
    micro_batch) once. A stash is there from a forward until its weight: no stage has more than min(p, m). With one unit
    of time for each forward, input and weight a step takes 3 m + p - 1, no more, where m ≥ p.
    """
    placed = []
    for order in orders:
        steps, waiting = [], []
        for op, stage, part in order:
            steps.append((op, stage, part))
            if op == "input":
                waiting.append(("weight", stage, part))
                if len(waiting) > stage:
                    steps.append(waiting.pop(0))
        placed.append(steps + waiting)
    return placed


def _run_weights(fn, num_stages, num_micro_batches):
    known = one_f_one_b_order.reference(num_stages, num_micro_batches)
    given = [[("input" if op == "backward" else op, *block) for op, *block in order] for order in known]
    stashes_fit = _stashes_fit(lambda stage: min(num_stages, num_micro_batches))

    def rule(orders, program):
        for stage, (order, before) in enumerate(zip(orders, given, strict=False)):
            if [step for step in order if step[0] != "weight"] != before:
                return f"changes the order of the forwards and inputs of stage {stage}"
        return stashes_fit(orders, program)

    costs_s = {"forward": 1, "input": 1, "weight": 1}
    outcome = _judge(fn(given), num_stages, num_micro_batches, costs_s, rule)
    return outcome if num_micro_batches >= num_stages else Outcome(outcome.value, faults=outcome.faults)


place_weights = Exercise(
    place_weights,
    cases=_SIZES,
    outcome=_run_weights,
    mistakes=[
        edit(
            "len(waiting) > stage",
            "True",
            "Each W at once after its I fills no gap: the stage is busy with it when the next gradient comes, and idle "
            "at the end. Stages further down the pipeline should put some off until then.",
        ),
        edit(
            "len(waiting) > stage",
            "False",
            "All W at the end: the stashes stay until then, m of them on each stage. Do one whenever more than s are "
            "waiting.",
        ),
        edit(
            "len(waiting) > stage",
            "len(waiting) >= len(orders) - stage",
            "Turned round: the *last* stage has the longest idle time at the end of the step, so it puts off the most; "
            "stage 0 puts off none.",
        ),
        edit(
            "len(waiting) > stage",
            "len(waiting) > stage + 1",
            "One too many is put off: the stage holds p + 1 stashes. 1F1B lets stage s hold p - s, so that s more may "
            "wait.",
        ),
        edit(
            "steps + waiting",
            "steps",
            "The ones that were put off have to be done in the end: this is what fills the idle time of the last "
            "stages.",
        ),
        edit(
            "steps.append((op, stage, part))",
            'steps += [("weight", stage, part)] * (op == "input") + [(op, stage, part)]',
            "steps.append(waiting.pop(0))",
            "waiting.pop(0)",
            "The gradient of the weights needs what the gradient of the input has computed: W comes after I.",
        ),
    ],
    hints=[
        "Where is each stage of 1F1B idle? All stages start late or end early, and the last stage ends earliest.",
        "A list of the W that wait: each I adds one. When does a stage do one, and when may it let them wait? It may "
        "hold p stashes, and 1F1B holds p - s.",
        "Stage s does the oldest W that waits as soon as more than s wait, and the rest at the end.",
    ],
)


# --- choose_micro_batches: bubble, overhead and memory ----------------------------------------------------------------


def choose_micro_batches(batch_size, num_stages, sample_us, start_us, stash_bytes, budget_bytes):
    """Choose into how many micro-batches to cut a batch for 1F1B, so that a step is shortest and fits into memory.

    batch_size: samples. The micro-batches are equally large: their number m divides it.
    num_stages: p, all equally fast.
    sample_us, start_us: forward and backward of a micro-batch together take one stage start_us + sample_us per sample
        (µs, whole numbers). A step takes m + p - 1 times as long.
    stash_bytes: of one sample on one stage. Rank 0 holds the stashes of min(p, m) micro-batches.
    budget_bytes: the most that all stashes of rank 0 may take.

    Return m: the smallest one where several are equally fast, and None where none fits.
    """
    best_us, best = None, None
    for num in range(1, batch_size + 1):
        samples = batch_size // num
        held_bytes = min(num_stages, num) * samples * stash_bytes
        if batch_size % num == 0 and held_bytes <= budget_bytes:
            time_us = (num + num_stages - 1) * (start_us + samples * sample_us)
            if best is None or time_us < best_us:
                best_us, best = time_us, num
    return best


choose_micro_batches = Exercise(
    choose_micro_batches,
    cases=[
        (64, 4, 100, 50, 1000, 10**9),
        (64, 4, 100, 800, 1000, 20_000),
        (64, 4, 100, 5000, 1000, 64_000),
        (60, 3, 10, 40, 7, 7 * 3 * 15),  # fits exactly
        (60, 3, 10, 40, 7, 7 * 3 * 15 - 1),
        (12, 2, 2, 4, 1, 100),  # equally fast
        (16, 4, 10, 30, 100, 399),  # none fits
        (16, 4, 10, 30, 100, 400),
        (1, 4, 10, 30, 100, 100),
        (7, 8, 10, 1, 5, 35),
        (24, 1, 10, 0, 5, 200),
        (48, 4, 10, 0, 0, 0),
        (36, 6, 50, 120, 10, 10**6),
    ],
    mistakes=[
        edit(
            "(num + num_stages - 1) *",
            "num *",
            "Without the bubble fewer micro-batches always win. The first one needs p - 1 turns more to reach the last "
            "stage: m + p - 1 turns in all.",
        ),
        edit(
            " and held_bytes <= budget_bytes",
            "",
            "It does not fit: compare the stashes of rank 0 with `budget_bytes` before you look at the time.",
        ),
        edit(
            "min(num_stages, num) * samples",
            "batch_size",
            "That is the memory of GPipe, which holds all m micro-batches. 1F1B holds min(p, m) of them.",
        ),
        edit(
            "min(num_stages, num) * samples",
            "num_stages * samples",
            "There are no p stashes where there are fewer than p micro-batches: min(p, m).",
        ),
        edit(
            "batch_size % num == 0 and held",
            "held",
            "Micro-batches are equally large: m has to divide the batch.",
        ),
        edit(
            "held_bytes <= budget_bytes",
            "held_bytes < budget_bytes",
            "What takes exactly the budget fits.",
        ),
        edit(
            "time_us < best_us",
            "time_us <= best_us",
            "Where two are equally fast the smaller number is asked for: it sends fewer messages.",
        ),
    ],
    hints=[
        "Try every m that divides the batch. Which two numbers do you need of each?",
        "A micro-batch has B / m samples. Time: (m + p - 1)(start + samples · sample). Memory: min(p, m) · samples · "
        "stash.",
        "Go through m from small to large, leave out what does not divide or fit, and take a new best only if its time "
        "is really smaller.",
    ],
)
