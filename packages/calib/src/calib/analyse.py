"""The paper's findings as numbers: small corrections suffice, and the calibrator is an attack on the critics.

>>> accuracy_by_epsilon(model, images, labels, [0, 0.05, 0.1, 0.2])                        # its Figure 8
>>> attacked = attack(images, Features(classifier), critics, epsilon=0.2)                  # per image, no calibrator
>>> control = random_sign(images, epsilon=0.2, generator=generator)                        # size without direction
>>> random_sign_epsilon(images, mean_size=0.1)                                             # of another such control
>>> radial_mean(log_amplitude(corrected)) - radial_mean(log_amplitude(images))             # by frequency

`epsilon` is a share of the value range everywhere, as in :class:`calib.Calibrator`.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from shared_core.ops.bounded import project
from shared_core.ops.inputs import INTEGERS, check_images, check_tensor
from torch import Tensor, nn

from calib.attachment import CalibratedClassifier
from calib.calibrator import ValueRange
from calib.critics import draw_patch
from calib.losses import SOURCE
from calib.step import Critics

BATCH = 200


@torch.no_grad()
def accuracy_by_epsilon(
    model: CalibratedClassifier,
    images: Float[Tensor, "batch channels height width"],
    labels: Int[Tensor, "batch ..."],
    epsilons: Sequence[float],
) -> list[float]:
    """Accuracy in percent, the calibrator's correction clamped to each epsilon; 0 is the classifier alone.

    Raises:
        ValueError: an epsilon below 0 or above the calibrator's own.
    """
    check_images("images", images)
    check_tensor("labels", labels, "batch ...", "one label per image", INTEGERS, batch=len(images))
    calibrator = model.calibrator
    for epsilon in epsilons:
        if not 0 <= epsilon <= calibrator.epsilon:
            raise ValueError(
                f"epsilon {epsilon} is not from 0 to the calibrator's own {calibrator.epsilon}: a correction can be "
                "cut back, but not enlarged"
            )
    right = [0] * len(epsilons)
    modes = (calibrator.training, model.classifier.training)
    model.eval()
    for part, wanted in zip(images.split(BATCH), labels.split(BATCH), strict=True):
        low, high = calibrator.low.to(part.device), calibrator.high.to(part.device)
        moved = part + calibrator.correction(part)
        for i, epsilon in enumerate(epsilons):
            within = project(moved, part, epsilon * (high - low), low, high) if epsilon else part
            right[i] += int((model.ask(within).argmax(1) == wanted).sum())
    calibrator.train(modes[0])
    model.classifier.train(modes[1])
    return [100 * count / labels.numel() for count in right]


def attack(
    images: Float[Tensor, "batch channels height width"],
    features: Callable[[Tensor], Tensor] | None,
    critics: Critics,
    epsilon: float,
    steps: int = 10,
    step_size: float | None = None,
    value_range: ValueRange = (0.0, 1.0),
    patches: int = 4,
    seed: int = 0,
) -> Float[Tensor, "batch channels height width"]:
    """The images moved, each for itself, until the critics take them for source (PGD, Madry et al. 2018).

        x <- project(x - step_size * sign(gradient of [CE(D_feature(F(x)), source) + CE(D_pixel(x), source)]))

    What the calibrator learns to do in one pass (the paper's reading of it, arXiv 1911.12796, section 5).

    Args:
        features: the classifier's features with gradient, see :class:`calib.features.Features`; None without
            a feature critic.
        step_size: a share of the value range; default 2.5 * epsilon / steps, so that the border can be reached.
        patches: patches that the pixel critic judges at a step, drawn anew from (seed, step).

    Raises:
        ValueError: a feature critic without features, or an epsilon or step size that is not above 0.
    """
    check_images("images", images)
    step_size = 2.5 * epsilon / max(steps, 1) if step_size is None else step_size
    if epsilon <= 0 or step_size <= 0 or steps < 1:
        raise ValueError(f"epsilon={epsilon}, step_size={step_size}, steps={steps}; all must be above 0")
    if critics.feature is not None and features is None:
        raise ValueError("there is a feature critic: give the classifier's features")
    low, high = _box(images, value_range)
    training = {name: module.training for name, module in critics.named_modules()}
    critics.eval()
    moved = images.detach()
    for step in range(steps):
        watched = moved.clone().requires_grad_(True)
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(
                _distance(watched, features, critics, patches, seed, step), watched
            )
        moved = project(
            moved - step_size * (high - low) * gradient.sign(), images, epsilon * (high - low), low, high
        )
    for name, module in critics.named_modules():
        module.training = training[name]
    return moved.detach()


def random_sign(
    images: Float[Tensor, "batch channels height width"],
    epsilon: float,
    generator: torch.Generator,
    value_range: ValueRange = (0.0, 1.0),
) -> Float[Tensor, "batch channels height width"]:
    """The control of the same size: every value moved by +epsilon or -epsilon, by a coin, then cut to the range."""
    check_images("images", images)
    low, high = _box(images, value_range)
    coins = torch.randint(2, images.shape, generator=generator, device=generator.device)
    sign = (2 * coins - 1).to(images)
    return torch.maximum(torch.minimum(images + epsilon * (high - low) * sign, high), low)


def random_sign_epsilon(
    images: Float[Tensor, "batch channels height width"],
    mean_size: float,
    value_range: ValueRange = (0.0, 1.0),
) -> float:
    """The epsilon at which :func:`random_sign` moves these images by `mean_size` on average, in their own unit.

    Larger than `mean_size`, since black pixels cannot get darker nor white ones brighter; 1 if no epsilon suffices.
    """
    check_images("images", images)
    low, high = _box(images, value_range)
    room = torch.stack([high - images, images - low])
    least, most = 0.0, 1.0
    for _ in range(30):
        middle = (least + most) / 2
        found = float(torch.minimum(room, middle * (high - low)).mean())
        least, most = (middle, most) if found < mean_size else (least, middle)
    return most


def log_amplitude(images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "height width"]:
    """Mean over images and channels of ln(|discrete Fourier transform| + 1e-8), frequency 0 in the middle.

    Not normalised by the image's size: it counts from ln of the sum of all values.
    """
    check_images("images", images)
    amplitude = torch.fft.fft2(images.float()).abs()
    return torch.fft.fftshift((amplitude + 1e-8).log().mean((0, 1)))


def radial_mean(spectrum: Float[Tensor, "height width"]) -> Float[Tensor, " rings"]:
    """Means over rings of equal frequency, from 0 to 1/2 cycle per pixel, min(height, width) // 2 + 1 of them.

    The corners, beyond 1/2 cycle per pixel, are left out.
    """
    check_tensor("spectrum", spectrum, "height width")
    down, across = (torch.fft.fftshift(torch.fft.fftfreq(size)).to(spectrum) for size in spectrum.shape)
    last = min(spectrum.shape) // 2
    # In float64 and by halves upward, so that a frequency between two rings does not depend on rounding.
    radius = (down[:, None].double() ** 2 + across[None].double() ** 2).sqrt()
    ring = (2 * last * radius + 0.5 + 1e-6).floor().long().flatten()
    inside = ring <= last
    total = spectrum.new_zeros(last + 1).index_add(0, ring[inside], spectrum.flatten()[inside])
    return total / torch.bincount(ring[inside], minlength=last + 1)


def _distance(
    images: Tensor,
    features: Callable[[Tensor], Tensor] | None,
    critics: Critics,
    patches: int,
    seed: int,
    step: int,
) -> Tensor:
    verdicts = []
    if critics.feature is not None and features is not None:
        verdicts.append(critics.feature(features(images)))
    if critics.pixel is not None:
        height, width = images.shape[2:]
        draw = draw_patch(height, width, critics.pixel.patch, seed, step, patches)
        verdicts.append(critics.pixel(images, draw))
    return torch.stack([_cross_entropy(verdict) for verdict in verdicts]).sum()


def _cross_entropy(verdict: Tensor) -> Tensor:
    wanted = torch.full((len(verdict), *verdict.shape[2:]), SOURCE, device=verdict.device)
    return nn.functional.cross_entropy(verdict.float(), wanted)


def _box(images: Tensor, value_range: ValueRange) -> tuple[Tensor, Tensor]:
    low, high = (torch.as_tensor(end, dtype=images.dtype).reshape(-1, 1, 1).to(images) for end in value_range)
    return low, high
