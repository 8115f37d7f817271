"""What a model is made of, as typed values that survive a round trip through JSON (``lmmblocks.json`` beside the weights)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, Field, asdict, dataclass, field, fields, is_dataclass
from typing import Any

from . import registry
from .images.kinds import preprocess_from_dict, preprocess_to_dict
from .spec import ByKeywords, LmmError, refuse_unknown
from .spec.fields import field_problems, make_plain
from .spec.words import Attention, Mode

FORMAT_VERSION = 1
SEVERAL = {"reducers": "visionzip", "hooks": "my_package.my_module:MyHook"}
"""Fields that hold any number of blocks by name, with an example; their kind is the word without its s."""


@dataclass(frozen=True)
class Block(metaclass=ByKeywords):
    """A block by name with its own options; widths are filled in when the model is composed.

    Attributes:
        type: a registered name or ``package.module:Class``.
        options: keyword arguments beside ``in_dim`` and ``out_dim``.
    """

    type: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        make_plain(self)
        joint = sorted({"in_dim", "out_dim"} & set(self.options))
        if joint:
            raise LmmError(f"block {self.type!r}: {joint} follow from the encoder and the decoder: leave them out")
        if "type" in self.options:
            raise LmmError(f"block {self.type!r}: an option can't be called 'type', which names the block in JSON: choose another name")


@dataclass(frozen=True, kw_only=True)
class LMMConfig(metaclass=ByKeywords):
    """The parts of a model.

    Attributes:
        encoder: config dataclass of the vision encoder, such as ``CLIPConfig``.
        projector: the connector by name.
        decoder: config dataclass of the language model, such as ``TransformerConfig``.
        reducers: what drops or merges image rows, by name, in this order.
        hooks: what changes rows between the decoder's layers, by name.
        template: name of the chat template, ``auto`` for the tokenizer's own, or the fields of one (``chat.template_to_dict``).
        tokenize_mode: ``pieces`` or ``llava15`` (the original's token ids).
        max_length: most rows a segment may have; None = the decoder's ``max_positions``.
        attention: ``causal``, or ``images``: each image row also sees the rest of its image, in training and in answers alike.
        preprocess: how pictures become pixels; None = the encoder's own.
        encoder_source: folder or hub id of the encoder's pretrained weights.
        decoder_source: folder or hub id of the decoder's pretrained weights.
        tokenizer_source: folder or hub id of the tokenizer; None = ``decoder_source``.
    """

    encoder: Any
    decoder: Any
    projector: Block = Block("mlp", {"depth": 2})
    reducers: tuple[Block, ...] = ()
    hooks: tuple[Block, ...] = ()
    template: Mapping[str, Any] | str = "vicuna_v1"
    tokenize_mode: Mode = "pieces"
    max_length: int | None = None
    attention: Attention = "causal"
    preprocess: Any = None
    encoder_source: str | None = None
    decoder_source: str | None = None
    tokenizer_source: str | None = None

    def __post_init__(self) -> None:
        problems = field_problems(self)
        for kind, example in (("encoder", "CLIPConfig(...)"), ("decoder", "TransformerConfig(...)")):
            if not is_config(getattr(self, kind)):
                problems.append(f"{kind} needs a config dataclass such as {example}, found {getattr(self, kind)!r}")
        if not isinstance(self.projector, Block):
            problems.append(f"projector must be a Block, such as Block('mlp'), found {self.projector!r}")
        for name in SEVERAL:
            if not isinstance(getattr(self, name), tuple) or not all(isinstance(block, Block) for block in getattr(self, name)):
                problems.append(f"{name} must be a tuple of Blocks, such as (Block({SEVERAL[name]!r}),), found {getattr(self, name)!r}")
        if not isinstance(self.template, (str, Mapping)):
            problems.append(f"template must be a string, or the fields of a template, found {self.template!r}")
        if problems:
            raise LmmError("LMMConfig: " + "; ".join(problems))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; ``from_dict`` rebuilds an equal config."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        return {
            "format_version": FORMAT_VERSION,
            **plain,
            "encoder": _block_to_dict("encoder", self.encoder),
            "decoder": _block_to_dict("decoder", self.decoder),
            "projector": _named_to_dict(self.projector),
            **{name: [_named_to_dict(block) for block in getattr(self, name)] for name in SEVERAL},
            "preprocess": None if self.preprocess is None else preprocess_to_dict(self.preprocess),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LMMConfig:
        """Rebuild from ``to_dict``.

        Raises:
            LmmError: unknown or missing keys, a format of another version, an unknown block.
        """
        rest = dict(values)
        version = rest.pop("format_version", FORMAT_VERSION)
        if version != FORMAT_VERSION:
            raise LmmError(f"model config has format_version {version}, this library reads {FORMAT_VERSION}: install a version that reads it")
        refuse_unknown("model config: unknown keys", rest, [f.name for f in fields(cls)])
        missing = [name for name in ("encoder", "decoder") if name not in rest]
        if missing:
            raise LmmError(f"model config lacks {missing}")
        for kind in ("encoder", "decoder"):
            rest[kind] = _block_from_dict(kind, rest[kind])
        if "projector" in rest:
            rest["projector"] = _named_from_dict("projector", rest["projector"])
        for name in SEVERAL:
            if not isinstance(rest.get(name, []), list):
                raise LmmError(f"{name} must be a list of JSON objects, found {rest[name]!r}")
            rest[name] = tuple(_named_from_dict(name[:-1], block) for block in rest.get(name, []))
        if rest.get("preprocess") is not None:
            rest["preprocess"] = preprocess_from_dict(_object("preprocess", rest["preprocess"]))
        return cls(**rest)

    def to_json(self) -> str:
        """Return the config as indented JSON."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> LMMConfig:
        """Rebuild from ``to_json``.

        Raises:
            LmmError: broken JSON, with line and column, or a config that ``from_dict`` refuses.
        """
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise LmmError(f"model config is not JSON: line {error.lineno}, column {error.colno}: {error.msg}") from error
        if not isinstance(values, dict):
            raise LmmError(f"model config must be a JSON object, found {type(values).__name__}")
        return cls.from_dict(values)


def is_config(value: Any) -> bool:
    """Return whether a value is an instance of a dataclass (not the class itself)."""
    return is_dataclass(value) and not isinstance(value, type)


def _object(what: str, values: Any) -> dict[str, Any]:
    if not isinstance(values, Mapping):
        raise LmmError(f"{what} must be a JSON object, found {values!r}")
    return dict(values)


def _named_to_dict(block: Block) -> dict[str, Any]:
    return {"type": block.type, **block.options}


def _named_from_dict(kind: str, values: Any) -> Block:
    options = _object(f"{kind} config", values)
    return Block(_type_of(kind, options), options)


def _type_of(kind: str, values: dict[str, Any]) -> str:
    name = values.pop("type", None)
    if not isinstance(name, str):
        raise LmmError(f"{kind} config needs a 'type', one of {registry.names(kind)} or 'package.module:Class'")
    return name


def _block_to_dict(kind: str, config: Any) -> dict[str, Any]:
    inner = {f.name: f.metadata["block"] for f in fields(config) if "block" in f.metadata}
    plain = {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(config).items() if key not in inner}
    nested = {name: _blocks_to_dict(inner_kind, getattr(config, name)) for name, inner_kind in inner.items()}
    return {"type": registry.name_of(kind, type(config)), **plain, **nested}


def _blocks_to_dict(kind: str, value: Any) -> Any:
    """Plain values of a field that holds a block's config or several of them; the field says so: ``metadata={"block": kind}``."""
    return [_block_to_dict(kind, config) for config in value] if isinstance(value, tuple) else _block_to_dict(kind, value)


def _block_from_dict(kind: str, values: Mapping[str, Any]) -> Any:
    rest = _object(f"{kind} config", values)
    name = _type_of(kind, rest)
    config: Any = registry.resolve(kind, name)
    if not is_dataclass(config):
        raise LmmError(f"{kind} {name!r} is no config dataclass, which a model config needs: found {config!r}")
    refuse_unknown(f"{kind} config: unknown keys", rest, [f.name for f in fields(config)])
    missing = [f.name for f in fields(config) if f.default is f.default_factory is MISSING and f.name not in rest]
    if missing:
        raise LmmError(f"{kind} config {name!r} lacks {missing}")
    declared = {f.name: f for f in fields(config)}
    made: Any = config  # narrowed to an instance above, which is a class
    return made(**{key: _field_value(declared[key], value) for key, value in rest.items()})


def _field_value(declared: Field, value: Any) -> Any:
    """Return what a field of a block's config holds: tuples for lists, configs where the field holds blocks."""
    kind = declared.metadata.get("block")
    if kind is not None:
        return tuple(_block_from_dict(kind, v) for v in value) if isinstance(value, list) else _block_from_dict(kind, value)
    return tuple(value) if isinstance(value, list) else value
