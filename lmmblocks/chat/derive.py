"""A template from a tokenizer's own chat template.

Motivation: a decoder should be talked to as it was taught, and its tokenizer says how, but as a program (Jinja) that gives one string. A string
has no pieces: what is learned would have to be found in it again, and contents that spell a special token would become it.

How it works: conversations of words that occur nowhere else are rendered, and what stands between the words is the markup of a
`MarkedTemplate`. Then conversations that try it in every way are rendered by both, and any difference is a refusal with its reason. Jinja
runs here only; what comes out is a plain value. See `probes.py` for the conversations.

Non-goals: chat templates that are more than markup, such as those with today's date, or those that take reasoning out of earlier
answers: a token of an answer would be learned that is gone from the next prompt.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

from ..spec import LmmError
from .built_in import AUTO, TEMPLATES
from .jinja import JinjaTemplate, Unfit, source_of
from .marked import BOS, EOS, MarkedTemplate, cut
from .messages import Message
from .pieces import written
from .probes import SYSTEM, conversation, refuse_differences

_DERIVED: WeakKeyDictionary[Any, tuple[str, int, MarkedTemplate]] = WeakKeyDictionary()


def from_tokenizer(tokenizer: Any, name: str = AUTO) -> MarkedTemplate:
    """Derive a template from a tokenizer's own chat template.

    For conversations without images it renders the text that `tokenizer.apply_chat_template` does, character by character. It
    needs the tokenizer no longer: it can be pickled, compared, saved as JSON, and varied with `dataclasses.replace`.

    Args:
        tokenizer: a transformers tokenizer with a chat template.
        name: what to call it.

    Returns:
        The template; answers and the tokens that end them are marked for training.

    Raises:
        LmmError: there is no chat template, or it is more than markup around the contents; the message says in what way.
    """
    key = source_of(tokenizer), len(tokenizer)
    cached = _DERIVED.get(tokenizer)
    if cached is None or cached[:2] != key:
        cached = _DERIVED[tokenizer] = (*key, _derive(JinjaTemplate(tokenizer)))
    return replace(cached[2], name=name)


def _derive(jinja: JinjaTemplate) -> MarkedTemplate:
    try:
        if jinja.depends_on_date(conversation(2)):
            raise Unfit("what it writes depends on today's date")
        template, _ = learn(jinja)
        refuse_differences(jinja, template)
    except Unfit as reason:
        tokenizer = jinja.tokenizer
        raise LmmError(
            f"the chat template of {type(tokenizer).__name__} {tokenizer.name_or_path!r} can't be taken apart into markup and contents: {reason}: "
            f"choose a template by name ({names_with_the_same_prompts(jinja) or ', '.join(TEMPLATES)}), or write a MarkedTemplate"
        ) from reason
    return template


def learn(jinja: JinjaTemplate, *, lend_end: bool = False) -> tuple[MarkedTemplate, str]:
    """Read the markup off conversations of known words.

    Args:
        jinja: the chat template.
        lend_end: where it writes no token after an answer, the answer ends with the tokenizer's own.

    Returns:
        The template, and the text that a lent end stands for; without one "".
    """
    whole, asked = conversation(3), conversation(1)[:1]
    opening, *between, closing = _around(jinja(whole), whole)
    to_answer = _the_same(between[0::2], "before answers")
    to_question = _the_same(between[1::2], "between an answer and the next question")
    prompt = _around(jinja(asked, add_generation_prompt=True), asked)
    _the_same([opening, prompt[0]], "before the first question")
    tokens = _tokens_in(jinja, [opening, *between, closing])
    lead = _lead(prompt[1], to_answer, tokens)
    ending, end = _ending(to_question, closing, tokens, lend_end)
    template = MarkedTemplate(
        AUTO,
        opening=opening,
        to_answer=prompt[1],
        ending=ending,
        to_question=to_question[len(end) :],
        close=closing[len(end) :],
        tokens=tokens,
        lead=lead,
    )
    stands_for = end if ending == EOS else ""
    return _with_system(jinja, template, [*between, closing], stands_for), stands_for


def _with_system(jinja: JinjaTemplate, template: MarkedTemplate, expected: Sequence[str], end: str) -> MarkedTemplate:
    """Add what stands around a system prompt, where one can be given."""
    messages = conversation(3, SYSTEM)
    try:
        text = jinja(messages)
    except Unfit:
        return template
    if SYSTEM not in text:
        return template
    before, after, *rest = _around(text, messages)
    if rest != list(expected):
        raise Unfit("a system prompt changes what stands around questions and answers")
    tokens = tuple(dict.fromkeys((*template.tokens, *_tokens_in(jinja, [before, after]))))
    template = replace(template, around_system=(before, after), tokens=tokens)
    without = written(template.render(conversation(1)), eos=end)
    return replace(template, empty_system=jinja(conversation(1, "")) != without)


def _around(text: str, messages: Sequence[Message]) -> list[str]:
    """Return what stands around the contents of messages, each of which has to occur once and in order."""
    literals = []
    for message in messages:
        word = message["content"]
        if text.count(word) != 1:
            raise Unfit(f"it writes a message of the {message['role']} {_times(text.count(word))} where its turn is")
        literal, _, text = text.partition(word)
        literals.append(literal)
    return [*literals, text]


def _times(count: int) -> str:
    return "not at all" if count == 0 else f"{count} times"


def _the_same(literals: Sequence[str], where: str) -> str:
    others = [literal for literal in literals if literal != literals[0]]
    if others:
        raise Unfit(f"{where} it writes once {literals[0]!r} and once {others[0]!r}")
    return literals[0]


def _lead(prompt: str, to_answer: str, tokens: tuple[str, ...]) -> str:
    """Return what the model has to write between the generation prompt and its answer: text, and no tokens."""
    lead = to_answer.removeprefix(prompt)
    if not to_answer.startswith(prompt) or any(kind == "special" for kind, _ in cut(lead, tokens)):
        raise Unfit(f"a generation prompt ends with {prompt!r}, but in a finished conversation {to_answer!r} stands before an answer")
    return lead


def _ending(to_question: str, closing: str, tokens: tuple[str, ...], lend: bool) -> tuple[str, str]:
    """Return what ends an answer, and the text that it is written as: the beginning of both, up to the token that does."""
    common = os.path.commonprefix([to_question, closing])
    missing = re.match(r"\s*<[^<>\s]+>\s*", common)  # written like a token, and none of the tokenizer's
    if lend and not any(kind == "special" for kind, _ in cut(common, tokens)) and (missing or not common.strip()):
        return EOS, missing[0] if missing else common
    for kind, text in cut(to_question, tokens):
        if kind == "special":
            ending = to_question[: to_question.index(text) + len(text)]
            break
    else:
        ending = common
    if not ending.strip() or not closing.startswith(ending):
        raise Unfit(f"no token ends every answer: {to_question!r} stands after the earlier ones and {closing!r} after the last")
    return ending, ending


def _tokens_in(jinja: JinjaTemplate, literals: Sequence[str]) -> tuple[str, ...]:
    """Return the tokens of the tokenizer that markup is written with."""
    taken = [mark for mark in (BOS, EOS) if any(mark in literal for literal in literals)]
    if taken:
        raise Unfit(f"its markup holds {taken[0]!r}, which stands for a token of the tokenizer here")
    added = {token.content for token in jinja.tokenizer.added_tokens_decoder.values() if token.content.strip()}
    longest_first = tuple(sorted(added, key=lambda token: (-len(token), token)))
    return tuple(dict.fromkeys(text for literal in literals for kind, text in cut(literal, longest_first) if kind == "special"))


def names_with_the_same_prompts(jinja: JinjaTemplate) -> str:
    """Return the library's templates that introduce an answer to a plain question in the same way, for a message."""
    spelled = {"bos": jinja.tokenizer.bos_token or "", "eos": jinja.tokenizer.eos_token or ""}
    messages = conversation(1)[:1]
    same = []
    for name, template in TEMPLATES.items():
        try:
            found = written(template.render(messages, add_generation_prompt=True), **spelled)
            if found == jinja(messages, add_generation_prompt=True):
                same.append(name)
        except (LmmError, Unfit):  # a template for captions, or a refusal that was reported already
            continue
    return f"the prompts of {' and '.join(map(repr, same))} are the same" if same else ""
