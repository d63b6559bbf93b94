"""Processor seconds until 90 % target accuracy on USPS to MNIST: the calibrator against DANN.

    python -m benchmarks.calib.to_90 --out FILE [--quick] [--budget SECONDS] [--seeds 1] [--methods NAME ...]
        [--environments FOLDER]

A measurement of speed and nothing else: the target's *test* labels stop the clock, which nobody who adapts has.  All
begin at the same classifier, trained on the source, whose own training is in no figure.  The clock counts the
processor time of one thread while a method trains, with its set-up; scoring, every 50 steps on all test images, is
left out.

The calibrator runs with the settings of calib/accuracy.py's rows `calibrator`, `calibrator views`, `calibrator
neighbours` and `calibrator taught`, which end with their schedule, and the first once more at a constant rate until the
budget is used up; what is scored is its moving average.  Validation is left out, too, but for the zooms that a teacher
weighs at that time: its training needs them.  DANN has the formula of calib.baselines, its schedule over as many steps
as the first calibrator has, and then goes on.  The DANNs of pytorch-adapt and skada run in environments of their own
(made with uv from pytorch_adapt/requirements.txt and skada/requirements.txt); where that fails, the JSON says what was
tried.

The JSON is written after each method, and the same call goes on where it was interrupted.
"""

import argparse
import json
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from calib import comparison, nets, run
from calib.adaptation import ZOOM_IMAGES
from calib.attachment import attach
from calib.baselines.alignment import domain_critic, domain_loss, reversal_schedule, reverse_gradient
from calib.baselines.form import FeatureNet, Settings, batches, pixels
from calib.config import AdaptConfig, digits
from calib.critics import draw_patch
from calib.data import open_domains
from calib.domains import Domain
from calib.features import Features
from calib.feed import Feed
from calib.neighbours import Neighbours
from calib.players import Players
from calib.source_classifier import bare, build_classifier
from calib.step import Weights, default_critics
from calib.survey import Survey, draw
from calib.views import Teacher, Views
from shared_core.run.processes import join
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset, TensorDataset

from benchmarks.calib.accuracy import source_classifier
from benchmarks.calib.plan import DATA, RACERS, configuration
from benchmarks.core.figures import options, write
from benchmarks.peers.environment import failure, install
from benchmarks.peers.race import race

FOLDER = Path(__file__).parents[1] / "peers"
PEERS = {"pytorch-adapt": "pytorch_adapt", "skada": "skada"}
"""Other projects with a DANN, and the folder of each with its requirements, its dann.py and its environment."""
GOAL, BUDGET, EVERY = 90.0, 600.0, 50
PAIR, IMAGE = "usps-mnist", (32, 32)
TAUGHT = ("calibrator views", "calibrator neighbours", "calibrator taught")

Predict = Callable[[Tensor], Tensor]


