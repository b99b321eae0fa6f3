"""Every small change of a program, and whether `verify` refuses exactly those that compute something else."""

from collections import defaultdict, deque
from dataclasses import replace

from lessons_lib.errors import InvalidProgram
from lessons_lib.schedules import verify


def verdicts(program, computed, relabelled):
    """Try `verify` on each mutant beside what ranks that believe their lists compute.

    Args:
        computed: program -> what comes out, by an executor that knows nothing of `verify`.
        relabelled: (step, program) -> the step with another op, block or peer.

    Returns:
        How many mutants were refused, and how many passed, each rightly.
    """
    expected = computed(program)
    assert expected is not None
    refused = passed = 0
    for mutant in mutants(program, relabelled):
        is_same = computed(mutant) == expected
        try:
            verify(mutant)
        except InvalidProgram as error:
            assert not is_same, f"refused, but computes the same: {error}"
            assert error.rank is not None and error.block is not None
            refused += 1
        else:
            assert is_same, "passed, but computes something else"
            passed += 1
    return refused, passed


def mutants(program, relabelled):
    """The program with one step dropped, doubled, swapped with the next, or relabelled."""
    for rank, steps in enumerate(program.steps):
        for number, step in enumerate(steps):
            before, after = steps[:number], steps[number + 1 :]
            changed = [before + after, [*before, step, step, *after]]
            changed += [[*before, after[0], step, *after[1:]]] if after else []
            changed += [[*before, other, *after] for other in relabelled(step, program)]
            yield from (with_steps(program, rank, each) for each in changed)


def with_steps(program, rank, steps):
    """The program with other steps for one rank."""
    return replace(program, steps=[steps if r == rank else own for r, own in enumerate(program.steps)])


def ends(program, do):
    """Let every rank take its steps, each as soon as it can, and say whether all of them ended and all was received.

    Args:
        do: (rank, step, wires) -> False where the message is not there yet. A step that fails raises KeyError,
            IndexError or TypeError. wires: {(src, dst): what is under way}.
    """
    wires, at, moved = defaultdict(deque), [0] * program.world_size, True
    while moved:
        moved = False
        for rank, steps in enumerate(program.steps):
            try:
                while at[rank] < len(steps) and do(rank, steps[at[rank]], wires):
                    at[rank] += 1
                    moved = True
            except (KeyError, IndexError, TypeError):
                return False
    return at == [len(steps) for steps in program.steps] and not any(wires.values())
