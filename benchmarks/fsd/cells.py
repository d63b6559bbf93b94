"""Making the cells of fsd/diversity.py: objects and a picture of them in runs/, a line each in results/.

Any number of processes share the cells, by a lock on each.  An object that was interrupted goes on at its checkpoint;
its folder is named by its settings and the prior's weights, so that nothing of other ones is ever taken over.
"""

import fcntl
import hashlib
import io
import json
import multiprocessing
import shutil
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from shared_core.run.atomic import write_bytes
from shared_core.run.folder import RunFolderError

from benchmarks.core.table import RAN_ON, Record, Table, key_of, put, ran_on, read
from benchmarks.fsd.plan import WORK, Cell, configuration

ROOT = Path(__file__).parents[2]
KEY = ("stage", "prior", "method", "prompt")
# Accuracies and consistencies stand in percent in the file; read, they are shares as `fsd evaluate` gives them.
PERCENT = ("prompt_accuracy", "view_consistency", "view_accuracy", "kind_consistency", "colour_consistency")
# Lines without a commit are older than the record of it.
TABLE = Table(
    ROOT / "benchmarks" / "results" / "fsd_diversity.csv",
    columns=(
        *KEY,
        *(
            "cross_fid",
            "prompt_accuracy",
            "view_consistency",
            "enclosed_share",
            "seeds",
            "core_seconds",
            "seconds",
        ),
        *("vendi", "distinct", "inception_score", "pairwise_distance", "minimum_distance", "volume_distance"),
        *(
            "kind_consistency",
            "colour_consistency",
            "kind_entropy",
            "colour_entropy",
            "view_accuracy",
            "janus_rate",
        ),
        *(
            "floaters",
            "without_mesh",
            "network_calls",
            "peak_memory_gb",
            "labels",
            "settings",
            "weights",
            *RAN_ON,
        ),
    ),
    key=KEY,
    text=frozenset((*KEY, "weights", "commit", "command")),
    percent=frozenset(PERCENT),
)
RUNS = ROOT / "runs" / "bench" / "fsd_diversity"
# Of the 24 views: front, left, back, right.
SHOWN = (0, 6, 12, 18)
SHEET_BYTES = 15_000


def weights_folder() -> Path:
    """Where the package keeps the weights of its priors (found without importing diffusers)."""
    found = find_spec("fsd")
    assert found
    assert found.origin
    return Path(found.origin).parent / "priors" / "weights"


def weights_hash(prior: str, folder: Path | None = None) -> str | None:
    """A name for the weights of a prior; None where there are none."""
    files = sorted(((folder or weights_folder()) / prior).rglob("*.safetensors"))
    if not files:
        return None
    return hashlib.sha256(b"".join(hashlib.sha256(f.read_bytes()).digest() for f in files)).hexdigest()[:12]


def records(table: Table = TABLE) -> list[Record]:
    """All lines, None for what is empty."""
    return [dict.fromkeys(table.columns) | record for record in read(table)]


def done(table: Table = TABLE) -> dict[tuple[Any, ...], Record]:
    """The same by stage, prior, method and prompt."""
    return {key_of(table, record): record for record in records(table)}


def finished(cell: Cell, weights: str | None, known: Mapping[tuple[Any, ...], Record]) -> Record | None:
    """The record of a cell among `known`, None if there is none of these weights, settings and seeds."""
    record = known.get(cell[:4])
    if record is None:
        return None
    same = (record["weights"], record["settings"], tuple(record["seeds"])) == (
        weights,
        cell.settings,
        cell.seeds,
    )
    return record if same else None


def foreign(
    cells: Sequence[Cell], weights: dict[str, str | None], known: Mapping[tuple[Any, ...], Record]
) -> list[str]:
    """What is ignored, and why: records of other weights, settings or seeds than asked for."""
    lines = []
    for cell in cells:
        record = known.get(cell[:4])
        if record and finished(cell, weights[cell.prior], known) is None:
            what = "weights" if record["weights"] != weights[cell.prior] else "settings or seeds"
            lines.append(f"{' '.join(cell[:3])} {cell.prompt!r}: made with other {what}, ignored")
    return lines


def folder_of(cell: Cell, weights: str | None, runs: Path = RUNS) -> Path:
    """Where the objects of a cell are made; `sheet.png` shows them."""
    name = f"{_slug(cell.method)}--{_slug(cell.prompt)}-{print_of(cell, weights)}"
    return runs / cell.group / cell.prior / name


def share(todo: Sequence[Cell], jobs: int, weights: Path | None, table: Table, runs: Path) -> int:
    """Makes the cells in `jobs` processes; how many of these could not make all that they tried."""
    if jobs == 1:
        return int(bool(work(todo, weights, table, runs)))
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_help, args=(todo, weights, table, runs)) for _ in range(jobs)]
    # Told to stop, pass it on: each saves the object that it is at.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        for process in processes:
            process.start()
        for process in processes:
            process.join()
    except (SystemExit, KeyboardInterrupt) as stopped:
        for process in processes:
            # Ctrl-C has reached them already, and a second signal would end them before they have saved.
            if process.is_alive() and isinstance(stopped, SystemExit):
                process.terminate()
        for process in processes:
            process.join()
        raise
    return sum(process.exitcode != 0 for process in processes)


