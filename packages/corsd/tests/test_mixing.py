"""Mixup and CutMix against slow loops; what is drawn depends on (seed, step) alone."""

import math

import pytest
import torch
import torch.nn.functional as F
from corsd.mixing import (
    MixedCrossEntropy,
    TwoHot,
    cutmix,
    mix,
    mixing_draws,
    mixup,
    partners,
    two_hot_cross_entropy,
)
from corsd.nets import small_resnet
from shared_core.testing import run_ranks

LABELS = torch.tensor([0, 1, 2, 1, 0])
PARTNERS = [1, 0, 3, 2, 4]


def images(count=5, **options):
    return torch.rand(count, 3, 6, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(
        **options
    )


def logits(count=5):
    return torch.randn(count, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def two_hot(count=5):
    lam = mixing_draws(0, 0, 5)[:, 0]
    return TwoHot(LABELS[:count], LABELS[PARTNERS][:count], lam[:count])


def slow_cross_entropy(z, labels):
    total = 0.0
    for row, a, b, share in zip(z, *(part.tolist() for part in labels), strict=True):
        norm = math.log(sum(math.exp(float(v)) for v in row))
        total += share * (norm - float(row[a])) + (1 - share) * (norm - float(row[b]))
    return total / max(len(z), 1)


def test_mixup_equals_slow_loops():
    x, draws = images(), mixing_draws(0, 3, 5)
    mixed, labels = mixup(x, LABELS, draws)
    for a, b in enumerate(PARTNERS):
        share = float(draws[a, 0])
        torch.testing.assert_close(mixed[a], share * x[a] + (1 - share) * x[b])
        assert (int(labels.first[a]), int(labels.second[a])) == (int(LABELS[a]), int(LABELS[b]))
        assert float(labels.lam[a]) == share


@pytest.mark.parametrize("step", range(5))
def test_cutmix_equals_slow_loops_and_lam_is_the_share_that_stays(step):
    x, draws = images(), mixing_draws(0, step, 5)
    mixed, labels = cutmix(x, LABELS, draws)
    for a, b in enumerate(PARTNERS):
        side, (row, column) = math.sqrt(1 - float(draws[a, 0])), draws[a, 1:].tolist()
        sizes = int(side * 6), int(side * 8)
        starts = int(row * 6) - sizes[0] // 2, int(column * 8) - sizes[1] // 2
        pasted = 0
        for i in range(6):
            for j in range(8):
                inside = all(s <= at < s + n for at, s, n in zip((i, j), starts, sizes, strict=True))
                pasted += inside
                assert torch.equal(mixed[a, :, i, j], x[b if inside else a, :, i, j])
        assert float(labels.lam[a]) == pytest.approx(1 - pasted / 48, abs=1e-12)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
@pytest.mark.parametrize("count", [0, 1])
def test_empty_and_one_image_stay_as_they_are(kind, count):
    mixed, labels = mix(images(count), LABELS[:count], kind, 1.0, 0, 0)
    torch.testing.assert_close(mixed, images(count))
    assert torch.equal(labels.first, labels.second)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_half_images_keep_their_type_and_the_share_is_single(kind):
    exact, _ = mix(images().bfloat16().double(), LABELS, kind, 1.0, 0, 0)
    mixed, labels = mix(images().bfloat16(), LABELS, kind, 1.0, 0, 0)
    assert (mixed.dtype, labels.lam.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(mixed.double(), exact, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_the_callers_images_stay_and_off_changes_nothing(kind):
    x = images()
    mix(x, LABELS, kind, 1.0, 0, 0)
    assert torch.equal(x, images())
    same, labels = mix(x, LABELS, "off", 1.0, 0, 0)
    assert same is x
    assert torch.equal(labels.lam, torch.ones(5, dtype=torch.float64))


def test_images_that_cannot_be_mixed_are_refused():
    with pytest.raises(TypeError, match=r"floating point; got torch.uint8: give images / 255"):
        mix(images().to(torch.uint8), LABELS, "mixup", 1.0, 0, 0)
    with pytest.raises(ValueError, match=r"got 2 dimensions: use 'mixup'"):
        mix(images().flatten(1), LABELS, "cutmix", 1.0, 0, 0)
    with pytest.raises(ValueError, match=r"there are 4 labels for 5 images"):
        mix(images(), LABELS[:4], "mixup", 1.0, 0, 0)
    for alpha in (0.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=r"alpha is .*; it must be a finite number above 0"):
            mixing_draws(0, 0, 5, alpha)


def test_cross_entropy_equals_slow_loops():
    for count in (0, 1, 5):
        value = two_hot_cross_entropy(logits(count), two_hot(count))
        assert float(value) == pytest.approx(slow_cross_entropy(logits(count), two_hot(count)), rel=1e-12)
    plain = TwoHot(LABELS, LABELS, torch.ones(5))
    torch.testing.assert_close(two_hot_cross_entropy(logits(), plain), F.cross_entropy(logits(), LABELS))


def test_cross_entropy_gradient_and_half_precision():
    assert torch.autograd.gradcheck(
        lambda z: two_hot_cross_entropy(z, two_hot()), [logits().requires_grad_()]
    )
    half = logits().bfloat16()
    exact = slow_cross_entropy(half.double(), two_hot())
    assert float(two_hot_cross_entropy(half, two_hot())) == pytest.approx(exact, rel=1e-5)


@pytest.mark.compile
@pytest.mark.parametrize("function", [mixup, cutmix])
def test_compiled_equals_eager(function):
    draws = mixing_draws(0, 0, 5)
    compiled, plain = torch.compile(function, fullgraph=True), function(images(), LABELS, draws)
    for a, b in zip(
        (plain[0], *plain[1]), (lambda m: (m[0], *m[1]))(compiled(images(), LABELS, draws)), strict=True
    ):
        torch.testing.assert_close(a, b)
    loss = torch.compile(two_hot_cross_entropy, fullgraph=True)
    torch.testing.assert_close(loss(logits(), two_hot()), two_hot_cross_entropy(logits(), two_hot()))


def test_draws_depend_on_seed_and_step_alone_and_follow_the_beta_distribution():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    draws = mixing_draws(1, 2, 4000, alpha=0.4)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(draws, mixing_draws(1, 2, 4000, alpha=0.4))
    assert not torch.equal(draws, mixing_draws(1, 3, 4000, alpha=0.4))
    assert not torch.equal(draws, mixing_draws(2, 2, 4000, alpha=0.4))
    # variance of Beta(a, a): 1 / (4 (2 a + 1))
    assert float(draws[:, 0].mean()) == pytest.approx(0.5, abs=0.03)
    assert float(draws[:, 0].var()) == pytest.approx(1 / 7.2, abs=0.01)


def drawn_here() -> torch.Tensor:
    return mixing_draws(0, 5, 3)


def test_processes_draw_the_rows_of_one():
    assert torch.equal(torch.cat(run_ranks(drawn_here, 2)), mixing_draws(0, 5, 6))
    assert partners(6).tolist() == [1, 0, 3, 2, 5, 4]


@pytest.mark.usefixtures("as_a_user")
def test_the_control_mixes_in_training_mode_only():
    torch.manual_seed(0)
    net = small_resnet([1, 1, 1, 1], 4, 3)
    control, x = MixedCrossEntropy(net, 3, "mixup"), images().float()
    control.eval()
    torch.testing.assert_close(control(x, LABELS).loss, F.cross_entropy(net(x), LABELS))
    assert int(control.steps) == 0
    control.train()
    control(x, LABELS)
    assert int(control.steps) == 1
    with pytest.raises(ValueError, match=r"mixing='blend'; choose 'off', 'mixup' or 'cutmix'"):
        MixedCrossEntropy(net, 3, "blend")
