"""Forward and backward of LLaVA on the CPU: ours, packed, against transformers', padded; same weights, same samples, same process.

``python -m benchmarks.train_step_cpu [--samples 16] [--repeats 15] [--out benchmarks/data/train_step_cpu.csv]``

Both train decoder and projector and keep the vision tower frozen, in fp32. Tokens are the real ones (image rows included), so padding is
work that doesn't count. The two run in turn and the ratio is taken pair by pair. The losses must agree, or nothing is printed.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import lmmblocks as lb
from lmmblocks.plans.host import plan_splice
from lmmblocks.spec import IGNORE_LABEL, IMAGE_TOKEN, Batch

IMAGE_ID = 3
TEXT_LENGTHS = (20, 200)


def main() -> None:
    """Measure, print a table, append to the CSV."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train_step_cpu", description=__doc__.split("\n")[0])
    parser.add_argument("--samples", type=int, default=16, help="conversations of one step (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=15, help="timed pairs (default %(default)s)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "data" / "train_step_cpu.csv")
    options = parser.parse_args()
    torch.manual_seed(0)
    ours = lb.build("llava15-tiny", weights="random").train()
    theirs = twin(ours)
    ids, labels = samples(options.samples, ours.decoder.vocab, random.Random(0))
    pixels = torch.randn(options.samples, 3, ours.encoder.spec.image_size, ours.encoder.spec.image_size)
    steps = our_step(ours, ids, labels, pixels), their_step(theirs, ids, labels, pixels)
    losses = [step() for step in steps]
    if abs(losses[0] - losses[1]) > 1e-4:
        sys.exit(f"error: the losses differ, {losses[0]:.6f} and {losses[1]:.6f}: the comparison would be of different work")
    rows = sum(len(sample) - 1 + 64 for sample in ids)
    times = [[timed(step) for step in steps] for _ in range(options.repeats)]
    report(times, rows, len(ids) * (max(map(len, ids)) + 63), losses[0], options)


def samples(count: int, vocabulary: int, rng: random.Random) -> tuple[list[list[int]], list[list[int]]]:
    """Conversations of unequal lengths: one image in front, a third of the text supervised."""
    ids, labels = [], []
    for _ in range(count):
        text = [rng.randrange(4, vocabulary) for _ in range(rng.randint(*TEXT_LENGTHS))]
        answer = len(text) // 3
        ids.append([1, IMAGE_TOKEN, *text])
        labels.append([IGNORE_LABEL] * (2 + len(text) - answer) + text[len(text) - answer :])
    return ids, labels


def twin(ours: Any) -> Any:
    """transformers' LLaVA with the same weights."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    e, d = ours.encoder.config, ours.decoder.config
    vision = CLIPVisionConfig(
        hidden_size=e.dim, intermediate_size=e.mlp_dim, num_hidden_layers=e.layers, num_attention_heads=e.heads,
        image_size=e.image_size, patch_size=e.patch,
    )  # fmt: skip
    text = LlamaConfig(
        hidden_size=d.dim, intermediate_size=d.ffn_dim, num_hidden_layers=d.layers, num_attention_heads=d.heads,
        num_key_value_heads=d.kv_heads, vocab_size=d.vocab, rms_norm_eps=d.eps, max_position_embeddings=d.max_positions,
    )  # fmt: skip
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE_ID, vision_feature_layer=e.select[0])
    model = LlavaForConditionalGeneration(config)
    own = model.state_dict()
    model.load_state_dict({name: _found(name, ours.state_dict()) for name in own})
    model.model.vision_tower.requires_grad_(False)
    return model.train()


def _found(name: str, state: dict[str, torch.Tensor]) -> torch.Tensor:
    """The tensor of ours that has this name after the prefixes either side adds."""
    ends = [key for key in state if _bare(key) == _bare(name)]
    assert len(ends) == 1, (name, ends)
    return state[ends[0]]


def _bare(key: str) -> str:
    for prefix in ("model.vision_tower.", "model.language_model.", "model.", "language_model.model.", "language_model.", "vision_tower."):
        key = key.removeprefix(prefix)
    return key.removeprefix("vision_model.")


def our_step(model: Any, ids: list[list[int]], labels: list[list[int]], pixels: torch.Tensor) -> Callable[[], float]:
    """Plan and splice are part of the step, as in training."""
    model.encoder.requires_grad_(False)
    grid = model.encoder.preprocess.grid(1, 1)

    def step() -> float:
        plan = plan_splice(ids, [[grid.rows]] * len(ids), labels=labels)
        model.zero_grad()
        loss = model.loss(Batch(pixels, (grid,) * len(ids), plan))
        loss.backward()
        return loss.item()

    return step


def their_step(model: Any, ids: list[list[int]], labels: list[list[int]], pixels: torch.Tensor) -> Callable[[], float]:
    """Placeholders are expanded and samples padded on the right, as its processor and collator do."""
    long_ids = [[t for token in sample for t in ([IMAGE_ID] * 64 if token == IMAGE_TOKEN else [token])] for sample in ids]
    long_labels = [[IGNORE_LABEL] * (len(full) - len(own) + 1) + own[1:] for full, own in zip(long_ids, labels)]
    width = max(map(len, long_ids))
    pad = lambda rows, value: torch.tensor([row + [value] * (width - len(row)) for row in rows])  # noqa: E731
    batch = {
        "input_ids": pad(long_ids, 0),
        "labels": pad(long_labels, IGNORE_LABEL),
        "attention_mask": pad([[1] * len(row) for row in long_ids], 0),
    }

    def step() -> float:
        model.zero_grad()
        loss = model(pixel_values=pixels, **batch).loss
        loss.backward()
        return loss.item()

    return step


def timed(step: Callable[[], float]) -> float:
    """Seconds of one step."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def report(times: list[list[float]], rows: int, padded_rows: int, loss: float, options: argparse.Namespace) -> None:
    """Print medians and the pairwise ratio; append a line to the CSV."""
    import transformers

    ours, theirs = (statistics.median(column) for column in zip(*times))
    ratios = sorted(b / a for a, b in times)
    low, middle, high = ratios[len(ratios) // 5], statistics.median(ratios), ratios[-1 - len(ratios) // 5]
    line = {
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "samples": options.samples,
        "tokens": rows,
        "padded_tokens": padded_rows,
        "loss": f"{loss:.4f}",
        "ours_tokens_per_s": f"{rows / ours:.0f}",
        "transformers_tokens_per_s": f"{rows / theirs:.0f}",
        "ratio_p20": f"{low:.2f}",
        "ratio_median": f"{middle:.2f}",
        "ratio_p80": f"{high:.2f}",
    }
    for name, value in line.items():
        print(f"{name:<26} {value}")
    new = not options.out.exists()
    with options.out.open("a", newline="") as file:
        writer = csv.DictWriter(file, line)
        if new:
            writer.writeheader()
        writer.writerow(line)


if __name__ == "__main__":
    main()
