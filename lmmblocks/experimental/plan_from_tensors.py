"""The reference of the device plan: copy the ids to the host, plan there, and leave the room that the device plan leaves.

It waits for the device, so it serves where no kernel can and as what the kernel is compared with.
"""

from __future__ import annotations

from dataclasses import fields, replace

import torch
from torch import Tensor

from ..kernels.splice_codes import NOWHERE
from ..plans.host import plan_splice
from ..spec import LmmError, SplicePlan
from .device_plan import DevicePlan


def plan_from_tensors(
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
) -> DevicePlan:
    """Plan on the host, with the same arguments as the kernel; see :func:`~lmmblocks.experimental.splice_plan`.

    Returns:
        A plan on the device of ``ids`` with room for ``capacity`` rows, whose status is clean.

    Raises:
        LmmError: whatever the kernel would write into the status, at once.
    """
    samples = _per_sample(ids, cu_seqlens, mask)
    marks = sum(sample.count(image_token) for sample in samples)
    lengths = _image_lengths(image_cu_rows, image_rows, marks)
    text = [token for sample in samples for token in sample if token != image_token]
    wrong = [token for token in text if not 0 <= token < vocabulary]
    if wrong:
        raise LmmError(f"splice_plan: the id {wrong[0]} is neither in the vocabulary of {vocabulary} nor the image mark {image_token}")
    rest = iter(lengths)
    plan = plan_splice(
        samples,
        [[next(rest) for token in sample if token == image_token] for sample in samples],
        labels=None if labels is None else _per_sample(labels, cu_seqlens, mask),
        image_token=image_token,
        max_length=max_length,
        truncate=truncate,
        bidirectional_images=bidirectional,
    )
    if plan.total_rows > capacity:
        raise LmmError(f"splice_plan: the batch has {plan.total_rows} rows, the plan has room for {capacity}: raise total_rows")
    _report(status, plan)
    return _with_room(plan, capacity, labels is not None, status).to(ids.device)  # type: ignore[return-value]


def _per_sample(values: Tensor, cu_seqlens: Tensor | None, mask: Tensor | None) -> list[list[int]]:
    if cu_seqlens is not None:
        bounds, flat = cu_seqlens.tolist(), values.tolist()
        return [flat[begin:end] for begin, end in zip(bounds, bounds[1:])]
    if mask is None:
        return values.tolist()
    return [row[kept].tolist() for row, kept in zip(values.cpu(), (mask != 0).cpu())]


def _image_lengths(image_cu_rows: Tensor | None, image_rows: int, marks: int) -> list[int]:
    """Return the rows after each mark."""
    bounds = list(range(image_rows + 1)) if image_cu_rows is None else image_cu_rows.tolist()
    if bounds[0] != 0 or bounds[-1] != image_rows or bounds != sorted(bounds):
        raise LmmError(f"splice_plan: image_cu_rows must climb from 0 to the {image_rows} image rows, found {bounds[:5]}...{bounds[-1]}")
    if marks != len(bounds) - 1:
        what = "image rows" if image_cu_rows is None else "images"
        raise LmmError(f"splice_plan: the text has {marks} image marks, there are {len(bounds) - 1} {what}: they must be as many")
    return [end - begin for begin, end in zip(bounds, bounds[1:])]


def _report(status: Tensor, plan: SplicePlan) -> None:
    status[2:].copy_(torch.tensor([plan.total_rows, int(status[3]) + sum(plan.truncated)], dtype=torch.int32))


def _with_room(plan: SplicePlan, capacity: int, labelled: bool, status: Tensor) -> DevicePlan:
    slack, supervised = capacity - plan.total_rows, len(plan.targets)
    kv_end = plan.kv_end
    if kv_end is not None:
        kv_end = torch.cat([kv_end, torch.arange(plan.total_rows + 1, capacity + 1, dtype=torch.int32)])
    room = capacity if labelled else 0
    of_the_host = {field.name: getattr(plan, field.name) for field in fields(plan)}
    return replace(
        DevicePlan(**of_the_host, status=status),
        source=_filled(plan.source, capacity, NOWHERE),
        positions=_filled(plan.positions, capacity, 0),
        kv_end=kv_end,
        token_order=_filled(plan.token_order, capacity, -1),
        target_rows=_filled(plan.target_rows, room, 0),
        targets=_filled(plan.targets, room, 0),
        target_weights=_filled(torch.ones(supervised), room, 0),
        total_rows=plan.total_rows + slack,
        lengths=(),
        target_counts=(),
        truncated=(),
        kept=(),
        image_spans=(),
    )


def _filled(values: Tensor, length: int, value: int) -> Tensor:
    """Return ``values`` with ``value`` after them up to ``length``."""
    return torch.cat([values, values.new_full((length - len(values),), value)])
