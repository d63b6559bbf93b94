"""Time runs down as each schedule says."""

import pytest
import torch
from fsd.schedule import (
    MVDREAM_KNOTS,
    SCHEDULES,
    STABLE_DIFFUSION_KNOTS,
    dreamtime,
    linear,
    piecewise_linear,
    schedule_named,
    square_root,
)
from hypothesis import given, settings
from hypothesis import strategies as st

FALLING = [name for name in SCHEDULES if name != "random"]
progress = st.floats(0, 1)


@pytest.mark.parametrize("name", FALLING)
@settings(deadline=None)  # the first call of dreamtime makes its table
@given(progress, progress)
def test_time_never_rises_and_stays_within_its_ends(name, one, other):
    schedule = schedule_named(name, 0.9, 0.1)
    early, late = schedule(min(one, other), None), schedule(max(one, other), None)
    assert 0.9 + 1e-9 >= early >= late >= 0.1 - 1e-9


@pytest.mark.parametrize("name", FALLING)
def test_ends_are_reached(name):
    schedule = schedule_named(name, 0.98, 0.02)
    assert schedule(0.0, None) == pytest.approx(0.98, abs=1e-4)
    assert schedule(1.0, None) == pytest.approx(0.02, abs=1e-4)


def test_shapes():
    assert linear(0.25) == pytest.approx(0.74)
    assert square_root(0.25) == pytest.approx(0.98 - 0.96 * 0.5)
    assert piecewise_linear(0.3, None, STABLE_DIFFUSION_KNOTS) == pytest.approx((0.692 + 0.404) / 2)
    assert piecewise_linear(0.75, None, MVDREAM_KNOTS) == pytest.approx((0.596 + 0.308) / 2)


def test_dreamtime_against_a_plain_sum():
    """At progress p, t is where the sum of the weights from t_max down is the share p of the whole."""
    count = 20000
    times = [0.98 - 0.96 * n / count for n in range(count + 1)]

    def weight(t):
        if t > 0.8:
            return 2.718281828459045 ** (-((t - 0.8) ** 2) / (2 * 0.1**2))
        if t < 0.4:
            return 2.718281828459045 ** (-((t - 0.4) ** 2) / (2 * 0.15**2))
        return 1.0

    whole = sum(map(weight, times))
    for share in (0.1, 0.37, 0.5, 0.9):
        total, n = 0.0, 0
        while total < share * whole:
            total += weight(times[n])
            n += 1
        assert dreamtime(share) == pytest.approx(times[n - 1], abs=2e-3)


def test_random_covers_its_range_evenly_and_repeats():
    schedule = schedule_named("random", 0.8, 0.2)

    def draw():
        generator = torch.Generator().manual_seed(1)
        return [schedule(0.5, generator) for _ in range(2000)]

    times = torch.tensor(draw())
    assert times.tolist() == torch.tensor(draw()).tolist()
    assert times.min() >= 0.2
    assert times.max() <= 0.8
    assert times.mean().item() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: linear(1.2), "progress is 1.2"),
        (lambda: schedule_named("cosine"), "schedule 'cosine': choose one of linear"),
        (lambda: schedule_named("linear", 0.2, 0.8), "t_max=0.2, t_min=0.8"),
        (lambda: schedule_named("random")(0.0, None), "needs a generator"),
        (lambda: piecewise_linear(0.5, None, ((1.0, 0.5), (0.0, 0.9))), "rising order"),
    ],
)
def test_wrong_use_is_named(call, named):
    with pytest.raises(ValueError, match=named):
        call()
