"""Every family of pipelines, tiny and random, saved and loaded as a real model is."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_pipelines
import torch
from fsd.build import try_prior
from fsd.cameras import place, turntable
from fsd.config import GenerateConfig
from fsd.guidance import InversionScoreDistillation
from fsd.priors.base import Prior
from fsd.priors.diffusers import DiffusersPrior
from fsd.priors.families import pack, unpack
from fsd.priors.loading import load_pipeline
from fsd.priors.prediction import to_noise
from fsd.sampling import ddim
from tiny_pipelines import FAMILIES, tiny_deepfloyd, tiny_flux, tiny_stable_diffusion
from torch import Tensor

GUIDED = [name for name in FAMILIES if name != "flux"]
ROOMY = {"pixart-alpha": 16, "flux": 16}  # their own size is that of a large model
Load = Callable[..., DiffusersPrior]


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("pipelines")

    def save(name: str) -> Path:
        place = folder / name
        return place if place.exists() else FAMILIES[name](place)

    return save


@pytest.fixture(scope="session")
def load(saved: Callable[[str], Path]) -> Load:
    def loaded(name: str, **settings: Any) -> DiffusersPrior:
        return DiffusersPrior.from_pretrained(saved(name), **{"image_size": ROOMY.get(name), **settings})

    return loaded


def noisy(prior: Prior, count: int = 2) -> Tensor:
    return torch.randn(count, *prior.latent_shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_gives_noise_of_the_shape_of_its_latents_and_takes_a_gradient(name: str, load: Load) -> None:
    prior = load(name)
    side = 8 if name == "deepfloyd" else 16
    assert prior.image_size == side
    assert prior.latent_shape == ((3 if name == "deepfloyd" else 4), 8, 8)
    cameras = turntable(3)
    image = torch.rand(3, 3, 24, 24, requires_grad=True)
    latents = prior.encode_image(image)
    assert latents.shape == (3, *prior.latent_shape)
    latents.sum().backward()
    assert image.grad is not None
    assert image.grad.abs().amin(dim=1).count_nonzero() == image[:, 0].numel()
    condition = prior.condition(prior.encode_text("a red mug"), cameras)
    noise = prior.predict_noise(latents, 0.5, condition, 3.0)
    assert noise.shape == latents.shape
    assert not noise.requires_grad
    assert torch.isfinite(noise).all()
    assert prior.calls == 1


@pytest.mark.parametrize(
    ("name", "negative"), [*((name, "") for name in FAMILIES), *((name, "blur") for name in GUIDED)]
)
# diffusers 0.42's Euler schedule makes a numpy array of a tensor in a way that numpy 2 is leaving.
@pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)
def test_the_network_is_told_what_the_pipeline_itself_tells_it(name: str, negative: str, load: Load) -> None:
    prior = load(name, view_words=False)
    seen = second_call(prior, name, negative)
    t = seen["timestep"] / 1000
    alpha, sigma = prior.alpha_sigma(t)
    channels = prior.latent_shape[0]
    x, out = seen["x"], seen["out"]
    if name == "flux":
        x, out = unpack(x, 8, 8), unpack(out, 8, 8)
        expected = x + alpha * out
    else:
        x = x.chunk(2)[0]
        base, prompt = out[:, :channels].chunk(2)
        guided = base + 5.0 * (prompt - base)
        expected = x + alpha * guided if name == "sd3" else guided
    condition = prior.condition(prior.encode_text("a red mug", negative), turntable(1))
    noise = prior.predict_noise(x, t, condition, 5.0)
    torch.testing.assert_close(noise, expected, rtol=1e-4, atol=1e-5)
    assert sigma > 0


def second_call(prior: DiffusersPrior, name: str, negative: str) -> dict[str, Any]:
    """What the network was given and gave in the second step of diffusers' own sampling."""
    seen: list[dict[str, Any]] = []

    def watch(net: Any, args: Any, kwargs: Any, out: Any) -> None:
        x = args[0] if args else kwargs["hidden_states"]
        timestep = torch.as_tensor(kwargs["timestep"] if "timestep" in kwargs else args[1])
        scale = 1000 if name == "flux" else 1
        seen.append({"x": x.clone(), "timestep": scale * timestep.flatten()[0].item(), "out": out[0].clone()})

    handle = prior.net.register_forward_hook(watch, with_kwargs=True)
    prior.pipeline.set_progress_bar_config(disable=True)
    side = prior.image_size
    settings: dict[str, Any] = {"height": side, "width": side, "output_type": "latent", "guidance_scale": 5.0}
    if negative:
        settings["negative_prompt"] = negative
    if name.startswith("pixart"):
        settings["use_resolution_binning"] = False
    if name == "deepfloyd":
        settings["output_type"] = "pt"
    generator = torch.Generator().manual_seed(0)
    prior.pipeline("a red mug", num_inference_steps=3, generator=generator, **settings)
    handle.remove()
    return seen[1]


