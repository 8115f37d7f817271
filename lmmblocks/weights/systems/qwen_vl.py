"""The original Qwen-VL and Qwen-VL-Chat (2023): their ``config.json``, names of tensors and tokenizer files, read into our blocks and written.

A folder is one of these when its ``config.json`` is a ``qwen`` with a section ``visual``; transformers has no class for it, the original's code lies
beside the weights on the hub. Two things differ from a LLaVA's files beside names:

- ``c_attn`` is one matrix for queries, keys and values, here three (:func:`with_split_attention`); the MLP's gate is ``w2``, not ``w1``;
- ``generation_config.json`` says whether the model was taught to chat (``chat_format``), and only the tokenizer's code names its special tokens
  (``chat/qwen_tokenizer.py``).

Up to ``seq_length`` positions, 2,048 in the released models, the original's ``use_dynamic_ntk`` and ``use_logn_attn`` change nothing. Beyond, they
stretch rotary frequencies by the length of the prompt and scale queries by the logarithm of their position, both in answers and not in training. That
isn't computed here: where one of them is on, the decoder has ``seq_length`` positions, and longer conversations are refused.

Source: ``configuration_qwen.py``, ``modeling_qwen.py``, ``visual.py`` and ``config.json`` of Qwen/Qwen-VL-Chat; ``models/qwen_vl.py`` of vLLM.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...chat import get_template
from ...chat.qwen_tokenizer import VOCABULARY, first_image_id, write_vocabulary
from ...chat.qwen_vl import START
from ...chat.tiktoken_convert import read_ranks
from ...config import Block, LMMConfig
from ...decoders.transformer import TransformerConfig
from ...encoders.qwen_vit import QwenViTConfig
from ...spec import LmmError
from ..files.folder import write_json
from ..files.maps import NATIVE, KeyMap
from ..files.tensors import CONFIG, WeightFiles, open_weights, read_json
from ..parts.hf_values import Values, check_numbers, refuse, section
from .of_transformers import of_transformers

MODEL_TYPE = "qwen"
VISUAL = "visual"
GENERATION = "generation_config.json"
TEMPLATES = {"raw": "lmmblocks.chat.qwen_vl:QWEN_VL", "chatml": "lmmblocks.chat.qwen_vl:QWEN_VL_CHAT"}
"""``chat_format`` -> the template."""

_DEFAULTS = {
    "vocab_size": 151936,
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "intermediate_size": 22016,
    "kv_channels": 128,
    "layer_norm_epsilon": 1e-6,
    "max_position_embeddings": 8192,
    "seq_length": 2048,
    "rotary_pct": 1.0,
    "rotary_emb_base": 10000.0,
}
_FLAGS = {"scale_attn_weights": True, "no_bias": True, "use_dynamic_ntk": True, "use_logn_attn": True, "tie_word_embeddings": False}
_VISUAL = {
    "image_size": 448,
    "patch_size": 14,
    "width": 1664,
    "layers": 48,
    "heads": 16,
    "mlp_ratio": 4.9231,
    "n_queries": 256,
    "output_dim": 4096,
}
_CODE = "Qwen/Qwen-VL-Chat--"  # the repository that holds the original's code, as transformers names it in auto_map
_TRAINED_SIDE = 16  # patches of a side that the original's table of positions has, whatever the config says


def is_qwen_vl(values: Mapping[str, Any]) -> bool:
    """Say whether a ``config.json`` is Qwen-VL's."""
    return values.get("model_type") == MODEL_TYPE and VISUAL in values


def read_qwen_vl_config(folder: Path, values: Values) -> LMMConfig:
    """Return the model of a folder.

    Raises:
        LmmError: a model that the native blocks can't compute, a ``chat_format`` that Qwen-VL doesn't have, or a vocabulary in which ``<img>`` has
            another id than the original's code looks for.
    """
    _check_image_token(folder, values)
    said = read_json(folder / GENERATION).get("chat_format", "raw") if (folder / GENERATION).is_file() else "raw"
    if said not in TEMPLATES:
        raise LmmError(f"{folder / GENERATION} has chat_format {said!r}, expected one of {', '.join(map(repr, TEMPLATES))}")
    return replace(qwen_vl_from_config(values), template=TEMPLATES[said])


