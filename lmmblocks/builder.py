"""Assemble a model from a preset or a config, with any part swapped by one word, one class or one module."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import torch
import torch.nn as nn

from .chat import get_template
from .chat.lookup import AUTO
from .compose.checks import Parts, mismatches, refuse
from .compose.current_config import template_or_name
from .compose.dtypes import check_dtype
from .compose.first_pass import check_runs
from .compose.recipes import Recipe, named_config, recipe, recipes
from .compose.vocabulary import check_extends, grow_decoder
from .config import LMMConfig, is_config
from .decoders.hf import HFDecoder, is_hf_model
from .encoders.kept_fields import keep_choices, preprocess_for
from .lmm import LMM
from .presets import DECODERS, ENCODERS, PRESETS, preset
from .spec import LmmError, closest

WEIGHTS = ("pretrained", "random")


def build(
    model: str | LMMConfig,
    *,
    encoder: Any = None,
    projector: Any = None,
    decoder: Any = None,
    reducers: Any = None,
    hooks: Any = None,
    template: Any = None,
    tokenizer: Any = None,
    grow_vocab: str | None = None,
    weights: str = "pretrained",
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> LMM:
    """Assemble a model from its parts.

    Args:
        model: name of a preset (``"llava15-7b"``) or a config.
        encoder: swap: a name of ``presets.ENCODERS``, a registered name, ``package.module:Class``, a ``Block``, a folder or hub id, a config
            dataclass, or a module.
        projector: swap: a registered name, ``package.module:Class``, a ``Block`` with options, a class, or a module.
        decoder: swap: a name of ``presets.DECODERS``, a registered name, ``package.module:Class``, a ``Block``, a folder or hub id, a config
            dataclass, or a module.
        reducers: swap: a list of what drops or merges image rows, each as a projector is given; ``[]`` = none.
        hooks: swap: a list of what changes rows between the decoder's layers, each as a projector is given, or an object; ``[]`` = none.
        template: swap: a name, ``auto`` for the tokenizer's own, ``package.module:OBJECT``, or an object with ``render``.
        tokenizer: swap: a tokenizer, a folder or a hub id; None = the decoder's own.
        grow_vocab: what the new rows of table and head are where the tokenizer has more ids than the decoder, ``mean`` or ``random`` (see
            ``LMM.grow_vocab``); None = such a tokenizer is refused.
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
    check_dtype(dtype)
    config = _start(model)
    asked = config.template if template is None else template
    template = None if asked == AUTO else get_template(asked)
    read = weights == "pretrained" and torch.device(device).type != "meta"
    config, recipes = _blocks(config, projector, reducers, hooks)
    config, encoder_module = _encoder(config, encoder, read, device)
    config, decoder_module = _decoder(config, decoder, read, device)
    swapped = tokenizer
    config, tokenizer = _tokenizer(config, tokenizer, read)
    if grow_vocab is not None:
        own = None if swapped is None or not read or config.decoder_source is None else _own_tokenizer(config.decoder_source)
        config = _grown(config, decoder_module, tokenizer, own, grow_vocab)
    template = get_template(asked, tokenizer) if template is None else template
    config = replace(config, template=template_or_name(template, asked))
    if config.preprocess is not None:
        encoder_module.preprocess = config.preprocess
    max_length = config.max_length or getattr(config.decoder, "max_positions", None)

    def move(part: nn.Module) -> nn.Module:
        return part.to(device=device, dtype=dtype or torch.float32)

    problems: list[str] = []
    with torch.device(device):
        blocks = _made(recipes, encoder_module, decoder_module, problems, move)
    connector: Any = next(iter(blocks["projector"]), None)
    parts = (move(encoder_module), connector, move(decoder_module))
    several = blocks["reducer"], blocks["hook"]
    if problems:
        refuse([*problems, *mismatches(Parts(*parts, *several, tokenizer, template, max_length, config.attention))])
    made = LMM(
        *parts,
        reducers=several[0],
        hooks=several[1],
        template=template,
        tokenizer=tokenizer,
        config=config,
        max_length=max_length,
        tokenize_mode=config.tokenize_mode,
        attention=config.attention,
    ).eval()
    check_runs(made)
    return made


def random_parts(config: LMMConfig) -> list[str]:
    """Return which of encoder and decoder :func:`build` makes with random weights, as the config says nowhere to read them from.

    What connects them is always new.
    """
    encoder = config.encoder_source is None and not getattr(config.encoder, "pretrained", None)
    return [name for name, new in (("encoder", encoder), ("decoder", config.decoder_source is None)) if new]


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
    of_source, swap = read, _config_or_source("encoder", swap, ENCODERS)
    if is_config(swap):
        config = replace(config, encoder=swap, encoder_source=None, preprocess=None)
    elif isinstance(swap, str) and swap in ENCODERS:
        shape, source = ENCODERS[swap]
        config = replace(config, encoder=shape, encoder_source=source, preprocess=None)
    elif swap is not None:
        config, of_source = replace(config, encoder_source=_source("encoder", swap, ENCODERS), preprocess=None), True
    if config.encoder_source is None and read and getattr(config.encoder, "pretrained", None):
        state, preprocess = config.encoder.read_pretrained()
        return replace(config, preprocess=config.preprocess or preprocess), _filled(config.encoder, state)
    if config.encoder_source is None or not of_source:
        return config, _new(config.encoder, device)
    from .weights.sources import load_encoder

    encoder_config, state, preprocess = _in_place_of(config.encoder, *load_encoder(config.encoder_source))
    config = replace(config, encoder=encoder_config, preprocess=config.preprocess or preprocess)
    return config, _filled(config.encoder, state) if read else _new(config.encoder, device)


