"""Any ``AutoModelForCausalLM`` of transformers as a decoder.

Packed where its attention goes through transformers' attention interface (:mod:`.hf_packed`), padded inside the decoder where not
(:mod:`.hf_padded`), which is said once. Which way is found by trying the model (:mod:`.hf_check`). Names of parameters are those of the
model itself. Auxiliary losses of mixtures of experts are not part of what a decoder returns.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch.nn as nn
from torch import Tensor

from ..ops.activations import softcapped
from ..spec import LayerHook, LmmError, Segments
from ..spec.versions import refuse_older_than
from .cache import KVCache
from .context import LayerContext
from .ends import is_weight
from .hf_check import Findings, find_out
from .hf_config import HFDecoderConfig, Way
from .hf_packed import IMPLEMENTATION, PackedPass, find_layers, register, run_packed, serve_hooks
from .hf_padded import SequenceCaches, run_padded
from .hf_read import OLDEST_TRANSFORMERS, read_causal_lm
from .hooks import HOOK_OFFERS, pass_vision
from .vision import VisionContext

__all__ = ["HFDecoder", "HFDecoderConfig", "is_hf_model"]


class HFDecoder(nn.Module):
    """A decoder block around a model of transformers; ``state_dict`` keys are the model's.

    Args:
        model: an ``AutoModelForCausalLM``. Running packed, it uses our attention; ``model.set_attn_implementation("sdpa")`` gives it back.
        config: None = that of the model.

    Attributes:
        dim: width of the rows that enter and leave.
        vocab: rows of the embedding table.

    Raises:
        LmmError: an older transformers, not a language model with a table and a head, or ``way="packed"`` for one that can't; the reasons are listed.

    Example:
        ``decoder = HFDecoder.of("EleutherAI/pythia-160m"); print(decoder.explain())``
    """

    def __init__(self, model: Any, config: HFDecoderConfig | None = None) -> None:
        refuse_older_than(OLDEST_TRANSFORMERS, "transformers", "decoder 'hf'")
        super().__init__()
        self.config = config or HFDecoderConfig.of(model)
        # The same tables of children as the model's: names are the model's, and what replaces a child in one place is seen in both.
        for name in ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set"):
            self.__dict__[name] = model.__dict__[name]
        self._model = (model,)  # in a tuple, it isn't a child
        _check_parts(model)
        self.vocab, self.dim = model.get_input_embeddings().weight.shape
        self._found: Findings | None = None
        self._own_ends = tuple(type(end) for end in self._ends())
        self.recompute = self.config.recompute
        self._findings()

    @classmethod
    def of(cls, model: Any, *, way: Way = "auto", recompute: bool = False) -> HFDecoder:
        """Wrap a model of transformers, or read one.

        Args:
            model: a ``PreTrainedModel`` with a head, a folder, or a hub id.
            way: see ``HFDecoderConfig``.
            recompute: see ``HFDecoderConfig``.

        Raises:
            LmmError: nothing there, or no causal language model.
        """
        if isinstance(model, (str, os.PathLike)):
            model = read_causal_lm(model)
        if not is_hf_model(model):
            raise LmmError(f"expected a model of transformers, a folder or a hub id, found {type(model).__name__!r}")
        return cls(model, HFDecoderConfig.of(model, way=way, recompute=recompute))

    @property
    def hf_model(self) -> Any:
        """The model of transformers."""
        return self._model[0]

    @property
    def table(self) -> Tensor:
        """The embedding table ``(V, D)``, source of the splice; text rows are ``embed_scale`` times its rows."""
        return self.hf_model.get_input_embeddings().weight

    @property
    def head_weight(self) -> Tensor:
        """The head ``(V, D)``, which the loss reads."""
        return self.hf_model.get_output_embeddings().weight

    @property
    def head_bias(self) -> Tensor | None:
        """Bias ``(V,)`` of the head; None = none."""
        return getattr(self.hf_model.get_output_embeddings(), "bias", None)

    @property
    def embed_scale(self) -> float | None:
        """Factor of text rows (Gemma); None = 1."""
        return self._findings().embed_scale

    @property
    def logit_softcap(self) -> float | None:
        """See ``ops.softcapped`` (Gemma 2); None = none."""
        return self._findings().logit_softcap

    @property
    def packed(self) -> bool:
        """Whether segments are run packed. As long as the weights are on the meta device, what the structure of the model promises."""
        return self.config.way != "padded" and not self._findings().against_packed

    def explain(self) -> str:
        """Say which way the model is run, and why."""
        return "; note: ".join([self._explained(), *self._findings().notes])

    def _explained(self) -> str:
        found, kind = self._findings(), self.config.hf["model_type"]
        if self.config.way == "padded":
            return f"{kind} runs padded, because way='padded' says so"
        if found.against_packed:
            return f"{kind} runs padded: {'; '.join(found.against_packed)}"
        trial = "tried on two segments" if found.certain else "not tried yet: its weights are on the meta device"
        return f"{kind} runs packed through transformers' attention interface ({trial})"

    def resize_vocab(self, rows: int) -> None:
        """Give table, head and its bias ``rows`` rows, at least as many as they have. Older optimizers hold the old parameters."""
        model = self.hf_model
        trained = self.table.requires_grad, self.head_weight.requires_grad
        model.resize_token_embeddings(rows, mean_resizing=False)
        self.table.requires_grad_(trained[0])
        self.head_weight.requires_grad_(trained[1])
        self.vocab = rows
        self.config = HFDecoderConfig.of(model, way=self.config.way, recompute=self.config.recompute)

    def embed(self, ids: Tensor) -> Tensor:
        """Return ``(T, D)`` rows as they enter the model: of the table, times ``embed_scale``."""
        return self.hf_model.get_input_embeddings()(ids)

    def head(self, hidden: Tensor) -> Tensor:
        """Return logits ``(..., V)``."""
        return softcapped(self.hf_model.get_output_embeddings()(hidden), self.logit_softcap)

    def new_cache(self, sequences: int) -> Any:
        """Return an empty cache for ``sequences`` sequences: a ``KVCache`` when packed, else one of transformers' caches for each."""
        if self.packed:
            return KVCache(self.config.layers, sequences)
        return SequenceCaches(sequences, bool(getattr(self.hf_model, "_is_stateful", False)))

    def _ends(self) -> tuple[nn.Module, nn.Module]:
        return self.hf_model.get_input_embeddings(), self.hf_model.get_output_embeddings()

    @property
    def table_is_weight(self) -> bool:
        """False where something wraps the table, so that its rows alone don't say what ``embed`` gives."""
        return is_weight(self._ends()[0], self._own_ends[0])

    @property
    def head_is_weight(self) -> bool:
        """False where something wraps the head, so that its rows alone don't say what ``head`` gives."""
        return is_weight(self._ends()[1], self._own_ends[1])

    @property
    def recompute(self) -> bool:
        """Whether each layer is computed again in the backward; may be set at any time, and the config follows.

        Raises:
            LmmError: when set to True for a model of transformers that can't (``supports_gradient_checkpointing``).
        """
        return self.config.recompute

    @recompute.setter
    def recompute(self, value: bool) -> None:
        model = self.hf_model
        if value and not getattr(model, "supports_gradient_checkpointing", False):
            raise LmmError(f"recompute=True, but transformers' {type(model).__name__} can't recompute its layers: set recompute=False")
        self.config = replace(self.config, recompute=value)
        if value:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        elif any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
            model.gradient_checkpointing_disable()

    @property
    def sees_ahead(self) -> str | bool:
        """Whether rows may see ahead (``kv_end``): when packed; if not, why."""
        return True if self.packed else self.explain()

    @property
    def hook_offers(self) -> frozenset[str]:
        """What layer hooks may require: everything when packed, nothing when padded."""
        return HOOK_OFFERS if self.packed else frozenset()

    def forward(
        self,
        embeds: Tensor,
        *,
        positions: Tensor,
        segments: Segments,
        kv_end: Tensor | None = None,
        cache: Any | None = None,
        hooks: Sequence[LayerHook] = (),
        vision: VisionContext | None = None,
    ) -> Tensor:
        """Run packed rows; arguments and result as those of ``Transformer.forward``.

        Raises:
            LmmError: ``hooks`` or ``kv_end`` for a model that runs padded.
        """
        run = self._packed if self.packed else self._padded
        hidden_TD = run(embeds, LayerContext(0, positions, segments, kv_end, None, None, cache, vision), hooks)
        scale = self._findings().logit_scale
        return hidden_TD if scale is None else hidden_TD * scale

    def _packed(self, embeds: Tensor, context: LayerContext, hooks: Sequence[LayerHook]) -> Tensor:
        segments, cache = context.segments, context.cache
        vision = pass_vision(context.vision, cache, segments, embeds.shape[0])
        if cache is not None:
            segments = cache.segments(segments.lengths_q, embeds.device)
        run = PackedPass(replace(context, segments=segments, vision=vision), tuple(hooks))
        return run_packed(_trunk(self.hf_model), embeds, run)

    def _padded(self, embeds: Tensor, context: LayerContext, hooks: Sequence[LayerHook]) -> Tensor:
        if hooks or context.kv_end is not None:
            asked = "layer hooks" if hooks else "rows that see ahead (kv_end)"
            raise LmmError(f"{asked} need a decoder that runs packed, and {self.explain()}")
        cache: Any = context.cache
        run = run_padded if cache is None else cache.run
        return run(_trunk(self.hf_model), embeds, context.positions, context.segments)

    def _findings(self) -> Findings:
        """Try the model as soon as it has weights; prepare it for the way it is run."""
        if self._found is not None and self._found.certain:
            return self._found
        model, way = self.hf_model, self.config.way
        self._found = found = find_out(model, _trunk(model), packed=way != "padded")
        if found.against_packed and way == "packed":
            raise LmmError(f"{self.config.hf['model_type']} can't run packed: {'; '.join(found.against_packed)}")
        if found.against_packed and found.certain:
            warnings.warn(self.explain(), stacklevel=3)
        if way != "padded" and not found.against_packed and found.certain:
            register()
            model.set_attn_implementation(IMPLEMENTATION)
            layers = find_layers(_trunk(model), self.config.layers)
            assert layers is not None
            serve_hooks(layers)
        return found

    def train(self, mode: bool = True) -> HFDecoder:
        """Switch the model between training and evaluation."""
        self.hf_model.training = mode
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> HFDecoder:
        """Move or convert the parameters; buffers that no file holds (rotary frequencies) keep their precision."""
        kept = dict(self._computed_buffers())
        super()._apply(fn, recurse)
        for (owner, leaf), before in kept.items():
            after = owner._buffers[leaf]
            if after is not None and after.dtype != before.dtype:
                owner._buffers[leaf] = before.to(after.device)
        return self

    def _computed_buffers(self) -> Any:
        for owner in self.modules():
            for leaf in owner._non_persistent_buffers_set:
                buffer = owner._buffers.get(leaf)
                if buffer is not None and buffer.is_floating_point():
                    yield (owner, leaf), buffer


def is_hf_model(module: Any) -> bool:
    """Return whether something is a model of transformers; doesn't import it."""
    transformers = sys.modules.get("transformers")
    return transformers is not None and isinstance(module, transformers.PreTrainedModel)


def _trunk(model: Any) -> Any:
    """Return the model without its head; None when it has no such part."""
    parts = (model.base_model, model.get_decoder(), getattr(model, "model", None))
    return next((part for part in parts if part is not None and part is not model), None)


def _check_parts(model: Any) -> None:
    table, head = (getattr(part, "weight", None) for part in (model.get_input_embeddings(), model.get_output_embeddings()))
    shapes = [None if weight is None else tuple(weight.shape) for weight in (table, head)]
    if _trunk(model) is None or shapes[0] is None or shapes[0] != shapes[1]:
        raise LmmError(
            f"{type(model).__name__} is not a language model with a head of the shape of its table (found a table {shapes[0]}, a head "
            f"{shapes[1]}): use an AutoModelForCausalLM"
        )
