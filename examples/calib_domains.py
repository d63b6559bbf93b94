"""One classifier, many domains: a small folder for each, chosen at run time.

python examples/calib_domains.py [STEPS]
"""

import sys
from pathlib import Path

import calib
import torch
from shared_core.data.open import open_dataset
from torch import nn

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 200
train, test = open_dataset("digits", "train"), open_dataset("digits", "test")
domains = {
    "fog": lambda images: 0.5 + 0.4 * images,
    "dusk": lambda images: 0.4 * images,
    "glare": lambda images: (images + 0.6 * images.flip(-1)).clamp(0, 1),
}

torch.manual_seed(0)
classifier = nn.Sequential(
    *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
    *(nn.Flatten(), nn.Linear(256, 10)),
)
optimizer = torch.optim.Adam(classifier.parameters(), lr=5e-3)
for step in range(150):
    rows = torch.randperm(len(train.labels), generator=torch.Generator().manual_seed(step))[:128]
    loss = nn.functional.cross_entropy(classifier(train.images[rows] / 255), train.labels[rows])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
classifier.eval()

source = list((train.images / 255).split(64)[:-1])
for name, change in domains.items():
    model = calib.attach(classifier, calib.Calibrator(channels=1, epsilon=0.5, width=4, blocks=1))
    target = [change(batch) for batch in reversed(source)]
    weights = calib.Weights(source=1.0)
    calib.adapt(model, source, target, steps=steps, learning_rate=2e-3, weights=weights, validate_every=25)
    model.calibrator.save_pretrained(f"calibrators/{name}")
    model.detach()  # the classifier as it came, for the next domain

# Where it is served: one classifier in memory, and a front for each domain.
fronts = {folder.name: calib.Calibrator.from_pretrained(folder) for folder in Path("calibrators").iterdir()}
for name, front in sorted(fronts.items()):
    images = domains[name](test.images / 255)
    with torch.no_grad():
        before, after = (
            100 * (classifier(shown).argmax(1) == test.labels).float().mean().item()
            for shown in (images, front(images))
        )
    size = sum(file.stat().st_size for file in Path("calibrators", name).iterdir()) / 1000
    print(f"{name}: {before:.1f} % without, {after:.1f} % with its calibrator of {size:.0f} kB")
