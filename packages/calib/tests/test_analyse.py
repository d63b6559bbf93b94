"""The analyses against slow plain loops, and against what must be true of them."""

import cmath
import math

import pytest
import torch
from calib.analyse import (
    accuracy_by_epsilon,
    attack,
    log_amplitude,
    radial_mean,
    random_sign,
    random_sign_epsilon,
)
from calib.attachment import attach
from calib.calibrator import Calibrator
from calib.critics import FeatureCritic, PixelCritic, draw_patch
from calib.features import Features
from calib.step import Critics
from torch import nn


def made() -> tuple[Calibrator, nn.Module]:
    torch.manual_seed(0)
    calibrator = Calibrator(channels=2, epsilon=0.4, width=4, blocks=1, value_range=(-1.0, 3.0)).eval()
    nn.init.normal_(calibrator.body[-1].weight, std=0.3)
    return calibrator, nn.Sequential(nn.Dropout(), nn.Flatten(), nn.Linear(128, 3))


def images(count: int = 6) -> torch.Tensor:
    return 4 * torch.rand(count, 2, 8, 8, generator=torch.Generator().manual_seed(1)) - 1


def test_accuracy_by_epsilon_is_that_of_clamped_corrections() -> None:
    calibrator, classifier = made()
    model = attach(classifier, calibrator.train())
    x = images(450)
    with torch.no_grad():
        labels = model(x).argmax(1)
    found = accuracy_by_epsilon(model, x, labels, [0.0, 0.1, 0.4])
    delta = calibrator.correction(x).detach()
    for epsilon, value in zip([0.0, 0.1, 0.4], found, strict=True):
        right = 0
        for i in range(len(x)):
            moved = (x[i] + delta[i].clamp(-4 * epsilon, 4 * epsilon)).clamp(-1, 3)
            right += int(classifier(moved[None]).argmax()) == int(labels[i])
        assert value == pytest.approx(100 * right / 450)
    assert found[2] == 100
    assert found[0] < 90
    assert calibrator.training
    model.verify()


def test_an_epsilon_above_the_calibrator_s_own_is_refused() -> None:
    calibrator, classifier = made()
    labels = torch.zeros(6, dtype=torch.int64)
    for wrong in (0.41, -0.1):
        with pytest.raises(ValueError, match="can be cut back, but not enlarged"):
            accuracy_by_epsilon(attach(classifier, calibrator), images(), labels, [0.1, wrong])


def test_one_step_of_the_attack_is_its_formula() -> None:
    torch.manual_seed(3)
    critics, (_, classifier) = Critics(PixelCritic(2, 4), FeatureCritic(3)), made()
    classifier.eval()
    x = images()
    found = attack(
        x,
        Features(classifier),
        critics,
        0.1,
        steps=1,
        step_size=0.05,
        value_range=(-1.0, 3.0),
        patches=2,
        seed=5,
    )
    watched = x.clone().requires_grad_(True)
    critics.eval()
    features = critics.feature(classifier(watched).softmax(1)).log_softmax(1)[:, 0].mean()
    pixels = critics.pixel(watched, draw_patch(8, 8, 4, 5, 0, 2)).log_softmax(1)[:, 0].mean()
    (-features - pixels).backward()
    torch.testing.assert_close(found, (x - 0.2 * watched.grad.sign()).clamp(-1, 3))


def test_the_attack_deceives_the_critics_within_its_bound() -> None:
    torch.manual_seed(3)
    critics, (_, classifier) = Critics(PixelCritic(2, 4), FeatureCritic(3)), made()
    classifier.eval()
    critics.train()
    before = [p.detach().clone() for p in (*critics.parameters(), *classifier.parameters())]
    x, features = images(), Features(classifier)
    found = attack(x, features, critics, 0.1, steps=8, value_range=(-1.0, 3.0))
    assert (found - x).abs().max() <= 0.4 + 1e-6
    assert (found - x).abs().max() > 0.3
    assert found.min() >= -1
    assert found.max() <= 3
    assert all(module.training for module in critics.modules())
    for old, new in zip(before, (*critics.parameters(), *classifier.parameters()), strict=True):
        assert torch.equal(old, new)
        assert new.grad is None
    critics.eval()
    share = [critics.feature(features(batch)).softmax(1)[:, 0].mean() for batch in (x, found)]
    assert share[1] > share[0]
    assert torch.equal(found, attack(x, features, critics, 0.1, steps=8, value_range=(-1.0, 3.0)))


