"""Objects from one command: what they leave, how they go on after a kill, and what happens when one fails."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import fsd.run
import pytest
import torch
import yaml
from fsd.build import build_prior, build_scene, optimizer_for
from fsd.cli import main
from fsd.config import PRESETS, FieldSettings, GenerateConfig
from fsd.generate import generate
from fsd.priors.bank import RenderBank
from fsd.run import Job, jobs, own_device, run, slug
from safetensors.torch import load_file
from shared_core.run.checkpoint import CheckpointError
from shared_core.run.folder import RunFolderError
from shared_core.run.metrics import read
from tiny_pipelines import tiny_stable_diffusion

QUICK = {
    "prompts": ["a red object"],
    "steps": 6,
    "size": 16,
    "threads": 1,
    "device": "cpu",
    "log_every": 1,
    "picture_every": 2,
    "checkpoint_every": 2,
    "mesh_resolution": 24,
    "frames": 4,
    "field": {"resolution": 12, "samples": 8},
}


def quick(**settings):
    return GenerateConfig.model_validate({**QUICK, **settings})


@pytest.fixture(scope="module")
def bank():
    return RenderBank(size=16, azimuths=12)


@pytest.fixture
def small_bank(monkeypatch, bank):
    """The command line with a bank that takes no seconds to make."""
    monkeypatch.setattr(fsd.run, "build_prior", lambda config, device: bank)
    return bank


def state(folder):
    weights = load_file(folder / "scene.safetensors")
    lines = [{k: v for k, v in line.items() if k != "time"} for line in read(folder / "metrics.jsonl")]
    return weights, lines


def same(one, other):
    weights, lines = state(one)
    others, other_lines = state(other)
    assert lines == other_lines
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in weights)


@pytest.mark.parametrize("method", ["fsd", "sds", "cfd", "sdi"])
def test_an_interrupted_object_goes_on_bit_for_bit(tmp_path, bank, method):
    config = quick(beta=0.5)
    generate(config, "a red object", method, 3, bank, tmp_path / "straight")

    class Interrupted(Exception):
        pass

    class Breaks:
        """The bank, until its network has been called too often."""

        def __getattr__(self, name):
            return getattr(bank, name)

        def predict_noise(self, *arguments):
            if bank.calls >= limit:
                raise Interrupted
            return bank.predict_noise(*arguments)

    each = {"sdi": 11}.get(method, 1)
    limit = bank.calls + 5 * each
    with pytest.raises(Interrupted):
        generate(config, "a red object", method, 3, Breaks(), tmp_path / "broken")
    assert not (tmp_path / "broken" / "object.json").exists()
    generate(config, "a red object", method, 3, bank, tmp_path / "broken")
    same(tmp_path / "straight", tmp_path / "broken")
    about = [json.loads((tmp_path / f / "object.json").read_text()) for f in ("straight", "broken")]
    assert about[0]["network_calls"] == about[1]["network_calls"] == 6 * each
    assert (tmp_path / "straight" / "progress.png").read_bytes() == (
        tmp_path / "broken" / "progress.png"
    ).read_bytes()


def test_an_object_folder_holds_what_the_readme_says(tmp_path, bank):
    generate(quick(), "a red object", "fsd", 0, bank, tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= {
        "config.yaml", "env.json", "metrics.jsonl", "checkpoints", "object.json", "scene.safetensors", "scene.json",
        "views.png", "depth.png", "normal.png", "progress.png", "turntable.mp4", "turntable.gif",
    }  # fmt: skip
    about = json.loads((tmp_path / "object.json").read_text())
    assert len(about["labels"]) == 24
    assert about["label"] in about["labels"]
    assert 0 < about["view_consistency"] <= 1
    assert about["network_calls"] == 6
    assert (about["mesh"] is None) == (tmp_path / "mesh.glb").is_file()


def test_seeds_differ_and_repeat(tmp_path, bank):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        generate(quick(), "a red object", "fsd", seed, bank, tmp_path / name)
    same(tmp_path / "a", tmp_path / "b")
    assert state(tmp_path / "a")[1] != state(tmp_path / "c")[1]


def test_later_steps_take_other_views(tmp_path, bank):
    sizes = []

    class Watches:
        def __getattr__(self, name):
            return getattr(bank, name)

        def encode_image(self, image):
            sizes.append((len(image), image.shape[-1]))
            return bank.encode_image(image)

    config = quick(batch_size=8, later={"progress": 0.5, "size": 24, "batch_size": 4})
    generate(config, "a red object", "fsd", 0, Watches(), tmp_path)
    assert sizes[:6] == [(8, 16)] * 3 + [(4, 24)] * 3


def test_the_optimizer_has_a_rate_for_each_part_and_forgets_none():
    config = quick(field={"kind": "hash", "log2_size": 10, "background": "map"}, optim={"network_rate": 1e-4})
    scene = build_scene(config, 0)
    groups = optimizer_for(config, scene).param_groups
    assert [group["lr"] for group in groups] == [0.1, 1e-4, 1e-3]
    assert sum(len(group["params"]) for group in groups) == len(list(scene.parameters()))
    assert all(p.ndim <= 2 for p in groups[1]["params"])


def test_another_configuration_is_refused(tmp_path, bank):
    generate(quick(), "a red object", "fsd", 0, bank, tmp_path)
    with pytest.raises(RunFolderError, match="started with another configuration"):
        generate(quick(steps=7), "a red object", "fsd", 0, bank, tmp_path)


def test_a_run_makes_every_object_and_the_page(tmp_path, small_bank):
    config = quick(guidance=["fsd", "sds"], seeds=[0, 1])
    result = run(config, tmp_path / "run")
    assert result is not None
    assert [row["guidance"] for row in result["methods"]] == ["fsd", "sds"]
    assert result["failed"] == []
    assert {path.name for path in (tmp_path / "run" / "objects").iterdir()} == {
        "a-red-object-fsd-seed0", "a-red-object-fsd-seed1", "a-red-object-sds-seed0", "a-red-object-sds-seed1",
    }  # fmt: skip
    kept = json.loads((tmp_path / "run" / "result.json").read_text())
    assert kept.keys() >= {
        "prompt", "prior", "guidance", "seeds", "pairwise_distance", "distinct", "view_consistency", "quality",
        "network_calls", "seconds", "peak_memory_gb",
    }  # fmt: skip
    assert "a red object" in (tmp_path / "run" / "report.html").read_text()


def test_one_that_fails_does_not_stop_the_others_and_is_tried_again(
    tmp_path, small_bank, monkeypatch, capsys
):
    made = []

    def sometimes(config, prompt, method, seed, prior, out, device=None):
        made.append(seed)
        if seed == 1 and broken:
            raise FloatingPointError("numbers that are not finite")
        return generate(config, prompt, method, seed, prior, out, device)

    monkeypatch.setattr(fsd.run, "generate", sometimes)
    broken = True
    result = run(quick(seeds=[0, 1, 2]), tmp_path)
    assert made == [0, 1, 2]
    assert [entry["object"] for entry in result["failed"]] == ["a-red-object-fsd-seed1"]
    assert "not finite" in result["failed"][0]["error"]
    assert "seed1 failed" in capsys.readouterr().err
    broken = False
    assert run(quick(seeds=[0, 1, 2]), tmp_path, resume=True)["failed"] == []
    assert made == [0, 1, 2, 1]
    with pytest.raises(RunFolderError, match="finished run"):
        run(quick(seeds=[0, 1, 2]), tmp_path, resume=True)


class Odd(Exception):
    """None of the types that a package raises on purpose."""


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (AttributeError("no latent_dist"), "AttributeError: no latent_dist"),
        (KeyError("text"), "KeyError: 'text'"),
        (Odd(), "Odd: no further words"),
        (AssertionError("net"), "AssertionError: net"),
        (ValueError("lower t_max"), "lower t_max"),
    ],
)
def test_any_error_is_one_objects_own(tmp_path, small_bank, monkeypatch, error, says):
    def sometimes(config, prompt, method, seed, prior, out, device=None):
        if seed == 0:
            raise error
        return generate(config, prompt, method, seed, prior, out, device)

    monkeypatch.setattr(fsd.run, "generate", sometimes)
    result = run(quick(seeds=[0, 1]), tmp_path)
    assert [entry["error"] for entry in result["failed"]] == [says]
    assert result["seeds"] == [1]
    kept = json.loads((tmp_path / "objects" / "a-red-object-fsd-seed0" / "failed.json").read_text())
    assert kept["error"] == says
    assert "Traceback" in kept["traceback"]


def test_an_interruption_is_no_failed_object(tmp_path, small_bank, monkeypatch):
    def stopped(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(fsd.run, "generate", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(quick(), tmp_path)
    assert not list(tmp_path.glob("objects/*/failed.json"))


@pytest.mark.parametrize("inside", [True, False])
def test_a_signal_stops_the_run_wherever_it_comes(tmp_path, small_bank, monkeypatch, inside):
    """In the middle of an object's pictures, or between two objects."""
    made = []

    def told(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return {"label": None, "labels": None, "view_consistency": None, "quality": None}

    def between(config, prompt, method, seed, prior, out, device=None):
        made.append(seed)
        generate(config, prompt, method, seed, prior, out, device)
        if not inside:
            told()

    monkeypatch.setattr(fsd.run, "generate", between)
    if inside:
        monkeypatch.setattr(sys.modules["fsd.generate"], "_described", told)
    with pytest.raises(SystemExit) as stopped:
        run(quick(seeds=[0, 1, 2]), tmp_path)
    assert stopped.value.code == 143
    assert made == [0]
    assert (tmp_path / "objects" / "a-red-object-fsd-seed0" / "object.json").is_file()
    assert not (tmp_path / "result.json").exists()


def test_a_run_in_which_all_fail_says_so_and_can_go_on(tmp_path, small_bank, monkeypatch, capsys):
    def full(*arguments):
        raise OSError("no space left on the disk")

    monkeypatch.setattr(fsd.run, "generate", full)
    assert main(["generate", "a red object", "--out", str(tmp_path / "run"), "--device", "cpu"]) == 1
    assert "no space left" in capsys.readouterr().err
    assert "no space left" in (tmp_path / "run" / "report.html").read_text()
    monkeypatch.undo()
    monkeypatch.setattr(fsd.run, "build_prior", lambda config, device: small_bank)
    values = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert values["prompts"] == ["a red object"]


def test_a_checkpoint_that_holds_code_is_not_loaded(tmp_path, bank):
    generate(quick(), "a red object", "fsd", 0, bank, tmp_path)
    (tmp_path / "object.json").unlink()
    state = tmp_path / "checkpoints" / "step-000006" / "state.pt"
    torch.save({"modules": {}, "state": subprocess.run}, state)
    meta = json.loads((state.parent / "meta.json").read_text())
    meta["files"]["state.pt"] = {
        "bytes": state.stat().st_size,
        "sha256": hashlib.sha256(state.read_bytes()).hexdigest(),
    }
    (state.parent / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(CheckpointError, match="could run code"):
        generate(quick(), "a red object", "fsd", 0, bank, tmp_path)


def test_out_of_memory_names_the_knobs(tmp_path, small_bank, monkeypatch):
    def full(*arguments):
        raise torch.OutOfMemoryError("tried to allocate 9 GiB")

    monkeypatch.setattr(fsd.run, "generate", full)
    result = run(quick(), tmp_path)
    assert "--batch-size" in result["failed"][0]["error"]


SCRIPT = """
import sys, fsd.run
from fsd.cli import main
from fsd.priors.bank import RenderBank
fsd.run.build_prior = lambda config, device: RenderBank(size=16, azimuths=12)
sys.exit(main(sys.argv[1:]))
"""


def command(out, *flags, steps=300):
    config = out.parent / f"{out.name}.yaml"
    values = {**QUICK, "steps": steps, "checkpoint_every": 30, "picture_every": 60}
    config.write_text(yaml.safe_dump(values))
    return [sys.executable, "-c", SCRIPT, "generate", "--config", str(config), "--out", str(out), *flags]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_command_goes_on_bit_for_bit(tmp_path, number):
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    subprocess.run(command(straight), check=True, capture_output=True)
    process = subprocess.Popen(command(killed), stderr=subprocess.DEVNULL)
    folder = killed / "objects" / "a-red-object-fsd-seed0"
    deadline = time.monotonic() + 120
    while not list(folder.glob("checkpoints/step-*")) and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, number)
    code = process.wait(60)
    assert code == (143 if number == signal.SIGTERM else -signal.SIGKILL)
    assert not (folder / "object.json").exists()
    resume = [sys.executable, "-c", SCRIPT, "generate", "--resume", str(killed)]
    subprocess.run(resume, check=True, capture_output=True)
    same(straight / "objects" / "a-red-object-fsd-seed0", folder)


@pytest.mark.slow
def test_two_processes_make_what_one_makes(tmp_path):
    """Started as torchrun starts them: alike, but for RANK; they share the objects through the folder."""
    flags = ["--seeds", "0-3"]
    one, two = tmp_path / "one", tmp_path / "two"
    subprocess.run(command(one, *flags, steps=6), check=True, capture_output=True)
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "--no-python",
    ]
    subprocess.run([*launch, *command(two, *flags, steps=6)], check=True, capture_output=True)
    for seed in range(4):
        same(*(folder / "objects" / f"a-red-object-fsd-seed{seed}" for folder in (one, two)))
    results = [json.loads((folder / "result.json").read_text()) for folder in (one, two)]
    assert results[0]["pairwise_distance"] == results[1]["pairwise_distance"]
    assert results[0]["seeds"] == results[1]["seeds"] == [0, 1, 2, 3]


