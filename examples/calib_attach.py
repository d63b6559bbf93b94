"""A classifier in production, a camera that changed: correct its images and leave the classifier alone.

python examples/calib_attach.py [STEPS]
"""

import sys

import calib
import torch
from shared_core.data.open import open_dataset
from torch import Tensor, nn

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 300
train, test = open_dataset("digits", "train"), open_dataset("digits", "test")


def new_camera(images: Tensor) -> Tensor:
    """Low contrast, a shifted black level, a bright corner."""
    corner = torch.linspace(0, 0.35, images.shape[-1]) + torch.linspace(0, 0.35, images.shape[-2])[:, None]
    return (0.25 + 0.35 * images + corner).clamp(0, 1)


# Stands for your deployed classifier of images in [0, 1].
torch.manual_seed(0)
classifier = nn.Sequential(
    *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
    *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10)),
)
optimizer = torch.optim.Adam(classifier.parameters(), lr=2e-3)
for step in range(150):
    rows = torch.randperm(len(train.labels), generator=torch.Generator().manual_seed(step))[:128]
    loss = nn.functional.cross_entropy(classifier(train.images[rows] / 255), train.labels[rows])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
classifier.eval()

# Images of both domains; target labels are not given.
source = list((train.images / 255).split(64)[:-1])
target = [new_camera(batch) for batch in reversed(source)]

calibrator = calib.Calibrator(channels=1, epsilon=0.5, width=4, blocks=1)
model = calib.attach(classifier, calibrator, value_range=(0.0, 1.0))
report = calib.adapt(
    model,
    source,
    target,
    steps=steps,
    learning_rate=2e-3,
    weights=calib.Weights(source=1.0),
    validate_every=25,
)
model.verify()  # raises if one bit of the classifier changed

day, night = test.images / 255, new_camera(test.images / 255)
for name, images in (("source", day), ("target", night)):
    with torch.no_grad():
        before, after = (
            100 * (net(images).argmax(1) == test.labels).float().mean().item() for net in (classifier, model)
        )
    print(f"{name}: {before:.1f} % without, {after:.1f} % with the calibrator")
print(f"kept: step {report.chosen_step}, chosen by {report.selection}, which needs no target labels")
calibrator.save_pretrained("night")
