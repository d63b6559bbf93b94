"""Methods that train a copy on, with source labels, while features of both domains are aligned.

Deep CORAL (arXiv 1607.01719) matches covariances; DANN (arXiv 1505.07818) plays against a domain critic by
gradient reversal.  Both start at the given classifier, not at random weights as the papers do, and use Adam.
"""

import math
from typing import Any

import torch
from jaxtyping import Float
from shared_core.ops.inputs import check_tensor
from shared_core.run.guard import FiniteGuard
from torch import Tensor, nn
from torch.nn import functional

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
)


def deep_coral(
    classifier: nn.Module, source: Labelled, target: Tensor, settings: Settings, seed: int
) -> Adapted:
    """min CE(F(x_s), y_s) + w * coral(f_s, f_t) on the features.

    Reads `steps`, `batch_size`, `learning_rate`, `coral_weight`.
    """
    source, target = domains(classifier, source, target, settings)
    with seeded(seed):
        net = FeatureNet(classifier, source.images, settings).train()
        optimizer = torch.optim.Adam(net.parameters(), settings.learning_rate)
        source_order = batches(len(source.images), settings.batch_size, seed)
        target_order = batches(len(target), settings.batch_size, seed + 1)
        guard = FiniteGuard("error", together=False)
        for step in range(1, settings.steps + 1):
            at, images = next(source_order), target[next(target_order)]
            (logits, source_features), (_, target_features) = (
                net(pixels(x, net)) for x in (source.images[at], images)
            )
            parts = {
                "cross_entropy": functional.cross_entropy(logits, source.labels[at].to(logits.device)),
                "coral": settings.coral_weight * coral(source_features, target_features),
            }
            guard.accepts(parts, step)
            optimizer.zero_grad()
            torch.stack(list(parts.values())).sum().backward()
            optimizer.step()
    return adapted(net, "new model")


def dann(classifier: nn.Module, source: Labelled, target: Tensor, settings: Settings, seed: int) -> Adapted:
    """min_F max_D CE(F(x_s), y_s) - w * domain_loss(D(f_s), D(f_t)), by gradient reversal.

    The reversed gradient is scaled by lambda_p = 2 / (1 + exp(-10 p)) - 1, p the progress from 0 to 1.
    Reads `steps`, `batch_size`, `learning_rate`, `domain_weight`, `domain_hidden`.
    """
    source, target = domains(classifier, source, target, settings)
    with seeded(seed):
        net = FeatureNet(classifier, source.images, settings).train()
        critic = domain_critic(net.width, settings.domain_hidden).to(next(net.parameters()))
        optimizer = torch.optim.Adam([*net.parameters(), *critic.parameters()], settings.learning_rate)
        source_order = batches(len(source.images), settings.batch_size, seed)
        target_order = batches(len(target), settings.batch_size, seed + 1)
        guard = FiniteGuard("error", together=False)
        for step in range(1, settings.steps + 1):
            at, images = next(source_order), target[next(target_order)]
            (logits, source_features), (_, target_features) = (
                net(pixels(x, net)) for x in (source.images[at], images)
            )
            scale = reversal_schedule((step - 1) / settings.steps)
            verdicts = [critic(reverse_gradient(f, scale)) for f in (source_features, target_features)]
            parts = {
                "cross_entropy": functional.cross_entropy(logits, source.labels[at].to(logits.device)),
                "domain": settings.domain_weight * domain_loss(*verdicts),
            }
            guard.accepts(parts, step)
            optimizer.zero_grad()
            torch.stack(list(parts.values())).sum().backward()
            optimizer.step()
    return adapted(net, "new model")


def coral(source: Float[Tensor, "n features"], target: Float[Tensor, "m features"]) -> Float[Tensor, ""]:
    """|C_s - C_t|_F^2 / (4 d^2), C the unbiased covariance over the batch (Deep CORAL, equations 1 to 3).

    Computed in float32 at least.  Raises ValueError for fewer than 2 rows.
    """
    check_tensor("source", source, "n features")
    check_tensor("target", target, "m features", features=source.shape[1])
    if min(len(source), len(target)) < 2:
        raise ValueError(f"there are {len(source)} and {len(target)} rows; a covariance needs 2 or more")
    gap = _covariance(source) - _covariance(target)
    return gap.square().sum() / (4 * source.shape[1] ** 2)


def domain_loss(source: Float[Tensor, "n 1"], target: Float[Tensor, "m 1"]) -> Float[Tensor, ""]:
    """Mean of the two groups' binary cross-entropies, source 1 and target 0, from logits, in nats."""
    check_tensor("source", source, "n 1")
    check_tensor("target", target, "m 1")
    return (functional.softplus(-_wide(source)).mean() + functional.softplus(_wide(target)).mean()) / 2


def reverse_gradient(x: Float[Tensor, "*shape"], scale: float) -> Float[Tensor, "*shape"]:
    """x forward, -scale times the gradient backward (DANN, section 4.2)."""
    check_tensor("x", x, "...")
    return _Reversal.apply(x, scale)  # pyright: ignore[reportReturnType]


def reversal_schedule(progress: float) -> float:
    """2 / (1 + exp(-10 p)) - 1: from 0 at the start to almost 1 (DANN, section 5.2.2)."""
    return 2 / (1 + math.exp(-10 * progress)) - 1


def domain_critic(features: int, hidden: int) -> nn.Sequential:
    """Two hidden layers with ReLU and one logit: source or target."""
    return nn.Sequential(
        nn.Linear(features, hidden),
        nn.ReLU(True),
        nn.Linear(hidden, hidden),
        nn.ReLU(True),
        nn.Linear(hidden, 1),
    )


class _Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return -ctx.scale * gradients[0], None


def _covariance(features: Tensor) -> Tensor:
    centred = _wide(features) - _wide(features).mean(0)
    return centred.T @ centred / (len(features) - 1)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
