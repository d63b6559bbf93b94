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
# Text to 3D where every seed gives another object. On Colab choose a GPU (Runtime, Change runtime type), upload the two
# wheels that `make wheels` puts into dist/, and run the next cell; elsewhere leave it out if fsd is installed.

# %%
# %pip install -q *shared_core-*.whl fsd-*.whl
# Once the package is on the index: pip install fsd

# %%
import os

import fsd
import matplotlib.pyplot as plt
import torch

device = "cuda" if torch.cuda.is_available() else "cpu"
steps = int(os.environ.get("STEPS", "200"))

# %% [markdown]
# The prior is the small diffusion model that comes with fsd, of toys in a procedural world, so that nothing is
# downloaded. A large one in its place: `fsd.DiffusersPrior.from_pretrained("path-or-hub-id", device=device)`.
# The prompt leaves the colour open. Six objects of 200 steps take some minutes of a CPU core.

# %%
prior = fsd.EmbeddedPrior(device=device)
prompt = prior.encode_text("a mushroom")


# %%
def make(seed: int, guide: fsd.Guidance) -> fsd.Scene:
    """One object."""
    torch.manual_seed(seed)
    scene = fsd.grid_scene(32, samples=32).to(device)
    optimizer = torch.optim.Adam(scene.parameters(), lr=0.03)
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        cameras = fsd.cameras.orbit(batch=4, generator=generator, views=prior.views).to(device)
        view = scene.render(cameras, size=32)
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
scale = {"guidance_scale": 4.0}
flow = [make(s, fsd.FlowScoreDistillation(prior, noise=fsd.WorldMapNoise(seed=s), **scale)) for s in seeds]
plain = [make(s, fsd.AnnealedScoreDistillation(prior, noise=fsd.RandomNoise(seed=s), **scale)) for s in seeds]

# %%
cameras = fsd.cameras.place([30.0]).to(device)
figure, axes = plt.subplots(2, len(seeds))
for row, (name, scenes) in enumerate((("FSD", flow), ("SDS", plain))):
    for axis, scene, seed in zip(axes[row], scenes, seeds, strict=True):
        with torch.no_grad():
            axis.imshow(scene.render(cameras, size=64).image[0].permute(1, 2, 0).clamp(0, 1).cpu())
        axis.set_title(f"{name}, seed {seed}")
        axis.axis("off")
plt.show()

# %% [markdown]
# The mesh opens in Blender, in a browser, or with `fsd view`.

# %%
flow[0].export_mesh("object.glb", resolution=24)
