"""What all models of transformers that are read whole have in common: how they are recognised, and how they are written.

``save(format="hf")`` writes a folder that both read: ``lmmblocks.json`` (everything ``load`` needs), safetensors under the hub's names, the image
processor's config, the tokenizer, the configs of transformers, and an image token, because transformers marks image rows with an id of the table:

- the tokenizer's ``<image>``, if it has one;
- else the first id after the tokenizer's own, if the table has a row to spare there: nothing else changes;
- else a row is added to table and head in the file: the mean of the others. Its logit is the mean logit, so it is never the largest and its
  probability is at most ``1 / (V + 1)``. ``load`` leaves the row out again, and the tokenizer without it lies in ``lmmblocks_tokenizer/``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...chat import IMAGE_MARKER, write_tokenizer
from ...config import LMMConfig
from ...decoders.transformer import Transformer
from ...spec import LmmError
from ..agreement import of_config, of_processor
from ..chat_template import with_chat_template
from ..exact_types import preprocess_problems
from ..files.folder import write_json
from ..files.maps import KeyMap
from ..files.stored_dtypes import tables_of
from ..files.tensors import CONFIG
from ..generation import token_ids, write_generation_config
from .native import own_config
from .system import OWN_TOKENIZER, ModelFolder, System, nothing_is_held


def says_nothing(config: LMMConfig) -> dict[str, Any]:
    """Return no keys."""
    return {}


@dataclass(frozen=True)
class Writer:
    """How a model of transformers is written.

    Attributes:
        name: in messages.
        problems: what of the model it has no place for, decoder, reducers and hooks aside.
        config: from the model, its config with the file's vocabulary, and the image token's id, to the values of ``config.json``.
        write_processor: from the folder, the model and its config: writes what ``AutoProcessor`` reads, the decoder's tokenizer aside.
        layout: how its files name the tensors.
        images_apart: whether its processor puts images before the whole prompt.
        decoders: classes of decoders that it has a place for.
    """

    name: str
    problems: Callable[[Any], Iterator[str]]
    config: Callable[[Any, LMMConfig, int], dict[str, Any]]
    write_processor: Callable[[Path, Any, LMMConfig], None]
    layout: KeyMap
    images_apart: bool = False
    decoders: tuple[type, ...] = (Transformer,)

    def __call__(
        self, model: Any, config: LMMConfig, state: dict[str, Tensor], folder: Path, dtype: torch.dtype | None, target: Path
    ) -> dict[str, Tensor]:
        """Write the files beside the weights and return the weights under the names in the file.

        Raises:
            LmmError: blocks that transformers' model has no place for; all are listed.
        """
        self._refuse_others(model)
        tokenizer, image_token = _with_image_token(model)
        vocab = max(config.decoder.vocab, image_token + 1)
        stored = replace(config, decoder=config.decoder.with_vocab(vocab))
        name = str(dtype or model.decoder.table.dtype).removeprefix("torch.")
        ids = token_ids(model)
        values = self.config(model, stored, image_token)
        values["text_config"] |= {key: value for key, value in ids.items() if key != "pad_token_id"}
        write_json(folder / CONFIG, {**values, "pad_token_id": ids["pad_token_id"], "torch_dtype": name})
        write_generation_config(folder, model)
        self.write_processor(folder, model, config)
        if tokenizer is not None:
            write_tokenizer(with_chat_template(tokenizer, model, images_apart=self.images_apart), folder)
        if vocab > config.decoder.vocab and tokenizer is not None:
            write_tokenizer(model.tokenizer, folder / OWN_TOKENIZER)
        tables = tables_of(model)
        state = {key: _with_mean_rows(value, vocab) if key in tables else value for key, value in state.items()}
        return {self.layout.to_file(key) or key: value for key, value in state.items()}

    def _refuse_others(self, model: Any) -> None:
        """Raise an LmmError that lists everything this model of transformers has no place for."""
        expected = " or ".join(repr(kind.__name__) for kind in self.decoders)
        decoder = [] if type(model.decoder) in self.decoders else [f"decoder {type(model.decoder).__name__!r} (expected {expected})"]
        problems = [*self.problems(model), *decoder, *preprocess_problems(model.encoder.preprocess)]
        several = (("reducer", model.reducers), ("hook", model.hooks))
        problems += [f"{kind} {type(part).__name__!r} (expected none)" for kind, entries in several for part in entries]
        if problems:
            raise LmmError(f"transformers' {self.name} has no place for {'; '.join(problems)}: save with format='native'")


def of_transformers(
    kind: str,
    *,
    config: Callable[[Path, Mapping[str, Any]], LMMConfig],
    layouts: tuple[KeyMap, ...],
    processor: Callable[[LMMConfig], dict[str, Any]] = says_nothing,
    holds: Callable[[Any], bool] = nothing_is_held,
    writer: Writer | None = None,
    **more: Any,
) -> System:
    """Return the system of a model of transformers.

    Args:
        kind: its ``model_type`` in ``config.json``, by which it is recognised.
        config: from the folder and the values of ``config.json`` to the model, image preprocessing included.
        layouts: how its files name the tensors.
        processor: what ``processor_config.json`` has to say about a model, for differences.
        holds: whether a model of ours is one of these.
        writer: how it is written; None = it is only read.
        **more: further fields of ``System``, or others than these.
    """

    def theirs(folder: ModelFolder) -> LMMConfig:
        return config(folder.path, folder.values)

    def differences(folder: ModelFolder, found: LMMConfig, tokenizer: Any) -> Iterator[str]:
        if folder.says_itself:
            return of_config(folder.path, found, theirs(folder))
        return of_processor(folder.path, folder.values, processor(found), tokenizer)

    fields: dict[str, Any] = dict(
        name="Hugging Face",
        reads=lambda folder: folder.values.get("model_type") == kind,
        config=lambda folder: own_config(folder) if folder.says_itself else theirs(folder),
        layouts=layouts,
        title=lambda folder: "lmmblocks, written so that transformers reads it too" if folder.says_itself else f"Hugging Face ({kind})",
        stored_vocab=lambda folder: theirs(folder).decoder.vocab if folder.says_itself else None,
        differences=differences,
        model_type=kind,
        holds=holds,
    )
    written = {} if writer is None else {"format": "hf", "write": writer}
    return System(**{**fields, **written, **more})


def _with_image_token(model: Any) -> tuple[Any, int]:
    """Return a tokenizer that knows ``<image>`` (None without a tokenizer), and its id; the model's own is left as it is."""
    if model.tokenizer is None:
        return None, model.decoder.vocab
    if IMAGE_MARKER in model.tokenizer.get_added_vocab():
        return model.tokenizer, model.tokenizer.get_added_vocab()[IMAGE_MARKER]
    tokenizer = copy.deepcopy(model.tokenizer)  # one that has it as an ordinary word wouldn't find it inside a text
    tokenizer.add_tokens(IMAGE_MARKER, special_tokens=True)
    return tokenizer, tokenizer.get_vocab()[IMAGE_MARKER]


def _with_mean_rows(table_VD: Tensor, rows: int) -> Tensor:
    """Append the mean row until the table has ``rows`` rows."""
    missing = rows - table_VD.shape[0]
    if not missing:
        return table_VD
    mean_1D = table_VD.detach().float().mean(0, keepdim=True).to(table_VD.dtype)
    return torch.cat([table_VD.detach(), mean_1D.expand(missing, -1)])
