"""The contracts between blocks: what travels from collator to loss, and what a block must offer.

Shape legend, used in every docstring and hot function (``q_TNE``):

``S`` segments (conversations), ``T`` packed tokens, ``R`` supervised rows, ``I`` images, ``M`` image rows of a batch,
``P`` patches, ``H``/``W`` grid, ``N`` heads, ``K`` kv heads, ``E`` head dim, ``D`` model dim, ``C`` encoder dim, ``V`` vocabulary.

Structural typing throughout: a user's class needs no base class, only the attributes and methods named here.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from .instruction import Instruction

IMAGE_TOKEN = -200
"""Marks one image among token ids. Never a vocabulary id (LLaVA ``constants.py:8``)."""

IGNORE_LABEL = -100
"""Label of a token nobody has to predict (LLaVA ``constants.py:7``)."""


class LmmError(ValueError):
    """A mistake the user can mend: says what was found, what was expected and what to change.

    The command line prints it without a traceback and exits with 2.
    """


def closest(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the nearest known name, else an empty string.

    >>> closest("vicunna_v1", ["plain", "vicuna_v1"])
    "; did you mean 'vicuna_v1'?"
    """
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {match[0]!r}?" if match else ""


@dataclass(frozen=True, slots=True)
class Grid:
    """Patch rows ``h`` and columns ``w`` of one image after the encoder."""

    h: int
    w: int

    @property
    def rows(self) -> int:
        """Number of patches, ``h * w``."""
        return self.h * self.w

    def __str__(self) -> str:
        return f"{self.h}x{self.w}"


@dataclass(frozen=True, slots=True)
class TileGrid:
    """How one image was cut into tiles of equal size; stands where images of one tile have a ``Grid``.

    Attributes:
        tiles: rows and columns of tiles.
        each: patch grid of one tile after the encoder.
        width_px: of the picture itself; what of the tiles is padding follows from it.
        height_px: of the picture itself.
        global_view: one more tile, in front of the others, shows the whole picture.
    """

    tiles: Grid
    each: Grid
    width_px: int
    height_px: int
    global_view: bool = True

    @property
    def count(self) -> int:
        """Number of tiles that the encoder sees.

        >>> TileGrid(Grid(1, 2), Grid(24, 24), 640, 300).count
        3
        """
        return self.tiles.rows + self.global_view


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureSpec:
    """What an encoder will emit, known before any tensor exists.

    Attributes:
        dim: width ``C`` of each patch feature.
        patch: side of a patch in pixels.
        image_size: side of the square input in pixels; None = native resolution.
        prefix: tokens in front of the patches inside the encoder (CLS, registers); already removed from ``patches``.
        layers: hidden states that make up ``patches``, Hugging Face indexing (0 = embeddings, -1 = last layer).
        offers: of ``patches, prefix, layers, keys, cls_attn, towers``: what ``need=`` may ask for.
        towers: of an encoder that keeps several towers apart, what each of them emits; else empty.
        grid: patch grid of one image where it isn't ``image_size // patch`` squared.
    """

    dim: int
    patch: int
    image_size: int | None
    prefix: int = 0
    layers: tuple[int, ...] = (-2,)
    offers: frozenset[str] = frozenset({"patches"})
    towers: tuple[FeatureSpec, ...] = ()
    grid: Grid | None = None


@dataclass(slots=True)
class VisionFeatures:
    """Packed features of ``I`` images; nothing is padded. Of an image that was cut into tiles, each tile is an image here.

    Attributes:
        patches: ``(M, C)``, the prefix already removed.
        grids: one ``Grid`` per image; their rows add up to ``M``.
        prefix: ``(I, prefix, C)`` when asked for.
        layers: hidden-state index -> ``(M, C)`` when asked for.
        keys: ``(M, N, E)`` attention keys of the scoring layer when asked for.
        cls_attn: ``(M,)`` attention of CLS over the patches, mean over heads, when asked for.
        towers: of an encoder that keeps several towers apart, the features of each for the same images, when asked for.
        instruction: what is asked about each image, for projectors that require it; the model fills it in, not the encoder.
    """

    patches: Tensor
    grids: tuple[Grid, ...]
    prefix: Tensor | None = None
    layers: dict[int, Tensor] = field(default_factory=dict)
    keys: Tensor | None = None
    cls_attn: Tensor | None = None
    towers: tuple[VisionFeatures, ...] = ()
    instruction: Instruction | None = None


