"""Assemble a model from a preset or a config, with any part swapped by one word, one class or one module."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn as nn

from . import registry
from .chat import get_template
from .config import Block, LMMConfig, is_config
from .lmm import LMM
from .presets import ENCODERS, PRESETS, preset
from .spec import LmmError, closest

WEIGHTS = ("pretrained", "random")


def build(
    model: str | LMMConfig,
    *,
    encoder: Any = None,
    projector: Any = None,
    decoder: Any = None,
    template: Any = None,
    tokenizer: Any = None,
    weights: str = "pretrained",
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> LMM:
    """Assemble a model from its parts.

    Args:
        model: name of a preset (``"llava15-7b"``) or a config.
        encoder: swap: a name, a folder or hub id, a config dataclass, or a module.
        projector: swap: a registered name, ``package.module:Class``, a ``Block`` with options, a class, or a module.
        decoder: swap: a folder or hub id, a config dataclass, or a module.
        template: swap: a name or an object with ``render``.
        tokenizer: swap: a tokenizer, a folder or a hub id; None = the decoder's own.
        weights: ``pretrained`` reads the sources of encoder and decoder; the projector is new. ``random``: all parts are new, of the
            shapes of their sources where these are swapped.
        dtype: of the weights; None = fp32.
        device: where the parts are; ``meta`` takes no memory, as ``weights="random"`` in every other way.

    Returns:
        The model, in eval mode.

    Raises:
        LmmError: an unknown name, a source that isn't there, or parts that don't fit.

    >>> from lmmblocks.presets import llava15_tiny
    >>> build(llava15_tiny(), projector="linear", weights="random").projector
    Linear(
      (linear): Linear(in_features=192, out_features=192, bias=True)
    )
    """
    if weights not in WEIGHTS:
        raise LmmError(f"weights={weights!r} is none of {WEIGHTS}{closest(weights, WEIGHTS)}")
    config = _start(model)
    template = get_template(config.template if template is None else template)
    read = weights == "pretrained" and torch.device(device).type != "meta"
    config, new_projector = _projector(config, projector)
    config, encoder_module = _encoder(config, encoder, read, device)
    config, decoder_module = _decoder(config, decoder, read, device)
    with torch.device(device):
        projector_module = new_projector(encoder_module.spec.dim, decoder_module.dim)
    config, tokenizer = _tokenizer(replace(config, template=template.name), tokenizer, read)
    if config.preprocess is not None:
        encoder_module.preprocess = config.preprocess
    parts = (part.to(device=device, dtype=dtype or torch.float32) for part in (encoder_module, projector_module, decoder_module))
    return LMM(
        *parts,
        template=template,
        tokenizer=tokenizer,
        config=config,
        max_length=config.max_length or getattr(config.decoder, "max_positions", None),
        tokenize_mode=config.tokenize_mode,
    ).eval()


def _start(model: Any) -> LMMConfig:
    if isinstance(model, LMMConfig):
        return model
    if not isinstance(model, str):
        raise LmmError(f"build takes the name of a preset or an LMMConfig, found {model!r}")
    if model not in PRESETS and ("/" in model or os.path.isdir(model)):
        raise LmmError(f"unknown preset {model!r}; known: {sorted(PRESETS)}; a saved model is read with lmmblocks.load({model!r})")
    return preset(model)


def _encoder(config: LMMConfig, swap: Any, read: bool, device: torch.device | str) -> tuple[LMMConfig, Any]:
    """Return the config with the encoder in it, and the encoder."""
    if isinstance(swap, nn.Module):
        return replace(config, encoder=_config_of(swap, "encoder"), encoder_source=None, preprocess=None), swap
    of_source = read
    if is_config(swap):
        config = replace(config, encoder=swap, encoder_source=None, preprocess=None)
    elif isinstance(swap, str) and swap in ENCODERS:
        shape, source = ENCODERS[swap]
        config = replace(config, encoder=shape, encoder_source=source, preprocess=None)
    elif swap is not None:
        config, of_source = replace(config, encoder_source=_source("encoder", swap, ENCODERS), preprocess=None), True
    if config.encoder_source is None or not of_source:
        return config, _new(config.encoder, device)
    from .weights.sources import load_encoder

    shape, state, preprocess = load_encoder(config.encoder_source)
    config = replace(config, encoder=replace(shape, select=config.encoder.select), preprocess=config.preprocess or preprocess)
    return config, _filled(config.encoder, state) if read else _new(config.encoder, device)


def _decoder(config: LMMConfig, swap: Any, read: bool, device: torch.device | str) -> tuple[LMMConfig, Any]:
    """Return the config with the decoder in it, and the decoder."""
    if isinstance(swap, nn.Module):
        return replace(config, decoder=_config_of(swap, "decoder"), decoder_source=None, tokenizer_source=None), swap
    of_source = read
    if is_config(swap):
        config = replace(config, decoder=swap, decoder_source=None, tokenizer_source=None)
    elif swap is not None:
        config, of_source = replace(config, decoder_source=_source("decoder", swap, ()), tokenizer_source=None), True
    if config.decoder_source is None or not of_source:
        return config, _new(config.decoder, device)
    from .weights.sources import load_decoder

    shape, state = load_decoder(config.decoder_source)
    config = replace(config, decoder=shape)
    return config, _filled(shape, state) if read else _new(shape, device)


def _new(config: Any, device: torch.device | str) -> nn.Module:
    with torch.device(device):
        return config.build()


def _filled(config: Any, state: dict[str, torch.Tensor]) -> nn.Module:
    """Build a block without allocating random weights first, and give it the tensors of ``state``."""
    module = _new(config, "meta")
    module.load_state_dict(state, strict=True, assign=True)
    return module


def _projector(config: LMMConfig, swap: Any) -> tuple[LMMConfig, Callable[[int, int], nn.Module]]:
    """Return the config with the projector in it, and what makes the projector from the widths; unknown names are refused here."""
    if isinstance(swap, nn.Module):
        block = Block(registry.name_of("projector", type(swap)), _options_of(swap))
        return replace(config, projector=block), lambda in_dim, out_dim: swap
    if inspect.isclass(swap):
        block, maker = Block(registry.name_of("projector", swap)), swap
    elif swap is None or isinstance(swap, (str, Block)):
        block = Block(swap) if isinstance(swap, str) else swap or config.projector
        maker = registry.resolve("projector", block.type)
    else:
        raise LmmError(f"projector={swap!r}: expected a name, a Block, a class or a module")
    return replace(config, projector=block), lambda in_dim, out_dim: _called(maker, in_dim, out_dim, block.options)


def _called(block: Any, in_dim: int, out_dim: int, options: Any) -> nn.Module:
    """Construct a projector.

    Raises:
        LmmError: options it doesn't know, with the closest one, or a constructor that doesn't begin with the two widths.
    """
    signature = inspect.signature(block)
    if not any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()):
        known = [name for name in signature.parameters if name not in ("in_dim", "out_dim")]
        unknown = [f"{key!r}{closest(key, known)}" for key in options if key not in known]
        if unknown:
            raise LmmError(f"projector {block.__name__}: unknown options {', '.join(unknown)}; known: {known}")
    try:
        signature.bind(in_dim, out_dim, **options)
    except TypeError as error:
        raise LmmError(
            f"projector {block.__name__} is made as (in_dim, out_dim, **options) with options {dict(options)}, but its constructor takes "
            f"{signature}: {error}"
        ) from error
    return block(in_dim, out_dim, **options)


def _options_of(module: nn.Module) -> dict[str, Any]:
    """Return what a projector was made with; a config that doesn't know it would describe another one."""
    parameters = [*inspect.signature(type(module)).parameters]
    if not hasattr(module, "options") and len(parameters) != 2:
        raise LmmError(
            f"projector {type(module).__name__!r} takes {parameters} but doesn't say what it was made with, which saving needs: pass its "
            f"class or a Block, give it an 'options' attribute (all arguments but in_dim and out_dim), or compose it yourself with "
            f"LMM(encoder, projector, decoder)"
        )
    return dict(getattr(module, "options", {}))


