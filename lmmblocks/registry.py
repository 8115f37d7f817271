"""Blocks by name: exact names, the closest match in the error, ``package.module:Class`` for code outside, entry points for plugins.

Adding a block is one file and one line here (or :func:`register` in your own code). Names are looked up, never parsed.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

from .spec import LmmError, closest

ENTRY_POINTS = "lmmblocks.blocks"

_BUILT_IN: dict[str, dict[str, str]] = {
    "encoder": {
        "blip2_vit": "lmmblocks.encoders.blip2_vit:Blip2ViTConfig",
        "clip": "lmmblocks.encoders.clip:CLIPConfig",
        "dinov2": "lmmblocks.encoders.dinov2:DINOv2Config",
        "fused": "lmmblocks.encoders.fused:FusedConfig",
        "open_clip": "lmmblocks.encoders.open_clip:OpenCLIPConfig",
        "qwen_vit": "lmmblocks.encoders.qwen_vit:QwenViTConfig",
        "siglip": "lmmblocks.encoders.siglip:SigLIPConfig",
        "siglip2_naflex": "lmmblocks.encoders.siglip2_naflex:NaFlexConfig",
        "tiled": "lmmblocks.encoders.tiled:TiledConfig",
        "timm": "lmmblocks.encoders.timm:TimmConfig",
    },
    "projector": {
        "adaptive_pool": "lmmblocks.projectors.adaptive_pool:AdaptivePool",
        "c_abstractor": "lmmblocks.projectors.c_abstractor:CAbstractor",
        "identity": "lmmblocks.projectors.identity:Identity",
        "image_token": "lmmblocks.projectors.image_token:ImageToken",
        "instruct_qformer": "lmmblocks.projectors.qformer:InstructQFormer",
        "ldp": "lmmblocks.projectors.ldp:LDP",
        "ldpv2": "lmmblocks.projectors.ldpv2:LDPv2",
        "linear": "lmmblocks.projectors.linear:Linear",
        "mlp": "lmmblocks.projectors.mlp:MLP",
        "perceiver": "lmmblocks.projectors.perceiver:Perceiver",
        "pixel_shuffle": "lmmblocks.projectors.pixel_shuffle:PixelShuffle",
        "pool": "lmmblocks.projectors.pool:Pool",
        "qformer": "lmmblocks.projectors.qformer:QFormer",
        "resampler": "lmmblocks.projectors.resampler:Resampler",
        "sva": "lmmblocks.projectors.sva:SVA",
        "token_packer": "lmmblocks.projectors.token_packer:TokenPacker",
    },
    "reducer": {
        "pool": "lmmblocks.reducers.pool:Pool",
        "prumerge": "lmmblocks.reducers.prumerge:PruMerge",
        "visionzip": "lmmblocks.reducers.visionzip:VisionZip",
    },
    "hook": {
        "gated_cross_attention": "lmmblocks.hooks.gated_cross_attention:GatedCrossAttention",
    },
    "decoder": {
        "hf": "lmmblocks.decoders.hf_config:HFDecoderConfig",
        "transformer": "lmmblocks.decoders.transformer:TransformerConfig",
    },
    "preprocess": {
        "square": "lmmblocks.images.preprocess:ImagePreprocess",
        "tiles": "lmmblocks.images.tiles:TilePreprocess",
        "fused": "lmmblocks.images.fused:FusedPreprocess",
        "native": "lmmblocks.images.native:NativePreprocess",
    },
    "template": {  # objects, not classes
        "plain": "lmmblocks.chat.families:PLAIN",
        "vicuna_v1": "lmmblocks.chat.families:VICUNA_V1",
        "llava_v1": "lmmblocks.chat.families:LLAVA_V1",
        "chatml": "lmmblocks.chat.families:CHATML",
        "qwen2": "lmmblocks.chat.families:QWEN2",
        "qwen2_5": "lmmblocks.chat.families:QWEN2_5",
        "llama2": "lmmblocks.chat.families:LLAMA2",
        "llama3": "lmmblocks.chat.families:LLAMA3",
        "mistral": "lmmblocks.chat.families:MISTRAL",
        "mistral_v3": "lmmblocks.chat.families:MISTRAL_V3",
        "phi3": "lmmblocks.chat.families:PHI3",
        "gemma": "lmmblocks.chat.families:GEMMA",
        "vicuna_v0": "lmmblocks.chat.families:VICUNA_V0",
        "llava_v0": "lmmblocks.chat.families:LLAVA_V0",
        "v0_mmtag": "lmmblocks.chat.families:V0_MMTAG",
        "v1_mmtag": "lmmblocks.chat.families:V1_MMTAG",
        "llava_llama_2": "lmmblocks.chat.families:LLAVA_LLAMA_2",
        "mistral_instruct": "lmmblocks.chat.families:MISTRAL_INSTRUCT",
        "mpt": "lmmblocks.chat.families:MPT",
        "chatml_direct": "lmmblocks.chat.families:CHATML_DIRECT",
        "instructblip": "lmmblocks.chat.families:INSTRUCTBLIP",
    },
}
_REGISTERED: dict[str, dict[str, Any]] = {kind: {} for kind in _BUILT_IN}
_CALLERS: dict[tuple[str, str], str] = {}
"""Kind and name -> the module that registered it."""


def register(kind: str, name: str) -> Callable[[Any], Any]:
    """Class decorator that makes a block known by name.

    Args:
        kind: ``encoder``, ``projector``, ``reducer``, ``hook``, ``decoder``, ``preprocess``, or ``template``, which takes an object as well.
        name: exact, case-sensitive.

    A class of the same name from the same file takes the place of its older self, as when a notebook's cell runs again, a module is reloaded, or
    a script is also imported.

    Raises:
        LmmError: unknown kind, or the name is another block's.
    """
    taken, caller = names(kind), sys._getframe(1).f_globals.get("__name__", "")
    if name in taken and name not in _REGISTERED[kind]:
        raise LmmError(f"{kind} {name!r} is registered already, by the library or a package: choose another name")

    def decorate(block: Any) -> Any:
        if name in _REGISTERED[kind] and not _is_again(_REGISTERED[kind][name], block, caller == _CALLERS.get((kind, name))):
            raise LmmError(f"{kind} {name!r} is registered already, for {_REGISTERED[kind][name]!r}, found {block!r}: choose another name")
        _REGISTERED[kind][name], _CALLERS[kind, name] = block, caller
        return block

    return decorate


def _is_again(old: Any, new: Any, same_module: bool) -> bool:
    """Whether two blocks are one, defined once more: classes of one name in one module or file, objects of one class from one module."""
    if not (isinstance(old, type) and isinstance(new, type)):
        return old is new or (type(old) is type(new) and same_module)
    return old.__qualname__ == new.__qualname__ and (old.__module__ == new.__module__ or _file_of(old) == _file_of(new) is not None)


def _file_of(block: type) -> str | None:
    return getattr(sys.modules.get(block.__module__), "__file__", None)


def names(kind: str) -> list[str]:
    """Return every known name of a kind, sorted.

    >>> "mlp" in names("projector")
    True
    """
    if kind not in _BUILT_IN:
        raise LmmError(f"unknown kind of block {kind!r}; kinds are {sorted(_BUILT_IN)}{closest(kind, _BUILT_IN)}")
    return sorted({*_BUILT_IN[kind], *_REGISTERED[kind], *_plugins(kind)})


def built_in(kind: str) -> list[str]:
    """Return the library's own names of a kind, in the order they are listed."""
    return list(_BUILT_IN[kind])