@pytest.mark.parametrize("name", GUIDED)
def test_guidance_is_one_line_through_prompt_and_negative_prompt(name: str, load: Load) -> None:
    prior = load(name)
    x, cameras = noisy(prior), turntable(2)
    condition = prior.condition(prior.encode_text("a red mug", "blur"), cameras)
    sizes: list[int] = []
    prior.net.register_forward_hook(
        lambda net, args, kwargs, out: sizes.append(len(out[0])), with_kwargs=True
    )
    none, one, some = (prior.predict_noise(x, 0.5, condition, scale) for scale in (0.0, 1.0, 7.5))
    # One half of the work at 0 and 1.
    assert sizes == [2, 2, 4]
    assert (one - none).abs().max() > 1e-6
    torch.testing.assert_close(some, none + 7.5 * (one - none), rtol=1e-4, atol=1e-5)
    assert prior.calls == 3


def test_every_view_gets_its_words(load: Load) -> None:
    prior = load("stable-diffusion")
    prompt = prior.encode_text("a mug", "blur")
    cameras = place([0.0, 90.0, 180.0, 270.0, 10.0], [15.0, 15.0, 15.0, 15.0, 80.0])
    rows = prior.condition(prompt, cameras).positive["text"]
    plain = load("stable-diffusion", view_words=False)
    for row, view in zip(rows, ["front", "side", "back", "side", "overhead"], strict=True):
        expected = plain.encode_text(f"a mug, {view} view")
        torch.testing.assert_close(row, plain.condition(expected, turntable(1)).positive["text"][0])
    without = plain.condition(plain.encode_text("a mug"), cameras).positive["text"]
    torch.testing.assert_close(without, without[:1].expand_as(without))


@pytest.mark.parametrize("name", FAMILIES)
def test_text_is_encoded_once_and_its_encoder_can_go(name: str, load: Load) -> None:
    prior = load(name)
    prompt = prior.encode_text("a red mug")
    before = prior.predict_noise(noisy(prior), 0.5, prior.condition(prompt, turntable(2)), 2.0)
    prior.free_text_encoder()
    assert prior.encode_text("a red mug") is prompt
    again = prior.predict_noise(noisy(prior), 0.5, prior.condition(prompt, turntable(2)), 2.0)
    assert torch.equal(before, again)
    assert not [part for part in prior.pipeline.components.values() if "Text" in type(part).__name__]
    with pytest.raises(ValueError, match=r"the text encoder was freed.*load the prior again"):
        prior.encode_text("a blue mug")


def test_no_network_learns(load: Load) -> None:
    prior = load("sdxl")
    modules = [part for part in prior.pipeline.components.values() if isinstance(part, torch.nn.Module)]
    assert len(modules) == 4
    assert not any(p.requires_grad or module.training for module in modules for p in module.parameters())


@pytest.mark.parametrize("name", FAMILIES)
def test_float64_stays_float64(name: str, load: Load) -> None:
    prior = load(name).to(dtype=torch.float64)
    condition = prior.condition(prior.encode_text("a red mug"), turntable(2))
    wide = prior.predict_noise(noisy(prior).double(), 0.5, condition, 3.0)
    assert wide.dtype == torch.float64
    assert prior.encode_image(torch.rand(1, 3, 16, 16, dtype=torch.float64)).dtype == torch.float64
    single = load(name)
    condition = single.condition(single.encode_text("a red mug"), turntable(2))
    narrow = single.predict_noise(noisy(single), 0.5, condition, 3.0)
    torch.testing.assert_close(wide.float(), narrow, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["stable-diffusion", "pixart-sigma", "sd3"])
def test_bf16_gives_noise_in_float32(name: str, load: Load) -> None:
    prior = load(name, precision="bf16")
    assert prior.net.dtype == torch.bfloat16
    condition = prior.condition(prior.encode_text("a red mug"), turntable(2))
    x = noisy(prior)
    noise = prior.predict_noise(x, 0.5, condition, 1.0)
    assert noise.dtype == torch.float32
    exact = load(name)
    condition = exact.condition(exact.encode_text("a red mug"), turntable(2))
    difference = noise - exact.predict_noise(x, 0.5, condition, 1.0)
    assert difference.square().mean().sqrt() < 0.05


