"""Data that is the same everywhere, and a sampler that deals every index exactly once."""

import math
import re
from itertools import chain

import pytest
import torch
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

from lessons_lib.data import RankSampler, batches, digits, digits_28, regression
from lessons_lib.launch.server import context


def test_digits_shapes_range_and_split():
    x_train, y_train, x_test, y_test = digits()
    assert x_train.shape == (1438, 64) and x_test.shape == (359, 64)
    assert x_train.dtype == torch.float32 and y_train.dtype == torch.int64
    assert x_train.min() == 0 and x_train.max() == 1
    assert torch.cat([y_train, y_test]).bincount().tolist() == [
        178,
        182,
        177,
        183,
        181,
        182,
        181,
        179,
        174,
        180,
    ]
    assert (y_test.bincount() > 20).all()


def test_digits_are_those_of_scikit_learn():
    source = load_digits()
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(5))
    x, y, _, _ = digits(torch.float64, seed=5, test_fraction=0)
    assert torch.equal(x, torch.from_numpy(source.data)[order] / 16)
    assert torch.equal(y, torch.from_numpy(source.target)[order])


def test_digits_options():
    images = digits(dtype=torch.float64, flat=False)[0]
    assert images.shape == (1438, 1, 8, 8) and images.dtype == torch.float64
    assert torch.equal(images.flatten(1).float(), digits()[0])
    assert torch.equal(digits(seed=3)[0], digits(seed=3)[0])
    assert not torch.equal(digits(seed=3)[0], digits(seed=4)[0])
    assert [len(part) for part in digits(test_fraction=0)] == [1797, 1797, 0, 0]


@pytest.mark.parametrize(
    "wrong",
    [
        *({"test_fraction": value} for value in (1, -0.1, "half", None, math.nan)),
        *({"seed": value} for value in ("a", -1, 0.5)),
        *({"dtype": value} for value in (torch.int64, torch.uint8, torch.complex64, "float32", float)),
    ],
)
def test_digits_name_the_argument_that_is_wrong(wrong):
    ((name, value),) = wrong.items()
    for load in (digits, digits_28):
        with pytest.raises(ValueError, match=f"{name}={re.escape(repr(value))}: .* is needed"):
            load(**wrong)


def test_digits_28_are_the_same_samples_enlarged():
    x_train, y_train, x_test, _ = digits_28()
    assert x_train.shape == (1438, 1, 28, 28) and x_test.shape == (359, 1, 28, 28)
    assert x_train.min() >= 0 and x_train.max() <= 1
    assert torch.equal(y_train, digits()[1])
    brightness = digits()[0].mean(1)
    assert (x_train.flatten(1).mean(1) - brightness).abs().max() < 0.05


def test_regression_has_the_answer_it_says():
    x, y, true_w = regression(2000, 5, noise=0.1, dtype=torch.float64)
    assert x.shape == (2000, 5) and y.shape == (2000,) and true_w.shape == (5,)
    fitted = torch.linalg.lstsq(x, y.unsqueeze(1)).solution.squeeze(1)
    assert (fitted - true_w).abs().max() < 0.01
    assert (y - x @ true_w).std().item() == pytest.approx(0.1, rel=0.05)
    assert regression(3, 2)[0].dtype == torch.float32
    assert torch.equal(regression(3, 2, seed=1)[1], regression(3, 2, seed=1)[1])


@pytest.mark.parametrize("condition", [1, 10.0, 1000])
def test_regression_condition_is_exact(condition):
    x, y, true_w = regression(50, 4, noise=0, condition=condition, dtype=torch.float64)
    eigenvalues = torch.linalg.eigvalsh(x.T @ x / 50)
    assert eigenvalues[-1].item() == pytest.approx(1)
    assert (eigenvalues[-1] / eigenvalues[0]).item() == pytest.approx(condition, rel=1e-9)
    torch.testing.assert_close(x @ true_w, y)


@pytest.mark.parametrize(
    "keywords, words",
    [
        ({"num_samples": 0}, "num_samples=0: a whole number of at least 1 is needed"),
        ({"num_features": 2.0}, r"num_features=2\.0: a whole number"),
        ({"noise": -1}, "noise=-1: a finite number of at least 0 is needed"),
        ({"noise": math.inf}, "noise=inf: a finite number"),
        ({"noise": "little"}, "noise='little': a finite number"),
        ({"condition": 0.5}, r"condition=0\.5: a finite number of at least 1 is needed"),
        ({"condition": math.inf}, "condition=inf: a finite number"),
        ({"num_samples": 2, "condition": 3}, "num_samples=2: with a condition, num_features=4 are needed"),
        ({"seed": None}, "seed=None: a whole number"),
        ({"dtype": torch.int32}, r"dtype=torch\.int32: a float type"),
    ],
)
def test_regression_errors(keywords, words):
    with pytest.raises(ValueError, match=words):
        regression(**{"num_samples": 10, "num_features": 4, **keywords})