@dataclass(frozen=True, slots=True)
class Segments:
    """Boundaries of packed sequences for attention; ``len_q != len_k`` is aligned bottom-right.

    Attributes:
        cu_q: int32 ``(S+1,)`` boundaries of the queries, on the device.
        cu_k: int32 ``(S+1,)`` boundaries of the keys, on the device.
        max_q: longest query segment.
        max_k: longest key segment.
        lengths_q: the same lengths on the host, so that no implementation has to ask the device.
        lengths_k: host lengths of the key segments.
    """

    cu_q: Tensor
    cu_k: Tensor
    max_q: int
    max_k: int
    lengths_q: tuple[int, ...]
    lengths_k: tuple[int, ...]

    @staticmethod
    def of(
        lengths_q: Sequence[int],
        lengths_k: Sequence[int] | None = None,
        *,
        device: torch.device | str = "cpu",
    ) -> Segments:
        """Build segments from host lengths (keys default to the queries).

        >>> Segments.of([3, 0, 2]).cu_q.tolist()
        [0, 3, 3, 5]
        """
        q = tuple(int(n) for n in lengths_q)
        k = q if lengths_k is None else tuple(int(n) for n in lengths_k)
        if len(q) != len(k) or min((*q, *k), default=0) < 0:
            raise LmmError(f"segments need one non-negative key length per query length: found {q} and {k}")
        cu_q = boundaries(q).to(device, non_blocking=True)
        cu_k = cu_q if k == q else boundaries(k).to(device, non_blocking=True)
        return Segments(cu_q, cu_k, max(q, default=0), max(k, default=0), q, k)

    @staticmethod
    def uniform(count: int, length: int, length_k: int | None = None, *, device: torch.device | str = "cpu") -> Segments:
        """Build ``count`` segments of one length; the boundaries are computed where they are needed, nothing is copied from the host.

        >>> Segments.uniform(2, 3).cu_q.tolist(), Segments.uniform(2, 1, 4).cu_k.tolist()
        ([0, 3, 6], [0, 4, 8])
        """
        import torch

        steps = torch.arange(count + 1, dtype=torch.int32, device=device)
        of_k = length if length_k is None else length_k
        cu_q = steps * length
        cu_k = cu_q if of_k == length else steps * of_k
        most_q, most_k = (length, of_k) if count else (0, 0)
        return Segments(cu_q, cu_k, most_q, most_k, (length,) * count, (of_k,) * count)


def boundaries(lengths: Sequence[int]) -> Tensor:
    """Return the int32 ``(S+1,)`` running sum of host ``lengths``, starting at 0."""
    import torch

    cu = torch.zeros(len(lengths) + 1, dtype=torch.int32)
    if len(lengths):
        cu[1:] = torch.tensor(lengths, dtype=torch.int32).cumsum(0)
    return cu


