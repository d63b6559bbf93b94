"""report.html of a run of `fsd generate`: the objects to look at from all sides, the numbers, how they came about."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from shared_core.run import metrics as log
from shared_core.run.atomic import read_json
from shared_core.run.config import load_yaml
from shared_core.run.folder import RunFolder
from shared_core.run.report import (
    duration,
    figure,
    heading,
    row,
    settings,
    table,
    text,
    video,
    warning,
    write_report,
)

from fsd import figures
from fsd.config import GenerateConfig
from fsd.evaluate import evaluate
from fsd.glb import read_glb
from fsd.objects import Finished, failed, finished, groups, squares
from fsd.summary import comparison, key_numbers, meaning, method_name
from fsd.viewer import mesh_view, viewer_script

# Pixels of a turntable: two seeds, each with its mesh, fill a line of the page.
SIDE = 224
SHEET_VIEWS, SHEET_PICTURES = 8, 10
# Meshes of many objects are thinned out further, so that the page stays below some tens of megabytes.
TRIANGLES_OF_A_PAGE = 400_000


def report(run: str | os.PathLike[str]) -> Path:
    """Writes report.html into the folder of a run, also of one that failed in part; its path.

    Raises ValueError where the folder holds no run, or nothing that is done or failed.
    """
    run = os.path.expanduser(run)
    folder = RunFolder(run)
    objects, lost = finished(run), failed(run)
    if not objects and not lost:
        raise ValueError(f"{run} holds no finished object yet: go on with fsd generate --resume")
    result = read_json(folder.result) if folder.finished() else evaluate(run)
    rows = result["methods"]
    triangles = max(2_000, min(20_000, TRIANGLES_OF_A_PAGE // max(1, len(objects))))
    every = load_yaml(GenerateConfig, folder.config).picture_every
    several = len({one.prompt for one in objects}) > 1
    looks, origins = [], []
    for (prompt, guidance), group in groups(objects).items():
        title = f"{method_name(guidance)}: {prompt}" if several else method_name(guidance)
        looks += _looks(group, title, triangles)
        origins += _origins(group, title, every)
    sections = [
        *_failures(lost, len(objects)),
        *map(text, comparison(rows)),
        *looks,
        *([heading("In numbers"), key_numbers(rows)] if rows else []),
        *map(text, meaning(rows)),
        *origins,
        *_list_of(objects),
        *settings(folder),
        viewer_script(),
    ]
    prompts = list(dict.fromkeys(one.prompt for one in objects))
    title = prompts[0] if len(prompts) == 1 else f"{len(prompts)} prompts" if prompts else "Nothing was made"
    write_report(folder.report, title, sections, _subtitle(objects))
    return folder.report


def _subtitle(objects: Sequence[Finished]) -> str:
    if not objects:
        return "every object failed"
    priors = ", ".join(dict.fromkeys(one.about["prior"] for one in objects))
    seconds = sum(one.about["seconds"] for one in objects)
    count = "one object" if len(objects) == 1 else f"{len(objects)} objects"
    return f"{count} from the prior {priors}; {duration(seconds)} of work"


def _failures(lost: Sequence[Any], done: int) -> list[Markup]:
    if not lost:
        return []
    count = f"{len(lost)} of {len(lost) + done} objects failed; the numbers are of the others."
    return [warning("\n\n".join([count, *(f"{one.path.name}: {one.error}" for one in lost)]))]


def _looks(group: list[Finished], title: str, triangles: int) -> list[Markup]:
    """The objects of a method, turning, and from eight sides."""
    shown = [piece for one in group for piece in _object(one, triangles)]
    return [heading(title), *([row(shown)] if shown else []), *_sheet(group, _seeds(group))]


def _origins(group: list[Finished], title: str, every: int) -> list[Markup]:
    """How they came about."""
    names = _seeds(group)
    pieces = [*_progress(group, names, every), *_depth_and_normals(group, names), *_curves(group, names)]
    return [heading(f"{title}: on the way"), *pieces] if pieces else []


def _seeds(group: list[Finished]) -> list[str]:
    return [f"seed {one.seed}" for one in group]


def _object(one: Finished, triangles: int) -> list[Markup]:
    pieces = []
    words = _named(one)
    if (one.path / "turntable.mp4").is_file():
        pieces.append(video((one.path / "turntable.mp4").read_bytes(), words, SIDE))
    if (one.path / "mesh.glb").is_file():
        pieces.append(mesh_view(read_glb(one.path / "mesh.glb"), f"seed {one.seed}, mesh", triangles))
    elif one.about.get("mesh"):
        pieces.append(text(f"Seed {one.seed} has no mesh: {one.about['mesh']}"))
    return pieces


def _named(one: Finished) -> str:
    """The seed, what most of its views show, and the two next names."""
    about, name = one.about, f"seed {one.seed}"
    if about["label"] is None:
        return name
    words = f"{name}: {about['label']}"
    if about["view_consistency"] is not None:
        words += f", {100 * about['view_consistency']:.0f} % of the views"
    seen = about.get("labels") or []
    others = Counter(label for label in seen if label != about["label"]).most_common(2)
    return words + "".join(f", {label} {100 * count / len(seen):.0f} %" for label, count in others)


def _sheet(group: list[Finished], names: list[str]) -> list[Markup]:
    rows = _rows(group, names, "views.png")
    if not rows:
        return []
    count = min(len(views) for views in rows.values())
    shown = min(count, SHEET_VIEWS)
    chosen = [k * count // shown for k in range(shown)]
    degrees = [f"{360 * k / count:.0f}°" for k in chosen]
    picture = figures.contact_sheet([views[chosen] for views in rows.values()], list(rows), degrees)
    return [
        figure(picture, f"{len(chosen)} of {count} views around the object, by azimuth; 0° is its front.")
    ]


def _progress(group: list[Finished], names: list[str], every: int) -> list[Markup]:
    rows = _rows(group, names, "progress.png")
    if not rows:
        return []
    count = min(len(pictures) for pictures in rows.values())
    chosen = _evenly(count, SHEET_PICTURES)
    steps = [f"step {(k + 1) * every}" for k in chosen]
    picture = figures.contact_sheet([p[chosen] for p in rows.values()], list(rows), steps)
    return [figure(picture, "How the objects came about, seen from the front.")]


def _depth_and_normals(group: list[Finished], names: list[str]) -> list[Markup]:
    kinds = {kind: _rows(group, names, f"{kind}.png") for kind in ("depth", "normal")}
    shared = [name for name in names if all(name in rows for rows in kinds.values())]
    if not shared:
        return []
    lines = [np.concatenate([rows[name] for rows in kinds.values()]) for name in shared]
    columns = [kind for kind, rows in kinds.items() for _ in rows[shared[0]]]
    return [figure(figures.contact_sheet(lines, shared, columns), "Depth and surface normals.")]


def _curves(group: list[Finished], names: list[str]) -> list[Markup]:
    records = {
        name: log.read(one.path / "metrics.jsonl")
        for one, name in zip(group, names, strict=True)
        if (one.path / "metrics.jsonl").is_file()
    }
    records = {name: lines for name, lines in records.items() if lines}
    words = "Time t of the prior, the size of the guidance's step as loss and gradient norm, and how much is filled."
    return [figure(figures.curves(records), words)] if records else []


def _list_of(objects: Sequence[Finished]) -> list[Markup]:
    if not objects:
        return []
    rows = [
        {
            "guidance": method_name(one.guidance),
            "seed": one.seed,
            "label": one.about["label"],
            "view consistency": one.about["view_consistency"],
            "distance from the prior's pictures": one.about["quality"],
            "steps": one.about["steps"],
            "seconds": one.about["seconds"],
            "folder, with mesh.glb": f"objects/{one.path.name}",
        }
        for one in objects
    ]
    # A column that no object fills says nothing.
    shown = [name for name in rows[0] if any(row[name] is not None for row in rows)]
    return [heading("All objects"), table([{name: row[name] for name in shown} for row in rows])]


def _rows(group: list[Finished], names: list[str], file: str) -> dict[str, np.ndarray]:
    """The squares of a picture that each object may have, alike in size."""
    return {
        n: squares(one.path / file)
        for one, n in zip(group, names, strict=True)
        if (one.path / file).is_file()
    }


def _evenly(count: int, most: int) -> list[int]:
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int)).tolist()
