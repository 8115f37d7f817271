"""What a resumed run must have in common with the one that was interrupted: stage, model, frozen weights, data."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..compose.current_config import current_config, template_or_name
from ..images.fit import reading_of
from ..images.identity import picture_identity
from ..spec import LmmError, Sample
from .stage import Stage

if TYPE_CHECKING:
    from ..lmm import LMM

FREE_SETTINGS = frozenset({"name", "workers", "prefetch_steps", "log_every", "checkpoint_every_steps", "keep_checkpoints"})
"""Settings that change no loss: a resumed run may set them anew."""


def fingerprint(model: LMM, stage: Stage, samples: Sequence[Sample]) -> dict[str, Any]:
    """Return plain values that are equal when, and only when, a run may go on from a checkpoint of another.

    Args:
        model: with its parts prepared for the stage.
        stage: of the run.
        samples: the training data; images count by file name, not by folder or content.
    """
    return {
        "stage": {name: value for name, value in stage.to_dict().items() if name not in FREE_SETTINGS},
        "model": _model_settings(model),
        "tokenizer": _vocabulary_hash(model.tokenizer),
        "frozen weights": {name: tensors_hash(part.state_dict().items()) for name, part in model.parts.items() if name not in stage.train}
        | _frozen_beside_trained(model, stage),
        "data": {"samples": len(samples), "hash": samples_hash(samples)},
    }


def _frozen_beside_trained(model: LMM, stage: Stage) -> dict[str, str]:
    """Hashes of what stays frozen inside trained parts, such as the base of adapters; parts that learn as a whole have none."""
    frozen = {name: [(n, p) for n, p in part.named_parameters() if not p.requires_grad] for name, part in model.parts.items()}
    return {f"{name}, beside what is trained": tensors_hash(frozen[name]) for name in stage.train if frozen[name]}


def refuse_difference(found: Mapping[str, Any], expected: Mapping[str, Any], where: str) -> None:
    """Raise an LmmError that lists every value in which a checkpoint and this run differ.

    Args:
        found: fingerprint of the checkpoint.
        expected: fingerprint of this run.
        where: path of the checkpoint, for the message.
    """
    differences = list(_differences(found, expected))
    if differences:
        listed = "\n".join(f"- {line}" for line in differences)
        raise LmmError(
            f"{where} belongs to another run and can't be resumed from:\n{listed}\n"
            f"Restore these values, or train into another folder (or remove this one) to start anew."
        )


def _model_settings(model: LMM) -> dict[str, Any]:
    """The model's config without the places its weights came from: what they are counts, not where they were."""
    config = current_config(model)
    if config is None:
        return {
            **{name: repr(part) for name, part in model.parts.items()},
            "template": template_or_name(model.template, None),
            "tokenize_mode": model.tokenize_mode,
            "max_length": model.max_length,
            "attention": model.attention,
            "image_fit": getattr(model.encoder.preprocess, "fit", None),
            **reading_of(model.encoder.preprocess),
        }
    plain = json.loads(json.dumps(config.to_dict()))
    return {key: value for key, value in plain.items() if not key.endswith("_source")}


def _vocabulary_hash(tokenizer: Any) -> str:
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items())).encode()
    return hashlib.blake2b(vocabulary, digest_size=16).hexdigest()


def _differences(found: Mapping[str, Any], expected: Mapping[str, Any], path: str = "") -> Iterable[str]:
    for key in sorted({*found, *expected}, key=str):
        name = f"{path}{key}"
        old, new = found.get(key), expected.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _differences(old, new, f"{name}.")
        elif old != new:
            yield f"{name}: the checkpoint has {_short(old)}, this run {_short(new)}"


def _short(value: Any) -> str:
    text = json.dumps(value) if not isinstance(value, str) else value
    return text if len(text) <= 80 else text[:77] + "..."


def tensors_hash(named: Iterable[tuple[str, Tensor]]) -> str:
    """Return a hash of names, types, shapes and bits of tensors, read by several threads."""
    named = list(named)
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        digests = list(pool.map(_tensor_digest, named))
    return hashlib.blake2b(b"".join(digests), digest_size=16).hexdigest()


def _tensor_digest(entry: tuple[str, Tensor]) -> bytes:
    name, tensor = entry
    digest = hashlib.blake2b(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), digest_size=16)
    flat = tensor.detach().contiguous().reshape(-1)
    if flat.numel():
        digest.update(flat.view(torch.uint8).cpu().numpy().data)
    return digest.digest()


def samples_hash(samples: Sequence[Sample]) -> str:
    """Return a hash of ids, messages and image names, in order."""
    digest = hashlib.blake2b(digest_size=16)
    for sample in samples:
        names = [picture_identity(image) for image in sample.images]
        digest.update(json.dumps([sample.id, sample.messages, names], sort_keys=True, default=str).encode())
    return digest.hexdigest()
