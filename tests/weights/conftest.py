"""Tiny models of ours with random weights, a tokenizer of a few words, and files as the original LLaVA writes them; nothing downloaded."""

import copy
import json
import math
import re
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from lmmblocks.builder import build
from lmmblocks.chat.idefics import END, FAKE
from lmmblocks.config import Block, LMMConfig
from lmmblocks.decoders.transformer import TransformerConfig
from lmmblocks.encoders.blip2_vit import Blip2ViTConfig
from lmmblocks.encoders.clip import CLIPConfig
from lmmblocks.encoders.tiled import TiledConfig
from lmmblocks.weights.files.folder import write_weights
from lmmblocks.weights.systems.llava_hf import clip_to_hf

WORDS = ["<unk>", "<s>", "</s>", *"what is in the picture a cat ? USER : ASSISTANT".split()]


@pytest.fixture(scope="session")
def make_tokenizer():
    """Whole words; ``image`` gives it an image token of its own."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    def make(*, image=False):
        vocabulary = {word: index for index, word in enumerate(dict.fromkeys(WORDS))}
        backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
        backend.pre_tokenizer = pre_tokenizers.Whitespace()
        names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
        if image:
            tokenizer.add_tokens("<image>", special_tokens=True)
        return tokenizer

    return make


@pytest.fixture(scope="session")
def make_model(make_tokenizer):
    def make(*, seed=0, vocab=20, tied=False, image=False, tokenizer=True, **swaps):
        config = LMMConfig(
            encoder=CLIPConfig(dim=16, layers=2, heads=2, mlp_dim=24, image_size=28, patch=14),
            decoder=TransformerConfig(dim=24, layers=2, heads=2, kv_heads=1, ffn_dim=32, vocab=vocab, tied=tied, max_positions=64),
        )
        torch.manual_seed(seed)
        own = make_tokenizer(image=image) if tokenizer else None
        return build(config, weights="random", tokenizer=own, **swaps)

    return make


@pytest.fixture()
def saved(make_model, tmp_path):
    """A model and the folder it was saved to."""
    model = make_model()
    model.save(tmp_path / "model")
    return model, tmp_path / "model"


LORA = {"peft_type": "LORA", "r": 4, "lora_alpha": 6, "fan_in_fan_out": False, "bias": "none", "modules_to_save": None, "use_rslora": False}
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def original_names(state):
    """Our names to the original's, after ``llava_arch.py`` and ``multimodal_projector/builder.py``, written a second time."""
    names = {}
    for name in state:
        part, _, rest = name.partition(".")
        if part == "vision_tower":
            names[name] = f"model.vision_tower.vision_tower.{rest}"
        elif part == "multi_modal_projector":
            layer, _, kind = rest.partition(".")
            number = re.fullmatch(r"linear_(\d+)", layer)
            names[name] = f"model.mm_projector.{2 * (int(number[1]) - 1)}.{kind}" if number else f"model.mm_projector.{kind}"
        else:
            names[name] = rest if rest.startswith("lm_head") else f"model.{rest.removeprefix('model.')}"
    return {ours: name for ours, name in names.items()}


def config_of(model, **changes):
    """``config.json`` as training writes it: Llama's keys and LLaVA's side by side."""
    d = model.config.decoder
    kind = model.config.projector
    return {
        "_name_or_path": "lmsys/vicuna-7b-v1.5",
        "architectures": ["LlavaLlamaForCausalLM"],
        "freeze_mm_mlp_adapter": False,
        "hidden_act": "silu",
        "hidden_size": d.dim,
        "image_aspect_ratio": "pad",
        "image_grid_pinpoints": None,
        "intermediate_size": d.ffn_dim,
        "max_position_embeddings": d.max_positions,
        "mm_hidden_size": 16,
        "mm_projector_type": f"mlp{kind.options['depth']}x_gelu" if kind.type == "mlp" else kind.type,
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": "clip",
        "model_type": "llava_llama",
        "num_attention_heads": d.heads,
        "num_hidden_layers": d.layers,
        "num_key_value_heads": d.kv_heads,
        "rms_norm_eps": d.eps,
        "rope_scaling": None,
        "tie_word_embeddings": d.tied,
        "tokenizer_model_max_length": 48,
        "tokenizer_padding_side": "right",
        "torch_dtype": "float32",
        "tune_mm_mlp_adapter": False,
        "use_mm_proj": True,
        "vocab_size": d.vocab,
        **changes,
    }


