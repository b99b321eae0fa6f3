"""Ring attention, exchanged heads and routed tokens as programs: proved, counted, timed, and what `verify` refuses."""

from dataclasses import replace
from itertools import pairwise

import pytest
from program_mutants import ends, verdicts

from lessons_lib.schedules import (
    Links,
    chunk_owners,
    count,
    exchange_of_heads,
    expert_routing,
    ring_of_keys,
    simulate,
    verify,
)

CHOSEN = [[(0, 3), (1, 3), (3, 4)], [], [(2, 0), (3, 2), (4, 3), (0, 4)]]  # rank 1 has no token; expert 3 is hot
PROGRAMS = {
    "zigzag": ring_of_keys(3),
    "zigzag backward": ring_of_keys(3, backward=True),
    "straight": ring_of_keys(4, balance="straight"),
    "straight backward": ring_of_keys(4, balance="straight", backward=True),
    "not causal": ring_of_keys(3, causal=False, balance="straight"),
    "not causal backward": ring_of_keys(3, causal=False, balance="straight", backward=True),
    "heads": exchange_of_heads(3),
    "experts": expert_routing(CHOSEN, 5),
}


@pytest.mark.parametrize("num_ranks", range(1, 10))
def test_programs_verify_for_any_number_of_ranks(num_ranks):
    for balance in ("zigzag", "straight"):
        for causal in (True, False):
            for backward in (True, False):
                verify(ring_of_keys(num_ranks, causal, balance, backward))
    verify(exchange_of_heads(num_ranks))
    for num_experts in (1, 2, 5, 11):
        chosen = [[(7 * r + t) % num_experts for t in range(r)] for r in range(num_ranks)]
        verify(expert_routing([[(expert,) for expert in tokens] for tokens in chosen], num_experts))


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8])
def test_work_and_messages_are_those_of_the_docstrings(n):
    zigzag, straight = (count(ring_of_keys(n, balance=balance)) for balance in ("zigzag", "straight"))
    assert [counts["attend"] for counts in zigzag.computed] == [2 * n + 1] * n
    assert [counts["attend"] for counts in straight.computed] == list(range(1, n + 1))
    assert zigzag.messages_sent == [n - 1] * n and zigzag.most_kept == [1] * n
    assert sum(straight.messages_sent) == n * (n - 1) / 2
    backward = count(ring_of_keys(n, backward=True), block_bytes=lambda block: 1000 if block[0] == "keys" else 1)
    assert backward.bytes_sent == backward.bytes_received == [1001 * (n - 1)] * n
    assert count(exchange_of_heads(n)).messages_sent == [2 * (n - 1)] * n


@pytest.mark.parametrize("n", [2, 4, 8])
def test_a_straight_cut_takes_nearly_twice_as_long_as_zigzag(n):
    """A whole pair of chunks of length 1 takes 1 s, a diagonal one half; chunks of zigzag have half the length."""

    def seconds(balance):
        side = 1 if balance == "straight" else 0.5
        program = ring_of_keys(n, balance=balance)
        return simulate(program, cost_s=lambda _, step: _area(step, side), block_bytes=1, links=Links()).total_s

    assert seconds("zigzag") == pytest.approx(n / 2)
    assert seconds("straight") == pytest.approx(n - 0.5)


def _area(step, side):
    if step.op != "attend":
        return 0.0
    return side**2 / (2 if step.block[0] == step.block[1] else 1)


def test_routing_moves_what_lies_elsewhere_and_a_hot_expert_holds_up_its_rank():
    program = expert_routing(CHOSEN, 5)  # expert 0 on rank 0, 1 and 2 on rank 1, 3 and 4 on rank 2
    assert program.placement == (0, 1, 1, 2, 2)
    counts = count(program, block_bytes=lambda block: len(CHOSEN[block[1]]))
    assert counts.messages_sent == [3 + 1, 2, 2 + 2]
    assert [computed.get("do", 0) for computed in counts.computed] == [2, 2, 4]
    tokens = [sum(expert in chosen for rank in CHOSEN for chosen in rank) for expert in range(5)]
    assert tokens == [3, 1, 2, 5, 3]
    times_s = simulate(program, cost_s=lambda _, step: len(program.work[step.block[0]][step.block[1]])).trace.spans
    busy_s = [sum(s.end_s - s.start_s for s in times_s if s.rank == rank and s.kind == "compute") for rank in range(3)]
    assert busy_s == [3, 3, 8]


