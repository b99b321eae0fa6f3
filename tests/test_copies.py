"""Copying and saving models whose parts lie on several ranks: each way works, or says what to do instead."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from lessons_lib import launch
from lessons_lib.models import GPT
from lessons_lib.parallel import ExpertParallel, PipelineParallel, gpt_plan, lies_on, parallelize, split_layers
from lessons_lib.schedules import one_f_one_b


def gpt(**options):
    torch.manual_seed(0)
    return GPT(31, 16, num_layers=2, num_heads=4, context=8, **options)


def through_a_file(value, **options):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, **options)


WHOLE = (
    copy.deepcopy,
    lambda module: pickle.loads(pickle.dumps(module)),
    lambda module: through_a_file(module, weights_only=False),
    AveragedModel,
)


def split(comm, **options):
    model = gpt()
    return parallelize(model, comm, gpt_plan(model), **options)


def with_dropout(comm):
    layers = nn.Linear(4, 8), nn.Dropout(0.1), nn.Linear(8, 4)
    return parallelize(nn.Sequential(*layers), comm, {"0": "column", "1": "dropout", "2": "row"})


def with_experts(comm):
    model = gpt(num_experts=4)
    for block in model.blocks:
        block.mlp = ExpertParallel(block.mlp, comm)
    return model


def pipeline(comm):
    return PipelineParallel(split_layers(gpt().stages(), 2), comm, one_f_one_b(2, 2))


REFUSED = {
    "a module that parallelize has split": [
        split,
        lambda comm: split(comm, sequence_parallel=True),
        lambda comm: split(comm, sequence_parallel=True).blocks[0].attention,
        lambda comm: split(comm, sequence_parallel=True).embed,
        with_dropout,
        lambda comm: parallelize(nn.Sequential(nn.Linear(4, 4)), comm, {"0": "whole"}, draws=True),
    ],
    "a ColumnParallelLinear": [lambda comm: split(comm).blocks[0].mlp.up],
    "an ExpertParallel": [with_experts, lambda comm: with_experts(comm).blocks[1].mlp],
    "a PipelineParallel": [pipeline],
}


def ranks_copy(comm):
    for said, makers in REFUSED.items():
        for make in makers:
            module = make(comm)
            for way in WHOLE:
                with pytest.raises(
                    TypeError, match=f"{said} belongs to its own rank and cannot be copied or pickled: "
                ):
                    way(module)
    x = torch.randint(31, (2, 8))
    stages = pipeline(comm).stages
    for way in WHOLE:
        again = way(stages)
        (own,), (other,) = stages.values(), getattr(again, "module", again).values()
        given = x if comm.rank == 0 else torch.ones(2, 8, 16)
        assert torch.equal(own(given), other(given))


def test_a_module_on_several_ranks_refuses_to_be_copied_and_the_stages_of_a_rank_do_not():
    launch(ranks_copy, world_size=2)


def states(comm):
    for make in (split, with_experts, pipeline, with_dropout):
        module = make(comm)
        for keep_vars in (False, True):
            state = module.state_dict(keep_vars=keep_vars)
            for again in (through_a_file(state), pickle.loads(pickle.dumps(state)), copy.deepcopy(module.state_dict())):
                module.load_state_dict(again)
                assert all(torch.equal(again[name], value) for name, value in state.items())
        for parameter in module.parameters():
            for again in (through_a_file(parameter), copy.deepcopy(parameter), pickle.loads(pickle.dumps(parameter))):
                assert torch.equal(again, parameter)
                lies_on(again, comm)  # a plain parameter, whose notes begin anew
    with pytest.raises(ValueError, match=r"is the part of rank . of 2, this is rank . of 2: save full_state_dict"):
        send_on(comm, split(comm))


def send_on(comm, module):
    """Load what the other rank has saved."""
    state = module.state_dict()
    for entry in state._metadata.values():
        if "part" in entry:
            entry["part"] = 1 - comm.rank, 2
    module.load_state_dict(through_a_file(state))


def test_states_and_parameters_go_through_files():
    launch(states, world_size=2)


def returned(comm):
    return list(split(comm).parameters())


def test_parameters_can_be_returned_from_ranks():
    first, second = launch(returned, world_size=2)
    assert [tuple(each[0].shape) for each in (first, second)] == [(15, 16), (16, 16)]
