"""Any vision tower of open_clip (``pip install 'lmmblocks[open_clip]'``), with open_clip's parameter names (``visual.``).

The text tower is never built, except while open_clip reads pretrained weights, which come in one piece. Towers that open_clip takes from timm
(SigLIP, EVA) are taken apart as timm's. OpenAI's and LAION's CLIP and Google's SigLIP are native blocks, too.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..images.preprocess import FILTERS, ImagePreprocess
from ..spec import ByKeywords, LmmError, closest, first_line
from ..spec.fields import field_problems
from .timm import timm_parts
from .wrapped import TowerParts, WrappedViT, module_list, optional_package, plain_blocks, square


@dataclass(frozen=True)
class OpenCLIPConfig(metaclass=ByKeywords):
    """A vision tower of open_clip.

    Attributes:
        model: name of one of ``open_clip.list_models()``.
        pretrained: where the weights come from when a model is built with pretrained ones: a tag of ``open_clip.list_pretrained()``,
            a checkpoint file of the whole model, or a folder with an ``open_clip_config.json``; None = nowhere, they are random.
        image_size: side of the square input in pixels; None = the model's own.
        quick_gelu: OpenAI's activation; None = as the tag says, else as the model's name does.
        architecture: ``model_cfg`` of an ``open_clip_config.json`` (its ``embed_dim``, ``vision_cfg``, ``quick_gelu``) instead of ``model``.
        select: hidden states that make up the features, Hugging Face indexing; several are joined on channels.
    """

    model: str | None = None
    pretrained: str | None = None
    image_size: int | None = None
    quick_gelu: bool | None = None
    architecture: Mapping[str, Any] | None = None
    select: tuple[int, ...] = (-2,)

    choices: ClassVar[tuple[str, ...]] = ("select",)
    """Fields that are the user's and don't follow from the weights."""

    def __post_init__(self) -> None:
        problems = field_problems(self)
        if (self.model is None) == (self.architecture is None):
            problems.append("give either model, such as 'ViT-B-32', or architecture")
        if problems:
            raise LmmError("OpenCLIPConfig: " + "; ".join(problems))

    @classmethod
    def of_folder(cls, folder: Path, values: Mapping[str, Any]) -> OpenCLIPConfig:
        """Return the config of a folder, from its ``open_clip_config.json``."""
        known = ("embed_dim", "vision_cfg", "quick_gelu")
        architecture = {key: values["model_cfg"][key] for key in known if key in values.get("model_cfg", {})}
        return cls(pretrained=str(folder), architecture=architecture)

    def build(self) -> OpenCLIP:
        """Return the encoder with random weights.

        Raises:
            LmmError: open_clip isn't there, or has no vision transformer of that name.
        """
        return OpenCLIP(self)

    def read_pretrained(self) -> tuple[dict[str, Tensor], ImagePreprocess]:
        """Return the state dict and the preprocessing of the pretrained tower.

        Raises:
            LmmError: the weights aren't there or don't fit.
        """
        open_clip = optional_package("open_clip", "open_clip")
        assert self.pretrained is not None
        path = Path(self.pretrained).expanduser()
        name, source = (f"local-dir:{path}", None) if path.is_dir() else (self.model, self.pretrained)
        options = {"force_quick_gelu": _quick_gelu(self), "force_image_size": self.image_size}
        if name is None:
            raise LmmError(f"OpenCLIPConfig: the folder {self.pretrained!r}, which holds the weights, is not there")
        try:
            model = open_clip.create_model(name, pretrained=source, require_pretrained=True, **options)
        except (RuntimeError, ValueError, OSError, KeyError) as error:
            raise LmmError(f"open_clip can't read {name!r} with pretrained={self.pretrained!r}: {first_line(error)}") from error
        encoder = OpenCLIP(self, model.visual)
        return encoder.state_dict(), preprocess_of(model.visual.preprocess_cfg, encoder.parts)


class OpenCLIP(WrappedViT):
    """A vision tower of open_clip as an encoder block.

    Args:
        config: which tower.
        visual: the tower itself; None = a new one with random weights.
    """

    def __init__(self, config: OpenCLIPConfig, visual: Any = None) -> None:
        name = config.model or "architecture"
        visual = create_tower(config) if visual is None else visual
        parts = open_clip_parts(visual, name)
        super().__init__(config, parts, preprocess_of(_preprocess_values(config), parts), name=f"open_clip {name}")
        self.visual = visual
        self.frozen = True


def create_tower(config: OpenCLIPConfig) -> Any:
    """Create the vision tower alone, with random weights."""
    optional_package("open_clip", "open_clip")
    from open_clip.model import _build_vision_tower  # open_clip's only way to a tower without its text tower

    values = _architecture(config)
    vision = {**values["vision_cfg"], "timm_model_pretrained": False}
    if config.image_size is not None:
        vision["image_size"] = config.image_size
    return _build_vision_tower(values["embed_dim"], vision, _quick_gelu(config))


def _architecture(config: OpenCLIPConfig) -> dict[str, Any]:
    if config.architecture is not None:
        missing = [key for key in ("embed_dim", "vision_cfg") if key not in config.architecture]
        if missing:
            raise LmmError(f"OpenCLIPConfig: architecture lacks {missing}, which model_cfg of open_clip_config.json holds")
        return copy.deepcopy(dict(config.architecture))
    open_clip = optional_package("open_clip", "open_clip")
    assert config.model is not None
    values = open_clip.get_model_config(config.model)
    if values is None:
        known = open_clip.list_models()
        raise LmmError(f"open_clip has no model {config.model!r}{closest(config.model, known)}; open_clip.list_models() lists them")
    return values


def _tag_values(config: OpenCLIPConfig) -> dict[str, Any]:
    """What open_clip knows of a tag; empty for files and folders."""
    open_clip = optional_package("open_clip", "open_clip")
    if config.model is None or config.pretrained is None:
        return {}
    return open_clip.get_pretrained_cfg(config.model, config.pretrained)


def _quick_gelu(config: OpenCLIPConfig) -> bool:
    """The activation the weights were trained with; open_clip itself would only warn where name and tag disagree."""
    if config.quick_gelu is not None:
        return config.quick_gelu
    tag = _tag_values(config)
    return bool((tag or _architecture(config)).get("quick_gelu", False))


def open_clip_parts(visual: Any, name: str) -> TowerParts:
    """Take a vision tower of open_clip apart.

    Raises:
        LmmError: it is no vision transformer.
    """
    from open_clip.timm_model import TimmModel
    from open_clip.transformer import ResidualAttentionBlock, VisionTransformer

    if isinstance(visual, TimmModel):
        return timm_parts(visual.trunk, name)
    if not isinstance(visual, VisionTransformer):
        raise LmmError(f"open_clip's {name!r} ({type(visual).__name__}) is no vision transformer: choose another model")
    blocks = module_list(visual.transformer.resblocks, f"open_clip's {name!r}")

    def states_behind(pixels: Tensor, numbers: list[int]) -> list[Tensor]:
        options = {"stop_early": True, "intermediates_only": True, "output_fmt": "NLC", "output_extra_tokens": True}
        found = visual.forward_intermediates(pixels, indices=numbers, **options)
        pairs = zip(found["image_intermediates_prefix"], found["image_intermediates"])
        return [torch.cat(pair, 1) for pair in pairs]

    plain = plain_blocks(blocks, (ResidualAttentionBlock,), (nn.MultiheadAttention,)) and visual.transformer.batch_first
    return TowerParts(
        dim=visual.class_embedding.shape[0],
        layers=len(blocks),
        patch=square(visual.patch_size, f"patches of {name!r}"),
        image_size=square(visual.image_size, f"images of {name!r}"),
        prefix=1,
        has_cls=True,
        blocks=blocks,
        states_behind=states_behind,
        query_and_keys=_query_and_keys if plain else None,
    )


def _query_and_keys(block: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    attention, normed = block.attn, block.ln_1(x)
    weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
    query, keys = F.linear(normed[..., :1, :], weights[0], biases[0]), F.linear(normed, weights[1], biases[1])
    return query.unflatten(-1, (attention.num_heads, -1)), keys.unflatten(-1, (attention.num_heads, -1))


def _preprocess_values(config: OpenCLIPConfig) -> dict[str, Any]:
    """open_clip's defaults with what the tag says."""
    from open_clip.transform import PreprocessCfg, merge_preprocess_dict

    return merge_preprocess_dict(PreprocessCfg(), _tag_values(config))


def preprocess_of(values: Mapping[str, Any], parts: TowerParts) -> ImagePreprocess:
    """Return open_clip's evaluation transform. Padding is of the mean colour (open_clip's ``longest`` pads with black); crops start at offsets
    rounded down, where torchvision rounds: one pixel at most.

    Raises:
        LmmError: a transform of another kind.
    """
    fits: dict[str, Any] = {"shortest": "crop", "squash": "squash", "longest": "pad"}
    fit, resample = fits.get(values["resize_mode"]), values["interpolation"]
    if fit is None or resample not in FILTERS:
        raise LmmError(
            f"open_clip prepares images for this tower with resize_mode={values['resize_mode']!r}, interpolation={resample!r}, which the "
            f"native preprocessing doesn't do"
        )
    return ImagePreprocess(parts.image_size, parts.patch, fit, tuple(values["mean"]), tuple(values["std"]), resample)
