"""report.html of a run: what it shows, how it came about, and what the net gets wrong."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from markupsafe import Markup
from shared_core.run import metrics
from shared_core.run.checkpoint import CheckpointError
from shared_core.run.folder import RunFolder
from shared_core.run.report import cards, figure, heading, images, table, text, write_report
from torch import Tensor
from torch.utils.data import Dataset

from corsd import figures
from corsd.early import accuracy_against_compute, exit_accuracy, exit_flops, exit_logits
from corsd.evaluate import predictions
from corsd.relation_matrix import relation_matrix
from corsd.summary import verdict, with_spread
from corsd.trained import (
    Trained,
    cell_folders,
    choose_device,
    open_distiller,
    open_exits,
    open_test,
    open_trained,
    read_json,
)

NAMES = {
    "corsd": "CORSD",
    "ce": "cross-entropy",
    "ce_triplets": "cross-entropy, triplet sampler",
    "label_smoothing": "label smoothing",
    "deep_supervision": "deep supervision",
    "byot": "BYOT (2019)",
    "byot_tpami": "BYOT (2022)",
    "rkd": "RKD",
    "sp": "SP",
    "pkt": "PKT",
    "cs_kd": "CS-KD",
    "ps_kd": "PS-KD",
    "dlb": "DLB",
}
MOST_CLASSES = 40


def report(run: Path) -> Path:
    """Write ``run/report.html`` from the run folder and the run's test images; returns its path.

    Raises:
        ValueError: a training of the run is not finished, or its data set cannot be opened.
    """
    folder = RunFolder(run)
    cells = [(read_json(cell / "result.json"), cell) for cell in cell_folders(run) if _finished(cell)]
    result = read_json(folder.result)
    trained = open_trained(cells[0][1])
    device = choose_device(trained.config.device)
    trained.net.to(device)
    test = open_test(trained)
    logits, labels = _predicted(trained, test, device)
    name = NAMES[result["method"]]
    sections = [
        *_outcome(result),
        *_training(cells),
        *_relations(trained, test, cells, device),
        *_test_images(cells, trained, test, logits, labels, device),
        *_early_exits(trained, test, device),
        *_settings(folder, result),
    ]
    subtitle = f"{result['net']}, {_count(result['images_seen'])} training images seen by every method"
    write_report(folder.report, f"{name} on {result['dataset']}", sections, subtitle)
    return folder.report


def _finished(cell: Path) -> bool:
    if not (cell / "result.json").is_file():
        raise ValueError(f"{cell} is not finished: go on with corsd train --resume")
    return True


def _outcome(result: dict[str, Any]) -> list[Markup]:
    name, seeds = NAMES[result["method"]], len(result["seeds"])
    figures_of_merit = {f"{name}, test accuracy": with_spread(result["accuracy_mean"], result["accuracy_sd"])}
    if result["baseline_mean"] is not None:
        figures_of_merit["cross-entropy"] = with_spread(result["baseline_mean"], result["baseline_sd"])
        figures_of_merit["gain in points"] = f"{result['gain']:+.2f}"
    figures_of_merit["seeds"] = str(seeds)
    figures_of_merit["time of all trainings"] = _duration(result["seconds"])
    said = []
    if result["gain"] is not None:
        said.append(_comparison(name, "cross-entropy", result["gain"], result["gain_interval"]))
    if result["best_control"] not in (None, "ce"):
        best = f"{NAMES[result['best_control']]}, the best control,"
        interval = result["gain_over_best_control_interval"]
        said.append(_comparison(name, best, result["gain_over_best_control"], interval))
    said.append(
        "All numbers are of the net after its last step; no step and no setting was chosen by looking at the "
        f"test images. ± is the standard deviation over {seeds} seeds."
        if seeds > 1
        else "The net after its last step, one seed: a second seed may well differ by more than methods do."
    )
    sections = [cards(figures_of_merit), text("\n\n".join(said))]
    if result["controls"] or seeds > 1:
        accuracy = {name: result["accuracies"]}
        accuracy |= {NAMES[key]: value["accuracy"] for key, value in result["controls"].items()}
        caption = "A dot is one training, a stroke the mean over seeds (number at the right)."
        sections.append(figure(figures.seeds_dots(accuracy), caption))
    return sections


def _comparison(name: str, other: str, gain: float, interval: list[float] | None) -> str:
    direction = "above" if gain >= 0 else "below"
    return f"{name} is {abs(gain):.2f} points {direction} {other}: {verdict(interval)} (paired by seed)."


def _training(cells: list[tuple[dict[str, Any], Path]]) -> list[Markup]:
    logs = {(r["method"], r["seed"]): metrics.read(cell / "metrics.jsonl") for r, cell in cells}
    method = cells[0][0]["method"]
    steps = {key: [line for line in log if "parts" in line] for key, log in logs.items()}
    by_method: dict[str, list[list[dict[str, Any]]]] = {}
    for (name, _seed), lines in steps.items():
        by_method.setdefault(name, []).append(lines)
    own = by_method[method]
    seen = [line["images"] for line in own[0]]
    parts = {
        part: (seen, _smooth(np.mean([[line["parts"][part] for line in lines] for lines in own], axis=0)))
        for part in own[0][0]["parts"]
    }
    batch = {
        NAMES[name]: (
            [line["images"] for line in logs_of[0]],
            _smooth(100 * np.mean([[line["accuracy"] for line in lines] for lines in logs_of], axis=0)),
        )
        for name, logs_of in by_method.items()
    }
    caption = "Every part of the loss as it counts in the sum, mean over seeds and over five neighbouring log lines."
    sections = [
        heading("Training"),
        figure(figures.curves(batch, "accuracy on the training batch (%)"), "On augmented images."),
        figure(figures.curves(parts, f"loss of {NAMES[method]} (log scale)", log=True), caption),
    ]
    shared = [[line for line in lines if "shares" in line] for lines in own]
    if shared[0] and len(shared[0][0]["shares"]) > 1:
        images = [line["images"] for line in shared[0]]
        names = list(shared[0][0]["shares"])
        stack = {
            n: np.mean([[line["shares"].get(n, 0.0) for line in s] for s in shared], axis=0) for n in names
        }
        caption = "Norm of each part's gradient in the net's weights, as a share of the sum of norms, mean over seeds."
        sections.append(figure(figures.shares(images, stack), caption))
    return sections


def _relations(
    trained: Trained, test: Dataset, cells: list[tuple[dict[str, Any], Path]], device: torch.device
) -> list[Markup]:
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
            "A relation network per stage reads two images and answers with a number from 0 to 1, trained to be "
            "low for two images of one class and high for images of two classes. Where the lines lie apart, the "
            "stage tells classes apart."
        ),
        figure(
            figures.relations(seen, stages), "On training batches: thin lines are seeds, thick ones the mean."
        ),
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
    caption = (
        f"Learned relations between {'the first ' if shown < len(trained.class_names) else ''}{shown} classes on "
        f"test images, seed {trained.config.seeds[0]}. A dark diagonal on bright ground is what training aims at; "
        "dark spots beside it are classes that the stage takes for alike."
    )
    return [*sections, figure(figures.matrices(named, trained.class_names[:shown]), caption)]


def _test_images(
    cells: list[tuple[dict[str, Any], Path]],
    trained: Trained,
    test: Dataset,
    logits: Tensor,
    labels: Tensor,
    device: torch.device,
) -> list[Markup]:
    method, seed, names = trained.config.method, trained.config.seeds[0], trained.class_names
    per_class: dict[str, list[list[float]]] = {}
    noise: dict[str, dict[float, list[float]]] = {}
    for result, _ in cells:
        name = NAMES[result["method"]]
        levels = noise.setdefault(name, {})
        for sigma, value in {"0": result["accuracy"], **result["noise"]}.items():
            levels.setdefault(float(sigma), []).append(value)
        if result["method"] in (method, "ce"):
            per_class.setdefault(name, []).append(result["per_class"])
    means = {name: np.mean(values, axis=0).tolist() for name, values in per_class.items()}
    right = logits.argmax(1) == labels
    counts = torch.zeros(len(names), len(names)).index_put_(
        (labels, logits.argmax(1)), torch.ones(len(labels)), accumulate=True
    )
    nets = {NAMES[method]: _confidence(logits, labels)}
    ce = next((cell for result, cell in cells if result["method"] == "ce" != method), None)
    if ce is not None:
        baseline = open_trained(ce)
        nets["cross-entropy"] = _confidence(*_predicted(baseline, test, device))
    errors = {
        NAMES[name]: np.mean([r["calibration_error"] for r, _ in cells if r["method"] == name])
        for name in dict.fromkeys(r["method"] for r, _ in cells)
    }
    return [
        heading("On the test images"),
        figure(figures.per_class(means, names), "Accuracy of every class, mean over seeds."),
        figure(figures.confusion(counts.numpy(), names), f"Confusion of {NAMES[method]}, seed {seed}."),
        figure(
            figures.reliability(nets),
            f"Does a confidence of 90 % mean right in 90 % of the cases? Seed {seed}. Expected calibration error "
            "(15 bins), mean over seeds: "
            + ", ".join(f"{name} {value:.2f} %" for name, value in errors.items())
            + ".",
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


def _early_exits(trained: Trained, test: Dataset, device: torch.device) -> list[Markup]:
    found = open_exits(trained)
    if found is None:
        return []
    stages, exits = found
    exits = exits.to(device)
    logits, labels = exit_logits(trained.net, stages, exits, test, trained.preprocess, device)
    p = trained.preprocess
    flops = exit_flops(trained.net, stages, exits, torch.zeros(1, p.channels, p.size, p.size, device=device))
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
            "Every image leaves at the first exit that is surer than the threshold. All exits cost something: "
            "the square of the net counts them all as tried in vain."
        ),
        figure(
            figures.compute(rows, places, accuracy["ensemble"]),
            f"Seed {trained.config.seeds[0]}, {NAMES[trained.config.method]}.",
        ),
        table(steps, "Accuracy and compute by threshold, and the share of images that leave at each exit."),
    ]


def _settings(folder: RunFolder, result: dict[str, Any]) -> list[Markup]:
    config = yaml.safe_load(folder.config.read_text(encoding="utf-8"))
    environment = read_json(folder.environment)
    packages = environment.pop("packages")
    flat = dict(_flat(config))
    return [
        heading("Settings and environment"),
        table([{"setting": name, "value": _shown(value)} for name, value in flat.items()], "config.yaml"),
        table([{"what": n, "value": _shown(v)} for n, v in {**environment, **packages}.items()], "env.json"),
    ]


def _predicted(trained: Trained, test: Dataset, device: torch.device) -> tuple[Tensor, Tensor]:
    batches = list(predictions(trained.net.to(device), test, trained.preprocess, device))
    return torch.cat([logits for logits, _ in batches]), torch.cat([labels for _, labels in batches])


def _confidence(logits: Tensor, labels: Tensor) -> tuple[np.ndarray, np.ndarray]:
    confidence, predicted = logits.softmax(1).max(1)
    return confidence.numpy(), (predicted == labels).numpy()


def _some_of_each(test: Any, classes: int, each: int) -> tuple[Tensor, Tensor]:
    """The first images of each of the first classes, with their labels."""
    labels = test.labels
    places = torch.cat([(labels == label).nonzero().squeeze(1)[:each] for label in range(classes)])
    return torch.stack([test[place][0] for place in places.tolist()]), labels[places]


def _smooth(values: Any, width: int = 5) -> list[float]:
    """Mean over a window that shrinks at the ends."""
    values, half = np.asarray(values, dtype=float), width // 2
    return [float(values[max(0, i - half) : i + half + 1].mean()) for i in range(len(values))]


def _flat(values: dict[str, Any], prefix: str = ""):
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {entry}" for name, entry in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _count(number: int) -> str:
    return f"{number:,}".replace(",", " ")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"
