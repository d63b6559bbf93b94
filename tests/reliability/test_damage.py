"""Each file of a run folder truncated, flipped and emptied in turn: a sentence, or the result as it should be."""

import random
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
from cases import METHODS, Ended, Runner, Straight, copy, count, outcome, resume, start

# A flipped bit is the hardest to notice, so it is tried always.
DAMAGES = (
    pytest.param("truncated", marks=pytest.mark.slow),
    "flipped",
    pytest.param("emptied", marks=pytest.mark.slow),
)


class Stopped(NamedTuple):
    """A run that was killed behind its second checkpoint, and its files."""

    folder: Path
    files: list[str]


def files_of(folder: Path) -> list[str]:
    """What can be damaged; a report is a page for people, and nothing reads it."""
    names = [
        str(p.relative_to(folder)) for p in sorted(folder.rglob("*")) if p.is_file() and not p.is_symlink()
    ]
    return [name for name in names if Path(name).name not in (".lock", "report.html")]


def damage(path: Path, how: str) -> None:
    """Half of it, one bit of it the other way, or nothing of it."""
    content = bytearray(path.read_bytes())
    if how == "truncated":
        content = content[: len(content) // 2]
    elif how == "emptied":
        content = bytearray()
    else:
        content[random.Random(path.name).randrange(len(content))] ^= 1
    path.write_bytes(bytes(content))


@pytest.fixture(scope="module")
def stopped(runner: Runner, place: Path, straight: dict[str, Straight]) -> dict[str, Stopped]:
    found = {}
    for method in METHODS:
        # A moment between the second checkpoint and the end.
        for at in range(straight[method].events * 2 // 3, straight[method].events):
            out = place / f"{method}-stopped"
            shutil.rmtree(out, ignore_errors=True)
            assert start(runner, place, method, out.name, at=at).code == -9
            checkpoints = [p for p in out.rglob("step-*") if p.is_dir() and not p.name.startswith(".")]
            if len(checkpoints) == 2 and not list(out.rglob("result.json")):
                break
        found[method] = Stopped(out, files_of(out))
    return found


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("method", METHODS)
def test_a_stopped_run_with_a_damaged_file(
    method: str,
    how: str,
    runner: Runner,
    place: Path,
    stopped: dict[str, Stopped],
    straight: dict[str, Straight],
) -> None:
    assert any("step-" in name for name in stopped[method].files)
    for name in stopped[method].files:
        out = copy(stopped[method].folder, place / f"{method}-harmed")
        damage(out / name, how)
        ended = resume(runner, place, method, out.name)
        if ended.code:
            ended.assert_refused(Path(name).name)
            # A whole checkpoint is left, so a damaged one is no reason to give up.
            assert "checkpoints" not in name, (name, ended.said)
            count(f"a file of a stopped run {how}", "refused with a sentence that names it")
        else:
            assert "Traceback" not in ended.said, (name, ended.said)
            # A flipped digit of a line of the log is still a line: it stays, and nothing is computed from it.
            log = not name.endswith("metrics.jsonl")
            assert outcome(method, out, log) == {
                key: value for key, value in straight[method].outcome.items() if log or "metrics" not in key
            }, name
            count(f"a file of a stopped run {how}", "the result as if nothing was")
        shutil.rmtree(out)


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("method", METHODS)
def test_a_finished_run_with_a_damaged_file(
    method: str, how: str, runner: Runner, place: Path, straight: dict[str, Straight]
) -> None:
    good = evaluated(runner, place, method, copy(straight[method].folder, place / f"{method}-good"))
    assert good.code == 0, good.said
    shutil.rmtree(place / f"{method}-good")
    files = [name for name in files_of(straight[method].folder) if "checkpoints" not in Path(name).parts]
    for name in files:
        out = copy(straight[method].folder, place / f"{method}-good")
        damage(out / name, how)
        ended = evaluated(runner, place, method, out)
        if ended.code:
            ended.assert_refused(Path(name).name)
            count(f"a file of a finished run {how}, evaluated", "refused with a sentence that names it")
        else:
            assert ended.said == good.said, name
            count(f"a file of a finished run {how}, evaluated", "the result as if nothing was")
        shutil.rmtree(out)


def evaluated(runner: Runner, place: Path, method: str, run: Path) -> Ended:
    return runner(method, "evaluate", run.name, cwd=place)
