"""LLaVA-1.5 at its real sizes, on the meta device: every name and every shape, in each layout, is what the other code expects."""

import re

import pytest
import torch

from lmmblocks.builder import build
from lmmblocks.config import LMMConfig
from lmmblocks.presets import preset
from lmmblocks.weights.files.maps import FILES_5, HUB, RUNTIME_4_52, RUNTIME_5
from lmmblocks.weights.systems.llava_hf import llava_to_hf
from lmmblocks.weights.systems.llava_original_names import ORIGINAL

# convert_llava_weights_to_hf.py of transformers: replacements of substrings, in this order.
CONVERTER = [
    ("model.vision_tower.", ""),
    (".vision_resampler", ""),
    ("model.mm_projector", "multi_modal_projector"),
    ("model", "model.model"),
    ("vision_model.model", "vision_model"),
    ("lm_head", "language_model.lm_head"),
    ("model.model", "language_model.model"),
    ("multi_modal_projector.0", "multi_modal_projector.linear_1"),
    ("multi_modal_projector.2", "multi_modal_projector.linear_2"),
]
# conversion_mapping.py of transformers 5.23 for llava, llava's base model and CLIP's tower; what has its name already stays.
RULES_OF_5 = [
    (r"^language_model\.lm_head", "lm_head"),
    (r"^language_model\.model\.", "model.language_model."),
    (r"^vision_tower\.", "model.vision_tower."),
    (r"^multi_modal_projector\.", "model.multi_modal_projector."),
    (r"^(model\.vision_tower\.)vision_model\.", r"\1"),
]
PARAMETERS = {"llava15-7b": (303_507_456, 20_979_712, 6_738_415_616), "llava15-13b": (303_507_456, 31_467_520, 13_015_864_320)}


@pytest.fixture(scope="module", params=PARAMETERS)
def pair(request):
    """Ours and transformers' with the config that ours is exported with; nothing is allocated."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    config: LMMConfig = preset(request.param)
    ours = build(config, weights="random", device="meta")
    with torch.device("meta"):
        theirs = LlavaForConditionalGeneration(LlavaConfig(**llava_to_hf(config, image_token=31999)))
    return request.param, ours, theirs


def shapes(state):
    return {name: tuple(value.shape) for name, value in state.items()}


def test_parts_have_as_many_parameters_as_the_paper_and_the_files_say(pair):
    name, ours, _ = pair
    assert tuple(sum(p.numel() for p in part.parameters()) for part in list(ours.parts.values())[:3]) == PARAMETERS[name]


def test_names_and_shapes_are_those_of_transformers_own_model(pair):
    """``RUNTIME_5`` is what transformers 5 has in memory, so its model says itself what is right."""
    _, ours, theirs = pair
    renamed = {RUNTIME_5.to_file(name): shape for name, shape in shapes(ours.state_dict()).items()}
    assert renamed == shapes(theirs.state_dict())


@pytest.mark.parametrize("layout", [HUB, FILES_5, RUNTIME_4_52], ids=lambda layout: layout.name)
def test_names_that_older_versions_wrote_become_those_of_transformers_by_its_own_rules(pair, layout):
    _, ours, theirs = pair
    found = set()
    for name in ours.state_dict():
        in_file = layout.to_file(name)
        for pattern, replacement in RULES_OF_5:
            in_file = re.sub(pattern, replacement, in_file)
        found.add(in_file)
    assert found == set(theirs.state_dict())


def test_names_of_the_original_become_those_of_the_hub_by_the_converters_replacements(pair):
    _, ours, _ = pair
    for name in ours.state_dict():
        converted = ORIGINAL.to_file(name)
        assert ORIGINAL.to_model(converted) == name
        for old, new in CONVERTER:
            converted = converted.replace(old, new)
        assert converted == HUB.to_file(name)


def test_the_released_shards_are_as_large_as_the_original_layout_without_a_tower(pair):
    """13,518,910,809 bytes of pickles for 7B, in fp16: tensors and about 120 kB around them (listing of liuhaotian/llava-v1.5-7b)."""
    name, ours, _ = pair
    held = [value for key, value in ours.state_dict().items() if not re.match(r"model\.vision_tower\.", ORIGINAL.to_file(key))]
    total = 2 * sum(value.numel() for value in held)
    assert total == 2 * sum(PARAMETERS[name][1:])
    if name == "llava15-7b":
        assert 0 < 13_518_910_809 - total < 200_000
