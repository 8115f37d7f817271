"""Where pretrained parts come from: a folder, or a repository of the Hugging Face hub; and the parts themselves."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..encoders.choices import sized
from ..encoders.siglip2_naflex import NaFlexConfig
from ..images.kinds import with_fit
from ..images.native import NativePreprocess
from ..images.preprocess import Fit, ImagePreprocess
from ..spec import LmmError, closest
from .causal_lm import is_causal_lm, load_causal_lm
from .files import open_weights, read_json
from .fill import read_parameters
from .hf_decoders import decoder_from_hf, knows_decoder
from .hf_encoders import HF_ENCODERS, encoder_from_hf, hf_type
from .maps import LLAMA_LAYOUTS
from .original import decoder_values, is_original
from .other_encoders import other_encoder

CONFIG = "config.json"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SMALL_FILES = ["*.json", "*.model", "*.txt", "*.jinja"]
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")


def locate(path_or_id: str | os.PathLike[str], *, weights: bool = True) -> Path:
    """Return the folder behind a path or a hub id; a hub repository is downloaded or taken from the cache.

    Args:
        path_or_id: a folder, or ``owner/name``. A folder of that name goes before the hub.
        weights: False fetches configs and tokenizer only.

    Raises:
        LmmError: no such folder, or the hub doesn't give it.
    """
    path = Path(path_or_id).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise LmmError(f"{path} is a file, expected the folder that holds it: give {path.parent}")
    if not isinstance(path_or_id, str) or not _HUB_ID.fullmatch(path_or_id):
        beside = os.listdir(path.parent) if path.parent.is_dir() else []
        raise LmmError(
            f"no folder {path}{closest(path.name, beside)}; expected a model folder or a hub id 'owner/name'"
        )
    folder = _from_hub(path_or_id, [*_SMALL_FILES, "*.safetensors"] if weights else _SMALL_FILES)
    adapter = (folder / "adapter_config.json").is_file()  # a LoRA run's other tensors are in a .bin whatever its adapter is in
    if weights and (adapter or not list(folder.glob("*.safetensors"))):
        folder = _from_hub(path_or_id, [*_SMALL_FILES, "*.bin"])
    return folder


def load_encoder(
    path_or_id: str | os.PathLike[str], *, fit: Fit | None = None
) -> tuple[Any, dict[str, Tensor], Any]:
    """Read a vision tower, alone or out of a CLIP, SigLIP or LLaVA checkpoint: CLIP, SigLIP, DINOv2, or a folder of timm's or open_clip's.

    Args:
        path_or_id: folder or hub id.
        fit: how pictures become square; None = as the tower's image processor says. CLIP's only knows ``crop``, so its file doesn't
            say what a LLaVA does: it pads, as LLaVA-1.5 does.

    Returns:
        Its config, its state dict in the dtype of the file, and its preprocessing.

    Raises:
        LmmError: nothing there, another kind of model, or weights that don't fit the config.
    """
    folder = locate(path_or_id)
    other = other_encoder(folder)
    if other is not None:
        state, preprocess = other.read_pretrained()
        return other, state, preprocess if fit is None else with_fit(preprocess, fit)
    values = _config(folder)
    if is_original(values):
        from .tower import load_original_tower

        return load_original_tower(folder, values, fit=fit)
    config, preprocess = encoder_shape(folder, fit=fit)
    with torch.device("meta"):
        skeleton = config.build()
    return config, read_parameters(open_weights(folder), HF_ENCODERS[hf_type(config)].layouts, skeleton), preprocess


def encoder_shape(folder: Path, *, fit: Fit | None = None) -> tuple[Any, Any]:
    """Return config and preprocessing of a tower of transformers; no weights are needed. See :func:`load_encoder`."""
    config = encoder_from_hf(_config(folder))
    preprocess = read_preprocess(folder, config, fit=fit or HF_ENCODERS[hf_type(config)].fit)
    if preprocess is None:
        preprocess = config.default_preprocess() if fit is None else with_fit(config.default_preprocess(), fit)
    return sized(config, preprocess), preprocess


def load_decoder(path_or_id: str | os.PathLike[str]) -> tuple[Any, dict[str, Tensor]]:
    """Read a decoder: natively if its family is built in (``hf_families.FAMILIES``), alone or out of a multimodal checkpoint, else through
    transformers, as an ``HFDecoder``.

    Args:
        path_or_id: folder or hub id.

    Returns:
        Its config and its state dict in the dtype of the file; a tied head and its table are the same object.

    Raises:
        LmmError: nothing there, another kind of model, or weights that don't fit the config.
    """
    folder = locate(path_or_id)
    values = _config(folder)
    values = decoder_values(values) if is_original(values) else values
    if not knows_decoder(values) and is_causal_lm(values):
        return load_causal_lm(folder)
    config = decoder_from_hf(values)
    with torch.device("meta"):
        skeleton = config.build()
    return config, read_parameters(open_weights(folder), LLAMA_LAYOUTS, skeleton)


def load_tokenizer(path_or_id: str | os.PathLike[str]) -> Any:
    """Return the transformers tokenizer of a folder or hub id.

    Raises:
        LmmError: no tokenizer there, or one that transformers can't read.
    """
    folder = locate(path_or_id, weights=False)
    if not has_tokenizer(folder):
        raise LmmError(
            f"{folder} holds no tokenizer: expected {' or '.join(_TOKENIZER_FILES)}; pass tokenizer=... or another folder"
        )
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # the tokenizers library raises plain Exception
        raise LmmError(
            f"the tokenizer in {folder} can't be read: {_first_line(error)}: copy or download it again"
        ) from error


def has_tokenizer(folder: Path) -> bool:
    """Say whether a folder holds files of a tokenizer."""
    return any((folder / name).is_file() for name in _TOKENIZER_FILES)


def read_preprocess(folder: Path, encoder: Any, *, fit: Fit | None = None) -> Any:
    """Return the image preprocessing that a folder's processor config describes, None when it has none.

    Args:
        folder: a model folder.
        encoder: config of the encoder; says the patch size, which the file doesn't.
        fit: instead of what the file says.

    Raises:
        LmmError: other steps than the native preprocessing has, or images of another size than the encoder's.
    """
    for name in ("preprocessor_config.json", "processor_config.json"):
        values = read_json(folder / name) if (folder / name).is_file() else {}
        if "image_processor" not in values and name.startswith("processor"):
            continue
        if values and isinstance(encoder, NaFlexConfig):
            return NativePreprocess.from_hf_processor_config(values)
        if values:
            preprocess = ImagePreprocess.from_hf_processor_config(values, patch_px=encoder.patch, fit=fit)
            if preprocess.size_px != sized(encoder, preprocess).image_size:
                raise LmmError(
                    f"{folder / name} makes images of {preprocess.size_px} px, the encoder in config.json takes {encoder.image_size} px: "
                    f"correct crop_size and size"
                )
            return preprocess
    return None


def _config(folder: Path) -> dict[str, Any]:
    return read_json(folder / CONFIG)


def _from_hub(hub_id: str, patterns: list[str]) -> Path:
    import huggingface_hub
    from huggingface_hub import errors

    try:
        return Path(huggingface_hub.snapshot_download(hub_id, allow_patterns=patterns))
    except errors.GatedRepoError as error:
        raise LmmError(
            f"hub repository {hub_id!r} asks you to accept its terms: do so on its page and log in with 'hf auth login'"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise LmmError(
            f"no folder {hub_id!r} here and no such public repository on the hub: correct the name, or log in"
        ) from error
    except (
        errors.LocalEntryNotFoundError,
        errors.OfflineModeIsEnabled,
        errors.HfHubHTTPError,
        OSError,
    ) as error:
        raise LmmError(
            f"no folder {hub_id!r} here, and the hub can't be reached ({_first_line(error)}): go online once, or download the repository "
            f"elsewhere and give its folder"
        ) from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
