"""Optional places for numbers beside metrics.jsonl, through accelerate's trackers; each needs its extra.

>>> tracker = open_tracker("tensorboard", Path("runs/a"), project="corsd")
>>> tracker.log({"parts/ce": 0.7}, step=1)
>>> tracker.finish()
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # It takes seconds to import, and most runs have no tracker.
    from accelerate.tracking import GeneralTracker


def open_tracker(name: str, folder: Path, project: str = "") -> "GeneralTracker":
    """ "tensorboard" writes below `folder/tensorboard`; "wandb" starts a run named like the folder in `project`.

    Only the process that writes the run folder may open one.
    Raises ValueError for another name, ImportError naming the extra to install.
    """
    if name not in TRACKERS:
        raise ValueError(f"there is no tracker {name!r}; there are {', '.join(TRACKERS)}")
    from accelerate import PartialState
    from accelerate.state import is_initialized
    from accelerate.utils import clear_environment

    if not is_initialized():
        # accelerate's log wants its state; processes that share objects by their folders stay alone with it.
        with clear_environment():
            PartialState(cpu=True)
    try:
        tracker = TRACKERS[name](folder, project or folder.name)
        tracker.main_process_only = False
        # Versions before 1.8 or so start when they are made.
        getattr(tracker, "start", lambda: None)()
    except ImportError as error:
        raise ImportError(f'tracker {name} needs its extra: pip install "shared-core[{name}]"') from error
    return tracker


def scalars(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Every number in records inside records, as ("parts/ce", 0.7); truth values, text and lists are left out."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from scalars(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield prefix + name, float(value)


def _tensorboard(folder: Path, project: str) -> "GeneralTracker":
    import torch.utils.tensorboard  # noqa: F401 - says what is missing
    from accelerate.tracking import TensorBoardTracker

    return TensorBoardTracker("tensorboard", folder)


def _wandb(folder: Path, project: str) -> "GeneralTracker":
    import wandb  # noqa: F401  # pyright: ignore[reportMissingImports]
    from accelerate.tracking import WandBTracker

    return WandBTracker(project, name=folder.name, dir=str(folder))


TRACKERS: dict[str, Callable[[Path, str], "GeneralTracker"]] = {"tensorboard": _tensorboard, "wandb": _wandb}
