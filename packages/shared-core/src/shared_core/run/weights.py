"""A module's weights as one safetensors file, written whole and read back into the same kind of module.

For weights from elsewhere, see `shared_core.fitting_weights.load_weights`.
"""

import errno
import os
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import nn

from shared_core.run.atomic import make_readable


def save_weights(module: nn.Module, path: str | os.PathLike[str]) -> None:
    """The module's own state dict as safetensors, whole or not at all; tensors that it shares once."""
    path = Path(path)
    temporary = path.with_suffix(".tmp")
    try:
        save_model(module, str(temporary))
        make_readable(temporary)
        os.replace(temporary, path)
    except SafetensorError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(errno.EIO, f"the weights were not saved: {error}", str(path)) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_weights(module: nn.Module, path: str | os.PathLike[str]) -> None:
    """Loads a file that `save_weights` wrote.

    Raises ValueError if the file is missing, broken, or holds the weights of another net.
    """
    if not Path(path).is_file():
        raise ValueError(f"there is no weights file {path}")
    try:
        load_model(module, path)
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(
            f"{path} does not hold the weights of this net: {' '.join(str(error).split())}"
        ) from error
