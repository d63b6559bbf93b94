"""Run the scripts of benchmarks/ and check that each writes valid JSON to benchmarks/out/ (`make bench`).

    python tools/bench.py [--quick]

Each script takes ``--out FILE`` and ``--quick`` (small sizes: whether it works, not what it measures).  Without
--quick each figure is compared with the stored one in benchmarks/results/; that is printed and judges nothing, since
the machine may be another one.
"""

import json
import subprocess
import sys
from pathlib import Path


def compared(stored: dict, new: dict) -> list[str]:
    """One line per figure: the stored median -> the new one, and whether their quartiles overlap."""
    before = {figure["name"]: figure for figure in stored["figures"]}
    lines = []
    for figure in new["figures"]:
        name, kind = figure["name"], "ratio" if "ratio" in figure else "difference"
        old = before.pop(name, {}).get(kind)
        now = figure[kind]
        if old is None:
            lines.append(f"{name}: no stored {kind} -> {now['median']:.3g}")
            continue
        overlap = old["lower"] <= now["upper"] and now["lower"] <= old["upper"]
        quartiles = "quartiles overlap" if overlap else "quartiles lie apart"
        lines.append(f"{name}: {kind} {old['median']:.3g} -> {now['median']:.3g}, {quartiles}")
    return lines + [f"{name}: stored, and not measured now" for name in before]


# Those that take --out and --quick: modules of benchmarks/, in the order of a run.
SCRIPTS = (
    *(f"corsd.{name}" for name in ("step", "loader", "import_time", "accuracy")),
    *(f"calib.{name}" for name in ("step", "latency", "to_90", "findings", "accuracy")),
    *(f"fsd.{name}" for name in ("step", "forward", "import_time", "memory", "occupancy", "spot", "prior")),
    *(f"fsd.{name}" for name in ("plain_diffusers", "draft", "diversity")),
    *(f"core.{name}" for name in ("scale", "weak_scaling", "accuracy_again")),
    *(f"peers.{name}" for name in ("torchdistill_rkd", "torchdistill_accuracy")),
)


def result_of(script: str) -> str:
    """The name of its file: `corsd_step.json` for corsd.step, `scale.json` for core.scale."""
    folder, name = script.split(".")
    return f"{name}.json" if folder in ("core", "peers") else f"{folder}_{name}.json"


def main(arguments: list[str]) -> int:
    """Run the scripts one after another, since a second one would disturb the timing; 1 if any failed."""
    folder = Path("benchmarks")
    failed = []
    for script in SCRIPTS:
        out = folder / "out" / result_of(script)
        out.parent.mkdir(exist_ok=True)
        out.unlink(missing_ok=True)
        print(f"== {script}", flush=True)
        done = subprocess.run([sys.executable, "-m", f"benchmarks.{script}", "--out", out, *arguments])
        try:
            new = json.loads(out.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            print(f"{script}: no valid JSON in {out}: {error}", file=sys.stderr)
            failed.append(script)
        else:
            failed += [script] * (done.returncode != 0)
            stored = folder / "results" / out.name
            if stored.exists() and "--quick" not in arguments:
                lines = compared(json.loads(stored.read_text(encoding="utf-8")), new)
                print(f"against {stored}:", *lines, sep="\n  ", flush=True)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
