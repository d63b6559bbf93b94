"""Validators against plain loops, and in cases whose answer is known."""

import math

import pytest
import torch
from calib import validators


def logits(n=12, classes=4, seed=0):
    return 2 * torch.randn(n, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def entropy_of(row):
    return -sum(p * math.log(p) for p in row if p > 0)


def test_entropy_and_information_by_hand():
    rows = logits().softmax(1).tolist()
    mean = [sum(row[k] for row in rows) / len(rows) for k in range(4)]
    expected = -sum(map(entropy_of, rows)) / len(rows)
    assert math.isclose(float(validators.entropy(logits())), expected, rel_tol=1e-5)
    assert math.isclose(float(validators.information(logits())), entropy_of(mean) + expected, rel_tol=1e-4)


def test_information_knows_collapse_and_entropy_does_not():
    collapsed, spread = torch.zeros(8, 4), 20 * torch.eye(4).repeat(2, 1)
    collapsed[:, 0] = 20
    assert float(validators.information(collapsed)) == pytest.approx(0.0, abs=1e-5)
    assert float(validators.information(spread)) == pytest.approx(math.log(4), abs=1e-4)
    assert float(validators.entropy(collapsed)) == pytest.approx(float(validators.entropy(spread)), abs=1e-5)


def test_neighbourhood_by_hand():
    features = [
        [v / math.sqrt(sum(x * x for x in row)) for v in row] for row in logits(6).softmax(1).tolist()
    ]
    total = 0.0
    for i, a in enumerate(features):
        weights = [
            math.exp(sum(x * y for x, y in zip(a, b, strict=True)) / 0.05)
            for j, b in enumerate(features)
            if j != i
        ]
        total += entropy_of([w / sum(weights) for w in weights])
    assert math.isclose(float(validators.neighbourhood(logits(6))), total / 6, rel_tol=1e-4)


def test_neighbourhood_needs_neighbours():
    with pytest.raises(ValueError, match="there are 2 images"):
        validators.neighbourhood(logits(2))


def test_confusion_is_the_share_of_source():
    assert float(validators.confusion(torch.zeros(3, 4))) == pytest.approx(0.25)
    assert float(validators.confusion(torch.tensor([[50.0, 0, 0, 0]]))) == pytest.approx(1.0)


def test_source_kept_is_in_percent():
    answers = torch.eye(4)[[0, 1, 2, 2]]
    assert float(validators.source_kept(answers, torch.tensor([0, 1, 2, 3]))) == 75.0
