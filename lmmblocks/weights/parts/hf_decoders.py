"""Language models of Hugging Face: ``config.json`` to ``TransformerConfig`` and back, for every type of ``hf_families.FAMILIES``.

Keys that a file leaves out have transformers' defaults (its classes write every key, hub files only what differs). What the native decoder
can't compute is refused by name, all reasons at once; keys that only matter to training from scratch (dropout, initialisation) or to
transformers itself are left alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace

from ...decoders.transformer import TransformerConfig
from ...spec import LmmError
from .hf_families import FAMILIES, Family, Fields, window_fields
from .hf_rope import rope_to_hf
from .hf_values import Values, check_numbers, model_type, section

_SHAPE = {
    "vocab_size": "vocab",
    "hidden_size": "dim",
    "intermediate_size": "ffn_dim",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "num_key_value_heads": "kv_heads",
    "max_position_embeddings": "max_positions",
    "rms_norm_eps": "eps",
}

TEXT_TYPES = {"llava": "llama", "llava_next": "llama", "gemma3": "gemma3_text"}
"""Multimodal ``model_type`` -> that of its ``text_config`` where the file leaves it out."""


def decoder_from_hf(values: Values) -> TransformerConfig:
    """Return the decoder that a ``config.json`` describes: a language model of ``FAMILIES``, or the one in the ``text_config`` of another model.

    Raises:
        LmmError: another type of model, or one that the native decoder can't compute; all reasons are listed.
    """
    if values.get("model_type") not in FAMILIES and ("text_config" in values or values.get("model_type") in TEXT_TYPES):
        return text_from_hf(values)
    return _read(model_type(values, FAMILIES), values)


def text_from_hf(values: Values) -> TransformerConfig:
    """Return the language model of a multimodal ``config.json``; it is tied when either of the two places says so."""
    text = {"model_type": TEXT_TYPES.get(str(values.get("model_type"))), **section(values, "text_config")}
    kind = model_type(text, FAMILIES, "config.json, text_config,")
    said = [place["tie_word_embeddings"] for place in (values, text) if place.get("tie_word_embeddings") is not None]
    return _read(kind, {**text, "tie_word_embeddings": any(said)} if said else text)


def knows_decoder(values: Values) -> bool:
    """Return whether ``config.json`` is of a model type that :func:`decoder_from_hf` reads, computable or not."""
    outer = values.get("model_type")
    text = values.get("text_config") if outer not in FAMILIES else None
    default = TEXT_TYPES.get(str(outer))
    kind = text.get("model_type", default) if isinstance(text, Mapping) else default or outer
    return kind in FAMILIES


def llama_from_hf(values: Values) -> TransformerConfig:
    """:func:`decoder_from_hf` for a ``llama`` or a ``llava`` only."""
    return text_from_hf(values) if model_type(values, ("llama", "llava")) == "llava" else _read("llama", values)


def decoder_to_hf(config: TransformerConfig, kinds: Mapping[str, Family] = FAMILIES) -> Fields:
    """Return the ``config.json`` of the first family that has a decoder like this.

    Raises:
        LmmError: no family of transformers has these options together.
    """
    wanted = canonical(config)
    for kind, family in kinds.items():
        values = _write(kind, family, config)
        try:
            if canonical(_read(kind, values)) == wanted:
                return values
        except LmmError:
            continue
    plain = TransformerConfig()
    options = [f.name for f in fields(config) if f.name in _OPTIONS and getattr(config, f.name) != getattr(plain, f.name)]
    raise LmmError(
        f"no decoder of transformers ({', '.join(kinds)}) has {' and '.join(options)} as this one: save with format='native', or change these"
    )


def llama_to_hf(config: TransformerConfig) -> Fields:
    """Return a ``LlamaConfig``; ``rope_theta`` is where both transformers 4 and 5 read it."""
    return decoder_to_hf(config, {"llama": FAMILIES["llama"]})


_NO_OPTIONS = {*_SHAPE.values(), "tied", "rope_theta", "recompute"}
_OPTIONS = {f.name for f in fields(TransformerConfig)} - _NO_OPTIONS


def canonical(config: TransformerConfig) -> TransformerConfig:
    """Return the shortest config that computes the same."""
    plain_head = config.head_width * config.heads == config.dim
    sliding = [layer for layer in range(config.layers) if config.slides(layer)]
    return replace(
        config,
        head_dim=None if plain_head else config.head_width,
        query_scalar=None if config.query_scalar == config.head_width else config.query_scalar,
        window_theta=config.window_theta if sliding else None,
        recompute=False,
        **window_fields(config.window, sliding, config.layers),
    )


def _read(kind: str, values: Values) -> TransformerConfig:
    family = FAMILIES[kind]
    got = {**family.defaults, **values}
    got["num_key_value_heads"] = got["num_key_value_heads"] or got["num_attention_heads"]
    problems = [f"{key}={got[key]!r} (expected {' or '.join(map(repr, known))})" for key, known in family.allowed.items() if got[key] not in known]
    numbers = {key: value for key, value in family.defaults.items() if key in _SHAPE or got[key] not in (None, 0)}
    check_numbers(got, {**numbers, "num_key_value_heads": 1})
    found = family.rope(got, problems) | family.read(got, problems)
    if problems:
        raise LmmError(f"config.json, {kind}: the native blocks can't compute {'; '.join(problems)}")
    shape = {name: got[key] for key, name in _SHAPE.items()}
    plain_head = got["head_dim"] is None or got["head_dim"] * got["num_attention_heads"] == got["hidden_size"]
    head_dim = None if plain_head else got["head_dim"]
    return TransformerConfig(**shape, head_dim=head_dim, tied=bool(got["tie_word_embeddings"]), **family.options, **found)


def _write(kind: str, family: Family, config: TransformerConfig) -> Fields:
    return {
        "model_type": kind,
        "architectures": [family.architecture],
        **{key: getattr(config, name) for key, name in _SHAPE.items()},
        "head_dim": config.head_width,
        "hidden_act": family.defaults["hidden_act"],
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": config.tied,
        **rope_to_hf(config),
        **family.write(config),
    }
