"""CORSD in a loop of your own, beside the same loop without it.

python examples/corsd_loop.py [STEPS]
"""

import sys

import corsd
import torch
from corsd.nets import small_resnet
from shared_core.data.open import open_dataset
from torch import nn

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 150
train, test = open_dataset("digits", "train"), open_dataset("digits", "test")  # yours go here


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    rows = torch.randperm(200, generator=torch.Generator().manual_seed(step))[:60]
    return train.images[rows] / 255, train.labels[rows]


def accuracy(net: nn.Module) -> float:
    net.eval()
    with torch.no_grad():
        return 100 * (net(test.images / 255).argmax(1) == test.labels).float().mean().item()


def new_net() -> nn.Module:
    torch.manual_seed(0)
    return small_resnet([1, 1, 1, 1], width=16, num_classes=10, in_channels=1)


# What you have: a net, an optimizer, a loop.
plain = new_net()
optimizer = torch.optim.SGD(plain.parameters(), lr=0.05, momentum=0.9)
for step in range(steps):
    images, labels = batch(step)
    loss = nn.functional.cross_entropy(plain(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"plain loop: {accuracy(plain):.1f} %")

# What changes: the distiller has the parameters and the loss.
net = new_net()
distiller = corsd.Distiller(net, stages="auto", num_classes=10, example=train.images[:2] / 255)
optimizer = torch.optim.SGD(distiller.parameters(), lr=0.05, momentum=0.9)
for step in range(steps):
    images, labels = batch(step)
    out = distiller(images, labels)
    optimizer.zero_grad()
    out.loss.backward()
    optimizer.step()
    if step % 50 == 0:
        print(step, {name: round(part.item(), 3) for name, part in out.parts.items()})
print(f"with CORSD: {accuracy(net):.1f} %, stages {[stage.name for stage in distiller.stages]}")
# One seed says little: `corsd train --preset digits` compares over several.