def write_tower(model, folder):
    """The tower's own folder, as ``CLIPVisionModel`` of transformers 4 saves it."""
    folder.mkdir()
    save_file({f"{name}": value for name, value in model.encoder.state_dict().items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(clip_to_hf(model.config.encoder)))
    return folder


def write_bins(tensors, folder, shards=2):
    """``pytorch_model-0000k-of-0000n.bin`` and their index."""
    names = list(tensors)
    place = {name: f"pytorch_model-{index * shards // len(names) + 1:05}-of-{shards:05}.bin" for index, name in enumerate(names)}
    for shard in sorted(set(place.values())):
        torch.save({name: tensors[name].clone() for name in names if place[name] == shard}, folder / shard)
    total = sum(value.nbytes for value in tensors.values())
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": place}))


def write_original(model, folder, *, kind="bin", vision=False, tower=True, **changes):
    """A full checkpoint and, inside its folder, the tower it names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = original_names(dict(model.named_parameters()))
    tensors = {names[ours]: value.detach().clone() for ours, value in model.named_parameters() if vision or not ours.startswith("vision_tower.")}
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(6)
    write_bins(tensors, folder) if kind == "bin" else write_weights(folder, tensors, dtype=None, shard_bytes=12000)
    (folder / "config.json").write_text(json.dumps(config_of(model, **changes)))
    model.tokenizer.save_pretrained(folder)
    if tower:
        write_tower(model, folder / "clip")
    return folder


def write_base(model, folder):
    """A language model alone, as Vicuna lies on the hub."""
    folder.mkdir()
    tensors = {name: value.clone() for name, value in model.decoder.state_dict().items()}
    write_bins(tensors, folder)
    values = config_of(model, model_type="llama")
    (folder / "config.json").write_text(json.dumps({key: value for key, value in values.items() if "mm_" not in key}))
    model.tokenizer.save_pretrained(folder)
    return folder


def write_projector(model, folder, prefix="model.", **changes):
    folder.mkdir()
    write_tower(model, folder / "clip")
    layers = {name: value.detach() for name, value in model.named_parameters() if name.startswith("multi_modal_projector.")}
    names = original_names(layers)
    torch.save({names[name].replace("model.", prefix, 1): value for name, value in layers.items()}, folder / "mm_projector.bin")
    (folder / "config.json").write_text(json.dumps(config_of(model, **changes)))
    return folder


def write_lora(model, folder, *, kind="bin", infix="", whole=(), **adapter):
    """An adapter on every linear layer of the language model; returns what each weight must become, by PEFT's formula."""
    folder.mkdir()
    values = {**LORA, **adapter}
    scale = values["lora_alpha"] / (math.sqrt(values["r"]) if values["use_rslora"] else values["r"])
    tensors, merged = {}, {name: value.clone() for name, value in model.state_dict().items()}
    names = original_names(merged)
    generator = torch.Generator().manual_seed(3)
    for ours, name in names.items():
        if name.startswith("model.layers.") and name.split(".")[-2] in TARGETS:
            weight = merged[ours]
            a = torch.randn(values["r"], weight.shape[1], generator=generator) * 0.1
            b = torch.randn(weight.shape[0], values["r"], generator=generator) * 0.1
            module = f"base_model.model.{name.removesuffix('.weight')}"
            tensors[f"{module}.lora_A{infix}.weight"], tensors[f"{module}.lora_B{infix}.weight"] = a, b
            merged[ours] = (weight.float() + scale * (b @ a)).to(weight.dtype)
    for ours in whole:
        tensors[f"base_model.model.{names[ours]}"] = merged[ours] = torch.full_like(merged[ours], 0.25)
    torch.save(tensors, folder / "adapter_model.bin") if kind == "bin" else save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(values))
    (folder / "config.json").write_text(json.dumps(config_of(model)))
    return merged


def write_trainables(model, folder):
    layers = {name: torch.randn_like(value) for name, value in model.state_dict().items() if name.startswith("multi_modal_projector.")}
    names = original_names(layers)
    torch.save({f"base_model.model.{names[name]}": value for name, value in layers.items()}, folder / "non_lora_trainables.bin")
    return layers


