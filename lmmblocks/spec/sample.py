"""One conversation before tokenising, and what it is made of: lists, whatever a caller has at hand for one picture or turn."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .errors import LmmError
from .keywords import ByKeywords

_TURNS = '[{"role": "user", "content": "<image>\\nWhat is it?"}, {"role": "assistant", "content": "A cat"}]'
_SAMPLE = "lmmblocks.Sample(messages=[...], images=[...])"


@dataclass(frozen=True, slots=True)
class Sample(metaclass=ByKeywords):
    """One conversation before tokenising.

    Attributes:
        messages: ``{"role": "user" | "assistant" | "system", "content": str}``; ``<image>`` marks an image.
        images: paths, PIL images, bytes of image files or arrays, in the order of their markers; a single one may be given without a list.
        id: names the sample in messages about it.

    Raises:
        LmmError: messages or images of another kind, such as None, or a generator, which could be read only once.

    >>> Sample([{"role": "user", "content": "<image>?"}], "cat.jpg").images
    ['cat.jpg']
    """

    messages: list[dict[str, str]]
    images: list[Any] = field(default_factory=list)
    id: str | int | None = None

    def __post_init__(self) -> None:
        name = "a sample" if self.id is None else f"sample {self.id!r}"
        object.__setattr__(self, "messages", _messages(self.messages, name))
        object.__setattr__(self, "images", image_list(self.images, name))


def image_list(images: Any, name: str) -> list[Any]:
    """Return images as a list; one picture is a list of one.

    Args:
        images: a list or tuple, or one path, PIL image, image file's bytes, file object or array.
        name: whose images they are, for the message.

    Raises:
        LmmError: None, a generator, or anything else that is neither a list nor a picture.
    """
    if isinstance(images, (str, os.PathLike, bytes, bytearray, memoryview)) or _is_picture(images):
        return [images]
    if isinstance(images, Sequence):
        return list(images)
    if images is None:
        raise LmmError(f"{name} has images=None: give [] for no image")
    if hasattr(images, "shape"):
        raise LmmError(f"{name} has an array of shape {tuple(images.shape)} as images: give list(array), one picture (height, width, channels) each")
    if hasattr(images, "__next__"):
        raise LmmError(f"{name} has a {type(images).__name__} as images, which can be read only once: give list(...) of it")
    raise LmmError(f"{name} has {_kind(images)} as images: give a list of pictures, such as ['cat.jpg']")


def as_sample(found: Any, where: str) -> Sample:
    """Return what was given as a sample; what has messages, images and an id is one, whatever its class.

    Args:
        found: one of the samples.
        where: its place, such as ``"samples[3]"``.

    Raises:
        LmmError: it is none; the message says how to make one.
    """
    if isinstance(found, Sample):
        return found
    if all(hasattr(found, name) for name in ("messages", "images", "id")):
        return Sample(found.messages, found.images, found.id)
    expected = f"expected {_SAMPLE}"
    if isinstance(found, Mapping):
        if "conversations" in found:
            expected += ": lmmblocks.data.records.load_records makes them of LLaVA's records"
        elif "messages" in found:
            expected += ": lmmblocks.Sample(record['messages'], record.get('images', []))"
    raise LmmError(f"{where} is {_kind(found)}, {expected}")


def _is_picture(value: Any) -> bool:
    """Whether a value is one PIL image, file object, or array of two or three axes."""
    if hasattr(value, "shape"):
        return len(value.shape) in (2, 3)
    return (hasattr(value, "convert") and hasattr(value, "mode")) or (hasattr(value, "read") and hasattr(value, "seek"))


def _messages(messages: Any, name: str) -> list[Any]:
    if isinstance(messages, Sequence) and not isinstance(messages, (str, bytes)):
        return list(messages)
    one = "; one message is given as [message]" if isinstance(messages, Mapping) else ""
    once = f"; a {type(messages).__name__} can be read only once: give list(...) of it" if hasattr(messages, "__next__") else ""
    raise LmmError(f"{name} has {_kind(messages)} as messages, expected a list such as {_TURNS}{one or once}")


def _kind(value: Any) -> str:
    return f"{type(value).__name__} {value!r:.60}" if isinstance(value, (str, int, float)) else type(value).__name__
