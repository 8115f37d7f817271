"""What the original LLaVA's training writes over another model: a projector (stage 1), or a LoRA adapter with what was trained beside it.

| form | how it is known | where its parts are |
|---|---|---|
| projector over a base | ``mm_projector.bin``, no other weights | language model from the base, tower where ``mm_vision_tower`` says |
| LoRA over a base | ``adapter_config.json`` and the adapter | the base, under ``non_lora_trainables.bin``, with the adapter merged |

The base is a language model, a whole model of any system, or again something over one.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ...config import LMMConfig
from ...files.locate import locate
from ...spec import LmmError
from .. import lora
from ..files.maps import LLAMA_LAYOUTS, inside
from ..files.overlay import in_dtype, overlaid, renamed
from ..files.stored_dtypes import decoder_dtype
from ..files.tensors import CONFIG, WeightFiles, has_weights, open_file, open_weights, read_json
from ..parts.hf_decoders import decoder_from_hf
from .identify import identify
from .llava_original import in_one_dtype, named_tower, original_config, tower_files
from .llava_original_config import TOWER, is_original
from .llava_original_names import PROJECTOR_LAYOUTS, TRAINABLE_LAYOUTS
from .system import ModelFolder, System, tokenizer_inside

PROJECTOR_FILE = "mm_projector.bin"
TRAINABLES = "non_lora_trainables.bin"
_DECODER_LAYOUTS = [inside(each, "language_model.") for each in LLAMA_LAYOUTS]


@dataclass(frozen=True)
class _Base:
    """What a folder lies over.

    Attributes:
        folder: where it is.
        system: what it is; None = a language model alone.
    """

    folder: ModelFolder
    system: System | None

    @property
    def decoder(self) -> Any:
        """Config of its language model."""
        return decoder_from_hf(read_json(self.folder.path / CONFIG)) if self.system is None else self.system.config(self.folder).decoder

    @property
    def stored_vocab(self) -> int | None:
        """Token rows in its files when these may be more than it has."""
        return None if self.system is None else self.system.stored_vocab(self.folder)

    def weights(self, over: ModelFolder, expected: Collection[str], dtype: torch.dtype | None) -> WeightFiles:
        """Return its weights and, below those of a language model alone, those of the tower that the folder over it names."""
        if self.system is not None:
            return self.system.weights(self.folder, self.system.files(self.folder), expected, dtype)
        return overlaid(tower_files(over), renamed(open_weights(self.folder.path), _DECODER_LAYOUTS, expected))


def _base(folder: ModelFolder, form: System) -> _Base:
    """Return the base: the one given, else the one that the training wrote down.

    Raises:
        LmmError: it is nowhere, or a language model alone under a folder that names no tower.
    """
    if "base" not in folder.found:
        folder.found["base"] = _find_base(folder, form)
    return folder.found["base"]


def _find_base(folder: ModelFolder, form: System) -> _Base:
    named = form.named_base(folder)
    if folder.base is None and not named:
        raise LmmError(f"{folder.path} is a {form.name.split(', ')[-1]}: give the base with load(..., base=...)")
    if folder.base is None and form is LORA:
        lora.refuse_revision(folder.path, str(named))
    try:
        below = folder.below(locate(folder.base if folder.base is not None else str(named)))
    except LmmError as error:
        where = "base" if folder.base is not None else f"{folder.path} names the base {named!r}"
        raise LmmError(f"{where}: {error}\ngive the base's folder or hub id with load(..., base=...)") from error
    if below.system is not None:
        return _Base(below, identify(below))
    if not is_original(folder.values):
        raise LmmError(f"{folder.path} holds no {CONFIG} and its base {below.path} is a language model alone: nothing says which vision tower to use")
    return _Base(below, None)


def _has_own_config(folder: ModelFolder, form: System) -> bool:
    """Whether a folder says itself what model it makes; else that is its base's.

    Raises:
        LmmError: a projector doesn't.
    """
    if form is LORA:  # transformers' own config, as PEFT's users copy it, doesn't count: the base has the same, and the adapter names the base
        return is_original(folder.values)
    if not is_original(read_json(folder.path / CONFIG)):
        raise LmmError(
            f"{folder.path / CONFIG} has no {TOWER!r}, expected the config that LLaVA's training writes beside {PROJECTOR_FILE}: "
            f"give the folder that it wrote"
        )
    return True


def _config(folder: ModelFolder, form: System) -> LMMConfig:
    """Return the folder's own config if it has one, else the base's; with the base's table, and what an adapter made of its ends."""
    own = _has_own_config(folder, form)
    if own and not folder.download:
        return original_config(folder)  # enough for a report, and the base may be the hub's
    base = _base(folder, form)
    config = original_config(folder) if own or base.system is None else base.system.config(base.folder)
    rows, _ = _vocabulary(folder, form, base)
    changes: dict[str, Any] = {"vocab": rows} if rows != config.decoder.vocab else {}
    if form is LORA and getattr(config.decoder, "tied", False) and lora.separates_ends(folder.path):
        changes["tied"] = False
    return replace(config, decoder=replace(config.decoder, **changes))


