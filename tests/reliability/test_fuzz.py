"""Anything at all as flags, configuration, checkpoint or image: an exit code and at most three lines."""

import json
import random
import shutil
from pathlib import Path

import pytest
import yaml
from cases import FULL, METHODS, Runner, Straight, copy, count, resume
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shared_core.run.checkpoint import _sha256

EXAMPLES = 200 if FULL else 12
fuzzed = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
WORDS = st.one_of(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12),
    st.integers(-(10**12), 10**12).map(str),
    st.sampled_from(
        ["", "-1", "nan", "inf", "1e400", "[]", "{}", "null", "None", "..", "/", "a:b", "npz:x#y", "=", "--"]
    ),
)
FLAGS = {
    "corsd": ["--data", "--model", "--method", "--controls", "--seeds", "--epochs", "--batch-size", "--pairs",
              "--weights", "--precision", "--compile", "--preset", "--config", "--resume", "--width", "--help-me"],
    "calib": ["--source", "--target", "--classifier", "--weights", "--epsilon", "--body", "--steps", "--selection",
              "--baselines", "--seeds", "--precision", "--preset", "--config", "--resume", "--width", "--alpha"],
    "fsd": ["--prior", "--guidance", "--seeds", "--steps", "--batch-size", "--size", "--guidance-scale", "--noise",
            "--beta", "--negative-prompt", "--precision", "--jobs", "--preset", "--config", "--resume", "--prompts"],
}  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_flags(method: str, runner: Runner, place: Path) -> None:
    parts = st.lists(st.one_of(st.sampled_from(FLAGS[method]), WORDS), max_size=6)

    @fuzzed
    @given(parts)
    def any_flags(words: list[str]) -> None:
        # A device that no machine has, so that not even a right command line starts to train.
        ended = runner(
            method, METHODS[method].verb, *words, "--out", "never", "--device", "nowhere", cwd=place
        )
        ended.assert_refused()
        count("random flags", "refused with a sentence")

    any_flags()
    assert not (place / "never").exists()


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize("method", METHODS)
def test_configurations(method: str, runner: Runner, place: Path) -> None:
    keys = st.one_of(
        st.sampled_from([*METHODS[method].config, "seeds", "optim", "workers"]), st.text(max_size=6)
    )

    @fuzzed
    @given(st.dictionaries(keys, VALUES, min_size=1, max_size=4))
    def any_configuration(values: dict) -> None:
        (place / "fuzzed.yaml").write_text(
            yaml.safe_dump({**METHODS[method].config, **values, "device": "nowhere"})
        )
        arguments = [METHODS[method].verb, "--config", "fuzzed.yaml", "--out", "never"]
        runner(method, *arguments, cwd=place).assert_refused()
        count("random configurations", "refused with a sentence")

    any_configuration()
    assert not (place / "never").exists()


@pytest.mark.parametrize("method", METHODS)
def test_checkpoints_with_sums_that_fit(
    method: str, runner: Runner, place: Path, straight: dict[str, Straight]
) -> None:
    """Random bytes in a checkpoint whose checksums are put right: what a stranger could do, and a disk could not."""
    chosen = random.Random(method)
    for _ in range(EXAMPLES):
        out = copy(straight[method].folder, place / f"{method}-fuzzed")
        for name in ("result.json", "object.json", "files.json", "report.html"):
            for path in out.rglob(name):
                path.unlink()
        *others, last = sorted(path for path in out.rglob("step-*") if path.is_dir())
        for other in others:
            shutil.rmtree(other)
        file = chosen.choice(sorted(path for path in last.iterdir() if path.name != "meta.json"))
        content = bytearray(file.read_bytes())
        for _ in range(chosen.choice([1, 10])):
            content[chosen.randrange(len(content))] = chosen.randrange(256)
        if chosen.random() < 0.3:
            content = content[: chosen.randrange(len(content))]
        file.write_bytes(content)
        meta = json.loads((last / "meta.json").read_text())
        meta["files"][file.name] = {"bytes": len(content), "sha256": _sha256(file)}
        (last / "meta.json").write_text(json.dumps(meta))
        ended = resume(runner, place, method, out.name)
        assert "Traceback" not in ended.said, ended.said
        assert ended.code in (0, 1, 2)
        how = "refused with a sentence" if ended.code else "read as other numbers, which they are"
        count("checkpoints with random bytes and matching checksums", how)
        shutil.rmtree(out)


@pytest.mark.parametrize("method", ["corsd", "calib"])
def test_images(method: str, runner: Runner, place: Path, straight: dict[str, Straight]) -> None:
    from PIL import Image

    folder = place / f"{method}-images"
    folder.mkdir()
    chosen = random.Random(method)
    Image.effect_noise((24, 24), 60).save(folder / "good.png")
    for number in range(EXAMPLES):
        suffix = chosen.choice(["png", "jpg", "bmp", "gif", "tif", "webp"])
        path = folder / f"{number}.{suffix}"
        Image.effect_noise((24, 24), 60).convert("RGB").save(path)
        content = bytearray(path.read_bytes())
        for _ in range(chosen.choice([1, 20])):
            content[chosen.randrange(len(content))] = chosen.randrange(256)
        path.write_bytes(content[: chosen.randrange(1, len(content) + 1)])
    ended = runner(method, "predict", straight[method].folder.name, folder.name, "--json", cwd=place)
    assert ended.code in (0, 1), ended.said
    assert "Traceback" not in ended.said
    answers = [json.loads(line) for line in ended.said.splitlines() if line.startswith("{")]
    assert len(answers) == EXAMPLES + 1
    for answer in answers:
        count("random images", "an error that names the file" if "error" in answer else "decoded")
