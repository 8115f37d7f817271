"""Templates: from messages to pieces.

A template is any object with `name`, `stop` and `render`. A variant is a `dataclasses.replace` of one of the
library's, and is passed as an object wherever a name is taken. The classes here are those of LLaVA-1.5; `marked.py`
has the one for all formats that are nothing but markup around the contents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Protocol, runtime_checkable

from ..spec import ByKeywords, LmmError
from ..spec.fields import Filled
from .messages import Message, split_system
from .pieces import IMAGE_MARKER, Piece, content_pieces
from .template_fields import refuse_wrong_fields


@runtime_checkable
class ChatTemplate(Protocol):
    """What the rest of the library asks of a template.

    A template may have `ends`, the tokens that end an answer by what a model states (`with_ends`), and `tokens`, the
    special tokens that it writes besides the tokenizer's `bos` and `eos`: they are looked for in the tokenizer when a
    model is composed, and contents that spell one never become it.
    """

    @property
    def name(self) -> str: ...

    @property
    def stop(self) -> tuple[str, ...]:
        """Strings that end an answer; the end-of-sequence token always does."""

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> list[Piece]: ...


@dataclass(frozen=True)
class Template(metaclass=ByKeywords):
    """Turns introduced by a role name; each answer is ended by the end-of-sequence token.

    Rendered: `<bos>{system}{seps[0]}{user}: {question}{seps[0]}{assistant}: {answer}<eos>{seps[1]}{user}:
    ...`. The space before an answer belongs to the answer, because that is how tokenizers cut words: a
    generation prompt ends with the colon. An empty answer is the end-of-sequence token alone.

    Args:
        name: the registered name, saved with a model.
        system: the system prompt of a conversation that brings none; "" for none.
        roles: the names of user and assistant.
        seps: what follows the system prompt and every question, and what stands between an answer and the
            next turn.
        stop: strings that end an answer besides the end-of-sequence token.
        ends: tokens that end an answer besides, where a model states them; () = none but the tokenizer's own.
        stops: strings that end an answer besides, where a model states them.

    Raises:
        LmmError: a field that holds something else, or a system prompt with an image.
    """

    name: str
    system: str = ""
    roles: tuple[str, str] = ("USER", "ASSISTANT")
    seps: tuple[str, str] = (" ", "")
    stop: Annotated[tuple[str, ...], Filled] = ()
    ends: Annotated[tuple[str, ...], Filled] = ()
    stops: Annotated[tuple[str, ...], Filled] = ()

    def __post_init__(self) -> None:
        refuse_wrong_fields(self)

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> list[Piece]:
        """Render a conversation.

        Args:
            messages: see `split_system`.
            add_generation_prompt: end with the assistant's name, ready for its answer.

        Returns:
            Pieces; the answers and the end-of-sequence tokens after them are marked for training.

        Raises:
            LmmError: the conversation is malformed.
        """
        system, turns = split_system(messages, add_generation_prompt=add_generation_prompt)
        system = self.system if system is None else system
        pieces = [Piece("bos")]
        if system:
            pieces += [*content_pieces(system, "system"), Piece("text", self.seps[0], "system")]
        for index, turn in enumerate(turns):
            if turn["role"] == "user":
                pieces += self._question(turn["content"], first=index == 0)
            else:
                pieces += self._answer(turn["content"])
        return pieces

    def _question(self, content: str, *, first: bool) -> list[Piece]:
        """The user's turn up to and including the assistant's name."""
        user, assistant = self.roles
        return [
            Piece("text", f"{'' if first else self.seps[1]}{user}: ", "user"),
            *content_pieces(content, "user"),
            Piece("text", f"{self.seps[0]}{assistant}:", "assistant"),
        ]

    def _answer(self, content: str) -> list[Piece]:
        text = content_pieces(f" {content}", "assistant", train=True) if content else []
        return [*text, Piece("eos", role="assistant", train=True)]


@dataclass(frozen=True)
class CaptionTemplate(metaclass=ByKeywords):
    """Images, then their caption, and nothing else: LLaVA's first stage.

    Rendered: `<bos>{images}{caption}{end}`. The words of the user's message are dropped by design, only its
    images count. The caption is ended by a newline, which is learned; no end-of-sequence token is.

    Args:
        name: the registered name, saved with a model.
        end: what ends a caption.
        ends: tokens that end an answer besides, where a model states them; () = none but the tokenizer's own.
        stops: strings that end an answer besides, where a model states them.

    Raises:
        LmmError: nothing ends a caption, or a field holds something else.

    Source: `preprocess_plain`, llava/train/train.py at c121f04.
    """

    name: str
    end: str = "\n"
    ends: Annotated[tuple[str, ...], Filled] = ()
    stops: Annotated[tuple[str, ...], Filled] = ()

    def __post_init__(self) -> None:
        nothing = ["end is empty, so a model would never learn to stop: give the text that ends a caption"] if self.end == "" else []
        refuse_wrong_fields(self, more=nothing)

    @property
    def stop(self) -> tuple[str, ...]:
        """Strings that end an answer."""
        return (self.end,)

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> list[Piece]:
        """Render one user message with its images and one caption.

        Args:
            messages: one user message and, unless `add_generation_prompt`, one assistant message.
            add_generation_prompt: leave the caption to be generated.

        Returns:
            Pieces; the caption and its end are marked for training.

        Raises:
            LmmError: the conversation is malformed, has more turns, a system message, or no image.
        """
        system, turns = split_system(messages, add_generation_prompt=add_generation_prompt)
        if system is not None:
            raise LmmError(f"template {self.name!r} has no place for a system message: remove it")
        if len(turns) > 2:
            raise LmmError(
                f"template {self.name!r} takes one user message and its caption, found {len(turns)} turns: use a chat "
                "template such as 'vicuna_v1' for conversations"
            )
        images = [piece for piece in content_pieces(turns[0]["content"], "user") if piece.kind == "image"]
        if not images:
            raise LmmError(f"template {self.name!r} needs an image to caption: put {IMAGE_MARKER} in the user message")
        caption = [] if add_generation_prompt else self._caption(turns[1]["content"])
        return [Piece("bos"), *images, *caption]

    def _caption(self, content: str) -> list[Piece]:
        return [
            *content_pieces(content, "assistant", train=True),
            Piece("text", self.end, "assistant", train=True),
        ]


VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
"""The system prompt of Vicuna v1; where it says "user", v0 says "human"."""
