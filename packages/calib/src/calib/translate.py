"""Translate images of one domain into the style of another, for gaps that a small correction cannot bridge.

    train_translation(source, target, PRESETS["digits"], seed=0, out="runs/style")      # a small CycleGAN
    write_translations(load_translation("runs/style"), source, "runs/style")  # runs/style/train/CLASS/ID.png
    calib adapt --translated imagefolder:runs/style ...                     # stands in for the source

Writing and measuring translations is in :mod:`calib.translations`.

Translations keep the label of their original, as in the paper (arXiv 1911.12796, with images of CyCADA); any
tool's output in that layout of folders will do as well.

What is known to go wrong: nothing in the losses keeps a digit the digit it was.  A generator may turn sevens into
ones and undo it on the way back, the more so where the two domains hold classes in different shares; long training
and critics that see whole images make it worse.  So measure :func:`calib.translations.label_flips` first.  Where the
domains hold the same figures at other sizes and slants, `pose` brings the source there first (:mod:`calib.pose`).

What a step sees is a pure function of (seed, step), so that a resumed training equals a straight one bit for bit.
Processes of a torchrun share each batch, and all keep the same pools of old images: several learn what one does.
"""

import os
import time
from collections.abc import Iterator, Sized
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from accelerate import Accelerator
from safetensors.torch import save
from shared_core.data.augment import to_float
from shared_core.data.loader import KeyedDataset, make_loader
from shared_core.data.sampling import Batches, shuffled_plan
from shared_core.ops.gather import all_gather
from shared_core.ops.gradients import average_gradients
from shared_core.ops.host import read_back
from shared_core.ops.inputs import check_dataset
from shared_core.run import checkpoint
from shared_core.run.atomic import read_json, write_bytes, write_json
from shared_core.run.config import ConfigError
from shared_core.run.folder import RunFolder
from shared_core.run.guard import FiniteGuard
from shared_core.run.metrics import MetricsLog, cut_back
from shared_core.run.processes import join
from shared_core.run.stop import StopFlag
from shared_core.run.trackers import TRACKERS
from shared_core.run.weights import save_weights
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from calib.cyclegan import ImagePool, critic_loss, cycle_loss, generator, generator_loss, patch_critic
from calib.pose import PosedImages, fitting, poses_of

PLAYERS = ("generators", "critics")


@dataclass(frozen=True)
class TranslateSettings:
    """How a translation is trained.

    Images are scaled to `size` by `size` pixels and `channels` 1 or 3.  The learning rate falls
    linearly to 0 over the second half of the steps.  `critic_strided` is of :func:`calib.cyclegan.patch_critic`.
    With `pose` the source's figures are first brought to sizes, slants and places of the target's; that is for one
    figure on an even ground, as digits and signs are.  `tracker`, "tensorboard" or "wandb", gets the numbers of
    metrics.jsonl, too, and needs the extra of that name.
    The paper weighs cycles 10 and identity 5.  That holds generators that start at the identity there for hundreds
    of steps: every cycle is perfect as long as nothing changes.  So both are a tenth of it here.
    """

    size: int = 32
    channels: int = 3
    steps: int = 1000
    batch_size: int = 16
    learning_rate: float = 5e-4
    width: int = 12
    blocks: int = 3
    critic_width: int = 32
    critic_strided: int = 1
    cycle_weight: float = 1.0
    identity_weight: float = 0.5
    pool: int = 50
    pose: bool = False
    log_every: int = 20
    checkpoint_every: int = 200
    workers: int = 0
    tracker: str = "none"

    def __post_init__(self) -> None:
        least = {
            "size": 8,
            "cycle_weight": 0,
            "identity_weight": 0,
            "pool": 0,
            "pose": 0,
            "blocks": 0,
            "workers": 0,
        }
        if self.tracker not in ("none", *TRACKERS):
            raise ValueError(f"tracker is {self.tracker!r}; choose none, {', '.join(TRACKERS)}")
        for name, value in vars(self).items():
            if name == "tracker":
                continue
            if value < least.get(name, 0) or (value == 0 and name not in least):
                raise ValueError(f"{name} is {value}; give {least.get(name, 'a number above 0')}")
        if self.channels not in (1, 3) or self.critic_strided not in (1, 2, 3):
            raise ValueError(
                f"channels is {self.channels} and critic_strided {self.critic_strided}; "
                "choose 1 or 3 channels, and 1, 2 or 3 strided convolutions"
            )


