"""The whole models of transformers that a model of ours is written for: what they have a place for, their config, their processor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...chat import IMAGE_MARKER
from ...config import LMMConfig
from ...decoders.transformer import Transformer
from ...encoders.clip import CLIP
from ...encoders.dinov2 import DINOv2
from ...encoders.siglip import SigLIP
from ...projectors import MLP, InstructQFormer
from ...spec import LmmError
from ..exact_types import preprocess_problems
from ..files.folder import write_json
from ..files.maps import HUB, INSTRUCTBLIP, LLAVA_NEXT_HUB, KeyMap
from ..parts.hf_encoders import select_strategy
from .instructblip import instructblip_problems, instructblip_to_hf, write_instructblip_processor
from .llava_hf import llava_to_hf
from .llava_next import is_tiled, llava_next_to_hf, tile_problems


@dataclass(frozen=True)
class HFSystem:
    """One model of transformers.

    Attributes:
        name: in messages.
        holds: whether a model is one of these.
        problems: what of the model it has no place for, decoder, reducers and hooks aside.
        config: from the model, its config with the file's vocabulary, and the image token's id, to the values of ``config.json``.
        write_processor: from the folder, the model and its config: writes what ``AutoProcessor`` reads, the decoder's tokenizer aside.
        layout: how its files name the tensors.
        images_apart: whether its processor puts images in front of the whole prompt.
    """

    name: str
    holds: Callable[[Any], bool]
    problems: Callable[[Any], Iterator[str]]
    config: Callable[[Any, LMMConfig, int], dict[str, Any]]
    write_processor: Callable[[Path, Any, LMMConfig], None]
    layout: KeyMap
    images_apart: bool = False

    def refuse_others(self, model: Any) -> None:
        """Raise an LmmError that lists everything this system has no place for."""
        decoder = () if type(model.decoder) is Transformer else (f"decoder {type(model.decoder).__name__!r} (expected 'Transformer')",)
        problems = [*self.problems(model), *decoder, *preprocess_problems(model.encoder.preprocess)]
        several = (("reducer", model.reducers), ("hook", model.hooks))
        problems += [f"{kind} {type(part).__name__!r} (expected none)" for kind, entries in several for part in entries]
        if problems:
            raise LmmError(f"transformers' {self.name} has no place for {'; '.join(problems)}: save with format='native'")


def system_of(model: Any) -> HFSystem:
    """Return what a model is written for: LLaVA unless something about it says otherwise."""
    return next(system for system in SYSTEMS if system.holds(model))


def _llava_problems(model: Any) -> Iterator[str]:
    tower = model.encoder
    if is_tiled(model):
        tower = model.encoder.tower
        yield from tile_problems(model.encoder.config)
    if type(tower) not in (CLIP, SigLIP, DINOv2):
        yield f"encoder {type(tower).__name__!r} (expected 'CLIP' or 'SigLIP' or 'DINOv2')"
    elif getattr(tower.config, "final_norm", False):
        yield "a final norm on the encoder's last layer (expected final_norm=False)"
    if type(model.projector) is not MLP:
        yield f"projector {type(model.projector).__name__!r} (expected 'MLP')"
    elif len(list(model.projector.children())) != 2:
        yield f"projector 'MLP' with {len(list(model.projector.children()))} layers (expected 2)"


def _llava_config(model: Any, config: LMMConfig, image_token: int) -> dict[str, Any]:
    return (llava_next_to_hf if is_tiled(model) else llava_to_hf)(config, image_token=image_token)


def _write_llava_processor(folder: Path, model: Any, config: LMMConfig) -> None:
    """One image becomes as many ``<image>`` as the encoder has patches (all tokens less CLS)."""
    assert config.preprocess is not None
    processor = {"processor_class": "LlavaNextProcessor" if is_tiled(model) else "LlavaProcessor"}
    write_json(
        folder / "preprocessor_config.json", {**config.preprocess.to_hf_processor_config(), **processor}
    )
    tower = getattr(config.encoder, "tower", config.encoder)
    strategy = select_strategy(tower)
    layout = {
        "image_token": IMAGE_MARKER,
        "num_additional_image_tokens": int(strategy == "default"),
        "patch_size": tower.patch,
        "vision_feature_select_strategy": strategy,
    }
    write_json(folder / "processor_config.json", {**processor, **layout})


SYSTEMS = (
    HFSystem(
        "InstructBLIP",
        lambda model: type(model.projector) is InstructQFormer,
        instructblip_problems,
        instructblip_to_hf,
        write_instructblip_processor,
        INSTRUCTBLIP,
        images_apart=True,
    ),
    HFSystem("LLaVA", is_tiled, _llava_problems, _llava_config, _write_llava_processor, LLAVA_NEXT_HUB),
    HFSystem("LLaVA", lambda model: True, _llava_problems, _llava_config, _write_llava_processor, HUB),
)
