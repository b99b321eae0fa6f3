"""Sharded gathers as programs: proved, counted and timed without a process; what `verify` refuses."""

import pytest
from program_mutants import ends, verdicts

from lessons_lib.schedules import Links, count, sharded_step, simulate, verify
from lessons_lib.schedules.sharded import COMPUTES

KINDS = [(True, False), (True, True), (False, False), (False, True)]
every_kind = pytest.mark.parametrize(("reshard", "prefetch"), KINDS)


@every_kind
@pytest.mark.parametrize("num_ranks", [1, 2, 3, 5])
@pytest.mark.parametrize("num_units", [1, 2, 5])
def test_every_step_verifies_and_counts_as_the_docstring_says(num_ranks, num_units, reshard, prefetch):
    program = sharded_step(num_ranks, num_units, reshard, prefetch)
    verify(program)
    counts = count(program)
    assert counts.messages_sent == [num_units * (num_ranks - 1) * (3 if reshard else 2)] * num_ranks
    if num_ranks > 1:
        most = num_units if not reshard else min(num_units, 1 + prefetch)
        assert counts.most_kept == [most] * num_ranks


def test_prefetching_hides_gathers():
    links, cost_s = Links(latency_s=5e-3), {"forward": 10e-3, "backward": 20e-3, "free": 0.0, "reduce": 0.0}
    units, latency_s = 4, 5e-3
    took_s = {kind: simulate(sharded_step(2, units, *kind), links=links, cost_s=cost_s).total_s for kind in KINDS}
    computing_s = units * (10e-3 + 20e-3)
    assert took_s[True, False] == pytest.approx(computing_s + 3 * units * latency_s)
    assert took_s[False, False] == pytest.approx(computing_s + 2 * units * latency_s)
    assert took_s[True, True] == pytest.approx(computing_s + (units + 2) * latency_s)  # the reductions, the two first
    assert took_s[False, True] == pytest.approx(computing_s + (units + 1) * latency_s)


@every_kind
def test_verify_refuses_every_mutant_that_computes_something_else_and_no_other(reshard, prefetch):
    program = sharded_step(3, 3, reshard, prefetch)
    refused, passed = verdicts(program, computed, relabelled)
    assert refused > 10 * passed > 0


def relabelled(step, program):
    for place, part in enumerate(step.block):
        if isinstance(part, int):
            yield from (step._replace(block=(*step.block[:place], part + d, *step.block[place + 1 :])) for d in (-1, 1))
    if step.peer is None:
        yield from (step._replace(op=op) for op in COMPUTES if op != step.op)
    else:
        yield from (step._replace(peer=peer) for peer in range(-1, program.world_size + 1) if peer != step.peer)
        yield step._replace(op="recv" if step.op == "send" else "send")


def computed(program):
    """What ranks that believe their lists compute, in whole numbers; None where one fails or waits for ever.

    A unit multiplies by the sum of its shards. Nothing is checked but that what is used is there, and that memory into
    which a message is taken is free.
    """
    held = [{("activation", -1): 1009 + 10 * rank} for rank in range(program.world_size)]
    for rank, own in enumerate(held):
        own.update({("shard", unit, rank): 101 + 7 * rank + 31 * unit for unit in range(program.num_units)})
    if not ends(program, lambda rank, step, wires: play(program, rank, step, held[rank], wires)):
        return None
    return [{block: value for block, value in own.items() if block[0] in ("reduced", "shard")} for own in held]


def play(program, rank, step, held, wires):
    """Do one step; False where its message is not there yet."""
    ranks = range(program.world_size)
    if step.op == "send":
        if step.peer not in ranks or step.peer == rank:
            raise IndexError
        wires[rank, step.peer].append((step.block, held[step.block]))
        return True
    if step.op == "recv":
        if step.peer not in ranks or step.peer == rank:
            raise IndexError
        if not wires[step.peer, rank]:
            return False
        sent, value = wires[step.peer, rank].popleft()
        if step.block in held or sent != step.block:  # shapes and tags differ, or the memory is taken
            raise KeyError
        held[step.block] = value
        return True
    (unit,) = step.block
    if step.op == "free":
        [held["shard", unit, other] for other in ranks]
        for other in ranks:
            if other != rank:
                del held["shard", unit, other]
        return True
    if step.op == "reduce":
        held["reduced", unit] = sum(held.pop(("partial", unit, rank, other)) for other in ranks)
        return True
    weight = sum(held["shard", unit, other] for other in ranks)
    if step.op == "forward":
        x = held.pop(("activation", unit - 1))
        held["stash", unit], held["activation", unit] = x, x * weight
        return True
    x = held.pop(("stash", unit))
    last = unit == program.num_units - 1
    gradient = held.pop(("activation", unit)) if last else held.pop(("gradient", unit))
    if unit > 0:
        held["gradient", unit - 1] = gradient * weight
    held.update({("partial", unit, target, rank): gradient * x * (target + 1) for target in ranks})
    return True
