"""What a CORSD training step costs over the plain step, in time and in peak memory.

    python -m benchmarks.corsd.step --out FILE [--quick] [--threads N]

ResNet-18 of width 64, 32 x 32 images, batch 96, whole steps (forward, backward, SGD) of the default
configuration.  In-batch CORSD compares 32 same-class and 32 other-class pairs at all four stages; triplets
read the same 96 images as 32 triplets.  RKD, the handcrafted relation, stands beside them.  The peak is that of
the device with CUDA, else of the process (read from /proc, so on Linux).

One CPU thread unless --threads says otherwise: with more, a busy machine is measured and not the step.
"""

import json
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.core.figures import interleaved, options, ratio, write
from benchmarks.core.step_time import BATCH, METHODS, WIDTH, clock_name, seconds, training_step

NAMES = {
    "in_batch": "CORSD with in-batch pairs",
    "triplets": "CORSD with triplets",
    "rkd": "RKD between the stages",
}
TIME_GOALS = {"in_batch": 1.35, "triplets": 1.25}
MEMORY_GOALS = {"in_batch": 1.5}


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--peak", choices=list(METHODS), help="print the peak memory of one method, in bytes")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    width, batch = (8, 12) if given.quick else (WIDTH, BATCH)
    if given.peak:
        print(json.dumps(peak_bytes(given.peak, width, batch, device)))
        return

    # memory first: a process apart for each method and round, since a peak cannot be taken back
    command = [
        sys.executable,
        "-m",
        "benchmarks.corsd.step",
        "--out",
        given.out,
        "--threads",
        str(given.threads),
    ]
    command += ["--quick"] * given.quick

    def peak(method: str) -> float:
        done = subprocess.run([*command, "--peak", method], check=True, capture_output=True, text=True)
        return json.loads(done.stdout) / 2**20

    weighed = ["plain", *MEMORY_GOALS] if given.quick else list(METHODS)
    memory = interleaved(
        {method: lambda m=method: peak(m) for method in weighed}, rounds=1 if given.quick else 3, warmup=0
    )
    steps = {method: training_step(method, width, batch, device) for method in METHODS}
    time = interleaved(
        {method: lambda s=step: seconds(s, device) for method, step in steps.items()},
        rounds=2 if given.quick else 12,
    )
    units = {
        "time": f"s per step, {clock_name(device)}",
        "memory": "MiB at the peak of three steps, over what lay there before",
    }
    figures = [
        ratio(
            f"{method} {kind}", f"{name} against the plain step at batch {batch}", units[kind],
            values, method, "plain", goal=goals.get(method), quick=given.quick,
        )
        for method, name in NAMES.items()
        for kind, values, goals in (("time", time, TIME_GOALS), ("memory", memory, MEMORY_GOALS))
        if method in values
    ]  # fmt: skip
    write(given.out, given.quick, figures, device=device, width=width, batch=batch)


def peak_bytes(method: str, width: int, batch: int, device: str) -> int:
    """How far memory rises in the first three steps above net, batch and libraries (the third has momentum)."""
    step = training_step(method, width, batch, device)
    if device == "cuda":
        before, peak = torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated
    else:
        before, peak = resident_bytes("VmRSS"), lambda: resident_bytes("VmHWM")
        # Forget the peak of the imports.
        Path("/proc/self/clear_refs").write_text("5")
    for _ in range(3):
        step()
    return peak() - before


def resident_bytes(field: str) -> int:
    """Resident memory of this process: VmRSS is now, VmHWM the peak (ru_maxrss would inherit the parent's)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


if __name__ == "__main__":
    main()
