"""Does a calibrator help?  Source and target accuracy of the method, its variants, controls and baselines.

    python -m benchmarks.calib.accuracy run --jobs 2          # hours; resumable; --tier 2: the full schedule, too
    python -m benchmarks.calib.accuracy                       # docs/results/calib.{md,json,png} from the runs
    python -m benchmarks.calib.accuracy --quick --out FILE    # tiny runs on digits: does it work?

A run is one pair of domains, method and seed: a line of benchmarks/results/calib_accuracy.csv.  It trains in an
ordinary run folder and goes on where it was interrupted; processes share the runs.  All methods of a pair and seed
start from the same source classifier (but for those in CLASSIFIERS) and see the same number of images.
Calibrators are kept by the label-free validator that the row names; the target's labels score the test images, once,
and choose nothing.
"""

import argparse
import fcntl
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from calib.config import AdaptConfig
from shared_core.run.atomic import write_json
from shared_core.run.environment import describe
from shared_core.run.folder import RunFolderError

from benchmarks.calib.plan import CLASSIFIERS, PAIRS, ROWS, TRANSLATED, changed, configuration, planned
from benchmarks.core.table import RAN_ON, Table, key_of, put, ran_on, read

ROOT = Path(__file__).parents[2]
RUNS = ROOT / "runs" / "bench" / "calib_accuracy"
RESULTS = ROOT / "docs" / "results"

KEPT = ("source_before", "source_after", "target_before", "target_after")
# What a segmentation is scored by beside mIoU; runs from before these were kept have none.
SEGMENTATION = ("frequency_weighted_iou", "pixel_accuracy")
# `settings` is what the method changes of its pair.  Lines without a commit are older than the record of it.
RUNS_DONE = Table(
    ROOT / "benchmarks" / "results" / "calib_accuracy.csv",
    columns=(
        *(
            "pair",
            "source",
            "target",
            "method",
            "seed",
            *KEPT,
            "classifier_unchanged",
            "core_seconds",
            "seconds",
        ),
        *("selection", "chosen_step", "steps", "measure", "parameter_ratio", "latency_ratio", "touched"),
        *("per_class", *SEGMENTATION, "translation_seconds", "label_flips", "not_applicable"),
        *("settings", *RAN_ON),
    ),
    key=("pair", "method", "seed"),
    text=frozenset(
        (
            "pair",
            "source",
            "target",
            "method",
            "selection",
            "measure",
            "touched",
            "not_applicable",
            "commit",
            "command",
        )
    ),
)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Accuracy of the calibrator and of what else one could do.")
    parser.add_argument("stage", nargs="?", choices=["run", "table"], default="table")
    parser.add_argument("--pair", choices=list(PAIRS), help="one pair only")
    parser.add_argument("--row", choices=list(ROWS), help="one row only")
    parser.add_argument("--tier", type=int, choices=[1, 2, 3], default=1, help="how many of the rows")
    parser.add_argument("--jobs", type=int, default=1, help="processes that share the runs")
    parser.add_argument("--quick", action="store_true", help="tiny runs on digits")
    parser.add_argument("--out", type=Path, help="also write the rows here")
    options = parser.parse_args(arguments)
    if options.quick:
        rows = quick()
    else:
        if options.stage == "run":
            todo = planned(
                [options.pair] if options.pair else list(PAIRS), 3 if options.row else options.tier
            )
            share([run for run in todo if options.row in (None, run[1])], options.jobs)
        rows = table()
    if options.out:
        write_json(options.out, {"rows": rows, "environment": describe()})
    return 0


