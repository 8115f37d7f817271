"""A CUDA graph of a training step of a decoder block, and of one decoding step, replays to the bits of the eager calls.

A graph holds the host's numbers of the call that was captured: lengths, and in a cache the row that is written. New rows, positions and boundaries of
the same lengths are copied into the tensors that it was captured with.
"""

import pytest
import torch

from lmmblocks import ops
from lmmblocks.decoders.context import LayerContext
from lmmblocks.decoders.layer import TransformerLayer
from lmmblocks.decoders.transformer import TransformerConfig
from lmmblocks.spec import Segments

if not torch.cuda.is_available():
    pytest.skip("no CUDA device: nothing can be captured", allow_module_level=True)

SHAPE = {"dim": 256, "layers": 2, "heads": 4, "kv_heads": 2, "ffn_dim": 512, "vocab": 128}
WARM_UP = 3


def _captured(step):
    """Return a CUDA graph of a call, and the tensors that its replays write."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        written = step()
    return graph, written


def _assert_same_bits(found, expected):
    for index, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert one.isfinite().all() and one.any(), index
        assert torch.equal(one, other), (index, (one - other).abs().max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_a_captured_training_step_of_a_decoder_block_replays_to_the_same_bits(cuda, implementation, dtype):
    block = TransformerLayer(TransformerConfig(**SHAPE), 0).to(cuda, dtype)
    lengths = [77, 200, 1, 130]
    positions_T = torch.cat([torch.arange(length) for length in lengths]).to(cuda)
    cos_TE, sin_TE = ops.rope_table(positions_T, SHAPE["dim"] // SHAPE["heads"])
    context = LayerContext(0, positions_T, Segments.of(lengths, device=cuda), None, (cos_TE,), (sin_TE,), None)
    x_TD = torch.randn(sum(lengths), SHAPE["dim"], device=cuda, dtype=dtype, requires_grad=True)

    def step():
        out_TD = block(x_TD, context)
        return [
            out_TD.detach(),
            *torch.autograd.grad(out_TD.float().square().mean(), [x_TD, *block.parameters()]),
        ]

    graph, written = _captured(step)
    for _ in range(2):
        with torch.no_grad():
            x_TD.normal_()
        graph.replay()
        _assert_same_bits([tensor.clone() for tensor in written], step())


@torch.inference_mode()
@pytest.mark.parametrize("read", [[40], [700, 700]], ids=["one sequence", "two of one length"])
def test_a_captured_decoding_step_replays_to_the_same_bits(cuda, implementation, read):
    decoder = TransformerConfig(**SHAPE).build().to(cuda, torch.bfloat16)
    cache = decoder.new_cache(len(read))
    prompt_T = torch.randint(SHAPE["vocab"], (sum(read),), device=cuda)
    positions_T = torch.cat([torch.arange(length) for length in read]).to(cuda)
    decoder(decoder.embed(prompt_T), positions=positions_T, segments=Segments.of(read, device=cuda), cache=cache)
    ids_S = torch.randint(SHAPE["vocab"], (len(read),), device=cuda)
    next_S = torch.full((len(read),), read[0], device=cuda)

    def step():
        for sequence, length in enumerate(read):
            cache.truncate(sequence, length)
        one_each = Segments.uniform(len(read), 1, device=cuda)
        with ops.backend(attention="triton_decode" if implementation == "triton" else "auto"):
            hidden_SD = decoder(decoder.embed(ids_S), positions=next_S, segments=one_each, cache=cache)
        return [decoder.head(hidden_SD)]

    graph, written = _captured(step)
    for _ in range(2):
        ids_S.random_(SHAPE["vocab"])
        graph.replay()
        replayed = [tensor.clone() for tensor in written]
        _assert_same_bits(replayed, step())
