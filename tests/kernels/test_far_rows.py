"""Rows more than 2^31 elements apart: Triton kernels compute from them what they compute from rows that lie together."""

import mmap

import pytest
import torch

from lmmblocks import experimental, ops
from lmmblocks.plans.host import plan_splice
from lmmblocks.spec import Segments

ROWS, WIDTH = 12, 16
BEGIN = ROWS - 2
"""Of the last segment, the first row that lies 2^31 elements after row 0."""

MAP_NORESERVE = 0x4000  # of Linux; the module mmap names it from Python 3.13 on


def _far(tensor):
    """The same values in float16; row BEGIN starts more than 2^31 elements after the first, which takes addresses but, on a CPU, no memory."""
    stride = (2**31 // BEGIN // WIDTH + 1) * WIDTH
    count = (tensor.shape[0] - 1) * stride + tensor[0].numel()
    if tensor.is_cuda:
        flat = torch.empty(count, dtype=tensor.dtype, device=tensor.device)
    else:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
        flat = torch.frombuffer(mmap.mmap(-1, count * tensor.element_size(), flags=flags), dtype=tensor.dtype, count=count)
    return flat.as_strided(tensor.shape, (stride, *tensor.stride()[1:])).copy_(tensor)


def _rows(*shape, seed=0, rows=ROWS):
    return torch.randn(rows, *shape, generator=torch.Generator().manual_seed(seed)).half()


def _with_gradients(op, inputs, gradients):
    leaves = [x.detach().requires_grad_() for x in inputs]
    outs = op(*leaves)
    outs = outs if isinstance(outs, tuple) else (outs,)
    return (*(out.detach() for out in outs), *torch.autograd.grad(outs, leaves, gradients))


def _attention(far, device, lengths=(BEGIN, ROWS - BEGIN), **options):
    segments = Segments.of(lengths, device=device)
    tensors = [far(_rows(heads, WIDTH, seed=seed)) for seed, heads in enumerate((2, 1, 1, 2))]
    return _with_gradients(lambda q, k, v: ops.attention(q, k, v, segments, backend="triton", **options), tensors[:3], tensors[3:])


def _decode(far, device):
    segments = Segments.of([1, 1], [BEGIN, ROWS - BEGIN], device=device)
    return (ops.attention(_rows(2, WIDTH, rows=2).to(device), far(_rows(1, WIDTH)), far(_rows(1, WIDTH, seed=1)), segments, backend="triton_decode"),)


def _pages(far, device):
    q, k, v = _rows(2, WIDTH, rows=2).to(device), far(_rows(4, 1, WIDTH)), far(_rows(4, 1, WIDTH, seed=1))
    places = [torch.tensor(values, dtype=torch.int32, device=device) for values in ([[1, BEGIN], [ROWS - 1, 0]], [7, 5])]
    return (ops.paged_attention(q, k, v, *places, backend="triton"),)


def _scores(far, device):
    segments = Segments.of([1, 1], [BEGIN, ROWS - BEGIN], device=device)
    q, k = _rows(2, WIDTH, rows=2).to(device), far(_rows(1, WIDTH))
    return ops.row_scores(q, k, segments, backend="triton"), ops.last_row_scores(q, k, segments, backend="triton")


def _splice(far, device):
    plan = plan_splice([[1, -200, BEGIN, ROWS - 1, -200]], [[1, ROWS - 1]]).to(device)
    grad = torch.cat([_rows(WIDTH), _rows(WIDTH, rows=3, seed=1)])
    return _with_gradients(
        lambda table, images: ops.splice(table, images, plan, backend="triton"), [far(_rows(WIDTH)), far(_rows(WIDTH, seed=2))], [far(grad)]
    )


def _rope(far, device):
    table = ops.rope_table(torch.arange(ROWS, device=device), WIDTH, 100.0)
    tensors = [far(_rows(2, WIDTH, seed=seed)) for seed in range(4)]
    return _with_gradients(lambda q, k: ops.rope(q, k, *table, backend="triton"), tensors[:2], tensors[2:])


def _qk_norm_rope(far, device):
    table = ops.rope_table(torch.arange(ROWS, device=device), WIDTH, 100.0)
    tensors = [far(_rows(2, WIDTH, seed=seed)) for seed in range(4)]
    weights = [_rows(rows=WIDTH, seed=seed).to(device) for seed in (4, 5)]
    return _with_gradients(lambda q, k, *w: ops.qk_norm_rope(q, k, *w, *table, 1e-6, backend="triton"), [*tensors[:2], *weights], tensors[2:])


def _merged(op, **options):
    def run(far, device):
        images = Segments.of([BEGIN, ROWS - BEGIN], device=device)
        scores = torch.rand(ROWS, generator=torch.Generator().manual_seed(2)).to(device)
        return (op(far(_rows(WIDTH)), far(_rows(WIDTH, seed=1)), scores, images, backend="triton", **options),)

    return run


def _row_wise(op, inputs, *, weights=0):
    """A case of an op that takes `inputs` tensors of rows, then some weights of a row."""

    def run(far, device):
        rows = [far(_rows(WIDTH, seed=seed)) for seed in range(inputs)]
        own = [_rows(rows=WIDTH, seed=9 + seed).to(device) for seed in range(weights)]
        outs = 2 if op is _add_rms_norm else 1
        return _with_gradients(op, [*rows, *own], [far(_rows(WIDTH, seed=20 + seed)) for seed in range(outs)])

    return run


def _rows_of_images(far, device):
    """Two row strides, the inner one far: rows of three images in turn."""
    weight = _rows(rows=WIDTH).to(device)
    x, grad = (far(_rows(3, WIDTH, seed=seed)).transpose(0, 1) for seed in (1, 2))
    return _with_gradients(lambda x, w: ops.rms_norm(x, w, 1e-5, backend="triton"), [x, weight], [grad])


def _add_rms_norm(x, residual, weight):
    return ops.add_rms_norm(x, residual, weight, 1e-5, backend="triton")


CASES = {
    "attention": _attention,
    "attention of one segment": lambda far, device: _attention(far, device, (ROWS,), causal=False),
    "decode": _decode,
    "pages": _pages,
    "row scores": _scores,
    "splice": _splice,
    "rope": _rope,
    "qk norm and rope": _qk_norm_rope,
    "merged neighbours": _merged(experimental.merge_neighbours, keep=1, rest=False, neighbours=1),
    "merged to the nearest": _merged(experimental.merge_to_nearest, keep=1, targets=1),
    "rms norm": _row_wise(lambda x, w: ops.rms_norm(x, w, 1e-5, backend="triton"), 1, weights=1),
    "rms norm of images": _rows_of_images,
    "add and rms norm": _row_wise(_add_rms_norm, 2, weights=1),
    "layer norm": _row_wise(lambda x, w, b: ops.layer_norm(x, w, b, 1e-5, backend="triton"), 1, weights=2),
    "swiglu": _row_wise(lambda x, up: ops.swiglu(x, up, backend="triton"), 2),
    "geglu": _row_wise(lambda x, up: ops.geglu(x, up, backend="triton"), 2),
    "quick gelu": _row_wise(lambda x: ops.quick_gelu(x, backend="triton"), 1),
    "bias gelu": _row_wise(lambda x, bias: experimental.bias_gelu(x, bias, backend="triton"), 1, weights=1),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_rows_may_lie_more_than_2_31_elements_apart(case, device):
    near, far = case(lambda tensor: tensor.to(device), device), case(lambda tensor: _far(tensor.to(device)), device)
    for expected, found in zip(near, far):
        assert expected[-1].any() and expected.isfinite().all()
        assert torch.equal(found, expected)
