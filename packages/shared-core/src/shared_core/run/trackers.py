"""Optional places for scalars beside metrics.jsonl; each is an extra and is imported only when named."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Tracker(Protocol):
    """Something that takes named scalars of a step."""

    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


def open_tracker(name: str, folder: Path) -> Tracker:
    """ "tensorboard" writes below `folder/tensorboard`, "wandb" starts a run named like the folder.

    Raises ValueError for another name, ImportError naming the extra to install.
    """
    if name not in TRACKERS:
        raise ValueError(f"there is no tracker {name!r}; there are {', '.join(TRACKERS)}")
    try:
        return TRACKERS[name](folder)
    except ImportError as error:
        raise ImportError(f'tracker {name} needs its extra: pip install "shared-core[{name}]"') from error


class TensorBoard:
    """Event files for TensorBoard."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder / "tensorboard"))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases."""

    def __init__(self, folder: Path) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        self._run: Any = wandb.init(name=folder.name, dir=str(folder))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


TRACKERS = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}
