# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # Flow score distillation in a notebook
#
# Text to 3D where every seed gives another object. On Colab choose a GPU (Runtime, Change runtime type) and run the
# next cell; elsewhere leave it out if fsd is installed.

# %%
# %pip install -q fsd

# %%
import os

import fsd
import matplotlib.pyplot as plt
import torch

steps = int(os.environ.get("STEPS", "150"))

# %% [markdown]
# The prior here is the render bank: the exact denoiser of pictures of 64 small objects, so that nothing is downloaded
# and the truth is known. With a GPU, take a diffusion model instead:
# `fsd.DiffusersPrior.from_pretrained("path-or-hub-id", device="cuda")`.

# %%
prior = fsd.RenderBank(size=16, azimuths=12)
prompt = prior.encode_text("an object")


# %%
def make(seed: int, guide: fsd.Guidance) -> fsd.Scene:
    """One object."""
    torch.manual_seed(seed)
    scene = fsd.grid_scene(16, samples=16)
    optimizer = torch.optim.Adam(scene.parameters(), lr=0.05)
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        cameras = fsd.cameras.orbit(batch=4, generator=generator, views=prior.views)
        view = scene.render(cameras, size=16)
        out = guide(view.image, prompt, cameras, progress=step / steps, opacity=view.opacity)
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
    return scene


# %% [markdown]
# Three seeds with the noise as a function of the camera (flow score distillation), and three with fresh noise at
# every step (score distillation with time running down): the same prior, the same number of calls.

# %%
seeds = (0, 1, 2)
flow = [make(seed, fsd.FlowScoreDistillation(prior, noise=fsd.WorldMapNoise(seed=seed))) for seed in seeds]
plain = [make(seed, fsd.AnnealedScoreDistillation(prior, noise=fsd.RandomNoise(seed=seed))) for seed in seeds]

# %%
cameras = fsd.cameras.place([30.0])
figure, axes = plt.subplots(2, len(seeds))
for row, (name, scenes) in enumerate((("FSD", flow), ("SDS", plain))):
    for axis, scene, seed in zip(axes[row], scenes, seeds, strict=True):
        with torch.no_grad():
            axis.imshow(scene.render(cameras, size=64).image[0].permute(1, 2, 0).clamp(0, 1))
        axis.set_title(f"{name}, seed {seed}")
        axis.axis("off")
plt.show()

# %% [markdown]
# The mesh opens in Blender, in a browser, or with `fsd view`.

# %%
flow[0].export_mesh("object.glb", resolution=24)
