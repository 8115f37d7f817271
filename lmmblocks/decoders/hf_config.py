"""What a decoder of transformers is, as plain values: the config it is built from, and how it is run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ..spec import ByKeywords, LmmError, closest
from ..spec.fields import field_problems

if TYPE_CHECKING:
    from .hf import HFDecoder

Way = Literal["auto", "packed", "padded"]
_NOT_OF_THE_MODEL = ("_name_or_path", "transformers_version", "dtype", "torch_dtype")


@dataclass(frozen=True)
class HFDecoderConfig(metaclass=ByKeywords):
    """A decoder of transformers, as values that survive JSON.

    Attributes:
        hf: the transformers config, as in a ``config.json``; ``model_type`` names the family, what is left out has its defaults.
        way: ``packed``, ``padded``, or ``auto``: packed if the model can.
        recompute: recompute each layer in the backward instead of keeping its activations (transformers' gradient checkpointing).

    Raises:
        LmmError: no model of transformers' own, or values that its config refuses.

    >>> HFDecoderConfig({"model_type": "gpt2", "n_embd": 32, "n_head": 4}).dim
    32
    """

    choices: ClassVar[tuple[str, ...]] = ("way", "recompute")
    """What is the user's choice and not a property of the weights, and stays when these are read."""

    hf: Mapping[str, Any] = field(default_factory=dict)
    way: Way = "auto"
    recompute: bool = False

    def __post_init__(self) -> None:
        try:
            values = json.loads(json.dumps(dict(self.hf)))
        except TypeError as error:
            raise LmmError(f"HFDecoderConfig: hf holds something that JSON can't: {error}") from error
        object.__setattr__(self, "hf", {key: value for key, value in values.items() if key not in _NOT_OF_THE_MODEL})
        problems = field_problems(self)
        if not isinstance(self.hf.get("model_type"), str):
            problems.append("hf lacks 'model_type', which names the family of the model")
        if problems:
            raise LmmError("HFDecoderConfig: " + "; ".join(problems))

    @staticmethod
    def of(model: Any, *, way: Way = "auto", recompute: bool = False) -> HFDecoderConfig:
        """Return the config of a model of transformers."""
        return HFDecoderConfig({**model.config.to_dict(), "model_type": model.config.model_type}, way, recompute)

    @cached_property
    def transformers(self) -> Any:
        """The config as transformers' own object.

        Raises:
            LmmError: an unknown ``model_type``, or values that its class refuses.
        """
        from transformers import CONFIG_MAPPING

        kind = self.hf["model_type"]
        if kind not in CONFIG_MAPPING:
            raise LmmError(
                f"transformers has no model_type {kind!r}{closest(kind, CONFIG_MAPPING)}: install a version that has it; a model that brings its "
                f"own code is made with AutoModelForCausalLM.from_pretrained(..., trust_remote_code=True) and passed as decoder="
            )
        try:
            return CONFIG_MAPPING[kind].from_dict(dict(self.hf))
        except Exception as error:  # each config class has its own ways to refuse
            raise LmmError(f"transformers' config of {kind!r} refuses these values: {error}") from error

    @property
    def _text(self) -> Any:
        return self.transformers.get_text_config(decoder=True)

    @property
    def dim(self) -> int:
        """Model width ``D``, as the config has it."""
        return self._text.hidden_size

    @property
    def layers(self) -> int:
        """Number of layers."""
        return self._text.num_hidden_layers

    @property
    def vocab(self) -> int:
        """Rows of the embedding table."""
        return self._text.vocab_size

    @property
    def max_positions(self) -> int | None:
        """Longest sequence the weights were trained for; None = the config has no such number."""
        return getattr(self._text, "max_position_embeddings", None)

    def with_vocab(self, rows: int) -> HFDecoderConfig:
        """Return the same decoder with a table of ``rows`` rows."""
        return replace(self, hf={**self.hf, "vocab_size": rows})

    def build(self) -> HFDecoder:
        """Return the decoder with random weights.

        Raises:
            LmmError: a model that transformers has no causal language model of.
        """
        from transformers import AutoModelForCausalLM

        from .hf import HFDecoder

        try:
            model = AutoModelForCausalLM.from_config(self.transformers, trust_remote_code=False)
        except ValueError as error:
            raise LmmError(f"transformers makes no causal language model of {self.hf['model_type']!r}: {error}") from error
        return HFDecoder(model, self)