class Data(NamedTuple):
    """Bytes [n, 3, 32, 32] and labels of both domains; the target's labels are those of its test images."""

    source: Tensor
    source_labels: Tensor
    target: Tensor
    test: Tensor
    test_labels: Tensor


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--budget", type=float, default=BUDGET, help="processor seconds of a method")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--methods", nargs="+", choices=RACERS, default=RACERS, help="who runs; default: all")
    parser.add_argument(
        "--environments", type=Path, default=FOLDER, help="where the other projects are, in PROJECT/.venv"
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    what = (
        "Processor time of one thread, scoring left out; **the clock is stopped by the target's test labels**, so this "
        f"measures speed and is no way to choose a model.  {given.budget:.0f} s for each; all from the same classifier."
    )
    record: dict[str, Any] = {
        "what": what,
        "goal": GOAL,
        "budget": given.budget,
        "runs": [] if given.quick else earlier(given.out, given.budget),
        "not_measured": [],
    }
    if given.quick or DATA.exists():
        for seed in given.seeds:
            for _ in measure(given, seed, record):
                write(given.out, given.quick, [], **record)
    else:
        record["not_measured"].append(f"anything: there is no {DATA.name} folder with USPS and MNIST")
    for line in record["not_measured"]:
        print(f"not measured: {line}")
    write(given.out, given.quick, [], **record)


def earlier(out: Path, budget: float) -> list[dict[str, Any]]:
    """The runs that an interrupted call with the same budget left behind."""
    record = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
    return record["runs"] if record.get("budget") == budget and not record["quick"] else []


def measure(given: argparse.Namespace, seed: int, record: dict[str, Any]) -> Iterator[None]:
    """All methods from the classifier of one seed; adds to the record's runs, one at each turn."""
    config, classifier, data = opened(given.quick, seed)
    limits: dict[str, Any] = {"goal": GOAL, "budget": given.budget, "every": EVERY}
    if given.quick:
        limits |= {"goal": 101.0, "every": 2}
    last = 4 if given.quick else None
    done = {run["method"] for run in record["runs"] if run["seed"] == seed}

    def add(method: str, found: dict[str, Any]) -> None:
        reached = "not reached" if found["reached"] is None else f"reached after {found['reached']:.0f} s"
        best = found["best"]
        print(
            f"{method}, seed {seed}: {reached}, best {best['accuracy']:.2f} at {best['seconds']:.0f} s",
            flush=True,
        )
        record["runs"].append({"method": method, "seed": seed, **found})

    entrants = {
        "calibrator": calibrator(classifier, data, config, seed, config.steps),
        "calibrator, constant rate": calibrator(classifier, data, config, seed, last),
    }
    for row in TAUGHT:
        changed = taught(config, row, given.quick)
        entrants[row] = calibrator(classifier, data, changed, seed, changed.steps)
    entrants["DANN"] = dann(classifier, data, config, seed, last)
    for method, (steps, predict) in entrants.items():
        if method in given.methods and method not in done:
            add(method, race(steps, predict, data.test, data.test_labels, **limits))
            yield
    for peer, folder in PEERS.items():
        method, environment = f"DANN of {peer}", given.environments / folder / ".venv"
        if method in done or method not in given.methods:
            continue
        try:
            if not given.quick:
                install(environment, FOLDER / folder / "requirements.txt")
            elif not environment.exists():
                record["not_measured"].append(f"{peer}: its environment is not made in a quick run")
                continue
            add(method, theirs(folder, environment, classifier, data, config, seed, last, limits))
            yield
        except subprocess.CalledProcessError as error:
            record["not_measured"].append(f"{peer}: {failure(error)}")


def taught(config: AdaptConfig, row: str, quick: bool) -> AdaptConfig:
    """The settings with the row's teacher and length; in a quick run few neighbours and no more steps."""
    of_row = configuration(PAIR, row)
    few = {"count": 2} if quick and of_row.neighbours.count else {}
    changed = {"loss": of_row.loss, "views": of_row.views}
    changed["neighbours"] = of_row.neighbours.model_copy(update=few)
    if not quick:
        changed |= {name: getattr(of_row, name) for name in ("steps", "batch_size", "validate_every")}
    return config.model_copy(update=changed)


def opened(quick: bool, seed: int) -> tuple[AdaptConfig, nn.Module, Data]:
    """Settings, the source's classifier and the images; in a quick run digits and an untrained one."""
    config = configuration(PAIR, "calibrator")
    if quick:
        small = {"classifier": "small:dtn", "steps": 4, "width": 2, "blocks": 1, "batch_size": 8}
        small |= {"validate_every": 2, "validation_images": 20}
        config = digits().model_copy(update=small)
    domains = open_domains(config)
    if not quick:
        weights = source_classifier(PAIR, config, domains, seed)
        config = config.model_copy(update={"weights": weights})
    source, target, test = (
        comparison.all_items(part)
        for part in (domains.source_train, domains.target_train, cast(Dataset, domains.target_test))
    )
    return config, build_classifier(config, domains).eval(), Data(*source, target[0], *test)


def calibrator(
    classifier: nn.Module, data: Data, config: AdaptConfig, seed: int, schedule: int | None
) -> tuple[Iterator[None], Predict]:
    """Steps of calib's game as calib.adapt plays it, at a cosine rate over `schedule` steps, or without end."""
    torch.manual_seed(seed)
    model = attach(classifier, run.build_calibrator(config, 3))
    weights, features = Weights(**config.loss.model_dump()), Features(classifier)
    torch.manual_seed(seed)
    answer = torch.zeros(1, int(data.source_labels.max()) + 1)
    critics = default_critics(3, config.patch, answer, weights)
    accelerator = join("cpu")
    players = Players(
        model.calibrator, critics, features, weights, accelerator, steps=schedule or 0, ema=config.ema,
        learning_rate=config.optim.learning_rate, schedule="cosine" if schedule else "constant",
    )  # fmt: skip

    def predict(images: Tensor) -> Tensor:
        return classifier(players.kept(images))

    def steps() -> Iterator[None]:
        how = Neighbours(**config.neighbours.model_dump())
        unlabelled = TensorDataset(data.target)
        source, target = (
            Domain(name, images, model.calibrator, config.batch_size, seed)
            for name, images in (
                ("source", TensorDataset(data.source)),
                ("target", draw(unlabelled, how.images, seed) if how.count else unlabelled),
            )
        )
        sample = target.some(config.validation_images).pixels[:ZOOM_IMAGES]
        teacher = None
        if weights.views:
            teacher = Teacher(lambda images: predict(images).softmax(1), Views(**config.views.model_dump()))
        survey = None
        if teacher is not None and how.count:
            survey = Survey(teacher, target, how, seed, torch.device("cpu"))
        feed = Feed(
            [source, target], features, classifier, weights, seed, torch.device("cpu"), survey or teacher,
            judged=critics.feature is not None,
        )  # fmt: skip
        feed.fill_tables(config.steps * config.batch_size)
        for step in range(schedule) if schedule else count():
            if teacher is not None and step % config.validate_every == 0:
                teacher.weigh_zooms(sample)
            if survey is not None and step % how.every == 0:
                survey.ask(step)
            patch = draw_patch(*IMAGE, config.patch, seed, step) if critics.pixel else None
            batch = feed.next_batch(step)
            players.play([(batch, patch)])
            yield

    return steps(), predict


def dann(
    classifier: nn.Module, data: Data, config: AdaptConfig, seed: int, end: int | None
) -> tuple[Iterator[None], Predict]:
    """Steps of calib.baselines.dann; the reversal grows over the calibrator's number of steps and stays."""
    torch.manual_seed(seed)
    settings = Settings(batch_size=config.batch_size)
    net = FeatureNet(classifier)

    def steps() -> Iterator[None]:
        critic = domain_critic(net.width, settings.domain_hidden)
        optimizer = torch.optim.Adam([*net.parameters(), *critic.parameters()], settings.learning_rate)
        orders = [
            batches(len(images), settings.batch_size, seed + k)
            for k, images in enumerate((data.source, data.target))
        ]
        net.train()
        for step in range(end) if end else count():
            at, there = (next(order) for order in orders)
            (logits, source_features), (_, target_features) = (
                net(pixels(x, net)) for x in (data.source[at], data.target[there])
            )
            scale = reversal_schedule(min(step / config.steps, 1.0))
            verdicts = [critic(reverse_gradient(f, scale)) for f in (source_features, target_features)]
            loss = functional.cross_entropy(logits, data.source_labels[at])
            optimizer.zero_grad()
            (loss + settings.domain_weight * domain_loss(*verdicts)).backward()
            optimizer.step()
            yield

    def predict(images: Tensor) -> Tensor:
        net.eval()
        logits = net(images)[0]
        net.train()
        return logits

    return steps(), predict


def theirs(
    folder: str,
    environment: Path,
    classifier: nn.Module,
    data: Data,
    config: AdaptConfig,
    seed: int,
    end: int | None,
    limits: dict[str, Any],
) -> dict[str, Any]:
    """The DANN of another project, `folder`/dann.py, in its own process.

    Raises:
        subprocess.CalledProcessError: it failed; ``stderr`` is its traceback.
    """
    settings = Settings(batch_size=config.batch_size)
    own = {name: getattr(settings, name) for name in ("batch_size", "learning_rate", "domain_hidden")}
    with tempfile.TemporaryDirectory() as scratch:
        arrays = {name: value.numpy() for name, value in data._asdict().items()}
        arrays |= {f"net.{name}": value.numpy() for name, value in bare(classifier).state_dict().items()}
        np.savez(Path(scratch) / "data.npz", **arrays)
        given = json.dumps({**own, **limits, "seed": seed, "steps": end})
        command = [
            environment / "bin/python",
            FOLDER / folder / "dann.py",
            nets.__file__,
            Path(scratch) / "data.npz",
            given,
        ]
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    main()
