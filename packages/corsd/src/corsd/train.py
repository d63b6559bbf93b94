"""Train a classifier, and its controls, on an equal number of images.

    corsd train --preset digits --out runs/digits
    corsd train --config runs/digits/config.yaml --out runs/again
    corsd train --resume runs/digits
    torchrun --nproc_per_node=2 -m corsd train --preset cifar100 --data-root data --out runs/c100

A *cell* is one method with one seed: an ordinary run folder.  A run of several cells keeps them in
``cells/METHOD-seedN/`` and sums them up in its own ``result.json`` and ``report.html``.

This file is the recipe and nothing else; your own loop needs only :class:`corsd.Distiller`.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from shared_core.data.loader import make_loader
from shared_core.data.sampling import Batches
from shared_core.ops.gather import rank, world_size
from shared_core.ops.host import read_back
from shared_core.ops.snapshot import take_back
from shared_core.run import checkpoint
from shared_core.run.atomic import read_json, write_json
from shared_core.run.folder import RunFolder
from shared_core.run.guard import FiniteGuard, joined, largest_gradient
from shared_core.run.metrics import MetricsLog, cut_back
from shared_core.run.processes import join
from shared_core.run.seal import check_seal, seal, unseal, write_sealed
from shared_core.run.stop import StopFlag
from shared_core.run.weights import read_weights, save_weights
from torch import Tensor, nn
from tqdm.auto import tqdm

from corsd.areas import JUDGED, WATCHED, learns_relations, relation_areas, some_of_each
from corsd.config import TrainConfig
from corsd.data import Data, open_data, training_set
from corsd.distiller import Output
from corsd.early import stage_accuracy
from corsd.evaluate import accuracy, evaluate
from corsd.layout import layout
from corsd.methods import batch_plan, build_method
from corsd.nets import open_net
from corsd.schedule import rate_schedule

NOISE = (0.05, 0.1)
FILES = (
    *("config.yaml", "metrics.jsonl", "preprocess.json"),
    *("net.safetensors", "net-best.safetensors", "exits.safetensors"),
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
    out, device, main = folder.path, accelerator.device, accelerator.is_main_process
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
    memory_format = layout(config, method, device)
    method = method.to(device, memory_format=memory_format)
    if config.compile:
        net.compile()
    optimizer = torch.optim.SGD(
        method.parameters(),
        lr=config.optim.lr,
        momentum=config.optim.momentum,
        weight_decay=config.optim.weight_decay,
        nesterov=config.optim.nesterov,
    )
    schedule = rate_schedule(config, optimizer, steps)
    guard = FiniteGuard(config.on_nonfinite)
    model, optimizer = accelerator.prepare(method, optimizer)

    # where an earlier process stopped
    saved = {"method": method, "optimizer": optimizer.optimizer, "schedule": schedule, "guard": guard}
    if accelerator.scaler is not None:
        saved["scaler"] = accelerator.scaler
    state: dict[str, Any] = {"seconds": 0.0, "core_seconds": 0.0, "best": -1.0}
    step = 0
    found = checkpoint.load_latest(folder.checkpoints) if resume else None
    if found is not None:
        checkpoint.restore(found, saved, ("seconds", "core_seconds", "best", "rng"))
        step, state = found.step, found.state
        checkpoint.set_rng_state(state["rng"])
    if main:
        cut_back(folder.metrics, step)
    done = step * config.accumulate
    batches.seek(done // len(batches), done % len(batches))
    stream = _forever(loader)

    begun = time.perf_counter() - state["seconds"]
    computed = time.process_time() - state["core_seconds"]

    def save() -> None:
        state.update(
            seconds=time.perf_counter() - begun,
            core_seconds=time.process_time() - computed,
            rng=checkpoint.rng_state(),
        )
        checkpoint.save(folder.checkpoints, step, saved, state)
        accelerator.wait_for_everyone()

    watched = None
    if main and learns_relations(method):
        watched = some_of_each(data.validation or data.train, WATCHED)

    opened_log = MetricsLog(folder.metrics, config.tracker, "corsd") if main else nullcontext()
    bar = tqdm(
        total=steps,
        initial=step,
        desc=f"{config.method} seed {seed}",
        disable=None if main else True,
        leave=False,
    )
    with StopFlag() as stop, bar, opened_log as log:
        method.train()
        while step < steps:
            started = time.perf_counter()
            before, judged, shares = [], [], {}
            for part in range(config.accumulate):
                # labels and places stay on the CPU, where methods look at them without a wait for the device
                images, labels, *index = next(stream)
                images = data.preprocess(images.to(device, non_blocking=True)).to(memory_format=memory_format)
                last = part == config.accumulate - 1
                # processes exchange gradients once a step, with its last part
                with nullcontext() if last else accelerator.no_sync(model):
                    # what a refused step puts back: statistics, prototypes, tables, random generators
                    skips = guard.policy == "skip" and hasattr(method, "written_rows")
                    rows = method.written_rows(labels, *index) if skips else {}
                    before.append(guard.snapshot(method, rows=rows))
                    out_of_step: Output = model(images, labels, *index)
                    judged.append(out_of_step.parts)
                    if last and _due(step, steps, config.log_every * 5) and world_size() == 1:
                        shares = gradient_shares(out_of_step.parts, net)
                    accelerator.backward(out_of_step.loss / config.accumulate)
            # one look at all micro-batches; a loss scaler lets gradients overflow now and then and copes
            gradient = {} if accelerator.scaler is not None else {"gradient": largest_gradient(method)}
            accepted = guard.accepts({**joined(judged), **gradient}, step + 1)
            if accepted:
                if config.clip_grad_norm is not None:
                    accelerator.clip_grad_norm_(model.parameters(), config.clip_grad_norm)
                optimizer.step()
            if accepted and guard.scaled(optimizer.step_was_skipped, step + 1):
                schedule.step()
            else:
                take_back(before)
            optimizer.zero_grad()
            step += 1
            bar.update()

            if log and (_due(step - 1, steps, config.log_every)):
                seconds = time.perf_counter() - started
                areas = {}
                # with the first log line of each of up to twenty parts of the training, and with the last
                new_part = step // watch_every > max(step - config.log_every, 0) // watch_every
                if watched is not None and (new_part or step in (1, steps)):
                    areas = relation_areas(method, *watched, _prepare(data, device))
                log.log(
                    step,
                    images=step * config.batch_size,
                    lr=schedule.get_last_lr()[0],
                    loss=out_of_step.loss,
                    accuracy=(out_of_step.logits.argmax(1) == labels.to(device)).float().mean(),
                    parts=out_of_step.parts,
                    **({"shares": shares} if shares else {}),
                    **_relation_means(out_of_step, method),
                    **({"relation_auc": areas} if areas else {}),
                    time={"step_seconds": seconds, "images_per_second": config.batch_size / seconds},
                )
            if data.validation is not None and (step % evaluate_every == 0 or step == steps):
                score = accuracy(net, data.validation, data.preprocess, device, *reading)
                method.train()
                if log:
                    log.log(step, validation=score)
                if score > state["best"]:
                    state.update(best=score, best_step=step)
                    if main:
                        unseal(out, ["net-best.safetensors"])
                        save_weights(net, out / "net-best.safetensors")
                        seal(out, ["net-best.safetensors"])
            stopped = stop.agreed()
            if stopped or step % config.checkpoint_every == 0 or step == steps:
                save()
            if stopped and step < steps:
                raise SystemExit(stop.exit_code)

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
        "seconds": time.perf_counter() - begun,
        "core_seconds": state["core_seconds"],
        "skipped_steps": guard.skipped,
    }
    if main:
        save_weights(net, out / "net.safetensors")
        if getattr(method, "exits", None) is not None:
            save_weights(method.exits, out / "exits.safetensors")
    if data.validation is not None:
        check_seal(out, ["net-best.safetensors"])
        read_weights(net, out / "net-best.safetensors")
        result |= {
            "validation_best": state["best"],
            "validation_best_step": state["best_step"],
            "accuracy_best_on_validation": accuracy(net, data.test, data.preprocess, device, *reading),
        }
    if main:
        write_json(out / "preprocess.json", {**data.preprocess.record(), "class_names": data.class_names})
        seal(out, FILES)
        write_sealed(folder.result, result)
    accelerator.wait_for_everyone()
    accelerator.free_memory()
    return result


def build_net(config: TrainConfig, data: Data) -> nn.Module:
    """The classifier that ``config.model`` names, for the classes and channels of the data."""
    # Whoever trains published weights on other classes wants a last layer for these.
    head = config.new_head or config.pretrained
    channels = data.preprocess.channels
    return open_net(
        config.model, data.num_classes, channels, config.width, config.pretrained, config.weights, head
    )


def gradient_shares(parts: dict[str, Tensor], net: nn.Module) -> dict[str, float]:
    """Norm of each part's gradient in the net's weights, as shares of their sum."""
    weights = [p for p in net.parameters() if p.requires_grad]
    squares = {}
    for name, part in parts.items():
        if part.requires_grad:
            gradients = torch.autograd.grad(part, weights, retain_graph=True, allow_unused=True)
            squares[name] = [g.float().square().sum() for g in gradients if g is not None]
    values = [value for found in squares.values() for value in found]
    known = iter(read_back(torch.stack(values), "gradient shares").tolist() if values else [])
    norms = {name: math.sqrt(sum(next(known) for _ in found)) for name, found in squares.items()}
    total = sum(norms.values()) or 1.0
    return {name: norm / total for name, norm in norms.items()}


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


def _due(step: int, steps: int, every: int) -> bool:
    return step % every == 0 or step == steps - 1


def _relation_means(out: Output, method: nn.Module) -> dict[str, Any]:
    if not out.relations:
        return {}
    names = [stage.name for stage in method.stages]
    pairs = zip(names, out.relations, strict=True)
    return {"relations": {n: {"same": r.same.mean(), "other": r.other.mean()} for n, r in pairs}}
