"""Train the small text-to-image models that `fsd` brings along, on pictures of the procedural world.

    fsd train-prior --variant camera-free --out runs/prior-2d
    fsd train-prior --variant multi-view --start runs/prior-2d/pipeline --out runs/prior-mv
    fsd train-prior --resume runs/prior-mv --steps 60000

The network learns to predict v = alpha noise - sigma image from alpha image + sigma noise (Salimans and Ho, 2022), all
levels alike, and the text encoder with it; captions are empty now and then, for guidance.  In the multi-view variant
the four views of an object have one level and see each other (MVDream, arXiv 2308.16512; no single pictures are mixed
in, as these bring nothing here that the views do not show), and as in MVDream it starts from a camera-free network:
that has seen as many captions in a quarter of the steps.  The folder `pipeline` of the run holds the averaged
weights in fp16, from the first samples on: `open_prior("runs/prior-mv/pipeline")`.

Sides are learned last, as only a few pixels and few captions tell of them: `sides` has captions that name a kind with
a front drawn more often.

The learning rate is constant until the last part of the run, so that a resumed run may be made longer.  What a step
does is a function of seed and step alone, and a run that was interrupted goes on bit for bit.  Processes of a torchrun
share each batch: all draw the noise of the whole one, so that several learn what one does.  Rate and average move with
the steps that are taken: not with those that `on_nonfinite: skip` or fp16's loss scaler leaves out.
"""

import copy
import os
import time
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from jaxtyping import Int
from shared_core.ops.host import read_back
from shared_core.run import checkpoint
from shared_core.run import metrics as records
from shared_core.run.atomic import read_json, write_json
from shared_core.run.config import ConfigError
from shared_core.run.folder import RunFolder
from shared_core.run.guard import ADVICE, FiniteGuard, NonFiniteError
from shared_core.run.metrics import MetricsLog, cut_back
from shared_core.run.processes import join
from shared_core.run.stop import StopFlag
from torch import Tensor, nn
from tqdm.auto import tqdm

from fsd.cameras import turntable
from fsd.generate import write_row
from fsd.prior_config import PriorConfig
from fsd.prior_pictures import Album, Chunk
from fsd.prior_report import report
from fsd.prior_step import Learner, noised, take_step
from fsd.priors.diffusers import DiffusersPrior
from fsd.priors.loading import load_pipeline
from fsd.priors.multiview import MultiViewPrior, join_views
from fsd.priors.pixel_pipeline import build_pipeline, write_pipeline
from fsd.sampling import ddim, several
from fsd.turntable import to_bytes
from fsd.world.captions import vocabulary
from fsd.world.objects import FRONTED

LOSS_OVER = 50
# What a run may be resumed with in another way; none of it says what is learnt.
_MAY_CHANGE = ("steps", "threads", "pictures", "device", "precision")


