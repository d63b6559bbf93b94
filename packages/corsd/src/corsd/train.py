"""Train a classifier, and its controls, on an equal number of images.

    corsd train --preset digits --out runs/digits
    corsd train --config runs/digits/config.yaml --out runs/again
    corsd train --resume runs/digits
    torchrun --nproc_per_node=2 -m corsd train --preset cifar100 --data-root data --out runs/c100

A *cell* is one method with one seed: an ordinary run folder.  A run of several cells keeps them in
``cells/METHOD-seedN/`` and sums them up in its own ``result.json`` and ``report.html``.

This file is the recipe and nothing else; your own loop needs only :class:`corsd.Distiller`.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from shared_core.data.loader import make_loader
from shared_core.data.sampling import Batches
from shared_core.ops.gather import rank, world_size
from shared_core.run.atomic import read_json, write_json
from shared_core.run.folder import RunFolder
from shared_core.run.loop import Loop
from shared_core.run.processes import join
from shared_core.run.seal import check_seal, seal, unseal, write_sealed
from shared_core.run.weights import read_weights, save_weights
from torch import Tensor, nn

from corsd.areas import JUDGED, WATCHED, learns_relations, relation_areas, some_of_each
from corsd.config import TrainConfig
from corsd.data import Data, open_data, training_set
from corsd.distiller import Output
from corsd.early import stage_accuracy
from corsd.evaluate import accuracy, evaluate
from corsd.methods import batch_plan, build_method
from corsd.nets import open_net
from corsd.training_step import prepared, take_step

NOISE = (0.05, 0.1)
BEST = "net-best.safetensors"
FILES = (
    *("config.yaml", "metrics.jsonl", "preprocess.json"),
    *("net.safetensors", BEST, "exits.safetensors"),
)
"""What a finished training is read from; sealed, so that a damaged file is told from a result."""


def train_cell(config: TrainConfig, seed: int, out: Path, resume: bool = False) -> dict[str, Any]:
    """Train ``config.method`` with one seed into the run folder ``out`` and return its result.

    A folder whose result is there already is not trained again.  With ``resume`` an unfinished one goes on
    from its newest whole checkpoint; weights and metrics are those of an uninterrupted run, bit for bit.

    Raises:
        SystemExit: 130 or 143, after saving, when the process was told to stop.
    """
    folder = RunFolder(out)
    if resume and folder.finished():
        check_seal(out)
        return read_json(folder.result)
    accelerator = join(config.device, config.precision)
    if not accelerator.is_main_process:
        return _train(config, seed, folder, resume, accelerator)
    with folder.open({**config.model_dump(mode="json"), "seeds": [seed], "controls": []}, resume=resume):
        return _train(config, seed, folder, resume, accelerator)


def _train(
    config: TrainConfig, seed: int, folder: RunFolder, resume: bool, accelerator: Accelerator
) -> dict[str, Any]:
    out_folder, device, main = folder.path, accelerator.device, accelerator.is_main_process
    if config.threads is not None:
        torch.set_num_threads(config.threads)

    # data: what a step sees is a pure function of (seed, step)
    data = open_data(config)
    plan, group = batch_plan(config, data.labels, seed)
    batches = Batches(plan, rank(), world_size(), group)
    images = training_set(config, data, seed, with_index=config.method in ("ps_kd", "dlb"))
    loader = make_loader(images, batches, workers=config.workers, pin_memory=device.type == "cuda")
    steps = max(1, round(config.epochs * len(data.labels) / config.batch_size))
    reading = (config.workers, True)  # evaluation: by the run's workers, shared among processes
    evaluate_every = config.evaluate_every or max(1, len(data.labels) // config.batch_size)
    watch_every = max(evaluate_every, steps // 20)

    # net, method, optimizer: their first values depend on the seed alone
    torch.manual_seed(seed)
    net = build_net(config, data)
    method = build_method(config, net, data, seed, steps)
    trained, best = prepared(config, method, steps, accelerator), Best()
    watched = None
    if main and learns_relations(method):
        watched = some_of_each(data.validation or data.train, WATCHED)

    with Loop(
        folder,
        steps,
        {**trained.saved(), "best": best},
        config.checkpoint_every,
        resume,
        name=f"{config.method} seed {seed}",
        tracker=config.tracker,
        project="corsd",
    ) as loop:
        done = loop.done * config.accumulate
        batches.seek(done // len(batches), done % len(batches))
        stream = _forever(loader)
        method.train()
        for step in loop:
            started = time.perf_counter()
            shares = loop.due(5 * config.log_every) and world_size() == 1
            out, labels, shared = take_step(config, trained, data, stream, step + 1, shares)

            if loop.due(config.log_every):
                seconds = time.perf_counter() - started
                areas = {}
                # with the first log line of each of up to twenty parts of the training, and with the last
                new_part = (step + 1) // watch_every > max(step + 1 - config.log_every, 0) // watch_every
                if watched is not None and (new_part or step in (0, steps - 1)):
                    areas = relation_areas(method, *watched, _prepare(data, device))
                loop.log(
                    images=(step + 1) * config.batch_size,
                    lr=trained.schedule.get_last_lr()[0],
                    loss=out.loss,
                    accuracy=(out.logits.argmax(1) == labels.to(device)).float().mean(),
                    parts=out.parts,
                    **({"shares": shared} if shared else {}),
                    **_relation_means(out, method),
                    **({"relation_auc": areas} if areas else {}),
                    time={"step_seconds": seconds, "images_per_second": config.batch_size / seconds},
                )
            if data.validation is not None and ((step + 1) % evaluate_every == 0 or step + 1 == steps):
                score = accuracy(net, data.validation, data.preprocess, device, *reading)
                method.train()
                loop.log(validation=score)
                if best.beaten_by(score, step + 1) and main:
                    unseal(out_folder, [BEST])
                    save_weights(net, out_folder / BEST)
                    seal(out_folder, [BEST])

    # what it came to, on the test set, once
    result = {
        "method": config.method,
        "dataset": config.data,
        "net": config.model,
        "seed": seed,
        **evaluate(net, data.test, data.preprocess, device, NOISE, *reading),
        "train_accuracy": accuracy(net, data.train, data.preprocess, device, *reading),
        "stage_accuracy": _stage_accuracy(method, net, data, device, *reading),
        "relation_auc": _test_areas(method, data, device),
        "images_seen": steps * config.batch_size,
        "steps": steps,
        "seconds": loop.seconds,
        "core_seconds": loop.core_seconds,
        "skipped_steps": trained.guard.skipped,
    }
    if main:
        save_weights(net, out_folder / "net.safetensors")
        if getattr(method, "exits", None) is not None:
            save_weights(method.exits, out_folder / "exits.safetensors")
    if data.validation is not None:
        check_seal(out_folder, [BEST])
        read_weights(net, out_folder / BEST)
        result |= {
            "validation_best": best.score,
            "validation_best_step": best.step,
            "accuracy_best_on_validation": accuracy(net, data.test, data.preprocess, device, *reading),
        }
    if main:
        write_json(
            out_folder / "preprocess.json", {**data.preprocess.record(), "class_names": data.class_names}
        )
        seal(out_folder, FILES)
        write_sealed(folder.result, result)
    accelerator.wait_for_everyone()
    accelerator.free_memory()
    return result


class Best:
    """The best score on the validation images so far, and its step."""

    def __init__(self) -> None:
        self.score, self.step = -1.0, 0

    def beaten_by(self, score: float, step: int) -> bool:
        """Whether the score is higher than all before; then it is the best."""
        if score <= self.score:
            return False
        self.score, self.step = score, step
        return True

    def state_dict(self) -> dict[str, Any]:
        return {"score": self.score, "step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.score, self.step = state["score"], state["step"]


def build_net(config: TrainConfig, data: Data) -> nn.Module:
    """The classifier that ``config.model`` names, for the classes and channels of the data."""
    # Whoever trains published weights on other classes wants a last layer for these.
    head = config.new_head or config.pretrained
    channels = data.preprocess.channels
    return open_net(
        config.model, data.num_classes, channels, config.width, config.pretrained, config.weights, head
    )


def _stage_accuracy(
    method: Any, net: nn.Module, data: Data, device: torch.device, *reading: Any
) -> dict[str, float] | None:
    """Test accuracy of every class head on a stage, the net and the ensemble of all; None without such heads."""
    exits = getattr(method, "exits", None)
    if exits is None:
        return None
    stages = method.stages[: len(exits)]
    return stage_accuracy(net, stages, exits, data.test, data.preprocess, device, *reading)


def _test_areas(method: nn.Module, data: Data, device: torch.device) -> dict[str, float] | None:
    if not learns_relations(method):
        return None
    return relation_areas(method, *some_of_each(data.test, JUDGED), _prepare(data, device)) or None


def _prepare(data: Data, device: torch.device) -> Callable[[Tensor], Tensor]:
    return lambda images: data.preprocess(images.to(device))


def _forever(loader) -> Iterator[list[Tensor]]:
    """Batches without end: the sampler goes on to the next epoch by itself."""
    while True:
        yield from loader


def _relation_means(out: Output, method: nn.Module) -> dict[str, Any]:
    if not out.relations:
        return {}
    names = [stage.name for stage in method.stages]
    pairs = zip(names, out.relations, strict=True)
    return {"relations": {n: {"same": r.same.mean(), "other": r.other.mean()} for n, r in pairs}}