def _check_image_token(folder: Path, values: Values) -> None:
    stated = section(values, VISUAL).get("image_start_id")
    found = first_image_id(len(read_ranks(folder / VOCABULARY))) if (folder / VOCABULARY).is_file() else stated
    if stated not in (None, found):
        raise LmmError(
            f"{folder / CONFIG} has {VISUAL}.image_start_id={stated!r}, in {VOCABULARY} <img> has the id {found}: use files that belong together"
        )


def qwen_vl_from_config(values: Values) -> LMMConfig:
    """Return the model that a ``config.json`` describes, with the template of models that weren't taught to chat.

    Raises:
        LmmError: a model that the native blocks can't compute; all reasons of one kind are listed.
    """
    got = {**_DEFAULTS, **_FLAGS, **values}
    visual = {**_VISUAL, **section(values, VISUAL)}
    check_numbers(got, _DEFAULTS)
    check_numbers(visual, _VISUAL)
    refuse(MODEL_TYPE, got, {"scale_attn_weights": (True,), "no_bias": (True,)})
    refuse(f"{MODEL_TYPE}, {VISUAL}", visual, {"output_dim": (got["hidden_size"],)})
    refuse(MODEL_TYPE, got, {"kv_channels": (got["hidden_size"] // got["num_attention_heads"],)})
    side = math.isqrt(visual["n_queries"])
    refuse(f"{MODEL_TYPE}, {VISUAL}", visual, {"n_queries": (side * side,)})
    encoder = _encoder(visual)
    decoder = _decoder(got)
    return LMMConfig(
        encoder=encoder,
        projector=Block("resampler", {"grid": side}),
        decoder=decoder,
        template=TEMPLATES["raw"],
        max_length=decoder.max_positions,
        preprocess=encoder.default_preprocess(),
    )


def _encoder(visual: Values) -> QwenViTConfig:
    return QwenViTConfig(
        dim=visual["width"],
        layers=visual["layers"],
        heads=visual["heads"],
        mlp_dim=int(visual["width"] * visual["mlp_ratio"]),
        image_size=visual["image_size"],
        trained_size=_TRAINED_SIDE * visual["patch_size"],
        patch=visual["patch_size"],
    )


def _decoder(got: Values) -> TransformerConfig:
    stretched = got["use_dynamic_ntk"] or got["use_logn_attn"]
    return TransformerConfig(
        dim=got["hidden_size"],
        layers=got["num_hidden_layers"],
        heads=got["num_attention_heads"],
        kv_heads=got["num_attention_heads"],
        ffn_dim=got["intermediate_size"] // 2,
        vocab=got["vocab_size"],
        rope_theta=float(got["rotary_emb_base"]),
        rotary_fraction=float(got["rotary_pct"]),
        eps=got["layer_norm_epsilon"],
        tied=got["tie_word_embeddings"],
        max_positions=min(got["seq_length"], got["max_position_embeddings"]) if stretched else got["max_position_embeddings"],
        qkv_bias=True,
    )


_LAYER, _BLOCK = "language_model.model.layers.{}.", "vision_tower.vision_model.encoder.layers.{}."
_NAMES = (
    ("transformer.wte.", "language_model.model.embed_tokens."),
    ("transformer.ln_f.", "language_model.model.norm."),
    ("lm_head.", "language_model.lm_head."),
    ("transformer.visual.conv1.", "vision_tower.vision_model.embeddings.patch_embedding."),
    ("transformer.visual.positional_embedding", "vision_tower.vision_model.embeddings.position_embedding"),
    ("transformer.visual.ln_pre.", "vision_tower.vision_model.pre_layrnorm."),
    *((f"transformer.visual.{name}", f"multi_modal_projector.{name}") for name in ("attn_pool.", "ln_post.", "proj")),
)
_DECODER_NAMES = (
    ("ln_1.", "input_layernorm."),
    *((f"attn.c_attn.{part}.", f"self_attn.{part}_proj.") for part in "qkv"),  # as with_split_attention calls them
    ("attn.c_proj.", "self_attn.o_proj."),
    ("ln_2.", "post_attention_layernorm."),
    ("mlp.w2.", "mlp.gate_proj."),
    ("mlp.w1.", "mlp.up_proj."),
    ("mlp.c_proj.", "mlp.down_proj."),
)
_TOWER_NAMES = (
    ("ln_1.", "layer_norm1."),
    ("attn.in_proj.", "self_attn.qkv."),
    ("attn.out_proj.", "self_attn.projection."),
    ("ln_2.", "layer_norm2."),
    ("mlp.c_fc.", "mlp.fc1."),
    ("mlp.c_proj.", "mlp.fc2."),
)
_IN_DECODER, _IN_TOWER = "transformer.h.{}.", "transformer.visual.transformer.resblocks.{}."
_FUSED = re.compile(r"(transformer\.h\.\d+\.attn\.c_attn\.)(weight|bias)")
_PARTS = re.compile(r"(transformer\.h\.\d+\.attn\.c_attn\.)([qkv])\.(weight|bias)")


def layout_of(layers: int, tower_layers: int) -> KeyMap:
    """Return the names of a model's tensors, its attention split.

    >>> layout_of(1, 1).to_model("transformer.h.0.mlp.w2.weight")
    'language_model.model.layers.0.mlp.gate_proj.weight'
    """
    decoder = [(_IN_DECODER.format(i) + a, _LAYER.format(i) + b) for i in range(layers) for a, b in _DECODER_NAMES]
    tower = [(_IN_TOWER.format(i) + a, _BLOCK.format(i) + b) for i in range(tower_layers) for a, b in _TOWER_NAMES]
    return KeyMap("original Qwen-VL", (*decoder, *tower, *_NAMES))


def with_split_attention(files: WeightFiles) -> WeightFiles:
    """Return files in which ``c_attn`` is three tensors, ``c_attn.q``, ``c_attn.k`` and ``c_attn.v``."""
    place: dict[str, tuple[str, int | None]] = {name: (name, None) for name in files.shapes if not _FUSED.fullmatch(name)}
    for name in files.shapes:
        if fused := _FUSED.fullmatch(name):
            place |= {f"{fused[1]}{part}.{fused[2]}": (name, index) for index, part in enumerate("qkv")}

    def shape(name: str, index: int | None) -> tuple[int, ...]:
        rows, *rest = files.shapes[name] or (1,)
        return files.shapes[name] if index is None else (rows // 3, *rest)

    def read(part: str) -> Tensor:
        name, index = place[part]
        return files.read(name) if index is None else files.read(name).chunk(3)[index].clone()

    shapes = {part: shape(*found) for part, found in place.items()}
    return replace(files, shapes=shapes, dtypes={part: files.dtypes[name] for part, (name, _) in place.items()}, read=read)


def with_model_names(files: WeightFiles) -> WeightFiles:
    """Return Qwen-VL's files under the model's names."""
    split = with_split_attention(files)
    layout = layout_of(_count(files.shapes, _IN_DECODER), _count(files.shapes, _IN_TOWER))
    place = {layout.to_model(name) or name: name for name in split.shapes}
    return replace(
        files,
        shapes={model: split.shapes[name] for model, name in place.items()},
        dtypes={model: split.dtypes[name] for model, name in place.items()},
        read=lambda model: split.read(place[model]),
        layout=layout.name,
    )


def _count(names: Iterable[str], pattern: str) -> int:
    """Return how many layers there are, from their numbers."""
    numbered = re.compile(re.escape(pattern).replace(r"\{\}", r"(\d+)"))
    return 1 + max((int(found[1]) for name in names if (found := numbered.match(name))), default=-1)


def to_file_names(config: LMMConfig, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors under the original's names, ``c_attn`` in one piece."""
    layout = layout_of(config.decoder.layers, config.encoder.layers)
    named = {layout.to_file(name) or name: value for name, value in state.items()}
    joined: dict[str, dict[str, Tensor]] = {}
    for name, value in named.items():
        part = _PARTS.fullmatch(name)
        joined.setdefault(name if part is None else part[1] + part[3], {})[name if part is None else part[2]] = value
    return {name: next(iter(parts.values())) if len(parts) == 1 else torch.cat([parts[each] for each in "qkv"]) for name, parts in joined.items()}


def qwen_vl_to_config(config: LMMConfig, image_start: int = 151857) -> dict[str, Any]:
    """Return the ``config.json`` of a model for the original's code and vLLM, which compute the same up to the positions that the decoder has.

    Args:
        config: of the model.
        image_start: id of ``<img>``, which ``</img>`` and ``<imgpad>`` follow.

    Raises:
        LmmError: a model that the original's code doesn't have; everything that differs is listed.
    """
    kinds = ((config.encoder, QwenViTConfig), (config.decoder, TransformerConfig))
    problems = [f"{type(found).__name__} (expected {kind.__name__})" for found, kind in kinds if type(found) is not kind]
    if not problems:
        values = _values(config, image_start)
        problems = list(_differences(config, qwen_vl_from_config(values)))
    if problems:
        raise LmmError(f"the original Qwen-VL has no place for {'; '.join(problems)}: save with format='native'")
    return values


def _values(config: LMMConfig, image_start: int) -> dict[str, Any]:
    encoder, decoder = config.encoder, config.decoder
    return {
        "model_type": MODEL_TYPE,
        "architectures": ["QWenLMHeadModel"],
        "auto_map": {"AutoConfig": _CODE + "configuration_qwen.QWenConfig", "AutoModelForCausalLM": _CODE + "modeling_qwen.QWenLMHeadModel"},
        "vocab_size": decoder.vocab,
        "hidden_size": decoder.dim,
        "num_hidden_layers": decoder.layers,
        "num_attention_heads": decoder.heads,
        "intermediate_size": 2 * decoder.ffn_dim,
        "kv_channels": decoder.head_width,
        "layer_norm_epsilon": decoder.eps,
        "max_position_embeddings": max(decoder.max_positions, _DEFAULTS["max_position_embeddings"]),
        "seq_length": decoder.max_positions,
        "rotary_pct": decoder.rotary_fraction,
        "rotary_emb_base": decoder.rope_theta,
        **_FLAGS,
        "tie_word_embeddings": decoder.tied,
        "attn_dropout_prob": 0.0,
        "emb_dropout_prob": 0.0,
        "initializer_range": 0.02,
        "onnx_safe": None,
        "tokenizer_type": "QWenTokenizer",
        "use_cache": True,
        "use_flash_attn": False,
        VISUAL: {
            "image_size": encoder.image_size,
            "image_start_id": image_start,
            "patch_size": encoder.patch,
            "width": encoder.dim,
            "layers": encoder.layers,
            "heads": encoder.heads,
            "mlp_ratio": _ratio(encoder.dim, encoder.mlp_dim),
            "n_queries": config.projector.options.get("grid", 16) ** 2,
            "output_dim": decoder.dim,
        },
    }


def _ratio(width: int, hidden: int) -> float:
    """Return the ``mlp_ratio`` of which the original makes the hidden width: with four digits where these do, as the released 4.9231."""
    short = round(hidden / width, 4)
    return short if int(width * short) == hidden else (hidden + 0.5) / width


def _differences(ours: LMMConfig, theirs: LMMConfig) -> Iterator[str]:
    """Yield what of a model is otherwise in the model that the original's code makes of its ``config.json``."""
    for role in ("encoder", "decoder"):
        one, other = getattr(ours, role), getattr(theirs, role)
        for field in fields(one):
            value, expected = getattr(one, field.name), getattr(other, field.name)
            if value != expected and field.name not in ("recompute", "head_dim", "select"):
                yield f"{role} with {field.name}={value!r} (expected {expected!r})"
    layers = ours.encoder.layers
    if [index % (layers + 1) for index in ours.encoder.select] != [layers]:
        yield f"encoder with select={ours.encoder.select!r} (expected (-1,))"
    options = {"grid": 16, "heads": None, "post": True}
    found, expected = ({**options, **each.projector.options} for each in (ours, theirs))
    if ours.projector.type != theirs.projector.type or found != expected:
        yield f"projector {ours.projector.type!r} with {dict(ours.projector.options)} (expected {theirs.projector.type!r} with {expected})"
    if ours.preprocess not in (None, theirs.preprocess):
        yield f"preprocessing {ours.preprocess!r} (expected {theirs.preprocess!r})"
    for kind in ("reducers", "hooks"):
        if getattr(ours, kind):
            yield f"{kind} {[block.type for block in getattr(ours, kind)]} (expected none)"


def write_qwen_vl(
    model: Any, config: LMMConfig, state: dict[str, Tensor], folder: Path, dtype: torch.dtype | None, target: Path
) -> dict[str, Tensor]:
    """Write the files beside the weights and return the weights under the original's names; its code is taken from Qwen/Qwen-VL-Chat.

    Args:
        model: with an encoder ``qwen_vit``, a projector ``resampler`` and a decoder of the first Qwen.
        config: the model's, as it is saved.
        state: its weights.
        folder: where to write.
        dtype: of the weights in the file; None = as they are.
        target: the name that ``folder`` will have.

    Raises:
        LmmError: a model or a tokenizer that the original's code doesn't have; everything that differs is listed.
    """
    tokenizer = model.tokenizer
    values = qwen_vl_to_config(config, *(() if tokenizer is None else (tokenizer.convert_tokens_to_ids(START),)))
    stored = dtype or model.decoder.table.dtype
    kinds = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    name = str(stored).removeprefix("torch.")
    write_json(folder / CONFIG, {**values, **{kind: each == stored for kind, each in kinds.items()}, "torch_dtype": name})
    chat_format = next((said for said, known in TEMPLATES.items() if get_template(known) == model.template), "raw")
    end = None if tokenizer is None else tokenizer.eos_token_id
    ends = {} if end is None else {"eos_token_id": end, "pad_token_id": end}
    write_json(folder / GENERATION, {"chat_format": chat_format, **ends, "do_sample": False, "max_window_size": config.decoder.max_positions})
    if tokenizer is not None:
        write_vocabulary(tokenizer, folder)
        auto_map = {"AutoTokenizer": [_CODE + "tokenization_qwen.QWenTokenizer", None]}
        length = config.decoder.max_positions
        write_json(folder / "tokenizer_config.json", {"model_max_length": length, "tokenizer_class": "QWenTokenizer", "auto_map": auto_map})
    return to_file_names(config, state)


QWEN_VL = of_transformers(
    MODEL_TYPE,
    config=read_qwen_vl_config,
    layouts=(NATIVE,),
    reads=lambda folder: is_qwen_vl(folder.values),
    files=lambda folder: with_model_names(open_weights(folder.path)),
    model_type=None,
    known_by=f"of {MODEL_TYPE!r} with a section {VISUAL!r}, the original Qwen-VL's",
    templates=tuple(TEMPLATES.values()),
    whose="Qwen-VL's",
    format="qwen_vl",
    holds=lambda model: True,
    write=write_qwen_vl,
)
