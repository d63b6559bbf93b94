"""Controls that leave the classifier as it is, and the bound that has the target's labels.

>>> before = source_only(classifier, source, target, Settings(), seed=0)
>>> before.predict(images).argmax(1)
"""

import torch
from shared_core.ops.bounded import project
from shared_core.ops.host import read_back
from shared_core.ops.inputs import ANY, check_images
from shared_core.run.guard import FiniteGuard
from torch import Tensor, nn
from torch.nn import functional

from calib.baselines.form import (
    Adapted,
    Labelled,
    Settings,
    adapted,
    batches,
    copied,
    domains,
    pixels,
    reading,
    seeded,
)
from calib.neighbours import Neighbours, agree, nearest, upright
from calib.views import Teacher, Views, view_draws


def source_only(
    classifier: nn.Module, source: Labelled, target: Tensor, settings: Settings, seed: int
) -> Adapted:
    """The classifier as it is: the floor."""
    source, target = domains(classifier, source, target, settings)
    net = copied(classifier)
    return adapted(net, "nothing", reading(net, source.images, settings))


def moment_matching(
    classifier: nn.Module, source: Labelled, target: Tensor, settings: Settings, seed: int
) -> Adapted:
    """x' = (x - mu_t) sigma_s / sigma_t + mu_s per channel, clipped to [0, 1]; no learning.

    Means and deviations are of all pixels of a domain.  Every image goes through the same map, of whichever domain
    it is.  A channel without deviation in the target is only shifted.
    """
    source, target = domains(classifier, source, target, settings)
    source_mean, source_std = channel_moments(source.images)
    target_mean, target_std = channel_moments(target)
    scale = torch.where(target_std > 0, source_std / target_std.clamp(min=1e-12), torch.ones_like(target_std))
    net = copied(classifier)
    answer = adapted(net, "nothing", reading(net, source.images, settings)).predict

    def predict(images: Tensor) -> Tensor:
        x = pixels(images, net)
        mu_s, mu_t, s = (v.to(x)[:, None, None] for v in (source_mean, target_mean, scale))
        return answer(((x - mu_t) * s + mu_s).clamp(0, 1))

    return Adapted(predict, "nothing", net)


def random_correction(
    classifier: nn.Module, source: Labelled, target: Tensor, settings: Settings, seed: int
) -> Adapted:
    """x' = clip(x + epsilon * sign(n)), n ~ N(0, 1) per pixel: a calibrator's correction without its sense.

    Reads `epsilon`.  The signs are a function of `seed` and an image's place in its batch.
    """
    source, target = domains(classifier, source, target, settings)
    net = copied(classifier)
    answer = adapted(net, "nothing", reading(net, source.images, settings)).predict

    def predict(images: Tensor) -> Tensor:
        x = pixels(images, net)
        generator = torch.Generator().manual_seed(seed)
        # Drawn on the CPU: the same on every device.
        sign = torch.randint(2, x.shape, generator=generator).to(x) * 2 - 1
        return answer(project(x + settings.epsilon * sign, x, settings.epsilon, 0.0, 1.0))

    return Adapted(predict, "nothing", net)


def surest_view(
    classifier: nn.Module, source: Labelled, target: Tensor, settings: Settings, seed: int
) -> Adapted:
    """The surest answers to 8 views of each image: the calibrator's teacher (:mod:`calib.views`) without a calibrator.

    Zooms are weighed on 500 target images; every test image costs 8 passes of the classifier.  Reads no setting.
    """
    source, target = domains(classifier, source, target, settings)
    net = copied(classifier)
    answer = adapted(net, "nothing", reading(net, source.images, settings)).predict
    teacher = Teacher(lambda images: answer(images).softmax(1), Views(count=8, threshold=0.0))
    order = torch.randperm(len(target), generator=torch.Generator().manual_seed(seed))
    teacher.weigh_zooms(pixels(target[order[:500]], net))

    def predict(images: Tensor) -> Tensor:
        draws = view_draws(seed, 0, range(len(images)), teacher.views.count)
        taught = teacher.teach(pixels(images, net), draws)
        return taught.clamp_min(1e-12).log()

    return Adapted(predict, "nothing", net)


def neighbours(
    classifier: nn.Module, source: Labelled, target: Tensor, settings: Settings, seed: int
) -> Adapted:
    """What an image's views and its neighbours among the target images say: the other teacher, without a calibrator.

    The answers to 4 views of every target image are agreed on once (:mod:`calib.neighbours`).  A test image is named by
    its own views and by the mean of its neighbours, weighed as in the agreement: target images are needed at test time,
    and 4 passes of the classifier.  Reads no setting.
    """
    source, target = domains(classifier, source, target, settings)
    net, how = copied(classifier), Neighbours(count=10)
    answer = adapted(net, "nothing", reading(net, source.images, settings)).predict
    teacher = Teacher(lambda images: answer(images).softmax(1), Views(threshold=0.0))
    order = torch.randperm(len(target), generator=torch.Generator().manual_seed(seed))[: how.images]
    teacher.weigh_zooms(pixels(target[order[:500]], net))

    def views_say(images: Tensor, turn: int) -> Tensor:
        return teacher.teach(images, view_draws(seed, turn, range(len(images)), teacher.views.count))

    parts = [pixels(part, net) for part in target[order].split(500)]
    features = torch.cat([upright(part) for part in parts])
    say = (views_say(part, turn) for turn, part in enumerate(parts, 1))
    answers = torch.cat([read_back(said, "what do the views say of all images?") for said in say])
    agreed = agree(answers, nearest(features, how.count), how)

    def predict(images: Tensor) -> Tensor:
        x = pixels(images, net)
        around = agreed[nearest(features, how.count, upright(x))].mean(1).to(x)
        return ((1 - how.restart) * around + how.restart * views_say(x, 0)).clamp_min(1e-12).log()

    return Adapted(predict, "nothing", net)


def target_supervised(classifier: nn.Module, target: Labelled, settings: Settings, seed: int) -> Adapted:
    """The bound: a copy of the classifier trained on with the target's labels (Adam, cross-entropy).

    Reads `steps`, `batch_size`, `learning_rate`.
    """
    target, _ = domains(classifier, target, None, settings)
    with seeded(seed):
        net = copied(classifier)
        read = reading(net, target.images, settings)
        net.train()
        optimizer = torch.optim.Adam(net.parameters(), settings.learning_rate)
        order, guard = (
            batches(len(target.images), settings.batch_size, seed),
            FiniteGuard("error", together=False),
        )
        for step in range(1, settings.steps + 1):
            at = next(order)
            logits = read.training(net(pixels(target.images[at], net)))
            loss = functional.cross_entropy(logits, target.labels[at].to(logits.device))
            guard.accepts({"cross_entropy": loss}, step)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return adapted(net, "new model", read)


def channel_moments(images: Tensor, batch_size: int = 1000) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (float32 [c], over all pixels, population) of images as in `Labelled`."""
    check_images("images", images, numbers=ANY)
    total = torch.zeros(2, images.shape[1], dtype=torch.float64)
    for part in images.split(batch_size):
        # In double precision, or the difference of squares below would cancel.
        x = read_back(part, "the moments of a domain").double() / (255 if part.dtype == torch.uint8 else 1)
        total += torch.stack([x.sum((0, 2, 3)), x.square().sum((0, 2, 3))])
    mean, square = total / (images.numel() / images.shape[1])
    return mean.float(), (square - mean.square()).clamp(min=0).sqrt().float()