def test_an_attack_without_what_it_needs_is_refused() -> None:
    critics = Critics(None, FeatureCritic(3))
    with pytest.raises(ValueError, match="give the classifier's features"):
        attack(images(), None, critics, 0.1)
    with pytest.raises(ValueError, match="epsilon=0"):
        attack(images(), nn.Identity(), critics, 0.0)


def test_random_signs_have_the_size_and_no_direction() -> None:
    x = torch.full((20, 3, 16, 16), 0.5)
    found = random_sign(x, 0.2, torch.Generator().manual_seed(0)) - x
    torch.testing.assert_close(found.abs(), torch.full_like(found, 0.2))
    # 15,360 coins: the mean of signs has a standard deviation of 0.008.
    assert abs(found.mean()) < 0.2 * 0.04
    again = random_sign(x, 0.2, torch.Generator().manual_seed(0)) - x
    assert torch.equal(found, again)
    wide = random_sign(x.new_ones(1, 3, 8, 8), 0.2, torch.Generator().manual_seed(0), (-1.0, 1.0))
    assert wide.unique().tolist() == pytest.approx([0.6, 1.0])


def test_random_signs_can_have_a_mean_size_that_is_given() -> None:
    """Two thirds of the pixels are black: they move at every other coin, so that the signs must be larger."""
    x = torch.zeros(60, 3, 32, 32)
    x[:20] = 0.5
    epsilon = random_sign_epsilon(x, 0.1)
    # 0.1 = 1/3 * epsilon + 2/3 * epsilon / 2
    assert epsilon == pytest.approx(0.15, abs=1e-4)
    found = random_sign(x, epsilon, torch.Generator().manual_seed(0)) - x
    assert float(found.abs().mean()) == pytest.approx(0.1, rel=0.01)
    wide = random_sign_epsilon(2 * x - 1, 0.2, (-1.0, 1.0))
    assert wide == pytest.approx(epsilon, abs=1e-4)
    assert random_sign_epsilon(x, 0.0) == pytest.approx(0.0, abs=1e-6)
    assert random_sign_epsilon(x, 0.9) == 1.0


def test_log_amplitude_is_the_plain_fourier_sum() -> None:
    x = torch.rand(2, 1, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = log_amplitude(x)
    for v in range(4):
        for u in range(6):
            total = 0.0
            for image in x[:, 0]:
                value = sum(
                    float(image[i, j]) * cmath.exp(-2j * math.pi * (i * (v - 2) / 4 + j * (u - 3) / 6))
                    for i in range(4)
                    for j in range(6)
                )
                total += math.log(abs(value) + 1e-8) / 2
            assert float(found[v, u]) == pytest.approx(total, abs=1e-4)


@pytest.mark.parametrize("size", [(8, 8), (9, 9), (12, 8)])
def test_radial_mean_is_the_plain_mean_of_rings(size: tuple[int, int]) -> None:
    spectrum = torch.rand(size, generator=torch.Generator().manual_seed(0))
    found = radial_mean(spectrum)
    last = min(size) // 2
    rings: list[list[float]] = [[] for _ in range(last + 1)]
    for i in range(size[0]):
        for j in range(size[1]):
            radius = math.hypot((i - size[0] // 2) / size[0], (j - size[1] // 2) / size[1])
            ring = math.floor(2 * last * radius + 0.5 + 1e-6)
            if ring <= last:
                rings[ring].append(float(spectrum[i, j]))
    assert len(found) == last + 1
    for value, ring in zip(found, rings, strict=True):
        assert float(value) == pytest.approx(sum(ring) / len(ring), abs=1e-6)
    assert found[0] == spectrum[size[0] // 2, size[1] // 2]


def test_smoothing_takes_high_frequencies_away() -> None:
    x = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    smooth = nn.functional.avg_pool2d(nn.functional.pad(x, (1, 1, 1, 1), mode="circular"), 3, 1)
    fall = radial_mean(log_amplitude(x)) - radial_mean(log_amplitude(smooth))
    assert abs(fall[0]) < 1e-4
    assert fall[-1] > 0.5
