"""Chinese questions with one-word Chinese answers, from a small set of characters."""

from __future__ import annotations

import random

from .scene import Scene
from .turns import Turn, of_kind, unique
from .vocabulary import COLORS, SHAPES
from .yes_no import absent_shape_pair

COLORS_ZH = dict(zip(COLORS, ("红色", "绿色", "蓝色", "黄色", "紫色", "橙色", "青色", "粉色")))
SHAPES_ZH = dict(zip(SHAPES, ("圆形", "正方形", "三角形", "星形", "十字形", "菱形")))
NUMBERS_ZH = ("零", "一", "二", "三", "四")
FORMAT_ZH = "请用一个词回答。"


def chinese(scene: Scene, rng: random.Random) -> Turn | None:
    """A colour, shape, count or yes/no question in Chinese."""
    for ask in rng.sample(_ASKS, len(_ASKS)):
        found = ask(scene, rng)
        if found is not None:
            return Turn("chinese", f"{found[0]}\n{FORMAT_ZH}", found[1], "short")
    return None


def _color(scene: Scene, rng: random.Random) -> tuple[str, str] | None:
    items = unique(of_kind(scene, "shape"), "shape")
    if not items:
        return None
    item = rng.choice(items)
    return f"{SHAPES_ZH[item.shape or '']}是什么颜色？", COLORS_ZH[item.color or ""]


def _shape(scene: Scene, rng: random.Random) -> tuple[str, str] | None:
    items = unique([*of_kind(scene, "shape"), *of_kind(scene, "word")], "color")
    items = [item for item in items if item.kind == "shape"]
    if not items:
        return None
    item = rng.choice(items)
    return f"{COLORS_ZH[item.color or '']}的是什么形状？", SHAPES_ZH[item.shape or ""]


def _count(scene: Scene, rng: random.Random) -> tuple[str, str] | None:
    shapes = of_kind(scene, "shape")
    if not shapes:
        return None
    counts = {shape: sum(item.shape == shape for item in shapes) for shape in SHAPES}
    wanted = rng.choice([*sorted(set(counts.values()) - {0}), len(shapes)])
    named = [f"图中有几个{SHAPES_ZH[shape]}？" for shape, count in counts.items() if count == wanted]
    questions = named + (["图中有几个形状？"] if len(shapes) == wanted else [])
    return rng.choice(questions), NUMBERS_ZH[wanted]


def _exists(scene: Scene, rng: random.Random) -> tuple[str, str] | None:
    shapes = of_kind(scene, "shape")
    if not shapes:
        return None
    truth = rng.random() < 0.5
    item = rng.choice(shapes)
    color, shape = (item.color, item.shape) if truth else absent_shape_pair(scene, rng)
    return f"图中有{COLORS_ZH[color or '']}的{SHAPES_ZH[shape or '']}吗？", "有" if truth else "没有"


_ASKS = (_color, _shape, _count, _exists)
