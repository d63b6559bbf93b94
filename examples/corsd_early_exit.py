"""Early exit: shallow classifiers trained beside the net answer the easy images.

python examples/corsd_early_exit.py [STEPS]
"""

import sys

import corsd
import torch
from corsd.nets import small_resnet
from shared_core.data.open import open_dataset

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 150
train, test = open_dataset("digits", "train"), open_dataset("digits", "test")

torch.manual_seed(0)
net = small_resnet([1, 1, 1, 1], width=16, num_classes=10, in_channels=1)
distiller = corsd.Distiller(net, num_classes=10, example=train.images[:2] / 255, exits="detached")
optimizer = torch.optim.SGD(distiller.parameters(), lr=0.05, momentum=0.9)
for step in range(steps):
    rows = torch.randperm(len(train.labels), generator=torch.Generator().manual_seed(step))[:60]
    out = distiller(train.images[rows] / 255, train.labels[rows])
    optimizer.zero_grad()
    out.loss.backward()
    optimizer.step()

net.eval()
distiller.exits.eval()
images, labels = test.images[:100] / 255, test.labels[:100]
for threshold in (0.6, 0.9, 1.01):  # above 1 no exit is ever sure: the net itself
    fast = corsd.EarlyExit(net, distiller.stages[:-1], distiller.exits, threshold)
    right, depths = 0, []
    for image, label in zip(images.split(1), labels, strict=True):  # single images gain most
        logits, depth = fast(image)
        right += int(logits.argmax() == label)
        depths.append(depth)
    shares = [depths.count(depth) for depth in range(len(distiller.stages))]
    print(f"threshold {threshold}: {right} of 100 right, answered by exits and net: {shares}")
