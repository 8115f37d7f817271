"""Names of tensors in files and in the model, as data.

A layout is an ordered list of prefix pairs ``(in the file, in the model)``. The first pair whose prefix fits a name renames it; every
layout can be read backwards. Which layout a file has is decided by its names alone (:func:`choose`), never by its path.

The model's own names are those of Hugging Face's hub files: ``vision_tower.vision_model.*``, ``multi_modal_projector.*``,
``language_model.model.*``, ``language_model.lm_head.weight``. Here are the layouts of LLaVA's files, whose names these are, and of parts
alone; those of another released model are in its file in ``systems/``. A new layout is one more :class:`KeyMap`; no code changes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

NOT_PARAMETERS = (".position_ids", ".rotary_emb.inv_freq")
"""Ends of names that older transformers wrote and that follow from the config."""


@dataclass(frozen=True)
class KeyMap:
    """One layout.

    Attributes:
        name: what to call it in messages.
        renames: ``(prefix in the file, prefix in the model)``; the first that fits counts.
        elsewhere: prefixes of tensors that such files also hold and that belong to other models (CLIP's text tower).
    """

    name: str
    renames: tuple[tuple[str, str], ...]
    elsewhere: tuple[str, ...] = ()

    def to_model(self, name: str) -> str | None:
        """Return the model's name of a tensor in the file, None when the layout doesn't know it.

        >>> RUNTIME_5.to_model("model.vision_tower.pre_layrnorm.bias")
        'vision_tower.vision_model.pre_layrnorm.bias'
        """
        return _renamed(name, self.renames)

    def to_file(self, name: str) -> str | None:
        """Return the file's name of a tensor in the model, None when the layout has no place for it.

        >>> RUNTIME_5.to_file("language_model.model.norm.weight")
        'model.language_model.norm.weight'
        """
        return _renamed(name, ((model, file) for file, model in self.renames))

    def skips(self, name: str) -> bool:
        """Say whether a tensor in the file is known not to be a parameter of the model; of prefixes that both fit, the longer one decides."""
        elsewhere = max((len(prefix) for prefix in self.elsewhere if name.startswith(prefix)), default=0)
        own = max((len(prefix) for prefix, _ in self.renames if name.startswith(prefix)), default=0)
        return name.endswith(NOT_PARAMETERS) or elsewhere > own


def _renamed(name: str, renames: Iterable[tuple[str, str]]) -> str | None:
    for old, new in renames:
        if name.startswith(old):
            return new + name[len(old) :]
    return None


def part(layout: KeyMap, prefix: str) -> KeyMap:
    """Return the layout of one part inside the files of a whole model; the other parts' tensors are ``elsewhere``.

    >>> part(HUB, "language_model.").to_model("language_model.model.norm.weight")
    'model.norm.weight'
    """
    own = tuple((file, model[len(prefix) :]) for file, model in layout.renames if model.startswith(prefix))
    others = tuple(file for file, model in layout.renames if not model.startswith(prefix))
    return KeyMap(f"{layout.name}, {prefix}*", own, layout.elsewhere + others)


def inside(layout: KeyMap, prefix: str) -> KeyMap:
    """Return the layout of files that hold one part alone, with the names this part has in a whole model.

    >>> inside(KeyMap("LlamaForCausalLM", (("model.", "model."),)), "language_model.").to_model("model.norm.weight")
    'language_model.model.norm.weight'
    """
    return KeyMap(layout.name, tuple((file, prefix + model) for file, model in layout.renames), layout.elsewhere)


def behind(layout: KeyMap, prefix: str) -> KeyMap:
    """Return the layout with a prefix before every name in the file, as PEFT's wrapper puts one."""
    return KeyMap(
        f"{layout.name}, {prefix}*", tuple((prefix + file, model) for file, model in layout.renames), tuple(prefix + p for p in layout.elsewhere)
    )


def choose(layouts: Sequence[KeyMap], names: Collection[str], expected: Collection[str]) -> KeyMap:
    """Return the layout under which the most of a file's ``names`` become ``expected`` ones and the fewest are left over; the first of equals."""

    def fit(layout: KeyMap) -> tuple[int, int]:
        known = sum(layout.to_model(name) in expected for name in names)
        skipped = sum(layout.skips(name) for name in names)
        return known, skipped

    return max(layouts, key=fit)


TOWER_NAMES = "vision_tower.vision_model."
_TOWER_PARTS = ("embeddings.", "pre_layrnorm.", "encoder.", "post_layernorm.", "head.")


def _tower(prefix: str, model_prefix: str = TOWER_NAMES) -> tuple[tuple[str, str], ...]:
    """CLIP's vision transformer without its ``vision_model.``, as transformers 5 holds it."""
    return tuple((prefix + name, model_prefix + name) for name in _TOWER_PARTS)


HUB = KeyMap(
    "hub files (llava-hf), written until transformers 4",
    (
        (TOWER_NAMES, TOWER_NAMES),
        ("multi_modal_projector.", "multi_modal_projector."),
        ("language_model.model.", "language_model.model."),
        ("language_model.lm_head.", "language_model.lm_head."),
    ),
)
FILES_5 = KeyMap("files written by transformers 5", _tower("vision_tower.") + HUB.renames[1:])
_RUNTIME_REST = (
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("model.language_model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
)
RUNTIME_4_52 = KeyMap("state_dict of transformers 4.52 to 4", (("model." + TOWER_NAMES, TOWER_NAMES), *_RUNTIME_REST))
RUNTIME_5 = KeyMap("state_dict of transformers 5", _tower("model.vision_tower.") + _RUNTIME_REST)
NATIVE = KeyMap(
    "lmmblocks",
    tuple((prefix, prefix) for prefix in ("vision_tower.", "multi_modal_projector.", "language_model.", "arrange.", "reducers.", "hooks.")),
)

LLAVA_LAYOUTS = (HUB, FILES_5, RUNTIME_4_52, RUNTIME_5)
"""Layouts of a whole LLaVA as transformers has written it."""


CLIP_LAYOUTS = (
    KeyMap(
        "CLIPModel",
        (("vision_model.", "vision_model."),),
        ("text_model.", "visual_projection.", "text_projection.", "logit_scale", "logit_bias"),
    ),
    KeyMap("CLIPVisionModel of transformers 5", _tower("", "vision_model.")),
    *(part(layout, "vision_tower.") for layout in LLAVA_LAYOUTS),
)
"""Layouts of files that hold a CLIP or SigLIP vision tower; names in the model are those of the encoder alone."""

BLIP2_LAYOUTS = (
    KeyMap(
        "vision_model of a BLIP-2 or an InstructBLIP",
        (("vision_model.", "vision_model."),),
        (
            *("query_tokens", "qformer.", "language_projection.", "language_model."),
            *("embeddings.", "vision_projection.", "text_projection.", "itm_head."),  # Blip2ForImageTextRetrieval
        ),
    ),
    KeyMap("Blip2VisionModel", _tower("", "vision_model.")),
)
"""Layouts of files that hold BLIP-2's vision tower; names in the model are those of the encoder alone."""

_DINOV2_PARTS = ("embeddings.", "encoder.", "layernorm.")
_DINOV2_IN_LLAVA = (("vision_tower.", "files of a LLaVA"), ("model.vision_tower.", "state_dict of a LLaVA"))
_NOT_THE_TOWER = ("multi_modal_projector.", "language_model.", "model.multi_modal_projector.", "model.language_model.", "lm_head.")

DINOV2_LAYOUTS = (
    KeyMap("Dinov2Model", tuple((name, name) for name in _DINOV2_PARTS)),
    *(
        KeyMap(f"DINOv2 after {prefix}*", tuple((prefix + name, name) for name in _DINOV2_PARTS), ("classifier.",))
        for prefix in ("dinov2.", "dinov2_with_registers.")
    ),
    *(KeyMap(f"DINOv2 in {what}", tuple((prefix + name, name) for name in _DINOV2_PARTS), _NOT_THE_TOWER) for prefix, what in _DINOV2_IN_LLAVA),
)
"""Layouts of files that hold a DINOv2; names in the model are those of the encoder alone."""

LLAMA_LAYOUTS = (
    KeyMap("LlamaForCausalLM", (("model.", "model."), ("lm_head.", "lm_head."))),
    KeyMap("LlamaModel", tuple((name, "model." + name) for name in ("embed_tokens.", "layers.", "norm."))),
    *(part(layout, "language_model.") for layout in LLAVA_LAYOUTS),
)
"""Layouts of files that hold a decoder, alone or in a LLaVA; names in the model are those of the decoder alone."""
