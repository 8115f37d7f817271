"""Attention of other packages, none of which runs here: stand-ins with their signatures compute what their documentation says.

What must hold: arguments arrive as the package counts them, the result is that of the reference, slack rows stay zero, and whatever a
package can't do is refused before it is called.
"""

import contextlib
import importlib.machinery
import sys
import types
from dataclasses import dataclass

import pytest
import torch

from lmmblocks import ops
from lmmblocks.ops.attention import external
from lmmblocks.ops.attention.call import AttentionCall
from lmmblocks.ops.dispatch import _BROKEN, ladders, select, verdicts
from lmmblocks.spec import LmmError, Segments

EXTERNAL = (
    external.ATTENTION_FLASH_ATTN,
    external.ATTENTION_SDPA_FLASH,
    external.ATTENTION_CUDNN,
    external.ATTENTION_XFORMERS,
)
LENGTHS = ([5, 1, 7], [5, 4, 9])
EQUAL = ([4, 4, 4], [4, 4, 4])


def windowed(q, k, v, cu_q, cu_k, left, right, scale, softcap):
    """FlashAttention's definition: key ``j`` is seen by query ``i`` from ``i + shift - left`` to ``i + shift + right``; -1 = no bound."""
    rows = []
    for a, b, c, d in zip(cu_q[:-1], cu_q[1:], cu_k[:-1], cu_k[1:]):
        i, j = torch.arange(b - a)[:, None] + (d - c) - (b - a), torch.arange(d - c)[None, :]
        seen = torch.ones(b - a, d - c, dtype=torch.bool)
        seen &= (j >= i - left) if left >= 0 else seen
        seen &= (j <= i + right) if right >= 0 else seen
        keys, values = (x[c:d].float().repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
        scores = torch.einsum("qne,kne->nqk", q[a:b].float(), keys) * scale
        scores = softcap * (scores / softcap).tanh() if softcap else scores
        weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
        rows.append(torch.einsum("nqk,kne->qne", weights, values).to(q.dtype))
    return torch.cat(rows)


def install(monkeypatch, name, **content):
    """Put a module into ``sys.modules`` under its name and its parents' names."""
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    module.__path__ = []
    module.__dict__.update(content)
    monkeypatch.setitem(sys.modules, name, module)
    return module


@pytest.fixture(autouse=True)
def on_a_gpu(monkeypatch):
    """CPU tensors pass for those of a fitting device; nothing that was found out stays."""
    for cached in (external._module, external._flash_function, external._block_diagonal):
        cached.cache_clear()
    monkeypatch.setattr(external, "_hardware_refusal", lambda device: None)
    for name in ("flash_attn", "flash_attn_interface", "xformers"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield
    _BROKEN.clear()
    for cached in (external._module, external._flash_function, external._block_diagonal):
        cached.cache_clear()


@pytest.fixture
def flash_attn(monkeypatch):
    calls = []

    def flash_attn_varlen_func(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None, causal=False,
        window_size=(-1, -1), softcap=0.0, alibi_slopes=None, deterministic=False, return_attn_probs=False, block_table=None,
    ):  # fmt: skip
        calls.append({"deterministic": deterministic, "max": (max_seqlen_q, max_seqlen_k), "dtype": cu_seqlens_q.dtype})
        left, right = window_size[0], (0 if causal else window_size[1])
        return windowed(q, k, v, cu_seqlens_q, cu_seqlens_k, left, right, softmax_scale, softcap)

    install(monkeypatch, "flash_attn", flash_attn_varlen_func=flash_attn_varlen_func)
    return calls


@pytest.fixture
def sdpa_flash(monkeypatch):
    calls = []
    names = [argument.name for argument in torch.ops.aten._flash_attention_forward.default._schema.arguments]

    def forward(*args, **kwargs):
        given = dict(zip(names, args)) | kwargs
        assert set(given) <= set(names)
        calls.append(given)
        left, right = (-1 if given[f"window_size_{side}"] is None else given[f"window_size_{side}"] for side in ("left", "right"))
        given |= {"left": left, "right": 0 if given["is_causal"] else right, "softcap": None}
        order = ("query", "key", "value", "cum_seq_q", "cum_seq_k", "left", "right", "scale", "softcap")
        return windowed(*(given[name] for name in order)), None, None, None, None

    monkeypatch.setattr(external, "_varlen_of_torch", lambda: forward)
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    return calls


@pytest.fixture
def xformers(monkeypatch):
    made = []

    @dataclass
    class BlockDiagonalMask:
        q: tuple
        k: tuple
        left: int = -1
        right: int = -1

        @classmethod
        def from_seqlens(cls, q_seqlen, kv_seqlen=None, *, device=None):
            made.append((q_seqlen, kv_seqlen, device))
            return cls(q_seqlen, kv_seqlen)

        def make_causal_from_bottomright(self):
            return BlockDiagonalMask(self.q, self.k, -1, 0)

        def make_local_attention_from_bottomright(self, window_size):
            return BlockDiagonalMask(self.q, self.k, window_size - 1, 0)

    def memory_efficient_attention(query, key, value, attn_bias=None, p=0.0, scale=None):
        assert query.shape[0] == 1 and query.shape[1] == sum(attn_bias.q) and key.shape[1] == sum(attn_bias.k)
        assert query.shape[2:] == key.shape[2:], "xFormers broadcasts nothing"
        q, k, v = (x[0].flatten(1, -2) for x in (query, key, value))
        cu_q, cu_k = (torch.tensor([0, *lengths]).cumsum(0) for lengths in (attn_bias.q, attn_bias.k))
        out = windowed(q, k, v, cu_q, cu_k, attn_bias.left, attn_bias.right, scale, None)
        return out.unflatten(1, query.shape[2:-1])[None]

    install(monkeypatch, "xformers")
    install(monkeypatch, "xformers.ops", memory_efficient_attention=memory_efficient_attention)
    install(monkeypatch, "xformers.ops.fmha")
    install(monkeypatch, "xformers.ops.fmha.attn_bias", BlockDiagonalMask=BlockDiagonalMask)
    return made


@pytest.fixture
def cudnn(monkeypatch):
    asked = []

    def can_use(params, debug=False):
        asked.append(params)
        return True

    monkeypatch.setattr(torch.backends.cuda, "can_use_cudnn_attention", can_use)
    monkeypatch.setattr(external, "sdpa_kernel", lambda backend: contextlib.nullcontext(asked.append(backend)))
    return asked


def inputs(lengths, *, heads=4, kv_heads=2, dim=8, dtype=torch.float16, slack=0):
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(sum(lengths[0]) + slack, heads, dim, generator=generator).to(dtype)
    k, v = (torch.randn(sum(lengths[1]) + slack, kv_heads, dim, generator=generator).to(dtype) for _ in range(2))
    q[sum(lengths[0]) :], k[sum(lengths[1]) :], v[sum(lengths[1]) :] = (float("nan"),) * 3
    return q, k, v, Segments.of(*lengths)


SETTINGS = [
    {"causal": causal, "window": window, "softcap": softcap, "scale": scale}
    for causal in (True, False)
    for window, softcap, scale in ((None, None, None), (3, None, 0.2), (None, 4.0, None), (2, 4.0, None))
]


@pytest.mark.parametrize("options", SETTINGS, ids=str)
@pytest.mark.parametrize("name", ["flash_attn", "sdpa_flash", "cudnn", "xformers"])
def test_arguments_arrive_as_the_package_counts_them(name, options, request):
    """Every combination gives what the reference gives, or a reason."""
    request.getfixturevalue(name)
    lengths = EQUAL if name == "cudnn" else LENGTHS
    q, k, v, segments = inputs(lengths, slack=3)
    call = AttentionCall(q, k, v, segments, options["causal"], None, options["scale"] or 8**-0.5, options["window"], options["softcap"])
    verdict = dict(verdicts("attention", call))[name]
    if verdict is not True:
        expected = {"softcap": options["softcap"], "window": options["window"]}
        assert any(word in verdict and value for word, value in expected.items()), verdict
        return
    found = ops.attention(q, k, v, segments, backend=name, **options)
    expected = ops.attention(q, k, v, segments, backend="reference", **options)
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=2e-3)
    assert not found[sum(lengths[0]) :].any()


def test_flash_attn_is_asked_for_deterministic_gradients_with_int32_boundaries(flash_attn):
    ops.attention(*inputs(LENGTHS), backend="flash_attn")
    assert flash_attn == [{"deterministic": True, "max": (7, 9), "dtype": torch.int32}]


def test_flash_attention_3_is_taken_on_hopper_only(flash_attn, monkeypatch):
    def third(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale=None, causal=False, **rest):
        assert set(rest) == {"window_size", "softcap", "deterministic"}
        return q.clone().fill_(3), None

    install(monkeypatch, "flash_attn_interface", flash_attn_varlen_func=third)
    for capability, is_third in (((9, 0), True), ((8, 0), False), ((10, 0), False)):
        external._flash_function.cache_clear()
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        out = ops.attention(*inputs(LENGTHS), backend="flash_attn")
        assert bool((out == 3).all()) == is_third


def test_a_causal_call_of_torch_is_marked_as_such_and_a_windowed_one_by_its_sides(sdpa_flash):
    q, k, v, segments = inputs(LENGTHS)
    for window in (None, 3):
        ops.attention(q, k, v, segments, window=window, backend="sdpa_flash")
    plain, sliding = ({name: call[name] for name in ("is_causal", "window_size_left", "window_size_right")} for call in sdpa_flash)
    assert plain == {"is_causal": True, "window_size_left": None, "window_size_right": None}
    assert sliding == {"is_causal": False, "window_size_left": 2, "window_size_right": 0}


def test_torch_derives_the_backward_of_its_own_flash_attention():
    assert torch._C._dispatch_has_kernel_for_dispatch_key("aten::_flash_attention_forward", "Autograd")


def test_cudnn_is_the_only_backend_of_its_calls_and_asked_with_their_tensors(cudnn):
    q, k, v, segments = inputs(EQUAL)
    ops.attention(q, k, v, segments, backend="cudnn")
    params, backend = cudnn
    assert backend == external.SDPBackend.CUDNN_ATTENTION
    assert (params.query.shape, params.key.shape, params.is_causal, params.enable_gqa) == ((3, 4, 4, 8), (3, 2, 4, 8), True, True)


def test_masks_of_xformers_are_made_once_per_set_of_lengths(xformers):
    for _ in range(3):
        ops.attention(*inputs(LENGTHS), backend="xformers")
    assert xformers == [(*map(tuple, LENGTHS), torch.device("cpu"))]


REFUSALS = {
    "kv_end": (lambda call: call._replace(kv_end=torch.ones(13, dtype=torch.int32)), "kv_end"),
    "float32": (lambda call: AttentionCall(*(x.float() for x in call[:3]), *call[3:]), "computes float16 and bfloat16"),
    "wide heads": (lambda call: AttentionCall(*(x.new_ones(len(x), 2, 264) for x in call[:3]), *call[3:]), "heads of 264"),
    "odd heads": (lambda call: AttentionCall(*(x[..., :6] for x in call[:3]), *call[3:]), "heads of 6"),
    "strided": (lambda call: call._replace(q_TNE=call.q_TNE.repeat_interleave(2, -1)[..., ::2]), "not contiguous"),
    "empty": (lambda call: call._replace(segments=Segments.of([5, 0, 8], [5, 4, 9])), "length 0"),
    "more queries": (lambda call: call._replace(segments=Segments.of([5, 5, 3], [5, 4, 9])), "see no key"),
    "log-sum-exp": (lambda call: call._replace(return_lse=True), "return_lse"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_none_of_them_can_do_is_refused_before_any_is_called(case, flash_attn, sdpa_flash, xformers, cudnn):
    change, reason = REFUSALS[case]
    call = change(AttentionCall(*inputs(LENGTHS), causal=True, kv_end=None, scale=1.0))
    for entry in EXTERNAL:
        assert reason in entry.supports(call), entry.name


def test_xformers_without_its_compiled_part_is_refused(xformers, monkeypatch):
    call = AttentionCall(*inputs(LENGTHS), causal=True, kv_end=None, scale=1.0)
    assert external.ATTENTION_XFORMERS.supports(call) is True
    monkeypatch.setattr(sys.modules["xformers"], "_has_cpp_library", False, raising=False)
    assert "compiled part does not fit torch" in external.ATTENTION_XFORMERS.supports(call)


def test_each_says_what_it_alone_cannot_do(flash_attn, sdpa_flash, xformers, cudnn, monkeypatch):
    def reason(name, lengths=LENGTHS, causal=True, window=None, softcap=None, grad=False):
        q, k, v, segments = inputs(lengths)
        q.requires_grad_(grad)
        entry = next(entry for entry in EXTERNAL if entry.name == name)
        return entry.supports(AttentionCall(q, k, v, segments, causal, None, 1.0, window, softcap))

    assert reason("xformers") is True and "grouped heads" in reason("xformers", grad=True)
    assert "windows are causal" in reason("xformers", causal=False, window=2)
    assert "different lengths" in reason("cudnn") and "top left" in reason("cudnn", ([2, 2], [3, 3]))
    assert reason("cudnn", ([2, 2], [3, 3]), causal=False) is True
    monkeypatch.setattr(torch.backends.cuda, "can_use_cudnn_attention", lambda params: False)
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: False)
    assert "cuDNN can't take this call" in reason("cudnn", EQUAL) and "no FlashAttention" in reason("sdpa_flash")
    torch.use_deterministic_algorithms(True)
    try:
        assert "not deterministic" in reason("xformers")
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_package_that_is_absent_or_broken_is_a_reason_not_an_error(monkeypatch):
    call = AttentionCall(*inputs(LENGTHS), causal=True, kv_end=None, scale=1.0)
    monkeypatch.setattr(external, "find_spec", lambda name: None)
    assert dict(verdicts("attention", call))["flash_attn"] == "flash_attn is not installed"
    with pytest.raises(LmmError, match="'xformers' was asked for op 'attention' but refuses this call: xformers is not installed"):
        select("attention", call, backend="xformers")
    external._module.cache_clear()
    external._flash_function.cache_clear()
    monkeypatch.setattr(external, "find_spec", lambda name: object())

    def undefined(name):
        raise ImportError(f"{name}.so: undefined symbol: _ZN3c105E")

    monkeypatch.setattr(external.importlib, "import_module", undefined)
    reason = dict(verdicts("attention", call))["flash_attn"]
    assert "installed but can't be imported (ImportError: flash_attn.so: undefined symbol" in reason and torch.__version__ in reason


def test_auto_takes_them_in_order_and_never_fails_with_them(flash_attn, sdpa_flash, xformers, monkeypatch, caplog):
    q, k, v, segments = inputs(LENGTHS)
    names = ladders()["attention"]
    at = [names.index(name) for name in ("flash_attn", "sdpa_flash", "cudnn", "xformers", "torch", "reference")]
    assert at == sorted(at) and at == list(range(at[0], len(names)))
    assert all(names.index(own) < at[0] for own in ("cuda", "triton") if own in names)
    assert select("attention", AttentionCall(q, k, v, segments, True, None, 1.0)).name == "flash_attn"

    def fails(*args, **kwargs):
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device")

    monkeypatch.setattr(sys.modules["flash_attn"], "flash_attn_varlen_func", fails)
    external._flash_function.cache_clear()
    found = ops.attention(q, k, v, segments)
    torch.testing.assert_close(found, ops.attention(q, k, v, segments, backend="reference"), atol=2e-3, rtol=2e-3)
    assert len(sdpa_flash) == 1 and "flash_attn failed and is passed by" in caplog.text
    ops.attention(q, k, v, segments)
    assert len(sdpa_flash) == 2


def test_on_a_cpu_each_refuses_for_its_tensors(monkeypatch):
    monkeypatch.undo()
    found = dict(verdicts("attention", AttentionCall(*inputs(LENGTHS), causal=True, kv_end=None, scale=1.0)))
    assert all("tensors are on cpu" in found[entry.name] for entry in EXTERNAL)
