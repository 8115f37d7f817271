"""Our calls fit what flash-attn and xFormers really are: recorded signatures and masks (``record_external.py``), and the packages if installed."""

import ast
import inspect
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmmblocks.ops.attention import external
from lmmblocks.ops.attention.call import AttentionCall
from lmmblocks.ops.attention.reference import visible_keys
from lmmblocks.spec import Segments

RECORD = json.loads(Path(__file__).with_name("external.json").read_text())
SIGNATURES = RECORD["flash_attn_varlen_func"]


def seen_by_ours(lengths_q, lengths_k, causal, window):
    """The block-diagonal mask by the formula of our reference."""
    seen, row, key = torch.zeros(sum(lengths_q), sum(lengths_k), dtype=torch.bool), 0, 0
    for len_q, len_k in zip(lengths_q, lengths_k):
        places, keys = torch.arange(len_k - len_q, len_k), torch.arange(len_k)
        mask = visible_keys(places, keys, causal, None, window)
        seen[row : row + len_q, key : key + len_k] = True if mask is None else mask
        row, key = row + len_q, key + len_k
    return seen


def recorded(parameters):
    """The signature that a package had when it was recorded."""
    made = []
    for name, *default in parameters:
        value = ast.literal_eval(default[0]) if default else inspect.Parameter.empty
        made.append(inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=value))
    return inspect.Signature(made)


@pytest.mark.parametrize("package", SIGNATURES)
@pytest.mark.parametrize(("causal", "window", "sides"), [(False, None, (-1, -1)), (True, None, (-1, 0)), (True, 3, (2, 0)), (False, 3, (2, -1))])
def test_the_call_of_flash_attn_binds_to_its_recorded_signature(monkeypatch, package, causal, window, sides):
    bound = {}

    def stand_in(*args, **kwargs):
        bound.update(recorded(SIGNATURES[package]).bind(*args, **kwargs).arguments)
        return bound["q"]

    monkeypatch.setattr(external, "_flash_function", lambda device: stand_in)
    segments = Segments.of([5, 2], [7, 2])
    q, k, v = torch.randn(7, 4, 8), torch.randn(9, 2, 8), torch.randn(9, 2, 8)
    external._flash_attn(AttentionCall(q, k, v, segments, causal, None, 0.3, window, 20.0))
    assert all(bound[name] is not None and torch.equal(bound[name], given) for name, given in (("q", q), ("k", k), ("v", v)))
    assert bound["cu_seqlens_q"].tolist() == [0, 5, 7] and bound["cu_seqlens_k"].tolist() == [0, 7, 9]
    rest = {name: bound[name] for name in bound if name not in ("q", "k", "v", "cu_seqlens_q", "cu_seqlens_k")}
    expected = {"max_seqlen_q": 5, "max_seqlen_k": 7, "softmax_scale": 0.3, "causal": causal, "window_size": sides, "softcap": 20.0}
    assert rest == expected | {"deterministic": True}


@pytest.mark.parametrize("package", SIGNATURES)
def test_an_installed_flash_attn_has_what_was_recorded(package):
    """Of the recorded parameters, those that we give still exist; skipped where the package isn't installed."""
    module = pytest.importorskip(package)
    found = inspect.signature(module.flash_attn_varlen_func).parameters
    given = {"max_seqlen_q", "max_seqlen_k", "softmax_scale", "causal", "window_size", "softcap", "deterministic"}
    assert list(found)[:5] == [name for name, *_ in SIGNATURES[package]][:5] and given <= set(found)


@pytest.mark.parametrize("mask", RECORD["masks"], ids=lambda mask: f"{mask['lengths_q']}-{mask['lengths_k']}-{mask['causal']}-{mask['window']}")
def test_recorded_masks_of_xformers_are_ours(mask):
    own = seen_by_ours(mask["lengths_q"], mask["lengths_k"], mask["causal"], mask["window"])
    assert ["".join(str(int(x)) for x in row) for row in own] == mask["rows"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=5), st.booleans(), st.none() | st.integers(1, 12))
def test_masks_of_an_installed_xformers_are_ours(lengths, causal, window):
    pytest.importorskip("xformers.ops.fmha.attn_bias")
    causal = causal or window is not None  # its windows are causal
    lengths_q, lengths_k = tuple(q for q, _ in lengths), tuple(q + more for q, more in lengths)
    external._block_diagonal.cache_clear()
    mask = external._block_diagonal(lengths_q, lengths_k, causal, window, torch.device("cpu"))
    assert torch.equal(mask.materialize((1, sum(lengths_q), sum(lengths_k)))[0] == 0, seen_by_ours(lengths_q, lengths_k, causal, window))
