"""What pip installs with lmmblocks alone is enough; a part that needs more says in one sentence what to install."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import lmmblocks as lb
from lmmblocks.chat import load_tokenizer
from lmmblocks.config import LMMConfig
from lmmblocks.encoders.open_clip import OpenCLIPConfig
from lmmblocks.encoders.timm import TimmConfig
from lmmblocks.ops.triton_gate import triton_installed
from lmmblocks.spec import LmmError, Segments

ROOT = Path(__file__).resolve().parents[2]
OPTIONAL = ("timm", "open_clip", "torchvision", "tensorboard", "torch.utils.tensorboard", "matplotlib", "sklearn", "scipy", "pandas")
OPTIONAL += ("sentencepiece", "google.protobuf", "tiktoken", "peft", "accelerate", "flash_attn", "xformers", "triton", "hypothesis", "pytest")
ENCODERS = {"timm": TimmConfig("vit_tiny_patch16_224"), "open_clip": OpenCLIPConfig("ViT-B-32")}

THE_WHOLE_WAY = """
import sys
for name in {optional!r}:
    sys.modules[name] = None
from pathlib import Path
from PIL import Image
import lmmblocks as lb
from examples.llava15.configs import llava15_tiny
from lmmblocks.train import stage2, train

folder, red = Path({folder!r}), Image.new("RGB", (112, 112), "red")
turns = [{{"role": "user", "content": "<image>\\nWhich colour is it?"}}, {{"role": "assistant", "content": "Red"}}]
model = lb.build(llava15_tiny())
stage = stage2(batch_size=2, max_steps=2, train={{"projector": 1e-3}}, warmup_ratio=0.0)
train(model, stage, [lb.Sample(turns, [red], str(number)) for number in range(4)], folder / "run")
said = model.generate("Which colour is it?", images=[red], max_new_tokens=8)
for format in ("hf", "llava", "native"):
    model.save(folder / format, format=format)
    again = lb.load(folder / format)
    assert again.generate("Which colour is it?", images=[red], max_new_tokens=8) == said, format
"""


def test_the_whole_way_needs_none_of_them(tmp_path) -> None:
    code = THE_WHOLE_WAY.format(optional=OPTIONAL, folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "losses.csv").is_file()
    told = [line for line in done.stderr.splitlines() if "not installed" in line]
    assert told == [
        "tensorboard is not installed: no TensorBoard log is written (pip install 'lmmblocks[train]')",
        "matplotlib is not installed: loss_curve.png is not drawn (pip install 'lmmblocks[train]')",
    ]


@pytest.mark.parametrize("package", ENCODERS)
def test_an_encoder_names_the_extra_that_brings_its_package(package, tiny_config, tiny_tokenizer, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    config = LMMConfig(encoder=ENCODERS[package], decoder=tiny_config.decoder)
    with pytest.raises(LmmError) as error:
        lb.build(config, weights="random", tokenizer=tiny_tokenizer)
    assert str(error.value) == f"encoder '{package}' needs the package '{package}': pip install 'lmmblocks[{package}]'"


WITHOUT_TORCHVISION = """
import sys
class Nowhere:
    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Nowhere())
from lmmblocks.encoders.wrapped import optional_package
optional_package("timm", "timm")
"""


def test_a_package_that_the_optional_one_needs_is_named() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCHVISION], cwd=ROOT, capture_output=True, text=True, timeout=120)
    sentence = "encoder 'timm' needs the package 'torchvision': pip install 'lmmblocks[timm]'"
    assert done.stderr.splitlines()[-1] == f"lmmblocks.spec.errors.LmmError: {sentence}"


def test_handwritten_digits_name_scikit_learn(monkeypatch) -> None:
    from examples.llava15.scenes import glyphs

    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    glyphs._digits.cache_clear()
    with pytest.raises(LmmError, match="^the scenes show handwritten digits from scikit-learn: pip install scikit-learn$"):
        glyphs._digits()


def test_a_vocabulary_of_tiktoken_names_what_reads_it(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    (tmp_path / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\nIw== 2\n")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    with pytest.raises(LmmError, match=r"can't be read: .*`pip install tiktoken`$"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("kind", ["XLNetTokenizer", "ReformerTokenizer"])
def test_a_sentencepiece_model_of_another_kind_names_what_reads_it_and_nothing_else(kind, tmp_path, monkeypatch) -> None:
    for name in ("sentencepiece", "tiktoken"):  # which transformers 5 tries in turn, and tells of the last
        monkeypatch.setitem(sys.modules, name, None)
    (tmp_path / "spiece.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\x02")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind}))
    with pytest.raises(LmmError, match=r"can't be read: .*: `pip install sentencepiece`$"):
        load_tokenizer(tmp_path)


def test_attention_asked_of_triton_says_that_it_is_not_installed(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    q_TNE = torch.randn(4, 2, 16)
    triton_installed.cache_clear()
    try:
        with pytest.raises(LmmError, match="refuses this call: triton is not installed"):
            lb.ops.attention(q_TNE, q_TNE, q_TNE, Segments.of([4]), backend="triton")
    finally:
        triton_installed.cache_clear()
