"""Weights as Hugging Face folders, fp16; files are replaced whole, so no reader meets a half-written one."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmmblocks.decoders.transformer import Transformer
from lmmblocks.encoders.clip import CLIP
from lmmblocks.images.hf_processor import to_hf
from lmmblocks.weights.parts.hf_decoders import decoder_to_hf
from lmmblocks.weights.parts.hf_encoders import encoder_to_hf


def export_vision(encoder: CLIP, folder: Path, metrics: Mapping[str, Any], dtype: torch.dtype = torch.float16) -> None:
    """Write a `CLIPVisionModel` folder: config, preprocessing, weights, and the scores they reached.

    Args:
        encoder: the tower, with all its layers.
        folder: created when missing.
        metrics: saved as `metrics.json`.
        dtype: of the weights.
    """
    config = {**encoder_to_hf(encoder.config), "architectures": ["CLIPVisionModel"], "torch_dtype": _name(dtype)}
    with tempfile.TemporaryDirectory(dir=_parent(folder)) as unfinished:
        _write_json(Path(unfinished) / "config.json", config)
        _write_json(Path(unfinished) / "preprocessor_config.json", to_hf(encoder.preprocess))
        _write_json(Path(unfinished) / "metrics.json", metrics)
        _write_weights(encoder.state_dict(), Path(unfinished), dtype)
        _move_files(Path(unfinished), folder)


def export_language(
    decoder: Transformer,
    tokenizer_folder: Path,
    folder: Path,
    metrics: Mapping[str, Any],
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write a `LlamaForCausalLM` folder with its tokenizer; a shared head becomes a matrix of its own.

    Args:
        decoder: the language model.
        tokenizer_folder: what `save_tokenizer` wrote.
        folder: created when missing.
        metrics: saved as `metrics.json`.
        dtype: of the weights.
    """
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}  # pad is <unk>, as LLaVA has it
    config = {**decoder_to_hf(replace(decoder.config, tied=False)), **ids, "torch_dtype": _name(dtype)}
    with tempfile.TemporaryDirectory(dir=_parent(folder)) as unfinished:
        _write_json(Path(unfinished) / "config.json", {**config, "architectures": ["LlamaForCausalLM"]})
        _write_json(Path(unfinished) / "generation_config.json", {**ids, "do_sample": False})
        for file in sorted(tokenizer_folder.glob("*token*.json")):
            (Path(unfinished) / file.name).write_bytes(file.read_bytes())
        _write_json(Path(unfinished) / "metrics.json", metrics)
        _write_weights(decoder.state_dict(), Path(unfinished), dtype)
        _move_files(Path(unfinished), folder)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _parent(folder: Path) -> Path:
    folder.parent.mkdir(parents=True, exist_ok=True)
    return folder.parent


def _write_weights(state: Mapping[str, Tensor], folder: Path, dtype: torch.dtype) -> None:
    from safetensors.torch import save_file

    tensors = {name: value.detach().to(dtype, copy=True).contiguous() for name, value in state.items()}
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(dict(content), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _move_files(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for file in sorted(source.iterdir()):
        file.chmod(0o644)
        os.replace(file, target / file.name)
