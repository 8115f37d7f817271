"""The loss curve as a picture."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path

log = logging.getLogger(__name__)


def plot_losses(losses: Sequence[float | None], path: Path, *, title: str = "", smoothing: float = 0.9) -> Path | None:
    """Draw the loss of every step, and its running mean, into a PNG file.

    Args:
        losses: one per step; None, for a step without any, is a gap.
        path: of the PNG.
        title: above the curve.
        smoothing: weight of the past in the running mean, corrected for its start.

    Returns:
        The path, or None when matplotlib isn't installed (which is logged).
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        log.warning("matplotlib is not installed: %s is not drawn (pip install 'lmmblocks[train]')", path.name)
        return None
    steps = range(1, len(losses) + 1)
    figure = Figure(figsize=(7, 4), dpi=100)
    axes = figure.add_axes((0.1, 0.13, 0.87, 0.79))  # placed by hand: a layout engine draws everything several times
    axes.plot(steps, [math.nan if loss is None else loss for loss in losses], color="tab:blue", alpha=0.3, linewidth=1, label="loss of the step")
    axes.plot(
        steps,
        running_mean(losses, smoothing),
        color="tab:blue",
        linewidth=1.5,
        label=f"running mean ({smoothing:g})",
    )
    axes.set_xlabel("step")
    axes.set_ylabel("loss per supervised token (nats)")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend()
    FigureCanvasAgg(figure).print_png(str(path))
    return path


def running_mean(values: Sequence[float | None], smoothing: float) -> list[float]:
    """Return the exponential mean, corrected for its start; None (a step without a loss) is passed over, NaN before the first number.

    >>> running_mean([1.0, 3.0], 0.5)
    [1.0, 2.3333333333333335]
    """
    means: list[float] = []
    total = weight = 0.0
    for value in values:
        if value is not None:
            total, weight = smoothing * total + value, smoothing * weight + 1.0
        means.append(total / weight if weight else math.nan)
    return means
