"""Data that is the same everywhere, and a sampler that deals every index exactly once."""

from itertools import chain

import pytest
import torch

from lessons_lib.data import RankSampler, batches, digits, digits_28, regression


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


def test_digits_options():
    images = digits(dtype=torch.float64, flat=False)[0]
    assert images.shape == (1438, 1, 8, 8) and images.dtype == torch.float64
    assert torch.equal(images.flatten(1).float(), digits()[0])
    assert torch.equal(digits(seed=3)[0], digits(seed=3)[0])
    assert not torch.equal(digits(seed=3)[0], digits(seed=4)[0])
    assert [len(part) for part in digits(test_fraction=0)] == [1797, 1797, 0, 0]
    with pytest.raises(ValueError, match=r"test_fraction must be .* not 1"):
        digits(test_fraction=1)


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
        ({"num_samples": 0}, "num_samples"),
        ({"noise": -1}, "noise must be at least 0, not -1"),
        ({"condition": 0.5}, "condition must be at least 1"),
        ({"num_samples": 2, "condition": 3}, "num_samples=2, num_features=4"),
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
        sampler.load_state_dict(stopped.state_dict())
        sampler.set_epoch(3)
    rest = [sorted([*chain.from_iterable(shares)]) for shares in zip(*resumed, strict=True)]
    assert rest == [sorted(batch) for batch in expected[done:]]
    assert all(len(list(sampler)) == len(sampler) == 8 for sampler in resumed)


def test_another_epoch_after_loading_starts_at_its_beginning():
    sampler = RankSampler(20, 0, 1, 5)
    next(iter(sampler))
    assert sampler.state_dict()["step"] == 1
    assert len(list(sampler)) == 4
    sampler.load_state_dict({**sampler.state_dict(), "step": 2})
    sampler.set_epoch(1)
    assert len(list(sampler)) == 4


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        ((10, 2, 2, 4), ValueError, "rank must be below world_size=2, not 2"),
        ((10, -1, 2, 4), ValueError, "rank must be at least 0"),
        ((10, 0, 0, 4), ValueError, "world_size must be at least 1"),
        ((10, 0, 1, 0), ValueError, "batch_size must be at least 1, not 0"),
        ((10, 0, 1, 2.5), TypeError, "batch_size must be an int, not 2.5"),
        ((-1, 0, 1, 4), ValueError, "num_samples"),
    ],
)
def test_sampler_errors(arguments, error, words):
    with pytest.raises(error, match=words):
        RankSampler(*arguments)


def test_sampler_refuses_an_epoch_or_state_that_is_not_its_own():
    sampler = RankSampler(10, 0, 1, 4)
    with pytest.raises(ValueError, match="epoch"):
        sampler.set_epoch(-1)
    with pytest.raises(ValueError, match="batch_size=5, this sampler 4"):
        sampler.load_state_dict(RankSampler(10, 0, 1, 5).state_dict())


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
    with pytest.raises(ValueError, match=r"lengths \[7, 2\]"):
        next(batches([[0]], x, torch.ones(2)))
    with pytest.raises(ValueError, match="at least one"):
        next(batches([[0]]))


def test_sampler_works_inside_torchs_data_loader():
    data = torch.utils.data.TensorDataset(torch.arange(10))
    loader = torch.utils.data.DataLoader(data, batch_sampler=RankSampler(10, 0, 1, 4, shuffle=False))
    assert [batch.tolist() for (batch,) in loader] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
