"""The size of the features that a projector gets: about one, as CLIP's own, whatever size training gave them.

A fresh projector is made for inputs of that size. Of features sixteen times as large it makes rows that are twenty times as long as a word's
embedding and grow from there, and a decoder's layers, which add to a row, change next to nothing in so long a one: it reads the image only as far
as the projector has spelled it out.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace

import torch
from torch import Tensor

from lmmblocks.encoders.clip import CLIP

_WRITES_TO_STREAM = re.compile(r"\.(pre_layrnorm|out_proj|fc2)\.(weight|bias)$")
"""What a pre-norm tower's residual stream is the sum of, by the names of its parameters."""


def with_unit_features(encoder: CLIP, pixels: Tensor) -> CLIP:
    """A tower of the same function whose features have a standard deviation between 0.7 and 1.42.

    Every layer normalises what it reads from the residual stream, so a factor on all that is added to it, with its square on the norms' epsilon,
    changes only the stream itself. A power of two leaves each weight its digits.

    Args:
        encoder: the tower; stays as it is.
        pixels: ``(I, 3, H, W)`` to measure its features on.
    """
    with torch.no_grad():
        factor = 2.0 ** -round(math.log2(encoder(pixels).patches.std().item()))
    scaled = replace(encoder.config, eps=encoder.config.eps * factor**2).build()
    scaled.load_state_dict({name: value * factor if _WRITES_TO_STREAM.search(name) else value for name, value in encoder.state_dict().items()})
    return scaled
