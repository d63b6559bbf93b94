# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # CORSD in a notebook
#
# Class-oriented relational self-distillation: while your net trains, small networks beside it learn how two images
# relate at every stage, and the deepest stage teaches the shallow ones. On Colab choose a GPU (Runtime, Change
# runtime type), upload the two wheels that `make wheels` puts into dist/, and run the next cell; elsewhere leave it out
# if corsd is installed.

# %%
# %pip install -q *shared_core-*.whl corsd-*.whl
# Once the package is on the index: pip install corsd

# %%
import os

import corsd
import matplotlib.pyplot as plt
import torch
from corsd.nets import small_resnet
from shared_core.data.open import open_dataset
from torch import nn

device = "cuda" if torch.cuda.is_available() else "cpu"
steps = int(os.environ.get("STEPS", "300"))

# %% [markdown]
# The data: real handwritten digits that come with scikit-learn, of which 200 are used for training. For CIFAR-100
# write `open_dataset("cifar100", "train", root="data", download=True)`.

# %%
train, test = open_dataset("digits", "train"), open_dataset("digits", "test")
images, labels = (train.images[:200] / 255).to(device), train.labels[:200].to(device)
test_images, test_labels = (test.images / 255).to(device), test.labels.to(device)

# %% [markdown]
# Two trainings from the same first weights on the same images: cross-entropy alone, and CORSD. Both take the same
# number of images; CORSD finds its pairs among those of the batch.


# %%
def train_net(with_corsd: bool, seed: int) -> tuple[nn.Module, list[float]]:
    """The net and its test accuracy in percent, every 25 steps."""
    torch.manual_seed(seed)
    net = small_resnet([1, 1, 1, 1], width=16, num_classes=10, in_channels=1).to(device)
    distiller = corsd.Distiller(net, num_classes=10, example=images[:2], seed=seed)
    parameters = (distiller if with_corsd else net).parameters()
    optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=5e-4)
    curve = []
    for step in range(steps):
        net.train()
        rows = torch.randperm(200, generator=torch.Generator().manual_seed(1000 * seed + step))[:60]
        batch, answers = images[rows], labels[rows]
        loss = (
            distiller(batch, answers).loss if with_corsd else nn.functional.cross_entropy(net(batch), answers)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 25 == 24 or step == steps - 1:
            net.eval()
            with torch.no_grad():
                curve.append(100 * (net(test_images).argmax(1) == test_labels).float().mean().item())
    return net, curve


plain, plain_curve = train_net(with_corsd=False, seed=0)
net, curve = train_net(with_corsd=True, seed=0)
print(f"cross-entropy {plain_curve[-1]:.1f} %, CORSD {curve[-1]:.1f} %")

# %%
plt.plot(plain_curve, label="cross-entropy")
plt.plot(curve, label="CORSD")
plt.xlabel("25 steps")
plt.ylabel("test accuracy, percent")
plt.legend()
plt.show()

# %% [markdown]
# One seed says little. The command trains every method with several seeds on the same number of images and reports
# the difference with its interval:
#
# ```
# corsd train --preset digits --out runs/digits
# ```
