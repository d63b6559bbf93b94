"""A run of ``calib adapt``: one adaptation per seed, its four numbers, and the baselines beside it.

One seed is an ordinary run folder; several are cells of a run:

    runs/NAME/  config.yaml env.json metrics.jsonl result.json report.html
                classifier.safetensors (if the run trained it; until then classifier-checkpoints/)
                calibrator/  evaluation.json
                cells/seedN/  each an ordinary run folder

``result.json`` follows ``result_schema.json``.
"""

import json
import statistics
import sys
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from shared_core.data.augment import to_float
from shared_core.data.loader import test_loader
from shared_core.ops.freeze import checksums, digest
from shared_core.ops.gather import once
from shared_core.run.atomic import read_json, write_json
from shared_core.run.config import user_errors
from shared_core.run.folder import RunFolder
from shared_core.run.idle import refuse_idle
from shared_core.run.metrics import MetricsLog, cut_back
from shared_core.run.processes import is_main, join
from shared_core.run.result import check_result
from shared_core.run.seal import check_seal, seal, unseal, write_sealed
from shared_core.run.weights import save_weights
from torch import Tensor

from calib.adaptation import adapt
from calib.attachment import CalibratedClassifier, attach
from calib.blackbox import distil_surrogate, gives_gradient
from calib.calibrator import EPSILON_UNIT, Calibrator
from calib.classifiers import Normalized, open_classifier
from calib.comparison import all_items, baseline_rows
from calib.config import AdaptConfig
from calib.data import Domains, normalization, open_domains
from calib.evaluate import both_domains, four_numbers, is_near_chance, latency_ratio
from calib.needs import needs
from calib.neighbours import Neighbours
from calib.source_classifier import attached, build_classifier, check_training, origin, the_classifier
from calib.step import Weights
from calib.summary import UNTRAINED
from calib.views import Views


def run(config: AdaptConfig, out: Path, resume: bool = False) -> dict[str, Any]:
    """Adapt for every seed, write result.json and report.html, return the result.

    Raises:
        ConfigError: the configuration cannot work; found before the first step.
        RunFolderError: `out` holds another run.
        SystemExit: 130 or 143, after saving, when the process was told to stop.
    """
    from calib.report import report

    with user_errors():
        device = open_device(config)
        domains = open_domains(config)
        refuse_idle(config, needs(domains.segmentation))
        build_calibrator(config, domains.channels)
        check_training(config, build_classifier(config, domains), domains)
    if len(config.seeds) == 1:
        result = run_cell(config, config.seeds[0], out, domains, device, resume)
    else:
        result = run_cells(config, out, domains, device, resume)
    if is_main():
        check_result(result, schema())
        seal(out, ["metrics.jsonl"])
        write_sealed(out / "result.json", result)
        report(out)
    return result


def run_cells(
    config: AdaptConfig, out: Path, domains: Domains, device: torch.device, resume: bool
) -> dict[str, Any]:
    """One cell per seed below `out`, and what they come to together."""
    with RunFolder(out) as folder:
        if is_main():
            if not (resume and folder.finished()):
                folder.open(config, resume)
            unseal(out, [folder.metrics.name])
            cut_back(folder.metrics, 0)
        results = []
        for number, seed in enumerate(config.seeds, start=1):
            own = config.model_copy(update={"seeds": [seed]})
            results.append(run_cell(own, seed, out / "cells" / f"seed{seed}", domains, device, resume))
            if is_main():
                write_sealed(out / "cells" / f"seed{seed}" / "result.json", results[-1])
                with MetricsLog(folder.metrics) as log:
                    log.log(number, **{name: results[-1][name] for name in ("seed", *FOUR)})
        return summarise(results)


FILES = (
    *("config.yaml", "metrics.jsonl", "preprocess.json", "evaluation.json", "adaptation.json"),
    *("classifier.safetensors", "classifier-drifted.safetensors"),
    *("calibrator/calibrator.safetensors", "calibrator/config.json"),
)
"""What a finished adaptation is read from; sealed, so that a damaged file is told from a result."""

FOUR = ("source_before", "source_after", "target_before", "target_after")


