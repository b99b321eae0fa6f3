"""What is said about bad input: the argument, its value and what is accepted, where no other file here asks for it."""

import math
import sys

import cloudpickle
import pytest
import torch
from torch import nn

from lessons_lib import Links, devices, launch, losses, models
from lessons_lib.parallel import DataParallel
from lessons_lib.schedules import Message, Schedule, chunk_bounds, count, gpipe, ring, simulate, verify
from lessons_lib.train import fit

cloudpickle.register_pickle_by_value(sys.modules[__name__])


def one_round(*messages):
    return Schedule(2, 1, [messages])


def train(**changes):
    model = nn.Linear(4, 3)
    arguments = {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "loss_fn": losses.cross_entropy,
        "data": (torch.ones(8, 4), torch.zeros(8).long()),
        "batch_size": 4,
    }
    return fit(**{**arguments, **changes}, progress=False)


BAD = [
    (lambda: launch(print, world_size=None), ValueError, "world_size=None: a whole number from 1 to 128"),
    (lambda: launch(print, world_size=2, transport=None), ValueError, "transport=None: one of shared_memory, torch"),
    (lambda: launch(print, world_size=2, algorithm=ring), ValueError, "algorithm=<function ring .*one of auto,"),
    (lambda: launch(print, world_size=2, timeout_s=math.nan), ValueError, "timeout_s=nan: a number of seconds above 0"),
    (lambda: launch(print, world_size=2, timeout_s=math.inf), ValueError, "timeout_s=inf: a number of seconds above 0"),
    (lambda: launch(print, world_size=2, algorithm=Schedule(2, 1, [])), ValueError, "rank 1 is missing at the end"),
    (lambda: Schedule(2, 1.5, []), ValueError, r"num_chunks=1\.5: a whole number of at least 1"),
    (lambda: Schedule(2, 1, None), ValueError, "rounds=None: a list of rounds is needed"),
    (lambda: Schedule(2, 1, [], root="0"), ValueError, "root='0': a rank from 0 to 1"),
    (lambda: verify("ring"), TypeError, "schedule is a str: a Schedule or a Program is needed"),
    (
        lambda: verify(one_round((0, 1, 0, "add"))),
        ValueError,
        r"round 0: a round is a list of Message.*not .*\(0, 1, 0",
    ),
    (lambda: verify(Schedule(2, 1, [Message(0, 1, 0, "add")])), ValueError, "round 0: a round is a list of Message"),
    (lambda: verify(Schedule(2, 1, [None])), ValueError, "round 0: a round is a list of Message.*not None"),
    (lambda: verify(one_round(Message(0, 1.0, 0, "add"))), ValueError, r"dst 1\.0 of Message.* is not in 0\.\.1"),
    (lambda: verify(one_round(Message("0", 1, 0, "add"))), ValueError, r"src 0 of Message.*'0'.* is not in 0\.\.1"),
    (lambda: chunk_bounds(10, 0), ValueError, "num_chunks=0: a whole number of at least 1"),
    (lambda: chunk_bounds(10, 2.5), ValueError, r"num_chunks=2\.5: a whole number"),
    (lambda: chunk_bounds(-1, 2), ValueError, "numel=-1: a whole number of at least 0"),
    (lambda: count(ring(2), 4.5), ValueError, r"numel=4\.5: a whole number"),
    (lambda: count("ring", 4), TypeError, "schedule is a str: a Schedule or a Program is needed"),
    (lambda: count(ring(2)), ValueError, "numel=None: a whole number"),
    (lambda: count(ring(2), 4, block_bytes=8), TypeError, "block_bytes=8: a schedule has numel"),
    (lambda: count(gpipe(2, 2), 4), TypeError, "numel=4: a program has block_bytes"),
    (lambda: count(gpipe(2, 2), block_bytes=-4), ValueError, "block_bytes=-4: a whole number of at least 0"),
    (lambda: simulate("ring", 1e6, Links()), TypeError, "schedule is a str: a Schedule or a Program is needed"),
    (lambda: simulate(ring(2)), TypeError, "links is a NoneType: a Links is needed"),
    (lambda: simulate(ring(2), links=Links()), ValueError, "size_bytes=None: 0 or more"),
    (lambda: simulate(ring(2), 1, Links(), cost_s={}), TypeError, "cost_s={}, .*: a schedule has size_bytes"),
    (lambda: simulate(gpipe(2, 2), 1e6), TypeError, "size_bytes=1000000.0: a program has cost_s and block_bytes"),
    (lambda: simulate(gpipe(2, 2)), ValueError, "cost_s=None: seconds for 'forward' are needed"),
    (lambda: simulate(gpipe(2, 2), cost_s={"forward": 1}), ValueError, "seconds for 'backward' are needed too"),
    (lambda: simulate(gpipe(2, 2), cost_s={"forward": -1}), ValueError, "cost_s gives -1 for forward 0 0: 0 or more"),
    (lambda: simulate(gpipe(2, 2), cost_s={}, links=1), TypeError, "links is a int: a Links is needed"),
    (lambda: simulate(ring(2), 1e6, 0.1), TypeError, "links is a float: a Links is needed"),
    (lambda: simulate(ring(2), -5, Links()), ValueError, "size_bytes=-5: 0 or more"),
    (lambda: Links(latency_s="1 ms"), ValueError, "latency_s='1 ms': 0 or more seconds"),
    (lambda: Links(latency_s=math.inf), ValueError, "latency_s=inf: 0 or more seconds"),
    (lambda: Links(bandwidth_Bps=None), ValueError, "bandwidth_Bps=None: more than 0 bytes a second"),
    (lambda: Links(group_size=1.5), ValueError, r"group_size=1\.5: a whole number"),
    (lambda: Links.two_level(2, 1e-6, Links()), TypeError, "fast is a float: a Links is needed"),
    (lambda: train(model="net"), TypeError, r"model is a str: a torch\.nn\.Module"),
    (lambda: train(optimizer=None), TypeError, r"optimizer is a NoneType: a torch\.optim\.Optimizer is needed"),
    (lambda: train(loss_fn="mse"), TypeError, "loss_fn is a str: a function of two arguments"),
    (lambda: train(data=torch.ones(8, 4)), TypeError, r"data is a Tensor: \(x, y\), two tensors, is needed"),
    (
        lambda: train(data=(torch.ones(0, 4), torch.ones(0))),
        ValueError,
        "data of shapes .* as many targets as samples, at least one",
    ),
    (lambda: train(validation=(torch.ones(8, 4),)), TypeError, r"validation is a \['Tensor'\]: \(x, y\), two"),
    (lambda: train(epochs=1.5), ValueError, r"epochs=1\.5: a whole number of at least 0"),
    (lambda: train(batch_size=None), ValueError, "batch_size=None: a whole number"),
    (lambda: models.mlp(4), ValueError, "sizes=4: a list of at least two whole numbers"),
    (lambda: devices.Work("many"), ValueError, "flops='many': a number of at least 0 is needed"),
]