def train_prior(config: PriorConfig, out: Path, resume: bool = False) -> dict[str, Any]:
    """Trains into the run folder `out`, or goes on with what is there; the result.

    Raises ValueError for a device that is not here, ConfigError for a batch that the processes cannot share evenly,
    RunFolderError for a folder that is in use or was begun with another configuration, NonFiniteError for a loss or a
    gradient that is not finite (under `on_nonfinite: skip` for too many in a row), SystemExit after saving when a
    process is told to stop.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    accelerator = join(config.device, config.precision)
    objects = config.batch_size // config.views
    if objects % accelerator.num_processes:
        raise ConfigError(
            f"a batch of {objects} objects cannot be shared evenly by {accelerator.num_processes} processes; give a "
            f"batch size that is a multiple of {config.views * accelerator.num_processes}"
        )
    folder = RunFolder(os.path.expanduser(out))
    with ExitStack() as opened:
        if accelerator.is_main_process:
            # A finished run may be made longer: its schedule is constant up to where the last part began.
            if resume and folder.finished() and _steps_done(folder) < config.steps:
                folder.result.unlink()
            opened.enter_context(folder.open(config, resume=resume, ignore=_MAY_CHANGE))
        accelerator.wait_for_everyone()
        return _train(config, folder, accelerator)


def _train(config: PriorConfig, folder: RunFolder, accelerator: Accelerator) -> dict[str, Any]:
    device, main = accelerator.device, accelerator.is_main_process
    # networks: their first values depend on the seed alone
    torch.manual_seed(config.seed)
    pipeline = build_pipeline(
        [*vocabulary(), ","],
        config.variant == "multi-view",
        config.channels,
        config.layers,
        config.text_width,
        config.size,
    )
    if config.start is not None:
        start_from(config.start, pipeline)
    if config.views > 1:
        join_views(pipeline.unet, config.views)
    nets = nn.ModuleDict({"unet": pipeline.unet, "text_encoder": pipeline.text_encoder}).train().to(device)
    averaged = copy.deepcopy(nets).requires_grad_(False).eval()
    optimizer = accelerator.prepare(
        torch.optim.AdamW(nets.parameters(), config.learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
    )
    kept = pipeline.scheduler.alphas_cumprod
    album = Album(
        Path(config.pictures).expanduser() if config.pictures else folder.path / "pictures",
        config.seed,
        config.size,
        config.chunk // config.views,
        config.views,
    )

    # where an earlier process stopped
    guard, scaler = FiniteGuard(config.on_nonfinite), accelerator.scaler
    learner = Learner(nets, averaged, optimizer, accelerator, guard)
    saved = {"nets": nets, "averaged": averaged, "optimizer": optimizer, "guard": guard}
    step, seconds = 0, 0.0
    found = checkpoint.load_latest(folder.checkpoints)
    if found is not None:
        checkpoint.restore(found, saved, ("seconds", "scaler"))
        step, seconds = found.step, found.state["seconds"]
        # A run may go on in another precision.
        if scaler is not None and found.state["scaler"] is not None:
            scaler.load_state_dict(found.state["scaler"])
    if main:
        cut_back(folder.metrics, step)
    begun = time.process_time() - (seconds if main else 0.0)
    # the part of a batch's objects that is this process's
    share = config.batch_size // config.views // accelerator.num_processes
    mine = slice(accelerator.process_index * share, (accelerator.process_index + 1) * share)
    rows = slice(mine.start * config.views, mine.stop * config.views)
    pages = config.chunk // config.batch_size
    chunk_number, chunk, texts = -1, None, None

    bar = tqdm(
        total=config.steps, initial=step, desc=folder.path.name, disable=None if main else True, leave=False
    )
    with (
        StopFlag() as stop,
        bar,
        MetricsLog(folder.metrics, config.tracker, "fsd") if main else nullcontext() as log,
    ):
        while step < config.steps:
            # a batch: the pages of a chunk in an order of their own, each time it comes round
            generator = torch.Generator().manual_seed(1_000_000_007 * (config.seed + 1) + step)
            turn, page = divmod(step, pages)
            if chunk is None or turn % config.chunks != chunk_number:
                chunk_number = turn % config.chunks
                chunk = album[chunk_number]
                texts = _token_ids(pipeline.tokenizer, chunk)
            chosen = order_of(chunk, config.sides, turn).view(pages, -1)[page]
            images = chunk.images[chosen].flatten(0, 1) / 127.5 - 1
            cameras = chunk.cameras[chosen].flatten(0, 1) if config.views > 1 else None
            batch = noised(images, cameras, kept, config.views, generator).to(rows, device)
            captions = texts[chosen[mine]].flatten(0, 1).to(device)
            taken = take_step(learner, batch, captions, step, config)
            step += 1
            bar.update()

            if taken is not None and (step % config.log_every == 0 or step in (1, config.steps)):
                mean = accelerator.reduce(taken.loss, "mean")
                seconds = used_everywhere(accelerator, begun)
                if log is not None:
                    log.log(
                        step,
                        loss=mean,
                        grad_norm=taken.gradient_norm,
                        lr=taken.learning_rate,
                        time={"core_seconds": seconds},
                    )
            stopped = stop.agreed()
            if stopped or step % config.checkpoint_every == 0 or step == config.steps:
                seconds = used_everywhere(accelerator, begun)
                state = {"seconds": seconds, "scaler": None if scaler is None else scaler.state_dict()}
                checkpoint.save(folder.checkpoints, step, saved, state)
            if main and (step % config.sample_every == 0 or step == config.steps):
                show(config, with_networks(pipeline, averaged), folder, step)
            if stopped and step < config.steps:
                raise SystemExit(stop.exit_code)
    accelerator.wait_for_everyone()
    lines = records.read(folder.metrics)[-LOSS_OVER:]
    if not lines:
        raise NonFiniteError(f"all {step} steps were left out, as their numbers are not finite: {ADVICE}")
    result = {
        "variant": config.variant,
        "steps": step,
        "pictures_seen": step * config.batch_size,
        "parameters": sum(p.numel() for p in nets.parameters()),
        "megabytes": sum(f.stat().st_size for f in (folder.path / "pipeline").rglob("*") if f.is_file())
        / 1e6,
        "loss": float(np.mean([line["loss"] for line in lines])),
        "core_seconds": seconds,
        "skipped_steps": guard.skipped,
        "seed": config.seed,
    }
    if main:
        write_json(folder.result, result)
        report(config, folder, result)
    return result


def used_everywhere(accelerator: Accelerator, begun: float) -> float:
    """Core-seconds of all processes; every process has to ask."""
    used = time.process_time() - begun
    if accelerator.num_processes == 1:
        return used
    seconds: Any = accelerator.reduce(torch.tensor(used, device=accelerator.device), "sum")
    return float(read_back(seconds, "core-seconds of all processes"))


def start_from(path: str, pipeline: StableDiffusionPipeline) -> None:
    """Copies the weights of a trained pipeline; what only this one has, the cameras' layers, at first adds nothing.

    Raises ValueError for a pipeline of other words or sizes.
    """
    trained = load_pipeline(path)
    try:
        if trained.tokenizer.get_vocab() != pipeline.tokenizer.get_vocab():
            raise ValueError("its tokenizer knows other words")
        pipeline.text_encoder.load_state_dict(trained.text_encoder.state_dict())
        weights = trained.unet.state_dict()
        found = pipeline.unet.load_state_dict(weights, strict=False)
        if found.unexpected_keys or any(not key.startswith("class_embedding") for key in found.missing_keys):
            raise ValueError("its network is another one")
    except (AttributeError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be started from ({str(error).splitlines()[0]}); give the pipeline folder of a prior that "
            "was trained with the same sizes"
        ) from error
    if found.missing_keys:
        last = pipeline.unet.class_embedding.linear_2
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)


def order_of(chunk: Chunk, sides: float, turn: int) -> Int[Tensor, " n"]:
    """The order in which the objects of a chunk are seen: each once, or at random with replacement.

    `sides` is how many times as often as others an object is drawn whose caption names a kind with a front.  As that
    depends on the caption alone, what there is to learn of any caption stays the same.
    """
    generator = torch.Generator().manual_seed(turn)
    if sides == 1:
        return torch.randperm(len(chunk.images), generator=generator)
    named = [set(captions[0].replace(",", " ").split()) for captions in chunk.captions]
    weights = [1.0 if words.isdisjoint(FRONTED) else sides for words in named]
    return torch.multinomial(torch.tensor(weights), len(weights), replacement=True, generator=generator)


def with_networks(pipeline: StableDiffusionPipeline, nets: nn.ModuleDict) -> StableDiffusionPipeline:
    """The pipeline with other weights, copied."""
    parts = {name: copy.deepcopy(nets[name]) for name in ("unet", "text_encoder")}
    return StableDiffusionPipeline(**{**pipeline.components, **parts}, requires_safety_checker=False)


def show(config: PriorConfig, pipeline: StableDiffusionPipeline, folder: RunFolder, step: int) -> None:
    """Writes the pipeline, and samples of the prompts: always from the same noise, a row of squares each step."""
    prior: Any
    prior = MultiViewPrior(pipeline) if config.views > 1 else DiffusersPrior(pipeline, view_words=False)
    around = turntable(4)
    condition = several(prior, config.prompts, around)
    shape = (len(config.prompts) * len(around), *prior.latent_shape)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(config.seed))
    samples = ddim(prior, condition, noise.to(pipeline.device), config.sample_steps, config.guidance_scale)
    (folder.path / "samples").mkdir(exist_ok=True)
    write_row(to_bytes(samples), folder.path / "samples" / f"step-{step:06d}.png")
    for net in (pipeline.unet, pipeline.text_encoder):
        net.half()
    write_pipeline(pipeline, folder.path / "pipeline")


def _token_ids(tokenizer: Any, chunk: Chunk) -> Int[Tensor, "n views tokens"]:
    flat = [caption for captions in chunk.captions for caption in captions]
    ids = tokenizer(flat, padding="max_length", truncation=True, return_tensors="pt").input_ids
    return ids.unflatten(0, (len(chunk.captions), -1))


def _steps_done(folder: RunFolder) -> int:
    return read_json(folder.result)["steps"]