def test_saving_memory_changes_nothing(load: Load) -> None:
    image = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    results = []
    for settings in ({}, {"slicing": True}, {"offload": True}):
        prior = load("stable-diffusion", **settings)
        condition = prior.condition(prior.encode_text("a red mug"), turntable(2))
        results.append(prior.predict_noise(prior.encode_image(image), 0.5, condition, 3.0))
    assert any(hasattr(module, "_diffusers_hook") for module in prior.net.modules())
    for result in results[1:]:
        # Sums in another order; the noise itself is of size 1.
        torch.testing.assert_close(result, results[0], rtol=1e-3, atol=2e-4)


def test_slices_of_the_vae_are_single_images(load: Load) -> None:
    prior = load("stable-diffusion", slicing=True)
    sizes: list[int] = []
    prior.vae.encoder.register_forward_hook(lambda net, args, out: sizes.append(len(out)))
    prior.encode_image(torch.rand(3, 3, 16, 16))
    assert sizes == [1, 1, 1]


def test_latents_are_the_posteriors_mean_scaled_and_shifted(load: Load) -> None:
    prior = load("sd3")
    image = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        mean = prior.vae.encode(image * 2 - 1).latent_dist.mean
    torch.testing.assert_close(prior.encode_image(image), (mean - 0.06) * 1.5)
    # The inverse of what the pipeline does before it decodes.
    latents = prior.encode_image(image)
    torch.testing.assert_close(latents / 1.5 + 0.06, mean)


def test_a_sampled_posterior_goes_on_from_its_state(load: Load) -> None:
    prior = load("stable-diffusion", posterior="sample", seed=3)
    image = torch.rand(1, 3, 16, 16)
    mean = load("stable-diffusion").encode_image(image)
    state = prior.generator.get_state()
    first, second = prior.encode_image(image), prior.encode_image(image)
    assert not torch.equal(first, second)
    other = load("stable-diffusion", posterior="sample", seed=4)
    other.generator.set_state(state)
    assert torch.equal(other.encode_image(image), first)
    draws = torch.stack([prior.encode_image(image) for _ in range(400)])
    posterior = prior.vae.encode(image * 2 - 1).latent_dist
    scale = prior.vae.config.scaling_factor
    torch.testing.assert_close(draws.mean(0), mean, rtol=0, atol=0.3 * scale * posterior.std.max().item())
    torch.testing.assert_close(draws.std(0), scale * posterior.std, rtol=0.2, atol=0)


