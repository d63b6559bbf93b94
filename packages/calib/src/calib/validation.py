"""What a calibrator is worth on a sample of both domains, by every validator: :mod:`calib.validators` at work.

>>> found = measure(model, calibrator, critics, features, [source_sample, target_sample], device, patch=4, seed=0)
>>> found["information"], found["source_kept"]
"""

import torch
from shared_core.ops.gather import in_turn, once
from shared_core.ops.host import at_once, read_back
from torch import Tensor, nn

from calib import validators
from calib.attachment import CalibratedClassifier
from calib.critics import draw_patch
from calib.domains import Images
from calib.features import Features
from calib.step import Critics

ANSWERS = "answers to the validation sample"
VALIDATION_BATCH = 200
BATCH_NUMBERS = 2**24
"""A batch has fewer images where these would be more numbers: a segmenter's scores of 200 photographs are gigabytes."""


@torch.no_grad()
def measure(
    model: CalibratedClassifier,
    calibrator: nn.Module,
    critics: Critics,
    features: Features | None,
    samples: list[Images],
    device: torch.device,
    patch: int,
    seed: int,
    oracle: bool = False,
) -> dict[str, float]:
    """The validators of `calibrator` on both samples; `oracle` adds target accuracy, which looks at its labels.

    "neighbourhood" is left out below three target images, "confusion" where there is no critic.  Of several processes
    each asks about batches in turn, and the first one does the rest: every process must call it, with the same samples.
    """
    modes = [(net, net.training) for net in (calibrator, critics, model.classifier)]
    for net, _ in modes:
        net.eval()
    source, target = samples

    def answers(images: Tensor, change: nn.Module) -> Tensor:
        parts = images.split(max(1, min(VALIDATION_BATCH, BATCH_NUMBERS // images[0].numel())))

        @torch.no_grad()
        def answer(number: int) -> Tensor:
            return read_back(_rows(model.ask(change(parts[number].to(device))).float()), ANSWERS)

        return torch.cat(list(in_turn(len(parts), answer)))

    logits, spared = answers(target.pixels, calibrator), answers(source.pixels, calibrator)
    labels = source.labels
    reference = answers(source.pixels, nn.Identity()).argmax(1) if labels is None else _rows(labels)

    @torch.no_grad()
    def validated() -> dict[str, float]:
        found = {
            "information": validators.information(logits),
            "entropy": validators.entropy(logits),
            "source_kept": validators.source_kept(spared, reference),
        }
        # One or two images have no neighbourhoods; only a run that selects by them minds.
        if len(logits) >= 3:
            found["neighbourhood"] = validators.neighbourhood(logits[:2000])
        # How often the critics are taken in, over the sample's first images.
        moved = calibrator(target.pixels[:VALIDATION_BATCH].to(device))
        verdicts = []
        if critics.pixel is not None:
            height, width = moved.shape[2:]
            draw = draw_patch(height, width, critics.pixel.patch, seed, 0, patches=4)
            verdicts.append(critics.pixel(moved, draw))
        if critics.feature is not None and features is not None:
            verdict = critics.feature(features(moved))
            verdicts.append(verdict.flatten(2).mean(2) if verdict.dim() == 4 else verdict)
        if verdicts:
            found["confusion"] = torch.stack([validators.confusion(verdict) for verdict in verdicts]).mean()
        if oracle:
            assert target.labels is not None
            found["oracle"] = validators.source_kept(logits, _rows(target.labels))
        return {name: float(value) for name, value in at_once(found, "validators").items()}

    values = once(validated)
    for net, training in modes:
        net.train(training)
    return values


def _rows(values: Tensor) -> Tensor:
    """Logits and labels as they are; of maps every fourth pixel of every fourth row, a row each."""
    if values.dim() == 4:
        return values[:, :, ::4, ::4].permute(0, 2, 3, 1).flatten(0, 2)
    return values[:, ::4, ::4].flatten() if values.dim() == 3 else values
