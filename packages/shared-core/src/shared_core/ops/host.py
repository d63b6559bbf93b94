"""Read values back from the device: the one door, so that a step's waits can be counted.

Reading a number of a GPU (`item`, `int`, `bool`, `cpu`, a boolean index) makes the CPU wait until all work queued so
far is done.  What a training step must know on the CPU goes through :func:`read_back`, stacked into one tensor;
everything else stays on the device.  Tests put a step on the meta device, where every other way of reading raises
(:func:`shared_core.testing.pretend_device`).

    >>> finite, done = read_back(torch.stack([isfinite, steps]), "is the loss finite?").tolist()
"""

from jaxtyping import Shaped
from torch import Tensor


def read_back(values: Shaped[Tensor, "*shape"], why: str) -> Shaped[Tensor, "*shape"]:
    """Return `values` on the CPU, without gradient; on a GPU the CPU waits for them.

    `why` says what needs them.  Tests hold a list of these reasons: a new one is a wait that somebody has to defend.
    """
    del why
    return values.detach().cpu()
