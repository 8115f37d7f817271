"""Images in tiles: equal to transformers' LLaVA-NeXT, and the same packed as alone, whatever the sizes of the pictures.

A toy of two layers: tiles of 28 px in 4 x 4 patches.
"""

import json
import pickle
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import lmmblocks as lb
from lmmblocks.builder import build
from lmmblocks.config import Block, LMMConfig
from lmmblocks.data.collate import collate, read_samples
from lmmblocks.decoders.transformer import TransformerConfig
from lmmblocks.encoders.clip import CLIPConfig
from lmmblocks.encoders.tile_arrangement import TileArrange, TileArrangement
from lmmblocks.encoders.tiled import Tiled, TiledConfig
from lmmblocks.images.pixels import join_pixels
from lmmblocks.images.preprocess import clip_preprocess
from lmmblocks.images.tiles import resolutions_up_to
from lmmblocks.presets import preset
from lmmblocks.spec import IGNORE_LABEL, IMAGE_TOKEN, Batch, Grid, LmmError, Sample, TileGrid
from lmmblocks.train import stage1
from lmmblocks.train.optimizer import parameter_groups, prepare_parts
from lmmblocks.train.stage_inputs import set_stage_inputs

TOLERANCE = 1e-5
PINPOINTS = ((28, 56), (56, 28), (56, 56), (84, 28), (28, 84))
SIZES = [(50, 31), (20, 90), (64, 64), (3, 1), (90, 22), (1, 60)]


def picture(size, seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise)


@pytest.fixture(scope="module")
def theirs():
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaNextConfig, LlavaNextForConditionalGeneration

    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=28,
        patch_size=7,
    )
    text = LlamaConfig(
        hidden_size=32,
        intermediate_size=56,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=400,
        max_position_embeddings=1024,
        rms_norm_eps=1e-5,
    )
    config = LlavaNextConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=399,
        image_grid_pinpoints=[list(entry) for entry in PINPOINTS],
        image_seq_length=16,
    )
    torch.manual_seed(0)
    model = LlavaNextForConditionalGeneration(config)
    with torch.no_grad():
        for name, value in model.named_parameters():
            scale = 0.2 if value.dim() > 1 else 0.1
            value.copy_(torch.randn(value.shape) * scale + (1 if "norm" in name and name.endswith("weight") else 0))
    return model.eval()


@pytest.fixture(scope="module")
def folder(theirs, tmp_path_factory):
    path = tmp_path_factory.mktemp("llava_next")
    theirs.save_pretrained(path)
    processor = {
        "image_processor_type": "LlavaNextImageProcessor",
        "size": {"shortest_edge": 28},
        "crop_size": {"height": 28, "width": 28},
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.2, 0.3, 0.4],
        "image_grid_pinpoints": [list(entry) for entry in PINPOINTS],
        "do_pad": True,
    }
    (path / "preprocessor_config.json").write_text(json.dumps(processor))
    return path


@pytest.fixture(scope="module")
def ours(folder, tiny_tokenizer):
    model = lb.load(folder)
    model.tokenizer = tiny_tokenizer
    return model.requires_grad_(True)


def tiny_config(**changes):
    tiled = {"pinpoints": PINPOINTS, **changes}
    return LMMConfig(
        encoder=TiledConfig(CLIPConfig(dim=16, layers=2, heads=2, mlp_dim=24, image_size=28, patch=7), **tiled),
        decoder=TransformerConfig(dim=24, layers=2, heads=4, kv_heads=2, ffn_dim=32, vocab=400, max_positions=1024),
    )


@pytest.fixture(scope="module")
def tiny(make_tiny_model):
    return make_tiny_model(config=tiny_config())


@pytest.fixture(scope="module")
def mixed():
    """One image, none, three of unequal tiles, two in two turns."""

    def turns(*contents):
        return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]

    images = [picture(size, seed) for seed, size in enumerate(SIZES)]
    return [
        Sample(turns("<image>\nWhat color is the cat?", "Black"), images[:1], "one"),
        Sample(turns("Is it asleep?", "No, it is awake and hungry."), [], "text"),
        Sample(turns("<image> and <image>, <image>: the same cat?", "No"), images[1:4], "three"),
        Sample(turns("What is it? <image>", "A cat.", "And this? <image>", "A red square."), images[4:], "turns"),
    ]


