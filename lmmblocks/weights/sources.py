"""Where pretrained parts come from: a folder, or a repository of the Hugging Face hub; and the parts themselves."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..decoders.transformer import TransformerConfig
from ..encoders.clip import CLIPConfig
from ..images.preprocess import Fit, ImagePreprocess, clip_preprocess
from ..spec import LmmError, closest
from .files import open_weights, read_json
from .fill import read_parameters
from .hf_config import clip_from_hf, llama_from_hf
from .maps import CLIP_LAYOUTS, LLAMA_LAYOUTS

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
    if weights and not list(folder.glob("*.safetensors")):
        folder = _from_hub(path_or_id, [*_SMALL_FILES, "*.bin"])
    return folder


def load_encoder(
    path_or_id: str | os.PathLike[str], *, fit: Fit = "pad"
) -> tuple[CLIPConfig, dict[str, Tensor], ImagePreprocess]:
    """Read a CLIP vision tower, alone or out of a CLIP or LLaVA checkpoint.

    Args:
        path_or_id: folder or hub id.
        fit: how pictures become square. CLIP's own processor only knows ``crop``, so its file doesn't say what a LLaVA does; LLaVA-1.5 pads.

    Returns:
        Its config, its state dict in the dtype of the file, and its preprocessing.

    Raises:
        LmmError: nothing there, another kind of model, or weights that don't fit the config.
    """
    folder = locate(path_or_id)
    config = clip_from_hf(_config(folder))
    with torch.device("meta"):
        skeleton = config.build()
    preprocess = read_preprocess(folder, config, fit=fit) or clip_preprocess(
        config.image_size, config.patch, fit
    )
    return config, read_parameters(open_weights(folder), CLIP_LAYOUTS, skeleton), preprocess


def load_decoder(path_or_id: str | os.PathLike[str]) -> tuple[TransformerConfig, dict[str, Tensor]]:
    """Read a Llama decoder, alone or out of a LLaVA checkpoint.

    Args:
        path_or_id: folder or hub id.

    Returns:
        Its config and its state dict in the dtype of the file; a tied head and its table are the same object.

    Raises:
        LmmError: nothing there, another kind of model, or weights that don't fit the config.
    """
    folder = locate(path_or_id)
    config = llama_from_hf(_config(folder))
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


def read_preprocess(folder: Path, encoder: CLIPConfig, *, fit: Fit | None = None) -> ImagePreprocess | None:
    """Return the image preprocessing that a folder's processor config describes, None when it has none.

    Args:
        folder: a model folder.
        encoder: says the patch size, which the file doesn't.
        fit: instead of what the file says.

    Raises:
        LmmError: steps that are not CLIP's or LLaVA's, or images of another size than the encoder's.
    """
    for name in ("preprocessor_config.json", "processor_config.json"):
        values = read_json(folder / name) if (folder / name).is_file() else {}
        if "image_processor" not in values and name.startswith("processor"):
            continue
        if values:
            preprocess = ImagePreprocess.from_hf_processor_config(values, patch_px=encoder.patch, fit=fit)
            if preprocess.size_px != encoder.image_size:
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
