"""The launch files of examples/launch, run on one node with two processes."""

import json
import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cases import METHODS, Straight, count

LAUNCH = Path(__file__).parents[2] / "examples" / "launch"
BIN = Path(sys.executable).parent


def shell(
    script: str, *arguments: str | Path, cwd: Path, **variables: str
) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PATH": f"{cwd}/bin:{BIN}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        **variables,
    }
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    command = ["sh", str(LAUNCH / script), *map(str, arguments)]  # an absolute path stays as it is
    with subprocess.Popen(
        command,
        cwd=cwd,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as running:
        try:
            said = running.communicate(timeout=240)
        except BaseException:
            # torchrun and what it started, too.
            os.killpg(running.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(command, running.returncode, *said)


def program(folder: Path, name: str, text: str) -> None:
    (folder / "bin").mkdir(exist_ok=True)
    path = folder / "bin" / name
    path.write_text(text)
    path.chmod(0o755)


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return str(found.getsockname()[1])


def test_they_are_valid_shell() -> None:
    scripts = sorted(LAUNCH.glob("*.sh"))
    assert len(scripts) == 3
    for script in scripts:
        subprocess.run(["sh", "-n", script], check=True)


@pytest.mark.slow
def test_two_processes_on_one_node(place: Path) -> None:
    done = shell(
        "nodes.sh", "corsd", "train", "--config", "corsd.yaml", "--out", "launched",
        cwd=place, PER_NODE="2", PORT=free_port(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads((place / "launched" / "result.json").read_text())
    assert result["images_seen"] == METHODS["corsd"].config["batch_size"] * result["steps"]
    count("launch files, two processes on one node", "a result")


@pytest.mark.slow
def test_slurm_comes_back_until_the_run_is_done(place: Path, straight: dict[str, Straight]) -> None:
    """srun and scontrol are stand-ins; the torchrun that ends well and its two processes are real."""
    program(place, "srun", '#!/bin/sh\nexec "$@"\n')
    program(
        place,
        "scontrol",
        '#!/bin/sh\nif [ "$1" = requeue ]; then echo again >> requeued; else echo localhost; fi\n',
    )
    slurm = {
        "SLURM_JOB_NODELIST": "localhost",
        "SLURM_NNODES": "1",
        "SLURM_JOB_ID": "7",
        "SLURM_GPUS_ON_NODE": "2",
    }
    script = (LAUNCH / "slurm.sh").read_text().replace(":29500", f":{free_port()}")
    (place / "slurm.sh").write_text(script)
    out = "launched-calib"
    command = [str(place / "slurm.sh"), out, "calib", "adapt", "--config", "calib.yaml"]
    program(place, "torchrun", "#!/bin/sh\nexit 143\n")
    assert shell(*command, cwd=place, **slurm).returncode == 143
    assert (place / "requeued").read_text() == "again\n"
    assert shell(*command, cwd=place, **slurm, SLURM_RESTART_COUNT="20").returncode == 143
    assert (place / "requeued").read_text() == "again\n"
    (place / "bin" / "torchrun").unlink()
    done = shell(*command, cwd=place, **slurm)
    assert done.returncode == 0, done.stderr
    result = json.loads((place / out / "result.json").read_text())
    assert result["steps"] == METHODS["calib"].config["steps"]
    assert result["classifier_unchanged"]
    # One of the two trains the classifier, as one process alone does.
    alone, shared = (folder / "classifier.safetensors" for folder in (straight["calib"].folder, place / out))
    assert shared.read_bytes() == alone.read_bytes()
    assert (place / "requeued").read_text() == "again\n"
    count("launch files, two processes on one node", "a result")


@pytest.mark.slow
def test_an_array_of_jobs_shares_the_objects(place: Path) -> None:
    """Two jobs of the array at once, with the real fsd: all objects are made, once, and the first writes the result."""
    # The embedded prior wants its four views.
    prompts, few = ["an object", "a red cube"], ["--seeds", "0-1", "--batch-size", "4", "--steps", "3"]
    out, flags = "array", [*prompts, "--config", "fsd.yaml", *few]

    def job(number: str) -> subprocess.CompletedProcess[str]:
        return shell("slurm_generate.sh", out, *flags, cwd=place, SLURM_ARRAY_TASK_ID=number)

    with ThreadPoolExecutor(2) as jobs:
        first, second = jobs.map(job, ("0", "1"))
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    made = sorted(path.parent.name for path in (place / out).glob("objects/*/object.json"))
    assert made == [f"{prompt}-fsd-seed{seed}" for prompt in ("a-red-cube", "an-object") for seed in (0, 1)]
    assert len(json.loads((place / out / "result.json").read_text())["methods"]) == 2
    count("launch files, two processes on one node", "a result")


def test_slurm_begins_a_run_or_goes_on(tmp_path: Path) -> None:
    for name in ("torchrun", "fsd"):
        program(tmp_path, name, '#!/bin/sh\necho "$RANK" "$@"\n')
    program(tmp_path, "srun", '#!/bin/sh\nexec "$@"\n')
    program(tmp_path, "scontrol", "#!/bin/sh\necho node1\necho node2\n")
    slurm = {
        "SLURM_JOB_NODELIST": "x",
        "SLURM_NNODES": "2",
        "SLURM_JOB_ID": "7",
        "SLURM_GPUS_ON_NODE": "4",
        "RANK": "",
    }
    new = shell("slurm.sh", "run", "corsd", "train", "--preset", "imagenet", cwd=tmp_path, **slurm).stdout
    assert "--nnodes 2 --nproc-per-node 4" in new
    assert "--rdzv-endpoint node1:29500" in new
    assert new.splitlines()[0].endswith("--no-python corsd train --preset imagenet --out run")
    many = {"SLURM_ARRAY_TASK_ID": "0"}
    assert shell("slurm_generate.sh", "run", "a mug", "--seeds", "0-3", cwd=tmp_path, **many).stdout == (
        "0 generate a mug --seeds 0-3 --out run\n"
    )
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").touch()
    again = shell("slurm.sh", "run", "corsd", "train", "--preset", "imagenet", cwd=tmp_path, **slurm).stdout
    assert again.splitlines()[0].endswith("--no-python corsd train --resume run")
    assert (
        shell("slurm_generate.sh", "run", "a mug", cwd=tmp_path, **many).stdout == "0 generate --resume run\n"
    )
    helper = {"SLURM_ARRAY_TASK_ID": "3"}
    assert (
        shell("slurm_generate.sh", "run", "a mug", cwd=tmp_path, **helper).stdout
        == "3 generate a mug --out run\n"
    )
