"""The formats of Qwen-VL: images between two tokens, and for Qwen-VL-Chat numbered through the conversation, in ChatML.

    <|im_start|>system
    You are a helpful assistant.<|im_end|>
    <|im_start|>user
    Picture 1: <img>...</img>
    What is this?<|im_end|>
    <|im_start|>assistant
    A cat.<|im_end|>

Roles and contents are encoded apart, so that a content that begins with a line break isn't joined to the one before it. The models before
instruction tuning continue a text: ``<img>...</img>What is this? Answer:``, `` A cat.``, and their end-of-text token.

Source: ``make_context`` in ``qwen_generation_utils.py`` and ``from_list_format`` in ``tokenization_qwen.py`` of Qwen/Qwen-VL-Chat; "the position of
the image in the conversation, starting from 1" in the README of QwenLM/Qwen-VL, and its ``eval_mm`` for the models before instruction tuning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .families import QWEN2
from .marked import MarkedTemplate
from .messages import Message
from .pieces import Piece

START, END = "<img>", "</img>"


@dataclass(frozen=True)
class NumberedTemplate(MarkedTemplate):
    """A template of markup that counts the images, and whose contents are encoded apart from the markup.

    >>> pieces = QWEN_VL_CHAT.render([{"role": "user", "content": "<image><image>"}], add_generation_prompt=True)
    >>> [piece.text for piece in pieces if piece.text.startswith("Picture")]
    ['Picture 1: ', 'Picture 2: ']
    """

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> list[Piece]:
        """Render a conversation; see :meth:`MarkedTemplate.render`."""
        pieces, shown = list[Piece](), 0
        for piece in super().render(messages, add_generation_prompt=add_generation_prompt):
            if piece.kind == "special" and piece.text == self.image[0]:
                shown += 1
                pieces.append(Piece("text", f"Picture {shown}: ", piece.role, piece.train))
            pieces.append(piece)
        return pieces

    def _content(self, content: str, role: str, *, train: bool = False) -> list[Piece]:
        return [Piece("break", role=role, train=train), *super()._content(content, role, train=train)]


QWEN_VL_CHAT = NumberedTemplate(
    "qwen_vl_chat",
    opening=QWEN2.opening,
    around_system=QWEN2.around_system,
    to_answer=QWEN2.to_answer,
    ending=QWEN2.ending,
    to_question=QWEN2.to_question,
    close=QWEN2.close,
    system=QWEN2.system,
    tokens=(*QWEN2.tokens, START, END),
    image=(START, END),
    ends=("<|endoftext|>", "<|im_start|>"),
)
QWEN_VL = MarkedTemplate("qwen_vl", opening="", to_answer="", lead=" ", ending="{eos}", to_question="", tokens=(START, END), image=(START, END))
