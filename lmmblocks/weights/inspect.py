"""What is in a folder, found out from configs and the headers of weight files; no weight is read and nothing is downloaded but the folder.

A whole model of any layout that ``load`` reads, a vision tower alone, a language model alone.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ..builder import build
from ..chat.load import has_tokenizer
from ..compose.dtypes import name_of
from ..compose.image_rows import out_grid_of
from ..compose.input_spec import InputSpec
from ..config import LMMConfig
from ..files.locate import locate
from ..lmm import LMM
from ..ops.dispatch import check_environment
from ..spec import LmmError
from . import lora
from .checkpoint import (
    PROJECTOR,
    TRAINABLES,
    Layout,
    TowerElsewhere,
    base_folder_of,
    hf_config,
    identify,
    is_lmm,
    named_base,
    native_config,
    open_checkpoint,
    open_model_weights,
    original_config,
    other_type,
    tokenizer_folder,
)
from .describe import describe, describe_preprocess
from .files.maps import MODEL_LAYOUTS, ORIGINAL, PROJECTOR_LAYOUTS, TRAINABLE_LAYOUTS, KeyMap
from .files.overlay import renamed
from .files.stored_dtypes import ROLES, by_role, decoder_dtype, mixture
from .files.tensors import CONFIG, WeightFiles, open_file, read_json, weight_bytes
from .inspect_alone import inspect_decoder, inspect_tower
from .inspect_chat import describe_chat
from .inspection import SIZES, Inspection, Part
from .names import name_problems
from .parts.hf_decoders import decoder_from_hf, knows_decoder
from .parts.hf_encoders import CONTAINERS, HF_ENCODERS
from .parts.other_encoders import other_encoder
from .parts.tower import local_tower
from .systems.llava_original import TOWER, decoder_values, is_original, projector_of


def inspect(
    path_or_id: str | os.PathLike[str], *, base: str | os.PathLike[str] | None = None, vision_tower: str | os.PathLike[str] | None = None
) -> Inspection:
    """Find out what a folder holds.

    Args:
        path_or_id: folder, or hub id, which is downloaded.
        base: of a projector or an adapter, as for ``load``.
        vision_tower: of an original checkpoint, as for ``load``.

    Raises:
        LmmError: nothing there, neither a model nor a part of one, a damaged file, or a ``LMMBLOCKS_BACKEND`` that can't be read.
    """
    check_environment()
    folder = locate(path_or_id)
    if not (folder / CONFIG).is_file() and not is_lmm(folder) and other_encoder(folder) is None:
        identify(folder)  # says what was expected
    if is_lmm(folder):
        return _model(folder, base, vision_tower)
    values = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    if knows_decoder(values):
        return inspect_decoder(folder, values)
    if other_encoder(folder) is None and values.get("model_type") not in (*HF_ENCODERS, *CONTAINERS):
        raise LmmError(other_type(folder, values))
    return inspect_tower(folder)


def _model(folder: Path, base: Any, vision_tower: Any) -> Inspection:
    layout = identify(folder)
    report = Inspection(folder, _name(folder, layout), [Part("encoder"), Part("projector"), Part("decoder")], weight_bytes(folder))
    inside = list(_files_inside(folder, layout))
    for files, layouts in inside:
        _count_inside(report, files, layouts)
    if layout is Layout.LORA:
        weights, rank, whole = lora.changed_modules(folder)
        report.settings["adapter"] = f"LoRA of rank {rank} on {weights} weights" + (f", and {whole} whole ones" if whole else "")
        report.problems += _said_by(lora.refuse_other_maths, folder)
    try:
        config = _config(folder, layout, base, vision_tower)
        skeleton = build(config, weights="random", device="meta")
    except TowerElsewhere as error:
        report.missing.append(str(error))
        _describe_decoder(report, folder)
    except LmmError as error:
        report.problems.append(str(error))
    else:
        describe_chat(report, folder, layout, config, _base_here(folder, layout, base))
        _describe_model(report, config, skeleton)
        if layout is not Layout.LORA:
            _describe_dtype(report, *inside[0], set(skeleton.state_dict()))
            report.problems += name_problems(folder, layout, skeleton, *inside[0])
    _settings_of_files(report, folder, layout)
    _look_for_the_rest(report, folder, layout, base, vision_tower)
    return report


def _said_by(check: Callable[[Path], None], folder: Path) -> list[str]:
    """Return what a check of a folder refuses."""
    try:
        check(folder)
    except LmmError as error:
        return [str(error)]
    return []


def _name(folder: Path, layout: Layout) -> str:
    both = layout is Layout.NATIVE and (folder / CONFIG).is_file()
    kind = f" ({read_json(folder / CONFIG)['model_type']})" if layout is Layout.HF else ""
    return f"{layout.value}, written so that transformers reads it too" if both else layout.value + kind


def _files_inside(folder: Path, layout: Layout) -> Iterable[tuple[WeightFiles, tuple[KeyMap, ...]]]:
    if layout is Layout.PROJECTOR:
        yield open_file(folder / PROJECTOR), PROJECTOR_LAYOUTS
    elif layout is Layout.LORA:
        if (folder / TRAINABLES).is_file():
            yield open_file(folder / TRAINABLES), TRAINABLE_LAYOUTS
    else:
        yield open_model_weights(folder), (ORIGINAL,) if layout is Layout.ORIGINAL else MODEL_LAYOUTS


def _config(folder: Path, layout: Layout, base: Any, vision_tower: Any) -> LMMConfig:
    if layout is Layout.NATIVE:
        return native_config(folder)
    if layout is Layout.HF:
        return hf_config(folder)
    if (folder / CONFIG).is_file() and is_original(values := read_json(folder / CONFIG)):
        return original_config(folder, values, vision_tower, download=False)
    base_folder_of(folder, layout, base, None)  # says what to give
    return open_checkpoint(folder, base=base, vision_tower=vision_tower).config


def _count_inside(report: Inspection, files: WeightFiles, layouts: tuple[KeyMap, ...]) -> None:
    """Sum up parameters and dtypes of each part from names and shapes."""
    layout = max(layouts, key=lambda each: sum(each.to_model(name) is not None for name in files.shapes))
    for file_name, shape in files.shapes.items():
        model_name = None if layout.skips(file_name) else layout.to_model(file_name)
        role = ROLES.get(str(model_name).split(".")[0])
        if role is not None:
            part = report.part(role)
            part.parameters = (part.parameters or 0) + math.prod(shape)
            part.dtypes = tuple(sorted({*part.dtypes, files.dtypes[file_name]}))


def _describe_model(report: Inspection, config: LMMConfig, model: LMM) -> None:
    held = {part.name: part.dtypes for part in report.parts}
    for child, role in ROLES.items():
        module = getattr(model, child, None)
        if module is None:
            continue
        part = report.part(role)
        part.what = _what(role, config, model)
        part.parameters = sum(parameter.numel() for parameter in module.parameters())
        part.dtypes = held.get(role, ())
    for role, blocks in (("reducer", config.reducers), ("hook", config.hooks)):
        report.parts += [Part(role, describe(block)) for block in blocks]
    preprocess = config.preprocess or model.encoder.preprocess
    report.settings |= {
        "token ids": config.tokenize_mode,
        "max length": f"{model.max_length} rows of a conversation, image rows included",
        "attention": "causal" if model.attention == "causal" else "causal, but each image row sees its whole image",
        "preprocessing": describe_preprocess(preprocess),
    }
    report.image_tokens = _image_tokens(model, preprocess)


def _describe_dtype(report: Inspection, files: WeightFiles, layouts: tuple[KeyMap, ...], names: set[str]) -> None:
    """Say which dtype all parts get where some are stored in another, as ``load`` will."""
    files = renamed(files, layouts, names)
    try:
        dtype = decoder_dtype(files)
    except LmmError as error:
        report.problems.append(str(error))
        return
    others = None if dtype is None else mixture(by_role(files), dtype)
    if others is not None and dtype is not None:
        report.settings["dtype"] = f"{name_of(dtype)} once loaded, that of most of the decoder's weights ({others} on the disk)"


def _what(role: str, config: LMMConfig, model: LMM) -> str:
    if role == "projector":
        return f"{describe(config.projector)}: {model.encoder.spec.dim} -> {model.decoder.dim}"
    if role == "tiles":
        return "what is learned about the arrangement of tiles"
    return describe(config.encoder if role == "encoder" else config.decoder, role)


def _image_tokens(model: LMM, preprocess: Any) -> dict[str, int]:
    rows_of = out_grid_of(model.projector, list(model.reducers))
    spec = InputSpec("none", None, preprocess, rows_of, arrangement=getattr(model.encoder, "arrangement", None))
    return {f"{width}x{height}": spec.image_rows(preprocess.grid(width, height)) for width, height in SIZES}


def _base_here(folder: Path, layout: Layout, base: Any) -> Path | None:
    """Return the folder of what a folder lies over, where it is on this machine."""
    if layout not in (Layout.PROJECTOR, Layout.LORA):
        return None
    named = base or named_base(folder, layout, read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {})
    found = Path(named or "").expanduser()
    return found if named and found.is_dir() else None


def _describe_decoder(report: Inspection, folder: Path) -> None:
    """Say what an original config alone tells."""
    values = read_json(folder / CONFIG)
    report.part("decoder").what = describe(decoder_from_hf(decoder_values(values)), "decoder")
    report.part("projector").what = describe(projector_of(values))


def _settings_of_files(report: Inspection, folder: Path, layout: Layout) -> None:
    found = tokenizer_folder(folder)
    if found is not None:
        report.settings["tokenizer"] = "inside" if found == folder else f"inside, in {found.name}/"
    elif layout in (Layout.PROJECTOR, Layout.LORA):
        report.settings["tokenizer"] = "the base's"
    else:
        above = "; the folder above holds one" if has_tokenizer(folder.absolute().parent) else ""
        report.missing.append(f"tokenizer: none inside, so the model eats ready batches only; copy the language model's tokenizer files{above}")


def _look_for_the_rest(report: Inspection, folder: Path, layout: Layout, base: Any, vision_tower: Any) -> None:
    """Say where the parts come from that the folder doesn't hold."""
    values: Mapping[str, Any] = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    tower, decoder = report.part("encoder"), report.part("decoder")
    name = vision_tower or values.get(TOWER)
    if name is not None and not tower.dtypes and layout is not Layout.HF:
        found = local_tower(name, folder)
        tower.source = str(found or name)
        report.missing.append(
            "vision tower: not inside; " + (f"taken from {found}" if found else f"load() takes it from the hub, {name}, or from vision_tower=...")
        )
    if layout not in (Layout.PROJECTOR, Layout.LORA):
        return
    named = str(base or named_base(folder, layout, values) or "")
    decoder.source = named or "the base"
    here = bool(named) and Path(named).expanduser().is_dir()
    say = f"taken from {named}" if here else f"load() takes it from the hub, {named}, or from base=..." if named else "give it with base=..."
    report.missing.append(f"base: not inside; {say}")
