"""Every full-scale recipe runs from the command line and stops cleanly.

The preset is taken as it is.  Data (or a pipeline) in the true layout, made here, stand where the real ones would; what
is cut is how many images and steps there are and how large the pictures, never what the method is.
"""

import bz2
import importlib.util
import json
import math
import pickle
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import calib.cli
import calib.config
import corsd.cli
import corsd.config
import fsd.cli
import fsd.config
import numpy as np
import pytest
import yaml
from PIL import Image
from shared_core.run.metrics import read

ROOT = Path(__file__).parents[1]
MAIN = {"corsd": corsd.cli.main, "calib": calib.cli.main, "fsd": fsd.cli.main}
VERB = {"corsd": "train", "calib": "adapt", "fsd": "generate"}
PRESETS = {"corsd": corsd.config.PRESETS, "calib": calib.config.PRESETS, "fsd": fsd.config.PRESETS}
SMALL = {  # presets made for a laptop, which run whole in other tests and benchmarks
    "corsd": {"digits", "cifar100-small"},
    "calib": {"digits", "camvid-day-dusk"},
    "fsd": {"embedded", "draft", "bank", "tiny"},
}

pytestmark = [
    # Of 100 or 19 classes a few images show a few.
    pytest.mark.filterwarnings("ignore:.* classes have no image"),
    pytest.mark.timeout(900),
]
# The cheapest of each package, which the gate runs, too.
CHEAP = {"cifar100 mobilenet-v2", "usps-mnist", "deepfloyd"}


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def cifar100(root: Path) -> None:
    """cifar-100-python/{train,test,meta}: pickled dicts, as of Python 2."""
    folder = root / "cifar-100-python"
    folder.mkdir()
    for part, fine in (("train", [n % 3 for n in range(12)]), ("test", [0, 0, 1, 1])):
        held = {
            "data": noise(0, len(fine), 3072),
            "fine_labels": fine,
            "coarse_labels": fine,
            "batch_label": part,
        }
        (folder / part).write_bytes(pickle.dumps(held, protocol=2))
    names = {"fine_label_names": [f"class {n}" for n in range(100)], "coarse_label_names": []}
    (folder / "meta").write_bytes(pickle.dumps(names, protocol=2))


def imagenet(root: Path) -> None:
    """train/WNID/WNID_N.JPEG and val/WNID/..., sizes as they come, grey and CMYK among them.  16 classes."""
    wnids = [f"n{1440764 + n:08d}" for n in range(16)]
    files = [("train", wnid, n) for k, wnid in enumerate(wnids) for n in range(6 if k < 3 else 1)]
    files += [("val", wnid, n) for wnid in wnids[:2] for n in (7, 8)]
    for seed, (part, wnid, n) in enumerate(files):
        picture = Image.fromarray(noise(seed, 250 + 2 * seed, 300 - seed, 3))
        picture = picture.convert("L" if seed == 0 else "CMYK" if seed == 1 else "RGB")
        (root / part / wnid).mkdir(parents=True, exist_ok=True)
        picture.save(root / part / wnid / f"{wnid}_{n}.JPEG")


def cub200(root: Path) -> None:
    """CUB_200_2011/ with its four lists of 200 classes, images/CLASS/NAME.jpg."""
    folder = root / "CUB_200_2011"
    names = [f"{n:03d}.Bird_{n}" for n in range(1, 201)]
    files = [f"{names[n % 3]}/Bird_{n:04d}.jpg" for n in range(16)]
    for n, file in enumerate(files):
        (folder / "images" / file).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(n, 240, 320, 3)).save(folder / "images" / file)
    lists = {
        "images": files,
        "image_class_labels": [1 + n % 3 for n in range(16)],
        "train_test_split": [int(n < 12) for n in range(16)],
        "classes": names,
    }
    for name, rows in lists.items():
        (folder / f"{name}.txt").write_text("".join(f"{n} {row}\n" for n, row in enumerate(rows, start=1)))


