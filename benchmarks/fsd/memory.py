"""Peak memory of a 256 x 256 render with gradients in fsd, on a CPU.

    python -m benchmarks.fsd.memory --out FILE [--quick]

Each case is a new process, which renders one view of 64 samples a ray and runs the backward pass, and says its
largest resident size; a process that only builds the scene is the base.  "one chunk" keeps everything for the
backward pass; the default computes chunks of 2^19 samples again.
"""

import resource
import subprocess
import sys

import torch
from fsd.cameras import turntable
from fsd.scene import grid_scene, hash_scene

from benchmarks.core.figures import difference, options, write

SAMPLES, GOAL = 64, 6.0
SCENES = {"grid": grid_scene, "hash": hash_scene}


def main() -> None:
    parser = options(__doc__)
    parser.add_argument(
        "--case", nargs=3, metavar=("SCENE", "SIZE", "CHUNK"), help="one process; prints its GB"
    )
    given = parser.parse_args()
    if given.case:
        print(peak(given.case[0], int(given.case[1]), int(given.case[2])))
        return
    size = 32 if given.quick else 256
    figures = []
    for scene in SCENES:
        values = {
            "scene alone": [measured(scene, 0, 2**19)],
            "chunks": [measured(scene, size, 2**19)],
            "zero": [0.0],
        }
        # All at once would take the hash grid beyond what this machine has.
        if scene == "grid":
            values["one chunk"] = [measured(scene, size, 2**40)]
            figures.append(
                difference(f"{scene} saved", f"GB of one chunk above chunks, {size} x {size}", "GB", values,
                           "one chunk", "chunks", quick=given.quick)
            )  # fmt: skip
        figures.append(
            difference(f"{scene} peak", f"resident GB of the whole process, {scene}_scene() and its backward pass",
                       "GB", values, "chunks", "zero", goal=GOAL, quick=given.quick)
        )  # fmt: skip
        figures.append(
            difference(f"{scene} render", "the same, above a process that builds the scene alone", "GB", values,
                       "chunks", "scene alone", quick=given.quick)
        )  # fmt: skip
    write(given.out, given.quick, figures, size=size, samples=SAMPLES)


def measured(scene: str, size: int, chunk: int) -> float:
    """Peak resident size in GB of a new process."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.fsd.memory",
        "--out",
        "-",
        "--case",
        scene,
        str(size),
        str(chunk),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout)


def peak(name: str, size: int, chunk: int) -> float:
    """Renders (size 0: does not) in this process and returns its peak in GB."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    scene = SCENES[name](samples=SAMPLES, chunk=chunk)
    if size:
        image = scene.render(turntable(1), size, torch.Generator().manual_seed(0)).image
        image.square().mean().backward()
    # Linux counts in KiB.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


if __name__ == "__main__":
    main()
