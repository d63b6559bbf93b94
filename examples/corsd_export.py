"""Train by command, export the plain net to ONNX, and answer with onnxruntime alone (pip install 'corsd[onnx]').

python examples/corsd_export.py [EPOCHS]
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from shared_core.data.open import open_dataset

epochs = sys.argv[1] if len(sys.argv) > 1 else "20"
run, onnx = Path("runs/digits-export"), Path("digits.onnx")
settings = Path("one.yaml")
settings.write_text("controls: []\nseeds: [0]\n")  # one training instead of the preset's nine


def corsd(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "corsd", *arguments], check=True)


corsd("train", "--preset", "digits", "--config", str(settings), "--epochs", epochs, "--out", str(run))
corsd("export", str(run), "--format", "onnx", "--out", str(onnx))

# From here on neither torch nor corsd is needed: the file says how to prepare images.
session = onnxruntime.InferenceSession(onnx)
about = session.get_modelmeta().custom_metadata_map
how, names = json.loads(about["preprocess"]), json.loads(about["class_names"])
test = open_dataset("digits", "test")
images = test.images.numpy().astype(np.float32) / 255
images = (images - np.reshape(how["mean"], (1, -1, 1, 1))) / np.reshape(how["std"], (1, -1, 1, 1))
(logits,) = session.run(None, {"images": images.astype(np.float32)})
right = (logits.argmax(1) == test.labels.numpy()).mean()
print(
    f"{100 * right:.1f} % of {len(images)} test images right; the run says {about['test_accuracy_percent']}"
)
print("first answers:", [names[answer] for answer in logits[:5].argmax(1)])