def run_cell(
    config: AdaptConfig, seed: int, out: Path, domains: Domains, device: torch.device, resume: bool
) -> dict[str, Any]:
    """One adaptation: the classifier opened or trained, the calibrator, four numbers, the baselines."""
    if resume and (out / "result.json").is_file():
        check_seal(out)
        return read_json(out / "result.json")
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    begun = time.perf_counter()
    # Locked from here on: two processes must not train one classifier.
    with RunFolder(out) as folder:
        if is_main():
            folder.open({**config.model_dump(mode="json"), "seeds": [seed]}, resume)
        classifier = the_classifier(config, domains, seed, out, device)
    before = checksums(classifier)
    torch.manual_seed(seed)
    calibrator = build_calibrator(config, domains.channels)
    model = attached(config, classifier, calibrator)
    ignore = config.ignore_label if domains.segmentation else None
    tests = (
        domains.source_test,
        domains.target_test,
        domains.num_classes,
        device,
        ignore,
        config.workers,
        True,
    )
    alone = both_domains(model.to(device).ask, *tests)
    meaning = model.meaning
    near_chance = is_near_chance(torch.tensor(alone["source"]["confusion"]))
    if is_main():
        # Said before the adaptation, which may take hours.
        print(f"calib: the classifier {origin(config)}", file=sys.stderr)
        if meaning != "logits":
            print(f"calib: its answers are taken for {meaning}; outputs says otherwise", file=sys.stderr)
        if near_chance:
            print(f"calib: {UNTRAINED}", file=sys.stderr)
    note = adapt_model(config, model, domains, seed, out, device)
    evaluations = four_numbers(model, *tests, before=alone)
    example = next(iter(test_loader(domains.source_test, 64)))[0]
    adaptation = read_json(out / "adaptation.json") if is_main() else {}
    rows = [] if domains.segmentation else baseline_rows(config, model, domains, seed, device)
    result = {
        "source": config.source,
        "target": config.target,
        "classifier": config.classifier,
        "method": "calibrator",
        "seed": seed,
        **{name: evaluations[name]["accuracy"] for name in FOUR},
        "measure": "mIoU" if domains.segmentation else "accuracy",
        "epsilon": config.epsilon,
        "epsilon_unit": EPSILON_UNIT,
        "body": config.body,
        "mode": config.mode,
        "parameter_ratio": model.parameter_ratio(),
        "parameters": sum(p.numel() for p in calibrator.parameters()),
        "latency_ratio": once(lambda: latency_ratio(model, to_float(example.to(device)))),
        "classifier_unchanged": checksums(classifier) == before,
        "classifier_digest": digest(before),
        "classifier_origin": origin(config),
        "classifier_near_chance": near_chance,
        "classifier_outputs": meaning,
        "selection": config.selection,
        "oracle": config.selection == "oracle",
        "chosen_step": adaptation.get("chosen_step"),
        "steps": config.steps,
        "compat": config.compat,
        "note": note,
        "baselines": rows,
        "seconds": time.perf_counter() - begun,
    }
    if is_main():
        # What predict and evaluate need to know where the data are not.
        write_json(out / "preprocess.json", {**preprocessing(domains), "class_names": domains.class_names})
        if config.compat == "released":
            # The figures are of the classifier with its drifted buffers.
            save_weights(classifier, out / "classifier-drifted.safetensors")
        write_json(out / "evaluation.json", {**evaluations, "class_names": domains.class_names})
        check_result(result, schema())
        seal(out, FILES)
        write_sealed(out / "result.json", result)
    if dist.is_initialized():
        dist.barrier()
    return result


def preprocessing(domains: Domains) -> dict[str, Any]:
    """How images become the calibrator's: the record of a Preprocess, or None where they keep their size."""
    record = None if domains.preprocess is None else domains.preprocess.record()
    return {"segmentation": domains.segmentation, "channels": domains.channels, "preprocess": record}


def build_calibrator(config: AdaptConfig, channels: int) -> Calibrator:
    """The calibrator that a configuration describes, for images in [0, 1]."""
    return Calibrator(channels, config.epsilon, config.width, config.blocks, config.body, config.mode)


