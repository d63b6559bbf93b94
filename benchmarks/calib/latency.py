"""What a calibrator costs in front of a classifier: time of both over the classifier's alone, body by body.

    python -m benchmarks.calib.latency --out FILE [--quick]

The paper's digits classifiers DTN and LeNet, batches of 128 images of 32 by 32 pixels, eval mode, without gradients,
one CPU thread.  5.8 % of the parameters is not 5.8 % of the time.  The table in docs/results/calib.md joins the target
accuracies of the bodies that calib/accuracy.py trained.
"""

from collections.abc import Callable
from typing import Any

import torch
from calib.attachment import attach
from calib.calibrator import Calibrator
from calib.nets import dtn, lenet
from torch import nn

from benchmarks.core.figures import interleaved, options, ratio, write
from benchmarks.core.step_time import clock_name, seconds

# Width and blocks; the constant has neither.
BODIES: dict[str, dict[str, Any]] = {
    "residual 8x9": {"body": "residual", "width": 8, "blocks": 9},
    "residual 4x9": {"body": "residual", "width": 4, "blocks": 9},
    "residual 4x3": {"body": "residual", "width": 4, "blocks": 3},
    "depthwise 8x9": {"body": "depthwise", "width": 8, "blocks": 9},
    "depthwise 4x3": {"body": "depthwise", "width": 4, "blocks": 3},
    "lowres 4x9": {"body": "lowres", "width": 4, "blocks": 9},
    "lowres 4x3": {"body": "lowres", "width": 4, "blocks": 3},
    "folded 8x3": {"body": "folded", "width": 8, "blocks": 3},
    "folded 4x3": {"body": "folded", "width": 4, "blocks": 3},
    "constant": {"body": "constant"},
}
CLASSIFIERS: dict[str, Callable[[], nn.Module]] = {"dtn": dtn, "lenet": lenet}
BATCH, GOAL = 128, 1.25
# The goal asks for one body other than the constant; this is the fastest that the accuracy table trains.
JUDGED = "dtn lowres 4x3"


def main() -> None:
    given = options(__doc__).parse_args()
    torch.set_num_threads(1)
    batch = 4 if given.quick else BATCH
    unit = f"s per batch, {clock_name('cpu')}"
    figures = []
    for name, build in CLASSIFIERS.items():
        torch.manual_seed(0)
        nets = {"alone": build().eval()} | {body: attach(build(), calibrator(body)).eval() for body in BODIES}
        images = torch.rand(batch, 3, 32, 32)
        variants = {
            body: lambda net=net, images=images: seconds(lambda: answer(net, images), "cpu")
            for body, net in nets.items()
        }
        values = interleaved(variants, rounds=2 if given.quick else 45)
        figures += [
            ratio(
                f"{name} {body}", f"calibrator ({body}) and {name} over {name} alone, batch {batch}", unit,
                values, body, "alone", goal=GOAL if f"{name} {body}" == JUDGED else None, quick=given.quick,
            )
            for body in BODIES
        ]  # fmt: skip
    measured = {figure["name"]: figure["ratio"]["median"] for figure in figures}
    bodies = {
        body: {
            "parameters": sum(p.numel() for p in calibrator(body).parameters()),
            **{name: measured[f"{name} {body}"] for name in CLASSIFIERS},
        }
        for body in BODIES
    }
    what = (
        f"Time of calibrator and classifier over the classifier's alone: batches of {batch} images of 32 by 32 pixels, "
        "one CPU thread, processor time, medians of interleaved rounds."
    )
    write(given.out, given.quick, figures, bodies=bodies, what=what)


def calibrator(body: str) -> Calibrator:
    """A calibrator past its start, so that it computes with ordinary numbers."""
    found = Calibrator(3, 0.45, **BODIES[body])
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    return found


@torch.no_grad()
def answer(net: nn.Module, images: torch.Tensor) -> None:
    """One batch through the net."""
    net(images)


if __name__ == "__main__":
    main()
