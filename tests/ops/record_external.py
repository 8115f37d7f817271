"""Write what other attention packages take and mean into ``external.json``, from the packages themselves; nothing of it needs a GPU.

``python tests/ops/record_external.py FLASH_ATTN_SOURCE``: the unpacked source distribution of flash-attn (``pip download --no-deps --no-binary :all:
flash-attn``), whose signatures are read without importing it. xFormers must be installed, or on the path; its compiled part may fail to load.
"""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from typing import Any

import torch

RECORD = Path(__file__).with_name("external.json")
INTERFACES = {"flash_attn": "flash_attn/flash_attn_interface.py", "flash_attn_interface": "hopper/flash_attn_interface.py"}
LENGTHS = (([3], [3]), ([3, 2], [4, 2]), ([1, 4, 2], [6, 4, 3]), ([5, 1], [5, 7]))
MASKS = ((False, None), (True, None), (True, 1), (True, 2), (True, 4))


def signature(source: str, function: str) -> list[list[str]]:
    """Return ``[name, default as text]`` of each parameter, without the second where there is no default."""
    found = next(node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef) and node.name == function)
    names, defaults = [arg.arg for arg in found.args.args], [ast.unparse(default) for default in found.args.defaults]
    missing = len(names) - len(defaults)
    return [[name] if place < missing else [name, defaults[place - missing]] for place, name in enumerate(names)]


def masks() -> list[dict[str, Any]]:
    """Return what xFormers' masks let each row see, a row as a string of 1 and 0."""
    from lmmblocks.ops.attention.external import _block_diagonal

    found = []
    for lengths_q, lengths_k in LENGTHS:
        for causal, window in MASKS:
            mask = _block_diagonal(tuple(lengths_q), tuple(lengths_k), causal, window, torch.device("cpu"))
            seen = mask.materialize((1, sum(lengths_q), sum(lengths_k)))[0] == 0
            rows = ["".join(str(int(x)) for x in row) for row in seen]
            found.append({"lengths_q": lengths_q, "lengths_k": lengths_k, "causal": causal, "window": window, "rows": rows})
    return found


def main() -> None:
    """Read both packages, write the record."""
    import xformers

    source = Path(sys.argv[1])
    version = next(line.split()[1] for line in (source / "PKG-INFO").read_text().splitlines() if line.startswith("Version:"))
    record = {
        "flash-attn": version,
        "xformers": xformers.__version__,
        "flash_attn_varlen_func": {name: signature((source / path).read_text(), "flash_attn_varlen_func") for name, path in INTERFACES.items()},
        "masks": masks(),
    }
    RECORD.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
