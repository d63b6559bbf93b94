"""The numbers of a run of `fsd generate`: how different the seeds' objects are, and how good.

>>> result = evaluate("runs/mushroom")
>>> print(as_text(result))
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from fsd import metrics
from fsd.objects import Finished, failed, finished, groups, squares

# Cells a side of the grid on which the space that objects fill is compared.
CELLS = 48


def evaluate(run: str | os.PathLike[str]) -> dict[str, Any]:
    """One row per prompt and guidance method; what cannot be known (one seed, a prior without names) is None.

    prompt prior guidance seeds: what was asked for; the seeds are those that are done.
    pairwise_distance minimum_distance: RMSE between seeds at equal view, mean and minimum over pairs.
    vendi: effective number of different objects, from their views less the grey that they stand on.
    distinct: different labels among the seeds.  view_consistency, quality: means over the seeds.
    volume_distance: 1 - IoU of the space filled, mean over pairs.  enclosed_share, floaters: means over seeds.
    network_calls seconds: means per object.  peak_memory_gb: the largest.

    The result holds the first row's values, `methods` with all rows, and `failed`.
    Raises ValueError where the folder holds no run.
    """
    rows = [_row(objects) for objects in groups(finished(run)).values()]
    lost = [{"object": one.path.name, "error": one.error} for one in failed(run)]
    return {**(rows[0] if rows else {}), "methods": rows, "failed": lost}


def as_text(result: dict[str, Any]) -> str:
    """The table that `fsd evaluate` prints: a line per prompt and guidance method, then the failed objects."""
    names = {
        "guidance": "guidance",
        "seeds": "seeds",
        "pairwise_distance": "distance",
        "distinct": "distinct",
        "view_consistency": "consistency",
        "quality": "quality",
        "vendi": "vendi",
        "volume_distance": "1-IoU",
        "enclosed_share": "enclosed",
        "floaters": "floaters",
        "network_calls": "calls",
        "seconds": "seconds",
        "prompt": "prompt",
    }
    lines = [list(names.values())]
    lines += [[_cell(row[key]) for key in names] for row in result["methods"]]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    printed = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    printed += [f"failed: {one['object']}: {one['error']}" for one in result["failed"]]
    return "\n".join(printed)


def _row(objects: list[Finished]) -> dict[str, Any]:
    about = [one.about for one in objects]
    several = len(objects) > 1
    views = np.stack([squares(one.path / "views.png") for one in objects]).astype(np.float32) / 255
    distance = metrics.pairwise_distance(views) if several else None
    labels = [entry["label"] for entry in about]
    return {
        "prompt": objects[0].prompt,
        "prior": about[0]["prior"],
        "guidance": objects[0].guidance,
        "seeds": [one.seed for one in objects],
        "pairwise_distance": distance.mean if distance else None,
        "minimum_distance": distance.minimum if distance else None,
        # Grey is nothing: what is left of a picture without it is the object.
        "vendi": metrics.vendi_score(views.reshape(len(views), -1) - 0.5) if several else None,
        "distinct": metrics.distinct(labels) if any(labels) else None,
        "view_consistency": _mean(about, "view_consistency"),
        "quality": _mean(about, "quality"),
        **_geometry(objects),
        "network_calls": _mean(about, "network_calls"),
        "seconds": _mean(about, "seconds"),
        "peak_memory_gb": max(
            (a["peak_memory_gb"] for a in about if a["peak_memory_gb"] is not None), default=None
        ),
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


def _mean(about: list[dict[str, Any]], name: str) -> float | None:
    values = np.array([a[name] for a in about if a[name] is not None], dtype=float)
    return float(values.mean()) if len(values) else None


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, list):
        return str(len(value))
    return f"{value:.3g}" if isinstance(value, float) else str(value)
