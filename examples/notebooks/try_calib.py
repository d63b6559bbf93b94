# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # A calibrator in a notebook
#
# A classifier is in production, the camera changes. From unlabelled images of the new camera a small network learns
# to correct each image before the classifier sees it. On Colab choose a GPU (Runtime, Change runtime type), upload
# the two wheels that `make wheels` puts into dist/, and run the next cell; elsewhere leave it out if calib-uda is
# installed.

# %%
# %pip install -q *shared_core-*.whl calib_uda-*.whl
# Once the package is on the index: pip install calib-uda

# %%
import os

import calib
import matplotlib.pyplot as plt
import torch
from shared_core.data.open import open_dataset
from torch import nn

device = "cuda" if torch.cuda.is_available() else "cpu"
steps = int(os.environ.get("STEPS", "300"))
torch.manual_seed(0)

# %% [markdown]
# The source are real handwritten digits. The new camera has low contrast and a bright corner.

# %%
train, test = open_dataset("digits", "train"), open_dataset("digits", "test")


def new_camera(images: torch.Tensor) -> torch.Tensor:
    line = torch.linspace(0, 0.35, 8, device=images.device)
    return (0.25 + 0.35 * images + line + line[:, None]).clamp(0, 1)


images, labels = (train.images / 255).to(device), train.labels.to(device)
test_images, test_labels = (test.images / 255).to(device), test.labels.to(device)
source = list(images.split(64)[:-1])
target = [new_camera(batch) for batch in reversed(source)]

# %% [markdown]
# The classifier: trained on the source, and from then on not touched.

# %%
classifier = nn.Sequential(
    *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
    *(nn.Flatten(), nn.Linear(256, 10)),
).to(device)
optimizer = torch.optim.Adam(classifier.parameters(), lr=5e-3)
for _ in range(150):
    rows = torch.randperm(len(labels))[:128]
    loss = nn.functional.cross_entropy(classifier(images[rows]), labels[rows])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
classifier.eval()

# %% [markdown]
# Three lines: attach, adapt, verify. Which calibrator is kept is chosen without target labels.

# %%
model = calib.attach(classifier, calib.Calibrator(channels=1, epsilon=0.5, width=4, blocks=1))
report = calib.adapt(
    model,
    source,
    target,
    steps=steps,
    learning_rate=2e-3,
    weights=calib.Weights(source=1.0),
    validate_every=25,
    device=device,
)
model.verify()
print(f"kept step {report.chosen_step}; classifier unchanged: {report.classifier_unchanged}")

# %%
for name, shown in (("source", test_images), ("target", new_camera(test_images))):
    with torch.no_grad():
        shares = [(net(shown).argmax(1) == test_labels).float().mean().item() for net in (classifier, model)]
    print(f"{name}: {100 * shares[0]:.1f} % without, {100 * shares[1]:.1f} % with the calibrator")

# %%
shown = new_camera(test_images[:6])
with torch.no_grad():
    pictures_of = {"camera": shown.cpu(), "calibrated": model.calibrator(shown).cpu()}
figure, axes = plt.subplots(2, 6, figsize=(8, 3))
for line, (name, pictures) in zip(axes, pictures_of.items(), strict=True):
    for axis, picture in zip(line, pictures, strict=True):
        axis.imshow(picture[0], cmap="gray", vmin=0, vmax=1)
        axis.axis("off")
    line[0].set_title(name)
plt.show()

# %%
model.calibrator.save_pretrained("night")