def _vocabulary(folder: ModelFolder, form: System, base: _Base) -> tuple[int, int | None]:
    """Return the token rows of a model over a base, and those in its files where these may be more: the base's, unless a LoRA run has new tables."""
    below, stored = base.decoder.vocab, base.stored_vocab
    files = [lora.open_adapter(folder.path)] if form is LORA else []
    files += [open_file(folder.path / TRAINABLES)] if form is LORA and (folder.path / TRAINABLES).is_file() else []
    rows = next((found for each in files if (found := lora.table_rows(each)) is not None), None)
    return (below, stored) if rows in (None, below, stored) else (int(rows), None)


def _trains_an_end(folder: ModelFolder, base: _Base) -> bool:
    """Whether an adapter trained the table or the head of a tied model, so that from then on there are two."""
    config = original_config(folder) if is_original(folder.values) else None
    decoder = base.decoder if config is None else config.decoder
    return getattr(decoder, "tied", False) and lora.trains_an_end(folder.path)


def _over_projector(folder: ModelFolder, own: WeightFiles | None, expected: Collection[str], dtype: torch.dtype | None) -> WeightFiles:
    """Put a projector over its base, rounded to the base's dtype."""
    assert own is not None
    model = in_one_dtype(_base(folder, PROJECTOR).weights(folder, expected, dtype), dtype)
    return overlaid(model, in_dtype(own, decoder_dtype(model) or torch.float32))  # without a decoder the load fails, with a list


def _over_adapter(folder: ModelFolder, own: WeightFiles | None, expected: Collection[str], dtype: torch.dtype | None) -> WeightFiles:
    """Put what was trained beside an adapter over its base, rounded to the base's dtype, and merge the adapter."""
    base = _base(folder, LORA)
    model = base.weights(folder, expected, dtype)
    model = in_one_dtype(lora.with_both_ends(model) if _trains_an_end(folder, base) else model, dtype)
    if own is not None:
        model = overlaid(model, in_dtype(own, decoder_dtype(model) or torch.float32))
    return lora.merged(model, folder.path, expected, [layout for system in folder.systems for layout in system.layouts])


def _tokenizer(folder: ModelFolder, form: System) -> Path | None:
    own = tokenizer_inside(folder)
    if own is not None:
        return own
    base = _base(folder, form)
    return tokenizer_inside(base.folder) if base.system is None else base.system.tokenizer(base.folder)


def _chat(folder: ModelFolder, form: System) -> tuple[Path, ...]:
    """Return the folder and what of its base is asked; nothing where the base's ``lmmblocks.json`` says it all."""
    base = _base(folder, form)
    below = (base.folder.path,) if base.system is None else base.system.chat(base.folder)
    if not below and not _has_own_config(folder, form):
        return ()
    return (*(() if folder.says_itself else (folder.path,)), *below)


def _adapter(folder: ModelFolder) -> tuple[dict[str, str], list[str]]:
    """Return what an adapter changes, and why it can't be merged."""
    weights, rank, whole = lora.changed_modules(folder.path)
    settings = {"adapter": f"LoRA of rank {rank} on {weights} weights" + (f", and {whole} whole ones" if whole else "")}
    try:
        lora.refuse_other_maths(folder.path)
    except LmmError as error:
        return settings, [str(error)]
    return settings, []


def _trained_on(folder: ModelFolder) -> str | None:
    """Return the model that the training wrote down in ``config.json``."""
    return folder.values.get("_name_or_path") or None


def _trainables(folder: ModelFolder) -> WeightFiles | None:
    path = folder.path / TRAINABLES
    return open_file(path) if path.is_file() else None


PROJECTOR: System = System(
    name="original LLaVA, a projector over a base",
    reads=lambda folder: not has_weights(folder.path) and (folder.path / PROJECTOR_FILE).is_file(),
    config=lambda folder: _config(folder, PROJECTOR),
    layouts=PROJECTOR_LAYOUTS,
    title=lambda folder: PROJECTOR.name,
    files=lambda folder: open_file(folder.path / PROJECTOR_FILE),
    complete=_over_projector,
    stored_vocab=lambda folder: _vocabulary(folder, PROJECTOR, _base(folder, PROJECTOR))[1],
    tokenizer=lambda folder: _tokenizer(folder, PROJECTOR),
    chat=lambda folder: _chat(folder, PROJECTOR),
    held=lambda files: ("multi_modal_projector",),
    named_tower=named_tower,
    named_base=_trained_on,
    over_base=True,
)
LORA: System = System(
    name="original LLaVA, a LoRA adapter over a base",
    reads=lambda folder: lora.has_adapter(folder.path) and not has_weights(folder.path),
    config=lambda folder: _config(folder, LORA),
    layouts=TRAINABLE_LAYOUTS,
    title=lambda folder: LORA.name,
    files=_trainables,
    complete=_over_adapter,
    stored_vocab=lambda folder: _vocabulary(folder, LORA, _base(folder, LORA))[1],
    tokenizer=lambda folder: _tokenizer(folder, LORA),
    chat=lambda folder: _chat(folder, LORA),
    held=lambda files: (),
    named_tower=named_tower,
    named_base=lambda folder: lora.base_of(folder.path) or (_trained_on(folder) if is_original(folder.values) else None),
    over_base=True,
    findings=_adapter,
)
