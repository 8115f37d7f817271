"""What a template writes around the contents of a conversation, told apart into fixed pieces, for writing it down in another language.

The four classes of templates have three shapes: turns between markup (`Outline`: `MarkedTemplate` and `Template`), and one question
with its answer and nothing between (`Single`: `CaptionTemplate` and `PromptTemplate`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .marked import BOS, EOS, MarkedTemplate, cut
from .pieces import PieceKind
from .prompted import PromptTemplate
from .templates import CaptionTemplate, ChatTemplate, Template

Fixed = tuple[tuple[PieceKind, str], ...]
"""Pieces that are the same in every conversation, as `marked.cut` gives them."""


@dataclass(frozen=True)
class Outline:
    """Turns between markup; the fields are those of `MarkedTemplate`.

    Attributes:
        lead_of_nothing: whether an empty answer has the lead as well.
    """

    opening: Fixed
    around_system: tuple[Fixed, Fixed] | None
    to_answer: Fixed
    lead: Fixed
    ending: Fixed
    to_question: Fixed
    close: Fixed
    system: str
    empty_system: bool
    image: tuple[Fixed, Fixed] = ((), ())
    lead_of_nothing: bool = True


@dataclass(frozen=True)
class Single:
    """One question and its answer: images and `bos`, in one order or the other, then the words of the question, if these are written at all.

    Attributes:
        images_first: whether images stand before `bos`.
        words: whether the question's words are written, without the whitespace around them.
        needs_image: whether a question without an image is refused.
        lead: before an answer that isn't empty.
        ending: after it.
    """

    images_first: bool
    words: bool
    needs_image: bool
    lead: Fixed
    ending: Fixed


def outline_of(template: ChatTemplate) -> Outline | Single | None:
    """Return what a template writes; None for a class that is not the library's, which may do anything (a subclass may as well)."""
    outlines: dict[type, Callable[[Any], Outline | Single]] = {
        MarkedTemplate: _marked,
        Template: _roles,
        CaptionTemplate: _caption,
        PromptTemplate: _prompt,
    }
    made = outlines.get(type(template))
    return None if made is None else made(template)


def _marked(template: MarkedTemplate) -> Outline:
    def fixed(markup: str) -> Fixed:
        return cut(markup, template.tokens)

    around = template.around_system
    return Outline(
        opening=fixed(template.opening),
        around_system=None if around is None else (fixed(around[0]), fixed(around[1])),
        to_answer=fixed(template.to_answer),
        lead=_text(template.lead),
        ending=fixed(template.ending),
        to_question=fixed(template.to_question),
        close=fixed(template.close),
        system=template.system,
        empty_system=template.empty_system,
        image=(fixed(template.image[0]), fixed(template.image[1])),
    )


def _roles(template: Template) -> Outline:
    (user, assistant), (behind_text, behind_answer) = template.roles, template.seps
    bos, eos = cut(BOS, ()), cut(EOS, ())
    return Outline(
        opening=(*bos, *_text(f"{user}: ")),
        around_system=(bos, _text(f"{behind_text}{user}: ")),
        to_answer=_text(f"{behind_text}{assistant}:"),
        lead=_text(" "),
        ending=eos,
        to_question=_text(f"{behind_answer}{user}: "),
        close=(),
        system=template.system,
        empty_system=False,
        lead_of_nothing=False,
    )


def _caption(template: CaptionTemplate) -> Single:
    return Single(images_first=False, words=False, needs_image=True, lead=(), ending=_text(template.end))


def _prompt(template: PromptTemplate) -> Single:
    return Single(images_first=True, words=True, needs_image=False, lead=_text(template.lead), ending=_text(template.ending) or cut(EOS, ()))


def _text(text: str) -> Fixed:
    return (("text", text),) if text else ()