def resolve(kind: str, name: str) -> Any:
    """Return the class of a name or of ``package.module:Class``; of a template, the object.

    Raises:
        LmmError: nothing of that name; the message lists the closest one and all others.
    """
    known = names(kind)
    if ":" in name:
        return _import(kind, name)
    if name in _REGISTERED[kind]:
        return _REGISTERED[kind][name]
    if name in _BUILT_IN[kind]:
        return _import(kind, _BUILT_IN[kind][name])
    plugin = _plugins(kind).get(name)
    if plugin is not None:
        return plugin.load()
    raise LmmError(
        f"unknown {kind} {name!r}{closest(name, known)}; known: {known}, or 'package.module:Class'; if a file of your own registers {name!r}, "
        f"import it first, or name what is in it as 'module:Class'"
    )


def name_of(kind: str, block: type) -> str:
    """Return the name under which :func:`resolve` finds a class: the registered one, or ``package.module:Class``.

    Imports nothing: a block of another package that can't be imported is in nobody's way.
    """
    path = path_of(block)
    homes = {name: point.value for name, point in _plugins(kind).items()} | _BUILT_IN[kind] | _REGISTERED[kind]
    return next((name for name, home in homes.items() if home is block or home == path or (isinstance(home, type) and path_of(home) == path)), path)


def path_of(cls: type) -> str:
    """Return where a class is defined, which stays the same when a notebook's cell runs again.

    >>> path_of(LmmError)
    'lmmblocks.spec.errors:LmmError'
    """
    return f"{cls.__module__}:{cls.__qualname__}"


def _import(kind: str, path: str) -> Any:
    module_name, _, attribute = path.partition(":")
    if not module_name or module_name.startswith("."):
        raise LmmError(f"{kind} {path!r}: expected 'package.module:Class', with the whole name of the module")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        own = f"{module_name}.".startswith(f"{error.name}.")  # not what the module imports in turn
        here = "; the lmmblocks command finds a file in the current folder with PYTHONPATH=. before it" if own else ""
        raise LmmError(f"{kind} {path!r}: no module {error.name!r}: install it or correct the part before ':'{here}") from error
    found = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise LmmError(f"{kind} {path!r}: {module_name} has no {attribute!r}{closest(part, dir(found))}")
        found = getattr(found, part)
    return found


def _plugins(kind: str) -> dict[str, Any]:
    """Entry points named ``kind.name`` in the group ``lmmblocks.blocks``."""
    from importlib.metadata import entry_points

    found = {}
    for point in entry_points(group=ENTRY_POINTS):
        point_kind, _, name = point.name.partition(".")
        if point_kind == kind:
            found[name] = point
    return found
