"""Does CORSD help?  Accuracy of the method and of the controls that might win, on equal numbers of images.

    python -m benchmarks.corsd.accuracy tune --jobs 2         # choose on images held out of the training set
    python -m benchmarks.corsd.accuracy final --jobs 2        # fresh seeds, the test set once; hours; resumable
    python -m benchmarks.corsd.accuracy                       # docs/results/corsd.{md,json,png} from the runs
    python -m benchmarks.corsd.accuracy --quick --out FILE    # two tiny runs: does it work?

Protocol: `tune` gives every tuned row the same number of trials on a validation split; what it chose stands in
CHOSEN, fixed in a commit; `final` trains with seeds that tuning never used and reads the test set once, after
the last step.  Every row of a setting sees the same number of images.

A run is one setting, method and seed: a line of benchmarks/results/corsd_accuracy.csv.  It trains in an ordinary run
folder and goes on where it was interrupted.  Processes share the runs: one that another process trains is passed over.
"""

import argparse
import json
import multiprocessing
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from corsd.config import LossWeights, TrainConfig
from shared_core.run.atomic import read_json, write_json
from shared_core.run.environment import describe
from shared_core.run.folder import RunFolderError

from benchmarks.core.table import RAN_ON, Table, key_of, put, ran_on, read

ROOT = Path(__file__).parents[2]
MEASURED = (
    *("accuracy", "train_accuracy", "images_seen", "core_seconds", "seconds"),
    *("noise", "calibration_error", "validation_best"),
)
# `settings` is what the method changes of its setting.  Lines without a commit are older than the record of it.
RUNS_DONE = Table(
    ROOT / "benchmarks" / "results" / "corsd_accuracy.csv",
    columns=("stage", "setting", "method", "seed", *MEASURED, "settings", *RAN_ON),
    key=("stage", "setting", "method", "seed"),
    text=frozenset(("stage", "setting", "method", "commit", "command")),
)
RUNS = ROOT / "runs" / "bench" / "corsd_accuracy"
RESULTS = ROOT / "docs" / "results"
# What peers/torchdistill_accuracy.py wrote; it stands on the page too.
PEER = ROOT / "benchmarks" / "results" / "torchdistill_accuracy.json"
CIFAR = ROOT.parent / "shared" / "data" / "cifar100.npz"

# One thread and two processes are the fast way for nets of this size.
COMMON = {"threads": 1, "device": "cpu", "log_every": 100, "checkpoint_every": 500}
SMALL_CIFAR = {**COMMON, "data": f"npz:{CIFAR}", "model": "small:resnet18", "width": 16, "batch_size": 96}
SETTINGS: dict[str, TrainConfig] = {
    "digits": TrainConfig(**COMMON, width=16, images_per_class=20, augment="crop", batch_size=60, epochs=90),
    # The net reaches 100 % on its training set.
    "cifar100-2k": TrainConfig(**SMALL_CIFAR, image_size=16, images_per_class=20, augment="flip", epochs=50),
    "cifar100-10k": TrainConfig(**SMALL_CIFAR, image_size=16, images_per_class=100, epochs=10),
    "digits-tuned": TrainConfig(
        **COMMON, width=16, images_per_class=20, augment="crop", batch_size=60, epochs=75
    ),
}
SETTING_NOTES = {
    "digits": "scikit-learn's digits, 20 training images per class, 500 test images, ResNet-10 of "
    "width 16, random crops",
    "cifar100-2k": "CIFAR-100 at 16 x 16, 20 training images per class, the whole test set, ResNet-18 topology of "
    "width 16, mirrored images",
    "cifar100-10k": "CIFAR-100 at 16 x 16, 100 training images per class, the whole test set, ResNet-18 topology of "
    "width 16, random crops and mirrored images",
    "digits-tuned": "As digits, but every method with the best of its trials on training images held out "
    "(`benchmarks/results/corsd_trials.jsonl`), and CORSD's second version",
}


