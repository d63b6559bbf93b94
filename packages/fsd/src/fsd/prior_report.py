"""report.html of a run of `fsd train-prior`: samples, and how the loss fell."""

from typing import Any

import numpy as np
from shared_core.run import metrics as log
from shared_core.run.folder import RunFolder
from shared_core.run.report import cards, duration, figure, heading, settings, text, write_report

from fsd import figures
from fsd.objects import squares
from fsd.prior_config import PriorConfig

# Lines of the log that make one point of the curve.
BLOCK = 10


def report(config: PriorConfig, folder: RunFolder, result: dict[str, Any]) -> None:
    """Writes report.html."""
    shown = squares(sorted((folder.path / "samples").glob("step-*.png"))[-1])
    rows = list(shown.reshape(len(config.prompts), -1, *shown.shape[1:]))
    columns = ["front", "left", "back", "right"] if config.views > 1 else [""] * 4
    lines = log.read(folder.metrics)
    blocks = [lines[n : n + BLOCK] for n in range(0, len(lines), BLOCK)]
    smooth = [
        {"step": block[-1]["step"], "loss": float(np.mean([line["loss"] for line in block]))}
        for block in blocks
    ]
    sections = [
        cards({
            "steps": result["steps"],
            "loss": round(result["loss"], 4),
            "parameters": f"{result['parameters'] / 1e6:.2f} M",
            "size": f"{result['megabytes']:.1f} MB",
            "work of one core": duration(result["core_seconds"]),
        }),
        heading("Samples"),
        figure(figures.contact_sheet(rows, config.prompts, columns), _of_samples(config)),
        heading("Loss"),
        text("Mean squared error of v over all levels of noise, averaged over neighbouring steps."),
        figure(figures.curves({config.variant: smooth})),
        *settings(folder),
    ]  # fmt: skip
    write_report(folder.report, f"A {config.variant} prior", sections, "trained on the procedural world")


def _of_samples(config: PriorConfig) -> str:
    way = f"DDIM in {config.sample_steps} steps, guidance {config.guidance_scale:g}"
    return (
        f"{way}; four views of one object in a row." if config.views > 1 else f"{way}; a row has one prompt."
    )
