"""Every registered encoder with every projector, and with decoders and reducers in turn: composed, trained, asked, saved and loaded at toy size.

A registered block without an entry in ``TOY`` fails the first test: add a line of options that make it small.
"""

import importlib
import re
from itertools import product

import pytest
import torch

import lmmblocks as lb
from lmmblocks import registry
from lmmblocks.builder import build
from lmmblocks.compose.dry_run import blank_features
from lmmblocks.compose.recipes import named_config, recipe
from lmmblocks.config import Block, LMMConfig
from lmmblocks.data.collate import collate
from lmmblocks.decoders.transformer import TransformerConfig
from lmmblocks.encoders.clip import CLIPConfig
from lmmblocks.encoders.siglip import SigLIPConfig
from lmmblocks.spec import Grid, LmmError

SIZE, WIDTH, VOCAB = 56, 32, 400
_SHAPE = dict(dim=WIDTH, layers=2, heads=2, image_size=SIZE, patch=14)
_BERT = dict(queries=3, dim=8, layers=2, heads=2, mlp_dim=8)
_TIMM = dict(embed_dim=WIDTH, depth=2, num_heads=2, patch_size=14)
_OPEN_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": SIZE, "layers": 2, "width": WIDTH, "head_width": 16, "patch_size": 14},
    "text_cfg": {"context_length": 8, "vocab_size": 20, "width": 16, "heads": 2, "layers": 1},
}
TOY = {
    "encoder": {
        "blip2_vit": dict(**_SHAPE, mlp_dim=32),
        "clip": dict(**_SHAPE, mlp_dim=32),
        "dinov2": dict(**_SHAPE, trained_size=SIZE, registers=1),
        "fused": dict(towers=(CLIPConfig(**_SHAPE, mlp_dim=32), SigLIPConfig(**_SHAPE, mlp_dim=32))),
        "fused, list": dict(towers=(CLIPConfig(**_SHAPE, mlp_dim=32), SigLIPConfig(**{**_SHAPE, "patch": 7}, mlp_dim=32)), combine="list"),
        "open_clip": dict(architecture=_OPEN_CLIP),
        "qwen_vit": dict(**_SHAPE, mlp_dim=32, trained_size=28),
        "siglip": dict(**_SHAPE, mlp_dim=32),
        "siglip2_naflex": dict(dim=WIDTH, layers=2, heads=2, mlp_dim=32, patch=14, positions=16, max_patches=24),
        "tiled": dict(tower=CLIPConfig(**_SHAPE, mlp_dim=32), pinpoints=((SIZE, 2 * SIZE), (2 * SIZE, SIZE))),
        "timm": dict(model="vit_tiny_patch16_224", image_size=SIZE, options=_TIMM),
    },
    "projector": {
        "adaptive_pool": dict(grid=2),
        "c_abstractor": dict(grid=2, dim=16, depth=1),
        "identity": {},
        "image_token": dict(token=5),
        "instruct_qformer": dict(**_BERT, vocab=VOCAB, positions=40),
        "ldp": {},
        "ldpv2": dict(grid=2),
        "linear": {},
        "mlp": dict(depth=3),
        "perceiver": dict(latents=3, depth=1, heads=2, head_dim=8),
        "pixel_shuffle": {},
        "pool": {},
        "qformer": _BERT,
        "resampler": dict(grid=2, heads=2),
        "sva": dict(dim=8, depth=1, heads=2),
        "token_packer": dict(dim=8, heads=2),
    },
    "reducer": {
        "pool": dict(mode="max"),
        "prumerge": dict(keep=3, spatial=1),
        "visionzip": dict(dominant=3, contextual=1),
    },
    "hook": {
        "gated_cross_attention": dict(layers=[0, 1], heads=2, ffn_dim=16, prefix=False),
    },
    "decoder": {
        "hf": dict(hf=dict(model_type="gpt2", n_embd=WIDTH, n_head=4, n_layer=2, vocab_size=VOCAB, n_positions=512)),
        "transformer": dict(dim=WIDTH, layers=2, heads=4, kv_heads=2, ffn_dim=32, vocab=VOCAB, max_positions=512),
    },
}
ENCODERS, PROJECTORS, DECODERS = (list(TOY[kind]) for kind in ("encoder", "projector", "decoder"))
REDUCERS = [None, *TOY["reducer"]]
PACKAGES = {"open_clip": "open_clip", "timm": "timm"}
PATCH_BY_PATCH = {"identity", "linear", "mlp"}
AS_A_SET = {"image_token", "perceiver", "qformer", "instruct_qformer"}
BY_SCORES = {"prumerge", "visionzip"}


def block(kind, name):
    return name if isinstance(name, Block) else Block(name.partition(",")[0], TOY[kind][name])


