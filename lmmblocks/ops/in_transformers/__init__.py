"""Our attention inside models of transformers, as ``attn_implementation="lmmblocks"``.

Motivation: any model that goes through transformers' attention interface, padded or packed, gets the kernels of :func:`lmmblocks.ops.attention`.

How it works: transformers asks an attention implementation for two functions. ``mask.py`` is asked once a pass, instead of for a mask, and
answers which rows are no padding and where their segments begin; every layer then hands its rows to ``attention.py``. Padding is taken
out before the kernels, not masked.

Non-goals: dropout of attention weights, attention sinks, masks that a model makes itself: each is refused by name. The decoders of
:mod:`lmmblocks.decoders` don't come through here: they run transformers' models packed from the collator on, and without this look at
the device once a pass.
"""

from __future__ import annotations

from ...spec.versions import refuse_older_than

IMPLEMENTATION = "lmmblocks"


def register_with_transformers() -> str:
    """Make :func:`lmmblocks.ops.attention` an attention implementation of transformers; a second call does nothing new.

    ``AutoModel.from_pretrained(path, attn_implementation=ops.register_with_transformers())`` or, on a model that exists,
    ``model.set_attn_implementation(ops.register_with_transformers())``. Padded batches come with ``attention_mask`` as always, packed
    ones as one row with ``position_ids`` that restart, or with ``cu_seq_lens_q``, ``cu_seq_lens_k``, ``max_length_q`` and ``max_length_k``.

    Returns:
        The name it is known by, ``"lmmblocks"``.

    Raises:
        LmmError: a transformers before 5.4, which asks for masks in another way.
    """
    refuse_older_than("5.4", "transformers", "register_with_transformers()")
    from transformers import AttentionInterface, AttentionMaskInterface

    from .attention import attention_of_transformers
    from .mask import rows_instead_of_mask

    AttentionInterface.register(IMPLEMENTATION, attention_of_transformers)
    AttentionMaskInterface.register(IMPLEMENTATION, rows_instead_of_mask)
    return IMPLEMENTATION
