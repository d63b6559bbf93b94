"""Export calibrator and classifier as one ONNX graph and serve it without torch (pip install 'calib-uda[onnx]').

python examples/calib_serve.py [STEPS]
"""

import json
import sys

import calib
import numpy as np
import onnxruntime
import torch
from calib.export import export
from torch import nn

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 20
torch.manual_seed(0)
net = nn.Sequential(
    nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
)
classifier = calib.Normalized(net, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)).eval()  # yours

source = [torch.rand(16, 3, 32, 32) for _ in range(4)]
target = [torch.rand(16, 3, 32, 32) ** 2 for _ in range(4)]
model = calib.attach(classifier, calib.Calibrator(channels=3, epsilon=0.1, width=4, blocks=1))
calib.adapt(model, source, target, steps=steps, selection="last")
export(model, "fused.onnx", "onnx", what="fused", size=(32, 32))

session = onnxruntime.InferenceSession("fused.onnx")
about = session.get_modelmeta().custom_metadata_map
print("epsilon", about["epsilon"], "of the value range", json.loads(about["value_range"]))


def serve(images: np.ndarray, alpha: float = 1.0) -> np.ndarray:
    """Logits of images in [0, 1]; alpha 0 switches the calibrator off, between two requests if need be."""
    return session.run(["logits"], {"images": images, "alpha": np.array(alpha, np.float32)})[0]


images = target[0].numpy()
with torch.no_grad():
    with_it, without = model(target[0]).numpy(), classifier(target[0]).numpy()
for alpha, torchs in ((1.0, with_it), (0.0, without)):
    difference = np.abs(serve(images, alpha) - torchs).max()
    print(f"alpha {alpha}: largest difference to torch {difference:.1e}")
    assert difference < 1e-4
