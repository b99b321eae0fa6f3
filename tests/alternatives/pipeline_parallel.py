"""Other answers to the exercises of lesson 16."""


def gpipe_backwards_turned_round(num_stages, num_micro_batches):
    """As in the paper: the last micro-batch comes back first."""
    return [
        [("forward", stage, part) for part in range(num_micro_batches)]
        + [("backward", stage, part) for part in reversed(range(num_micro_batches))]
        for stage in range(num_stages)
    ]


def one_f_one_b_by_counting(num_stages, num_micro_batches):
    """A stage takes a forward whenever it holds fewer stashes than it may."""
    orders = []
    for stage in range(num_stages):
        order, forwards, backwards = [], 0, 0
        while backwards < num_micro_batches:
            may_go_on = forwards < num_micro_batches and forwards - backwards < num_stages - stage
            if may_go_on:
                order.append(["forward", stage, forwards])
                forwards += 1
            else:
                order.append(["backward", stage, backwards])
                backwards += 1
        orders.append(tuple(order))
    return orders


def weights_after_a_later_input(orders):
    """W of micro-batch k stands behind I of micro-batch k + s, or at the end."""
    placed = []
    for stage, order in enumerate(orders):
        new = []
        for step in order:
            new.append(step)
            if step[0] == "input" and step[2] >= stage:
                new.append(("weight", stage, step[2] - stage))
        last = max(part for _, _, part in order)
        placed.append(new + [("weight", stage, part) for part in range(max(0, last + 1 - stage), last + 1)])
    return placed


def weights_whenever_memory_asks(orders):
    """Puts off as long as the stashes allow: then, when no forward is left, idle time stays empty."""
    num_micro_batches = sum(op == "input" for op, *_ in orders[0])
    placed = []
    for order in orders:
        new, stashes, waiting = [], 0, []
        for op, stage, part in order:
            if op == "forward":
                if stashes == min(len(orders), num_micro_batches):
                    new.append(waiting.pop(0))
                    stashes -= 1
                stashes += 1
            else:
                waiting.append(("weight", stage, part))
            new.append((op, stage, part))
        placed.append(new + waiting)
    return placed


