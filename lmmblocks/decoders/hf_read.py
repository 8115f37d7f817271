"""Language models that only transformers can compute: read by transformers itself, which knows the layout of each of its families."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..files.locate import locate
from ..spec import LmmError, some
from ..spec.versions import refuse_older_than
from .hf_config import HFDecoderConfig

OLDEST_TRANSFORMERS = "5.4"
"""The first version whose models scale embeddings, make masks and hand down caches as the ``hf`` decoder counts on."""


def is_causal_lm(values: Mapping[str, Any]) -> bool:
    """Return whether a ``config.json`` is of a type that transformers has a causal language model of."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return values.get("model_type") in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


def read_causal_lm(path_or_id: str | os.PathLike[str]) -> Any:
    """Return the ``AutoModelForCausalLM`` of a folder or hub id, in the dtype of the file and in eval mode.

    Raises:
        LmmError: an older transformers, nothing there, no causal language model of transformers' own, or weights that don't fit the config.
    """
    refuse_older_than(OLDEST_TRANSFORMERS, "transformers", "decoder 'hf'")
    from transformers import AutoModelForCausalLM

    folder = locate(path_or_id)
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            folder, dtype="auto", local_files_only=True, trust_remote_code=False, output_loading_info=True
        )
    except (ValueError, OSError, KeyError, RuntimeError) as error:
        raise LmmError(f"transformers reads no causal language model from {folder}: {str(error).strip()}") from error
    problems = [
        f"{len(names)} {kind.removesuffix('_keys')}: {some(sorted(map(str, names)))}"
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
        if (names := report.get(kind))
    ]
    if problems:
        raise LmmError(f"the weights in {folder} are not those of {type(model).__name__}:\n" + "\n".join(f"- {p}" for p in problems))
    return model.eval()


def load_causal_lm(path_or_id: str | os.PathLike[str]) -> tuple[HFDecoderConfig, dict[str, Tensor]]:
    """Read a decoder through transformers; a tied head and its table are the same object of the state dict.

    Raises:
        LmmError: as :func:`read_causal_lm`.
    """
    model = read_causal_lm(path_or_id)
    state: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    return HFDecoderConfig.of(model), {**model.state_dict(), **state}
