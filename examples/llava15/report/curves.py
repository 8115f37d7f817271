"""Loss curves as inline SVG: the raw losses faint, their running mean on top."""

from __future__ import annotations

import csv
from pathlib import Path

WIDTH, HEIGHT = 460, 240
LEFT, RIGHT, TOP, BOTTOM = 46, 20, 14, 34
_SMOOTHING = 0.92


def read_losses(file: Path) -> list[tuple[int, float]]:
    """Return (step, loss) of a ``losses.csv``; a step in which nothing was to learn has no loss."""
    with file.open(newline="") as lines:
        return [(int(row["step"]), float(row["loss"])) for row in csv.DictReader(lines) if row["loss"]]


def running_mean(values: list[float], keep: float = _SMOOTHING) -> list[float]:
    """Return the exponential running mean, unbiased at the start.

    >>> running_mean([2.0, 2.0])
    [2.0, 2.0]
    """
    means, total, weight = [], 0.0, 0.0
    for value in values:
        total, weight = keep * total + (1 - keep) * value, keep * weight + (1 - keep)
        means.append(round(total / weight, 12))
    return means


def loss_svg(points: list[tuple[int, float]], title: str) -> str:
    """Return the curve of one stage as an SVG element."""
    if len(points) < 2:
        return f"<p>{title}: {len(points)} logged steps, too few for a curve.</p>"
    steps, losses = [p[0] for p in points], [p[1] for p in points]
    top = _nice_ceiling(sorted(losses)[int(0.98 * (len(losses) - 1))])
    x = lambda step: LEFT + (step - steps[0]) / (steps[-1] - steps[0]) * (WIDTH - LEFT - RIGHT)  # noqa: E731
    y = lambda loss: TOP + (1 - min(loss, top) / top) * (HEIGHT - TOP - BOTTOM)  # noqa: E731
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}: loss by step">']
    for tick in range(5):
        value = top * tick / 4
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.3g}</text>')
    for step in (steps[0], (steps[0] + steps[-1]) // 2, steps[-1]):
        parts.append(f'<text x="{x(step):.1f}" y="{HEIGHT - 14}" text-anchor="middle">{step}</text>')
    for name, values in (("raw", losses), ("mean", running_mean(losses))):
        path = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in zip(steps, values))
        parts.append(f'<polyline class="{name}" points="{path}"/>')
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 3}" text-anchor="middle">step</text></svg>')
    return "".join(parts)


def _nice_ceiling(value: float) -> float:
    """Return the smallest of 1, 1.5, 2, 3, 4, 5, 8 times a power of ten that is not below ``value``."""
    scale = 1.0
    while scale * 10 <= value:
        scale *= 10
    while scale > value:
        scale /= 10
    return next(scale * factor for factor in (1, 1.5, 2, 3, 4, 5, 8, 10) if scale * factor >= value)