def their_pixels(pixels):
    """Padded to the largest number of tiles, and the sizes of the pictures as (height, width)."""
    most = max(grid.count for grid in pixels.grids)
    each = pixels.tiles.split([grid.count for grid in pixels.grids])
    padded = [torch.cat([tiles, tiles.new_zeros(most - len(tiles), *tiles.shape[1:])]) for tiles in each]
    return torch.stack(padded), torch.tensor([[grid.height_px, grid.width_px] for grid in pixels.grids])


def their_batch(ours, samples, pixels):
    """Each sample right-padded, every image written out as one token per row."""
    rows = iter([ours.input_spec.image_rows(grid) for grid in pixels.grids])
    ids, labels = [], []
    for row, row_labels in samples:
        repeats = [next(rows) if token == IMAGE_TOKEN else 1 for token in row]
        ids.append([399 if t == IMAGE_TOKEN else t for t, n in zip(row, repeats) for _ in range(n)])
        labels.append([label for label, n in zip(row_labels, repeats) for _ in range(n)])
    longest = max(map(len, ids))
    pad = [longest - len(row) for row in ids]
    values, sizes = their_pixels(pixels)
    return {
        "input_ids": torch.tensor([row + [0] * n for row, n in zip(ids, pad)]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * n for row, n in zip(ids, pad)]),
        "labels": torch.tensor([row + [IGNORE_LABEL] * n for row, n in zip(labels, pad)]),
        "pixel_values": values,
        "image_sizes": sizes,
    }


def our_batch(ours, samples, pixels):
    rows = iter([ours.input_spec.image_rows(grid) for grid in pixels.grids])
    counts = [[next(rows) for _ in range(ids.count(IMAGE_TOKEN))] for ids, _ in samples]
    plan = lb.plan_splice([ids for ids, _ in samples], counts, labels=[labels for _, labels in samples])
    return Batch(pixels, pixels.grids, plan)


@pytest.fixture(scope="module")
def token_samples():
    generator = torch.Generator().manual_seed(7)

    def text(length):
        return torch.randint(3, 379, (length,), generator=generator).tolist()

    rows = [
        [1, *text(4), IMAGE_TOKEN, *text(9)],
        [1, *text(11)],
        [1, IMAGE_TOKEN, *text(3), IMAGE_TOKEN, IMAGE_TOKEN, *text(5)],
        [1, IMAGE_TOKEN, *text(3), IMAGE_TOKEN, *text(2)],
    ]
    return [(row, [IGNORE_LABEL if i % 3 == 0 or t < 0 else t for i, t in enumerate(row)]) for row in rows]


@pytest.fixture(scope="module")
def pixels(ours):
    return ours.encoder.preprocess.batch([picture(size, seed) for seed, size in enumerate(SIZES)])[0]


def test_loading_takes_tiles_tower_newline_and_preprocessing(ours, theirs):
    encoder = ours.encoder
    assert encoder.config.pinpoints == PINPOINTS and encoder.config.tower.image_size == 28
    assert torch.equal(ours.arrange.image_newline, theirs.model.image_newline)
    assert encoder.preprocess.tower.mean == (0.5, 0.4, 0.3)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())


def test_rows_of_each_image_equal_transformers(ours, theirs, pixels, record_parity):
    values, sizes = their_pixels(pixels)
    with torch.no_grad():
        expected = theirs.model.get_image_features(values, sizes).pooler_output
        rows, counts = ours.encode(pixels)
    assert counts == tuple(len(rows) for rows in expected)
    assert counts == tuple(ours.input_spec.image_rows(grid) for grid in pixels.grids)
    difference = (rows - torch.cat(expected)).abs().max().item()
    record_parity("encoders.Tiled", "LlavaNextForConditionalGeneration", "image rows", difference)
    assert difference <= TOLERANCE


def test_logits_of_a_mixed_batch_equal_transformers(ours, theirs, pixels, token_samples, record_parity):
    batch = their_batch(ours, token_samples, pixels)
    with torch.no_grad():
        expected = theirs(**batch).logits[batch["attention_mask"].bool()]
        got = ours.logits(our_batch(ours, token_samples, pixels))
    difference = (got - expected).abs().max().item()
    record_parity("LLaVA-NeXT", "LlavaNextForConditionalGeneration", "logits", difference)
    assert difference <= TOLERANCE, difference


