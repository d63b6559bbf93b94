"""The deployed classifier of the run that is kept here."""

from torch import nn


def build(num_classes: int) -> nn.Module:
    features = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.ReLU(), nn.Flatten())
    return nn.Sequential(features, nn.Linear(8 * 16, num_classes))
