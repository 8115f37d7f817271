"""What a caller may set about an answer, in one place: ``generate``, ``generate_stream`` and ``Conversation`` all take these."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from ..spec import LmmError, closest
from ..spec.fields import is_whole
from .sampling import Sampling


@dataclass(frozen=True, kw_only=True)
class Options(Sampling):
    """How an answer is made, and where it ends.

    Attributes:
        max_new_tokens: most tokens of an answer, its end-of-sequence token included.
        stop: strings that end an answer besides the template's; the answer is cut in front of them. One string, or several.

    Raises:
        LmmError: values that make no sense, all of them in one message.

    >>> Options(stop="###").stop
    ('###',)
    """

    max_new_tokens: int = 128
    stop: tuple[str, ...] = ()

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
        known = [field.name for field in fields(cls)]
        unknown = [f"{name!r}{closest(name, known)}" for name in values if name not in known]
        if unknown:
            raise LmmError(
                f"unknown generation options: {', '.join(unknown)}; known: {', '.join(sorted(known))}"
            )
        return cls(**values)

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the values."""
        yield from super().problems()
        most = self.max_new_tokens
        if not is_whole(most) or most < 1:
            yield f"max_new_tokens is {most!r}, expected an integer >= 1"
        if not isinstance(self.stop, tuple) or not all(isinstance(text, str) and text for text in self.stop):
            yield f"stop is {self.stop!r}, expected a string or a list of strings, none of them empty"