PRESETS: dict[str, TranslateSettings] = {
    # A critic of 16 pixels: it sees strokes and not the whole digit, so it asks for no other digit.
    "digits": TranslateSettings(),
    # The paper's sizes and weights, for a GPU and long training.  Not tried on this scale.
    "large": TranslateSettings(
        size=256,
        steps=100_000,
        batch_size=1,
        learning_rate=2e-4,
        width=64,
        blocks=9,
        critic_width=64,
        critic_strided=3,
        cycle_weight=10.0,
        identity_weight=5.0,
        checkpoint_every=2000,
        workers=2,
    ),
}


def train_translation(
    source: Dataset,
    target: Dataset,
    settings: TranslateSettings,
    seed: int,
    out: str | os.PathLike[str],
    resume: bool = False,
    device: str = "auto",
) -> dict[str, Any]:
    """Trains a CycleGAN between two data sets of uint8 images into the run folder `out`; returns its result.

    Labels are not read.  The folder gets `generator.safetensors` (source to target), `back.safetensors`, with `pose`
    `poses.safetensors` (of the target), metrics.jsonl, checkpoints and result.json.  With `resume` an unfinished run
    goes on, a finished one is read.

    Raises ValueError for a folder or device that cannot be used, ConfigError for a batch that the processes cannot
    share evenly, NonFiniteError, and SystemExit 130 or 143, after saving, when a process was told to stop.
    """
    check_dataset("source", source)
    check_dataset("target", target)
    accelerator = join(device)
    sizes = [min(settings.batch_size, len(cast(Sized, data))) for data in (source, target)]
    for batch in sizes:
        if batch % accelerator.num_processes:
            raise ConfigError(
                f"a batch of {batch} images cannot be shared evenly by {accelerator.num_processes} processes"
            )
    folder = RunFolder(out)
    if resume and folder.finished():
        return read_json(folder.result)
    opened: AbstractContextManager[Any] = nullcontext()
    if accelerator.is_main_process:
        values = {**asdict(settings), "seed": seed}
        opened = folder.open(values, resume=resume, ignore=("workers", "log_every", "tracker"))
    with opened:
        accelerator.wait_for_everyone()
        return _train(source, target, settings, seed, folder, accelerator)


