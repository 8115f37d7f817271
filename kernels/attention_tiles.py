"""Launch tables of packed attention: one place for the forward and both backward kernels.

Not measured on a GPU. What decides, by head dim ``E``, read off the compiler's output (``resources.json``):

- Warps should lie along what a program holds (rows forward and for dq, keys for dk/dv), so that the softmax and the second product stay within a
  warp. On Ampere Triton does so only where a tile holds at least as many rows as one part of the head has columns: 64 for ``E <= 96``,
  128 for ``E = 128``. Else weights go through shared memory, one more barrier a block: accepted for dk/dv at ``E = 128``, where two
  accumulators for 128 keys spill within the loop, and where two CTAs of 4 warps fit a multiprocessor.
- Held rows a warp: 32 at ``E = 64`` (4 warps, 128 rows), 16 elsewhere, where 32 would need more than the 255 registers of a thread.
- 64 keys forward, not 128, at ``E = 64``: 577 keys are then 9 blocks and a tail of 16.
- Spills lie between the loops over blocks. Within one, at ``E = 128``: a word a block of the forward on Ampere, and up to 7 of dk/dv for grouped
  heads on Hopper. At ``E = 256`` dk/dv is small on Hopper for this reason, too small for warp-group products.
- Hopper's warp-group products read keys from shared memory, which leaves registers for larger tiles.

The forward tiles of ``E = 64`` and 128 are also those that PyTorch's FlexAttention settled on for A100 and (but for the keys at 64) H100
(``torch/_inductor/template_heuristics/triton.py``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch

from .head_parts import head_parts

DELTA_ROWS = 64
"""Rows of a tile of ``rowsum(dO * O)``: 4096 elements at a head dim of 64."""

SHORT_ROWS = 64
"""Query rows that get along with a tile of so many: two such CTAs fit where one of 128 does."""


@dataclass(frozen=True)
class Tile:
    """What one program holds and walks over.

    Attributes:
        rows: query rows of a block.
        keys: keys of a block.
        warps: of a program.
        stages: blocks in flight in the loop.
    """

    rows: int
    keys: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Tiles:
    """Tiles of the three kernels: forward and dq hold rows and walk over keys, dk/dv holds keys and walks over rows.

    Attributes:
        forward: rows held.
        dkdv: keys held.
        dq: rows held.
        forward_bytes: most shared memory of a forward, as the compiler has it (``resources.json``).
        backward_bytes: likewise of dkdv and dq, of which ``kv_end`` takes 256 bytes.
    """

    forward: Tile
    dkdv: Tile
    dq: Tile
    forward_bytes: int = 0
    backward_bytes: int = 0


_AMPERE = {
    64: Tiles(Tile(128, 64, 4, 3), Tile(64, 64, 4, 2), Tile(64, 64, 4, 2), 49152, 33536),
    96: Tiles(Tile(128, 64, 8, 2), Tile(64, 64, 4, 2), Tile(64, 64, 4, 2), 49152, 49920),
    128: Tiles(Tile(128, 64, 8, 2), Tile(32, 64, 4, 2), Tile(128, 32, 8, 2), 65536, 81920),
    256: Tiles(Tile(128, 32, 8, 2), Tile(32, 64, 8, 2), Tile(64, 32, 8, 2), 98304, 102912),
}
_HOPPER = {
    64: Tiles(Tile(128, 64, 4, 3), Tile(64, 128, 8, 2), Tile(128, 64, 8, 2), 65536, 66304),
    96: Tiles(Tile(128, 64, 8, 2), Tile(64, 128, 8, 2), Tile(128, 64, 8, 2), 73728, 99072),
    128: Tiles(Tile(128, 64, 8, 3), Tile(64, 128, 8, 2), Tile(128, 64, 8, 2), 131072, 131840),
    256: Tiles(Tile(128, 32, 8, 2), Tile(32, 32, 4, 2), Tile(64, 32, 8, 2), 131072, 131072),
}
_FP32 = {
    64: Tiles(Tile(32, 32, 4, 1), Tile(16, 32, 4, 1), Tile(32, 32, 4, 1), 20608, 32768),
    128: Tiles(Tile(16, 32, 4, 1), Tile(16, 16, 8, 1), Tile(16, 32, 4, 1), 26624, 49408),
    256: Tiles(Tile(16, 16, 4, 1), Tile(16, 16, 8, 1), Tile(16, 16, 4, 1), 33856, 67840),
}
"""Products of fp32 run on the plain cores, out of registers."""

_OVERRIDE: ContextVar[Tiles | None] = ContextVar("lmmblocks_attention_tiles", default=None)


@contextmanager
def tiles_are(tiles: Tiles) -> Iterator[None]:
    """Launch with these tiles inside a ``with`` block: for tests and for finding better ones."""
    token = _OVERRIDE.set(tiles)
    try:
        yield
    finally:
        _OVERRIDE.reset(token)


def tiles_for(head_dim: int, dtype: torch.dtype, capability: tuple[int, int]) -> Tiles:
    """Return the tiles of a call."""
    chosen = _OVERRIDE.get()
    if chosen is not None:
        return chosen
    small = capability < (9, 0) or capability[0] == 12  # 12.0 has Ampere's products, and no more shared memory than 8.6
    table = _FP32 if dtype == torch.float32 else _AMPERE if small else _HOPPER
    width = sum(head_parts(head_dim))
    return next(tiles for widest, tiles in table.items() if width <= widest)


def packed_heads(longest: int, group: int, tile: Tile) -> int:
    """Return how many query heads of a group share a tile of rows: all of them where segments don't fill it, else one."""
    return group if longest < tile.rows else 1


def shortened(tile: Tile, rows: int) -> Tile:
    """Return the tile of segments with at most ``rows`` rows: the same blocks of keys, so that every row comes out the same."""
    return Tile(SHORT_ROWS, tile.keys, 4, tile.stages) if rows <= SHORT_ROWS < tile.rows else tile
