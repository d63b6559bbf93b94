"""The paired bootstrap against a slow loop, and whether its intervals hold the truth as often as they should."""

import math
import random
from statistics import NormalDist, mean

import numpy as np
import pytest
from fsd.intervals import bootstrap_difference, bootstrap_ratio, tail_of


def slow(compare, ours: list[float], theirs: list[float], draws: int) -> tuple[float, float]:
    rng, found = random.Random(5), []
    for _ in range(draws):
        chosen = [rng.randrange(len(ours)) for _ in ours]
        found.append(compare(mean(ours[k] for k in chosen), mean(theirs[k] for k in chosen)))
    found.sort()
    # of 8 prompts: Student's quantile of 7 degrees of freedom is 2.3646
    tail = NormalDist().cdf(-2.3646 * math.sqrt(8 / 7))
    return found[round(tail * draws)], found[round((1 - tail) * draws)]


def test_intervals_are_those_of_the_slow_loop() -> None:
    generator = np.random.default_rng(0)
    theirs = generator.uniform(1, 2, 8).tolist()
    ours = [1.5 * value + noise for value, noise in zip(theirs, generator.normal(0, 0.3, 8), strict=True)]
    ratio, difference = bootstrap_ratio(ours, theirs), bootstrap_difference(ours, theirs)
    assert ratio.value == pytest.approx(sum(ours) / sum(theirs))
    assert difference.value == pytest.approx((sum(ours) - sum(theirs)) / 8)
    assert ratio[1:] == pytest.approx(slow(lambda a, b: a / b, ours, theirs, 6000), abs=0.03)
    assert difference[1:] == pytest.approx(slow(lambda a, b: a - b, ours, theirs, 6000), abs=0.04)
    assert ratio == bootstrap_ratio(ours, theirs)
    assert ratio != bootstrap_ratio(ours, theirs, seed=1)


def test_nine_in_ten_intervals_or_more_hold_the_truth() -> None:
    generator = np.random.default_rng(1)
    held = []
    for _ in range(400):
        theirs = generator.gamma(4.0, 0.25, 10)
        # of mean 2, prompt by prompt about twice theirs
        ours = 2 * theirs * generator.uniform(0.5, 1.5, 10)
        _, low, high = bootstrap_ratio(ours.tolist(), theirs.tolist(), draws=500)
        held.append(low <= 2 <= high)
    assert 0.91 <= np.mean(held) <= 0.98


@pytest.mark.parametrize(("count", "student"), [(4, 3.1824), (8, 2.3646), (16, 2.1314), (100, 1.9842)])
def test_the_share_left_out_is_students(count: int, student: float) -> None:
    expected = NormalDist().cdf(-student * math.sqrt(count / (count - 1)))
    assert tail_of(count) == pytest.approx(expected, rel=0.02, abs=2e-5)


def test_what_prompts_share_cancels() -> None:
    theirs = [1.0, 5.0, 0.2, 30.0]
    found = bootstrap_ratio([2 * value for value in theirs], theirs)
    assert found == pytest.approx((2, 2, 2))
    assert bootstrap_difference([value + 1 for value in theirs], theirs) == pytest.approx((1, 1, 1))
    assert bootstrap_difference([3.0, 5.0], [1.0, 3.0]) == (2, 2, 2)


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match=r"2 and 1 numbers.*one of each method per prompt"):
        bootstrap_ratio([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match=r"0 and 0 numbers.*at least 2 prompts"):
        bootstrap_difference([], [])
    with pytest.raises(ValueError, match="at least one draw"):
        bootstrap_difference([1.0, 2.0], [1.0, 2.0], draws=0)
    with pytest.raises(ValueError, match=r"theirs holds 0.*bootstrap_difference"):
        bootstrap_ratio([1.0, 2.0], [1.0, 0.0])
    with pytest.raises(ValueError, match="not finite"):
        bootstrap_difference([1.0, float("nan")], [1.0, 0.0])
