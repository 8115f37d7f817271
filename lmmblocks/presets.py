"""Models by name. A preset is a function that returns a config; a variant is ``dataclasses.replace`` of one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from .config import Block, LMMConfig
from .decoders.catalogue import DECODERS
from .decoders.hf_config import HFDecoderConfig
from .decoders.transformer import TransformerConfig
from .encoders.blip2_vit import Blip2ViTConfig
from .encoders.catalogue import BLIP2_VIT_G, CLIP_L_336, ENCODERS
from .encoders.clip import CLIPConfig
from .encoders.qwen_vit import QwenViTConfig
from .encoders.tiled import TiledConfig
from .images.preprocess import clip_preprocess
from .spec import LmmError, closest

__all__ = ["CLIP_L_336", "DECODERS", "ENCODERS", "PRESETS", "preset"]

BERT = "google-bert/bert-base-uncased"
"""Hub id of the tokenizer that InstructBLIP's Q-Former reads the instruction with."""


def llava15_7b() -> LMMConfig:
    """LLaVA-1.5-7B: CLIP ViT-L/14-336 (hidden state -2), a two-layer MLP, Vicuna-7B v1.5. Source: arXiv 2310.03744, ``scripts/v1_5``."""
    return _llava15("lmsys/vicuna-7b-v1.5", TransformerConfig())


def llava15_13b() -> LMMConfig:
    """LLaVA-1.5-13B: as :func:`llava15_7b` with Vicuna-13B v1.5."""
    return _llava15("lmsys/vicuna-13b-v1.5", TransformerConfig(dim=5120, layers=40, heads=40, kv_heads=40, ffn_dim=13824))


def llava_next_7b() -> LMMConfig:
    """LLaVA-NeXT (1.6) 7B: as :func:`llava15_7b`, but the encoder sees pictures in tiles. Source: ``liuhaotian/llava-v1.6-vicuna-7b``."""
    config = llava15_7b()
    return replace(config, encoder=TiledConfig(config.encoder), max_length=4096)


def llava_onevision_7b() -> LMMConfig:
    """LLaVA-OneVision 7B: SigLIP So400m/14-384 sees up to 6 by 6 tiles, of which nine tiles' rows are kept; a two-layer MLP, Qwen2-7B.

    The tower has SigLIP's last layer, whose result is not used: the released model leaves it out. Its projector and newline are new here; the trained
    model is read with ``lmmblocks.load("llava-hf/llava-onevision-qwen2-7b-ov-hf")``. Source: Li et al., arXiv 2408.03326.
    """
    tower, source = ENCODERS["siglip-so400m-384"]
    sides = range(384, 2305, 384)
    decoder = DECODERS["qwen2.5-7b"][0]  # Qwen2-7B has the same shape
    return LMMConfig(
        encoder=TiledConfig(tower, tuple((height, width) for height in sides for width in sides), most_tiles=9),
        projector=Block("mlp", {"depth": 2}),
        decoder=decoder,
        template="qwen2",
        encoder_source=source,
        decoder_source="Qwen/Qwen2-7B-Instruct",
    )


def instructblip_vicuna_7b() -> LMMConfig:
    """InstructBLIP with Vicuna-7B v1.1: BLIP-2's ViT-g/14, a Q-Former that reads the instruction with BERT's tokenizer.

    The Q-Former is new, as every projector that :func:`lmmblocks.build` makes; the trained model is read with
    ``lmmblocks.load("Salesforce/instructblip-vicuna-7b")``, whose tokenizer begins a text with ``</s>``, where Vicuna's own has ``<s>``.
    Source: Dai et al., arXiv 2305.06500; ``blip2_instruct_vicuna7b.yaml`` and ``blip2_vicuna_instruct.py`` of LAVIS.
    """
    return _instructblip("lmsys/vicuna-7b-v1.1", TransformerConfig(max_positions=2048, eps=1e-6))


def instructblip_vicuna_13b() -> LMMConfig:
    """InstructBLIP with Vicuna-13B v1.1: as :func:`instructblip_vicuna_7b`."""
    shape = TransformerConfig(dim=5120, layers=40, heads=40, kv_heads=40, ffn_dim=13824, max_positions=2048, eps=1e-6)
    return _instructblip("lmsys/vicuna-13b-v1.1", shape)


def blip2_opt_2_7b() -> LMMConfig:
    """BLIP-2 with OPT-2.7B: BLIP-2's ViT-g/14, 32 queries that see the image alone, OPT as transformers computes it.

    The Q-Former is new, as every projector that :func:`lmmblocks.build` makes; the trained model is read with
    ``lmmblocks.load("Salesforce/blip2-opt-2.7b")``. Source: Li et al., arXiv 2301.12597; ``blip2_pretrain_opt2.7b.yaml`` of LAVIS.
    """
    shape = {"hidden_size": 2560, "num_hidden_layers": 32, "num_attention_heads": 32, "ffn_dim": 10240, "vocab_size": 50304}
    return LMMConfig(
        encoder=Blip2ViTConfig(),
        projector=Block("qformer", {"prefix": True}),
        decoder=HFDecoderConfig({"model_type": "opt", **shape, "word_embed_proj_dim": 2560}),
        template="lmmblocks.weights.systems.blip2:BLIP2",
        encoder_source=BLIP2_VIT_G,
        decoder_source="facebook/opt-2.7b",
    )


