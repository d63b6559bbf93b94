"""A disk that is full, and a folder that may not be written to."""

import shutil
import sys
from pathlib import Path

import pytest
from cases import METHODS, Runner, Straight, copy, count, outcome, resume, start

# Bytes that a file may have: too few for any, for weights, and for the largest checkpoint alone.
LIMITS = {"corsd": (100, 20_000, 100_000), "calib": (100, 9_000, 1_000_000), "fsd": (100, 5_000, 20_000)}


@pytest.mark.parametrize("which", range(3))
@pytest.mark.parametrize("method", METHODS)
def test_a_full_disk(
    method: str, which: int, runner: Runner, place: Path, straight: dict[str, Straight]
) -> None:
    out = f"{method}-full-{which}"
    start(runner, place, method, out, limit=LIMITS[method][which]).assert_refused()
    ended = resume(runner, place, method, out)
    assert ended.code == 0, ended.said
    assert outcome(method, place / out) == straight[method].outcome
    count("a full disk, then room again", "a sentence, and the same result after --resume")


@pytest.mark.skipif(sys.platform != "linux", reason="gives up root's rights as only Linux lets one")
@pytest.mark.parametrize("method", METHODS)
def test_a_folder_that_may_only_be_read(
    method: str, runner: Runner, place: Path, straight: dict[str, Straight]
) -> None:
    run = copy(straight[method].folder, place / f"{method}-read-only")
    new = place / f"{method}-read-only-new"
    new.mkdir()
    for path in [run, new, *run.rglob("*")]:
        if not path.is_symlink():
            path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        for ended in (
            start(runner, place, method, new.name, obey=True),
            start(runner, place, method, new / "deeper", obey=True),
            runner(method, METHODS[method].verb, "--resume", run.name, cwd=place, obey=True),
            runner(method, "evaluate", run.name, cwd=place, obey=True),
        ):
            ended.assert_refused("ermission", "finished run")
            count("a folder that may only be read", "refused with a sentence")
        assert outcome(method, run) == straight[method].outcome
    finally:
        for path in [run, new, *run.rglob("*")]:
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o755)
        shutil.rmtree(run)
