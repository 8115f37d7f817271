"""What is asked about an image, for projectors that read it (InstructBLIP's Q-Former): text on the host, packed ids on the device.

The instruction of an image is the message that shows it, without the image markers. Later questions of a conversation are not part of
it: the image's rows are computed once, when the image is shown, and stay in the cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

from ..spec import Instruction as Instruction
from ..spec import LmmError


@dataclass
class InstructionTokens:
    """Turns the text of an instruction into ids; picklable, so that a data loader's worker can hold it.

    Attributes:
        tokenizer: a transformers tokenizer, or the folder or hub id of one, which is read when it is first needed.
        vocab: rows of the table that the ids index.
        max_length: most ids, special tokens included; longer texts are cut, as InstructBLIP's processor does.

    Raises:
        LmmError: the tokenizer has more ids than the table has rows.
    """

    tokenizer: Any
    vocab: int
    max_length: int
    _loaded: Any = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.tokenizer is not None and not isinstance(self.tokenizer, str):
            self._take(self.tokenizer)

    def _take(self, tokenizer: Any) -> None:
        if len(tokenizer) > self.vocab:
            raise LmmError(
                f"the instruction's tokenizer has {len(tokenizer)} ids, the projector's table has {self.vocab} rows: make the projector with "
                f"vocab={len(tokenizer)}, or with the tokenizer its weights were trained with (tokenizer='folder or hub id')"
            )
        self._loaded = tokenizer

    def __call__(self, text: str) -> list[int]:
        """Return the ids of a text, with the special tokens its tokenizer adds."""
        if self._loaded is None:
            from ..chat.load import load_tokenizer

            self._take(load_tokenizer(self.tokenizer))
        encoded = self._loaded(text, return_special_tokens_mask=True)  # not `truncation=`, which a tokenizer remembers
        return _cut(list(encoded["input_ids"]), encoded["special_tokens_mask"], self.max_length)


def _cut(ids: list[int], special: Sequence[int], most: int) -> list[int]:
    """Cut the text at its end, before the special tokens that close it.

    >>> _cut([1, 5, 6, 7, 2], [1, 0, 0, 0, 1], 4)
    [1, 5, 6, 2]
    """
    if len(ids) <= most:
        return ids
    closing = len(list(takewhile(bool, reversed(special))))
    return ids[: most - closing] + ids[len(ids) - closing :]


def image_instructions(messages: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the instruction of each image of a conversation, in the order of their markers.

    >>> image_instructions([{"role": "user", "content": "<image>\\nWhat colour is it?"}, {"role": "assistant", "content": "Red."}])
    ['What colour is it?']
    """
    # Here, as a projector that takes an Instruction needs nothing of chat.
    from ..chat.messages import plain_messages
    from ..chat.pieces import split_markers

    texts = []
    for message in plain_messages(messages):
        around = split_markers(message["content"])
        texts += ["".join(around).strip()] * (len(around) - 1)
    return texts
