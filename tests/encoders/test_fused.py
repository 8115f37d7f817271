"""Several towers on one image: each tower's features as it gives them alone, on one grid or on their own."""

import numpy as np
import pytest
import torch
from PIL import Image

import lmmblocks as lb
from lmmblocks.config import Block, LMMConfig
from lmmblocks.data.collate import collate
from lmmblocks.decoders.transformer import TransformerConfig
from lmmblocks.encoders.clip import CLIPConfig
from lmmblocks.encoders.fused import Fused, FusedConfig, on_grids
from lmmblocks.encoders.siglip import SigLIPConfig
from lmmblocks.encoders.tiled import TiledConfig
from lmmblocks.images.pixels import FusedPixels, join_pixels
from lmmblocks.spec import Grid, LmmError

FINE = CLIPConfig(dim=16, layers=2, heads=2, mlp_dim=24, image_size=28, patch=7)
COARSE = SigLIPConfig(dim=12, layers=2, heads=2, mlp_dim=24, image_size=33, patch=11)


def picture(size, seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise)


IMAGES = [picture((50, 31)), picture((20, 90), 1)]


def built(**options):
    torch.manual_seed(0)
    return FusedConfig((FINE, COARSE), **options).build()


def resized(features, old, new):
    """Bilinear interpolation a second time: pixel centres, borders repeated, one value after the other."""
    maps = features.double().unflatten(0, (old, old))
    out = torch.zeros(new, new, maps.shape[-1], dtype=torch.float64)
    for y in range(new):
        for x in range(new):
            for dy in (0, 1):
                for dx in (0, 1):
                    at_y, at_x = ((n + 0.5) * old / new - 0.5 for n in (y, x))
                    at_y, at_x = max(at_y, 0), max(at_x, 0)
                    low_y, low_x = int(at_y), int(at_x)
                    share_y = at_y - low_y if dy else 1 - (at_y - low_y)
                    share_x = at_x - low_x if dx else 1 - (at_x - low_x)
                    out[y, x] += share_y * share_x * maps[min(low_y + dy, old - 1), min(low_x + dx, old - 1)]
    return out.flatten(0, 1).float()


@pytest.mark.parametrize("grid", [None, (3, 3), (6, 6), (2, 2)])
def test_channels_are_each_towers_features_on_one_grid(grid, record_parity):
    encoder = built(grid=grid)
    side = 4 if grid is None else grid[0]
    pixels, grids = encoder.preprocess.batch(IMAGES)
    features = encoder(pixels)
    assert features.grids == grids == (Grid(side, side),) * 2 and features.towers == ()
    assert encoder.spec.dim == features.patches.shape[1] == 28 and len(features.patches) == 2 * side**2
    expected = []
    for image in IMAGES:
        columns = []
        for tower, old in zip(encoder.towers, (4, 3)):
            alone = tower(tower.preprocess.batch([image])[0]).patches
            columns.append(alone if old == side else resized(alone, old, side))
        expected.append(torch.cat(columns, -1))
    difference = (features.patches - torch.cat(expected)).abs().max().item()
    record_parity("encoders.Fused", "the towers alone, interpolated in fp64", "features", difference)
    assert difference <= 1e-5, difference


def test_a_tower_on_the_wanted_grid_keeps_its_bits():
    encoder = built()
    pixels, _ = encoder.preprocess.batch(IMAGES)
    assert torch.equal(encoder(pixels).patches[:, :16], encoder.towers[0](pixels.towers[0]).patches)


def test_towers_are_kept_apart_when_asked():
    for combine in ("channels", "list"):
        encoder = built(combine=combine)
        pixels, _ = encoder.preprocess.batch(IMAGES)
        features = encoder(pixels, need=frozenset({"towers"}))
        assert [tower.grids for tower in features.towers] == [(Grid(4, 4),) * 2, (Grid(3, 3),) * 2]
        for tower, own, got in zip(encoder.towers, pixels.towers, features.towers):
            assert torch.equal(got.patches, tower(own).patches)
        assert [spec.dim for spec in encoder.spec.towers] == [16, 12]
    assert encoder.spec.offers == {"towers"} and encoder.spec.dim == 16


def test_each_tower_has_its_own_preprocessing_and_a_picture_is_read_once(tmp_path, monkeypatch):
    from lmmblocks.images import load

    path = tmp_path / "cat.png"
    IMAGES[0].save(path)
    opened, real = [], load.open_image
    monkeypatch.setattr(load, "open_image", lambda name: opened.append(name) or real(name))
    encoder = built()
    pixels, _ = encoder.preprocess.batch([path])
    assert opened == [path]
    for own, tower in zip(pixels.towers, encoder.towers):
        assert torch.equal(own, tower.preprocess.batch(IMAGES[:1])[0])
    assert encoder.towers[0].preprocess.mean != encoder.towers[1].preprocess.mean


def test_packed_features_of_unequal_grids_are_interpolated_one_by_one():
    old, new = [Grid(4, 4), Grid(3, 3), Grid(4, 4)], [Grid(2, 2), Grid(3, 3), Grid(3, 3)]
    rows = torch.randn(sum(grid.rows for grid in old), 5)
    parts = rows.split([grid.rows for grid in old])
    expected = torch.cat([resized(part, a.h, b.h) for part, a, b in zip(parts, old, new)])
    torch.testing.assert_close(on_grids(rows, old, new), expected, atol=1e-6, rtol=0)


