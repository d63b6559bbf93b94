"""The run folder.

runs/NAME/  config.yaml  env.json  metrics.jsonl  result.json  report.html  checkpoints/

>>> with RunFolder("runs/a").open(config, resume=False) as run:
...     write_json(run.result, {...})
"""

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import yaml

from shared_core.run.atomic import write_json, write_yaml
from shared_core.run.seal import RunFolderError, check_seal, seal

__all__ = ["RunFolder", "RunFolderError", "write_json"]


class RunFolder:
    """Paths of a run, and `open`, which guards the folder against a second process and a second run."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.environment = self.path / "env.json"
        self.metrics = self.path / "metrics.jsonl"
        self.result = self.path / "result.json"
        self.report = self.path / "report.html"
        self.checkpoints = self.path / "checkpoints"
        self._lock: IO[str] | None = None

    def open(self, config: Any, resume: bool = False, ignore: Sequence[str] = ()) -> "RunFolder":
        """Makes the folder, locks it until `close` or the end of the process, writes config.yaml, env.json.

        `config` is a pydantic model or a dict of plain values; fields named in `ignore` may differ on resume.
        `resume=True` on a folder without a run starts one.  In a distributed run only rank 0 opens it.

        Raises RunFolderError if it is a file, if another process runs in it, if it holds a finished run, an
        unfinished one without `resume`, or one with another configuration.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise RunFolderError(f"{self.path} is a file, or lies in one: choose a folder") from error
        self._take_lock()
        try:
            values = config if isinstance(config, dict) else config.model_dump(mode="json")
            if self.config.exists():
                self._check_earlier(values, resume, ignore)
            else:
                write_yaml(self.config, values)
                seal(self.path, [self.config.name])
            self._write_environment()
        except BaseException:
            self.close()
            raise
        return self

    def finished(self) -> bool:
        """Whether the run wrote its result."""
        return self.result.exists()

    def close(self) -> None:
        """Lets go of the lock, also for forked workers of a loader that still hold the file open."""
        if self._lock is not None:
            with contextlib.suppress(ImportError):
                import fcntl

                fcntl.flock(self._lock, fcntl.LOCK_UN)
            self._lock.close()
            self._lock = None

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.close()

    def _check_earlier(self, values: dict[str, Any], resume: bool, ignore: Sequence[str]) -> None:
        if self.finished():
            raise RunFolderError(f"{self.path} holds a finished run: choose another folder, or delete it")
        if not resume:
            raise RunFolderError(
                f"{self.path} holds an unfinished run: resume it (--resume), or choose another folder"
            )
        check_seal(self.path, [self.config.name])
        try:
            earlier = yaml.safe_load(self.config.read_text(encoding="utf-8")) or {}
        except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
            raise RunFolderError(
                f"{self.config} cannot be read: put back a good copy, or start the run anew"
            ) from error
        changed = _differences(earlier, values, ignore)
        if changed:
            raise RunFolderError(
                f"{self.path} was started with another configuration: {'; '.join(changed[:5])}"
            )

    def _take_lock(self) -> None:
        lock = open(self.path / ".lock", "w", encoding="utf-8")  # noqa: SIM115
        try:
            import fcntl
        except ImportError:  # Windows: no lock, one process per folder is the user's care
            self._lock = lock
            return
        try:
            # The system lets go of it when the process ends, however it ends: no stale lock after a kill.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.close()
            raise RunFolderError(
                f"another process is running in {self.path}: choose another folder"
            ) from error
        self._lock = lock

    def _write_environment(self) -> None:
        from shared_core.run.environment import describe

        write_json(self.environment, describe())


def _differences(earlier: Any, now: Any, ignore: Sequence[str] = (), prefix: str = "") -> list[str]:
    if isinstance(earlier, dict) and isinstance(now, dict):
        # A whole record without a name is of a version that did not have it yet; an empty one is no record.
        known = earlier or now
        names = [name for name in known if prefix or name not in ignore]
        return [
            line
            for name in names
            for line in _differences(earlier.get(name), now.get(name), prefix=f"{prefix}{name}.")
        ]
    return [] if earlier == now else [f"{prefix.rstrip('.')} was {earlier!r}, is {now!r}"]
