"""The `draft` preset of fsd: seconds of a core an object, and whether it is what was asked for.

    python -m benchmarks.fsd.draft --out FILE [--quick]

The eight prompts of fsd/diversity.py's first tier, four seeds each, with the preset as it comes (mesh and turntable
too), on one thread: some eight minutes.  A prompt is a line of results/fsd_diversity.csv, stage `draft`, and a run
that was interrupted goes on.  Prompt accuracy is known for all but "an object", which asks for
nothing.
"""

import sys
import tempfile
from pathlib import Path

from fsd.config import draft

from benchmarks.core.figures import difference, options, write
from benchmarks.fsd import cells, plan

SECONDS, ACCURACY = 100.0, 80.0


def main() -> int:
    given = options(__doc__).parse_args()
    preset = draft().model_dump(mode="json", exclude_unset=True)
    prompts = [prompt for prompt, tier in plan.PROMPTS.items() if tier == 1]
    if given.quick:
        preset, prompts = preset | {"steps": 2, "frames": 2, "mesh_resolution": 16}, ["a red object"]
    todo = [plan.Cell("draft", "multi-view", "draft", prompt, plan.SEEDS, preset) for prompt in prompts]
    with tempfile.TemporaryDirectory() as scratch:
        table, runs = cells.TABLE, cells.RUNS
        if given.quick:
            table, runs = table._replace(path=Path(scratch, "cells.csv")), Path(scratch)
        if cells.work(todo, None, table, runs):
            return 1
        known, done = cells.weights_hash("multi-view"), cells.done(table)
        records = [record for cell in todo if (record := cells.finished(cell, known, done))]
    spent = [record["core_seconds"] for record in records if record["core_seconds"] is not None]
    right = [100 * record["prompt_accuracy"] for record in records if record["prompt_accuracy"] is not None]
    figures = [
        difference("core-seconds", f"an object of {len(spent)} prompts", "s",
                   {"draft": spent, "zero": [0.0] * len(spent)}, "draft", "zero", goal=SECONDS, quick=given.quick),
        difference("prompt accuracy", f"mean of {len(right)} prompts", "%",
                   {"draft": [sum(right) / len(right)], "zero": [0.0]}, "draft", "zero", goal=ACCURACY, at_least=True,
                   quick=given.quick),
    ]  # fmt: skip
    kept = ("prompt_accuracy", "view_consistency", "seconds", "core_seconds", "peak_memory_gb")
    by_prompt = {record["prompt"]: {name: record[name] for name in kept} for record in records}
    write(given.out, given.quick, figures, threads=1, prompts=by_prompt)
    return 0


if __name__ == "__main__":
    sys.exit(main())
