"""The step against the released order, in float64: the same gradients for half the work."""

import copy
from contextlib import nullcontext

import pytest
import torch
from calib.calibrator import Calibrator
from calib.critics import FeatureCritic, PixelCritic, draw_patch
from calib.features import Features
from calib.losses import calibrator_loss, critic_loss
from calib.step import Batch, Critics, Game, Weights, calibrate
from torch import nn


class Counted(nn.Module):
    """A small classifier that counts its forward passes."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(2 * 12 * 12, 8), nn.Tanh(), nn.Linear(8, 3))
        self.calls = 0

    def forward(self, images):
        self.calls += 1
        return self.net(images)


def players(seed=0):
    torch.manual_seed(seed)
    classifier = Counted().double().eval().requires_grad_(False)
    calibrator = Calibrator(2, 0.2, 2, 1).double()
    with torch.no_grad():
        for parameter in calibrator.parameters():
            parameter.normal_(std=0.3)
    critics = Critics(PixelCritic(2, 4, 8), FeatureCritic(3, (8, 6), dropout=0.0)).double()
    return classifier, calibrator, critics


def images(n, seed):
    return torch.rand(n, 2, 12, 12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def released_order(classifier, calibrator, critics, optimizers, source, target, patch, weights):
    """Both graphs kept, everything computed anew for each player, as the released code does."""

    def features(x):
        return classifier(x).softmax(1)

    def verdicts(critic, *groups):
        return [critic(group) for group in groups]

    g_source, g_target = calibrator(source), calibrator(target)
    loss = critic_loss(verdicts(lambda x: critics.pixel(x, patch), source, target, g_source, g_target))
    loss = loss + critic_loss(
        verdicts(critics.feature, features(source), features(target), features(g_source), features(g_target))
    )
    optimizers[1].zero_grad()
    loss.backward()
    optimizers[1].step()
    g_source, g_target = calibrator(source), calibrator(target)
    pixel = calibrator_loss(critics.pixel(g_source, patch), critics.pixel(g_target, patch), weights.source)
    feature = calibrator_loss(
        critics.feature(features(g_source)), critics.feature(features(g_target)), weights.source
    )
    optimizers[0].zero_grad()
    (weights.pixel * pixel + weights.feature * feature).backward()
    optimizers[0].step()


def test_two_steps_equal_the_released_order():
    classifier, calibrator, critics = players()
    twins = copy.deepcopy((calibrator, critics))
    weights = Weights(pixel=0.7, feature=1.3, source=0.2)
    # Not Adam: it blows the rounding of gradients that are zero in truth (biases before a norm) up to full steps.
    optimizers = [torch.optim.SGD(net.parameters(), 0.1) for net in (calibrator, critics)]
    others = [torch.optim.SGD(net.parameters(), 0.1) for net in twins]
    game = Game(calibrator, lambda x: classifier(x).softmax(1), critics, *optimizers, weights)
    for step in range(2):
        source, target = images(3, step), images(5, 10 + step)
        patch = draw_patch(12, 12, 4, 0, step)
        clean = [classifier(x).softmax(1) for x in (source, target)]
        game.play([(Batch(source, target, *clean), patch)])
        released_order(classifier, *twins, others, source, target, patch, weights)
    for mine, theirs in zip((calibrator, critics), twins, strict=True):
        for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
            assert torch.allclose(a, b, atol=1e-12, rtol=0)


def test_one_pass_of_the_classifier_serves_both_players():
    classifier, calibrator, critics = players()
    optimizers = [torch.optim.SGD(net.parameters(), 1e-2) for net in (calibrator, critics)]
    game = Game(calibrator, lambda x: classifier(x).softmax(1), critics, *optimizers, Weights())
    source, target = images(3, 0), images(3, 1)
    clean = [classifier(x).softmax(1) for x in (source, target)]
    classifier.calls = 0
    game.play([(Batch(source, target, *clean), draw_patch(12, 12, 4, 0, 0))])
    assert classifier.calls == 1


def test_domains_of_different_sizes_are_calibrated_apart():
    _, calibrator, _ = players()
    small = torch.rand(2, 2, 8, 10, dtype=torch.float64)
    found = calibrate(calibrator, None, Batch(images(3, 0), small, None, None))
    assert torch.equal(found.source, calibrator(images(3, 0)))
    assert torch.equal(found.target, calibrator(small))


def test_rounds_average_their_gradients():
    classifier, calibrator, critics = players()
    twin_calibrator, twin_critics = copy.deepcopy((calibrator, critics))

    def features(x):
        return classifier(x).softmax(1)

    parts = [
        (Batch(s, t, features(s), features(t)), draw_patch(12, 12, 4, 0, 0))
        for s, t in ((images(4, 0), images(4, 1)), (images(4, 2), images(4, 3)))
    ]
    halves = zip(parts[0][0][:4], parts[1][0][:4], strict=True)
    whole = (Batch(*(torch.cat(pair) for pair in halves)), parts[0][1])
    sgd = [torch.optim.SGD(net.parameters(), 0.1) for net in (twin_calibrator, twin_critics)]
    # Two rounds move both players at the end; one round moves the critics first.  The critics see the same.
    Game(twin_calibrator, features, twin_critics, *sgd, Weights()).play([whole])
    sgd = [torch.optim.SGD(net.parameters(), 0.1) for net in (calibrator, critics)]
    Game(calibrator, features, critics, *sgd, Weights()).play(parts)
    for a, b in zip(critics.parameters(), twin_critics.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-12)


@pytest.mark.parametrize("refused", ["critic_pixel", "pixel", "gradient_norm"])
def test_a_refused_step_moves_nobody_that_it_should_not(refused):
    classifier, calibrator, critics = players()
    before = copy.deepcopy(calibrator.state_dict())
    optimizers = [torch.optim.SGD(net.parameters(), 0.1) for net in (calibrator, critics)]
    game = Game(calibrator, lambda x: classifier(x).softmax(1), critics, *optimizers, Weights())
    source, target = images(3, 0), images(3, 1)
    clean = [classifier(x).softmax(1) for x in (source, target)]
    game.play(
        [(Batch(source, target, *clean), draw_patch(12, 12, 4, 0, 0))], lambda parts: refused not in parts
    )
    assert all(torch.equal(before[name], value) for name, value in calibrator.state_dict().items())
    assert all(p.grad is None for p in calibrator.parameters())
    assert all(p.requires_grad for p in critics.parameters())


def test_a_game_needs_a_critic_or_views():
    classifier, calibrator, _ = players()
    sgd = torch.optim.SGD(calibrator.parameters(), 0.1)
    with pytest.raises(ValueError, match=r"there is no critic: .* or weights.views above 0"):
        Game(calibrator, Features(classifier), Critics(None, None), sgd, None, Weights(hold=1.0))


@pytest.mark.parametrize("rounds", [1, 2])
def test_without_critics_the_views_alone_teach(rounds):
    classifier, calibrator, _ = players()
    ours, theirs = calibrator, copy.deepcopy(calibrator)
    source, target = images(3, 0), images(3, 1)
    held, taught = torch.tensor([2, 0, 1]), torch.eye(3, dtype=torch.float64)
    batch = Batch(source, target, None, None, held, taught)
    weights = Weights(pixel=0.0, feature=0.0, views=1.0, hold=2.0)
    sgd = torch.optim.SGD(ours.parameters(), 0.1)
    parts = Game(ours, Features(classifier), Critics(None, None), sgd, None, weights).play(
        rounds * [(batch, None)]
    )
    assert parts.keys() == {"views", "hold", "gradient_norm"}

    named, kept = classifier(theirs(target)), classifier(theirs(source))
    cross_entropy = nn.functional.cross_entropy
    (cross_entropy(named, torch.arange(3)) + 2 * cross_entropy(kept, held)).backward()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(mine, other - 0.1 * other.grad, atol=1e-6)


@pytest.mark.parametrize("kind", ["softmax", "logits", "layer:net.1"])
def test_the_terms_that_name_classes_take_one_pass_and_are_cross_entropies(kind):
    classifier, calibrator, critics = players()
    features = Features(classifier, kind)
    if kind.startswith("layer"):
        critics.feature = FeatureCritic(8, (8, 6), dropout=0.0).double()
    weights = Weights(views=0.7, hold=1.5)
    sgd = [torch.optim.SGD(net.parameters(), 0.0) for net in (calibrator, critics)]
    source, target = images(3, 0), images(4, 1)
    taught = torch.tensor(
        [[0.0, 0.9, 0.1], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.1, 0.0, 0.9]], dtype=torch.float64
    )
    held = torch.tensor([2, 0, 1])
    batch = Batch(source, target, features(source), features(target), held, taught)
    classifier.calls = 0
    parts = Game(calibrator, features, critics, *sgd, weights).play([(batch, draw_patch(12, 12, 4, 0, 0))])
    assert classifier.calls == 1
    with torch.no_grad():
        named, kept = (classifier(calibrator(x)).log_softmax(1) for x in (target, source))
    views = -(named[0, 1] + named[2, 0] + named[3, 2]) / 4
    hold = -(kept[0, 2] + kept[1, 0] + kept[2, 1]) / 3
    assert float(parts["views"]) == pytest.approx(0.7 * float(views), rel=1e-6)
    assert float(parts["hold"]) == pytest.approx(1.5 * float(hold), rel=1e-6)


@pytest.mark.parametrize("term", ["views", "hold"])
def test_a_term_without_what_it_is_measured_against_is_refused(term):
    classifier, calibrator, critics = players()
    sgd = [torch.optim.SGD(net.parameters(), 0.1) for net in (calibrator, critics)]
    clean = [classifier(x).softmax(1) for x in (images(3, 0), images(3, 1))]
    game = Game(calibrator, Features(classifier), critics, *sgd, Weights(**{term: 1.0}))
    with pytest.raises(ValueError, match=f"weights.{term} needs batch"):
        game.play([(Batch(images(3, 0), images(3, 1), *clean), draw_patch(12, 12, 4, 0, 0))])


class Scaled:
    """What a step needs of accelerate under fp16, with torch's scaler on the CPU."""

    def __init__(self, scale):
        self.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        self.autocast = nullcontext

    def backward(self, loss):
        self.scaler.scale(loss).backward()

    def unscale_gradients(self, optimizer):
        self.scaler.unscale_(optimizer.plain)


