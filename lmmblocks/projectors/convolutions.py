"""Convolutions of the convolutional projectors, with LayerNorm over the channels instead of BatchNorm."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn as nn
from torch import Tensor


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of ``(I, C, H, W)``, at each place by itself."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class SqueezeExcite(nn.Module):
    """Each channel is scaled by a gate that sees the means of all channels over the image.

    Args:
        channels: of the map.
        squeezed: width between the two layers.
        activation: between them.
        gate: after them.

    Source: Hu et al., arXiv 1709.01507.
    """

    def __init__(self, channels: int, squeezed: int, activation: Callable[[Tensor], Tensor], gate: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1)
        self.activation, self.gate = activation, gate

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.fc2(self.activation(self.fc1(x.mean((2, 3), keepdim=True)))))
