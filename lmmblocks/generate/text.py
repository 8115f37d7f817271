"""From generated tokens to text that is safe to show: whole characters only, and nothing of a stop string.

Motivation: a token may hold half a character (byte fallback) or half a stop string, and what was shown can't be taken back.
How it works: tokens wait until they decode to whole characters; text waits while it may still become a stop string. What comes out, joined,
is the same whatever the tokens were cut into.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from ..chat.text_encoder import TextEncoder, structure_ids, text_encoder

_BROKEN = "\N{REPLACEMENT CHARACTER}"


_SURELY_BROKEN = 16
"""Tokens after which waiting for the end of a character is given up; the longest have four bytes."""


class TokenText:
    """Decodes tokens one by one into whole characters; joined, the text is that of all tokens decoded at once.

    Many tokenizers write a token differently at the start of a text and inside it (WordPiece puts a space in front, ``</w>`` stands for one after),
    so tokens are decoded after those in front of them, and what comes in addition is passed on. Those in front are few, whatever the length.

    Args:
        tokenizer: a transformers tokenizer backed by the ``tokenizers`` library.
        silent: ids that give no text; None = those that the tokenizer has a use for itself, see ``structure_ids``. Every other token is shown,
            special ones that were added too.
    """

    def __init__(self, tokenizer: Any, silent: Collection[int] | None = None) -> None:
        encoder = text_encoder(tokenizer)
        self._decode = encoder.decode_exactly
        self._broken = encoder.encode(_BROKEN)
        self._tidy = _Tidied(encoder) if encoder.tidies else None
        self._silent = structure_ids(tokenizer) if silent is None else silent
        self._before: list[int] = []
        self._waiting: list[int] = []

    def push(self, token: int) -> str:
        """Return the text that became complete with this token."""
        if token in self._silent:
            return ""
        self._waiting.append(token)
        text = self._added()
        if not text.endswith(_BROKEN) or self._is_said():
            return self._shown(text, len(self._waiting))
        if len(self._waiting) <= _SURELY_BROKEN:
            return ""
        ready = self._whole(text)
        return self._shown(self._added(ready), ready)

    def finish(self) -> str:
        """Return what is left; bytes that never became a character are shown as U+FFFD."""
        text = self._shown(self._added(), len(self._waiting)) if self._waiting else ""
        return text if self._tidy is None else text + self._tidy.finish()

    def _is_said(self) -> bool:
        """Whether U+FFFD at the end is a character of the text, and not half of another."""
        count = len(self._broken)
        return count > 0 and tuple(self._waiting[-count:]) == self._broken

    def _whole(self, text: str) -> int:
        """Return how many of the waiting tokens can be shown: nothing that is said with one of the last is cut."""
        most = len(self._waiting) - 4
        cuts = (count for count in range(most, 0, -1) if self._added(count) + self._decode(self._waiting[count:]) == text)
        return next(cuts, most)

    def _added(self, count: int | None = None) -> str:
        """Return what the waiting tokens, or ``count`` of them, add to the text before them."""
        waiting = self._waiting[:count]
        before = self._decode(self._before) if self._before else ""
        together = self._decode([*self._before, *waiting])
        # A byte that makes a character before it invalid comes too late.
        return together[len(before) :] if together.startswith(before) else self._decode(waiting)

    def _shown(self, text: str, count: int) -> str:
        self._before, self._waiting = self._waiting[:count], self._waiting[count:]
        return text if self._tidy is None else self._tidy.push(text)


class _Tidied:
    """Tidies spaces up as the tokenizer does for a whole text: the last word waits for what follows it, and so do those that a ``" ' "`` may join."""

    def __init__(self, encoder: TextEncoder) -> None:
        self._tidied = encoder.tidied
        self._held = ""

    def push(self, text: str) -> str:
        text = self._held + text
        words = text.split(" ")
        first = last = len(words) - 1
        while first > 0 and ("'" in words[first - 1 : first + 1] or (first == last and not words[last])):
            first -= 1
        self._held = "".join(f" {word}" for word in words[first:]) if first else text
        return self._tidied(text[: len(text) - len(self._held)])

    def finish(self) -> str:
        held, self._held = self._held, ""
        return self._tidied(held)


class StopStrings:
    """Passes text on up to the first stop string.

    The first is the one that is complete first, reading character by character; of two that end together, the longer. Text before it
    is passed on, the string and what follows is not.

    Args:
        stops: strings that end the text; none of them empty.

    Attributes:
        stopped: whether one was found; nothing may be pushed after that.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = tuple(stops)
        self.stopped = False
        self._held = ""

    def push(self, text: str) -> str:
        """Return the text that can't be part of a stop string any more."""
        text = self._held + text
        found = [(at + len(stop), at) for stop in self.stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)[1]]
        passed = len(text) - max((_overlap(text, stop) for stop in self.stops), default=0)
        self._held = text[passed:]
        return text[:passed]

    def finish(self) -> str:
        """Return what was held back: the text ends, so it is no stop string."""
        held, self._held = self._held, ""
        return held


class AnswerText:
    """The text of one answer, as it grows.

    What the template puts before an answer is taken off, then the stop strings are looked for; what it puts between an answer and the
    token that ends it is taken off where that token came.

    Args:
        tokenizer: see ``TokenText``.
        stops: see ``StopStrings``.
        margins: what stands before an answer and after it, see ``chat.answer_margins``.
        silent: see ``TokenText``.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str], margins: tuple[str, str] = (" ", ""), *, silent: Collection[int] | None = None) -> None:
        self._tokens, self._stops = TokenText(tokenizer, silent), StopStrings(stops)
        self._lead, self._tail = margins
        self._start: str | None = ""  # None: the answer has begun
        self._late = ""

    @property
    def stopped(self) -> bool:
        """Whether a stop string ended the answer."""
        return self._stops.stopped

    def push(self, token: int) -> str:
        """Return the text that may be shown after this token."""
        return self._show(self._tokens.push(token))

    def finish(self, *, ended: bool = False) -> str:
        """Return what was held back, at the end of the answer: ``ended`` by its token, or by its length."""
        shown = self._show(self._tokens.finish())
        if self.stopped:
            return shown
        late = self._late + self._stops.finish()
        return shown + (late.removesuffix(self._tail) if ended else late)

    def _show(self, text: str) -> str:
        text = self._late + self._stops.push(self._without_lead(text))
        shown = len(text) if self.stopped else len(text) - _overlap(text, self._tail, whole=True)
        self._late = text[shown:]
        return text[:shown]

    def _without_lead(self, text: str) -> str:
        """Hold text back while it may be what stands before the answer."""
        if self._start is None:
            return text
        self._start += text
        if len(self._start) < len(self._lead) and self._lead.startswith(self._start):
            return ""
        text, self._start = self._start.removeprefix(self._lead), None
        return text


def _overlap(text: str, stop: str, *, whole: bool = False) -> int:
    """Return the length of the longest end of ``text`` that is a beginning of ``stop``, and not all of it unless ``whole``."""
    most = len(stop) if whole else len(stop) - 1
    return next((n for n in range(min(len(text), most), 0, -1) if text.endswith(stop[:n])), 0)
