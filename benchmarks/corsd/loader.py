"""How much faster the loader alone is than the training step that it feeds.

    python -m benchmarks.corsd.loader --out FILE [--quick]

Two workers read epochs of CIFAR-100 (of random bytes of that shape where ../shared/data is absent) with shift
and mirror augmentation; a round is one epoch, its start included, and then one plain step on all CPU threads
or the GPU.  The step leaves out the copy to the device and the normalisation, which only makes it faster.
"""

import time
from pathlib import Path

import torch
from shared_core.data.arrays import ArrayImages
from shared_core.data.augment import crop_flip
from shared_core.data.loader import KeyedDataset, make_loader
from shared_core.data.open import open_dataset
from shared_core.data.sampling import Batches, shuffled_plan

from benchmarks.core.figures import interleaved, options, ratio, write
from benchmarks.core.step_time import BATCH, WIDTH, training_step

CIFAR100 = Path(__file__).parents[3] / "shared/data/cifar100.npz"


def main() -> None:
    given = options(__doc__).parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    data, source = images(given.quick)
    loader = make_loader(
        KeyedDataset(data, seed=0, batch_transform=crop_flip),
        Batches(shuffled_plan(len(data), BATCH, seed=0)),
        workers=2,
        pin_memory=device == "cuda",
    )

    def loaded() -> float:
        begin = time.perf_counter()
        seen = sum(len(labels) for _, labels in loader)
        return seen / (time.perf_counter() - begin)

    def trained(step) -> float:
        begin = time.perf_counter()
        step()
        if device == "cuda":
            torch.cuda.synchronize()
        return BATCH / (time.perf_counter() - begin)

    # width 16 is what a CPU can train; the goal is for 64
    widths = (8,) if given.quick else (WIDTH, 16)
    steps = {f"step of width {w}": training_step("plain", w, BATCH, device) for w in widths}
    rates = interleaved(
        {"loader": loaded, **{name: lambda s=step: trained(s) for name, step in steps.items()}},
        rounds=2 if given.quick else 9,
    )
    figures = [
        ratio(
            f"loader against the {name}", f"{source}, batch {BATCH}, on the {device}", "images per second, wall clock",
            rates, "loader", name, goal=3.0, at_least=True, quick=given.quick,
        )
        for name in steps
    ]  # fmt: skip
    write(given.out, given.quick, figures, device=device)


def images(quick: bool) -> tuple[ArrayImages, str]:
    """CIFAR-100's training set or its like, and which of the two it is."""
    if CIFAR100.is_file() and not quick:
        data = open_dataset(f"npz:{CIFAR100}", "train")
        assert isinstance(data, ArrayImages)  # what npz: gives, for the type checker
        return data, "CIFAR-100"
    count = 960 if quick else 50_000
    generator = torch.Generator().manual_seed(0)
    random = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return ArrayImages(random, torch.arange(count) % 100), "random bytes"


if __name__ == "__main__":
    main()
