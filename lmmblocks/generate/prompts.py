"""What a caller asks, made ready to be read: messages to token ids, pictures to pixels."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..chat import IMAGE_MARKER, CaptionTemplate, Message, count_markers, encode_chat
from ..chat.pieces import marker_in_a_sentence
from ..compose.input_spec import InputSpec
from ..images.load import ImageSource
from ..spec import IMAGE_TOKEN, LmmError, image_list

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Question:
    """One conversation that waits for an answer.

    Attributes:
        name: what to call it in messages.
        messages: ends with the user's.
        images: one for each ``<image>``, in order.
    """

    name: str
    messages: list[Message]
    images: list[ImageSource]


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the decoder reads of one conversation.

    Attributes:
        name: what to call it in messages.
        ids: token ids; ``IMAGE_TOKEN`` stands for one image each.
        pixels: of its images, as the encoder's preprocessing makes them.
        image_rows: decoder rows of each image.
        instructions: ids of what is asked about each image, where the projector reads it; else empty.
    """

    name: str
    ids: list[int]
    pixels: Tensor
    image_rows: tuple[int, ...]
    instructions: tuple[list[int], ...] = ()

    @property
    def rows(self) -> int:
        """Number of decoder rows."""
        return len(self.ids) - len(self.image_rows) + sum(self.image_rows)

    def split(self, ids: int) -> tuple[Prompt, Prompt]:
        """Return the first ``ids`` token ids and the others, each with its images."""
        images = self.ids[:ids].count(IMAGE_TOKEN)
        before = Prompt(self.name, self.ids[:ids], self.pixels[:images], self.image_rows[:images], self.instructions[:images])
        behind = Prompt(self.name, self.ids[ids:], self.pixels[images:], self.image_rows[images:], self.instructions[images:])
        return before, behind


def as_questions(prompts: Any, images: Any) -> tuple[list[Question], bool]:
    """Sort out what the caller passed.

    Args:
        prompts: a text or a list of messages, or a list of these.
        images: for one prompt, an image or a list of images; for a list of prompts, a list with one such entry (or None) for each.

    Returns:
        The questions, and whether it was one prompt and not a list.

    Raises:
        LmmError: something else was passed, a text is empty, or there is not one entry of ``images`` per prompt.
    """
    if isinstance(prompts, str) or _is_conversation(prompts):
        return [_question(prompts, images, "the prompt")], True
    if not isinstance(prompts, (list, tuple)):
        raise LmmError(f"prompts is a {type(prompts).__name__}, expected a text, a list of messages, or a list of these")
    each = [None] * len(prompts) if images is None else images
    if not isinstance(each, (list, tuple)):
        raise LmmError(f"images is one picture for a list of {len(prompts)} prompts: give a list with one entry per prompt")
    if len(each) != len(prompts):
        raise LmmError(f"found {len(prompts)} prompts and {len(each)} entries of images: give one per prompt, None for no image")
    return [_question(prompt, own, f"prompt {index}") for index, (prompt, own) in enumerate(zip(prompts, each))], False


def user_message(text: Any, images: int, name: str = "the prompt") -> Message:
    """Return the user's turn for a text.

    Args:
        text: the question. Without ``<image>`` in it, its images go in front, each on a line of its own. ``\\<image>`` is text.
        images: how many images it comes with.
        name: what to call it in messages.

    Raises:
        LmmError: not a text, or an empty one without an image.

    >>> user_message("What is this?", 1)
    {'role': 'user', 'content': '<image>\\nWhat is this?'}
    """
    if not isinstance(text, str):
        raise LmmError(f"{name} is a {type(text).__name__}, expected a text")
    if not text.strip() and not images:
        raise LmmError(f"{name} is empty: write a question")
    if count_markers(text):
        _tell_of_a_marker_in_a_sentence(text, images, name)
        return {"role": "user", "content": text}
    return {"role": "user", "content": f"{IMAGE_MARKER}\n" * images + text}


def _tell_of_a_marker_in_a_sentence(text: str, images: int, name: str) -> None:
    """Say that the only marker of a question was taken for the place of its only picture, where it may have been meant as a word."""
    if images == 1 and (around := marker_in_a_sentence(text)) is not None:
        warnings.warn(
            f"{name} has {IMAGE_MARKER} inside a sentence, {around[0][-30:]!r} {IMAGE_MARKER} {around[1][:30]!r}: taken for the place of the "
            f"picture; write \\{IMAGE_MARKER} (lmmblocks.escape_markers) for the word, and the picture goes in front",
            stacklevel=6,
        )


def tell_of_questions_left_out(questions: Sequence[Question], template: Any) -> None:
    """Say that the model isn't shown the words of a question, where its template is one of captions."""
    if not isinstance(template, CaptionTemplate):
        return
    for question in questions:
        asked = question.messages[-1]["content"]
        if isinstance(asked, str) and asked.replace(IMAGE_MARKER, "").strip():
            warnings.warn(
                f"template {template.name!r} is for captions and leaves the words of {question.name} out: the model sees the pictures alone. Ask in "
                f"a chat template that it was trained with, as load(..., template='vicuna_v1') or --template vicuna_v1",
                stacklevel=5,
            )
            return


def as_images(images: Any, name: str = "the prompt") -> list[ImageSource]:
    """Return the images of one prompt as a list; None is none, and a single picture is a list of one.

    Raises:
        LmmError: neither a picture nor a list.
    """
    return [] if images is None else image_list(images, name)


def read_images(images: Sequence[ImageSource], spec: InputSpec, name: str) -> tuple[Tensor, tuple[int, ...]]:
    """Return the pixels of images and the decoder rows that each becomes.

    Raises:
        ImageError: an image that can't be used.
        LmmError: what is no image; the message begins with ``name``.
    """
    try:
        pixels, grids = spec.preprocess.batch(images)
    except LmmError as error:
        raise error.at(name) from error
    return pixels, tuple(spec.image_rows(grid) for grid in grids)


def question_ids(question: Question, spec: InputSpec) -> list[int]:
    """Return the token ids of a conversation up to where the answer begins.

    Raises:
        LmmError: the conversation is malformed, or has not one ``<image>`` per image.
    """
    try:
        ids = encode_chat(
            question.messages,
            spec.template,
            spec.tokenizer,
            mode=spec.tokenize_mode,
            add_generation_prompt=True,
        ).ids
    except LmmError as error:
        raise LmmError(f"{question.name}: {error}") from error
    marks = ids.count(IMAGE_TOKEN)
    if marks != len(question.images):
        raise LmmError(
            f"{question.name} has {marks} {IMAGE_MARKER} in its text and {len(question.images)} images: write one {IMAGE_MARKER} per "
            f"image, or none in a plain text, which puts its images in front"
        )
    return ids


def as_prompt(question: Question, spec: InputSpec) -> Prompt:
    """Tokenise a question and read its images."""
    ids = question_ids(question, spec)
    return Prompt(question.name, ids, *read_images(question.images, spec, question.name), tuple(spec.instructions(question.messages)))


def _is_conversation(prompts: Any) -> bool:
    """Whether a list is one conversation; an empty list is no prompts."""
    return isinstance(prompts, (list, tuple)) and bool(prompts) and all(isinstance(entry, Mapping) for entry in prompts)


def _question(prompt: Any, images: Any, name: str) -> Question:
    pictures = as_images(images, name)
    if isinstance(prompt, str):
        return Question(name, [user_message(prompt, len(pictures), name)], pictures)
    if not _is_conversation(prompt):
        raise LmmError(f"{name} is {prompt!r:.60}, expected a text or a list of messages")
    return Question(name, list(prompt), pictures)
