"""Exercises of lesson 21: a save that is whole or not there, the best interval, a resize, and a flipped bit."""

import math

import torch

from lessons_lib.exercises.cases import drawn
from lessons_lib.exercises.core import Exercise, Outcome, edit

# --- save_whole: the order in which a file is written ----------------------------------------------------------------


def save_whole(name, data):
    """Return the list of operations that put `data` into the file `name`, so that a crash leaves all of it or nothing
    new.

    name: of the file, which holds the data of the last save, or is not there yet.
    data: a text.

    An operation is one of these:
    ("write", file, text): the file holds this text from now on, but it is not yet safe.
    ("flush", file): what the file holds is safe now.
    ("rename", file, other): the file is called `other` from now on, in place of what was called so. This is whole and
        safe at once, but it makes the text no safer than it was.
    A crash may come after each operation. What was written and not flushed is then cut off in the middle, under
    whatever name it has. After a crash the file `name` has to hold all of the old data or all of the new, and after
    the last operation the new. Three operations are enough, and more are refused. Other names of files are free.
    """
    beside = name + ".partial"
    return [("write", beside, data), ("flush", beside), ("rename", beside, name)]


def _in_place(name, data):
    """You write over the file itself. A crash in the middle of it, and neither the old nor the new data is there: write
    a file of another name first."""
    return [("write", name, data), ("flush", name)]


def _unflushed(name, data):
    """You rename a file whose text is not safe yet. After a crash the new name leads to half a text: flush before you
    rename."""
    return [("write", name + ".new", data), ("rename", name + ".new", name)]


def _flushed_too_late(name, data):
    """You flush after the rename. Between the two a crash leaves half a text under the name: flush first."""
    return [("write", name + ".new", data), ("rename", name + ".new", name), ("flush", name)]


def _old_aside(name, data):
    """You move the old file away first. A crash before the last rename leaves no file of this name: a rename puts the
    new one in the place of the old, so nothing has to be moved away."""
    beside = name + ".partial"
    return [
        ("write", beside, data),
        ("flush", beside),
        ("rename", name, name + ".old"),
        ("rename", beside, name),
    ]


def _not_renamed(name, data):
    """The new data is safe, but under another name: nobody will look for it there."""
    return [("write", name + ".new", data), ("flush", name + ".new")]


CUT = "cut off"


def _after_crashes(fn, name, data, old):
    """What the file holds after a crash behind each operation, each thing once, and at the end."""
    operations = fn(name, data)
    if not isinstance(operations, list | tuple):
        return Outcome(operations, faults=[f"gives {operations!r}: a list of operations is needed"])
    files, seen = ({} if old is None else {name: (old, True)}), []
    for number, operation in enumerate(operations):
        fault = _do(operation, files)
        if fault:
            return Outcome(None, faults=[f"gives operation {number} {operation!r}: {fault}"])
        seen.append(_found(files, name))
    bad = [number for number, found in enumerate(seen) if found not in (old, data)]
    if bad:
        left = "no file" if seen[bad[0]] is None else "half a text"
        fault = f"leaves {left} of the name {name!r} after a crash behind operation {bad[0]} {operations[bad[0]]!r}"
        return Outcome({"in the end": seen[-1]}, faults=[fault])
    return Outcome({"in the end": seen[-1] if seen else old}, {"operations": len(operations)})


def _do(operation, files):
    """Do one operation on {file: (text, whether it is safe)}; what is wrong with it, or None."""
    kind, *rest = operation if isinstance(operation, list | tuple) and operation else (None,)
    if not all(isinstance(each, str) for each in rest):
        return "names and texts are needed"
    if kind == "write" and len(rest) == 2:
        files[rest[0]] = rest[1], False
    elif kind == "flush" and len(rest) == 1 and rest[0] in files:
        files[rest[0]] = files[rest[0]][0], True
    elif kind == "rename" and len(rest) == 2 and rest[0] in files:
        files[rest[1]] = files.pop(rest[0])
    else:
        return "write, flush or rename of a file that is there is needed"
    return None


def _found(files, name):
    text, is_safe = files.get(name, (None, True))
    return text if is_safe else CUT


