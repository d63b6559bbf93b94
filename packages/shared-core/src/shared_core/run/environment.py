"""What a run ran on, for env.json: versions, platform, threads, commit, command.

No host name and no absolute path of a home: the file is meant to be shared.
"""

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "shared-core", "corsd", "fsd", "calib-uda", "torch", "torchvision", "numpy", "accelerate", "timm",
    "safetensors", "pillow", "scikit-learn", "pydantic", "tyro", "torchmetrics", "diffusers", "transformers",
)  # fmt: skip


def describe() -> dict[str, Any]:
    """A dict of plain values, ready for JSON."""
    import torch

    return {
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "git": _git(),
        "command": [Path(sys.argv[0]).name, *(_shareable(argument) for argument in sys.argv[1:])],
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _git() -> dict[str, Any] | None:
    try:
        commit = _run_git("rev-parse", "HEAD")
        return {"commit": commit, "changed": bool(_run_git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _run_git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()


def _shareable(argument: str) -> str:
    home = str(Path.home())
    if home in ("/", ""):
        return argument
    return argument.replace(str(Path.cwd()) + os.sep, "").replace(home, "~")
