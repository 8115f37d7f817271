"""What a folder holds, told apart by its content, and its weights under the model's names, before any tensor is read.

| layout | how it is known | where its parts are |
|---|---|---|
| lmmblocks | ``lmmblocks.json`` and weights | all inside |
| transformers | ``config.json`` of a LLaVA, an InstructBLIP or an IDEFICS, and weights | all inside |
| original Qwen-VL | ``config.json`` of a ``qwen`` with ``visual``, and weights | all inside |
| original LLaVA | ``config.json`` with ``mm_vision_tower``, and weights | the tower inside, or where that key says |
| projector over a base | ``mm_projector.bin``, no other weights | language model from the base, tower where the key says |
| LoRA over a base | ``adapter_config.json`` and the adapter | the base, under ``non_lora_trainables.bin``, with the adapter merged |
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

import torch

from ..chat.load import has_tokenizer
from ..config import LMMConfig
from ..encoders.kept_fields import sized
from ..files.foreign import file_kind, folder_kind
from ..files.locate import locate
from ..spec import LmmError
from . import lora
from .files.file_checks import listing
from .files.maps import LLAMA_LAYOUTS, MODEL_LAYOUTS, ORIGINAL, PROJECTOR_LAYOUTS, TRAINABLE_LAYOUTS, inside
from .files.overlay import in_dtype, of_state, overlaid, renamed
from .files.stored_dtypes import decoder_dtype
from .files.tensors import CONFIG, WeightFiles, has_weights, open_file, open_weights, read_json
from .parts.encoder_shapes import read_preprocess
from .parts.hf_decoders import decoder_from_hf, knows_decoder
from .parts.hf_encoders import CONTAINERS, HF_ENCODERS
from .parts.tower import INSIDE, locate_tower, tower_shape
from .sources import load_encoder
from .systems.idefics import MODEL_TYPE as IDEFICS_TYPE
from .systems.idefics import is_idefics, read_idefics_config, with_added_rows
from .systems.instructblip import (
    INSTRUCTBLIP_TYPE,
    instructblip_from_hf,
    instruction_tokenizer,
    is_instructblip,
    with_tokenizer_found,
)
from .systems.llava_hf import llava_from_hf
from .systems.llava_next import LLAVA_NEXT, is_llava_next, llava_next_from_hf, read_tile_preprocess
from .systems.llava_original import (
    DECODER_TYPES,
    TOWER,
    check,
    decoder_values,
    fit_of,
    is_original,
    original_to_config,
)
from .systems.qwen_vl import is_qwen_vl, read_qwen_vl_config, with_model_names

NATIVE_CONFIG = "lmmblocks.json"
OWN_TOKENIZER = "lmmblocks_tokenizer"
"""Folder of the model's tokenizer where the one beside the weights got an image token that the model's table has no row for."""

PROJECTOR = "mm_projector.bin"
TRAINABLES = "non_lora_trainables.bin"
HF_MODELS = ("llava", LLAVA_NEXT, INSTRUCTBLIP_TYPE, IDEFICS_TYPE)
"""``model_type`` of the models of transformers that are read whole."""

Open = Callable[[Collection[str], "torch.dtype | None"], WeightFiles]


class TowerElsewhere(LmmError):
    """Only the hub knows the tower's shape, and it was not to be asked."""


class Layout(Enum):
    """What a folder is."""

    NATIVE = "lmmblocks"
    HF = "Hugging Face"
    ORIGINAL = "original LLaVA"
    PROJECTOR = "original LLaVA, a projector over a base"
    LORA = "original LLaVA, a LoRA adapter over a base"


@dataclass(frozen=True)
class Checkpoint:
    """A model that can be read.

    Attributes:
        folder: where it lies.
        layout: what it is.
        config: of the model.
        weights: from the names in the model and the dtype asked for (None = as stored) to its tensors.
        tokenizer: folder of the tokenizer, None when there is none.
        stored_vocab: token rows in the file when these may be more than the model has.
        chat: folders whose files say how the model is talked to, in this order; none where ``lmmblocks.json`` does.
    """

    folder: Path
    layout: Layout
    config: LMMConfig
    weights: Open
    tokenizer: Path | None
    stored_vocab: int | None = None
    chat: tuple[Path, ...] = ()


