"""The splice plan from token ids that only the device holds: generation loops, and models whose batches are made by someone else.

The collator knows every length and plans on the host (``lmmblocks.plan_splice``), which is free and exact; this op is for callers who would have to
wait for the device to learn what they need. Its plan has the same fields, with room for what the shapes allow, and slack after
``cu_seqlens[-1]``: slack rows are zero, in no segment, supervised by nothing (``target_weights`` is 0 there).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..kernels.splice_codes import STATUS_WORDS
from ..ops.dispatch import Implementation, dispatch
from ..ops.library import kernel_op
from ..ops.triton_gate import triton_distrust, triton_refusal
from ..spec import IGNORE_LABEL, IMAGE_TOKEN, LmmError, closest
from .device_plan import DevicePlan
from .plan_from_tensors import plan_from_tensors
from .plan_status import check_plan, debugging

TRUNCATE = ("error", "right")
NO_LIMIT = 2**31 - 1


def splice_plan(
    token_ids: Tensor,
    image_rows: int,
    *,
    image_cu_rows: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    attention_mask: Tensor | None = None,
    labels: Tensor | None = None,
    image_token: int = IMAGE_TOKEN,
    vocabulary: int = NO_LIMIT,
    max_length: int | None = None,
    truncate: str = "error",
    bidirectional_images: bool = False,
    total_rows: int | None = None,
    gradient: bool = True,
    status: Tensor | None = None,
    backend: str = "auto",
) -> DevicePlan:
    """Plan one packed batch on the device, without a sync.

    Args:
        token_ids: integers, ``(B, L)`` padded, or ``(N,)`` packed with ``cu_seqlens``.
        image_rows: ``M``, the rows that the images of the batch have together: ``rows.shape[0]`` of what the projector gave.
        image_cu_rows: ``(I + 1,)`` boundaries of the images among these rows: each mark stands for one image. None = the marks are expanded already,
            each stands for one row, as transformers' processors write them.
        cu_seqlens: ``(B + 1,)`` boundaries of packed ids.
        attention_mask: ``(B, L)`` of padded ids, 0 = padding, on any side; None = no id is padding.
        labels: as ``token_ids``, -100 = not supervised; those of marks don't count. None = nothing is supervised.
        image_token: the id that marks an image; may be an id of the vocabulary.
        vocabulary: ids must be below; pass the rows of the embedding table.
        max_length: most rows a segment may have.
        truncate: ``error`` (a longer sample is a fault) or ``right``. Other policies move samples and need the host's plan.
        bidirectional_images: each image row sees its whole image; needs ``image_cu_rows``.
        total_rows: ``T``, where the host knows it or a tighter bound; None = what the shapes allow.
        gradient: sort the text rows for the gradient of the table; False saves the sort where the table is frozen.
        status: of an earlier plan, int32 ``(4,)``: keeps the first fault of both. None = a new one.
        backend: ``auto`` or the name of an implementation.

    Returns:
        The plan, on the device of the ids. Faults are in its ``status``: see :func:`~lmmblocks.experimental.check_plan`. Only the total of the marks
        is compared with that of the images; which sample owns which image isn't known here.

    Raises:
        LmmError: shapes or options don't fit; with ``LMMBLOCKS_DEBUG=1``, or in the reference, also what is wrong with the values.
    """
    _check(
        token_ids,
        cu_seqlens,
        attention_mask,
        labels,
        image_cu_rows,
        truncate,
        max_length,
        bidirectional_images,
        status,
    )
    samples = token_ids.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    marks = image_rows if image_cu_rows is None else image_cu_rows.shape[0] - 1
    room = max(token_ids.numel() - marks, 0) + image_rows
    room = min(room, samples * max_length) if max_length is not None else room
    plan = dispatch(
        "splice_plan",
        token_ids,
        cu_seqlens,
        attention_mask,
        labels,
        image_cu_rows,
        token_ids.new_zeros(STATUS_WORDS, dtype=torch.int32) if status is None else status,
        backend=backend,
        image_token=image_token,
        vocabulary=vocabulary,
        image_rows=image_rows,
        capacity=room if total_rows is None else total_rows,
        max_length=max_length,
        truncate=truncate,
        bidirectional=bidirectional_images,
        gradient=gradient,
    )
    if debugging():
        check_plan(plan)
    return plan


def _check(
    ids: Tensor,
    cu_seqlens: Tensor | None,
    mask: Tensor | None,
    labels: Tensor | None,
    image_cu_rows: Tensor | None,
    truncate: str,
    max_length: int | None,
    bidirectional: bool,
    status: Tensor | None,
) -> None:
    problems = []
    if ids.dim() != (2 if cu_seqlens is None else 1):
        problems.append(f"ids must be (B, L), or (N,) with cu_seqlens, found {tuple(ids.shape)} {'without' if cu_seqlens is None else 'with'} it")
    if cu_seqlens is not None and mask is not None:
        problems.append("packed ids have no padding: pass cu_seqlens or attention_mask, not both")
    for name, tensor in (("attention_mask", mask), ("labels", labels)):
        if tensor is not None and tensor.shape != ids.shape:
            problems.append(f"{name} must have the shape of the ids {tuple(ids.shape)}, found {tuple(tensor.shape)}")
    for name, tensor in (("ids", ids), ("labels", labels)):
        if tensor is not None and (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool):
            problems.append(f"{name} must be integers, found {tensor.dtype}")
    for name, tensor in (("cu_seqlens", cu_seqlens), ("image_cu_rows", image_cu_rows)):
        if tensor is not None and (tensor.dim() != 1 or not tensor.shape[0]):
            problems.append(f"{name} must be boundaries (n + 1,), found {tuple(tensor.shape)}")
    if truncate not in TRUNCATE:
        problems.append(f"truncate={truncate!r} is none of {TRUNCATE}{closest(truncate, TRUNCATE)}; 'drop' and 'turn' need lmmblocks.plan_splice")
    if max_length is not None and max_length < 1:
        problems.append(f"max_length must be at least 1, found {max_length}")
    if bidirectional and image_cu_rows is None:
        problems.append("bidirectional_images needs image_cu_rows: expanded marks don't say where an image ends")
    wanted = ((STATUS_WORDS,), torch.int32, ids.device)
    if status is not None and (status.shape, status.dtype, status.device) != wanted:
        problems.append(f"status must be the int32 ({STATUS_WORDS},) of an earlier plan on {ids.device}")
    if problems:
        raise LmmError("splice_plan: " + "; ".join(problems))


def splice_plan_reference(*tensors: Any, gradient: bool, **options: Any) -> DevicePlan:
    """Copy the ids to the host and plan there; the only implementation that waits for the device."""
    return plan_from_tensors(*tensors, **options)


_PLAN = kernel_op(
    "splice_plan(Tensor ids, Tensor? cu_seqlens, Tensor? mask, Tensor? labels, Tensor? image_cu_rows, Tensor(a!) status, int image_token,"
    " int vocabulary, SymInt image_rows, SymInt capacity, SymInt max_length, bool truncate, bool bidirectional)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    "splice_plan:splice_plan",
    lambda ids, cu_seqlens, mask, labels, image_cu_rows, status, image_token, vocabulary, image_rows, capacity, max_length, truncate, bidirectional: (
        status.new_empty(capacity),
        status.new_empty(capacity),
        status.new_empty(ids.shape[0] + 1 if cu_seqlens is None else cu_seqlens.shape[0]),
        status.new_empty(image_rows),
        ids.new_empty(0 if labels is None else capacity, dtype=torch.int64),
        status.new_empty(capacity if bidirectional else 0),
    ),
)  # fmt: skip


def splice_plan_triton(
    ids: Tensor,
    cu_seqlens: Tensor | None,
    mask: Tensor | None,
    labels: Tensor | None,
    image_cu_rows: Tensor | None,
    status: Tensor,
    *,
    image_token: int,
    vocabulary: int,
    image_rows: int,
    capacity: int,
    max_length: int | None,
    truncate: str,
    bidirectional: bool,
    gradient: bool,
) -> DevicePlan:
    """Two launches, and a stable sort where a gradient is wanted."""
    limit = NO_LIMIT if max_length is None else max_length
    source_T, positions_T, cu_out, places_M, labels_T, kv_end_T = _PLAN(
        ids, cu_seqlens, mask, labels, image_cu_rows, status, image_token, vocabulary, image_rows, capacity, limit,
        truncate == "right", bidirectional,
    )  # fmt: skip
    target_rows, targets, weights = _supervised(labels_T, positions_T)
    return DevicePlan(
        source=source_T,
        positions=positions_T,
        cu_seqlens=cu_out,
        max_seqlen=min(capacity, limit),
        total_rows=capacity,
        target_rows=target_rows,
        targets=targets,
        kv_end=kv_end_T if bidirectional else None,
        image_rows=places_M,
        token_order=_token_order(source_T) if gradient else source_T[:0],
        lengths=(),
        target_counts=(),
        status=status,
        target_weights=weights,
    )


def _supervised(labels_T: Tensor, positions_T: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return rows whose next token is supervised, that token, and weight 1, with zeros after them."""
    last = labels_T.shape[0]
    if not last:
        return positions_T[:0], labels_T, torch.empty_like(labels_T, dtype=torch.float32)
    place = torch.arange(last, device=labels_T.device)
    supervised = (labels_T != IGNORE_LABEL) & (positions_T > 0)  # no row predicts the first of a segment
    row = torch.where(supervised, place, last).sort().values
    there = row < last
    targets = torch.where(there, labels_T.index_select(0, row.clamp_max(last - 1)), 0)
    return torch.where(there, row - 1, 0).int(), targets, there.float()


