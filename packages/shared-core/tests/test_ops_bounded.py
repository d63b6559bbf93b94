import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shared_core.ops.bounded import project
from shared_core.testing import gradients_agree

unit = st.floats(0, 1, width=32)
number = st.floats(-3, 3, width=32)


def tensor(values):
    return torch.tensor(values, dtype=torch.float32)


def slow(x, center, epsilon, low, high):
    """Element by element, in Python's float64."""
    return [
        min(max(v, min(max(c - epsilon, low), high)), min(max(c + epsilon, low), high))
        for v, c in zip(x, center, strict=True)
    ]


pairs = st.lists(st.tuples(number, number), max_size=8)


@settings(deadline=None)
@given(pairs=pairs, epsilon=unit, bounds=st.tuples(number, number))
def test_against_a_plain_loop(pairs, epsilon, bounds):
    low, high = sorted(bounds)
    x, center = [p[0] for p in pairs], [p[1] for p in pairs]
    found = project(tensor(x), tensor(center), epsilon, low, high)
    expected = torch.tensor(slow(x, center, epsilon, low, high), dtype=torch.float64)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6)


@settings(deadline=None)
@given(
    values=st.lists(st.tuples(st.floats(width=32, allow_nan=False), unit), min_size=1, max_size=8),
    epsilon=unit,
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_the_ball_and_the_box_hold_for_any_input(values, epsilon, dtype):
    x, center = (tensor([v[i] for v in values]).to(dtype) for i in (0, 1))
    found = project(x, center, epsilon, 0.0, 1.0)
    assert found.dtype == dtype
    assert bool(((found >= 0) & (found <= 1)).all())
    # One unit in the last place of numbers up to 2.
    assert (found.double() - center.double()).abs().max() <= epsilon + torch.finfo(dtype).eps
    assert torch.equal(project(found, center, epsilon, 0.0, 1.0), found)


@settings(deadline=None)
@given(pairs=pairs.filter(len), epsilon=unit)
def test_points_inside_stay_bit_for_bit(pairs, epsilon):
    center = tensor([p[1] for p in pairs])
    assert torch.equal(project(center, center, epsilon, -3.0, 3.0), center)


def test_a_center_outside_of_the_box_gives_the_nearest_of_the_box():
    center = tensor([-1.0, 3.0, 1.1])
    found = project(tensor([0.5, 0.5, 0.5]), center, 0.2, 0.0, 1.0)
    torch.testing.assert_close(found, tensor([0.0, 1.0, 0.9]))


def test_bounds_per_channel():
    epsilon, low, high = (tensor(v)[:, None, None] for v in ([0.1, 0.2, 0.5], [-1, -0.1, 0], [1, 0.05, 2]))
    found = project(torch.ones(2, 3, 2, 2), torch.zeros(2, 3, 2, 2), epsilon, low, high)
    assert torch.equal(found, tensor([0.1, 0.05, 0.5])[:, None, None].expand(2, 3, 2, 2))
    mixed = project(-torch.ones(2, 3, 2, 2), torch.zeros(2, 3, 2, 2), 0.3, low, 1.0)
    assert torch.equal(mixed[0, :, 0, 0], tensor([-0.3, -0.1, 0.0]))


def test_the_gradient_is_whole_inside_and_on_the_bounds():
    x = tensor([0.0, 0.1, 0.5, 1.0]).requires_grad_()
    project(x, tensor([0.0, 0.0, 0.0, 1.0]), 0.1, 0.0, 1.0).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [1, 1, 0, 1]
    center = torch.tensor([0.2, 0.5, 0.7])
    gradients_agree(lambda v, c: project(v, c, 0.1, 0.0, 1.0), torch.tensor([0.25, 0.8, 0.3]), center)


def test_nan_stays_nan_and_empty_stays_empty():
    assert math.isnan(project(tensor([math.nan]), tensor([0.0]), 0.1, 0.0, 1.0).item())
    assert project(torch.rand(0, 3), torch.rand(0, 3), 0.1, 0.0, 1.0).shape == (0, 3)


@pytest.mark.parametrize(
    ("epsilon", "low", "high", "message"),
    [
        (-0.1, 0.0, 1.0, r"epsilon is -0.1; it must be 0 or more"),
        (math.nan, 0.0, 1.0, r"epsilon is nan"),
        (torch.tensor([0.1, -0.2]), 0.0, 1.0, r"epsilon is \[0.1\d*, -0.2\d*\]"),
        (0.1, 1.0, 0.0, r"low is 1.0 and high is 0.0; low must not be above high"),
        (0.1, torch.tensor([0.0, 2.0]), 1.0, r"low is \[0.0, 2.0\] and high is 1.0"),
        (0.1, 0.0, math.nan, r"high is nan"),
    ],
)
def test_wrong_bounds_are_refused(epsilon, low, high, message):
    with pytest.raises(ValueError, match=message):
        project(torch.zeros(2), torch.zeros(2), epsilon, low, high)


@pytest.mark.compile
def test_compiled_is_the_same():
    compiled = torch.compile(project, fullgraph=True)
    x, center = torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4)
    for bounds in ((0.1, 0.0, 1.0), (torch.rand(3, 1, 1), torch.zeros(3, 1, 1), torch.ones(3, 1, 1))):
        assert torch.equal(compiled(x, center, *bounds), project(x, center, *bounds))
