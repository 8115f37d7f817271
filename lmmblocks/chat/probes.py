"""Conversations that show whether a chat template is what it was taken for."""

from __future__ import annotations

from collections.abc import Iterator

from .jinja import JinjaTemplate, Trims, Unfit
from .literals import compared_contents
from .marked import MarkedTemplate
from .messages import Message
from .pieces import written

SYSTEM = "Sentinel0system"
QUESTIONS = tuple(f"Sentinel{n}question" for n in range(1, 5))
ANSWERS = tuple(f"Sentinel{n}answer" for n in range(1, 5))

_ODD = (
    "", " ", "\n", " lead", "trail ", "\n\nlines\n\n", "two  spaces", "\ttab\r\n", "\u00a0\u3000", "猫 🙂 e\u0301", "{{ x }} {% y %} {# z #}",
    "<b>&amp;'\"\\</b>", "None", "[]", "user", "Assistant: x", "[INST] x [/INST]", "<think>\nx\n</think>\n\ny", "<tool_call>{}</tool_call>",
)  # fmt: skip
_EXCERPT = 60


def conversation(turns: int, system: str | None = None) -> list[Message]:
    """Return a finished conversation of words that occur nowhere else.

    Args:
        turns: how many questions and answers, at most 4.
        system: the system prompt.
    """
    messages: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    for question, answer in zip(QUESTIONS[:turns], ANSWERS):
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return messages


def refuse_differences(jinja: JinjaTemplate, template: MarkedTemplate, *, end: str = "", trimmed: bool = False) -> None:
    """Render every probe with both.

    Args:
        jinja: the chat template.
        template: what it was taken for.
        end: what the chat template writes where the template has the tokenizer's end token.
        trimmed: leave whitespace around contents out of the probes.

    Raises:
        Unfit: the first one that comes out differently, and in what way.
    """
    for messages, index in _probes(template, compared_contents(jinja.source)):
        if trimmed:
            messages = [{**message, "content": message["content"].strip()} for message in messages]
        for shown, prompt in ((messages, False), (messages[:-1], True)):
            ours = written(template.render(shown, add_generation_prompt=prompt), eos=end)
            found = jinja(shown, add_generation_prompt=prompt)
            if ours != found:
                raise _difference(jinja, messages, index, found, ours)


def _probes(template: MarkedTemplate, compared: list[str]) -> Iterator[tuple[list[Message], int | None]]:
    """Conversations, and the index of the message with odd contents, if any; `compared` may be special to the chat template."""
    systems = [None] if template.around_system is None else [None, "", SYSTEM]
    for system in systems:
        yield from ((conversation(turns, system), None) for turns in range(1, 5))
    base = conversation(3, systems[-1])
    for index in range(len(base)):
        for odd in dict.fromkeys((*_ODD, *template.tokens, *compared)):
            yield [*base[:index], {**base[index], "content": odd}, *base[index + 1 :]], index


def _difference(jinja: JinjaTemplate, messages: list[Message], index: int | None, found: str, ours: str) -> Unfit:
    """Say in what way a chat template is more than markup."""
    if index is not None:
        odd, role = messages[index]["content"], messages[index]["role"]
        if odd != odd.strip() and jinja(messages) == jinja(_with_content(messages, index, odd.strip())):
            return Trims(f"it trims the contents of the {role}'s messages")
        if "</think>" in odd:
            return Unfit(f"it takes reasoning out of the {role}'s messages")
        return Unfit(f"it writes {odd[:_EXCERPT]!r} of the {role} in a way of its own ({_excerpt(found, ours)})")
    return Unfit(f"conversations of {len(messages)} messages don't follow the markup of shorter ones ({_excerpt(found, ours)})")


def _with_content(messages: list[Message], index: int, content: str) -> list[Message]:
    return [*messages[:index], {**messages[index], "content": content}, *messages[index + 1 :]]


def _excerpt(found: str, ours: str) -> str:
    """Show the two texts from a little before where they part."""
    at = next((n for n, (a, b) in enumerate(zip(found, ours)) if a != b), min(len(found), len(ours)))
    start = max(0, at - 10)
    return f"{found[start : at + _EXCERPT]!r}, expected {ours[start : at + _EXCERPT]!r}"
