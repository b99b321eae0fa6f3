"""Ranks that are started again agree on a start, whatever earlier starts have left, and whoever dies meanwhile."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch.distributed as dist

from lessons_lib.launch.fresh_store import agree_on_start

TIMEOUT_S = 60
NOBODY = "a number of a rank that is gone"


@pytest.fixture
def connect_to_store():
    """A function that makes one more connection to the one store."""
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    yield lambda: dist.TCPStore("127.0.0.1", server.port, is_master=False, timeout=timedelta(seconds=TIMEOUT_S))


def start(connect, counts, timeout_s=TIMEOUT_S):
    """What each rank gets, whose machine has counted `counts[rank]` failures."""
    with ThreadPoolExecutor(len(counts)) as pool:
        ranks = [
            pool.submit(agree_on_start, connect(), rank, len(counts), n, timeout_s) for rank, n in enumerate(counts)
        ]
        return [rank.result() for rank in ranks]


def alike(results):
    [(name, restart_count)] = set(results)
    return name, restart_count


def test_each_start_has_a_name_of_its_own_and_the_largest_count(connect_to_store):
    all_counts = [0, 0, 0], [0, 1, 1], [1, 1, 1], [0, 2, 0], [4]
    found = [alike(start(connect_to_store, counts)) for counts in all_counts]
    assert [restart_count for _, restart_count in found] == [0, 1, 1, 2, 4]
    assert len({name for name, _ in found}) == len(all_counts)


def test_fewer_and_more_ranks_than_before(connect_to_store):
    sizes = [4, 2, 1, 3]
    assert len({alike(start(connect_to_store, [0] * size)) for size in sizes}) == len(sizes)


def in_thread(connect, rank, world_size, count=0):
    pool = ThreadPoolExecutor(1)
    result = pool.submit(agree_on_start, connect(), rank, world_size, count, TIMEOUT_S)
    pool.shutdown(wait=False)
    return result


def test_a_rank_that_died_after_its_answer_comes_again(connect_to_store):
    store, first = connect_to_store(), in_thread(connect_to_store, 0, 3)
    store.set("came/1", NOBODY)
    name = store.get(f"welcome/{NOBODY}").decode()  # waits for it
    store.set(f"heard/{name}/{NOBODY}", "0")
    again = in_thread(connect_to_store, 1, 3, count=1)
    store.wait([f"welcome/{store.get('came/1').decode()}"])
    assert not first.done() and not again.done()  # rank 2 has not come, and what the dead one heard counts for nobody
    results = [rank.result() for rank in (first, again, in_thread(connect_to_store, 2, 3))]
    assert alike(results) == (name, 1)


def test_the_number_of_a_rank_that_is_gone_is_no_rank(connect_to_store):
    store = connect_to_store()
    store.set("came/1", NOBODY)
    with pytest.raises(RuntimeError, match="the other ranks did not come within 1 s: rank 0 of 2 waited"):
        agree_on_start(store, 0, 2, 0, 1)


def test_rank_0_died_after_it_answered_and_another_comes(connect_to_store):
    store, other = connect_to_store(), in_thread(connect_to_store, 1, 2)
    store.wait(["came/1"])
    number = store.get("came/1").decode()
    store.set(f"welcome/{number}", "a start that nobody agreed on")
    store.wait([f"heard/a start that nobody agreed on/{number}"])
    results = [in_thread(connect_to_store, 0, 2, count=1).result(), other.result()]
    assert alike(results)[0] != "a start that nobody agreed on" and alike(results)[1] == 1


def test_who_waits_in_vain_says_so(connect_to_store):
    with pytest.raises(RuntimeError, match="the other ranks did not come within 1 s: rank 1 of 2 waited"):
        agree_on_start(connect_to_store(), 1, 2, 0, 1)