def test_the_command_with_a_stable_diffusion_from_a_folder(tmp_path, capsys):
    """Latents, the VAE's gradient, view words: all of it, with a pipeline of a few thousand weights."""
    folder = tiny_stable_diffusion(tmp_path / "pipeline")
    (tmp_path / "run.yaml").write_text(
        yaml.safe_dump(
            {
                **QUICK,
                "steps": 10,
                "batch_size": 2,
                "field": {"resolution": 12, "samples": 8, "background": "map"},
            }
        )
    )
    code = main(
        ["generate", "a mug", "--config", str(tmp_path / "run.yaml"), "--prior", str(folder), "--seeds", "0-1",
         "--guidance", "fsd", "vsd", "--out", str(tmp_path / "run")]
    )  # fmt: skip
    assert code == 0, capsys.readouterr().err
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["network_calls"] == 10
    assert result["seeds"] == [0, 1]
    assert result["distinct"] is None
    assert result["pairwise_distance"] > 0


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_whole_but_for_the_prior(name):
    config = PRESETS[name]()
    assert GenerateConfig.model_validate(config.model_dump()) == config
    scene = build_scene(config.model_copy(update={"field": FieldSettings(resolution=8)}), 0)
    assert scene.samples == 32
    if not config.prior:
        with pytest.raises(ValueError, match="no prior is named"):
            build_prior(config, torch.device("cpu"))


