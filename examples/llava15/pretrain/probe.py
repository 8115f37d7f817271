"""What the vision tower has learned, measured on held-out scenes.

Zero-shot: the phrase nearest to a region's embedding, among all phrases of its kind. Linear probe: a linear
map fitted on the frozen features that LLaVA's projector reads (last but one layer, mean over the region's
patches) of train scenes.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..scenes.describe import caption
from ..scenes.scene import Scene
from ..scenes.vocabulary import COLORS, POSITIONS, SHAPE_PAIRS, SHAPES, WORDS
from .phrases import Region, scene_regions

if TYPE_CHECKING:
    from .contrastive import ContrastiveTask

CHOICES = {
    "pair": [f"{color} {shape}" for color, shape in SHAPE_PAIRS],
    "digit": [f"digit {digit}" for digit in range(10)],
    "word": [f"word {word}" for word in WORDS],
    "color": list(COLORS),
    "shape": list(SHAPES),
    "place": list(POSITIONS.values()),
}
"""Property -> the phrases it may have. "pair" is colour and shape together, mostly never seen in training."""


def evaluate_vision(task: ContrastiveTask, train_pictures: int = 3000, heldout_pictures: int = 600) -> dict[str, Any]:
    """Scores of a tower.

    Args:
        task: the tower with its text tower and heads.
        train_pictures: pictures that the linear probes are fitted on.
        heldout_pictures: pictures that everything is measured on.

    Returns:
        `zero_shot`, `probe` (property -> accuracy), `probe_box_iou` and `caption_retrieval` (of 100).
    """
    from .contrastive import draw_scenes

    rng = random.Random("validation")
    heldout = _features(task, draw_scenes(rng, "heldout", heldout_pictures), rng)
    train = _features(task, draw_scenes(rng, "train", train_pictures), rng)
    return {
        "zero_shot": _rounded(_zero_shot(task, heldout)),
        "probe": _rounded(_probes(train, heldout)),
        "probe_box_iou": round(_box_probe(train, heldout), 4),
        "caption_retrieval": round(_retrieval(task, heldout), 4),
        "heldout_pictures": heldout_pictures,
    }


def _features(task: ContrastiveTask, scenes: list[Scene], rng: random.Random) -> dict[str, Any]:
    from .contrastive import pool

    found: dict[str, Any] = {"picture": [], "penultimate": [], "raw": [], "regions": [], "captions": []}
    layer = task.encoder.config.layers - 1
    for start in range(0, len(scenes), 100):
        chunk = scenes[start : start + 100]
        pixels = task.pixels(chunk)
        regions = [region for index, scene in enumerate(chunk) for region in scene_regions(scene, index)]
        regions = [region for region in regions if "item" in region.phrases]
        states = task.encoder.vision_model.hidden_states(pixels, frozenset({layer, layer + 1}))
        normed_IPC = task.norms["penultimate"](states[layer][:, 1:])
        weights_BP = task.patch_weights(regions)
        picture_IC = task.encoder.vision_model.post_layernorm(states[layer + 1][:, 0])
        found["picture"].append(F.normalize(task.heads["picture"](picture_IC), dim=-1))
        found["penultimate"].append(F.normalize(task.heads["penultimate"](pool(normed_IPC, weights_BP, regions)), dim=-1))
        found["raw"].append(pool(states[layer][:, 1:], weights_BP, regions))
        found["regions"] += regions
        found["captions"] += [caption(scene, rng) for scene in chunk]
    return {name: torch.cat(value) if torch.is_tensor(value[0]) else value for name, value in found.items()}


def labels_of(regions: list[Region], name: str) -> tuple[list[int], list[int]]:
    """The regions that have a property, and which of its choices each has."""
    group = "item" if name in ("pair", "digit", "word") else name
    rows = [i for i, region in enumerate(regions) if region.phrases.get(group) in CHOICES[name]]
    return rows, [CHOICES[name].index(regions[i].phrases[group]) for i in rows]


def _zero_shot(task: ContrastiveTask, data: dict[str, Any]) -> dict[str, float]:
    scores = {}
    for name, choices in CHOICES.items():
        rows, labels = labels_of(data["regions"], name)
        nearest = (data["penultimate"][rows] @ task.embed_texts(choices).T).argmax(1)
        scores[name] = (nearest == torch.tensor(labels)).float().mean().item()
    return scores


def _probes(train: dict[str, Any], heldout: dict[str, Any]) -> dict[str, float]:
    scores: dict[str, float] = {}
    right: dict[str, Tensor] = {}
    for name in ("color", "shape", "digit", "word", "place"):
        rows, labels = labels_of(train["regions"], name)
        targets = F.one_hot(torch.tensor(labels), len(CHOICES[name])).float()
        weights = _ridge(train["raw"][rows], targets)
        rows, labels = labels_of(heldout["regions"], name)
        right[name] = torch.zeros(len(heldout["regions"]), dtype=torch.bool)
        right[name][rows] = (_with_one(heldout["raw"][rows]) @ weights).argmax(1) == torch.tensor(labels)
        scores[name] = right[name][rows].float().mean().item()
    rows, _ = labels_of(heldout["regions"], "pair")
    scores["color+shape"] = (right["color"] & right["shape"])[rows].float().mean().item()
    return scores


def _box_probe(train: dict[str, Any], heldout: dict[str, Any]) -> float:
    """Mean overlap (IoU) of boxes read off linearly with the true ones."""
    boxes = [torch.tensor([region.box for region in data["regions"]]) for data in (train, heldout)]
    guess = _with_one(heldout["raw"]) @ _ridge(train["raw"], boxes[0])
    truth = boxes[1]
    inner = (torch.minimum(guess[:, 2:], truth[:, 2:]) - torch.maximum(guess[:, :2], truth[:, :2])).clamp_min(0).prod(1)
    area = [(box[:, 2:] - box[:, :2]).clamp_min(0).prod(1) for box in (guess, truth)]
    return (inner / (area[0] + area[1] - inner)).mean().item()


def _ridge(features_BC: Tensor, targets_BK: Tensor, strength: float = 1e-3) -> Tensor:
    """Least squares with a little ridge: `(C + 1, K)`."""
    x = _with_one(features_BC).double()
    penalty = strength * len(x) * torch.diag(x.var(0).clamp_min(1e-6))
    return torch.linalg.solve(x.T @ x + penalty, x.T @ targets_BK.double()).float()


def _with_one(features_BC: Tensor) -> Tensor:
    return torch.cat([features_BC, features_BC.new_ones(len(features_BC), 1)], 1)


def _retrieval(task: ContrastiveTask, data: dict[str, Any], among: int = 100) -> float:
    """How often a picture's own caption is the nearest of `among`."""
    hits = []
    for start in range(0, len(data["captions"]), among):
        captions = data["captions"][start : start + among]
        nearest = (data["picture"][start : start + among] @ task.embed_texts(captions).T).argmax(1)
        hits.append((nearest == torch.arange(len(captions))).float())
    return torch.cat(hits).mean().item()


def _rounded(scores: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in scores.items()}
