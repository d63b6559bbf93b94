"""A step of torchdistill's RKD beside our RKD and our CORSD step, on the same net and batch.

    python benchmarks/torchdistill_rkd.py --out FILE [--quick] [--environment FOLDER]

torchdistill runs in an environment of its own (made with uv from torchdistill/requirements.txt, with our torch)
as a process that trains a step whenever it is asked, so that both sides are measured in the same rounds, each
on one CPU thread or on the GPU.  Its RKD is two-model distillation: the same net twice, teacher frozen, cross
entropy and RKD on the pooled features (as ours) or on the whole last map (as in its sample configuration).
Ours teaches itself: no second net, but three exits.  "control" is the plain step there against the plain step
here: it should be 1, or the environments differ.

If the environment cannot be made or does not run, the JSON says what was tried and how it failed.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO, cast

import torch
from _figures import interleaved, options, ratio, write
from _step import BATCH, METHODS, STAGES, WIDTH, clock_name, seconds, training_step
from corsd import nets

HERE = Path(__file__).parent
FOLDER = HERE / "torchdistill"
REQUIREMENTS = FOLDER / "requirements.txt"
THEIRS = {"there: plain": "plain", "there: RKD": "avgpool", "there: RKD, whole map": STAGES[-1]}
COMPARED = {
    "control": ("there: plain", "here: plain"),
    "their RKD over plain": ("there: RKD", "there: plain"),
    "their RKD, whole map, over plain": ("there: RKD, whole map", "there: plain"),
    "our RKD over plain": ("here: rkd", "here: plain"),
    "our RKD over theirs": ("here: rkd", "there: RKD"),
    "CORSD in-batch over their RKD": ("here: in_batch", "there: RKD"),
    "CORSD triplets over their RKD": ("here: triplets", "there: RKD"),
    "CORSD in-batch over their RKD, whole map": ("here: in_batch", "there: RKD, whole map"),
}


def main() -> None:
    parser = options(__doc__)
    parser.add_argument(
        "--environment", type=Path, default=FOLDER / ".venv", help="where torchdistill is installed"
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    width, batch = (8, 12) if given.quick else (WIDTH, BATCH)
    versions = [line for line in REQUIREMENTS.read_text().splitlines() if line.startswith("torch")]
    try:
        install(given.environment)
        with their_steps(given.environment, width, batch, device) as theirs:
            ours = {name: training_step(name, width, batch, device) for name in METHODS}
            variants = {f"here: {name}": lambda s=step: seconds(s, device) for name, step in ours.items()}
            variants |= {name: lambda f=features: theirs(f) for name, features in THEIRS.items()}
            values = interleaved(variants, rounds=2 if given.quick else 6)
    except subprocess.CalledProcessError as error:
        tried = [Path(str(part)).name for part in error.cmd]
        said = error.stderr.replace(f"{HERE.parent}/", "")
        print(f"torchdistill was not measured: {' '.join(tried)} failed:\n{said}")
        write(given.out, given.quick, [], tried=tried, error=said[-2000:], versions=versions)
        return
    unit = f"s per step, {clock_name(device)}"
    figures = [
        ratio(name, f"{a} against {b}, batch {batch}", unit, values, a, b, quick=given.quick)
        for name, (a, b) in COMPARED.items()
    ]
    write(given.out, given.quick, figures, device=device, width=width, batch=batch, versions=versions)


def install(environment: Path) -> None:
    """Make the environment, or bring it to exactly what the requirements say.

    Raises:
        subprocess.CalledProcessError: uv could not; ``stderr`` says why.
    """
    uv = HERE.parent / "tools/uv.sh"
    commands = [
        [uv, "venv", "--quiet", "--allow-existing", "--python", sys.executable, environment],
        [uv, "pip", "sync", "--quiet", "--python", environment, REQUIREMENTS],
    ]
    for command in commands:
        subprocess.run(command, check=True, capture_output=True, text=True, cwd=HERE.parent)


@contextmanager
def their_steps(environment: Path, width: int, batch: int, device: str) -> Iterator:
    """A function that lets torchdistill train one step of a variant and returns its seconds.

    Raises:
        subprocess.CalledProcessError: the process ended instead; ``stderr`` is its traceback.
    """
    command = [environment / "bin/python", FOLDER / "steps.py", nets.__file__, str(width), str(batch), device]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    asked, answered = cast(TextIO, process.stdin), cast(TextIO, process.stdout)

    def step(variant: str) -> float:
        try:
            print(variant, file=asked, flush=True)
            answer = answered.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            errors = process.communicate()[1]
            raise subprocess.CalledProcessError(process.returncode, command, stderr=errors)
        return json.loads(answer)

    try:
        yield step
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    main()