# What `tune` chose: the best trial of eight for cross-entropy, which serves the other controls too, and the best of
# eight for CORSD, which serves its triplets and ablations.  Digits keep the defaults.
CHOSEN: dict[str, dict[str, dict[str, Any]]] = {
    "digits": {"controls": {}, "CORSD": {}},
    "cifar100-2k": {"controls": {"optim.lr": 0.3}, "CORSD": {"optim.weight_decay": 1e-3}},
    "cifar100-10k": {"controls": {"optim.weight_decay": 1e-3}, "CORSD": {"optim.lr": 0.2}},
}

# Eight trials for cross-entropy and eight for CORSD, on the settings with enough images to hold some out.
DEEP = {
    "method": "corsd",
    "relations.stages": ["layer3", "layer4"],
    "relations.weights": LossWeights(same_ce=0.25, same_kl=0.25, other_ce=0.25, other_kl=0.25),
}
TRIALS_OF_A_SETTING: dict[str, dict[str, Any]] = {
    "cross-entropy, rate 0.05": {"method": "ce", "optim.lr": 0.05},
    "CORSD, defaults": {"method": "corsd"},
    "cross-entropy, rate 0.1": {"method": "ce"},
    "CORSD, layers 3 and 4, a triplet per image": {**DEEP, "relations.triplets_per_image": 1.0},
    "cross-entropy, rate 0.2": {"method": "ce", "optim.lr": 0.2},
    "CORSD, layers 3 and 4, two triplets per image": {**DEEP, "relations.triplets_per_image": 2.0},
    "cross-entropy, rate 0.2, decay 0.001": {"method": "ce", "optim.lr": 0.2, "optim.weight_decay": 1e-3},
    # 0.01 times a sum over 129 images is what the released code has.
    "CORSD, logit relation at 1.29": {"method": "corsd", "relations.weights.logit_relation": 1.29},
    "cross-entropy, rate 0.3": {"method": "ce", "optim.lr": 0.3},
    "CORSD, rate 0.2": {"method": "corsd", "optim.lr": 0.2},
    "cross-entropy, decay 0.001": {"method": "ce", "optim.weight_decay": 1e-3},
    "CORSD, hinge and relations at 0.3": {
        "method": "corsd",
        "relations.weights.triplet": 0.3,
        "relations.weights.relation": 0.3,
    },
    "cross-entropy, decay 0.002": {"method": "ce", "optim.weight_decay": 2e-3},
    "CORSD, decay 0.001": {"method": "corsd", "optim.weight_decay": 1e-3},
    "cross-entropy, rate 0.3, decay 0.001": {"method": "ce", "optim.lr": 0.3, "optim.weight_decay": 1e-3},
    "CORSD, rate 0.2, decay 0.001": {"method": "corsd", "optim.lr": 0.2, "optim.weight_decay": 1e-3},
}
TRIALS = {"cifar100-2k": TRIALS_OF_A_SETTING, "cifar100-10k": TRIALS_OF_A_SETTING}
TUNING_SEEDS = [0]
# Digits cost seconds; three seeds say little about them (a pilot needed twelve to see that six had lied).
FINAL_SEEDS = {
    "digits": range(10, 22), "cifar100-2k": range(10, 13), "cifar100-10k": range(10, 13),
    "digits-tuned": range(10, 22),
}  # fmt: skip

