"""The whole model against ``LlavaOnevisionForConditionalGeneration``: read from its files, and written for it.

A toy of two layers: tiles of 28 px in 4 x 4 patches, up to 3 x 3 of them, of which the rows of two tiles are kept.
"""

import json
import math
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import lmmblocks as lb
from lmmblocks.builder import build
from lmmblocks.chat import encode_chat
from lmmblocks.config import Block, LMMConfig
from lmmblocks.decoders.transformer import TransformerConfig
from lmmblocks.encoders.siglip import SigLIPConfig
from lmmblocks.encoders.tile_arrangement import TileArrange, TileArrangement
from lmmblocks.encoders.tiled import TiledConfig
from lmmblocks.presets import preset
from lmmblocks.spec import IGNORE_LABEL, IMAGE_TOKEN, Batch, Grid, LmmError, Sample, TileGrid
from lmmblocks.weights.inspect import inspect
from lmmblocks.weights.systems.llava_onevision import LAYOUTS, PINPOINTS, onevision_from_hf

TOLERANCE = 1e-5
TWIN = "LlavaOnevisionForConditionalGeneration"
RUNTIME = LAYOUTS[3]
TOY_PINPOINTS = tuple((h, w) for h in (28, 56, 84) for w in (28, 56, 84))
SIZES = [(50, 31), (20, 90), (64, 64), (30, 10), (90, 84), (200, 120)]

# transformers' options and ours, written twice on purpose.
VISION = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=28, patch_size=7, vision_use_head=False)
TEXT = dict(hidden_size=32, intermediate_size=56, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=400)
TEXT |= dict(max_position_embeddings=1024, rms_norm_eps=1e-5)
OUR_TOWER = SigLIPConfig(dim=32, mlp_dim=48, layers=2, heads=4, image_size=28, patch=7, head=False, select=(-1,))
OUR_TEXT = TransformerConfig(dim=32, ffn_dim=56, layers=2, heads=4, kv_heads=2, vocab=400, max_positions=1024, qkv_bias=True)


def hf_config(**changes):
    from transformers import LlavaOnevisionConfig, Qwen2Config, SiglipVisionConfig

    shape = dict(image_grid_pinpoints=[list(entry) for entry in TOY_PINPOINTS], vision_aspect_ratio="anyres_max_2", **changes)
    return LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**VISION), text_config=Qwen2Config(**TEXT), image_token_index=399, video_token_index=398, **shape
    )


def our_model(words, randomised, seed, **tiles):
    torch.manual_seed(seed)
    encoder = TiledConfig(OUR_TOWER, TOY_PINPOINTS, **{"most_tiles": 2, **tiles})
    config = LMMConfig(encoder=encoder, projector=Block("mlp", {"depth": 2}), decoder=OUR_TEXT, template="vicuna_v1")
    return randomised(build(config, weights="random", tokenizer=words), seed)


