"""Checkpoints: whole or refused, bit for bit the same training after a resume, and safe while they are written."""

import builtins
import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys

import cloudpickle
import numpy as np
import pytest
import torch
from left_behind import nothing_is_left_behind  # noqa: F401
from torch import nn

from lessons_lib import CollectiveMismatch, RankFailed, RankLost, launch
from lessons_lib.checkpoint import BrokenCheckpoint, Checkpoints
from lessons_lib.checkpoint import disk as disk_module
from lessons_lib.checkpoint.packing import pack, unpack
from lessons_lib.data import RankSampler, digits
from lessons_lib.losses import cross_entropy
from lessons_lib.parallel import (
    DataParallel,
    FullySharded,
    LocalSGD,
    PipelineParallel,
    ShardedOptimizer,
    full_optimizer_state_dict,
    full_state_dict,
    parallelize,
)
from lessons_lib.schedules import one_f_one_b

cloudpickle.register_pickle_by_value(sys.modules[__name__])
X, Y, _, _ = digits(torch.float64)


def net(number):
    generator = torch.Generator().manual_seed(number)
    module = nn.Sequential(nn.Linear(64, 13), nn.Dropout(0.2), nn.LayerNorm(13), nn.ReLU(), nn.Linear(13, 10)).double()
    for parameter in module.parameters():
        parameter.data.uniform_(-0.2, 0.2, generator=generator)
    return module


def seed_all():
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)


class Run:
    """A training run that can be cut off after any step: model, optimiser, scheduler, sampler and random numbers."""

    def __init__(self, comm, kind):
        self.comm = comm
        module = net(comm.rank)
        self.model, self.optimizer, kept = WRAPPED[kind](module, comm)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 3, 0.5)
        self.sampler = RankSampler(len(X), comm.rank, comm.world_size, 60, seed=1)
        self.state = {"model": self.model, "optimizer": kept, "sampler": self.sampler.state_dict(0)}
        self.state["scheduler"] = self.scheduler

    def go_on(self, until, checkpoints=None, every=4):
        """Steps from where the sampler is; what the weights and random numbers were after each."""
        self.sampler.load_state_dict(self.state["sampler"])
        seen = []
        for step, rows in enumerate(self.sampler, start=self.sampler.step):
            if step == until:
                break
            self.optimizer.zero_grad()
            noise = 1e-3 * torch.randn(len(rows), 64, dtype=torch.float64) + 1e-3 * np.random.rand() * random.random()
            cross_entropy(self.model(X[rows] + noise), Y[rows]).backward()
            self.optimizer.step()
            if isinstance(self.model, LocalSGD):
                self.model.step()
            self.scheduler.step()
            self.state["sampler"] = self.sampler.state_dict(step + 1)
            if checkpoints and (step + 1) % every == 0:
                checkpoints.save(step + 1, self.state)
            seen.append(weights_of(self.model))
        return seen


def weights_of(model):
    tensors = [each for each in model.state_dict().values() if isinstance(each, torch.Tensor)]
    return torch.cat([each.detach().double().flatten() for each in tensors])


def wrap_fully(module, comm):
    model = FullySharded(module, comm)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    return model, optimizer, optimizer


def wrap_data(module, comm):
    model = DataParallel(module, comm)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    return model, optimizer, optimizer


def wrap_sharded(module, comm):
    model = DataParallel(module, comm)
    optimizer = ShardedOptimizer(model.parameters(), torch.optim.Adam, comm, lr=0.01)
    return model, optimizer, optimizer


