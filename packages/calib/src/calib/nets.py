"""The digit classifiers of the paper, for images of 32 by 32 pixels: DTN (its configurations) and LeNet."""

from torch import nn


def dtn(num_classes: int = 10, in_channels: int = 3) -> nn.Sequential:
    """Three strided 5x5 convolutions with batch norm, two linear layers: 3,133,962 parameters."""
    layers: list[nn.Module] = []
    sizes = ((in_channels, 64, 0.1), (64, 128, 0.3), (128, 256, 0.5))
    for inputs, outputs, dropout in sizes:
        conv = nn.Conv2d(inputs, outputs, 5, stride=2, padding=2)
        layers += [conv, nn.BatchNorm2d(outputs), nn.Dropout2d(dropout), nn.ReLU()]
    layers += [nn.Flatten(), nn.Linear(4096, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Dropout(0.5)]
    return _initialised(nn.Sequential(*layers, nn.Linear(512, num_classes)))


def lenet(num_classes: int = 10, in_channels: int = 3) -> nn.Sequential:
    """Two 5x5 convolutions with pooling, two linear layers, no batch norm: 657,080 parameters."""
    return _initialised(
        nn.Sequential(
            nn.Conv2d(in_channels, 20, 5),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Conv2d(20, 50, 5),
            nn.Dropout2d(0.5),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(1250, 500),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(500, num_classes),
        )
    )


def _initialised(net: nn.Sequential) -> nn.Sequential:
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_normal_(module.weight)
            assert module.bias is not None
            nn.init.zeros_(module.bias)
    return net