def case(i, j):
    """Pair ``(i, j)`` of encoder and projector with the decoder and the reducer whose turn it is."""
    return ENCODERS[i], PROJECTORS[j], DECODERS[(i + j) % len(DECODERS)], REDUCERS[(i + j // 2) % len(REDUCERS)]


CASES = [case(i, j) for i, j in product(range(len(ENCODERS)), range(len(PROJECTORS)))]
CASES += [("fused, list", "sva", DECODERS[0], None)]  # the only projector that takes towers apart: it must have a case without a reducer


@pytest.mark.parametrize("kind", TOY)
def test_every_registered_block_is_in_the_matrix(kind):
    missing = set(registry.built_in(kind)) - {name.partition(",")[0] for name in TOY[kind]}
    assert not missing, f"registered but not in the matrix: {sorted(missing)}: add toy options for them to TOY[{kind!r}] in {__file__}"


def test_all_pairs_and_all_blocks_have_a_case():
    assert {case[:2] for case in CASES} == set(product(ENCODERS, PROJECTORS))
    for place, names in enumerate((ENCODERS, PROJECTORS)):
        for decoder in DECODERS:
            assert {case[place] for case in CASES if case[2] == decoder} == set(names)
    assert {(projector, reducer) for _, projector, _, reducer in CASES} == set(product(PROJECTORS, REDUCERS))


def importable(encoder):
    try:
        importlib.import_module(PACKAGES.get(encoder, "torch"))
    except (ImportError, RuntimeError, OSError):
        return False
    return True


def reasons(encoder, projector, reducer):
    """Why a composition has to be refused, from what is known of the blocks; nothing = it has to work."""
    if not importable(encoder):
        yield r"needs the package '?\w+'?"
        return
    spec = named_config("encoder", block("encoder", encoder)).build().spec
    needs = {"sva": {"towers"} if spec.towers else {"patches"}, "token_packer": {"patches", "layers"}, "image_token": set()}
    needs = needs.get(projector, {"patches"})
    scores = {"prumerge": {"keys", "cls_attn"}, "visionzip": {"keys", "cls_attn", "prefix"}}.get(reducer, set())
    for missing in (needs, scores):
        if not missing <= spec.offers:
            yield r"needs \['.*'\], encoder '\w+' offers"
    if projector == "identity" and spec.dim != WIDTH:
        yield "projector 'identity' needs equal widths"
    if encoder == "tiled":
        if projector == "instruct_qformer":
            yield "reads what is asked about an image, encoder 'Tiled' cuts images into tiles"
        if projector in AS_A_SET or reducer in BY_SCORES:
            yield "a tile becomes \\d+ rows without a grid"
    alone = PATCH_BY_PATCH | AS_A_SET | (set() if spec.towers else {"sva"})  # of one tower, sva's windows are single patches
    if reducer in BY_SCORES and projector not in alone:
        yield "leaves patches without a grid, projector '\\w+' needs more than each patch alone"
    if reducer == "pool" and projector in AS_A_SET:
        yield "reducer 'pool' needs rows on a grid, found [13] rows"


@pytest.fixture(scope="module")
def compose(tiny_tokenizer):
    base = LMMConfig(encoder=CLIPConfig(**TOY["encoder"]["clip"]), decoder=TransformerConfig(**TOY["decoder"]["transformer"]), max_length=300)

    def compose(encoder, projector, decoder, reducer, hooks=()):
        torch.manual_seed(0)
        return build(
            base,
            encoder=block("encoder", encoder),
            projector=block("projector", projector),
            decoder=block("decoder", decoder),
            reducers=[] if reducer is None else [block("reducer", reducer)],
            hooks=[block("hook", hook) for hook in hooks],
            tokenizer=tiny_tokenizer,
            weights="random",
        )

    return compose


@pytest.mark.parametrize("names", CASES, ids=lambda names: " + ".join(map(str, names)))
def test_the_pair_trains_and_answers_or_is_refused_for_a_known_reason(compose, conversations, colour_picture, names):
    expected = list(reasons(names[0], names[1], names[3]))
    if expected:
        with pytest.raises(LmmError) as error:
            compose(*names)
        assert any(re.search(reason, str(error.value)) for reason in expected), (expected, str(error.value))
        return
    model = compose(*names)
    batch = collate(conversations, model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    loss = model.loss(batch)
    loss.backward()
    trained = [name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()]
    assert {name.split(".")[0] for name in trained} >= {"language_model"} | ({"multi_modal_projector"} - identity(names))
    optimizer.step()
    with torch.no_grad():
        after = model.loss(batch)
    assert loss.isfinite() and after < loss, (loss.item(), after.item())
    answer = model.generate("What is it?", colour_picture(5), max_new_tokens=2)
    assert isinstance(answer, str)


def identity(names):
    """A projector without weights learns nothing."""
    return {"multi_modal_projector"} if names[1] in ("identity", "image_token") else set()


def round_trips():
    """Working cases that hold every encoder with every decoder, every projector and every reducer."""
    works = [names for names in [*CASES, ("fused, list", "sva", "transformer", None)] if not list(reasons(names[0], names[1], names[3]))]
    pairs = {names: {names[0::2][:2], ("projector", names[1]), ("reducer", names[3])} for names in works}
    left = set().union(*pairs.values())
    while left:
        names = max(works, key=lambda case: len(pairs[case] & left))
        left -= pairs[names]
        yield names


ROUND_TRIPS = list(round_trips())
_TWO = Block("mlp", {"depth": 2})
_READS = Block("instruct_qformer", {**TOY["projector"]["instruct_qformer"], "prefix": True})
OTHER_READERS = [
    *(("hf", encoder, _TWO) for encoder in ("clip", "siglip", Block("dinov2", {**_SHAPE, "trained_size": SIZE}), "tiled")),
    ("hf", "blip2_vit", _READS),
    *(("llava", "clip", projector) for projector in ("mlp", "linear", "identity")),
]


def test_every_block_is_saved_and_every_encoder_with_every_decoder():
    for place, kind in enumerate(("encoder", "projector", "decoder", "reducer")):
        found = {names[place] for names in ROUND_TRIPS}
        assert found >= {name for name in TOY[kind] if importable(name)}, kind
    assert {(names[0], names[2]) for names in ROUND_TRIPS} == set(product(filter(importable, ENCODERS), DECODERS))


def assert_comes_back(model, folder, conversations, picture):
    """Logits of everything, the loss and a token are the same to the last bit, each with what the model itself makes of the samples."""
    again = lb.load(folder)
    with torch.no_grad():
        (ours, loss), (theirs, loss_again) = (
            (each.logits(batch), each.loss(batch)) for each in (model, again) for batch in [collate(conversations, each)]
        )
    assert torch.equal(ours, theirs) and torch.equal(loss, loss_again)
    options = dict(images=picture, max_new_tokens=1)
    assert model.generate("What is it?", **options) == again.generate("What is it?", **options)


@pytest.mark.parametrize("names", ROUND_TRIPS, ids=lambda names: " + ".join(map(str, names)))
def test_saved_and_loaded_it_is_the_same_model(compose, conversations, colour_picture, tmp_path, names):
    model = compose(*names)
    model.save(tmp_path / "m", format="native")
    assert_comes_back(model, tmp_path / "m", conversations, colour_picture(5))


@pytest.mark.parametrize("format, encoder, projector", OTHER_READERS)
def test_written_for_another_reader_it_comes_back_the_same(compose, conversations, colour_picture, tmp_path, format, encoder, projector):
    model = compose(encoder, projector, "transformer", None)
    model.save(tmp_path / "m", format=format)
    assert_comes_back(model, tmp_path / "m", conversations, colour_picture(5))


@pytest.mark.parametrize("names", ROUND_TRIPS[::4], ids=lambda names: " + ".join(map(str, names)))
def test_what_another_reader_has_no_place_for_is_refused_in_one_sentence_and_leaves_nothing(compose, tmp_path, names):
    model = compose(*names)
    for format in ("hf", "llava"):
        with pytest.raises(LmmError, match=r"\A[^\n]* has no place for [^\n]*: save with format='native'\Z"):
            model.save(tmp_path / "m", format=format)
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", TOY["hook"])
def test_every_hook_trains_and_gives_the_same_output_saved_and_loaded(compose, conversations, colour_picture, tmp_path, name):
    model = compose("clip", "image_token", "transformer", None, hooks=[name])
    optimizer, batch = torch.optim.SGD(model.parameters(), lr=0.05), collate(conversations, model)
    before = [value.clone() for value in model.hooks.parameters()]
    first = model.loss(batch)
    first.backward()
    optimizer.step()
    with torch.no_grad():
        assert model.loss(batch) < first
    assert any(not torch.equal(old, new) for old, new in zip(before, model.hooks.parameters()))
    model.save(tmp_path, format="native")
    loaded = lb.load(tmp_path)
    with torch.no_grad():
        assert torch.equal(model.logits(batch), loaded.logits(batch))
    options = dict(images=colour_picture(5), max_new_tokens=3)
    assert model.generate("What is it?", **options) == loaded.generate("What is it?", **options)


@pytest.mark.parametrize("name", PROJECTORS)
def test_counts_follow_from_the_grid_alone(name):
    """What the plan is made of is what comes out, also for grids that the encoders above don't have."""
    spec = CLIPConfig(**TOY["encoder"]["clip"]).build().spec
    projector = recipe("projector", block("projector", name)).make(spec, WIDTH)
    for grid in (Grid(4, 4), Grid(6, 4), Grid(5, 7)):
        try:
            rows = projector.out_grid(grid)
        except LmmError:
            continue
        given = blank_features(spec, grid, torch.zeros(()))
        given.table = torch.zeros(VOCAB, WIDTH)
        with torch.no_grad():
            got = projector(given)
        count = rows.rows if isinstance(rows, Grid) else rows
        assert got.shape == (count, WIDTH), grid
