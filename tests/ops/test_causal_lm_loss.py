"""The loss from hidden states equals the one a transformers model gives for the same labels."""

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

from lmmblocks import ops
from lmmblocks.spec import LmmError

TINY = {
    "vocab_size": 37, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**TINY))


@pytest.fixture
def batch():
    torch.manual_seed(1)
    ids = torch.randint(0, 37, (3, 9))
    labels = ids.masked_fill(torch.rand(3, 9) < 0.6, -100)
    assert 4 < (labels[:, 1:] != -100).sum() < 20
    return ids, labels


def _ours(model, ids, labels, **options):
    hidden = model.model(ids).last_hidden_state
    return ops.causal_lm_loss(hidden, model.lm_head.weight, labels, **options)


@pytest.mark.parametrize("items", [None, 7, torch.tensor(7)], ids=["mean", "int", "tensor"])
@pytest.mark.parametrize("capacity", [None, 21, 27, 100])
def test_loss_and_gradients_are_those_of_the_model(llama, batch, items, capacity):
    ids, labels = batch
    theirs = llama(ids, labels=labels, **({} if items is None else {"num_items_in_batch": items})).loss
    ours = _ours(llama, ids, labels, num_items_in_batch=items, capacity=capacity)
    torch.testing.assert_close(ours, theirs)
    parameters = list(llama.parameters())
    for a, b in zip(torch.autograd.grad(ours, parameters), torch.autograd.grad(theirs, parameters)):
        torch.testing.assert_close(a, b)


def test_soft_capped_logits_give_the_loss_of_gemma(batch):
    torch.manual_seed(0)
    model = Gemma2ForCausalLM(Gemma2Config(**TINY, head_dim=8, final_logit_softcapping=0.5))
    ids, labels = batch
    torch.testing.assert_close(_ours(model, ids, labels, softcap=0.5), model(ids, labels=labels).loss)


def test_only_rows_with_a_label_reach_the_head(llama, batch, monkeypatch):
    import sys

    module, seen = sys.modules["lmmblocks.ops.causal_lm_loss"], []
    plain = module.linear_cross_entropy
    monkeypatch.setattr(
        module,
        "linear_cross_entropy",
        lambda hidden, *a, **k: (seen.append(hidden.shape[0]), plain(hidden, *a, **k))[1],
    )
    ids, labels = batch
    _ours(llama, ids, labels)
    _ours(llama, ids, labels, capacity=20)
    assert seen == [(labels[:, 1:] != -100).sum(), 20]


def test_more_labels_than_the_capacity_give_nan_and_no_usable_gradient(llama, batch):
    ids, labels = batch
    hidden = llama.model(ids).last_hidden_state.detach().requires_grad_()
    loss = ops.causal_lm_loss(hidden, llama.lm_head.weight, labels, capacity=2)
    assert loss.isnan() and torch.autograd.grad(loss, hidden)[0].isnan().any()


def test_a_packed_row_and_shifted_labels_give_the_same_loss(llama, batch):
    ids, labels = batch
    hidden, head = llama.model(ids).last_hidden_state, llama.lm_head.weight
    expected = ops.causal_lm_loss(hidden, head, labels)
    begun = labels.clone()
    begun[:, 0] = -100
    torch.testing.assert_close(ops.causal_lm_loss(hidden.flatten(0, 1), head, begun.flatten()), expected)
    nexts = torch.cat([labels[:, 1:], labels.new_full((3, 1), -100)], 1)
    torch.testing.assert_close(ops.causal_lm_loss(hidden, head, nexts, shifted=True), expected)
    renamed = labels.masked_fill(labels == -100, -1)
    torch.testing.assert_close(ops.causal_lm_loss(hidden, head, renamed, ignore_index=-1), expected)


def test_no_label_gives_zero_and_zero_gradients(llama, batch):
    hidden = llama.model(batch[0]).last_hidden_state.detach().requires_grad_()
    loss = ops.causal_lm_loss(hidden, llama.lm_head.weight, torch.full((3, 9), -100))
    assert loss == 0 and not torch.autograd.grad(loss, hidden)[0].any()


def test_labels_on_a_device_are_not_waited_for(llama, batch):
    """The meta device holds no values: to ask for one is an error."""
    hidden, head, labels = (
        torch.empty(3, 9, 16, device="meta"),
        torch.empty(37, 16, device="meta"),
        batch[1].to("meta"),
    )
    for capacity in (None, 4):
        loss = ops.causal_lm_loss(hidden.requires_grad_(), head, labels, capacity=capacity, num_items_in_batch=torch.tensor(3))
        loss.backward()
        assert loss.shape == () and hidden.grad.shape == hidden.shape


def test_labels_that_do_not_fit_are_refused():
    hidden, head = torch.ones(2, 3, 4), torch.ones(5, 4)
    with pytest.raises(LmmError, match=r"need labels \(2, 3\), found \(2, 2\)"):
        ops.causal_lm_loss(hidden, head, torch.ones(2, 2, dtype=torch.long))
    with pytest.raises(LmmError, match="capacity must be 1 or more, found 0"):
        ops.causal_lm_loss(hidden, head, torch.ones(2, 3, dtype=torch.long), capacity=0)
