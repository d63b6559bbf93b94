"""The paper's reading of the calibrator on USPS to MNIST: `calib analyse` of three runs, one a seed.

    python -m benchmarks.calib.findings --out FILE [--quick]

The runs are those of calib/accuracy.py's row `calibrator`, trained here unless its folder holds them; an interrupted
one goes on.  Nothing is judged: the target's labels score a thousand test images, and choose nothing.
"""

import tempfile
from pathlib import Path
from typing import Any

import torch
from calib.analysis import analyse

from benchmarks.calib.accuracy import RUNS, run_one, tiny_run
from benchmarks.calib.plan import DATA, SEEDS
from benchmarks.core.figures import options, write

PAIR, ROW, CPU = "usps-mnist", "calibrator", torch.device("cpu")


def main() -> None:
    given = options(__doc__).parse_args()
    torch.set_num_threads(1)
    record: dict[str, Any] = {"pair": PAIR, "row": ROW, "runs": [], "not_measured": []}
    if given.quick:
        with tempfile.TemporaryDirectory() as folder:
            tiny_run(Path(folder))
            record["runs"].append({"seed": 0, **analyse(Path(folder), CPU, images=20, steps=2)})
    elif DATA.exists():
        for seed in SEEDS:
            folder = RUNS / PAIR / f"{ROW}-seed{seed}"
            folder.mkdir(parents=True, exist_ok=True)
            run_one(PAIR, ROW, seed, folder)
            record["runs"].append({"seed": seed, **analyse(folder, CPU)})
            write(given.out, False, [], **record)
    else:
        record["not_measured"].append(f"anything: there is no {DATA.name} folder with USPS and MNIST")
    for run in record["runs"]:
        found = ", ".join(f"{row['name']} {row['score']:.2f}" for row in run["corrections"])
        print(f"seed {run['seed']}: {found}")
    write(given.out, given.quick, [], **record)


if __name__ == "__main__":
    main()
