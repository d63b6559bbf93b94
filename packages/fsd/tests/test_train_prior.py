"""Small priors of the procedural world: what is built, what a run leaves, and how it goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from fsd.cameras import place, turntable
from fsd.cli import main
from fsd.prior_config import PriorConfig, tiny
from fsd.prior_pictures import Album, Chunk
from fsd.prior_step import average, rate
from fsd.priors.diffusers import DiffusersPrior
from fsd.priors.multiview import MultiViewPrior, camera_numbers, open_prior
from fsd.priors.pixel_pipeline import build_pipeline, word_tokenizer
from fsd.sampling import ddim, several
from fsd.train_prior import order_of, start_from, train_prior
from fsd.world.captions import vocabulary
from safetensors.torch import load_file
from shared_core.run.checkpoint import load
from shared_core.run.config import ConfigError
from shared_core.run.folder import RunFolderError
from shared_core.run.guard import NonFiniteError
from shared_core.run.metrics import read
from shared_core.testing import assert_same_state, run_ranks
from torch import Tensor, nn

WORDS = [*vocabulary(), ","]


def quick(variant: str = "multi-view", **settings: object) -> PriorConfig:
    few = {
        "steps": 8,
        "sample_every": 8,
        "checkpoint_every": 4,
        "sample_steps": 2,
        "threads": 1,
        "size": 16,
        "device": "cpu",
    }
    return PriorConfig.model_validate({**tiny().model_dump(), "variant": variant, **few, **settings})


def same_runs(one: Path, other: Path) -> None:
    a, b = (load(folder / "checkpoints") for folder in (one, other))
    assert a.step == b.step
    assert_same_state(a.tensors, b.tensors)
    logs = [
        [
            {name: value for name, value in line.items() if name != "time"}
            for line in read(folder / "metrics.jsonl")
        ]
        for folder in (one, other)
    ]
    assert logs[0] == logs[1]
    for part in ("unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"):
        assert_same_state(*(load_file(folder / "pipeline" / part) for folder in (one, other)))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished run of each variant."""
    folder = tmp_path_factory.mktemp("priors")
    for variant in ("multi-view", "camera-free"):
        train_prior(quick(variant), folder / variant)
    return {variant: folder / variant for variant in ("multi-view", "camera-free")}


