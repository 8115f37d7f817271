"""Messages: what a conversation must look like before it is rendered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..spec import LmmError
from .pieces import IMAGE_MARKER, content_of_parts, escape_markers, split_markers

Message = Mapping[str, Any]
"""`{"role": "user" | "assistant" | "system", "content": "text with <image> markers"}`, in which `\\<image>` is text; or a list of parts as content,
`{"type": "text", "text": "..."}` and `{"type": "image"}`, whose texts are taken as they are."""

ROLES = ("user", "assistant", "system")
_ROLES_OF_OTHER_FORMATS = {"human": "user", "gpt": "assistant", "model": "assistant", "bot": "assistant"}


def split_system(messages: Sequence[Message], *, add_generation_prompt: bool) -> tuple[str | None, list[Message]]:
    """Check a conversation and take its system message off.

    Args:
        messages: an optional system message, then user and assistant in strict alternation, the user first.
        add_generation_prompt: whether the conversation waits for an answer (it must end with the user) or is
            complete (it must end with the assistant).

    Returns:
        The system prompt, `None` if there is no system message, and the turns.

    Raises:
        LmmError: the conversation is empty, a message is malformed, or the roles do not alternate.
    """
    messages = plain_messages(messages)
    system = messages[0]["content"] if messages and messages[0]["role"] == "system" else None
    turns = list(messages if system is None else messages[1:])
    if not turns:
        raise LmmError("the conversation has no turns, expected at least one user message")
    _check_alternation(turns, first_index=len(messages) - len(turns))
    last = turns[-1]["role"]
    if add_generation_prompt and last != "user":
        raise LmmError("the conversation ends with the assistant, so there is nothing to answer: end with a user message")
    if not add_generation_prompt and last != "assistant":
        raise LmmError(
            "the conversation ends with the user, expected an answer: add the assistant message, or render with "
            "add_generation_prompt=True to generate it"
        )
    return system, turns


def plain_messages(messages: Sequence[Message]) -> list[Message]:
    """Return messages whose contents are strings.

    Raises:
        LmmError: a message is malformed.
    """
    _check_messages(messages)
    return [
        message if isinstance(message["content"], str) else {**message, "content": content_of_parts(map(_said, message["content"]))}
        for message in messages
    ]


def _said(part: Mapping[str, Any]) -> str | None:
    return part["text"] if part["type"] == "text" else None


def _is_part(part: object) -> bool:
    if not isinstance(part, Mapping):
        return False
    return set(part) == {"type"} and part["type"] == "image" or part.get("type") == "text" and isinstance(part.get("text"), str)


def _check_messages(messages: object) -> None:
    """Refuse anything that is not a list of messages."""
    if isinstance(messages, str) or not isinstance(messages, Sequence):
        raise LmmError(f'messages is a {type(messages).__name__}, expected a list of {{"role": "user" | "assistant" | "system", "content": text}}')
    for index, message in enumerate(messages):
        _check_message(index, message)


def _check_message(index: int, message: object) -> None:
    """Refuse anything that is not a role and a text."""
    if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
        found = sorted(message) if isinstance(message, Mapping) else type(message).__name__
        raise LmmError(f'message {index} is {found}, expected a dict with the keys "role" and "content"')
    role, content = message["role"], message["content"]
    if role not in ROLES:
        meant = _ROLES_OF_OTHER_FORMATS.get(str(role).lower())
        hint = f": write {meant!r} instead" if meant else ""
        raise LmmError(f"message {index} has the role {role!r}, expected one of {', '.join(ROLES)}{hint}")
    if isinstance(content, list) and all(map(_is_part, content)):
        return
    if isinstance(content, list):
        wrong = next(part for part in content if not _is_part(part))
        raise LmmError(
            f'message {index} ({role}) has {wrong!r:.80} in its content, expected parts {{"type": "text", "text": ...}} and {{"type": "image"}}, '
            "each image given beside the messages"
        )
    if not isinstance(content, str):
        raise LmmError(
            f"message {index} ({role}) has a {type(content).__name__} as content, expected a string in which {IMAGE_MARKER} marks each image"
        )


def _check_alternation(turns: Sequence[Message], first_index: int) -> None:
    """User and assistant take turns, the user begins, a system message can only come first."""
    for offset, turn in enumerate(turns):
        expected = ROLES[offset % 2]
        found = turn["role"]
        if found == expected:
            continue
        index = first_index + offset
        if found == "system":
            raise LmmError(f"message {index} is a system message, expected it only as the first: move or remove it")
        if offset == 0:
            raise LmmError(f"message {index} is the assistant's, expected the user first: remove this leading answer or put the question before it")
        raise LmmError(
            f"messages {index - 1} and {index} are both the {found}'s, expected user and assistant in turn: join them or add the message between"
        )


def llava15_messages(messages: Sequence[Message]) -> list[dict[str, str]]:
    """Rewrite messages the way LLaVA-1.5 does before training: the image leads its turn.

    In every message that holds `<image>`, the markers are taken out, the rest is stripped of surrounding
    whitespace, and `<image>` on a line of its own goes in front. A message without an image is left as it is.
    LLaVA keeps one image of a message that has several; here all of them are kept, one per line.

    Args:
        messages: a conversation.

    Returns:
        A new list of messages.

    Raises:
        LmmError: a message is malformed.

    Source: `preprocess_multimodal`, llava/train/train.py at c121f04.

    Example:
        >>> llava15_messages([{"role": "user", "content": "What is this?\\n<image>"}])
        [{'role': 'user', 'content': '<image>\\nWhat is this?'}]
    """
    return [{**message, "content": _images_first(message["content"])} for message in plain_messages(messages)]


def _images_first(content: str) -> str:
    texts = split_markers(content)
    if len(texts) == 1:
        return content
    text = escape_markers("".join(texts).strip())
    return (f"{IMAGE_MARKER}\n" * (len(texts) - 1) + text).strip()