def picture(size, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


@pytest.fixture(scope="module", params=["read", "written"])
def pair(request, randomised, tokenizer, tmp_path_factory):
    """Ours and theirs with the same weights."""
    from transformers import LlavaOnevisionForConditionalGeneration

    folder = tmp_path_factory.mktemp("onevision")
    if request.param == "read":
        theirs = randomised(LlavaOnevisionForConditionalGeneration(hf_config()), 1)
        theirs.save_pretrained(folder)
        ours = lb.load(folder)
        ours.tokenizer = tokenizer
        ours.set_inputs(template="vicuna_v1")  # the tokenizer lacks Qwen's tokens
    else:
        ours = our_model(tokenizer, randomised, 2)
        ours.save(folder, format="hf")
        theirs, report = LlavaOnevisionForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
        assert not any(report.values()), report
    assert ours.config.encoder == TiledConfig(OUR_TOWER, TOY_PINPOINTS, most_tiles=2) and theirs.dtype == torch.float32
    return ours.requires_grad_(True), theirs.eval()


@pytest.fixture(scope="module")
def pixels(pair):
    return pair[0].encoder.preprocess.batch([picture(size, seed) for seed, size in enumerate(SIZES)])[0]


@pytest.fixture(scope="module")
def samples():
    """Token ids and labels: one picture, none, three, two."""
    generator = torch.Generator().manual_seed(7)

    def text(length):
        return torch.randint(3, 379, (length,), generator=generator).tolist()

    rows = [[1, *text(4), IMAGE_TOKEN, *text(9)], [1, *text(11)]]
    rows += [[1, IMAGE_TOKEN, *text(3), IMAGE_TOKEN, IMAGE_TOKEN, *text(5)], [1, IMAGE_TOKEN, *text(3), IMAGE_TOKEN, *text(2)]]
    return [(row, [IGNORE_LABEL if i % 3 == 0 or t < 0 else t for i, t in enumerate(row)]) for row in rows]


def our_batch(ours, samples, pixels):
    rows = iter([ours.input_spec.image_rows(grid) for grid in pixels.grids])
    counts = [[next(rows) for _ in range(ids.count(IMAGE_TOKEN))] for ids, _ in samples]
    plan = lb.plan_splice([ids for ids, _ in samples], counts, labels=[labels for _, labels in samples])
    return Batch(pixels, pixels.grids, plan)


def their_pixels(pixels):
    """Padded to the largest number of tiles, and the sizes of the pictures as (height, width)."""
    most = max(grid.count for grid in pixels.grids)
    each = pixels.tiles.split([grid.count for grid in pixels.grids])
    padded = [torch.cat([tiles, tiles.new_zeros(most - len(tiles), *tiles.shape[1:])]) for tiles in each]
    return torch.stack(padded), torch.tensor([[grid.height_px, grid.width_px] for grid in pixels.grids])


def their_batch(ours, samples, pixels, image_token):
    rows = iter([ours.input_spec.image_rows(grid) for grid in pixels.grids])
    ids, labels = [], []
    for row, row_labels in samples:
        repeats = [next(rows) if token == IMAGE_TOKEN else 1 for token in row]
        ids.append([image_token if t == IMAGE_TOKEN else t for t, n in zip(row, repeats) for _ in range(n)])
        labels.append([label for label, n in zip(row_labels, repeats) for _ in range(n)])
    pad = [max(map(len, ids)) - len(row) for row in ids]
    values, sizes = their_pixels(pixels)
    return {
        "input_ids": torch.tensor([row + [0] * n for row, n in zip(ids, pad)]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * n for row, n in zip(ids, pad)]),
        "labels": torch.tensor([row + [IGNORE_LABEL] * n for row, n in zip(labels, pad)]),
        "pixel_values": values,
        "image_sizes": sizes,
    }


def test_rows_of_each_picture_equal_transformers_and_some_were_made_smaller(pair, pixels, record_parity):
    ours, theirs = pair
    values, sizes = their_pixels(pixels)
    with torch.no_grad():
        expected = theirs.model.get_image_features(values, sizes).pooler_output
        rows, counts = ours.encode(pixels)
    assert counts == tuple(len(rows) for rows in expected)
    assert counts == tuple(ours.input_spec.image_rows(grid) for grid in pixels.grids)
    whole = TileArrangement()
    smaller = [count < whole.rows_of(grid, lambda each: each) for count, grid in zip(counts, pixels.grids)]
    assert True in smaller and False in smaller, smaller
    difference = (rows - torch.cat(list(expected))).abs().max().item()
    record_parity("LLaVA-OneVision", TWIN, "image rows", difference)
    assert difference <= TOLERANCE


def test_logits_of_a_mixed_batch_equal_transformers(pair, pixels, samples, record_parity):
    ours, theirs = pair
    batch = their_batch(ours, samples, pixels, theirs.config.image_token_index)
    with torch.no_grad():
        expected, got = theirs(**batch).logits[batch["attention_mask"].bool()], ours.logits(our_batch(ours, samples, pixels))
    difference = (got - expected).abs().max().item()
    record_parity("LLaVA-OneVision", TWIN, "logits", difference)
    assert expected.std() > 0.1 and difference <= TOLERANCE, difference


