"""The part of a report about the test images: classes, confusion, calibration, noise, samples, exits."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from markupsafe import Markup
from shared_core.run.report import figure, heading, images, table, text
from torch import Tensor
from torch.utils.data import Dataset

from corsd import figures
from corsd.early import accuracy_against_compute, exit_accuracy, exit_flops, exit_logits
from corsd.evaluate import predictions
from corsd.summary import NAMES
from corsd.trained import Trained, open_exits, open_trained

Cells = list[tuple[dict[str, Any], Path]]


def test_images(
    cells: Cells,
    trained: Trained,
    test: Dataset,
    device: torch.device,
) -> list[Markup]:
    logits, labels = _predicted(trained, test, device)
    method, seed, names = trained.config.method, trained.config.seeds[0], trained.class_names
    per_class: dict[str, list[list[float | None]]] = {}
    noise: dict[str, dict[float, list[float]]] = {}
    for result, _ in cells:
        name = NAMES[result["method"]]
        levels = noise.setdefault(name, {})
        for sigma, value in {"0": result["accuracy"], **result["noise"]}.items():
            levels.setdefault(float(sigma), []).append(value)
        if result["method"] in (method, "ce"):
            per_class.setdefault(name, []).append(result["per_class"])
    # None, where a class has no image, becomes NaN, which is drawn as nothing.
    means = {name: np.mean(np.array(values, dtype=float), axis=0) for name, values in per_class.items()}
    right = logits.argmax(1) == labels
    counts = torch.zeros(len(names), len(names)).index_put_(
        (labels, logits.argmax(1)), torch.ones(len(labels)), accumulate=True
    )
    nets = {NAMES[method]: _confidence(logits, labels)}
    ce = next((cell for result, cell in cells if result["method"] == "ce" != method), None)
    if ce is not None:
        baseline = open_trained(ce)
        nets["cross-entropy"] = _confidence(*_predicted(baseline, test, device))
    methods = dict.fromkeys(result["method"] for result, _ in cells)
    errors = [
        f"{NAMES[m]} {np.mean([r['calibration_error'] for r, _ in cells if r['method'] == m]):.2f} %"
        for m in methods
    ]
    return [
        heading("On the test images"),
        figure(figures.per_class(means, names), "Accuracy of every class, mean over seeds."),
        figure(figures.confusion(counts.numpy(), names), f"Confusion of {NAMES[method]}, seed {seed}."),
        figure(
            figures.reliability(nets),
            f"Is a confidence of 90 % right nine times in ten? Seed {seed}; bins of fewer than five images "
            f"are left out. Expected calibration error (15 bins), mean over seeds: {', '.join(errors)}.",
        ),
        figure(figures.noise(noise), "Noise was never trained on; dots are seeds."),
        heading("Images it names right, and images it does not"),
        *_samples(trained, test, logits, labels, right),
    ]


def _samples(trained: Trained, test: Dataset, logits: Tensor, labels: Tensor, right: Tensor) -> list[Markup]:
    confidence, predicted = logits.softmax(1).max(1)
    wrong = (~right).nonzero().squeeze(1)
    wrong = wrong[confidence[wrong].argsort(descending=True)][:16]
    good = right.nonzero().squeeze(1)
    good = good[torch.linspace(0, max(len(good) - 1, 0), min(8, len(good))).long()]
    sections = []
    for places, words in (
        (good, "Named right, taken evenly over the test set."),
        (wrong, f"The surest of {int((~right).sum())} mistakes in {len(labels)} images."),
    ):
        captions = []
        for place in places.tolist():
            said, true = trained.class_names[predicted[place]], trained.class_names[labels[place]]
            known = said if said == true else f"{said}, is {true}"
            captions.append(f"{known} ({100 * confidence[place]:.0f} %)")
        pictures = [test[place][0].permute(1, 2, 0).numpy() for place in places.tolist()]
        sections += [text(words), images(pictures, captions, width=96)]
    return sections


def early_exits(trained: Trained, test: Dataset, device: torch.device) -> list[Markup]:
    found = open_exits(trained)
    if found is None:
        return []
    stages, exits = found
    exits = exits.to(device)
    logits, labels = exit_logits(trained.net, stages, exits, test, trained.preprocess, device)
    p = trained.preprocess
    flops, plain = exit_flops(
        trained.net, stages, exits, torch.zeros(1, p.channels, p.size, p.size, device=device)
    )
    accuracy = exit_accuracy(logits, labels, stages)
    rows = accuracy_against_compute(logits, labels, flops)
    places = {name: (cost, accuracy[name]) for name, cost in zip([*accuracy][:-1], flops, strict=True)}
    steps = [
        {
            "threshold": row["threshold"] if row["threshold"] <= 1 else "never early",
            "accuracy %": round(row["accuracy"], 2),
            "million FLOPs per image": round(row["flops"] / 1e6, 3),
            **{name: f"{100 * s:.0f} %" for name, s in zip(places, row["share_per_exit"], strict=True)},
        }
        for row in rows
    ]
    return [
        heading("Early exits"),
        text(
            "Every image leaves at the first exit that is at least as sure as the threshold. The cost of an "
            "exit counts the exits before it, which were tried in vain."
        ),
        figure(
            figures.compute(rows, places, accuracy["ensemble"]),
            f"Seed {trained.config.seeds[0]}, {NAMES[trained.config.method]}.",
        ),
        table(
            steps,
            "By threshold: accuracy, compute, and the share of images that leave at each exit. Without exits "
            f"the net takes {plain / 1e6:.3f} million FLOPs.",
        ),
    ]


def _predicted(trained: Trained, test: Dataset, device: torch.device) -> tuple[Tensor, Tensor]:
    batches = list(predictions(trained.net.to(device), test, trained.preprocess, device))
    return torch.cat([logits for logits, _ in batches]), torch.cat([labels for _, labels in batches])


def _confidence(logits: Tensor, labels: Tensor) -> tuple[np.ndarray, np.ndarray]:
    confidence, predicted = logits.softmax(1).max(1)
    return confidence.numpy(), (predicted == labels).numpy()
