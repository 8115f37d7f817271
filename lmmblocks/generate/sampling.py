"""From logits to the next token: greedy, temperature, top-k, nucleus (Holtzman et al., arXiv 1904.09751).

Each sequence draws one number per token from a generator of its own, on the CPU, and looks it up in the cumulative distribution. So an
answer does not depend on what is decoded beside it, nor on the device that computed the logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from ..spec import ByKeywords, LmmError
from ..spec.fields import AtLeast, Within, field_problems

_SEEDS = 2**63
_COLDEST = 1e-30  # a temperature that is 0 in fp32 would divide 0 by 0


@dataclass(frozen=True, kw_only=True)
class Sampling(metaclass=ByKeywords):
    """How the next token is chosen.

    Attributes:
        temperature: divides the logits; 0 = greedy, the most likely token and the lowest id among equals.
        top_p: sample among the fewest tokens that together have at least this probability; 1 = all.
        top_k: sample among this many most likely tokens, before ``top_p``; 0 = all.
        seed: makes an answer repeatable; None = torch's global random state decides.

    Raises:
        LmmError: values that make no sense, all of them in one message.

    >>> Sampling(temperature=0.2, top_p=0.7).greedy
    False
    """

    temperature: Annotated[float, AtLeast(0), "0 = greedy"] = 0.0
    top_p: Annotated[float, Within(0, 1, above=True), "1 = all tokens"] = 1.0
    top_k: Annotated[int, AtLeast(0), "0 = all tokens"] = 0
    seed: Annotated[int, Within(0, 2**63 - 1)] | None = None

    def __post_init__(self) -> None:
        problems = field_problems(self)
        if problems:
            raise LmmError("generation options: " + "; ".join(problems))

    @property
    def greedy(self) -> bool:
        """Whether nothing is drawn."""
        return self.temperature == 0

    def generator(self) -> torch.Generator:
        """Return a new random state for one sequence, on the CPU."""
        if self.seed is not None or self.greedy:  # a greedy answer leaves the global state alone
            return torch.Generator().manual_seed(int(self.seed or 0))
        return torch.Generator().manual_seed(int(torch.randint(_SEEDS - 1, ())))


class NotFinite(LmmError):
    """Logits that hold NaN or +inf, or nothing finite."""


def choose(logits_SV: Tensor, sampling: Sampling, generators: Sequence[torch.Generator]) -> list[int]:
    """Choose the next token of each sequence.

    Args:
        logits_SV: one row per sequence, any float dtype.
        sampling: how to choose.
        generators: one per sequence, on the CPU; each is advanced by one draw unless greedy.

    Returns:
        One token id per sequence.

    Raises:
        NotFinite: a row holds NaN or +inf, or nothing finite.

    >>> choose(torch.tensor([[0.0, 2.0, 2.0]]), Sampling(), [])
    [1]
    """
    dtype, logits_SV = logits_SV.dtype, logits_SV.float()
    peak_S1 = logits_SV.amax(-1, keepdim=True)
    if not bool(peak_S1.isfinite().all()):
        raise NotFinite(f"the logits ({dtype}) are not finite: nothing can be chosen among NaN and inf")
    if sampling.greedy:
        return logits_SV.argmax(-1).tolist()
    probabilities_SV, ids_SV = candidates(logits_SV - peak_S1, sampling)
    draws_S1 = torch.stack([torch.rand(1, generator=generator) for generator in generators]).to(logits_SV.device)
    cumulative_SV = probabilities_SV.cumsum(-1)
    place_S1 = torch.searchsorted(cumulative_SV, draws_S1 * cumulative_SV[:, -1:], right=True)
    last_S1 = (probabilities_SV > 0).sum(-1, keepdim=True) - 1  # a draw that rounds up to the total
    return ids_SV.gather(1, place_S1.minimum(last_S1))[:, 0].tolist()


def candidates(logits_SV: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Sort the tokens by probability and give those outside top-k and top-p none.

    Args:
        logits_SV: fp32, at most 0 so that a temperature near 0 does not overflow.
        sampling: temperature above 0.

    Returns:
        ``probabilities_SV``, descending, not normalised again, and ``ids_SV``; equals are in order of their ids.
    """
    scaled_SV = logits_SV / max(float(sampling.temperature), _COLDEST)
    probabilities_SV, ids_SV = scaled_SV.softmax(-1).sort(dim=-1, descending=True, stable=True)
    if sampling.top_k:
        probabilities_SV[:, sampling.top_k :] = 0
    if sampling.top_p < 1:
        cumulative_SV = probabilities_SV.cumsum(-1)
        outside_SV = cumulative_SV - probabilities_SV >= sampling.top_p * cumulative_SV[:, -1:]
        outside_SV[:, 0] = False
        probabilities_SV = probabilities_SV.masked_fill(outside_SV, 0)
    return probabilities_SV, ids_SV
