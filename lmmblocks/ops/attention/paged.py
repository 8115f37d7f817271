"""Attention of new rows against a cache that is kept in pages, the lengths of the sequences known on the device only.

A page holds ``page_rows`` consecutive keys (or values) of one sequence; a table says which page comes when. Nothing of a call depends on how long
sequences are but what the device computes, so that a decoding step captured in a CUDA graph stays valid while they grow.

Source: paged caches are those of PagedAttention (Kwon et al. 2023, arXiv:2309.06180); splitting keys is Flash-Decoding (Dao et al. 2023).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...spec import LmmError
from ..activations import softcapped
from ..dispatch import Implementation, dispatch


class PagedCall(NamedTuple):
    """One call of :func:`paged_attention`, checked, its defaults filled in: what its implementations are functions of.

    Attributes:
        q_TNE: queries, ``rows`` for each sequence.
        k_pages: keys.
        v_pages: values.
        page_table: which page holds which keys.
        lengths: keys of each sequence.
        causal: see :func:`paged_attention`, as for the rest.
        scale: of the scores; never None here.
        max_length: most keys of a sequence; never None here.
        window: most keys up to its own place that a query sees.
        softcap: of the scores.
        part_keys: keys of a part.
        return_lse: whether the pair is asked for.
    """

    q_TNE: Tensor
    k_pages: Tensor
    v_pages: Tensor
    page_table: Tensor
    lengths: Tensor
    causal: bool
    scale: float
    max_length: int
    window: int | None = None
    softcap: float | None = None
    part_keys: int | None = None
    return_lse: bool = False

    @property
    def sequences(self) -> int:
        """How many sequences there are."""
        return self.lengths.shape[0]

    @property
    def rows(self) -> int:
        """Query rows of a sequence."""
        return self.q_TNE.shape[0] // max(self.sequences, 1)

    @property
    def page_rows(self) -> int:
        """Keys of a page."""
        return self.k_pages.shape[1]


def paged_attention(
    q_TNE: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    page_table: Tensor,
    lengths: Tensor,
    *,
    causal: bool = True,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    max_length: int | None = None,
    part_keys: int | None = None,
    return_lse: bool = False,
    backend: str = "auto",
) -> Any:
    """Softmax attention of the newest rows of ``S`` sequences against all their keys, which lie in pages.

    The new rows' own keys and values are written into the pages before the call and counted in ``lengths``. There is no backward: this is for
    decoding. A sequence with fewer new rows than others is padded in front: rows are aligned to the end of their sequence.

    Args:
        q_TNE: queries ``(S * rows, N, E)``, as many rows for each sequence, 1 to 16 for the kernels.
        k_pages: keys ``(pages, page_rows, K, E)`` with ``N % K == 0``. Only the last stride must be 1: ``(pages, K, page_rows, E)`` is given
            as ``k_pages.transpose(1, 2)``, and keys and values may be views of one tensor.
        v_pages: values, shape of the keys.
        page_table: int32 ``(S, max_pages)``: key ``j`` of sequence ``s`` lies in row ``j % page_rows`` of page ``page_table[s, j // page_rows]``.
            Pages may be shared. Entries after the last key are not looked at, nor are rows of pages that hold no visible key.
        lengths: int32 ``(S,)``: keys of each sequence, the new rows' included; 0 is a sequence without keys (its rows come out as zeros). At
            most ``max_pages * page_rows``.
        causal: row ``i`` of a sequence sees keys up to its own place ``length - rows + i``; False: all of them.
        scale: default ``E ** -0.5``.
        window: a query sees no key older than the newest ``window`` up to its own place, itself included; None = all.
        softcap: scores become ``softcap * tanh(scores / softcap)`` before the softmax (Gemma 2).
        max_length: most keys that a sequence has or will have when a captured call is run again; None = what the table has room for. It decides
            how many parts the keys may be split into.
        part_keys: keys of a part, a multiple of 16. None = so long that the device is busy, which depends on how long the other sequences are;
            with a number, a sequence's result has the same bits in whatever batch it is.
        return_lse: also return the logarithm of the sum that the softmax divides by.
        backend: ``auto`` or the name of an implementation.

    Returns:
        ``out_TNE``, dtype of ``q``; rows that see no key are zero. With ``return_lse`` a pair ``(out_TNE, lse_TN)``, ``lse`` natural and in fp32
        (fp64 for fp64), ``-inf`` for rows that see no key.

    Raises:
        LmmError: shapes or dtypes that don't fit together, or a forced backend that refuses.

    >>> pages = torch.randn(3, 16, 1, 8)
    >>> table, lengths = torch.tensor([[2, 0]], dtype=torch.int32), torch.tensor([20], dtype=torch.int32)
    >>> paged_attention(torch.randn(1, 4, 8), pages, pages, table, lengths).shape
    torch.Size([1, 4, 8])
    """
    _check(q_TNE, k_pages, v_pages, page_table, lengths)
    numbers = {"window": window, "softcap": softcap, "max_length": max_length, "part_keys": part_keys}
    wrong = {name: value for name, value in numbers.items() if value is not None and value <= 0}
    if wrong or (part_keys or 0) % 16:
        raise LmmError(f"paged_attention: {wrong or numbers}: expected numbers above 0 or None, and part_keys a multiple of 16")
    room = page_table.shape[1] * k_pages.shape[1]
    call = PagedCall(
        q_TNE, k_pages, v_pages, page_table, lengths, causal,
        q_TNE.shape[-1] ** -0.5 if scale is None else scale, room if max_length is None else min(max_length, room),
        window, softcap, part_keys, return_lse,
    )  # fmt: skip
    return dispatch("paged_attention", call, backend=backend)


def _check(q: Tensor, k: Tensor, v: Tensor, table: Tensor, lengths: Tensor) -> None:
    """Raise one LmmError with everything that doesn't fit."""
    found = []
    if q.dim() != 3 or k.dim() != 4 or k.shape != v.shape or q.shape[-1] != k.shape[-1] or not k.shape[0] * k.shape[1]:
        shapes = [tuple(x.shape) for x in (q, k, v)]
        found.append(f"q (S*rows,N,E) and equal k_pages, v_pages (pages,page_rows,K,E) with a page at least: found {shapes}")
    elif q.shape[1] % k.shape[2]:
        found.append(f"query heads a multiple of the {k.shape[2]} kv heads: found {q.shape[1]}")
    if lengths.dim() != 1 or table.dim() != 2 or table.shape[0] != lengths.shape[0]:
        found.append(f"page_table (S,max_pages) and lengths (S,): found {tuple(table.shape)} and {tuple(lengths.shape)}")
    elif q.shape[0] % lengths.shape[0] if lengths.shape[0] else q.shape[0]:
        found.append(f"as many query rows for each of {lengths.shape[0]} sequences: found {q.shape[0]} rows")
    if {table.dtype, lengths.dtype} != {torch.int32}:
        found.append(f"page_table and lengths in int32: found {table.dtype} and {lengths.dtype}")
    if found:
        raise LmmError(f"paged_attention needs {'; '.join(found)}")


def paged_attention_reference(call: PagedCall) -> Tensor | tuple[Tensor, Tensor]:
    """The formula in fp32 (fp64 stays fp64) over all pages that the table has room for, gathered: the specification. Asks the device for nothing."""
    q, rows, heads = call.q_TNE, call.rows, call.k_pages.shape[2]
    wide = torch.promote_types(q.dtype, torch.float32)
    key, row = (torch.arange(n, device=q.device) for n in (call.page_table.shape[1] * call.page_rows, rows))
    place = call.lengths[:, None] - rows + row
    high = place + 1 if call.causal else call.lengths[:, None].expand_as(place)
    visible_SRJ = key < high[..., None]
    if call.window is not None:
        visible_SRJ &= key > (place - call.window)[..., None]
    used_SJ = visible_SRJ.any(1)
    k_SJKE, v_SJKE = (_gathered(pages, call.page_table, used_SJ).to(wide) for pages in (call.k_pages, call.v_pages))
    q_SRKGE = q.to(wide).unflatten(0, (call.sequences, rows)).unflatten(2, (heads, q.shape[1] // heads if heads else 0))
    scores = softcapped(torch.einsum("srkge,sjke->srkgj", q_SRKGE, k_SJKE) * call.scale, call.softcap)
    scores = scores.masked_fill(~visible_SRJ[:, :, None, None], float("-inf"))
    weights = torch.nan_to_num(scores.softmax(-1))
    out_TNE = torch.einsum("srkgj,sjke->srkge", weights, v_SJKE).reshape(q.shape).to(q.dtype)
    return (out_TNE, scores.logsumexp(-1).reshape(q.shape[:2])) if call.return_lse else out_TNE


def _gathered(pages: Tensor, table: Tensor, used_SJ: Tensor) -> Tensor:
    """Return the rows of each sequence in order, ``(S, max_pages * page_rows, K, E)``; zeros where not used, whatever lies in the pages."""
    held = used_SJ.unflatten(1, (table.shape[1], pages.shape[1])).any(2)
    rows_SJKE = pages[torch.where(held, table, 0)].flatten(1, 2)
    return torch.where(used_SJ[..., None, None], rows_SJKE, 0)


PAGED_ATTENTION_REFERENCE = Implementation("reference", paged_attention_reference)
