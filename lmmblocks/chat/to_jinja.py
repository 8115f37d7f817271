"""A template as a chat template of transformers: a Jinja program that renders one string, of which the tokenizer makes the ids we train with.

Motivation: transformers, vLLM and others know no templates but these; a model whose folder has none, or that of the tokenizer it began with, is
talked to in another way than it was trained.

How it works: `outline_of` tells a template's markup apart; here it is written around the contents of messages, which may be strings with
`<image>` in them or lists of parts. What the model says stands in `{% generation %}`, from which `return_assistant_tokens_mask` makes our
labels. Every conversation that is refused here is refused there. At last conversations are rendered both ways and the ids compared: a program
that would give others is not handed out.

Blanks: here each text is encoded apart from the tokens around it, and gets the blank in front that some tokenizers put there; there the
tokenizer sees the whole string. `Blanks` finds out where it would do otherwise, and the program writes that blank itself.

Limits, none of which a string can express: contents that spell a special token become it, so the word `<image>`, escaped or in a text of a list,
is refused; whitespace that begins an answer is joined to the
markup in front by some vocabularies, and swallowed by tokens such as Phi-3's `<|assistant|>`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..spec import LmmError
from ..spec.words import Mode
from .jinja_note import note, noted
from .messages import Message
from .outline import Fixed, Outline, Single, outline_of
from .pieces import IMAGE_MARKER
from .probes import SYSTEM, conversation
from .templates import ChatTemplate
from .text_encoder import text_encoder
from .tokenize import encode_chat

_CONTENT = """\
{%- set the_word = "a text holds the word <image>, which in a string is an image: write it in another way" -%}
{%- set content -%}
{%- if message.content is string -%}
{%- for text in message.content.split("<image>") -%}
{%- set bare = text if loop.last else text.rstrip("\\\\") -%}
{%- set backslashes = text | length - bare | length -%}
{%- if backslashes % 2 -%}{{- raise_exception(the_word) -}}{%- endif -%}
{{- bare ~ "\\\\" * (backslashes // 2) -}}{%- if not loop.last -%}{{- "<image>" -}}{%- endif -%}
{%- endfor -%}
{%- else -%}
{%- for part in message.content -%}
{%- if not loop.first and (part.type == "image" or loop.previtem.type == "image") -%}{{- "\\n" -}}{%- endif -%}
{%- if part.type == "image" -%}{{- "<image>" -}}
{%- elif part.type == "text" -%}{{- part.text -}}
{%- else -%}{{- raise_exception("content of type " ~ part.type ~ ": expected text or image") -}}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endset -%}
{%- if message.content is not string and content.count("<image>") != message.content | selectattr("type", "equalto", "image") | list | length -%}
{{- raise_exception(the_word) -}}
{%- endif -%}
"""
"""A message as one string in which every `<image>` is an image: those of a list stand on lines of their own."""

_WITHOUT_IMAGES = """\
{%- set said = content.replace("<image>", "") | trim -%}
{%- if "<image>" in said -%}{{- raise_exception(the_word) -}}{%- endif -%}
"""
"""The words of a message; those that were around an image could make one together."""

_IMAGES_FIRST = f"""\
{{%- if "<image>" in content -%}}
{_WITHOUT_IMAGES}
{{%- set content = (("<image>\\n" * content.count("<image>")) ~ said) | trim -%}}
{{%- endif -%}}
"""
"""What `llava15_messages` does."""

_TURNS = "the conversation must be an optional system message, then user and assistant in turn"
_SWALLOWED = "this template can't write an answer to no question: the tokenizer's begin token swallows the blank before it"
_NO_ANSWER = "the conversation ends with the user: pass add_generation_prompt=True, or add the answer"
_NOTHING_TO_ANSWER = "the conversation ends with the assistant: there is nothing to answer, add a question or leave add_generation_prompt out"


@dataclass(frozen=True)
class Blanks:
    """The blanks that a tokenizer puts before text by itself, against those that we train with.

    Attributes:
        always: kinds of pieces after which our text has a blank that the tokenizer doesn't write inside a string.
        doubled: kinds of pieces after which the tokenizer leaves its blank out when the text begins with one, and we don't.
    """

    always: tuple[str, ...] = ()
    doubled: tuple[str, ...] = ()

    @classmethod
    def of(cls, tokenizer: Any, mode: Mode) -> Blanks:
        """Find out what a tokenizer does."""
        encoder = text_encoder(tokenizer)
        if encoder.prefix == "never":
            return cls()
        every = ("start", "bos", "eos", "special", "image")
        doubles = tuple(tokenizer(" x", add_special_tokens=False).input_ids) != encoder.encode("  x")
        if encoder.prefix == "every":
            return cls(doubled=every if doubles else ())
        return cls(always=("bos", "image") if mode == "llava15" else ("bos",), doubled=("start",) if doubles else ())


def to_jinja(template: ChatTemplate, tokenizer: Any, *, mode: Mode = "pieces", images_apart: bool = False) -> str:
    """Return a template as the source of a chat template.

    Args:
        template: one of the library's classes.
        tokenizer: the one that will lie beside it; what its tokens are called is written into the program.
        mode: how conversations are tokenised, see `encode_chat`.
        images_apart: the processor puts images and `bos` before the prompt itself, as `InstructBlipProcessor` does.

    Raises:
        LmmError: what it renders can't be said in a string, or the tokenizer makes other ids of the string; the message says why.
    """
    outline = outline_of(template)
    if outline is None:
        raise _unwritable(template, f"its class {type(template).__name__} may do anything: make it a MarkedTemplate")
    if images_apart and not (isinstance(outline, Single) and outline.images_first):
        raise _unwritable(template, "the processor puts images before the whole prompt, and the template writes something before them")
    writer = _Writer(tokenizer, Blanks.of(tokenizer, mode), mode)
    body = writer.turns(template.name, outline) if isinstance(outline, Outline) else writer.single(template.name, outline, images_apart)
    source = note(template, mode) + writer.beginning() + body
    if not images_apart:
        _refuse_other_ids(source, template, tokenizer, mode)
    return source


def from_jinja(source: str, tokenizer: Any) -> tuple[ChatTemplate, Mode] | None:
    """Return the template and the mode that a chat template was written from.

    Args:
        source: the program.
        tokenizer: the one that lies beside it.

    Returns:
        What `to_jinja` makes just this program of; None where it is another's, or was changed since.
    """
    found = noted(source)
    if found is None:
        return None
    for images_apart in (False, True):
        try:
            if to_jinja(found[0], tokenizer, mode=found[1], images_apart=images_apart).strip() == source.strip():
                return found
        except LmmError:
            continue
    return None


class _Writer:
    """Writes the parts of a program for one tokenizer."""

    def __init__(self, tokenizer: Any, blanks: Blanks, mode: Mode) -> None:
        self._spelled = {"bos": tokenizer.bos_token or "", "eos": tokenizer.eos_token or "", "image": IMAGE_MARKER}
        self._blanks = blanks
        self._tracks = bool(blanks.always or blanks.doubled)
        self._mode = mode
        self._bos_swallows = tokenizer.bos_token_id in text_encoder(tokenizer).swallowing

    def beginning(self) -> str:
        """Variables, and the macros that write a text and a token where blanks depend on what stood before."""
        if not self._tracks:
            return "{%- set ns = namespace(turns=0) -%}\n"
        tests = []
        if self._blanks.always:
            tests.append(f"ns.after in {_literal(self._blanks.always)}")
        if self._blanks.doubled:
            tests.append(f'(ns.after in {_literal(self._blanks.doubled)} and text[0] == " ")')
        return (
            '{%- set ns = namespace(turns=0, after="start") -%}\n'
            "{%- macro say(text) -%}{%- if text -%}"
            f'{{%- if {" or ".join(tests)} -%}}{{{{- " " -}}}}{{%- endif -%}}'
            '{{- text -}}{%- set ns.after = "text" -%}{%- endif -%}{%- endmacro -%}\n'
            "{%- macro put(token, kind) -%}{{- token -}}{%- set ns.after = kind -%}{%- endmacro -%}\n"
        )

    def turns(self, name: str, outline: Outline) -> str:
        """The program of turns between markup."""
        before, after = outline.around_system or ((), ())
        default = self.fixed(before) + self.fixed((("text", outline.system),)) + self.fixed(after) if outline.system else self.fixed(outline.opening)
        said = self.fixed(before) + self.content(outline) + self.fixed(after)
        if outline.around_system is None:
            said = _refuse(f"template {name} has no place for a system message: put it into the first question")
        if not outline.empty_system:
            said = f'{{%- if content != "" -%}}\n{said}{{%- else -%}}\n{self.fixed(outline.opening)}{{%- endif -%}}\n'
        lead = self.fixed(outline.lead) if outline.lead_of_nothing else self._if_content(self.fixed(outline.lead))
        to_question = self.fixed(outline.to_question)
        return (
            f'{{%- if not messages or messages[0].role != "system" -%}}\n{default}{{%- endif -%}}\n'
            "{%- for message in messages -%}\n"
            + self._message()
            + f'{{%- if loop.first and message.role == "system" -%}}\n{said}'
            + '{%- elif message.role == "user" and ns.turns % 2 == 0 -%}\n'
            + (f"{{%- if ns.turns -%}}\n{to_question}{{%- endif -%}}\n" if to_question else "")
            + self.content(outline)
            + self.fixed(outline.to_answer)
            + "{%- set ns.turns = ns.turns + 1 -%}\n"
            + self._answer(lead + self.content(outline) + self.fixed(outline.ending))
            + self._end(self.fixed(outline.close))
        )

    def single(self, name: str, outline: Single, images_apart: bool) -> str:
        """The program of one question and its answer."""
        image = "" if images_apart else f'{{%- for _ in range(content.count("<image>")) -%}}\n{self.fixed((("image", ""),))}{{%- endfor -%}}\n'
        bos = "" if images_apart else self.fixed((("bos", ""),))
        none = f'{{%- if "<image>" not in content -%}}\n{_refuse(f"template {name} needs an image to caption")}{{%- endif -%}}\n'
        words = _WITHOUT_IMAGES + "{%- set content = said -%}\n" + self._text("content")
        unasked, refused = "", ""
        if self._bos_swallows and outline.words and outline.lead and not images_apart:
            unasked = '{%- if content == "" -%}\n{%- set ns.unasked = true -%}\n{%- endif -%}\n'
            refused = f'{{%- if ns.unasked and content != "" -%}}\n{_refuse(_SWALLOWED)}{{%- endif -%}}\n'
        return (
            "{%- for message in messages -%}\n"
            + self._message()
            + f'{{%- if loop.first and message.role == "system" -%}}\n{_refuse(f"template {name} has no place for a system message")}'
            + '{%- elif message.role == "user" and ns.turns == 0 -%}\n'
            + (none if outline.needs_image else "")
            + (image + bos if outline.images_first else bos + image)
            + (words + unasked if outline.words else "")
            + "{%- set ns.turns = ns.turns + 1 -%}\n"
            + self._answer(refused + self._if_content(self.fixed(outline.lead)) + self.content(None) + self.fixed(outline.ending))
            + self._end("")
        )

    def _message(self) -> str:
        return _CONTENT + (_IMAGES_FIRST if self._mode == "llava15" else "")

    def _answer(self, body: str) -> str:
        return (
            f'{{%- elif message.role == "assistant" and ns.turns % 2 == 1 -%}}\n{{%- generation -%}}\n{body}{{%- endgeneration -%}}\n'
            "{%- set ns.turns = ns.turns + 1 -%}\n"
            f"{{%- else -%}}\n{_refuse(_TURNS)}{{%- endif -%}}\n"
            "{%- endfor -%}\n"
        )

    def _end(self, close: str) -> str:
        return (
            f"{{%- if ns.turns % 2 == 0 -%}}\n{{%- if add_generation_prompt -%}}\n{_refuse(_NOTHING_TO_ANSWER)}{{%- endif -%}}\n{close}"
            f"{{%- elif not add_generation_prompt -%}}\n{_refuse(_NO_ANSWER)}{{%- endif -%}}\n"
        )

    def _if_content(self, body: str) -> str:
        return f'{{%- if content != "" -%}}\n{body}{{%- endif -%}}\n' if body else ""

    def content(self, outline: Outline | None) -> str:
        """The contents of the message at hand, with the markup around its images."""
        before, after = outline.image if outline is not None else ((), ())
        if not (self._tracks or before or after):
            return self._text("content")
        return (
            '{%- for text in content.split("<image>") -%}\n'
            f"{{%- if not loop.first -%}}\n{self.fixed((*before, ('image', ''), *after))}{{%- endif -%}}\n"
            f"{self._text('text')}{{%- endfor -%}}\n"
        )

    def fixed(self, pieces: Fixed) -> str:
        """Pieces that are the same in every conversation; adjacent ones are one string where nothing depends on their kinds."""
        spelled = [(kind, self._spelled.get(kind, text)) for kind, text in pieces]
        if not self._tracks:
            whole = "".join(text for _, text in spelled)
            return self._text(_literal(whole)) if whole else ""
        written = (
            self._text(_literal(text)) if kind == "text" else f"{{{{- put({_literal(text)}, {_literal(kind)}) -}}}}\n"
            for kind, text in spelled
            if text
        )
        return "".join(written)

    def _text(self, expression: str) -> str:
        return f"{{{{- say({expression}) -}}}}\n" if self._tracks else f"{{{{- {expression} -}}}}\n"


def _literal(value: Any) -> str:
    """A string, or several, as Jinja writes them; all but control characters stay as they are."""
    return json.dumps(value, ensure_ascii=False)


def _refuse(message: str) -> str:
    return f"{{{{- raise_exception({_literal(message)}) -}}}}\n"


def _unwritable(template: ChatTemplate, reason: str) -> LmmError:
    return LmmError(f"template {template.name!r} can't be written as a chat template: {reason}")


def _refuse_other_ids(source: str, template: ChatTemplate, tokenizer: Any, mode: Mode) -> None:
    """Render conversations of plain words both ways and compare the ids; those with images where the tokenizer has a token for them."""
    image = tokenizer.get_vocab().get(IMAGE_MARKER)
    for messages, prompt in _probes(images=image is not None):
        try:
            options: Any = {} if image is None else {"image_token": image}
            expected = encode_chat(messages, template, tokenizer, mode=mode, add_generation_prompt=prompt, **options).ids
        except LmmError:  # more turns than the template takes, no place for a system prompt, or no image
            continue
        text = _rendered(source, template, tokenizer, messages, prompt)
        found = tokenizer(text, add_special_tokens=False).input_ids
        if found != expected:
            at = next((n for n, (a, b) in enumerate(zip(found, expected)) if a != b), min(len(found), len(expected)))
            theirs, ours = (tokenizer.convert_ids_to_tokens(ids[at : at + 4]) for ids in (found, expected))
            raise _unwritable(template, f"{type(tokenizer).__name__} makes other ids of one string: {theirs} at {at} of {text!r}, expected {ours}")


def _rendered(source: str, template: ChatTemplate, tokenizer: Any, messages: list[Message], prompt: bool) -> str:
    try:
        text: str = tokenizer.apply_chat_template(messages, chat_template=source, tokenize=False, add_generation_prompt=prompt)
    except Exception as error:  # a program may fail in any way
        raise _unwritable(template, f"{type(error).__name__}: {error}") from error
    return text


def _probes(*, images: bool) -> Iterator[tuple[list[Message], bool]]:
    """Conversations of plain words, and whether they wait for an answer."""
    for system in (None, "", SYSTEM):
        for turns in (1, 2):
            messages = conversation(turns, system)
            first = int(system is not None)
            shown = [{**message, "content": f"{IMAGE_MARKER}\n{message['content']}"} if n == first else message for n, message in enumerate(messages)]
            for asked in (messages, shown) if images else (messages,):
                yield from ((asked, False), (asked[:-1], True))
