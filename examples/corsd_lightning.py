"""CORSD in Lightning: the distiller is a module like any other (pip install lightning).

python examples/corsd_lightning.py [STEPS]
"""

import logging
import sys
import warnings

import corsd
import lightning
import torch
from shared_core.data.open import open_dataset
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 150
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", ".*(num_workers|LeafSpec).*")


class Classifier(nn.Module):
    """A net of your own: any module from images to logits."""

    def __init__(self) -> None:
        super().__init__()
        self.early = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        self.late = nn.Sequential(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        self.head = nn.Linear(32 * 2 * 2, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.late(self.early(images)).flatten(1))


class SelfDistilled(lightning.LightningModule):
    def __init__(self, net: nn.Module, example: Tensor) -> None:
        super().__init__()
        self.distiller = corsd.Distiller(net, stages=["early", "late"], num_classes=10, example=example)

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        out = self.distiller(*batch)
        self.log_dict(out.parts)
        return out.loss

    def validation_step(self, batch: list[Tensor], _: int) -> None:
        images, labels = batch
        right = self.distiller.net(images).argmax(1) == labels  # the plain net answers
        self.log("accuracy", right.float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


train, test = (open_dataset("digits", split) for split in ("train", "test"))
loaders = [
    DataLoader(TensorDataset(data.images / 255, data.labels), 60, shuffle=shuffle)
    for data, shuffle in ((train, True), (test, False))
]
module = SelfDistilled(Classifier(), train.images[:2] / 255)
quiet = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
trainer = lightning.Trainer(max_steps=steps, accelerator="cpu", **quiet)
trainer.fit(module, *loaders)
(scores,) = trainer.validate(module, loaders[1], verbose=False)
print(f"accuracy {100 * scores['accuracy']:.1f} %")
