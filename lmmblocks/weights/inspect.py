"""What is in a folder, found out from configs and the headers of weight files; no weight is read and nothing is downloaded but the folder.

A whole model of any layout that ``load`` reads, a vision tower alone, a language model alone.
"""

from __future__ import annotations

import math
import os
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
from .describe import describe, describe_preprocess
from .files.overlay import renamed
from .files.stored_dtypes import ROLES, by_role, decoder_dtype, mixture
from .files.tensors import CONFIG, WeightFiles, weight_bytes
from .inspect_alone import inspect_decoder, inspect_tower
from .inspect_chat import describe_chat
from .inspection import SIZES, Inspection, Part
from .names import name_problems
from .parts.hf_decoders import knows_decoder
from .parts.hf_encoders import CONTAINERS, HF_ENCODERS
from .parts.other_encoders import other_encoder
from .parts.tower import local_tower
from .systems.all import folder_of
from .systems.identify import identify, other_type
from .systems.llava_original import TowerElsewhere
from .systems.system import ModelFolder, System, tokenizer_inside


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
    path = locate(path_or_id)
    folder = folder_of(path, base=base, vision_tower=vision_tower, download=False)
    if folder.system is not None:
        return _model(folder)
    if not (path / CONFIG).is_file() and other_encoder(path) is None:
        identify(folder)  # says what was expected
    if knows_decoder(folder.values):
        return inspect_decoder(path, folder.values)
    if other_encoder(path) is None and folder.values.get("model_type") not in (*HF_ENCODERS, *CONTAINERS):
        raise LmmError(other_type(folder))
    return inspect_tower(path)


def _model(folder: ModelFolder) -> Inspection:
    system = identify(folder)
    parts = [Part("encoder"), Part("projector"), Part("decoder")]
    report = Inspection(folder.path, system.title(folder), parts, weight_bytes(folder.path))
    files = system.files(folder)
    if files is not None:
        _count_inside(report, files, system)
    settings, problems = system.findings(folder)
    report.settings |= settings
    report.problems += problems
    try:
        config = system.config(folder)
        skeleton = build(config, weights="random", device="meta")
    except TowerElsewhere as error:
        report.missing.append(str(error))
        report.part("decoder").what = describe(error.decoder, "decoder")
        report.part("projector").what = describe(error.projector)
    except LmmError as error:
        report.problems.append(str(error))
    else:
        describe_chat(report, folder, system, config, _base_here(folder, system))
        _describe_model(report, config, skeleton)
        if files is not None and system.held(files) != ():
            _describe_dtype(report, files, system, set(skeleton.state_dict()))
            report.problems += name_problems(folder, system, skeleton, files)
    _settings_of_files(report, folder, system)
    _look_for_the_rest(report, folder, system)
    return report


def _count_inside(report: Inspection, files: WeightFiles, system: System) -> None:
    """Sum up parameters and dtypes of each part from names and shapes."""
    layout = max(system.layouts, key=lambda each: sum(each.to_model(name) is not None for name in files.shapes))
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


def _describe_dtype(report: Inspection, files: WeightFiles, system: System, names: set[str]) -> None:
    """Say which dtype all parts get where some are stored in another, as ``load`` will."""
    files = renamed(files, system.layouts, names)
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


def _base_here(folder: ModelFolder, system: System) -> ModelFolder | None:
    """Return the folder of what a folder lies over, where it is on this machine."""
    named = folder.base or system.named_base(folder)
    found = Path(named or "").expanduser()
    return folder.below(found) if system.over_base and named and found.is_dir() else None


def _settings_of_files(report: Inspection, folder: ModelFolder, system: System) -> None:
    found = tokenizer_inside(folder)
    if found is not None:
        report.settings["tokenizer"] = "inside" if found == folder.path else f"inside, in {found.name}/"
    elif system.over_base:
        report.settings["tokenizer"] = "the base's"
    else:
        above = "; the folder above holds one" if has_tokenizer(folder.path.absolute().parent) else ""
        report.missing.append(f"tokenizer: none inside, so the model eats ready batches only; copy the language model's tokenizer files{above}")


def _look_for_the_rest(report: Inspection, folder: ModelFolder, system: System) -> None:
    """Say where the parts come from that the folder doesn't hold."""
    tower, decoder = report.part("encoder"), report.part("decoder")
    name = system.named_tower(folder)
    if name is not None and not tower.dtypes:
        found = local_tower(name, folder.path)
        tower.source = str(found or name)
        report.missing.append(
            "vision tower: not inside; " + (f"taken from {found}" if found else f"load() takes it from the hub, {name}, or from vision_tower=...")
        )
    if not system.over_base:
        return
    named = str(folder.base or system.named_base(folder) or "")
    decoder.source = named or "the base"
    here = bool(named) and Path(named).expanduser().is_dir()
    say = f"taken from {named}" if here else f"load() takes it from the hub, {named}, or from base=..." if named else "give it with base=..."
    report.missing.append(f"base: not inside; {say}")