def test_processes_of_a_machine_spread_over_its_gpus(monkeypatch):
    def here(name):
        return torch.device({"auto": "cuda", "cuda": "cuda:0"}.get(name, name))

    monkeypatch.setattr(fsd.run, "choose_device", here)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name in ("auto", "cuda"):
        assert [own_device(name, n).index for n in range(4)] == [0, 1, 0, 1]
    assert own_device("cuda:1", 2) == torch.device("cuda:1")
    assert own_device("cpu", 1) == torch.device("cpu")


def test_slugs_tell_prompts_apart():
    assert slug("a red mug") == "a-red-mug"
    assert slug("a red, mug") != slug("a red mug")
    assert slug("A red mug") != slug("a red mug")
    assert slug("ein großer Bär")
    assert len(slug("word " * 100)) < 70
    assert slug("赤い") != slug("青い")


def test_jobs_go_round_the_seeds_first():
    found = jobs(quick(seeds=[0, 1], guidance=["fsd", "sds"]), Path("x"))
    assert [(job.seed, job.method) for job in found] == [(0, "fsd"), (0, "sds"), (1, "fsd"), (1, "sds")]
    assert isinstance(found[0], Job)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["generate"], "say what to make"),
        (["generate", ""], "a prompt is empty"),
        (["generate", "a corgi", "--prior", "bank"], "does not know 'corgi'"),
        (["generate", "a mug", "--prior", "{tmp}"], "model_index.json"),
        (["generate", "a mug", "--seeds", "3-1"], "runs backwards"),
        (["generate", "a mug", "--guidance", "dreamfusion"], "guidance"),
        (["generate", "a mug", "--t-max", "0.5"], "--t-max is no flag"),
        (["generate", "a mug", "--preset", "stable-diffusion"], "no prior is named"),
        (["generate", "--out", "x", "--resume", "{tmp}"], "takes everything from the run's folder"),
        (["generate", "a mug", "--resume", "{tmp}/run"], "leave out the prompts"),
        (["evaluate", "{tmp}"], "holds no folder objects/"),
        (["report", "{tmp}"], "holds no folder objects/"),
        (["paint"], "there is no command 'paint'"),
    ],
)
def test_wrong_use_ends_with_two_and_a_sentence(tmp_path, monkeypatch, small_bank, capsys, arguments, named):
    if "--preset" in arguments or "{tmp}" in arguments:
        monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    code = main([word.replace("{tmp}", str(tmp_path)) for word in arguments])
    printed = capsys.readouterr().err
    assert code == 2, printed
    assert named in printed
    assert len(printed.strip().splitlines()) <= 3


def test_export_and_evaluate_of_a_run(tmp_path, small_bank, capsys):
    run(quick(steps=30), tmp_path / "run")
    for kind in ("glb", "obj", "ply"):
        code = main(
            [
                "export",
                str(tmp_path / "run"),
                "--out",
                str(tmp_path / kind),
                "--format",
                kind,
                "--resolution",
                "24",
            ]
        )
        assert code == 0, capsys.readouterr()
        assert (tmp_path / kind / f"a-red-object-fsd-seed0.{kind}").stat().st_size > 500
    textured = [
        "export",
        str(tmp_path / "run"),
        "--out",
        str(tmp_path / "textured"),
        "--texture",
        "--resolution",
        "24",
    ]
    assert main(textured) == 0
    assert (tmp_path / "textured" / "a-red-object-fsd-seed0.glb").is_file()
    assert main([*textured, "--format", "ply"]) == 2
    assert main(["evaluate", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "evaluation.json").is_file()
    assert "fsd" in capsys.readouterr().out
    assert main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "none"), "--threshold", "1e9"]) == 1