def idefics_9b() -> LMMConfig:
    """IDEFICS-9B: LAION's CLIP ViT-H/14, Llama-7B with two more tokens, a Flamingo-like look at 64 rows of an image at every fourth layer.

    The trained model is read with ``lmmblocks.load("HuggingFaceM4/idefics-9b")``; what :func:`lmmblocks.build` makes has random weights
    unless its parts are swapped for others. Source: Laurençon et al., arXiv 2306.16527; ``IdeficsConfig`` of transformers 5.23.
    """
    perceiver = {"latents": 64, "depth": 6, "heads": 16, "head_dim": 96, "qk_norm": True}
    return LMMConfig(
        encoder=CLIPConfig(dim=1280, layers=32, heads=16, mlp_dim=5120, image_size=224, activation="gelu", select=(-1,)),
        projector=Block("image_token", {"token": 32001}),
        decoder=TransformerConfig(vocab=32002, eps=1e-6, max_positions=2048),
        hooks=(Block("gated_cross_attention", {"layers": list(range(0, 32, 4)), "qk_norm": True, "resampler": perceiver}),),
        template="lmmblocks.chat.idefics:IDEFICS_BASE",
        max_length=2048,
        preprocess=clip_preprocess(224, 14, fit="squash"),
    )


def qwen_vl_7b() -> LMMConfig:
    """Qwen-VL (2023), 9.6 billion parameters: open_clip's ViT-bigG/14 at 448 px, a resampler of 256 queries, Qwen-7B.

    The trained model is read with ``lmmblocks.load("Qwen/Qwen-VL")``; what :func:`lmmblocks.build` makes has random weights unless its parts are
    swapped for others. It takes conversations of 2,048 positions, up to which it was trained. Source: Bai et al., arXiv 2308.12966; the
    ``config.json`` of Qwen/Qwen-VL.
    """
    encoder = QwenViTConfig()
    return LMMConfig(
        encoder=encoder,
        projector=Block("resampler", {"grid": 16}),
        decoder=TransformerConfig(vocab=151936, eps=1e-6, max_positions=2048, qkv_bias=True),
        template="lmmblocks.chat.qwen_vl:QWEN_VL",
        max_length=2048,
        preprocess=encoder.default_preprocess(),
    )


def qwen_vl_chat_7b() -> LMMConfig:
    """Qwen-VL-Chat: as :func:`qwen_vl_7b`, asked in ChatML with numbered pictures."""
    return replace(qwen_vl_7b(), template="lmmblocks.chat.qwen_vl:QWEN_VL_CHAT")


def llava15_tiny() -> LMMConfig:
    """The same model at a size that trains on two CPU cores; its towers ship with ``examples/llava15``.

    64 tokens per image: 112 px in patches of 14 px.
    """
    return LMMConfig(
        encoder=CLIPConfig(dim=192, layers=5, heads=6, mlp_dim=768, image_size=112, patch=14),
        projector=Block("mlp", {"depth": 2}),
        decoder=TransformerConfig(dim=192, layers=5, heads=6, kv_heads=2, ffn_dim=512, vocab=1200, max_positions=2048),
        max_length=1024,
    )


def _llava15(language_model: str, decoder: TransformerConfig) -> LMMConfig:
    return LMMConfig(
        encoder=CLIPConfig(),
        projector=Block("mlp", {"depth": 2}),
        decoder=decoder,
        tokenize_mode="llava15",
        max_length=2048,
        encoder_source=CLIP_L_336,
        decoder_source=language_model,
    )


def _instructblip(language_model: str, decoder: TransformerConfig) -> LMMConfig:
    return LMMConfig(
        encoder=Blip2ViTConfig(),
        projector=Block("instruct_qformer", {"prefix": True, "tokenizer": BERT}),
        decoder=decoder,
        template="instructblip",
        encoder_source=BLIP2_VIT_G,
        decoder_source=language_model,
    )


PRESETS: dict[str, Callable[[], LMMConfig]] = {
    "llava15-7b": llava15_7b,
    "llava15-13b": llava15_13b,
    "llava15-tiny": llava15_tiny,
    "llava-next-7b": llava_next_7b,
    "llava-onevision-7b": llava_onevision_7b,
    "instructblip-vicuna-7b": instructblip_vicuna_7b,
    "instructblip-vicuna-13b": instructblip_vicuna_13b,
    "blip2-opt-2.7b": blip2_opt_2_7b,
    "idefics-9b": idefics_9b,
    "qwen-vl-7b": qwen_vl_7b,
    "qwen-vl-chat-7b": qwen_vl_chat_7b,
}


def preset(name: str) -> LMMConfig:
    """Return the config of a preset.

    Raises:
        LmmError: no preset of that name; the message has the closest one.

    >>> preset("llava15-13b").decoder.dim
    5120
    """
    if name not in PRESETS:
        raise LmmError(f"unknown preset {name!r}{closest(name, PRESETS)}; known: {sorted(PRESETS)}")
    return PRESETS[name]()
