"""Online label smoothing: its loss and its tables against slow loops, epoch by epoch."""

import math

import pytest
import torch
import torch.nn.functional as F
from corsd.baselines.ols import OLS, add_right_predictions, next_soft_labels, online_label_smoothing
from torch import nn

BATCH, CLASSES = 6, 3
LABELS = torch.tensor([0, 1, 1, 2, 0, 1])


def logits(count=BATCH):
    return torch.randn(count, CLASSES, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def table():
    return torch.rand(CLASSES, CLASSES, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def slow_log_softmax(row):
    norm = math.log(sum(math.exp(float(v)) for v in row))
    return [float(v) - norm for v in row]


def slow_loss(z, labels, soft, alpha):
    total = 0.0
    for row, y in zip(z, labels.tolist(), strict=True):
        logs = slow_log_softmax(row)
        total -= alpha * logs[y] + (1 - alpha) * sum(float(s) * v for s, v in zip(soft[y], logs, strict=True))
    return total / max(len(z), 1)


@pytest.mark.parametrize("count", [0, 1, BATCH])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_the_loss_equals_slow_loops(count, alpha):
    value = online_label_smoothing(logits(count), LABELS[:count], table(), alpha)
    assert float(value) == pytest.approx(slow_loss(logits(count), LABELS[:count], table(), alpha), rel=1e-12)


@pytest.mark.parametrize("count", [0, 1, BATCH])
def test_the_tables_equal_slow_loops(count):
    labels = LABELS[:count]
    # classes 0 and 1 are predicted right now and then, class 2 never
    z = logits(count) + F.one_hot(labels, CLASSES) * torch.tensor([2, 2, -9])
    sums, counts = torch.zeros(CLASSES, CLASSES).double(), torch.zeros(CLASSES).double()
    add_right_predictions(sums, counts, z, labels)
    expected = table()
    right: dict[int, list[list[float]]] = {}
    for row, y in zip(z.tolist(), labels.tolist(), strict=True):
        if max(range(CLASSES), key=lambda k, row=row: row[k]) == y:
            right.setdefault(y, []).append([math.exp(v) for v in slow_log_softmax(row)])
    for y, found in right.items():
        expected[y] = torch.tensor(found, dtype=torch.float64).mean(0)
    torch.testing.assert_close(next_soft_labels(table(), sums, counts), expected)
    if count == BATCH:
        assert len(right) == 2


def test_gradient_and_half_precision():
    assert torch.autograd.gradcheck(
        lambda z: online_label_smoothing(z, LABELS, table()), [logits().requires_grad_()]
    )
    half = logits().bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        value = online_label_smoothing(half, LABELS, table().float())
    assert float(value) == pytest.approx(slow_loss(half.double(), LABELS, table(), 0.5), rel=1e-4)


@pytest.mark.compile
def test_compiled_equals_eager():
    def loss(z, soft):
        sums, counts = torch.zeros_like(soft), torch.zeros_like(soft[0])
        add_right_predictions(sums, counts, z, LABELS)
        return online_label_smoothing(z, LABELS, next_soft_labels(soft, sums, counts))

    compiled = torch.compile(loss, fullgraph=True)
    torch.testing.assert_close(compiled(logits(), table()), loss(logits(), table()))


def test_an_epoch_collects_what_the_next_one_learns():
    module = OLS(nn.Identity(), CLASSES, num_images=2 * BATCH).double()
    uniform = torch.full((CLASSES, CLASSES), 1 / CLASSES).double()
    first, second = logits(), logits() + F.one_hot(LABELS, CLASSES)
    for z in (first, second):
        expected = online_label_smoothing(z, LABELS, uniform)
        torch.testing.assert_close(module(z, LABELS).loss, expected, rtol=1e-6, atol=1e-7)
    sums, counts = torch.zeros_like(uniform), torch.zeros(CLASSES).double()
    for z in (first, second):
        add_right_predictions(sums, counts, z, LABELS)
    collected = next_soft_labels(uniform, sums, counts)
    torch.testing.assert_close(module.soft_labels, collected, rtol=1e-6, atol=1e-7)
    assert module.sums.abs().sum() == module.counts.sum() == 0
    torch.testing.assert_close(
        module(first, LABELS).loss, online_label_smoothing(first, LABELS, module.soft_labels)
    )
    assert int(module.seen) == 3 * BATCH


def test_evaluation_collects_nothing():
    module = OLS(nn.Identity(), CLASSES, num_images=BATCH).eval()
    module(logits().float(), LABELS)
    assert int(module.seen) == 0
    assert module.counts.sum() == 0


def test_a_step_writes_rows_of_its_classes_and_an_epochs_last_step_everything():
    module = OLS(nn.Identity(), CLASSES, num_images=2 * BATCH)
    rows = module.written_rows(LABELS)
    assert torch.equal(rows["sums"], LABELS)
    assert len(rows["soft_labels"]) == 0
    module(logits().float(), LABELS)
    assert module.written_rows(LABELS) == {}


@pytest.mark.usefixtures("as_a_user")
def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match=r"alpha=1\.5; it must be from 0 to 1"):
        OLS(nn.Identity(), CLASSES, 6, alpha=1.5)


def test_images_without_finite_logits_leave_the_tables_alone() -> None:
    logits, labels = torch.tensor([[2.0, 0.0], [float("nan"), 0.0], [1.0, 0.0]]), torch.tensor([0, 0, 1])
    sums, counts = torch.zeros(2, 2), torch.zeros(2)
    add_right_predictions(sums, counts, logits, labels)
    assert torch.equal(sums, torch.stack([logits[0].softmax(0), torch.zeros(2)]))
    assert counts.tolist() == [1.0, 0.0]
