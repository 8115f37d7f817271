"""The config of a model as it is now: what its modules and settings say, not what it was once built from."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..chat import template_setting
from ..chat.templates import ChatTemplate
from ..config import LMMConfig, is_config
from ..images.kinds import preprocess_to_dict
from ..spec import LmmError

if TYPE_CHECKING:
    from ..lmm import LMM


def current_config(model: LMM) -> LMMConfig | None:
    """Return the config with everything that the model owns as it is now; None for a model that was composed without one.

    Blocks by name (projector, reducers, hooks) can't be read from modules and stay as they are told, as does a preprocessing that can't be
    written down.

    Args:
        model: an ``LMM``.
    """
    if model.config is None:
        return None
    return replace(
        model.config,
        encoder=_own(model.encoder, model.config.encoder),
        decoder=_own(model.decoder, model.config.decoder),
        template=template_or_name(model.template, model.config.template),
        tokenize_mode=model.tokenize_mode,
        max_length=model.max_length,
        attention=model.attention,
        preprocess=_writable(model.encoder.preprocess, model.config.preprocess),
    )


def template_or_name(template: ChatTemplate, asked: Any) -> Any:
    """Return what the config says about the template; one that can't be written down is in nobody's way until it is saved."""
    try:
        return template_setting(template, asked)
    except LmmError:
        return template.name


def _writable(preprocess: Any, told: Any) -> Any:
    try:
        preprocess_to_dict(preprocess)
    except LmmError:
        return told
    return preprocess


def _own(part: Any, told: Any) -> Any:
    own = getattr(part, "config", None)
    return own if is_config(own) else told
