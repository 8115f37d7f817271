"""Memory that ``lmmblocks.load`` takes at its peak, over the size of the weights, for a synthetic checkpoint of at least 1 GB.

``python -m benchmarks.load_memory [--gigabytes 1.2] [--out benchmarks/data/load_memory.csv]``

Writes a LLaVA of fp16 weights to a temporary folder in the hub's layout (safetensors shards) and in the original's (``.bin`` shards, tower
inside), and loads each in a process of its own. The peak is the largest resident set that the kernel saw (``VmHWM``, so Linux only; unlike
``ru_maxrss`` it doesn't start at the size of the parent) less that after a first load of a tiny model, which imports what is imported late.
Pages of a mapped file count as long as they are mapped.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

import lmmblocks as lb
from lmmblocks.config import LMMConfig
from lmmblocks.decoders.transformer import TransformerConfig
from lmmblocks.encoders.clip import CLIPConfig
from lmmblocks.weights.systems.llava_original_names import ORIGINAL

SHARD_BYTES = 400_000_000
LOAD = r"""
import json, re, sys, time
import safetensors.torch, torch, transformers
from lmmblocks.weights.load import load
peak = lambda: 1024 * int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1])
load(sys.argv[2])
before, start = peak(), time.perf_counter()
model = load(sys.argv[1])
seconds = time.perf_counter() - start
weights = sum(p.nbytes for p in model.parameters())
print(json.dumps({"weights": weights, "peak": peak() - before, "seconds": seconds}))
"""


def main() -> None:
    """Measure both layouts, print a table, append to the CSV."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load_memory", description=__doc__.split("\n")[0])
    parser.add_argument("--gigabytes", type=float, default=1.2, help="size of the weights (default %(default)s)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "data" / "load_memory.csv")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        lb.build(config_of(0), weights="random").save(Path(folder) / "tiny")
        model = lb.build(config_of(options.gigabytes), device="meta", dtype=torch.float16).to_empty(device="cpu")
        for parameter in model.parameters():
            torch.nn.init.constant_(parameter, 0.01)
        model.save(Path(folder) / "hub", shard_bytes=SHARD_BYTES)
        write_original(model, Path(folder) / "llava")
        del model
        for layout, kind in (("hub", "safetensors"), ("llava", "bin")):
            rows.append(measured(layout, kind, Path(folder) / layout, Path(folder) / "tiny"))
            print(f"{layout:>6} ({kind}): weights {rows[-1]['weights_mb']} MB, peak {rows[-1]['peak_mb']} MB, ratio {rows[-1]['ratio']}")
    append(options.out, rows)


def config_of(gigabytes: float) -> LMMConfig:
    """A small tower and a Llama of width 1024 with as many layers as the size needs; for 0 one of a single narrow layer."""
    per_layer = 4 * 1024 * 1024 + 3 * 1024 * 2816
    layers = round((gigabytes * 1e9 / 2 - 2 * 32000 * 1024) / per_layer)
    shape = {"dim": 1024, "layers": layers, "ffn_dim": 2816, "vocab": 32000} if gigabytes else {"dim": 64, "layers": 1, "ffn_dim": 64, "vocab": 64}
    decoder = TransformerConfig(heads=16, kv_heads=16, **shape)
    return LMMConfig(encoder=CLIPConfig(dim=256, layers=4, heads=4, mlp_dim=1024, image_size=112), decoder=decoder)


def write_original(model: lb.LMM, folder: Path) -> None:
    """The original layout in ``.bin`` shards, as the released checkpoints are."""
    model.save(folder, format="llava", shard_bytes=SHARD_BYTES)
    for file in folder.glob("model*.safetensors*"):
        file.unlink()
    shards: list[dict[str, torch.Tensor]] = [{}]
    for name, value in model.state_dict().items():
        if sum(each.nbytes for each in shards[-1].values()) + value.nbytes > SHARD_BYTES:
            shards.append({})
        shards[-1][str(ORIGINAL.to_file(name))] = value
    place = {}
    for index, shard in enumerate(shards):
        file_name = f"pytorch_model-{index + 1:05}-of-{len(shards):05}.bin"
        torch.save(shard, folder / file_name)
        place |= dict.fromkeys(shard, file_name)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": place}))


def measured(layout: str, kind: str, folder: Path, tiny: Path) -> dict[str, object]:
    """Load a folder in a new process and return a row of the CSV."""
    done = subprocess.run([sys.executable, "-c", LOAD, str(folder), str(tiny)], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    return {
        "date": datetime.date.today().isoformat(),
        "layout": layout,
        "files": kind,
        "weights_mb": round(found["weights"] / 1e6),
        "peak_mb": round(found["peak"] / 1e6),
        "ratio": round(found["peak"] / found["weights"], 3),
        "seconds": round(found["seconds"], 2),
        "machine": f"{platform.machine()} {platform.system()}",
        "torch": torch.__version__,
        "lmmblocks": lb.__version__,
    }


def append(path: Path, rows: list[dict[str, object]]) -> None:
    """Add rows to the CSV, with a header when it is new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
