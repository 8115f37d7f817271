"""What is about to be saved, read back before it gets its name: what ``load`` would refuse, or would make another model of, is refused now.

Nothing is read of the weights but names and shapes: the model is built from the files without memory and compared part by part.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch.nn as nn

from ..builder import build
from ..chat import load_tokenizer
from ..lmm import LMM
from ..registry import path_of
from ..spec import LmmError
from .files.tensors import read_json, some
from .names import name_problems
from .systems.all import folder_of
from .systems.identify import identify
from .systems.native import own_config
from .systems.system import NATIVE_CONFIG, tokenizer_inside

_PARTS = ("vision_tower", "multi_modal_projector", "language_model", "arrange")


def skeleton_of(folder: Path, model: LMM) -> LMM:
    """Build what the settings in a folder describe, without memory, and hold it against the model that they were written for.

    Raises:
        LmmError: they can't be read, or describe another model; all differences are listed.
    """
    problems = list(_unreachable(read_json(folder / NATIVE_CONFIG)))
    if problems:
        raise _refused(problems)
    try:
        config, home = own_config(folder_of(folder)), tokenizer_inside(folder_of(folder))
        tokenizer = None if home is None else load_tokenizer(home)
        skeleton = build(config, tokenizer=tokenizer, weights="random", device="meta")
    except (LmmError, ImportError) as error:
        raise _refused([str(error).removeprefix(f"{folder / NATIVE_CONFIG}: ")]) from error
    problems = list(_differences(model, skeleton))
    if problems:
        raise _refused(problems)
    return skeleton


def check_weights(folder: Path, skeleton: LMM) -> None:
    """Hold the names and shapes in the weight files of a folder against a model.

    Raises:
        LmmError: tensors are missing, unexpected or of another shape.
    """
    written = folder_of(folder)
    system = identify(written)
    files = system.files(written)
    assert files is not None
    problems = name_problems(written, system, skeleton, files)
    if problems:
        raise _refused(problems)


def _refused(problems: list[str]) -> LmmError:
    return LmmError("not saved, as load could not give this model back:\n" + "\n".join(f"- {problem}" for problem in problems))


def _unreachable(values: Any, key: str = "") -> Iterator[str]:
    """Yield the classes and objects named by where they are defined which no other program can import."""
    if isinstance(values, Mapping):
        for name, value in values.items():
            yield from _unreachable(value, name)
    elif isinstance(values, list):
        for value in values:
            yield from _unreachable(value, key)
    elif key in ("type", "kind", "template") and isinstance(values, str) and ":" in values:
        module, _, name = values.partition(":")
        if module == "__main__" or "<locals>" in name:
            where = "inside a function" if "<locals>" in name else "in the script that runs"
            yield (
                f"{name.rpartition('.')[2]!r} is defined {where} ({values}), where another program can't import it: move it to a file of its own, "
                f"or give it a name with lmmblocks.register, which that program has to do too"
            )


def _differences(model: LMM, read: LMM) -> Iterator[str]:
    yield from _other_classes(model, read)
    yield from _other_tensors(model, read)
    yield from _other_settings(model, read)


def _other_classes(model: LMM, read: LMM) -> Iterator[str]:
    """Yield modules of another class than the one that the config makes."""
    for name in _PARTS:
        ours, theirs = (_classes(getattr(each, name, None)) for each in (model, read))
        changed = [place for place in ours if theirs.get(place, ours[place]) != ours[place]]
        if changed:
            place = changed[0]
            others = f", and {len(changed) - 1} more such modules" if changed[1:] else ""
            yield (
                f"{f'{name}.{place}'.rstrip('.')} is a {ours[place]}, the model's config makes a {theirs[place]} of it{others}: pass the part to "
                f"build(...), so that the config knows it; merge adapters into the weights before"
            )
    for kind in ("reducers", "hooks"):
        classes = [[path_of(type(entry)) for entry in getattr(each, kind)] for each in (model, read)]
        if classes[0] != classes[1]:
            yield f"{kind} are {classes[0]}, the model's config makes {classes[1]}: pass them to build({kind}=[...])"


def _classes(part: Any) -> dict[str, str]:
    return {name: path_of(type(module)) for name, module in part.named_modules()} if isinstance(part, nn.Module) else {}


def _other_tensors(model: LMM, read: LMM) -> Iterator[str]:
    ours, theirs = ({name: tuple(value.shape) for name, value in each.state_dict().items()} for each in (model, read))
    beyond, missing = [name for name in ours if name not in theirs], [name for name in theirs if name not in ours]
    if beyond:
        yield (
            f"{len(beyond)} tensors that the model's config doesn't tell of: {some(beyond)}: merge adapters into the weights, and make a module of "
            f"your own a hook (layers=()) or a part of the projector, which build(...) makes again"
        )
    if missing:
        yield f"{len(missing)} tensors that the model's config tells of and the model lacks: {some(missing)}"
    other = [f"{name} is {shape}, the config says {theirs[name]}" for name, shape in ours.items() if theirs.get(name, shape) != shape]
    if other:
        yield f"{len(other)} tensors of another shape: {some(other)}: make model.config agree with the parts"


def _other_settings(model: LMM, read: LMM) -> Iterator[str]:
    settings = {
        "image preprocessing": (model.encoder.preprocess, read.encoder.preprocess),
        "what the encoder emits": (model.encoder.spec, read.encoder.spec),
        "arrangement of tiles": (model._arrangement, read._arrangement),
        "options of the projector": (_options(model), _options(read)),
        "template": (model.template, read.template),
        "token ids": (model.tokenize_mode, read.tokenize_mode),
        "max_length": (model.max_length, read.max_length),
    }
    for name, (ours, theirs) in settings.items():
        if not same(ours, theirs):
            yield f"{name}: the model has {ours!r}, the config makes {theirs!r}: pass what is meant to build(...), or make model.config agree"
    ours, theirs = ({} if each.tokenizer is None else each.tokenizer.get_vocab() for each in (model, read))
    lost = sorted(token for token, number in ours.items() if theirs.get(token) != number)
    if lost:
        yield f"the tokenizer, saved and read again, has {len(lost)} tokens less or with other ids: {some(lost)}"


def _options(model: LMM) -> Any:
    """Return a projector's options; a tokenizer that moves with the folder counts as the tokens that it has, wherever it lies."""
    options = getattr(model.projector, "options", None)
    if not isinstance(options, Mapping) or options.get("tokenizer") is None:
        return options
    return {**options, "tokenizer": load_tokenizer(options["tokenizer"]).get_vocab()}


def same(one: Any, other: Any) -> bool:
    """Return whether two plain objects are of one class and hold the same; those without an ``__eq__`` are compared by what they hold."""
    if path_of(type(one)) != path_of(type(other)):
        return False
    if isinstance(one, Mapping) or type(one).__eq__ is not object.__eq__:
        return bool(one == other)
    return one is other or getattr(one, "__dict__", None) == getattr(other, "__dict__", 0)
