"""``attn_implementation="lmmblocks"`` in plain models of transformers: equal to eager on every row that is no padding."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmmblocks import ops
from lmmblocks.ops.in_transformers.mask import rows_instead_of_mask
from lmmblocks.spec import LmmError

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 64,
}
CLOSE = {"atol": 2e-5, "rtol": 0}


def twins(make, config):
    """Return the same model twice, after eager attention and after ours."""
    name = ops.register_with_transformers()
    models = []
    for implementation in ("eager", name):
        torch.manual_seed(0)
        models.append(make._from_config(config, attn_implementation=implementation).eval())
    models[1].load_state_dict(models[0].state_dict())
    return models


@pytest.fixture(scope="module")
def llamas():
    from transformers import LlamaConfig, LlamaForCausalLM

    return twins(LlamaForCausalLM, LlamaConfig(**SMALL, num_key_value_heads=2, pad_token_id=0, eos_token_id=1))


@pytest.fixture(scope="module")
def mistrals():
    from transformers import MistralConfig, MistralForCausalLM

    return twins(MistralForCausalLM, MistralConfig(**SMALL, num_key_value_heads=2, sliding_window=3, pad_token_id=0))


def random_ids(*shape, seed=0):
    return torch.randint(2, 64, shape, generator=torch.Generator().manual_seed(seed))


PADDING = {
    "none": [[1, 1, 1, 1, 1, 1]] * 3,
    "right": [[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0]],
    "left": [[1, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 0, 1]],
    "inside": [[1, 1, 0, 0, 1, 1], [0, 1, 1, 0, 1, 0], [1, 1, 1, 1, 1, 1]],
}


@pytest.mark.parametrize("side", PADDING)
def test_padded_llama_gives_the_logits_and_gradients_of_eager(llamas, side):
    mask, ids = torch.tensor(PADDING[side]), random_ids(3, 6)
    found = []
    for model in llamas:
        model.zero_grad()
        logits = model(ids, attention_mask=mask).logits[mask.bool()]
        logits.square().mean().backward()
        found.append((logits, model.model.layers[0].self_attn.k_proj.weight.grad.clone()))
    for ours, theirs in zip(found[1], found[0]):
        torch.testing.assert_close(ours, theirs, **CLOSE)


@pytest.mark.parametrize("side", ["none", "right", "left"])
def test_window_of_mistral_is_that_of_eager(mistrals, side):
    mask, ids = torch.tensor(PADDING[side]), random_ids(3, 6)
    theirs, ours = (model(ids, attention_mask=mask).logits[mask.bool()] for model in mistrals)
    torch.testing.assert_close(ours, theirs, **CLOSE)


def test_window_over_padding_inside_a_sample_is_refused(mistrals):
    with pytest.raises(LmmError, match="a window over padding inside"):
        mistrals[1](random_ids(3, 6), attention_mask=torch.tensor(PADDING["inside"]))


@pytest.mark.parametrize("models", ["llamas", "mistrals"])
def test_packed_by_position_ids_equals_each_alone(models, request):
    eager, ours = request.getfixturevalue(models)
    parts = [random_ids(1, n, seed=n) for n in (5, 2, 7)]
    positions = torch.cat([torch.arange(part.shape[1]) for part in parts])[None]
    packed = ours(torch.cat(parts, 1), position_ids=positions, use_cache=False).logits
    alone = torch.cat([eager(part).logits for part in parts], 1)
    torch.testing.assert_close(packed, alone, **CLOSE)


def test_packed_by_boundaries_equals_each_alone_and_asks_once(llamas, monkeypatch):
    eager, ours = llamas
    parts = [random_ids(1, n, seed=n) for n in (5, 2, 7)]
    cu = torch.tensor([0, 5, 7, 14], dtype=torch.int32)
    asked = []
    diff = torch.Tensor.diff
    monkeypatch.setattr(torch.Tensor, "diff", lambda self, *args, **kwargs: asked.append(self) or diff(self, *args, **kwargs))
    lengths = {"cu_seq_lens_q": cu, "cu_seq_lens_k": cu, "max_length_q": 7, "max_length_k": 7}
    positions = torch.cat([torch.arange(part.shape[1]) for part in parts])[None]
    packed = ours(torch.cat(parts, 1), position_ids=positions, use_cache=False, **lengths).logits
    torch.testing.assert_close(packed, torch.cat([eager(part).logits for part in parts], 1), **CLOSE)
    assert sum(each is cu for each in asked) == 1


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_generation_with_left_padding_gives_the_tokens_of_eager(llamas, cache):
    ids, mask = random_ids(3, 6), torch.tensor(PADDING["left"])
    options = {
        "attention_mask": mask,
        "max_new_tokens": 5,
        "do_sample": False,
        "cache_implementation": cache,
        "disable_compile": True,
    }
    theirs, ours = (model.generate(ids, **options) for model in llamas)
    assert theirs.tolist() == ours.tolist()


@pytest.mark.parametrize("tower", ["CLIPVision", "SiglipVision"])
def test_vision_towers_equal_eager(tower):
    import transformers

    config = getattr(transformers, f"{tower}Config")(**SMALL, image_size=28, patch_size=14)
    pixels = torch.randn(3, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    theirs, ours = (model(pixels).last_hidden_state for model in twins(getattr(transformers, f"{tower}Model"), config))
    torch.testing.assert_close(ours, theirs, **CLOSE)


@pytest.mark.parametrize("tower", ["CLIPText", "SiglipText"])
def test_text_towers_with_padding_equal_eager(tower):
    import transformers

    config = getattr(transformers, f"{tower}Config")(**SMALL, max_position_embeddings=8, eos_token_id=1)
    mask, ids = torch.tensor(PADDING["right"]), random_ids(3, 6)
    models = twins(getattr(transformers, f"{tower}Model"), config)
    theirs, ours = (model(ids, attention_mask=mask).last_hidden_state[mask.bool()] for model in models)
    torch.testing.assert_close(ours, theirs, **CLOSE)


def test_images_that_see_themselves_whole_equal_eager():
    """Gemma 3's mask: causal, but rows of one image see each other; with a window on every other layer."""
    from transformers.masking_utils import blockwise_overlay, causal_mask_function, or_masks

    blocks = torch.tensor([[-1, 0, 0, 0, -1, -1, 1, 1]])
    function = or_masks(causal_mask_function, blockwise_overlay(blocks))
    rows = rows_instead_of_mask(1, 8, 8, mask_function=function)
    assert rows.kv_end.tolist() == [1, 4, 4, 4, 5, 6, 8, 8] and rows.segments.lengths_q == (8,)