def _token_order(source_T: Tensor) -> Tensor:
    """Return the text rows sorted by token id (stable), -1 after them."""
    ids, order = torch.where(source_T >= 0, source_T, NO_LIMIT).sort(stable=True)
    return torch.where(ids < NO_LIMIT, order, -1).int()


def _triton_supports(ids: Tensor, *tensors: Tensor | None, **options: Any) -> bool | str:
    given = [tensor for tensor in (ids, *tensors) if tensor is not None]
    for tensor in given:
        if tensor.is_floating_point():
            return f"ids, masks, labels and boundaries are integers, found {tensor.dtype}"
        if tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
            return f"the last dimension of a tensor {tuple(tensor.shape)} has stride {tensor.stride(-1)}, not 1"
    if options["capacity"] >= NO_LIMIT or ids.numel() >= NO_LIMIT:
        return "more than 2^31 rows"
    return triton_refusal(*given) or True


def _triton_trusted(ids: Tensor, *tensors: Tensor | None, **options: Any) -> bool | str:
    return triton_distrust("splice_plan", ids) or True


SPLICE_PLAN_TRITON = Implementation("triton", splice_plan_triton, _triton_supports, _triton_trusted)
SPLICE_PLAN_REFERENCE = Implementation("reference", splice_plan_reference)