def identify(folder: Path) -> Layout:
    """Say what a folder is, by the files in it and the keys of its config.

    Raises:
        LmmError: no model that :func:`open_checkpoint` reads.
    """
    if lora.has_adapter(folder):
        if has_weights(folder):
            raise LmmError(
                f"{folder} holds a whole model and a LoRA adapter beside it, expected one of them: move {lora.CONFIG} and the adapter's weights "
                f"into a folder of their own, and load that with base=... if it belongs to this model"
            )
        return Layout.LORA
    if not has_weights(folder) and (folder / PROJECTOR).is_file():
        return Layout.PROJECTOR
    if (folder / CONFIG).is_file() and is_original(read_json(folder / CONFIG)):
        return Layout.ORIGINAL
    if (folder / NATIVE_CONFIG).is_file():
        return Layout.NATIVE
    if (folder / CONFIG).is_file():
        return Layout.HF
    raise LmmError(f"{folder} is no model folder: it holds neither {NATIVE_CONFIG} nor {CONFIG}, but {listing(folder)}{folder_kind(folder)}")


def open_checkpoint(
    path_or_id: str | os.PathLike[str], *, base: str | os.PathLike[str] | None = None, vision_tower: str | os.PathLike[str] | None = None
) -> Checkpoint:
    """Find out what is there and how to read it; see :func:`lmmblocks.load` for the arguments.

    Raises:
        LmmError: nothing there, another kind of folder, or a model that the blocks can't compute.
    """
    folder = locate(path_or_id)
    layout = identify(folder)
    if base is not None and layout not in (Layout.PROJECTOR, Layout.LORA):
        raise LmmError(f"{folder} is a whole model ({layout.value}): leave base={os.fspath(base)!r} out")
    if layout in (Layout.NATIVE, Layout.HF):
        return _whole(folder, layout)
    if layout is Layout.ORIGINAL:
        return _original(folder, vision_tower)
    return _over_base(folder, layout, base, vision_tower)


def _whole(folder: Path, layout: Layout) -> Checkpoint:
    stored_vocab = None
    if layout is Layout.NATIVE:
        config = native_config(folder)
        stored_vocab = hf_config(folder).decoder.vocab if (folder / CONFIG).is_file() else None
    else:
        config = hf_config(folder)
    files = open_model_weights(folder)
    return Checkpoint(
        folder,
        layout,
        config,
        lambda expected, dtype: renamed(files, MODEL_LAYOUTS, expected),
        tokenizer_folder(folder),
        stored_vocab,
        chat_folders(folder),
    )


def open_model_weights(folder: Path) -> WeightFiles:
    """Open the weights of a whole model; what one layout cuts into other pieces than the model has is put together."""
    return with_model_names(with_added_rows(open_weights(folder)))


def hf_config(folder: Path) -> LMMConfig:
    """Return what the ``config.json`` of a LLaVA, a LLaVA-NeXT, an InstructBLIP or an IDEFICS of transformers, or of a Qwen-VL, describes.

    Raises:
        LmmError: another model, or one that the blocks can't compute.
    """
    values = read_json(folder / CONFIG)
    if is_qwen_vl(values):
        return read_qwen_vl_config(folder, values)
    if values.get("model_type") not in HF_MODELS:
        raise LmmError(other_type(folder, values))
    if is_llava_next(values):
        config = llava_next_from_hf(values)
        return replace(config, preprocess=read_tile_preprocess(folder, config.encoder))
    if is_idefics(values):
        return read_idefics_config(folder, values)
    config = instruction_tokenizer(instructblip_from_hf(values), folder) if is_instructblip(values) else llava_from_hf(values)
    preprocess = read_preprocess(folder, config.encoder)
    return replace(config, encoder=sized(config.encoder, preprocess), preprocess=preprocess)


def other_type(folder: Path, values: Mapping[str, Any]) -> str:
    """Return the message about a model that is none of those that are read whole."""
    ours, theirs = (", ".join(map(repr, types)) for types in (HF_MODELS, DECODER_TYPES))
    return (
        f"{folder / CONFIG} has model_type {values.get('model_type')!r}, expected one of {ours} of transformers, or of {theirs} with {TOWER!r} "
        f"beside, the original LLaVA's: {_instead(values)}"
    )


def _instead(values: Mapping[str, Any]) -> str:
    """Say what to do with a model that is no whole one of ours."""
    kind = values.get("model_type")
    if knows_decoder(values) and kind not in CONTAINERS and "vision_config" not in values:
        return "a language model alone is taken with build(..., decoder=...)"
    if kind in HF_ENCODERS or kind in CONTAINERS:
        return "a vision tower is taken with build(..., encoder=...)"
    if kind is None:
        return "give the config.json that was saved with the model"
    return "give a folder of such a model, or build one of parts with build(..., encoder=..., decoder=...)"