def _tokenizer(config: LMMConfig, swap: Any, read: bool) -> tuple[LMMConfig, Any]:
    """Return the config with the tokenizer's source in it, and the tokenizer (None when there is nowhere to take it from)."""
    if swap is not None and not isinstance(swap, (str, os.PathLike)):
        return config, swap
    if swap is not None:
        config, read = replace(config, tokenizer_source=os.fspath(swap)), True
    source = config.tokenizer_source or config.decoder_source
    if source is None or not read:
        return config, None
    from .weights.sources import load_tokenizer

    return config, load_tokenizer(source)


def _config_of(module: nn.Module, kind: str) -> Any:
    config = getattr(module, "config", None)
    if not is_config(config):
        raise LmmError(
            f"{kind} {type(module).__name__!r} has no config dataclass, which saving needs: give it a 'config' attribute, "
            f"or compose it yourself with LMM(encoder, projector, decoder)"
        )
    return config


def _source(kind: str, name: Any, known: Any) -> str:
    """Return a folder or hub id as a string; a word that is neither a known name nor one of these is a typing mistake."""
    if not isinstance(name, (str, os.PathLike)):
        raise LmmError(f"{kind}={name!r}: expected a name, a folder, a hub id, a config or a module")
    if isinstance(name, str) and "/" not in name and not os.path.isdir(name):
        listed = f"; known names: {sorted(known)}" if known else ""
        raise LmmError(f"unknown {kind} {name!r}{closest(name, known)}{listed}; or give a folder, a hub id 'owner/name', or a config")
    return os.fspath(name)