@pytest.mark.parametrize("variant", ["multi-view", "camera-free"])
def test_a_run_leaves_a_pipeline_like_any_other(runs: dict[str, Path], variant: str) -> None:
    run = runs[variant]
    prior = open_prior(run / "pipeline")
    assert isinstance(prior, MultiViewPrior if variant == "multi-view" else DiffusersPrior)
    assert (prior.latent_shape, prior.image_size) == ((3, 16, 16), 16)
    result = json.loads((run / "result.json").read_text())
    assert (result["variant"], result["steps"], result["pictures_seen"]) == (variant, 8, 128)
    assert result["loss"] == pytest.approx(sum(line["loss"] for line in read(run / "metrics.jsonl")) / 8)
    page = (run / "report.html").read_text()
    assert f"A {variant} prior" in page
    assert "a red mushroom" in page
    # Written in half precision, equal to the average of the weights up to rounding.
    written = load_file(run / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors")
    averaged = load(run / "checkpoints").tensors["averaged"]
    for name, value in written.items():
        assert value.dtype == torch.float16
        torch.testing.assert_close(value.float(), averaged[f"unet.{name}"], rtol=1e-3, atol=1e-4)


def test_the_folder_can_be_used_without_fsd(runs: dict[str, Path]) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(
        runs["camera-free"] / "pipeline", vae=None, feature_extractor=None, dtype=torch.float32
    )
    pipe.set_progress_bar_config(disable=True)
    pixels = pipe("a red mug", num_inference_steps=2, output_type="latent").images
    assert pixels.shape == (1, 3, 16, 16)


@pytest.mark.slow
def test_training_lowers_the_loss(tmp_path: Path) -> None:
    """Against weights that hardly move, on the same pictures, levels and noise."""
    sums = []
    for learning_rate in (1e-2, 1e-9):
        out = tmp_path / f"{learning_rate}"
        train_prior(
            quick(steps=40, learning_rate=learning_rate, decay=0.0, sample_every=40, checkpoint_every=40), out
        )
        sums.append(sum(line["loss"] for line in read(out / "metrics.jsonl")[-20:]))
    assert sums[0] < 0.75 * sums[1]


def test_the_views_of_an_object_see_each_other_and_their_cameras(runs: dict[str, Path]) -> None:
    prior = open_prior(runs["multi-view"] / "pipeline")
    x = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    prompt = prior.encode_text("a red mug")
    before = prior.predict_noise(x, 0.5, prior.condition(prompt, turntable(8)), 1.0)
    x[1] += 1.0
    change = (prior.predict_noise(x, 0.5, prior.condition(prompt, turntable(8)), 1.0) - before).abs()
    assert (change.amax((1, 2, 3)) > 1e-6).tolist() == [True] * 4 + [False] * 4
    x[1] -= 1.0
    turned = prior.predict_noise(x, 0.5, prior.condition(prompt, turntable(8, start_deg=30.0)), 1.0)
    assert (turned - before).abs().max() > 1e-6


def test_an_interrupted_run_goes_on_bit_for_bit(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told_at_six(step: int, config: PriorConfig) -> float:
        if step == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return rate(step, config)

    with monkeypatch.context() as patch:
        patch.setattr("fsd.prior_step.rate", told_at_six)
        with pytest.raises(SystemExit) as stopped:
            train_prior(quick(), tmp_path)
    assert stopped.value.code == 143
    assert load(tmp_path / "checkpoints").step == 6
    assert not (tmp_path / "result.json").exists()
    train_prior(quick(), tmp_path, resume=True)
    same_runs(runs["multi-view"], tmp_path)


@pytest.mark.slow
def test_a_finished_run_can_be_made_longer(tmp_path: Path) -> None:
    # With the last part, in which the rate falls, left out, a longer run begins as a shorter one.
    train_prior(quick(decay=0.0), tmp_path / "both")
    result = train_prior(quick(decay=0.0, steps=12), tmp_path / "both", resume=True)
    assert result["steps"] == 12
    train_prior(quick(decay=0.0, steps=12), tmp_path / "long")
    same_runs(tmp_path / "long", tmp_path / "both")
    with pytest.raises(RunFolderError, match="holds a finished run"):
        train_prior(quick(decay=0.0, steps=12), tmp_path / "both", resume=True)
    with pytest.raises(RunFolderError, match=r"another configuration: .*batch_size was 16, is 32"):
        train_prior(quick(decay=0.0, steps=16, batch_size=32), tmp_path / "both", resume=True)


@pytest.mark.slow
def test_a_killed_command_goes_on_bit_for_bit(tmp_path: Path) -> None:
    def command(*words: object) -> list[str]:
        script = "import sys; from fsd.cli import main; sys.exit(main(sys.argv[1:]))"
        return [sys.executable, "-c", script, "train-prior", *map(str, words)]

    flags = ["--preset", "tiny", "--threads", "1", "--steps", "40"]
    subprocess.run(command(*flags, "--out", tmp_path / "straight"), check=True, capture_output=True)
    process = subprocess.Popen(
        command(*flags, "--out", tmp_path / "killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 200
    while not list(tmp_path.glob("killed/checkpoints/step-*")) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    assert process.wait(60) == -signal.SIGKILL
    assert not (tmp_path / "killed" / "result.json").exists()
    subprocess.run(command("--resume", tmp_path / "killed"), check=True, capture_output=True)
    same_runs(tmp_path / "straight", tmp_path / "killed")


def test_pictures_are_a_function_of_seed_and_number(tmp_path: Path) -> None:
    first = Album(tmp_path, seed=0, size=16, objects=6, views=4)[2]
    kept = Album(tmp_path, seed=0, size=16, objects=6, views=4)[2]
    drawn = Album(tmp_path / "elsewhere", seed=0, size=16, objects=6, views=4)[2]
    for again in (kept, drawn):
        assert torch.equal(again.images, first.images)
        assert torch.equal(again.cameras, first.cameras)
        assert again.captions == first.captions
    for other in (Album(tmp_path, 0, 16, 6, 4)[3], Album(tmp_path, 1, 16, 6, 4)[2]):
        assert not torch.equal(other.images, first.images)
    assert first.images.shape == (6, 4, 3, 16, 16)
    assert first.images.dtype == torch.uint8
    # Sides are a matter of the cameras, which stand a quarter turn apart.
    outwards = first.cameras.unflatten(2, (4, 4))[:, :, :2, 3]
    assert (outwards[:, 0] * outwards[:, 1]).sum(1).abs().max() < 1e-5
    assert len(list(tmp_path.glob("*.npz"))) == 3


def test_pictures_of_another_world_are_refused(tmp_path: Path) -> None:
    album = Album(tmp_path, seed=0, size=16, objects=6, views=4)
    drawn = album[0]
    (path,) = tmp_path.glob("*.npz")
    np.savez(path, images=255 - drawn.images, cameras=drawn.cameras, captions=np.array(drawn.captions))
    with pytest.raises(ValueError, match=r"another version of fsd drew; delete .* or name another folder"):
        album[0]


def test_captions_name_sides_for_single_views_alone(tmp_path: Path) -> None:
    single = Album(tmp_path, 0, 8, 300, 1)[0].captions
    several_views = Album(tmp_path, 0, 8, 300, 4)[0].captions
    words = {word for of_views in (*single, *several_views) for text in of_views for word in text.split()}
    assert words - {word.rstrip(",") for word in words} <= {f"{word}," for word in words}
    assert {word.rstrip(",") for word in words} <= set(vocabulary())
    assert {"the", "any"} <= words
    assert any("view" in text for of_views in single for text in of_views)
    assert not any("view" in text for of_views in several_views for text in of_views)
    assert all(len(set(of_views)) == 1 for of_views in several_views)
    share = sum(of_views[0] == "" for of_views in several_views) / 300
    assert 0.04 < share < 0.17


def test_kinds_with_a_front_are_drawn_more_often_if_one_likes() -> None:
    captions = [["a red car, side view"], ["a red mug"], ["an object"], ["a chair"], [""], ["a carpet"]] * 500
    chunk = Chunk(torch.zeros(3000, 1, 3, 2, 2, dtype=torch.uint8), torch.zeros(3000, 1, 16), captions)
    assert order_of(chunk, 1.0, turn=3).sort().values.tolist() == list(range(3000))
    order = order_of(chunk, 4.0, turn=3)
    assert torch.equal(order, order_of(chunk, 4.0, turn=3))
    assert not torch.equal(order, order_of(chunk, 4.0, turn=4))
    shares = (order % 6).bincount(minlength=6) / 3000
    # A comma may follow the kind in a caption of the camera-free variant.
    torch.testing.assert_close(shares, torch.tensor([4.0, 1, 1, 4, 1, 1]) / 12, atol=0.03, rtol=0)


def test_every_word_is_one_token() -> None:
    tokenizer, again = word_tokenizer(WORDS), word_tokenizer(WORDS[::-1])
    assert tokenizer.get_vocab() == again.get_vocab()
    for word in WORDS:
        assert tokenizer.convert_ids_to_tokens(tokenizer(word).input_ids[1:-1]) == [f"{word}</w>"]
    text = "A small red mushroom, back view"
    assert tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids[1:-1]) == [
        "a</w>", "small</w>", "red</w>", "mushroom</w>", ",</w>", "back</w>", "view</w>"
    ]  # fmt: skip


def test_the_networks_that_are_shipped_are_small_enough() -> None:
    config = PriorConfig()
    pipeline = build_pipeline(WORDS, True, config.channels, config.layers, config.text_width, config.size)
    count = sum(p.numel() for net in (pipeline.unet, pipeline.text_encoder) for p in net.parameters())
    assert 2 * count < 8e6
    assert float(pipeline.scheduler.alphas_cumprod[-1]) ** 0.5 > 2**-12


def test_the_rate_is_constant_until_the_last_part() -> None:
    config = PriorConfig(steps=1000, warmup=9, decay=0.2)
    assert rate(0, config) == pytest.approx(0.1)
    assert [rate(step, config) for step in (9, 500, 800)] == [1.0, 1.0, 1.0]
    assert [rate(step, config) for step in (900, 999)] == pytest.approx([0.5, 0.005])
    assert rate(999, PriorConfig(steps=1000, decay=0.0)) == 1.0


def test_the_average_of_the_weights() -> None:
    nets, kept = nn.Linear(2, 2), nn.Linear(2, 2)
    expected = 0.9 * kept.weight + 0.1 * nets.weight
    average(kept, nets, 0.9)
    torch.testing.assert_close(kept.weight, expected)


class KnownPrior:
    """A prior whose pictures are all one picture: the noise is what is left when it is taken away."""

    latent_shape, image_size, views, calls = (3, 4, 4), 4, 1, 0

    def __init__(self, picture: Tensor) -> None:
        self.picture = picture

    def alpha_sigma(self, t: float) -> tuple[float, float]:
        return (1 - t * t) ** 0.5 + 1e-3, t

    def predict_noise(self, x_t: Tensor, t: float, condition: object, guidance_scale: float) -> Tensor:
        alpha, sigma = self.alpha_sigma(t)
        return (x_t - alpha * self.picture) / sigma


def test_ddim_finds_the_only_picture() -> None:
    picture = torch.rand(2, 3, 4, 4, dtype=torch.float64)
    found = ddim(KnownPrior(picture * 2 - 1), None, torch.randn_like(picture), steps=5)
    torch.testing.assert_close(found, picture)
    with pytest.raises(ValueError, match="steps is 0"):
        ddim(KnownPrior(picture), None, torch.randn_like(picture), steps=0)


def test_several_prompts_at_once(runs: dict[str, Path]) -> None:
    prior = open_prior(runs["multi-view"] / "pipeline")
    x = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    together = prior.predict_noise(x, 0.5, several(prior, ["a mug", "a red car"], turntable(4)), 3.0)
    for text, views in (("a mug", slice(0, 4)), ("a red car", slice(4, 8))):
        alone = prior.predict_noise(
            x[views], 0.5, prior.condition(prior.encode_text(text), turntable(4)), 3.0
        )
        torch.testing.assert_close(together[views], alone, rtol=1e-4, atol=1e-5)


def test_training_and_prior_are_told_the_same_of_a_camera(tmp_path: Path) -> None:
    chunk = Album(tmp_path, 0, 8, 2, 4)[0]
    numbers = chunk.cameras.flatten(0, 1)
    outwards = numbers.unflatten(1, (4, 4))[:, :3, 3]
    azimuth = torch.rad2deg(torch.atan2(outwards[:, 1], outwards[:, 0]))
    elevation = torch.rad2deg(torch.asin(outwards[:, 2]))
    torch.testing.assert_close(camera_numbers(place(azimuth % 360, elevation)), numbers, rtol=0, atol=1e-4)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match=r"'loss' is .* at step \d+"):
        train_prior(quick(learning_rate=1e30, warmup=0, clip_norm=1e30), tmp_path)


def test_a_multi_view_network_starts_as_the_camera_free_one(runs: dict[str, Path]) -> None:
    torch.manual_seed(1)
    fresh = build_pipeline(WORDS, True, (8, 16), 1, 8, 16)
    start_from(str(runs["camera-free"] / "pipeline"), fresh)
    alone = open_prior(runs["camera-free"] / "pipeline", view_words=False)
    joined = MultiViewPrior(fresh, views=1)
    x = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    cameras = turntable(3)
    expected, found = (
        prior.predict_noise(x, 0.5, prior.condition(prior.encode_text("a red mug"), cameras), 2.0)
        for prior in (alone, joined)
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_run_starts_from_trained_weights_only_if_they_fit(runs: dict[str, Path], tmp_path: Path) -> None:
    start = str(runs["camera-free"] / "pipeline")
    with pytest.raises(
        ValueError, match=r"camera-free/pipeline cannot be started from \(.*\); give the pipeline"
    ):
        train_prior(quick(channels=(8, 24), start=start), tmp_path / "wider")
    first = train_prior(quick(start=start, steps=1, learning_rate=1e-9), tmp_path / "run")
    assert first["loss"] < train_prior(quick(steps=1, learning_rate=1e-9), tmp_path / "scratch")["loss"]


def test_half_precision_trains_to_the_same_loss(runs: dict[str, Path], tmp_path: Path) -> None:
    half = train_prior(quick(precision="bf16"), tmp_path / "half")
    whole = json.loads((runs["multi-view"] / "result.json").read_text())
    assert half["loss"] == pytest.approx(whole["loss"], rel=0.02)
    assert half["loss"] != whole["loss"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batch-size", "30"], "batch_size=30 is no multiple of the 4 views of an object"),
        (["--batch-size", "12"], "chunk=4096 is no multiple of batch_size=12"),
        (["--chunk", "8"], "--chunk is no flag: chunk is set in the YAML file"),
        (["--variant", "flat"], "flat"),
        (["--steps", "0"], "greater than or equal to 1"),
    ],
)
def test_wrong_usage(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["train-prior", "--out", str(tmp_path / "run"), *flags]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.splitlines()) <= 3
    assert not (tmp_path / "run").exists()


def two_processes(variant: str, out: Path) -> dict[str, object]:
    # A device that is not named, too: processes find each other.
    return train_prior(quick(variant, device="auto"), out)


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU auto is the GPU, and rounds otherwise")
@pytest.mark.parametrize("variant", ["multi-view", pytest.param("camera-free", marks=pytest.mark.slow)])
def test_two_processes_equal_one(runs: dict[str, Path], variant: str, tmp_path: Path) -> None:
    first, second = run_ranks(two_processes, 2, variant, tmp_path / "two", timeout=240.0)
    assert first == second
    logs = [read(folder / "metrics.jsonl") for folder in (runs[variant], tmp_path / "two")]
    for one, two in zip(*logs, strict=True):
        assert (two["step"], two["loss"]) == (one["step"], pytest.approx(one["loss"], rel=1e-4))
        assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-3)
    # What the nets answer, and not their weights: a bias in front of a norm changes nothing and is left to rounding.
    x = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    answers = []
    for folder in (runs[variant], tmp_path / "two"):
        prior = open_prior(folder / "pipeline")
        condition = prior.condition(prior.encode_text("a red mug"), turntable(4))
        answers.append(prior.predict_noise(x, 0.5, condition, 1.0))
    torch.testing.assert_close(answers[1], answers[0], rtol=0, atol=2e-3)
    assert (tmp_path / "two" / "report.html").is_file()


def odd_batch(out: Path) -> bool:
    with pytest.raises(
        ConfigError, match=r"batch of 1 objects cannot be shared evenly by 2 .* multiple of 8"
    ):
        train_prior(quick(batch_size=4), out)
    return True


def test_a_batch_that_two_processes_cannot_share_is_refused(tmp_path: Path) -> None:
    assert run_ranks(odd_batch, 2, tmp_path / "run", timeout=240.0) == [True, True]
    assert not (tmp_path / "run").exists()


def test_sizes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="size is 30; with 3 levels it must be a multiple of 4"):
        build_pipeline(WORDS, False, size=30)
    with pytest.raises(ValueError, match=r"channels are \(20, 32\).*multiples of 8"):
        build_pipeline(WORDS, False, channels=(20, 32))