def test_masks_that_ops_attention_does_not_compute_are_refused():
    def gaps(b, h, q, k):
        return (k <= q) & ((q - k) % 2 == 0)

    def from_first(b, h, q, k):
        return (k <= q) & ((q < 4) | (k != 0))

    for function in (gaps, from_first, lambda b, h, q, k: k < q):
        with pytest.raises(LmmError, match="can't do what this model's mask asks for"):
            rows_instead_of_mask(1, 6, 6, mask_function=function)
    with pytest.raises(LmmError, match="mask function of the model's own"):
        rows_instead_of_mask(1, 6, 6, mask_function=gaps, use_vmap=True)


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    window=st.none() | st.integers(1, 6),
    new=st.integers(1, 20),
    seed=st.integers(0, 9),
)
def test_any_packed_windowed_causal_mask_is_read_exactly(lengths, window, new, seed):
    """What is read, attended with, equals attention under the mask itself; the queries are the last rows, as with a cache."""
    total = sum(lengths)
    new = min(new, total)
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))

    def function(b, h, q, k):
        seen = (k <= q) & (owner[q] == owner[k])
        return seen if window is None else seen & (k > q - window)

    rows = rows_instead_of_mask(1, new, total, q_offset=total - new, mask_function=function)
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(n, 2, 4, generator=generator, dtype=torch.float64) for n in (new, total, total))
    chosen = k if rows.keys is None else k[rows.keys], v if rows.keys is None else v[rows.keys]
    found = ops.attention(q, *chosen, rows.segments, causal=rows.causal, window=rows.window, kv_end=rows.kv_end)
    mask = function(0, 0, torch.arange(total - new, total)[:, None], torch.arange(total)[None, :])
    expected = torch.nn.functional.scaled_dot_product_attention(*(x.transpose(0, 1) for x in (q, k, v)), mask)
    torch.testing.assert_close(found, expected.transpose(0, 1))


def test_what_it_cannot_do_is_refused_in_one_message(llamas):
    from transformers import LlamaConfig, LlamaForCausalLM

    name = ops.register_with_transformers()
    config = LlamaConfig(**SMALL, attention_dropout=0.5)
    model = LlamaForCausalLM._from_config(config, attn_implementation=name).train()
    with pytest.raises(LmmError, match=r"a mask of its own, \(1, 1, 6, 6\).*dropout 0.5"):
        model(random_ids(1, 6), attention_mask=torch.zeros(1, 1, 6, 6))
    with pytest.raises(LmmError, match="s_aux beside queries"):
        llamas[1](random_ids(1, 6), s_aux=torch.zeros(4))