@pytest.mark.parametrize(("call", "error", "says"), BAD)
def test_bad_input_is_named_with_what_is_accepted(call, error, says):
    with pytest.raises(error, match=says):
        call()


BAD_FOR_RANKS = [
    (lambda comm: comm.all_reduce(torch.ones(3, device="meta")), TypeError, "all_reduce was given a meta tensor"),
    (lambda comm: comm.all_reduce(torch.ones(3).cfloat(), op="max"), TypeError, "op='max' of dtype torch.complex64"),
    (lambda comm: comm.all_reduce(torch.ones(3).to(torch.uint16)), TypeError, "op='sum' of dtype torch.uint16"),
    (lambda comm: comm.run(ring(2), torch.ones(3).bool(), op="mean"), ValueError, "op='mean' of dtype torch.bool"),
    (lambda comm: comm.broadcast(torch.ones(2), src=None), ValueError, "broadcast: src=None: a rank from 0 to 1"),
    (lambda comm: comm.all_gather([torch.ones(1)] * 2, torch.ones(1)), TypeError, "all_gather was given a list"),
    (lambda comm: comm.run(ring(3), torch.ones(4)), ValueError, "ring is made for 3 ranks, here are 2"),
    (lambda comm: comm.buffer((2, 3)), ValueError, r"numel=\(2, 3\): a whole number"),
    (lambda comm: DataParallel(nn.Linear(2, 2), comm, "25"), ValueError, "bucket_cap_mb='25': more than 0 MB"),
    (lambda comm: DataParallel(nn.Linear(2, 2).parameters(), comm), TypeError, "module is a generator"),
]


@pytest.mark.parametrize("transport", ["shared_memory", "torch"])
def test_what_ranks_are_refused_leaves_them_able_to_go_on(transport):
    def fn(comm):
        for call, error, says in BAD_FOR_RANKS:
            with pytest.raises(error, match=says):
                call(comm)
        x = torch.ones(3)
        comm.all_reduce(x)
        return x.tolist()

    assert launch(fn, world_size=2, transport=transport) == [[2.0] * 3] * 2


def test_what_gloo_cannot_add_is_named():
    def fn(comm):
        with pytest.raises(TypeError, match=r"all_reduce\(int16, .*gloo cannot do that with this dtype"):
            comm.all_reduce(torch.ones(3).short())

    launch(fn, world_size=2, transport="torch", algorithm="torch")
