"""LoRA adapters, merged into the weights as they are read.

What PEFT's ``merge_and_unload`` does, in its order and precision: ``W += scale * (B @ A)`` with the product in fp32 and one rounding to the
dtype of ``W``; ``scale = alpha / r``, with ``use_rslora`` ``alpha / sqrt(r)``; on an embedding the product is transposed. Whole tensors in an
adapter (``modules_to_save``, biases, tables of a vocabulary that has grown) take the place of the base's, and factors change them.
Keys of its config that say more than which weights were trained are refused by name, as are those that nobody here knows. A tied model of which
an adapter trained the table or the head has two different ends from then on, as in the training (PEFT's own merge writes both into one tensor).
``fan_in_fan_out`` says how a GPT-2 ``Conv1D`` stores its weights: PEFT turns it off for linear layers, and there is nothing else here.
Source: Hu et al., arXiv 2106.09685; ``peft/tuners/lora/layer.py``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ..spec import LmmError
from ..spec.fields import is_number
from .files.maps import KeyMap, choose
from .files.tensors import WeightFiles, open_file, read_json, some

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")

_WRAPPER = re.compile(r"^base_model\.model\.")
_FACTOR = re.compile(r"^(?P<module>.+)\.lora_(?P<kind>A|B|embedding_A|embedding_B)(\.(?!weight$)\w+)?(\.weight)?$")
_SAVED_WHOLE = re.compile(r"\.modules_to_save(\.\w+)?(?=\.\w+$)")
_WRAPPED = re.compile(r"\.base_layer(?=\.\w+$)")
_READ = ("peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "init_lora_weights", "base_model_name_or_path", "revision")
_SEEN_IN_THE_WEIGHTS = (
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save", "bias", "fan_in_fan_out"),
    "ensure_weight_tying",
)
"""Keys that say which weights were trained: the adapter's file holds them, and no others."""

_OF_THE_TRAINING = (
    *("lora_dropout", "inference_mode", "task_type", "auto_mapping", "peft_version", "runtime_config", "megatron_core", "qalora_group_size"),
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config", "enable_lora", "merge_weights", "path_initial_model_for_weight_conversion"),
)
_KNOWN = {*_READ, *_SEEN_IN_THE_WEIGHTS, *_OF_THE_TRAINING}
_STARTS = (None, True, False, "true", "false", "gaussian", "eva", "orthogonal")
"""Values of ``init_lora_weights`` that leave the base as it is; others subtract the factors' first product from it."""

_TABLES = re.compile(r"(^|\.)(embed_tokens|lm_head)\.weight$")
_ENDS = ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight")


@dataclass(frozen=True)
class Factors:
    """The two factors of one weight's change.

    Attributes:
        a: name of ``A`` (r, in) in the adapter's file.
        b: name of ``B`` (out, r).
        scale: what their product is multiplied with.
        embedding: the product is transposed.
    """

    a: str
    b: str
    scale: float
    embedding: bool


def has_adapter(folder: Path) -> bool:
    """Say whether a folder holds an adapter of PEFT's."""
    return (folder / CONFIG).is_file() and any((folder / name).is_file() for name in WEIGHTS)


def open_adapter(folder: Path) -> WeightFiles:
    """Open an adapter's tensors, under the names in the file."""
    found = [name for name in WEIGHTS if (folder / name).is_file()]
    if not found:
        raise LmmError(f"{folder} has an {CONFIG} but no {' or '.join(WEIGHTS)}: copy or download it again")
    return open_file(folder / found[0])


def base_of(folder: Path) -> str | None:
    """Return what the adapter says it was trained on."""
    return read_json(folder / CONFIG).get("base_model_name_or_path") or None


def refuse_revision(folder: Path, base: str) -> None:
    """Refuse a base of the hub of another version than its newest, which is the one that would be read.

    Raises:
        LmmError: the adapter names such a version, and no folder.
    """
    revision = read_json(folder / CONFIG).get("revision")
    if revision not in (None, "", "main") and not Path(base).expanduser().is_dir():
        raise LmmError(
            f"{folder / CONFIG} names the base {base!r} in its revision {revision!r}: download that one (hf download {base} --revision {revision}) "
            f"and give its folder with load(..., base=...)"
        )


