"""The vision tower's training: pictures and regions against their descriptions.

Three contrasts, all softmax over the phrases and pictures of a batch (Radford et al., CLIP, arXiv
2103.00020; regions as in RegionCLIP, arXiv 2112.09106):

- the picture (CLS after the last norm) against its caption, both ways;
- each region, pooled from the last layer's patches inside its box, against its phrases, one property at a
  time;
- the same from the last but one layer, which is what LLaVA's projector reads. There the patches of a box
  are mixed at random, so that any of them alone tells what and where the item is.

A phrase that several regions share is one class, so they are never each other's negatives.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from lmmblocks.encoders.clip import CLIPConfig

from ..scenes.describe import caption
from ..scenes.draw import draw_scene
from ..scenes.scene import Scene, Split, sample_scene
from .export import export_vision
from .feature_scale import with_unit_features
from .initialise import initialise
from .phrases import GROUPS, SIDES, SPELLING, Region, Words, box_weights, scene_regions

VISION = CLIPConfig(dim=192, layers=5, heads=6, mlp_dim=768, image_size=112, patch=14, select=(-2,))
_GROUP_WEIGHTS = {"item": 1.0, "color": 0.5, "shape": 0.5, "place": 0.4, "digit": 0.7, "letter": 0.5}
_GROUP_WEIGHTS |= dict.fromkeys(SIDES, 0.1) | dict.fromkeys(SPELLING, 0.25)


class TextTower(nn.Module):
    """A small transformer from phrases to embeddings; used in training only.

    Args:
        words: its tokens.
        dim: width.
        layers: transformer layers.
        longest: most tokens of a text.
    """

    def __init__(self, words: Words, dim: int = 128, layers: int = 2, longest: int = 96) -> None:
        super().__init__()
        self.words, self.dim = words, dim
        self.embedding = nn.Embedding(words.size, dim)
        self.position = nn.Parameter(torch.randn(longest, dim) * 0.02)
        layer = nn.TransformerEncoderLayer(dim, 4, 2 * dim, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(dim)
        nn.init.normal_(self.embedding.weight, std=0.05)

    def forward(self, texts: list[str]) -> Tensor:
        """Embeddings `(N, dim)`: the mean over each text's tokens."""
        ids_NL = self.words.encode(texts)
        padding_NL = ids_NL == Words.PAD
        x_NLD = self.embedding(ids_NL) + self.position[: ids_NL.shape[1]]
        x_NLD = self.norm(self.layers(x_NLD, src_key_padding_mask=padding_NL))
        kept_NL1 = (~padding_NL).unsqueeze(-1).float()
        return (x_NLD * kept_NL1).sum(1) / kept_NL1.sum(1)


@dataclass(frozen=True)
class _Texts:
    """One group of phrases in a batch: the regions that have one, which each has, and the embeddings."""

    rows: list[int]
    own_B: Tensor
    embedded_UJ: Tensor


