"""The template of models that are prompted and not chatted with: BLIP-2's and InstructBLIP's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from ..spec import ByKeywords, LmmError
from ..spec.fields import Filled
from .messages import Message, split_system
from .pieces import Piece, content_pieces, split_markers
from .template_fields import refuse_wrong_fields


@dataclass(frozen=True)
class PromptTemplate(metaclass=ByKeywords):
    """Images, then the question as it is, then its answer; no roles, no system prompt, no second turn.

    Rendered: `{images}<bos>{question}{lead}{answer}<eos>`. The images stand before the beginning-of-sequence token wherever the
    message has them, and whitespace around the question is taken off: it is the same text that the Q-Former reads.

    Args:
        name: the registered name, saved with a model.
        lead: text between the question and the answer, said by the model: the space where tokenizers join it to the next word.
        ending: text that ends an answer, said by the model; "" = the end-of-sequence token does.
        ends: tokens that end an answer besides, where a model states them; () = none but the tokenizer's own.
        stops: strings that end an answer besides, where a model states them.

    Raises:
        LmmError: a field that holds something else.

    Source: `blip2_vicuna_instruct.py` of LAVIS (`concat_text_input_output`), `InstructBlipProcessor` of transformers.

    Example:
        >>> pieces = PromptTemplate("mine").render([{"role": "user", "content": "<image>\\nWhat is it?"}], add_generation_prompt=True)
        >>> [piece.text or piece.kind for piece in pieces]
        ['image', 'bos', 'What is it?']
    """

    name: str
    lead: str = " "
    ending: str = ""
    ends: Annotated[tuple[str, ...], Filled] = ()
    stops: Annotated[tuple[str, ...], Filled] = ()

    def __post_init__(self) -> None:
        refuse_wrong_fields(self)

    @property
    def stop(self) -> tuple[str, ...]:
        """Strings that end an answer: none where the end-of-sequence token does."""
        return (self.ending,) if self.ending else ()

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> list[Piece]:
        """Render one question and, unless `add_generation_prompt`, its answer.

        Args:
            messages: one user message and, unless `add_generation_prompt`, one assistant message.
            add_generation_prompt: leave the answer to be generated.

        Returns:
            Pieces; the answer and what ends it are marked for training.

        Raises:
            LmmError: the conversation is malformed, has more turns, or a system message.
        """
        system, turns = split_system(messages, add_generation_prompt=add_generation_prompt)
        if system is not None:
            raise LmmError(f"template {self.name!r} has no place for a system message: remove it, or put it into the question")
        if len(turns) > 2:
            raise LmmError(
                f"template {self.name!r} takes one question and its answer, found {len(turns)} turns: write what was said before into the "
                "question, or use a chat template such as 'vicuna_v1' for conversations"
            )
        content = turns[0]["content"]
        images = [piece for piece in content_pieces(content, "user") if piece.kind == "image"]
        question = "".join(split_markers(content)).strip()
        asked = [Piece("text", question, "user")] if question else []
        return [*images, Piece("bos"), *asked, *([] if add_generation_prompt else self._answer(turns[1]["content"]))]

    def _answer(self, content: str) -> list[Piece]:
        text = content_pieces(f"{self.lead}{content}", "assistant", train=True) if content else []
        end = Piece("text", self.ending, "assistant", train=True) if self.ending else Piece("eos", role="assistant", train=True)
        return [*text, end]
