"""Device code never asks the device for a value: not in its source, not in the operations it runs, not without memory."""

import ast
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import lmmblocks
from lmmblocks import kernels
from lmmblocks.builder import build
from lmmblocks.config import Block
from lmmblocks.data.collate import collate
from lmmblocks.ops import linear_cross_entropy

PACKAGE = Path(lmmblocks.__file__).parent
KERNELS = Path(kernels.__path__[0])
DEVICE_CODE = sorted(
    [PACKAGE / "lmm.py", PACKAGE / "decoders/transformer.py", PACKAGE / "decoders/layer.py"]
    + [PACKAGE / "compose/image_rows.py", *(PACKAGE / f"decoders/{name}.py" for name in ("context", "hooks", "vision"))]
    + [path for folder in ("ops", "encoders", "hooks", "projectors", "reducers") for path in (PACKAGE / folder).glob("*.py")]
    + [*KERNELS.glob("*.py")]
)
ASKS = {"item", "tolist", "nonzero", "argwhere", "masked_select", "cpu", "numpy", "unique", "equal", "allclose", "synchronize"}
FROM_HOST = {"tensor", "as_tensor", "from_numpy"}


def findings(source):
    """Line and reason of everything that would wait for the device, or copy to it, in a file's source."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and node.attr in ASKS:
            yield node.lineno, f".{node.attr}"
        elif isinstance(node, ast.Attribute) and node.attr in FROM_HOST and getattr(node.value, "id", "") == "torch":
            yield node.lineno, f"torch.{node.attr}"
        elif isinstance(node, ast.Subscript) and _is_mask(node.slice):
            yield node.lineno, "indexing by a mask"
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "where" and len(node.args) == 1:
            yield node.lineno, "where(condition)"


def _is_mask(index):
    parts = index.elts if isinstance(index, ast.Tuple) else [index]
    return any(
        isinstance(part, ast.Compare)
        or (isinstance(part, ast.UnaryOp) and isinstance(part.op, ast.Invert))
        or (isinstance(part, ast.Name) and "mask" in part.id)
        for part in parts
    )


@pytest.mark.parametrize("path", DEVICE_CODE, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_source_of_device_code_asks_for_no_value(path):
    found = [f"{path.name}:{line}: {reason}" for line, reason in findings(path.read_text())]
    assert not found, found


@pytest.mark.parametrize(
    "line", ["x.item()", "x.tolist()", "x.nonzero()", "x[x > 0]", "x[~seen]", "x[:, mask]", "torch.where(x)", "torch.tensor([1])"]
)
def test_the_search_finds_what_it_looks_for(line):
    assert list(findings(line))


class NoSync(TorchDispatchMode):
    """Fails on an operation whose result or shape depends on values the device holds."""

    names = ("_local_scalar_dense", "item", "nonzero", "masked_select", "equal", "is_nonzero", "unique", "_unique2")

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.seen.add(name)
        assert name not in self.names, f"{func} waits for the device"
        if name.startswith("index") and len(args) > 1 and isinstance(args[1], (list, tuple)):
            masks = [i for i in args[1] if isinstance(i, torch.Tensor) and i.dtype in (torch.bool, torch.uint8)]
            assert not masks, f"{func} by a mask waits for the device"
        return func(*args, **(kwargs or {}))


BATCHES = {"images": slice(0, 4, 2), "text only": slice(1, 2), "mixed": slice(None)}


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("name", BATCHES)
def test_forward_and_backward_run_no_operation_that_waits(make_tiny_model, conversations, name, frozen):
    model = make_tiny_model()
    model.encoder.frozen = frozen
    batch = collate(conversations[BATCHES[name]], model)
    with NoSync() as mode:
        model.loss(batch).backward()
    assert {"embedding_dense_backward", "index_select"} <= mode.seen
    assert model.decoder.table.grad.any()


def test_other_paths_run_no_operation_that_waits(make_tiny_model, conversations, tiny_config, monkeypatch):
    monkeypatch.setattr(sys.modules[linear_cross_entropy.__module__], "CHUNK_ROWS", 4)
    config = replace(tiny_config, decoder=replace(tiny_config.decoder, recompute=True, tied=True), attention="images")
    model = make_tiny_model(config=config, projector="linear")
    model.encoder.frozen = False
    longest = collate(conversations, model).plan.max_seqlen
    batch = collate(conversations, model, max_length=longest - 1, truncate="turn")
    assert sum(batch.plan.target_counts) > 4 and batch.plan.kv_end is not None and any(batch.plan.truncated)
    weights = torch.ones(sum(batch.plan.target_counts))
    with NoSync():
        model.loss(batch, weights=weights).backward()


@pytest.mark.parametrize(
    "ask",
    [
        lambda x: x.sum().item(),
        lambda x: x[x > 0],
        lambda x: x.masked_select(x > 0),
        lambda x: bool(x.any()),
        lambda x: torch.where(x > 0),
    ],
)
def test_the_watch_sees_what_it_watches_for(ask):
    with pytest.raises(AssertionError, match="waits for the device"), NoSync():
        ask(torch.ones(2))


@pytest.mark.parametrize("frozen", [True, False])
def test_loss_and_backward_run_where_tensors_hold_no_values(make_tiny_model, tiny_config, conversations, frozen):
    """On the meta device asking for a value, or mixing in a tensor of the host, is an error."""
    batch = collate(conversations, make_tiny_model()).to("meta")
    model = build(tiny_config, projector=Block("mlp", {"depth": 3}), device="meta")
    model.encoder.frozen = frozen
    loss = model.loss(batch)
    loss.backward()
    assert loss.is_meta and loss.shape == ()
    learns = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    assert learns == {"multi_modal_projector", "language_model"} | (set() if frozen else {"vision_tower"})


def several(kind, tower):
    """Images that are no single tensor: two towers, or tiles."""
    from lmmblocks.encoders.fused import FusedConfig
    from lmmblocks.encoders.tiled import TiledConfig

    smaller = replace(tower, image_size=14, patch=7)
    if kind == "fused":
        return FusedConfig((tower, smaller), grid=(3, 3))
    return TiledConfig(tower, pinpoints=((28, 56), (56, 28), (56, 56)))


@pytest.mark.parametrize("kind", ["fused", "tiled"])
def test_images_of_several_tensors_run_no_operation_that_waits(make_tiny_model, tiny_config, conversations, kind):
    config = replace(tiny_config, encoder=several(kind, tiny_config.encoder))
    model = make_tiny_model(config=config)
    model.encoder.frozen = False
    batch = collate(conversations, model)
    with NoSync():
        model.loss(batch).backward()
    nowhere = build(config, device="meta")
    nowhere.encoder.frozen = False
    nowhere.loss(batch.to("meta")).backward()
    assert all((p.grad is None) == (q.grad is None) for p, q in zip(model.parameters(), nowhere.parameters()))
    assert any(p.grad is not None and p.grad.any() for p in model.encoder.parameters())
