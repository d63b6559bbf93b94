"""Today's code loads, evaluates and goes on with what earlier versions left (kept here by make.py)."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from shared_core.run import metrics

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FOLDERS = {"corsd": "corsd", "calib-uda": "calib", "fsd": "fsd", "shared-core": "shared-core"}
LIMIT = 300_000


def versions(package: str) -> list[str]:
    """Every version in a package's changelog."""
    text = (ROOT / "packages" / FOLDERS[package] / "CHANGELOG.md").read_text(encoding="utf-8")
    return re.findall(r"^## (\d+\.\d+\.\d+)\b", text, re.MULTILINE)


@pytest.mark.parametrize("package", FOLDERS)
def test_every_version_of_the_changelog_is_kept(package: str) -> None:
    found = versions(package)
    assert found
    for version in found:
        folder = HERE / version / package
        message = f"there is no {folder.relative_to(ROOT)}: run python tests/compat/make.py {package}"
        assert (folder / "finished" / "config.yaml").is_file(), message
        assert (folder / "stopped" / "config.yaml").is_file(), message
        assert sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file()) < LIMIT


@pytest.fixture
def kept(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a kept folder, as the working directory: configurations name their data from there."""
    package, version = request.param
    shutil.copytree(HERE / version / package, tmp_path / "kept", symlinks=True)
    monkeypatch.chdir(tmp_path / "kept")
    return HERE / version / package


def each(package: str) -> pytest.MarkDecorator:
    """One test per version of a package."""
    found = versions(package)
    return pytest.mark.parametrize(
        "kept", [(package, version) for version in found], ids=found, indirect=True
    )


def lines(path: Path) -> list[dict[str, Any]]:
    return [{name: value for name, value in line.items() if name != "time"} for line in metrics.read(path)]


def assert_alike(found: Any, kept: Any, at: str = "") -> None:
    """Equal up to what another processor or another torch rounds otherwise."""
    if isinstance(kept, dict):
        for name, value in kept.items():
            assert name in found, f"{at}.{name} is gone"
            assert_alike(found[name], value, f"{at}.{name}")
    elif isinstance(kept, list):
        assert len(found) == len(kept), at
        for number, pair in enumerate(zip(found, kept, strict=True)):
            assert_alike(*pair, f"{at}[{number}]")
    elif isinstance(kept, float):
        assert found == pytest.approx(kept, rel=0.01, abs=1e-3), at
    else:
        assert found == kept, at


@each("corsd")
def test_corsd_opens_a_finished_run(kept: Path, capsys: pytest.CaptureFixture) -> None:
    from corsd.cli import main

    assert main(["evaluate", "finished", "--device", "cpu"]) == 0
    result, again = (
        json.loads(Path("finished", name).read_text()) for name in ("result.json", "evaluation.json")
    )
    (cell,) = again["cells"]
    assert_alike(cell["accuracy"], result["accuracy"])
    assert main(["export", "finished", "--out", "net.safetensors"]) == 0
    assert main(["report", "finished"]) == 0


@each("corsd")
def test_corsd_goes_on_from_a_checkpoint(kept: Path) -> None:
    from corsd.cli import main

    assert main(["train", "--resume", "stopped"]) == 0
    assert_alike(lines(Path("stopped/metrics.jsonl")), lines(kept / "finished" / "metrics.jsonl"))
    result = json.loads((kept / "finished" / "result.json").read_text())
    again = json.loads(Path("stopped/result.json").read_text())
    assert_alike(again["accuracies"], result["accuracies"])


@each("calib-uda")
def test_calib_opens_a_finished_run(kept: Path) -> None:
    from calib.cli import main

    assert main(["evaluate", "finished", "--device", "cpu"]) == 0
    assert main(["export", "finished", "--out", "night.safetensors"]) == 0
    assert main(["report", "finished"]) == 0
    result = json.loads(Path("finished/result.json").read_text())
    again = json.loads(Path("finished/reevaluation.json").read_text())
    (cell,) = again["cells"]
    for name in ("source_before", "source_after", "target_before", "target_after"):
        assert_alike(cell[name]["accuracy"], result[name])


@each("calib-uda")
def test_calib_goes_on_from_a_checkpoint(kept: Path) -> None:
    from calib.cli import main

    assert main(["adapt", "--resume", "stopped"]) == 0
    assert_alike(lines(Path("stopped/metrics.jsonl")), lines(kept / "finished" / "metrics.jsonl"))
    again, result = (
        json.loads((at / "result.json").read_text()) for at in (Path("stopped"), kept / "finished")
    )
    for name in ("target_before", "target_after", "classifier_digest", "chosen_step"):
        assert_alike(again[name], result[name])


@each("fsd")
def test_fsd_opens_a_finished_run(kept: Path) -> None:
    from fsd.cli import main

    assert main(["evaluate", "finished"]) == 0
    assert main(["export", "finished", "--out", "meshes", "--resolution", "16"]) == 0
    assert len(list(Path("meshes").iterdir())) == 2
    assert main(["report", "finished"]) == 0
    result = json.loads((kept / "finished" / "result.json").read_text())
    again = json.loads(Path("finished/evaluation.json").read_text())
    for name in ("prompt", "seeds", "steps", "pairwise_distance", "network_calls"):
        if name in result:
            assert_alike(again[name], result[name])


@each("fsd")
def test_fsd_goes_on_from_a_checkpoint(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsd.run
    import torch
    from fsd.cli import main
    from fsd.priors.mixture import MixturePrior
    from fsd.scene import load_scene

    # The prior of make.py.
    pictures = torch.stack([torch.full((3, 16, 16), 0.8), torch.full((3, 16, 16), -0.6)])
    prior = MixturePrior(pictures.flatten(1), latent_shape=(3, 16, 16))
    monkeypatch.setattr(fsd.run, "build_prior", lambda config, device: prior)
    assert main(["generate", "--resume", "stopped"]) == 0
    for item in (kept / "finished" / "objects").iterdir():
        again = Path("stopped/objects", item.name)
        assert_alike(lines(again / "metrics.jsonl"), lines(item / "metrics.jsonl"))
        one, other = (load_scene(at / "scene.safetensors").state_dict() for at in (again, item))
        for name, value in other.items():
            # Adam divides by the gradient's size, so that on another kind of CPU the rounding of a gradient that is
            # nearly zero moves a few values: 7 of 2048 by up to 0.005.
            alike = torch.isclose(one[name], value, rtol=0.01, atol=1e-3)
            assert alike.float().mean() > 0.99
            torch.testing.assert_close(one[name], value, rtol=0.1, atol=0.02)


@each("shared-core")
def test_shared_core_reads_a_checkpoint_and_metrics(kept: Path) -> None:
    import torch
    from shared_core.run import checkpoint
    from shared_core.run.folder import RunFolder

    net = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(net.parameters())
    found = checkpoint.load("stopped/checkpoints")
    net.load_state_dict(found.tensors["net"])
    optimizer.load_state_dict(found.tensors["optimizer"])
    checkpoint.set_rng_state(found.state["rng"])
    assert found.step == 4
    assert found.state["list"] == [1, None, "ä"]
    assert found.state["tensor"].tolist() == [0, 1, 2]
    assert [line["loss"] for line in metrics.read("stopped/metrics.jsonl")] == [1.0, 0.5, 1 / 3, 0.25]
    with RunFolder("stopped").open({"steps": 8, "name": "ä"}, resume=True) as folder:
        assert not folder.finished()
    assert RunFolder("finished").finished()