@pytest.mark.parametrize("name", PROGRAMS)
def test_verify_refuses_every_mutant_that_computes_something_else_and_no_other(name):
    program = PROGRAMS[name]
    refused, passed = verdicts(program, computed, relabelled)
    assert refused > passed > 0


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ring_of_keys(0), "num_ranks=0"),
        (lambda: ring_of_keys(2, balance="even"), "balance='even': one of 'zigzag', 'straight' is needed"),
        (lambda: replace(ring_of_keys(2), owners=(0, 2)), "owners=(0, 2): for each chunk a rank from 0 to 1"),
        (lambda: expert_routing([[(0,)], [(2,)]], 2), "chosen has expert 2: one from 0 to 1"),
        (lambda: replace(exchange_of_heads(2), placement=(0, 5)), "placement[1]=5"),
        (lambda: replace(exchange_of_heads(2), work=({},)), "work has 1 parts: one for each of 2 ranks"),
    ],
)
def test_what_is_no_program_is_named(make, said):
    with pytest.raises(ValueError) as error:
        make()
    assert said in str(error.value)


def test_chunks_of_a_zigzag_are_an_early_and_a_late_one():
    assert chunk_owners(4) == (0, 1, 2, 3, 3, 2, 1, 0)
    assert all(one < other for one, other in pairwise(chunk_owners(4, "straight")))


def relabelled(step, program):
    for place, part in enumerate(step.block):
        for other in {"keys": ["gradient"], "gradient": ["keys"], "work": ["result"], "result": ["work"]}.get(
            part, [] if isinstance(part, str) else [part - 1, part + 1]
        ):
            yield step._replace(block=(*step.block[:place], other, *step.block[place + 1 :]))
    if step.peer is None:
        yield from (step._replace(op=op) for op in ("attend", "differentiate", "add", "drop", "do") if op != step.op)
    else:
        yield from (step._replace(peer=peer) for peer in range(-1, program.world_size + 1) if peer != step.peer)
        yield step._replace(op="recv" if step.op == "send" else "send")


def computed(program):
    """What ranks that believe their lists compute, in whole numbers; None where one fails or waits for ever."""
    is_ring = hasattr(program, "owners")
    play, result = (play_ring, result_of_ring) if is_ring else (play_exchange, result_of_exchange)
    held = [{("keys", rank): 1009 + 10 * rank} for rank in range(program.world_size)]
    if not is_ring:
        held = [
            {("work", rank, place): 101 + 7 * rank + 31 * place + 1000 * len(what) for place, what in own.items()}
            for rank, own in enumerate(program.work)
        ]

    def do(rank, step, wires):
        return (play if step.peer is None else send_or_receive)(program, rank, step, held[rank], wires)

    return result(program, held) if ends(program, do) else None


def send_or_receive(program, rank, step, held, wires):
    if step.peer not in range(program.world_size):
        raise IndexError
    if step.op == "send":
        wires[rank, step.peer].append(held[step.block])
    elif wires[step.peer, rank]:
        held[step.block] = wires[step.peer, rank].popleft()
    else:
        return False
    return True


def play_ring(program, rank, step, held, _):
    if step.op == "drop":
        held.pop(("keys", step.block[1]) if step.block[0] == "keys" else step.block)
    elif step.op == "add" and program.backward:
        held[step.block] = held.get(step.block, 0) + held.pop(("part", step.block[1]))
    elif step.op == ("differentiate" if program.backward else "attend"):
        query, key = step.block
        if min(query, key) < 0 or program.owners[query] != rank:
            raise IndexError
        value = held["keys", program.owners[key]] * (query + 3) ** 3 * (key + 5) ** 5
        held["answer", query] = held.get(("answer", query), 0) + value
        if program.backward:
            part = "part", program.owners[key]
            held[part] = held.get(part, 0) + value
    else:
        raise KeyError
    return True


def result_of_ring(program, held):
    answers = [held[rank].get(("answer", chunk)) for chunk, rank in enumerate(program.owners)]
    return answers, [own.get(("gradient", rank)) for rank, own in enumerate(held)]


def play_exchange(program, rank, step, held, _):
    source, place = step.block
    if step.op != "do" or place < 0 or program.placement[place] != rank:
        raise KeyError
    needed = [other for other, own in enumerate(program.work) if place in own] if program.is_joint else [source]
    value = sum((other + 2) ** (1 + (other == source)) * held["work", other, place] for other in needed)
    result = "result", source, place
    held[result] = held.get(result, 0) + value * (place + 11)
    return True


def result_of_exchange(program, held):
    return [{place: held[rank].get(("result", rank, place)) for place in own} for rank, own in enumerate(program.work)]
