"""Our CUDA kernels on a GPU, where they meet streams, graphs and the compiler; `python -m benchmarks.gpu` proves what they compute."""

import pytest
import torch

from lmmblocks import ops
from lmmblocks.ops.cuda_gate import cuda_refusal
from lmmblocks.plan import plan_splice
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
    """Behind work that takes long on one stream, with inputs that this work writes."""
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
