"""Trials: which settings of which method deserve fresh seeds and the test set?

    python -m benchmarks.corsd.trials run [--setting S] [--only NAME ...]   # trains what has no result yet; resumable
    python -m benchmarks.corsd.trials               # prints what is known, best first, and fills the notebook

| setting | images | net | training | held out |
|---|---|---|---|---|
| S | CIFAR-100, 50 a class, 16 x 16 | ResNet-18 topology, width 16 | 80 epochs, crops and mirrors | 100 a class |
| digits | scikit-learn's digits, 20 a class | ResNet-10, width 16 | 75 epochs, crops | 100 a class |

Trials are scored on training images that they do not train on; the test set is never read.  Any number of processes
share the trials.  A trial with a seed is a line of benchmarks/results/corsd_trials.jsonl; `core_seconds` is processor
time of one thread.
"""

import argparse
import fcntl
import json
import re
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from shared_core.data.open import open_dataset
from shared_core.run.atomic import write_bytes, write_text

from benchmarks.core.marks import filled

ROOT = Path(__file__).parents[2]
CIFAR = ROOT.parent / "shared" / "data" / "cifar100.npz"
RUNS = ROOT / "runs" / "bench" / "corsd_trials"
RESULTS = ROOT / "benchmarks" / "results" / "corsd_trials.jsonl"
NOTEBOOK = ROOT / "docs" / "results" / "notebook" / "corsd.md"
HELD_OUT = 100
COMMON = {"threads": 1, "device": "cpu", "log_every": 100, "checkpoint_every": 500, "width": 16}
SETTINGS: dict[str, dict[str, Any]] = {
    "S": {
        **COMMON, "model": "small:resnet18", "image_size": 16, "batch_size": 96, "epochs": 80, "augment": "crop_flip",
    },
    "digits": {**COMMON, "model": "small:resnet10", "batch_size": 60, "epochs": 75, "augment": "crop"},
}  # fmt: skip
IMAGES_PER_CLASS = {"S": 50, "digits": 20}
# Digits cost seconds, and one seed of them says little.
SEEDS = {"S": [0], "digits": list(range(6))}

# What a short key of a trial sets.
KEYS = {
    "rate": "optim.lr", "decay": "optim.weight_decay", "batch": "batch_size", "alpha": "relational.alpha",
    "rows": "relational.rows", "ensemble": "relational.ensemble", "distilled rows": "relational.row_distillation",
    "mixing": "relational.mixing", "epochs": "epochs", "temperature": "relational.temperature",
    "tau": "relational.tau", "beta": "relational.beta",
}  # fmt: skip
METHODS = {
    "cross-entropy": "ce", "label smoothing": "label_smoothing", "deep supervision": "deep_supervision",
    "mixup": "mixup", "cutmix": "cutmix", "corsd v2": "corsd_v2", "dks": "dks", "contrastive": "contrastive",
    "one": "one",
}  # fmt: skip
FIELDS = re.compile(rf"({'|'.join(KEYS)}) (\S+)")

# Rate, decay and batch of the first trials were those of the pilot's recipe; then around the best of each method.
S_TRIALS = """
cross-entropy, rate 0.1, decay 0.005
cross-entropy, rate 0.2, decay 0.002
cross-entropy, rate 0.05, decay 0.005
cross-entropy, rate 0.1, decay 0.002
cross-entropy, rate 0.1, decay 0.0005
deep supervision, rate 0.1, decay 0.0005
deep supervision, rate 0.2, decay 0.002
mixup, rate 0.2, decay 0.001
corsd v2, rate 0.2, decay 0.002, mixing off, ensemble 0.5
corsd v2, rate 0.2, decay 0.002, mixing off, ensemble 1
corsd v2, rate 0.2, decay 0.002, mixing off
corsd v2, rate 0.2, decay 0.001, mixing off, ensemble 1
corsd v2, rate 0.1, decay 0.005, mixing off, ensemble 1
corsd v2, rate 0.2, decay 0.002, mixing off, ensemble 1, rows 0
corsd v2, rate 0.2, decay 0.001, mixing mixup, alpha 0.2, ensemble 1
corsd v2, rate 0.2, decay 0.002, mixing off, ensemble 2
corsd v2, rate 0.2, decay 0.002, mixing off, ensemble 1, rows 0.3
corsd v2, rate 0.2, decay 0.002, mixing off, ensemble 1, epochs 160
cross-entropy, rate 0.1, decay 0.005, epochs 160
corsd v2, rate 0.2, decay 0.001, mixing mixup, ensemble 1, epochs 160
mixup, rate 0.2, decay 0.001, epochs 160
label smoothing, rate 0.2, decay 0.002
cross-entropy, rate 0.4, decay 0.002
dks, rate 0.2, decay 0.002
contrastive, rate 0.2, decay 0.002
one, rate 0.2, decay 0.002
corsd v2, rate 0.2, decay 0.002, mixing off, ensemble 1, distilled rows 0.5
cutmix, rate 0.2, decay 0.001
corsd v2, rate 0.2, decay 0.001, mixing mixup
cross-entropy, rate 0.1, decay 0.002, batch 48
"""
DIGITS_TRIALS = """
cross-entropy
cross-entropy, decay 0.002
cross-entropy, rate 0.2, decay 0.002
cross-entropy, decay 0.005
cross-entropy, rate 0.05, decay 0.005
label smoothing
label smoothing, decay 0.002
deep supervision
deep supervision, decay 0.002
mixup
mixup, decay 0.002
mixup, alpha 0.2
corsd v2, mixing off
corsd v2, mixing off, decay 0.002
corsd v2, mixing off, ensemble 0.5, decay 0.002
corsd v2
corsd v2, decay 0.002
corsd v2, alpha 0.2
corsd v2, alpha 0.2, decay 0.002
corsd v2, rows 0.3, decay 0.002
corsd v2, rows 0, decay 0.002
cross-entropy, rate 0.2, decay 0.005
cross-entropy, decay 0.01
cross-entropy, rate 0.05
cross-entropy, rate 0.2
label smoothing, decay 0.005
label smoothing, rate 0.2, decay 0.002
mixup, alpha 0.2, decay 0.002
mixup, alpha 0.2, decay 0.005
deep supervision, decay 0.005
"""
TRIALS = {"S": S_TRIALS.strip().splitlines(), "digits": DIGITS_TRIALS.strip().splitlines()}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Trials of corsd's methods.")
    parser.add_argument("stage", nargs="?", choices=["run", "table"], default="table")
    parser.add_argument("--setting", nargs="+", choices=list(TRIALS), default=list(TRIALS))
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these trials alone")
    given = parser.parse_args(arguments)
    for setting in given.setting:
        if given.stage == "run":
            torch.set_num_threads(1)
            for name in (name for name in TRIALS[setting] if name in (given.only or TRIALS[setting])):
                for seed in SEEDS[setting]:
                    run(setting, name, seed)
        print(f"\n{setting}")
        for accuracy, trained, seeds, name in sorted(means(setting), reverse=True):
            print(f"{accuracy:.2f} (train {trained:.1f}; {seeds} seeds)  {name}")
    if given.stage == "table":
        parts = {f"trials {setting}": listed(setting) for setting in TRIALS}
        write_text(NOTEBOOK, filled(NOTEBOOK.read_text(encoding="utf-8"), parts))
    return 0


