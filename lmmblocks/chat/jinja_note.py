"""What a chat template was written from, as a comment before it: so that a folder whose other files are lost says it exactly.

A chat template that was changed by hand is no longer what its note says; `noted` leaves that to be found out by who reads it.
"""

from __future__ import annotations

import json
import re
from typing import Any

from ..spec import LmmError
from ..spec.words import MODES, Mode
from .saving import FORMS, template_from_dict, template_to_dict
from .templates import ChatTemplate

_NOTE = re.compile(r"\{#- lmmblocks: (\{.*?\}) -#\}\n")


def note(template: ChatTemplate, mode: Mode) -> str:
    """Return a Jinja comment that holds a template's fields and the mode of tokenising; it has no ``#``, which could end it."""
    said = {"template": template_to_dict(template), "tokenize_mode": mode}
    return "{#- lmmblocks: " + json.dumps(said, ensure_ascii=False).replace("#", "\\u0023") + " -#}\n"


def noted(source: str) -> tuple[ChatTemplate, Mode] | None:
    """Return the template and the mode that a chat template's note tells of; None without a note that can be read."""
    found = _NOTE.match(source)
    if found is None:
        return None
    try:
        said: Any = json.loads(found[1])
        template, mode = said["template"], said["tokenize_mode"]
        if template["type"] not in FORMS or mode not in MODES:
            return None
        return template_from_dict(template), mode
    except (ValueError, KeyError, TypeError, LmmError):
        return None
