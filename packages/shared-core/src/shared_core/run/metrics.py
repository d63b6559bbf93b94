"""metrics.jsonl: one line of JSON per logged step.

Times and rates stand under the one key `time`, so that the rest of the file of a resumed run compares bit for
bit with that of a straight one.

    >>> with MetricsLog("runs/a/metrics.jsonl") as log:
    ...     log.log(step=1, loss=0.7, time={"seconds": 0.01})
"""

import json
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shared_core.run.atomic import write_bytes
from shared_core.run.seal import RunFolderError
from shared_core.run.trackers import open_tracker, scalars

_NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


class MetricsLog:
    """Appends to `path`; each line reaches the system before `log` returns, so a killed process loses none.

    `tracker` names a further place for all numbers, also of records inside records: "tensorboard" or "wandb" (extras
    of the same names), where `project` is W&B's; "none" is none.
    """

    def __init__(self, path: str | os.PathLike[str], tracker: str = "none", project: str = "") -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._tracker = None if tracker == "none" else open_tracker(tracker, self.path.parent, project)
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115

    def log(self, step: int, time: Mapping[str, float] | None = None, **values: Any) -> None:
        """Numbers, text, lists and dicts of them; tensors and numpy numbers of one element are unpacked.

        Give tensors as they are: the single numbers among them come from the device in one transfer.

        Floats are written so that reading gives the same bits; NaN and infinities as text, JSON has none.
        """
        if "torch" in sys.modules:  # else there is no tensor, and no reason to wait for its import
            from shared_core.ops.host import at_once

            values = at_once(values)
        unpacked = {name: _unpacked(value) for name, value in values.items()}
        record: dict[str, Any] = {"step": step, **{name: _plain(value) for name, value in unpacked.items()}}
        if time is not None:
            record["time"] = _plain(_unpacked(time))
        self._file.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
        self._file.flush()
        if self._tracker is not None:
            self._tracker.log(dict(scalars(unpacked)), step=step)

    def close(self) -> None:
        """Closes the file and the tracker."""
        self._file.close()
        if self._tracker is not None:
            self._tracker.finish()

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.close()


def read(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """All whole lines; a last line that was torn by a kill is left out.

    Raises RunFolderError, a ValueError, for a broken line before the last.
    """
    records = []
    lines = Path(path).read_bytes().split(b"\n")
    for number, line in enumerate(lines[:-1], start=1):
        records.append(_restored(_record(path, number, line)))
    return records


def cut_back(path: str | os.PathLike[str], step: int) -> None:
    """Drops the lines of steps after `step` and a torn last line; atomic.  A missing file stays missing.

    Raises RunFolderError, a ValueError, for a broken line before the last.
    """
    path = Path(path)
    if not path.exists():
        return
    lines = path.read_bytes().split(b"\n")[:-1]
    kept = [line for number, line in enumerate(lines, 1) if _record(path, number, line)["step"] <= step]
    write_bytes(path, b"".join(line + b"\n" for line in kept))


def _record(path: str | os.PathLike[str], number: int, line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
        if not isinstance(record, dict) or not isinstance(record.get("step"), int):
            raise ValueError("it has no step")
    except (ValueError, RecursionError) as error:
        raise RunFolderError(
            f"{path}, line {number}, is not a line of metrics: {error}; put back a good copy, or delete the line"
        ) from error
    return record


def _unpacked(value: Any) -> Any:
    """Tensors and numbers of NumPy as Python's."""
    if isinstance(value, Mapping):
        return {str(key): _unpacked(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_unpacked(entry) for entry in value]
    return _unpacked(value.tolist()) if hasattr(value, "tolist") else value


def _plain(value: Any) -> Any:
    """What JSON can say."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    return value


def _restored(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _restored(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_restored(entry) for entry in value]
    return _NOT_FINITE.get(value, value) if isinstance(value, str) else value