def listed(setting: str) -> str:
    """A setting's trials as a table of the notebook, best first."""
    lines = ["| trial | held-out accuracy | train accuracy | seeds |", "|---|---|---|---|"]
    for accuracy, trained, seeds, name in sorted(means(setting), reverse=True):
        lines.append(f"| {name} | {accuracy:.2f} | {trained:.1f} | {seeds} |")
    return "\n".join(lines)


def means(setting: str) -> list[tuple[float, float, int, str]]:
    """Accuracy, train accuracy and number of seeds of each trial."""
    lines = [line for line in known() if line["setting"] == setting]
    groups = {line["trial"]: [one for one in lines if one["trial"] == line["trial"]] for line in lines}
    return [
        (
            fmean(run["accuracy"] for run in group),
            fmean(run["train_accuracy"] for run in group),
            len(group),
            name,
        )
        for name, group in groups.items()
    ]


def run(setting: str, name: str, seed: int) -> None:
    """Train a trial that has no line yet and that no other process trains."""
    from corsd.train import train_cell

    letters = f"{setting}-{name}-seed{seed}"
    folder = RUNS / "".join(c if c.isalnum() or c == "." else "-" for c in letters)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{folder}.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return
        if (setting, name, seed) in [(line["setting"], line["trial"], line["seed"]) for line in known()]:
            return
        result = train_cell(configuration(setting, name, held_out_data(setting)), seed, folder, resume=True)
        kept = ("accuracy", "train_accuracy", "images_seen", "core_seconds")
        add({"setting": setting, "trial": name, "seed": seed, **{key: result[key] for key in kept}})


def configuration(setting: str, name: str, data: Path) -> Any:
    """A setting with the changes of a trial."""
    from corsd.config import TrainConfig

    values = TrainConfig.model_validate({**SETTINGS[setting], "data": f"npz:{data}"}).model_dump()
    method, *fields = name.split(", ")
    values["method"] = METHODS[method]
    for field in fields:
        found = FIELDS.fullmatch(field)
        if found is None:
            raise ValueError(f"trial {name!r}: {field!r} is not one of {', '.join(KEYS)} and a value")
        *parents, last = KEYS[found[1]].split(".")
        at = values
        for parent in parents:
            at = at[parent]
        at[last] = found[2] if found[1] == "mixing" else float(found[2])
    return TrainConfig.model_validate(values)


def held_out_data(setting: str, folder: Path = RUNS, cifar: Path = CIFAR) -> Path:
    """An npz whose test images are training images that the trials do not train on."""
    out = folder / f"{setting}.npz"
    if not out.exists():
        if setting == "digits":
            digits = open_dataset("digits", "train")
            x, y, names = digits.images.permute(0, 2, 3, 1).numpy(), digits.labels, list("0123456789")
        else:
            data = np.load(cifar)
            x, y, names = data["x_train"], data["y_train"], data["class_names"]
        y = np.asarray(y)
        chosen, held_out = split(y, IMAGES_PER_CLASS[setting])
        folder.mkdir(parents=True, exist_ok=True)
        half = out.with_suffix(".part.npz")
        np.savez(
            half, x_train=x[chosen], y_train=y[chosen], x_test=x[held_out], y_test=y[held_out], class_names=names
        )  # fmt: skip
        half.replace(out)
    return out


def split(labels: np.ndarray, train: int) -> tuple[np.ndarray, np.ndarray]:
    """Places of the first ``train`` images of each class, and of the HELD_OUT after them."""
    places = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    return np.concatenate([p[:train] for p in places]), np.concatenate(
        [p[train : train + HELD_OUT] for p in places]
    )


def known(path: Path = RESULTS) -> list[dict[str, Any]]:
    """The lines so far."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def add(line: dict[str, Any], path: Path = RESULTS) -> None:
    """Add a line in the order of names, whole or not at all; processes take turns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    RUNS.mkdir(parents=True, exist_ok=True)
    with open(RUNS / "results.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lines = sorted([*known(path), line], key=lambda line: (line["setting"], line["trial"], line["seed"]))
        write_bytes(path, "".join(json.dumps(line) + "\n" for line in lines).encode())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
