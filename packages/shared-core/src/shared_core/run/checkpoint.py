"""Checkpoints: one folder per step that is either whole or not there.

    checkpoints/step-000500/model.safetensors   one per module whose state dict is all tensors
                            state.pt            optimizers, counters, generators: plain values and tensors
                            meta.json           step, and size and sha256 of every file
    checkpoints/latest                          a link to the newest

A folder is written under another name, flushed to the disk, and renamed: a process killed at any moment
leaves the older checkpoints as they were.  Nothing that is loaded can hold code.

    >>> save("runs/a/checkpoints", step, {"model": net, "optimizer": optimizer}, {"rng": rng_state()})
    >>> found = load("runs/a/checkpoints")
    >>> restore(found, {"model": net, "optimizer": optimizer})
"""

import errno
import hashlib
import json
import os
import pickle
import random
import re
import shutil
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from shared_core.ops.gather import rank
from shared_core.run.atomic import make_readable, sync_folder


class Checkpoint(NamedTuple):
    """A loaded checkpoint: `tensors[name]` is the state dict of the module saved under `name`."""

    path: Path
    step: int
    tensors: dict[str, dict[str, Any]]
    state: dict[str, Any]


# Names of modules become names of files, which must stay inside the folder.
_NAME = re.compile(r"[A-Za-z0-9_-]+")


class CheckpointError(RuntimeError):
    """A checkpoint is broken, missing, or holds more than plain values; the message says which."""


