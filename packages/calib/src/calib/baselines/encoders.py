"""Methods that train a new encoder under the old, frozen head: ADDA (arXiv 1702.05464), SHOT-IM (arXiv 2002.08546)."""

import torch
from jaxtyping import Float
from shared_core.ops.divergence import entropy
from shared_core.ops.inputs import check_tensor
from shared_core.run.guard import FiniteGuard
from torch import Tensor, nn
from torch.nn import functional

from calib.baselines.alignment import domain_critic, domain_loss
from calib.baselines.form import (
    Adapted,
    FeatureNet,
    Labelled,
    Settings,
    adapted,
    batches,
    domains,
    pixels,
    seeded,
    statistics_mode,
)


def adda(classifier: nn.Module, source: Labelled, target: Tensor, settings: Settings, seed: int) -> Adapted:
    """A critic D tells M_s(x_s) from M_t(x_t); the target's encoder M_t, begun at M_s, learns to pass for source.

        max_D  log D(M_s(x_s)) + log(1 - D(M_t(x_t)))        min_{M_t}  -log D(M_t(x_t))

    Adam with beta_1 0.5, as usual for adversaries.  Reads `steps`, `batch_size`, `learning_rate`, `domain_hidden`.
    """
    source, target = domains(classifier, source, target, settings)
    with seeded(seed):
        theirs = FeatureNet(classifier, source.images, settings).requires_grad_(False)
        theirs.eval()
        ours = FeatureNet(classifier, source.images, settings)
        statistics_mode(ours)
        ours.head.requires_grad_(False)
        critic = domain_critic(ours.width, settings.domain_hidden).to(next(ours.parameters()))
        learning = [p for p in ours.parameters() if p.requires_grad]
        encoder_optimizer = torch.optim.Adam(learning, settings.learning_rate, betas=(0.5, 0.999))
        critic_optimizer = torch.optim.Adam(critic.parameters(), settings.learning_rate, betas=(0.5, 0.999))
        source_order = batches(len(source.images), settings.batch_size, seed)
        target_order = batches(len(target), settings.batch_size, seed + 1)
        guard = FiniteGuard("error", together=False)
        for step in range(1, settings.steps + 1):
            _, source_features = theirs(pixels(source.images[next(source_order)], theirs))
            _, target_features = ours(pixels(target[next(target_order)], ours))

            critic_loss = domain_loss(critic(source_features), critic(target_features.detach()))
            critic_optimizer.zero_grad()
            critic_loss.backward()
            critic_optimizer.step()

            encoder_loss = functional.softplus(-critic(target_features)).mean()
            # Both at once: every look makes the CPU wait for the device.
            guard.accepts({"critic": critic_loss, "encoder": encoder_loss}, step)
            encoder_optimizer.zero_grad()
            encoder_loss.backward()
            encoder_optimizer.step()
    return adapted(ours, "new model")


def shot_im(
    classifier: nn.Module, source: Labelled, target: Tensor, settings: Settings, seed: int
) -> Adapted:
    """Encoder trained on target images alone to be sure of each and diverse over all; the head stays.

    Adam.  Reads `steps`, `batch_size`, `learning_rate`.
    """
    source, target = domains(classifier, source, target, settings)
    with seeded(seed):
        net = FeatureNet(classifier, source.images, settings)
        statistics_mode(net)
        net.head.requires_grad_(False)
        learning = [p for p in net.parameters() if p.requires_grad]
        optimizer, guard = (
            torch.optim.Adam(learning, settings.learning_rate),
            FiniteGuard("error", together=False),
        )
        order = batches(len(target), settings.batch_size, seed)
        for step in range(1, settings.steps + 1):
            logits, _ = net(pixels(target[next(order)], net))
            loss = information_maximisation(logits)
            guard.accepts({"information": loss}, step)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return adapted(net, "new model")


def information_maximisation(logits: Float[Tensor, "batch classes"]) -> Float[Tensor, ""]:
    """mean H(p) - H(mean p), in nats, from -log(classes) to 0 (SHOT, equations 3 and 4)."""
    check_tensor("logits", logits, "batch classes")
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    mean = wide.softmax(1).mean(0)
    return entropy(wide).mean() - torch.special.entr(mean).sum()
