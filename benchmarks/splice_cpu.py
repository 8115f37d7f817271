"""From token ids to the decoder's input rows on the CPU: our plan and splice against transformers' merge and LLaVA's loop, in one process.

``python -m benchmarks.splice_cpu [--repeats 5] [--modes fwd fwd+bwd] [--out benchmarks/data/splice_cpu.csv]``

16 conversations of 2048 rows, one image of 576 rows each, 4096 wide, bf16, so that nothing is padding: what packing saves is not in these
figures. All three start from ids and projected image rows; our time includes the plan, which training makes in the collator. They run in
turn and ratios are taken turn by turn. Their rows must be the same to the bit, or nothing is printed.

- ``transformers``: embed all ids, then ``get_placeholder_mask`` of its own LLaVA model and ``masked_scatter``
  (``transformers/models/llava/modeling_llava.py``). Its ids hold 576 placeholders for each image.
- ``llava``: the sample-by-sample loop of ``prepare_inputs_labels_for_multimodal`` (``llava/model/llava_arch.py`` of haotian-liu/LLaVA), written anew:
  cut the ids at the images, embed the text, put pieces of text and image together, pad to the longest, stack.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor
from torch.nn.functional import embedding

from lmmblocks import ops
from lmmblocks.plans.host import plan_splice
from lmmblocks.spec import IGNORE_LABEL, IMAGE_TOKEN

SAMPLES, ROWS, IMAGE_ROWS, WIDTH, VOCABULARY = 16, 2048, 576, 4096, 32000
PLACEHOLDER = 31999
MODES = ("fwd", "fwd+bwd")

Splice = Callable[[Tensor, Tensor], Tensor]
"""``table_VD, images_IPD -> (rows, D)``."""


def main() -> None:
    """Measure each mode, print a table, append to the CSV."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.splice_cpu", description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=5, help="timed turns (default %(default)s)")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES, help="default: both")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "data" / "splice_cpu.csv")
    options = parser.parse_args()
    torch.manual_seed(0)
    table = torch.randn(VOCABULARY, WIDTH).to(torch.bfloat16).requires_grad_()
    images = torch.randn(SAMPLES, IMAGE_ROWS, WIDTH).to(torch.bfloat16).requires_grad_()
    ways = providers()
    with torch.no_grad():
        first, *others = (way(table, images).view(-1, WIDTH) for way in ways.values())
        if not all(torch.equal(first, other) for other in others):
            sys.exit("error: the rows differ: the comparison would be of different work")
        del first, others
    for mode in options.modes:
        turns = [[timed(way, table, images, mode) for way in ways.values()] for _ in range(options.repeats)]
        report(dict(zip(ways, zip(*turns))), mode, options)


def providers() -> dict[str, Splice]:
    """Return the three ways, with their own form of the same ids."""
    text = torch.randint(0, PLACEHOLDER, (SAMPLES, ROWS - IMAGE_ROWS)).tolist()
    ids = [[*sample[:40], IMAGE_TOKEN, *sample[40:]] for sample in text]
    return {"lmmblocks": ours(ids), "transformers": transformers_merge(text), "llava": llava_loop(ids)}


def ours(ids: list[list[int]]) -> Splice:
    """Plan on the host, then the reference of ``ops.splice``."""

    def run(table: Tensor, images: Tensor) -> Tensor:
        plan = plan_splice(ids, [[IMAGE_ROWS]] * SAMPLES)
        return ops.splice(table, images, plan, backend="reference")

    return run


def transformers_merge(text: list[list[int]], device: torch.device | str = "cpu", image_rows: int = IMAGE_ROWS) -> Splice:
    """Its own check of the placeholders, and its merge."""
    from transformers.models.llava.modeling_llava import LlavaModel

    full = torch.tensor([[*sample[:40], *[PLACEHOLDER] * image_rows, *sample[40:]] for sample in text], device=device)
    model = SimpleNamespace(config=SimpleNamespace(image_token_id=PLACEHOLDER))

    def run(table: Tensor, images: Tensor) -> Tensor:
        embeds = embedding(full, table)
        mask = LlavaModel.get_placeholder_mask(model, full, inputs_embeds=embeds, image_features=images)
        return embeds.masked_scatter(mask, images)

    return run