def _train(
    source: Dataset,
    target: Dataset,
    settings: TranslateSettings,
    seed: int,
    folder: RunFolder,
    accelerator: Accelerator,
) -> dict[str, Any]:
    s, device, main = settings, accelerator.device, accelerator.is_main_process
    like = poses_of(target, s.size, s.channels) if s.pose else None
    if like is not None:
        source = PosedImages(source, like, s.size, s.channels, seed)

    # nets: their first values depend on the seed alone
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        nets = nn.ModuleDict(
            {
                "forth": generator(s.channels, s.width, s.blocks),
                "back": generator(s.channels, s.width, s.blocks),
                "source_critic": patch_critic(s.channels, s.critic_width, s.critic_strided),
                "target_critic": patch_critic(s.channels, s.critic_width, s.critic_strided),
            }
        ).to(device)
    forth, back = nets["forth"], nets["back"]
    source_critic, target_critic = nets["source_critic"], nets["target_critic"]
    generators, critics = nn.ModuleList([forth, back]), nn.ModuleList([source_critic, target_critic])
    optimizers = [
        torch.optim.Adam(players.parameters(), s.learning_rate, betas=(0.5, 0.999))
        for players in (generators, critics)
    ]
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(o, lambda step: min(1.0, 2 * (1 - step / s.steps)))
        for o in optimizers
    ]
    pools = [ImagePool(s.pool, seed), ImagePool(s.pool, seed + 1)]
    guard = FiniteGuard("error")

    # where an earlier process stopped
    saved: dict[str, Any] = {"nets": nets}
    for number in range(2):
        saved |= {f"optimizer{number}": optimizers[number], f"schedule{number}": schedules[number]}
        saved[f"pool{number}"] = pools[number]
    step, seconds, last = 0, 0.0, {}
    found = checkpoint.load_latest(folder.checkpoints)
    if found is not None:
        checkpoint.restore(found, saved, ("seconds", "last"))
        step, seconds, last = found.step, found.state["seconds"], found.state["last"]
    if main:
        cut_back(folder.metrics, step)
    streams = [_stream(data, s, seed + i, step, accelerator) for i, data in enumerate((source, target))]
    begun = time.perf_counter() - seconds
    bar = tqdm(total=s.steps, initial=step, desc="translate", disable=None if main else True, leave=False)

    opened_log = MetricsLog(folder.metrics, s.tracker, "calib") if main else nullcontext()
    with StopFlag() as stop, opened_log as log, bar:
        while step < s.steps:
            started = time.perf_counter()
            x, y = (to_float(next(stream).to(device)) for stream in streams)

            # generators: fool both critics, come back to where they started, leave their own output domain alone
            nets.requires_grad_(True)
            critics.requires_grad_(False)
            fake_target, same_target = forth(torch.cat([x, y])).split([len(x), len(y)])
            fake_source, same_source = back(torch.cat([y, x])).split([len(y), len(x)])
            parts = {
                "adversarial": generator_loss(target_critic(fake_target))
                + generator_loss(source_critic(fake_source)),
                "cycle": s.cycle_weight
                * (cycle_loss(back(fake_target), x) + cycle_loss(forth(fake_source), y)),
                "identity": s.identity_weight * (cycle_loss(same_source, x) + cycle_loss(same_target, y)),
            }
            _update(generators, optimizers[0], torch.stack(list(parts.values())).sum())

            # critics: real images against made ones, old and new
            critics.requires_grad_(True)
            old_source, old_target = (
                _own(pool.swap(all_gather(fake.detach()), step), accelerator)
                for pool, fake in zip(pools, (fake_source, fake_target), strict=True)
            )
            verdicts = {
                "critic_source": critic_loss(source_critic(x), source_critic(old_source)),
                "critic_target": critic_loss(target_critic(y), target_critic(old_target)),
            }
            # Both at once: every look makes the CPU wait for the device.
            guard.accepts({**parts, **verdicts}, step + 1)
            _update(critics, optimizers[1], torch.stack(list(verdicts.values())).sum())
            for schedule in schedules:
                schedule.step()
            step += 1
            bar.update()

            if step % s.log_every == 0 or step == s.steps:
                named = {name: part.detach() for name, part in {**parts, **verdicts}.items()}
                means = accelerator.reduce(torch.stack(list(named.values())), "mean")
                last = dict(zip(named, read_back(means, "numbers for the log").tolist(), strict=True))
                if log is not None:
                    rates = {
                        name: rate.get_last_lr()[0] for name, rate in zip(PLAYERS, schedules, strict=True)
                    }
                    log.log(step, **last, rates=rates, time={"step_seconds": time.perf_counter() - started})
            stopped = stop.agreed()
            if stopped or step % s.checkpoint_every == 0 or step == s.steps:
                state = {"seconds": time.perf_counter() - begun, "last": last}
                checkpoint.save(folder.checkpoints, step, saved, state)
            if stopped and step < s.steps:
                raise SystemExit(stop.exit_code)

    result = {"steps": step, "seed": seed, **last, "seconds": time.perf_counter() - begun}
    if main:
        save_weights(forth, folder.path / "generator.safetensors")
        save_weights(back, folder.path / "back.safetensors")
        if like is not None:
            write_bytes(folder.path / "poses.safetensors", save(like._asdict()))
        write_json(folder.result, result)
    accelerator.wait_for_everyone()
    return result


def _stream(
    data: Dataset, settings: TranslateSettings, seed: int, step: int, accelerator: Accelerator
) -> Iterator[Tensor]:
    """This process's parts of batches without end, from batch number `step` on, fitted to the generator."""
    size = len(cast(Sized, data))
    plan = shuffled_plan(size, min(settings.batch_size, size), seed)
    batches = Batches(plan, accelerator.process_index, accelerator.num_processes)
    batches.seek(step // len(batches), step % len(batches))
    keyed = KeyedDataset(data, seed, transform=fitting(settings.size, settings.channels).fit)
    loader = make_loader(keyed, batches, settings.workers)
    while True:
        for images, *_ in loader:
            yield images


def _own(images: Tensor, accelerator: Accelerator) -> Tensor:
    """This process's part of images that all have."""
    return images.chunk(accelerator.num_processes)[accelerator.process_index]


def _update(players: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    average_gradients(players)
    optimizer.step()