def work(todo: Sequence[Cell], weights: Path | None, table: Table, runs: Path) -> list[str]:
    """Makes every cell that is not done and that no other process is at; what failed, and why."""
    import torch

    torch.set_num_threads(1)
    priors: dict[str, Any] = {}
    failed = []
    for cell in todo:
        known = weights_hash(cell.prior, weights)
        if finished(cell, known, done(table)):
            continue
        folder = folder_of(cell, known, runs)
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / ".lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            if finished(cell, known, done(table)):
                continue
            try:
                if cell.prior not in priors:
                    priors[cell.prior] = open_embedded(cell, weights)
                record, sheet = make(cell, priors[cell.prior], known, folder)
            except (ValueError, ArithmeticError, RuntimeError, OSError, RunFolderError) as error:
                failed.append(f"{cell.prior} {cell.method} {cell.prompt!r}: {error}")
                print(failed[-1], file=sys.stderr, flush=True)
                continue
        write_bytes(folder / "sheet.png", sheet)
        put(table, record)
        found = {name: record.get(name) for name in ("cross_fid", "prompt_accuracy", "view_consistency")}
        print(f"{cell.prior} {cell.method} {cell.prompt!r}: {found}", flush=True)
    return failed


def open_embedded(cell: Cell, weights: Path | None) -> Any:
    """The prior of a cell, with the weights in `weights` (a folder for each variant) in place of the package's."""
    import torch
    from fsd.build import build_prior
    from fsd.priors import embedded

    shipped = embedded.WEIGHTS
    embedded.WEIGHTS = weights or shipped
    try:
        return build_prior(configuration(cell), torch.device("cpu"))
    finally:
        embedded.WEIGHTS = shipped


def make(cell: Cell, prior: Any, weights: str | None, folder: Path) -> tuple[dict[str, Any], bytes]:
    """The record of a cell and its picture; objects that are there are kept."""
    from fsd.evaluate import evaluate
    from fsd.generate import generate
    from fsd.objects import finished as finished_objects

    config = configuration(cell)
    begun, whole = time.process_time(), not (folder / "objects").is_dir()
    for seed in cell.seeds:
        out = folder / "objects" / f"seed{seed}"
        if not (out / "object.json").is_file():
            generate(config, cell.prompt, config.guidance[0], seed, prior, out)
        # They are large, and a finished object needs none.
        shutil.rmtree(out / "checkpoints", ignore_errors=True)
    spent = time.process_time() - begun
    objects = finished_objects(folder)
    (row,) = evaluate(folder)["methods"]
    measured = {
        name: value for name, value in row.items() if name not in ("prior", "guidance", "prompt", "seeds")
    }
    record = {
        **dict(zip(KEY, cell, strict=False)),
        "seeds": list(cell.seeds),
        "weights": weights,
        "settings": cell.settings,
        **measured,
        "labels": [one.about["label"] for one in objects],
        "without_mesh": sum(one.about.get("mesh") is not None for one in objects),
        # Of an object; not known where it was made in several goes.
        "core_seconds": round(spent / len(objects), 1) if whole else None,
        **ran_on(),
    }
    return record, sheet([one.path / "views.png" for one in objects])


def sheet(views: Sequence[Path]) -> bytes:
    """Objects as rows, four sides of each as columns: a PNG with a palette, of at most SHEET_BYTES."""
    from fsd.objects import squares
    from PIL import Image

    rows = [np.concatenate(list(squares(path)[list(SHOWN)]), 1) for path in views]
    picture = Image.fromarray(np.concatenate(rows, 0))
    for colours in (128, 64, 32, 16):
        buffer = io.BytesIO()
        picture.quantize(colours).save(buffer, format="PNG", optimize=True)
        if len(buffer.getvalue()) <= SHEET_BYTES:
            break
    return buffer.getvalue()


def estimate(
    todo: Sequence[Cell], weights: dict[str, str | None], known: Mapping[tuple[Any, ...], Record]
) -> str:
    """What is left to do, in core-hours, from what the finished cells took."""
    left = [cell for cell in todo if finished(cell, weights[cell.prior], known) is None]
    per_step = {
        prior: [
            r["core_seconds"] / r["settings"]["steps"]
            for r in known.values()
            if r["prior"] == prior and r.get("core_seconds") and not r["method"].startswith(("ism", "sdi"))
        ]
        for prior in weights
    }
    seconds = sum(
        len(cell.seeds)
        * cell.settings["steps"]
        * WORK.get(cell.method.split(" at ")[0], 1.0)
        * float(np.median(per_step[cell.prior] or [GUESS]))
        for cell in left
    )
    source = "measured" if any(per_step.values()) else "guessed"
    objects = sum(len(cell.seeds) for cell in left)
    hours = f"about {seconds / 3600:.1f} core-hours ({source})"
    return f"{len(left)} of {len(todo)} cells left ({objects} objects): {hours}"


# Core-seconds of a step, before anything was measured.
GUESS = 0.17


def _help(todo: Sequence[Cell], weights: Path | None, table: Table, runs: Path) -> None:
    sys.exit(int(bool(work(todo, weights, table, runs))))


def print_of(cell: Cell, weights: str | None) -> str:
    """A name for the settings of a cell and the weights."""
    return hashlib.sha256(json.dumps([cell.settings, weights], sort_keys=True).encode()).hexdigest()[:8]


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() or c == "." else "-" for c in name.lower())
