"""A process with the three methods imported that runs their commands in forks of itself, so that a kill is cheap.

Reads one JSON record per line from stdin and answers each with one line: {"code": exit code, or minus the signal that
ended it, "events": moments that were counted, null if it was killed}.

    {"method": "corsd", "arguments": ["train", ...], "cwd": DIR, "log": FILE}   its words go to the log
    "at": N, "signal": "KILL"     sends itself that signal at the N-th moment: a line of metrics, an fsync, a rename
    "limit": BYTES                no file may become longer
    "environment": {...}          further variables
    "obey": true                  root obeys the permissions of files, as others do
    "report": true                writes report.html too (left out otherwise: it takes longer than the run)
    "wait": false                 answers {"pid": ...} at once; {"pid": ...} waits for it, {"kill": PID} kills it
"""

import contextlib
import ctypes
import gc
import json
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

# Also, once, what the commands load only when they need it: each fork would take seconds for it (those with noqa).
import calib.analysis
import calib.cli
import calib.report
import calib.run
import calib.trained
import corsd.cli
import corsd.reevaluate
import corsd.report
import corsd.run
import diffusers.pipelines.pipeline_utils  # noqa: F401
import fsd.cli
import fsd.evaluate
import fsd.report
import fsd.run
import scipy.stats  # noqa: F401
import skimage.measure
import skimage.morphology  # noqa: F401
import sklearn.datasets  # noqa: F401
import torch
import torch._dynamo
import torchmetrics  # noqa: F401
import torchvision.transforms.v2  # noqa: F401
import trimesh  # noqa: F401
import tyro  # noqa: F401
from fsd.priors.mixture import MixturePrior
from shared_core.run.metrics import MetricsLog

MAINS: dict[str, Callable[[list[str]], int]] = {
    "corsd": corsd.cli.main,
    "calib": calib.cli.main,
    "fsd": fsd.cli.main,
}


class Moments:
    """Counts the moments at which a process may be killed, and sends the signal at one of them."""

    def __init__(self, at: int | None, name: str) -> None:
        self.count, self.at, self.signal = 0, at, getattr(signal, f"SIG{name}")
        for place, function in ((os, "fsync"), (os, "replace"), (os, "rename"), (MetricsLog, "log")):
            setattr(place, function, self._counted(getattr(place, function)))

    def _counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **named: Any) -> Any:
            self.count += 1
            if self.count == self.at:
                os.kill(os.getpid(), self.signal)
            return function(*arguments, **named)

        return counted


class Running(NamedTuple):
    """Where a child's count of moments and its words come from, and where the words go."""

    events: int
    said: int
    log: str


def child(command: dict[str, Any], answer: int, said: int) -> None:
    """Run one command and end the process; it says too what Python would print about an exception."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(command["cwd"])
    os.environ.update(command.get("environment", {}))
    # Pipes, because a limit on files would cut short what the command says about it.
    os.dup2(said, 1)
    os.dup2(said, 2)
    os.close(said)
    if not command.get("report"):
        corsd.run.report = calib.report.report = fsd.report.report = lambda out: out
    if command.get("limit"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (command["limit"], command["limit"]))
    if command.get("obey"):
        obey_permissions()
    moments = Moments(command.get("at"), command.get("signal", "KILL"))
    try:
        code = MAINS[command["method"]](command["arguments"])
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os.write(answer, str(moments.count).encode())
    os._exit(code or 0)


def obey_permissions() -> None:
    """Give up the capabilities by which root reads and writes whatever it likes (Linux)."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)()
    if libc.capget(header, sets):
        raise OSError(ctypes.get_errno(), "capget")
    # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH of the effective set.
    sets[0] &= ~0b110
    if libc.capset(header, sets):
        raise OSError(ctypes.get_errno(), "capset")


def start(command: dict[str, Any]) -> tuple[int, Running]:
    """Fork a child for a command."""
    events, answer = os.pipe()
    words, said = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(events)
        os.close(words)
        child(command, answer, said)
    os.close(answer)
    os.close(said)
    return pid, Running(events, words, command["log"])


def wait(pid: int, running: Running) -> dict[str, Any]:
    """The answer about a child, once it has ended."""
    with open(running.said, "rb") as words, open(running.log, "wb") as log:
        log.write(words.read())
    _, status = os.waitpid(pid, 0)
    counted = os.read(running.events, 100)
    os.close(running.events)
    return {"code": os.waitstatus_to_exitcode(status), "events": int(counted) if counted else None}


def main() -> None:
    """Answer until stdin ends."""
    torch.set_num_threads(1)
    # A prior of two pictures, which takes no seconds to make.
    pictures = torch.stack([torch.full((3, 16, 16), 0.8), torch.full((3, 16, 16), -0.6)])
    prior = MixturePrior(pictures.flatten(1), latent_shape=(3, 16, 16))
    # But one that is not there is looked for.
    build = fsd.run.build_prior
    fsd.run.build_prior = lambda config, device: build(config, device) if config.prior == "gone" else prior
    # A collection in a child would otherwise touch, and so copy, all that is here.
    gc.freeze()
    running: dict[int, Running] = {}
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        if "kill" in command:
            os.kill(command["kill"], signal.SIGKILL)
            answer = wait(command["kill"], running.pop(command["kill"]))
        elif "pid" in command:
            answer = wait(command["pid"], running.pop(command["pid"]))
        else:
            pid, running[pid] = start(command)
            answer = {"pid": pid} if command.get("wait") is False else wait(pid, running.pop(pid))
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
