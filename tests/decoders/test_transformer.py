"""The decoder against a plain Llama written here, one sequence at a time, from the same weights."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from lmmblocks.decoders.transformer import TransformerConfig
from lmmblocks.spec import Decoder, LmmError, Segments

TOLERANCE = 1e-5


def config(**changes):
    shape = dict(dim=24, layers=3, heads=4, kv_heads=2, ffn_dim=32, vocab=50, max_positions=64)
    return TransformerConfig(**{**shape, **changes})


def decoder(seed=0, **changes):
    torch.manual_seed(seed)
    made = config(**changes).build()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return made


def rows(count, seed=0, width=24):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def positions(lengths):
    return torch.cat([torch.arange(n, dtype=torch.int32) for n in lengths]) if lengths else torch.zeros(0, dtype=torch.int32)


def run(made, embeds, lengths, **options):
    return made(embeds, positions=positions(lengths), segments=Segments.of(lengths), **options)


def rms(x, weight, eps):
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def rotated(x, theta):
    """Turn each pair (i, i + E/2) by position * theta^(-2i/E), as complex numbers; x is (T, E)."""
    length, width = x.shape
    frequencies = theta ** (-torch.arange(0, width, 2, dtype=x.dtype) / width)
    turn = torch.polar(torch.ones(()).to(x), torch.arange(length, dtype=x.dtype)[:, None] * frequencies)
    pairs = torch.complex(*x.chunk(2, -1)) * turn
    return torch.cat([pairs.real, pairs.imag], -1)


def plain_llama(made, x, visible=None):
    """One sequence (T, D) in float64, head by head; visible[i, j]: row i sees row j."""
    c, x = made.config, x.double()
    weights = {name: value.double() for name, value in made.state_dict().items()}
    visible = torch.ones(len(x), len(x)).tril().bool() if visible is None else visible
    for layer in range(c.layers):
        w = {name.split(f"layers.{layer}.")[1]: v for name, v in weights.items() if f"layers.{layer}." in name}
        h = rms(x, w["input_layernorm.weight"], c.eps)
        q, k, v = (h @ w[f"self_attn.{part}_proj.weight"].T for part in "qkv")
        mixed = []
        for head in range(c.heads):
            e, own = c.head_width, head * c.kv_heads // c.heads
            qh = rotated(q[:, head * e : head * e + e], c.rope_theta)
            kh, vh = rotated(k[:, own * e : own * e + e], c.rope_theta), v[:, own * e : own * e + e]
            scores = (qh @ kh.T / e**0.5).masked_fill(~visible, float("-inf"))
            mixed.append(scores.softmax(-1) @ vh)
        x = x + torch.cat(mixed, -1) @ w["self_attn.o_proj.weight"].T
        h = rms(x, w["post_attention_layernorm.weight"], c.eps)
        x = x + (F.silu(h @ w["mlp.gate_proj.weight"].T) * (h @ w["mlp.up_proj.weight"].T)) @ w["mlp.down_proj.weight"].T
    return rms(x, weights["model.norm.weight"], c.eps)


def largest(difference):
    return difference.abs().max().item() if difference.numel() else 0.0


@pytest.mark.parametrize(
    "changes",
    [{}, {"kv_heads": 4}, {"kv_heads": 1}, {"head_dim": 10}, {"rope_theta": 500.0}, {"eps": 0.1}],
    ids=str,
)
def test_hidden_states_equal_a_plain_llama(changes):
    made, embeds = decoder(**changes), rows(13)
    with torch.no_grad():
        error = largest(run(made, embeds, [13]).double() - plain_llama(made, embeds))
    assert error < TOLERANCE, error


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(0, 9), min_size=1, max_size=5), seed=st.integers(0, 99))
def test_packed_equals_single(lengths, seed):
    made, embeds = decoder(), rows(sum(lengths), seed)
    with torch.no_grad():
        packed = run(made, embeds, lengths)
        single = torch.cat([run(made, part, [len(part)]) for part in embeds.split(lengths)])
    assert packed.shape == embeds.shape
    assert largest(packed - single) < TOLERANCE


def test_packed_gradients_equal_the_sum_of_single_ones():
    lengths, embeds, weigh = [4, 1, 7], rows(12), rows(12, seed=1)
    packed, single = decoder(), decoder()
    (run(packed, embeds, lengths) * weigh).sum().backward()
    for part, own in zip(embeds.split(lengths), weigh.split(lengths)):
        (run(single, part, [len(part)]) * own).sum().backward()
    for (name, a), b in zip(packed.named_parameters(), single.parameters()):
        if a.grad is None:
            assert b.grad is None and name in ("model.embed_tokens.weight", "lm_head.weight")
            continue
        assert largest(a.grad - b.grad) < 1e-5 * max(1.0, largest(b.grad)), name


def test_a_row_sees_neither_later_rows_nor_other_segments():
    made, embeds, lengths = decoder(), rows(10), [6, 4]
    changed = embeds.clone()
    changed[3] += 1
    with torch.no_grad():
        moved = (run(made, changed, lengths) != run(made, embeds, lengths)).any(-1)
    assert moved.tolist() == [False] * 3 + [True] * 3 + [False] * 4


def test_kv_end_says_what_each_row_sees():
    made, embeds = decoder(), rows(9)
    ends = torch.tensor([1, 4, 4, 4, 5, 6, 7, 8, 9], dtype=torch.int32)  # rows 1 to 3 are an image
    with torch.no_grad():
        alone = run(made, embeds, [9], kv_end=ends)
        behind = run(made, torch.cat([rows(2, 5), embeds]), [2, 9], kv_end=torch.cat([ends[:2].new_tensor([1, 2]), ends + 2]))
    expected = plain_llama(made, embeds, torch.arange(9)[None, :] < ends[:, None])
    assert largest(alone.double() - expected) < TOLERANCE
    assert largest(behind[2:] - alone) < TOLERANCE


def test_grouped_heads_equal_as_many_copies():
    grouped, copied = decoder(kv_heads=2), decoder(kv_heads=4)
    state = grouped.state_dict()
    for name, value in state.items():
        if "k_proj" in name or "v_proj" in name:
            state[name] = value.unflatten(0, (2, 6)).repeat_interleave(2, 0).flatten(0, 1)
    copied.load_state_dict(state)
    with torch.no_grad():
        assert largest(run(grouped, rows(8), [8]) - run(copied, rows(8), [8])) < TOLERANCE


@pytest.mark.parametrize("tied", [True, False])
def test_head_is_the_table_only_when_tied(tied):
    made = decoder(tied=tied)
    assert (made.head_weight is made.table) is tied
    separate = sum(p.numel() for p in decoder(tied=False).parameters())
    assert sum(p.numel() for p in made.parameters()) == separate - (50 * 24 if tied else 0)
    hidden = rows(3)
    torch.testing.assert_close(made.head(hidden), hidden @ made.head_weight.T)
    ids = torch.tensor([4, 4, 9])
    torch.testing.assert_close(made.embed(ids), made.table[ids])


def test_tied_table_gets_the_gradient_of_both_its_uses():
    tied, free = decoder(tied=True), decoder(tied=False)
    free.load_state_dict({**tied.state_dict(), "lm_head.weight": tied.table.detach().clone()})
    for made in (tied, free):
        made.head(run(made, made.embed(torch.arange(5)), [5])).square().mean().backward()
    torch.testing.assert_close(tied.table.grad, free.table.grad + free.head_weight.grad)


def losses_and_gradients(made, embeds, lengths):
    calls = []
    for index, layer in enumerate(made.model.layers):
        layer.register_forward_pre_hook(lambda _, args, index=index: calls.append((index, args[1].layer)))
    embeds = embeds.clone().requires_grad_()
    loss = run(made, embeds, lengths).square().mean()
    loss.backward()
    return loss, [embeds.grad, *(p.grad for p in made.parameters() if p.grad is not None)], calls


def test_recompute_gives_equal_gradients_and_runs_each_layer_again_in_its_own_context():
    lengths, embeds = [5, 2, 6], rows(13)
    loss, gradients, calls = losses_and_gradients(decoder(), embeds, lengths)
    again_loss, again_gradients, again_calls = losses_and_gradients(decoder(recompute=True), embeds, lengths)
    assert loss == again_loss and len(gradients) == len(again_gradients)
    for a, b in zip(gradients, again_gradients):
        assert torch.equal(a, b)
    assert calls == [(0, 0), (1, 1), (2, 2)]
    assert again_calls == [(0, 0), (1, 1), (2, 2), (2, 2), (1, 1), (0, 0)]


def test_recompute_keeps_the_input_of_each_layer_only():
    def kept(recompute):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            run(decoder(recompute=recompute), rows(64).requires_grad_(), [64])
        return sum(sizes)

    assert kept(True) < kept(False) / 4, (kept(True), kept(False))


class Recorder:
    requires = frozenset()

    def __init__(self, layers, change=lambda x: x):
        self.layers, self.change, self.seen = layers, change, []

    def __call__(self, hidden, context):
        self.seen.append((context.layer, hidden.clone()))
        return self.change(hidden)


def test_hooks_are_called_in_front_of_the_layers_they_name_and_change_what_enters():
    made, embeds, entered = decoder(), rows(6), {}
    for index, layer in enumerate(made.model.layers):
        layer.register_forward_pre_hook(lambda _, args, index=index: entered.update({index: args[0].clone()}))
    double, watch = Recorder((1,), lambda x: 2 * x), Recorder((2, 0, 1))
    with torch.no_grad():
        run(made, embeds, [2, 4])
        plain = dict(entered)
        run(made, embeds, [2, 4], hooks=[double, watch])
    assert [layer for layer, _ in double.seen] == [1] and [layer for layer, _ in watch.seen] == [0, 1, 2]
    assert torch.equal(double.seen[0][1], plain[1]) and torch.equal(entered[0], embeds)
    for layer, hidden in watch.seen:  # after the hook before it: sees what really enters
        assert torch.equal(hidden, entered[layer])
    assert torch.equal(entered[1], 2 * plain[1]) and not torch.equal(entered[2], plain[2])


def test_hook_that_names_no_layer_of_the_decoder_is_never_called():
    hook = Recorder((3, -1))
    run(decoder(), rows(2), [2], hooks=[hook])
    assert not hook.seen


def test_satisfies_the_contract_of_a_decoder():
    assert isinstance(decoder(), Decoder)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"kv_heads": 3}, "heads 4 is not a multiple of kv_heads 3"),
        ({"dim": 26}, "dim 26 is not a multiple of heads 4: set head_dim"),
        ({"head_dim": 7}, "head_dim 7 is odd"),
        ({"dim": 20}, "head_dim 5 is odd"),
        ({"kv_heads": 0}, "kv_heads must be a whole number above 0, found 0"),
        ({"layers": 2.0}, "layers must be a whole number above 0, found 2.0"),
        ({"head_dim": 0}, "head_dim must be a whole number above 0 or None, found 0"),
        ({"tied": "yes"}, "tied must be true or false, found 'yes'"),
        ({"rope_theta": float("inf")}, "rope_theta must be a number above 0, found inf"),
        ({"kv_heads": 3, "head_dim": 7}, "kv_heads 3; head_dim 7 is odd"),
        ({"dim": -1, "vocab": None}, "dim must.*; vocab must"),
    ],
)
def test_impossible_shapes_are_refused(changes, message):
    with pytest.raises(LmmError, match=f"TransformerConfig: .*{message}"):
        config(**changes)
