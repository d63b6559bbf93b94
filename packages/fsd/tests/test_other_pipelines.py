"""Pipeline folders as other people have them: variants, tokenizers without a length, tiny or absent autoencoders."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsd
import pytest
import torch
from fsd.build import try_prior
from fsd.cameras import turntable
from fsd.config import GenerateConfig
from fsd.priors.diffusers import DiffusersPrior
from fsd.priors.loading import load_pipeline, variants_in
from tiny_pipelines import FAMILIES, tiny_sdxl, tiny_stable_diffusion

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_stable_diffusion(tmp_path_factory.mktemp("pipelines") / "sd")


@pytest.fixture
def pipeline(folder: Path) -> Any:
    return load_pipeline(folder)


def tiny_vae(**settings: Any) -> Any:
    from diffusers import AutoencoderTiny

    return AutoencoderTiny(
        encoder_block_out_channels=(4, 4),
        decoder_block_out_channels=(4, 4),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
        **settings,
    )


def noise_of(prior: DiffusersPrior) -> torch.Tensor:
    x = torch.randn(2, *prior.latent_shape, generator=torch.Generator().manual_seed(1))
    return prior.predict_noise(x, 0.5, prior.condition(prior.encode_text("a mug"), turntable(2)), 2.0)


@pytest.mark.parametrize("variant", ["fp16", "bf16", "ema"])
@pytest.mark.parametrize("sharded", [False, True])
def test_a_folder_that_holds_one_variant_loads(
    folder: Path, tmp_path: Path, variant: str, sharded: bool
) -> None:
    settings = {"max_shard_size": "20KB"} if sharded else {}
    load_pipeline(folder).save_pretrained(tmp_path / "one", variant=variant, **settings)
    assert variants_in(tmp_path / "one") == [variant]
    found = DiffusersPrior.from_pretrained(tmp_path / "one")
    assert torch.equal(noise_of(found), noise_of(DiffusersPrior.from_pretrained(folder)))


def test_parts_with_and_without_a_variant(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "mixed")
    place = tmp_path / "mixed" / "unet"
    (place / "diffusion_pytorch_model.safetensors").rename(place / "diffusion_pytorch_model.fp16.safetensors")
    found = DiffusersPrior.from_pretrained(tmp_path / "mixed")
    assert torch.equal(noise_of(found), noise_of(DiffusersPrior.from_pretrained(folder)))


def test_pickled_weights_load(folder: Path, tmp_path: Path) -> None:
    load_pipeline(folder).save_pretrained(tmp_path / "bin", safe_serialization=False)
    found = DiffusersPrior.from_pretrained(tmp_path / "bin")
    assert torch.equal(noise_of(found), noise_of(DiffusersPrior.from_pretrained(folder)))


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
@pytest.mark.parametrize("damage", ["absent", "cut", "other"])
def test_missing_and_damaged_weights_are_named(folder: Path, tmp_path: Path, part: str, damage: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (file,) = (copy / part).glob("*.safetensors")
    if damage == "absent":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:200])
    else:
        file.write_bytes(b"<html>Not found</html>" * 20)
    with pytest.raises(OSError, match="is incomplete or cannot be read") as caught:
        DiffusersPrior.from_pretrained(copy)
    assert "\n" not in str(caught.value)


def spoil(file: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(file)
    change(weights)
    save_file(weights, file, {"format": "pt"})


def lose_the_first(weights: dict[str, torch.Tensor]) -> None:
    del weights[next(iter(weights))]


def parts_of(name: str) -> list[str]:
    """The parts with weights of each family."""
    encoders = {"sdxl": 2, "sd3": 3, "flux": 2}.get(name, 1)
    net = "transformer" if name.startswith(("pixart", "sd3", "flux")) else "unet"
    texts = ["text_encoder", *(f"text_encoder_{number}" for number in range(2, encoders + 1))]
    return [net, *texts] + (["vae"] if name != "deepfloyd" else [])


@pytest.mark.parametrize("name", FAMILIES)
def test_weights_are_whole_or_refused_by_name(name: str, tmp_path: Path) -> None:
    FAMILIES[name](tmp_path / "whole")
    for part in parts_of(name):
        copy = tmp_path / part
        shutil.copytree(tmp_path / "whole", copy)
        (file,) = (copy / part).glob("*.safetensors")
        gone: list[str] = []

        def without_the_largest(weights: dict[str, torch.Tensor], gone: list[str] = gone) -> None:
            # An embedding of words is the largest of T5, and tied: its other name is in no file.
            gone.append(max(weights, key=lambda key: (weights[key].numel(), key)))
            del weights[gone[0]]

        spoil(file, without_the_largest)
        with pytest.raises(OSError, match=f"incomplete.*{part}") as caught:
            DiffusersPrior.from_pretrained(copy)
        assert gone[0] in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_weights_of_another_shape_are_refused_by_name(folder: Path, tmp_path: Path, part: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (file,) = (copy / part).glob("*.safetensors")
    gone: list[str] = []

    def narrower(weights: dict[str, torch.Tensor]) -> None:
        gone.append(next(key for key in weights if key.endswith("weight") and weights[key].dim() > 1))
        weights[gone[0]] = weights[gone[0]][:, :1].contiguous()

    spoil(file, narrower)
    with pytest.raises(OSError, match=r"incomplete") as caught:
        DiffusersPrior.from_pretrained(copy)
    assert gone[0] in str(caught.value)


def test_a_text_encoder_in_shards_and_one_variant(folder: Path, tmp_path: Path) -> None:
    load_pipeline(folder).save_pretrained(tmp_path / "one", variant="fp16", max_shard_size="4KB")
    shards = sorted((tmp_path / "one" / "text_encoder").glob("*.safetensors"))
    assert len(shards) > 1
    spoil(shards[0], lose_the_first)
    with pytest.raises(OSError, match="incomplete"):
        DiffusersPrior.from_pretrained(tmp_path / "one")


def test_another_variant_does_not_stand_in_for_missing_weights(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    load_pipeline(folder).save_pretrained(copy, variant="ema")
    spoil(copy / "text_encoder" / "model.safetensors", lose_the_first)
    with pytest.raises(OSError, match=r"copy is incomplete: the files of its text_encoder hold no numbers"):
        DiffusersPrior.from_pretrained(copy)


def test_from_the_hub_too(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    asked: list[Any] = []

    def download(path: str, variant: str | None = None, **settings: Any) -> str:
        asked.append((path, variant, settings["safety_checker"]))
        return str(copy)

    copy = tmp_path / "cache"
    shutil.copytree(folder, copy)
    config = DiffusionPipeline.load_config(folder)
    monkeypatch.setattr(DiffusionPipeline, "load_config", lambda path: config)
    monkeypatch.setattr(DiffusionPipeline, "download", download)
    found = DiffusersPrior.from_pretrained("owner/name")
    assert torch.equal(noise_of(found), noise_of(DiffusersPrior.from_pretrained(folder)))
    assert asked == [("owner/name", None, None)]
    (file,) = (copy / "text_encoder").glob("*.safetensors")
    spoil(file, lose_the_first)
    with pytest.raises(OSError, match="text_encoder hold no numbers"):
        DiffusersPrior.from_pretrained("owner/name")


@pytest.mark.parametrize("name", FAMILIES)
def test_tokenizers_without_a_length(name: str, tmp_path: Path) -> None:
    def prompt(edit: Callable[[Any], None]) -> Any:
        pipeline = load_pipeline(tmp_path / name)
        edit(pipeline)
        prior = DiffusersPrior(pipeline)
        rows = prior.encode_text("a mug").rows
        return pipeline, rows

    FAMILIES[name](tmp_path / name)
    plain, wanted = prompt(lambda pipeline: None)
    tokenizers = [part for part in plain.components if part.startswith("tokenizer")]

    def forget(pipeline: Any) -> None:
        for part in tokenizers:
            getattr(pipeline, part).model_max_length = int(1e30)
        if hasattr(pipeline, "tokenizer_max_length"):
            pipeline.tokenizer_max_length = int(1e30)

    pipeline, found = prompt(forget)
    for key, rows in wanted.items():
        assert torch.equal(rows, found[key])
    # The user's pipeline is as it was.
    assert all(getattr(pipeline, part).model_max_length == int(1e30) for part in tokenizers)
    assert getattr(pipeline, "tokenizer_max_length", int(1e30)) == int(1e30)


def test_a_tokenizer_file_without_a_length(tmp_path: Path) -> None:
    place = tiny_sdxl(tmp_path / "xl")
    for name in ("tokenizer", "tokenizer_2"):
        file = place / name / "tokenizer_config.json"
        content = json.loads(file.read_text())
        content.pop("model_max_length", None)
        file.write_text(json.dumps(content))
    prior = DiffusersPrior.from_pretrained(place)
    assert prior.pipeline.tokenizer.model_max_length > 10**6
    assert prior.encode_text("a mug").rows["text"].shape[1] == 77
    with pytest.raises(ValueError, match="reads 77"):
        prior.encode_text("a mug " * 60)


def test_a_tiny_autoencoder_encodes_to_its_own_latents(pipeline: Any) -> None:
    pipeline.vae = tiny_vae()
    prior = DiffusersPrior(pipeline)
    image = torch.rand(2, 3, 16, 16).requires_grad_()
    x = prior.encode_image(image)
    assert torch.equal(x, pipeline.vae.encode(image * 2 - 1).latents)
    x.sum().backward()
    assert image.grad is not None
    assert prior.latent_shape == (4, 8, 8)
    guide = fsd.FlowScoreDistillation(prior)
    assert guide(image, prior.encode_text("a mug"), turntable(2), 0.5).loss.isfinite()
    with pytest.raises(ValueError, match="no posterior to draw from; use 'mode'"):
        DiffusersPrior(pipeline, posterior="sample")


def without(name: str) -> Callable[[Any], None]:
    return lambda pipeline: setattr(pipeline, name, None)


def vae_that_only_decodes(pipeline: Any) -> None:
    pipeline.vae.encoder = None


def vae_without_a_scale(pipeline: Any) -> None:
    from diffusers import VQModel

    pipeline.vae = VQModel(block_out_channels=(4,), latent_channels=4, norm_num_groups=2)
    pipeline.vae.register_to_config(scaling_factor=None)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (without("vae"), "the pipeline has no vae, and its network takes latents of 4 channels"),
        (without("unet"), "the pipeline has no unet; give a whole Stable Diffusion"),
        (without("scheduler"), "the pipeline has no scheduler"),
        (vae_that_only_decodes, r"the vae of the pipeline \(AutoencoderKL\) has no encoder"),
        (vae_without_a_scale, "has no scaling_factor"),
    ],
)
def test_parts_that_are_needed(edit: Callable[[Any], None], says: str, pipeline: Any) -> None:
    edit(pipeline)
    with pytest.raises(ValueError, match=says):
        DiffusersPrior(pipeline)


def test_a_tokenizer_without_its_encoder(pipeline: Any) -> None:
    pipeline.text_encoder = None
    with pytest.raises(ValueError, match="has a tokenizer and no text_encoder"):
        DiffusersPrior(pipeline).encode_text("a mug")


def test_what_fails_in_the_first_step_is_refused_before_it(pipeline: Any) -> None:
    config = GenerateConfig(prior="mine", prompts=["a mug"], batch_size=2, size=16)
    prior = DiffusersPrior(pipeline)
    try_prior(config, prior, CPU)
    before = prior.generator.get_state()
    prior.pipeline.vae.encode = lambda pixels: (pixels,)
    with pytest.raises(ValueError, match="the prior mine cannot be used: AttributeError: 'tuple'"):
        try_prior(config, prior, CPU)
    assert torch.equal(before, prior.generator.get_state())
    with pytest.raises(ValueError, match="a multiple of the views"):
        try_prior(config.model_copy(update={"views": 3}), prior, CPU)


def test_the_home_folder_everywhere(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fsd.glb import read_glb
    from fsd.mesh import write_mesh
    from fsd.objects import finished
    from fsd.texture import bake_texture, write_textured
    from fsd.turntable import to_bytes, write_video

    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(folder, tmp_path / "prior")
    assert torch.equal(
        noise_of(DiffusersPrior.from_pretrained("~/prior")), noise_of(DiffusersPrior.from_pretrained(folder))
    )
    scene = fsd.grid_scene(8, samples=8)
    scene.save("~/scene.safetensors")
    found = fsd.load_scene("~/scene.safetensors")
    found.export_mesh("~/mesh.glb", resolution=12, threshold=1.0)
    mesh = read_glb("~/mesh.glb")
    write_mesh(mesh, "~/mesh.obj")
    write_textured(bake_texture(scene, mesh, 4), "~/textured.obj")
    found.save_pretrained("~/card")
    fsd.cameras.to_json(turntable(2), "~/cameras.json", 8, 8)
    assert len(fsd.cameras.from_json("~/cameras.json")) == 2
    write_video(to_bytes(torch.zeros(2, 3, 8, 8)), "~/turn.gif")
    for name in ("scene.json", "mesh.obj", "textured.mtl", "card/config.json", "turn.gif"):
        assert (tmp_path / name).is_file(), name
    with pytest.raises(ValueError, match=r"holds no folder objects/"):
        finished("~/")