def adapt_model(
    config: AdaptConfig,
    model: CalibratedClassifier,
    domains: Domains,
    seed: int,
    out: Path,
    device: torch.device,
) -> str:
    """Adapt in the run folder, by way of a surrogate where the classifier gives no gradient; returns how."""
    weights, note = Weights(**config.loss.model_dump()), "through the classifier"
    trained = model
    image = next(iter(test_loader(domains.source_test, 2)))[0]
    if not gives_gradient(model.to(device).classifier, to_float(image.to(device)), model.read):
        if config.surrogate_steps:
            note = "through a surrogate distilled from the classifier's answers"
            torch.manual_seed(seed)
            student = Normalized(
                open_classifier("small:lenet", domains.num_classes, domains.channels),
                *normalization(config, domains.channels),
            ).to(device)

            def distilled() -> dict[str, Tensor]:
                source, target = (
                    to_float(all_items(part, config.workers)[0])
                    for part in (domains.source_train, domains.target_train)
                )
                surrogate = distil_surrogate(
                    lambda images: model.ask(images.to(device)),
                    source, target, student, config.surrogate_steps, seed=seed,
                )  # fmt: skip
                return {name: value.cpu() for name, value in surrogate.net.state_dict().items()}

            # The black box is asked by the first process alone.
            student.load_state_dict(once(distilled))
            trained = attach(student.eval(), model.calibrator)
        else:
            note = "with pixels only: the classifier gives no gradient"
            if weights.name_classes():
                note += ", so that loss.views, loss.hold and neighbours teach nothing"
            weights = Weights(weights.pixel or 1.0, 0.0, weights.source)
    if weights.views:
        note += ", taught by its surest answers to views of the target"
        note += ", agreed on among neighbours" if config.neighbours.count else ""
    o = config.optim
    adapt(
        trained,
        domains.source_train,
        domains.target_train,
        steps=config.steps,
        batch_size=config.batch_size,
        learning_rate=o.learning_rate,
        critic_learning_rate=o.critic_learning_rate,
        betas=o.betas,
        weight_decay=o.weight_decay,
        schedule=o.schedule,
        weights=weights,
        views=Views(**config.views.model_dump()),
        neighbours=Neighbours(**config.neighbours.model_dump()) if weights.views else None,
        feature=config.feature,
        feature_stride=config.feature_stride,
        patch=config.patch,
        patches=config.patches,
        ema=config.ema,
        accumulate=config.accumulate,
        selection=config.selection,
        source_tolerance=config.source_tolerance,
        validate_every=config.validate_every,
        validation_images=config.validation_images,
        compat=config.compat,
        seed=seed,
        device=config.device,
        precision=config.precision,
        workers=config.workers,
        on_nonfinite=config.on_nonfinite,
        log_every=config.log_every,
        checkpoint_every=config.checkpoint_every,
        tracker=config.tracker,
        out=out,
        # The folder was opened, as a new one or to go on with, before the classifier was.
        resume=True,
        config={**config.model_dump(mode="json"), "seeds": [seed]},
    )
    return note


def summarise(results: list[dict[str, Any]]) -> dict[str, Any]:
    """The cells' result with means in place of single figures, and the figures of each seed in `cells`."""
    averaged = (*FOUR, "latency_ratio", "seconds")
    # A target without labels that fit has no score, on any seed.
    columns = {name: [result[name] for result in results] for name in averaged}
    means = {name: None if None in values else statistics.fmean(values) for name, values in columns.items()}
    spread = {f"{name}_sd": statistics.stdev(columns[name]) for name in FOUR if None not in columns[name]}
    unchanged = all(result["classifier_unchanged"] for result in results)
    whole = {**results[0], **means, **spread, "classifier_unchanged": unchanged, "cells": results}
    # A cell that an earlier version finished does not say.
    whole["classifier_near_chance"] = any(result.get("classifier_near_chance", False) for result in results)
    whole["baselines"] = _mean_rows([result["baselines"] for result in results])
    whole.pop("seed")
    return whole


def _mean_rows(tables: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    rows = []
    for same in zip(*tables, strict=True):
        numbers = [name for name, value in same[0].items() if isinstance(value, float)]
        rows.append({**same[0], **{name: statistics.fmean(row[name] for row in same) for name in numbers}})
    return rows


def schema() -> dict[str, Any]:
    """The schema of result.json."""
    return json.loads(files("calib").joinpath("result_schema.json").read_text(encoding="utf-8"))


def open_device(config: AdaptConfig) -> torch.device:
    """Join the other processes, if any, and take the device.  ValueError for what this machine lacks.

    Before all else, because it says which process writes the folder.
    """
    return join(config.device, config.precision).device
