"""How the files of the original LLaVA name the tensors, whole, of a projector alone and beside an adapter."""

from __future__ import annotations

from ..files.maps import KeyMap, behind

_ORIGINAL_DEPTH = 16  # deepest mlpNx_gelu that is looked for


def _original_projector(prefix: str) -> tuple[tuple[str, str], ...]:
    """``nn.Sequential`` of linear layers and activations, so layer k is number 2k; or, in the first LLaVA, one linear layer."""
    layers = ((f"{prefix}mm_projector.{2 * k}.", f"multi_modal_projector.linear_{k + 1}.") for k in range(_ORIGINAL_DEPTH))
    return (*layers, (f"{prefix}mm_projector.", "multi_modal_projector.linear."))


ORIGINAL = KeyMap(
    "original LLaVA",
    (
        *_original_projector("model."),
        ("model.vision_tower.vision_tower.", "vision_tower."),
        ("model.", "language_model.model."),
        ("lm_head.", "language_model.lm_head."),
    ),
)
"""``LlavaLlamaForCausalLM``: its tower's wrapper holds another ``vision_tower``. Source: ``llava_arch.py``, ``multimodal_projector/builder.py``."""

PROJECTOR_LAYOUTS = tuple(
    KeyMap(f"mm_projector.bin ({prefix}mm_projector.*)", _original_projector(prefix)) for prefix in ("model.", "", "base_model.model.model.")
)
"""A projector alone, as stage 1 writes it; the original takes what comes after ``mm_projector.`` (``llava_arch.py:92``)."""

TRAINABLE_LAYOUTS = (behind(ORIGINAL, "base_model.model."), behind(ORIGINAL, "base_model."), ORIGINAL)
"""``non_lora_trainables.bin``: what a LoRA run trained beside the adapter (``builder.py:76``)."""
