"""The formats of IDEFICS: turns of plain words, images between fake tokens; instruction-tuned models end each turn with a token of its own.

    <s>User: What is this?<fake_token_around_image><image><fake_token_around_image><end_of_utterance>
    Assistant: A cat.<end_of_utterance>

The token ``<image>`` is the row that the projector ``image_token`` makes. The models before instruction tuning have no such token and end an
answer with the line. Source: the prompts in the model card of HuggingFaceM4/idefics-9b-instruct and in the documentation of
``IdeficsProcessor`` of transformers 5.23, which joins the fake tokens of images side by side.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from .marked import MarkedTemplate
from .pieces import IMAGE_MARKER, Piece

FAKE = "<fake_token_around_image>"
END = "<end_of_utterance>"


@dataclass(frozen=True)
class FencedTemplate(MarkedTemplate):
    """A template of markup with the same token before an image and after it, once between two images side by side.

    A question that begins with words has a space before it, one that begins with an image has none.

    >>> [piece.text or piece.kind for piece in IDEFICS._content("<image><image>?", "user")]
    ['<fake_token_around_image>', 'image', '<fake_token_around_image>', 'image', '<fake_token_around_image>', '?']
    """

    def _content(self, content: str, role: str, *, train: bool = False) -> list[Piece]:
        if role == "user" and not content.startswith(IMAGE_MARKER):
            content = f" {content}"
        fence, kept = self.image[0], list[Piece]()
        for piece in super()._content(content, role, train=train):
            twice = piece.text == fence and len(kept) > 1 and kept[-1].text == fence and kept[-2].kind == "image"
            kept += [] if twice else [piece]
        return kept


IDEFICS = FencedTemplate(
    "idefics",
    opening="{bos}User:",
    to_answer=f"{END}\nAssistant:",
    lead=" ",
    ending=END,
    to_question="\nUser:",
    tokens=(FAKE, END),
    image=(FAKE, FAKE),
)
IDEFICS_BASE = replace(IDEFICS, name="idefics_base", to_answer="\nAssistant:", ending="\n", to_question="User:", tokens=(FAKE,))
