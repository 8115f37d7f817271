"""One row per image, the same for all: the embedding of a token, which only says where an image stands (Flamingo, IDEFICS).

Motivation: where layer hooks show the images to the text (``hooks/gated_cross_attention.py``), the decoder reads of an image no more than
the special token that stands for it, as ordinary text. How it works: the image keeps its row in the plan, so that everything that
counts, truncates, selects or caches images goes on working, and its place in the sequence, which tells who sees it, is that row's. The
row is taken from the decoder's table (``features.table``), so that the token has one embedding, here and where it is predicted.
Non-goals: markup around an image is the template's.
"""

from __future__ import annotations

import torch.nn as nn
from torch import Tensor

from ..spec import Grid, LmmError, VisionFeatures
from ..spec.fields import is_whole
from ..spec.options import remembers_options


@remembers_options
class ImageToken(nn.Module):
    """Any image becomes the row of a token.

    Args:
        in_dim: encoder width, which nothing is made of.
        out_dim: decoder width.
        token: id of the token: a row of the decoder's table.

    Raises:
        LmmError: the id is no whole number from 0 on.

    >>> ImageToken(8, 16, token=3).out_grid(Grid(24, 24))
    1
    """

    requires = frozenset({"table"})

    def __init__(self, in_dim: int, out_dim: int, token: int) -> None:
        super().__init__()
        if not is_whole(token) or token < 0:
            raise LmmError(f"projector 'image_token': token must be the id of a token, a whole number from 0 on, found {token!r}")
        self.token = token

    def out_grid(self, grid: Grid) -> int:
        """One row."""
        return 1

    def forward(self, features: VisionFeatures) -> Tensor:
        """Return ``rows_MD``, image after image.

        Raises:
            LmmError: the table isn't there, or has no such row.
        """
        if features.table is None:
            raise LmmError("projector 'image_token' reads the decoder's table: let a model call it, or set features.table")
        if self.token >= features.table.shape[0]:
            raise LmmError(
                f"projector 'image_token' stands for the token {self.token}, the decoder's table has {features.table.shape[0]} rows: correct "
                f"token, or the decoder's vocab"
            )
        return features.table[self.token].expand(len(features.grids), -1)
