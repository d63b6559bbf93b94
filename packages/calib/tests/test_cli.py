"""The command line as a person meets it: help, refusals in three lines, exit codes, verbs on a real run."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from calib.cli import main
from calib.pretrained import load_calibrator
from PIL import Image
from safetensors import safe_open

VERBS = ("adapt", "evaluate", "predict", "analyse", "translate", "export", "report")


@pytest.fixture
def config(tiny: dict[str, Any], tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(json.dumps(tiny))
    return path


@pytest.mark.parametrize("command", [[], *([verb] for verb in VERBS)])
def test_help_answers_without_torch(command: list[str]) -> None:
    code = f"""
import sys
from calib.cli import main
try:
    main({[*command, "--help"]!r})
except SystemExit as stop:
    assert stop.code in (0, None)
assert "torch" not in sys.modules, "help imported torch"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout


def test_adapt_help_names_all_presets_and_few_flags(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        main(["adapt", "--help"])
    shown = capsys.readouterr().out
    assert "{digits,mnist-usps,usps-mnist,svhn-mnist,camvid-day-dusk,gta5-cityscapes}" in shown
    after = shown.split("Adapt a frozen classifier", 1)[1]
    flags = set(re.findall(r"^\W*(--[a-z][\w-]*)", after, flags=re.MULTILINE))
    assert {"--source", "--target", "--classifier", "--weights", "--epsilon", "--selection"} <= flags
    assert len(flags) <= 16
    assert "--patch" not in flags


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["adapt", "--step", "3"], "--steps"),
        (["adapt", "--preset", "digit"], "invalid choice: 'digit'"),
        (["adapt", "--config", "nowhere.yaml"], "nowhere.yaml"),
        (["adapt", "--resume", "nowhere"], "nowhere"),
        (["adapt", "--preset", "digits", "--width", "8"], "width is set in the YAML file"),
        (["adapt", "--resume", "a", "--out", "b"], "leave out"),
        (["adapt", "--target", "digitz"], "there is no data set 'digitz'"),
        (["adapt", "--target", "imagefolder:nowhere"], "there is no folder nowhere"),
        (["adapt", "--source", "mnist"], "mnist needs a folder"),
        (["adapt", "--classifier", "small:lenot"], "small:lenet"),
        (["adapt", "--classifier", "torchvision:resnet1"], "has no classifier 'resnet1'"),
        (["adapt", "--weights", "nowhere.safetensors"], "nowhere.safetensors"),
        (["adapt", "--epsilon", "2"], "epsilon"),
        (["adapt", "--seeds", "1", "1"], "none twice"),
        (["adapt", "--device", "tpu"], "tpu"),
        (["evaluate", "nowhere"], "nowhere"),
        (["evaluate"], "required: RUN"),
        (["predict", "nowhere", "a.png"], "nowhere"),
        (["analyse", "nowhere"], "nowhere"),
        (["translate", "--source", "digits"], "required: --target, --out"),
        (["translate", "--source", "digits", "--target", "digitz", "--out", "x"], "no data set 'digitz'"),
        (["translate", "--source", "digits", "--target", "digits", "--out", "x", "--size", "30"], "size=30"),
        (["translate", "--source", "digits", "--target", "digits", "--out", "x", "--device", "gpu"], "'gpu'"),
        (["export", "nowhere", "--out", "x", "--format", "tflite"], "invalid choice: 'tflite'"),
        (["report", "nowhere"], "nowhere"),
        (["readapt"], "there is no command 'readapt'"),
    ],
)
def test_wrong_usage_is_two_with_three_lines(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.strip().splitlines()) <= 3
    assert not (tmp_path / "runs").exists()