GRID = [(n, world, b) for n in (0, 1, 7, 32, 103) for world in (1, 2, 3, 4, 8) for b in (1, 5, 8, 64)]


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("num_samples, world_size, batch_size", GRID)
def test_ranks_together_take_the_steps_of_one_process(num_samples, world_size, batch_size, shuffle):
    def steps(rank, world_size, epoch=2):
        sampler = RankSampler(num_samples, rank, world_size, batch_size, shuffle, seed=5)
        sampler.set_epoch(epoch)
        result = list(sampler)
        assert len(result) == len(sampler)
        return result

    alone = steps(0, 1)
    together = [steps(rank, world_size) for rank in range(world_size)]
    assert {len(shard) for shard in together} == {len(alone)}
    for step, batch in enumerate(alone):
        shares = [shard[step] for shard in together]
        assert sorted([*chain.from_iterable(shares)]) == sorted(batch)
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert sorted([*chain.from_iterable(alone)]) == list(range(num_samples))
    if not shuffle:
        assert [*chain.from_iterable(alone)] == list(range(num_samples))


def test_order_depends_on_seed_and_epoch_alone():
    def order(seed, epoch):
        sampler = RankSampler(50, 1, 3, 7, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(1, 2) == order(1, 2)
    assert len({str(order(seed, epoch)) for seed in range(4) for epoch in range(4)}) == 16
    torch.manual_seed(9)
    expected = torch.rand(1)
    torch.manual_seed(9)
    order(0, 0)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("done", [0, 1, 4, 8])
@pytest.mark.parametrize("new_world_size", [2, 3])
def test_resumes_in_mid_epoch_also_on_another_number_of_ranks(done, new_world_size):
    whole = RankSampler(60, 0, 1, 8, seed=1)
    whole.set_epoch(3)
    expected = list(whole)

    stopped = RankSampler(60, 0, 2, 8, seed=1)
    stopped.set_epoch(3)
    for _, _ in zip(range(done), stopped, strict=False):
        pass
    resumed = [RankSampler(60, rank, new_world_size, 8) for rank in range(new_world_size)]
    for sampler in resumed:
        sampler.load_state_dict(stopped.state_dict(done))
        sampler.set_epoch(3)
    rest = [sorted([*chain.from_iterable(shares)]) for shares in zip(*resumed, strict=True)]
    assert rest == [sorted(batch) for batch in expected[done:]]
    assert all(len(list(sampler)) == len(sampler) == 8 for sampler in resumed)


def test_another_epoch_after_loading_starts_at_its_beginning():
    sampler = RankSampler(20, 0, 1, 5)
    next(iter(sampler))
    assert sampler.state_dict(1)["step"] == 1
    assert len(list(sampler)) == 4
    sampler.load_state_dict(sampler.state_dict(2))
    sampler.set_epoch(1)
    assert len(list(sampler)) == 4


@pytest.mark.parametrize(
    "arguments, words",
    [
        ((10, 2, 2, 4), "rank=2: a rank from 0 to 1 is needed"),
        ((10, -1, 2, 4), "rank=-1: a whole number of at least 0 is needed"),
        ((10, 0, 0, 4), "world_size=0: a whole number of at least 1 is needed"),
        ((10, 0, 1, 0), "batch_size=0: a whole number of at least 1 is needed"),
        ((10, 0, 1, 2.5), r"batch_size=2\.5: a whole number"),
        ((10, 0, 1, True), "batch_size=True: a whole number"),
        (("10", 0, 1, 4), "num_samples='10': a whole number"),
        ((-1, 0, 1, 4), "num_samples=-1: a whole number"),
        ((10, 0, 1, 4, True, None), "seed=None: a whole number"),
    ],
)
def test_sampler_errors(arguments, words):
    with pytest.raises(ValueError, match=words):
        RankSampler(*arguments)


def test_sampler_refuses_an_epoch_or_state_that_is_not_its_own():
    sampler = RankSampler(10, 0, 1, 4)
    state = sampler.state_dict(0)
    with pytest.raises(ValueError, match="epoch=-1: a whole number"):
        sampler.set_epoch(-1)
    with pytest.raises(ValueError, match=r"state\['batch_size'\]=5: 4 is needed"):
        sampler.load_state_dict(RankSampler(10, 0, 1, 5).state_dict(0))
    for wrong in (None, [], {}, {"step": 1}):
        with pytest.raises(ValueError, match=r"what RankSampler\.state_dict gave is needed"):
            sampler.load_state_dict(wrong)
    with pytest.raises(ValueError, match=r"state\['step'\]='two': a whole number"):
        sampler.load_state_dict(state | {"step": "two"})


def test_a_state_counts_steps_that_were_handed_out_in_this_epoch():
    sampler = RankSampler(10, 0, 1, 4)
    assert len(list(sampler)) == 3
    for step in (4, 100):  # such as a count over all epochs
        with pytest.raises(ValueError, match=f"step={step}: at most 3 is needed, the steps handed out in epoch 0"):
            sampler.state_dict(step)
    with pytest.raises(ValueError, match="step=-1: a whole number"):
        sampler.state_dict(-1)


def test_batches_give_the_rows_of_every_tensor():
    x, y = torch.arange(14.0).reshape(7, 2), torch.arange(7)
    for world_size in (1, 3):
        seen = []
        for rank in range(world_size):
            for x_batch, y_batch in batches(RankSampler(7, rank, world_size, 3), x, y):
                assert x_batch.shape == (len(y_batch), 2)
                assert torch.equal(x_batch[:, 0], 2.0 * y_batch)
                seen += y_batch.tolist()
        assert sorted(seen) == list(range(7))
    with pytest.raises(ValueError, match=r"lengths \[7, 2\]: .* the same length, are needed"):
        next(batches([[0]], x, torch.ones(2)))
    with pytest.raises(ValueError, match="at least one"):
        next(batches([[0]]))
    for wrong in ([1, 2], torch.tensor(3), None, x.numpy()):
        with pytest.raises(TypeError, match=r"tensors\[1\] is a .*: a torch\.Tensor of samples is needed"):
            next(batches([[0]], x, wrong))


def first_column(loader):
    return [batch.tolist() for (batch,) in loader]


def test_sampler_works_inside_torchs_data_loader():
    data = TensorDataset(torch.arange(10))
    sampler = RankSampler(10, 0, 1, 4, shuffle=False)
    expected = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert first_column(DataLoader(data, batch_sampler=sampler)) == expected
    assert first_column(DataLoader(data, sampler=sampler, batch_size=None)) == expected


@pytest.mark.parametrize("options", [{}, {"batch_size": 4}, {"batch_size": 2, "drop_last": True}])
def test_as_a_sampler_of_single_indices_it_is_refused(options):
    loader = DataLoader(TensorDataset(torch.arange(10)), sampler=RankSampler(10, 0, 1, 4), **options)
    with pytest.raises(ValueError, match=r"sampler=RankSampler: single indices are needed .*pass it as batch_sampler"):
        list(loader)


@pytest.mark.parametrize("num_samples, batch_size", [(9, 8), (17, 8), (3, 3), (10, 3)])
def test_a_loader_that_cannot_make_an_empty_batch_is_refused_on_every_rank(num_samples, batch_size):
    data = TensorDataset(torch.arange(num_samples))
    seen = []
    for rank in range(4):
        sampler = RankSampler(num_samples, rank, 4, batch_size)
        with pytest.raises(ValueError, match=r"dealt to 4 ranks.*lessons_lib\.data\.batches"):
            list(DataLoader(data, batch_sampler=sampler))
        seen += [first_column(batches(sampler, data.tensors[0]))]
        assert first_column(DataLoader(data, sampler=sampler, batch_size=None)) == seen[-1]
        stacked = DataLoader(data, batch_sampler=sampler, collate_fn=lambda rows: [torch.tensor(rows).flatten()])
        assert first_column(stacked) == seen[-1]
    assert sorted(chain(*chain(*seen))) == list(range(num_samples))


WORKERS = [
    {},
    {"num_workers": 2},
    {"num_workers": 2, "persistent_workers": True},
    {"num_workers": 2, "prefetch_factor": 4},
]


@pytest.mark.parametrize("options", WORKERS, ids=str)
@pytest.mark.parametrize("mode", ["batch_sampler", "sampler"])
def test_a_resume_in_mid_epoch_uses_every_sample_once_whatever_workers_read_ahead(mode, options):
    if options:
        options = {**options, "multiprocessing_context": context()}
    if mode == "sampler":
        options = {**options, "batch_size": None}

    def loader(sampler):
        return DataLoader(TensorDataset(torch.arange(46)), **{mode: sampler}, **options)

    seen = {rank: [] for rank in range(2)}
    for rank in range(2):
        sampler = RankSampler(46, rank, 2, batch_size=4, seed=3)
        feed = loader(sampler)
        for epoch in (0, 1):
            sampler.set_epoch(epoch)
            for step, (batch,) in enumerate(feed):
                seen[rank] += [(epoch, index) for index in batch.tolist()]
                if epoch == 1 and step == 2:
                    state = sampler.state_dict(step + 1)
                    break
        resumed = RankSampler(46, rank, 2, batch_size=4)
        resumed.load_state_dict(state)
        feed, start = loader(resumed), resumed.step
        for epoch in (1, 2):
            resumed.set_epoch(epoch)
            for step, (batch,) in enumerate(feed, start=start if epoch == 1 else 0):
                seen[rank] += [(epoch, index) for index in batch.tolist()]
                assert resumed.state_dict(step + 1)["step"] == step + 1
    assert sorted(seen[0] + seen[1]) == [(epoch, index) for epoch in range(3) for index in range(46)]
