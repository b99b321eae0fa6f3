"""Heartbeats that outlive their rank, and replicas whose one odd bit is named."""

import json
import os
import signal
import sys

import cloudpickle
import pytest
import torch
from left_behind import nothing_is_left_behind  # noqa: F401

from lessons_lib import launch, show
from lessons_lib.__main__ import main
from lessons_lib.monitor import Beat, Heart, ReplicasDiffer, beats, compare_replicas, odd_ones, pulses, report
from lessons_lib.parallel import DataParallel

cloudpickle.register_pickle_by_value(sys.modules[__name__])


def write(folder, rank, *told):
    """Beats (time_s, step, samples) of a rank, as its `Heart` writes them."""
    lines = [
        json.dumps({"rank": rank, "time_s": t, "step": step, "samples": n, "cpu": 0.5, "memory_bytes": 3_000_000})
        for t, step, n in told
    ]
    (folder / f"beats-{rank}.jsonl").write_text("\n".join(lines) + "\n")


# --- beats -----------------------------------------------------------------------------------------------------------


def test_each_rank_says_what_it_has_done(tmp_path):
    def train(comm, folder):
        heart = Heart(folder, comm, every_s=0)
        for step in range(3):
            heart.beat(step + 1, samples=comm.rank + 4)

    launch(train, str(tmp_path / "new" / "folder"), world_size=3)
    told = beats(tmp_path / "new" / "folder")
    assert list(told) == [0, 1, 2]
    for rank, each in told.items():
        assert [(beat.rank, beat.step, beat.samples) for beat in each] == [(rank, n, n * (rank + 4)) for n in (1, 2, 3)]
        assert all(beat.memory_bytes > 1e7 and beat.cpu >= 0 for beat in each)
        assert [beat.time_s for beat in each] == sorted(beat.time_s for beat in each)


def test_a_beat_that_comes_too_soon_is_counted_with_the_next(tmp_path):
    def train(comm, folder):
        heart = Heart(folder, comm, every_s=1e6)
        for step in range(5):
            heart.beat(step + 1, samples=2)
        heart.every_s = 0
        heart.beat(6, samples=2)

    launch(train, str(tmp_path), world_size=1)
    assert [(beat.step, beat.samples) for beat in beats(tmp_path)[0]] == [(1, 2), (6, 12)]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
def test_the_beats_of_a_dead_rank_stay_and_its_replacement_goes_on(tmp_path):
    def train(comm, folder):
        heart = Heart(folder, comm, every_s=0)
        heart.beat(1)
        if comm.restart_count == 0:
            comm.barrier()
            if comm.rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            with pytest.raises(RuntimeError):
                comm.barrier()
            comm = comm.regroup()
        comm.barrier()
        heart.beat(2)

    launch(train, str(tmp_path), world_size=2, elastic=True, spares=1)
    assert [beat.step for beat in beats(tmp_path)[1]] == [1, 1, 2]


def test_a_line_that_is_not_ended_is_no_beat(tmp_path):
    write(tmp_path, 0, (1.0, 1, 4), (2.0, 2, 8))
    with (tmp_path / "beats-0.jsonl").open("a") as file:
        file.write('{"rank": 0, "time')
    assert [beat.step for beat in beats(tmp_path)[0]] == [1, 2]
    (tmp_path / "beats-1.jsonl").write_text("{")  # a rank that has only begun to write its first
    assert list(beats(tmp_path)) == [0]


def test_a_pulse_is_the_throughput_of_the_last_two_seconds(tmp_path):
    write(tmp_path, 0, (10.0, 1, 100), (14.0, 2, 200), (15.0, 3, 300), (16.0, 4, 340))
    write(tmp_path, 2, (15.0, 9, 50))
    write(tmp_path, 3, (15.0, 9, 50), (16.0, 10, 20))  # another process has come
    first, second, third = pulses(tmp_path, now_s=17.5)
    assert first.beat == Beat(0, 16.0, 4, 340, 0.5, 3_000_000)
    assert (first.age_s, first.samples_per_s) == (1.5, 70.0)
    assert (second.beat.rank, second.samples_per_s) == (2, None)
    assert third.samples_per_s is None


def test_a_report_names_who_is_silent_and_who_is_slow(tmp_path):
    for rank, samples in ((0, 100), (1, 100), (2, 40)):
        write(tmp_path, rank, (10.0, 1, 0), (11.0, 2, samples))
    write(tmp_path, 3, (2.0, 1, 0), (3.0, 1, 100))
    lines = report(tmp_path, silent_after_s=5, now_s=12.0).splitlines()
    assert [line.split()[-1] for line in lines[1:]] == ["MB", "MB", "slow", "silent"]
    assert lines[1].split()[:6] == ["0", "2", "1.0", "s", "100", "0.50"]


