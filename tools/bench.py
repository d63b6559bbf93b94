"""Run every script of benchmarks/ and check that each writes valid JSON to benchmarks/out/ (`make bench`).

    python tools/bench.py [--quick]

Each script takes ``--out FILE`` and ``--quick`` (small sizes: whether it works, not what it measures).
"""

import json
import subprocess
import sys
from pathlib import Path


def main(arguments: list[str]) -> int:
    """Run the scripts one after another, since a second one would disturb the timing; 1 if any failed."""
    scripts = sorted(Path("benchmarks").glob("[!_]*.py"))
    if not scripts:
        print("benchmarks/ holds no script yet")
    failed = []
    for script in scripts:
        out = script.parent / "out" / f"{script.stem}.json"
        out.parent.mkdir(exist_ok=True)
        out.unlink(missing_ok=True)
        print(f"== {script}", flush=True)
        done = subprocess.run([sys.executable, script, "--out", out, *arguments])
        try:
            json.loads(out.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            print(f"{script}: no valid JSON in {out}: {error}", file=sys.stderr)
            failed.append(script.name)
        else:
            failed += [script.name] * (done.returncode != 0)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
