"""Train the calibrator of an attached classifier on two domains without target labels.

>>> model = calib.attach(classifier, calib.Calibrator(channels=3, epsilon=0.2), value_range=(0.0, 1.0))
>>> report = calib.adapt(model, source=source_loader, target=target_loader, steps=600)
>>> report.selection, report.chosen_step, report.classifier_unchanged

`adapt` is the recipe and nothing else.  A loop of your own needs :mod:`calib.step`: two losses of one batch.
"""

import time
from collections.abc import Iterable
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from shared_core.ops.freeze import checksums, digest
from shared_core.ops.gather import rank, world_size
from shared_core.run import checkpoint
from shared_core.run.atomic import write_json
from shared_core.run.folder import RunFolder
from shared_core.run.guard import FiniteGuard
from shared_core.run.metrics import MetricsLog, cut_back
from shared_core.run.processes import join
from shared_core.run.stop import StopFlag
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from calib.arguments import check_adapt
from calib.attachment import CalibratedClassifier, drifting
from calib.calibrator import EPSILON_UNIT
from calib.critics import Patch, draw_patch
from calib.domains import Domain
from calib.feed import Feed
from calib.neighbours import Neighbours
from calib.players import Players
from calib.ranges import check_ranges
from calib.refusals import accepted, check_arguments, check_released, try_out
from calib.selection import Selection
from calib.step import Batch, Critics, Weights, default_critics
from calib.survey import Survey, draw
from calib.validation import measure
from calib.views import Teacher, Views

ZOOM_IMAGES = 500
"""Images of the target's sample on which a teacher's zooms are weighed."""


@dataclass(frozen=True)
class AdaptReport:
    """What an adaptation came to.  Target labels chose nothing in it, unless `selection` is "oracle".

    `source_kept_before` and `_after` are of the validation sample: accuracy in percent where the source has
    labels, else the share of images still named as without the calibrator.  `outputs`: what the classifier's answers
    were taken for, "logits" or "probabilities".
    """

    steps: int
    selection: str
    chosen_step: int
    validators: dict[str, float]
    source_kept_before: float
    source_kept_after: float
    epsilon: float
    epsilon_unit: str
    parameter_ratio: float | None
    classifier_unchanged: bool
    classifier_digest: str
    compat: str
    outputs: str
    skipped_steps: int
    seconds: float