def merged(lower: WeightFiles, folder: Path, expected: Collection[str], layouts: Sequence[KeyMap]) -> WeightFiles:
    """Return weights with an adapter in them.

    Args:
        lower: the base, in the dtype that the merge shall round to, under the model's names.
        folder: the adapter's.
        expected: names in the model.
        layouts: how the trained model may have named its tensors.

    Raises:
        LmmError: an adapter that is more than LoRA, or factors that don't fit the base; all are listed.
    """
    values = read_json(folder / CONFIG)
    refuse_other_maths(folder)
    files = open_adapter(folder)
    factors, whole, left_over = _sorted(files, values, expected, layouts)
    problems = [f"no such weight in the model: {some(left_over)}"] if left_over else []
    shapes = {**lower.shapes, **{name: files.shapes[stored] for name, stored in whole.items()}}
    problems += list(_misfits(files, factors, shapes))
    if problems:
        raise LmmError(f"the LoRA adapter in {folder} doesn't fit its base ({lower.folder}):\n" + "\n".join(f"- {p}" for p in problems))

    def read(name: str) -> Tensor:
        weight = files.read(whole[name]) if name in whole else lower.read(name)
        return _changed(weight, files, factors[name]) if name in factors else weight

    dtypes = {**lower.dtypes, **{name: files.dtypes[stored] for name, stored in whole.items()}}
    return replace(lower, shapes=shapes, dtypes=dtypes, read=read, layout=f"{lower.layout}, with the LoRA adapter in {folder}")


def _changed(weight: Tensor, files: WeightFiles, factors: Factors) -> Tensor:
    product = files.read(factors.b).float() @ files.read(factors.a).float()
    return (weight + (product.T if factors.embedding else product) * factors.scale).to(weight.dtype)


def refuse_other_maths(folder: Path) -> None:
    """Refuse an adapter whose config asks for more than factors, whole tensors and their scales.

    Raises:
        LmmError: all such keys are listed, also those that nobody here knows.
    """
    values = read_json(folder / CONFIG)
    problems = [f"{key}={value!r}" for key, value in values.items() if key not in _KNOWN and value]
    if values.get("peft_type", "LORA") != "LORA":
        problems.insert(0, f"peft_type={values['peft_type']!r}")
    start = values.get("init_lora_weights")
    if (start.lower() if isinstance(start, str) else start) not in _STARTS:
        problems.append(f"init_lora_weights={start!r}, which changes the base")
    if problems:
        raise LmmError(f"{folder / CONFIG}: only plain LoRA is merged, found {'; '.join(problems)}: merge it with PEFT and load the result")


def _sorted(
    files: WeightFiles, values: Mapping[str, Any], expected: Collection[str], layouts: Sequence[KeyMap]
) -> tuple[dict[str, Factors], dict[str, str], list[str]]:
    """Return ``{weight: factors}``, ``{weight: whole tensor in the file}``, and names that fit nothing in the model."""
    target: dict[str, str] = {}  # name in the file -> name of the weight it changes, as the trained model had it
    kinds: dict[str, tuple[str, str]] = {}  # name in the file -> (kind of factor, module)
    for name in files.shapes:
        bare = _WRAPPER.sub("", name)
        found = _FACTOR.match(bare)
        if found:
            kinds[name] = (found["kind"], found["module"])
        target[name] = f"{found['module']}.weight" if found else whole_name(name)
    layout = choose(layouts, set(target.values()), expected)
    pairs: dict[str, dict[str, str]] = {}
    whole: dict[str, str] = {}
    left_over = []
    for name, weight in target.items():
        model = layout.to_model(weight)
        if model is None or model not in expected:
            left_over.append(name)
        elif name in kinds:
            pairs.setdefault(model, {})[kinds[name][0]] = name
        else:
            whole[model] = name
    factors = {}
    for model, pair in pairs.items():
        embedding = "embedding_A" in pair or "embedding_B" in pair
        a, b = (pair.get(f"embedding_{side}" if embedding else side) for side in "AB")
        if a is None or b is None:
            raise LmmError(f"{files.folder}: the LoRA adapter lacks the other factor of {a or b}: copy or download it again")
        factors[model] = Factors(a, b, _scale(values, kinds[a][1], files.shapes[a][0]), embedding)
    return factors, whole, left_over


def whole_name(name: str) -> str:
    """Return the name that a whole tensor of an adapter had in the trained model.

    >>> whole_name("base_model.model.lm_head.modules_to_save.default.weight"), whole_name("base_model.model.model.embed_tokens.base_layer.weight")
    ('lm_head.weight', 'model.embed_tokens.weight')
    """
    return _WRAPPED.sub("", _SAVED_WHOLE.sub("", _WRAPPER.sub("", name)))


