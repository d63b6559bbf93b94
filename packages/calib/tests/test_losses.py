"""Equations 5 to 7 against plain loops in float64, their gradients, and what they refuse."""

import math

import pytest
import torch
from calib.losses import agreement_loss, calibrator_loss, critic_loss
from shared_core.testing import gradients_agree


def groups(*sizes, pixels=(), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, 4, *pixels, generator=generator, dtype=torch.float64) for n in sizes]


def by_hand(logits, group):
    """Mean of -log softmax, image by image and pixel by pixel."""
    rows = logits.movedim(1, -1).reshape(-1, 4).tolist()
    total = 0.0
    for row in rows:
        total -= row[group] - math.log(sum(math.exp(value) for value in row))
    return total / len(rows)


@pytest.mark.parametrize("pixels", [(), (3, 2)])
def test_critic_loss_is_equation_5(pixels):
    found = groups(3, 5, 2, 4, pixels=pixels)
    expected = sum(by_hand(logits, group) for group, logits in enumerate(found))
    assert math.isclose(float(critic_loss(found)), expected, rel_tol=1e-6)


@pytest.mark.parametrize("weight", [0.0, 0.1, 1.0])
def test_calibrator_loss_is_a_line_of_equation_7(weight):
    source, target = groups(3, 5)
    expected = by_hand(target, 0) + weight * by_hand(source, 0)
    assert math.isclose(float(calibrator_loss(source, target, weight)), expected, rel_tol=1e-6)


def test_balance_is_the_logarithm_of_four():
    silent = [torch.zeros(2, 4)] * 4
    assert math.isclose(float(critic_loss(silent)), 4 * math.log(4), rel_tol=1e-6)
    assert math.isclose(float(calibrator_loss(silent[2], silent[3], 1.0)), 2 * math.log(4), rel_tol=1e-6)


def test_agreement_is_the_surprise_at_the_likeliest_class():
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    taught = torch.tensor([[0.1, 0.2, 0.7], [0.0, 0.0, 0.0], [0.5, 0.3, 0.2], [0.0, 1.0, 0.0]])
    total = 0.0
    for row, label in ((0, 2), (2, 0), (3, 1)):
        total += math.log(sum(math.exp(z) for z in logits[row].tolist())) - float(logits[row, label])
    assert math.isclose(float(agreement_loss(logits, taught)), total / 4, rel_tol=1e-9)


def test_a_silent_teacher_moves_nothing():
    logits = torch.randn(2, 3, requires_grad=True)
    agreement_loss(logits, torch.zeros(2, 3)).backward()
    assert torch.equal(logits.grad, torch.zeros(2, 3))


def test_a_class_that_the_classifier_rules_out_is_still_taught():
    logits = torch.tensor([[100.0, -100.0]], requires_grad=True)
    agreement_loss(logits, torch.tensor([[0.0, 1.0]])).backward()
    assert logits.grad[0, 1] == -1


def test_gradients():
    taught = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    gradients_agree(lambda a: agreement_loss(a, taught), *groups(3))
    gradients_agree(lambda a, b, c, d: critic_loss([a, b, c, d]), *groups(2, 1, 3, 2))
    gradients_agree(lambda a, b: calibrator_loss(a, b, 0.3), *groups(2, 3))


def test_half_precision_is_computed_in_float32():
    found = groups(4, 4, 4, 4)
    half = critic_loss([logits.bfloat16() for logits in found])
    assert half.dtype == torch.float32
    assert abs(float(half) - float(critic_loss(found))) < 0.05
    taught = torch.eye(4)
    agreed = agreement_loss(found[0].bfloat16(), taught)
    assert agreed.dtype == torch.float32
    assert abs(float(agreed) - float(agreement_loss(found[0], taught))) < 0.05


def test_one_image_is_enough_and_three_groups_are_not():
    assert bool(critic_loss(groups(1, 1, 1, 1)).isfinite())
    with pytest.raises(ValueError, match="there are 3 groups; give the logits of source, target"):
        critic_loss(groups(1, 1, 1))


@pytest.mark.compile
def test_compiled_losses_are_the_same():
    found = [logits.float() for logits in groups(4, 4, 4, 4)]
    assert torch.allclose(torch.compile(critic_loss)(found), critic_loss(found))
    assert torch.allclose(torch.compile(calibrator_loss)(*found[2:]), calibrator_loss(*found[2:]))
    taught = torch.eye(4)
    assert torch.allclose(torch.compile(agreement_loss)(found[0], taught), agreement_loss(found[0], taught))