def test_loss_and_every_gradient_equal_transformers(ours, theirs, pixels, token_samples, record_parity):
    from lmmblocks.weights.systems.llava_next import LLAVA_NEXT_LAYOUTS

    runtime = LLAVA_NEXT_LAYOUTS[-1]
    ours.encoder.frozen = False
    ours.zero_grad()
    theirs.zero_grad()
    loss = ours.loss(our_batch(ours, token_samples, pixels))
    expected_loss = theirs(**their_batch(ours, token_samples, pixels)).loss
    torch.testing.assert_close(loss, expected_loss, atol=TOLERANCE, rtol=0)
    loss.backward()
    expected_loss.backward()
    ours.encoder.frozen = True
    expected = {runtime.to_model(name): value.grad for name, value in theirs.named_parameters()}
    got = {name: value.grad for name, value in ours.named_parameters()}
    assert got.keys() == expected.keys()
    assert got["arrange.image_newline"].abs().max() > 0
    worst = 0.0
    for name, gradient in got.items():
        if expected[name] is None:
            assert gradient is None, name
            continue
        if not name.endswith("k_proj.bias"):  # adds the same to every score of a row: its gradient is rounding only
            worst = max(worst, ((gradient - expected[name]).abs().max() / expected[name].abs().max()).item())
        torch.testing.assert_close(gradient, expected[name], atol=TOLERANCE, rtol=1e-4, msg=name)
    record_parity("LLaVA-NeXT", "LlavaNextForConditionalGeneration", "gradients, relative", worst)
    assert worst <= 1e-4, worst


def test_greedy_tokens_equal_transformers(ours, theirs, pixels, token_samples):
    ids, labels = token_samples[2]
    images = pixels[1:4]
    batch = their_batch(ours, [(ids, labels)], images)
    del batch["labels"]
    length = batch["input_ids"].shape[1]
    expected = theirs.generate(**batch, max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0)[0, length:]
    grown = list(ids)
    for _ in range(8):
        with torch.no_grad():
            logits = ours.logits(our_batch(ours, [(grown, [IGNORE_LABEL] * len(grown))], images))
        grown.append(int(logits[-1].argmax()))
    assert grown[len(ids) :] == expected.tolist()


