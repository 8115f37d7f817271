"""Reducers and hooks in the model: composed, counted, trained, generated with, saved and loaded like every other block."""

import pickle
import sys
import types
from dataclasses import replace

import pytest
import torch
import torch.nn as nn

import lmmblocks as lb
from lmmblocks.builder import build
from lmmblocks.chat import Template, encode_chat
from lmmblocks.config import Block, LMMConfig
from lmmblocks.data.collate import collate, read_samples
from lmmblocks.decoders.transformer import TransformerConfig
from lmmblocks.encoders.clip import CLIPConfig
from lmmblocks.lmm import LMM
from lmmblocks.plans.host import plan_splice
from lmmblocks.spec import PATCHES, Batch, Grid, ImageSpan, LmmError
from lmmblocks.train.optimizer import prepare_parts, trained_parameters
from lmmblocks.train.stage import Stage

TOLERANCE = 2e-5
ZIP = Block("visionzip", {"dominant": 4, "contextual": 2})


class Mixing(nn.Module):
    """A reducer that learns: every second row, mixed by a matrix."""

    requires = PATCHES

    def __init__(self, out_dim, keep_every=2):
        super().__init__()
        self.options = {"keep_every": keep_every}
        self.every, self.mix = keep_every, nn.Linear(out_dim, out_dim)

    def out_count(self, grid):
        rows = grid.rows if isinstance(grid, Grid) else grid
        return -(-rows // self.every)

    def forward(self, features, rows, grids):
        counts = [grid.rows if isinstance(grid, Grid) else grid for grid in grids]
        return self.mix(torch.cat([part[:: self.every] for part in rows.split(counts)]))


class Leaving(nn.Module):
    """A hook that learns a scale and drops the second half of each image's rows, whatever comes later."""

    requires = frozenset({"vision", "drop"})

    def __init__(self, out_dim, layer=1):
        super().__init__()
        self.options = {"layer": layer}
        self.layers, self.scale = (layer,), nn.Parameter(torch.linspace(0.5, 1.5, out_dim))

    def forward(self, hidden, context):
        vision, lengths = context.vision, list(context.segments.lengths_q)
        at = vision.rows_M.split(list(vision.counts)) if vision.counts else ()
        keep = torch.ones_like(vision.mask_T)
        for span in vision.spans:
            gone = at[span.image][span.rows // 2 :]
            if span.image < len(at) and vision.row_counts[span.segment] and gone.min() >= 0:
                keep[gone.long()] = False
                lengths[span.segment] -= len(gone)
        return context.keep(hidden * self.scale, keep, lengths)


class Looking(nn.Module):
    """A gated look at the mean of the features of the last image before each row, as Flamingo's layers."""

    requires = frozenset({"vision"})

    def __init__(self, in_dim, out_dim, layers=(0, 2)):
        super().__init__()
        self.options = {"layers": list(layers)}
        self.layers, self.look = tuple(layers), nn.Linear(in_dim, out_dim)

    def forward(self, hidden, context):
        vision = context.vision
        if not vision.counts:
            return hidden
        if "means" not in vision.memo:
            parts = vision.features.patches.split([grid.rows for grid in vision.features.grids])
            vision.memo["means"] = self.look(torch.stack([part.mean(0) for part in parts]))
        starts = [0, *torch.tensor(context.segments.lengths_q).cumsum(0).tolist()]
        out = hidden.clone()
        for span in vision.spans:
            own = slice(starts[span.segment], starts[span.segment + 1])
            after = context.positions[own] >= span.start
            out[own] = torch.where(after[:, None], hidden[own] + vision.memo["means"][span.image], out[own])
        return out


class Doubling:
    """A hook that is no module."""

    requires, layers = frozenset(), (0,)

    def __init__(self):
        self.calls = 0

    def __call__(self, hidden, context):
        self.calls += 1
        return 2 * hidden


@pytest.fixture(autouse=True)
def own_module(monkeypatch):
    """The classes above in a module that can be imported by name."""
    module = types.ModuleType("their_blocks")
    for block in (Mixing, Leaving, Looking, Doubling):
        monkeypatch.setattr(block, "__module__", "their_blocks")
        setattr(module, block.__name__, block)
    monkeypatch.setitem(sys.modules, "their_blocks", module)


@pytest.fixture(scope="module")
def config():
    return LMMConfig(
        encoder=CLIPConfig(dim=16, layers=3, heads=2, mlp_dim=24, image_size=56, patch=14),
        decoder=TransformerConfig(dim=24, layers=3, heads=4, kv_heads=2, ffn_dim=32, vocab=400, max_positions=512),
    )


@pytest.fixture
def make(make_tiny_model, config):
    def make(config=config, **swaps):
        model = make_tiny_model(config=config, **swaps)
        model.decoder.lm_head.weight.data[3:259] = 0  # bytes rarely meet the others of their character
        return model

    return make


VARIANTS = {
    "before": dict(reducers=[ZIP]),
    "after": dict(reducers=["pool"]),
    "chain": dict(reducers=[Block("prumerge", {"keep": 5}), Mixing]),
    "learned": dict(reducers=[Block("pool", {"stride": 2}), "their_blocks:Mixing"]),
    "drop": dict(hooks=[Leaving]),
    "look": dict(hooks=["their_blocks:Looking"]),
    "all": dict(reducers=["pool"], hooks=[Block("their_blocks:Leaving", {"layer": 2}), Looking, Doubling()]),
}
ROWS = {"before": 6, "after": 4, "chain": 3, "learned": 2, "drop": 16, "look": 16, "all": 4}


@pytest.mark.parametrize("name", VARIANTS)
def test_packed_loss_and_gradients_equal_the_single_ones(make, conversations, name):
    model = make(**VARIANTS[name])
    batch = collate(conversations, model)
    assert model.input_spec.image_rows(Grid(4, 4)) == ROWS[name] == batch.plan.image_rows.shape[0] // 4
    model.loss(batch, reduction="sum").backward()
    packed = {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    total = sum(model.loss(collate([sample], model), reduction="sum") for sample in conversations)
    total.backward()
    single = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
    assert set(packed) == set(single)
    for key, gradient in packed.items():
        assert (gradient - single[key]).abs().max() < 1e-4 * max(1.0, gradient.abs().max().item()), key
    for key, value in model.named_parameters():
        if key.startswith(("reducers", "hooks")):
            assert value.grad is not None and value.grad.any(), key


@pytest.mark.parametrize("name", ["chain", "drop", "look", "all"])
def test_generation_behind_a_cache_equals_reading_all_again(make, colour_picture, name):
    model = make(**VARIANTS[name])
    prompts = ["What color is the cat?", "Is it asleep?", "<image> and <image>: the same?"]
    pictures = [[colour_picture(0)], None, [colour_picture(1), colour_picture(2)]]
    answers = model.generate(prompts, pictures, max_new_tokens=6)
    for prompt, images, answer in zip(prompts, pictures, answers):
        assert answer == model.tokenizer.decode(_greedy(model, prompt, images or [], 6), skip_special_tokens=True)


@torch.inference_mode()
def _greedy(model, prompt, images, count):
    """Greedy decoding without a cache: the whole sequence again for every token."""
    spec, text = model.input_spec, prompt if "<image>" in prompt or not images else f"<image>\n{prompt}"
    pixels, grids = spec.preprocess.batch(images)
    ids = encode_chat([{"role": "user", "content": text}], spec.template, spec.tokenizer, add_generation_prompt=True).ids
    new = []
    while len(new) < count and (not new or new[-1] != spec.tokenizer.eos_token_id):
        plan = plan_splice([ids + new], [[spec.image_rows(grid) for grid in grids]])
        new.append(int(model.logits(Batch(pixels, grids, plan))[-1].argmax()))
    return new


def test_a_conversation_with_hooks_looks_at_the_images_of_earlier_turns(make, colour_picture):
    from lmmblocks.generate import Conversation

    model = make(**VARIANTS["look"])
    chat, messages = Conversation(model), []
    for text, image in (("What is it?", colour_picture(0)), ("And now?", None), ("<image> this?", colour_picture(1))):
        answer = chat.ask(text, images=image, max_new_tokens=5)
        messages = [*chat.messages[:-1]]
        pictures = [colour_picture(0), colour_picture(1)][: sum(m["content"].count("<image>") for m in messages)]
        assert answer == model.generate(messages, pictures, max_new_tokens=5)


@pytest.mark.parametrize("name", VARIANTS)
def test_saved_and_loaded_it_is_the_same_model(make, conversations, tmp_path, name):
    model = make(**VARIANTS[name])
    model.save(tmp_path / "model", format="native")
    loaded = lb.load(tmp_path / "model")
    assert (loaded.config.reducers, loaded.config.hooks) == (model.config.reducers, model.config.hooks)
    batch = collate(conversations, model)
    with torch.no_grad():
        assert torch.equal(model(batch), loaded(batch))
    with pytest.raises(LmmError, match="has no place for (reducer|hook) .*: save with format='native'"):
        model.save(tmp_path / "hf", format="hf")


def test_names_and_parts(make):
    model = make(reducers=[Mixing], hooks=[Doubling(), Leaving])
    own = [name for name in model.state_dict() if name.startswith(("reducers", "hooks"))]
    assert own == ["reducers.0.mix.weight", "reducers.0.mix.bias", "hooks.1.scale"]
    assert list(model.parts) == ["encoder", "projector", "decoder", "reducers", "hooks"]
    assert list(make().parts) == ["encoder", "projector", "decoder"]
    stage = Stage(name="s", train={"hooks": 1e-3, "reducers": 1e-3}, batch_size=2)
    prepare_parts(model, stage)
    assert [(part, name) for part, name, _ in trained_parameters(model)] == [
        ("reducers", "reducers.0.mix.weight"),
        ("reducers", "reducers.0.mix.bias"),
        ("hooks", "hooks.1.scale"),
    ]
    assert model.hooks[0].calls == 1, "of the first pass, which build makes"
    assert model.to(torch.float64).hooks[1].scale.dtype == torch.float64


@pytest.mark.parametrize("name", ["before", "chain", "learned", "look", "fastv"])
def test_nothing_asks_the_device_for_a_value(config, conversations, make, name):
    """On the meta device asking for a value, or mixing in a tensor of the host, is an error."""
    from examples.swap.fastv import FastV

    swaps = {"fastv": dict(hooks=[FastV(1), FastV(2)]), "look": dict(hooks=[Watching])}.get(name) or VARIANTS[name]
    batch = collate(conversations, make(**swaps)).to("meta")
    model = build(config, device="meta", **swaps)
    loss = model.loss(batch)
    loss.backward()
    assert loss.is_meta and model.projector.linear_1.weight.grad.is_meta


class Watching(nn.Module):
    """Reads everything of the images that a hook may read, without looking at values."""

    layers, requires = (1,), frozenset({"vision", "keys", "cls_attn"})

    def forward(self, hidden, context):
        vision = context.vision
        assert vision.features.keys.shape[0] == vision.features.cls_attn.shape[0] == sum(vision.counts)
        return hidden * vision.mask_T[:, None].logical_not()

    def __init__(self):
        super().__init__()


def test_the_counts_travel_to_workers_without_the_weights(make):
    model = make(reducers=["pool", Mixing])
    model.reducers[1].ballast = nn.Parameter(torch.zeros(3_000_000))
    sent = pickle.dumps(model.input_spec)
    assert len(sent) < 500_000 and pickle.loads(sent).image_rows(Grid(4, 4)) == 2


def test_spans_tell_where_images_lie_also_in_cut_out_segments(make, conversations):
    model = make(reducers=["pool"])
    batch = collate(conversations, model)
    assert [(span.image, span.segment, span.rows) for span in batch.plan.image_spans] == [(0, 0, 4), (1, 2, 4), (2, 2, 4), (3, 3, 4)]
    for span in batch.plan.image_spans:
        begin = int(batch.plan.cu_seqlens[span.segment]) + span.start
        assert (-batch.plan.source[begin : begin + 4] - 1).tolist() == list(range(4 * span.image, 4 * span.image + 4))
    part = read_samples(conversations, model).batch_of(1, 3)
    assert part.plan.image_spans == collate(conversations[1:3], model).plan.image_spans
    cut = plan_splice([[1, -200, 5], [-200, -200]], [[3], [2, 2]], max_length=3, truncate="right")
    assert cut.image_spans == (ImageSpan(0, 0, 1, 2), ImageSpan(1, 1, 0, 2), ImageSpan(2, 1, 2, 1))


@pytest.mark.parametrize("kind, part", [("encoder", CLIPConfig), ("decoder", TransformerConfig)])
def test_towers_are_chosen_by_registered_name_by_path_and_by_block(kind, part):
    name = {"encoder": "clip", "decoder": "transformer"}[kind]
    path = f"{part.__module__}:{part.__name__}"
    small = {"encoder": {"dim": 32, "heads": 2}, "decoder": {"dim": 32, "heads": 2, "kv_heads": 1}}[kind]
    for swap, expected in ((name, part()), (path, part()), (Block(name, small), part(**small))):
        model = build("llava15-7b", **{kind: swap}, device="meta")
        assert getattr(model.config, kind) == expected and getattr(model.config, f"{kind}_source") is None


@pytest.mark.parametrize(
    "swaps, message",
    [
        ({"reducers": ["visionzp"]}, "unknown reducer 'visionzp'; did you mean 'visionzip'"),
        ({"reducers": "pool"}, "reducers='pool': expected a list of names"),
        ({"hooks": [3]}, "hook=3: expected a name, a Block, a class or a module"),
        ({"reducers": [Block("pool", {"strid": 2})]}, "reducer Pool: unknown options 'strid'; did you mean 'stride'"),
        ({"reducers": ["prumerge"]}, "needs keep >= 1"),
        ({"encoder": Block("clip", {"dims": 3})}, "CLIPConfig: unknown keywords 'dims'; did you mean 'dim'"),
        ({"encoder": "lmmblocks.encoders.clip:CLIP"}, "expected a config dataclass with build"),
    ],
    ids=lambda value: "" if isinstance(value, str) else str(next(iter(value))),
)
def test_wrong_swaps_are_refused(make, swaps, message):
    with pytest.raises(LmmError, match=message):
        make(**{key: value() if callable(value) else value for key, value in swaps.items()})


class Named(nn.Module):
    requires = PATCHES

    def __init__(self):
        super().__init__()


SCORED = Block("visionzip", {"dominant": 4, "contextual": 2})
WRONG = {
    "needs": (dict(reducers=[SCORED], encoder="no_cls"), r"reducer 'VisionZip' needs \['cls_attn'"),
    "count": (
        dict(reducers=[Block("prumerge", {"keep": 17})]),
        "reducer 'PruMerge' can't take 4x4 patches of width 16: LmmError: .*an image has 16",
    ),
    "grid": (
        dict(reducers=[SCORED, "pool"]),
        "reducer 'Pool' can't take 6 rows of width 24: LmmError: reducer 'pool' needs rows on a grid",
    ),
    "early": (
        dict(reducers=[ZIP], projector="pixel_shuffle"),
        "'VisionZip' runs before the projector and leaves patches without a grid, projector 'PixelShuffle' needs more",
    ),
    "twice": (dict(reducers=[ZIP, Block("prumerge", {"keep": 2})]), "requires .*'VisionZip' runs before it and leaves patches only"),
    "layers": (
        dict(hooks=[Block("their_blocks:Leaving", {"layer": 3})]),
        r"hook 'Leaving' names layers \[3\], decoder 'Transformer' has layers 0 to 2",
    ),
    "length": (dict(), "one image becomes 16 rows, max_length is 8: raise max_length"),
    "contract": (dict(hooks=[Named()]), r"hook 'Named' lacks \['layers'\], which lmmblocks.spec.LayerHook asks for"),
}


@pytest.mark.parametrize("name", WRONG)
def test_reducers_and_hooks_that_do_not_fit_are_refused(make, config, name):
    swaps, message = WRONG[name]
    settings = replace(config, max_length=8) if name == "length" else config
    if swaps.get("encoder") == "no_cls":
        encoder = config.encoder.build()
        encoder.spec = replace(encoder.spec, offers=PATCHES)
        swaps = {**swaps, "encoder": encoder}
    with pytest.raises(LmmError, match=message) as error:
        make(config=settings, **swaps)
    assert str(error.value).startswith("the parts don't fit together:")


def test_all_mismatches_of_all_parts_are_in_one_error(config, tiny_tokenizer):
    special = Template("marked", stop=("<|end|>",))

    class Marked:
        name, stop = "marked", ("<|end|>",)

        def render(self, messages, *, add_generation_prompt=False):
            from lmmblocks.chat import Piece

            return [*special.render(messages), Piece("special", "<|start|>"), Piece("special", "<|end|>"), Piece("special", "<|start|>")]

    shared = Doubling()
    with pytest.raises(LmmError) as error:
        build(
            replace(config, max_length=600, decoder=replace(config.decoder, vocab=100)),
            weights="random",
            tokenizer=tiny_tokenizer,
            template=Marked(),
            projector="identity",
            reducers=[Block("prumerge", {"keep": 0})],
            hooks=[Block("their_blocks:Leaving", {"layer": 9}), shared, shared],
        )
    lines = str(error.value).split("\n- ")[1:]
    expected = [
        "projector 'identity' needs equal widths, encoder gives 16, decoder takes 24",
        "reducer 'prumerge' needs keep >= 1",
        "hook 'Doubling' is there twice",
        "hook 'Leaving' names layers [9]",
        "the tokenizer has 380 ids",
        "template 'marked': the template uses the special token '<|start|>'",
        "template 'marked': the template uses the special token '<|end|>'",
        "max_length 600 is above the decoder's max_positions 512",
    ]
    assert len(lines) == len(expected), lines
    assert all(text in line for text, line in zip(expected, lines)), lines


def test_reducers_and_hooks_are_registered_and_plugged_in_like_every_block(make, monkeypatch):
    import importlib.metadata

    from lmmblocks import registry

    monkeypatch.setattr(registry, "_REGISTERED", {kind: {} for kind in registry._BUILT_IN})
    lb.register("reducer", "mixing")(Mixing)
    point = importlib.metadata.EntryPoint("hook.leaving", "their_blocks:Leaving", "lmmblocks.blocks")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [point])
    model = make(reducers=["mixing"], hooks=[Block("leaving", {"layer": 2}), "leaving"])
    assert type(model.reducers[0]) is Mixing and [hook.layers for hook in model.hooks] == [(2,), (1,)]
    assert model.config.reducers == (Block("mixing"),) and make(hooks=[Leaving]).config.hooks == (Block("leaving"),)


def test_hooks_that_a_decoder_does_not_serve_are_refused_when_composed(config):
    parts = config.encoder.build(), nn.Identity(), config.decoder.build()
    from lmmblocks.projectors import Linear

    parts[2].hook_offers = frozenset()
    with pytest.raises(LmmError, match=r"hook 'Leaving' requires \['drop', 'vision'\], decoder 'Transformer' offers hooks nothing"):
        LMM(parts[0], Linear(16, 24), parts[2], hooks=[Leaving(24)])
    model = LMM(parts[0], Linear(16, 24), parts[2], hooks=[Doubling()])
    plan = plan_splice([[1, 5, 6]], [[]], labels=[[-100, 5, 6]])
    model.loss(Batch(torch.zeros(0, 3, 56, 56), (), plan))
    assert model.hooks[0].calls == 1


def test_a_config_that_tells_of_other_blocks_is_not_saved(make, tmp_path):
    model = make()
    other = LMM(model.encoder, model.projector, model.decoder, hooks=[Doubling()], config=model.config)
    with pytest.raises(LmmError, match="has 1 hooks, its config tells of 0: loading would lose them"):
        other.save(tmp_path / "model", format="native")


def test_a_config_survives_json_with_its_blocks(config):
    full = replace(config, reducers=(ZIP, Block("pool")), hooks=(Block("their_blocks:Leaving", {"layer": 2}),))
    assert LMMConfig.from_json(full.to_json()) == full
    values = config.to_dict()
    del values["reducers"], values["hooks"]  # written before these fields existed
    assert LMMConfig.from_dict(values) == config
    for wrong, message in (({"reducers": {}}, "reducers must be a list"), ({"hooks": [{}]}, "hook config needs a 'type'")):
        with pytest.raises(LmmError, match=message):
            LMMConfig.from_dict({**values, **wrong})
    with pytest.raises(LmmError, match="reducers must be a tuple of Blocks"):
        replace(config, reducers=["pool"])