def share(todo: list[tuple[str, str, int]], jobs: int) -> None:
    """Run them in `jobs` processes; each takes the next one that nobody has."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=work, args=(todo,)) for _ in range(jobs)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()


def work(todo: list[tuple[str, str, int]]) -> None:
    """Run every one that is not done and that no other process is at."""
    for pair, row, seed in todo:
        slug = "".join(c if c.isalnum() else "-" for c in row.lower())
        if (pair, row, seed) in {key_of(RUNS_DONE, run) for run in read(RUNS_DONE)}:
            continue
        folder = RUNS / pair / f"{slug}-seed{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder.with_suffix(".lock"), "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                run = run_one(pair, row, seed, folder)
            except (BlockingIOError, RunFolderError):
                continue
        put(RUNS_DONE, run)
        print(
            f"{pair} {row} seed {seed}: {run.get('target_before')} -> {run.get('target_after')}", flush=True
        )


def run_one(pair: str, row: str, seed: int, folder: Path) -> dict[str, Any]:
    """One row of one pair with one seed, from the pair's source classifier of that seed."""
    from calib import comparison, run
    from calib.data import open_domains
    from calib.evaluate import both_domains
    from calib.source_classifier import attached, build_classifier

    config, cpu = configuration(pair, row), torch.device("cpu")
    torch.set_num_threads(config.threads or 1)
    domains = open_domains(config)
    base = {
        "pair": pair,
        "method": row,
        "seed": seed,
        "source": config.source.split("#")[-1],
        "target": config.target.split("#")[-1],
    }
    if row in TRANSLATED:
        translated, measured = translation(pair, row, config, domains, seed)
        base |= measured
        config = config.model_copy(update={"translated": f"imagefolder:{translated}"})
        domains = open_domains(config)
    weights = source_classifier(pair, config, domains, seed, CLASSIFIERS.get(row, "classifier"))
    config = config.model_copy(update={"weights": weights, "seeds": [seed]})
    begun, processor = time.perf_counter(), time.process_time()
    if not config.baselines:
        result = run.run_cell(config, seed, folder, domains, cpu, resume=True)
        names = (
            *KEPT,
            "classifier_unchanged",
            "selection",
            "chosen_step",
            "parameter_ratio",
            "latency_ratio",
            "steps",
            "measure",
        )
        evaluation = json.loads((folder / "evaluation.json").read_text())
        per_class = {name: evaluation[name]["per_class"] for name in KEPT}
        own = {name: result[name] for name in names} | {"per_class": per_class}
        if domains.segmentation:
            own |= {score: {name: evaluation[name][score] for name in KEPT} for score in SEGMENTATION}
    else:
        front = run.build_calibrator(config, domains.channels)
        model = attached(config, build_classifier(config, domains), front)
        (found,) = comparison.baseline_rows(config, model, domains, seed, cpu)
        tests = (domains.source_test, domains.target_test, domains.num_classes, cpu)
        found_before = both_domains(model.ask, *tests)
        before = {f"{name}_before": scores["accuracy"] for name, scores in found_before.items()}
        own = {
            **before,
            **{name: value for name, value in found.items() if name != "method"},
            "classifier_unchanged": found.get("touched") == "nothing",
            "selection": "last",
        }
    spent = {"seconds": time.perf_counter() - begun, "core_seconds": time.process_time() - processor}
    return {**base, **own, **spent, "settings": changed(pair, row), **ran_on()}