def test_latents_with_their_own_mean_and_spread(tmp_path: Path) -> None:
    folder = tiny_pipelines.tiny_sdxl(tmp_path / "sdxl")
    config = folder / "vae" / "config.json"
    settings = json.loads(config.read_text())
    settings |= {"latents_mean": [1.0, 2.0, 3.0, 4.0], "latents_std": [2.0, 2.0, 4.0, 4.0]}
    config.write_text(json.dumps(settings))
    prior = DiffusersPrior.from_pretrained(folder)
    image = torch.rand(1, 3, 16, 16)
    latents = prior.encode_image(image)
    # As the SDXL pipeline turns them back.
    mean = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 4, 1, 1)
    std = torch.tensor([2.0, 2.0, 4.0, 4.0]).view(1, 4, 1, 1)
    torch.testing.assert_close(
        latents * std / 0.13 + mean, prior.vae.encode(image * 2 - 1).latent_dist.mean, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("t", [0.02, 0.5, 0.98])
def test_noise_and_image_of_ddims_own_step_agree(prediction: str, t: float, tmp_path: Path) -> None:
    folder = tiny_stable_diffusion(tmp_path / "sd", prediction_type=prediction)
    prior = DiffusersPrior.from_pretrained(folder)
    scheduler = prior.pipeline.scheduler
    scheduler.set_timesteps(1000)
    x, out = noisy(prior).double(), noisy(prior).double().flip(0)
    clean = scheduler.step(out, round(1000 * t), x).pred_original_sample
    alpha, sigma = prior.alpha_sigma(t)
    noise = to_noise(prior.process, out, x, t)
    torch.testing.assert_close(alpha * clean + sigma * noise, x, rtol=1e-5, atol=1e-5)


def test_levels_are_the_schedulers(load: Load) -> None:
    prior = load("stable-diffusion")
    table = prior.pipeline.scheduler.alphas_cumprod.double()
    for t, index in [(1.0, 999), (0.98, 980), (0.5, 500), (0.0004, 0)]:
        alpha, sigma = prior.alpha_sigma(t)
        assert alpha == pytest.approx(table[index].sqrt().item(), rel=1e-15)
        assert alpha**2 + sigma**2 == pytest.approx(1, rel=1e-15)
    assert load("sd3").alpha_sigma(0.75) == (0.25, 0.75)


def test_packing_is_undone() -> None:
    x = torch.randn(2, 4, 6, 8)
    from diffusers import FluxPipeline

    assert torch.equal(pack(x), FluxPipeline._pack_latents(x, 2, 4, 6, 8))
    assert torch.equal(unpack(pack(x), 6, 8), x)


def test_a_view_of_any_size_is_resized_without_aliasing(load: Load) -> None:
    prior = load("deepfloyd")
    stripes = torch.zeros(1, 3, 32, 32)
    stripes[..., ::2] = 1.0
    small = prior.encode_image(stripes)
    assert small[..., 1:-1].abs().max() < 0.2
    assert prior.encode_image(torch.ones(1, 3, 4, 4)).shape == (1, 3, 8, 8)


@pytest.mark.parametrize("name", FAMILIES)
def test_prompts_that_cannot_be_taken(name: str, load: Load) -> None:
    prior = load(name)
    with pytest.raises(ValueError, match="the prompt is empty"):
        prior.encode_text("  ")
    limits = {"pixart-alpha": 120, "pixart-sigma": 300, "deepfloyd": 77, "sd3": 256, "flux": 512}
    limit = limits.get(name, 77)
    marks = 2 if limit == 77 and name != "deepfloyd" else 1
    # One letter is one token, and the view's words count: ", overhead view" has 13 letters (T5: spaces too).
    with pytest.raises(
        ValueError, match=rf"tokens, and the text encoder of this .* reads {limit} .*shorten it"
    ):
        prior.encode_text("a" * (limit - marks + 1))
    with pytest.raises(ValueError, match=r", \w+ view' has .* tokens"):
        prior.encode_text("a" * (limit - marks - 12))
    prior.encode_text("a" * (limit - marks - 18))
    if name != "flux":
        with pytest.raises(ValueError, match=r"b' has 60. tokens"):
            prior.encode_text("a mug", "b" * 600)


def test_flux_says_what_it_cannot_do(tmp_path: Path, load: Load) -> None:
    prior = load("flux")
    with pytest.raises(ValueError, match=r"guidance-distilled and takes no negative prompt.*leave it empty"):
        prior.encode_text("a mug", "blur")
    condition = prior.condition(prior.encode_text("a mug"), turntable(2))
    with pytest.raises(ValueError, match=r"guidance_scale is 0.*use a positive scale"):
        prior.predict_noise(noisy(prior), 0.5, condition, 0.0)
    weak, strong = (prior.predict_noise(noisy(prior), 0.5, condition, scale) for scale in (1.0, 4.0))
    assert not torch.equal(weak, strong)
    schnell = DiffusersPrior.from_pretrained(tiny_flux(tmp_path / "f", guidance_embeds=False), image_size=16)
    condition = schnell.condition(schnell.encode_text("a mug"), turntable(2))
    assert schnell.predict_noise(noisy(schnell), 0.5, condition, 1.0).shape == (2, 4, 8, 8)
    with pytest.raises(ValueError, match=r"guidance_scale is 3\.5.*use 1, or another family"):
        schnell.predict_noise(noisy(schnell), 0.5, condition, 3.5)
    with pytest.raises(ValueError, match="Perp-Neg needs negative prompts of views, and Flux"):
        load("flux", perp_neg=True)


def test_folders_that_are_no_pipeline(tmp_path: Path, saved: Callable[[str], Path]) -> None:
    with pytest.raises(ValueError, match=r"it has no model_index\.json\. A pipeline folder holds"):
        load_pipeline(tmp_path)
    index = tmp_path / "model_index.json"
    index.write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        load_pipeline(tmp_path)
    index.write_text("{}")
    with pytest.raises(ValueError, match="names no pipeline class"):
        load_pipeline(tmp_path)
    with pytest.raises(ValueError, match=r"is a file; give the folder.*from_single_file"):
        load_pipeline(index)
    with pytest.raises(FileNotFoundError, match="does not exist; give the folder of a pipeline, or an id"):
        load_pipeline(tmp_path / "nothing")
    index.write_text(json.dumps({"_class_name": "StableVideoDiffusionPipeline"}))
    with pytest.raises(ValueError, match=r"holds a StableVideoDiffusionPipeline; .*SDXL|XLPipeline"):
        load_pipeline(tmp_path)
    broken = tmp_path / "broken"
    shutil.copytree(saved("stable-diffusion"), broken)
    shutil.rmtree(broken / "unet")
    with pytest.raises(OSError, match="is incomplete or cannot be read"):
        load_pipeline(broken)


# diffusers 0.42 passes an argument that huggingface_hub 2 has stopped to read.
@pytest.mark.filterwarnings("ignore:The `local_dir_use_symlinks` argument:UserWarning")
def test_a_model_that_is_gone_or_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match=r"cannot load nobody/nothing .*Give the folder.*no longer there"):
        load_pipeline("nobody/nothing")