class Stepped:
    """accelerate's optimizer: its step goes through the scaler."""

    def __init__(self, plain, accelerator):
        self.plain, self.accelerator = plain, accelerator
        self.zero_grad = plain.zero_grad

    def step(self):
        self.accelerator.scaler.step(self.plain)


@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_the_norm_of_the_gradient_does_not_depend_on_a_loss_scale(scale):
    classifier, calibrator, critics = (net.float() for net in players())
    accelerator = Scaled(scale)
    optimizers = [
        Stepped(torch.optim.SGD(net.parameters(), 0.1), accelerator) for net in (calibrator, critics)
    ]
    features = Features(classifier, "softmax")
    game = Game(calibrator, features, critics, *optimizers, Weights(), accelerator)
    source, target = images(4, 1).float(), images(4, 2).float()
    batch = Batch(source, target, features(source), features(target))
    parts = game.play([(batch, draw_patch(12, 12, 4, 0, 0))])
    plain_classifier, plain_calibrator, plain_critics = (net.float() for net in players())
    plain = Game(
        plain_calibrator,
        Features(plain_classifier, "softmax"),
        plain_critics,
        *(torch.optim.SGD(net.parameters(), 0.1) for net in (plain_calibrator, plain_critics)),
        Weights(),
    ).play([(batch, draw_patch(12, 12, 4, 0, 0))])
    assert float(parts["gradient_norm"]) == pytest.approx(float(plain["gradient_norm"]), rel=1e-4)
    for a, b in zip(calibrator.parameters(), plain_calibrator.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
