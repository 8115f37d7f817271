"""What a caller may set about an answer, in one place: ``generate``, ``generate_stream`` and ``Conversation`` all take these."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any

from ..spec import refuse_unknown
from ..spec.fields import Filled
from .sampling import Sampling


@dataclass(frozen=True, kw_only=True)
class Options(Sampling):
    """How an answer is made, and where it ends.

    Attributes:
        max_new_tokens: most tokens of an answer, its end-of-sequence token included.
        stop: strings that end an answer besides the template's; the answer is cut before them. One string, or several.

    Raises:
        LmmError: values that make no sense, all of them in one message.

    >>> Options(stop="###").stop
    ('###',)
    """

    max_new_tokens: int = 128
    stop: Annotated[tuple[str, ...], Filled] = ()

    def __post_init__(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else self.stop
        object.__setattr__(self, "stop", tuple(stop) if isinstance(stop, (list, tuple)) else stop)
        super().__post_init__()

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Options:
        """Return the options of keyword arguments.

        Raises:
            LmmError: a name that is no option, with the closest one, or a value that makes no sense.
        """
        refuse_unknown("unknown generation options:", values, sorted(field.name for field in fields(cls)))
        return cls(**values)
