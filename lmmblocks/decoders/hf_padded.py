"""The padded way of running a model of transformers: for what can't be run packed.

Without a cache the segments are padded on the right to ``(S, L)`` and masked; causal models don't see what comes after a row, so a state
(Mamba, RWKV) isn't touched by the padding either. With a cache each sequence is run by itself, with a cache of its own as transformers
makes it: the only way that fits every kind of state and sequences of any lengths.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..spec import LmmError, Segments

_CACHE_ARGUMENTS = ("cache", "past_key_values", "cache_params", "state")
"""What transformers' models call their cache, the newest name first: ``cache`` since 5.24."""


def cache_argument(trunk: nn.Module) -> str | None:
    """Return what a model of transformers calls its cache, or None where it has none."""
    return _first_cache_argument(type(trunk).forward)


@functools.cache
def _first_cache_argument(forward: Callable[..., Any]) -> str | None:
    parameters = inspect.signature(forward).parameters
    return next((name for name in _CACHE_ARGUMENTS if name in parameters), None)


def run_padded(trunk: nn.Module, embeds_TD: Tensor, positions_T: Tensor, segments: Segments) -> Tensor:
    """Run the model without its head over packed rows, padded inside; return ``hidden_TD``.

    Raises:
        LmmError: positions that the model can't be told.
    """
    lengths = [length for length in segments.lengths_q if length]
    if not lengths:
        return embeds_TD * 0
    filled = sum(lengths)
    padded_SLD = pad_sequence(list(embeds_TD[:filled].split(lengths)), batch_first=True)
    ends_S = torch.tensor(lengths, device=embeds_TD.device)
    mask_SL = (torch.arange(padded_SLD.shape[1], device=embeds_TD.device) < ends_S[:, None]).long()
    places = _positions(trunk, list(positions_T[:filled].split(lengths)), [0] * len(lengths))
    outputs = trunk(inputs_embeds=padded_SLD, attention_mask=mask_SL, use_cache=False, **places)
    hidden = [row_LD[:length] for row_LD, length in zip(outputs[0], lengths)]
    if filled < embeds_TD.shape[0]:
        hidden.append(hidden[0].new_zeros(embeds_TD.shape[0] - filled, hidden[0].shape[1]))
    return torch.cat(hidden)


class SequenceCaches:
    """One cache of transformers for each sequence, and the rows that it has read.

    The rows are kept so that a sequence can be cut back whatever its state is: it is then read again.

    Args:
        sequences: how many sequences are decoded side by side.
        stateful: the model carries a state that takes one token at a time once it has begun.
    """

    def __init__(self, sequences: int, stateful: bool) -> None:
        self.lengths = [0] * sequences
        self.stateful = stateful
        self._states: list[Any] = [None] * sequences
        self._embeds: list[Tensor | None] = [None] * sequences
        self._positions: list[Tensor | None] = [None] * sequences

    def run(self, trunk: nn.Module, embeds_TD: Tensor, positions_T: Tensor, segments: Segments) -> Tensor:
        """Read new rows, one segment per sequence; return their ``hidden_TD``.

        Raises:
            LmmError: not one new segment per cached sequence, or a model without a cache.
        """
        if len(segments.lengths_q) != len(self.lengths):
            raise LmmError(f"the cache holds {len(self.lengths)} sequences, the batch brings {len(segments.lengths_q)} segments")
        hidden, first = [], 0
        for sequence, new in enumerate(segments.lengths_q):
            rows = slice(first, first + new)
            if new:
                hidden.append(self._read(trunk, sequence, embeds_TD[rows], positions_T[rows])[-new:])
            first += new
        return torch.cat(hidden) if hidden else embeds_TD * 0

    def _read(self, trunk: nn.Module, sequence: int, embeds_TD: Tensor, positions_T: Tensor) -> Tensor:
        known = self.lengths[sequence]
        embeds = _joined(self._embeds[sequence], embeds_TD)
        positions = _joined(self._positions[sequence], positions_T)
        unread = known if self._states[sequence] is not None else 0
        hidden = []
        while unread < len(embeds):
            one = self.stateful and self._states[sequence] is not None
            rows = slice(unread, unread + 1 if one else len(embeds))
            hidden.append(self._step(trunk, sequence, embeds[rows], positions[rows], unread))
            unread = rows.stop
        self._embeds[sequence], self._positions[sequence] = embeds, positions
        self.lengths[sequence] = len(embeds)
        return torch.cat(hidden)

    def _step(self, trunk: nn.Module, sequence: int, embeds_TD: Tensor, positions_T: Tensor, behind: int) -> Tensor:
        name = cache_argument(trunk)
        places = _positions(trunk, [positions_T], [behind])
        cached = {} if name is None or self._states[sequence] is None else {name: self._states[sequence]}
        outputs = trunk(inputs_embeds=embeds_TD[None], use_cache=True, **cached, **places)
        self._states[sequence] = None if name is None else getattr(outputs, name, None)
        if self._states[sequence] is None:
            raise LmmError(
                f"{type(trunk).__name__} can't generate: it returns none of the caches {', '.join(_CACHE_ARGUMENTS)} that transformers' models have"
            )
        return outputs[0][0]

    def keep(self, sequences: list[int]) -> None:
        """Drop every sequence but these.

        Raises:
            LmmError: a sequence is named twice; the copies would write into one cache.
        """
        if len(set(sequences)) != len(sequences):
            raise LmmError(f"cannot keep a sequence of the cache twice: found {sequences}")
        for name in ("lengths", "_states", "_embeds", "_positions"):
            setattr(self, name, [getattr(self, name)[sequence] for sequence in sequences])

    def truncate(self, sequence: int, length: int) -> None:
        """Forget the rows of a sequence from ``length`` on; what is left is read again with the next rows.

        Raises:
            LmmError: the sequence doesn't hold that many rows.
        """
        held = self.lengths[sequence]
        if not 0 <= length <= held:
            raise LmmError(f"cannot truncate sequence {sequence} to {length} rows: it holds {held}")
        if length == held:
            return
        self.lengths[sequence], self._states[sequence] = length, None
        for rows in (self._embeds, self._positions):
            rows[sequence] = rows[sequence][:length]  # type: ignore[index]


def _joined(old: Tensor | None, new: Tensor) -> Tensor:
    return new if old is None else torch.cat([old, new])


def _positions(trunk: nn.Module, each: list[Tensor], behind: list[int]) -> dict[str, Tensor]:
    """Return the positions as the model takes them; one that counts for itself has to count the same."""
    if "position_ids" in inspect.signature(trunk.forward).parameters:
        return {"position_ids": pad_sequence(each, batch_first=True).long()}
    if not all(_counts_from(start, positions) for positions, start in zip(each, behind)):
        raise LmmError(
            f"{type(trunk).__name__} counts positions by itself, from 0 without a gap, and the batch has others: use a decoder that takes them"
        )
    return {}


def _counts_from(start: int, positions_T: Tensor) -> bool:
    return torch.equal(positions_T.long(), torch.arange(start, start + len(positions_T), device=positions_T.device))