def save(
    folder: str | os.PathLike[str],
    step: int,
    modules: Mapping[str, Any],
    state: Mapping[str, Any] | None = None,
    keep: int = 2,
) -> Path:
    """Writes `folder/step-000500` and keeps the newest `keep`; only rank 0 writes.

    `modules` have a `state_dict()`.  `state` holds numbers, text, lists, dicts and tensors; anything else is
    refused when it is saved, not when it is needed.  Raises CheckpointError for such a value, OSError (with
    the older checkpoints intact) when the disk is full.
    """
    folder = Path(folder)
    target = folder / f"step-{step:06d}"
    if rank() != 0:
        return target
    if keep < 1:
        raise ValueError(f"keep is {keep}; at least the checkpoint just written has to stay")
    folder.mkdir(parents=True, exist_ok=True)
    _remove_stale(folder)
    aside = folder / f".{target.name}-replaced"
    temporary = Path(tempfile.mkdtemp(dir=folder, prefix=f".{target.name}-"))
    try:
        _write(temporary, step, modules, dict(state or {}))
        if target.exists():
            os.rename(target, aside)
        os.rename(temporary, target)
        sync_folder(folder)
        _point_latest(folder, target.name)
    except OSError as error:
        _give_up(temporary, aside, target)
        sentence = f"the checkpoint of step {step} was not saved, older ones are intact: {error.strerror}"
        raise OSError(error.errno, sentence, str(target)) from error
    except (safetensors.SafetensorError, RuntimeError) as error:
        _give_up(temporary, aside, target)
        if isinstance(error, CheckpointError) or not _is_disk(error):
            raise
        # The writers of torch and safetensors have no OSError of their own.
        sentence = f"the checkpoint of step {step} was not saved, older ones are intact: {_first_line(error)}"
        raise OSError(errno.EIO, sentence, str(target)) from error
    except BaseException:
        _give_up(temporary, aside, target)
        raise
    shutil.rmtree(aside, ignore_errors=True)
    for old in _steps(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def load(path: str | os.PathLike[str]) -> Checkpoint:
    """Loads a checkpoint, or the newest whole one of a folder of checkpoints, onto the CPU.

    Raises CheckpointError if there is none, if it is broken, or if its state holds code.
    """
    path = Path(path)
    if not (path / "meta.json").is_file():
        found = load_latest(path)
        if found is None:
            raise CheckpointError(f"there is no checkpoint in {path}")
        return found
    reason = _fault(path)
    if reason:
        raise CheckpointError(f"the checkpoint {path} is broken: {reason}")
    return _read(path)


def load_latest(folder: str | os.PathLike[str]) -> Checkpoint | None:
    """The newest whole checkpoint of a folder, onto the CPU, or None: every file is hashed once.

    Raises CheckpointError if its state holds code.
    """
    path = latest(folder)
    return None if path is None else _read(path)


def _read(path: Path) -> Checkpoint:
    """A checkpoint whose files are known to be whole."""
    packed = _load_plain(path / "state.pt")
    try:
        meta = json.loads((path / "meta.json").read_text(encoding="utf-8"))
        tensors = {
            name: load_file(path / f"{name}.safetensors")
            if f"{name}.safetensors" in meta["files"]
            else packed["modules"][name]
            for name in meta["modules"]
        }
        return Checkpoint(path, meta["step"], tensors, packed["state"])
    except (OSError, KeyError, TypeError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"the checkpoint {path} does not hold together: {error!r}") from error


def restore(found: Checkpoint, modules: Mapping[str, Any], needs: Sequence[str] = ()) -> None:
    """Gives each of `modules` the state that it had in `save`; `needs` are names that the other state must hold.

    Raises CheckpointError for what does not fit.
    """
    missing = [name for name in needs if not isinstance(found.state, dict) or name not in found.state]
    if missing:
        raise CheckpointError(
            f"the checkpoint {found.path} holds no {', '.join(missing)}: another version wrote it"
        )
    for name, module in modules.items():
        if name not in found.tensors:
            raise CheckpointError(
                f"the checkpoint {found.path} holds no {name}: another run or version wrote it"
            )
        try:
            module.load_state_dict(found.tensors[name])
        # Whatever an optimizer or a schedule stumbles over in a state that is not its own.
        except Exception as error:
            raise CheckpointError(
                f"the checkpoint {found.path} does not fit {name}: {_first_line(error)}"
            ) from error


def latest(folder: str | os.PathLike[str]) -> Path | None:
    """The newest checkpoint of `folder` that is whole; warns of broken ones that it passes over."""
    for path in reversed(_steps(Path(folder))):
        reason = _fault(path)
        if not reason:
            return path
        warnings.warn(f"passed over the broken checkpoint {path}: {reason}", stacklevel=2)
    return None


def rng_state() -> dict[str, Any]:
    """The state of the global generators of torch (CPU and GPUs) and Python, as plain values."""
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all(),
        "python": random.getstate(),
    }


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Puts back what `rng_state` gave; GPUs only if there are as many as then.  Raises CheckpointError for another."""
    try:
        torch.set_rng_state(state["torch"])
        if len(state["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state["cuda"])
        version, numbers, gauss = state["python"]
        random.setstate((version, tuple(numbers), gauss))
    except (KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise CheckpointError(
            f"the checkpoint holds no state of the generators: {_first_line(error)}"
        ) from error


def _write(folder: Path, step: int, modules: Mapping[str, Any], state: dict[str, Any]) -> None:
    other: dict[str, Any] = {}
    for name, module in modules.items():
        if not _NAME.fullmatch(name):
            raise ValueError(f"module name {name!r}: use letters, digits, _ and -, it becomes a file name")
        values = module.state_dict()
        if values and all(isinstance(value, Tensor) for value in values.values()):
            # Cloned, because safetensors refuses tied weights, which a state dict may hold under two names.
            plain = {key: value.detach().cpu().clone().contiguous() for key, value in values.items()}
            save_file(plain, folder / f"{name}.safetensors")
            make_readable(folder / f"{name}.safetensors")
        else:
            other[name] = values
    torch.save({"modules": other, "state": state}, folder / "state.pt")
    _load_plain(folder / "state.pt")
    files = {path.name: path for path in sorted(folder.iterdir())}
    meta = {
        "step": step,
        "modules": list(modules),
        "files": {name: {"bytes": p.stat().st_size, "sha256": _sha256(p)} for name, p in files.items()},
    }
    (folder / "meta.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
    for path in folder.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    sync_folder(folder)


def _load_plain(path: Path) -> dict[str, Any]:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251
    except pickle.UnpicklingError as error:
        names = re.findall(r"GLOBAL ([\w.]+)|class ([\w.]+)", str(error))
        found = ", ".join(dict.fromkeys(a or b for a, b in names)) or "an unknown object"
        raise CheckpointError(
            f"{path} holds {found}, which is more than plain values and tensors and could run code: "
            "it is not loaded; save numbers, text, lists, dicts and tensors"
        ) from error
    # Whatever the bytes of a stranger make torch's reader stumble over.
    except Exception as error:
        raise CheckpointError(f"{path} cannot be read: {_first_line(error)}") from error


def _is_disk(error: Exception) -> bool:
    """Whether a writer that has no OSError of its own says that the file could not be written."""
    return isinstance(error, safetensors.SafetensorError) or any(
        word in str(error) for word in ("PytorchStreamWriter", "file write failed", "inline_container")
    )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _fault(path: Path) -> str | None:
    """Why the folder is not a whole checkpoint, or None."""
    try:
        meta = json.loads((path / "meta.json").read_text(encoding="utf-8"))
        for name, entry in meta["files"].items():
            file = path / Path(name).name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != entry["bytes"]:
                return f"{name} has {file.stat().st_size} bytes instead of {entry['bytes']}"
            if _sha256(file) != entry["sha256"]:
                return f"{name} was changed after it was written"
        if not isinstance(meta["step"], int) or "state.pt" not in meta["files"]:
            return "meta.json lacks the step or state.pt"
        wrong = [name for name in meta["modules"] if not _NAME.fullmatch(name)]
        if wrong:
            return f"meta.json names modules {wrong}, which cannot be file names"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"meta.json: {type(error).__name__}: {error}"
    return None


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _steps(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if re.fullmatch(r"step-\d{6,}", path.name) and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def _give_up(temporary: Path, aside: Path, target: Path) -> None:
    shutil.rmtree(temporary, ignore_errors=True)
    if aside.exists() and not target.exists():
        os.rename(aside, target)


def _remove_stale(folder: Path) -> None:
    for path in folder.glob(".step-*"):
        replaced = folder / path.name.removeprefix(".").removesuffix("-replaced")
        if path.name.endswith("-replaced") and not replaced.exists():
            # Killed between the two renames: the old form of the step is the only one.
            os.rename(path, replaced)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _point_latest(folder: Path, name: str) -> None:
    temporary = folder / ".latest-new"
    temporary.unlink(missing_ok=True)
    try:
        temporary.symlink_to(name, target_is_directory=True)
        os.replace(temporary, folder / "latest")
    except (OSError, NotImplementedError):
        # File systems without links: a file with the name.  `latest()` reads neither.
        temporary.write_text(name + "\n", encoding="utf-8")
        os.replace(temporary, folder / "latest")
