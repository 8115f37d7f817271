"""The words that settings choose from, each list once; nothing is imported for them."""

from __future__ import annotations

from typing import Literal, get_args

Mode = Literal["pieces", "llava15"]
MODES: tuple[Mode, ...] = get_args(Mode)
"""How a conversation becomes token ids: piece by piece, or with the original's ids."""

Attention = Literal["causal", "images"]
ATTENTIONS: tuple[Attention, ...] = get_args(Attention)
"""Whether an image row also sees the rest of its image."""

Truncate = Literal["error", "drop", "turn", "right"]
TRUNCATE: tuple[Truncate, ...] = get_args(Truncate)
"""What happens to samples that are too long, see ``plan_splice``."""

Exif = Literal["ignore", "rotate"]
EXIF: tuple[Exif, ...] = get_args(Exif)
"""Whether a picture is turned as its EXIF orientation says; LLaVA ignores it."""

Transparent = Literal["drop", "black", "white"]
TRANSPARENT: tuple[Transparent, ...] = get_args(Transparent)
"""What shows through: the colours as stored, whatever their alpha (LLaVA), or a background."""

Fit = Literal["pad", "crop", "squash"]
FITS: tuple[Fit, ...] = get_args(Fit)
"""How a picture becomes square."""