def trains_an_end(folder: Path) -> bool:
    """Say whether an adapter trained the table or the head: by factors, or whole, as ``modules_to_save`` has it."""
    names = [_WRAPPER.sub("", name) for name in open_adapter(folder).shapes]
    if any(_TABLES.search(f"{found['module']}.weight") for name in names if (found := _FACTOR.match(name))):
        return True
    asked = [str(name).rpartition(".")[2] for name in read_json(folder / CONFIG).get("modules_to_save") or ()]
    return any(_TABLES.search(f"{name}.weight") for name in asked)


def separates_ends(folder: Path) -> bool:
    """Say whether the table and the head of a tied model are two after a run with this adapter.

    PEFT puts a trained table or head beside the old one, so the other end keeps the old: the tie is gone, unless ``ensure_weight_tying`` asked
    for both to be trained as one.
    """
    return trains_an_end(folder) and not read_json(folder / CONFIG).get("ensure_weight_tying")


def with_both_ends(files: WeightFiles) -> WeightFiles:
    """Return the weights of a tied model with the head's under its own name, so that an adapter can change one of the two."""
    table, head = _ENDS
    if head in files.shapes or table not in files.shapes:
        return files
    return replace(
        files,
        shapes={**files.shapes, head: files.shapes[table]},
        dtypes={**files.dtypes, head: files.dtypes[table]},
        read=lambda name: files.read(table if name == head else name),
    )


def table_rows(files: WeightFiles) -> int | None:
    """Return the tokens that whole tables among an adapter's or a LoRA run's tensors have rows for, None where there are none."""
    rows = {shape[0] for name, shape in files.shapes.items() if not _FACTOR.match(name) and _TABLES.search(whole_name(name))}
    if len(rows) > 1:
        found = " and ".join(map(str, sorted(rows)))
        raise LmmError(f"{files.folder}: table and head have rows for {found} tokens, expected as many in both: save them again")
    return next(iter(rows), None)


def _misfits(files: WeightFiles, factors: Mapping[str, Factors], lower: Mapping[str, tuple[int, ...]]) -> list[str]:
    problems = []
    for name, pair in factors.items():
        a, b = files.shapes[pair.a], files.shapes[pair.b]
        product = (b[0], a[-1])[:: -1 if pair.embedding else 1]
        if len(a) != 2 or len(b) != 2 or a[0] != b[1]:
            problems.append(f"{name}: A is {a} and B is {b}, expected (r, in) and (out, r)")
        elif lower.get(name) != product:
            found = lower.get(name)
            problems.append(f"{name} is {found or 'missing'} in the base, the adapter's change is {product}{_grown(name, found, product)}")
    return [some(problems)] if problems else []


def _grown(name: str, below: tuple[int, ...] | None, product: tuple[int, ...]) -> str:
    """Say what is missing where an adapter was trained on a table with more rows than the base's."""
    if not _TABLES.search(name) or below is None or below[1:] != product[1:] or below[0] >= product[0]:
        return ""
    return (
        f" (its vocabulary grew by {product[0] - below[0]}, and the new rows are not in the adapter: save it with save_embedding_layers=True, "
        f"or give the base that was saved after it grew)"
    )


def _scale(values: Mapping[str, Any], module: str, rows: int) -> float:
    """Return alpha over r, or over its root; both may be set for some modules by patterns of their names."""
    rank, alpha = (_for_module(values, f"{key}_pattern", module, values.get(name)) for key, name in (("rank", "r"), ("alpha", "lora_alpha")))
    if rank != rows:
        raise LmmError(f"{CONFIG} says r={rank!r} for {module}, its A has {rows} rows: use an adapter whose config and weights belong together")
    if not is_number(alpha):
        raise LmmError(f"{CONFIG}: lora_alpha must be a number, found {alpha!r}")
    return alpha / (math.sqrt(rows) if values.get("use_rslora") else rows)


def _for_module(values: Mapping[str, Any], key: str, module: str, default: Any) -> Any:
    patterns = values.get(key) or {}
    return next((value for pattern, value in patterns.items() if re.match(rf"(.*\.)?({pattern})$", module)), default)


def changed_modules(folder: Path) -> tuple[int, int, int]:
    """Return how many weights an adapter changes, its largest rank, and how many tensors it brings whole, from names and shapes alone."""
    shapes = open_adapter(folder).shapes
    ranks = [shape[0] for name, shape in shapes.items() if (found := _FACTOR.match(_WRAPPER.sub("", name))) and found["kind"].endswith("A")]
    whole = sum(not _FACTOR.match(_WRAPPER.sub("", name)) for name in shapes)
    return len(ranks), max(ranks, default=0), whole