def micro_batches_by_sorting(batch_size, num_stages, sample_us, start_us, stash_bytes, budget_bytes):
    divisors = [m for m in range(1, batch_size + 1) if batch_size % m == 0]
    fitting = [m for m in divisors if min(num_stages, m) * (batch_size // m) * stash_bytes <= budget_bytes]
    return min(
        fitting,
        key=lambda m: ((m + num_stages - 1) * (start_us + batch_size // m * sample_us), m),
        default=None,
    )


def gpipe_for_one_stage(num_stages, num_micro_batches):
    return [[(op, 0, part) for op in ("forward", "backward") for part in range(num_micro_batches)]]


def gpipe_with_an_idle_rank(num_stages, num_micro_batches):
    return [*gpipe_backwards_turned_round(num_stages, num_micro_batches), []]


def gpipe_twice(num_stages, num_micro_batches):
    return [2 * order for order in gpipe_backwards_turned_round(num_stages, num_micro_batches)]


def gpipe_in_letters(num_stages, num_micro_batches):
    letters = {"forward": "F", "backward": "B"}
    orders = gpipe_backwards_turned_round(num_stages, num_micro_batches)
    return [[(letters[op], *block) for op, *block in order] for order in orders]


def gpipe_of_stages_in_the_reverse(num_stages, num_micro_batches):
    orders = gpipe_backwards_turned_round(num_stages, num_micro_batches)
    return [[(op, num_stages - 1 - stage, part) for op, stage, part in order] for order in orders]


def gpipe_of_two_halves(num_stages, num_micro_batches):
    """Half of the micro-batches forward and backward, then the other half."""
    half = (num_micro_batches + 1) // 2
    orders = []
    for stage in range(num_stages):
        parts = range(half), range(half, num_micro_batches)
        orders.append([(op, stage, part) for own in parts for op in ("forward", "backward") for part in own])
    return orders


def one_f_one_b_in_halves(num_stages, num_micro_batches):
    orders = one_f_one_b_by_counting(num_stages, num_micro_batches)
    return [[("input" if op == "backward" else op, *block) for op, *block in order] for order in orders]


def one_f_one_b_one_behind(num_stages, num_micro_batches):
    """Goes ahead by one forward less, and is late at every turn."""
    orders = []
    for stage in range(num_stages):
        order, forwards = [], 0
        for part in range(num_micro_batches):
            while forwards < min(num_micro_batches, part + max(1, num_stages - 1 - stage)):
                order.append(("forward", stage, forwards))
                forwards += 1
            order.append(("backward", stage, part))
        orders.append(order)
    return orders


def one_f_one_b_backwards_turned_round(num_stages, num_micro_batches):
    orders = one_f_one_b_by_counting(num_stages, num_micro_batches)
    last = num_micro_batches - 1
    return [[(op, stage, last - part if op == "backward" else part) for op, stage, part in each] for each in orders]


def weights_in_place(orders):
    for order in orders:
        for op, stage, part in list(order):
            if op == "input":
                order.append(("weight", stage, part))
    return orders


def weights_of_two_delays(orders):
    """Right on the first and the last stage only."""
    placed = []
    for number, order in enumerate(orders):
        delay = 0 if number == 0 else len(orders) - 1
        new, waiting = [], []
        for op, stage, part in order:
            new.append((op, stage, part))
            if op == "input":
                waiting.append(("weight", stage, part))
            if len(waiting) > delay:
                new.append(waiting.pop(0))
        placed.append(new + waiting)
    return placed


def weights_newest_first(orders):
    placed = []
    for order in orders:
        new, waiting = [], []
        for op, stage, part in order:
            new.append((op, stage, part))
            if op == "input":
                waiting.append(("weight", stage, part))
                if len(waiting) > stage:
                    new.append(waiting.pop())
        placed.append(new + waiting)
    return placed


def weights_as_backwards(orders):
    return [[("backward" if op == "input" else op, *block) for op, *block in order] for order in orders]


def weights_twice(orders):
    placed = weights_whenever_memory_asks(orders)
    return [[*order, order[-1]] for order in placed]


def micro_batches_as_many_as_stages(batch_size, num_stages, sample_us, start_us, stash_bytes, budget_bytes):
    return num_stages if batch_size % num_stages == 0 else None


def micro_batches_of_powers_of_two(batch_size, num_stages, sample_us, start_us, stash_bytes, budget_bytes):
    powers = [2**k for k in range(12) if batch_size % 2**k == 0]
    fitting = [m for m in powers if min(num_stages, m) * (batch_size // m) * stash_bytes <= budget_bytes]
    return min(
        fitting,
        key=lambda m: ((m + num_stages - 1) * (start_us + batch_size // m * sample_us), m),
        default=None,
    )


def micro_batches_that_just_fit(batch_size, num_stages, sample_us, start_us, stash_bytes, budget_bytes):
    for m in range(1, batch_size + 1):
        if batch_size % m == 0 and min(num_stages, m) * (batch_size // m) * stash_bytes <= budget_bytes:
            return m
    return None


def micro_batches_by_the_root(batch_size, num_stages, sample_us, start_us, stash_bytes, budget_bytes):
    """The best real number, rounded: √((p - 1) B sample / start)."""
    return round(((num_stages - 1) * batch_size * sample_us / max(start_us, 1)) ** 0.5)


def micro_batches_zero_for_none(batch_size, num_stages, sample_us, start_us, stash_bytes, budget_bytes):
    return micro_batches_by_sorting(batch_size, num_stages, sample_us, start_us, stash_bytes, budget_bytes) or 0


alternatives = {
    "gpipe_order": [gpipe_backwards_turned_round],
    "one_f_one_b_order": [one_f_one_b_by_counting],
    "place_weights": [weights_after_a_later_input, weights_newest_first],
    "choose_micro_batches": [micro_batches_by_sorting],
}
wrong = {
    "gpipe_order": [
        gpipe_for_one_stage,
        gpipe_with_an_idle_rank,
        gpipe_twice,
        gpipe_in_letters,
        gpipe_of_stages_in_the_reverse,
        gpipe_of_two_halves,
    ],
    "one_f_one_b_order": [
        one_f_one_b_in_halves,
        one_f_one_b_one_behind,
        one_f_one_b_backwards_turned_round,
        gpipe_backwards_turned_round,
        gpipe_of_two_halves,
    ],
    "place_weights": [
        weights_whenever_memory_asks,
        weights_in_place,
        weights_of_two_delays,
        weights_as_backwards,
        weights_twice,
    ],
    "choose_micro_batches": [
        micro_batches_as_many_as_stages,
        micro_batches_of_powers_of_two,
        micro_batches_that_just_fit,
        micro_batches_by_the_root,
        micro_batches_zero_for_none,
    ],
}
