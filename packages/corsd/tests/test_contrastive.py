"""Contrastive deep supervision: supervised contrast against slow loops, with and without a second view."""

import math

import pytest
import torch
from corsd.baselines.contrastive import ContrastiveSupervision, supervised_contrast
from corsd.nets import small_resnet

LABELS = torch.tensor([0, 1, 0, 2, 1, 0])


def embeddings(count=6):
    return torch.randn(count, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def slow_contrast(g, labels, tau):
    unit = [[float(v) / math.dist(row, [0] * len(row)) for v in row] for row in g.tolist()]
    near = [[math.exp(sum(map(math.prod, zip(a, b, strict=True))) / tau) for b in unit] for a in unit]
    losses = []
    for a in range(len(unit)):
        others = [b for b in range(len(unit)) if b != a]
        positives = [b for b in others if labels[b] == labels[a]]
        if positives:
            total = sum(near[a][b] for b in others)
            losses.append(-sum(math.log(near[a][p] / total) for p in positives) / len(positives))
    return sum(losses) / max(len(losses), 1)


@pytest.mark.parametrize("count", [0, 1, 2, 6])
def test_contrast_equals_slow_loops(count):
    """Of two images none has a partner: the loss is 0, and so is its gradient."""
    g, labels = embeddings(count).requires_grad_(), LABELS[:count]
    value = supervised_contrast(g, labels, 0.07)
    assert float(value.detach()) == pytest.approx(slow_contrast(g.detach(), labels.tolist(), 0.07), rel=1e-9)
    value.backward()
    assert g.grad.isfinite().all()


def test_a_second_view_is_a_positive():
    g = embeddings(2)
    same = torch.cat([g, g])
    assert float(supervised_contrast(same, torch.tensor([0, 1, 0, 1]))) == pytest.approx(
        slow_contrast(same, [0, 1, 0, 1], 0.07), rel=1e-9
    )
    assert float(supervised_contrast(same, torch.tensor([0, 1, 0, 1]))) < float(
        supervised_contrast(same, torch.tensor([0, 1, 1, 0]))
    )


def test_gradient_and_half_precision():
    assert torch.autograd.gradcheck(
        lambda g: supervised_contrast(g, LABELS, 0.5), [embeddings().requires_grad_()]
    )
    half = embeddings().bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        value = supervised_contrast(half, LABELS)
    assert float(value) == pytest.approx(slow_contrast(half.double(), LABELS.tolist(), 0.07), rel=1e-4)


@pytest.mark.compile
def test_compiled_equals_eager():
    compiled = torch.compile(supervised_contrast, fullgraph=True)
    torch.testing.assert_close(compiled(embeddings(), LABELS), supervised_contrast(embeddings(), LABELS))


def test_every_stage_learns_and_the_weight_scales_contrast_alone():
    def parts(weight):
        torch.manual_seed(0)
        net = small_resnet([1, 1, 1, 1], 8, 3)
        images = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        module = ContrastiveSupervision(net, 3, example=images, weight=weight)
        out = module(images, LABELS)
        out.loss.backward()
        assert all(p.grad is not None for p in module.parameters())
        return out.parts

    one, tenth = parts(1.0), parts(0.1)
    assert set(one) == {"ce", "contrast"}
    torch.testing.assert_close(tenth["contrast"], one["contrast"] / 10)
    torch.testing.assert_close(tenth["ce"], one["ce"])


@pytest.mark.usefixtures("as_a_user")
def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="tau=0 and embedding=128; tau must be above 0"):
        ContrastiveSupervision(small_resnet([1, 1, 1, 1], 8, 3), 3, tau=0)