TIER_1 = {
    "cross-entropy": {"method": "ce"},
    "cross-entropy, triplet sampler": {"method": "ce_triplets"},
    "label smoothing": {"method": "label_smoothing"},
    "deep supervision": {"method": "deep_supervision"},
    "BYOT": {"method": "byot_tpami"},
    "RKD": {"method": "rkd", "relations.relation_weight": 0.1},
    "CORSD (triplets)": {"method": "corsd", "pairs": "triplets"},
    "CORSD (in-batch)": {"method": "corsd"},
}
ABLATIONS = {
    "CORSD without triplet": {"method": "corsd", "relations.weights.triplet": 0.0},
    "CORSD without relation": {"method": "corsd", "relations.weights.relation": 0.0},
    "CORSD without auxiliary": {
        "method": "corsd",
        **{f"relations.weights.{name}": 0.0 for name in ("same_ce", "same_kl", "other_ce", "other_kl")},
    },
    "CORSD without logit relation": {"method": "corsd", "relations.variant.logit_relation": "off"},
    "CORSD, teacher not detached": {"method": "corsd", "relations.variant.detach_teacher": False},
}
FURTHER_CONTROLS = {
    "BYOT (2019)": {"method": "byot"},
    "SP": {"method": "sp", "relations.relation_weight": 0.01},
    "PKT": {"method": "pkt", "relations.relation_weight": 0.01},
    "CS-KD": {"method": "cs_kd"},
    "PS-KD": {"method": "ps_kd"},
    "DLB": {"method": "dlb"},
}
ROWS = TIER_1 | ABLATIONS | FURTHER_CONTROLS
# The second version beside its controls, each with the best of its trials (corsd/trials.py), fixed before fresh seeds.
SECOND: dict[str, dict[str, dict[str, Any]]] = {
    "digits-tuned": {
        "cross-entropy": {"method": "ce", "optim.weight_decay": 1e-2},
        "label smoothing": {"method": "label_smoothing", "optim.lr": 0.2, "optim.weight_decay": 2e-3},
        "deep supervision": {"method": "deep_supervision", "optim.weight_decay": 2e-3},
        "mixup": {"method": "mixup", "relational.alpha": 0.2, "optim.weight_decay": 5e-3},
        "corsd v2": {"method": "corsd_v2", "relational.alpha": 0.2, "optim.weight_decay": 2e-3},
        "corsd v2, mixing off": {
            "method": "corsd_v2", "relational.mixing": "off", "relational.ensemble": 0.5, "optim.weight_decay": 2e-3,
        },
    },
}  # fmt: skip


def rows_of(setting: str) -> dict[str, dict[str, Any]]:
    """The methods that a setting compares, and what each changes."""
    return SECOND.get(setting, ROWS)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Accuracy of CORSD and its controls.")
    parser.add_argument("stage", nargs="?", choices=["tune", "final", "table"], default="table")
    parser.add_argument("--setting", choices=list(SETTINGS), help="one setting only")
    parser.add_argument(
        "--tier", type=int, choices=[1, 2, 3], default=1, help="2 adds ablations, 3 further controls"
    )
    parser.add_argument("--jobs", type=int, default=1, help="processes that share the runs")
    parser.add_argument("--quick", action="store_true", help="two tiny runs on digits")
    parser.add_argument("--out", type=Path, help="also write the rows here")
    options = parser.parse_args(arguments)
    if options.quick:
        rows = quick()
    else:
        names = [options.setting] if options.setting else list(SETTINGS)
        if options.stage != "table":
            share([r for name in names for r in planned(options.stage, name, options.tier)], options.jobs)
        rows = table()
    if options.out:
        write_json(options.out, {"rows": rows, "environment": describe()})
    return 0


def planned(stage: str, setting: str, tier: int) -> list[tuple[str, str, str, int]]:
    """(stage, setting, method, seed), seed by seed, so that an interrupted run leaves whole comparisons."""
    if stage == "tune":
        return [(stage, setting, row, seed) for seed in TUNING_SEEDS for row in TRIALS.get(setting, {})]
    rows = SECOND.get(setting) or [TIER_1, TIER_1 | ABLATIONS, ROWS][tier - 1]
    return [(stage, setting, row, seed) for seed in FINAL_SEEDS[setting] for row in rows]


def configuration(stage: str, setting: str, row: str) -> TrainConfig:
    """The setting with what is changed for the method (or on trial)."""
    values = SETTINGS[setting].model_dump()
    if stage == "tune":
        values |= {"validation": 0.25, "evaluate_every": 10**9}  # after the last step only
    for path, value in changed(stage, setting, row).items():
        *parents, last = path.split(".")
        at = values
        for name in parents:
            at = at[name]
        at[last] = value
    return TrainConfig.model_validate(values)


def changed(stage: str, setting: str, row: str) -> dict[str, Any]:
    """What the method changes, with what was chosen for it, or the trial: by dotted key."""
    chosen = CHOSEN.get(setting, {}).get("CORSD" if row.startswith("CORSD") else "controls", {})
    changes = TRIALS[setting][row] if stage == "tune" else {**rows_of(setting)[row], **chosen}
    return {
        path: value.model_dump() if isinstance(value, LossWeights) else value
        for path, value in changes.items()
    }


