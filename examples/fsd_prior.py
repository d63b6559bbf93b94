"""Your own diffusion model: any diffusers pipeline in a folder. Here one with fresh weights, so it knows nothing yet.

python examples/fsd_prior.py [STEPS]
"""

import sys
from pathlib import Path

import fsd
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 20
folder = Path("tiny-stable-diffusion")

# Stands for a model that you trained or downloaded; leave this block out if you have one.
torch.manual_seed(0)
letters = [*"abcdefghijklmnopqrstuvwxyz", *(f"{letter}</w>" for letter in "abcdefghijklmnopqrstuvwxyz,")]
words = {word: n for n, word in enumerate(["<|startoftext|>", "<|endoftext|>", *letters])}
text = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
tokens = {"vocab_size": len(words), "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
StableDiffusionPipeline(
    tokenizer=CLIPTokenizer(vocab=words, merges=[], model_max_length=77),
    text_encoder=CLIPTextModel(CLIPTextConfig(**text, **tokens)),
    vae=AutoencoderKL(block_out_channels=(8,), latent_channels=4, norm_num_groups=4, sample_size=8),
    unet=UNet2DConditionModel(
        sample_size=8,
        cross_attention_dim=8,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=4,
        norm_num_groups=4,
    ),
    scheduler=DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, steps_offset=1),
    safety_checker=None,
    feature_extractor=None,
    requires_safety_checker=False,
).save_pretrained(folder)

prior = fsd.DiffusersPrior.from_pretrained(folder)  # or a hub id
guide = fsd.FlowScoreDistillation(prior, noise=fsd.WorldMapNoise(seed=0), guidance_scale=20.0)
prompt = prior.encode_text("a red mug", "blurry")
scene = fsd.grid_scene(16, samples=16)
optimizer = torch.optim.Adam(scene.parameters(), lr=0.05)
generator = torch.Generator().manual_seed(0)
for step in range(steps):
    cameras = fsd.cameras.orbit(batch=2, generator=generator)
    view = scene.render(cameras, size=prior.image_size)
    out = guide(view.image, prompt, cameras, progress=step / steps, opacity=view.opacity)
    optimizer.zero_grad()
    out.loss.backward()
    optimizer.step()
print(f"latents {prior.latent_shape}, {prior.calls} calls of the network, last t {out.t:.2f}")