def test_loss_and_every_gradient_equal_transformers(pair, pixels, samples, record_parity):
    ours, theirs = pair
    ours.encoder.frozen = False
    ours.zero_grad()
    theirs.requires_grad_(True).zero_grad()
    loss = ours.loss(our_batch(ours, samples, pixels))
    expected_loss = theirs(**their_batch(ours, samples, pixels, theirs.config.image_token_index)).loss
    torch.testing.assert_close(loss, expected_loss, atol=TOLERANCE, rtol=0)
    loss.backward()
    expected_loss.backward()
    ours.encoder.frozen = True
    expected = {RUNTIME.to_model(name): value.grad for name, value in theirs.named_parameters()}
    got = {name: value.grad for name, value in ours.named_parameters()}
    assert got.keys() == expected.keys() and got["arrange.image_newline"].abs().max() > 0
    worst = 0.0
    for name, gradient in got.items():
        if expected[name] is None or gradient is None:  # of SigLIP's last norm, which nothing reads
            assert gradient is None and (expected[name] is None or not expected[name].any()), name
        else:
            worst = max(worst, (gradient - expected[name]).abs().max().item())
            torch.testing.assert_close(gradient, expected[name], atol=TOLERANCE, rtol=1e-4, msg=name)
    record_parity("LLaVA-OneVision", TWIN, "gradients", worst)


def test_greedy_tokens_equal_transformers(pair, pixels, samples):
    ours, theirs = pair
    (ids, labels), images = samples[2], pixels[1:4]
    batch = their_batch(ours, [(ids, labels)], images, theirs.config.image_token_index)
    del batch["labels"]
    expected = theirs.generate(**batch, max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0)[0, -8:]
    grown = list(ids)
    for _ in range(8):
        with torch.no_grad():
            grown.append(int(ours.logits(our_batch(ours, [(grown, [IGNORE_LABEL] * len(grown))], images))[-1].argmax()))
    assert grown[len(ids) :] == expected.tolist()


def test_what_transformers_writes_of_ours_comes_back_bitwise(pair, pixels, samples, tmp_path):
    ours, theirs = pair
    theirs.save_pretrained(tmp_path / "theirs")
    for folder, format in (("hf", "hf"), ("native", "native"), ("theirs", None)):
        if format:
            ours.save(tmp_path / folder, format=format)
        again = lb.load(tmp_path / folder)
        assert again.config.encoder == ours.config.encoder
        state = again.state_dict()
        assert state.keys() == ours.state_dict().keys()
        assert all(torch.equal(state[name], value) for name, value in ours.state_dict().items()), folder


@pytest.fixture(scope="module")
def whole(tokenizer, randomised, tmp_path_factory):
    """A model with its tokenizer, and the folder it was written to for transformers."""
    ours = our_model(tokenizer, randomised, 5)
    ours.decoder.lm_head.weight.data[3:259] = 0  # no bytes and no ids without text, so that every greedy token is text
    ours.decoder.lm_head.weight.data[len(tokenizer) :] = 0
    folder = tmp_path_factory.mktemp("whole") / "out"
    ours.save(folder, format="hf")
    return ours, folder


def pil_processor(folder):
    """With torchvision in the environment the processor would resize by other arithmetic than Pillow's."""
    from transformers import AutoProcessor
    from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
        LlavaOnevisionImageProcessorPil,
    )

    processor = AutoProcessor.from_pretrained(folder)
    processor.image_processor = LlavaOnevisionImageProcessorPil.from_pretrained(folder)
    return processor


@pytest.mark.parametrize("size", SIZES)
def test_the_processor_of_transformers_builds_the_same_prompt_and_pixels(whole, size):
    ours, folder = whole
    processor, shown = pil_processor(folder), picture(size, 3)
    assert type(processor).__name__ == "LlavaOnevisionProcessor"
    messages = [{"role": "user", "content": "<image>\nWhat color is the cat?"}]
    asked = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    inputs = processor(images=shown, text=asked, return_tensors="pt")
    batch = lb.collate([Sample(messages, [shown])], ours, add_generation_prompt=True)
    ids = encode_chat(messages, ours.template, ours.tokenizer, add_generation_prompt=True).ids
    image_token, rows = processor.tokenizer.get_vocab()["<image>"], ours.input_spec.image_rows(batch.pixels.grids[0])
    assert inputs["input_ids"][0].tolist() == [each for token in ids for each in ([image_token] * rows if token == IMAGE_TOKEN else [token])]
    assert torch.equal(inputs["pixel_values"][0], batch.pixels.tiles)


