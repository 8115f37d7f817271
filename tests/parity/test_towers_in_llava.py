"""LLaVA with other vision towers than CLIP against ``LlavaForConditionalGeneration``: written for it, and read from its files."""

import json

import pytest
import torch
from safetensors.torch import save_file

import lmmblocks as lb
from lmmblocks.builder import build
from lmmblocks.config import LMMConfig
from lmmblocks.decoders.transformer import TransformerConfig
from lmmblocks.encoders.dinov2 import DINOv2Config
from lmmblocks.encoders.siglip import SigLIPConfig
from lmmblocks.encoders.siglip2_naflex import NaFlexConfig
from lmmblocks.spec import IMAGE_TOKEN, Batch, Grid, LmmError

PATCHES = 16
ENCODERS = {
    "siglip": SigLIPConfig(dim=32, layers=3, heads=4, mlp_dim=48, image_size=28, patch=7),
    "dinov2": DINOv2Config(dim=32, layers=3, heads=4, image_size=28, patch=7, trained_size=28),
}
TWINS = {"siglip": "transformers LLaVA, SigLIP", "dinov2": "transformers LLaVA, DINOv2"}


def our_model(tokenizer, encoder):
    decoder = TransformerConfig(dim=32, layers=2, heads=4, kv_heads=2, ffn_dim=56, vocab=400, max_positions=512)
    torch.manual_seed(5)
    return build(LMMConfig(encoder=encoder, decoder=decoder), weights="random", tokenizer=tokenizer)


def logits_of_both(ours, theirs):
    """One image before nine words."""
    generator = torch.Generator().manual_seed(7)
    pixels = torch.randn(1, 3, 28, 28, generator=generator)
    words = torch.randint(3, 370, (9,), generator=generator).tolist()
    batch = Batch(pixels, (Grid(4, 4),), lb.plan_splice([[IMAGE_TOKEN, *words]], [[PATCHES]]))
    ids = torch.tensor([[theirs.config.image_token_id] * PATCHES + words])
    with torch.no_grad():
        return ours.logits(batch), theirs(input_ids=ids, pixel_values=pixels).logits[0]


@pytest.mark.parametrize("kind", ENCODERS)
def test_a_model_with_another_tower_is_written_for_transformers_and_read_back(kind, randomised, tokenizer, tmp_path, record_parity):
    from transformers import LlavaForConditionalGeneration

    ours = randomised(our_model(tokenizer, ENCODERS[kind]), 3)
    ours.save(tmp_path / "out", format="hf")
    theirs, report = LlavaForConditionalGeneration.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    a, b = logits_of_both(ours, theirs.eval())
    print(kind, "logits", (a - b).abs().max())
    record_parity(f"LLaVA with {kind}", TWINS[kind], "logits", (a - b).abs().max())
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    theirs.save_pretrained(tmp_path / "theirs")
    again = lb.load(tmp_path / "theirs")
    assert again.config.encoder == ours.config.encoder
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in ours.state_dict().items())


def test_the_names_that_transformers_has_in_memory_are_read(randomised, tokenizer, tmp_path):
    """SigLIP's tower; DINOv2's layers have other names in the memory of transformers 5 than in any file."""
    from transformers import LlavaForConditionalGeneration

    ours = randomised(our_model(tokenizer, ENCODERS["siglip"]), 3)
    ours.save(tmp_path / "out", format="hf")
    theirs = LlavaForConditionalGeneration.from_pretrained(tmp_path / "out")
    (tmp_path / "out" / "lmmblocks.json").unlink()
    save_file({name: value.clone() for name, value in theirs.state_dict().items()}, tmp_path / "out" / "model.safetensors")
    again = lb.load(tmp_path / "out")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in ours.state_dict().items())


@pytest.mark.parametrize("kind, strategy, extra", [("siglip", "full", 0), ("dinov2", "default", 1)])
def test_the_processor_counts_as_many_image_tokens_as_there_are_rows(kind, strategy, extra, tokenizer, tmp_path):
    our_model(tokenizer, ENCODERS[kind]).save(tmp_path / "out", format="hf")
    processor = json.loads((tmp_path / "out" / "processor_config.json").read_text())
    assert (processor["vision_feature_select_strategy"], processor["num_additional_image_tokens"]) == (strategy, extra)


@pytest.mark.parametrize(
    "encoder, message",
    [
        (DINOv2Config(dim=32, layers=2, heads=4, image_size=28, patch=7, trained_size=28, registers=4), "DINOv2 with registers"),
        (SigLIPConfig(dim=32, layers=2, heads=4, mlp_dim=48, image_size=28, patch=7, final_norm=True, select=(-1,)), "final norm"),
        (NaFlexConfig(dim=32, layers=2, heads=4, mlp_dim=48, patch=7, positions=16), "encoder 'NaFlex"),
    ],
)
def test_towers_that_transformers_llava_cannot_hold_are_refused(tokenizer, tmp_path, encoder, message):
    with pytest.raises(LmmError, match=f"{message}.*format='native'"):
        our_model(tokenizer, encoder).save(tmp_path / "out", format="hf")