def reference_rows(tiles, layout, each, newline, rules):
    """The arrangement a second time, patch by patch in Python."""
    tiles = tiles.unflatten(0, (layout.count, each.rows))
    overview = list(tiles[0]) if layout.global_view else []
    tiles = tiles[int(layout.global_view) :].unflatten(0, (layout.tiles.h, layout.tiles.w)).unflatten(2, (each.h, each.w))
    rows = []
    if rules.merge == "flat":
        for tile in tiles.flatten(0, 1):
            for line in tile:
                rows += [*line, *([newline] if rules.newline else [])]
    else:
        height, width = layout.tiles.h * each.h, layout.tiles.w * each.w
        top = left = 0
        if rules.unpad and layout.width_px / layout.height_px > width / height:
            top = (height - int(round(layout.height_px * width / layout.width_px, 7))) // 2
        elif rules.unpad:
            left = (width - int(round(layout.width_px * height / layout.height_px, 7))) // 2
        for y in range(top, height - top):
            for x in range(left, width - left):
                rows.append(tiles[y // each.h, x // each.w, y % each.h, x % each.w])
            rows += [newline] if rules.newline else []
    return torch.stack([*rows, *overview] if rules.global_view == "last" else [*overview, *rows])


RULES = [
    TileArrangement(),
    TileArrangement(unpad=False),
    TileArrangement(newline=False, global_view="last"),
    TileArrangement(unpad=False, newline=False, global_view="none"),
    TileArrangement(merge="flat", unpad=False),
    TileArrangement(merge="flat", unpad=False, newline=False, global_view="last"),
]


@pytest.mark.parametrize("rules", RULES, ids=str)
@settings(max_examples=25, deadline=None)
@given(
    shapes=st.lists(st.tuples(*[st.integers(1, 3)] * 2, *[st.integers(1, 50)] * 2), min_size=1, max_size=3),
    h=st.integers(1, 4),
    w=st.integers(1, 4),
)
def test_every_arrangement_is_what_its_rules_say_and_counts_itself(rules, shapes, h, w):
    each, overview = Grid(h, w), rules.global_view != "none"
    layouts = [TileGrid(Grid(a, b), each, width, height, overview) for a, b, width, height in shapes]
    lengths = [each.rows * layout.count for layout in layouts]
    tiles = torch.arange(sum(lengths) * 2.0).unflatten(0, (-1, 2))
    module = TileArrange(rules, 2)
    newline = getattr(module, "image_newline", None)
    rows, counts = module(tiles, layouts, lambda grid: grid)
    expected = [reference_rows(part, layout, each, newline, rules) for part, layout in zip(tiles.split(lengths), layouts)]
    assert torch.equal(rows, torch.cat(expected))
    assert counts == tuple(map(len, expected)) == tuple(rules.rows_of(layout, lambda grid: grid) for layout in layouts)


@pytest.mark.parametrize(
    "projector, changes",
    [
        ("linear", {}),
        (Block("pixel_shuffle", {"factor": 2}), {}),
        (
            Block("perceiver", {"latents": 3, "depth": 1, "heads": 2, "head_dim": 4}),
            {"merge": "flat", "unpad": False, "newline": False},
        ),
    ],
    ids=str,
)
def test_counts_hold_with_projectors_that_change_the_grid(projector, changes, make_tiny_model, mixed):
    model = make_tiny_model(config=tiny_config(**changes), projector=projector)
    batch = collate(mixed, model)
    rows, counts = model.encode(batch.pixels)
    assert counts == tuple(model.input_spec.image_rows(grid) for grid in batch.grids)
    assert rows.shape[0] == sum(counts) == len(batch.plan.image_rows)
    assert torch.isfinite(model.loss(batch))


def test_a_mixed_batch_equals_each_sample_alone(tiny, mixed):
    with torch.no_grad():
        packed = tiny.logits(collate(mixed, tiny))
        alone = torch.cat([tiny.logits(collate([sample], tiny)) for sample in mixed])
    torch.testing.assert_close(packed, alone, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("truncate", ["drop", "turn", "right"])
def test_truncation_cuts_a_mixed_batch_as_it_cuts_samples_alone(tiny, mixed, truncate):
    _, _, three, turns = collate(mixed, tiny).plan.lengths
    options = dict(max_length=(turns if truncate == "turn" else max(three, turns)) - 3, truncate=truncate)
    batch = collate(mixed, tiny, **options)
    kept = [mixed[index] for index in batch.plan.kept]
    assert truncate == "drop" and len(kept) == 3 or any(batch.plan.truncated)
    with torch.no_grad():
        alone = torch.cat([tiny.logits(collate([sample], tiny, **options)) for sample in kept])
        torch.testing.assert_close(tiny.logits(batch), alone, atol=TOLERANCE, rtol=0)


def test_samples_without_images_need_no_tiles(tiny, mixed):
    batch = collate(mixed[1:2], tiny)
    assert len(batch.pixels) == 0 and batch.grids == ()
    loss = tiny.loss(batch)
    tiny.zero_grad()
    loss.backward()
    assert torch.isfinite(loss) and tiny.arrange.image_newline.grad is None


def test_a_batch_is_cut_into_micro_batches_by_image(tiny, mixed):
    read = read_samples(mixed, pickle.loads(pickle.dumps(tiny.input_spec)))
    for first, last in ((0, 1), (1, 3), (2, 4), (3, 4)):
        part = read.batch_of(first, last)
        expected = collate(mixed[first:last], tiny)
        assert part.grids == expected.grids == part.pixels.grids
        assert torch.equal(part.pixels.tiles, expected.pixels.tiles)
        with torch.no_grad():
            torch.testing.assert_close(tiny.logits(part), tiny.logits(expected), atol=TOLERANCE, rtol=0)


def test_answers_of_a_list_equal_those_alone_and_in_a_conversation(tiny):
    from lmmblocks.generate import Conversation

    prompts = ["What is it?", "Hello", "Which is red?"]
    images = [[picture((50, 31))], None, [picture((20, 90), 1), picture((64, 64), 2)]]
    together = tiny.generate(prompts, images=images, max_new_tokens=6)
    assert together == [tiny.generate(p, images=i, max_new_tokens=6) for p, i in zip(prompts, images)]
    chat = Conversation(tiny)
    assert chat.ask(prompts[0], images=images[0], max_new_tokens=6) == together[0]
    second = chat.ask(prompts[2], images=images[2], max_new_tokens=6)
    fresh = tiny.generate([*chat.messages[:-1]], images=[*images[0], *images[2]], max_new_tokens=6)
    assert second == fresh


def test_newline_learns_with_the_projector_and_only_then(make_tiny_model):
    model = make_tiny_model(config=tiny_config())
    stage = stage1(image_fit=None, batch_size=1)
    prepare_parts(model, stage, bf16=False)
    names = [name for group in parameter_groups(model, stage) for name in group["names"]]
    assert "arrange.image_newline" in names
    assert all(name.startswith(("multi_modal_projector.", "arrange.")) for name in names)
    prepare_parts(model, stage1(image_fit=None, batch_size=1, train={"decoder": 1e-3}), bf16=False)
    assert not model.arrange.image_newline.requires_grad and model.encoder.tower.frozen


def test_config_and_native_folder_come_back_equal(tiny, mixed, tmp_path):
    config = tiny_config(pinpoints=resolutions_up_to(3, 28), merge="flat", unpad=False, global_view="last")
    assert LMMConfig.from_json(config.to_json()) == config
    tiny.save(tmp_path / "out", format="native")
    again = lb.load(tmp_path / "out")
    assert again.encoder.config == tiny.encoder.config and again.encoder.preprocess == tiny.encoder.preprocess
    assert all(torch.equal(again.state_dict()[name], value) for name, value in tiny.state_dict().items())
    batch = collate(mixed, tiny)
    with torch.no_grad():
        assert torch.equal(again.logits(batch), tiny.logits(batch))


def test_tower_of_a_source_goes_behind_the_tiles(tmp_path, tiny_tokenizer):
    source = build(
        replace(tiny_config(), encoder=tiny_config().encoder.tower),
        weights="random",
        tokenizer=tiny_tokenizer,
    )
    source.save(tmp_path / "source", format="hf")
    model = build(tiny_config(), encoder=str(tmp_path / "source"), decoder=str(tmp_path / "source"))
    assert isinstance(model.encoder, Tiled) and model.encoder.config == tiny_config().encoder
    expected = source.encoder.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.encoder.tower.state_dict().items())
    assert model.encoder.preprocess.grid(90, 22).tiles == Grid(1, 3)


def test_an_encoder_with_weights_can_be_tiled(make_tiny_model, mixed):
    tower = tiny_config().encoder.tower.build()
    model = make_tiny_model(config=tiny_config(), encoder=Tiled.of(tower, pinpoints=PINPOINTS))
    assert model.encoder.tower is tower and model.config.encoder == tiny_config().encoder
    assert torch.isfinite(model.loss(collate(mixed, model)))


def test_preset_is_llava_next(theirs):
    from transformers import LlavaNextConfig

    config, expected = preset("llava-next-7b"), LlavaNextConfig()
    assert [list(entry) for entry in config.encoder.pinpoints] == expected.image_grid_pinpoints
    tower = config.encoder.tower
    assert (tower.image_size, tower.patch, tower.select) == (336, 14, (expected.vision_feature_layer,))
    model = build(config, weights="random", device="meta")
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    assert sizes["arrange.image_newline"] == 4096 and model.max_length == 4096
    preprocess, arrangement = model.encoder.preprocess, model.encoder.arrangement
    assert arrangement.rows_of(preprocess.grid(672, 672), model.projector.out_grid) == 576 + 48 * 49
    assert arrangement.rows_of(preprocess.grid(1000, 300), model.projector.out_grid) == 576 + 22 * 73


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: TiledConfig(pinpoints=((336, 600),)).build(), r"\(336, 600\).*336 px"),
        (lambda: TiledConfig(pinpoints=(336, 672)), "pinpoints: expected .height, width. pairs"),
        (lambda: TiledConfig(merge="spacial"), "'spacial' is none of"),
        (lambda: TiledConfig(merge="flat"), "set unpad=False"),
        (lambda: TiledConfig(tower="clip"), "tower needs a config dataclass"),
        (lambda: TiledConfig(tiny_config().encoder, PINPOINTS).build(), "cuts images into tiles itself"),
        (lambda: tiny_config().encoder.build()(torch.zeros(1, 3, 28, 28)), "needs TiledPixels, found Tensor"),
        (
            lambda: TileArrangement().rows_of(TileGrid(Grid(1, 2), Grid(4, 4), 2, 1), lambda grid: 5),
            "5 rows without a grid",
        ),
        (
            lambda: TileArrange(TileArrangement(), 2)(torch.zeros(5, 2), [TileGrid(Grid(1, 1), Grid(1, 1), 1, 1)], lambda g: g),
            "found 5 rows of tiles.*ask for 2",
        ),
    ],
)
def test_mistakes_say_what_to_change(make, message):
    with pytest.raises(LmmError, match=message):
        make()


