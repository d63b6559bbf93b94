"""A run of two processes under torchrun that was told to stop and resumed ends as if nothing was, bit for bit."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cases import METHODS, count, outcome

# Long enough to be told to stop in the middle.
LONGER = {"corsd": ["--epochs", "24"], "calib": ["--steps", "30"]}
# torchrun does not pass on how its processes ended, so each writes it down.
PROGRAM = """import os, pathlib, sys
import {method}.cli

try:
    code = {method}.cli.main(sys.argv[1:])
except SystemExit as stop:
    code = stop.code
pathlib.Path("{method}-ended-" + os.environ["RANK"]).write_text(str(code))
sys.exit(code)
"""


def start(place: Path, method: str, *arguments: str) -> subprocess.Popen[bytes]:
    """The method's command on two processes, its words in a file."""
    for old in place.glob(f"{method}-ended-*"):
        old.unlink()
    (place / f"{method}_two.py").write_text(PROGRAM.format(method=method))
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [sys.executable, *torchrun, f"{method}_two.py", METHODS[method].verb, *arguments]
    with (place / f"{method}-two.log").open("wb") as log:
        return subprocess.Popen(
            command, cwd=place, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )


def end(place: Path, method: str, running: subprocess.Popen[bytes]) -> tuple[int, list[str], str]:
    """torchrun's exit code, those of the two processes, and what was said."""
    try:
        code = running.wait(timeout=240)
    except subprocess.TimeoutExpired:
        running.terminate()  # it kills its processes after 30 seconds
        raise
    said = (place / f"{method}-two.log").read_text(errors="replace")
    assert not (code == 0 and "Traceback" in said), said
    return code, [(place / f"{method}-ended-{rank}").read_text() for rank in (0, 1)], said


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("method", "number"), [("corsd", signal.SIGTERM), ("calib", signal.SIGINT)])
def test_two_processes_told_to_stop_go_on_bit_for_bit(
    method: str, number: signal.Signals, place: Path
) -> None:
    new = ["--config", f"{method}.yaml", *LONGER[method]]
    code, codes, said = end(place, method, start(place, method, *new, "--out", f"{method}-two-straight"))
    assert (code, codes) == (0, ["0", "0"]), said

    out = place / f"{method}-two-told"
    running, log = start(place, method, *new, "--out", out.name), out / "metrics.jsonl"
    while running.poll() is None and not (log.is_file() and log.stat().st_size):
        time.sleep(0.02)
    running.send_signal(number)
    code, codes, said = end(place, method, running)
    # What torchrun itself makes of a signal is always 1.
    assert (code, codes) == (1, [str(128 + number)] * 2), said
    assert not (out / "result.json").exists()
    assert any(out.glob("checkpoints/step-*"))

    code, codes, said = end(place, method, start(place, method, "--resume", out.name))
    assert (code, codes) == (0, ["0", "0"]), said
    assert outcome(method, out) == outcome(method, place / f"{method}-two-straight")
    count("two processes told to stop, resumed", "the same result, bit for bit")