save_whole = Exercise(
    save_whole,
    [
        ("manifest.json", "step 20", "step 10"),
        ("weights", "new", "old"),
        ("first", "there was none before", None),
        ("a.partial", "names are not what counts", "old"),
        ("temp", "a\n", "old"),
        ("a.tmp", "é", "e"),
        ("aba", "", "old"),
        ("CKPT.tmp", "a\r\nb ", None),
        ("x", "1", "0"),
    ],
    [_in_place, _unflushed, _flushed_too_late, _old_aside, _not_renamed],
    [
        "Which of the three operations is whole and safe at once? It should be what makes the new data visible.",
        "Before it, the new data has to be safe under a name that nobody looks at.",
        "Write beside, flush, rename.",
    ],
    outcome=_after_crashes,
)


# --- whole_steps: how often to save --------------------------------------------------------------------------------


def whole_steps(save_s, restart_s, mean_between_s, step_s, max_steps):
    """Return the whole number of steps from one checkpoint to the next, 1 to `max_steps`, that loses least.

    save_s: seconds that a checkpoint takes.
    restart_s: seconds from a failure until training goes on.
    mean_between_s: seconds from one failure to the next, on average.
    step_s: seconds of a step. max_steps: the largest answer that is allowed.

    A second of training costs, on average: save_s / t for saving, t / 2 / mean_between_s for what is done again, and
    restart_s / mean_between_s for starting again; t is the time of an interval in seconds, training alone. Of two
    intervals that lose the same, return the shorter one.
    """
    best, least = 1, float("inf")
    for steps in range(1, max_steps + 1):
        interval_s = steps * step_s
        lost = save_s / interval_s + (interval_s / 2 + restart_s) / mean_between_s
        if lost < least:
            best, least = steps, lost
    return best


def _formula_in_seconds(save_s, restart_s, mean_between_s, step_s, max_steps):
    """√(2·save_s·mean_between_s) is a time in seconds. Asked is a number of steps: divide by the seconds of a step."""
    return max(1, min(max_steps, round(math.sqrt(2 * save_s * mean_between_s))))


def _whole_interval_lost(save_s, restart_s, mean_between_s, step_s, max_steps):
    """You count a whole interval as lost. A failure comes in the middle of it on average: half of it is done again."""
    lost = [save_s / (n * step_s) + n * step_s / mean_between_s for n in range(1, max_steps + 1)]
    return lost.index(min(lost)) + 1


def _restart_as_save(save_s, restart_s, mean_between_s, step_s, max_steps):
    """You let the time of a restart decide. It is paid once a failure, however often you save: it shifts nothing."""
    return whole_steps.reference(save_s + restart_s, 0.0, mean_between_s, step_s, max_steps)


def _rounded_down(save_s, restart_s, mean_between_s, step_s, max_steps):
    """You cut the fraction off. Compare what the whole numbers on both sides of it lose."""
    steps = int(math.sqrt(2 * save_s * mean_between_s) / step_s)
    return max(1, min(max_steps, steps))


whole_steps = Exercise(
    whole_steps,
    [
        (30.0, 120.0, 11124.0, 4.0, 1000),
        (30.0, 0.0, 11124.0, 1.0, 1000),
        (2.0, 10.0, 100.0, 1.0, 100),  # √(2·2·100) = 20
        (0.5, 3.0, 49.0, 1.0, 100),
        (1.0, 1.0, 8.0, 2.0, 50),
        (1.0, 1.0, 12.25, 1.0, 50),  # 4.95: rounded up
        (6.0, 0.0, 1.0, 1.0, 10),  # two intervals lose the same: 3 and 4
        (5.0, 60.0, 10000.0, 7.0, 20),  # the best lies beyond what is allowed
        (0.0, 5.0, 100.0, 1.0, 30),  # saving is free
        (100.0, 1.0, 1.0, 50.0, 9),  # less than a step
        (3.0, 2.0, 77.0, 0.7, 1),
        (0.04, 0.4, 1.0, 0.02, 500),
        (1.05, 0.0, 1.0, 1.0, 10),  # between √(k(k+1)) and k + 1/2 the larger number wins, though k is nearer
        (3.05, 0.0, 1.0, 1.0, 9),
        (210.0635, 0.0, 1.0, 1.0, 90),
        (600.0, 0.0, 36000.0, 1.0, 10000),
    ],
    [
        _formula_in_seconds,
        _whole_interval_lost,
        _restart_as_save,
        _rounded_down,
        edit("if lost < least", "if lost <= least", "Of two intervals that lose the same, the shorter one is asked."),
    ],
    [
        "Try every number of steps, and keep the one whose seconds cost least.",
        "An interval of n steps takes t = n * step_s seconds.",
        "lost = save_s / t + (t / 2 + restart_s) / mean_between_s. The smallest one wins.",
    ],
)