def test_pixels_move_and_are_cut_like_a_tensor():
    encoder = built()
    pixels, _ = encoder.preprocess.batch(IMAGES)
    assert len(pixels) == 2 and len(pixels[1:]) == 1 and len(encoder.preprocess.batch([])[0]) == 0
    assert all(torch.equal(a, b[1:]) for a, b in zip(pixels[1:].towers, pixels.towers))
    assert all(torch.equal(a, b[[1, 0]]) for a, b in zip(pixels[torch.tensor([1, 0])].towers, pixels.towers))
    joined = join_pixels([pixels[:1], pixels[1:]])
    assert all(torch.equal(a, b) for a, b in zip(joined.towers, pixels.towers))
    assert all(tower.is_meta for tower in pixels.to("meta").towers)


def model_config(**options):
    return LMMConfig(
        encoder=FusedConfig((FINE, COARSE), **options),
        decoder=TransformerConfig(dim=24, layers=2, heads=4, kv_heads=2, ffn_dim=32, vocab=400, max_positions=512),
    )


@pytest.fixture(scope="module")
def fused_model(make_tiny_model):
    return make_tiny_model(config=model_config(grid=(3, 3)))


def test_a_mixed_batch_equals_each_sample_alone_and_reaches_both_towers(fused_model, conversations):
    batch = collate(conversations, fused_model)
    assert batch.grids == (Grid(3, 3),) * 4
    with torch.no_grad():
        alone = torch.cat([fused_model.logits(collate([sample], fused_model)) for sample in conversations])
        torch.testing.assert_close(fused_model.logits(batch), alone, atol=1e-5, rtol=0)
    fused_model.encoder.frozen = False
    fused_model.loss(batch).backward()
    fused_model.encoder.frozen = True
    for tower in fused_model.encoder.towers:
        assert any(p.grad is not None and p.grad.any() for p in tower.parameters())


def test_it_is_saved_loaded_and_answers_the_same(fused_model, conversations, tmp_path):
    config = model_config(combine="list")
    assert LMMConfig.from_json(config.to_json()) == config
    fused_model.save(tmp_path / "out", format="native")
    again = lb.load(tmp_path / "out")
    assert again.encoder.config == fused_model.encoder.config
    assert again.encoder.preprocess == fused_model.encoder.preprocess
    batch = collate(conversations, fused_model)
    with torch.no_grad():
        assert torch.equal(again.logits(batch), fused_model.logits(batch))
    image = [IMAGES[0]]
    answer = fused_model.generate("What is it?", images=image, max_new_tokens=5)
    assert again.generate("What is it?", images=image, max_new_tokens=5) == answer


def test_sva_reads_the_list(make_tiny_model, conversations):
    towers = (FINE, CLIPConfig(dim=12, layers=2, heads=2, mlp_dim=24, image_size=56, patch=7))
    config = LMMConfig(encoder=FusedConfig(towers, combine="list"), decoder=model_config().decoder)
    model = make_tiny_model(config=config, projector=Block("sva", {"dim": 16, "depth": 1, "heads": 2}))
    batch = collate(conversations, model)
    assert model.encode(batch.pixels)[1] == tuple(model.input_spec.image_rows(grid) for grid in batch.grids)
    assert torch.isfinite(model.loss(batch))


def test_tiles_of_fused_towers(make_tiny_model, conversations):
    tiled = TiledConfig(FusedConfig((FINE, COARSE)), pinpoints=((28, 56), (56, 28)))
    model = make_tiny_model(config=LMMConfig(encoder=tiled, decoder=model_config().decoder))
    batch = collate(conversations, model)
    assert isinstance(batch.pixels.tiles, FusedPixels) and batch.grids[0].count == 3
    with torch.no_grad():
        alone = torch.cat([model.logits(collate([sample], model)) for sample in conversations])
        torch.testing.assert_close(model.logits(batch), alone, atol=1e-5, rtol=0)


def test_encoders_with_weights_can_be_fused():
    towers = [FINE.build(), COARSE.build()]
    encoder = Fused.of(*towers, combine="list")
    assert list(encoder.towers) == towers and encoder.config == FusedConfig((FINE, COARSE), combine="list")


def test_a_projector_of_patches_is_refused_for_a_list(make_tiny_model):
    with pytest.raises(LmmError, match=r"needs \['patches'\].*offers \['towers'\]"):
        make_tiny_model(config=model_config(combine="list"), projector="linear")


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: FusedConfig((FINE,)), "at least two encoders, found 1"),
        (
            lambda: FusedConfig((FINE, "siglip")),
            r"config dataclasses such as CLIPConfig\(\.\.\.\), found \['str'\]",
        ),
        (lambda: FusedConfig((FINE, COARSE), combine="sum"), r"'sum' is none of \['channels', 'list'\]"),
        (
            lambda: FusedConfig((FINE, COARSE), combine="list", grid=(2, 2)),
            "has no effect with combine='list'",
        ),
        (lambda: FusedConfig((FINE, COARSE), grid=(2,)), r"grid must be \(rows, columns\)"),
        (lambda: FusedConfig((FINE, TiledConfig(COARSE, ((33, 66),)))).build(), "fuse first and cut then"),
        (
            lambda: FusedConfig((FINE, FusedConfig((FINE, COARSE), combine="list"))).build(),
            "offers no patches",
        ),
        (lambda: built()(torch.zeros(1, 3, 28, 28)), "needs FusedPixels of 2 towers, found Tensor"),
        (
            lambda: built()(built().preprocess.batch(IMAGES)[0], need=frozenset({"keys"})),
            r"can't give \['keys'\]",
        ),
    ],
)
def test_mistakes_say_what_to_change(make, message):
    with pytest.raises(LmmError, match=message):
        make()
