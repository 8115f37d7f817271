"""A conversation that remembers: each turn reads only what is new.

Motivation: a picture and the turns before it are most of a prompt; reading them again for every question costs more than the answer.
How it works: the whole conversation is rendered and tokenised for each question, as if it were new. The ids that the cache has read already
are its common prefix with the new ids; the cache is cut back to it, and the rest is read. So an answer is the one a fresh prompt
would get, also where the text of an earlier answer tokenises differently from how it was generated.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..chat import Message, escape_markers
from ..images.load import ImageSource
from ..images.pixels import join_pixels
from ..spec import LmmError
from .decode import Answer, decode, new_cache, read_prompts
from .options import Options
from .prompts import (
    Prompt,
    Question,
    as_images,
    question_ids,
    read_images,
    tell_of_questions_left_out,
    user_message,
)

if TYPE_CHECKING:
    from ..lmm import LMM

_NAME = "the conversation"


class Conversation:
    """Questions and answers about any number of pictures.

    Args:
        model: an ``LMM`` with a tokenizer.
        system: the system prompt; None = the template's own.

    Attributes:
        messages: of the turns that were answered.

    Raises:
        LmmError: the model has no tokenizer, or ``system`` is not a text.

    Example:
        ``chat = Conversation(model); chat.ask("What is it?", images="cat.jpg"); chat.ask("What colour is it?")``
    """

    def __init__(self, model: LMM, system: str | None = None) -> None:
        if system is not None and not isinstance(system, str):
            raise LmmError(f"system is a {type(system).__name__}, expected a text or None")
        self.model, self.system = model, system
        self._spec = model.input_spec
        self.reset()

    def reset(self) -> None:
        """Forget all turns and pictures."""
        self.messages: list[Message] = [] if self.system is None else [{"role": "system", "content": self.system}]
        self._images: list[ImageSource] = []
        self._pixels, self._image_rows = read_images([], self._spec, _NAME)
        self._cache = new_cache(self.model, 1)
        self._cached_ids: list[int] = []
        self._streaming: Answer | None = None

    def ask(self, text: str, images: Any = None, **options: Any) -> str:
        """Ask, and return the answer.

        Args:
            text: the question; without ``<image>`` in it, new images go in front.
            images: new images of this turn: one picture, or a list of them, see ``load_image``.
            **options: as for ``generate``.

        Raises:
            LmmError: as ``generate``; the conversation is then as it was before.
        """
        return "".join(self.stream(text, images, **options))

    def stream(self, text: str, images: Any = None, **options: Any) -> Iterator[str]:
        """Ask, and return the answer piece by piece, as ``generate_stream``.

        A turn whose answer isn't read to its end is forgotten.
        """
        settings = Options.of(options)
        new_images = as_images(images, _NAME)
        messages = [*self.messages, user_message(text, len(new_images), "the question")]
        question = Question(_NAME, messages, [*self._images, *new_images])
        tell_of_questions_left_out([question], self._spec.template)
        ids = question_ids(question, self._spec)
        new_pixels, new_rows = read_images(new_images, self._spec, _NAME)
        prompt = Prompt(
            _NAME,
            ids,
            join_pixels([self._pixels, new_pixels]),
            (*self._image_rows, *new_rows),
            tuple(self._spec.instructions(messages)),
        )
        logits_SV = self._read(prompt, settings)
        self._streaming = answer = Answer(self.model, settings)
        return self._answer(question, prompt, answer, decode(self.model, self._cache, logits_SV, [answer], settings))

    def _read(self, prompt: Prompt, options: Options) -> torch.Tensor:
        """Run what the cache hasn't read of the prompt; return the logits after it."""
        known, new = prompt.split(_common_prefix(self._cached_ids, prompt.ids[:-1]))
        # An unfinished turn may have left rows after the known ones, and its pictures are not ours: only answered turns count as read.
        self._cache.truncate(0, known.rows)
        self._cached_ids = known.ids
        self._streaming = None
        return read_prompts(self.model, self._cache, [new], options)

    def _answer(self, question: Question, prompt: Prompt, answer: Answer, generated: Iterator[tuple[int, str]]) -> Iterator[str]:
        """Pass the answer on piece by piece, and remember the turn at its end."""
        pieces: list[str] = []
        while True:
            if self._streaming is not answer:
                raise LmmError("this answer was given up when the next question was asked: read a stream to its end first")
            piece = next(generated, None)
            if piece is None:
                break
            pieces.append(piece[1])
            yield piece[1]
        self._cached_ids = [*prompt.ids, *answer.ids][: len(prompt.ids) + self._cache.lengths[0] - prompt.rows]
        # An answer can't hold a picture: rendered again, its marker would ask for one.
        spoken = escape_markers("".join(pieces))
        self.messages = [*question.messages, {"role": "assistant", "content": spoken}]
        self._images, self._pixels, self._image_rows = question.images, prompt.pixels, prompt.image_rows


def _common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """Return how many leading ids are the same."""
    return next((n for n, (a, b) in enumerate(zip(left, right)) if a != b), min(len(left), len(right)))
