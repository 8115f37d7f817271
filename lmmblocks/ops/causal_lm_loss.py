"""The loss of a transformers causal language model from its hidden states, without its logits.

``model(labels=...)`` makes ``B x S x V`` logits, shifts the labels and averages over those that are not ignored. The same number comes from
the hidden states and the head by :func:`~lmmblocks.ops.linear_cross_entropy`, which keeps no logits.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..spec import LmmError
from .linear_cross_entropy import IGNORED, linear_cross_entropy


def causal_lm_loss(
    hidden: Tensor,
    weight_VD: Tensor,
    labels: Tensor,
    *,
    num_items_in_batch: Tensor | int | None = None,
    capacity: int | None = None,
    shifted: bool = False,
    ignore_index: int = IGNORED,
    softcap: float | None = None,
    bias_V: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Return the loss that ``AutoModelForCausalLM(..., labels=labels)`` returns.

    Only rows with a label need the head. How many there are, a device can't say without being waited for, so it is taken from where it is known:

    * labels on the host, as a data loader gives them: they are counted there and exactly their rows reach the head;
    * labels on the device with ``capacity``: that many rows reach the head, those with a label in front, found on the device;
    * labels on the device alone: all rows reach the head, ignored ones with a gradient of zeros.

    None of them waits for the device. A batch of ``lmmblocks.collate`` brings the list of its rows, which is better still:
    ``linear_cross_entropy(hidden.index_select(0, plan.target_rows), weight, plan.targets)``.

    Args:
        hidden: ``(B, S, D)``, or ``(T, D)`` of one packed row, whose segments begin with an ignored label: the output of the decoder's last norm,
            ``model.model(...).last_hidden_state``.
        weight_VD: of the head, ``model.lm_head.weight``.
        labels: int64, shape of ``hidden`` without ``D``; the label of a row is the token at its own place.
        num_items_in_batch: what the sum is divided by, as transformers' trainer gives it; None = the labels that are not ignored.
        capacity: see above; with more labels than that the loss is NaN, never a sum over some of them.
        shifted: labels are the next tokens already (transformers' ``shift_labels``).
        ignore_index: label of a row without loss.
        softcap: see ``linear_cross_entropy`` (``final_logit_softcapping`` of Gemma 2).
        bias_V: of the head.
        backend: ``auto`` or the name of an implementation.

    Returns:
        fp32 scalar. A batch without labels gives 0, where transformers gives NaN.

    Raises:
        LmmError: labels and hidden rows that don't fit together, or a capacity below 1.

    >>> hidden, head, labels = torch.randn(2, 3, 4), torch.randn(7, 4), torch.tensor([[1, 2, -100], [-100, 6, 0]])
    >>> plain = F.cross_entropy((hidden @ head.T)[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    >>> torch.allclose(causal_lm_loss(hidden, head, labels), plain)
    True
    """
    if hidden.shape[:-1] != labels.shape or hidden.dim() < 2:
        raise LmmError(
            f"causal_lm_loss: hidden rows {tuple(hidden.shape)} need labels {tuple(hidden.shape[:-1])}, found {tuple(labels.shape)}: "
            "don't shift or flatten one of them alone"
        )
    if capacity is not None and capacity < 1:
        raise LmmError(f"causal_lm_loss: capacity must be 1 or more, found {capacity}: leave it out to take every row")
    targets = (labels if shifted else F.pad(labels, (0, 1), value=ignore_index)[..., 1:]).flatten()
    if ignore_index != IGNORED:
        targets = torch.where(targets == ignore_index, IGNORED, targets)
    hidden_TD, kept, most = hidden.flatten(0, -2), targets != IGNORED, capacity
    if labels.device.type == "cpu":
        most = max(1, int(kept.sum())) if capacity is None else capacity  # counting on the host waits for no device
    overflow = None
    if most is not None and most < targets.shape[0]:
        rows = torch.argsort(~kept, stable=True)[:most]
        overflow = kept.sum() > most
        targets, hidden_TD = (
            targets[rows],
            hidden_TD.index_select(0, rows.to(hidden.device, non_blocking=True)),
        )
    targets = targets.to(hidden.device, non_blocking=True)
    normalizer = num_items_in_batch.to(hidden.device) if isinstance(num_items_in_batch, Tensor) else num_items_in_batch
    loss = linear_cross_entropy(hidden_TD, weight_VD, targets, normalizer=normalizer, softcap=softcap, bias_V=bias_V, backend=backend)
    if overflow is None:
        return loss
    return loss * torch.where(overflow.to(hidden.device, non_blocking=True), float("nan"), 1.0)
