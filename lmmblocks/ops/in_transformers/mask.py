"""What transformers calls, once a pass, where other implementations build a mask.

The mask is given as a function of indices. Plain causal and plain full are known by name; any other one (windows, packed rows, images that
see themselves whole) is read, a block of queries at a time, and must turn out to be what ``ops.attention`` computes: in each segment a
row sees the keys from the segment's start, or the start of a window, up to an end. Anything else is refused, never approximated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ...spec import LmmError, Segments
from .rows import AttentionRows, Piece, joined

ROWS_READ_AT_ONCE = 128


def rows_instead_of_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Tensor] | None = None,
    attention_mask: Tensor | AttentionRows | None = None,
    *,
    use_vmap: bool = False,
    device: torch.device | str = "cpu",
    **kwargs: Any,
) -> AttentionRows:
    """Return which rows attend to which.

    Args:
        batch_size: ``B``.
        q_length: queries ``Q`` of each sample.
        kv_length: keys ``K`` of each sample, those of a cache included.
        q_offset: place of the first query in its sample.
        kv_offset: place of the first key in its sample.
        mask_function: ``(b, head, q, k) -> bool`` of index tensors that broadcast; places, not rows.
        attention_mask: ``(B, places)``, False where a key is padding; None = nowhere. Or what was made of it before.
        use_vmap: the function is of a user's or a model's own making and takes one index at a time.
        device: of the rows.
        **kwargs: what other implementations need.

    Raises:
        LmmError: a mask that ``ops.attention`` doesn't compute.
    """
    from transformers.masking_utils import bidirectional_mask_function, causal_mask_function

    if isinstance(attention_mask, AttentionRows):
        return attention_mask
    if use_vmap:
        raise LmmError("lmmblocks' attention can't read a mask function of the model's own: use attn_implementation='sdpa'")
    device = torch.device(device)
    if mask_function is bidirectional_mask_function:
        return _full(batch_size, q_length, kv_length, _kept(attention_mask, kv_length, kv_offset), device)
    # A static cache holds its place on the device; looking at it is the price of leaving out the rows that it hasn't filled.
    first = int(q_offset) - kv_offset
    kept = _kept(attention_mask, kv_length, kv_offset)
    if mask_function is None or mask_function is causal_mask_function:
        if kept is None and first + q_length == kv_length:
            return AttentionRows(Segments.uniform(batch_size, q_length, kv_length, device=device), True)
        pieces = list(_causal(batch_size, q_length, kv_length, first, kept))
        return joined(pieces, batch_size * q_length, batch_size * kv_length, True, None, device)
    ranges = _read(mask_function, batch_size, (q_length, int(q_offset)), (kv_length, kv_offset), device)
    pieces, window = _pieces(ranges, first, kv_length, kept)
    return joined(pieces, batch_size * q_length, batch_size * kv_length, True, window, device)


def _kept(attention_mask: Tensor | None, kv_length: int, kv_offset: int) -> Tensor | None:
    """Return on the host, bool ``(B, K)``, which keys are no padding; None = all."""
    if attention_mask is None:
        return None
    kept = attention_mask[:, kv_offset : kv_offset + kv_length].to("cpu", torch.bool)
    kept = torch.nn.functional.pad(kept, (0, kv_length - kept.shape[1]))  # places of a static cache that are not filled yet
    return None if bool(kept.all()) else kept


def _full(batch: int, q_length: int, kv_length: int, kept: Tensor | None, device: torch.device) -> AttentionRows:
    """Every query, that of padding too (the keys may be another model's), sees every key that is no padding."""
    if kept is None:
        return AttentionRows(Segments.uniform(batch, q_length, kv_length, device=device), False)
    pieces = []
    for sample in range(batch):
        keys = sample * kv_length + kept[sample].nonzero().squeeze(1)
        if len(keys):
            pieces.append(Piece(sample * q_length + torch.arange(q_length), keys))
    return joined(pieces, batch * q_length, batch * kv_length, False, None, device)


def _causal(batch: int, q_length: int, kv_length: int, first: int, kept: Tensor | None) -> Iterator[Piece]:
    """Yield per sample the queries and keys that are no padding; keys after the last query are a cache's that isn't full."""
    for sample in range(batch):
        real = torch.ones(kv_length, dtype=torch.bool) if kept is None else kept[sample]
        keys = real[: first + q_length].nonzero().squeeze(1)
        queries = real[first : first + q_length].nonzero().squeeze(1)
        if len(queries):
            yield Piece(sample * q_length + queries, sample * kv_length + keys)


def _read(
    function: Callable[..., Tensor],
    batch: int,
    queries: tuple[int, int],
    keys: tuple[int, int],
    device: torch.device,
) -> Tensor:
    """Return on the host, int64 ``(3, B, Q)``, the first key a query sees, one past the last, and how many; ``(length, offset)`` are given."""
    (q_length, q_offset), (kv_length, kv_offset) = queries, keys
    b = torch.arange(batch, device=device)[:, None, None, None]
    head = torch.zeros(1, dtype=torch.int64, device=device)[:, None, None, None]
    k = torch.arange(kv_offset, kv_offset + kv_length, device=device)[None, None, None, :]
    blocks = []
    for start in range(0, q_length, ROWS_READ_AT_ONCE):
        stop = min(start + ROWS_READ_AT_ONCE, q_length)
        q = torch.arange(q_offset + start, q_offset + stop, device=device)[None, None, :, None]
        seen = function(b, head, q, k).expand(batch, 1, stop - start, kv_length)[:, 0].to(torch.uint8)
        blocks.append(torch.stack([seen.argmax(-1), kv_length - seen.flip(-1).argmax(-1), seen.sum(-1)]))
    return torch.cat(blocks, -1).cpu()


def _pieces(ranges: Tensor, first: int, kv_length: int, kept: Tensor | None) -> tuple[list[Piece], int | None]:
    """Cut each sample where a query doesn't see the row before it; return the segments, and the window that they share, if any."""
    # 1. Refuse what segments can't say: every row must see itself, and the keys it sees must have no gaps.
    starts_BQ, stops_BQ, counts_BQ = ranges
    q_length = starts_BQ.shape[1]
    places = torch.arange(first, first + q_length)
    if bool(((counts_BQ != stops_BQ - starts_BQ) | (starts_BQ > places) | (stops_BQ <= places)).any()):
        raise LmmError(_REFUSAL.format("a row that doesn't see itself, or sees keys with gaps between them"))
    # 2. A row whose first visible key is itself begins a segment; what lies between two such rows is one.
    pieces: list[Piece] = []
    windows: set[int] = set()
    shortest = 0
    for sample, (starts, stops) in enumerate(zip(starts_BQ, stops_BQ)):
        cuts = [0, *(row for row in (starts == places).nonzero().squeeze(1).tolist() if row), q_length]
        for low, high in zip(cuts, cuts[1:]):
            begin, end = int(starts[low]), int(places[high - 1]) + 1
            window, seen = _window(starts[low:high], places[low:high], begin)
            windows |= set() if window is None else {window}
            shortest = max(shortest, seen)
            if int(stops[low:high].max()) > end:
                raise LmmError(_REFUSAL.format("rows that see keys after the last row of their segment"))
            # 3. Padding inside a segment isn't visible: its rows and keys are left out.
            real = torch.ones(kv_length, dtype=torch.bool) if kept is None else kept[sample]
            pieces += _without_padding(
                real,
                begin,
                places[low:high],
                stops[low:high],
                (sample * q_length - first, sample * kv_length),
            )
    # 4. A call has one window. Segments too short to show theirs agree with any that is at least as wide as what they see.
    if len(windows) > 1 or (windows and shortest > min(windows)):
        raise LmmError(_REFUSAL.format(f"windows of different widths: {sorted(windows)}"))
    if windows and kept is not None and any(_has_holes(row) for row in kept):
        raise LmmError(_REFUSAL.format("a window over padding inside a sample"))
    return pieces, min(windows, default=None)


def _window(starts: Tensor, places: Tensor, begin: int) -> tuple[int | None, int]:
    """Return the window of a segment, None when each of its rows sees its start; and the most keys up to its own that a row sees."""
    most = int((places - starts + 1).max())
    if bool((starts == begin).all()):
        return None, most
    if not bool((starts == (places - most + 1).clamp_min(begin)).all()):
        raise LmmError(_REFUSAL.format("rows whose first visible keys are no window"))
    return most, most


def _without_padding(real: Tensor, begin: int, places: Tensor, stops: Tensor, shifts: tuple[int, int]) -> list[Piece]:
    """Return one segment, or none: its rows that are no padding, and where they end among its keys that are none."""
    end = int(places[-1]) + 1
    before = torch.cat([torch.zeros(1, dtype=torch.int64), real[begin:end].cumsum(0)])
    places, stops = places[real[places]], stops[real[places]]
    if not len(places):
        return []
    ends = before[stops - begin]
    is_causal = bool((stops == places + 1).all())
    keys = begin + real[begin:end].nonzero().squeeze(1)
    return [Piece(shifts[0] + places, shifts[1] + keys, None if is_causal else ends)]


def _has_holes(real: Tensor) -> bool:
    kept = real.nonzero().squeeze(1)
    return bool(len(kept)) and int(kept[-1] - kept[0]) + 1 != len(kept)


_REFUSAL = "lmmblocks' attention can't do what this model's mask asks for: {}; use attn_implementation='sdpa'"
