"""The learning rate as a pure function of the step: a resumed run needs no state to know it.

Linear warm-up from 0 over ``ceil(warmup_ratio * steps)`` steps, then half a cosine to 0: the formula of transformers'
``get_cosine_schedule_with_warmup``, which LLaVA-1.5 uses. The first step of a warm-up has learning rate 0, as there.
"""

from __future__ import annotations

import math


def lr_factor(step: int, total_steps: int, *, warmup_ratio: float = 0.03, schedule: str = "cosine") -> float:
    """Return what the peak learning rate is multiplied with at a step.

    Args:
        step: counted from 0.
        total_steps: of the stage.
        warmup_ratio: share of the steps that warm up, rounded up.
        schedule: ``cosine`` or ``constant``.

    >>> [round(lr_factor(step, 10, warmup_ratio=0.2), 3) for step in (0, 1, 2, 6, 9)]
    [0.0, 0.5, 1.0, 0.5, 0.038]
    """
    warmup = math.ceil(total_steps * warmup_ratio)
    if step < warmup:
        return step / warmup
    if schedule == "constant":
        return 1.0
    progress = (step - warmup) / max(1, total_steps - warmup)
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))
