"""How the frequencies of rotary embedding are stretched for contexts longer than the first training saw: one class per method.

Each class is a value of ``TransformerConfig.rope_scaling`` and changes the frequencies ``theta^(-2i/E)`` of the ``E/2`` pairs of a head.
Source of the formulas: ``modeling_rope_utils.py`` of transformers 5.23, which each is tested against.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..spec import ByKeywords, LmmError, Segments, closest
from ..spec.fields import field_problems


class RopeScaling(metaclass=ByKeywords):
    """What the methods share: a name for config files, a check of the fields, and queries and keys that keep their length."""

    method: str
    magnitude: float = 1.0

    def __post_init__(self) -> None:
        problems = field_problems(self)
        if problems:
            raise LmmError(f"rope_scaling {self.method!r}: " + "; ".join(problems))

    def frequencies(self, width: int, theta: float) -> Tensor:
        """Return fp32 ``(E/2,)`` for ``width`` turned dimensions."""
        raise NotImplementedError


@dataclass(frozen=True)
class LinearRope(RopeScaling):
    """Positions are divided by ``factor``. Source: Chen et al., arXiv 2306.15595."""

    factor: float
    method: str = field(default="linear", init=False)

    def frequencies(self, width: int, theta: float) -> Tensor:
        """See :meth:`RopeScaling.frequencies`."""
        return ops.rope_frequencies(width, theta) / self.factor


@dataclass(frozen=True)
class Llama3Rope(RopeScaling):
    """Llama 3.1: long waves are stretched by ``factor``, short ones stay, those between are blended.

    Attributes:
        factor: how far long waves are stretched.
        low: a wave is long when fewer than ``low`` of it fit into ``original`` positions.
        high: and short when more than ``high`` of it fit.
        original: positions of the first training.

    Source: Grattafiori et al., "The Llama 3 Herd of Models", arXiv 2407.21783; ``llama3`` in transformers.
    """

    factor: float
    low: float
    high: float
    original: int
    method: str = field(default="llama3", init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low >= self.high:
            raise LmmError(f"rope_scaling 'llama3': low {self.low} must be below high {self.high}")

    def frequencies(self, width: int, theta: float) -> Tensor:
        """See :meth:`RopeScaling.frequencies`."""
        plain = ops.rope_frequencies(width, theta)
        waves = self.original / (2 * math.pi / plain)
        kept = ((waves - self.low) / (self.high - self.low)).clamp(0, 1)
        return (1 - kept) * plain / self.factor + kept * plain


@dataclass(frozen=True)
class LongRope(RopeScaling):
    """Phi-3: each pair has its own divisor, one set for sequences up to ``original`` positions and one for longer ones.

    Attributes:
        short: ``E/2`` divisors for sequences of at most ``original`` positions.
        long: divisors for longer ones.
        original: positions of the first training.
        magnitude: factor of cosines and sines.

    Source: Ding et al., "LongRoPE", arXiv 2402.13753; ``longrope`` in transformers (``su`` in older files).
    """

    short: tuple[float, ...]
    long: tuple[float, ...]
    original: int
    magnitude: float = 1.0
    method: str = field(default="longrope", init=False)

    def __post_init__(self) -> None:
        for name in ("short", "long"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        super().__post_init__()

    def is_long(self, length: int) -> bool:
        """Return whether a sequence of ``length`` positions takes the long divisors."""
        return length > self.original

    def frequencies(self, width: int, theta: float) -> Tensor:
        """Return both sets, ``(2, E/2)``: short, long."""
        divisors = torch.tensor([self.short, self.long], dtype=torch.float32, device="cpu")
        exponent = torch.arange(0, width, 2, dtype=torch.int64, device="cpu").float() / width
        return 1.0 / (divisors * theta**exponent)


METHODS: dict[str, Any] = {"linear": LinearRope, "llama3": Llama3Rope, "longrope": LongRope}


def rope_scaling(value: Any) -> RopeScaling | None:
    """Return a scaling from itself, from None, or from the object that a config file has of it.

    Raises:
        LmmError: no such method, or fields that it doesn't have.

    >>> rope_scaling({"method": "linear", "factor": 4.0})
    LinearRope(factor=4.0, method='linear')
    """
    if value is None or isinstance(value, RopeScaling):
        return value
    if not isinstance(value, Mapping):
        raise LmmError(f"rope_scaling must be one of {sorted(METHODS)} or None, found {value!r}")
    options = dict(value)
    name = str(options.pop("method", None))
    if name not in METHODS:
        raise LmmError(f"rope_scaling has no method {name!r}{closest(name, METHODS)}; known: {sorted(METHODS)}")
    try:
        return METHODS[name](**options)
    except TypeError as error:
        known = [entry.name for entry in fields(METHODS[name]) if entry.init]
        raise LmmError(f"rope_scaling {name!r} takes {known}, found {sorted(options)}") from error


class Rotary:
    """Cosines and sines of one kind of layer; frequencies are computed once per device.

    Args:
        width: dimensions of a head that are turned.
        theta: base of the frequencies.
        scaling: None = plain.
    """

    def __init__(self, width: int, theta: float, scaling: RopeScaling | None = None) -> None:
        self.width, self.theta, self.scaling = width, theta, scaling
        self._scaled: dict[torch.device, Tensor] = {}

    def table(self, positions_T: Tensor, segments: Segments) -> tuple[Tensor, Tensor]:
        """Return fp32 ``cos_TE, sin_TE`` for packed rows; ``segments`` say how long each sequence is."""
        if self.scaling is None:
            return ops.rope_table(positions_T, self.width, self.theta)
        frequencies = self._frequencies(positions_T.device)
        if isinstance(self.scaling, LongRope):
            frequencies = _by_length(frequencies, self.scaling, segments, positions_T.shape[0])
        cos_TE, sin_TE = ops.rope_table(positions_T, self.width, frequencies=frequencies)
        magnitude = self.scaling.magnitude
        return (cos_TE, sin_TE) if magnitude == 1.0 else (cos_TE * magnitude, sin_TE * magnitude)

    def _frequencies(self, device: torch.device) -> Tensor:
        if device not in self._scaled:
            assert self.scaling is not None
            self._scaled[device] = self.scaling.frequencies(self.width, self.theta).to(device)
        return self._scaled[device]


def _by_length(sets_2E: Tensor, scaling: LongRope, segments: Segments, rows: int) -> Tensor:
    """Choose short or long frequencies by the whole length of each row's sequence, so that no neighbour in the batch matters."""
    long = [scaling.is_long(length) for length in segments.lengths_k]
    if not any(long) or all(long):
        return sets_2E[int(any(long))]
    long_S = segments.cu_k.diff() > scaling.original
    row_T = torch.arange(rows, device=sets_2E.device, dtype=segments.cu_q.dtype)
    segment_T = torch.searchsorted(segments.cu_q[1:], row_T, right=True).clamp_max(len(long) - 1)
    return torch.where(long_S[segment_T][:, None], sets_2E[1], sets_2E[0])
