"""What each compiled kernel uses: ptxas says registers and spills, launchers say threads and shared memory, machine code says the rest."""

from __future__ import annotations

import json
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..a100 import WARP, ctas_per_multiprocessor
from .launches import Launch
from .objects import Compiled, place
from .sass import Code, Instruction, hottest, loops, read_code
from .toolchain import Toolchain

INTEGER = frozenset(
    "IMAD IADD3 IADD LOP3 LOP SHF LEA ISETP IMNMX VIMNMX IABS SEL SGXT BMSK POPC FLO UIADD3 UIMAD ULOP3 USHF ULEA UISETP USEL UIMNMX".split()
)
"""Address and mask arithmetic. Moves in disguise (IMAD.MOV) are none of it, but they do count as instructions."""


@dataclass(frozen=True)
class Resources:
    """What one kernel uses.

    Attributes:
        registers: a thread.
        spill_stores, spill_loads: bytes of a thread, by ptxas.
        stack: bytes of a thread.
        shared_bytes: of a CTA, static and dynamic.
        threads: of a CTA.
        ctas_per_sm: how many fit an A100's multiprocessor.
        hmma, ldgsts, ldsm: tensor-core instructions, asynchronous copies and matrix loads in the code.
        loads_128, stores_128: 128-bit accesses to global memory, asynchronous copies apart.
        local_in_loops: loads and stores of local memory (spills) inside any loop.
        int_per_hmma: integer instructions to a tensor-core instruction, over the whole kernel; 0 where there is no such instruction.
        loop_hmma: tensor-core instructions of the hottest loop; what follows is of that loop too.
        loop_int_per_hmma: integer instructions to each.
        loop_issue_per_hmma: instructions of any kind to each, itself included. An A100's sub-core is busy with one for 8 cycles and issues 1 a cycle.
        loop_mufu_per_hmma: special functions (exp2) to each.
        loop_local: loads and stores of local memory.
    """

    registers: int
    spill_stores: int
    spill_loads: int
    stack: int
    shared_bytes: int
    threads: int
    ctas_per_sm: int
    hmma: int
    ldgsts: int
    ldsm: int
    loads_128: int
    stores_128: int
    local_in_loops: int
    int_per_hmma: float
    loop_hmma: int
    loop_int_per_hmma: float
    loop_issue_per_hmma: float
    loop_mufu_per_hmma: float
    loop_local: int


@dataclass(frozen=True)
class Figures:
    """What the compiler's output says about one kernel: ptxas' lines and counts of the machine code."""

    kernel: str
    arch: int
    usage: dict[str, int]
    counts: dict[str, float]


def figures(file: Compiled, tools: Toolchain) -> list[Figures]:
    """Return the figures of every kernel of a file, counted once for each content."""
    here = Path(__file__)
    kept = place(f"{file.name.replace('/', '-')}-figures", [here, here.with_name("sass.py")], [file.object.name], "json")
    if not kept.exists():
        text = subprocess.run([tools.cuobjdump, "-sass", file.object], capture_output=True, text=True, check=True).stdout
        counts = {(code.kernel, code.arch): _counts(code) for code in read_code(text)}
        found = [[kernel, arch, usage, counts[kernel, arch]] for kernel, arch, usage in _usage(file)]
        kept.write_text(json.dumps(found), encoding="utf-8")
    return [Figures(*row) for row in json.loads(kept.read_text(encoding="utf-8"))]


def resources(found: Figures, launches: list[Launch]) -> Resources:
    """Put together what is known of one kernel; of several launches the one of which the fewest CTAs fit counts."""
    usage = dict(found.usage)
    static = usage.pop("static_shared")

    def fit(launch: Launch) -> int:
        return ctas_per_multiprocessor(usage["registers"], launch.threads // WARP, static + launch.shared_bytes)

    worst = min(launches, key=fit)
    return Resources(**usage, shared_bytes=static + worst.shared_bytes, threads=worst.threads, ctas_per_sm=fit(worst), **found.counts)  # type: ignore[arg-type]


_ENTRY = re.compile(r"Compiling entry function '(\S+)' for 'sm_(\d+)'")
_OWNER = re.compile(r"Function properties for (\S+)")
_LOCAL = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")


def _usage(file: Compiled) -> Iterator[tuple[str, int, dict[str, int]]]:
    """Yield kernel, architecture and what ptxas says it uses."""
    kernel, arch, owner, usage = "", 0, "", {}
    for line in file.log.splitlines():
        if found := _ENTRY.search(line):
            kernel, arch, usage = found[1], int(found[2]), {}
        elif found := _OWNER.search(line):
            owner = found[1]
        elif found := _LOCAL.search(line):
            if owner != kernel:
                raise ValueError(f"{file.name}: {owner} is compiled apart from {kernel}, so nobody counts what it spills: inline it")
            usage |= zip(("stack", "spill_stores", "spill_loads"), map(int, found.groups()))
        elif found := _USED.search(line):
            shared = _SHARED.search(line)
            yield kernel, arch, {"registers": int(found[1]), **usage, "static_shared": int(shared[1]) if shared else 0}


def _counts(code: Code) -> dict[str, float]:
    roots = Counter(i.root for i in code.instructions)
    inside = frozenset().union(*loops(code))
    loop = hottest(code, "HMMA")
    return {
        "hmma": roots["HMMA"],
        "ldgsts": roots["LDGSTS"],
        "ldsm": roots["LDSM"],
        "loads_128": sum(i.root == "LDG" and ".128" in i.name for i in code.instructions),
        "stores_128": sum(i.root == "STG" and ".128" in i.name for i in code.instructions),
        "local_in_loops": sum(_is_local(i) for i in code.instructions if i.address in inside),
        "int_per_hmma": _per_hmma(code.instructions, _is_integer),
        "loop_hmma": sum(i.root == "HMMA" for i in loop),
        "loop_int_per_hmma": _per_hmma(loop, _is_integer),
        "loop_issue_per_hmma": _per_hmma(loop, lambda i: i.root != "NOP"),
        "loop_mufu_per_hmma": _per_hmma(loop, lambda i: i.root == "MUFU"),
        "loop_local": sum(_is_local(i) for i in loop),
    }


def _is_integer(instruction: Instruction) -> bool:
    return instruction.root in INTEGER and not instruction.name.startswith("IMAD.MOV")


def _is_local(instruction: Instruction) -> bool:
    return instruction.root in ("LDL", "STL")


def _per_hmma(instructions: list[Instruction], counted: object) -> float:
    matrix = sum(i.root == "HMMA" for i in instructions)
    return round(sum(map(counted, instructions)) / matrix, 2) if matrix else 0.0  # type: ignore[arg-type]
