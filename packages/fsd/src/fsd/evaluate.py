"""The numbers of a run of `fsd generate`: how different the seeds' objects are, and how good.

>>> result = evaluate("runs/mushroom")
>>> print(as_text(result))
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from fsd import metrics
from fsd.attributes import janus_rate, main_name, prompt_accuracy, view_accuracy
from fsd.cameras import turntable
from fsd.judged import (
    JudgedViews,
    colour_names,
    judged_views,
    kind_names,
    label_probabilities,
    labels,
    object_features,
    side_names,
)
from fsd.objects import Finished, failed, finished, groups, squares

# Cells a side of the grid on which the space that objects fill is compared.
CELLS = 48
WIDTH = 100
# What only the world's judge can tell.
JUDGED = (
    "cross_fid",
    "inception_score",
    "kind_entropy",
    "colour_entropy",
    "kind_consistency",
    "colour_consistency",
    "prompt_accuracy",
    "view_accuracy",
    "janus_rate",
)
# What `fsd evaluate` prints, the most important first.
COLUMNS = {
    "guidance": "guidance",
    "seeds": "seeds",
    "pairwise_distance": "distance",
    "cross_fid": "cross-FID",
    "vendi": "vendi",
    "distinct": "distinct",
    "prompt_accuracy": "accuracy",
    "view_consistency": "consistency",
    "janus_rate": "janus",
    "quality": "quality",
    "enclosed_share": "enclosed",
    "volume_distance": "1-IoU",
    "floaters": "floaters",
}


def evaluate(run: str | os.PathLike[str], judged: bool | None = None) -> dict[str, Any]:
    """One row per prompt and guidance method; what cannot be known (one seed, a prior without names) is None.

    prompt prior guidance seeds: what was asked for; the seeds are those that are done.
    pairwise_distance minimum_distance: RMSE between seeds at equal view, mean and minimum over pairs.
    vendi: effective number of different objects, from the judge's features, else the views less the grey behind them.
    distinct: different labels among the seeds.  view_consistency, quality: means over the seeds.
    volume_distance: 1 - IoU of the space filled, mean over pairs.  enclosed_share, floaters: means over seeds.
    network_calls seconds: means per object.  peak_memory_gb: the largest.

    Of objects of the embedded priors, which the world's judge knows, also (`metrics`, `judged`, `attributes`):
    cross_fid inception_score: over seeds; higher is more diverse.  kind_entropy colour_entropy: of the seeds' main
    kinds and colours, in nats.  kind_consistency colour_consistency: of an object's views, apart.
    prompt_accuracy view_accuracy janus_rate: right views of an object.  All are means over the seeds that have one.

    `judged` asks the judge, or not, whatever the prior's name is: for a folder of `fsd train-prior`.
    The result holds the first row's values, `methods` with all rows, and `failed`.
    Raises ValueError where the folder holds no run.
    """
    rows = [_row(objects, judged) for objects in groups(finished(run)).values()]
    lost = [{"object": one.path.name, "error": one.error} for one in failed(run)]
    return {**(rows[0] if rows else {}), "methods": rows, "failed": lost}


def as_text(result: dict[str, Any], columns: Mapping[str, str] = COLUMNS) -> str:
    """The table that `fsd evaluate` prints: under each prompt a line per guidance method; costs; the failed objects.

    A column that is empty everywhere is left out, and so are the last ones where a line would exceed WIDTH.
    """
    rows = result["methods"]
    shown = {key: name for key, name in columns.items() if any(row.get(key) is not None for row in rows)}
    lines = [list(shown.values()), *([_cell(row.get(key)) for key in shown] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    while sum(widths) + 2 * len(widths) > WIDTH:
        widths.pop()
    table = [
        "".join(f"  {cell:{width}}" for cell, width in zip(line, widths, strict=False)).rstrip()
        for line in lines
    ]
    printed = table[:1] * bool(rows)
    for number, (row, line) in enumerate(zip(rows, table[1:], strict=True)):
        if not number or row["prompt"] != rows[number - 1]["prompt"]:
            printed.append(row["prompt"])
        printed.append(line)
    printed += costs(rows)
    printed += [f"failed: {one['object']}: {one['error']}" for one in result["failed"]]
    return "\n".join(printed)


def costs(rows: list[dict[str, Any]]) -> list[str]:
    """A line per guidance method: what an object took, mean over the prompts, and the most memory that one needed."""
    lines = []
    for guidance in dict.fromkeys(row["guidance"] for row in rows if row.get("seconds") is not None):
        own = [row for row in rows if row["guidance"] == guidance]
        seconds, calls = (np.mean([row[name] for row in own]) for name in ("seconds", "network_calls"))
        memory = [row["peak_memory_gb"] for row in own if row.get("peak_memory_gb") is not None]
        peak = f", peak memory {max(memory):.2f} GB" if memory else ""
        lines.append(f"{guidance}: an object took {seconds:.0f} s and {calls:.0f} network calls{peak}")
    return lines


def _row(objects: list[Finished], judged: bool | None) -> dict[str, Any]:
    about = [one.about for one in objects]
    several = len(objects) > 1
    views = np.stack([squares(one.path / "views.png") for one in objects]).astype(np.float32) / 255
    distance = metrics.pairwise_distance(views) if several else None
    called = [entry["label"] for entry in about]
    if judged is None:
        judged = about[0]["prior"].startswith("embedded")
    return {
        "prompt": objects[0].prompt,
        "prior": about[0]["prior"],
        "guidance": objects[0].guidance,
        "seeds": [one.seed for one in objects],
        "pairwise_distance": distance.mean if distance else None,
        "minimum_distance": distance.minimum if distance else None,
        # Grey is nothing: what is left of a picture without it is the object.
        "vendi": metrics.vendi_score(views.reshape(len(views), -1) - 0.5) if several else None,
        "distinct": metrics.distinct(called) if any(called) else None,
        "view_consistency": _mean(entry["view_consistency"] for entry in about),
        "quality": _mean(entry["quality"] for entry in about),
        **(of_judge(objects[0].prompt, judged_views(objects)) if judged else dict.fromkeys(JUDGED)),
        **_geometry(objects),
        "network_calls": _mean(entry["network_calls"] for entry in about),
        "seconds": _mean(entry["seconds"] for entry in about),
        "peak_memory_gb": max(
            (a["peak_memory_gb"] for a in about if a["peak_memory_gb"] is not None), default=None
        ),
    }


def of_judge(prompt: str, judged: JudgedViews) -> dict[str, float | None]:
    """The part of a row that the judge's names and features give; the views stand as in views.png, at 15 degrees.

    Raises ValueError for a prompt that the world does not know.
    """
    kinds, colours, sides = kind_names(judged), colour_names(judged), side_names(judged)
    named = labels(judged)
    cameras = turntable(len(named[0]))
    several = len(named) > 1
    main_kinds, main_colours = [main_name(row) for row in kinds], [main_name(row) for row in colours]
    seen = list(zip(kinds, sides, strict=True))
    return {
        "cross_fid": metrics.cross_seed_fid(judged.features) if several else None,
        "inception_score": metrics.seed_inception_score(label_probabilities(judged)) if several else None,
        "vendi": metrics.vendi_score(object_features(judged)) if several else None,
        "distinct": metrics.distinct([main_name(row) for row in named]),
        "kind_entropy": metrics.label_entropy(main_kinds) if several else None,
        "colour_entropy": metrics.label_entropy(main_colours) if several else None,
        "view_consistency": metrics.view_consistency(named),
        "kind_consistency": metrics.view_consistency(kinds),
        "colour_consistency": metrics.view_consistency(colours),
        "prompt_accuracy": _mean(prompt_accuracy(prompt, row) for row in named),
        "view_accuracy": _mean(view_accuracy(kind, side, cameras) for kind, side in seen),
        "janus_rate": _mean(janus_rate(kind, side, cameras) for kind, side in seen),
    }


def _geometry(objects: list[Finished]) -> dict[str, float | None]:
    grids = [
        occupied(one.path / "scene.safetensors")
        for one in objects
        if (one.path / "scene.safetensors").is_file()
    ]
    several = len(grids) > 1
    return {
        "volume_distance": metrics.volume_distance(np.stack(grids)).mean if several else None,
        "enclosed_share": float(np.mean([metrics.enclosed_share(g) for g in grids])) if grids else None,
        "floaters": float(np.mean([metrics.floaters(g)[0] for g in grids])) if grids else None,
    }


def occupied(scene_file: Path, cells: int = CELLS) -> Bool[np.ndarray, "r r r"]:
    """Where the density of a saved scene is above the threshold of its mesh; nowhere in an empty scene.

    Raises FileNotFoundError and ValueError as `fsd.scene.load_scene`.
    """
    from fsd.mesh import best_threshold, density_lattice
    from fsd.scene import load_scene

    scene = load_scene(scene_file)
    lattice = density_lattice(scene, cells)
    try:
        threshold = best_threshold(scene, lattice, size=32)
    except ValueError:  # nothing in it is opaque
        return np.zeros(lattice.shape, dtype=bool)
    return (lattice > threshold).cpu().numpy()


def _mean(values: Iterable[float | None]) -> float | None:
    """Of those that are known."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, list):
        return str(len(value))
    return f"{value:.3g}" if isinstance(value, float) else str(value)
