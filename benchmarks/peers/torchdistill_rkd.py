"""A step of torchdistill's RKD beside our RKD and our CORSD step, on the same net and batch.

    python -m benchmarks.peers.torchdistill_rkd --out FILE [--quick] [--environment FOLDER]

torchdistill runs in an environment of its own (made with uv from torchdistill/requirements.txt, with our torch)
as a process that trains a step whenever it is asked, so that both sides are measured in the same rounds, each
on one CPU thread or on the GPU.  Its RKD is two-model distillation: the same net twice, teacher frozen, cross
entropy and RKD on the pooled features (as ours) or on the whole last map (as in its sample configuration).
Ours teaches itself: no second net, but three exits.  "control" is the plain step there against the plain step
here: it should be 1, or the environments differ.

If the environment cannot be made or does not run, the JSON says what was tried and how it failed.
"""

import json
import subprocess
from pathlib import Path

import torch
from corsd import nets

from benchmarks.core.figures import interleaved, options, ratio, write
from benchmarks.core.step_time import BATCH, METHODS, STAGES, WIDTH, clock_name, seconds, training_step
from benchmarks.peers.torchdistill_process import ENVIRONMENT, conversation, install, versions, what_failed

THEIRS = {"there: plain": "plain", "there: RKD": "avgpool", "there: RKD, whole map": STAGES[-1]}
COMPARED = {
    "control": ("there: plain", "here: plain"),
    "their RKD over plain": ("there: RKD", "there: plain"),
    "their RKD, whole map, over plain": ("there: RKD, whole map", "there: plain"),
    "our RKD over plain": ("here: rkd", "here: plain"),
    "our RKD over theirs": ("here: rkd", "there: RKD"),
    "CORSD in-batch over their RKD": ("here: in_batch", "there: RKD"),
    "CORSD triplets over their RKD": ("here: triplets", "there: RKD"),
    "CORSD in-batch over their RKD, whole map": ("here: in_batch", "there: RKD, whole map"),
}


def main() -> None:
    parser = options(__doc__)
    parser.add_argument(
        "--environment", type=Path, default=ENVIRONMENT, help="where torchdistill is installed"
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    width, batch = (8, 12) if given.quick else (WIDTH, BATCH)
    try:
        install(given.environment)
        with conversation(given.environment, "steps.py", nets.__file__, width, batch, device) as ask:
            ours = {name: training_step(name, width, batch, device) for name in METHODS}
            variants = {f"here: {name}": lambda s=step: seconds(s, device) for name, step in ours.items()}
            variants |= {
                name: lambda f=features: float(json.loads(ask(f))) for name, features in THEIRS.items()
            }
            values = interleaved(variants, rounds=2 if given.quick else 6)
    except subprocess.CalledProcessError as error:
        write(given.out, given.quick, [], **what_failed(error), versions=versions())
        return
    unit = f"s per step, {clock_name(device)}"
    figures = [
        ratio(name, f"{a} against {b}, batch {batch}", unit, values, a, b, quick=given.quick)
        for name, (a, b) in COMPARED.items()
    ]
    write(given.out, given.quick, figures, device=device, width=width, batch=batch, versions=versions())


if __name__ == "__main__":
    main()
