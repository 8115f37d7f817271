"""A splice plan that was made on the device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ..spec import SplicePlan

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicePlan(SplicePlan):
    """A plan with room for more rows than it uses: its host lists are empty, and what lies after ``cu_seqlens[-1]`` is slack.

    Attributes:
        status: int32 device words, which :func:`~lmmblocks.experimental.check_plan` reads.
    """

    status: Tensor
    has_slack: ClassVar[bool] = True