def llava_loop(ids: list[list[int]], device: torch.device | str = "cpu", image_rows: int = IMAGE_ROWS) -> Splice:
    """One sample after the other, as LLaVA's model does at each step, labels and masks included."""
    width = max(map(len, ids))
    padded = torch.tensor([[*sample, *[0] * (width - len(sample))] for sample in ids], device=device)
    attended = torch.tensor([[True] * len(sample) + [False] * (width - len(sample)) for sample in ids], device=device)

    def run(table: Tensor, images: Tensor) -> Tensor:
        rows, labels, image = [], [], 0
        for sample, keep in zip(padded, attended):
            tokens = sample[keep]
            cuts = [-1, *torch.where(tokens == IMAGE_TOKEN)[0].tolist(), len(tokens)]
            pieces = [tokens[begin + 1 : end] for begin, end in zip(cuts, cuts[1:])]
            embedded = torch.split(embedding(torch.cat(pieces), table), [len(piece) for piece in pieces])
            parts, marked = [], []
            for index, (piece, part) in enumerate(zip(pieces, embedded)):
                parts.append(part)
                marked.append(piece)
                if index < len(pieces) - 1:
                    parts.append(images[image])
                    marked.append(torch.full((image_rows,), IGNORE_LABEL, device=device))
                    image += 1
            rows.append(torch.cat(parts)[:ROWS])
            labels.append(torch.cat(marked)[:ROWS])
        return _padded(rows, labels)

    return run


def _padded(rows: list[Tensor], labels: list[Tensor]) -> Tensor:
    """Pad each sample to the longest and stack, with the labels, mask and positions that go with it."""
    longest, out = max(map(len, rows)), []
    device = rows[0].device
    all_labels = torch.full((len(rows), longest), IGNORE_LABEL, device=device)
    mask, positions = (torch.zeros(len(rows), longest, dtype=dtype, device=device) for dtype in (torch.bool, torch.long))
    for index, (row, label) in enumerate(zip(rows, labels)):
        length = len(row)
        out.append(torch.cat([row, row.new_zeros(longest - length, row.shape[1])]))
        all_labels[index, :length], mask[index, :length], positions[index, :length] = (
            label,
            True,
            torch.arange(length, device=device),
        )
    return torch.stack(out)


def timed(way: Splice, table: Tensor, images: Tensor, mode: str) -> float:
    """Seconds of one step; the gradient that comes back is one value seen from every place, as of a sum."""
    table.grad = images.grad = None
    start = time.perf_counter()
    if mode == "fwd":
        with torch.no_grad():
            way(table, images)
    else:
        rows = way(table, images)
        rows.backward(torch.ones((), dtype=rows.dtype).expand_as(rows))
    return time.perf_counter() - start


def report(times: dict[str, tuple[float, ...]], mode: str, options: argparse.Namespace) -> None:
    """Print medians and ratios turn by turn; append a line to the CSV."""
    import transformers

    line = {
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "load_1min": f"{os.getloadavg()[0]:.1f}",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "mode": mode,
        "shape": f"B={SAMPLES} T={ROWS} P={IMAGE_ROWS} D={WIDTH} V={VOCABULARY} bf16",
        "repeats": options.repeats,
        **{f"{name}_ms": f"{statistics.median(seconds) * 1e3:.0f}" for name, seconds in times.items()},
    }
    for name in ("transformers", "llava"):
        ratios = sorted(theirs / own for own, theirs in zip(times["lmmblocks"], times[name]))
        low, middle, high = ratios[len(ratios) // 5], statistics.median(ratios), ratios[-1 - len(ratios) // 5]
        for word, ratio in (("p20", low), ("median", middle), ("p80", high)):
            line[f"ratio_{name}_{word}"] = f"{ratio:.2f}"
    for name, value in line.items():
        print(f"{name:<26} {value}", flush=True)
    new = not options.out.exists()
    with options.out.open("a", newline="") as file:
        writer = csv.DictWriter(file, line)
        if new:
            writer.writeheader()
        writer.writerow(line)


if __name__ == "__main__":
    main()
