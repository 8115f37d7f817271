"""Kernel names a person can read: ``attention_forward<bf16, 128, causal>`` instead of what the linker sees.

>>> shortened("void lmm::forward_kernel<__nv_bfloat16, 128, (lmm::Mask)1>(lmm::ForwardArgs)", {"Mask": ("kFull", "kCausal")})
'forward_kernel<bf16, 128, causal>'
>>> shortened("void lmm::rows<lmm::Tile<__half, 64, (bool)1>, 4u>(LmmRowsArgs)", {})
'rows<Tile<fp16, 64, true>, 4>'
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

Enums = Mapping[str, tuple[str, ...]]
"""Name of an enum -> its enumerators by value."""

_ENUM = re.compile(r"\benum\s+(?:class\s+|struct\s+)?(\w+)\s*(?::[^{]*)?\{([^}]*)\}")
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_TYPES = {"__nv_bfloat16": "bf16", "__half": "fp16", "unsigned char": "uint8", "(bool)1": "true", "(bool)0": "false"}


def readable(mangled: Iterable[str], enums: Enums) -> dict[str, str]:
    """Return the short name of each mangled one."""
    mangled = sorted(set(mangled))
    done = subprocess.run(["c++filt"], input="\n".join(mangled), capture_output=True, text=True, check=True)
    return {name: shortened(plain, enums) for name, plain in zip(mangled, done.stdout.splitlines(), strict=True)}


def shortened(demangled: str, enums: Enums) -> str:
    """Drop return type, namespaces and parameters; name types, enumerators and truth values as their author did."""
    name = _without_parameters(demangled)
    for long, short in _TYPES.items():
        name = name.replace(long, short)
    name = re.sub(r"\((?:\w+::)*(\w+)\)(\d+)", lambda found: _enumerator(found, enums), name)
    name = re.sub(r"\b(?:\w+::|\(anonymous namespace\)::)+", "", name).replace("(anonymous namespace)::", "")
    return re.sub(r"\b(\d+)[ul]+\b", r"\1", name)


def enums_of(sources: Iterable[Path]) -> dict[str, tuple[str, ...]]:
    """Return the enums these files declare; a value written out must be a number."""
    found: dict[str, tuple[str, ...]] = {}
    for path in sources:
        for name, body in _ENUM.findall(_COMMENT.sub("", path.read_text(encoding="utf-8"))):
            found[name] = _by_value(body)
    return found


def _by_value(body: str) -> tuple[str, ...]:
    values: dict[int, str] = {}
    following = 0
    for item in filter(None, (part.strip() for part in body.split(","))):
        name, _, value = (part.strip() for part in item.partition("="))
        following = int(value, 0) if value else following
        values[following] = name
        following += 1
    return tuple(values.get(index, str(index)) for index in range(max(values, default=-1) + 1))


def _plain(name: str) -> str:
    """`kKvEnd` -> `kv_end`: constants are written with a k in front."""
    words = re.sub(r"^k(?=[A-Z])", "", name)
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", words).lower() if words != name else name


def _enumerator(found: re.Match[str], enums: Enums) -> str:
    names, value = enums.get(found[1], ()), int(found[2])
    return _plain(names[value]) if value < len(names) else f"{found[1]} {value}"


def _without_parameters(demangled: str) -> str:
    """Cut ``void f<(E)1>(int)`` to ``f<(E)1>``: what stands in no angle brackets between the last blank and the first parenthesis."""
    depth, start = 0, 0
    text = demangled.replace("(anonymous namespace)::", "")
    for index, letter in enumerate(text):
        depth += (letter == "<") - (letter == ">")
        if depth == 0 and letter == " ":
            start = index + 1
        if depth == 0 and letter == "(":
            return text[start:index]
    return text[start:]