def test_answers_equal_transformers(whole):
    """The same questions and pictures, each library with its own image processing, tokenizers and decoding."""
    from transformers import LlavaOnevisionForConditionalGeneration

    ours, folder = whole
    theirs, processor = LlavaOnevisionForConditionalGeneration.from_pretrained(folder).eval(), pil_processor(folder)
    for size, question in ((SIZES[0], "What color is the cat?"), (SIZES[5], "Is it asleep?")):
        shown = picture(size, 4)
        answer = ours.generate(question, images=shown, max_new_tokens=12)
        messages = [{"role": "user", "content": f"<image>\n{question}"}]
        asked = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        inputs = processor(images=shown, text=asked, return_tensors="pt")
        new = theirs.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert answer.strip() == processor.tokenizer.decode(new, skip_special_tokens=True).strip()
        assert len(new) > 3


def test_a_folder_of_transformers_alone_is_asked_too(whole):
    ours, folder = whole
    plain = folder.parent / "plain"
    shutil.copytree(folder, plain)
    (plain / "lmmblocks.json").unlink()
    again = lb.load(plain)
    assert again.encoder.preprocess == ours.encoder.preprocess and again.template == ours.template
    ask = dict(images=picture((70, 40)), max_new_tokens=8)
    assert again.generate("What is it?", **ask) == ours.generate("What is it?", **ask)
    found = inspect(plain)
    assert (found.layout, found.problems, found.missing) == ("Hugging Face (llava_onevision)", [], [])
    values = json.loads((plain / "processor_config.json").read_text())
    (plain / "processor_config.json").write_text(json.dumps({**values, "vision_aspect_ratio": "anyres_max_9"}))
    with pytest.warns(UserWarning, match="vision_aspect_ratio='anyres_max_9', config.json says 'anyres_max_2', which counts"):
        lb.load(plain)
    values = json.loads((plain / "preprocessor_config.json").read_text())
    (plain / "preprocessor_config.json").write_text(json.dumps({**values, "image_grid_pinpoints": [[28, 28]]}))
    with pytest.raises(LmmError, match="make the two files agree"):
        lb.load(plain)


HUBS = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + ' '}}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ '\\n' + content['text'] }}{% endfor %}"
    "{{'<|im_end|>'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""Pictures before a turn's words, the role and a blank before both: the form of the template beside the released weights."""


def test_a_chat_template_of_the_released_form_gives_the_same_ids(whole, tmp_path):
    from transformers import AutoTokenizer

    ours, folder = whole
    plain = shutil.copytree(folder, tmp_path / "plain")
    for name in ("lmmblocks.json", "chat_template.jinja"):
        (plain / name).unlink()
    tokenizer = AutoTokenizer.from_pretrained(plain)
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    assert len(tokenizer) <= 400
    tokenizer.chat_template = None
    tokenizer.save_pretrained(plain)
    (plain / "chat_template.json").write_text(json.dumps({"chat_template": HUBS}))
    again, processor, shown = lb.load(plain), pil_processor(plain), picture((60, 50))
    parts = [{"type": "image"}, {"type": "text", "text": "What color is the cat?"}]
    asked = processor.apply_chat_template([{"role": "user", "content": parts}], tokenize=False, add_generation_prompt=True)
    theirs = processor(images=shown, text=asked, return_tensors="pt")["input_ids"][0].tolist()
    messages = [{"role": "user", "content": "<image>\nWhat color is the cat?"}]
    ids = encode_chat(messages, again.template, again.tokenizer, mode=again.tokenize_mode, add_generation_prompt=True).ids
    image_token = tokenizer.get_vocab()["<image>"]
    assert [token for token in theirs if token != image_token] == [token for token in ids if token != IMAGE_TOKEN]
    assert theirs.index(image_token) == ids.index(IMAGE_TOKEN)