def source_classifier(
    pair: str, config: AdaptConfig, domains: Any, seed: int, name: str = "classifier"
) -> Path:
    """The pair's classifier of this seed and name: trained on `domains`' source by the first that needs it."""
    from calib.source_classifier import the_classifier

    kept = RUNS / pair / f"{name}-seed{seed}"
    kept.mkdir(parents=True, exist_ok=True)
    with open(kept.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        the_classifier(config, domains, seed, kept, torch.device("cpu"))
    return kept / "classifier.safetensors"


def translation(
    pair: str, row: str, config: AdaptConfig, domains: Any, seed: int
) -> tuple[Path, dict[str, Any]]:
    """The pair's source images in the target's style, made by the first seed of the row, and what they cost.

    `translation_seconds` is of the CycleGAN's training.  `label_flips` is of source test images, by the classifier
    of this seed that was trained on the images as they are: it counts changed digits and strange styles alike.
    """
    from calib.source_classifier import build_classifier
    from calib.translate import PRESETS as TRANSLATIONS
    from calib.translate import train_translation
    from calib.translations import label_flips, load_translation, write_translations

    kept = RUNS / pair / ("translation-posed" if TRANSLATED[row].get("pose") else "translation")
    settings = replace(TRANSLATIONS["digits"], **TRANSLATED[row])
    kept.mkdir(parents=True, exist_ok=True)
    with open(kept.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        source, target = domains.source_train, domains.target_train
        made = train_translation(source, target, settings, seed=0, out=kept, resume=True, device="cpu")
        # The tree of images appears as a whole or not at all.
        if not (kept / "train").exists():
            write_translations(load_translation(kept), source, kept)
    plain = config.model_copy(update={"weights": source_classifier(pair, config, domains, seed)})
    judge = build_classifier(plain, domains).eval()
    flips = label_flips(judge, domains.source_test, load_translation(kept))
    return kept, {"translation_seconds": made["seconds"], "label_flips": flips}


def quick() -> list[dict[str, Any]]:
    """The method and a baseline on digits for a few steps, in a folder that is thrown away."""
    with tempfile.TemporaryDirectory() as folder:
        result = tiny_run(Path(folder), ["dann"])
    return [
        {name: result[name] for name in (*KEPT, "classifier_unchanged", "selection")},
        *result["baselines"],
    ]


def tiny_run(folder: Path, baselines: Sequence[str] = ()) -> dict[str, Any]:
    """A few steps on digits into a run folder; its result."""
    from calib import run
    from calib.config import digits
    from calib.data import open_domains

    tiny = {
        "steps": 4,
        "validate_every": 2,
        "validation_images": 30,
        "width": 2,
        "blocks": 1,
        "baselines": list(baselines),
    }
    values = {**digits().model_dump(), **tiny, "training": {"epochs": 0.5}, "device": "cpu"}
    config = AdaptConfig.model_validate(values)
    return run.run_cell(config, 0, folder, open_domains(config), torch.device("cpu"), resume=False)


def table() -> list[dict[str, Any]]:
    """The rows of all finished runs; writes docs/results/calib.json, .md and .png when there are any."""
    found, rows = read(RUNS_DONE), []
    for pair in PAIRS:
        for row in ROWS:
            same = [run for run in found if (run["pair"], run["method"]) == (pair, row)]
            if same:
                rows.append(summary(pair, row, same))
    if rows:
        from benchmarks.calib.accuracy_page import write_page

        write_page(RESULTS, rows, by_class(found))
    return rows


def summary(pair: str, row: str, same: list[dict[str, Any]]) -> dict[str, Any]:
    """One row of the results: lists over seeds."""
    first = same[0]
    columns = {name: name for name in (*KEPT, "seconds")} | {"processor_seconds": "core_seconds"}
    columns |= {name: name for name in ("latency_ratio", *SEGMENTATION, "translation_seconds", "label_flips")}
    lists = {name: [run.get(column) for run in same] for name, column in columns.items()}
    return {
        "pair": pair,
        "source": first["source"],
        "target": first["target"],
        "method": row,
        "seeds": [run["seed"] for run in same],
        **{name: values for name, values in lists.items() if None not in values},
        "selection": first["selection"],
        "classifier_unchanged": all(run["classifier_unchanged"] for run in same),
        "touched": first.get("touched", "buffers" if "released" in row else "nothing"),
        **{name: first[name] for name in ("measure", "parameter_ratio", "not_applicable") if name in first},
        "chosen_step": [run.get("chosen_step") for run in same],
    }


def by_class(found: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Of each pair the calibrator's figures by class, seed by seed."""
    return {
        pair: [run["per_class"] for run in found if (run["pair"], run["method"]) == (pair, "calibrator")]
        for pair in PAIRS
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
