"""Key maps are data that can be read backwards, and a file's layout is known by its names."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmmblocks.decoders.transformer import TransformerConfig
from lmmblocks.encoders.clip import CLIPConfig
from lmmblocks.weights.files.maps import (
    CLIP_LAYOUTS,
    FILES_5,
    HUB,
    LLAVA_LAYOUTS,
    NATIVE,
    RUNTIME_4_52,
    RUNTIME_5,
    KeyMap,
    choose,
    inside,
    part,
)
from lmmblocks.weights.systems.all import DECODER_LAYOUTS, SYSTEMS
from lmmblocks.weights.systems.llava_original_names import ORIGINAL, PROJECTOR_LAYOUTS, TRAINABLE_LAYOUTS

MODEL_LAYOUTS = tuple(dict.fromkeys(layout for system in SYSTEMS if not system.over_base for layout in system.layouts))
LLAVA_AND_OURS = (*LLAVA_LAYOUTS, NATIVE, ORIGINAL)  # of the model below; other layouts are of other blocks

CLIP_NAMES = list(CLIPConfig(dim=8, layers=2, heads=2, mlp_dim=8, image_size=28).build().state_dict())
LLAMA_NAMES = list(TransformerConfig(dim=8, layers=2, heads=2, kv_heads=1, ffn_dim=8, vocab=4).build().state_dict())
PROJECTOR_NAMES = [f"linear_{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias")]
MODEL_NAMES = [
    *("vision_tower." + name for name in CLIP_NAMES),
    *("multi_modal_projector." + name for name in PROJECTOR_NAMES),
    *("language_model." + name for name in LLAMA_NAMES),
]

# One name of each kind in every layout, written by hand from what each generation writes.
TABLE = {
    HUB: [
        "vision_tower.vision_model.encoder.layers.0.mlp.fc1.bias",
        "vision_tower.vision_model.embeddings.class_embedding",
        "multi_modal_projector.linear_2.weight",
        "language_model.model.layers.1.self_attn.q_proj.weight",
        "language_model.lm_head.weight",
    ],
    FILES_5: [
        "vision_tower.encoder.layers.0.mlp.fc1.bias",
        "vision_tower.embeddings.class_embedding",
        "multi_modal_projector.linear_2.weight",
        "language_model.model.layers.1.self_attn.q_proj.weight",
        "language_model.lm_head.weight",
    ],
    RUNTIME_4_52: [
        "model.vision_tower.vision_model.encoder.layers.0.mlp.fc1.bias",
        "model.vision_tower.vision_model.embeddings.class_embedding",
        "model.multi_modal_projector.linear_2.weight",
        "model.language_model.layers.1.self_attn.q_proj.weight",
        "lm_head.weight",
    ],
    ORIGINAL: [
        "model.vision_tower.vision_tower.vision_model.encoder.layers.0.mlp.fc1.bias",
        "model.vision_tower.vision_tower.vision_model.embeddings.class_embedding",
        "model.mm_projector.2.weight",
        "model.layers.1.self_attn.q_proj.weight",
        "lm_head.weight",
    ],
    RUNTIME_5: [
        "model.vision_tower.encoder.layers.0.mlp.fc1.bias",
        "model.vision_tower.embeddings.class_embedding",
        "model.multi_modal_projector.linear_2.weight",
        "model.language_model.layers.1.self_attn.q_proj.weight",
        "lm_head.weight",
    ],
}
CASES = [
    *((layout, MODEL_NAMES) for layout in LLAVA_AND_OURS),
    *((layout, CLIP_NAMES) for layout in CLIP_LAYOUTS),
    *((layout, LLAMA_NAMES) for layout in DECODER_LAYOUTS if layout.name != "LlamaModel"),
]


@pytest.mark.parametrize("layout", TABLE, ids=lambda layout: layout.name)
def test_renames_are_those_of_the_written_table(layout):
    assert [layout.to_model(name) for name in TABLE[layout]] == TABLE[HUB]
    assert [layout.to_file(name) for name in TABLE[HUB]] == TABLE[layout]


@pytest.mark.parametrize("layout, names", CASES, ids=lambda value: getattr(value, "name", None))
def test_every_name_of_a_model_survives_a_round_trip_through_each_layout(layout, names):
    in_file = [layout.to_file(name) for name in names]
    assert None not in in_file
    assert len(set(in_file)) == len(names)
    assert [layout.to_model(name) for name in in_file] == names


@given(st.sampled_from([layout for layout, _ in CASES]), st.data())
def test_any_name_below_a_known_prefix_survives_a_round_trip(layout, data):
    prefix = data.draw(st.sampled_from([file for file, _ in layout.renames]))
    name = prefix + data.draw(st.text("abc_019.", max_size=12))
    assert layout.to_file(layout.to_model(name)) == name


@pytest.mark.parametrize("layouts, names", [(LLAVA_AND_OURS, MODEL_NAMES), (CLIP_LAYOUTS, CLIP_NAMES)], ids=["model", "clip"])
@pytest.mark.parametrize("with_head", [True, False])
def test_the_layout_of_a_file_is_known_by_its_names(layouts, names, with_head):
    for layout in layouts:
        in_file = [layout.to_file(name) for name in names if with_head or "lm_head" not in name]
        found = choose(layouts, in_file, set(names))
        assert [found.to_model(name) for name in in_file] == [layout.to_model(name) for name in in_file]


def test_native_names_of_any_blocks_are_kept():
    names = ["vision_tower.blocks.0.w", "multi_modal_projector.query", "language_model.rnn.h"]
    assert choose(MODEL_LAYOUTS, names, set(names)) is NATIVE
    assert [NATIVE.to_model(name) for name in names] == names


def test_a_part_of_a_layout_leaves_the_other_parts_elsewhere():
    decoder = part(RUNTIME_5, "language_model.")
    assert decoder.to_model("model.language_model.norm.weight") == "model.norm.weight"
    assert decoder.to_model("model.vision_tower.pre_layrnorm.bias") is None
    assert decoder.skips("model.vision_tower.pre_layrnorm.bias")
    assert not decoder.skips("model.language_model.norm.weight")


def test_names_of_old_buffers_are_skipped_in_every_layout():
    for layout in LLAVA_LAYOUTS:
        assert layout.skips("vision_tower.vision_model.embeddings.position_ids")
        assert layout.skips("language_model.model.layers.0.self_attn.rotary_emb.inv_freq")
        assert not layout.skips("language_model.model.layers.0.self_attn.q_proj.weight")


def test_a_new_layout_is_data():
    """Everything after the name of a wrapper, as a trainer may write it."""
    wrapped = KeyMap("wrapped", tuple((f"module.{name}.", f"{name}.") for name in ("vision_tower", "multi_modal_projector", "language_model")))
    in_file = [wrapped.to_file(name) for name in MODEL_NAMES]
    assert [wrapped.to_model(name) for name in in_file] == MODEL_NAMES
    assert choose((*MODEL_LAYOUTS, wrapped), in_file, set(MODEL_NAMES)) is wrapped


@pytest.mark.parametrize("prefix", ["model.", "", "base_model.model.model."])
@pytest.mark.parametrize("linear", [False, True])
def test_a_projector_alone_is_known_behind_each_prefix(prefix, linear):
    in_file = [f"{prefix}mm_projector.{layer}{kind}" for layer in ([""] if linear else ["0.", "2."]) for kind in ("weight", "bias")]
    ours = [f"multi_modal_projector.linear{layer}.{kind}" for layer in ([""] if linear else ["_1", "_2"]) for kind in ("weight", "bias")]
    layout = choose(PROJECTOR_LAYOUTS, in_file, set(ours))
    assert [layout.to_model(name) for name in in_file] == ours
    assert [layout.to_file(name) for name in ours] == in_file


@pytest.mark.parametrize("prefix", ["base_model.model.", "base_model.", ""])
def test_what_a_lora_run_trained_beside_the_adapter_is_known_with_and_without_pefts_wrapper(prefix):
    in_file = [f"{prefix}model.mm_projector.0.weight", f"{prefix}model.vision_tower.vision_tower.vision_model.pre_layrnorm.bias"]
    ours = ["multi_modal_projector.linear_1.weight", "vision_tower.vision_model.pre_layrnorm.bias"]
    layout = choose(TRAINABLE_LAYOUTS, in_file, {*ours, *MODEL_NAMES})
    assert [layout.to_model(name) for name in in_file] == ours


def test_a_decoder_inside_an_original_checkpoint_leaves_nothing_over():
    in_file = [ORIGINAL.to_file(name) for name in MODEL_NAMES]
    layout = choose(DECODER_LAYOUTS, in_file, set(LLAMA_NAMES))
    assert sorted(filter(None, (layout.to_model(name) for name in in_file if not layout.skips(name)))) == sorted(LLAMA_NAMES)
    alone = [name.removeprefix("language_model.") for name in MODEL_NAMES if name.startswith("language_model.")]
    assert choose(DECODER_LAYOUTS, alone, set(LLAMA_NAMES)).name == "LlamaForCausalLM"


def test_a_part_alone_gets_its_names_in_the_whole_model():
    layouts = [inside(layout, "language_model.") for layout in DECODER_LAYOUTS]
    assert {choose(layouts, LLAMA_NAMES, set(MODEL_NAMES)).to_model(name) for name in LLAMA_NAMES} <= set(MODEL_NAMES)
