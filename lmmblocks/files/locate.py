"""Where a model's folder is: here, or a repository of the Hugging Face hub."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ..spec import LmmError, closest, first_line
from .foreign import file_kind

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SMALL_FILES = ["*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken"]


def locate(path_or_id: str | os.PathLike[str], *, weights: bool = True) -> Path:
    """Return the folder after a path or a hub id; a hub repository is downloaded or taken from the cache.

    Args:
        path_or_id: a folder, or ``owner/name``. A folder of that name goes before the hub.
        weights: False fetches configs and tokenizer only.

    Raises:
        LmmError: no such folder, or the hub doesn't give it.
    """
    if not isinstance(path_or_id, (str, os.PathLike)):
        raise LmmError(f"expected a model folder or a hub id 'owner/name', found {type(path_or_id).__name__} {path_or_id!r}")
    path = Path(path_or_id).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        kind = file_kind(path)
        raise LmmError(f"{path} is {kind}" if kind else f"{path} is a file, expected the folder that holds it: give {path.parent}")
    if path.is_symlink():
        raise LmmError(f"{path} is a link to {os.readlink(path)}, where nothing is: correct the link, or give the folder itself")
    if not isinstance(path_or_id, str) or not _HUB_ID.fullmatch(path_or_id):
        raise LmmError(f"no folder {path}{closest(path.name, _models_in(path.parent))}; expected a model folder or a hub id 'owner/name'")
    folder = _from_hub(path_or_id, [*_SMALL_FILES, "*.safetensors"] if weights else _SMALL_FILES)
    adapter = (folder / "adapter_config.json").is_file()  # a LoRA run's other tensors are in a .bin whatever its adapter is in
    if weights and (adapter or not list(folder.glob("*.safetensors"))):
        folder = _from_hub(path_or_id, [*_SMALL_FILES, "*.bin"])
    return folder


def _models_in(folder: Path) -> list[str]:
    """Return the names of the folders in ``folder`` that may hold a model: any other that is called alike was hardly meant."""
    return sorted({config.parent.name for config in folder.glob("*/*.json")})


def _from_hub(hub_id: str, patterns: list[str]) -> Path:
    import huggingface_hub
    from huggingface_hub import errors

    try:
        return Path(huggingface_hub.snapshot_download(hub_id, allow_patterns=patterns))
    except errors.GatedRepoError as error:
        raise LmmError(f"hub repository {hub_id!r} asks you to accept its terms: do so on its page and log in with 'hf auth login'") from error
    except errors.RepositoryNotFoundError as error:
        raise LmmError(f"no folder {hub_id!r} here and no such public repository on the hub: correct the name, or log in") from error
    except (
        errors.LocalEntryNotFoundError,
        errors.OfflineModeIsEnabled,
        errors.HfHubHTTPError,
        OSError,
    ) as error:
        raise LmmError(
            f"no folder {hub_id!r} here, and the hub can't be reached ({first_line(error)}): go online once, or download the repository "
            f"elsewhere and give its folder"
        ) from error
