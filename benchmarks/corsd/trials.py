"""Trials at setting S: which settings of which method deserve fresh seeds and the test set?

    python benchmarks/corsd/trials.py run [--only NAME ...]      # trains what has no result yet; resumable
    python benchmarks/corsd/trials.py                            # prints what is known, best first

Setting S: CIFAR-100, 50 images a class, 16 x 16 pixels, ResNet-18 topology of width 16, 80 epochs of crops and mirrors.
Trials are scored on the next 100 training images of each class (10,000 images); the test set is never read.  Any number
of processes share the trials.  A trial is a line of benchmarks/results/corsd_trials.jsonl; `core_seconds` is processor
time of one thread.
"""

import argparse
import fcntl
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from shared_core.run.atomic import write_bytes

ROOT = Path(__file__).parents[2]
CIFAR = ROOT.parent / "shared" / "data" / "cifar100.npz"
RUNS = ROOT / "runs" / "bench" / "corsd_trials"
RESULTS = ROOT / "benchmarks" / "results" / "corsd_trials.jsonl"
TRAIN, HELD_OUT, SEED = 50, 100, 0

# What a short key of a trial sets.
KEYS = {
    "rate": "optim.lr", "decay": "optim.weight_decay", "batch": "batch_size", "alpha": "relational.alpha",
    "rows": "relational.rows", "ensemble": "relational.ensemble", "distilled rows": "relational.row_distillation",
    "mixing": "relational.mixing", "epochs": "epochs",
}  # fmt: skip
METHODS = {
    "cross-entropy": "ce", "label smoothing": "label_smoothing", "deep supervision": "deep_supervision",
    "mixup": "mixup", "cutmix": "cutmix", "corsd v2": "corsd_v2",
}  # fmt: skip
FIELDS = re.compile(rf"({'|'.join(KEYS)}) (\S+)")

# Rate, decay and batch of the first trials were those of the pilot's recipe; then around the best of each method.
TRIALS = """
cross-entropy, rate 0.2, decay 0.002
cross-entropy, rate 0.05, decay 0.005
cross-entropy, rate 0.1, decay 0.002
cross-entropy, rate 0.1, decay 0.0005
deep supervision, rate 0.1, decay 0.0005
deep supervision, rate 0.2, decay 0.002
mixup, rate 0.2, decay 0.001
corsd v2, rate 0.2, decay 0.002, mixing off
corsd v2, rate 0.2, decay 0.001, mixing mixup
corsd v2, rate 0.2, decay 0.001, mixing mixup, epochs 160
cross-entropy, rate 0.2, decay 0.002, epochs 160
cutmix, rate 0.2, decay 0.001
corsd v2, rate 0.2, decay 0.001, mixing cutmix
corsd v2, rate 0.2, decay 0.001, mixing mixup, alpha 0.2
corsd v2, rate 0.2, decay 0.001, mixing mixup, ensemble 0.5
corsd v2, rate 0.2, decay 0.002, mixing off, ensemble 0.5
corsd v2, rate 0.2, decay 0.002, mixing off, distilled rows 0.5
cross-entropy, rate 0.1, decay 0.005
mixup, rate 0.2, decay 0.002
mixup, rate 0.2, decay 0.001, epochs 160
corsd v2, rate 0.2, decay 0.002, mixing off, epochs 160
cross-entropy, rate 0.4, decay 0.002
cross-entropy, rate 0.1, decay 0.002, batch 48
label smoothing, rate 0.2, decay 0.002
""".strip().splitlines()


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Trials of corsd's methods at setting S.")
    parser.add_argument("stage", nargs="?", choices=["run", "table"], default="table")
    parser.add_argument("--only", nargs="+", choices=TRIALS, metavar="NAME", help="these trials alone")
    given = parser.parse_args(arguments)
    if given.stage == "run":
        torch.set_num_threads(1)
        for name in given.only or TRIALS:
            run(name)
    for line in sorted(known(), key=lambda line: -line["accuracy"]):
        print(f"{line['accuracy']:.2f} (train {line['train_accuracy']:.1f})  {line['trial']}")
    return 0


def run(name: str) -> None:
    """Train a trial that has no line yet and that no other process trains."""
    from corsd.train import train_cell

    folder = RUNS / "".join(c if c.isalnum() or c == "." else "-" for c in name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{folder}.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return
        if any(line["trial"] == name for line in known()):
            return
        result = train_cell(configuration(name, held_out_data()), SEED, folder, resume=True)
        kept = ("accuracy", "train_accuracy", "images_seen", "core_seconds")
        add({"setting": "S", "trial": name, "seed": SEED, **{key: result[key] for key in kept}})


def configuration(name: str, data: Path) -> Any:
    """Setting S with the changes of a trial."""
    from corsd.config import TrainConfig

    setting = {
        "threads": 1, "device": "cpu", "log_every": 100, "checkpoint_every": 500, "data": f"npz:{data}",
        "model": "small:resnet18", "width": 16, "image_size": 16, "batch_size": 96, "epochs": 80,
        "augment": "crop_flip",
    }  # fmt: skip
    values = TrainConfig.model_validate(setting).model_dump()
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


def held_out_data(cifar: Path = CIFAR, out: Path = RUNS / "held-out.npz") -> Path:
    """An npz whose test images are training images that the trials do not train on."""
    if not out.exists():
        data = np.load(cifar)
        chosen, held_out = split(data["y_train"])
        out.parent.mkdir(parents=True, exist_ok=True)
        half = out.with_suffix(".part.npz")
        np.savez(
            half, x_train=data["x_train"][chosen], y_train=data["y_train"][chosen],
            x_test=data["x_train"][held_out], y_test=data["y_train"][held_out], class_names=data["class_names"],
        )  # fmt: skip
        half.replace(out)
    return out


def split(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places of the first TRAIN images of each class, and of the HELD_OUT after them."""
    places = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    chosen = np.concatenate([p[:TRAIN] for p in places])
    return chosen, np.concatenate([p[TRAIN : TRAIN + HELD_OUT] for p in places])


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