@pytest.fixture(scope="session")
def original():
    """What writes the original LLaVA's files, name by name as its code does."""
    return SimpleNamespace(
        names=original_names, config=config_of, full=write_original, base=write_base, projector=write_projector,
        lora=write_lora, trainables=write_trainables, tower=write_tower, LORA=LORA, TARGETS=TARGETS,
    )  # fmt: skip


@pytest.fixture(scope="session")
def make_tokenizer_with(tiny_tokenizer):
    """A Llama-like tokenizer that puts its first token before documents, with more special tokens."""
    from tokenizers.processors import TemplateProcessing

    def make(*tokens, bos=True):
        tokenizer = copy.deepcopy(tiny_tokenizer)
        if tokens:
            tokenizer.add_tokens(list(tokens), special_tokens=True)
        if bos:
            tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)])
        return tokenizer

    return make


def write_idefics(tokenizer, folder):
    """As transformers' class saves it: the last rows of the tables lie apart. Its projector needs a token ``<image>``."""
    from transformers import IdeficsConfig, IdeficsForVisionText2Text

    tokenizer.add_tokens([FAKE, "<image>", END], special_tokens=True)
    vision = dict(embed_dim=24, image_size=28, patch_size=14, intermediate_size=40, num_hidden_layers=2, num_attention_heads=3)
    shape = dict(vocab_size=397, additional_vocab_size=3, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    torch.manual_seed(0)
    config = IdeficsConfig(**shape, max_position_embeddings=512, vision_config=vision, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    IdeficsForVisionText2Text(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def swaps_of(layout, tokenizer, tmp_path):
    """What makes the tiny LLaVA the model of a layout."""
    if layout == "next":
        return {"encoder": TiledConfig(CLIPConfig(dim=16, layers=3, heads=2, mlp_dim=24, image_size=28, patch=14), ((28, 56), (56, 28)))}
    if layout == "instructblip":
        tokenizer.save_pretrained(tmp_path / "instructions")
        sizes = dict(queries=4, dim=16, layers=2, heads=2, mlp_dim=20, vocab=400, positions=64, prefix=True)
        return {
            "encoder": Blip2ViTConfig(dim=24, mlp_dim=40, layers=2, heads=4, image_size=28, patch=14),
            "projector": Block("instruct_qformer", {**sizes, "tokenizer": str(tmp_path / "instructions")}),
            "template": "instructblip",
        }
    return {}


def write_small_adapter(folder, base):
    """On one weight, without a config of its own: everything else is the base's."""
    folder.mkdir()
    module = "base_model.model.model.layers.0.self_attn.q_proj"
    save_file({f"{module}.lora_A.weight": torch.ones(4, 24), f"{module}.lora_B.weight": torch.ones(24, 4)}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({**LORA, "base_model_name_or_path": str(base)}))


@pytest.fixture()
def folder_of(make_tiny_model, make_tokenizer_with, tmp_path):
    """A folder of each layout, without a word of ours about how to talk to it."""

    def silent(folder):
        for name in ("lmmblocks.json", "generation_config.json", "chat_template.jinja", "chat_template.json"):
            (folder / name).unlink(missing_ok=True)

    def make(layout, *tokens, bos=True):
        tokenizer, folder = make_tokenizer_with(*tokens, bos=bos), tmp_path / "model"
        if layout == "idefics":
            write_idefics(tokenizer, folder)
            silent(folder)
            return folder
        model = make_tiny_model(tokenizer=tokenizer, **swaps_of(layout, tokenizer, tmp_path))
        if layout in ("hf", "next", "instructblip"):
            model.save(folder)
        elif layout == "original":
            write_original(model, folder)
        elif layout == "adapter over hf":
            model.save(tmp_path / "base")
            silent(tmp_path / "base")
            write_small_adapter(folder, tmp_path / "base")
        else:
            base = write_base(model, tmp_path / "base")
            if layout == "projector":
                write_projector(model, folder, _name_or_path=str(base))
            else:
                write_lora(model, folder, base_model_name_or_path=str(base))
                write_trainables(model, folder)
                write_tower(model, folder / "clip")
        if not (folder / "tokenizer.json").is_file():
            model.tokenizer.save_pretrained(folder)
        silent(folder)
        return folder

    return make
