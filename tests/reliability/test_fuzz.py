"""Anything at all as flags, configuration, checkpoint or image: an exit code and at most three lines."""

import json
import random
import shutil
from pathlib import Path
from typing import get_args

import corsd.config
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


INTEGERS = st.one_of(st.integers(-2, 40), st.integers(-(10**12), 10**12))
METHOD = st.sampled_from(list(get_args(corsd.config.Method)))
PRECISION = st.sampled_from(["fp32", "bf16", "fp16"])
# Values of the right kind, which are read further on than the parser.  None that makes a net larger than the machine.
KNOBS = {
    "corsd": {"method": METHOD, "controls": st.lists(METHOD, max_size=3), "seeds": st.lists(INTEGERS, max_size=3),
              "epochs": st.floats(), "batch_size": INTEGERS, "pairs": st.sampled_from(["in_batch", "triplets"]),
              "precision": PRECISION},
    "calib": {"epsilon": st.floats(),
              "body": st.sampled_from(["residual", "depthwise", "lowres", "folded", "constant"]),
              "steps": INTEGERS, "batch_size": INTEGERS, "selection": st.sampled_from(["entropy", "last", "oracle"]),
              "baselines": st.lists(st.sampled_from(["tent", "dann", "shot_im"]), max_size=3),
              "seeds": st.lists(INTEGERS, max_size=3), "precision": PRECISION},
    "fsd": {"guidance": st.lists(st.sampled_from(["fsd", "sds", "ism", "vsd"]), max_size=3), "steps": INTEGERS,
            "seeds": st.lists(INTEGERS, max_size=3), "batch_size": INTEGERS, "size": INTEGERS,
            "guidance_scale": st.floats(), "noise": st.sampled_from(["auto", "random", "surface"]),
            "beta": st.floats(), "jobs": INTEGERS, "precision": PRECISION},
}  # fmt: skip


def knobs(method: str) -> st.SearchStrategy[dict]:
    return st.fixed_dictionaries({}, optional=KNOBS[method])


# What no run gets past, so that not even a right command line starts to train: data, net, weights or prior that are not
# there.  With {} all is there but the run folder, which is to lie in a file: that is found last.
MISSING = {
    "corsd": [{"data": "npz:gone.npz"}, {"model": "gone.py:net"}, {"weights": "gone.safetensors"}],
    "calib": [{"target": "npz:gone.npz"}, {"classifier": "gone.py:net"}, {"weights": "gone.safetensors"}],
    "fsd": [{"prior": "gone"}],
}
NOWHERE = "squares.npz/never"
# As in cases.py, for where the fuzzed ones would name others, of the hub, say.
THERE = {
    "corsd": {"data": "npz:squares.npz#day", "model": "small:resnet10"},
    "calib": {"source": "npz:squares.npz#day", "target": "npz:squares.npz#dusk", "classifier": "small:lenet"},
    "fsd": {"prior": "embedded"},
}


def traps(method: str) -> st.SearchStrategy[dict[str, str]]:
    return st.sampled_from([{**THERE[method], **missing} for missing in [*MISSING[method], {}]])


def flags(values: dict) -> list[str]:
    """Settings as words of a command line."""
    found = []
    for name, value in values.items():
        found += [f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, list) else [value])]
    return found


@pytest.mark.parametrize("method", METHODS)
def test_flags(method: str, runner: Runner, place: Path) -> None:
    anything = st.lists(st.one_of(st.sampled_from(FLAGS[method]), WORDS), max_size=6)
    fitting = knobs(method).map(lambda values: ["--config", f"{method}.yaml", *flags(values)])
    first = ["an object"] if method == "fsd" else []

    @fuzzed
    @given(st.one_of(anything, fitting), traps(method))
    def any_flags(words: list[str], trap: dict[str, str]) -> None:
        last = ["--out", NOWHERE, "--device", "cpu", *flags(trap)]
        runner(method, METHODS[method].verb, *first, *words, *last, cwd=place).assert_refused()
        count("random flags", "refused with a sentence")

    any_flags()


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
    anything = st.dictionaries(keys, VALUES, min_size=1, max_size=4)

    @fuzzed
    @given(st.one_of(anything, knobs(method)), traps(method))
    def any_configuration(values: dict, trap: dict[str, str]) -> None:
        given = {**METHODS[method].config, **values, **trap, "device": "cpu"}
        (place / "fuzzed.yaml").write_text(yaml.safe_dump(given))
        arguments = [METHODS[method].verb, "--config", "fuzzed.yaml", "--out", NOWHERE]
        runner(method, *arguments, cwd=place).assert_refused()
        count("random configurations", "refused with a sentence")

    any_configuration()


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