def _in_place_of(old: Any, shape: Any, state: dict[str, torch.Tensor], preprocess: Any) -> tuple[Any, dict[str, torch.Tensor], Any]:
    """Put an encoder that was read, its weights and its preprocessing, where the config has one: in its place, or after its tiles."""
    if hasattr(old, "around"):
        shape, state, preprocess = _in_place_of(old.tower, shape, state, preprocess)
        tiled = old.around(shape)
        return tiled, {f"tower.{name}": value for name, value in state.items()}, tiled.preprocess_of(preprocess)
    if not hasattr(old, "select"):
        raise LmmError(f"encoder_source names the weights of one tower, {type(old).__name__} has several: build it from encoders that have theirs")
    kept = keep_choices(shape, old)
    return kept, state, preprocess_for(kept, preprocess)


def _decoder(config: LMMConfig, swap: Any, read: bool, device: torch.device | str) -> tuple[LMMConfig, Any]:
    """Return the config with the decoder in it, and the decoder; a model of transformers is wrapped."""
    if isinstance(swap, nn.Module):
        swap = HFDecoder.of(swap) if is_hf_model(swap) else swap
        return replace(config, decoder=_config_of(swap, "decoder"), decoder_source=None, tokenizer_source=None), swap
    of_source, swap = read, _config_or_source("decoder", swap, DECODERS)
    if is_config(swap):
        config = replace(config, decoder=swap, decoder_source=None, tokenizer_source=None)
    elif isinstance(swap, str) and swap in DECODERS:
        shape, source = DECODERS[swap]
        config = replace(config, decoder=shape, decoder_source=source, tokenizer_source=None)
    elif swap is not None:
        config, of_source = replace(config, decoder_source=_source("decoder", swap, DECODERS), tokenizer_source=None), True
    if config.decoder_source is None or not of_source:
        return config, _new(config.decoder, device)
    from .weights.sources import load_decoder

    shape, state = load_decoder(config.decoder_source)
    shape = _with_choices(shape, config.decoder)
    config = replace(config, decoder=shape)
    return config, _filled(shape, state) if read else _new(shape, device)


def _with_choices(read: Any, wanted: Any) -> Any:
    """Return a decoder's config that was read, with what the config before had chosen beside the shape of the weights (``recompute``)."""
    names = set(getattr(read, "choices", ())) & set(getattr(wanted, "choices", ()))
    return replace(read, **{name: getattr(wanted, name) for name in names})


def _config_or_source(kind: str, swap: Any, words: Any) -> Any:
    """Return the config that a registered name stands for, and anything else as it is; ``words`` are names that bring weights."""
    config = None if isinstance(swap, str) and swap in words else named_config(kind, swap)
    return swap if config is None else config


def _new(config: Any, device: torch.device | str) -> nn.Module:
    with torch.device(device):
        return config.build()


def _filled(config: Any, state: dict[str, torch.Tensor]) -> nn.Module:
    """Build a block without allocating random weights first, and give it the tensors of ``state``."""
    from .weights.files.buffers import compute_buffers

    module = _new(config, "meta")
    module.load_state_dict(state, strict=True, assign=True)
    compute_buffers(module, config.build)
    return module


def _blocks(config: LMMConfig, projector: Any, reducers: Any, hooks: Any) -> tuple[LMMConfig, list[Recipe]]:
    """Return the config with the blocks by name in it, and how each is made; unknown names are refused here."""
    connector = recipe("projector", config.projector if projector is None else projector)
    dropping = recipes("reducer", config.reducers if reducers is None else reducers)
    hooking = recipes("hook", config.hooks if hooks is None else hooks)
    several = (tuple(entry.block for entry in entries) for entries in (dropping, hooking))
    return replace(config, projector=connector.block, reducers=next(several), hooks=next(several)), [connector, *dropping, *hooking]


def _made(recipes: list[Recipe], encoder: Any, decoder: Any, problems: list[str], move: Any) -> dict[str, list[Any]]:
    """Make each block; what its constructor refuses joins the other problems."""
    made: dict[str, list[Any]] = {"projector": [], "reducer": [], "hook": []}
    for entry in recipes:
        try:
            block = entry.make(encoder.spec, decoder.dim)
        except LmmError as error:
            problems.append(str(error))
        else:
            made[entry.kind].append(move(block) if isinstance(block, nn.Module) else block)
    return made


def _tokenizer(config: LMMConfig, swap: Any, read: bool) -> tuple[LMMConfig, Any]:
    """Return the config with the tokenizer's source in it, and the tokenizer (None when there is nowhere to take it from)."""
    if swap is not None and not isinstance(swap, (str, os.PathLike)):
        return config, swap
    if swap is not None:
        config, read = replace(config, tokenizer_source=os.fspath(swap)), True
    source = config.tokenizer_source or config.decoder_source
    if source is None or not read:
        return config, None
    from .chat import load_tokenizer

    return config, load_tokenizer(source)


def _own_tokenizer(source: str) -> Any:
    """Return the tokenizer that lies beside a decoder's weights, None if there is none."""
    from .chat import load_tokenizer

    try:
        return load_tokenizer(source)
    except LmmError:
        return None


def _grown(config: LMMConfig, decoder: Any, tokenizer: Any, own: Any, init: str) -> LMMConfig:
    """Give the decoder rows for all ids of a tokenizer, which keeps those of the decoder's own; return the config of the larger one."""
    if tokenizer is None:
        raise LmmError(f"grow_vocab={init!r} needs a tokenizer to grow for: give build one with tokenizer=...")
    if own is not None:
        check_extends(tokenizer, own)
    grow_decoder(decoder, tokenizer, None if own is None else own.get_vocab(), init=init)
    return replace(config, decoder=_config_of(decoder, "decoder"))


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
