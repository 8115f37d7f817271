"""`torch.compile(fullgraph=True)` on a CUDA device, by Inductor: one graph without breaks that computes what the eager call does."""

import pytest
import torch

from lmmblocks import ops
from lmmblocks.builder import build
from lmmblocks.config import LMMConfig
from lmmblocks.decoders.context import LayerContext
from lmmblocks.decoders.layer import SandwichLayer, TransformerLayer
from lmmblocks.decoders.transformer import TransformerConfig
from lmmblocks.encoders.clip import CLIPConfig
from lmmblocks.encoders.vit import Layer
from lmmblocks.plans.host import plan_splice
from lmmblocks.spec import Batch, Grid, Segments

if not torch.cuda.is_available():
    pytest.skip("no CUDA device: tests/test_compile.py runs without one", allow_module_level=True)

DIM, HEADS = 128, 2
TOWER = CLIPConfig(dim=DIM, layers=2, heads=HEADS, mlp_dim=256, image_size=28, patch=14)
SHAPE = {"dim": DIM, "layers": 2, "heads": HEADS, "kv_heads": 1, "ffn_dim": 256, "vocab": 320}
OPTIONS = {
    "sandwich_norms": True,
    "offset_norms": True,
    "activation": "gelu_tanh",
    "qk_norm": True,
    "window": 40,
    "softcap": 30.0,
}


def _results(function, learning, *inputs):
    result = function(*inputs)
    return [result.detach(), *torch.autograd.grad(result.float().mean(), learning)]


def _assert_compiled_is_eager(function, learning, *calls):
    """Inductor fuses what lies between our kernels, so bits may differ; in fp32 only the last few."""
    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True)
    for inputs in calls:
        eager = _results(function, learning, *inputs)
        for index, (found, expected) in enumerate(zip(_results(compiled, learning, *inputs), eager, strict=True)):
            bound = 1e-4 * expected.abs().max() + 1e-6
            assert (found - expected).abs().max() <= bound, (index, (found - expected).abs().max(), bound)


@pytest.mark.parametrize("kind, options", [(TransformerLayer, {}), (SandwichLayer, OPTIONS)], ids=["plain", "every option"])
def test_a_decoder_block_compiles(cuda, implementation, kind, options):
    block = kind(TransformerConfig(**SHAPE, **options), 0).to(cuda)

    def rows(lengths):
        positions_T = torch.cat([torch.arange(length) for length in lengths]).to(cuda)
        cos_TE, sin_TE = ops.rope_table(positions_T, DIM // HEADS)
        x_TD = torch.randn(sum(lengths), DIM, device=cuda)
        return x_TD, LayerContext(0, positions_T, Segments.of(lengths, device=cuda), None, (cos_TE,), (sin_TE,), None)

    _assert_compiled_is_eager(block, list(block.parameters()), rows([50, 33]), rows([40, 61, 25]))


def test_a_vision_block_compiles(cuda, implementation):
    block = Layer(TOWER).to(cuda)
    x_TC = torch.randn(3 * 37, DIM, device=cuda)
    _assert_compiled_is_eager(block, list(block.parameters()), (x_TC, Segments.uniform(3, 37, device=cuda)))


def test_the_whole_loss_compiles(cuda, implementation):
    model = build(LMMConfig(encoder=TOWER, decoder=TransformerConfig(**SHAPE)), weights="random", device=cuda)

    def batch(*samples):
        labels = [[-100 if token == -200 or place < 2 else token for place, token in enumerate(ids)] for ids in samples]
        plan = plan_splice(samples, [[4] * ids.count(-200) for ids in samples], labels=labels).to(cuda)
        images = int((plan.source < 0).sum()) // 4
        return (Batch(torch.randn(images, 3, 28, 28, device=cuda), (Grid(2, 2),) * images, plan),)

    learning = [parameter for part in (model.projector, model.decoder) for parameter in part.parameters()]
    first = batch([1, -200, *range(3, 50)], list(range(1, 30)))
    second = batch([5, *range(60, 90)], [1, -200, *range(3, 20)], [2, 9, 4])
    _assert_compiled_is_eager(model.loss, learning, first, second)
