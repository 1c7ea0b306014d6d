"""ResNet-20 for CIFAR-10, with random batch-norm statistics: a network to time, not to use."""

from itertools import pairwise

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """Two 3x3 convolutions, and a shortcut that takes every other pixel and pads channels with zeros."""

    def __init__(self, before: int, width: int):
        super().__init__()
        self.stride = width // before
        self.conv1 = nn.Conv2d(before, width, 3, self.stride, 1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm1, self.norm2, self.act1, self.act2 = (
            nn.BatchNorm2d(width),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(self.act1(self.norm1(self.conv1(x)))))
        pad = y.shape[1] - x.shape[1]
        short = x[:, :, :: self.stride, :: self.stride]
        return self.act2(y + nn.functional.pad(short, (0, 0, 0, 0, pad // 2, pad - pad // 2)))


def resnet20(seed: int = 0) -> nn.Sequential:
    """Three stages of three blocks, 16, 32 and 64 channels wide; in eval mode, on images (n, 3, 32, 32)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        widths = [16, 16, 16, 16, 32, 32, 32, 64, 64, 64]
        blocks = [Block(*pair) for pair in pairwise(widths)]
        stem = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
        model = nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
        for norm in (one for one in model.modules() if isinstance(one, nn.BatchNorm2d)):
            norm.running_mean.normal_(std=0.3)
            norm.running_var.uniform_(0.5, 1.5)
    return model.eval()
