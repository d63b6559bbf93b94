"""``calib analyse``: the paper's findings on a finished run: ``analysis.json`` and its part of the report.

Corrections of the same target images: none, the calibrator's, a per-image attack on the run's critics (PGD) within the
same bound, random signs of the full bound and random signs of the calibrator's mean size; Fourier amplitudes without
and with the calibrator; the score against epsilon.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from shared_core.run import checkpoint
from shared_core.run.atomic import write_json
from torch import Tensor

from calib import validators
from calib.analyse import attack, log_amplitude, radial_mean, random_sign, random_sign_epsilon
from calib.blackbox import gives_gradient
from calib.calibrator import EPSILON_UNIT
from calib.critics import FeatureCritic, PixelCritic, PixelwiseFeatureCritic, draw_patch
from calib.features import Features
from calib.samples import sample, score, scores_by_epsilon
from calib.step import Critics
from calib.trained import Trained, cell_folders, open_images, open_trained

SHARES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
BATCH = 100


def analyse(run: Path, device: torch.device, images: int | None = None, steps: int = 10) -> dict[str, Any]:
    """Analyse the first adaptation of `run` and write ``run/analysis.json``.

    Args:
        images: of each domain's test set; default as in :func:`calib.samples.sample`.
        steps: of the attack.

    Raises:
        ValueError: an unfinished run, data that do not fit, or numbers that are not above 0.  A target without labels
            that fit is no error: its scores are None, and `unscored` in the analysis says why.
        CheckpointError: the run's last checkpoint, which holds the critics, is gone or broken.
    """
    if (images is not None and images < 1) or steps < 1:
        raise ValueError(f"images={images}, steps={steps}; both must be above 0")
    trained = open_trained(cell_folders(run)[0])
    critics = open_critics(trained).to(device).eval()
    samples, unscored = {}, ""
    for name in ("source", "target"):
        opened, unscored = open_images(trained, name)
        samples[name] = sample(trained, opened, device, images, labelled=not unscored)
    model, target = trained.model.to(device), samples["target"]
    features = model.features(trained.config.feature) if critics.feature is not None else None
    if features is not None and not gives_gradient(
        model.classifier, target.pixels[:2].to(device), model.read
    ):
        # Trained through a surrogate that is not kept: here only the pixel critic, if any, can be attacked.
        features, critics = None, Critics(critics.pixel, None)
    epsilon = model.calibrator.epsilon
    moved_by = float((target.corrected - target.pixels).abs().mean())
    equal = random_sign_epsilon(target.pixels, moved_by)
    generator = torch.Generator().manual_seed(trained.config.seeds[0])

    def attacked(part: Tensor) -> Tensor:
        return attack(part.to(device), features, critics, epsilon, steps, seed=trained.config.seeds[0]).cpu()

    def calibrated(part: Tensor) -> Tensor:
        with torch.no_grad():
            return model.calibrator(part.to(device)).cpu()

    kinds: dict[str, Callable[[Tensor], Tensor]] = {
        "none": lambda part: part,
        "calibrator": calibrated,
        **({f"attack on the critics ({steps} steps)": attacked} if critics.playing else {}),
        "random signs, full bound": lambda part: random_sign(part, epsilon, generator),
        "random signs, calibrator's mean size": lambda part: random_sign(part, equal, generator),
    }
    batch = 5 if trained.segmentation else BATCH
    rows = []
    for name, kind in kinds.items():
        begun = time.perf_counter()
        moved = torch.cat([kind(part) for part in target.pixels.split(batch)])
        seconds = time.perf_counter() - begun
        with torch.no_grad():
            answers = torch.cat([model.ask(part.to(device)).argmax(1).cpu() for part in moved.split(batch)])
        rows.append(
            {
                "name": name,
                "score": score(trained, answers, target.labels) if target.labelled else None,
                "kept": 100 * float((answers == target.before).float().mean()),
                "mean_size": float((moved - target.pixels).abs().mean()),
                "confusion": taken_in(critics, features, moved.split(batch), device),
                "seconds": seconds,
            }
        )
    epsilons = [share * epsilon for share in SHARES]
    analysis = {
        "measure": "mIoU" if trained.segmentation else "accuracy",
        "epsilon": epsilon,
        "epsilon_unit": EPSILON_UNIT,
        "images": len(target.pixels),
        "unscored": unscored,
        "corrections": rows,
        "spectra": {
            "target": _spectrum(target.pixels),
            "target, calibrated": _spectrum(target.corrected),
            "source": _spectrum(samples["source"].pixels),
            "source, calibrated": _spectrum(samples["source"].corrected),
        },
        "by_epsilon": {
            "epsilon": epsilons,
            **{
                name: scores_by_epsilon(trained, shown, epsilons, device)
                for name, shown in samples.items()
                if shown.labelled
            },
        },
    }
    model.verify()
    write_json(run / "analysis.json", analysis)
    return analysis


def open_critics(trained: Trained) -> Critics:
    """The critics of the run's last step; none are playing where the views alone taught.

    Raises:
        CheckpointError: there is no whole checkpoint.
    """
    state = checkpoint.load(trained.folder / "checkpoints").tensors.get("critics", {})
    pixel = PixelCritic(trained.channels, trained.config.patch) if "pixel.net.0.weight" in state else None
    feature = None
    if "feature.net.0.weight" in state:
        first = state["feature.net.0.weight"]
        kind = FeatureCritic if first.dim() == 2 else PixelwiseFeatureCritic
        feature = kind(first.shape[1])
    critics = Critics(pixel, feature)
    critics.load_state_dict(state)
    return critics


@torch.no_grad()
def taken_in(
    critics: Critics, features: Features | None, batches: tuple[Tensor, ...], device: torch.device
) -> float | None:
    """Mean probability, from 0 to 1, that the critics give to the group "source"; None without critics."""
    verdicts = []
    for images in (batch.to(device) for batch in batches):
        if critics.pixel is not None:
            height, width = images.shape[2:]
            draw = draw_patch(height, width, critics.pixel.patch, seed=0, step=0, patches=4)
            verdicts.append(validators.confusion(critics.pixel(images, draw)))
        if critics.feature is not None and features is not None:
            verdict = critics.feature(features(images))
            verdicts.append(
                validators.confusion(verdict.flatten(2).mean(2) if verdict.dim() == 4 else verdict)
            )
    return float(torch.stack(verdicts).mean()) if verdicts else None


def lines(analysis: dict[str, Any]) -> list[str]:
    """The corrections as a small table for the terminal."""
    heading, scores = score_column(analysis)
    rows = [["correction", heading, "mean size", "taken for source"]]
    for row, figure in zip(analysis["corrections"], scores, strict=True):
        rows.append([row["name"], figure, f"{row['mean_size']:.4f}", as_percent(row["confusion"])])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    table = [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    return [*missing(analysis), *table]


def missing(analysis: dict[str, Any]) -> list[str]:
    """A sentence on what needs labels and is left out, if the target has none that fit."""
    if not analysis["unscored"]:
        return []
    return [
        f"No {analysis['measure']} on the target: {analysis['unscored']}. Its score by epsilon is left out, and the "
        "table counts the images that are predicted as without a correction. Sizes, critics and spectra need no labels."
    ]


def score_column(analysis: dict[str, Any]) -> tuple[str, list[str]]:
    """Heading and figures of the corrections' score, or of predictions that stay if there are no labels."""
    name, heading = (
        ("kept", "predicted as without %") if analysis["unscored"] else ("score", f"{analysis['measure']} %")
    )
    return heading, [f"{row[name]:.2f}" for row in analysis["corrections"]]


def as_percent(share: float | None) -> str:
    """Of `taken_in`."""
    return "-" if share is None else f"{100 * share:.0f} %"


def _spectrum(images: Float[Tensor, "n channels height width"]) -> list[float]:
    return radial_mean(log_amplitude(images)).tolist()