class ContrastiveTask:
    """What `timed.TimedRun` trains for the vision tower.

    Args:
        config: the tower's shape.
        batch_images: pictures in a batch.
        seed: of the data; step `n` draws the same batch in every run.
        joint_dim: width of the space in which pictures and texts meet.
    """

    def __init__(self, config: CLIPConfig = VISION, batch_images: int = 64, seed: int = 0, joint_dim: int = 128) -> None:
        self.batch_images, self.seed = batch_images, seed
        self.encoder = config.build()
        self.encoder.frozen = False
        initialise(self.encoder)
        text = TextTower(Words.from_captions())
        joints = {name: config.dim for name in ("picture", "last", "penultimate")} | {"text": text.dim}
        self.heads = nn.ModuleDict({name: nn.Linear(dim, joint_dim, bias=False) for name, dim in joints.items()})
        self.norms = nn.ModuleDict({name: nn.LayerNorm(config.dim) for name in ("last", "penultimate")})
        start = torch.tensor(2.65926)  # log(1 / 0.07), as CLIP
        self.scales = nn.ParameterDict({name: nn.Parameter(start.clone()) for name in ("picture", *GROUPS)})
        self.text = text
        own = ("encoder", "text", "heads", "scales", "norms")
        self.modules = nn.ModuleDict({name: getattr(self, name) for name in own})

    def losses(self, step: int) -> dict[str, Tensor]:
        """The terms of one step's loss."""
        rng = random.Random(f"contrastive-{self.seed}-{step}")
        scenes = [rich_scene(rng) if index % 4 else sample_scene(rng, "train") for index in range(self.batch_images)]
        captions = [caption(scene, rng) for scene in scenes]
        regions = [region for index, scene in enumerate(scenes) for region in scene_regions(scene, index)]
        return self.losses_of(self.pixels(scenes), captions, regions)

    def pixels(self, scenes: list[Scene]) -> Tensor:
        """The pictures of scenes as the tower reads them."""
        return self.encoder.preprocess.batch([draw_scene(scene) for scene in scenes])[0]

    def losses_of(self, pixels: Tensor, captions: list[str], regions: list[Region]) -> dict[str, Tensor]:
        """The terms for pictures `(I, 3, H, W)`, one caption each, and their regions."""
        picture_IJ, maps = self.embed_pictures(pixels)
        weights_BP = self.patch_weights(regions)
        mixed_BP = weights_BP * torch.rand_like(weights_BP).clamp_min(1e-6).log().neg()
        pooled = {
            "last": pool(maps["last"], weights_BP, regions),
            "penultimate": pool(maps["penultimate"], mixed_BP, regions),
        }
        losses = {"picture": 0.3 * self._both_ways(picture_IJ, self.embed_texts(captions), self._scale("picture"))}
        named = self._phrases_of(regions)
        for name, share in (("last", 0.4), ("penultimate", 1.0)):
            pooled_BJ = F.normalize(self.heads[name](pooled[name]), dim=-1)
            for group, texts in named.items():
                losses[f"{name}.{group}"] = share * _GROUP_WEIGHTS[group] * self._group_loss(pooled_BJ, texts, group)
        return losses

    def embed_pictures(self, pixels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Picture embeddings `(I, J)`; the last two hidden states, patches only and normed, `(I, P, C)`."""
        tower, layers = self.encoder.vision_model, self.encoder.config.layers
        states = tower.hidden_states(pixels, frozenset({layers - 1, layers}))
        picture_IJ = self.heads["picture"](tower.post_layernorm(states[layers][:, 0]))
        maps = {
            "last": self.norms["last"](states[layers][:, 1:]),
            "penultimate": self.norms["penultimate"](states[layers - 1][:, 1:]),
        }
        return F.normalize(picture_IJ, dim=-1), maps

    def embed_texts(self, texts: list[str]) -> Tensor:
        """Unit embeddings `(N, J)`."""
        return F.normalize(self.heads["text"](self.text(texts)), dim=-1)

    def patch_weights(self, regions: list[Region]) -> Tensor:
        """How much of each patch belongs to each region, `(B, P)`."""
        side = self.encoder.config.image_size // self.encoder.config.patch
        return box_weights(torch.tensor([region.box for region in regions]), side)

    def _scale(self, name: str) -> Tensor:
        return self.scales[name].clamp(max=4.6052).exp()

    def _both_ways(self, pictures_IJ: Tensor, texts_IJ: Tensor, scale: Tensor) -> Tensor:
        logits_II, own = pictures_IJ @ texts_IJ.T * scale, torch.arange(len(pictures_IJ))
        return (F.cross_entropy(logits_II, own) + F.cross_entropy(logits_II.T, own)) / 2

    def _phrases_of(self, regions: list[Region]) -> dict[str, _Texts]:
        """The phrases of each group that the regions don't all share, embedded in one go."""
        found: dict[str, tuple[list[int], list[str], list[int]]] = {}
        for group in GROUPS:
            rows = [index for index, region in enumerate(regions) if group in region.phrases]
            phrases = sorted({regions[index].phrases[group] for index in rows})
            if len(phrases) > 1:
                found[group] = (
                    rows,
                    phrases,
                    [phrases.index(regions[index].phrases[group]) for index in rows],
                )
        embedded = self.embed_texts([phrase for _, phrases, _ in found.values() for phrase in phrases])
        parts = embedded.split([len(phrases) for _, phrases, _ in found.values()])
        return {group: _Texts(rows, torch.tensor(own), part) for (group, (rows, _, own)), part in zip(found.items(), parts)}

    def _group_loss(self, pooled_BJ: Tensor, texts: _Texts, group: str) -> Tensor:
        """Each region finds its phrase among the batch's, and each whole phrase its regions (any of them)."""
        logits_BU = pooled_BJ[texts.rows] @ texts.embedded_UJ.T * self._scale(group)
        to_phrase = F.cross_entropy(logits_BU, texts.own_B)
        if group != "item":
            return to_phrase
        positive_BU = F.one_hot(texts.own_B, logits_BU.shape[1]).bool()
        found_U = logits_BU.masked_fill(~positive_BU, -torch.inf).logsumexp(0) - logits_BU.logsumexp(0)
        return (to_phrase - found_U.mean() / 2) / 1.5

    def evaluate(self) -> dict[str, Any]:
        """Zero-shot and linear-probe accuracy on held-out scenes."""
        from .probe import evaluate_vision

        return evaluate_vision(self)

    def export(self, folder: Path, metrics: dict[str, Any]) -> None:
        """Write the tower alone, its features as large as a projector expects them."""
        pixels = self.pixels(draw_scenes(random.Random("features"), "train", 32))
        export_vision(with_unit_features(self.encoder, pixels), folder, metrics)


def pool(map_IPC: Tensor, weights_BP: Tensor, regions: list[Region]) -> Tensor:
    """Weighted means `(B, C)` of each region's patches."""
    images = torch.tensor([region.image for region in regions])
    shares_BP = weights_BP / weights_BP.sum(1, keepdim=True)
    return torch.bmm(shares_BP[:, None], map_IPC[images])[:, 0]


def draw_scenes(rng: random.Random, split: Split, count: int) -> list[Scene]:
    """Scenes of one split, in the order they are drawn."""
    return [sample_scene(rng, split) for _ in range(count)]


def rich_scene(rng: random.Random, among: int = 3) -> Scene:
    """The train scene of a few that shows most digits and words: what is hard to read is worth more looks."""
    scenes = draw_scenes(rng, "train", among)
    return max(scenes, key=lambda scene: sum(1.0 if item.kind != "shape" else 0.5 for item in scene.items))