# --- rows_after: the rest of an epoch on other ranks -----------------------------------------------------------------


def rows_after(order, num_steps_done, batch_size, world_size):
    """Return a list with an entry for each rank: for each step that is left of the epoch the list of its rows.

    order: the rows of the epoch in the order in which they are used, a list; a row may come more than once. A step
        takes the next `batch_size` of them, all ranks together; the last step takes what is left.
    num_steps_done: steps of this epoch that were done before the checkpoint, perhaps by another number of ranks.
    world_size: how many ranks go on. Within a step rank r takes the rows at the places r, r + world_size,
        r + 2 * world_size, … of the step; a rank may get none.
    """
    rows = [[] for _ in range(world_size)]
    for start in range(num_steps_done * batch_size, len(order), batch_size):
        batch = order[start : start + batch_size]
        for rank in range(world_size):
            rows[rank].append(batch[rank::world_size])
    return rows


def _from_the_start(order, num_steps_done, batch_size, world_size):
    """You begin the epoch again: what was seen before the checkpoint is seen twice."""
    return rows_after.reference(order, 0, batch_size, world_size)


def _by_own_batch(order, num_steps_done, batch_size, world_size):
    """You take `batch_size` rows for each rank. It is the size of a step of all ranks together: else the number of
    ranks changes the training."""
    return rows_after.reference(order, num_steps_done, batch_size * world_size, world_size)


def _last_dropped(order, num_steps_done, batch_size, world_size):
    """You drop the last step where it is short. Its rows are then never seen."""
    whole = len(order) // batch_size * batch_size
    return rows_after.reference(order[:whole], num_steps_done, batch_size, world_size)


