"""Any vision transformer of timm (``pip install 'lmmblocks[timm]'``), with timm's parameter names after ``model.``.

Prefix, grid, mean, std, size and crop are read from the model itself. Keys and the attention of CLS are offered where the attention is
timm's standard one (ViT, DeiT, DINOv2, SigLIP, CLIP, ...; not EVA's with rotary positions).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..images.preprocess import FILTERS, ImagePreprocess
from ..spec import ByKeywords, LmmError, closest, first_line
from ..spec.fields import field_problems
from .wrapped import TowerParts, WrappedViT, module_list, optional_package, plain_blocks, square

HUB = "hub"


@dataclass(frozen=True)
class TimmConfig(metaclass=ByKeywords):
    """A model of timm.

    Attributes:
        model: name, with the tag of its weights if it has several (``vit_base_patch14_reg4_dinov2.lvd142m``).
        pretrained: where the weights come from when a model is built with pretrained ones: ``hub`` (those the name stands for), a
            ``.safetensors`` or ``.pth`` file, or a folder that timm wrote; None = nowhere, they are random.
        image_size: side of the square input in pixels; None = the model's own. Tables of positions are scaled by timm as it loads.
        select: hidden states that make up the features, Hugging Face indexing; several are joined on channels.
        options: more arguments of ``timm.create_model``.
    """

    model: str = "vit_base_patch16_224"
    pretrained: str | None = None
    image_size: int | None = None
    select: tuple[int, ...] = (-2,)
    options: Mapping[str, Any] = field(default_factory=dict)

    choices: ClassVar[tuple[str, ...]] = ("select",)
    """Fields that are the user's and don't follow from the weights."""

    def __post_init__(self) -> None:
        problems = field_problems(self)
        if problems:
            raise LmmError("TimmConfig: " + "; ".join(problems))

    @classmethod
    def of_folder(cls, folder: Path, values: Mapping[str, Any]) -> TimmConfig:
        """Return the config of a folder that timm wrote, from its ``config.json``."""
        size = values.get("pretrained_cfg", values).get("input_size")
        options = {key: value for key, value in (values.get("model_args") or {}).items() if key != "num_classes"}
        own = options.pop("img_size", None) or (size and size[1:])
        return cls(values["architecture"], str(folder), own and square(own, "images"), options=options)

    def build(self) -> Timm:
        """Return the encoder with random weights.

        Raises:
            LmmError: timm isn't there, or has no vision transformer of that name.
        """
        return Timm(self)

    def read_pretrained(self) -> tuple[dict[str, Tensor], ImagePreprocess]:
        """Return the state dict and the preprocessing of the pretrained model.

        Raises:
            LmmError: the weights aren't there or don't fit.
        """
        source = self.pretrained or HUB
        path = Path(source).expanduser()
        if path.is_dir():
            model = create(self, f"local-dir:{path}", pretrained=True)
        elif path.is_file():
            model = create(self, self.model, pretrained=True, pretrained_cfg_overlay={"file": str(path)})
        elif source == HUB:
            model = create(self, self.model, pretrained=True)
        else:
            raise LmmError(f"TimmConfig: pretrained={source!r} is neither {HUB!r} nor a file or folder that is there")
        encoder = Timm(self, model)
        return encoder.state_dict(), encoder.preprocess


def create(config: TimmConfig, name: str, **source: Any) -> Any:
    """Create timm's model without its classifier.

    Raises:
        LmmError: no such model, options it doesn't know, weights that aren't there.
    """
    timm = optional_package("timm", "timm")
    if not source and name.partition(".")[0] not in timm.list_models():
        raise LmmError(f"timm has no model {name!r}{closest(name, timm.list_models())}; timm.list_models('*vit*') lists them")
    try:
        return timm.create_model(name, num_classes=0, img_size=config.image_size, **config.options, **source)
    except (RuntimeError, TypeError, ValueError, AssertionError, OSError, KeyError) as error:
        raise LmmError(f"timm can't create {name!r} (image_size={config.image_size}, options={dict(config.options)}): {first_line(error)}") from error


class Timm(WrappedViT):
    """A vision transformer of timm as an encoder block.

    Args:
        config: which model.
        model: the model itself; None = a new one with random weights.
    """

    def __init__(self, config: TimmConfig, model: Any = None) -> None:
        model = create(config, config.model) if model is None else model
        parts = timm_parts(model, config.model)
        super().__init__(config, parts, preprocess_of(model, parts), name=f"timm {config.model}")
        self.model = model
        self.frozen = True


def timm_parts(model: Any, name: str) -> TowerParts:
    """Take a vision transformer of timm apart.

    Raises:
        LmmError: it is none, or not for square images of one size.
    """
    needed = ("blocks", "patch_embed", "num_prefix_tokens", "embed_dim", "forward_intermediates")
    missing = [attribute for attribute in needed if not hasattr(model, attribute)]
    if missing:
        raise LmmError(f"timm's {name!r} ({type(model).__name__}) is no vision transformer: it has no {', '.join(missing)}")
    from timm.models.vision_transformer import Attention, Block

    embed, blocks = model.patch_embed, module_list(model.blocks, f"timm's {name!r}")
    if getattr(embed, "img_size", None) is None or getattr(embed, "grid_size", None) is None:
        raise LmmError(f"timm's {name!r} takes images of any size, which a fixed encoder can't: give image_size or another model")
    patch, size = square(embed.patch_size, f"patches of {name!r}"), square(embed.img_size, f"images of {name!r}")
    if tuple(embed.grid_size) != (size // patch,) * 2:
        raise LmmError(f"timm's {name!r} makes a grid {tuple(embed.grid_size)} of {size} px in patches of {patch} px: it is no plain one")

    def states_behind(pixels: Tensor, numbers: list[int]) -> list[Tensor]:
        options = {"norm": False, "stop_early": True, "output_fmt": "NLC", "intermediates_only": True}
        found = model.forward_intermediates(pixels, indices=numbers, return_prefix_tokens=True, **options)
        return [torch.cat([entry[1], entry[0]], 1) if isinstance(entry, tuple) else entry for entry in found]

    return TowerParts(
        dim=model.embed_dim,
        layers=len(blocks),
        patch=patch,
        image_size=size,
        prefix=model.num_prefix_tokens,
        has_cls=getattr(model, "cls_token", None) is not None,
        blocks=blocks,
        states_behind=states_behind,
        query_and_keys=_query_and_keys if plain_blocks(blocks, (Block,), (Attention,)) else None,
    )


def _query_and_keys(block: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    attention = block.attn
    qkv = attention.qkv(block.norm1(x)).unflatten(-1, (3, attention.num_heads, -1))
    query, keys = qkv[..., :1, 0, :, :], qkv[..., 1, :, :]
    return attention.q_norm(query), attention.k_norm(keys)


def preprocess_of(model: Any, parts: TowerParts) -> ImagePreprocess:
    """Return timm's evaluation transform of a model. Crops start at offsets rounded down, where torchvision rounds: one pixel at most.

    Raises:
        LmmError: a transform of another kind.
    """
    config = optional_package("timm.data", "timm").resolve_model_data_config(model)
    short_px = math.floor(parts.image_size / config["crop_pct"])
    fits: dict[str, Any] = {"center": "crop", "squash": "squash", "border": "pad"}
    fit, resample = fits.get(config["crop_mode"]), config["interpolation"]
    if fit is None or resample not in FILTERS or (fit != "crop" and short_px != parts.image_size):
        raise LmmError(
            f"timm prepares images for this model with crop_mode={config['crop_mode']!r}, crop_pct={config['crop_pct']}, "
            f"interpolation={resample!r}, which the native preprocessing doesn't do"
        )
    margin = short_px if short_px > parts.image_size else None
    return ImagePreprocess(parts.image_size, parts.patch, fit, tuple(config["mean"]), tuple(config["std"]), resample, margin)
