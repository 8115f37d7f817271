"""Toy language models of transformers with random weights; nothing is downloaded."""

import copy
import warnings

import pytest
import torch

SMALL = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=48, vocab_size=400) | dict(
    max_position_embeddings=512, pad_token_id=0, bos_token_id=1, eos_token_id=2
)

HF_PACKED = {
    "gpt2": dict(attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0),
    "opt": dict(ffn_dim=48, word_embed_proj_dim=16, dropout=0.0),
    "gpt_neox": {},
    "qwen2": {},
    "qwen3": dict(head_dim=8),
    "mistral": dict(sliding_window=4),
    "gemma2": dict(head_dim=8, sliding_window=4, query_pre_attn_scalar=8),
    "gemma3_text": dict(head_dim=8, sliding_window=4, layer_types=["sliding_attention", "full_attention"]),
    "phi": dict(partial_rotary_factor=0.5),
    "olmo2": {},
    "cohere": dict(logit_scale=0.3),
    "granite": dict(embedding_multiplier=3.0, logits_scaling=2.0, attention_multiplier=0.4),
    "mixtral": dict(num_local_experts=4),
    "qwen3_moe": dict(head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16),
    "deepseek_v3": dict(n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1, num_key_value_heads=4)
    | dict(q_lora_rank=8, kv_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=8, v_head_dim=6)
    | dict(first_k_dense_replace=1, moe_intermediate_size=16),
}
"""model_type -> what differs from ``SMALL``; each runs packed."""

HF_PADDED = {
    "bloom": dict(n_layer=2, n_head=4, hidden_dropout=0.0, attention_dropout=0.0),
    "gptj": dict(n_embd=32, n_layer=2, n_head=4, rotary_dim=4, n_positions=512, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0),
    "falcon": dict(alibi=True, new_decoder_architecture=False, multi_query=True),
    "mamba": dict(state_size=4),
    "jamba": dict(num_experts=2, attn_layer_period=2, attn_layer_offset=1, use_mamba_kernels=False),
    "gpt_oss": dict(head_dim=8, num_local_experts=4, num_experts_per_tok=2, sliding_window=4)
    | dict(rope_parameters={"rope_type": "default", "rope_theta": 1e4}),
}
"""The same for those that can't run packed."""


@pytest.fixture(scope="session")
def make_hf():
    """Make a model whose every parameter matters: norms near 1, biases not 0, everything large enough to be seen."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    def make(kind, *, seed=0, **changes):
        options = {**SMALL, **(HF_PACKED | HF_PADDED).get(kind, {}), **changes}
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**options), attn_implementation="eager")
        with torch.no_grad():
            for name, value in model.named_parameters():
                noise = torch.randn(value.shape)
                if "A_log" in name or name.endswith(".D"):
                    continue
                near_one = value.dim() == 1 and bool((value == 1).all())
                value.copy_(1 + 0.1 * noise if near_one else noise * (0.2 if value.dim() > 1 else 0.1))
        return model.eval()

    return make


@pytest.fixture(scope="session")
def make_pair(make_hf):
    """A decoder and transformers' model with the same weights."""
    from lmmblocks.decoders.hf import HFDecoder

    def make(kind, *, way="auto", recompute=False, **changes):
        twin = make_hf(kind, **changes)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return HFDecoder.of(copy.deepcopy(twin), way=way, recompute=recompute).eval(), twin

    return make