@pytest.mark.parametrize("rows, columns, most", [(3, 3, 2), (6, 2, 4), (1, 5, 3), (5, 5, 1)])
def test_a_smaller_grid_is_what_interpolation_makes_of_it(rows, columns, most):
    rules, each = TileArrangement(newline=False, most_tiles=most), Grid(5, 5)
    layout = TileGrid(Grid(rows, columns), each, columns * 100, rows * 100, False)
    tiles = torch.randn(layout.count * each.rows, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    got, (count,) = TileArrange(rules, 3)(tiles, [layout], lambda grid: grid)
    canvas = tiles.unflatten(0, (rows, columns, 5, 5)).transpose(1, 2).flatten(0, 1).flatten(1, 2)
    ratio = math.sqrt(rows * columns / most)
    size = [int(side * 5 // ratio) for side in (rows, columns)]
    expected = F.interpolate(canvas.permute(2, 0, 1)[None], size, mode="bilinear")[0].permute(1, 2, 0).flatten(0, 1)
    assert count == len(expected) == rules.rows_of(layout, lambda grid: grid) < len(tiles)
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    ours, theirs = (torch.autograd.grad((value * weights).sum(), tiles, retain_graph=True)[0] for value in (got, expected))
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


def test_what_is_not_computed_or_has_no_place_is_refused(tokenizer, randomised, tmp_path):
    values = hf_config().to_dict()
    with pytest.raises(LmmError, match="vision_aspect_ratio='square', expected 'anyres_max_9'"):
        onevision_from_hf({**values, "vision_aspect_ratio": "square"})
    with pytest.raises(LmmError, match="vision_feature_select_strategy='default' .expected 'full'."):
        onevision_from_hf({**values, "vision_feature_select_strategy": "default"})
    with pytest.raises(LmmError, match="most_tiles makes the picture smaller as a whole"):
        TiledConfig(OUR_TOWER, TOY_PINPOINTS, merge="flat", unpad=False, most_tiles=2)
    with pytest.raises(LmmError, match="most_tiles must be a whole number above 0 or None, found 0"):
        TiledConfig(OUR_TOWER, TOY_PINPOINTS, most_tiles=0)
    with pytest.raises(LmmError, match="LLaVA-OneVision has no place for tiles with newline=False .expected True.*format='native'"):
        our_model(tokenizer, randomised, 3, newline=False).save(tmp_path / "out", format="hf")


def test_the_defaults_and_the_preset_have_the_names_and_shapes_of_transformers_own_model():
    """At full size, without memory."""
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        Qwen2Config,
        SiglipVisionConfig,
    )

    assert [list(entry) for entry in PINPOINTS] == LlavaOnevisionConfig().image_grid_pinpoints
    found = onevision_from_hf({"model_type": "llava_onevision"})
    assert found.encoder.tower.layers == 26 and found.encoder.most_tiles == 9 and not found.encoder.tower.head
    text = dict(hidden_size=3584, num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4, intermediate_size=18944, vocab_size=152064)
    vision = dict(hidden_size=1152, intermediate_size=4304, patch_size=14, image_size=384, num_hidden_layers=27, num_attention_heads=16)
    parts = dict(vision_config=SiglipVisionConfig(**vision), text_config=Qwen2Config(**text))
    with torch.device("meta"):
        theirs = LlavaOnevisionForConditionalGeneration(LlavaOnevisionConfig(**parts))
    config = preset("llava-onevision-7b")
    ours = build(config, weights="random", device="meta")
    expected = {RUNTIME.to_model(name): tuple(value.shape) for name, value in theirs.state_dict().items()}
    assert {name: tuple(value.shape) for name, value in ours.state_dict().items()} == expected
    assert config.encoder.pinpoints == PINPOINTS
    assert ours.encoder.preprocess.tower.mean == (0.5, 0.5, 0.5) and ours.encoder.preprocess.tower.fit == "squash"
