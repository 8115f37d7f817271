"""Where the towers start: random weights that a short training can use from the first step."""

from __future__ import annotations

import math

import torch
import torch.nn as nn
from torch import Tensor

from lmmblocks.decoders.transformer import Transformer
from lmmblocks.encoders.clip import CLIP


def initialise(encoder: CLIP) -> None:
    """Set random weights: linear layers by width, residual branches smaller with depth, positions as waves.

    The positions are parameters like all others and are trained; starting as waves, they are told apart
    from the first step, where small random ones take a thousand steps to be noticed beside the patches.

    Args:
        encoder: changed in place.
    """
    depth = (2 * encoder.config.layers) ** -0.5
    for name, parameter in encoder.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif name.endswith(("out_proj.weight", "fc2.weight")):
            nn.init.normal_(parameter, std=depth * parameter.shape[1] ** -0.5)
        elif name.endswith(("proj.weight", "fc1.weight")):
            nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
        elif "patch_embedding" in name:
            nn.init.normal_(parameter, std=0.02)
    side = encoder.config.image_size // encoder.config.patch
    with torch.no_grad():
        table = encoder.vision_model.embeddings.position_embedding.weight
        table[1:] = 0.5 * wave_positions(side, encoder.config.dim)
        table[0] = 0.0


def wave_positions(side: int, dim: int) -> Tensor:
    """Sines and cosines of column and row, `(side * side, dim)`, row by row.

    Args:
        side: patches along a side.
        dim: width; channels beyond a multiple of 4 stay 0.

    Source: He et al., "Masked Autoencoders", arXiv 2111.06377 (`pos_embed.py`); here wavelengths run from 2
    patches to 4 times the grid.
    """
    quarter = dim // 4
    wavelengths = torch.logspace(math.log10(2), math.log10(4 * side), max(quarter, 1))
    angles_SQ = 2 * math.pi * torch.arange(side)[:, None] / wavelengths
    waves_SH = torch.cat([angles_SQ.sin(), angles_SQ.cos()], 1)[:, : 2 * quarter]
    rows, columns = waves_SH[:, None].expand(side, side, -1), waves_SH[None].expand(side, side, -1)
    table = torch.zeros(side * side, dim)
    table[:, : 4 * quarter] = torch.cat([columns, rows], -1).flatten(0, 1)
    return table


def initialise_decoder(decoder: Transformer) -> None:
    """Set random weights: linear layers by their width, residual branches smaller with depth.

    Args:
        decoder: changed in place.
    """
    depth = (2 * decoder.config.layers) ** -0.5
    for name, parameter in decoder.model.layers.named_parameters():
        if parameter.dim() == 2:
            branch_end = name.endswith(("o_proj.weight", "down_proj.weight"))
            nn.init.normal_(parameter, std=(depth if branch_end else 1.0) * parameter.shape[1] ** -0.5)
    nn.init.normal_(decoder.model.embed_tokens.weight, std=0.05)