def test_the_command_shows_the_report(tmp_path, capsys):
    write(tmp_path, 5, (10.0, 7, 0))
    assert main(["monitor", str(tmp_path), "--once"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[:2] == ["5", "7"]


def test_the_command_refuses_a_folder_that_is_not_there(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["monitor", str(tmp_path / "none")])
    assert "none: there is no such folder" in capsys.readouterr().err


def test_where_there_is_nothing_a_report_says_so(tmp_path):
    assert len(report(tmp_path).splitlines()) == 1
    with pytest.raises(FileNotFoundError, match="there is no such folder"):
        beats(tmp_path / "none")
    with pytest.raises(ValueError, match="no rank has beaten in it yet"):
        show.hearts(tmp_path)


def test_the_picture_follows_ranks_while_they_train(tmp_path, monkeypatch):
    shown = []

    class Handle:
        def update(self, picture):
            shown.append(picture.alt)

    def display(picture, display_id):
        shown.append(picture.alt)
        return Handle()

    monkeypatch.setattr(sys.modules["lessons_lib.show.hearts"], "display", display)
    with show.watch(tmp_path / "beats", every_s=1e-3):
        assert not shown  # nobody has beaten
        (tmp_path / "beats").mkdir()
        write(tmp_path / "beats", 0, (10.0, 1, 0), (11.0, 2, 8))
    assert shown and set(shown) == {"Heartbeats: steps, throughput, cores and memory of each rank against time"}


@pytest.mark.parametrize("wrong", [-1, "soon", None])
def test_a_heart_refuses_times_that_are_none(wrong, tmp_path):
    def train(comm, folder):
        with pytest.raises(ValueError, match="every_s="):
            Heart(folder, comm, every_s=wrong)
        with pytest.raises(TypeError, match="Communicator"):
            Heart(folder, None)
        with pytest.raises(ValueError, match="step=-1"):
            Heart(folder, comm).beat(-1)

    launch(train, str(tmp_path), world_size=1)


# --- replicas --------------------------------------------------------------------------------------------------------


def after_a_flip(comm, at, flipped, place):
    """What `compare_replicas` says of a net that trains, in which some ranks have had a bit flipped."""
    torch.manual_seed(0)
    net = DataParallel(torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)).double(), comm)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    state = {"net": net.module, "optimizer": optimizer}
    for step in range(3):
        optimizer.zero_grad()
        net(torch.randn(2, 3, dtype=torch.float64)).square().mean().backward()
        optimizer.step()
        if step == at and comm.rank in flipped:
            target = net.module[1].weight.data if place == "weight" else optimizer.state[net.module[0].bias]["exp_avg"]
            target.view(-1).view(torch.int64)[1] ^= 1  # the least of all bits
        try:
            compare_replicas(comm, state)
        except ReplicasDiffer as found:
            return step, found.tensor, found.ranks, found.believed, str(found)
    return None


def test_replicas_that_are_alike_pass():
    assert launch(after_a_flip, None, (), "weight", world_size=3) == [None] * 3


@pytest.mark.parametrize("rank", [0, 2])
def test_the_least_bit_of_one_rank_is_named_on_all(rank):
    expected = (1, "net/1.weight", (rank,), 1, f"net/1.weight of rank {rank} differs from that of the other ranks")
    assert (
        launch(after_a_flip, 1, (rank,), "weight", world_size=3)
        == [expected if rank == 0 else (*expected[:3], 0, expected[4])] * 3
    )


def test_the_state_of_an_optimiser_is_compared_too():
    found = launch(after_a_flip, 2, (1,), "moment", world_size=3)
    assert found[0][:3] == (2, "optimizer/state/#1/exp_avg", (1,)) and found == [found[0]] * 3


def test_without_a_majority_nobody_is_believed():
    (found, again) = launch(after_a_flip, 0, (1,), "weight", world_size=2)
    assert found == again == (
        0, "net/1.weight", (0, 1), None, "net/1.weight differs between ranks 0, 1, and no majority of them is alike",
    )  # fmt: skip


def test_a_tensor_that_some_ranks_lack_is_named():
    def compare(comm):
        state = {"x": torch.zeros(2)} if comm.rank != 1 else {"x": torch.zeros(2), "y": torch.zeros(1)}
        with pytest.raises(ReplicasDiffer, match="y of rank 1 differs"):
            compare_replicas(comm, state)

    launch(compare, world_size=3)


def test_what_has_no_digest_is_named():
    def compare(comm):
        with pytest.raises(TypeError, match="x is a object"):
            compare_replicas(comm, {"x": object()})

    launch(compare, world_size=1)


@pytest.mark.parametrize(
    "digests, odd",
    [
        ({0: "a"}, ()),
        ({0: "a", 1: "a"}, ()),
        ({0: "a", 1: "b"}, (0, 1)),
        ({0: "a", 1: "b", 2: "a"}, (1,)),
        ({3: "b", 1: "a", 2: "a", 0: "a"}, (3,)),
        ({0: "a", 1: "a", 2: "b", 3: "b"}, (0, 1, 2, 3)),
        ({0: "a", 1: "a", 2: "b", 3: "c"}, (0, 1, 2, 3)),
        ({0: "a", 1: "a", 2: "a", 3: "b", 4: "c"}, (3, 4)),
    ],
)
def test_odd_is_who_differs_from_more_than_half(digests, odd):
    assert odd_ones(digests) == odd