def test_a_projector_without_a_grid_is_refused_when_composed(make_tiny_model):
    with pytest.raises(LmmError, match="rows without a grid.*merge='flat', unpad=False, newline=False"):
        make_tiny_model(
            config=tiny_config(),
            projector=Block("perceiver", {"latents": 5, "depth": 1, "heads": 2, "head_dim": 4}),
        )


def test_a_stage_that_crops_is_refused(tiny):
    with pytest.raises(LmmError, match="stage 'stage1': image_fit='crop', but the encoder cuts pictures into tiles"):
        set_stage_inputs(tiny, stage1())


def test_transformers_reads_what_we_write(ours, theirs, pixels, token_samples, tmp_path):
    from transformers import AutoProcessor, LlavaNextForConditionalGeneration

    ours.save(tmp_path / "out", format="hf")
    again = LlavaNextForConditionalGeneration.from_pretrained(tmp_path / "out").eval()
    token = again.config.image_token_index
    batch = their_batch(ours, token_samples, pixels)
    batch["input_ids"][batch["input_ids"] == 399] = token
    with torch.no_grad():
        got = again(**batch).logits[batch["attention_mask"].bool()]
        expected = ours.logits(our_batch(ours, token_samples, pixels))
    torch.testing.assert_close(got[:, :400], expected, atol=TOLERANCE, rtol=0)
    processor = AutoProcessor.from_pretrained(tmp_path / "out", use_fast=False)
    image = picture((50, 31))
    inputs = processor(images=image, text="USER: <image> cat", return_tensors="pt")
    _, (layout,) = ours.encoder.preprocess.batch([image])
    assert (inputs["input_ids"] == token).sum() == ours.input_spec.image_rows(layout)
    loaded = lb.load(tmp_path / "out")
    assert loaded.encoder.preprocess == ours.encoder.preprocess and loaded.config.encoder == ours.config.encoder
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in ours.state_dict().items())


