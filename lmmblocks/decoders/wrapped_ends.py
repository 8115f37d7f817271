"""A table or a head that is more than its weight (an adapter around it, a hook on it): computed by calling the module, never past it.

Motivation: the splice reads the rows of the table, and the loss the rows of the head, without making logits of all rows. What wraps these modules
would then be ignored by training and heard by generation. How it works: a decoder says whether its ends are their weights alone; where one isn't,
text rows come from ``embed`` and the loss from the logits of ``head``, at the price of the logits of the supervised rows.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops
from ..ops.linear_cross_entropy import reduced, weight_sum
from ..spec import SplicePlan


def spliced(decoder: Any, image_rows_MD: Tensor, plan: SplicePlan) -> Tensor:
    """Return ``embeds_TD`` of a batch: text rows as the decoder's table module gives them, image rows between them.

    Args:
        decoder: see ``spec.Decoder``.
        image_rows_MD: of all images of the plan.
        plan: on the same device.
    """
    if getattr(decoder, "table_is_weight", True):
        return ops.splice(decoder.table, image_rows_MD, plan, scale=getattr(decoder, "embed_scale", None))
    source_T = plan.source.long()
    text_TD = decoder.embed(source_T.clamp_min(0))
    if not image_rows_MD.shape[0]:
        return text_TD
    images_TD = image_rows_MD.index_select(0, (-1 - source_T).clamp_min(0))
    return torch.where((source_T < 0)[:, None], images_TD, text_TD)


def supervised_loss(decoder: Any, hidden_RD: Tensor, targets_R: Tensor, weights_R: Tensor | None, reduction: str) -> Tensor:
    """Return the cross-entropy of supervised rows after the decoder's head; arguments as of ``ops.linear_cross_entropy``.

    Raises:
        LmmError: an unknown reduction, or shapes that don't fit.
    """
    if getattr(decoder, "head_is_weight", True):
        softcap, bias_V = (getattr(decoder, name, None) for name in ("logit_softcap", "head_bias"))
        return ops.linear_cross_entropy(
            hidden_RD,
            decoder.head_weight,
            targets_R,
            weights=weights_R,
            softcap=softcap,
            bias_V=bias_V,
            reduction=reduction,
        )
    ops.linear_cross_entropy(hidden_RD[:0], decoder.head_weight, targets_R[:0], reduction=reduction)  # refuses what it always refuses
    losses_R = F.cross_entropy(decoder.head(hidden_RD).float(), targets_R, reduction="none")
    return reduced(losses_R, weights_R, weight_sum(targets_R, weights_R) if reduction == "mean" else None, reduction)