def test_flags_win_over_the_file_and_the_file_over_the_preset(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    flags = ["--preset", "digits", "--config", str(config), "--steps", "2", "--baselines"]
    assert main(["adapt", *flags, "--out", str(out)]) == 0
    found = yaml.safe_load((out / "config.yaml").read_text())
    assert found["steps"] == 2
    assert found["batch_size"] == 16
    assert found["channels"] == 3
    assert found["baselines"] == []


def test_a_finished_run_is_not_overwritten(adapted: Path, config: Path, tiny: dict, capsys) -> None:
    before = (adapted / "calibrator" / "calibrator.safetensors").read_bytes()
    assert main(["adapt", "--config", str(config), "--out", str(adapted)]) == 2
    assert "holds a finished run" in capsys.readouterr().err
    assert main(["adapt", "--resume", str(adapted)]) == 0
    assert "on domains.npz#dusk is" in capsys.readouterr().out
    assert (adapted / "calibrator" / "calibrator.safetensors").read_bytes() == before


def test_a_loss_that_explodes_is_one_with_a_sentence(tiny: dict, tmp_path: Path, capsys) -> None:
    config = tmp_path / "hot.yaml"
    config.write_text(json.dumps(tiny | {"optim": {"learning_rate": 1e30}, "steps": 20}))
    assert main(["adapt", "--config", str(config), "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert "loss part" in said
    assert "Traceback" not in said


def test_sigterm_saves_and_the_exit_code_says_so(tiny: dict, tmp_path: Path) -> None:
    config, out = tmp_path / "long.yaml", tmp_path / "out"
    config.write_text(json.dumps(tiny | {"steps": 100_000}))
    command = [sys.executable, "-m", "calib", "adapt", "--config", str(config), "--out", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"})
    end = time.monotonic() + 120
    # The second line: the first is written before the first step.
    while time.monotonic() < end:
        if (out / "metrics.jsonl").is_file() and len((out / "metrics.jsonl").read_bytes().splitlines()) > 1:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143, said.decode()
    assert f"calib: saved; go on with: calib adapt --resume {out}\n" in said.decode()
    assert (out / "checkpoints" / "latest").exists()
    assert not (out / "result.json").exists()
    assert main(["evaluate", str(out)]) == 2


def test_evaluate_repeats_the_four_numbers(adapted: Path, capsys) -> None:
    assert main(["evaluate", str(adapted), "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    (cell,) = json.loads((adapted / "reevaluation.json").read_text())["cells"]
    result = json.loads((adapted / "result.json").read_text())
    for name in ("source_before", "source_after", "target_before", "target_after"):
        assert cell[name]["accuracy"] == pytest.approx(result[name])
        assert f"{result[name]:.2f}" in shown
    assert "classifier unchanged: yes, bit for bit" in shown


def test_evaluate_takes_other_data_with_the_same_classes(adapted: Path, domains_npz: Path, capsys) -> None:
    assert main(["evaluate", str(adapted), "--data-target", f"npz:{domains_npz}#day"]) == 0
    (cell,) = json.loads((adapted / "reevaluation.json").read_text())["cells"]
    assert cell["target_after"] == cell["source_after"]
    assert main(["evaluate", str(adapted), "--data-target", "digits"]) == 2
    assert "but 4 classes allow 0 to 3" in capsys.readouterr().err


def test_predict_names_broken_images_and_ends_with_one(adapted: Path, tmp_path: Path, capsys) -> None:
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(tmp_path / "black.png")
    (tmp_path / "torn.png").write_bytes(b"no image")
    assert main(["predict", str(adapted), str(tmp_path / "black.png")]) == 0
    path, name, probability = capsys.readouterr().out.strip().split("\t")
    assert Path(path).name == "black.png"
    assert name in ("north west", "north east", "south west", "south east")
    assert 0.25 <= float(probability) <= 1
    assert main(["predict", str(adapted), str(tmp_path), "--json"]) == 1
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [Path(a["path"]).name for a in answers] == ["black.png", "torn.png"]
    assert "torn.png" in answers[1]["error"]
    assert main(["predict", str(adapted), str(tmp_path / "torn.png")]) == 1
    assert "torn.png" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--alpha", "1.5"], "alpha is 1.5"),
        (["--out", "maps"], "has no label maps"),
        (["--calibrator", "nowhere"], "there is no file nowhere"),
    ],
)
def test_predict_refuses_what_does_not_fit(
    adapted: Path, flags: list[str], message: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.zeros((16, 16), np.uint8)).save("black.png")
    assert main(["predict", str(adapted), "black.png", *flags]) == 2
    assert message in capsys.readouterr().err


def test_analyse_prints_the_corrections_and_writes_the_report_again(adapted: Path, capsys) -> None:
    assert main(["analyse", str(adapted), "--images", "8", "--steps", "2", "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert "attack on the critics (2 steps)" in shown
    assert "random signs, full bound" in shown
    assert "random signs, calibrator's mean size" in shown
    assert "Analysis: is the calibrator an attack" in (adapted / "report.html").read_text()
    assert main(["analyse", str(adapted), "--images", "0"]) == 2
    assert "images=0" in capsys.readouterr().err


def test_export_writes_files_that_open_again(adapted: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "front.safetensors"
    assert main(["export", str(adapted), "--out", str(out)]) == 0
    assert "wrote" in capsys.readouterr().out
    own, exported = (load_calibrator(path) for path in (adapted / "calibrator", out))
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(own(images), exported(images))
    with safe_open(out, "pt") as opened:
        result = json.loads(opened.metadata()["result"])
    assert result["target_after"] == json.loads((adapted / "result.json").read_text())["target_after"]
    assert (result["oracle"], result["compat"]) == (False, "none")
    arguments = ["--format", "torch_export", "--what", "fused", "--out", str(tmp_path / "fused.pt2")]
    assert main(["export", str(adapted), *arguments]) == 0
    logits = torch.export.load(tmp_path / "fused.pt2").module()(torch.rand(3, 3, 32, 32), torch.tensor(1.0))
    assert logits.shape == (3, 4)
    assert main(["export", str(adapted), "--out", str(tmp_path / "nowhere" / "x")]) == 2
    assert "there is no folder" in capsys.readouterr().err


@pytest.mark.slow
def test_a_black_box_goes_all_the_way(adapted: Path, config: Path, tmp_path: Path, capsys) -> None:
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    box = tmp_path / "vendor.onnx"
    assert main(["export", str(adapted), "--what", "fused", "--format", "onnx", "--out", str(box)]) == 0
    out = tmp_path / "run"
    assert main(["adapt", "--config", str(config), "--classifier", str(box), "--out", str(out)]) == 0
    assert "trained with the pixel critic only" in capsys.readouterr().out
    before, after = (json.loads((folder / "result.json").read_text()) for folder in (adapted, out))
    assert after["classifier_unchanged"]
    assert after["target_before"] == pytest.approx(before["target_after"])
    assert f"<dt>parameters</dt><dd>{after['parameters']}</dd>" in (out / "report.html").read_text()
    assert main(["analyse", str(out), "--images", "8", "--steps", "1"]) == 0
    assert main(["export", str(out), "--what", "fused", "--out", str(tmp_path / "x")]) == 2
    assert "cannot be fused by torch" in capsys.readouterr().err


@pytest.mark.slow
def test_translate_writes_a_folder_that_adapt_takes(
    adapted: Path, domains_npz: Path, tmp_path: Path, config: Path, capsys
) -> None:
    out = tmp_path / "style"
    domains = ["--source", f"npz:{domains_npz}#day", "--target", f"npz:{domains_npz}#dusk"]
    flags = [*domains, "--steps", "2", "--out", str(out), "--judge", str(adapted), "--device", "cpu"]
    assert main(["translate", *flags]) == 0
    shown = capsys.readouterr().out
    assert "wrote 64 images" in shown
    assert re.search(r"named otherwise than their label: [\d.]+ % before, [\d.]+ % after", shown)
    assert len(list((out / "train").glob("*/*.png"))) == 64
    assert f"open {out / 'report.html'}" in shown
    assert re.search(r"<dt>named otherwise, after</dt><dd>[\d.]+ %</dd>", (out / "report.html").read_text())
    assert main(["translate", *flags]) == 2
    assert "holds a finished run" in capsys.readouterr().err
    flags = ["--config", str(config), "--translated", f"imagefolder:{out}", "--steps", "2"]
    assert main(["adapt", *flags, "--out", str(tmp_path / "run")]) == 0


def test_report_can_be_written_again(adapted: Path) -> None:
    (adapted / "report.html").unlink()
    assert main(["report", str(adapted)]) == 0
    assert (adapted / "report.html").stat().st_size > 50_000