def _in_blocks(order, num_steps_done, batch_size, world_size):
    """You cut a step into blocks. Asked is every `world_size`-th row, from the rank's own place on."""
    each = -(-batch_size // world_size)
    rows = [[] for _ in range(world_size)]
    for start in range(num_steps_done * batch_size, len(order), batch_size):
        batch = order[start : start + batch_size]
        for rank in range(world_size):
            rows[rank].append(batch[rank * each : (rank + 1) * each])
    return rows


rows_after = Exercise(
    rows_after,
    [
        (list(range(12)), 1, 4, 2),
        ([5, 3, 0, 1, 4, 2, 6], 1, 3, 2),  # a short last step
        ([5, 3, 0, 1, 4, 2, 6], 0, 3, 3),
        ([9, 8, 7, 6, 5], 1, 2, 4),  # more ranks than rows of a step
        (list(range(7)), 2, 3, 3),  # the short step alone
        (list(range(6)), 2, 3, 2),  # nothing is left
        (list(range(10)), 3, 1, 1),
        ([], 0, 4, 3),
        ([2, 0, 1], 0, 8, 2),
        ([7, 7, 1, 0], 1, 2, 2),
        ([5, 5, 5, 2], 0, 2, 2),
    ],
    [
        _from_the_start,
        _by_own_batch,
        _last_dropped,
        _in_blocks,
        edit(
            "num_steps_done * batch_size",
            "num_steps_done",
            "`num_steps_done` counts steps, and each has used `batch_size` rows.",
        ),
        edit(
            "num_steps_done * batch_size",
            "(num_steps_done + 1) * batch_size",
            "You leave out the step after the checkpoint: its rows are never seen.",
        ),
    ],
    [
        "Forget how many ranks there were: where in `order` does the next step begin?",
        "At `num_steps_done * batch_size`; from there on in pieces of `batch_size`.",
        "Of each piece rank r takes `piece[r::world_size]`.",
    ],
)


# --- flipped_bit: which rank, number and bit -------------------------------------------------------------------------


def flipped_bit(replicas):
    """Return (rank, place, bit) of the one bit in which one replica differs from all others, or None if all are alike.

    replicas: a list with a float64 tensor of shape (n,) for each rank, at least three. At most one bit of one number of
        one rank differs. All 64 bits count, those of a nan too. The tensors are not to be changed.
    place: where in the tensor the number stands. bit: 0 for the lowest bit of its 64, 63 for the sign.
    """
    bits = torch.stack(replicas).view(torch.int64)
    most = bits.median(0).values
    for rank, place in (bits != most).nonzero().tolist():
        changed = (bits[rank, place] ^ most[place]).item() % 2**64
        return rank, place, changed.bit_length() - 1
    return None


def _by_value(replicas):
    """You compare numbers. Two different patterns of bits can be equal as numbers (0.0 and -0.0), and nan equals
    nothing, itself included: compare the bits, with `.view(torch.int64)`."""
    for place in range(len(replicas[0])):
        numbers = [replica[place].item() for replica in replicas]
        usual = sorted(numbers)[len(numbers) // 2]
        for rank, number in enumerate(numbers):
            if number != usual:
                changed = _bits_of(number) ^ _bits_of(usual)
                return rank, place, changed.bit_length() - 1
    return None


def _bits_of(number):
    return torch.tensor([number], dtype=torch.float64).view(torch.int64).item() % 2**64


def _first_is_right(replicas):
    """You believe rank 0. It may be the one whose bit has flipped: believe what most ranks have."""
    bits = torch.stack(replicas).view(torch.int64)
    for rank, place in (bits != bits[0]).nonzero().tolist():
        return rank, place, ((bits[rank, place] ^ bits[0, place]).item() % 2**64).bit_length() - 1
    return None


def _counted_from_the_top(replicas):
    """You count bits from the sign on. Bit 0 is the lowest one."""
    found = flipped_bit.reference(replicas)
    return found and (*found[:2], 63 - found[2])


def _the_sign_is_lost(replicas):
    """Where the sign bit has flipped, the integers differ by a negative number: take it modulo 2**64 before you ask
    for its bits."""
    found = flipped_bit.reference(replicas)
    return (*found[:2], 62) if found and found[2] == 63 else found


def _flipped(num_ranks, numbers, rank=None, place=0, bit=0):
    replicas = [torch.tensor(numbers, dtype=torch.float64) for _ in range(num_ranks)]
    if rank is not None:
        replicas[rank].view(torch.int64)[place] ^= -(2**63) if bit == 63 else 1 << bit
    return (replicas,)


def _flip_cases():
    numbers = drawn(9, seed=3, dtype=torch.float64).tolist()
    zeros, odd = [0.0, 1.0, 0.0], [float("nan"), float("inf"), -1.0]
    return [
        _flipped(4, numbers, rank=2, place=5, bit=0),
        _flipped(4, numbers, rank=0, place=0, bit=51),  # rank 0 itself
        _flipped(3, numbers, rank=1, place=8, bit=63),
        _flipped(3, zeros, rank=2, place=2, bit=63),  # 0.0 becomes -0.0
        _flipped(5, odd, rank=4, place=2, bit=62),
        _flipped(4, odd),
        _flipped(3, odd, rank=1, place=0, bit=51),  # one nan becomes another number of its kind
        _flipped(3, zeros, rank=0, place=1, bit=62),
        _flipped(6, numbers, rank=5, place=3, bit=32),
        _flipped(3, [1.5, 2.0], rank=1, place=0, bit=62),  # 1.5 becomes nan
        _flipped(4, odd, rank=3, place=0, bit=0),
        _flipped(3, numbers),
        _flipped(3, []),
    ]


flipped_bit = Exercise(
    flipped_bit,
    _flip_cases,
    [_by_value, _first_is_right, _counted_from_the_top, _the_sign_is_lost],
    [
        "Numbers that print alike need not be alike. `tensor.view(torch.int64)` gives the 64 bits of each number as an "
        "integer.",
        "At each place most ranks have the same integer; `median` over the ranks gives it.",
        "`a ^ b` has a 1 where the bits of a and b differ; of 2**k, `.bit_length() - 1` is k. With the sign bit an "
        "integer is negative: `% 2**64` first.",
    ],
)
