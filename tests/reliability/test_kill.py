"""Killed at any moment, told to stop, or joined by a second process: the run goes on and ends as if nothing was."""

import random
import signal
from pathlib import Path

import pytest
from cases import FULL, METHODS, Runner, Straight, count, outcome, resume, start


@pytest.mark.parametrize("trial", range(100 if FULL else 5))
@pytest.mark.parametrize("method", METHODS)
def test_killed_at_a_random_moment(
    method: str, trial: int, runner: Runner, place: Path, straight: dict[str, Straight]
) -> None:
    out = f"{method}-killed-{trial}"
    at = random.Random(f"{method} {trial}").randint(1, straight[method].events)
    assert start(runner, place, method, out, at=at).code == -signal.SIGKILL
    ended = resume(runner, place, method, out)
    assert ended.code == 0, ended.said
    assert outcome(method, place / out) == straight[method].outcome
    count("killed at a random moment, resumed", "the same result, bit for bit")


@pytest.mark.parametrize("method", METHODS)
def test_told_to_stop(method: str, runner: Runner, place: Path, straight: dict[str, Straight]) -> None:
    out = f"{method}-told"
    ended = start(runner, place, method, out, at=straight[method].events // 3, signal="TERM")
    assert ended.code == 128 + signal.SIGTERM, ended.said
    assert "Traceback" not in ended.said
    assert resume(runner, place, method, out).code == 0
    assert outcome(method, place / out) == straight[method].outcome
    count("told to stop (SIGTERM), resumed", "the same result, bit for bit")


@pytest.mark.parametrize("share", [0.1, 0.6])
@pytest.mark.parametrize("method", METHODS)
def test_a_second_process_in_the_folder_is_refused(
    method: str, share: float, runner: Runner, place: Path, straight: dict[str, Straight]
) -> None:
    out = f"{method}-two-{share}"
    at = max(3, round(share * straight[method].events))
    first = start(runner, place, method, out, at=at, signal="STOP", wait=False)
    try:
        # The first one is stopped at its moment, with the folder in its hands.
        wait_for_stop(first.pid)
        resume(runner, place, method, out).assert_refused("another process")
        start(runner, place, method, out).assert_refused("another process")
    finally:
        runner.ask({"kill": first.pid})
    ended = resume(runner, place, method, out)
    assert ended.code == 0, ended.said
    assert outcome(method, place / out) == straight[method].outcome
    count("a second process in the folder", "refused with a sentence")


def test_a_killed_workers_object_is_made_by_another(runner: Runner, place: Path) -> None:
    flags = ["generate", "an object", "a red cube", "--config", "fsd.yaml", "--seeds", "0-1"]
    assert runner("fsd", *flags, "--out", "fsd-alone", cwd=place).code == 0
    # Started as torchrun starts it; it dies in its second object, and another goes on beside what it left.
    worker = runner("fsd", *flags, "--out", "fsd-shared", cwd=place, environment={"RANK": "1"}, at=90)
    assert worker.code == -signal.SIGKILL
    alone, shared = (sorted((place / name / "objects").iterdir()) for name in ("fsd-alone", "fsd-shared"))
    made = [(item / "object.json").is_file() for item in shared]
    assert True in made
    assert False in made
    ended = runner("fsd", *flags, "--out", "fsd-shared", cwd=place)
    assert ended.code == 0, ended.said
    shared = sorted((place / "fsd-shared" / "objects").iterdir())
    assert [item.name for item in shared] == [item.name for item in alone]
    assert len(alone) == 4
    for one, other in zip(alone, shared, strict=True):
        assert (one / "scene.safetensors").read_bytes() == (other / "scene.safetensors").read_bytes()
    count("a worker of several killed", "its object made by another, bit for bit")


def wait_for_stop(pid: int | None) -> None:
    import time

    for _ in range(6000):
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt":
            return
        time.sleep(0.05)
    raise TimeoutError(f"process {pid} did not come to its moment")
