import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shared_core.data.sampling import Batches, Key, keyed_generator_seed, keyed_uniform, shuffled_plan

WORD = 2**64


def slow_mix(x):
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % WORD
    return x ^ (x >> 31)


def slow_uniform(seed, key, column):
    golden = 0x9E3779B97F4A7C15
    state = slow_mix((seed + golden) % WORD)
    for part in key:
        state = slow_mix(((state ^ part) + golden) % WORD)
    return (slow_mix((state + (column + 1) * golden) % WORD) >> 11) / 2**53


@given(
    st.integers(-5, 2**64),
    st.lists(st.tuples(st.integers(0, 2**40), st.integers(0, 2**40), st.integers(0, 99)), max_size=5),
)
@settings(max_examples=50, deadline=None)
def test_keyed_uniform_against_python_integers(seed, keys):
    fast = keyed_uniform(seed, [Key(*key) for key in keys], 3)
    assert fast.shape == (len(keys), 3)
    assert fast.tolist() == [[slow_uniform(seed % WORD, key, c) for c in range(3)] for key in keys]


def test_splitmix64_gives_the_published_numbers():
    # First outputs of the reference generator with state 1234567.
    golden = 0x9E3779B97F4A7C15
    numbers = [slow_mix((1234567 + (i + 1) * golden) % WORD) for i in range(3)]
    assert numbers == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_numbers_are_uniform_and_independent_along_every_direction():
    keys = [Key(epoch, index, draw) for epoch in range(20) for index in range(200) for draw in range(5)]
    cube = keyed_uniform(7, keys, 4).reshape(20, 200, 5, 4)
    counts = np.histogram(cube, bins=64, range=(0, 1))[0]
    expected = cube.size / 64
    chi = ((counts - expected) ** 2 / expected).sum()
    # 63 degrees of freedom: mean 63, sd 11.2; five sd either way.
    assert 7 < chi < 119
    for axis in range(4):
        a, b = (
            np.take(cube, range(cube.shape[axis] - 1), axis),
            np.take(cube, range(1, cube.shape[axis]), axis),
        )
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 5 / np.sqrt(a.size)
    assert len(np.unique(cube)) == cube.size


def test_seeds_scatter_and_fit_a_generator():
    seeds = {keyed_generator_seed(*key) for key in itertools.product(range(6), repeat=4)}
    assert len(seeds) == 6**4
    # torch's CPU generator uses the lower 32 bits only.
    assert len({seed % 2**32 for seed in seeds}) == 6**4
    torch.Generator().manual_seed(max(seeds))


def test_plan_is_a_pure_function_of_seed_and_epoch():
    plan, again, other = (shuffled_plan(103, 10, seed) for seed in (3, 3, 4))
    assert plan(5).shape == (10, 10, 2)
    assert plan(5).dtype == torch.int64
    torch.manual_seed(99)
    assert torch.equal(plan(5), again(5))
    assert not torch.equal(plan(5), plan(6))
    assert not torch.equal(plan(5), other(5))
    indices = plan(0)[..., 0].flatten()
    assert len(indices.unique()) == 100
    assert 0 <= int(indices.min()) < int(indices.max()) < 103
    assert (plan(0)[..., 1] == 0).all()


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 4), st.integers(0, 3), st.integers(0, 4))
@settings(max_examples=60, deadline=None)
def test_ranks_together_see_the_global_batch_from_any_step(world, group, per_rank, epoch, step):
    plan = shuffled_plan(world * group * per_rank * 4, world * group * per_rank, seed=0)
    seen = []
    for rank in range(world):
        batches = Batches(plan, rank, world, group)
        batches.seek(epoch, step)
        seen.append(list(batches))
        assert len(batches) == 4
    expected = plan(epoch)[step:]
    assert all(len(part) == len(expected) for part in seen)
    for number, row in enumerate(expected.tolist()):
        assert [key for part in seen for key in part[number]] == [Key(epoch, i, d) for i, d in row]


def test_epochs_follow_one_another_and_seek_repeats():
    batches = Batches(shuffled_plan(12, 4, seed=0))
    first, second = list(batches), list(batches)
    assert [key.epoch for batch in second for key in batch] == [1] * 12
    batches.seek(0, 2)
    assert list(batches) == first[2:]
    assert list(batches) == second
    batches.seek(1, 3)
    assert list(batches) == []


def test_error_texts():
    with pytest.raises(ValueError, match="5 images do not fill one batch of 8: lower the batch size"):
        shuffled_plan(5, 8, seed=0)
    with pytest.raises(ValueError, match="batch_size is 0"):
        shuffled_plan(5, 0, seed=0)
    with pytest.raises(
        ValueError, match=r"10 does not divide by 6 \(2 processes, groups of 3\): use 6 or 12"
    ):
        next(iter(Batches(shuffled_plan(20, 10, seed=0), world=2, group=3)))
    with pytest.raises(ValueError, match="rank 2 of 2"):
        Batches(shuffled_plan(20, 10, seed=0), rank=2, world=2)
    batches = Batches(shuffled_plan(20, 10, seed=0))
    with pytest.raises(ValueError, match="cannot seek to step 3 of epoch 0: it has 2 batches"):
        batches.seek(0, 3)
    with pytest.raises(ValueError, match="both count from 0"):
        batches.seek(-1, 0)
