"""Makes the files of this folder from the folder of recorded cases: ``python tests/golden/make.py FOLDER``. README.md says what they are.

Cases of ids, splices, orders and answers are copied. Pixels are too many to copy: of a recorded picture that is small enough, the picture is kept and
the checksums of what LLaVA made of it. Beside it come pictures drawn by a seed, whose checksums are those of transformers' processor behind LLaVA's
padding, once these have given every recorded array to the last bit.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

HERE = Path(__file__).parent
COPIED = ("splice.safetensors", "splice.json", "tokens.json", "misc.json")
LARGEST_PICTURE = 16 * 1024
"""Bytes of a PNG that is kept."""

DRAWN = {"landscape": (640, 480, 0), "portrait": (75, 200, 1)}
"""Width, height and seed: a picture that is made smaller, and one that is made larger."""

PAPER = (122, 116, 104)
"""What LLaVA pads with: CLIP's mean in bytes."""

SIDE = 336


def drawn(width: int, height: int, seed: int) -> Image.Image:
    """A gradient under noise, by the generator whose numbers NumPy keeps for ever."""
    rows, columns = np.mgrid[:height, :width]
    noise = np.random.RandomState(seed).randint(0, 64, (height, width, 3))
    slopes = np.stack([rows * 191 // height, columns * 191 // width, (rows + columns) * 191 // (height + width)], -1)
    return Image.fromarray((slopes + noise).astype(np.uint8))


def picture_of(name: str) -> Image.Image:
    """The picture of a case of pixels.json."""
    return drawn(*DRAWN[name]) if name in DRAWN else Image.open(HERE / f"picture_{name}.png").convert("RGB")


def checksum(pixels: np.ndarray) -> str:
    """Of fp16 values, in C order."""
    return hashlib.sha256(np.ascontiguousarray(pixels.astype(np.float16)).tobytes()).hexdigest()


def by_transformers(image: Image.Image, fit: str) -> np.ndarray:
    """Pixels as LLaVA's code has them made: padded to a square or not, then CLIP's processor, by PIL; fp16 ``(3, 336, 336)``."""
    import transformers

    if fit == "pad":
        side = max(image.size)
        square = Image.new("RGB", (side, side), PAPER)
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        image = square
    processor: Any = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
    made = processor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    return made(image, input_data_format="channels_last", return_tensors="np")["pixel_values"][0].astype(np.float16)


def pixel_cases(recorded: dict[str, np.ndarray]) -> dict[str, dict[str, str]]:
    """Checksums by case and fit, those of recorded pictures and those of drawn ones; keeps the pictures that are small.

    Raises:
        SystemExit: a recorded array that transformers' processor doesn't give.
    """
    cases = {}
    for name in sorted({key.partition(".")[0] for key in recorded}):
        image = Image.fromarray(recorded[f"{name}.image"])
        for fit in ("pad", "crop"):
            if not np.array_equal(by_transformers(image, fit), recorded[f"{name}.{fit}"]):
                sys.exit(f"error: {name}.{fit}: transformers' processor gives other pixels than those recorded: nothing drawn can stand for them")
        path = HERE / f"picture_{name}.png"
        image.save(path, optimize=True)
        if path.stat().st_size > LARGEST_PICTURE:
            path.unlink()
            continue
        cases[name] = {fit: checksum(recorded[f"{name}.{fit}"]) for fit in ("pad", "crop")}
    return cases | {name: {fit: checksum(by_transformers(drawn(*DRAWN[name]), fit)) for fit in ("pad", "crop")} for name in DRAWN}


def main(folder: Path) -> None:
    """Make all files."""
    from safetensors.numpy import load_file

    for name in COPIED:
        shutil.copyfile(folder / name, HERE / name)
    cases = pixel_cases(load_file(folder / "pixels.safetensors"))
    (HERE / "pixels.json").write_text(json.dumps(cases, indent=1) + "\n")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: python {sys.argv[0]} FOLDER: the folder of recorded cases")
    main(Path(sys.argv[1]))
