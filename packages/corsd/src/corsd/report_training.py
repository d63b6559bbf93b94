"""The part of a report about the training: losses, their gradients, relations, and the relation matrices."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from markupsafe import Markup
from shared_core.run import metrics
from shared_core.run.checkpoint import CheckpointError
from shared_core.run.report import figure, heading, text
from torch import Tensor
from torch.utils.data import Dataset

from corsd import figures
from corsd.relation_matrix import relation_matrix
from corsd.summary import NAMES
from corsd.trained import Trained, open_distiller

MOST_CLASSES = 40
PARTS = {
    "ce": "cross-entropy",
    "soft_ce": "cross-entropy, soft labels",
    "exit_ce": "cross-entropy of stages",
    "exit_kl": "distillation of stages",
    "hint": "features, net to stages",
    "ensemble": "ensemble teaches stages",
    "rows": "relation rows",
    "row_distillation": "deep rows teach shallow",
    "triplet": "triplet hinge",
    "aux_ce": "classes of pairs",
    "aux_kl": "classes of pairs, deep to shallow",
    "relation": "relations, deep to shallow",
    "logit_relation": "relations of logits",
    "contrast": "contrast at every stage",
    "propagation": "labels spread in the batch",
    "joint_ce": "cross-entropy of class and rotation",
    "joint_kl": "rotation heads teach the net",
    "ensemble_ce": "cross-entropy of the ensemble",
    "mixed_kl": "mixed and plain images agree",
    "mixed_maps": "maps of mixed and plain images",
}
"""Parts of a loss in words; others are shown by their name."""
Cells = list[tuple[dict[str, Any], Path]]


def training(cells: Cells) -> list[Markup]:
    logs = {(r["method"], r["seed"]): metrics.read(cell / "metrics.jsonl") for r, cell in cells}
    method = cells[0][0]["method"]
    steps = {key: [line for line in log if "parts" in line] for key, log in logs.items()}
    by_method: dict[str, list[list[dict[str, Any]]]] = {}
    for (name, _seed), lines in steps.items():
        by_method.setdefault(name, []).append(lines)
    own = by_method[method]
    seen = [line["images"] for line in own[0]]
    parts = {
        PARTS.get(part, part): (
            seen,
            _smooth(np.mean([[abs(line["parts"][part]) for line in lines] for lines in own], axis=0)),
        )
        for part in own[0][0]["parts"]
    }
    batch = {
        NAMES[name]: (
            [line["images"] for line in logs_of[0]],
            _smooth(100 * np.mean([[line["accuracy"] for line in lines] for lines in logs_of], axis=0)),
        )
        for name, logs_of in by_method.items()
    }
    caption = "Size of every part as it counts in the sum; mean over seeds and five neighbouring log lines."
    sections = [
        heading("Training"),
        figure(
            figures.curves(batch, "accuracy on the training batch (%)"),
            "On augmented images. Mixed images (mixup, CutMix, version 2) count by the first of their two classes.",
        ),
        figure(figures.curves(parts, "size of the loss part (log scale)", log=True), caption),
    ]
    shared = [[line for line in lines if "shares" in line] for lines in own]
    if shared[0] and len(shared[0][0]["shares"]) > 1:
        images = [line["images"] for line in shared[0]]
        names = list(shared[0][0]["shares"])
        stack = {
            PARTS.get(n, n): np.mean([[line["shares"].get(n, 0) for line in s] for s in shared], axis=0)
            for n in names
        }
        said = ", ".join(f"{n} {100 * values.mean():.1f} %" for n, values in stack.items())
        caption = f"Mean over the training: {said}. Norm of each part's gradient in the net's weights over the sum of "
        caption += "norms, mean over seeds."
        sections.append(figure(figures.shares(images, stack), caption))
    return sections


def relations(trained: Trained, test: Dataset, cells: Cells, device: torch.device) -> list[Markup]:
    method = trained.config.method
    logs = [metrics.read(cell / "metrics.jsonl") for result, cell in cells if result["method"] == method]
    logs = [[line for line in log if "relations" in line] for log in logs]
    if not logs[0]:
        return []
    # A batch without a pair has no relations, and seeds may differ in which batch that is.
    steps = sorted(set.intersection(*({line["step"] for line in log} for log in logs)))
    logs = [[line for line in log if line["step"] in set(steps)] for log in logs]
    stages = {
        stage: [
            {kind: _smooth([line["relations"][stage][kind] for line in log]) for kind in ("same", "other")}
            for log in logs
        ]
        for stage in logs[0][0]["relations"]
    }
    seen = [line["images"] for line in logs[0]]
    sections = [
        heading("Relations"),
        text(
            "At every stage a relation network reads two images and answers with a number from 0 to 1. It "
            "is trained to be low for two images of one class and high for two of different classes: where "
            "the lines part, the stage tells classes apart."
        ),
        figure(figures.relations(seen, stages), "On training batches; thin lines are seeds, thick the mean."),
    ]
    try:
        distiller = open_distiller(trained)
    except CheckpointError as error:
        return [*sections, text(f"The relation matrices are left out: {error}.")]
    if distiller is None:
        return sections
    shown = min(len(trained.class_names), MOST_CLASSES)
    pictures, labels = _some_of_each(test, shown, each=max(2, 400 // shown))
    inputs = trained.preprocess(pictures.to(device))
    values = relation_matrix(distiller.to(device), inputs, labels, shown).numpy()
    named = dict(zip((stage.name for stage in distiller.stages), values, strict=True))
    part = "the first " if shown < len(trained.class_names) else ""
    caption = (
        f"Learned relations between {part}{shown} classes on test images, seed {trained.config.seeds[0]}. "
        "Training aims at a dark diagonal on bright ground; dark spots beside it are classes that the stage "
        "takes for alike."
    )
    return [*sections, figure(figures.matrices(named, trained.class_names[:shown]), caption)]


def _some_of_each(test: Any, classes: int, each: int) -> tuple[Tensor, Tensor]:
    """The first images of each of the first classes, with their labels."""
    labels = test.labels
    places = torch.cat([(labels == label).nonzero().squeeze(1)[:each] for label in range(classes)])
    return torch.stack([test[place][0] for place in places.tolist()]), labels[places]


def _smooth(values: Any, width: int = 5) -> list[float]:
    """Mean over a window that shrinks at the ends."""
    values, half = np.asarray(values, dtype=float), width // 2
    return [float(values[max(0, i - half) : i + half + 1].mean()) for i in range(len(values))]