def share(todo: list[tuple[str, str, str, int]], jobs: int) -> None:
    """Train the runs in ``jobs`` processes; each takes the next one that nobody has."""
    if jobs == 1:
        work(todo)
        return
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=work, args=(todo,)) for _ in range(jobs)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()


def work(todo: list[tuple[str, str, str, int]]) -> None:
    from corsd.train import train_cell

    for stage, setting, row, seed in todo:
        slug = "".join(c if c.isalnum() else "-" for c in row.lower())
        folder = RUNS / stage / setting / f"{slug}-seed{seed}"
        if (stage, setting, row, seed) in {key_of(RUNS_DONE, run) for run in read(RUNS_DONE)}:
            continue
        try:
            result = train_cell(configuration(stage, setting, row), seed, folder, resume=True)
        except RunFolderError:
            continue  # another process is at it
        run = {"stage": stage, "setting": setting, "method": row, "seed": seed}
        run |= {name: result[name] for name in MEASURED if name in result}
        run |= {"settings": changed(stage, setting, row), **ran_on()}
        if stage == "tune":
            run["accuracy"] = last_validation(folder)  # the test set stays unread by choices
            del run["noise"], run["calibration_error"]
        put(RUNS_DONE, run)
        print(f"{stage} {setting} {row} seed {seed}: {run['accuracy']:.2f}", flush=True)
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def last_validation(folder: Path) -> float:
    """Accuracy on the validation split after the last step."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["validation"] for line in lines if "validation" in line][-1]


def quick() -> list[dict[str, Any]]:
    """Two rows on digits for a few steps, in a folder that is thrown away."""
    from corsd.train import train_cell

    setting, rows = SETTINGS["digits"].model_copy(update={"epochs": 0.6, "width": 8}), []
    with tempfile.TemporaryDirectory() as folder:
        for method in ("ce", "corsd"):
            config = setting.model_copy(update={"method": method})
            result = train_cell(config, 0, Path(folder) / method)
            rows.append({key: result[key] for key in ("dataset", "net", "method", "accuracy", "images_seen")})
    return rows


def table() -> list[dict[str, Any]]:
    """The rows of all finished runs; writes docs/results/corsd.json, .md and .png when there are any."""
    done, rows = read(RUNS_DONE), []
    for setting in SETTINGS:
        by_row: dict[str, dict[int, dict]] = {}
        for run in done:
            if (run["stage"], run["setting"]) == ("final", setting):
                by_row.setdefault(run["method"], {})[run["seed"]] = run
        baseline = by_row.get("cross-entropy", {})
        for row in rows_of(setting):
            seeds = sorted(by_row.get(row, {}).keys() & baseline.keys())
            if seeds:
                rows.append(summary(setting, row, seeds, by_row[row], baseline))
    if rows:
        from benchmarks.corsd.accuracy_page import write_page

        peer = read_json(PEER) if PEER.exists() else None
        trials = [run for run in done if run["stage"] == "tune"]
        write_page(RESULTS, rows, SETTING_NOTES, trials, [*TIER_1, *SECOND["digits-tuned"]], peer)
    return rows


def summary(setting: str, row: str, seeds: list[int], own: dict, baseline: dict) -> dict[str, Any]:
    config = configuration("final", setting, row)
    return {
        "setting": setting,
        "dataset": "digits" if config.data == "digits" else "cifar100",
        "net": f"{config.model.removeprefix('small:')}-w{config.width}",
        "method": row,
        "seeds": seeds,
        "accuracy": [own[s]["accuracy"] for s in seeds],
        "baseline": [baseline[s]["accuracy"] for s in seeds],
        "train_accuracy": [own[s]["train_accuracy"] for s in seeds],
        "noise": [own[s]["noise"] for s in seeds],
        "calibration_error": [own[s]["calibration_error"] for s in seeds],
        "images_seen": own[seeds[0]]["images_seen"],
        "seconds": [own[s]["seconds"] for s in seeds],
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
