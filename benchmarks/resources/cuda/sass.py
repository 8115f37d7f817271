"""Read machine code: what a kernel's instructions are, which of them lie in loops, and which loop is the hottest.

A loop is a natural loop of the control-flow graph: a branch back to a block that dominates it, and every block on the way. Going by addresses
alone would take the way back from a block that the compiler moved after the end (a masked tile, say) for a loop over the whole kernel.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

_KERNEL = re.compile(r"^\s*Function : (\S+)")
_ARCHITECTURE = re.compile(r"^arch = sm_(\d+)")
_INSTRUCTION = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][\w.]*)\s*([^;]*);")
_TARGET = re.compile(r"^(.*?)`?\(?(0x[0-9a-f]+)\)?\s*$")
_ENDS = ("EXIT", "RET", "BRX", "JMX", "BRXU", "JMXU")


@dataclass(frozen=True)
class Instruction:
    """One line of machine code.

    Attributes:
        address: in the kernel, bytes.
        name: with its suffixes, ``"HMMA.16816.F32.BF16"``.
        target: address a branch goes to, else None.
        always: whether what it does (a branch, an exit) is done by every thread that comes by.
    """

    address: int
    name: str
    target: int | None
    always: bool

    @property
    def root(self) -> str:
        """The name without suffixes."""
        return self.name.split(".", 1)[0]


@dataclass(frozen=True)
class Code:
    """The instructions of one kernel for one architecture."""

    kernel: str
    arch: int
    instructions: list[Instruction] = field(default_factory=list)


def read_code(text: str) -> Iterator[Code]:
    """Yield the kernels of what ``cuobjdump -sass`` printed, under their mangled names."""
    arch, code = 0, None
    for line in text.splitlines():
        if found := _ARCHITECTURE.match(line):
            arch = int(found[1])
        elif found := _KERNEL.match(line):
            if code is not None:
                yield code
            code = Code(found[1], arch)
        elif code is not None and (found := _INSTRUCTION.match(line)):
            code.instructions.append(_instruction(*found.groups()))
    if code is not None:
        yield code


def _instruction(address: str, predicate: str | None, name: str, operands: str) -> Instruction:
    target, always = None, predicate is None
    if name.split(".", 1)[0] in ("BRA", "JMP") and (found := _TARGET.match(operands)):
        target = int(found[2], 16)
        always &= not found[1].strip(" `(")  # a condition may also be the first operand
    return Instruction(int(address, 16), name, target, always)


def loops(code: Code) -> list[frozenset[int]]:
    """Return the addresses of each natural loop, loops with one head merged."""
    starts, successors = _blocks(code.instructions)
    if not starts:
        return []
    dominators = _dominators(successors)
    predecessors: dict[int, list[int]] = {block: [] for block in successors}
    for block, following in successors.items():
        for other in following:
            predecessors[other].append(block)
    bodies: dict[int, set[int]] = {}
    for block in dominators:
        for head in successors[block]:
            if head in dominators[block]:
                bodies.setdefault(head, {head}).update(_way_back(block, head, predecessors))
    return [frozenset(a for block in body for a in starts[block]) for body in bodies.values()]


def hottest(code: Code, root: str) -> list[Instruction]:
    """Return the instructions of the loop with the most of ``root``, of those without such a loop inside; of equals the shortest.

    The same tile with and without a mask is two loops with as many matrix instructions: the shorter one is the one that runs most.
    """
    where = {i.address for i in code.instructions if i.root == root}
    with_some = [body for body in loops(code) if body & where]
    innermost = [body for body in with_some if not any(other < body for other in with_some)]
    if not innermost:
        return []
    best = max(innermost, key=lambda body: (len(body & where), -len(body)))
    return [i for i in code.instructions if i.address in best]


def _blocks(instructions: list[Instruction]) -> tuple[dict[int, list[int]], dict[int, list[int]]]:
    """Return the addresses in each basic block and the blocks that may follow it; a block is named by its first address."""
    known = {i.address for i in instructions}
    heads = {i.target for i in instructions if i.target in known}
    members: dict[int, list[int]] = {}
    successors: dict[int, list[int]] = {}
    current, last = -1, None
    for instruction in instructions:
        if last is None or instruction.address in heads or _leaves(last):
            if last is not None and not (_leaves(last) and last.always):
                successors[current].append(instruction.address)
            current = instruction.address
            members[current], successors[current] = [], []
        members[current].append(instruction.address)
        if instruction.target in known:
            successors[current].append(instruction.target)
        last = instruction
    return members, successors


def _leaves(instruction: Instruction) -> bool:
    return instruction.target is not None or instruction.root in _ENDS


def _dominators(successors: dict[int, list[int]]) -> dict[int, set[int]]:
    """Return for each block that can be reached the blocks on every way to it, itself included; the first block is the entry."""
    order = _reverse_postorder(successors)
    predecessors: dict[int, list[int]] = {block: [] for block in order}
    for block in order:
        for other in successors[block]:
            predecessors[other].append(block)
    everything = set(order)
    found = {block: everything for block in order}
    found[order[0]] = {order[0]}
    changed = True
    while changed:
        changed = False
        for block in order[1:]:
            new = set.intersection(*(found[other] for other in predecessors[block])) | {block}
            changed |= new != found[block]
            found[block] = new
    return found


def _reverse_postorder(successors: dict[int, list[int]]) -> list[int]:
    entry = min(successors)
    seen, done, stack = {entry}, [], [(entry, iter(successors[entry]))]
    while stack:
        block, following = stack[-1]
        for other in following:
            if other not in seen:
                seen.add(other)
                stack.append((other, iter(successors[other])))
                break
        else:
            stack.pop()
            done.append(block)
    return done[::-1]


def _way_back(block: int, head: int, predecessors: dict[int, list[int]]) -> set[int]:
    """Return the blocks from which ``block`` is reached without passing ``head``."""
    body, waiting = {head}, [block]
    while waiting:
        current = waiting.pop()
        if current not in body:
            body.add(current)
            waiting.extend(predecessors[current])
    return body
