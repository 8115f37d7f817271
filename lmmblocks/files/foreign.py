"""What a file or a folder is that isn't what was expected, and what to do with it: for messages only.

Only names and first bytes are looked at, and only after something was missed.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

from ..spec import some

LFS = b"version https://git-lfs"
_ARCHIVES = {
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b": "a gzip archive",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ": "an xz archive",
    b"7z\xbc\xaf": "a 7-Zip archive",
    b"\x28\xb5\x2f\xfd": "a Zstandard archive",
}
_START_BYTES = 300
_TAR_AT = 257


def file_kind(path: Path) -> str | None:
    """Return what a file is by its first bytes, and what to do, None where that says nothing.

    >>> file_kind(Path(__file__)) is None
    True
    """
    try:
        with path.open("rb") as file:
            start = file.read(_START_BYTES)
    except OSError:
        return None
    if start.startswith(LFS):
        return "a Git LFS pointer, not the file itself: run 'git lfs pull' in its repository"
    if start.startswith(b"GGUF"):
        return "a GGUF file, llama.cpp's own and mostly quantised, which is not read: give the folder of the model it was made from"
    if start[:200].lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "a web page, as a download gives that asked for a login or took the page of a file: download the file itself"
    if start[_TAR_AT : _TAR_AT + 5] == b"ustar":
        return "a tar archive: unpack it and give the folder inside"
    for magic, kind in _ARCHIVES.items():
        if start.startswith(magic) and (kind != "a zip archive" or _is_foreign_zip(path, start)):
            return f"{kind}: unpack it and give the folder inside"
    return None


def _is_foreign_zip(path: Path, start: bytes) -> bool:
    """Tell a whole archive from torch's own files, which are zip archives too, and from damaged ones."""
    return b"data.pkl" not in start and zipfile.is_zipfile(path)


def folder_kind(folder: Path) -> str:
    """Return ``": "`` and what a folder without a model is, and what to do; "" where nothing is recognised."""
    if not folder.is_dir():
        return ""
    names = sorted(entry.name for entry in folder.iterdir())
    found = next((said for rule in _RULES if (said := rule(folder, names))), None)
    return "" if found is None else f"; {found}"


def _broken_links(folder: Path, names: list[str]) -> str | None:
    broken = [name for name in names if (folder / name).is_symlink() and not (folder / name).exists()]
    if not broken:
        return None
    return (
        f"{len(broken)} of its files are links that lead nowhere ({some(broken)}): a snapshot of the hub's cache that was copied without its "
        f"blobs, or whose download was cut short: download it again, or copy it with 'cp -rL'"
    )


def _hub_cache(folder: Path, names: list[str]) -> str | None:
    snapshots = sorted((folder / "snapshots").glob("*/")) if "snapshots" in names else []
    return f"it is a repository in the hub's cache: give a snapshot inside, such as {snapshots[-1]}" if snapshots else None


def _deepspeed(folder: Path, names: list[str]) -> str | None:
    steps = [name for name in names if re.fullmatch(r"global_step\d+", name)]
    if not steps and not _any(names, r".*_model_states\.pt"):
        return None
    script = "python zero_to_fp32.py . pytorch_model.bin" if "zero_to_fp32.py" in names else "DeepSpeed's zero_to_fp32.py"
    return f"it holds DeepSpeed's parts of a model ({some(steps or names)}), each process its own: join them with '{script}' there"


def _fsdp(folder: Path, names: list[str]) -> str | None:
    parts = [name for name in names if re.fullmatch(r"pytorch_model_fsdp_\d+(\.bin)?", name) or name.endswith(".distcp")]
    return f"it holds FSDP's parts of a model ({some(parts)}): join them with 'accelerate merge-weights'" if parts else None


def _meta(folder: Path, names: list[str]) -> str | None:
    parts = [name for name in names if re.fullmatch(r"consolidated\.(\d+\.pth|safetensors)", name)]
    if not parts:
        return None
    return (
        f"it is a language model in its maker's own layout ({some(parts)}): convert it with transformers' convert_llama_weights_to_hf.py (Mistral's: "
        f"convert_mistral_weights_to_hf.py), or take the repository's Hugging Face files"
    )


def _gguf(folder: Path, names: list[str]) -> str | None:
    return _of_ending(names, (".gguf",), "GGUF files, llama.cpp's own and mostly quantised: give the folder of the model they were made from")


def _half_downloaded(folder: Path, names: list[str]) -> str | None:
    return _of_ending(names, (".incomplete", ".part", ".crdownload", ".aria2", ".partial"), "half a download: go on with it or begin again")


def _shards_without_index(folder: Path, names: list[str]) -> str | None:
    shards = [name for name in names if re.fullmatch(r"(pytorch_)?model-\d+-of-\d+\.(bin|safetensors)", name)]
    if not shards:
        return None
    whole = "model.safetensors.index.json" if shards[0].endswith("safetensors") else "pytorch_model.bin.index.json"
    return f"the shards are there ({some(shards)}) and {whole}, which says what each holds, is not: copy or download it too"


def _other_frameworks(folder: Path, names: list[str]) -> str | None:
    return _of_ending(
        names,
        (".h5", ".msgpack", ".onnx", ".mlmodel", ".tflite", ".ckpt", ".pth", ".pt"),
        "weights that are not transformers' safetensors or .bin: convert them, or take the repository's safetensors",
    )


def _archives(folder: Path, names: list[str]) -> str | None:
    return _of_ending(names, (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".zst"), "archives: unpack them and give the folder inside")


def _models_inside(folder: Path, names: list[str]) -> str | None:
    configs = ("config.json", "lmmblocks.json", "adapter_config.json")
    inside = [name for name in names if any((folder / name / config).is_file() for config in configs)]
    steps = sorted((name for name in inside if re.fullmatch(r"checkpoint-\d+", name)), key=lambda name: int(name.split("-")[1]))
    found = steps[::-1] or inside
    return f"there are models in the folders inside: give one of these, {some(found)}" if found else None


def _optimizer_only(folder: Path, names: list[str]) -> str | None:
    left = [name for name in names if re.fullmatch(r"(optimizer|scheduler|training_args)\.(pt|bin)|trainer_state\.json|rng_state.*\.pth", name)]
    return f"what a Trainer goes on with is there ({some(left)}), the model is not: give the folder of its last save" if left else None


def _of_ending(names: Iterable[str], endings: tuple[str, ...], what: str) -> str | None:
    found = [name for name in names if name.lower().endswith(endings)]
    return f"it holds {some(found)}: {what}" if found else None


def _any(names: Iterable[str], pattern: str) -> bool:
    return any(re.fullmatch(pattern, name) for name in names)


_RULES: tuple[Callable[[Path, list[str]], str | None], ...] = (
    _broken_links,
    _hub_cache,
    _half_downloaded,
    _deepspeed,
    _fsdp,
    _shards_without_index,
    _gguf,
    _meta,
    _archives,
    _models_inside,
    _optimizer_only,
    _other_frameworks,
)
"""The first that recognises a folder speaks."""