def mnist(root: Path) -> None:
    """MNIST/raw/*-idx3-ubyte and *-idx1-ubyte: a header of big-endian numbers, then bytes."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        header = b"".join(number.to_bytes(4, "big") for number in (0x803, 20, 28, 28))
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + noise(1, 20, 28, 28).tobytes())
        header = b"".join(number.to_bytes(4, "big") for number in (0x801, 20))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(header + bytes(n % 10 for n in range(20)))


def usps(root: Path) -> None:
    """usps.bz2 and usps.t.bz2: lines of label and 256 numbered values from -1 to 1."""
    for file in ("usps.bz2", "usps.t.bz2"):
        rows = noise(2, 20, 256) / 127.5 - 1
        lines = (
            f"{1 + n % 10} " + " ".join(f"{k}:{value:.4f}" for k, value in enumerate(row, start=1))
            for n, row in enumerate(rows)
        )
        (root / file).write_bytes(bz2.compress("\n".join(lines).encode()))


def svhn(root: Path) -> None:
    """{train,test}_32x32.mat: X of (32, 32, 3, n), and y from 1 to 10, where 10 is the digit 0."""
    from scipy.io import savemat

    for part in ("train", "test"):
        labels = np.array([[1 + n % 10] for n in range(20)], dtype=np.uint8)
        savemat(root / f"{part}_32x32.mat", {"X": noise(3, 32, 32, 3, 20), "y": labels})


def streets(root: Path) -> None:
    """gta5/{images,labels}/N.png, cityscapes/{leftImg8bit,gtFine}/PART/CITY/...png, and a net in a file."""
    pairs = [(f"gta5/images/{n:05d}.png", f"gta5/labels/{n:05d}.png", (105, 191)) for n in range(1, 10)]
    for part, city, count in (("train", "aachen", 8), ("val", "lindau", 2)):
        for n in range(count):
            name = f"{part}/{city}/{city}_{n:06d}_000019"
            image = f"cityscapes/leftImg8bit/{name}_leftImg8bit.png"
            pairs.append((image, f"cityscapes/gtFine/{name}_gtFine_labelIds.png", (102, 204)))
    for seed, (image, mask, size) in enumerate(pairs):
        for file, pixels in ((image, noise(seed, *size, 3)), (mask, noise(seed, *size) % 34)):
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / file)
    (root / "net.py").write_text(
        "from torch import nn\n\n\ndef net(num_classes, in_channels):\n"
        "    down = nn.Conv2d(in_channels, num_classes, 8, 8)\n"
        "    return nn.Sequential(down, nn.Upsample(scale_factor=8, mode='bilinear'))\n"
    )


def stable_diffusion(root: Path) -> None:
    """A pipeline folder of diffusers, with a tokenizer that reads 77 tokens, as CLIP's does."""
    pipelines().tiny_stable_diffusion(root / "pipeline", words=re.findall(r"\w+", fsd.config.SD_NEGATIVE))


def mvdream(root: Path) -> None:
    """The same with a UNet that takes cameras."""
    pipelines().tiny_multi_view(root / "pipeline", re.findall(r"\w+", fsd.config.MVDREAM_NEGATIVE))


def deepfloyd(root: Path) -> None:
    """A pipeline of pixels, without a VAE."""
    pipelines().tiny_deepfloyd(root / "pipeline")


def pipelines() -> Any:
    """The small pipelines of fsd's own tests."""
    spec = importlib.util.spec_from_file_location(
        "tiny_pipelines", ROOT / "packages/fsd/tests/tiny_pipelines.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Recipe(NamedTuple):
    """A preset, what is made for it, the flags that name that (ROOT stands for its folder), and what is cut."""

    package: str
    preset: str
    make: tuple[Callable[[Path], None], ...]
    flags: str
    cut: dict[str, Any]


FEW_IMAGES: dict[str, Any] = {"epochs": 0.5, "batch_size": 6, "workers": 0, "threads": 1}
ONE_TRIPLET = {**FEW_IMAGES, "epochs": 0.5, "batch_size": 3}
DIGITS: dict[str, Any] = {
    "steps": 3,
    "threads": 1,
    "batch_size": 20,
    "validate_every": 2,
    "training": {"epochs": 1, "batch_size": 10},
}
SCENES: dict[str, Any] = {
    "steps": 2,
    "scene_size": [64, 128],
    "validate_every": 2,
    "workers": 0,
    "threads": 1,
}
# A hash grid of 2^20 entries, 512 samples a ray and 120 frames are for a GPU, and only there is fp16.
ONE_VIEW: dict[str, Any] = {
    "steps": 5,
    "size": 16,
    "threads": 1,
    "field": {"log2_size": 10, "samples": 8},
    "precision": "bf16",
    "frames": 2,
    "mesh_resolution": 12,
}
VIEWS = {**ONE_VIEW, "later": {"size": 24}}

RECIPES = {
    **{
        f"cifar100 {net}": Recipe(
            "corsd", "cifar100", (cifar100,), f"--data-root ROOT --model small:{net}", ONE_TRIPLET
        )
        for net in ("resnet18", "resnet50", "resnet101", "wrn16-8", "mobilenet-v2")
    },
    "imagenet": Recipe("corsd", "imagenet", (imagenet,), "--data imagefolder:ROOT", {**FEW_IMAGES, "epochs": 0.4}),
    "cub200": Recipe("corsd", "cub200", (cub200,), "--data-root ROOT", FEW_IMAGES),
    "svhn-mnist": Recipe("calib", "svhn-mnist", (svhn, mnist), "--data-root ROOT", DIGITS),
    "usps-mnist": Recipe("calib", "usps-mnist", (usps, mnist), "--data-root ROOT", DIGITS),
    "mnist-usps": Recipe("calib", "mnist-usps", (mnist, usps), "--data-root ROOT", DIGITS),
    "gta5-cityscapes": Recipe(
        "calib", "gta5-cityscapes", (streets,), "--data-root ROOT --classifier ROOT/net.py:net", SCENES
    ),
    "stable-diffusion": Recipe("fsd", "stable-diffusion", (stable_diffusion,), "--prior ROOT/pipeline", VIEWS),
    "mvdream": Recipe("fsd", "mvdream", (mvdream,), "--prior ROOT/pipeline", VIEWS),
    "deepfloyd": Recipe("fsd", "deepfloyd", (deepfloyd,), "--prior ROOT/pipeline", ONE_VIEW),
}  # fmt: skip
# Long enough to be told to stop in the middle.
STOPPED = {
    "corsd": RECIPES["cub200"]._replace(cut={**ONE_TRIPLET, "epochs": 2}),
    "calib": RECIPES["usps-mnist"]._replace(cut={**DIGITS, "steps": 12}),
    "fsd": RECIPES["stable-diffusion"]._replace(cut={**VIEWS, "steps": 20}),
}


def test_every_preset_is_a_recipe_here_or_a_small_one() -> None:
    for package, presets in PRESETS.items():
        tried = {recipe.preset for recipe in RECIPES.values() if recipe.package == package}
        assert tried | SMALL[package] == set(presets)
        assert not tried & SMALL[package]
    assert {RECIPES[name].package for name in CHEAP} == set(PRESETS)


@pytest.mark.filterwarnings("ignore:.*has no image of")  # the sets made here are small
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in CHEAP else pytest.mark.slow) for name in RECIPES]
)
def test_a_recipe_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # These are not the published files, whose checksums torchvision knows.
    for module in ("cifar", "svhn"):
        monkeypatch.setattr(f"torchvision.datasets.{module}.check_integrity", lambda *_arguments: True)
    recipe, out = RECIPES[name], tmp_path / "run"
    assert MAIN[recipe.package](words(recipe, tmp_path, out)) == 0
    check(recipe, out)


