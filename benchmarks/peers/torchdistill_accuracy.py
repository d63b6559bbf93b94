"""Accuracy of torchdistill's distillation and of CORSD on the same images, batches and first weights.

    python -m benchmarks.peers.torchdistill_accuracy --out FILE [--quick] [--environment FOLDER]

scikit-learn's digits as in corsd/accuracy.py, setting "digits": the same 300 batches of 60 augmented images, learning
rates and seed for everybody.  torchdistill distils two models: its teacher is the plain net of another seed, trained
on the same batches.  So its student has seen as many images as ours when the teacher's are not counted, and with
"half the steps" when they are: teacher and student then have half of the batches each.

"control" is their plain loop against ours: it has to be 0 for every seed, or the two sides do not train the same.  For
that ours keeps the order of dimensions that theirs has: channels-last adds in another order, which after 30 steps is
another net.  Differences are in points of test accuracy, paired over seeds; the JSON also holds the processor seconds
of each training.
If the environment cannot be made or does not run, the JSON says what was tried and how it failed.
"""

import json
import subprocess
import tempfile
from collections.abc import Callable, Sized
from itertools import chain, islice
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any, cast

import numpy as np
import torch
from corsd import nets
from corsd.data import open_data, training_set
from corsd.methods import batch_plan
from corsd.schedule import rate_schedule
from corsd.train import train_cell
from shared_core.data.loader import make_loader, test_loader
from shared_core.data.sampling import Batches

from benchmarks.core.figures import difference, interleaved, options, write
from benchmarks.corsd.accuracy import FINAL_SEEDS, SETTINGS
from benchmarks.peers.torchdistill_process import ENVIRONMENT, conversation, install, versions, what_failed

SETTING = SETTINGS["digits"].model_copy(update={"channels_last": False})
# torchdistill's variant, and the share of the steps that each of its nets takes.
THEIRS = {
    "there: plain": ("plain", 1.0),
    "there: KD": ("kd", 1.0),
    "there: RKD": ("rkd", 1.0),
    "there: KD, half the steps": ("kd", 0.5),
    "there: RKD, half the steps": ("rkd", 0.5),
}
OURS = {
    "here: plain": {"method": "ce"},
    "here: CORSD in-batch": {"method": "corsd"},
    "here: CORSD triplets": {"method": "corsd", "pairs": "triplets"},
}
COMPARED = {"control": ("there: plain", "here: plain")} | {
    f"{ours.removeprefix('here: ')} over {theirs.removeprefix('there: ')}": (ours, theirs)
    for ours in list(OURS)[1:]
    for theirs in list(THEIRS)[1:]
}


def main() -> None:
    parser = options(__doc__)
    parser.add_argument(
        "--environment", type=Path, default=ENVIRONMENT, help="where torchdistill is installed"
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    steps = 4 if given.quick else 300
    seeds = list(FINAL_SEEDS["digits"])[: 2 if given.quick else None]
    seconds: dict[str, list[float]] = {name: [] for name in OURS | THEIRS}
    with tempfile.TemporaryDirectory() as folder:
        try:
            install(given.environment)
            with conversation(given.environment, "accuracy.py", nets.__file__, SETTING.width) as ask:
                turns = {name: iter(seeds) for name in OURS | THEIRS}

                def turn(name: str) -> Callable[[], float]:
                    def accuracy() -> float:
                        seed = next(turns[name])
                        if name in OURS:
                            found = ours(OURS[name], seed, steps, Path(folder))
                        else:
                            found = json.loads(
                                ask(json.dumps(request(*THEIRS[name], seed, steps, Path(folder))))
                            )
                        seconds[name].append(found["seconds"])
                        return found["accuracy"]

                    return accuracy

                values = interleaved({name: turn(name) for name in turns}, rounds=len(seeds), warmup=0)
        except subprocess.CalledProcessError as error:
            write(given.out, given.quick, [], **what_failed(error), versions=versions())
            return
    figures = [
        difference(name, f"{a} against {b}, {steps} steps, seeds {seeds[0]} to {seeds[-1]}",
                   "points of test accuracy", values, a, b, quick=given.quick)
        for name, (a, b) in COMPARED.items()
    ]  # fmt: skip
    more = {"accuracy": values, "core_seconds": {name: median(took) for name, took in seconds.items()}}
    write(given.out, given.quick, figures, seeds=seeds, steps=steps, **more, versions=versions())


def ours(change: dict[str, Any], seed: int, steps: int, folder: Path) -> dict[str, float]:
    """Accuracy and processor seconds of a training as `corsd train` does it, in a run folder."""
    config = SETTING.model_copy(update={**change, "epochs": steps * SETTING.batch_size / 200})
    begin = process_time()
    with tempfile.TemporaryDirectory(dir=folder) as out:
        accuracy = train_cell(config, seed, Path(out) / "run")["accuracy"]
    return {"accuracy": accuracy, "seconds": process_time() - begin}


def request(variant: str, share: float, seed: int, steps: int, folder: Path) -> dict[str, Any]:
    """What the other side needs to train on the batches, and with the rates, of our plain row."""
    steps = round(share * steps)
    data = open_data(SETTING)
    batches = Batches(batch_plan(SETTING, data.labels, seed)[0])
    loader = make_loader(training_set(SETTING, data, seed, with_index=False), batches)
    taken = list(islice(chain.from_iterable(loader for _ in range(steps)), steps))
    test_images, test_labels = next(iter(test_loader(data.test, len(cast(Sized, data.test)))))
    optim = SETTING.optim
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=optim.lr, momentum=optim.momentum)
    schedule, rates, momenta = rate_schedule(SETTING, optimizer, steps), [], []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        momenta.append(optimizer.param_groups[0]["momentum"])
        optimizer.step()
        schedule.step()
    file = folder / "asked.npz"
    np.savez(
        file,
        images=torch.stack([data.preprocess(images) for images, _ in taken]).numpy(),
        labels=torch.stack([labels for _, labels in taken]).numpy(),
        rates=np.array(rates),
        momenta=np.array(momenta),
        test=data.preprocess(test_images).numpy(),
        test_labels=test_labels.numpy(),
    )
    sgd = {"lr": optim.lr, "momentum": optim.momentum, "weight_decay": optim.weight_decay}
    return {"variant": variant, "seed": seed, "data": str(file), "classes": data.num_classes, "sgd": sgd}


if __name__ == "__main__":
    main()
