"""Classifiers that give answers but no gradient: int8 engines, ONNX files, a vendor's service.

Two ways.  With pixels only, `calib.adapt(model, ..., weights=Weights(feature=0.0))`, no gradient is needed.  Or a
student learns the black box's answers on both domains, the calibrator is trained in front of the student, and is
then put in front of the real one, which alone says what was gained:

>>> surrogate = distil_surrogate(black_box, source_images, target_images, dtn(10, 3), steps=1000).net
>>> report = calib.adapt(calib.attach(surrogate, calibrator), source, target)
>>> model = calib.attach(black_box, calibrator)
"""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from shared_core.ops.divergence import soft_cross_entropy
from shared_core.ops.freeze import freeze
from shared_core.ops.inputs import check_images, copy_for
from shared_core.ops.outputs import Which
from torch import Tensor, nn

from calib.answers import Reading, as_logits, decide, pick, settled

QUERY_BATCH = 200


class Surrogate(NamedTuple):
    """The student, frozen, and how often it names the black box's class, in percent.

    The agreement is that of images kept out of the training.
    """

    net: nn.Module
    agreement_source: float
    agreement_target: float


def distil_surrogate(
    predict: Callable[[Tensor], Any],
    source_images: Float[Tensor, "sources channels height width"],
    target_images: Float[Tensor, "targets channels height width"],
    net: nn.Module,
    steps: int = 1000,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    held_out: float = 0.1,
    seed: int = 0,
    output: Which = None,
    outputs: str = "auto",
) -> Surrogate:
    """Train `net` on the black box's probabilities by soft cross-entropy, half of each batch from each domain.

    Every image is asked for once.  The student is only as good as its answers near the images, so ask again with
    calibrated images as the target where its calibrator helps the student more than the black box.

    Args:
        predict: images to (batch, classes), or to one column for two classes; of a dict or tuple `output` says which
            part, see :func:`calib.attach`.
        net: the student; of several parts of its answer the obvious one is taken.
        outputs: what that is, "logits", "probabilities", or "auto": decided once, on all answers.
        held_out: share of each domain that only measures the agreement, in (0, 1).

    Raises:
        ValueError: fewer than two images of a domain, answers that are no finite logits, a student with another
            number of classes, or numbers outside of what is named above.
    """
    if not isinstance(net, nn.Module):
        raise TypeError(f"net is a {type(net).__name__}; give the student as an nn.Module")
    if steps < 1 or batch_size < 2 or not 0 < held_out < 1:
        raise ValueError(
            f"steps={steps}, batch_size={batch_size}, held_out={held_out}; give 1 or more, 2 or more, and a share "
            "between 0 and 1"
        )
    generator = torch.Generator().manual_seed(seed)
    given = {"source": source_images, "target": target_images}
    answers = {name: _answers(predict, name, images, output) for name, images in given.items()}
    outputs = decide(torch.cat([found.reshape(len(found), -1) for found in answers.values()]), outputs)
    domains = [
        _split(images, as_logits(answers[name], outputs), held_out, generator)
        for name, images in given.items()
    ]
    device = next((p.device for p in net.parameters()), torch.device("cpu"))
    optimizer = torch.optim.Adam(net.parameters(), learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    read = Reading(None, settled(net.eval(), source_images[:QUERY_BATCH].to(device)))
    net.train()
    for _ in range(steps):
        losses = []
        for domain in domains:
            # Drawn with replacement: a domain may be smaller than a batch.
            places = domain.taught[torch.randint(len(domain.taught), (batch_size // 2,), generator=generator)]
            logits = read.training(net(domain.images[places].to(device)))
            wanted = domain.answers[places].to(device)
            if logits.shape != wanted.shape:
                raise ValueError(
                    f"the student answers with shape {tuple(logits.shape)}, the black box with {tuple(wanted.shape)}: "
                    "build it with the same number of classes"
                )
            losses.append(soft_cross_entropy(logits, wanted.softmax(1)).mean())
        optimizer.zero_grad()
        torch.stack(losses).mean().backward()
        optimizer.step()
        schedule.step()
    freeze(net)
    return Surrogate(net, *(_agreement(lambda x: read(net(x)), domain, device) for domain in domains))


def gives_gradient(
    classifier: nn.Module,
    example: Float[Tensor, "batch channels height width"],
    read: Callable[[Any], Tensor] = pick,
) -> bool:
    """Whether a gradient reaches `example` through the classifier: False for int8, ONNX, or under `no_grad`.

    It is computed, because some int8 layers announce a gradient that they do not have.  The classifier runs in the
    mode that it is in: eval mode keeps its buffers as they are.
    """
    check_images("example", example)
    watched = example.detach().clone().requires_grad_(True)
    try:
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*autograd kernel was not registered")
            # A copy: it may normalise in place.
            answer = read(classifier(copy_for(classifier, watched)))
            if not answer.requires_grad:
                return False
            # Each output weighs differently, or the gradient of probabilities, which sum to 1, would vanish.
            weights = torch.linspace(1, 2, answer.numel(), device=answer.device).reshape(answer.shape)
            gradient = _gradient((answer * weights).sum(), watched, classifier)
    except RuntimeError as error:
        if "derivative" in str(error) or "does not require grad" in str(error):
            return False
        raise
    return gradient is not None and bool((gradient != 0).any())


def _gradient(total: Tensor, watched: Tensor, classifier: nn.Module) -> Tensor | None:
    # By backward(): reentrant activation checkpoints refuse autograd.grad.  The weights' gradients stay what they are.
    kept = [(p, p.grad) for p in classifier.parameters()]
    for parameter, _ in kept:
        parameter.grad = None
    total.backward()
    for parameter, gradient in kept:
        parameter.grad = gradient
    return watched.grad


class _Asked(NamedTuple):
    images: Tensor
    answers: Tensor
    taught: Tensor
    kept_out: Tensor


def _answers(predict: Callable[[Tensor], Any], name: str, images: Tensor, output: Which) -> Tensor:
    check_images(f"{name}_images", images)
    if len(images) < 2:
        raise ValueError(
            f"the {name} domain has {len(images)} images; two are needed, one to teach, one to measure"
        )
    with torch.no_grad():
        parts = [pick(predict(part.clone()), output).detach().cpu() for part in images.split(QUERY_BATCH)]
    answers = torch.cat([part.float() if part.is_floating_point() else part for part in parts])
    if answers.dim() not in (1, 2) or len(answers) != len(images) or not bool(answers.isfinite().all()):
        finite = "" if bool(answers.isfinite().all()) else " and values that are not finite"
        raise ValueError(
            f"the black box answers {len(images)} {name} images with shape {tuple(answers.shape)}{finite}; logits are "
            "(images, classes)"
        )
    return answers


def _split(images: Tensor, answers: Tensor, held_out: float, generator: torch.Generator) -> _Asked:
    order = torch.randperm(len(images), generator=generator)
    count = min(max(round(held_out * len(images)), 1), len(images) - 1)
    return _Asked(images, answers, order[count:], order[:count])


@torch.no_grad()
def _agreement(student: Callable[[Tensor], Tensor], domain: _Asked, device: torch.device) -> float:
    named = torch.cat(
        [
            student(domain.images[part].to(device)).argmax(1).cpu()
            for part in domain.kept_out.split(QUERY_BATCH)
        ]
    )
    return 100 * float((named == domain.answers[domain.kept_out].argmax(1)).float().mean())
