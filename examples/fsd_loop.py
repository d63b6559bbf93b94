"""A loop of your own that can be killed at any step and goes on bit for bit.

python examples/fsd_loop.py [STEPS]
"""

import sys
from pathlib import Path

import fsd
import torch

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 100
saved = Path("object.pt")

prior = fsd.RenderBank(size=16, azimuths=12)
guide = fsd.FlowScoreDistillation(prior, noise=fsd.WorldMapNoise(seed=1))
prompt = prior.encode_text("an object")
scene = fsd.grid_scene(16, samples=16)
optimizer = torch.optim.Adam(scene.parameters(), lr=0.05)
generator = torch.Generator().manual_seed(1)
parts = {"scene": scene, "guide": guide, "optimizer": optimizer}  # the guide holds its noise and generator


def train(first: int, last: int) -> None:
    for step in range(first, last):
        cameras = fsd.cameras.orbit(batch=4, generator=generator, views=prior.views)
        view = scene.render(cameras, size=16, generator=generator)
        out = guide(view.image, prompt, cameras, progress=step / steps, opacity=view.opacity)
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()


train(0, steps // 2)
state = {name: part.state_dict() for name, part in parts.items()}
torch.save({**state, "generator": generator.get_state()}, saved)
train(steps // 2, steps)
straight = scene.render(fsd.cameras.turntable(4), size=16).image

# As another process would: everything from the file, then the second half again.
found = torch.load(saved, weights_only=True)  # noqa: TID251  our own file, and plain tensors only
for name, part in parts.items():
    part.load_state_dict(found[name])
generator.set_state(found["generator"])
train(steps // 2, steps)
resumed = scene.render(fsd.cameras.turntable(4), size=16).image

assert torch.equal(straight, resumed), "the resumed half differs from the straight one"
scene.export_mesh("object.glb", resolution=24)
print("resumed bit for bit; object.glb")