def _original(folder: Path, vision_tower: str | os.PathLike[str] | None) -> Checkpoint:
    values = read_json(folder / CONFIG)
    files = open_weights(folder)
    own = holds_tower(files)
    config = original_config(folder, values, vision_tower)

    def weights(expected: Collection[str], dtype: torch.dtype | None) -> WeightFiles:
        model = renamed(files, (ORIGINAL,), expected)
        return _in_one_dtype(model if own else overlaid(_tower_files(folder, values, vision_tower), model), dtype)

    return Checkpoint(folder, Layout.ORIGINAL, config, weights, tokenizer_folder(folder), chat=chat_folders(folder))


def _over_base(folder: Path, layout: Layout, base: Any, vision_tower: str | os.PathLike[str] | None) -> Checkpoint:
    """A projector or an adapter: its own config if it has one, the base's table, and the base's weights under its own."""
    values = read_json(folder / CONFIG) if layout is Layout.PROJECTOR or (folder / CONFIG).is_file() else None
    if layout is Layout.LORA and values is not None and not is_original(values):
        values = None  # transformers' own config, as PEFT's users copy it: the base has the same, and the adapter names the base
    if values is not None and not is_original(values):
        raise LmmError(
            f"{folder / CONFIG} has no {TOWER!r}, expected the config that LLaVA's training writes beside {PROJECTOR}: give the folder that it wrote"
        )
    base_folder = base_folder_of(folder, layout, base, values)
    decoder_alone = not is_lmm(base_folder)
    if decoder_alone and values is None:
        raise LmmError(f"{folder} holds no {CONFIG} and its base {base_folder} is a language model alone: nothing says which vision tower to use")
    lower = None if decoder_alone else open_checkpoint(base_folder, vision_tower=vision_tower)
    config = lower.config if values is None and lower is not None else original_config(folder, values or {}, vision_tower)
    below = decoder_from_hf(read_json(base_folder / CONFIG)) if lower is None else lower.config.decoder
    rows, stored = _vocabulary(folder, layout, below.vocab, None if lower is None else lower.stored_vocab)
    ends = layout is Layout.LORA and getattr(config.decoder, "tied", False) and lora.trains_an_end(folder)
    changes = {"vocab": rows} if rows != config.decoder.vocab else {}
    changes |= {"tied": False} if ends and lora.separates_ends(folder) else {}
    config = replace(config, decoder=replace(config.decoder, **changes))

    def weights(expected: Collection[str], dtype: torch.dtype | None) -> WeightFiles:
        if lower is not None:
            model = lower.weights(expected, dtype)
        else:
            language = renamed(open_weights(base_folder), [inside(each, "language_model.") for each in LLAMA_LAYOUTS], expected)
            model = overlaid(_tower_files(folder, values or {}, vision_tower), language)
        return _upper(folder, layout, _in_one_dtype(lora.with_both_ends(model) if ends else model, dtype), expected)

    tokenizer = tokenizer_folder(folder) or (lower.tokenizer if lower is not None else tokenizer_folder(base_folder))
    chat = (*chat_folders(folder), *((base_folder,) if lower is None else lower.chat))
    said = lower is not None and not lower.chat and values is None  # by the base's lmmblocks.json
    return Checkpoint(folder, layout, config, weights, tokenizer, stored, () if said else chat)


def _vocabulary(folder: Path, layout: Layout, below: int, stored: int | None) -> tuple[int, int | None]:
    """Return the token rows of a model over a base, and those in its files where these may be more: the base's, unless a LoRA run has new tables."""
    files = [lora.open_adapter(folder)] if layout is Layout.LORA else []
    files += [open_file(folder / TRAINABLES)] if layout is Layout.LORA and (folder / TRAINABLES).is_file() else []
    rows = next((found for each in files if (found := lora.table_rows(each)) is not None), None)
    return (below, stored) if rows in (None, below, stored) else (int(rows), None)


def _upper(folder: Path, layout: Layout, model: WeightFiles, expected: Collection[str]) -> WeightFiles:
    """Put what a folder over a base holds over the base, rounded to the base's dtype."""
    dtype = decoder_dtype(model) or torch.float32  # without a decoder the load fails, with a list
    if layout is Layout.PROJECTOR:
        return overlaid(model, in_dtype(renamed(open_file(folder / PROJECTOR), PROJECTOR_LAYOUTS, expected), dtype))
    if (folder / TRAINABLES).is_file():
        model = overlaid(model, in_dtype(renamed(open_file(folder / TRAINABLES), TRAINABLE_LAYOUTS, expected), dtype))
    return lora.merged(model, folder, expected)


