"""Weights that were packed into fewer bits, told by the names and dtypes of their tensors; they are refused by what packed them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...spec import LmmError, some
from .file_checks import read_json

_MARKS = (
    (".quant_state.", "bitsandbytes (4 bits)"),
    (".absmax", "bitsandbytes (4 bits)"),
    (".SCB", "bitsandbytes (8 bits)"),
    (".qzeros", "GPTQ or AWQ"),
    (".qweight", "GPTQ or AWQ"),
    (".weight_packed", "compressed-tensors"),
    (".weight_scale", "compressed-tensors or FP8"),
    (".W_q", "HQQ"),
    ("_blocks", "MXFP4"),
)
"""A part of a tensor's name, and what writes such names."""

_PACKED = {"uint8", "int8", "U8", "I8", "float8_e4m3fn", "float8_e5m2", "F8_E4M3", "F8_E5M2", "F4", "F8_E8M0"}
"""Dtypes that no weight is computed with."""


def refuse_packed(folder: Path, dtypes: Mapping[str, str]) -> None:
    """Raise an LmmError where weights are packed.

    Args:
        folder: of the weights; its config says what packed them.
        dtypes: tensor -> name of its dtype.
    """
    packed = sorted(name for name, dtype in dtypes.items() if dtype in _PACKED and name.endswith((".weight", "qweight", "_packed", "_blocks")))
    marked = [(name, by) for name in dtypes for mark, by in _MARKS if mark in name]
    marked = [(name, by) for name, by in marked if by != "MXFP4" or dtypes[name] in _PACKED]
    said = _said_by_config(folder) if packed or marked else None
    cast = not marked and said is None and all(dtypes[name].lower().startswith(("float8", "f8_e4", "f8_e5")) for name in packed)
    if cast:  # eight-bit floats without a scale hold the values themselves, as any dtype does
        return
    by = said or (marked[0][1] if marked else f"somebody: they are stored as {dtypes[packed[0]]}")
    names = packed or [name for name, _ in marked]
    raise LmmError(
        f"{folder}: the weights are quantised by {by} ({len(names)} packed tensors: {some(names)}), which is not read: take the folder of the "
        f"unquantised model, or let the library that packed them unpack and save it (transformers: model.dequantize(), then save_pretrained)"
    )


def _said_by_config(folder: Path) -> str | None:
    """Return the method and its bits as ``config.json`` or the packer's own file says."""
    for name in ("config.json", "quantize_config.json", "quant_config.json"):
        values: Mapping[str, Any] = read_json(folder / name) if (folder / name).is_file() else {}
        text = values.get("text_config")
        said = values.get("quantization_config") or (text.get("quantization_config") if isinstance(text, Mapping) else None)
        said = said if isinstance(said, Mapping) else values if name != "config.json" and values else None
        if said is None:
            continue
        method = str(said.get("quant_method") or {"quantize_config.json": "gptq", "quant_config.json": "awq"}.get(name) or "bitsandbytes")
        bits = said.get("bits") or said.get("w_bit") or (4 if said.get("load_in_4bit") else 8 if said.get("load_in_8bit") else None)
        return f"{method} ({bits} bits)" if bits else method
    return None