def test_precision_and_posterior(load: Load) -> None:
    with pytest.raises(ValueError, match="precision fp16 does not run on a CPU; use fp32, or bf16"):
        load("stable-diffusion", precision="fp16")
    with pytest.raises(ValueError, match="choose one of fp32, fp16, bf16"):
        load("stable-diffusion", precision="fp8")
    with pytest.raises(ValueError, match="choose 'mode' or 'sample'"):
        load("stable-diffusion", posterior="mean")
    with pytest.raises(ValueError, match="view_words is False"):
        load("stable-diffusion", view_words=False, perp_neg=True)
    with pytest.raises(ValueError, match="image_size is 15; it must be a multiple of 2"):
        load("stable-diffusion", image_size=15)


def test_schedules_that_cannot_be_used(tmp_path: Path, load: Load) -> None:
    from diffusers import EDMEulerScheduler

    pipeline = load("stable-diffusion").pipeline
    pipeline.scheduler = EDMEulerScheduler()
    with pytest.raises(ValueError, match=r"EDMEulerScheduler has no alphas_cumprod.*DDIMScheduler"):
        DiffusersPrior(pipeline)
    pipeline.scheduler = tiny_pipelines.ddim(prediction_type="noise")
    with pytest.raises(ValueError, match="prediction_type='noise'; it must be one of epsilon, v_prediction"):
        DiffusersPrior(pipeline)
    pipeline.scheduler = tiny_pipelines.ddim(rescale_betas_zero_snr=True, prediction_type="v_prediction")
    prior = DiffusersPrior(pipeline)
    assert prior.alpha_sigma(0.98)[0] > 0
    with pytest.raises(ValueError, match=r"at t = 1 nothing of the image is left.*start below it"):
        prior.alpha_sigma(1.0)
    with pytest.raises(ValueError, match="nothing of the image is left"):
        load("sd3").alpha_sigma(1.0)
    with pytest.raises(ValueError, match="t is 0"):
        prior.alpha_sigma(0.0)


def test_networks_of_other_jobs(tmp_path: Path, load: Load) -> None:
    inpainting = tiny_stable_diffusion(tmp_path / "inpaint", {"in_channels": 9})
    with pytest.raises(ValueError, match=r"takes 9 channels where 4 are denoised.*inpainting"):
        DiffusersPrior.from_pretrained(inpainting)
    with pytest.raises(ValueError, match=r"takes 6 channels where 3 are denoised.*stage I of DeepFloyd-IF"):
        DiffusersPrior.from_pretrained(tiny_deepfloyd(tmp_path / "second", in_channels=6))
    consistency = tiny_stable_diffusion(tmp_path / "lcm", {"time_cond_proj_dim": 8})
    with pytest.raises(ValueError, match="latent consistency model"):
        DiffusersPrior.from_pretrained(consistency)
    with pytest.raises(ValueError, match="str is no pipeline that can be distilled here"):
        DiffusersPrior("runs/model")


def test_numbers_that_are_not_finite_are_reported_by_whoever_uses_them(load: Load) -> None:
    """Once for all passes of a step or a sample: to look at each would make the CPU wait for the device at each."""
    prior = load("stable-diffusion")
    torch.nn.init.constant_(prior.net.conv_out.bias, float("nan"))
    prompt, cameras = prior.encode_text("a mug"), turntable(2)
    assert prior.predict_noise(noisy(prior), 0.5, prior.condition(prompt, cameras), 2.0).isnan().all()
    with pytest.raises(FloatingPointError, match="DiffusersPrior gave numbers that are not finite"):
        ddim(prior, prior.condition(prompt, cameras), noisy(prior), steps=2)
    guide = InversionScoreDistillation(prior, guidance_scale=2.0)
    with pytest.raises(FloatingPointError, match=r"not finite at t=0.*precision fp32 or bf16"):
        guide(torch.rand(2, 3, 16, 16), prompt, cameras, 0.5)
    config = GenerateConfig(prompts=("a mug",), size=16)
    with pytest.raises(ValueError, match="cannot be used: it gave numbers that are not finite"):
        try_prior(config, prior, torch.device("cpu"))