@dataclass(frozen=True, slots=True)
class ImageSpan:
    """Where an image lies.

    Attributes:
        image: its number in the batch.
        segment: the segment that shows it.
        start: its first row, counted from the start of the segment.
        rows: how many of its rows are there; less than all where it was truncated.
    """

    image: int
    segment: int
    start: int
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SplicePlan:
    """One packed batch, built on the host and moved once; the device only executes it.

    Attributes:
        source: int32 ``(T,)``; ``>= 0``: row of the embedding table, ``< 0``: image row ``-(source + 1)``.
        positions: int32 ``(T,)``; restart per segment.
        cu_seqlens: int32 ``(S+1,)``.
        max_seqlen: longest segment.
        total_rows: ``T``.
        target_rows: int32 ``(R,)``; packed rows whose next token is supervised.
        targets: int64 ``(R,)``; the token each must predict.
        kv_end: int32 ``(T,)`` packed index one past the last visible key of each row; None = causal.
        image_rows: int32 ``(M,)``; packed row each image row went to, -1 if truncated away.
        token_order: int32; text rows sorted by token id (stable), for a deterministic embedding gradient.
        lengths: host lengths of the segments.
        target_counts: host number of supervised rows per segment.
        truncated: host number of tokens and image rows removed per segment.
        kept: indices of the input samples that became segments (``truncate="drop"`` leaves some out).
        image_spans: host place of every image of which a row is left.
    """

    source: Tensor
    positions: Tensor
    cu_seqlens: Tensor
    max_seqlen: int
    total_rows: int
    target_rows: Tensor
    targets: Tensor
    kv_end: Tensor | None
    image_rows: Tensor
    token_order: Tensor
    lengths: tuple[int, ...]
    target_counts: tuple[int, ...]
    truncated: tuple[int, ...] = ()
    kept: tuple[int, ...] = ()
    image_spans: tuple[ImageSpan, ...] = ()

    @property
    def segments(self) -> Segments:
        """The plan's boundaries as self-attention segments (no device work)."""
        cu, most = self.cu_seqlens, self.max_seqlen
        return Segments(cu, cu, most, most, self.lengths, self.lengths)

    def to(self, device: torch.device | str) -> SplicePlan:
        """Return the plan with every tensor on ``device``; pinned host memory is copied without blocking."""
        return _moved(self, lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> SplicePlan:
        """Return the plan with every tensor in pinned host memory."""
        return _moved(self, lambda tensor: tensor.pin_memory())


@dataclass(frozen=True, slots=True)
class Sample:
    """One conversation before tokenising.

    Attributes:
        messages: ``{"role": "user" | "assistant" | "system", "content": str}``; ``<image>`` marks an image.
        images: paths or PIL images, in the order of their markers.
        id: names the sample in messages about it.
    """

    messages: list[dict[str, str]]
    images: list[Any] = field(default_factory=list)
    id: str | int | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """What a model eats: pixels of all images, their grids, and the plan that places them.

    Attributes:
        pixels: what the encoder's preprocessing made of all images: ``(I, 3, H, W)`` for fixed-size encoders, else see ``lmmblocks.pixels``.
        grids: one ``Grid`` per image, after the encoder; a ``TileGrid`` where it was cut into tiles.
        plan: the packed batch.
        sample_ids: names of the segments, for messages.
        instruction: what is asked about each image, where the projector reads it.
    """

    pixels: Any
    grids: tuple[Grid | TileGrid, ...]
    plan: SplicePlan
    sample_ids: tuple[str | int | None, ...] = ()
    instruction: Instruction | None = None

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch with every tensor on ``device``."""
        instruction = None if self.instruction is None else self.instruction.to(device)
        return replace(self, pixels=self.pixels.to(device, non_blocking=True), plan=self.plan.to(device), instruction=instruction)

    def pin_memory(self) -> Batch:
        """Return the batch in pinned host memory (``DataLoader(pin_memory=True)`` calls this)."""
        instruction = None if self.instruction is None else self.instruction.pin_memory()
        return replace(self, pixels=self.pixels.pin_memory(), plan=self.plan.pin_memory(), instruction=instruction)


def _moved(plan: SplicePlan, move: Callable[[Tensor], Tensor]) -> SplicePlan:
    import torch

    values = {f.name: getattr(plan, f.name) for f in fields(plan)}
    moved: dict[str, Any] = {name: move(v) for name, v in values.items() if isinstance(v, torch.Tensor)}
    return replace(plan, **moved)


PATCHES = frozenset({"patches"})


@runtime_checkable
class Encoder(Protocol):
    """Images to packed patch features.

    Its pixels are a tensor ``(I, 3, H, W)``, or something that is cut, moved and pinned like one (``lmmblocks.pixels``). An encoder that
    cuts images into tiles also has an ``arrangement``.
    """

    spec: FeatureSpec
    preprocess: Any

    def forward(self, pixels: Any, *, need: frozenset[str] = PATCHES) -> VisionFeatures:
        """Encode pixels into packed features."""
        ...


@runtime_checkable
class Arrangement(Protocol):
    """How the projected rows of an image's tiles become the rows of the image; runs between projector and splice.

    Encoder and projector see each tile as an image. The arrangement is plain values, so that a data loader's worker counts with it;
    ``build`` makes the module that computes, which holds what is learned in the decoder's width (LLaVA-NeXT's ``image_newline``).
    """

    def rows_of(self, layout: TileGrid, out_grid: Callable[[Grid], Grid | int]) -> int:
        """Return the rows of one image; ``out_grid`` says what one tile becomes. The only place that counts the rows of tiled images."""
        ...

    def build(self, dim: int) -> Any:
        """Return the module, called with ``(rows_MD, layouts, out_grid)``; it returns the images' rows and the number of each."""
        ...