def wrap_local(module, comm):
    model = LocalSGD(module, comm, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return model, optimizer, optimizer


def wrap_plain(module, comm):
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    return module, optimizer, optimizer


WRAPPED = {
    "plain": wrap_plain,
    "DataParallel": wrap_data,
    "ShardedOptimizer": wrap_sharded,
    "FullySharded": wrap_fully,
    "LocalSGD": wrap_local,
}


def without_a_break(comm, kind, until):
    return Run(comm, kind).go_on(until)


def first_part(comm, kind, folder):
    Run(comm, kind).go_on(9, Checkpoints(folder, comm))


def second_part(comm, kind, folder, until):
    torch.manual_seed(comm.rank + 77)  # of no avail: the checkpoint has its own
    np.random.seed(77)
    random.seed(77)
    run = Run(comm, kind)
    step = Checkpoints(folder, comm).load(run.state)
    return step, run.go_on(until)


@pytest.mark.parametrize("transport", ["shared_memory", "torch"])
@pytest.mark.parametrize("kind", WRAPPED)
def test_a_resumed_run_is_the_same_to_the_bit(kind, transport, tmp_path):
    seed_all()
    whole = launch(without_a_break, kind, 14, world_size=2, transport=transport)
    seed_all()
    launch(first_part, kind, tmp_path, world_size=2, transport=transport)
    resumed = launch(second_part, kind, tmp_path, 14, world_size=2, transport=transport)
    for (step, seen), reference in zip(resumed, whole, strict=True):
        assert step == 8 and len(seen) == 6
        for ours, theirs in zip(seen, reference[8:], strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("kind", ["DataParallel", "ShardedOptimizer", "FullySharded"])
@pytest.mark.parametrize("world_size", [1, 3])
def test_another_number_of_ranks_goes_on_with_the_same_weights_and_samples(kind, world_size, tmp_path):
    def weights_and_samples(comm):
        run = Run(comm, kind)
        step = Checkpoints(tmp_path, comm).load(run.state)
        run.sampler.load_state_dict(run.state["sampler"])
        kept = weights_of(run.model)
        states = run.model.optimizer_state_dict(run.optimizer) if kind == "FullySharded" else run.optimizer.state_dict()
        moments = states["state"][0]["exp_avg"]
        return step, kept, moments, [rows for rows, _ in zip(run.sampler, range(3), strict=False)]

    launch(first_part, kind, tmp_path, world_size=2)
    before = launch(weights_and_samples, world_size=2)
    after = launch(weights_and_samples, world_size=world_size)
    for step, kept, moments, _ in after:
        assert step == 8 and torch.equal(kept, before[0][1]) and torch.equal(moments, before[0][2])
    for number in range(3):
        dealt = [sorted(i for rank in ranks for i in rank[3][number]) for ranks in (before, after)]
        assert dealt[0] == dealt[1]


def split_by_columns(comm):
    torch.manual_seed(comm.rank)
    model = nn.Sequential(nn.Linear(64, 12), nn.Tanh(), nn.Linear(12, 10)).double()
    model = parallelize(model, comm, {"0": "column", "2": "row"})

    def step(x, y):
        cross_entropy(model(x), y).backward()

    return model, step


def split_by_layers(comm):
    torch.manual_seed(comm.rank)
    stages = [nn.Sequential(nn.Linear(64, 12), nn.Tanh()).double(), nn.Linear(12, 10).double()]
    model = PipelineParallel(stages, comm, one_f_one_b(2, 4))
    return model, lambda x, y: model.step(x, y, cross_entropy)


@pytest.mark.parametrize("make", [split_by_columns, split_by_layers])
def test_a_model_in_parts_goes_on_to_the_same_bits(make, tmp_path):
    def train(comm, first, last):
        model, step = make(comm)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        state, checkpoints = {"model": model, "optimizer": optimizer}, Checkpoints(tmp_path, comm)
        assert checkpoints.load(state) == (first or None)
        for number in range(first, last):
            optimizer.zero_grad()
            step(X[40 * number :][:40], Y[40 * number :][:40])
            optimizer.step()
        checkpoints.save(last, state)
        return [parameter.detach().clone() for parameter in model.parameters()]

    whole = launch(train, 0, 6, world_size=2)
    shutil.rmtree(tmp_path)
    launch(train, 0, 3, world_size=2)
    resumed = launch(train, 3, 6, world_size=2)
    for ours, theirs in zip(resumed, whole, strict=True):
        assert all(map(torch.equal, ours, theirs)) and len(ours) == len(theirs)


def test_parts_of_layers_go_on_with_another_number_of_ranks(tmp_path):
    def keep(comm):
        model, _ = split_by_columns(comm)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        state, checkpoints = {"model": model, "optimizer": optimizer}, Checkpoints(tmp_path, comm)
        step = checkpoints.load(state)
        if step is None:
            for parameter in model.parameters():
                parameter.grad = torch.ones_like(parameter)
            optimizer.step()
            checkpoints.save(1, state)
        return step, full_state_dict(model), full_optimizer_state_dict(optimizer)["state"]

    before, *_ = launch(keep, world_size=2)
    for step, weights, moments in launch(keep, world_size=3):
        assert step == 1 and is_same(dict(weights), dict(before[1])) and is_same(moments, before[2])


def test_ranks_that_hold_more_than_others_get_back_what_they_had(tmp_path):
    def keep(comm):
        state = {"numbers": {number: torch.full((2,), float(comm.rank)) for number in range(comm.rank + 1)}}
        Checkpoints(tmp_path, comm).save(1, state)
        found = {"numbers": None}
        Checkpoints(tmp_path, comm).load(found)
        return is_same(found, state)

    assert launch(keep, world_size=3) == [True] * 3


def test_what_differs_between_ranks_needs_as_many_of_them(tmp_path):
    def save(comm):
        Checkpoints(tmp_path, comm).save(1, {"own": comm.rank, "common": 7})

    def load(comm):
        state = {"own": None, "common": None}
        return Checkpoints(tmp_path, comm).load(state), state

    launch(save, world_size=3)
    assert launch(load, world_size=3) == [(1, {"own": rank, "common": 7}) for rank in range(3)]
    with pytest.raises(RankFailed, match="own of step 1 differs between the 3 ranks that saved it"):
        launch(load, world_size=2)


TORCHRUN = """
import os, signal, sys
import torch
from lessons_lib import connect
from lessons_lib.checkpoint import Checkpoints
from lessons_lib.parallel import DataParallel

with connect() as comm:
    torch.manual_seed(comm.rank)
    net = DataParallel(torch.nn.Linear(3, 2).double(), comm)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    state, checkpoints = {"net": net, "optimizer": optimizer}, Checkpoints(sys.argv[1], comm)
    first = checkpoints.load(state) or 0
    for step in range(first, 8):
        if sys.argv[2] == "die" and (step, comm.rank) == ((2, 1), (4, 0), (5, 1), (9, 0))[comm.restart_count]:
            os.kill(os.getpid(), signal.SIGKILL)
        optimizer.zero_grad()
        net(torch.randn(4, 3, dtype=torch.float64)).square().mean().backward()
        optimizer.step()
        checkpoints.save(step + 1, state)
    if comm.rank == 0:
        print("end", comm.restart_count, first, [w.tolist() for w in net.parameters()])
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals, and torch there no torchrun")
def test_under_torchrun_a_run_starts_again_three_times_and_goes_on_to_the_same_bits(tmp_path):
    script, ends = tmp_path / "train.py", []
    script.write_text(TORCHRUN)
    for how in ("live", "die"):
        command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=3"]
        done = subprocess.run(
            [sys.executable, *command, str(script), str(tmp_path / how), how],
            capture_output=True,
            text=True,
            timeout=180,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr
        ends.append(re.search(r"end (\d) (\d) (.*)", done.stdout).groups())
    # Each rank drew its own numbers from a seed of its own, and goes on drawing them where the checkpoint was.
    assert ends[0][:2] == ("0", "0") and ends[1][:2] == ("3", "5") and ends[0][2] == ends[1][2]


# --- what is broken is refused ---------------------------------------------------------------------------------------


def saved(folder, steps=(1, 2), world_size=2):
    def save(comm):
        checkpoints, weights = Checkpoints(folder, comm), torch.arange(50.0)
        for step in steps:
            checkpoints.save(step, {"weights": weights * step, "name": f"step {step}", "own": comm.rank})

    launch(save, world_size=world_size)


def load(comm, folder):
    state = {"weights": None, "name": None}
    return Checkpoints(folder, comm).load(state), state


def harms():
    """Each way to harm one of the files of a checkpoint: {name: (file, function of its bytes or None)}."""
    found = {}
    for name in ("manifest.json", "rank-0.safetensors", "rank-1.safetensors", "rank-0.json", "rank-1.json"):
        found[f"{name} gone"] = name, None
        found[f"{name} empty"] = name, lambda data: b""
        found[f"{name} cut off"] = name, lambda data: data[:-1]
        found[f"{name} longer"] = name, lambda data: data + b"x"
        for part in range(4):
            found[f"{name} bit flipped in quarter {part}"] = name, lambda data, part=part: flipped(data, part)
    return found


def flipped(data, part):
    changed = bytearray(data)
    changed[part * len(data) // 4 + len(data) // 8] ^= 4
    return bytes(changed)


@pytest.mark.parametrize("harm", harms())
def test_a_harmed_checkpoint_is_refused_by_name_and_the_one_before_is_taken(harm, tmp_path, capfd):
    saved(tmp_path, world_size=2)
    name, change = harms()[harm]
    path = tmp_path / "step-000000000002" / name
    data = path.read_bytes()
    path.unlink()
    if change:
        path.write_bytes(change(data))
    with pytest.raises(BrokenCheckpoint, match=name):
        disk_module.read(tmp_path / "step-000000000002")
    for step, state in launch(load, tmp_path, world_size=2):
        assert step == 1 and state["name"] == "step 1" and torch.equal(state["weights"], torch.arange(50.0))
    assert capfd.readouterr().err.count(f"checkpoint refused, the one before is taken: step-000000000002/{name}") == 1


def test_where_nothing_was_saved_there_is_nothing_and_where_nothing_is_whole_it_raises(tmp_path):
    assert launch(load, tmp_path, world_size=2) == [(None, {"weights": None, "name": None})] * 2
    saved(tmp_path, steps=(1,))
    (tmp_path / "step-000000000001" / "manifest.json").unlink()
    with pytest.raises(RankFailed, match=r"none of the checkpoints in .* is whole: steps \[1\]"):
        launch(load, tmp_path, world_size=2)


def test_the_last_ones_are_kept(tmp_path):
    saved(tmp_path, steps=range(6))
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-{step:012d}" for step in (3, 4, 5)]


def test_a_step_that_is_saved_again_takes_the_place_of_the_first(tmp_path):
    def save(comm):
        checkpoints = Checkpoints(tmp_path, comm)
        for value in (1, 2):
            checkpoints.save(5, {"value": value})
        state = {"value": None}
        return checkpoints.load(state), state["value"]

    assert launch(save, world_size=2) == [(5, 2)] * 2
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000000005"]


# --- what goes wrong while it is written -----------------------------------------------------------------------------

CALLS = {"open": (builtins, "open"), "replace": (os, "replace"), "fsync": (os, "fsync")}


def fail_in(name, number, how):
    """Let the call of that number fail as `how` does."""
    where, attribute = CALLS[name]
    real, count = getattr(where, attribute), [0]

    def failing(*args, **kwargs):
        is_ours = name != "open" or (len(args) > 1 and args[1] == "wb")
        count[0] += is_ours
        if is_ours and count[0] == number:
            how()
        return real(*args, **kwargs)

    setattr(where, attribute, failing)
    return lambda: setattr(where, attribute, real)


def disk_is_full():
    raise OSError(errno.ENOSPC, "No space left on device")


def num_calls(name, tmp_path):
    """How many of these calls rank 0 makes in a save."""

    def count(comm):
        checkpoints, found = Checkpoints(tmp_path / "count", comm), [0]
        where, attribute = CALLS[name]
        real = getattr(where, attribute)

        def counting(*args, **kwargs):
            found[0] += name != "open" or (len(args) > 1 and args[1] == "wb")
            return real(*args, **kwargs)

        setattr(where, attribute, counting)
        checkpoints.save(1, {"weights": torch.ones(3)})
        return found[0]

    return launch(count, world_size=2)[0]


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("name", CALLS)
def test_a_full_disk_leaves_the_old_one_whole_and_raises_on_every_rank(name, rank, tmp_path):
    def save(comm, number):
        checkpoints, said = Checkpoints(tmp_path / f"{number}", comm), ""
        checkpoints.save(1, {"weights": torch.ones(3)})
        mend = fail_in(name, number, disk_is_full) if comm.rank == rank else lambda: None
        try:
            checkpoints.save(2, {"weights": torch.ones(3) * 2})
        except (OSError, RankFailed) as error:
            said = str(error)
        mend()
        state = {"weights": None}
        return said, checkpoints.load(state), state["weights"].tolist(), os.listdir(tmp_path / f"{number}")

    for number in range(1, num_calls(name, tmp_path) + 1 if rank == 0 else 4):
        results = launch(save, number, world_size=2)
        assert all("No space left on device" in said for said, *_ in results), number
        for _, step, weights, files in results:
            assert (step, weights) in ((1, [1.0] * 3), (2, [2.0] * 3)), number
            assert set(files) <= {"step-000000000001", "step-000000000002"}, number


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("name", CALLS)
def test_a_rank_that_is_killed_at_any_call_leaves_a_whole_checkpoint(name, rank, tmp_path):
    def save(comm, number):
        checkpoints = Checkpoints(tmp_path / f"{number}", comm)
        checkpoints.save(1, {"weights": torch.ones(3)})
        if comm.rank == rank:
            fail_in(name, number, lambda: os.kill(os.getpid(), signal.SIGKILL))
        checkpoints.save(2, {"weights": torch.ones(3) * 2})

    def load_one(comm, number):
        state = {"weights": None}
        return Checkpoints(tmp_path / f"{number}", comm).load(state), state["weights"].tolist()

    for number in range(1, num_calls(name, tmp_path) + 1 if rank == 0 else 4):
        with pytest.raises(RankFailed, match="SIGKILL"):
            launch(save, number, world_size=2)
        for step, weights in launch(load_one, number, world_size=2):
            assert (step, weights) in ((1, [1.0] * 3), (2, [2.0] * 3)), number


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
def test_a_rank_that_is_killed_while_a_step_is_saved_again_leaves_one_of_both(tmp_path):
    def save(comm, number):
        checkpoints = Checkpoints(tmp_path / f"{number}", comm)
        checkpoints.save(1, {"value": "first"})
        if comm.rank == 0:
            fail_in("replace", number, lambda: os.kill(os.getpid(), signal.SIGKILL))
        checkpoints.save(1, {"value": "second"})

    def load_one(comm, number):
        state = {"value": None}
        return Checkpoints(tmp_path / f"{number}", comm).load(state), state["value"], os.listdir(tmp_path / f"{number}")

    for number in range(1, num_calls("replace", tmp_path) + 2):  # one more: the first has to make way
        with pytest.raises(RankFailed, match="SIGKILL"):
            launch(save, number, world_size=2)
        for step, value, files in launch(load_one, number, world_size=2):
            assert (step, value) == (1, "first") and not [name for name in files if name.endswith(".old")]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
@pytest.mark.parametrize("wait", [True, False])
def test_the_others_do_not_wait_for_the_part_of_a_dead_rank(wait, tmp_path):
    def save(comm):
        checkpoints = Checkpoints(tmp_path, comm)
        if comm.restart_count == 0 and comm.world_size == 3:
            checkpoints.save(1, {"weights": torch.ones(3)})
            if comm.rank == 1:
                fail_in("fsync", 1, lambda: os.kill(os.getpid(), signal.SIGKILL))
            checkpoints.save(2, {"weights": torch.ones(3) * 2}, wait=wait)
            checkpoints.wait()
        state = {"weights": None}
        first = checkpoints.load(state)
        checkpoints.save(2, {"weights": torch.ones(3) * 3})
        return first, checkpoints.load(state), state["weights"].tolist()

    def patient(comm):
        try:
            return save(comm)
        except RankLost:
            return save(comm.regroup())

    results = launch(patient, world_size=3, elastic=True, timeout_s=600.0)
    assert results == [(1, 2, [3.0] * 3), None, (1, 2, [3.0] * 3)]
    assert sorted(os.listdir(tmp_path)) == ["step-000000000001", "step-000000000002"]


def test_training_goes_on_while_a_copy_is_written(tmp_path):
    def save(comm):
        checkpoints, weights = Checkpoints(tmp_path, comm), torch.ones(1000)
        checkpoints.save(1, {"weights": weights}, wait=False)
        weights.add_(1)  # the copy does not see it
        checkpoints.wait()
        state = {"weights": None}
        checkpoints.load(state)
        return torch.equal(state["weights"], torch.ones(1000))

    assert launch(save, world_size=2) == [True, True]


def test_what_goes_wrong_with_a_copy_is_raised_by_the_next_call(tmp_path):
    def save(comm):
        checkpoints = Checkpoints(tmp_path, comm)
        mend = fail_in("fsync", 1, disk_is_full) if comm.rank == 1 else lambda: None
        checkpoints.save(1, {"weights": torch.ones(3)}, wait=False)
        try:
            checkpoints.save(2, {"weights": torch.ones(3)})
        except (OSError, RankFailed) as error:
            mend()
            checkpoints.save(3, {"weights": torch.ones(3)})
            return type(error).__name__, checkpoints.load({"weights": None})
        return None

    assert launch(save, world_size=2) == [("RankFailed", 3), ("OSError", 3)]


# --- what is kept, and what is refused -------------------------------------------------------------------------------


def test_any_nesting_comes_back_as_it_was():
    state = {
        "state": {0: {"step": torch.tensor(3.0), "exp avg/é": torch.ones(2, 3)}, 11: {}},
        "groups": [{"betas": (0.9, 0.999), "lr": 1e-3, "none": None, "names": []}, ()],
        "#1": {"[0": True, "~2": "text", "(x": float("inf")},
        "": [1],
        "bf16": torch.ones(2, dtype=torch.bfloat16).t(),
    }
    tensors, values = pack(state, "name")
    back = unpack({**tensors, **json.loads(json.dumps(values))}, "name")
    assert is_same(back, state)


def is_same(one, other):
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(is_same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(is_same, one, other))
    return type(one) is type(other) and one == other


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({"a": {"b": np.ones(2)}}, "a/b is a ndarray"),
        ({"a": [1, object()]}, r"a/\[1 is a object"),
        ({"a": {1.5: 2}}, "a has the key 1.5"),
        ({"a/b": 1}, "the name 'a/b'"),
        ({"random": 1}, "the name 'random'"),
    ],
)
def test_what_cannot_be_kept_is_named_on_every_rank(state, said, tmp_path):
    def save(comm):
        with pytest.raises((TypeError, ValueError), match=said):
            Checkpoints(tmp_path, comm).save(1, state)
        return True

    assert launch(save, world_size=2) == [True, True]


def test_ranks_that_save_other_steps_or_names_are_refused(tmp_path):
    def save(comm, steps, names):
        Checkpoints(tmp_path, comm).save(steps[comm.rank], {names[comm.rank]: 1})

    for arguments in (([1, 2], "aa"), ([1, 1], "ab")):
        with pytest.raises(CollectiveMismatch, match="save of step"):
            launch(save, *arguments, world_size=2)


def test_a_name_that_was_not_saved_is_refused(tmp_path):
    saved(tmp_path)

    def ask(comm):
        Checkpoints(tmp_path, comm).load({"other": None})

    with pytest.raises(RankFailed, match="'other' was not saved: there are name, own, random, weights"):
        launch(ask, world_size=2)


def test_a_folder_that_not_all_ranks_see_is_refused(tmp_path):
    def ask(comm):
        Checkpoints(tmp_path / str(comm.rank), comm)

    with pytest.raises(RankFailed, match="one that all ranks see is needed"):
        launch(ask, world_size=2)


@pytest.mark.parametrize(("keep", "step"), [(0, 1), (1.5, 1), (3, -1), (3, "2")])
def test_arguments_that_cannot_be_are_refused(keep, step, tmp_path):
    with pytest.raises(RankFailed, match="a whole number of at least"):
        launch(lambda comm: Checkpoints(tmp_path, comm, keep).save(step, {}), world_size=2)


def test_left_over_parts_are_no_checkpoint_and_do_not_stand_in_the_way(tmp_path):
    saved(tmp_path, steps=(1,))
    shutil.copytree(tmp_path / "step-000000000001", tmp_path / "step-000000000002.partial")
    assert launch(load, tmp_path, world_size=2)[0][0] == 1
    saved(tmp_path, steps=(2,))
    assert launch(load, tmp_path, world_size=2)[0][0] == 2
