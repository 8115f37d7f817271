"""Our CUDA kernels on a GPU, where they meet streams, graphs and the compiler; `python -m benchmarks.gpu` proves what they compute."""

import pytest
import torch

from lmmblocks import ops
from lmmblocks.ops.cuda_gate import cuda_refusal
from lmmblocks.plans.host import plan_splice
from lmmblocks.spec import Segments

if not torch.cuda.is_available():
    pytest.skip("no CUDA device: tests/csrc runs the kernels in an emulator", allow_module_level=True)
if refusal := cuda_refusal(torch.zeros(1, dtype=torch.float16, device="cuda")):
    pytest.skip(refusal, allow_module_level=True)

LENGTHS = [77, 200, 1, 130]
IDS = [[1, -200, *range(70)], [5, *[3] * 199], [-200], [*range(100), -200, *range(20)]]
IMAGE_ROWS = [[6], [], [1], [10]]


@pytest.fixture
def step(cuda):
    """`step()`: splice and attention of one batch, forward and backward; and its tensors, whose values may be changed."""
    plan = plan_splice(IDS, IMAGE_ROWS).to(cuda)
    assert list(plan.lengths) == LENGTHS
    segments = Segments.of(LENGTHS, device=cuda)
    table, images = (torch.randn(rows, 256, device=cuda).bfloat16().requires_grad_() for rows in (100, 17))

    def run():
        rows_TNE = ops.splice(table, images, plan, backend="cuda").unflatten(1, (4, 64))
        out_TNE = ops.attention(rows_TNE, rows_TNE[:, :2], rows_TNE[:, 2:], segments, backend="cuda")
        return [out_TNE.detach(), *torch.autograd.grad(out_TNE.float().square().mean(), [table, images])]

    run.inputs = (table, images)
    return run


def _change(inputs):
    with torch.no_grad():
        for tensor in inputs:
            tensor.normal_()


def _captured(call):
    """A CUDA graph of a call, and the tensors that its replays write."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        written = call()
    return graph, written


def _same(found, expected):
    return all(one.isfinite().all() and torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_a_captured_step_replays_to_the_bits_of_the_eager_one(step):
    """The eager one reads a list of tiles made on the host, the captured one looks for them on the device."""
    graph, written = _captured(step)
    for _ in range(2):
        _change(step.inputs)
        graph.replay()
        assert _same([tensor.clone() for tensor in written], step())


def test_launches_go_to_the_current_stream(step):
    """After work that takes long on one stream, with inputs that this work writes."""
    expected = step()
    kept = [tensor.detach().clone() for tensor in step.inputs]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), torch.no_grad():
        for tensor in step.inputs:
            tensor.zero_()
        torch.cuda._sleep(100_000_000)
        for tensor, value in zip(step.inputs, kept):
            tensor.copy_(value)
    with torch.cuda.stream(stream):
        found = step()
    torch.cuda.synchronize()
    assert _same(found, expected)


@torch.inference_mode()
@pytest.mark.parametrize("part_keys", [None, 256])
def test_a_captured_decoding_step_stays_right_while_the_cache_grows(cuda, in_pages, part_keys):
    """Lengths are the device's: after 3000 keys more the same graph reads them all."""
    longest = (5000, 3100)
    q, k, v = (torch.randn(rows, heads, 128, device=cuda).half() for rows, heads in ((2, 8), (sum(longest), 2), (sum(longest), 2)))
    k_pages, v_pages, table, lengths = in_pages(k, v, longest, 64)
    table.clamp_(min=0)

    def run():
        return [ops.paged_attention(q, k_pages, v_pages, table, lengths, part_keys=part_keys, backend="cuda")]

    lengths.sub_(3000)
    graph, written = _captured(run)
    for more in (0, 1, 2999):
        lengths.add_(more)
        graph.replay()
        replayed = [tensor.clone() for tensor in written]
        assert _same(replayed, run())
        exact = ops.paged_attention(q.double(), k_pages.double(), v_pages.double(), table, lengths, backend="reference")
        assert (replayed[0].double() - exact).abs().max() < 2e-3


def test_the_step_compiles_whole_and_keeps_its_bits(cuda):
    """By Inductor, of which nothing but our kernels computes here."""

    def run(table, images, plan, segments):
        rows_TNE = ops.splice(table, images, plan, backend="cuda").unflatten(1, (4, 64))
        return ops.attention(rows_TNE, rows_TNE[:, :2], rows_TNE[:, 2:], segments, backend="cuda")

    plan = plan_splice(IDS, IMAGE_ROWS).to(cuda)
    inputs = [torch.randn(rows, 256, device=cuda).bfloat16().requires_grad_() for rows in (100, 17)]
    segments = Segments.of(LENGTHS, device=cuda)
    torch.compiler.reset()
    found, expected = (call(*inputs, plan, segments) for call in (torch.compile(run, fullgraph=True), run))
    grad = torch.randn_like(expected)
    assert _same([found, *torch.autograd.grad(found, inputs, grad)], [expected, *torch.autograd.grad(expected, inputs, grad)])


@pytest.mark.parametrize("mask", ["full", "causal", "kv_end"])
@pytest.mark.parametrize("width", [64, 128])
def test_gradients_of_rows_that_several_tiles_see_are_right_and_the_same_every_time(cuda, width, mask):
    """400 and 900 rows, four query heads in two groups: tiles of keys that are neither the first nor the last add to dq in memory."""
    lengths = (400, 900, 130)
    rows, segments = sum(lengths), Segments.of(lengths, device=cuda)
    tensors = [torch.randn(rows, heads, width, device=cuda).bfloat16().requires_grad_() for heads in (4, 2, 2)]
    ends = torch.cat([torch.arange(1, length + 1).clamp_min(min(length, 300)) + before for length, before in zip(lengths, (0, 400, 1300))])
    options = {"causal": mask == "causal", "kv_end": ends.int().to(cuda) if mask == "kv_end" else None}
    grad = torch.randn(rows, 4, width, device=cuda).bfloat16()

    def gradients(tensors, grad, backend):
        return torch.autograd.grad(ops.attention(*tensors, segments, **options, backend=backend), tensors, grad)

    found = gradients(tensors, grad, "cuda")
    exact = gradients([x.detach().double().requires_grad_() for x in tensors], grad.double(), "reference")
    for one, other in zip(found, exact, strict=True):
        assert (one.double() - other).abs().max() < 4 * 2.0**-8 * other.abs().max().clamp_min(1.0)
    for _ in range(20):
        assert _same(gradients(tensors, grad, "cuda"), found)


def test_a_captured_forward_of_even_segments_writes_all_rows_of_others(cuda):
    q, k, v = (torch.randn(256, heads, 64, device=cuda).bfloat16() for heads in (4, 2, 2))
    segments = Segments.of((128, 128), device=cuda)
    graph, written = _captured(lambda: [ops.attention(q, k, v, segments, backend="cuda")])
    segments.cu_q.copy_(Segments.of((200, 56), device=cuda).cu_q)
    written[0].fill_(float("nan"))
    graph.replay()
    assert _same(written, [ops.attention(q, k, v, Segments.of((200, 56), device=cuda), backend="cuda")])
