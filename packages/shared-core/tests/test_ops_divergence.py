import inspect
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shared_core.ops import entropy, kl_divergence, soft_cross_entropy
from shared_core.testing import gradients_agree


def softmax(row):
    top = max(row)
    powers = [math.exp(x - top) for x in row]
    return [x / sum(powers) for x in powers]


def logits(rows=4, classes=3, seed=0, dtype=torch.float64):
    return torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed), dtype=dtype) * 2


@pytest.mark.parametrize("temperature", [1.0, 4.0, 0.5])
def test_kl_divergence_against_plain_loops(temperature):
    student, teacher = logits(seed=1), logits(seed=2)
    slow = []
    for i in range(4):
        p = softmax([x / temperature for x in teacher[i].tolist()])
        q = softmax([x / temperature for x in student[i].tolist()])
        slow.append(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
    expected = torch.tensor(slow, dtype=torch.float64)
    torch.testing.assert_close(kl_divergence(student, teacher, temperature), expected, rtol=0, atol=1e-12)


def test_soft_cross_entropy_against_plain_loops():
    x, target = logits(seed=1), logits(seed=2).softmax(-1)
    slow = [
        -sum(t * math.log(q) for t, q in zip(target[i].tolist(), softmax(x[i].tolist()), strict=True))
        for i in range(4)
    ]
    expected = torch.tensor(slow, dtype=torch.float64)
    torch.testing.assert_close(soft_cross_entropy(x, target), expected, rtol=0, atol=1e-12)


def test_entropy_against_plain_loops():
    x = logits()
    expected = torch.tensor([-sum(p * math.log(p) for p in softmax(row)) for row in x.tolist()]).double()
    torch.testing.assert_close(entropy(x), expected, rtol=0, atol=1e-7)


def test_gradients():
    gradients_agree(kl_divergence, logits(seed=1), logits(seed=2))
    gradients_agree(soft_cross_entropy, logits(seed=1), logits(seed=2).softmax(-1))
    gradients_agree(entropy, logits())


def test_both_arguments_get_gradients():
    student, teacher = logits(seed=1).requires_grad_(), logits(seed=2).requires_grad_()
    kl_divergence(student, teacher).sum().backward()
    # d KL / d student = q - p.
    torch.testing.assert_close(student.grad, student.softmax(-1) - teacher.softmax(-1))
    assert teacher.grad.abs().sum() > 0


@given(st.integers(0, 2**31), st.floats(-50, 50), st.floats(0.2, 20))
@settings(max_examples=40, deadline=None)
def test_properties(seed, shift, temperature):
    student, teacher = logits(seed=seed), logits(seed=seed + 1)
    value = kl_divergence(student, teacher, temperature)
    assert (value > -1e-12).all()
    torch.testing.assert_close(
        kl_divergence(student + shift, teacher - shift, temperature), value, rtol=1e-6, atol=1e-9
    )
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(kl_divergence(student[:, order], teacher[:, order], temperature), value)
    # Cross-entropy is entropy plus divergence.
    torch.testing.assert_close(
        soft_cross_entropy(student, teacher.softmax(-1)), entropy(teacher) + kl_divergence(student, teacher)
    )


def test_equal_logits_give_exactly_zero_and_one_class_too():
    x = logits(dtype=torch.float32)
    assert (kl_divergence(x, x) == 0).all()
    assert (kl_divergence(x[:, :1], x[:, :1] + 1) == 0).all()


@pytest.mark.parametrize("function", [kl_divergence, soft_cross_entropy])
def test_no_rows(function):
    assert function(torch.empty(0, 3), torch.empty(0, 3)).shape == (0,)


def test_extreme_logits_have_finite_values_and_gradients():
    student = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]], requires_grad=True)
    teacher = torch.tensor([[-1e4, 1e4, 0.0], [-1e4, 1e4, 0.0]], requires_grad=True)
    loss = kl_divergence(student, teacher)
    assert loss.tolist() == [2e4, 0.0]
    (loss + entropy(student)).sum().backward()
    assert student.grad.isfinite().all()
    assert teacher.grad.isfinite().all()


def test_target_probability_zero_is_safe():
    x = torch.tensor([[1e4, -1e4]], requires_grad=True)
    loss = soft_cross_entropy(x, torch.tensor([[1.0, 0.0]]))
    loss.sum().backward()
    assert loss.item() == 0
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32_also_under_autocast(dtype):
    student, teacher = logits(seed=1).to(dtype), logits(seed=2).to(dtype)
    expected = kl_divergence(student.float(), teacher.float())
    assert expected.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(kl_divergence(student, teacher), expected)
        assert torch.equal(entropy(student), entropy(student.float()))


def test_float64_stays():
    assert kl_divergence(logits(), logits()).dtype == torch.float64


def test_error_texts():
    with pytest.raises(ValueError, match=r"teacher_logits has shape \(3, 3\) and student_logits has shape"):
        inspect.unwrap(kl_divergence)(logits(4), logits(3))
    with pytest.raises(ValueError, match=r"temperature is 0\.0; it must be above 0"):
        kl_divergence(logits(), logits(), temperature=0.0)
