"""What a block must offer. Structural typing: no base class, only the attributes and methods named here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from .features import PATCHES, FeatureSpec, VisionFeatures
from .grids import Grid, TileGrid
from .segments import Segments

if TYPE_CHECKING:
    from torch import Tensor


@runtime_checkable
class Preprocess(Protocol):
    """Pictures to what an encoder takes. ``ImagePreprocess``, ``TilePreprocess`` and others of ``lmmblocks.images``; plain values, picklable."""

    def batch(self, images: Sequence[Any]) -> tuple[Any, tuple[Grid, ...]]:
        """Return the pixels of all images (see :class:`Encoder`), and the grid of each."""
        ...


@runtime_checkable
class Tokenizer(Protocol):
    """What the library asks of a tokenizer; those of transformers have it."""

    def __len__(self) -> int:
        """Return the number of ids."""
        ...

    def __call__(self, text: str, **options: Any) -> Any:
        """Return a mapping with ``input_ids``."""
        ...

    def get_vocab(self) -> dict[str, int]:
        """Return the id of every token."""
        ...

    def get_added_vocab(self) -> dict[str, int]:
        """Return the id of every token that was added to the vocabulary."""
        ...

    def add_tokens(self, new_tokens: Any, **options: Any) -> int:
        """Add tokens and return how many were new."""
        ...


@runtime_checkable
class Encoder(Protocol):
    """Images to packed patch features.

    Its pixels are a tensor ``(I, 3, H, W)``, or something that is cut, moved and pinned like one (``lmmblocks.images.pixels``). An encoder that
    cuts images into tiles also has an ``arrangement``.
    """

    spec: FeatureSpec
    preprocess: Preprocess

    def forward(self, pixels: Any, *, need: frozenset[str] = PATCHES) -> VisionFeatures:
        """Encode pixels into packed features."""
        ...

    def __call__(self, pixels: Any, *, need: frozenset[str] = PATCHES) -> VisionFeatures:
        """Call ``forward``, as every module does."""
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

    def forward(self, features: VisionFeatures) -> Tensor:
        """Return ``rows_MD``, image after image, of each as many as ``out_grid`` says."""
        ...


@runtime_checkable
class Reducer(Protocol):
    """Drops or merges image rows before the decoder sees them.

    ``before_projector`` (optional, default False): it works on the encoder's features instead of on the projected rows; then ``rows`` are
    ``features.patches``, and a projector that takes each patch alone comes after it. The number of rows has to follow from the grid: the plan of
    a batch is made on the host, before the encoder runs.
    """

    requires: frozenset[str]

    def out_count(self, grid: Grid | int) -> Grid | int:
        """Return what one image keeps of ``grid``: a grid where rows form one, else their number."""
        ...

    def forward(self, features: VisionFeatures, rows: Tensor, grids: tuple[Grid | int, ...]) -> Tensor:
        """Return the kept ``rows_MD``, of each image as many as ``out_count`` says; ``grids`` say what ``rows`` are of each image now."""
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
    of the logits, which ``head`` applies itself and the loss has to); left out or None, there is none. ``sees_ahead`` is True, or why rows
    with a ``kv_end`` can't be computed in every pass (with a cache too). ``table_is_weight`` and ``head_is_weight`` are False where ``embed`` or
    ``head`` do more than the weights say, and then are called instead. ``hook_offers`` says what layer hooks
    may require of it (``decoders/hooks.py``); one that offers ``vision`` takes ``forward(..., vision=None)`` too.
    ``resize_vocab(rows)`` makes table and head longer, where tokens may be added.
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

    def __call__(self, embeds: Tensor, **options: Any) -> Tensor:
        """Call ``forward``, as every module does."""
        ...

    def head(self, hidden: Tensor) -> Tensor:
        """Return ``logits`` of hidden rows."""
        ...

    def new_cache(self, sequences: int) -> Any:
        """Return an empty cache for ``sequences`` sequences, which generation needs."""
        ...
