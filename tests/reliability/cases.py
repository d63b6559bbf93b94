"""Small runs of the three methods, in processes that can be killed, and what they came to."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
FULL = bool(os.environ.get("RELIABILITY_FULL"))
FIGURES: dict[str, Counter[str]] = {}


class Method(NamedTuple):
    """A small run of a method, and which of its files are the result, byte for byte."""

    name: str
    verb: str
    config: dict[str, Any]
    result: tuple[str, ...]


STEPS = 9
METHODS = {
    "corsd": Method(
        "corsd",
        "train",
        {
            "data": "npz:squares.npz#day", "model": "small:resnet10", "width": 4, "epochs": STEPS, "batch_size": 16,
            "augment": "crop", "threads": 1, "device": "cpu", "log_every": 1, "checkpoint_every": 3,
            "validation": 0.25, "evaluate_every": 4, "relations": {"stages": ["layer2", "layer4"]},
        },
        ("net.safetensors", "net-best.safetensors", "preprocess.json", "config.yaml"),
    ),
    "calib": Method(
        "calib",
        "adapt",
        {
            "source": "npz:squares.npz#day", "target": "npz:squares.npz#dusk", "image_size": 32, "body": "lowres",
            "width": 2, "blocks": 1, "steps": STEPS, "batch_size": 12, "validate_every": 2, "validation_images": 12,
            "log_every": 1, "checkpoint_every": 3, "threads": 1, "device": "cpu",
            "training": {"epochs": 1.0, "batch_size": 12},
        },
        ("classifier.safetensors", "calibrator/calibrator.safetensors", "preprocess.json", "config.yaml"),
    ),
    "fsd": Method(
        "fsd",
        "generate",
        {
            "prompts": ["an object"], "steps": STEPS, "size": 16, "batch_size": 2, "threads": 1, "device": "cpu",
            "log_every": 1, "picture_every": 3, "checkpoint_every": 3, "mesh_resolution": 12, "frames": 2,
            "field": {"resolution": 8, "samples": 8, "background": "learned"},
        },
        tuple(f"objects/an-object-fsd-seed0/{name}" for name in ("scene.safetensors", "views.png", "config.yaml")),
    ),
}  # fmt: skip
VOLATILE = {"seconds", "core_seconds", "time", "latency_ratio", "peak_memory_gb"}


class Runner:
    """Commands in forks of one process, see runner.py."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.commands = folder, 0
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "runner.py")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        assert self._answer() == {"ready": True}

    def __call__(self, method: str, *arguments: str | Path, cwd: Path, **settings: Any) -> "Ended":
        """Runs `method arguments` in `cwd`; `settings` as in runner.py."""
        self.commands += 1
        log = self.folder / f"{self.commands}.log"
        command = {
            "method": method,
            "arguments": [str(a) for a in arguments],
            "cwd": str(cwd),
            "log": str(log),
        }
        answer = self.ask({**command, **settings})
        if "pid" in answer:
            return Ended(0, None, "", answer["pid"])
        return Ended(answer["code"], answer["events"], log.read_text(errors="replace"), None)

    def ask(self, command: dict[str, Any]) -> dict[str, Any]:
        """One record to the process, and its answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())


class Ended(NamedTuple):
    """How a command ended, what it said, and how many moments it had at which it could have been killed."""

    code: int
    events: int | None
    said: str
    pid: int | None

    def assert_refused(self, *words: str) -> None:
        """It failed and said why, with one of `words`; nobody sees a traceback.  Wrong usage takes three lines."""
        assert self.code in (1, 2), self
        assert "Traceback" not in self.said, self.said
        lines = [line for line in self.said.splitlines() if line.strip()]
        told = [line for line in lines if line.startswith(("corsd:", "calib:", "fsd:"))]
        assert told, self
        if self.code == 2:
            assert (
                len([line for line in lines if "Warning" not in line and "warnings.warn" not in line]) <= 3
            ), lines
        assert not words or any(word in self.said for word in words), (words, self.said)


class Straight(NamedTuple):
    """A run that nobody disturbed."""

    folder: Path
    events: int
    outcome: dict[str, Any]


def start(runner: Runner, place: Path, method: str, out: str | Path, **settings: Any) -> Ended:
    """A new run of a method."""
    m = METHODS[method]
    return runner(method, m.verb, "--config", f"{method}.yaml", "--out", out, cwd=place, **settings)


def resume(runner: Runner, place: Path, method: str, out: str | Path, **settings: Any) -> Ended:
    """Goes on with a run; one that was killed before it had a configuration begins again."""
    if not (place / out / "config.yaml").is_file():
        return start(runner, place, method, out, **settings)
    return runner(method, METHODS[method].verb, "--resume", out, cwd=place, **settings)


def outcome(method: str, folder: Path, metrics: bool = True) -> dict[str, Any]:
    """What a run came to: digests of its files, its numbers and its log without times."""
    found: dict[str, Any] = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in METHODS[method].result
    }
    found["result.json"] = _still(json.loads((folder / "result.json").read_text()))
    logs = (
        [path for path in folder.rglob("metrics.jsonl") if "checkpoints" not in path.parts] if metrics else []
    )
    for log in logs:
        found[str(log.relative_to(folder))] = [
            _still(json.loads(line)) for line in log.read_text().splitlines()
        ]
    return found


def copy(folder: Path, to: Path) -> Path:
    """A copy of a run folder to do harm to."""
    shutil.copytree(folder, to, symlinks=True)
    return to


def count(what: str, how: str) -> None:
    """Notes one case for docs/reliability.md."""
    FIGURES.setdefault(what, Counter())[how] += 1


def _still(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _still(entry) for name, entry in value.items() if name not in VOLATILE}
    return [_still(entry) for entry in value] if isinstance(value, list) else value
