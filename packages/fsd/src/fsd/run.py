"""A run of ``fsd generate``: many prompts, methods and seeds, shared by any number of processes.

Every object has a folder with a lock.  A process takes the first object that nobody works on, until none is left:
it does not matter whether the processes were started here (`jobs`), by torchrun or by hand, and when one dies its
object is taken over at the last checkpoint.  An object that fails does not stop the others.
"""

import json
import multiprocessing
import os
import re
import signal
import sys
import time
import traceback
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import torch
from shared_core.run.atomic import write_json
from shared_core.run.device import choose_device
from shared_core.run.folder import RunFolder, RunFolderError
from shared_core.run.idle import refuse_idle
from shared_core.run.result import check_result
from shared_core.run.seal import write_sealed
from shared_core.run.stop import StopFlag

from fsd.build import build_prior, encode_texts, says, set_threads, try_prior
from fsd.config import GenerateConfig
from fsd.generate import generate
from fsd.needs import NEEDS
from fsd.priors.base import Prior


class Job(NamedTuple):
    """One object to make."""

    folder: Path
    prompt: str
    method: str
    seed: int

    def done(self) -> bool:
        """Finished, or given up in this run."""
        return (self.folder / "object.json").is_file() or (self.folder / "failed.json").is_file()


def run(config: GenerateConfig, out: Path, resume: bool = False) -> dict[str, Any] | None:
    """Makes all objects, then result.json and report.html; the result, or None in a process that only helped.

    Raises ValueError or OSError, before any work, for a prior or a prompt that cannot be used.
    """
    refuse_idle(config, NEEDS)
    out = Path(os.path.expanduser(out))
    set_threads(config)
    device = own_device(config.device, int(os.environ.get("LOCAL_RANK", "0")))
    prior = build_prior(config, device)
    encode_texts(config, prior)
    try_prior(config, prior, device)
    if int(os.environ.get("RANK", "0")):
        with StopFlag() as stop:
            work(config, out, prior, device, stop)
        return None
    folder = RunFolder(out)
    given_up = [
        job.folder / "failed.json" for job in jobs(config, out) if not (job.folder / "object.json").is_file()
    ]
    if resume and any(path.is_file() for path in given_up):
        # What failed is tried again, so the run is not finished.
        folder.result.unlink(missing_ok=True)
    if resume and folder.finished() and not folder.report.is_file():
        # Killed between the result and its page.
        return finish(out)
    with folder.open(config, resume=resume, ignore=("jobs", "device", "threads")), StopFlag() as stop:
        for path in given_up:
            path.unlink(missing_ok=True)
        helpers = [_start(config, out, n) for n in range(1, min(config.jobs, len(jobs(config, out))))]
        try:
            work(config, out, prior, device, stop, wait=True)
        except BaseException:
            _stop(helpers)
            raise
        return finish(out)


def jobs(config: GenerateConfig, out: Path) -> list[Job]:
    """Every prompt, method and seed; seeds go round first, so that early results compare methods."""
    return [
        Job(out / "objects" / f"{slug(prompt)}-{method}-seed{seed}", prompt, method, seed)
        for prompt in config.prompts
        for seed in config.seeds
        for method in config.guidance
    ]


def work(
    config: GenerateConfig,
    out: Path,
    prior: Prior,
    device: torch.device,
    stop: StopFlag,
    wait: bool = False,
) -> None:
    """Makes objects that nobody works on until there is none; with `wait`, until all are done.

    Raises SystemExit when the process is told to stop, also between two objects.
    """
    todo = jobs(config, out)
    while todo := [job for job in todo if not job.done()]:
        worked = 0
        for job in todo:
            if stop.stopped:
                raise SystemExit(stop.exit_code)
            # Another process may have done it by now.
            if not job.done():
                worked += _try(config, job, prior, device)
        if not worked and not wait:
            return
        if not worked:
            time.sleep(0.5)


def finish(out: Path) -> dict[str, Any]:
    """Writes result.json and report.html of a run whose objects are done."""
    from fsd.evaluate import evaluate
    from fsd.report import report

    result = evaluate(out)
    check_result(result, schema())
    write_sealed(out / "result.json", result)
    report(out)
    return result


def schema() -> dict[str, Any]:
    """The schema of result.json."""
    return json.loads(files("fsd").joinpath("result_schema.json").read_text(encoding="utf-8"))


def own_device(name: str, process: int) -> torch.device:
    """The device of a machine's `process`, 0 to n - 1: each takes its own GPU, but for a GPU named by its number."""
    device = choose_device(name)
    if device.type == "cuda" and ":" not in name:
        return torch.device("cuda", process % torch.cuda.device_count())
    return device


def slug(prompt: str) -> str:
    """A prompt as part of a folder's name: its words, and a number that tells long or foreign ones apart."""
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")
    if words.replace("-", " ") == prompt and len(words) <= 60:
        return words
    from hashlib import sha256

    return f"{words[:50].strip('-')}-{sha256(prompt.encode()).hexdigest()[:6]}".lstrip("-")


def _try(config: GenerateConfig, job: Job, prior: Prior, device: torch.device) -> bool:
    """Makes one object unless another process does; whether this one worked on it."""
    try:
        generate(config, job.prompt, job.method, job.seed, prior, job.folder, device)
    except RunFolderError as error:
        if "another process" in str(error):
            return False
        _give_up(job, error)
    except torch.OutOfMemoryError as error:
        knobs = "lower --batch-size, --size or field.samples, choose --precision fp16 or bf16, or set slicing, offload"
        _give_up(job, MemoryError(f"out of memory on {device}: {knobs} ({str(error).splitlines()[0]})"))
    except Exception as error:
        # Whatever goes wrong in one object, the others go on; signals and exits are no Exception.
        _give_up(job, error)
    return True


def _give_up(job: Job, error: Exception) -> None:
    sentence = says(error)
    print(f"fsd: {job.folder.name} failed: {sentence}", file=sys.stderr)
    trace = "".join(traceback.format_exception(error))
    write_json(job.folder / "failed.json", {"error": sentence, "traceback": trace})


def _start(config: GenerateConfig, out: Path, number: int) -> Any:
    process = multiprocessing.get_context("spawn").Process(target=_help, args=(config, out, number))
    process.start()
    return process


def _help(config: GenerateConfig, out: Path, number: int) -> None:
    set_threads(config)
    device = own_device(config.device, number)
    prior = build_prior(config, device)
    encode_texts(config, prior)
    with StopFlag() as stop:
        work(config, out, prior, device, stop)


def _stop(helpers: list[Any]) -> None:
    for process in helpers:
        if process.is_alive():
            os.kill(process.pid, signal.SIGTERM)
    for process in helpers:
        process.join()
