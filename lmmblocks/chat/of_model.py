"""A template from the chat template that comes with a whole model.

Motivation: the folder of a model says how it is talked to, in a program of its own (Jinja) that is meant for a processor: contents may be lists of
parts, pictures are parts, and what it writes is tokenised as a document, with the tokens that the tokenizer puts around one.

How it works: the program is taken apart as a tokenizer's own is (``derive.py``). Where one of the library's templates gives the same ids for
whatever is said, that one is taken, with or without its system prompt. What differs in no conversation that matters is told and not refused:

- whitespace around contents, which many of these programs take off and the library never does;
- the end of earlier answers, which LLaVA's write as a blank: the token that the model was trained to end them with is the tokenizer's;
- a blank at the end of the line before earlier answers, which LLaVA-OneVision's writes there and not before the one that is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..spec import LmmError
from .answers import answer_ends
from .built_in import TEMPLATES
from .derive import learn, names_with_the_same_prompts
from .jinja import JinjaTemplate, Trims, Unfit
from .lookup import missing_tokens
from .marked import BOS, MarkedTemplate
from .messages import Message
from .pieces import IMAGE_MARKER, written
from .probes import QUESTIONS, SYSTEM, conversation, refuse_differences
from .templates import ChatTemplate
from .tokenize import encode_chat


@dataclass(frozen=True)
class OfModel:
    """What a chat template was taken for.

    Attributes:
        template: one of the library's, or a derived one.
        notes: in what way the chat template differs from it, in words.
    """

    template: ChatTemplate
    notes: tuple[str, ...] = ()


def of_model(source: str, tokenizer: Any, *, name: str, known: Any = None, image_token: str = IMAGE_MARKER, mode: Any = "pieces") -> OfModel:
    """Return the template that a model's chat template is.

    Args:
        source: the Jinja program.
        tokenizer: the model's.
        name: where the program was found; a derived template is called so.
        known: a template to compare with before those of the library.
        image_token: what the program writes in the place of an image.
        mode: how the model's conversations are tokenised, see `encode_chat`.

    Raises:
        LmmError: it is more than markup around the contents; the message says in what way.
    """
    jinja = _that_takes_contents(source, tokenizer)
    try:
        template, notes = _taken_apart(jinja, name, image_token)
    except Unfit as reason:
        same = names_with_the_same_prompts(jinja)
        raise LmmError(
            f"the chat template in {name} can't be taken apart into markup and contents: {reason}: choose a template by name "
            f"({same or ', '.join(TEMPLATES)}) with load(..., template=...)"
        ) from reason
    template = _as_document(template, tokenizer)
    for candidate in _candidates(known):
        if not missing_tokens(candidate, tokenizer) and _same(template, candidate, tokenizer, mode):
            bare = candidate.name in TEMPLATES and candidate != TEMPLATES[candidate.name]
            return OfModel(candidate, ("no system prompt of its own", *notes) if bare else notes)
    return OfModel(template, notes)


def _that_takes_contents(source: str, tokenizer: Any) -> JinjaTemplate:
    """Return the program with contents as it wants them: strings, else lists of parts."""
    for parts in (False, True):
        jinja = JinjaTemplate(tokenizer, source, parts=parts)
        try:
            text = jinja(conversation(1)[:1])
        except Unfit:
            continue
        if text.count(QUESTIONS[0]) == 1:
            return jinja
    return JinjaTemplate(tokenizer, source)  # says what is wrong with it


def _taken_apart(jinja: JinjaTemplate, name: str, image_token: str) -> tuple[MarkedTemplate, tuple[str, ...]]:
    if jinja.depends_on_date(conversation(2)):
        raise Unfit("what it writes depends on today's date")
    jinja, notes = _with_one_prompt(jinja)
    template, end = learn(jinja, lend_end=True)
    if template.ending == "{eos}":
        notes.append(f"earlier answers end with the tokenizer's own token, where it writes {end!r}")
    try:
        refuse_differences(jinja, template, end=end)
    except Trims:
        refuse_differences(jinja, template, end=end, trimmed=True)
        notes.append("whitespace around contents is kept, which it takes off")
    template, told = _with_images(jinja, replace(template, name=name), image_token)
    return template, (*notes, *told)


class _OnePrompt(JinjaTemplate):
    """A program that introduces earlier answers as it does the one that is asked for."""

    def __init__(self, jinja: JinjaTemplate, earlier: str, asked: str) -> None:
        super().__init__(jinja.tokenizer, jinja.source, parts=jinja.parts)
        self._earlier, self._asked = earlier, asked

    def __call__(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = False) -> str:
        return super().__call__(messages, add_generation_prompt=add_generation_prompt).replace(self._earlier, self._asked)


def _with_one_prompt(jinja: JinjaTemplate) -> tuple[JinjaTemplate, list[str]]:
    """Take off blanks at the ends of lines before earlier answers, where a generation prompt is the same without them."""
    question, answer = conversation(1)
    earlier = jinja([question, answer]).partition(question["content"])[2].partition(answer["content"])[0]
    asked = jinja([question], add_generation_prompt=True).partition(question["content"])[2]
    if earlier == asked or earlier.replace(" \n", "\n") != asked:
        return jinja, []
    told = f"earlier answers are introduced by {asked!r}, as the one that is asked for is, where it writes {earlier!r}"
    return _OnePrompt(jinja, earlier, asked), [told]


def _with_images(jinja: JinjaTemplate, template: MarkedTemplate, image_token: str) -> tuple[MarkedTemplate, tuple[str, ...]]:
    """Add what stands around an image, where the program takes images as parts."""
    question = QUESTIONS[0]
    parts = [{"type": "image"}, {"type": "text", "text": question}]
    try:
        text = jinja([{"role": "user", "content": parts}], add_generation_prompt=True)
    except Unfit:
        text = ""
    if text.count(image_token) != 1 or text.count(question) != 1:
        if jinja.parts:
            raise Unfit(f"it writes {_times(text.count(image_token))} {image_token!r} where a picture is")
        return template, ()  # contents are strings, in which a picture is marked as it is here
    prompt = [{"role": "user", "content": question}]
    opening, _, _ = written(template.render(prompt, add_generation_prompt=True)).partition(question)
    head, told = text.partition(question)[0], list[str]()
    if not head.startswith(opening):
        template, opening = _without_breaks(template), opening.removesuffix("\n")
        told.append("a question without a picture begins with its words, and not with the line break that stands after pictures")
        if not head.startswith(opening):
            raise Unfit(f"a picture changes what stands before a question: {head!r}, without one {opening!r}")
    before, _, after = head.removeprefix(opening).partition(image_token)
    if not after.endswith("\n"):
        told.append("a question follows its picture in the same line there: ask it as '<image>question'")
    return replace(template, image=(before, after.removesuffix("\n"))), tuple(told)


def _without_breaks(template: MarkedTemplate) -> MarkedTemplate:
    """Take off the line break that a program writes before every text, so that one stands between a picture and its question."""
    around = template.around_system
    markup = [template.opening, template.to_question, *(around or ())]
    if not all(text.endswith("\n") for text in markup):
        raise Unfit("a picture changes what stands before a question")
    opening, to_question, *system = (text.removesuffix("\n") for text in markup)
    lead = template.lead.removesuffix("\n")
    return replace(template, opening=opening, to_question=to_question, lead=lead, around_system=(system[0], system[1]) if system else None)


def _times(count: int) -> str:
    return "no" if count == 0 else str(count)


def _as_document(template: MarkedTemplate, tokenizer: Any) -> MarkedTemplate:
    """Put the tokenizer's first token in front, where it does so with documents and the markup doesn't begin with it."""
    bos = tokenizer.bos_token
    ids = tokenizer("x").input_ids
    if bos is None or not ids or ids[0] != tokenizer.bos_token_id or template.opening.startswith((bos, BOS)):
        return template
    around = template.around_system
    return replace(template, opening=BOS + template.opening, around_system=None if around is None else (BOS + around[0], around[1]))


def _candidates(known: Any) -> Iterator[Any]:
    """The library's templates, then those with a system prompt of their own without it; the known one leads both."""
    library = [*(() if known is None else (known,)), *TEMPLATES.values()]
    yield from library
    for template in library:
        if getattr(template, "system", ""):
            yield replace(template, system="")


def _same(one: Any, other: Any, tokenizer: Any, mode: Any) -> bool:
    """Whether both give the same ids and labels in conversations of every kind, and end answers with the same."""
    try:
        return answer_ends(one, tokenizer) == answer_ends(other, tokenizer) and all(
            encode_chat(messages, one, tokenizer, mode=mode, add_generation_prompt=prompt)
            == encode_chat(messages, other, tokenizer, mode=mode, add_generation_prompt=prompt)
            for messages, prompt in _conversations()
        )
    except LmmError:  # a template for captions or single prompts, or without a place for a system prompt
        return False


def _conversations() -> Iterator[tuple[list[Message], bool]]:
    for system in (None, SYSTEM):
        for turns in (1, 2, 3):
            messages = conversation(turns, system)
            asks = {QUESTIONS[0]: f"{IMAGE_MARKER}\n{QUESTIONS[0]}"}
            shown: list[Message] = [{**message, "content": asks.get(message["content"], message["content"])} for message in messages]
            yield from ((messages, False), (messages[:-1], True), (shown, False), (shown[:-1], True))
