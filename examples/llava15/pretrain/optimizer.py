"""AdamW, or Muon for the matrices inside the layers and AdamW for everything else.

Muon takes the momentum of a matrix and makes it orthogonal before it steps, so that rare directions move as
far as common ones. The vision tower gets past the plateau where it knows colours and no shapes yet in half of
AdamW's steps; the decoder learned faster with AdamW.
Source: Jordan et al., "Muon" (2024), kellerjordan.github.io/posts/muon.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic that pulls singular values towards 1; the slope at 0 is what matters, the limit is 0.7..1.2."""


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, made orthogonal, for matrices `(out, in)`; fp32 throughout.

    Args:
        params: matrices.
        lr: length of a step in units of the spectral norm.
        momentum: share of the old momentum.
        weight_decay: decoupled.
    """

    def __init__(self, params: Iterable[Tensor], lr: float = 0.02, momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move every matrix that has a gradient."""
        for group in self.param_groups:
            same_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for matrix in group["params"]:
                if matrix.grad is not None:
                    same_shape[matrix.shape].append(matrix)
            for (rows, columns), matrices in same_shape.items():
                updates = orthogonal(torch.stack([self._momentum(matrix, group["momentum"]) for matrix in matrices]))
                for matrix, update in zip(matrices, updates):
                    matrix.mul_(1 - group["lr"] * group["weight_decay"])
                    matrix.add_(update, alpha=-group["lr"] * max(1.0, rows / columns) ** 0.5)

    def _momentum(self, matrix: Tensor, share: float) -> Tensor:
        state = self.state[matrix]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(matrix)
        assert matrix.grad is not None
        state["momentum"].lerp_(matrix.grad, 1 - share)
        return matrix.grad.lerp(state["momentum"], share)


def orthogonal(matrices_BRC: Tensor, steps: int = 5) -> Tensor:
    """The nearest orthogonal matrices, roughly: all singular values come out near 1.

    Args:
        matrices_BRC: `(B, R, C)`.
        steps: Newton-Schulz iterations.
    """
    first, third, fifth = _COEFFICIENTS
    tall = matrices_BRC.shape[1] > matrices_BRC.shape[2]
    x = matrices_BRC.mT if tall else matrices_BRC
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(1e-12)
    for _ in range(steps):
        gram = x @ x.mT
        x = first * x + torch.baddbmm(third * gram, gram, gram, alpha=fifth) @ x
    return x.mT if tall else x


def make_optimizers(modules: nn.Module, lr: float, weight_decay: float, muon: bool) -> list[torch.optim.Optimizer]:
    """Optimizers for all parameters of a module.

    Args:
        modules: what is trained.
        lr: peak learning rate of AdamW; Muon's is fourteen times that.
        weight_decay: AdamW's, on the matrices of linear and convolution layers; Muon has none.
        muon: give the linear layers inside `layers.N.` to Muon.
    """
    linear = {id(m.weight) for m in modules.modules() if isinstance(m, (nn.Linear, nn.Conv2d))}
    matrices: list[Tensor] = []
    groups: list[dict[str, Any]] = [
        {"params": [], "weight_decay": weight_decay},
        {"params": [], "weight_decay": 0.0},
    ]
    for name, parameter in modules.named_parameters():
        if muon and ".layers." in name and id(parameter) in linear:
            matrices.append(parameter)
        else:
            groups[0 if id(parameter) in linear else 1]["params"].append(parameter)
    adamw = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), eps=1e-8, foreach=True)
    return [Muon(matrices, lr=_MUON_LR * lr), adamw] if matrices else [adamw]


_MUON_LR = 14.0