def test_tiles_that_transformers_has_no_setting_for_are_saved_natively_only(make_tiny_model, tmp_path):
    model = make_tiny_model(config=tiny_config(unpad=False, global_view="last"))
    with pytest.raises(
        LmmError,
        match="tiles with unpad=False .expected True.; tiles with global_view='last'.*format='native'",
    ):
        model.save(tmp_path / "out", format="hf")


def test_files_that_disagree_are_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    path = tmp_path / "copy" / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "image_grid_pinpoints": [[28, 56]]}))
    with pytest.raises(LmmError, match="make the two files agree"):
        lb.load(tmp_path / "copy")


def test_preprocessing_is_read_from_the_processors_own_section_too(folder, tmp_path):
    """transformers 4 writes a file of its own, 5 a section of ``processor_config.json``."""
    shutil.copytree(folder, tmp_path / "copy")
    path = tmp_path / "copy" / "preprocessor_config.json"
    values = {**json.loads(path.read_text()), "image_mean": [0.1, 0.2, 0.3]}
    path.unlink()
    (tmp_path / "copy" / "processor_config.json").write_text(json.dumps({"image_processor": values}))
    assert lb.load(tmp_path / "copy").encoder.preprocess.tower.mean == (0.1, 0.2, 0.3)


def test_joined_pixels_are_those_of_one_batch(tiny):
    images = [picture(size) for size in SIZES[:3]]
    preprocess = tiny.encoder.preprocess
    together = preprocess.batch(images)[0]
    joined = join_pixels([preprocess.batch([image])[0] for image in images])
    assert torch.equal(joined.tiles, together.tiles) and joined.grids == together.grids
    assert preprocess.tower == clip_preprocess(28, 7)