@pytest.mark.slow
@pytest.mark.parametrize("package", STOPPED)
def test_a_recipe_stops_when_told_to_and_goes_on(package: str, tmp_path: Path) -> None:
    recipe, out = STOPPED[package], tmp_path / "run"
    script = f"import sys, {package}.cli; sys.exit({package}.cli.main(sys.argv[1:]))"
    command = [sys.executable, "-c", script]
    process = subprocess.Popen([*command, *words(recipe, tmp_path, out)], stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not any(out.rglob("metrics.jsonl")):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 143, said
    assert "Traceback" not in said
    assert not (out / "result.json").exists()
    assert any(out.rglob("checkpoints/step-*"))
    done = subprocess.run([*command, VERB[package], "--resume", str(out)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    check(recipe, out)


def words(recipe: Recipe, folder: Path, out: Path) -> list[str]:
    """The command line of a recipe, its data made in `folder`."""
    root = folder / "data"
    root.mkdir()
    for make in recipe.make:
        make(root)
    cut = folder / "cut.yaml"
    cut.write_text(yaml.safe_dump(recipe.cut))
    prompt = ["a red mug"] if recipe.package == "fsd" else []
    flags = recipe.flags.replace("ROOT", str(root)).split()
    chosen = ["--preset", recipe.preset, "--config", str(cut), "--out", str(out)]
    return [VERB[recipe.package], *prompt, *chosen, *flags, "--device", "cpu"]


def check(recipe: Recipe, out: Path) -> None:
    """The run is the preset's but for the cut and the paths, and came to finite figures and a page."""
    config = yaml.safe_load((out / "config.yaml").read_text())
    wanted = PRESETS[recipe.package][recipe.preset]().model_dump(mode="json")
    named = {word[2:].replace("-", "_") for word in recipe.flags.split() if word.startswith("--")}
    kept = set(wanted) - set(recipe.cut) - named - {"device", "prompts"}
    assert {name: config[name] for name in kept} == {name: wanted[name] for name in kept}
    result = json.loads((out / "result.json").read_text())
    assert figures(result), "a result without a single figure"
    assert all(math.isfinite(figure) for figure in figures(result))
    if recipe.package == "corsd":
        assert "relations" in read(out / "metrics.jsonl")[0], "no step saw a pair"
    assert "<html" in (out / "report.html").read_text()


def figures(value: Any) -> list[float]:
    """All numbers of a JSON value."""
    if isinstance(value, dict | list):
        return [x for part in (value.values() if isinstance(value, dict) else value) for x in figures(part)]
    return [value] if isinstance(value, int | float) and not isinstance(value, bool) else []
