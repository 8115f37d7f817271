"""Assemble a model from a preset or a config, with any part swapped by one word, one class or one module."""

from __future__ import annotations

import inspect
from dataclasses import is_dataclass, replace
from typing import Any

import torch
import torch.nn as nn

from . import registry
from .config import Block, LMMConfig
from .lmm import LMM
from .presets import ENCODERS, preset
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
        weights: ``pretrained`` reads the sources of encoder and decoder; the projector is new. ``random``: all parts are new.
        dtype: of the weights; None = fp32.
        device: where the parts are built; ``meta`` allocates nothing and reads no weights.

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
    config = preset(model) if isinstance(model, str) else model
    read = weights == "pretrained" and torch.device(device).type != "meta"
    with torch.device(device):
        config, encoder_module = _encoder(config, encoder, read)
        config, decoder_module = _decoder(config, decoder, read)
        config, projector_module = _projector(config, projector, encoder_module.spec.dim, decoder_module.dim)
    if template is not None:
        config = replace(config, template=template if isinstance(template, str) else template.name)
    config, tokenizer = _tokenizer(config, tokenizer, read)
    if config.preprocess is not None:
        encoder_module.preprocess = config.preprocess
    return LMM(
        encoder_module.to(dtype=dtype or torch.float32),
        projector_module.to(dtype=dtype or torch.float32),
        decoder_module.to(dtype=dtype or torch.float32),
        template=template or config.template,
        tokenizer=tokenizer,
        config=config,
        max_length=config.max_length or getattr(config.decoder, "max_positions", None),
        tokenize_mode=config.tokenize_mode,
    ).eval()


def _encoder(config: LMMConfig, swap: Any, read: bool) -> tuple[LMMConfig, Any]:
    """Return the config with the encoder in it, and the encoder."""
    if isinstance(swap, nn.Module):
        return replace(config, encoder=_config_of(swap, "encoder"), encoder_source=None, preprocess=None), swap
    if is_dataclass(swap):
        config = replace(config, encoder=swap, encoder_source=None, preprocess=None)
    elif swap in ENCODERS:
        shape, source = ENCODERS[swap]
        config = replace(config, encoder=shape, encoder_source=source, preprocess=None)
    elif swap is not None:
        _refuse_bare_word("encoder", swap, ENCODERS)
        config, read = replace(config, encoder_source=swap, preprocess=None), True
    if config.encoder_source is None or not read:
        return config, config.encoder.build()
    from .weights.sources import load_encoder

    shape, state, preprocess = load_encoder(config.encoder_source)
    config = replace(config, encoder=replace(shape, select=config.encoder.select), preprocess=config.preprocess or preprocess)
    return config, _filled(config.encoder, state)


def _decoder(config: LMMConfig, swap: Any, read: bool) -> tuple[LMMConfig, Any]:
    """Return the config with the decoder in it, and the decoder."""
    if isinstance(swap, nn.Module):
        return replace(config, decoder=_config_of(swap, "decoder"), decoder_source=None), swap
    if is_dataclass(swap):
        config = replace(config, decoder=swap, decoder_source=None, tokenizer_source=None)
    elif swap is not None:
        _refuse_bare_word("decoder", swap, ())
        config, read = replace(config, decoder_source=swap, tokenizer_source=None), True
    if config.decoder_source is None or not read:
        return config, config.decoder.build()
    from .weights.sources import load_decoder

    shape, state = load_decoder(config.decoder_source)
    config = replace(config, decoder=shape)
    return config, _filled(shape, state)


def _filled(config: Any, state: dict[str, torch.Tensor]) -> nn.Module:
    """Build a block without allocating random weights first, and give it the tensors of ``state``."""
    with torch.device("meta"):
        module = config.build()
    module.load_state_dict(state, strict=True, assign=True)
    return module


def _projector(config: LMMConfig, swap: Any, in_dim: int, out_dim: int) -> tuple[LMMConfig, nn.Module]:
    """Return the config with the projector in it, and the projector."""
    if isinstance(swap, nn.Module):
        name = registry.name_of("projector", type(swap))
        return replace(config, projector=Block(name, dict(getattr(swap, "options", {})))), swap
    if swap is None:
        block = config.projector
    elif isinstance(swap, Block):
        block = swap
    elif isinstance(swap, str):
        block = Block(swap)
    elif inspect.isclass(swap):
        return replace(config, projector=Block(registry.name_of("projector", swap))), _called(swap, in_dim, out_dim, {})
    else:
        raise LmmError(f"projector={swap!r}: expected a name, a Block, a class or a module")
    return replace(config, projector=block), _called(registry.resolve("projector", block.type), in_dim, out_dim, block.options)


def _called(block: Any, in_dim: int, out_dim: int, options: Any) -> nn.Module:
    """Construct a projector; options it doesn't know are refused with the closest one."""
    parameters = inspect.signature(block).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        known = [name for name in parameters if name not in ("in_dim", "out_dim")]
        unknown = [f"{key!r}{closest(key, known)}" for key in options if key not in known]
        if unknown:
            raise LmmError(f"projector {block.__name__}: unknown options {', '.join(unknown)}; known: {known}")
    return block(in_dim, out_dim, **options)


def _tokenizer(config: LMMConfig, swap: Any, read: bool) -> tuple[LMMConfig, Any]:
    """Return the config with the tokenizer's source in it, and the tokenizer (None when there is nowhere to take it from)."""
    if swap is not None and not isinstance(swap, str):
        return config, swap
    if swap is not None:
        config, read = replace(config, tokenizer_source=swap), True
    source = config.tokenizer_source or config.decoder_source
    if source is None or not read:
        return config, None
    from .weights.sources import load_tokenizer

    return config, load_tokenizer(source)


def _config_of(module: nn.Module, kind: str) -> Any:
    config = getattr(module, "config", None)
    if not is_dataclass(config):
        raise LmmError(
            f"{kind} {type(module).__name__!r} has no config dataclass, which saving needs: give it a 'config' attribute, "
            f"or compose it yourself with LMM(encoder, projector, decoder)"
        )
    return config


def _refuse_bare_word(kind: str, name: Any, known: Any) -> None:
    """A word that is neither a known name nor a path nor a hub id (``owner/name``) is a typing mistake."""
    import os

    if not isinstance(name, (str, os.PathLike)):
        raise LmmError(f"{kind}={name!r}: expected a name, a folder, a hub id, a config or a module")
    if isinstance(name, str) and "/" not in name and not os.path.isdir(name):
        listed = f"; known names: {sorted(known)}" if known else ""
        raise LmmError(f"unknown {kind} {name!r}{closest(name, known)}{listed}; or give a folder, a hub id 'owner/name', or a config")
