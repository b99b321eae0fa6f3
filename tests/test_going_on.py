"""After a `CollectiveMismatch` over shared memory that all ranks catch, everything works again, at once."""

import sys
from itertools import combinations

import cloudpickle
import pytest
import torch

from lessons_lib import CollectiveMismatch, launch

cloudpickle.register_pickle_by_value(sys.modules[__name__])

OPERATIONS = {
    "barrier": lambda comm, buffer: comm.barrier(),
    "all_reduce in a buffer": lambda comm, buffer: comm.all_reduce(buffer),
    "all_reduce elsewhere": lambda comm, buffer: comm.all_reduce(torch.ones(5)),
    "all_gather": lambda comm, buffer: comm.all_gather(torch.zeros(comm.world_size), torch.ones(1)),
    "all_to_all": lambda comm, buffer: comm.all_to_all(torch.zeros(12), torch.ones(12)),
    "all_to_all from a buffer": lambda comm, buffer: comm.all_to_all(torch.zeros(24), buffer),
    "broadcast": lambda comm, buffer: comm.broadcast(torch.ones(3)),
    "send": lambda comm, buffer: comm.send(torch.ones(3), (comm.rank + 1) % comm.world_size),
    "recv": lambda comm, buffer: comm.recv(torch.ones(4), (comm.rank - 1) % comm.world_size),
    "tell": lambda comm, buffer: comm.tell("numbers", [1, 2]),
    "split": lambda comm, buffer: comm.split(0),
    "buffer": lambda comm, buffer: comm.buffer(5),
}


def check_all(comm, buffer):
    """One operation of each kind, and what it gives."""
    size, ranks = comm.world_size, range(comm.world_size)
    before, after = (comm.rank - 1) % size, (comm.rank + 1) % size
    for tensor in (buffer, torch.empty(5), comm.buffer(7)):
        comm.all_reduce(tensor.fill_(comm.rank + 1))
        assert set(tensor.tolist()) == {sum(ranks) + size}
    everything, exchanged, taken = torch.zeros(size), torch.zeros(size), torch.zeros(1)
    comm.all_gather(everything, torch.tensor([comm.rank + 3.0]))
    comm.all_to_all(exchanged, torch.arange(size) * 10.0 + comm.rank)
    under_way = comm.isend(torch.tensor([comm.rank + 7.0]), after)
    comm.recv(taken, before)
    under_way.wait()
    assert everything.tolist() == [rank + 3 for rank in ranks]
    assert exchanged.tolist() == [comm.rank * 10 + rank for rank in ranks]
    assert taken.item() == before + 7
    assert comm.tell("rank", [comm.rank]) == [[rank] for rank in ranks]
    with comm.split(0) as group:
        group.all_reduce(taken.fill_(1))
    assert taken.item() == size


def disagree_in_every_pair(comm):
    buffer = comm.buffer(24)
    for number, (one, other) in enumerate(combinations(OPERATIONS, 2)):
        with pytest.raises(CollectiveMismatch):
            OPERATIONS[one if comm.rank == number % comm.world_size else other](comm, buffer)
        check_all(comm, buffer)


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_whatever_the_ranks_disagreed_on_everything_works_again(world_size):
    launch(disagree_in_every_pair, world_size=world_size, timeout_s=60)


def disagree_at_once(comm, num_rounds):
    """Every rank is in another call, round after round: a late one must not take the next round's call for this one."""
    names = list(OPERATIONS)[:7]
    for number in range(num_rounds):
        with pytest.raises(CollectiveMismatch):
            OPERATIONS[names[(number + comm.rank) % len(names)]](comm, torch.ones(24))
    check_all(comm, comm.buffer(24))


def test_ranks_that_disagree_again_and_again_stay_together():
    launch(disagree_at_once, 100, world_size=3, timeout_s=60)


def wrong_message_first(comm, is_first_waited_for):
    """Rank 1 takes a message of another shape, and has begun to take a second one, which is right."""
    x = torch.zeros(2)
    if comm.rank == 0:
        messages = [comm.isend(torch.ones(3), 1), comm.isend(torch.ones(2), 1)]
    else:
        messages = [comm.irecv(torch.zeros(2), 0), comm.irecv(x, 0)]
    for message in messages if is_first_waited_for else messages[::-1]:
        with pytest.raises(CollectiveMismatch, match=r"shape \(3,\)" if comm.rank else "send"):
            message.wait()
    comm.barrier()
    for message in messages:
        with pytest.raises(CollectiveMismatch):
            message.wait()
    check_all(comm, comm.buffer(24))
    return x.tolist()


@pytest.mark.parametrize("is_first_waited_for", [True, False])
def test_messages_after_a_wrong_one_are_given_up_and_never_hold_its_numbers(is_first_waited_for):
    assert launch(wrong_message_first, is_first_waited_for, world_size=2)[1] == [0, 0]
