"""Your images as folders, your classifier as a file: the command line from end to end.

python examples/calib_own_data.py [STEPS]
"""

import json
import subprocess
import sys
from pathlib import Path

from PIL import Image
from shared_core.data.open import open_dataset

steps = sys.argv[1] if len(sys.argv) > 1 else "100"

# Folders DOMAIN/train/CLASS/*.png and DOMAIN/test/CLASS/*.png. Labels of the target's test images only score it.
for split, count in (("train", 500), ("test", 100)):
    digits = open_dataset("digits", split)
    for n, (image, label) in enumerate(zip(digits.images[:count], digits.labels[:count], strict=True)):
        picture = Image.fromarray(image[0].numpy()).resize((32, 32)).convert("RGB")
        for domain, shown in (("day", picture), ("night", picture.point(lambda value: 40 + value // 3))):
            folder = Path(domain, split, f"digit {label}")
            folder.mkdir(parents=True, exist_ok=True)
            shown.save(folder / f"{n}.png")

# A classifier of your own is a function in a file, with the weights that it loads or that --weights names. This one has
# none yet: train_classifier trains it on the source first.
Path("net.py").write_text(
    "from torch import nn\n"
    "def build(num_classes, in_channels):\n"
    "    return nn.Sequential(nn.Conv2d(in_channels, 16, 5, 2), nn.ReLU(), nn.Conv2d(16, 32, 5, 2), nn.ReLU(),\n"
    "                         nn.Flatten(), nn.Linear(800, num_classes))\n"
)
Path("settings.yaml").write_text(
    "image_size: 32\nvalidate_every: 20\nblocks: 1\nloss: {source: 1.0}\n"
    "train_classifier: true\ntraining: {epochs: 15, batch_size: 32}\n"
)


def command(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "calib", *arguments], check=True)


data = ["--source", "imagefolder:day", "--target", "imagefolder:night"]
net = ["--classifier", "net.py:build", "--config", "settings.yaml", "--epsilon", "0.5", "--steps", steps]
command("adapt", *data, *net, "--out", "runs/night")
command("predict", "runs/night", "night/test/digit 3", "--json")
result = json.loads(Path("runs/night/result.json").read_text())
for name in ("source_before", "source_after", "target_before", "target_after"):
    print(name.replace("_", " "), f"{result[name]:.1f} %")
print("open runs/night/report.html")