@runtime_checkable
class Projector(Protocol):
    """Patch features to rows of the decoder's width."""

    requires: frozenset[str]

    def out_grid(self, grid: Grid) -> Grid | int:
        """Return the grid (or the number of rows) one image of ``grid`` becomes: the only place that counts image tokens."""
        ...

    def forward(self, features: VisionFeatures) -> tuple[Tensor, tuple[int, ...]]:
        """Return ``rows_MD`` and the number of rows of each image."""
        ...


@runtime_checkable
class Reducer(Protocol):
    """Drops or merges image rows before the decoder sees them.

    ``before_projector`` (optional, default False): it works on the encoder's features instead of on the projected rows; then ``rows`` are
    ``features.patches``, and a projector that takes each patch alone comes behind it. The number of rows has to follow from the grid: the plan of
    a batch is made on the host, before the encoder runs.
    """

    requires: frozenset[str]

    def out_count(self, grid: Grid | int) -> Grid | int:
        """Return what one image keeps of ``grid``: a grid where rows form one, else their number."""
        ...

    def forward(
        self, features: VisionFeatures, rows: Tensor, grids: tuple[Grid | int, ...]
    ) -> tuple[Tensor, tuple[int, ...]]:
        """Return the kept ``rows_MD`` and the number of rows of each image; ``grids`` say what ``rows`` are of each image now."""
        ...


@runtime_checkable
class LayerHook(Protocol):
    """Changes the hidden states between decoder layers (FastV, DeepStack, Flamingo cross-attention).

    ``requires``: of ``lmmblocks.decoders.hooks.HOOK_OFFERS`` (``vision``, ``last_row_scores``, ``drop``) and of what encoders offer (``layers``,
    ``keys``, ...), which is then in ``context.vision.features``. Hooks that are modules are trained as the part ``hooks``.
    """

    layers: tuple[int, ...]
    requires: frozenset[str]

    def __call__(self, hidden: Tensor, context: Any) -> Tensor | tuple[Tensor, Any]:
        """Return the new ``hidden_TD`` that enters layer ``context.layer``, or what ``context.keep(...)`` returned."""
        ...


@runtime_checkable
class Decoder(Protocol):
    """A language model over packed rows. Returns hidden states; the loss owns the head.

    Attributes:
        dim: model width ``D``.
        vocab: rows of the embedding table.
        table: the embedding table ``(V, D)``, which the splice reads.
        head_weight: the head ``(V, D)``, which the loss reads.

    A decoder may also have ``embed_scale`` (factor of the table's rows, which the splice applies to text) and ``logit_softcap`` (soft limit
    of the logits, which ``head`` applies itself and the loss has to); left out or None, there is none. ``hook_offers`` says what layer hooks
    may require of it (``decoders/hooks.py``); one that offers ``vision`` takes ``forward(..., vision=None)`` too.
    """

    dim: int
    vocab: int
    table: Tensor
    head_weight: Tensor

    def embed(self, ids: Tensor) -> Tensor:
        """Look up ``ids_T`` in the embedding table."""
        ...

    def forward(
        self,
        embeds: Tensor,
        *,
        positions: Tensor,
        segments: Segments,
        kv_end: Tensor | None = None,
        cache: Any | None = None,
        hooks: Sequence[LayerHook] = (),
    ) -> Tensor:
        """Run packed ``embeds_TD`` and return ``hidden_TD`` after the final norm."""
        ...

    def head(self, hidden: Tensor) -> Tensor:
        """Return ``logits`` of hidden rows."""
        ...

    def new_cache(self, sequences: int) -> Any:
        """Return an empty cache for ``sequences`` sequences, which generation needs."""
        ...


def image_count(grid: Grid | int) -> int:
    """Return the number of rows of what ``Projector.out_grid`` gave.

    >>> image_count(Grid(2, 3)), image_count(5)
    (6, 5)
    """
    return grid.rows if isinstance(grid, Grid) else int(grid)
