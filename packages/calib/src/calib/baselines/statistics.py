"""Methods that adapt batch norm alone: AdaBN (arXiv 1603.04779) and TENT (arXiv 2006.10726)."""

from collections.abc import Callable
from itertools import count
from typing import Any

import torch
from jaxtyping import Float
from shared_core.ops.divergence import entropy
from shared_core.run.guard import FiniteGuard
from torch import Tensor, nn

from calib.baselines.form import (
    Adapted,
    Labelled,
    NotApplicableError,
    Settings,
    adapted,
    batch_norms,
    batches,
    copied,
    domains,
    pixels,
    reading,
    statistics_mode,
)


def bn_adapt(
    classifier: nn.Module, source: Labelled, target: Tensor, settings: Settings, seed: int
) -> Adapted:
    """AdaBN: means and variances of every batch norm estimated anew on the target, in one shuffled pass.

    A layer's numbers are the average over the batches, each seen with the batch's own statistics below it.
    Reads `batch_size`.  Raises NotApplicableError for a net without batch norm.
    """
    source, target = domains(classifier, source, target, settings)
    net = copied(classifier)
    read = reading(net, source.images, settings)
    statistics_mode(net)
    for norm in batch_norms(net):
        norm.track_running_stats = True
        norm.reset_running_stats()  # pyright: ignore[reportCallIssue]
    hooks = [norm.register_forward_pre_hook(_plain_average()) for norm in batch_norms(net)]
    with torch.no_grad():
        for at in _one_pass(len(target), settings.batch_size, seed):
            net(pixels(target[at], net))
    for hook, norm in zip(hooks, batch_norms(net), strict=True):
        hook.remove()
        norm.momentum = None  # pyright: ignore[reportArgumentType]
    return adapted(net, "buffers", read)


def tent(classifier: nn.Module, source: Labelled, target: Tensor, settings: Settings, seed: int) -> Adapted:
    """TENT: one online pass over the target, Adam on the affine weights of batch norms, loss mean H(p).

    As in the paper the batch norms normalise by the batch at hand, also in `predict`, which therefore needs batches
    of two or more and gives each image an answer that depends on its batch.
    Reads `tent_learning_rate`, `tent_batch_size`.  Raises NotApplicableError for a net without batch norm.
    """
    source, target = domains(classifier, source, target, settings)
    net = copied(classifier)
    read = reading(net, source.images, settings)
    statistics_mode(net).requires_grad_(False)
    norms = batch_norms(net)
    for norm in norms:
        norm.requires_grad_(True)
        norm.track_running_stats = False
        norm.running_mean = norm.running_var = None  # pyright: ignore[reportAttributeAccessIssue]
    weights = [p for norm in norms for p in norm.parameters()]
    if not weights:
        raise NotApplicableError("the batch norms of the classifier have no affine weights for TENT to learn")
    optimizer, guard = (
        torch.optim.Adam(weights, settings.tent_learning_rate),
        FiniteGuard("error", together=False),
    )
    for step, at in enumerate(_one_pass(len(target), settings.tent_batch_size, seed), start=1):
        loss = entropy_loss(read(net(pixels(target[at], net))))
        guard.accepts({"entropy": loss}, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    net.requires_grad_(False)

    @torch.no_grad()
    def predict(images: Tensor) -> Tensor:
        if len(images) < 2:
            raise ValueError("TENT normalises by the batch: predict two images or more at once")
        return read(net(pixels(images, net)))

    return Adapted(predict, "batch-norm weights", net)


def entropy_loss(logits: Float[Tensor, "batch classes"]) -> Float[Tensor, ""]:
    """Mean over the batch of H(p) = -sum_k p_k log p_k, in nats (TENT, section 3.1)."""
    return entropy(logits).mean()


def _plain_average() -> Callable[[nn.Module, Any], None]:
    """The plain average over all batches, for one layer; torch's own (momentum None) waits for the device."""
    batches_so_far = count(1)

    def before(norm: nn.Module, _inputs: Any) -> None:
        norm.momentum = 1 / next(batches_so_far)  # pyright: ignore[reportArgumentType]

    return before


def _one_pass(n: int, batch_size: int, seed: int) -> list[Tensor]:
    order = batches(n, batch_size, seed)
    return [next(order) for _ in range(max(n // batch_size, 1))]
