"""Swaps by one word, and what the page about them promises."""

import ast
import re
from pathlib import Path

import pytest
import torch

from examples.swap import my_projector, siglip_cabstractor_qwen3
from lmmblocks.builder import build
from lmmblocks.plans.host import plan_splice
from lmmblocks.presets import DECODERS
from lmmblocks.spec import Batch, Grid

FOLDER = Path(siglip_cabstractor_qwen3.__file__).parent


def test_three_words_make_the_full_model():
    model = siglip_cabstractor_qwen3.build()
    assert (type(model.encoder).__name__, type(model.projector).__name__, model.template.name) == ("SigLIP", "CAbstractor", "chatml")
    assert sum(p.numel() for p in model.decoder.parameters()) == 4_022_468_096  # Qwen3-4B
    assert model.encoder.spec.dim == 1152 and model.projector.out_grid(Grid(27, 27)).rows == 144


def test_the_small_one_learns():
    model = siglip_cabstractor_qwen3.build(tiny=True)
    plan = plan_splice([[1, -200, 5, 6]], [[16]], labels=[[-100, -100, 5, 6]])
    loss = model.loss(Batch(torch.randn(1, 3, 64, 64), (Grid(8, 8),), plan))
    loss.backward()
    assert loss.isfinite() and model.decoder.model.layers[0].self_attn.q_norm.weight.grad.any()


# Parameter counts as published (model cards and safetensors metadata), tied heads counted once.
@pytest.mark.parametrize(
    "name, count",
    {
        "vicuna-7b": 6_738_415_616,
        "vicuna-13b": 13_015_864_320,
        "llama3-8b": 8_030_261_248,
        "qwen2.5-0.5b": 494_032_768,
        "qwen2.5-1.5b": 1_543_714_304,
        "qwen2.5-7b": 7_615_616_512,
        "qwen3-0.6b": 596_049_920,
        "qwen3-1.7b": 1_720_574_976,
        "qwen3-4b": 4_022_468_096,
        "qwen3-8b": 8_190_735_360,
    }.items(),
)
def test_decoder_words_have_their_published_sizes(name, count):
    with torch.device("meta"):
        assert sum(p.numel() for p in DECODERS[name][0].build().parameters()) == count


def test_every_decoder_word_was_counted_and_builds():
    assert set(DECODERS) == set(_counted())
    model = build("llava15-7b", decoder="qwen2.5-0.5b", device="meta")
    assert model.config.decoder_source == "Qwen/Qwen2.5-0.5B-Instruct" and model.decoder.dim == 896


def _counted():
    marks = test_decoder_words_have_their_published_sizes.pytestmark
    return [name for name, _ in marks[0].args[1]]


def test_a_projector_of_ones_own_by_class_and_by_name(capsys):
    my_projector.main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and all("8x8 patches become 8x4 rows of width 192" in line for line in lines)
    features = type("Features", (), {"patches": torch.randn(12, 5), "grids": (Grid(2, 6),)})
    projector = my_projector.GatedPair(5, 7, hidden=3)
    rows = projector(features)
    pair = torch.cat([features.patches[2], features.patches[3]])
    expected = projector.down(torch.nn.functional.silu(projector.gate(pair)) * projector.up(pair))
    assert rows.shape == (6, 7) and (rows[1] - expected).abs().max() < 1e-6


def test_the_page_lists_every_file_and_the_files_are_as_short_as_promised():
    listed = re.findall(r"^\| `(\w+)\.py`", (FOLDER / "README.md").read_text(), re.M)
    assert sorted(listed) == sorted(path.stem for path in FOLDER.glob("*.py"))
    lines = {path.stem: len(path.read_text().splitlines()) for path in FOLDER.glob("*.py")}
    assert lines["siglip_cabstractor_qwen3"] < 20 and max(lines.values()) <= 100, lines


@pytest.mark.parametrize("name", ["fastv", "prumerge", "visionzip", "sva"])
def test_methods_stand_on_the_public_names_alone(name):
    """No example reaches for the library's own version of what it implements."""
    tree = ast.parse((FOLDER / f"{name}.py").read_text())
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not any(module and module.startswith(("lmmblocks.reducers", "lmmblocks.projectors")) for module in imported)
