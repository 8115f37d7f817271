"""The ways a conversation becomes token ids: ``pieces``, or ``llava15``, the original's ids."""

from __future__ import annotations

from typing import Literal, get_args

Mode = Literal["pieces", "llava15"]
MODES: tuple[Mode, ...] = get_args(Mode)
