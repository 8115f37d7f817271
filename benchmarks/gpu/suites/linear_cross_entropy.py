"""Linear cross-entropy on supervised rows: exactness, time and peak memory beside torch, Liger-Kernel and cut-cross-entropy.

Every provider gets the same supervised rows where it can; ``Liger-Kernel, all rows`` and ``CCE, all rows`` get the whole batch with ignored
labels, which is how they are used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from lmmblocks import ops

from ..build import with_gradients
from ..case import Call, Check, Inputs, Suite, Target, Timing, in_mode

ROWS, SUPERVISED, WIDTH = 4096, 0.15, 4096
VOCABULARIES = (32000, 128256)
IGNORED = -100


def _inputs(rows: int, width: int, vocab: int) -> Callable[[torch.device, bool], Inputs]:
    def make(device: torch.device, toy: bool) -> Inputs:
        r, d, v = (17, 16, vocab // 1000 + 5) if toy else (rows, width, vocab)
        hidden, weight = torch.randn(r, d, device=device), torch.randn(v, d, device=device) * d**-0.5
        return {"hidden": hidden, "weight": weight, "targets": torch.randint(v, (r,), device=device), "grad": torch.ones((), device=device)}

    return make


def _ours(**options: Any) -> Callable[[str, Inputs], Any]:
    return lambda backend, i: ops.linear_cross_entropy(i["hidden"], i["weight"], i["targets"], backend=backend, **options)


def _batch(vocab: int, share: float, total: int, width: int) -> Callable[[torch.device], Inputs]:
    """A packed batch of which a share is supervised, and its supervised rows."""

    def make(device: torch.device) -> Inputs:
        rows = torch.randperm(total, device=device)[: int(total * share)].sort().values
        labels = torch.full((total,), IGNORED, device=device)
        labels[rows] = torch.randint(vocab, (len(rows),), device=device)
        hidden = torch.randn(total, width, device=device, dtype=torch.bfloat16)
        weight = (torch.randn(vocab, width, device=device) * width**-0.5).bfloat16()
        compact, targets = hidden[rows].clone(), labels[rows].clone()
        found = {"all": hidden, "hidden": compact, "weight": weight}
        return {name: tensor.requires_grad_() for name, tensor in found.items()} | {"labels": labels, "targets": targets}

    return make


def _rows(loss: Callable[[Inputs], Any]) -> Callable[[Inputs], Call]:
    return lambda i: in_mode("fwd+bwd", lambda: loss(i), (i["hidden"], i["weight"]), torch.ones((), device=i["hidden"].device))


def _whole(make: Callable[[], Callable[[Inputs], Any]]) -> Callable[[Inputs], Call]:
    def prepare(i: Inputs) -> Call:
        loss = make()
        return in_mode("fwd+bwd", lambda: loss(i), (i["all"], i["weight"]), torch.ones((), device=i["all"].device))

    return prepare


def _torch_loss(i: Inputs) -> Any:
    return F.cross_entropy((i["hidden"] @ i["weight"].T).float(), i["targets"])


def _torch_loss_of_all(i: Inputs) -> Any:
    """Logits of every row, as models make that know nothing of supervised rows."""
    return F.cross_entropy((i["all"] @ i["weight"].T).float(), i["labels"], ignore_index=IGNORED)


def _core_torch_loss(i: Inputs) -> Any:
    """Core torch's own fused loss, since torch 2.12."""
    if not hasattr(F, "linear_cross_entropy"):
        raise NotImplementedError(f"torch {torch.__version__} has no torch.nn.functional.linear_cross_entropy")
    return F.linear_cross_entropy(i["hidden"], i["weight"], i["targets"])


def _liger(rows: str, labels: str) -> Callable[[], Callable[[Inputs], Any]]:
    def make() -> Callable[[Inputs], Any]:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        loss = LigerFusedLinearCrossEntropyLoss()
        return lambda i: loss(i["weight"], i[rows], i[labels])

    return make


def _cce(rows: str, labels: str) -> Callable[[], Callable[[Inputs], Any]]:
    def make() -> Callable[[Inputs], Any]:
        from cut_cross_entropy import linear_cross_entropy

        return lambda i: linear_cross_entropy(i[rows], i["weight"], i[labels])

    return make


def _on_rows(make: Callable[[], Callable[[Inputs], Any]]) -> Callable[[Inputs], Call]:
    return lambda i: _rows(make())(i)


def _timing(vocab: int, share: float, total: int = ROWS, width: int = WIDTH) -> Timing:
    rows = int(total * share)
    providers = {
        "lmmblocks triton": _rows(lambda i: _ours()("triton", i)),
        "lmmblocks torch": _rows(lambda i: _ours()("torch" if rows > 1024 else "reference", i)),
        "torch": _rows(_torch_loss),
        "torch, all rows": _whole(lambda: _torch_loss_of_all),
        "torch linear_cross_entropy": _rows(_core_torch_loss),
        "torch.compile": _on_rows(lambda: torch.compile(_torch_loss)),
        "Liger-Kernel": _on_rows(_liger("hidden", "targets")),
        "cut-cross-entropy": _on_rows(_cce("hidden", "targets")),
        "Liger-Kernel, all rows": _whole(_liger("all", "labels")),
        "CCE, all rows": _whole(_cce("all", "labels")),
    }
    name = f"{total} rows {share:.0%} V={vocab} bf16"
    inputs = _batch(vocab, share, total, width)
    return Timing("linear_cross_entropy", name, "fwd+bwd", inputs, providers, flops=6 * rows * width * vocab, memory=True)


def _check(case: str, rows: int, vocab: int, **options: Any) -> Check:
    return Check("linear_cross_entropy", case, _inputs(rows, 256, vocab), with_gradients(_ours(**options), ("hidden", "weight")))


SUITE = Suite(
    checks=[
        _check("mean V=32000", 300, 32000),
        _check("mean V=128256", 300, 128256),
        _check("two chunks", 2500, 5003),
        _check("sum", 300, 5003, reduction="sum"),
        _check("none", 300, 5003, reduction="none"),
        _check("softcap", 300, 5003, softcap=30.0),
    ],
    timings=[_timing(vocab, share) for vocab in VOCABULARIES for share in (SUPERVISED, 1.0)],
    cpu=[_timing(8000, SUPERVISED, 1024, 512)],
    targets=[
        *(Target("linear_cross_entropy", "fwd+bwd", "", peer, 1.0) for peer in ("torch", "Liger-Kernel", "cut-cross-entropy")),
        *(Target("linear_cross_entropy", "fwd+bwd", "", peer, 1 / 1.2, "peak_mb") for peer in ("Liger-Kernel", "cut-cross-entropy")),
    ],
)
