"""Folders that one version of transformers wrote and another reads: tokens, logits and answers stay the same.

    python tests/packaging/exchanged_folders.py DIR                        writes them, in one environment
    LMMBLOCKS_EXCHANGED=DIR pytest tests/packaging/exchanged_folders.py    reads them, in another

`make test-exchange` does so from the oldest versions to the newest and back. Named so that no other run collects it.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import lmmblocks as lb
from lmmblocks.chat import encode_chat, load_tokenizer, write_tokenizer
from lmmblocks.config import Block, LMMConfig
from lmmblocks.decoders.rotary import LinearRope, Llama3Rope, LongRope
from lmmblocks.decoders.transformer import TransformerConfig
from lmmblocks.encoders.blip2_vit import Blip2ViTConfig
from lmmblocks.encoders.clip import CLIPConfig
from lmmblocks.encoders.dinov2 import DINOv2Config
from lmmblocks.encoders.siglip import SigLIPConfig
from lmmblocks.encoders.tiled import TiledConfig

SHIPPED = Path(__file__).parents[2] / "examples" / "llava15" / "weights"
SIDE, TOLERANCE, NEW = 28, 1e-4, 6
CLIP = CLIPConfig(dim=16, layers=3, heads=2, mlp_dim=24, image_size=SIDE, patch=7)
LLAMA = TransformerConfig(dim=32, layers=2, heads=4, kv_heads=2, ffn_dim=48, vocab=1000, max_positions=512)
GEMMA2 = replace(LLAMA, head_dim=16, query_scalar=11, window=21, window_layers=(0,), softcap=2.0, tied=True, activation="gelu_tanh")
GEMMA2 = replace(GEMMA2, offset_norms=True, sandwich_norms=True, scaled_embeddings=True)
LLAVA = LMMConfig(encoder=CLIP, decoder=LLAMA)
MODELS = {
    "llama": LLAVA,
    "llama, tied": replace(LLAVA, decoder=replace(LLAMA, tied=True, rope_theta=500.0)),
    "llama 3.1 rope": replace(LLAVA, decoder=replace(LLAMA, rope_theta=100.0, rope_scaling=Llama3Rope(8.0, 1.0, 4.0, 16))),
    "llama, linear rope": replace(LLAVA, decoder=replace(LLAMA, rope_scaling=LinearRope(4.0))),
    "mistral": replace(LLAVA, decoder=replace(LLAMA, window=11), template="mistral"),
    "qwen2": replace(LLAVA, decoder=replace(LLAMA, qkv_bias=True, rope_theta=1e6), template="chatml"),
    "qwen2, some layers slide": replace(LLAVA, decoder=replace(LLAMA, qkv_bias=True, window=11, window_layers=(1,)), template="chatml"),
    "qwen3": replace(LLAVA, decoder=replace(LLAMA, qk_norm=True, head_dim=16, rope_theta=1e6), template="chatml"),
    "phi3": replace(LLAVA, decoder=replace(LLAMA, fused=True)),
    "phi3, longrope": replace(
        LLAVA, decoder=replace(LLAMA, fused=True, rope_theta=500.0, rope_scaling=LongRope((1.0, 1.1, 1.2, 1.5), (1.0, 2.0, 4.0, 8.0), 16, 1.5))
    ),
    "gemma2": replace(LLAVA, decoder=GEMMA2),
    "gemma3": replace(LLAVA, decoder=replace(GEMMA2, softcap=None, qk_norm=True, rope_theta=1e6, window_theta=1e4)),
    "siglip": replace(LLAVA, encoder=SigLIPConfig(dim=32, layers=3, heads=4, mlp_dim=48, image_size=SIDE, patch=7)),
    "dinov2": replace(LLAVA, encoder=DINOv2Config(dim=32, layers=3, heads=4, image_size=SIDE, patch=7, trained_size=SIDE)),
    "llava-next": replace(LLAVA, encoder=TiledConfig(CLIP, ((SIDE, 2 * SIDE), (2 * SIDE, SIDE)))),
    "instructblip": replace(
        LLAVA,
        encoder=Blip2ViTConfig(dim=24, mlp_dim=40, layers=2, heads=4, image_size=SIDE, patch=7),
        projector=Block(
            "instruct_qformer",
            dict(queries=5, dim=16, layers=2, heads=2, mlp_dim=20, vocab=1000, positions=64, prefix=True, tokenizer=str(SHIPPED / "language")),
        ),
        template="instructblip",
    ),
}
TEXTS = ("A cat.", " two  blanks   three", "<|im_start|>user yes</s>", "naïve\n\nlines 北京 🙂", "[0.12, 0.5] red,blue")
QUESTION = "Which colour is it?"
PARTS = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]


def words() -> Any:
    """The shipped tokenizer, with special tokens that have no name."""
    tokenizer = load_tokenizer(SHIPPED / "language")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return tokenizer


def picture(name: str) -> Image.Image:
    """As large as the tower wants it, or of one colour where it is made larger: versions differ in how they resize."""
    if name in ("llava-next", "instructblip"):
        return Image.new("RGB", (2 * SIDE, SIDE), (200, 80, 30))
    return Image.effect_mandelbrot((SIDE, SIDE), (-2, -1, 1, 1), 20).convert("RGB")


def model_of(config: LMMConfig) -> lb.LMM:
    """Weights so large that every token depends on what is seen."""
    torch.manual_seed(0)
    model = lb.build(config, weights="random", tokenizer=words())
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


@torch.no_grad()
def of_transformers(folder: Path, name: str) -> dict[str, Any]:
    """What transformers makes of a folder: by its processor, tokenizer and model, found by their Auto classes."""
    import transformers
    from transformers import AutoConfig, AutoProcessor, AutoTokenizer

    tokenizer, processor = AutoTokenizer.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    config = AutoConfig.from_pretrained(folder)
    theirs = getattr(transformers, config.architectures[0]).from_pretrained(folder, attn_implementation="eager").eval()  # sdpa has no softcap
    assert type(theirs.config) is type(config)
    images = None if name == "gemma2" else picture(name)  # whose image rows transformers 4 scales as it does words
    shown = PARTS if images else [{"role": "user", "content": QUESTION}]
    text = QUESTION if name == "instructblip" else tokenizer.apply_chat_template(shown, tokenize=False, add_generation_prompt=True)
    inputs = processor(images=images, text=text, add_special_tokens=name == "instructblip", return_tensors="pt")
    new = theirs.generate(**inputs, max_new_tokens=NEW)[0, inputs["input_ids"].shape[1] :]
    return {
        "tokens": [tokenizer(text).input_ids for text in TEXTS],
        "specials": sorted(tokenizer.all_special_tokens),
        "chat": tokenizer.apply_chat_template([{"role": "user", "content": QUESTION}], tokenize=False, add_generation_prompt=True),
        "prompt": inputs["input_ids"][0].tolist(),
        "logits": theirs(**inputs).logits[0, -1].tolist(),
        "answer": new.tolist(),
    }


@torch.no_grad()
def of_ours(folder: Path, name: str) -> dict[str, Any]:
    """What lmmblocks makes of a folder."""
    model = lb.load(folder)
    messages = [{"role": "user", "content": f"<image>\n{QUESTION}"}]
    batch = lb.collate([lb.Sample(messages, [picture(name)])], model, add_generation_prompt=True)
    return {
        "tokens": [model.tokenizer(text).input_ids for text in TEXTS],
        "prompt": encode_chat(messages, model.template, model.tokenizer, mode=model.tokenize_mode, add_generation_prompt=True).ids,
        "logits": model.logits(batch)[-1].tolist(),
        "answer": model.generate(QUESTION, images=[picture(name)], max_new_tokens=NEW),
    }


def write(folder: Path) -> None:
    """Write each model as `lmmblocks` does, and as the transformers here writes it again, with what both make of it."""
    import transformers
    from transformers import AutoProcessor

    for name, config in MODELS.items():
        ours, theirs = folder / name / "ours", folder / name / "theirs"
        model_of(config).save(ours, format="hf")
        read = getattr(transformers, json.loads((ours / "config.json").read_text())["architectures"][0]).from_pretrained(ours)
        read.save_pretrained(theirs)
        AutoProcessor.from_pretrained(ours).save_pretrained(theirs)
        if name == "instructblip":
            write_tokenizer(load_tokenizer(SHIPPED / "language"), theirs / "qformer_tokenizer")
        expected = {"transformers": of_transformers(ours, name), "lmmblocks": of_ours(ours, name)}
        (folder / name / "expected.json").write_text(json.dumps(expected))
        print(name, expected["transformers"]["answer"], repr(expected["lmmblocks"]["answer"]), flush=True)


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    logits = torch.tensor(found.pop("logits")) - torch.tensor(expected.pop("logits"))
    assert found == expected
    assert logits.abs().max() <= TOLERANCE, logits.abs().max()


@pytest.fixture(params=MODELS)
def written(request: pytest.FixtureRequest) -> tuple[str, Path, dict[str, Any]]:
    """Name of a model, its folder, and what was made of it where it was written."""
    folder = Path(os.environ["LMMBLOCKS_EXCHANGED"]) / request.param
    return request.param, folder, json.loads((folder / "expected.json").read_text())


def test_what_we_write_is_the_same_to_another_transformers(written) -> None:
    name, folder, expected = written
    assert_same(of_transformers(folder / "ours", name), expected["transformers"])


def test_what_we_write_is_the_same_to_us_beside_another_transformers(written) -> None:
    name, folder, expected = written
    assert_same(of_ours(folder / "ours", name), expected["lmmblocks"])


def test_what_another_transformers_writes_is_the_same_to_us(written) -> None:
    name, folder, expected = written
    assert_same(of_ours(folder / "theirs", name), expected["lmmblocks"])


if __name__ == "__main__":
    write(Path(sys.argv[1]))
