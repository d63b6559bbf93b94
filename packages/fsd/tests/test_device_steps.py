"""Whole steps of `fsd generate` and `fsd train-prior` on a stand-in for a GPU, with networks of diffusers."""

import copy
import json

import pytest
import torch
from fsd.build import build_guidance, build_scene, negative_of, optimizer_for
from fsd.config import GenerateConfig
from fsd.prior_config import PriorConfig, tiny
from fsd.prior_step import Learner, noised
from fsd.prior_step import take_step as prior_step
from fsd.priors.diffusers import DiffusersPrior
from fsd.priors.multiview import MultiViewPrior, join_views, open_prior
from fsd.priors.pixel_pipeline import build_pipeline
from fsd.step import gradient_norm, loss_parts, take_step
from fsd.world.captions import vocabulary
from shared_core.run.guard import FiniteGuard
from shared_core.run.metrics import MetricsLog
from shared_core.run.processes import join
from shared_core.testing import pretend_device
from tiny_pipelines import FAMILIES, tiny_multi_view, tiny_stable_diffusion
from torch import nn

META = torch.device("meta")
FINITE, COUNT = "is the step finite?", "how many samples lie in occupied cells?"
CONFIG = {
    "prompts": ["a mug"], "steps": 8, "size": 16, "batch_size": 4, "later": None,
    "field": {"resolution": 8, "samples": 4, "occupancy": 4, "background": "learned", "shading": True},
    "regularizers": {"sparsity": 0.1, "opaque": 0.1}, "optim": {"clip_norm": 1.0},
}  # fmt: skip


def on_the_device(prior):
    """The prior, with a prompt that it has encoded on the CPU."""
    encoded = prior.encode_text("a mug")
    getattr(prior, "single", prior).to(META)
    return prior, encoded


def two_steps(prior, encoded, method, policy="error", **settings):
    config = GenerateConfig.model_validate({**CONFIG, "guidance": [method], **settings})
    scene, guide = build_scene(config, 0).to(META), build_guidance(config, prior, method, 0).to(META)
    optimizer, guard = optimizer_for(config, scene), FiniteGuard(policy)
    views, rays = torch.Generator(), torch.Generator()
    with pretend_device() as reasons:
        for step in (0, 7):
            taken = take_step(config, step, scene, guide, optimizer, encoded, views, rays, guard)
            assert taken is not None
            assert taken.loss.is_meta
    assert all(p.grad is not None and p.grad.is_meta for p in scene.parameters())
    return reasons


@pytest.mark.parametrize("policy", ["error", "skip"])
@pytest.mark.parametrize("method", ["sds", "sds-annealed", "fsd", "cfd", "sdi", "ism", "csd", "nfsd", "vsd"])
def test_a_step_of_an_object_waits_once_and_once_for_its_samples(method, policy, tmp_path):
    if method == "vsd":
        pytest.importorskip("peft", reason="needs the extra vsd")
    prior = open_prior(tiny_stable_diffusion(tmp_path), posterior="sample")
    prior.encode_text("ugly")
    negative = {"negative_prompt": "ugly"} if method == "nfsd" else {}
    assert two_steps(*on_the_device(prior), method, policy, **negative) == [COUNT, FINITE] * 2


def test_a_step_without_an_occupancy_grid_waits_once(tmp_path):
    prior = open_prior(tiny_stable_diffusion(tmp_path))
    field = {"resolution": 8, "samples": 4, "fine_samples": 4, "occupancy": 0}
    assert two_steps(*on_the_device(prior), "sdi", field=field) == [FINITE] * 2


@pytest.mark.parametrize("method", ["fsd", "vsd"])
def test_four_views_of_an_object_wait_no_more(method, tmp_path):
    if method == "vsd":
        pytest.importorskip("peft", reason="needs the extra vsd")
    prior = open_prior(tiny_multi_view(tmp_path))
    assert isinstance(prior, MultiViewPrior)
    assert two_steps(*on_the_device(prior), method) == [COUNT, FINITE] * 2


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "stable-diffusion"])
def test_no_family_of_pipelines_is_read(family, tmp_path):
    size = {"pixart-alpha": 16, "flux": 16}.get(family)
    prior = DiffusersPrior.from_pretrained(FAMILIES[family](tmp_path), image_size=size)
    reasons = two_steps(*on_the_device(prior), "sds", size=prior.image_size)
    assert reasons == [COUNT, FINITE] * 2


def test_perp_neg_reads_nothing(tmp_path):
    prior = open_prior(tiny_stable_diffusion(tmp_path), perp_neg=True)
    assert two_steps(*on_the_device(prior), "fsd") == [COUNT, FINITE] * 2


def test_a_line_of_the_log_is_one_more_read(tmp_path):
    config = GenerateConfig.model_validate({**CONFIG, "guidance": ["sds"]})
    prior, encoded = on_the_device(open_prior(tiny_stable_diffusion(tmp_path)))
    scene, guide = build_scene(config, 0).to(META), build_guidance(config, prior, "sds", 0).to(META)
    views, rays = torch.Generator(), torch.Generator()
    with pretend_device() as reasons, MetricsLog(tmp_path / "metrics.jsonl") as log:
        taken = take_step(
            config, 0, scene, guide, optimizer_for(config, scene), encoded, views, rays, FiniteGuard()
        )
        parts, opacity = loss_parts(taken), taken.view.opacity.mean()
        log.log(1, loss=taken.loss, parts=parts, grad_norm=gradient_norm(scene), opacity=opacity)
    assert reasons == [COUNT, FINITE, "numbers for the log"]
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["loss"] == 0.0


@pytest.mark.parametrize("variant", ["multi-view", "camera-free"])
@pytest.mark.parametrize("policy", ["error", "skip"])
def test_a_step_of_train_prior_waits_once(variant, policy):
    config = PriorConfig.model_validate({**tiny().model_dump(), "size": 16, "variant": variant})
    pipeline = build_pipeline([*vocabulary(), ","], config.views > 1, config.channels, 1, 8, 16)
    if config.views > 1:
        join_views(pipeline.unet, config.views)
    nets = nn.ModuleDict({"unet": pipeline.unet, "text_encoder": pipeline.text_encoder}).to(META)
    accelerator = join("cpu")
    optimizer = accelerator.prepare(torch.optim.AdamW(nets.parameters(), 1e-3))
    learner = Learner(nets, copy.deepcopy(nets), optimizer, accelerator, FiniteGuard(policy))
    kept, generator = pipeline.scheduler.alphas_cumprod, torch.Generator()
    with pretend_device() as reasons:
        for step in range(2):
            cameras = torch.randn(8, 16) if config.views > 1 else None
            batch = noised(torch.rand(8, 3, 16, 16), cameras, kept, config.views, generator)
            captions = torch.ones(8, 5, dtype=torch.long).to(META)
            taken = prior_step(learner, batch.to(slice(0, 8), META), captions, step, config)
            assert taken is not None
            assert taken.gradient_norm.is_meta
    assert reasons == [FINITE] * 2


def test_a_prompt_is_encoded_before_the_steps(tmp_path):
    """The stand-in has no text encoder on the device: a step must not want one."""
    prior, encoded = on_the_device(open_prior(tiny_stable_diffusion(tmp_path)))
    prior.free_text_encoder()
    assert negative_of(GenerateConfig.model_validate(CONFIG), "sds") == ""
    assert two_steps(prior, encoded, "sds") == [COUNT, FINITE] * 2