def adapt(
    model: CalibratedClassifier,
    source: Dataset | Iterable[Any],
    target: Dataset | Iterable[Any],
    *,
    steps: int = 600,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    critic_learning_rate: float | None = None,
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float = 0.0,
    schedule: str = "constant",
    weights: Weights | None = None,
    views: Views | None = None,
    neighbours: Neighbours | None = None,
    feature: str = "softmax",
    feature_stride: int = 1,
    critics: Critics | None = None,
    patch: int = 4,
    patches: int = 1,
    ema: float | None = 0.99,
    accumulate: int = 1,
    selection: str = "information",
    source_tolerance: float = 1.0,
    validate_every: int = 100,
    validation_images: int = 2000,
    compat: str = "none",
    seed: int = 0,
    device: str = "auto",
    precision: str = "fp32",
    workers: int = 0,
    on_nonfinite: str = "error",
    log_every: int = 10,
    checkpoint_every: int = 200,
    tracker: str = "none",
    out: str | Path | None = None,
    resume: bool = False,
    config: dict[str, Any] | None = None,
) -> AdaptReport:
    """Train `model.calibrator`; the classifier stays as it is, bit for bit.

    Args:
        source, target: a map-style Dataset, or an iterable of batches; items or batches are images or
            (images, labels, ...), uint8 or floats in the calibrator's value range.  Target labels are never looked
            at, unless `selection` is "oracle".  Source labels, if any, only measure how much of the source is kept.
        batch_size: images of each domain per step over all processes; a loader has its own.
        schedule: of both learning rates, "constant" (the paper's) or "cosine" down to 0.
        weights: of the loss, see :class:`calib.step.Weights`; feature=0 needs no gradient of the classifier.
        views: which views of a target image teach where `weights.views` is above 0, see :mod:`calib.views`.
        neighbours: with a `count` above 0, what the views say is agreed on among images that look alike, for the
            whole target every `every` steps, see :mod:`calib.neighbours`; the target must be a data set.
        feature: what the feature critic sees: "softmax", "logits" or "layer:NAME"; of feature maps every
            `feature_stride`-th pixel of every `feature_stride`-th row.
        critics: your own; default: a pixel critic on `patches` patches of `patch` by `patch` pixels a step, and a
            feature critic that fits the features (per pixel where they are maps), each where it weighs something.
            With both weights 0 the views alone teach, and no critic is trained.
        ema: decay of the averaged calibrator that is validated and kept; None keeps the trained one itself.
        accumulate: batches whose gradients make one step.
        selection: "information", "entropy", "neighbourhood", "confusion" (all without labels), "last", or "oracle".
            The best validated calibrator is kept among those whose source accuracy fell by at most
            `source_tolerance` points on the validation sample; the first, the identity, is among them.
        compat: "released" lets the classifier's buffers drift and draws patches from the top rows, as the released
            code does; it asks for a calibrator built with mode="released", whose correction only brightens.
        out: run folder for metrics, checkpoints and the calibrator.  With `resume` a stopped run goes on from its
            newest whole checkpoint: bit for bit where both domains are data sets.
        tracker: "tensorboard" or "wandb", for the numbers of metrics.jsonl too; needs `out` and the extra.
        config: what the run folder's config.yaml says, and `resume` compares.

    Raises:
        ValueError: an argument or data that do not fit (shapes, ranges, NaN), or a classifier without gradients.
        ClassifierChangedError: the classifier writes its own state while it answers.
        NonFiniteError: the loss or gradient is not finite (on_nonfinite="skip" passes over up to 10 steps in a row).
        SystemExit: 130 or 143, after saving, when the process was told to stop and `out` is given.
    """
    check_adapt(model, locals())
    weights = weights or Weights()
    released, careful = compat == "released", on_nonfinite == "skip"
    if neighbours is not None and neighbours.count == 0:
        neighbours = None
    check_arguments(compat, selection, schedule, precision, steps, batch_size, accumulate, world_size())
    if released:
        check_released(model.calibrator.mode, weights)
    if neighbours is not None and not weights.views:
        raise ValueError(
            "neighbours agree on what the views say: give weights.views above 0, or neighbours.count 0"
        )
    accelerator = join(device, precision)
    on, main = accelerator.device, accelerator.is_main_process
    model.to(on)
    calibrator = model.calibrator

    # both domains, and whether they fit each other and the classifier
    if neighbours is not None:
        target = draw(target, neighbours.images, seed)
    domains = [
        Domain(
            name, given, calibrator, batch_size // accumulate, seed, rank(), world_size(), workers, careful
        )
        for name, given in (("source", source), ("target", target))
    ]
    samples = [domain.some(validation_images) for domain in domains]
    check_ranges(samples[0].pixels, samples[1].pixels, domains[0].ends)
    if selection == "oracle" and samples[1].labels is None:
        raise ValueError("selection is 'oracle', but the target has no labels: choose one without labels")
    wanted = weights.feature > 0 if critics is None else critics.feature is not None
    features = None
    if wanted or weights.name_classes():
        features = model.features(feature, feature_stride)
    outputs = model.settle(samples[0].pixels[:64].to(on))
    example = try_out(model, features, weights, samples[0].pixels[:2].to(on))

    with ExitStack() as open_things:
        # First values depend on the seed alone, and the caller's random state stays as it was.
        open_things.enter_context(torch.random.fork_rng(devices=[on] if on.type == "cuda" else []))
        torch.manual_seed(seed)
        critics = (critics or default_critics(calibrator.channels, patch, example, weights)).to(on)
        players = Players(
            calibrator,
            critics,
            features,
            weights,
            accelerator,
            steps=steps,
            learning_rate=learning_rate,
            critic_learning_rate=critic_learning_rate,
            betas=betas,
            weight_decay=weight_decay,
            schedule=schedule,
            ema=ema,
            watched=[model.classifier] if released else [],
        )
        teacher = survey = None
        if weights.views:
            teacher = Teacher(lambda images: model.ask(players.kept(images)).softmax(1), views or Views())
            if neighbours is not None:
                survey = Survey(teacher, domains[1], neighbours, seed, on, accelerator.autocast)
        chosen, guard = Selection(selection, source_tolerance), FiniteGuard(on_nonfinite)

        # where an earlier process stopped
        optional = {
            "teacher": teacher,
            "survey": survey,
            "classifier": model.classifier if released else None,
        }
        saved = players.saved() | {"chosen": chosen, "guard": guard}
        saved |= {name: thing for name, thing in optional.items() if thing is not None}
        folder = RunFolder(out) if out is not None else None
        step = 0
        state: dict[str, Any] = {"seconds": 0.0}
        if folder is not None:
            if main:
                open_things.enter_context(
                    folder.open(config or {"seed": seed, "steps": steps}, resume=resume)
                )
            accelerator.wait_for_everyone()
            newest = checkpoint.load_latest(folder.checkpoints) if resume else None
            if newest is not None:
                checkpoint.restore(newest, saved, ("seconds", "rng"))
                step, state = newest.step, newest.state
                checkpoint.set_rng_state(state["rng"])
            if main:
                # Without a checkpoint the line of step 0, too, is about to come again.
                cut_back(folder.metrics, step or -1)
        feed = Feed(
            domains, features, model.ask, weights, seed, on, survey or teacher, accelerator.autocast,
            judged=critics.feature is not None,
        )  # fmt: skip
        feed.seek(step * accumulate)
        if not released:
            feed.fill_tables(steps * batch_size)
        begun = time.perf_counter() - state["seconds"]

        def drawn(part: Batch, turn: int) -> Patch | None:
            if critics.pixel is None:
                return None
            sides = zip(part.source.shape[2:], part.target.shape[2:], strict=True)
            height, width = (min(pair) for pair in sides)
            return draw_patch(height, width, critics.pixel.patch, seed, turn, patches, top_rows_only=released)

        def validate() -> None:
            kept, oracle = players.kept, selection == "oracle"
            values = measure(model, kept, critics, features, samples, on, patch, seed, oracle)
            is_best = chosen.consider(step, values, kept)
            if teacher is not None:
                teacher.weigh_zooms(samples[1].pixels[:ZOOM_IMAGES].to(on), shared=True)
            if log:
                log.log(step, validators=values, chosen=is_best)

        def save() -> None:
            if folder is not None:
                state.update(seconds=time.perf_counter() - begun, rng=checkpoint.rng_state())
                checkpoint.save(folder.checkpoints, step, saved, state)
            accelerator.wait_for_everyone()

        log = (
            open_things.enter_context(MetricsLog(folder.metrics, tracker, "calib"))
            if folder is not None and main
            else None
        )
        stop = open_things.enter_context(StopFlag()) if folder is not None else None
        hidden = None if main else True
        shown = tqdm(total=steps, initial=step, desc=f"calibrator seed {seed}", disable=hidden, leave=False)
        bar = open_things.enter_context(shown)
        if step == 0:
            validate()
            model.verify()
        open_things.enter_context(drifting(model) if released else nullcontext())
        while step < steps:
            started = time.perf_counter()
            if survey is not None and step % survey.how.every == 0:
                survey.ask(step)
            judge = partial(accepted, guard, accelerator, step + 1)
            turns = range(step * accumulate, (step + 1) * accumulate)
            # Read inside: what reading moves is put back with the rest where the step is refused.
            rounds = ((part, drawn(part, turn)) for turn in turns for part in [feed.next_batch(turn)])
            parts = players.play(rounds, judge, careful)
            if guard.in_a_row == 0:  # the step was accepted
                guard.scaled(players.left_out, step + 1)
            step += 1
            bar.update()

            if log and (step % log_every == 0 or step == steps):
                seconds = time.perf_counter() - started
                log.log(step, **parts, rates=players.rates(), time={"step_seconds": seconds})
            if step % validate_every == 0 or step == steps:
                validate()
            stopped = stop is not None and stop.agreed()
            if stopped or step % checkpoint_every == 0 or step == steps:
                save()
            if stopped and step < steps:
                assert stop is not None
                raise SystemExit(stop.exit_code)

        calibrator.load_state_dict(chosen.weights)
        model.eval()
        report = AdaptReport(
            steps=steps,
            selection=selection,
            chosen_step=chosen.step,
            validators=chosen.validators,
            source_kept_before=chosen.kept_before or 0.0,
            source_kept_after=chosen.validators["source_kept"],
            epsilon=calibrator.epsilon,
            epsilon_unit=EPSILON_UNIT,
            parameter_ratio=model.parameter_ratio(),
            classifier_unchanged=model.unchanged(),
            classifier_digest=digest(checksums(model.classifier)),
            compat=compat,
            outputs=outputs,
            skipped_steps=guard.skipped,
            seconds=time.perf_counter() - begun,
        )
        if folder is not None and main:
            calibrator.save_pretrained(folder.path / "calibrator")
            write_json(folder.path / "adaptation.json", asdict(report))
        accelerator.wait_for_everyone()
        accelerator.free_memory()
    return report