def _in_one_dtype(files: WeightFiles, dtype: torch.dtype | None) -> WeightFiles:
    """Round all parts to one dtype, as the original does: the one asked for, else the language model's."""
    dtype = dtype or decoder_dtype(files)
    return files if dtype is None else in_dtype(files, dtype)


def holds_tower(files: WeightFiles) -> bool:
    """Say whether an original checkpoint holds weights of its vision tower."""
    return any(name.startswith(INSIDE) for name in files.shapes)


def _tower_files(folder: Path, values: Any, vision_tower: str | os.PathLike[str] | None) -> WeightFiles:
    tower = locate_tower(vision_tower or values[TOWER], folder)
    _, state, _ = load_encoder(tower)
    return of_state(tower, state, "vision_tower.", "vision tower")


def original_config(
    folder: Path, values: Any, vision_tower: str | os.PathLike[str] | None, *, download: bool = True
) -> LMMConfig:
    """Return the model of an original folder: what ``lmmblocks.json`` says where it is there, else the original's keys and the tower's config.

    Raises:
        LmmError: a model that the blocks can't compute, or a tower that is nowhere (without ``download``: not on this machine).
    """
    if (folder / NATIVE_CONFIG).is_file():
        return native_config(folder)
    check(values)
    name = vision_tower or values[TOWER]
    shape = tower_shape(name, folder, fit=fit_of(values), download=download)
    if shape is None:
        raise TowerElsewhere(f"the vision tower {str(name)!r} is not on this machine, so its shape is unknown")
    return original_to_config(values, encoder=shape[0], decoder=decoder_from_hf(decoder_values(values)), preprocess=shape[1])


def native_config(folder: Path) -> LMMConfig:
    """Return what ``lmmblocks.json`` describes."""
    try:
        return with_tokenizer_found(LMMConfig.from_json((folder / NATIVE_CONFIG).read_text(encoding="utf-8")), folder)
    except (LmmError, UnicodeDecodeError) as error:
        kind = file_kind(folder / NATIVE_CONFIG)
        raise LmmError(f"{folder / NATIVE_CONFIG} is {kind}" if kind else f"{folder / NATIVE_CONFIG}: {error}") from error


def named_base(folder: Path, layout: Layout, values: Any) -> str | None:
    """Return the base that the training wrote down."""
    named = lora.base_of(folder) if layout is Layout.LORA else None
    return named or (values or {}).get("_name_or_path") or None


def base_folder_of(folder: Path, layout: Layout, base: Any, values: Any) -> Path:
    """Return the base's folder: the one given, else the one that the training wrote down."""
    named = named_base(folder, layout, values)
    if base is None and not named:
        raise LmmError(f"{folder} is a {layout.value.split(', ')[-1]}: give the base with load(..., base=...)")
    if base is None and layout is Layout.LORA:
        lora.refuse_revision(folder, str(named))
    try:
        return locate(base if base is not None else str(named))
    except LmmError as error:
        where = "base" if base is not None else f"{folder} names the base {named!r}"
        raise LmmError(f"{where}: {error}\ngive the base's folder or hub id with load(..., base=...)") from error


def is_lmm(folder: Path) -> bool:
    """Tell a whole model, or something over one, from a language model or a vision tower."""
    if (folder / NATIVE_CONFIG).is_file() or (not has_weights(folder) and (lora.has_adapter(folder) or (folder / PROJECTOR).is_file())):
        return True
    values = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    ours = (is_original, is_llava_next, is_instructblip, is_idefics, is_qwen_vl)
    return values.get("model_type") == "llava" or any(is_one(values) for is_one in ours)


def chat_folders(folder: Path) -> tuple[Path, ...]:
    """Return the folder where its files are to be asked how its model is talked to, nothing where ``lmmblocks.json`` says it."""
    return () if (folder / NATIVE_CONFIG).is_file() else (folder,)


def tokenizer_folder(folder: Path) -> Path | None:
    """Return where the model's tokenizer lies, None when there is none."""
    own = folder / OWN_TOKENIZER
    folder = own if own.is_dir() else folder
    return folder if has_tokenizer(folder) else None
