"""The command line as a person meets it: help, refusals in three lines, exit codes, verbs on a real run."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from corsd.cli import main
from PIL import Image

TINY = {
    "data": "digits",
    "model": "small:resnet10",
    "width": 8,
    "augment": "none",
    "images_per_class": 24,
    "epochs": 1,
    "batch_size": 24,
    "log_every": 1,
    "device": "cpu",
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(json.dumps(TINY))
    return path


@pytest.fixture(scope="module")
def trained(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "one"
    assert main(["train", "--config", str(tiny), "--out", str(out)]) == 0
    return out


@pytest.mark.parametrize("command", [[], ["train"], ["evaluate"], ["predict"], ["export"], ["report"]])
def test_help_answers_without_torch(command: list[str]) -> None:
    code = f"""
import sys
from corsd.cli import main
try:
    main({[*command, "--help"]!r})
except SystemExit as stop:
    assert stop.code in (0, None)
assert "torch" not in sys.modules, "help imported torch"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout


def test_train_help_names_all_presets_and_at_most_fifteen_more(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    shown = capsys.readouterr().out
    assert "{digits,cifar100-small,cifar100,imagenet,cub200}" in shown
    flags = set(
        re.findall(r"^\W*(--[a-z][\w-]*)", shown.split("Train a classifier", 1)[1], flags=re.MULTILINE)
    )
    assert {"--data", "--model", "--method", "--controls", "--seeds"} <= flags
    assert len(flags) <= 15
    assert "--optim.lr" not in flags


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--epoch", "3"], "you meant --epochs"),
        (["train", "--preset", "digit"], "invalid choice: 'digit'"),
        (["train", "--config", "nowhere.yaml"], "nowhere.yaml"),
        (["train", "--resume", "nowhere"], "nowhere"),
        (["train", "--preset", "digits", "--width", "8"], "width is set in the YAML file"),
        (["train", "--resume", "a", "--out", "b"], "leave out"),
        (["train", "--data", "digitz"], "there is no data set 'digitz'"),
        (["train", "--data", "imagefolder:nowhere"], "there is no folder nowhere"),
        (["train", "--model", "small:resnet11"], "choose small:resnet10"),
        (["train", "--model", "torchvision:resnet1"], "has no classifier 'resnet1'"),
        (["train", "--model", "nowhere.py:net"], "there is no file nowhere.py"),
        (["train", "--method", "ce_triplets", "--batch-size", "50"], "choose 48 or 51"),
        (["train", "--seeds", "1", "1"], "none twice"),
        (["train", "--device", "tpu"], "choose auto or cpu"),
        (["evaluate", "nowhere"], "nowhere"),
        (["evaluate"], "required: RUN"),
        (["export", "nowhere", "--out", "x", "--format", "tflite"], "invalid choice: 'tflite'"),
        (["retrain"], "there is no command 'retrain'"),
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


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epoch": 3}, "did you mean 'epochs'"),
        ({"relations": {"stages": ["layer9"]}}, "the net has no submodule 'layer9'"),
        ({"optim": {"lr": -1}}, "optim.lr"),
        ({"validation": 0.999}, "leaves class 0 without training images"),
    ],
)
def test_wrong_files_are_two(values: dict, message: str, tmp_path: Path, capsys) -> None:
    config = tmp_path / "wrong.yaml"
    config.write_text(json.dumps(TINY | values))
    assert main(["train", "--config", str(config), "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err


def test_fp16_needs_a_gpu(tiny: Path, tmp_path: Path, capsys) -> None:
    arguments = ["--config", str(tiny), "--precision", "fp16", "--out", str(tmp_path / "out")]
    assert main(["train", *arguments]) == 2
    assert "fp16 needs a GPU; choose bf16" in capsys.readouterr().err


def test_flags_win_over_the_file_and_the_file_over_the_preset(tiny: Path, tmp_path: Path) -> None:
    import yaml

    out = tmp_path / "out"
    flags = ["--preset", "digits", "--config", str(tiny), "--seeds", "5", "--controls", "--epochs", "0.8"]
    assert main(["train", *flags, "--out", str(out)]) == 0
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["seeds"] == [5]
    assert config["epochs"] == 0.8
    assert config["batch_size"] == 24
    assert config["checkpoint_every"] == 100


def test_a_finished_run_is_not_overwritten(trained: Path, tiny: Path, capsys) -> None:
    before = (trained / "net.safetensors").read_bytes()
    assert main(["train", "--config", str(tiny), "--out", str(trained)]) == 2
    assert "holds a finished run" in capsys.readouterr().err
    assert main(["train", "--resume", str(trained)]) == 0
    assert (trained / "net.safetensors").read_bytes() == before


def test_a_loss_that_explodes_is_one_with_a_sentence(tmp_path: Path, capsys) -> None:
    config = tmp_path / "hot.yaml"
    config.write_text(
        json.dumps(TINY | {"optim": {"lr": 1e30, "schedule": "constant", "warmup": 0}, "epochs": 20})
    )
    assert main(["train", "--config", str(config), "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert "loss part 'ce' is" in said
    assert "Traceback" not in said


def test_sigterm_saves_and_resume_goes_on(tmp_path: Path) -> None:
    config, out = tmp_path / "long.yaml", tmp_path / "out"
    config.write_text(json.dumps(TINY | {"epochs": 2000}))
    command = [sys.executable, "-m", "corsd", "train", "--config", str(config), "--out", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"})
    end = time.monotonic() + 60
    while not (out / "metrics.jsonl").is_file() and time.monotonic() < end:
        time.sleep(0.1)
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143, said.decode()
    assert f"corsd: saved; go on with: corsd train --resume {out}\n" in said.decode()
    assert (out / "checkpoints" / "latest").exists()
    assert not (out / "result.json").exists()


def test_evaluate_prints_a_table_and_writes_json(trained: Path, capsys) -> None:
    assert main(["evaluate", str(trained)]) == 0
    shown = capsys.readouterr().out
    evaluation = json.loads((trained / "evaluation.json").read_text())
    (cell,) = evaluation["cells"]
    result = json.loads((trained / "result.json").read_text())
    assert cell["accuracy"] == pytest.approx(result["accuracy"])
    assert f"{cell['accuracy']:.2f}" in shown
    assert len(cell["per_class"]) == len(evaluation["class_names"]) == 10
    assert set(cell["noise"]) == {"0.05", "0.1", "0.2"}
    assert cell["exits"] is None


def test_best_needs_a_validation_set(trained: Path, capsys) -> None:
    assert main(["evaluate", str(trained), "--which", "best"]) == 2
    assert "validation above 0" in capsys.readouterr().err


def test_predict_names_broken_images_and_ends_with_one(trained: Path, tmp_path: Path, capsys) -> None:
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "black.png")
    (tmp_path / "torn.png").write_bytes(b"no image")
    assert main(["predict", str(trained), str(tmp_path / "black.png")]) == 0
    path, name, probability = capsys.readouterr().out.strip().split("\t")
    assert Path(path).name == "black.png"
    assert name in "0123456789"
    assert 0.1 <= float(probability) <= 1
    assert main(["predict", str(trained), str(tmp_path), "--json"]) == 1
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [Path(a["path"]).name for a in answers] == ["black.png", "torn.png"]
    assert "torn.png" in answers[1]["error"]
    assert main(["predict", str(trained), str(tmp_path / "torn.png")]) == 1
    assert "torn.png" in capsys.readouterr().err


def test_predict_refuses_an_empty_folder(trained: Path, tmp_path: Path, capsys) -> None:
    assert main(["predict", str(trained), str(tmp_path)]) == 2
    assert "there is no image in" in capsys.readouterr().err


def test_report_can_be_written_again(trained: Path) -> None:
    (trained / "report.html").unlink()
    assert main(["report", str(trained)]) == 0
    assert (trained / "report.html").stat().st_size > 50_000
